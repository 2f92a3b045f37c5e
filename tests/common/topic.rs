//! What a plain reader sees of a topic, and whether it is what the schemas promise.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jsonschema::Validator;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use super::{Kafka, PATIENCE, parts, wait_until};

pub fn header<'a>(message: &'a OwnedMessage, name: &str) -> Option<&'a str> {
    let value = message.headers()?.iter().find(|header| header.key == name)?.value?;
    std::str::from_utf8(value).ok()
}

/// All that is visible in a topic, partition by partition.
pub fn read_committed(kafka: &Kafka, topic: &str) -> Vec<OwnedMessage> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.bootstrap())
        .set("group.id", "reader")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .expect("a consumer");
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
    let mut assignment = TopicPartitionList::new();
    let mut open: BTreeSet<i32> = metadata.topics()[0].partitions().iter().map(|partition| partition.id()).collect();
    assert!(!open.is_empty(), "{topic} has no partitions");
    for partition in &open {
        assignment.add_partition_offset(topic, *partition, Offset::Beginning).expect("a partition");
    }
    consumer.assign(&assignment).expect("an assignment");
    let mut records = Vec::new();
    wait_until(&format!("the end of {topic}"), PATIENCE, || {
        // All that is there at once: the pause between two looks is not for each record.
        while !open.is_empty() {
            match consumer.poll(Duration::from_secs(1)) {
                Some(Ok(record)) => records.push(record.detach()),
                // A topic that goes on growing has several ends.
                Some(Err(KafkaError::PartitionEOF(partition))) => {
                    open.remove(&partition);
                }
                Some(Err(error)) => panic!("{topic}: {error}"),
                None => break,
            }
        }
        open.is_empty()
    });
    records.sort_by_key(|record| (record.partition(), record.offset()));
    records
}

/// Holds every record of the topics against the schema that it names, and gives how many there are by schema. A record that
/// names none has to be a malformed dead letter.
pub fn check_schemas(kafka: &Kafka, topics: &[String]) -> BTreeMap<String, usize> {
    let validators = validators();
    let mut counts = BTreeMap::new();
    for record in topics.iter().flat_map(|topic| read_committed(kafka, topic)) {
        let place = format!("{} {}@{}", record.topic(), record.partition(), record.offset());
        for attribute in ["ce_specversion", "ce_id", "ce_source", "ce_type", "content-type"] {
            assert!(header(&record, attribute).is_some_and(|value| !value.is_empty()), "{place} has no {attribute}");
        }
        let value: Value = serde_json::from_slice(record.payload().unwrap_or_default()).expect("JSON in every record");
        let Some(schema) = header(&record, "ce_dataschema") else {
            assert_eq!(header(&record, "wecom.reason"), Some("malformed"), "{place} names no schema");
            continue;
        };
        let validator = validators.get(schema).unwrap_or_else(|| panic!("{place}: there is no schema {schema}"));
        let faults: Vec<String> =
            validator.iter_errors(&value).map(|fault| fault.instance_path().to_string()).collect();
        assert!(faults.is_empty(), "{place} breaks {schema} at {faults:?}");
        *counts.entry(schema.to_owned()).or_default() += 1;
    }
    counts
}

/// The schemas of the repository, by their ids.
fn validators() -> BTreeMap<String, Validator> {
    let files = std::fs::read_dir(parts::repository().join("schemas")).expect("schemas/");
    files
        .map(|file| {
            let text = std::fs::read(file.expect("a file").path()).expect("a schema");
            let schema: Value = serde_json::from_slice(&text).expect("a schema in JSON");
            let id = schema["$id"].as_str().expect("an $id").to_owned();
            (id, jsonschema::validator_for(&schema).expect("a schema"))
        })
        .collect()
}
