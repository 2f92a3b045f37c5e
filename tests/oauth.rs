//! The worker and the commands, let in to stock Kafka by tokens that a token end point gives for the client's credentials.

#[path = "common/harness.rs"]
mod harness;

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use serde_json::json;

use harness::{ASKING_KAFKA, Corp, Kafka, PATIENCE, WorkerFiles, free_port, wait_until};

const CLIENT: &str = "connector:s3cret-of-the-Quokka";
/// Short, so that it has to be renewed while the test runs.
const TOKEN_SECONDS: u64 = 8;

#[test]
fn tokens_let_in_and_are_renewed() {
    let kafka = Kafka::start_secured();
    let end_point = EndPoint::start();
    let corp = Corp::new("messages = 20\nlive_per_second = 2.0\nlive_messages = 1000", "");
    let (client_id, secret) = CLIENT.split_once(':').expect("a client and its secret");
    let files = |end_point: &str, secret: &str| {
        let files = WorkerFiles::new(&kafka)
            .set("bootstrap.servers", &kafka.secured().sasl_plaintext)
            .set("security.protocol", "SASL_PLAINTEXT")
            .set("sasl.mechanism", "OAUTHBEARER")
            .set("sasl.oauthbearer.method", "oidc")
            .set("sasl.oauthbearer.token.endpoint.url", end_point)
            .set("sasl.oauthbearer.client.id", client_id)
            .set("sasl.oauthbearer.client.secret", secret)
            .set("sasl.oauthbearer.scope", "kafka all");
        corp.connect(files, "archive", &[])
    };
    let mut worker = files(&end_point.url, secret).start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 20.0);
    let asked = end_point.asked.load(Ordering::Relaxed);
    assert!(asked < 5, "{asked} requests: the clients of a connector share a token");
    wait_until("three more tokens", PATIENCE, || end_point.asked.load(Ordering::Relaxed) >= asked + 3);
    let committed = worker.metric("wecom_connector_last_committed_seq", &[]).expect("a metric");
    worker.wait_metric("wecom_connector_last_committed_seq", &[], committed + 5.0);
    for (command, options) in &ASKING_KAFKA {
        let (code, told, said) = worker.files().run(command, "archive", options);
        assert_eq!(code, Some(0), "{command:?}: {told}{said}");
    }
    assert_eq!(worker.terminate().code(), Some(0));
    assert!(!worker.log().contains(secret), "the log shows the secret");

    let nobody = format!("http://127.0.0.1:{}/token", free_port());
    for (end_point, secret, code, words) in [
        (&end_point.url, "wrong", 64, "refuses the client: it answers 401 Unauthorized invalid_client"),
        (&nobody, secret, 69, "cannot be reached: Connection refused"),
    ] {
        let mut worker = files(end_point, secret).worker();
        for (command, options) in &ASKING_KAFKA[..4] {
            let (found, told, said) = worker.files().run(command, "archive", options);
            let said = told + &said;
            assert_eq!(found, Some(code), "{command:?}: {said}");
            assert!(said.contains("the token end point ") && said.contains(words), "{command:?}: {said}");
            assert!(!said.contains(secret), "the secret is told: {said}");
        }
        worker.start_again();
        wait_until("the same in the status", PATIENCE, || {
            worker.get("/connectors/archive/status").is_some_and(|(_, status)| status.contains(words))
        });
    }
}

/// A token end point that knows one client. Its tokens are not signed: the broker takes these.
struct EndPoint {
    url: String,
    asked: Arc<AtomicUsize>,
}

impl EndPoint {
    fn start() -> EndPoint {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}/token", listener.local_addr().expect("its address"));
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = answer(stream);
            }
        });
        EndPoint { url, asked }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut part = [0; 4096];
    while !request.ends_with(b"scope=kafka%20all") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            count => request.extend_from_slice(&part[..count]),
        }
    }
    let request = String::from_utf8_lossy(&request).into_owned();
    let authorization = format!("authorization: Basic {}\r\n", BASE64_STANDARD.encode(CLIENT));
    let is_right = request.starts_with("POST /token HTTP/1.1\r\n")
        && request.contains(&authorization)
        && request.contains("\r\n\r\ngrant_type=client_credentials&");
    let (status, body) = if is_right {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_secs();
        let part = |value: serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
        let claims = json!({ "sub": "connector", "iat": now, "exp": now + TOKEN_SECONDS, "scope": "kafka" });
        let token = format!("{}.{}.", part(json!({ "alg": "none" })), part(claims));
        ("200 OK", json!({ "access_token": token, "token_type": "Bearer", "expires_in": TOKEN_SECONDS }))
    } else {
        ("401 Unauthorized", json!({ "error": "invalid_client", "error_description": request }))
    };
    let body = body.to_string();
    write!(stream, "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
}
