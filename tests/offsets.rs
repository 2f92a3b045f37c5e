//! Source offsets on the stock broker: read to the newest whatever others write, and what they tell of the archive.

#[path = "common/harness.rs"]
mod harness;

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rdkafka::config::ClientConfig;
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use serde_json::{Value, json};
use wecom_connector::kafka::Clients;
use wecom_connector::kafka::offsets::{self, OffsetKey, SourceOffset};

use harness::{Corp, Kafka, Worker, WorkerFiles, check_schemas, header, read_committed, unique};

const CONNECTOR: &str = "archive";
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

fn producer() -> BaseProducer {
    ClientConfig::new().set("bootstrap.servers", Kafka::shared().bootstrap()).create().expect("a producer")
}

fn clients() -> Clients {
    Clients { bootstrap_servers: Kafka::shared().bootstrap().to_owned(), ..Clients::default() }
}

fn send(producer: &BaseProducer, record: BaseRecord<'_, Vec<u8>, String>) {
    let mut record = record;
    while let Err((_, again)) = producer.send(record) {
        producer.poll(Duration::from_millis(10));
        record = again;
    }
}

fn offset_key(corp_id: &str) -> OffsetKey {
    OffsetKey { connector: CONNECTOR.to_owned(), corp_id: corp_id.to_owned() }
}

/// Writes an offset as a connector would have left it.
fn leave_offset(topic: &str, corp_id: &str, offset: &SourceOffset) {
    let producer = producer();
    let key = offset_key(corp_id).to_bytes().expect("a key");
    send(&producer, BaseRecord::to(topic).key(&key).payload(&json!(offset).to_string()));
    producer.flush(Duration::from_secs(60)).expect("delivery");
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock");
    i64::try_from(since.as_millis()).expect("a time")
}

#[test]
fn the_newest_offset_is_found_while_others_commit() {
    const OURS: u64 = 30_000;
    let topic = unique("offsets");
    Kafka::shared().create_topic(&topic, 3);
    let key = offset_key("ww1");
    let key_bytes = key.to_bytes().expect("a key");
    let ours = producer();
    for seq in 1..=OURS {
        // Long enough for many fetches.
        let value =
            json!(SourceOffset { seq, instance: Some("x".repeat(2000)), ..SourceOffset::default() }).to_string();
        send(&ours, BaseRecord::to(&topic).partition(0).key(&key_bytes).payload(&value));
    }
    ours.flush(Duration::from_secs(60)).expect("delivery");

    // The other partitions go on growing: each has many ends.
    let (is_over, have_begun) = (AtomicBool::new(false), Barrier::new(3));
    std::thread::scope(|scope| {
        for partition in [1, 2] {
            let (topic, is_over, have_begun) = (&topic, &is_over, &have_begun);
            scope.spawn(move || {
                let others = producer();
                let key = br#"["other",{"corp_id":"ww2"}]"#.to_vec();
                for count in 0.. {
                    let value = r#"{"seq":1}"#.to_owned();
                    send(&others, BaseRecord::to(topic).partition(partition).key(&key).payload(&value));
                    others.flush(Duration::from_secs(60)).expect("delivery");
                    if count == 0 {
                        have_begun.wait();
                    }
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        have_begun.wait();
        for _ in 0..3 {
            let found = offsets::read(&clients(), &topic, &key);
            if found.as_ref().is_ok_and(|offset| offset.as_ref().is_some_and(|offset| offset.seq == OURS)) {
                continue;
            }
            is_over.store(true, Ordering::Relaxed);
            panic!("{:?}", found.map(|offset| offset.map(|offset| offset.seq)));
        }
        is_over.store(true, Ordering::Relaxed);
    });
}

/// The gap events of a corp.
fn gaps(corp: &Corp) -> Vec<Value> {
    let records = read_committed(Kafka::shared(), &corp.topic());
    let gaps = records.iter().filter(|record| header(record, "ce_type") == Some("wecom.archive.gap"));
    gaps.map(|gap| serde_json::from_slice(gap.payload().expect("a value")).expect("JSON")).collect()
}

/// Starts a connector whose offset is of six days ago, moved back by hand before the start or not.
fn announces_what_has_left_the_archive(is_moved: bool) {
    let kafka = Kafka::shared();
    // Seven days of messages: the first two are gone.
    let corp = Corp::new("messages = 700\nhistory_hours = 168.0\nmix = { text = 1 }", "");
    let files = WorkerFiles::new(kafka);
    let topic = files.get("offset.storage.topic").to_owned();
    kafka.create_topic_with(&topic, 1, &[("cleanup.policy", "compact")]);
    let until_ms = now_ms() - 6 * DAY_MS;
    let left = SourceOffset { seq: 50, delivered_until_ms: Some(until_ms), ..SourceOffset::default() };
    leave_offset(&topic, &corp.id, &left);

    let files = corp.connect(files, CONNECTOR, &[("media.enable", "false")]);
    if is_moved {
        for topic in [corp.topic(), corp.topic() + "-dead-letters"] {
            kafka.create_topic_with(&topic, 1, &[]);
        }
        let (code, out, said) = files.run(&["offsets", "rewind"], CONNECTOR, &["--by", "10"]);
        assert_eq!(code, Some(0), "{out}{said}");
        assert!(out.contains("warning: nothing from seq 41 to 50 was published in the last ten days"), "{out}");
    }
    let mut worker = files.start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 700.0);
    worker.wait_metric("wecom_connector_archive_gaps_total", &[], 1.0);
    check_schemas(kafka, &corp.topics()[..1]);

    let found = gaps(&corp);
    assert_eq!(found.len(), 1, "{found:?}");
    // What came before the move is not lost.
    assert_eq!((&found[0]["after_seq"], &found[0]["delivered_until_ms"]), (&json!(50), &json!(until_ms)));
    let first = read_committed(kafka, &corp.topic())
        .iter()
        .filter(|record| header(record, "ce_type") == Some("wecom.archive.message"))
        .map(|record| header(record, "ce_id").and_then(|seq| seq.parse::<u64>().ok()).expect("a seq"))
        .min();
    assert_eq!(found[0]["before_seq"].as_u64(), first);
    assert!(first > Some(150), "{first:?}: the simulator keeps five of seven days");
    let (_, status) = worker.get("/connectors/archive/status").expect("an answer");
    assert!(status.contains("may be lost"), "{status}");
    assert!(worker.log().contains("a gap in the archive"), "{}", worker.log());

    // Another start goes on behind it and announces nothing again.
    worker.kill();
    worker.start_again();
    worker.wait_ready();
    worker.wait_metric("wecom_connector_archive_lag_seconds", &[], 0.0);
    assert_eq!(gaps(&corp).len(), 1);
}

#[test]
fn what_has_left_the_archive_unpulled_is_announced() {
    announces_what_has_left_the_archive(false);
}

#[test]
fn what_has_left_the_archive_is_announced_also_after_a_rewind() {
    announces_what_has_left_the_archive(true);
}

#[test]
fn an_archive_that_is_read_in_time_has_no_gap() {
    let kafka = Kafka::shared();
    let corp =
        Corp::new("messages = 300\nhistory_hours = 100.0\nseq_gap_every = 10\nseq_gap = 7\nmix = { text = 1 }", "");
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("wecom.page.limit", "20")]).start();
    worker.wait_metric("wecom_connector_archive_lag_seconds", &[], 0.0);
    let last: Value = serde_json::from_str(
        std::fs::read_to_string(corp.expected()).expect("the list").lines().last().expect("a message"),
    )
    .expect("JSON");
    worker.wait_metric("wecom_connector_last_committed_seq", &[], last["seq"].as_f64().expect("a seq"));
    assert_eq!(gaps(&corp), Vec::<Value>::new());
    corp.reader(kafka, worker.files(), CONNECTOR, None).check();
}

/// Moves the offset and gives what the command wrote; panics when it did not do it.
fn moved(worker: &Worker, command: &str, arguments: &[&str]) -> String {
    let (code, out, said) = worker.files().run(&["offsets", command], CONNECTOR, arguments);
    assert_eq!(code, Some(0), "{out}{said}");
    out
}

/// Nothing lost, nothing twice but what is marked.
#[track_caller]
fn assert_verified(worker: &Worker, code: i32) -> Value {
    let (found, report, said) = worker.files().verify(CONNECTOR, &["--storage", "none"]);
    assert_eq!(found, Some(code), "{report:#}{said}");
    report
}

#[test]
fn an_offset_is_moved_by_hand() {
    let kafka = Kafka::shared();
    let odd = "odd = [{ kind = \"msgtime_future\", seq = [40] }]";
    let bad = "bad = [{ kind = \"bad_base64\", seq = [250] }]";
    let corp = Corp::new(&format!("messages = 300\nmix = {{ text = 1 }}\n{odd}\n{bad}"), "");
    let files = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("wecom.page.limit", "50")]);
    // Before the first start there is nothing to move, and other connectors are named.
    let (code, _, said) = files.run(&["offsets", "get"], CONNECTOR, &[]);
    assert_eq!(code, Some(69), "{said}");
    let mut worker = files.start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 300.0);
    worker.terminate();
    assert_verified(&worker, 0);

    // Back by a hundred positions: first said, then done.
    let said = moved(&worker, "rewind", &["--by", "100", "--dry-run"]);
    assert!(said.contains("99 messages and 1 dead letters"), "{said}");
    let offset = stored(&worker);
    assert_eq!((offset["seq"].as_u64(), offset.get("epoch")), (Some(300), None), "a dry run changes nothing");
    moved(&worker, "rewind", &["--by", "100"]);
    assert_eq!(stored(&worker)["seq"], 200);
    assert_verified(&worker, 0);
    worker.start_again();
    worker.wait_metric("wecom_connector_messages_published_total", &[], 99.0);
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 300.0);
    worker.terminate();
    let report = assert_verified(&worker, 0);
    assert_eq!(report["counts"]["messages"]["republished"], 99, "{report:#}");

    // Ahead only when it is meant, and back over what was skipped: that is new, and not marked.
    let (code, _, said) = worker.files().run(&["offsets", "set"], CONNECTOR, &["--seq", "400"]);
    assert_eq!(code, Some(64));
    assert!(said.contains("never would be") && said.contains("--allow-skip"), "{said}");
    moved(&worker, "set", &["--seq", "400", "--allow-skip"]);
    moved(&worker, "rewind", &["--to-seq", "300"]);
    let said = moved(&worker, "reset", &[]);
    assert_eq!(stored(&worker)["seq"], 0);
    // By accident: the way back stands there, and is kept.
    let way_back = "offsets set worker.properties connector.properties --seq 299".replace("connector.", "archive.");
    let kept = worker.files().run(&["offsets", "get"], CONNECTOR, &[]).1;
    assert!(said.contains(&way_back) && kept.contains(&way_back), "{said}{kept}");
    moved(&worker, "set", &["--seq", "299"]);
    assert_eq!(stored(&worker)["seq"], 299);
    moved(&worker, "reset", &[]);
    worker.start_again();
    worker.wait_metric("wecom_connector_messages_published_total", &[], 299.0);
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 300.0);
    assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
    assert_verified(&worker, 0);

    // To the first message of a time.
    let list = std::fs::read_to_string(corp.expected()).expect("the list");
    let event = read_committed(kafka, &corp.topic());
    let of_seq = |seq: &str| event.iter().find(|event| header(event, "ce_id") == Some(seq)).expect("an event");
    let time = header(of_seq("280"), "ce_time").expect("a time").to_owned();
    moved(&worker, "rewind", &["--to-time", &time]);
    let to = stored(&worker)["seq"].as_u64().expect("a seq");
    assert!(to <= 279 && to > 200, "{to} for {time}, which is the time of seq 280 of {}", list.lines().count());
    // Seq 40 says that it is of a later time.
    let said = moved(&worker, "rewind", &["--to-time", &time]);
    assert!(said.contains("not counted: ") && said.contains("(seq 40: "), "{said}");
    assert!(stored(&worker)["seq"].as_u64() > Some(200), "{said}");
}

/// The offset as the command tells it.
fn stored(worker: &Worker) -> Value {
    let (code, out, said) = worker.files().run(&["offsets", "get"], CONNECTOR, &["--json"]);
    assert_eq!(code, Some(0), "{said}");
    serde_json::from_str(&out).expect("JSON")
}

#[test]
fn moving_an_offset_ends_the_worker_that_holds_it() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 100\nlive_per_second = 20.0\nlive_messages = 100000\nmix = { text = 1 }", "");
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("wecom.page.limit", "50")]).start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 120.0);
    moved(&worker, "rewind", &["--to-seq", "60"]);
    assert_eq!(worker.process().wait(harness::PATIENCE).code(), Some(77), "{}", worker.log());
    assert!(worker.log().contains("its offset was moved by hand"), "{}", worker.log());
    assert_eq!(stored(&worker)["seq"], 59);
    worker.start_again();
    worker.wait_metric("wecom_connector_messages_published_total", &[], 70.0);
    worker.terminate();
    assert_verified(&worker, 0);
}

#[test]
fn what_cannot_be_done_with_an_offset_is_said() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 20\nmix = { text = 1 }", "");
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[]).start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 20.0);
    worker.terminate();
    let stranger = worker.files().folder().join("stranger.properties");
    let text = std::fs::read_to_string(worker.files().folder().join("archive.properties")).expect("the file");
    std::fs::write(&stranger, text.replace("name=archive", "name=stranger")).expect("a file");

    for (connector, command, arguments, exit, part) in [
        (CONNECTOR, "set", &["--seq", "-1"][..], 64, "invalid value"),
        (CONNECTOR, "set", &["--seq=-1"], 64, "invalid"),
        (CONNECTOR, "set", &["--seq", "1.5"], 64, "invalid"),
        (CONNECTOR, "set", &["--seq", "99999999999999999999"], 64, "invalid"),
        (CONNECTOR, "set", &["--seq", "21"], 64, "--allow-skip"),
        (CONNECTOR, "rewind", &[], 64, "required"),
        (CONNECTOR, "rewind", &["--to-seq", "21"], 64, "no record 21 to go back to"),
        (CONNECTOR, "rewind", &["--to-seq", "0"], 64, "no record 0 to go back to"),
        (CONNECTOR, "rewind", &["--to-time", "yesterday"], 64, "2026-11-24T08:00:00+08:00"),
        (CONNECTOR, "rewind", &["--to-time", "2990-01-01"], 64, "no message of the topic"),
        (CONNECTOR, "rewind", &["--to-time", "2990-01-01T00:00:00Z"], 64, "no message of the topic"),
        (CONNECTOR, "rewind", &["--by", "soon"], 64, "36h"),
        ("stranger", "get", &[], 64, "there are offsets of: archive ("),
        ("stranger", "rewind", &["--by", "1"], 64, "there are offsets of: archive ("),
        ("stranger", "set", &["--seq", "5"], 64, "--allow-skip"),
        ("stranger", "set", &["--seq", "0"], 64, "there are offsets of: archive ("),
        ("stranger", "reset", &[], 64, "there are offsets of: archive ("),
        ("nowhere", "get", &[], 64, "nowhere.properties"),
    ] {
        let (code, out, said) = worker.files().run(&["offsets", command], connector, arguments);
        let said = out + &said;
        assert!(code == Some(exit) && said.contains(part), "{command} {arguments:?} of {connector}: {code:?} {said}");
    }
    assert_eq!(stored(&worker)["seq"], 20, "none of it moved the offset");
}

/// Waits until the connector's or a task's status says this.
fn wait_said(worker: &Worker, connector: &str, part: &str) -> String {
    harness::wait_for(&format!("the status to say {part}"), harness::PATIENCE, || {
        let (_, status) = worker.get(&format!("/connectors/{connector}/status"))?;
        status.contains(part).then_some(status)
    })
}

fn alter_topic(topic: &str, setting: &str) {
    let arguments = ["--alter", "--entity-type", "topics", "--entity-name", topic, "--add-config", setting];
    Kafka::shared().tool("kafka.admin.ConfigCommand", &arguments);
}

const HOUR_MS: i64 = 60 * 60 * 1000;

/// A topic that forgets, refuses old timestamps and then large records; and a connector that finds no offset.
#[test]
fn what_topics_do_not_keep_or_take_is_said_and_nothing_is_lost() {
    let kafka = Kafka::shared();
    let odd = "{ kind = \"msgtime_zero\", seq = [100] }, { kind = \"msgtime_future\", seq = [120] }, { kind = \"msgtime_past\", seq = [140] }";
    let corp = Corp::new(
        &format!(
            "messages = 300\nhistory_hours = 90.0\nlive_per_second = 5.0\nlive_messages = 100000\nmix = {{ text = 1 }}\nodd = [{odd}]"
        ),
        "",
    );
    let limits = [
        ("retention.ms", "604800000"),
        ("message.timestamp.before.max.ms", "3600000"),
        ("max.message.bytes", "1000000"),
    ];
    kafka.create_topic_with(&corp.topic(), 2, &limits);
    let settings = [("topic.retention.check", "refuse"), ("media.enable", "false"), ("wecom.page.limit", "100")];
    let worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &settings).start();
    wait_said(&worker, CONNECTOR, "deletes what is older than 7 d (retention.ms=604800000)");
    assert_eq!(read_committed(kafka, &corp.topic()).len(), 0);
    // Who only asks is told the same: as what is refused, then as a warning.
    let ask = |worker: &Worker| worker.files().run(&["validate"], CONNECTOR, &["--connect"]);
    let (code, said, _) = ask(&worker);
    assert!(code == Some(64) && said.contains("deletes what is older than 7 d"), "{code:?} {said}");

    let started_ms = now_ms();
    let mut worker = worker.start_changed(|files| files.connector(CONNECTOR, &[("topic.retention.check", "warn")]));
    let (_, said, _) = ask(&worker);
    for words in ["Warning: Topic", "deletes what is older than 7 d", "refuses timestamps that are older than 1 h"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 300.0);
    let status = wait_said(&worker, CONNECTOR, "refuses timestamps that are older than 1 h");
    assert!(status.contains("deletes what is older than 7 d"), "{status}");
    for record in read_committed(kafka, &corp.topic()) {
        let (seq, timestamp_ms) = (header(&record, "ce_id"), record.timestamp().to_millis().expect("a timestamp"));
        let from = match seq {
            Some("100" | "120" | "140") => "newest_message",
            Some(seq) if seq.parse::<u64>().expect("a seq") < 290 => "topic_limit",
            _ => continue,
        };
        assert_eq!(header(&record, "wecom.timestamp_from"), Some(from), "{seq:?}");
        assert!(
            timestamp_ms >= started_ms - HOUR_MS && timestamp_ms < now_ms() - HOUR_MS / 2,
            "{seq:?}: {timestamp_ms}"
        );
    }

    // While it runs, the topic stops to take what it took: what was sent is aborted, and sent in a form that it takes.
    alter_topic(&corp.topic(), "max.message.bytes=600");
    worker.wait_metric("wecom_connector_dead_letters_total", &[("reason", "too_large")], 3.0);
    assert!(worker.metric("wecom_connector_transactions_total", &[("result", "aborted")]) >= Some(1.0));
    assert_eq!(worker.metric("wecom_connector_transactions_total", &[("result", "unknown")]), Some(0.0));
    assert_eq!(worker.metric("wecom_connector_fencings_total", &[]), Some(0.0));
    assert!(worker.log().contains("raise the topic's max.message.bytes"), "{}", worker.log());
    alter_topic(&corp.topic(), "max.message.bytes=1000000");
    worker.terminate();
    assert_verified(&worker, 0);

    // The connector is renamed, as if its offset were lost.
    let seq = stored(&worker)["seq"].as_u64().expect("a seq");
    let text = std::fs::read_to_string(worker.files().folder().join("archive.properties")).expect("the file");
    let properties: Vec<_> =
        text.lines().filter_map(|line| line.split_once('=')).filter(|(key, _)| *key != "name").collect();
    let files = corp.connect(
        WorkerFiles::new(kafka).set("offset.storage.topic", worker.files().get("offset.storage.topic")),
        "renamed",
        &properties,
    );
    let worker = files.connector("renamed", &[("require.offset", "true")]).start();
    let status = wait_said(&worker, "renamed", "no offset is stored for connector renamed");
    assert!(status.contains("offsets of this corp under other names: archive"), "{status}");
    let mut worker = worker.start_changed(|files| files.connector("renamed", &[("require.offset", "false")]));
    let status = wait_said(&worker, "renamed", "No offset was stored for connector renamed");
    assert!(status.contains("under other names: archive"), "{status}");
    worker.wait_metric("wecom_connector_last_committed_seq", &[], seq as f64 + 1.0);
    worker.terminate();
    let (code, report, said) = worker.files().verify("renamed", &["--storage", "none"]);
    assert_eq!(code, Some(0), "{said}{report:#}");
    let counts = &report["counts"];
    let republished = counts["messages"]["republished"].as_u64().expect("a count");
    assert!(republished >= seq - 300 && republished <= seq, "{report:#}");
}

/// A page that never gets through: for the time it takes, or because the worker dies of it.
#[test]
fn a_page_that_does_not_get_through_is_asked_for_in_parts() {
    let kafka = Kafka::shared();
    let slow = "[[fault]]\nfunction = \"GetChatData\"\nlimit_above = 250\nslow_ms = 5000\ntimes = \"always\"";
    let corp = Corp::new("messages = 2000\nmix = { text = 1 }", slow);
    let settings = [("media.enable", "false"), ("wecom.timeout.ms", "1000")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &settings).start();
    wait_said(&worker, CONNECTOR, "records are asked for now, in place of the 1000 of wecom.page.limit");
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 1000.0);
    worker.kill();
    let offset = stored(&worker);
    assert_eq!((&offset["page_limit"], offset["vain_starts"].as_u64()), (&json!(250), None), "{offset}");

    // Another worker begins with it; and with less, once some have died with the page.
    moved(&worker, "reset", &[]);
    for _ in 0..2 {
        worker.start_with(&[("WECOM_CONNECTOR_CRASH_POINT", "page_pulled:1")]);
        worker.process().wait(harness::PATIENCE);
    }
    assert_eq!(stored(&worker)["vain_starts"], 2);
    worker.start_again();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 2000.0);
    let offset = stored(&worker);
    assert_eq!((&offset["page_limit"], offset["vain_starts"].as_u64()), (&json!(62), None), "{offset}");
    worker.terminate();
    assert_verified(&worker, 0);
}

/// Brokers forget a `transactional.id` that has had no transaction for a week.
#[test]
fn a_producer_that_the_brokers_have_forgotten_is_renewed_at_once() {
    let kafka = Kafka::start_with(
        "transactional.id.expiration.ms=1000\ntransaction.remove.expired.transaction.cleanup.interval.ms=500\nproducer.id.expiration.ms=1000\nproducer.id.expiration.check.interval.ms=500",
        false,
    );
    let corp = Corp::new("messages = 20\nlive_per_second = 0.3\nlive_messages = 100000\nmix = { image = 1 }", "");
    let mut worker = corp.connect(WorkerFiles::new(&kafka), CONNECTOR, &[]).start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 20.0);
    harness::wait_until("both kinds of tasks to renew their producers", harness::PATIENCE, || {
        let log = worker.log();
        let renewed = |task: &str| log.lines().any(|line| line.contains(task) && line.contains("a new one goes on"));
        renewed("message_task") && renewed("media_task")
    });
    let seq = worker.metric("wecom_connector_last_committed_seq", &[]).expect("a seq");
    worker.wait_metric("wecom_connector_last_committed_seq", &[], seq + 1.0);
    worker.wait_metric("wecom_connector_media_total", &[("status", "stored")], seq);
    assert_eq!(worker.metric("wecom_connector_fencings_total", &[]), Some(0.0), "{}", worker.log());
    assert!(!worker.log().contains("will be started again"), "{}", worker.log());
    worker.terminate();
    let (code, report, said) = worker.files().verify(CONNECTOR, &[]);
    assert_eq!(code, Some(0), "{said}{report:#}");
}
