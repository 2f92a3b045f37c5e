//! Connections to WeCom: verified TLS, through the user's proxy where there is one, kept for the next call.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::Full;
use hyper::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use secrecy::SecretString;
use tokio::io::BufReader;
use tokio_rustls::TlsConnector;
use tokio_util::io::{InspectReader, InspectWriter};
use tower_service::Service;

use super::proxy::Proxy;
use super::{Failure, HOST, PORT, trust};
use crate::metrics::ConnectorMetrics;

/// A connection has this long to be made, all handshakes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Shorter than servers and balancers keep an idle connection, as a rule.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
const IDLE_CONNECTIONS_MAX: usize = 16;
/// What is read at once. TLS by itself reads 4 KiB at a time.
const READ_BYTES: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// How the guard reaches WeCom.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The user's proxy, see [`Proxy::new`]; without one, the environment's.
    pub proxy: Option<String>,
    /// `user:password`.
    pub proxy_password: Option<SecretString>,
    /// Roots in PEM, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// `host:port` to connect to in place of WeCom's. The name in the certificate has to be WeCom's all the same.
    pub upstream: Option<String>,
    /// For one request and its whole answer, in milliseconds.
    pub timeout_ms: u64,
}

/// The guard cannot be set up: a sentence that says what to change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("{}, the sdk.egress.ca.file, cannot be used: {reason}; give certificates in PEM", path.display())]
    CaFile { path: PathBuf, reason: String },
    #[error(
        "this machine has no root certificates by which WeCom could be recognised: install them (package ca-certificates), or give \
         sdk.egress.ca.file"
    )]
    NoRoots,
    #[error("the proxy on the way to WeCom must be http://host:port, https://host:port or socks5://host:port")]
    Proxy,
    #[error("sdk.egress.upstream must be host:port")]
    Upstream,
    #[error("TLS cannot be set up: {0}; please report this")]
    Tls(String),
}

pub(super) type HttpClient = Client<Connector, Full<Bytes>>;

/// A client whose every connection goes to WeCom, whatever host a request names.
pub fn client(settings: &Settings, metrics: Arc<ConnectorMetrics>) -> Result<HttpClient, SettingsError> {
    let target: Uri = match &settings.upstream {
        Some(upstream) => format!("https://{upstream}").parse().map_err(|_| SettingsError::Upstream)?,
        None => format!("https://{HOST}:{PORT}").parse().map_err(|_| SettingsError::Upstream)?,
    };
    let proxy = match &settings.proxy {
        Some(address) => Some(Proxy::new(address, settings.proxy_password.as_ref())?),
        None => Proxy::of_environment(&target)?,
    };
    let tls = trust::client_config(settings.ca_file.as_deref())?;
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let connector = Connector(Arc::new(Way { proxy, target, tcp, tls: Arc::new(tls).into(), metrics }));
    Ok(Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
        .http1_max_headers(HEADERS_MAX)
        .http1_max_buf_size(HEADER_BYTES_MAX)
        .build(connector))
}

#[derive(Clone)]
pub struct Connector(Arc<Way>);

struct Way {
    proxy: Option<Proxy>,
    target: Uri,
    tcp: HttpConnector,
    tls: TlsConnector,
    metrics: Arc<ConnectorMetrics>,
}

impl Way {
    async fn connect(&self) -> Result<Stream, Failure> {
        let stream = match &self.proxy {
            None => self.dial(self.target.clone()).await?,
            Some(proxy) => {
                let uri = format!("http://{}", proxy.name()).parse().unwrap_or_default();
                let mut stream = self.dial(uri).await?;
                if proxy.is_tls {
                    stream = self.handshake(stream, &proxy.host).await?;
                }
                proxy.lead(stream, self.target.clone()).await?
            }
        };
        let stream = self.handshake(stream, HOST).await?;
        self.metrics.egress.connections.inc();
        Ok(stream)
    }

    /// A TCP connection whose bytes are counted.
    async fn dial(&self, uri: Uri) -> Result<Stream, Failure> {
        let peer = uri.authority().map_or_else(String::new, ToString::to_string);
        let tcp = self.tcp.clone().call(uri).await.map_err(|error| Failure::of_connect(peer, &error))?;
        let (received, sent) = (self.metrics.egress.bytes_received.clone(), self.metrics.egress.bytes_sent.clone());
        let counted = InspectReader::new(tcp.into_inner(), move |bytes: &[u8]| received.inc_by(bytes.len() as u64));
        let counted = InspectWriter::new(counted, move |bytes: &[u8]| sent.inc_by(bytes.len() as u64));
        Ok(Stream::new(TokioIo::new(counted)))
    }

    /// TLS with the one who has a certificate for `host`. Nothing but the handshake is sent before that is certain.
    async fn handshake(&self, stream: Stream, host: &str) -> Result<Stream, Failure> {
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| Failure::Tls { peer: host.to_owned(), reason: "it has no name of a host".to_owned() })?;
        let tls = self.tls.connect(name, BufReader::with_capacity(READ_BYTES, TokioIo::new(stream))).await;
        Ok(Stream::new(TokioIo::new(tls.map_err(|error| Failure::of_handshake(host, &error))?)))
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failure;
    type Future = BoxFuture<'static, Result<Stream, Failure>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let way = self.0.clone();
        Box::pin(async move {
            let timeout = Failure::Timeout(CONNECT_TIMEOUT.as_millis() as u64);
            tokio::time::timeout(CONNECT_TIMEOUT, way.connect()).await.unwrap_or(Err(timeout))
        })
    }
}

/// Whether a connection has carried a request before. Stands in every answer.
#[derive(Debug, Clone, Default)]
pub struct Used(Arc<AtomicBool>);

impl Used {
    /// Tells, and from now on it has.
    pub fn take(&self) -> bool {
        self.0.swap(true, Ordering::Relaxed)
    }
}

trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection, whatever it is made of.
pub struct Stream {
    io: Box<dyn Io>,
    used: Used,
}

impl Stream {
    fn new(io: impl Read + Write + Send + Unpin + 'static) -> Self {
        Self { io: Box::new(io), used: Used::default() }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().extra(self.used.clone())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }
}
