//! One transaction a batch: all of its records and its offsets become visible together, or none does.
//!
//! All transactional calls of librdkafka block and have no callback, so one OS thread owns each producer. The committer is
//! that thread's handle.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::{ClientConfig, TopicPartitionList};
use tokio::sync::{mpsc, oneshot};

use super::client::{ClientKind, Clients};
use super::protocol::{CommitError, PATIENCE, TransactionalProducer};
use super::transaction::RdkafkaClient;

/// One record to be produced. The partition is chosen by the Java client's partitioner (murmur2 of the key).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingRecord {
    pub topic: Arc<str>,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
    pub headers: Vec<(&'static str, Vec<u8>)>,
    /// Milliseconds since the epoch, UTC.
    pub timestamp_ms: i64,
}

/// Positions of a consumer group, to be committed with the records. The group's generation fences a zombie (KIP-447).
pub struct GroupOffsets {
    pub positions: TopicPartitionList,
    pub group: ConsumerGroupMetadata,
}

impl fmt::Debug for GroupOffsets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupOffsets").field("positions", &self.positions).finish_non_exhaustive()
    }
}

/// What one transaction holds.
#[derive(Debug, Default)]
pub struct Batch {
    pub records: Vec<OutgoingRecord>,
    pub group_offsets: Option<GroupOffsets>,
}

/// Limits of what goes to a broker at once. A batch of several records must fit every topic; a record alone may be larger, where
/// its topic takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchBytes {
    pub single_max: usize,
    pub several_max: usize,
}

/// The handle of one transactional producer. When it is dropped, the producer ends after the batch in hand.
#[derive(Debug)]
pub struct Committer {
    batches: mpsc::Sender<(Batch, oneshot::Sender<Result<(), CommitError>>)>,
    /// After so long the coordinator has ended the transaction, whatever the client waits for. librdkafka 2.12 can wait for ever in
    /// `send_offsets_to_transaction`: by its source it asks for a coordinator again only when a broker's state changes, and looks at
    /// no time limit. Measured is a media task that stood still for four minutes after its coordinator was killed.
    answer_timeout: Duration,
}

impl Committer {
    /// Starts a producer and initialises its transactions: from here on, a predecessor with the same `transactional.id` can
    /// commit nothing, and its last transaction is settled.
    pub async fn start(
        clients: &Clients,
        transactional_id: &str,
        transaction_timeout_ms: u64,
        batch_bytes: BatchBytes,
    ) -> Result<Self, CommitError> {
        let mut config = clients.config(ClientKind::Producer);
        let timeout_ms = transaction_timeout_ms.to_string();
        default(&mut config, "compression.codec", "lz4");
        default(&mut config, "linger.ms", "5");
        default(&mut config, "message.timeout.ms", &timeout_ms);
        // Also the pause between tries of EndTxn; librdkafka's 100 ms would show in each commit that meets a marker.
        default(&mut config, "retry.backoff.ms", "20");
        let single_max = batch_bytes.single_max.max(1000);
        let wanted = config.get("batch.size").and_then(|bytes| bytes.parse().ok()).unwrap_or(usize::MAX);
        config
            .set("transactional.id", transactional_id)
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("partitioner", "murmur2_random")
            .set("transaction.timeout.ms", &timeout_ms)
            .set("message.max.bytes", single_max.to_string())
            .set("batch.size", batch_bytes.several_max.clamp(1000, single_max).min(wanted).to_string());
        let (started, start) = oneshot::channel();
        let (batches, mut queue) = mpsc::channel::<(Batch, oneshot::Sender<Result<(), CommitError>>)>(1);
        let (name, callbacks) = (transactional_id.to_owned(), clients.callbacks());
        std::thread::Builder::new()
            .name(format!("commit {name}"))
            .spawn(move || {
                let producer = RdkafkaClient::new(&config, callbacks)
                    .map_err(|error| {
                        CommitError::Configuration(format!("the Kafka producer's settings are refused: {error}"))
                    })
                    .and_then(|client| block_on(TransactionalProducer::start(client)));
                let mut producer = match producer {
                    Ok(producer) => producer,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                let _ = started.send(Ok(()));
                while producer.is_usable()
                    && let Some((batch, answer)) = queue.blocking_recv()
                {
                    let _ = answer.send(block_on(producer.commit(&batch)));
                }
            })
            .map_err(|error| CommitError::Unknown(error.to_string()))?;
        start.await.unwrap_or_else(|_| Err(CommitError::Unknown("the producer's thread ended".into())))?;
        Ok(Self { batches, answer_timeout: Duration::from_millis(transaction_timeout_ms) + PATIENCE })
    }

    /// Commits one batch in one transaction. Batches are committed in the order of the calls.
    ///
    /// After any error but [`CommitError::Aborted`] this committer is of no more use; now and then not after that one either, and
    /// says so with the next batch. A producer whose client does not answer is left to itself: its successor fences it.
    pub async fn commit(&self, batch: Batch) -> Result<(), CommitError> {
        let gone = || CommitError::Unknown("the producer has ended".into());
        let (answer, result) = oneshot::channel();
        let answered = async {
            self.batches.send((batch, answer)).await.map_err(|_| gone())?;
            result.await.unwrap_or_else(|_| Err(gone()))
        };
        tokio::time::timeout(self.answer_timeout, answered).await.unwrap_or_else(|_| {
            Err(CommitError::Unknown(format!("the Kafka client has not answered within {:?}", self.answer_timeout)))
        })
    }
}

fn default(config: &mut ClientConfig, key: &str, value: &str) {
    if config.get(key).is_none() {
        config.set(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_that_never_answers_is_not_waited_for() {
        let (batches, mut queue) = mpsc::channel(1);
        let committer = Committer { batches, answer_timeout: Duration::from_millis(10) };
        // Whoever is stuck keeps the batch in hand, and takes no other one.
        let stuck = tokio::spawn(async move { (queue.recv().await, std::future::pending::<()>().await) });
        for _ in 0..3 {
            let committed = committer.commit(Batch::default()).await;
            assert_eq!(committed, Err(CommitError::Unknown("the Kafka client has not answered within 10ms".into())));
        }
        stuck.abort();
    }
}
