//! The simulated archive as its readers meet it: one Rust call a C call, on scenarios written here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rsa::{Pkcs1PrivateDecryptingKey, PrivateDecryptingKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::pkcs8::{DecodePrivateKey, EncodePrivateKey};
use serde_json::Value;
use wecom_simulator::archive::{Archive, now_ms};
use wecom_simulator::code::Code;
use wecom_simulator::fault::Fault;
use wecom_simulator::media::{CHUNK_BYTES, Chunk, hexadecimal};
use wecom_simulator::message::kind::{MessageKind, Oddity};
use wecom_simulator::message::{Message, compose};
use wecom_simulator::network::Via;
use wecom_simulator::oracle::{self, Expect, ExpectMedia, Expectation};
use wecom_simulator::scenario::{Scenario, ScenarioError};
use wecom_simulator::sdk::Sdk;

/// All types evenly, every oddity and every bad record.
const EVERYTHING: &str = "
seed = 11
messages = 4000
history_hours = 20
seq_gap_every = 90
seq_gap = 4
conversations = 50
key = [{ version = 1 }, { version = 2, from_seq = 1500 }, { version = 7, from_seq = 3000 }]
media = { size_bytes = [0, 3000], large_share = 0.01, large_size_bytes = [500000, 1200000] }
pinned = [{ seq = 5, msgtype = \"video\", size_bytes = 1048576 }]
";

/// No proxy, and five seconds.
const VIA: Via<'static> = Via { proxy: b"", password: b"", timeout_s: 5 };

/// A scenario in a folder of its own.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new(corp: &str, more: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let text = format!("[[corp]]\nid = 'ww1'\nsecret = 'right'\n{corp}\n{more}");
        std::fs::write(folder.path().join("scenario.toml"), text).unwrap();
        Self { folder }
    }

    fn everything() -> Self {
        let names = |value: Value| value.as_str().map(ToOwned::to_owned).unwrap();
        let mix = MessageKind::ALL.map(|kind| format!("{} = 1", names(serde_json::to_value(kind).unwrap()))).join(", ");
        let odd: Vec<String> = Oddity::ALL
            .iter()
            .map(|odd| {
                let is_big = matches!(odd, Oddity::LargeMessage | Oddity::LongTolist);
                let which = if is_big { format!("seq = [{}]", 40 + *odd as u64) } else { "share = 0.01".to_owned() };
                format!("{{ kind = '{}', {which} }}", names(serde_json::to_value(odd).unwrap()))
            })
            .collect();
        let bad =
            "unknown_key_version bad_base64 wrong_key garbage_ciphertext short_ciphertext not_json missing_fields";
        let bad: Vec<String> =
            bad.split(' ').map(|bad| format!("{{ kind = '{bad}', share = 0.004, seq = [3999] }}")).collect();
        Self::new(&format!("{EVERYTHING}\nmix = {{ {mix} }}\nodd = [{}]\nbad = [{}]", odd.join(","), bad.join(",")), "")
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("scenario.toml")
    }

    fn archive(&self) -> Arc<Archive> {
        Arc::new(Archive::open(Scenario::load(&self.path()).unwrap()).unwrap())
    }

    fn faults(&self) -> Vec<Fault> {
        Scenario::load(&self.path()).unwrap().faults
    }

    fn expectations(&self) -> Vec<Expectation> {
        let (archive, faults) = (self.archive(), self.faults());
        oracle::expectations(archive.corp("ww1").unwrap(), &faults, now_ms()).collect()
    }

    fn program(&self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wecom-simulator"));
        let output = command.args(arguments).arg("--scenario").arg(self.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}

fn sdk(archive: &Arc<Archive>) -> Sdk {
    let sdk = Sdk::new(Some(archive.clone()));
    sdk.init(b"ww1", b"right").unwrap();
    sdk
}

fn pull(sdk: &Sdk, seq: u64, limit: u32) -> Result<Vec<u8>, Code> {
    sdk.get_chat_data(seq, limit, &VIA)
}

fn records(page: &[u8]) -> Vec<Value> {
    let page: Value = serde_json::from_slice(page).unwrap();
    assert_eq!(page["errcode"], 0, "{page}");
    page.get("chatdata").map(|records| records.as_array().unwrap().clone()).unwrap_or_default()
}

/// All records, in pages of `limit`.
fn drain(sdk: &Sdk, limit: u32) -> Vec<Value> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let seq = all.last().map_or(0, |record| record["seq"].as_u64().unwrap());
        let page = records(&pull(sdk, seq, limit).unwrap());
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

fn file(sdk: &Sdk, sdkfileid: &str) -> Result<Vec<u8>, Code> {
    let mut content = Vec::new();
    let mut index = Vec::new();
    loop {
        let Chunk { data, next_index, is_finish } = sdk.get_media_data(&index, sdkfileid.as_bytes(), &VIA)?;
        assert!(data.len() as u64 <= CHUNK_BYTES);
        assert_eq!(is_finish, next_index.is_empty());
        content.extend(data);
        index = next_index;
        if is_finish {
            return Ok(content);
        }
    }
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(digest(&SHA256, bytes).as_ref())
}

/// The message as strict JSON: what a reader has to do to raw control bytes.
fn parse(text: &str) -> Option<Value> {
    let escaped: String = text
        .chars()
        .map(
            |character| {
                if character < ' ' { format!("\\u{:04x}", u32::from(character)) } else { character.to_string() }
            },
        )
        .collect();
    serde_json::from_str(&escaped).ok()
}

/// Every `sdkfileid`, with its path, also in JSON that stands in strings.
fn walk(value: &Value, path: &str, found: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                match member {
                    Value::String(id) if name == "sdkfileid" => found.push((format!("{path}/{name}"), id.clone())),
                    member => walk(member, &format!("{path}/{name}"), found),
                }
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(place, item)| walk(item, &format!("{path}/{place}"), found));
        }
        Value::String(text) if text.starts_with('{') => {
            if let Some(inner) = parse(text) {
                walk(&inner, path, found);
            }
        }
        _ => {}
    }
}

#[test]
fn every_message_is_json_and_says_what_it_is_said_to_say() {
    let world = World::everything();
    let archive = world.archive();
    let corp = archive.corp("ww1").unwrap();
    let mut kinds = BTreeSet::new();
    let mut oddities = BTreeSet::new();
    let mut msgids = BTreeSet::new();
    for index in 0..4_000 {
        let message: Message = compose(corp, corp.seq(index));
        let json = parse(&String::from_utf8_lossy(&message.plaintext));
        let json = json.unwrap_or_else(|| panic!("seq {} is no JSON", message.seq));
        assert_eq!(json["msgid"], message.msgid.as_str());
        assert_eq!(json["action"], message.action);
        assert_eq!(json["msgtype"].as_str(), message.kind.msgtype());
        assert_eq!(json["from"].as_str(), message.from.as_deref());
        assert_eq!(json["tolist"].as_array().map_or(0, Vec::len), message.to.len());
        assert_eq!(json["roomid"].as_str().filter(|id| !id.is_empty()), message.room_id.as_deref());
        assert_eq!(json["msgtime"].as_i64(), message.msgtime_ms);
        let mut found = Vec::new();
        walk(&json, "", &mut found);
        let mut media: Vec<(String, String)> =
            message.media.iter().map(|media| (media.path.clone(), media.sdkfileid.clone())).collect();
        found.sort();
        media.sort();
        assert_eq!(found, media, "seq {}", message.seq);

        let strict = serde_json::from_slice::<Value>(&message.plaintext).is_ok();
        let is_utf8 = std::str::from_utf8(&message.plaintext).is_ok();
        assert_eq!(is_utf8, message.odd != Some(Oddity::NotUtf8), "seq {}", message.seq);
        assert!(!(strict && message.odd == Some(Oddity::NulByte)), "seq {}", message.seq);
        if message.odd == Some(Oddity::LargeMessage) {
            assert!(message.plaintext.len() > 1 << 20);
        }
        assert!(msgids.insert(message.msgid), "a msgid comes twice");
        kinds.insert(message.kind);
        oddities.extend(message.odd);
    }
    assert_eq!(kinds, MessageKind::ALL.into(), "each type is there");
    assert_eq!(oddities, Oddity::ALL.into(), "each oddity is there");
}

/// A private key file as a connector reads it.
fn read_key(path: &Path) -> Pkcs1PrivateDecryptingKey {
    let pem = std::fs::read_to_string(path).unwrap();
    let key = rsa::PrivateKey::from_pkcs1_pem(&pem).or_else(|_| rsa::PrivateKey::from_pkcs8_pem(&pem)).unwrap();
    let der = key.to_pkcs8_der().unwrap();
    Pkcs1PrivateDecryptingKey::new(PrivateDecryptingKey::from_pkcs8(der.as_bytes()).unwrap()).unwrap()
}

/// What a reader makes of a record, by the means of a connector.
fn read(archive: &Archive, keys: &BTreeMap<u64, Pkcs1PrivateDecryptingKey>, record: &Value) -> Result<Vec<u8>, Expect> {
    let text = |name: &str| record[name].as_str().ok_or(Expect::Malformed);
    let version = record["publickey_ver"].as_u64().ok_or(Expect::Malformed)?;
    let (_, sealed_key, sealed) = (text("msgid")?, text("encrypt_random_key")?, text("encrypt_chat_msg")?);
    let key = keys.get(&version).ok_or(Expect::UnknownKeyVersion)?;
    let sealed_key = BASE64.decode(sealed_key).map_err(|_| Expect::Base64)?;
    let mut random_key = vec![0; key.min_output_size()];
    let random_key = key.decrypt(&sealed_key, &mut random_key).map_err(|_| Expect::Rsa)?;
    if sealed.len() < 13 {
        return Err(Expect::SdkCrash);
    }
    archive.decrypt(random_key, sealed.as_bytes()).map_err(|Code(code)| {
        assert_eq!(code, 10_008);
        Expect::Decrypt
    })
}

/// The archive as its calls give it out, against what the oracle says of it: page sizes, all records, all media.
#[test]
fn the_oracle_tells_what_the_calls_give() {
    let world = World::everything();
    let archive = world.archive();
    let keys_folder = world.folder.path().join("keys");
    world.program(&["keys", "--out", keys_folder.to_str().unwrap()]);
    let keys = [1, 2, 7].map(|version| (version, read_key(&keys_folder.join(format!("{version}.pem")))));
    let keys = BTreeMap::from(keys);
    let sdk = sdk(&archive);
    let corp = archive.corp("ww1").unwrap();

    let all = drain(&sdk, 1_000);
    assert_eq!(drain(&sdk, 77), all, "pages of another size");
    let other_process = world.archive();
    assert_eq!(drain(&self::sdk(&other_process), 1_000), all, "another process");

    let expectations = world.expectations();
    assert_eq!(all.len(), expectations.len());
    let mut outcomes = BTreeMap::new();
    for (record, expectation) in all.iter().zip(&expectations) {
        let seq = expectation.seq;
        assert_eq!(record["seq"], seq);
        *outcomes.entry(expectation.expect).or_insert(0) += 1;
        match read(&archive, &keys, record) {
            Ok(plaintext) => {
                assert_eq!(sha256(&plaintext), expectation.plaintext_sha256, "seq {seq}");
                let is_json = parse(&String::from_utf8_lossy(&plaintext)).is_some();
                let expect = if is_json { Expect::Message } else { Expect::NotJson };
                assert_eq!(expect, expectation.expect, "seq {seq}");
            }
            Err(expect) => assert_eq!(expect, expectation.expect, "seq {seq}"),
        }
        let message = compose(corp, seq);
        for (expected, reference) in expectation.media.iter().zip(&message.media) {
            assert_eq!(expected.path, reference.path);
            assert_eq!(expected.sdkfileid_sha256, sha256(reference.sdkfileid.as_bytes()));
            match (file(&sdk, &reference.sdkfileid), reference.odd) {
                (Ok(content), odd) => {
                    assert_eq!(content.len() as u64, expected.size);
                    assert_eq!(sha256(&content), expected.sha256);
                    let is_other = odd == Some(Oddity::WrongMd5);
                    assert_eq!(expected.expect, if is_other { ExpectMedia::Failed } else { ExpectMedia::Stored });
                }
                (Err(Code(10_010)), Some(Oddity::Expired)) | (Err(Code(10_002)), Some(Oddity::Gone)) => {
                    assert_eq!(expected.expect, ExpectMedia::Expired);
                }
                (Err(Code(10_005)), Some(Oddity::BadSdkfileid)) | (Err(Code(10_006)), Some(Oddity::Undecryptable)) => {
                    assert_eq!(expected.expect, ExpectMedia::Failed)
                }
                (Err(Code(code)), odd) => panic!("seq {seq}: {code} for {odd:?}"),
            }
        }
    }
    assert_eq!(outcomes.len(), 8, "each outcome is there: {outcomes:?}");
}

/// (seed, seq) gives the message: in another process with another state folder too.
#[test]
fn another_process_says_the_same() {
    let settings = format!("{EVERYTHING}\n");
    let base_time = format!("base_time_ms = {}\n", now_ms());
    let world = World::new(&settings, "");
    let text = std::fs::read_to_string(world.path()).unwrap();
    std::fs::write(world.path(), format!("{base_time}{text}")).unwrap();
    let here: Vec<Value> = world.expectations().iter().map(|line| serde_json::to_value(line).unwrap()).collect();
    for state in ["one", "two"] {
        let with_state = format!("state_dir = '{state}'\n{base_time}{text}");
        std::fs::write(world.path(), with_state).unwrap();
        let there = String::from_utf8(world.program(&["list"])).unwrap();
        let there: Vec<Value> = there.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(here, there);
    }
}

#[test]
fn the_window_is_enforced_in_silence() {
    let world = World::new("messages = 100\nhistory_hours = 201\nmix = { image = 1 }\nodd = []", "");
    let archive = world.archive();
    let sdk = sdk(&archive);
    let all = drain(&sdk, 1_000);
    let first = all[0]["seq"].as_u64().unwrap();
    assert!((35..=45).contains(&first), "{first}");
    assert_eq!(all.len() as u64, 101 - first);
    let corp = archive.corp("ww1").unwrap();
    let outcome = |seq: u64| file(&sdk, &compose(corp, seq).media[0].sdkfileid).map(|_| ());
    assert_eq!(outcome(first - 1), Err(Code(10_010)));
    assert_eq!(outcome(100), Ok(()));
    let forgotten: Vec<Expect> = world.expectations().iter().map(|line| line.expect).collect();
    assert_eq!(forgotten.iter().filter(|expect| **expect == Expect::OutOfWindow).count() as u64, first - 1);
}

fn errcode(answer: Result<Vec<u8>, Code>) -> i64 {
    serde_json::from_slice::<Value>(&answer.unwrap()).unwrap()["errcode"].as_i64().unwrap()
}

/// A revoked token stays with every object that has it; a new object has a new one.
#[test]
fn a_revoked_token_sticks_to_the_object() {
    let world = World::new(
        "messages = 10\nmix = { image = 1 }",
        "[[fault]]\nfunction = 'GetChatData'\ncall = 3\nerrcode = 40014",
    );
    let (archive, other_process) = (world.archive(), world.archive());
    let (first, second) = (sdk(&archive), sdk(&other_process));
    assert_eq!(errcode(pull(&first, 0, 1)), 0);
    assert_eq!(errcode(pull(&second, 0, 1)), 0);
    for _ in 0..3 {
        assert_eq!(errcode(pull(&first, 0, 1)), 40_014);
        assert_eq!(errcode(pull(&second, 0, 1)), 40_014);
        let id = compose(archive.corp("ww1").unwrap(), 1).media[0].sdkfileid.clone();
        assert_eq!(file(&first, &id), Err(Code(10_002)));
    }
    assert_eq!(errcode(pull(&sdk(&archive), 0, 1)), 0);
    assert_eq!(errcode(pull(&first, 0, 1)), 40_014);
}

#[test]
fn a_token_ends_and_calls_are_counted() {
    let world = World::new("token_life_seconds = 0", "");
    assert_eq!(errcode(pull(&sdk(&world.archive()), 0, 1)), 42_001);
    let world = World::new("calls_per_minute = 3", "");
    let sdk = sdk(&world.archive());
    let codes: BTreeSet<i64> = (0..8).map(|_| errcode(pull(&sdk, 0, 1))).collect();
    assert_eq!(codes, BTreeSet::from([0, 45_009]));
}

/// What a scripted fault makes of a row of calls of `GetChatData`, told in one word each.
#[test]
fn faults_strike_as_scripted() {
    let rows = [
        ("code = 10003", "10003 ok ok"),
        ("code = 10001\ncall = 2\ntimes = 2", "ok 10001 10001 ok"),
        ("code = 10009\ntimes = 'always'", "10009 10009 10009"),
        ("errcode = 301058\nlimit_above = 4\ntimes = 'always'", "301058 301058"),
        ("errcode = 301058\nlimit_above = 5\ntimes = 'always'", "ok ok"),
        ("errcode = -1", "-1 ok"),
        ("seq = [6]\nerrcode = 45033", "ok ok"),
        ("seq = [3]\nerrcode = 45033", "45033 ok"),
        ("body = 'garbage'", "no_json ok"),
        ("body = 'empty'", "no_json ok"),
        ("body = 'html'", "no_json ok"),
        ("body = 'nul'", "no_json ok"),
        ("body = 'truncated'", "no_json ok"),
        ("body = 'wrong_types'", "wrong_types ok"),
        ("body = 'huge'", "huge ok"),
        ("refuse_token = true", "10001 ok"),
        ("slow_ms = 60000", "10001 ok"),
        ("stdout = 'noise'", "ok ok"),
        ("corp = 'ww1'\ncode = 10002\nprobability = 0.0", "ok ok"),
    ];
    for (fault, expected) in rows {
        let world = World::new("messages = 9", &format!("[[fault]]\nfunction = 'GetChatData'\n{fault}"));
        let word = |answer: Result<Vec<u8>, Code>| match answer {
            Err(Code(code)) => code.to_string(),
            Ok(body) if body.len() > 1 << 20 => "huge".to_owned(),
            Ok(body) => match serde_json::from_slice::<Value>(&body) {
                Err(_) => "no_json".to_owned(),
                Ok(page) if page["errcode"] != 0 => page["errcode"].to_string(),
                Ok(page) if page["chatdata"].is_array() => "ok".to_owned(),
                Ok(_) => "wrong_types".to_owned(),
            },
        };
        let words: Vec<String> = expected
            .split(' ')
            // Each call as after a restart: a new archive on the same state folder.
            .map(|_| {
                word(sdk(&world.archive()).get_chat_data(
                    0,
                    5,
                    &Via { timeout_s: i32::from(fault.contains("slow")), ..VIA },
                ))
            })
            .collect();
        assert_eq!(words.join(" "), expected, "{fault}");
    }
}

#[test]
fn media_faults_lose_or_bend_bytes() {
    let corp = "messages = 1\npinned = [{ seq = 1, msgtype = 'video', size_bytes = 700000 }]\nodd = []";
    let rows = [
        ("short_chunk_bytes = 1000", true, 700_000),
        ("lose_bytes = 3", false, 699_984),
        ("corrupt = true", false, 700_000),
        ("corrupt = true\nseq = [2]", true, 700_000),
    ];
    for (fault, is_whole, size) in rows {
        let world = World::new(corp, &format!("[[fault]]\nfunction = 'GetMediaData'\n{fault}"));
        let archive = world.archive();
        let reference = compose(archive.corp("ww1").unwrap(), 1).media[0].clone();
        let sha256_of_truth = reference.file.hashes(archive.corp("ww1").unwrap().scenario.seed).sha256;
        let content = file(&sdk(&archive), &reference.sdkfileid).unwrap();
        assert_eq!((sha256(&content) == sha256_of_truth, content.len()), (is_whole, size), "{fault}");
    }
}

#[test]
fn a_scenario_that_is_wrong_says_where() {
    let fault = |fault: &str| format!("[[corp]]\nid = 'a'\nsecret = 'b'\n[[fault]]\nfunction = 'GetChatData'\n{fault}");
    let rows = [
        (String::new(), "missing field `corp`"),
        ("corp = []".to_owned(), "no [[corp]]"),
        ("[[corp]]\nid = 'a'\nsecret = 'b'\nmesages = 3".to_owned(), "unknown field `mesages`"),
        ("[[corp]]\nid = '../a'\nsecret = 'b'".to_owned(), "id must be"),
        ("[[corp]]\nid = 'a'\nsecret = 'b'\nmix = { txt = 1 }".to_owned(), "unknown variant `txt`"),
        ("[[corp]]\nid = 'a'\nsecret = 'b'\nbad = [{ kind = 'not_json', share = 2.0 }]".to_owned(), "a share lies"),
        (
            "[[corp]]\nid = 'a'\nsecret = 'b'\nkey = [{ version = 2 }, { version = 1, from_seq = 9 }]".to_owned(),
            "rising order",
        ),
        (fault(""), "does nothing"),
        (fault("code = 1\nhang = true"), "several things"),
        (fault("corrupt = true"), "for GetMediaData"),
        (fault("corp = 'c'\nhang = true"), "no corp"),
    ];
    for (text, expected) in rows {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scenario.toml");
        std::fs::write(&path, &text).unwrap();
        let error: ScenarioError = Scenario::load(&path).unwrap_err();
        assert!(error.to_string().contains(expected), "{text}\n{error}");
    }
    for scenario in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap() {
        let path = scenario.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            Scenario::load(&path).unwrap();
        }
    }
}
