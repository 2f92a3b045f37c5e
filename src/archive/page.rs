//! One answer of `GetChatData`, read defensively: the library hands over whatever the server sent, with return code 0.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use super::json;

/// One encrypted record of a page.
#[derive(Debug, Clone)]
pub struct ChatRecord {
    /// Position in the corp's archive, greater than 0.
    pub seq: u64,
    pub msgid: String,
    /// Version of the public key that the random key is encrypted with.
    pub publickey_ver: u32,
    /// Base64 of the RSA-encrypted key.
    pub encrypt_random_key: String,
    /// The ciphertext, as `DecryptData` takes it.
    pub encrypt_chat_msg: String,
    /// The whole record, byte for byte.
    pub raw: Box<RawValue>,
}

/// An element of a page that is no record: a field is missing or has a wrong type.
#[derive(Debug, Clone)]
pub struct MalformedRecord {
    pub seq: Option<u64>,
    pub msgid: Option<String>,
    pub publickey_ver: Option<u32>,
    /// The first field that is missing or has a wrong type.
    pub field: &'static str,
    /// The whole element, byte for byte.
    pub raw: Box<RawValue>,
}

#[derive(Debug, Clone)]
pub enum Element {
    Record(ChatRecord),
    Malformed(MalformedRecord),
}

impl Element {
    pub fn seq(&self) -> Option<u64> {
        match self {
            Self::Record(record) => Some(record.seq),
            Self::Malformed(malformed) => malformed.seq,
        }
    }

    fn msgid(&self) -> Option<&str> {
        match self {
            Self::Record(record) => Some(&record.msgid),
            Self::Malformed(malformed) => malformed.msgid.as_deref(),
        }
    }
}

/// What one call of `GetChatData` brought.
///
/// An element without a readable `seq` has no position of its own. It counts as standing right before the next element of the
/// answer that has one, and is delivered with it. At the end of the answer it is held back: the next pull brings it again, then
/// perhaps with something behind it. So it is delivered once, and never skipped.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// By rising `seq`; each is new, that is, greater than the `seq` that was asked for.
    pub elements: Vec<Element>,
    /// How many elements the answer had, repeats and held ones too.
    pub records_received: usize,
    /// How many were dropped: at or before the `seq` that was asked for, or twice in the answer.
    pub repeats: usize,
    /// How many were held back. If there are no `elements` beside them, the archive can't go on until newer records arrive.
    pub held: usize,
    /// Where to go on.
    pub last_seq: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The answer is not what `GetChatData` gives. What it was is not told: it may be anything.
    #[error(
        "WeCom's answer of {bytes} bytes is no page of the chat archive ({problem}); a proxy or gateway on the way may have written it"
    )]
    NotJson { bytes: usize, problem: &'static str },
    /// The API refused the call (doc 90313). Match by the code: the vendor's text changes.
    #[error("WeCom answered errcode {errcode}: {errmsg}")]
    Errcode { errcode: i32, errmsg: String },
}

/// Reads the answer to a call that asked for what comes after `after_seq`.
///
/// A drained archive answers with an empty `chatdata`, with `null`, or with none.
pub fn parse(bytes: &[u8], after_seq: u64) -> Result<Page, PageError> {
    let refuse = |problem| PageError::NotJson { bytes: bytes.len(), problem };
    if bytes.is_empty() {
        return Err(refuse("it is empty"));
    }
    if bytes.contains(&0) {
        return Err(refuse("it has a NUL byte"));
    }
    let text = json::repair(bytes).text;
    let (mut errcode, mut errmsg, mut chatdata) = (None, None, None);
    json::members(&text, |name, value| match name.as_ref() {
        "errcode" => errcode = Some(value.get()),
        "errmsg" => errmsg = json::string(value.get()),
        "chatdata" if value.get() != "null" => chatdata = Some(value.get()),
        _ => {}
    })
    .map_err(|_| refuse("it is no JSON object"))?;
    match errcode.map(json::integer::<i64>) {
        Some(None) => return Err(refuse("errcode is no number")),
        None if chatdata.is_none() => return Err(refuse("it has neither errcode nor chatdata")),
        Some(Some(0)) | None => {}
        Some(Some(code)) => {
            let errcode = i32::try_from(code).unwrap_or(i32::MAX);
            return Err(PageError::Errcode { errcode, errmsg: one_line(&errmsg.unwrap_or(Cow::Borrowed(""))) });
        }
    }
    let mut elements = Vec::new();
    if let Some(chatdata) = chatdata {
        json::elements(chatdata, |element| elements.push(parse_element(element)))
            .map_err(|_| refuse("chatdata is no array"))?;
    }
    Ok(arrange(elements, after_seq))
}

/// Reads one element, as a page had it and a dead letter keeps it; `None` where the bytes are no JSON.
pub fn element(bytes: &[u8]) -> Option<Element> {
    serde_json::from_slice(bytes).ok().map(parse_element)
}

fn parse_element(raw: &RawValue) -> Element {
    let (mut seq, mut msgid, mut publickey_ver, mut encrypt_random_key, mut encrypt_chat_msg) =
        (None, None, None, None, None);
    let owned = |value: &RawValue| json::string(value.get()).map(Cow::into_owned);
    // Not an object: then every field is missing.
    let _ = json::members(raw.get(), |name, value| match name.as_ref() {
        // Positions begin with 1; a 0 would look like a repeat of the very first call.
        "seq" => seq = json::integer(value.get()).filter(|seq| *seq > 0),
        "msgid" => msgid = owned(value),
        "publickey_ver" => publickey_ver = json::integer(value.get()),
        "encrypt_random_key" => encrypt_random_key = owned(value),
        "encrypt_chat_msg" => encrypt_chat_msg = owned(value),
        _ => {}
    });
    let record = |msgid: Option<String>| {
        Ok(ChatRecord {
            seq: seq.ok_or("seq")?,
            msgid: msgid.ok_or("msgid")?,
            publickey_ver: publickey_ver.ok_or("publickey_ver")?,
            encrypt_random_key: encrypt_random_key.ok_or("encrypt_random_key")?,
            encrypt_chat_msg: encrypt_chat_msg.ok_or("encrypt_chat_msg")?,
            raw: raw.to_owned(),
        })
    };
    match record(msgid.clone()) {
        Ok(record) => Element::Record(record),
        Err(field) => Element::Malformed(MalformedRecord { seq, msgid, publickey_ver, field, raw: raw.to_owned() }),
    }
}

fn arrange(mut elements: Vec<Element>, after_seq: u64) -> Page {
    let records_received = elements.len();
    elements.retain(|element| element.seq().is_none_or(|seq| seq > after_seq));
    let new = elements.len();
    let positioned = elements.iter().rposition(|element| element.seq().is_some()).map_or(0, |index| index + 1);
    elements.truncate(positioned);
    let held = new - elements.len();

    let mut next_seq = 0;
    let mut positions: Vec<(u64, Element)> = elements
        .into_iter()
        .rev()
        .map(|element| {
            next_seq = element.seq().unwrap_or(next_seq);
            (next_seq, element)
        })
        .collect();
    positions.reverse();
    // Stable: an element without a position stays before its successor.
    positions.sort_by_key(|(position, _)| *position);
    // Of repeats the last one stays: an element without a position may stand before it.
    let mut seen = HashSet::new();
    let mut elements: Vec<Element> = positions
        .into_iter()
        .rev()
        .map(|(_, element)| element)
        .filter(|element| element.seq().is_none_or(|seq| seen.insert((seq, element.msgid().map(str::to_owned)))))
        .collect();
    elements.reverse();

    Page {
        records_received,
        repeats: records_received - held - elements.len(),
        held,
        last_seq: elements.last().and_then(Element::seq),
        elements,
    }
}

/// The vendor's sentence, fit for a log line.
fn one_line(text: &str) -> String {
    text.chars().take(300).map(|character| if character.is_control() { ' ' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(seq: &str) -> String {
        format!(
            r#"{{"seq":{seq},"msgid":"m{}","publickey_ver":1,"encrypt_random_key":"a2V5","encrypt_chat_msg":"bXNn\/"}}"#,
            seq.trim_matches('"')
        )
    }

    fn answer(elements: &[&str]) -> String {
        format!(r#"{{"errcode":0,"errmsg":"ok","chatdata":[{}]}}"#, elements.join(","))
    }

    #[test]
    fn what_is_no_page_is_refused_without_being_quoted() {
        let rows: &[(&[u8], &str)] = &[
            (b"", "it is empty"),
            (b"<html>SECRET</html>", "it is no JSON object"),
            (b"[\"SECRET\"]", "it is no JSON object"),
            (b"{\"errcode\":0} SECRET", "it is no JSON object"),
            (b"{\"errcode\":0,\"errmsg\":\"SECRET\0\"}", "it has a NUL byte"),
            (b"\xff\xfeSECRET", "it is no JSON object"),
            (br#"{"error":"SECRET"}"#, "it has neither errcode nor chatdata"),
            (br#"{"errcode":{},"errmsg":"SECRET"}"#, "errcode is no number"),
            (br#"{"errcode":0,"chatdata":{"SECRET":1}}"#, "chatdata is no array"),
        ];
        for (bytes, expected) in rows {
            let error = parse(bytes, 0).unwrap_err();
            assert_eq!(error, PageError::NotJson { bytes: bytes.len(), problem: expected });
            assert!(!error.to_string().contains("SECRET"));
        }
    }

    #[test]
    fn errcodes_are_told() {
        let rows = [
            (r#"{"errcode":301058,"errmsg":"too large\n"}"#, 301_058, "too large "),
            (r#"{"errcode":"-1","chatdata":[]}"#, -1, ""),
            (r#"{"errcode":45009,"errmsg":7,"chatdata":null}"#, 45_009, ""),
            (r#"{"errcode":99999999999}"#, i32::MAX, ""),
        ];
        for (text, errcode, errmsg) in rows {
            assert_eq!(parse(text.as_bytes(), 0).unwrap_err(), PageError::Errcode { errcode, errmsg: errmsg.into() });
        }
        // What a server prints into errmsg must not hide the code.
        let broken = b"{\"errcode\":45009,\"errmsg\":\"\xc6\xb5\x01\"}";
        assert!(matches!(parse(broken, 0), Err(PageError::Errcode { errcode: 45_009, .. })));
    }

    #[test]
    fn a_drained_archive_gives_an_empty_page() {
        for text in [
            r#"{"errcode":0}"#,
            r#"{"errcode":0,"chatdata":[]}"#,
            r#"{"errcode":"0","errmsg":"ok","chatdata":null}"#,
            r#"{"chatdata":[]}"#,
        ] {
            let page = parse(text.as_bytes(), 7).unwrap();
            assert!(page.elements.is_empty() && page.records_received == 0 && page.last_seq.is_none(), "{text}");
        }
    }

    #[test]
    fn records_are_read_and_kept_whole() {
        let sealed = r#"{ "seq" : "18446744073709551615", "msgid":"m\u002d1","publickey_ver":"3","encrypt_random_key":"a+\/=","encrypt_chat_msg":"","new":1.10}"#;
        let page = parse(answer(&[sealed]).as_bytes(), 7).unwrap();
        let [Element::Record(record)] = page.elements.as_slice() else { panic!("{page:?}") };
        assert_eq!(record.raw.get(), sealed);
        assert_eq!((record.seq, record.msgid.as_str(), record.publickey_ver), (u64::MAX, "m-1", 3));
        assert_eq!((record.encrypt_random_key.as_str(), record.encrypt_chat_msg.as_str()), ("a+/=", ""));
        assert_eq!(page.last_seq, Some(u64::MAX));
    }

    #[test]
    fn an_element_without_a_field_is_malformed_and_kept_whole() {
        let rows = [
            (r#"{"seq":8}"#, Some(8), None, "msgid"),
            (r#"{"seq":8,"msgid":{}}"#, Some(8), None, "msgid"),
            (r#"{"seq":8,"msgid":"m","publickey_ver":-1}"#, Some(8), Some("m"), "publickey_ver"),
            (
                r#"{"seq":8,"msgid":"m","publickey_ver":1,"encrypt_random_key":null}"#,
                Some(8),
                Some("m"),
                "encrypt_random_key",
            ),
            (
                r#"{"seq":8,"msgid":"m","publickey_ver":1,"encrypt_random_key":"k","encrypt_chat_msg":[]}"#,
                Some(8),
                Some("m"),
                "encrypt_chat_msg",
            ),
            (r#"{"seq":0,"msgid":"m"}"#, None, Some("m"), "seq"),
            (r#"{"seq":-1}"#, None, None, "seq"),
            ("null", None, None, "seq"),
            ("[1,2]", None, None, "seq"),
            ("\"text\"", None, None, "seq"),
        ];
        for (element, seq, msgid, field) in rows {
            let page = parse(answer(&[element, &record("9")]).as_bytes(), 7).unwrap();
            let [Element::Malformed(malformed), Element::Record(_)] = page.elements.as_slice() else {
                panic!("{page:?}")
            };
            assert_eq!((malformed.seq, malformed.msgid.as_deref(), malformed.field), (seq, msgid, field), "{element}");
            assert_eq!(malformed.raw.get(), element);
        }
    }

    #[test]
    fn elements_are_ordered_and_repeats_dropped() {
        // Asked after 7. Answer, then: positions delivered (0 for none), repeats, held, last seq.
        type Row = (&'static [&'static str], &'static [u64], usize, usize, Option<u64>);
        let rows: &[Row] = &[
            (&["8", "9", "12"], &[8, 9, 12], 0, 0, Some(12)),
            (&["12", "8", "\"9\""], &[8, 9, 12], 0, 0, Some(12)),
            (&["6", "7", "8"], &[8], 2, 0, Some(8)),
            (&["8", "8", "9"], &[8, 9], 1, 0, Some(9)),
            (&["8", "null", "8"], &[0, 8], 1, 0, Some(8)),
            (&["7"], &[], 1, 0, None),
            (&["null", "8"], &[0, 8], 0, 0, Some(8)),
            (&["9", "null", "8"], &[0, 8, 9], 0, 0, Some(9)),
            (&["8", "null", "null"], &[8], 0, 2, Some(8)),
            (&["null", "7"], &[], 1, 1, None),
        ];
        for (seqs, expected, repeats, held, last_seq) in rows {
            let elements: Vec<String> = seqs.iter().map(|seq| record(seq)).collect();
            let elements: Vec<&str> = elements.iter().map(String::as_str).collect();
            let page = parse(answer(&elements).as_bytes(), 7).unwrap();
            let delivered: Vec<u64> = page.elements.iter().map(|element| element.seq().unwrap_or(0)).collect();
            assert_eq!(delivered, *expected, "{seqs:?}");
            assert_eq!((page.repeats, page.held, page.last_seq), (*repeats, *held, *last_seq), "{seqs:?}");
            assert_eq!(page.records_received, seqs.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered_without_a_panic(bytes in any::<Vec<u8>>(), after_seq in any::<u64>()) {
            let _ = parse(&bytes, after_seq);
            let _ = parse(answer(&[&String::from_utf8_lossy(&bytes)]).as_bytes(), after_seq);
        }
    }
}
