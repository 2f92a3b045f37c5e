//! A task that waits for Kafka says so at once, with the reason that Kafka's client gives.

use std::pin::pin;
use std::time::{Duration, Instant};

use super::ConnectorContext;
use crate::status::TaskHandle;

const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Longer than any answer of a broker that is well.
const SILENCE: Duration = Duration::from_secs(10);

/// Waits for an answer of Kafka. Meanwhile the status tells what its client complains of, and after ten seconds that there is none.
/// What is told counts until the task gets something done.
pub(super) async fn tell_while_waiting<T>(
    context: &ConnectorContext,
    status: &TaskHandle,
    answer: impl Future<Output = T>,
) -> T {
    let mut answer = pin!(answer);
    let since = Instant::now();
    let mut told = None;
    loop {
        if let Ok(answer) = tokio::time::timeout(LOOK_INTERVAL, &mut answer).await {
            return answer;
        }
        let reason = match context.clients.complaints.since(since) {
            Some(complaint) => format!("Waiting for Kafka: {}.", complaint.reason),
            None if since.elapsed() > SILENCE => {
                "Waiting for Kafka, which has not answered for ten seconds.".to_owned()
            }
            None => continue,
        };
        if told.as_ref() != Some(&reason) {
            status.degraded(reason.clone());
            told = Some(reason);
        }
    }
}
