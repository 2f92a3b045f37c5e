//! Dead letters: records that could not become messages, kept whole.

use aws_lc_rs::digest;
use serde::Serialize;

use super::event::EventContext;
use super::media::hex;
use super::page::{ChatRecord, MalformedRecord};
use super::record::{CloudEvent, Record, Topic};
use super::{json, schema};

/// Longer ids than this are cut in headers. WeCom's have some 50 bytes.
const MSGID_BYTES_MAX: usize = 512;

/// Why a record could not become a message. Its text never has anything of the message or of a key in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeadLetterReason {
    #[error("there is no private key of version {version}; add it and replay the dead letter")]
    UnknownKeyVersion { version: u32 },
    #[error("encrypt_random_key is not base64")]
    Base64,
    #[error(
        "the private key of this version does not open encrypt_random_key: it belongs to another public key, or the record is damaged"
    )]
    Rsa,
    #[error("DecryptData returned {code}")]
    Decrypt { code: i32 },
    #[error("DecryptData killed the SDK host twice, the second time with this record alone")]
    SdkCrash,
    #[error("the decrypted message is no JSON object")]
    NotJson,
    #[error("the field {field} of the record is missing or has a wrong type")]
    Malformed { field: &'static str },
    #[error("the event takes {bytes} bytes, more than the limit of {limit_bytes}; it is kept at {uri}")]
    TooLarge { uri: String, bytes: u64, limit_bytes: u64 },
}

impl DeadLetterReason {
    /// The name of [`Self::TooLarge`].
    pub const TOO_LARGE: &'static str = "too_large";

    /// Every name.
    pub const NAMES: [&'static str; 8] =
        ["unknown_key_version", "base64", "rsa", "decrypt", "sdk_crash", "not_json", "malformed", Self::TOO_LARGE];

    /// Short name, for headers and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::UnknownKeyVersion { .. } => "unknown_key_version",
            Self::Base64 => "base64",
            Self::Rsa => "rsa",
            Self::Decrypt { .. } => "decrypt",
            Self::SdkCrash => "sdk_crash",
            Self::NotJson => "not_json",
            Self::Malformed { .. } => "malformed",
            Self::TooLarge { .. } => Self::TOO_LARGE,
        }
    }

    /// What thousands of dead letters can have in common: the name, and of which version, code or field.
    pub fn kind(&self) -> String {
        let name = self.name();
        match self {
            Self::UnknownKeyVersion { version } => format!("{name} {version}"),
            Self::Decrypt { code } => format!("{name} {code}"),
            Self::Malformed { field } => format!("{name} {field}"),
            _ => name.to_owned(),
        }
    }

    /// Connect's name of the stage, what was at work, and the kind of error: the three that Connect tells by class names.
    fn place(&self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::UnknownKeyVersion { .. } => ("VALUE_CONVERTER", "KeyRing", "UnknownKeyVersion"),
            Self::Base64 => ("VALUE_CONVERTER", "KeyRing", "Base64"),
            Self::Rsa => ("VALUE_CONVERTER", "KeyRing", "Rsa"),
            Self::Decrypt { .. } => ("VALUE_CONVERTER", "DecryptData", "Decrypt"),
            Self::SdkCrash => ("VALUE_CONVERTER", "DecryptData", "SdkCrash"),
            Self::NotJson => ("VALUE_CONVERTER", "MessageEvent", "NotJson"),
            Self::Malformed { .. } => ("TASK_POLL", "GetChatData", "Malformed"),
            Self::TooLarge { .. } => ("KAFKA_PRODUCE", "Producer", "TooLarge"),
        }
    }
}

/// A record as it came, and what could be read of it.
#[derive(Debug, Clone, Copy)]
pub struct SealedRecord<'a> {
    pub raw: &'a str,
    pub seq: Option<u64>,
    pub msgid: Option<&'a str>,
    pub publickey_ver: Option<u32>,
}

impl SealedRecord<'_> {
    /// Names the record within its corp: the `seq`, or without one a hash of its bytes.
    pub fn position(&self) -> String {
        self.seq.map_or_else(
            || hex(&digest::digest(&digest::SHA256, self.raw.as_bytes()).as_ref()[..16]),
            |seq| seq.to_string(),
        )
    }
}

impl<'a> From<&'a ChatRecord> for SealedRecord<'a> {
    fn from(record: &'a ChatRecord) -> Self {
        Self {
            raw: record.raw.get(),
            seq: Some(record.seq),
            msgid: Some(&record.msgid),
            publickey_ver: Some(record.publickey_ver),
        }
    }
}

impl<'a> From<&'a MalformedRecord> for SealedRecord<'a> {
    fn from(record: &'a MalformedRecord) -> Self {
        Self {
            raw: record.raw.get(),
            seq: record.seq,
            msgid: record.msgid.as_deref(),
            publickey_ver: record.publickey_ver,
        }
    }
}

/// Stands for a record that is too large.
#[derive(Serialize)]
struct Oversize<'a> {
    schema: &'static str,
    corp_id: &'a str,
    seq: Option<u64>,
    msgid: Option<&'a str>,
    publickey_ver: Option<u32>,
    uri: &'a str,
    bytes: u64,
    limit_bytes: u64,
}

/// Builds the dead letter of a record. Keyed by the corp.
///
/// The value is the sealed record, byte for byte; for [`DeadLetterReason::TooLarge`], where that would not fit either, a small
/// object that says where the body is.
pub fn build<'a>(context: &EventContext<'_>, sealed: impl Into<SealedRecord<'a>>, reason: &DeadLetterReason) -> Record {
    let sealed = sealed.into();
    // Beside the record itself it is a hint, and must not be what makes the dead letter too large.
    let msgid = sealed.msgid.map(|msgid| &msgid[..msgid.floor_char_boundary(MSGID_BYTES_MAX)]);
    let (value, schema) = match reason {
        DeadLetterReason::TooLarge { uri, bytes, limit_bytes } => {
            let oversize = Oversize {
                schema: schema::OVERSIZE_RECORD,
                corp_id: context.corp_id,
                seq: sealed.seq,
                msgid,
                publickey_ver: sealed.publickey_ver,
                uri,
                bytes: *bytes,
                limit_bytes: *limit_bytes,
            };
            (json::print(&oversize, 512), Some(schema::OVERSIZE_RECORD))
        }
        // Nothing can be promised of it.
        DeadLetterReason::Malformed { .. } => (sealed.raw.into(), None),
        _ => (sealed.raw.into(), Some(schema::SEALED_RECORD)),
    };
    let cloud_event = CloudEvent {
        id: format!("{}/dead-letter", sealed.position()),
        corp_id: context.corp_id,
        kind: "wecom.archive.dead-letter",
        subject: msgid,
        time_ms: Some(context.now_ms),
        schema,
    };
    let mut headers = cloud_event.headers();
    headers.extend(error_headers(context, context.topic, reason.place(), reason.to_string(), reason.name()));
    let sdk_code = if let DeadLetterReason::Decrypt { code } = reason { Some(code.to_string()) } else { None };
    let optional = [
        ("wecom.seq", sealed.seq.map(|seq| seq.to_string())),
        ("wecom.msgid", msgid.map(str::to_owned)),
        ("wecom.publickey_ver", sealed.publickey_ver.map(|version| version.to_string())),
        ("wecom.sdk_code", sdk_code),
    ];
    headers.extend(optional.into_iter().filter_map(|(name, value)| Some((name, value?.into_bytes()))));
    Record { topic: Topic::DeadLetters, key: context.corp_id.into(), value, headers, timestamp_ms: context.now_ms }
}

fn error_headers(
    context: &EventContext<'_>,
    topic: &str,
    (stage, class, exception): (&str, &str, &str),
    message: String,
    reason: &str,
) -> [(&'static str, Vec<u8>); 8] {
    [
        ("__connect.errors.topic", topic.into()),
        ("__connect.errors.connector.name", context.connector.into()),
        ("__connect.errors.task.id", context.task.to_string().into()),
        ("__connect.errors.stage", stage.into()),
        ("__connect.errors.class.name", class.into()),
        ("__connect.errors.exception.class.name", exception.into()),
        ("__connect.errors.exception.message", message.into_bytes()),
        ("wecom.reason", reason.into()),
    ]
}

/// The `wecom.reason` of a [`StrayRecord`].
pub const STRAY: &str = "media_request";

/// A record in the topics of media requests that is none, and where it stood.
#[derive(Debug, Clone, Copy)]
pub struct StrayRecord<'a> {
    pub topic: &'a str,
    pub partition: i32,
    pub offset: i64,
    pub value: &'a [u8],
    /// What it is, in place of a request.
    pub refusal: &'static str,
}

/// Builds the dead letter of a stray record: its value as it came, whatever that is. Keyed by the corp whose task met it.
pub fn build_stray(context: &EventContext<'_>, stray: &StrayRecord<'_>) -> Record {
    let StrayRecord { topic, partition, offset, value, refusal } = *stray;
    let cloud_event = CloudEvent {
        id: format!("{topic}-{partition}@{offset}/dead-letter"),
        corp_id: context.corp_id,
        kind: "wecom.archive.dead-letter",
        subject: None,
        time_ms: Some(context.now_ms),
        schema: None,
    };
    let mut headers = cloud_event.headers();
    if serde_json::from_slice::<serde::de::IgnoredAny>(value).is_err() {
        headers.retain(|(name, _)| *name != "content-type");
        headers.push(("content-type", b"application/octet-stream".into()));
    }
    let place = ("VALUE_CONVERTER", "MediaRequest", "NotARequest");
    headers.extend(error_headers(context, topic, place, refusal.to_owned(), STRAY));
    headers.push(("__connect.errors.partition", partition.to_string().into()));
    headers.push(("__connect.errors.offset", offset.to_string().into()));
    Record {
        topic: Topic::DeadLetters,
        key: context.corp_id.into(),
        value: value.to_owned(),
        headers,
        timestamp_ms: context.now_ms,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::EventContext;
    use crate::archive::page::{self, Element};
    use crate::archive::schema::tests::{check, check_headers};

    const CONTEXT: EventContext<'_> = EventContext {
        connector: "archive-1",
        task: 0,
        topic: "wecom.messages",
        corp_id: "ww1",
        now_ms: 1_700_000_000_000,
    };

    fn header<'a>(record: &'a Record, name: &str) -> Option<&'a str> {
        record.headers.iter().find(|(header, _)| *header == name).map(|(_, value)| std::str::from_utf8(value).unwrap())
    }

    #[test]
    fn sealed_records_are_kept_whole_and_say_why() {
        let sealed = r#"{"seq": 18446744073709551615,"msgid":"m1","publickey_ver":2,"encrypt_random_key":"a\/b","encrypt_chat_msg":"SECRET","x":1.10}"#;
        let page = page::parse(format!(r#"{{"errcode":0,"chatdata":[{sealed}]}}"#).as_bytes(), 0).unwrap();
        let [Element::Record(record)] = page.elements.as_slice() else { panic!("{page:?}") };
        let rows = [
            (DeadLetterReason::UnknownKeyVersion { version: 2 }, "unknown_key_version", "VALUE_CONVERTER", None),
            (DeadLetterReason::Base64, "base64", "VALUE_CONVERTER", None),
            (DeadLetterReason::Rsa, "rsa", "VALUE_CONVERTER", None),
            (DeadLetterReason::Decrypt { code: 10008 }, "decrypt", "VALUE_CONVERTER", Some("10008")),
            (DeadLetterReason::SdkCrash, "sdk_crash", "VALUE_CONVERTER", None),
            (DeadLetterReason::NotJson, "not_json", "VALUE_CONVERTER", None),
        ];
        for (reason, name, stage, code) in rows {
            let letter = build(&CONTEXT, record, &reason);
            check(&letter);
            assert_eq!(letter.value, sealed.as_bytes());
            assert!(DeadLetterReason::NAMES.contains(&name));
            assert_eq!((letter.topic, letter.key.as_slice()), (Topic::DeadLetters, b"ww1".as_slice()));
            let expected = [
                ("ce_id", Some("18446744073709551615/dead-letter")),
                ("ce_dataschema", Some(schema::SEALED_RECORD)),
                ("__connect.errors.topic", Some("wecom.messages")),
                ("__connect.errors.connector.name", Some("archive-1")),
                ("__connect.errors.task.id", Some("0")),
                ("__connect.errors.stage", Some(stage)),
                ("__connect.errors.exception.message", Some(reason.to_string().as_str())),
                ("wecom.reason", Some(name)),
                ("wecom.seq", Some("18446744073709551615")),
                ("wecom.msgid", Some("m1")),
                ("wecom.publickey_ver", Some("2")),
                ("wecom.sdk_code", code),
            ]
            .map(|(name, value)| (name, value.map(str::to_owned)));
            assert_eq!(expected.clone().map(|(name, _)| (name, header(&letter, name).map(str::to_owned))), expected);
            assert!(letter.headers.iter().all(|(_, value)| !value.windows(6).any(|window| window == b"SECRET")));
        }

        let reason =
            DeadLetterReason::TooLarge { uri: "file:///m1.json".into(), bytes: 2_000_000, limit_bytes: 1_048_588 };
        let letter = build(&CONTEXT, record, &reason);
        let value = check(&letter);
        assert_eq!((value["seq"].as_u64(), value["uri"].as_str()), (Some(u64::MAX), Some("file:///m1.json")));
        assert_eq!(header(&letter, "ce_dataschema"), Some(schema::OVERSIZE_RECORD));
    }

    #[test]
    fn malformed_elements_are_kept_whole_under_distinct_ids() {
        let page = page::parse(br#"{"errcode":0,"chatdata":[null,{"x":1.10},{"seq":5,"msgid":"m5"}]}"#, 0).unwrap();
        let letters: Vec<Record> = page
            .elements
            .iter()
            .map(|element| match element {
                Element::Malformed(malformed) => {
                    build(&CONTEXT, malformed, &DeadLetterReason::Malformed { field: malformed.field })
                }
                Element::Record(record) => panic!("{record:?}"),
            })
            .collect();
        let values: Vec<&[u8]> = letters.iter().map(|letter| letter.value.as_slice()).collect();
        assert_eq!(values, [b"null".as_slice(), br#"{"x":1.10}"#, br#"{"seq":5,"msgid":"m5"}"#]);
        let mut ids: Vec<&str> = letters.iter().map(|letter| header(letter, "ce_id").unwrap()).collect();
        assert_eq!(ids[2], "5/dead-letter");
        ids.dedup();
        assert_eq!(ids.len(), 3);
        for letter in &letters {
            check(letter);
            assert_eq!(header(letter, "wecom.reason"), Some("malformed"));
        }
    }

    #[test]
    fn stray_records_are_kept_as_they_came() {
        let rows: [(&[u8], &str); 3] = [
            (br#"{"corp_id":"ww2"}"#, "application/json"),
            (b"", "application/octet-stream"),
            (b"\xff{", "application/octet-stream"),
        ];
        for (value, content_type) in rows {
            let stray = StrayRecord {
                topic: "wecom.requests",
                partition: 3,
                offset: 70,
                value,
                refusal: "the record is no media request",
            };
            let letter = build_stray(&CONTEXT, &stray);
            check_headers(&letter);
            assert_eq!((letter.value.as_slice(), letter.key.as_slice()), (value, b"ww1".as_slice()));
            for (name, expected) in [
                ("content-type", content_type),
                ("ce_id", "wecom.requests-3@70/dead-letter"),
                ("ce_type", "wecom.archive.dead-letter"),
                ("__connect.errors.topic", "wecom.requests"),
                ("__connect.errors.partition", "3"),
                ("__connect.errors.offset", "70"),
                ("__connect.errors.exception.message", stray.refusal),
                ("wecom.reason", "media_request"),
            ] {
                assert_eq!(header(&letter, name), Some(expected), "{name}");
            }
        }
    }
}
