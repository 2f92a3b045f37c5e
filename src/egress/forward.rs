//! What becomes of one request of the library's.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_compression::tokio::bufread::{GzipDecoder, ZlibDecoder};
use bytes::Bytes;
use futures::TryStreamExt;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode, Uri, Version};
use tokio::io::AsyncRead;
use tokio::time::{Instant, Sleep};
use tokio_util::io::{ReaderStream, StreamReader};

use super::guard::{Admitted, Client};
use super::upstream::{HttpClient, Used};
use super::{Endpoint, Failure, HOST};
use crate::metrics::ConnectorMetrics;

/// The library's own are some hundred bytes; a file's id may have a thousand or two.
const REQUEST_BYTES_MAX: usize = 64 * 1024;
const ALLOWED: &str = "gettoken, getchatdata and getchatmediadata";

/// Headers that are for one connection alone, or for the guard.
const OF_CONNECTION: [HeaderName; 9] = [
    header::CONNECTION,
    header::HOST,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("proxy-connection"),
];

type AnswerBody = UnsyncBoxBody<Bytes, Failure>;

/// Sends requests on to WeCom.
pub struct Forwarder {
    client: HttpClient,
    timeout: Duration,
    metrics: Arc<ConnectorMetrics>,
}

impl Forwarder {
    pub fn new(client: HttpClient, timeout: Duration, metrics: Arc<ConnectorMetrics>) -> Self {
        Self { client, timeout, metrics }
    }

    /// The answer for the library; where there is none, an HTTP status that it takes for a failure of the network.
    pub async fn forward(
        &self,
        request: Request<Incoming>,
        client: Arc<Client>,
        admitted: Arc<Admitted>,
    ) -> Response<AnswerBody> {
        let Some(endpoint) = Endpoint::of(request.method(), request.uri().path()) else {
            self.metrics.egress.refused("endpoint");
            tracing::warn!(
                "the vendor's library asked WeCom for something else than {ALLOWED} and was refused: is it a newer version?"
            );
            admitted.note(Endpoint::Token, Failure::Forbidden(ALLOWED));
            return empty(StatusCode::FORBIDDEN);
        };
        let mut call = Call {
            endpoint,
            client,
            admitted,
            metrics: self.metrics.clone(),
            started: Instant::now(),
            timeout: self.timeout,
            is_open: true,
        };
        let deadline = call.started + self.timeout;
        match tokio::time::timeout_at(deadline, self.answer(request, &mut call)).await {
            Ok(Ok((head, Content::Whole(bytes)))) => {
                call.end(head.status, None);
                head.into_response(UnsyncBoxBody::new(Full::new(bytes).map_err(|never| match never {})))
            }
            Ok(Ok((head, Content::Coming(body)))) => {
                let status = head.status;
                let deadline = Box::pin(tokio::time::sleep_until(deadline));
                let bytes_left = endpoint.answer_bytes_max();
                head.into_response(UnsyncBoxBody::new(Answer { body, status, bytes_left, deadline, call }))
            }
            Ok(Err(failure)) => {
                call.fail(failure);
                empty(StatusCode::BAD_GATEWAY)
            }
            Err(_) => {
                call.fail(call.timed_out());
                empty(StatusCode::GATEWAY_TIMEOUT)
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>, call: &mut Call) -> Result<(Head, Content), Failure> {
        let (parts, body) = request.into_parts();
        let body = match Limited::new(body, REQUEST_BYTES_MAX).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(Failure::Answer(format!("the library's request is longer than {REQUEST_BYTES_MAX} bytes")));
            }
            Err(_) => return Err(Failure::Cut("the library did not finish its request".to_owned())),
        };
        let response = match self.client.request(upstream_request(&parts, body.clone())?).await {
            // A kept connection may end at the moment it is used again. All three requests only read: once more does no harm.
            Err(error) if is_ended(&error) => self.client.request(upstream_request(&parts, body)?).await,
            result => result,
        };
        let response = response.map_err(|error| Failure::of(&error))?;
        let egress = &self.metrics.egress;
        egress.first_byte_seconds.observe(call.started.elapsed().as_secs_f64());
        if response.extensions().get::<Used>().is_some_and(Used::take) {
            egress.connections_reused.inc();
        }
        let (parts, body) = response.into_parts();
        if let Some(theirs_ms) = time_ms(&parts.headers) {
            self.metrics.told_time(theirs_ms);
        }
        let mut head = Head { status: parts.status, headers: parts.headers };
        remove_connection_headers(&mut head.headers);
        let body = plain(&mut head.headers, body)?;
        if head.status != StatusCode::OK && head.status != StatusCode::PARTIAL_CONTENT {
            call.admitted.note(call.endpoint, Failure::Status(head.status.as_u16()));
        } else if call.endpoint == Endpoint::Token {
            let bytes_max = usize::try_from(call.endpoint.answer_bytes_max()).unwrap_or(usize::MAX);
            let body = Limited::new(body, bytes_max).collect().await.map_err(|error| {
                match error.downcast_ref::<LengthLimitError>() {
                    Some(_) => too_long(call.endpoint),
                    None => Failure::of(&*error),
                }
            })?;
            let body = body.to_bytes();
            if let Some(failure) = Failure::of_token_answer(&body) {
                call.admitted.note(call.endpoint, failure);
            }
            return Ok((head, Content::Whole(body)));
        }
        Ok((head, Content::Coming(body)))
    }
}

/// What time it was for whoever answered.
fn time_ms(headers: &HeaderMap) -> Option<i64> {
    let date = headers.get(header::DATE)?.to_str().ok()?;
    Some(jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(date).ok()?.as_millisecond())
}

/// What of an answer is handed to the library.
enum Content {
    Whole(Bytes),
    Coming(AnswerBody),
}

struct Head {
    status: StatusCode,
    headers: HeaderMap,
}

impl Head {
    fn into_response(self, body: AnswerBody) -> Response<AnswerBody> {
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

fn empty(status: StatusCode) -> Response<AnswerBody> {
    let mut response = Response::new(UnsyncBoxBody::new(Full::default().map_err(|never| match never {})));
    *response.status_mut() = status;
    response
}

/// The body as it is without a compression, for which nobody asked and which the library does not know.
fn plain(headers: &mut HeaderMap, body: Incoming) -> Result<AnswerBody, Failure> {
    let body = body.map_err(|error| Failure::of(&error));
    let encoding = headers.get(header::CONTENT_ENCODING).map(|encoding| encoding.as_bytes().to_ascii_lowercase());
    let decoded: Box<dyn AsyncRead + Send + Unpin> = match encoding.as_deref() {
        None | Some(b"" | b"identity") => return Ok(UnsyncBoxBody::new(body)),
        Some(b"gzip" | b"x-gzip") => {
            Box::new(GzipDecoder::new(StreamReader::new(body.into_data_stream().map_err(io::Error::other))))
        }
        Some(b"deflate") => {
            Box::new(ZlibDecoder::new(StreamReader::new(body.into_data_stream().map_err(io::Error::other))))
        }
        Some(_) => return Err(Failure::Answer("it is compressed in a way that nobody asked for".to_owned())),
    };
    headers.remove(header::CONTENT_ENCODING);
    headers.remove(header::CONTENT_LENGTH);
    let frames = ReaderStream::new(decoded).map_ok(Frame::data).map_err(|error| Failure::of(&error));
    Ok(UnsyncBoxBody::new(StreamBody::new(frames)))
}

fn upstream_request(parts: &Parts, body: Bytes) -> Result<Request<Full<Bytes>>, Failure> {
    let unusable = |_| Failure::Answer("the library's request cannot be sent on".to_owned());
    let path_and_query = parts.uri.path_and_query().map_or("/", |it| it.as_str());
    let uri =
        Uri::builder().scheme("https").authority(HOST).path_and_query(path_and_query).build().map_err(unusable)?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = parts.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = parts.headers.clone();
    remove_connection_headers(request.headers_mut());
    // What comes is handed on as it is.
    request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    Ok(request)
}

fn remove_connection_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|names| names.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // What a body's length is, nobody can take back.
        .filter(|name| *name != header::CONTENT_LENGTH)
        .collect();
    for name in OF_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Whether the connection ended before anything of an answer came.
fn is_ended(error: &hyper_util::client::legacy::Error) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<hyper::Error>() {
            return error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        }
        cause = error.source();
    }
    false
}

/// One request, from its head to the end of its answer.
struct Call {
    endpoint: Endpoint,
    client: Arc<Client>,
    admitted: Arc<Admitted>,
    metrics: Arc<ConnectorMetrics>,
    started: Instant,
    timeout: Duration,
    is_open: bool,
}

impl Call {
    fn end(&mut self, status: StatusCode, failure: Option<Failure>) {
        if std::mem::take(&mut self.is_open) {
            match failure {
                None => self.metrics.egress.request(self.endpoint.as_str(), status.as_str()),
                Some(failure) => {
                    self.metrics.egress.request(self.endpoint.as_str(), &failure.kind());
                    tracing::debug!(endpoint = self.endpoint.as_str(), %failure, "a request did not get through");
                    self.admitted.note(self.endpoint, failure);
                }
            }
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.end(StatusCode::BAD_GATEWAY, Some(failure));
    }

    fn timed_out(&self) -> Failure {
        Failure::Timeout(self.timeout.as_millis() as u64)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if self.is_open {
            self.client.reset_at_end();
            self.metrics.egress.request(self.endpoint.as_str(), "abandoned");
        }
    }
}

/// An answer on its way to the library.
struct Answer {
    body: AnswerBody,
    status: StatusCode,
    bytes_left: u64,
    deadline: Pin<Box<Sleep>>,
    call: Call,
}

impl Answer {
    /// Whether there is room for it within the limit.
    fn takes(&mut self, frame: &Frame<Bytes>) -> bool {
        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
        let left = self.bytes_left.checked_sub(length);
        self.bytes_left = left.unwrap_or(0);
        left.is_some()
    }
}

fn too_long(endpoint: Endpoint) -> Failure {
    Failure::Answer(format!("it is longer than {} bytes", endpoint.answer_bytes_max()))
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let answer = self.get_mut();
        let failure = match Pin::new(&mut answer.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if answer.takes(&frame) => {
                // Of an answer whose length is known, nobody asks for what comes after its last byte.
                if answer.body.is_end_stream() {
                    answer.call.end(answer.status, None);
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(Some(Ok(_))) => too_long(answer.call.endpoint),
            Poll::Ready(None) => {
                answer.call.end(answer.status, None);
                return Poll::Ready(None);
            }
            Poll::Ready(Some(Err(failure))) => failure,
            Poll::Pending if answer.deadline.as_mut().poll(cx).is_ready() => answer.call.timed_out(),
            Poll::Pending => return Poll::Pending,
        };
        answer.call.client.reset_at_end();
        answer.call.fail(failure.clone());
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
