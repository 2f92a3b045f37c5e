//! The parts of `wecom-connector`: a Kafka-Connect-style source connector for the WeCom (企业微信) chat archive.
//!
//! Dependencies point downwards only: `cli` → `worker` → `task` → {`sdk`, `archive`, `kafka`, `storage`}, and `sdk` → `egress`. `archive` is pure: it
//! knows neither Kafka nor the vendor's library, does no input or output and reads no clock. `clock`, `crash_point`,
//! `status`, `metrics` and `system` are leaves that every part but `archive` may use.

pub mod archive;
pub mod cli;
pub mod clock;
pub mod config;
pub mod crash_point;
pub mod egress;
pub mod kafka;
pub mod metrics;
pub mod sdk;
pub mod status;
pub mod storage;
pub mod system;
pub mod task;
pub mod verify;
pub mod worker;

/// The version of this program, as in `Cargo.toml`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit this program was built from: the value of `WECOM_CONNECTOR_COMMIT` at build time, else `unknown`.
pub const COMMIT: &str = match option_env!("WECOM_CONNECTOR_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
