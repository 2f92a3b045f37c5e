//! How Kafka clients are configured: the user's settings, then what the guarantee rests on.

use std::collections::BTreeMap;
use std::fmt;

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, Producer};

use crate::config::{ConnectorConfig, WorkerConfig};

/// A consumer that reads topics to their ends and joins no group.
pub type TopicReader = BaseConsumer<QuietContext>;

/// Whoever polls is told of all errors, and of each end of a partition as one: neither is for the log.
#[derive(Debug, Clone, Copy)]
pub struct QuietContext;

impl ClientContext for QuietContext {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "reading topics");
    }
}

impl ConsumerContext for QuietContext {}

/// Whose settings a client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientKind {
    Producer,
    Consumer,
    Admin,
}

/// Everything a connector's clients are made of, in librdkafka's names. Values can be secrets: never printed.
#[derive(Clone, Default)]
pub struct Clients {
    pub bootstrap_servers: String,
    /// Shown by the brokers in their request logs.
    pub client_id: String,
    pub producer: BTreeMap<String, String>,
    pub consumer: BTreeMap<String, String>,
    pub admin: BTreeMap<String, String>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("bootstrap_servers", &self.bootstrap_servers).finish_non_exhaustive()
    }
}

impl Clients {
    /// Those of a connector on this worker.
    pub fn of(worker: &WorkerConfig, connector: &ConnectorConfig) -> Self {
        Self {
            bootstrap_servers: worker.bootstrap_servers.clone(),
            client_id: format!("wecom-connector-{}", connector.name),
            producer: worker.clients.for_producer(&connector.producer_override).0,
            consumer: worker.clients.for_consumer(&connector.consumer_override).0,
            admin: worker.clients.for_admin().0,
        }
    }

    /// A client's settings. What the caller sets after this wins.
    pub fn config(&self, kind: ClientKind) -> ClientConfig {
        let (settings, suffix) = match kind {
            ClientKind::Producer => (&self.producer, "producer"),
            ClientKind::Consumer => (&self.consumer, "consumer"),
            ClientKind::Admin => (&self.admin, "admin"),
        };
        let mut config = ClientConfig::new();
        config.set("client.id", format!("{}-{suffix}", self.client_id));
        // Brokers close idle connections after ten minutes: nothing to report.
        config.set("log.connection.close", "false");
        for (key, value) in settings {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.bootstrap_servers);
        config
    }

    /// The settings of a [`TopicReader`]. It asks leaders alone: what a follower takes for the end of a partition can be behind what
    /// is committed.
    pub fn reader_config(&self, isolation_level: &str) -> ClientConfig {
        let mut config = self.config(ClientKind::Consumer);
        config
            // Named because librdkafka wants a name; nothing joins or commits.
            .set("group.id", "wecom-connector-reader")
            .set("client.rack", "")
            .set("isolation.level", isolation_level)
            .set("enable.auto.commit", "false")
            .set("enable.partition.eof", "true")
            .set("auto.offset.reset", "earliest");
        config
    }

    /// The id of the cluster, as soon as a broker tells it; `None` if none does within `timeout`. Blocks.
    pub fn cluster_id(&self, timeout: Duration) -> Option<String> {
        let client: BaseProducer = self.config(ClientKind::Admin).create().ok()?;
        client.client().fetch_cluster_id(timeout)
    }
}
