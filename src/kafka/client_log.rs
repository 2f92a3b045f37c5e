//! The lines that librdkafka logs. It can log without end and as fast as it can, so each kind of line has a limit a minute, for the
//! whole process. What is left out is counted, and the count is logged.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::config::RDKafkaLogLevel;

const WINDOW: Duration = Duration::from_secs(60);

/// Lines of one kind in one window. A cluster of some brokers is down within it.
const LINES_MAX: u64 = 10;

static LIMIT: Mutex<LogLimit> = Mutex::new(LogLimit(BTreeMap::new()));

/// Logs a line of librdkafka, or counts it. `kind` is librdkafka's own name for it, such as `FAIL`.
pub(super) fn log(level: RDKafkaLogLevel, kind: &str, line: &str) {
    // Whoever sets `debug` of librdkafka wants all of it.
    if matches!(level, RDKafkaLogLevel::Debug) {
        tracing::debug!(target: "librdkafka", kind, "{line}");
        return;
    }
    let now = Instant::now();
    let (is_let_through, left_out) = LIMIT.lock().unwrap_or_else(PoisonError::into_inner).count(kind, now);
    tell(kind, left_out);
    if !is_let_through {
        return;
    }
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", kind, "{line}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", kind, "{line}"),
        _ => tracing::info!(target: "librdkafka", kind, "{line}"),
    }
}

/// Logs what was left out in windows that are over. To be called now and then, so that a count is told also where no further line
/// of its kind comes.
pub fn tell_left_out() {
    let over = LIMIT.lock().unwrap_or_else(PoisonError::into_inner).over(Instant::now());
    for (kind, left_out) in over {
        tell(&kind, left_out);
    }
}

fn tell(kind: &str, left_out: u64) {
    if left_out > 0 {
        tracing::warn!(target: "librdkafka", kind, left_out, "further lines of this kind were left out within a minute");
    }
}

/// By kind: when the window began, and the lines in it.
struct LogLimit(BTreeMap<String, (Instant, u64)>);

impl LogLimit {
    /// Whether this line is let through, and how many were left out in the window that it has ended.
    fn count(&mut self, kind: &str, now: Instant) -> (bool, u64) {
        let Some((since, lines)) = self.0.get_mut(kind) else {
            self.0.insert(kind.to_owned(), (now, 1));
            return (true, 0);
        };
        let mut left_out = 0;
        if now.saturating_duration_since(*since) >= WINDOW {
            left_out = lines.saturating_sub(LINES_MAX);
            (*since, *lines) = (now, 0);
        }
        *lines += 1;
        (*lines <= LINES_MAX, left_out)
    }

    /// The kinds whose window is over and has left something out.
    fn over(&mut self, now: Instant) -> Vec<(String, u64)> {
        let over = self.0.extract_if(.., |_, (since, _)| now.saturating_duration_since(*since) >= WINDOW);
        over.map(|(kind, (_, lines))| (kind, lines.saturating_sub(LINES_MAX))).filter(|(_, lines)| *lines > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let (mut limit, start) = (LogLimit(BTreeMap::new()), Instant::now());
        let at = |second| start + Duration::from_secs(second);
        let let_through = (0..40_000).filter(|_| limit.count("METADATA", at(1)).0).count();
        assert_eq!(let_through as u64, LINES_MAX);
        assert_eq!(limit.count("FAIL", at(2)), (true, 0), "another kind has a limit of its own");
        assert_eq!(limit.count("METADATA", at(61)), (true, 40_000 - LINES_MAX));
        for _ in 0..LINES_MAX + 5 {
            limit.count("METADATA", at(62));
        }
        assert_eq!(limit.over(at(120)), []);
        assert_eq!(limit.over(at(122)), [("METADATA".to_owned(), 6)]);
        assert_eq!(limit.over(at(300)), []);
    }
}
