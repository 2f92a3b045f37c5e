//! The search for media: wherever a string stands under the name `sdkfileid`, also in JSON that is kept in strings.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::value::RawValue;

use super::json;
use super::media::{self, MediaReference};

const NAME: &str = "sdkfileid";

/// Objects, arrays and strings with JSON in them that may stand in each other. A forwarded record takes five of these; each
/// nesting doubles the backslashes before a quote, so that real messages end far sooner.
const DEPTH_MAX: usize = 64;
/// Files of one message.
const REFERENCES_MAX: usize = 1_000;
/// Bytes looked through for one message, counted again at each depth.
const BYTES_MAX: usize = 64 << 20;
const SDKFILEID_BYTES_MAX: usize = 16 << 10;
const PATH_BYTES_MAX: usize = 1 << 10;
const FILE_NAME_BYTES_MAX: usize = 1 << 10;

/// The types that have media of their own, which is also the name of what they keep them in.
const CARRIERS: [&str; 7] = ["image", "voice", "video", "emotion", "file", "meeting_voice_call", "voip_doc_share"];

/// The media of a message.
#[derive(Debug, Default)]
pub struct Media {
    /// In the order of the message.
    pub references: Vec<MediaReference>,
    /// There may be more: a bound was reached, or JSON in a string cannot be read.
    pub truncated: bool,
}

/// Finds the media of the message `text`, a valid JSON object of the type `msgtype`.
pub fn find(corp_id: &str, msgid: &str, msgtype: Option<&str>, text: &str) -> Media {
    if !text.contains(NAME) {
        return Media::default();
    }
    let mut walk =
        Walk { corp_id, msgid, path: String::new(), bytes_left: BYTES_MAX, references: Vec::new(), truncated: false };
    let media_type = msgtype.and_then(type_name).unwrap_or(Cow::Borrowed("unknown"));
    walk.value(text, 0, Within { media_type: &media_type, item_type: "" }, true);
    let Walk { mut references, truncated, .. } = walk;
    // Of a name that stands twice in an object the last counts.
    let mut paths = HashSet::new();
    references.reverse();
    references.retain(|reference| paths.insert(reference.path.clone()));
    references.reverse();
    Media { references, truncated }
}

/// Where a value stands.
#[derive(Debug, Clone, Copy)]
struct Within<'a> {
    /// The type of what a file here would be.
    media_type: &'a str,
    /// The type of the message or item around it, in small letters; empty where it has none.
    item_type: &'a str,
}

struct Walk<'a> {
    corp_id: &'a str,
    msgid: &'a str,
    path: String,
    bytes_left: usize,
    references: Vec<MediaReference>,
    truncated: bool,
}

/// What is looked at in one object.
#[derive(Default)]
struct Object<'a> {
    sdkfileid: Option<Cow<'a, str>>,
    md5sum: Option<Cow<'a, str>>,
    size: Option<u64>,
    file_name: Option<Cow<'a, str>>,
    fileext: Option<Cow<'a, str>>,
    /// `type` as a string, of an item; or the `msgtype` of the message.
    type_name: Option<Cow<'a, str>>,
    /// `type` as a number, of an emotion.
    type_number: Option<u32>,
    /// The members that hold an `sdkfileid` somewhere inside.
    holders: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl Walk<'_> {
    /// Looks through the value `text`, which has the needle in it. `opens_strings`: JSON in strings is looked at, too.
    fn value(&mut self, text: &str, depth: usize, within: Within<'_>, opens_strings: bool) {
        let Some(bytes_left) = self.bytes_left.checked_sub(text.len()).filter(|_| depth < DEPTH_MAX) else {
            self.truncated = true;
            return;
        };
        self.bytes_left = bytes_left;
        match text.as_bytes().first() {
            Some(b'{') => self.object(text, depth, within, opens_strings),
            Some(b'[') => self.array(text, depth, within, opens_strings),
            Some(b'"') if opens_strings => self.string(text, depth, within),
            _ => {}
        }
    }

    fn object(&mut self, text: &str, depth: usize, within: Within<'_>, opens_strings: bool) {
        let mut object = Object::default();
        let read = json::members(text, |name, member| {
            let value = member.get();
            match name.as_ref() {
                NAME if value.starts_with('"') => {
                    object.sdkfileid = json::string(value);
                    return;
                }
                "md5sum" => object.md5sum = json::string(value),
                "filesize" | "voice_size" | "imagesize" => object.size = json::integer(value).or(object.size),
                "filename" => object.file_name = json::string(value),
                "fileext" => object.fileext = json::string(value),
                "type" => {
                    object.type_number = json::integer(value);
                    object.type_name = json::string(value);
                }
                "msgtype" if depth == 0 => object.type_name = json::string(value),
                _ => {}
            }
            if value.contains(NAME) {
                object.holders.push((name, member));
            }
        });
        if read.is_err() {
            self.truncated = true;
            return;
        }
        let item_type = object.type_name.as_deref().and_then(type_name);
        // What people write is no JSON of WeCom's, even if it looks like it: whoever sends `{"sdkfileid":"…"}` sends no file.
        let is_written = depth == 0
            || matches!(within.item_type, "mixed" | "chatrecord")
            || object.type_name.as_deref().is_some_and(|name| name.starts_with("ChatRecord"));
        // In a type that nobody has described, such as `note`, an item of the type `text` may hold anything.
        let is_text = is_written && matches!(item_type.as_deref(), Some("text" | "markdown"));
        let opens_strings = opens_strings && !is_text;
        self.reference(&object, within.media_type);
        for (name, member) in &object.holders {
            let media_type = match (name.as_ref(), &item_type) {
                ("content", Some(item_type)) => item_type,
                (name, _) if CARRIERS.contains(&name) => name,
                _ => within.media_type,
            };
            let inner = Within { media_type, item_type: item_type.as_deref().unwrap_or(within.item_type) };
            self.within(name, |walk| walk.value(member.get(), depth + 1, inner, opens_strings));
        }
    }

    fn array(&mut self, text: &str, depth: usize, within: Within<'_>, opens_strings: bool) {
        let (mut index, mut holders) = (0_usize, Vec::new());
        let read = json::elements(text, |element| {
            if element.get().contains(NAME) {
                holders.push((index, element));
            }
            index += 1;
        });
        self.truncated |= read.is_err();
        for (index, element) in holders {
            self.within(&index.to_string(), |walk| walk.value(element.get(), depth + 1, within, opens_strings));
        }
    }

    fn string(&mut self, text: &str, depth: usize, within: Within<'_>) {
        let Some(decoded) = json::string(text) else { return };
        let inner = decoded.trim_matches([' ', '\t', '\r', '\n', '\u{feff}']);
        if inner.starts_with(['{', '[', '"']) {
            self.value(&json::escape_control_bytes(inner), depth + 1, within, true);
        }
    }

    fn within(&mut self, name: &str, visit: impl FnOnce(&mut Self)) {
        let parent = self.path.len();
        self.path.push('/');
        for character in name.chars() {
            match character {
                '~' => self.path.push_str("~0"),
                '/' => self.path.push_str("~1"),
                character => self.path.push(character),
            }
        }
        if self.path.len() > PATH_BYTES_MAX {
            self.truncated = true;
        } else {
            visit(self);
        }
        self.path.truncate(parent);
    }

    fn reference(&mut self, object: &Object<'_>, media_type: &str) {
        let Some(sdkfileid) = object.sdkfileid.as_deref().filter(|sdkfileid| !sdkfileid.is_empty()) else { return };
        let path = format!("{}/{NAME}", self.path);
        let fits = sdkfileid.len() <= SDKFILEID_BYTES_MAX && path.len() <= PATH_BYTES_MAX;
        if !fits || self.references.len() == REFERENCES_MAX {
            self.truncated = true;
            return;
        }
        let file_name = object.file_name.as_deref().filter(|name| !name.is_empty());
        self.references.push(MediaReference {
            media_id: media::media_id(self.corp_id, self.msgid, &path),
            path,
            media_type: media_type.to_owned(),
            md5sum: media::md5sum(object.md5sum.as_deref()),
            size: object.size,
            extension: media::extension(object.fileext.as_deref(), file_name, media_type, object.type_number),
            file_name: file_name.map(|name| name[..name.floor_char_boundary(FILE_NAME_BYTES_MAX)].to_owned()),
            sdkfileid: sdkfileid.to_owned(),
        });
    }
}

/// `image` for `image` and `ChatRecordImage`. Nothing for what can't be the name of a type.
fn type_name(name: &str) -> Option<Cow<'_, str>> {
    let name = name.strip_prefix("ChatRecord").unwrap_or(name);
    let fits = (1..=40).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    fits.then(|| {
        if name.bytes().any(|byte| byte.is_ascii_uppercase()) { name.to_ascii_lowercase().into() } else { name.into() }
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn found(text: &str) -> Vec<(String, String)> {
        let media = find("ww1", "m1", Some("new_type"), text);
        assert!(!media.truncated, "{text}");
        media.references.into_iter().map(|reference| (reference.path, reference.sdkfileid)).collect()
    }

    #[test]
    fn references_are_found_wherever_the_name_stands() {
        let rows: &[(&str, &[(&str, &str)])] = &[
            (r#"{"a":"b"}"#, &[]),
            (r#"{"sdkfileid":"x"}"#, &[("/sdkfileid", "x")]),
            (r#"{"a/b~c":[0,{"sdkfileid":"x\/\n"}]}"#, &[("/a~1b~0c/1/sdkfileid", "x/\n")]),
            (r#"{"a":{"sdkfileid":""},"b":{"sdkfileid":7},"c":{"sdkfileid":null}}"#, &[]),
            (r#"{"sdkfileid":{"sdkfileid":"x"}}"#, &[("/sdkfileid/sdkfileid", "x")]),
            // Of a name that stands twice the last counts.
            (r#"{"a":{"sdkfileid":"x"},"a":{"sdkfileid":"y"}}"#, &[("/a/sdkfileid", "y")]),
            // JSON in strings: in an array, in a string of a string, with white space and a byte order mark.
            (r#"{"a":["{\"sdkfileid\":\"x\"}"]}"#, &[("/a/0/sdkfileid", "x")]),
            (r#"{"a":"\"{\\\"sdkfileid\\\":\\\"x\\\"}\""}"#, &[("/a/sdkfileid", "x")]),
            ("{\"a\":\"\u{feff}\\n [{\\\"sdkfileid\\\":\\\"x\\\"}] \"}", &[("/a/0/sdkfileid", "x")]),
            // A raw control byte in nested JSON, a half surrogate pair beside and around.
            (r#"{"a":"{\"sdkfileid\":\"x\",\"b\":\"\u0011\n\"}"}"#, &[("/a/sdkfileid", "x")]),
            (r#"{"z":"\ud83d","a":"{\"sdkfileid\":\"x\",\"b\":\"\\ud83d \ud83d\"}"}"#, &[("/a/sdkfileid", "x")]),
            // Text that people wrote.
            (r#"{"msgtype":"text","text":{"content":"{\"sdkfileid\":\"x\"}"}}"#, &[]),
            (r#"{"a":{"type":"ChatRecordText","content":"{\"content\":\"{\\\"sdkfileid\\\":\\\"x\\\"}\"}"}}"#, &[]),
            (r#"{"msgtype":"text","text":{"sdkfileid":"x"}}"#, &[("/text/sdkfileid", "x")]),
            (r#"{"msgtype":"mixed","mixed":{"item":[{"type":"text","content":"{\"sdkfileid\":\"x\"}"}]}}"#, &[]),
            (
                r#"{"msgtype":"chatrecord","chatrecord":{"item":[{"type":"Text","content":"{\"sdkfileid\":\"x\"}"}]}}"#,
                &[],
            ),
            // In a type that nobody has described, what is called text may be anything.
            (
                r#"{"msgtype":"note","note":{"item":[{"type":"text","content":"{\"sdkfileid\":\"x\"}"},{"type":"markdown","content":"{\"sdkfileid\":\"y\"}"}]}}"#,
                &[("/note/item/0/content/sdkfileid", "x"), ("/note/item/1/content/sdkfileid", "y")],
            ),
            (
                r#"{"a":{"type":"ChatRecordNote","content":"{\"type\":\"text\",\"text\":\"{\\\"sdkfileid\\\":\\\"x\\\"}\"}"}}"#,
                &[("/a/content/text/sdkfileid", "x")],
            ),
            (r#"{"a":"where is my sdkfileid?"}"#, &[]),
        ];
        for (text, expected) in rows {
            let expected: Vec<_> = expected.iter().map(|(path, id)| ((*path).to_owned(), (*id).to_owned())).collect();
            assert_eq!(found(text), expected, "{text}");
        }
    }

    #[test]
    fn the_type_is_that_of_what_holds_the_file() {
        let rows = [
            (Some("image"), r#"{"image":{"sdkfileid":"x"}}"#, "image", Some("jpg")),
            (Some("note"), r#"{"note":{"parts":[{"video":{"sdkfileid":"x"}}]}}"#, "video", Some("mp4")),
            (
                Some("note"),
                r#"{"note":{"parts":[{"type":"ChatRecordVoice","content":{"sdkfileid":"x"}}]}}"#,
                "voice",
                Some("amr"),
            ),
            (Some("note"), r#"{"note":{"sdkfileid":"x","filename":"a.PNG"}}"#, "note", Some("png")),
            (Some("../note"), r#"{"sdkfileid":"x"}"#, "unknown", None),
            (None, r#"{"type":"../x","content":{"sdkfileid":"x"}}"#, "unknown", None),
        ];
        for (msgtype, text, media_type, extension) in rows {
            let media = find("ww1", "m1", msgtype, text);
            let [reference] = media.references.as_slice() else { panic!("{media:?}") };
            assert_eq!(
                (reference.media_type.as_str(), reference.extension.as_deref()),
                (media_type, extension),
                "{text}"
            );
        }
    }

    #[test]
    fn bounds_are_told_and_hold() {
        const DEEP: usize = 200_000;
        let many = |count: usize| json!({ "a": vec![json!({"sdkfileid": "x"}); count] }).to_string();
        let nested = |depth| format!("{}{{\"sdkfileid\":\"x\"}}{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let long = |bytes: usize| json!({ "sdkfileid": "x".repeat(bytes) }).to_string();
        let mut text = r#"{"sdkfileid":"x"}"#.to_owned();
        let strings = std::iter::repeat_with(|| {
            text = json!([text]).to_string();
            text.clone()
        });
        let strings = strings.take_while(|text| text.len() < 1 << 20).last().unwrap();
        let rows: &[(String, usize, bool)] = &[
            (many(REFERENCES_MAX), REFERENCES_MAX, false),
            (many(REFERENCES_MAX + 1), REFERENCES_MAX, true),
            (long(SDKFILEID_BYTES_MAX), 1, false),
            (long(SDKFILEID_BYTES_MAX + 1), 0, true),
            (nested(DEPTH_MAX - 1), 1, false),
            (nested(DEPTH_MAX), 0, true),
            (nested(DEEP), 0, true),
            (format!("{{\"a\":{}{{\"sdkfileid\":\"x\"}}{}}}", "[".repeat(DEEP), "]".repeat(DEEP)), 0, true),
            (json!({"a": format!("{}sdkfileid", "[".repeat(DEEP))}).to_string(), 0, true),
            (json!({"a": strings}).to_string(), 1, false),
            (json!({"k".repeat(PATH_BYTES_MAX): {"sdkfileid": "x"}}).to_string(), 0, true),
            (json!({"a": r#"{"sdkfileid":"x"#}).to_string(), 0, true),
        ];
        for (index, (text, count, truncated)) in rows.iter().enumerate() {
            let media = find("ww1", "m1", None, text);
            assert_eq!((media.references.len(), media.truncated), (*count, *truncated), "row {index}");
        }
    }

    /// A message with files planted in it.
    #[derive(Debug, Clone)]
    enum Node {
        Noise(String),
        File(String),
        Object(Vec<Node>),
        Array(Vec<Node>),
        Text(Box<Node>),
    }

    impl Node {
        fn plant(&self, path: &str, planted: &mut Vec<(String, String)>) -> Value {
            match self {
                Self::Noise(text) => Value::from(text.as_str()),
                Self::File(id) => {
                    planted.push((format!("{path}/sdkfileid"), id.clone()));
                    json!({ "md5sum": "", "sdkfileid": id })
                }
                Self::Object(nodes) => {
                    let member = |(index, node): (usize, &Self)| {
                        (format!("k~{index}"), node.plant(&format!("{path}/k~0{index}"), planted))
                    };
                    nodes.iter().enumerate().map(member).collect()
                }
                Self::Array(nodes) => nodes
                    .iter()
                    .enumerate()
                    .map(|(index, node)| node.plant(&format!("{path}/{index}"), planted))
                    .collect(),
                // With the control byte raw, as WeCom prints it.
                Self::Text(node) => node.plant(path, planted).to_string().replace("\\u0011", "\u{11}").into(),
            }
        }
    }

    fn nodes() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![
            "[a-c\"\\\\{\\[\u{11}消]{0,4}".prop_map(Node::Noise),
            "[A-Za-z0-9+/\"\u{11}]{1,9}".prop_map(Node::File)
        ];
        leaf.prop_recursive(7, 40, 5, |node| {
            prop_oneof![
                prop::collection::vec(node.clone(), 0..5).prop_map(Node::Object),
                prop::collection::vec(node.clone(), 0..5).prop_map(Node::Array),
                prop_oneof![
                    prop::collection::vec(node.clone(), 0..5).prop_map(Node::Object),
                    prop::collection::vec(node, 0..5).prop_map(Node::Array),
                ]
                .prop_map(|node| Node::Text(Box::new(node))),
            ]
        })
    }

    proptest! {
        #[test]
        fn every_planted_file_is_found_once(nodes in prop::collection::vec(nodes(), 0..4)) {
            let mut planted = Vec::new();
            let text = Node::Object(nodes).plant("", &mut planted).to_string();
            let mut found = found(&text);
            planted.sort();
            found.sort();
            prop_assert_eq!(found, planted);
        }
    }
}
