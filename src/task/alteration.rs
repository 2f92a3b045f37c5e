//! Altering a connector's source offset by hand (Kafka Connect's word): moved back, records are delivered again; moved ahead, they
//! are skipped.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::archive::{WINDOW_MS, time};
use crate::clock::Clock;
use crate::config::{ConnectorConfig, WorkerConfig};
pub use crate::kafka::offsets::SourceOffset;
use crate::kafka::offsets::{self, OffsetError, OffsetKey, OffsetPlace};
use crate::kafka::scan::{self, Begin, ScanError};
use crate::kafka::source_writer::{SourceWriter, Surroundings, WriteError};
use crate::kafka::{Batch, BatchBytes, Clients, CommitError, Committer, Tenure};
use crate::task::message_task;

/// Room for one offset record.
const BATCH_BYTES: BatchBytes = BatchBytes { single_max: 100_000, several_max: 100_000 };

/// A record that WeCom still has was pulled in the last five days, and its timestamp is at most five days before that.
const SCANNED_MS: i64 = 2 * WINDOW_MS;

/// Where the offset is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Everything after this record is delivered.
    After(u64),
    /// This record is the first to be delivered again.
    Record(u64),
    /// So many positions back.
    Back(u64),
    /// The first to be delivered again is the first in the topic with this time or a later one, milliseconds since the epoch.
    /// Messages whose time cannot be right do not count.
    Time(i64),
}

/// What would be delivered again, as far as the topics tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Again {
    /// Without those that WeCom has deleted.
    pub messages: u64,
    pub dead_letters: u64,
    /// Of the messages, also of those that WeCom has deleted, in milliseconds since the epoch. Times that cannot be
    /// right do not count.
    pub oldest_msgtime_ms: Option<i64>,
    /// Messages and dead letters older than five days: WeCom has deleted them, and they are not delivered again.
    pub expired: u64,
    /// From the first to the second seq the topics of the last ten days have nothing: what there is of it is older.
    pub older: Option<(u64, u64)>,
}

/// A change of the offset, before it is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alteration {
    /// As it stands; `None` where none is stored.
    pub from: Option<SourceOffset>,
    pub to: SourceOffset,
    pub again: Again,
    /// Messages that were passed over where the target is a time.
    pub unbelievable: Unbelievable,
}

/// Messages whose own time cannot be right: it was ahead when they were pulled, or far behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unbelievable {
    pub messages: u64,
    /// The seq of the first, and its time in milliseconds since the epoch.
    pub first: Option<(u64, i64)>,
}

impl Alteration {
    /// Records after the offset as it stands would never be delivered, and no earlier epoch has delivered them.
    pub fn skips(&self) -> bool {
        let before = self.from.clone().unwrap_or_default();
        self.to.seq > before.seq && !before.has_published_up_to(self.to.seq)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum AlterationError {
    #[error(transparent)]
    Offset(#[from] OffsetError),
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("no offset is stored for this connector: there is nothing to go back from")]
    NoOffset,
    #[error(
        "no message of the topic has this time or a later one; give a time that is not after the newest message, or --to-seq"
    )]
    NoSuchTime,
    #[error(
        "refused: no record after seq {after_seq} has been delivered yet, and those up to {to_seq} never would be. If that is what you \
         want, say --allow-skip"
    )]
    Skips { after_seq: u64, to_seq: u64 },
    #[error("there is no record {seq} to go back to: the offset stands at {offset}; `offsets set` moves it ahead")]
    NotBack { seq: u64, offset: u64 },
    #[error("another worker has taken the connector's place meanwhile: stop it, then look with `offsets get` ({0})")]
    Fenced(String),
    #[error("{0}")]
    Configuration(String),
    #[error("whether the offset was written is not known, look with `offsets get`: {0}")]
    Unknown(String),
    #[error("the offset was not written: {0}")]
    Aborted(String),
}

/// The offset of one connector, and the means to move it.
#[derive(Debug)]
pub struct StoredOffset {
    clients: Clients,
    place: OffsetPlace,
    messages: String,
    dead_letters: String,
    transactional_id: String,
    transaction_timeout_ms: u64,
    clock: Clock,
}

impl fmt::Display for StoredOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "connector {} of corp {} in topic {}",
            self.place.key.connector, self.place.key.corp_id, self.place.topic
        )
    }
}

impl StoredOffset {
    pub fn of(worker: &WorkerConfig, connector: &ConnectorConfig, clock: Clock) -> Self {
        Self {
            clients: Clients::of(worker, connector),
            place: OffsetPlace::of(worker, connector),
            messages: connector.topic.clone(),
            dead_letters: connector.dead_letter_topic.clone(),
            transactional_id: worker.transactional_id(&connector.name, message_task::TASK),
            transaction_timeout_ms: connector.transaction_timeout_ms,
            clock,
        }
    }

    /// The offset as it is committed now. A running connector goes on. Blocks.
    pub fn get(&self) -> Result<Option<SourceOffset>, OffsetError> {
        offsets::read(&self.clients, &self.place.topic, &self.place.key)
    }

    /// All connectors that have an offset in the topic. Blocks.
    pub fn stored(&self) -> Result<Vec<OffsetKey>, OffsetError> {
        offsets::keys(&self.clients, &self.place.topic)
    }

    /// What moving the offset to `target` would do. Blocks.
    pub fn plan(&self, target: Target) -> Result<Alteration, AlterationError> {
        let from = self.get()?;
        let stands_at = from.as_ref().map(|offset| offset.seq);
        let mut unbelievable = Unbelievable::default();
        let seq = match target {
            // A connector without an offset begins with the oldest record anyway; its name may be a mistake.
            Target::After(0) if stands_at.is_none() => return Err(AlterationError::NoOffset),
            Target::After(seq) => seq,
            Target::Record(seq) => {
                let offset = stands_at.ok_or(AlterationError::NoOffset)?;
                if seq == 0 || seq > offset {
                    return Err(AlterationError::NotBack { seq, offset });
                }
                seq - 1
            }
            Target::Back(count) => stands_at.ok_or(AlterationError::NoOffset)?.saturating_sub(count),
            Target::Time(time_ms) => {
                let offset = stands_at.ok_or(AlterationError::NoOffset)?;
                let mut first: Option<u64> = None;
                self.visit_messages(time_ms.saturating_sub(WINDOW_MS), |message| {
                    let Some(msgtime_ms) = message.msgtime_ms.filter(|msgtime_ms| *msgtime_ms >= time_ms) else {
                        return;
                    };
                    if message.is_believable {
                        first = first.into_iter().chain([message.seq]).min();
                    } else {
                        unbelievable.messages += 1;
                        unbelievable.first = unbelievable.first.into_iter().chain([(message.seq, msgtime_ms)]).min();
                    }
                })?;
                // Nothing is moved ahead by a time.
                first.ok_or(AlterationError::NoSuchTime)?.saturating_sub(1).min(offset)
            }
        };
        let before = from.clone().unwrap_or_default();
        let again = if seq < before.seq { self.again(seq, before.seq)? } else { Again::default() };
        Ok(Alteration { from, to: before.moved_to(seq, self.clock.now().unix_ms), again, unbelievable })
    }

    /// Takes the place of a running message task, which ends as fenced, and moves the offset to `target`. Gives what was done: the
    /// offset may have moved since `plan` was made.
    ///
    /// Records are skipped only with `allow_skip`.
    pub async fn apply(
        &self,
        target: Target,
        plan: Alteration,
        allow_skip: bool,
    ) -> Result<Alteration, AlterationError> {
        let instance = format!("moved by hand {:016x}", self.clock.now().unix_ms);
        let mut writer = SourceWriter::start(self, self.place.clone(), Arc::new(Tenure::new(instance))).await?;
        // From here on nobody else moves it.
        let found = writer.offset();
        let stood_at = plan.from.as_ref().map_or((0, 0), |offset| (offset.seq, offset.epoch));
        let plan = if (found.seq, found.epoch) == stood_at {
            plan
        } else {
            tokio::task::block_in_place(|| self.plan(target))?
        };
        if plan.skips() && !allow_skip {
            return Err(AlterationError::Skips { after_seq: found.seq, to_seq: plan.to.seq });
        }
        writer.commit(Vec::new(), plan.to.clone()).await?;
        Ok(plan)
    }

    /// What the topics have after `after_seq`, up to and with `to_seq`.
    fn again(&self, after_seq: u64, to_seq: u64) -> Result<Again, ScanError> {
        let now_ms = self.clock.now().unix_ms;
        let (mut again, is_again) = (Again::default(), |seq: u64| seq > after_seq && seq <= to_seq);
        let is_expired = |time_ms: i64| time_ms < now_ms.saturating_sub(WINDOW_MS);
        let (mut seen, mut first_seq) = (BTreeSet::new(), None::<u64>);
        self.visit_messages(now_ms.saturating_sub(SCANNED_MS), |message| {
            let Visited { seq, msgtime_ms, timestamp_ms, is_believable } = message;
            let time_ms = msgtime_ms.filter(|_| is_believable).unwrap_or(timestamp_ms);
            first_seq = first_seq.into_iter().chain([seq]).min();
            // An earlier epoch may have published it as well.
            if !is_again(seq) || !seen.insert(seq) {
                return;
            }
            if is_expired(time_ms) {
                again.expired += 1;
            } else {
                again.messages += 1;
            }
            again.oldest_msgtime_ms = again.oldest_msgtime_ms.into_iter().chain([time_ms]).min();
        })?;
        seen.clear();
        let source = format!("/wecom/{}", self.place.key.corp_id);
        scan::scan(&self.clients, &self.dead_letters, Begin::Time(now_ms.saturating_sub(SCANNED_MS)), |record| {
            let seq = record.header("wecom.seq").and_then(|seq| seq.parse::<u64>().ok());
            let Some(seq) = seq.filter(|_| record.header("ce_source") == Some(&source)) else { return };
            first_seq = first_seq.into_iter().chain([seq]).min();
            if is_again(seq) && seen.insert(seq) {
                // It is sealed, so its own time is not known; it was pulled later than that.
                if is_expired(record.timestamp_ms()) {
                    again.expired += 1;
                } else {
                    again.dead_letters += 1;
                }
            }
        })?;
        let older_to = first_seq.map_or(to_seq, |first| first.saturating_sub(1)).min(to_seq);
        again.older = (older_to > after_seq).then_some((after_seq + 1, older_to));
        Ok(again)
    }

    /// Each message of this corp with its seq and its own time.
    fn visit_messages(&self, since_ms: i64, mut visit: impl FnMut(Visited)) -> Result<(), ScanError> {
        let source = format!("/wecom/{}", self.place.key.corp_id);
        scan::scan(&self.clients, &self.messages, Begin::Time(since_ms), |record| {
            let is_ours = record.header("ce_source") == Some(&source)
                && record.header("ce_type") == Some("wecom.archive.message");
            if let Some(seq) = record.header("ce_id").and_then(|seq| seq.parse().ok()).filter(|_| is_ours) {
                let time = record.header("ce_time").and_then(|time| time.parse::<jiff::Timestamp>().ok());
                let msgtime_ms = time.map(jiff::Timestamp::as_millisecond);
                let timestamp_ms = record.timestamp_ms();
                let is_believable = match record.header(time::TIMESTAMP_HEADER) {
                    Some(from) => from != time::FROM_NEWEST,
                    // Where the broker, the pull, or an earlier version of this program has set the timestamp, it is
                    // about the pull's.
                    None => msgtime_ms.is_some_and(|msgtime_ms| time::is_believable(msgtime_ms, timestamp_ms)),
                };
                visit(Visited { seq, msgtime_ms, timestamp_ms, is_believable });
            }
        })
    }
}

/// A message of the topic.
struct Visited {
    seq: u64,
    /// As WeCom said it.
    msgtime_ms: Option<i64>,
    /// That of its record.
    timestamp_ms: i64,
    is_believable: bool,
}

impl Surroundings for &StoredOffset {
    type Producer = Committer;

    async fn fence(&self) -> Result<Committer, CommitError> {
        Committer::start(&self.clients, &self.transactional_id, self.transaction_timeout_ms, BATCH_BYTES).await
    }

    async fn read_offset(&self, place: &OffsetPlace) -> Result<Option<SourceOffset>, OffsetError> {
        offsets::read_in_background(&self.clients, place).await
    }

    async fn commit(&self, committer: &mut Committer, batch: Batch) -> Result<(), CommitError> {
        committer.commit(batch).await
    }

    async fn pause(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn now_ms(&self) -> i64 {
        self.clock.now().unix_ms
    }
}

impl AlterationError {
    /// Whether Kafka's answer says that somebody has to change something, be it a setting or a right.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Offset(OffsetError::Client(error)) | Self::Scan(ScanError::Client(error)) => !error.is_transient(),
            _ => false,
        }
    }
}

impl From<WriteError> for AlterationError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Fenced(reason) | WriteError::Commit(CommitError::Fenced(reason)) => Self::Fenced(reason),
            WriteError::Alone(reason) | WriteError::Commit(CommitError::Unknown(reason)) => Self::Unknown(reason),
            WriteError::Offset(error) => Self::Offset(error),
            WriteError::Commit(CommitError::Configuration(reason)) => Self::Configuration(reason),
            WriteError::Commit(CommitError::Aborted(reason) | CommitError::Expired(reason)) => Self::Aborted(reason),
        }
    }
}
