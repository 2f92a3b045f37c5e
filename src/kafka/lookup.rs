//! Asking brokers what there is. Here it shows whether Kafka can be reached; so this is the first call of whatever needs Kafka.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::certificates;
use super::client::{Clients, TopicReader};
use super::client_error::ClientError;

/// How long the first answer of a broker is waited for: by the worker before it starts anew, by a command before it ends.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// A refusal does not end a call of librdkafka: the first one is short, the next ones are longer.
const CALL_TIMEOUT_MIN: Duration = Duration::from_secs(1);

const PAUSE: Duration = Duration::from_millis(200);
const POLL_TIMEOUT: Duration = Duration::from_millis(20);

/// How long nothing may come of a topic that is read.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A topic as the brokers tell of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundTopic {
    /// By rising number.
    pub partitions: Vec<i32>,
    /// Of the partition with the fewest.
    pub replicas: usize,
}

/// Looks for topics by name; `None` for one that is not there. Other topics are not asked for, however many there are, and none is
/// made. Blocks.
pub fn look_up(
    clients: &Clients,
    reader: &TopicReader,
    topics: &[&str],
) -> Result<Vec<Option<FoundTopic>>, ClientError> {
    let until = Instant::now() + ANSWER_TIMEOUT;
    served(reader, || topics.iter().map(|topic| look_up_one(clients, reader, topic, until)).collect())
}

/// The id of the cluster, as soon as a broker tells it; `None` if none does in time. Blocks.
pub fn cluster_id(clients: &Clients) -> Option<String> {
    let reader = clients.reader().ok()?;
    served(&reader, || reader.client().fetch_cluster_id(ANSWER_TIMEOUT))
}

fn look_up_one(
    clients: &Clients,
    reader: &TopicReader,
    topic: &str,
    until: Instant,
) -> Result<Option<FoundTopic>, ClientError> {
    let (since, mut call_timeout) = (Instant::now(), CALL_TIMEOUT_MIN);
    loop {
        let error = match reader.fetch_metadata(Some(topic), call_timeout) {
            Ok(metadata) => {
                clients.complaints.settle();
                let found = metadata.topics().first();
                let error = found.and_then(|found| found.error()).map(RDKafkaErrorCode::from);
                let partitions = found.map(|found| found.partitions()).unwrap_or_default();
                match error {
                    None if !partitions.is_empty() => {
                        let mut numbers: Vec<i32> = partitions.iter().map(|partition| partition.id()).collect();
                        numbers.sort_unstable();
                        let replicas = partitions.iter().map(|partition| partition.replicas().len()).min();
                        return Ok(Some(FoundTopic { partitions: numbers, replicas: replicas.unwrap_or_default() }));
                    }
                    None | Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                        return Ok(None);
                    }
                    // As of one that is being made.
                    Some(code) => KafkaError::MetadataFetch(code),
                }
            }
            Err(error) => error,
        };
        if let Some(denied) = ClientError::of_denial(&error, topic, "Describe") {
            return Err(denied);
        }
        let error = unanswered(clients, since, &error);
        if !error.is_transient() || Instant::now() > until {
            return Err(error);
        }
        thread::sleep(PAUSE);
        call_timeout = (call_timeout * 2).min(ANSWER_TIMEOUT);
    }
}

/// Why a call that was made at `since` got no answer.
pub(super) fn unanswered(clients: &Clients, since: Instant, error: &KafkaError) -> ClientError {
    let bootstrap_servers = clients.bootstrap_servers.clone();
    // No broker lacks a call of these.
    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::UnsupportedFeature) {
        return ClientError::Controller { bootstrap_servers };
    }
    match clients.complaints.since(since) {
        Some(complaint) if complaint.is_refusal => {
            let reason = match complaint.reason.split_once("broker certificate could not be verified") {
                Some((said, _)) => {
                    format!("{}: {}", said.trim_end_matches([':', ' ']), certificates::distrust(&clients.admin))
                }
                None => format!("{}; check security.protocol, sasl.… and ssl.…", complaint.reason),
            };
            ClientError::Refused { bootstrap_servers, reason }
        }
        Some(complaint) => ClientError::Unreachable { bootstrap_servers, reason: complaint.reason },
        None => ClientError::Unreachable { bootstrap_servers, reason: error.to_string() },
    }
}

/// Makes a call that blocks, and serves the client's callbacks meanwhile: log lines, complaints, tokens. For a reader that reads
/// nothing yet.
pub(super) fn served<T>(reader: &TopicReader, call: impl FnOnce() -> T) -> T {
    let is_answered = AtomicBool::new(false);
    thread::scope(|scope| {
        let serve = || {
            while !is_answered.load(Ordering::Acquire) {
                drop(reader.poll(POLL_TIMEOUT));
            }
        };
        // Without a thread the call is made all the same, and its reason may stay unknown.
        let _ = thread::Builder::new().name("kafka callbacks".into()).spawn_scoped(scope, serve);
        let answer = call();
        is_answered.store(true, Ordering::Release);
        answer
    })
}

/// Since when nothing has come of a topic that is read.
#[derive(Debug)]
pub(super) struct Silence(Instant);

impl Silence {
    pub(super) fn begin() -> Self {
        Self(Instant::now())
    }

    /// An error once a broker has complained and nothing has come for [`ANSWER_TIMEOUT`], or without a complaint for a minute: a
    /// slow link takes its time.
    pub(super) fn check(&self, clients: &Clients) -> Result<(), ClientError> {
        let age = self.0.elapsed();
        let has_complained = age > ANSWER_TIMEOUT && clients.complaints.since(self.0).is_some();
        if has_complained || age > SILENCE_MAX {
            let error = KafkaError::MessageConsumption(RDKafkaErrorCode::OperationTimedOut);
            return Err(unanswered(clients, self.0, &error));
        }
        Ok(())
    }
}
