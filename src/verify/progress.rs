//! Says now and then on standard error how far a long look has come.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    /// An upper bound: marks of transactions take offsets, too.
    offsets: u64,
    done: u64,
    seq: Option<u64>,
    told: Instant,
}

impl Progress {
    pub fn new() -> Self {
        Self { what: "", offsets: 0, done: 0, seq: None, told: Instant::now() }
    }

    /// A part begins, of at most so many records.
    pub fn begin(&mut self, what: &'static str, offsets: u64) {
        (self.what, self.offsets, self.done, self.seq) = (what, offsets, 0, None);
    }

    /// One record is read.
    pub fn step(&mut self) {
        self.done += 1;
        if self.told.elapsed() >= INTERVAL {
            self.told = Instant::now();
            let at = self.seq.map(|seq| format!(", at seq {seq}")).unwrap_or_default();
            eprintln!("verify: {}: {} of at most {} records{at}", self.what, self.done, self.offsets);
        }
    }

    pub fn at_seq(&mut self, seq: u64) {
        self.seq = Some(seq);
    }
}
