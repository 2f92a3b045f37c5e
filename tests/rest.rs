//! Who may read what the worker shows over HTTP: the real binary, asked as a stranger and as a friend, in the clear and by TLS.

#[path = "common/harness.rs"]
mod harness;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use harness::{Corp, Kafka, PATIENCE, WorkerFiles, free_port, wait_until};

const TOKEN: &str = "t0ken-of-prometheus-Numbat";
const NEXT_TOKEN: &str = "t0ken-of-tomorrow-Bilby";
const CREDENTIALS: &str = "grafana:passw0rd-Potoroo";

#[test]
fn on_an_open_address_it_asks_or_does_not_start() {
    let corp = Corp::new("messages = 3", "");
    let listener = format!("http://0.0.0.0:{}", free_port());
    let token = corp.scenario().with_file_name("token");
    std::fs::write(&token, "short").expect("a token");
    let token = text(&token);
    // What is set besides, and what it says before it ends with which code.
    let quoted = corp.scenario().with_file_name("quoted");
    std::fs::write(&quoted, format!("\"{TOKEN}\"")).expect("a token");
    let quoted = text(&quoted);
    let rows: [(&[(&str, &str)], i32, &[&str]); 5] = [
        (&[("rest.bearer.token.file", &quoted)], 69, &["has quotes around the token"]),
        (&[], 64, &["listeners = \"http://0.0.0.0:", "127.0.0.1", "rest.bearer.token.file", "rest.insecure=true"]),
        (&[("rest.basic.credentials", "no-password")], 64, &["rest.basic.credentials", "user:password"]),
        (&[("rest.bearer.token.file", "/nonexistent")], 69, &["rest.bearer.token.file /nonexistent cannot be read"]),
        (&[("rest.bearer.token.file", &token)], 69, &["at least 16 visible ASCII characters", "openssl rand"]),
    ];
    for (settings, code, words) in rows {
        let files = corp.connect(WorkerFiles::new(Kafka::shared()), "archive", &[]).set("listeners", &listener);
        let files = settings.iter().fold(files, |files, (key, value)| files.set(key, value));
        let (valid, said, _) = files.run(&["validate"], "archive", &[]);
        assert_eq!(valid, Some(64), "{settings:?}: {said}");
        let mut worker = files.start();
        assert_eq!(worker.process().wait(PATIENCE).code(), Some(code), "{settings:?}: {}", worker.log());
        for (place, said) in [("validate", said), ("the log", worker.log())] {
            assert!(words.iter().all(|word| said.contains(word)), "{settings:?}: {words:?} is not in {place}:\n{said}");
            assert!(!said.contains("short") && !said.contains("no-password"), "{said}");
        }
    }
}

#[test]
fn who_comes_with_what_is_told() {
    let corp = Corp::new("messages = 3", "");
    let (port, token_file) = (free_port(), corp.scenario().with_file_name("token"));
    std::fs::write(&token_file, format!("{TOKEN}\n")).expect("a token");
    let mut worker = corp
        .connect(WorkerFiles::new(Kafka::shared()), "archive", &[])
        .set("listeners", &format!("http://0.0.0.0:{port}"))
        .set("rest.bearer.token.file", &text(&token_file))
        .set("rest.basic.credentials", CREDENTIALS)
        .set("log.level", "trace")
        .start();
    wait_until("a worker that is ready", PATIENCE, || {
        assert_eq!(worker.process().exited(), None, "{}", worker.log());
        ask(port, None, "/readyz", None).is_ok_and(|answer| answer.status == 200)
    });
    assert_eq!(worker.files().probe(), (Some(0), "ok\n".to_owned()));
    let basic = |credentials: &str| format!("Basic {}", BASE64_STANDARD.encode(credentials));
    let protected = ["/", "/metrics", "/health", "/connectors", "/connectors/archive/status", "/nowhere"];
    let rows = [
        (None, false),
        (Some(format!("Bearer {TOKEN}")), true),
        (Some(format!("bearer   {TOKEN} ")), true),
        (Some(format!("Bearer {}", &TOKEN[1..])), false),
        (Some(format!("Bearer {TOKEN}x")), false),
        (Some("Bearer".to_owned()), false),
        (Some(format!("Basic {TOKEN}")), false),
        (Some(basic(CREDENTIALS)), true),
        (Some(basic("grafana:wrong")), false),
        (Some(basic("grafana:")), false),
        (Some(format!("Digest {TOKEN}")), false),
    ];
    for (authorization, is_let_in) in &rows {
        for path in protected {
            let answer = ask(port, None, path, authorization.as_deref()).expect("an answer");
            let what = format!("{path} with {authorization:?}: {answer:?}");
            if *is_let_in {
                assert_eq!(answer.status, if path == "/nowhere" { 404 } else { 200 }, "{what}");
            } else {
                assert_eq!(answer.status, 401, "{what}");
                assert!(answer.head.contains("www-authenticate: Bearer realm="), "{what}");
                assert_eq!(answer.body, r#"{"error_code":401,"message":"User cannot access the resource."}"#, "{what}");
            }
        }
        for path in ["/livez", "/readyz"] {
            let answer = ask(port, None, path, authorization.as_deref()).expect("an answer");
            assert_eq!((answer.status, answer.body.as_str()), (200, "ok\n"), "{path}");
        }
    }

    // Another token from the next request on; none that can be read lets nobody in, but for who has the password.
    let status = |token: &str| ask(port, None, "/metrics", Some(&format!("Bearer {token}"))).expect("an answer").status;
    std::fs::write(&token_file, NEXT_TOKEN).expect("a token");
    assert_eq!([TOKEN, NEXT_TOKEN].map(status), [401, 200]);
    for broken in [Some(""), None] {
        match broken {
            Some(text) => std::fs::write(&token_file, text).expect("an empty file"),
            None => std::fs::remove_file(&token_file).expect("no file"),
        }
        assert_eq!([TOKEN, NEXT_TOKEN, ""].map(status), [401; 3], "{broken:?}");
        assert_eq!(ask(port, None, "/", Some(&basic(CREDENTIALS))).expect("an answer").status, 200);
    }
    assert_eq!(worker.terminate().code(), Some(0));
    let log = worker.log();
    for secret in [TOKEN, NEXT_TOKEN, "passw0rd-Potoroo", &BASE64_STANDARD.encode(CREDENTIALS)] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    assert!(log.contains("is http://: what lets a client in goes over the network in the clear"), "{log}");
}

#[test]
fn a_certificate_is_taken_anew_when_its_files_change() {
    let corp = Corp::new("messages = 3", "");
    let port = free_port();
    let files = ["chain.pem", "key.pem"].map(|name| corp.scenario().with_file_name(name));
    let [first, second] = [Certificate::new(), Certificate::new()];
    first.write(&files);
    let mut worker = corp
        .connect(WorkerFiles::new(Kafka::shared()), "archive", &[])
        .set("listeners", &format!("https://127.0.0.1:{port}"))
        .set("listeners.https.ssl.certificate.location", &text(&files[0]))
        .set("listeners.https.ssl.key.location", &text(&files[1]))
        .start();
    wait_until("a worker that answers", PATIENCE, || {
        assert_eq!(worker.process().exited(), None, "{}", worker.log());
        ask(port, Some(&first), "/livez", None).is_ok_and(|answer| answer.status == 200)
    });
    let serves = |certificate: &Certificate| {
        ask(port, Some(certificate), "/metrics", None).is_ok_and(|answer| answer.body.contains("wecom_connector_"))
    };
    assert!(serves(&first) && !serves(&second));
    assert!(ask(port, None, "/metrics", None).is_err(), "in the clear");

    let probe = |worker: &harness::Worker| worker.files().probe();
    assert_eq!(probe(&worker), (Some(0), "ok\n".to_owned()));

    // Half of a change, and garbage, leave what was.
    std::fs::write(&files[0], &second.chain).expect("a chain");
    assert!(serves(&first) && !serves(&second), "chain and key do not belong together");
    std::fs::write(&files[1], "garbage").expect("garbage");
    assert!(serves(&first) && !serves(&second));
    second.write(&files);
    assert!(serves(&second) && !serves(&first), "the new one");
    std::fs::remove_file(&files[1]).expect("no key");
    assert!(serves(&second), "without its files");
    let log = worker.log();
    assert!(
        log.contains("the listener has a new certificate") && log.contains("the listener keeps its certificate"),
        "{log}"
    );
    assert!(log.matches("the listener keeps its certificate").count() <= 4, "once a change:\n{log}");
    assert!(!log.contains(&second.key[60..100]), "{log}");
    assert_eq!(worker.terminate().code(), Some(0));
    let (code, said) = probe(&worker);
    assert!(code == Some(69) && said.contains("does not answer"), "{code:?}: {said}");
}

/// A certificate that vouches for itself.
struct Certificate {
    der: CertificateDer<'static>,
    chain: String,
    key: String,
}

impl Certificate {
    fn new() -> Certificate {
        let made = rcgen::generate_simple_self_signed(["worker.example".to_owned()]).expect("a certificate");
        let der = made.cert.der().clone();
        let pem = |what: &str, der: &[u8]| {
            format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", BASE64_STANDARD.encode(der))
        };
        Certificate { chain: pem("CERTIFICATE", &der), key: pem("PRIVATE KEY", made.signing_key.serialized_der()), der }
    }

    fn write(&self, [chain, key]: &[PathBuf; 2]) {
        std::fs::write(chain, &self.chain).and_then(|()| std::fs::write(key, &self.key)).expect("a certificate");
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

/// A GET; by TLS where there is a certificate to trust, alone.
fn ask(port: u16, trusted: Option<&Certificate>, path: &str, authorization: Option<&str>) -> io::Result<Answer> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let authorization = authorization.map(|value| format!("authorization: {value}\r\n")).unwrap_or_default();
    let request = format!("GET {path} HTTP/1.1\r\nhost: worker\r\n{authorization}connection: close\r\n\r\n");
    let answer = match trusted {
        None => exchange(stream, &request)?,
        Some(certificate) => {
            let mut roots = RootCertStore::empty();
            roots.add(certificate.der.clone()).expect("a certificate");
            let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
            let name = ServerName::try_from("worker.example").expect("a name");
            let client = ClientConnection::new(Arc::new(config), name).expect("a client");
            exchange(StreamOwned::new(client, stream), &request)?
        }
    };
    let malformed = || io::Error::other("no HTTP");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(malformed)?;
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}

fn exchange(mut stream: impl Read + Write, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}
