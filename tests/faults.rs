//! Exactly once, attacked on the real broker: a connector with live traffic suffers one fault after the other, drawn from a seed.
//! After each it has to pull and commit again; what it has published is judged by `wecom-connector verify` and by the independent
//! reader, against the simulator's own list.
//!
//! `FAULT_ROUNDS`, `FAULT_MINUTES`, `FAULT_SEED`, `FAULT_KIND`, `FAULT_BROKERS`, `FAULT_ONE_WORKER` and `FAULT_VERIFY_EACH_ROUND` are
//! the options of `./test faults`, which sets them.

#[path = "common/harness.rs"]
mod harness;

#[path = "faults/fault.rs"]
mod fault;
#[path = "faults/figures.rs"]
mod figures;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "faults/stage.rs"]
mod stage;

use std::time::{Duration, Instant};

use fault::{Deck, Fault};
use proxy::Mode;
use stage::Stage;

/// All is judged after so many rounds, after twice as many, and so on, and at the end: it takes the longer the more there is.
const ROUNDS_TO_JUDGEMENT: u64 = 50;

/// Draws after which there is none of the kind that was asked for.
const DRAWS_MAX: usize = 10_000;

/// A mistake has to show in one of so many rounds.
const MISTAKE_ROUNDS_MAX: u64 = 12;

/// A setting of the test; nothing where it is not set.
#[expect(clippy::disallowed_methods, reason = "a setting of the test, not of the program")]
fn setting(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

fn number(variable: &str, otherwise: u64) -> u64 {
    let number = |text: String| text.parse().unwrap_or_else(|_| panic!("{variable} is no whole number: {text:?}"));
    setting(variable).map_or(otherwise, number)
}

/// Kafka 4.3.1 skips the markers of a decided transaction where a partition has no leader just then, and takes it for completed
/// (KAFKA-20734; proven here from a broker's log and its segments). A lone broker that ends is such a case: what hangs is committed
/// with the producer's next transaction, and comes twice. One of several may end, and a lone one where the kind is asked for.
fn ends_a_lone_broker(fault: &Fault) -> bool {
    matches!(fault, Fault::KillBroker { .. } | Fault::StopBroker { .. })
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice() {
    let (seed, rounds) = (number("FAULT_SEED", 1), number("FAULT_ROUNDS", 6));
    eprintln!("seed {seed}, {rounds} rounds");
    let mut deck = Deck::new(seed);
    let is_asked = setting("FAULT_ROUNDS").is_some();
    // Three take their time to start.
    let brokers = number("FAULT_BROKERS", if is_asked { 3 } else { 1 });
    let mut stage = Stage::new(seed, brokers as usize, None);
    let kind = setting("FAULT_KIND").unwrap_or_default();
    let verifies = setting("FAULT_VERIFY_EACH_ROUND").is_some();
    let one_worker = setting("FAULT_ONE_WORKER").is_some().then(|| stage.worker_id());
    let until = setting("FAULT_MINUTES").map(|_| Instant::now() + Duration::from_secs(60 * number("FAULT_MINUTES", 0)));
    for round in 1..=rounds {
        let fault = std::iter::repeat_with(|| deck.draw())
            .take(DRAWS_MAX)
            .filter(|fault| brokers > 1 || !kind.is_empty() || !ends_a_lone_broker(fault))
            // What that needs is installed for who asks for rounds.
            .filter(|fault| is_asked || !matches!(fault, Fault::StepClock { .. }))
            .filter(|fault| one_worker.is_none() || !fault.ends_the_worker())
            .find(|fault| fault.kind().contains(&kind))
            .unwrap_or_else(|| panic!("no fault is a {kind:?}"));
        eprintln!("round {round}: {fault:?}");
        let within = stage.suffer(&fault);
        eprintln!("round {round}: recovered in {:.2} s", within.as_secs_f64());
        if verifies && let Some(found) = stage.verify() {
            eprintln!("{}", stage.figures);
            panic!("seed {seed}, round {round}:\n{found}");
        }
        let is_last = round == rounds || until.is_some_and(|until| Instant::now() >= until);
        let is_due = round % ROUNDS_TO_JUDGEMENT == 0 && (round / ROUNDS_TO_JUDGEMENT).is_power_of_two();
        if is_due || is_last {
            let found = stage.judge();
            eprintln!("{}", stage.figures);
            assert!(found.is_empty(), "seed {seed}, round {round}:\n{}", found.join("\n"));
            assert!(one_worker.is_none_or(|id| id == stage.worker_id()), "seed {seed}, round {round}: another worker");
        }
        if is_last {
            break;
        }
    }
}

/// A test of the test: connectors that make a mistake on purpose have to be caught.
#[test]
fn mistakes_are_caught() {
    let rows: [(&str, fn(u64) -> Fault, &[&str]); 3] = [
        // Killed between the transaction of a page and that of its offset.
        (
            "offset_outside",
            |round| Fault::KillAtPoint { point: format!("commit_answered:{}", 2 + round) },
            &["twice", "offset_behind"],
        ),
        // The other worker goes on between what was read and the fencing.
        (
            "read_before_fencing",
            |_| Fault::SlowTakeOver { duration: Duration::from_millis(500) },
            &["twice", "offset_behind"],
        ),
        // Records are given up, and the transaction is aborted.
        (
            "abort_as_commit",
            |_| Fault::Network { mode: Mode::Stall, duration: Duration::from_millis(6_000) },
            &["missing", "chain_broken"],
        ),
    ];
    // The last one needs a stall at the right moment, and minutes; the simulation of the protocol finds it each time.
    let count = if setting("FAULT_ROUNDS").is_some() { rows.len() } else { 2 };
    for (mistake, fault, kinds) in rows.into_iter().take(count) {
        let mut stage = Stage::new(1, 1, Some(mistake));
        let caught = (1..=MISTAKE_ROUNDS_MAX).find_map(|round| {
            let fault = fault(round);
            eprintln!("{mistake}, round {round}: {fault:?}");
            stage.suffer(&fault);
            stage.verify()
        });
        let caught = caught.unwrap_or_else(|| panic!("nobody has seen {mistake}"));
        eprintln!("{mistake}: {}", caught.lines().next().unwrap_or_default());
        assert!(kinds.iter().any(|kind| caught.contains(kind)), "{mistake}: {caught}");
    }
}
