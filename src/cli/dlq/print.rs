//! How dead letters are shown. Headers come from outside: control characters in them never reach a terminal.

use std::collections::BTreeMap;
use std::io::{self, Write};

use aws_lc_rs::digest;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::task::dead_letters::{DeadLetter, DeadLetters};
use crate::task::object_key::hex;
use crate::task::replay::Fate;

/// Fields of a sealed record that are shown as they are.
const OPEN_FIELDS: [&str; 8] = ["schema", "corp_id", "seq", "msgid", "publickey_ver", "uri", "bytes", "limit_bytes"];

/// Longer ones are not.
const OPEN_FIELD_BYTES_MAX: usize = 500;

/// Prints dead letters as they come, and counts them.
pub struct ListPrinter<'a, W> {
    letters: &'a DeadLetters<'a>,
    is_json: bool,
    out: W,
    /// By reason: how many there are, and how many of these have been replayed.
    counts: BTreeMap<String, (u64, u64)>,
    /// Records in the topic that are no dead letters of this connector.
    pub foreign: u64,
}

impl<'a, W: Write> ListPrinter<'a, W> {
    pub fn new(letters: &'a DeadLetters<'a>, is_json: bool, out: W) -> Self {
        Self { letters, is_json, out, counts: BTreeMap::new(), foreign: 0 }
    }

    pub fn letter(&mut self, letter: &DeadLetter, is_replayed: bool) -> io::Result<()> {
        if self.is_json {
            writeln!(self.out, "{}", facts(self.letters, letter, is_replayed))?;
        } else {
            let place = self.letters.place(letter);
            let width = self.letters.topic().len() + 9;
            if self.counts.is_empty() {
                let (seq, reason, key, time) = ("SEQ", "REASON", "KEY", "TIME");
                writeln!(self.out, "{seq:>10}  {reason:19}  {key:>3}  {time:24}  REPLAYED  {:width$}  MSGID", "PLACE")?;
            }
            writeln!(
                self.out,
                "{:>10}  {:19}  {:>3}  {:24}  {:8}  {place:width$}  {}",
                or_dash(letter.seq),
                printable(&letter.reason),
                or_dash(letter.publickey_ver),
                time(letter.record.timestamp_ms),
                if is_replayed { "yes" } else { "no" },
                letter.msgid.as_deref().map_or_else(|| "-".into(), printable),
            )?;
        }
        let count = self.counts.entry(letter.reason.clone()).or_default();
        count.0 += 1;
        count.1 += u64::from(is_replayed);
        Ok(())
    }

    pub fn summary(&mut self, connector: &str) -> io::Result<()> {
        let (all, replayed) = self.counts.values().fold((0, 0), |sum, count| (sum.0 + count.0, sum.1 + count.1));
        if self.is_json {
            let by_reason: serde_json::Map<String, Value> = self
                .counts
                .iter()
                .map(|(reason, (all, replayed))| (reason.clone(), json!({"dead_letters": all, "replayed": replayed})))
                .collect();
            let summary =
                json!({"dead_letters": all, "replayed": replayed, "by_reason": by_reason, "foreign": self.foreign});
            return writeln!(self.out, "{}", json!({ "summary": summary }));
        }
        if all > 0 {
            writeln!(self.out)?;
        }
        writeln!(self.out, "{all} dead letters of connector {connector}, {replayed} of them replayed")?;
        for (reason, (all, replayed)) in &self.counts {
            writeln!(self.out, "  {:19}  {all}, {replayed} replayed", printable(reason))?;
        }
        if self.foreign > 0 {
            let (topic, foreign) = (self.letters.topic(), self.foreign);
            writeln!(self.out, "{foreign} more records in {topic} are another connector's, or no dead letters")?;
        }
        Ok(())
    }
}

/// Prints what becomes of dead letters, and counts. Whoever reads may leave: a replay goes on without.
pub struct ReplayPrinter<'a, W> {
    letters: &'a DeadLetters<'a>,
    is_json: bool,
    is_rehearsal: bool,
    out: W,
    replayed: u64,
    replayed_before: u64,
    pub stay: u64,
}

impl<'a, W: Write> ReplayPrinter<'a, W> {
    pub fn new(letters: &'a DeadLetters<'a>, is_json: bool, is_rehearsal: bool, out: W) -> Self {
        Self { letters, is_json, is_rehearsal, out, replayed: 0, replayed_before: 0, stay: 0 }
    }

    pub fn fate(&mut self, letter: &DeadLetter, fate: &Fate) {
        let place = self.letters.place(letter);
        let outcome = match fate {
            Fate::Replayed if self.is_rehearsal => "would_be_replayed",
            Fate::Replayed => "replayed",
            Fate::ReplayedBefore => "replayed_before",
            Fate::Stays(_) => "stays",
        };
        let (reason, problem) = match fate {
            Fate::Stays(stay) => (Some(stay.reason.as_str()), Some(stay.problem.as_str())),
            _ => (None, None),
        };
        match fate {
            Fate::Replayed => self.replayed += 1,
            Fate::ReplayedBefore => self.replayed_before += 1,
            Fate::Stays(_) => self.stay += 1,
        }
        let _ = if *fate == Fate::ReplayedBefore && !self.is_json {
            // Most of them, when a replay is made again: only counted.
            Ok(())
        } else if self.is_json {
            let line =
                json!({"outcome": outcome, "seq": letter.seq, "place": place, "reason": reason, "problem": problem});
            writeln!(self.out, "{line}")
        } else {
            let seq = or_dash(letter.seq);
            let why = reason.zip(problem).map(|(reason, problem)| format!("  {}: {problem}", printable(reason)));
            writeln!(self.out, "{:17}  seq {seq}  {place}{}", outcome.replace('_', " "), why.unwrap_or_default())
        };
    }

    pub fn summary(&mut self, connector: &str) {
        let Self { replayed, replayed_before, stay, .. } = *self;
        let _ = if self.is_json {
            let replayed_key = if self.is_rehearsal { "would_be_replayed" } else { "replayed" };
            let summary = json!({replayed_key: replayed, "stay": stay, "replayed_before": replayed_before});
            writeln!(self.out, "{}", json!({ "summary": summary }))
        } else {
            let done = if self.is_rehearsal { "would be replayed" } else { "replayed" };
            writeln!(
                self.out,
                "connector {connector}: {replayed} {done}, {stay} stay dead letters, {replayed_before} had been replayed before"
            )
        };
    }
}

fn facts(letters: &DeadLetters<'_>, letter: &DeadLetter, is_replayed: bool) -> Value {
    json!({
        "seq": letter.seq,
        "reason": letter.reason,
        "publickey_ver": letter.publickey_ver,
        "time_ms": letter.record.timestamp_ms,
        "replayed": is_replayed,
        "place": letters.place(letter),
        "msgid": letter.msgid,
    })
}

/// Shows one dead letter. `key_versions` are those of the private keys there are, where this user can tell.
///
/// # Errors
/// When `out` cannot be written.
pub fn show(
    letters: &DeadLetters<'_>,
    letter: &DeadLetter,
    is_replayed: bool,
    key_versions: Option<&[u32]>,
    is_json: bool,
    with_sealed: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    let value = &letter.record.value;
    let has_key = letter.publickey_ver.zip(key_versions).map(|(version, versions)| versions.contains(&version));
    let headers = letter.record.headers.iter().map(|(name, value)| (name, String::from_utf8_lossy(value)));
    if is_json {
        let mut shown = facts(letters, letter, is_replayed);
        shown["has_private_key"] = has_key.into();
        shown["headers"] = headers.map(|(name, value)| (name.clone(), Value::from(value))).collect();
        shown["value"] = json!({"bytes": value.len(), "sha256": sha256(value)});
        shown["fields"] = fields(value)
            .into_iter()
            .map(|(name, field)| match field {
                Field::Open(value) => (name, json!({ "value": value })),
                Field::Sealed { bytes, sha256 } => (name, json!({"bytes": bytes, "sha256": sha256})),
            })
            .collect();
        if with_sealed {
            shown["sealed"] = String::from_utf8_lossy(value).into();
        }
        return writeln!(out, "{shown}");
    }
    writeln!(out, "{}", letters.place(letter))?;
    writeln!(out, "  reason            {}", printable(&letter.reason))?;
    writeln!(out, "  time              {}", time(letter.record.timestamp_ms))?;
    writeln!(out, "  replayed          {}", if is_replayed { "yes" } else { "no" })?;
    if let Some((has_key, key_versions)) = has_key.zip(key_versions) {
        let versions = format!("there are {key_versions:?}");
        writeln!(out, "  private key       {}", if has_key { "there".into() } else { format!("missing; {versions}") })?;
    }
    writeln!(out, "headers")?;
    for (name, value) in headers {
        writeln!(out, "  {}  {}", printable(name), printable(&value))?;
    }
    writeln!(out, "value, {} bytes, sha-256 {}", value.len(), sha256(value))?;
    for (name, field) in fields(value) {
        match field {
            Field::Open(value) => writeln!(out, "  {}  {}", printable(&name), printable(&value))?,
            Field::Sealed { bytes, sha256 } => {
                writeln!(out, "  {}  {bytes} bytes, sha-256 {sha256}", printable(&name))?
            }
        }
    }
    if with_sealed {
        out.write_all(value)?;
        writeln!(out)?;
    }
    Ok(())
}

enum Field {
    Open(String),
    Sealed { bytes: usize, sha256: String },
}

/// The fields of a record; none where it is no object. A string counts as its characters, without quotes and escapes.
fn fields(value: &[u8]) -> Vec<(String, Field)> {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(value).unwrap_or_default();
    let field = |(name, value): (String, Box<RawValue>)| {
        let text = serde_json::from_str(value.get()).unwrap_or_else(|_| value.get().to_owned());
        let is_open = OPEN_FIELDS.contains(&name.as_str()) && text.len() <= OPEN_FIELD_BYTES_MAX;
        let field = match is_open {
            true => Field::Open(text),
            false => Field::Sealed { bytes: text.len(), sha256: sha256(text.as_bytes()) },
        };
        (name, field)
    };
    fields.into_iter().map(field).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

fn or_dash(number: Option<impl ToString>) -> String {
    number.map_or_else(|| "-".to_owned(), |number| number.to_string())
}

fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| unix_ms.to_string(), |time| format!("{time:.3}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_fields_are_told_by_length_and_hash() {
        let record = br#"{"seq":18446744073709551615,"msgid":"m\u001b[1","encrypt_chat_msg":"a\/b","x":{"seq":1}}"#;
        let told: Vec<String> = fields(record)
            .into_iter()
            .map(|(name, field)| match field {
                Field::Open(value) => format!("{name}={}", printable(&value)),
                Field::Sealed { bytes, .. } => format!("{name}:{bytes}"),
            })
            .collect();
        assert_eq!(told, ["encrypt_chat_msg:3", "msgid=m\u{fffd}[1", "seq=18446744073709551615", "x:9"]);
        assert!(fields(b"null").is_empty() && fields(b"\xff").is_empty());
    }
}
