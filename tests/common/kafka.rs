//! Stock Kafka (KRaft): a lone broker, or several.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use tempfile::TempDir;

use super::broker::{self, Broker};
use super::{PATIENCE, free_port, wait_for};

/// The user of the broker's SASL listeners.
pub const SASL_USER: &str = "connector";
/// The password of [`SASL_USER`]; every other one is refused.
pub const SASL_PASSWORD: &str = "c0nnector-Passw0rd-Echidna";

/// A cluster on loopback. Of several brokers, each is a controller too, and every topic is on all of them.
#[derive(Debug)]
pub struct Kafka {
    brokers: Vec<Broker>,
    bootstrap: String,
    secured: Option<Secured>,
}

/// Addresses of the listeners that ask who is there. PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 and
/// OAUTHBEARER, with tokens that nobody has signed, are on for the SASL ones.
#[derive(Debug)]
pub struct Secured {
    pub ssl: String,
    pub sasl_plaintext: String,
    pub sasl_ssl: String,
    /// Certificate to trust, as PEM.
    pub ca: PathBuf,
    /// Key and certificate of the broker, as PEM.
    broker: PathBuf,
    _folder: TempDir,
}

impl Kafka {
    /// Starts a broker for this test alone.
    pub fn start() -> Kafka {
        Kafka::start_with("", false)
    }

    /// As [`Kafka::start`], with TLS and SASL listeners beside the plain one.
    pub fn start_secured() -> Kafka {
        Kafka::start_with("", true)
    }

    /// As [`Kafka::start_secured`], with an authorizer: [`SASL_USER`] may do what [`Kafka::allow`] says, and who comes without a
    /// name may do everything.
    pub fn start_authorized() -> Kafka {
        let authorizer = "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
                          super.users=User:ANONYMOUS";
        Kafka::start_with(authorizer, true)
    }

    /// Lets [`SASL_USER`] do these things with topics, as `&["Read", "Describe"]`.
    pub fn allow(&self, operations: &[&str], topics: &[&str]) {
        let principal = format!("User:{SASL_USER}");
        let mut arguments = vec!["--add", "--allow-principal", &principal];
        arguments.extend(operations.iter().flat_map(|operation| ["--operation", operation]));
        arguments.extend(topics.iter().flat_map(|topic| ["--topic", topic]));
        self.tool("org.apache.kafka.tools.AclCommand", &arguments);
    }

    /// The names of all topics.
    pub fn topics(&self) -> Vec<String> {
        let metadata = self.admin().inner().fetch_metadata(None, PATIENCE).expect("an answer");
        metadata.topics().iter().map(|topic| topic.name().to_owned()).collect()
    }

    /// The broker that the tests of one binary share. Tests keep apart by [`super::unique`] names.
    pub fn shared() -> &'static Kafka {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(Kafka::start)
    }

    /// Starts a broker with further lines for its `server.properties`.
    pub fn start_with(properties: &str, secured: bool) -> Kafka {
        Kafka::prepare(properties, secured, vec![Broker::new(1, None)])
    }

    /// Starts as many brokers as there are addresses, each with a listener behind a proxy: its clients are told to come by that
    /// address. See [`Broker::behind_proxy`].
    pub fn start_proxied(properties: &str, advertised: &[String]) -> Kafka {
        let brokers = advertised.iter().enumerate().map(|(index, address)| Broker::new(index + 1, Some(address)));
        Kafka::prepare(properties, false, brokers.collect())
    }

    fn prepare(properties: &str, secured: bool, mut brokers: Vec<Broker>) -> Kafka {
        let secured = secured.then(Secured::new);
        let joined = |of: fn(&Broker) -> String| brokers.iter().map(of).collect::<Vec<_>>().join(",");
        let bootstrap = joined(|broker| broker.address().to_owned());
        let is_alone = brokers.len() == 1;
        let quorum = if is_alone {
            let voter = brokers[0].voter();
            format!("controller.quorum.bootstrap.servers={}", voter.split_once('@').expect("an address").1)
        } else {
            format!("controller.quorum.voters={}", joined(Broker::voter))
        };
        for broker in &brokers {
            broker.write_files(brokers.len(), &quorum, secured.as_ref(), properties);
            broker.format(is_alone, secured.is_some());
        }
        brokers.iter_mut().for_each(Broker::spawn);
        for broker in &mut brokers {
            broker.wait_started(0);
        }
        Kafka { brokers, bootstrap, secured }
    }

    /// Addresses for clients without TLS and SASL.
    pub fn bootstrap(&self) -> &str {
        &self.bootstrap
    }

    pub fn brokers(&mut self) -> &mut [Broker] {
        &mut self.brokers
    }

    /// The listeners of a broker from [`Kafka::start_secured`].
    pub fn secured(&self) -> &Secured {
        self.secured.as_ref().expect("a broker from Kafka::start_secured")
    }

    /// The broker that leads a partition, as an index of [`Kafka::brokers`].
    pub fn leader(&self, topic: &str, partition: i32) -> usize {
        let client = self.admin();
        wait_for(&format!("a leader of {topic}-{partition}"), PATIENCE, || {
            let metadata = client.inner().fetch_metadata(Some(topic), PATIENCE).ok()?;
            let partitions = metadata.topics().first()?.partitions();
            let leader = partitions.iter().find(|known| known.id() == partition)?.leader();
            usize::try_from(leader).ok()?.checked_sub(1)
        })
    }

    /// The broker that coordinates the transactions of a producer, as an index of [`Kafka::brokers`].
    pub fn coordinator(&self, transactional_id: &str) -> usize {
        // As Java's `String.hashCode`, without its sign.
        let hash = transactional_id.bytes().fold(0_i32, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
        self.leader("__transaction_state", (hash & i32::MAX) % broker::TRANSACTION_PARTITIONS)
    }

    /// Makes a topic.
    pub fn create_topic(&self, topic: &str, partitions: i32) {
        self.create_topic_with(topic, partitions, &[]);
    }

    /// Makes a topic with settings of its own.
    pub fn create_topic_with(&self, topic: &str, partitions: i32, settings: &[(&str, &str)]) {
        let mut topic = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
        for (name, value) in settings {
            topic = topic.set(name, value);
        }
        let results = futures::executor::block_on(self.admin().create_topics([&topic], &AdminOptions::new()));
        results.expect("an answer")[0].as_ref().expect("a new topic");
    }

    /// Runs one of Kafka's own tools, as `tool("org.apache.kafka.tools.TopicCommand", &["--list"])`, and gives its stdout.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        let output = broker::java()
            .args(["-XX:TieredStopAtLevel=1", class, "--bootstrap-server", &self.bootstrap])
            .args(arguments)
            .output()
            .expect("java");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{class} {arguments:?}: {}\n{stderr}", output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.bootstrap).create().expect("an admin client")
    }
}

impl Secured {
    fn new() -> Secured {
        let folder = tempfile::Builder::new().prefix("kafka-tls-").tempdir().expect("a folder for certificates");
        // By name, not by address: the certificate is checked against what the client was told to connect to.
        let address = || format!("localhost:{}", free_port());
        let ca = folder.path().join("broker.crt");
        let key = folder.path().join("broker.key");
        let output = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"])
            .args(["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&ca)
            .output()
            .expect("openssl: run tools/real-parts system");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
        let pem = [&key, &ca].map(|path| std::fs::read_to_string(path).expect("a PEM file from openssl")).concat();
        let broker = folder.path().join("broker.pem");
        std::fs::write(&broker, pem).expect("broker.pem");
        Secured { ssl: address(), sasl_plaintext: address(), sasl_ssl: address(), ca, broker, _folder: folder }
    }

    pub(super) fn server_properties(&self) -> String {
        let mut lines = format!(
            "ssl.keystore.type=PEM\nssl.keystore.location={}\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER\n",
            self.broker.display()
        );
        for listener in ["sasl_plaintext", "sasl_ssl"] {
            let module = "org.apache.kafka.common.security";
            write!(
                lines,
                "listener.name.{listener}.plain.sasl.jaas.config={module}.plain.PlainLoginModule required \
                 user_{SASL_USER}=\"{SASL_PASSWORD}\";\n\
                 listener.name.{listener}.scram-sha-256.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
                 listener.name.{listener}.scram-sha-512.sasl.jaas.config={module}.scram.ScramLoginModule required;\n\
                 listener.name.{listener}.oauthbearer.sasl.jaas.config={module}.oauthbearer.OAuthBearerLoginModule required \
                 unsecuredLoginStringClaim_sub=\"broker\";\n"
            )
            .expect("write to a string");
        }
        lines
    }
}
