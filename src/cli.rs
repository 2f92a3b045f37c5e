//! The commands.

pub mod config;
pub mod connect;
pub mod dlq;
pub mod keys;
pub mod offsets;
pub mod probe;
pub mod verify;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use crate::archive::keyring::KeyRing;
use crate::config::{self as configuration, ConfigErrors, ConnectorConfig, Providers, Purpose, WorkerConfig};
use crate::worker::exit::{self, Exit};
use crate::{sdk, system, worker};

/// Kafka-Connect-style source connector for the WeCom (企业微信) chat archive.
///
/// Pulls a corp's encrypted chat records in seq order through the vendor's C library, decrypts them, publishes every message to
/// Kafka exactly once, brings every media file to object storage and announces it, and exports Prometheus metrics.
///
/// The way to a first message:
///   1. wecom-connector keys generate --out keys --key-version 1     and put the public key into the admin console
///   2. write worker.properties and connector.properties             (wecom-connector config prints every key)
///   3. wecom-connector validate worker.properties connector.properties
///   4. wecom-connector standalone worker.properties connector.properties
#[derive(Debug, Parser)]
#[command(name = "wecom-connector", version, verbatim_doc_comment, after_long_help = exit::HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run connectors in this process
    ///
    /// All state is in Kafka: a restart, here or on another machine, goes on where the last transaction ended. Two processes with
    /// the same group.id and connector name never publish both: the newer one fences the older.
    ///
    /// SIGTERM, SIGINT and every other signal but SIGHUP: finish the pages in flight, commit, leave. A second one: leave at once
    /// (nothing is lost or published twice; the page is pulled again at the next start). SIGHUP changes nothing.
    Standalone {
        /// The worker's file: where Kafka is, and what all connectors share
        worker: PathBuf,
        /// One file a connector: properties, or JSON {"name": …, "config": {…}}
        #[arg(required = true)]
        connectors: Vec<PathBuf>,
    },
    /// Check configuration files and say everything that is wrong with them
    Validate(config::ValidateArgs),
    /// Print the reference of all configuration keys
    Config(config::ReferenceArgs),
    Verify(verify::VerifyArgs),
    Probe(probe::ProbeArgs),
    /// Make and check the RSA keys of the archive
    #[command(subcommand)]
    Keys(Keys),
    #[command(subcommand)]
    Offsets(offsets::Offsets),
    /// List, show and replay dead letters
    #[command(subcommand)]
    Dlq(dlq::Dlq),
    /// The process that holds the vendor's library; started by the worker itself
    #[command(hide = true)]
    SdkHost,
}

/// The files of one connector, for commands that look at it.
#[derive(Debug, clap::Args)]
pub struct Files {
    /// Worker file
    #[arg(value_name = "WORKER")]
    worker: PathBuf,

    /// Connector file, properties or JSON
    #[arg(value_name = "CONNECTOR")]
    connector: PathBuf,
}

impl Files {
    /// Reads of both what the purpose needs; what is only warned about is left to `validate`.
    fn load(&self, purpose: Purpose) -> Result<(WorkerConfig, ConnectorConfig), ConfigErrors> {
        configuration::load_pair(&self.worker, &self.connector, purpose)
    }

    /// The private keys, where this user has any.
    fn keyring(&self) -> Option<KeyRing> {
        let providers = Providers::of_worker(&self.worker);
        let (connector, _) = configuration::connector_for(&self.connector, providers, Purpose::KafkaAndKeys).ok()?;
        KeyRing::load(&connector.private_keys, connector.private_keys_dir.as_deref()).ok()
    }
}

#[derive(Debug, Subcommand)]
enum Keys {
    Generate(keys::GenerateArgs),
    Check(keys::CheckArgs),
}

/// Runs a command that writes to standard output and says whether all is well.
fn report<T: Into<Exit>>(command: impl FnOnce(&mut std::io::StdoutLock<'static>) -> anyhow::Result<T>) -> Exit {
    match command(&mut std::io::stdout().lock()) {
        Ok(end) => end.into(),
        // Whoever reads has seen enough (`| head`).
        Err(error) if is_broken_pipe(&error) => Exit::Success,
        Err(error) => {
            eprintln!("{error:#}");
            Exit::Usage
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Parses the command line, runs, and says how it ended.
pub fn run() -> ExitCode {
    worker::logging::report_panics();
    // A panic has been told by then.
    std::panic::catch_unwind(run_command).unwrap_or(Exit::Internal).into()
}

fn run_command() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Success };
        }
    };
    // Keys and secrets stand in this process: no core file, and no look into it for the user's other processes.
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        eprintln!("this process's memory cannot be closed to others: {error}");
    }
    if !matches!(cli.command, Command::SdkHost | Command::Config(_) | Command::Keys(_))
        && let Err(refusal) = system::check_at_start()
    {
        eprintln!("{refusal}");
        return Exit::Unavailable;
    }
    match cli.command {
        Command::Standalone { worker, connectors } => worker::standalone::run(&worker, &connectors),
        Command::Validate(args) => report(|out| config::validate(&args, out)),
        Command::Config(args) => report(|out| config::print_reference(&args, out).map(|()| true)),
        Command::Verify(args) => report(|out| verify::verify(&args, out)),
        Command::Probe(args) => report(|out| probe::probe(&args, out)),
        Command::Offsets(command) => report(|out| offsets::run(&command, out)),
        Command::Keys(Keys::Generate(args)) => report(|out| keys::generate(&args, out).map(|()| true)),
        Command::Keys(Keys::Check(args)) => report(|out| keys::check(&args, out)),
        Command::Dlq(command) => dlq::run(&command),
        Command::SdkHost => match sdk::host::run() {
            Ok(()) => Exit::Success,
            Err(error) => {
                eprintln!("{error}");
                Exit::Usage
            }
        },
    }
}
