//! What runs in this worker and how it fares: the states of connectors and tasks, and the health drawn from them.
//!
//! Tasks write facts here through their [`TaskHandle`]; HTTP answers and metrics are computed from the facts when somebody asks.
//! So a task that hangs cannot leave a healthy answer behind: RUNNING without progress is not healthy.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock::{Clock, Now};

/// The process's own loop ticks about every second; without a tick for this long the process counts as hung.
pub const LIVENESS_TIMEOUT: Duration = Duration::from_secs(30);

/// How long trouble is told after the moment at which it should have been met again: what it was met with may have gone
/// to another worker.
const TROUBLE_REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// Kafka Connect's states of a connector and of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Known, and not yet past its start.
    Unassigned,
    Running,
    Paused,
    Failed,
    Restarting,
    Stopped,
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Unassigned, Self::Running, Self::Paused, Self::Failed, Self::Restarting, Self::Stopped];

    /// The word of Kafka Connect's REST API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unassigned => "UNASSIGNED",
            Self::Running => "RUNNING",
            Self::Paused => "PAUSED",
            Self::Failed => "FAILED",
            Self::Restarting => "RESTARTING",
            Self::Stopped => "STOPPED",
        }
    }

    /// Whether a task in this state is meant to be at work.
    fn wants_progress(self) -> bool {
        !matches!(self, Self::Paused | Self::Stopped)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What is known of a connector or a task at one moment.
#[derive(Debug, Clone)]
pub struct Status {
    pub state: State,
    /// One or two sentences: what is wrong and what to do. With `Running` it is a condition that may pass.
    pub reason: Option<String>,
    /// What has happened and must be known, whatever came after it.
    pub notice: Option<String>,
    /// Troubles that last, each a sentence with since when and how often. Other work goes on beside them.
    pub troubles: Vec<String>,
    /// When the state was entered, in ms since 1970.
    pub since_ms: i64,
    /// When a failed task is tried again by itself, in ms since 1970.
    pub next_attempt_ms: Option<i64>,
    /// How often it was started again.
    pub restarts: u64,
    /// When it last got something done, in ms since 1970; none if never.
    pub last_progress_ms: Option<i64>,
    /// How long it is without progress, counted from the start of work where there was none yet.
    pub progress_age: Duration,
    /// Whether it has been RUNNING once: its start (offset read, group joined) worked.
    pub has_started: bool,
}

impl Status {
    /// The text for Connect's `trace`: the reason, when the next attempt is, and what must be known beside.
    pub fn trace(&self) -> Option<String> {
        let next = self.next_attempt_ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
        let next = next.map(|next| format!("The next attempt is at {next:.0}."));
        let sentences = [self.reason.clone(), next].into_iter().flatten();
        let sentences: Vec<String> = sentences.chain(self.troubles.clone()).chain(self.notice.clone()).collect();
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }
}

/// A connector with its tasks, as [`StatusBoard::connectors`] tells them.
#[derive(Debug, Clone)]
pub struct ConnectorStatus {
    pub name: String,
    pub status: Status,
    pub tasks: BTreeMap<u32, Status>,
}

/// The answer of `/health`, as KIP-1017 tells the cases apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Healthy,
    /// Not past the start, and not for too long.
    Starting(String),
    Unhealthy(String),
}

/// All connectors and tasks of this worker.
#[derive(Debug)]
pub struct StatusBoard {
    clock: Clock,
    task_progress_timeout: Duration,
    facts: Mutex<Facts>,
}

#[derive(Debug)]
struct Facts {
    connectors: BTreeMap<String, (Shared, BTreeMap<u32, Shared>)>,
    all_connectors_known: bool,
    kafka_cluster_id: Option<String>,
    last_tick: Instant,
}

/// An entry is shared by the board and the one handle that writes it: a handle that was replaced can't touch its successor's.
type Shared = Arc<Mutex<Entry>>;

#[derive(Debug)]
struct Entry {
    state: State,
    reason: Option<String>,
    notice: Option<String>,
    troubles: BTreeMap<&'static str, Trouble>,
    since_ms: i64,
    next_attempt_ms: Option<i64>,
    restarts: u64,
    last_progress_ms: Option<i64>,
    /// From here the time without progress counts: the last progress, or when work was first asked for.
    progress_from: Instant,
    has_started: bool,
}

/// Trouble that is told until it is over.
#[derive(Debug)]
struct Trouble {
    reason: String,
    since: Now,
    times: u64,
    /// From here it is not told any more.
    until: Instant,
}

impl Trouble {
    fn sentence(&self, now: Now) -> String {
        let since = jiff::Timestamp::from_millisecond(self.since.unix_ms).unwrap_or_default();
        let age = now.instant.saturating_duration_since(self.since.instant).as_secs();
        let times = if self.times == 1 { "once".to_owned() } else { format!("{} times", self.times) };
        format!("{} (since {since:.0}, {age} s; met {times})", self.reason)
    }
}

impl Entry {
    fn shared(state: State, now: Now) -> Shared {
        Arc::new(Mutex::new(Self {
            state,
            reason: None,
            notice: None,
            troubles: BTreeMap::new(),
            since_ms: now.unix_ms,
            next_attempt_ms: None,
            restarts: 0,
            last_progress_ms: None,
            progress_from: now.instant,
            has_started: false,
        }))
    }

    fn enter(&mut self, state: State, reason: Option<String>, now: Now) {
        if !self.state.wants_progress() && state.wants_progress() {
            self.progress_from = now.instant;
        }
        if self.state != state {
            self.since_ms = now.unix_ms;
        }
        self.restarts += u64::from(state == State::Restarting);
        self.has_started |= state == State::Running;
        if !state.wants_progress() {
            self.troubles.clear();
        }
        (self.state, self.reason, self.next_attempt_ms) = (state, reason, None);
    }

    fn status(&self, now: Now) -> Status {
        Status {
            state: self.state,
            reason: self.reason.clone(),
            notice: self.notice.clone(),
            troubles: self
                .troubles
                .values()
                .filter(|trouble| now.instant < trouble.until)
                .map(|trouble| trouble.sentence(now))
                .collect(),
            since_ms: self.since_ms,
            next_attempt_ms: self.next_attempt_ms,
            restarts: self.restarts,
            last_progress_ms: self.last_progress_ms,
            progress_age: now.instant.saturating_duration_since(self.progress_from),
            has_started: self.has_started,
        }
    }
}

impl StatusBoard {
    /// `task_progress_timeout`: a task that is meant to work and gets nothing done for longer makes the worker unhealthy.
    pub fn new(clock: Clock, task_progress_timeout: Duration) -> Arc<Self> {
        let facts = Facts {
            connectors: BTreeMap::new(),
            all_connectors_known: false,
            kafka_cluster_id: None,
            last_tick: clock.now().instant,
        };
        Arc::new(Self { clock, task_progress_timeout, facts: Mutex::new(facts) })
    }

    /// Puts a connector on the board: RUNNING, as in Connect, before its tasks are. A name that is already there is started anew.
    pub fn connector(self: &Arc<Self>, name: &str) -> ConnectorHandle {
        let entry = Entry::shared(State::Running, self.clock.now());
        self.facts().connectors.insert(name.to_owned(), (entry.clone(), BTreeMap::new()));
        ConnectorHandle { board: self.clone(), name: name.to_owned(), entry }
    }

    /// Says that every connector this worker starts with is on the board with its tasks. Before that it isn't ready.
    pub fn all_connectors_known(&self) {
        self.facts().all_connectors_known = true;
    }

    pub fn set_kafka_cluster_id(&self, id: impl Into<String>) {
        self.facts().kafka_cluster_id = Some(id.into());
    }

    pub fn kafka_cluster_id(&self) -> Option<String> {
        self.facts().kafka_cluster_id.clone()
    }

    /// To be called about every second by the loop that supervises the tasks.
    pub fn tick(&self) {
        self.facts().last_tick = self.clock.now().instant;
    }

    /// Everything on the board, in order of name.
    pub fn connectors(&self) -> Vec<ConnectorStatus> {
        let now = self.clock.now();
        let facts = self.facts();
        let connectors = facts.connectors.iter();
        connectors
            .map(|(name, (entry, tasks))| ConnectorStatus {
                name: name.clone(),
                status: lock(entry).status(now),
                tasks: tasks.iter().map(|(id, task)| (*id, lock(task).status(now))).collect(),
            })
            .collect()
    }

    /// Unhealthy if a connector or task is FAILED, or a task has trouble that lasts, or one that is meant to work has
    /// got nothing done for longer than the timeout.
    pub fn health(&self) -> Health {
        let connectors = self.connectors();
        let mut problems = Vec::new();
        for connector in &connectors {
            if connector.status.state == State::Failed {
                problems.push(describe(&format!("connector {}", connector.name), &connector.status));
            }
            for (id, task) in &connector.tasks {
                let name = format!("task {}-{id}", connector.name);
                if task.state == State::Failed || (!task.troubles.is_empty() && !self.is_stuck(task)) {
                    problems.push(describe(&name, task));
                } else if self.is_stuck(task) {
                    let age = task.progress_age.as_secs();
                    problems.push(format!("{} It has made no progress for {age} s.", describe(&name, task)));
                }
            }
        }
        if !problems.is_empty() {
            return Health::Unhealthy(problems.join(" "));
        }
        self.readiness_of(&connectors).map_or_else(Health::Starting, |()| Health::Healthy)
    }

    fn is_stuck(&self, task: &Status) -> bool {
        task.state.wants_progress() && task.progress_age > self.task_progress_timeout
    }

    /// Ready once every task that is meant to work has been past its start. The error names what is still missing.
    pub fn readiness(&self) -> Result<(), String> {
        self.readiness_of(&self.connectors())
    }

    fn readiness_of(&self, connectors: &[ConnectorStatus]) -> Result<(), String> {
        if !self.facts().all_connectors_known {
            return Err("Worker is still starting up: not all of its connectors are started.".to_owned());
        }
        let waiting = connectors.iter().flat_map(|connector| {
            let tasks = connector.tasks.iter().filter(|(_, task)| task.state.wants_progress() && !task.has_started);
            tasks.map(|(id, task)| describe(&format!("task {}-{id}", connector.name), task))
        });
        let waiting: Vec<String> = waiting.collect();
        if waiting.is_empty() { Ok(()) } else { Err(format!("Worker is still starting up. {}", waiting.join(" "))) }
    }

    /// Alive as long as the process's own loop ticks. The error says for how long it hasn't.
    pub fn liveness(&self) -> Result<(), String> {
        let age = self.clock.now().instant.saturating_duration_since(self.facts().last_tick);
        if age <= LIVENESS_TIMEOUT {
            return Ok(());
        }
        Err(format!(
            "The worker's own loop has not run for {} s: the process hangs and should be restarted.",
            age.as_secs()
        ))
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }
}

/// A panic elsewhere must not take the health answer with it: what is locked here are plain values, valid at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn describe(name: &str, status: &Status) -> String {
    match status.trace() {
        Some(trace) => format!("{name} is {}: {trace}", status.state),
        None => format!("{name} is {}.", status.state),
    }
}

/// Writes one connector's state.
#[derive(Debug)]
pub struct ConnectorHandle {
    board: Arc<StatusBoard>,
    name: String,
    entry: Shared,
}

impl ConnectorHandle {
    /// Puts a task on the board, UNASSIGNED until it says [`TaskHandle::running`].
    pub fn task(&self, id: u32) -> TaskHandle {
        let clock = self.board.clock.clone();
        let entry = Entry::shared(State::Unassigned, clock.now());
        if let Some((_, tasks)) = self.board.facts().connectors.get_mut(&self.name) {
            tasks.insert(id, entry.clone());
        }
        TaskHandle { clock, entry }
    }

    pub fn running(&self) {
        self.enter(State::Running, None);
    }

    pub fn paused(&self) {
        self.enter(State::Paused, None);
    }

    pub fn stopped(&self) {
        self.enter(State::Stopped, None);
    }

    /// The tasks that say that they run and have got nothing done for longer than the timeout, and for how long.
    pub fn stuck(&self) -> Vec<(u32, Duration)> {
        let now = self.board.clock.now();
        let facts = self.board.facts();
        let tasks = facts.connectors.get(&self.name).into_iter().flat_map(|(_, tasks)| tasks);
        tasks
            .map(|(id, task)| (*id, lock(task).status(now)))
            .filter(|(_, task)| task.state == State::Running && self.board.is_stuck(task))
            .map(|(id, task)| (id, task.progress_age))
            .collect()
    }

    /// Something about the connector that somebody should look at while it runs; `None` takes it back.
    pub fn warn(&self, notice: Option<String>) {
        lock(&self.entry).notice = notice;
    }

    /// The connector as a whole can't run: `reason` says what is wrong and what to do.
    pub fn failed(&self, reason: impl Into<String>) {
        self.enter(State::Failed, Some(reason.into()));
    }

    fn enter(&self, state: State, reason: Option<String>) {
        lock(&self.entry).enter(state, reason, self.board.clock.now());
    }
}

/// Writes one task's state. Lives as long as the task, through its restarts.
///
/// Dropped while the task counts as working (a panic, a future thrown away) it turns the task FAILED: nothing that has ended shows
/// as RUNNING. A task that ends in order says [`TaskHandle::stopped`] first.
#[derive(Debug)]
pub struct TaskHandle {
    clock: Clock,
    entry: Shared,
}

impl TaskHandle {
    /// The start is done: the offset is read, or the group is joined. Takes a condition or failure back.
    pub fn running(&self) {
        self.enter(State::Running, None);
    }

    /// Something got done. For the message task: a pull was answered *and* what it brought is committed, or the archive was found
    /// drained. For a media task: a chunk was stored, references were committed, or the group answered that nothing waits.
    ///
    /// Takes back a condition told with [`TaskHandle::degraded`].
    pub fn progress(&self) {
        self.update(|task, now| {
            (task.last_progress_ms, task.progress_from) = (Some(now.unix_ms), now.instant);
            if task.state == State::Running {
                task.reason = None;
            }
        });
    }

    /// RUNNING, but under a condition that may pass or may need somebody: `reason` says which, since when, and what to look at.
    pub fn degraded(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.update(|task, _| task.reason = Some(reason));
    }

    /// Trouble beside which other work goes on and takes nothing back: told, with since when and how often, until
    /// [`TaskHandle::trouble_is_over`] says so of the same `kind`. Also told no more some time after `next_try`, by
    /// when it should have been met again.
    pub fn trouble(&self, kind: &'static str, reason: impl Into<String>, next_try: Duration) {
        let reason = reason.into();
        self.update(|task, now| {
            let until = now.instant + next_try + TROUBLE_REMEMBERED;
            let before = task.troubles.get(kind).filter(|before| now.instant < before.until);
            let (since, times) = before.map_or((now, 0), |before| (before.since, before.times));
            task.troubles.insert(kind, Trouble { reason, since, times: times + 1, until });
        });
    }

    /// See [`TaskHandle::trouble`].
    pub fn trouble_is_over(&self, kind: &'static str) {
        self.update(|task, _| drop(task.troubles.remove(kind)));
    }

    /// Something that must be known until this worker ends, also when all is well again. The newest one counts.
    pub fn notice(&self, notice: impl Into<String>) {
        let notice = notice.into();
        self.update(|task, _| task.notice = Some(notice));
    }

    /// Stopped by a cause that waiting alone will hardly cure: `reason` says what is wrong and what to change.
    /// With `next_attempt` it is tried again by itself after that time.
    pub fn failed(&self, reason: impl Into<String>, next_attempt: Option<Duration>) {
        let reason = reason.into();
        self.update(|task, now| {
            task.enter(State::Failed, Some(reason), now);
            task.next_attempt_ms = next_attempt
                .map(|delay| now.unix_ms.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)));
        });
    }

    /// Another start begins; counted.
    pub fn restarting(&self) {
        self.enter(State::Restarting, None);
    }

    pub fn paused(&self) {
        self.enter(State::Paused, None);
    }

    pub fn stopped(&self) {
        self.enter(State::Stopped, None);
    }

    fn enter(&self, state: State, reason: Option<String>) {
        self.update(|task, now| task.enter(state, reason, now));
    }

    fn update(&self, change: impl FnOnce(&mut Entry, Now)) {
        change(&mut lock(&self.entry), self.clock.now());
    }
}

impl Drop for TaskHandle {
    fn drop(&mut self) {
        self.update(|task, now| {
            if matches!(task.state, State::Unassigned | State::Running | State::Restarting) {
                let reason = "The task ended without a cause, which is a defect of this program: see the log, restart the worker.";
                task.enter(State::Failed, Some(reason.to_owned()), now);
            }
        });
    }
}

#[cfg(test)]
mod tests;
