//! The proxy on loopback: who may use it, and for which host.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use socket2::SockRef;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::forward::{self, Forwarder};
use super::head::{Head, HeadError, RequestLine};
use super::upstream::{Settings, SettingsError, Upstream};
use super::{Failure, HOST, PORT};
use crate::metrics::ConnectorMetrics;

/// A client has this long to say who it is and where it wants to go, then to speak TLS, then to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// Of what a client says to its proxy.
const PROXY_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Of a request within TLS.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// A client that was answered has this long to hang up by itself, and is listened to for so much of what it still
/// says: an end before that could take the answer with it.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
const FAREWELL_BYTES_MAX: u64 = 1 << 20;
/// A connection lives no longer than a request's time limit and this.
const GRACE: Duration = Duration::from_secs(10);
/// More connections wait in the system's own queue. The SDK host has one for each of its calls.
const CONNECTIONS_MAX: usize = 512;
/// Waiting after `accept` failed, most likely for want of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);
const PASSWORD_BYTES: usize = 24;
/// Calls of which something is remembered for each SDK host. There are few at a time.
const CALLS_MAX: usize = 64;

/// A connector's way out. It listens from the first [`Guard::admit`] until the last handle is dropped.
#[derive(Clone)]
pub struct Guard(Arc<Shared>);

struct Shared {
    inside: Arc<Inside>,
    listening: OnceCell<Listening>,
}

struct Listening {
    address: SocketAddr,
    _stop: DropGuard,
}

/// What connections need.
struct Inside {
    tls: TlsAcceptor,
    forwarder: Forwarder,
    admitted: Mutex<Vec<Arc<Admitted>>>,
    metrics: Arc<ConnectorMetrics>,
    connection_timeout: Duration,
    /// Whether somebody without a password was told of: whoever comes again and again fills no log.
    is_stranger_told: AtomicBool,
}

/// An SDK host that may use the guard.
struct Admitted {
    password: String,
    /// The newest last.
    calls: Mutex<VecDeque<(u64, Seen)>>,
}

impl Admitted {
    fn calls(&self) -> MutexGuard<'_, VecDeque<(u64, Seen)>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the guard saw of one call of the library's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Why it did not get through, if it did not.
    pub failure: Option<Failure>,
    /// How long the whole file is of which a part came, in bytes as WeCom sends them: enciphered, with 1 to 16 bytes
    /// of padding.
    pub file_bytes: Option<u64>,
}

/// Who makes a request: a call of the library's in an SDK host.
pub(super) struct Caller {
    admitted: Arc<Admitted>,
    call: u64,
}

impl Caller {
    pub fn note_failure(&self, failure: Failure) {
        self.note(|seen| seen.failure = Some(failure));
    }

    pub fn note_file_bytes(&self, bytes: u64) {
        self.note(|seen| seen.file_bytes = Some(bytes));
    }

    fn note(&self, note: impl FnOnce(&mut Seen)) {
        let mut calls = self.admitted.calls();
        if let Some((_, seen)) = calls.iter_mut().find(|(call, _)| *call == self.call) {
            return note(seen);
        }
        if calls.len() == CALLS_MAX {
            calls.pop_front();
        }
        let mut seen = Seen::default();
        note(&mut seen);
        calls.push_back((self.call, seen));
    }
}

/// One SDK host's leave to use the guard, which ends when this is dropped.
pub struct Pass {
    address: SocketAddr,
    admitted: Arc<Admitted>,
    inside: Arc<Inside>,
}

impl Guard {
    /// Reads roots and makes the certificate that the library is shown; nothing listens yet.
    pub fn new(settings: &Settings, metrics: Arc<ConnectorMetrics>) -> Result<Self, SettingsError> {
        let timeout = Duration::from_millis(settings.timeout_ms);
        let upstream = Upstream::new(settings, metrics.clone())?;
        let inside = Arc::new(Inside {
            tls: acceptor()?,
            forwarder: Forwarder::new(upstream, timeout, metrics.clone()),
            admitted: Mutex::default(),
            metrics,
            connection_timeout: timeout + GRACE,
            is_stranger_told: AtomicBool::new(false),
        });
        Ok(Self(Arc::new(Shared { inside, listening: OnceCell::new() })))
    }

    /// Lets one more SDK host in, with a password of its own.
    ///
    /// # Errors
    /// When no port of the loopback address can be listened on, or there are no random numbers.
    pub async fn admit(&self) -> io::Result<Pass> {
        let listening = self.0.listening.get_or_try_init(|| Listening::start(self.0.inside.clone())).await?;
        let mut random = [0; PASSWORD_BYTES];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| io::Error::other("there are no random numbers"))?;
        let password = BASE64_URL_SAFE_NO_PAD.encode(random);
        let admitted = Arc::new(Admitted { password, calls: Mutex::default() });
        let inside = self.0.inside.clone();
        inside.admitted().push(admitted.clone());
        Ok(Pass { address: listening.address, admitted, inside })
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.0.listening.get().map(|listening| listening.address);
        f.debug_struct("Guard").field("address", &address).finish_non_exhaustive()
    }
}

impl Pass {
    /// Where the guard listens, on loopback.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The host's password; the name before it is the number of the call, see [`proxy_password`].
    pub fn password(&self) -> &str {
        &self.admitted.password
    }

    /// What was seen of the call of this number. Told once.
    pub fn seen(&self, call: u64) -> Seen {
        let mut calls = self.admitted.calls();
        let found = calls.iter().position(|(found, _)| *found == call);
        found.and_then(|at| calls.remove(at)).map(|(_, seen)| seen).unwrap_or_default()
    }
}

/// What a call of the library's says to the guard, `user:password`: the number is how the guard knows which call it is.
pub fn proxy_password(call: u64, password: &str) -> String {
    format!("{call}:{password}")
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.inside.admitted().retain(|admitted| !Arc::ptr_eq(admitted, &self.admitted));
    }
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("address", &self.address).finish_non_exhaustive()
    }
}

/// TLS as the library meets it: a certificate of our own, which is nowhere but in memory.
fn acceptor() -> Result<TlsAcceptor, SettingsError> {
    let error = |error: &dyn fmt::Display| SettingsError::Tls(error.to_string());
    let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).map_err(|cause| error(&cause))?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|cause| error(&cause))?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.into()], key.into())
        .map_err(|cause| error(&cause))?;
    // The library never resumes a session.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config).into())
}

impl Listening {
    async fn start(inside: Arc<Inside>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let stop = CancellationToken::new();
        tokio::spawn(stop.clone().run_until_cancelled_owned(accept(listener, inside, stop.child_token())));
        tracing::debug!(%address, "the egress guard listens");
        Ok(Self { address, _stop: stop.drop_guard() })
    }
}

async fn accept(listener: TcpListener, inside: Arc<Inside>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, _)) => {
                let (inside, stop) = (inside.clone(), stop.clone());
                tokio::spawn(async move {
                    let _place = place;
                    stop.run_until_cancelled(inside.connection(stream)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the egress guard could not accept a connection");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

impl Inside {
    fn admitted(&self) -> MutexGuard<'_, Vec<Arc<Admitted>>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a client says to its proxy, and all that comes after.
    async fn connection(self: Arc<Self>, tcp: TcpStream) {
        let _ = tcp.set_nodelay(true);
        let mut stream = BufReader::new(tcp);
        // An error here is a client that went away or spoke no HTTP: nothing to do, and nothing to fill a log with.
        let Some(head) = read_head(&mut stream, PROXY_HEAD_BYTES_MAX).await else { return };
        let caller = match head.and_then(|head| self.connect(&head)) {
            Ok(caller) => caller,
            Err(status) => {
                let answered = match status {
                    PROXY_AUTHENTICATION_REQUIRED => stream.write_all(ASKS_FOR_PASSWORD).await.is_ok(),
                    status => forward::answer(&mut stream, status).await.is_ok(),
                };
                return if answered {
                    farewell(stream).await
                };
            }
        };
        if stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok() {
            let _ = tokio::time::timeout(self.connection_timeout, self.serve(stream, caller)).await;
        }
    }

    /// Who wants to be led to WeCom, or the status of a refusal.
    fn connect(&self, head: &Head) -> Result<Caller, u16> {
        let Some(caller) = self.who(head) else {
            self.metrics.egress.refused("password");
            if !self.is_stranger_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "somebody on this machine came to the egress guard without an SDK host's password and was refused; this is told \
                     once, and counted in egress_refusals_total"
                );
            }
            return Err(PROXY_AUTHENTICATION_REQUIRED);
        };
        let target = format!("{HOST}:{PORT}");
        if head.request_line() != Some(RequestLine { method: "CONNECT", target: &target }) {
            self.metrics.egress.refused("host");
            tracing::warn!("the vendor's library wanted to go elsewhere than to {target} and was refused");
            return Err(403);
        }
        Ok(caller)
    }

    /// Whose password the head has. All are compared, each in constant time.
    fn who(&self, head: &Head) -> Option<Caller> {
        let given = head.text("proxy-authorization")?.strip_prefix("Basic ")?;
        let given = String::from_utf8(BASE64_STANDARD.decode(given).ok()?).ok()?;
        let (call, password) = given.split_once(':')?;
        let is_given = |admitted: &Admitted| {
            let own = admitted.password.as_bytes();
            aws_lc_rs::constant_time::verify_slices_are_equal(own, password.as_bytes()).is_ok()
        };
        let admitted = self
            .admitted()
            .iter()
            .fold(None, |found, admitted| if is_given(admitted) { Some(admitted.clone()) } else { found })?;
        Some(Caller { admitted, call: call.parse().ok()? })
    }

    /// What the library says within its TLS: one request.
    async fn serve(&self, stream: BufReader<TcpStream>, caller: Caller) {
        // The library takes any other end than a reset for that of an answer whose length it was not told, also where
        // TLS did not end (measured). Whatever happens to this task, what is cut is a reset.
        let _ = SockRef::from(stream.get_ref()).set_linger(Some(Duration::ZERO));
        let Ok(Ok(stream)) = tokio::time::timeout(HEAD_TIMEOUT, self.tls.accept(stream)).await else { return };
        let (from, mut to) = tokio::io::split(stream);
        let mut from = BufReader::new(from);
        let Some(head) = read_head(&mut from, HEAD_BYTES_MAX).await else { return };
        let answered = match head {
            Ok(head) => self.forwarder.forward(&head, &mut from, &mut to, caller).await,
            Err(status) => forward::answer(&mut to, status).await,
        };
        if let Ok(()) = answered {
            let stream: TlsStream<BufReader<TcpStream>> = from.into_inner().unsplit(to);
            let _ = SockRef::from(stream.get_ref().0.get_ref()).set_linger(None);
            farewell(stream).await;
        }
    }
}

const PROXY_AUTHENTICATION_REQUIRED: u16 = 407;
const ASKS_FOR_PASSWORD: &[u8] =
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"sdk-host\"\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";

/// A head, or the status of what is wrong with it; nothing where the client went away, or took too long.
async fn read_head(from: &mut (impl AsyncBufRead + Unpin), bytes_max: usize) -> Option<Result<Head, u16>> {
    match tokio::time::timeout(HEAD_TIMEOUT, Head::read(from, bytes_max)).await.ok()? {
        Ok(head) => Some(Ok(head)),
        Err(HeadError::NoHttp) => Some(Err(400)),
        Err(HeadError::TooLong(_)) => Some(Err(431)),
        Err(HeadError::Nothing | HeadError::Cut | HeadError::Io(_)) => None,
    }
}

/// Ends a connection so that all that was written arrives.
async fn farewell(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    if stream.shutdown().await.is_ok() {
        let mut rest = stream.take(FAREWELL_BYTES_MAX);
        let _ = tokio::time::timeout(FAREWELL_TIMEOUT, tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    }
}
