//! What the topics hold of a corp's records, for a connector that finds no source offset: it begins with the oldest
//! record that WeCom has, and what was published before has to be marked.

use std::collections::BTreeMap;

use super::topics::Topics;
use super::{ConnectorContext, TaskError};
use crate::archive::{Topic, WINDOW_MS, time};
use crate::kafka::Clients;
use crate::kafka::offsets::{self, SourceOffset};
use crate::kafka::scan::{self, Begin, ScanError, Scanned};

/// A record that WeCom still has was pulled in the last five days. Its timestamp is at most ten days before that.
const SCANNED_MS: i64 = 3 * WINDOW_MS;

/// What was published of a corp.
#[derive(Debug, Default)]
struct Published {
    covered: Ranges,
    /// The highest epoch of a record.
    epoch: u64,
    /// The newest believable time of a message, milliseconds since the epoch.
    newest_msgtime_ms: Option<i64>,
}

/// The offset to begin with in place of none, which marks what the topics hold already. `None`: they hold nothing.
pub async fn offset_after_loss(context: &ConnectorContext, topics: &Topics) -> Result<Option<SourceOffset>, TaskError> {
    let names = [Topic::Messages, Topic::DeadLetters].map(|topic| topics.name(topic).to_string());
    let (clients, corp_id, now_ms) = (context.clients.clone(), context.config.corp_id.clone(), context.now_ms());
    let scanned = tokio::task::spawn_blocking(move || scan_topics(&clients, &names, &corp_id, now_ms)).await;
    let published = match scanned {
        Ok(Ok(published)) => published,
        Ok(Err(error)) => return Err(TaskError::Transient(error.to_string())),
        Err(_) => return Err(TaskError::Transient("reading what was published was interrupted".into())),
    };
    let covered = published.covered.list();
    Ok((!covered.is_empty()).then(|| SourceOffset {
        newest_msgtime_ms: published.newest_msgtime_ms,
        // So that what WeCom has deleted since is told as a gap.
        delivered_until_ms: published.newest_msgtime_ms,
        ..SourceOffset::after_loss(&covered, published.epoch + 1)
    }))
}

/// The names of other connectors that have an offset of the same corp in the offset topic, in a sentence.
pub async fn others(context: &ConnectorContext) -> Result<String, TaskError> {
    let place = context.offset_place();
    let clients = context.clients.clone();
    let (topic, key) = (place.topic.clone(), place.key.clone());
    let keys = tokio::task::spawn_blocking(move || offsets::keys(&clients, &topic)).await;
    let keys = keys.unwrap_or_else(|_| Ok(Vec::new())).map_err(TaskError::from)?;
    let names: Vec<_> = keys
        .into_iter()
        .filter(|other| other.corp_id == key.corp_id && other.connector != key.connector)
        .map(|other| other.connector)
        .collect();
    Ok(match names.is_empty() {
        true => format!(
            "Topic {} has no offset of this corp under another name either: was it lost, or is another one meant (offset.storage.topic)?",
            place.topic
        ),
        false => format!(
            "Topic {} has offsets of this corp under other names: {}. Was the connector renamed?",
            place.topic,
            names.join(", ")
        ),
    })
}

fn scan_topics(clients: &Clients, topics: &[String; 2], corp_id: &str, now_ms: i64) -> Result<Published, ScanError> {
    let source = format!("/wecom/{corp_id}");
    let mut published = Published::default();
    for topic in topics {
        let scanned = scan::scan(clients, topic, Begin::Time(now_ms.saturating_sub(SCANNED_MS)), |record| {
            // A dead letter says which topic its message would have gone to.
            let is_of_topic = record.header("__connect.errors.topic").is_none_or(|name| *name == topics[0]);
            if record.header("ce_source") == Some(&source) && is_of_topic {
                published.add(record, now_ms);
            }
        });
        // Made just now: not every broker knows it yet.
        if !matches!(scanned, Err(ScanError::Missing { .. })) {
            scanned?;
        }
    }
    Ok(published)
}

impl Published {
    fn add(&mut self, record: &Scanned<'_>, now_ms: i64) {
        let number = |name: &str| record.header(name).and_then(|value| value.parse::<u64>().ok());
        let seq = match record.header("ce_type") {
            Some("wecom.archive.message") => {
                let is_own = record.header(time::TIMESTAMP_HEADER).is_none();
                let msgtime_ms = Some(record.timestamp_ms())
                    .filter(|ms| is_own && *ms <= now_ms && time::is_believable(*ms, now_ms));
                self.newest_msgtime_ms = self.newest_msgtime_ms.max(msgtime_ms);
                number("ce_id")
            }
            Some("wecom.archive.dead-letter") => number("wecom.seq"),
            _ => None,
        };
        self.epoch = self.epoch.max(number("wecom.epoch").unwrap_or_default());
        // A replayed message has no link; its dead letter has.
        if let (Some(seq), Some(previous_seq)) = (seq, number("wecom.previous_seq")) {
            self.covered.add(previous_seq, seq);
        }
    }
}

/// Ranges of seqs, after the one and up to and with the other, apart from each other.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn add(&mut self, mut after: u64, mut to: u64) {
        if let Some((&below, &end)) = self.0.range(..=after).next_back()
            && end >= after
        {
            (after, to) = (below, to.max(end));
        }
        while let Some((&above, &end)) = self.0.range(after..).next()
            && above <= to
        {
            self.0.remove(&above);
            to = to.max(end);
        }
        if after < to {
            self.0.insert(after, to);
        }
    }

    fn list(&self) -> Vec<(u64, u64)> {
        self.0.iter().map(|(after, to)| (*after, *to)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_hold_what_was_added(added in prop::collection::vec((0u64..40, 0u64..10), 0..30)) {
            let (mut ranges, mut seqs) = (Ranges::default(), BTreeSet::new());
            for (after, length) in added {
                ranges.add(after, after + length);
                seqs.extend(after + 1..=after + length);
            }
            let list = ranges.list();
            prop_assert!(list.windows(2).all(|pair| pair[0].1 < pair[1].0), "{:?}", list);
            prop_assert_eq!(list.iter().flat_map(|(after, to)| after + 1..=*to).collect::<BTreeSet<_>>(), seqs);
        }
    }
}
