//! What was found, for people and for programs.

use std::fmt;

use serde::Serialize;
use serde_json::json;

use super::chain::{Ends, Remains};
use super::findings::{Announced, Findings, Promise};
use super::offset::SourceOffset;

/// Examples and announcements shown to people; programs get more.
const SHOWN: usize = 5;

/// The answer to the question whether everything is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Every promise holds.
    Clean,
    /// Every promise holds, and it is announced that records are lost at the source or were skipped by hand.
    Incomplete,
    /// A promise is broken.
    Findings,
}

/// Everything that was found.
#[derive(Debug)]
pub struct Report {
    pub connector: String,
    pub corp_id: String,
    pub offset: SourceOffset,
    pub ends: Ends,
    pub remains: Remains,
    pub findings: Findings,
}

impl Report {
    pub fn verdict(&self) -> Verdict {
        match self.findings.broken() {
            0 if self.findings.announced.is_empty() => Verdict::Clean,
            0 => Verdict::Incomplete,
            _ => Verdict::Findings,
        }
    }

    fn sequence_is_complete(&self) -> bool {
        self.findings.tally(Promise::Complete).broken == 0
    }

    /// The first seq from which on nothing was deleted.
    fn begins(&self) -> Option<u64> {
        let first = self.ends.first?.1;
        match self.remains.begins() {
            Ok(Some((0, begins))) => Some(first.max(begins)),
            Ok(None) => Some(first),
            Ok(Some(_)) | Err(()) => None,
        }
    }

    /// For programs.
    pub fn to_json(&self) -> serde_json::Value {
        let promises: serde_json::Map<_, _> = Promise::ALL
            .into_iter()
            .map(|promise| {
                let tally = self.findings.tally(promise);
                let name = serde_json::to_value(promise).ok().and_then(|name| name.as_str().map(str::to_owned));
                let value = json!({"checked": tally.checked, "broken": tally.broken, "findings": tally.examples});
                (name.unwrap_or_default(), value)
            })
            .collect();
        json!({
            "verdict": self.verdict(),
            "connector": self.connector,
            "corp_id": self.corp_id,
            "offset": self.offset,
            "judged": {"from_seq": self.findings.seqs().start(), "to_seq": self.findings.seqs().end()},
            "sequence": {
                "first_seq": self.ends.first.map(|(_, seq)| seq),
                "last_seq": self.ends.last.map(|(_, seq)| seq),
                "epoch": self.ends.last.map(|(epoch, _)| epoch),
                "records": self.ends.records,
                "records_after_snapshot": self.ends.behind_limit,
                "nothing_deleted_from_seq": self.begins(),
                "complete": self.sequence_is_complete(),
            },
            "promises": promises,
            "announced": self.findings.announced,
            "counts": self.findings.counts,
            "notes": self.findings.notes,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "connector {}, corp {}", self.connector, self.corp_id)?;
        self.write_sequence(f)?;
        for promise in Promise::ALL {
            let tally = self.findings.tally(promise);
            let state = if tally.broken == 0 { "ok" } else { "BROKEN" };
            write!(f, "{state:6} {:46} {:>11} checked", promise.sentence(), tally.checked)?;
            match tally.broken {
                0 => writeln!(f)?,
                broken => writeln!(f, ", {broken} broken")?,
            }
            for finding in tally.examples.iter().take(SHOWN) {
                writeln!(f, "         {}", finding.says)?;
            }
        }
        for (what, kinds) in &self.findings.counts {
            let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
            writeln!(f, "{what}: {}", kinds.join(", "))?;
        }
        for note in &self.findings.notes {
            writeln!(f, "note: {note}")?;
        }
        match self.verdict() {
            Verdict::Clean => write!(f, "verdict: clean"),
            Verdict::Incomplete => {
                write!(f, "verdict: nothing is broken; records are lost at the source or were skipped")
            }
            Verdict::Findings => write!(f, "verdict: {} findings", self.findings.broken()),
        }
    }
}

impl Report {
    fn write_sequence(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Some((_, first)), Some((epoch, last))) = (self.ends.first, self.ends.last) else {
            return writeln!(f, "no records");
        };
        let of_epoch = if epoch > 0 { format!(" (epoch {epoch})") } else { String::new() };
        writeln!(f, "{} records, seq {first} to {last}{of_epoch}", self.ends.records)?;
        let seqs = self.findings.seqs();
        if *seqs.start() > 0 || *seqs.end() < u64::MAX {
            writeln!(f, "judged are those from seq {} to {}", seqs.start(), seqs.end())?;
        }
        match self.begins() {
            Some(begins) if begins == first => {}
            Some(begins) => writeln!(f, "records before seq {begins} are partly deleted by retention")?,
            None => {
                writeln!(f, "retention has emptied a partition: what was in it cannot be told from what is missing")?
            }
        }
        if self.ends.behind_limit > 0 {
            writeln!(f, "{} more records came while this looked, and are not judged", self.ends.behind_limit)?;
        }
        for announced in self.findings.announced.iter().take(SHOWN) {
            match announced {
                Announced::Gap { after_seq, before_seq } => {
                    writeln!(
                        f,
                        "GAP    after seq {after_seq} and before seq {before_seq} records may be lost: WeCom keeps five days"
                    )?;
                }
                Announced::Skipped { after_seq, to_seq } => {
                    writeln!(
                        f,
                        "SKIP   after seq {after_seq} up to and with seq {to_seq}: the offset was moved there by hand"
                    )?;
                }
            }
        }
        Ok(())
    }
}
