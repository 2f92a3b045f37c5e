use proptest::prelude::*;

use super::*;

/// Epoch, seq, the seq it names, mark.
type Row = (u64, u64, Option<u64>, bool);

fn record((epoch, seq, previous, republished): Row, offset: i64) -> Sequenced {
    Sequenced { epoch, seq, previous, republished, place: Place { topic: "t".into(), partition: 0, offset } }
}

fn judge(
    rows: &[Row],
    limit: Option<Position>,
    deleted_before: u64,
) -> (Vec<(Kind, Option<u64>)>, Vec<Announced>, Ends) {
    let mut findings = Findings::new(0..=u64::MAX);
    let firsts = if deleted_before > 0 { vec![Some((0, deleted_before))] } else { Vec::new() };
    let mut chain = Chain::new(limit, Remains::new(firsts));
    for (offset, row) in rows.iter().enumerate() {
        chain.push(record(*row, offset as i64), &mut findings);
    }
    let ends = chain.finish(&mut findings);
    let found = Promise::ALL.into_iter().flat_map(|promise| &findings.tally(promise).examples);
    (found.map(|finding| (finding.kind, finding.seq)).collect(), findings.announced, ends)
}

#[test]
fn each_fault_has_its_name() {
    use Kind::{ChainBroken, Missing, Twice, Unchained, WrongMark};
    let rows: &[(&[Row], &[(Kind, Option<u64>)])] = &[
        // Numbers with gaps are no loss.
        (&[(0, 1, Some(0), false), (0, 5, Some(1), false), (0, 9, Some(5), false)], &[]),
        (&[(0, 5, Some(1), false)], &[(Missing, Some(5))]),
        (&[(0, 1, Some(0), false), (0, 3, Some(2), false)], &[(Missing, Some(3))]),
        (&[(0, 1, Some(0), false), (0, 1, Some(0), false), (0, 2, Some(1), false)], &[(Twice, Some(1))]),
        // The archive itself can give a number to two records.
        (&[(0, 1, Some(0), false), (0, 1, Some(1), false), (0, 2, Some(1), false)], &[]),
        // Late, but there.
        (&[(0, 1, Some(0), false), (0, 4, Some(3), false), (0, 3, Some(2), false), (0, 2, Some(1), false)], &[]),
        // Late, and the one before it is not there.
        (&[(0, 1, Some(0), false), (0, 4, Some(3), false), (0, 3, Some(2), false)], &[(Missing, Some(3))]),
        (
            &[(0, 1, Some(0), false), (0, 2, Some(1), false), (0, 3, Some(2), false), (0, 2, Some(1), false)],
            &[(Twice, Some(2))],
        ),
        (&[(0, 1, Some(0), false), (0, 2, Some(1), false), (0, 3, Some(1), false)], &[(ChainBroken, Some(3))]),
        (&[(0, 1, Some(0), false), (0, 2, Some(7), false)], &[(ChainBroken, Some(2))]),
        (&[(0, 1, Some(0), false), (0, 2, None, false)], &[(Unchained, Some(2))]),
        // Back by hand, with and without the mark.
        (&[(0, 1, Some(0), false), (0, 2, Some(1), false), (1, 2, Some(1), true), (1, 3, Some(2), false)], &[]),
        (
            &[(0, 1, Some(0), false), (0, 2, Some(1), false), (1, 2, Some(1), false), (1, 3, Some(2), true)],
            &[(Twice, Some(2)), (WrongMark, Some(3))],
        ),
        // Missing in the second epoch alone.
        (
            &[(0, 1, Some(0), false), (0, 2, Some(1), false), (1, 1, Some(0), true), (1, 3, Some(2), false)],
            &[(Missing, Some(3))],
        ),
    ];
    for (rows, expected) in rows {
        assert_eq!(judge(rows, None, 0).0, *expected, "{rows:?}");
    }
}

#[test]
fn a_skip_by_hand_is_announced() {
    let (found, announced, ends) = judge(&[(0, 1, Some(0), false), (2, 9, Some(7), false)], None, 0);
    assert_eq!((found, announced), (vec![], vec![Announced::Skipped { after_seq: 1, to_seq: 7 }]));
    assert_eq!((ends.first, ends.last, ends.earlier_seq), (Some((0, 1)), Some((2, 9)), Some(1)));

    // Back over it: what was skipped is new, what came after it is not; and once it was published it is not new either.
    let rows = [
        (0, 1, Some(0), false),
        (1, 9, Some(7), false),
        (2, 2, Some(1), false),
        (2, 7, Some(2), false),
        (2, 9, Some(7), true),
        (3, 7, Some(6), true),
    ];
    assert_eq!(judge(&rows, None, 0).0, vec![]);
    let wrong = [(0, 1, Some(0), false), (1, 9, Some(7), false), (2, 2, Some(1), true), (2, 9, Some(2), false)];
    let expected = vec![(Kind::WrongMark, Some(2)), (Kind::Twice, Some(9))];
    assert_eq!(judge(&wrong, None, 0).0, expected);

    let (found, announced, _) = judge(&[(1, 9, Some(7), false)], None, 0);
    assert_eq!((found, announced), (vec![], vec![Announced::Skipped { after_seq: 0, to_seq: 7 }]));
}

#[test]
fn what_may_be_deleted_is_not_missing() {
    let rows = [(0, 5, Some(4), false), (0, 8, Some(6), false), (0, 12, Some(11), false)];
    assert_eq!(judge(&rows, None, 10).0, [(Kind::Missing, Some(12))]);

    // Nor is it skipped or wrongly marked: the end of the first epoch may have been deleted.
    let rows = [(0, 5, Some(4), false), (1, 8, Some(7), true), (1, 12, Some(8), true)];
    let (found, announced, _) = judge(&rows, None, 10);
    assert_eq!((found, announced), (vec![(Kind::WrongMark, Some(12))], vec![]));
}

#[test]
fn what_is_behind_the_limit_is_not_judged() {
    let rows = [(0, 1, Some(0), false), (0, 3, Some(2), false), (1, 1, Some(0), false)];
    let (found, _, ends) = judge(&rows, Some((0, 2)), 0);
    assert_eq!((found, ends.last, ends.highest, ends.behind_limit), (vec![], Some((0, 1)), Some((1, 1)), 2));
}

proptest! {
    /// Of a right sequence, whatever is taken away but its end is found missing, and nothing else is found.
    #[test]
    fn every_loss_is_found(steps in prop::collection::vec((1..9_u64, any::<bool>()), 1..60), seed in any::<u64>()) {
        let mut previous = 0;
        let mut rows = Vec::new();
        for (step, kept) in &steps {
            rows.push(((0, previous + step, Some(previous), false), *kept));
            previous += step;
        }
        let kept: Vec<Row> = rows.iter().filter(|(_, kept)| *kept).map(|(row, _)| *row).collect();
        // One finding for each record whose predecessor is gone.
        let expected: Vec<_> = rows
            .iter()
            .scan(true, |before, (row, kept)| Some((std::mem::replace(before, *kept), row, *kept)))
            .filter(|(before, _, kept)| !before && *kept)
            .map(|(_, row, _)| (Kind::Missing, Some(row.1)))
            .collect();
        prop_assert_eq!(&judge(&kept, None, 0).0, &expected);

        // In any order of arrival what is there is found there.
        let mut shuffled = kept.clone();
        let mut state = seed | 1;
        for index in (1..shuffled.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            shuffled.swap(index, (state >> 33) as usize % (index + 1));
        }
        let mut found = judge(&shuffled, None, 0).0;
        found.sort_by_key(|(_, seq)| *seq);
        prop_assert_eq!(found, expected);
    }
}
