//! Reading topics from where they begin to where they ended at one moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::{Offset, TopicPartitionList};

use super::CannotLook;
use super::findings::Place;
use crate::kafka::client::{Callbacks, TopicReader};
use crate::kafka::complaints::Complaints;
use crate::kafka::{ClientError, Clients, lookup};

/// librdkafka wants a name; nothing joins or commits.
const GROUP_ID: &str = "wecom-connector-verify";

const CALL_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// How long a partition may give nothing before its end, and an open transaction hold up what comes after it.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is read ahead of all partitions that are read side by side, in KiB, and the bounds for one of them.
const AHEAD_KBYTES: usize = 128 * 1024;
const AHEAD_KBYTES_MIN: usize = 64;
const AHEAD_KBYTES_MAX: usize = 1024;

/// Part of a topic that does not change while it is read, as far as retention lets it.
#[derive(Debug, Clone)]
pub struct Extent {
    pub topic: Arc<str>,
    /// By number.
    pub partitions: Vec<PartitionExtent>,
}

#[derive(Debug, Clone, Copy)]
pub struct PartitionExtent {
    /// Above 0 where retention has deleted what was before.
    pub start: i64,
    /// Behind the last record.
    pub end: i64,
}

impl Extent {
    /// Whether nothing was deleted by retention.
    pub fn is_whole(&self) -> bool {
        self.partitions.iter().all(|partition| partition.start == 0)
    }

    /// An upper bound of the records in it.
    pub fn offsets(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.end.abs_diff(partition.start)).sum()
    }
}

/// Looks at the topics of one cluster. Blocks.
pub struct Kafka {
    clients: Clients,
    uncommitted: Arc<TopicReader>,
    committed: Arc<TopicReader>,
}

impl Kafka {
    pub fn connect(clients: Clients) -> Result<Self, CannotLook> {
        let consumer = |isolation_level| consumer(&clients, GROUP_ID, isolation_level, 1);
        let (uncommitted, committed) = (consumer("read_uncommitted")?, consumer("read_committed")?);
        Ok(Self { clients, uncommitted, committed })
    }

    /// The number of partitions of each of these topics; 0 where there is no such topic.
    fn partitions(&self, topics: &[&str]) -> Result<Vec<usize>, CannotLook> {
        let found = lookup::look_up(&self.clients, &self.uncommitted, topics);
        let found = found.map_err(|error| CannotLook(error.to_string()))?;
        Ok(found.into_iter().map(|topic| topic.map_or(0, |topic| topic.partitions.len())).collect())
    }

    /// The extents of these topics now: everything that was produced up to now and is or will be committed lies within. Waits until
    /// the transactions that are open within are settled, so that what is read is final.
    pub fn extents(&self, topics: &[&str]) -> Result<Vec<Extent>, CannotLook> {
        let until = Instant::now() + PATIENCE;
        let mut extents = Vec::new();
        for (topic, count) in topics.iter().zip(self.partitions(topics)?) {
            if count == 0 {
                return Err(CannotLook(format!(
                    "topic {topic} is missing: check the names of topics and the brokers in the two files, or whether the \
                     connector has ever run"
                )));
            }
            let partitions = (0..count).map(|number| {
                let (start, end) = watermarks(&self.uncommitted, topic, number)?;
                Ok(PartitionExtent { start, end })
            });
            extents.push(Extent { topic: (*topic).into(), partitions: partitions.collect::<Result<_, _>>()? });
        }
        for extent in &extents {
            for (number, partition) in extent.partitions.iter().enumerate() {
                while watermarks(&self.committed, &extent.topic, number)?.1 < partition.end {
                    if Instant::now() > until {
                        return Err(CannotLook(format!(
                            "a transaction in {}-{number} has been open for {} s; look again when it is settled",
                            extent.topic,
                            PATIENCE.as_secs()
                        )));
                    }
                    std::thread::sleep(POLL_TIMEOUT);
                }
            }
        }
        Ok(extents)
    }

    /// Those of these topics in which Kafka deletes a record once there is a newer one with its key. A topic whose settings may
    /// not be read is none.
    pub fn compacted<'a>(&self, topics: &[&'a str]) -> Result<Vec<&'a str>, CannotLook> {
        let admin = self.clients.admin().map_err(|error| CannotLook(error.to_string()))?;
        let wanted: Vec<_> = topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let options = AdminOptions::new().request_timeout(Some(CALL_TIMEOUT));
        let described = futures::executor::block_on(admin.describe_configs(&wanted, &options)).unwrap_or_default();
        let is_compacted = |settings: &ConfigResource| {
            let policy = settings.get("cleanup.policy").and_then(|entry| entry.value.as_deref());
            policy.is_some_and(|policy| policy.contains("compact"))
        };
        let found = described.iter().flatten().filter(|settings| is_compacted(settings));
        let names = found.filter_map(|settings| match &settings.specifier {
            OwnedResourceSpecifier::Topic(name) => topics.iter().copied().find(|topic| topic == name),
            _ => None,
        });
        Ok(names.collect())
    }

    /// Where a consumer group goes on in these partitions; none where it has not begun.
    pub fn group_offsets(&self, group_id: &str, topics: &[&str]) -> Result<Vec<Vec<Option<i64>>>, CannotLook> {
        // Under read_committed a member that commits one transaction after the other could be waited for without end. What is
        // not settled yet is not told either way.
        let consumer = consumer(&self.clients, group_id, "read_uncommitted", 1)?;
        let mut wanted = TopicPartitionList::new();
        for (topic, count) in topics.iter().zip(self.partitions(topics)?).filter(|(_, count)| *count > 0) {
            wanted.add_partition_range(topic, 0, i32::try_from(count).unwrap_or(i32::MAX) - 1);
        }
        let found = consumer.committed_offsets(wanted, CALL_TIMEOUT).map_err(|error| {
            CannotLook(format!(
                "the offsets of group {group_id} cannot be read: {error} (the principal needs Describe on it)"
            ))
        })?;
        Ok(topics
            .iter()
            .map(|topic| {
                let elements = found.elements_for_topic(topic);
                elements.iter().map(|element| element.offset().to_raw().filter(|offset| *offset >= 0)).collect()
            })
            .collect())
    }

    /// Opens the partitions of these extents for reading, side by side.
    pub fn open(&self, extents: &[&Extent]) -> Result<Vec<Run>, CannotLook> {
        let failed = |error: KafkaError| CannotLook(format!("the topics cannot be read: {error}"));
        let partitions = extents.iter().map(|extent| extent.partitions.len()).sum();
        let consumer = consumer(&self.clients, GROUP_ID, "read_committed", partitions)?;
        let mut assignment = TopicPartitionList::new();
        let mut runs = Vec::new();
        for extent in extents {
            for (number, partition) in (0..).zip(&extent.partitions) {
                // Split off before anything is fetched: a record that came earlier would end up in the common queue.
                let queue = consumer
                    .split_partition_queue(&extent.topic, number)
                    .ok_or_else(|| CannotLook(format!("{}-{number} has no queue", extent.topic)))?;
                runs.push(Run {
                    queue,
                    consumer: consumer.clone(),
                    complaints: self.clients.complaints.clone(),
                    topic: extent.topic.clone(),
                    number,
                    next: partition.start,
                    end: partition.end,
                });
                if partition.start < partition.end {
                    let start = Offset::Offset(partition.start);
                    assignment.add_partition_offset(&extent.topic, number, start).map_err(failed)?;
                }
            }
        }
        consumer.assign(&assignment).map_err(failed)?;
        Ok(runs)
    }
}

/// One partition, read from its start to its end.
pub struct Run {
    queue: PartitionQueue<Callbacks>,
    consumer: Arc<TopicReader>,
    complaints: Arc<Complaints>,
    topic: Arc<str>,
    number: i32,
    next: i64,
    end: i64,
}

impl Run {
    /// The next record, as `read` sees it; none at the end.
    pub fn next<T>(&mut self, read: impl FnOnce(&BorrowedMessage<'_>, Place) -> T) -> Result<Option<T>, CannotLook> {
        let since = Instant::now();
        while self.next < self.end {
            match self.queue.poll(POLL_TIMEOUT) {
                Some(Ok(message)) if message.offset() >= self.end => self.next = self.end,
                Some(Ok(message)) => {
                    self.next = message.offset() + 1;
                    let place = Place { topic: self.topic.clone(), partition: self.number, offset: message.offset() };
                    return Ok(Some(read(&message, place)));
                }
                // What is left are marks of transactions, and records of those that were aborted.
                Some(Err(KafkaError::PartitionEOF(_))) => self.next = self.end,
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    return Err(CannotLook(format!(
                        "retention deleted records of {}-{} before they were read; look again",
                        self.topic, self.number
                    )));
                }
                Some(Err(error)) => {
                    let reason = ClientError::of_denial(&error, &self.topic, "Read").map(|error| error.to_string());
                    let reason = reason.unwrap_or_else(|| format!("{} cannot be read: {error}", self.topic));
                    return Err(CannotLook(reason));
                }
                None => self.serve(since)?,
            }
        }
        Ok(None)
    }

    fn serve(&self, since: Instant) -> Result<(), CannotLook> {
        // Serves callbacks. librdkafka goes on by itself after errors of the network.
        if let Some(Ok(message)) = self.consumer.poll(Duration::ZERO) {
            return Err(CannotLook(format!("a record of {} came out of turn; look again", message.topic())));
        }
        if since.elapsed() > PATIENCE {
            let complaint = self.complaints.since(since).map_or_else(|| "no answer".into(), |it| it.reason);
            return Err(CannotLook(format!(
                "{}-{} gave nothing for {} s before its end: {complaint}",
                self.topic,
                self.number,
                PATIENCE.as_secs()
            )));
        }
        Ok(())
    }
}

fn watermarks(consumer: &TopicReader, topic: &str, number: usize) -> Result<(i64, i64), CannotLook> {
    let number = i32::try_from(number).unwrap_or(i32::MAX);
    consumer
        .fetch_watermarks(topic, number, CALL_TIMEOUT)
        .map_err(|error| CannotLook(format!("the ends of {topic}-{number} cannot be read: {error}")))
}

fn consumer(
    clients: &Clients,
    group_id: &str,
    isolation_level: &str,
    partitions: usize,
) -> Result<Arc<TopicReader>, CannotLook> {
    let ahead_kbytes = (AHEAD_KBYTES / partitions.max(1)).clamp(AHEAD_KBYTES_MIN, AHEAD_KBYTES_MAX);
    let mut config = clients.reader_config(isolation_level);
    config
        .set("group.id", group_id)
        .set("auto.offset.reset", "error")
        .set("queued.max.messages.kbytes", ahead_kbytes.to_string())
        .set("fetch.message.max.bytes", (ahead_kbytes * 1024).to_string())
        .set("queued.min.messages", "10000")
        // A queue that is full is asked for more soon after, not a second later.
        .set("fetch.queue.backoff.ms", "5")
        // Partitions that are read to their end must not hold up the others: a broker answers one question at a time.
        .set("fetch.wait.max.ms", "10");
    clients.reader_of(&config).map(Arc::new).map_err(|error| CannotLook(error.to_string()))
}
