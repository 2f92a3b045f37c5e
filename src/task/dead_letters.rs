//! Dead letters as they lie in their topic: what each one is, and which have been replayed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::mpsc;

use super::TaskError;
use crate::archive::{DeadLetterReason, dead_letter};
use crate::config::{ConnectorConfig, WorkerConfig};
use crate::kafka::Clients;
use crate::kafka::offsets;
use crate::kafka::reader::{self, ReadError, ReadRecord, Span};
use crate::kafka::replayed::{Replayed, ReplayedKey};

/// Every `wecom.reason` there is.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    DeadLetterReason::NAMES.into_iter().chain([dead_letter::STRAY])
}

/// A dead letter of this connector.
#[derive(Debug, Clone)]
pub struct DeadLetter {
    /// See [`reasons`].
    pub reason: String,
    pub seq: Option<u64>,
    pub msgid: Option<String>,
    /// Version of the public key that the record is sealed with.
    pub publickey_ver: Option<u32>,
    /// As it lies in the topic. Its timestamp is when the record was pulled.
    pub record: ReadRecord,
}

impl DeadLetter {
    /// `None` for what another connector, or anybody else, has put into the topic.
    fn read(record: ReadRecord, config: &ConnectorConfig) -> Option<Self> {
        let reason = record.header("wecom.reason")?.to_owned();
        let is_ours = record.header("__connect.errors.connector.name") == Some(&config.name)
            && record.key == config.corp_id.as_bytes();
        is_ours.then(|| Self {
            seq: record.header("wecom.seq").and_then(|seq| seq.parse().ok()),
            msgid: record.header("wecom.msgid").map(str::to_owned),
            publickey_ver: record.header("wecom.publickey_ver").and_then(|version| version.parse().ok()),
            reason,
            record,
        })
    }
}

/// Which dead letters are meant: those that match every condition that is given.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// None: any.
    pub seqs: BTreeSet<u64>,
    /// None: any.
    pub reasons: BTreeSet<String>,
    /// None: any.
    pub key_versions: BTreeSet<u32>,
}

impl Filter {
    pub fn matches(&self, letter: &DeadLetter) -> bool {
        (self.seqs.is_empty() || letter.seq.is_some_and(|seq| self.seqs.contains(&seq)))
            && (self.reasons.is_empty() || self.reasons.contains(&letter.reason))
            && (self.key_versions.is_empty()
                || letter.publickey_ver.is_some_and(|version| self.key_versions.contains(&version)))
    }
}

/// The dead letter topic of a connector, from its beginning to its end at this moment.
#[derive(Debug)]
pub struct DeadLetters<'a> {
    clients: Clients,
    config: &'a ConnectorConfig,
    topic: Arc<str>,
    offsets_topic: &'a str,
    spans: Vec<Span>,
}

impl<'a> DeadLetters<'a> {
    /// Finds the topic; nothing is made.
    pub async fn open(worker: &'a WorkerConfig, config: &'a ConnectorConfig) -> Result<Self, TaskError> {
        let clients = Clients::of(worker, config);
        let topic: Arc<str> = config.dead_letter_topic.as_str().into();
        let spans = reader::spans(&clients, &topic).await.map_err(|error| match error {
            ReadError::Missing { topic } => TaskError::Configuration(format!(
                "there is no topic {topic} at {}: connector {} has not run there, or its dead letters go elsewhere \
                 (errors.deadletterqueue.topic.name)",
                worker.bootstrap_servers, config.name
            )),
            other => other.into(),
        })?;
        Ok(Self { clients, config, topic, offsets_topic: &worker.offset_storage_topic, spans })
    }

    pub fn topic(&self) -> &Arc<str> {
        &self.topic
    }

    /// What there is, by partition.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// How others name a dead letter's place: `<topic>-<partition>@<offset>`.
    pub fn place(&self, letter: &DeadLetter) -> String {
        format!("{}-{}@{}", self.topic, letter.record.partition, letter.record.offset)
    }

    /// The key of a partition's state in the offset topic.
    pub fn key(&self, partition: i32) -> ReplayedKey {
        ReplayedKey {
            connector: self.config.name.clone(),
            corp_id: self.config.corp_id.clone(),
            dead_letter_topic: self.topic.clone(),
            partition,
        }
    }

    /// What has been replayed up to now.
    pub async fn history(&self) -> Result<History, TaskError> {
        if let Err(ReadError::Missing { .. }) = reader::spans(&self.clients, self.offsets_topic).await {
            return Ok(History::default());
        }
        let mut keys = BTreeMap::new();
        for span in &self.spans {
            let key =
                self.key(span.partition).to_bytes().map_err(|error| TaskError::Configuration(error.to_string()))?;
            keys.insert(key, *span);
        }
        let (clients, topic) = (self.clients.clone(), self.offsets_topic.to_owned());
        let wanted: BTreeSet<Vec<u8>> = keys.keys().cloned().collect();
        let values =
            tokio::task::spawn_blocking(move || offsets::latest(&clients, &topic, |key| wanted.contains(key))).await;
        let values = match values {
            Ok(Ok(values)) => values,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(TaskError::Transient("reading what has been replayed was interrupted".into())),
        };
        let mut history = History::default();
        for (key, value) in values {
            let mut replayed = Replayed::parse(&value).map_err(|_| {
                TaskError::Configuration(format!(
                    "the record {} in {} is not of the form {{\"replayed\":[[first,last],…]}}: somebody else wrote it. A \
                     tombstone for its key makes every dead letter count as not replayed",
                    String::from_utf8_lossy(&key),
                    self.offsets_topic
                ))
            })?;
            let Some(span) = keys.get(&key) else { continue };
            replayed.forget_before(span.first);
            history.0.insert(span.partition, replayed);
        }
        Ok(history)
    }

    /// Whether this dead letter has been replayed.
    ///
    /// # Errors
    /// The state is that of a topic of the same name that is no more.
    pub fn is_replayed(&self, history: &History, letter: &DeadLetter) -> Result<bool, TaskError> {
        let record = &letter.record;
        let Some(replayed) = history.of(record.partition).filter(|replayed| replayed.contains(record.offset)) else {
            return Ok(false);
        };
        if record.timestamp_ms <= replayed.newest_ms() {
            return Ok(true);
        }
        let key = self.key(record.partition).to_bytes().unwrap_or_default();
        Err(TaskError::Configuration(format!(
            "{} is newer than every dead letter that was replayed, but counts as replayed: topic {} was deleted and made again. \
             Write a tombstone for the key {} into {}; then its dead letters count as not replayed",
            self.place(letter),
            self.topic,
            String::from_utf8_lossy(&key),
            self.offsets_topic
        )))
    }

    /// Goes through a span, with values or without.
    pub fn walk(&self, span: Span, values: bool) -> Walk<'a> {
        let records = reader::read(&self.clients, &self.topic, span, values);
        Walk { config: self.config, records, previous: None, foreign: 0 }
    }
}

/// What has been replayed, by partition.
#[derive(Debug, Clone, Default)]
pub struct History(BTreeMap<i32, Replayed>);

impl History {
    pub fn of(&self, partition: i32) -> Option<&Replayed> {
        self.0.get(&partition)
    }

    pub fn set(&mut self, partition: i32, replayed: Replayed) {
        self.0.insert(partition, replayed);
    }
}

/// Goes through the dead letters of a span, in order.
#[derive(Debug)]
pub struct Walk<'a> {
    config: &'a ConnectorConfig,
    records: mpsc::Receiver<Result<ReadRecord, ReadError>>,
    previous: Option<i64>,
    /// Records so far that are no dead letters of this connector.
    pub foreign: u64,
}

impl Walk<'_> {
    /// The next one of this connector, and the offset of the one before it; `None` at the end. May be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<(DeadLetter, Option<i64>)>, TaskError> {
        while let Some(record) = self.records.recv().await {
            let Some(letter) = DeadLetter::read(record?, self.config) else {
                self.foreign += 1;
                continue;
            };
            let previous = self.previous.replace(letter.record.offset);
            return Ok(Some((letter, previous)));
        }
        Ok(None)
    }
}

impl From<ReadError> for TaskError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Client(error) => error.into(),
            other @ (ReadError::Missing { .. } | ReadError::Unavailable { .. }) => Self::Transient(other.to_string()),
        }
    }
}
