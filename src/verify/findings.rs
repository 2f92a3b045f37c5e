//! What was found, by promise: how much was looked at, how much of it is broken, and examples.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;

/// Examples kept of each promise that is broken.
const EXAMPLES_MAX: usize = 100;

/// Announcements kept of each kind.
const ANNOUNCED_MAX: usize = 1000;

/// What the connector promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Promise {
    Complete,
    Once,
    Order,
    Partition,
    Offset,
    References,
    Objects,
    Clean,
}

impl Promise {
    pub const ALL: [Self; 8] = [
        Self::Complete,
        Self::Once,
        Self::Order,
        Self::Partition,
        Self::Offset,
        Self::References,
        Self::Objects,
        Self::Clean,
    ];

    pub fn sentence(self) -> &'static str {
        match self {
            Self::Complete => "no record is missing",
            Self::Once => "no record is published twice",
            Self::Order => "order in a conversation is seq order",
            Self::Partition => "a conversation keeps its key and its partition",
            Self::Offset => "the source offset is the last record's",
            Self::References => "a file has one final reference, or is open",
            Self::Objects => "references resolve, sizes and hashes are right",
            Self::Clean => "nothing else stands in the topics",
        }
    }
}

/// In what way a promise is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A record names it as the one before, and it is nowhere.
    Missing,
    /// A record names another one before it than the one that stands there.
    ChainBroken,
    /// A record does not say which one is before it.
    Unchained,
    /// A record stands there more than once in an epoch, or again in a later one without a mark.
    Twice,
    /// A record is marked as published again, and was not published before.
    WrongMark,
    /// A dead letter was replayed more than once.
    ReplayedTwice,
    OutOfOrder,
    WrongPartition,
    WrongKey,
    OffsetMissing,
    OffsetMalformed,
    OffsetBehind,
    OffsetAhead,
    /// A message names a file that nobody was asked to bring.
    RequestMissing,
    /// The request is done with, and no reference says how it ended.
    ReferenceMissing,
    ReferenceTwice,
    ReferenceWithoutRequest,
    ObjectMissing,
    ObjectDiffers,
    /// The reference names another store than the connector's file.
    ObjectElsewhere,
    Foreign,
    /// A message says that it was a dead letter, and that is not there, or is of another seq.
    ReplayedFromNowhere,
    Tombstone,
    Unreadable,
}

impl Kind {
    fn promise(self) -> Promise {
        match self {
            Self::Missing | Self::ChainBroken | Self::Unchained => Promise::Complete,
            Self::Twice | Self::WrongMark | Self::ReplayedTwice => Promise::Once,
            Self::OutOfOrder => Promise::Order,
            Self::WrongPartition | Self::WrongKey => Promise::Partition,
            Self::OffsetMissing | Self::OffsetMalformed | Self::OffsetBehind | Self::OffsetAhead => Promise::Offset,
            Self::RequestMissing | Self::ReferenceMissing | Self::ReferenceTwice | Self::ReferenceWithoutRequest => {
                Promise::References
            }
            Self::ObjectMissing | Self::ObjectDiffers | Self::ObjectElsewhere => Promise::Objects,
            Self::Foreign | Self::ReplayedFromNowhere | Self::Tombstone | Self::Unreadable => Promise::Clean,
        }
    }
}

/// Where a record stands in Kafka.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub topic: Arc<str>,
    pub partition: i32,
    pub offset: i64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}@{}", self.topic, self.partition, self.offset)
    }
}

/// One finding. Nothing in it is of a message's text, nor a key: ids of people stay out of reports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub kind: Kind,
    /// Of the record that it is about, where it has one.
    pub seq: Option<u64>,
    pub says: String,
}

/// What is known of one promise.
#[derive(Debug, Default)]
pub struct Tally {
    pub checked: u64,
    pub broken: u64,
    pub examples: Vec<Finding>,
}

/// Records that are known to be lost, and were announced: no broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Announced {
    /// An event says that WeCom may have deleted what was between these two before it was pulled.
    Gap { after_seq: u64, before_seq: u64 },
    /// The offset was moved by hand over what was after this seq, up to and with that one.
    Skipped { after_seq: u64, to_seq: u64 },
}

/// Everything that was found, in bounded memory.
#[derive(Debug)]
pub struct Findings {
    seqs: RangeInclusive<u64>,
    tallies: BTreeMap<Promise, Tally>,
    /// How many of what, by topic's part and kind.
    pub counts: BTreeMap<&'static str, BTreeMap<String, u64>>,
    pub announced: Vec<Announced>,
    /// What is true besides, and does not speak against the connector.
    pub notes: Vec<String>,
}

impl Findings {
    /// `seqs`: records outside are read, and nothing is found of them.
    pub fn new(seqs: RangeInclusive<u64>) -> Self {
        let tallies = Promise::ALL.into_iter().map(|promise| (promise, Tally::default())).collect();
        Self { seqs, tallies, counts: BTreeMap::new(), announced: Vec::new(), notes: Vec::new() }
    }

    pub fn seqs(&self) -> &RangeInclusive<u64> {
        &self.seqs
    }

    /// Whether records with this seq are judged.
    pub fn covers(&self, seq: u64) -> bool {
        self.seqs.contains(&seq)
    }

    pub fn tally(&self, promise: Promise) -> &Tally {
        &self.tallies[&promise]
    }

    pub fn checked(&mut self, promise: Promise) {
        self.tallies.entry(promise).or_default().checked += 1;
    }

    /// Notes a finding; `says` is asked only while examples are kept.
    pub fn add(&mut self, kind: Kind, seq: Option<u64>, says: impl FnOnce() -> String) {
        if seq.is_some_and(|seq| !self.covers(seq)) {
            return;
        }
        let tally = self.tallies.entry(kind.promise()).or_default();
        tally.broken += 1;
        if tally.examples.len() < EXAMPLES_MAX {
            tally.examples.push(Finding { kind, seq, says: says() });
        }
    }

    pub fn announce(&mut self, announced: Announced) {
        let (Announced::Gap { after_seq: first, before_seq: last }
        | Announced::Skipped { after_seq: first, to_seq: last }) = announced;
        if last < *self.seqs.start() || first > *self.seqs.end() {
            return;
        }
        self.count("announced", if matches!(announced, Announced::Gap { .. }) { "gap" } else { "skipped" });
        if self.announced.len() < ANNOUNCED_MAX {
            self.announced.push(announced);
        }
    }

    pub fn count(&mut self, what: &'static str, kind: &str) {
        let counts = self.counts.entry(what).or_default();
        // Looked up first: a kind is seen a hundred million times and made once.
        match counts.get_mut(kind) {
            Some(count) => *count += 1,
            None => {
                counts.insert(kind.to_owned(), 1);
            }
        }
    }

    pub fn counted(&self, what: &str, kind: &str) -> u64 {
        self.counts.get(what).and_then(|counts| counts.get(kind)).copied().unwrap_or_default()
    }

    pub fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// How many findings there are.
    pub fn broken(&self) -> u64 {
        self.tallies.values().map(|tally| tally.broken).sum()
    }
}
