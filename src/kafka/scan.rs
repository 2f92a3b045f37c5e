//! Reading a topic from its beginning to where it ends now, committed records alone.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Clients, TopicReader};
use super::client_error::ClientError;
use super::lookup::{self, FoundTopic, Silence};

/// How long an open transaction of another producer is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("topic {topic} cannot be read: {reason}")]
    Unavailable { topic: String, reason: String },
    #[error("topic {topic} is missing")]
    Missing { topic: String },
    #[error("topic {topic} is not readable to its end within {} s; is a transaction of another producer hanging?", PATIENCE.as_secs())]
    Late { topic: String },
}

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begin {
    Earliest,
    /// With each partition's first record that has this timestamp or a later one, milliseconds since the epoch.
    Time(i64),
}

/// A record as it is read.
pub struct Scanned<'a>(BorrowedMessage<'a>);

impl std::fmt::Debug for Scanned<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scanned({}@{})", self.0.partition(), self.0.offset())
    }
}

impl Scanned<'_> {
    pub fn partition(&self) -> i32 {
        self.0.partition()
    }

    /// Milliseconds since the epoch; 0 where there is none.
    pub fn timestamp_ms(&self) -> i64 {
        self.0.timestamp().to_millis().unwrap_or_default()
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.0.key()
    }

    /// `None`: a tombstone.
    pub fn value(&self) -> Option<&[u8]> {
        self.0.payload()
    }

    /// The first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.0.headers()?.iter().find(|header| header.key == name)?.value?;
        std::str::from_utf8(value).ok()
    }
}

/// Visits every record of `topic` up to the high watermark of this moment, in order within a partition. An open transaction
/// below that mark is waited for: what a predecessor left behind is settled by then. Blocks.
pub fn scan(
    clients: &Clients,
    topic: &str,
    begin: Begin,
    mut visit: impl FnMut(&Scanned<'_>),
) -> Result<(), ScanError> {
    let unavailable = |error: KafkaError| ScanError::Unavailable { topic: topic.into(), reason: error.to_string() };
    let late = || ScanError::Late { topic: topic.into() };
    let committed = clients.reader()?;
    let Some(FoundTopic { partitions, .. }) = lookup::look_up(clients, &committed, &[topic])?.remove(0) else {
        return Err(ScanError::Missing { topic: topic.into() });
    };
    let uncommitted = clients.reader_of(&clients.reader_config("read_uncommitted"))?;

    // Every partition that holds anything, once all transactions below its high watermark are settled. Only then is the end
    // that the consumer reports (the last stable offset) at or above that mark.
    let until = Instant::now() + PATIENCE;
    let mut assignment = TopicPartitionList::new();
    let mut unfinished: BTreeMap<i32, i64> = BTreeMap::new();
    for partition in partitions {
        let (low, high) = uncommitted.fetch_watermarks(topic, partition, CALL_TIMEOUT).map_err(unavailable)?;
        if low == high {
            continue;
        }
        while committed.fetch_watermarks(topic, partition, CALL_TIMEOUT).map_err(unavailable)?.1 < high {
            if Instant::now() > until {
                return Err(late());
            }
            std::thread::sleep(POLL_TIMEOUT);
        }
        let offset = match begin {
            Begin::Earliest => Offset::Beginning,
            Begin::Time(since_ms) => first_since(&committed, topic, partition, since_ms).map_err(unavailable)?,
        };
        assignment.add_partition_offset(topic, partition, offset).map_err(unavailable)?;
        unfinished.insert(partition, high);
    }
    if !unfinished.is_empty() {
        committed.assign(&assignment).map_err(unavailable)?;
    }
    let mut silence = Silence::begin();
    while !unfinished.is_empty() {
        silence.check(clients)?;
        match committed.poll(POLL_TIMEOUT) {
            None => {}
            // Comes where nothing follows for a while: for a partition that goes on growing several times, or never.
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                unfinished.remove(&partition);
            }
            // librdkafka goes on by itself after errors of the network.
            Some(Err(error)) => {
                ClientError::of_denial(&error, topic, "Read").map_or(Ok(()), Err)?;
                tracing::debug!(%error, topic, "reading a topic");
            }
            Some(Ok(message)) => {
                let (partition, offset) = (message.partition(), message.offset());
                let Some(&end) = unfinished.get(&partition) else { continue };
                silence = Silence::begin();
                if offset < end {
                    visit(&Scanned(message));
                }
                if offset + 1 >= end {
                    unfinished.remove(&partition);
                }
            }
        }
    }
    Ok(())
}

fn first_since(consumer: &TopicReader, topic: &str, partition: i32, since_ms: i64) -> Result<Offset, KafkaError> {
    let mut wanted = TopicPartitionList::new();
    wanted.add_partition_offset(topic, partition, Offset::Offset(since_ms.max(0)))?;
    let found = consumer.offsets_for_times(wanted, CALL_TIMEOUT)?;
    Ok(match found.elements().first().map(|element| element.offset()) {
        Some(offset @ Offset::Offset(_)) => offset,
        // Every record is older.
        _ => Offset::End,
    })
}
