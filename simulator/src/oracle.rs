//! What a reader of the archive should have found: one line a message.

use aws_lc_rs::digest::{SHA256, digest};
use serde::Serialize;

use crate::corp::Corp;
use crate::fault::{Fault, Function};
use crate::media::hexadecimal;
use crate::message::kind::{MessageKind, Oddity};
use crate::message::{self, MediaReference, Message};
use crate::record;
use crate::scenario::BadRecord;

/// What becomes of a chat record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Expect {
    /// It is published.
    Message,
    /// A dead letter: the version of the key is unknown.
    UnknownKeyVersion,
    /// A dead letter: `encrypt_random_key` is no base64.
    Base64,
    /// A dead letter: the random key can't be unwrapped.
    Rsa,
    /// A dead letter: `DecryptData` returns an error.
    Decrypt,
    /// A dead letter: `DecryptData` ends the process, or never ends.
    SdkCrash,
    /// A dead letter: the plaintext is no JSON.
    NotJson,
    /// A dead letter: a member of the record is missing or of a wrong type.
    Malformed,
    /// The archive doesn't give it out any more.
    OutOfWindow,
}

/// What becomes of a media file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExpectMedia {
    Stored,
    /// The archive says so, or answers with what may pass until the file's time is over.
    Expired,
    Failed,
}

/// One message as a reader should have it.
#[derive(Debug, Clone, Serialize)]
pub struct Expectation {
    pub corp_id: String,
    pub seq: u64,
    pub msgid: String,
    pub publickey_ver: u32,
    /// None in a `switch` log.
    pub msgtype: Option<&'static str>,
    pub action: &'static str,
    pub from: Option<String>,
    pub to: Vec<String>,
    pub roomid: Option<String>,
    /// The room; or the two who talk, the smaller first, with `|` between; none where it is neither.
    pub conversation: Option<String>,
    pub msgtime_ms: Option<i64>,
    /// Of what `DecryptData` gives, or would give.
    pub plaintext_sha256: String,
    pub plaintext_bytes: usize,
    pub expect: Expect,
    pub odd: Option<Oddity>,
    /// Empty for what does not become a message.
    pub media: Vec<MediaExpectation>,
}

/// One media file as a reader should have it. Size and hashes are those of the true content, whatever the message declares.
#[derive(Debug, Clone, Serialize)]
pub struct MediaExpectation {
    pub path: String,
    pub sdkfileid_sha256: String,
    pub size: u64,
    pub md5: String,
    pub sha256: String,
    pub expect: ExpectMedia,
    pub odd: Option<Oddity>,
}

/// What a reader should have found for the messages that were archived up to `now_ms`, in the order of their seq.
/// Those that the archive has forgotten by then come first, as [`Expect::OutOfWindow`].
pub fn expectations<'a>(corp: &'a Corp, faults: &'a [Fault], now_ms: i64) -> impl Iterator<Item = Expectation> + 'a {
    (0..corp.archived(now_ms)).map(move |index| {
        let mut expectation = expectation(corp, faults, corp.seq(index));
        if corp.is_out_of_window(index, now_ms) {
            expectation.expect = Expect::OutOfWindow;
            expectation.media.clear();
        }
        expectation
    })
}

/// What a reader should have found for one message that is in the window.
pub fn expectation(corp: &Corp, faults: &[Fault], seq: u64) -> Expectation {
    let message = message::compose(corp, seq);
    let bad = corp.bad(seq);
    let plaintext = record::plaintext(corp, &message, bad);
    let expect = outcome(corp, faults, seq, bad);
    let media = if expect == Expect::Message { message.media.as_slice() } else { &[] };
    let media = media.iter().map(|reference| media_expectation(corp, faults, seq, reference)).collect();
    Expectation {
        corp_id: corp.scenario.id.clone(),
        seq,
        publickey_ver: corp.key_version(seq) + if bad == Some(BadRecord::UnknownKeyVersion) { 1_000 } else { 0 },
        msgtype: message.kind.msgtype(),
        action: message.action,
        conversation: conversation(&message),
        msgtime_ms: message.msgtime_ms,
        plaintext_sha256: sha256(&plaintext),
        plaintext_bytes: plaintext.len(),
        expect,
        odd: message.odd,
        media,
        msgid: message.msgid,
        from: message.from,
        to: message.to,
        roomid: message.room_id,
    }
}

fn outcome(corp: &Corp, faults: &[Fault], seq: u64, bad: Option<BadRecord>) -> Expect {
    match bad {
        Some(BadRecord::UnknownKeyVersion) => return Expect::UnknownKeyVersion,
        Some(BadRecord::BadBase64) => return Expect::Base64,
        Some(BadRecord::WrongKey) => return Expect::Rsa,
        Some(BadRecord::MissingFields) => return Expect::Malformed,
        Some(BadRecord::ShortCiphertext) => return Expect::SdkCrash,
        Some(BadRecord::GarbageCiphertext | BadRecord::NotJson) | None => {}
    }
    match permanent(corp, faults, Function::DecryptData, seq) {
        Some(fault) if fault.abort || fault.kill || fault.hang => Expect::SdkCrash,
        Some(fault) if fault.code.is_some() => Expect::Decrypt,
        _ if bad == Some(BadRecord::GarbageCiphertext) => Expect::Decrypt,
        _ if bad == Some(BadRecord::NotJson) => Expect::NotJson,
        Some(fault) if fault.body.is_some() => Expect::NotJson,
        _ => Expect::Message,
    }
}

fn media_expectation(corp: &Corp, faults: &[Fault], seq: u64, reference: &MediaReference) -> MediaExpectation {
    let hashes = reference.file.hashes(corp.scenario.seed);
    let by_oddity = match reference.odd {
        Some(Oddity::Expired | Oddity::Gone) => ExpectMedia::Expired,
        Some(Oddity::Undecryptable | Oddity::BadSdkfileid | Oddity::WrongMd5) => ExpectMedia::Failed,
        // The md5 proves the content, whatever size is declared.
        _ => ExpectMedia::Stored,
    };
    let expect = match permanent(corp, faults, Function::GetMediaData, seq) {
        Some(fault) if fault.code == Some(10_010) || fault.is_passing() => ExpectMedia::Expired,
        Some(fault) if fault.answers_falsely() => ExpectMedia::Failed,
        _ => by_oddity,
    };
    MediaExpectation {
        path: reference.path.clone(),
        sdkfileid_sha256: sha256(reference.sdkfileid.as_bytes()),
        size: reference.file.size_bytes,
        md5: hashes.md5,
        sha256: hashes.sha256,
        expect,
        odd: reference.odd,
    }
}

/// The fault, if there is one, that hits every such call for the message, for ever.
fn permanent<'a>(corp: &Corp, faults: &'a [Fault], function: Function, seq: u64) -> Option<&'a Fault> {
    let call = crate::fault::Call { function, corp_id: &corp.scenario.id, seqs: Some((seq, seq)), limit: None };
    faults.iter().find(|fault| fault.is_permanent() && fault.selects(&call))
}

/// The room; or two people who talk to each other.
fn conversation(message: &Message) -> Option<String> {
    match (&message.room_id, &message.from, message.to.as_slice()) {
        (Some(room_id), _, _) => Some(room_id.clone()),
        (None, Some(from), [to]) if message.kind != MessageKind::Switch => {
            let (first, second) = if from <= to { (from, to) } else { (to, from) };
            Some(format!("{first}|{second}"))
        }
        _ => None,
    }
}

fn sha256(bytes: &[u8]) -> String {
    hexadecimal(digest(&SHA256, bytes).as_ref())
}
