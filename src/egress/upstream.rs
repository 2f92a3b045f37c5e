//! Connections to WeCom: verified TLS, through the user's proxy where there is one, kept for the next call.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::Uri;
use rustls::pki_types::ServerName;
use secrecy::SecretString;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_util::io::{InspectReader, InspectWriter};

use super::dial::{AddressFamily, DialError, dial};
use super::exchange::{Body, Connection};
use super::head::{Head, HeadError};
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
    /// Which addresses of WeCom, or of the proxy, are used.
    pub address_family: AddressFamily,
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

/// Connections to WeCom, whatever host a request names.
pub struct Upstream {
    proxy: Option<Proxy>,
    host: String,
    port: u16,
    address_family: AddressFamily,
    connect_timeout: Duration,
    tls: TlsConnector,
    metrics: Arc<ConnectorMetrics>,
    /// Between two answers, with the time of the last one. The newest is the last.
    idle: Mutex<Vec<(Instant, Connection)>>,
}

impl Upstream {
    /// Reads roots and what the environment says of proxies; nothing is connected yet.
    pub fn new(settings: &Settings, metrics: Arc<ConnectorMetrics>) -> Result<Self, SettingsError> {
        let upstream = settings.upstream.clone().unwrap_or_else(|| format!("{HOST}:{PORT}"));
        let target: Uri = format!("https://{upstream}").parse().map_err(|_| SettingsError::Upstream)?;
        let (Some(host), Some(port)) = (target.host().map(str::to_owned), target.port_u16()) else {
            return Err(SettingsError::Upstream);
        };
        let proxy = match &settings.proxy {
            Some(address) => Some(Proxy::new(address, settings.proxy_password.as_ref())?),
            None => Proxy::of_environment(&target)?,
        };
        let tls = Arc::new(trust::client_config(settings.ca_file.as_deref())?).into();
        // A little less than the whole time, so that it is said what was waited for.
        let connect_timeout = CONNECT_TIMEOUT.min(Duration::from_millis(settings.timeout_ms) * 9 / 10);
        let address_family = settings.address_family;
        let idle = Mutex::default();
        Ok(Self { proxy, host, port, address_family, connect_timeout, tls, metrics, idle })
    }

    /// The head of the answer, and what its body is read from. Dropped half-way, it leaves nothing behind.
    pub async fn ask(&self, request: &[u8]) -> Result<(Head, Body), Failure> {
        // A kept connection may end at the moment it is used again. All requests only read: once more does no harm.
        while let Some(connection) = self.kept() {
            match connection.ask(request).await {
                Err(HeadError::Nothing | HeadError::Cut | HeadError::Io(_)) => {}
                answer => {
                    self.metrics.egress.connections_reused.inc();
                    return Ok(answer?);
                }
            }
        }
        Ok(Connection::new(self.connect().await?, READ_BYTES).ask(request).await?)
    }

    /// Takes back a connection whose answer is read to its end.
    pub fn keep(&self, body: Body) {
        if let Some(connection) = body.into_connection() {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() == IDLE_CONNECTIONS_MAX {
                idle.remove(0);
            }
            idle.push((Instant::now(), connection));
        }
    }

    /// The connection that was used last, if it can be used again.
    fn kept(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(since, _)| since.elapsed() < IDLE_TIMEOUT);
        while let Some((_, mut connection)) = idle.pop() {
            if connection.is_silent() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self) -> Result<Stream, Failure> {
        let deadline = Instant::now() + self.connect_timeout;
        let stream = match &self.proxy {
            None => {
                let dialled = self.dial(&self.host, self.port, deadline).await;
                dialled.map_err(|error| Failure::of_dial(&self.host, self.port, error))?
            }
            Some(proxy) => {
                let dialled = self.dial(&proxy.host, proxy.port, deadline).await;
                let mut stream = dialled.map_err(|error| proxy.failure(error.to_string()))?;
                if proxy.is_tls {
                    stream = self.handshake(stream, &proxy.host, deadline).await.map_err(|failure| match failure {
                        Failure::Tls { reason, .. } => proxy.of_another_kind(&format!("TLS with it failed: {reason}")),
                        other => other,
                    })?;
                }
                let led = tokio::time::timeout_at(deadline, proxy.lead(stream, &self.host, self.port)).await;
                led.unwrap_or_else(|_| Err(proxy.silent(self.connect_timeout)))?
            }
        };
        let stream = self.handshake(stream, HOST, deadline).await?;
        self.metrics.egress.connections.inc();
        Ok(stream)
    }

    /// A TCP connection whose bytes are counted.
    async fn dial(&self, host: &str, port: u16, deadline: Instant) -> Result<Stream, DialError> {
        let tcp = dial(host, port, self.address_family, deadline).await?;
        let _ = tcp.set_nodelay(true);
        let (received, sent) = (self.metrics.egress.bytes_received.clone(), self.metrics.egress.bytes_sent.clone());
        let counted = InspectReader::new(tcp, move |bytes: &[u8]| received.inc_by(bytes.len() as u64));
        let counted = InspectWriter::new(counted, move |bytes: &[u8]| sent.inc_by(bytes.len() as u64));
        Ok(Box::new(counted))
    }

    /// TLS with the one who has a certificate for `host`. Nothing but the handshake is sent before that is certain.
    async fn handshake(&self, stream: Stream, host: &str, deadline: Instant) -> Result<Stream, Failure> {
        let failed = |reason: &str| Failure::Tls { peer: host.to_owned(), reason: reason.to_owned() };
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| failed("it has no name of a host"))?;
        let handshake = self.tls.connect(name, BufReader::with_capacity(READ_BYTES, stream));
        match tokio::time::timeout_at(deadline, handshake).await {
            Ok(Ok(stream)) => Ok(Box::new(stream)),
            Ok(Err(error)) => Err(Failure::of_handshake(host, &error)),
            Err(_) => Err(failed("it takes the connection and then says nothing")),
        }
    }
}

/// What a connection is made of.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

pub type Stream = Box<dyn Io>;
