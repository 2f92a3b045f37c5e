//! Kafka: the transactional producer, source offsets, topics, reading topics to their end, and how clients are configured.

pub mod backlog;
mod certificates;
pub mod client;
pub mod client_error;
mod client_log;
pub mod committer;
pub mod complaints;
pub mod group;
pub mod lookup;
mod oauth;
pub mod offsets;
pub mod protocol;
pub mod reader;
pub mod replayed;
pub mod rights;
pub mod scan;
pub mod source_writer;
pub mod tenure;
pub mod topic_limits;
pub mod topics;
mod transaction;

pub use client::{ClientKind, Clients};
pub use client_error::ClientError;
pub use committer::{Batch, BatchBytes, Committer, GroupOffsets, OutgoingRecord};
pub use protocol::CommitError;
pub use tenure::Tenure;
pub use topic_limits::TopicLimits;

#[cfg(test)]
mod simulation;
