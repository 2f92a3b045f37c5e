//! The running parts of a connector: the message task, the media tasks, and their supervision.

pub mod alteration;
pub mod backoff;
pub mod content_index;
pub mod dead_letters;
pub mod disposition;
pub mod download;
pub mod file_type;
pub mod limiter;
pub mod media_task;
pub mod message_task;
pub mod object_key;
pub mod open;
pub mod page_limit;
pub mod prepare;
pub mod published;
pub mod pull;
pub mod replay;
pub mod seen_versions;
pub mod supervisor;
pub mod topics;
mod waiting;

use std::path::Path;
use std::sync::Arc;

use secrecy::ExposeSecret;

use self::limiter::{RateLimiter, RateLimiters};
use self::page_limit::PageLimit;
use crate::archive::keyring::KeyRing;
use crate::clock::Clock;
use crate::config::{AddressFamily, ConnectorConfig, EgressMode, WorkerConfig};
use crate::egress::{self, Guard};
use crate::kafka::offsets::{self, OffsetError, OffsetPlace};
use crate::kafka::{ClientError, Clients, CommitError, Tenure, tenure};
use crate::metrics::{ConnectorMetrics, Metrics};
use crate::sdk::{self, Account, SdkClient};
use crate::storage::Store;

/// What all tasks of a connector share.
#[derive(Debug)]
pub struct ConnectorContext {
    pub worker: Arc<WorkerConfig>,
    pub config: ConnectorConfig,
    pub clients: Clients,
    /// Of this worker in the connector's place.
    pub tenure: Arc<Tenure>,
    pub sdk: SdkClient,
    pub keyring: KeyRing,
    /// Of calls to pull, shared by all connectors that read this corp.
    pub limiter: Arc<RateLimiter>,
    /// Of records asked for at once.
    pub page_limit: PageLimit,
    pub store: Store,
    pub metrics: Arc<ConnectorMetrics>,
    pub clock: Clock,
}

impl ConnectorContext {
    /// See [`WorkerConfig::transactional_id`].
    pub fn transactional_id(&self, task: u32) -> String {
        self.worker.transactional_id(&self.config.name, task)
    }

    pub fn now_ms(&self) -> i64 {
        self.clock.now().unix_ms
    }

    /// Where the connector's source offset lies.
    pub fn offset_place(&self) -> OffsetPlace {
        OffsetPlace::of(&self.worker, &self.config)
    }

    /// Whether another worker has taken the connector's place since this one had it.
    pub async fn is_replaced(&self) -> Result<bool, OffsetError> {
        if !self.tenure.has_begun() {
            return Ok(false);
        }
        let offset = offsets::read_in_background(&self.clients, &self.offset_place()).await?;
        Ok(self.tenure.is_over(offset.as_ref()))
    }

    /// An error once another worker has taken the connector's place.
    pub async fn hold_place(&self, task: u32) -> Result<(), TaskError> {
        if self.is_replaced().await? { Err(self.fenced(task, tenure::OVER)) } else { Ok(()) }
    }

    /// The end of a task whose place another worker has taken. Whichever task is the first to find out says the same.
    pub fn fenced(&self, task: u32, reason: &str) -> TaskError {
        TaskError::Fenced(format!(
            "another worker runs connector {} with group.id {}, or its offset was moved by hand (task {task}: {reason}); this one \
             stops and commits nothing more",
            self.config.name, self.worker.group_id
        ))
    }
}

/// Why a task ended before it was told to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Passes by itself: the task is started again soon.
    #[error("{0}")]
    Transient(String),
    /// Somebody has to change something: a sentence that says what. Tried again after a long pause all the same.
    #[error("{0}")]
    Configuration(String),
    /// `errors.tolerance=none`, and a record is bad. Not tried again.
    #[error("{0}")]
    Intolerable(String),
    /// Another worker runs this task. Not tried again: it would fence that one.
    #[error("{0}")]
    Fenced(String),
}

impl From<CommitError> for TaskError {
    /// A fencing is not translated here: whether it is real has to be found out first.
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Configuration(reason) => Self::Configuration(reason),
            other => Self::Transient(other.to_string()),
        }
    }
}

impl From<ClientError> for TaskError {
    fn from(error: ClientError) -> Self {
        if error.is_transient() { Self::Transient(error.to_string()) } else { Self::Configuration(error.to_string()) }
    }
}

impl From<OffsetError> for TaskError {
    fn from(error: OffsetError) -> Self {
        match error {
            OffsetError::Client(error) => error.into(),
            OffsetError::Malformed { .. } => Self::Configuration(error.to_string()),
            OffsetError::Unavailable { .. } => Self::Transient(error.to_string()),
        }
    }
}

impl ConnectorContext {
    /// Reads keys and opens storage; nothing is connected yet.
    ///
    /// # Errors
    /// A sentence that says what to change.
    pub fn new(
        worker: Arc<WorkerConfig>,
        config: ConnectorConfig,
        metrics: &Metrics,
        limiters: &RateLimiters,
        clock: Clock,
    ) -> anyhow::Result<Self> {
        let metrics = metrics.connector(&config.name, &config.corp_id);
        metrics.expect_dead_letters(dead_letters::reasons());
        let clients = Clients::of(&worker, &config);
        clients.check()?;
        if let Some((library, reason)) = unusable_library(&config) {
            let library = library.display();
            anyhow::bail!("{library}: {reason}; set wecom.sdk.library to the vendor's library for this machine");
        }
        let mut random = [0; 8];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
        let instance = format!("{:016x}", u64::from_ne_bytes(random));
        let keyring = KeyRing::load(&config.private_keys, config.private_keys_dir.as_deref())?;
        for warning in keyring.warnings() {
            tracing::warn!(connector = config.name, "{warning}");
        }
        Ok(Self {
            sdk: sdk_client(&config, &metrics)?,
            keyring,
            page_limit: PageLimit::new(config.page_limit),
            limiter: limiters.of(&config.corp_id, config.rate_limit_per_minute),
            store: Store::open(&config.storage)?,
            worker,
            config,
            clients,
            tenure: Arc::new(Tenure::new(instance)),
            metrics,
            clock,
        })
    }
}

/// The library that the file names, where it cannot be loaded on this machine, and why; as far as can be told without loading it.
pub fn unusable_library(config: &ConnectorConfig) -> Option<(&Path, String)> {
    let library = config.sdk_library.as_deref()?;
    let reason = match library.metadata() {
        Ok(metadata) if metadata.is_dir() => Some("it is a directory".into()),
        Ok(_) => sdk::misfit(library),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some("there is no such file".into()),
        Err(error) => Some(error.to_string()),
    };
    Some((library, reason?))
}

/// Whether Kafka clients can be made of the settings. Connects to nothing.
///
/// # Errors
/// A sentence that says what to change.
pub fn check_clients(worker: &WorkerConfig, config: &ConnectorConfig) -> Result<(), ClientError> {
    Clients::of(worker, config).check()
}

/// The library with a connector's account and way out. Its host starts with the first call.
///
/// # Errors
/// A sentence that says what of the way out to change.
pub fn sdk_client(
    config: &ConnectorConfig,
    metrics: &Arc<ConnectorMetrics>,
) -> Result<SdkClient, egress::SettingsError> {
    let guard = match config.egress {
        EgressMode::Guarded => {
            let settings = egress::Settings {
                proxy: config.proxy.clone(),
                proxy_password: config.proxy_password.clone(),
                ca_file: config.egress_ca_file.clone(),
                upstream: config.egress_upstream.clone(),
                address_family: match config.egress_address_family {
                    AddressFamily::Any => egress::AddressFamily::Any,
                    AddressFamily::V4 => egress::AddressFamily::V4,
                    AddressFamily::V6 => egress::AddressFamily::V6,
                },
                timeout_ms: config.sdk_timeout_ms,
            };
            Some(Guard::new(&settings, metrics.clone())?)
        }
        EgressMode::Direct => {
            tracing::warn!(
                connector = config.name,
                "sdk.egress=direct: the vendor's library takes a certificate of any issuer, so whoever sits on the way to WeCom can \
                 read the secret and every record"
            );
            None
        }
    };
    let account = Account {
        corp_id: config.corp_id.clone(),
        secret: config.secret.expose_secret().to_owned(),
        library: config.sdk_library.clone(),
        proxy: config.proxy.clone().unwrap_or_default(),
        proxy_password: config.proxy_password.as_ref().map_or_else(String::new, |it| it.expose_secret().to_owned()),
        // The guard's own, once a host is started.
        guard_port: None,
        timeout_s: i32::try_from(config.sdk_timeout_ms.div_ceil(1000)).unwrap_or(i32::MAX),
    };
    // The running program itself, also after its file has been replaced by a newer version.
    Ok(SdkClient::new("/proc/self/exe".into(), account, guard, metrics.clone()))
}
