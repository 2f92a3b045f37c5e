//! A corp at work: which seq stands for which message, when it was archived, and what is special about it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::media::MediaFile;
use crate::message::kind::Oddity;
use crate::random::{Random, hash, mix};
use crate::scenario::{BadRecord, COUNT_MAX, CorpScenario, Pinned};

const MS_PER_HOUR: f64 = 3_600_000.0;

/// A corp of a scenario, with the moment at which its live traffic starts.
#[derive(Debug)]
pub struct Corp {
    pub scenario: CorpScenario,
    pub base_time_ms: i64,
    tag: u64,
    /// A file's md5 costs a pass over the file, and each pull of its message asks for it.
    md5s: Mutex<HashMap<MediaFile, String>>,
}

impl Corp {
    pub fn new(scenario: CorpScenario, base_time_ms: i64) -> Self {
        let tag = mix(hash(&scenario.id) ^ mix(scenario.seed));
        Self { scenario, base_time_ms, tag, md5s: Mutex::default() }
    }

    /// The numbers of one use for one message (or conversation).
    pub fn random(&self, domain: &str, number: u64) -> Random {
        Random::new(self.scenario.seed, domain, number)
    }

    /// Tells the corp's ids and ciphertexts from those of other corps.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The seq of the message at `index` (counted from 0).
    pub fn seq(&self, index: u64) -> u64 {
        let jumps = index.checked_div(self.scenario.seq_gap_every).unwrap_or(0);
        self.scenario.first_seq + index + jumps * self.scenario.seq_gap
    }

    /// The index of the first message whose seq is greater than `seq`.
    pub fn index_after(&self, seq: u64) -> u64 {
        let Some(distance) = seq.checked_sub(self.scenario.first_seq) else { return 0 };
        let (every, gap) = (self.scenario.seq_gap_every, self.scenario.seq_gap);
        if every == 0 {
            return distance + 1;
        }
        let (jumps, rest) = (distance / (every + gap), distance % (every + gap));
        jumps * every + (rest + 1).min(every)
    }

    /// The index of the message with this seq, if there is one or will be.
    pub fn index(&self, seq: u64) -> Option<u64> {
        let index = self.index_after(seq).checked_sub(1)?;
        (self.seq(index) == seq).then_some(index)
    }

    /// When the message at `index` came into the archive (Unix ms).
    pub fn archived_ms(&self, index: u64) -> i64 {
        let messages = self.scenario.messages;
        if index < messages {
            let share = (messages - 1 - index) as f64 / messages as f64;
            self.base_time_ms - (share * self.scenario.history_hours * MS_PER_HOUR) as i64
        } else {
            let ms = (index - messages + 1) as f64 * 1_000.0 / self.scenario.live_per_second;
            self.base_time_ms.saturating_add(ms as i64)
        }
    }

    /// How many messages were archived up to `now_ms`.
    pub fn archived(&self, now_ms: i64) -> u64 {
        let seconds = (now_ms - self.base_time_ms).max(0) as f64 / 1_000.0;
        let live = (seconds * self.scenario.live_per_second) as u64;
        self.scenario.messages + live.min(self.scenario.live_messages.unwrap_or(COUNT_MAX))
    }

    /// Whether the archive no longer gives out the message at `index`.
    pub fn is_out_of_window(&self, index: u64, now_ms: i64) -> bool {
        self.archived_ms(index) < now_ms - (self.scenario.window_hours * MS_PER_HOUR) as i64
    }

    /// The index of the first message that the archive still gives out.
    pub fn window_start(&self, now_ms: i64) -> u64 {
        let (mut low, mut high) = (0, self.archived(now_ms));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.is_out_of_window(middle, now_ms) { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// The version of the public key that seals the message.
    pub fn key_version(&self, seq: u64) -> u32 {
        let applies = self.scenario.keys.iter().rev().find(|key| key.from_seq <= seq);
        applies.map_or(0, |key| key.version)
    }

    /// What is told about the message's type.
    pub fn pinned(&self, seq: u64) -> Option<Pinned> {
        self.scenario.pinned.iter().find(|pinned| pinned.seq == seq).copied()
    }

    /// Why the message's record can't become a message, if it can't.
    pub fn bad(&self, seq: u64) -> Option<BadRecord> {
        let selects = |number: usize, listed: bool, share: f64| listed || self.is_chosen("bad", number, seq, share);
        let mut bad = self.scenario.bad.iter().enumerate();
        bad.find(|(number, bad)| selects(*number, bad.seq.contains(&seq), bad.share)).map(|(_, bad)| bad.kind)
    }

    /// What is odd about the message, if something is.
    pub fn odd(&self, seq: u64) -> Option<Oddity> {
        let listed = self.scenario.odd.iter().find(|odd| odd.seq.contains(&seq));
        let mut odd = self.scenario.odd.iter().enumerate();
        let chosen = || odd.find(|(number, odd)| self.is_chosen("odd", *number, seq, odd.share)).map(|(_, odd)| odd);
        listed.or_else(chosen).map(|odd| odd.kind)
    }

    fn is_chosen(&self, domain: &str, number: usize, seq: u64, share: f64) -> bool {
        share > 0.0 && self.random(domain, mix(seq).wrapping_add(number as u64)).chance(share)
    }

    /// The md5 of a media file of the corp.
    pub fn md5(&self, file: &MediaFile) -> String {
        const KEPT: usize = 100_000;
        if let Some(md5) = self.md5s.lock().unwrap_or_else(PoisonError::into_inner).get(file) {
            return md5.clone();
        }
        let md5 = file.md5(self.scenario.seed);
        let mut md5s = self.md5s.lock().unwrap_or_else(PoisonError::into_inner);
        if md5s.len() >= KEPT {
            md5s.clear();
        }
        md5s.insert(*file, md5.clone());
        md5
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corp(settings: &str) -> Corp {
        Corp::new(toml::from_str(&format!("id = 'corp'\nsecret = 'secret'\n{settings}")).unwrap(), 1_700_000_000_000)
    }

    #[test]
    fn seqs_rise_with_gaps_and_each_is_found_again() {
        for settings in
            ["", "first_seq = 50", "seq_gap = 7\nseq_gap_every = 10", "first_seq = 3\nseq_gap = 1\nseq_gap_every = 1"]
        {
            let corp = corp(settings);
            let seqs: Vec<u64> = (0..200).map(|index| corp.seq(index)).collect();
            assert!(seqs.is_sorted_by(|a, b| a < b), "{settings}");
            for seq in 0..seqs[150] {
                let expected = seqs.iter().position(|known| *known > seq).unwrap() as u64;
                assert_eq!(corp.index_after(seq), expected, "{settings}, seq {seq}");
                assert_eq!(corp.index(seq).is_some(), seqs.contains(&seq), "{settings}, seq {seq}");
            }
        }
    }

    #[test]
    fn the_archive_fills_and_forgets_with_time() {
        let corp = corp("messages = 100\nhistory_hours = 200\nlive_per_second = 2\nlive_messages = 5");
        let base = corp.base_time_ms;
        let archived: Vec<u64> = [0, 499, 500, 1_000, 60_000].iter().map(|ms| corp.archived(base + ms)).collect();
        assert_eq!(archived, [100, 100, 101, 102, 105]);
        assert_eq!(corp.archived_ms(99), base);
        assert_eq!(corp.archived_ms(100), base + 500);
        let start = corp.window_start(base);
        assert!(corp.is_out_of_window(start - 1, base) && !corp.is_out_of_window(start, base));
        assert_eq!(start, 39);
        assert_eq!(corp.window_start(base + 121 * 3_600_000), 105);
    }
}
