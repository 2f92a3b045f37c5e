//! The worker: which connectors run here, and what the process shows of them over HTTP.

mod access;
mod certificate;
mod connections;
mod connector;
pub mod exit;
pub mod http;
pub mod logging;
pub mod repeats;
pub mod signals;
mod socket;
pub mod standalone;
