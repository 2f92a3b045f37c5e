//! Signals: which of them ask the process to end, and who sent them. None but SIGKILL ends it before what is in flight
//! is committed.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ,
};
use signal_hook::flag;
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::WithOrigin;
use signal_hook::low_level::siginfo::Origin;
use signal_hook::low_level::signal_name;
use tokio::sync::mpsc;

/// Linux numbers them alike on all its CPUs that this program runs on.
const SIGSTKFLT: i32 = 16;
const SIGPWR: i32 = 30;
/// The C library keeps 32 and 33 for itself. Service managers send some of the others.
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// What would end a process that does nothing about it.
const ENDING: [i32; 12] =
    [SIGTERM, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU, SIGIO, SIGSTKFLT, SIGPWR];

/// Signals that wait to be looked at.
const QUEUED_MAX: usize = 16;

/// The signals of this process.
#[derive(Debug)]
pub struct Signals {
    received: mpsc::Receiver<Received>,
}

#[derive(Debug)]
struct Received {
    number: i32,
    text: String,
}

impl Signals {
    /// From here on no signal ends the process by itself.
    ///
    /// # Errors
    /// The system gives no handler or thread.
    pub fn listen() -> io::Result<Self> {
        // Where a file may not grow further (`ulimit -f`), the write fails with a reason; and nothing is logged of it
        // here, as the log can be that file.
        flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let numbers = ENDING.into_iter().chain(REAL_TIME).chain([SIGHUP]);
        let mut signals = SignalsInfo::<WithOrigin>::new(numbers)?;
        let (sender, received) = mpsc::channel(QUEUED_MAX);
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for origin in signals.forever() {
                // A closed channel: nobody waits any more.
                let _ = sender.blocking_send(Received { number: origin.signal, text: describe(&origin) });
            }
        })?;
        Ok(Self { received })
    }

    /// Waits for a signal that asks the process to end, and says which one it is and who sent it. May be dropped and
    /// called again.
    pub async fn end(&mut self) -> String {
        loop {
            match self.received.recv().await {
                Some(Received { number: SIGHUP, text }) => tracing::info!(
                    "{text} changes nothing: keys, certificates and the token are read again by themselves when they change, and a \
                     changed configuration counts from the next start"
                ),
                Some(Received { text, .. }) => return text,
                // Its thread ends with the process.
                None => std::future::pending().await,
            }
        }
    }
}

fn describe(origin: &Origin) -> String {
    let number = origin.signal;
    let name = signal_name(number).map_or_else(|| format!("signal {number}"), str::to_owned);
    match origin.process {
        None => format!("{name} from the kernel (a terminal, a limit or a timer)"),
        Some(process) if process.pid == 0 => format!("{name} from a process outside of this container"),
        Some(process) => {
            let program = std::fs::read_to_string(format!("/proc/{}/comm", process.pid)).unwrap_or_default();
            let program = if program.is_empty() { "gone by now" } else { program.trim_end() };
            format!("{name} from process {} ({program}) of user {}", process.pid, process.uid)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    const CHILD: &str = "A_CHILD_THAT_GETS_SIGNALS";

    /// Run as a child below: a test's own process keeps its signals.
    #[tokio::test]
    async fn a_child_that_gets_signals() {
        if std::env::var_os(CHILD).is_none() {
            return;
        }
        let mut signals = Signals::listen().expect("handlers");
        let send = |signal| kill_process(getpid(), signal).expect("a signal");
        for (signal, name) in [
            (Signal::TERM, "SIGTERM"),
            (Signal::INT, "SIGINT"),
            (Signal::QUIT, "SIGQUIT"),
            (Signal::USR1, "SIGUSR1"),
            (Signal::USR2, "SIGUSR2"),
            (Signal::ALARM, "SIGALRM"),
            (Signal::VTALARM, "SIGVTALRM"),
            (Signal::PROF, "SIGPROF"),
            (Signal::XCPU, "SIGXCPU"),
            (Signal::IO, "SIG"),
            (Signal::STKFLT, "SIG"),
            (Signal::POWER, "SIG"),
        ] {
            // Neither of these ends it.
            send(Signal::HUP);
            send(Signal::XFSZ);
            send(signal);
            let said = signals.end().await;
            let sender = format!(" from process {} (", std::process::id());
            assert!(said.to_ascii_uppercase().starts_with(name) && said.contains(&sender), "{name}: {said}");
        }
        println!("still here");
    }

    #[test]
    fn no_signal_ends_the_process_by_itself() {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "worker::signals::tests::a_child_that_gets_signals", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .expect("started");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success() && said.contains("still here"), "{said}");
    }
}
