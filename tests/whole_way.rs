//! One scenario, the whole way, on the simulator and on the vendor's own library: messages of all types, media of all sizes,
//! dead letters, a key that comes late, faults of the API, and kills. The independent reader judges it, and `verify`.
//!
//! Both libraries ask the same API on loopback. The vendor's never goes anywhere else: it is led to a proxy that leads to nobody.

#[path = "common/harness.rs"]
mod harness;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use harness::{Corp, FILES, Kafka, PAGES, TOKENS, VendorApi, Worker, WorkerFiles, vendor_library};

const CONNECTOR: &str = "archive";
const PROXY_PASSWORD: &str = "proxy-user:pr0xy-Secret";

/// Two versions of the key, of which the second is found late; bad records of every kind; files around the size of a chunk.
const SCENARIO: &str = r#"
seed = 11
messages = 1200
history_hours = 20.0
seq_gap_every = 400
seq_gap = 3
conversations = 40
key = [{ version = 1 }, { version = 3, from_seq = 900 }]
media = { size_bytes = [0, 40000], large_share = 0.03, large_size_bytes = [600000, 3000000] }
pinned = [
    { seq = 21, msgtype = "video", size_bytes = 0 },
    { seq = 22, msgtype = "video", size_bytes = 1 },
    { seq = 23, msgtype = "video", size_bytes = 524287 },
    { seq = 24, msgtype = "video", size_bytes = 524288 },
    { seq = 25, msgtype = "video", size_bytes = 524289 },
    { seq = 26, msgtype = "file", size_bytes = 1048576 },
    { seq = 27, msgtype = "file", size_bytes = 3145728 },
    { seq = 28, msgtype = "file", size_bytes = 20971520 },
]
bad = [
    { kind = "unknown_key_version", seq = [50] },
    { kind = "bad_base64", seq = [51] },
    { kind = "wrong_key", seq = [52] },
    { kind = "garbage_ciphertext", seq = [53] },
    { kind = "short_ciphertext", seq = [2, 54, 55] },
    { kind = "not_json", seq = [56, 57, 58, 59] },
    { kind = "missing_fields", seq = [60] },
]
"#;
const LAST_SEQ: f64 = 1206.0;
const KILLS_AT: [f64; 2] = [400.0, 800.0];

/// What the API fails in, and the network on the way to it.
const FAULTS: &str = r#"
[[fault]]
function = "GetChatData"
call = 2
status = 503

[[fault]]
function = "GetChatData"
call = 3
errcode = 40014

[[fault]]
function = "GetChatData"
call = 5
body = "truncated"

[[fault]]
function = "GetChatData"
call = 7
cut = true

[[fault]]
name = "busy"
function = "GetMediaData"
call = 10
errcode = 45009
times = 2

[[fault]]
name = "short"
function = "GetMediaData"
seq = [27]
short_chunk_bytes = 1000

[[fault]]
name = "corrupt"
function = "GetMediaData"
seq = [25]
call = 2
corrupt = true

[[fault]]
name = "lost"
function = "GetMediaData"
seq = [26]
lose_bytes = 5000

[[fault]]
name = "cut"
function = "GetMediaData"
seq = [27]
call = 4
cut = true

[[fault]]
name = "late"
function = "GetMediaData"
seq = [28]
call = 5
slow_ms = 7000

[[fault]]
name = "status"
function = "GetMediaData"
seq = [28]
call = 20
status = 500
"#;
const MEDIA_FAULTS: [&str; 7] = ["busy", "short", "corrupt", "lost", "cut", "late", "status"];

#[test]
fn the_simulator_behind_the_guard() {
    play(&[]);
}

#[test]
fn the_vendors_library_behind_the_guard() {
    play(&[vendor()]);
}

#[test]
fn the_vendors_library_without_the_guard() {
    play(&[vendor(), ("sdk.egress", "direct".to_owned()), ("sdk.egress.ca.file", String::new())]);
}

fn vendor() -> (&'static str, String) {
    ("wecom.sdk.library", vendor_library().to_str().expect("a path in UTF-8").to_owned())
}

/// Plays the scenario to its end, with these settings of the connector, and has it judged.
fn play(way: &[(&str, String)]) {
    let kafka = Kafka::shared();
    let corp = Corp::new(SCENARIO, FAULTS);
    let api = corp.go_online(SCENARIO, FAULTS);
    api.ask_proxy_password(&BASE64_STANDARD.encode(PROXY_PASSWORD));
    let late_key = corp.keys().join("3.pem");
    let aside = corp.keys().join("3.later");
    std::fs::rename(&late_key, &aside).expect("the key of version 3");
    let mut worker = start(kafka, &corp, &api, way);
    for seq in KILLS_AT {
        worker.wait_metric("wecom_connector_last_committed_seq", &[], seq);
        worker.kill_sdk_host();
        worker.wait_metric("wecom_connector_last_committed_seq", &[], seq + 50.0);
        worker.kill();
        worker.start_again();
    }
    worker.wait_metric("wecom_connector_last_committed_seq", &[], LAST_SEQ);

    std::fs::rename(&aside, &late_key).expect("the key of version 3");
    let (code, said, beside) = worker.files().run(&["dlq", "replay"], CONNECTOR, &["--key-version", "3"]);
    assert_eq!(code, Some(0), "{said}{beside}");
    eprintln!("{}", corp.reader(kafka, worker.files(), CONNECTOR, None).check());
    let (code, report, said) = worker.files().verify(CONNECTOR, &[]);
    assert_eq!(code, Some(0), "{report:#}\n{said}");

    let strikes = MEDIA_FAULTS.map(|fault| (fault, corp.strikes(fault)));
    assert!(strikes.iter().all(|(_, count)| *count > 0), "a fault did not come up: {strikes:?}");
    for path in [TOKENS, PAGES, FILES] {
        assert!(!api.requests(path).is_empty(), "nobody asked for {path}");
    }
    api.assert_no_strays();
    assert_eq!(worker.terminate().code(), Some(0), "{}", worker.log());
    let secrets = [harness::SECRET, "pr0xy-Secret", "t0kenT0KEN"];
    assert!(secrets.iter().all(|secret| !worker.log().contains(secret)), "the log shows a secret");
}

fn start(kafka: &Kafka, corp: &Corp, api: &VendorApi, way: &[(&str, String)]) -> Worker {
    let mut settings = vec![
        ("wecom.proxy", api.proxy()),
        ("wecom.proxy.password", PROXY_PASSWORD.to_owned()),
        ("sdk.egress.ca.file", api.ca_file().to_str().expect("a path in UTF-8").to_owned()),
        ("wecom.timeout.ms", "5000".to_owned()),
        ("wecom.page.limit", "100".to_owned()),
    ];
    settings.extend(way.iter().cloned());
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    corp.connect(WorkerFiles::new(kafka), CONNECTOR, &settings).start()
}
