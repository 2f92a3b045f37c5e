//! The topics of a connector: their names, and how they are made where they are missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ConnectorContext, TaskError};
use crate::archive::{Record, RecordTimestamp, TimestampLimits, Timestamps, Topic, WINDOW_MS};
use crate::config::{ConnectorConfig, RetentionCheck, WorkerConfig};
use crate::kafka::rights::Right;
use crate::kafka::topics::{self, Cleanup, TopicError, WantedTopic};
use crate::kafka::{BatchBytes, Clients, OutgoingRecord, TopicLimits};
use crate::sdk::SdkError;

/// librdkafka's and the broker's own default for a record batch, in bytes.
const BYTES_MAX_DEFAULT: usize = 1_000_000;

/// A request is worked on for five days; what is left of it then still has to be announced.
const REQUESTS_RETENTION_MS_MIN: i64 = WINDOW_MS + WINDOW_MS / 5;
/// Of the topics of requests and retries that are made here, where nothing else is asked for: no longer than brokers remember
/// the offsets of a group that is away, lest it does again what is done. Old records are deleted by whole segments.
const REQUESTS_RETENTION_MS: i64 = 7 * WINDOW_MS / 5;
const REQUESTS_SEGMENT_MS: i64 = WINDOW_MS / 5;

/// The connector's topics, checked.
#[derive(Debug, Clone)]
pub struct Topics {
    names: [(Topic, Arc<str>); 5],
    limits: BTreeMap<String, TopicLimits>,
    producer_bytes_max: Option<usize>,
}

impl Topics {
    /// Makes and checks all topics of the connector, and learns their limits.
    pub async fn prepare(context: &ConnectorContext) -> Result<Self, TaskError> {
        let wanted = wanted(&context.worker, &context.config);
        let create_missing = context.worker.topic_creation_enable;
        let limits = topics::prepare(&context.clients, &wanted, create_missing).await?;
        let producer_bytes_max = context.clients.producer.get("message.max.bytes").and_then(|value| value.parse().ok());
        Ok(Self { names: names(&context.config), limits, producer_bytes_max })
    }

    pub fn name(&self, topic: Topic) -> &Arc<str> {
        let (_, name) = &self.names[self.names.iter().position(|(known, _)| *known == topic).unwrap_or_default()];
        name
    }

    pub fn outgoing(&self, record: Record) -> OutgoingRecord {
        let Record { topic, key, value, headers, timestamp_ms } = record;
        OutgoingRecord { topic: self.name(topic).clone(), key, value, headers, timestamp_ms }
    }

    /// What is known of a topic's limits.
    pub fn limits(&self, topic: Topic) -> Option<&TopicLimits> {
        self.limits.get(&**self.name(topic))
    }

    /// How the records of messages get their timestamps, after a message of `newest_ms`.
    pub fn timestamps(&self, kind: RecordTimestamp, newest_ms: Option<i64>) -> Timestamps {
        let limits = self.limits(Topic::Messages).map_or(TimestampLimits::NONE, TopicLimits::timestamps);
        Timestamps { kind, limits, newest_ms }
    }

    /// What somebody should know of the limits of the topics that are to be kept.
    ///
    /// # Errors
    /// A retention that is too short, where `topic.retention.check=refuse`.
    pub fn warnings(&self, config: &ConnectorConfig) -> Result<Vec<String>, TaskError> {
        let kept = [Topic::Messages, Topic::MediaReferences, Topic::DeadLetters];
        let retentions = kept.into_iter().filter_map(|topic| retention_warning(self.name(topic), self.limits(topic)?));
        let mut warnings: Vec<String> = match config.topic_retention_check {
            RetentionCheck::Off => Vec::new(),
            RetentionCheck::Warn | RetentionCheck::Refuse => retentions.collect(),
        };
        if config.topic_retention_check == RetentionCheck::Refuse && !warnings.is_empty() {
            return Err(TaskError::Configuration(warnings.join(" ")));
        }
        if config.record_timestamp == RecordTimestamp::Message {
            let limits = self.limits(Topic::Messages);
            warnings.extend(limits.and_then(|limits| timestamp_warning(self.name(Topic::Messages), limits)));
        }
        Ok(warnings)
    }

    /// The largest record that `topic` takes, as [`Record::bytes_max`] counts.
    pub fn record_bytes_max(&self, topic: Topic) -> usize {
        let limit = self.limits(topic).and_then(|limits| limits.bytes_max).unwrap_or(BYTES_MAX_DEFAULT);
        limit.min(self.producer_bytes_max.unwrap_or(limit))
    }

    /// What the producer has to be able to send at once, and what a batch of several records may hold in any topic.
    pub fn batch_bytes(&self) -> BatchBytes {
        let bytes_max = || self.limits.values().filter_map(|limits| limits.bytes_max);
        let largest = bytes_max().max().unwrap_or(BYTES_MAX_DEFAULT);
        let smallest = bytes_max().min().unwrap_or(BYTES_MAX_DEFAULT);
        BatchBytes { single_max: self.producer_bytes_max.unwrap_or(largest), several_max: smallest }
    }
}

/// With a library that cannot be loaded nothing is made. What else is wrong of it shows when it is called.
pub async fn check_library(context: &ConnectorContext) -> Result<(), TaskError> {
    match context.sdk.open().await {
        Err(SdkError::Configuration(reason)) => Err(TaskError::Configuration(reason)),
        _ => Ok(()),
    }
}

fn names(config: &ConnectorConfig) -> [(Topic, Arc<str>); 5] {
    [
        (Topic::Messages, config.topic.as_str().into()),
        (Topic::MediaRequests, config.media_requests_topic.as_str().into()),
        (Topic::MediaRetries, config.media_retries_topic.as_str().into()),
        (Topic::MediaReferences, config.media_topic.as_str().into()),
        (Topic::DeadLetters, config.dead_letter_topic.as_str().into()),
    ]
}

/// The topics of a connector as they are to be, that of the source offsets last.
fn wanted(worker: &WorkerConfig, config: &ConnectorConfig) -> Vec<WantedTopic> {
    let mut wanted: Vec<_> = names(config)
        .iter()
        .map(|(topic, name)| {
            let creation = config.topic_creation.settings_for(name);
            let mut settings = creation.configs.clone();
            let retention_ms_min = match topic {
                Topic::MediaRequests | Topic::MediaRetries => {
                    // What is set for all topics is meant for what is to be kept.
                    if !config.topic_creation.has_group_for(name) {
                        settings.remove("retention.ms");
                    }
                    for (key, value) in [
                        ("retention.ms", REQUESTS_RETENTION_MS.to_string()),
                        ("segment.ms", REQUESTS_SEGMENT_MS.to_string()),
                        // The broker's time: by that of a worker whose clock is far behind, they would be deleted at once.
                        ("message.timestamp.type", "LogAppendTime".into()),
                    ] {
                        settings.entry(key.into()).or_insert(value);
                    }
                    REQUESTS_RETENTION_MS_MIN
                }
                // They can be replayed when the key is found, be it in months.
                Topic::DeadLetters => {
                    settings.entry("retention.ms".into()).or_insert_with(|| "-1".into());
                    0
                }
                _ => 0,
            };
            WantedTopic {
                name: name.to_string(),
                partitions: creation.partitions,
                replication_factor: creation.replication_factor,
                settings,
                cleanup: Cleanup::Kept { retention_ms_min },
                rights: match topic {
                    Topic::MediaRequests | Topic::MediaRetries => &[Right::Read, Right::Write],
                    _ => &[Right::Write],
                },
            }
        })
        .collect();
    wanted.push(WantedTopic {
        name: worker.offset_storage_topic.clone(),
        partitions: worker.offset_storage_partitions,
        replication_factor: worker.offset_storage_replication_factor,
        settings: BTreeMap::from([("cleanup.policy".into(), "compact".into())]),
        cleanup: Cleanup::Compacted,
        rights: &[Right::Read, Right::Write],
    });
    wanted
}

/// What a check of the topics has found.
#[derive(Debug)]
pub struct Checked {
    /// Topics that a start would make.
    pub missing: Vec<String>,
    /// What somebody should know of those that are there.
    pub warnings: Vec<String>,
}

/// Whether Kafka lets the connector in, its topics are right, and the principal may read and write them. Nothing is made.
pub async fn check(worker: &WorkerConfig, config: &ConnectorConfig) -> Result<Checked, TaskError> {
    let wanted = wanted(worker, config);
    let (missing, limits) = topics::check(&Clients::of(worker, config), &wanted, worker.topic_creation_enable).await?;
    let topics = Topics { names: names(config), limits, producer_bytes_max: None };
    Ok(Checked { missing: missing.into_iter().map(str::to_owned).collect(), warnings: topics.warnings(config)? })
}

impl From<TopicError> for TaskError {
    fn from(error: TopicError) -> Self {
        if error.is_transient() { Self::Transient(error.to_string()) } else { Self::Configuration(error.to_string()) }
    }
}

/// Kafka's own default, which nobody has chosen for an archive: seven days.
const RETENTION_MS_DEFAULT: i64 = 7 * 24 * 60 * 60 * 1000;

/// What to say of a topic that forgets what an archive is for; `None` where it keeps its records for more than seven
/// days.
fn retention_warning(topic: &str, limits: &TopicLimits) -> Option<String> {
    let is_short = limits.retention_ms.is_some_and(|retention_ms| retention_ms <= RETENTION_MS_DEFAULT);
    let deletes = match (is_short, limits.retention_ms, limits.retention_bytes) {
        (true, Some(retention_ms), _) => {
            format!("what is older than {} (retention.ms={retention_ms})", span(retention_ms))
        }
        (_, _, Some(bytes)) => format!("the oldest beyond {bytes} bytes a partition (retention.bytes)"),
        _ => return None,
    };
    Some(format!(
        "Topic {topic} deletes {deletes}, and WeCom has the records for five days only: set its retention.ms and retention.bytes to -1, \
         or to what you need, or topic.retention.check=off."
    ))
}

/// What to say of a topic that does not take the times of all messages that WeCom has.
fn timestamp_warning(topic: &str, limits: &TopicLimits) -> Option<String> {
    let before_ms = limits.timestamp_before_max_ms.filter(|before_ms| *before_ms < 2 * WINDOW_MS)?;
    Some(format!(
        "Topic {topic} refuses timestamps that are older than {} (message.timestamp.before.max.ms={before_ms}): older messages get \
         the oldest that it takes, and the header wecom.timestamp_from. Raise that setting, or set wecom.record.timestamp=ingest.",
        span(before_ms)
    ))
}

/// A time in words: 7 d, 36 h, 90 s.
fn span(ms: i64) -> String {
    for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")] {
        if ms >= unit_ms && ms % unit_ms == 0 {
            return format!("{} {unit}", ms / unit_ms);
        }
    }
    format!("{ms} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_memories_are_told() {
        let none = TopicLimits::read(|_| None);
        for (retention_ms, retention_bytes, part) in [
            (None, None, None),
            (Some(7 * 86_400_000 + 1), None, None),
            (Some(7 * 86_400_000), None, Some("older than 7 d (retention.ms=604800000)")),
            (Some(3_600_000), Some(5), Some("older than 1 h")),
            (Some(30 * 86_400_000), Some(1_000_000), Some("beyond 1000000 bytes")),
        ] {
            let warning = retention_warning("t", &TopicLimits { retention_ms, retention_bytes, ..none });
            assert_eq!(warning.is_some(), part.is_some(), "{warning:?}");
            assert!(warning.unwrap_or_default().contains(part.unwrap_or_default()));
        }
        for (before_ms, is_told) in [(None, false), (Some(10 * 86_400_000), false), (Some(3_600_000), true)] {
            let limits = TopicLimits { timestamp_before_max_ms: before_ms, ..none };
            assert_eq!(timestamp_warning("t", &limits).is_some(), is_told, "{before_ms:?}");
        }
    }
}
