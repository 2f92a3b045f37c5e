//! One connector of this worker: its start, which is tried again for as long as it takes, and its tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::{ConnectorConfig, WorkerConfig};
use crate::metrics::{ARCHIVE_WINDOW_SECONDS, Metrics};
use crate::status::{ConnectorHandle, StatusBoard, TaskHandle};
use crate::system;
use crate::task::ConnectorContext;
use crate::task::limiter::RateLimiters;
use crate::task::supervisor::{self, Ended};

/// What all connectors of a worker share.
#[derive(Clone)]
pub struct Shared {
    pub worker: Arc<WorkerConfig>,
    pub metrics: Arc<Metrics>,
    pub limiters: Arc<RateLimiters>,
    pub clock: Clock,
    pub board: Arc<StatusBoard>,
}

impl Shared {
    /// Reads keys and opens storage; nothing is connected yet.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub fn prepare(&self, config: ConnectorConfig) -> anyhow::Result<ConnectorContext> {
        ConnectorContext::new(self.worker.clone(), config, &self.metrics, &self.limiters, self.clock.clone())
    }
}

/// A connector on the board, with its tasks, before any of them runs.
pub struct Connector {
    config: ConnectorConfig,
    shared: Shared,
    status: ConnectorHandle,
    tasks: Vec<TaskHandle>,
}

impl Connector {
    pub fn new(config: ConnectorConfig, shared: Shared) -> Self {
        let status = shared.board.connector(&config.name);
        let tasks = if config.media_enable { config.tasks_max } else { 1 };
        let tasks = (0..tasks).map(|task| status.task(task)).collect();
        Self { config, shared, status, tasks }
    }

    /// Runs all tasks. When one of them must not go on, none does.
    ///
    /// `prepared` is the first answer of [`Shared::prepare`]. Where that was an error, the connector is FAILED with the reason and
    /// asks again, with the pauses of a task that somebody has to change something for.
    pub async fn run(self, prepared: anyhow::Result<ConnectorContext>, shutdown: CancellationToken) -> Ended {
        let Some(context) = shutdown.run_until_cancelled(self.start(prepared)).await else {
            self.tasks.iter().for_each(TaskHandle::stopped);
            self.status.stopped();
            return Ended::Shutdown;
        };
        let mut running = JoinSet::new();
        for (task, status) in (0..).zip(self.tasks) {
            running.spawn(supervisor::supervise(context.clone(), task, status, shutdown.clone()));
        }
        let mut first = Ended::Shutdown;
        let mut alarms = Alarms { context: &context, status: &self.status, are_raised: [false; 4] };
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            let joined = tokio::select! {
                joined = running.join_next() => joined,
                _ = tick.tick() => {
                    alarms.check();
                    continue;
                }
            };
            let Some(joined) = joined else { break };
            match joined {
                Ok(Ended::Shutdown) => {}
                Ok(end) => {
                    self.status.failed("one of its tasks must not go on; see there");
                    first = end;
                    shutdown.cancel();
                }
                Err(error) => tracing::error!(%error, "a task's supervision ended"),
            }
        }
        if first == Ended::Shutdown {
            self.status.stopped();
        }
        first
    }

    async fn start(&self, mut prepared: anyhow::Result<ConnectorContext>) -> Arc<ConnectorContext> {
        let connector = &self.config.name;
        let mut pauses = supervisor::configuration_pauses();
        loop {
            let error = match prepared {
                Ok(context) => {
                    self.status.running();
                    return Arc::new(context);
                }
                Err(error) => error,
            };
            let pause = pauses.next_delay();
            tracing::error!(connector, %error, pause_ms = pause.as_millis() as u64, "the connector cannot be started and will be tried again");
            self.status.failed(error.to_string());
            for task in &self.tasks {
                task.failed("Its connector cannot be started; see there.", Some(pause));
            }
            tokio::time::sleep(pause).await;
            self.tasks.iter().for_each(TaskHandle::restarting);
            prepared = self.shared.prepare(self.config.clone());
        }
    }
}

/// How wrong a clock may be. An S3 server takes a quarter of an hour, a Kafka broker an hour.
const CLOCK_WRONG_SECONDS: f64 = 300.0;

/// Warns before records are lost: WeCom deletes them after five days, delivered or not, and Kafka by the times that they are given
/// here. And finds tasks that say that they run and do nothing, and a system that has no room for what they need.
struct Alarms<'a> {
    context: &'a ConnectorContext,
    status: &'a ConnectorHandle,
    are_raised: [bool; 4],
}

impl Alarms<'_> {
    fn check(&mut self) {
        let connector = &self.context.config.name;
        let lack = system::check_room().err().map(|lack| format!("{lack}. Work that needs one waits."));
        let warnings = [self.age(), self.clock(), self.stuck(), lack];
        let passed = [
            "the connector has caught up",
            "the clock is right again",
            "every task makes progress again",
            "there is room for threads and files again",
        ];
        for ((warning, is_raised), passed) in warnings.iter().zip(&mut self.are_raised).zip(passed) {
            let was_raised = std::mem::replace(is_raised, warning.is_some());
            match warning {
                Some(warning) if !was_raised => tracing::warn!(connector, "{warning}"),
                None if was_raised => tracing::info!(connector, "{passed}"),
                _ => {}
            }
        }
        let warnings: Vec<String> = warnings.into_iter().flatten().collect();
        self.status.warn((!warnings.is_empty()).then(|| warnings.join(" ")));
    }

    fn age(&self) -> Option<String> {
        let age = self.context.metrics.oldest_undelivered_age();
        let limit = Duration::from_millis(self.context.config.undelivered_age_warning_ms);
        (age >= limit).then(|| {
            format!(
                "The oldest record not yet delivered is {} s old; WeCom deletes it after {ARCHIVE_WINDOW_SECONDS} s. See why the \
                 message task does not keep up.",
                age.as_secs()
            )
        })
    }

    fn stuck(&self) -> Option<String> {
        let stuck = self.status.stuck();
        let tasks = stuck.iter().map(|(task, age)| format!("task {task} has done nothing for {} s", age.as_secs()));
        let tasks: Vec<String> = tasks.collect();
        (!tasks.is_empty()).then(|| format!("RUNNING without progress: {}. See the log.", tasks.join(", ")))
    }

    fn clock(&self) -> Option<String> {
        let ahead = self.context.metrics.egress.clock_ahead_seconds.get();
        let wrong = if ahead > 0.0 { "ahead of" } else { "behind" };
        (ahead.abs() >= CLOCK_WRONG_SECONDS).then(|| {
            format!(
                "This machine's clock is {:.0} s {wrong} WeCom's: set it. Ages are wrong, and Kafka may delete messages early or refuse \
                 them.",
                ahead.abs()
            )
        })
    }
}
