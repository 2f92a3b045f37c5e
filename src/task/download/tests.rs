//! Faults of the source, of the declared hash, and of what was stored before.

use std::path::Path;
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::config::{StorageConfig, StorageType};
use crate::metrics::Metrics;

/// A file, cut into chunks, with a script of what goes wrong. Indexes are offsets.
#[derive(Debug, Default)]
struct FakeSource {
    content: Vec<u8>,
    /// Sizes of the chunks, over and over.
    cuts: Vec<usize>,
    /// Errors from this offset on, and how often.
    failure: Option<(usize, i32, u32)>,
    /// Answers in place of the file's own, from this offset on.
    spell: Option<(usize, Spell)>,
    stop_at: Option<(usize, CancellationToken)>,
    /// What WeCom says of the file's length.
    file_bytes: Option<u64>,
    asked: Arc<Mutex<Vec<String>>>,
}

#[derive(Debug, Clone, Copy)]
enum Spell {
    SameIndex,
    FirstIndex,
    LoopOf(usize),
    EmptyForEver,
    Crash,
}

impl ChunkSource for FakeSource {
    async fn chunk(&self, sdkfileid: &str, index: &[u8]) -> Result<MediaChunk, SdkError> {
        assert_eq!(sdkfileid, "file-id");
        let index = String::from_utf8(index.to_vec()).expect("our own index");
        let mut asked = self.asked.lock().expect("not poisoned");
        let failures = asked.iter().filter(|&before| *before == index).count();
        asked.push(index.clone());
        let calls = asked.len();
        let offset = if index.is_empty() { 0 } else { index.parse::<usize>().expect("our own index") };
        if let Some((at, stop)) = &self.stop_at
            && offset >= *at
        {
            stop.cancel();
        }
        if let Some((at, code, times)) = self.failure
            && offset >= at
            && failures < times as usize
        {
            return Err(SdkError::Code { function: "GetMediaData", code, cause: None });
        }
        if let Some((at, spell)) = self.spell
            && offset >= at
        {
            let next = match spell {
                Spell::SameIndex => index,
                Spell::FirstIndex => String::new(),
                Spell::LoopOf(length) => (at + calls % length).to_string(),
                Spell::EmptyForEver => (at + calls).to_string(),
                Spell::Crash => {
                    return Err(SdkError::Crash { function: "GetMediaData", reason: "died".into() });
                }
            };
            let data = if matches!(spell, Spell::EmptyForEver) { Vec::new() } else { vec![b'x'; 10] };
            return Ok(MediaChunk { data, next_index: next.into(), is_finish: false, file_bytes: None });
        }
        let size = self.cuts[(calls - 1) % self.cuts.len()];
        let end = (offset + size).min(self.content.len());
        Ok(MediaChunk {
            data: self.content[offset..end].to_vec(),
            next_index: end.to_string().into(),
            is_finish: end == self.content.len(),
            file_bytes: self.file_bytes,
        })
    }
}

fn store(folder: &Path) -> Store {
    let options = [("root".to_owned(), folder.to_str().expect("UTF-8").to_owned())].into_iter().collect();
    Store::open(&StorageConfig { kind: StorageType::Fs, prefix: "media".into(), options }).expect("a folder")
}

fn downloader<S: ChunkSource>(folder: &Path, source: S) -> Downloader<S> {
    let metrics = Metrics::new(Clock::system()).connector("test", "ww1");
    let mut downloader = Downloader::new(source, store(folder), "ww1", metrics);
    downloader.chunk_backoff = CHUNK_BACKOFF.with_min_delay(Duration::ZERO).with_max_delay(Duration::ZERO);
    downloader
}

fn request<'a>(declared_md5: Option<&'a str>, declared_size: Option<u64>) -> FileRequest<'a> {
    FileRequest {
        media_id: "m1",
        sdkfileid: "file-id",
        msgtype: "file",
        declared_md5,
        declared_size,
        declared_extension: Some("dat"),
        dated_ms: 0,
    }
}

fn md5_of(bytes: &[u8]) -> String {
    object_key::hex(&Md5::digest(bytes))
}

fn sha256_of(bytes: &[u8]) -> String {
    object_key::hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

/// Every file in the folder, unfinished uploads too.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("readable") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { folders.push(path) } else { found.push(path.display().to_string()) }
        }
    }
    found
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// However a file is cut, and whatever chunks fail on the way, the same object comes out.
    #[test]
    fn chunking_changes_nothing(
        content in prop::collection::vec(any::<u8>(), 0..30_000),
        cuts in prop::collection::vec(1_usize..20_000, 1..8),
        failures in 0_u32..3,
    ) {
        let folder = TempDir::new().expect("a folder");
        let source = FakeSource { content: content.clone(), cuts, failure: Some((0, 10001, failures)), ..FakeSource::default() };
        let downloader = downloader(folder.path(), source);
        let (md5, size) = (md5_of(&content), content.len() as u64);
        let stored = block_on(downloader.download(&request(Some(&md5.to_uppercase()), Some(size)), &CancellationToken::new()))
            .expect("stored");
        let file_type = FileType::of(&content, Some("dat"), "file");
        let key = format!("media/ww1/1970/01/01/m1.{}", file_type.extension);
        let path = folder.path().canonicalize().expect("there").join(&key);
        prop_assert_eq!(std::fs::read(&path).expect("the object"), content.clone());
        prop_assert_eq!(stored, StoredFile {
            uri: format!("file://{}", path.display()),
            content: StoredContent {
                key,
                size,
                md5,
                sha256: sha256_of(&content),
                content_type: file_type.content_type.into(),
            },
            is_verified: true,
            is_reused: false,
        });
    }
}

#[tokio::test]
async fn a_failed_chunk_is_asked_for_again_and_no_other() {
    let folder = TempDir::new().expect("a folder");
    let source = FakeSource {
        content: vec![7; 3000],
        cuts: vec![1000],
        failure: Some((1000, 10003, 1)),
        ..FakeSource::default()
    };
    let asked = source.asked.clone();
    downloader(folder.path(), source).download(&request(None, None), &CancellationToken::new()).await.expect("stored");
    assert_eq!(*asked.lock().expect("not poisoned"), ["", "1000", "1000", "2000", "2000"]);
}

#[tokio::test]
async fn failures_tell_what_to_do_and_leave_nothing_behind() {
    use Disposition::{Expired, Fail, FewTries, Retry, Stopped, Wait};
    /// Past the first part, so that an upload is under way.
    const AT: usize = PART_BYTES + 1;
    let code = |code| FakeSource { failure: Some((AT, code, u32::MAX)), ..FakeSource::default() };
    let spell = |spell| FakeSource { spell: Some((AT, spell)), ..FakeSource::default() };
    let stop = CancellationToken::new();
    let stopped = FakeSource { stop_at: Some((AT, stop.clone())), ..code(10001) };
    // Source, what to do, the reason, calls at the failing chunk (0: not counted).
    for (source, disposition, reason, calls) in [
        (code(10010), Expired, "expired", 1),
        (code(301048), Expired, "expired", 1),
        (code(10005), Fail, "refused", 1),
        (code(10000), Fail, "refused", 1),
        (code(10006), FewTries, "undecryptable", 6),
        (code(10001), Retry, "unreachable", 6),
        (code(10002), Retry, "unreachable", 6),
        (code(45009), Retry, "unreachable", 6),
        (code(10009), Wait, "sdk", 1),
        (spell(Spell::Crash), FewTries, "sdk_crash", 1),
        (spell(Spell::SameIndex), FewTries, "endless", 0),
        (spell(Spell::FirstIndex), FewTries, "endless", 0),
        (spell(Spell::LoopOf(7)), FewTries, "endless", 0),
        (spell(Spell::EmptyForEver), FewTries, "endless", 0),
        (stopped, Stopped, "stopped", 0),
    ] {
        let folder = TempDir::new().expect("a folder");
        let source = FakeSource { content: vec![1; 3 * PART_BYTES], cuts: vec![512 * 1024], ..source };
        let asked = source.asked.clone();
        let error =
            downloader(folder.path(), source).download(&request(None, None), &stop).await.expect_err("it has to fail");
        assert_eq!((error.disposition(), error.reason()), (disposition, reason), "{error}");
        assert_eq!(files(folder.path()), Vec::<String>::new(), "{error}");
        let asked = asked.lock().expect("not poisoned");
        let last = asked.last().expect("a call");
        assert!(calls == 0 || asked.iter().filter(|&index| index == last).count() == calls, "{error}: {asked:?}");
    }
}

#[tokio::test]
async fn declared_hash_and_size_are_held_against_the_bytes() {
    let content = b"#!AMR
0123456789"
        .to_vec();
    let (md5, size) = (md5_of(&content), content.len() as u64);
    let other = md5_of(b"other");
    for (declared_md5, declared_size, expected) in [
        (Some(&*md5), Some(size), Ok(true)),
        (Some(&*md5), None, Ok(true)),
        (Some(&*md5), Some(size + 1), Ok(true)),
        (Some(""), None, Ok(false)),
        (Some("not a hash"), Some(size), Ok(false)),
        (None, Some(0), Ok(false)),
        (Some(&*other), Some(size), Err("md5_mismatch")),
        (None, Some(size + 1), Err("size_mismatch")),
    ] {
        let folder = TempDir::new().expect("a folder");
        let source = FakeSource { content: content.clone(), cuts: vec![5], ..FakeSource::default() };
        let result = downloader(folder.path(), source)
            .download(&request(declared_md5, declared_size), &CancellationToken::new())
            .await;
        let (result, file) = match result {
            Ok(file) => (Ok(file.is_verified), file),
            Err(error) => {
                let reason = error.reason();
                let DownloadError::Mismatch { file, .. } = error else { panic!("{error}") };
                (Err(reason), *file)
            }
        };
        assert_eq!(result, expected, "{declared_md5:?} {declared_size:?}");
        // The bytes are kept, right or wrong.
        assert_eq!(std::fs::read(folder.path().join(&file.content.key)).expect("the object"), content);
        assert_eq!((&*file.content.md5, file.content.size, &*file.content.content_type), (&*md5, size, "audio/amr"));
    }
}

/// A file that the library ends too early is not taken for whole.
#[tokio::test]
async fn an_end_that_nothing_vouches_for_is_told() {
    const PART: usize = CHUNK_BYTES_MAX as usize;
    // What came, what WeCom says of the length, what the message declares, and what becomes of it.
    for (bytes, file_bytes, declared_size, expected) in [
        (0, Some(16), None, Ok(())),
        (1000, Some(1008), None, Ok(())),
        (1000, None, None, Ok(())),
        (PART - 5, Some(PART as u64), None, Ok(())),
        (2 * PART - 5, Some(2 * PART as u64), None, Ok(())),
        (PART - 5, Some(2 * PART as u64), None, Err("short")),
        (PART - 5, Some(2 * PART as u64), Some(PART as u64 - 5), Err("short")),
        (PART - 5, None, None, Err("end_unknown")),
        (2 * PART - 16, None, None, Err("end_unknown")),
        (PART - 5, None, Some(PART as u64 - 5), Ok(())),
        (PART - 5, None, Some(PART as u64), Err("size_mismatch")),
        (PART - 17, None, None, Ok(())),
    ] {
        let folder = TempDir::new().expect("a folder");
        let source = FakeSource { content: vec![1; bytes], cuts: vec![PART], file_bytes, ..FakeSource::default() };
        let result =
            downloader(folder.path(), source).download(&request(None, declared_size), &CancellationToken::new()).await;
        let result = result.map(drop).map_err(|error| {
            assert_eq!(error.disposition(), Disposition::FewTries, "{error}");
            error.reason()
        });
        assert_eq!(result, expected, "{bytes} of {file_bytes:?}, declared {declared_size:?}");
    }
}

#[tokio::test]
async fn content_that_is_stored_is_not_fetched_again() {
    let folder = TempDir::new().expect("a folder");
    let content = vec![9; 2000];
    let (md5, size) = (md5_of(&content), 2000);
    let fetch = async |media_id: &str| {
        let source = FakeSource { content: content.clone(), cuts: vec![1000], ..FakeSource::default() };
        let asked = source.asked.clone();
        let file = FileRequest { media_id, ..request(Some(&md5), Some(size)) };
        let stored =
            downloader(folder.path(), source).download(&file, &CancellationToken::new()).await.expect("stored");
        assert!(stored.is_verified);
        assert_eq!(stored.content.sha256, sha256_of(&content));
        assert_eq!(std::fs::read(folder.path().join(&stored.content.key)).expect("the object"), content);
        (asked.lock().expect("not poisoned").len(), stored.content.key)
    };
    let path = |key: &str| folder.path().join(key);
    let marker = path(&object_key::of_content("media", "ww1", &md5, size));
    let (calls, key) = fetch("m1").await;
    assert_eq!(calls, 2);
    assert_eq!(fetch("m2").await, (0, key.clone()));
    // A marker that is wrong in any way is as none.
    let good = std::fs::read_to_string(&marker).expect("the marker");
    for bad in [
        "".to_owned(),
        "{}".to_owned(),
        good.replace(&key, "elsewhere/m1.dat"),
        good.replace(&key, "media/ww1/../../../etc/passwd"),
        good.replace(&md5, &md5_of(b"other")),
        good.replace("2000", "1999"),
        good.replace("{", &format!("{{{}", " ".repeat(5000))),
    ] {
        std::fs::write(&marker, bad).expect("written");
        assert_eq!(fetch("m3").await.0, 2);
    }
    // So is one whose object was changed or deleted.
    let key = fetch("m4").await.1;
    std::fs::write(path(&key), b"short").expect("written");
    assert_eq!(fetch("m5").await.0, 2);
    let key = fetch("m6").await.1;
    std::fs::remove_file(path(&key)).expect("deleted");
    assert_eq!(fetch("m7").await.0, 2);
}
