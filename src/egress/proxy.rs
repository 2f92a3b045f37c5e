//! The user's own proxy on the way to WeCom.

use std::fmt;
use std::io;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::Failure;
use super::head::{Head, HeadError};
use super::upstream::{SettingsError, Stream};

const HEAD_BYTES_MAX: usize = 16 * 1024;

/// A proxy that leads on to a host and port.
#[derive(Debug, Clone)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    /// Whether the way to the proxy is TLS.
    pub is_tls: bool,
    kind: Kind,
    origin: Origin,
    /// User and password.
    account: Option<(String, SecretString)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Http,
    Socks,
}

/// Where a proxy's address came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Key,
    Environment(&'static str),
}

impl Origin {
    /// Where its name and password are to be changed.
    fn of_password(self) -> &'static str {
        match self {
            Self::Key => "wecom.proxy.password",
            Self::Environment(_) => "that variable (http://user:password@host:port)",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key => write!(f, "wecom.proxy"),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
        }
    }
}

impl Proxy {
    /// `address` is `http://host:port`, `https://…`, `socks5://…`, or without a scheme, which is HTTP; `password` is
    /// `user:password`.
    pub fn new(address: &str, password: Option<&SecretString>) -> Result<Self, SettingsError> {
        let account = password.map(|password| {
            let text = password.expose_secret();
            let (user, password) = text.split_once(':').unwrap_or((text, ""));
            (user.to_owned(), SecretString::from(password))
        });
        Self::of(address, account, Origin::Key)
    }

    fn of(address: &str, account: Option<(String, SecretString)>, origin: Origin) -> Result<Self, SettingsError> {
        let (scheme, authority) = address.split_once("://").unwrap_or(("http", address));
        let error = || SettingsError::Proxy;
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| error())?;
        let (host, port) = (uri.host().ok_or_else(error)?.to_owned(), uri.port_u16().ok_or_else(error)?);
        let scheme = scheme.to_ascii_lowercase();
        let kind = match scheme.as_str() {
            "http" | "https" => Kind::Http,
            "socks5" | "socks5h" => Kind::Socks,
            _ => return Err(error()),
        };
        Ok(Self { host, port, is_tls: scheme == "https", kind, origin, account })
    }

    /// The one that the environment names for `target` (`https_proxy`, `all_proxy`, `no_proxy`), as the library obeys it too.
    pub fn of_environment(target: &Uri) -> Result<Option<Self>, SettingsError> {
        let Some(intercept) = Matcher::from_env().intercept(target) else { return Ok(None) };
        // In the order in which they are looked for there.
        let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let names = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"];
        let origin = Origin::Environment(names.into_iter().find(is_set).unwrap_or("https_proxy"));
        let uri = intercept.uri();
        let scheme = uri.scheme_str().unwrap_or("http");
        let default_port = if scheme == "https" {
            443
        } else if scheme.starts_with("socks") {
            1080
        } else {
            80
        };
        let host = uri.host().ok_or(SettingsError::Proxy)?;
        let of_socks = intercept.raw_auth().map(|(user, password)| (user.to_owned(), password.into()));
        let account = of_socks.or_else(|| of_basic(intercept.basic_auth()?.to_str().ok()?));
        let address = format!("{scheme}://{host}:{}", uri.port_u16().unwrap_or(default_port));
        Self::of(&address, account, origin).map(Some)
    }

    /// As errors name it: where it is, and who says so.
    pub fn name(&self) -> String {
        format!("{}:{} (of {})", self.host, self.port, self.origin)
    }

    /// What a connection that was not made, or TLS that did not come about, says of it.
    pub fn failure(&self, reason: impl Into<String>) -> Failure {
        Failure::Proxy { proxy: self.name(), reason: reason.into() }
    }

    /// What is said of a proxy that speaks nothing that its kind speaks.
    pub fn of_another_kind(&self, what: &str) -> Failure {
        let own = match (self.kind, self.is_tls) {
            (Kind::Http, false) => "http://",
            (Kind::Http, true) => "https://",
            (Kind::Socks, _) => "socks5://",
        };
        let others: Vec<_> = ["http://", "https://", "socks5://"].into_iter().filter(|other| *other != own).collect();
        self.failure(format!("{what}; it is taken for {own}: is it {}?", others.join(" or ")))
    }

    /// That the proxy did not answer in time.
    pub fn silent(&self, within: Duration) -> Failure {
        self.of_another_kind(&format!("it takes the connection and then says nothing for {} ms", within.as_millis()))
    }

    /// Has the proxy at the other end of `stream` lead on to `host` and `port`.
    pub async fn lead(&self, stream: Stream, host: &str, port: u16) -> Result<Stream, Failure> {
        match self.kind {
            Kind::Http => self.connect(stream, host, port).await,
            Kind::Socks => self.socks(stream, host, port).await,
        }
    }

    async fn connect(&self, stream: Stream, host: &str, port: u16) -> Result<Stream, Failure> {
        let authorization = self.account.as_ref().map_or_else(String::new, |(user, password)| {
            let encoded = BASE64_STANDARD.encode(format!("{user}:{}", password.expose_secret()));
            format!("Proxy-Authorization: Basic {encoded}\r\n")
        });
        let request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n{authorization}\r\n");
        let mut stream = BufReader::new(stream);
        let head = async {
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            Head::read(&mut stream, HEAD_BYTES_MAX).await
        };
        let head = head.await.map_err(|error| match error {
            HeadError::Nothing | HeadError::NoHttp | HeadError::Io(_) => self.of_another_kind(&error.to_string()),
            HeadError::Cut | HeadError::TooLong(_) => self.failure(error.to_string()),
        })?;
        match head.status() {
            Some(200..300) => Ok(Box::new(stream)),
            Some(407) => Err(self.wants_password()),
            Some(status) => Err(self.failure(format!("it answered HTTP status {status} to CONNECT {host}:{port}"))),
            None => Err(self.of_another_kind(&HeadError::NoHttp.to_string())),
        }
    }

    /// RFC 1928 and 1929. The proxy resolves the name.
    async fn socks(&self, stream: Stream, host: &str, port: u16) -> Result<Stream, Failure> {
        const VERSION: u8 = 5;
        const NO_ACCOUNT: u8 = 0;
        const ACCOUNT: u8 = 2;
        let broken = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.of_another_kind("it hung up"),
            _ => self.of_another_kind(&error.to_string()),
        };
        let field = |text: &[u8]| {
            let length = u8::try_from(text.len()).map_err(|_| self.failure("SOCKS5 has no room for so long a text"));
            length.map(|length| [&[length], text].concat())
        };
        let mut stream = BufReader::new(stream);
        let methods: &[u8] = if self.account.is_some() { &[NO_ACCOUNT, ACCOUNT] } else { &[NO_ACCOUNT] };
        let hello = [&[VERSION], &field(methods)?[..]].concat();
        stream.write_all(&hello).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen[..1]).await.map_err(broken)?;
        if chosen[0] != VERSION {
            return Err(self.of_another_kind("it speaks no SOCKS5"));
        }
        stream.read_exact(&mut chosen[1..]).await.map_err(broken)?;
        if !methods.contains(&chosen[1]) {
            return Err(self.wants_password());
        }
        if let Some((user, password)) = self.account.as_ref().filter(|_| chosen[1] == ACCOUNT) {
            let said = [&[1][..], &field(user.as_bytes())?, &field(password.expose_secret().as_bytes())?].concat();
            stream.write_all(&said).await.map_err(broken)?;
            stream.flush().await.map_err(broken)?;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await.map_err(broken)?;
            if answer[1] != 0 {
                return Err(self.wants_password());
            }
        }
        let asked = [&[VERSION, 1, 0, 3][..], &field(host.as_bytes())?, &port.to_be_bytes()].concat();
        stream.write_all(&asked).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.map_err(broken)?;
        if answer[1] != 0 {
            let code = answer[1];
            let words = socks_words(code);
            return Err(self.failure(format!("it answered SOCKS5 code {code} ({words}) for {host}:{port}")));
        }
        let length = match answer[3] {
            1 => 4,
            4 => 16,
            _ => usize::from(stream.read_u8().await.map_err(broken)?),
        };
        stream.read_exact(&mut vec![0; length + 2]).await.map_err(broken)?;
        Ok(Box::new(stream))
    }

    fn wants_password(&self) -> Failure {
        Failure::ProxyPassword {
            proxy: self.name(),
            is_given: self.account.is_some(),
            place: self.origin.of_password(),
        }
    }
}

fn socks_words(code: u8) -> &'static str {
    match code {
        1 => "it failed",
        2 => "its rules do not allow it",
        3 => "the network cannot be reached",
        4 => "the host cannot be reached",
        5 => "the connection is refused",
        6 => "it took too long",
        7 => "it does not do that",
        8 => "it does not know such addresses",
        _ => "unknown",
    }
}

/// User and password of a `Basic …`.
fn of_basic(header: &str) -> Option<(String, SecretString)> {
    let decoded = String::from_utf8(BASE64_STANDARD.decode(header.strip_prefix("Basic ")?).ok()?).ok()?;
    let (user, password) = decoded.split_once(':')?;
    Some((user.to_owned(), password.into()))
}
