//! Source offsets, in Kafka Connect's own format: key `["<connector>",{"corp_id":"…"}]`, value `{"seq":N,…}`, canonical JSON
//! in a compacted topic. Connect's readers and tools read these.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::client::Clients;
use super::client_error::ClientError;
use super::committer::OutgoingRecord;
use super::scan::{self, Begin, ScanError, Scanned};
use crate::config::{ConnectorConfig, WorkerConfig};

/// How far a corp's archive is published: everything up to and with `seq`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceOffset {
    pub seq: u64,
    /// When this was committed, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at_ms: Option<i64>,
    /// Which start of a worker wrote it: tells a real fencing from a time-out of our own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// All that the archive had up to this moment is published, by this epoch or an earlier one, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered_until_ms: Option<i64>,
    /// How often the offset was moved by hand.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch: u64,
    /// The seq that this epoch began after.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub epoch_after_seq: u64,
    /// Earlier epochs have published everything up to and with this seq, but for what they skipped.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub republished_to: u64,
    /// What no earlier epoch has published: after the first seq, up to and with the second.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<(u64, u64)>,
    /// The newest believable time of a published message, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_msgtime_ms: Option<i64>,
    /// How often a worker has begun since a page was committed last, or the archive was found drained.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vain_starts: u64,
    /// Records that were asked for at once, where that is fewer than is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page_limit: Option<u32>,
    /// `group.id` of the worker that wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_id: Option<String>,
    /// Where the offset stood before it was moved by hand the last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_from: Option<MovedFrom>,
}

/// Where an offset stood before it was moved by hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MovedFrom {
    pub seq: u64,
    #[serde(default)]
    pub epoch: u64,
    /// When it was moved, milliseconds since the epoch.
    pub at_ms: i64,
}

/// A longer list of what was skipped would not fit into an offset record.
const SKIPPED_RANGES_MAX: usize = 500;

impl SourceOffset {
    /// Whether an earlier epoch has published this record.
    pub fn is_republished(&self, seq: u64) -> bool {
        seq <= self.republished_to && !self.skipped.iter().any(|(after, to)| seq > *after && seq <= *to)
    }

    /// The first offset of a connector that has none, while its topics hold what `covered` says: a new epoch from the
    /// beginning.
    ///
    /// `covered` are ranges after the first seq, up to and with the second, rising and apart. What lies between them
    /// may never have been published, and so is not marked.
    pub fn after_loss(covered: &[(u64, u64)], epoch: u64) -> Self {
        let republished_to = covered.last().map_or(0, |(_, to)| *to);
        let ends = std::iter::once(0).chain(covered.iter().map(|(_, to)| *to));
        let mut skipped: Vec<_> = ends.zip(covered.iter().map(|(after, _)| *after)).collect();
        skipped.retain(|(after, to)| after < to);
        // A mark too few is a duplicate that is not told; a mark too many is a record that a reader drops.
        if let Some(first_kept) = skipped.len().checked_sub(SKIPPED_RANGES_MAX).filter(|count| *count > 0) {
            let (_, to) = skipped[first_kept];
            skipped.drain(..=first_kept);
            skipped.insert(0, (0, to));
        }
        Self { epoch, republished_to, skipped, ..Self::default() }
    }

    /// Whether nothing was published under this offset, and it was never moved.
    pub fn is_untouched(&self) -> bool {
        self.published_to() == 0 && self.epoch == 0
    }

    /// The offset moved by hand at `now_ms`: the beginning of a new epoch that delivers what comes after `seq`.
    pub fn moved_to(&self, seq: u64, now_ms: i64) -> Self {
        let has_published = self.seq > self.epoch_after_seq;
        let republished_to = if has_published { self.republished_to.max(self.seq) } else { self.republished_to };
        let mut skipped = without(&self.skipped, (self.epoch_after_seq, self.seq));
        if seq > republished_to {
            skipped = without(&skipped, (republished_to, seq));
            skipped.push((republished_to, seq));
        }
        // Up to when all is delivered stays true: what comes again was delivered by then.
        let delivered_until_ms = self.delivered_until_ms;
        let epoch = self.epoch + 1;
        Self {
            seq,
            epoch,
            epoch_after_seq: seq,
            republished_to,
            skipped,
            delivered_until_ms,
            newest_msgtime_ms: self.newest_msgtime_ms,
            page_limit: self.page_limit,
            group_id: self.group_id.clone(),
            moved_from: Some(MovedFrom { seq: self.seq, epoch: self.epoch, at_ms: now_ms }),
            ..Self::default()
        }
    }

    /// Whether all records after this offset, up to and with `seq`, have been published by this epoch or an earlier
    /// one.
    pub fn has_published_up_to(&self, seq: u64) -> bool {
        seq <= self.published_to() && !self.skipped.iter().any(|(after, to)| *to > self.seq && *after < seq)
    }

    /// The last record that this epoch or an earlier one has published.
    pub fn published_to(&self) -> u64 {
        self.seq.max(self.republished_to)
    }
}

/// What is left of the ranges without this one.
fn without(ranges: &[(u64, u64)], (after, to): (u64, u64)) -> Vec<(u64, u64)> {
    let rest = ranges.iter().flat_map(|&(from, until)| [(from, until.min(after)), (from.max(to), until)]);
    rest.filter(|(from, until)| from < until).collect()
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Whose offset: a connector and its source partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OffsetKey {
    pub connector: String,
    pub corp_id: String,
}

/// Where the offset of a source partition lies.
#[derive(Debug, Clone)]
pub struct OffsetPlace {
    pub topic: Arc<str>,
    pub key: OffsetKey,
}

impl OffsetPlace {
    pub fn of(worker: &WorkerConfig, connector: &ConnectorConfig) -> Self {
        Self {
            topic: worker.offset_storage_topic.as_str().into(),
            key: OffsetKey { connector: connector.name.clone(), corp_id: connector.corp_id.clone() },
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourcePartition<'a> {
    corp_id: Cow<'a, str>,
}

impl OffsetKey {
    /// The record key. One spelling only: compaction compares bytes.
    pub fn to_bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&(&self.connector, SourcePartition { corp_id: self.corp_id.as_str().into() }))
    }

    /// The record that says `offset`.
    pub fn record(
        &self,
        topic: &Arc<str>,
        offset: &SourceOffset,
        timestamp_ms: i64,
    ) -> Result<OutgoingRecord, serde_json::Error> {
        Ok(OutgoingRecord {
            topic: topic.clone(),
            key: self.to_bytes()?,
            value: serde_json::to_vec(offset)?,
            headers: Vec::new(),
            timestamp_ms,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OffsetError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the offset cannot be read from {topic}: {reason}")]
    Unavailable { topic: String, reason: String },
    /// The stored offset is not ours to guess.
    #[error(
        "the offset of connector {connector} in {topic} is not of the form {{\"seq\":N}}: somebody else wrote it; give the \
         connector another name, or write a tombstone for its key to start anew"
    )]
    Malformed { topic: String, connector: String },
}

/// Reads the committed offset of `key`. Blocks.
///
/// To be called only after `init_transactions`: the predecessor is fenced by then and its last transaction settled, so what
/// is read is final.
pub fn read(clients: &Clients, topic: &str, key: &OffsetKey) -> Result<Option<SourceOffset>, OffsetError> {
    let key_bytes =
        key.to_bytes().map_err(|error| OffsetError::Unavailable { topic: topic.into(), reason: error.to_string() })?;
    let value = latest(clients, topic, |found| found == key_bytes)?.remove(&key_bytes);
    value
        .map(|value| serde_json::from_slice(&value))
        .transpose()
        .map_err(|_| OffsetError::Malformed { topic: topic.into(), connector: key.connector.clone() })
}

/// Whose offsets the topic has. What is no offset of this kind of connector is left out. Blocks.
pub fn keys(clients: &Clients, topic: &str) -> Result<Vec<OffsetKey>, OffsetError> {
    let keys = latest(clients, topic, |_| true)?;
    let parsed = keys.keys().filter_map(|key| {
        let (connector, SourcePartition { corp_id }) = serde_json::from_slice(key).ok()?;
        Some(OffsetKey { connector, corp_id: corp_id.into_owned() })
    });
    Ok(parsed.collect())
}

/// As [`read`], beside the runtime's own threads.
pub async fn read_in_background(clients: &Clients, place: &OffsetPlace) -> Result<Option<SourceOffset>, OffsetError> {
    let (clients, OffsetPlace { topic, key }) = (clients.clone(), place.clone());
    let interrupted =
        OffsetError::Unavailable { topic: topic.to_string(), reason: "reading it was interrupted".into() };
    tokio::task::spawn_blocking(move || read(&clients, &topic, &key)).await.unwrap_or(Err(interrupted))
}

/// The newest value of each key that is `wanted`; none of those that were deleted. Blocks.
pub fn latest(
    clients: &Clients,
    topic: &str,
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, OffsetError> {
    // The last record of each key and partition: within a partition the log's order counts, whatever clocks said.
    let mut last: BTreeMap<(Vec<u8>, i32), (i64, Option<Vec<u8>>)> = BTreeMap::new();
    let visit = |record: &Scanned<'_>| {
        if let Some(key) = record.key().filter(|key| wanted(key)) {
            let value = record.value().map(<[u8]>::to_vec);
            last.insert((key.to_vec(), record.partition()), (record.timestamp_ms(), value));
        }
    };
    scan::scan(clients, topic, Begin::Earliest, visit).map_err(|error| match error {
        ScanError::Client(error) => error.into(),
        other => OffsetError::Unavailable { topic: topic.into(), reason: other.to_string() },
    })?;
    // A key moves to another partition when partitions are added. Only then do timestamps decide.
    let mut newest: BTreeMap<Vec<u8>, (i64, Option<Vec<u8>>)> = BTreeMap::new();
    for ((key, _), (timestamp_ms, value)) in last {
        let entry = newest.entry(key).or_insert((i64::MIN, None));
        if timestamp_ms >= entry.0 {
            *entry = (timestamp_ms, value);
        }
    }
    Ok(newest.into_iter().filter_map(|(key, (_, value))| Some((key, value?))).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against a list of what was published: a mark too many would make a reader drop what it has not seen.
        #[test]
        fn what_is_marked_was_published_before(moves in prop::collection::vec((0u64..20, 0u64..60), 1..8)) {
            let (mut offset, mut before, mut published) = (SourceOffset::default(), BTreeSet::new(), BTreeSet::new());
            for (count, to) in moves {
                for seq in offset.seq + 1..=offset.seq + count {
                    prop_assert_eq!(offset.is_republished(seq), before.contains(&seq), "{} {:?}", seq, &offset);
                    published.insert(seq);
                }
                offset = SourceOffset { seq: offset.seq + count, ..offset };
                offset = offset.moved_to(to, 7);
                before.clone_from(&published);
                prop_assert!(offset.published_to() >= published.last().copied().unwrap_or_default());
                prop_assert_eq!(offset.republished_to, published.last().copied().unwrap_or_default());
            }
        }
    }

    proptest! {
        /// Whatever the topics still hold, no record is marked that they do not.
        #[test]
        fn after_a_loss_what_is_there_is_marked(there in prop::collection::btree_set(1u64..60, 0..40)) {
            let mut covered: Vec<(u64, u64)> = Vec::new();
            for &seq in &there {
                match covered.last_mut() {
                    Some((_, to)) if *to + 1 == seq => *to = seq,
                    _ => covered.push((seq - 1, seq)),
                }
            }
            let offset = SourceOffset::after_loss(&covered, 3);
            for seq in 1..70 {
                prop_assert_eq!(offset.is_republished(seq), there.contains(&seq), "{} {:?}", seq, &offset);
            }
            prop_assert_eq!((offset.seq, offset.epoch), (0, 3));
        }
    }

    #[test]
    fn a_loss_with_very_many_holes_marks_the_newest_alone() {
        let covered: Vec<(u64, u64)> = (1..=2 * SKIPPED_RANGES_MAX as u64).map(|n| (10 * n, 10 * n + 5)).collect();
        let offset = SourceOffset::after_loss(&covered, 1);
        assert_eq!(offset.skipped.len(), SKIPPED_RANGES_MAX);
        assert!(!offset.is_republished(15) && offset.is_republished(offset.republished_to));
        assert!(
            (1..=offset.republished_to)
                .filter(|seq| offset.is_republished(*seq))
                .all(|seq| seq % 10 >= 1 && seq % 10 <= 5)
        );
    }

    #[test]
    fn a_move_can_be_taken_back() {
        let offset = SourceOffset { seq: 300, ..SourceOffset::default() };
        let reset = offset.moved_to(0, 7);
        assert_eq!(reset.moved_from, Some(MovedFrom { seq: 300, epoch: 0, at_ms: 7 }));
        assert!(reset.has_published_up_to(300) && !reset.has_published_up_to(301));
        let ahead = offset.moved_to(400, 8).moved_to(300, 9);
        assert!(!ahead.has_published_up_to(301) && ahead.has_published_up_to(300));
    }

    #[test]
    fn records_are_those_of_kafka_connect() {
        let key = OffsetKey { connector: "archive \"一\"".into(), corp_id: "ww1".into() };
        let offset = SourceOffset { seq: u64::MAX, ..SourceOffset::default() };
        let record = key.record(&"offsets".into(), &offset, 7).expect("encodes");
        assert_eq!(String::from_utf8_lossy(&record.key), r#"["archive \"一\"",{"corp_id":"ww1"}]"#);
        assert_eq!(String::from_utf8_lossy(&record.value), r#"{"seq":18446744073709551615}"#);
        assert_eq!(serde_json::from_str::<SourceOffset>(r#"{"seq":5,"other":true}"#).expect("reads").seq, 5);
    }
}
