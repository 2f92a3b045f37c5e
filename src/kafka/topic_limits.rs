//! What a topic takes and how long it keeps it, as its settings say.

use crate::archive::TimestampLimits;

const DAY_MS: i64 = 24 * 60 * 60 * 1000;

/// A record lies in a worker, and in a transaction that is tried again, for up to this long before a broker looks at
/// it.
const WAY_MS: i64 = 10 * 60 * 1000;

/// Limits of one topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicLimits {
    /// The largest batch in bytes (`max.message.bytes`).
    pub bytes_max: Option<usize>,
    /// What is older than this is deleted, in milliseconds; `None`: kept for good, or not told.
    pub retention_ms: Option<i64>,
    /// Beyond so many bytes a partition the oldest are deleted; `None`: no limit, or not told.
    pub retention_bytes: Option<i64>,
    /// Timestamps older than this are refused, in milliseconds before the broker's now.
    pub timestamp_before_max_ms: Option<i64>,
    /// Timestamps newer than this are refused, in milliseconds after the broker's now.
    pub timestamp_after_max_ms: Option<i64>,
}

impl TopicLimits {
    /// Reads the topic's settings.
    pub fn read(setting: impl Fn(&str) -> Option<String>) -> Self {
        let number = |name: &str| setting(name).and_then(|value| value.parse::<i64>().ok());
        let limit = |name: &str| number(name).filter(|value| (0..i64::MAX).contains(value));
        // The broker's own time is never refused. The third name is that of brokers before Kafka 4.0, for both
        // directions.
        let is_brokers = setting("message.timestamp.type").is_some_and(|kind| kind == "LogAppendTime");
        let timestamps = |name: &str| {
            let both = limit("message.timestamp.difference.max.ms");
            limit(name).into_iter().chain(both).min().filter(|_| !is_brokers)
        };
        Self {
            bytes_max: setting("max.message.bytes").and_then(|value| value.parse().ok()),
            retention_ms: limit("retention.ms"),
            retention_bytes: limit("retention.bytes"),
            timestamp_before_max_ms: timestamps("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: timestamps("message.timestamp.after.max.ms"),
        }
    }

    /// The timestamps to give to records, so that the broker takes them and does not delete them at once.
    ///
    /// A broker deletes by the newest timestamp of a segment: what comes with a timestamp beyond the retention could be
    /// gone before anybody has read it.
    pub fn timestamps(&self) -> TimestampLimits {
        let taken_ms = self.timestamp_before_max_ms.map(|before_ms| before_ms - WAY_MS.min(before_ms / 2));
        let kept_ms = self.retention_ms.map(|retention_ms| retention_ms - DAY_MS.min(retention_ms / 2));
        TimestampLimits {
            before_max_ms: taken_ms.into_iter().chain(kept_ms).min().unwrap_or(i64::MAX),
            after_max_ms: self.timestamp_after_max_ms.map_or(i64::MAX, |after_ms| after_ms / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_say_what_a_topic_takes() {
        let none = TimestampLimits::NONE;
        let max = "9223372036854775807";
        let rows: [(&[(&str, &str)], TimestampLimits); 8] = [
            (&[], none),
            (&[("retention.ms", "-1"), ("message.timestamp.before.max.ms", max)], none),
            (&[("retention.ms", "604800000")], TimestampLimits { before_max_ms: 6 * DAY_MS, ..none }),
            (&[("retention.ms", "3600000")], TimestampLimits { before_max_ms: 1_800_000, ..none }),
            (
                &[("message.timestamp.before.max.ms", "3600000"), ("message.timestamp.after.max.ms", "3600000")],
                TimestampLimits { before_max_ms: 3_000_000, after_max_ms: 1_800_000 },
            ),
            (
                &[("message.timestamp.before.max.ms", max), ("message.timestamp.difference.max.ms", "60000")],
                TimestampLimits { before_max_ms: 30_000, after_max_ms: 30_000 },
            ),
            (&[("message.timestamp.before.max.ms", "0")], TimestampLimits { before_max_ms: 0, ..none }),
            (&[("message.timestamp.before.max.ms", "1"), ("message.timestamp.type", "LogAppendTime")], none),
        ];
        for (settings, expected) in rows {
            let value =
                |name: &str| settings.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(TopicLimits::read(value).timestamps(), expected, "{settings:?}");
        }
    }
}
