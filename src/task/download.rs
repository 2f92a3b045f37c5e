//! One file: from WeCom, chunk by chunk, into the store, its hashes taken on the way.
//!
//! At any time at most one chunk (512 KiB) and two parts of an upload (16 MiB) of a file are held, whatever its size.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use backon::{ExponentialBuilder, Retryable};
use bytes::Bytes;
use md5::{Digest, Md5};
use tokio_util::sync::CancellationToken;

use super::content_index::{self, StoredContent};
use super::disposition::{self, Disposition as Kind};
use super::file_type::{FileType, HEAD_BYTES};
use super::object_key;
use crate::crash_point;
use crate::metrics::ConnectorMetrics;
use crate::sdk::{MediaChunk, SdkClient, SdkError, code};
use crate::storage::{PART_BYTES, StorageError, Store};

/// The error code of the API behind 10010 (doc 91774): no such file, or no longer.
const FILE_EXPIRED: i32 = 301_048;

/// The library asks for so many bytes of a file at once (measured), enciphered ones.
const CHUNK_BYTES_MAX: u64 = 512 * 1024;

/// What enciphering adds to a file (measured: PKCS#7 with blocks of 16 bytes).
const PADDING_BYTES_MAX: u64 = 16;

/// Chunks without a byte in a row, each under a new index, before a file is taken not to end.
const EMPTY_CHUNKS_MAX: u32 = 64;

/// The parts of a multipart upload are numbered up to this, in every store.
const PARTS_MAX: u64 = 10_000;

/// The reason of a file that the store did not take.
pub const STORAGE_REASON: &str = "storage";

/// Pauses between tries of one chunk.
const CHUNK_BACKOFF: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(250))
    .with_max_delay(Duration::from_secs(8))
    .with_max_times(5)
    .with_jitter();

/// Where files come from.
pub trait ChunkSource: Send + Sync {
    /// The chunk under `index`; the first one's is empty.
    fn chunk(&self, sdkfileid: &str, index: &[u8]) -> impl Future<Output = Result<MediaChunk, SdkError>> + Send;
}

impl ChunkSource for SdkClient {
    async fn chunk(&self, sdkfileid: &str, index: &[u8]) -> Result<MediaChunk, SdkError> {
        self.get_media_data(sdkfileid, index).await
    }
}

/// What is known of a file before it is fetched.
#[derive(Debug, Clone, Copy)]
pub struct FileRequest<'a> {
    pub media_id: &'a str,
    pub sdkfileid: &'a str,
    pub msgtype: &'a str,
    /// As the message has it, also empty or nonsense.
    pub declared_md5: Option<&'a str>,
    pub declared_size: Option<u64>,
    pub declared_extension: Option<&'a str>,
    /// The day it is filed under, in milliseconds since the epoch.
    pub dated_ms: i64,
    /// The present time, in milliseconds since the epoch.
    pub now_ms: i64,
}

impl FileRequest<'_> {
    /// Whether bytes of another MD5 than the declared one are the file all the same. WeCom's clients declare one for
    /// emoticons that no file ever has.
    fn is_it_despite_md5(&self, content: &StoredContent) -> bool {
        self.msgtype == "emotion"
            && self.declared_size == Some(content.size)
            && content.content_type.starts_with("image/")
    }
}

/// A file in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    pub uri: String,
    pub content: StoredContent,
    /// Whether the MD5 is the one that the message declares. False also where it declares none.
    pub is_verified: bool,
    /// Whether the content was in the store before, and was not fetched again.
    pub is_reused: bool,
}

/// Why a file that came is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mismatch {
    Md5,
    Size,
    /// The message declares neither, WeCom's own word of the length is not known, and the last part is as long as a
    /// part can be: the library takes any part for the last one whose head it cannot read (measured).
    End,
}

/// What a failed download calls for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// WeCom has it no longer.
    Expired,
    /// No try will ever help.
    Fail,
    /// A few more tries, some time apart; then it has failed.
    FewTries,
    /// Again, some time later, until the file's deadline.
    Retry,
    /// Not the file's doing: nothing else will fare better until it passes.
    Wait,
    /// The download was called off.
    Stopped,
}

#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error("WeCom no longer has the file (GetMediaData answered {0})")]
    Expired(i32),
    #[error("the file id is refused (GetMediaData answered {0})")]
    Refused(i32),
    #[error("the file cannot be decrypted (GetMediaData answered {0})")]
    Undecryptable(i32),
    /// Confirmed: a fresh SDK host, alone with this chunk, was lost as well.
    #[error("{0}")]
    Crash(SdkError),
    /// One chunk, asked for several times.
    #[error("a chunk cannot be had: {0}")]
    Chunk(SdkError),
    /// The library announces an end that is none, by what WeCom says of the file's length.
    #[error("the library ends the file after {bytes} bytes, and WeCom says that it has {file_bytes} with its padding")]
    Short { bytes: u64, file_bytes: u64 },
    #[error("the file does not end: chunks repeat, stay empty or exceed what a store can hold")]
    Endless,
    /// The bytes that came are kept, as evidence.
    #[error("{}", match mismatch {
        Mismatch::Md5 => "the stored file is not the declared one: its MD5 differs",
        Mismatch::Size => "the stored file is not the declared one: its size differs",
        Mismatch::End => "nothing tells whether the stored file is whole: its message declares neither MD5 nor size",
    })]
    Mismatch { mismatch: Mismatch, file: Box<StoredFile> },
    /// Somebody has to change something, or WeCom counts calls: a sentence that says so.
    #[error("{reason}")]
    Sdk { reason: String, pause_min: Duration },
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("the download was called off")]
    Stopped,
}

impl DownloadError {
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Expired(_) => Disposition::Expired,
            Self::Refused(_) => Disposition::Fail,
            Self::Undecryptable(_) | Self::Crash(_) | Self::Short { .. } | Self::Endless | Self::Mismatch { .. } => {
                Disposition::FewTries
            }
            Self::Chunk(_) | Self::Storage(StorageError::Length { .. }) => Disposition::Retry,
            Self::Sdk { .. } | Self::Storage(_) => Disposition::Wait,
            Self::Stopped => Disposition::Stopped,
        }
    }

    /// The reason in a word, for reference events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Expired(_) => "expired",
            Self::Refused(_) => "refused",
            Self::Undecryptable(_) => "undecryptable",
            Self::Crash(_) => "sdk_crash",
            Self::Chunk(_) => "unreachable",
            Self::Short { .. } => "short",
            Self::Endless => "endless",
            Self::Mismatch { mismatch: Mismatch::Md5, .. } => "md5_mismatch",
            Self::Mismatch { mismatch: Mismatch::Size, .. } => "size_mismatch",
            Self::Mismatch { mismatch: Mismatch::End, .. } => "end_unknown",
            Self::Sdk { .. } => "sdk",
            Self::Storage(_) => STORAGE_REASON,
            Self::Stopped => "stopped",
        }
    }

    /// How long nothing is to be asked for after it, at least.
    pub fn pause_min(&self) -> Duration {
        match self {
            Self::Sdk { pause_min, .. } => *pause_min,
            _ => Duration::ZERO,
        }
    }

    /// A failed chunk, after its tries.
    fn of(error: SdkError, corp_id: &str) -> Self {
        match &error {
            SdkError::Code { code: code @ (code::EXPIRED | FILE_EXPIRED), .. } => return Self::Expired(*code),
            SdkError::Code { code: code @ (code::BAD_FILE_ID | code::BAD_ARGUMENT), .. } => {
                return Self::Refused(*code);
            }
            SdkError::Code { code: code @ code::DECRYPTION, .. } => return Self::Undecryptable(*code),
            SdkError::Crash { .. } => return Self::Crash(error),
            SdkError::Unavailable(reason) | SdkError::Configuration(reason) => {
                return Self::Sdk { reason: format!("the SDK cannot be used: {reason}"), pause_min: Duration::ZERO };
            }
            SdkError::Code { .. } => {}
        }
        // What is not the file's doing is not held against it.
        match disposition::of_sdk_error(&error, corp_id) {
            Kind::Reconfigure(reason) => Self::Sdk { reason, pause_min: Duration::ZERO },
            Kind::Wait(reason) => Self::Sdk { reason, pause_min: disposition::RATE_PAUSE },
            Kind::Retry(_) | Kind::Renew(_) | Kind::ShrinkPage => Self::Chunk(error),
        }
    }
}

/// Brings files of one corp to a store. Cheap to clone where the source is.
#[derive(Debug, Clone)]
pub struct Downloader<S> {
    source: S,
    store: Store,
    corp_id: String,
    /// Age from which a stored object is not referred to again; none where each file is stored by itself.
    deduplicate_age_max_ms: Option<u64>,
    metrics: Arc<ConnectorMetrics>,
    chunk_backoff: ExponentialBuilder,
}

impl<S: ChunkSource> Downloader<S> {
    /// `deduplicate_age_max_ms`: see [`crate::config::ConnectorConfig::media_deduplicate_age_max_ms`].
    pub fn new(
        source: S,
        store: Store,
        corp_id: impl Into<String>,
        deduplicate_age_max_ms: Option<u64>,
        metrics: Arc<ConnectorMetrics>,
    ) -> Self {
        let corp_id = corp_id.into();
        Self { source, store, corp_id, deduplicate_age_max_ms, metrics, chunk_backoff: CHUNK_BACKOFF }
    }

    /// Stores one file and verifies it. The same file gives the same object each time.
    ///
    /// An MD5 that matches proves the content, also where the declared size differs (it is a `uint32` in most messages). Once
    /// `stop` is cancelled the upload is aborted, at the latest when the part in hand is written. Not to be dropped
    /// half-way: parts would be left in the store.
    pub async fn download(
        &self,
        file: &FileRequest<'_>,
        stop: &CancellationToken,
    ) -> Result<StoredFile, DownloadError> {
        let declared_md5 = file.declared_md5.and_then(valid_md5);
        let declared_size = file.declared_size.filter(|&size| size > 0);
        if let (Some(md5), Some(size), Some(age_max_ms)) = (&declared_md5, declared_size, self.deduplicate_age_max_ms)
            && let oldest_ms = file.now_ms.saturating_sub_unsigned(age_max_ms)
            && let Some(content) = content_index::find(&self.store, &self.corp_id, md5, size, oldest_ms).await?
        {
            return Ok(StoredFile { uri: self.store.uri(&content.key), content, is_verified: true, is_reused: true });
        }
        let _in_flight = self.metrics.media_started();
        let started = Instant::now();
        let (content, end) = self.fetch(file, stop).await?;
        self.metrics.media_fetch_seconds.observe(started.elapsed().as_secs_f64());
        let (is_verified, mismatch) = match (declared_md5, declared_size) {
            (Some(md5), _) if md5 == content.md5 => (true, None),
            (Some(_), _) if file.is_it_despite_md5(&content) => (false, None),
            (Some(_), _) => (false, Some(Mismatch::Md5)),
            (None, Some(size)) if size != content.size => (false, Some(Mismatch::Size)),
            (None, None) if end == End::Unknown => (false, Some(Mismatch::End)),
            (None, _) => (false, None),
        };
        if is_verified && self.deduplicate_age_max_ms.is_some() {
            // Only these: bytes that nothing proves may yet be replaced under their key by those of another try.
            content_index::add(&self.store, &self.corp_id, &content).await;
        }
        let stored = StoredFile { uri: self.store.uri(&content.key), content, is_verified, is_reused: false };
        match mismatch {
            Some(mismatch) => Err(DownloadError::Mismatch { mismatch, file: Box::new(stored) }),
            None => Ok(stored),
        }
    }

    async fn fetch(
        &self,
        file: &FileRequest<'_>,
        stop: &CancellationToken,
    ) -> Result<(StoredContent, End), DownloadError> {
        let mut chunks = Chunks::new(self, file.sdkfileid, stop);
        let mut head = Vec::new();
        while head.len() < HEAD_BYTES {
            match chunks.next().await? {
                Some(data) if head.is_empty() => head = data,
                Some(data) => head.extend_from_slice(&data),
                None => break,
            }
        }
        let file_type = FileType::of(&head, file.declared_extension, file.msgtype);
        let key = object_key::of_media(
            self.store.prefix(),
            &self.corp_id,
            file.dated_ms,
            file.media_id,
            &file_type.extension,
        );
        let mut upload = self.store.upload(&key, file_type.content_type).await?;
        let mut hashes = Hashes::default();
        let mut data = Some(head);
        let streamed = async {
            while let Some(bytes) = data.take() {
                hashes.update(&bytes);
                upload.write(Bytes::from(bytes)).await?;
                data = chunks.next().await?;
                crash_point::reach("chunk_written");
            }
            Ok(())
        }
        .await;
        if let Err(error) = streamed {
            upload.abort().await;
            return Err(error);
        }
        crash_point::reach("upload_written");
        let (md5, sha256) = hashes.finish();
        let size = match upload.finish().await {
            Ok(size) => size,
            // A store that keeps what it has refuses the object that an earlier try has written.
            Err(error) if !error.is_transient() && self.sha256_of(&key).await.as_ref() == Some(&sha256) => chunks.bytes,
            Err(error) => return Err(error.into()),
        };
        crash_point::reach("upload_done");
        let content = StoredContent { key, size, md5, sha256, content_type: file_type.content_type.to_owned() };
        Ok((content, chunks.end))
    }

    /// Of the object that is there, if it can be read.
    async fn sha256_of(&self, key: &str) -> Option<String> {
        let mut hashes = Hashes::default();
        self.store.read(key, |bytes| hashes.update(bytes)).await.ok()??;
        Some(hashes.finish().1)
    }
}

/// What a file's last chunk says of its end, by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Known,
    /// It could as well be a chunk from the file's middle.
    Unknown,
}

/// The chunks of one file, in order.
struct Chunks<'a, S> {
    downloader: &'a Downloader<S>,
    sdkfileid: &'a str,
    stop: &'a CancellationToken,
    index: Vec<u8>,
    is_finished: bool,
    bytes: u64,
    end: End,
    loops: LoopDetector,
}

impl<'a, S: ChunkSource> Chunks<'a, S> {
    fn new(downloader: &'a Downloader<S>, sdkfileid: &'a str, stop: &'a CancellationToken) -> Self {
        let loops = LoopDetector { anchor: Vec::new(), steps: 0, steps_max: 1 };
        Self { downloader, sdkfileid, stop, index: Vec::new(), is_finished: false, bytes: 0, end: End::Known, loops }
    }

    /// The next bytes, never none of them; `None` after the last.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, DownloadError> {
        let mut empty_chunks = 0;
        while !self.is_finished {
            let chunk = self.chunk().await?;
            self.is_finished = chunk.is_finish;
            self.bytes += chunk.data.len() as u64;
            self.downloader.metrics.media_bytes.inc_by(chunk.data.len() as u64);
            if self.bytes > PARTS_MAX * PART_BYTES as u64 || (!chunk.is_finish && self.loops.sees(&chunk.next_index)) {
                return Err(DownloadError::Endless);
            }
            if chunk.is_finish {
                self.end = self.judge_end(&chunk)?;
            }
            self.index = chunk.next_index;
            if !chunk.data.is_empty() {
                return Ok(Some(chunk.data));
            }
            empty_chunks += 1;
            if empty_chunks > EMPTY_CHUNKS_MAX {
                return Err(DownloadError::Endless);
            }
        }
        Ok(None)
    }

    fn judge_end(&self, chunk: &MediaChunk) -> Result<End, DownloadError> {
        let bytes = self.bytes;
        match chunk.file_bytes {
            Some(file_bytes) if (bytes..=bytes + PADDING_BYTES_MAX).contains(&file_bytes) => Ok(End::Known),
            Some(file_bytes) => Err(DownloadError::Short { bytes, file_bytes }),
            None => {
                let padding = CHUNK_BYTES_MAX.saturating_sub(chunk.data.len() as u64);
                Ok(if (1..=PADDING_BYTES_MAX).contains(&padding) { End::Unknown } else { End::Known })
            }
        }
    }

    /// The chunk under the present index: that one alone is asked for again when it fails.
    async fn chunk(&self) -> Result<MediaChunk, DownloadError> {
        let chunk = (|| self.downloader.source.chunk(self.sdkfileid, &self.index))
            .retry(self.downloader.chunk_backoff)
            .when(is_worth_another_try);
        tokio::select! {
            biased;
            () = self.stop.cancelled() => Err(DownloadError::Stopped),
            chunk = chunk => chunk.map_err(|error| DownloadError::of(error, &self.downloader.corp_id)),
        }
    }
}

/// A lost host is not here: the client has tried such a call on several hosts itself.
fn is_worth_another_try(error: &SdkError) -> bool {
    matches!(DownloadError::of(error.clone(), ""), DownloadError::Chunk(_) | DownloadError::Undecryptable(_))
}

/// Finds out that indexes repeat, however long the loop, with one index remembered (Brent's algorithm).
struct LoopDetector {
    anchor: Vec<u8>,
    steps: u64,
    steps_max: u64,
}

impl LoopDetector {
    fn sees(&mut self, index: &[u8]) -> bool {
        if index == self.anchor {
            return true;
        }
        self.steps += 1;
        if self.steps == self.steps_max {
            self.anchor = index.to_vec();
            self.steps = 0;
            self.steps_max *= 2;
        }
        false
    }
}

struct Hashes {
    md5: Md5,
    sha256: digest::Context,
}

impl Default for Hashes {
    fn default() -> Self {
        Self { md5: Md5::new(), sha256: digest::Context::new(&digest::SHA256) }
    }
}

impl Hashes {
    fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.sha256.update(bytes);
    }

    fn finish(self) -> (String, String) {
        (object_key::hex(&self.md5.finalize()), object_key::hex(self.sha256.finish().as_ref()))
    }
}

/// A declared MD5 in lower case, if it can be one.
fn valid_md5(declared: &str) -> Option<String> {
    (declared.len() == 32 && declared.bytes().all(|b| b.is_ascii_hexdigit())).then(|| declared.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
