//! The main job, from the archive to the topics and to storage, with the real binary on a stock broker. What arrived is judged
//! by the independent reader, which knows nothing of the connector's code.

#[path = "common/harness.rs"]
mod harness;

use rdkafka::message::Message as _;
use serde_json::Value;

use harness::{
    Corp, Kafka, PATIENCE, S3, SASL_PASSWORD, SASL_USER, Worker, WorkerFiles, check_schemas, header, read_committed,
    unique, wait_until,
};

const CONNECTOR: &str = "archive";

/// Messages of all types and oddities, media of several sizes, two versions of the key, bad records of every kind: first, middle
/// and last of a page, and two that kill the host in a row.
const EVERYTHING: &str = r#"
seed = 7
messages = 3000
history_hours = 20.0
seq_gap_every = 700
seq_gap = 5
conversations = 60
key = [{ version = 1 }, { version = 3, from_seq = 1200 }]
media = { size_bytes = [0, 40000], large_share = 0.02, large_size_bytes = [600000, 1500000] }
pinned = [{ seq = 40, msgtype = "image", size_bytes = 30000 }]
bad = [
    { kind = "unknown_key_version", seq = [1, 300] },
    { kind = "bad_base64", seq = [302] },
    { kind = "wrong_key", seq = [303] },
    { kind = "garbage_ciphertext", seq = [304] },
    { kind = "short_ciphertext", seq = [2, 305, 306, 600] },
    { kind = "not_json", seq = [307] },
    { kind = "missing_fields", seq = [308] },
]
"#;

/// Faults that pass, of pulling, of decrypting and of media.
const FAULTS: &str = r#"
[[fault]]
function = "GetChatData"
call = 2
code = 10001
stdout = "curl: (60) secret={secret}"

[[fault]]
function = "GetChatData"
call = 4
errcode = 40014

[[fault]]
function = "GetChatData"
call = 6
errcode = 301058

[[fault]]
function = "GetChatData"
call = 8
body = "truncated"

[[fault]]
function = "GetChatData"
call = 10
abort = true

[[fault]]
function = "DecryptData"
seq = [1500]
abort = true

# Killed from outside, then lost for once: that is no proof against the message.
[[fault]]
function = "DecryptData"
seq = [1600]
kill = true

[[fault]]
function = "DecryptData"
seq = [1600]
call = 2
abort = true

[[fault]]
function = "GetMediaData"
call = 20
code = 10003
times = 3

# Of a file whose message declares its MD5: what nobody declares, nobody can find out.
[[fault]]
function = "GetMediaData"
seq = [40]
corrupt = true

[[fault]]
function = "GetMediaData"
call = 90
short_chunk_bytes = 1000
"#;

const LAST_SEQ: f64 = 3020.0;

fn wait_committed(worker: &mut Worker, seq: f64) {
    worker.wait_metric("wecom_connector_last_committed_seq", &[], seq);
}

#[test]
fn everything_arrives_once() {
    let kafka = Kafka::shared();
    let corp = Corp::new(EVERYTHING, FAULTS);
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("wecom.page.limit", "300")]).start();
    wait_committed(&mut worker, LAST_SEQ);
    eprintln!("{}", corp.reader(kafka, worker.files(), CONNECTOR, None).check());
    let events = check_schemas(kafka, &corp.topics());
    for schema in ["message", "media-request", "media-reference", "sealed-record"] {
        assert!(events.contains_key(&format!("urn:wecom-connector:{schema}:1")), "{events:?}");
    }
    wait_until("a worker that is healthy", PATIENCE, || worker.get("/health").is_some_and(|(status, _)| status == 200));
    assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
    assert!(!worker.log().contains(harness::SECRET), "the log shows the secret");
    // Of dead letters that are alike one line is written a minute, and how many more there were.
    let lines = |words: &str| worker.log().lines().filter(|line| line.contains(words)).count();
    assert_eq!(lines(" dead letter: there is no private key of version"), 2, "{}", worker.log());
    assert_eq!(lines("repeated 1 times within 60 s: dead letter: there is no private key of version"), 1);

    // A start with nothing new publishes nothing.
    worker.start_again();
    worker.wait_ready();
    wait_committed(&mut worker, LAST_SEQ);
    corp.reader(kafka, worker.files(), CONNECTOR, None).check();
}

#[test]
fn a_host_whose_library_hangs_at_its_start_ends_with_its_worker() {
    let hang = "[[fault]]\nname = \"init\"\nfunction = \"Init\"\nhang = true\ntimes = \"always\"";
    let corp = Corp::new("messages = 3", hang);
    let mut worker = corp.connect(WorkerFiles::new(Kafka::shared()), CONNECTOR, &[]).worker();
    worker.start_again();
    wait_until("the library to hang", PATIENCE, || corp.strikes("init") > 0 && !worker.sdk_hosts().is_empty());
    worker.kill();
}

#[test]
fn kills_change_nothing() {
    let kafka = Kafka::shared();
    let corp = Corp::new(EVERYTHING, FAULTS);
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("wecom.page.limit", "150")]).start();
    for seq in [1.0, 400.0, 900.0, 1700.0, 2500.0] {
        wait_committed(&mut worker, seq);
        worker.kill_sdk_host();
        wait_committed(&mut worker, seq + 100.0);
        worker.kill();
        worker.start_again();
    }
    wait_committed(&mut worker, LAST_SEQ);
    // In the middle of the media that are left.
    worker.kill();
    worker.start_again();
    worker.kill_sdk_host();
    eprintln!("{}", corp.reader(kafka, worker.files(), CONNECTOR, None).check());
}

/// Files that WeCom does not give out, or gives out wrong. The one that is gone answers as one that may yet come, so it is tried
/// up to its deadline: that of the first message is a minute off.
#[test]
fn media_that_cannot_be_had_end_as_they_deserve() {
    const MESSAGES: f64 = 8.0;
    let kafka = Kafka::shared();
    let oldest_hours = 120.0 - 75.0 / 3600.0;
    let history_hours = oldest_hours * MESSAGES / (MESSAGES - 1.0);
    let odd = ["gone", "undecryptable", "bad_sdkfileid", "wrong_md5", "wrong_size", "expired", "empty_md5"];
    let odd: Vec<String> =
        (1..).zip(odd).map(|(seq, kind)| format!("{{ kind = \"{kind}\", seq = [{seq}] }}")).collect();
    let corp = Corp::new(
        &format!(
            "messages = {MESSAGES}\nhistory_hours = {history_hours}\nwindow_hours = 130.0\nmix = {{ image = 1 }}\nodd = [{}]",
            odd.join(", ")
        ),
        "",
    );
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[]).start();
    wait_committed(&mut worker, MESSAGES);
    worker.wait_metric("wecom_connector_media_total", &[("status", "expired")], 2.0);
    eprintln!("{}", corp.reader(kafka, worker.files(), CONNECTOR, None).check());
    check_schemas(kafka, &corp.topics());
}

#[test]
fn media_go_to_an_s3_server_through_kills_of_it() {
    let kafka = Kafka::shared();
    let mut s3 = S3::start("media");
    let corp = Corp::new(EVERYTHING, FAULTS);
    let endpoint = s3.endpoint();
    let storage = [
        ("storage.type", "s3"),
        ("storage.bucket", "media"),
        ("storage.endpoint", endpoint.as_str()),
        ("storage.region", "us-east-1"),
        ("storage.access.key.id", S3::ACCESS_KEY),
        ("storage.secret.access.key", S3::SECRET_KEY),
        ("storage.prefix", "chat"),
    ];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &storage).start();
    worker.wait_metric("wecom_connector_media_total", &[("status", "stored")], 20.0);
    s3.kill();
    wait_until("a status that tells of the storage", PATIENCE, || {
        worker.get("/connectors/archive/status").is_some_and(|(_, status)| status.contains("media wait"))
    });
    s3.start_again();
    worker.kill();
    worker.start_again();
    eprintln!("{}", corp.reader(kafka, worker.files(), CONNECTOR, Some(&s3)).check());
    assert!(!worker.log().contains(S3::SECRET_KEY), "the log shows the secret");
}

#[test]
fn kafka_asks_for_a_password_over_tls() {
    let kafka = Kafka::start_secured();
    let secured = kafka.secured();
    let corp = Corp::new("messages = 200", "");
    for (protocol, mechanism, bootstrap) in
        [("SASL_PLAINTEXT", "PLAIN", &secured.sasl_plaintext), ("SASL_SSL", "SCRAM-SHA-512", &secured.sasl_ssl)]
    {
        let files = |password: &str| {
            let files = WorkerFiles::new(&kafka)
                .set("bootstrap.servers", bootstrap)
                .set("security.protocol", protocol)
                .set("sasl.mechanism", mechanism)
                .set("sasl.username", SASL_USER)
                .set("sasl.password", password)
                .set("ssl.ca.location", secured.ca.to_str().expect("a path in UTF-8"));
            corp.connect(files, &unique(CONNECTOR), &[("topic", &unique("messages")), ("media.enable", "false")])
        };
        let mut worker = files(SASL_PASSWORD).start();
        worker.wait_metric("wecom_connector_last_committed_seq", &[], 200.0);
        assert_eq!(worker.terminate().code(), Some(0));
        assert!(!worker.log().contains(SASL_PASSWORD), "the log shows the password");

        let mut worker = files("wrong").start();
        let refused = || worker.log().contains("does not let this worker in");
        wait_until("a log line that says that the password is refused", PATIENCE, refused);
        assert_ne!(worker.get("/readyz").expect("an answer").0, 200);
        worker.kill();
    }
}

#[test]
fn a_second_worker_takes_over_and_the_first_says_so() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 500\nlive_per_second = 50.0\nlive_messages = 500", "");
    let connect = |files: WorkerFiles| corp.connect(files, CONNECTOR, &[("wecom.page.limit", "50")]);
    let mut first = connect(WorkerFiles::new(kafka)).start();
    wait_committed(&mut first, 500.0);
    let same = |key: &str| first.files().get(key).to_owned();
    let second = WorkerFiles::new(kafka)
        .set("group.id", &same("group.id"))
        .set("offset.storage.topic", &same("offset.storage.topic"));
    let mut second = connect(second).start();
    let status = first.process().wait(PATIENCE);
    assert_eq!(status.code(), Some(77), "{}", first.log());
    assert!(first.log().contains("another worker runs connector"), "{}", first.log());
    wait_committed(&mut second, 1000.0);
    eprintln!("{}", corp.reader(kafka, second.files(), CONNECTOR, None).check());
}

#[test]
fn a_bad_record_stops_where_none_is_tolerated() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 300\nbad = [{ kind = \"garbage_ciphertext\", seq = [250] }]", "");
    let more = [("errors.tolerance", "none"), ("wecom.page.limit", "100")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    let status = worker.process().wait(PATIENCE);
    assert_eq!(status.code(), Some(65), "{}", worker.log());
    assert!(worker.log().contains("seq 250 is bad"), "{}", worker.log());

    // Nothing before it is lost, nothing after it has passed: told to tolerate, it goes on with that record.
    let mut worker = worker.start_changed(|files| files.connector(CONNECTOR, &[("errors.tolerance", "all")]));
    wait_committed(&mut worker, 300.0);
    corp.reader(kafka, worker.files(), CONNECTOR, None).check();
}

/// What the status of the connector as a whole says beside its state; nothing where all is well.
fn connector_trace(worker: &Worker) -> String {
    let (_, status) = worker.get("/connectors/archive/status").expect("an answer");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["connector"]["trace"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn falling_behind_is_told_before_it_is_a_loss() {
    let kafka = Kafka::shared();
    let trouble = "[[fault]]\nfunction = \"GetChatData\"\ncode = 10001\ntimes = 8";
    let corp = Corp::new("messages = 100\nmix = { text = 1 }", trouble);
    let more = [("media.enable", "false"), ("wecom.undelivered.age.warning.ms", "1500")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    let warns = |worker: &Worker| connector_trace(worker).contains("not yet delivered");
    worker.wait_ready();
    wait_until("a status that warns", PATIENCE, || warns(&worker));
    wait_committed(&mut worker, 100.0);
    wait_until("a status that has taken it back", PATIENCE, || !warns(&worker));
    assert!(worker.log().contains("has caught up"), "{}", worker.log());
}

#[test]
fn a_task_that_runs_without_progress_is_found() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 100\nmix = { text = 1 }", "");
    let files = WorkerFiles::new(kafka).set("task.progress.timeout.ms", "2000");
    let mut worker = corp.connect(files, CONNECTOR, &[("media.enable", "false")]).start();
    wait_committed(&mut worker, 100.0);
    corp.change(
        "messages = 100\nmix = { text = 1 }",
        "[[fault]]\nfunction = \"GetChatData\"\nhang = true\ntimes = \"always\"",
    );
    worker.kill_sdk_host();
    wait_until("a status that says so", PATIENCE, || connector_trace(&worker).contains("task 0 has done nothing for"));
    assert!(worker.log().contains("RUNNING without progress: task 0"), "{}", worker.log());
    let (code, health) = worker.get("/health").expect("an answer");
    assert!(code == 503 && health.contains("no progress"), "{code} {health}");
    corp.change("messages = 100\nmix = { text = 1 }", "");
    worker.kill_sdk_host();
    wait_until("a status that has taken it back", PATIENCE, || !connector_trace(&worker).contains("has done nothing"));
    assert!(worker.log().contains("makes progress again"), "{}", worker.log());
}

#[test]
fn what_was_pulled_before_a_refusal_is_published() {
    let kafka = Kafka::shared();
    // The licence ends: what was pulled until then cannot be pulled again before somebody has paid.
    let refusal = "[[fault]]\nfunction = \"GetChatData\"\ncall = 5\nerrcode = 301052\ntimes = \"always\"";
    let corp = Corp::new("messages = 1000", refusal);
    let more = [("media.enable", "false"), ("wecom.page.limit", "100")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    let failed = [("task", "0"), ("state", "FAILED")];
    worker.wait_metric("wecom_connector_task_state", &failed, 1.0);
    let (_, status) = worker.get("/connectors/archive/status").expect("an answer");
    assert!(status.contains("301052"), "{status}");
    assert_eq!(worker.metric("wecom_connector_last_committed_seq", &[]), Some(400.0));
    assert_eq!(worker.metric("wecom_connector_messages_published_total", &[]), Some(400.0));
}

#[test]
fn a_key_that_is_added_is_used_without_a_restart() {
    let kafka = Kafka::shared();
    let corp = Corp::new(
        "messages = 50\nlive_per_second = 5.0\nlive_messages = 100000\nkey = [{ version = 1 }, { version = 2, from_seq = 60 }]",
        "",
    );
    let key = corp.keys().join("2.pem");
    let aside = corp.keys().join("2.later");
    std::fs::rename(&key, &aside).expect("the key of version 2");
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &[("media.enable", "false")]).start();
    worker.wait_metric("wecom_connector_dead_letters_total", &[("reason", "unknown_key_version")], 1.0);
    std::fs::rename(&aside, &key).expect("the key of version 2");
    let published = worker.metric("wecom_connector_messages_published_total", &[]).unwrap_or_default();
    worker.wait_metric("wecom_connector_messages_published_total", &[], published + 5.0);
}

#[test]
fn several_connectors_run_in_one_worker() {
    let kafka = Kafka::shared();
    let scenario =
        |id: &str| format!("[[corp]]\nid = \"{id}\"\nsecret = \"{}\"\nmessages = 400\nseed = 3", harness::SECRET);
    let other = unique("wwother");
    let corp = Corp::new("messages = 400", &scenario(&other));
    let keys = |id: &str| corp.keys().join(id).to_str().expect("UTF-8").to_owned();
    let files = corp.connect(WorkerFiles::new(kafka), "one", &[("wecom.private.keys.dir", &keys(&corp.id))]);
    let topic = format!("{other}-messages");
    let storage = corp.storage().join("two");
    let keys = keys(&other);
    let more = [
        ("wecom.corp.id", other.as_str()),
        ("wecom.private.keys.dir", &keys),
        ("topic", &topic),
        ("storage.path", storage.to_str().expect("UTF-8")),
    ];
    let files = corp.connect(files, "two", &more);
    let mut worker = files.start();
    for connector in ["one", "two"] {
        worker.wait_metric("wecom_connector_last_committed_seq", &[("connector", connector)], 400.0);
    }
    corp.reader(kafka, worker.files(), "one", None).check();
    corp.reader(kafka, worker.files(), "two", None).option("--corp", &other).option("--topic", &topic).check();
}

#[test]
fn what_does_not_fit_into_kafka_is_kept_in_storage() {
    let kafka = Kafka::shared();
    let odd = "odd = [{ kind = \"long_tolist\", seq = [5] }]\nbad = [{ kind = \"short_ciphertext\", seq = [7] }]";
    let corp = Corp::new(&format!("messages = 20\nmix = {{ text = 1 }}\n{odd}"), "");
    let more = [("topic.creation.default.max.message.bytes", "20000"), ("topic.creation.default.partitions", "1")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    wait_committed(&mut worker, 20.0);
    check_schemas(kafka, &corp.topics());

    assert_eq!(read_committed(kafka, &corp.topic()).len(), 18);
    let letters = read_committed(kafka, &(corp.topic() + "-dead-letters"));
    let seqs: Vec<_> =
        letters.iter().map(|letter| (header(letter, "wecom.seq"), header(letter, "wecom.reason"))).collect();
    assert_eq!(seqs, [(Some("5"), Some("too_large")), (Some("7"), Some("sdk_crash"))]);
    let letter: Value = serde_json::from_slice(letters[0].payload().expect("a value")).expect("JSON");
    let path = letter["uri"].as_str().and_then(|uri| uri.strip_prefix("file://")).expect("a file");
    let event: Value = serde_json::from_slice(&std::fs::read(path).expect("the event")).expect("JSON");
    assert_eq!(event["seq"], 5);
    assert!(event["to"].as_array().is_some_and(|to| to.len() > 3000), "{path}");
}

#[test]
fn a_second_signal_leaves_at_once() {
    let kafka = Kafka::shared();
    // A pull that hangs for ever cannot be finished; one signal gives it ten seconds, two none.
    let corp = Corp::new(
        "messages = 500",
        "[[fault]]\nfunction = \"DecryptData\"\nseq = [250]\nhang = true\ntimes = \"always\"",
    );
    let more = [("wecom.page.limit", "100")];
    let mut worker = corp.connect(WorkerFiles::new(kafka), CONNECTOR, &more).start();
    wait_committed(&mut worker, 200.0);
    worker.process().signal(rustix::process::Signal::TERM);
    wait_until("a log line that it is leaving", PATIENCE, || worker.log().contains("leaving"));
    worker.process().signal(rustix::process::Signal::TERM);
    assert_eq!(worker.process().wait(PATIENCE).code(), Some(75), "{}", worker.log());
}
