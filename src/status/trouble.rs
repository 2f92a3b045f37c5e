//! What has failed and is not over yet.

use std::time::{Duration, Instant};

use super::State;
use crate::clock::Now;

/// A task that goes on working while its attempts fail may do so for this long before the worker counts as unhealthy: a
/// single attempt that fails is nothing to wake anybody for.
pub const TROUBLE_TOLERANCE: Duration = Duration::from_secs(30);

/// How long trouble is told after the moment at which it should have been met again: what it was met with may have gone
/// to another worker.
pub const TROUBLE_REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// The kind of the task's own work: over with its next progress.
pub(super) const OWN_WORK: &str = "";

/// Failures in a row.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// Of the last one: one or two sentences, what is wrong and what to do.
    pub reason: String,
    pub failures: u64,
    /// When the first one was.
    pub since: Now,
    /// Whether one failure is enough to call the worker unhealthy.
    is_grave: bool,
    /// Whether one of them ended a run of the task.
    has_ended_run: bool,
    /// From here it is not told any more. `None`: for as long as nothing takes it back.
    until: Option<Instant>,
}

impl Trouble {
    /// An attempt failed, and more will follow.
    pub(super) fn of_attempt(reason: String, now: Now) -> Self {
        Self { reason, failures: 1, since: now, is_grave: false, has_ended_run: false, until: None }
    }

    /// A run of the task has ended.
    pub(super) fn of_run(reason: String, now: Now) -> Self {
        Self { is_grave: true, has_ended_run: true, ..Self::of_attempt(reason, now) }
    }

    /// Something beside the task's own work fails, and will be tried again after `next_try`.
    pub(super) fn aside(reason: String, next_try: Duration, now: Now) -> Self {
        let until = now.instant.checked_add(next_try.saturating_add(TROUBLE_REMEMBERED));
        Self { is_grave: true, until, ..Self::of_attempt(reason, now) }
    }

    /// This failure after those before.
    pub(super) fn after(self, before: Option<Self>) -> Self {
        let Some(before) = before else { return self };
        Self {
            failures: before.failures + self.failures,
            since: before.since,
            is_grave: before.is_grave || self.is_grave,
            has_ended_run: before.has_ended_run || self.has_ended_run,
            ..self
        }
    }

    pub fn age(&self, now: Now) -> Duration {
        now.instant.saturating_duration_since(self.since.instant)
    }

    pub(super) fn is_remembered(&self, now: Now) -> bool {
        self.until.is_none_or(|until| now.instant < until)
    }

    /// Whether somebody should hear of it.
    pub(super) fn is_unhealthy(&self, now: Now) -> bool {
        self.is_grave || self.age(now) >= TROUBLE_TOLERANCE
    }

    /// What fails, how often, and since when, of a task that is in this state now.
    pub(super) fn sentence(&self, state: State) -> String {
        // It may have passed: that shows with the next work.
        let is_past = self.has_ended_run && state != State::Failed;
        let before = if is_past { "The last failure: " } else { "" };
        let reason = self.reason.trim_end();
        let stop = if reason.ends_with(['.', '!', '?']) { "" } else { "." };
        let failures = if self.failures == 1 { "1 failure".to_owned() } else { format!("{} failures", self.failures) };
        format!("{before}{reason}{stop} {failures} since {}.", time(self.since.unix_ms))
    }
}

/// A moment for people, UTC to the second.
pub(super) fn time(unix_ms: i64) -> String {
    jiff::Timestamp::from_millisecond(unix_ms).map_or_else(|_| format!("{unix_ms} ms"), |time| format!("{time:.0}"))
}
