//! The topics of a connector: their names, and how they are made where they are missing.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{ConnectorContext, TaskError};
use crate::archive::{Record, Topic, WINDOW_MS};
use crate::config::{ConnectorConfig, WorkerConfig};
use crate::kafka::rights::Right;
use crate::kafka::topics::{self, Cleanup, TopicError, WantedTopic};
use crate::kafka::{BatchBytes, Clients, OutgoingRecord};
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
    bytes_max: BTreeMap<String, usize>,
    producer_bytes_max: Option<usize>,
}

impl Topics {
    /// Makes and checks all topics of the connector, and learns their limits.
    pub async fn prepare(context: &ConnectorContext) -> Result<Self, TaskError> {
        // With a library that cannot be loaded nothing is made. What else is wrong of it shows when it is called.
        if let Err(SdkError::Configuration(reason)) = context.sdk.open().await {
            return Err(TaskError::Configuration(reason));
        }
        let wanted = wanted(&context.worker, &context.config);
        let create_missing = context.worker.topic_creation_enable;
        let bytes_max = topics::prepare(&context.clients, &wanted, create_missing).await?;
        let producer_bytes_max = context.clients.producer.get("message.max.bytes").and_then(|value| value.parse().ok());
        Ok(Self { names: names(&context.config), bytes_max, producer_bytes_max })
    }

    pub fn name(&self, topic: Topic) -> &Arc<str> {
        let (_, name) = &self.names[self.names.iter().position(|(known, _)| *known == topic).unwrap_or_default()];
        name
    }

    pub fn outgoing(&self, record: Record) -> OutgoingRecord {
        let Record { topic, key, value, headers, timestamp_ms } = record;
        OutgoingRecord { topic: self.name(topic).clone(), key, value, headers, timestamp_ms }
    }

    /// The largest record that `topic` takes, as [`Record::bytes_max`] counts.
    pub fn record_bytes_max(&self, topic: Topic) -> usize {
        let limit = self.bytes_max.get(&**self.name(topic)).copied().unwrap_or(BYTES_MAX_DEFAULT);
        limit.min(self.producer_bytes_max.unwrap_or(limit))
    }

    /// What the producer has to be able to send at once, and what a batch of several records may hold in any topic.
    pub fn batch_bytes(&self) -> BatchBytes {
        let largest = self.bytes_max.values().copied().max().unwrap_or(BYTES_MAX_DEFAULT);
        let smallest = self.bytes_max.values().copied().min().unwrap_or(BYTES_MAX_DEFAULT);
        BatchBytes { single_max: self.producer_bytes_max.unwrap_or(largest), several_max: smallest }
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

/// Whether Kafka lets the connector in, its topics are right, and the principal may read and write them. Nothing is made. Gives the
/// topics that a start would make.
pub async fn check(worker: &WorkerConfig, config: &ConnectorConfig) -> Result<Vec<String>, TaskError> {
    let wanted = wanted(worker, config);
    let missing = topics::check(&Clients::of(worker, config), &wanted, worker.topic_creation_enable).await?;
    Ok(missing.into_iter().map(str::to_owned).collect())
}

impl From<TopicError> for TaskError {
    fn from(error: TopicError) -> Self {
        if error.is_transient() { Self::Transient(error.to_string()) } else { Self::Configuration(error.to_string()) }
    }
}
