//! `dlq list`, `dlq show` and `dlq replay`: dead letters, and how they become messages after all.

mod print;

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args, Subcommand};
use tokio_util::sync::CancellationToken;

use self::print::{ListPrinter, ReplayPrinter};
use super::{Files, is_broken_pipe};
use crate::clock::Clock;
use crate::config::{ConnectorConfig, Purpose, WorkerConfig};
use crate::metrics::Metrics;
use crate::task::dead_letters::{DeadLetters, Filter, reasons};
use crate::task::limiter::RateLimiters;
use crate::task::replay::{self, Ended};
use crate::task::{ConnectorContext, TaskError};
use crate::worker::exit::Exit;
use crate::worker::logging;
use crate::worker::repeats::Repeats;
use crate::worker::signals::Signals;

#[derive(Debug, Subcommand)]
pub enum Dlq {
    List(ListArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
}

/// Which dead letters are meant. Those that are given all have to hold; each can be given several times.
#[derive(Debug, Args)]
pub struct Conditions {
    /// Those of this seq
    #[arg(long, value_name = "N")]
    seq: Vec<u64>,

    /// Those with this reason
    #[arg(long, value_name = "REASON", value_parser = PossibleValuesParser::new(reasons()))]
    reason: Vec<String>,

    /// Those sealed with this version of the public key
    #[arg(long, value_name = "N")]
    key_version: Vec<u32>,
}

impl Conditions {
    fn filter(&self) -> Filter {
        Filter {
            seqs: self.seq.iter().copied().collect(),
            reasons: self.reason.iter().cloned().collect(),
            key_versions: self.key_version.iter().copied().collect(),
        }
    }
}

/// List dead letters: seq, reason, key version, time, whether replayed, place, msgid.
///
/// A summary by reason comes last. Nothing of a message is shown: dead letters are sealed, and only their headers are looked at.
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    files: Files,

    #[command(flatten)]
    conditions: Conditions,

    /// Only those that have not been replayed
    #[arg(long)]
    not_replayed: bool,

    /// JSON, one object a line; the last one has the summary
    #[arg(long)]
    json: bool,
}

/// Show all that is known of one dead letter, but for what is sealed.
///
/// Sealed fields are told by their length and SHA-256.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).args(["seq", "at"])))]
pub struct ShowArgs {
    #[command(flatten)]
    files: Files,

    /// Those of this seq
    #[arg(long, value_name = "N")]
    seq: Option<u64>,

    /// The one at this place, as `list` shows it; the topic may be left out
    #[arg(long, value_name = "PARTITION@OFFSET", value_parser = place)]
    at: Option<(i32, i64)>,

    /// Also print the value itself, still sealed
    #[arg(long)]
    sealed: bool,

    /// JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// Open dead letters again with the keys of today, and publish them as messages, each exactly once.
///
/// The connector may run meanwhile. An interrupted replay is simply made again: what it published is not published twice. What
/// fails again stays a dead letter; it is said why, and the exit code is 65. Decryption needs no network: WeCom is not asked.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["all", "seq", "reason", "key_version"])))]
pub struct ReplayArgs {
    #[command(flatten)]
    files: Files,

    /// All dead letters
    #[arg(long, conflicts_with_all = ["seq", "reason", "key_version"])]
    all: bool,

    #[command(flatten)]
    conditions: Conditions,

    /// Open them and say what would be replayed, but publish nothing
    #[arg(long)]
    dry_run: bool,

    /// JSON, one object a line; the last one has the summary
    #[arg(long)]
    json: bool,
}

/// `topic-partition@offset` or `partition@offset`.
fn place(text: &str) -> Result<(i32, i64), String> {
    let parse = || {
        let (partition, offset) = text.rsplit_once('@')?;
        let partition = partition.rsplit_once('-').map_or(partition, |(_, partition)| partition);
        Some((partition.parse().ok()?, offset.parse().ok().filter(|offset| *offset >= 0)?))
    };
    parse().ok_or_else(|| "is no place in a topic: give it as 0@17, partition and offset".to_owned())
}

/// Runs one of the commands.
pub fn run(command: &Dlq) -> Exit {
    let (files, purpose) = match command {
        Dlq::List(ListArgs { files, .. }) | Dlq::Show(ShowArgs { files, .. }) => (files, Purpose::Kafka),
        Dlq::Replay(ReplayArgs { files, .. }) => (files, Purpose::Run),
    };
    let result = start(files, purpose).and_then(|(worker, connector, runtime, repeats)| {
        let out = &mut std::io::stdout().lock();
        let result = match command {
            Dlq::List(args) => runtime.block_on(list(args, &worker, &connector, out)),
            Dlq::Show(args) => runtime.block_on(show(args, &worker, &connector, out)),
            Dlq::Replay(args) => runtime.block_on(replay(args, worker, connector, out)),
        };
        // Threads that hang in a Kafka call must not hold up the exit.
        runtime.shutdown_timeout(Duration::from_secs(1));
        repeats.tell_all();
        result
    });
    result.unwrap_or_else(|error| {
        if is_broken_pipe(&error) {
            return Exit::Success;
        }
        eprintln!("{error:#}");
        match error.downcast_ref::<TaskError>() {
            Some(TaskError::Transient(_)) => Exit::Unavailable,
            Some(TaskError::Fenced(_)) => Exit::Fenced,
            Some(TaskError::Intolerable(_)) => Exit::BadRecord,
            Some(TaskError::Configuration(_)) | None => Exit::Usage,
        }
    })
}

/// Reads the files and sets up what all commands need.
fn start(
    files: &Files,
    purpose: Purpose,
) -> anyhow::Result<(WorkerConfig, ConnectorConfig, tokio::runtime::Runtime, Repeats)> {
    let (worker, connector) = files.load(purpose)?;
    let repeats = logging::init(&worker.log_level, worker.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    Ok((worker, connector, runtime, repeats))
}

async fn list(
    args: &ListArgs,
    worker: &WorkerConfig,
    connector: &ConnectorConfig,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let letters = DeadLetters::open(worker, connector).await?;
    let history = letters.history().await?;
    let filter = args.conditions.filter();
    let mut printer = ListPrinter::new(&letters, args.json, out);
    for span in letters.spans() {
        let mut walk = letters.walk(*span, false);
        while let Some((letter, _)) = walk.next().await? {
            let is_replayed = letters.is_replayed(&history, &letter)?;
            if filter.matches(&letter) && !(args.not_replayed && is_replayed) {
                printer.letter(&letter, is_replayed)?;
            }
        }
        printer.foreign += walk.foreign;
    }
    printer.summary(&connector.name)?;
    Ok(Exit::Success)
}

async fn show(
    args: &ShowArgs,
    worker: &WorkerConfig,
    connector: &ConnectorConfig,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let letters = DeadLetters::open(worker, connector).await?;
    let history = letters.history().await?;
    let keyring = args.files.keyring();
    for warning in keyring.iter().flat_map(|keyring| keyring.warnings()) {
        eprintln!("warning: {warning}");
    }
    let versions = keyring.map(|keyring| keyring.versions());
    let mut shown = 0;
    for span in letters.spans() {
        let mut span = *span;
        if let Some((partition, offset)) = args.at {
            if partition != span.partition || !(span.first..span.end).contains(&offset) {
                continue;
            }
            (span.first, span.end) = (offset, offset + 1);
        }
        let mut walk = letters.walk(span, true);
        while let Some((letter, _)) = walk.next().await? {
            if args.seq.is_none_or(|seq| letter.seq == Some(seq)) {
                let is_replayed = letters.is_replayed(&history, &letter)?;
                print::show(&letters, &letter, is_replayed, versions.as_deref(), args.json, args.sealed, out)?;
                shown += 1;
            }
        }
    }
    if shown == 0 {
        let place = match (args.seq, args.at) {
            (Some(seq), _) => format!("of seq {seq}"),
            (None, at) => format!("at {}@{}", at.unwrap_or_default().0, at.unwrap_or_default().1),
        };
        eprintln!("{}", no_such(&letters, connector, &place));
        return Ok(Exit::Usage);
    }
    Ok(Exit::Success)
}

fn no_such(letters: &DeadLetters<'_>, connector: &ConnectorConfig, which: &str) -> String {
    let spans: Vec<String> = letters
        .spans()
        .iter()
        .filter(|span| span.first < span.end)
        .map(|span| format!("{}@{} to {}@{}", span.partition, span.first, span.partition, span.end - 1))
        .collect();
    let there = if spans.is_empty() { "nothing".to_owned() } else { spans.join(", ") };
    format!("topic {} has no dead letter {which} of connector {}; there is {there}", letters.topic(), connector.name)
}

async fn replay(
    args: &ReplayArgs,
    mut worker: WorkerConfig,
    connector: ConnectorConfig,
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    // A rehearsal changes nothing.
    worker.topic_creation_enable &= !args.dry_run;
    let clock = Clock::system();
    let metrics = Metrics::new(clock.clone());
    let context =
        Arc::new(ConnectorContext::new(Arc::new(worker), connector, &metrics, &RateLimiters::default(), clock)?);
    let letters = DeadLetters::open(&context.worker, &context.config).await?;
    let shutdown = stop_at_signal().context("signals cannot be waited for")?;
    let filter = args.conditions.filter();
    let mut printer = ReplayPrinter::new(&letters, args.json, args.dry_run, out);
    let mut seqs_left: BTreeSet<u64> = filter.seqs.clone();
    let ended = replay::run(&context, &letters, &filter, args.dry_run, &shutdown, &mut |letter, fate| {
        seqs_left.retain(|seq| letter.seq != Some(*seq));
        printer.fate(letter, fate);
    })
    .await;
    printer.summary(&context.config.name);
    match ended? {
        Ended::Interrupted(reason) => {
            eprintln!("{reason}; repeat the command: what is published already is not published again");
            Ok(Exit::Interrupted)
        }
        Ended::Done => {
            for seq in &seqs_left {
                eprintln!("{}", no_such(&letters, &context.config, &format!("of seq {seq}")));
            }
            Ok(match (printer.stay, seqs_left.is_empty()) {
                (0, true) => Exit::Success,
                (0, false) => Exit::Usage,
                _ => Exit::BadRecord,
            })
        }
    }
}

/// Cancelled by a signal: the transaction in hand is finished first.
fn stop_at_signal() -> std::io::Result<CancellationToken> {
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        signals.end().await;
        token.cancel();
    });
    Ok(shutdown)
}
