//! The independent reader: a Java program on Kafka's own client, which shares no code with the connector.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::Command;

use super::{Kafka, parts};

/// A run of the reader to be.
#[derive(Debug)]
pub struct Reader {
    arguments: Vec<OsString>,
}

impl Reader {
    /// Reads from this broker and compares with `expected`, the output of `wecom-simulator list`.
    pub fn new(kafka: &Kafka, expected: &Path) -> Reader {
        Reader { arguments: Vec::new() }.option("--bootstrap", kafka.bootstrap()).option("--expected", expected)
    }

    /// Adds an option: see `tools/reader/Reader.java`.
    pub fn option(mut self, name: &str, value: impl AsRef<OsStr>) -> Reader {
        self.arguments.push(name.into());
        self.arguments.push(value.as_ref().to_owned());
        self
    }

    /// Runs it; its findings fail the test. Gives its summary.
    pub fn check(self) -> String {
        let (clean, report) = self.run();
        assert!(clean, "the reader found something:\n{report}");
        report
    }

    /// Runs it; tells whether all was clean, and its report.
    pub fn run(self) -> (bool, String) {
        let output = Command::new("java")
            .arg("-cp")
            .arg(parts::kafka_libs().join("*"))
            .arg(parts::repository().join("tools/reader/Reader.java"))
            .args(&self.arguments)
            .output()
            .expect("java: run tools/real-parts system");
        let report = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), report)
    }
}
