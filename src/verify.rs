//! An independent checker: reads the topics, the offsets and object storage, and says whether what the connector promises holds.
//!
//! Nothing of the code that publishes is used here; what both sides share are the schemas, the configuration, how clients of Kafka
//! are configured, and how storage is opened. Memory is bounded, whatever the size of the archive: messages and dead letters rise
//! by seq in each partition, so that all partitions side by side are one sequence ([`merge`], [`chain`]); what several topics say
//! of a file is brought together on disk ([`join`]).
//!
//! A live connector goes on while it is looked at. The order in which the ends of the topics are taken sees to it that what was
//! committed in one transaction is seen whole, or is known to be too new: see [`run`].

mod chain;
mod findings;
mod join;
mod media;
mod merge;
mod objects;
mod offset;
mod partitioning;
mod progress;
mod reading;
mod record;
mod report;
mod sequence;

use std::io;
use std::ops::RangeInclusive;

use rdkafka::message::Message;

use crate::config::{ConnectorConfig, WorkerConfig};
use crate::kafka::Clients;
use crate::storage::Store;

pub use findings::{Announced, Finding, Findings, Kind, Promise};
pub use report::{Report, Verdict};

use findings::Place;
use join::{Join, Row};
use media::Whole;
use objects::Objects;
use progress::Progress;
use reading::{Extent, Kafka};

/// How objects are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// Not at all.
    None,
    /// Whether they are there, and their size.
    Exists,
    /// All of them are read.
    #[default]
    Hash,
}

/// What is judged.
#[derive(Debug, Clone)]
pub struct Scope {
    pub seqs: RangeInclusive<u64>,
    pub storage: Storage,
}

/// Why there is no answer: Kafka, storage or the temporary folder cannot be used. A sentence that says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotLook(pub String);

/// What is carried along while topics are read.
#[derive(Debug)]
struct Look<'a> {
    connector: &'a str,
    corp_id: &'a str,
    topic: &'a str,
    dead_letter_topic: &'a str,
    findings: Findings,
    join: Join,
    objects: Objects,
    progress: Progress,
}

/// Looks at everything of one connector. Blocks, for as long as it takes to read the topics and, with [`Storage::Hash`], all objects.
///
/// A record becomes visible in each partition at another moment. So the source offset is read first; then the ends of the topics
/// are taken as they are produced up to, and transactions open below them are waited for. All that this offset covers lies below
/// these ends. What lies there beyond the offset is newer and is not judged; but the offset that is read after the ends covers it.
/// The same holds for files: where the media tasks are is read before the ends of what they write, and the ends of requests are
/// taken last, so that no message or reference is seen without its request.
pub fn run(worker: &WorkerConfig, connector: &ConnectorConfig, scope: &Scope) -> Result<Report, CannotLook> {
    let (name, corp_id) = (connector.name.as_str(), connector.corp_id.as_str());
    let runtime = tokio::runtime::Runtime::new().map_err(|error| CannotLook(format!("no runtime: {error}")))?;
    let store = match scope.storage {
        Storage::None => None,
        _ => Some(Store::open_read_only(&connector.storage).map_err(|error| CannotLook(error.to_string()))?),
    };
    let kafka = Kafka::connect(Clients::of(worker, connector))?;
    let offsets = |kafka: &Kafka| -> Result<_, CannotLook> {
        let extent = one(kafka.extents(&[&worker.offset_storage_topic])?);
        offset::read(kafka, &extent, name, corp_id)
    };

    let before = offsets(&kafka)?;
    let media_work = [connector.media_requests_topic.as_str(), connector.media_retries_topic.as_str()];
    let group_id = format!("{}-{name}-media", worker.group_id);
    let done = kafka.group_offsets(&group_id, &media_work)?;
    let [references, retries] = two(kafka.extents(&[&connector.media_topic, &connector.media_retries_topic])?);
    let [messages, dead_letters] = two(kafka.extents(&[&connector.topic, &connector.dead_letter_topic])?);
    let requests = one(kafka.extents(&[&connector.media_requests_topic])?);
    let after = offsets(&kafka)?;

    let mut look = Look {
        connector: name,
        corp_id,
        topic: &connector.topic,
        dead_letter_topic: &connector.dead_letter_topic,
        findings: Findings::new(scope.seqs.clone()),
        join: Join::new().map_err(|error| temporary(&error))?,
        objects: Objects::new(store, scope.storage == Storage::Hash, runtime),
        progress: Progress::new(),
    };
    for extent in [&messages, &dead_letters, &references, &requests, &retries] {
        note_retention(extent, &mut look.findings);
    }
    let kept = [&messages, &dead_letters, &references, &requests].map(|extent| &*extent.topic);
    for topic in kafka.compacted(&kept)? {
        look.findings.note(format!(
            "{topic} is compacted (cleanup.policy): Kafka deletes a record there once a newer one has its key, and what is missing may \
             have been deleted so"
        ));
    }
    let limit = offset::limit(before, after);
    let (ends, remains) = sequence::read(&kafka, &messages, &dead_letters, limit, &mut look)?;
    let [requests_done, retries_done] = two(done);
    media::read_requests(&kafka, &requests, &requests_done, false, &mut look)?;
    media::read_requests(&kafka, &retries, &retries_done, true, &mut look)?;
    media::read_references(&kafka, &references, &mut look)?;

    let Look { mut findings, join, .. } = look;
    let whole = Whole {
        messages: messages.is_whole(),
        requests: requests.is_whole(),
        references: references.is_whole(),
        dead_letters: dead_letters.is_whole(),
    };
    media::judge(join, whole, &mut findings)?;
    offset::judge(before, after, &ends, &remains, &mut findings);
    if findings.counted("media", "open") > 0 && requests_done.iter().all(Option::is_none) {
        findings.note(format!(
            "the media tasks (group {group_id}) have not begun: every file without a reference counts as open"
        ));
    }
    note_range(&scope.seqs, ends.last.map(|(_, seq)| seq), &mut findings);
    Ok(Report { connector: name.to_owned(), corp_id: corp_id.to_owned(), offset: after, ends, remains, findings })
}

fn note_retention(extent: &Extent, findings: &mut Findings) {
    let truncated = extent.partitions.iter().filter(|partition| partition.start > 0).count();
    if truncated > 0 {
        findings.note(format!(
            "retention has deleted the beginning of {truncated} of {} partitions of {}",
            extent.partitions.len(),
            extent.topic
        ));
    }
}

fn note_range(seqs: &RangeInclusive<u64>, last_seq: Option<u64>, findings: &mut Findings) {
    let last_seq = last_seq.unwrap_or_default();
    if *seqs.end() != u64::MAX && *seqs.end() > last_seq {
        findings.note(format!("nothing after seq {last_seq} is published yet"));
    }
}

impl Look<'_> {
    /// Whether a record with a value comes from this connector's corp. One that does not is told by its kind.
    fn is_ours(&mut self, message: &impl Message, place: &Place) -> bool {
        self.findings.checked(Promise::Clean);
        if message.payload().is_none() {
            self.findings.add(Kind::Tombstone, None, || format!("{place} is a tombstone: a record without a value"));
            return false;
        }
        match record::header(message, "ce_source").and_then(|source| source.strip_prefix("/wecom/")) {
            Some(corp_id) if corp_id == self.corp_id => true,
            Some(_) => {
                self.findings.count("records of others", "other corps");
                false
            }
            None => {
                self.foreign(place);
                false
            }
        }
    }

    fn foreign(&mut self, place: &Place) {
        self.findings
            .add(Kind::Foreign, None, || format!("{place} is no record of the connector: somebody else writes there"));
    }

    fn unreadable(&mut self, place: &Place, what: &str) {
        self.findings
            .add(Kind::Unreadable, None, || format!("{place} says that it is a {what}, and cannot be read as one"));
    }

    fn push_row(&mut self, row: Row) -> Result<(), CannotLook> {
        self.join.push(row).map_err(|error| temporary(&error))
    }
}

fn temporary(error: &io::Error) -> CannotLook {
    CannotLook(format!("the folder for temporary files cannot be used: {error}; name another one by TMPDIR"))
}

fn one<T>(items: Vec<T>) -> T {
    let [item] = exactly(items);
    item
}

fn two<T>(items: Vec<T>) -> [T; 2] {
    exactly(items)
}

/// As many as were asked for.
fn exactly<T, const N: usize>(items: Vec<T>) -> [T; N] {
    items.try_into().unwrap_or_else(|_| unreachable!("one answer for each question"))
}
