//! The source offset: is it the last record's?

use rdkafka::message::Message;
use serde::{Deserialize, Serialize};

use super::CannotLook;
use super::chain::{Ends, Position, Remains};
use super::findings::{Announced, Findings, Kind, Promise};
use super::reading::{Extent, Kafka};
use super::record::OffsetValue;

/// What the offset topic says of a connector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum SourceOffset {
    /// Nothing, or a tombstone.
    Absent,
    /// Something that is no offset.
    #[serde(serialize_with = "malformed")]
    Malformed,
    At(OffsetValue),
}

fn malformed<S: serde::Serializer>(serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str("malformed")
}

impl SourceOffset {
    pub fn position(self) -> Option<Position> {
        if let Self::At(offset) = self { Some((offset.epoch, offset.seq)) } else { None }
    }
}

/// Kafka Connect's source partition. Other state of the same connector has more fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SourcePartition {
    corp_id: String,
}

/// Reads the last offset of a connector.
pub fn read(kafka: &Kafka, extent: &Extent, connector: &str, corp_id: &str) -> Result<SourceOffset, CannotLook> {
    // The newest of the partitions' last ones: a key moves when partitions are added.
    let mut newest: Option<(i64, SourceOffset)> = None;
    for mut run in kafka.open(&[extent])? {
        let mut last = None;
        while let Some(found) = run.next(|message, _| {
            let key: (String, SourcePartition) = serde_json::from_slice(message.key()?).ok()?;
            let is_ours = key.0 == connector && key.1.corp_id == corp_id;
            is_ours.then(|| (message.timestamp().to_millis().unwrap_or_default(), state(message.payload())))
        })? {
            last = found.or(last);
        }
        newest = [newest, last].into_iter().flatten().max_by_key(|(timestamp_ms, _)| *timestamp_ms);
    }
    Ok(newest.map_or(SourceOffset::Absent, |(_, state)| state))
}

fn state(value: Option<&[u8]>) -> SourceOffset {
    match value.map(serde_json::from_slice) {
        None => SourceOffset::Absent,
        Some(Ok(offset)) => SourceOffset::At(offset),
        Some(Err(_)) => SourceOffset::Malformed,
    }
}

/// Up to where the sequence is judged, when the offset was `before` the ends of the topics were taken, and is `after` that. What
/// was committed in between may be in one topic and not yet in another. `None`: nothing was.
pub fn limit(before: SourceOffset, after: SourceOffset) -> Option<Position> {
    match (before.position(), after.position()) {
        (before, after) if before == after => None,
        (before, Some(_)) => Some(before.unwrap_or_default()),
        (_, None) => None,
    }
}

/// Holds the offset against the records. A committed record's offset is in the same transaction: so everything up to the one read
/// before is there, and nothing beyond the one read after.
pub fn judge(before: SourceOffset, after: SourceOffset, ends: &Ends, remains: &Remains, findings: &mut Findings) {
    findings.checked(Promise::Offset);
    if after == SourceOffset::Malformed {
        return findings.add(Kind::OffsetMalformed, None, || {
            "the offset record is not of the form {\"seq\":N}: somebody else wrote it".into()
        });
    }
    judge_earlier(before, ends, remains, findings);
    let (Some(after), before) = (after.position(), before.position()) else {
        if let Some((_, seq)) = ends.highest {
            findings.add(Kind::OffsetMissing, None, || {
                format!("there is no offset, and records up to seq {seq} are published: the next start begins anew")
            });
        }
        return;
    };
    if let Some(highest) = ends.highest
        && highest > after
    {
        return findings.add(Kind::OffsetBehind, None, || {
            format!("the offset is {}, and {} is published: the next start publishes again", said(after), said(highest))
        });
    }
    let (epoch, seq) = before.unwrap_or_default();
    match ends.last {
        Some((last_epoch, last_seq)) if last_epoch == epoch => {
            if last_seq < seq && !remains.may_be_deleted((epoch, seq)) {
                findings.add(Kind::OffsetAhead, None, || {
                    format!(
                        "the offset is {}, and the last record is seq {last_seq}: the next start skips",
                        said((epoch, seq))
                    )
                });
            }
        }
        // Moved by hand, and nothing was published since.
        Some((_, last_seq)) if epoch > 0 => {
            if seq > last_seq {
                findings.announce(Announced::Skipped { after_seq: last_seq, to_seq: seq });
            }
        }
        None if seq == 0 || epoch > 0 || remains.may_be_deleted((epoch, seq)) => {}
        last => findings.add(Kind::OffsetAhead, None, || match last {
            Some(last) => format!("the offset is {}, and the last record is {}", said((epoch, seq)), said(last)),
            None => format!("the offset is {}, and there are no records", said((epoch, seq))),
        }),
    }
}

/// The end of an epoch is named by no record after it, but by the offset of the next one.
fn judge_earlier(offset: SourceOffset, ends: &Ends, remains: &Remains, findings: &mut Findings) {
    let SourceOffset::At(OffsetValue { epoch, republished_to, .. }) = offset else { return };
    let last_seq = match ends.last {
        Some((last_epoch, seq)) if last_epoch < epoch => ends.earlier_seq.max(Some(seq)),
        _ => ends.earlier_seq,
    };
    let last_seq = last_seq.unwrap_or_default();
    if last_seq < republished_to && !remains.may_be_deleted((epoch.saturating_sub(1), republished_to)) {
        findings.add(Kind::Missing, None, || {
            format!(
                "after {last_seq} up to and with {republished_to}: the offset says that this was published before it was moved by hand, \
                 and neither messages nor dead letters are there"
            )
        });
    }
}

fn said((epoch, seq): Position) -> String {
    if epoch == 0 { format!("seq {seq}") } else { format!("seq {seq} of epoch {epoch}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_are_held_against_the_last_record() {
        use Kind::{OffsetAhead, OffsetBehind, OffsetMalformed, OffsetMissing};
        const GONE: SourceOffset = SourceOffset::Absent;
        let at = |epoch, seq| SourceOffset::At(OffsetValue { epoch, seq, republished_to: 0, committed_at_ms: None });
        // Offset before and after, last record judged, highest record there.
        let rows = [
            (at(0, 9), at(0, 9), Some((0, 9)), Some((0, 9)), None),
            (at(0, 9), at(0, 9), Some((0, 10)), Some((0, 10)), Some(OffsetBehind)),
            (at(0, 9), at(0, 9), Some((0, 8)), Some((0, 8)), Some(OffsetAhead)),
            // It goes on while it is looked at.
            (at(0, 9), at(0, 20), Some((0, 9)), Some((0, 15)), None),
            (at(0, 9), at(0, 20), Some((0, 9)), Some((0, 21)), Some(OffsetBehind)),
            (at(0, 9), at(0, 20), Some((0, 8)), Some((0, 20)), Some(OffsetAhead)),
            (GONE, at(0, 20), None, Some((0, 15)), None),
            (at(0, 0), at(0, 0), None, None, None),
            (at(0, 5), at(0, 5), None, None, Some(OffsetAhead)),
            (GONE, GONE, None, None, None),
            (GONE, GONE, Some((0, 1)), Some((0, 1)), Some(OffsetMissing)),
            (at(0, 1), SourceOffset::Malformed, Some((0, 1)), Some((0, 1)), Some(OffsetMalformed)),
            // Moved by hand.
            (at(1, 4), at(1, 4), Some((0, 9)), Some((0, 9)), None),
            (at(1, 40), at(1, 40), Some((0, 9)), Some((0, 9)), None),
            (at(1, 6), at(1, 6), Some((1, 6)), Some((1, 6)), None),
            (at(0, 6), at(0, 6), Some((1, 6)), Some((1, 6)), Some(OffsetBehind)),
        ];
        for (before, after, last, highest, expected) in rows {
            let mut findings = Findings::new(0..=u64::MAX);
            let ends = Ends { last, highest, ..Ends::default() };
            judge(before, after, &ends, &Remains::default(), &mut findings);
            let found: Vec<Kind> =
                findings.tally(Promise::Offset).examples.iter().map(|finding| finding.kind).collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{before:?} {after:?} {last:?} {highest:?}");
        }
    }

    #[test]
    fn the_key_is_the_connectors_own() {
        for (key, is_one) in [
            (r#"["archive",{"corp_id":"ww1"}]"#, true),
            (r#"["archive",{"corp_id":"ww1","dead_letter_topic":"t","partition":0}]"#, false),
            (r#"["archive",{}]"#, false),
            ("archive", false),
        ] {
            assert_eq!(serde_json::from_str::<(String, SourcePartition)>(key).is_ok(), is_one, "{key}");
        }
    }
}
