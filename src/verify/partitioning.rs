//! Whether records stand in the partitions that their keys call for. Kafka keeps the order of a partition, so that the order of
//! a conversation holds as long as its key leads to one.

use super::findings::{Findings, Kind, Place};

/// Places that are told of one topic.
const EXAMPLES_MAX: usize = 20;

/// The partition that Kafka's Java client chooses for a key.
pub fn partition_of(key: &[u8], partitions: u32) -> i32 {
    ((murmur2(key) & 0x7fff_ffff) % partitions.max(1)) as i32
}

/// As `org.apache.kafka.common.utils.Utils.murmur2`.
fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    for (index, byte) in rest.iter().enumerate().rev() {
        hash ^= u32::from(*byte) << (8 * index);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Watches one topic, whose partitions may have been added to: then all records up to some moment stand where a smaller number of
/// partitions puts them, and all later ones where today's does.
#[derive(Debug)]
pub struct Partitioning {
    partitions: u32,
    /// The smaller numbers that something stood against, with the first moment of that; those that nothing does have none.
    against: Vec<Option<Moment>>,
    /// The last moment at which a record stood elsewhere than today's number puts it.
    last_astray: Option<Moment>,
    astray: u64,
    examples: Vec<(u64, Place, i32)>,
}

/// What orders the records of a topic in time.
pub type Moment = (u64, u64);

impl Partitioning {
    pub fn new(partitions: u32) -> Self {
        let against = vec![None; partitions.saturating_sub(1) as usize];
        Self { partitions, against, last_astray: None, astray: 0, examples: Vec::new() }
    }

    /// Takes one record, in any order.
    pub fn push(&mut self, key: &[u8], moment: Moment, seq: u64, place: &Place) {
        let hash = murmur2(key) & 0x7fff_ffff;
        for (partitions, against) in (1..).zip(&mut self.against) {
            if against.is_none_or(|first| moment < first) && (hash % partitions) as i32 != place.partition {
                *against = Some(moment);
            }
        }
        let due = partition_of(key, self.partitions);
        if due != place.partition {
            self.astray += 1;
            self.last_astray = self.last_astray.max(Some(moment));
            if self.examples.len() < EXAMPLES_MAX {
                self.examples.push((seq, place.clone(), due));
            }
        }
    }

    pub fn finish(self, topic: &str, findings: &mut Findings) {
        let Some(last_astray) = self.last_astray else { return };
        let before = (1..).zip(&self.against).find(|(_, against)| against.is_none_or(|first| first > last_astray));
        if let Some((before, _)) = before {
            findings.note(format!(
                "{topic} had {before} partitions once and has {} now: conversations moved to other partitions then, and only \
                 seq tells their order across that moment",
                self.partitions
            ));
            return;
        }
        let told = self.examples.len() as u64;
        for (seq, place, due) in self.examples {
            findings.add(Kind::WrongPartition, Some(seq), || {
                format!("seq {seq} ({place}) belongs into partition {due} by its key")
            });
        }
        for _ in told..self.astray {
            findings.add(Kind::WrongPartition, None, || format!("more of the kind in {topic}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::findings::Promise;

    #[test]
    fn hashes_are_those_of_the_java_client() {
        // From Kafka's own UtilsTest.
        for (key, hash) in [
            ("21", -973_932_308_i32),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()).cast_signed(), hash, "{key}");
        }
    }

    #[test]
    fn added_partitions_are_told_from_a_record_astray() {
        let judge = |partition: &dyn Fn(u64, &[u8]) -> i32| {
            let mut partitioning = Partitioning::new(6);
            for seq in 1..200_u64 {
                let key = seq.to_string().into_bytes();
                let place = Place { topic: "t".into(), partition: partition(seq, &key), offset: 0 };
                partitioning.push(&key, (0, seq), seq, &place);
            }
            let mut findings = Findings::new(0..=u64::MAX);
            partitioning.finish("t", &mut findings);
            (findings.tally(Promise::Partition).broken, findings.notes.len())
        };
        assert_eq!(judge(&|_, key| partition_of(key, 6)), (0, 0));
        assert_eq!(judge(&|seq, key| partition_of(key, if seq < 100 { 4 } else { 6 })), (0, 1));
        assert_eq!(judge(&|seq, key| (partition_of(key, 6) + i32::from(seq == 100)) % 6), (1, 0));
    }
}
