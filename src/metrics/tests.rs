use super::*;
use crate::clock::manual::{ManualClock, START_MS};

/// Dashboards and alerts stand on these: a change here is a breaking change.
const NAMES_AND_TYPES: &str = "\
wecom_connector_archive_gaps_total counter connector
wecom_connector_archive_info gauge connector,corp_id
wecom_connector_archive_lag_seconds gauge connector
wecom_connector_archive_window_seconds gauge 
wecom_connector_build_info gauge version,commit
wecom_connector_commit_seconds histogram connector
wecom_connector_dead_letters_total counter connector,reason
wecom_connector_decrypt_seconds histogram connector
wecom_connector_egress_clock_ahead_seconds gauge connector
wecom_connector_egress_connections_reused_total counter connector
wecom_connector_egress_connections_total counter connector
wecom_connector_egress_first_byte_seconds histogram connector
wecom_connector_egress_received_bytes_total counter connector
wecom_connector_egress_refusals_total counter connector,reason
wecom_connector_egress_requests_total counter connector,endpoint,status
wecom_connector_egress_sent_bytes_total counter connector
wecom_connector_end_to_end_seconds histogram connector
wecom_connector_fencings_total counter connector
wecom_connector_last_committed_seq gauge connector
wecom_connector_last_pulled_seq gauge connector
wecom_connector_media_bytes_total counter connector
wecom_connector_media_fetch_seconds histogram connector
wecom_connector_media_in_flight gauge connector
wecom_connector_media_oldest_pending_age_seconds gauge connector
wecom_connector_media_total counter connector,status
wecom_connector_messages_published_total counter connector
wecom_connector_oldest_undelivered_age_seconds gauge connector
wecom_connector_page_limit gauge connector
wecom_connector_pull_seconds histogram connector
wecom_connector_rate_limit_wait_seconds_total counter connector
wecom_connector_rate_limit_waits_total counter connector
wecom_connector_records_held gauge connector
wecom_connector_records_pulled_total counter connector
wecom_connector_repeats_dropped_total counter connector
wecom_connector_sdk_calls_total counter connector,function,code
wecom_connector_sdk_host_restarts_total counter connector,reason
wecom_connector_task_progress_age_seconds gauge connector,task
wecom_connector_task_restarts_total counter connector,task
wecom_connector_task_state gauge connector,task,state
wecom_connector_task_trouble_seconds gauge connector,task
wecom_connector_transactions_total counter connector,result
wecom_connector_unwrap_seconds histogram connector
";

struct Setup {
    time: ManualClock,
    metrics: Arc<Metrics>,
    board: Arc<StatusBoard>,
}

impl Setup {
    fn new() -> Self {
        let time = ManualClock::default();
        let metrics = Metrics::new(time.clock());
        let board = StatusBoard::new(time.clock(), Duration::from_secs(300));
        Self { time, metrics, board }
    }

    fn render(&self) -> String {
        self.metrics.render(&self.board).expect("rendered")
    }

    /// The value of one series, written as in the scrape without the prefix.
    #[track_caller]
    fn value(&self, series: &str) -> f64 {
        let text = self.render();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("wecom_connector_{series} ")));
        line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().expect("a number")
    }
}

#[test]
fn names_types_and_labels_are_stable() {
    let actual: String = definitions()
        .iter()
        .map(|Definition { name, kind, labels, .. }| format!("{name} {kind} {}\n", labels.join(",")))
        .collect();
    assert_eq!(actual, NAMES_AND_TYPES);
}

#[test]
fn every_declared_metric_is_in_the_scrape_after_use() {
    let setup = Setup::new();
    let connector = setup.metrics.connector("acme", "ww1");
    let _task = setup.board.connector("acme").task(0);
    connector.dead_letter("not_json");
    connector.sdk_call("GetChatData", 10001);
    connector.sdk_host_restart("crash");
    connector.egress.request("gettoken", "200");
    connector.egress.refused("host");
    let text = setup.render();
    for Definition { name, kind, help, labels } in definitions() {
        assert!(text.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        assert!(text.contains(&format!("# HELP {name} {help}\n")), "{name}");
        let series = text
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name}_count{{")));
        for label in labels {
            let series = series.unwrap_or_else(|| panic!("{name} has no series"));
            assert!(series.contains(&format!("{label}=\"")), "{label} in {series}");
        }
        assert!(help.ends_with('.'), "{name}: help is a sentence");
    }
    if cfg!(target_os = "linux") {
        assert!(text.contains("\nprocess_resident_memory_bytes "));
    }
}

#[test]
fn the_reference_has_a_row_for_every_metric() {
    let reference = reference();
    assert_eq!(reference.lines().count(), definitions().len() + 2);
    let row = "| `wecom_connector_dead_letters_total` | counter | `connector`, `reason` | ";
    assert!(reference.contains(row), "{reference}");
}

#[test]
fn connectors_do_not_mix_and_a_restart_goes_on_counting() {
    let setup = Setup::new();
    setup.metrics.connector("a", "ww1").records_pulled.inc_by(3);
    setup.metrics.connector("b", "ww2").records_pulled.inc_by(5);
    setup.metrics.connector("a", "ww1").records_pulled.inc_by(4);
    assert_eq!(setup.value(r#"records_pulled_total{connector="a"}"#), 7.0);
    assert_eq!(setup.value(r#"records_pulled_total{connector="b"}"#), 5.0);
    assert_eq!(setup.value(r#"transactions_total{connector="b",result="unknown"}"#), 0.0);
}

#[test]
fn hostile_names_stay_inside_their_label() {
    let setup = Setup::new();
    setup.metrics.connector("a\"b\\c\n", "ww1").fencings.inc();
    assert_eq!(setup.value(r#"fencings_total{connector="a\"b\\c\n"}"#), 1.0);
}

#[test]
fn ages_grow_between_scrapes_without_any_event() {
    let setup = Setup::new();
    let connector = setup.metrics.connector("acme", "ww1");
    connector.lag.pulled(7);
    connector.lag.committed(7, Some(START_MS), START_MS);
    connector.lag.drained(START_MS, Duration::from_secs(5));
    connector.media_oldest_pending(1, Some(START_MS - 2_000));
    connector.media_oldest_pending(2, Some(START_MS - 9_000));
    let _task = setup.board.connector("acme").task(0);
    let read = |name: &str| setup.value(&format!(r#"{name}{{connector="acme"}}"#));
    assert_eq!((read("archive_lag_seconds"), read("media_oldest_pending_age_seconds")), (0.0, 9.0));
    assert_eq!((read("last_pulled_seq"), read("last_committed_seq")), (7.0, 7.0));
    setup.time.advance(Duration::from_secs(3600));
    assert_eq!((read("archive_lag_seconds"), read("oldest_undelivered_age_seconds")), (3600.0, 3600.0));
    assert_eq!(read("media_oldest_pending_age_seconds"), 3609.0);
    assert_eq!(setup.value(r#"task_progress_age_seconds{connector="acme",task="0"}"#), 3600.0);
    connector.media_oldest_pending(1, None);
    connector.media_oldest_pending(2, None);
    assert_eq!(read("media_oldest_pending_age_seconds"), 0.0);
}

#[test]
fn task_states_follow_the_board() {
    let setup = Setup::new();
    let connector = setup.board.connector("acme");
    let task = connector.task(0);
    let state = |state: &str| setup.value(&format!(r#"task_state{{connector="acme",state="{state}",task="0"}}"#));
    assert_eq!((state("UNASSIGNED"), state("RUNNING")), (1.0, 0.0));
    task.running();
    assert_eq!((state("UNASSIGNED"), state("RUNNING")), (0.0, 1.0));
    task.failed("gone", None);
    task.restarting();
    setup.render();
    assert_eq!((state("RESTARTING"), state("FAILED")), (1.0, 0.0));
    assert_eq!(setup.value(r#"task_restarts_total{connector="acme",task="0"}"#), 1.0);
    task.stopped();
    assert_eq!(state("STOPPED"), 1.0, "the series of a stopped task stay");
}

#[test]
fn what_is_counted_through_methods() {
    let setup = Setup::new();
    let connector = setup.metrics.connector("acme", "ww1");
    for msgtime_ms in [START_MS - 2_000, START_MS, 0, START_MS + 60_000] {
        connector.delivered(msgtime_ms);
    }
    assert_eq!(setup.value(r#"end_to_end_seconds_count{connector="acme"}"#), 2.0);
    assert_eq!(setup.value(r#"end_to_end_seconds_sum{connector="acme"}"#), 2.0);
    connector.transaction(TransactionResult::Aborted);
    assert_eq!(setup.value(r#"transactions_total{connector="acme",result="aborted"}"#), 1.0);
    connector.media(MediaStatus::Expired);
    assert_eq!(setup.value(r#"media_total{connector="acme",status="expired"}"#), 1.0);
    connector.rate_limit_waited(Duration::from_millis(250));
    assert_eq!(setup.value(r#"rate_limit_wait_seconds_total{connector="acme"}"#), 0.25);
    let in_flight = connector.media_started();
    assert_eq!(setup.value(r#"media_in_flight{connector="acme"}"#), 1.0);
    drop(in_flight);
    assert_eq!(setup.value(r#"media_in_flight{connector="acme"}"#), 0.0);
}
