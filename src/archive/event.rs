//! The event of a message: an envelope that tells what it is, and the message itself, verbatim.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::conversation::Conversation;
use super::media::MediaReference;
use super::message::{Message, NotJson};
use super::page::ChatRecord;
use super::record::{CloudEvent, Record, Topic};
use super::request::{MediaRequest, Origin};
use super::{json, schema, walk};

/// What events say beside the message. The same for all records of a page.
#[derive(Debug, Clone, Copy)]
pub struct EventContext<'a> {
    /// Name of the connector, for dead letters.
    pub connector: &'a str,
    /// Number of the task, for dead letters.
    pub task: u32,
    /// Name of the topic that messages go to, for dead letters.
    pub topic: &'a str,
    pub corp_id: &'a str,
    /// When the page was pulled, in milliseconds since the epoch.
    pub now_ms: i64,
}

/// What a message becomes.
#[derive(Debug)]
pub struct MessageEvent {
    /// For [`Topic::Messages`], keyed by the conversation. Its timestamp is the pull's, until [`Timestamps::stamp`]
    /// sets it.
    ///
    /// [`Timestamps::stamp`]: super::Timestamps::stamp
    pub record: Record,
    /// One for each file that the message refers to.
    pub media: Vec<MediaRequest>,
    /// As the message says it: may be 0 or a wrong clock's.
    pub msgtime_ms: Option<i64>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    schema: &'static str,
    corp_id: &'a str,
    seq: u64,
    msgid: &'a str,
    publickey_ver: u32,
    action: Option<&'a str>,
    msgtype: Option<&'a str>,
    from: Option<&'a str>,
    to: &'a [Cow<'a, str>],
    room_id: Option<&'a str>,
    msgtime_ms: Option<i64>,
    conversation: &'a Conversation,
    media: &'a [MediaReference],
    media_truncated: bool,
    unsupported_by_wecom: bool,
    control_bytes_escaped: bool,
    message: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    original_base64: Option<String>,
}

/// Longer ids and types than this are none of WeCom's: it has up to some 50 bytes.
const ORIGIN_BYTES_MAX: usize = 512;

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(ORIGIN_BYTES_MAX)]
}

/// Builds the event of a decrypted record. It depends on nothing but its arguments, so that a repeat gives the same bytes.
///
/// `message` in it is `plaintext`, byte for byte, but for white space around it. Two things alone are changed, as far as valid
/// JSON needs it: raw control bytes inside strings are escaped (`control_bytes_escaped`), and bytes that are not UTF-8 are replaced
/// by U+FFFD (then `original_base64` has the plaintext; also if it began with a byte order mark).
///
/// The error is for a dead letter.
pub fn build(context: &EventContext<'_>, sealed: &ChatRecord, plaintext: &[u8]) -> Result<MessageEvent, NotJson> {
    let repaired = json::repair(plaintext);
    let message = Message::parse(&repaired.text)?;
    let inner_msgid = message.msgid.as_deref().unwrap_or_default();
    let msgid = if sealed.msgid.is_empty() { inner_msgid } else { sealed.msgid.as_str() };
    let conversation =
        Conversation::of(context.corp_id, msgid, message.from.as_deref(), &message.to, message.room_id.as_deref());
    // Without a msgid the position names the message: files of two such messages must not share a name.
    let position = format!("seq:{}", sealed.seq);
    let media_owner = if msgid.is_empty() { position.as_str() } else { msgid };
    let media = walk::find(context.corp_id, media_owner, message.msgtype.as_deref(), message.raw.get());

    let original_base64 = repaired.lossy.then(|| STANDARD.encode(plaintext));
    let bytes_expected = 1024
        + message.raw.get().len()
        + message.to.iter().map(|id| id.len() + 3).sum::<usize>()
        + media.references.len() * 400
        + original_base64.as_ref().map_or(0, String::len);
    let envelope = Envelope {
        schema: schema::MESSAGE,
        corp_id: context.corp_id,
        seq: sealed.seq,
        msgid,
        publickey_ver: sealed.publickey_ver,
        action: message.action.as_deref(),
        msgtype: message.msgtype.as_deref(),
        from: message.from.as_deref(),
        to: &message.to,
        room_id: message.room_id.as_deref().filter(|id| !id.is_empty()),
        msgtime_ms: message.msgtime_ms,
        conversation: &conversation,
        media: &media.references,
        media_truncated: media.truncated,
        unsupported_by_wecom: message.unsupported_by_wecom,
        control_bytes_escaped: repaired.escaped,
        message: message.raw,
        original_base64,
    };
    let cloud_event = CloudEvent {
        // Not the msgid: it is WeCom's to repeat, and may be missing.
        id: sealed.seq.to_string(),
        corp_id: context.corp_id,
        kind: "wecom.archive.message",
        subject: Some(msgid),
        time_ms: message.msgtime_ms,
        schema: Some(schema::MESSAGE),
    };
    let record = Record {
        topic: Topic::Messages,
        key: conversation.id.clone().into_bytes(),
        value: json::print(&envelope, bytes_expected),
        headers: cloud_event.headers(),
        timestamp_ms: context.now_ms,
    };
    // They stand in each request, and must not multiply there.
    let origin = Origin {
        seq: sealed.seq,
        msgid: cut(msgid),
        msgtype: message.msgtype.as_deref().map(cut),
        conversation: &conversation.id,
        msgtime_ms: message.msgtime_ms,
    };
    let media = media.references.iter().map(|reference| MediaRequest::new(context, origin, reference)).collect();
    Ok(MessageEvent { record, media, msgtime_ms: message.msgtime_ms })
}

/// What has to be read of an event to publish it.
#[derive(Deserialize)]
struct KeptEnvelope<'a> {
    schema: String,
    corp_id: String,
    seq: u64,
    msgid: String,
    publickey_ver: u32,
    conversation: KeptConversation,
    #[serde(borrow)]
    message: &'a RawValue,
}

#[derive(Deserialize)]
struct KeptConversation {
    id: String,
}

/// The event that was kept elsewhere because it did not fit: what [`build`] made in the same context, byte for byte. `None` where
/// `value` is no event of this corp and `seq`.
pub fn restore(context: &EventContext<'_>, seq: u64, value: Vec<u8>) -> Option<MessageEvent> {
    let kept: KeptEnvelope<'_> = serde_json::from_slice(&value).ok()?;
    if kept.schema != schema::MESSAGE || kept.corp_id != context.corp_id || kept.seq != seq {
        return None;
    }
    let sealed = ChatRecord {
        seq,
        msgid: kept.msgid,
        publickey_ver: kept.publickey_ver,
        encrypt_random_key: String::new(),
        encrypt_chat_msg: String::new(),
        raw: RawValue::NULL.to_owned(),
    };
    let mut event = build(context, &sealed, kept.message.get().as_bytes()).ok()?;
    event.record.key = kept.conversation.id.into_bytes();
    event.record.value = value;
    Some(event)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::archive::schema::tests::check;

    const NOW: i64 = 1_603_900_000_000;
    const MD5: Option<&str> = Some("0cc175b9c0f1b6a831c399e269772661");

    fn context() -> EventContext<'static> {
        EventContext { connector: "archive-1", task: 0, topic: "wecom.messages", corp_id: "ww1", now_ms: NOW }
    }

    fn sealed(msgid: &str) -> ChatRecord {
        ChatRecord {
            seq: u64::MAX,
            msgid: msgid.to_owned(),
            publickey_ver: 3,
            encrypt_random_key: String::new(),
            encrypt_chat_msg: String::new(),
            raw: RawValue::NULL.to_owned(),
        }
    }

    fn build(msgid: &str, plaintext: &[u8]) -> Result<MessageEvent, NotJson> {
        super::build(&context(), &sealed(msgid), plaintext)
    }

    fn contains(bytes: &[u8], part: &[u8]) -> bool {
        bytes.windows(part.len()).any(|window| window == part)
    }

    /// Path, type, md5, size and extension of a file.
    type File = (&'static str, &'static str, Option<&'static str>, Option<u64>, Option<&'static str>);

    /// What is expected of each message of `tests/data/messages`: conversation, scope, files.
    #[rustfmt::skip]
    const MESSAGES: &[(&str, &str, &str, &[File])] = &[
        ("agree", "anna|wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ", "external", &[]),
        ("calendar", "anna|bert", "internal", &[]),
        ("card", "anna|bert", "internal", &[]),
        ("chain", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("chatrecord", "wrErxtDgAA0jgXE5", "internal", &[
            ("/chatrecord/item/1/content/sdkfileid", "image", MD5, Some(70961), Some("jpg")),
            ("/chatrecord/item/2/content/sdkfileid", "file", None, Some(1), Some("pdf")),
            ("/chatrecord/item/3/content/item/1/content/sdkfileid", "image", MD5, Some(368), Some("jpg")),
            ("/chatrecord/item/4/content/sdkfileid", "emotion", MD5, Some(9), Some("png")),
        ]),
        ("collect", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("disagree", "anna|wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ", "external", &[]),
        ("disagree_as_agree", "anna|wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ", "external", &[]),
        ("docmsg", "anna|bert", "internal", &[]),
        ("emotion", "anna|bert", "internal", &[("/emotion/sdkfileid", "emotion", MD5, Some(962604), Some("gif"))]),
        ("external_redpacket", "anna|wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ", "external", &[]),
        ("file", "anna|bert", "internal", &[("/file/sdkfileid", "file", MD5, Some(18181), Some("docx"))]),
        ("file_without_extension", "anna|bert", "internal", &[("/file/sdkfileid", "file", MD5, Some(18181), Some("gz"))]),
        ("image", "wrErxtDgAA0jgXE5", "internal", &[("/image/sdkfileid", "image", MD5, Some(70961), Some("jpg"))]),
        ("link", "anna|bert", "internal", &[]),
        ("location", "anna|bert", "internal", &[]),
        ("markdown", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("meeting", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("meeting_notification", "anna|bert", "internal", &[]),
        ("meeting_voice_call", "ww1", "internal", &[
            ("/meeting_voice_call/sdkfileid", "meeting_voice_call", None, None, None),
        ]),
        ("mixed", "wrErxtDgAA0jgXE5", "internal", &[
            ("/mixed/item/1/content/sdkfileid", "image", MD5, Some(368), Some("jpg")),
            ("/mixed/item/2/content/sdkfileid", "image", MD5, Some(368), Some("jpg")),
        ]),
        ("mixed_content_object", "wrErxtDgAA0jgXE5", "internal", &[
            ("/mixed/item/0/content/sdkfileid", "file", MD5, Some(2), Some("xlsx")),
        ]),
        ("news", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("qydiskfile", "anna|bert", "internal", &[]),
        ("redpacket", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("revoke", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("sphfeed", "anna|bert", "internal", &[]),
        ("switch", "ww1", "internal", &[]),
        ("text", "anna|wmGAgeDQAAvQeaTqWwkMTxGMkvI7OOuQ", "external", &[]),
        ("todo", "anna|bert", "internal", &[]),
        ("unknown_with_media", "wrErxtDgAA0jgXE5", "internal", &[
            ("/holo_gram/layers/0/blob~1part/sdkfileid", "holo_gram", None, None, None),
        ]),
        ("unsupported_by_wecom", "anna|bert", "internal", &[]),
        ("video", "anna|bert", "internal", &[("/video/sdkfileid", "video", MD5, Some(15169724), Some("mp4"))]),
        ("voice", "anna|bert", "internal", &[("/voice/sdkfileid", "voice", None, Some(6810), Some("amr"))]),
        ("voip_doc_share", "anna|bert", "internal", &[
            ("/voip_doc_share/sdkfileid", "voip_doc_share", MD5, Some(u64::MAX), Some("pdf")),
        ]),
        ("voiptext", "anna|bert", "internal", &[]),
        ("vote", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("vote_flat", "wrErxtDgAA0jgXE5", "internal", &[]),
        ("weapp", "anna|bert", "internal", &[]),
        ("wrong_types", "ww1", "internal", &[]),
    ];

    fn messages() -> BTreeMap<String, String> {
        fs::read_dir("tests/data/messages")
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read_to_string(&path).unwrap())
            })
            .collect()
    }

    #[test]
    fn each_type_of_message_becomes_an_event() {
        let messages = messages();
        assert!(messages.keys().eq(MESSAGES.iter().map(|(name, ..)| name)), "{:?}", messages.keys());
        for (name, conversation, scope, files) in MESSAGES {
            let text = &messages[*name];
            let message: serde_json::Value = serde_json::from_str(text).unwrap();
            let msgid = message["msgid"].as_str().unwrap_or("m1");
            let event = build(msgid, text.as_bytes()).unwrap();
            let value = check(&event.record);

            assert!(contains(&event.record.value, format!("\"message\":{}", text.trim()).as_bytes()), "{name}");
            assert_eq!(event.record.key, conversation.as_bytes(), "{name}");
            let context = context();
            let restored = restore(&context, u64::MAX, event.record.value.clone()).expect(name);
            assert_eq!((&restored.record, &restored.media), (&event.record, &event.media), "{name}");
            assert!(restore(&context, 1, event.record.value.clone()).is_none(), "another seq");
            assert_eq!(value["conversation"]["scope"], *scope, "{name}");
            assert_eq!(value["unsupported_by_wecom"], *name == "unsupported_by_wecom");
            assert_eq!((&value["seq"], &value["publickey_ver"]), (&u64::MAX.into(), &3.into()));
            assert!(value["media_truncated"] == false && value["control_bytes_escaped"] == false);
            for field in ["action", "msgtype"] {
                assert_eq!(value[field].as_str(), message[field].as_str(), "{name}");
            }

            assert_eq!(value["media"].as_array().unwrap().len(), files.len(), "{name}");
            assert_eq!(event.media.len(), files.len(), "{name}");
            for ((request, announced), file) in event.media.iter().zip(value["media"].as_array().unwrap()).zip(*files) {
                let found: (&str, &str, Option<&str>, Option<u64>, Option<&str>) = (
                    &request.path,
                    &request.media_type,
                    request.md5sum.as_deref(),
                    request.size,
                    request.extension.as_deref(),
                );
                assert_eq!(found, *file, "{name}");
                let record = request.to_record(NOW);
                check(&record);
                assert_eq!(record.key, request.media_id.as_bytes());
                assert_eq!(announced["media_id"], request.media_id);
                assert_eq!(request.conversation, *conversation);
                assert!(text.contains(&request.sdkfileid));
                assert_eq!(MediaRequest::parse(&record.value).unwrap(), *request);
            }
        }
    }

    #[test]
    fn a_switch_log_has_its_user_and_time() {
        let event = build("125289002219525886280", messages()["switch"].as_bytes()).unwrap();
        let value = check(&event.record);
        assert_eq!((&value["from"], &value["msgtype"]), (&"anna".into(), &serde_json::Value::Null));
        assert_eq!(event.msgtime_ms, Some(1_554_119_421_840));
        assert_eq!(event.record.timestamp_ms, NOW);
        let time = event.record.headers.iter().find(|(name, _)| *name == "ce_time").unwrap();
        assert_eq!(time.1, b"2019-04-01T11:50:21.840Z");
    }

    #[test]
    fn what_is_not_quite_json_is_made_so_and_said() {
        // Plaintext; message; escaped; whether the original stands beside it.
        let rows: &[(&[u8], &str, bool, bool)] = &[
            (b"{\"a\":1.10, \"b\":\"\\/\"}\n", "{\"a\":1.10, \"b\":\"\\/\"}", false, false),
            (b"{\t\"a\":\"\x11\0\n\"}", "{\t\"a\":\"\\u0011\\u0000\\u000a\"}", true, false),
            (b"{\"a\":\"\xff\x11\"}", "{\"a\":\"\u{fffd}\\u0011\"}", true, true),
            (b"\xef\xbb\xbf{}", "{}", false, true),
        ];
        for (plaintext, message, escaped, original) in rows {
            let event = build("m1", plaintext).unwrap();
            let value = check(&event.record);
            assert!(contains(&event.record.value, format!("\"message\":{message}").as_bytes()), "{message}");
            assert_eq!(value["control_bytes_escaped"], *escaped, "{message}");
            let kept = value["original_base64"].as_str().map(|text| STANDARD.decode(text).unwrap());
            assert_eq!(kept.as_deref(), original.then_some(*plaintext), "{message}");
        }
        for plaintext in [b"".as_slice(), b"SECRET", b"[]", b"{\"a\":\"", b"{}\0", b"\xff{}"] {
            assert_eq!(build("m1", plaintext).err(), Some(NotJson));
        }
    }

    #[test]
    fn files_of_messages_without_a_msgid_have_names_of_their_own() {
        let plaintext = br#"{"sdkfileid":"x"}"#;
        let mut other = sealed("");
        other.seq = 8;
        let first = build("", plaintext).unwrap();
        let second = super::build(&context(), &other, plaintext).unwrap();
        assert_ne!(first.media[0].media_id, second.media[0].media_id);
        check(&first.record);
    }

    #[test]
    fn deep_nesting_is_taken_as_it_is() {
        let plaintext = format!("{{\"a\":{}{}}}", "[".repeat(500_000), "]".repeat(500_000));
        let event = build("m1", plaintext.as_bytes()).unwrap();
        assert!(event.record.value.ends_with(format!("{plaintext}}}").as_bytes()));
    }

    #[test]
    fn the_size_of_a_record_has_room_for_what_kafka_adds() {
        let record = build("m1", b"{}").unwrap().record;
        let headers: usize = record.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(record.bytes_max() >= record.key.len() + record.value.len() + headers + 61 + 36);
    }

    /// Found by damage: `.` of a pattern takes no line break, which a member's name can have.
    #[test]
    fn the_path_of_a_file_may_hold_a_line_break() {
        let event = build("m1", b"{\"msgid\":\"m1\",\"msgtype\":\"file\",\"\nfile\":{\"sdkfileid\":\"id\"}}").unwrap();
        check(&event.record);
        assert_eq!(event.media.len(), 1);
        check(&event.media[0].to_record(NOW));
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_event_or_an_error(plaintext in any::<Vec<u8>>()) {
            let _ = build("m1", &plaintext);
        }

        #[test]
        fn damaged_messages_give_a_valid_event_or_an_error(
            index in 0..MESSAGES.len(),
            // Without exponents: serde_json's `Value`, which the check reads into, refuses 1e999, though it is JSON.
            damage in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<u8>().prop_filter("exponent", |byte| !b"eE".contains(byte))),
                1..5,
            ),
        ) {
            let mut plaintext = messages()[MESSAGES[index].0].clone().into_bytes();
            for (position, byte) in damage {
                let position = position.index(plaintext.len());
                plaintext[position] = byte;
            }
            if let Ok(event) = build("m1", &plaintext) {
                let value = check(&event.record);
                let original = value["original_base64"].as_str().map(|text| STANDARD.decode(text).unwrap());
                prop_assert!(original.is_none_or(|original| original == plaintext));
                for request in event.media {
                    check(&request.to_record(NOW));
                }
            }
        }

        #[test]
        fn the_message_keeps_its_bytes(
            numbers in prop::collection::vec("-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,4})?", 0..5),
            text in "([a-z消😀 /]|\\\\[\"/bfnrt\\\\]|\\\\u[0-9a-fA-F]{4})*",
            space in "[ \t\r\n]{0,3}",
        ) {
            let numbers = numbers.join(&format!("{space},"));
            let plaintext = format!("{{{space}\"n\"{space}:[{numbers}],{space}\"{text}\":\"{text}\"{space}}}");
            let event = build("m1", plaintext.as_bytes()).unwrap();
            let expected = format!("\"message\":{plaintext}}}");
            prop_assert!(event.record.value.ends_with(expected.as_bytes()));
        }
    }
}
