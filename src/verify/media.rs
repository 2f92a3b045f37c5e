//! Files: each request has one final reference, or is open.

use rdkafka::message::Message;

use super::findings::{Kind, Promise};
use super::join::{Fact, Join, Row};
use super::partitioning::Partitioning;
use super::reading::{Extent, Kafka};
use super::record::{self, ReferenceValue, RequestValue};
use super::{CannotLook, Findings, Look};

/// Reads the topic of requests, or that of retries. `done`: where the media tasks go on in each partition.
pub fn read_requests(
    kafka: &Kafka,
    extent: &Extent,
    done: &[Option<i64>],
    are_retries: bool,
    look: &mut Look<'_>,
) -> Result<(), CannotLook> {
    look.progress.begin(if are_retries { "media retries" } else { "media requests" }, extent.offsets());
    for mut run in kafka.open(&[extent])? {
        let read = |look: &mut Look<'_>| {
            run.next(|message, place| {
                if !look.is_ours(message, &place) {
                    return Ok(());
                }
                let Some(request) = record::value::<RequestValue<'_>>(message) else {
                    look.foreign(&place);
                    return Ok(());
                };
                if request.corp_id != look.corp_id || !look.findings.covers(request.seq) {
                    return Ok(());
                }
                let next = done.get(place.partition as usize).copied().flatten();
                let is_open = next.is_none_or(|next| place.offset >= next);
                let fact = match (are_retries, is_open) {
                    (false, false) => Fact::Requested,
                    (false, true) => Fact::RequestedOpen,
                    (true, true) => Fact::RetryOpen,
                    // What it led to stands in one of the topics, too.
                    (true, false) => return Ok(()),
                };
                look.push_row(Row { id: record::media_number(&request.media_id), fact, seq: request.seq })
            })
        };
        read_all(look, read)?;
    }
    Ok(())
}

/// Reads the reference events and looks at their objects.
pub fn read_references(kafka: &Kafka, extent: &Extent, look: &mut Look<'_>) -> Result<(), CannotLook> {
    look.progress.begin("media references", extent.offsets());
    let mut partitioning = Partitioning::new(extent.partitions.len() as u32);
    for mut run in kafka.open(&[extent])? {
        let read = |look: &mut Look<'_>| {
            run.next(|message, place| {
                if !look.is_ours(message, &place) {
                    return Ok(());
                }
                let Some(reference) = record::value::<ReferenceValue<'_>>(message) else {
                    look.foreign(&place);
                    return Ok(());
                };
                let seq = reference.seq;
                if reference.corp_id != look.corp_id || !look.findings.covers(seq) {
                    return Ok(());
                }
                look.findings.count("media references", reference.status.name());
                look.findings.checked(Promise::Partition);
                let key = message.key().unwrap_or_default();
                if reference.conversation.as_bytes() != key {
                    look.findings.add(Kind::WrongKey, Some(seq), || {
                        format!("the reference of seq {seq} ({place}) has another key than its conversation")
                    });
                }
                let moment = (0, u64::try_from(reference.finished_ms).unwrap_or_default());
                partitioning.push(key, moment, seq, &place);
                look.push_row(Row { id: record::media_number(&reference.media_id), fact: Fact::Referenced, seq })?;
                look.objects.push(&reference, &place, &mut look.findings)
            })
        };
        read_all(look, read)?;
    }
    partitioning.finish(&extent.topic, &mut look.findings);
    look.objects.flush(&mut look.findings)
}

fn read_all<'a>(
    look: &mut Look<'a>,
    mut read: impl FnMut(&mut Look<'a>) -> Result<Option<Result<(), CannotLook>>, CannotLook>,
) -> Result<(), CannotLook> {
    while let Some(read) = read(look)? {
        look.progress.step();
        read?;
    }
    Ok(())
}

/// Which topics retention has deleted nothing of.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    pub messages: bool,
    pub requests: bool,
    pub references: bool,
    pub dead_letters: bool,
}

/// Brings together what the topics say of each file.
pub fn judge(join: Join, whole: Whole, findings: &mut Findings) -> Result<(), CannotLook> {
    join.groups(|rows| judge_file(rows, whole, findings)).map_err(|error| super::temporary(&error))
}

fn judge_file(rows: &[Row], whole: Whole, findings: &mut Findings) {
    let count = |facts: &[Fact]| rows.iter().filter(|row| facts.contains(&row.fact)).count();
    let Some(Row { id, seq, .. }) = rows.first() else { return };
    if count(&[Fact::DeadLetter, Fact::Replayed, Fact::ReplayedElsewhere]) > 0 {
        return judge_dead_letter(rows, whole, findings);
    }
    let named = count(&[Fact::Named]);
    let requested = count(&[Fact::Requested, Fact::RequestedOpen]);
    let open = count(&[Fact::RequestedOpen, Fact::RetryOpen]);
    let referenced = count(&[Fact::Referenced]);
    findings.checked(Promise::References);
    let mut add =
        |kind, says: String| findings.add(kind, Some(*seq), || format!("file {id:032x} of seq {seq}: {says}"));
    if whole.requests {
        if requested == 0 && named > 0 {
            add(Kind::RequestMissing, "a message names it, and there is no request for it".into());
        }
        if requested == 0 && referenced > 0 {
            add(Kind::ReferenceWithoutRequest, "it has a reference, and there is no request for it".into());
        }
        if requested > 0 && referenced > requested {
            add(Kind::ReferenceTwice, format!("{referenced} references for {requested} requests"));
        }
    } else if whole.messages && referenced > named.max(requested).max(1) {
        add(Kind::ReferenceTwice, format!("{referenced} references for {named} messages"));
    }
    if referenced + open < requested {
        if whole.references {
            add(
                Kind::ReferenceMissing,
                format!("{requested} requests are done with, and {referenced} references are there"),
            );
        } else {
            findings.count("media", "done, references perhaps deleted by retention");
        }
    } else if open > 0 && referenced < requested {
        findings.count("media", "open");
    }
}

fn judge_dead_letter(rows: &[Row], whole: Whole, findings: &mut Findings) {
    let (letters, replayed): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(|row| row.fact == Fact::DeadLetter);
    let Some(Row { seq, fact, .. }) = replayed.first() else { return };
    let replayed = replayed.len();
    if replayed > 1 {
        findings.add(Kind::ReplayedTwice, Some(*seq), || {
            format!("the dead letter of seq {seq} was replayed {replayed} times")
        });
    }
    // What retention has deleted, or lies elsewhere, cannot be looked at.
    let is_there = match letters.first() {
        Some(letter) => letter.seq == *seq,
        None => !whole.dead_letters || *fact == Fact::ReplayedElsewhere,
    };
    if !is_there {
        findings.add(Kind::ReplayedFromNowhere, Some(*seq), || {
            format!("seq {seq} says that it was replayed, and its dead letter is not where it says")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_judged_by_what_all_topics_say() {
        use Fact::{DeadLetter, Named, Referenced, Replayed, ReplayedElsewhere, Requested, RequestedOpen, RetryOpen};
        const ALL: Whole = Whole { messages: true, requests: true, references: true, dead_letters: true };
        const DEAD_LETTERS_GONE: Whole = Whole { dead_letters: false, ..ALL };
        const REQUESTS_GONE: Whole = Whole { requests: false, ..ALL };
        const REFERENCES_GONE: Whole = Whole { references: false, ..ALL };
        let rows: &[(&[Fact], Whole, Option<Kind>)] = &[
            (&[Named, Requested, Referenced], ALL, None),
            (&[Named, RequestedOpen], ALL, None),
            (&[Named, Requested, RetryOpen], ALL, None),
            // The group's offset was read before the references.
            (&[Named, RequestedOpen, Referenced], ALL, None),
            // Its message is too large for Kafka.
            (&[Requested, Referenced], ALL, None),
            // Published again by hand, and brought again.
            (&[Named, Named, Requested, Requested, Referenced, Referenced], ALL, None),
            (&[Named, Named, Requested, RequestedOpen, Referenced], ALL, None),
            (&[Named], ALL, Some(Kind::RequestMissing)),
            (&[Referenced], ALL, Some(Kind::ReferenceWithoutRequest)),
            (&[Named, Requested], ALL, Some(Kind::ReferenceMissing)),
            (&[Named, Requested, Referenced, Referenced], ALL, Some(Kind::ReferenceTwice)),
            (&[Named, Named, Requested, Requested, Referenced], ALL, Some(Kind::ReferenceMissing)),
            (&[Named, Referenced], REQUESTS_GONE, None),
            (&[Named, Referenced, Referenced], REQUESTS_GONE, Some(Kind::ReferenceTwice)),
            (&[Named, Requested], REFERENCES_GONE, None),
            (&[DeadLetter], ALL, None),
            (&[DeadLetter, Replayed], ALL, None),
            (&[DeadLetter, Replayed, Replayed], ALL, Some(Kind::ReplayedTwice)),
            (&[Replayed], ALL, Some(Kind::ReplayedFromNowhere)),
            (&[Replayed], DEAD_LETTERS_GONE, None),
            (&[ReplayedElsewhere], ALL, None),
            (&[ReplayedElsewhere, ReplayedElsewhere], ALL, Some(Kind::ReplayedTwice)),
        ];
        for (facts, whole, expected) in rows {
            let mut findings = Findings::new(0..=u64::MAX);
            let rows: Vec<Row> = facts.iter().map(|fact| Row { id: 7, fact: *fact, seq: 5 }).collect();
            judge_file(&rows, *whole, &mut findings);
            let found: Vec<Kind> = Promise::ALL
                .into_iter()
                .flat_map(|promise| &findings.tally(promise).examples)
                .map(|finding| finding.kind)
                .collect();
            assert_eq!(found, expected.iter().copied().collect::<Vec<_>>(), "{facts:?}");
        }
    }
}
