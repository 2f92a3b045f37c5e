//! What is fuzzed: one function for each kind of input from outside. It panics where an invariant does not hold.
//!
//! libFuzzer calls them from `fuzz_targets/`; `tests/fuzz.rs` takes this file in and runs them on the stable toolchain.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Display};
use std::path::Path;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jsonschema::Validator;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use tempfile::TempDir;
use wecom_connector::archive::page::MalformedRecord;
use wecom_connector::archive::{ChatRecord, Element, EventContext, MediaRequest, PageError, Record, event, page};
use wecom_connector::config;
use wecom_connector::sdk::frame::{self, Request, Response};
use wecom_simulator::corp::Corp;
use wecom_simulator::message;
use wecom_simulator::scenario::Scenario;

const NOW_MS: i64 = 1_700_000_000_000;
const CONTEXT: EventContext<'static> =
    EventContext { connector: "archive", task: 0, topic: "messages", corp_id: "ww1", now_ms: NOW_MS };

/// An answer of `GetChatData`.
///
/// What comes of it rises in `seq`, is newer than what was asked for, and comes once; nothing is unaccounted for; asked again from
/// there, the same answer has nothing new. What is refused is not quoted.
pub fn page(input: &[u8]) {
    for after_seq in [0, 7, u64::MAX] {
        let page = match page::parse(input, after_seq) {
            Ok(page) => page,
            Err(PageError::NotJson { bytes, problem }) => {
                assert!(bytes == input.len() && problem.len() < 60);
                continue;
            }
            Err(error) => {
                assert_one_line(&error);
                assert!(error.to_string().len() < 2_000);
                continue;
            }
        };
        let seqs: Vec<u64> = page.elements.iter().filter_map(Element::seq).collect();
        assert!(seqs.is_sorted() && seqs.iter().all(|seq| *seq > after_seq), "{seqs:?} after {after_seq}");
        assert_eq!(page.last_seq, seqs.last().copied());
        assert_eq!(
            page.elements.last().and_then(Element::seq),
            page.last_seq,
            "an element without a seq ends the page"
        );
        assert_eq!(page.records_received, page.elements.len() + page.repeats + page.held);
        let mut seen = BTreeSet::new();
        for element in &page.elements {
            let (seq, msgid, raw) = match element {
                Element::Record(ChatRecord { seq, msgid, raw, .. }) => (Some(*seq), Some(msgid), raw),
                Element::Malformed(MalformedRecord { seq, msgid, raw, .. }) => (*seq, msgid.as_ref(), raw),
            };
            assert!(seq.is_none() || seen.insert((seq, msgid)), "seq {seq:?} comes twice");
            assert!(serde_json::from_str::<IgnoredAny>(raw.get()).is_ok());
        }
        if let Some(last_seq) = page.last_seq {
            let again = page::parse(input, last_seq).expect("what was a page");
            assert!(again.elements.is_empty(), "{:?} after {last_seq}", again.elements);
        }
    }
}

/// A decrypted message.
///
/// The event is JSON as its schema says, and has the message byte for byte where it needed no repair. What a message becomes is
/// bounded by its own size, and the same each time.
pub fn message(input: &[u8]) {
    #[derive(Deserialize)]
    struct Envelope<'a> {
        #[serde(borrow)]
        message: &'a RawValue,
        control_bytes_escaped: bool,
        original_base64: Option<String>,
    }
    static SCHEMA: OnceLock<Validator> = OnceLock::new();
    static REQUEST_SCHEMA: OnceLock<Validator> = OnceLock::new();
    let sealed = ChatRecord {
        seq: 7,
        msgid: if input.len().is_multiple_of(2) { String::new() } else { "m1_external".into() },
        publickey_ver: 1,
        encrypt_random_key: String::new(),
        encrypt_chat_msg: String::new(),
        raw: RawValue::NULL.to_owned(),
    };
    let Ok(event) = event::build(&CONTEXT, &sealed, input) else { return };
    let envelope: Envelope<'_> = serde_json::from_slice(&event.record.value).expect("an event");
    match envelope.original_base64 {
        Some(original) => assert!(STANDARD.decode(original).is_ok_and(|original| original == input)),
        None if envelope.control_bytes_escaped => {}
        None => assert_eq!(envelope.message.get().as_bytes(), input.trim_ascii()),
    }
    fits(&SCHEMA, include_str!("../../schemas/message.json"), &event.record);

    assert!(event.media.len() <= 1_000);
    let mut ids = BTreeSet::new();
    let mut request_bytes = 0;
    for request in &event.media {
        assert!(ids.insert(&request.media_id), "two files have the name {}", request.media_id);
        let record = comes_back_from_kafka(request);
        request_bytes += record.bytes_max();
        fits(&REQUEST_SCHEMA, include_str!("../../schemas/media-request.json"), &record);
    }
    // Of a file: its path, its name, and the ids of its message, each with a bound.
    let bound = 4 * input.len() + 16 * 1024 * event.media.len();
    assert!(request_bytes <= bound, "{request_bytes} bytes of requests for {} bytes", input.len());
    let bound = 16 * input.len() + 16 * 1024 * (event.media.len() + 1);
    assert!(event.record.bytes_max() <= bound, "{} bytes for {}", event.record.bytes_max(), input.len());

    let again = event::build(&CONTEXT, &sealed, input).expect("what was a message");
    assert!(again.record == event.record && again.media == event.media, "a repeat gives another event");
}

/// What the SDK host and the worker read from each other.
///
/// Garbage is an error; what can be read comes back as it went.
pub fn frame(input: &[u8]) {
    let request = |bytes: &[u8]| {
        let frame = frame::decode::<Request<'_>>(bytes).ok()?;
        assert!(frame.body.answers() >= 1);
        Some(frame::encode(frame.call, frame.body).expect("a frame"))
    };
    let response = |bytes: &[u8]| {
        let frame = frame::decode::<Response>(bytes).ok()?;
        Some(frame::encode(frame.call, frame.body).expect("a frame"))
    };
    let (mut stream, mut buffer) = (input, Vec::new());
    while let Ok(true) = frame::read(&mut stream, &mut buffer) {
        comes_back(&buffer, request);
        comes_back(&buffer, response);
    }
    comes_back(input, request);
    comes_back(input, response);
}

fn comes_back(bytes: &[u8], encoded_again: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let Some(wire) = encoded_again(bytes) else { return };
    let (mut stream, mut buffer) = (wire.as_slice(), Vec::new());
    assert!(frame::read(&mut stream, &mut buffer).expect("a frame of ours"));
    assert_eq!(encoded_again(&buffer).expect("a frame of ours"), wire);
    assert!(!frame::read(&mut stream, &mut buffer).expect("the end"));
}

/// A file of a worker or of a connector, as properties or JSON.
///
/// All that is wrong comes in lines of printable text; the value of a key that holds a secret is in none of them, and not in what
/// `Debug` shows, whatever else stands in the file.
pub fn configuration(input: &[u8]) {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| tempfile::tempdir().expect("a folder"));
    // Threads must not share a file.
    let path = folder.path().join(format!("{:?}", std::thread::current().id()));
    // References are left out: what they name is this machine's.
    if contains(input, b"${") || contains(input, MARK.as_bytes()) {
        return;
    }
    told(&path, input);
    let sum = input.iter().fold(0_usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    let key = SECRET_KEYS[sum % SECRET_KEYS.len()];
    let value = SECRET_VALUES[sum / SECRET_KEYS.len() % SECRET_VALUES.len()].replace('#', MARK);
    for text in told(&path, &with_member(input, key, &value)) {
        assert!(!text.contains(MARK), "{key} = {value:?} is told: {text}");
    }
}

const MARK: &str = "Zq7Sesame";

const SECRET_KEYS: [&str; 12] = [
    "wecom.secret",
    "wecom.proxy.password",
    "wecom.private.keys.pem",
    "storage.secret.access.key",
    "storage.option.secret_access_key",
    "storage.option.customer_key",
    "sasl.password",
    "producer.sasl.oauthbearer.client.secret",
    "producer.override.sasl.password",
    "consumer.override.ssl.key.pem",
    "ssl.key.password",
    "sasl.jaas.config",
];

/// Right and wrong ones, with `#` for the secret.
const SECRET_VALUES: [&str; 8] = ["#", " # ", "user:#", "#\u{7}", "#\n#", "${#", "${vault:#}", "{\"a\":#"];

/// The file with one more member, that is, in front of those of a JSON connector and behind the lines of a properties file.
fn with_member(input: &[u8], key: &str, value: &str) -> Vec<u8> {
    let text = String::from_utf8_lossy(input);
    let quoted = serde_json::to_string(value).expect("a string");
    if text.trim_start().starts_with('{') {
        let front = text.find("\"config\":{").map_or_else(|| text.find('{'), |at| Some(at + "\"config\":".len()));
        let (before, after) = text.split_at(front.map_or(0, |at| at + 1));
        return format!("{before}\"{key}\":{quoted},{after}").into_bytes();
    }
    let escaped = value.replace('\\', "\\\\").replace('\n', "\\n").replace('\u{7}', "\\u0007");
    // Two line ends: the last line may end in a backslash.
    format!("{text}\n\n{key}={escaped}\n").into_bytes()
}

/// All that is said of a file, and what of it could be printed by mistake.
fn told(path: &Path, file: &[u8]) -> Vec<String> {
    fn of<T: Debug>(result: Result<(T, Vec<config::Warning>), config::ConfigErrors>, told: &mut Vec<String>) {
        let warnings = match result {
            Ok((config, warnings)) => {
                told.push(format!("{config:?}"));
                warnings
            }
            Err(errors) => {
                assert!(!errors.problems.is_empty());
                told.extend([errors.to_string(), format!("{errors:?}")]);
                errors.problems.iter().for_each(assert_one_line);
                errors.warnings
            }
        };
        warnings.iter().for_each(assert_one_line);
        told.push(format!("{warnings:?}"));
    }
    std::fs::write(path, file).expect("a file");
    // A worker's file may allow itself to run programs: no input is to find that out.
    if String::from_utf8_lossy(file).contains("exec") {
        return Vec::new();
    }
    let mut told = Vec::new();
    of(config::load_worker(path), &mut told);
    of(config::load_connector(path, config::Providers::default()), &mut told);
    if let Ok(map) = serde_json::from_slice::<BTreeMap<String, String>>(file) {
        told.push(config::validation(&map).to_string());
    }
    told
}

/// The value of a record in the topics of media requests.
///
/// What is a request is the same once written and read again, and no number in it leads to an overflow.
pub fn media_request(input: &[u8]) {
    let Ok(request) = MediaRequest::parse(input) else { return };
    comes_back_from_kafka(&request);
    let _ = request.dated_ms();
    let failed = request.clone().failed("later".into(), NOW_MS);
    assert!(failed.attempts >= request.attempts);
    comes_back_from_kafka(&failed);
}

fn comes_back_from_kafka(request: &MediaRequest) -> Record {
    let record = request.to_record(NOW_MS);
    assert_eq!(&MediaRequest::parse(&record.value).expect("a request of ours"), request);
    record
}

/// A scenario of the simulator.
///
/// What is accepted can be played: there is a message at each end of its history.
pub fn scenario(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let scenario = match Scenario::parse(Path::new("scenario.toml"), text) {
        Ok(scenario) => scenario,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    let base_time_ms = scenario.base_time_ms.unwrap_or(NOW_MS);
    for scenario in scenario.corps {
        // A message tells the md5 of its files: a pass over each.
        let sizes = scenario.pinned.iter().filter_map(|pinned| pinned.size_bytes);
        let sizes = sizes.chain([scenario.media.size_bytes[1], scenario.media.large_size_bytes[1]]);
        let is_playable = sizes.max().is_none_or(|bytes| bytes <= 16 << 20);
        let corp = Corp::new(scenario, base_time_ms);
        let archived = corp.archived(NOW_MS);
        assert!(corp.window_start(NOW_MS) <= archived);
        for index in [0, archived.saturating_sub(1)] {
            let seq = corp.seq(index);
            assert_eq!(corp.index(seq), Some(index));
            if is_playable {
                assert_eq!(message::compose(&corp, seq).seq, seq);
            }
        }
    }
}

/// Holds the record against its schema, unless it is nested too deeply to be read whole.
fn fits(validator: &OnceLock<Validator>, schema: &str, record: &Record) {
    serde_json::from_slice::<IgnoredAny>(&record.value).expect("JSON");
    let Ok(value) = serde_json::from_slice(&record.value) else { return };
    let validator = validator.get_or_init(|| {
        let schema = serde_json::from_str(schema).expect("a schema in JSON");
        jsonschema::validator_for(&schema).expect("a schema")
    });
    let faults: Vec<String> = validator.iter_errors(&value).map(|fault| fault.instance_path().to_string()).collect();
    assert!(faults.is_empty(), "breaks its schema at {faults:?}");
}

fn assert_one_line(text: &impl Display) {
    let text = text.to_string();
    assert!(!text.chars().any(char::is_control), "{text:?} is no line of text");
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
