//! How many records are asked for at once. What does not get through in one piece is asked for in smaller ones.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A page's answer larger than this is followed by smaller ones. Of each page there are several copies in memory, and
/// up to five pages are under way.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Full pages before a shrunken page grows again.
const PAGES_BEFORE_GROWTH: u32 = 20;
/// The same, after a growth that was in vain: so many times more, and at most so many.
const PATIENCE_FACTOR: u32 = 4;
const PAGES_BEFORE_GROWTH_MAX: u32 = 1_280;

/// The limit of one connector. It outlives the runs of its task, and by [`PageLimit::kept`] also the worker.
#[derive(Debug)]
pub struct PageLimit {
    /// As configured (`wecom.page.limit`).
    max: u32,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    limit: u32,
    /// Full pages since the limit changed last.
    full_pages: u32,
    pages_before_growth: u32,
    /// Whether the limit was last changed by growing.
    has_grown: bool,
    /// Whether what an earlier worker kept was heard.
    is_resumed: bool,
}

impl PageLimit {
    /// `max` is at least 1.
    pub fn new(max: u32) -> Self {
        let state = State {
            limit: max,
            full_pages: 0,
            pages_before_growth: PAGES_BEFORE_GROWTH,
            has_grown: false,
            is_resumed: false,
        };
        Self { max, state: Mutex::new(state) }
    }

    pub fn max(&self) -> u32 {
        self.max
    }

    /// How many records to ask for.
    pub fn get(&self) -> u32 {
        self.state().limit
    }

    /// What a later start has to know; `None`: nothing.
    pub fn kept(&self) -> Option<u32> {
        Some(self.get()).filter(|limit| *limit < self.max)
    }

    /// The worker begins; a later run of its task changes nothing. `kept` is what an earlier one kept; `vain_starts` is
    /// how many of them have ended since a page was committed, which is how it looks when a page is more than the
    /// machine has memory for.
    pub fn resume(&self, kept: Option<u32>, vain_starts: u64) {
        let mut state = self.state();
        if std::mem::replace(&mut state.is_resumed, true) {
            return;
        }
        state.limit = kept.unwrap_or(self.max).clamp(1, self.max);
        if vain_starts > 0 {
            let halvings = u32::try_from(vain_starts).unwrap_or(u32::MAX).min(31);
            state.limit = (state.limit >> halvings).max(1);
            state.pages_before_growth = PAGES_BEFORE_GROWTH_MAX;
        }
    }

    /// A page of this size does not get through. `false`: it cannot be smaller.
    pub fn shrink(&self) -> bool {
        let mut state = self.state();
        if state.limit == 1 {
            return false;
        }
        if state.has_grown {
            state.pages_before_growth = (state.pages_before_growth * PATIENCE_FACTOR).min(PAGES_BEFORE_GROWTH_MAX);
        }
        let half = state.limit / 2;
        state.change(half, false);
        true
    }

    /// A page of so many records and bytes has come, for which `asked` was the limit.
    pub fn arrived(&self, asked: u32, records: usize, bytes: usize) {
        let mut state = self.state();
        if records == 0 {
            return;
        }
        let fitting = u32::try_from(records.saturating_mul(PAGE_BYTES_MAX) / bytes.max(1)).unwrap_or(u32::MAX).max(1);
        if bytes > PAGE_BYTES_MAX && fitting < state.limit {
            state.change(fitting, false);
        } else if records >= asked as usize {
            state.full_pages += 1;
            let grown = state.limit.saturating_mul(2).min(self.max);
            if state.limit < self.max && state.full_pages >= state.pages_before_growth && grown <= fitting {
                state.change(grown, true);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn change(&mut self, limit: u32, has_grown: bool) {
        (self.limit, self.full_pages, self.has_grown) = (limit, 0, has_grown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Full pages until the limit changes.
    fn pages_until_growth(limit: &PageLimit) -> u32 {
        let before = limit.get();
        (1..)
            .find(|_| {
                limit.arrived(before, before as usize, 1);
                limit.get() != before
            })
            .unwrap()
    }

    #[test]
    fn what_does_not_get_through_is_halved_and_grows_back_ever_more_slowly() {
        let limit = PageLimit::new(1000);
        assert_eq!((limit.get(), limit.kept()), (1000, None));
        assert!(limit.shrink() && limit.shrink());
        assert_eq!((limit.get(), limit.kept()), (250, Some(250)));
        // A page that is not full tells nothing.
        (0..100).for_each(|_| limit.arrived(250, 249, 1));
        assert_eq!(limit.get(), 250);
        for expected in [20, 80, 320, 1280, 1280] {
            assert_eq!(pages_until_growth(&limit), expected);
            assert!(limit.shrink());
        }
        assert_eq!(limit.get(), 250);
        while limit.shrink() {}
        assert_eq!(limit.get(), 1);
    }

    #[test]
    fn starts_without_a_page_halve_it_too() {
        for (kept, vain_starts, expected) in [
            (None, 0, 1000),
            (Some(300), 0, 300),
            (None, 1, 500),
            (Some(300), 2, 75),
            (None, 99, 1),
            (Some(5000), 0, 1000),
        ] {
            let limit = PageLimit::new(1000);
            limit.resume(kept, vain_starts);
            assert_eq!(limit.get(), expected, "{kept:?} {vain_starts}");
        }
    }

    #[test]
    fn bytes_have_a_bound() {
        let limit = PageLimit::new(1000);
        limit.arrived(1000, 1000, 50_000_000);
        assert_eq!(limit.get(), 167);
        // Records of this size: a doubled page would be too large.
        (0..100).for_each(|_| limit.arrived(167, 167, 8_350_000));
        assert_eq!(limit.get(), 167);
        (0..20).for_each(|_| limit.arrived(167, 167, 167_000));
        assert_eq!(limit.get(), 334);
        limit.arrived(334, 1, 100_000_000);
        assert_eq!(limit.get(), 1);
    }
}
