//! Memory does not grow with file size: a file of 300 MiB is brought with the same heap as one of 50 MiB.
//!
//! Alone in its binary, because the allocator that counts is the process's.

use peak_alloc::PeakAlloc;
use tokio_util::sync::CancellationToken;
use wecom_connector::clock::Clock;
use wecom_connector::config::StorageConfig;
use wecom_connector::metrics::Metrics;
use wecom_connector::sdk::{MediaChunk, SdkError};
use wecom_connector::storage::{PART_BYTES, Store};
use wecom_connector::task::download::{ChunkSource, Downloader, FileRequest};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const MIB: usize = 1024 * 1024;
/// What the vendor's library hands over a call.
const CHUNK: usize = 512 * 1024;

/// A file of this many bytes that nobody holds.
struct Zeros(usize);

impl ChunkSource for Zeros {
    async fn chunk(&self, _: &str, index: &[u8]) -> Result<MediaChunk, SdkError> {
        let offset: usize =
            if index.is_empty() { 0 } else { String::from_utf8_lossy(index).parse().expect("our index") };
        let end = (offset + CHUNK).min(self.0);
        // The library's calls take time; without a pause nothing else of the runtime would run.
        tokio::task::yield_now().await;
        let (next_index, is_finish) = (end.to_string().into(), end == self.0);
        Ok(MediaChunk { data: vec![0; end - offset], next_index, is_finish, file_bytes: None })
    }
}

/// Brings a file and gives the most bytes that were held on the way, beyond those before.
async fn peak_of(bytes: usize) -> usize {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().to_str().expect("UTF-8").to_owned();
    let options = [("root".to_owned(), root)].into_iter().collect();
    let config = StorageConfig { options, ..StorageConfig::default() };
    let store = Store::open(&config).expect("a store");
    let metrics = Metrics::new(Clock::system()).connector("test", "ww1");
    let downloader = Downloader::new(Zeros(bytes), store, "ww1", None, metrics);
    let file = FileRequest {
        media_id: "m1",
        sdkfileid: "file-id",
        msgtype: "video",
        declared_md5: None,
        declared_size: Some(bytes as u64),
        declared_extension: None,
        dated_ms: 0,
        now_ms: 0,
    };
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let stored = downloader.download(&file, &CancellationToken::new()).await.expect("stored");
    assert_eq!(stored.content.size, bytes as u64);
    HEAP.peak_usage() - before
}

#[tokio::test]
async fn memory_does_not_grow_with_file_size() {
    let (small, large) = (peak_of(50 * MIB).await, peak_of(300 * MIB).await);
    println!("peak heap: {} KiB for 50 MiB, {} KiB for 300 MiB", small / 1024, large / 1024);
    assert!(large < 3 * PART_BYTES, "{large} bytes held");
    assert!(large < small + 2 * CHUNK, "{small} bytes held for 50 MiB, {large} for 300 MiB");
}
