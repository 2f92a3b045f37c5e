//! The stores, on real parts: a folder and an S3 server. What they answer when something is wrong, too.

#[path = "common/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use bytes::Bytes;
use harness::{Rights, S3, S3Gate};
use wecom_connector::config::{FileMode, Settings, StorageConfig, StorageType};
use wecom_connector::storage::{PART_BYTES, StorageError, Store};

fn config(kind: StorageType, options: &[(&str, &str)]) -> StorageConfig {
    let options: BTreeMap<String, String> = options.iter().map(|&(key, value)| (key.into(), value.into())).collect();
    StorageConfig { kind, prefix: "media".into(), options: Settings(options), ..StorageConfig::default() }
}

fn s3(endpoint: &str, bucket: &str, secret_key: &str) -> StorageConfig {
    let keys = [
        ("access_key_id", S3::ACCESS_KEY),
        ("secret_access_key", secret_key),
        ("region", "us-east-1"),
        ("checksum_algorithm", "crc32c"),
    ];
    config(StorageType::S3, &[&[("endpoint", endpoint), ("bucket", bucket)][..], &keys].concat())
}

fn folder(path: &Path) -> StorageConfig {
    config(StorageType::Fs, &[("root", path.to_str().expect("UTF-8"))])
}

/// Bytes that differ from part to part.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i / 1000 % 251) as u8).collect()
}

/// Everything that is asked of a store.
async fn is_a_store(config: &StorageConfig, uri_of_key: &str, read_back: impl Fn(&str) -> Vec<u8>) {
    let store = Store::open(config).expect("a store");
    store.check().await.expect("a store that works");
    assert_eq!(store.uri("media/a b/名.bin"), uri_of_key);
    assert_eq!(store.length("media/none").await, Ok(None));
    assert_eq!(store.get("media/none", 10).await, Ok(None));
    assert_eq!(store.read("media/none", |_| ()).await, Ok(None));

    store.put("media/small", Bytes::from_static(b"0123456789"), "text/plain").await.expect("put");
    assert_eq!(store.get("media/small", 10).await, Ok(Some(b"0123456789".to_vec())));
    assert_eq!(store.get("media/small", 9).await, Ok(None), "larger than asked for");

    for length in [0, 1, PART_BYTES, PART_BYTES + 1, 2 * PART_BYTES + 12_345] {
        let content = content(length);
        let key = format!("media/2025/upload-{length}");
        let mut upload = store.upload(&key, "video/mp4").await.expect("an upload");
        for piece in content.chunks(512 * 1024) {
            upload.write(Bytes::copy_from_slice(piece)).await.expect("written");
            assert_eq!(store.length(&key).await, Ok(None), "unfinished objects are not to be seen");
        }
        assert_eq!(upload.finish().await, Ok(length as u64));
        assert_eq!(store.length(&key).await, Ok(Some(length as u64)));
        assert!(read_back(&key) == content, "{length} bytes came out otherwise");
        let mut read = Vec::new();
        assert_eq!(store.read(&key, |bytes| read.extend_from_slice(bytes)).await, Ok(Some(length as u64)));
        assert!(read == content, "{length} bytes were read otherwise");
    }

    // An upload that is called off leaves what was there before.
    let mut upload = store.upload("media/small", "text/plain").await.expect("an upload");
    upload.write(content(3 * PART_BYTES).into()).await.expect("written");
    upload.abort().await;
    assert_eq!(store.get("media/small", 10).await, Ok(Some(b"0123456789".to_vec())));
}

fn files(folder: &Path) -> usize {
    let entries = std::fs::read_dir(folder).expect("readable").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_is_a_store() {
    let place = tempfile::tempdir().expect("a folder");
    let root = place.path().canonicalize().expect("a path").join("new folder");
    let uri = format!(
        "file://{}/new%20folder/media/a%20b/%E5%90%8D.bin",
        place.path().canonicalize().expect("a path").display()
    );
    is_a_store(&folder(&root), &uri, |key| std::fs::read(root.join(key)).expect("the object")).await;
    assert_eq!(files(&root.join(".uploads")), 0, "unfinished uploads are cleared");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_s3_server_is_a_store() {
    let server = S3::start("archive");
    let config = s3(&server.endpoint(), "archive", S3::SECRET_KEY);
    let bucket = server.root().join("archive");
    is_a_store(&config, "s3://archive/media/a%20b/%E5%90%8D.bin", |key| {
        std::fs::read(bucket.join(key)).expect("the object")
    })
    .await;
}

/// Nothing needs the rights to list and to delete, nor to write over what stands there; and an object under a lock has
/// its checksum.
#[tokio::test(flavor = "multi_thread")]
async fn rights_that_may_be_missing_keep_nothing_out() {
    let server = S3::start("archive");
    let rows = [
        ("all", Rights::ALL),
        ("no list", Rights { list: false, ..Rights::ALL }),
        ("no delete", Rights { delete: false, ..Rights::ALL }),
        ("lock", Rights { lock: true, delete: false, ..Rights::ALL }),
        ("kept as it is", Rights { overwrite: false, delete: false, ..Rights::ALL }),
        ("no condition", Rights { condition: false, delete: false, list: false, ..Rights::ALL }),
        ("no condition, kept as it is", Rights { condition: false, overwrite: false, ..Rights::ALL }),
    ];
    for (number, (name, rights)) in rows.into_iter().enumerate() {
        let gate = S3Gate::start(&server, rights);
        let prefix = format!("row{number}");
        let config = StorageConfig { prefix: prefix.clone(), ..s3(&gate.endpoint(), "archive", S3::SECRET_KEY) };
        let store = Store::open(&config).expect("a store");
        for _ in 0..3 {
            store.check().await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        // Where nothing can be deleted, nothing piles up.
        let probes = gate.writes(".probe");
        assert!(probes == 1 || (!rights.condition && rights.overwrite), "{name}: {probes} probes");
        for length in [10, 2 * PART_BYTES] {
            let key = format!("{prefix}/{length}");
            let mut upload = store.upload(&key, "video/mp4").await.expect("an upload");
            upload.write(content(length).into()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(upload.finish().await, Ok(length as u64), "{name}");
        }
        let key = format!("{prefix}/small");
        for _ in 0..2 {
            let put = store.put(&key, Bytes::from_static(b"0123456789"), "text/plain").await;
            assert_eq!(put, Ok(()), "{name}: a repeat");
        }
        let other = store.put(&key, Bytes::from_static(b"other"), "text/plain").await;
        assert_eq!(other.is_ok(), rights.overwrite, "{name}: other bytes");
        let absent = store.length(&format!("{prefix}/none")).await;
        assert_eq!(absent.is_ok(), rights.list, "{name}: {absent:?}");
    }
    // A probe of better days does not stand in for the right to write.
    let gate = S3Gate::start(&server, Rights::ALL);
    let store = Store::open(&s3(&gate.endpoint(), "archive", S3::SECRET_KEY)).expect("a store");
    store.check().await.expect("all rights");
    gate.set(Rights { write: false, ..Rights::ALL });
    let error = store.check().await.expect_err("no right to write");
    assert!(error.to_string().contains("s3:PutObject") && !error.is_transient(), "{error}");

    // Without a checksum, a locked bucket is not usable, and it is the store that says why.
    let gate = S3Gate::start(&server, Rights { lock: true, ..Rights::ALL });
    let mut config = s3(&gate.endpoint(), "archive", S3::SECRET_KEY);
    config.options.0.remove("checksum_algorithm");
    let error = Store::open(&config).expect("a store").check().await.expect_err("no checksum");
    assert!(error.to_string().contains("Object Lock") && !error.to_string().contains("endpoint right"), "{error}");
    assert!(!error.is_transient(), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_authority_is_trusted_by_its_file() {
    let server = S3::start("archive");
    let gate = S3Gate::start_tls(&server, Rights::ALL);
    let unknown = s3(&gate.endpoint(), "archive", S3::SECRET_KEY);
    let error = Store::open(&unknown).expect("a store").check().await.expect_err("nobody trusts it");
    assert!(error.to_string().contains("storage.ca.file") && !error.is_transient(), "{error}");
    let known = StorageConfig { ca_file: Some(gate.ca_file().into()), ..unknown.clone() };
    Store::open(&known).expect("a store").check().await.expect("trusted");
    for wrong in ["/nonexistent.pem", "/dev/null"] {
        let wrong = StorageConfig { ca_file: Some(wrong.into()), ..unknown.clone() };
        let error = Store::examine(&wrong).expect_err("no certificates");
        assert!(error.to_string().contains("correct storage.ca.file"), "{error}");
    }
}

/// Files are for those whom `storage.file.mode` names, whatever the umask is.
#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_folder_have_the_mode_that_is_said() {
    for (file_mode, of_file, of_folder) in
        [(FileMode::Owner, 0o600, 0o700), (FileMode::Group, 0o640, 0o750), (FileMode::All, 0o644, 0o755)]
    {
        let place = tempfile::tempdir().expect("a folder");
        let root = place.path().join("new");
        let store = Store::open(&StorageConfig { file_mode, ..folder(&root) }).expect("a store");
        store.put("media/a/small", Bytes::from_static(b"x"), "text/plain").await.expect("put");
        let mut upload = store.upload("media/b/large", "video/mp4").await.expect("an upload");
        upload.write(content(PART_BYTES + 1).into()).await.expect("written");
        upload.finish().await.expect("finished");
        let mode = |path: &str| std::fs::metadata(root.join(path)).expect("made").permissions().mode() & 0o777;
        for path in ["media/a/small", "media/b/large"] {
            assert_eq!(mode(path), of_file, "{path}");
        }
        for path in ["", "media", "media/a", "media/b"] {
            assert_eq!(mode(path), of_folder, "{path}");
        }
        assert_eq!(mode(".uploads"), 0o700);
    }
}

/// A store is tried out without anything that stays, whatever of it was there before.
#[tokio::test(flavor = "multi_thread")]
async fn trying_a_store_out_leaves_nothing_behind() {
    let server = S3::start("archive");
    let bucket = server.root().join("archive");
    let place = tempfile::tempdir().expect("a folder");
    let root = place.path().join("a/b");
    let entries = |path: &Path| std::fs::read_dir(path).expect("readable").count();
    for config in [s3(&server.endpoint(), "archive", S3::SECRET_KEY), folder(&root)] {
        Store::try_out(&config).await.expect("it can be used");
        assert!(!bucket.join("media/.probe").exists() && entries(place.path()) == 0);
    }
    // A worker's own probe stays.
    let store = Store::open(&folder(&root)).expect("a store");
    store.check().await.expect("a store that works");
    Store::try_out(&folder(&root)).await.expect("it can be used");
    assert!(root.join("media/.probe").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_is_said_in_words() {
    let mut server = S3::start("archive");
    let place = tempfile::tempdir().expect("a folder");
    let file = place.path().join("file");
    std::fs::write(&file, b"in the way").expect("written");
    let unreachable = format!("http://127.0.0.1:{}", harness::free_port());
    // Settings, what must be said, whether waiting can help.
    let rows = [
        (s3(&server.endpoint(), "archive", "wrong"), "access is denied", false),
        (s3(&unreachable, "archive", S3::SECRET_KEY), &*format!("at {unreachable}: a request failed"), true),
        (folder(&file), "check storage.path", false),
    ];
    for (config, words, is_transient) in rows {
        let error = match Store::open(&config) {
            Ok(store) => store.check().await.expect_err("it has to be refused"),
            Err(error) => error,
        };
        println!("{error}");
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(error.is_transient(), is_transient, "{error}");
    }
    // A server that goes away under an upload, and comes back: the object is written anew.
    let store = Store::open(&s3(&server.endpoint(), "archive", S3::SECRET_KEY)).expect("a store");
    let mut upload = store.upload("media/big", "video/mp4").await.expect("an upload");
    upload.write(content(2 * PART_BYTES).into()).await.expect("written");
    server.kill();
    upload.write(content(PART_BYTES).into()).await.expect_err("nobody is there");
    upload.abort().await;
    assert!(matches!(store.check().await, Err(StorageError::Unavailable { .. })));
    server.start_again();
    store.check().await.expect("back again");
    let mut upload = store.upload("media/big", "video/mp4").await.expect("an upload");
    upload.write(content(2 * PART_BYTES).into()).await.expect("written");
    assert_eq!(upload.finish().await, Ok(2 * PART_BYTES as u64));
}
