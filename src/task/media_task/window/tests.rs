//! Orders in which files end, partitions come and go, and slots are given.

use std::sync::LazyLock;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn partition(number: i32) -> Partition {
    Partition { topic: "requests".into(), number }
}

/// So many milliseconds after the start of the tests.
fn at(ms: u64) -> Instant {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    *START + Duration::from_millis(ms)
}

fn request(deadline_ms: i64) -> MediaRequest {
    tried(0, deadline_ms)
}

fn tried(attempts: u32, deadline_ms: i64) -> MediaRequest {
    serde_json::from_value(json!({
        "schema": "s", "media_id": "m", "corp_id": "ww1", "seq": 1, "msgid": "1", "conversation": "c", "path": "image",
        "media_type": "image", "sdkfileid": "f", "first_seen_ms": 0, "deadline_ms": deadline_ms, "attempts": attempts,
        "not_before_ms": 0,
    }))
    .expect("a request")
}

const STORED: End = End::Media { status: MediaStatus::Stored, deduplicated: false };
const AGAIN: End = End::Media { status: MediaStatus::Retried, deduplicated: false };

fn settled(name: &str) -> Settled {
    ended(name, STORED)
}

fn ended(name: &str, end: End) -> Settled {
    let record = OutgoingRecord {
        topic: "media".into(),
        key: Vec::new(),
        value: name.into(),
        headers: Vec::new(),
        timestamp_ms: 0,
    };
    Settled { record, end }
}

proptest! {
    /// Whatever order files finish in, whatever is committed when: each result is committed once, in the order of the
    /// offsets, and no offset is committed before all those below it.
    #[test]
    fn offsets_move_in_order_and_each_result_goes_once(
        gaps in prop::collection::vec(1_i64..4, 1..40),
        order in prop::collection::vec(any::<prop::sample::Index>(), 40),
        commits in prop::collection::vec((0_usize..40, 1_usize..10), 0..10),
    ) {
        let mut window = Window::default();
        window.gained(partition(0));
        let offsets: Vec<i64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
        for &offset in &offsets {
            window.take(&partition(0), offset, request(0), at(0));
        }
        let mut jobs: Vec<Job> = std::iter::from_fn(|| window.next_job(at(0), 1000)).collect();
        prop_assert_eq!(jobs.len(), offsets.len());
        let mut committed = Vec::new();
        let mut finished = Vec::new();
        let mut commit = |window: &mut Window, finished: &[i64], max| {
            let (results, positions) = window.batch(max);
            let (count, bound) = (results.len(), positions.first().map(|(_, next)| *next));
            assert!(count <= max);
            committed.extend(results.iter().map(|settled| settled.record.value.clone()));
            if let Some(bound) = bound {
                assert!(offsets.iter().filter(|&&offset| offset < bound).all(|offset| finished.contains(offset)));
            }
            assert_eq!(window.committed(&positions).len(), count);
        };
        for (step, next) in order.iter().enumerate().take(offsets.len()) {
            for &(_, max) in commits.iter().filter(|(at, _)| *at == step) {
                commit(&mut window, &finished, max);
            }
            let job = jobs.remove(next.index(jobs.len()));
            finished.push(job.ticket.offset);
            window.settle(&job.ticket, settled(&job.ticket.offset.to_string()));
        }
        while window.ready() > 0 {
            commit(&mut window, &finished, 7);
        }
        let expected: Vec<Vec<u8>> = offsets.iter().map(|offset| offset.to_string().into()).collect();
        prop_assert_eq!(committed, expected);
    }
}

#[test]
fn nothing_of_a_lost_partition_is_committed() {
    let mut window = Window::default();
    window.gained(partition(0));
    window.take(&partition(0), 5, request(0), at(0));
    let job = window.next_job(at(0), 1000).expect("a job");
    window.lost(&partition(0));
    assert!(job.stop.is_cancelled());
    window.settle(&job.ticket, settled("late"));
    assert_eq!(window.ready(), 0);
    // It comes back and the request with it: the old job's result is still of no use, it may be half of one.
    window.gained(partition(0));
    window.take(&partition(0), 5, request(0), at(0));
    window.settle(&job.ticket, settled("late"));
    assert_eq!(window.ready(), 0);
    let again = window.next_job(at(0), 1000).expect("the request again");
    window.settle(&again.ticket, settled("new"));
    assert_eq!(window.batch(10), (vec![&settled("new")], vec![(partition(0), 6)]));
    // What is read of a partition after it was lost is dropped.
    window.lost_all();
    window.take(&partition(0), 6, request(0), at(0));
    assert!(window.next_job(at(0), 1000).is_none());
}

#[test]
fn the_file_that_is_lost_first_comes_first() {
    let mut window = Window::default();
    for number in 0..3 {
        window.gained(partition(number));
    }
    for (number, deadline_ms, due_ms) in [(0, 30, 0), (0, 10, 0), (1, 20, 0), (2, 5, 100)] {
        window.take(&partition(number), deadline_ms, request(deadline_ms), at(due_ms));
    }
    let mut next = |now_ms| window.next_job(at(now_ms), 1000).map(|job| job.request.deadline_ms);
    assert_eq!([next(0), next(0), next(0), next(99), next(100)], [Some(10), Some(20), Some(30), None, Some(5)]);
}

/// A step of a task: a dead file is due again, a new file comes, one of those at work ends, or jobs are begun.
#[derive(Debug, Clone)]
enum Step {
    Dead,
    Fresh,
    End(prop::sample::Index),
    Begin,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Dead),
        1 => Just(Step::Fresh),
        3 => any::<prop::sample::Index>().prop_map(Step::End),
        4 => Just(Step::Begin),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    /// Dead files, whose deadlines are the nearest, never have more than their share of the slots, and no slot stays free
    /// while a first try waits.
    #[test]
    fn first_tries_are_not_starved(slots in 1_usize..6, steps in steps()) {
        let mut window = Window::default();
        window.gained(partition(0));
        let (mut offset, mut fresh_waiting) = (0, 0);
        let mut at_work: Vec<Job> = Vec::new();
        for step in steps {
            offset += 1;
            match step {
                Step::Dead => window.take(&partition(0), offset, tried(1, offset), at(0)),
                Step::Fresh => {
                    window.take(&partition(0), offset, tried(0, 1_000_000), at(0));
                    fresh_waiting += 1;
                }
                Step::End(which) if !at_work.is_empty() => {
                    let job = at_work.remove(which.index(at_work.len()));
                    window.settle(&job.ticket, settled(""));
                }
                Step::End(_) => {}
                Step::Begin => {
                    while at_work.len() < slots && let Some(job) = window.next_job(at(0), slots) {
                        let repeats = at_work.iter().filter(|job| job.request.attempts > 0).count();
                        if job.request.attempts == 0 {
                            fresh_waiting -= 1;
                        } else {
                            let repeats_max = if fresh_waiting > 0 { slots / 2 } else { (slots - 1).max(1) };
                            prop_assert!(repeats < repeats_max, "{} dead files at work", repeats + 1);
                        }
                        at_work.push(job);
                    }
                    prop_assert!(at_work.len() == slots || fresh_waiting == 0, "a slot is free and a first try waits");
                }
            }
        }
    }
}

#[test]
fn new_files_are_taken_at_once_beside_fifty_dead_ones() {
    const SLOTS: usize = 4;
    let mut window = Window::default();
    window.gained(partition(0));
    window.gained(partition(1));
    for offset in 0..50 {
        window.take(&partition(0), offset, tried(9, offset), at(0));
    }
    let dead = std::iter::from_fn(|| window.next_job(at(0), SLOTS)).count();
    assert_eq!(dead, SLOTS - 1, "a slot is left for what comes");
    for offset in 0..5 {
        window.take(&partition(1), offset, request(1000), at(0));
    }
    for offset in 0..5 {
        let job = window.next_job(at(0), SLOTS).expect("a first try");
        assert_eq!((&job.ticket.partition, job.ticket.offset), (&partition(1), offset));
        window.settle(&job.ticket, settled(""));
    }
    assert!(window.next_job(at(0), SLOTS).is_none());
}

#[test]
fn what_is_not_due_is_put_back_when_it_is_in_the_way() {
    // Before, entries of a partition: early, due and at work, finished, to be tried again. After: which are put back.
    for (entries, expected) in [
        ("e", vec![]),
        ("ees", vec![0, 1]),
        ("esee", vec![0]),
        ("sse", vec![]),
        // An end that can be committed already asks for nothing.
        ("sea", vec![1]),
        ("seea", vec![]),
        ("eea", vec![]),
        ("eeaa", vec![0, 1]),
        ("eeas", vec![0, 1]),
        // Behind what is at work nothing could be committed.
        ("wes", vec![]),
        ("esws", vec![0]),
    ] {
        let mut window = Window::default();
        window.gained(partition(0));
        for (offset, kind) in (0..).zip(entries.chars()) {
            window.take(&partition(0), offset, tried(1, 1), at(if kind == 'e' { 100 } else { 0 }));
        }
        let begun = std::iter::from_fn(|| window.next_job(at(0), 1000));
        for job in begun.collect::<Vec<_>>() {
            match entries.as_bytes()[usize::try_from(job.ticket.offset).expect("an offset")] {
                b's' => window.settle(&job.ticket, ended("end", STORED)),
                b'a' => window.settle(&job.ticket, ended("again", AGAIN)),
                _ => {}
            }
        }
        let moved = window.in_the_way(at(0));
        let offsets: Vec<i64> = moved.iter().map(|job| job.ticket.offset).collect();
        assert_eq!(offsets, expected, "{entries}");
        for job in moved {
            assert_eq!(job.request, tried(1, 1));
            window.settle(&job.ticket, ended("back", End::PutBack));
        }
        assert!(window.in_the_way(at(0)).is_empty(), "{entries}: once");
    }
}

#[test]
fn a_partition_is_paused_while_enough_is_at_hand() {
    let mut window = Window::default();
    window.gained(partition(0));
    window.gained(partition(1));
    window.take(&partition(0), 1, request(0), at(100));
    for offset in 0..ENTRIES_MAX as i64 {
        assert_eq!(window.pauses(), (Vec::new(), Vec::new()));
        window.take(&partition(1), offset, request(0), at(0));
    }
    assert_eq!(window.pauses(), (vec![partition(1)], Vec::new()));
    while let Some(job) = window.next_job(at(100), 1000) {
        window.settle(&job.ticket, settled(""));
    }
    let (_, offsets) = window.batch(1000);
    window.committed(&offsets);
    assert_eq!(window.pauses(), (Vec::new(), vec![partition(1)]));
    assert_eq!(window.oldest_ms(), None);
}
