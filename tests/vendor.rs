//! The vendor's own library and records that do not open, through the whole connector: the real binary, a stock broker, and a
//! stand-in for the vendor's API on loopback. Every record ends as a dead letter, or the library makes an end of itself. What opens
//! is in `whole_way.rs`.

#[path = "common/harness.rs"]
mod harness;

use std::path::Path;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeySize, Pkcs1PublicEncryptingKey, PrivateDecryptingKey};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use rdkafka::config::ClientConfig;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use harness::{
    FILES, Fault, Kafka, PAGES, PATIENCE, VendorApi, Worker, WorkerFiles, file_id, header, read_committed, unique,
    wait_for, wait_until,
};

const CORP: &str = "ww5ec0000000000001";
const SECRET: &str = "s3cret-OF-the-archive";
const KEY_VERSION: u32 = 7;
const PAGE_LIMIT: u64 = 4;
/// What `DecryptData` returns for garbage in place of 10008 where its padding looks right: measured with one random key in 256.
const PADDED_BY_CHANCE: &str = "10005";

/// What a record is made of, and so what becomes of it.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// A key that unwraps, and a message of this many characters that is no ciphertext.
    Garbage(usize),
    UnknownVersion,
    NotBase64,
    ForeignKey,
    Malformed,
}
use Kind::{ForeignKey, Garbage, Malformed, NotBase64, UnknownVersion};

impl Kind {
    /// `wecom.reason`, and `wecom.sdk_code` where there is one.
    fn reason(self) -> (&'static str, Option<&'static str>) {
        match self {
            // Measured: it takes the 13th character without looking whether there is one.
            Garbage(..13) => ("sdk_crash", None),
            Garbage(_) => ("decrypt", Some("10008")),
            UnknownVersion => ("unknown_key_version", None),
            NotBase64 => ("base64", None),
            ForeignKey => ("rsa", None),
            Malformed => ("malformed", None),
        }
    }
}

#[test]
fn every_record_becomes_a_dead_letter_once_and_in_order() {
    let pages: [[Kind; PAGE_LIMIT as usize]; 6] = [
        [Garbage(0), Garbage(64), Garbage(13), UnknownVersion],
        [Garbage(300), Garbage(12), Garbage(1), Garbage(64)],
        [Garbage(64), NotBase64, Garbage(13), Garbage(5)],
        [Garbage(1), Garbage(2), Garbage(3), Garbage(4)],
        [ForeignKey, UnknownVersion, NotBase64, Malformed],
        [Garbage(12), ForeignKey, Garbage(10_000), Garbage(12)],
    ];
    let mut archive = Archive::new(pages.concat());
    let api = VendorApi::start(SECRET);
    api.ask_proxy_password(&BASE64_STANDARD.encode("proxy-user:proxy-password"));
    api.add(archive.records());
    let kafka = Kafka::shared();
    let mut worker = connector(WorkerFiles::new(kafka), "archive", &api, &archive)
        .connector("archive", &[("wecom.proxy.password", "proxy-user:proxy-password")])
        .start();
    worker.wait_ready();
    archive.wait_committed(&mut worker);
    archive.check(&worker, "archive");
    assert_opens_nothing_and_is_well(&worker);
    let crashes = archive.kinds.iter().filter(|kind| kind.reason().0 == "sdk_crash").count();
    assert_eq!(worker.metric("wecom_connector_dead_letters_total", &[("reason", "sdk_crash")]), Some(crashes as f64));
    // The host is lost with every such record, and never besides.
    let restarts = worker.metric("wecom_connector_sdk_host_restarts_total", &[("reason", "crash")]);
    assert_eq!(restarts, Some(crashes as f64));

    // What is committed is not pulled again, whether the worker left in order or not; what is new comes behind it.
    for in_order in [true, false] {
        let pulled = api.requests(PAGES).len();
        if in_order {
            assert_eq!(worker.terminate().code(), Some(0));
        } else {
            worker.kill();
        }
        let last_seq = archive.last_seq();
        worker.start_again();
        worker.wait_ready();
        api.add(archive.extend(&[Garbage(0), Garbage(64)]));
        archive.wait_committed(&mut worker);
        archive.check(&worker, "archive");
        let asked: Vec<u64> = seqs_asked(&api).split_off(pulled);
        assert!(asked.iter().all(|seq| *seq >= last_seq), "{asked:?} after {last_seq}");
    }

    assert_eq!(worker.terminate().code(), Some(0));
    api.assert_no_strays();
    for sealed in &archive.sealed {
        assert!(!worker.log().contains(sealed.as_str()), "a record is in the log: {sealed}");
    }
    assert_clean_log(&worker, &api);
}

#[test]
fn pulling_gets_over_what_passes() {
    // What happens to a pull, how it is counted, and what the status says meanwhile.
    let rows: [(&[Fault], &str, &str); 11] = [
        (&[Fault::DeadToken], "40014", "the access token is no longer valid"),
        (&[Fault::Errcode(42001)], "42001", "the access token is no longer valid"),
        (&[Fault::DeadToken, Fault::DeadToken, Fault::DeadToken], "40014", "the access token is no longer valid"),
        (&[Fault::Errcode(-1)], "-1", "errcode -1: busy"),
        (&[Fault::Errcode(99_999)], "99999", "errcode 99999"),
        (&[Fault::Status(500)], "10001", "GetChatData answered 10001"),
        (&[Fault::Cut], "10001", "GetChatData answered 10001"),
        (&[Fault::Body(b"")], "0", "it is empty"),
        (&[Fault::Body(b"<html>no page</html>")], "0", "it is no JSON object"),
        // Taken as a C string, this would be no JSON.
        (&[Fault::Body(b"{\"errcode\":0,\"errmsg\":\"o\0k\",\"chatdata\":[]}")], "0", "it has a NUL byte"),
        (&[Fault::Status(502), Fault::Cut, Fault::Body(b"")], "10001", "it is empty"),
    ];
    let mut archive = Archive::new(vec![Garbage(64)]);
    let api = VendorApi::start(SECRET);
    api.add(archive.records());
    let mut worker = connector(WorkerFiles::new(Kafka::shared()), "archive", &api, &archive).start();
    worker.wait_ready();
    archive.wait_committed(&mut worker);
    for (faults, code, words) in rows {
        let calls = |worker: &Worker| {
            worker
                .metric("wecom_connector_sdk_calls_total", &[("function", "GetChatData"), ("code", code)])
                .unwrap_or(0.0)
        };
        let (tokens, calls_before, log_before) = (api.tokens().len(), calls(&worker), worker.log().len());
        api.fault(faults.iter().cloned());
        wait_until("the faults to be met", PATIENCE, || api.faults_left() == 0);
        api.add(archive.extend(&[Garbage(20)]));
        archive.wait_committed(&mut worker);
        let log = worker.log().split_off(log_before);
        assert!(log.contains(words), "{faults:?}: {words} is not in:\n{log}");
        assert!(calls(&worker) >= calls_before + 1.0, "{faults:?} is not counted under {code}");
        assert_eq!(api.tokens().len() > tokens, code == "40014" || code == "42001", "{faults:?}: a new token");
        assert_opens_nothing_and_is_well(&worker);
    }

    // A page that is too large is asked for in halves, and no smaller than one record.
    let pulled = api.requests(PAGES).len();
    api.fault(vec![Fault::Errcode(301_058); 3]);
    wait_until("the faults to be met", PATIENCE, || api.faults_left() == 0);
    api.add(archive.extend(&[Garbage(20), Garbage(0), Garbage(20)]));
    archive.wait_committed(&mut worker);
    let limits: Vec<u64> = api.requests(PAGES)[pulled..]
        .iter()
        .filter_map(|request| request.body["limit"].as_u64())
        .skip_while(|limit| *limit == PAGE_LIMIT)
        .take(3)
        .collect();
    assert_eq!(limits, [PAGE_LIMIT / 2, PAGE_LIMIT / 4, PAGE_LIMIT / 4]);

    archive.check(&worker, "archive");
    assert_eq!(worker.metric("wecom_connector_sdk_host_restarts_total", &[]), Some(1.0), "one record killed a host");
    assert_eq!(worker.terminate().code(), Some(0));
    api.assert_no_strays();
    assert_clean_log(&worker, &api);
}

#[test]
fn what_somebody_has_to_change_is_said() {
    // A connector each: what its archive answers, then state and words of its task. A wrong secret is last, with the guard and
    // without: there the library says no more than that there is no way.
    let wrong_secret = ["the secret of corp ww5ec0000000000001 is refused (40001)", "wecom.secret"];
    let rows: [(&str, Option<Fault>, &str, &[&str]); 7] = [
        ("busy", Some(Fault::Errcode(45_009)), "RUNNING", &["45009", "another program"]),
        ("foreign-address", Some(Fault::Errcode(60_020)), "FAILED", &["60020", "203.0.113.7", "trusted addresses"]),
        ("foreign-direct", Some(Fault::Errcode(60_020)), "FAILED", &["60020", "203.0.113.7", "trusted addresses"]),
        ("expired", Some(Fault::Errcode(301_052)), "FAILED", &["301052", "renew its licence"]),
        ("not-opened", Some(Fault::Errcode(301_053)), "FAILED", &["301053", "not opened"]),
        ("secret-direct", None, "RUNNING", &["10001", "wecom.secret", "trusted list", "address"]),
        ("secret", None, "FAILED", &wrong_secret),
    ];
    let archive = Archive::new(vec![Garbage(64)]);
    let mut files = WorkerFiles::new(Kafka::shared());
    let mut apis = Vec::new();
    for (name, fault, _, _) in &rows {
        let api = VendorApi::start(if fault.is_some() { SECRET } else { "the-right-one" });
        api.fault(fault.iter().cloned());
        api.add(archive.records());
        // Pauses as by default: the library's words must not wait for dozens of refusals.
        files = connector(files, name, &api, &archive).connector(name, &[("errors.retry.delay.max.ms", "60000")]);
        if name.ends_with("-direct") {
            files = files.connector(name, &[("sdk.egress", "direct"), ("sdk.egress.ca.file", "")]);
        }
        apis.push(api);
    }
    let mut worker = files.start();
    for (name, _, state, words) in rows {
        let is_said =
            |(found, trace): &(String, String)| found == state && words.iter().all(|word| trace.contains(word));
        wait_for(&format!("{name} to be {state} and to say {words:?}"), PATIENCE, || {
            worker.get("/livez").is_some().then(|| task(&worker, name)).filter(is_said)
        });
    }
    worker.wait_metric("wecom_connector_sdk_calls_total", &[("connector", "busy"), ("code", "45009")], 1.0);
    worker.wait_metric("wecom_connector_sdk_calls_total", &[("connector", "secret-direct"), ("code", "10001")], 3.0);
    worker.wait_metric("wecom_connector_rate_limit_waits_total", &[("connector", "busy")], 1.0);
    // The library's own words about the refusal, which hold the secret: they say more than its return code.
    wait_until("the library's noise in the log", PATIENCE, || worker.log().contains("invalid secret [secret]"));

    let direct = worker.log().lines().filter(|line| line.contains("sdk.egress=direct")).count();
    assert_eq!(direct, 2, "each that goes without the guard is warned of");

    for (name, api) in ["secret-direct", "secret"].iter().zip(&apis[5..]) {
        api.set_secret(SECRET);
        wait_until("the connector to go on with the right secret", PATIENCE, || {
            worker.metric("wecom_connector_last_committed_seq", &[("connector", name)])
                == Some(archive.last_seq() as f64)
        });
        archive.check(&worker, name);
    }

    // Nobody waits for the minute that the busy one waits.
    assert_eq!(worker.terminate().code(), Some(0));
    for api in &apis {
        api.assert_no_strays();
        assert_clean_log(&worker, api);
    }
}

#[test]
fn files_that_do_not_come_end_in_a_reference_event() {
    // What is answered for a file, then status and reason of its reference event, and how often it is asked for at least.
    let rows: [(&str, Option<Fault>, &str, &str, usize); 8] = [
        ("expired", None, "expired", "expired", 1),
        ("error-json", Some(Fault::Errcode(-1)), "expired", "unreachable", 2),
        ("licence", Some(Fault::Errcode(301_052)), "expired", "expired", 2),
        ("no-ciphertext", Some(Fault::Body(b"sixteen bytes...")), "expired", "unreachable", 2),
        ("empty", Some(Fault::Body(b"")), "expired", "unreachable", 2),
        ("status", Some(Fault::Status(500)), "expired", "unreachable", 2),
        ("cut", Some(Fault::Cut), "expired", "unreachable", 2),
        ("malformed", None, "failed", "refused", 0),
    ];
    let archive = Archive::new(vec![Garbage(64)]);
    let api = VendorApi::start(SECRET);
    api.add(archive.records());
    let mut worker = connector(WorkerFiles::new(Kafka::shared()), "archive", &api, &archive)
        .connector("archive", &[("media.enable", "true"), ("tasks.max", "2"), ("media.concurrency", "8")])
        // One pull and no more: it is the media task that has to find out that the token is dead.
        .connector("archive", &[("poll.interval.ms", "3600000")])
        .start();
    worker.wait_ready();
    archive.wait_committed(&mut worker);
    let tokens = api.tokens().len();
    api.expire_token();
    let topic = topic_of(&archive.topic, "archive");
    for (id, fault, ..) in &rows {
        if let Some(fault) = fault {
            api.file(id, fault.clone());
        }
        let sdkfileid = if *id == "malformed" { "no file id".to_owned() } else { file_id(id) };
        request_file(&format!("{topic}-media-requests"), id, &sdkfileid);
    }
    // What somebody has to change is said, and holds nothing against a file.
    wait_until("the reason on the task's status", PATIENCE, || {
        let status = worker.get("/connectors/archive/tasks/1/status");
        status.is_some_and(|(_, body)| body.contains("errcode 301052: the chat archive has expired; renew its licence"))
    });
    api.file("licence", Fault::Errcode(301_048));
    let ends = ["stored", "expired", "failed"];
    wait_until("an end for every file", PATIENCE, || {
        let ended =
            ends.map(|status| worker.metric("wecom_connector_media_total", &[("status", status)]).unwrap_or(0.0));
        ended.iter().sum::<f64>() >= rows.len() as f64
    });

    let references = read_committed(Kafka::shared(), &format!("{topic}-media"));
    let mut found: Vec<(String, String, String)> = references
        .iter()
        .map(|record| serde_json::from_slice::<Value>(record.payload().expect("a value")).expect("JSON"))
        .map(|event| {
            let text = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            (text("media_id"), text("status"), text("reason"))
        })
        .collect();
    found.sort();
    let mut expected: Vec<(String, String, String)> =
        rows.iter().map(|(id, _, status, reason, _)| ((*id).into(), (*status).into(), (*reason).into())).collect();
    expected.sort();
    assert_eq!(found, expected);
    let asked = api.requests(FILES);
    for (id, _, _, _, times) in rows {
        let tries = asked.iter().filter(|request| request.body["fileid"] == *id).count();
        assert!(tries >= times && (times > 0 || tries == 0), "{id} was asked for {tries} times");
    }
    assert!(asked.iter().all(|request| request.range.as_deref() == Some("bytes=0-524287")), "{asked:?}");
    assert_eq!(api.tokens().len(), tokens + 2, "one new token beside the one that was made dead");
    assert_eq!(worker.metric("wecom_connector_sdk_calls_total", &[("function", "GetMediaData"), ("code", "0")]), None);
    assert_eq!(worker.terminate().code(), Some(0));
    api.assert_no_strays();
    assert_clean_log(&worker, &api);
}

/// Puts a request for a file whose time is over into the topic: it is tried once, with a few tries of its first chunk.
fn request_file(topic: &str, id: &str, sdkfileid: &str) {
    let request = json!({
        "schema": "urn:wecom-connector:media-request:1", "media_id": id, "corp_id": CORP, "seq": 1, "msgid": format!("m-{id}"),
        "msgtype": "file", "conversation": "c", "path": "/file/sdkfileid", "media_type": "file", "sdkfileid": sdkfileid,
        "md5sum": null, "size": null, "file_name": null, "extension": null, "msgtime_ms": 1, "first_seen_ms": 1,
        "deadline_ms": 2, "attempts": 0, "not_before_ms": 0, "last_error": null,
    });
    let producer: BaseProducer =
        ClientConfig::new().set("bootstrap.servers", Kafka::shared().bootstrap()).create().expect("a producer");
    let payload = request.to_string();
    producer.send(BaseRecord::to(topic).key(id).payload(&payload)).unwrap_or_else(|(error, _)| panic!("{error}"));
    producer.flush(PATIENCE).expect("delivery");
}

/// Records of all kinds, with the keys that open some of them.
struct Archive {
    topic: String,
    folder: tempfile::TempDir,
    kinds: Vec<Kind>,
    sealed: Vec<String>,
    own: Pkcs1PublicEncryptingKey,
    foreign: Pkcs1PublicEncryptingKey,
}

impl Archive {
    fn new(kinds: Vec<Kind>) -> Archive {
        let folder = tempfile::tempdir().expect("a folder");
        let own = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("a key");
        let der: Pkcs8V1Der<'_> = own.as_der().expect("the key as PKCS#8");
        let pem = BASE64_STANDARD.encode(der.as_ref());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{pem}\n-----END PRIVATE KEY-----\n");
        std::fs::write(folder.path().join(format!("{KEY_VERSION}.pem")), pem).expect("the private key");
        let foreign = PrivateDecryptingKey::generate(KeySize::Rsa2048).expect("a key");
        let public = |key: &PrivateDecryptingKey| Pkcs1PublicEncryptingKey::new(key.public_key()).expect("a key");
        let mut archive = Archive {
            topic: unique("vendor"),
            folder,
            kinds: Vec::new(),
            sealed: Vec::new(),
            own: public(&own),
            foreign: public(&foreign),
        };
        archive.extend(&kinds);
        archive
    }

    /// Further records.
    fn extend(&mut self, kinds: &[Kind]) -> Vec<(u64, String)> {
        let known = self.kinds.len();
        for kind in kinds {
            self.kinds.push(*kind);
            let sealed = self.seal(self.last_seq(), *kind);
            self.sealed.push(sealed);
        }
        self.records().split_off(known)
    }

    fn records(&self) -> Vec<(u64, String)> {
        self.sealed.iter().enumerate().map(|(index, sealed)| (seq(index), sealed.clone())).collect()
    }

    fn last_seq(&self) -> u64 {
        seq(self.kinds.len() - 1)
    }

    /// As the vendor prints it, with fields that nobody knows, and with spellings that do not survive printing it again.
    fn seal(&self, seq: u64, kind: Kind) -> String {
        let (version, key, length) = match kind {
            Garbage(length) => (KEY_VERSION, wrap(&self.own), length),
            UnknownVersion => (KEY_VERSION + 1, wrap(&self.own), 64),
            NotBase64 => (KEY_VERSION, "no base64!".to_owned(), 64),
            ForeignKey => (KEY_VERSION, wrap(&self.foreign), 64),
            Malformed => return format!(r#"{{"seq":{seq}, "msgid":"m{seq}","x":1.10}}"#),
        };
        let key = key.replace('/', r"\/");
        let message = BASE64_STANDARD.encode(vec![seq as u8; length]);
        format!(
            r#"{{"seq":{seq}, "msgid":"m{seq}_\u002d","publickey_ver":{version},"encrypt_random_key":"{key}","encrypt_chat_msg":"{}","x":1.10}}"#,
            &message[..length],
        )
    }

    fn wait_committed(&self, worker: &mut Worker) {
        worker.wait_metric("wecom_connector_last_committed_seq", &[], self.last_seq() as f64);
    }

    /// Reads what a consumer would see, and compares all of it.
    fn check(&self, worker: &Worker, connector: &str) {
        let topic = topic_of(&self.topic, connector);
        let letters = read_committed(Kafka::shared(), &format!("{topic}-dead-letters"));
        let found: Vec<(&str, Option<&str>, &str, Option<&str>)> = letters
            .iter()
            .map(|letter| {
                let value = letter.payload_view::<str>().expect("a value").expect("UTF-8");
                (
                    value,
                    header(letter, "wecom.seq"),
                    header(letter, "wecom.reason").expect("a reason"),
                    header(letter, "wecom.sdk_code").map(|code| if code == PADDED_BY_CHANCE { "10008" } else { code }),
                )
            })
            .collect();
        let seqs: Vec<String> = (0..self.kinds.len()).map(|index| seq(index).to_string()).collect();
        let expected: Vec<(&str, Option<&str>, &str, Option<&str>)> = self
            .kinds
            .iter()
            .zip(self.sealed.iter().zip(&seqs))
            .map(|(kind, (sealed, seq))| (sealed.as_str(), Some(seq.as_str()), kind.reason().0, kind.reason().1))
            .collect();
        assert_eq!(found, expected);
        assert!(letters.iter().all(|letter| letter.key() == Some(CORP.as_bytes())));
        for topic in [topic.clone(), format!("{topic}-media-requests")] {
            assert_eq!(read_committed(Kafka::shared(), &topic).len(), 0, "{topic}");
        }

        let key = json!([connector, {"corp_id": CORP}]).to_string();
        let offsets: Vec<u64> = read_committed(Kafka::shared(), worker.files().get("offset.storage.topic"))
            .iter()
            .filter(|record| record.key() == Some(key.as_bytes()))
            .map(|record| serde_json::from_slice::<Value>(record.payload().expect("a value")).expect("JSON"))
            .map(|value| value["seq"].as_u64().expect("a seq"))
            .collect();
        assert!(offsets.is_sorted(), "{offsets:?}");
        assert_eq!(offsets.last(), Some(&self.last_seq()));
    }
}

/// Positions of an archive have gaps.
fn seq(index: usize) -> u64 {
    1_000_000 + 3 * index as u64
}

/// A random key, as a sender would wrap it.
fn wrap(key: &Pkcs1PublicEncryptingKey) -> String {
    let mut random = [0; 32];
    aws_lc_rs::rand::fill(&mut random).expect("random bytes");
    let mut wrapped = vec![0; key.ciphertext_size()];
    let wrapped = key.encrypt(BASE64_STANDARD.encode(random).as_bytes(), &mut wrapped).expect("a wrapped key");
    BASE64_STANDARD.encode(wrapped)
}

fn topic_of(topic: &str, connector: &str) -> String {
    format!("{topic}-{connector}")
}

/// Adds a connector on the vendor's library, with an API and topics of its own.
fn connector(files: WorkerFiles, name: &str, api: &VendorApi, archive: &Archive) -> WorkerFiles {
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    files.connector(
        name,
        &[
            ("wecom.corp.id", CORP),
            ("wecom.secret", SECRET),
            ("wecom.private.keys.dir", &path(archive.folder.path())),
            ("wecom.sdk.library", &path(&harness::vendor_library())),
            ("wecom.proxy", &api.proxy()),
            ("sdk.egress.ca.file", &path(api.ca_file())),
            ("wecom.timeout.ms", "10000"),
            ("wecom.page.limit", &PAGE_LIMIT.to_string()),
            ("poll.interval.ms", "150"),
            ("errors.retry.delay.max.ms", "500"),
            ("topic", &topic_of(&archive.topic, name)),
            ("topic.creation.default.retention.ms", "-1"),
            ("media.enable", "false"),
            ("tasks.max", "1"),
        ],
    )
}

/// State and reason of the message task.
fn task(worker: &Worker, connector: &str) -> (String, String) {
    let (_, body) = worker.get(&format!("/connectors/{connector}/tasks/0/status")).expect("an answer");
    let status: Value = serde_json::from_str(&body).expect("JSON");
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("trace"))
}

/// The status says that no record becomes a message, and nothing else.
fn assert_opens_nothing_and_is_well(worker: &Worker) {
    let (state, trace) = task(worker, "archive");
    let is_so = state == "RUNNING"
        && trace.starts_with("Every record since this start has become a dead letter, none a message (")
        && ["pulling fails", "Waiting for Kafka", "lost"].iter().all(|words| !trace.contains(words));
    assert!(is_so, "{state}: {trace}");
}

fn seqs_asked(api: &VendorApi) -> Vec<u64> {
    api.requests(PAGES).iter().map(|request| request.body["seq"].as_u64().expect("a seq")).collect()
}

/// Neither the secrets nor any token are in the log.
fn assert_clean_log(worker: &Worker, api: &VendorApi) {
    let log = worker.log();
    for secret in api.tokens().iter().map(String::as_str).chain([SECRET, "proxy-password"]) {
        assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
    }
}
