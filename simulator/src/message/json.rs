//! A JSON writer that keeps the order of members and the spelling of numbers.

use std::fmt::Display;

/// A JSON object that is being written.
#[derive(Debug, Clone, Default)]
pub struct Object {
    members: String,
}

impl Object {
    pub fn new() -> Self {
        Self::default()
    }

    /// A member whose value is already JSON.
    pub fn json(mut self, name: &str, value: impl Display) -> Self {
        if !self.members.is_empty() {
            self.members.push(',');
        }
        self.members.push_str(&format!("{}:{value}", quote(name)));
        self
    }

    pub fn string(self, name: &str, value: impl AsRef<str>) -> Self {
        let value = quote(value.as_ref());
        self.json(name, value)
    }

    pub fn strings(self, name: &str, values: &[String]) -> Self {
        let values: Vec<String> = values.iter().map(|value| quote(value)).collect();
        self.json(name, format_args!("[{}]", values.join(",")))
    }

    pub fn object(self, name: &str, value: Self) -> Self {
        self.json(name, value.finish())
    }

    pub fn objects(self, name: &str, values: Vec<Self>) -> Self {
        let values: Vec<String> = values.into_iter().map(Self::finish).collect();
        self.json(name, format_args!("[{}]", values.join(",")))
    }

    /// Takes over the members of another object.
    pub fn with(mut self, other: Self) -> Self {
        if !self.members.is_empty() && !other.members.is_empty() {
            self.members.push(',');
        }
        self.members.push_str(&other.members);
        self
    }

    pub fn finish(self) -> String {
        format!("{{{}}}", self.members)
    }
}

/// The text as a JSON string, with its quotes.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    if text.bytes().all(|byte| byte >= b' ' && byte != b'"' && byte != b'\\') {
        quoted.push_str(text);
        quoted.push('"');
        return quoted;
    }
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            control if control < ' ' => quoted.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}
