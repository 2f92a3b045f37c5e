//! Topics: those that are missing are made, those that are there are checked.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::{ClientContext, DefaultClientContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{Producer, ProducerContext, ThreadedProducer};

use super::client::{ClientKind, Clients};
use super::topic_limits::TopicLimits;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const LIST_TIMEOUT: Duration = Duration::from_secs(3);
const SETTINGS_PAUSE: Duration = Duration::from_millis(100);

/// A topic as it is wanted, should it be missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedTopic {
    pub name: String,
    /// −1: the broker's default.
    pub partitions: i32,
    /// −1: the broker's default.
    pub replication_factor: i32,
    /// Topic settings, such as `cleanup.policy`.
    pub settings: BTreeMap<String, String>,
    pub cleanup: Cleanup,
}

/// What may happen to the records of a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cleanup {
    /// Compacted and nothing else: a topic that is not is refused.
    Compacted,
    /// Kept for the topic's retention. A topic that is compacted is refused: records with the same key are no versions of one
    /// another. A shorter retention than this is warned about, in milliseconds.
    Kept { retention_ms_min: i64 },
}

#[derive(Debug, thiserror::Error)]
pub enum TopicError {
    #[error("Kafka cannot be reached at {bootstrap_servers}: {reason}; check bootstrap.servers and the network")]
    Unreachable { bootstrap_servers: String, reason: String },
    #[error(
        "Kafka at {bootstrap_servers} does not let this worker in: {reason}; check security.protocol, sasl.… and ssl.…"
    )]
    Refused { bootstrap_servers: String, reason: String },
    #[error("topic {topic} is missing and topic.creation.enable is false; make it, or let the worker make it")]
    Missing { topic: String },
    #[error("topic {topic} cannot be made: {reason}; make it, or change topic.creation.… or the principal's rights")]
    Creation { topic: String, reason: String },
    #[error("topic {topic} has cleanup.policy={policy}; offsets are lost there: set cleanup.policy=compact")]
    NotCompacted { topic: String, policy: String },
    #[error("topic {topic} has cleanup.policy={policy}; records are lost there: set cleanup.policy=delete")]
    Compacted { topic: String, policy: String },
    #[error("the settings of topic {topic} cannot be read: {reason} (the principal needs DescribeConfigs on it)")]
    Settings { topic: String, reason: String },
}

impl TopicError {
    /// Whether waiting can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Settings { .. })
    }
}

/// Makes what is missing, checks what is there, and gives the limits of each topic.
pub async fn prepare(
    clients: &Clients,
    wanted: &[WantedTopic],
    create_missing: bool,
) -> Result<BTreeMap<String, TopicLimits>, TopicError> {
    let unreachable = |error: KafkaError| TopicError::Unreachable {
        bootstrap_servers: clients.bootstrap_servers.clone(),
        reason: error.to_string(),
    };
    let list_now = || async {
        let listing = clients.clone();
        let listed = tokio::task::spawn_blocking(move || list(&listing));
        listed.await.unwrap_or_else(|_| Err(unreachable(KafkaError::Canceled)))
    };
    let mut existing = list_now().await?;
    let is_complete = wanted.iter().all(|topic| existing.contains_key(&topic.name));
    let admin: AdminClient<DefaultClientContext> = clients.config(ClientKind::Admin).create().map_err(unreachable)?;

    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT));
    for topic in wanted.iter().filter(|topic| !existing.contains_key(&topic.name)) {
        if !create_missing {
            return Err(TopicError::Missing { topic: topic.name.clone() });
        }
        let creation = |reason: String| TopicError::Creation { topic: topic.name.clone(), reason };
        let mut new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication_factor));
        for (key, value) in &topic.settings {
            new = new.set(key, value);
        }
        for result in admin.create_topics([&new], &options).await.map_err(|error| creation(error.to_string()))? {
            match result {
                Ok(_) => tracing::info!(topic = topic.name, partitions = topic.partitions, "made a topic"),
                // Another worker was faster.
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((_, code)) => return Err(creation(code.to_string())),
            }
        }
    }

    let until = Instant::now() + REQUEST_TIMEOUT;
    let mut limits = BTreeMap::new();
    for topic in wanted {
        let settings = describe(&admin, &topic.name, &options, until).await?;
        let value = |name: &str| settings.get(name).and_then(|entry| entry.value.clone());
        let policy = value("cleanup.policy").unwrap_or_default();
        match topic.cleanup {
            Cleanup::Compacted if policy != "compact" => {
                return Err(TopicError::NotCompacted { topic: topic.name.clone(), policy });
            }
            Cleanup::Kept { .. } if policy.contains("compact") => {
                return Err(TopicError::Compacted { topic: topic.name.clone(), policy });
            }
            Cleanup::Kept { retention_ms_min } => {
                let retention_ms = value("retention.ms").and_then(|value| value.parse::<i64>().ok());
                if retention_ms.is_some_and(|retention_ms| (0..retention_ms_min).contains(&retention_ms)) {
                    tracing::warn!(
                        topic = topic.name,
                        retention_ms,
                        retention_ms_min,
                        "the topic's retention.ms is too short: what is still to be done can be deleted"
                    );
                }
            }
            Cleanup::Compacted => {}
        }
        limits.insert(topic.name.clone(), TopicLimits::read(value));
    }
    if !is_complete {
        existing = list_now().await?;
    }
    let has_one = |topic: &&WantedTopic| existing.get(&topic.name) == Some(&1);
    let lone: Vec<&str> = wanted.iter().filter(has_one).map(|topic| topic.name.as_str()).collect();
    if !lone.is_empty() {
        tracing::warn!(
            topics = lone.join(","),
            "topics with one replica: a broker that ends at the wrong moment leaves transactions hanging there, or records twice \
             (KAFKA-20734, seen with Kafka 4.3.1); have three replicas and min.insync.replicas=2"
        );
    }
    Ok(limits)
}

/// The topics there are, each with the number of its replicas. All of them: asking for one by name would make it where brokers make topics by themselves.
///
/// The admin client of rdkafka drops what the brokers say of a refused password or certificate; a producer does not.
pub(super) fn list(clients: &Clients) -> Result<BTreeMap<String, usize>, TopicError> {
    let failed = |error: KafkaError, refused: Option<String>| match refused {
        Some(reason) => TopicError::Refused { bootstrap_servers: clients.bootstrap_servers.clone(), reason },
        None => {
            TopicError::Unreachable { bootstrap_servers: clients.bootstrap_servers.clone(), reason: error.to_string() }
        }
    };
    let client: ThreadedProducer<Refusal> = clients
        .config(ClientKind::Admin)
        .create_with_context(Refusal::default())
        .map_err(|error| failed(error, None))?;
    let until = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let error = match client.client().fetch_metadata(None, LIST_TIMEOUT) {
            Ok(metadata) => {
                let replicas = |topic: &MetadataTopic| {
                    topic.partitions().iter().map(|partition| partition.replicas().len()).min().unwrap_or_default()
                };
                return Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), replicas(topic))).collect());
            }
            Err(error) => error,
        };
        let refused = client.context().0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if refused.is_some() || Instant::now() > until {
            return Err(failed(error, refused));
        }
    }
}

/// Remembers that a broker was reached and does not let us in.
#[derive(Default)]
struct Refusal(Mutex<Option<String>>);

impl ClientContext for Refusal {
    fn error(&self, error: KafkaError, reason: &str) {
        if let KafkaError::Global(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) = error {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| reason.to_owned());
        }
    }
}

impl ProducerContext for Refusal {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// The settings of a topic. A broker answers none at all, and no error, for a topic that was made just now (measured): asked
/// again until they are there.
async fn describe(
    admin: &AdminClient<DefaultClientContext>,
    topic: &str,
    options: &AdminOptions,
    until: Instant,
) -> Result<ConfigResource, TopicError> {
    let failed = |reason: String| TopicError::Settings { topic: topic.into(), reason };
    loop {
        let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], options).await;
        let reason = match described.map_err(|error| failed(error.to_string()))?.pop() {
            Some(Ok(settings)) if !settings.entries.is_empty() => return Ok(settings),
            Some(Err(code @ RDKafkaErrorCode::TopicAuthorizationFailed)) => return Err(failed(code.to_string())),
            Some(Err(code)) => code.to_string(),
            _ => "the broker answers none".into(),
        };
        if Instant::now() > until {
            return Err(failed(reason));
        }
        tokio::time::sleep(SETTINGS_PAUSE).await;
    }
}
