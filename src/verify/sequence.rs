//! Messages and dead letters, all partitions side by side: together they are the archive.

use rdkafka::message::{BorrowedMessage, Message};

use super::chain::{Chain, Ends, Position, Remains, Sequenced};
use super::findings::{Announced, Kind, Place, Promise};
use super::join::{Fact, Row};
use super::merge::Merge;
use super::partitioning::Partitioning;
use super::reading::{Extent, Kafka, Run};
use super::record::{self, GapValue, MessageValue, OversizeValue, header, kind, number};
use super::{CannotLook, Look};

/// The header that a message has which was a dead letter before.
const REPLAYED_FROM: &str = "wecom.replayed_from";

/// One partition that is being read.
struct Lane {
    run: Run,
    is_dead_letters: bool,
    is_truncated: bool,
    first: Option<Position>,
    last: Option<Position>,
}

/// Reads both topics and judges the sequence up to `limit`.
pub fn read(
    kafka: &Kafka,
    messages: &Extent,
    dead_letters: &Extent,
    limit: Option<Position>,
    look: &mut Look<'_>,
) -> Result<(Ends, Remains), CannotLook> {
    look.progress.begin("messages and dead letters", messages.offsets() + dead_letters.offsets());
    let truncated = [messages, dead_letters].into_iter().flat_map(|extent| &extent.partitions).map(|it| it.start > 0);
    let runs = kafka.open(&[messages, dead_letters])?;
    let mut lanes: Vec<Lane> = runs
        .into_iter()
        .zip(truncated)
        .enumerate()
        .map(|(index, (run, is_truncated))| {
            let is_dead_letters = index >= messages.partitions.len();
            Lane { run, is_dead_letters, is_truncated, first: None, last: None }
        })
        .collect();

    let mut partitioning = Partitioning::new(messages.partitions.len() as u32);
    let mut next = |number: usize, look: &mut Look<'_>| lanes[number].next(look, &mut partitioning);
    let count = messages.partitions.len() + dead_letters.partitions.len();
    let mut merge = Merge::new(count, |number| next(number, look))?;
    // By now the first record of each partition is known.
    let truncated = lanes.iter().filter(|lane| lane.is_truncated);
    let remains = Remains::new(truncated.map(|lane| lane.first).collect());
    let mut chain = Chain::new(limit, remains.clone());
    let mut next = |number: usize, look: &mut Look<'_>| lanes[number].next(look, &mut partitioning);
    while let Some(record) = merge.pop(|number| next(number, look))? {
        chain.push(record, &mut look.findings);
    }
    look.objects.flush(&mut look.findings)?;
    partitioning.finish(&messages.topic, &mut look.findings);
    Ok((chain.finish(&mut look.findings), remains))
}

impl Lane {
    /// The next record that has a place in the sequence. What stands beside it is dealt with on the way.
    fn next(&mut self, look: &mut Look<'_>, partitioning: &mut Partitioning) -> Result<Option<Sequenced>, CannotLook> {
        loop {
            look.progress.step();
            let is_dead_letters = self.is_dead_letters;
            let read = self.run.next(|message, place| {
                if is_dead_letters {
                    dead_letter(message, place, look)
                } else {
                    event(message, place, look, partitioning)
                }
            })?;
            let Some(read) = read else { return Ok(None) };
            let Some(record) = read? else { continue };
            let position = record.position();
            self.first.get_or_insert(position);
            if look.findings.covers(record.seq) {
                look.findings.checked(Promise::Order);
            }
            if let Some(last) = self.last
                && position < last
            {
                look.findings.add(Kind::OutOfOrder, Some(record.seq), || {
                    format!("seq {} ({}) stands behind seq {}", record.seq, record.place, last.1)
                });
            }
            self.last = Some(position);
            look.progress.at_seq(record.seq);
            return Ok(Some(record));
        }
    }
}

type Read = Result<Option<Sequenced>, CannotLook>;

/// A record of the topic of messages.
fn event(message: &BorrowedMessage<'_>, place: Place, look: &mut Look<'_>, partitioning: &mut Partitioning) -> Read {
    if !look.is_ours(message, &place) {
        return Ok(None);
    }
    match header(message, "ce_type") {
        Some(kind::MESSAGE) => archived(message, place, look, partitioning),
        Some(kind::GAP) => {
            match record::value::<GapValue<'_>>(message) {
                Some(gap) if gap.corp_id == look.corp_id => {
                    let GapValue { after_seq, before_seq, .. } = gap;
                    look.findings.announce(Announced::Gap { after_seq, before_seq });
                }
                _ => look.unreadable(&place, "gap event"),
            }
            Ok(None)
        }
        _ => {
            look.foreign(&place);
            Ok(None)
        }
    }
}

fn archived(message: &BorrowedMessage<'_>, place: Place, look: &mut Look<'_>, partitioning: &mut Partitioning) -> Read {
    let key = message.key().unwrap_or_default();
    let value = record::value::<MessageValue<'_>>(message);
    let Some(value) =
        value.filter(|value| value.corp_id == look.corp_id && number(message, "ce_id") == Some(value.seq))
    else {
        look.unreadable(&place, "message");
        return Ok(None);
    };
    let MessageValue { seq, conversation, media, .. } = value;
    if look.findings.covers(seq) {
        look.findings.checked(Promise::Partition);
        for file in &media {
            look.push_row(Row { id: record::media_number(&file.media_id), fact: Fact::Named, seq })?;
        }
    }
    if conversation.id.as_bytes() != key {
        look.findings
            .add(Kind::WrongKey, Some(seq), || format!("seq {seq} ({place}) has another key than its conversation"));
    }
    if let Some(from) = header(message, REPLAYED_FROM) {
        if look.findings.covers(seq) {
            look.findings.count("messages", "replayed");
            let is_of_topic = from.rsplit_once('-').is_some_and(|(topic, _)| topic == look.dead_letter_topic);
            let fact = if is_of_topic { Fact::Replayed } else { Fact::ReplayedElsewhere };
            look.push_row(Row { id: record::hashed(from.as_bytes()), fact, seq })?;
        }
        return Ok(None);
    }
    let record = sequenced(message, seq, place);
    if look.findings.covers(seq) {
        look.findings.count("messages", if record.republished { "republished" } else { "published" });
        partitioning.push(key, record.position(), seq, &record.place);
    }
    Ok(Some(record))
}

/// A record of the dead letter topic.
fn dead_letter(message: &BorrowedMessage<'_>, place: Place, look: &mut Look<'_>) -> Read {
    match header(message, "__connect.errors.connector.name") {
        Some(connector) if connector == look.connector => {}
        // Of the same archive in the same topic, by a connector that had another name.
        Some(_) if is_of_sequence(message, look) => {}
        Some(_) => {
            look.findings.count("records of others", "dead letters");
            return Ok(None);
        }
        None => {
            look.foreign(&place);
            return Ok(None);
        }
    }
    let seq = number(message, "wecom.seq");
    let reason = record::word(header(message, "wecom.reason"));
    if seq.is_none_or(|seq| look.findings.covers(seq)) {
        look.findings.count("dead letters", reason);
    }
    if message.payload().is_none() {
        look.findings.add(Kind::Tombstone, seq, || format!("the dead letter {place} has lost its record"));
    }
    if reason == "too_large" && seq.is_none_or(|seq| look.findings.covers(seq)) {
        match record::value::<OversizeValue>(message) {
            Some(OversizeValue { uri }) => look.objects.push_body(&uri, seq, &place, &mut look.findings)?,
            None => look.unreadable(&place, "dead letter that says where its body is"),
        }
    }
    if header(message, "ce_type") != Some(kind::DEAD_LETTER) {
        // A request that was none: it never was in the archive.
        return Ok(None);
    }
    let Some(seq) = seq else { return Ok(None) };
    if look.findings.covers(seq) {
        look.push_row(Row { id: record::hashed(place.to_string().as_bytes()), fact: Fact::DeadLetter, seq })?;
    }
    Ok(Some(sequenced(message, seq, place)))
}

fn is_of_sequence(message: &BorrowedMessage<'_>, look: &Look<'_>) -> bool {
    message.key() == Some(look.corp_id.as_bytes()) && header(message, "__connect.errors.topic") == Some(look.topic)
}

fn sequenced(message: &BorrowedMessage<'_>, seq: u64, place: Place) -> Sequenced {
    Sequenced {
        epoch: number(message, "wecom.epoch").unwrap_or_default(),
        seq,
        previous: number(message, "wecom.previous_seq"),
        republished: header(message, "wecom.republished") == Some("true"),
        place,
    }
}
