//! A media task: takes requests from its share of the request topics, brings the files, and says what became of each.
//!
//! All media tasks of a connector, on whatever worker, are one consumer group. For every request that is read exactly one record
//! becomes visible, in one transaction with the group's offset behind the request: a reference event, or the request again in
//! the retries topic. No transaction is open while a file is brought or a retry waits. Whatever ends a run, the next one starts
//! from the committed offsets and finds each request whose end is not visible.

mod attempt;
mod window;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use self::attempt::{Attempts, Verdict, Watched};
use self::window::{End, Settled, Ticket, Window};
use super::backoff::Backoff;
use super::download::ChunkSource;
use super::topics::{Topics, check_library};
use super::waiting::tell_while_waiting;
use super::{ConnectorContext, TaskError, object_key};
use crate::archive::{EventContext, MediaRequest, ReferenceStatus, StrayRecord, Topic, dead_letter};
use crate::config::ErrorsTolerance;
use crate::crash_point;
use crate::kafka::backlog;
use crate::kafka::group::{Change, GroupConsumer, GroupError, Received};
use crate::kafka::{Batch, CommitError, Committer, OutgoingRecord};
use crate::metrics::{MediaStatus, TransactionResult};
use crate::status::TaskHandle;
use crate::storage::StorageError;

/// Results wait this long for others to share a transaction with.
const COMMIT_DELAY: Duration = Duration::from_millis(20);
const BATCH_RECORDS_MAX: usize = 500;

/// How often it is looked whether retries are due.
const TICK: Duration = Duration::from_millis(200);

/// How often a broker is asked for a sign of life while there is nothing to do.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// Aborted transactions in a row before the task starts anew.
const ABORTS_MAX: u32 = 10;

/// What a successor takes at the most between fencing us and writing the source offset in its own name.
const TAKE_OVER_TIME: Duration = Duration::from_secs(10);

/// How often the source offset is looked at meanwhile.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long called-off downloads may take to clean up behind themselves.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs until `shutdown`, then finishes what it can within two thirds of the worker's time for that.
pub async fn run(
    context: &Arc<ConnectorContext>,
    task: u32,
    status: &TaskHandle,
    shutdown: CancellationToken,
) -> Result<(), TaskError> {
    run_with(Watched::new(context.sdk.clone(), status), context, task, status, shutdown).await
}

/// As [`run`], with files from elsewhere.
pub async fn run_with(
    source: impl ChunkSource,
    context: &Arc<ConnectorContext>,
    task: u32,
    status: &TaskHandle,
    shutdown: CancellationToken,
) -> Result<(), TaskError> {
    let group_id = format!("{}-{}-media", context.worker.group_id, context.config.name);
    let start = async {
        // So that a successor is left alone.
        tell_while_waiting(context, status, context.hold_place(task)).await?;
        if let Err(error) = context.store.check().await {
            note_backlog(context, task, &group_id).await;
            return Err(error.into());
        }
        status.trouble_is_over(attempt::MEDIA_WAIT);
        warn_of_rights(context).await;
        check_library(context).await?;
        let start = async {
            let topics = Topics::prepare(context).await?;
            let committer = start_committer(context, task, &topics).await?;
            // Asked again as late as can be: who joins the group takes the place of a task of the same name.
            context.hold_place(task).await?;
            Ok::<_, TaskError>((topics, committer))
        };
        tell_while_waiting(context, status, start).await
    };
    let Some(started) = shutdown.run_until_cancelled(start).await else { return Ok(()) };
    let (topics, committer) = started?;
    let sources = [Topic::MediaRequests, Topic::MediaRetries].map(|topic| &**topics.name(topic));
    let consumer = GroupConsumer::join(&context.clients, &group_id, &context.transactional_id(task), &sources)?;
    tracing::info!(connector = context.config.name, task, group_id, "the media task joins its group");

    let attempts = Attempts::new(source, context, status);
    let mut jobs = FuturesUnordered::new();
    let mut run = Run {
        context,
        task,
        status,
        topics: &topics,
        committer,
        consumer,
        attempts: &attempts,
        window: Window::default(),
        commit_at: None,
        aborts: 0,
        abort_pauses: Backoff::new(Duration::from_millis(50), Duration::from_secs(2)),
        kafka_trouble: None,
    };
    let result = run.work(&mut jobs, shutdown).await;
    run.window.lost_all();
    // What a failed task leaves behind goes on to age.
    if result.is_ok() {
        context.metrics.media_oldest_pending(task, None);
    }
    let cleaned_up = async { while jobs.next().await.is_some() {} };
    if tokio::time::timeout(CLEANUP_TIMEOUT, cleaned_up).await.is_err() {
        tracing::warn!("uploads that were called off may have left parts in the store");
    }
    run.consumer.close().await;
    result
}

/// Says what a right that is not needed is good for.
async fn warn_of_rights(context: &ConnectorContext) {
    if let Err(error) = context.store.look(&object_key::of_content(context.store.prefix(), "", "", 0)).await {
        tracing::warn!(
            %error,
            "the store does not tell that an object is not there (on S3 this is the right s3:ListBucket): files are stored all the \
             same, but `verify` cannot tell a lost object from one that must not be read"
        );
    }
}

async fn start_committer(context: &ConnectorContext, task: u32, topics: &Topics) -> Result<Committer, TaskError> {
    let (id, timeout_ms) = (context.transactional_id(task), context.config.transaction_timeout_ms);
    Ok(Committer::start(&context.clients, &id, timeout_ms, topics.batch_bytes()).await?)
}

/// Notes how old the work is that waits while the store keeps the task from joining its group: nobody else would tell, and files
/// are lost after five days.
async fn note_backlog(context: &Arc<ConnectorContext>, task: u32, group_id: &str) {
    let (clients, group_id, config) = (context.clients.clone(), group_id.to_owned(), &context.config);
    let topics = [config.media_requests_topic.clone(), config.media_retries_topic.clone()];
    let read = move || topics.map(|topic| backlog::first_uncommitted(&clients, &group_id, &topic));
    let Ok(topics) = tokio::task::spawn_blocking(read).await else { return };
    let values = topics.into_iter().flat_map(|values| {
        values
            .inspect_err(|error| tracing::warn!(%error, "what waits for the store cannot be read"))
            .unwrap_or_default()
    });
    let requests = values.filter_map(|value| MediaRequest::parse(&value).ok());
    if let Some(oldest_ms) = requests.map(|request| request.dated_ms()).min() {
        context.metrics.media_oldest_pending(task, Some(oldest_ms));
    }
}

/// A download under way; `None` when it was called off.
type Work<'a> = BoxFuture<'a, (Ticket, Option<Verdict>)>;

struct Run<'a, S> {
    context: &'a ConnectorContext,
    task: u32,
    status: &'a TaskHandle,
    topics: &'a Topics,
    committer: Committer,
    consumer: GroupConsumer,
    attempts: &'a Attempts<'a, S>,
    window: Window,
    /// When what is ready is committed.
    commit_at: Option<tokio::time::Instant>,
    aborts: u32,
    abort_pauses: Backoff,
    /// What the consumer last complained of, until a broker answers.
    kafka_trouble: Option<String>,
}

enum Event {
    Received(Result<Received, GroupError>),
    Finished(Ticket, Option<Verdict>),
    Commit,
    Tick,
    BrokerAnswered(bool),
    Shutdown,
    TimeIsUp,
}

impl<'a, S: ChunkSource> Run<'a, S> {
    async fn work(
        &mut self,
        jobs: &mut FuturesUnordered<Work<'a>>,
        shutdown: CancellationToken,
    ) -> Result<(), TaskError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked_at = tokio::time::Instant::now();
        let mut asked: Option<BoxFuture<'static, bool>> = None;
        let mut leave_by: Option<tokio::time::Instant> = None;
        loop {
            self.apply_changes()?;
            if leave_by.is_none() {
                self.start_jobs(jobs);
            } else if jobs.is_empty() {
                break;
            }
            self.put_back_early();
            self.pause_and_resume()?;
            if self.commit_at.is_none() && self.window.ready() > 0 {
                self.commit_at = Some(tokio::time::Instant::now() + COMMIT_DELAY);
            }
            let event = tokio::select! {
                received = self.consumer.receive() => Event::Received(received),
                Some((ticket, verdict)) = jobs.next() => Event::Finished(ticket, verdict),
                () = until(self.commit_at) => Event::Commit,
                _ = tick.tick() => Event::Tick,
                answered = answer(&mut asked) => Event::BrokerAnswered(answered),
                () = shutdown.cancelled(), if leave_by.is_none() => Event::Shutdown,
                () = until(leave_by) => Event::TimeIsUp,
            };
            // A rebalance may have been served just now: first of all, what was lost is forgotten.
            self.apply_changes()?;
            match event {
                Event::Received(Err(GroupError::Fenced(reason))) => return Err(self.fenced(&reason).await),
                Event::Received(received) => self.take(received)?,
                Event::Finished(ticket, Some(verdict)) => self.window.settle(&ticket, self.settled(verdict)),
                Event::Finished(_, None) => {}
                Event::Commit => self.commit().await?,
                Event::Tick => {
                    if let Some(oldest_ms) = self.window.oldest_ms() {
                        self.context.metrics.media_oldest_pending(self.task, Some(oldest_ms));
                    }
                    let is_idle = jobs.is_empty() && self.window.ready() == 0;
                    if is_idle && asked.is_none() && asked_at.elapsed() >= IDLE_INTERVAL {
                        asked_at = tokio::time::Instant::now();
                        asked = Some(Box::pin(self.consumer.ask_broker()));
                    }
                }
                Event::BrokerAnswered(true) => {
                    self.kafka_trouble = None;
                    if jobs.is_empty() {
                        self.status.progress();
                    }
                    // Not before: what was known of an earlier run counts until the group's share of this one has been read.
                    if self.window.oldest_ms().is_none() {
                        self.context.metrics.media_oldest_pending(self.task, None);
                    }
                }
                Event::BrokerAnswered(false) => {
                    let trouble = self.kafka_trouble.as_deref().unwrap_or("no answer");
                    self.status.degraded(format!("no Kafka broker can be reached: {trouble}"));
                }
                Event::Shutdown => {
                    let time_ms = self.context.worker.task_shutdown_graceful_timeout_ms * 2 / 3;
                    leave_by = Some(tokio::time::Instant::now() + Duration::from_millis(time_ms));
                }
                Event::TimeIsUp => break,
            }
        }
        while self.window.ready() > 0 && self.aborts == 0 {
            self.commit().await?;
        }
        Ok(())
    }

    fn apply_changes(&mut self) -> Result<(), TaskError> {
        for change in self.consumer.changes() {
            match change {
                Change::Gained(partitions) => {
                    // A partition that was paused when it was lost would stay so.
                    self.consumer.resume(&partitions).or_else(pass)?;
                    for partition in partitions {
                        self.window.gained(partition);
                    }
                    self.kafka_trouble = None;
                    self.status.running();
                }
                Change::Lost(partitions) => {
                    for partition in &partitions {
                        self.window.lost(partition);
                    }
                }
                Change::LostAll => self.window.lost_all(),
            }
        }
        Ok(())
    }

    fn start_jobs(&mut self, jobs: &mut FuturesUnordered<Work<'a>>) {
        let slots = self.context.config.media_concurrency.max(1);
        while jobs.len() < slots
            && let Some(job) = self.window.next_job(Instant::now(), slots)
        {
            let attempts = self.attempts;
            jobs.push(Box::pin(async move {
                let verdict = attempts.settle(job.request, &job.stop).await;
                (job.ticket, verdict)
            }));
        }
    }

    /// Makes way for what is finished.
    fn put_back_early(&mut self) {
        let now_ms = self.context.now_ms();
        for job in self.window.in_the_way(Instant::now()) {
            let record = self.topics.outgoing(job.request.to_record(now_ms));
            self.window.settle(&job.ticket, Settled { record, end: End::PutBack });
        }
    }

    fn pause_and_resume(&mut self) -> Result<(), TaskError> {
        let (to_pause, to_resume) = self.window.pauses();
        if !to_pause.is_empty() {
            self.consumer.pause(&to_pause).or_else(pass)?;
        }
        if !to_resume.is_empty() {
            self.consumer.resume(&to_resume).or_else(pass)?;
        }
        Ok(())
    }

    fn take(&mut self, received: Result<Received, GroupError>) -> Result<(), TaskError> {
        let received = match received {
            Ok(received) => received,
            Err(GroupError::Passing(reason)) => {
                tracing::debug!(reason, "the consumer met an error and goes on");
                self.kafka_trouble = Some(reason);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let Received { partition, offset, value, .. } = &received;
        let refusal = match MediaRequest::parse(value) {
            Ok(mut request) if request.corp_id == self.context.config.corp_id => {
                let config = &self.context.config;
                let wait = attempt::wait(&mut request, self.context.now_ms(), config.media_retry_delay_ms);
                self.window.take(partition, *offset, request, Instant::now() + wait);
                return Ok(());
            }
            Ok(_) => "the request is of another corp",
            Err(_) => "the record is no media request",
        };
        let place = format!("{}-{} at offset {offset}", partition.topic, partition.number);
        if self.context.config.errors_tolerance == ErrorsTolerance::None {
            return Err(TaskError::Intolerable(format!("{refusal}: {place}; errors.tolerance is none")));
        }
        let connector = &self.context.config.name;
        tracing::warn!(connector, place, kind = refusal, "{refusal}; it goes to the dead letter topic");
        let settled = Settled { record: self.dead_letter(&received, refusal), end: End::DeadLetter };
        self.window.take_settled(&received.partition, received.offset, settled);
        Ok(())
    }

    fn dead_letter(&self, received: &Received, refusal: &'static str) -> OutgoingRecord {
        let config = &self.context.config;
        let context = EventContext {
            connector: &config.name,
            task: self.task,
            topic: &config.topic,
            corp_id: &config.corp_id,
            now_ms: self.context.now_ms(),
        };
        let stray = StrayRecord {
            topic: &received.partition.topic,
            partition: received.partition.number,
            offset: received.offset,
            value: &received.value,
            refusal,
        };
        self.topics.outgoing(dead_letter::build_stray(&context, &stray))
    }

    fn settled(&self, verdict: Verdict) -> Settled {
        let (record, status, deduplicated) = match verdict {
            Verdict::Again(request) => (request.to_record(self.context.now_ms()), MediaStatus::Retried, false),
            Verdict::End(event) => {
                let status = match event.status {
                    ReferenceStatus::Stored => MediaStatus::Stored,
                    ReferenceStatus::Expired => MediaStatus::Expired,
                    ReferenceStatus::Failed => MediaStatus::Failed,
                };
                (event.to_record(), status, event.deduplicated)
            }
        };
        Settled { record: self.topics.outgoing(record), end: End::Media { status, deduplicated } }
    }

    /// One transaction: what is ready, and the group's offsets behind it.
    async fn commit(&mut self) -> Result<(), TaskError> {
        self.commit_at = None;
        let (results, offsets) = self.window.batch(BATCH_RECORDS_MAX);
        let records: Vec<_> = results.into_iter().map(|settled| settled.record.clone()).collect();
        if records.is_empty() {
            return Ok(());
        }
        let Some(group_offsets) = self.consumer.offsets(offsets.iter().map(|(partition, next)| (partition, *next)))
        else {
            return Err(TaskError::Transient("the consumer is in no group".into()));
        };
        let metrics = &self.context.metrics;
        crash_point::reach("media_event");
        let started = Instant::now();
        let batch = Batch { records, group_offsets: Some(group_offsets) };
        let result = tell_while_waiting(self.context, self.status, self.committer.commit(batch)).await;
        metrics.transaction(match &result {
            Ok(()) => TransactionResult::Committed,
            Err(CommitError::Unknown(_)) => TransactionResult::Unknown,
            Err(_) => TransactionResult::Aborted,
        });
        match result {
            Ok(()) => {
                metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
                for end in self.window.committed(&offsets) {
                    match end {
                        End::Media { status, deduplicated } => {
                            metrics.media(status);
                            if deduplicated {
                                metrics.media(MediaStatus::Deduplicated);
                            }
                        }
                        End::DeadLetter => metrics.dead_letter(dead_letter::STRAY),
                        End::PutBack => {}
                    }
                }
                self.aborts = 0;
                self.abort_pauses.reset();
                self.status.progress();
                Ok(())
            }
            // Mostly a rebalance under way: the next poll brings the new generation, or takes the partitions away.
            Err(CommitError::Aborted(reason)) if self.aborts < ABORTS_MAX => {
                tracing::info!(reason, "a transaction was aborted and will be made again");
                self.aborts += 1;
                self.commit_at = Some(tokio::time::Instant::now() + self.abort_pauses.next_delay());
                Ok(())
            }
            Err(CommitError::Expired(reason)) if self.aborts < ABORTS_MAX => {
                tracing::info!(reason, "the brokers have forgotten this producer; a new one goes on");
                self.aborts += 1;
                // Whoever has taken the place since is left alone.
                self.context.hold_place(self.task).await?;
                self.committer = start_committer(self.context, self.task, self.topics).await?;
                self.commit_at = Some(tokio::time::Instant::now());
                Ok(())
            }
            Err(CommitError::Fenced(reason)) => {
                metrics.fencings.inc();
                Err(self.fenced(&reason).await)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a real fencing from others, which librdkafka cannot: a successor writes the source offset in its own name.
    async fn fenced(&self, reason: &str) -> TaskError {
        let until = Instant::now() + TAKE_OVER_TIME;
        loop {
            // One that cannot be read says nothing: it is read again before the task takes a place again.
            if let Ok(true) = self.context.is_replaced().await {
                return self.context.fenced(self.task, reason);
            }
            if Instant::now() >= until {
                break;
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        TaskError::Transient(format!(
            "fenced though no other worker has taken over; was the transaction timed out by the coordinator? {reason}"
        ))
    }
}

/// An error that the consumer gets over by itself is none here.
fn pass(error: GroupError) -> Result<(), GroupError> {
    match error {
        GroupError::Passing(_) => Ok(()),
        other => Err(other),
    }
}

/// Waits until then; for ever where there is no then.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// The answer to a question, once; waits for ever where none was asked.
async fn answer(asked: &mut Option<BoxFuture<'static, bool>>) -> bool {
    let answered = match asked {
        Some(future) => future.await,
        None => std::future::pending().await,
    };
    *asked = None;
    answered
}

impl From<GroupError> for TaskError {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Configuration(reason) => Self::Configuration(reason),
            // Whether a fencing is real is found out at the next start.
            other => Self::Transient(other.to_string()),
        }
    }
}

impl From<StorageError> for TaskError {
    fn from(error: StorageError) -> Self {
        if error.is_transient() { Self::Transient(error.to_string()) } else { Self::Configuration(error.to_string()) }
    }
}
