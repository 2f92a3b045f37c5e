//! One try at one file, and what follows from it: a reference event, or the request again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::archive::{MediaOutcome, MediaRequest, ReferenceEvent, StoredObject};
use crate::sdk::{MediaChunk, SdkClient, SdkError, code};
use crate::status::TaskHandle;
use crate::storage::StorageError;
use crate::task::ConnectorContext;
use crate::task::backoff::Backoff;
use crate::task::disposition;
use crate::task::download::{
    ChunkSource, Disposition, DownloadError, Downloader, FileRequest, STORAGE_REASON, StoredFile,
};

/// How often a file is tried that comes out wrong each time, for the same reason.
const TRIES_MAX: u32 = 3;

/// The pause before a file is tried again doubles with each try up to this, as often as that: files that never come cost little.
const RETRY_DELAY_MAX_MS: i64 = 60 * 60 * 1000;
const DOUBLINGS_MAX: u32 = 6;

/// Pauses while the store or the SDK is of no use.
const WAIT_MIN: Duration = Duration::from_secs(1);

/// What a status tells as long as it lasts: that nothing can be brought, and that the store is well but does not take
/// some files.
pub const MEDIA_WAIT: &str = "media wait";
const REFUSED_FILES: &str = "files refused by the store";

/// An error answer in place of a chunk is 10002, a dead token among them (measured). Where nobody saw which error it
/// is, the sdk object is renewed for it where no chunk came for this long, and ever more seldom where that brings
/// none.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
const RENEWAL_INTERVAL_MAX: Duration = Duration::from_secs(60 * 60);
/// Where the token is known to be dead: calls that are under way then have the dead one, too.
const RENEWAL_OF_DEAD_INTERVAL: Duration = Duration::from_secs(5);

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The end.
    End(Box<ReferenceEvent>),
    /// To be tried again, not before its time.
    Again(Box<MediaRequest>),
}

/// Tries files for one task.
#[derive(Debug)]
pub struct Attempts<'a, S> {
    context: &'a ConnectorContext,
    status: &'a TaskHandle,
    downloader: Downloader<S>,
}

impl<'a, S: ChunkSource> Attempts<'a, S> {
    pub fn new(source: S, context: &'a ConnectorContext, status: &'a TaskHandle) -> Self {
        let (store, config) = (context.store.clone(), &context.config);
        let (corp_id, age_max_ms) = (config.corp_id.clone(), config.media_deduplicate_age_max_ms);
        Self {
            context,
            status,
            downloader: Downloader::new(source, store, corp_id, age_max_ms, context.metrics.clone()),
        }
    }

    /// Tries the file, once the store and the SDK are of use. `None` when it was called off.
    pub async fn settle(&self, request: MediaRequest, stop: &CancellationToken) -> Option<Verdict> {
        let now_ms = self.context.now_ms();
        if request.attempts > 0 && now_ms >= request.deadline_at(now_ms) {
            return Some(too_late(request, now_ms));
        }
        let pause_max = Duration::from_millis(self.context.config.errors_retry_delay_max_ms).max(WAIT_MIN);
        let mut pauses = Backoff::new(WAIT_MIN, pause_max);
        let retry_delay_ms = self.context.config.media_retry_delay_ms;
        let mut has_waited = false;
        let result = loop {
            let error = match self.downloader.download(&file(&request, self.context.now_ms()), stop).await {
                Ok(stored) => break Ok(stored),
                Err(error) => error,
            };
            match (error.disposition(), &error) {
                (Disposition::Stopped, _) => return None,
                (Disposition::Wait, DownloadError::Storage(cause)) if self.is_well(cause).await => {
                    // It is this file that the store does not take.
                    let pause_ms = longest_wait_ms(request.attempts.saturating_add(1), first_delay_ms(retry_delay_ms));
                    let pause = Duration::from_millis(pause_ms.unsigned_abs());
                    self.status.trouble(REFUSED_FILES, format!("the store does not take a file: {error}"), pause);
                    break Err(error);
                }
                (Disposition::Wait, _) => {
                    let pause = pauses.next_delay().max(error.pause_min());
                    self.status.trouble(MEDIA_WAIT, format!("media wait: {error}"), pause);
                    let (connector, kind) = (&self.context.config.name, error.reason());
                    tracing::warn!(connector, media_id = request.media_id, kind, %error, "media wait until this has passed");
                    has_waited = true;
                    tokio::select! {
                        () = stop.cancelled() => return None,
                        () = tokio::time::sleep(pause) => {}
                    }
                }
                _ => break Err(error),
            }
        };
        if result.is_ok() || has_waited {
            self.status.trouble_is_over(MEDIA_WAIT);
        }
        if result.is_ok() && request.last_error.as_deref().is_some_and(|last| last.starts_with(STORAGE_REASON)) {
            self.status.trouble_is_over(REFUSED_FILES);
        }
        if let Err(error) = &result {
            let (connector, kind) = (&self.context.config.name, error.reason());
            let (media_id, msgid, attempts) = (&request.media_id, &request.msgid, request.attempts + 1);
            tracing::warn!(connector, media_id, msgid, attempts, kind, %error, "a file did not come");
        }
        Some(judge(request, result, self.context.now_ms(), retry_delay_ms))
    }

    /// Whether the store takes other objects than the one that it has refused.
    async fn is_well(&self, cause: &StorageError) -> bool {
        let store = &self.context.store;
        if cause.is_transient() { store.check_room().await.is_ok() } else { store.check().await.is_ok() }
    }
}

/// What a try means for its request.
fn judge(
    request: MediaRequest,
    result: Result<StoredFile, DownloadError>,
    now_ms: i64,
    retry_delay_ms: u64,
) -> Verdict {
    let attempts = request.attempts.saturating_add(1);
    let error = match result {
        Ok(stored) => return end(request, MediaOutcome::Stored(object(stored)), attempts, now_ms),
        Err(error) => error,
    };
    let (disposition, reason) = (error.disposition(), error.reason());
    let is_late = now_ms >= request.deadline_at(now_ms);
    let is_again = request.last_error.as_deref().is_some_and(|last| last.starts_with(reason));
    let outcome = match disposition {
        Disposition::Expired => MediaOutcome::Expired { reason: reason.into() },
        Disposition::Fail => MediaOutcome::Failed { reason: reason.into(), object: None },
        Disposition::FewTries if is_late || (is_again && attempts >= TRIES_MAX) => {
            let evidence = if let DownloadError::Mismatch { file, .. } = error { Some(object(*file)) } else { None };
            MediaOutcome::Failed { reason: reason.into(), object: evidence }
        }
        _ if is_late => MediaOutcome::Expired { reason: reason.into() },
        _ => {
            let not_before_ms = retry_at_ms(&request, now_ms, retry_delay_ms);
            return Verdict::Again(Box::new(request.failed(format!("{reason}: {error}"), not_before_ms)));
        }
    };
    end(request, outcome, attempts, now_ms)
}

/// When a file that has just failed is tried again: after the pause, which grows, but once more shortly before its deadline.
fn retry_at_ms(request: &MediaRequest, now_ms: i64, retry_delay_ms: u64) -> i64 {
    let first = first_delay_ms(retry_delay_ms);
    let delay = longest_wait_ms(request.attempts.saturating_add(1), first);
    let last_moment = request.deadline_at(now_ms).saturating_sub(first);
    now_ms.saturating_add(delay).min(last_moment).max(now_ms.saturating_add(first))
}

fn first_delay_ms(retry_delay_ms: u64) -> i64 {
    i64::try_from(retry_delay_ms).unwrap_or(i64::MAX)
}

/// How long a request that was tried so often is put back for at the most.
fn longest_wait_ms(attempts: u32, first: i64) -> i64 {
    let Some(before) = attempts.checked_sub(1) else { return 0 };
    first.saturating_mul(1 << before.min(DOUBLINGS_MAX)).min(first.max(RETRY_DELAY_MAX_MS))
}

/// How long a request has still to wait that was read just now. Its time was told by a clock that may have been set back since:
/// it is not put back for longer than it would be now.
pub fn wait(request: &mut MediaRequest, now_ms: i64, retry_delay_ms: u64) -> Duration {
    let longest = longest_wait_ms(request.attempts, first_delay_ms(retry_delay_ms));
    request.not_before_ms = request.not_before_ms.min(now_ms.saturating_add(longest));
    Duration::from_millis(u64::try_from(request.not_before_ms.saturating_sub(now_ms)).unwrap_or(0))
}

/// The end of a request that was tried before and whose file is past its deadline: the reason of the last try.
fn too_late(request: MediaRequest, now_ms: i64) -> Verdict {
    let last = request.last_error.as_deref().unwrap_or_default();
    let reason = last.split(':').next().filter(|word| !word.is_empty()).unwrap_or("expired").to_owned();
    let attempts = request.attempts;
    end(request, MediaOutcome::Expired { reason }, attempts, now_ms)
}

fn end(request: MediaRequest, outcome: MediaOutcome, attempts: u32, now_ms: i64) -> Verdict {
    Verdict::End(Box::new(ReferenceEvent::new(request, outcome, attempts, now_ms)))
}

fn file(request: &MediaRequest, now_ms: i64) -> FileRequest<'_> {
    FileRequest {
        media_id: &request.media_id,
        sdkfileid: &request.sdkfileid,
        msgtype: &request.media_type,
        declared_md5: request.md5sum.as_deref(),
        declared_size: request.size,
        declared_extension: request.extension.as_deref(),
        dated_ms: request.dated_ms(),
        now_ms,
    }
}

fn object(stored: StoredFile) -> StoredObject {
    let StoredFile { uri, content, is_reused, .. } = stored;
    StoredObject {
        uri,
        size: content.size,
        md5: content.md5,
        sha256: content.sha256,
        content_type: Some(content.content_type),
        deduplicated: is_reused,
    }
}

/// The SDK as the source of files: each chunk is progress, and a dead token is replaced.
#[derive(Debug)]
pub struct Watched<'a> {
    sdk: SdkClient,
    status: &'a TaskHandle,
    renewals: Mutex<Renewals>,
}

impl<'a> Watched<'a> {
    pub fn new(sdk: SdkClient, status: &'a TaskHandle) -> Self {
        Self { sdk, status, renewals: Mutex::default() }
    }

    fn renewals(&self) -> MutexGuard<'_, Renewals> {
        self.renewals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ChunkSource for Watched<'_> {
    async fn chunk(&self, sdkfileid: &str, index: &[u8]) -> Result<MediaChunk, SdkError> {
        let chunk = self.sdk.get_media_data(sdkfileid, index).await;
        match &chunk {
            Ok(_) => {
                self.renewals().came(Instant::now());
                self.status.progress();
            }
            Err(error) => {
                let is_due = match error {
                    _ if disposition::is_dead_token(error) => self.renewals().is_due_for_dead(Instant::now()),
                    SdkError::Code { code: code::UNPARSABLE_ANSWER, cause: None, .. } => {
                        self.renewals().is_due(Instant::now())
                    }
                    _ => false,
                };
                if is_due && let Err(error) = self.sdk.renew().await {
                    tracing::warn!(%error, "the sdk object cannot be renewed");
                }
            }
        }
        chunk
    }
}

/// Tells a token that died from a file that WeCom answers for with an error: with a dead token no other file comes either.
#[derive(Debug, Default)]
struct Renewals {
    /// No renewal before this moment.
    not_before: Option<Instant>,
    renewed: Option<Instant>,
    in_vain: u32,
}

impl Renewals {
    fn came(&mut self, now: Instant) {
        *self = Self { not_before: Some(now + RENEWAL_INTERVAL), in_vain: 0, ..*self };
    }

    /// Whether to renew; then it counts as done.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = self.not_before.is_none_or(|not_before| now >= not_before);
        if is_due {
            self.renew(now);
        }
        is_due
    }

    /// As [`Renewals::is_due`], where the token is known to be dead.
    fn is_due_for_dead(&mut self, now: Instant) -> bool {
        let pause = RENEWAL_OF_DEAD_INTERVAL * self.pauses_in_vain();
        let is_due = self.renewed.is_none_or(|renewed| now >= renewed + pause);
        if is_due {
            self.renew(now);
        }
        is_due
    }

    fn renew(&mut self, now: Instant) {
        let pause = (RENEWAL_INTERVAL * self.pauses_in_vain()).min(RENEWAL_INTERVAL_MAX);
        let in_vain = self.in_vain.saturating_add(1);
        *self = Self { not_before: Some(now + pause), renewed: Some(now), in_vain };
    }

    fn pauses_in_vain(&self) -> u32 {
        2_u32.pow(self.in_vain.min(DOUBLINGS_MAX))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::archive::ReferenceStatus;
    use crate::sdk::code;
    use crate::task::content_index::StoredContent;
    use crate::task::download::Mismatch;

    const NOW_MS: i64 = 1_767_225_600_000;
    const DELAY_MS: u64 = 30_000;

    fn request(attempts: u32, last_error: Option<&str>, deadline_ms: i64) -> MediaRequest {
        serde_json::from_value(json!({
            "schema": "s", "media_id": "m", "corp_id": "ww1", "seq": 1, "msgid": "1", "conversation": "c", "path": "image",
            "media_type": "image", "sdkfileid": "f", "first_seen_ms": 0, "deadline_ms": deadline_ms, "attempts": attempts,
            "not_before_ms": 0, "last_error": last_error,
        }))
        .expect("a request")
    }

    fn stored() -> StoredFile {
        let content = StoredContent {
            key: "k".into(),
            size: 3,
            md5: "aa".into(),
            sha256: "bb".into(),
            content_type: "image/png".into(),
        };
        StoredFile { uri: "s3://b/k".into(), content, is_verified: true, is_reused: false }
    }

    fn sdk(code: i32) -> SdkError {
        SdkError::Code { function: "GetMediaData", code, cause: None }
    }

    #[test]
    fn each_try_ends_the_request_or_puts_it_back() {
        use ReferenceStatus::{Expired, Failed, Stored};
        let mismatch = || DownloadError::Mismatch { mismatch: Mismatch::Md5, file: Box::new(stored()) };
        let unreachable = || DownloadError::Chunk(sdk(code::NETWORK));
        let crash = || DownloadError::Crash(SdkError::Crash { function: "GetMediaData", reason: "died".into() });
        let undecryptable = || DownloadError::Undecryptable(code::DECRYPTION);
        let (in_time, late) = (NOW_MS + 1, NOW_MS);
        // Attempts and error before, deadline, this try, and what follows: an end with its reason, or another try.
        for (attempts, last, deadline_ms, result, expected) in [
            (0, None, in_time, Ok(stored()), Some((Stored, None))),
            (9, Some("unreachable: x"), late, Ok(stored()), Some((Stored, None))),
            (0, None, in_time, Err(DownloadError::Expired(code::EXPIRED)), Some((Expired, Some("expired")))),
            (0, None, in_time, Err(DownloadError::Refused(code::BAD_FILE_ID)), Some((Failed, Some("refused")))),
            (0, None, in_time, Err(undecryptable()), None),
            (1, Some("undecryptable: x"), in_time, Err(undecryptable()), None),
            (2, Some("undecryptable: x"), in_time, Err(undecryptable()), Some((Failed, Some("undecryptable")))),
            (0, None, late, Err(undecryptable()), Some((Failed, Some("undecryptable")))),
            (2, Some("sdk_crash: x"), in_time, Err(crash()), Some((Failed, Some("sdk_crash")))),
            (2, Some("endless: x"), in_time, Err(DownloadError::Endless), Some((Failed, Some("endless")))),
            (1, Some("md5_mismatch: x"), in_time, Err(mismatch()), None),
            (2, Some("md5_mismatch: x"), in_time, Err(mismatch()), Some((Failed, Some("md5_mismatch")))),
            // The network's failures before do not count against the file.
            (50, Some("unreachable: x"), in_time, Err(mismatch()), None),
            (0, None, in_time, Err(unreachable()), None),
            (1000, Some("unreachable: x"), in_time, Err(unreachable()), None),
            (1000, Some("unreachable: x"), late, Err(unreachable()), Some((Expired, Some("unreachable")))),
        ] {
            let is_mismatch = matches!(result, Err(DownloadError::Mismatch { .. }));
            let verdict = judge(request(attempts, last, deadline_ms), result, NOW_MS, DELAY_MS);
            match (verdict, expected) {
                (Verdict::Again(again), None) => {
                    assert_eq!((again.attempts, again.not_before_ms), (attempts + 1, NOW_MS + DELAY_MS as i64));
                    assert!(again.last_error.is_some());
                }
                (Verdict::End(event), Some((status, reason))) => {
                    assert_eq!((event.status, event.reason.as_deref(), event.attempts), (status, reason, attempts + 1));
                    // The bytes of a mismatch are evidence: the event says where they are.
                    assert_eq!(event.uri.is_some(), status == Stored || is_mismatch, "{event:?}");
                }
                (verdict, expected) => panic!("{verdict:?} in place of {expected:?}"),
            }
        }
    }

    #[test]
    fn a_clock_that_was_ahead_holds_no_file_up() {
        const YEAR: i64 = 365 * 24 * 3_600_000;
        // Tries before, how far ahead the request's time is, and what is waited.
        for (attempts, ahead_ms, waited_ms) in [
            (0, 0, 0),
            (0, YEAR, 0),
            (1, -YEAR, 0),
            (1, 10_000, 10_000),
            (1, YEAR, 30_000),
            (3, 100_000, 100_000),
            (3, YEAR, 120_000),
            (99, YEAR, 32 * 60_000),
            (99, i64::MAX - NOW_MS, 32 * 60_000),
        ] {
            let mut request = request(attempts, None, NOW_MS + YEAR);
            request.not_before_ms = NOW_MS + ahead_ms;
            let wait_ms = wait(&mut request, NOW_MS, DELAY_MS).as_millis() as i64;
            assert_eq!(wait_ms, waited_ms, "{attempts} {ahead_ms}");
            // What is put back unchanged goes on waiting for the same moment.
            assert_eq!(
                wait(&mut request, NOW_MS + waited_ms / 2, DELAY_MS).as_millis() as i64,
                waited_ms - waited_ms / 2
            );
        }
    }

    #[test]
    fn the_pause_doubles_up_to_an_hour_and_leaves_a_last_try() {
        const MINUTE: i64 = 60_000;
        const DAY: i64 = 24 * 60 * MINUTE;
        // Tries before this one, first pause, time to the deadline, and the pause.
        for (attempts, first, left, pause) in [
            (0, MINUTE, DAY, MINUTE),
            (1, MINUTE, DAY, 2 * MINUTE),
            (5, MINUTE, DAY, 32 * MINUTE),
            (6, MINUTE, DAY, 60 * MINUTE),
            (u32::MAX, MINUTE, DAY, 60 * MINUTE),
            (u32::MAX, 500, DAY, 32_000),
            (3, 2 * 60 * MINUTE, DAY, 2 * 60 * MINUTE),
            (9, i64::MAX, DAY, i64::MAX - NOW_MS),
            (9, MINUTE, 50 * MINUTE, 49 * MINUTE),
            (9, MINUTE, 1, MINUTE),
        ] {
            let request = request(attempts, None, NOW_MS + left);
            let at_ms = retry_at_ms(&request, NOW_MS, first.unsigned_abs());
            assert_eq!(at_ms - NOW_MS, pause, "{attempts} tries, {first} ms, {left} ms left");
        }
    }

    #[test]
    fn the_sdk_object_is_not_renewed_for_files_that_never_come() {
        let start = Instant::now();
        let mut renewals = Renewals::default();
        let mut due = |second: u64| renewals.is_due(start + Duration::from_secs(second));
        // Nothing comes: a token may have died. Each minute at first, then each hour.
        let renewed: Vec<u64> = (0..5 * 3600).filter(|&second| due(second)).collect();
        assert_eq!(renewed, [0, 60, 180, 420, 900, 1860, 3780, 7380, 10_980, 14_580]);
        // Others come: it is the file.
        for second in 20_000..30_000 {
            renewals.came(start + Duration::from_secs(second));
            assert!(!renewals.is_due(start + Duration::from_secs(second + 59)), "{second}");
        }
        assert!(renewals.is_due(start + Duration::from_secs(30_059)));
        // A token that is known to be dead does not wait for that; but the calls that were under way with it do.
        let mut renewals = Renewals::default();
        renewals.came(start);
        let dead: Vec<u64> =
            (0..100).filter(|&second| renewals.is_due_for_dead(start + Duration::from_secs(second))).collect();
        assert_eq!(dead, [0, 10, 30, 70]);
        renewals.came(start + Duration::from_secs(100));
        assert!(renewals.is_due_for_dead(start + Duration::from_secs(100)));
    }

    #[test]
    fn a_request_past_its_deadline_keeps_the_reason_of_its_last_try() {
        for (last, reason) in [(Some("unreachable: GetMediaData answered 10001"), "unreachable"), (None, "expired")] {
            let Verdict::End(event) = too_late(request(3, last, NOW_MS), NOW_MS) else { panic!("it has to end") };
            assert_eq!((event.status, event.reason.as_deref()), (ReferenceStatus::Expired, Some(reason)));
            assert_eq!(event.attempts, 3);
        }
    }
}
