//! `verify`: is everything there, once, in order?

use std::io::Write;

use super::Files;
use crate::config::Purpose;
use crate::verify::{self, Scope, Storage, Verdict};
use crate::worker::exit::Exit;

/// Check what a connector has published: topics, offset and objects.
///
/// Reads the topics (committed records alone), the source offset and object storage, also while the connector runs, and says whether
/// the sequence is complete, each record is there once and in order, and every file has its reference and object. Nothing is
/// written anywhere but to the folder for temporary files (TMPDIR; about 25 bytes for each thing that is said of a file).
///
/// Told apart: records that are missing, dead letters, gaps that WeCom's five days made, and ranges that were skipped by hand or
/// deleted by retention.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit code: 0 clean; 1 findings; 2 nothing is broken, but records are lost at the source or were skipped by hand; \
                        64 a file or option is wrong; 69 Kafka, storage or TMPDIR could not be looked at"
)]
pub struct VerifyArgs {
    #[command(flatten)]
    pub files: Files,

    /// Judge records from this seq on
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub from_seq: u64,

    /// Judge records up to and with this seq
    #[arg(long, value_name = "SEQ", default_value_t = u64::MAX, hide_default_value = true)]
    pub to_seq: u64,

    /// How objects are looked at: not at all, size alone, or read whole
    #[arg(long, value_name = "HOW", default_value = "hash")]
    pub storage: HowStorage,

    /// The report as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum HowStorage {
    None,
    Exists,
    Hash,
}

/// Looks, and writes the report.
///
/// # Errors
/// When `out` cannot be written.
pub fn verify(args: &VerifyArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    if args.from_seq > args.to_seq {
        eprintln!("--from-seq {} is above --to-seq {}", args.from_seq, args.to_seq);
        return Ok(Exit::Usage);
    }
    let purpose = if args.storage == HowStorage::None { Purpose::Kafka } else { Purpose::KafkaAndStorage };
    let (worker, connector) = match args.files.load(purpose) {
        Ok(loaded) => loaded,
        Err(errors) => {
            eprintln!("{errors}");
            return Ok(Exit::Usage);
        }
    };
    let storage = match args.storage {
        HowStorage::None => Storage::None,
        HowStorage::Exists => Storage::Exists,
        HowStorage::Hash => Storage::Hash,
    };
    let scope = Scope { seqs: args.from_seq..=args.to_seq, storage };
    let report = match verify::run(&worker, &connector, &scope) {
        Ok(report) => report,
        Err(error) => {
            eprintln!("verify: {error}");
            return Ok(Exit::Unavailable);
        }
    };
    if args.json {
        writeln!(out, "{:#}", report.to_json())?;
    } else {
        writeln!(out, "{report}")?;
    }
    Ok(match report.verdict() {
        Verdict::Clean => Exit::Success,
        Verdict::Findings => Exit::Findings,
        Verdict::Incomplete => Exit::Incomplete,
    })
}
