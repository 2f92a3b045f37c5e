//! What a run has done and found, in numbers.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

#[derive(Debug)]
pub struct Figures {
    pub seed: u64,
    started: Instant,
    rounds: u64,
    faults: BTreeMap<String, u64>,
    /// Processes that were killed, by kind.
    kills: BTreeMap<&'static str, u64>,
    recoveries: Vec<Duration>,
    /// Resident bytes and open files of the worker after each round.
    sizes: Vec<(u64, u64)>,
    pub judgements: u64,
    pub records: u64,
    pub media: u64,
    /// What was found, by kind.
    pub findings: BTreeMap<String, u64>,
}

impl Figures {
    pub fn new(seed: u64) -> Figures {
        Figures {
            seed,
            started: Instant::now(),
            rounds: 0,
            faults: BTreeMap::new(),
            kills: BTreeMap::new(),
            recoveries: Vec::new(),
            sizes: Vec::new(),
            judgements: 0,
            records: 0,
            media: 0,
            findings: BTreeMap::new(),
        }
    }

    pub fn fault(&mut self, kind: String) {
        self.rounds += 1;
        *self.faults.entry(kind).or_default() += 1;
    }

    pub fn kill(&mut self, whom: &'static str) {
        *self.kills.entry(whom).or_default() += 1;
    }

    pub fn recovered(&mut self, within: Duration) {
        self.recoveries.push(within);
    }

    /// The worker's resident bytes and open files, as its metrics say.
    pub fn sized(&mut self, resident_bytes: f64, open_files: f64) {
        self.sizes.push((resident_bytes as u64, open_files as u64));
    }

    fn found(&self, kinds: &[&str]) -> u64 {
        self.findings.iter().filter(|(kind, _)| kinds.contains(&kind.as_str())).map(|(_, count)| count).sum()
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut recoveries = self.recoveries.clone();
        recoveries.sort();
        let percentile = |share: f64| {
            let at = ((recoveries.len() as f64 * share).ceil() as usize).clamp(1, recoveries.len().max(1)) - 1;
            recoveries.get(at).map_or(0.0, Duration::as_secs_f64)
        };
        writeln!(f, "seed: {}", self.seed)?;
        writeln!(f, "ran for: {:.0} s", self.started.elapsed().as_secs_f64())?;
        writeln!(f, "faults: {}", self.rounds)?;
        for (kind, count) in &self.faults {
            writeln!(f, "  {count:5}  {kind}")?;
        }
        writeln!(f, "kills: {}", self.kills.values().sum::<u64>())?;
        for (whom, count) in &self.kills {
            writeln!(f, "  {count:5}  {whom}")?;
        }
        let (half, most, all) = (percentile(0.5), percentile(0.99), percentile(1.0));
        writeln!(f, "time to pull and commit again: p50 {half:.2} s, p99 {most:.2} s, longest {all:.2} s")?;
        if let (Some(first), Some(last)) = (self.sizes.first(), self.sizes.last()) {
            let largest =
                self.sizes.iter().fold((0, 0), |so_far: (u64, u64), now| (so_far.0.max(now.0), so_far.1.max(now.1)));
            let mib = |bytes: u64| bytes as f64 / (1 << 20) as f64;
            writeln!(
                f,
                "worker: resident {:.0} MiB at first, {:.0} at last, {:.0} at most; open files {}, {}, {}",
                mib(first.0),
                mib(last.0),
                mib(largest.0),
                first.1,
                last.1,
                largest.1
            )?;
        }
        writeln!(
            f,
            "judged: {} times, at last {} records and {} media files",
            self.judgements, self.records, self.media
        )?;
        let (lost, twice, order) = (
            &["missing", "chain_broken", "request_missing", "reference_missing", "object_missing", "offset_ahead"],
            &["twice", "reference_twice", "replayed_twice"],
            &["out_of_order"],
        );
        writeln!(f, "records lost: {}", self.found(lost))?;
        writeln!(f, "records twice: {}", self.found(twice))?;
        writeln!(f, "order violations: {}", self.found(order))?;
        write!(f, "findings of every kind: {}", self.findings.values().sum::<u64>())
    }
}
