//! How Kafka clients are configured: the user's settings, then what the guarantee rests on. And what every client calls back.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::KafkaError;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, ProducerContext};
use rdkafka_sys::rd_kafka_t;

use super::certificates::{self, system_roots};
use super::client_error::ClientError;
use super::client_log;
use super::complaints::Complaints;
use super::oauth::{TokenError, Tokens};
use crate::config::{ConnectorConfig, WorkerConfig};

/// A consumer that reads topics to their ends and joins no group.
pub type TopicReader = BaseConsumer<Callbacks>;

/// What every client calls back: its log lines, what it complains of, and that it needs a token.
#[derive(Debug, Clone)]
pub struct Callbacks {
    pub(super) complaints: Arc<Complaints>,
    tokens: Option<Arc<Tokens>>,
}

impl ClientContext for Callbacks {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        let tokens = self.tokens.as_ref().ok_or("set sasl.oauthbearer.method=oidc")?;
        Ok(tokens.token()?)
    }

    fn log(&self, level: RDKafkaLogLevel, kind: &str, line: &str) {
        client_log::log(level, kind, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let passes = self.tokens.as_ref().is_some_and(|tokens| tokens.failure_passes());
        self.complaints.hear(&error, reason, passes);
    }
}

impl ConsumerContext for Callbacks {}

impl ProducerContext for Callbacks {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

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
    /// Of all clients that are made of this and of its clones.
    pub complaints: Arc<Complaints>,
    /// Where tokens of OAuth come from, and the last one.
    pub tokens: Option<Arc<Tokens>>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("bootstrap_servers", &self.bootstrap_servers).finish_non_exhaustive()
    }
}

impl Clients {
    /// Those of a connector on this worker.
    pub fn of(worker: &WorkerConfig, connector: &ConnectorConfig) -> Self {
        let admin = worker.clients.for_admin().0;
        Self {
            // What is wrong of them, `check` says.
            tokens: Tokens::of(&admin).ok().flatten(),
            bootstrap_servers: worker.bootstrap_servers.clone(),
            client_id: format!("wecom-connector-{}", connector.name),
            producer: worker.clients.for_producer(&connector.producer_override).0,
            consumer: worker.clients.for_consumer(&connector.consumer_override).0,
            admin,
            complaints: Arc::default(),
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
        for (key, value) in settings.iter().filter(|(key, _)| self.tokens.is_none() || !Tokens::is_ours(key)) {
            config.set(key, value);
        }
        if let Some(location) = system_roots(settings) {
            config.set("ssl.ca.location", location);
        }
        config.set("bootstrap.servers", &self.bootstrap_servers);
        config
    }

    pub fn callbacks(&self) -> Callbacks {
        Callbacks { complaints: self.complaints.clone(), tokens: self.tokens.clone() }
    }

    /// Makes a client with what all of them call back.
    ///
    /// # Errors
    /// [`ClientError::Settings`]
    pub fn create<T: FromClientConfigAndContext<Callbacks>>(&self, config: &ClientConfig) -> Result<T, ClientError> {
        config.create_with_context(self.callbacks()).map_err(|error| ClientError::of_settings(&error))
    }

    /// An admin client. Blocks while it gets a token, where there is none yet.
    pub fn admin(&self) -> Result<AdminClient<Callbacks>, ClientError> {
        let admin: AdminClient<Callbacks> = self.create(&self.config(ClientKind::Admin))?;
        self.log_in(admin.inner().native_ptr())?;
        Ok(admin)
    }

    /// A reader of committed records. Blocks as [`Clients::admin`].
    pub fn reader(&self) -> Result<TopicReader, ClientError> {
        self.reader_of(&self.reader_config("read_committed"))
    }

    /// A reader with these settings. Blocks as [`Clients::admin`].
    pub fn reader_of(&self, config: &ClientConfig) -> Result<TopicReader, ClientError> {
        let reader: TopicReader = self.create(config)?;
        self.log_in(reader.client().native_ptr())?;
        Ok(reader)
    }

    /// The first token of a client whose callbacks nobody may serve: rdkafka serves an admin client's never.
    fn log_in(&self, client: *mut rd_kafka_t) -> Result<(), ClientError> {
        let Some(tokens) = &self.tokens else { return Ok(()) };
        let (bootstrap_servers, failed) = (self.bootstrap_servers.clone(), tokens.log_in(client));
        failed.map_err(|error| match error {
            TokenError::Unreachable { .. } => ClientError::Unreachable { bootstrap_servers, reason: error.to_string() },
            TokenError::Refused { .. } => ClientError::Refused { bootstrap_servers, reason: error.to_string() },
        })
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

    /// Whether clients can be made of the settings: files are there, and settings go together. Connects to nothing.
    ///
    /// # Errors
    /// [`ClientError::Settings`]
    pub fn check(&self) -> Result<(), ClientError> {
        Tokens::of(&self.admin)?;
        for (kind, settings) in [
            (ClientKind::Producer, &self.producer),
            (ClientKind::Consumer, &self.consumer),
            (ClientKind::Admin, &self.admin),
        ] {
            certificates::check_files(settings)?;
            let mut config = self.config(kind);
            config.remove("bootstrap.servers");
            match kind {
                ClientKind::Consumer => {
                    drop(self.create::<TopicReader>(config.set("group.id", "wecom-connector-check"))?)
                }
                ClientKind::Producer | ClientKind::Admin => drop(self.create::<BaseProducer<Callbacks>>(&config)?),
            }
        }
        Ok(())
    }
}
