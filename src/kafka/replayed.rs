//! Which dead letters have been replayed: a record a partition of the dead letter topic, in the topic of source offsets and in
//! the form of its keys. It is written in the transaction that publishes the messages.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::committer::OutgoingRecord;

/// Whose state: a connector's, for one partition of its dead letter topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedKey {
    pub connector: String,
    pub corp_id: String,
    pub dead_letter_topic: Arc<str>,
    pub partition: i32,
}

#[derive(Serialize)]
struct DeadLetterPartition<'a> {
    corp_id: &'a str,
    dead_letter_topic: &'a str,
    partition: i32,
}

impl ReplayedKey {
    /// The record key. One spelling only: compaction compares bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let partition = DeadLetterPartition {
            corp_id: &self.corp_id,
            dead_letter_topic: &self.dead_letter_topic,
            partition: self.partition,
        };
        serde_json::to_vec(&(&self.connector, partition))
    }

    /// The record that says `replayed`.
    pub fn record(
        &self,
        topic: &Arc<str>,
        replayed: &Replayed,
        timestamp_ms: i64,
    ) -> Result<OutgoingRecord, serde_json::Error> {
        Ok(OutgoingRecord {
            topic: topic.clone(),
            key: self.to_bytes()?,
            value: serde_json::to_vec(replayed)?,
            headers: Vec::new(),
            timestamp_ms,
        })
    }
}

/// The offsets of dead letters that have been replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replayed {
    /// First and last offset of each range, both in it; by rising offset, none touching another. A range may span offsets that
    /// are no dead letters.
    #[serde(rename = "replayed")]
    ranges: Vec<(i64, i64)>,
    /// The largest timestamp of a dead letter that was replayed, milliseconds since the epoch. A later one under an offset in
    /// `ranges` shows that the topic was deleted and made again.
    #[serde(default)]
    newest_ms: i64,
}

impl Replayed {
    /// Reads a record's value. Ranges in another order, or that touch, are put right.
    pub fn parse(value: &[u8]) -> Result<Self, serde_json::Error> {
        let read: Self = serde_json::from_slice(value)?;
        let mut replayed = Self { ranges: Vec::new(), newest_ms: read.newest_ms };
        for (first, last) in read.ranges {
            replayed.insert(first.min(last), first.max(last));
        }
        Ok(replayed)
    }

    pub fn contains(&self, offset: i64) -> bool {
        self.range_of(offset).is_some()
    }

    /// See [`Self::newest_ms`].
    pub fn newest_ms(&self) -> i64 {
        self.newest_ms
    }

    /// Whether both are in, and in different ranges.
    pub fn are_apart(&self, one: i64, other: i64) -> bool {
        matches!((self.range_of(one), self.range_of(other)), (Some(one), Some(other)) if one != other)
    }

    /// Notes a dead letter as replayed. `previous` is the dead letter before it, if there is one: where that has been replayed as
    /// well, nothing lies between the two and they become one range.
    pub fn add(&mut self, previous: Option<i64>, offset: i64, timestamp_ms: i64) {
        let first = previous.filter(|previous| self.contains(*previous)).unwrap_or(offset);
        self.insert(first, offset);
        self.newest_ms = self.newest_ms.max(timestamp_ms);
    }

    /// Makes one range of the two that hold these neighbours; nothing where one of them is in none.
    pub fn join(&mut self, previous: i64, offset: i64) {
        if self.are_apart(previous, offset) {
            self.insert(previous, offset);
        }
    }

    /// Forgets what lies before `first`: retention has eaten it.
    pub fn forget_before(&mut self, first: i64) {
        self.ranges.retain(|(_, last)| *last >= first);
    }

    fn range_of(&self, offset: i64) -> Option<usize> {
        let index = self.ranges.partition_point(|(first, _)| *first <= offset).checked_sub(1)?;
        (self.ranges[index].1 >= offset).then_some(index)
    }

    fn insert(&mut self, mut first: i64, mut last: i64) {
        let from = self.ranges.partition_point(|(_, end)| end.saturating_add(1) < first);
        let to = self.ranges.partition_point(|(begin, _)| *begin <= last.saturating_add(1));
        if let Some(touched) = self.ranges.get(from..to).filter(|touched| !touched.is_empty()) {
            first = first.min(touched[0].0);
            last = last.max(touched[touched.len() - 1].1);
        }
        self.ranges.splice(from..to.max(from), [(first, last)]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn records_have_the_form_of_source_offsets() {
        let key = ReplayedKey {
            connector: "archive".into(),
            corp_id: "ww1".into(),
            dead_letter_topic: "dlq".into(),
            partition: 3,
        };
        let mut replayed = Replayed::default();
        for (previous, offset) in [(None, 0), (Some(0), 2), (Some(2), 4), (Some(6), 8)] {
            replayed.add(previous, offset, 10 + offset);
        }
        let record = key.record(&"offsets".into(), &replayed, 7).expect("encodes");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        assert_eq!(text(record.key), r#"["archive",{"corp_id":"ww1","dead_letter_topic":"dlq","partition":3}]"#);
        assert_eq!(text(record.value), r#"{"replayed":[[0,4],[8,8]],"newest_ms":18}"#);
        let read = Replayed::parse(br#"{"replayed":[[8,8],[0,2],[3,4]],"more":1}"#).expect("reads");
        assert_eq!(read.ranges, [(0, 4), (8, 8)]);
        assert!(Replayed::parse(br#"{"seq":1}"#).is_err());
    }

    proptest! {
        /// Dead letters lie at some offsets, others between them are none. In whatever rounds they are replayed, what is
        /// noted is what was replayed, in as few ranges as can be.
        #[test]
        fn what_is_noted_is_what_was_replayed(
            letters in prop::collection::btree_set(0i64..60, 1..40),
            rounds in prop::collection::vec(prop::collection::btree_set(0i64..60, 0..20), 1..5),
            eaten in 0i64..60,
        ) {
            let letters: Vec<i64> = letters.into_iter().collect();
            let mut replayed = Replayed::default();
            let mut expected = BTreeSet::new();
            for round in rounds {
                let mut previous = None;
                for &letter in &letters {
                    if round.contains(&letter) && !replayed.contains(letter) {
                        replayed.add(previous, letter, letter);
                        expected.insert(letter);
                    } else if let Some(previous) = previous {
                        replayed.join(previous, letter);
                    }
                    previous = Some(letter);
                }
                for &letter in &letters {
                    prop_assert_eq!(replayed.contains(letter), expected.contains(&letter), "{} {:?}", letter, replayed);
                }
                let runs = letters.chunk_by(|a, b| expected.contains(a) == expected.contains(b));
                let runs = runs.filter(|run| expected.contains(&run[0])).count();
                prop_assert_eq!(replayed.ranges.len(), runs, "{:?}", replayed);
            }
            prop_assert_eq!(Replayed::parse(&serde_json::to_vec(&replayed).unwrap()).unwrap(), replayed.clone());
            replayed.forget_before(eaten);
            for &letter in letters.iter().filter(|letter| **letter >= eaten) {
                prop_assert_eq!(replayed.contains(letter), expected.contains(&letter));
            }
        }
    }
}
