//! An S3 server over a folder: an object is a file under the root.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use tempfile::TempDir;

use super::{PATIENCE, Process, free_port, parts};

/// What still fits into a file of a full storage.
const FULL_BYTES: u64 = 100;

/// A running server; signatures are checked against its one pair of keys.
#[derive(Debug)]
pub struct S3 {
    process: Process,
    folder: TempDir,
    port: u16,
}

impl S3 {
    pub const ACCESS_KEY: &str = "test-access-key";
    pub const SECRET_KEY: &str = "t3st-Secret-Key-Bandicoot";

    /// Starts a server with the given bucket.
    pub fn start(bucket: &str) -> S3 {
        let folder = tempfile::Builder::new().prefix("s3-").tempdir().expect("a folder for the S3 server");
        std::fs::create_dir_all(folder.path().join("root").join(bucket)).expect("a bucket");
        let port = free_port();
        let process = S3::spawn(folder.path(), port);
        S3 { process, folder, port }
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.port).into()
    }

    /// Folder whose subfolders are the buckets.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// Parts of uploads that are not completed, or never were.
    pub fn parts(&self) -> BTreeSet<OsString> {
        let files = std::fs::read_dir(self.root()).expect("the server's folder").filter_map(Result::ok);
        files.map(|file| file.file_name()).filter(|name| name.to_string_lossy().contains(".part-")).collect()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Freezes the server: connections stay open, nothing is answered.
    pub fn freeze(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Ends [`S3::freeze`].
    pub fn thaw(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// From now on there is no room: no file of the server can grow beyond a few bytes.
    pub fn fill(&mut self) {
        self.limit_files(Some(FULL_BYTES));
    }

    /// Ends [`S3::fill`].
    pub fn make_room(&mut self) {
        self.limit_files(None);
    }

    fn limit_files(&mut self, bytes: Option<u64>) {
        let pid = Pid::from_raw(self.process.id().cast_signed());
        let limit = Rlimit { current: bytes, maximum: None };
        prlimit(pid, Resource::Fsize, limit).expect("a limit for a child");
    }

    /// Starts the server after [`S3::kill`], on the same port and objects.
    pub fn start_again(&mut self) {
        self.process = S3::spawn(self.folder.path(), self.port);
    }

    fn spawn(folder: &Path, port: u16) -> Process {
        // A file that is too large for the process is an error to it, not its end: see `S3::fill`.
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' XFSZ; exec \"$@\"", "s3"]).arg(parts::s3s_fs());
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
        command.args(["--access-key", S3::ACCESS_KEY, "--secret-key", S3::SECRET_KEY]).arg(folder.join("root"));
        let mut process = Process::spawn("the S3 server", &mut command, folder, &folder.join("s3.log"));
        process.wait_ready(PATIENCE, |_| TcpStream::connect(("127.0.0.1", port)).is_ok());
        process
    }
}
