//! Why a call did not get through.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::net::IpAddr;

use serde::Deserialize;

use super::HOST;
use super::head::HeadError;
use super::trust::Untrusted;

/// Why a call of the library did not get through, as the guard saw it. Its text holds nothing of request or answer but codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The token endpoint refuses the account.
    #[error("WeCom gives no token (errcode {errcode})")]
    Token {
        errcode: i64,
        /// From where WeCom saw the call come, where it says so.
        address: Option<IpAddr>,
    },
    /// The certificate on the way is none of WeCom's: nothing was sent.
    #[error(transparent)]
    Untrusted(#[from] Untrusted),
    #[error("the TLS handshake with {peer} failed: {reason}")]
    Tls { peer: String, reason: String },
    #[error("the name {host} cannot be resolved: {reason}")]
    Name { host: String, reason: String },
    #[error("{peer} cannot be reached: {reason}")]
    Connect { peer: String, reason: String },
    /// It asks for a name and password, or does not take those it gets.
    #[error("the proxy {proxy} wants a name and password, or refuses those of wecom.proxy.password")]
    ProxyPassword { proxy: String },
    #[error("the proxy {proxy} does not lead to WeCom: {reason}")]
    Proxy { proxy: String, reason: String },
    #[error("WeCom answered HTTP status {0}")]
    Status(u16),
    #[error("no whole answer came within {0} ms")]
    Timeout(u64),
    #[error("the connection to WeCom broke: {0}")]
    Cut(String),
    /// An answer that cannot be handed on as it is.
    #[error("the answer cannot be used: {0}")]
    Answer(String),
    /// The library asked for something that the guard lets nobody ask for.
    #[error("the guard lets the library ask WeCom for {0}, and nothing else")]
    Forbidden(&'static str),
}

impl Failure {
    /// Label of metrics.
    pub fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Token { .. } => "200",
            Self::Untrusted(_) => "untrusted",
            Self::Tls { .. } => "tls",
            Self::Name { .. } => "dns",
            Self::Connect { .. } => "connect",
            Self::ProxyPassword { .. } | Self::Proxy { .. } => "proxy",
            Self::Status(status) => return Cow::Owned(status.to_string()),
            Self::Timeout(_) => "timeout",
            Self::Cut(_) => "cut",
            Self::Answer(_) => "answer",
            Self::Forbidden(_) => "forbidden",
        })
    }

    /// Of reading an answer that was decompressed on the way.
    pub(super) fn of_reading(error: &io::Error) -> Self {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Self>());
        inner.cloned().unwrap_or_else(|| Self::Cut(error.to_string()))
    }

    /// Of a TLS handshake with `peer`.
    pub(super) fn of_handshake(peer: &str, error: &io::Error) -> Self {
        let of_tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        if let Some(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))) = of_tls
            && let Some(untrusted) = other.0.downcast_ref::<Untrusted>()
        {
            return Self::Untrusted(untrusted.clone());
        }
        let reason = match (of_tls, error.kind()) {
            (Some(error), _) => error.to_string(),
            (None, io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset) => "it hung up".to_owned(),
            (None, _) => error.to_string(),
        };
        Self::Tls { peer: peer.to_owned(), reason }
    }

    /// What the token endpoint's answer refuses, if it does.
    pub(super) fn of_token_answer(body: &[u8]) -> Option<Self> {
        #[derive(Deserialize)]
        struct Answer<'a> {
            #[serde(default)]
            errcode: i64,
            #[serde(default, borrow)]
            errmsg: Cow<'a, str>,
        }
        // The vendor's text is not always UTF-8.
        let text = String::from_utf8_lossy(body);
        match serde_json::from_str::<Answer<'_>>(&text) {
            Ok(Answer { errcode: 0, .. }) => None,
            Ok(Answer { errcode, errmsg }) => Some(Self::Token { errcode, address: source_address(&errmsg) }),
            Err(_) => Some(Self::Answer("what came from the token endpoint is no JSON object".to_owned())),
        }
    }

    /// Of a connection that was not made.
    pub(super) fn of_connect(peer: String, error: &(dyn Error + 'static)) -> Self {
        let mut ground = error;
        while let Some(source) = ground.source() {
            ground = source;
        }
        let reason = match ground.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::ConnectionRefused) => "the connection is refused".to_owned(),
            Some(io::ErrorKind::TimedOut) => "it does not answer".to_owned(),
            _ => ground.to_string(),
        };
        // The only sign that the client gives of it.
        match error.to_string().as_str() {
            "dns error" => Self::Name { host: peer.rsplit_once(':').map_or(HOST, |(host, _)| host).to_owned(), reason },
            _ => Self::Connect { peer, reason },
        }
    }
}

impl From<HeadError> for Failure {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Nothing | HeadError::Cut | HeadError::Io(_) => Self::Cut(error.to_string()),
            HeadError::TooLong(_) | HeadError::NoHttp => Self::Answer(error.to_string()),
        }
    }
}

/// The address from which WeCom says a call came: its text is `not allow to access from your ip, …, from ip: 203.0.113.7, …`.
pub fn source_address(errmsg: &str) -> Option<IpAddr> {
    let (_, rest) = errmsg.split_once("from ip:")?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':').unwrap_or(rest.len());
    rest[..end].trim_end_matches(['.', ':']).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_endpoint_s_refusals_are_read() {
        let token = |errcode, address: Option<&str>| {
            Some(Failure::Token { errcode, address: address.map(|address| address.parse().expect("an address")) })
        };
        let no_json = Some(Failure::Answer("what came from the token endpoint is no JSON object".to_owned()));
        let rows: [(&[u8], Option<Failure>); 9] = [
            (br#"{"errcode":0,"errmsg":"ok","access_token":"t","expires_in":7200}"#, None),
            (br#"{"access_token":"t"}"#, None),
            (b"{\"errcode\":40001,\"errmsg\":\"invalid credential \xff\xfe\"}", token(40001, None)),
            (
                br#"{"errcode":60020,"errmsg":"not allow to access from your ip, hint: [17], from ip: 203.0.113.7, more info at https://open.work.weixin.qq.com"}"#,
                token(60020, Some("203.0.113.7")),
            ),
            (br#"{"errcode":60020,"errmsg":"from ip: 2001:db8::7."}"#, token(60020, Some("2001:db8::7"))),
            (br#"{"errcode":60020,"errmsg":"from ip: s3cret"}"#, token(60020, None)),
            (br#"{"errcode":301042}"#, token(301042, None)),
            (b"<html>", no_json.clone()),
            (b"", no_json),
        ];
        for (body, expected) in rows {
            assert_eq!(Failure::of_token_answer(body), expected, "{}", String::from_utf8_lossy(body));
        }
    }
}
