//! The worker's configuration.

use super::clients::{Client, ClientSettings, Settings};
use super::file::Map;
use super::key::choices;
use super::keys;
use super::listener::Listener;
use super::problem::{ConfigErrors, Warning};
use super::purpose::Purpose;
use super::reference::Providers;
use super::values::{Effective, Values, items};

choices! {
    /// How log lines are written.
    pub enum LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

/// A checked worker configuration. What each field means, its range and default stand in the table of keys.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// `host:port`, separated by commas.
    pub bootstrap_servers: String,
    /// Part of every `transactional.id` and consumer group.
    pub group_id: String,
    /// The compacted topic of the source offsets.
    pub offset_storage_topic: String,
    /// At least 1.
    pub offset_storage_partitions: i32,
    /// `-1` is the broker's default.
    pub offset_storage_replication_factor: i32,
    /// Whether missing topics are made.
    pub topic_creation_enable: bool,
    /// Where HTTP is served, and to whom; `None` is nowhere.
    pub listener: Option<Listener>,
    /// A filter as `tracing_subscriber::EnvFilter` reads it.
    pub log_level: String,
    /// How log lines are written.
    pub log_format: LogFormat,
    /// How long a stop may take, in milliseconds.
    pub task_shutdown_graceful_timeout_ms: u64,
    /// How long a running task may do nothing, in milliseconds.
    pub task_progress_timeout_ms: u64,
    /// Pass-through settings of librdkafka.
    pub clients: ClientSettings,
    /// All of this as it may be shown.
    pub effective: Effective,
}

impl WorkerConfig {
    /// `{group.id}-{connector}-{task}`: stable across restarts, so that a new start fences the one before.
    pub fn transactional_id(&self, connector: &str, task: u32) -> String {
        format!("{}-{connector}-{task}", self.group_id)
    }

    /// Checks a worker configuration as written.
    ///
    /// # Errors
    /// Every problem at once.
    pub fn from_map(map: &Map) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        Self::from_map_for(map, Purpose::Run)
    }

    pub(super) fn from_map_for(map: &Map, purpose: Purpose) -> Result<(Self, Vec<Warning>), ConfigErrors> {
        let mut values = Values::read(keys::WORKER, map, Providers::of(map), purpose, keys::of_connect);
        let settings: Vec<_> = values.family_texts();
        for (name, value) in &settings {
            if let Err(message) = keys::check_client_setting(name, value) {
                values.problem(name, message);
            }
        }
        Listener::check(&mut values);
        values.finish(|values| Self {
            bootstrap_servers: items(&values.string("bootstrap.servers")).join(","),
            group_id: values.string("group.id"),
            offset_storage_topic: values.string("offset.storage.topic"),
            offset_storage_partitions: values.int("offset.storage.partitions"),
            offset_storage_replication_factor: values.int("offset.storage.replication.factor"),
            topic_creation_enable: values.boolean("topic.creation.enable"),
            listener: Listener::of(values),
            log_level: values.string("log.level"),
            log_format: values.choice("log.format", LogFormat::from_name),
            task_shutdown_graceful_timeout_ms: values.int("task.shutdown.graceful.timeout.ms"),
            task_progress_timeout_ms: values.int("task.progress.timeout.ms"),
            clients: client_settings(&settings),
            effective: values.effective(),
        })
    }
}

fn client_settings(settings: &[(String, String)]) -> ClientSettings {
    let of = |wanted: Client| -> Settings {
        let named = settings.iter().map(|(name, value)| (keys::client_setting(name), value));
        named
            .filter(|((client, _), _)| *client == wanted)
            .map(|((_, setting), value)| (setting.to_owned(), value.clone()))
            .collect()
    };
    ClientSettings {
        common: of(Client::Any),
        producer: of(Client::Producer),
        consumer: of(Client::Consumer),
        admin: of(Client::Admin),
    }
}

/// Positions are counted from 1, in characters.
pub(super) fn check_bootstrap_servers(text: &str) -> Result<(), String> {
    for (index, character) in text.chars().enumerate() {
        let instead = match character {
            ';' | '；' | '，' | '、' | '|' => "a comma (,) between brokers",
            '：' => "a colon (:) before the port",
            '．' | '。' => "a dot (.)",
            _ => continue,
        };
        return Err(format!("has {character:?} at character {}; write {instead}", index + 1));
    }
    let servers = items(text);
    for (index, server) in servers.iter().enumerate() {
        check_server(server).map_err(|problem| format!("{problem}; correct item {}", index + 1))?;
    }
    if servers.is_empty() { Err("must name at least one broker as host:port".to_owned()) } else { Ok(()) }
}

fn check_server(server: &str) -> Result<(), String> {
    // `PLAINTEXT://host:port` is what a broker's own configuration says, and librdkafka takes it.
    const PROTOCOLS: [&str; 4] = ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"];
    let address = match server.split_once("://") {
        Some((protocol, address)) if PROTOCOLS.iter().any(|known| known.eq_ignore_ascii_case(protocol)) => address,
        Some((protocol, address)) => {
            return Err(format!("{protocol}:// is no protocol of Kafka; write {address} alone"));
        }
        None => server,
    };
    let shape = "must be host:port, separated by commas";
    let (host, port) = address.rsplit_once(':').ok_or(shape)?;
    let is_ipv6 = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).is_some();
    let strange = host.chars().position(|c| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')));
    if let Some(position) = strange.filter(|_| !is_ipv6) {
        let character = host.chars().nth(position).unwrap_or_default();
        return Err(format!(
            "{shape}, an IPv6 address in []; {character:?} is in the host, at its character {}",
            position + 1
        ));
    }
    let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
    if host.is_empty() || !is_port { Err(shape.to_owned()) } else { Ok(()) }
}

pub(super) fn check_log_level(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in items(text) {
        let (target, level) = directive.split_once('=').unwrap_or(("", directive));
        let target_is_plain = target.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        if !target_is_plain || !LEVELS.contains(&level.to_ascii_lowercase().as_str()) {
            return Err(format!("must be one of {}, or part=level, separated by commas", LEVELS.join(", ")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rows: &[(&str, &str)]) -> Map {
        rows.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect()
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let (config, warnings) = WorkerConfig::from_map(&map(&[("bootstrap.servers", " a:9092, b:9092 ")])).unwrap();
        assert_eq!(config.bootstrap_servers, "a:9092,b:9092");
        assert_eq!(config.group_id, "wecom-connect");
        assert_eq!(config.offset_storage_topic, "wecom-connect-offsets");
        assert_eq!((config.offset_storage_partitions, config.offset_storage_replication_factor), (25, -1));
        assert_eq!(config.listener.unwrap().address, "127.0.0.1:8083".parse().unwrap());
        assert_eq!(config.log_format, LogFormat::Text);
        assert_eq!(warnings, []);
    }

    #[test]
    fn brokers_are_named_as_kafka_names_them() {
        let rows = [
            ("a:9092", Ok(())),
            ("a:9092, b-1.example_x:9093 ,10.0.0.1:1", Ok(())),
            ("PLAINTEXT://a:9092,sasl_ssl://b:1", Ok(())),
            ("[::1]:9092", Ok(())),
            (",", Err("at least one broker")),
            ("kafka://h:9092", Err("kafka:// is no protocol of Kafka; write h:9092 alone; correct item 1")),
            ("https://h:9092", Err("https:// is no protocol")),
            ("a:1;b:2", Err("has ';' at character 4; write a comma")),
            ("a:1，b:2", Err("has '，' at character 4; write a comma")),
            ("a:1、b:2", Err("at character 4; write a comma")),
            ("a：9092", Err("has '：' at character 2; write a colon")),
            ("a。b:9092", Err("at character 2; write a dot")),
            ("a:1 b:2", Err("correct item 1")),
            ("a:1,u@b:2", Err("'@' is in the host, at its character 2; correct item 2")),
            ("a:1,b\u{200b}:2", Err("'\\u{200b}' is in the host, at its character 2; correct item 2")),
            ("::1:9092", Err("an IPv6 address in []")),
            ("a", Err("must be host:port")),
            ("a:0", Err("must be host:port")),
            ("a:99999", Err("must be host:port")),
            ("a:9092/", Err("must be host:port")),
            (":9092", Err("must be host:port")),
        ];
        for (text, expected) in rows {
            let answer = check_bootstrap_servers(text);
            match expected {
                Ok(()) => assert_eq!(answer, Ok(()), "{text}"),
                Err(part) => assert!(answer.clone().is_err_and(|it| it.contains(part)), "{text}: {answer:?}"),
            }
        }
    }

    #[test]
    fn client_settings_find_their_client() {
        let (config, _) = WorkerConfig::from_map(&map(&[
            ("bootstrap.servers", "a:1"),
            ("security.protocol", "sasl_plaintext"),
            ("sasl.mechanism", "PLAIN"),
            ("sasl.username", "u"),
            ("sasl.password", "Sesame"),
            ("producer.linger.ms", "7"),
            ("consumer.fetch.min.bytes", "8"),
            ("admin.client.id", "nine"),
        ]))
        .unwrap();
        let overrides: Settings = [("linger.ms".to_owned(), "70".to_owned())].into_iter().collect();
        let producer = config.clients.for_producer(&overrides);
        assert_eq!(producer["linger.ms"], "70");
        assert_eq!(producer["sasl.password"], "Sesame");
        assert!(!producer.contains_key("fetch.min.bytes"));
        assert_eq!(config.clients.for_admin()["client.id"], "nine");
        assert!(!format!("{config:?}").contains("Sesame"));
    }
}
