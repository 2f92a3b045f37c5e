//! One decrypted message: its bytes made valid JSON where need be, and the few fields that the event is built from.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::json;

/// The whole text of a message in whose place WeCom's archive has nothing else to say.
const UNSUPPORTED: &str = "【未知消息类型】";

/// The decrypted bytes are no JSON object, not even with raw control bytes escaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the decrypted message is no JSON object")]
pub struct NotJson;

/// The fields of a message that are read. All may be missing; one of a wrong type counts as missing. Of a name that stands twice
/// the last counts, as for most readers.
#[derive(Debug)]
pub struct Message<'a> {
    /// The message, as it is to be published.
    pub raw: &'a RawValue,
    pub msgid: Option<Cow<'a, str>>,
    /// `send`, `recall`, `switch`.
    pub action: Option<Cow<'a, str>>,
    pub msgtype: Option<Cow<'a, str>>,
    /// `from`; in a `switch` log, which has none, `user`.
    pub from: Option<Cow<'a, str>>,
    pub to: Vec<Cow<'a, str>>,
    pub room_id: Option<Cow<'a, str>>,
    /// `msgtime`; in a `switch` log, which has none, `time`. Milliseconds since the epoch as WeCom says it: may be 0 or a wrong
    /// clock's.
    pub msgtime_ms: Option<i64>,
    /// WeCom itself says only 【未知消息类型】 ("unknown message type").
    pub unsupported_by_wecom: bool,
}

impl<'a> Message<'a> {
    /// Reads the message `text`, which `json::repair` gave.
    pub fn parse(text: &'a str) -> Result<Self, NotJson> {
        let raw: &RawValue = serde_json::from_str(text).map_err(|_| NotJson)?;
        let (mut from, mut user, mut msgtime_ms, mut time_ms, mut content) = (None, None, None, None, None);
        let mut message = Self {
            raw,
            msgid: None,
            action: None,
            msgtype: None,
            from: None,
            to: Vec::new(),
            room_id: None,
            msgtime_ms: None,
            unsupported_by_wecom: false,
        };
        json::members(raw.get(), |name, value| {
            let value = value.get();
            match name.as_ref() {
                "msgid" => message.msgid = json::string_or_number(value),
                "action" => message.action = json::string(value),
                "msgtype" => message.msgtype = json::string(value),
                "from" => from = json::string_or_number(value),
                "user" => user = json::string_or_number(value),
                "tolist" => message.to = strings(value),
                "roomid" => message.room_id = json::string_or_number(value),
                "msgtime" => msgtime_ms = json::integer(value),
                "time" => time_ms = json::integer(value),
                "text" => content = Some(value),
                _ => {}
            }
        })
        .map_err(|_| NotJson)?;
        let is_switch = message.action.as_deref() == Some("switch");
        message.from = if is_switch { from.or(user) } else { from };
        message.msgtime_ms = if is_switch { msgtime_ms.or(time_ms) } else { msgtime_ms };
        message.unsupported_by_wecom = content.is_some_and(is_unsupported);
        Ok(message)
    }
}

/// The strings of an array, or the one string that stands in its place.
fn strings(text: &str) -> Vec<Cow<'_, str>> {
    let mut strings: Vec<_> = json::string(text).into_iter().collect();
    let _ = json::elements(text, |element| strings.extend(json::string_or_number(element.get())));
    strings
}

fn is_unsupported(text: &str) -> bool {
    // The marker is 24 bytes, 48 with its characters escaped; longer texts need no look.
    if text.len() > 200 {
        return false;
    }
    let mut found = false;
    let _ = json::members(text, |name, value| {
        found |= name == "content" && json::string(value.get()).is_some_and(|content| content.trim() == UNSUPPORTED);
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_leniently() {
        // from, to, room, time
        type Row = (&'static str, Option<&'static str>, &'static [&'static str], Option<&'static str>, Option<i64>);
        let rows: &[Row] = &[
            (r#"{"from":"a","tolist":["b","c"],"roomid":"r","msgtime":1}"#, Some("a"), &["b", "c"], Some("r"), Some(1)),
            (r#"{"from":7,"tolist":"b","roomid":8,"msgtime":"1"}"#, Some("7"), &["b"], Some("8"), Some(1)),
            (r#"{"from":{},"tolist":[null,7,["x"],"b"],"roomid":[],"msgtime":1.5}"#, None, &["7", "b"], None, None),
            (r#"{"from":"a","from":"b","msgtime":99999999999999999999}"#, Some("b"), &[], None, None),
            (r#"{"action":"switch","user":"a","time":2}"#, Some("a"), &[], None, Some(2)),
            (r#"{"action":"send","user":"a","time":2}"#, None, &[], None, None),
            (" {\n} ", None, &[], None, None),
        ];
        for (text, from, to, room_id, msgtime_ms) in rows {
            let message = Message::parse(text).unwrap();
            assert_eq!(message.from.as_deref(), *from, "{text}");
            assert_eq!(message.to, *to, "{text}");
            assert_eq!((message.room_id.as_deref(), message.msgtime_ms), (*room_id, *msgtime_ms), "{text}");
            assert_eq!(message.raw.get(), text.trim());
        }
    }

    #[test]
    fn anything_but_one_object_is_refused() {
        for text in [
            "",
            " ",
            "null",
            "[]",
            "\"text\"",
            "{",
            "{}{}",
            "{\"a\":}",
            "{\"a\":01}",
            "{\"a\":\"\u{1}\"}",
            "{a:1}",
            "{}\0",
        ] {
            assert_eq!(Message::parse(text).err(), Some(NotJson), "{text:?}");
        }
    }

    #[test]
    fn what_wecom_cannot_archive_is_marked() {
        let rows = [
            (r#"{"text":{"content":"【未知消息类型】"}}"#, true),
            (r#"{"text":{"content":" \u3010\u672a\u77e5\u6d88\u606f\u7c7b\u578b\u3011\n"}}"#, true),
            (r#"{"text":{"content":"他发了【未知消息类型】"}}"#, false),
            (r#"{"text":"【未知消息类型】"}"#, false),
            (r#"{"info":{"content":"【未知消息类型】"}}"#, false),
        ];
        for (text, expected) in rows {
            assert_eq!(Message::parse(text).unwrap().unsupported_by_wecom, expected, "{text}");
        }
    }
}
