//! The files that a message refers to.

use aws_lc_rs::digest;
use serde::Serialize;

/// A file that a message refers to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MediaReference {
    /// See [`media_id`].
    pub media_id: String,
    /// Where in the message the `sdkfileid` stands: a JSON pointer that goes on into JSON that is kept in strings, for example
    /// `/chatrecord/item/0/content/sdkfileid`.
    pub path: String,
    /// `image`, `voice`, `video`, `emotion`, `file`, …: of what holds the file. In a type unknown so far, that type.
    #[serde(rename = "type")]
    pub media_type: String,
    /// The md5 that the message declares: 32 hexadecimal digits, lower case. Vendors' clients leave it empty at times, and it
    /// may be wrong.
    pub md5sum: Option<String>,
    /// The size that the message declares, in bytes.
    pub size: Option<u64>,
    /// As in the message, cut off after 1,024 bytes. Hostile input: never part of a path.
    pub file_name: Option<String>,
    /// 1 to 8 of `a`–`z` and `0`–`9`, without a dot.
    pub extension: Option<String>,
    /// The vendor's name of the file. Opaque, often more than 1,000 bytes. It stands in the message already.
    #[serde(skip)]
    pub sdkfileid: String,
}

/// Names a file: the first 32 hexadecimal digits of the SHA-256 over corp, message and path, each with its length (8 bytes, big
/// endian) before it. The same in every run; two files of a message differ by their path.
pub fn media_id(corp_id: &str, msgid: &str, path: &str) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in [corp_id, msgid, path] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    hex(&context.finish().as_ref()[..16])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The short extension under which a file can be kept: from `fileext`, else from the file name, else by the type.
/// `emotion_type` is 1 for gif and 2 for png.
pub(super) fn extension(
    fileext: Option<&str>,
    file_name: Option<&str>,
    media_type: &str,
    emotion_type: Option<u32>,
) -> Option<String> {
    let by_type = || match (media_type, emotion_type) {
        ("image", _) => Some("jpg"),
        ("voice", _) => Some("amr"),
        ("video", _) => Some("mp4"),
        ("emotion", Some(1)) => Some("gif"),
        ("emotion", Some(2)) => Some("png"),
        _ => None,
    };
    let checked = |extension: &str| {
        let fits = (1..=8).contains(&extension.len()) && extension.bytes().all(|byte| byte.is_ascii_alphanumeric());
        fits.then(|| extension.to_ascii_lowercase())
    };
    let of_name = || file_name?.rsplit_once('.').filter(|(stem, _)| !stem.is_empty()).and_then(|(_, end)| checked(end));
    fileext.and_then(checked).or_else(of_name).or_else(|| by_type().map(str::to_owned))
}

/// An md5 as it is compared: 32 hexadecimal digits, lower case. Anything else is none.
pub(super) fn md5sum(declared: Option<&str>) -> Option<String> {
    let declared = declared?;
    let fits = declared.len() == 32 && declared.bytes().all(|byte| byte.is_ascii_hexdigit());
    fits.then(|| declared.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extensions_are_short_and_checked() {
        type Row = (Option<&'static str>, Option<&'static str>, &'static str, Option<u32>, Option<&'static str>);
        let rows: &[Row] = &[
            (Some("PDF"), Some("a.doc"), "file", None, Some("pdf")),
            (Some(""), Some("report.pdf.pdf"), "voip_doc_share", None, Some("pdf")),
            (Some(".pdf"), Some("a.doc"), "file", None, Some("doc")),
            (Some("../../x"), Some("../../etc/passwd"), "file", None, None),
            (Some("p\u{0}f"), Some("a.\u{202e}fdp"), "file", None, None),
            (None, Some(".bashrc"), "file", None, None),
            (None, Some("a.toolongext"), "file", None, None),
            (None, Some("a.７z"), "file", None, None),
            (None, None, "image", None, Some("jpg")),
            (None, None, "voice", None, Some("amr")),
            (None, None, "video", None, Some("mp4")),
            (None, None, "emotion", Some(1), Some("gif")),
            (None, None, "emotion", Some(2), Some("png")),
            (None, None, "emotion", Some(3), None),
            (None, None, "meeting_voice_call", None, None),
        ];
        for (fileext, file_name, media_type, emotion_type, expected) in rows {
            assert_eq!(
                extension(*fileext, *file_name, media_type, *emotion_type).as_deref(),
                *expected,
                "{fileext:?} {file_name:?}"
            );
        }
    }

    #[test]
    fn declared_md5s_are_normalised_or_none() {
        let rows = [
            ("0CC175B9C0F1B6A831C399E269772661", Some("0cc175b9c0f1b6a831c399e269772661")),
            ("", None),
            ("0cc1", None),
            ("g", None),
        ];
        for (declared, expected) in rows {
            assert_eq!(md5sum(Some(declared)).as_deref(), expected);
        }
    }

    #[test]
    fn media_ids_never_change_and_part_boundaries_count() {
        // Computed by another program. Object keys are made of it: it must not change.
        assert_eq!(media_id("ww1", "m1", "/image/sdkfileid"), "887c692ec8255863397eaa79592eb513");
        assert_ne!(media_id("ww1", "m1", "/a"), media_id("ww", "1m1", "/a"));
    }
}
