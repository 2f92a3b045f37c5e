//! `offsets get`, `set`, `reset` and `rewind`: the source offset, looked at and moved.

use std::io::Write;

use clap::{ArgGroup, Args, Subcommand};
use jiff::tz::TimeZone;
use jiff::{SpanRelativeTo, Timestamp, Unit, Zoned};
use serde_json::json;

use super::Files;
use crate::clock::Clock;
use crate::config::Purpose;
use crate::task::alteration::{Alteration, AlterationError, SourceOffset, StoredOffset, Target};
use crate::worker::exit::Exit;

/// Look at and move the source offset of a connector.
///
/// All but `get` take the place of a running message task: its worker stops the connector and, with no other left, ends with exit
/// code 77. So: stop the worker, run this, start the worker.
///
/// Records that are delivered again are published again, and marked: their headers have wecom.republished and a new wecom.epoch.
#[derive(Debug, Subcommand)]
pub enum Offsets {
    /// Print the offset as it is committed now
    Get(GetArgs),
    /// Let the connector go on after a seq of your choice
    Set(SetArgs),
    /// Let the connector begin with the oldest record that WeCom has
    Reset(ResetArgs),
    /// Go back: let records be delivered again
    Rewind(RewindArgs),
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    files: Files,

    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct SetArgs {
    #[command(flatten)]
    files: Files,

    /// Everything after this seq is delivered
    #[arg(long, value_name = "SEQ", allow_negative_numbers = true)]
    seq: u64,

    /// Also where records that were not delivered yet are skipped for good
    #[arg(long)]
    allow_skip: bool,

    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
pub struct ResetArgs {
    #[command(flatten)]
    files: Files,

    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("target").required(true)))]
pub struct RewindArgs {
    #[command(flatten)]
    files: Files,

    /// The first record to be delivered again
    #[arg(long, value_name = "SEQ", group = "target")]
    to_seq: Option<u64>,

    /// Deliver again from the first message with this time on, as 2026-11-24T08:00:00+08:00. Without an offset it is a
    /// time of this machine's zone (TZ), and a date alone is its midnight: 2026-11-24. What it was taken for is said
    #[arg(long, value_name = "TIME", group = "target", value_parser = parse_time)]
    to_time: Option<Zoned>,

    /// How far back: a number of positions (5000), or a time (36h, 2d) before now
    #[arg(long, value_name = "HOW_FAR", group = "target", value_parser = parse_distance)]
    by: Option<Distance>,

    /// Say what would happen, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Distance {
    Positions(u64),
    Milliseconds(i64),
}

fn parse_distance(text: &str) -> Result<Distance, String> {
    if let Ok(positions) = text.parse() {
        return Ok(Distance::Positions(positions));
    }
    let span: jiff::Span =
        text.parse().map_err(|_| "give a number of positions (5000) or a time (36h, 2d)".to_owned())?;
    let total = span.total((Unit::Millisecond, SpanRelativeTo::days_are_24_hours()));
    match total {
        Ok(milliseconds) if milliseconds > 0.0 => Ok(Distance::Milliseconds(milliseconds as i64)),
        _ => Err("give a time in days, hours, minutes or seconds, greater than 0".to_owned()),
    }
}

fn parse_time(text: &str) -> Result<Zoned, String> {
    parse_time_in(text.trim(), &TimeZone::system())
}

/// A moment with an offset or a zone of its own; or a date, or a date and time, of this zone.
fn parse_time_in(text: &str, zone: &TimeZone) -> Result<Zoned, String> {
    let advice = || {
        "give a date and time as 2026-11-24T08:00:00+08:00 or 2026-11-24T00:00:00Z; without an offset it is a time of this machine's \
         zone (TZ), and a date alone, 2026-11-24, is its midnight"
            .to_owned()
    };
    if let Ok(zoned) = text.parse::<Zoned>() {
        return Ok(zoned);
    }
    if let Ok(timestamp) = text.parse::<Timestamp>() {
        return Ok(timestamp.to_zoned(zone.clone()));
    }
    let civil = text.parse::<jiff::civil::DateTime>().map_err(|_| advice())?;
    civil.to_zoned(zone.clone()).map_err(|_| advice())
}

/// Runs one of the commands and says how it ended.
///
/// # Errors
/// When `out` cannot be written.
pub fn run(command: &Offsets, out: &mut impl Write) -> anyhow::Result<Exit> {
    let clock = Clock::system();
    if let Offsets::Rewind(RewindArgs { to_time: Some(time), .. }) = command {
        writeln!(out, "from  {time}, which is {:.0}", time.timestamp())?;
    }
    let (files, target, allow_skip, dry_run) = match command {
        Offsets::Get(args) => return get(args, clock, out),
        Offsets::Set(args) => (&args.files, Target::After(args.seq), args.allow_skip, args.dry_run),
        Offsets::Reset(args) => (&args.files, Target::After(0), false, args.dry_run),
        Offsets::Rewind(args) => {
            let target = match (args.to_seq, &args.to_time, args.by) {
                (Some(seq), _, _) => Target::Record(seq),
                (_, Some(time), _) => Target::Time(time.timestamp().as_millisecond()),
                (_, _, Some(Distance::Milliseconds(ms))) => Target::Time(clock.now().unix_ms.saturating_sub(ms)),
                (_, _, Some(Distance::Positions(positions))) => Target::Back(positions),
                // clap sees to it that one is there.
                (None, None, None) => return Ok(Exit::Usage),
            };
            (&args.files, target, false, args.dry_run)
        }
    };
    let stored = match open(files, clock) {
        Ok(stored) => stored,
        Err(exit) => return Ok(exit),
    };
    let plan = match stored.plan(target) {
        Ok(plan) => plan,
        Err(error) => return Ok(failed(&stored, &error)),
    };
    describe(&plan, out)?;
    if plan.from.is_none() {
        eprintln!("{}", nothing_stored(&stored));
    }
    if plan.skips() && !allow_skip {
        let after_seq = plan.from.as_ref().map_or(0, |offset| offset.seq);
        return Ok(failed(&stored, &AlterationError::Skips { after_seq, to_seq: plan.to.seq }));
    }
    if dry_run {
        writeln!(out, "dry run: nothing was changed")?;
        return Ok(Exit::Success);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    match runtime.block_on(stored.apply(target, plan.clone(), allow_skip)) {
        Ok(done) => {
            if done != plan {
                writeln!(out, "A worker was running, and has moved the offset before it was stopped:")?;
                describe(&done, out)?;
            }
            writeln!(
                out,
                "done: start the worker again. One that still runs has lost its place: stop it first. By itself it ends, with 77, when it has \
                 something to commit, and it keeps its port until then"
            )?;
            if let Some(from) = &done.from {
                writeln!(out, "back  {}", way_back(from.seq, files))?;
            }
            Ok(Exit::Success)
        }
        Err(error) => Ok(failed(&stored, &error)),
    }
}

fn get(args: &GetArgs, clock: Clock, out: &mut impl Write) -> anyhow::Result<Exit> {
    let stored = match open(&args.files, clock) {
        Ok(stored) => stored,
        Err(exit) => return Ok(exit),
    };
    match stored.get() {
        Ok(Some(offset)) if args.json => writeln!(out, "{}", json!(offset))?,
        Ok(Some(offset)) => {
            writeln!(out, "{}", Shown(&offset))?;
            if let Some(moved) = &offset.moved_from {
                let (seq, at) = (moved.seq, time(moved.at_ms));
                writeln!(out, "moved by hand from seq {seq}, {at}; back: {}", way_back(seq, &args.files))?;
            }
        }
        Ok(None) => {
            eprintln!("{}", nothing_stored(&stored));
            return Ok(Exit::Usage);
        }
        Err(error) => return Ok(failed(&stored, &error.into())),
    }
    Ok(Exit::Success)
}

/// The command that puts the offset back to where it stood.
fn way_back(seq: u64, files: &Files) -> String {
    let Files { worker, connector } = files;
    format!("wecom-connector offsets set {} {} --seq {seq}", worker.display(), connector.display())
}

fn open(files: &Files, clock: Clock) -> Result<StoredOffset, Exit> {
    match files.load(Purpose::Kafka) {
        Ok((worker, connector)) => Ok(StoredOffset::of(&worker, &connector, clock)),
        Err(errors) => {
            eprintln!("{errors}");
            Err(Exit::Usage)
        }
    }
}

fn failed(stored: &StoredOffset, error: &AlterationError) -> Exit {
    eprintln!("{error}");
    match error {
        AlterationError::NoOffset => {
            eprintln!("{}", nothing_stored(stored));
            Exit::Usage
        }
        AlterationError::NoSuchTime
        | AlterationError::Skips { .. }
        | AlterationError::NotBack { .. }
        | AlterationError::Configuration(_) => Exit::Usage,
        AlterationError::Fenced(_) => Exit::Fenced,
        _ if error.is_refusal() => Exit::Usage,
        AlterationError::Offset(_)
        | AlterationError::Scan(_)
        | AlterationError::Unknown(_)
        | AlterationError::Aborted(_) => Exit::Unavailable,
    }
}

fn nothing_stored(stored: &StoredOffset) -> String {
    let names = match stored.stored() {
        Ok(keys) if keys.is_empty() => "the topic has none at all".to_owned(),
        Ok(keys) => {
            let names: Vec<String> = keys.iter().map(|key| format!("{} ({})", key.connector, key.corp_id)).collect();
            format!("there are offsets of: {}", names.join(", "))
        }
        Err(error) => error.to_string(),
    };
    format!("no offset is stored for {stored}; {names}. Check name, wecom.corp.id and offset.storage.topic")
}

fn describe(plan: &Alteration, out: &mut impl Write) -> std::io::Result<()> {
    match &plan.from {
        Some(offset) => writeln!(out, "now   {}", Shown(offset))?,
        None => writeln!(out, "now   no offset: the connector would begin with the oldest record that WeCom has")?,
    }
    writeln!(out, "then  {}", Shown(&plan.to))?;
    if let Some((seq, msgtime_ms)) = plan.unbelievable.first {
        writeln!(
            out,
            "not counted: {} messages whose time cannot be right, as it was ahead when they were pulled, or far behind (seq {seq}: {})",
            plan.unbelievable.messages,
            time(msgtime_ms)
        )?;
    }
    let again = &plan.again;
    if again.messages + again.dead_letters > 0 {
        let oldest = again.oldest_msgtime_ms.map(|ms| format!("; the oldest message is of {}", time(ms)));
        writeln!(
            out,
            "again {} messages and {} dead letters of the last ten days are delivered again{}",
            again.messages,
            again.dead_letters,
            oldest.unwrap_or_default()
        )?;
    }
    if again.expired > 0 {
        writeln!(
            out,
            "warning: {} records of that range are older than five days: WeCom has deleted them, and they do not come again",
            again.expired
        )?;
    }
    if let Some((from_seq, to_seq)) = again.older {
        writeln!(
            out,
            "warning: nothing from seq {from_seq} to {to_seq} was published in the last ten days: what there is of it WeCom has \
             deleted, and it does not come again"
        )?;
    }
    Ok(())
}

fn time(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(|_| ms.to_string(), |time| format!("{time:.0}"))
}

/// An offset in words.
struct Shown<'a>(&'a SourceOffset);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let SourceOffset { seq, committed_at_ms, delivered_until_ms, epoch, republished_to, .. } = self.0;
        write!(f, "seq {seq}, epoch {epoch}")?;
        if *republished_to > *seq {
            write!(f, ", published before up to seq {republished_to}")?;
        }
        if let Some(ms) = committed_at_ms {
            write!(f, ", committed {}", time(*ms))?;
        }
        if let Some(ms) = delivered_until_ms {
            write!(f, ", everything delivered up to {}", time(*ms))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_without_an_offset_is_one_of_the_zone() {
        let zone = TimeZone::fixed(jiff::tz::offset(8));
        for (text, expected) in [
            ("2026-11-24T08:00:00+08:00", Some("2026-11-24T00:00:00Z")),
            ("2026-11-24T08:00:00Z", Some("2026-11-24T08:00:00Z")),
            ("2026-11-24T08:00:00+00:00[UTC]", Some("2026-11-24T08:00:00Z")),
            ("2026-11-24", Some("2026-11-23T16:00:00Z")),
            ("2026-11-24T08:00", Some("2026-11-24T00:00:00Z")),
            ("2026-11-24 08:00:30", Some("2026-11-24T00:00:30Z")),
            ("24.11.2026", None),
            ("yesterday", None),
            ("", None),
        ] {
            let found = parse_time_in(text, &zone);
            assert_eq!(found.as_ref().ok().map(|time| time.timestamp().to_string()).as_deref(), expected, "{text}");
            assert!(found.is_ok() || found.is_err_and(|advice| advice.contains("2026-11-24T08:00:00+08:00")));
        }
    }

    #[test]
    fn distances_are_positions_or_times() {
        use Distance::{Milliseconds, Positions};
        for (text, expected) in [
            ("5000", Some(Positions(5000))),
            ("36h", Some(Milliseconds(36 * 3_600_000))),
            ("2d", Some(Milliseconds(48 * 3_600_000))),
            ("1h 30m", Some(Milliseconds(5_400_000))),
            ("-5", None),
            ("1.5", None),
            ("-2h", None),
            ("0h", None),
            ("soon", None),
        ] {
            assert_eq!(parse_distance(text).ok(), expected, "{text}");
        }
    }
}
