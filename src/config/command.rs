//! A secret that a program prints: `${exec:/usr/local/bin/vault-get archive}`.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

const OUTPUT_BYTES_MAX: u64 = 64 * 1024;
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Runs a program, without a shell, and gives what it prints. Its arguments stand behind it, separated by blanks. What it prints,
/// and what it says of errors, is shown nowhere.
///
/// # Errors
/// Where it does not end well within `timeout` with something printed: a sentence without any of its words.
pub(super) fn output(command_line: &str, timeout: Duration) -> Result<String, String> {
    let mut words = command_line.split_ascii_whitespace();
    let program = words.next().filter(|program| program.starts_with('/'));
    let program = program.ok_or("must name a program by its whole path; write ${exec:/path/of/program arguments}")?;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // So that all it has started ends with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let printed = finish(&mut child, Instant::now() + timeout);
    if printed.is_err() {
        let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        let _ = child.wait();
    }
    let seconds = timeout.as_secs();
    let (status, printed) = printed.map_err(|reason| match reason {
        Failure::Late => format!("did not end within {seconds} s; see why it waits"),
        Failure::Output => {
            format!("printed what cannot be read, or more than {OUTPUT_BYTES_MAX} bytes; it has to print one value")
        }
    })?;
    if !status.success() {
        return Err(format!("ended with {status}; run it by hand, as this user, to see why"));
    }
    let text =
        String::from_utf8(printed).map_err(|_| "printed what is not UTF-8; it has to print one value as text")?;
    if text.trim().is_empty() {
        return Err("printed nothing; it has to print one value".to_owned());
    }
    Ok(text)
}

enum Failure {
    Late,
    Output,
}

fn finish(child: &mut Child, deadline: Instant) -> Result<(ExitStatus, Vec<u8>), Failure> {
    let stdout = child.stdout.take().ok_or(Failure::Output)?;
    // A thread of its own, as nothing bounds a read; it ends with the last process that could print.
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut printed = Vec::new();
        let read = stdout.take(OUTPUT_BYTES_MAX + 1).read_to_end(&mut printed);
        let _ = sender.send(read.map(|_| printed));
    });
    let left = |deadline: Instant| deadline.saturating_duration_since(Instant::now());
    let printed = match receiver.recv_timeout(left(deadline)) {
        Ok(Ok(printed)) if printed.len() as u64 <= OUTPUT_BYTES_MAX => printed,
        Err(mpsc::RecvTimeoutError::Timeout) => return Err(Failure::Late),
        _ => return Err(Failure::Output),
    };
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok((status, printed)),
            Ok(None) if left(deadline).is_zero() => return Err(Failure::Late),
            Ok(None) => thread::sleep(POLL_INTERVAL),
            Err(_) => return Err(Failure::Output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_prints_a_value_or_gives_none() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        let path = script.to_str().unwrap();
        let long = Duration::from_secs(60);
        // A script for /bin/sh, how long it may take, and what comes of it.
        let rows: [(&str, Duration, Result<&str, &str>); 10] = [
            ("echo Sesame", long, Ok("Sesame\n")),
            ("printf %s \"$1-$2-$3\"", long, Ok("one-$(two)-")),
            ("echo Sesame; exit 3", long, Err("exit status: 3")),
            ("echo Sesame >&2", long, Err("printed nothing")),
            ("echo '  '", long, Err("printed nothing")),
            ("kill -9 $$", long, Err("signal: 9")),
            ("printf 'Sesame\\377'", long, Err("not UTF-8")),
            ("yes Sesame", long, Err("more than 65536 bytes")),
            ("echo Sesame; exec sleep 600", Duration::from_millis(1), Err("did not end within")),
            ("echo Sesame; sleep 600 & exit 0", Duration::from_millis(300), Err("did not end within")),
        ];
        for (text, timeout, expected) in rows {
            std::fs::write(&script, text).unwrap();
            let found = output(&format!("/bin/sh {path}  one $(two)"), timeout);
            match expected {
                Ok(expected) => assert_eq!(found.as_deref(), Ok(expected), "{text}"),
                Err(words) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(words) && !error.contains("Sesame"), "{text}: {error}");
                }
            }
        }
        for (text, words) in [("", "whole path"), ("sh -c true", "whole path"), ("/nonexistent", "No such file")] {
            let error = output(text, long).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
