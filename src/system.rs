//! What the system may refuse: threads, processes, open files, memory. Its own words name neither the limit nor where
//! it is set.

use std::fs::File;
use std::io;
use std::num::NonZero;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::io::Errno;

/// Beside one for each core: for files, names and a Kafka client.
const SPARE_THREADS: usize = 8;

/// An error of the system, with what to change where a limit is behind it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {error}{}", advice(.error))]
pub struct Refusal {
    what: &'static str,
    error: io::Error,
}

impl Refusal {
    pub fn new(what: &'static str, error: io::Error) -> Self {
        Self { what, error }
    }
}

/// Which limit is behind an error, and where it is set. Empty for errors of other kinds.
pub fn advice(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN) => {
            ". The limit of threads and processes is reached, or the memory is: raise the container's pids limit, TasksMax of the \
             service, `ulimit -u`, or the memory"
        }
        Some(Errno::NOMEM) => {
            ". The memory is used up: raise the memory limit of the container or service, or `ulimit -v`"
        }
        Some(Errno::MFILE) => ". This process may open no more files: raise LimitNOFILE of the service, or `ulimit -n`",
        Some(Errno::NFILE) => ". This machine may open no more files: raise the sysctl fs.file-max",
        Some(Errno::PERM) => {
            ". A filter of system calls forbids it, as the seccomp profile of Docker before 20.10.10 does for clone3: update the \
             container runtime, or run the container with `--security-opt seccomp=unconfined`"
        }
        _ => "",
    }
}

/// Whether `count` more threads can be started, which end again at once.
fn check_threads(count: usize) -> Result<(), Refusal> {
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock();
    let start = |_| {
        let gate = gate.clone();
        // All are there at the same time: none ends before the gate is open.
        thread::Builder::new().spawn(move || drop(gate.lock()))
    };
    let threads: io::Result<Vec<_>> = (0..count).map(start).collect();
    drop(closed);
    for thread in threads.map_err(|error| Refusal::new("no thread can be started", error))? {
        let _ = thread.join();
    }
    Ok(())
}

/// Whether a command can have the threads that it needs at the least. Without them it would panic in places that do not
/// say why.
///
/// # Errors
/// Why not, and what to change.
pub fn check_at_start() -> Result<(), Refusal> {
    check_threads(thread::available_parallelism().map_or(1, NonZero::get) + SPARE_THREADS)
}

/// Whether one more thread can be started and one more file be opened. Without room for these, work waits and nothing
/// else says why.
///
/// # Errors
/// What is lacking, and what to change.
pub fn check_room() -> Result<(), Refusal> {
    check_threads(1)?;
    match File::open("/dev/null") {
        Err(error) if !advice(&error).is_empty() => Err(Refusal::new("no file can be opened", error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_is_named() {
        for (errno, words) in [
            (Errno::AGAIN, "pids limit"),
            (Errno::NOMEM, "memory limit"),
            (Errno::MFILE, "LimitNOFILE"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::PERM, "clone3"),
        ] {
            let said = Refusal::new("no thread can be started", errno.into()).to_string();
            assert!(said.starts_with("no thread can be started: ") && said.contains(words), "{said}");
        }
        assert_eq!(advice(&io::Error::other("another")), "");
        check_room().expect("room");
    }
}
