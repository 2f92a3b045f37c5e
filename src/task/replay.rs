//! Replaying dead letters: they are opened again with the keys of today and published as messages, each exactly once.
//!
//! What was replayed stands in the offset topic and is written in the transaction that publishes the messages. It is read after
//! `init_transactions`, so that a replay that was interrupted anywhere can be made again, and a second one at the same time
//! fences the first.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::dead_letters::{DeadLetter, DeadLetters, Filter, History};
use super::topics::Topics;
use super::{ConnectorContext, TaskError, object_key, open, prepare};
use crate::archive::{DeadLetterReason, Element, MessageEvent, Record, Topic, dead_letter, event, page};
use crate::kafka::{Batch, CommitError, Committer, OutgoingRecord};
use crate::storage::StorageError;

/// One transaction holds at most so many messages, and what comes of so many bytes of dead letters.
const ROUND_LETTERS_MAX: usize = 300;
const ROUND_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Aborted transactions of one round before it is given up.
const ABORTS_MAX: u32 = 3;
const ABORT_PAUSE: Duration = Duration::from_millis(500);

/// What becomes of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Its message is published; in a rehearsal: would be.
    Replayed,
    /// Its message had been published before.
    ReplayedBefore,
    /// It stays a dead letter.
    Stays(Stay),
}

/// Why a dead letter stays one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stay {
    /// As in `wecom.reason`.
    pub reason: String,
    /// A sentence, and what to do.
    pub problem: String,
}

/// How a replay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// All that match have been looked at.
    Done,
    /// Some have not, or it is not known whether the last of them were published. To be made again.
    Interrupted(String),
}

/// Replays what matches, in the order of the topic, and calls `tell` with the fate of each, once that is final. A rehearsal
/// opens as well, but publishes nothing and fences nobody.
///
/// # Errors
/// [`TaskError::Fenced`] when another replay of this connector has begun. What was told before is published in each case.
pub async fn run(
    context: &Arc<ConnectorContext>,
    letters: &DeadLetters<'_>,
    filter: &Filter,
    is_rehearsal: bool,
    shutdown: &CancellationToken,
    tell: &mut impl FnMut(&DeadLetter, &Fate),
) -> Result<Ended, TaskError> {
    let topics = Topics::prepare(context).await?;
    let committer = match is_rehearsal {
        true => None,
        false => Some(start_committer(context, &topics).await?),
    };
    // Fenced first, read second: the other way round, a predecessor could still publish behind our back.
    let history = letters.history().await?;
    let mut replay = Replay { context, letters, topics: &topics, committer, history };
    for span in letters.spans() {
        let mut walk = letters.walk(*span, true);
        let mut round = Round::default();
        let mut is_end = false;
        while !is_end {
            let Some(next) = shutdown.run_until_cancelled(walk.next()).await else {
                return Ok(Ended::Interrupted("told to stop".into()));
            };
            match next? {
                None => is_end = true,
                Some((letter, previous)) => replay.sort(letter, previous, filter, &mut round, tell)?,
            }
            if (is_end || round.is_full())
                && let Some(reason) = replay.settle(span.partition, std::mem::take(&mut round), tell).await?
            {
                return Ok(Ended::Interrupted(reason));
            }
        }
    }
    Ok(Ended::Done)
}

async fn start_committer(context: &ConnectorContext, topics: &Topics) -> Result<Committer, TaskError> {
    let transactional_id = format!("{}-{}-dlq", context.worker.group_id, context.config.name);
    let timeout_ms = context.config.transaction_timeout_ms;
    Ok(Committer::start(&context.clients, &transactional_id, timeout_ms, topics.batch_bytes()).await?)
}

/// Dead letters that share a transaction.
#[derive(Debug, Default)]
struct Round {
    candidates: Vec<(DeadLetter, Option<i64>)>,
    /// Neighbours that may become one range of what is replayed, once the candidates are.
    neighbours: Vec<(i64, i64)>,
    bytes: usize,
}

impl Round {
    fn push(&mut self, letter: DeadLetter, previous: Option<i64>) {
        // What is kept in storage is of any size: it goes alone.
        self.bytes += if is_kept(&letter) { ROUND_BYTES_MAX } else { letter.record.value.len() };
        self.candidates.push((letter, previous));
    }

    fn is_full(&self) -> bool {
        self.candidates.len() >= ROUND_LETTERS_MAX || self.bytes >= ROUND_BYTES_MAX
    }
}

fn is_kept(letter: &DeadLetter) -> bool {
    letter.reason == DeadLetterReason::TOO_LARGE
}

/// What a dead letter is made of.
enum Source {
    Sealed(Element),
    /// An event that did not fit, with the files that have not been asked for.
    Event(Box<MessageEvent>),
}

struct Replay<'a> {
    context: &'a Arc<ConnectorContext>,
    letters: &'a DeadLetters<'a>,
    topics: &'a Topics,
    /// None in a rehearsal.
    committer: Option<Committer>,
    history: History,
}

impl Replay<'_> {
    /// Puts a dead letter into the round, if it is to be replayed.
    fn sort(
        &self,
        letter: DeadLetter,
        previous: Option<i64>,
        filter: &Filter,
        round: &mut Round,
        tell: &mut impl FnMut(&DeadLetter, &Fate),
    ) -> Result<(), TaskError> {
        let offset = letter.record.offset;
        if !self.letters.is_replayed(&self.history, &letter)? {
            if filter.matches(&letter) {
                round.push(letter, previous);
            }
            return Ok(());
        }
        if let Some(previous) = previous {
            let is_pending = round.candidates.last().is_some_and(|(last, _)| last.record.offset == previous);
            let replayed = self.history.of(letter.record.partition);
            if is_pending || replayed.is_some_and(|replayed| replayed.are_apart(previous, offset)) {
                round.neighbours.push((previous, offset));
            }
        }
        if filter.matches(&letter) {
            tell(&letter, &Fate::ReplayedBefore);
        }
        Ok(())
    }

    /// Publishes what can be opened of a round, in one transaction, and tells the fate of each. Gives a sentence if it is not
    /// known whether it is published.
    async fn settle(
        &mut self,
        partition: i32,
        round: Round,
        tell: &mut impl FnMut(&DeadLetter, &Fate),
    ) -> Result<Option<String>, TaskError> {
        let opened = self.open(&round.candidates).await?;
        let mut replayed = self.history.of(partition).cloned().unwrap_or_default();
        let (mut records, mut fates) = (Vec::new(), Vec::new());
        for ((letter, previous), opened) in round.candidates.iter().zip(opened) {
            fates.push(match opened {
                Ok(message) => {
                    records.extend(message.into_iter().map(|record| self.topics.outgoing(record)));
                    replayed.add(*previous, letter.record.offset, letter.record.timestamp_ms);
                    Fate::Replayed
                }
                Err(stay) => Fate::Stays(stay),
            });
        }
        for (previous, offset) in round.neighbours {
            replayed.join(previous, offset);
        }
        if !records.is_empty() && self.committer.is_some() {
            let offsets_topic: Arc<str> = self.context.worker.offset_storage_topic.as_str().into();
            let state = self.letters.key(partition).record(&offsets_topic, &replayed, self.context.now_ms());
            records.push(state.map_err(|error| TaskError::Configuration(error.to_string()))?);
            if let Some(reason) = self.commit(records).await? {
                return Ok(Some(reason));
            }
            self.history.set(partition, replayed);
        }
        for ((letter, _), fate) in round.candidates.iter().zip(&fates) {
            tell(letter, fate);
        }
        Ok(None)
    }

    /// The records that each one becomes, the message first.
    async fn open(
        &self,
        candidates: &[(DeadLetter, Option<i64>)],
    ) -> Result<Vec<Result<Vec<Record>, Stay>>, TaskError> {
        let (mut sources, mut elements) = (Vec::new(), Vec::new());
        for (letter, _) in candidates {
            sources.push(match self.source(letter).await? {
                Ok(Source::Sealed(element)) => {
                    elements.push(element);
                    None
                }
                Ok(Source::Event(event)) => Some(Ok(*event)),
                Err(stay) => Some(Err(stay)),
            });
        }
        let elements = Arc::new(elements);
        let mut plaintexts = open::plaintexts(self.context, &elements, None).await?.into_iter();
        let mut elements = elements.iter();
        let mut opened = Vec::new();
        for ((letter, _), source) in candidates.iter().zip(sources) {
            let event = source.unwrap_or_else(|| {
                // What follows from the time of the pull does so from that of the first one: a file's deadline above all.
                let context = prepare::event_context(self.context, letter.record.timestamp_ms);
                let (element, plaintext) = (elements.next(), plaintexts.next());
                let event = element.zip(plaintext).map(|(element, text)| open::event_of(&context, element, text));
                event.unwrap_or(Err(DeadLetterReason::SdkCrash)).map_err(|reason| self.stay(&reason))
            });
            opened.push(event.and_then(|event| self.records(event, letter)));
        }
        Ok(opened)
    }

    /// The message's record, and those that ask for its files.
    fn records(&self, event: MessageEvent, letter: &DeadLetter) -> Result<Vec<Record>, Stay> {
        let now_ms = self.context.now_ms();
        let mut message = event.record;
        // Its time is judged by the clock of the first pull. As long as the topic takes it, it is no other one months
        // later.
        let newest_ms =
            letter.record.header(prepare::NEWEST_MSGTIME_HEADER).and_then(|newest_ms| newest_ms.parse().ok());
        let mut timestamps = self.topics.timestamps(self.context.config.record_timestamp, newest_ms);
        timestamps.stamp(&mut message, event.msgtime_ms, letter.record.timestamp_ms, now_ms);
        message.headers.push(("wecom.replayed_from", self.letters.place(letter).into_bytes()));
        // A replay belongs to the epoch that its record was pulled in.
        for name in ["wecom.epoch", "wecom.republished"] {
            message.headers.extend(letter.record.header(name).map(|value| (name, value.into())));
        }
        let requests = event.media.iter().map(|request| request.to_record(now_ms));
        let records: Vec<Record> = std::iter::once(message).chain(requests).collect();
        let oversize = records.iter().find(|record| record.bytes_max() > self.topics.record_bytes_max(record.topic));
        match oversize {
            Some(record) => Err(self.too_large(record.topic, record.bytes_max() as u64)),
            None => Ok(records),
        }
    }

    fn stay(&self, reason: &DeadLetterReason) -> Stay {
        let problem = match reason {
            DeadLetterReason::UnknownKeyVersion { version } => format!(
                "there is no private key of version {version}, only of {:?}; add it to wecom.private.keys.dir or \
                 wecom.private.keys",
                self.context.keyring.versions()
            ),
            other => other.to_string(),
        };
        Stay { reason: reason.name().into(), problem }
    }

    fn too_large(&self, topic: Topic, bytes: u64) -> Stay {
        let (topic, limit) = (self.topics.name(topic), self.topics.record_bytes_max(topic));
        let problem = format!("it takes {bytes} bytes and topic {topic} takes {limit}; raise its max.message.bytes");
        Stay { reason: DeadLetterReason::TOO_LARGE.into(), problem }
    }

    async fn source(&self, letter: &DeadLetter) -> Result<Result<Source, Stay>, TaskError> {
        let stay = |problem: &str| Stay { reason: letter.reason.clone(), problem: problem.into() };
        if letter.reason == dead_letter::STRAY {
            return Ok(Err(stay("it is a foreign record out of a topic of media requests, and no message")));
        }
        if is_kept(letter) {
            return self.kept(letter).await;
        }
        let element = page::element(&letter.record.value).map(Source::Sealed);
        Ok(element.ok_or_else(|| stay("it is no sealed record: somebody else has changed it")))
    }

    /// What did not fit is in storage.
    async fn kept(&self, letter: &DeadLetter) -> Result<Result<Source, Stay>, TaskError> {
        #[derive(Deserialize)]
        struct Oversize {
            seq: u64,
            uri: String,
        }
        let stay = |problem: String| Ok(Err(Stay { reason: letter.reason.clone(), problem }));
        let Ok(Oversize { seq, uri }) = serde_json::from_slice(&letter.record.value) else {
            return stay("it does not say which seq it is of and where its body lies".into());
        };
        // A record that failed for another reason, and did not fit even into the dead letter topic, says that reason.
        let is_event = letter.record.header("wecom.cause").is_none();
        let (store, corp_id) = (&self.context.store, &self.context.config.corp_id);
        let kind = if is_event { prepare::KEPT_EVENT } else { prepare::KEPT_RECORD };
        let key = object_key::of_oversize(store.prefix(), corp_id, &seq.to_string(), kind);
        if store.uri(&key) != uri {
            return stay(format!(
                "its body lies at {uri}, but this connector's storage would have it at {}",
                store.uri(&key)
            ));
        }
        // A sealed record is larger than its event, by a third for its base64 and by its keys.
        let limit = self.topics.record_bytes_max(Topic::Messages) as u64;
        let bytes_max = if is_event { limit } else { limit.saturating_mul(2) };
        match store.length(&key).await.map_err(storage_failed)? {
            None => return stay(format!("its body is no longer at {uri}")),
            Some(bytes) if bytes > bytes_max => return Ok(Err(self.too_large(Topic::Messages, bytes))),
            Some(_) => {}
        }
        let Some(body) = store.get(&key, bytes_max).await.map_err(storage_failed)? else {
            return stay(format!("its body is no longer at {uri}"));
        };
        let source = if is_event {
            let context = prepare::event_context(self.context, letter.record.timestamp_ms);
            event::restore(&context, seq, body).map(|mut event| {
                // All files were asked for with the dead letter, but for those whose requests did not fit.
                let header = letter.record.header(prepare::REQUEST_BYTES_MAX_HEADER);
                let bytes_max = header.and_then(|bytes| bytes.parse().ok()).unwrap_or(usize::MAX);
                event.media.retain(|request| request.to_record(letter.record.timestamp_ms).bytes_max() > bytes_max);
                Source::Event(Box::new(event))
            })
        } else {
            page::element(&body).map(Source::Sealed)
        };
        match source {
            Some(source) => Ok(Ok(source)),
            None => stay(format!("what lies at {uri} is not what was kept of seq {seq}")),
        }
    }

    /// One transaction. Gives a sentence if nothing is known of its end, or if it cannot be had.
    async fn commit(&self, records: Vec<OutgoingRecord>) -> Result<Option<String>, TaskError> {
        let Some(committer) = &self.committer else { return Ok(None) };
        let mut aborts = 0;
        loop {
            let started = Instant::now();
            let batch = Batch { records: records.clone(), group_offsets: None };
            match committer.commit(batch).await {
                Ok(()) => return Ok(None),
                Err(CommitError::Aborted(reason)) => {
                    aborts += 1;
                    tracing::warn!(reason, aborts, "a transaction was aborted; nothing of it is published");
                    if aborts == ABORTS_MAX {
                        return Ok(Some(format!("Kafka does not take the transaction: {reason}")));
                    }
                    tokio::time::sleep(ABORT_PAUSE).await;
                }
                Err(CommitError::Fenced(reason)) => return self.fenced(started.elapsed(), &reason),
                Err(CommitError::Configuration(reason)) => return Err(TaskError::Configuration(reason)),
                Err(error @ (CommitError::Unknown(_) | CommitError::Expired(_))) => return Ok(Some(error.to_string())),
            }
        }
    }

    /// A coordinator that times out our own transaction looks the same; then it was open for too long.
    fn fenced(&self, open: Duration, reason: &str) -> Result<Option<String>, TaskError> {
        let config = &self.context.config;
        if open >= Duration::from_millis(config.transaction_timeout_ms) {
            return Ok(Some(format!("the transaction was timed out by the coordinator: {reason}")));
        }
        Err(TaskError::Fenced(format!(
            "as far as Kafka tells, another replay of the dead letters of connector {} with group.id {} has begun ({reason}); this \
             one stops and publishes nothing more. Where no other runs, start it again: nothing is published twice",
            config.name, self.context.worker.group_id
        )))
    }
}

fn storage_failed(error: StorageError) -> TaskError {
    let problem = format!("what is kept of a dead letter cannot be read: {error}");
    if error.is_transient() { TaskError::Transient(problem) } else { TaskError::Configuration(problem) }
}
