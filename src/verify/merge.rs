//! Several runs as one, the smallest item first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Merges numbered runs that are given out one item at a time; holds one item of each. Runs that rise come out as one that
/// rises. From runs that do not, every item still comes once, and in the order of its run.
#[derive(Debug)]
pub struct Merge<T> {
    heads: BinaryHeap<Reverse<(T, usize)>>,
}

impl<T: Ord> Merge<T> {
    /// Takes the first item of each run; `next` gives the next of the run with this number, or none at its end.
    pub fn new<E>(runs: usize, mut next: impl FnMut(usize) -> Result<Option<T>, E>) -> Result<Self, E> {
        let mut heads = BinaryHeap::with_capacity(runs);
        for run in 0..runs {
            heads.extend(next(run)?.map(|item| Reverse((item, run))));
        }
        Ok(Self { heads })
    }

    /// The smallest item that is at hand, and in its place the next of its run.
    pub fn pop<E>(&mut self, mut next: impl FnMut(usize) -> Result<Option<T>, E>) -> Result<Option<T>, E> {
        let Some(Reverse((item, run))) = self.heads.pop() else { return Ok(None) };
        self.heads.extend(next(run)?.map(|item| Reverse((item, run))));
        Ok(Some(item))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;

    use super::*;

    fn merged(runs: &[Vec<u8>]) -> Vec<(u8, usize)> {
        let mut runs: Vec<_> =
            runs.iter().enumerate().map(|(run, items)| items.iter().map(move |&item| (item, run))).collect();
        let count = runs.len();
        let mut next = |run: usize| Ok::<_, Infallible>(runs[run].next());
        let Ok(mut merge) = Merge::new(count, &mut next);
        let mut all = Vec::new();
        while let Ok(Some(item)) = merge.pop(&mut next) {
            all.push(item);
        }
        all
    }

    proptest! {
        #[test]
        fn runs_that_rise_come_out_as_one(mut runs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6)) {
            runs.iter_mut().for_each(|run| run.sort_unstable());
            let mut expected: Vec<u8> = runs.concat();
            expected.sort_unstable();
            prop_assert_eq!(merged(&runs).into_iter().map(|(item, _)| item).collect::<Vec<_>>(), expected);
        }

        #[test]
        fn nothing_is_lost_of_runs_that_do_not(runs in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6)) {
            let all = merged(&runs);
            for (number, run) in runs.iter().enumerate() {
                let of_run: Vec<u8> = all.iter().filter(|(_, from)| *from == number).map(|(item, _)| *item).collect();
                prop_assert_eq!(&of_run, run);
            }
        }
    }
}
