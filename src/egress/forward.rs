//! What becomes of one request of the library's.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder};
use bytes::{Bytes, BytesMut};
use futures::stream;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::io::StreamReader;

use super::exchange::Body;
use super::guard::Caller;
use super::head::{Head, RequestLine};
use super::upstream::Upstream;
use super::{Endpoint, Failure, HOST};
use crate::metrics::ConnectorMetrics;

/// The library's own are some hundred bytes; a file's id may have a thousand or two.
const REQUEST_BYTES_MAX: u64 = 64 * 1024;
const ALLOWED: &str = "gettoken, getchatdata and getchatmediadata";
/// An error code in place of a file comes in a short answer: that much of one is looked at before it is handed on.
const REFUSAL_BYTES_MAX: usize = 4 * 1024;
/// What is read at once of an answer that is decompressed.
const DECODED_BYTES: usize = 64 * 1024;

/// Sends requests on to WeCom.
pub struct Forwarder {
    upstream: Upstream,
    timeout: Duration,
    metrics: Arc<ConnectorMetrics>,
}

/// An answer that did not reach the library whole: its connection has to be reset.
#[derive(Debug)]
pub struct Unfinished;

impl Forwarder {
    pub fn new(upstream: Upstream, timeout: Duration, metrics: Arc<ConnectorMetrics>) -> Self {
        Self { upstream, timeout, metrics }
    }

    /// Reads what follows the head of a request, and writes the answer; where there is none, an HTTP status that the
    /// library takes for a failure of the network.
    pub async fn forward(
        &self,
        head: &Head,
        from: &mut (impl AsyncBufRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        caller: Caller,
    ) -> Result<(), Unfinished> {
        // What two could read in two ways could be a second request for one of them.
        let Some(RequestLine { method, target }) = head.request_line().filter(|_| !head.has_bare_ends()) else {
            return answer(to, 400).await;
        };
        let target = origin_form(target);
        let path = target.split('?').next().unwrap_or_default();
        let Some(endpoint) = Endpoint::of(method, path) else {
            self.metrics.egress.refused("endpoint");
            tracing::warn!(
                "the vendor's library asked WeCom for something else than {ALLOWED} and was refused: is it a newer version?"
            );
            caller.note_failure(Failure::Forbidden(ALLOWED));
            return answer(to, 403).await;
        };
        let started = Instant::now();
        let deadline = started + self.timeout;
        let mut call = Call { endpoint, caller, metrics: self.metrics.clone(), is_open: true };
        let sent = async {
            let body = request_body(head, from).await?;
            let mut request = format!("{method} {target} HTTP/1.1\r\n").into_bytes();
            request.extend(lines_for_wecom(head));
            request.extend_from_slice(b"\r\n");
            request.extend_from_slice(&body);
            tokio::select! {
                biased;
                answer = self.upstream.ask(&request) => answer.map(Some),
                () = hung_up(from) => Ok(None),
            }
        };
        let (head, body) = match tokio::time::timeout_at(deadline, sent).await {
            Ok(Ok(Some(answer))) => answer,
            // Nobody waits for it any more.
            Ok(Ok(None)) => return Err(Unfinished),
            Ok(Err(failure)) => {
                call.fail(failure);
                return answer(to, 502).await;
            }
            Err(_) => {
                call.fail(self.timed_out());
                return answer(to, 504).await;
            }
        };
        self.metrics.egress.first_byte_seconds.observe(started.elapsed().as_secs_f64());
        if let Some(theirs_ms) = time_ms(&head) {
            self.metrics.told_time(theirs_ms);
        }
        if endpoint == Endpoint::Files
            && let Some(bytes) = file_bytes(&head)
        {
            call.caller.note_file_bytes(bytes);
        }
        match self.hand_on(&head, body, to, deadline, &mut call).await {
            Ok(()) => Ok(()),
            Err(Broken::Library) => Err(Unfinished),
            Err(Broken::Wecom { failure, is_begun }) => {
                call.fail(failure);
                if is_begun { Err(Unfinished) } else { answer(to, 502).await }
            }
        }
    }

    fn timed_out(&self) -> Failure {
        Failure::Timeout(self.timeout.as_millis() as u64)
    }

    async fn hand_on(
        &self,
        head: &Head,
        body: Body,
        to: &mut (impl AsyncWrite + Unpin),
        deadline: Instant,
        call: &mut Call,
    ) -> Result<(), Broken> {
        let status = head.status().unwrap_or_default();
        let is_good = matches!(status, 200 | 206);
        // Before anything is handed on: who is told of a failure by the library asks for its reason at once.
        if !is_good {
            call.caller.note_failure(Failure::Status(status));
        }
        // An error code within a good answer is told before its last byte, too.
        let keep_max = match call.endpoint {
            Endpoint::Token => usize::MAX,
            Endpoint::Files => REFUSAL_BYTES_MAX,
            Endpoint::Pages => 0,
        };
        let mut kept_back = (keep_max > 0 && is_good).then(BytesMut::new);
        let mut bytes_left = call.endpoint.answer_bytes_max();
        let before = |failure| Broken::Wecom { failure, is_begun: false };
        let left_out: &[&str] = match body.is_chunked() {
            true => &["content-length"],
            false => &[],
        };
        let mut content = Content::new(head, body).map_err(before)?;
        let left_out = if content.is_decoded() { &["content-length", "content-encoding"] } else { left_out };
        let mut lines = head.start_line().to_vec();
        lines.extend(head.lines_to_hand_on(left_out));
        lines.extend_from_slice(b"Connection: close\r\n\r\n");
        if kept_back.is_none() {
            to.write_all(&lines).await?;
        }
        loop {
            let is_begun = kept_back.is_none();
            let broken = |failure| Broken::Wecom { failure, is_begun };
            let bytes = match tokio::time::timeout_at(deadline, content.next()).await {
                Ok(bytes) => bytes.map_err(broken)?,
                Err(_) => return Err(broken(self.timed_out())),
            };
            let Some(bytes) = bytes else { break };
            bytes_left = bytes_left.checked_sub(bytes.len() as u64).ok_or_else(|| broken(too_long(call.endpoint)))?;
            if let Some(kept) = &mut kept_back {
                kept.extend_from_slice(&bytes);
                if kept.len() <= keep_max {
                    continue;
                }
            }
            if let Some(kept) = kept_back.take() {
                to.write_all(&lines).await?;
                to.write_all(&kept).await?;
            } else {
                to.write_all(&bytes).await?;
            }
            to.flush().await?;
        }
        if let Content::Plain(body) = content {
            self.upstream.keep(body);
        }
        if let Some(body) = kept_back {
            if let Some(failure) = Failure::of_answer(call.endpoint, &body) {
                call.caller.note_failure(failure);
            }
            to.write_all(&lines).await?;
            to.write_all(&body).await?;
        }
        to.flush().await?;
        call.end(&status.to_string());
        Ok(())
    }
}

/// Why an answer could not be handed on.
enum Broken {
    /// The library went away.
    Library,
    Wecom {
        failure: Failure,
        is_begun: bool,
    },
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Library
    }
}

/// The guard's own answer, without a body.
pub async fn answer(to: &mut (impl AsyncWrite + Unpin), status: u16) -> Result<(), Unfinished> {
    let head = format!("HTTP/1.1 {status} {}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", reason(status));
    let written = async {
        to.write_all(head.as_bytes()).await?;
        to.flush().await
    };
    written.await.map_err(|_| Unfinished)
}

fn reason(status: u16) -> &'static str {
    match status {
        400 => "Bad Request",
        403 => "Forbidden",
        407 => "Proxy Authentication Required",
        431 => "Request Header Fields Too Large",
        502 => "Bad Gateway",
        504 => "Gateway Timeout",
        _ => "Error",
    }
}

/// Path and query, also where the target names a host.
fn origin_form(target: &str) -> &str {
    match target.split_once("://") {
        Some((scheme, rest)) if scheme.bytes().all(|byte| byte.is_ascii_alphabetic()) => {
            rest.find('/').map_or("/", |at| &rest[at..])
        }
        _ => target,
    }
}

/// The header lines of a request as they came, but for WeCom's name as the host: it leads nowhere else.
fn lines_for_wecom(head: &Head) -> Vec<u8> {
    if head.values("host").eq([HOST.as_bytes()]) {
        return head.lines_to_hand_on(&[]);
    }
    let mut lines = format!("Host: {HOST}\r\n").into_bytes();
    lines.extend(head.lines_to_hand_on(&["host"]));
    lines
}

async fn request_body(head: &Head, from: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<u8>, Failure> {
    let unusable = || Failure::Answer("the library's request cannot be sent on".to_owned());
    if head.values("transfer-encoding").next().is_some() {
        return Err(unusable());
    }
    let length = head.content_length().map_err(|_| unusable())?.unwrap_or(0);
    if length > REQUEST_BYTES_MAX {
        return Err(Failure::Answer(format!("the library's request is longer than {REQUEST_BYTES_MAX} bytes")));
    }
    let mut body = vec![0; usize::try_from(length).map_err(|_| unusable())?];
    let read = from.read_exact(&mut body).await;
    read.map_err(|_| Failure::Cut("the library did not finish its request".to_owned()))?;
    Ok(body)
}

/// Waits until the library has gone away.
async fn hung_up(from: &mut (impl AsyncBufRead + Unpin)) {
    match from.fill_buf().await {
        Ok([]) | Err(_) => {}
        // It says more than it was asked for, and is not listened to.
        Ok(_) => std::future::pending().await,
    }
}

/// What time it was for whoever answered.
fn time_ms(head: &Head) -> Option<i64> {
    Some(jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(head.text("date")?).ok()?.as_millisecond())
}

/// How long the whole file is of which this answer has a part, in bytes as they are sent (`bytes 0-524287/1048592`).
fn file_bytes(head: &Head) -> Option<u64> {
    let (unit, range) = head.text("content-range")?.split_once(' ')?;
    let (_, total) = range.split_once('/').filter(|_| unit.eq_ignore_ascii_case("bytes"))?;
    total.trim().parse().ok()
}

fn too_long(endpoint: Endpoint) -> Failure {
    Failure::Answer(format!("it is longer than {} bytes", endpoint.answer_bytes_max()))
}

/// A body without a compression, for which nobody asked and which the library does not know.
enum Content {
    Plain(Body),
    Decoded(Box<dyn AsyncRead + Send + Unpin>),
}

impl Content {
    fn new(head: &Head, body: Body) -> Result<Self, Failure> {
        let encoding = head.text("content-encoding").map(str::to_ascii_lowercase);
        Ok(match encoding.as_deref() {
            None | Some("" | "identity") => Self::Plain(body),
            Some("gzip" | "x-gzip") => Self::Decoded(Box::new(GzipDecoder::new(reader(body)))),
            Some("deflate") => Self::Decoded(Box::new(ZlibDecoder::new(reader(body)))),
            Some(_) => return Err(Failure::Answer("it is compressed in a way that nobody asked for".to_owned())),
        })
    }

    fn is_decoded(&self) -> bool {
        matches!(self, Self::Decoded(_))
    }

    /// Some more bytes; nothing after the last ones.
    async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        match self {
            Self::Plain(body) => body.next().await,
            Self::Decoded(decoded) => {
                let mut bytes = BytesMut::with_capacity(DECODED_BYTES);
                let count = decoded.read_buf(&mut bytes).await.map_err(|error| Failure::of_reading(&error))?;
                Ok((count > 0).then(|| bytes.freeze()))
            }
        }
    }
}

fn reader(body: Body) -> impl AsyncBufRead + Send + Unpin {
    let pieces = stream::try_unfold(body, |mut body| async move {
        let piece = body.next().await.map_err(io::Error::other)?;
        Ok::<_, io::Error>(piece.map(|piece| (piece, body)))
    });
    StreamReader::new(Box::pin(pieces))
}

/// One request, from its head to the end of its answer.
struct Call {
    endpoint: Endpoint,
    caller: Caller,
    metrics: Arc<ConnectorMetrics>,
    is_open: bool,
}

impl Call {
    fn end(&mut self, told: &str) {
        if std::mem::take(&mut self.is_open) {
            self.metrics.egress.request(self.endpoint.as_str(), told);
        }
    }

    fn fail(&mut self, failure: Failure) {
        tracing::debug!(endpoint = self.endpoint.as_str(), %failure, "a request did not get through");
        self.end(&failure.kind());
        self.caller.note_failure(failure);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end("abandoned");
    }
}
