//! Topics: those that are missing are made, those that are there are checked.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::client::{Callbacks, Clients};
use super::client_error::ClientError;
use super::lookup;
use super::rights::{self, Right};
use super::topic_limits::TopicLimits;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
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
    /// What the connector does with it.
    pub rights: &'static [Right],
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
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("topic {topic} is missing and topic.creation.enable is false; make it, or let the worker make it")]
    Missing { topic: String },
    #[error("topic {topic} cannot be made: {reason}; make it, or change topic.creation.… or the principal's rights")]
    Creation { topic: String, reason: String },
    #[error("topic {topic} has cleanup.policy={policy}; offsets are lost there: set cleanup.policy=compact")]
    NotCompacted { topic: String, policy: String },
    #[error("topic {topic} has cleanup.policy={policy}; records are lost there: set cleanup.policy=delete")]
    Compacted { topic: String, policy: String },
    #[error("the settings of topic {topic} cannot be read: {reason}")]
    Settings { topic: String, reason: String },
}

impl TopicError {
    /// Whether waiting can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Client(error) => error.is_transient(),
            Self::Settings { .. } => true,
            _ => false,
        }
    }
}

/// Makes what is missing, checks what is there, and gives the limits of each topic. Nothing is made until all
/// that is there is right and the brokers agree to all that is missing.
pub async fn prepare(
    clients: &Clients,
    wanted: &[WantedTopic],
    create_missing: bool,
) -> Result<BTreeMap<String, TopicLimits>, TopicError> {
    let (mut existing, missing) = look(clients, wanted).await?;
    let admin = clients.admin()?;
    let mut limits = check_existing(&admin, &existing).await?;
    if !missing.is_empty() {
        agree(&admin, &missing, create_missing).await?;
        create(&admin, &missing).await?;
        limits.extend(check_existing(&admin, &missing.iter().map(|topic| (*topic, 0)).collect::<Vec<_>>()).await?);
        existing = look(clients, wanted).await?.0;
    }
    let lone: Vec<&str> =
        existing.iter().filter(|(_, replicas)| *replicas == 1).map(|(topic, _)| topic.name.as_str()).collect();
    if !lone.is_empty() {
        tracing::warn!(
            topics = lone.join(","),
            "topics with one replica: a broker that ends at the wrong moment leaves transactions hanging there, or records twice \
             (KAFKA-20734, seen with Kafka 4.3.1); have three replicas and min.insync.replicas=2"
        );
    }
    Ok(limits)
}

/// As [`prepare`], but nothing is made, and it is asked for the rights to read and to write. Gives the topics that a start would make,
/// and the limits of the others.
pub async fn check<'a>(
    clients: &Clients,
    wanted: &'a [WantedTopic],
    create_missing: bool,
) -> Result<(Vec<&'a str>, BTreeMap<String, TopicLimits>), TopicError> {
    let (existing, missing) = look(clients, wanted).await?;
    let admin = clients.admin()?;
    let limits = check_existing(&admin, &existing).await?;
    let (asked, topics) = (clients.clone(), existing.iter().map(|(topic, _)| (*topic).clone()).collect::<Vec<_>>());
    let check_rights = move || check_rights(&asked, &topics);
    tokio::task::spawn_blocking(check_rights).await.unwrap_or_else(|_| Err(interrupted(clients).into()))?;
    agree(&admin, &missing, create_missing).await?;
    Ok((missing.into_iter().map(|topic| topic.name.as_str()).collect(), limits))
}

type Admin = AdminClient<Callbacks>;

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT))
}

/// The topics that are there, each with the number of its replicas, and those that are missing.
async fn look<'a>(
    clients: &Clients,
    wanted: &'a [WantedTopic],
) -> Result<(Vec<(&'a WantedTopic, usize)>, Vec<&'a WantedTopic>), ClientError> {
    let (asked, names) = (clients.clone(), wanted.iter().map(|topic| topic.name.clone()).collect::<Vec<_>>());
    let look_up = move || {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        lookup::look_up(&asked, &asked.reader()?, &names)
    };
    let found = tokio::task::spawn_blocking(look_up).await.unwrap_or_else(|_| Err(interrupted(clients)))?;
    let (mut existing, mut missing) = (Vec::new(), Vec::new());
    for (topic, found) in wanted.iter().zip(found) {
        match found {
            Some(found) => existing.push((topic, found.replicas)),
            None => missing.push(topic),
        }
    }
    Ok((existing, missing))
}

fn interrupted(clients: &Clients) -> ClientError {
    ClientError::Unreachable {
        bootstrap_servers: clients.bootstrap_servers.clone(),
        reason: "the question was interrupted".into(),
    }
}

fn check_rights(clients: &Clients, topics: &[WantedTopic]) -> Result<(), TopicError> {
    let reader = clients.reader()?;
    for topic in topics {
        let missing = rights::missing(&reader, &topic.name, topic.rights, REQUEST_TIMEOUT);
        let missing = missing.map_err(|reason| TopicError::Settings { topic: topic.name.clone(), reason })?;
        if let Some(right) = missing.first() {
            let (topic, reason) = (topic.name.clone(), "a right is missing".into());
            return Err(ClientError::Denied { topic, reason, right: right.as_str() }.into());
        }
    }
    Ok(())
}

/// Whether these topics would be made, by the broker's own word.
async fn agree(admin: &Admin, missing: &[&WantedTopic], create_missing: bool) -> Result<(), TopicError> {
    match missing.first() {
        Some(topic) if !create_missing => Err(TopicError::Missing { topic: topic.name.clone() }),
        Some(_) => request_creation(admin, missing, &options().validate_only(true)).await,
        None => Ok(()),
    }
}

async fn create(admin: &Admin, missing: &[&WantedTopic]) -> Result<(), TopicError> {
    request_creation(admin, missing, &options()).await?;
    for topic in missing {
        tracing::info!(topic = topic.name, partitions = topic.partitions, "made a topic");
    }
    Ok(())
}

async fn request_creation(admin: &Admin, missing: &[&WantedTopic], options: &AdminOptions) -> Result<(), TopicError> {
    let topics: Vec<NewTopic<'_>> = missing
        .iter()
        .map(|topic| {
            let replication = TopicReplication::Fixed(topic.replication_factor);
            let new = NewTopic::new(&topic.name, topic.partitions, replication);
            topic.settings.iter().fold(new, |new, (key, value)| new.set(key, value))
        })
        .collect();
    let creation = |topic: &str, reason: String| TopicError::Creation { topic: topic.into(), reason };
    let results = admin.create_topics(&topics, options).await;
    for result in results.map_err(|error| creation(&missing[0].name, error.to_string()))? {
        match result {
            // Another worker was faster.
            Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((topic, code)) => return Err(creation(&topic, code.to_string())),
        }
    }
    Ok(())
}

/// Checks the settings of topics, and gives their limits.
async fn check_existing(
    admin: &Admin,
    topics: &[(&WantedTopic, usize)],
) -> Result<BTreeMap<String, TopicLimits>, TopicError> {
    let until = Instant::now() + REQUEST_TIMEOUT;
    let mut limits = BTreeMap::new();
    for (topic, _) in topics {
        let settings = describe(admin, &topic.name, until).await?;
        let value = |name: &str| settings.get(name).and_then(|entry| entry.value.clone());
        judge(topic, &value)?;
        limits.insert(topic.name.clone(), TopicLimits::read(value));
    }
    Ok(limits)
}

/// Whether records are safe in a topic with these settings.
fn judge(topic: &WantedTopic, value: &impl Fn(&str) -> Option<String>) -> Result<(), TopicError> {
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
    Ok(())
}

/// The settings of a topic. A broker answers none at all, and no error, for a topic that was made just now (measured): asked
/// again until they are there.
async fn describe(admin: &Admin, topic: &str, until: Instant) -> Result<ConfigResource, TopicError> {
    let failed = |reason: String| TopicError::Settings { topic: topic.into(), reason };
    loop {
        let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options()).await;
        let reason = match described.map_err(|error| failed(error.to_string()))?.pop() {
            Some(Ok(settings)) if !settings.entries.is_empty() => return Ok(settings),
            Some(Err(code)) => {
                if let Some(denied) = ClientError::of_denial(&KafkaError::AdminOp(code), topic, "DescribeConfigs") {
                    return Err(denied.into());
                }
                code.to_string()
            }
            _ => "the broker answers none".into(),
        };
        if Instant::now() > until {
            return Err(failed(reason));
        }
        tokio::time::sleep(SETTINGS_PAUSE).await;
    }
}
