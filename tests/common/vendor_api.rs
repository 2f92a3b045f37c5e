//! A stand-in for the vendor's API, for the vendor's own library: a proxy on loopback that ends TLS itself.
//!
//! The library takes a certificate of that name from anybody and goes to whatever proxy it is told (measured), so nothing of it
//! leaves the machine. The egress guard takes the certificate by its CA alone, see [`VendorApi::ca_file`].
//! The archive behind it is what the test puts there, or a scenario's, see [`VendorApi::serve`]; what the library asked for is
//! kept for the test to look at.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, Stream};
use serde_json::Value;
use tempfile::NamedTempFile;
use wecom_simulator::api;
pub use wecom_simulator::api::{FILES, PAGES, TOKENS};
use wecom_simulator::archive::Archive;

/// The one host that the library may ask for.
const HOST: &str = "qyapi.weixin.qq.com:443";

/// What the API answers in place of a page, or of a file.
#[derive(Debug, Clone)]
pub enum Fault {
    Errcode(i64),
    /// 40014, and so from then on to everybody who comes with the token of before.
    DeadToken,
    Status(u16),
    Body(&'static [u8]),
    /// The connection ends in the middle of the answer.
    Cut,
    /// No answer ever, to a pull.
    Silence,
    /// The page, but not before all with the same barrier are waited for: see [`Fault::together`].
    Together(Arc<Barrier>),
}

impl Fault {
    /// Pulls that are answered once so many of them are under way at the same time.
    pub fn together(count: usize) -> impl Iterator<Item = Fault> {
        std::iter::repeat_n(Fault::Together(Arc::new(Barrier::new(count))), count)
    }
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
    pub body: Value,
}

impl Request {
    /// What stands behind `name` in the query; empty where it is missing.
    fn parameter(&self, name: &str) -> &str {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)).unwrap_or_default()
    }
}

/// The running stand-in, with one corp.
#[derive(Debug)]
pub struct VendorApi {
    address: SocketAddr,
    ca: NamedTempFile,
    corp: Arc<Mutex<Corp>>,
}

#[derive(Debug)]
struct Corp {
    secret: String,
    proxy_password: Option<String>,
    /// Sealed records with their seq, in order.
    records: Vec<(u64, String)>,
    /// A scenario that answers in place of all of these, where no fault is up.
    archive: Option<Arc<Archive>>,
    faults: VecDeque<Fault>,
    /// By the id of the file; all others have expired.
    files: BTreeMap<String, Fault>,
    tokens: usize,
    requests: Vec<Request>,
    /// What came that should not have come.
    strays: Vec<String>,
}

impl VendorApi {
    /// Starts listening, for a corp with this secret.
    pub fn start(secret: &str) -> VendorApi {
        Self::listen(secret, None)
    }

    /// Starts listening, for the corps of a scenario.
    pub fn serve(archive: Archive) -> VendorApi {
        Self::listen("", Some(Arc::new(archive)))
    }

    fn listen(secret: &str, archive: Option<Arc<Archive>>) -> VendorApi {
        // The one thing that could lead the library past the proxy it is told.
        let exceptions = std::env::var_os("no_proxy").unwrap_or_default().to_string_lossy().into_owned();
        let hosts = || exceptions.split([',', ' ']).filter(|host| !host.is_empty());
        let is_ours = |host: &str| host == "*" || "qyapi.weixin.qq.com".ends_with(host.trim_start_matches('.'));
        assert!(!hosts().any(is_ours), "no_proxy={exceptions} leads the vendor's library past the test's proxy");
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let corp = Corp {
            secret: secret.to_owned(),
            proxy_password: None,
            records: Vec::new(),
            archive,
            faults: VecDeque::new(),
            files: BTreeMap::new(),
            tokens: 0,
            requests: Vec::new(),
            strays: Vec::new(),
        };
        let address = listener.local_addr().expect("an address");
        let mut ca = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file for the CA");
        let (tls, pem) = tls();
        ca.write_all(pem.as_bytes()).expect("the CA");
        let api = VendorApi { address, ca, corp: Arc::new(Mutex::new(corp)) };
        let corp = api.corp.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (tls, corp) = (tls.clone(), corp.clone());
                // A connection that breaks is the library's to complain of: the test sees what it makes of it.
                std::thread::spawn(move || serve(stream, &tls, &corp));
            }
        });
        api
    }

    /// For `wecom.proxy`.
    pub fn proxy(&self) -> String {
        format!("http://{}", self.address)
    }

    /// For `sdk.egress.ca.file`.
    pub fn ca_file(&self) -> &Path {
        self.ca.path()
    }

    /// From now on asks everybody for this `user:password`, as base64.
    pub fn ask_proxy_password(&self, base64: &str) {
        self.corp().proxy_password = Some(base64.to_owned());
    }

    /// From now on takes this secret.
    pub fn set_secret(&self, secret: &str) {
        self.corp().secret = secret.to_owned();
    }

    /// Adds records to the archive: each its seq and the sealed record as it is to be given out, byte for byte.
    pub fn add(&self, records: impl IntoIterator<Item = (u64, String)>) {
        self.corp().records.extend(records);
    }

    /// The next pulls fare like this.
    pub fn fault(&self, faults: impl IntoIterator<Item = Fault>) {
        self.corp().faults.extend(faults);
    }

    /// How many of [`VendorApi::fault`] are still to come.
    pub fn faults_left(&self) -> usize {
        self.corp().faults.len()
    }

    /// What becomes of requests for the file with this id, from now on.
    pub fn file(&self, id: &str, fault: Fault) {
        self.corp().files.insert(id.to_owned(), fault);
    }

    /// The token that is in use is refused from now on.
    pub fn expire_token(&self) {
        self.corp().tokens += 1;
    }

    /// All requests so far for this path.
    pub fn requests(&self, path: &str) -> Vec<Request> {
        self.corp().requests.iter().filter(|request| request.path == path).cloned().collect()
    }

    /// The tokens that were given out.
    pub fn tokens(&self) -> Vec<String> {
        let corp = self.corp();
        (1..=corp.tokens).map(|number| corp.token(number)).collect()
    }

    /// Panics if anything came that the library has no reason for.
    pub fn assert_no_strays(&self) {
        assert_eq!(self.corp().strays, Vec::<String>::new());
    }

    fn corp(&self) -> MutexGuard<'_, Corp> {
        lock(&self.corp)
    }
}

fn lock(corp: &Mutex<Corp>) -> MutexGuard<'_, Corp> {
    corp.lock().unwrap_or_else(PoisonError::into_inner)
}

/// TLS under the vendor's name, and its CA in PEM.
fn tls() -> (Arc<ServerConfig>, String) {
    let key = || KeyPair::generate().expect("a key");
    let mut issuer = CertificateParams::default();
    issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(issuer, key()).expect("a CA");
    let own = key();
    let params = CertificateParams::new(["qyapi.weixin.qq.com".to_owned()]).expect("a name");
    let certificate = params.signed_by(&own, &issuer).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions of TLS")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.into()], PrivatePkcs8KeyDer::from(own.serialize_der()).into())
        .expect("our own certificate");
    let pem = BASE64_STANDARD.encode(issuer.der());
    (Arc::new(config), format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"))
}

/// One connection: the proxy's part, then a request and its answer within TLS.
fn serve(mut tcp: TcpStream, tls: &Arc<ServerConfig>, corp: &Mutex<Corp>) -> io::Result<()> {
    // As servers do that keep connections: else the end of an answer waits for the acknowledgement of what is before it.
    tcp.set_nodelay(true)?;
    let head = Head::read(&mut BufReader::with_capacity(1, &tcp))?;
    let authorization = lock(corp).proxy_password.as_ref().map(|password| format!("Basic {password}"));
    if head.method != "CONNECT" || head.target != HOST {
        lock(corp).strays.push(format!("{} {}", head.method, head.target));
        return tcp.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
    }
    if authorization.is_some() && head.header("proxy-authorization") != authorization.as_deref() {
        return tcp.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\ncontent-length: 0\r\n\r\n");
    }
    tcp.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;

    let mut connection = ServerConnection::new(tls.clone()).map_err(io::Error::other)?;
    let mut stream = Stream::new(&mut connection, &mut tcp);
    while serve_request(&mut stream, corp)? {}
    stream.conn.send_close_notify();
    stream.flush()
}

/// One request within TLS; says whether another may follow.
fn serve_request(mut stream: &mut (impl Read + Write), corp: &Mutex<Corp>) -> io::Result<bool> {
    let (head, body) = {
        let mut reader = BufReader::new(&mut stream);
        let head = Head::read(&mut reader)?;
        let length = head.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        (head, body)
    };
    let (path, query) = head.target.split_once('?').unwrap_or((&head.target, ""));
    let request = Request {
        path: path.to_owned(),
        version: head.version.clone(),
        query: query.to_owned(),
        range: head.header("range").map(str::to_owned),
        body: serde_json::from_slice(&body).unwrap_or_default(),
    };
    let (gate, is_cut, archive, fault) = {
        let mut corp = lock(corp);
        corp.requests.push(request.clone());
        (corp.gate(&request), corp.is_cut(&request), corp.archive.clone(), corp.next_fault(&request))
    };
    let mut answer = match archive {
        // A fault of the scenario may have it wait: nobody else has to.
        Some(archive) => answer_from(&archive, &request, &body, fault, corp),
        None => lock(corp).answer(&request, fault),
    };
    if is_cut {
        answer.truncate(answer.len() - 2);
    }
    if let Some(gate) = gate {
        gate.wait();
    }
    stream.write_all(&answer)?;
    stream.flush()?;
    Ok(head.version != "HTTP/1.0" && !is_cut)
}

/// The whole HTTP answer of a scenario.
fn answer_from(archive: &Archive, request: &Request, body: &[u8], fault: Option<Fault>, corp: &Mutex<Corp>) -> Vec<u8> {
    if let Some(Fault::DeadToken) = fault {
        archive.revoke_token(request.parameter("access_token="));
    }
    if let Some(answer) = fault.as_ref().and_then(in_place_of_answer) {
        return answer;
    }
    let asked = api::Request { path: &request.path, query: &request.query, range: request.range.as_deref(), body };
    let api::Answer { status: code, content_range, body } = archive.answer(&asked);
    let mut corp = lock(corp);
    match (code, request.path.as_str()) {
        (404, path) => corp.strays.push(path.to_owned()),
        (_, TOKENS) if body.starts_with(br#"{"errcode":0,"#) => corp.tokens += 1,
        _ => {}
    }
    match content_range {
        Some(range) => http(code, &format!("content-range: {range}\r\n"), &body),
        None => http(code, "", &body),
    }
}

/// The answer of a fault that needs none from the archive.
fn in_place_of_answer(fault: &Fault) -> Option<Vec<u8>> {
    match fault {
        Fault::DeadToken | Fault::Silence | Fault::Together(_) | Fault::Cut => None,
        Fault::Errcode(code) => {
            Some(ok(format!(r#"{{"errcode":{code},"errmsg":"refused, from ip: 203.0.113.7, more info"}}"#).as_bytes()))
        }
        Fault::Status(code) => Some(status(*code)),
        Fault::Body(body) => Some(ok(body)),
    }
}

impl Corp {
    /// Where the request's answer has to wait, if it has to.
    fn gate(&self, request: &Request) -> Option<Arc<Barrier>> {
        match self.faults.front().filter(|_| request.path == PAGES)? {
            Fault::Together(barrier) => Some(barrier.clone()),
            Fault::Silence => Some(Arc::new(Barrier::new(2))),
            _ => None,
        }
    }

    /// Whether the connection ends with the request's answer.
    fn is_cut(&self, request: &Request) -> bool {
        let fault = match request.path.as_str() {
            FILES => self.files.get(request.body["fileid"].as_str().unwrap_or_default()),
            PAGES => self.faults.front(),
            _ => None,
        };
        matches!(fault, Some(Fault::Cut))
    }

    /// What is up for the request.
    fn next_fault(&mut self, request: &Request) -> Option<Fault> {
        match request.path.as_str() {
            PAGES => self.faults.pop_front(),
            FILES => {
                let id = request.body["fileid"].as_str().unwrap_or_default();
                let expired = || self.archive.is_none().then_some(Fault::Errcode(301_048));
                self.files.get(id).cloned().or_else(expired)
            }
            _ => None,
        }
    }

    /// The whole HTTP answer.
    fn answer(&mut self, request: &Request, fault: Option<Fault>) -> Vec<u8> {
        if request.path == TOKENS {
            return ok(&self.give_token(request.parameter("corpsecret=")));
        }
        if ![PAGES, FILES].contains(&request.path.as_str()) {
            self.strays.push(request.path.clone());
            return status(404);
        }
        if let Some(Fault::DeadToken) = fault {
            self.tokens += 1;
        }
        if request.parameter("access_token=") != self.token(self.tokens) {
            return ok(br#"{"errcode":40014,"errmsg":"invalid access_token"}"#);
        }
        fault.as_ref().and_then(in_place_of_answer).unwrap_or_else(|| ok(&self.page(&request.body)))
    }

    /// The refusal echoes the secret and holds bytes that are not UTF-8: whoever logs it has to see to that.
    fn give_token(&mut self, secret: &str) -> Vec<u8> {
        if secret != self.secret {
            return [br#"{"errcode":40001,"errmsg":"invalid secret "#, secret.as_bytes(), b" \xff\xfe\"}"].concat();
        }
        self.tokens += 1;
        let token = self.token(self.tokens);
        format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#).into_bytes()
    }

    /// As long as the vendor's.
    fn token(&self, number: usize) -> String {
        format!("{number:04}{}", "t0kenT0KEN".repeat(20))
    }

    fn page(&self, asked: &Value) -> Vec<u8> {
        let (seq, limit) = (asked["seq"].as_u64().unwrap_or_default(), asked["limit"].as_u64().unwrap_or_default());
        let after = self.records.iter().filter(|(record, _)| *record > seq).map(|(_, sealed)| sealed.as_str());
        let records: Vec<&str> = after.take(limit as usize).collect();
        format!(r#"{{"errcode":0,"errmsg":"ok","chatdata":[{}]}}"#, records.join(",")).into_bytes()
    }
}

/// A file's id as the library wants it (measured): a protocol buffer with the id, a word for the API, and a key, as base64.
pub fn file_id(id: &str) -> String {
    let fields = [(1, id), (2, "authkey"), (3, "0123456789abcdef0123456789abcdef")];
    let bytes: Vec<u8> = fields
        .iter()
        .flat_map(|(number, text)| [&[number << 3 | 2, text.len() as u8], text.as_bytes()].concat())
        .collect();
    BASE64_STANDARD.encode(bytes)
}

fn ok(body: &[u8]) -> Vec<u8> {
    http(200, "", body)
}

fn status(code: u16) -> Vec<u8> {
    http(code, "", b"")
}

/// `headers` are whole lines.
fn http(code: u16, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {code} Said\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
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
