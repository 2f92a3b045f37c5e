//! A simulated corp: its scenario, its keys, and what it really said.

use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use wecom_simulator::archive::Archive;
use wecom_simulator::scenario::Scenario;

use super::{Kafka, PATIENCE, Reader, S3, VendorApi, WorkerFiles, parts, unique};

/// A corp with an archive of its own. Everything about it follows from its scenario.
#[derive(Debug)]
pub struct Corp {
    folder: TempDir,
    pub id: String,
}

/// The secret of every simulated corp.
pub const SECRET: &str = "s1mulated-Secret-Wallaby-42";

impl Corp {
    /// `settings` are lines of the scenario's `[[corp]]`; `more` are further tables, such as `[[fault]]`.
    pub fn new(settings: &str, more: &str) -> Corp {
        let folder = tempfile::Builder::new().prefix("corp-").tempdir().expect("a folder for the corp");
        let id = unique("ww");
        let corp = Corp { folder, id };
        corp.change(settings, more);
        corp.simulator(&["keys", "--out"], &[corp.keys()]);
        corp
    }

    /// Changes the scenario, for SDK hosts that start from now on. What it said before has to stay the same.
    pub fn change(&self, settings: &str, more: &str) {
        self.write("", settings, more);
    }

    /// From now on the library goes over the network, to what is given here: an API that answers for this corp.
    pub fn go_online(&self, settings: &str, more: &str) -> VendorApi {
        self.write("network = { api = 'qyapi.weixin.qq.com:443' }\n", settings, more);
        let scenario = Scenario::load(&self.scenario()).expect("the scenario");
        VendorApi::serve(Archive::open(scenario).expect("the state folder"))
    }

    fn write(&self, head: &str, settings: &str, more: &str) {
        let id = &self.id;
        let scenario = format!("{head}[[corp]]\nid = \"{id}\"\nsecret = \"{SECRET}\"\n{settings}\n{more}\n");
        // At once: a host may be starting right now.
        let new = self.folder.path().join("scenario.new");
        std::fs::write(&new, scenario).and_then(|()| std::fs::rename(&new, self.scenario())).expect("a scenario");
    }

    /// How often a fault of this name has struck.
    pub fn strikes(&self, fault: &str) -> u64 {
        let path = self.folder.path().join("scenario.state/faults").join(fault);
        let counts = std::fs::read_to_string(path).unwrap_or_default();
        counts.split_whitespace().nth(1).and_then(|fired| fired.parse().ok()).unwrap_or_default()
    }

    pub fn scenario(&self) -> PathBuf {
        self.folder.path().join("scenario.toml")
    }

    /// Folder of the private keys, `<version>.pem`.
    pub fn keys(&self) -> PathBuf {
        self.folder.path().join("keys")
    }

    /// Where media go that are kept in a folder.
    pub fn storage(&self) -> PathBuf {
        self.folder.path().join("storage")
    }

    /// Adds a connector that reads this corp to a worker's files; media go to a local folder unless `more` says otherwise.
    pub fn connect(&self, files: WorkerFiles, connector: &str, more: &[(&str, &str)]) -> WorkerFiles {
        let text = |path: PathBuf| path.to_str().expect("a path in UTF-8").to_owned();
        let in_a_folder = !more.iter().any(|(key, _)| *key == "storage.type");
        let folder = text(self.storage());
        let folder = [("storage.path", folder.as_str())];
        files
            .connector(connector, if in_a_folder { &folder } else { &[] })
            .environment("WECOM_SIMULATOR_SCENARIO", &text(self.scenario()))
            .connector(
                connector,
                &[
                    ("wecom.corp.id", &self.id),
                    ("wecom.secret", SECRET),
                    ("wecom.sdk.library", &text(parts::simulator_library())),
                    ("wecom.private.keys.dir", &text(self.keys())),
                    ("topic", &self.topic()),
                    ("topic.creation.default.partitions", "4"),
                    ("topic.creation.default.retention.ms", "-1"),
                    ("topic.creation.default.replication.factor", "-1"),
                    ("poll.interval.ms", "100"),
                    ("errors.retry.delay.max.ms", "2000"),
                    ("media.retry.delay.ms", "500"),
                ],
            )
            .connector(connector, more)
    }

    /// The topic of its messages; the others are named after it.
    pub fn topic(&self) -> String {
        format!("{}-messages", self.id)
    }

    /// All topics with events of its connector.
    pub fn topics(&self) -> Vec<String> {
        ["", "-media-requests", "-media", "-dead-letters"].iter().map(|suffix| self.topic() + suffix).collect()
    }

    /// What it said up to now, one JSON object a line.
    pub fn expected(&self) -> PathBuf {
        let path = self.folder.path().join("expected.jsonl");
        std::fs::write(&path, self.simulator(&["list"], &[])).expect("the list of messages");
        path
    }

    /// The independent reader, told where everything of this corp and connector is.
    pub fn reader(&self, kafka: &Kafka, files: &WorkerFiles, connector: &str, s3: Option<&S3>) -> Reader {
        let reader = Reader::new(kafka, &self.expected())
            .option("--connector", connector)
            .option("--corp", &self.id)
            .option("--topic", self.topic())
            .option("--offsets-topic", files.get("offset.storage.topic"))
            .option("--wait", PATIENCE.as_secs().to_string());
        match s3 {
            Some(s3) => reader.option("--s3-root", s3.root()),
            None => reader,
        }
    }

    fn simulator(&self, arguments: &[&str], paths: &[PathBuf]) -> Vec<u8> {
        let output = Command::new(parts::simulator())
            .args(arguments)
            .args(paths)
            .arg("--scenario")
            .arg(self.scenario())
            .output()
            .expect("the simulator's program: cargo build --workspace");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }
}
