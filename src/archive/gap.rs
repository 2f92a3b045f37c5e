//! A gap: records that WeCom has deleted before they were pulled.
//!
//! After an outage of more than five days `GetChatData` goes on with the oldest record that is left, without an error
//! (doc 91774: records are kept for five days). What tells is the time up to which everything is known to be delivered.

use serde::Serialize;

use super::event::EventContext;
use super::record::{CloudEvent, Record, Topic};
use super::{WINDOW_MS, json, schema};

/// How far everything is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivered {
    /// The last record, whenever it was; 0 before the first.
    pub seq: u64,
    /// All that the archive had up to this moment is delivered, in milliseconds since the epoch. `None`: not known.
    pub until_ms: Option<i64>,
}

impl Delivered {
    /// Whether records may have left the archive unseen: its window begins after all that is delivered.
    pub fn is_outrun(self, pulled_at_ms: i64) -> bool {
        self.until_ms.is_some_and(|until_ms| until_ms < pulled_at_ms.saturating_sub(WINDOW_MS))
    }
}

/// Records after `after_seq` and before `before_seq` may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The last record that was delivered before.
    pub after_seq: u64,
    /// The first that came then.
    pub before_seq: u64,
    /// All that the archive had up to this moment was delivered before the gap, in milliseconds since the epoch.
    pub delivered_until_ms: i64,
    /// The time of the first message that came then, where it has one.
    pub first_msgtime_ms: Option<i64>,
    /// When it was found.
    pub found_at_ms: i64,
}

#[derive(Serialize)]
struct GapEvent<'a> {
    schema: &'static str,
    corp_id: &'a str,
    #[serde(flatten)]
    gap: &'a Gap,
}

impl Gap {
    /// Whether something may be missing before the first record of a page that was pulled at `found_at_ms`.
    ///
    /// A record that follows its predecessor directly shows that nothing is.
    pub fn find(delivered: Delivered, first_seq: u64, first_msgtime_ms: Option<i64>, found_at_ms: i64) -> Option<Self> {
        let delivered_until_ms = delivered.until_ms.filter(|_| delivered.is_outrun(found_at_ms))?;
        (first_seq > delivered.seq.saturating_add(1)).then_some(Self {
            after_seq: delivered.seq,
            before_seq: first_seq,
            delivered_until_ms,
            first_msgtime_ms,
            found_at_ms,
        })
    }

    /// For [`Topic::Messages`], in the transaction of the page that shows the gap. Keyed by the corp.
    pub fn to_record(&self, context: &EventContext<'_>) -> Record {
        let event = CloudEvent {
            id: format!("{}/gap", self.before_seq),
            corp_id: context.corp_id,
            kind: "wecom.archive.gap",
            subject: None,
            time_ms: Some(self.found_at_ms),
            schema: Some(schema::GAP),
        };
        let value = GapEvent { schema: schema::GAP, corp_id: context.corp_id, gap: self };
        Record {
            topic: Topic::Messages,
            key: context.corp_id.into(),
            value: json::print(&value, 512),
            headers: event.headers(),
            timestamp_ms: self.found_at_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::schema::tests::check;

    const NOW: i64 = 1_700_000_000_000;

    #[test]
    fn a_gap_is_where_the_window_has_passed_and_a_record_does_not_follow() {
        let rows = [
            // Delivered up to, the record that comes, and whether there is a gap.
            (Some(NOW - WINDOW_MS), 20, false),
            (Some(NOW - WINDOW_MS - 1), 20, true),
            (Some(NOW - WINDOW_MS - 1), 12, true),
            (Some(NOW - WINDOW_MS - 1), 11, false),
            (Some(i64::MIN), 20, true),
            (Some(i64::MAX), 20, false),
            (None, 20, false),
        ];
        for (until_ms, first_seq, expected) in rows {
            let found = Gap::find(Delivered { seq: 10, until_ms }, first_seq, None, NOW);
            assert_eq!(found.is_some(), expected, "{until_ms:?} {first_seq}");
        }
    }

    #[test]
    fn the_event_says_between_which_records() {
        let delivered = Delivered { seq: 10, until_ms: Some(0) };
        let gap = Gap::find(delivered, u64::MAX, Some(NOW - 1), NOW).expect("a gap");
        let context = EventContext { connector: "archive", task: 0, topic: "messages", corp_id: "ww1", now_ms: NOW };
        let event = check(&gap.to_record(&context));
        assert_eq!((&event["after_seq"], &event["before_seq"]), (&10.into(), &u64::MAX.into()));
    }
}
