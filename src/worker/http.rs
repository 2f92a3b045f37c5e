//! What the worker shows over HTTP: metrics, health, and the state of its connectors in Kafka Connect's shapes.
//!
//! Every route only reads. On an address that others reach, clients say who they are ([`Access`]); probes alone need not.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::access::Access;
use super::certificate::Certificate;
use super::connections::{Connections, Place};
use super::socket;
use crate::config::Listener;
use crate::metrics::Metrics;
use crate::status::{ConnectorStatus, Health, Status, StatusBoard};
use crate::{COMMIT, VERSION};

/// A client has this long to send a request's head; an idle connection is closed after it.
const HEADER_READ_TIMEOUT: Duration = Duration::from_secs(20);
/// No connection lives longer, so that one that reads its answer slowly can't stay.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// On shutdown, answers under way have this long.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// With more, those that have been idle for longest are closed.
const CONNECTIONS_MAX: usize = 128;
/// Waiting after `accept` failed, most likely for want of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address could not be listened on.
    #[error("{address}, the address in `listeners`, can't be listened on: {source}{}", advice(.source))]
    Address { address: SocketAddr, source: io::Error },
    /// Certificate, key or token cannot be used.
    #[error("{0}")]
    File(String),
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ". Another process has this port: stop it or choose another port. An older worker of the same connectors has it until it ends: \
             at once when it is told to stop, and by itself when it has something to commit and finds that it was replaced"
        }
        io::ErrorKind::AddrNotAvailable => ". This machine has no such address: use one it has, or 127.0.0.1",
        io::ErrorKind::PermissionDenied => ". Ports below 1024 need a privilege: choose a higher one",
        _ => "",
    }
}

impl ListenError {
    /// Whether another process has the port, which can end.
    pub fn is_port_taken(&self) -> bool {
        matches!(self, Self::Address { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// The server at work.
#[derive(Debug)]
pub struct HttpServer {
    /// What it listens on; tells the port where 0 was asked for.
    pub address: SocketAddr,
    /// Ends after the shutdown was asked for and the answers under way are out, or their time is up.
    pub task: JoinHandle<()>,
}

#[derive(Debug, Clone)]
struct Shown {
    metrics: Arc<Metrics>,
    board: Arc<StatusBoard>,
    access: Arc<Access>,
    /// This worker, as Connect names it: `host:port` of the listener.
    worker_id: Arc<str>,
}

/// Looks whether the files of a listener are there, and of use.
///
/// # Errors
/// A sentence that says what to change.
pub async fn check_files(listener: &Listener) -> Result<(), String> {
    Access::new(listener).await?;
    match &listener.tls {
        Some((chain, key)) => Certificate::load(chain.clone(), key.clone()).await.map(|_| ()),
        None => Ok(()),
    }
}

/// Listens on `listener` and answers until `shutdown`.
pub async fn serve(
    listener: &Listener,
    metrics: Arc<Metrics>,
    board: Arc<StatusBoard>,
    shutdown: CancellationToken,
) -> Result<HttpServer, ListenError> {
    let access = Arc::new(Access::new(listener).await.map_err(ListenError::File)?);
    let certificate = match &listener.tls {
        Some((chain, key)) => {
            let certificate = Certificate::load(chain.clone(), key.clone()).await.map_err(ListenError::File)?;
            Some(Arc::new(certificate))
        }
        None => None,
    };
    let error = |source| ListenError::Address { address: listener.address, source };
    let socket = socket::listen(listener.address).map_err(error)?;
    let address = socket.local_addr().map_err(error)?;
    let router = router(Shown { metrics, board, access, worker_id: address.to_string().into() });
    let task = tokio::spawn(accept(socket, certificate, router, shutdown));
    Ok(HttpServer { address, task })
}

async fn accept(
    socket: TcpListener,
    certificate: Option<Arc<Certificate>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let connections = Connections::new(CONNECTIONS_MAX);
    let running = TaskTracker::new();
    loop {
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        match stream {
            Ok((stream, _)) => {
                let place = Arc::new(connections.enter());
                let closed = place.closed.clone();
                let connection = secured(stream, certificate.clone(), router.clone(), place, shutdown.clone());
                running.spawn(async move {
                    closed.run_until_cancelled(tokio::time::timeout(CONNECTION_TIMEOUT, connection)).await
                });
            }
            Err(error) => {
                tracing::warn!(kind = "accept", %error, "a connection to the listener could not be accepted");
                // It frees a file descriptor, which is what is lacking most likely.
                connections.close_idlest();
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
    running.close();
    let _ = tokio::time::timeout(SHUTDOWN_TIMEOUT, running.wait()).await;
}

/// A connection, through TLS where there is a certificate. A client that speaks none, or not in time, is a client that went away.
async fn secured(
    stream: TcpStream,
    certificate: Option<Arc<Certificate>>,
    router: Router,
    place: Arc<Place>,
    shutdown: CancellationToken,
) {
    let Some(certificate) = certificate else { return connection(stream, router, place, shutdown).await };
    let handshake = async { certificate.acceptor().await.accept(stream).await };
    if let Ok(Ok(stream)) = tokio::time::timeout(HEADER_READ_TIMEOUT, handshake).await {
        connection(stream, router, place, shutdown).await;
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    router: Router,
    place: Arc<Place>,
    shutdown: CancellationToken,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request| {
        place.is_used();
        router.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    // An error here is a client that went away or spoke no HTTP: nothing to do, and nothing to fill a log with.
    tokio::select! {
        _ = connection.as_mut() => return,
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/", get(root))
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .route("/connectors", get(connectors))
        .route("/connectors/{name}/status", get(connector_status))
        .route("/connectors/{name}/tasks/{task}/status", get(task_status))
        .fallback(async || error(StatusCode::NOT_FOUND, "HTTP 404 Not Found"))
        .method_not_allowed_fallback(async || error(StatusCode::METHOD_NOT_ALLOWED, "HTTP 405 Method Not Allowed"))
        .layer(middleware::from_fn_with_state(shown.clone(), guard))
        // Behind the guard no longer: a probe has no secret.
        .route("/livez", get(async |State(shown): State<Shown>| shown.probe(shown.board.liveness())))
        .route("/readyz", get(async |State(shown): State<Shown>| shown.probe(shown.board.readiness())))
        .with_state(shown)
}

/// Lets a request pass whose client may read.
async fn guard(State(shown): State<Shown>, request: Request, next: Next) -> Response {
    if shown.access.allows(request.headers()).await {
        return next.run(request).await;
    }
    let mut refusal = error(StatusCode::UNAUTHORIZED, "User cannot access the resource.");
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, shown.access.challenge());
    refusal
}

/// Kafka Connect's shape of every error.
fn error(status: StatusCode, message: impl Into<String>) -> Response {
    #[derive(Serialize)]
    struct ErrorMessage {
        error_code: u16,
        message: String,
    }
    (status, Json(ErrorMessage { error_code: status.as_u16(), message: message.into() })).into_response()
}

async fn root(State(shown): State<Shown>) -> impl IntoResponse {
    #[derive(Serialize)]
    struct ServerInfo {
        version: &'static str,
        commit: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        kafka_cluster_id: Option<String>,
    }
    Json(ServerInfo { version: VERSION, commit: COMMIT, kafka_cluster_id: shown.board.kafka_cluster_id() })
}

async fn metrics(State(shown): State<Shown>) -> Response {
    match shown.metrics.render(&shown.board) {
        Ok(text) => ([(header::CONTENT_TYPE, Metrics::content_type())], text).into_response(),
        Err(cause) => error(StatusCode::INTERNAL_SERVER_ERROR, format!("The metrics could not be written: {cause}")),
    }
}

/// KIP-1017's answer: 200 when healthy, else 503 with the cause.
async fn health(State(shown): State<Shown>) -> impl IntoResponse {
    #[derive(Serialize)]
    struct WorkerStatus {
        status: &'static str,
        message: String,
    }
    let (code, status, message) = match shown.board.health() {
        Health::Healthy => {
            let message = "Worker has completed startup and is ready to handle requests.".to_owned();
            (StatusCode::OK, "healthy", message)
        }
        Health::Starting(message) => (StatusCode::SERVICE_UNAVAILABLE, "starting", message),
        Health::Unhealthy(message) => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy", message),
    };
    (code, Json(WorkerStatus { status, message }))
}

async fn connectors(State(shown): State<Shown>) -> Json<Vec<String>> {
    Json(shown.board.connectors().into_iter().map(|connector| connector.name).collect())
}

/// Kafka Connect's shape of a connector's or task's state.
#[derive(Serialize)]
struct StateInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u32>,
    state: &'static str,
    worker_id: String,
    version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<String>,
}

impl Shown {
    fn connector(&self, name: &str) -> Option<ConnectorStatus> {
        self.board.connectors().into_iter().find(|connector| connector.name == name)
    }

    /// For Kubernetes, which reads the code alone; the text is for people, where everybody may read it.
    fn probe(&self, result: Result<(), String>) -> (StatusCode, String) {
        match result {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(cause) if self.access.is_open() => (StatusCode::SERVICE_UNAVAILABLE, cause + "\n"),
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no; /health says why\n".to_owned()),
        }
    }

    fn state(&self, id: Option<u32>, status: &Status) -> StateInfo {
        let (state, trace) = (status.state.as_str(), status.trace());
        StateInfo { id, state, worker_id: self.worker_id.to_string(), version: VERSION, trace }
    }
}

async fn connector_status(State(shown): State<Shown>, Path(name): Path<String>) -> Response {
    #[derive(Serialize)]
    struct ConnectorStateInfo {
        name: String,
        connector: StateInfo,
        tasks: Vec<StateInfo>,
        r#type: &'static str,
    }
    let Some(connector) = shown.connector(&name) else {
        return error(StatusCode::NOT_FOUND, format!("No status found for connector {name}"));
    };
    let tasks = connector.tasks.iter().map(|(id, task)| shown.state(Some(*id), task)).collect();
    Json(ConnectorStateInfo { name, connector: shown.state(None, &connector.status), tasks, r#type: "source" })
        .into_response()
}

async fn task_status(State(shown): State<Shown>, Path((name, task)): Path<(String, String)>) -> Response {
    let found = shown.connector(&name).zip(task.parse().ok());
    match found.and_then(|(connector, id)| Some(shown.state(Some(id), connector.tasks.get(&id)?))) {
        Some(state) => Json(state).into_response(),
        None => error(StatusCode::NOT_FOUND, format!("No status found for task {name}-{task}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::clock::manual::ManualClock;

    struct Server {
        time: ManualClock,
        board: Arc<StatusBoard>,
        metrics: Arc<Metrics>,
        address: SocketAddr,
        task: JoinHandle<()>,
        shutdown: CancellationToken,
    }

    fn listener(port: u16) -> Listener {
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        Listener { address, tls: None, bearer_token_file: None, basic_credentials: None }
    }

    impl Server {
        async fn start() -> Self {
            let time = ManualClock::default();
            let board = StatusBoard::new(time.clock(), Duration::from_secs(300));
            let metrics = Metrics::new(time.clock());
            let shutdown = CancellationToken::new();
            let server =
                serve(&listener(0), metrics.clone(), board.clone(), shutdown.clone()).await.expect("a free port");
            Self { time, board, metrics, address: server.address, task: server.task, shutdown }
        }

        /// Sends the bytes and reads to the end: the answer's head and body.
        async fn raw(&self, request: &str) -> (String, String) {
            let mut stream = TcpStream::connect(self.address).await.expect("connected");
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("answered");
            let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
            (head.to_owned(), body.to_owned())
        }

        async fn call(&self, method: &str, path: &str) -> (u16, String) {
            let request = format!("{method} {path} HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n");
            let (head, body) = self.raw(&request).await;
            let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status line");
            (code, body)
        }

        async fn json(&self, method: &str, path: &str) -> (u16, Value) {
            let (code, body) = self.call(method, path).await;
            (code, serde_json::from_str(&body).expect("JSON"))
        }
    }

    #[tokio::test]
    async fn shapes_are_those_of_connect() {
        let server = Server::start().await;
        let connector = server.board.connector("f1");
        let (task, media) = (connector.task(0), connector.task(1));
        task.running();
        media.failed("Storage refuses: check its keys.", Some(Duration::from_secs(60)));
        let worker_id = server.address.to_string();
        let running = json!({"state": "RUNNING", "worker_id": worker_id, "version": VERSION});
        let task_0 = json!({"id": 0, "state": "RUNNING", "worker_id": worker_id, "version": VERSION});
        let trace = "Storage refuses: check its keys. 1 failure since 2026-01-01T00:00:00Z. The next attempt is at 2026-01-01T00:01:00Z.";
        let task_1 = json!({"id": 1, "state": "FAILED", "worker_id": worker_id, "version": VERSION, "trace": trace});
        let status = json!({"name": "f1", "connector": running, "tasks": [task_0, task_1], "type": "source"});
        let not_found = |message: &str| json!({"error_code": 404, "message": message});
        let not_allowed = json!({"error_code": 405, "message": "HTTP 405 Method Not Allowed"});
        let rows = [
            ("GET", "/", 200, json!({"version": VERSION, "commit": COMMIT})),
            ("GET", "/connectors", 200, json!(["f1"])),
            ("GET", "/connectors/f1/status", 200, status),
            ("GET", "/connectors/f1/tasks/0/status", 200, task_0),
            ("GET", "/connectors/f1/tasks/7/status", 404, not_found("No status found for task f1-7")),
            ("GET", "/connectors/f1/tasks/x/status", 404, not_found("No status found for task f1-x")),
            ("GET", "/connectors/none/status", 404, not_found("No status found for connector none")),
            ("GET", "/connectors/%E4%BC%81/status", 404, not_found("No status found for connector 企")),
            ("GET", "/nope", 404, not_found("HTTP 404 Not Found")),
            ("DELETE", "/connectors", 405, not_allowed.clone()),
            ("POST", "/metrics", 405, not_allowed),
        ];
        for (method, path, code, body) in rows {
            assert_eq!(server.json(method, path).await, (code, body), "{method} {path}");
        }
        server.board.set_kafka_cluster_id("afvmNeqNSKizXGvM2M_3bA");
        assert_eq!(server.json("GET", "/").await.1["kafka_cluster_id"], "afvmNeqNSKizXGvM2M_3bA");
    }

    #[tokio::test]
    async fn health_goes_from_starting_to_healthy_to_unhealthy_and_back() {
        let server = Server::start().await;
        let task = server.board.connector("f1").task(0);
        let health = async || {
            let (code, body) = server.json("GET", "/health").await;
            (code, body["status"].as_str().expect("a status").to_owned(), server.call("GET", "/readyz").await.0)
        };
        assert_eq!(health().await, (503, "starting".to_owned(), 503));
        server.board.all_connectors_known();
        task.running();
        assert_eq!(health().await, (200, "healthy".to_owned(), 200));
        server.time.advance(Duration::from_secs(301));
        server.board.tick();
        assert_eq!(health().await, (503, "unhealthy".to_owned(), 200));
        task.progress();
        assert_eq!(health().await, (200, "healthy".to_owned(), 200));
        assert_eq!(server.call("GET", "/livez").await, (200, "ok\n".to_owned()));
        server.time.advance(Duration::from_secs(31));
        assert_eq!(server.call("GET", "/livez").await.0, 503);
    }

    #[tokio::test]
    async fn a_scrape_has_the_type_and_the_numbers_prometheus_expects() {
        let server = Server::start().await;
        server.metrics.connector("f1", "ww1").records_pulled.inc_by(42);
        let (head, body) = server.raw("GET /metrics HTTP/1.1\r\nHost: worker\r\nConnection: close\r\n\r\n").await;
        assert!(head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
        assert!(body.contains("wecom_connector_records_pulled_total{connector=\"f1\"} 42\n"), "{body}");
    }

    #[tokio::test]
    async fn idle_connections_make_way_for_probes() {
        let server = Server::start().await;
        let mut used = TcpStream::connect(server.address).await.expect("connected");
        let mut idle = Vec::new();
        for _ in 0..CONNECTIONS_MAX * 2 {
            idle.push(TcpStream::connect(server.address).await.expect("connected"));
            if idle.len() % 32 == 0 {
                // A client that asks now and then is not idle.
                used.write_all(b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n").await.expect("sent");
                // To the end of the JSON.
                while used.read_u8().await.expect("answered") != b'}' {}
            }
        }
        for path in ["/livez", "/metrics", "/connectors"] {
            assert_eq!(server.call("GET", path).await.0, 200, "{path}");
        }
        assert_eq!(idle[0].read(&mut [0]).await.expect("closed in order"), 0);
    }

    #[tokio::test]
    async fn a_port_in_use_is_said_so() {
        let server = Server::start().await;
        let again = serve(
            &listener(server.address.port()),
            server.metrics.clone(),
            server.board.clone(),
            CancellationToken::new(),
        )
        .await;
        let message = again.expect_err("the port is taken").to_string();
        assert!(message.contains(&server.address.to_string()) && message.contains("choose another port"), "{message}");
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused() {
        let server = Server::start().await;
        let (head, _) = server.raw(&format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEADER_BYTES_MAX))).await;
        assert!(head.starts_with("HTTP/1.1 4"), "{head}");
    }

    #[tokio::test]
    async fn shutdown_closes_idle_connections_and_ends_the_server() {
        let server = Server::start().await;
        let mut idle = TcpStream::connect(server.address).await.expect("connected");
        idle.write_all(b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n").await.expect("sent");
        let mut first = [0; 12];
        idle.read_exact(&mut first).await.expect("answered");
        assert_eq!(&first, b"HTTP/1.1 200");
        server.shutdown.cancel();
        server.task.await.expect("the server ends by itself");
        let mut rest = Vec::new();
        idle.read_to_end(&mut rest).await.expect("closed");
    }
}
