//! A model of what the broker does for one `transactional.id`: coordinator, log, and what readers see of it.
//!
//! The first version of Kafka's transaction protocol, which is what librdkafka speaks: the epoch grows with each
//! `init_transactions` and with each transaction that is timed out, not with each transaction.

use std::collections::HashSet;

use super::network::Random;
use crate::kafka::OutgoingRecord;
use crate::kafka::offsets::SourceOffset;

pub const TRANSACTION_TIMEOUT_MS: u64 = 30_000;
pub const MESSAGES: &str = "messages";
pub const OFFSETS: &str = "offsets";

#[derive(Debug, Clone)]
pub enum Request {
    /// `InitProducerId`. With an epoch: the producer that has it wants the next one.
    Init(Option<u32>),
    AddPartition {
        epoch: u32,
        partition: String,
    },
    Produce {
        epoch: u32,
        sequence: u64,
        record: OutgoingRecord,
    },
    EndTransaction {
        epoch: u32,
        commit: bool,
    },
    ReadOffset,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Done,
    Epoch(u32),
    Offset(Option<SourceOffset>),
    /// `CONCURRENT_TRANSACTIONS`, or an offset that an open transaction hides.
    NotYet,
    Fenced,
    InvalidState,
}

/// What the broker does by itself, later.
#[derive(Debug, Clone, Copy)]
pub enum Later {
    /// The markers of the transaction are written.
    Settle,
    /// The transaction of that number is looked at: is it too old?
    Expire(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transaction {
    Empty,
    Ongoing,
    Preparing { commit: bool },
    Complete { commit: bool },
}

#[derive(Debug)]
pub struct Broker {
    epoch: u32,
    transaction: Transaction,
    /// Counts transactions.
    number: u64,
    /// What the open transaction may write to, and what it has written.
    partitions: HashSet<String>,
    open: Vec<OutgoingRecord>,
    /// The highest sequence that is in the log, and of which epoch.
    last_sequence: Option<(u32, u64)>,
    /// The last `Init` that took an epoch on, so that a repeated one gets the same answer.
    bumped: Option<(u32, u32)>,
    pub judge: Judge,
}

impl Broker {
    pub fn new(source: Vec<(u64, u64)>) -> Self {
        Self {
            epoch: 0,
            transaction: Transaction::Empty,
            number: 0,
            partitions: HashSet::new(),
            open: Vec::new(),
            last_sequence: None,
            bumped: None,
            judge: Judge::new(source),
        }
    }

    pub fn has_open_transaction(&self) -> bool {
        matches!(self.transaction, Transaction::Ongoing | Transaction::Preparing { .. })
    }

    /// Does what is asked for; says what comes of it later, after so many milliseconds.
    pub fn handle(&mut self, request: Request, random: &mut Random) -> (Reply, Option<(u64, Later)>) {
        match request {
            Request::Init(from) => self.init(from, random),
            Request::AddPartition { epoch, partition } => match self.transaction {
                _ if epoch != self.epoch => (Reply::Fenced, None),
                Transaction::Ongoing => {
                    self.partitions.insert(partition);
                    (Reply::Done, None)
                }
                Transaction::Preparing { .. } => (Reply::NotYet, None),
                Transaction::Empty | Transaction::Complete { .. } => {
                    self.transaction = Transaction::Ongoing;
                    self.partitions = HashSet::from([partition]);
                    self.number += 1;
                    // The coordinator looks for old transactions every ten seconds.
                    let age = TRANSACTION_TIMEOUT_MS + random.below(10_000);
                    (Reply::Done, Some((age, Later::Expire(self.number))))
                }
            },
            Request::Produce { epoch, sequence, record } => (self.produce(epoch, sequence, record), None),
            Request::EndTransaction { epoch, commit } => match self.transaction {
                _ if epoch != self.epoch => (Reply::Fenced, None),
                Transaction::Ongoing => (Reply::Done, Some(self.end(commit, random))),
                Transaction::Preparing { commit: was } if was == commit => (Reply::NotYet, None),
                Transaction::Complete { commit: was } if was == commit => (Reply::Done, None),
                _ => (Reply::InvalidState, None),
            },
            Request::ReadOffset => {
                let is_hidden = self.has_open_transaction() && self.open.iter().any(|record| &*record.topic == OFFSETS);
                let offset = || Reply::Offset(self.judge.offset.clone());
                (if is_hidden { Reply::NotYet } else { offset() }, None)
            }
        }
    }

    pub fn later(&mut self, later: Later, random: &mut Random) -> Option<(u64, Later)> {
        match later {
            Later::Settle => {
                if let Transaction::Preparing { commit } = self.transaction {
                    self.transaction = Transaction::Complete { commit };
                    let records = std::mem::take(&mut self.open);
                    if commit {
                        self.judge.became_visible(&records);
                    }
                }
                None
            }
            Later::Expire(number) => {
                let is_old = self.transaction == Transaction::Ongoing && self.number == number;
                is_old.then(|| {
                    self.epoch += 1;
                    self.end(false, random)
                })
            }
        }
    }

    fn init(&mut self, from: Option<u32>, random: &mut Random) -> (Reply, Option<(u64, Later)>) {
        if let (Some(from), Some((before, after))) = (from, self.bumped)
            && from == before
            && after == self.epoch
        {
            return (Reply::Epoch(after), None);
        }
        match self.transaction {
            _ if from.is_some_and(|epoch| epoch != self.epoch) => (Reply::Fenced, None),
            Transaction::Ongoing => {
                // First of all the one who has it open is fenced.
                self.epoch += 1;
                (Reply::NotYet, Some(self.end(false, random)))
            }
            Transaction::Preparing { .. } => (Reply::NotYet, None),
            Transaction::Empty | Transaction::Complete { .. } => {
                self.bumped = from.map(|epoch| (epoch, self.epoch + 1));
                self.epoch += 1;
                self.transaction = Transaction::Empty;
                (Reply::Epoch(self.epoch), None)
            }
        }
    }

    /// Since 3.6 a partition's leader asks the coordinator whether the transaction is open there (KIP-890, its first part).
    fn produce(&mut self, epoch: u32, sequence: u64, record: OutgoingRecord) -> Reply {
        if epoch != self.epoch {
            return Reply::Fenced;
        }
        if self.last_sequence.is_some_and(|(of, last)| of == epoch && sequence <= last) {
            return Reply::Done;
        }
        if self.transaction != Transaction::Ongoing || !self.partitions.contains(&partition(&record)) {
            return Reply::InvalidState;
        }
        self.last_sequence = Some((epoch, sequence));
        self.open.push(record);
        Reply::Done
    }

    fn end(&mut self, commit: bool, random: &mut Random) -> (u64, Later) {
        self.transaction = Transaction::Preparing { commit };
        if commit {
            self.judge.decided(&self.open);
        }
        (if random.chance(5) { random.below(5_000) } else { random.below(20) }, Later::Settle)
    }
}

/// Holds what readers see, and what producers say, against the promises.
#[derive(Debug)]
pub struct Judge {
    /// Each record's seq, and when the source has it.
    source: Vec<(u64, u64)>,
    /// How many of `source` are visible.
    pub delivered: usize,
    /// The committed offset.
    pub offset: Option<SourceOffset>,
    replaced: HashSet<String>,
    committed: HashSet<Vec<u8>>,
    aborted: HashSet<Vec<u8>>,
    /// The first promise that was broken.
    pub violation: Option<String>,
}

impl Judge {
    fn new(source: Vec<(u64, u64)>) -> Self {
        Self {
            source,
            delivered: 0,
            offset: None,
            replaced: HashSet::new(),
            committed: HashSet::new(),
            aborted: HashSet::new(),
            violation: None,
        }
    }

    pub fn violated(&mut self, violation: String) {
        self.violation.get_or_insert(violation);
    }

    pub fn is_complete(&self) -> bool {
        self.delivered == self.source.len()
    }

    /// What the source answers when it is asked for records after `seq`.
    pub fn page_after(&self, seq: u64, limit: usize, now: u64) -> Vec<u64> {
        self.source.iter().filter(|(of, at)| *of > seq && *at <= now).map(|(of, _)| *of).take(limit).collect()
    }

    fn decided(&mut self, records: &[OutgoingRecord]) {
        for record in records {
            if self.aborted.contains(&record.value) {
                self.violated(format!("{} was said to be aborted and is committed", text(record)));
            }
            self.committed.insert(record.value.clone());
        }
    }

    fn became_visible(&mut self, records: &[OutgoingRecord]) {
        for record in records {
            if &*record.topic == MESSAGES {
                let expected = self.source.get(self.delivered).map(|(seq, _)| seq.to_string());
                if expected.as_deref() != Some(&text(record)) {
                    self.violated(format!("seq {} became visible where {expected:?} should be next", text(record)));
                }
                self.delivered += 1;
                continue;
            }
            let offset: SourceOffset = serde_json::from_slice(&record.value).expect("an offset");
            let instance = offset.instance.clone().expect("an instance");
            if self.replaced.contains(&instance) {
                self.violated(format!("{instance} commits after a newer instance"));
            }
            if let Some(before) = self.offset.replace(offset).and_then(|before| before.instance)
                && before != instance
            {
                self.replaced.insert(before);
            }
        }
        let last = self.delivered.checked_sub(1).and_then(|last| self.source.get(last)).map(|(seq, _)| *seq);
        let seq = self.offset.as_ref().map(|offset| offset.seq).unwrap_or_default();
        if seq != last.unwrap_or_default() {
            self.violated(format!("the offset is {seq}, the last visible record {last:?}"));
        }
    }

    /// A producer says what has become of a batch.
    pub fn said(&mut self, records: &[OutgoingRecord], is_committed: bool) {
        // The offset's value is a new one at each try.
        for record in records.iter().filter(|record| &*record.topic == OFFSETS) {
            if !is_committed {
                self.aborted.insert(record.value.clone());
            }
            if self.committed.contains(&record.value) != is_committed {
                let said = if is_committed { "committed and is not" } else { "aborted and is committed" };
                self.violated(format!("{} was said to be {said}", text(record)));
            }
        }
    }

    /// A worker says that another one has taken over. Whoever has written last never says so: one of them goes on.
    pub fn said_fenced(&mut self, instance: &str) {
        let owner = self.offset.as_ref().and_then(|offset| offset.instance.as_deref());
        if owner.is_none_or(|owner| owner == instance) {
            self.violated(format!("{instance} stops as fenced, and no other has taken over"));
        }
    }
}

/// Where a record goes: messages into some partitions, the offset into one.
pub fn partition(record: &OutgoingRecord) -> String {
    match &*record.topic {
        OFFSETS => OFFSETS.into(),
        topic => format!("{topic}-{}", record.value.last().map_or(0, |digit| digit % 3)),
    }
}

fn text(record: &OutgoingRecord) -> String {
    String::from_utf8_lossy(&record.value).into_owned()
}
