//! The vendor's API, answered from a scenario: what a server has to say to the three requests of the library.

use std::time::Duration;

use serde_json::Value;

use crate::archive::{Account, Archive, NoPiece, Piece, Pull, refusal};
use crate::code::Code;
use crate::fault::{Call, Fault, Function};
use crate::media::{CHUNK_BYTES, FileId};

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
    /// The header `Content-Range`.
    pub content_range: Option<String>,
    pub body: Vec<u8>,
}

impl Answer {
    fn ok(body: Vec<u8>) -> Self {
        Self { status: 200, content_range: None, body }
    }

    fn error(status: u16) -> Self {
        Self { status, content_range: None, body: Vec::new() }
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
        self.page(account, token, &pull, fault).map_or_else(Answer::broken, Answer::ok)
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
            Ok(Piece { data, next, size_bytes }) => {
                let content_range = match next.checked_sub(1).filter(|last| *last >= range.0) {
                    Some(last) => format!("bytes {}-{last}/{size_bytes}", range.0),
                    None => format!("bytes */{size_bytes}"),
                };
                Answer { status: 206, content_range: Some(content_range), body: data }
            }
            Err(NoPiece::Errcode(errcode)) => Answer::ok(refusal(errcode)),
            Err(NoPiece::Body(body)) => Answer::ok(body),
            Err(NoPiece::OutOfRange) => Answer::error(416),
        }
    }

    /// The fault that hits the answer to this call; its delay is over then.
    fn fail_answer(&self, call: &Call<'_>) -> Option<&Fault> {
        let fault = self.fault(call, |fault| !fault.is_of_library() && !fault.refuse_token)?;
        std::thread::sleep(Duration::from_millis(fault.slow_ms));
        Some(fault)
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
