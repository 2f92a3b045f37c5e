//! A stand-in for the vendor's API, for the vendor's own library, on the simulator's server.
//!
//! The egress guard takes its certificate by its CA alone, see [`VendorApi::ca_file`]. The archive behind it is what the test puts
//! there, or a scenario's, see [`VendorApi::serve`]; what the library asked for is kept for the test to look at.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex, MutexGuard, PoisonError};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use tempfile::NamedTempFile;
pub use wecom_simulator::api::{FILES, PAGES, TOKENS};
use wecom_simulator::archive::Archive;
use wecom_simulator::server::{self, Identity, Reply, Service, http};

/// What the API answers in place of a page, or of a file.
#[derive(Debug, Clone)]
pub enum Fault {
    Errcode(i64),
    /// 40014, and so from then on to everybody who comes with the token of before.
    DeadToken,
    Status(u16),
    Body(&'static [u8]),
    /// This whole answer, head and body.
    Answer(&'static [u8]),
    /// The archive's answer, but the names in its head are in lower case.
    LowerCase,
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

/// A request that came through, with its body read.
#[derive(Debug, Clone)]
pub struct Request {
    http: server::Request,
    /// As JSON; null where it is none.
    pub body: Value,
}

impl Deref for Request {
    type Target = server::Request;

    fn deref(&self) -> &server::Request {
        &self.http
    }
}

impl Request {
    fn of(http: &server::Request) -> Request {
        Request { http: http.clone(), body: serde_json::from_slice(&http.body).unwrap_or_default() }
    }

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
    corp: Arc<Api>,
}

#[derive(Debug)]
struct Api(Mutex<Corp>);

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
        let corp = Arc::new(Api(Mutex::new(corp)));
        let identity = Identity::new().expect("a certificate");
        let mut ca = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a file for the CA");
        ca.write_all(identity.ca.as_bytes()).expect("the CA");
        let address = server::start(0, &identity, corp.clone()).expect("a port");
        VendorApi { address, ca, corp }
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
        self.corp.corp()
    }
}

impl Api {
    fn corp(&self) -> MutexGuard<'_, Corp> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer of a scenario. A fault of the scenario may have it wait: nobody else has to.
    fn answer_from(&self, archive: &Archive, request: &Request, fault: Option<Fault>) -> Reply {
        if let Some(Fault::DeadToken) = fault {
            archive.revoke_token(request.parameter("access_token="));
        }
        if let Some(answer) = fault.as_ref().and_then(in_place_of_answer) {
            return Reply { bytes: answer, is_last: false };
        }
        let answer = archive.answer(&request.for_api());
        let mut corp = self.corp();
        match (answer.status, request.path.as_str()) {
            (404, path) => corp.strays.push(path.to_owned()),
            (_, TOKENS) if answer.body.starts_with(br#"{"errcode":0,"#) => corp.tokens += 1,
            _ => {}
        }
        let mut reply = Reply::from(answer);
        if let Some(Fault::LowerCase) = fault {
            // Behind the status line.
            let mut lines = reply.bytes.split_mut(|byte| *byte == b'\n').skip(1);
            lines.by_ref().take_while(|line| *line != b"\r").for_each(|line| line.make_ascii_lowercase());
        }
        reply
    }
}

impl Service for Api {
    fn proxy_password(&self) -> Option<String> {
        self.corp().proxy_password.clone()
    }

    fn answer(&self, asked: &server::Request) -> Reply {
        let request = Request::of(asked);
        let (gate, is_cut, archive, fault) = {
            let mut corp = self.corp();
            corp.requests.push(request.clone());
            (corp.gate(&request), corp.is_cut(&request), corp.archive.clone(), corp.next_fault(&request))
        };
        let mut reply = match archive {
            Some(archive) => self.answer_from(&archive, &request, fault),
            None => Reply { bytes: self.corp().answer(&request, fault), is_last: false },
        };
        if is_cut {
            reply.bytes.truncate(reply.bytes.len() - 2);
            reply.is_last = true;
        }
        if let Some(gate) = gate {
            gate.wait();
        }
        reply
    }

    fn stray(&self, what: String) {
        self.corp().strays.push(what);
    }
}

/// The answer of a fault that needs none from the archive.
fn in_place_of_answer(fault: &Fault) -> Option<Vec<u8>> {
    match fault {
        Fault::DeadToken | Fault::LowerCase | Fault::Silence | Fault::Together(_) | Fault::Cut => None,
        Fault::Errcode(code) => {
            Some(ok(format!(r#"{{"errcode":{code},"errmsg":"refused, from ip: 203.0.113.7, more info"}}"#).as_bytes()))
        }
        Fault::Status(code) => Some(status(*code)),
        Fault::Body(body) => Some(ok(body)),
        Fault::Answer(answer) => Some(answer.to_vec()),
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
