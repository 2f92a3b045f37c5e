//! What a media task has taken up and not committed yet: per partition, in the order of the offsets.
//!
//! Files finish in any order. A partition's committed offset moves over those that are finished up to the first that is not, so
//! that after a restart each request is worked on again whose end is not visible, and no other.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::archive::MediaRequest;
use crate::kafka::OutgoingRecord;
use crate::kafka::group::Partition;
use crate::metrics::MediaStatus;

/// How far the reading of a partition runs ahead of its first unfinished file: what one slow file can hold up, and what is held
/// of a partition, a few kilobytes each. Among so many the ones that are due are found, in whatever order they stand.
const ENTRIES_MAX: usize = 256;

/// What became of a request: a record, to be committed with the request's offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    pub record: OutgoingRecord,
    pub end: End,
}

/// What the record says, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Media {
        status: MediaStatus,
        deduplicated: bool,
    },
    /// The request could not be read.
    DeadLetter,
    /// Nothing: the request stands behind others now. See [`Window::in_the_way`].
    PutBack,
}

impl End {
    /// Whether somebody waits for it: it is no request again.
    fn is_final(self) -> bool {
        !matches!(self, Self::PutBack | Self::Media { status: MediaStatus::Retried, .. })
    }
}

/// A request to be worked on now.
#[derive(Debug)]
pub struct Job {
    pub ticket: Ticket,
    pub request: MediaRequest,
    /// Cancelled when the result is of no more use.
    pub stop: CancellationToken,
}

/// Names a request in the window. Says nothing any more once its partition was lost, even if it came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    partition: Partition,
    claim: u64,
    offset: i64,
}

#[derive(Debug, Default)]
pub struct Window {
    partitions: BTreeMap<Partition, Claimed>,
    claims: u64,
}

/// A partition for as long as it is ours.
#[derive(Debug)]
struct Claimed {
    claim: u64,
    stop: CancellationToken,
    entries: VecDeque<Entry>,
    is_paused: bool,
}

#[derive(Debug)]
struct Entry {
    offset: i64,
    /// When the file came to WeCom, as far as is known; `None` where there is no file.
    dated_ms: Option<i64>,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Not to be tried before `due`.
    Waiting {
        request: Box<MediaRequest>,
        due: Instant,
    },
    Working {
        is_repeat: bool,
    },
    Settled(Box<Settled>),
}

impl State {
    /// A request that is waited for no longer.
    fn begin(&mut self) -> Option<MediaRequest> {
        let Self::Waiting { request, .. } = self else { return None };
        let working = Self::Working { is_repeat: request.attempts > 0 };
        match std::mem::replace(self, working) {
            Self::Waiting { request, .. } => Some(*request),
            _ => None,
        }
    }
}

impl Window {
    pub fn gained(&mut self, partition: Partition) {
        self.claims += 1;
        let claimed =
            Claimed { claim: self.claims, stop: CancellationToken::new(), entries: VecDeque::new(), is_paused: false };
        if let Some(before) = self.partitions.insert(partition, claimed) {
            before.stop.cancel();
        }
    }

    /// Forgets the partition; what is at work on it is called off.
    pub fn lost(&mut self, partition: &Partition) {
        if let Some(claimed) = self.partitions.remove(partition) {
            claimed.stop.cancel();
        }
    }

    /// As [`Window::lost`], for all.
    pub fn lost_all(&mut self) {
        for (_, claimed) in std::mem::take(&mut self.partitions) {
            claimed.stop.cancel();
        }
    }

    /// Takes up a request, which is not to be tried before `due`. One of a partition that is not ours is dropped: whose it is reads
    /// it too.
    pub fn take(&mut self, partition: &Partition, offset: i64, request: MediaRequest, due: Instant) {
        let dated_ms = Some(request.dated_ms());
        self.push(partition, Entry { offset, dated_ms, state: State::Waiting { request: Box::new(request), due } });
    }

    /// Takes up a record that needs no work.
    pub fn take_settled(&mut self, partition: &Partition, offset: i64, settled: Settled) {
        self.push(partition, Entry { offset, dated_ms: None, state: State::Settled(Box::new(settled)) });
    }

    fn push(&mut self, partition: &Partition, entry: Entry) {
        if let Some(claimed) = self.partitions.get_mut(partition) {
            claimed.entries.push_back(entry);
        }
    }

    /// Of the requests that are due, the one whose file is lost first. Files that failed before get at most half of the `slots`
    /// while others wait for their first try, and leave one for those that are yet to come: a file that fails for days must not
    /// hold up one that would come at once.
    pub fn next_job(&mut self, now: Instant, slots: usize) -> Option<Job> {
        let (mut repeats, mut first_tries_wait) = (0, false);
        for entry in self.partitions.values().flat_map(|claimed| &claimed.entries) {
            match &entry.state {
                State::Working { is_repeat } => repeats += usize::from(*is_repeat),
                State::Waiting { request, due } => first_tries_wait |= request.attempts == 0 && *due <= now,
                State::Settled(_) => {}
            }
        }
        let repeats_max = if first_tries_wait { slots / 2 } else { slots.saturating_sub(1).max(1) };
        let due = self.partitions.iter_mut().flat_map(|(partition, claimed)| {
            let (claim, stop) = (claimed.claim, &claimed.stop);
            claimed.entries.iter_mut().filter_map(move |entry| match &entry.state {
                State::Waiting { request, due } if *due <= now && (request.attempts == 0 || repeats < repeats_max) => {
                    Some((request.deadline_ms, partition, claim, stop, entry))
                }
                _ => None,
            })
        });
        let (_, partition, claim, stop, entry) = due.min_by_key(|&(deadline_ms, ..)| deadline_ms)?;
        let ticket = Ticket { partition: partition.clone(), claim, offset: entry.offset };
        Some(Job { ticket, request: entry.state.begin()?, stop: stop.clone() })
    }

    /// Requests that are not due and stand before finished ones, to be settled by being put back as they are: what is finished
    /// would have to wait for them. For the sake of requests that are put back themselves no more is moved than is finished.
    pub fn in_the_way(&mut self, now: Instant) -> Vec<Job> {
        let mut jobs = Vec::new();
        for (partition, claimed) in &mut self.partitions {
            let (mut early, mut finished, mut until) = (0, 0, 0);
            for (position, entry) in claimed.entries.iter().enumerate() {
                match &entry.state {
                    State::Waiting { request, due } if request.attempts > 0 && *due > now => early += 1,
                    State::Settled(settled) if early > 0 => {
                        finished += 1;
                        if settled.end.is_final() || finished >= early {
                            until = position;
                        }
                    }
                    State::Settled(_) => {}
                    State::Waiting { .. } | State::Working { .. } => break,
                }
            }
            for entry in claimed.entries.iter_mut().take(until) {
                if let Some(request) = entry.state.begin() {
                    let ticket = Ticket { partition: partition.clone(), claim: claimed.claim, offset: entry.offset };
                    jobs.push(Job { ticket, request, stop: claimed.stop.clone() });
                }
            }
        }
        jobs
    }

    /// The result of a job. Dropped when the partition was lost meanwhile.
    pub fn settle(&mut self, ticket: &Ticket, settled: Settled) {
        let Some(claimed) = self.partitions.get_mut(&ticket.partition) else { return };
        if claimed.claim != ticket.claim {
            return;
        }
        if let Some(entry) = claimed.entries.iter_mut().find(|entry| entry.offset == ticket.offset) {
            entry.state = State::Settled(Box::new(settled));
        }
    }

    /// How many requests could be committed now.
    pub fn ready(&self) -> usize {
        self.partitions.values().map(|claimed| claimed.settled().count()).sum()
    }

    /// Up to `max` results that could be committed now, and the offsets that cover them.
    pub fn batch(&self, max: usize) -> (Vec<&Settled>, Vec<(Partition, i64)>) {
        let (mut results, mut offsets) = (Vec::new(), Vec::new());
        for (partition, claimed) in &self.partitions {
            let mut next = None;
            for (offset, settled) in claimed.settled().take(max - results.len()) {
                results.push(settled);
                next = Some(offset + 1);
            }
            offsets.extend(next.map(|next| (partition.clone(), next)));
        }
        (results, offsets)
    }

    /// The offsets of [`Window::batch`] are committed. Gives the ends that are visible now.
    pub fn committed(&mut self, offsets: &[(Partition, i64)]) -> Vec<End> {
        let mut ends = Vec::new();
        for (partition, next) in offsets {
            let Some(claimed) = self.partitions.get_mut(partition) else { continue };
            while let Some(entry) = claimed.entries.pop_front_if(|entry| entry.offset < *next) {
                if let State::Settled(settled) = entry.state {
                    ends.push(settled.end);
                }
            }
        }
        ends
    }

    /// Partitions to be paused and those to be resumed, to be done by the caller. One is paused while enough of it is at hand.
    pub fn pauses(&mut self) -> (Vec<Partition>, Vec<Partition>) {
        let (mut to_pause, mut to_resume) = (Vec::new(), Vec::new());
        for (partition, claimed) in &mut self.partitions {
            let paused = claimed.entries.len() >= ENTRIES_MAX;
            if paused != claimed.is_paused {
                claimed.is_paused = paused;
                if paused { to_pause.push(partition.clone()) } else { to_resume.push(partition.clone()) }
            }
        }
        (to_pause, to_resume)
    }

    /// When the oldest file that is not finished came to WeCom, in milliseconds since the epoch.
    pub fn oldest_ms(&self) -> Option<i64> {
        let unfinished = self.partitions.values().flat_map(|claimed| &claimed.entries);
        unfinished.filter(|entry| !matches!(entry.state, State::Settled(_))).filter_map(|entry| entry.dated_ms).min()
    }
}

impl Claimed {
    /// Results before the first unfinished one, with their offsets.
    fn settled(&self) -> impl Iterator<Item = (i64, &Settled)> {
        self.entries.iter().map_while(|entry| match &entry.state {
            State::Settled(settled) => Some((entry.offset, &**settled)),
            State::Waiting { .. } | State::Working { .. } => None,
        })
    }
}

#[cfg(test)]
mod tests;
