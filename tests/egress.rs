//! The way out, with the vendor's own library: who is on the way, what comes back, and who may use it.

#[path = "egress/answers.rs"]
mod answers;
#[path = "egress/fake.rs"]
mod fake;
#[path = "egress/files.rs"]
mod files;
#[path = "common/harness.rs"]
mod harness;
#[path = "egress/proxy.rs"]
mod proxy;
#[path = "egress/said.rs"]
mod said;
#[path = "egress/within.rs"]
mod within;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;

use answers::{LATE, LONG_AGO_S, PAGE, page, page_of_long_ago};
use fake::{After, Fake, Flaw, TOKEN};
use harness::{Kafka, PATIENCE, VendorApi, Worker, WorkerFiles, unique, vendor_library, wait_for};
use wecom_connector::clock::Clock;
use wecom_connector::egress::{Guard, Pass, Settings, proxy_password};
use wecom_connector::metrics::{ConnectorMetrics, Metrics};
use wecom_connector::sdk::{Account, SdkClient, SdkError};
use wecom_connector::status::StatusBoard;

const CORP: &str = "ww5ec0000000000001";
const SECRET: &str = "s3cret-OF-the-archive";
const GOOD_TOKEN: &str =
    r#"{"errcode":0,"errmsg":"ok","access_token":"t0kenT0KENt0kenT0KENt0kenT0KEN","expires_in":7200}"#;
/// Far off what an answer takes, also on a loaded machine; and what is waited for where none comes.
const TIMEOUT_MS: u64 = 120_000;
const SHORT_TIMEOUT_MS: u64 = 1_500;

#[test]
fn who_is_on_the_way_is_said_and_gets_nothing() {
    // Whom a connector meets, then state and words of its task.
    let rows: [(&str, Flaw, &[&str]); 5] = [
        ("self-signed", Flaw::SelfSigned, &["not trusted", "issuer is unknown", "CN=somebody"]),
        ("wrong-name", Flaw::WrongName, &["not trusted", "for another name", "CN=somebody", "CN=Believed CA"]),
        ("expired", Flaw::Expired, &["not trusted", "has expired", "CN=Believed CA"]),
        ("not-yet", Flaw::NotYet, &["not trusted", "not valid yet", "clock"]),
        ("wrong-ca", Flaw::WrongCa, &["not trusted", "issuer is unknown", "issued by CN=Other CA", "ca.file"]),
    ];
    let closed = SocketAddr::from(([127, 0, 0, 1], harness::free_port()));
    let wants_password = VendorApi::start(SECRET);
    wants_password.ask_proxy_password(&BASE64_STANDARD.encode("proxy-user:proxy-password"));
    let proxies: [(&str, String, &str, &[&str]); 2] = [
        (
            "proxy-down",
            format!("http://{closed}"),
            "RUNNING",
            &["10001", "(of wecom.proxy)", "the connection is refused"],
        ),
        ("proxy-password", wants_password.proxy(), "FAILED", &["wants a name and password", "wecom.proxy.password"]),
    ];
    let tokens: [(&str, &str, &str, &[&str]); 5] = [
        (
            "address",
            r#"{"errcode":60020,"errmsg":"not allow to access from your ip, hint: [1], from ip: 203.0.113.7, more info"}"#,
            "FAILED",
            &["this machine's address 203.0.113.7 is not on the archive's allow list (60020)"],
        ),
        (
            "secret",
            r#"{"errcode":40001,"errmsg":"invalid credential"}"#,
            "FAILED",
            &["the secret of corp ww5ec0000000000001 is refused (40001)", "wecom.secret"],
        ),
        ("corp", r#"{"errcode":40013,"errmsg":"invalid corpid"}"#, "FAILED", &["40013", CORP, "wecom.corp.id"]),
        ("busy", r#"{"errcode":-1,"errmsg":"busy"}"#, "RUNNING", &["errcode -1"]),
        ("html", "<html>", "RUNNING", &["10001", "is no JSON"]),
    ];

    let keys = tempfile::tempdir().expect("a folder");
    let made = std::process::Command::new(harness::connector())
        .args(["keys", "generate", "--key-version", "1", "--out"])
        .arg(keys.path())
        .output()
        .expect("the connector's binary");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut files =
        WorkerFiles::new(Kafka::shared()).set("log.level", "trace,hyper=trace,hyper_util=trace,rustls=trace");
    let topic = unique("egress");
    let mut said: Vec<(String, &str, &[&str])> = Vec::new();
    let mut fakes = Vec::new();
    for (name, flaw, words) in rows {
        let fake = Fake::start(flaw, GOOD_TOKEN, page);
        files = connector(files, name, &topic, keys.path());
        files = files.connector(name, &[("sdk.egress.upstream", &fake.address.to_string()), ca(&fake)]);
        said.push((name.to_owned(), "FAILED", words));
        fakes.push((name, fake));
    }
    for (name, proxy, state, words) in &proxies {
        files = connector(files, name, &topic, keys.path()).connector(name, &[("wecom.proxy", proxy)]);
        said.push(((*name).to_owned(), state, words));
    }
    let mut answering = Vec::new();
    for (name, token, state, words) in tokens {
        let fake = Fake::start(Flaw::None, token, page);
        files = connector(files, name, &topic, keys.path());
        files = files.connector(name, &[("sdk.egress.upstream", &fake.address.to_string()), ca(&fake)]);
        said.push((name.to_owned(), state, words));
        answering.push(fake);
    }
    let mut worker = files.start();
    for (name, state, words) in &said {
        wait_for(&format!("{name} to be {state} and to say {words:?}"), PATIENCE, || {
            let (found, trace) = task(&worker, name)?;
            (found == *state && words.iter().all(|word| trace.contains(word))).then_some(())
        });
    }
    for (name, fake) in &fakes {
        worker.wait_metric(
            "wecom_connector_egress_requests_total",
            &[("connector", name), ("status", "untrusted")],
            1.0,
        );
        assert_eq!(fake.seen.bytes.load(Ordering::Relaxed), 0, "{name}: bytes of a request");
    }
    assert_eq!(wants_password.requests(harness::TOKENS).len(), 0);
    worker.terminate();
    // Who only asks is told the same, before anything runs.
    for (name, state, words) in &said {
        let (code, told, _) = worker.files().run(&["validate"], name, &["--connect"]);
        // What somebody has to change, or what may pass by itself.
        let expected = if *state == "FAILED" { 64 } else { 69 };
        assert!(code == Some(expected) && words.iter().all(|word| told.contains(word)), "{name}: {code:?} {told}");
        assert!(!told.contains(SECRET), "{told}");
    }
    // A proxy of the environment's is named by its variable.
    let files = connector(WorkerFiles::new(Kafka::shared()), "environment", &topic, keys.path());
    for (variable, address) in
        [("https_proxy", format!("http://{closed}")), ("ALL_PROXY", format!("socks5://{closed}"))]
    {
        let mut command = files.command(&["validate"], "environment", &["--connect"]);
        for name in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"] {
            command.env_remove(name);
        }
        let output = command.env(variable, &address).output().expect("the connector's binary");
        let told = String::from_utf8_lossy(&output.stdout);
        let expected = format!(
            "proxy {closed} (of the environment variable {variable}) does not lead to WeCom: it cannot be reached"
        );
        assert!(output.status.code() == Some(69) && told.contains(&expected), "{variable}: {told}");
    }
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, page);
    let good = connector(WorkerFiles::new(Kafka::shared()), "good", &topic, keys.path());
    let good = good.connector("good", &[("sdk.egress.upstream", &fake.address.to_string()), ca(&fake)]);
    let (code, told, _) = good.run(&["validate"], "good", &["--connect"]);
    assert!(code == Some(0) && told.ends_with("WeCom lets ww5ec0000000000001 read the archive\n"), "{code:?} {told}");
    // Storage is asked, too. One that is away is no mistake of the files.
    let away = format!("http://127.0.0.1:{}", harness::free_port());
    let storage = [("storage.type", "s3"), ("storage.bucket", "b"), ("storage.endpoint", &away)];
    let keys = [("storage.access.key.id", "id"), ("storage.secret.access.key", "key")];
    let (code, told, _) =
        good.connector("good", &storage).connector("good", &keys).run(&["validate"], "good", &["--connect"]);
    assert!(code == Some(69) && told.contains(&format!("s3://b/ at {away}: a request failed")), "{code:?} {told}");
    let log = worker.log();
    assert!(log.contains("the secret of corp ww5ec0000000000001 is refused (40001)"), "{log}");
    for secret in [SECRET, TOKEN, "corpsecret=", "access_token="] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// How an answer of WeCom's reaches the caller of the library.
#[tokio::test(flavor = "multi_thread")]
async fn answers_reach_the_library_as_they_must() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let mut wrong = Vec::new();
    let registry = Metrics::new(Clock::system());
    for (name, script, told) in answers::ROWS {
        let fake = Fake::start(Flaw::None, GOOD_TOKEN, script);
        let timeout_ms = if name == LATE { SHORT_TIMEOUT_MS } else { TIMEOUT_MS };
        let settings = Settings { timeout_ms, ..settings(&fake) };
        let client = client_with(&settings, registry.connector("egress", CORP));
        let came = match client.get_chat_data(0, 10).await {
            Ok(body) => String::from_utf8_lossy(&body).into_owned(),
            Err(SdkError::Code { code: 10001, cause: Some(cause), .. }) => cause.kind().into_owned(),
            Err(error) => error.to_string(),
        };
        if came != told {
            wrong.push(format!("{name} gave {came:?} and not {told:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Each is counted by what it was; none by an SDK host that went away.
    let counted = registry.render(&StatusBoard::new(Clock::system(), PATIENCE)).expect("metrics");
    let counted: String = counted.lines().filter(|line| line.contains("egress_requests_total{")).collect();
    for status in ["200", "204", "302", "429", "500", "503", "cut", "answer", "timeout"] {
        assert!(counted.contains(&format!("endpoint=\"getchatdata\",status=\"{status}\"")), "{status} in {counted}");
    }
    assert!(!counted.contains("status=\"abandoned\""), "{counted}");

    // A part of a file that does not end.
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, |to| {
        to.write_all(b"HTTP/1.1 206 Partial Content\r\n\r\n")?;
        loop {
            to.write_all(&[b'x'; 100_000])?;
        }
    });
    match client(&fake).0.get_media_data(&harness::file_id("f"), b"").await {
        Err(SdkError::Code { code: 10001, cause: Some(cause), .. }) => assert_eq!(cause.kind(), "answer", "{cause}"),
        other => panic!("{other:?}"),
    }

    // Connections are kept; one that ended is made anew with the session of before.
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, page);
    let (keeping, metrics) = client(&fake);
    for _ in 0..10 {
        keeping.get_chat_data(0, 10).await.expect("a page");
    }
    let seen = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::Relaxed);
    let (made, reused) = (metrics.egress.connections.get(), metrics.egress.connections_reused.get());
    assert_eq!((seen(&fake.seen.handshakes) as u64, seen(&fake.seen.requests) as u64), (made, made + reused));
    // On a loaded machine a connection can be still in use when the library asks for the next page.
    assert!(made + reused == 11 && made <= 3, "{made} connections made, {reused} reused");
    assert!(metrics.egress.bytes_sent.get() > seen(&fake.seen.bytes) as u64);
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, |to| {
        write!(to, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len())?;
        Ok(After::Close)
    });
    let (closing, _) = client(&fake);
    for _ in 0..5 {
        closing.get_chat_data(0, 10).await.expect("a page");
    }
    assert_eq!(seen(&fake.seen.requests), 6);
    assert_eq!(seen(&fake.seen.resumed), seen(&fake.seen.handshakes) - 1, "sessions resumed");

    let log = log.text();
    for secret in [SECRET, TOKEN, "corpsecret=", "access_token="] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    assert!(log.contains("a request did not get through"), "the log has the guard's own lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_comes_through_and_nowhere_else() {
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, page);
    let metrics = Metrics::new(Clock::system()).connector("egress", CORP);
    let guard = Guard::new(&settings(&fake), metrics.clone()).expect("a guard");
    let pass = guard.admit().await.expect("a pass");
    let gone = guard.admit().await.expect("a pass");
    let right = authorization(pass.password());
    let left = authorization(gone.password());
    let other = guard.admit().await.expect("a pass");
    assert_ne!(pass.password(), other.password());
    assert!(pass.address().ip().is_loopback());
    drop(gone);
    let long = format!("x: {}\r\n", "v".repeat(100_000));
    let rows: [(&str, &str, &str, u16); 11] = [
        ("CONNECT", "qyapi.weixin.qq.com:443", "", 407),
        ("CONNECT", "qyapi.weixin.qq.com:443", "proxy-authorization: Basic c2RrLWhvc3Q6\r\n", 407),
        ("CONNECT", "qyapi.weixin.qq.com:443", &left, 407),
        ("CONNECT", "example.com:443", "", 407),
        ("CONNECT", "qyapi.weixin.qq.com:443", &right, 200),
        ("CONNECT", "qyapi.weixin.qq.com:80", &right, 403),
        ("CONNECT", "example.com:443", &right, 403),
        ("CONNECT", "127.0.0.1:443", &right, 403),
        ("GET", "http://qyapi.weixin.qq.com/cgi-bin/gettoken", &right, 403),
        ("GET", "/", &right, 403),
        ("CONNECT", "qyapi.weixin.qq.com:443", &long, 431),
    ];
    for (method, target, headers, expected) in rows {
        let status = ask(&pass, &format!("{method} {target} HTTP/1.1\r\nhost: {target}\r\n{headers}\r\n"));
        assert_eq!(status, Some(expected), "{method} {target} {}", &headers[..headers.len().min(80)]);
    }
    // A head that does not end is not waited for without an end, nor one that is no HTTP answered.
    assert_eq!(ask(&pass, "CONNECT qyapi.weixin.qq.com:443 HTTP/1.1\r\nhost: "), None);
    assert_eq!(ask(&pass, "\x16\x03\x01\x02\x00\x01\x00\x01\u{7f}\x03\x03\r\n\r\n"), Some(400));
    assert_eq!(fake.seen.handshakes.load(Ordering::Relaxed), 0, "nothing goes out for what is refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_wecom_does_not_share_is_told() {
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, page_of_long_ago);
    let (client, metrics) = client(&fake);
    assert_eq!(metrics.egress.clock_ahead_seconds.get(), 0.0);
    client.get_chat_data(0, 10).await.expect("a page");
    let ahead_s = (Clock::system().now().unix_ms / 1000 - LONG_AGO_S) as f64;
    let told_s = metrics.egress.clock_ahead_seconds.get();
    assert!((ahead_s - told_s).abs() < PATIENCE.as_secs_f64(), "{told_s} of {ahead_s}");
}

#[tokio::test(flavor = "multi_thread")]
async fn users_proxies_lead_on() {
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, page);
    let tls = proxy::Kind::Https(fake.tls.clone().into());
    let rows = [
        ("http", proxy::Kind::Http, proxy::PASSWORD, PAGE),
        ("https", tls.clone(), proxy::PASSWORD, PAGE),
        ("socks5", proxy::Kind::Socks, proxy::PASSWORD, PAGE),
        ("http", proxy::Kind::Http, "proxy-user:another", "refuses the name and password"),
        ("https", tls, "", "wants a name and password"),
        ("socks5", proxy::Kind::Socks, "proxy-user:another", "refuses the name and password"),
        ("socks5", proxy::Kind::Socks, "", "wants a name and password"),
    ];
    for (scheme, kind, password, told) in rows {
        let (address, led) = proxy::start(kind, fake.address).await;
        let settings = Settings {
            proxy: Some(format!("{scheme}://{address}")),
            proxy_password: (!password.is_empty()).then(|| password.into()),
            ..settings(&fake)
        };
        let (client, _) = client_of(&settings);
        let came = match client.get_chat_data(0, 10).await {
            Ok(body) => String::from_utf8_lossy(&body).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(came.contains(told), "{scheme} with {password}: {came}");
        assert_eq!(led.load(Ordering::Relaxed), usize::from(told == PAGE), "{scheme} with {password}");
    }
}

/// What somebody could ask for who has an SDK host's password: code in the library, say.
#[tokio::test(flavor = "multi_thread")]
async fn three_endpoints_and_no_other() {
    let fake = Fake::start(Flaw::None, GOOD_TOKEN, page);
    let metrics = Metrics::new(Clock::system()).connector("egress", CORP);
    let guard = Guard::new(&settings(&fake), metrics.clone()).expect("a guard");
    let pass = guard.admit().await.expect("a pass");
    let long =
        format!("POST /cgi-bin/message/getchatdata HTTP/1.0\r\ncontent-length: 99999\r\n\r\n{}", "b".repeat(99_999));
    let head = format!("GET /cgi-bin/gettoken?a=b HTTP/1.0\r\nx: {}\r\n\r\n", "v".repeat(99_999));
    let refused = [
        ("GET /cgi-bin/user/get?access_token=a HTTP/1.0\r\n\r\n", 403),
        ("GET /cgi-bin/gettoken/ HTTP/1.0\r\n\r\n", 403),
        ("GET /cgi-bin/../cgi-bin/gettoken HTTP/1.0\r\n\r\n", 403),
        ("POST /cgi-bin/gettoken HTTP/1.0\r\ncontent-length: 0\r\n\r\n", 403),
        ("GET /cgi-bin/message/getchatdata HTTP/1.0\r\n\r\n", 403),
        ("PUT /cgi-bin/message/getchatmediadata HTTP/1.0\r\ncontent-length: 0\r\n\r\n", 403),
        ("CONNECT qyapi.weixin.qq.com:443 HTTP/1.0\r\n\r\n", 403),
        ("GET http://example.com/ HTTP/1.0\r\n\r\n", 403),
        (&long, 502),
        (&head, 431),
        ("SSH-2.0-something\r\n\r\n", 400),
        // What could be two requests for somebody else.
        ("GET /cgi-bin/gettoken HTTP/1.0\nx: y\n\n", 400),
        ("GET /cgi-bin/gettoken HTTP/1.0\r\nx: y\r\r\n\r\n", 400),
        ("POST /cgi-bin/message/getchatdata HTTP/1.0\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 502),
        ("POST /cgi-bin/message/getchatdata HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 502),
    ];
    for (request, status) in refused {
        let answer = within::ask(&pass, request.as_bytes()).await;
        let shown = &request[..request.len().min(60)];
        assert!(answer.contains(&format!(" {status} ")), "{shown}: {answer}");
    }
    // A request's head that does not end is given up.
    assert_eq!(within::ask(&pass, b"GET /cgi-bin/gettoken HTTP/1.0\r\nx: ").await, "");
    assert_eq!(fake.seen.handshakes.load(Ordering::Relaxed), 0, "nothing goes out for what is refused");
    // The host that a request names leads nowhere else.
    let request = b"GET http://example.com/cgi-bin/gettoken?a=b HTTP/1.0\r\nhost: example.com\r\n\r\n";
    assert!(within::ask(&pass, request).await.ends_with(GOOD_TOKEN));
    assert_eq!(fake.seen.handshakes.load(Ordering::Relaxed), 1);
}

/// The status of the guard's answer to these bytes; nothing where it hangs up.
fn ask(pass: &Pass, bytes: &str) -> Option<u16> {
    let mut stream = TcpStream::connect(pass.address()).expect("the guard's port");
    // It may answer and hang up before all is sent.
    let _ = stream.write_all(bytes.as_bytes());
    let mut answer = [0; 12];
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.read_exact(&mut answer).ok()?;
    std::str::from_utf8(&answer[9..]).ok()?.parse().ok()
}

fn authorization(password: &str) -> String {
    format!("proxy-authorization: Basic {}\r\n", BASE64_STANDARD.encode(proxy_password(1, password)))
}

fn settings(fake: &Fake) -> Settings {
    Settings {
        ca_file: Some(fake.ca_file().to_owned()),
        upstream: Some(fake.address.to_string()),
        timeout_ms: TIMEOUT_MS,
        ..Settings::default()
    }
}

/// The vendor's library behind a guard that goes to `fake`.
fn client(fake: &Fake) -> (SdkClient, Arc<ConnectorMetrics>) {
    client_of(&settings(fake))
}

fn client_of(settings: &Settings) -> (SdkClient, Arc<ConnectorMetrics>) {
    let metrics = Metrics::new(Clock::system()).connector("egress", CORP);
    (client_with(settings, metrics.clone()), metrics)
}

fn client_with(settings: &Settings, metrics: Arc<ConnectorMetrics>) -> SdkClient {
    let guard = Guard::new(settings, metrics.clone()).expect("a guard");
    SdkClient::new(harness::connector().to_owned(), account(settings.timeout_ms), Some(guard), metrics)
}

fn account(timeout_ms: u64) -> Account {
    Account {
        corp_id: CORP.into(),
        secret: SECRET.into(),
        library: Some(vendor_library()),
        timeout_s: i32::try_from(timeout_ms.div_ceil(1000)).expect("seconds"),
        ..Account::default()
    }
}

/// Says one thing to everybody who has said something.
fn server(answer: fn(&mut TcpStream)) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            answer(&mut stream);
        }
    });
    address
}

fn ca(fake: &Fake) -> (&'static str, &str) {
    ("sdk.egress.ca.file", fake.ca_file().to_str().expect("a path in UTF-8"))
}

fn connector(files: WorkerFiles, name: &str, topic: &str, keys: &Path) -> WorkerFiles {
    let path = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
    files.connector(
        name,
        &[
            ("wecom.corp.id", CORP),
            ("wecom.secret", SECRET),
            ("wecom.private.keys.dir", &path(keys)),
            ("wecom.sdk.library", &path(&vendor_library())),
            ("topic", &format!("{topic}-{name}")),
            ("media.enable", "false"),
            ("tasks.max", "1"),
        ],
    )
}

/// State and reason of the message task.
fn task(worker: &Worker, connector: &str) -> Option<(String, String)> {
    let (_, body) = worker.get(&format!("/connectors/{connector}/tasks/0/status"))?;
    let status: Value = serde_json::from_str(&body).expect("JSON");
    let text = |name: &str| status[name].as_str().unwrap_or_default().to_owned();
    Some((text("state"), text("trace")))
}

/// What this process logs.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("the log")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("the log").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
