//! The request to bring a file: the value of the topic between the message task and the media tasks.

use serde::{Deserialize, Serialize};

use super::event::EventContext;
use super::media::MediaReference;
use super::record::{CloudEvent, Record, Topic};
use super::time::CLOCK_AHEAD_MS;
use super::{WINDOW_MS, json, schema};

/// A file to be brought. Keyed by `media_id`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaRequest {
    /// [`schema::MEDIA_REQUEST`].
    pub schema: String,
    /// See [`super::media::media_id`].
    pub media_id: String,
    pub corp_id: String,
    pub seq: u64,
    pub msgid: String,
    /// Type of the message.
    pub msgtype: Option<String>,
    /// Key of the message's record, and of the reference event's.
    pub conversation: String,
    /// See [`MediaReference::path`].
    pub path: String,
    /// See [`MediaReference::media_type`].
    pub media_type: String,
    pub sdkfileid: String,
    pub md5sum: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    pub file_name: Option<String>,
    pub extension: Option<String>,
    /// As in the message.
    pub msgtime_ms: Option<i64>,
    /// When the message was pulled.
    pub first_seen_ms: i64,
    /// When WeCom no longer gives the file out, by the clock of the pull. See [`deadline_ms`].
    pub deadline_ms: i64,
    /// How often it was tried so far.
    pub attempts: u32,
    /// It is not to be tried before this moment.
    pub not_before_ms: i64,
    /// Why the last try failed.
    pub last_error: Option<String>,
}

/// The message that a request belongs to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Origin<'a> {
    pub seq: u64,
    pub msgid: &'a str,
    pub msgtype: Option<&'a str>,
    pub conversation: &'a str,
    pub msgtime_ms: Option<i64>,
}

impl MediaRequest {
    pub(super) fn new(context: &EventContext<'_>, origin: Origin<'_>, reference: &MediaReference) -> Self {
        let reference = reference.clone();
        Self {
            schema: schema::MEDIA_REQUEST.to_owned(),
            media_id: reference.media_id,
            corp_id: context.corp_id.to_owned(),
            seq: origin.seq,
            msgid: origin.msgid.to_owned(),
            msgtype: origin.msgtype.map(str::to_owned),
            conversation: origin.conversation.to_owned(),
            path: reference.path,
            media_type: reference.media_type,
            sdkfileid: reference.sdkfileid,
            md5sum: reference.md5sum,
            size: reference.size,
            file_name: reference.file_name,
            extension: reference.extension,
            msgtime_ms: origin.msgtime_ms,
            first_seen_ms: context.now_ms,
            deadline_ms: deadline_ms(origin.msgtime_ms, context.now_ms),
            attempts: 0,
            not_before_ms: context.now_ms,
            last_error: None,
        }
    }

    /// When the file came to WeCom: the message's time, or the first sight of it where that is impossible.
    pub fn dated_ms(&self) -> i64 {
        self.deadline_ms.saturating_sub(WINDOW_MS)
    }

    /// The deadline as it is judged at this moment. A clock that was far behind took the message's time for impossible, and the
    /// deadline for one that was over as soon as the clock was right.
    pub fn deadline_at(&self, now_ms: i64) -> i64 {
        let possible = self.msgtime_ms.filter(|msgtime_ms| is_possible(*msgtime_ms, now_ms));
        possible.map_or(self.deadline_ms, |msgtime_ms| self.deadline_ms.max(msgtime_ms.saturating_add(WINDOW_MS)))
    }

    /// The request as it is put back after a failed try.
    pub fn failed(mut self, error: String, not_before_ms: i64) -> Self {
        self.attempts = self.attempts.saturating_add(1);
        self.last_error = Some(error);
        self.not_before_ms = not_before_ms;
        self
    }

    /// For [`Topic::MediaRequests`], or after a failed try for [`Topic::MediaRetries`]. The timestamp is now: retention must not
    /// eat what is still to be done.
    pub fn to_record(&self, now_ms: i64) -> Record {
        let event = CloudEvent {
            id: format!("{}/request/{}", self.media_id, self.attempts),
            corp_id: &self.corp_id,
            kind: "wecom.archive.media.requested",
            subject: Some(&self.media_id),
            time_ms: Some(self.first_seen_ms),
            schema: Some(schema::MEDIA_REQUEST),
        };
        Record {
            topic: if self.attempts == 0 { Topic::MediaRequests } else { Topic::MediaRetries },
            key: self.media_id.clone().into_bytes(),
            value: json::print(self, 1024 + self.sdkfileid.len()),
            headers: event.headers(),
            timestamp_ms: now_ms,
        }
    }

    /// Reads the value of a record of the request topics.
    pub fn parse(value: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(value)
    }
}

/// Five days after the message. Five days after it was first seen, where its time is missing, 0, more than five days before, or
/// more than an hour ahead: then it says nothing of when the file came to WeCom.
pub fn deadline_ms(msgtime_ms: Option<i64>, first_seen_ms: i64) -> i64 {
    let from = msgtime_ms.filter(|msgtime_ms| is_possible(*msgtime_ms, first_seen_ms)).unwrap_or(first_seen_ms);
    from.saturating_add(WINDOW_MS)
}

/// Whether a file that WeCom still has at this moment can be of that time.
fn is_possible(msgtime_ms: i64, now_ms: i64) -> bool {
    (now_ms.saturating_sub(WINDOW_MS)..=now_ms.saturating_add(CLOCK_AHEAD_MS)).contains(&msgtime_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_was_behind_ends_no_file_early() {
        const NOW: i64 = 1_700_000_000_000;
        const YEAR: i64 = 365 * 24 * 3_600_000;
        // The message's time, when it was first seen, and the deadline as it is judged now.
        for (msgtime_ms, first_seen_ms, deadline_ms) in [
            (Some(NOW - 5), NOW - 1, NOW - 5 + WINDOW_MS),
            (Some(NOW - 5), NOW - YEAR, NOW - 5 + WINDOW_MS),
            (Some(NOW - WINDOW_MS - 1), NOW - YEAR, NOW - YEAR + WINDOW_MS),
            (Some(NOW + YEAR), NOW - 1, NOW - 1 + WINDOW_MS),
            (Some(0), NOW - YEAR, NOW - YEAR + WINDOW_MS),
            (None, NOW - 1, NOW - 1 + WINDOW_MS),
        ] {
            let request: MediaRequest = serde_json::from_value(serde_json::json!({
                "schema": "s", "media_id": "m", "corp_id": "ww1", "seq": 1, "msgid": "1", "conversation": "c", "path": "image",
                "media_type": "image", "sdkfileid": "f", "msgtime_ms": msgtime_ms, "first_seen_ms": first_seen_ms,
                "deadline_ms": super::deadline_ms(msgtime_ms, first_seen_ms), "attempts": 0, "not_before_ms": 0,
            }))
            .expect("a request");
            assert_eq!(request.deadline_at(NOW), deadline_ms, "{msgtime_ms:?} {first_seen_ms}");
        }
    }

    #[test]
    fn deadlines_are_five_days_after_a_possible_time() {
        const NOW: i64 = 1_700_000_000_000;
        let rows = [
            (Some(NOW - 1), NOW - 1),
            (Some(NOW - WINDOW_MS), NOW - WINDOW_MS),
            (Some(NOW + CLOCK_AHEAD_MS), NOW + CLOCK_AHEAD_MS),
            (Some(NOW - WINDOW_MS - 1), NOW),
            (Some(NOW + CLOCK_AHEAD_MS + 1), NOW),
            (Some(0), NOW),
            (Some(i64::MIN), NOW),
            (None, NOW),
        ];
        for (msgtime_ms, from) in rows {
            assert_eq!(deadline_ms(msgtime_ms, NOW), from + WINDOW_MS, "{msgtime_ms:?}");
        }
    }
}
