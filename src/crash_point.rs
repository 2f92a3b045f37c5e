//! Where a debug build can be told to die, or to do wrong, so that tests can see what becomes of it. A release build has none
//! of this.
//!
//! `WECOM_CONNECTOR_CRASH_POINT=commit_called:3` kills the worker when it gets to that point for the third time. Further words say
//! how: `commit_called:3 wait_us=20000` stays there for so long first, `commit_called:3 after_us=700` goes on for so long, and
//! `commit_called:3 stop` only stops the process (SIGSTOP). `WECOM_CONNECTOR_BREAK=offset_outside` makes a mistake on purpose.

#[cfg(debug_assertions)]
pub use armed::{is_broken, reach};

/// Does nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn reach(_: &str) {}

/// Never.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn is_broken(_: &str) -> bool {
    false
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    struct Point {
        name: String,
        count: u64,
        reached: AtomicU64,
        wait: Duration,
        after: Duration,
        signal: Signal,
    }

    #[expect(clippy::disallowed_methods, reason = "no setting: nothing that a user may set")]
    static POINT: LazyLock<Option<Point>> =
        LazyLock::new(|| std::env::var("WECOM_CONNECTOR_CRASH_POINT").ok().map(|text| parse(&text)));

    #[expect(clippy::disallowed_methods, reason = "no setting: nothing that a user may set")]
    static BROKEN: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("WECOM_CONNECTOR_BREAK").ok());

    /// The worker is at this point of its work.
    pub fn reach(name: &str) {
        let Some(point) = POINT.as_ref().filter(|point| point.name == name) else { return };
        if point.reached.fetch_add(1, Ordering::Relaxed) + 1 != point.count {
            return;
        }
        if point.after.is_zero() {
            std::thread::sleep(point.wait);
            strike(point.signal);
        } else {
            std::thread::spawn(|| {
                std::thread::sleep(point.after);
                strike(point.signal);
            });
        }
    }

    /// Whether this mistake is to be made.
    pub fn is_broken(mistake: &str) -> bool {
        BROKEN.as_deref() == Some(mistake)
    }

    fn strike(signal: Signal) {
        // A process can always signal itself.
        let _ = kill_process(getpid(), signal);
    }

    /// Of tests alone: what cannot be read must not pass for a point that is never reached.
    fn parse(text: &str) -> Point {
        let mut words = text.split_whitespace();
        let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("no number: {text:?}"));
        let (name, count) =
            words.next().and_then(|first| first.split_once(':')).unwrap_or_else(|| panic!("no point: {text:?}"));
        let mut point = Point {
            name: name.to_owned(),
            count: number(count),
            reached: AtomicU64::new(0),
            wait: Duration::ZERO,
            after: Duration::ZERO,
            signal: Signal::KILL,
        };
        for word in words {
            match word.split_once('=') {
                Some(("wait_us", wait)) => point.wait = Duration::from_micros(number(wait)),
                Some(("after_us", after)) => point.after = Duration::from_micros(number(after)),
                None if word == "stop" => point.signal = Signal::STOP,
                _ => panic!("not known: {word:?}"),
            }
        }
        point
    }
}
