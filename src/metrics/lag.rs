//! How far delivery is behind the archive, computed from facts at the moment somebody asks.
//!
//! A gauge that is set when a record passes keeps its last value when nothing passes any more, and so looks best when the
//! connector is stuck. Here the tasks only note facts (what was pulled, opened, committed; when the archive was found drained),
//! and the ages are taken against the clock at each scrape: they grow by themselves while nothing happens.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// After a drained poll the next one may take this much longer than planned before the archive stops counting as drained: one
/// `GetChatData` that runs into its time limit and is repeated.
const POLL_GRACE_MS: i64 = 30_000;

/// The facts of one connector. All times are ms since 1970.
#[derive(Debug)]
pub struct Lag(Mutex<Facts>);

#[derive(Debug, Default)]
struct Facts {
    /// Nothing is known before: where no message and no drained poll tells more, lag counts from here.
    started_ms: i64,
    pulled_seq: u64,
    committed_seq: u64,
    /// Everything the archive had up to this time is committed.
    committed_until_ms: Option<i64>,
    drained: Option<Drained>,
    /// Pages that are decrypted and not committed: last seq, and msgtime of the oldest message.
    opened: VecDeque<(u64, i64)>,
}

#[derive(Debug, Clone, Copy)]
struct Drained {
    /// What had been pulled when the archive had nothing more.
    seq: u64,
    polled_ms: i64,
    next_poll_ms: i64,
}

/// One reading, see the help of the metrics of the same names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reading {
    pub archive_lag_seconds: f64,
    pub oldest_undelivered_age_seconds: f64,
    pub pulled_seq: u64,
    pub committed_seq: u64,
}

impl Lag {
    pub(super) fn new(now_ms: i64) -> Self {
        Self(Mutex::new(Facts { started_ms: now_ms, ..Facts::default() }))
    }

    /// A task starts from the committed offset (0: from the beginning). `committed_until_ms` is the msgtime of the last committed
    /// message, where it is known; without it a restart keeps what was known before, unless the offset was set back.
    pub fn resumed(&self, committed_seq: u64, committed_until_ms: Option<i64>, now_ms: i64) {
        let mut facts = self.facts();
        if committed_seq < facts.committed_seq {
            (facts.committed_until_ms, facts.drained, facts.started_ms) = (None, None, now_ms);
        }
        facts.committed_until_ms = facts.committed_until_ms.max(plausible(committed_until_ms, now_ms));
        facts.opened.clear();
        (facts.pulled_seq, facts.committed_seq) = (committed_seq, committed_seq);
    }

    /// A page was answered; `last_seq` is that of its last record.
    pub fn pulled(&self, last_seq: u64) {
        let mut facts = self.facts();
        facts.pulled_seq = facts.pulled_seq.max(last_seq);
    }

    /// The page that ends with `last_seq` is decrypted. `oldest_msgtime_ms`: its oldest message, none if no message tells.
    pub fn opened(&self, last_seq: u64, oldest_msgtime_ms: Option<i64>, now_ms: i64) {
        if let Some(msgtime_ms) = plausible(oldest_msgtime_ms, now_ms) {
            self.facts().opened.push_back((last_seq, msgtime_ms));
        }
    }

    /// Everything up to `last_seq` is committed. `newest_msgtime_ms`: the newest message among it, none if no message tells.
    pub fn committed(&self, last_seq: u64, newest_msgtime_ms: Option<i64>, now_ms: i64) {
        let mut facts = self.facts();
        facts.committed_seq = facts.committed_seq.max(last_seq);
        facts.pulled_seq = facts.pulled_seq.max(last_seq);
        facts.opened.retain(|(seq, _)| *seq > last_seq);
        facts.committed_until_ms = facts.committed_until_ms.max(plausible(newest_msgtime_ms, now_ms));
    }

    /// A transaction was aborted, its page will be pulled again: what was pulled beyond the committed offset is forgotten.
    pub fn rewound(&self) {
        let mut facts = self.facts();
        facts.opened.clear();
        facts.drained = facts.drained.filter(|drained| drained.seq <= facts.committed_seq);
        facts.pulled_seq = facts.committed_seq;
    }

    /// A poll begun at `polled_ms` found nothing more; the next comes after `poll_interval`. Counts once all pulled is committed.
    pub fn drained(&self, polled_ms: i64, poll_interval: Duration) {
        let interval_ms = i64::try_from(poll_interval.as_millis()).unwrap_or(i64::MAX);
        let mut facts = self.facts();
        let seq = facts.pulled_seq;
        facts.drained = Some(Drained { seq, polled_ms, next_poll_ms: polled_ms.saturating_add(interval_ms) });
    }

    pub(super) fn read(&self, now_ms: i64) -> Reading {
        let facts = self.facts();
        let drained = facts.drained.filter(|drained| drained.seq <= facts.committed_seq);
        let committed_until_ms = facts.committed_until_ms.max(drained.map(|drained| drained.polled_ms));
        let is_drained = facts.pulled_seq <= facts.committed_seq
            && drained.is_some_and(|drained| now_ms <= drained.next_poll_ms.saturating_add(POLL_GRACE_MS));
        let age_seconds = |ms: i64| Duration::from_millis(u64::try_from(now_ms - ms).unwrap_or(0)).as_secs_f64();
        let oldest_opened_ms = facts.opened.iter().map(|(_, msgtime_ms)| *msgtime_ms).min();
        let behind_since_ms = committed_until_ms.or(oldest_opened_ms).unwrap_or(facts.started_ms);
        let archive_lag_seconds = if is_drained { 0.0 } else { age_seconds(behind_since_ms) };
        Reading {
            archive_lag_seconds,
            oldest_undelivered_age_seconds: oldest_opened_ms.map_or(0.0, age_seconds).max(archive_lag_seconds),
            pulled_seq: facts.pulled_seq,
            committed_seq: facts.committed_seq,
        }
    }

    /// The facts are plain values, valid at every step: a panic elsewhere must not take the metrics with it.
    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A msgtime can be 0 or a wrong clock's: 0 tells nothing, and one from the future would hide lag.
fn plausible(msgtime_ms: Option<i64>, now_ms: i64) -> Option<i64> {
    msgtime_ms.filter(|ms| (1..=now_ms).contains(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_767_225_600_000;
    const INTERVAL: Duration = Duration::from_secs(5);

    #[track_caller]
    fn check(lag: &Lag, seconds_after: i64, archive_lag: f64, oldest: f64) {
        let reading = lag.read(NOW + seconds_after * 1000);
        assert_eq!((reading.archive_lag_seconds, reading.oldest_undelivered_age_seconds), (archive_lag, oldest));
    }

    /// Milliseconds of a time given in seconds from the start.
    fn at(seconds: i64) -> i64 {
        NOW + seconds * 1000
    }

    #[test]
    fn a_connector_that_never_gets_an_answer_falls_behind() {
        let lag = Lag::new(NOW);
        lag.resumed(0, None, NOW);
        check(&lag, 0, 0.0, 0.0);
        check(&lag, 3600, 3600.0, 3600.0);
    }

    #[test]
    fn catching_up_shows_the_age_of_what_is_not_there_yet() {
        let lag = Lag::new(NOW);
        lag.pulled(1000);
        lag.opened(1000, Some(at(-400_000)), NOW);
        check(&lag, 0, 400_000.0, 400_000.0);
        lag.committed(1000, Some(at(-399_000)), NOW);
        check(&lag, 0, 399_000.0, 399_000.0);
        check(&lag, 60, 399_060.0, 399_060.0);
    }

    #[test]
    fn drained_and_committed_is_no_lag_until_the_next_poll_fails_to_come() {
        let lag = Lag::new(NOW);
        lag.pulled(10);
        lag.committed(10, Some(at(-500)), NOW);
        lag.drained(NOW, INTERVAL);
        check(&lag, 0, 0.0, 0.0);
        check(&lag, 35, 0.0, 0.0);
        check(&lag, 36, 36.0, 36.0);
        check(&lag, 86_400, 86_400.0, 86_400.0);
        lag.drained(at(86_400), INTERVAL);
        check(&lag, 86_400, 0.0, 0.0);
    }

    #[test]
    fn drained_does_not_count_while_a_page_waits_for_its_commit() {
        let lag = Lag::new(NOW);
        lag.pulled(10);
        lag.opened(10, Some(at(-2)), NOW);
        lag.drained(NOW, INTERVAL);
        check(&lag, 600, 602.0, 602.0);
        lag.committed(10, Some(at(-1)), at(600));
        check(&lag, 600, 600.0, 600.0);
        lag.drained(at(601), INTERVAL);
        check(&lag, 601, 0.0, 0.0);
    }

    #[test]
    fn a_message_after_a_long_silence_counts_from_the_last_drained_poll() {
        let lag = Lag::new(NOW);
        lag.committed(10, Some(at(-86_400)), NOW);
        lag.drained(NOW, INTERVAL);
        lag.pulled(11);
        check(&lag, 5, 5.0, 5.0);
    }

    #[test]
    fn impossible_times_neither_hide_lag_nor_invent_it() {
        let lag = Lag::new(NOW);
        lag.committed(9, Some(at(0)), NOW);
        lag.committed(10, Some(at(1_000_000)), at(30));
        check(&lag, 60, 60.0, 60.0);
        lag.committed(11, Some(0), at(60));
        lag.pulled(12);
        lag.opened(12, Some(0), at(60));
        check(&lag, 60, 60.0, 60.0);
    }

    #[test]
    fn a_restart_does_not_flatter_and_an_offset_set_back_starts_anew() {
        let lag = Lag::new(NOW);
        lag.committed(10, Some(at(0)), NOW);
        lag.pulled(20);
        lag.opened(20, Some(at(0)), NOW);
        lag.resumed(10, None, at(900));
        check(&lag, 900, 900.0, 900.0);
        assert_eq!(lag.read(NOW).pulled_seq, 10);
        lag.resumed(5, Some(at(-100)), at(900));
        check(&lag, 900, 1000.0, 1000.0);
    }

    #[test]
    fn an_aborted_page_is_forgotten_until_it_is_pulled_again() {
        let lag = Lag::new(NOW);
        lag.committed(10, Some(at(0)), NOW);
        lag.pulled(20);
        lag.opened(20, Some(at(-50)), NOW);
        lag.drained(NOW, INTERVAL);
        lag.rewound();
        let reading = lag.read(at(1));
        assert_eq!((reading.pulled_seq, reading.committed_seq), (10, 10));
        check(&lag, 1, 1.0, 1.0);
    }
}
