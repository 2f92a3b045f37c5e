//! The connector's own binary, run as a user runs it: property files in a folder, signals, an HTTP listener.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::{Kafka, PATIENCE, Process, free_port, parts, unique, wait_for, wait_until};

type Properties = BTreeMap<String, String>;

/// The files of a worker to be: `worker.properties` and one properties file per connector.
#[derive(Debug)]
pub struct WorkerFiles {
    folder: TempDir,
    worker: Properties,
    connectors: BTreeMap<String, Properties>,
    environment: BTreeMap<String, String>,
    port: u16,
}

impl WorkerFiles {
    /// A worker on this broker, with a group, an offsets topic and a port of its own.
    pub fn new(kafka: &Kafka) -> WorkerFiles {
        let folder = tempfile::Builder::new().prefix("worker-").tempdir().expect("a folder for the worker");
        let port = free_port();
        let files = WorkerFiles {
            folder,
            worker: Properties::new(),
            connectors: BTreeMap::new(),
            environment: BTreeMap::new(),
            port,
        };
        let group = unique("group");
        files
            .set("bootstrap.servers", kafka.bootstrap())
            .set("group.id", &group)
            .set("offset.storage.topic", &format!("{group}-offsets"))
            .set("offset.storage.partitions", "5")
            .set("offset.storage.replication.factor", "-1")
            .set("listeners", &format!("http://127.0.0.1:{port}"))
    }

    /// Sets a key of `worker.properties`.
    pub fn set(mut self, key: &str, value: &str) -> WorkerFiles {
        self.worker.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds keys to the connector of this name, which comes to be with the first of them.
    pub fn connector(mut self, name: &str, properties: &[(&str, &str)]) -> WorkerFiles {
        let connector = self.connectors.entry(name.to_owned()).or_default();
        connector.insert("name".to_owned(), name.to_owned());
        connector.extend(properties.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
        self
    }

    /// Sets a variable of the worker's environment.
    pub fn environment(mut self, key: &str, value: &str) -> WorkerFiles {
        self.environment.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The worker's folder, for keys, scenarios and whatever else its files speak of.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// A value set before.
    pub fn get(&self, key: &str) -> &str {
        &self.worker[key]
    }

    /// A worker that is to be started on these files.
    pub fn worker(self) -> Worker {
        Worker { process: None, files: self }
    }

    /// Writes the files and starts `wecom-connector standalone` on them; does not wait until it is ready.
    pub fn start(self) -> Worker {
        let mut worker = self.worker();
        worker.start_again();
        worker
    }

    /// Runs `wecom-connector verify` on these files and gives its exit code, its report, and what it said beside.
    pub fn verify(&self, connector: &str, arguments: &[&str]) -> (Option<i32>, Value, String) {
        let (code, report, said) = self.run(&["verify"], connector, &[&["--json"], arguments].concat());
        (code, serde_json::from_str(&report).unwrap_or_default(), said)
    }

    /// Runs a command on these files, as `run(&["offsets", "get"], "archive", &["--json"])`, and gives its exit code, what it wrote
    /// and what it said beside.
    pub fn run(&self, command: &[&str], connector: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
        let output = self.command(command, connector, arguments).output().expect("the connector's binary");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    /// Asks the worker on these files whether it lives: exit code, and what is said.
    pub fn probe(&self) -> (Option<i32>, String) {
        let output = Command::new(parts::connector())
            .args(["probe", "worker.properties"])
            .current_dir(self.folder())
            .envs(&self.environment)
            .output()
            .expect("the connector's binary");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.code(), said)
    }

    /// Another command of the program, on this worker's file and that of one connector: `wecom-connector dlq list … --json`.
    pub fn command(&self, words: &[&str], connector: &str, options: &[&str]) -> Command {
        self.write();
        let mut command = Command::new(parts::connector());
        command.args(words).arg("worker.properties").arg(format!("{connector}.properties")).args(options);
        command.current_dir(self.folder()).envs(&self.environment);
        command
    }

    /// Writes the files, and gives their paths: the worker's first, then the connectors' by name.
    pub fn write(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.folder.path().join("worker.properties")];
        std::fs::write(&paths[0], lines(&self.worker)).expect("worker.properties");
        for (name, properties) in &self.connectors {
            let path = self.folder.path().join(format!("{name}.properties"));
            std::fs::write(&path, lines(properties)).expect("properties of a connector");
            paths.push(path);
        }
        paths
    }
}

/// The commands that ask Kafka and change nothing, each with its options.
pub const ASKING_KAFKA: [(&[&str], &[&str]); 5] = [
    (&["validate"], &["--connect"]),
    (&["offsets", "get"], &[]),
    (&["offsets", "rewind"], &["--by", "1", "--dry-run"]),
    (&["dlq", "list"], &[]),
    (&["verify"], &[]),
];

/// Kinds and seqs of all findings in a report of `verify`, sorted.
pub fn findings(report: &Value) -> Vec<(String, Option<u64>)> {
    let promises = report["promises"].as_object().into_iter().flat_map(|promises| promises.values());
    let findings = promises.flat_map(|promise| promise["findings"].as_array().into_iter().flatten());
    let mut found: Vec<_> = findings
        .map(|finding| (finding["kind"].as_str().unwrap_or_default().to_owned(), finding["seq"].as_u64()))
        .collect();
    found.sort();
    found
}

fn lines(properties: &Properties) -> String {
    // In a properties file a backslash begins an escape.
    properties.iter().map(|(key, value)| format!("{key}={}\n", value.replace('\\', "\\\\"))).collect()
}

/// A running worker.
#[derive(Debug)]
pub struct Worker {
    process: Option<Process>,
    files: WorkerFiles,
}

impl Worker {
    /// Starts it again, after [`Worker::kill`] or [`Worker::terminate`], on the same files.
    pub fn start_again(&mut self) {
        self.start_with(&[]);
    }

    /// As [`Worker::start_again`], with variables that this one start has in its environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        let output = self.files.folder().join("worker.log");
        self.start_on(environment, &output);
    }

    fn start_on(&mut self, environment: &[(&str, &str)], output: &Path) {
        let mut command = Command::new(parts::connector());
        command.arg("standalone").args(self.files.write()).current_dir(self.files.folder());
        command.envs(&self.files.environment).envs(environment.iter().copied());
        self.process = Some(Process::spawn("wecom-connector", &mut command, self.files.folder(), output));
    }

    /// As [`Worker::start_again`], where there is no room for a log.
    pub fn start_unheard(&mut self) {
        self.start_on(&[], Path::new("/dev/full"));
    }

    /// As [`Worker::start_again`], with changed files.
    pub fn start_changed(mut self, change: impl FnOnce(WorkerFiles) -> WorkerFiles) -> Worker {
        self.process = None;
        change(self.files).start()
    }

    pub fn files(&self) -> &WorkerFiles {
        &self.files
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("a started worker")
    }

    /// Everything it has logged, also before a restart.
    pub fn log(&self) -> String {
        self.process.as_ref().expect("a started worker").output()
    }

    /// Waits until `/readyz` says yes; panics when the worker ends before.
    pub fn wait_ready(&mut self) {
        let port = self.files.port;
        self.process().wait_ready(PATIENCE, |_| get(port, "/readyz").is_some_and(|(status, _)| status == 200));
    }

    /// Status and body of a GET, or nothing where nobody answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        get(self.files.port, path)
    }

    /// The sum of a metric's samples whose labels hold all of `labels`, as `[("status", "stored")]`. Nothing where there is no
    /// such sample, or no answer.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let (_, text) = self.get("/metrics")?;
        sum(&text, name, labels)
    }

    /// Waits until the metric is at least `value`; panics when the worker ends before.
    pub fn wait_metric(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let port = self.files.port;
        let mut last = None;
        let process = self.process();
        wait_for(&format!("{name}{labels:?} to reach {value}"), PATIENCE, || {
            let now = get(port, "/metrics").and_then(|(_, text)| sum(&text, name, labels));
            if now != last {
                eprintln!("{name}{labels:?}: {now:?}");
                last = now;
            }
            if let Some(status) = process.exited() {
                panic!("the worker ended: {status}");
            }
            now.is_some_and(|now| now >= value).then_some(())
        });
    }

    /// `kill -9`, and waits until its SDK hosts are gone too: they must not outlive it.
    pub fn kill(&mut self) {
        let hosts = self.sdk_hosts();
        self.process().kill();
        wait_until("the SDK hosts to end with their worker", PATIENCE, || !hosts.iter().any(|host| alive(*host)));
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(&mut self) -> ExitStatus {
        self.process().terminate(PATIENCE)
    }

    /// Process ids of its SDK hosts.
    pub fn sdk_hosts(&mut self) -> Vec<u32> {
        let worker = self.process().id();
        std::fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|id| parent(*id) == Some(worker) && is_sdk_host(*id))
            .collect()
    }

    /// `kill -9` of an SDK host, as soon as there is one.
    pub fn kill_sdk_host(&mut self) {
        let host = wait_for("an SDK host", PATIENCE, || self.sdk_hosts().first().copied());
        let id = Pid::from_raw(i32::try_from(host).expect("a process id")).expect("a process id");
        // It may have ended by itself in between.
        let _ = kill_process(id, Signal::KILL);
        wait_until("the end of the SDK host", PATIENCE, || !alive(host));
    }
}

fn get(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

fn sum(text: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let wanted: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let (found, value) = match rest.strip_prefix('{') {
            Some(rest) => rest.rsplit_once("} ")?,
            None => ("", rest.strip_prefix(' ')?),
        };
        wanted.iter().all(|label| found.contains(label)).then(|| value.trim().parse::<f64>().ok())?
    });
    samples.fold(None, |sum, sample| Some(sum.unwrap_or(0.0) + sample))
}

/// The parent of a process that is not a zombie.
fn parent(id: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may hold anything; what follows the last one is fixed: state, parent, …
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    (state != "Z").then(|| fields.next()?.parse().ok())?
}

fn alive(id: u32) -> bool {
    parent(id).is_some() && is_sdk_host(id)
}

fn is_sdk_host(id: u32) -> bool {
    std::fs::read(format!("/proc/{id}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"sdk-host"))
}
