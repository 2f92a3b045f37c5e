//! The message task: a corp's archive into Kafka, one transaction a page.
//!
//! Three stages run at once, each at most one page ahead of the next: pull, prepare (unwrap, decrypt, build), commit. Commits
//! are in the order of `seq`. Whatever goes wrong ends the run; the next run starts from the committed offset, so that a page
//! is either wholly visible with its offset, or pulled again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::prepare::{PreparedPage, Preparer};
use super::pull::Puller;
use super::topics::{Topics, check_library};
use super::waiting::tell_while_waiting;
use super::{ConnectorContext, TaskError, published};
use crate::archive::Gap;
use crate::crash_point;
use crate::kafka::offsets::{self, OffsetError, OffsetPlace, SourceOffset};
use crate::kafka::source_writer::{SourceWriter, Surroundings, WriteError};
use crate::kafka::{Batch, BatchBytes, CommitError, Committer, OutgoingRecord};
use crate::metrics::TransactionResult;
use crate::status::TaskHandle;

/// The number of the message task among the connector's tasks.
pub const TASK: u32 = 0;

/// How often the offset of a drained archive is written again, so that a later start knows up to when all is delivered.
const REFRESH_INTERVAL_MS: i64 = 10 * 60 * 1000;

/// What a status tells as long as it lasts: that no record becomes a message.
const UNOPENED: &str = "unopened";

/// Aborted transactions of one page before the task starts anew, and looks at the topics' limits again.
const ABORTS_MAX: u32 = 4;
/// In librdkafka's words for a record that did not arrive in time.
const TIMED_OUT: &str = "timed out";
const ABORT_PAUSE_MIN: Duration = Duration::from_millis(50);
const ABORT_PAUSE_MAX: Duration = Duration::from_secs(2);

/// Runs until `shutdown`, then finishes the pages in flight.
pub async fn run(
    context: &Arc<ConnectorContext>,
    status: &TaskHandle,
    shutdown: CancellationToken,
) -> Result<(), TaskError> {
    // Told to end before there is anything in flight, it ends at once: whatever Kafka is being asked can be left unanswered.
    let Some(started) = shutdown.run_until_cancelled(start(context, status)).await else { return Ok(()) };
    let (topics, mut run, offset) = started?;
    status.running();
    let seq = offset.seq;
    tracing::info!(connector = context.config.name, seq, "the message task runs; pulling after this seq");

    let (pulled, to_prepare) = mpsc::channel(1);
    let (prepared, to_commit) = mpsc::channel(1);
    let preparer = Preparer::new(context, status, &topics, offset);
    // A stage that fails ends those behind it, which get nothing more once they have seen to what is in flight: a page that is
    // pulled may never be had again.
    let (pulled, prepared, committed) = tokio::join!(
        Puller::new(context, status).run(seq, pulled, shutdown),
        preparer.run(to_prepare, prepared),
        run.commit_all(to_commit),
    );
    committed.and(prepared).and(pulled)
}

/// Makes and checks topics, takes the place of a predecessor, and finds the offset to go on from.
async fn start<'a>(
    context: &'a ConnectorContext,
    status: &'a TaskHandle,
) -> Result<(Topics, Run<'a>, SourceOffset), TaskError> {
    check_library(context).await?;
    let topics = tell_while_waiting(context, status, Topics::prepare(context)).await?;
    let mut notices = topics.warnings(&context.config)?;
    let place = context.offset_place();
    let kafka = Kafka { context, batch_bytes: topics.batch_bytes() };
    if context.config.require_offset {
        require_offset(context, &kafka, &place).await?;
    }
    let early = match crash_point::is_broken("read_before_fencing") {
        true => kafka.read_offset(&place).await.ok().flatten(),
        false => None,
    };
    crash_point::reach("take_over");
    let started = SourceWriter::start(kafka, place, context.tenure.clone());
    let started = tell_while_waiting(context, status, started).await;
    let mut writer = started.map_err(|error| task_error(context, error))?;
    notices.extend(foreign_group(context, &writer.offset()));
    if writer.offset().is_untouched() {
        status
            .condition("No offset is stored: what the topics hold already is looked for before anything is published.");
        notices.extend(mark_repeats(context, &topics, &mut writer).await?);
    }
    let offset = early.unwrap_or_else(|| writer.offset());
    let SourceOffset { seq, delivered_until_ms, page_limit, vain_starts, .. } = offset;
    context.metrics.lag.resumed(seq, delivered_until_ms, context.now_ms());
    // This start is counted already.
    context.page_limit.resume(page_limit, vain_starts.saturating_sub(1));
    let run = Run { context, status, batch_bytes: topics.batch_bytes(), writer, unopened: Unopened::default() };
    notices.into_iter().for_each(|notice| run.notice(notice));
    Ok((topics, run, offset))
}

/// An error where no offset is stored (`require.offset=true`).
async fn require_offset(context: &ConnectorContext, kafka: &Kafka<'_>, place: &OffsetPlace) -> Result<(), TaskError> {
    let offset = kafka.read_offset(place).await?;
    // An archive that was empty until now has an offset, too.
    if offset.is_some_and(|offset| !offset.is_untouched() || offset.delivered_until_ms.is_some()) {
        return Ok(());
    }
    Err(TaskError::Configuration(format!(
        "no offset is stored for connector {} of corp {} in topic {}, and require.offset is true: nothing is pulled. {} To begin with \
         the oldest record that WeCom has, set require.offset=false for one start; to go on behind a record, use `offsets set`.",
        place.key.connector,
        place.key.corp_id,
        place.topic,
        published::others(context).await?
    )))
}

/// What to say where the offset was written with another `group.id`: such a worker has another `transactional.id`.
fn foreign_group(context: &ConnectorContext, offset: &SourceOffset) -> Option<String> {
    let ours = &context.worker.group_id;
    let theirs = offset.group_id.as_ref().filter(|theirs| *theirs != ours)?;
    Some(format!(
        "The offset was written with group.id {theirs}, and this worker has {ours}: a worker of that group that still runs is not \
         stopped by this one, and both would publish the same records. End it."
    ))
}

/// Without an offset the archive begins anew. What the topics hold already is marked in what comes now.
async fn mark_repeats(
    context: &ConnectorContext,
    topics: &Topics,
    writer: &mut SourceWriter<Kafka<'_>>,
) -> Result<Option<String>, TaskError> {
    let Some(offset) = published::offset_after_loss(context, topics).await? else { return Ok(None) };
    let last_seq = offset.republished_to;
    let notice = format!(
        "No offset was stored for connector {} of corp {}, and the topics hold records of this corp up to seq {last_seq}. What WeCom \
         still has of them is published again, marked with the headers wecom.republished and wecom.epoch. {} To go on behind them \
         instead: stop the worker, `offsets set --seq {last_seq} --allow-skip`, start it. require.offset=true refuses such a start.",
        context.config.name,
        context.config.corp_id,
        published::others(context).await?
    );
    writer.commit(Vec::new(), offset).await.map_err(|error| task_error(context, error))?;
    Ok(Some(notice))
}

/// One run: what this start writes with.
struct Run<'a> {
    context: &'a ConnectorContext,
    status: &'a TaskHandle,
    batch_bytes: BatchBytes,
    writer: SourceWriter<Kafka<'a>>,
    unopened: Unopened,
}

impl Run<'_> {
    async fn commit_all(&mut self, mut pages: mpsc::Receiver<PreparedPage>) -> Result<(), TaskError> {
        let metrics = &self.context.metrics;
        let poll_interval = Duration::from_millis(self.context.config.poll_interval_ms);
        while let Some(page) = pages.recv().await {
            if let Some(last_seq) = page.last_seq {
                let newest_msgtime_ms = page.newest_believable_ms;
                self.commit(page.records, last_seq, page.delivered_until_ms, newest_msgtime_ms).await?;
                metrics.messages_published.inc_by(page.msgtimes_ms.len() as u64);
                for &msgtime_ms in &page.msgtimes_ms {
                    metrics.delivered(msgtime_ms);
                }
                self.note_unopened(page.msgtimes_ms.len(), &page.dead_letters);
                for reason in page.dead_letters {
                    metrics.dead_letter(reason);
                }
                metrics.lag.committed(last_seq, page.newest_msgtime_ms, self.context.now_ms());
            }
            if let Some(gap) = page.gap {
                self.tell(&gap);
            }
            if let Some(drained_at_ms) = page.drained_at_ms {
                let offset = self.writer.offset();
                let is_due = offset.committed_at_ms.is_none_or(|at_ms| drained_at_ms - at_ms >= REFRESH_INTERVAL_MS);
                if is_due || offset.vain_starts > 0 {
                    self.commit(Vec::new(), offset.seq, page.delivered_until_ms, None).await?;
                }
                metrics.lag.drained(drained_at_ms, poll_interval);
            }
            if let Some(reason) = page.intolerable {
                return Err(TaskError::Intolerable(reason));
            }
            self.status.progress();
            match self.unopened.reason() {
                Some(reason) => self.status.trouble(UNOPENED, reason, poll_interval),
                None => self.status.trouble_is_over(UNOPENED),
            }
            if page.is_held {
                self.status.condition(
                    "WeCom answers records without a seq, and none with one: they are delivered as soon as a newer record comes.",
                );
            }
        }
        Ok(())
    }

    fn note_unopened(&mut self, messages: usize, dead_letters: &[&'static str]) {
        let was_told = self.unopened.reason().is_some();
        self.unopened.note(messages, dead_letters);
        let connector = &self.context.config.name;
        match self.unopened.reason() {
            Some(reason) if !was_told => tracing::error!(connector, "{reason}"),
            None if was_told => tracing::info!(connector, "records become messages again"),
            _ => {}
        }
    }

    /// Loud, and never silent: the records before this page may be lost.
    fn tell(&self, gap: &Gap) {
        let Gap { after_seq, before_seq, delivered_until_ms, .. } = *gap;
        self.context.metrics.archive_gaps.inc();
        let connector = &self.context.config.name;
        tracing::error!(
            connector,
            after_seq,
            before_seq,
            delivered_until_ms,
            "records may be lost: a gap in the archive"
        );
        self.notice(format!(
            "Records after seq {after_seq} and before seq {before_seq} may be lost: WeCom keeps records for five days, and for longer \
             than that nothing was pulled."
        ));
    }

    fn notice(&self, notice: String) {
        tracing::warn!(connector = self.context.config.name, "{notice}");
        self.status.notice(notice);
    }

    /// One transaction. One that is aborted is made again, and one of a producer that the brokers have forgotten by a
    /// new one.
    async fn commit(
        &mut self,
        records: Vec<OutgoingRecord>,
        seq: u64,
        delivered_until_ms: Option<i64>,
        newest_msgtime_ms: Option<i64>,
    ) -> Result<(), TaskError> {
        let before = self.writer.offset();
        let offset = SourceOffset {
            seq,
            delivered_until_ms,
            newest_msgtime_ms: before.newest_msgtime_ms.max(newest_msgtime_ms),
            vain_starts: 0,
            page_limit: self.context.page_limit.kept(),
            group_id: Some(self.context.worker.group_id.clone()),
            ..before
        };
        let mut pauses = Backoff::new(ABORT_PAUSE_MIN, ABORT_PAUSE_MAX);
        let mut aborts = 0;
        loop {
            let committed = self.writer.commit(records.clone(), offset.clone());
            match tell_while_waiting(self.context, self.status, committed).await {
                Ok(()) => return Ok(()),
                Err(WriteError::Commit(CommitError::Aborted(reason))) if aborts < ABORTS_MAX => {
                    aborts += 1;
                    tracing::warn!(reason, aborts, "a transaction was aborted and is made again");
                    self.status.degraded(format!("A transaction was aborted and is made again: {reason}"));
                    tokio::time::sleep(pauses.next_delay()).await;
                }
                Err(WriteError::Commit(CommitError::Expired(reason))) if aborts < ABORTS_MAX => {
                    aborts += 1;
                    tracing::info!(reason, "the brokers have forgotten this producer; a new one goes on");
                    self.renew_writer().await?;
                }
                Err(error) => {
                    if let WriteError::Commit(CommitError::Aborted(reason)) = &error
                        && reason.contains(TIMED_OUT)
                        && records.len() > 1
                        && self.context.page_limit.shrink()
                    {
                        let limit = self.context.page_limit.get();
                        self.context.metrics.page_limit.set(i64::from(limit));
                        tracing::warn!(
                            limit,
                            "a page does not reach Kafka within transaction.timeout.ms; asking for fewer records"
                        );
                    }
                    return Err(task_error(self.context, error));
                }
            }
        }
    }

    /// A new writer in place of one that the brokers have forgotten. Nobody can have moved the offset meanwhile:
    /// whoever does takes the connector, and that is looked at.
    async fn renew_writer(&mut self) -> Result<(), TaskError> {
        let before = self.writer.offset();
        let kafka = Kafka { context: self.context, batch_bytes: self.batch_bytes };
        let started = SourceWriter::start(kafka, self.context.offset_place(), self.context.tenure.clone()).await;
        self.writer = started.map_err(|error| task_error(self.context, error))?;
        let after = self.writer.offset();
        match (before.seq, before.epoch) == (after.seq, after.epoch) {
            true => Ok(()),
            false => Err(TaskError::Transient("the offset has moved while the producer was renewed".into())),
        }
    }
}

/// Dead letters that no message came between: of one key that is wrong, or of all. Pages go on all the same, so
/// nothing else shows it.
#[derive(Debug, Default)]
struct Unopened {
    has_published: bool,
    /// Since the last message, by reason.
    reasons: BTreeMap<&'static str, u64>,
}

/// So many dead letters in a row are no accident, where messages came before.
const UNOPENED_MIN: u64 = 50;

impl Unopened {
    /// Takes what became of a page.
    fn note(&mut self, messages: usize, dead_letters: &[&'static str]) {
        if messages > 0 {
            self.has_published = true;
            self.reasons.clear();
            return;
        }
        for reason in dead_letters {
            *self.reasons.entry(reason).or_default() += 1;
        }
    }

    /// What the status says, if there is something to say.
    fn reason(&self) -> Option<String> {
        let count: u64 = self.reasons.values().sum();
        if count == 0 || self.has_published && count < UNOPENED_MIN {
            return None;
        }
        let reasons: Vec<String> = self.reasons.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        let reasons = reasons.join(", ");
        let since = if self.has_published { "the last message" } else { "this start" };
        Some(format!(
            "Every record since {since} has become a dead letter, none a message ({reasons}). Compare keys and versions: wecom-connector \
             keys check --config CONNECTOR --worker WORKER. Then replay the dead letters."
        ))
    }
}

fn task_error(context: &ConnectorContext, error: WriteError) -> TaskError {
    match error {
        WriteError::Commit(error) => error.into(),
        WriteError::Fenced(reason) => context.fenced(TASK, &reason),
        WriteError::Offset(error) => error.into(),
        WriteError::Alone(_) => TaskError::Transient(error.to_string()),
    }
}

/// Kafka as the writer needs it, with metrics of what it did.
struct Kafka<'a> {
    context: &'a ConnectorContext,
    batch_bytes: BatchBytes,
}

impl Surroundings for Kafka<'_> {
    type Producer = Committer;

    async fn fence(&self) -> Result<Committer, CommitError> {
        let transactional_id = self.context.transactional_id(TASK);
        let timeout_ms = self.context.config.transaction_timeout_ms;
        Committer::start(&self.context.clients, &transactional_id, timeout_ms, self.batch_bytes).await
    }

    async fn read_offset(&self, place: &OffsetPlace) -> Result<Option<SourceOffset>, OffsetError> {
        offsets::read_in_background(&self.context.clients, place).await
    }

    async fn commit(&self, committer: &mut Committer, mut batch: Batch) -> Result<(), CommitError> {
        let metrics = &self.context.metrics;
        let started = Instant::now();
        if crash_point::is_broken("offset_outside") {
            let offset = batch.records.pop().into_iter().collect();
            committer.commit(batch).await?;
            batch = Batch { records: offset, group_offsets: None };
        }
        let result = committer.commit(batch).await;
        metrics.transaction(match &result {
            Ok(()) => TransactionResult::Committed,
            Err(CommitError::Unknown(_)) => TransactionResult::Unknown,
            Err(_) => TransactionResult::Aborted,
        });
        match &result {
            Ok(()) => metrics.commit_seconds.observe(started.elapsed().as_secs_f64()),
            Err(CommitError::Fenced(_)) => metrics.fencings.inc(),
            // The page is still at hand.
            Err(CommitError::Aborted(_) | CommitError::Expired(_)) => {}
            Err(_) => metrics.lag.rewound(),
        }
        result
    }

    async fn pause(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn now_ms(&self) -> i64 {
        self.context.now_ms()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_of_dead_letters_alone_are_told() {
        let mut unopened = Unopened::default();
        // Messages and dead letters of a page, and whether the status says something after it.
        let rows: [(usize, usize, bool); 9] = [
            (0, 0, false),
            (0, 1, true),
            (0, 0, true),
            (3, 5, false),
            (0, 49, false),
            (0, 0, false),
            (0, 1, true),
            (0, 7, true),
            (1, 0, false),
        ];
        for (index, (messages, dead_letters, is_told)) in rows.into_iter().enumerate() {
            unopened.note(messages, &vec!["rsa"; dead_letters]);
            assert_eq!(unopened.reason().is_some(), is_told, "row {index}: {:?}", unopened.reason());
        }
        unopened.note(0, &["decrypt"; 60]);
        assert!(
            unopened
                .reason()
                .is_some_and(|it| it.starts_with("Every record since the last message") && it.contains("(decrypt 60)"))
        );
    }
}
