//! Dead letters come back: listed, shown and replayed by the real binary, on a stock broker, through kills.

#[path = "common/harness.rs"]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;

use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, Message as _, OwnedHeaders, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rustix::process::Signal;
use serde_json::Value;

use harness::{
    Corp, Kafka, PATIENCE, Process, Worker, WorkerFiles, check_schemas, header, read_committed, wait_for, wait_until,
};

const CONNECTOR: &str = "archive";

/// Two versions of the key; the second one comes too late. A few records that no key can open.
const LATE_KEY: &str = r#"
seed = 11
messages = 2500
history_hours = 20.0
seq_gap_every = 400
seq_gap = 3
conversations = 40
key = [{ version = 1 }, { version = 2, from_seq = 101 }]
media = { size_bytes = [0, 20000] }
bad = [
    { kind = "unknown_key_version", seq = [5] },
    { kind = "wrong_key", seq = [303] },
    { kind = "garbage_ciphertext", seq = [700] },
    { kind = "short_ciphertext", seq = [900] },
    { kind = "missing_fields", seq = [1000] },
]
"#;

/// Where a replay is killed: see `src/crash_point.rs`. A transaction of it has 300 letters and more records than that. At the most
/// seven of eight transactions come through before the kills, so that something is left for the last replay.
const REPLAY_POINTS: [&str; 15] = [
    "init_called:1",
    "init_answered:1",
    "begin_called:1",
    "begin_answered:1",
    "send_called:1",
    "send_answered:150",
    // What was handed over before gets to the broker.
    "send_answered:300 wait_us=50000",
    "commit_called:1 wait_us=50000",
    // In the middle of what comes next.
    "commit_called:1 after_us=700",
    "commit_called:1 after_us=3000",
    "commit_answered:1",
    "begin_called:2",
    "commit_called:2",
    "send_called:1 after_us=2000",
    "commit_answered:1 after_us=500",
];

/// What a run of a command said.
struct Said {
    code: Option<i32>,
    out: String,
    error: String,
}

impl Said {
    fn of(files: &WorkerFiles, command: &str, options: &[&str]) -> Said {
        let (code, out, error) = files.run(&["dlq", command], CONNECTOR, options);
        Said { code, out, error }
    }

    /// Its lines of JSON; the last one is the summary.
    fn json(&self) -> (Vec<Value>, Value) {
        let mut lines: Vec<Value> =
            self.out.lines().map(|line| serde_json::from_str(line).expect("JSON in each line")).collect();
        let last = lines.pop().unwrap_or_else(|| panic!("no summary: {}", self.error));
        (lines, last["summary"].clone())
    }

    fn check(self, code: i32, parts: &[&str]) -> Said {
        let text = format!("{}{}", self.out, self.error);
        assert_eq!(self.code, Some(code), "{text}");
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in:\n{text}");
        }
        self
    }
}

fn dlq(worker: &Worker, command: &str, options: &[&str]) -> Said {
    Said::of(worker.files(), command, options)
}

fn seq(message: &OwnedMessage) -> u64 {
    header(message, "ce_id").and_then(|id| id.parse().ok()).expect("a seq")
}

/// The messages of a topic by seq; none may be there twice.
fn messages(kafka: &Kafka, topic: &str) -> BTreeMap<u64, OwnedMessage> {
    let mut messages = BTreeMap::new();
    for message in read_committed(kafka, topic) {
        let seq = seq(&message);
        assert!(messages.insert(seq, message).is_none(), "seq {seq} is in {topic} twice");
    }
    messages
}

fn event(message: &OwnedMessage) -> Value {
    serde_json::from_slice(message.payload().expect("a value")).expect("JSON")
}

/// A corp's worker whose key of version 2 is missing.
fn worker_without_key(kafka: &Kafka, corp: &Corp, more: &[(&str, &str)]) -> Worker {
    let key = corp.keys().join("2.pem");
    std::fs::rename(&key, corp.keys().join("2.later")).expect("the key of version 2");
    corp.connect(WorkerFiles::new(kafka), CONNECTOR, more).start()
}

fn add_key(corp: &Corp) {
    std::fs::rename(corp.keys().join("2.later"), corp.keys().join("2.pem")).expect("the key of version 2");
}

#[test]
fn a_late_key_brings_every_message_once_through_kills() {
    let kafka = Kafka::shared();
    let corp = Corp::new(LATE_KEY, "");
    // A second connector has all keys from the beginning: what it publishes is what has to come.
    let all_keys = corp.keys().with_file_name("all-keys");
    std::fs::create_dir(&all_keys).expect("a folder");
    for key in ["1.pem", "2.pem"] {
        std::fs::copy(corp.keys().join(key), all_keys.join(key)).expect("a key");
    }
    let whole = format!("{}-whole", corp.id);
    let mut worker = worker_without_key(kafka, &corp, &[]);
    let whole_settings = [
        ("topic", whole.as_str()),
        ("wecom.private.keys.dir", all_keys.to_str().expect("UTF-8")),
        ("media.enable", "false"),
    ];
    worker.kill();
    let mut worker = worker.start_changed(|files| corp.connect(files, "whole", &whole_settings));
    let last_seq = 2500.0 + 6.0 * 3.0;
    for connector in [CONNECTOR, "whole"] {
        worker.wait_metric("wecom_connector_last_committed_seq", &[("connector", connector)], last_seq);
    }
    let expected = messages(kafka, &whole);
    let before = messages(kafka, &corp.topic());
    assert!(expected.len() == 2495 && before.len() == 99, "{} {}", expected.len(), before.len());

    // Listed and shown.
    let (listed, summary) = dlq(&worker, "list", &["--json"]).check(0, &[]).json();
    assert_eq!((summary["dead_letters"].as_u64(), summary["replayed"].as_u64()), (Some(2401), Some(0)), "{summary}");
    assert_eq!(listed.len(), 2401);
    let in_topic = read_committed(kafka, &(corp.topic() + "-dead-letters"));
    let letters: BTreeMap<String, &OwnedMessage> = in_topic
        .iter()
        .map(|letter| (format!("{}-{}@{}", letter.topic(), letter.partition(), letter.offset()), letter))
        .collect();
    for line in &listed {
        let letter = letters[line["place"].as_str().expect("a place")];
        assert_eq!(line["seq"].as_u64(), header(letter, "wecom.seq").and_then(|seq| seq.parse().ok()), "{line}");
        assert_eq!(line["reason"].as_str(), header(letter, "wecom.reason"), "{line}");
    }
    dlq(&worker, "list", &["--seq", "1000"]).check(0, &["SEQ", "malformed", "1 dead letters of connector archive, 0"]);
    dlq(&worker, "list", &["--key-version", "7"]).check(0, &["0 dead letters"]);
    let place = listed[3]["place"].as_str().expect("a place");
    let shown = dlq(&worker, "show", &["--at", place])
        .check(0, &["missing; there are [1]", "wecom.reason", "encrypt_chat_msg"]);
    let sealed = event(letters[place])["encrypt_chat_msg"].as_str().expect("a ciphertext").to_owned();
    assert!(!shown.out.contains(&sealed), "{}", shown.out);
    dlq(&worker, "show", &["--at", place, "--sealed"]).check(0, &[&sealed]);

    // Without the key nothing comes of it, and it is said which one is missing.
    dlq(&worker, "replay", &["--all"])
        .check(65, &["there is no private key of version 2, only of [1]", "0 replayed, 2401 stay"]);
    add_key(&corp);
    let (rehearsed, summary) = dlq(&worker, "replay", &["--all", "--dry-run", "--json"]).check(65, &[]).json();
    assert_eq!((summary["would_be_replayed"].as_u64(), summary["stay"].as_u64()), (Some(2396), Some(5)), "{summary}");
    assert_eq!(rehearsed.len(), 2401);
    assert_eq!(messages(kafka, &corp.topic()).len(), 99);
    let (_, summary) = dlq(&worker, "list", &["--json"]).json();
    assert_eq!(summary["replayed"], 0, "a rehearsal has replayed something");

    // A part of them, then all, killed at every point of a transaction: before, in the middle and after.
    dlq(&worker, "replay", &["--seq", "400", "--seq", "500"]).check(0, &["2 replayed, 0 stay"]);
    for point in REPLAY_POINTS {
        let output = worker.files().folder().join("replay.out");
        let mut command = worker.files().command(&["dlq", "replay"], CONNECTOR, &["--all"]);
        command.env("WECOM_CONNECTOR_CRASH_POINT", point);
        let status = Process::spawn("the replay", &mut command, worker.files().folder(), &output).wait(PATIENCE);
        assert_eq!(status.signal(), Some(9), "the replay was to be killed at {point}, and ended otherwise: {status}");
    }
    let (done, summary) = dlq(&worker, "replay", &["--all", "--json"]).check(65, &[]).json();
    eprintln!("the last replay: {summary}");
    let stay: BTreeSet<(u64, &str)> = done
        .iter()
        .filter(|line| line["outcome"] == "stays")
        .map(|line| (line["seq"].as_u64().expect("a seq"), line["reason"].as_str().expect("a reason")))
        .collect();
    let left = [(5, "unknown_key_version"), (303, "rsa"), (700, "decrypt"), (900, "sdk_crash"), (1000, "malformed")];
    assert_eq!(stay, BTreeSet::from(left));

    // Each is there once, byte for byte, and says where it came from.
    let after = messages(kafka, &corp.topic());
    assert!(after.keys().eq(expected.keys()), "{} messages of {}", after.len(), expected.len());
    for (seq, message) in &after {
        assert_eq!(message.payload(), expected[seq].payload(), "seq {seq}");
        assert_eq!((message.key(), message.partition()), (expected[seq].key(), expected[seq].partition()), "seq {seq}");
        match header(message, "wecom.replayed_from") {
            Some(place) => {
                assert_eq!(header(letters[place], "wecom.seq"), Some(seq.to_string().as_str()));
                assert_eq!(header(message, "wecom.previous_seq"), None, "seq {seq}");
            }
            None => assert!(before.contains_key(seq), "seq {seq} does not say where it came from"),
        }
    }
    check_schemas(kafka, &corp.topics());

    // Made again, it publishes nothing.
    let again = dlq(&worker, "replay", &["--all"]).check(65, &["0 replayed, 5 stay", "2396 had been replayed before"]);
    assert!(again.out.lines().count() == 6, "{}", again.out);
    dlq(&worker, "replay", &["--seq", "400"]).check(0, &["0 replayed, 0 stay dead letters, 1 had been"]);
    assert_eq!(read_committed(kafka, &corp.topic()).len(), after.len());
    let (left, _) = dlq(&worker, "list", &["--not-replayed", "--json"]).json();
    assert_eq!(left.len(), 5, "{left:?}");

    // The files of every message are asked for once, and come.
    let wanted: BTreeSet<String> = after
        .values()
        .flat_map(|message| event(message)["media"].as_array().expect("media").clone())
        .map(|media| media["media_id"].as_str().expect("an id").to_owned())
        .collect();
    let references = wait_for("a reference event for each file", PATIENCE, || {
        let references = read_committed(kafka, &(corp.topic() + "-media"));
        (references.len() >= wanted.len()).then_some(references)
    });
    let brought: BTreeSet<String> =
        references.iter().map(|record| event(record)["media_id"].as_str().expect("an id").to_owned()).collect();
    assert_eq!((references.len(), &brought), (wanted.len(), &wanted), "one reference event for each file");
    let (code, report, said) = worker.files().verify(CONNECTOR, &[]);
    assert_eq!(code, Some(0), "{report:#} {said}");
    assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
}

/// Puts a record into a topic, as somebody outside might.
fn produce(kafka: &Kafka, topic: &str, key: &[u8], value: &[u8], headers: OwnedHeaders, timestamp_ms: i64) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("a producer");
    let record = BaseRecord::to(topic).key(key).payload(value).headers(headers).timestamp(timestamp_ms);
    producer.send(record).map_err(|(error, _)| error).expect("room in the queue");
    producer.flush(PATIENCE).expect("an answer");
}

/// As [`produce`]: a dead letter once more, with another timestamp and further headers.
fn put_again(kafka: &Kafka, letter: &OwnedMessage, timestamp_ms: i64, more: &[(&str, &str)]) {
    let mut headers = letter.headers().expect("headers").clone();
    for (key, value) in more {
        headers = headers.insert(Header { key, value: Some(*value) });
    }
    produce(
        kafka,
        letter.topic(),
        letter.key().expect("a key"),
        letter.payload().expect("a value"),
        headers,
        timestamp_ms,
    );
}

#[test]
fn months_later_files_are_expired_and_the_epoch_stays() {
    const DAY_MS: i64 = 24 * 60 * 60 * 1000;
    let kafka = Kafka::shared();
    // Files fail for a reason that passes: before their deadline they would be tried again and again. That follows from the pull
    // where the message has no time; a message of now would tell that the pull's clock was wrong.
    let fault = "[[fault]]\nfunction = \"GetMediaData\"\ncode = 10003\ntimes = \"always\"";
    let key = "key = [{ version = 1 }, { version = 2, from_seq = 2 }]";
    let corp = Corp::new(
        &format!("messages = 2\nmix = {{ image = 1 }}\nodd = [{{ kind = \"msgtime_zero\", seq = [2] }}]\n{key}"),
        fault,
    );
    let more = [("media.retry.delay.ms", "100"), ("topic.creation.default.retention.ms", "-1")];
    let mut worker = worker_without_key(kafka, &corp, &more);
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 2.0);
    let topic = corp.topic() + "-dead-letters";
    let letters = read_committed(kafka, &topic);
    let now_ms = letters[0].timestamp().to_millis().expect("a timestamp");
    put_again(kafka, &letters[0], now_ms - 90 * DAY_MS, &[("wecom.epoch", "3"), ("wecom.republished", "true")]);
    add_key(&corp);
    let letters = read_committed(kafka, &topic);
    let old = letters.iter().find(|letter| header(letter, "wecom.epoch").is_some()).expect("the old one");
    let place = format!("{topic}-{}@{}", old.partition(), old.offset());

    dlq(&worker, "replay", &["--all"]).check(0, &["2 replayed, 0 stay", &place]);
    let replayed = read_committed(kafka, &corp.topic());
    let message = replayed.iter().find(|it| header(it, "wecom.replayed_from") == Some(&place)).expect("the old one");
    assert_eq!((header(message, "wecom.epoch"), header(message, "wecom.republished")), (Some("3"), Some("true")));
    assert!(message.timestamp().to_millis() > Some(now_ms - 6 * DAY_MS), "retention would eat it at once");
    let reference = wait_for("the end of the old request", PATIENCE, || {
        read_committed(kafka, &(corp.topic() + "-media")).into_iter().next()
    });
    let reference = event(&reference);
    assert_eq!((&reference["status"], &reference["seq"]), (&"expired".into(), &2.into()), "{reference}");
    check_schemas(kafka, &corp.topics());
}

#[test]
fn what_was_too_large_comes_when_the_topic_takes_it() {
    let kafka = Kafka::shared();
    let odd = "odd = [{ kind = \"long_tolist\", seq = [5, 9] }]";
    let corp = Corp::new(&format!("messages = 20\nmix = {{ image = 1 }}\n{odd}"), "");
    let more = [("topic.creation.default.max.message.bytes", "20000"), ("topic.creation.default.partitions", "1")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 20.0);
    let requests = corp.topic() + "-media-requests";
    produce(kafka, &requests, b"k", b"not a request", OwnedHeaders::new(), 0);
    worker.wait_metric("wecom_connector_dead_letters_total", &[("reason", "media_request")], 1.0);
    let requested = read_committed(kafka, &requests).len();

    dlq(&worker, "replay", &["--all"])
        .check(65, &["0 replayed, 3 stay", "raise its max.message.bytes", "and no message"]);
    kafka.tool(
        "kafka.admin.ConfigCommand",
        &[
            "--alter",
            "--entity-type",
            "topics",
            "--entity-name",
            &corp.topic(),
            "--add-config",
            "max.message.bytes=2000000",
        ],
    );
    let kept = corp.storage().join(&corp.id).join("oversize");
    std::fs::rename(kept.join("9.event.json"), kept.join("9.aside")).expect("the body of seq 9");
    dlq(&worker, "replay", &["--reason", "too_large"])
        .check(65, &["1 replayed, 1 stay", "its body is no longer at file://"]);
    std::fs::write(kept.join("9.event.json"), "{}").expect("a body");
    dlq(&worker, "replay", &["--seq", "9"]).check(65, &["is not what was kept of seq 9"]);
    std::fs::rename(kept.join("9.aside"), kept.join("9.event.json")).expect("the body of seq 9");
    dlq(&worker, "replay", &["--reason", "too_large"]).check(0, &["1 replayed, 0 stay dead letters, 1 had been"]);

    let messages = messages(kafka, &corp.topic());
    assert_eq!(messages.len(), 20);
    for seq in [5, 9] {
        let body = std::fs::read(kept.join(format!("{seq}.event.json"))).expect("the body");
        assert_eq!(messages[&seq].payload(), Some(body.as_slice()));
        assert!(header(&messages[&seq], "wecom.replayed_from").is_some());
    }
    assert_eq!(read_committed(kafka, &requests).len(), requested, "files are asked for once");
    assert_eq!(read_committed(kafka, &corp.topic()).len(), 20);
}

#[test]
fn a_second_replay_fences_the_first() {
    let kafka = Kafka::shared();
    // The first replay hangs in its second transaction, so that it can be stopped there.
    let fault = "[[fault]]\nfunction = \"DecryptData\"\nseq = [500]\nhang = true";
    let corp = Corp::new(
        "messages = 1000\nmix = { text = 1 }\nodd = []\nkey = [{ version = 1 }, { version = 2, from_seq = 2 }]",
        fault,
    );
    let mut worker = worker_without_key(kafka, &corp, &[("media.enable", "false")]);
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 1000.0);
    assert_eq!(worker.terminate().code(), Some(0));
    add_key(&corp);
    let output = worker.files().folder().join("first.out");
    let mut first = worker.files().command(&["dlq", "replay"], CONNECTOR, &["--all"]);
    let mut first = Process::spawn("the first replay", &mut first, worker.files().folder(), &output);
    wait_until("the first transaction", PATIENCE, || first.output().contains("replayed"));
    first.signal(Signal::STOP);
    dlq(&worker, "replay", &["--all"]).check(0, &["699 replayed, 0 stay dead letters, 300 had been"]);
    first.signal(Signal::CONT);
    assert_eq!(first.wait(PATIENCE).code(), Some(77), "{}", first.output());
    assert!(first.output().contains("another replay of the dead letters of connector archive"), "{}", first.output());
    assert_eq!(messages(kafka, &corp.topic()).len(), 1000);
}

#[test]
fn bad_input_gets_an_answer_that_helps() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 3\nodd = []\nbad = [{ kind = \"garbage_ciphertext\", seq = [2] }]", "");
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("media.enable", "false")]).start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 3.0);
    let rows: &[(&str, &[&str], i32, &str)] = &[
        ("replay", &[], 64, "--all"),
        ("replay", &["--all", "--seq", "2"], 64, "cannot be used with"),
        ("replay", &["--reason", "nonsense"], 64, "unknown_key_version"),
        ("replay", &["--seq", "77"], 64, "has no dead letter of seq 77 of connector archive; there is"),
        ("replay", &["--seq", "77", "--seq", "2"], 65, "DecryptData returned 10008"),
        ("replay", &["--key-version", "9"], 0, "0 replayed, 0 stay"),
        ("show", &["--seq", "77"], 64, "has no dead letter of seq 77"),
        ("show", &["--at", "9@9"], 64, "has no dead letter at 9@9"),
        ("show", &["--at", "nowhere"], 64, "is no place in a topic"),
    ];
    for (command, options, code, part) in rows {
        dlq(&worker, command, options).check(*code, &[part]);
    }
    assert_eq!(worker.terminate().code(), Some(0));

    let changed = |key: &str, value: &str| {
        let files = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[(key, value)]);
        Said::of(&files, "replay", &["--all"])
    };
    changed("errors.deadletterqueue.topic.name", "none-such").check(64, &["there is no topic none-such at"]);
    changed("wecom.private.keys.dir", "/nonexistent").check(64, &["/nonexistent"]);
    changed("wecom.sdk.library", "/nonexistent.so").check(64, &["nonexistent.so"]);
    // Another corp's dead letters are not this one's.
    changed("wecom.corp.id", "wwother").check(0, &["0 replayed, 0 stay"]);

    // A topic that was deleted and made again is not taken for the one whose dead letters were replayed.
    let offsets = worker.files().get("offset.storage.topic").to_owned();
    let topic = corp.topic() + "-dead-letters";
    let letter = &read_committed(kafka, &topic)[0];
    let now_ms = letter.timestamp().to_millis().expect("a timestamp");
    let key = format!(
        "[\"archive\",{{\"corp_id\":\"{}\",\"dead_letter_topic\":\"{topic}\",\"partition\":{}}}]",
        corp.id,
        letter.partition()
    );
    for (state, part) in [
        (r#"{"replayed":[[0,1000]],"newest_ms":1}"#, "was deleted and made again"),
        (r#"{"seq":1}"#, "somebody else wrote it"),
    ] {
        produce(kafka, &offsets, key.as_bytes(), state.as_bytes(), OwnedHeaders::new(), now_ms);
        for command in ["list", "replay"] {
            let options: &[&str] = if command == "list" { &[] } else { &["--all"] };
            dlq(&worker, command, options).check(64, &[part, &key]);
        }
    }
}
