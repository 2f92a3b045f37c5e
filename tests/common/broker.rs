//! One broker of a Kafka cluster on loopback: a process, with ports and a folder of its own.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use super::kafka::{SASL_PASSWORD, SASL_USER, Secured};
use super::{PATIENCE, Process, free_port, parts};

/// Data outlive [`Broker::kill`] and [`Broker::stop`].
#[derive(Debug)]
pub struct Broker {
    /// Counted from 1.
    id: usize,
    process: Option<Process>,
    folder: TempDir,
    address: String,
    controller: String,
    proxied: Option<Proxied>,
}

/// A further listener, whose clients are told another address to come by.
#[derive(Debug)]
struct Proxied {
    listens: String,
    advertised: String,
}

impl Broker {
    /// Ports and a folder. `advertised`: clients of a further listener are told to come by this address.
    pub(super) fn new(id: usize, advertised: Option<&str>) -> Broker {
        let address = || format!("127.0.0.1:{}", free_port());
        Broker {
            id,
            process: None,
            folder: tempfile::Builder::new().prefix("kafka-").tempdir().expect("a folder for the broker"),
            address: address(),
            controller: address(),
            proxied: advertised.map(|advertised| Proxied { listens: address(), advertised: advertised.to_owned() }),
        }
    }

    /// Address for clients without TLS and SASL.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Address of the controller in it, which serves no clients.
    pub fn controller(&self) -> &str {
        &self.controller
    }

    /// How the others find this one as a voter.
    pub(super) fn voter(&self) -> String {
        format!("{}@{}", self.id, self.controller)
    }

    /// Its log, its settings and its data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the proxy has to lead to that its clients are told of.
    pub fn behind_proxy(&self) -> &str {
        &self.proxied.as_ref().expect("a broker that is told of a proxy").listens
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.running().kill();
    }

    /// Orderly stop.
    pub fn stop(&mut self) {
        self.running().terminate(PATIENCE);
    }

    /// Freezes the broker: connections stay open, nothing is answered.
    pub fn freeze(&mut self) {
        self.running().signal(Signal::STOP);
    }

    /// Ends [`Broker::freeze`].
    pub fn thaw(&mut self) {
        self.running().signal(Signal::CONT);
    }

    /// Starts the broker after [`Broker::kill`] or [`Broker::stop`], on the same ports and data.
    pub fn start_again(&mut self) {
        let before = self.starts();
        self.spawn();
        self.wait_started(before);
    }

    /// Starts it without waiting for it: one of several cannot start alone.
    pub(super) fn spawn(&mut self) {
        let mut command = java();
        command.args(["-Xms128m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
        command.arg(format!("-Dlog4j2.configurationFile={}", self.file("log4j2.properties").display()));
        command.arg("kafka.Kafka").arg(self.file("server.properties"));
        let log = self.file("broker.log");
        self.process = Some(Process::spawn("the Kafka broker", &mut command, self.folder(), &log));
    }

    /// Waits until it has started more often than `before`.
    pub(super) fn wait_started(&mut self, before: usize) {
        let is_started = |process: &Process| process.output().matches(STARTED).count() > before;
        self.running().wait_ready(PATIENCE, is_started);
    }

    fn starts(&self) -> usize {
        std::fs::read_to_string(self.file("broker.log")).map_or(0, |text| text.matches(STARTED).count())
    }

    fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("a started broker")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `quorum`: the lines that say who the controllers are.
    pub(super) fn write_files(&self, brokers: usize, quorum: &str, secured: Option<&Secured>, more: &str) {
        let mut listeners = format!("PLAINTEXT://{},CONTROLLER://{}", self.address, self.controller);
        let mut advertised = format!("PLAINTEXT://{}", self.address);
        let mut security = String::new();
        if let Some(secured) = secured {
            for (protocol, address) in
                [("SSL", &secured.ssl), ("SASL_PLAINTEXT", &secured.sasl_plaintext), ("SASL_SSL", &secured.sasl_ssl)]
            {
                write!(listeners, ",{protocol}://{address}").expect("write to a string");
                write!(advertised, ",{protocol}://{address}").expect("write to a string");
            }
            security = secured.server_properties();
        }
        if let Some(Proxied { listens, advertised: address }) = &self.proxied {
            write!(listeners, ",PROXIED://{listens}").expect("write to a string");
            write!(advertised, ",PROXIED://{address}").expect("write to a string");
        }
        // A majority: what one broker alone has written is not acknowledged.
        let in_sync = brokers / 2 + 1;
        let properties = format!(
            "process.roles=broker,controller\n\
             node.id={id}\n\
             {quorum}\n\
             listeners={listeners}\n\
             advertised.listeners={advertised}\n\
             listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SSL:SSL,\
             SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL,PROXIED:PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             inter.broker.listener.name=PLAINTEXT\n\
             log.dirs={data}\n\
             default.replication.factor={brokers}\n\
             min.insync.replicas={in_sync}\n\
             offsets.topic.replication.factor={brokers}\n\
             offsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor={brokers}\n\
             transaction.state.log.min.isr={in_sync}\n\
             transaction.state.log.num.partitions={TRANSACTION_PARTITIONS}\n\
             share.coordinator.state.topic.replication.factor={brokers}\n\
             share.coordinator.state.topic.min.isr={in_sync}\n\
             group.initial.rebalance.delay.ms=0\n\
             {security}{more}\n",
            id = self.id,
            data = self.file("data").display(),
        );
        std::fs::write(self.file("server.properties"), properties).expect("server.properties");
        std::fs::write(self.file("log4j2.properties"), LOG4J2).expect("log4j2.properties");
    }

    pub(super) fn format(&self, is_alone: bool, has_users: bool) {
        let mut command = java();
        command.args(["-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format"]);
        if is_alone {
            command.arg("--standalone");
        }
        // Any 16 bytes as base64 are a cluster id.
        command.args(["-t", "d2Vjb20tY29ubmVjdG9yIQ", "-c"]).arg(self.file("server.properties"));
        if has_users {
            for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
                command.arg("--add-scram");
                command.arg(format!("{mechanism}=[name={SASL_USER},password={SASL_PASSWORD}]"));
            }
        }
        let output = command.output().expect("java: run tools/real-parts system");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "formatting the broker's folder: {}\n{text}", output.status);
    }
}

/// Java with Kafka's classes.
pub(super) fn java() -> Command {
    let mut command = Command::new("java");
    command.arg("-cp").arg(parts::kafka_libs().join("*"));
    command
}

/// Of the topic in which the coordinators write.
pub(super) const TRANSACTION_PARTITIONS: i32 = 4;

const STARTED: &str = "Kafka Server started";

const LOG4J2: &str = "\
    rootLogger.level=INFO\n\
    rootLogger.appenderRef.out.ref=out\n\
    appender.out.type=Console\n\
    appender.out.name=out\n\
    appender.out.layout.type=PatternLayout\n\
    appender.out.layout.pattern=%d %p %c{1}: %m%n\n";
