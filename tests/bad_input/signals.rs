//! What ends a worker, or does not: ports, limits, signals.

use super::*;

/// A port that is still held, a limit for files, signals: the worker waits, goes on, or leaves with all committed, and
/// says why.
#[test]
fn no_signal_and_no_limit_ends_it_half_way() {
    let corp = Corp::new("messages = 20\nlive_per_second = 5.0", "");
    let files = corp.connect(WorkerFiles::new(Kafka::shared()), "archive", &[]);
    let port: u16 = files.get("listeners").rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let predecessor = TcpListener::bind(("127.0.0.1", port)).expect("the port");
    let mut worker = files.start();
    wait_until("the worker to wait for its port", PATIENCE, || worker.log().contains("another process has this port"));
    drop(predecessor);
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 20.0);

    // No file may grow any more, the log neither.
    let id = Pid::from_raw(i32::try_from(worker.process().id()).expect("a process id")).expect("a process id");
    let limit = |current| prlimit(Some(id), Resource::Fsize, Rlimit { current, maximum: None }).expect("a limit");
    limit(Some(1));
    worker.process().signal(Signal::HUP);
    let committed = worker.metric("wecom_connector_last_committed_seq", &[]).expect("a number");
    worker.wait_metric("wecom_connector_last_committed_seq", &[], committed + 5.0);
    limit(None);

    let own = std::process::id();
    worker.process().signal(Signal::HUP);
    let ignored = format!("SIGHUP from process {own} (");
    wait_until("SIGHUP in the log", PATIENCE, || worker.log().contains(&ignored));
    assert_eq!(worker.get("/livez").expect("an answer").0, 200);
    worker.process().signal(Signal::USR1);
    assert_eq!(worker.process().wait(PATIENCE).code(), Some(0), "{}", worker.log());
    let log = worker.log();
    let version = concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"");
    for words in [
        version,
        "configuration: bootstrap.servers=\"",
        "wecom.secret=[hidden]",
        "wecom.page.limit=\"1000\"",
        &format!("leaving because of SIGUSR1 from process {own} ("),
        "wecom-connector ends, because it was told to end, and everything in flight is committed",
        "exit_code=0",
    ] {
        assert!(log.contains(words), "{words} is not in the log:\n{log}");
    }
    assert_harmless(&log);
}
