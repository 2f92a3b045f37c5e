//! A connector's surroundings for media tasks that run in the test itself.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::harness::{Kafka, PATIENCE, unique};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Headers, Message};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wecom_connector::archive::WINDOW_MS;
use wecom_connector::cli::keys::{GenerateArgs, generate};
use wecom_connector::clock::Clock;
use wecom_connector::config::{self, Providers};
use wecom_connector::kafka::{Batch, BatchBytes, Committer, OutgoingRecord};
use wecom_connector::metrics::Metrics;
use wecom_connector::sdk::{MediaChunk, SdkError};
use wecom_connector::status::{Health, StatusBoard};
use wecom_connector::storage::PART_BYTES;
use wecom_connector::task::download::ChunkSource;
use wecom_connector::task::limiter::RateLimiters;
use wecom_connector::task::{ConnectorContext, TaskError, media_task};

pub const CHUNK: usize = 64 * 1024;

/// The files of a corp. What a file does stands in its id: `kind:number`.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// How often each file was begun.
    pub begun: Arc<Mutex<HashMap<String, u32>>>,
    /// What `held` files wait for.
    pub gate: Option<Arc<Gate>>,
}

#[derive(Debug, Default)]
pub struct Gate {
    pub is_reached: Mutex<bool>,
    pub is_open: Mutex<bool>,
    pub changed: Condvar,
}

impl Gate {
    /// Blocks the whole thread: a task that is stuck, not one that waits.
    pub fn pass(&self) {
        *self.is_reached.lock().expect("a lock") = true;
        let open = self.is_open.lock().expect("a lock");
        drop(self.changed.wait_while(open, |open| !*open).expect("a lock"));
    }

    pub fn open(&self) {
        *self.is_open.lock().expect("a lock") = true;
        self.changed.notify_all();
    }
}

pub fn content(id: &str) -> Vec<u8> {
    let (kind, number) = id.split_once(':').expect("kind:number");
    let number: usize = number.parse().expect("a number");
    // The same bytes under ever new ids.
    let number = if kind == "same" { 7 } else { number };
    let length = if kind == "large" { 2 * PART_BYTES } else { (number * 7919) % (4 * CHUNK) };
    (0..length).map(|i| (i.wrapping_mul(31) ^ number ^ kind.len()) as u8).collect()
}

impl ChunkSource for Files {
    async fn chunk(&self, id: &str, index: &[u8]) -> Result<MediaChunk, SdkError> {
        let code = |code| SdkError::Code { function: "GetMediaData", code, cause: None };
        let offset: usize =
            if index.is_empty() { 0 } else { String::from_utf8_lossy(index).parse().expect("our index") };
        let begun = {
            let mut begun = self.begun.lock().expect("a lock");
            let begun = begun.entry(id.to_owned()).or_default();
            *begun += u32::from(index.is_empty());
            *begun
        };
        let dies = || SdkError::Crash { function: "GetMediaData", reason: "died".into() };
        match id.split_once(':').expect("kind:number").0 {
            "expired" => return Err(code(10010)),
            // For ever, as the library does for some files.
            "gone" => return Err(code(10002)),
            "refused" => return Err(code(10005)),
            "dead" => return Err(dies()),
            "flaky" if begun == 1 => return Err(dies()),
            "held" => {
                if let Some(gate) = &self.gate {
                    gate.pass();
                }
            }
            _ => {}
        }
        let content = content(id);
        let end = (offset + CHUNK.max(content.len() / 4)).min(content.len());
        // Leaves the others their turn.
        tokio::task::yield_now().await;
        Ok(MediaChunk {
            data: content[offset..end].to_vec(),
            next_index: end.to_string().into(),
            is_finish: end == content.len(),
            file_bytes: None,
        })
    }
}

/// A connector's surroundings: its files, its topics on the broker, its store.
pub struct World {
    pub folder: TempDir,
    pub context: Arc<ConnectorContext>,
    pub metrics: Arc<Metrics>,
    pub board: Arc<StatusBoard>,
    pub bootstrap: String,
}

/// A record in a topic.
pub struct Committed {
    pub partition: i32,
    pub offset: i64,
    pub value: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

pub type Task = (JoinHandle<Result<(), TaskError>>, CancellationToken);

/// How much later a request of the kind "early" is to be tried.
pub const EARLY_MS: i64 = 30 * 60 * 1_000;

impl World {
    pub fn new(kafka: &Kafka, partitions: u32) -> World {
        World::with_retry_delay(kafka, partitions, 1_000)
    }

    pub fn with_retry_delay(kafka: &Kafka, partitions: u32, retry_delay_ms: u64) -> World {
        World::with_storage(kafka, partitions, retry_delay_ms, |folder| format!("storage.path={folder}/store\n"))
    }

    /// `storage` gives the keys for the storage, where there is this folder.
    pub fn with_storage(
        kafka: &Kafka,
        partitions: u32,
        retry_delay_ms: u64,
        storage: impl FnOnce(&str) -> String,
    ) -> World {
        let folder = tempfile::tempdir().expect("a folder");
        let storage = storage(&folder.path().display().to_string());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let keys = GenerateArgs { out: PathBuf::from(path("keys")), key_version: Some(1) };
        generate(&keys, &mut std::io::sink()).expect("keys");
        let group = unique("group");
        let worker = format!(
            "bootstrap.servers={}\ngroup.id={group}\noffset.storage.topic={group}-offsets\n\
             offset.storage.partitions=1\noffset.storage.replication.factor=1\n",
            kafka.bootstrap()
        );
        let connector = format!(
            "name=archive\nwecom.corp.id=ww1\nwecom.secret=s\nwecom.private.keys.dir={}\n\
             topic={group}.messages\n{storage}storage.prefix=media\ntasks.max=4\n\
             media.concurrency=3\nmedia.retry.delay.ms={retry_delay_ms}\ntopic.creation.default.partitions={partitions}\n\
             topic.creation.default.replication.factor=1\n\
             consumer.override.session.timeout.ms=6000\nconsumer.override.max.poll.interval.ms=6000\n\
             consumer.override.heartbeat.interval.ms=500\n",
            path("keys"),
        );
        std::fs::write(path("worker.properties"), worker).expect("written");
        std::fs::write(path("connector.properties"), connector).expect("written");
        let (worker, _) = config::load_worker(path("worker.properties").as_ref()).expect("a worker's configuration");
        let (connector, _) =
            config::load_connector(path("connector.properties").as_ref(), Providers::default()).expect("a connector's");
        let clock = Clock::system();
        let metrics = Metrics::new(clock.clone());
        let context =
            ConnectorContext::new(Arc::new(worker), connector, &metrics, &RateLimiters::default(), clock.clone())
                .expect("a context");
        let board = StatusBoard::new(clock, Duration::from_secs(60));
        World { folder, context: Arc::new(context), metrics, board, bootstrap: kafka.bootstrap().to_owned() }
    }

    pub fn start(&self, task: u32, files: Files) -> Task {
        let stop = CancellationToken::new();
        let (context, shutdown) = (self.context.clone(), stop.clone());
        let status = self.board.connector("archive").task(task);
        let run = async move {
            let result = media_task::run_with(files, &context, task, &status, shutdown).await;
            status.stopped();
            result
        };
        (tokio::spawn(run), stop)
    }

    /// Publishes values into the requests topic, in one transaction.
    pub async fn publish(&self, values: Vec<Vec<u8>>) {
        self.publish_to(&self.context.config.media_requests_topic, values).await;
    }

    pub async fn publish_to(&self, topic: &str, values: Vec<Vec<u8>>) {
        let bytes = BatchBytes { single_max: 1_000_000, several_max: 1_000_000 };
        let committer =
            Committer::start(&self.context.clients, &unique("test"), 30_000, bytes).await.expect("a producer");
        let topic: Arc<str> = topic.into();
        let records = values.into_iter().map(|value| OutgoingRecord {
            topic: topic.clone(),
            key: md5_of(&value).into(),
            value,
            headers: Vec::new(),
            timestamp_ms: self.context.now_ms(),
        });
        committer.commit(Batch { records: records.collect(), group_offsets: None }).await.expect("published");
    }

    pub fn request(&self, id: &str) -> Vec<u8> {
        let bytes = content(id);
        let kind = id.split(':').next().expect("a kind");
        let md5 = match kind {
            "plain" => None,
            "wrong" => Some(md5_of(b"something else")),
            _ => Some(md5_of(&bytes)),
        };
        let now_ms = self.context.now_ms();
        let deadline_ms = now_ms
            + match kind {
                "late" | "gone" => -1,
                "old" => WINDOW_MS / 4,
                _ => WINDOW_MS,
            };
        let attempts = u32::from(matches!(kind, "late" | "early" | "due"));
        let not_before_ms = if kind == "early" { now_ms + EARLY_MS } else { now_ms };
        let request = json!({
            "schema": "urn:wecom-connector:media-request:1", "media_id": md5_of(id.as_bytes()), "corp_id": "ww1", "seq": 1,
            "msgid": id, "msgtype": "file", "conversation": format!("room-{}", id.len()), "path": "/file/sdkfileid",
            "media_type": "file", "sdkfileid": id, "md5sum": md5, "size": bytes.len(), "file_name": "../x",
            "extension": "dat", "msgtime_ms": deadline_ms - WINDOW_MS, "first_seen_ms": now_ms, "deadline_ms": deadline_ms,
            "attempts": attempts, "not_before_ms": not_before_ms, "last_error": if kind == "late" { Some("unreachable: x") } else { None },
        });
        request.to_string().into()
    }

    /// Everything committed in a topic.
    pub fn read(&self, topic: &str) -> Vec<Committed> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", "unused")
            .set("isolation.level", "read_committed")
            .set("enable.partition.eof", "true")
            .create()
            .expect("a consumer");
        let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).expect("metadata");
        let mut list = TopicPartitionList::new();
        for partition in metadata.topics()[0].partitions() {
            list.add_partition_offset(topic, partition.id(), Offset::Beginning).expect("an offset");
        }
        consumer.assign(&list).expect("assigned");
        let (mut ends, mut found) = (0, Vec::new());
        while ends < list.count() {
            match consumer.poll(PATIENCE).expect("an answer of the broker") {
                Ok(message) => {
                    let headers = message.headers().map_or_else(BTreeMap::new, |headers| {
                        let text =
                            |value: Option<&[u8]>| String::from_utf8_lossy(value.unwrap_or_default()).into_owned();
                        headers.iter().map(|header| (header.key.to_owned(), text(header.value))).collect()
                    });
                    let value = message.payload().unwrap_or_default().to_vec();
                    let (partition, offset) = (message.partition(), message.offset());
                    found.push(Committed { partition, offset, value, headers });
                }
                Err(KafkaError::PartitionEOF(_)) => ends += 1,
                Err(error) => panic!("{error}"),
            }
        }
        found
    }

    /// How old the oldest file is that has not come, as an alert sees it.
    pub fn oldest_pending_ms(&self) -> i64 {
        const NAME: &str = "wecom_connector_media_oldest_pending_age_seconds{connector=\"archive\"} ";
        let text = self.metrics.render(&self.board).expect("metrics");
        let age_s = text.lines().find_map(|line| line.strip_prefix(NAME)).expect("the metric");
        (age_s.parse::<f64>().expect("a number") * 1000.0) as i64
    }

    pub fn references(&self) -> Vec<Value> {
        let records = self.read(&self.context.config.media_topic);
        records.iter().map(|it| serde_json::from_slice(&it.value).expect("an event")).collect()
    }

    /// Waits until the status of the tasks says what `is_told` looks for.
    pub async fn wait_for_health(
        self: &Arc<Self>,
        what: &'static str,
        is_told: impl Fn(&Health) -> bool + Send + 'static,
    ) {
        let board = self.board.clone();
        let wait = move || crate::harness::wait_until(what, PATIENCE, || is_told(&board.health()));
        tokio::task::spawn_blocking(wait).await.expect("in time");
    }

    pub async fn wait_for_references(self: &Arc<Self>, count: usize) {
        let world = self.clone();
        let wait = move || {
            crate::harness::wait_until("reference events", PATIENCE, || {
                let found = world.references().len();
                assert!(found <= count, "{found} events for {count} requests");
                found == count
            });
        };
        tokio::task::spawn_blocking(wait).await.expect("in time");
    }

    /// Holds every event against what its file does.
    pub fn check(&self, ids: &[String]) {
        let mut events: HashMap<String, Value> = HashMap::new();
        for event in self.references() {
            let id = event["msgid"].as_str().expect("a msgid").to_owned();
            assert!(events.insert(id.clone(), event).is_none(), "{id} came twice");
        }
        assert_eq!(events.len(), ids.len());
        for id in ids {
            let event = &events[id];
            let kind = id.split(':').next().expect("a kind");
            let (status, reason, attempts) = match kind {
                "expired" => ("expired", json!("expired"), 1),
                "late" | "gone" => ("expired", json!("unreachable"), 1),
                "refused" => ("failed", json!("refused"), 1),
                "dead" => ("failed", json!("sdk_crash"), 3),
                "wrong" => ("failed", json!("md5_mismatch"), 3),
                "flaky" | "due" => ("stored", Value::Null, 2),
                _ => ("stored", Value::Null, 1),
            };
            assert_eq!((&event["status"], &event["reason"]), (&json!(status), &reason), "{id}");
            // A try whose task was thrown away before it was committed is not counted; a flaky file's first may be such a one.
            let is_uncounted = kind == "flaky" && event["attempts"] == 1;
            assert!(event["attempts"] == attempts || is_uncounted, "{id}: {}", event["attempts"]);
            let has_bytes = status == "stored" || kind == "wrong";
            assert_eq!(event["uri"].is_string(), has_bytes, "{id}");
            if has_bytes {
                // What was not fetched was not compared.
                let is_compared = event["deduplicated"] == false && kind != "plain";
                assert_eq!(event["md5_matches"].is_boolean(), is_compared, "{id}");
                let bytes = content(id);
                let path = event["uri"].as_str().and_then(|uri| uri.strip_prefix("file://")).expect("a file's URI");
                assert!(std::fs::read(path).expect("the object") == bytes, "{id}: other bytes");
                assert_eq!((&event["md5"], &event["size"]), (&json!(md5_of(&bytes)), &json!(bytes.len())), "{id}");
                assert!(path.starts_with(&*self.folder.path().canonicalize().expect("a path").to_string_lossy()));
            }
        }
    }

    /// The group's offsets stand behind the last record of every partition.
    pub fn check_offsets(&self) {
        let group = format!("{}-archive-media", self.context.worker.group_id);
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", &self.bootstrap)
            .set("group.id", group)
            .create()
            .expect("a consumer");
        for topic in [&self.context.config.media_requests_topic, &self.context.config.media_retries_topic] {
            let mut last: BTreeMap<i32, i64> = BTreeMap::new();
            for Committed { partition, offset, .. } in self.read(topic) {
                let at = last.entry(partition).or_default();
                *at = offset.max(*at);
            }
            for (partition, offset) in last {
                let mut list = TopicPartitionList::new();
                list.add_partition(topic, partition);
                let committed = consumer.committed_offsets(list, PATIENCE).expect("committed offsets");
                assert_eq!(committed.elements()[0].offset(), Offset::Offset(offset + 1), "{topic}-{partition}");
            }
        }
    }
}

pub fn md5_of(bytes: &[u8]) -> String {
    use md5::Digest;
    md5::Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

pub async fn leave(tasks: Vec<Task>) {
    for (_, stop) in &tasks {
        stop.cancel();
    }
    for (run, _) in tasks {
        assert_eq!(run.await.expect("no panic"), Ok(()));
    }
}
