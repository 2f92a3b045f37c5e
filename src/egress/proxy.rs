//! The user's own proxy on the way to WeCom.

use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use hyper::Uri;
use hyper::header::HeaderValue;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretString};
use tower_service::Service;

use super::Failure;
use super::upstream::{SettingsError, Stream};

/// A proxy that leads on to a host and port.
#[derive(Debug, Clone)]
pub struct Proxy {
    pub host: String,
    pub port: u16,
    /// Whether the way to the proxy is TLS.
    pub is_tls: bool,
    kind: Kind,
    uri: Uri,
}

#[derive(Debug, Clone)]
enum Kind {
    /// `CONNECT`, with what stands in its `proxy-authorization`.
    Http(Option<HeaderValue>),
    Socks(Option<(String, SecretString)>),
}

impl Proxy {
    /// `address` is `http://host:port`, `https://…`, `socks5://…`, or without a scheme, which is HTTP; `password` is
    /// `user:password`.
    pub fn new(address: &str, password: Option<&SecretString>) -> Result<Self, SettingsError> {
        let (scheme, authority) = address.split_once("://").unwrap_or(("http", address));
        let error = || SettingsError::Proxy;
        let uri: Uri = format!("http://{authority}").parse().map_err(|_| error())?;
        let (host, port) = (uri.host().ok_or_else(error)?.to_owned(), uri.port_u16().ok_or_else(error)?);
        let scheme = scheme.to_ascii_lowercase();
        let kind = match scheme.as_str() {
            "http" | "https" => Kind::Http(password.map(basic).transpose()?),
            "socks5" | "socks5h" => Kind::Socks(password.map(|password| {
                let text = password.expose_secret();
                let (user, password) = text.split_once(':').unwrap_or((text, ""));
                (user.to_owned(), SecretString::from(password))
            })),
            _ => return Err(error()),
        };
        Ok(Self { host, port, is_tls: scheme == "https", kind, uri })
    }

    /// The one that the environment names for `target` (`https_proxy`, `all_proxy`, `no_proxy`), as the library obeys it too.
    pub fn of_environment(target: &Uri) -> Result<Option<Self>, SettingsError> {
        let Some(intercept) = Matcher::from_env().intercept(target) else { return Ok(None) };
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
        let mut proxy = Self::new(&format!("{scheme}://{host}:{}", uri.port_u16().unwrap_or(default_port)), None)?;
        proxy.kind = match proxy.kind {
            Kind::Http(_) => Kind::Http(intercept.basic_auth().cloned()),
            Kind::Socks(_) => {
                Kind::Socks(intercept.raw_auth().map(|(user, password)| (user.to_owned(), password.into())))
            }
        };
        Ok(Some(proxy))
    }

    /// `host:port`, as errors name it.
    pub fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Has the proxy at the other end of `stream` lead on to `target`.
    pub async fn lead(&self, stream: Stream, target: Uri) -> Result<Stream, Failure> {
        let stream = Made(Some(TokioIo::new(stream)));
        match &self.kind {
            Kind::Http(authorization) => {
                let mut tunnel = Tunnel::new(self.uri.clone(), stream);
                if let Some(authorization) = authorization {
                    tunnel = tunnel.with_auth(authorization.clone());
                }
                Ok(tunnel.call(target).await.map_err(|error| self.failure(&error))?.into_inner())
            }
            Kind::Socks(account) => {
                let mut socks = SocksV5::new(self.uri.clone(), stream);
                if let Some((user, password)) = account {
                    socks = socks.with_auth(user.clone(), password.expose_secret().to_owned());
                }
                Ok(socks.call(target).await.map_err(|error| self.failure(&error))?.into_inner())
            }
        }
    }

    fn failure(&self, error: &dyn std::error::Error) -> Failure {
        let (proxy, text) = (self.name(), error.to_string());
        // The types of these errors have no name outside of their crate.
        let of_password = ["authorization required", "credentials not accepted", "user/pass", "authentication"];
        if of_password.iter().any(|words| text.contains(words)) {
            return Failure::ProxyPassword { proxy };
        }
        let reason = match error.source() {
            Some(source) => format!("{text}: {source}"),
            None if text.ends_with("unsuccessful") => "it refuses, or speaks something else than HTTP".to_owned(),
            None => text,
        };
        Failure::Proxy { proxy, reason }
    }
}

fn basic(password: &SecretString) -> Result<HeaderValue, SettingsError> {
    let encoded = BASE64_STANDARD.encode(password.expose_secret());
    let mut value = HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| SettingsError::Proxy)?;
    value.set_sensitive(true);
    Ok(value)
}

/// A stream that is made already, for those who make one themselves.
struct Made(Option<TokioIo<Stream>>);

impl Service<Uri> for Made {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Stream>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}
