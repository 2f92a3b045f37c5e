//! Where the time comes from, so that a test can move it.

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// One reading of both clocks.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For durations: it never goes back and does not follow the wall clock's corrections.
    pub instant: Instant,
    /// For what people and messages mean by time: milliseconds since 1970-01-01 UTC.
    pub unix_ms: i64,
}

/// A source of time. Cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Now + Send + Sync>);

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self::from_fn(|| Now {
            instant: Instant::now(),
            unix_ms: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX)),
        })
    }

    pub fn from_fn(now: impl Fn() -> Now + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    pub fn now(&self) -> Now {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
pub mod manual {
    //! A clock that stands still until it is told to move.

    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    /// 2026-01-01T00:00:00Z.
    pub const START_MS: i64 = 1_767_225_600_000;

    #[derive(Debug, Clone, Default)]
    pub struct ManualClock(Arc<AtomicU64>);

    impl ManualClock {
        pub fn advance(&self, duration: Duration) {
            let millis = u64::try_from(duration.as_millis()).expect("a short time");
            self.0.fetch_add(millis, Ordering::Relaxed);
        }

        pub fn clock(&self) -> Clock {
            let (start, passed) = (Instant::now(), self.0.clone());
            Clock::from_fn(move || {
                let passed_ms = passed.load(Ordering::Relaxed);
                Now { instant: start + Duration::from_millis(passed_ms), unix_ms: START_MS + passed_ms as i64 }
            })
        }
    }
}
