//! One request and its answer on a connection to WeCom.

use bytes::Bytes;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::Failure;
use super::head::{Head, HeadError};
use super::upstream::Stream;

const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Of a chunk's size with its extensions, and of a trailer.
const LINE_BYTES_MAX: usize = 4 * 1024;
const TRAILERS_MAX: usize = 100;

/// A connection, between two answers.
pub struct Connection {
    io: BufReader<Stream>,
    /// Whether it has carried an answer before.
    pub is_used: bool,
}

impl Connection {
    pub fn new(stream: Stream, buffer_bytes: usize) -> Self {
        Self { io: BufReader::with_capacity(buffer_bytes, stream), is_used: false }
    }

    /// Whether the other side has neither ended it nor said anything that nobody asked for.
    pub fn is_silent(&mut self) -> bool {
        use futures::FutureExt as _;
        self.io.fill_buf().now_or_never().is_none()
    }

    /// Sends the request and reads the answer's head.
    pub async fn ask(mut self, request: &[u8]) -> Result<(Head, Body), HeadError> {
        self.io.write_all(request).await?;
        self.io.flush().await?;
        let head = loop {
            let head = Head::read(&mut self.io, HEAD_BYTES_MAX).await?;
            match head.status() {
                None | Some(..100 | 101) => return Err(HeadError::NoHttp),
                Some(102..200 | 100) => {}
                Some(_) => break head,
            }
        };
        self.is_used = true;
        let left = Left::of(&head)?;
        let is_certain = match left {
            Left::Bytes(_) => true,
            // A length beside it is somebody's mistake, or trick.
            Left::Chunks(_) => head.values("content-length").next().is_none(),
            Left::ToEnd => false,
        };
        let is_kept = is_certain && head.is_1_1() && !head.has_word("connection", "close");
        Ok((head, Body { connection: self, left, is_kept }))
    }
}

/// What of a body has still to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Bytes(u64),
    /// Of the chunk under way; the first one is still to begin where there is none.
    Chunks(Option<u64>),
    /// All that comes until the connection ends.
    ToEnd,
}

impl Left {
    fn of(head: &Head) -> Result<Self, HeadError> {
        let encodings: Vec<_> = head.words("transfer-encoding").filter(|word| !word.is_empty()).collect();
        Ok(match (head.status(), encodings.as_slice()) {
            (Some(204 | 304), _) => Self::Bytes(0),
            (_, []) => head.content_length()?.map_or(Self::ToEnd, Self::Bytes),
            (_, [encoding]) if encoding.eq_ignore_ascii_case(b"chunked") => Self::Chunks(None),
            _ => return Err(HeadError::NoHttp),
        })
    }
}

/// An answer's body, in pieces.
pub struct Body {
    connection: Connection,
    left: Left,
    is_kept: bool,
}

impl Body {
    pub fn is_chunked(&self) -> bool {
        matches!(self.left, Left::Chunks(_))
    }

    /// The connection, once nothing more has to come, where both sides keep it.
    pub fn into_connection(self) -> Option<Connection> {
        let is_free = self.is_kept && self.left == Left::Bytes(0) && self.connection.io.buffer().is_empty();
        is_free.then_some(self.connection)
    }

    /// Some more bytes; nothing after the last ones.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let io = &mut self.connection.io;
        if let Left::Chunks(left @ (None | Some(0))) = self.left {
            if left.is_some() && !line(io).await?.is_empty() {
                return Err(Failure::Cut("a chunk is longer than it says".to_owned()));
            }
            let size = chunk_bytes(&line(io).await?)
                .ok_or_else(|| Failure::Cut("a chunk does not say how long it is".to_owned()))?;
            self.left = Left::Chunks(Some(size));
            if size == 0 {
                let mut trailers = 0;
                while !line(io).await?.is_empty() {
                    trailers += 1;
                    if trailers > TRAILERS_MAX {
                        return Err(Failure::Answer(format!("it has more than {TRAILERS_MAX} trailers")));
                    }
                }
                self.left = Left::Bytes(0);
            }
        }
        let left = match self.left {
            Left::Bytes(0) => return Ok(None),
            Left::Bytes(left) | Left::Chunks(Some(left)) => left,
            Left::Chunks(None) | Left::ToEnd => u64::MAX,
        };
        let buffer = io.fill_buf().await.map_err(|error| Failure::of_break(&error))?;
        if buffer.is_empty() {
            if self.left != Left::ToEnd {
                return Err(Failure::Cut("it ended in the middle of an answer".to_owned()));
            }
            self.left = Left::Bytes(0);
            return Ok(None);
        }
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let bytes = Bytes::copy_from_slice(&buffer[..count]);
        io.consume(count);
        match &mut self.left {
            Left::Bytes(left) | Left::Chunks(Some(left)) => *left -= count as u64,
            Left::Chunks(None) | Left::ToEnd => {}
        }
        Ok(Some(bytes))
    }
}

/// A line without its end.
async fn line(from: &mut (impl AsyncBufRead + Unpin)) -> Result<Vec<u8>, Failure> {
    let mut line = Vec::new();
    let read = from.take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line).await;
    read.map_err(|error| Failure::of_break(&error))?;
    match line.as_slice() {
        [.., b'\n'] => {}
        line if line.len() == LINE_BYTES_MAX => {
            return Err(Failure::Answer(format!("a line within it is longer than {LINE_BYTES_MAX} bytes")));
        }
        _ => return Err(Failure::Cut("it ended in the middle of an answer".to_owned())),
    }
    line.pop();
    line.pop_if(|byte| *byte == b'\r');
    Ok(line)
}

/// How long a chunk is, by the line before it.
fn chunk_bytes(line: &[u8]) -> Option<u64> {
    let size = line.split(|&byte| byte == b';').next()?.trim_ascii();
    let is_hexadecimal = !size.is_empty() && size.iter().all(u8::is_ascii_hexdigit);
    u64::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok().filter(|_| is_hexadecimal)
}
