//! A topic read from its beginning to its present end, as a `read_committed` consumer sees it. Nothing joins a group.

use std::time::Duration;

use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::mpsc;

use super::client::{Clients, TopicReader};
use super::client_error::ClientError;
use super::lookup::{self, Silence};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// Records read ahead of whoever takes them. With those the client holds (8 MiB) they bound what is in memory.
const READ_AHEAD: usize = 64;

/// What there is of a partition: the offsets from `first` up to, and without, `end`. Behind it nothing is settled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub partition: i32,
    pub first: i64,
    pub end: i64,
}

/// One record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRecord {
    pub partition: i32,
    pub offset: i64,
    /// Milliseconds since the epoch, UTC; 0 where it has none.
    pub timestamp_ms: i64,
    pub key: Vec<u8>,
    /// In order. Bytes that are not UTF-8 are replaced in names.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Empty where values were not asked for.
    pub value: Vec<u8>,
}

impl ReadRecord {
    /// The first header of this name, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        let (_, value) = self.headers.iter().find(|(known, _)| known == name)?;
        std::str::from_utf8(value).ok()
    }
}

#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    #[error("topic {topic} is not there")]
    Missing { topic: String },
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("topic {topic} cannot be read: {reason}")]
    Unavailable { topic: String, reason: String },
}

/// What there is of each partition of a topic, by number. A topic that is missing is not made.
pub async fn spans(clients: &Clients, topic: &str) -> Result<Vec<Span>, ReadError> {
    let (clients, topic) = (clients.clone(), topic.to_owned());
    let interrupted = unavailable(&topic, "interrupted");
    tokio::task::spawn_blocking(move || spans_blocking(&clients, &topic)).await.unwrap_or(Err(interrupted))
}

fn spans_blocking(clients: &Clients, topic: &str) -> Result<Vec<Span>, ReadError> {
    let failed = |error: KafkaError| unavailable(topic, error);
    let consumer = consumer(clients)?;
    let Some(found) = lookup::look_up(clients, &consumer, &[topic])?.remove(0) else {
        return Err(ReadError::Missing { topic: topic.into() });
    };
    let mut spans = Vec::new();
    for partition in found.partitions {
        // Under read_committed the end is that of what is settled (the last stable offset).
        let (first, end) = consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT).map_err(failed)?;
        spans.push(Span { partition, first, end });
    }
    Ok(spans)
}

/// The records of a span, in order; the channel closes behind the last. An error is the last thing that comes.
pub fn read(clients: &Clients, topic: &str, span: Span, values: bool) -> mpsc::Receiver<Result<ReadRecord, ReadError>> {
    let (records, received) = mpsc::channel(READ_AHEAD);
    let (clients, topic) = (clients.clone(), topic.to_owned());
    tokio::task::spawn_blocking(move || {
        if let Err(error) = read_blocking(&clients, &topic, span, values, &records) {
            let _ = records.blocking_send(Err(error));
        }
    });
    received
}

fn read_blocking(
    clients: &Clients,
    topic: &str,
    span: Span,
    values: bool,
    records: &mpsc::Sender<Result<ReadRecord, ReadError>>,
) -> Result<(), ReadError> {
    if span.first >= span.end {
        return Ok(());
    }
    let failed = |error: KafkaError| unavailable(topic, error);
    let consumer = consumer(clients)?;
    let mut assignment = TopicPartitionList::new();
    assignment.add_partition_offset(topic, span.partition, Offset::Offset(span.first)).map_err(failed)?;
    consumer.assign(&assignment).map_err(failed)?;
    let mut silence = Silence::begin();
    loop {
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(message)) if message.offset() >= span.end => return Ok(()),
            Some(Ok(message)) => {
                let is_last = message.offset() + 1 == span.end;
                if records.blocking_send(Ok(record(&message, values))).is_err() || is_last {
                    return Ok(());
                }
                silence = Silence::begin();
            }
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            // librdkafka goes on by itself after errors of the network.
            Some(Err(error)) => ClientError::of_denial(&error, topic, "Read").map_or(Ok(()), Err)?,
            None if records.is_closed() => return Ok(()),
            None => {}
        }
        silence.check(clients)?;
    }
}

fn record(message: &BorrowedMessage<'_>, values: bool) -> ReadRecord {
    let headers = message.headers().map(|headers| {
        headers.iter().map(|header| (header.key.to_owned(), header.value.unwrap_or_default().to_owned())).collect()
    });
    ReadRecord {
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or_default(),
        key: message.key().unwrap_or_default().to_owned(),
        headers: headers.unwrap_or_default(),
        value: message.payload().filter(|_| values).unwrap_or_default().to_owned(),
    }
}

fn consumer(clients: &Clients) -> Result<TopicReader, ClientError> {
    let mut config = clients.reader_config("read_committed");
    if config.get("queued.max.messages.kbytes").is_none() {
        config.set("queued.max.messages.kbytes", "8192");
    }
    clients.reader_of(&config)
}

fn unavailable(topic: &str, reason: impl ToString) -> ReadError {
    ReadError::Unavailable { topic: topic.into(), reason: reason.to_string() }
}
