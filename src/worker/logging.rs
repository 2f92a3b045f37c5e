//! The process's log: text or JSON lines on stderr, times in UTC. Stdout stays free for what a command prints.
//!
//! The log never stops the worker: a line that can't be written (a full disk, a closed pipe) is lost, and that is all.

use std::io::{self, IsTerminal, Write as _};
use std::panic;

use tracing::{Level, Subscriber};
use tracing_subscriber::Registry;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use super::repeats::Repeats;
use crate::clock::Clock;
use crate::config::LogFormat;

/// The prefix of this program's own log targets; also that of everything it logs about the SDK.
const OWN_TARGET: &str = "wecom_connector";

/// `log.level` could not be understood.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{directive}` in log.level is neither a level nor target=level: use one of off, error, warn, info, debug, trace, \
     and after a comma exceptions such as librdkafka=debug"
)]
pub struct LevelError {
    directive: String,
}

/// Logging was set up already, by this program or by a library.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error(transparent)]
    Level(#[from] LevelError),
    #[error("logging is set up twice in this process")]
    Twice,
}

/// How panics begin that say what the system refused, and no more.
const WORDS_OF_SYSTEM: [&str; 2] = ["OS can't spawn worker thread: ", "failed to spawn thread: "];

/// Makes a panic in whatever thread a line of the log, so that JSON stays JSON; before there is a log, a line on stderr.
///
/// Only the place is told, and a message without values in it: one that is put together can quote message text or a secret.
pub fn report_panics() {
    panic::set_hook(Box::new(|panic| {
        let location = panic.location().map(ToString::to_string);
        let literal = panic.payload().downcast_ref::<&'static str>().copied();
        let of_system = panic.payload().downcast_ref::<String>().map(String::as_str);
        let of_system = of_system.filter(|said| WORDS_OF_SYSTEM.iter().any(|words| said.starts_with(words)));
        let cause =
            if of_system.is_some() { "for want of threads: raise their limit" } else { "a defect of this program" };
        let message = literal.or(of_system).unwrap_or("what it says is kept out, because it may quote data");
        if tracing::dispatcher::has_been_set() {
            tracing::error!(location, "panic, {cause}: {message}");
        } else {
            let location = location.unwrap_or_default();
            let _ = writeln!(io::stderr(), "panic at {location}, {cause}: {message}");
        }
    }));
}

/// Sends the log of the whole process to stderr. `level` is checked by [`filter`]. Whoever runs for long has the lines
/// that were left out told by what is given.
pub fn init(level: &str, format: LogFormat) -> Result<Repeats, LoggingError> {
    // NO_COLOR: https://no-color.org
    let ansi = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let repeats = Repeats::new(Clock::system());
    let subscriber = subscriber(filter(level)?, repeats.clone(), format, ansi, io::stderr);
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LoggingError::Twice)?;
    Ok(repeats)
}

/// Reads `log.level`: a level, and after commas exceptions as `target=level`, as in `info,librdkafka=debug`.
///
/// `debug` and `trace` are meant for this program's own lines: libraries stay at `info` unless an exception names them. The log of
/// the Kafka client has the target `librdkafka`.
pub fn filter(level: &str) -> Result<Targets, LevelError> {
    let mut general = LevelFilter::INFO;
    let mut exceptions = Vec::new();
    for directive in level.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let error = || LevelError { directive: directive.to_owned() };
        match directive.split_once('=') {
            None => general = level_of(directive).ok_or_else(error)?,
            Some((target, level)) if !target.trim().is_empty() => {
                exceptions.push((target.trim().to_owned(), level_of(level.trim()).ok_or_else(error)?));
            }
            Some(_) => return Err(error()),
        }
    }
    let targets = Targets::new().with_default(general.min(LevelFilter::INFO)).with_target(OWN_TARGET, general);
    Ok(targets.with_targets(exceptions))
}

fn level_of(word: &str) -> Option<LevelFilter> {
    if word.eq_ignore_ascii_case("off") {
        return Some(LevelFilter::OFF);
    }
    // Numbers, which the parser also takes, mean nothing to a reader.
    let is_word = word.chars().all(|c| c.is_ascii_alphabetic());
    word.parse::<Level>().ok().filter(|_| is_word).map(LevelFilter::from_level)
}

fn subscriber<W>(
    filter: Targets,
    repeats: Repeats,
    format: LogFormat,
    ansi: bool,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    // Without this a line that can't be written is reported by `eprintln!`, which panics where stderr itself is what fails.
    let lines = tracing_subscriber::fmt::layer().log_internal_errors(false).with_ansi(ansi).with_writer(writer);
    let registry = Registry::default().with(filter).with(repeats);
    match format {
        LogFormat::Text => Box::new(registry.with(lines)),
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(true).with_span_list(false);
            Box::new(registry.with(lines))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::{Command, Stdio};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;
    use crate::clock::manual::ManualClock;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("not poisoned").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: &str, format: LogFormat, log: impl FnOnce()) -> String {
        logged_with(&Repeats::new(Clock::system()), level, format, log)
    }

    fn logged_with(repeats: &Repeats, level: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let captured = Captured::default();
        let writer = captured.clone();
        let filter = filter(level).expect("a level");
        let subscriber = subscriber(filter, repeats.clone(), format, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        let bytes = captured.0.lock().expect("not poisoned").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn levels_apply_to_the_program_and_only_exceptions_make_libraries_talk() {
        let rows = [
            ("info", "own info, lib info"),
            ("", "own info, lib info"),
            ("WARN", ""),
            ("debug", "own debug, own info, lib info"),
            ("warn,librdkafka=debug", "lib debug, lib info"),
            ("debug, librdkafka = off", "own debug, own info"),
            ("info,wecom_connector::sdk=off", "own info, lib info"),
            ("off", ""),
        ];
        for (level, expected) in rows {
            let text = logged(level, LogFormat::Json, || {
                tracing::debug!(target: "wecom_connector::task", "own debug");
                tracing::info!(target: "wecom_connector::task", "own info");
                tracing::debug!(target: "librdkafka", "lib debug");
                tracing::info!(target: "librdkafka", "lib info");
            });
            let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
            let messages: Vec<String> =
                lines.map(|line| line["message"].as_str().expect("a message").to_owned()).collect();
            assert_eq!(messages.join(", "), expected, "{level}");
        }
    }

    #[test]
    fn what_is_no_level_is_refused_by_name() {
        for (level, directive) in [
            ("verbose", "verbose"),
            ("info,librdkafka", "librdkafka"),
            ("info,librdkafka=loud", "librdkafka=loud"),
            ("=debug", "=debug"),
            ("3", "3"),
        ] {
            let error = filter(level).expect_err(level);
            assert_eq!(error, LevelError { directive: directive.to_owned() });
            assert!(error.to_string().contains("off, error, warn, info, debug, trace"));
        }
    }

    #[test]
    fn lines_carry_utc_times_and_fields_and_no_escape_gets_through() {
        let log = || tracing::info!(target: "wecom_connector", corp_id = "ww\u{1b}[31m1", "pulled\u{1b}[2J");
        let json: serde_json::Value =
            serde_json::from_str(&logged("info", LogFormat::Json, log)).expect("one JSON line");
        assert_eq!((&json["level"], &json["corp_id"]), (&"INFO".into(), &"ww\u{1b}[31m1".into()));
        let timestamp = json["timestamp"].as_str().expect("a time");
        assert!(timestamp.ends_with('Z') && timestamp.parse::<jiff::Timestamp>().is_ok(), "{timestamp}");
        let text = logged("info", LogFormat::Text, log);
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }

    #[test]
    fn of_lines_that_are_alike_one_is_written_a_minute_and_the_others_are_counted() {
        let time = ManualClock::default();
        let repeats = Repeats::new(time.clock());
        let log = |connector: &str, kind: &str, count: u64| {
            for seq in 0..count {
                tracing::warn!(target: "wecom_connector", connector, seq, kind, "dead letter: {kind}");
            }
        };
        let messages = |log: &dyn Fn()| {
            let text = logged_with(&repeats, "debug", LogFormat::Json, log);
            let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
            let mut messages: Vec<String> = lines
                .map(|line| {
                    format!(
                        "{} {}",
                        line["connector"].as_str().unwrap_or("-"),
                        line["message"].as_str().unwrap_or_default()
                    )
                })
                .collect();
            messages.sort();
            messages
        };
        let first = messages(&|| {
            log("a", "version 1", 5000);
            log("a", "version 2", 1);
            log("b", "version 1", 3);
            for number in 0..150 {
                tracing::info!(target: "librdkafka", "line {number}");
                tracing::debug!(target: "wecom_connector", "asked for");
            }
            repeats.tell();
        });
        let expected = ["a dead letter: version 1", "a dead letter: version 2", "b dead letter: version 1"];
        assert_eq!(first.iter().filter(|line| line.contains("dead letter")).collect::<Vec<_>>(), expected);
        assert_eq!(first.iter().filter(|line| line.starts_with("- line ")).count(), 100);
        assert_eq!(first.iter().filter(|line| *line == "- asked for").count(), 150);

        // In the next minute the first is written again, and what was left out before is told.
        time.advance(Duration::from_secs(60));
        let second = messages(&|| {
            log("a", "version 1", 2);
            repeats.tell();
            repeats.tell();
        });
        let expected = [
            "- repeated 50 times within 60 s: line 149",
            "a dead letter: version 1",
            "b repeated 2 times within 60 s: dead letter: version 1",
        ];
        assert_eq!(second, expected);
        time.advance(Duration::from_secs(60));
        let expected = ["a repeated 5000 times within 60 s: dead letter: version 1"];
        assert_eq!(messages(&|| repeats.tell()), expected);
        assert!(messages(&|| repeats.tell()).is_empty());
    }

    /// Run as a child below.
    #[test]
    fn a_child_that_logs_and_panics() {
        if std::env::var_os("A_CHILD_THAT_LOGS_AND_PANICS").is_some() {
            report_panics();
            let data = std::hint::black_box("a chat message 密");
            assert!(panic::catch_unwind(|| panic!("before there is a log")).is_err());
            assert!(panic::catch_unwind(|| data.split_at(data.len() - 1)).is_err());
            init("info", LogFormat::Json).expect("set up");
            tracing::error!("logged");
            assert!(panic::catch_unwind(|| panic!("after that")).is_err());
            assert!(panic::catch_unwind(|| data.split_at(data.len() - 1)).is_err());
            println!("still here");
        }
    }

    fn child(stderr: Stdio) -> (String, String) {
        let output = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "worker::logging::tests::a_child_that_logs_and_panics", "--nocapture"])
            .env("A_CHILD_THAT_LOGS_AND_PANICS", "1")
            .stderr(stderr)
            .output()
            .expect("started");
        let [stdout, stderr] = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success() && stdout.contains("still here"), "{stdout}{stderr}");
        (stdout, stderr)
    }

    #[test]
    fn a_panic_says_where_and_quotes_nothing() {
        let (stdout, stderr) = child(Stdio::piped());
        let lines: Vec<&str> = stderr.lines().collect();
        assert!(lines[0].starts_with("panic at src/worker/logging.rs:") && lines[0].ends_with("before there is a log"));
        let log: Vec<serde_json::Value> =
            lines[2..].iter().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(log.len(), 3, "{stderr}");
        assert!(log[1]["message"].as_str().is_some_and(|said| said.ends_with("after that")), "{stderr}");
        assert!(log[2]["location"].as_str().is_some_and(|place| place.contains(".rs:")), "{stderr}");
        assert!(stderr.matches("kept out").count() == 2 && !(stdout + &stderr).contains("chat message"), "{stderr}");
    }

    #[test]
    fn a_full_disk_or_closed_pipe_stops_nothing() {
        let full = || Stdio::from(File::options().write(true).open("/dev/full").expect("/dev/full"));
        let closed = || Stdio::from(io::pipe().expect("a pipe").1);
        for stderr in [full(), closed()] {
            child(stderr);
        }
    }
}
