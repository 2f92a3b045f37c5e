//! `wecom-simulator`: looks at a scenario from outside.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use wecom_simulator::archive::{Archive, now_ms};
use wecom_simulator::keys::PublicKeys;
use wecom_simulator::message;
use wecom_simulator::scenario::{Scenario, ScenarioError};
use wecom_simulator::server::{self, Identity, Reply, Request, Service};

use wecom_simulator::{keys, oracle, record};

/// Looks at what the simulated WeCom chat archive holds.
///
/// The simulator itself is a shared library (libwecom_simulator.so) that a program loads
/// in place of the vendor's. Both read the scenario file: the library takes its path from
/// the environment variable WECOM_SIMULATOR_SCENARIO.
///
/// A first round:
///   wecom-simulator keys --scenario demo.toml --out keys/
///   WECOM_SIMULATOR_SCENARIO=demo.toml ...    a program with these keys and the library
///   wecom-simulator list --scenario demo.toml
/// The last prints what that program should have found.
#[derive(Debug, Parser)]
#[command(version, verbatim_doc_comment)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the private keys of the scenario as <version>.pem, odd versions in PKCS#1, even ones in PKCS#8
    ///
    /// With several corps, and none named, each has a folder of its own: <corp id>/<version>.pem.
    Keys {
        #[command(flatten)]
        choice: Choice,
        /// Folder for the files; made if it is missing
        #[arg(long)]
        out: PathBuf,
    },
    /// Seal the random keys of all messages ahead, so that no pull has to
    ///
    /// A key is sealed at the first pull of its record, which costs RSA; a benchmark of a reader
    /// has that behind it.
    Seal {
        #[command(flatten)]
        choice: Choice,
    },
    /// Print one JSON line a message: what a reader of the archive should have found by now
    ///
    /// `expect` is "message", or why the record becomes a dead letter; each media file comes with the size and the hashes of its
    /// true content, and with "stored", "expired" or "failed". Hashing all media takes a second for each few hundred MB.
    List {
        #[command(flatten)]
        choice: Choice,
        /// Also those that the archive has forgotten ("out_of_window")
        #[arg(long)]
        all: bool,
    },
    /// Answer as the vendor's API does, on loopback, for the vendor's own library or for this one with a [network]
    ///
    /// It is a proxy at 127.0.0.1 that leads to nobody: it ends TLS itself, under the vendor's name. The connector is led to it by
    /// wecom.proxy=http://127.0.0.1:<port>, and takes its certificate by sdk.egress.ca.file=<ca-out>. The vendor's library opens
    /// the records and files that come from here. Each start makes a new certificate. It runs until it is ended.
    Serve {
        #[command(flatten)]
        choice: Choice,
        /// Port to listen on; 0 takes a free one. The address is printed once it answers
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// File for the certificate of the CA that the certificate is known by, in PEM
        #[arg(long)]
        ca_out: PathBuf,
    },
    /// Print messages in the clear, one a line, each behind its seq
    Page {
        #[command(flatten)]
        choice: Choice,
        /// Begin behind this seq
        #[arg(long, default_value_t = 0)]
        seq: u64,
        /// Print so many
        #[arg(long, default_value_t = 20)]
        limit: u64,
    },
}

#[derive(Debug, clap::Args)]
struct Choice {
    /// The scenario file
    #[arg(long, env = wecom_simulator::scenario::SCENARIO_VARIABLE)]
    scenario: PathBuf,
    /// Only this corp
    #[arg(long)]
    corp: Option<String>,
}

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    #[error("can't write the answer: {0}")]
    Output(#[from] io::Error),
    #[error("can't answer on loopback: {0}")]
    Serve(io::Error),
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the answer has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("wecom-simulator: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    let mut output = BufWriter::new(io::stdout().lock());
    match command {
        Command::Keys { choice, out } => {
            let (archive, _, corps) = open(&choice)?;
            for id in &corps {
                let folder = if corps.len() == 1 { out.clone() } else { out.join(id) };
                keys::export(archive.state(), &archive.corp(id)?.scenario, &folder)?;
            }
        }
        Command::Seal { choice } => {
            let (archive, _, corps) = open(&choice)?;
            for id in &corps {
                let corp = archive.corp(id)?;
                let keys = PublicKeys::load(archive.state(), &corp.scenario)?;
                for index in 0..corp.archived(now_ms()) {
                    record::sealed_key(corp, &keys, corp.seq(index));
                }
            }
        }
        Command::List { choice, all } => {
            let (archive, faults, corps) = open(&choice)?;
            for id in &corps {
                for expectation in oracle::expectations(archive.corp(id)?, &faults, now_ms()) {
                    if all || expectation.expect != oracle::Expect::OutOfWindow {
                        serde_json::to_writer(&mut output, &expectation).map_err(io::Error::from)?;
                        output.write_all(b"\n")?;
                    }
                }
            }
        }
        Command::Serve { choice, port, ca_out } => {
            let (archive, ..) = open(&choice)?;
            let identity = Identity::new().map_err(Failure::Serve)?;
            std::fs::write(&ca_out, &identity.ca).map_err(Failure::Serve)?;
            let address = server::start(port, &identity, Arc::new(Api(archive))).map_err(Failure::Serve)?;
            writeln!(output, "http://{address}")?;
            output.flush()?;
            loop {
                std::thread::park();
            }
        }
        Command::Page { choice, seq, limit } => {
            let (archive, _, corps) = open(&choice)?;
            for id in &corps {
                let corp = archive.corp(id)?;
                let start = corp.index_after(seq);
                for index in start..corp.archived(now_ms()).min(start.saturating_add(limit)) {
                    let seq = corp.seq(index);
                    write!(output, "{id} {seq} {:?} ", corp.bad(seq))?;
                    output.write_all(&message::compose(corp, seq).plaintext)?;
                    output.write_all(b"\n")?;
                }
            }
        }
    }
    Ok(output.flush()?)
}

/// The API of a scenario.
struct Api(Archive);

impl Service for Api {
    fn answer(&self, request: &Request) -> Reply {
        self.0.answer(&request.for_api()).into()
    }

    fn stray(&self, what: String) {
        eprintln!("wecom-simulator: refused: {what}");
    }
}

/// The archive, its faults, and the ids of the corps that were asked for.
fn open(choice: &Choice) -> Result<(Archive, Vec<wecom_simulator::fault::Fault>, Vec<String>), ScenarioError> {
    let scenario = Scenario::load(Path::new(&choice.scenario))?;
    let faults = scenario.faults.clone();
    let archive = Archive::open(scenario)?;
    let corps = match &choice.corp {
        Some(id) => vec![archive.corp(id)?.scenario.id.clone()],
        None => archive.corps().map(|corp| corp.scenario.id.clone()).collect(),
    };
    Ok((archive, faults, corps))
}
