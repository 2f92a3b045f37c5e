//! What tasks use of the vendor's library: calls with a deadline on a host that is replaced when it dies or hangs.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::frame::{Account, Request, Response, SealedMessage, SealedRef};
use super::process::{Call, Death, OpenError, Process};
use crate::egress::{Failure, Guard, Seen};
use crate::metrics::ConnectorMetrics;

pub const GET_CHAT_DATA: &str = "GetChatData";
const GET_MEDIA_DATA: &str = "GetMediaData";
const DECRYPT_DATA: &str = "DecryptData";

/// What a call may take beyond the time limit that the library itself is given.
const GRACE: Duration = Duration::from_secs(5);

/// Decryption is local work of microseconds; a message that takes this long hangs.
const DECRYPT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a call is tried on hosts that die under it, before it is confirmed alone (media) or given back (pull).
const ATTEMPTS_MAX: u32 = 3;

/// How often a host that was lost to a cause outside the library is replaced for one confirmation.
const CONFIRMATIONS_MAX: u32 = 5;

/// A host that is at work gives a sign of life within milliseconds.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

const RESTART_DELAY_MIN: Duration = Duration::from_millis(100);
const RESTART_DELAY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SdkError {
    /// The library answered with a return code other than 0.
    #[error("{function} answered {code}{}", because(.cause))]
    Code {
        function: &'static str,
        code: i32,
        /// Why a call did not get through, where that is known.
        cause: Option<Failure>,
    },
    /// The host dies or hangs under this call, each time it is tried.
    #[error("the SDK host {reason} in {function}")]
    Crash { function: &'static str, reason: String },
    /// No host can be had, for a reason that may pass.
    #[error("{0}")]
    Unavailable(String),
    /// The library cannot be loaded, or refuses the account: a sentence that says what to change.
    #[error("{0}")]
    Configuration(String),
}

fn because(cause: &Option<Failure>) -> String {
    cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default()
}

/// Why one message cannot be decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecryptError {
    #[error("DecryptData answered {0}")]
    Code(i32),
    /// Confirmed alone in a fresh host.
    #[error("the SDK host {0} in DecryptData")]
    Crash(String),
}

/// One chunk of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MediaChunk {
    pub data: Vec<u8>,
    /// Opaque; asks for the next chunk.
    pub next_index: Vec<u8>,
    pub is_finish: bool,
    /// How long WeCom says that the whole file is, enciphered: with 1 to 16 bytes of padding. Only the egress guard
    /// can tell.
    pub file_bytes: Option<u64>,
}

/// A connector's way to the library. Cheap to clone; all clones share one host, which starts with the first call.
#[derive(Debug, Clone)]
pub struct SdkClient(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    account: Account,
    guard: Option<Guard>,
    metrics: Arc<ConnectorMetrics>,
    host: Mutex<HostSlot>,
    /// Hosts lost since the last answer to a call.
    losses: AtomicU32,
}

#[derive(Debug, Default)]
struct HostSlot {
    process: Option<Arc<Process>>,
    start_not_before: Option<Instant>,
    /// Whether it has been said what could not be had to keep the library in.
    is_unconfined_said: bool,
}

impl SdkClient {
    /// `program` is this very program; it is run again as `sdk-host`. With a guard, the proxy of `account` is the guard's to use;
    /// the library is told the guard's address and a password that is for one host alone.
    pub fn new(program: PathBuf, account: Account, guard: Option<Guard>, metrics: Arc<ConnectorMetrics>) -> Self {
        Self(Arc::new(Shared { program, account, guard, metrics, host: Mutex::default(), losses: AtomicU32::new(0) }))
    }

    /// Starts the host now, to see that the library can be loaded. Gives the library's path.
    pub async fn open(&self) -> Result<String, SdkError> {
        Ok(self.host().await?.library.clone())
    }

    /// Records after `seq`, at most `limit` (1..=1000), as the library handed them over: `errcode` inside has still to be read.
    ///
    /// # Errors
    /// [`SdkError::Crash`] after three hosts were lost under it; [`SdkError::Unavailable`] where the last of them was
    /// lost to a cause outside the library.
    ///
    /// A call that brings an answer is not counted in the metrics here: its code stands in the answer, for the caller to read.
    pub async fn get_chat_data(&self, seq: u64, limit: u32) -> Result<Vec<u8>, SdkError> {
        let mut attempts = 0;
        loop {
            let host = self.host().await?;
            match self.ask(&host, GET_CHAT_DATA, Request::GetChatData { seq, limit }, self.network_timeout()).await {
                Ok((Response::ChatData(bytes), _)) => return Ok(bytes),
                Ok((other, seen)) => return Err(failure(&host, GET_CHAT_DATA, other, seen)),
                Err(death) => {
                    attempts += 1;
                    if attempts == ATTEMPTS_MAX {
                        return Err(lost_in(GET_CHAT_DATA, &death));
                    }
                }
            }
        }
    }

    /// One chunk of a file, at most 512 KiB (measured). `index` is empty for the first.
    ///
    /// # Errors
    /// [`SdkError::Crash`] only when the call, alone in a fresh host, lost that one too; a host killed from outside says nothing
    /// of the file.
    pub async fn get_media_data(&self, sdkfileid: &str, index: &[u8]) -> Result<MediaChunk, SdkError> {
        let request = || Request::GetMediaData { sdkfileid, index };
        let timeout = self.network_timeout();
        for _ in 1..ATTEMPTS_MAX {
            let host = self.host().await?;
            if let Ok((response, seen)) = self.ask(&host, GET_MEDIA_DATA, request(), timeout).await {
                return media(&host, response, seen);
            }
        }
        let mut last = None;
        for _ in 0..CONFIRMATIONS_MAX {
            let host = self.fresh_host().await?;
            match self.ask(&host, GET_MEDIA_DATA, request(), timeout).await {
                Ok((response, seen)) => return media(&host, response, seen),
                Err(death @ Death::Killed(_)) => last = Some(death),
                Err(death) => return Err(lost_in(GET_MEDIA_DATA, &death)),
            }
        }
        Err(unavailable(last))
    }

    /// Decrypts messages; results are in the order of `messages`, one for each.
    ///
    /// A message under which the host dies or hangs is tried once more, alone in a fresh host, and is
    /// [`DecryptError::Crash`] if that one dies too. The others are not touched by it. A host that is lost to a cause
    /// outside the library, as to a system without memory or threads, says nothing of the message.
    ///
    /// # Errors
    /// [`SdkError::Unavailable`] when no host lives long enough to tell: the messages may all be good.
    pub async fn decrypt(&self, messages: &[SealedMessage]) -> Result<Vec<Result<Vec<u8>, DecryptError>>, SdkError> {
        let mut results = Vec::with_capacity(messages.len());
        while results.len() < messages.len() {
            let host = self.host().await?;
            if let Err(death) = self.decrypt_in_order(&host, messages, &mut results).await {
                let suspect = &messages[results.len()..][..1];
                let kind = death.kind();
                tracing::warn!(host = host.id, kind, %death, "the SDK host is lost in a decryption; the message it was at is tried alone");
                results.push(self.decrypt_alone(suspect, &death).await?);
            }
        }
        Ok(results)
    }

    async fn decrypt_in_order(
        &self,
        host: &Arc<Process>,
        messages: &[SealedMessage],
        results: &mut Vec<Result<Vec<u8>, DecryptError>>,
    ) -> Result<(), Death> {
        let rest: Vec<SealedRef<'_>> = messages[results.len()..].iter().map(SealedRef::from).collect();
        let mut answers = self.call(host, DECRYPT_DATA, Request::Decrypt(rest)).await?;
        while results.len() < messages.len() {
            let answer = self.next_answer(host, DECRYPT_DATA, DECRYPT_TIMEOUT, &mut answers).await;
            let answer = answer.inspect_err(|death| self.0.metrics.sdk_call(DECRYPT_DATA, death.kind()))?;
            self.0.losses.store(0, Ordering::Relaxed);
            results.push(match answer {
                Response::Decrypted(plaintext) => {
                    self.0.metrics.sdk_call(DECRYPT_DATA, 0);
                    Ok(plaintext)
                }
                Response::Failed { code } => {
                    self.0.metrics.sdk_call(DECRYPT_DATA, code);
                    Err(DecryptError::Code(code))
                }
                other => return Err(Death::Crash(format!("answered {} to {DECRYPT_DATA}", kind(&other)))),
            });
        }
        Ok(())
    }

    /// One message in a host of its own, after a host with others has died of `first`. Two deaths of its own doing are proof.
    async fn decrypt_alone(
        &self,
        message: &[SealedMessage],
        first: &Death,
    ) -> Result<Result<Vec<u8>, DecryptError>, SdkError> {
        let proof = |death: &Death| u32::from(!matches!(death, Death::Killed(_)));
        let (mut proofs, mut last) = (proof(first), None);
        for _ in 0..CONFIRMATIONS_MAX {
            let host = self.fresh_host().await?;
            let mut results = Vec::new();
            let Err(death) = self.decrypt_in_order(&host, message, &mut results).await else {
                return results.pop().ok_or_else(|| SdkError::Unavailable("no answer".into()));
            };
            proofs += proof(&death);
            if proofs == 2 {
                self.forgive().await;
                return Ok(Err(DecryptError::Crash(death.to_string())));
            }
            last = Some(death);
        }
        Err(unavailable(last))
    }

    /// Makes a new sdk object, with a new token: an object goes on using a dead token for ever (measured).
    pub async fn renew(&self) -> Result<(), SdkError> {
        let host = self.host().await?;
        match self.ask(&host, "Init", Request::Renew, GRACE).await {
            // A host that died of it comes back with a new object.
            Ok((Response::Opened { .. }, _)) | Err(_) => Ok(()),
            Ok((other, seen)) => Err(failure(&host, "Init", other, seen)),
        }
    }

    fn network_timeout(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.0.account.timeout_s).unwrap_or_default()) + GRACE
    }

    /// One request with one answer, within `timeout`, and what the guard saw of it.
    async fn ask(
        &self,
        host: &Arc<Process>,
        function: &'static str,
        request: Request<'_>,
        timeout: Duration,
    ) -> Result<(Response, Seen), Death> {
        let answer = async {
            let mut answers = self.call(host, function, request).await?;
            Ok((self.next_answer(host, function, timeout, &mut answers).await?, answers.number))
        };
        let (response, call) =
            answer.await.inspect_err(|death: &Death| self.0.metrics.sdk_call(function, death.kind()))?;
        self.0.losses.store(0, Ordering::Relaxed);
        match response {
            Response::ChatData(_) => {}
            Response::Failed { code } => self.0.metrics.sdk_call(function, code),
            _ => self.0.metrics.sdk_call(function, 0),
        }
        Ok((response, host.pass.as_ref().map(|pass| pass.seen(call)).unwrap_or_default()))
    }

    /// Hands a request to the host. One that takes none for this long is not at work.
    async fn call<'a>(
        &self,
        host: &'a Process,
        function: &'static str,
        request: Request<'_>,
    ) -> Result<Call<'a>, Death> {
        match tokio::time::timeout(PING_TIMEOUT, host.call(request)).await {
            Ok(call) => call,
            Err(_) => Err(self.end(host, function, stands_still()).await),
        }
    }

    /// The next answer of a call, within `timeout`.
    ///
    /// A call without one hangs only if the process as such is at work: one that is stopped, or gets no CPU, tells
    /// nothing of what it was given. So it is asked for a sign of life first; what came meanwhile, while this worker
    /// itself was held up, counts.
    async fn next_answer(
        &self,
        host: &Process,
        function: &'static str,
        timeout: Duration,
        answers: &mut Call<'_>,
    ) -> Result<Response, Death> {
        if let Ok(answer) = tokio::time::timeout(timeout, answers.answer()).await {
            return answer;
        }
        let sign_of_life = tokio::time::timeout(PING_TIMEOUT, host.ping()).await;
        if let Some(answer) = answers.answer_at_hand() {
            return Ok(answer);
        }
        let death = match sign_of_life {
            Ok(Ok(())) => Death::Hang(format!("did not answer within {} s", timeout.as_secs())),
            Ok(Err(death)) => return Err(death),
            Err(_) => stands_still(),
        };
        Err(self.end(host, function, death).await)
    }

    async fn end(&self, host: &Process, function: &str, death: Death) -> Death {
        tracing::warn!(host = host.id, function, kind = death.kind(), %death, "the SDK host is killed");
        host.kill(death);
        host.died().await
    }

    /// The shared host; a new one if it is lost, after a delay that grows with each host lost without an answer.
    async fn host(&self) -> Result<Arc<Process>, SdkError> {
        let mut slot = self.0.host.lock().await;
        if let Some(process) = &slot.process {
            if !process.is_dead() {
                return Ok(process.clone());
            }
            let death = process.died().await;
            tracing::warn!(host = process.id, kind = death.kind(), %death, "the SDK host is lost and will be replaced");
            slot.process = None;
            self.lost(&mut slot, death.kind());
        }
        if let Some(not_before) = slot.start_not_before {
            tokio::time::sleep_until(not_before.into()).await;
        }
        match Process::start(&self.0.program, &self.0.account, self.0.guard.as_ref()).await {
            Ok(process) => {
                tracing::info!(host = process.id, kind = "start", library = process.library, "the SDK host runs");
                if !std::mem::replace(&mut slot.is_unconfined_said, true) {
                    for sentence in &process.unconfined {
                        tracing::warn!(host = process.id, "{sentence}");
                    }
                }
                let process = Arc::new(process);
                slot.process = Some(process.clone());
                Ok(process)
            }
            Err(error) => {
                self.lost(&mut slot, "start");
                Err(error.into())
            }
        }
    }

    fn lost(&self, slot: &mut HostSlot, reason: &'static str) {
        self.0.metrics.sdk_host_restart(reason);
        let losses = self.0.losses.fetch_add(1, Ordering::Relaxed).min(16);
        let delay = (RESTART_DELAY_MIN * 2u32.pow(losses)).min(RESTART_DELAY_MAX);
        slot.start_not_before = Some(Instant::now() + delay);
    }

    /// The loss of the shared host is explained by a message that is set aside: the next one need not wait.
    async fn forgive(&self) {
        let mut slot = self.0.host.lock().await;
        if let Some(process) = slot.process.take_if(|process| process.is_dead()) {
            self.0.metrics.sdk_host_restart(process.died().await.kind());
            slot.start_not_before = None;
        }
        self.0.losses.store(0, Ordering::Relaxed);
    }

    /// A host for one call alone.
    async fn fresh_host(&self) -> Result<Arc<Process>, SdkError> {
        Ok(Arc::new(Process::start(&self.0.program, &self.0.account, self.0.guard.as_ref()).await?))
    }
}

fn stands_still() -> Death {
    Death::Killed(format!(
        "gave no sign of life within {} s. It is stopped, or it gets no CPU: look at the CPU limit of the container or service",
        PING_TIMEOUT.as_secs()
    ))
}

/// A call under which one host after the other is lost.
fn lost_in(function: &'static str, death: &Death) -> SdkError {
    match death {
        Death::Killed(_) => SdkError::Unavailable(format!("the SDK host {death}")),
        Death::Crash(reason) | Death::Hang(reason) => SdkError::Crash { function, reason: reason.clone() },
    }
}

fn unavailable(last: Option<Death>) -> SdkError {
    let last = last.map(|death| death.to_string()).unwrap_or_default();
    SdkError::Unavailable(format!("the SDK host is lost again and again: it {last}"))
}

impl From<OpenError> for SdkError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Start(_) => Self::Unavailable(error.to_string()),
            OpenError::Library(_) | OpenError::Init(_) => Self::Configuration(error.to_string()),
        }
    }
}

fn media(host: &Process, response: Response, seen: Seen) -> Result<MediaChunk, SdkError> {
    match response {
        Response::Media { data, next_index, is_finish } => {
            Ok(MediaChunk { data, next_index, is_finish, file_bytes: seen.file_bytes })
        }
        other => Err(failure(host, GET_MEDIA_DATA, other, seen)),
    }
}

/// An answer that is not the one asked for.
fn failure(host: &Process, function: &'static str, response: Response, seen: Seen) -> SdkError {
    match response {
        Response::Failed { code } => SdkError::Code { function, code, cause: seen.failure },
        other => {
            host.kill(Death::Hang("answered something else than was asked".into()));
            SdkError::Crash { function, reason: format!("answered {} to it", kind(&other)) }
        }
    }
}

fn kind(response: &Response) -> &'static str {
    match response {
        Response::Opened { .. } => "an opening",
        Response::Pong => "a sign of life",
        Response::CannotOpen { .. } => "a refusal",
        Response::ChatData(_) => "a page",
        Response::Media { .. } => "a chunk",
        Response::Decrypted(_) => "a message",
        Response::Failed { .. } => "a code",
    }
}
