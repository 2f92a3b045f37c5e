//! The vendor boundary: the library, the process that holds it, and the client that talks to that process.
//!
//! The vendor's library aborts on some inputs, prints to stdout, carries its own OpenSSL and can hang (`docs`: measured
//! behaviour of the library, v3). It therefore lives in a child process, the *SDK host*, and nothing it does can take the
//! worker or its private keys with it.
//!
//! - [`ffi`] is the only place that calls the library; `elf` tells for which CPU a file is.
//! - [`frame`] is what worker and host say to each other.
//! - [`host`] is the child process, and `confinement` what it gives up.
//! - [`process`] is the worker's end of one child.
//! - [`client`] is what tasks use: calls with deadlines, replaced hosts, confirmed crashes.

pub mod client;
mod confinement;
mod elf;
pub mod ffi;
pub mod frame;
pub mod host;
mod output;
pub mod process;

pub use client::{DecryptError, GET_CHAT_DATA, MediaChunk, SdkClient, SdkError};
pub use elf::misfit;
pub use frame::{Account, SealedMessage};

/// Return codes of the library (doc 91552) that need telling apart.
pub mod code {
    pub const BAD_ARGUMENT: i32 = 10000;
    pub const NETWORK: i32 = 10001;
    pub const UNPARSABLE_ANSWER: i32 = 10002;
    pub const SYSTEM: i32 = 10003;
    pub const BAD_FILE_ID: i32 = 10005;
    pub const DECRYPTION: i32 = 10006;
    pub const BAD_KEY: i32 = 10008;
    pub const ADDRESS_NOT_ALLOWED: i32 = 10009;
    pub const EXPIRED: i32 = 10010;
    pub const CERTIFICATE: i32 = 10011;
}
