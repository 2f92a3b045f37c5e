//! No secret and no text of a message is where it should not be: whatever the real binary puts out at `trace`, while all goes well
//! and while all goes wrong, is searched for every secret and for marked message text.
//!
//! Searched for are pieces of twelve characters, so that a secret that was cut is found too, and the same in base64.

#[path = "common/harness.rs"]
mod harness;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rdkafka::message::{Headers, Message as _, OwnedMessage};
use regex::bytes::{Regex, RegexBuilder};

use harness::{
    Corp, Kafka, PATIENCE, S3, SASL_PASSWORD, SASL_USER, SECRET, Worker, WorkerFiles, connector, read_committed,
    wait_for, wait_until,
};

const CONNECTOR: &str = "archive";
const PIECE: usize = 12;

/// Stands in every text, title and file name of the messages.
const MARKED_TEXT: &str = "Zm4rkedMessageTextQuokka7";
const PROXY_PASSWORD: &str = "pr0xy-Passw0rd-Wombat";
/// Secrets that are refused are secrets, too: most are those of another system.
const WRONG_SECRET: &str = "wr0ng-Archive-Secret-Dingo";
const WRONG_SASL_PASSWORD: &str = "wr0ng-Sasl-Passw0rd-Numbat";
const WRONG_STORAGE_SECRET: &str = "wr0ng-Storage-Secret-Koala";

/// Messages of all types, bad records of every kind, one message too large for Kafka.
const MESSAGES: &str = r#"
messages = 400
history_hours = 20.0
conversations = 20
marker = "Zm4rkedMessageTextQuokka7"
media = { size_bytes = [0, 4000], large_share = 0.02, large_size_bytes = [100000, 300000] }
odd = [{ kind = "large_message", seq = [40] }, { kind = "control_bytes", seq = [41] }, { kind = "not_utf8", seq = [42] }]
bad = [
    { kind = "unknown_key_version", seq = [1] },
    { kind = "bad_base64", seq = [2] },
    { kind = "wrong_key", seq = [3] },
    { kind = "garbage_ciphertext", seq = [4] },
    { kind = "short_ciphertext", seq = [5] },
    { kind = "not_json", seq = [6, 7, 8, 9, 10, 11] },
    { kind = "missing_fields", seq = [12] },
]
"#;

/// A library that fails in every way and says the secret aloud, in lines of all lengths.
const FAULTS: &str = r#"
[[fault]]
function = "GetChatData"
code = 10001
stdout = "GET /cgi-bin/gettoken?corpid=ww1&corpsecret={secret} failed"
stderr = "curl: (60) {secret}"

[[fault]]
function = "GetChatData"
call = 3
body = "garbage"

[[fault]]
function = "GetChatData"
call = 4
body = "truncated"

[[fault]]
function = "GetChatData"
call = 5
body = "html"

[[fault]]
function = "GetChatData"
call = 6
errcode = 40014
stdout = "{secret}{secret}"

[[fault]]
function = "GetChatData"
call = 7
refuse_token = true

[[fault]]
function = "GetChatData"
call = 8
abort = true
stderr = "terminate called after throwing {secret}"

[[fault]]
function = "DecryptData"
seq = [150]
abort = true
stdout = "decrypting with {secret}"

[[fault]]
function = "GetMediaData"
call = 3
code = 10003
times = 3
stdout = "{secret}"

[[fault]]
function = "GetMediaData"
call = 20
corrupt = true
"#;

#[test]
fn nothing_that_is_put_out_tells_a_secret() {
    let kafka = Kafka::start_secured();
    let mut s3 = S3::start("media");
    // The libraries stay quiet unless they are named; named, they must not tell either.
    let named = "trace,librdkafka=trace,opendal=trace,reqwest=trace,hyper=trace,hyper_util=trace,rustls=trace";
    for (level, tells) in [("trace", "INFO wecom_connector"), (named, "DEBUG librdkafka")] {
        let corp = Corp::new(MESSAGES, FAULTS);
        let mut said = Said::default();
        let topics = [corp.topics(), vec![corp.topic() + "-media-retries"]].concat();
        let needles = Needles::of(&corp);

        let mut worker = connect(&corp, &kafka, &s3, level, &[]).start();
        // Fifty messages a page, so that each of the faults is met.
        worker.wait_metric("wecom_connector_last_committed_seq", &[], 400.0);
        worker.wait_metric("wecom_connector_media_total", &[("status", "stored")], 20.0);
        said.answers(&mut worker);
        s3.kill();
        s3.start_again();
        worker.kill_sdk_host();
        worker.kill();
        worker.start_again();
        worker.wait_ready();
        said.answers(&mut worker);
        assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
        said.log(&worker);
        let commands: [(&[&str], &[&str]); 7] = [
            (&["offsets", "get"], &[]),
            (&["offsets", "get"], &["--json"]),
            (&["verify"], &[]),
            (&["verify"], &["--json"]),
            (&["dlq", "list"], &["--json"]),
            (&["dlq", "show"], &["--seq", "6"]),
            (&["dlq", "replay"], &["--all"]),
        ];
        for (command, arguments) in commands {
            let (_, out, err) = worker.files().run(command, CONNECTOR, arguments);
            assert!(!out.is_empty(), "{command:?} writes nothing: {err}");
            said.text(&format!("{command:?} {arguments:?}"), [out, err].concat());
        }
        said.keys_check(&corp.keys());

        // What is in the topics. Message text belongs into messages, and the names of files into what is said of media.
        for topic in &topics {
            let records = read_committed(&kafka, topic);
            assert!(topic.ends_with("-media-retries") || !records.is_empty(), "{topic} is empty");
            let may_tell = !topic.ends_with("-dead-letters");
            records.iter().for_each(|record| said.record(record, may_tell));
        }
        for record in &read_committed(&kafka, worker.files().get("offset.storage.topic")) {
            said.record(record, false);
        }

        needles.search(&said);
        // There was something to tell, and there was something that told.
        let messages = read_committed(&kafka, &corp.topic());
        let marked =
            messages.iter().filter(|record| contains(record.payload().unwrap_or_default(), MARKED_TEXT)).count();
        assert!(marked > 100, "{marked} messages are marked");
        let log = worker.log();
        let harmless = [
            "corpsecret=[secret] failed",
            "[secret][secret]",
            "is no page of the chat archive",
            "more than the limit of",
        ];
        for words in harmless.into_iter().chain([tells]) {
            assert!(log.contains(words), "the log has no {words:?}: the test does not see what it is for");
        }
    }
}

#[test]
fn what_is_refused_is_not_told_either() {
    let kafka = Kafka::start_secured();
    let s3 = S3::start("media");
    let corp = Corp::new(MESSAGES, FAULTS);
    let needles = Needles::of(&corp);
    let mut said = Said::default();

    // A wrong secret, which the library echoes; a wrong password of Kafka, of the storage.
    let mut worker = connect(&corp, &kafka, &s3, "trace", &[("wecom.secret", WRONG_SECRET)]).start();
    said.until_status(&mut worker, "invalid secret, or", |status| {
        status.contains("10001") || status.contains("FAILED")
    });
    wait_until("the library's echo in the log", PATIENCE, || worker.log().contains("invalid secret [secret]"));
    said.end(worker);

    let files = connect(&corp, &kafka, &s3, "trace", &[]).set("sasl.password", WRONG_SASL_PASSWORD);
    let mut worker = files.start();
    wait_until("a log line that says that the password is refused", PATIENCE, || {
        worker.log().contains("does not let this worker in")
    });
    said.answers(&mut worker);
    let files = connect(&corp, &kafka, &s3, "trace", &[]).set("sasl.password", WRONG_SASL_PASSWORD);
    for command in [&["offsets", "get"][..], &["verify"]] {
        let (code, out, err) = files.run(command, CONNECTOR, &["--json"]);
        assert_ne!(code, Some(0), "{out}{err}");
        said.text(&format!("{command:?}"), [out, err].concat());
    }
    said.end(worker);

    let mut worker =
        connect(&corp, &kafka, &s3, "trace", &[("storage.secret.access.key", WRONG_STORAGE_SECRET)]).start();
    said.until_status(&mut worker, "a storage that refuses", |status| {
        status.contains("FAILED") || status.contains("wait")
    });
    said.end(worker);

    // A bad record that stops the task.
    let strict = Corp::new(MESSAGES, "");
    let mut worker = connect(&strict, &kafka, &s3, "trace", &[("errors.tolerance", "none")]).start();
    assert_eq!(worker.process().wait(PATIENCE).code(), Some(65), "{}", worker.log());
    said.end(worker);

    // A key of another pair, and half a key.
    let other = Corp::new("", "");
    let keys = tempfile::tempdir().expect("a folder");
    std::fs::copy(other.keys().join("1.pem"), keys.path().join("1.pem")).expect("the key of another corp");
    let folder = keys.path().to_str().expect("UTF-8");
    let mut worker =
        connect(&corp, &kafka, &s3, "trace", &[("wecom.private.keys.dir", folder), ("topic", "foreign")]).start();
    worker.wait_metric("wecom_connector_dead_letters_total", &[("reason", "rsa")], 20.0);
    said.answers(&mut worker);
    said.end(worker);
    read_committed(&kafka, "foreign-dead-letters").iter().for_each(|record| said.record(record, false));
    let pem = std::fs::read_to_string(corp.keys().join("1.pem")).expect("a key");
    std::fs::write(keys.path().join("2.pem"), &pem[..pem.len() / 2]).expect("half a key");
    std::fs::write(keys.path().join("3.pem"), pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")).expect("a key");
    std::fs::write(keys.path().join("4.pem"), pem.replace('\n', " ")).expect("a key");
    said.keys_check(keys.path());

    // Values that are wrong themselves.
    let at = |secret: &str| [format!("{secret}\u{7}"), format!("${{{secret}"), format!("${{vault:{secret}}}")];
    for (key, secret) in [
        ("wecom.secret", SECRET),
        ("wecom.proxy.password", PROXY_PASSWORD),
        ("storage.secret.access.key", S3::SECRET_KEY),
        ("producer.override.sasl.password", SASL_PASSWORD),
    ] {
        for value in at(secret) {
            let files = connect(&corp, &kafka, &s3, "trace", &[(key, &value)]);
            let text = said.command(Command::new(connector()).arg("validate").args(files.write()));
            assert!(text.contains(key), "{key} = {value:?} is not refused: {text}");
        }
    }
    needles.search(&said);
}

/// A secret that a program prints is one that the connector works with; where programs are not allowed, none is run.
#[test]
fn a_secret_can_be_what_a_program_prints() {
    let corp = Corp::new("messages = 5", "");
    let place = corp.scenario().with_file_name("secret");
    std::fs::write(&place, SECRET).expect("a secret");
    let marker = corp.scenario().with_file_name("ran");
    let script = corp.scenario().with_file_name("script");
    std::fs::write(&script, format!("touch {}; cat {}", marker.display(), place.display())).expect("a script");
    let reference = format!("${{exec:/bin/sh {}}}", script.display());
    for allowed in ["false", "true"] {
        let files =
            WorkerFiles::new(Kafka::shared()).set("config.providers.exec.enable", allowed).set("log.level", "trace");
        let mut worker = corp.connect(files, CONNECTOR, &[("wecom.secret", &reference)]).start();
        if allowed == "true" {
            worker.wait_metric("wecom_connector_last_committed_seq", &[], 5.0);
            assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
        } else {
            assert_eq!(worker.process().wait(PATIENCE).code(), Some(64));
            assert!(
                worker.log().contains("set config.providers.exec.enable=true in the worker's file"),
                "{}",
                worker.log()
            );
        }
        assert_eq!(marker.exists(), allowed == "true");
        let log = worker.log();
        assert!(!log.contains(SECRET) && !log.contains("script"), "{log}");
    }
}

/// A worker with a secret of every kind.
fn connect(corp: &Corp, kafka: &Kafka, s3: &S3, level: &str, more: &[(&str, &str)]) -> WorkerFiles {
    let endpoint = s3.endpoint();
    let proxy_password = format!("user:{PROXY_PASSWORD}");
    let files = WorkerFiles::new(kafka)
        .set("bootstrap.servers", &kafka.secured().sasl_plaintext)
        .set("security.protocol", "SASL_PLAINTEXT")
        .set("sasl.mechanism", "PLAIN")
        .set("sasl.username", SASL_USER)
        .set("sasl.password", SASL_PASSWORD)
        .set("log.level", level)
        .environment("RUST_BACKTRACE", "1");
    let files = if level.contains("librdkafka") {
        files.set("producer.debug", "all").set("consumer.debug", "all").set("admin.debug", "all")
    } else {
        files
    };
    let settings = [
        ("wecom.page.limit", "50"),
        ("wecom.proxy", "http://127.0.0.1:9"),
        ("wecom.proxy.password", &proxy_password),
        ("topic.creation.default.max.message.bytes", "1000000"),
        ("storage.type", "s3"),
        ("storage.bucket", "media"),
        ("storage.endpoint", &endpoint),
        ("storage.region", "us-east-1"),
        ("storage.access.key.id", S3::ACCESS_KEY),
        ("storage.secret.access.key", S3::SECRET_KEY),
    ];
    corp.connect(files, CONNECTOR, &settings).connector(CONNECTOR, more)
}

/// All that was put out, with where.
#[derive(Default)]
struct Said {
    /// In which neither secrets nor message text may stand.
    strict: Vec<(String, Vec<u8>)>,
    /// In which message text may stand.
    lenient: Vec<(String, Vec<u8>)>,
}

impl Said {
    fn text(&mut self, place: &str, text: String) {
        self.strict.push((place.to_owned(), text.into_bytes()));
    }

    /// Everything that HTTP answers, and the command lines of the worker's processes.
    fn answers(&mut self, worker: &mut Worker) {
        let tasks = [0, 1].map(|task| format!("/connectors/{CONNECTOR}/tasks/{task}/status"));
        let paths = ["/", "/metrics", "/health", "/livez", "/readyz", "/connectors", "/nowhere"].map(str::to_owned);
        for path in paths.into_iter().chain(tasks).chain([format!("/connectors/{CONNECTOR}/status")]) {
            let (_, body) = worker.get(&path).expect("an answer");
            self.text(&path, body);
        }
        let worker_id = worker.process().id();
        for id in worker.sdk_hosts().into_iter().chain([worker_id]) {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            self.strict.push((format!("command line of {id}"), line));
        }
    }

    fn until_status(&mut self, worker: &mut Worker, what: &str, told: impl Fn(&str) -> bool) {
        wait_for(what, PATIENCE, || {
            let (_, status) = worker.get(&format!("/connectors/{CONNECTOR}/status"))?;
            told(&status).then_some(())
        });
        self.answers(worker);
    }

    fn log(&mut self, worker: &Worker) {
        self.text("the log", worker.log());
    }

    fn end(&mut self, mut worker: Worker) {
        worker.kill();
        self.log(&worker);
    }

    fn record(&mut self, record: &OwnedMessage, may_tell: bool) {
        let place = |part: &str| format!("{part} of {}-{}@{}", record.topic(), record.partition(), record.offset());
        self.strict.push((place("the key"), record.key().unwrap_or_default().to_owned()));
        for header in record.headers().into_iter().flat_map(Headers::iter) {
            self.strict.push((place(header.key), header.value.unwrap_or_default().to_owned()));
        }
        let values = if may_tell { &mut self.lenient } else { &mut self.strict };
        values.push((place("the value"), record.payload().unwrap_or_default().to_owned()));
    }

    fn command(&mut self, command: &mut Command) -> String {
        let output = command.output().expect("the connector's binary");
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        self.text(&format!("{command:?}"), text.clone());
        text
    }

    fn keys_check(&mut self, folder: &Path) {
        self.command(Command::new(connector()).args(["keys", "check"]).arg(folder));
    }
}

/// What is searched for.
struct Needles {
    secrets: Regex,
    texts: Regex,
}

impl Needles {
    fn of(corp: &Corp) -> Needles {
        let known = [SECRET, SASL_PASSWORD, S3::SECRET_KEY, PROXY_PASSWORD];
        let refused = [WRONG_SECRET, WRONG_SASL_PASSWORD, WRONG_STORAGE_SECRET];
        let mut secrets: Vec<String> = known.into_iter().chain(refused).map(str::to_owned).collect();
        for file in std::fs::read_dir(corp.keys()).expect("the folder of keys") {
            let Ok(pem) = std::fs::read_to_string(file.expect("a file").path()) else { continue };
            secrets.extend(pem.lines().filter(|line| !line.starts_with("-----")).map(str::to_owned));
        }
        let needles = Needles { secrets: pieces_of(&secrets), texts: pieces_of(&[MARKED_TEXT.to_owned()]) };
        // It finds what is there: whole, cut, and in base64 wherever it begins.
        for text in [SECRET.to_owned(), format!("x{}", &SECRET[5..18]), STANDARD.encode(format!("us:{SECRET}"))] {
            assert!(find(&needles.secrets, text.as_bytes()).is_some(), "{text} is not found");
        }
        assert!(find(&needles.secrets, b"nothing of any secret is in here").is_none());
        needles
    }

    /// Panics where a piece is found, and says where.
    fn search(&self, said: &Said) {
        let strict = said.strict.iter().flat_map(|told| [(told, &self.secrets), (told, &self.texts)]);
        let lenient = said.lenient.iter().map(|told| (told, &self.secrets));
        let found = strict.chain(lenient).filter_map(|((place, text), pieces)| Some((place, find(pieces, text)?)));
        let found: Vec<String> = found.map(|(place, around)| format!("{place}: {around}")).collect();
        assert!(found.is_empty(), "told in {} places:\n{}", found.len(), found[..found.len().min(20)].join("\n"));
    }
}

/// One expression for all pieces of the texts, and of their base64 behind any other text.
fn pieces_of(texts: &[String]) -> Regex {
    let mut pieces = BTreeSet::new();
    for text in texts {
        let mut encodings = vec![text.clone()];
        for before in 0..3 {
            let encoded = STANDARD.encode([&vec![0; before], text.as_bytes()].concat());
            // The first characters and the last depend on what stands around it.
            encodings.push(encoded[(before * 8).div_ceil(6)..encoded.len() - 4].to_owned());
        }
        for encoding in &encodings {
            let windows = encoding.as_bytes().windows(PIECE);
            pieces.extend(windows.map(|piece| regex::escape(std::str::from_utf8(piece).expect("ASCII"))));
        }
    }
    let pieces: Vec<String> = pieces.into_iter().collect();
    RegexBuilder::new(&pieces.join("|")).unicode(false).size_limit(1 << 28).build().expect("an expression")
}

/// The first piece that is in the text, with what stands around it.
fn find(pieces: &Regex, text: &[u8]) -> Option<String> {
    let found = pieces.find(text)?;
    let around = &text[found.start().saturating_sub(200)..(found.end() + 200).min(text.len())];
    Some(format!("{:?} in {}", String::from_utf8_lossy(found.as_bytes()), String::from_utf8_lossy(around)))
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
