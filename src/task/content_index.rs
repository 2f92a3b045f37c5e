//! Where content is that was stored before: the same file comes in many messages, under ever new file ids.
//!
//! One small object per content, named by the computed MD5 and size, written after the content's object was verified. Nothing
//! of it is believed: its target has to be there with the right size, and it can be deleted at any time.

use serde::{Deserialize, Serialize};

use super::object_key;
use crate::storage::{Found, StorageError, Store};

/// A marker is a few hundred bytes; whatever is larger is none.
const MARKER_BYTES_MAX: u64 = 4096;

/// Content that is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredContent {
    pub key: String,
    pub size: u64,
    /// Lower-case hexadecimal digits, as `sha256`.
    pub md5: String,
    pub sha256: String,
    pub content_type: String,
}

/// The content with this MD5 and size, if it is stored and still there, and was stored since `oldest_ms` (ms since
/// 1970): where the bucket deletes by age, what is older goes too soon for the message at hand.
///
/// A store that refuses to tell is as one that has none: without the right to list, S3 denies what is not there.
///
/// # Errors
/// Those that pass alone.
pub async fn find(
    store: &Store,
    corp_id: &str,
    md5: &str,
    size: u64,
    oldest_ms: i64,
) -> Result<Option<StoredContent>, StorageError> {
    match look_up(store, corp_id, md5, size, oldest_ms).await {
        Err(error) if !error.is_transient() => {
            tracing::debug!(%error, "the store does not tell whether content is stored already");
            Ok(None)
        }
        found => found,
    }
}

async fn look_up(
    store: &Store,
    corp_id: &str,
    md5: &str,
    size: u64,
    oldest_ms: i64,
) -> Result<Option<StoredContent>, StorageError> {
    let folder = object_key::corp_folder(store.prefix(), corp_id);
    let marker = object_key::of_content(store.prefix(), corp_id, md5, size);
    let Some(bytes) = store.get(&marker, MARKER_BYTES_MAX).await? else { return Ok(None) };
    let Ok(content) = serde_json::from_slice::<StoredContent>(&bytes) else { return Ok(None) };
    let is_sha256 = content.sha256.len() == 64 && content.sha256.bytes().all(|b| b.is_ascii_hexdigit());
    let is_ours = content.key.starts_with(&folder) && !content.key.contains("..");
    if content.md5 != md5 || content.size != size || !is_sha256 || !is_ours {
        return Ok(None);
    }
    let is_of_use = |found: Found| found.length == size && found.modified_ms.is_some_and(|at_ms| at_ms >= oldest_ms);
    Ok(store.look(&content.key).await?.is_some_and(is_of_use).then_some(content))
}

/// Makes content known that was stored and verified. A failure costs a later download, nothing else.
pub async fn add(store: &Store, corp_id: &str, content: &StoredContent) {
    let marker = object_key::of_content(store.prefix(), corp_id, &content.md5, content.size);
    let Ok(bytes) = serde_json::to_vec(content) else { return };
    if let Err(error) = store.put(&marker, bytes.into(), "application/json").await {
        tracing::debug!(%error, marker, "stored content cannot be marked");
    }
}
