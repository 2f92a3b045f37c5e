//! The way out: what the vendor's library sends to WeCom goes through a guard in the worker.
//!
//! The library takes a certificate of any issuer, hides why a call failed, and makes a new TLS connection for every call
//! (measured). It takes ours too: so it is given a proxy on loopback, which ends its TLS with a certificate made at start, looks at the request,
//! and sends it on over verified TLS, with connections that are kept.
//!
//! - [`Guard`] is that proxy: who may use it, and for which host.
//! - [`forward`](self) is what becomes of one request: three endpoints and no other, limits, the answer as HTTP/1.0 needs it.
//! - `head` is the head of a message, byte for byte; `exchange` is one request and its answer on a connection.
//! - `dial` makes TCP connections, to any of a host's addresses; `proxy` has the user's own proxy lead on.
//! - `upstream` makes connections to WeCom: verified TLS, kept for the next request.
//! - [`Failure`] is why a call did not get through, in words.
//!
//! What is refused, and every failure, ends the call: nothing ever goes out past the guard. Queries hold secret and token: no
//! text that is made here has a part of one.

mod dial;
mod exchange;
mod failure;
mod forward;
mod guard;
mod head;
mod proxy;
mod trust;
mod upstream;

pub use dial::AddressFamily;
pub use failure::{Failure, source_address};
pub use guard::{Guard, Pass, Seen, proxy_password};
pub use trust::Untrusted;
pub use upstream::{Settings, SettingsError};

/// The one host that the library goes to, as a client of a proxy names it.
pub const HOST: &str = "qyapi.weixin.qq.com";

const PORT: u16 = 443;

/// What the library asks for (measured), and nothing else is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    Token,
    Pages,
    Files,
}

impl Endpoint {
    fn of(method: &str, path: &str) -> Option<Self> {
        match (method, path) {
            ("GET", "/cgi-bin/gettoken") => Some(Self::Token),
            ("POST", "/cgi-bin/message/getchatdata") => Some(Self::Pages),
            ("POST", "/cgi-bin/message/getchatmediadata") => Some(Self::Files),
            _ => None,
        }
    }

    /// The longest answer that is handed on, in bytes: a page is some 50 MB at the most by the vendor's own estimate, a part of a file
    /// 512 KiB (measured).
    fn answer_bytes_max(self) -> u64 {
        match self {
            Self::Token => 64 << 10,
            Self::Pages => 256 << 20,
            Self::Files => 16 << 20,
        }
    }

    /// Label of metrics: the last part of the path.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Token => "gettoken",
            Self::Pages => "getchatdata",
            Self::Files => "getchatmediadata",
        }
    }
}
