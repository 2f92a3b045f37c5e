//! The worker's end of one SDK host: starting it, calling it, seeing it die, killing it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};

use super::frame::{self, Account, Frame, Request, Response};
use super::output;
use crate::egress::{Guard, Pass};

/// How long a host may take to load the library. Loading runs its initialisers; the vendor's takes some 20 ms.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);

/// Frames waiting to be written to a host. A call writes one.
const FRAMES_QUEUED_MAX: usize = 64;

/// What the library is given beyond the guard's time limit: it is the guard that has to say that the time was up.
const GUARD_GRACE_S: i32 = 2;

/// What a host inherits of the worker's environment. The rest could hold secrets and is none of the library's business.
const ENVIRONMENT: [&str; 8] = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "LD_LIBRARY_PATH",
    "WECOM_SIMULATOR_SCENARIO",
    "WECOM_SIMULATOR_STATE_DIR",
];

/// What the library's own HTTP obeys, where no guard stands before it.
const ENVIRONMENT_OF_HTTP: [&str; 7] =
    ["SSL_CERT_FILE", "SSL_CERT_DIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTPS_PROXY"];

/// How a host ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// By itself: an abort, a fault, an exit. What it was doing may be the cause.
    Crash(String),
    /// Killed by this worker, because a call did not answer in time.
    Hang(String),
    /// By a signal from outside (an operator, the kernel out of memory, the service manager).
    Killed(String),
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Crash(reason) | Self::Hang(reason) | Self::Killed(reason) => f.write_str(reason),
        }
    }
}

impl Death {
    /// Label of metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Crash(_) => "crash",
            Self::Hang(_) => "hang",
            Self::Killed(_) => "killed",
        }
    }

    fn of(status: ExitStatus) -> Self {
        match status.signal() {
            Some(signal @ (1 | 2 | 9 | 15)) => Self::Killed(format!("killed by signal {signal}")),
            Some(signal) => Self::Crash(format!("died of signal {signal}")),
            None => Self::Crash(format!("exited with {}", status.code().unwrap_or_default())),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The process cannot be started, or did not come up.
    #[error("the SDK host cannot be started: {0}")]
    Start(String),
    /// The library cannot be loaded: a sentence that says what to do.
    #[error("{0}")]
    Library(String),
    /// `Init` failed with this return code.
    #[error("the vendor's library refuses the account: Init answered {0}; check wecom.corp.id and wecom.secret")]
    Init(i32),
}

type Answers = mpsc::Sender<Response>;

/// One running host. Dropping the last handle kills it.
#[derive(Debug)]
pub struct Process {
    pub id: u32,
    pub library: String,
    /// Its leave to use the guard, which ends with it.
    pub pass: Option<Pass>,
    /// What keeps the library in and could not be had here: a sentence each.
    pub unconfined: Vec<String>,
    frames: mpsc::Sender<Vec<u8>>,
    calls: Arc<Calls>,
    next_call: AtomicU64,
    kill: watch::Sender<Option<Death>>,
    death: watch::Receiver<Option<Death>>,
}

/// Who waits for which answers. `None` once the host has no more to say.
#[derive(Debug)]
struct Calls(Mutex<Option<HashMap<u64, Answers>>>);

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Answers>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The answers to one call. Forgotten when dropped.
#[derive(Debug)]
pub struct Call<'a> {
    process: &'a Process,
    /// By which the guard knows it.
    pub number: u64,
    answers: mpsc::Receiver<Response>,
}

impl Process {
    /// Starts a host and opens the library in it; behind `guard`, where there is one.
    pub async fn start(program: &PathBuf, account: &Account, guard: Option<&Guard>) -> Result<Self, OpenError> {
        let start = |error: std::io::Error| OpenError::Start(error.to_string());
        let mut account = account.clone();
        let pass = match guard {
            Some(guard) => {
                let pass = guard.admit().await.map_err(start)?;
                account.proxy = format!("http://{}", pass.address());
                account.guard_port = Some(pass.address().port());
                account.proxy_password = pass.password().to_owned();
                account.timeout_s = account.timeout_s.saturating_add(GUARD_GRACE_S);
                Some(pass)
            }
            None => None,
        };
        let (ours, theirs) = StdUnixStream::pair().map_err(start)?;
        ours.set_nonblocking(true).map_err(start)?;
        let ours = UnixStream::from_std(ours).map_err(start)?;
        let mut child = Command::new(program)
            .arg0("wecom-connector")
            .arg("sdk-host")
            .env_clear()
            .envs(inherited(pass.is_some()).filter_map(|name| Some((name, std::env::var_os(name)?))))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A Ctrl-C in the worker's terminal is the worker's to handle.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let id = child.id().unwrap_or_default();

        let secrets: Arc<[String]> = Arc::new([account.secret.clone(), account.proxy_password.clone()]);
        if let Some(stdout) = child.stdout.take() {
            tokio::spawn(output::log(stdout, "stdout", id, secrets.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tokio::spawn(output::log(stderr, "stderr", id, secrets));
        }

        let (read, mut write) = ours.into_split();
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(FRAMES_QUEUED_MAX);
        tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                if write.write_all(&frame).await.is_err() {
                    return;
                }
            }
        });
        let calls = Arc::new(Calls(Mutex::new(Some(HashMap::new()))));
        let reader = tokio::spawn(deliver(read, calls.clone()));
        let (kill, killed) = watch::channel(None);
        let (died, death) = watch::channel(None);
        tokio::spawn(reap(child, reader, killed, died));

        let mut process = Self {
            id,
            library: String::new(),
            pass,
            unconfined: Vec::new(),
            frames,
            calls,
            next_call: AtomicU64::new(0),
            kill,
            death,
        };
        let opened = process.call(Request::Open(account));
        let opened = async { opened.await?.answer().await };
        match tokio::time::timeout(OPEN_TIMEOUT, opened).await {
            Ok(Ok(Response::Opened { library, unconfined })) => {
                (process.library, process.unconfined) = (library, unconfined);
                Ok(process)
            }
            Ok(Ok(Response::CannotOpen { reason })) => Err(OpenError::Library(reason)),
            Ok(Ok(Response::Failed { code })) => Err(OpenError::Init(code)),
            Ok(Ok(_)) => Err(OpenError::Start("it answered something else than was asked".into())),
            Ok(Err(death)) => Err(OpenError::Start(death.to_string())),
            Err(_) => Err(OpenError::Start(format!("it did not come up within {} s", OPEN_TIMEOUT.as_secs()))),
        }
    }

    /// Sends a request.
    ///
    /// # Errors
    /// How the host ended, if it has.
    pub async fn call(&self, request: Request<'_>) -> Result<Call<'_>, Death> {
        let number = self.next_call.fetch_add(1, Ordering::Relaxed);
        let (sender, answers) = mpsc::channel(request.answers());
        let frame = frame::encode(number, request).map_err(|error| Death::Crash(error.to_string()))?;
        let registered = match self.calls.lock().as_mut() {
            Some(calls) => {
                calls.insert(number, sender);
                true
            }
            None => false,
        };
        let call = Call { process: self, number, answers };
        if !registered || self.frames.send(frame).await.is_err() {
            return Err(self.died().await);
        }
        Ok(call)
    }

    /// Ends the host because a call hangs. All calls in flight fail.
    pub fn kill(&self, reason: String) {
        self.kill.send_replace(Some(Death::Hang(reason)));
    }

    pub fn is_dead(&self) -> bool {
        self.calls.lock().is_none()
    }

    /// Waits for the host's end and says how it was.
    pub async fn died(&self) -> Death {
        let mut death = self.death.clone();
        match death.wait_for(Option::is_some).await {
            Ok(death) => death.clone().unwrap_or_else(|| Death::Crash("it ended".into())),
            Err(_) => Death::Crash("it ended".into()),
        }
    }
}

impl Call<'_> {
    /// The next answer.
    ///
    /// # Errors
    /// How the host ended, if it has.
    pub async fn answer(&mut self) -> Result<Response, Death> {
        match self.answers.recv().await {
            Some(answer) => Ok(answer),
            None => Err(self.process.died().await),
        }
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(calls) = self.process.calls.lock().as_mut() {
            calls.remove(&self.number);
        }
    }
}

/// The variables that a host gets of the worker's environment.
fn inherited(is_guarded: bool) -> impl Iterator<Item = &'static &'static str> {
    ENVIRONMENT.iter().chain(if is_guarded { &[][..] } else { &ENVIRONMENT_OF_HTTP })
}

/// Hands each answer to the call it belongs to. An answer to a call that was given up is dropped.
async fn deliver(read: impl tokio::io::AsyncRead + Unpin, calls: Arc<Calls>) {
    let codec = LengthDelimitedCodec::builder().max_frame_length(frame::FRAME_BYTES_MAX).new_codec();
    let mut frames = FramedRead::new(read, codec);
    while let Some(Ok(bytes)) = frames.next().await {
        let Ok(Frame { call, body }) = frame::decode::<Response>(&bytes) else { break };
        if let Some(answers) = calls.lock().as_ref().and_then(|calls| calls.get(&call)) {
            // There is room for every answer that the request asks for.
            let _ = answers.try_send(body);
        }
    }
    calls.lock().take();
}

/// Waits for the child's end, or for the order to kill it, and says how it ended once its last answers are delivered.
async fn reap(
    mut child: Child,
    reader: tokio::task::JoinHandle<()>,
    mut killed: watch::Receiver<Option<Death>>,
    died: watch::Sender<Option<Death>>,
) {
    let ordered = tokio::select! {
        status = child.wait() => Err(status),
        order = killed.wait_for(Option::is_some) => Ok(order.ok().and_then(|death| death.clone())),
    };
    let death = match ordered {
        Err(status) => status.map_or_else(|error| Death::Crash(error.to_string()), Death::of),
        Ok(order) => {
            let _ = child.start_kill();
            let _ = child.wait().await;
            order.unwrap_or_else(|| Death::Killed("no longer needed".into()))
        }
    };
    // The socket of a dead process is at its end: what it still said is in the buffer.
    let _ = reader.await;
    died.send_replace(Some(death));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A proxy or a certificate out of the environment would be a way past the guard.
    #[test]
    fn a_guarded_host_is_told_of_no_proxy_and_no_certificate() {
        let is_way_past = |name: &&&str| {
            let name = name.to_ascii_lowercase();
            name.contains("proxy") || name.contains("ssl")
        };
        assert_eq!(inherited(true).filter(is_way_past).count(), 0);
        assert_eq!(inherited(false).filter(is_way_past).count(), ENVIRONMENT_OF_HTTP.len());
    }
}
