//! The vendor's API on this machine: a proxy on loopback that ends TLS itself, under the vendor's name.
//!
//! The vendor's library takes a certificate of that name from anybody and goes to whatever proxy it is told (measured), so nothing
//! of it leaves the machine. The connector's egress guard takes the certificate by its CA alone.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};

use crate::api;

/// The one host that the library may ask for.
const HOST: &str = "qyapi.weixin.qq.com";

/// Who answers.
pub trait Service: Send + Sync + 'static {
    /// `user:password` as base64, where the proxy asks for one.
    fn proxy_password(&self) -> Option<String> {
        None
    }

    /// The answer to a request within TLS.
    fn answer(&self, request: &Request) -> Reply;

    /// Something came that the library has no reason for.
    fn stray(&self, what: String);
}

/// A request that came through.
#[derive(Debug, Clone)]
pub struct Request {
    /// Without host and query.
    pub path: String,
    /// `HTTP/1.0` or another.
    pub version: String,
    /// As it came; empty where there was none.
    pub query: String,
    pub range: Option<String>,
    pub body: Vec<u8>,
}

impl Request {
    /// As the archive's API takes it.
    pub fn for_api(&self) -> api::Request<'_> {
        api::Request { path: &self.path, query: &self.query, range: self.range.as_deref(), body: &self.body }
    }
}

/// What is sent, byte for byte.
#[derive(Debug, Clone)]
pub struct Reply {
    pub bytes: Vec<u8>,
    /// Whether the connection ends with it.
    pub is_last: bool,
}

impl From<api::Answer> for Reply {
    fn from(answer: api::Answer) -> Self {
        let range = answer.content_range.map(|range| format!("CONTENT-RANGE: {range}\r\n"));
        let mut bytes = http(answer.status, &range.unwrap_or_default(), &answer.body);
        if answer.is_cut {
            bytes.truncate(bytes.len() - 2);
        }
        Self { bytes, is_last: answer.is_cut }
    }
}

/// A whole HTTP answer. `headers` are whole lines.
pub fn http(status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} Said\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A certificate under the vendor's name, and the CA that it is known by.
#[derive(Clone)]
pub struct Identity {
    tls: Arc<ServerConfig>,
    /// In PEM.
    pub ca: String,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").finish_non_exhaustive()
    }
}

impl Identity {
    /// Makes keys and certificates anew.
    pub fn new() -> io::Result<Self> {
        let key = || KeyPair::generate().map_err(io::Error::other);
        let mut issuer = CertificateParams::default();
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(issuer, key()?).map_err(io::Error::other)?;
        let own = key()?;
        let params = CertificateParams::new([HOST.to_owned()]).map_err(io::Error::other)?;
        let certificate = params.signed_by(&own, &issuer).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(own.serialize_der()).into())
            .map_err(io::Error::other)?;
        let pem = BASE64.encode(issuer.der());
        let ca = format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n");
        Ok(Self { tls: Arc::new(config), ca })
    }
}

/// Answers on a port of loopback, on threads of its own, as long as the process lives.
pub fn start(port: u16, identity: &Identity, service: Arc<impl Service>) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let address = listener.local_addr()?;
    let tls = identity.tls.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let (tls, service) = (tls.clone(), service.clone());
            // A connection that breaks is the library's to complain of.
            std::thread::spawn(move || serve(stream, &tls, &*service));
        }
    });
    Ok(address)
}

/// One connection: the proxy's part, then requests and their answers within TLS.
fn serve(mut tcp: TcpStream, tls: &Arc<ServerConfig>, service: &impl Service) -> io::Result<()> {
    // As servers do that keep connections: else the end of an answer waits for the acknowledgement of what is before it.
    tcp.set_nodelay(true)?;
    let head = Head::read(&mut BufReader::with_capacity(1, &tcp))?;
    if head.method != "CONNECT" || head.target != format!("{HOST}:443") {
        service.stray(format!("{} {}", head.method, head.target));
        return tcp.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    }
    let authorization = service.proxy_password().map(|password| format!("Basic {password}"));
    if authorization.is_some() && head.header("proxy-authorization") != authorization.as_deref() {
        return tcp.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
    }
    tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;

    let mut connection = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
    let mut stream = Stream::new(&mut connection, &mut tcp);
    while serve_request(&mut stream, service)? {}
    stream.conn.send_close_notify();
    stream.flush()
}

/// One request within TLS; says whether another may follow.
fn serve_request(mut stream: &mut (impl Read + Write), service: &impl Service) -> io::Result<bool> {
    let (head, body) = {
        let mut reader = BufReader::new(&mut stream);
        let head = Head::read(&mut reader)?;
        let length = head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = Vec::new();
        reader.take(length).read_to_end(&mut body)?;
        (head, body)
    };
    let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
    let reply = service.answer(&Request {
        path: path.to_owned(),
        version: head.version.clone(),
        query: query.to_owned(),
        range: head.header("range").map(str::to_owned),
        body,
    });
    stream.write_all(&reply.bytes)?;
    stream.flush()?;
    Ok(head.version != "HTTP/1.0" && !reply.is_last)
}

/// Request line and headers.
struct Head {
    method: String,
    target: String,
    version: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn read(reader: &mut impl BufRead) -> io::Result<Head> {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut words = lines.first().map(String::as_str).unwrap_or_default().split(' ').map(str::to_owned);
        let headers = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
        Ok(Head {
            method: words.next().unwrap_or_default(),
            target: words.next().unwrap_or_default(),
            version: words.next().unwrap_or_default(),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect(),
        })
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }
}
