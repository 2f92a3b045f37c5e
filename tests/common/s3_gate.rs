//! A gate before the S3 server that refuses as Amazon's does: what a right is missing for, what Object Lock asks for,
//! and whoever does not trust its certificate.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

use super::S3;

/// What the credentials are allowed, and how the bucket is.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// Without it what is not there is denied, not absent.
    pub list: bool,
    pub delete: bool,
    /// To write anything at all.
    pub write: bool,
    /// To write objects of several parts, as with a key of which only new data keys may be asked for.
    pub multipart: bool,
    /// Off where the bucket keeps each object as it is.
    pub overwrite: bool,
    /// Object Lock: what is written needs a checksum.
    pub lock: bool,
    /// Whether an object can be written where there is none. Without it the condition is not known, as in many
    /// services.
    pub condition: bool,
}

impl Rights {
    pub const ALL: Self =
        Self { list: true, delete: true, write: true, multipart: true, overwrite: true, lock: false, condition: true };
}

#[derive(Debug)]
struct State {
    rights: Rights,
    /// `PUT key` of what came through, in order.
    writes: Vec<String>,
}

/// A gate with rights that can change.
#[derive(Debug)]
pub struct S3Gate {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    ca: Option<NamedTempFile>,
}

impl S3Gate {
    pub fn start(server: &S3, rights: Rights) -> Self {
        Self::with(server, rights, None)
    }

    /// As [`S3Gate::start`], over TLS with a certificate of an authority that nobody knows but by [`S3Gate::ca_file`].
    pub fn start_tls(server: &S3, rights: Rights) -> Self {
        let (acceptor, pem) = tls();
        let mut file = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file for the CA");
        file.write_all(pem.as_bytes()).expect("the CA");
        Self { ca: Some(file), ..Self::with(server, rights, Some(acceptor)) }
    }

    fn with(server: &S3, rights: Rights, acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        listener.set_nonblocking(true).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State { rights, writes: Vec::new() }));
        let (upstream, root, shared) = (server.address(), server.root(), state.clone());
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
                while let Ok((stream, _)) = listener.accept().await {
                    let (root, state, acceptor) = (root.clone(), shared.clone(), acceptor.clone());
                    let answer = service_fn(move |request| pass(request, upstream, root.clone(), state.clone()));
                    tokio::spawn(async move {
                        let server = hyper::server::conn::http1::Builder::new();
                        // A connection that breaks is the client's to complain of.
                        let _ = match acceptor {
                            None => server.serve_connection(TokioIo::new(stream), answer).await,
                            Some(acceptor) => match acceptor.accept(stream).await {
                                Ok(stream) => server.serve_connection(TokioIo::new(stream), answer).await,
                                Err(_) => Ok(()),
                            },
                        };
                    });
                }
            });
        });
        Self { address, state, ca: None }
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.ca.is_some() { "https" } else { "http" }, self.address)
    }

    pub fn ca_file(&self) -> &Path {
        self.ca.as_ref().expect("a gate with TLS").path()
    }

    pub fn set(&self, rights: Rights) {
        self.state().rights = rights;
    }

    /// How often an object whose key ends so was written.
    pub fn writes(&self, end: &str) -> usize {
        self.state().writes.iter().filter(|key| key.ends_with(end)).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("a lock")
    }
}

async fn pass(
    request: Request<Incoming>,
    upstream: SocketAddr,
    root: PathBuf,
    state: Arc<Mutex<State>>,
) -> Result<Response<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
    let rights = state.lock().expect("a lock").rights;
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (path, query) = (parts.uri.path().to_owned(), parts.uri.query().unwrap_or_default());
    let is_part = query.contains("uploadId=");
    // An object comes to be with a request of its own, or with the end of its upload.
    let is_write = is_part == (parts.method == Method::POST) && matches!(parts.method, Method::PUT | Method::POST);
    let is_there = root.join(path.trim_start_matches('/')).is_file();
    let is_of_condition = parts.headers.contains_key("if-none-match");
    if parts.method == Method::DELETE && !is_part && !rights.delete
        || parts.method == Method::PUT && !rights.write
        || !rights.multipart && (is_part || query.starts_with("uploads"))
        || !rights.overwrite && is_write && is_there && !(is_of_condition && rights.condition)
    {
        return Ok(refused(StatusCode::FORBIDDEN, "AccessDenied", "Access Denied"));
    }
    let is_checked = |name: &str| name == "content-md5" || name.starts_with("x-amz-checksum-");
    if rights.lock && parts.method == Method::PUT && !parts.headers.keys().any(|name| is_checked(name.as_str())) {
        let message = "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters";
        return Ok(refused(StatusCode::BAD_REQUEST, "InvalidRequest", message));
    }
    if is_of_condition {
        if !rights.condition {
            let message = "A header you provided implies functionality that is not implemented";
            return Ok(refused(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message));
        }
        if is_there {
            let message = "At least one of the pre-conditions you specified did not hold";
            return Ok(refused(StatusCode::PRECONDITION_FAILED, "PreconditionFailed", message));
        }
    }
    let is_head = parts.method == Method::HEAD;
    if parts.method == Method::PUT && !is_part {
        state.lock().expect("a lock").writes.push(path);
    }
    let stream = tokio::net::TcpStream::connect(upstream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
    if answer.status() == StatusCode::NOT_FOUND && !rights.list {
        let denied = refused(StatusCode::FORBIDDEN, "AccessDenied", "Access Denied");
        return Ok(if is_head { denied.map(|_| Full::default()) } else { denied });
    }
    let (parts, body) = answer.into_parts();
    Ok(Response::from_parts(parts, Full::new(body.collect().await?.to_bytes())))
}

fn refused(status: StatusCode, code: &str, message: &str) -> Response<Full<Bytes>> {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message><Resource/>\
         <RequestId>1</RequestId></Error>"
    );
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}

fn tls() -> (TlsAcceptor, String) {
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, key()).expect("a CA");
    let (own, params) = (key(), CertificateParams::new(["127.0.0.1".to_owned()]).expect("a name"));
    let certificate = params.signed_by(&own, &issuer).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(own.serialize_der()).into())
        .expect("our own certificate");
    let pem = BASE64_STANDARD.encode(issuer.der());
    let pem = format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
    (TlsAcceptor::from(Arc::new(config)), pem)
}
