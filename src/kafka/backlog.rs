//! What a consumer group has still to do, seen from outside of it.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ClientKind, Clients, TopicReader};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const POLL_TIMEOUT: Duration = Duration::from_millis(100);

/// The value of the first record of each partition that the group has not committed; none of a partition that it is through
/// with. Partitions that do not answer in time are left out. Joins nothing. Blocks.
pub fn first_uncommitted(clients: &Clients, group_id: &str, topic: &str) -> Result<Vec<Vec<u8>>, KafkaError> {
    let consumer: TopicReader = clients
        .config(ClientKind::Consumer)
        .set("group.id", group_id)
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.partition.eof", "true")
        .set("auto.offset.reset", "earliest")
        .create_with_context(clients.callbacks())?;
    let metadata = consumer.fetch_metadata(Some(topic), CALL_TIMEOUT)?;
    let mut partitions = TopicPartitionList::new();
    for partition in metadata.topics().iter().flat_map(|topic| topic.partitions()) {
        partitions.add_partition(topic, partition.id());
    }
    let until = Instant::now() + CALL_TIMEOUT;
    let committed = loop {
        match consumer.committed_offsets(partitions.clone(), CALL_TIMEOUT) {
            Ok(committed) => break committed,
            // As of a group that is new, or that moves to another broker.
            Err(KafkaError::MetadataFetch(
                RDKafkaErrorCode::NotCoordinator
                | RDKafkaErrorCode::CoordinatorNotAvailable
                | RDKafkaErrorCode::CoordinatorLoadInProgress,
            )) if Instant::now() < until => std::thread::sleep(POLL_TIMEOUT),
            Err(error) => return Err(error),
        }
    };
    let mut positions = TopicPartitionList::new();
    for element in committed.elements() {
        let offset = if element.offset() == Offset::Invalid { Offset::Beginning } else { element.offset() };
        positions.add_partition_offset(topic, element.partition(), offset)?;
    }
    consumer.assign(&positions)?;
    let mut unheard: Vec<i32> = positions.elements().iter().map(|element| element.partition()).collect();
    let mut values = Vec::new();
    let until = Instant::now() + CALL_TIMEOUT;
    while !unheard.is_empty() && Instant::now() < until {
        match consumer.poll(POLL_TIMEOUT) {
            Some(Ok(message)) => {
                let before = unheard.len();
                unheard.retain(|&partition| partition != message.partition());
                if unheard.len() < before {
                    values.push(message.payload().unwrap_or_default().to_owned());
                }
            }
            Some(Err(KafkaError::PartitionEOF(number))) => unheard.retain(|&partition| partition != number),
            // librdkafka goes on by itself after errors of the network.
            Some(Err(error)) => tracing::debug!(%error, topic, "reading what is still to do"),
            None => {}
        }
    }
    Ok(values)
}
