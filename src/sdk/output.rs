//! What the vendor's library prints. It writes raw noise to stdout (measured: the token endpoint's answer, not UTF-8), so its
//! output is read line by line as bytes, scrubbed, and only then logged.

use std::sync::Arc;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

/// Of a longer line, only the beginning is looked at.
const LINE_BYTES_MAX: u64 = 64 * 1024;

/// What is logged of a line, once it is scrubbed: a secret that were cut before would not be found.
const SHOWN_LENGTH_MAX: usize = 1024;

/// A run of letters and digits this long is taken for a token, a key or a ciphertext.
const OPAQUE_RUN_LENGTH: usize = 24;

/// Before a line on stderr with which an SDK host says why it ends itself.
pub const HOST_PREFIX: &str = "sdk-host: ";

/// What Rust and C++ print before they abort for want of memory.
const NO_MEMORY: [&str; 2] = ["memory allocation of ", "std::bad_alloc"];

/// Reads `stream` to its end and logs each line. Gives what the host said of a cause of its end that is not the
/// library's, if anything.
pub async fn log(
    stream: impl AsyncRead + Unpin,
    name: &'static str,
    host: u32,
    secrets: Arc<[String]>,
) -> Option<String> {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    let mut is_continued = false;
    let mut cause = None;
    loop {
        line.clear();
        match (&mut reader).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return cause,
            Ok(_) => {
                let text = if is_continued { String::new() } else { shown(&line, &secrets) };
                is_continued = line.last() != Some(&b'\n');
                cause = own_cause(&text).or(cause);
                if !text.is_empty() {
                    tracing::info!(target: "wecom_connector::sdk::output", host, stream = name, "{text}");
                }
            }
        }
    }
}

/// The cause of an end that is not the library's, out of a line.
fn own_cause(text: &str) -> Option<String> {
    let of_memory = || NO_MEMORY.iter().any(|words| text.contains(words));
    let no_memory = || "it got no memory. Raise the memory limit of the container or service".to_owned();
    text.strip_prefix(HOST_PREFIX).map(str::to_owned).or_else(|| of_memory().then(no_memory))
}

/// What is logged of a line.
fn shown(line: &[u8], secrets: &[String]) -> String {
    let mut text = scrub(line, secrets);
    // It is ASCII by now.
    text.truncate(SHOWN_LENGTH_MAX);
    text
}

/// The line as printable ASCII without any of `secrets` and without anything that looks like a token or a ciphertext. Other
/// bytes become `?`: they could be message text.
fn scrub(line: &[u8], secrets: &[String]) -> String {
    let mut text: String =
        line.trim_ascii().iter().map(|&b| if (0x20..0x7f).contains(&b) { char::from(b) } else { '?' }).collect();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        text = text.replace(secret.as_str(), "[secret]");
    }
    let mut scrubbed = String::with_capacity(text.len());
    for run in text.split_inclusive(|c: char| !is_opaque(c)) {
        let opaque = run.trim_end_matches(|c: char| !is_opaque(c));
        if opaque.len() >= OPAQUE_RUN_LENGTH {
            scrubbed.push_str("[opaque]");
            scrubbed.push_str(&run[opaque.len()..]);
        } else {
            scrubbed.push_str(run);
        }
    }
    scrubbed
}

fn is_opaque(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | '-' | '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_found_wherever_a_long_line_is_cut() {
        let secret = "s3cret-of-23-characters";
        for position in SHOWN_LENGTH_MAX - 30..SHOWN_LENGTH_MAX + 5 {
            let line = [".".repeat(position), secret.to_owned()].concat();
            let text = shown(line.as_bytes(), &[secret.to_owned()]);
            assert!(text.len() <= SHOWN_LENGTH_MAX && !text.contains("s3"), "{text}");
        }
    }

    #[test]
    fn a_host_says_why_it_ends_itself() {
        for (line, expected) in [
            ("sdk-host: no thread can be started", Some("no thread can be started")),
            ("memory allocation of 1048576 bytes failed", Some("it got no memory")),
            ("terminate called after throwing an instance of 'std::bad_alloc'", Some("it got no memory")),
            ("terminate called after throwing an instance of 'std::out_of_range'", None),
            ("  what():  basic_string::substr", None),
        ] {
            let cause = own_cause(line);
            assert_eq!(cause.is_some(), expected.is_some(), "{line}");
            assert!(cause.unwrap_or_default().starts_with(expected.unwrap_or_default()), "{line}");
        }
    }

    #[test]
    fn secrets_tokens_and_foreign_bytes_are_taken_out() {
        let secrets = ["s3cret".to_owned(), String::new()];
        let rows: [(&[u8], &str); 5] = [
            (b"  connect failed: 7\r\n", "connect failed: 7"),
            (b"secret=s3cret&x=1\n", "secret=[secret]&x=1"),
            (b"{\"access_token\":\"aGVsbG8gd29ybGQsIGhlbGxvIHdvcmxk\"}", "{\"access_token\":\"[opaque]\"}"),
            ("内容 text\n".as_bytes(), "?????? text"),
            (b"\xff\xfe\x00\n", "???"),
        ];
        for (line, expected) in rows {
            assert_eq!(scrub(line, &secrets), expected);
        }
    }
}
