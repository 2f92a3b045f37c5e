//! WeCom as the guard meets it, or somebody in its place: TLS with a certificate of any kind, and answers of any kind.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{HandshakeKind, ServerConfig, ServerConnection, Stream};
use socket2::SockRef;
use tempfile::NamedTempFile;

pub const TOKEN: &str = "t0kenT0KENt0kenT0KENt0kenT0KEN";

/// What is wrong of the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    None,
    SelfSigned,
    WrongName,
    Expired,
    NotYet,
    WrongCa,
}

/// What becomes of the connection after an answer.
pub enum After {
    Keep,
    /// Ended in order.
    Close,
    /// Ended without a word.
    Cut,
    /// Ended with a reset.
    Reset,
}

/// Answers a pull.
pub type Script = fn(&mut dyn Write) -> io::Result<After>;

/// A request, whole.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// As it came, to the empty line.
    pub head: String,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    /// What stands behind the first header of this name, whatever its case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Answers all requests but those for a token.
pub type Service = Arc<dyn Fn(&Asked, &mut dyn Write) -> io::Result<After> + Send + Sync>;

#[derive(Debug, Default)]
pub struct Seen {
    pub handshakes: AtomicUsize,
    pub resumed: AtomicUsize,
    pub requests: AtomicUsize,
    /// Of requests, or of anything else within TLS.
    pub bytes: AtomicUsize,
    /// Each request's head.
    pub heads: Mutex<Vec<String>>,
}

#[derive(Debug)]
pub struct Fake {
    pub address: SocketAddr,
    pub seen: Arc<Seen>,
    /// Also good for a proxy at 127.0.0.1.
    pub tls: Arc<ServerConfig>,
    ca: NamedTempFile,
}

impl Fake {
    /// Answers every request for a token with `token`, and every other with `script`.
    pub fn start(flaw: Flaw, token: &'static str, script: Script) -> Fake {
        Self::serve(flaw, token, Arc::new(move |_, to| script(to)))
    }

    /// As [`Fake::start`], with answers that depend on what is asked for.
    pub fn serve(flaw: Flaw, token: &'static str, service: Service) -> Fake {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (tls, pem) = tls(flaw);
        let mut ca = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file for the CA");
        ca.write_all(pem.as_bytes()).expect("the CA");
        let seen = Arc::new(Seen::default());
        let fake = Fake { address, seen: seen.clone(), tls: tls.clone(), ca };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (tls, seen, service) = (tls.clone(), seen.clone(), service.clone());
                // A connection that breaks is the guard's to complain of.
                std::thread::spawn(move || serve(stream, tls, &seen, token, &service));
            }
        });
        fake
    }

    /// Of the CA that the guard is told to believe.
    pub fn ca_file(&self) -> &Path {
        self.ca.path()
    }
}

fn tls(flaw: Flaw) -> (Arc<ServerConfig>, String) {
    let key = || KeyPair::generate().expect("a key");
    let issuer = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        CertifiedIssuer::self_signed(params, key()).expect("a CA")
    };
    let (believed, other, own) = (issuer("Believed CA"), issuer("Other CA"), key());
    let name = if flaw == Flaw::WrongName { "proxy.example" } else { "qyapi.weixin.qq.com" };
    let mut params = CertificateParams::new([name.to_owned(), "127.0.0.1".to_owned()]).expect("a name");
    params.distinguished_name.push(DnType::CommonName, "somebody");
    match flaw {
        Flaw::Expired => (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1)),
        Flaw::NotYet => (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2091, 1, 1)),
        _ => {}
    }
    let certificate = match flaw {
        Flaw::SelfSigned => params.self_signed(&own),
        Flaw::WrongCa => params.signed_by(&own, &other),
        _ => params.signed_by(&own, &believed),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.expect("a certificate").into()],
            PrivatePkcs8KeyDer::from(own.serialize_der()).into(),
        )
        .expect("our own certificate");
    let pem = BASE64_STANDARD.encode(believed.der());
    (Arc::new(config), format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"))
}

fn serve(mut tcp: TcpStream, tls: Arc<ServerConfig>, seen: &Seen, token: &str, service: &Service) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    let mut connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut tcp)?;
    }
    seen.handshakes.fetch_add(1, Ordering::Relaxed);
    if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
        seen.resumed.fetch_add(1, Ordering::Relaxed);
    }
    let mut stream = Stream::new(&mut connection, &mut tcp);
    loop {
        let asked = read_request(&mut stream, seen)?;
        seen.heads.lock().expect("the heads").push(asked.head.clone());
        seen.requests.fetch_add(1, Ordering::Relaxed);
        let after = if asked.target().starts_with("/cgi-bin/gettoken?") {
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{token}", token.len())?;
            After::Keep
        } else {
            service(&asked, &mut stream)?
        };
        stream.flush()?;
        match after {
            After::Keep => {}
            After::Close => {
                stream.conn.send_close_notify();
                return stream.flush();
            }
            After::Cut => return Ok(()),
            After::Reset => return SockRef::from(&tcp).set_linger(Some(Duration::ZERO)),
        }
    }
}

fn read_request(stream: &mut impl Read, seen: &Seen) -> io::Result<Asked> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let count = reader.read_line(&mut head)?;
        seen.bytes.fetch_add(count, Ordering::Relaxed);
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if head.ends_with("\r\n\r\n") {
            break;
        }
    }
    let mut asked = Asked { head, body: Vec::new() };
    let length = asked.header("content-length").map_or(Ok(0), str::parse).map_err(io::Error::other)?;
    asked.body.resize(length, 0);
    reader.read_exact(&mut asked.body)?;
    seen.bytes.fetch_add(length, Ordering::Relaxed);
    Ok(asked)
}
