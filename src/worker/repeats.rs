//! Lines of the log that come again and again: of thousands of alike the first is written, and then how many were left
//! out.
//!
//! A line with a field `kind` stands for its kind: one is written a minute. Any other line may be written [`LINES_MAX`]
//! times a minute. Lines of `debug` and `trace` are asked for on purpose and all written.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::clock::Clock;

/// How long a line stands for those like it.
const WINDOW: Duration = Duration::from_secs(60);

/// How often a line without a kind is written within a window, for each connector.
const LINES_MAX: u64 = 100;

/// Kinds that are told apart; those beyond count as one.
const KINDS_MAX: usize = 1000;

/// What has been written within the last minute. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Repeats {
    clock: Clock,
    runs: Arc<Mutex<HashMap<Key, Run>>>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    place: Identifier,
    kind: String,
    connector: String,
}

/// Lines that are alike, within one window.
#[derive(Debug)]
struct Run {
    until: Instant,
    written: u64,
    left_out: u64,
    level: Level,
    /// Of the last one that was left out.
    message: String,
}

impl Repeats {
    pub fn new(clock: Clock) -> Self {
        Self { clock, runs: Arc::default() }
    }

    /// Whether the line is written. One that is not is counted.
    fn admit(&self, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == module_path!() {
            return true;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let now = self.clock.now().instant;
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = Key { place: metadata.callsite(), kind: line.kind, connector: line.connector };
        if runs.len() >= KINDS_MAX && !runs.contains_key(&key) {
            key.kind.clear();
        }
        let most = if key.kind.is_empty() { LINES_MAX } else { 1 };
        let level = *metadata.level();
        let new = || Run { until: now + WINDOW, written: 0, left_out: 0, level, message: String::new() };
        let run = runs.entry(key).or_insert_with(new);
        if now >= run.until {
            // What was left out before and is not told yet stays to be told.
            (run.until, run.written) = (now + WINDOW, 0);
        }
        if run.written < most {
            run.written += 1;
            return true;
        }
        run.left_out += 1;
        run.message = line.message;
        false
    }

    /// Tells how many lines were left out in windows that are over. To be called about every second.
    pub fn tell(&self) {
        let now = self.clock.now().instant;
        self.tell_of(|run| now >= run.until);
    }

    /// Tells how many lines were left out and are not told yet, before the log ends.
    pub fn tell_all(&self) {
        self.tell_of(|_| true);
    }

    fn tell_of(&self, is_over: impl Fn(&Run) -> bool) {
        let mut over = Vec::new();
        self.runs.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, run| {
            let is_over = is_over(run);
            if is_over && run.left_out > 0 {
                over.push((key.connector.clone(), run.level, run.left_out, mem::take(&mut run.message)));
            }
            !is_over
        });
        for (connector, level, left_out, message) in over {
            let connector = (!connector.is_empty()).then_some(connector);
            let text = format!("repeated {left_out} times within {} s: {message}", WINDOW.as_secs());
            match level {
                Level::ERROR => tracing::error!(connector, left_out, "{text}"),
                Level::WARN => tracing::warn!(connector, left_out, "{text}"),
                _ => tracing::info!(connector, left_out, "{text}"),
            }
        }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.admit(event)
    }
}

/// What of a line tells it from others.
#[derive(Debug, Default)]
struct Line {
    kind: String,
    connector: String,
    message: String,
}

impl Visit for Line {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "kind" => value.clone_into(&mut self.kind),
            "connector" => value.clone_into(&mut self.connector),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = match field.name() {
            "kind" => &mut self.kind,
            "connector" => &mut self.connector,
            "message" => &mut self.message,
            _ => return,
        };
        text.clear();
        // Writing to a String can't fail.
        let _ = write!(text, "{value:?}");
    }
}
