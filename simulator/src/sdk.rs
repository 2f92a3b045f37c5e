//! The library's behaviour, call by call, without its C types.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::wrong_secret;
use crate::archive::{Archive, NoPiece, Pull, now_ms, print_raw};
use crate::code::{BAD_ARGUMENT, Code, MALFORMED, NETWORK, NOT_DECRYPTED, SYSTEM};
use crate::fault::{Call, Fault, Function};
use crate::media::{CHUNK_BYTES, CIPHER_BLOCK_BYTES, Chunk, FileId, Obstacle, Parcel};
use crate::network::Via;
use crate::probe;

/// An sdk object.
#[derive(Debug)]
pub struct Sdk {
    archive: Option<Arc<Archive>>,
    identity: Mutex<Identity>,
    /// Calls that are inside the object.
    calls: AtomicU64,
}

#[derive(Debug, Clone, Default)]
struct Identity {
    corp_id: String,
    secret: String,
    /// The one that the object got at its first call, and keeps.
    token: Option<String>,
}

/// Counts a call as long as it lasts.
#[derive(Debug)]
struct Inside<'a>(&'a AtomicU64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Sdk {
    /// `NewSdk`. Without an archive (the scenario can't be used) each call fails with 10003.
    pub fn new(archive: Option<Arc<Archive>>) -> Self {
        Self { archive, identity: Mutex::default(), calls: AtomicU64::new(0) }
    }

    /// Whether a call is inside the object, so that it must not be destroyed.
    pub fn is_busy(&self) -> bool {
        self.calls.load(Ordering::Acquire) > 0
    }

    fn enter(&self) -> Inside<'_> {
        self.calls.fetch_add(1, Ordering::AcqRel);
        Inside(&self.calls)
    }

    /// `Init`: takes any id and secret that are not empty.
    pub fn init(&self, corp_id: &[u8], secret: &[u8]) -> Result<(), Code> {
        let _inside = self.enter();
        if corp_id.is_empty() || secret.is_empty() {
            return Err(BAD_ARGUMENT);
        }
        let archive = self.archive.as_ref().ok_or(SYSTEM)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let identity = Identity { corp_id: text(corp_id), secret: text(secret), token: None };
        let call = Call { function: Function::Init, corp_id: &identity.corp_id, seqs: None, limit: None };
        if let Some(fault) = archive.fault(&call, |_| true) {
            archive.strike(fault, &identity.secret, 0)?;
        }
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
        Ok(())
    }

    /// `GetChatData`: the records behind `seq`, or an errcode, as JSON.
    pub fn get_chat_data(&self, seq: u64, limit: u32, via: &Via<'_>) -> Result<Vec<u8>, Code> {
        let _inside = self.enter();
        if !(1..=1_000).contains(&limit) {
            return Err(BAD_ARGUMENT);
        }
        let archive = self.archive.as_ref().ok_or(SYSTEM)?;
        let identity = self.identity();
        let account = archive.account(&identity.corp_id, &identity.secret);
        let pull = account.map(|account| Pull::new(&account.corp, seq, limit));
        let seqs = account.zip(pull.as_ref()).and_then(|(account, pull)| pull.seqs(&account.corp));
        let call = Call { function: Function::GetChatData, corp_id: &identity.corp_id, seqs, limit: Some(limit) };
        if let Some(network) = archive.network() {
            self.fail_aside(archive, &call, via)?;
            let token = self.token(|| network.token(&identity.corp_id, &identity.secret, via))?;
            return network.page(&token, seq, limit, via);
        }
        let account = account.ok_or_else(|| refuse_token(&wrong_secret(&identity.secret)))?;
        let pull = pull.ok_or(SYSTEM)?;
        via.scheme()?;
        let fault = self.fail(archive, &call, via)?;
        if let Some(fault) = fault.filter(|fault| !fault.probe.is_empty()) {
            return Ok(probe::answer(&fault.probe));
        }
        let token = self.token(|| archive.token(&account.corp))?;
        archive.page(account, &token, &pull, fault)
    }

    /// `GetMediaData`: at most 512 KiB of a file, from `index` on, which is empty for the first piece.
    pub fn get_media_data(&self, index: &[u8], sdkfileid: &[u8], via: &Via<'_>) -> Result<Chunk, Code> {
        let _inside = self.enter();
        let range = if index.is_empty() { (0, CHUNK_BYTES - 1) } else { range(index).ok_or(BAD_ARGUMENT)? };
        if sdkfileid.is_empty() {
            return Err(BAD_ARGUMENT);
        }
        let archive = self.archive.as_ref().ok_or(SYSTEM)?;
        let identity = self.identity();
        let id = FileId::decode(sdkfileid);
        let seqs = id.map(|id| (id.seq, id.seq));
        let call = Call { function: Function::GetMediaData, corp_id: &identity.corp_id, seqs, limit: None };
        // An id is judged with a token in hand, but before the vendor is asked for the file.
        if let Some(network) = archive.network() {
            self.fail_aside(archive, &call, via)?;
            let token = self.token(|| network.token(&identity.corp_id, &identity.secret, via))?;
            return network.chunk(&token, &Parcel::decode(sdkfileid).ok_or(MALFORMED)?, range, via);
        }
        let account = archive.account(&identity.corp_id, &identity.secret);
        let account = account.ok_or_else(|| refuse_token(&wrong_secret(&identity.secret)))?;
        via.scheme()?;
        let fault = self.fail(archive, &call, via)?;
        let token = self.token(|| archive.token(&account.corp))?;
        let id = id.ok_or(MALFORMED)?;
        let piece = archive.piece(&account.corp, &token, &id, range, fault).map_err(|no_piece| match no_piece {
            NoPiece::Errcode(errcode) => Code::of_media_errcode(errcode),
            NoPiece::Body(_) => SYSTEM,
            NoPiece::OutOfRange => NETWORK,
        })?;
        if id.obstacle == Obstacle::Undecryptable {
            return Err(NOT_DECRYPTED);
        }
        let next = (!piece.is_last()).then_some(piece.next);
        Ok(Chunk::new(piece.data, next))
    }

    fn identity(&self) -> Identity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Strikes the fault that is up for the call. What is left of it is the answer's.
    fn fail<'a>(&self, archive: &'a Archive, call: &Call<'_>, via: &Via<'_>) -> Result<Option<&'a Fault>, Code> {
        let fault = archive.fault(call, |_| true);
        if let Some(fault) = fault {
            let secret = self.identity().secret;
            archive.strike(fault, &secret, via.timeout_s)?;
            if fault.refuse_token {
                return Err(refuse_token(&wrong_secret(&secret)));
            }
        }
        Ok(fault)
    }

    /// Strikes what is the library's own of the faults that are up: the API that it goes to sees to the others.
    fn fail_aside(&self, archive: &Archive, call: &Call<'_>, via: &Via<'_>) -> Result<(), Code> {
        match archive.fault(call, Fault::is_of_library) {
            Some(fault) => archive.strike(fault, &self.identity().secret, via.timeout_s),
            None => Ok(()),
        }
    }

    /// The object's token, which it gets at its first call.
    fn token(&self, get: impl FnOnce() -> Result<String, Code>) -> Result<String, Code> {
        if let Some(token) = self.identity().token {
            return Ok(token);
        }
        let token = get()?;
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).token = Some(token.clone());
        Ok(token)
    }
}

/// The library prints the token endpoint's answer raw on stdout, in a frame of its own that ends in GBK.
pub fn refuse_token(answer: &[u8]) -> Code {
    let end = format!("time:{}\n", now_ms() / 1_000);
    let words = [b"WeWorkFinanceSdk:access:", answer, b"\xa3\xac", end.as_bytes()].concat();
    print_raw(&mut std::io::stdout(), &words);
    NETWORK
}

/// The bytes that an index asks for. The vendor's library takes ranges of whole cipher blocks alone.
fn range(index: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(index).ok()?.strip_prefix("Range:bytes=")?;
    let (start, end) = text.split_once('-')?;
    let (start, end): (u64, u64) = (start.parse().ok()?, end.parse().ok()?);
    let length = end.checked_sub(start)?.checked_add(1)?;
    (length % CIPHER_BLOCK_BYTES == 0 && end <= u64::MAX - CHUNK_BYTES).then_some((start, end))
}
