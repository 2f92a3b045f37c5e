//! Virtual time, a network that loses and delays, and the futures that wait for either.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;

use super::broker::{Broker, Later, Reply, Request};

/// The same numbers for the same seed (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.word() % bound.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug)]
pub enum Event {
    Wake(usize),
    Arrive {
        process: usize,
        call: u64,
        request: Request,
    },
    Answer {
        process: usize,
        call: u64,
        reply: Option<Reply>,
    },
    Broker(Later),
    Start(usize),
    Kill(usize),
    /// As by SIGSTOP and SIGCONT.
    Stop(usize),
    Continue(usize),
}

/// What the network is like until it is calm.
#[derive(Debug)]
pub struct Faults {
    pub lost_percent: u64,
    pub late_percent: u64,
    /// How long a message is under way that is not late.
    pub usual_delay: u64,
    /// How long a client waits for an answer before it asks again.
    pub socket_timeout: u64,
}

/// All that there is outside of the workers.
#[derive(Debug)]
pub struct World {
    pub now: u64,
    pub random: Random,
    pub broker: Broker,
    pub calm_at: u64,
    /// Workers that there are just now, also those that are stopped.
    pub running: BTreeSet<usize>,
    pub trace: Option<String>,
    /// What has happened, and how often.
    pub tally: BTreeMap<&'static str, u64>,
    pub faults: Faults,
    /// The broker stands still in these, and then works off what has come meanwhile.
    pub outages: Vec<(u64, u64)>,
    /// Also requests on one connection can overtake each other: as if the client made a new one for each.
    pub is_overtaken: bool,
    events: BTreeMap<(u64, u64), Event>,
    replies: HashMap<u64, Option<Reply>>,
    numbers: u64,
}

impl World {
    pub fn new(broker: Broker, mut random: Random, calm_at: u64) -> Self {
        let mut one_of = |choices: [u64; 3]| choices[random.below(3) as usize];
        let faults = Faults {
            lost_percent: one_of([0, 2, 10]),
            late_percent: one_of([0, 2, 10]),
            usual_delay: one_of([2, 20, 400]),
            socket_timeout: one_of([1_000, 10_000, 60_000]),
        };
        Self {
            faults,
            now: 0,
            random,
            broker,
            calm_at,
            running: BTreeSet::new(),
            trace: None,
            tally: BTreeMap::new(),
            outages: Vec::new(),
            is_overtaken: false,
            events: BTreeMap::new(),
            replies: HashMap::new(),
            numbers: 0,
        }
    }

    pub fn is_calm(&self) -> bool {
        self.now >= self.calm_at
    }

    pub fn at(&mut self, at: u64, event: Event) {
        self.numbers += 1;
        self.events.insert((at, self.numbers), event);
    }

    /// A number that was not there before.
    pub fn unique(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    pub fn note(&mut self, note: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let _ = writeln!(trace, "{:>9} {}", self.now, note());
        }
    }

    /// The next thing that happens, with the process to go on with.
    pub fn next(&mut self) -> Option<Event> {
        loop {
            let ((at, _), event) = self.events.pop_first()?;
            self.now = at;
            match event {
                Event::Arrive { process, call, request } => {
                    let shown = self.trace.is_some().then(|| short(&request));
                    let (reply, later) = self.broker.handle(request, &mut self.random);
                    self.note(|| format!("worker {process}: {} → {reply:?}", shown.unwrap_or_default()));
                    self.later(later);
                    if let Some(delay) = self.delay(30_000) {
                        self.at(self.now + delay, Event::Answer { process, call, reply: Some(reply) });
                    }
                }
                Event::Broker(later) => {
                    self.note(|| format!("broker: {later:?}"));
                    let is_expiry = matches!(later, Later::Expire(_));
                    let later = self.broker.later(later, &mut self.random);
                    if is_expiry && later.is_some() {
                        self.count("transactions timed out");
                    }
                    self.later(later);
                }
                Event::Answer { process, call, reply } => {
                    // The first answer counts; who asks for none any more has gone on.
                    if let Some(waiting @ None) = self.replies.get_mut(&call) {
                        *waiting = Some(reply.unwrap_or(Reply::NotYet));
                        return Some(Event::Wake(process));
                    }
                }
                other => return Some(other),
            }
        }
    }

    fn later(&mut self, later: Option<(u64, Later)>) {
        if let Some((delay, later)) = later {
            self.at(self.now + delay, Event::Broker(later));
        }
    }

    /// How long a message is under way; `None` if it is lost.
    fn delay(&mut self, late_max: u64) -> Option<u64> {
        if self.is_calm() {
            return Some(1);
        }
        let Faults { lost_percent, late_percent, usual_delay, .. } = self.faults;
        if self.random.chance(lost_percent) {
            self.count("messages lost");
            return None;
        }
        let is_late = self.random.chance(late_percent);
        if is_late {
            self.count("messages late");
        }
        Some(1 + self.random.below(if is_late { late_max } else { usual_delay }))
    }

    fn send(&mut self, process: usize, line: &mut Line, request: Request, until: u64) -> u64 {
        let call = self.unique();
        self.note(|| format!("worker {process} sends {}", short(&request)));
        self.replies.insert(call, None);
        if let Some(delay) = self.delay(90_000) {
            let mut arrival = self.now + delay;
            if let Some(&(_, end)) = self.outages.iter().find(|(start, end)| (*start..*end).contains(&arrival)) {
                arrival = end + self.random.below(50);
                self.count("requests held up by a broker that stands still");
            }
            if !self.is_overtaken {
                arrival = arrival.max(line.last_arrival + 1);
                line.last_arrival = arrival;
            }
            self.at(arrival, Event::Arrive { process, call, request });
        }
        // Mostly a client waits; now and then its connection breaks.
        let breaks = !self.is_calm() && self.random.chance(self.faults.lost_percent);
        let patience = if breaks { 1 + self.random.below(200) } else { self.faults.socket_timeout };
        let patience = patience.min(until.saturating_sub(self.now)).max(1);
        self.at(self.now + patience, Event::Answer { process, call, reply: None });
        call
    }
}

/// A connection: what is sent on it arrives in this order. What is sent on the next one can overtake it.
#[derive(Debug, Default)]
pub struct Line {
    last_arrival: u64,
}

/// A process's view of the world.
#[derive(Debug, Clone)]
pub struct Handle {
    world: Arc<Mutex<World>>,
    pub process: usize,
}

impl Handle {
    pub fn new(world: Arc<Mutex<World>>, process: usize) -> Self {
        Self { world, process }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("one thread")
    }

    pub fn now(&self) -> u64 {
        self.world().now
    }

    pub fn below(&self, bound: u64) -> u64 {
        self.world().random.below(bound)
    }

    /// So likely while there are faults, never afterwards.
    pub fn fault(&self, percent: u64) -> bool {
        let mut world = self.world();
        !world.is_calm() && world.random.chance(percent)
    }

    pub async fn sleep(&self, millis: u64) {
        let until = {
            let mut world = self.world();
            let until = world.now + millis;
            world.at(until, Event::Wake(self.process));
            until
        };
        poll_fn(|_| if self.now() >= until { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Asks the broker again and again, until an answer says something or it is that late.
    pub async fn ask(&self, line: &mut Line, request: &Request, until: u64) -> Option<Reply> {
        loop {
            let call = self.world().send(self.process, line, request.clone(), until);
            let reply = poll_fn(|_| {
                let mut world = self.world();
                match world.replies.get(&call) {
                    Some(Some(reply)) => {
                        let reply = reply.clone();
                        world.replies.remove(&call);
                        Poll::Ready(reply)
                    }
                    _ => Poll::Pending,
                }
            })
            .await;
            if reply != Reply::NotYet {
                return Some(reply);
            }
            if self.now() >= until {
                return None;
            }
            self.sleep(20).await;
        }
    }
}

/// A request in one line.
fn short(request: &Request) -> String {
    match request {
        Request::Produce { epoch, sequence, record } => {
            let value = String::from_utf8_lossy(&record.value);
            format!("Produce {{ epoch: {epoch}, sequence: {sequence}, value: {value} }}")
        }
        other => format!("{other:?}"),
    }
}
