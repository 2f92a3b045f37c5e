//! Object storage: where media are kept. S3 and all that speak it, Tencent COS, Aliyun OSS, Huawei OBS, Google Cloud Storage,
//! Azure Blob (feature `azblob`), or a local folder.
//!
//! Each request is repeated here when the store says that this can help (a part of a multipart upload too); an error that
//! comes out is final for the object at hand. opendal loses a buffer when a failed write is called again (opendal#7400), so
//! nobody does: a failed [`Upload`] is aborted and its object written anew.
//!
//! Nothing here needs the rights to delete or to list, and nothing that stands is needed to be written over.
//!
//! A killed process leaves the parts of its multipart uploads behind: give the bucket a lifecycle rule that aborts incomplete
//! uploads. In a local folder they lie in `.uploads`.

mod error;
mod folder;
mod probe;
mod transport;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opendal::layers::{RetryLayer, TimeoutLayer};
use opendal::options::WriteOptions;
use opendal::{Configurator, ErrorKind, Operator, services};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use self::error::Asked;
pub use self::error::StorageError;
use self::folder::Folder;
use crate::config::{Settings, StorageConfig, StorageType};

/// What is held of a file before it goes to the store, and the size of a part: above every store's minimum (5 MiB), and
/// 10,000 parts make 80 GiB.
pub const PART_BYTES: usize = 8 * 1024 * 1024;

/// How long a request without a body may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// How long one part may take: 8 MiB at 0.7 Mbit/s.
const PART_TIMEOUT: Duration = Duration::from_secs(100);

/// What a write has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Placed {
    New,
    /// There is such an object, by the store's own word.
    There,
    /// The store refuses to write, and the same bytes stand there.
    Kept,
}

/// Kept in a URI as they are: what RFC 3986 calls unreserved, and the separator of keys.
const URI_ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    operator: Operator,
    prefix: String,
    /// The root as a URI, with a slash at its end.
    base_uri: String,
    /// How errors call it: the root, and the endpoint.
    name: Arc<str>,
    /// For a local folder.
    folder: Option<Folder>,
}

/// An object that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Bytes.
    pub length: u64,
    /// When it was written, in ms since 1970, by the store's clock; none where the store does not tell.
    pub modified_ms: Option<i64>,
}

impl Store {
    /// Sets up the store; nothing is sent yet. A local folder is made.
    pub fn open(config: &StorageConfig) -> Result<Self, StorageError> {
        if let Some(root) = root(config) {
            Folder::make(root, config.file_mode)?;
        }
        Self::set_up(config)
    }

    /// As [`Store::open`], for one that only reads: a local folder has to be there.
    pub fn open_read_only(config: &StorageConfig) -> Result<Self, StorageError> {
        if let Some(folder) = root(config).filter(|folder| !folder.is_dir()) {
            let problem = format!("there is no folder {}; check storage.path", folder.display());
            return Err(StorageError::configuration("fs", problem));
        }
        Self::set_up(config)
    }

    /// Whether the configuration makes a store. Nothing is made or sent.
    pub fn examine(config: &StorageConfig) -> Result<(), StorageError> {
        Self::set_up(config).map(|_| ())
    }

    /// Whether the store can be used, by [`Store::check`]. What is made for it is taken away again, as far as the store
    /// lets.
    pub async fn try_out(config: &StorageConfig) -> Result<(), StorageError> {
        let folders = root(config).map(|root| [Folder::uploads(root), root.join(&config.prefix)]);
        let folders = folders.iter().flatten().flat_map(|folder| folder.ancestors());
        let mut missing: Vec<&Path> =
            folders.filter(|folder| !folder.as_os_str().is_empty() && !folder.exists()).collect();
        let store = Self::open(config);
        let probed = match &store {
            Ok(store) => store.probe(false).await,
            Err(error) => Err(error.clone()),
        };
        if let (Ok(store), Ok(true)) = (&store, &probed) {
            let _ = store.operator.delete(&store.probe_key()).await;
        }
        // The innermost first.
        missing.sort_by_key(|folder| std::cmp::Reverse(folder.components().count()));
        for folder in missing {
            let _ = std::fs::remove_dir(folder);
        }
        probed.map(|_| ())
    }

    fn set_up(config: &StorageConfig) -> Result<Self, StorageError> {
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
                let problem = format!(
                    "this build does not have it; build with --features {0}, or take another storage.type",
                    other.name()
                );
                return Err(StorageError::configuration(other.name(), problem));
            }
        }?;
        let operator = match config.kind {
            // A local write that failed half-way must not be made again: bytes would stand there twice.
            StorageType::Fs => operator.layer(timeouts),
            _ => operator.layer(timeouts).layer(retries),
        };
        let operator = match &config.ca_file {
            Some(file) => {
                let context = operator.context().with_http_transport(transport::trusting(file)?);
                operator.with_context(context)
            }
            None => operator,
        };
        let info = operator.info();
        let root = info.root();
        let base_uri = match config.kind {
            StorageType::Fs => format!("file://{}/", escaped(root.trim_end_matches('/'))),
            kind => format!("{}://{}/{}", scheme(kind), info.name(), escaped(root.trim_start_matches('/'))),
        };
        let name = match config.options.get("endpoint") {
            // A password may stand before an @.
            Some(endpoint) if !endpoint.contains('@') => format!("{base_uri} at {endpoint}").into(),
            _ => base_uri.as_str().into(),
        };
        let folder = (config.kind == StorageType::Fs).then(|| Folder::new(PathBuf::from(root), config.file_mode));
        Ok(Self { operator, prefix: config.prefix.clone(), base_uri, name, folder })
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

    /// Writes a small object in one request. Readers see all of it or nothing.
    ///
    /// Where the store refuses and the same bytes stand there already, all is well: a repeat, and the store keeps what
    /// it has.
    pub async fn put(&self, key: &str, bytes: Bytes, content_type: &str) -> Result<(), StorageError> {
        self.place(key, bytes, content_type).await.map(|_| ())
    }

    /// See [`Store::put`].
    async fn place(&self, key: &str, bytes: Bytes, content_type: &str) -> Result<Placed, StorageError> {
        let options = WriteOptions { content_type: self.content_type(content_type), ..WriteOptions::default() };
        let placed = match self.write(key, bytes.clone(), options).await {
            Ok(()) => Placed::New,
            Err(error) => {
                let error = self.error(Asked::Write, &error);
                let is_there =
                    !error.is_transient() && self.get(key, bytes.len() as u64).await == Ok(Some(bytes.to_vec()));
                if !is_there {
                    return Err(error);
                }
                Placed::Kept
            }
        };
        self.settle(key).await.map(|()| placed)
    }

    /// As [`Store::put`] where there is no such object. Stores that do not know this condition write over what is there.
    async fn put_new(&self, key: &str, bytes: Bytes, content_type: &str) -> Result<Placed, StorageError> {
        if self.operator.info().capability().write_with_if_not_exists {
            let content_type = self.content_type(content_type);
            let options = WriteOptions { content_type, if_not_exists: true, ..WriteOptions::default() };
            match self.write(key, bytes.clone(), options).await {
                Ok(()) => return self.settle(key).await.map(|()| Placed::New),
                Err(error) if error.kind() == ErrorKind::ConditionNotMatch => return Ok(Placed::There),
                Err(error) => {
                    let error = self.error(Asked::Write, &error);
                    if error.is_transient() {
                        return Err(error);
                    }
                    tracing::debug!(%error, "the store does not write an object under a condition");
                }
            }
        }
        self.place(key, bytes, content_type).await
    }

    async fn write(&self, key: &str, bytes: Bytes, options: WriteOptions) -> opendal::Result<()> {
        self.prepare(key).await?;
        self.operator.write_options(key, bytes, options).await.map(|_| ())
    }

    /// Reads an object of at most `bytes_max`; `None` where there is none, or a larger one.
    pub async fn get(&self, key: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, StorageError> {
        if self.length(key).await?.is_none_or(|length| length > bytes_max) {
            return Ok(None);
        }
        match self.operator.read(key).await {
            Ok(buffer) => Ok(Some(buffer.to_vec())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(Asked::Read, &error)),
        }
    }

    /// Gives an object's bytes, some at a time, and its length; `None` where there is none.
    pub async fn read(&self, key: &str, mut each: impl FnMut(&[u8])) -> Result<Option<u64>, StorageError> {
        let Some(length) = self.length(key).await? else { return Ok(None) };
        let reader = self.operator.reader(key).await.map_err(|error| self.error(Asked::Read, &error))?;
        let mut from = 0;
        while from < length {
            let to = length.min(from + PART_BYTES as u64);
            match reader.read(from..to).await {
                Ok(buffer) => buffer.for_each(|bytes| each(&bytes)),
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(self.error(Asked::Read, &error)),
            }
            from = to;
        }
        Ok(Some(length))
    }

    /// How long an object is; `None` where there is none.
    pub async fn length(&self, key: &str) -> Result<Option<u64>, StorageError> {
        Ok(self.look(key).await?.map(|found| found.length))
    }

    /// What is known of an object without reading it; `None` where there is none.
    ///
    /// # Errors
    /// Also where there is none and the right to list is missing: S3 then answers as for an object that must not be
    /// read.
    pub async fn look(&self, key: &str) -> Result<Option<Found>, StorageError> {
        match self.operator.stat(key).await {
            Ok(metadata) => {
                let modified_ms = metadata.last_modified().map(|time| time.into_inner().as_millisecond());
                Ok(Some(Found { length: metadata.content_length(), modified_ms }))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.error(Asked::Look, &error)),
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
        let refused = |error: opendal::Error| self.error(Asked::Write, &error);
        self.prepare(key).await.map_err(refused)?;
        let writer = self.operator.writer_options(key, options).await.map_err(refused)?;
        Ok(Upload { store: self.clone(), key: key.to_owned(), writer, length: 0 })
    }

    fn content_type(&self, content_type: &str) -> Option<String> {
        self.operator.info().capability().write_with_content_type.then(|| content_type.to_owned())
    }

    /// Makes the folders that a local file will lie in.
    async fn prepare(&self, key: &str) -> opendal::Result<()> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let key = key.to_owned();
        on_disk(move || folder.prepare(&key)).await.map_err(|error| {
            let kind = match error.kind() {
                std::io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
                std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::NotADirectory => ErrorKind::NotADirectory,
                _ => ErrorKind::Unexpected,
            };
            opendal::Error::new(kind, "a folder cannot be made").set_source(error)
        })
    }

    /// Gives a local file that has come its mode, and brings its name to the disk.
    async fn settle(&self, key: &str) -> Result<(), StorageError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let key = key.to_owned();
        on_disk(move || folder.settle(&key)).await.map_err(|error| {
            StorageError::unavailable(&self.name, format!("a folder cannot be written to the disk: {error}"))
        })
    }

    fn error(&self, asked: Asked, error: &opendal::Error) -> StorageError {
        StorageError::of(&self.name, asked, error)
    }
}

/// Work of the file system, which would hold up the runtime.
async fn on_disk(work: impl FnOnce() -> std::io::Result<()> + Send + 'static) -> std::io::Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).flatten()
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
        self.writer.write(bytes).await.map_err(|error| self.store.error(Asked::Write, &error))?;
        self.length += length;
        Ok(())
    }

    /// Makes the object visible and gives its length, which the store has confirmed.
    ///
    /// # Errors
    /// The upload is aborted then. An object of another length may stand there.
    pub async fn finish(mut self) -> Result<u64, StorageError> {
        if let Err(error) = self.writer.close().await {
            let error = self.store.error(Asked::Write, &error);
            self.abort().await;
            return Err(error);
        }
        self.store.settle(&self.key).await?;
        let found = self.store.length(&self.key).await?;
        if found != Some(self.length) {
            return Err(StorageError::Length {
                store: self.store.name.to_string(),
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

/// The folder of a local store.
fn root(config: &StorageConfig) -> Option<&Path> {
    config.options.get("root").map(Path::new).filter(|_| config.kind == StorageType::Fs)
}

fn remote<C: Configurator>(kind: StorageType, options: Settings) -> Result<Operator, StorageError> {
    let refused = |error: opendal::Error| StorageError::of(kind.name(), Asked::Open, &error);
    C::from_iter(options.0).and_then(Operator::from_config).map_err(refused)
}

fn local(options: Settings) -> Result<Operator, StorageError> {
    let refused = |error: opendal::Error| StorageError::of("fs", Asked::Open, &error);
    let mut config = services::FsConfig::from_iter(options.0).map_err(refused)?;
    config.atomic_write_dir = config
        .root
        .as_deref()
        .map(|root| Folder::uploads(Path::new(root)))
        .and_then(|folder| folder.to_str().map(str::to_owned));
    Operator::from_config(config).map_err(refused)
}

fn escaped(path: &str) -> String {
    utf8_percent_encode(path, URI_ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            let result = Store::open(&StorageConfig { kind, options, ..StorageConfig::default() });
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
