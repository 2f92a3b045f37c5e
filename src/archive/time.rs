//! The times of messages: which are believed, and what the timestamps of their records become.
//!
//! Readers that go by event time take the largest timestamp so far for the time it is. One record with a time ahead of
//! its neighbours makes them drop all that comes after it. So a time that cannot be right is replaced by one that moves
//! nothing.

use super::WINDOW_MS;
use super::record::Record;

/// Clocks differ: a time this much ahead of the pull can be right.
pub const CLOCK_AHEAD_MS: i64 = 60 * 60 * 1000;

/// Header of a message whose record does not have the message's own time: why not.
pub const TIMESTAMP_HEADER: &str = "wecom.timestamp_from";
/// The message's time cannot be right. The timestamp is that of the newest believable message before it.
pub const FROM_NEWEST: &str = "newest_message";
/// The topic does not take the message's time. The timestamp is the nearest that it takes.
pub const FROM_LIMIT: &str = "topic_limit";

/// Whether a message that was pulled at `pulled_at_ms` can be of this time: not 0 or before, at most an hour ahead, and
/// not much older than what WeCom keeps.
pub fn is_believable(msgtime_ms: i64, pulled_at_ms: i64) -> bool {
    let oldest_ms = pulled_at_ms.saturating_sub(2 * WINDOW_MS).max(1);
    (oldest_ms..=pulled_at_ms.saturating_add(CLOCK_AHEAD_MS)).contains(&msgtime_ms)
}

/// What the timestamp of a message's record is (`wecom.record.timestamp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RecordTimestamp {
    /// The message's time. See [`Timestamps`].
    #[default]
    Message,
    /// The time of the pull.
    Ingest,
}

impl RecordTimestamp {
    /// The names in configuration.
    pub const NAMES: &'static [&'static str] = &["message", "ingest"];

    /// The variant of a name in configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "message" => Some(Self::Message),
            "ingest" => Some(Self::Ingest),
            _ => None,
        }
    }
}

/// Which timestamps a topic takes and keeps, in milliseconds before and after now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimestampLimits {
    pub before_max_ms: i64,
    pub after_max_ms: i64,
}

impl TimestampLimits {
    /// A topic that takes all.
    pub const NONE: Self = Self { before_max_ms: i64::MAX, after_max_ms: i64::MAX };

    fn clamp(self, timestamp_ms: i64, now_ms: i64) -> i64 {
        let oldest_ms = now_ms.saturating_sub(self.before_max_ms).max(0);
        let newest_ms = now_ms.saturating_add(self.after_max_ms);
        timestamp_ms.clamp(oldest_ms, newest_ms.max(oldest_ms))
    }
}

/// Gives the records of one corp's messages their timestamps, one after the other by `seq`.
#[derive(Debug, Clone, Copy)]
pub struct Timestamps {
    pub kind: RecordTimestamp,
    pub limits: TimestampLimits,
    /// The newest believable time of a message so far, milliseconds since the epoch.
    pub newest_ms: Option<i64>,
}

impl Timestamps {
    /// Sets the timestamp of a message's record.
    ///
    /// It is the message's own time, where that is believable. Otherwise it is the newest believable time before it in
    /// this corp; where none is known, five days before the pull: a reader's time does not move. Where the topic takes
    /// neither, it is the nearest that the topic takes. In both cases a header says so. With
    /// [`RecordTimestamp::Ingest`] it is `now_ms`.
    ///
    /// This machine's clock can be far off. The newest believable time says so, where it cannot be right by this clock:
    /// then a time is also held against that one.
    pub fn stamp(&mut self, record: &mut Record, msgtime_ms: Option<i64>, pulled_at_ms: i64, now_ms: i64) {
        let by_clock = |msgtime_ms: i64| is_believable(msgtime_ms, pulled_at_ms);
        let other_clock_ms = self.newest_ms.filter(|newest_ms| !by_clock(*newest_ms));
        let by_newest = |msgtime_ms: i64| other_clock_ms.is_some_and(|newest_ms| is_believable(msgtime_ms, newest_ms));
        let believed_ms = msgtime_ms.filter(|msgtime_ms| by_clock(*msgtime_ms) || by_newest(*msgtime_ms));
        let present_ms = match (other_clock_ms, believed_ms) {
            (Some(newest_ms), Some(believed_ms)) if !by_clock(believed_ms) => newest_ms,
            // Nothing was pulled for long, or the clock is behind.
            (Some(newest_ms), None) => newest_ms.max(now_ms),
            _ => now_ms,
        };
        self.newest_ms = self.newest_ms.max(believed_ms);
        if self.kind == RecordTimestamp::Ingest {
            record.timestamp_ms = now_ms;
            return;
        }
        let wanted_ms = believed_ms.or(self.newest_ms).unwrap_or_else(|| pulled_at_ms.saturating_sub(WINDOW_MS).max(0));
        record.timestamp_ms = self.limits.clamp(wanted_ms, present_ms);
        let from = match believed_ms {
            None => Some(FROM_NEWEST),
            Some(_) => (record.timestamp_ms != wanted_ms).then_some(FROM_LIMIT),
        };
        record.headers.extend(from.map(|from| (TIMESTAMP_HEADER, from.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Topic;

    const NOW: i64 = 1_700_000_000_000;
    const HOUR: i64 = 60 * 60 * 1000;
    const DAY: i64 = 24 * HOUR;

    fn stamped(timestamps: &mut Timestamps, msgtime_ms: Option<i64>, now_ms: i64) -> (i64, Option<String>) {
        let mut record =
            Record { topic: Topic::Messages, key: Vec::new(), value: Vec::new(), headers: Vec::new(), timestamp_ms: 7 };
        timestamps.stamp(&mut record, msgtime_ms, NOW, now_ms);
        let header = record.headers.pop().map(|(name, value)| {
            assert_eq!(name, TIMESTAMP_HEADER);
            String::from_utf8(value).unwrap()
        });
        (record.timestamp_ms, header)
    }

    #[test]
    fn a_time_that_cannot_be_right_moves_nothing() {
        let start = Timestamps { kind: RecordTimestamp::Message, limits: TimestampLimits::NONE, newest_ms: None };
        let mut timestamps = start;
        // One catch-up, in order: the message's time, its timestamp, and why that is another.
        for (msgtime_ms, expected, from) in [
            (Some(0), NOW - 5 * DAY, Some(FROM_NEWEST)),
            (None, NOW - 5 * DAY, Some(FROM_NEWEST)),
            (Some(NOW - 4 * DAY), NOW - 4 * DAY, None),
            (Some(0), NOW - 4 * DAY, Some(FROM_NEWEST)),
            (Some(NOW + 3 * DAY), NOW - 4 * DAY, Some(FROM_NEWEST)),
            (Some(i64::MAX), NOW - 4 * DAY, Some(FROM_NEWEST)),
            (Some(i64::MIN), NOW - 4 * DAY, Some(FROM_NEWEST)),
            (Some(1_262_304_000_000), NOW - 4 * DAY, Some(FROM_NEWEST)),
            // Order of seq is not order of time.
            (Some(NOW - 6 * DAY), NOW - 6 * DAY, None),
            (Some(0), NOW - 4 * DAY, Some(FROM_NEWEST)),
            (Some(NOW + HOUR), NOW + HOUR, None),
            (Some(NOW + HOUR + 1), NOW + HOUR, Some(FROM_NEWEST)),
        ] {
            let found = stamped(&mut timestamps, msgtime_ms, NOW);
            assert_eq!(found, (expected, from.map(str::to_owned)), "{msgtime_ms:?}");
        }
        let mut ingest = Timestamps { kind: RecordTimestamp::Ingest, ..start };
        assert_eq!(stamped(&mut ingest, Some(NOW - DAY), NOW + 3), (NOW + 3, None));
        assert_eq!(ingest.newest_ms, Some(NOW - DAY));
    }

    #[test]
    fn a_clock_that_is_far_off_is_not_believed_against_the_messages() {
        let limits = TimestampLimits { before_max_ms: 6 * DAY, after_max_ms: HOUR / 2 };
        let year = 365 * DAY;
        // Up to then the clock was right: what is known of the corp, the messages' times, and their timestamps.
        for (known_ms, msgtime_ms, expected, from) in [
            (NOW + year, NOW + year + 60_000, NOW + year + 60_000, None),
            (NOW + year, NOW + year - DAY, NOW + year - DAY, None),
            (NOW + year, 0, NOW + year, Some(FROM_NEWEST)),
            (NOW - year, NOW - year + 60_000, NOW - year + 60_000, None),
            // After twelve days without a message the clock is right, and so is the message.
            (NOW - 12 * DAY, NOW, NOW, None),
            (NOW - 12 * DAY, 0, NOW - 6 * DAY, Some(FROM_NEWEST)),
        ] {
            let mut timestamps = Timestamps { kind: RecordTimestamp::Message, limits, newest_ms: Some(known_ms) };
            let found = stamped(&mut timestamps, Some(msgtime_ms), NOW);
            assert_eq!(found, (expected, from.map(str::to_owned)), "{msgtime_ms} after {known_ms}");
        }
    }

    #[test]
    fn a_topic_gets_what_it_takes() {
        let later = NOW + 90 * DAY;
        let start = Timestamps { kind: RecordTimestamp::Message, limits: TimestampLimits::NONE, newest_ms: None };
        // Of a replay months later: the message's own time, as long as the topic takes it.
        assert_eq!(stamped(&mut { start }, Some(NOW - 1), later), (NOW - 1, None));
        let limits = TimestampLimits { before_max_ms: DAY, after_max_ms: 1_000 };
        for (msgtime_ms, now_ms, expected, from) in [
            (Some(NOW - 1), later, later - DAY, Some(FROM_LIMIT)),
            (Some(NOW - DAY), NOW, NOW - DAY, None),
            (Some(NOW - DAY - 1), NOW, NOW - DAY, Some(FROM_LIMIT)),
            (Some(NOW + 1_001), NOW, NOW + 1_000, Some(FROM_LIMIT)),
            (Some(0), NOW, NOW - DAY, Some(FROM_NEWEST)),
        ] {
            let found = stamped(&mut Timestamps { limits, ..start }, msgtime_ms, now_ms);
            assert_eq!(found, (expected, from.map(str::to_owned)), "{msgtime_ms:?}");
        }
    }
}
