//! `wecom-connector verify` finds what it is there to find, and nothing else.
//!
//! The topics are filled by hand, once as a right connector would and once with each fault; then it looks at a real connector, while
//! that runs and after.

#[path = "common/harness.rs"]
mod harness;

#[path = "verify/filled.rs"]
mod filled;

use std::time::Duration;

use rdkafka::producer::{BaseProducer, Producer};
use serde_json::{Value, json};

use filled::{
    CONNECTOR, CORP, DEAD_LETTERS, Filled, LAST_SEQ, MESSAGES, OFFSETS, PARTITIONS, REFERENCES, REQUESTS, connector,
    sha256,
};
use harness::{Corp, Kafka, S3, WorkerFiles, findings, unique, wait_for};

/// What is found, with the seq that it is about.
type Found = &'static [(&'static str, Option<u64>)];

/// A name, a change to what a right connector writes, options, and what is found.
type Row = (&'static str, fn(&mut Filled), &'static [&'static str], Found);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    ("right", |_| (), &[], &[]),
    // The sequence.
    ("lost", |it| it.remove(MESSAGES, 3), &[], &[("missing", Some(4))]),
    ("lost first", |it| it.remove(MESSAGES, 1), &[], &[("missing", Some(2))]),
    ("lost dead letter", |it| it.remove(DEAD_LETTERS, 5), &[], &[("missing", Some(6))]),
    ("lost, not asked for", |it| it.remove(MESSAGES, 3), &["--from-seq", "6"], &[]),
    ("twice", |it| it.repeat(MESSAGES, 2), &[], &[("twice", Some(2))]),
    ("twice, later", |it| { let copy = it.find(MESSAGES, 2).clone(); it.records.push(copy); }, &[],
        &[("twice", Some(2)), ("out_of_order", Some(2))]),
    ("message and dead letter", |it| { let mut copy = it.find(MESSAGES, 5 + 1).clone(); copy.seq = 5; copy.become_dead_letter(); it.insert(copy); }, &[],
        &[("twice", Some(5))]),
    ("wrong order", |it| it.swap(MESSAGES, 1, 4), &[], &[("out_of_order", Some(1))]),
    ("wrong partition", |it| { let record = it.find(MESSAGES, 10); record.partition = Some((record.due + 1) % PARTITIONS); }, &[],
        &[("wrong_partition", Some(10))]),
    ("wrong key", |it| it.find(REFERENCES, 8).key = "room 7".into(), &[], &[("wrong_key", Some(8))]),
    ("no link", |it| it.find(MESSAGES, 6).headers.retain(|(name, _)| *name != "wecom.previous_seq"), &[], &[("unchained", Some(6))]),
    ("wrong link", |it| it.find(MESSAGES, 6).set("wecom.previous_seq", "4"), &[], &[("chain_broken", Some(6))]),
    // A connector that had another name, or another topic.
    ("dead letter under another name", |it| it.find(DEAD_LETTERS, 5).set("__connect.errors.connector.name", "before"), &[], &[]),
    ("dead letter of another topic", |it| {
        let letter = it.find(DEAD_LETTERS, 5);
        letter.set("__connect.errors.connector.name", "before");
        letter.set("__connect.errors.topic", "elsewhere");
    }, &[], &[("missing", Some(6))]),
    // An offset moved by hand.
    ("rewound", |it| it.rewind(true), &[], &[]),
    ("rewound, no marks", |it| it.rewind(false), &[], &[("twice", Some(11)), ("twice", Some(12))]),
    ("rewound, end lost before", |it| { it.rewind(true); it.remove(MESSAGES, LAST_SEQ); }, &[],
        &[("missing", None), ("wrong_mark", Some(LAST_SEQ))]),
    ("replayed", |it| it.replay(1, "{}@0"), &[], &[]),
    ("replayed twice", |it| it.replay(2, "{}@0"), &[], &[("replayed_twice", Some(5))]),
    ("replayed from another topic", |it| it.replay(1, "{}-0@0"), &[], &[]),
    ("replayed from nowhere", |it| it.replay(1, "{}@1"), &[], &[("replayed_from_nowhere", Some(5))]),
    // The offset.
    ("offset behind", |it| it.offset = Some(json!({"seq": LAST_SEQ - 1}).to_string()), &[], &[("offset_behind", None)]),
    ("offset ahead", |it| it.offset = Some(json!({"seq": LAST_SEQ + 1}).to_string()), &[], &[("offset_ahead", None)]),
    ("no offset", |it| it.offset = None, &[], &[("offset_missing", None)]),
    ("no such offset", |it| it.offset = Some("{}".into()), &[], &[("offset_malformed", None)]),
    // Media.
    ("no reference", |it| it.remove(REFERENCES, 8), &[], &[("reference_missing", Some(8))]),
    ("open", |it| { it.remove(REFERENCES, 8); it.done = false; }, &[], &[]),
    ("retry open", |it| { it.remove(REFERENCES, 8); it.retry(8); }, &[], &[]),
    ("two references", |it| it.repeat(REFERENCES, 8), &[], &[("reference_twice", Some(8))]),
    ("no request", |it| { it.remove(REQUESTS, 8); it.remove(REFERENCES, 8); }, &[], &[("request_missing", Some(8))]),
    ("a reference to nothing", |it| { it.remove(REQUESTS, 8); it.remove(MESSAGES, 8); it.find(MESSAGES, 9).set("wecom.previous_seq", "7"); },
        &[], &[("reference_without_request", Some(8))]),
    ("wrong hash", |it| { let wrong = sha256(b"x"); it.find(REFERENCES, 8).edit("sha256", wrong.into()); }, &[], &[("object_differs", Some(8))]),
    ("wrong hash, not asked for", |it| { let wrong = sha256(b"x"); it.find(REFERENCES, 8).edit("sha256", wrong.into()); },
        &["--storage", "exists"], &[]),
    ("other bytes", |it| std::fs::write(it.object(8), "content of 9").expect("an object"), &[], &[("object_differs", Some(8))]),
    ("too short", |it| std::fs::write(it.object(8), "content").expect("an object"), &["--storage", "exists"], &[("object_differs", Some(8))]),
    ("no object", |it| std::fs::remove_file(it.object(9)).expect("an object"), &[], &[("object_missing", Some(9))]),
    ("no object, not asked for", |it| std::fs::remove_file(it.object(9)).expect("an object"), &["--storage=none"], &[]),
    ("an object elsewhere", |it| it.find(REFERENCES, 8).edit("uri", "s3://bucket/object".into()), &[], &[("object_elsewhere", Some(8))]),
    // What is not the connector's.
    ("foreign", |it| it.push(MESSAGES, "k", Some("hello".into()), &[]), &[], &[("foreign", None)]),
    ("foreign request", |it| it.push(REQUESTS, "k", Some("{}".into()), &[("ce_source", "/wecom/ww1")]), &[], &[("foreign", None)]),
    ("tombstone", |it| it.push(MESSAGES, "room 1", None, &[]), &[], &[("tombstone", None)]),
    ("unreadable", |it| it.push(MESSAGES, "k", Some("{".into()), &[("ce_source", "/wecom/ww1"), ("ce_type", "wecom.archive.message")]), &[],
        &[("unreadable", None)]),
    ("of another corp", |it| it.push(MESSAGES, "k", Some("{".into()), &[("ce_source", "/wecom/ww2"), ("ce_type", "wecom.archive.message")]), &[],
        &[]),
];

#[test]
fn each_fault_is_found() {
    std::thread::scope(|scope| {
        for rows in ROWS.chunks(ROWS.len().div_ceil(4)) {
            scope.spawn(|| rows.iter().for_each(check));
        }
    });
}

fn check((name, change, arguments, expected): &Row) {
    let mut filled = Filled::new();
    change(&mut filled);
    filled.publish();
    let (code, report, said) = filled.files.verify(CONNECTOR, arguments);
    let mut expected: Vec<_> = expected.iter().map(|(kind, seq)| ((*kind).to_owned(), *seq)).collect();
    expected.sort();
    assert_eq!(findings(&report), expected, "{name}: {said}{report:#}");
    assert_eq!(code, Some(i32::from(!expected.is_empty())), "{name}: {said}");
}

#[test]
fn what_is_there_is_counted() {
    let mut filled = Filled::new();
    filled.publish();
    let (_, report, _) = filled.files.verify(CONNECTOR, &[]);
    let sequence = json!({
        "first_seq": 1, "last_seq": LAST_SEQ, "epoch": 0, "records": LAST_SEQ, "records_after_snapshot": 0,
        "nothing_deleted_from_seq": 1, "complete": true,
    });
    assert_eq!(report["sequence"], sequence);
    let counts = json!({
        "dead letters": {"rsa": 1}, "media references": {"expired": 1, "stored": 2}, "messages": {"published": LAST_SEQ - 1},
    });
    assert_eq!((&report["verdict"], &report["counts"]), (&json!("clean"), &counts));
    assert_eq!(report["offset"]["seq"], LAST_SEQ);
}

#[test]
fn what_was_announced_is_no_finding() {
    // Lost at the source, told by an event in the page's transaction.
    let mut filled = Filled::new();
    let gap = json!({"corp_id": CORP, "after_seq": 3, "before_seq": 4}).to_string();
    filled.push(MESSAGES, CORP, Some(gap), &[("ce_source", "/wecom/ww1"), ("ce_type", "wecom.archive.gap")]);
    filled.publish();
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(2), vec![]), "{said}{report:#}");
    assert_eq!(report["announced"], json!([{"kind": "gap", "after_seq": 3, "before_seq": 4}]));
    let (code, report, said) = filled.files.verify(CONNECTOR, &["--from-seq", "5"]);
    assert_eq!((code, findings(&report)), (Some(0), vec![]), "{said}{report:#}");

    // Skipped by hand, and nothing since.
    let mut filled = Filled::new();
    filled.offset = Some(json!({"seq": 100, "epoch": 1}).to_string());
    filled.publish();
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(2), vec![]), "{said}{report:#}");
    assert_eq!(report["announced"], json!([{"kind": "skipped", "after_seq": LAST_SEQ, "to_seq": 100}]));
}

#[test]
fn what_retention_deleted_is_not_missing() {
    let mut filled = Filled::new();
    filled.publish();
    // Each conversation has a partition of its own or shares one: all that is before the last record of one goes.
    let partition = filled.find(MESSAGES, 10).due;
    filled.delete_before(MESSAGES, partition, filled.end_of(MESSAGES, partition) - 1);
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(0), vec![]), "{said}{report:#}");
    let begins = report["sequence"]["nothing_deleted_from_seq"].as_u64().expect("a seq");
    assert!((10..=LAST_SEQ).contains(&begins), "{report:#}");
    assert!(
        report["notes"].to_string().contains("retention has deleted the beginning of 1 of 3 partitions"),
        "{report:#}"
    );

    // What is left of a partition is nothing: then it could have held whatever is not there.
    filled.delete_before(MESSAGES, partition, filled.end_of(MESSAGES, partition));
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(0), vec![]), "{said}{report:#}");
    assert_eq!(report["sequence"]["nothing_deleted_from_seq"], Value::Null);

    // Requests are gone before their references, and that is no fault of these.
    for partition in 0..PARTITIONS {
        filled.delete_before(REQUESTS, partition, filled.end_of(REQUESTS, partition));
    }
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(0), vec![]), "{said}{report:#}");
}

#[test]
fn a_compacted_topic_is_told() {
    let mut filled = Filled::new();
    let topic = filled.topic.clone();
    let settings =
        ["--alter", "--entity-type", "topics", "--entity-name", &topic, "--add-config", "cleanup.policy=compact"];
    Kafka::shared().tool("kafka.admin.ConfigCommand", &settings);
    filled.remove(MESSAGES, 3);
    filled.publish();
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(1), vec![("missing".into(), Some(4))]), "{said}{report:#}");
    assert!(report["notes"].to_string().contains(&format!("{topic} is compacted")), "{report:#}");
}

#[test]
fn what_was_aborted_is_not_there() {
    let mut filled = Filled::new();
    let copy = filled.find(MESSAGES, 2).clone();
    filled.publish();
    let producer: BaseProducer =
        filled.client().set("transactional.id", unique("zombie")).create().expect("a producer");
    producer.init_transactions(Duration::from_secs(60)).expect("transactions");
    producer.begin_transaction().expect("a transaction");
    filled.send(&producer, &copy);
    producer.flush(Duration::from_secs(60)).expect("delivery");
    producer.abort_transaction(Duration::from_secs(60)).expect("its end");
    let (code, report, said) = filled.files.verify(CONNECTOR, &[]);
    assert_eq!((code, findings(&report)), (Some(0), vec![]), "{said}{report:#}");
}

#[test]
fn where_it_cannot_look_it_says_so() {
    let kafka = Kafka::shared();
    let filled = Filled::new();
    let (code, _, said) = filled.files.verify(CONNECTOR, &["--from-seq", "9", "--to-seq", "8"]);
    assert_eq!((code, said.trim()), (Some(64), "--from-seq 9 is above --to-seq 8"));

    let files = |bootstrap: &str| WorkerFiles::new(kafka).set("bootstrap.servers", bootstrap);
    let storage = filled.folder.path().to_str().expect("UTF-8").to_owned();
    let rows = [
        (files(kafka.bootstrap()), "", Some(64), "topic"),
        (files(kafka.bootstrap()), "no-such-topic", Some(69), "topic no-such-topic-media is missing"),
        (files("127.0.0.1:1"), "no-such-topic", Some(69), "Kafka cannot be reached at 127.0.0.1:1"),
    ];
    for (files, topic, code, sentence) in rows {
        let files = files.set("offset.storage.topic", &format!("{}{OFFSETS}", filled.topic));
        let (found, _, said) = connector(files, topic, &storage).verify(CONNECTOR, &[]);
        assert!(found == code && said.contains(sentence), "{found:?}: {said}");
    }
    let nowhere = filled.folder.path().join("nowhere");
    let files = connector(files(kafka.bootstrap()), &filled.topic, nowhere.to_str().expect("UTF-8"));
    let (code, _, said) = files.verify(CONNECTOR, &[]);
    assert!(code == Some(69) && said.contains("there is no folder") && !nowhere.exists(), "{code:?}: {said}");
}

/// Messages of all types and bad records, media of several sizes, and new messages all the time.
const LIVE: &str = r#"
seed = 11
messages = 2000
live_per_second = 200.0
live_messages = 800
seq_gap_every = 70
seq_gap = 5
conversations = 60
media = { size_bytes = [0, 40000], large_share = 0.02, large_size_bytes = [600000, 1500000] }
bad = [
    { kind = "unknown_key_version", seq = [1, 300] },
    { kind = "short_ciphertext", seq = [2, 305, 306, 600] },
    { kind = "not_json", seq = [307] },
    { kind = "missing_fields", seq = [308] },
]
"#;

#[test]
fn a_real_connector_is_clean_while_it_runs_and_after() {
    let kafka = Kafka::shared();
    let s3 = S3::start("media");
    let fault = "[[fault]]\nfunction = \"GetMediaData\"\ncall = 20\ncode = 10003\ntimes = 9";
    let corp = Corp::new(LIVE, fault);
    let endpoint = s3.endpoint();
    let more = [
        ("wecom.page.limit", "50"),
        ("storage.type", "s3"),
        ("storage.bucket", "media"),
        ("storage.endpoint", endpoint.as_str()),
        ("storage.region", "us-east-1"),
        ("storage.access.key.id", S3::ACCESS_KEY),
        ("storage.secret.access.key", S3::SECRET_KEY),
    ];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    let look = |files: &WorkerFiles| {
        let (code, report, said) = files.verify(CONNECTOR, &[]);
        assert_eq!((code, findings(&report)), (Some(0), vec![]), "{said}{report:#}");
        report
    };
    for seq in [500.0, 1200.0, 2000.0] {
        worker.wait_metric("wecom_connector_last_committed_seq", &[], seq);
        let report = look(worker.files());
        assert!(report["sequence"]["last_seq"].as_f64().is_some_and(|last| last >= seq), "{report:#}");
    }
    // In the middle of whatever it did.
    worker.kill();
    let report = look(worker.files());
    assert_eq!(report["sequence"]["records_after_snapshot"], 0);
    worker.start_again();
    let report = wait_for("everything to be there", harness::PATIENCE, || {
        let said = std::fs::read_to_string(corp.expected()).expect("the list").lines().count();
        let report = look(worker.files());
        let is_all = report["sequence"]["records"] == said && report["counts"]["media"]["open"].is_null();
        is_all.then_some(report)
    });
    assert_eq!(report["sequence"]["complete"], true);
    for kind in ["unknown_key_version", "sdk_crash", "not_json", "malformed"] {
        assert!(report["counts"]["dead letters"][kind].as_u64() > Some(0), "{report:#}");
    }
    let stored = &report["counts"]["media references"]["stored"];
    assert!(stored.as_u64() > Some(100) && report["promises"]["objects"]["checked"] == *stored, "{report:#}");
}
