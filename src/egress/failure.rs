//! Why a call did not get through.

use std::borrow::Cow;
use std::io;
use std::net::IpAddr;

use serde_json::Value;

use super::Endpoint;
use super::dial::DialError;
use super::head::HeadError;
use super::trust::Untrusted;

/// Why a call of the library did not get through, as the guard saw it. Its text holds nothing of request or answer but codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// WeCom answers with an error code in place of a token, or of a file.
    #[error("WeCom gives no {} (errcode {errcode})", match endpoint { Endpoint::Token => "token", Endpoint::Pages => "page", Endpoint::Files => "file" })]
    Refused {
        endpoint: Endpoint,
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
    #[error("the proxy {proxy} {}: see {place}", if *is_given { "refuses the name and password that it is given" } else { "wants a name and password" })]
    ProxyPassword {
        /// With the key or the variable that names it.
        proxy: String,
        is_given: bool,
        /// Where name and password are told.
        place: &'static str,
    },
    #[error("the proxy {proxy} does not lead to WeCom: {reason}")]
    Proxy {
        /// With the key or the variable that names it.
        proxy: String,
        reason: String,
    },
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
            Self::Refused { .. } => "200",
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
        inner.cloned().unwrap_or_else(|| Self::of_break(error))
    }

    /// Of a connection that broke.
    pub(super) fn of_break(error: &io::Error) -> Self {
        Self::Cut(match error.kind() {
            // TLS that does not end in order is no end either.
            io::ErrorKind::UnexpectedEof => "it hung up in the middle of an answer".to_owned(),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => "it was reset".to_owned(),
            io::ErrorKind::TimedOut => "what was sent is not acknowledged".to_owned(),
            _ => error.to_string(),
        })
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

    /// What is wrong with a whole answer of this endpoint, if it is short enough to be no more than that.
    pub(super) fn of_answer(endpoint: Endpoint, body: &[u8]) -> Option<Self> {
        // The vendor's text is not always UTF-8.
        let text = String::from_utf8_lossy(body);
        let answer = match serde_json::from_str::<Value>(&text) {
            Ok(Value::Object(answer)) => answer,
            // What the library makes of a part of a file that is something else, its own code says.
            _ if endpoint != Endpoint::Token => return None,
            Ok(other) => {
                return Some(Self::Answer(format!("the token endpoint gave {} in place of an object", kind(&other))));
            }
            Err(_) if body.trim_ascii().is_empty() => {
                return Some(Self::Answer("the token endpoint gave nothing".to_owned()));
            }
            Err(_) => return Some(Self::Answer("what came from the token endpoint is no JSON object".to_owned())),
        };
        match answer.get("errcode").map(number) {
            Some(None) => Some(Self::Answer(format!("the errcode of {} is no number", endpoint.as_str()))),
            Some(Some(errcode)) if errcode != 0 => {
                let address = answer.get("errmsg").and_then(Value::as_str).and_then(source_address);
                Some(Self::Refused { endpoint, errcode, address })
            }
            None | Some(Some(_)) if endpoint != Endpoint::Token => None,
            errcode => match answer.get("access_token") {
                Some(Value::String(token)) if !token.is_empty() => None,
                Some(_) => {
                    Some(Self::Answer("the token endpoint's access_token is no text, or an empty one".to_owned()))
                }
                None => {
                    let with = if errcode.is_some() { "errcode 0" } else { "no errcode" };
                    Some(Self::Answer(format!(
                        "the token endpoint answered {with} and no access_token: is it WeCom's?"
                    )))
                }
            },
        }
    }

    /// Of a connection to `host` that was not made.
    pub(super) fn of_dial(host: &str, port: u16, error: DialError) -> Self {
        match error {
            DialError::Name(reason) => Self::Name { host: host.to_owned(), reason },
            DialError::Connect(reason) => Self::Connect { peer: format!("{host}:{port}"), reason },
        }
    }
}

impl From<HeadError> for Failure {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Io(error) => Self::of_break(&error),
            HeadError::Nothing | HeadError::Cut => Self::Cut(error.to_string()),
            HeadError::TooLong(_) | HeadError::NoHttp => Self::Answer(error.to_string()),
        }
    }
}

/// An error code, also as text: some of WeCom's relays write it so.
fn number(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| value.as_str()?.trim().parse().ok())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The address from which WeCom says a call came: its text is `not allow to access from your ip, …, from ip: 203.0.113.7, …`.
pub fn source_address(errmsg: &str) -> Option<IpAddr> {
    let (_, rest) = errmsg.split_once("from ip:")?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_hexdigit() && c != '.' && c != ':').unwrap_or(rest.len());
    let address: IpAddr = rest[..end].trim_end_matches(['.', ':']).parse().ok()?;
    Some(address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_answer_refuses_is_read() {
        use Endpoint::{Files, Token};
        let refused = |endpoint, errcode, address: Option<&str>| {
            let address = address.map(|address| address.parse().expect("an address"));
            Ok(Some(Failure::Refused { endpoint, errcode, address }))
        };
        // Of an answer that cannot be used, words.
        let rows: [(Endpoint, &[u8], Result<Option<Failure>, &str>); 26] = [
            (Token, br#"{"errcode":0,"errmsg":"ok","access_token":"t","expires_in":7200}"#, Ok(None)),
            (Token, br#"{"access_token":"t"}"#, Ok(None)),
            (Token, b"{\"errcode\":40001,\"errmsg\":\"invalid credential \xff\xfe\"}", refused(Token, 40001, None)),
            (Token, br#"{"errcode":"40001"}"#, refused(Token, 40001, None)),
            (Token, br#"{"errcode":"x"}"#, Err("no number")),
            (Token, br#"{"errcode":null}"#, Err("no number")),
            (
                Token,
                br#"{"errcode":60020,"errmsg":"not allow to access from your ip, hint: [17], from ip: 203.0.113.7, more info at https://open.work.weixin.qq.com"}"#,
                refused(Token, 60020, Some("203.0.113.7")),
            ),
            (Token, br#"{"errcode":60020,"errmsg":"from ip: 2001:db8::7."}"#, refused(Token, 60020, Some("2001:db8::7"))),
            (Token, br#"{"errcode":60020,"errmsg":"from ip: ::ffff:203.0.113.7,"}"#, refused(Token, 60020, Some("203.0.113.7"))),
            (Token, br#"{"errcode":60020,"errmsg":"from ip: s3cret"}"#, refused(Token, 60020, None)),
            (Token, br#"{"errcode":60020,"errmsg":["from ip"]}"#, refused(Token, 60020, None)),
            (Token, br#"{"errcode":301042}"#, refused(Token, 301042, None)),
            (Token, b"<html>", Err("no JSON")),
            (Token, b"", Err("gave nothing")),
            (Token, b"[]", Err("an array")),
            (Token, b"null", Err("null")),
            (Token, b"{}", Err("no errcode and no access_token")),
            (Token, br#"{"errcode":0}"#, Err("errcode 0 and no access_token")),
            (Token, br#"{"errcode":0,"access_token":""}"#, Err("empty")),
            (Token, br#"{"errcode":0,"access_token":7}"#, Err("no text")),
            (Files, br#"{"errcode":0,"errmsg":"ok","content":"AAAA"}"#, Ok(None)),
            (Files, br#"{"errcode":45009,"errmsg":"busy"}"#, refused(Files, 45009, None)),
            (Files, br#"{"errcode":"-1"}"#, refused(Files, -1, None)),
            (Files, br#"{"errcode":60020,"errmsg":"from ip: 203.0.113.7"}"#, refused(Files, 60020, Some("203.0.113.7"))),
            (Files, b"{}", Ok(None)),
            (Files, b"<html>", Ok(None)),
        ];
        for (endpoint, body, expected) in rows {
            let shown = String::from_utf8_lossy(body);
            match (Failure::of_answer(endpoint, body), expected) {
                (found, Ok(expected)) => assert_eq!(found, expected, "{shown}"),
                (Some(Failure::Answer(said)), Err(words)) => assert!(said.contains(words), "{shown}: {said}"),
                (found, Err(words)) => panic!("{shown}: {found:?} and not {words}"),
            }
        }
    }
}
