//! A child process that cannot be forgotten.

use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, wait_for};

/// A running child. Its output goes to a file, which is shown when the test fails. Dropping the guard kills and reaps it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    leash: Leash,
    output: PathBuf,
}

impl Process {
    /// Starts `command`, whose files are in `folder`, a temporary one of this part alone; stdout and stderr are appended to `output`.
    pub fn spawn(name: &str, command: &mut Command, folder: &Path, output: &Path) -> Process {
        let file = OpenOptions::new().create(true).append(true).open(output).expect("output file in the test's folder");
        let other = file.try_clone().expect("second handle of the output file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(other)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error} ({command:?})"));
        let leash = Leash::on(child.id(), folder);
        Process { name: name.to_owned(), child, status: None, leash, output: output.to_owned() }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has printed, also before a restart.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("state of a child");
            if self.status.is_some() {
                self.leash.release();
            }
        }
        self.status
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) {
        if self.exited().is_none() {
            kill_process(Pid::from_child(&self.child), signal).expect("signal to a child");
        }
    }

    /// `kill -9`, and waits until it is gone.
    pub fn kill(&mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.wait(PATIENCE)
    }

    /// SIGTERM, and waits until it is gone by itself.
    pub fn terminate(&mut self, within: Duration) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(within)
    }

    /// Waits for its end.
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_for(&what, within, || self.exited())
    }

    /// Waits until `ready` holds; panics at once when the process ends before.
    pub fn wait_ready(&mut self, within: Duration, mut ready: impl FnMut(&Process) -> bool) {
        let what = format!("{} to be ready", self.name);
        wait_for(&what, within, || {
            if let Some(status) = self.exited() {
                let signal = status.signal().map(|signal| format!(", signal {signal}")).unwrap_or_default();
                panic!("{} ended instead of starting: {status}{signal}", self.name);
            }
            ready(self).then_some(())
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.is_none() {
            // Not through `kill`: a panic within a panic would end the whole test binary.
            let _ = self.child.kill();
            let _ = self.child.wait();
            self.leash.release();
        }
        if std::thread::panicking() {
            let output = self.output();
            let lines: Vec<&str> = output.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!("---- {} printed ({}):\n{}", self.name, self.output.display(), tail.join("\n"));
        }
    }
}

/// A shell that waits on a pipe from this test binary; when the pipe breaks, it kills the child and removes its folder. Drop
/// guards do not run for statics, on Ctrl-C or under `kill -9`; a broken pipe is there in each of these cases.
#[derive(Debug)]
struct Leash {
    shell: Child,
    pipe: Option<ChildStdin>,
}

impl Leash {
    fn on(id: u32, folder: &Path) -> Leash {
        let mut shell = Command::new("sh")
            .args(["-c", "read -r _ || { kill -9 \"$1\"; rm -rf \"$2\"; }", "leash", &id.to_string()])
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let pipe = shell.stdin.take();
        Leash { shell, pipe }
    }

    /// The child is reaped: its id may be anybody's from now on.
    fn release(&mut self) {
        use std::io::Write as _;
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.shell.wait();
    }
}
