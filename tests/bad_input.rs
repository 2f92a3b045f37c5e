//! What is wrong is said: with the real binary, for each row what is wrong, how the program ends or what its status says. Every
//! text says what, where, and what to do; nothing panics, and no secret is told.

#[path = "common/harness.rs"]
mod harness;
#[path = "bad_input/kafka.rs"]
mod kafka;
#[path = "bad_input/signals.rs"]
mod signals;

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rsa::pkcs8::{EncodePrivateKey, LineEnding};
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use serde_json::{Value, json};
use wecom_connector::sdk::ffi::FUNCTION_NAMES;

use harness::{
    ASKING_KAFKA, Corp, Kafka, PATIENCE, SASL_PASSWORD, SASL_USER, SECRET, Secured, Worker, WorkerFiles,
    simulator_library, unique, wait_until,
};

/// The exit codes of the README.
const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;
const INTERNAL: i32 = 70;

#[test]
fn what_ends_the_program_says_why() {
    let corp = Corp::new("messages = 1", "");
    let folder = tempfile::tempdir().expect("a folder");
    let keys = Keys::make(folder.path());
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = format!("http://{}", taken.local_addr().expect("its address"));
    let file = text(&keys.write("a file", "1.txt", "no folder"));
    let below = format!("{file}/media");
    let place_of = |file: &Path| text(file.parent().expect("a folder"));
    let place = |name: &str, contents: &str| place_of(&keys.write(name, "private_key_1.pem", contents));
    let missing = text(&folder.path().join("nowhere"));
    let slip = |name: &str, value: &str| {
        format!("${{dir:{}}}", text(&keys.write("slips", name, value)).replace("/slips/", "/slips:"))
    };
    let invisible = slip("invisible", &format!("{SECRET}\u{200b}\n"));
    let quoted = slip("quoted", &format!("\"{SECRET}\"\n"));
    let nameless = place_of(&keys.write("nameless", "private_key_pkcs8.pem", &keys.private));

    // What is wrong: keys of the worker's file or the connector's; how it ends, and what it says.
    let rows: [(&[(&str, &str)], i32, &[&str]); 18] = [
        (
            &[("listeners", &taken), ("task.shutdown.graceful.timeout.ms", "0")],
            UNAVAILABLE,
            &["is waited for up to 5 s", "`listeners`", "Another process has this port", "exit_code=69"],
        ),
        (&[("wecom.secret", &invisible)], USAGE, &["wecom.secret", "zero width space (U+200B) as character 28"]),
        (&[("wecom.secret", &quoted)], USAGE, &["wecom.secret", "stands in quotes"]),
        (&[("wecom.secret", "abc#def")], USAGE, &["wecom.secret", "as character 4"]),
        (&[("wecom.private.keys.dir", &nameless)], USAGE, &["private_key_pkcs8.pem", "its name has no version"]),
        (&[("poll.interval.ms", "soon")], USAGE, &["poll.interval.ms", "\"soon\""]),
        (&[("wecom.secret", "${file:/nonexistent:key}")], USAGE, &["wecom.secret", "/nonexistent"]),
        (&[("topic", "")], USAGE, &["archive.properties", "topic"]),
        (&[("storage.path", &file)], USAGE, &[&file, "cannot be made or written", "check storage.path"]),
        (&[("storage.path", &below)], USAGE, &[&below, "cannot be made or written", "check storage.path"]),
        (&[("storage.type", "tape")], USAGE, &["storage.type", "tape"]),
        (&[("wecom.private.keys.dir", &missing)], USAGE, &[&missing, "cannot be read", "check the path"]),
        (&[("wecom.private.keys.dir", &file)], USAGE, &[&file, "cannot be read"]),
        (&[("wecom.sdk.library", &file)], USAGE, &[&file, "no ELF file", "set wecom.sdk.library"]),
        (
            &[("bootstrap.servers", "kafka://h:9092")],
            USAGE,
            &["kafka:// is no protocol of Kafka", "write h:9092 alone"],
        ),
        (
            &[("security.protocol", "SSL"), ("ssl.ca.location", &missing)],
            USAGE,
            &["settings of the Kafka clients are refused", "ssl.ca.location", &missing, "No such file"],
        ),
        (
            &[("security.protocol", "SASL_SSL"), ("sasl.mechanism", "PLAIN")],
            USAGE,
            &["settings of the Kafka clients are refused", "sasl.username"],
        ),
        (&[("sasl.mechanism", "AWS_MSK_IAM")], USAGE, &["AWS's Java library alone", "SCRAM-SHA-512"]),
    ];
    for (wrong, code, words) in rows {
        ends(&corp, wrong, code, words);
    }

    let pem = &keys.private;
    let encrypted = pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let short = rsa::PrivateKey::new(&mut getrandom::SysRng, 1024).expect("a key");
    let short = short.to_pkcs8_pem(LineEnding::LF).expect("a key as PEM");
    let body = pem.lines().nth(1).expect("a line of the key");
    let rows: [(&str, &str, &[&str]); 6] = [
        ("encrypted", &encrypted, &["is encrypted", "openssl pkcs8"]),
        ("short", &short, &["has 1024 bits", "keys generate"]),
        ("public", &keys.public, &["is a public key", "give the private key"]),
        ("cut", &pem[..pem.len() / 2], &["is damaged", "copy the file again"]),
        ("empty", "", &["is no PEM file"]),
        ("binary", "\u{0}\u{1}\u{2}", &["is no PEM file", "openssl pkey"]),
    ];
    for (name, contents, words) in rows {
        let place = place(name, contents);
        let file = format!("{place}/private_key_1.pem");
        let words = [words, &[file.as_str()]].concat();
        let said = ends(&corp, &[("wecom.private.keys.dir", &place)], USAGE, &words);
        assert!(!said.contains(body), "the key is told: {said}");
        // The other commands that read keys say the same.
        for command in [vec!["keys", "check", &place], vec!["keys", "check", &file]] {
            says(connector().args(command), USAGE, &words);
        }
    }

    // No thread at all; then as many as are asked for beforehand, and none of those that are needed.
    let threads = std::thread::available_parallelism().map_or(1, usize::from) + 8;
    let rows: [(usize, i32, &[&str]); 2] = [
        (0, UNAVAILABLE, &["no thread can be started: Operation not permitted", "seccomp", "clone3"]),
        (threads, INTERNAL, &["for want of threads", "Operation not permitted"]),
    ];
    let files = corp.connect(WorkerFiles::new(Kafka::shared()), "archive", &[]);
    for (most, code, words) in rows {
        let limit = harness::thread_limit(folder.path(), most, harness::EPERM);
        says(connector().arg("standalone").args(files.write()).envs(limit), code, words);
    }

    let nowhere = folder.path().join("worker.properties");
    let both = [nowhere.as_path(), nowhere.as_path()];
    says(connector().arg("standalone"), USAGE, &["<WORKER>", "Usage: wecom-connector standalone"]);
    says(connector().arg("standalone").args(both), USAGE, &[&text(&nowhere), "there is no such file"]);
    says(connector().arg("sdk-host"), USAGE, &["is started by the worker itself"]);
}

#[test]
fn what_is_wrong_of_a_connector_stands_in_its_status() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 20", "");
    let folder = tempfile::tempdir().expect("a folder");
    let keys = Keys::make(folder.path());
    let at = |name: &str| folder.path().join(name);

    let missing = text(&at("missing.so"));
    let no_library = text(&keys.write("libraries", "text.so", "no library, for all its name says"));
    let lacking = text(&library_without(&at("lacking.so"), "GetMediaData"));
    let foreign = text(&library_for_another_cpu(&at("foreign.so")));
    let loader_path = at("loader path");
    std::fs::create_dir(&loader_path).expect("a folder");
    let unusable = library_for_another_cpu(&loader_path.join("libWeWorkFinanceSdk_C.so"));
    let unusable = text(&unusable);
    let for_cpu = format!("it is for {}, this machine is {}", CPUS.1, CPUS.0);

    // The objects' folder is there, and what should be a folder in it is a file.
    let storage = at("storage");
    std::fs::create_dir(&storage).expect("a folder");
    std::fs::write(storage.join("chat"), "a file").expect("a file");
    let storage = text(&storage);

    let nothing = at("keys that come later");
    std::fs::create_dir(&nothing).expect("a folder");
    let nothing = text(&nothing);

    // Of another pair: every record becomes a dead letter, and the task runs.
    let foreign_keys = text(keys.write("foreign keys", "1.pem", &keys.private).parent().expect("a folder"));

    // A connector's name, what is wrong, whose status tells it, and what it says.
    let library = "wecom.sdk.library";
    type Row<'a> = (&'a str, Vec<(&'a str, &'a str)>, Part, Vec<&'a str>);
    let rows: Vec<Row<'_>> = vec![
        ("keys-later", vec![("wecom.private.keys.dir", &nothing)], CONNECTOR, vec![&nothing, "has no private key"]),
        (
            "library-missing",
            vec![(library, &missing)],
            CONNECTOR,
            vec![&missing, "there is no such file", "set wecom.sdk.library"],
        ),
        (
            "library-text",
            vec![(library, &no_library)],
            CONNECTOR,
            vec![&no_library, "no ELF file", "set wecom.sdk.library"],
        ),
        ("library-folder", vec![(library, &storage)], CONNECTOR, vec![&storage, "directory", "set wecom.sdk.library"]),
        ("library-foreign", vec![(library, &foreign)], CONNECTOR, vec![&foreign, &for_cpu, "set wecom.sdk.library"]),
        (
            "library-lacking",
            vec![(library, &lacking)],
            TASK,
            vec![&lacking, "has no function GetMediaData", "set wecom.sdk.library"],
        ),
        ("library-usual", vec![(library, "")], TASK, vec![&unusable, &for_cpu, "set wecom.sdk.library"]),
        (
            "topic-replicas",
            vec![("topic.creation.default.replication.factor", "3")],
            TASK,
            vec!["topic topic-replicas-", "cannot be made", "replication factor"],
        ),
        (
            "topic-compacted",
            vec![],
            TASK,
            vec!["topic topic-compacted-messages-dead-letters", "cleanup.policy=compact", "set cleanup.policy=delete"],
        ),
        (
            "storage-refuses",
            vec![("storage.path", &storage), ("storage.prefix", "chat")],
            MEDIA_TASK,
            vec!["storage file://", "in each other's place", "check storage.path", &storage],
        ),
        ("offset-malformed", vec![], TASK, vec!["offset of connector offset-malformed", "{\"seq\":N}", "tombstone"]),
    ];

    let mut files = WorkerFiles::new(kafka).environment("LD_LIBRARY_PATH", &text(&loader_path));
    for (name, wrong, _, _) in &rows {
        let topic = format!("{name}-messages");
        files = corp.connect(files, name, &[("topic", &topic), ("poll.interval.ms", "5000")]);
        files = files.connector(name, wrong);
    }
    files = corp.connect(files, "well", &[]);
    let of_another_pair = [("topic", "foreign-messages"), ("wecom.private.keys.dir", foreign_keys.as_str())];
    files = corp.connect(files, "foreign", &of_another_pair);
    let offsets = files.get("offset.storage.topic").to_owned();
    kafka.create_topic_with(&offsets, 1, &[("cleanup.policy", "compact")]);
    kafka.create_topic_with("topic-compacted-messages-dead-letters", 1, &[("cleanup.policy", "compact")]);
    publish(kafka, &offsets, &json!(["offset-malformed", {"corp_id": corp.id}]).to_string(), "{\"seq\":\"7\"}");

    // What can be seen without a start, `validate` says as well.
    let mut validate = connector();
    let words = [&foreign, &for_cpu, &no_library, "no ELF file", &missing, "there is no such file", &nothing];
    says(validate.arg("validate").args(files.write()), USAGE, &words);

    let mut worker = files.start();
    for (name, _, part, words) in &rows {
        wait_told(&mut worker, name, *part, "FAILED", words);
        if *name == "keys-later" {
            // Its tasks count as down. A key that comes later, as a mounted one may, is found by the next attempt, below.
            let failed = [("connector", *name), ("state", "FAILED")];
            assert_eq!(worker.metric("wecom_connector_task_state", &failed), Some(2.0));
            std::fs::copy(corp.keys().join("1.pem"), at("keys that come later").join("1.pem")).expect("the key");
        }
    }
    // Nothing is made before all is looked at that can be.
    let made = kafka.topics();
    for name in ["library-", "topic-compacted-messages-media", "topic-replicas-"] {
        assert!(!made.iter().any(|topic| topic.starts_with(name)), "{name} in {made:?}");
    }
    let words = ["Every record since this start has become a dead letter", "rsa", "keys check --config CONNECTOR"];
    wait_told(&mut worker, "foreign", TASK, "RUNNING", &words);
    let folder = worker.files().folder().to_owned();
    let keys_check = |connector: &str| {
        let mut command = self::connector();
        let file = format!("{connector}.properties");
        command.args(["keys", "check", "--worker", "worker.properties", "--config", &file]).current_dir(&folder);
        command
    };
    says(&mut keys_check("foreign"), USAGE, &["version 1: 0 messages, ", " rsa", "does NOT FIT"]);
    // The others are not held up, and the worker says that not all is well.
    worker.wait_metric("wecom_connector_last_committed_seq", &[("connector", "well")], 20.0);
    assert_eq!(status(&worker, "well", CONNECTOR).0, "RUNNING");
    assert_eq!(worker.get("/health").expect("an answer").0, 503);
    assert_ne!(worker.get("/readyz").expect("an answer").0, 200);
    assert_eq!(worker.get("/livez").expect("an answer").0, 200);
    says(&mut keys_check("well"), 0, &["version 1: 20 messages, 0 dead letters"]);
    an_auditor_looks(&worker);
    worker.wait_metric("wecom_connector_last_committed_seq", &[("connector", "keys-later")], 20.0);
    wait_told(&mut worker, "keys-later", CONNECTOR, "RUNNING", &[]);
    assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
    assert_harmless(&worker.log());
}

#[test]
fn what_is_wrong_of_the_topics_of_all_stands_in_the_status() {
    let kafka = Kafka::shared();
    let corp = Corp::new("messages = 1", "");
    // The cleanup policy of the offset topic, whether missing topics may be made, and what the status says.
    let rows = [
        ("delete", "true", "cleanup.policy=delete; offsets are lost there: set cleanup.policy=compact"),
        ("compact,delete", "true", "cleanup.policy=compact,delete; offsets are lost there"),
        ("compact", "false", " is missing and topic.creation.enable is false; make it"),
    ];
    for (policy, may_create, words) in rows {
        let messages = unique("some-messages");
        let files = corp.connect(WorkerFiles::new(kafka), "archive", &[("topic", &messages)]);
        let files = files.set("topic.creation.enable", may_create);
        let offsets = files.get("offset.storage.topic").to_owned();
        kafka.create_topic_with(&offsets, 1, &[("cleanup.policy", policy)]);
        let mut worker = files.start();
        let topic = if policy == "compact" { messages } else { offsets };
        wait_told(&mut worker, "archive", TASK, "FAILED", &[&topic, words]);
        assert_harmless(&worker.log());
    }
}

#[test]
fn a_broker_that_is_not_there_is_waited_for() {
    let mut kafka = Kafka::start();
    let corp = Corp::new("messages = 20", "");
    kafka.brokers()[0].stop();
    let bootstrap = kafka.bootstrap().to_owned();
    let mut worker = corp.connect(WorkerFiles::new(&kafka), "archive", &[]).start();
    let words = ["Waiting for Kafka: ", bootstrap.as_str(), "Connection refused"];
    wait_told(&mut worker, "archive", TASK, "UNASSIGNED", &words);
    let words = ["Kafka cannot be reached at", bootstrap.as_str(), "Connection refused", "bootstrap.servers"];
    wait_told(&mut worker, "archive", TASK, "FAILED", &words);
    // What failed stays told while it is tried again, with since when.
    let restarting = [&words[..], &["The last failure: ", " since 20"]].concat();
    wait_told(&mut worker, "archive", TASK, "RESTARTING", &restarting);
    let (code, health) = worker.get("/health").expect("an answer");
    assert!(code == 503 && health.contains(" since 20"), "{code} {health}");
    assert_eq!(worker.get("/livez").expect("an answer").0, 200);
    assert_ne!(worker.get("/readyz").expect("an answer").0, 200);
    kafka.brokers()[0].start_again();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 20.0);
    assert_eq!(worker.terminate().code(), Some(0));
    assert_harmless(&worker.log());
}

/// Without the secret, keys and library of WeCom, and without the worker's own secrets, what was published can be
/// looked at.
fn an_auditor_looks(worker: &Worker) {
    let folder = worker.files().folder();
    let change = |from: &str, to: &str, changes: &[(&str, &str)]| {
        let text = std::fs::read_to_string(folder.join(from)).expect("properties");
        let is_kept = |line: &&str| !changes.iter().any(|(key, _)| line.starts_with(&format!("{key}=")));
        let kept = text.lines().filter(is_kept).map(str::to_owned);
        let lines: Vec<String> = kept.chain(changes.iter().map(|(key, value)| format!("{key}={value}"))).collect();
        std::fs::write(folder.join(to), lines.join("\n")).expect("properties");
    };
    let nowhere = "${env:NO_SUCH_VARIABLE_WOMBAT}";
    let of_wecom = [
        ("wecom.secret", nowhere),
        ("wecom.private.keys.dir", nowhere),
        ("wecom.sdk.library", nowhere),
        ("wecom.proxy.password", nowhere),
    ];
    change("well.properties", "auditor.properties", &of_wecom);
    change("well.properties", "no-storage.properties", &[&of_wecom[..], &[("storage.path", nowhere)]].concat());
    change("worker.properties", "auditors-worker.properties", &[("rest.basic.credentials", nowhere)]);
    let rows: [(&[&str], &str, &[&str]); 5] = [
        (&["offsets", "get"], "no-storage.properties", &["seq 20, epoch 0"]),
        (&["offsets", "rewind", "--by=5", "--dry-run"], "no-storage.properties", &["seq 15, epoch 1"]),
        (&["dlq", "list"], "no-storage.properties", &["0 dead letters of connector well"]),
        (&["verify", "--storage=none"], "no-storage.properties", &["well"]),
        (&["verify"], "auditor.properties", &["well"]),
    ];
    for (words, connector, expected) in rows {
        let mut command = self::connector();
        command.args(words).arg("auditors-worker.properties").arg(connector).current_dir(folder);
        says(&mut command, 0, expected);
    }
    // What a command uses is asked for.
    let mut command = connector();
    command.args(["verify", "auditors-worker.properties", "no-storage.properties"]).current_dir(folder);
    says(&mut command, USAGE, &["storage.path", "NO_SUCH_VARIABLE_WOMBAT"]);
}

/// Whose status: the connector's own, or that of a task.
type Part = Option<usize>;
const CONNECTOR: Part = None;
const TASK: Part = Some(0);
const MEDIA_TASK: Part = Some(1);

/// State and trace.
fn status(worker: &Worker, connector: &str, part: Part) -> (String, String) {
    let (_, status) = worker.get(&format!("/connectors/{connector}/status")).unwrap_or_default();
    let status: Value = serde_json::from_str(&status).unwrap_or_default();
    let status = part.map_or(&status["connector"], |task| &status["tasks"][task]);
    let word = |field: &str| status[field].as_str().unwrap_or_default().to_owned();
    (word("state"), word("trace"))
}

fn wait_told(worker: &mut Worker, connector: &str, part: Part, state: &str, words: &[&str]) {
    let mut last = (String::new(), String::new());
    wait_until(&format!("{connector} to be {state} and to say {words:?}"), PATIENCE, || {
        assert!(worker.process().exited().is_none(), "the worker ended");
        let now = status(worker, connector, part);
        if now != last {
            eprintln!("{connector} {part:?}: {now:?}");
            last = now;
        }
        last.0 == state && words.iter().all(|word| last.1.contains(word))
    });
}

/// Starts a worker with these keys in its file or its connector's, waits for its end, and gives what it said.
fn ends(corp: &Corp, wrong: &[(&str, &str)], code: i32, words: &[&str]) -> String {
    let of_worker = ["listeners", "bootstrap.servers", "security.protocol", "ssl.ca.location", "sasl.mechanism"];
    let is_of_worker = |key: &str| of_worker.contains(&key) || key.starts_with("task.");
    let (of_worker, of_connector): (Vec<_>, Vec<_>) = wrong.iter().partition(|(key, _)| is_of_worker(key));
    let files = corp.connect(WorkerFiles::new(Kafka::shared()), "archive", &of_connector);
    let files = of_worker.into_iter().fold(files, |files, (key, value)| files.set(key, value));
    let mut worker = files.start();
    let status = worker.process().wait(PATIENCE);
    assert_eq!(status.code(), Some(code), "{wrong:?}");
    let said = worker.log();
    assert_said(&said, words);
    said
}

/// Runs a command to its end.
fn says(command: &mut Command, code: i32, words: &[&str]) {
    let output = command.stdin(Stdio::null()).output().expect("the connector's binary");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert_eq!(output.status.code(), Some(code), "{command:?}: {said}");
    assert_said(&said, words);
}

fn assert_said(said: &str, words: &[&str]) {
    eprintln!("{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{words:?} are not all in: {said}");
    assert_harmless(said);
}

fn assert_harmless(said: &str) {
    assert!(!said.contains("panicked"), "a panic: {said}");
    assert!(!said.contains(SECRET), "the secret is told: {said}");
}

fn connector() -> Command {
    Command::new(harness::connector())
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A key pair, and a place for files that are none.
struct Keys {
    folder: PathBuf,
    private: String,
    public: String,
}

impl Keys {
    fn make(folder: &Path) -> Keys {
        let good = folder.join("good");
        let made = connector().args(["keys", "generate", "--out"]).arg(&good).output().expect("the connector's binary");
        assert!(made.status.success());
        let read = |name: &str| std::fs::read_to_string(good.join(name)).expect("a key");
        Keys { folder: folder.to_owned(), private: read("private_key_1.pem"), public: read("public_key_1.pem") }
    }

    /// A file in a folder of its own.
    fn write(&self, folder: &str, name: &str, contents: &str) -> PathBuf {
        let folder = self.folder.join(folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join(name), contents).expect("a file");
        folder.join(name)
    }
}

/// This machine's CPU and another one, and what an ELF header calls that.
const CPUS: (&str, &str, u8) =
    if cfg!(target_arch = "x86_64") { ("x86-64", "aarch64", 183) } else { ("aarch64", "x86-64", 62) };

/// The vendor has a library for each CPU: one of them with the other one's mark.
fn library_for_another_cpu(path: &Path) -> PathBuf {
    let mut library = std::fs::read(simulator_library()).expect("the simulator");
    library[18] = CPUS.2;
    std::fs::write(path, library).expect("a file");
    path.to_owned()
}

/// A library that has all functions but one.
fn library_without(path: &Path, function: &str) -> PathBuf {
    let others = FUNCTION_NAMES.iter().filter(|name| **name != function);
    let source = path.with_extension("c");
    std::fs::write(&source, others.map(|name| format!("void {name}(void) {{}}\n")).collect::<String>())
        .expect("a file");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(path).arg(&source).status().expect("cc");
    assert!(compiled.success());
    path.to_owned()
}

fn publish(kafka: &Kafka, topic: &str, key: &str, value: &str) {
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", kafka.bootstrap()).create().expect("a producer");
    producer
        .send(BaseRecord::to(topic).key(key).payload(value))
        .map_err(|(error, _)| error)
        .expect("room in the queue");
    producer.flush(Duration::from_secs(60)).expect("delivery");
}
