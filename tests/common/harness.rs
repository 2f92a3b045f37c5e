//! What the tests against real parts stand on: a stock Kafka broker, an S3 server, the connector's own binary on the
//! simulated library, and the independent reader.
//!
//! A test binary takes it in with `#[path = "common/harness.rs"] mod harness;`. The parts come from `tools/real-parts`;
//! `KAFKA_LIBS`, `S3S_FS`, `PROMTOOL` and `WECOM_VENDOR_LIBRARY` name them where they lie elsewhere. Every process started
//! here ends with its guard, with a panic, and with the test binary itself, however that ends.
#![allow(dead_code, unused_imports, reason = "every test binary compiles this module and uses its own share of it")]

mod broker;
mod corp;
mod kafka;
mod parts;
mod process;
mod reader;
mod s3;
mod s3_gate;
mod thread_limit;
mod topic;
mod vendor_api;
mod worker;

pub use broker::Broker;
pub use corp::{Corp, SECRET};
pub use kafka::{Kafka, SASL_PASSWORD, SASL_USER, Secured};
pub use parts::{connector, promtool, repository, simulator, simulator_library, vendor_library};
pub use process::Process;
pub use reader::Reader;
pub use s3::S3;
pub use s3_gate::{Rights, S3Gate};
pub use thread_limit::{EAGAIN, EPERM, thread_limit};
pub use topic::{check_schemas, header, read_committed};
pub use vendor_api::{FILES, Fault, PAGES, Request, TOKENS, VendorApi, file_id};
pub use worker::{ASKING_KAFKA, Worker, WorkerFiles, findings};

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bound for anything that takes a second or two on an idle machine: far off, so that a loaded machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Polls until there is an answer. Panics after `within`, saying what was waited for.
pub fn wait_for<T>(what: &str, within: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = poll() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {within:?} in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// As [`wait_for`], for a plain condition.
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, within, || condition().then_some(()));
}

/// A name that no other test uses: topics, groups and connectors of tests that share a broker stay apart.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:08x}", random() as u32)
}

/// A port that is free now and stays this process's own, also while its server is down: it lies below the range that the
/// kernel takes for outgoing connections, and no other test is given it as long as this process lives.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<Vec<UnixListener>> = Mutex::new(Vec::new());
    loop {
        let port = 12_000 + (random() % 20_000) as u16;
        // A name that ends with the process, and that one process at a time can have.
        let name = SocketAddr::from_abstract_name(format!("wecom-connector-test-port-{port}")).expect("a name");
        if let Ok(taken) = UnixListener::bind_addr(&name)
            && TcpListener::bind(("127.0.0.1", port)).is_ok()
        {
            TAKEN.lock().expect("no panic in here").push(taken);
            return port;
        }
    }
}

fn random() -> u64 {
    RandomState::new().hash_one(std::process::id())
}
