//! Settings that pass through to librdkafka, and those that may not because the guarantee rests on them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;

/// Names and values that pass through to another library. `Debug` shows the names only: a value may be a password.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Settings(pub BTreeMap<String, String>);

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Deref for Settings {
    type Target = BTreeMap<String, String>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Settings {
    type Item = (&'a String, &'a String);
    type IntoIter = std::collections::btree_map::Iter<'a, String, String>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl FromIterator<(String, String)> for Settings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// The librdkafka settings of a worker.
#[derive(Debug, Clone, Default)]
pub struct ClientSettings {
    /// For every client: `security.*`, `sasl.*`, `ssl.*`, `client.*` and the like.
    pub common: Settings,
    /// For producers, without `producer.`.
    pub producer: Settings,
    /// For consumers, without `consumer.`.
    pub consumer: Settings,
    /// For admin clients, without `admin.`.
    pub admin: Settings,
}

impl ClientSettings {
    /// All settings of a producer; the connector's come last and win.
    pub fn for_producer(&self, overrides: &Settings) -> Settings {
        merge(&[&self.common, &self.producer, overrides])
    }

    /// All settings of a consumer; the connector's come last and win.
    pub fn for_consumer(&self, overrides: &Settings) -> Settings {
        merge(&[&self.common, &self.consumer, overrides])
    }

    /// All settings of an admin client.
    pub fn for_admin(&self) -> Settings {
        merge(&[&self.common, &self.admin])
    }
}

fn merge(layers: &[&Settings]) -> Settings {
    layers.iter().flat_map(|layer| layer.iter().map(|(name, value)| (name.clone(), value.clone()))).collect()
}

/// The client a setting is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Any,
    Producer,
    Consumer,
    Admin,
}

/// Whether a setting's value must not be shown, by its name.
pub(super) fn looks_secret(name: &str) -> bool {
    [
        "password",
        "passphrase",
        "secret",
        "token",
        "credential",
        "pem",
        "private",
        "oauthbearer.config",
        "jaas",
        "account_key",
        "customer_key",
    ]
    .iter()
    .any(|part| name.to_ascii_lowercase().contains(part))
        && !name.starts_with("wecom.private.keys")
}

/// Checks one pass-through setting: not one the guarantee rests on, and one librdkafka takes.
/// `transaction_timeout_ms` is known for a connector's own settings only.
///
/// # Errors
/// A sentence that says why not and what to do, and never the value.
pub(super) fn check(
    client: Client,
    name: &str,
    value: &str,
    transaction_timeout_ms: Option<i64>,
) -> Result<(), String> {
    if let Some(reason) = refused(client, name, value, transaction_timeout_ms) {
        return Err(reason);
    }
    if matches!(name, "sasl.mechanism" | "sasl.mechanisms") && value.eq_ignore_ascii_case("AWS_MSK_IAM") {
        return Err(
            "AWS_MSK_IAM is a mechanism of AWS's Java library alone; let the cluster have SASL/SCRAM (SCRAM-SHA-512) or client \
             certificates beside it, and use these"
                .to_owned(),
        );
    }
    if let Some(answer) = oauth(name, value) {
        return answer;
    }
    if let Some(instead) = java_only(name) {
        return Err(format!("is a setting of Kafka's Java client; {instead}"));
    }
    let mut config = ClientConfig::new();
    match config.set(name, value).create_native_config() {
        Ok(_) => Ok(()),
        // Not librdkafka's own words: they quote the value.
        Err(KafkaError::ClientConfig(RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN, ..)) => {
            Err("librdkafka has no such setting; see its CONFIGURATION.md for the name".to_owned())
        }
        Err(_) => Err("librdkafka refuses the value; see its CONFIGURATION.md for what it takes".to_owned()),
    }
}

/// Why a setting is not the user's to choose.
fn refused(client: Client, name: &str, value: &str, transaction_timeout_ms: Option<i64>) -> Option<String> {
    let number = value.parse::<i64>().ok();
    let reason = match name {
        "bootstrap.servers" | "metadata.broker.list" => {
            "records, offsets and requests must be on one cluster; set bootstrap.servers in the worker file"
        }
        "plugin.library.paths" => "it loads foreign code into this process; remove it",
        "enabled_events" | "builtin.features" | "opaque" | "default_topic_conf" => {
            "it belongs to the program, not to its configuration; remove it"
        }
        _ if name.starts_with("test.") || name.starts_with("ut_") => "it is for librdkafka's own tests; remove it",
        _ => "",
    };
    if !reason.is_empty() {
        return Some(format!("may not be set: {reason}"));
    }
    let reason = match (client, name) {
        (Client::Producer, "transactional.id") => {
            "it is made from group.id, the connector's name and the task, so that a second instance is fenced; remove it"
        }
        (Client::Producer, "enable.idempotence" | "enable.gapless.guarantee") => {
            "exactly once rests on the idempotent producer, which is always on; remove it"
        }
        (Client::Producer, "acks" | "request.required.acks") => {
            "a committed record must be on all in-sync replicas, it is always acks=all; remove it"
        }
        (Client::Producer, "partitioner" | "partitioner_cb") => {
            "order and joins rest on Java's murmur2 partitioner, which is always used; remove it"
        }
        (Client::Producer, "queuing.strategy" | "msg_order_cmp") => "order in a conversation rests on it; remove it",
        (Client::Producer, "delivery.report.only.error") => {
            "a page is committed when every delivery is reported; remove it"
        }
        (Client::Producer, "transaction.timeout.ms") => "set transaction.timeout.ms of the connector, without a prefix",
        (Client::Producer, "max.in.flight" | "max.in.flight.requests.per.connection")
            if number.is_none_or(|number| number > 5) =>
        {
            "the idempotent producer keeps order up to 5; set 1 to 5"
        }
        (Client::Producer, "retries" | "message.send.max.retries") if number.is_none_or(|number| number < 1) => {
            "the idempotent producer must be able to send again; set at least 1, or remove it"
        }
        (Client::Producer, "message.timeout.ms" | "delivery.timeout.ms") => match transaction_timeout_ms {
            Some(limit) if number.is_some_and(|number| number > 0 && number < limit) => return None,
            Some(_) => {
                "a delivery must be given up before its transaction; set less than transaction.timeout.ms, or remove it"
            }
            None => {
                "it is held against the connector's transaction.timeout.ms; set producer.override.message.timeout.ms there"
            }
        },
        (Client::Consumer, "isolation.level") => {
            "aborted transactions must stay unseen, it is always read_committed; remove it"
        }
        (
            Client::Consumer,
            "enable.auto.commit" | "auto.commit.enable" | "enable.auto.offset.store" | "offset.store.method",
        ) => "offsets are committed in the transaction that carries the results; remove it",
        (Client::Consumer, "group.id" | "group.instance.id") => {
            "the media tasks' group is made from group.id and the connector's name; remove it"
        }
        (Client::Consumer, "auto.offset.reset" | "topic.auto.offset.reset") => {
            "a media request must never be skipped, it is always earliest; remove it"
        }
        (Client::Consumer, "enable.partition.eof") => "the program sets it where it needs it; remove it",
        _ => return None,
    };
    Some(format!("may not be set: {reason}"))
}

/// The settings of OAuth tokens, which are fetched here and not by librdkafka; `None` of others.
fn oauth(name: &str, value: &str) -> Option<Result<(), String>> {
    let refused = |reason: &str| Some(Err(reason.to_owned()));
    match name {
        "sasl.oauthbearer.method" if ["default", "oidc"].contains(&value) => Some(Ok(())),
        "sasl.oauthbearer.method" => refused("must be oidc or default"),
        "sasl.oauthbearer.grant.type" if value == "client_credentials" => Some(Ok(())),
        "sasl.oauthbearer.grant.type" => refused("must be client_credentials, the one grant that is supported"),
        "sasl.oauthbearer.token.endpoint.url" => {
            let is_here = ["127.0.0.1", "[::1]", "localhost"].iter().any(|host| {
                let rest = value.strip_prefix("http://").and_then(|rest| rest.strip_prefix(host));
                rest.is_some_and(|rest| rest.starts_with([':', '/']))
            });
            if value.starts_with("https://") || is_here {
                return Some(Ok(()));
            }
            refused(
                "must begin with https://, because the client's secret goes there; http:// is for this machine alone",
            )
        }
        // librdkafka knows these only where libcurl is built in.
        "https.ca.location"
        | "sasl.oauthbearer.client.id"
        | "sasl.oauthbearer.client.secret"
        | "sasl.oauthbearer.scope" => Some(Ok(())),
        _ if name.starts_with("https.")
            || ["sasl.oauthbearer.extensions", "sasl.oauthbearer.metadata.authentication.type"].contains(&name)
            || name.starts_with("sasl.oauthbearer.assertion.") =>
        {
            refused("is not supported: tokens are fetched by the client credentials grant alone; remove it")
        }
        _ => None,
    }
}

/// What to write instead of a setting that only Kafka's Java client has: Connect's worker files have these.
fn java_only(name: &str) -> Option<&'static str> {
    Some(match name {
        "sasl.jaas.config" => "set sasl.username and sasl.password instead",
        "sasl.client.callback.handler.class" | "sasl.login.callback.handler.class" => {
            "set sasl.oauthbearer.method=oidc and sasl.oauthbearer.* instead"
        }
        "ssl.truststore.location" | "ssl.truststore.certificates" => "set ssl.ca.location to a PEM file instead",
        "ssl.truststore.password" | "ssl.truststore.type" => "leave it out: ssl.ca.location is a PEM file",
        "ssl.keystore.type" => {
            "set ssl.keystore.location to a PKCS#12 file, or ssl.certificate.location and ssl.key.location"
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guarantee_rests_on_is_refused_and_the_rest_passes() {
        use Client::{Admin, Any, Consumer, Producer};
        let rows: &[(Client, &str, &str, Result<(), &str>)] = &[
            (Producer, "linger.ms", "20", Ok(())),
            (Producer, "compression.type", "zstd", Ok(())),
            (Producer, "max.in.flight", "5", Ok(())),
            (Producer, "max.in.flight.requests.per.connection", "6", Err("set 1 to 5")),
            (Producer, "message.timeout.ms", "29999", Ok(())),
            (Producer, "message.timeout.ms", "30000", Err("set less than transaction.timeout.ms")),
            (Producer, "delivery.timeout.ms", "0", Err("set less than transaction.timeout.ms")),
            (Producer, "transactional.id", "x", Err("fenced")),
            (Producer, "enable.idempotence", "true", Err("always on")),
            (Producer, "acks", "1", Err("acks=all")),
            (Producer, "request.required.acks", "0", Err("acks=all")),
            (Producer, "partitioner", "random", Err("murmur2")),
            (Producer, "queuing.strategy", "lifo", Err("order")),
            (Producer, "delivery.report.only.error", "true", Err("reported")),
            (Producer, "transaction.timeout.ms", "1", Err("without a prefix")),
            (Producer, "retries", "0", Err("at least 1")),
            (Producer, "bootstrap.servers", "b:1", Err("worker file")),
            (Producer, "metadata.broker.list", "b:1", Err("worker file")),
            (Producer, "plugin.library.paths", "x.so", Err("foreign code")),
            (Producer, "test.mock.num.brokers", "3", Err("tests")),
            (Producer, "compression.type", "brotli", Err("refuses the value")),
            (Producer, "no.such.setting", "1", Err("no such setting")),
            (Consumer, "fetch.wait.max.ms", "100", Ok(())),
            (Consumer, "isolation.level", "read_uncommitted", Err("read_committed")),
            (Consumer, "enable.auto.commit", "true", Err("in the transaction")),
            (Consumer, "group.id", "x", Err("made from group.id")),
            (Consumer, "auto.offset.reset", "latest", Err("earliest")),
            (Admin, "socket.timeout.ms", "1000", Ok(())),
            (Any, "security.protocol", "sasl_ssl", Ok(())),
            (Any, "security.protocol", "SASL_SSL", Ok(())),
            (Any, "sasl.mechanism", "SCRAM-SHA-512", Ok(())),
            (Any, "sasl.mechanism", "AWS_MSK_IAM", Err("SCRAM-SHA-512")),
            (Any, "sasl.mechanisms", "aws_msk_iam", Err("SCRAM-SHA-512")),
            (Any, "sasl.password", "x", Ok(())),
            (Any, "sasl.oauthbearer.method", "oidc", Ok(())),
            (Any, "sasl.oauthbearer.method", "OIDC2", Err("oidc or default")),
            (Any, "sasl.oauthbearer.client.id", "x", Ok(())),
            (Any, "sasl.oauthbearer.client.secret", "x", Ok(())),
            (Any, "sasl.oauthbearer.token.endpoint.url", "https://idp.example/token", Ok(())),
            (Any, "sasl.oauthbearer.token.endpoint.url", "http://127.0.0.1:8080/token", Ok(())),
            (Any, "sasl.oauthbearer.token.endpoint.url", "http://localhost.example/token", Err("https://")),
            (Any, "sasl.oauthbearer.token.endpoint.url", "http://idp.example/token", Err("https://")),
            (Any, "sasl.oauthbearer.extensions", "a=b", Err("not supported")),
            (
                Any,
                "sasl.oauthbearer.grant.type",
                "urn:ietf:params:oauth:grant-type:jwt-bearer",
                Err("client_credentials"),
            ),
            (Any, "sasl.jaas.config", "x", Err("sasl.username")),
            (Any, "ssl.truststore.location", "x", Err("ssl.ca.location")),
        ];
        for &(client, name, value, expected) in rows {
            let answer = check(client, name, value, Some(30_000));
            match expected {
                Ok(()) => assert_eq!(answer, Ok(()), "{name}"),
                Err(part) => assert!(answer.clone().is_err_and(|it| it.contains(part)), "{name}: {answer:?}"),
            }
        }
        assert!(check(Producer, "message.timeout.ms", "5000", None).unwrap_err().contains("producer.override."));
        let settings: Settings = [("sasl.password".to_owned(), "Sesame".to_owned())].into_iter().collect();
        assert_eq!(format!("{settings:?}"), "{\"sasl.password\"}");
    }
}
