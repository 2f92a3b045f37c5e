//! A corp with live traffic, its connector on two workers that take turns, and everything they stand on.

mod inflict;

use std::time::Duration;

use serde_json::Value;

use super::fault::Fault;
use super::figures::Figures;
use super::harness::{Broker, Corp, Kafka, S3, Worker, WorkerFiles, findings, wait_for, wait_until};
use super::proxy::Proxy;

const CONNECTOR: &str = "archive";

/// Messages of all types and media of several sizes, without an end; bad records now and then, and several in a row.
const CORP: &str = r#"
seed = 5
messages = 200
history_hours = 5.0
live_per_second = 30.0
calls_per_minute = 0
seq_gap_every = 70
seq_gap = 3
conversations = 40
media = { size_bytes = [0, 40000], large_share = 0.02, large_size_bytes = [600000, 12000000] }
bad = [
    { kind = "unknown_key_version", share = 0.002 },
    { kind = "garbage_ciphertext", share = 0.002 },
    { kind = "not_json", share = 0.002 },
    { kind = "missing_fields", share = 0.002 },
    { kind = "short_ciphertext", share = 0.003, seq = [1, 20, 21, 40, 50, 51, 52, 60, 80] },
]
"#;

/// Whoever is gone is missed soon, so that its transaction and its partitions do not stay open for long.
const BROKER_PROPERTIES: &str = "transaction.abort.timed.out.transaction.cleanup.interval.ms=500\n\
    broker.heartbeat.interval.ms=500\nbroker.session.timeout.ms=3000";

const LIVE_PER_SECOND: usize = 30;
const MESSAGES: usize = 200;

/// Pulled and committed again within so long, whatever happened. Far off what it takes.
const RECOVERY: Duration = Duration::from_secs(240);

/// The exit code of a `verify` that could not be done.
const CANNOT_LOOK: i32 = 69;

const PUBLISHED: &str = "wecom_connector_messages_published_total";

#[derive(Debug)]
pub struct Stage {
    kafka: Kafka,
    /// In front of each broker.
    proxies: Vec<Proxy>,
    s3: S3,
    corp: Corp,
    workers: [Worker; 2],
    /// Which of them runs.
    active: usize,
    faults: u64,
    /// By how many seconds the worker's clock has been behind at most.
    clock_behind_s: i64,
    /// By how many it has been ahead.
    clock_ahead_s: i64,
    pub figures: Figures,
}

impl Stage {
    /// Everything runs, on so many brokers. `mistake` is made by all workers on purpose.
    pub fn new(seed: u64, brokers: usize, mistake: Option<&str>) -> Stage {
        let proxies: Vec<Proxy> = (0..brokers).map(|_| Proxy::start()).collect();
        let advertised: Vec<String> = proxies.iter().map(Proxy::address).collect();
        let mut kafka = Kafka::start_proxied(BROKER_PROPERTIES, &advertised);
        for (proxy, broker) in proxies.iter().zip(kafka.brokers()) {
            proxy.lead_to(broker.behind_proxy());
        }
        let s3 = S3::start("media");
        let corp = Corp::new(CORP, "");
        let first = WorkerFiles::new(&kafka);
        let second = WorkerFiles::new(&kafka)
            .set("group.id", first.get("group.id"))
            .set("offset.storage.topic", first.get("offset.storage.topic"));
        let workers = [first, second].map(|files| connect(files, &corp, &advertised.join(","), &s3, mistake).worker());
        let mut stage = Stage {
            kafka,
            proxies,
            s3,
            corp,
            workers,
            active: 0,
            faults: 0,
            clock_behind_s: 0,
            clock_ahead_s: 0,
            figures: Figures::new(seed),
        };
        stage.worker().start_again();
        stage.wait_published(0.0);
        stage
    }

    /// The worker that runs.
    fn worker(&mut self) -> &mut Worker {
        &mut self.workers[self.active]
    }

    /// Of the process.
    pub fn worker_id(&mut self) -> u32 {
        self.worker().process().id()
    }

    /// What the running worker has published since its start.
    fn published(&mut self) -> f64 {
        self.worker().metric(PUBLISHED, &[]).unwrap_or_default()
    }

    /// Waits until the running worker has published more.
    fn wait_published(&mut self, before: f64) {
        let worker = self.worker();
        wait_for("the worker to pull and commit again", RECOVERY, || {
            if let Some(status) = worker.process().exited() {
                panic!("the worker ended: {status}");
            }
            worker.metric(PUBLISHED, &[]).filter(|now| *now > before)
        });
    }

    /// Waits until the media task of the running worker has committed something new: then it is not just being started again.
    fn wait_media(&mut self) {
        let worker = self.worker();
        let count = || worker.metric("wecom_connector_media_total", &[("status", "stored")]).unwrap_or_default();
        let before = count();
        wait_until("the media task to commit", RECOVERY, || count() > before);
    }

    /// Does it, and waits until the connector pulls and commits again. Gives how long that took from the fault's end on.
    pub fn suffer(&mut self, fault: &Fault) -> Duration {
        self.figures.fault(fault.kind());
        let (ended, before) = self.inflict(fault);
        self.wait_published(before);
        let within = ended.elapsed();
        self.figures.recovered(within);
        let worker = &self.workers[self.active];
        let size = |name: &str| worker.metric(name, &[]);
        if let (Some(resident_bytes), Some(open_files)) =
            (size("process_resident_memory_bytes"), size("process_open_fds"))
        {
            self.figures.sized(resident_bytes, open_files);
        }
        within
    }

    fn kill_worker(&mut self) {
        self.worker().kill();
        self.figures.kill("worker");
    }

    fn kill_host(&mut self) {
        self.worker().kill_sdk_host();
        self.figures.kill("SDK host");
    }

    /// Lets the traffic end, waits until all of it has arrived, judges all that was ever published, and lets it go on. Gives what
    /// was found: nothing, if all is well.
    pub fn judge(&mut self) -> Vec<String> {
        let mut live = self.said() - MESSAGES;
        loop {
            live += 5 * LIVE_PER_SECOND;
            self.corp.change(&format!("{CORP}live_messages = {live}\n"), "");
            self.kill_host();
            wait_until("the traffic to end", RECOVERY, || self.said() == MESSAGES + live);
            // A host that knew of no end may have told more by then.
            if !self.is_ahead() {
                break;
            }
        }
        let last = self.last_said();
        let worker = self.worker();
        wait_until("all of it to be committed", RECOVERY, || {
            worker.metric("wecom_connector_last_committed_seq", &[]) == Some(last)
        });
        let mut found = Vec::new();
        let files = self.workers[self.active].files();
        // It waits for the media as well.
        let reader = self.corp.reader(&self.kafka, files, CONNECTOR, Some(&self.s3));
        let (is_clean, report) = reader
            .option("--clock-behind", self.clock_behind_s.to_string())
            .option("--clock-ahead", self.clock_ahead_s.to_string())
            .run();
        if !is_clean {
            found.push(report);
        }
        found.extend(self.verify());
        self.figures.judgements += 1;
        self.corp.change(CORP, "");
        self.kill_host();
        found
    }

    /// What `wecom-connector verify` finds. It may look while traffic goes on.
    pub fn verify(&mut self) -> Option<String> {
        let files = self.workers[self.active].files();
        // A broker that has just started may not know the group yet.
        let (code, report, said) = wait_for("verify to be able to look", RECOVERY, || {
            let looked = files.verify(CONNECTOR, &[]);
            (looked.0 != Some(CANNOT_LOOK)).then_some(looked)
        });
        self.figures.records = report["sequence"]["records"].as_u64().unwrap_or_default();
        let media = report["counts"]["media references"].as_object();
        self.figures.media = media.into_iter().flat_map(|kinds| kinds.values()).filter_map(Value::as_u64).sum();
        let kinds = findings(&report);
        for (kind, _) in &kinds {
            *self.figures.findings.entry(kind.clone()).or_default() += 1;
        }
        (code != Some(0)).then(|| format!("verify ended with {code:?}: {kinds:?}\n{said}{report:#}"))
    }

    /// Copies logs and the broker's data to where they outlive the test.
    fn keep(&mut self) {
        let kept = super::harness::repository().join(format!("target/faults/seed-{}", self.figures.seed));
        let _ = std::fs::remove_dir_all(&kept);
        std::fs::create_dir_all(&kept).expect("a folder in target/");
        for what in ["/connectors/archive/status", "/metrics"] {
            let (_, text) = self.worker().get(what).unwrap_or_default();
            let _ = std::fs::write(kept.join(what.replace('/', "-")), text);
        }
        self.kafka.brokers().iter_mut().for_each(Broker::kill);
        let brokers = self.kafka.brokers().iter().map(Broker::folder);
        let folders = self.workers.iter().map(|worker| worker.files().folder()).chain(brokers);
        let copied = std::process::Command::new("cp").arg("-r").args(folders).arg(&kept).status();
        eprintln!("logs and topics are kept in {} ({copied:?})", kept.display());
    }

    fn said(&self) -> usize {
        std::fs::read_to_string(self.corp.expected()).expect("the list").lines().count()
    }

    fn last_said(&self) -> f64 {
        let list = std::fs::read_to_string(self.corp.expected()).expect("the list");
        let last: Value = serde_json::from_str(list.lines().last().expect("a message")).expect("JSON");
        last["seq"].as_f64().expect("a seq")
    }

    fn is_ahead(&mut self) -> bool {
        let last = self.last_said();
        self.worker().metric("wecom_connector_last_committed_seq", &[]).is_some_and(|committed| committed > last)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.keep();
        }
    }
}

fn connect(files: WorkerFiles, corp: &Corp, bootstrap: &str, s3: &S3, mistake: Option<&str>) -> WorkerFiles {
    let endpoint = s3.endpoint();
    let more = [
        ("wecom.page.limit", "6"),
        ("wecom.timeout.ms", "1000"),
        ("poll.interval.ms", "150"),
        // Short, so that a broker can be gone for longer.
        ("transaction.timeout.ms", "4000"),
        ("storage.type", "s3"),
        ("storage.bucket", "media"),
        ("storage.endpoint", endpoint.as_str()),
        ("storage.region", "us-east-1"),
        ("storage.access.key.id", S3::ACCESS_KEY),
        ("storage.secret.access.key", S3::SECRET_KEY),
    ];
    let files = corp.connect(files.set("bootstrap.servers", bootstrap), CONNECTOR, &more);
    match mistake {
        Some(mistake) => files.environment("WECOM_CONNECTOR_BREAK", mistake),
        None => files,
    }
}
