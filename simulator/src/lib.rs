//! Stand-in for the vendor's chat archive library: the same 17 C functions over a scripted, deterministic corp.
//!
//! A program loads the shared library as it loads the vendor's. What it finds there is told by a scenario file, named by the
//! environment variable `WECOM_SIMULATOR_SCENARIO`: corps, keys, messages, media and faults. (seed, seq) gives the message in
//! whatever process; what has to outlive a process stands in the scenario's state folder. Nothing goes to the network, unless the
//! scenario has a `[network]`: then the library asks an API for everything but decryption, with the requests that the vendor's
//! makes, and [`api`] answers them from the same scenario; [`server`] is that API on loopback. Records and files are sealed as the
//! vendor's are ([`sealing`], [`media::FileKey`]), so that the vendor's own library opens what the API gives it.
//!
//! The same parts serve the program `wecom-simulator`, and tests that want to know what a reader of the archive should have found
//! ([`oracle`]).
//!
//! Arrows: `abi` → `sdk` → {`network`, `api`} → `archive` → {`record`, `keys`, `fault`, `probe`, `state`} → `message` →
//! {`corp`, `media`} → `scenario`, `sealing` → `random`; `server` → `api`.

pub mod abi;
pub mod api;
pub mod archive;
pub mod code;
pub mod corp;
pub mod fault;
pub mod keys;
pub mod media;
pub mod message;
pub mod network;
pub mod oracle;
pub mod probe;
pub mod random;
pub mod record;
pub mod scenario;
pub mod sdk;
pub mod sealing;
pub mod server;
pub mod state;
