//! Every metric in one place.
//!
//! [`Metrics`] owns the registry; there is no global one. A connector's metrics are bound to its name once, in
//! [`Metrics::connector`], so counting costs an atomic addition. Names end in their unit, counters in `_total`. Help texts are the
//! documentation: [`reference`] prints them as the table the README links.
//!
//! Ages, lags and states are not set when something happens but computed from facts at each scrape ([`Lag`], the
//! [`StatusBoard`]): they stay true when the connector is idle or stuck. A connector's series stay when it stops.

mod declare;
mod egress;
mod lag;

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Counter, Encoder, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, Registry, TextEncoder,
};

pub use self::declare::Definition;
pub use self::egress::EgressMetrics;
pub use self::lag::{Lag, Reading};

use self::declare::Declare;
use crate::clock::Clock;
use crate::status::{State, StatusBoard};
use crate::{COMMIT, VERSION};

/// WeCom keeps a chat record for five days; what has not been pulled by then is lost.
pub const ARCHIVE_WINDOW_SECONDS: u32 = 432_000;

/// Of one call or one page, in seconds: 1 ms to a minute.
const CALL_BUCKETS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
/// Of one file: 512 KiB arrive in one call, 100 MB in two hundred.
const MEDIA_BUCKETS: [f64; 12] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0];
/// From a fresh message (seconds) to one at the window's end (days).
const END_TO_END_BUCKETS: [f64; 15] =
    [0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0, 86_400.0, 259_200.0, 432_000.0];

/// What became of a media file, or of an attempt at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaStatus {
    Stored,
    Expired,
    Failed,
    /// An attempt failed and another will follow.
    Retried,
    /// The same content was stored already and was not fetched or stored twice.
    Deduplicated,
}

impl MediaStatus {
    pub const ALL: [Self; 5] = [Self::Stored, Self::Expired, Self::Failed, Self::Retried, Self::Deduplicated];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Expired => "expired",
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Deduplicated => "deduplicated",
        }
    }
}

/// How a Kafka transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionResult {
    Committed,
    Aborted,
    /// The broker's answer did not come: the offset is read again to know.
    Unknown,
}

impl TransactionResult {
    pub const ALL: [Self; 3] = [Self::Committed, Self::Aborted, Self::Unknown];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
            Self::Unknown => "unknown",
        }
    }
}

/// The registry and the metrics of the whole worker.
pub struct Metrics {
    registry: Registry,
    clock: Clock,
    definitions: BTreeMap<String, Definition>,
    connectors: Mutex<BTreeMap<String, Arc<ConnectorMetrics>>>,
    task_state: GaugeVec,
    task_restarts: IntCounterVec,
    task_progress_age_seconds: GaugeVec,
    task_trouble_seconds: GaugeVec,
    archive_info: GaugeVec,
}

impl Metrics {
    pub fn new(clock: Clock) -> Arc<Self> {
        let registry = Registry::new();
        // Linux alone has these; elsewhere they are absent.
        let _ = registry.register(Box::new(ProcessCollector::for_self()));
        let mut declare = Declare::new(&registry, None);
        let build_info = declare.gauges(
            "build_info",
            &["version", "commit"],
            "Always 1. Version and commit of the running program.",
        );
        build_info.with_label_values(&[VERSION, COMMIT]).set(1.0);
        let window = declare.gauge(
            "archive_window_seconds",
            "How long WeCom keeps a chat record: a constant to compare oldest_undelivered_age_seconds with.",
        );
        window.set(i64::from(ARCHIVE_WINDOW_SECONDS));
        let task = ["connector", "task"];
        let task_state = declare.gauges(
            "task_state",
            &["connector", "task", "state"],
            "1 for the state the task is in, 0 for the others. Task 0 brings messages, the rest media. See GET /connectors/{name}/status for the reason.",
        );
        let task_restarts = declare.counters("task_restarts_total", &task, "Starts of a task after its first.");
        let task_progress_age_seconds = declare.gauges(
            "task_progress_age_seconds",
            &task,
            "Time since the task got something done. Grows while a task hangs, whatever its state says; /health compares it with task.progress.timeout.ms.",
        );
        let task_trouble_seconds = declare.gauges(
            "task_trouble_seconds",
            &task,
            "Time since the first of the failures that no work has followed yet, whatever the task's state says: it is started again, or tries the same again. 0 when all is well. See GET /connectors/{name}/status for what fails.",
        );
        let archive_info = declare.gauges(
            "archive_info",
            &["connector", "corp_id"],
            "Always 1. The corp whose archive a connector reads.",
        );
        let definitions = declare.definitions;
        Arc::new(Self {
            registry,
            clock,
            definitions,
            connectors: Mutex::default(),
            task_state,
            task_restarts,
            task_progress_age_seconds,
            task_trouble_seconds,
            archive_info,
        })
    }

    /// The metrics of a connector. Asked again for the same name (a restart) it returns the same ones: counters go on.
    pub fn connector(&self, name: &str, corp_id: &str) -> Arc<ConnectorMetrics> {
        let mut connectors = self.connectors.lock().unwrap_or_else(PoisonError::into_inner);
        let connector = connectors.entry(name.to_owned()).or_insert_with(|| {
            let mut declare = Declare::new(&self.registry, Some(name));
            Arc::new(ConnectorMetrics::new(&mut declare, self.clock.clone()))
        });
        self.archive_info.with_label_values(&[name, corp_id]).set(1.0);
        connector.clone()
    }

    /// The answer to a scrape, in Prometheus' text format; lags, ages and task states as they are at this moment.
    pub fn render(&self, board: &StatusBoard) -> Result<String, prometheus::Error> {
        // Held to the end: of two scrapes at once each gets a whole answer.
        let connectors = self.connectors.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.clock.now().unix_ms;
        for connector in connectors.values() {
            connector.refresh(now_ms);
        }
        self.refresh_tasks(board);
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }

    /// The content type of [`Metrics::render`].
    pub fn content_type() -> String {
        format!("{}; charset=utf-8", TextEncoder::new().format_type())
    }

    fn refresh_tasks(&self, board: &StatusBoard) {
        self.task_state.reset();
        self.task_restarts.reset();
        self.task_progress_age_seconds.reset();
        self.task_trouble_seconds.reset();
        for connector in board.connectors() {
            for (id, task) in &connector.tasks {
                let id = id.to_string();
                let labels = [connector.name.as_str(), id.as_str()];
                for state in State::ALL {
                    let is_current = f64::from(u8::from(state == task.state));
                    self.task_state.with_label_values(&[labels[0], labels[1], state.as_str()]).set(is_current);
                }
                self.task_restarts.with_label_values(&labels).inc_by(task.restarts);
                self.task_progress_age_seconds.with_label_values(&labels).set(task.progress_age.as_secs_f64());
                self.task_trouble_seconds.with_label_values(&labels).set(task.trouble_age.as_secs_f64());
            }
        }
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("registry", &self.registry).finish_non_exhaustive()
    }
}

/// The metrics of one connector. Public fields are counted on directly; the others have a method that keeps them true.
#[derive(Debug)]
pub struct ConnectorMetrics {
    pub records_pulled: IntCounter,
    pub messages_published: IntCounter,
    pub repeats_dropped: IntCounter,
    pub records_held: IntGauge,
    pub archive_gaps: IntCounter,
    pub pull_seconds: Histogram,
    pub unwrap_seconds: Histogram,
    pub decrypt_seconds: Histogram,
    pub commit_seconds: Histogram,
    pub page_limit: IntGauge,
    pub fencings: IntCounter,
    pub media_bytes: IntCounter,
    pub media_fetch_seconds: Histogram,
    /// Of the way to WeCom.
    pub egress: EgressMetrics,
    /// To be told of every page that is pulled, opened or committed, and of every drained poll.
    pub lag: Lag,
    clock: Clock,
    dead_letters: IntCounterVec,
    end_to_end_seconds: Histogram,
    archive_lag_seconds: Gauge,
    oldest_undelivered_age_seconds: Gauge,
    last_pulled_seq: IntGauge,
    last_committed_seq: IntGauge,
    sdk_calls: IntCounterVec,
    sdk_host_restarts: IntCounterVec,
    rate_limit_waits: IntCounter,
    rate_limit_wait_seconds: Counter,
    transactions: IntCounterVec,
    media: IntCounterVec,
    media_in_flight: IntGauge,
    media_oldest_pending_age_seconds: Gauge,
    media_oldest_pending_ms: Mutex<BTreeMap<u32, i64>>,
}

impl ConnectorMetrics {
    fn new(declare: &mut Declare<'_>, clock: Clock) -> Self {
        let metrics = Self {
            records_pulled: declare.counter("records_pulled_total", "Chat records that GetChatData answered."),
            messages_published: declare.counter(
                "messages_published_total",
                "Messages committed to the messages topic. What was pulled and is neither here, nor a dead letter, nor a dropped repeat, is in flight.",
            ),
            repeats_dropped: declare.counter(
                "repeats_dropped_total",
                "Chat records dropped because their seq had been delivered already: WeCom answered them again.",
            ),
            records_held: declare.gauge(
                "records_held",
                "Chat records of the last page that have no seq and no successor with one: they are asked for again until a newer record shows where they belong.",
            ),
            archive_gaps: declare.counter(
                "archive_gaps_total",
                "Times a page began so late that records may have left the window of five days unpulled. Every one is a possible loss.",
            ),
            dead_letters: declare.counters(
                "dead_letters_total",
                &["reason"],
                "Chat records sent to the dead letter topic, by reason. They are kept whole there and can be replayed.",
            ),
            pull_seconds: declare.histogram("pull_seconds", &CALL_BUCKETS, "Duration of one GetChatData call that was answered."),
            unwrap_seconds: declare.histogram(
                "unwrap_seconds",
                &CALL_BUCKETS,
                "Duration of unwrapping the keys (RSA) of one page.",
            ),
            decrypt_seconds: declare.histogram(
                "decrypt_seconds",
                &CALL_BUCKETS,
                "Duration of decrypting one page (DecryptData of each record), with repeats after a crash of the SDK host.",
            ),
            commit_seconds: declare.histogram(
                "commit_seconds",
                &CALL_BUCKETS,
                "Duration of one Kafka transaction that was committed, from its begin to the answer.",
            ),
            end_to_end_seconds: declare.histogram(
                "end_to_end_seconds",
                &END_TO_END_BUCKETS,
                "From a message's msgtime to its commit in Kafka. Messages without a possible msgtime are left out.",
            ),
            last_pulled_seq: declare.gauge("last_pulled_seq", "Highest seq pulled from the archive."),
            last_committed_seq: declare.gauge("last_committed_seq", "seq of the source offset committed in Kafka."),
            archive_lag_seconds: declare.float_gauge(
                "archive_lag_seconds",
                "How far what is committed is behind the archive, at most. 0 when the archive was found drained, all of it is committed and polls go on in time; else the age of the newest message committed or of the last drained poll, whichever is younger; before the first of either, of the oldest message at hand or of the connector's start. Grows while the connector is stuck.",
            ),
            oldest_undelivered_age_seconds: declare.float_gauge(
                "oldest_undelivered_age_seconds",
                "Age of the oldest record not yet delivered, at most: of those at hand by their msgtime, of those not pulled yet as archive_lag_seconds. At archive_window_seconds records begin to be lost; alert long before.",
            ),
            page_limit: declare.gauge(
                "page_limit",
                "Records asked for in one GetChatData call. Below the configured value after WeCom answered 301058 (page too large).",
            ),
            sdk_calls: declare.counters(
                "sdk_calls_total",
                &["function", "code"],
                "Calls of the vendor's library that ended, by function and code: its return code, or the errcode in the answer, 0 for success; crash, hang or killed where the process that made it was lost.",
            ),
            sdk_host_restarts: declare.counters(
                "sdk_host_restarts_total",
                &["reason"],
                "Times the process that holds the vendor's library was replaced, by reason.",
            ),
            rate_limit_waits: declare.counter(
                "rate_limit_waits_total",
                "Calls that waited, for the limiter of calls a minute or because WeCom answered 45009 or 45033.",
            ),
            rate_limit_wait_seconds: declare.float_counter(
                "rate_limit_wait_seconds_total",
                "Time waited in rate_limit_waits_total.",
            ),
            transactions: declare.counters(
                "transactions_total",
                &["result"],
                "Kafka transactions: committed, aborted (nothing of it is visible; done again), unknown (the commit failed or was not answered; the offset is read again).",
            ),
            fencings: declare.counter(
                "fencings_total",
                "Times Kafka fenced this connector's producer because a newer one with the same transactional.id runs.",
            ),
            media: declare.counters(
                "media_total",
                &["status"],
                "Media files by what became of them: stored, expired, failed (each ends in a reference event); deduplicated (of those stored, the ones whose content was there already); retried (attempts that failed and are repeated).",
            ),
            media_bytes: declare.counter("media_bytes_total", "Bytes of media received from WeCom."),
            media_fetch_seconds: declare.histogram(
                "media_fetch_seconds",
                &MEDIA_BUCKETS,
                "Duration of bringing one media file to storage, from its first chunk asked to its last byte stored.",
            ),
            media_in_flight: declare.gauge("media_in_flight", "Media files being fetched at this moment."),
            media_oldest_pending_age_seconds: declare.float_gauge(
                "media_oldest_pending_age_seconds",
                "Age of the oldest media request that was taken up and has no reference event yet; of the oldest one at hand while storage keeps a task from starting; 0 when there is none. At archive_window_seconds the file is lost.",
            ),
            egress: EgressMetrics::new(declare),
            lag: Lag::new(clock.now().unix_ms),
            clock,
            media_oldest_pending_ms: Mutex::default(),
        };
        // Series that exist from the start, at 0: an alert on their increase then sees the first one.
        for status in MediaStatus::ALL {
            metrics.media.with_label_values(&[status.as_str()]);
        }
        for result in TransactionResult::ALL {
            metrics.transactions.with_label_values(&[result.as_str()]);
        }
        metrics
    }

    /// Says which reasons there are, so that the first dead letter of each is an increase from 0.
    pub fn expect_dead_letters(&self, reasons: impl Iterator<Item = &'static str>) {
        for reason in reasons {
            self.dead_letters.with_label_values(&[reason]);
        }
    }

    /// Counts a dead letter. `reason` is the word that also stands in its header: one of a fixed few.
    pub fn dead_letter(&self, reason: &str) {
        self.dead_letters.with_label_values(&[reason]).inc();
    }

    pub fn media(&self, status: MediaStatus) {
        self.media.with_label_values(&[status.as_str()]).inc();
    }

    pub fn transaction(&self, result: TransactionResult) {
        self.transactions.with_label_values(&[result.as_str()]).inc();
    }

    /// `code`: the return code or errcode; for a call without an answer how its host was lost: `crash`, `hang` or `killed`.
    pub fn sdk_call(&self, function: &str, code: impl fmt::Display) {
        self.sdk_calls.with_label_values(&[function, &code.to_string()]).inc();
    }

    /// `reason`: one word out of a fixed few, such as `crash` or `hang`.
    pub fn sdk_host_restart(&self, reason: &str) {
        self.sdk_host_restarts.with_label_values(&[reason]).inc();
    }

    /// A call waited this long for its turn.
    pub fn rate_limit_waited(&self, waited: Duration) {
        self.rate_limit_waits.inc();
        self.rate_limit_wait_seconds.inc_by(waited.as_secs_f64());
    }

    /// A message with this msgtime was committed just now. One of 0 or in the future tells nothing and is left out.
    pub fn delivered(&self, msgtime_ms: i64) {
        let age_ms = self.clock.now().unix_ms - msgtime_ms;
        if msgtime_ms > 0 && age_ms >= 0 {
            self.end_to_end_seconds.observe(age_ms as f64 / 1000.0);
        }
    }

    /// Counts a file as in flight until the answer is dropped.
    pub fn media_started(&self) -> MediaInFlight {
        self.media_in_flight.inc();
        MediaInFlight(self.media_in_flight.clone())
    }

    /// The time (ms since 1970) of the oldest media request that `task` has taken up and not settled; none when all are.
    pub fn media_oldest_pending(&self, task: u32, oldest_ms: Option<i64>) {
        let mut pending = self.media_oldest_pending_ms.lock().unwrap_or_else(PoisonError::into_inner);
        match oldest_ms {
            Some(oldest_ms) => pending.insert(task, oldest_ms),
            None => pending.remove(&task),
        };
    }

    /// The age of the oldest record not yet delivered, as the metric tells it.
    pub fn oldest_undelivered_age(&self) -> Duration {
        let lag = self.lag.read(self.clock.now().unix_ms);
        Duration::try_from_secs_f64(lag.oldest_undelivered_age_seconds).unwrap_or_default()
    }

    /// WeCom told this time just now, milliseconds since 1970.
    pub fn told_time(&self, theirs_ms: i64) {
        let ahead_ms = self.clock.now().unix_ms.saturating_sub(theirs_ms);
        self.egress.clock_ahead_seconds.set(ahead_ms as f64 / 1000.0);
    }

    /// Brings the gauges that are ages up to `now_ms`.
    fn refresh(&self, now_ms: i64) {
        let lag = self.lag.read(now_ms);
        self.archive_lag_seconds.set(lag.archive_lag_seconds);
        self.oldest_undelivered_age_seconds.set(lag.oldest_undelivered_age_seconds);
        self.last_pulled_seq.set(i64::try_from(lag.pulled_seq).unwrap_or(i64::MAX));
        self.last_committed_seq.set(i64::try_from(lag.committed_seq).unwrap_or(i64::MAX));
        let pending = self.media_oldest_pending_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let oldest_ms = pending.values().copied().min().unwrap_or(now_ms);
        self.media_oldest_pending_age_seconds.set((now_ms - oldest_ms).max(0) as f64 / 1000.0);
    }
}

/// One media file in flight; dropped when it is through, in whatever way.
#[derive(Debug)]
pub struct MediaInFlight(IntGauge);

impl Drop for MediaInFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Every metric of this program, by name. The usual `process_…` metrics come on top.
pub fn definitions() -> Vec<Definition> {
    let metrics = Metrics::new(Clock::system());
    let mut declare = Declare::new(&metrics.registry, Some("any"));
    ConnectorMetrics::new(&mut declare, Clock::system());
    let mut definitions = declare.definitions;
    definitions.extend(metrics.definitions.clone());
    definitions.into_values().collect()
}

/// Every metric as a Markdown table.
pub fn reference() -> String {
    let mut table = String::from("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n");
    for Definition { name, kind, labels, help } in definitions() {
        let labels = labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ");
        // Writing to a String can't fail.
        let _ = writeln!(table, "| `{name}` | {kind} | {labels} | {help} |");
    }
    table
}

#[cfg(test)]
mod tests;
