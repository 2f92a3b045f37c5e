//! Preparing: a pulled page becomes the records of one transaction. A record that cannot be delivered becomes a dead letter with
//! its reason.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::pull::PulledPage;
use super::topics::Topics;
use super::{ConnectorContext, TaskError, message_task, object_key, open};
use crate::archive::{
    DeadLetterReason, Delivered, Element, EventContext, Gap, Link, MessageEvent, Record, SealedRecord, Timestamps,
    Topic, dead_letter, time,
};
use crate::config::ErrorsTolerance;
use crate::kafka::OutgoingRecord;
use crate::kafka::offsets::SourceOffset;
use crate::status::TaskHandle;

/// What is kept in storage of a record that does not fit into Kafka: its event, or where it could not be opened itself.
pub(super) const KEPT_EVENT: &str = "event.json";
pub(super) const KEPT_RECORD: &str = "record.json";

/// Of a dead letter whose event is kept: files whose requests take more than this have not been asked for.
pub(super) const REQUEST_BYTES_MAX_HEADER: &str = "wecom.request_bytes_max";

/// Of a dead letter: the newest believable time of a message before it. A replay needs it where the message has none.
pub(super) const NEWEST_MSGTIME_HEADER: &str = "wecom.newest_msgtime_ms";

/// The records of one transaction, but for the offset.
#[derive(Debug, Default)]
pub struct PreparedPage {
    pub records: Vec<OutgoingRecord>,
    /// The offset that the records reach; `None` if there is none to move.
    pub last_seq: Option<u64>,
    /// See [`Delivered::until_ms`]: once this page is delivered.
    pub delivered_until_ms: Option<i64>,
    /// Records before this page that may be lost.
    pub gap: Option<Gap>,
    /// Of each published message; 0 where it has none.
    pub msgtimes_ms: Vec<i64>,
    /// Of the messages of this page whose time is possible.
    pub newest_msgtime_ms: Option<i64>,
    /// See [`SourceOffset::newest_msgtime_ms`]: once this page is delivered.
    pub newest_believable_ms: Option<i64>,
    /// Reasons of dead letters, as labels of metrics.
    pub dead_letters: Vec<&'static str>,
    /// With `errors.tolerance=none`: what is wrong with the record after the last one here.
    pub intolerable: Option<String>,
    /// For a poll that found nothing more: when it was begun, milliseconds since the epoch.
    pub drained_at_ms: Option<i64>,
    /// Whether nothing came but records without a position.
    pub is_held: bool,
}

/// Turns pages into transactions.
#[derive(Debug)]
pub struct Preparer<'a> {
    context: &'a Arc<ConnectorContext>,
    status: &'a TaskHandle,
    topics: &'a Topics,
    offset: SourceOffset,
    delivered: Delivered,
    timestamps: Timestamps,
    /// The record before the next one in this epoch.
    previous_seq: u64,
}

impl<'a> Preparer<'a> {
    /// For what comes after `offset`.
    pub fn new(
        context: &'a Arc<ConnectorContext>,
        status: &'a TaskHandle,
        topics: &'a Topics,
        offset: SourceOffset,
    ) -> Self {
        // What an earlier epoch has published and does not come again is not lost.
        let delivered = Delivered { seq: offset.published_to(), until_ms: offset.delivered_until_ms };
        let timestamps = topics.timestamps(context.config.record_timestamp, offset.newest_msgtime_ms);
        Self { context, status, topics, delivered, timestamps, previous_seq: offset.seq, offset }
    }

    /// Prepares every page, in order.
    pub async fn run(
        mut self,
        mut pages: mpsc::Receiver<PulledPage>,
        prepared: mpsc::Sender<PreparedPage>,
    ) -> Result<(), TaskError> {
        let nobody_takes = prepared.clone();
        let prepare = async {
            while let Some(pulled) = pages.recv().await {
                if prepared.send(self.prepare(pulled).await?).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        tokio::select! {
            result = prepare => result,
            () = nobody_takes.closed() => Ok(()),
        }
    }

    async fn prepare(&mut self, pulled: PulledPage) -> Result<PreparedPage, TaskError> {
        let PulledPage { page, pulled_at_ms, drained_at_ms, .. } = pulled;
        let is_held = page.held > 0 && page.last_seq.is_none();
        let elements = Arc::new(page.elements);
        let outcomes = open::events(self.context, &elements, pulled_at_ms, self.status).await?;
        // A wrong clock's message says nothing of how far the archive is delivered. None that is there is much older than the window.
        let is_past = |msgtime_ms: &i64| *msgtime_ms <= pulled_at_ms && time::is_believable(*msgtime_ms, pulled_at_ms);
        let times = || {
            let times = outcomes.iter().flatten().filter_map(|event| event.msgtime_ms);
            times.filter(is_past)
        };
        let (first_ms, oldest_ms, newest_ms) = (times().next(), times().min(), times().max());
        if let Some(last_seq) = page.last_seq {
            self.context.metrics.lag.opened(last_seq, oldest_ms, pulled_at_ms);
        }

        if self.timestamps.newest_ms.is_none() {
            // At the very beginning nothing came before: then the first time of the page moves the least.
            let mut times = outcomes.iter().flatten().filter_map(|event| event.msgtime_ms);
            self.timestamps.newest_ms = times.find(|msgtime_ms| time::is_believable(*msgtime_ms, pulled_at_ms));
        }

        let context = self.event_context(pulled_at_ms);
        let mut prepared = PreparedPage { drained_at_ms, is_held, ..PreparedPage::default() };
        let first_seq = elements.iter().find_map(Element::seq);
        let gap = first_seq.and_then(|first_seq| Gap::find(self.delivered, first_seq, first_ms, pulled_at_ms));
        if let Some(gap) = &gap {
            // It is found now, and stands before records that are older: its timestamp must not be now.
            let mut record = gap.to_record(&context);
            self.timestamps.stamp(&mut record, None, pulled_at_ms, pulled_at_ms);
            prepared.records.push(self.outgoing(record));
        }
        // Once the window has run away, an empty poll must not hide it: the record that shows whether there is a gap is still to come.
        let drained_ms = drained_at_ms.filter(|_| first_seq.is_some() || !self.delivered.is_outrun(pulled_at_ms));
        let until_ms = self.delivered.until_ms.max(newest_ms).max(drained_ms);
        let before = self.delivered;
        self.delivered = Delivered { seq: before.seq.max(page.last_seq.unwrap_or_default()), until_ms };
        (prepared.delivered_until_ms, prepared.gap, prepared.newest_msgtime_ms) = (until_ms, gap, newest_ms);
        for (element, outcome) in elements.iter().zip(outcomes) {
            let link = element.seq().map(|seq| {
                let (epoch, is_republished) = (self.offset.epoch, self.offset.is_republished(seq));
                let link = Link { previous_seq: self.previous_seq, epoch, is_republished };
                self.previous_seq = seq;
                link
            });
            let mut request_bytes_max = None;
            let reason = match outcome {
                Ok(mut event) => {
                    self.timestamps.stamp(&mut event.record, event.msgtime_ms, pulled_at_ms, pulled_at_ms);
                    prepared.newest_believable_ms = self.timestamps.newest_ms;
                    event.record.headers.extend(link.into_iter().flat_map(Link::headers));
                    // Files are asked for also where their message does not fit; with media.enable=false the requests wait.
                    let (requests, oversize): (Vec<_>, Vec<_>) = event
                        .media
                        .iter()
                        .map(|request| request.to_record(pulled_at_ms))
                        .partition(|request| self.fits(request));
                    if !oversize.is_empty() {
                        request_bytes_max = Some(self.topics.record_bytes_max(Topic::MediaRequests));
                    }
                    let fitted = self.fit(element, event, oversize.first()).await?;
                    if fitted.is_ok() || self.context.config.errors_tolerance == ErrorsTolerance::All {
                        prepared.records.extend(requests.into_iter().map(|record| self.outgoing(record)));
                    }
                    match fitted {
                        Ok(event) => {
                            prepared.msgtimes_ms.push(event.msgtime_ms.unwrap_or_default());
                            prepared.records.push(self.outgoing(event.record));
                            prepared.last_seq = element.seq().or(prepared.last_seq);
                            continue;
                        }
                        Err(reason) => reason,
                    }
                }
                Err(reason) => reason,
            };
            let seq = element.seq().map_or_else(|| "without a seq".into(), |seq| format!("seq {seq}"));
            if self.context.config.errors_tolerance == ErrorsTolerance::None {
                prepared.delivered_until_ms = before.until_ms;
                prepared.intolerable = Some(format!("the record {seq} is bad and errors.tolerance is none: {reason}"));
                return Ok(prepared);
            }
            let kind = reason.kind();
            tracing::warn!(
                connector = self.context.config.name,
                seq,
                kind,
                reason = reason.name(),
                "dead letter: {reason}"
            );
            let mut record = self.dead_letter(&context, element, link, &reason).await?;
            let header = request_bytes_max.map(|bytes| (REQUEST_BYTES_MAX_HEADER, bytes.to_string().into_bytes()));
            record.headers.extend(header);
            prepared.dead_letters.push(reason.name());
            prepared.records.push(self.outgoing(record));
            prepared.last_seq = element.seq().or(prepared.last_seq);
        }
        Ok(prepared)
    }

    fn event_context(&self, now_ms: i64) -> EventContext<'a> {
        event_context(self.context, now_ms)
    }

    /// Sees to it that the event fits its topic; one that does not is kept in object storage.
    ///
    /// A request for one of its files that does not fit sets the whole message aside: nothing else could say that the file is
    /// missing.
    async fn fit(
        &self,
        element: &Element,
        event: MessageEvent,
        oversize_request: Option<&Record>,
    ) -> Result<Result<MessageEvent, DeadLetterReason>, TaskError> {
        let Some(record) = (if self.fits(&event.record) { oversize_request } else { Some(&event.record) }) else {
            return Ok(Ok(event));
        };
        let (bytes, limit_bytes) = (record.bytes_max() as u64, self.topics.record_bytes_max(record.topic) as u64);
        let uri = self.keep(element, KEPT_EVENT, event.record.value).await?;
        Ok(Err(DeadLetterReason::TooLarge { uri, bytes, limit_bytes }))
    }

    fn fits(&self, record: &Record) -> bool {
        record.bytes_max() <= self.topics.record_bytes_max(record.topic)
    }

    async fn dead_letter(
        &self,
        context: &EventContext<'_>,
        element: &Element,
        link: Option<Link>,
        reason: &DeadLetterReason,
    ) -> Result<Record, TaskError> {
        let build = |reason| {
            let mut record = match element {
                Element::Record(record) => dead_letter::build(context, record, reason),
                Element::Malformed(malformed) => dead_letter::build(context, malformed, reason),
            };
            record.headers.extend(link.into_iter().flat_map(Link::headers));
            let newest_ms = self.timestamps.newest_ms.map(|newest_ms| newest_ms.to_string().into_bytes());
            record.headers.extend(newest_ms.map(|newest_ms| (NEWEST_MSGTIME_HEADER, newest_ms)));
            record
        };
        let record = build(reason);
        if self.fits(&record) {
            return Ok(record);
        }
        let (bytes, limit_bytes) = (record.bytes_max() as u64, self.topics.record_bytes_max(record.topic) as u64);
        let uri = self.keep(element, KEPT_RECORD, record.value).await?;
        let mut record = build(&DeadLetterReason::TooLarge { uri, bytes, limit_bytes });
        record.headers.push(("wecom.cause", reason.name().into()));
        Ok(record)
    }

    /// Keeps what does not fit into Kafka in object storage, under a name that a repeat gives again.
    async fn keep(&self, element: &Element, kind: &str, body: Vec<u8>) -> Result<String, TaskError> {
        let store = &self.context.store;
        let key = object_key::of_oversize(store.prefix(), &self.context.config.corp_id, &position(element), kind);
        store.put(&key, Bytes::from(body), "application/json").await.map_err(|error| match error.is_transient() {
            true => TaskError::Transient(format!("a message that does not fit into Kafka cannot be stored: {error}")),
            false => {
                TaskError::Configuration(format!("a message that does not fit into Kafka cannot be stored: {error}"))
            }
        })?;
        Ok(store.uri(&key))
    }

    fn outgoing(&self, record: Record) -> OutgoingRecord {
        self.topics.outgoing(record)
    }
}

pub(super) fn event_context(context: &ConnectorContext, now_ms: i64) -> EventContext<'_> {
    EventContext {
        connector: &context.config.name,
        task: message_task::TASK,
        topic: &context.config.topic,
        corp_id: &context.config.corp_id,
        now_ms,
    }
}

/// Names an element without a position by its bytes, as its dead letter does.
fn position(element: &Element) -> String {
    match element {
        Element::Record(record) => SealedRecord::from(record).position(),
        Element::Malformed(malformed) => SealedRecord::from(malformed).position(),
    }
}
