//! The reference event: what became of a file that a message refers to. Each request ends in exactly one.

use serde::{Deserialize, Serialize};

use super::record::{CloudEvent, Record, Topic};
use super::{MediaRequest, json, schema};

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MediaOutcome {
    Stored(StoredObject),
    /// WeCom no longer gives the file out, or the deadline passed.
    Expired {
        reason: String,
    },
    /// `object`: the bytes that came and are not the declared ones. They are kept as evidence.
    Failed {
        reason: String,
        object: Option<StoredObject>,
    },
}

/// A file in object storage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    pub uri: String,
    /// Bytes.
    pub size: u64,
    /// 32 hexadecimal digits, lower case.
    pub md5: String,
    /// 64 hexadecimal digits, lower case.
    pub sha256: String,
    /// By the file's first bytes; none if these tell nothing.
    pub content_type: Option<String>,
    /// The content that the message declares was stored already, for another reference. This file was not fetched.
    pub deduplicated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReferenceStatus {
    Stored,
    Expired,
    Failed,
}

impl ReferenceStatus {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Expired => "expired",
            Self::Failed => "failed",
        }
    }
}

/// What became of a file. Keyed by the conversation, as the message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReferenceEvent {
    /// [`schema::MEDIA_REFERENCE`].
    pub schema: String,
    pub media_id: String,
    pub status: ReferenceStatus,
    pub corp_id: String,
    /// The message that the file belongs to.
    pub seq: u64,
    pub msgid: String,
    pub msgtype: Option<String>,
    pub conversation: String,
    /// See [`super::MediaReference::path`].
    pub path: String,
    pub media_type: String,
    pub file_name: Option<String>,
    pub extension: Option<String>,
    /// Where the object is. This and what follows up to `deduplicated` is there if `status` is `stored`; with `failed` where bytes
    /// came that are not the declared ones.
    pub uri: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
    pub md5: Option<String>,
    pub sha256: Option<String>,
    pub content_type: Option<String>,
    pub deduplicated: bool,
    /// What the message says the md5 is, and whether it is; none if it says nothing, or no bytes came to be compared: nothing is
    /// stored, or `deduplicated`.
    pub declared_md5: Option<String>,
    pub md5_matches: Option<bool>,
    /// What the message says the size is, in bytes, and whether it is.
    pub declared_size: Option<u64>,
    pub size_matches: Option<bool>,
    /// How often it was tried.
    pub attempts: u32,
    /// Why it is not stored.
    pub reason: Option<String>,
    pub msgtime_ms: Option<i64>,
    pub first_seen_ms: i64,
    pub deadline_ms: i64,
    pub finished_ms: i64,
}

impl ReferenceEvent {
    /// The end of `request` after `attempts` tries, the last one included.
    pub fn new(request: MediaRequest, outcome: MediaOutcome, attempts: u32, finished_ms: i64) -> Self {
        let (status, object, reason) = match outcome {
            MediaOutcome::Stored(object) => (ReferenceStatus::Stored, Some(object), None),
            MediaOutcome::Expired { reason } => (ReferenceStatus::Expired, None, Some(reason)),
            MediaOutcome::Failed { reason, object } => (ReferenceStatus::Failed, object, Some(reason)),
        };
        // Of a file that was not fetched nothing is known but what is declared.
        let fetched = object.as_ref().filter(|object| !object.deduplicated);
        let matches = |declared: bool, equal: &dyn Fn(&StoredObject) -> bool| fetched.filter(|_| declared).map(equal);
        Self {
            schema: schema::MEDIA_REFERENCE.to_owned(),
            media_id: request.media_id,
            status,
            corp_id: request.corp_id,
            seq: request.seq,
            msgid: request.msgid,
            msgtype: request.msgtype,
            conversation: request.conversation,
            path: request.path,
            media_type: request.media_type,
            file_name: request.file_name,
            extension: request.extension,
            md5_matches: matches(request.md5sum.is_some(), &|object| request.md5sum.as_ref() == Some(&object.md5)),
            size_matches: matches(request.size.is_some(), &|object| request.size == Some(object.size)),
            uri: object.as_ref().map(|object| object.uri.clone()),
            size: object.as_ref().map(|object| object.size),
            md5: object.as_ref().map(|object| object.md5.clone()),
            sha256: object.as_ref().map(|object| object.sha256.clone()),
            deduplicated: object.as_ref().is_some_and(|object| object.deduplicated),
            content_type: object.and_then(|object| object.content_type),
            declared_md5: request.md5sum,
            declared_size: request.size,
            attempts,
            reason,
            msgtime_ms: request.msgtime_ms,
            first_seen_ms: request.first_seen_ms,
            deadline_ms: request.deadline_ms,
            finished_ms,
        }
    }

    pub fn to_record(&self) -> Record {
        let event = CloudEvent {
            id: format!("{}/reference", self.media_id),
            corp_id: &self.corp_id,
            kind: match self.status {
                ReferenceStatus::Stored => "wecom.archive.media.stored",
                ReferenceStatus::Expired => "wecom.archive.media.expired",
                ReferenceStatus::Failed => "wecom.archive.media.failed",
            },
            subject: Some(&self.media_id),
            time_ms: Some(self.finished_ms),
            schema: Some(schema::MEDIA_REFERENCE),
        };
        Record {
            topic: Topic::MediaReferences,
            key: self.conversation.clone().into_bytes(),
            value: json::print(self, 1024),
            headers: event.headers(),
            timestamp_ms: self.finished_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::schema::tests::check;

    fn request(md5sum: Option<&str>, size: Option<u64>) -> MediaRequest {
        let fields = serde_json::json!({
            "schema": schema::MEDIA_REQUEST, "media_id": "0cc175b9c0f1b6a831c399e269772661", "corp_id": "ww1", "seq": u64::MAX,
            "msgid": "m1_external", "msgtype": "image", "conversation": "anna|bert", "path": "/image/sdkfileid",
            "media_type": "image", "sdkfileid": "CtYB==", "md5sum": md5sum, "size": size, "file_name": null, "extension": "jpg",
            "msgtime_ms": 0, "first_seen_ms": 1_700_000_000_000_i64, "deadline_ms": 1_700_432_000_000_i64, "attempts": 0,
            "not_before_ms": 1_700_000_000_000_i64, "last_error": null,
        });
        let request = MediaRequest::parse(fields.to_string().as_bytes()).unwrap();
        let retry = request.clone().failed("GetMediaData returned 10001".to_owned(), 1_700_000_060_000);
        assert_eq!((retry.to_record(1).topic, retry.attempts), (Topic::MediaRetries, 1));
        assert_eq!(MediaRequest::parse(&retry.to_record(1).value).unwrap(), retry);
        check(&retry.to_record(1));
        request
    }

    #[test]
    fn each_end_of_a_request_is_told() {
        let object = |deduplicated| StoredObject {
            uri: "s3://bucket/ww1/a.jpg".into(),
            size: 3,
            md5: "900150983cd24fb0d6963f7d28e17f72".into(),
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".into(),
            content_type: Some("image/jpeg".into()),
            deduplicated,
        };
        let stored = |deduplicated| MediaOutcome::Stored(object(deduplicated));
        let failed = |object| MediaOutcome::Failed { reason: "md5_mismatch".to_owned(), object };
        let md5 = Some("900150983cd24fb0d6963f7d28e17f72");
        let other = Some("0cc175b9c0f1b6a831c399e269772661");
        let reason = || "GetMediaData returned 10010".to_owned();
        type Row = (Option<&'static str>, Option<u64>, MediaOutcome, &'static str, Option<bool>, Option<bool>);
        let rows: [Row; 8] = [
            (md5, Some(3), stored(false), "stored", Some(true), Some(true)),
            (other, Some(4), stored(false), "stored", Some(false), Some(false)),
            // Not fetched: nothing was compared.
            (md5, Some(3), stored(true), "stored", None, None),
            (None, None, stored(false), "stored", None, None),
            (md5, None, stored(false), "stored", Some(true), None),
            (md5, Some(3), MediaOutcome::Expired { reason: reason() }, "expired", None, None),
            (None, Some(3), failed(None), "failed", None, None),
            // The wrong bytes are kept, and the event says where.
            (other, Some(3), failed(Some(object(false))), "failed", Some(false), Some(true)),
        ];
        for (md5sum, size, outcome, status, md5_matches, size_matches) in rows {
            let event = ReferenceEvent::new(request(md5sum, size), outcome, 2, 1_700_000_001_000);
            let record = event.to_record();
            let value = check(&record);
            assert_eq!((value["status"].as_str(), event.status.as_str()), (Some(status), status));
            assert_eq!((event.md5_matches, event.size_matches), (md5_matches, size_matches));
            assert_eq!((record.key.as_slice(), record.timestamp_ms), (b"anna|bert".as_slice(), 1_700_000_001_000));
            assert_eq!(serde_json::from_slice::<ReferenceEvent>(&record.value).unwrap(), event);
        }
    }
}
