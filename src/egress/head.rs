//! The head of an HTTP/1 message, kept as the bytes that came.
//!
//! The library looks for some of what it needs by the exact bytes of a head (measured: `CONTENT-RANGE`, in no other
//! spelling). So what is handed on is handed on as it came: case, order and repeats of names, blanks, the words
//! behind a status.

use std::io;
use std::ops::Range;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _};

const LINES_MAX: usize = 100;

/// A head that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The other side ended before it said anything.
    #[error("it hung up without an answer")]
    Nothing,
    #[error("it hung up in the middle of a head")]
    Cut,
    #[error("its head is longer than {0} bytes or {LINES_MAX} lines")]
    TooLong(usize),
    #[error("it speaks no HTTP")]
    NoHttp,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Start line, header lines and the empty line.
#[derive(Debug)]
pub struct Head {
    bytes: Vec<u8>,
    /// Without the start line and the empty line.
    lines: Vec<Line>,
    has_bare_ends: bool,
}

#[derive(Debug)]
struct Line {
    whole: Range<usize>,
    name: Range<usize>,
    value: Range<usize>,
}

/// What a request's start line says.
#[derive(Debug, PartialEq, Eq)]
pub struct RequestLine<'a> {
    pub method: &'a str,
    pub target: &'a str,
}

impl Head {
    /// Reads up to the empty line; what comes after stays in `from`.
    pub async fn read(from: &mut (impl AsyncBufRead + Unpin), bytes_max: usize) -> Result<Self, HeadError> {
        let (mut bytes, mut lines, mut has_bare_ends) = (Vec::new(), Vec::new(), false);
        loop {
            let start = bytes.len();
            let room = (bytes_max + 1 - start) as u64;
            from.take(room).read_until(b'\n', &mut bytes).await?;
            if bytes.len() > bytes_max {
                return Err(HeadError::TooLong(bytes_max));
            }
            let Some(line) = bytes[start..].strip_suffix(b"\n") else {
                return Err(if bytes.is_empty() { HeadError::Nothing } else { HeadError::Cut });
            };
            let line = line.strip_suffix(b"\r").unwrap_or_else(|| {
                has_bare_ends = true;
                line
            });
            if !line.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control()) {
                return Err(HeadError::NoHttp);
            }
            if start == 0 {
                // Said at once: who speaks something else may not end its head.
                if !is_start_line(line) {
                    return Err(HeadError::NoHttp);
                }
                continue;
            }
            if line.is_empty() {
                break;
            }
            if lines.len() == LINES_MAX {
                return Err(HeadError::TooLong(bytes_max));
            }
            let colon = line.iter().position(|&byte| byte == b':').ok_or(HeadError::NoHttp)?;
            if !is_name(&line[..colon]) {
                return Err(HeadError::NoHttp);
            }
            let value = line[colon + 1..].trim_ascii();
            let value_start = start + line.len() - line[colon + 1..].trim_ascii_start().len();
            lines.push(Line {
                whole: start..bytes.len(),
                name: start..start + colon,
                value: value_start..value_start + value.len(),
            });
        }
        Ok(Self { bytes, lines, has_bare_ends })
    }

    /// Whether a line ends otherwise than with CR and LF: not everybody takes that for an end.
    pub fn has_bare_ends(&self) -> bool {
        self.has_bare_ends
    }

    /// The start line with its end.
    pub fn start_line(&self) -> &[u8] {
        let end = self.bytes.iter().position(|&byte| byte == b'\n').map_or(self.bytes.len(), |at| at + 1);
        &self.bytes[..end]
    }

    /// Of a request.
    pub fn request_line(&self) -> Option<RequestLine<'_>> {
        let mut words = std::str::from_utf8(self.start_line()).ok()?.trim_ascii_end().split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        let is_whole = words.next().is_none() && version.starts_with("HTTP/1.") && !target.is_empty();
        is_whole.then_some(RequestLine { method, target })
    }

    /// Of an answer.
    pub fn status(&self) -> Option<u16> {
        let (_, rest) = self.start_line().split_at_checked("HTTP/1.1 ".len())?;
        let (digits, rest) = rest.split_at_checked(3)?;
        let is_whole = digits.iter().all(u8::is_ascii_digit) && matches!(rest.first(), Some(b' ' | b'\r' | b'\n'));
        std::str::from_utf8(digits).ok().filter(|_| is_whole)?.parse().ok()
    }

    /// Of an answer: whether its version is 1.1, in which connections are kept.
    pub fn is_1_1(&self) -> bool {
        self.bytes.starts_with(b"HTTP/1.1 ")
    }

    /// What stands behind each header of this name, whatever its case.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.lines
            .iter()
            .filter(move |line| self.bytes[line.name.clone()].eq_ignore_ascii_case(name.as_bytes()))
            .map(|line| &self.bytes[line.value.clone()])
    }

    /// What stands behind the first header of this name, as text.
    pub fn text(&self, name: &str) -> Option<&str> {
        std::str::from_utf8(self.values(name).next()?).ok()
    }

    /// Whether a list of words behind this name, in one header or several, has `word`.
    pub fn has_word(&self, name: &str, word: &str) -> bool {
        self.words(name).any(|found| found.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// The words of a list behind this name.
    pub fn words(&self, name: &str) -> impl Iterator<Item = &[u8]> {
        self.values(name).flat_map(|value| value.split(|&byte| byte == b',')).map(<[u8]>::trim_ascii)
    }

    /// How many bytes of a body the head tells. Several lines of one number are one; anything else is an error.
    pub fn content_length(&self) -> Result<Option<u64>, HeadError> {
        let mut found = None;
        for word in self.words("content-length") {
            let is_number = !word.is_empty() && word.iter().all(u8::is_ascii_digit);
            let text = std::str::from_utf8(word).map_err(|_| HeadError::NoHttp)?;
            let length = text.parse::<u64>().ok().filter(|_| is_number).ok_or(HeadError::NoHttp)?;
            if found.is_some_and(|found| found != length) {
                return Err(HeadError::NoHttp);
            }
            found = Some(length);
        }
        Ok(found)
    }

    /// The header lines, as they came, without those whose name is in `left_out` and those that are for one
    /// connection alone.
    pub fn lines_to_hand_on(&self, left_out: &[&str]) -> Vec<u8> {
        let is_left_out = |name: &[u8]| {
            let is = |other: &[u8]| name.eq_ignore_ascii_case(other);
            OF_CONNECTION.iter().chain(left_out).any(|other| is(other.as_bytes()))
                // What a body's length is, nobody can take back.
                || (!is(b"content-length") && self.words("connection").any(is))
        };
        let kept = self.lines.iter().filter(|line| !is_left_out(&self.bytes[line.name.clone()]));
        kept.flat_map(|line| &self.bytes[line.whole.clone()]).copied().collect()
    }
}

/// Headers that are for one connection alone.
const OF_CONNECTION: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

fn is_start_line(line: &[u8]) -> bool {
    line.starts_with(b"HTTP/1.") || [b" HTTP/1.0", b" HTTP/1.1"].iter().any(|end| line.ends_with(*end))
}

/// A token of RFC 9110.
fn is_name(name: &[u8]) -> bool {
    let is_of_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !name.is_empty() && name.iter().all(is_of_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = "HTTP/1.1 206 Partly  there\r\nDATE:now\r\nX-Two:  1 \r\nCONTENT-RANGE: BYTES 0-15/32\r\nx-two: 2\r\n\
        Connection: keep-alive, X-Own\r\nx-own: 1\r\nKeep-Alive: timeout=5\r\nContent-Length: 4\r\n\r\nbody";

    async fn read(bytes: &[u8]) -> Result<Head, HeadError> {
        Head::read(&mut &bytes[..], 1000).await
    }

    #[tokio::test]
    async fn a_head_is_handed_on_as_it_came() {
        let mut from = ANSWER.as_bytes();
        let head = Head::read(&mut from, 1000).await.unwrap();
        assert!(from == b"body" && !head.has_bare_ends());
        assert_eq!((head.status(), head.is_1_1(), head.content_length().unwrap()), (Some(206), true, Some(4)));
        assert_eq!(head.start_line(), b"HTTP/1.1 206 Partly  there\r\n");
        assert_eq!(head.values("x-TWO").collect::<Vec<_>>(), [b"1", b"2"]);
        assert_eq!(head.text("content-range"), Some("BYTES 0-15/32"));
        assert!(head.has_word("connection", "Keep-Alive") && !head.has_word("connection", "close"));
        let handed_on = "DATE:now\r\nX-Two:  1 \r\nCONTENT-RANGE: BYTES 0-15/32\r\nx-two: 2\r\nContent-Length: 4\r\n";
        assert_eq!(String::from_utf8(head.lines_to_hand_on(&[])).unwrap(), handed_on);
        assert_eq!(head.lines_to_hand_on(&["X-TWO", "date", "content-range"]), b"Content-Length: 4\r\n");
    }

    #[tokio::test]
    async fn what_is_no_head_is_refused() {
        let long = format!("GET / HTTP/1.0\r\nx: {}\r\n\r\n", "v".repeat(1000));
        let many = format!("GET / HTTP/1.0\r\n{}\r\n", "x:\r\n".repeat(101));
        let rows: [(&[u8], &str); 15] = [
            (b"", "without an answer"),
            (b"HTTP/1.1 200", "middle"),
            (b"HTTP/1.1 200 OK\r\nx: y\r\n", "middle"),
            (long.as_bytes(), "longer"),
            (many.as_bytes(), "longer"),
            (b"* OK IMAP4 ready\r\n", "no HTTP"),
            (b"\r\n\r\n", "no HTTP"),
            (b"PRI * HTTP/2.0\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\nx: y\r\n folded\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\nx : y\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\n: y\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\nx: a\rb\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\nx: a\r\r\n\r\n", "no HTTP"),
            (b"GET / HTTP/1.1\r\nx: \x00\r\n\r\n", "no HTTP"),
        ];
        for (bytes, words) in rows {
            let error = read(bytes).await.unwrap_err().to_string();
            assert!(error.contains(words), "{}: {error}", String::from_utf8_lossy(bytes));
        }
        for lengths in
            ["Content-Length: 1\r\ncontent-length: 2", "Content-Length: 1, 2", "Content-Length: +1", "Content-Length:"]
        {
            let head = read(format!("HTTP/1.1 200 OK\r\n{lengths}\r\n\r\n").as_bytes()).await.unwrap();
            assert!(head.content_length().is_err(), "{lengths}");
        }
        let head = read(b"HTTP/1.0 200\nContent-Length: 7\r\ncontent-length: 7\n\n").await.unwrap();
        assert_eq!((head.status(), head.content_length().unwrap()), (Some(200), Some(7)));
        assert!(head.has_bare_ends());
    }

    #[tokio::test]
    async fn a_request_s_line_is_read() {
        for (line, expected) in [
            ("GET /a?b HTTP/1.0", Some(("GET", "/a?b"))),
            ("GET  /a HTTP/1.0", None),
            ("GET /a b HTTP/1.0", None),
            ("HTTP/1.1 200 OK", None),
        ] {
            let head = read(format!("{line}\r\n\r\n").as_bytes()).await.unwrap();
            let expected = expected.map(|(method, target)| RequestLine { method, target });
            assert_eq!(head.request_line(), expected, "{line}");
        }
    }
}
