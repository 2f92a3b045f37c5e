//! A consumer in a group. Its offsets are committed by a transactional producer, with the records that come of what it read.

use std::error::Error;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::client::{Callbacks, ClientKind, Clients};
use super::committer::GroupOffsets;

const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// What a consumer that is to end may tell until then.
const SERVE_TIME: Duration = Duration::from_secs(2);
const SERVE_PAUSE: Duration = Duration::from_millis(5);

/// How long a consumer that ends is waited for.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    pub topic: String,
    pub number: i32,
}

/// A change of what this member of the group reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These partitions are this member's, from their committed offsets on. Can be none: the group has more members than
    /// partitions.
    Gained(Vec<Partition>),
    /// These are no longer: nothing that was read of them may be committed here.
    Lost(Vec<Partition>),
    /// As [`Change::Lost`], for all of them.
    LostAll,
}

/// One record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub partition: Partition,
    pub offset: i64,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The settings are wrong or access is denied: a sentence that says what to change.
    #[error("{0}")]
    Configuration(String),
    /// The consumer is of no more use; another one can be started.
    #[error("the consumer has failed: {0}")]
    Failed(String),
    /// A newer member of the same name has joined.
    #[error("a newer member of the same name has joined: {0}")]
    Fenced(String),
    /// Passes by itself: the consumer goes on.
    #[error("{0}")]
    Passing(String),
}

/// A member of a consumer group. Dropped, it ends in the background, as by [`GroupConsumer::close`].
pub struct GroupConsumer {
    consumer: Arc<StreamConsumer<Changes>>,
    keeper: Keeper,
}

/// The thread that does what blocks. It goes on as long as it can be asked.
struct Keeper {
    /// Whether a broker answers.
    questions: mpsc::Sender<oneshot::Sender<bool>>,
    ended: oneshot::Receiver<()>,
}

impl std::fmt::Debug for GroupConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GroupConsumer")
    }
}

impl GroupConsumer {
    /// Joins the group. Reads what is committed, from the beginning where the group has no offset yet.
    ///
    /// `member` is the member's own name (`group.instance.id`), the same at each start: a restart takes over at once what the
    /// killed predecessor had, and the broker checks every commit against it. A commit of a member without a name that has
    /// fallen out of the group would go unchecked, because a transaction may have no member at all.
    pub fn join(clients: &Clients, group_id: &str, member: &str, topics: &[&str]) -> Result<Self, GroupError> {
        let mut config = clients.config(ClientKind::Consumer);
        for (key, value) in [
            // The default of 64 MB a consumer is far more than is ever ahead here.
            ("queued.max.messages.kbytes", "4096"),
            ("fetch.message.max.bytes", "1048576"),
        ] {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        config
            .set("group.id", group_id)
            .set("group.instance.id", member)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            // Also makes the group's offsets wait for a transaction that is still open (KIP-447).
            .set("isolation.level", "read_committed")
            // Not cooperative: there a partition that moves belongs to nobody until its old owner has joined once more. An owner
            // with a name that starts anew in between is given back what it has without that (KIP-345), and the partition stays
            // nobody's until the group changes again (measured on Kafka 4.3.1).
            .set("partition.assignment.strategy", "roundrobin");
        let refused = |error: KafkaError| {
            GroupError::Configuration(format!("the Kafka consumer's settings are refused: {error}"))
        };
        let changes = Changes { callbacks: clients.callbacks(), seen: Mutex::default() };
        let consumer: StreamConsumer<Changes> = config.create_with_context(changes).map_err(refused)?;
        consumer.subscribe(topics).map_err(refused)?;
        let consumer = Arc::new(consumer);
        let keeper = Keeper::start(consumer.clone(), member)
            .map_err(|error| GroupError::Failed(format!("no thread for the consumer: {error}")))?;
        Ok(Self { consumer, keeper })
    }

    /// The next record of a partition that is not paused. Serves rebalances while it waits, so it has to be waited for all the
    /// time (`max.poll.interval.ms`). May be dropped and called again.
    pub async fn receive(&self) -> Result<Received, GroupError> {
        let message = self.consumer.recv().await.map_err(|error| group_error(&error))?;
        Ok(Received {
            partition: Partition { topic: message.topic().to_owned(), number: message.partition() },
            offset: message.offset(),
            key: message.key().unwrap_or_default().to_owned(),
            value: message.payload().unwrap_or_default().to_owned(),
        })
    }

    /// What has changed since the last call, in order. To be asked before anything is made of a record or a commit.
    pub fn changes(&self) -> Vec<Change> {
        self.consumer.context().take()
    }

    /// Nothing more of these partitions comes until they are resumed.
    pub fn pause<'a>(&self, partitions: impl IntoIterator<Item = &'a Partition>) -> Result<(), GroupError> {
        self.consumer.pause(&list(partitions)).map_err(|error| group_error(&error))
    }

    pub fn resume<'a>(&self, partitions: impl IntoIterator<Item = &'a Partition>) -> Result<(), GroupError> {
        self.consumer.resume(&list(partitions)).map_err(|error| group_error(&error))
    }

    /// Offsets to be committed: of each partition the next one to be read. With the generation that the member is in now, so that
    /// a member which has been replaced commits nothing. `None` outside a group.
    pub fn offsets<'a>(&self, next: impl IntoIterator<Item = (&'a Partition, i64)>) -> Option<GroupOffsets> {
        let group = self.consumer.group_metadata()?;
        let mut positions = TopicPartitionList::new();
        for (partition, offset) in next {
            positions.add_partition_offset(&partition.topic, partition.number, Offset::Offset(offset)).ok()?;
        }
        Some(GroupOffsets { positions, group })
    }

    /// Whether a broker answers.
    pub fn ask_broker(&self) -> impl Future<Output = bool> + Send + 'static {
        let (answer, answered) = oneshot::channel();
        let is_asked = self.keeper.questions.try_send(answer).is_ok();
        async move { is_asked && answered.await.unwrap_or(false) }
    }

    /// Ends the consumer, within twenty seconds; gives whether it has ended. One that has not is left to itself. Its partitions
    /// stay its own for the session's time-out (`session.timeout.ms`), should it come again.
    pub async fn close(self) -> bool {
        let Self { consumer, keeper: Keeper { questions, ended } } = self;
        drop((consumer, questions));
        let has_ended = matches!(tokio::time::timeout(CLOSE_TIMEOUT, ended).await, Ok(Ok(())));
        if !has_ended {
            tracing::warn!("a consumer has not ended in time and is left to itself");
        }
        has_ended
    }
}

impl Keeper {
    fn start(consumer: Arc<StreamConsumer<Changes>>, member: &str) -> std::io::Result<Self> {
        let (questions, mut asked) = mpsc::channel::<oneshot::Sender<bool>>(1);
        let (end, ended) = oneshot::channel();
        let keep = move || {
            while let Some(answer) = asked.blocking_recv() {
                let _ = answer.send(does_broker_answer(&consumer));
            }
            let_go(&consumer);
            drop(consumer);
            let _ = end.send(());
        };
        thread::Builder::new().name(format!("consumer {member}")).spawn(keep)?;
        Ok(Self { questions, ended })
    }
}

fn does_broker_answer(consumer: &StreamConsumer<Changes>) -> bool {
    let Ok(topics) = consumer.subscription() else { return false };
    let topic = topics.elements().first().map(|topic| topic.topic().to_owned());
    consumer.fetch_metadata(topic.as_deref(), METADATA_TIMEOUT).is_ok()
}

/// Lets go of what the consumer has, and serves the rebalances that wait. While a consumer is closed, librdkafka (2.12.1,
/// `rd_kafka_cgrp_op_serve`) drops an assignment without an answer, and whoever serves a rebalance that came before waits for ever.
///
/// Unsubscribed first: it would join the group again, and take the place of a successor of the same name.
fn let_go(consumer: &StreamConsumer<Changes>) {
    consumer.unsubscribe();
    let until = Instant::now() + SERVE_TIME;
    let served = Arc::new(Served::default());
    let waker = Waker::from(served.clone());
    // Something that is no record, be it a line for the log, is served within the poll and wakes whoever polls.
    while Instant::now() < until {
        let next = pin!(consumer.recv()).poll(&mut Context::from_waker(&waker));
        if matches!(next, Poll::Ready(_)) || served.0.swap(false, Ordering::AcqRel) {
            continue;
        }
        if consumer.assignment().is_ok_and(|partitions| partitions.count() == 0) {
            break;
        }
        thread::sleep(SERVE_PAUSE);
    }
}

/// Whether somebody was woken.
#[derive(Default)]
struct Served(AtomicBool);

impl Wake for Served {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

fn list<'a>(partitions: impl IntoIterator<Item = &'a Partition>) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&partition.topic, partition.number);
    }
    list
}

fn group_error(error: &KafkaError) -> GroupError {
    let code = error.rdkafka_error_code();
    match code {
        Some(RDKafkaErrorCode::FencedInstanceId) => GroupError::Fenced(error.to_string()),
        _ if matches!(error, KafkaError::MessageConsumptionFatal(_)) => GroupError::Failed(error.to_string()),
        Some(
            RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::SaslAuthenticationFailed
            | RDKafkaErrorCode::Authentication,
        ) => GroupError::Configuration(format!(
            "Kafka refuses the consumer: {error} (the principal needs Read on the consumer group and on the request topics)"
        )),
        _ => GroupError::Passing(error.to_string()),
    }
}

/// Remembers rebalances; librdkafka tells of them inside a poll.
struct Changes {
    callbacks: Callbacks,
    seen: Mutex<Vec<Change>>,
}

impl Changes {
    fn take(&self) -> Vec<Change> {
        std::mem::take(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ClientContext for Changes {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Callbacks::ENABLE_REFRESH_OAUTH_TOKEN;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.callbacks.generate_oauth_token(config)
    }

    fn log(&self, level: RDKafkaLogLevel, kind: &str, line: &str) {
        self.callbacks.log(level, kind, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.callbacks.error(error, reason);
    }
}

impl ConsumerContext for Changes {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let partitions = |list: &TopicPartitionList| {
            let elements = list.elements();
            elements.iter().map(|it| Partition { topic: it.topic().to_owned(), number: it.partition() }).collect()
        };
        let change = match rebalance {
            Rebalance::Assign(list) => Change::Gained(partitions(list)),
            Rebalance::Revoke(list) => Change::Lost(partitions(list)),
            Rebalance::Error(error) => {
                tracing::warn!(%error, "a rebalance failed");
                Change::LostAll
            }
        };
        tracing::info!(?change, "the group was rebalanced");
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).push(change);
    }
}
