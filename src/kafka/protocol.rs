//! The protocol of a transactional producer, as a state machine: what has been answered so far, and which call comes next.
//!
//! It makes no call itself and knows no clock. [`TransactionalProducer`] makes the calls on whatever client it is given: the
//! real one of librdkafka, or the model that the simulation attacks.

use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use super::committer::{Batch, GroupOffsets, OutgoingRecord};

/// How long a call is made again when the client says that this helps.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long records may take to arrive. The client itself gives them up after `transaction.timeout.ms`: this is the
/// longest that brokers allow by default.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Pause before a call is made again.
const RETRY_PAUSE: Duration = Duration::from_millis(20);

/// A call of the client.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Fences a predecessor with the same `transactional.id` and settles its transaction.
    InitTransactions,
    Begin,
    /// Hands one record over; that it has arrived shows with the flush.
    Send(&'a OutgoingRecord),
    /// Waits until all that was sent has arrived. Fails when a record was refused: then nothing but an abort was ever
    /// asked for, and an abort is certain.
    Flush,
    SendOffsets(&'a GroupOffsets),
    Commit,
    /// Throws away what was sent, and aborts.
    Abort,
}

/// The client's own verdict on a failed call. With none of the three set, the client is not to be used any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransactionError {
    pub code: RDKafkaErrorCode,
    pub message: String,
    /// The same call may be made again; it goes on where it was.
    pub retriable: bool,
    /// The transaction has to be aborted; the producer lives on.
    pub requires_abort: bool,
    /// The producer is of no more use.
    pub fatal: bool,
}

/// A client with transactions. Of one thread's use at a time.
pub trait TransactionalClient {
    /// Makes a call and waits for its answer. Once the client has met a fatal error, every answer is that error.
    fn call(&mut self, call: Call<'_>) -> impl Future<Output = Result<(), TransactionError>>;

    fn pause(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Time on a clock that never goes back.
    fn now(&self) -> Duration;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Nothing of the batch is visible, nor ever will be. The batch may be committed again.
    #[error("the transaction was aborted: {0}")]
    Aborted(String),
    /// Nothing of the batch is visible, nor ever will be: the brokers have forgotten the producer, as they do after a
    /// week without a transaction. The batch may be committed again by a new producer.
    #[error("the brokers have forgotten this producer: {0}")]
    Expired(String),
    /// Whether the batch is visible is not known, or the producer is of no more use. A new one has to be started; it settles the
    /// question, and the offsets tell the answer.
    #[error("the outcome of the transaction is unknown: {0}")]
    Unknown(String),
    /// The broker knows a newer producer of this `transactional.id`, or may. Either another worker has taken over, or the coordinator has
    /// timed out our own transaction (KIP-588 is not in librdkafka). A commit that was sent before may have come through: the
    /// offsets tell.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The settings are wrong or access is denied: a sentence from the client.
    #[error("{0}")]
    Configuration(String),
}

/// Where a producer stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// `init_transactions` is not answered yet.
    Uninitialised,
    /// No transaction is open; why the last one was aborted, if it was.
    Ready { aborted: Option<String> },
    /// A transaction is to be opened.
    Beginning,
    /// A transaction is open, and that many records of the batch are handed over.
    Open { sent: usize },
    /// All records are handed over, and have still to arrive.
    Flushing,
    /// All records have arrived, and the group's offsets are to be sent.
    SendingOffsets,
    /// All has arrived. From here on a failure leaves the outcome open.
    Committing,
    /// The transaction failed for this reason.
    Aborting { reason: String },
    /// The producer is of no more use. What becomes of its last batch stands in the error.
    Ended(CommitError),
}

/// The state machine: (state, answer) to state, and state to the next call.
#[derive(Debug)]
struct Protocol {
    state: State,
    /// When the call in hand was made first.
    since: Duration,
    is_repeated: bool,
}

impl Protocol {
    fn new(now: Duration) -> Self {
        Self { state: State::Uninitialised, since: now, is_repeated: false }
    }

    /// The call that comes next; `None` when the batch has come to its end.
    fn next<'a>(&self, batch: &'a Batch) -> Option<Call<'a>> {
        match self.state {
            State::Uninitialised => Some(Call::InitTransactions),
            State::Beginning => Some(Call::Begin),
            State::Open { sent } => Some(batch.records.get(sent).map_or(Call::Flush, Call::Send)),
            State::Flushing => Some(Call::Flush),
            State::SendingOffsets => Some(batch.group_offsets.as_ref().map_or(Call::Commit, Call::SendOffsets)),
            State::Committing => Some(Call::Commit),
            State::Aborting { .. } => Some(Call::Abort),
            State::Ready { .. } | State::Ended(_) => None,
        }
    }

    /// The call that [`Self::next`] named was answered.
    fn answered(&mut self, batch: &Batch, answer: Result<(), TransactionError>, now: Duration) {
        let next = match answer {
            Ok(()) => self.after_success(batch),
            Err(error) if error.retriable && !error.fatal && now.saturating_sub(self.since) < self.patience() => {
                self.is_repeated = true;
                return;
            }
            Err(error) => self.after_failure(error),
        };
        self.enter(next, now);
    }

    fn patience(&self) -> Duration {
        if matches!(self.state, State::Flushing) { ARRIVAL_PATIENCE } else { PATIENCE }
    }

    fn after_success(&self, batch: &Batch) -> State {
        match &self.state {
            State::Uninitialised | State::Committing | State::Ready { .. } => State::Ready { aborted: None },
            State::Beginning => handed_over(batch, 0),
            State::Open { sent } => handed_over(batch, sent + 1),
            State::Flushing if batch.group_offsets.is_some() => State::SendingOffsets,
            State::Flushing | State::SendingOffsets => State::Committing,
            // The first of two requests may still be on its way to the next transaction, as told below.
            State::Aborting { reason } if self.is_repeated => State::Ended(CommitError::Aborted(reason.clone())),
            State::Aborting { reason } => State::Ready { aborted: Some(reason.clone()) },
            State::Ended(error) => State::Ended(error.clone()),
        }
    }

    fn after_failure(&self, error: TransactionError) -> State {
        match &self.state {
            State::Uninitialised => State::Ended(not_initialised(error)),
            State::Flushing if is_expired(&error) => State::Ended(CommitError::Expired(error.message)),
            _ if error.fatal => State::Ended(unusable(error)),
            // A record that cannot be handed over fails on this side: an abort is always in place.
            State::Open { .. } => State::Aborting { reason: error.message },
            State::Flushing | State::SendingOffsets if error.requires_abort => {
                State::Aborting { reason: error.message }
            }
            // Also a commit that is to be aborted, as the client says: it may have been sent, and an abort that succeeds then proves
            // nothing. Nor may this producer have a next transaction: a request of the last one that comes late would end it half
            // way (librdkafka has no KIP-890).
            _ => State::Ended(unusable(error)),
        }
    }

    fn enter(&mut self, state: State, now: Duration) {
        (self.state, self.since, self.is_repeated) = (state, now, false);
    }

    /// What the batch has come to, once there is no next call.
    fn outcome(&self) -> Result<(), CommitError> {
        match &self.state {
            State::Ready { aborted: None } => Ok(()),
            State::Ready { aborted: Some(reason) } => Err(CommitError::Aborted(reason.clone())),
            State::Ended(error) => Err(error.clone()),
            _ => Err(CommitError::Unknown("the transaction has not come to its end".into())),
        }
    }
}

fn handed_over(batch: &Batch, sent: usize) -> State {
    if sent >= batch.records.len() { State::Flushing } else { State::Open { sent } }
}

/// Whether the coordinator knows the `transactional.id` no more, or under another producer's number. It says so before
/// a record of the transaction is taken.
fn is_expired(error: &TransactionError) -> bool {
    matches!(error.code, RDKafkaErrorCode::InvalidProducerIdMapping | RDKafkaErrorCode::UnknownProducerId)
}

fn not_initialised(error: TransactionError) -> CommitError {
    use RDKafkaErrorCode as Code;
    match error.code {
        Code::TransactionalIdAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TopicAuthorizationFailed
        | Code::InvalidTransactionTimeout
        | Code::UnsupportedFeature
        | Code::SaslAuthenticationFailed
        | Code::Authentication => CommitError::Configuration(format!(
            "Kafka refuses transactions: {} (the principal needs Write and Describe on the transactional id and IdempotentWrite; transaction.timeout.ms must not exceed the broker's transaction.max.timeout.ms)",
            error.message
        )),
        _ => CommitError::Unknown(format!("init_transactions: {}", error.message)),
    }
}

fn unusable(error: TransactionError) -> CommitError {
    use RDKafkaErrorCode as Code;
    match error.code {
        // The last one: a coordinator that is asked to end a transaction while it is fencing the producer fails over that (measured on
        // Kafka 4.3.1: an IllegalStateException, and UNKNOWN_SERVER_ERROR to us).
        Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch | Code::Unknown => {
            CommitError::Fenced(error.message)
        }
        _ => CommitError::Unknown(error.message),
    }
}

/// A client, and where it stands in the protocol.
#[derive(Debug)]
pub struct TransactionalProducer<C> {
    client: C,
    protocol: Protocol,
}

impl<C: TransactionalClient> TransactionalProducer<C> {
    /// Initialises transactions: from here on, a predecessor with the same `transactional.id` can commit nothing, and its last
    /// transaction is settled.
    pub async fn start(client: C) -> Result<Self, CommitError> {
        let protocol = Protocol::new(client.now());
        let mut producer = Self { client, protocol };
        producer.run(&Batch::default()).await?;
        Ok(producer)
    }

    /// Commits one batch in one transaction.
    pub async fn commit(&mut self, batch: &Batch) -> Result<(), CommitError> {
        if !self.is_usable() {
            return Err(CommitError::Unknown("the producer has ended".into()));
        }
        self.protocol.enter(State::Beginning, self.client.now());
        self.run(batch).await
    }

    /// Whether another batch can be committed. If not, a new producer has to be started.
    pub fn is_usable(&self) -> bool {
        matches!(self.protocol.state, State::Ready { .. })
    }

    async fn run(&mut self, batch: &Batch) -> Result<(), CommitError> {
        while let Some(call) = self.protocol.next(batch) {
            if self.protocol.is_repeated {
                self.client.pause(RETRY_PAUSE).await;
            }
            let answer = self.client.call(call).await;
            self.protocol.answered(batch, answer, self.client.now());
        }
        self.protocol.outcome()
    }
}

#[cfg(test)]
impl<C: TransactionalClient> TransactionalProducer<C> {
    /// A mistake that the simulation has to find: what the protocol does not do once a commit was called.
    pub async fn abort_late(&mut self) -> bool {
        let is_aborted = self.client.call(Call::Abort).await.is_ok();
        if is_aborted {
            self.protocol.state = State::Ready { aborted: None };
        }
        is_aborted
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures::executor::block_on;
    use rdkafka::consumer::{BaseConsumer, Consumer};
    use rdkafka::{ClientConfig, TopicPartitionList};

    use super::*;

    /// What a call is answered.
    #[derive(Debug, Clone, Copy)]
    enum Answer {
        Done,
        /// Retriable; takes twenty seconds.
        Again,
        RequiresAbort,
        /// An error with none of the three set.
        Unclear,
        Fatal,
        Fenced,
        /// The broker has failed itself.
        ServerError,
        /// The broker has forgotten the producer.
        Expired,
        Denied,
    }
    use Answer::{Again, Denied, Done, Expired, Fatal, Fenced, RequiresAbort, ServerError, Unclear};

    /// Expects these calls, and answers them like that.
    #[derive(Debug)]
    struct Script {
        calls: VecDeque<(&'static str, Answer)>,
        now: Duration,
    }

    impl TransactionalClient for Script {
        async fn call(&mut self, call: Call<'_>) -> Result<(), TransactionError> {
            let (expected, answer) = self.calls.pop_front().unwrap_or_else(|| panic!("{call:?} is one call too many"));
            let name = match call {
                Call::InitTransactions => "init",
                Call::Begin => "begin",
                Call::Send(_) => "send",
                Call::Flush => "flush",
                Call::SendOffsets(_) => "offsets",
                Call::Commit => "commit",
                Call::Abort => "abort",
            };
            assert_eq!(name, expected, "then {:?}", self.calls);
            let code = match answer {
                Done => return Ok(()),
                Again => RDKafkaErrorCode::OperationTimedOut,
                Fenced => RDKafkaErrorCode::Fenced,
                ServerError => RDKafkaErrorCode::Unknown,
                Expired => RDKafkaErrorCode::InvalidProducerIdMapping,
                Denied => RDKafkaErrorCode::TransactionalIdAuthorizationFailed,
                RequiresAbort | Unclear | Fatal => RDKafkaErrorCode::Fail,
            };
            if matches!(answer, Again) {
                self.now += Duration::from_secs(20);
            }
            Err(TransactionError {
                code,
                message: format!("{answer:?}"),
                retriable: matches!(answer, Again),
                requires_abort: matches!(answer, RequiresAbort | ServerError | Expired),
                fatal: matches!(answer, Fatal | Fenced),
            })
        }

        async fn pause(&self, _: Duration) {}

        fn now(&self) -> Duration {
            self.now
        }
    }

    fn batch() -> Batch {
        let record = OutgoingRecord {
            topic: "messages".into(),
            key: Vec::new(),
            value: Vec::new(),
            headers: Vec::new(),
            timestamp_ms: 0,
        };
        let consumer: BaseConsumer = ClientConfig::new().set("group.id", "media").create().expect("a consumer");
        let group = consumer.group_metadata().expect("a group");
        let group_offsets = GroupOffsets { positions: TopicPartitionList::new(), group };
        Batch { records: vec![record.clone(), record], group_offsets: Some(group_offsets) }
    }

    fn kind(error: &CommitError) -> &'static str {
        match error {
            CommitError::Aborted(_) => "aborted",
            CommitError::Expired(_) => "expired",
            CommitError::Unknown(_) => "unknown",
            CommitError::Fenced(_) => "fenced",
            CommitError::Configuration(_) => "configuration",
        }
    }

    #[test]
    fn a_start_answers_what_has_become_of_it() {
        let rows: [(&[Answer], Result<(), &str>); 5] = [
            (&[Done], Ok(())),
            (&[Again, Again, Done], Ok(())),
            (&[Again, Again, Again], Err("unknown")),
            (&[Fatal], Err("unknown")),
            (&[Denied], Err("configuration")),
        ];
        for (answers, expected) in rows {
            let calls = answers.iter().map(|answer| ("init", *answer)).collect();
            let started = block_on(TransactionalProducer::start(Script { calls, now: Duration::ZERO }));
            assert_eq!(
                started.map(|producer| assert!(producer.is_usable())).as_ref().map_err(kind),
                expected.as_ref().map_err(|it| *it),
                "{answers:?}"
            );
        }
    }

    #[test]
    fn a_batch_answers_what_has_become_of_it() {
        const SENT: [(&str, Answer); 3] = [("begin", Done), ("send", Done), ("send", Done)];
        const ARRIVED: [(&str, Answer); 4] = [SENT[0], SENT[1], SENT[2], ("flush", Done)];
        const SLOW: (&str, Answer) = ("flush", Again);
        const ALL_SENT: [(&str, Answer); 5] = [SENT[0], SENT[1], SENT[2], ARRIVED[3], ("offsets", Done)];
        type Row = (&'static [(&'static str, Answer)], &'static [(&'static str, Answer)], &'static str, bool);
        // What goes before, the calls of interest, the outcome, and whether the producer lives on.
        let rows: [Row; 25] = [
            (&ALL_SENT, &[("commit", Done)], "committed", true),
            (&ALL_SENT, &[("commit", Again), ("commit", Done)], "committed", true),
            (&ALL_SENT, &[("commit", Again), ("commit", Again), ("commit", Again)], "unknown", false),
            (&ALL_SENT, &[("commit", RequiresAbort)], "unknown", false),
            (&ALL_SENT, &[("commit", Unclear)], "unknown", false),
            (&ALL_SENT, &[("commit", Fatal)], "unknown", false),
            (&ALL_SENT, &[("commit", Fenced)], "fenced", false),
            (&ALL_SENT, &[("commit", ServerError)], "fenced", false),
            (&ARRIVED, &[("offsets", RequiresAbort), ("abort", Done)], "aborted", true),
            (&ARRIVED, &[("offsets", Again), ("offsets", Done), ("commit", Done)], "committed", true),
            (&ARRIVED, &[("offsets", Unclear)], "unknown", false),
            (&ARRIVED, &[("offsets", RequiresAbort), ("abort", Again), ("abort", Done)], "aborted", false),
            (&ARRIVED, &[("offsets", RequiresAbort), ("abort", Unclear)], "unknown", false),
            (&ARRIVED, &[("offsets", RequiresAbort), ("abort", Fenced)], "fenced", false),
            (&SENT, &[("flush", RequiresAbort), ("abort", Done)], "aborted", true),
            (&SENT, &[("flush", Again), ("flush", RequiresAbort), ("abort", Again), ("abort", Done)], "aborted", false),
            // Records may need more time than a call: a slow link, a large page.
            (&SENT, &[SLOW, SLOW, SLOW, SLOW, ("flush", Done), ("offsets", Done), ("commit", Done)], "committed", true),
            (&SENT, &[("flush", Expired)], "expired", false),
            (&SENT, &[("flush", Fenced)], "fenced", false),
            (&ALL_SENT, &[("commit", Expired)], "unknown", false),
            (&SENT[..2], &[("send", Unclear), ("abort", Done)], "aborted", true),
            (&SENT[..2], &[("send", Again), ("send", RequiresAbort), ("abort", Done)], "aborted", true),
            (&SENT[..2], &[("send", Fenced)], "fenced", false),
            (&[], &[("begin", Unclear)], "unknown", false),
            (&[], &[("begin", Fenced)], "fenced", false),
        ];
        let batch = batch();
        for (before, calls, expected, is_usable) in rows {
            let script = [&[("init", Done)], before, calls].concat();
            let mut producer =
                block_on(TransactionalProducer::start(Script { calls: script.into(), now: Duration::ZERO }))
                    .expect("a start");
            let result = block_on(producer.commit(&batch));
            assert_eq!(result.as_ref().map_or_else(kind, |()| "committed"), expected, "{calls:?}");
            assert_eq!(producer.is_usable(), is_usable, "{calls:?}");
            assert!(producer.client.calls.is_empty(), "{calls:?}: {:?} is missing", producer.client.calls);
            // What comes next is not held against what went before; an end is an end.
            producer.client.calls = [&ALL_SENT[..], &[("commit", Done)]].concat().into();
            let next = block_on(producer.commit(&batch));
            assert_eq!(
                next.as_ref().map_or_else(kind, |()| "committed"),
                if is_usable { "committed" } else { "unknown" }
            );
        }
    }
}
