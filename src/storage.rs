//! Object storage: where media are kept. S3 and all that speak it, Tencent COS, Aliyun OSS, Huawei OBS, Google Cloud Storage,
//! Azure Blob (feature `azblob`), or a local folder.
//!
//! Each request is repeated here when the store says that this can help (a part of a multipart upload too); an error that
//! comes out is final for the object at hand. opendal loses a buffer when a failed write is called again (opendal#7400), so
//! nobody does: a failed [`Upload`] is aborted and its object written anew.
//!
//! A killed process leaves the parts of its multipart uploads behind: give the bucket a lifecycle rule that aborts incomplete
//! uploads. In a local folder they lie in `.uploads`.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::options::WriteOptions;
use opendal::{Configurator, ErrorKind, Operator, services};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use crate::config::{Settings, StorageConfig, StorageType};

/// What is held of a file before it goes to the store, and the size of a part: above every store's minimum (5 MiB), and
/// 10,000 parts make 80 GiB.
pub const PART_BYTES: usize = 8 * 1024 * 1024;

/// How long a request without a body may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one part may take: 8 MiB at 0.7 Mbit/s.
const PART_TIMEOUT: Duration = Duration::from_secs(100);

/// Where unfinished files of a local folder lie.
const UPLOADS_FOLDER: &str = ".uploads";

/// Kept in a URI as they are: what RFC 3986 calls unreserved, and the separator of keys.
const URI_ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Why the store did not do what it was asked. Requests have been repeated before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Settings, the bucket or the rights are wrong. Waiting helps only when somebody changes them.
    #[error("storage {store}: {problem}")]
    Configuration { store: String, problem: String },
    /// The store cannot be reached, is overloaded, full or failing. Waiting can help.
    #[error("storage {store}: {problem}")]
    Unavailable { store: String, problem: String },
    /// What was stored is not what was written. The object has to be written anew.
    #[error("storage {store}: {key} holds {found:?} bytes after {written} were written")]
    Length { store: String, key: String, written: u64, found: Option<u64> },
}

/// A store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    operator: Operator,
    kind: StorageType,
    prefix: String,
    /// The root as a URI, with a slash at its end.
    base_uri: String,
}

impl Store {
    /// Sets up the store; nothing is sent yet. A local folder is made.
    pub fn open(config: &StorageConfig) -> Result<Self, StorageError> {
        if config.kind == StorageType::Fs {
            make_folder(&config.options)?;
        }
        Self::open_read_only(config)
    }

    /// As [`Store::open`], for one that only reads: a local folder has to be there.
    pub fn open_read_only(config: &StorageConfig) -> Result<Self, StorageError> {
        let folder = config.options.get("root").map(Path::new).filter(|_| config.kind == StorageType::Fs);
        if let Some(folder) = folder
            && !folder.is_dir()
        {
            return Err(StorageError::Configuration {
                store: "fs".into(),
                problem: format!("there is no folder {}; check storage.path", folder.display()),
            });
        }
        // Registers the HTTP client once a process; without it every request fails.
        opendal::install_default();
        let options = config.options.clone();
        let timeouts = TimeoutLayer::new().with_timeout(REQUEST_TIMEOUT).with_io_timeout(PART_TIMEOUT);
        let retries = RetryLayer::new().with_jitter().with_min_delay(Duration::from_millis(200)).with_max_times(4);
        let operator = match config.kind {
            StorageType::Fs => local(options),
            StorageType::S3 => remote::<services::S3Config>(config.kind, options),
            StorageType::Cos => remote::<services::CosConfig>(config.kind, options),
            StorageType::Oss => remote::<services::OssConfig>(config.kind, options),
            StorageType::Obs => remote::<services::ObsConfig>(config.kind, options),
            #[cfg(feature = "gcs")]
            StorageType::Gcs => remote::<services::GcsConfig>(config.kind, options),
            #[cfg(feature = "azblob")]
            StorageType::Azblob => remote::<services::AzblobConfig>(config.kind, options),
            #[allow(unreachable_patterns, reason = "which kinds are left depends on the features")]
            other => {
                return Err(StorageError::Configuration {
                    store: other.name().into(),
                    problem: format!(
                        "this build does not have it; build with --features {0}, or take another storage.type",
                        other.name()
                    ),
                });
            }
        }?;
        let operator = match config.kind {
            // A local write that failed half-way must not be made again: bytes would stand there twice.
            StorageType::Fs => operator.layer(timeouts),
            _ => operator.layer(timeouts).layer(retries),
        };
        let info = operator.info();
        let root = info.root();
        let base_uri = match config.kind {
            StorageType::Fs => format!("file://{}/", escaped(root.trim_end_matches('/'))),
            kind => format!("{}://{}/{}", scheme(kind), info.name(), escaped(root.trim_start_matches('/'))),
        };
        Ok(Self { operator, kind: config.kind, prefix: config.prefix.clone(), base_uri })
    }

    /// Stands before every key; can be empty.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How readers find an object: `s3://bucket/key`, `file:///folder/key`.
    pub fn uri(&self, key: &str) -> String {
        format!("{}{}", self.base_uri, escaped(key))
    }

    /// The key of the object that readers find so; `None` if it does not lie in this store.
    pub fn key(&self, uri: &str) -> Option<String> {
        let key = percent_decode_str(uri.strip_prefix(&self.base_uri)?).decode_utf8().ok()?;
        let is_plain = key.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
        is_plain.then(|| key.into_owned())
    }

    /// Writes, reads and deletes a small object, so that a wrong bucket, wrong keys or missing rights are seen at start.
    pub async fn check(&self) -> Result<(), StorageError> {
        const PROBE: &[u8] = b"wecom-connector";
        // Workers that start at the same time must not delete each other's.
        let name = format!(".probe-{}-{:x}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        let key = if self.prefix.is_empty() { name } else { format!("{}/{name}", self.prefix) };
        self.put(&key, PROBE.into(), "text/plain").await?;
        let read = self.get(&key, PROBE.len() as u64).await?;
        self.operator.delete(&key).await.map_err(|error| self.error(&error))?;
        if read.as_deref() != Some(PROBE) {
            return Err(StorageError::Unavailable {
                store: self.base_uri.clone(),
                problem: "what was written cannot be read back".into(),
            });
        }
        Ok(())
    }

    /// Writes a small object in one request. Readers see all of it or nothing.
    pub async fn put(&self, key: &str, bytes: Bytes, content_type: &str) -> Result<(), StorageError> {
        let options = WriteOptions { content_type: self.content_type(content_type), ..WriteOptions::default() };
        self.operator.write_options(key, bytes, options).await.map_err(|error| self.error(&error))?;
        self.make_durable(key).await
    }

    /// Reads an object of at most `bytes_max`; `None` where there is none, or a larger one.
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, StorageError> {
        if self.length(key).await?.is_none_or(|length| length > bytes_max) {
            return Ok(None);
        }
        match self.operator.read(key).await {
            Ok(buffer) => Ok(Some(buffer.to_vec())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// Gives an object's bytes, some at a time, and its length; `None` where there is none.
    pub async fn read(&self, key: &str, mut each: impl FnMut(&[u8])) -> Result<Option<u64>, StorageError> {
        let Some(length) = self.length(key).await? else { return Ok(None) };
        let reader = self.operator.reader(key).await.map_err(|error| self.error(&error))?;
        let mut from = 0;
        while from < length {
            let to = length.min(from + PART_BYTES as u64);
            match reader.read(from..to).await {
                Ok(buffer) => buffer.for_each(|bytes| each(&bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(self.error(&error)),
            }
            from = to;
        }
        Ok(Some(length))
    }

    /// How long an object is; `None` where there is none.
    pub async fn length(&self, key: &str) -> Result<Option<u64>, StorageError> {
        match self.operator.stat(key).await {
            Ok(metadata) => Ok(Some(metadata.content_length())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(&error)),
        }
    }

    /// Starts an object of unknown length. It comes to be, whole, with [`Upload::finish`]; an object that has the key is
    /// replaced then.
    pub async fn upload(&self, key: &str, content_type: &str) -> Result<Upload, StorageError> {
        let options = WriteOptions {
            chunk: Some(PART_BYTES),
            content_type: self.content_type(content_type),
            ..WriteOptions::default()
        };
        let writer = self.operator.writer_options(key, options).await.map_err(|error| self.error(&error))?;
        Ok(Upload { store: self.clone(), key: key.to_owned(), writer, length: 0 })
    }

    fn content_type(&self, content_type: &str) -> Option<String> {
        self.operator.info().capability().write_with_content_type.then(|| content_type.to_owned())
    }

    /// A file's name is on the disk only when its folders are: a lost power must not take what Kafka was told of.
    async fn make_durable(&self, key: &str) -> Result<(), StorageError> {
        if self.kind != StorageType::Fs {
            return Ok(());
        }
        let root = PathBuf::from(self.operator.info().root());
        let key = key.to_owned();
        let synced = tokio::task::spawn_blocking(move || {
            for folder in Path::new(&key).ancestors().skip(1) {
                std::fs::File::open(root.join(folder))?.sync_all()?;
            }
            Ok::<_, std::io::Error>(())
        });
        synced.await.map_err(std::io::Error::other).flatten().map_err(|error| StorageError::Unavailable {
            store: self.base_uri.clone(),
            problem: format!("a folder cannot be written to the disk: {error}"),
        })
    }

    fn error(&self, error: &opendal::Error) -> StorageError {
        StorageError::of(&self.base_uri, error)
    }
}

/// An object being written. It has to be finished or aborted; dropped, it leaves parts behind.
pub struct Upload {
    store: Store,
    key: String,
    writer: opendal::Writer,
    length: u64,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("key", &self.key).field("length", &self.length).finish_non_exhaustive()
    }
}

impl Upload {
    /// Appends. Holds at most two parts; waits while one goes out. Must run to its end: an upload whose `write` was dropped
    /// can no longer be aborted.
    ///
    /// # Errors
    /// Final: the upload can only be aborted.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        let length = bytes.len() as u64;
        self.writer.write(bytes).await.map_err(|error| self.store.error(&error))?;
        self.length += length;
        Ok(())
    }

    /// Makes the object visible and gives its length, which the store has confirmed.
    ///
    /// # Errors
    /// The upload is aborted then. An object of another length may stand there.
    pub async fn finish(mut self) -> Result<u64, StorageError> {
        if let Err(error) = self.writer.close().await {
            let error = self.store.error(&error);
            self.abort().await;
            return Err(error);
        }
        self.store.make_durable(&self.key).await?;
        let found = self.store.length(&self.key).await?;
        if found != Some(self.length) {
            return Err(StorageError::Length {
                store: self.store.base_uri.clone(),
                key: self.key,
                written: self.length,
                found,
            });
        }
        Ok(self.length)
    }

    /// Gives up what was written. A failure of that is only logged: a lifecycle rule clears what is left.
    pub async fn abort(mut self) {
        if let Err(error) = self.writer.abort().await {
            tracing::debug!(key = self.key, kind = %error.kind(), "an upload cannot be aborted");
        }
    }
}

/// The scheme of a kind's URIs: what its own tools use.
fn scheme(kind: StorageType) -> &'static str {
    match kind {
        StorageType::Gcs => "gs",
        other => other.name(),
    }
}

impl StorageError {
    /// Whether waiting can help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        !matches!(self, Self::Configuration { .. })
    }

    fn of(store: &str, error: &opendal::Error) -> Self {
        // Answers of stores hold bucket, key and request id, no secrets; their length is anybody's guess.
        let mut cause: &dyn Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        let mut said = error.message().to_owned();
        if error.source().is_some() {
            said = format!("{said} ({cause})");
        }
        let said: String = said.chars().take(300).collect();
        let (advice, configuration) = match error.kind() {
            ErrorKind::ConfigInvalid => ("the settings are wrong or the bucket is missing; check storage.…", true),
            ErrorKind::NotFound => ("the bucket or folder is missing; make it, or check storage.…", true),
            ErrorKind::PermissionDenied => (
                "access is denied; check the access keys or the folder's rights (reading, writing and deleting are needed), and this \
                 machine's clock: a signature is good for minutes",
                true,
            ),
            ErrorKind::Unsupported => ("the store cannot do this", true),
            // Nothing here asks for an object not to be there: this is a local file where a folder should be.
            ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
                ("a folder and a file are in each other's place; check storage.path and storage.prefix", true)
            }
            ErrorKind::RateLimited => ("the store asks for fewer requests", false),
            _ => ("a request failed; is the endpoint right and can it be reached?", false),
        };
        let problem = format!("{advice}: {said}");
        let store = store.to_owned();
        if configuration { Self::Configuration { store, problem } } else { Self::Unavailable { store, problem } }
    }
}

fn remote<C: Configurator>(kind: StorageType, options: Settings) -> Result<Operator, StorageError> {
    C::from_iter(options.0).and_then(Operator::from_config).map_err(|error| StorageError::of(kind.name(), &error))
}

fn local(options: Settings) -> Result<Operator, StorageError> {
    let refused = |error: opendal::Error| StorageError::of("fs", &error);
    let mut config = services::FsConfig::from_iter(options.0).map_err(refused)?;
    config.atomic_write_dir = config
        .root
        .as_deref()
        .map(|root| Path::new(root).join(UPLOADS_FOLDER))
        .and_then(|folder| folder.to_str().map(str::to_owned));
    Operator::from_config(config).map_err(refused)
}

fn make_folder(options: &Settings) -> Result<(), StorageError> {
    let Some(root) = options.get("root").map(Path::new) else { return Ok(()) };
    std::fs::create_dir_all(root.join(UPLOADS_FOLDER)).map_err(|error| StorageError::Configuration {
        store: "fs".into(),
        problem: format!("the folder {} cannot be made or written: {error}; check storage.path", root.display()),
    })
}

fn escaped(path: &str) -> String {
    utf8_percent_encode(path, URI_ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_errors_tell_whether_waiting_helps() {
        for (kind, words, is_transient) in [
            // opendal's for an answer NoSuchBucket.
            (ErrorKind::ConfigInvalid, "bucket is missing", false),
            (ErrorKind::NotFound, "is missing", false),
            (ErrorKind::PermissionDenied, "access is denied", false),
            (ErrorKind::AlreadyExists, "in each other's place", false),
            (ErrorKind::RateLimited, "fewer requests", true),
            (ErrorKind::Unexpected, "can it be reached", true),
        ] {
            let error = opendal::Error::new(kind, "x".repeat(1000)).set_source(std::io::Error::other("refused"));
            let error = StorageError::of("s3://archive/", &error);
            assert!(error.to_string().contains(words) && error.to_string().len() < 500, "{error}");
            assert_eq!(error.is_transient(), is_transient, "{error}");
        }
    }

    #[test]
    fn uris_name_the_service_the_bucket_and_the_whole_key() {
        let place = |bucket: &str| {
            [(bucket, "archive"), ("endpoint", "https://storage.example"), ("root", "/below/here")]
                .map(|(k, v)| (k.into(), v.into()))
        };
        for (kind, bucket, uri) in [
            (StorageType::S3, "bucket", Some("s3://archive/below/here/k")),
            (StorageType::Cos, "bucket", Some("cos://archive/below/here/k")),
            (StorageType::Oss, "bucket", Some("oss://archive/below/here/k")),
            (StorageType::Obs, "bucket", Some("obs://archive/below/here/k")),
            (StorageType::Gcs, "bucket", cfg!(feature = "gcs").then_some("gs://archive/below/here/k")),
            (StorageType::Azblob, "container", cfg!(feature = "azblob").then_some("azblob://archive/below/here/k")),
        ] {
            let mut options: Settings = place(bucket).into_iter().collect();
            if kind == StorageType::S3 {
                options.0.insert("region".into(), "us-east-1".into());
            }
            let result = Store::open(&StorageConfig { kind, prefix: String::new(), options });
            match (result, uri) {
                (Ok(store), Some(uri)) => {
                    assert_eq!(store.uri("k"), uri);
                    assert_eq!(store.key(uri).as_deref(), Some("k"));
                    let odd = "a b/100%/名.jpg";
                    assert_eq!(store.key(&store.uri(odd)).as_deref(), Some(odd));
                    for elsewhere in ["k", "s3://other/k", &uri.replace("/k", "/../k"), &uri.replace("/k", "/")] {
                        assert_eq!(store.key(elsewhere), None, "{elsewhere}");
                    }
                }
                (Err(error), None) => assert!(error.to_string().contains("--features"), "{error}"),
                (result, _) => panic!("{kind:?}: {result:?}"),
            }
        }
    }
}
