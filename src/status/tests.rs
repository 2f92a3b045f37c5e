use super::*;
use crate::clock::manual::ManualClock;

const TIMEOUT: Duration = Duration::from_secs(300);

fn board() -> (ManualClock, Arc<StatusBoard>) {
    let time = ManualClock::default();
    let board = StatusBoard::new(time.clock(), TIMEOUT);
    (time, board)
}

fn task(board: &StatusBoard) -> Status {
    board.connectors()[0].tasks[&0].clone()
}

fn unhealthy(board: &StatusBoard) -> String {
    match board.health() {
        Health::Unhealthy(message) => message,
        other => panic!("{other:?} where unhealthy was due"),
    }
}

#[test]
fn a_start_is_ready_when_every_task_has_run_once_and_stays_ready() {
    let (_, board) = board();
    assert!(board.readiness().is_err(), "no connector is known yet");
    let connector = board.connector("acme");
    let (messages, media) = (connector.task(0), connector.task(1));
    board.all_connectors_known();
    messages.running();
    assert!(matches!(board.health(), Health::Starting(message) if message.contains("task acme-1 is UNASSIGNED")));
    media.running();
    assert_eq!(board.readiness(), Ok(()));
    assert_eq!(board.health(), Health::Healthy);
    media.failed("The group is gone.", None);
    assert_eq!(board.readiness(), Ok(()), "a later failure is a matter of health");
}

#[test]
fn running_without_progress_turns_unhealthy_and_only_progress_heals() {
    let (time, board) = board();
    let connector = board.connector("acme");
    let messages = connector.task(0);
    board.all_connectors_known();
    messages.running();
    time.advance(TIMEOUT);
    assert_eq!(board.health(), Health::Healthy);
    time.advance(Duration::from_secs(1));
    assert_eq!(unhealthy(&board), "task acme-0 is RUNNING. It has made no progress for 301 s.");
    messages.restarting();
    messages.running();
    assert!(unhealthy(&board).contains("no progress"), "a restart alone is no progress");
    messages.progress();
    assert_eq!(board.health(), Health::Healthy);
    assert_eq!(task(&board).restarts, 1);
}

#[test]
fn a_start_that_takes_longer_than_the_timeout_is_unhealthy() {
    let (time, board) = board();
    let connector = board.connector("acme");
    let messages = connector.task(0);
    messages.degraded("No broker answers at localhost:1: start it or correct bootstrap.servers.");
    board.all_connectors_known();
    assert!(matches!(board.health(), Health::Starting(_)));
    time.advance(TIMEOUT + Duration::from_secs(1));
    assert!(unhealthy(&board).contains("is UNASSIGNED: No broker answers"));
}

#[test]
fn a_failure_stays_with_since_when_and_how_often_until_work_is_done_again() {
    let (time, board) = board();
    let connector = board.connector("acme");
    let messages = connector.task(0);
    board.all_connectors_known();
    messages.running();
    messages.progress();
    time.advance(Duration::from_secs(60));
    let refused = "40001: the secret is wrong; correct wecom.secret";
    messages.failed(refused, Some(Duration::from_secs(600)));
    let failed =
        format!("{refused}. 1 failure since 2026-01-01T00:01:00Z. The next attempt is at 2026-01-01T00:11:00Z.");
    assert_eq!(unhealthy(&board), format!("task acme-0 is FAILED: {failed}"));

    // Neither another start nor a task that runs again has done any work.
    time.advance(Duration::from_secs(600));
    let starts = [(TaskHandle::restarting as fn(&TaskHandle), "RESTARTING"), (TaskHandle::running, "RUNNING")];
    for (start, state) in starts {
        start(&messages);
        let last = format!("The last failure: {refused}. 1 failure since 2026-01-01T00:01:00Z.");
        assert_eq!(unhealthy(&board), format!("task acme-0 is {state}: {last}"));
    }
    messages.degraded("pulling fails: WeCom is busy.");
    let last = "The last failure: pulling fails: WeCom is busy. 2 failures since 2026-01-01T00:01:00Z.";
    assert_eq!(unhealthy(&board), format!("task acme-0 is RUNNING: {last}"));
    messages.failed("Another cause.", None);
    assert_eq!(task(&board).trace().as_deref(), Some("Another cause. 3 failures since 2026-01-01T00:01:00Z."));

    messages.restarting();
    messages.running();
    messages.progress();
    assert_eq!((task(&board).trace(), board.health()), (None, Health::Healthy));
    messages.failed("It is new.", None);
    assert_eq!(task(&board).trace().as_deref(), Some("It is new. 1 failure since 2026-01-01T00:11:00Z."));
    messages.stopped();
    assert_eq!((task(&board).trace(), board.health()), (None, Health::Healthy));
}

#[test]
fn attempts_that_fail_for_long_are_unhealthy_also_while_the_task_runs() {
    let (time, board) = board();
    let connector = board.connector("acme");
    let messages = connector.task(0);
    board.all_connectors_known();
    messages.running();
    messages.condition("Records are held.");
    assert_eq!((task(&board).trace().as_deref(), board.health()), (Some("Records are held."), Health::Healthy));
    messages.progress();
    assert_eq!(task(&board).trace(), None);
    // Each failure, how many seconds after the one before, and whether that is unhealthy.
    for (after_s, is_unhealthy) in [(0, false), (29, false), (1, true), (200, true)] {
        time.advance(Duration::from_secs(after_s));
        messages.degraded("pulling fails: WeCom is busy");
        assert_eq!(board.health() != Health::Healthy, is_unhealthy, "{after_s} s later");
    }
    let told = "task acme-0 is RUNNING: pulling fails: WeCom is busy. 4 failures since 2026-01-01T00:00:00Z.";
    assert_eq!(unhealthy(&board), told);
    messages.progress();
    assert_eq!((task(&board).trace(), board.health()), (None, Health::Healthy));
}

#[test]
fn trouble_aside_lasts_beside_other_work_until_it_is_over() {
    let (time, board) = board();
    let connector = board.connector("acme");
    let media = connector.task(0);
    board.all_connectors_known();
    media.running();
    let pause = Duration::from_secs(60);
    media.trouble("wait", "media wait: the store is full", pause);
    media.trouble("files", "the store does not take a file: denied", pause);
    time.advance(Duration::from_secs(30));
    media.trouble("wait", "media wait: the store is full", pause);
    // Neither a file that comes, nor another start of the task takes it back.
    media.progress();
    media.failed("Kafka cannot be reached", Some(pause));
    media.restarting();
    let kafka = "The last failure: Kafka cannot be reached. 1 failure since 2026-01-01T00:00:30Z.";
    let files = "the store does not take a file: denied. 1 failure since 2026-01-01T00:00:00Z.";
    let wait = "media wait: the store is full. 2 failures since 2026-01-01T00:00:00Z.";
    assert_eq!(unhealthy(&board), format!("task acme-0 is RESTARTING: {kafka} {files} {wait}"));
    media.running();
    media.progress();
    media.trouble_is_over("wait");
    assert_eq!(task(&board).trace().as_deref(), Some(files));
    // The file is tried by another worker by now.
    time.advance(pause + trouble::TROUBLE_REMEMBERED);
    media.progress();
    assert_eq!((board.health(), task(&board).trace()), (Health::Healthy, None));
    media.trouble("files", "denied", pause);
    assert!(unhealthy(&board).contains("1 failure since"), "what was forgotten begins anew");
    media.trouble_is_over("files");
    assert_eq!(board.health(), Health::Healthy);
}

#[test]
fn paused_and_stopped_tasks_need_no_progress_and_get_the_whole_time_on_return() {
    let (time, board) = board();
    let connector = board.connector("acme");
    let messages = connector.task(0);
    board.all_connectors_known();
    for rest in [TaskHandle::paused, TaskHandle::stopped] {
        rest(&messages);
        time.advance(TIMEOUT * 3);
        assert_eq!(board.health(), Health::Healthy);
        messages.running();
        assert_eq!(board.health(), Health::Healthy);
    }
}

#[test]
fn a_task_that_vanishes_is_failed_and_one_that_stopped_is_not() {
    let (_, board) = board();
    let connector = board.connector("acme");
    let messages = connector.task(0);
    messages.running();
    drop(messages);
    assert_eq!(task(&board).state, State::Failed);
    let messages = connector.task(0);
    messages.running();
    messages.stopped();
    drop(messages);
    assert_eq!(task(&board).state, State::Stopped);
}

#[test]
fn liveness_follows_the_tick() {
    let (time, board) = board();
    time.advance(LIVENESS_TIMEOUT);
    assert_eq!(board.liveness(), Ok(()));
    time.advance(Duration::from_secs(1));
    assert!(board.liveness().unwrap_err().contains("31 s"));
    board.tick();
    assert_eq!(board.liveness(), Ok(()));
}
