//! The SDK host: the child process that holds the vendor's library (`wecom-connector sdk-host`).
//!
//! Its standard input is its end of the socket pair. It holds no private key and no Kafka client. When the worker goes away,
//! however that happens, the stream ends and the host ends with it, even while calls into the library are under way.

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use rustix::process::Signal;

use super::confinement;
use super::ffi::{self, Library, MediaData, Network, ReturnCode, Sdk};
use super::frame::{self, Account, Request, Response};
use crate::egress;

/// Serves the worker until it goes away.
///
/// # Errors
/// When standard input is not the socket that the worker hands to its hosts.
pub fn run() -> io::Result<()> {
    confinement::give_up_inheritance()?;
    ffi::print_by_line();

    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.peer_addr().map_err(|error| {
        io::Error::new(error.kind(), "sdk-host is started by the worker itself, with a socket as its standard input")
    })?;
    let host =
        Arc::new(Host { writer: Mutex::new(socket.try_clone()?), loaded: OnceLock::new(), session: RwLock::new(None) });
    let mut buffer = Vec::new();
    loop {
        match frame::read(&socket, &mut buffer) {
            Ok(true) => {}
            // Threads may be inside the library: nothing of it is to run on the way out.
            Ok(false) | Err(_) => die(),
        }
        // The library is loaded on this thread: all that come after it share what it has given up. It is called on others, so that
        // this one sees the worker go away whatever the library does.
        if host.loaded.get().is_none() {
            match host.load(&buffer) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(_) => die(),
            }
        }
        let call = buffer.clone();
        let host = host.clone();
        // A thread a call: there is one pull, one decryption and a few media chunks at a time, and each may block for long.
        std::thread::spawn(move || {
            if host.serve(&call).is_err() {
                die();
            }
        });
    }
}

/// Ends this process at once, without exit handlers: the library's could wait for its own threads.
fn die() -> ! {
    let _ = rustix::process::kill_process(rustix::process::getpid(), Signal::KILL);
    std::process::abort()
}

struct Host {
    writer: Mutex<UnixStream>,
    loaded: OnceLock<Loaded>,
    session: RwLock<Option<Session>>,
}

/// The library, before it is called, and what could not be had to keep it in.
struct Loaded {
    library: Arc<Library>,
    unconfined: Vec<String>,
}

/// The open library and its current sdk object.
#[derive(Clone)]
struct Session {
    library: Arc<Library>,
    account: Arc<Account>,
    sdk: Arc<Sdk>,
}

impl Session {
    /// Of the call of this number, by which the guard knows it.
    fn network(&self, call: u64) -> Network {
        let account = &self.account;
        let password = match account.guard_port {
            Some(_) => egress::proxy_password(call, &account.proxy_password),
            None => account.proxy_password.clone(),
        };
        Network {
            proxy: CString::new(account.proxy.as_str()).unwrap_or_default(),
            proxy_password: CString::new(password).unwrap_or_default(),
            timeout_s: account.timeout_s,
        }
    }
}

impl Host {
    /// Loads the library that the first request names, and shuts it in. Whether that went well; if not, it is answered.
    fn load(&self, bytes: &[u8]) -> io::Result<bool> {
        let frame::Frame { call, body } = frame::decode::<Request<'_>>(bytes)?;
        let Request::Open(account) = body else { return Err(io::Error::other("the worker opens the library first")) };
        match Library::load(account.library.as_deref()) {
            Ok(library) => {
                let unconfined = confinement::shut_in(account.guard_port, library.is_simulator());
                Ok(self.loaded.set(Loaded { library, unconfined }).is_ok())
            }
            Err(error) => {
                self.answer(call, Response::CannotOpen { reason: error.to_string() })?;
                Ok(false)
            }
        }
    }

    /// Serves one request; an error means that the worker cannot be talked to.
    fn serve(&self, bytes: &[u8]) -> io::Result<()> {
        let frame::Frame { call, body } = frame::decode::<Request<'_>>(bytes)?;
        match body {
            Request::Open(account) => self.answer(call, self.open(account)),
            Request::Renew => {
                let account = self.session()?.account;
                self.answer(call, self.open(Account::clone(&account)))
            }
            Request::GetChatData { seq, limit } => {
                let session = self.session()?;
                let result = session.sdk.get_chat_data(seq, limit, &session.network(call));
                self.answer(call, result.map_or_else(failed, Response::ChatData))
            }
            Request::GetMediaData { sdkfileid, index } => {
                let session = self.session()?;
                let result = session.sdk.get_media_data(sdkfileid, index, &session.network(call));
                self.answer(
                    call,
                    result.map_or_else(failed, |MediaData { data, next_index, is_finish }| Response::Media {
                        data,
                        next_index,
                        is_finish,
                    }),
                )
            }
            Request::Decrypt(messages) => {
                let session = self.session()?;
                for sealed in messages {
                    let result = session.library.decrypt(sealed.key, sealed.message);
                    self.answer(call, result.map_or_else(failed, Response::Decrypted))?;
                }
                Ok(())
            }
        }
    }

    fn session(&self) -> io::Result<Session> {
        let session = self.session.read().unwrap_or_else(PoisonError::into_inner);
        session.clone().ok_or_else(|| io::Error::other("the worker opens the library first"))
    }

    fn open(&self, account: Account) -> Response {
        let Some(Loaded { library, unconfined }) = self.loaded.get() else {
            return Response::CannotOpen { reason: "it is not loaded".into() };
        };
        let (library, unconfined) = (library.clone(), unconfined.clone());
        let mut session = self.session.write().unwrap_or_else(PoisonError::into_inner);
        // The old object goes before the new one comes.
        drop(session.take());
        let opened = Response::Opened { library: library.path().display().to_string(), unconfined };
        match Sdk::init(&library, &account.corp_id, &account.secret) {
            Ok(sdk) => {
                *session = Some(Session { library, account: Arc::new(account), sdk: Arc::new(sdk) });
                opened
            }
            Err(code) => failed(code),
        }
    }

    fn answer(&self, call: u64, response: Response) -> io::Result<()> {
        let frame = frame::encode(call, response)?;
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        frame::write(&*writer, &frame)
    }
}

fn failed(ReturnCode(code): ReturnCode) -> Response {
    Response::Failed { code }
}
