//! The vendor's limit of 600 `GetChatData` calls a minute and corp (doc 91774), kept by ourselves.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_secs(60);

/// The limiters of a worker: connectors that read the same corp share one.
#[derive(Debug, Default)]
pub struct RateLimiters(Mutex<BTreeMap<String, Arc<RateLimiter>>>);

impl RateLimiters {
    /// The corp's limiter. The first connector's `calls_max` counts for all.
    pub fn of(&self, corp_id: &str, calls_max: u32) -> Arc<RateLimiter> {
        let mut limiters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        limiters.entry(corp_id.to_owned()).or_insert_with(|| Arc::new(RateLimiter::new(calls_max))).clone()
    }
}

/// At most `calls_max` calls in any 60 seconds. Exact: remembers when each call of the last minute was made.
#[derive(Debug)]
pub struct RateLimiter(Mutex<Calls>);

#[derive(Debug)]
struct Calls {
    calls: VecDeque<Instant>,
    calls_max: usize,
}

impl RateLimiter {
    /// `calls_max` of at least 1.
    pub fn new(calls_max: u32) -> Self {
        let calls_max = calls_max.max(1) as usize;
        Self(Mutex::new(Calls { calls: VecDeque::with_capacity(calls_max), calls_max }))
    }

    /// How long to wait before the next call; a call with nothing to wait for is counted as made.
    pub fn acquire(&self, now: Instant) -> Option<Duration> {
        let mut this = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while this.calls.front().is_some_and(|&call| now.duration_since(call) >= WINDOW) {
            this.calls.pop_front();
        }
        match this.calls.front() {
            Some(&oldest) if this.calls.len() >= this.calls_max => Some(WINDOW - now.duration_since(oldest)),
            _ => {
                this.calls.push_back(now);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_minute_holds_more_calls_than_the_limit(calls_max in 1u32..20, pauses_ms in prop::collection::vec(0u64..20_000, 1..200)) {
            let limiter = RateLimiter::new(calls_max);
            let mut now = Instant::now();
            let mut made = Vec::new();
            for pause_ms in pauses_ms {
                now += Duration::from_millis(pause_ms);
                match limiter.acquire(now) {
                    None => made.push(now),
                    Some(wait) => {
                        prop_assert!(wait <= WINDOW);
                        now += wait;
                        prop_assert_eq!(limiter.acquire(now), None, "waiting as told is enough");
                        made.push(now);
                    }
                }
            }
            for (index, &call) in made.iter().enumerate() {
                let in_minute = made[index..].iter().take_while(|&&later| later.duration_since(call) < WINDOW).count();
                prop_assert!(in_minute <= calls_max as usize);
            }
        }
    }
}
