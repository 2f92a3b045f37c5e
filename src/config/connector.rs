//! A connector's configuration.

use crate::archive::RecordTimestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;

use secrecy::SecretString;

use super::clients::{self, Client, Settings};
use super::file::Map;
use super::key::choices;
use super::keys;
use super::problem::{ConfigErrors, Warning};
use super::purpose::Purpose;
use super::reference::Providers;
use super::storage::StorageConfig;
use super::text;
use super::topics::TopicCreation;
use super::values::{Effective, Values, items};

choices! {
    /// What a record that cannot be opened does.
    pub enum ErrorsTolerance {
        /// It becomes a dead letter.
        All = "all",
        /// It stops the task.
        None = "none",
    }
}

choices! {
    /// How the vendor's library reaches WeCom.
    pub enum EgressMode {
        /// Through the egress guard.
        Guarded = "guarded",
        /// By itself.
        Direct = "direct",
    }
}

choices! {
    /// What a topic does that deletes its records early.
    pub enum RetentionCheck {
        /// It is told.
        Warn = "warn",
        /// Nothing is published.
        Refuse = "refuse",
        /// Nothing.
        Off = "off",
    }
}

choices! {
    /// Which addresses of WeCom, or of the proxy, the egress guard uses.
    pub enum AddressFamily {
        Any = "any",
        V4 = "v4",
        V6 = "v6",
    }
}

/// A checked connector configuration. What each field means, its range and default stand in the table of keys.
#[derive(Debug, Clone)]
pub struct ConnectorConfig {
    /// Not empty, no control characters.
    pub name: String,
    /// The corp's id.
    pub corp_id: String,
    /// The chat archive's secret. Empty where the file was not read to run it.
    pub secret: SecretString,
    /// The vendor's library, or `None` for the usual names.
    pub sdk_library: Option<PathBuf>,
    /// Private keys by version, each version once.
    pub private_keys: Vec<(u32, PathBuf)>,
    /// Folder of private keys. It or `private_keys` is given.
    pub private_keys_dir: Option<PathBuf>,
    /// How the library reaches WeCom.
    pub egress: EgressMode,
    /// Roots in PEM by which the guard knows WeCom, in place of the system's.
    pub egress_ca_file: Option<PathBuf>,
    /// Which addresses the guard uses.
    pub egress_address_family: AddressFamily,
    /// `host:port` in place of WeCom's.
    pub egress_upstream: Option<String>,
    /// Proxy on the way to WeCom. With `https` for the guard alone.
    pub proxy: Option<String>,
    /// Its name and password.
    pub proxy_password: Option<SecretString>,
    /// Time limit of one call, in milliseconds.
    pub sdk_timeout_ms: u64,
    /// 1 to 1,000.
    pub page_limit: u32,
    /// 1 to 600.
    pub rate_limit_per_minute: u32,
    /// What the timestamp of a Kafka record is.
    pub record_timestamp: RecordTimestamp,
    /// Pause between pulls of a drained archive, in milliseconds.
    pub poll_interval_ms: u64,
    /// Age of the oldest record not yet delivered from which the status warns, in milliseconds.
    pub undelivered_age_warning_ms: u64,
    /// Messages.
    pub topic: String,
    /// Media reference events.
    pub media_topic: String,
    /// Media to be brought.
    pub media_requests_topic: String,
    /// Media to be tried again.
    pub media_retries_topic: String,
    /// Dead letters.
    pub dead_letter_topic: String,
    /// What a topic does that deletes its records early.
    pub topic_retention_check: RetentionCheck,
    /// Whether nothing is pulled where no source offset is stored.
    pub require_offset: bool,
    /// What a record that cannot be opened does.
    pub errors_tolerance: ErrorsTolerance,
    /// Longest pause between tries, in milliseconds.
    pub errors_retry_delay_max_ms: u64,
    /// Longest life of a transaction, in milliseconds.
    pub transaction_timeout_ms: u64,
    /// Task 0 brings messages, the others media; at least 2 with `media_enable`.
    pub tasks_max: u32,
    /// Whether media are brought.
    pub media_enable: bool,
    /// Files one media task brings at a time.
    pub media_concurrency: usize,
    /// Pause before a file is tried again, in milliseconds.
    pub media_retry_delay_ms: u64,
    /// Age from which a stored object is not referred to again, in milliseconds; none where each file is stored by
    /// itself.
    pub media_deduplicate_age_max_ms: Option<u64>,
    /// Where media are stored.
    pub storage: StorageConfig,
    /// How missing topics are made.
    pub topic_creation: TopicCreation,
    /// librdkafka settings of this connector's producers; none the guarantee rests on.
    pub producer_override: Settings,
    /// librdkafka settings of this connector's consumers; none the guarantee rests on.
    pub consumer_override: Settings,
    /// All of this as it may be shown.
    pub effective: Effective,
}

const TOPIC_KEYS: [&str; 5] =
    ["topic", "media.topic", "media.requests.topic", "media.retries.topic", "errors.deadletterqueue.topic.name"];

impl ConnectorConfig {
    /// Checks a connector configuration as written.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn from_map(map: &Map, providers: Providers) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        Self::from_map_for(map, providers, Purpose::Run)
    }

    pub(super) fn from_map_for(
        map: &Map,
        providers: Providers,
        purpose: Purpose,
    ) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        let mut values = Values::read(keys::CONNECTOR, map, providers, purpose, keys::of_connect);
        check_tasks(&mut values);
        if purpose.needs("wecom.private.keys") {
            check_keys_given(&mut values);
        }
        check_topics(&mut values);
        check_egress(&mut values);
        let producer_override = check_overrides(&mut values, Client::Producer, "producer.override.");
        let consumer_override = check_overrides(&mut values, Client::Consumer, "consumer.override.");
        let storage = StorageConfig::read(&mut values);
        let topic_creation = TopicCreation::read(&mut values);
        let (Some(storage), Some(topic_creation)) = (storage, topic_creation) else {
            return Err(values.into_errors());
        };
        check_retention(&mut values, &topic_creation);
        values.finish(|values| Self {
            name: values.string("name"),
            corp_id: values.string("wecom.corp.id"),
            secret: values.secret("wecom.secret"),
            sdk_library: values.optional_path("wecom.sdk.library"),
            private_keys: values.optional("wecom.private.keys").map(private_keys).unwrap_or_default(),
            private_keys_dir: values.optional_path("wecom.private.keys.dir"),
            egress: values.choice("sdk.egress", EgressMode::from_name),
            egress_ca_file: values.optional_path("sdk.egress.ca.file"),
            egress_address_family: values.choice("sdk.egress.address.family", AddressFamily::from_name),
            egress_upstream: values.optional("sdk.egress.upstream").map(str::to_owned),
            proxy: values.optional("wecom.proxy").map(str::to_owned),
            proxy_password: values.optional("wecom.proxy.password").map(SecretString::from),
            sdk_timeout_ms: values.int("wecom.timeout.ms"),
            page_limit: values.int("wecom.page.limit"),
            rate_limit_per_minute: values.int("wecom.rate.limit.per.minute"),
            record_timestamp: values.choice("wecom.record.timestamp", RecordTimestamp::from_name),
            poll_interval_ms: values.int("poll.interval.ms"),
            undelivered_age_warning_ms: values.int("wecom.undelivered.age.warning.ms"),
            topic: values.string("topic"),
            media_topic: values.string("media.topic"),
            media_requests_topic: values.string("media.requests.topic"),
            media_retries_topic: values.string("media.retries.topic"),
            dead_letter_topic: values.string("errors.deadletterqueue.topic.name"),
            topic_retention_check: values.choice("topic.retention.check", RetentionCheck::from_name),
            require_offset: values.boolean("require.offset"),
            errors_tolerance: values.choice("errors.tolerance", ErrorsTolerance::from_name),
            errors_retry_delay_max_ms: values.int("errors.retry.delay.max.ms"),
            transaction_timeout_ms: values.int("transaction.timeout.ms"),
            tasks_max: values.int("tasks.max"),
            media_enable: values.boolean("media.enable"),
            media_concurrency: values.int("media.concurrency"),
            media_retry_delay_ms: values.int("media.retry.delay.ms"),
            media_deduplicate_age_max_ms: values
                .boolean("media.deduplicate")
                .then(|| values.int("media.deduplicate.age.max.ms")),
            storage,
            topic_creation,
            producer_override,
            consumer_override,
            effective: values.effective(),
        })
    }

    /// Every topic this connector writes to, with the key that names it.
    pub fn topics(&self) -> [(&'static str, &str); 5] {
        let [messages, media, requests, retries, dead_letters] = TOPIC_KEYS;
        [
            (messages, &self.topic),
            (media, &self.media_topic),
            (requests, &self.media_requests_topic),
            (retries, &self.media_retries_topic),
            (dead_letters, &self.dead_letter_topic),
        ]
    }
}

fn check_tasks(values: &mut Values) {
    if values.text("media.enable").is_some_and(|text| text.eq_ignore_ascii_case("true"))
        && values.int("tasks.max").is_some_and(|tasks| tasks < 2)
    {
        values.problem("tasks.max", "task 0 brings messages only; set at least 2, or media.enable=false");
    }
}

fn check_keys_given(values: &mut Values) {
    let faulty =
        values.problems.iter().any(|it| it.key.as_deref().is_some_and(|key| key.starts_with("wecom.private.keys")));
    if !faulty && values.text("wecom.private.keys").is_none() && values.text("wecom.private.keys.dir").is_none() {
        values.problem(
            "wecom.private.keys.dir",
            "messages cannot be opened without private keys; set it or wecom.private.keys (`wecom-connector keys generate` makes one)",
        );
    }
}

fn check_egress(values: &mut Values) {
    if values.text("sdk.egress") != Some(EgressMode::Direct.name()) {
        return;
    }
    for key in ["sdk.egress.ca.file", "sdk.egress.upstream", "sdk.egress.address.family"] {
        if values.text(key).is_some_and(|value| value != AddressFamily::Any.name()) {
            values.problem(key, "is for the egress guard: leave it out, or set sdk.egress=guarded");
        }
    }
    if values.text("wecom.proxy").is_some_and(|proxy| proxy.to_ascii_lowercase().starts_with("https://")) {
        values.problem(
            "wecom.proxy",
            "with https:// needs sdk.egress=guarded: the vendor's library takes http and socks5 alone",
        );
    }
}

fn check_topics(values: &mut Values) {
    let mut taken = BTreeMap::new();
    for key in TOPIC_KEYS {
        let Some(topic) = values.text(key).map(str::to_owned) else { continue };
        // A name derived from a legal one can still be too long; one that was given is checked already.
        if let Err(message) = super::topics::check_name(&topic) {
            values.problem(key, message);
        }
        if let Some(other) = taken.insert(topic, key) {
            values.problem(key, format!("is the topic of {other} too; each kind of event needs its own"));
        }
    }
}

/// Warns of topics that would be made with a short memory. What they have if they are there already, the start tells.
fn check_retention(values: &mut Values, creation: &TopicCreation) {
    const WEEK_MS: i64 = 7 * 24 * 60 * 60 * 1000;
    if values.text("topic.retention.check") == Some(RetentionCheck::Off.name()) {
        return;
    }
    let topics: Vec<_> = ["topic", "media.topic"].into_iter().filter_map(|key| values.text(key)).collect();
    let is_short = |topic: &&str| {
        let retention_ms = creation.settings_for(topic).configs.get("retention.ms");
        retention_ms.is_none_or(|retention_ms| retention_ms.parse().is_ok_and(|ms| (0..=WEEK_MS).contains(&ms)))
    };
    let short: Vec<_> = topics.into_iter().filter(is_short).collect();
    if !short.is_empty() {
        let message = format!(
            "where {} are made by this worker, they keep their records for a week or less (Kafka's default), and WeCom keeps them for \
             five days: set it, -1 keeps all; or set topic.retention.check=off",
            short.join(" and ")
        );
        values.warnings.push(Warning { key: "topic.creation.default.retention.ms".to_owned(), message });
    }
}

fn check_overrides(values: &mut Values, client: Client, prefix: &str) -> Settings {
    let timeout = values.int("transaction.timeout.ms");
    let settings = values.family(prefix);
    for (name, value) in &settings {
        if let Err(message) = clients::check(client, name, value, timeout) {
            values.problem(&format!("{prefix}{name}"), message);
        }
    }
    settings
}

pub(super) fn check_name(name: &str) -> Result<(), String> {
    // It becomes a part of the transactional.id, of a group id and of metric labels; control characters are refused before.
    if name.len() <= 200 { Ok(()) } else { Err("is too long; take at most 200 bytes".to_owned()) }
}

pub(super) fn check_class(class: &str) -> Result<(), String> {
    match class.rsplit('.').next() {
        Some("WeComArchiveSource" | "WeComArchiveSourceConnector") => Ok(()),
        _ => Err("must be WeComArchiveSource, the only connector here".to_owned()),
    }
}

pub(super) fn check_corp_id(id: &str) -> Result<(), String> {
    if id.len() <= 64 && id.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
        Ok(())
    } else {
        Err("is no corp id: letters and digits, as 我的企业 in the admin console shows it".to_owned())
    }
}

/// The vendor's library puts the secret into a query as it is, and cuts it at `#` (measured): only what is itself
/// there is right.
pub(super) fn check_secret(secret: &str) -> Result<(), String> {
    let is_unreserved = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '~');
    text::check_characters(secret, is_unreserved, "a secret of WeCom (letters, digits, - and _)")
}

/// Stores know keys of visible ASCII alone.
pub(super) fn check_access_key(key: &str) -> Result<(), String> {
    text::check_characters(key, |c| c.is_ascii_graphic(), "an access key (visible ASCII characters)")
}

pub(super) fn check_private_keys(text: &str) -> Result<(), String> {
    let mut versions = std::collections::BTreeSet::new();
    for (index, item) in items(text).into_iter().enumerate() {
        let number = index + 1;
        let Some((version, _)) = private_key(item) else {
            return Err(format!("must be version:path, separated by commas, versions from 1; correct item {number}"));
        };
        if !versions.insert(version) {
            return Err(format!("has the version of item {number} twice; each version has one key"));
        }
    }
    Ok(())
}

fn private_keys(text: &str) -> Vec<(u32, PathBuf)> {
    items(text).into_iter().filter_map(private_key).collect()
}

fn private_key(item: &str) -> Option<(u32, PathBuf)> {
    let (version, path) = item.split_once(':')?;
    let version = version.trim().parse().ok().filter(|&version| version > 0)?;
    let path = path.trim();
    (!path.is_empty()).then(|| (version, path.into()))
}

pub(super) fn check_prefix(prefix: &str) -> Result<(), String> {
    let clean = prefix.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if clean && prefix.len() <= 256 {
        Ok(())
    } else {
        Err("must be names separated by single '/', none at the ends, no \".\" or \"..\", at most 256 bytes".to_owned())
    }
}

/// As the vendor's library takes it (measured), a bare address is HTTP; `https://` is for the guard alone.
pub(super) fn check_proxy(proxy: &str) -> Result<(), String> {
    let schemes = ["http://", "https://", "socks5://"];
    let address = schemes.iter().find_map(|scheme| proxy.strip_prefix(scheme)).unwrap_or(proxy);
    if address.contains('@') {
        return Err("must have no user in it; set wecom.proxy.password".to_owned());
    }
    if is_host_and_port(address) {
        Ok(())
    } else {
        Err("must be http://host:port, https://host:port or socks5://host:port".to_owned())
    }
}

pub(super) fn check_upstream(upstream: &str) -> Result<(), String> {
    if is_host_and_port(upstream) { Ok(()) } else { Err("must be host:port".to_owned()) }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
        !host.is_empty() && host.chars().all(is_host) && port.parse::<u16>().is_ok()
    })
}

pub(super) fn check_endpoint(endpoint: &str) -> Result<(), String> {
    let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
    match host {
        Some(host) if host.contains('@') => {
            Err("must have no user in it; set storage.access.key.id and storage.secret.access.key".to_owned())
        }
        Some(host) if !host.is_empty() => Ok(()),
        _ => Err("must start with https:// (or http://) and name a host".to_owned()),
    }
}
