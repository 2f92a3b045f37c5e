//! What a file really is: told by its first bytes, not by its name.

/// How much of a file's beginning is looked at: enough to tell an Office document from any other ZIP file. A constant, so that
/// the answer does not depend on how the file was cut into chunks.
pub const HEAD_BYTES: usize = 8192;

const EXTENSION_LENGTH_MAX: usize = 8;

/// What infer does not know: voice messages.
const VOICE: [(&[u8], &str, &str); 3] = [
    (b"#!AMR", "audio/amr", "amr"),
    (b"#!SILK_V3", "audio/silk", "silk"),
    // Tencent's dialect.
    (b"\x02#!SILK_V3", "audio/silk", "silk"),
];

/// A media type and the extension that goes with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileType {
    /// `application/octet-stream` where the bytes do not tell.
    pub content_type: &'static str,
    /// Short, lower-case letters and digits, no dot.
    pub extension: String,
}

impl FileType {
    /// The type by the first [`HEAD_BYTES`] of the file; else the extension that the message declares, if it is a harmless
    /// one; else what the message's type usually has; else `bin`.
    pub fn of(head: &[u8], declared_extension: Option<&str>, msgtype: &str) -> Self {
        let head = &head[..head.len().min(HEAD_BYTES)];
        let voice =
            VOICE.iter().find(|(magic, ..)| head.starts_with(magic)).map(|&(_, kind, extension)| (kind, extension));
        if let Some((content_type, extension)) =
            voice.or_else(|| infer::get(head).map(|kind| (kind.mime_type(), kind.extension())))
        {
            return Self { content_type, extension: extension.to_owned() };
        }
        let extension = declared_extension.and_then(harmless).unwrap_or_else(|| usual(msgtype).to_owned());
        Self { content_type: "application/octet-stream", extension }
    }
}

/// The extension in lower case, if it is short and of letters and digits alone.
fn harmless(extension: &str) -> Option<String> {
    let fits = (1..=EXTENSION_LENGTH_MAX).contains(&extension.len());
    (fits && extension.bytes().all(|b| b.is_ascii_alphanumeric())).then(|| extension.to_ascii_lowercase())
}

fn usual(msgtype: &str) -> &'static str {
    match msgtype {
        "image" => "jpg",
        "voice" => "amr",
        "video" => "mp4",
        "emotion" => "gif",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_tell_before_names_do() {
        for (head, declared, msgtype, content_type, extension) in [
            (&b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"[..], Some("exe"), "image", "image/png", "png"),
            (b"\xff\xd8\xff\xe0\0\x10JFIF\0", None, "image", "image/jpeg", "jpg"),
            (b"GIF89a\x01\0\x01\0", Some("png"), "emotion", "image/gif", "gif"),
            (b"#!AMR\n<", None, "voice", "audio/amr", "amr"),
            (b"#!AMR-WB\n<", None, "voice", "audio/amr", "amr"),
            (b"\x02#!SILK_V3\x0c", None, "voice", "audio/silk", "silk"),
            (b"%PDF-1.7\n", Some("pdf.pdf"), "file", "application/pdf", "pdf"),
            (b"name,amount\n", Some("CSV"), "file", "application/octet-stream", "csv"),
            (b"plain", Some("../../x"), "file", "application/octet-stream", "bin"),
            (b"plain", Some("a\0b"), "video", "application/octet-stream", "mp4"),
            (b"plain", Some("verylongextension"), "file", "application/octet-stream", "bin"),
            (b"plain", Some(""), "unheard_of", "application/octet-stream", "bin"),
            (b"", None, "voice", "application/octet-stream", "amr"),
        ] {
            let expected = FileType { content_type, extension: extension.into() };
            assert_eq!(FileType::of(head, declared, msgtype), expected, "{declared:?} {msgtype}");
        }
    }
}
