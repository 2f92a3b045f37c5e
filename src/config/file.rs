//! From a file to a map of strings: Java properties or JSON, always UTF-8.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use java_properties::{LineContent, PropertiesIter};
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::problem::{Problem, Warning};

/// Far above any real configuration, and small enough to be read whole.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A configuration as written: keys and values, references not yet resolved.
pub(super) type Map = BTreeMap<String, String>;

/// Reads a configuration file. It is JSON when its first character is `{`, else Java properties.
pub(super) fn read(path: &Path) -> Result<(Map, Vec<Warning>), Vec<Problem>> {
    let text = read_text(path).map_err(|message| vec![Problem::of_file(message)])?;
    if text.trim_start().starts_with('{') { json(&text) } else { properties(&text) }
}

/// Reads a small UTF-8 file; a byte order mark is left out. The error is a sentence without the path.
pub(super) fn read_text(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file; check the path".to_owned(),
        std::io::ErrorKind::PermissionDenied => "this user may not read the file; change its owner or mode".to_owned(),
        _ => format!("cannot be read: {error}"),
    };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.is_dir() {
        return Err("is a folder; give a file".to_owned());
    }
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("is larger than {FILE_BYTES_MAX} bytes; this is no configuration file"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = 1 + error.as_bytes()[..error.utf8_error().valid_up_to()].iter().filter(|&&b| b == b'\n').count();
        format!("line {line} is not UTF-8; save the file as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Parses Java properties: escapes, continued lines, `=`, `:` or blanks between key and value. Warns of backslashes
/// that are lost, as in Java, where one was written for itself.
pub(super) fn properties(text: &str) -> Result<(Map, Vec<Warning>), Vec<Problem>> {
    let slips = backslash_slips(text);
    // The parser drops a last line that ends in a backslash; with an empty line behind it, the line counts.
    let text = format!("{text}\n\n");
    let mut map = Map::new();
    let mut lines = BTreeMap::new();
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    for line in PropertiesIter::new_with_encoding(text.as_bytes(), encoding_rs::UTF_8) {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                problems.push(Problem::of_file(format!(
                    "line {} has a bad escape: \\u takes four hexadecimal digits of one character; write the character \
                     itself, and a backslash as \\\\",
                    error.line_number().unwrap_or_default()
                )));
                continue;
            }
        };
        let number = line.line_number();
        let LineContent::KVPair(key, value) = line.consume_content() else { continue };
        if let Some(first) = lines.insert(key.clone(), number) {
            problems
                .push(Problem::hidden(&key, format!("stands twice, in lines {first} and {number}; keep one of them")));
        }
        let messages = slips.iter().filter(|(line, _)| *line == number).map(|(_, message)| message.clone());
        warnings.extend(messages.map(|message| Warning { key: key.clone(), message }));
        map.insert(key, value);
    }
    if problems.is_empty() { Ok((map, warnings)) } else { Err(problems) }
}

/// Backslashes that were probably written for themselves: where the setting begins, and what becomes of it.
fn backslash_slips(text: &str) -> Vec<(usize, String)> {
    let mut slips = Vec::new();
    let mut first = None;
    for (number, line) in (1..).zip(text.lines()) {
        let content = line.trim_start();
        // A comment does not go on in the next line.
        if first.is_none() && content.starts_with(['#', '!']) {
            continue;
        }
        let is_setting = |rest: &str| rest.split_once('=').is_some_and(|(key, _)| is_key(key.trim_end()));
        if let Some(first) = first
            && content.len() == line.len()
            && is_setting(line)
        {
            let message = format!(
                "has line {number} as a part of it, because the line before ends in a backslash; write \\\\ for one that is meant"
            );
            slips.push((first, message));
        }
        let setting = *first.get_or_insert(number);
        let (mut characters, mut goes_on, mut is_lost) = (content.chars(), false, false);
        while let Some(character) = characters.next() {
            if character == '\\' {
                match characters.next() {
                    None => goes_on = true,
                    Some(escaped) => is_lost |= !"tnrfu\\:=#! ".contains(escaped),
                }
            }
        }
        if is_lost {
            let message = format!(
                "loses a backslash of line {number}, as in Java's properties; write \\\\ for each one that is meant"
            );
            slips.push((setting, message));
        }
        if !goes_on {
            first = None;
        }
    }
    slips
}

fn is_key(text: &str) -> bool {
    text.contains('.') && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        || text == "name"
        || text == "topic"
}

/// Parses a JSON connector: `{"name": …, "config": {…}}` as Connect's REST API takes it, or the flat object of its
/// standalone mode.
fn json(text: &str) -> Result<(Map, Vec<Warning>), Vec<Problem>> {
    let object: Object = serde_json::from_str(text).map_err(|error| {
        // Not serde's own words: they can quote a value.
        let what = match error.classify() {
            serde_json::error::Category::Eof => "ends too early; is a bracket or a quote missing?",
            _ => "is not valid JSON here; check commas, quotes and brackets",
        };
        vec![Problem::of_file(format!("line {}, column {}: {what}", error.line(), error.column()))]
    })?;
    let mut problems = Vec::new();
    let mut warnings = Vec::new();
    let wrapped = object.0.iter().any(|(key, value)| key == "config" && matches!(value, Json::Object(_)));
    let map = if wrapped {
        let mut name = None;
        let mut config = Map::new();
        for (key, value) in object.0 {
            match (key.as_str(), value) {
                ("config", Json::Object(inner)) => config = inner.into_map(&mut problems),
                ("name", Json::Scalar(text)) => name = Some(text),
                // As `GET /connectors/{name}` answers them.
                ("tasks" | "type", _) => {}
                _ => warnings.push(Warning {
                    key,
                    message: "is not known beside \"name\" and \"config\"; it is ignored".into(),
                }),
            }
        }
        if let Some(name) = name {
            match config.insert("name".to_owned(), name.clone()) {
                Some(inner) if inner != name => problems.push(Problem::shown(
                    "name",
                    inner,
                    format!("differs from the outer name {name:?}; give it once"),
                )),
                _ => {}
            }
        }
        config
    } else {
        object.into_map(&mut problems)
    };
    if problems.is_empty() { Ok((map, warnings)) } else { Err(problems) }
}

/// A JSON object with its keys in order, the repeated ones too (a map would keep the last in silence).
struct Object(Vec<(String, Json)>);

/// As much of JSON as a configuration has.
enum Json {
    /// A string as it is, a number or boolean as written, as Connect takes them.
    Scalar(String),
    Object(Object),
    /// A list or null.
    Other,
}

impl Object {
    fn into_map(self, problems: &mut Vec<Problem>) -> Map {
        let mut map = Map::new();
        for (key, value) in self.0 {
            match value {
                Json::Scalar(text) => {
                    if map.insert(key.clone(), text).is_some() {
                        problems.push(Problem::hidden(key, "stands twice; keep one of them"));
                    }
                }
                Json::Object(_) | Json::Other => problems.push(Problem::hidden(
                    key,
                    "must be a string, a number or a boolean; write lists as one string with commas, and leave out what is null",
                )),
            }
        }
        map
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Object(object) => Ok(object),
            _ => Err(serde::de::Error::custom("not an object")),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(Json::Scalar(value.to_owned()))
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Json, A::Error> {
        while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
        Ok(Json::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(Json::Object(Object(pairs)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn properties_are_read_as_java_reads_them() {
        let rows: &[(&str, &[(&str, &str)])] = &[
            ("a=1\nb: 2\nc 3\n", &[("a", "1"), ("b", "2"), ("c", "3")]),
            ("# note\n! note\n\n  a = 1", &[("a", "1")]),
            ("a=one\\\n   two\nb=3", &[("a", "onetwo"), ("b", "3")]),
            ("a=one\\", &[("a", "one")]),
            ("a=c:\\\\x\\ty\\u0041", &[("a", "c:\\x\tyA")]),
            ("k\\=1\\ 2=v", &[("k=1 2", "v")]),
            ("名=会话 😀\r\nb=é\r\n", &[("名", "会话 😀"), ("b", "é")]),
            ("empty=\nbare\n", &[("empty", ""), ("bare", "")]),
            ("a=#no comment", &[("a", "#no comment")]),
            ("", &[]),
        ];
        for (text, expected) in rows {
            let expected: Map = expected.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
            assert_eq!(properties(text).unwrap().0, expected, "{text:?}");
        }
    }

    #[test]
    fn a_backslash_that_gets_lost_is_warned_of() {
        // A file, and what is said of which key.
        let rows: &[(&str, &[&str])] = &[
            ("sasl.password=pass\\word\n", &["sasl.password: loses a backslash of line 1"]),
            ("# \\q\na=1\nb=C:\\\\x\\y\n", &["b: loses a backslash of line 3"]),
            ("a=one \\\n  t\\wo\n", &["a: loses a backslash of line 2"]),
            ("a=\\\"x\\\"", &["a: loses a backslash of line 1"]),
            ("a=Sesame\\\ntopic=t\n", &["a: has line 2 as a part of it"]),
            ("a=Sesame\\\nwecom.secret = t\\\nb.c=1\n", &["a: has line 2 as a part", "a: has line 3 as a part"]),
            ("a=c:\\\\x\\ty\\u0041\\n\\r\\f\\:\\=\\#\\!\\ ", &[]),
            ("a=one\\\n   b.c=two\n", &[]),
            ("# a\\\nb.c=1\n", &[]),
        ];
        for (text, expected) in rows {
            let (_, warnings) = properties(text).unwrap();
            let found: Vec<String> = warnings.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "{text:?}: {found:?}");
            for (found, expected) in found.iter().zip(*expected) {
                assert!(found.starts_with(expected) && !found.contains("Sesame"), "{text:?}: {found}");
            }
        }
    }

    #[test]
    fn bad_files_get_a_sentence() {
        let rows: &[(&[u8], &str)] = &[
            (b"a=1\nb=2\na=3\n", "a: stands twice, in lines 1 and 3"),
            (b"ok=1\nx=\\u12G4\n", "line 2 has a bad escape"),
            (b"x=\\u12", "line 1 has a bad escape"),
            (b"x=\\ud83d\\ude00", "line 1 has a bad escape"),
            (b"a=1\nb=\xff\n", "line 2 is not UTF-8"),
            (b"{\"name\":\"a\",\"config\":{\"x\":1,\"x\":2}}", "x: stands twice"),
            (b"{\"x\":[1],\"y\":null,\"z\":{}}", "y: must be a string, a number or a boolean"),
            (b"{\"x\":\"secret\"", "line 1, column 13: ends too early"),
            (b"{\"x\":\"s\",}", "line 1, column 10: is not valid JSON"),
            (b"{\"name\":\"a\",\"config\":{\"name\":\"b\"}}", "name = \"b\": differs from the outer name \"a\""),
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.properties");
        for (bytes, expected) in rows {
            std::fs::write(&path, bytes).unwrap();
            let problems = read(&path).unwrap_err();
            let text: Vec<_> = problems.iter().map(ToString::to_string).collect();
            assert!(text.iter().any(|line| line.starts_with(expected)), "{expected}: {text:?}");
        }
        std::fs::write(&path, vec![b' '; FILE_BYTES_MAX as usize + 1]).unwrap();
        assert!(read(&path).unwrap_err()[0].message.contains("is larger than"));
        assert!(read(folder.path()).unwrap_err()[0].message.contains("is a folder"));
        assert!(read(&folder.path().join("none")).unwrap_err()[0].message.contains("no such file"));
    }

    #[test]
    fn json_is_read_wrapped_or_flat_and_a_byte_order_mark_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        for text in [
            r#"{"name":"n","config":{"tasks.max":2,"media.enable":true,"topic":"t"},"tasks":[],"type":"source"}"#,
            r#"{"name":"n","tasks.max":"2","media.enable":"true","topic":"t"}"#,
            "\u{feff}name=n\ntasks.max=2\nmedia.enable=true\ntopic=t\n",
        ] {
            std::fs::write(&path, text).unwrap();
            let (map, warnings) = read(&path).unwrap();
            let pairs: Vec<_> = map.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            assert_eq!(pairs, [("media.enable", "true"), ("name", "n"), ("tasks.max", "2"), ("topic", "t")]);
            assert_eq!(warnings, []);
        }
        std::fs::write(&path, r#"{"name":"n","config":{},"initial_state":"STOPPED"}"#).unwrap();
        assert_eq!(read(&path).unwrap().1[0].key, "initial_state");
    }

    proptest! {
        /// What Java's writer (here the crate's) writes comes back, whatever the text.
        #[test]
        fn properties_round_trip(map in prop::collection::btree_map("\\PC{1,12}", "[\\PC\\t\\n\\r\\\\=:# ]{0,24}", 0..8)) {
            let mut bytes = Vec::new();
            let mut writer = java_properties::PropertiesWriter::new_with_encoding(&mut bytes, encoding_rs::UTF_8);
            for (key, value) in &map {
                writer.write(key, value).unwrap();
            }
            writer.finish().unwrap();
            prop_assert_eq!(properties(&String::from_utf8(bytes).unwrap()).unwrap().0, map);
        }

        /// No text makes the parsers panic.
        #[test]
        fn any_text_is_answered(text in "[\\PC\\n\\r\\\\=:#! {}\\[\\]\",u0-9]{0,64}") {
            let _ = properties(&text);
            let _ = json(&text);
        }
    }
}
