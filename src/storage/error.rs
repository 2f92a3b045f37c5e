//! Why a store did not do what it was asked, in words that say what to change.

use std::error::Error;
use std::io;

use opendal::ErrorKind;

/// Why the store did not do what it was asked. Requests have been repeated before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Settings, the bucket or the rights are wrong, or the store refuses this object. Waiting helps only when somebody
    /// changes something.
    #[error("storage {store}: {problem}")]
    Configuration { store: String, problem: String },
    /// The store cannot be reached, is overloaded, full or failing. Waiting can help.
    #[error("storage {store}: {problem}")]
    Unavailable { store: String, problem: String },
    /// What was stored is not what was written. The object has to be written anew.
    #[error("storage {store}: {key} holds {found:?} bytes after {written} were written")]
    Length { store: String, key: String, written: u64, found: Option<u64> },
}

/// What was asked of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    Open,
    Look,
    Read,
    Write,
}

impl Asked {
    /// What the store's rights have to allow.
    fn right(self) -> &'static str {
        match self {
            Self::Open => "open the store",
            Self::Look => "look whether an object is there (s3:GetObject, s3:ListBucket)",
            Self::Read => "read an object (s3:GetObject)",
            Self::Write => "write an object (s3:PutObject)",
        }
    }
}

impl StorageError {
    /// Whether waiting can help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Configuration { .. })
    }

    pub(super) fn configuration(store: &str, problem: impl Into<String>) -> Self {
        Self::Configuration { store: store.to_owned(), problem: problem.into() }
    }

    pub(super) fn unavailable(store: &str, problem: impl Into<String>) -> Self {
        Self::Unavailable { store: store.to_owned(), problem: problem.into() }
    }

    pub(super) fn of(store: &str, asked: Asked, error: &opendal::Error) -> Self {
        // Answers of stores hold bucket, key and request id, no secrets; their length is anybody's guess.
        let mut cause: &dyn Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let of_disk = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        let mut said = error.message().to_owned();
        if error.source().is_some() {
            said = format!("{said} ({cause})");
        }
        let said: String = said.chars().take(300).collect();
        let (advice, is_configuration) = match error.kind() {
            ErrorKind::ConfigInvalid => ("the settings are wrong or the bucket is missing; check storage.…".to_owned(), true),
            ErrorKind::NotFound => ("the bucket or folder is missing; make it, or check storage.…".to_owned(), true),
            ErrorKind::PermissionDenied => {
                let right = asked.right();
                let advice = format!(
                    "access is denied as it was to {right}; check the access keys and their rights, or the folder's, and this \
                     machine's clock: a signature is good for minutes"
                );
                (advice, true)
            }
            ErrorKind::Unsupported => ("the store cannot do this".to_owned(), true),
            // Nothing here asks for an object not to be there: this is a local file where a folder should be.
            ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                ("a folder and a file are in each other's place; check storage.path and storage.prefix".to_owned(), true)
            }
            ErrorKind::RateLimited => ("the store asks for fewer requests".to_owned(), false),
            _ => match of_disk {
                Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge) => {
                    ("there is no room left; make room".to_owned(), false)
                }
                Some(io::ErrorKind::ReadOnlyFilesystem) => ("it can only be read; make it writable".to_owned(), true),
                _ if store.starts_with("file:") => ("the folder cannot be used".to_owned(), false),
                _ if is_refusal(error) => {
                    (format!("it was asked to {} and refuses; what it says has to be changed", asked.right()), true)
                }
                _ if said.contains("certificate") => {
                    ("its certificate is not trusted; name the one who signed it in storage.ca.file".to_owned(), true)
                }
                _ if error.source().is_some() => (
                    "a request failed; is the endpoint right and can it be reached? A proxy of the environment (https_proxy, \
                     http_proxy) counts unless no_proxy excepts the endpoint"
                        .to_owned(),
                    false,
                ),
                _ => ("it fails, or does not answer in time".to_owned(), false),
            },
        };
        let problem = format!("{advice}: {said}");
        if is_configuration { Self::configuration(store, problem) } else { Self::unavailable(store, problem) }
    }
}

/// Whether the store has answered that it will not do this, and would answer so again.
fn is_refusal(error: &opendal::Error) -> bool {
    match status(error) {
        Some(408 | 425 | 429 | 499) => false,
        Some(status) => matches!(status, 300..=499 | 501 | 505),
        None => error.is_permanent() && error.source().is_none(),
    }
}

/// The HTTP status of the store's answer. opendal tells it in the error's text alone, and of a write that failed it
/// does not tell whether it was worth repeating.
fn status(error: &opendal::Error) -> Option<u16> {
    let text = error.to_string();
    let (_, answer) = text.split_once("response: Parts { status: ")?;
    answer.get(..3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_errors_tell_whether_waiting_helps() {
        let (full, refused) = (io::ErrorKind::StorageFull, io::ErrorKind::ConnectionRefused);
        let (bucket, folder) = ("s3://archive/ at http://host", "file:///media/");
        // Store, kind, the answer's status, what lies beneath, what is said, whether waiting helps.
        for (store, kind, status, source, words, is_transient) in [
            // opendal's for an answer NoSuchBucket.
            (bucket, ErrorKind::ConfigInvalid, 404, None, "bucket is missing", false),
            (bucket, ErrorKind::NotFound, 404, None, "is missing", false),
            (bucket, ErrorKind::PermissionDenied, 403, None, "access is denied as it was to write", false),
            (bucket, ErrorKind::RateLimited, 503, None, "fewer requests", true),
            (bucket, ErrorKind::Unexpected, 0, Some(refused), "http://host: a request failed", true),
            (bucket, ErrorKind::Unexpected, 0, None, "does not answer in time", true),
            (bucket, ErrorKind::Unexpected, 500, None, "it fails", true),
            (bucket, ErrorKind::Unexpected, 408, None, "it fails", true),
            (bucket, ErrorKind::Unexpected, 400, None, "and refuses", false),
            (bucket, ErrorKind::Unexpected, 301, None, "and refuses", false),
            (bucket, ErrorKind::Unexpected, 501, None, "and refuses", false),
            (bucket, ErrorKind::Conflict, 409, None, "and refuses", false),
            (folder, ErrorKind::AlreadyExists, 0, None, "in each other's place", false),
            (folder, ErrorKind::Unexpected, 0, Some(full), "no room left", true),
            (folder, ErrorKind::Unexpected, 0, Some(io::ErrorKind::Other), "folder cannot be used", true),
        ] {
            let mut error = opendal::Error::new(kind, "x".repeat(1000)).set_persistent();
            if status > 0 {
                error = error.with_context("response", format!("Parts {{ status: {status}, version: HTTP/1.1 }}"));
            }
            if let Some(source) = source {
                error = error.set_source(io::Error::from(source));
            }
            let error = StorageError::of(store, Asked::Write, &error);
            assert!(error.to_string().contains(words) && error.to_string().len() < 700, "{words}: {error}");
            assert_eq!(error.is_transient(), is_transient, "{error}");
            assert!(store == bucket || !error.to_string().contains("endpoint"), "{error}");
        }
    }
}
