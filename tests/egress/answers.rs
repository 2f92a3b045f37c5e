//! Answers of WeCom's, or of somebody on the way.

use std::io::Write;

use super::fake::{After, Script};

pub const PAGE: &str = r#"{"errcode":0,"errmsg":"ok","chatdata":[]}"#;
/// [`PAGE`], as a middlebox might send it.
const GZIPPED_PAGE: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\x2d\x2a\x4a\xce\x4f\x49\x55\xb2\x32\xd0\x01\xb1\x73\x8b\xd3\x95\xac\x94\xf2\xb3\x95\x74\x94\x92\x33\x12\x4b\x52\x12\x4b\x12\x95\xac\xa2\x63\x6b\x01\x0b\x97\x18\x1b\x29\x00\x00\x00";
/// The row of an answer that does not come.
pub const LATE: &str = "no answer in time";

/// A page, as it should be.
pub fn page(to: &mut dyn Write) -> std::io::Result<After> {
    write!(to, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len())?;
    Ok(After::Keep)
}

fn empty(to: &mut dyn Write, status: &str) -> std::io::Result<After> {
    write!(to, "HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n").map(|()| After::Keep)
}

/// As [`page`], from long ago.
pub const LONG_AGO_S: i64 = 784_111_777;
pub fn page_of_long_ago(to: &mut dyn Write) -> std::io::Result<After> {
    let date = "date: Sun, 06 Nov 1994 08:49:37 GMT";
    write!(to, "HTTP/1.1 200 OK\r\n{date}\r\ncontent-length: {}\r\n\r\n{PAGE}", PAGE.len())?;
    Ok(After::Keep)
}

/// How each is called, what comes, and what the library's caller gets: a body, or the kind of the failure.
pub const ROWS: [(&str, Script, &str); 23] = [
    ("as it is", page, PAGE),
    (
        "in chunks",
        |to| {
            let (one, two) = PAGE.split_at(10);
            write!(to, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n{one}\r\n", one.len())?;
            write!(to, "{:x};x=y\r\n{two}\r\n0\r\ntrailer: 1\r\n\r\n", two.len())?;
            Ok(After::Keep)
        },
        PAGE,
    ),
    ("to the connection's end", |to| write!(to, "HTTP/1.1 200 OK\r\n\r\n{PAGE}").map(|()| After::Close), PAGE),
    ("by HTTP/1.0", |to| write!(to, "HTTP/1.0 200 OK\r\n\r\n{PAGE}").map(|()| After::Close), PAGE),
    (
        "cut in a chunk",
        |to| {
            write!(to, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n40\r\n{{\"errcode\"").map(|()| After::Cut)
        },
        "cut",
    ),
    (
        "cut where only the connection's end tells the answer's",
        |to| write!(to, "HTTP/1.1 200 OK\r\n\r\n{PAGE}").map(|()| After::Cut),
        "cut",
    ),
    (
        "shorter than it says",
        |to| write!(to, "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{PAGE}").map(|()| After::Close),
        "cut",
    ),
    (
        "longer than it says",
        |to| write!(to, "HTTP/1.1 200 OK\r\ncontent-length: 12\r\n\r\n{PAGE}").map(|()| After::Keep),
        "{\"errcode\":0",
    ),
    (
        "compressed",
        |to| {
            write!(to, "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n", GZIPPED_PAGE.len())?;
            to.write_all(GZIPPED_PAGE).map(|()| After::Keep)
        },
        PAGE,
    ),
    (
        "cut while compressed",
        |to| {
            to.write_all(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n")?;
            to.write_all(&GZIPPED_PAGE[..40]).map(|()| After::Close)
        },
        "cut",
    ),
    (
        "no gzip, though it says so",
        |to| write!(to, "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\n\r\n{PAGE}").map(|()| After::Close),
        "cut",
    ),
    (
        "compressed in another way",
        |to| write!(to, "HTTP/1.1 200 OK\r\ncontent-encoding: br\r\ncontent-length: 2\r\n\r\nxx").map(|()| After::Keep),
        "answer",
    ),
    ("status 500", |to| write!(to, "HTTP/1.1 500 Error\r\ncontent-length: 4\r\n\r\nwell").map(|()| After::Keep), "500"),
    ("status 503, empty", |to| empty(to, "503 No"), "503"),
    ("status 429, empty", |to| empty(to, "429 Too Many"), "429"),
    ("status 302, empty", |to| empty(to, "302 Found"), "302"),
    ("status 200, empty", |to| empty(to, "200 OK"), ""),
    ("status 204", |to| to.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").map(|()| After::Keep), ""),
    ("no HTTP", |to| to.write_all(b"* OK IMAP4 ready\r\n").map(|()| After::Keep), "answer"),
    ("nothing", |_| Ok(After::Close), "cut"),
    (
        "a head that is too long",
        |to| {
            let value = "v".repeat(1_000_000);
            write!(to, "HTTP/1.1 200 OK\r\nx: {value}\r\ncontent-length: 0\r\n\r\n").map(|()| After::Keep)
        },
        "answer",
    ),
    (
        "a head without an end",
        |to| {
            to.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                to.write_all(b"x: y\r\n")?;
            }
        },
        "answer",
    ),
    (
        LATE,
        |to| {
            to.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{")?;
            to.flush()?;
            std::thread::park();
            Ok(After::Keep)
        },
        "timeout",
    ),
];
