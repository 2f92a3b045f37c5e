//! What goes wrong in a round, and how it is drawn.

use std::time::Duration;

use super::proxy::Mode;

/// Random numbers that follow from a seed (SplitMix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// At least 0, less than `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn pick<T: Copy>(&mut self, among: &[T]) -> T {
        among[self.below(among.len() as u64) as usize]
    }

    /// At least `from`, less than `to` milliseconds.
    fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.below(to - from))
    }
}

/// One fault.
#[derive(Debug, Clone)]
pub enum Fault {
    /// The worker kills itself there: see `src/crash_point.rs`.
    KillAtPoint {
        point: String,
    },
    KillWorker {
        after: Duration,
    },
    KillHost {
        after: Duration,
        times: u64,
    },
    KillBroker {
        role: Role,
        down: Duration,
    },
    StopBroker {
        role: Role,
    },
    FreezeBroker {
        role: Role,
        duration: Duration,
    },
    Network {
        mode: Mode,
        duration: Duration,
    },
    /// The worker is stopped there, another one takes over, and it wakes up.
    Zombie {
        point: String,
    },
    /// Another worker is stopped while it takes over, and wakes up when the first one has gone on.
    SlowTakeOver {
        duration: Duration,
    },
    Library(&'static LibraryFault),
    KillStorage {
        down: Duration,
    },
    /// In the middle of a multipart upload.
    KillStorageInUpload,
    FreezeStorage {
        duration: Duration,
    },
    /// Works for a moment, stands still for a longer one, and so on.
    SlowStorage {
        duration: Duration,
    },
    /// No object larger than a few bytes can be written.
    FillStorage {
        duration: Duration,
    },
    /// No line of the worker's log can be written.
    FillLog,
    /// Another member joins the group of the media tasks, takes its share of the requests, and leaves without having done any.
    /// The worker may be killed in between.
    Rebalance {
        duration: Duration,
        kills: bool,
    },
    /// The wall clock of the worker is wrong from one moment to the other, and right again.
    StepClock {
        seconds: i64,
        duration: Duration,
    },
}

/// What a broker is to the connector. A lone one is all of it.
#[derive(Debug, Clone, Copy)]
pub enum Role {
    /// Of a partition with messages.
    Leader,
    /// Leader of a partition of the offset topic.
    Offsets,
    /// Of the transactions of the message task.
    Coordinator,
}

/// How often each kind is drawn in so many rounds as the numbers make together.
const DECK: [(u64, fn(&mut Random) -> Fault); 19] = [
    (12, |random| Fault::KillAtPoint { point: point(random, POINTS) }),
    (4, |random| Fault::KillAtPoint { point: point(random, &[("commit_called", 12), ("commit_answered", 12)]) }),
    (6, |random| Fault::KillWorker { after: random.ms(0, 1_500) }),
    (4, |random| Fault::KillHost { after: random.ms(0, 500), times: 1 + random.below(4) }),
    (4, |random| Fault::KillBroker { role: random.pick(&ROLES), down: random.ms(0, 6_000) }),
    (1, |random| Fault::StopBroker { role: random.pick(&ROLES) }),
    (2, |random| Fault::FreezeBroker { role: random.pick(&ROLES), duration: random.ms(2_000, 9_000) }),
    (2, |random| Fault::Network { mode: Mode::Refuse, duration: random.ms(0, 3_000) }),
    (2, |random| Fault::Network { mode: Mode::Stall, duration: random.ms(500, 8_000) }),
    (2, |random| Fault::Network { mode: Mode::HoldAnswers, duration: random.ms(0, 6_000) }),
    (1, |random| Fault::Network { mode: Mode::Slow, duration: random.ms(2_000, 6_000) }),
    (4, |random| Fault::Zombie { point: zombie_point(random) }),
    (2, |random| Fault::SlowTakeOver { duration: random.ms(0, 2_000) }),
    (8, |random| Fault::Library(&LIBRARY[random.below(LIBRARY.len() as u64) as usize])),
    (4, |random| match random.below(4) {
        0 => Fault::KillStorage { down: random.ms(500, 4_000) },
        1 => Fault::KillStorageInUpload,
        2 => Fault::FreezeStorage { duration: random.ms(500, 4_000) },
        _ => Fault::SlowStorage { duration: random.ms(1_000, 5_000) },
    }),
    (2, |random| Fault::FillStorage { duration: random.ms(500, 4_000) }),
    (1, |_| Fault::FillLog),
    (2, |random| Fault::Rebalance { duration: random.ms(0, 3_000), kills: random.below(2) == 0 }),
    (2, |random| Fault::StepClock { seconds: random.pick(&STEPS_SECONDS), duration: random.ms(500, 3_000) }),
];

/// An hour that was set wrong, a time zone, a battery that is empty, and a few seconds of NTP. Further ahead than an hour a broker
/// takes no record.
const STEPS_SECONDS: [i64; 6] = [-3_600, -28_800, -86_400 * 365, -3, 3, 3_000];

const ROLES: [Role; 3] = [Role::Leader, Role::Offsets, Role::Coordinator];

/// Points of the worker, and up to which passage of each it is killed.
const POINTS: &[(&str, u64)] = &[
    ("page_pulled", 8),
    ("hosts_answer", 8),
    ("take_over", 1),
    ("init_called", 2),
    ("init_answered", 2),
    ("begin_called", 10),
    ("begin_answered", 10),
    ("send_called", 60),
    ("send_answered", 60),
    ("offsets_called", 4),
    ("offsets_answered", 4),
    ("commit_called", 12),
    ("commit_answered", 12),
    ("chunk_written", 9),
    ("upload_written", 6),
    ("upload_done", 6),
    ("media_event", 6),
];

fn point(random: &mut Random, points: &[(&str, u64)]) -> String {
    let (name, passages) = random.pick(points);
    let count = 1 + random.below(passages);
    match random.below(3) {
        0 => format!("{name}:{count}"),
        // What was handed over before gets to the broker.
        1 => format!("{name}:{count} wait_us={}", random.below(60_000)),
        // In the middle of what comes next.
        _ => format!("{name}:{count} after_us={}", 1 + random.below(8_000)),
    }
}

fn zombie_point(random: &mut Random) -> String {
    let (name, passages) =
        random.pick(&[("begin_answered", 8), ("send_answered", 40), ("commit_called", 8), ("hosts_answer", 8)]);
    format!("{name}:{} wait_us={} stop", 1 + random.below(passages), random.below(20_000))
}

/// The faults of a run, one after the other: first one of each kind, then as often as [`DECK`] says.
#[derive(Debug)]
pub struct Deck {
    random: Random,
    cards: Vec<usize>,
}

impl Deck {
    pub fn new(seed: u64) -> Deck {
        Deck { random: Random::new(seed), cards: (0..DECK.len()).collect() }
    }

    pub fn draw(&mut self) -> Fault {
        if self.cards.is_empty() {
            let cards = DECK.iter().enumerate().flat_map(|(kind, (count, _))| (0..*count).map(move |_| kind));
            self.cards = cards.collect();
        }
        let card = self.random.below(self.cards.len() as u64) as usize;
        let kind = self.cards.swap_remove(card);
        DECK[kind].1(&mut self.random)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Leader => "broker that leads messages",
            Role::Offsets => "broker that leads offsets",
            Role::Coordinator => "broker that coordinates transactions",
        })
    }
}

impl Fault {
    /// Whether the worker's process is another one afterwards.
    pub fn ends_the_worker(&self) -> bool {
        match self {
            Fault::KillAtPoint { .. }
            | Fault::KillWorker { .. }
            | Fault::Zombie { .. }
            | Fault::SlowTakeOver { .. }
            | Fault::FillLog
            | Fault::Rebalance { kills: true, .. }
            | Fault::StepClock { .. } => true,
            Fault::KillHost { .. }
            | Fault::KillBroker { .. }
            | Fault::StopBroker { .. }
            | Fault::FreezeBroker { .. }
            | Fault::Network { .. }
            | Fault::Library(_)
            | Fault::KillStorage { .. }
            | Fault::KillStorageInUpload
            | Fault::FreezeStorage { .. }
            | Fault::SlowStorage { .. }
            | Fault::FillStorage { .. }
            | Fault::Rebalance { kills: false, .. } => false,
        }
    }

    /// Under which name it is counted.
    pub fn kind(&self) -> String {
        match self {
            Fault::KillAtPoint { point } => {
                format!("kill -9 of the worker at {}", point.split(':').next().unwrap_or_default())
            }
            Fault::KillWorker { .. } => "kill -9 of the worker at a random moment".into(),
            Fault::KillHost { .. } => "kill -9 of the SDK host".into(),
            Fault::KillBroker { role, .. } => format!("kill -9 of the {role}"),
            Fault::StopBroker { role } => format!("orderly restart of the {role}"),
            Fault::FreezeBroker { role, .. } => format!("{role} frozen"),
            Fault::Network { mode: Mode::Refuse, .. } => "connections cut and refused".into(),
            Fault::Network { mode: Mode::Stall, .. } => "connections stalled".into(),
            Fault::Network { mode: Mode::HoldAnswers, .. } => "answers of the broker lost".into(),
            Fault::Network { .. } => "connections slow".into(),
            Fault::Zombie { .. } => "zombie in mid transaction".into(),
            Fault::SlowTakeOver { .. } => "slow take-over".into(),
            Fault::Library(fault) => format!("library: {}", fault.name),
            Fault::KillStorage { .. } => "kill -9 of the S3 server".into(),
            Fault::KillStorageInUpload => "kill -9 of the S3 server in a multipart upload".into(),
            Fault::FreezeStorage { .. } => "S3 server frozen".into(),
            Fault::SlowStorage { .. } => "S3 server slow".into(),
            Fault::FillStorage { .. } => "storage full".into(),
            Fault::FillLog => "disk full for logs".into(),
            Fault::Rebalance { kills: false, .. } => "rebalance of the media tasks".into(),
            Fault::Rebalance { .. } => "kill -9 of the worker in a rebalance".into(),
            Fault::StepClock { seconds: ..0, .. } => "clock stepped back".into(),
            Fault::StepClock { .. } => "clock stepped ahead".into(),
        }
    }
}

/// A fault of the vendor's library, as tables of a scenario. All of them pass: a record that decrypts in the end is no dead letter.
#[derive(Debug)]
pub struct LibraryFault {
    pub name: &'static str,
    /// Of one `[[fault]]` each, with how often it strikes.
    pub tables: &'static [(&'static str, u64)],
}

const fn library(name: &'static str, tables: &'static [(&'static str, u64)]) -> LibraryFault {
    LibraryFault { name, tables }
}

static LIBRARY: [LibraryFault; 28] = [
    library("abort in a pull", &[("function = \"GetChatData\"\nabort = true", 3)]),
    library("hang in a pull", &[("function = \"GetChatData\"\nhang = true", 1)]),
    library("garbage for a page", &[("function = \"GetChatData\"\nbody = \"garbage\"", 2)]),
    library("nothing for a page", &[("function = \"GetChatData\"\nbody = \"empty\"", 2)]),
    library("a proxy's page", &[("function = \"GetChatData\"\nbody = \"html\"", 2)]),
    library("half a page", &[("function = \"GetChatData\"\nbody = \"truncated\"", 2)]),
    library("a page of wrong types", &[("function = \"GetChatData\"\nbody = \"wrong_types\"", 2)]),
    library("a huge page", &[("function = \"GetChatData\"\nbody = \"huge\"", 1)]),
    library("slow pulls", &[("function = \"GetChatData\"\nslow_ms = 900", 3)]),
    library("dead token", &[("function = \"GetChatData\"\nerrcode = 40014", 2)]),
    library("no token", &[("function = \"GetChatData\"\nrefuse_token = true", 2)]),
    library("301058", &[("function = \"GetChatData\"\nerrcode = 301058", 5)]),
    library("a burst of 10001", &[("function = \"GetChatData\"\ncode = 10001", 5)]),
    library("poison record", &[("function = \"DecryptData\"\nabort = true", 1)]),
    // After a new start the first pages are full.
    library("poison record in mid page", &[("function = \"DecryptData\"\ncall = 3\nabort = true", 1)]),
    library("poison record at a page's end", &[("function = \"DecryptData\"\ncall = 6\nabort = true", 1)]),
    library(
        "several poison records",
        &[
            ("function = \"DecryptData\"\ncall = 2\nabort = true", 1),
            ("function = \"DecryptData\"\ncall = 9\nabort = true", 1),
            ("function = \"DecryptData\"\ncall = 14\nabort = true", 1),
        ],
    ),
    library("hang in a decryption", &[("function = \"DecryptData\"\nhang = true", 1)]),
    library("killed in a pull", &[("function = \"GetChatData\"\nkill = true", 2)]),
    library("killed in media", &[("function = \"GetMediaData\"\nkill = true", 2)]),
    library("killed at its start", &[("function = \"Init\"\nkill = true", 2)]),
    library("killed in a decryption", &[("function = \"DecryptData\"\nkill = true", 2)]),
    library("slow decryptions", &[("function = \"DecryptData\"\nslow_ms = 200", 10)]),
    library("host dies at its start", &[("function = \"Init\"\nabort = true", 5)]),
    library("host hangs at its start", &[("function = \"Init\"\nhang = true", 1)]),
    library("media busy", &[("function = \"GetMediaData\"\ncode = 10003", 8)]),
    library("abort in media", &[("function = \"GetMediaData\"\nabort = true", 2)]),
    library("short chunks", &[("function = \"GetMediaData\"\nshort_chunk_bytes = 1000", 5)]),
];
