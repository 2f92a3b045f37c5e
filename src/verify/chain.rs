//! The sequence: every record names the one before it, and by that alone shows that nothing is missing between the two. WeCom's
//! numbers have gaps that are no loss.
//!
//! Records come by rising epoch and seq, as the connector publishes them. One that comes late is remembered, so that what is
//! only out of order is not taken for missing.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::findings::{Announced, Findings, Kind, Place, Promise};

/// Links and late records that are remembered. Beyond that, what is out of order may count as missing.
const REMEMBERED_MAX: usize = 1_000_000;

/// How often the offset was moved by hand before the record came, and its seq. Rises within a partition.
pub type Position = (u64, u64);

/// A message or a dead letter with a place in the archive.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sequenced {
    pub epoch: u64,
    pub seq: u64,
    /// The seq of the record before it; 0 before the first.
    pub previous: Option<u64>,
    /// Marked as published in an earlier epoch already.
    pub republished: bool,
    pub place: Place,
}

impl Sequenced {
    pub fn position(&self) -> Position {
        (self.epoch, self.seq)
    }
}

/// What retention has left of the sequence.
#[derive(Debug, Clone, Default)]
pub struct Remains {
    /// Of each partition whose beginning was deleted: the first record that is left, if any is.
    firsts: Vec<Option<Position>>,
}

impl Remains {
    pub fn new(firsts: Vec<Option<Position>>) -> Self {
        Self { firsts }
    }

    /// Whether a record at this position may have stood in what was deleted.
    pub fn may_be_deleted(&self, position: Position) -> bool {
        self.firsts.iter().any(|first| first.is_none_or(|first| position < first))
    }

    /// From where on nothing was deleted. An error: that cannot be told.
    pub fn begins(&self) -> Result<Option<Position>, ()> {
        let firsts: Option<Vec<Position>> = self.firsts.iter().copied().collect();
        firsts.map(|firsts| firsts.into_iter().max()).ok_or(())
    }
}

/// What has come so far.
#[derive(Debug, Default)]
pub struct Chain {
    /// Records behind it are of a later moment than the one that is judged.
    limit: Option<Position>,
    remains: Remains,
    first: Option<Position>,
    last: Option<Position>,
    /// The highest position of all, also behind the limit.
    highest: Option<Position>,
    /// The highest seq of the epochs before that of `last`.
    earlier_seq: Option<u64>,
    /// The seq that the epoch of `last` began after.
    began_after: u64,
    /// What earlier epochs have left out: after the first, up to and with the second.
    skipped: Vec<(u64, u64)>,
    /// By the position that is missing: who names it, and what stands there instead.
    broken: BTreeMap<Position, Link>,
    /// Records that came after a higher one, with the seq that each names.
    late: BTreeMap<Position, Vec<Late>>,
    remembered: usize,
    records: u64,
    behind_limit: u64,
}

#[derive(Debug)]
struct Link {
    /// The last record that was there when this one came.
    after_seq: u64,
    seq: u64,
    place: Place,
}

#[derive(Debug)]
struct Late {
    previous: Option<u64>,
    place: Place,
}

/// The ends of the sequence.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ends {
    pub first: Option<Position>,
    pub last: Option<Position>,
    pub highest: Option<Position>,
    /// The highest seq of the epochs before that of `last`.
    pub earlier_seq: Option<u64>,
    pub records: u64,
    /// Records of a later moment, not judged.
    pub behind_limit: u64,
}

impl Chain {
    pub fn new(limit: Option<Position>, remains: Remains) -> Self {
        Self { limit, remains, ..Self::default() }
    }

    /// Takes the next record.
    pub fn push(&mut self, record: Sequenced, findings: &mut Findings) {
        let position = record.position();
        self.highest = self.highest.max(Some(position));
        if self.limit.is_some_and(|limit| position > limit) {
            self.behind_limit += 1;
            return;
        }
        self.records += 1;
        self.first = Some(self.first.map_or(position, |first| first.min(position)));
        if findings.covers(record.seq) {
            findings.checked(Promise::Complete);
            findings.checked(Promise::Once);
        }
        let Some(last) = self.last else {
            self.begin(&record, findings);
            self.last = Some(position);
            return;
        };
        match position.cmp(&last) {
            // Two records of the archive itself: WeCom gave the number out twice.
            Ordering::Equal if record.previous == Some(record.seq) => {
                findings.count("archive", "records that share the seq of the one before them");
            }
            Ordering::Equal => twice(record.seq, &record.place, findings),
            Ordering::Less => self.remember_late(&record),
            Ordering::Greater => {
                if record.epoch > last.0 {
                    self.earlier_seq = self.earlier_seq.max(Some(last.1));
                    self.skipped = without(&self.skipped, (self.began_after, last.1));
                    self.begin(&record, findings);
                } else {
                    self.link(&record, last.1, findings);
                }
                self.last = Some(position);
            }
        }
        self.check_mark(&record, findings);
    }

    /// The first record of an epoch. Its link leads to where the offset was moved to.
    fn begin(&mut self, record: &Sequenced, findings: &mut Findings) {
        let Some(previous) = self.previous(record, findings) else { return };
        self.began_after = previous;
        // The offset can be moved before anything is published.
        let earlier_seq = self.earlier_seq.or_else(|| (record.epoch > 0).then_some(0));
        self.skipped.extend(earlier_seq.filter(|earlier_seq| previous > *earlier_seq).map(|after| (after, previous)));
        match earlier_seq {
            Some(earlier_seq) if previous > earlier_seq && !self.may_be_deleted_earlier(record.epoch, previous) => {
                findings.announce(Announced::Skipped { after_seq: earlier_seq, to_seq: previous });
            }
            Some(_) => {}
            None if previous > 0 => self.break_link(record, previous, 0, findings),
            None => {}
        }
    }

    fn link(&mut self, record: &Sequenced, last_seq: u64, findings: &mut Findings) {
        let Some(previous) = self.previous(record, findings) else { return };
        match previous.cmp(&last_seq) {
            Ordering::Equal => {}
            Ordering::Greater => self.break_link(record, previous, last_seq, findings),
            Ordering::Less => findings.add(Kind::ChainBroken, Some(record.seq), || {
                format!(
                    "seq {} ({}) says that {previous} stands before it, and {last_seq} does",
                    record.seq, record.place
                )
            }),
        }
    }

    /// The seq that a record names, if that can be one before it.
    fn previous(&self, record: &Sequenced, findings: &mut Findings) -> Option<u64> {
        match record.previous {
            Some(previous) if previous < record.seq => return Some(previous),
            Some(previous) => findings.add(Kind::ChainBroken, Some(record.seq), || {
                format!("seq {} ({}) says that {previous} stands before it", record.seq, record.place)
            }),
            None => findings.add(Kind::Unchained, Some(record.seq), || {
                format!(
                    "seq {} ({}) does not say which record is before it: whether one is missing there cannot be told",
                    record.seq, record.place
                )
            }),
        }
        None
    }

    fn break_link(&mut self, record: &Sequenced, previous: u64, after_seq: u64, findings: &mut Findings) {
        let link = Link { after_seq, seq: record.seq, place: record.place.clone() };
        if self.remembered < REMEMBERED_MAX {
            self.remembered += 1;
            self.broken.insert((record.epoch, previous), link);
        } else {
            missing(previous, &link, findings);
        }
    }

    fn remember_late(&mut self, record: &Sequenced) {
        if self.remembered < REMEMBERED_MAX {
            self.remembered += 1;
            let late = Late { previous: record.previous, place: record.place.clone() };
            self.late.entry(record.position()).or_default().push(late);
        }
    }

    fn check_mark(&self, record: &Sequenced, findings: &mut Findings) {
        let Some((epoch, _)) = self.last else { return };
        if record.epoch < epoch {
            return;
        }
        let is_skipped = self.skipped.iter().any(|(after, to)| record.seq > *after && record.seq <= *to);
        match self.earlier_seq {
            Some(earlier_seq) if record.seq <= earlier_seq && !is_skipped && !record.republished => {
                findings.add(Kind::Twice, Some(record.seq), || {
                    format!(
                        "seq {} ({}) is published in epoch {} without a mark, after everything up to {earlier_seq} was before",
                        record.seq, record.place, record.epoch
                    )
                });
            }
            Some(earlier_seq)
                if (record.seq > earlier_seq || is_skipped)
                    && record.republished
                    && !self.may_be_deleted_earlier(record.epoch, record.seq) =>
            {
                findings.add(Kind::WrongMark, Some(record.seq), || {
                    format!(
                        "seq {} ({}) is marked as published again, and was not published before: that goes up to {earlier_seq}",
                        record.seq, record.place
                    )
                });
            }
            _ => {}
        }
    }

    /// Whether an earlier epoch may have had this record, and retention removed it.
    fn may_be_deleted_earlier(&self, epoch: u64, seq: u64) -> bool {
        self.remains.may_be_deleted((epoch.saturating_sub(1), seq))
    }

    /// Judges what was remembered.
    pub fn finish(mut self, findings: &mut Findings) -> Ends {
        for ((epoch, seq), link) in std::mem::take(&mut self.broken) {
            self.follow(epoch, seq, link, findings);
        }
        for ((_, seq), copies) in self.late {
            for late in copies {
                twice(seq, &late.place, findings);
            }
        }
        if self.remembered >= REMEMBERED_MAX {
            findings.note(format!(
                "more than {REMEMBERED_MAX} records are missing or out of order: beyond these, one that is only out of order counts \
                 as missing, and one that stands there twice may not be counted"
            ));
        }
        Ends {
            first: self.first,
            last: self.last,
            highest: self.highest,
            earlier_seq: self.earlier_seq,
            records: self.records,
            behind_limit: self.behind_limit,
        }
    }

    /// Follows a link over records that came late, back to the one that was there when it was met.
    fn follow(&mut self, epoch: u64, mut seq: u64, mut link: Link, findings: &mut Findings) {
        let stop_seq = link.after_seq;
        while seq != stop_seq {
            if !self.late.contains_key(&(epoch, seq)) {
                let below =
                    self.late.range((epoch, stop_seq + 1)..(epoch, seq)).next_back().map(|((_, below), _)| *below);
                link.after_seq = below.unwrap_or(stop_seq);
                if self.remains.may_be_deleted((epoch, seq)) {
                    findings.count("archive", "places where records are deleted by retention");
                } else {
                    missing(seq, &link, findings);
                }
                let Some(below) = below else { return };
                seq = below;
            }
            let Some(late) = self.take_late((epoch, seq)) else { return };
            link = Link { after_seq: stop_seq, seq, place: late.place };
            match late.previous {
                Some(previous) if previous < seq && previous >= stop_seq => seq = previous,
                _ => {
                    return findings.add(Kind::ChainBroken, Some(seq), || {
                        format!("seq {seq} ({}) does not lead back to {stop_seq}", link.place)
                    });
                }
            }
        }
    }

    fn take_late(&mut self, position: Position) -> Option<Late> {
        let copies = self.late.get_mut(&position)?;
        let late = copies.pop();
        if copies.is_empty() {
            self.late.remove(&position);
        }
        late
    }
}

/// What is left of the ranges without this one.
fn without(ranges: &[(u64, u64)], (after, to): (u64, u64)) -> Vec<(u64, u64)> {
    let rest = ranges.iter().flat_map(|&(from, until)| [(from, until.min(after)), (from.max(to), until)]);
    rest.filter(|(from, until)| from < until).collect()
}

fn missing(seq: u64, link: &Link, findings: &mut Findings) {
    findings.add(Kind::Missing, Some(link.seq), || {
        let from = if link.after_seq == 0 { "from the beginning".to_owned() } else { format!("after {}", link.after_seq) };
        format!(
            "{from} up to and with {seq}: seq {} ({}) says that {seq} stands before it, and neither a message nor a dead letter is \
             there",
            link.seq, link.place
        )
    });
}

fn twice(seq: u64, place: &Place, findings: &mut Findings) {
    findings.add(Kind::Twice, Some(seq), || format!("seq {seq} stands there again at {place}"));
}

#[cfg(test)]
mod tests;
