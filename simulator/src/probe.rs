//! What a library that somebody has taken over would try: files, addresses, programs. It tells how far it came.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One thing to try, as `{ read = "/etc/passwd" }`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attempt {
    /// Open a file and read it, or a folder.
    Read(PathBuf),
    /// Make a file, or write to it.
    Write(PathBuf),
    /// Open a TCP connection.
    Connect(SocketAddr),
    /// Listen on a TCP address.
    Listen(SocketAddr),
    /// Run a program.
    Run(PathBuf),
}

impl Attempt {
    fn make(&self) -> io::Result<String> {
        let done = |()| "done".to_owned();
        match self {
            Self::Read(path) if path.is_dir() => {
                let entries = std::fs::read_dir(path)?.flatten();
                let told = entries.map(|entry| std::fs::read_link(entry.path()).unwrap_or_else(|_| entry.path()));
                Ok(told.map(|path| path.display().to_string()).collect::<Vec<_>>().join(" "))
            }
            Self::Read(path) => std::fs::read(path).map(|_| ()).map(done),
            Self::Write(path) => {
                let mut file = OpenOptions::new().create(true).append(true).open(path)?;
                io::Write::write_all(&mut file, b"taken over\n").map(done)
            }
            Self::Connect(address) => TcpStream::connect_timeout(address, CONNECT_TIMEOUT).map(|_| ()).map(done),
            Self::Listen(address) => TcpListener::bind(address).map(|_| ()).map(done),
            Self::Run(program) => Command::new(program).status().map(|_| ()).map(done),
        }
    }
}

/// What came of each: `done`, what a folder holds, or how it was refused, as one JSON object.
pub fn answer(attempts: &[Attempt]) -> Vec<u8> {
    let came: BTreeMap<String, String> = attempts
        .iter()
        .map(|attempt| {
            let came = attempt.make().unwrap_or_else(|error| error.kind().to_string());
            (serde_json::to_string(attempt).unwrap_or_default(), came)
        })
        .collect();
    serde_json::to_vec(&came).unwrap_or_default()
}
