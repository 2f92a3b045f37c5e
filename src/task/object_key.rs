//! Names of objects. They are made of the connector's settings and of our own ids; nothing out of a message shapes them but a
//! checked extension.

use aws_lc_rs::digest;
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// Longest id that is used as it is.
const SEGMENT_LENGTH_MAX: usize = 128;

/// `{prefix}/{corp_id}/{yyyy}/{mm}/{dd}/{media_id}.{extension}`: the same file gives the same key each time it is stored.
///
/// `dated_ms` is the day's, in UTC, in milliseconds since the epoch.
pub fn of_media(prefix: &str, corp_id: &str, dated_ms: i64, media_id: &str, extension: &str) -> String {
    let date = Timestamp::from_millisecond(dated_ms).unwrap_or(Timestamp::UNIX_EPOCH).to_zoned(TimeZone::UTC).date();
    let (year, month, day) = (date.year(), date.month(), date.day());
    let media_id = segment(media_id);
    format!("{}{year:04}/{month:02}/{day:02}/{media_id}.{extension}", corp_folder(prefix, corp_id))
}

/// `{prefix}/{corp_id}/by-content/{md5}-{size}.json`: says where content with this hash and size is stored.
pub fn of_content(prefix: &str, corp_id: &str, md5: &str, size: u64) -> String {
    format!("{}by-content/{}-{size}.json", corp_folder(prefix, corp_id), segment(md5))
}

/// `{prefix}/{corp_id}/oversize/{position}.{kind}`: the body of a record that does not fit into Kafka.
pub fn of_oversize(prefix: &str, corp_id: &str, position: &str, kind: &str) -> String {
    format!("{}oversize/{}.{kind}", corp_folder(prefix, corp_id), segment(position))
}

/// What every key of a corp begins with; a slash at the end.
pub fn corp_folder(prefix: &str, corp_id: &str) -> String {
    let prefix = prefix.trim_matches('/');
    let slash = if prefix.is_empty() { "" } else { "/" };
    format!("{prefix}{slash}{}/", segment(corp_id))
}

/// An id as a part of a key. One that could be taken for something else (`..`, a slash, control bytes) is replaced by its
/// SHA-256, so that different ids stay different.
fn segment(id: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if (1..=SEGMENT_LENGTH_MAX).contains(&id.len()) && id.bytes().all(plain) {
        return id.to_owned();
    }
    hex(digest::digest(&digest::SHA256, id.as_bytes()).as_ref())
}

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_of_the_day_in_utc() {
        for (prefix, dated_ms, key) in [
            ("wecom", 1_764_028_799_999, "wecom/ww1/2025/11/24/m-1.jpg"),
            ("wecom", 1_764_028_800_000, "wecom/ww1/2025/11/25/m-1.jpg"),
            ("", 0, "ww1/1970/01/01/m-1.jpg"),
            ("/a/b/", i64::MAX, "a/b/ww1/1970/01/01/m-1.jpg"),
        ] {
            assert_eq!(of_media(prefix, "ww1", dated_ms, "m-1", "jpg"), key);
        }
    }

    #[test]
    fn no_id_leads_a_key_astray() {
        let long = "a".repeat(129);
        let mut seen = std::collections::BTreeSet::new();
        for id in ["", ".", "..", "../../etc/passwd", "a/b", "a\\b", "a\0", "名", "a.b", "a%2fb", &long] {
            let key = of_media("p", id, 0, id, "bin");
            assert_eq!(key.split('/').count(), 6, "{key}");
            assert!(
                key.bytes().all(|b| b.is_ascii_alphanumeric() || b"/.".contains(&b)) && !key.contains(".."),
                "{key}"
            );
            assert!(seen.insert(key));
        }
    }
}
