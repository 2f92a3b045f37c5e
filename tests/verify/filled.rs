//! The topics of a connector, filled by hand.

use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::digest;
use md5::Digest as _;
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use super::harness::{self, Kafka, WorkerFiles, unique};

pub const CORP: &str = "ww1";
pub const CONNECTOR: &str = "archive";
pub const LAST_SEQ: u64 = 12;
pub const PARTITIONS: i32 = 3;

pub const MESSAGES: &str = "";
pub const DEAD_LETTERS: &str = "-dead-letters";
pub const REQUESTS: &str = "-media-requests";
pub const RETRIES: &str = "-media-retries";
pub const REFERENCES: &str = "-media";
pub const OFFSETS: &str = "-offsets";

/// A record as a connector writes it.
#[derive(Debug, Clone)]
pub struct Record {
    pub topic: &'static str,
    pub seq: u64,
    pub key: String,
    pub value: Option<Value>,
    pub text: Option<String>,
    pub headers: Vec<(&'static str, String)>,
    pub partition: Option<i32>,
    /// Where its key leads.
    pub due: i32,
}

impl Record {
    pub fn set(&mut self, header: &'static str, value: &str) {
        self.headers.retain(|(name, _)| *name != header);
        self.headers.push((header, value.to_owned()));
    }

    pub fn edit(&mut self, field: &str, value: Value) {
        self.value.as_mut().expect("an object")[field] = value;
    }

    pub fn become_dead_letter(&mut self) {
        self.set("ce_id", "5");
        self.set("wecom.previous_seq", "4");
        self.edit("seq", 5.into());
    }
}

/// All topics of a connector with twelve records: 5 is a dead letter; 7, 8 and 9 have a file, and that of 7 has expired.
pub struct Filled {
    pub folder: tempfile::TempDir,
    pub topic: String,
    pub files: WorkerFiles,
    pub records: Vec<Record>,
    pub offset: Option<String>,
    /// Whether the media tasks are through with the requests.
    pub done: bool,
}

/// The files of a worker with one connector on these topics.
pub fn connector(files: WorkerFiles, topic: &str, storage: &str) -> WorkerFiles {
    files.connector(
        CONNECTOR,
        &[
            ("wecom.corp.id", CORP),
            ("wecom.secret", harness::SECRET),
            ("wecom.private.keys.dir", "keys"),
            ("topic", topic),
            ("storage.path", storage),
        ],
    )
}

impl Filled {
    pub fn new() -> Filled {
        let folder = tempfile::tempdir().expect("a folder");
        let topic = unique("messages");
        let kafka = Kafka::shared();
        for suffix in [MESSAGES, DEAD_LETTERS, REQUESTS, RETRIES, REFERENCES, OFFSETS] {
            kafka.create_topic(&format!("{topic}{suffix}"), PARTITIONS);
        }
        let files = WorkerFiles::new(kafka).set("offset.storage.topic", &format!("{topic}{OFFSETS}"));
        let files = connector(files, &topic, folder.path().to_str().expect("UTF-8"));
        let offset = Some(json!({"seq": LAST_SEQ, "committed_at_ms": 1, "instance": "x"}).to_string());
        let mut filled = Filled { folder, topic, files, records: Vec::new(), offset, done: true };
        for seq in 1..=LAST_SEQ {
            filled.fill(seq);
        }
        filled
    }

    /// What a connector writes about one record.
    pub fn fill(&mut self, seq: u64) {
        let key = conversation(seq);
        let previous = (seq - 1).to_string();
        let own = |kind| vec![("ce_source", format!("/wecom/{CORP}")), ("ce_type", format!("wecom.archive.{kind}"))];
        if seq == 5 {
            let mut headers = own("dead-letter");
            headers.extend([
                ("__connect.errors.connector.name", CONNECTOR.to_owned()),
                ("__connect.errors.topic", self.topic.clone()),
                ("wecom.reason", "rsa".to_owned()),
                ("wecom.seq", seq.to_string()),
                ("wecom.previous_seq", previous),
            ]);
            self.add(DEAD_LETTERS, seq, CORP, json!({"seq": seq}), headers);
            return;
        }
        let media_id = md5(&content(seq));
        let has_file = (7..=9).contains(&seq);
        let media = if has_file { json!([{"media_id": media_id}]) } else { json!([]) };
        let event = json!({"corp_id": CORP, "seq": seq, "conversation": {"id": key}, "media": media, "message": {"a": [1, {}]}});
        let mut headers = own("message");
        headers.extend([("ce_id", seq.to_string()), ("wecom.previous_seq", previous)]);
        self.add(MESSAGES, seq, key, event, headers);
        if !has_file {
            return;
        }
        let mut file =
            json!({"corp_id": CORP, "seq": seq, "media_id": media_id, "conversation": key, "sdkfileid": "x"});
        self.add(REQUESTS, seq, &media_id, file.clone(), own("media.requested"));
        file["status"] = if seq == 7 { "expired" } else { "stored" }.into();
        file["finished_ms"] = seq.into();
        if seq > 7 {
            std::fs::write(self.object(seq), content(seq)).expect("an object");
            file["uri"] = format!("file://{}", self.object(seq).display()).replace(' ', "%20").into();
            file["size"] = content(seq).len().into();
            file["md5"] = md5(&content(seq)).into();
            file["sha256"] = sha256(&content(seq)).into();
        }
        self.add(REFERENCES, seq, key, file, own("media.stored"));
    }

    pub fn add(
        &mut self,
        topic: &'static str,
        seq: u64,
        key: &str,
        value: Value,
        headers: Vec<(&'static str, String)>,
    ) {
        let due = due(key);
        self.records.push(Record {
            topic,
            seq,
            key: key.into(),
            value: Some(value),
            text: None,
            headers,
            partition: None,
            due,
        });
    }

    /// A record that has nothing to do with the sequence.
    pub fn push(&mut self, topic: &'static str, key: &str, text: Option<String>, headers: &[(&'static str, &str)]) {
        let headers = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        self.records.push(Record {
            topic,
            seq: 0,
            key: key.into(),
            value: None,
            text,
            headers,
            partition: None,
            due: due(key),
        });
    }

    pub fn position(&self, topic: &str, seq: u64) -> usize {
        let position = self.records.iter().position(|record| record.topic == topic && record.seq == seq);
        position.unwrap_or_else(|| panic!("seq {seq} in {topic}"))
    }

    pub fn find(&mut self, topic: &str, seq: u64) -> &mut Record {
        let position = self.position(topic, seq);
        &mut self.records[position]
    }

    pub fn remove(&mut self, topic: &str, seq: u64) {
        self.records.remove(self.position(topic, seq));
    }

    pub fn repeat(&mut self, topic: &str, seq: u64) {
        let position = self.position(topic, seq);
        self.records.insert(position, self.records[position].clone());
    }

    /// Puts a record where it belongs.
    pub fn insert(&mut self, record: Record) {
        let position = self.position(MESSAGES, record.seq + 1);
        self.records.insert(position, record);
    }

    pub fn swap(&mut self, topic: &str, one: u64, other: u64) {
        let (one, other) = (self.position(topic, one), self.position(topic, other));
        self.records.swap(one, other);
    }

    /// The offset was moved back by hand by two records, which were published again.
    pub fn rewind(&mut self, marked: bool) {
        for seq in [LAST_SEQ - 1, LAST_SEQ] {
            let mut record = self.find(MESSAGES, seq).clone();
            record.set("wecom.epoch", "1");
            if marked {
                record.set("wecom.republished", "true");
            }
            self.records.push(record);
        }
        self.offset = Some(json!({"seq": LAST_SEQ, "epoch": 1, "republished_to": LAST_SEQ}).to_string());
    }

    /// The dead letter was opened later; where it says that it lay.
    pub fn replay(&mut self, times: usize, from: &str) {
        let mut record = self.find(MESSAGES, 6).clone();
        record.become_dead_letter();
        record.headers.retain(|(name, _)| *name != "wecom.previous_seq");
        record.set("wecom.replayed_from", &from.replace("{}", &format!("{}{DEAD_LETTERS}-{}", self.topic, due(CORP))));
        self.records.extend(std::iter::repeat_n(record, times));
    }

    /// The file is to be tried again, and nobody has come to that yet.
    pub fn retry(&mut self, seq: u64) {
        let mut record = self.find(REQUESTS, seq).clone();
        record.topic = RETRIES;
        self.records.push(record);
    }

    pub fn object(&self, seq: u64) -> PathBuf {
        self.folder.path().join(format!("object {seq}"))
    }

    pub fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", Kafka::shared().bootstrap()).set("partitioner", "murmur2_random");
        config
    }

    pub fn send(&self, producer: &BaseProducer, record: &Record) {
        let topic = format!("{}{}", self.topic, record.topic);
        let value = record.text.clone().or_else(|| record.value.as_ref().map(Value::to_string));
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
        let mut outgoing = BaseRecord::<str, str>::to(&topic).key(&record.key).headers(headers);
        outgoing.payload = value.as_deref();
        outgoing.partition = record.partition;
        producer.send(outgoing).unwrap_or_else(|(error, _)| panic!("{error}"));
    }

    pub fn publish(&mut self) {
        let producer: BaseProducer = self.client().create().expect("a producer");
        for record in &self.records {
            self.send(&producer, record);
        }
        let key = json!([CONNECTOR, {"corp_id": CORP}]).to_string();
        let state = json!([CONNECTOR, {"corp_id": CORP, "dead_letter_topic": "t", "partition": 0}]).to_string();
        for (key, value) in
            [(&key, Some(json!({"seq": 3}).to_string())), (&key, self.offset.clone()), (&state, Some("{}".into()))]
        {
            let topic = format!("{}{OFFSETS}", self.topic);
            let mut record = BaseRecord::<str, str>::to(&topic).key(key);
            record.payload = value.as_deref();
            producer.send(record).unwrap_or_else(|(error, _)| panic!("{error}"));
        }
        producer.flush(Duration::from_secs(60)).expect("delivery");
        if self.done {
            self.finish_requests();
        }
    }

    /// As the media tasks do once they are through with the requests.
    pub fn finish_requests(&self) {
        let group = format!("{}-{CONNECTOR}-media", self.files.get("group.id"));
        let consumer: BaseConsumer = self.client().set("group.id", group).create().expect("a consumer");
        let mut offsets = TopicPartitionList::new();
        for partition in 0..PARTITIONS {
            let end = Offset::Offset(self.end_of(REQUESTS, partition));
            offsets.add_partition_offset(&format!("{}{REQUESTS}", self.topic), partition, end).expect("a partition");
        }
        consumer.commit(&offsets, CommitMode::Sync).expect("a commit");
    }

    pub fn end_of(&self, topic: &str, partition: i32) -> i64 {
        let consumer: BaseConsumer = self.client().set("group.id", "reader").create().expect("a consumer");
        let ends = consumer.fetch_watermarks(&format!("{}{topic}", self.topic), partition, Duration::from_secs(60));
        ends.expect("the ends of a partition").1
    }

    pub fn delete_before(&self, topic: &str, partition: i32, offset: i64) {
        let admin: AdminClient<DefaultClientContext> = self.client().create().expect("an admin client");
        let mut offsets = TopicPartitionList::new();
        let topic = format!("{}{topic}", self.topic);
        offsets.add_partition_offset(&topic, partition, Offset::Offset(offset)).expect("a partition");
        let deleted = futures::executor::block_on(admin.delete_records(&offsets, &AdminOptions::new()));
        deleted.expect("an answer").elements()[0].error().expect("no error");
    }
}

/// Three conversations whose keys lead to different partitions of three.
pub fn conversation(seq: u64) -> &'static str {
    ["anna|bert", "room 7", "room 2"][(seq % 3) as usize]
}

/// Where Kafka's Java client puts a key.
pub fn due(key: &str) -> i32 {
    match key {
        "anna|bert" => 2,
        "room 2" => 1,
        _ => 0,
    }
}

pub fn content(seq: u64) -> Vec<u8> {
    format!("content of {seq}").into_bytes()
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

pub fn md5(bytes: &[u8]) -> String {
    hex(&md5::Md5::digest(bytes))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
