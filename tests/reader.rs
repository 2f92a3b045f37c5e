//! The independent reader finds what it is there to find: a checker that never complains proves nothing.
//!
//! The topics are filled by hand, once as a right connector would and once with one fault of every kind.

#[path = "common/harness.rs"]
mod harness;

use std::path::{Path, PathBuf};
use std::time::Duration;

use aws_lc_rs::digest;
use md5::Digest as _;
use rdkafka::config::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use serde_json::{Value, json};

use harness::{Kafka, Reader, unique};

const CORP: &str = "ww1";
const DEAD_SEQ: u64 = 5;
/// Left the archive before it was pulled; a gap event stands in its place.
const FORGOTTEN_SEQ: u64 = 6;
const LAST_SEQ: u64 = 9;

#[test]
fn what_is_right_is_found_clean() {
    let corp = Corp::new();
    corp.publish(&(1..=LAST_SEQ).map(|seq| corp.record(seq)).collect::<Vec<_>>(), LAST_SEQ);
    let report = corp.reader().check();
    assert!(report.contains("control bytes escaped=1"), "{report}");
    assert!(report.contains("kept as base64=1"), "{report}");
    assert!(report.contains("dead letters: rsa 1"), "{report}");
    assert!(report.contains("media: expired 1 stored 2"), "{report}");
    // A gap event is none of the messages.
    assert!(report.contains("messages: text 7") && report.contains("gaps: events 1"), "{report}");
}

#[test]
fn every_kind_of_fault_is_found() {
    let corp = Corp::new();
    let mut records: Vec<Record> = (1..=LAST_SEQ).map(|seq| corp.record(seq)).collect();
    // Lost, twice, out of order, in a wrong partition, changed, with a wrong reason, with a wrong hash, without its object.
    let lost = records.remove(0);
    let twice = records[0].clone();
    // Replayed, of a dead letter that there is not, and twice.
    let mut replayed = twice.clone();
    replayed.headers.push(("wecom.replayed_from", "elsewhere-0@7".to_owned()));
    records.extend([twice, replayed.clone(), replayed]);
    let mut of = |seq: u64, change: &dyn Fn(&mut Record)| {
        records.iter_mut().filter(|record| record.seq == seq).for_each(change);
    };
    of(4, &|record| (record.partition, record.key) = (Some(0), "elsewhere".into()));
    of(7, &|record| record.value = record.value.replace("1.10", "1.1"));
    of(DEAD_SEQ, &|record| record.reason = "base64");
    of(8, &|record| {
        record.reference = record.reference.replace(&sha256(b"content of 8"), &sha256(b"something else"));
    });
    // Of headers: another seq, another time, no time, a kind that there is not, a broken link, none at all.
    of(3, &|record| record.set("ce_id", "4"));
    of(4, &|record| record.set("ce_time", "2020-10-28T09:00:15.123Z"));
    of(9, &|record| record.set("ce_time", ""));
    of(7, &|record| record.set("ce_type", "wecom.archive.other"));
    of(8, &|record| record.set("wecom.previous_seq", "6"));
    of(DEAD_SEQ, &|record| record.set("wecom.previous_seq", ""));
    // Of times: another message's, a timestamp after the message, one of a message that is ahead, one that is older
    // than it can be, and one that is taken for impossible and is not.
    of(9, &|record| record.headers.push(("wecom.timestamp_from", "newest_message".to_owned())));
    of(7, &|record| record.value = record.value.replace("\"msgtime_ms\":", "\"msgtime_ms\":1"));
    of(8, &|record| record.timestamp_ms += 1);
    of(3, &|record| record.timestamp_ms += 600_000);
    of(4, &|record| record.timestamp_ms += 600_000);
    of(FORGOTTEN_SEQ, &|record| record.value = record.value.replace("\"before_seq\":7", "\"before_seq\":5"));
    std::fs::remove_file(corp.object(9)).expect("the object of 9");
    corp.publish(&records, LAST_SEQ - 1);

    let (clean, report) = corp.reader().run();
    assert!(!clean);
    assert_eq!(lost.seq, 1);
    for finding in [
        "seq 1: 0 messages and 0 dead letters, should be 1 and 0",
        "seq 2: 4 messages and 0 dead letters, should be 1 and 0",
        "seq 2: the dead letter was replayed before ",
        "seq 2: no dead letter of this seq at elsewhere-0@7",
        "seq 2 after ",
        "seq 6: 0 messages and 0 dead letters, and no gap that it lies in",
        "Gap[afterSeq=5, beforeSeq=5]",
        "headers of seq 3 ",
        "headers of seq 4 ",
        "headers of seq 7 ",
        "headers of seq 9 ",
        "seq 8: previous_seq is 6, should be 7",
        "seq 5: previous_seq is , should be 4",
        "seq 7: msgtime_ms is 1",
        "seq 8: timestamp ",
        "seq 9: timestamp ",
        "seq 3: timestamp ",
        "seq 4: timestamp ",
        "should be partition ",
        "conversation room 1 has the keys [elsewhere, room 1]",
        "seq 7 (text)",
        "seq 5: reason base64, should be rsa",
        "offset of [\"archive\",{\"corp_id\":\"ww1\"}] is {\"seq\":8}, should be seq 9",
        "MediaName[msgid=m8, path=/file/sdkfileid]: 12 bytes",
        "NoSuchFileException",
    ] {
        assert!(report.contains(finding), "{finding} is not in:\n{report}");
    }
}

/// What a connector writes about one seq.
#[derive(Clone)]
struct Record {
    seq: u64,
    key: String,
    value: String,
    headers: Vec<(&'static str, String)>,
    timestamp_ms: i64,
    partition: Option<i32>,
    /// Of a dead letter.
    reason: &'static str,
    request: String,
    reference: String,
}

impl Record {
    /// An empty value is none.
    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(header, _)| *header != name || !value.is_empty());
        self.headers.iter_mut().filter(|(header, _)| *header == name).for_each(|header| header.1 = value.to_owned());
    }
}

/// A corp with nine records: 5 is a dead letter, 6 is lost in a gap; 7, 8 and 9 have a file, and that of 7 has expired. The second
/// message has no time, the third one is ahead, the fourth one years old.
struct Corp {
    folder: tempfile::TempDir,
    topic: String,
    now_ms: i64,
}

impl Corp {
    fn new() -> Corp {
        let corp = Corp { folder: tempfile::tempdir().expect("a folder"), topic: unique("messages"), now_ms: now_ms() };
        let expected: String = (1..=LAST_SEQ).map(|seq| format!("{}\n", corp.expected(seq))).collect();
        std::fs::write(corp.expected_file(), expected).expect("the list");
        for seq in [8, 9] {
            std::fs::write(corp.object(seq), content(seq)).expect("an object");
        }
        for topic in ["", "-dead-letters", "-media-requests", "-media", "-offsets"] {
            Kafka::shared().create_topic(&format!("{}{topic}", corp.topic), 3);
        }
        corp
    }

    fn expected_file(&self) -> PathBuf {
        self.folder.path().join("expected.jsonl")
    }

    fn object(&self, seq: u64) -> PathBuf {
        self.folder.path().join(format!("object {seq}"))
    }

    fn reader(&self) -> Reader {
        Reader::new(Kafka::shared(), Path::new(&self.expected_file()))
            .option("--connector", "archive")
            .option("--corp", CORP)
            .option("--topic", &self.topic)
            .option("--offsets-topic", format!("{}-offsets", self.topic))
    }

    /// When the message was written, and the timestamp of its record.
    fn times(&self, seq: u64) -> (i64, i64) {
        const DAY_MS: i64 = 24 * 3_600_000;
        match seq {
            2 => (0, self.now_ms - 3_600_000),
            3 => (self.now_ms + 3 * DAY_MS, self.now_ms - 3_600_000),
            4 => (self.now_ms - 3_000 * DAY_MS, self.now_ms - 3_600_000),
            _ => (self.now_ms - 3_600_000, self.now_ms - 3_600_000),
        }
    }

    /// The message as it was decrypted.
    fn plaintext(&self, seq: u64) -> Vec<u8> {
        match seq {
            2 => b"{ \"text\":\"raw \x01 byte\" }".to_vec(),
            3 => b"{\"text\":\"\xff\"}".to_vec(),
            _ => {
                format!("{{\"price\": 1.10,\n \"id\":18446744073709551615,\"text\":\"\\/\\u4f60 {seq}\"}}").into_bytes()
            }
        }
    }

    fn expected(&self, seq: u64) -> Value {
        let media = match seq {
            7 => json!([{"path": "/file/sdkfileid", "expect": "expired"}]),
            8 | 9 => json!([{
                "path": "/file/sdkfileid", "expect": "stored", "size": content(seq).len(),
                "md5": md5(&content(seq)), "sha256": sha256(&content(seq)),
            }]),
            _ => json!([]),
        };
        json!({
            "corp_id": CORP, "seq": seq, "msgid": format!("m{seq}"), "publickey_ver": 1, "msgtype": "text", "action": "send",
            "from": "anna", "to": ["bert"], "roomid": "", "conversation": conversation(seq), "msgtime_ms": self.times(seq).0,
            "plaintext_sha256": sha256(&self.plaintext(seq)),
            "expect": match seq { DEAD_SEQ => "rsa", FORGOTTEN_SEQ => "out_of_window", _ => "message" }, "media": media,
        })
    }

    fn record(&self, seq: u64) -> Record {
        let said = self.expected(seq);
        let (msgtime_ms, timestamp_ms) = self.times(seq);
        let mut fields = json!({
            "schema": "urn:wecom-connector:message:1", "msgtime_ms": msgtime_ms, "corp_id": CORP, "seq": seq, "msgid": said["msgid"], "publickey_ver": 1, "action": "send", "msgtype": "text",
            "from": "anna", "to": ["bert"], "room_id": null, "media": said["media"],
        });
        let mut message = String::from_utf8_lossy(&self.plaintext(seq)).into_owned();
        if message.contains('\u{1}') {
            message = message.replace('\u{1}', "\\u0001");
            fields["control_bytes_escaped"] = true.into();
        }
        if message.contains('\u{fffd}') {
            use base64::Engine as _;
            let original = base64::engine::general_purpose::STANDARD.encode(self.plaintext(seq));
            fields["original_base64"] = original.into();
        }
        let fields = fields.to_string();
        let value = format!("{},\"message\":{message}}}", fields.strip_suffix('}').expect("an object"));
        let sealed =
            json!({"seq": seq, "msgid": said["msgid"], "publickey_ver": 1, "encrypt_chat_msg": "…"}).to_string();
        let (mut request, mut reference) = (String::new(), String::new());
        if let Some(media) = said["media"].get(0) {
            let mut event = json!({"corp_id": CORP, "msgid": said["msgid"], "path": media["path"]});
            request = event.to_string();
            event["status"] = media["expect"].clone();
            if media["expect"] == "stored" {
                event["uri"] = format!("file://{}", self.object(seq).display()).replace(' ', "%20").into();
                event["size"] = media["size"].clone();
                event["md5"] = media["md5"].clone();
                event["sha256"] = media["sha256"].clone();
            }
            reference = event.to_string();
        }
        let previous_seq = ("wecom.previous_seq", if seq == 7 { DEAD_SEQ } else { seq - 1 }.to_string());
        let (key, value, headers) = match seq {
            DEAD_SEQ => {
                let why = ("__connect.errors.exception.message", "why".to_owned());
                (CORP, sealed, vec![("wecom.reason", String::new()), why, previous_seq])
            }
            FORGOTTEN_SEQ => {
                let schema = "urn:wecom-connector:gap:1";
                let gap = json!({"schema": schema, "corp_id": CORP, "after_seq": DEAD_SEQ, "before_seq": 7});
                let headers = cloud_event("7/gap", "wecom.archive.gap", schema, self.now_ms);
                (CORP, gap.to_string(), headers)
            }
            _ => {
                let mut headers =
                    cloud_event(&seq.to_string(), "wecom.archive.message", "urn:wecom-connector:message:1", msgtime_ms);
                headers.extend([("ce_subject", format!("m{seq}")), previous_seq]);
                if (2..=4).contains(&seq) {
                    headers.push(("wecom.timestamp_from", "newest_message".to_owned()));
                }
                (conversation(seq), value, headers)
            }
        };
        Record {
            seq,
            key: key.to_owned(),
            value,
            headers,
            timestamp_ms,
            partition: None,
            reason: if seq == DEAD_SEQ { "rsa" } else { "" },
            request,
            reference,
        }
    }

    fn publish(&self, records: &[Record], offset: u64) {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", Kafka::shared().bootstrap())
            .set("partitioner", "murmur2_random")
            .create()
            .expect("a producer");
        let send = |suffix: &str, record: &Record| {
            let topic = format!("{}{suffix}", self.topic);
            let headers = record
                .headers
                .iter()
                .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
            let mut outgoing = BaseRecord::to(&topic).key(&record.key).payload(&record.value).headers(headers);
            outgoing = outgoing.timestamp(record.timestamp_ms);
            outgoing.partition = record.partition;
            producer.send(outgoing).unwrap_or_else(|(error, _)| panic!("{error}"));
        };
        let plain = |suffix: &str, key: &str, value: &str| {
            let topic = format!("{}{suffix}", self.topic);
            producer
                .send(BaseRecord::to(&topic).key(key).payload(value))
                .unwrap_or_else(|(error, _)| panic!("{error}"));
        };
        for record in records {
            let mut record = record.clone();
            if record.reason.is_empty() {
                send("", &record);
            } else {
                record.set("wecom.reason", record.reason);
                send("-dead-letters", &record);
            }
            if !record.request.is_empty() {
                plain("-media-requests", "m", &record.request);
                plain("-media", &record.key, &record.reference);
            }
        }
        let key = json!(["archive", {"corp_id": CORP}]).to_string();
        plain("-offsets", &key, &json!({"seq": 3}).to_string());
        plain("-offsets", &key, &json!({"seq": offset}).to_string());
        producer.flush(Duration::from_secs(60)).expect("delivery");
    }
}

/// Headers of CloudEvents, as the connector writes them.
fn cloud_event(id: &str, kind: &str, schema: &str, time_ms: i64) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("ce_specversion", "1.0".to_owned()),
        ("ce_id", id.to_owned()),
        ("ce_source", format!("/wecom/{CORP}")),
        ("ce_type", kind.to_owned()),
        ("ce_dataschema", schema.to_owned()),
        ("content-type", "application/json".to_owned()),
    ];
    if time_ms > 0 {
        let time = jiff::Timestamp::from_millisecond(time_ms).expect("a time");
        headers.push(("ce_time", format!("{time:.3}")));
    }
    headers
}

fn now_ms() -> i64 {
    jiff::Timestamp::now().as_millisecond()
}

fn conversation(seq: u64) -> &'static str {
    ["anna|bert", "room 1", "room 2"][(seq % 3) as usize]
}

fn content(seq: u64) -> Vec<u8> {
    format!("content of {seq}").into_bytes()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn md5(bytes: &[u8]) -> String {
    hex(&md5::Md5::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
