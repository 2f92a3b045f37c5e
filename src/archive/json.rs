//! Reading JSON that WeCom wrote, one level at a time, without changing what is not looked at.
//!
//! Values stay [`RawValue`]s: numbers beyond 64 bits, escapes and white space keep their bytes, and nesting is skipped without
//! recursion, so that no depth of it can overflow the stack.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Bytes as text in which no raw control byte stands inside a JSON string.
#[derive(Debug)]
pub struct Repaired<'a> {
    pub text: Cow<'a, str>,
    /// The text does not tell what the bytes were: they were not UTF-8, or began with a byte order mark.
    pub lossy: bool,
    /// Raw control bytes were escaped.
    pub escaped: bool,
}

/// Makes valid JSON of bytes that are JSON but for raw control bytes inside strings, for bytes that are not UTF-8, and for a byte
/// order mark. Anything else keeps its bytes.
pub fn repair(bytes: &[u8]) -> Repaired<'_> {
    let without_mark = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = String::from_utf8_lossy(without_mark);
    let lossy = matches!(text, Cow::Owned(_)) || without_mark.len() < bytes.len();
    let (text, escaped) = match escape_control_bytes(&text) {
        Cow::Owned(text) => (Cow::Owned(text), true),
        Cow::Borrowed(_) => (text, false),
    };
    Repaired { text, lossy, escaped }
}

/// Replaces raw bytes below 0x20 inside JSON strings by `\u00XX`. Borrowed where there are none.
pub fn escape_control_bytes(text: &str) -> Cow<'_, str> {
    // Without an early exit inside a chunk the compiler vectorises; nearly every message ends here.
    let has_control = |chunk: &[u8]| chunk.iter().fold(false, |found, byte| found | (*byte < 0x20));
    if !text.as_bytes().chunks(256).any(has_control) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::new();
    let (mut copied, mut in_string, mut after_backslash) = (0, false, false);
    for (index, byte) in text.bytes().enumerate() {
        if byte < 0x20 && in_string {
            escaped.push_str(&text[copied..index]);
            if after_backslash {
                // The backslash stood for nothing; it must not take the new escape's backslash for its own.
                escaped.push('\\');
            }
            escaped.push_str(&format!("\\u{byte:04x}"));
            copied = index + 1;
        } else if byte == b'"' && !after_backslash {
            in_string = !in_string;
        }
        after_backslash = in_string && byte == b'\\' && !after_backslash;
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    escaped.push_str(&text[copied..]);
    Cow::Owned(escaped)
}

/// Calls `visit` with each member of the object `text`, in order. Nothing but white space may stand around the object.
pub fn members<'a>(text: &'a str, visit: impl FnMut(Cow<'a, str>, &'a RawValue)) -> serde_json::Result<()> {
    struct Members<F>(F);
    impl<'de, F: FnMut(Cow<'de, str>, &'de RawValue)> Visitor<'de> for Members<F> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(LossyString(name)) = map.next_key()? {
                (self.0)(name, map.next_value()?);
            }
            Ok(())
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_map(Members(visit))?;
    deserializer.end()
}

/// Calls `visit` with each element of the array `text`, in order. Nothing but white space may stand around the array.
pub fn elements<'a>(text: &'a str, visit: impl FnMut(&'a RawValue)) -> serde_json::Result<()> {
    struct Elements<F>(F);
    impl<'de, F: FnMut(&'de RawValue)> Visitor<'de> for Elements<F> {
        type Value = ();

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a JSON array")
        }

        fn visit_seq<A: SeqAccess<'de>>(mut self, mut elements: A) -> Result<(), A::Error> {
            while let Some(element) = elements.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    deserializer.deserialize_seq(Elements(visit))?;
    deserializer.end()
}

/// The string that the JSON value `text` is. Escapes of half a surrogate pair, as a text cut off in the middle of an emoji has
/// them, become U+FFFD.
pub fn string(text: &str) -> Option<Cow<'_, str>> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    if !inner.contains('\\') {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str(text).ok().map(|LossyString(string)| string)
}

/// A string, or a number as it is written.
pub fn string_or_number(text: &str) -> Option<Cow<'_, str>> {
    match text.as_bytes().first()? {
        b'"' => string(text),
        b'-' | b'0'..=b'9' => Some(Cow::Borrowed(text)),
        _ => None,
    }
}

/// An integer, or one in a string.
pub fn integer<T: std::str::FromStr>(text: &str) -> Option<T> {
    string_or_number(text)?.trim().parse().ok()
}

/// Prints data of our own as JSON.
pub fn print(value: &impl Serialize, bytes_expected: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(bytes_expected);
    serde_json::to_writer(&mut bytes, value).expect("strings and numbers can be printed into memory");
    bytes
}

struct LossyString<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for LossyString<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LossyVisitor;
        impl<'de> Visitor<'de> for LossyVisitor {
            type Value = LossyString<'de>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON string")
            }

            fn visit_borrowed_bytes<E: Error>(self, bytes: &'de [u8]) -> Result<Self::Value, E> {
                Ok(LossyString(String::from_utf8_lossy(bytes)))
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                Ok(LossyString(Cow::Owned(String::from_utf8_lossy(bytes).into_owned())))
            }
        }
        // As bytes: that takes lone surrogates, which a `str` refuses.
        deserializer.deserialize_bytes(LossyVisitor)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_bytes_inside_strings_alone_are_escaped() {
        let rows: &[(&str, &str)] = &[
            ("{\"a\":\"b\"}", "{\"a\":\"b\"}"),
            ("{\n\t\"a\": \"b\"\r\n}", "{\n\t\"a\": \"b\"\r\n}"),
            ("{\"a\":\"\u{11}b\n\"}", "{\"a\":\"\\u0011b\\u000a\"}"),
            ("{\"a\":\"\\\"\u{1}\"}", "{\"a\":\"\\\"\\u0001\"}"),
            ("{\"a\\\\\":\"\u{0}\"\n}", "{\"a\\\\\":\"\\u0000\"\n}"),
            ("{\"a\":\"\\\u{1f}\"}", "{\"a\":\"\\\\\\u001f\"}"),
            ("{\"消息\":\"\u{12}类\u{7f}型\"}", "{\"消息\":\"\\u0012类\u{7f}型\"}"),
        ];
        for (text, expected) in rows {
            assert_eq!(escape_control_bytes(text), *expected);
            assert_eq!(matches!(escape_control_bytes(text), Cow::Borrowed(_)), text == expected, "{text:?}");
        }
    }

    #[test]
    fn strings_are_read_even_with_half_a_surrogate_pair() {
        let rows: &[(&str, Option<&str>)] = &[
            (r#""plain""#, Some("plain")),
            (r#""\u6d88\/\n""#, Some("消/\n")),
            (r#""cut \ud83d""#, Some("cut \u{fffd}\u{fffd}\u{fffd}")),
            ("12", None),
            ("null", None),
        ];
        for (text, expected) in rows {
            assert_eq!(string(text).as_deref(), *expected, "{text}");
        }
        let mut names = Vec::new();
        members(r#" {"\ud83d":1,"b":{"c":[1e999,2]}} "#, |name, value| names.push((name, value.get()))).unwrap();
        assert_eq!(names[1], ("b".into(), r#"{"c":[1e999,2]}"#));
    }

    #[test]
    fn integers_are_read_as_numbers_and_as_strings() {
        let rows = [
            ("18446744073709551615", Some(u64::MAX)),
            ("\"7\"", Some(7)),
            ("-1", None),
            ("1.5", None),
            ("null", None),
            ("\"\"", None),
        ];
        for (text, expected) in rows {
            assert_eq!(integer(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn escaping_raw_strings_gives_json_that_reads_as_the_string(content in "[\u{0}-\u{1f}a-z消😀]*") {
            let raw = format!("{{\"key\":\"{content}\"}}");
            let escaped = escape_control_bytes(&raw);
            let value: serde_json::Value = serde_json::from_str(&escaped).unwrap();
            prop_assert_eq!(value["key"].as_str().unwrap(), content.as_str());
        }

        #[test]
        fn valid_json_is_never_changed(content in any::<String>(), pretty in any::<bool>()) {
            let value = serde_json::json!({ content.clone(): [content] });
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
            prop_assert_eq!(escape_control_bytes(&text), text.as_str());
        }
    }
}
