//! What runs in this worker and how it fares: the states of connectors and tasks, and the health drawn from them.
//!
//! Tasks write facts here through their [`TaskHandle`]; HTTP answers and metrics are computed from the facts when somebody asks.
//! So a task that hangs cannot leave a healthy answer behind: RUNNING without progress is not healthy.

mod trouble;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use self::trouble::TROUBLE_TOLERANCE;

use self::trouble::{OWN_WORK, Trouble, time};
use crate::clock::{Clock, Now};

/// The process's own loop ticks about every second; without a tick for this long the process counts as hung.
pub const LIVENESS_TIMEOUT: Duration = Duration::from_secs(30);

/// Of a task.
const NOTICES_MAX: usize = 20;

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
    /// What fails or has failed, until that is over: a sentence each, with since when and how often.
    pub troubles: Vec<String>,
    /// Since the first failure of the oldest of them; zero where there is none.
    pub trouble_age: Duration,
    /// Whether somebody should hear of one of them.
    pub is_failing: bool,
    /// With `Running`: what is as it is for the moment, and no failure.
    pub condition: Option<String>,
    /// What has happened and must be known, whatever came after it.
    pub notice: Option<String>,
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
    /// The text for Connect's `trace`: what fails, since when and how often, when the next attempt is, and what must be
    /// known beside.
    pub fn trace(&self) -> Option<String> {
        let next = self.next_attempt_ms.map(|ms| format!("The next attempt is at {}.", time(ms)));
        let after = [self.condition.clone(), next, self.notice.clone()].into_iter().flatten();
        let sentences: Vec<String> = self.troubles.iter().cloned().chain(after).collect();
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
    /// By kind.
    troubles: BTreeMap<&'static str, Trouble>,
    condition: Option<String>,
    notices: Vec<String>,
    since_ms: i64,
    next_attempt_ms: Option<i64>,
    restarts: u64,
    last_progress_ms: Option<i64>,
    /// From here the time without progress counts: the last progress, or when work was first asked for.
    progress_from: Instant,
    has_started: bool,
}

impl Entry {
    fn shared(state: State, now: Now) -> Shared {
        Arc::new(Mutex::new(Self {
            state,
            troubles: BTreeMap::new(),
            condition: None,
            notices: Vec::new(),
            since_ms: now.unix_ms,
            next_attempt_ms: None,
            restarts: 0,
            last_progress_ms: None,
            progress_from: now.instant,
            has_started: false,
        }))
    }

    fn enter(&mut self, state: State, now: Now) {
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
        (self.state, self.condition, self.next_attempt_ms) = (state, None, None);
    }

    fn meet(&mut self, kind: &'static str, trouble: Trouble, now: Now) {
        let before = self.troubles.remove(kind).filter(|before| before.is_remembered(now));
        self.troubles.insert(kind, trouble.after(before));
    }

    fn status(&self, now: Now) -> Status {
        let troubles = || self.troubles.values().filter(|trouble| trouble.is_remembered(now));
        Status {
            state: self.state,
            troubles: troubles().map(|trouble| trouble.sentence(self.state)).collect(),
            trouble_age: troubles().map(|trouble| trouble.age(now)).max().unwrap_or_default(),
            is_failing: troubles().any(|trouble| trouble.is_unhealthy(now)),
            condition: self.condition.clone(),
            notice: (!self.notices.is_empty()).then(|| self.notices.join(" ")),
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

    /// Unhealthy if a connector is FAILED; if a task is, or has been and has got nothing done since; if its attempts
    /// fail for [`TROUBLE_TOLERANCE`]; if it has trouble aside; or if it is meant to work and has got nothing done for
    /// longer than the timeout.
    pub fn health(&self) -> Health {
        let connectors = self.connectors();
        let mut problems = Vec::new();
        for connector in &connectors {
            if connector.status.state == State::Failed {
                problems.push(describe(&format!("connector {}", connector.name), &connector.status));
            }
            for (id, task) in &connector.tasks {
                let name = format!("task {}-{id}", connector.name);
                if task.is_failing {
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
        self.update(|connector, now| {
            connector.enter(State::Running, now);
            connector.troubles.clear();
        });
    }

    pub fn paused(&self) {
        self.update(|connector, now| connector.enter(State::Paused, now));
    }

    pub fn stopped(&self) {
        self.update(|connector, now| connector.enter(State::Stopped, now));
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
        lock(&self.entry).notices = notice.into_iter().collect();
    }

    /// The connector as a whole can't run: `reason` says what is wrong and what to do.
    pub fn failed(&self, reason: impl Into<String>) {
        self.update(|connector, now| {
            connector.enter(State::Failed, now);
            connector.meet(OWN_WORK, Trouble::of_run(reason.into(), now), now);
        });
    }

    fn update(&self, change: impl FnOnce(&mut Entry, Now)) {
        change(&mut lock(&self.entry), self.board.clock.now());
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
    /// The start is done: the offset is read, or the group is joined. What failed before stays until there is progress.
    pub fn running(&self) {
        self.update(|task, now| task.enter(State::Running, now));
    }

    /// Something got done. For the message task: a pull was answered *and* what it brought is committed, or the archive
    /// was found drained. For a media task: a chunk was brought, references were committed, or the group answered that
    /// nothing waits.
    ///
    /// Takes back what failed before, and a condition.
    pub fn progress(&self) {
        self.update(|task, now| {
            (task.last_progress_ms, task.progress_from) = (Some(now.unix_ms), now.instant);
            task.condition = None;
            task.troubles.remove(OWN_WORK);
        });
    }

    /// An attempt failed, and the task goes on by itself: `reason` says what is wrong and what to look at. Since when
    /// and how often is told beside it.
    pub fn degraded(&self, reason: impl Into<String>) {
        let reason = reason.into();
        self.update(|task, now| task.meet(OWN_WORK, Trouble::of_attempt(reason, now), now));
    }

    /// Trouble beside which other work goes on and takes nothing back: told until [`TaskHandle::trouble_is_over`] says
    /// so of the same `kind`. Also told no more some time after `next_try`, by when it should have been met again.
    pub fn trouble(&self, kind: &'static str, reason: impl Into<String>, next_try: Duration) {
        let reason = reason.into();
        self.update(|task, now| task.meet(kind, Trouble::aside(reason, next_try, now), now));
    }

    /// See [`TaskHandle::trouble`].
    pub fn trouble_is_over(&self, kind: &'static str) {
        self.update(|task, _| drop(task.troubles.remove(kind)));
    }

    /// RUNNING, and nothing has failed, but somebody should know that this is so. Until the next progress.
    pub fn condition(&self, condition: impl Into<String>) {
        let condition = condition.into();
        self.update(|task, _| task.condition = Some(condition));
    }

    /// Something that must be known until this worker ends, also when all is well again. What is said again is told once;
    /// of very many the newest are told.
    pub fn notice(&self, notice: impl Into<String>) {
        let notice = notice.into();
        self.update(|task, _| {
            task.notices.retain(|known| *known != notice);
            task.notices.push(notice);
            let too_many = task.notices.len().saturating_sub(NOTICES_MAX);
            task.notices.drain(..too_many);
        });
    }

    /// The run has ended: `reason` says what is wrong and what to change. With `next_attempt` it is tried again by
    /// itself after that time.
    pub fn failed(&self, reason: impl Into<String>, next_attempt: Option<Duration>) {
        let reason = reason.into();
        self.update(|task, now| {
            task.enter(State::Failed, now);
            task.meet(OWN_WORK, Trouble::of_run(reason, now), now);
            task.next_attempt_ms = next_attempt
                .map(|delay| now.unix_ms.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX)));
        });
    }

    /// Another start begins; counted. The last failure stays.
    pub fn restarting(&self) {
        self.update(|task, now| task.enter(State::Restarting, now));
    }

    pub fn paused(&self) {
        self.update(|task, now| task.enter(State::Paused, now));
    }

    pub fn stopped(&self) {
        self.update(|task, now| task.enter(State::Stopped, now));
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
                task.enter(State::Failed, now);
                task.meet(OWN_WORK, Trouble::of_run(reason.to_owned(), now), now);
            }
        });
    }
}

#[cfg(test)]
mod tests;
