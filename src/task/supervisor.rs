//! Supervision: a task that fails is started again by itself, after a pause that grows, and visibly.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::{ConnectorContext, TaskError, media_task, message_task};
use crate::status::TaskHandle;
use crate::system;

/// The vendor keeps records for five days: trying again must not take long.
const CONFIGURATION_PAUSE_MIN: Duration = Duration::from_secs(30);
const CONFIGURATION_PAUSE_MAX: Duration = Duration::from_secs(300);

const TRANSIENT_PAUSE_MIN: Duration = Duration::from_millis(500);

/// A run this long was a good one: the next failure is a new one.
const GOOD_RUN: Duration = Duration::from_secs(60);

/// Why a task is not started again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It was told to end.
    Shutdown,
    /// See [`TaskError::Fenced`].
    Fenced,
    /// See [`TaskError::Intolerable`].
    Intolerable,
}

/// The pauses where somebody has to change something.
pub fn configuration_pauses() -> Backoff {
    Backoff::new(CONFIGURATION_PAUSE_MIN, CONFIGURATION_PAUSE_MAX)
}

/// Runs a task, again and again, until `shutdown` or until it must not be started again.
pub async fn supervise(
    context: Arc<ConnectorContext>,
    task: u32,
    status: TaskHandle,
    shutdown: CancellationToken,
) -> Ended {
    let connector = context.config.name.clone();
    let status = Arc::new(status);
    let transient_max = Duration::from_millis(context.config.errors_retry_delay_max_ms).max(TRANSIENT_PAUSE_MIN);
    let mut transient = Backoff::new(TRANSIENT_PAUSE_MIN, transient_max);
    let mut configuration = configuration_pauses();
    loop {
        let started = Instant::now();
        // In a task of its own: a panic in it is an error like any other.
        let run = tokio::spawn({
            let (context, status, shutdown) = (context.clone(), status.clone(), shutdown.clone());
            async move {
                match task {
                    message_task::TASK => message_task::run(&context, &status, shutdown).await,
                    task => media_task::run(&context, task, &status, shutdown).await,
                }
            }
        });
        let error = match run.await {
            Ok(Ok(())) => {
                status.stopped();
                return Ended::Shutdown;
            }
            Ok(Err(error)) => error,
            Err(_) => TaskError::Transient("the task panicked: please report this with the log".into()),
        };
        let error = blame_system(error);
        if started.elapsed() > GOOD_RUN {
            transient.reset();
            configuration.reset();
        }
        let pause = match &error {
            TaskError::Transient(_) => transient.next_delay(),
            TaskError::Configuration(_) => configuration.next_delay(),
            TaskError::Fenced(_) | TaskError::Intolerable(_) => {
                tracing::error!(connector, task, %error, "the task has failed and is not started again");
                status.failed(error.to_string(), None);
                return if matches!(error, TaskError::Fenced(_)) { Ended::Fenced } else { Ended::Intolerable };
            }
        };
        tracing::error!(connector, task, %error, pause_ms = pause.as_millis() as u64, "the task has failed and will be started again");
        status.failed(error.to_string(), Some(pause));
        tokio::select! {
            () = tokio::time::sleep(pause) => status.restarting(),
            () = shutdown.cancelled() => {
                status.stopped();
                return Ended::Shutdown;
            }
        }
    }
}

/// Without room for a thread or a file anything may fail, and says something else: the lack is the cause.
fn blame_system(error: TaskError) -> TaskError {
    match (system::check_room(), error) {
        (Err(lack), TaskError::Transient(error) | TaskError::Configuration(error)) => {
            TaskError::Transient(format!("{lack}. What failed by it: {error}"))
        }
        (_, error) => error,
    }
}
