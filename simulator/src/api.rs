//! The vendor's API, answered from a scenario: what a server has to say to the three requests of the library.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::Value;

use crate::archive::{Account, Archive, NoPiece, Pull, refusal};
use crate::code::Code;
use crate::fault::{Call, Fault, Function};
use crate::media::{CHUNK_BYTES, FileId, FileKey, Obstacle};

/// The three paths that the library asks for (measured).
pub const TOKENS: &str = "/cgi-bin/gettoken";
pub const PAGES: &str = "/cgi-bin/message/getchatdata";
pub const FILES: &str = "/cgi-bin/message/getchatmediadata";

/// A request, as far as it counts.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub path: &'a str,
    /// What stands behind the `?`.
    pub query: &'a str,
    /// The header `Range`.
    pub range: Option<&'a str>,
    pub body: &'a [u8],
}

/// What the server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// The header `CONTENT-RANGE`, which the library finds in capitals alone (measured).
    pub content_range: Option<String>,
    pub body: Vec<u8>,
    /// Whether the connection ends before the answer does.
    pub is_cut: bool,
}

impl Answer {
    fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, content_range: None, body, is_cut: false }
    }

    fn error(status: u16) -> Self {
        Self { status, content_range: None, body: Vec::new(), is_cut: false }
    }

    /// What the fault leaves of the answer as a whole.
    fn hit_by(self, fault: Option<&Fault>) -> Self {
        match fault {
            Some(Fault { status: Some(status), .. }) => Self::error(*status),
            Some(Fault { cut: true, .. }) => Self { is_cut: true, ..self },
            _ => self,
        }
    }

    fn broken(_: Code) -> Self {
        Self::error(500)
    }
}

impl Archive {
    /// Answers a request. Waits as long as a fault says.
    pub fn answer(&self, request: &Request<'_>) -> Answer {
        let parameter =
            |name: &str| request.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
        if request.path == TOKENS {
            return self
                .give_token(parameter("corpid").unwrap_or_default(), parameter("corpsecret").unwrap_or_default());
        }
        let Some(account) = self.account_of_token(parameter("access_token").unwrap_or_default()) else {
            return Answer::ok(refusal(40_014));
        };
        let token = parameter("access_token").unwrap_or_default();
        let asked: Value = serde_json::from_slice(request.body).unwrap_or_default();
        match request.path {
            PAGES => self.give_page(account, token, &asked),
            FILES => self.give_piece(account, token, request.range, &asked),
            _ => Answer::error(404),
        }
    }

    fn give_token(&self, corp_id: &str, secret: &str) -> Answer {
        let call = Call { function: Function::GetChatData, corp_id, seqs: None, limit: None };
        let is_refused = self.fault(&call, |fault| fault.refuse_token).is_some();
        match self.account(corp_id, secret) {
            Some(account) if !is_refused => match self.token(&account.corp) {
                Ok(token) => Answer::ok(
                    format!(r#"{{"errcode":0,"errmsg":"ok","access_token":"{token}","expires_in":7200}}"#).into_bytes(),
                ),
                Err(code) => Answer::broken(code),
            },
            _ => Answer::ok(wrong_secret(secret)),
        }
    }

    fn give_page(&self, account: &Account, token: &str, asked: &Value) -> Answer {
        let corp = &account.corp;
        let (seq, limit) = (asked["seq"].as_u64().unwrap_or_default(), asked["limit"].as_u64().unwrap_or_default());
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        let pull = Pull::new(corp, seq, limit);
        let call = Call {
            function: Function::GetChatData,
            corp_id: &corp.scenario.id,
            seqs: pull.seqs(corp),
            limit: Some(limit),
        };
        let fault = self.fail_answer(&call);
        self.page(account, token, &pull, fault).map_or_else(Answer::broken, Answer::ok).hit_by(fault)
    }

    fn give_piece(&self, account: &Account, token: &str, range: Option<&str>, asked: &Value) -> Answer {
        let corp = &account.corp;
        let Some(id) = FileId::of_file(asked["fileid"].as_str().unwrap_or_default()) else {
            return Answer::ok(refusal(40_007));
        };
        let Some(range) = range.map_or(Some((0, CHUNK_BYTES - 1)), bytes) else { return Answer::error(416) };
        let seqs = Some((id.seq, id.seq));
        let call = Call { function: Function::GetMediaData, corp_id: &corp.scenario.id, seqs, limit: None };
        let fault = self.fail_answer(&call);
        match self.piece(corp, token, &id, range, fault) {
            Ok(_) if id.obstacle == Obstacle::Undecryptable => give_part(&[0; 16], (0, 15), 16, id.key(), false),
            Ok(piece) => {
                let is_last = piece.is_last();
                give_part(&piece.data, (range.0, piece.next - 1), piece.size_bytes, id.key(), is_last)
            }
            Err(NoPiece::Errcode(errcode)) => Answer::ok(refusal(errcode)),
            Err(NoPiece::Body(body)) => Answer::ok(body),
            Err(NoPiece::OutOfRange) => Answer::error(416),
        }
        .hit_by(fault)
    }

    /// The fault that hits the answer to this call; its delay is over then.
    fn fail_answer(&self, call: &Call<'_>) -> Option<&Fault> {
        let fault = self.fault(call, |fault| !fault.is_of_library() && !fault.refuse_token)?;
        std::thread::sleep(Duration::from_millis(fault.slow_ms));
        Some(fault)
    }
}

/// The answer with a part of a file (measured): the part as base64 in JSON, and where it lies as a header.
fn give_part(part: &[u8], (first, last): (u64, u64), size_bytes: u64, key: FileKey, is_last: bool) -> Answer {
    let content = BASE64.encode(key.encipher(part.to_vec(), is_last));
    Answer {
        status: 206,
        content_range: Some(format!("BYTES {first}-{last}/{size_bytes}")),
        body: format!(r#"{{"errcode":0,"errmsg":"ok","content":"{content}"}}"#).into_bytes(),
        is_cut: false,
    }
}

/// Start and end of `bytes=0-9`.
fn bytes(range: &str) -> Option<(u64, u64)> {
    let (start, end) = range.trim().strip_prefix("bytes=")?.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end && end <= u64::MAX - CHUNK_BYTES).then_some((start, end))
}

/// The token endpoint's refusal echoes the secret and holds bytes that are not UTF-8: whoever logs it has to see to that.
pub fn wrong_secret(secret: &str) -> Vec<u8> {
    [br#"{"errcode":40001,"errmsg":"invalid secret "#, secret.as_bytes(), b" \xff\xfe\"}"].concat()
}
