//! A TCP proxy that can be told to misbehave.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What becomes of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mode {
    Pass,
    /// They wait; connections stay open.
    Stall,
    /// They come in small pieces, late.
    Slow,
    /// Requests pass and answers wait: the broker does what it is asked, and nobody is told.
    HoldAnswers,
    /// Connections are refused.
    Refuse,
}

/// How much passes at once, and how late, when it is slow.
const SLOW_BYTES: usize = 4_096;
const SLOW_DELAY: Duration = Duration::from_millis(30);

/// How often a connection looks whether it has to end, or may go on.
const LOOK: Duration = Duration::from_millis(5);

/// Listens for as long as this process lives.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    target: Mutex<String>,
    mode: AtomicU8,
    /// Rises with each cut: connections of before end.
    generation: AtomicU64,
}

impl Proxy {
    pub fn start() -> Proxy {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its port").port();
        let state = Arc::new(State {
            target: Mutex::default(),
            mode: AtomicU8::new(Mode::Pass as u8),
            generation: AtomicU64::new(0),
        });
        let serving = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = serving.clone();
                std::thread::spawn(move || connect(&client, &state));
            }
        });
        Proxy { port, state }
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where connections lead from now on.
    pub fn lead_to(&self, target: &str) {
        target.clone_into(&mut self.state.target.lock().expect("no panic in here"));
    }

    pub fn set(&self, mode: Mode) {
        self.state.mode.store(mode as u8, Ordering::SeqCst);
    }

    /// Ends all connections; what waits in them is lost.
    pub fn cut(&self) {
        self.state.generation.fetch_add(1, Ordering::SeqCst);
    }
}

impl State {
    fn is(&self, mode: Mode) -> bool {
        self.mode.load(Ordering::SeqCst) == mode as u8
    }
}

fn connect(client: &TcpStream, state: &Arc<State>) {
    let generation = state.generation.load(Ordering::SeqCst);
    let target = state.target.lock().expect("no panic in here").clone();
    if state.is(Mode::Refuse) {
        return;
    }
    let Ok(server) = TcpStream::connect(target) else { return };
    std::thread::scope(|scope| {
        scope.spawn(|| copy(client, &server, state, generation, false));
        copy(&server, client, state, generation, true);
    });
}

/// Ends with the connection; then the other direction ends as well.
fn copy(mut from: &TcpStream, mut to: &TcpStream, state: &State, generation: u64, is_answers: bool) {
    let is_cut = || state.generation.load(Ordering::SeqCst) != generation;
    let mut buffer = [0; 64 * 1024];
    // A look now and then ends a connection that is silent.
    let _ = from.set_read_timeout(Some(Duration::from_millis(50)));
    let _ = to.set_nodelay(true);
    while !is_cut() {
        let share = if state.is(Mode::Slow) { SLOW_BYTES } else { buffer.len() };
        let count = match from.read(&mut buffer[..share]) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                continue;
            }
            Err(_) => break,
        };
        while !is_cut() && (state.is(Mode::Stall) || is_answers && state.is(Mode::HoldAnswers)) {
            std::thread::sleep(LOOK);
        }
        if state.is(Mode::Slow) {
            std::thread::sleep(SLOW_DELAY);
        }
        if is_cut() || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
