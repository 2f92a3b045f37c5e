//! The proxy on loopback: who may use it, and for which host.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::header::{HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use socket2::{SockRef, Socket};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OnceCell, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::forward::Forwarder;
use super::upstream::{self, Settings, SettingsError};
use super::{Endpoint, Failure, HOST, PORT};
use crate::metrics::ConnectorMetrics;

/// A client has this long to say who it is and where it wants to go, then to speak TLS, then to send a request's head.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Of a request's head, and of what is written of an answer at once.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A connection lives no longer than a request's time limit and this.
const GRACE: Duration = Duration::from_secs(10);
/// More connections wait in the system's own queue. The SDK host has one for each of its calls.
const CONNECTIONS_MAX: usize = 512;
/// Waiting after `accept` failed, most likely for want of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);
const PASSWORD_BYTES: usize = 24;
/// The name that goes with the password; it says nothing.
const USER: &str = "sdk-host";
/// Failures remembered for each SDK host. There are few calls at a time.
const FAILURES_MAX: usize = 64;

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
pub(super) struct Admitted {
    /// What stands in `proxy-authorization`.
    authorization: String,
    failures: Mutex<Vec<(Instant, Endpoint, Failure)>>,
}

impl Admitted {
    pub fn note(&self, endpoint: Endpoint, failure: Failure) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() == FAILURES_MAX {
            failures.remove(0);
        }
        failures.push((Instant::now(), endpoint, failure));
    }
}

/// The connection to the library.
pub(super) struct Client(Socket);

impl Client {
    /// Has the connection end with a reset. The library takes any other end for that of an answer whose length it was not told,
    /// also where TLS did not end (measured).
    pub fn reset_at_end(&self) {
        let _ = self.0.set_linger(Some(Duration::ZERO));
    }
}

/// One SDK host's leave to use the guard, which ends when this is dropped.
pub struct Pass {
    address: SocketAddr,
    password: String,
    admitted: Arc<Admitted>,
    inside: Arc<Inside>,
}

impl Guard {
    /// Reads roots and makes the certificate that the library is shown; nothing listens yet.
    pub fn new(settings: &Settings, metrics: Arc<ConnectorMetrics>) -> Result<Self, SettingsError> {
        let timeout = Duration::from_millis(settings.timeout_ms);
        let client = upstream::client(settings, metrics.clone())?;
        let inside = Arc::new(Inside {
            tls: acceptor()?,
            forwarder: Forwarder::new(client, timeout, metrics.clone()),
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
        let password = format!("{USER}:{}", BASE64_URL_SAFE_NO_PAD.encode(random));
        let authorization = format!("Basic {}", BASE64_STANDARD.encode(&password));
        let admitted = Arc::new(Admitted { authorization, failures: Mutex::default() });
        let inside = self.0.inside.clone();
        inside.admitted().push(admitted.clone());
        Ok(Pass { address: listening.address, password, admitted, inside })
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

    /// `user:password`, as the library takes it.
    pub fn password(&self) -> &str {
        &self.password
    }

    /// The last failure since `start` of a request for `endpoint`, or of one for the token that it needs.
    pub fn failure_since(&self, start: Instant, endpoint: Endpoint) -> Option<Failure> {
        let failures = self.admitted.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let mut latest = failures.iter().rev().take_while(|(at, ..)| *at >= start);
        latest
            .find(|(_, found, _)| *found == endpoint || *found == Endpoint::Token)
            .map(|(_, _, failure)| failure.clone())
    }
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
                    stop.run_until_cancelled(inside.connection(stream, stop.clone())).await;
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
    async fn connection(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        let _ = stream.set_nodelay(true);
        let Ok(socket) = SockRef::from(&stream).try_clone() else { return };
        let client = Arc::new(Client(socket));
        let service = service_fn(move |request| {
            let (inside, client, stop) = (self.clone(), client.clone(), stop.clone());
            async move { Ok::<_, std::convert::Infallible>(inside.connect(request, client, stop)) }
        });
        // An error here is a client that went away or spoke no HTTP: nothing to do, and nothing to fill a log with.
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_buf_size(HEADER_BYTES_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades()
            .await;
    }

    fn connect(
        self: Arc<Self>,
        request: Request<Incoming>,
        client: Arc<Client>,
        stop: CancellationToken,
    ) -> Response<Empty<Bytes>> {
        let Some(admitted) = self.who(&request) else {
            self.metrics.egress.refused("password");
            if !self.is_stranger_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "somebody on this machine came to the egress guard without an SDK host's password and was refused; this is told \
                     once, and counted in egress_refusals_total"
                );
            }
            let mut response = answer(StatusCode::PROXY_AUTHENTICATION_REQUIRED);
            response.headers_mut().insert(PROXY_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"sdk-host\""));
            return response;
        };
        let authority = request.uri().authority().map(|authority| (authority.host(), authority.port_u16()));
        if request.method() != Method::CONNECT || authority != Some((HOST, Some(PORT))) {
            self.metrics.egress.refused("host");
            tracing::warn!("the vendor's library wanted to go elsewhere than to {HOST}:{PORT} and was refused");
            return answer(StatusCode::FORBIDDEN);
        }
        tokio::spawn(async move {
            let timeout = self.connection_timeout;
            stop.run_until_cancelled(tokio::time::timeout(timeout, self.serve(request, client, admitted))).await
        });
        answer(StatusCode::OK)
    }

    /// Whose password the request has. All are compared, each in constant time.
    fn who(&self, request: &Request<Incoming>) -> Option<Arc<Admitted>> {
        let given = request.headers().get(PROXY_AUTHORIZATION)?.as_bytes();
        let is_given = |admitted: &Admitted| {
            aws_lc_rs::constant_time::verify_slices_are_equal(admitted.authorization.as_bytes(), given).is_ok()
        };
        self.admitted()
            .iter()
            .fold(None, |found, admitted| if is_given(admitted) { Some(admitted.clone()) } else { found })
    }

    /// What the library says within its TLS.
    async fn serve(self: Arc<Self>, request: Request<Incoming>, client: Arc<Client>, admitted: Arc<Admitted>) {
        let Ok(stream) = hyper::upgrade::on(request).await else { return };
        let handshake = tokio::time::timeout(HEADER_READ_TIMEOUT, self.tls.accept(TokioIo::new(stream)));
        let Ok(Ok(stream)) = handshake.await else { return };
        let service = service_fn(move |request| {
            let (inside, client, admitted) = (self.clone(), client.clone(), admitted.clone());
            async move { Ok::<_, std::convert::Infallible>(inside.forwarder.forward(request, client, admitted).await) }
        });
        let _ = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_READ_TIMEOUT)
            .max_buf_size(BUFFER_BYTES_MAX)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }
}

fn answer(status: StatusCode) -> Response<Empty<Bytes>> {
    let mut response = Response::new(Empty::new());
    *response.status_mut() = status;
    response
}
