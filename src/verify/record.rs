//! What a record of a topic says, read anew: nothing of the code that writes them is used.

use std::borrow::Cow;

use aws_lc_rs::digest;
use rdkafka::message::{Header, Headers, Message};
use serde::Deserialize;

/// Kinds of events, as their header `ce_type` says.
pub mod kind {
    pub const MESSAGE: &str = "wecom.archive.message";
    pub const GAP: &str = "wecom.archive.gap";
    pub const DEAD_LETTER: &str = "wecom.archive.dead-letter";
}

/// The headers of a record, as text. The last one of a name counts, as for Kafka's Java client.
pub fn header<'a>(message: &'a impl Message, name: &str) -> Option<&'a str> {
    let headers = message.headers()?;
    let mut values = headers.iter().filter_map(|Header { key, value }| (key == name).then_some(value?));
    std::str::from_utf8(values.by_ref().last()?).ok()
}

/// A header that is a number.
pub fn number(message: &impl Message, name: &str) -> Option<u64> {
    header(message, name)?.parse().ok()
}

/// The value of a record, if it is an object of this form.
pub fn value<'a, T: Deserialize<'a>>(message: &'a impl Message) -> Option<T> {
    serde_json::from_slice(message.payload()?).ok()
}

/// What is read of a message.
#[derive(Debug, Deserialize)]
pub struct MessageValue<'a> {
    #[serde(borrow)]
    pub corp_id: Cow<'a, str>,
    pub seq: u64,
    #[serde(borrow)]
    pub conversation: Conversation<'a>,
    #[serde(borrow)]
    pub media: Vec<Media<'a>>,
}

#[derive(Debug, Deserialize)]
pub struct Conversation<'a> {
    #[serde(borrow)]
    pub id: Cow<'a, str>,
}

#[derive(Debug, Deserialize)]
pub struct Media<'a> {
    #[serde(borrow)]
    pub media_id: Cow<'a, str>,
}

/// What is read of a gap event.
#[derive(Debug, Deserialize)]
pub struct GapValue<'a> {
    #[serde(borrow)]
    pub corp_id: Cow<'a, str>,
    pub after_seq: u64,
    pub before_seq: u64,
}

/// What is read of a dead letter whose body is in storage.
#[derive(Debug, Deserialize)]
pub struct OversizeValue {
    pub uri: String,
}

/// What is read of a request for a file.
#[derive(Debug, Deserialize)]
pub struct RequestValue<'a> {
    #[serde(borrow)]
    pub media_id: Cow<'a, str>,
    #[serde(borrow)]
    pub corp_id: Cow<'a, str>,
    pub seq: u64,
    #[serde(rename = "sdkfileid", borrow)]
    pub _sdkfileid: Cow<'a, str>,
}

/// What is read of a reference event.
#[derive(Debug, Deserialize)]
pub struct ReferenceValue<'a> {
    #[serde(borrow)]
    pub media_id: Cow<'a, str>,
    pub status: Status,
    #[serde(borrow)]
    pub corp_id: Cow<'a, str>,
    pub seq: u64,
    #[serde(borrow)]
    pub conversation: Cow<'a, str>,
    pub uri: Option<String>,
    pub size: Option<u64>,
    pub md5: Option<String>,
    pub sha256: Option<String>,
    pub finished_ms: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Stored,
    Expired,
    Failed,
}

impl Status {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }
}

/// The last source offset of a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
pub struct OffsetValue {
    #[serde(default)]
    pub epoch: u64,
    pub seq: u64,
    /// Earlier epochs have published everything up to and with this seq.
    #[serde(default)]
    pub republished_to: u64,
    pub committed_at_ms: Option<i64>,
}

/// A media id as a number: 32 hexadecimal digits; anything else by its hash.
pub fn media_number(media_id: &str) -> u128 {
    let is_hex = media_id.len() == 32 && media_id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let number = if is_hex { u128::from_str_radix(media_id, 16).ok() } else { None };
    number.unwrap_or_else(|| hashed(media_id.as_bytes()))
}

/// The first half of the SHA-256.
pub fn hashed(bytes: &[u8]) -> u128 {
    let hash = digest::digest(&digest::SHA256, bytes);
    u128::from_be_bytes(*hash.as_ref().first_chunk().unwrap_or(&[0; 16]))
}

/// A word out of a header as it may be shown; others are not, whoever wrote them.
pub fn word(text: Option<&str>) -> &str {
    let is_word = |text: &&str| {
        (1..=40).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || b"_0123456789".contains(&byte))
    };
    text.filter(is_word).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{OwnedHeaders, OwnedMessage};

    use super::*;

    fn message(value: &str, headers: &[(&str, &str)]) -> OwnedMessage {
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(*value) }));
        OwnedMessage::new(Some(value.into()), None, "t".into(), Timestamp::NotAvailable, 0, 0, Some(headers))
    }

    #[test]
    fn records_are_read_whatever_else_stands_in_them() {
        let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
        let text = format!(
            r#"{{"corp_id":"w\u0077","seq":18446744073709551615,"conversation":{{"id":"a|b","kind":"x"}},"media":[{{"media_id":"00"}}],
                "message":{deep}}}"#
        );
        let record = message(&text, &[("n", "1"), ("n", "2"), ("m", "-1")]);
        let event: MessageValue<'_> = value(&record).expect("a message");
        assert_eq!((event.corp_id.as_ref(), event.seq, event.media.len()), ("ww", u64::MAX, 1));
        assert_eq!((number(&record, "n"), number(&record, "m"), number(&record, "o")), (Some(2), None, None));
        for text in ["", "null", "[]", "{\"seq\":1.5}", "\u{1}"] {
            assert!(value::<OffsetValue>(&message(text, &[])).is_none(), "{text}");
        }
    }

    #[test]
    fn only_words_are_shown() {
        for (text, shown) in [("rsa", "rsa"), ("a b", "other"), ("", "other"), ("<script>", "other")] {
            assert_eq!(word(Some(text)), shown);
        }
    }
}
