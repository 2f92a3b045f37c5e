//! The table of keys. Parsing, checks, defaults, the reference and the REST answers all come from it.

use super::clients::{self, Client};
use super::connector::{self, AddressFamily, EgressMode, ErrorsTolerance, RetentionCheck};
use super::key::{Key, Kind};
use super::storage::{Checksum, FileMode, StorageType};
use super::topics;
use super::worker::{self, LogFormat};
use super::{listener, reference};
use crate::archive::RecordTimestamp;

const MINUTE: i64 = 60_000;
const DAY: i64 = 24 * 60 * MINUTE;

const CLUSTER: &str = "Kafka cluster";
const WORKER_GROUP: &str = "Worker";
const CLIENTS: &str = "Kafka clients";
const COMMON: &str = "Connector";
const WECOM: &str = "WeCom";
const TOPICS: &str = "Topics";
const ERRORS: &str = "Errors";
const MEDIA: &str = "Media";
const STORAGE: &str = "Storage";
const TOPIC_CREATION: &str = "Topic creation";
const OVERRIDES: &str = "Kafka client overrides";

/// The keys of a worker file.
pub(super) const WORKER: &[Key] = &[
    Key::new("bootstrap.servers", Kind::List, CLUSTER, "Brokers to ask first for the cluster, as `host:port`, separated by commas.")
        .required()
        .check(worker::check_bootstrap_servers),
    Key::new("group.id", Kind::String, CLUSTER, "Name of this group of workers. It is part of every `transactional.id` and consumer group, so two groups that share a cluster need two names; a changed name leaves running instances unfenced.")
        .or("wecom-connect").high(),
    Key::new("offset.storage.topic", Kind::String, CLUSTER, "Compacted topic that holds the source offsets, in Kafka Connect's format.")
        .or("wecom-connect-offsets").high().check(topics::check_name),
    Key::new("offset.storage.partitions", Kind::Int { min: 1, max: 10_000 }, CLUSTER, "Partitions of the offset topic, when it is made.")
        .or("25").low(),
    Key::new("offset.storage.replication.factor", Kind::Int { min: -1, max: 1_000 }, CLUSTER, "Replicas of the offset topic, when it is made; `-1` is the broker's default.")
        .or("-1").low().check(topics::check_not_zero),
    Key::new("topic.creation.enable", Kind::Boolean, CLUSTER, "Whether missing topics are made. With `false` they must be there before the start.")
        .or("true"),
    Key::new("listeners", Kind::String, WORKER_GROUP, "Address of the HTTP server for metrics and health, as `http://host:port` or `https://host:port` with an IP address or `localhost`; `http://:8083` listens on every address, IPv4 and IPv6, port 0 takes any free port, and an empty value starts no server. On any address but a loopback one the worker starts only with `rest.bearer.token.file`, `rest.basic.credentials` or `rest.insecure=true`.")
        .or("http://127.0.0.1:8083").high().check(listener::check_address),
    Key::new("listeners.https.ssl.certificate.location", Kind::Path, WORKER_GROUP, "Certificate chain for an `https://` listener, as a PEM file. It is read again when it changes, with the key."),
    Key::new("listeners.https.ssl.key.location", Kind::Path, WORKER_GROUP, "Private key of that certificate, as a PEM file, not encrypted."),
    Key::new("rest.bearer.token.file", Kind::Path, WORKER_GROUP, "File with the token that HTTP clients have to come with, as `Authorization: Bearer …`: at least 16 characters. It is read at each request, so that it can be changed without a restart. `/livez` and `/readyz` stay open, for probes, and tell strangers no more than yes or no.")
        .high(),
    Key::new("rest.basic.credentials", Kind::Password, WORKER_GROUP, "`user:password` that HTTP clients have to come with, by reference: `${file:/path:key}`. Beside a token, either lets a client in.")
        .high().check(listener::check_credentials),
    Key::new("rest.insecure", Kind::Boolean, WORKER_GROUP, "Whether everybody who reaches a listener that is not on a loopback address may read what it tells. For networks that are trusted.")
        .or("false").low(),
    Key::new(reference::EXEC_KEY, Kind::Boolean, WORKER_GROUP, "Whether `${exec:/path/of/program arguments}` may stand in this file and in those of connectors: the program is run at the start, without a shell, and what it prints is the value. It has 10 seconds, and has to end well. Whoever can write these files can then run programs as this worker's user.")
        .or("false").low(),
    Key::new("log.level", Kind::String, WORKER_GROUP, "How much is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`, also by part of the program (`info,wecom_connector::sdk=debug`).")
        .or("info").check(worker::check_log_level),
    Key::new("log.format", Kind::Enum(LogFormat::NAMES), WORKER_GROUP, "Log lines for people (`text`) or for machines (`json`).")
        .or("text"),
    Key::new("task.shutdown.graceful.timeout.ms", Kind::DurationMs { min: 0, max: 10 * MINUTE }, WORKER_GROUP, "How long tasks may take to finish the page in flight when the worker is told to stop. What is not committed by then is aborted and pulled again at the next start.")
        .or("10000").low(),
    Key::new("task.progress.timeout.ms", Kind::DurationMs { min: 1_000, max: DAY }, WORKER_GROUP, "How long a running task may do nothing at all, not even an empty pull, before `/health` calls it stuck.")
        .or("300000").low(),
    family("security.*", "Setting of librdkafka for every client: `security.protocol` is `plaintext`, `ssl`, `sasl_plaintext` or `sasl_ssl`."),
    family("sasl.*", "Setting of librdkafka for every client: `sasl.mechanism` (`PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512`, `OAUTHBEARER`), `sasl.username`, `sasl.password` and the like. With `OAUTHBEARER`, tokens come by the client credentials grant: `sasl.oauthbearer.method=oidc`, `sasl.oauthbearer.token.endpoint.url`, `sasl.oauthbearer.client.id`, `sasl.oauthbearer.client.secret`, `sasl.oauthbearer.scope`."),
    family("https.*", "`https.ca.location`: file with the CA of the OAuth token end point, in PEM (default: the system's roots)."),
    family("ssl.*", "Setting of librdkafka for every client: `ssl.ca.location` (default: the system's roots), `ssl.certificate.location`, `ssl.key.location`, `ssl.key.password` and the like."),
    family("enable.ssl.*", "Setting of librdkafka for every client: `enable.ssl.certificate.verification`, which stays on in production."),
    family("client.*", "Setting of librdkafka for every client: `client.id`, `client.rack`, `client.dns.lookup`."),
    family("socket.*", "Setting of librdkafka for every client."),
    family("broker.address.*", "Setting of librdkafka for every client: `broker.address.family`, `broker.address.ttl`."),
    family("reconnect.backoff.*", "Setting of librdkafka for every client."),
    family("retry.backoff.*", "Setting of librdkafka for every client."),
    family("metadata.*", "Setting of librdkafka for every client."),
    family("connections.*", "Setting of librdkafka for every client: `connections.max.idle.ms`."),
    family("producer.*", "Any setting of librdkafka, for producers, except those that exactly once rests on."),
    family("consumer.*", "Any setting of librdkafka, for consumers, except those that exactly once rests on."),
    family("admin.*", "Any setting of librdkafka, for admin clients."),
];

/// The keys of a connector file.
pub(super) const CONNECTOR: &[Key] = &[
    Key::new("name", Kind::String, COMMON, "Name of the connector. The source offset is kept under it and the `transactional.id` has it: a connector of another name begins anew.")
        .required().check(connector::check_name),
    Key::new("connector.class", Kind::String, COMMON, "The only connector here is `WeComArchiveSource`; a Java-like name that ends in it is taken too.")
        .or("WeComArchiveSource").low().check(connector::check_class),
    Key::new("tasks.max", Kind::Int { min: 1, max: 1_000 }, COMMON, "Number of tasks. Task 0 brings messages, all others bring media, so media need at least 2.")
        .or("2").high(),
    Key::new("wecom.corp.id", Kind::String, WECOM, "The corp's id, from 我的企业 in the admin console.")
        .required().check(connector::check_corp_id),
    Key::new("wecom.secret", Kind::Password, WECOM, "The secret of the chat archive (管理工具 → 会话内容存档), not that of an application. Give it by reference: `${env:WECOM_SECRET}`.")
        .required().check(connector::check_secret),
    Key::new("wecom.private.keys", Kind::List, WECOM, "Private RSA keys by version, as `1:/path/one.pem,2:/path/two.pem`. The version is the one the admin console shows for the public key. PKCS#1 and PKCS#8 PEM, not encrypted.")
        .high().check(connector::check_private_keys),
    Key::new("wecom.private.keys.dir", Kind::Path, WECOM, "Folder with private RSA keys, each named after its version: `private_key_3.pem`, `v3.pem` or `3.pem`, also with `.key` or nothing in place of `.pem`. A private key with another name is not used, and warned of. New files are found without a restart.")
        .high(),
    Key::new("wecom.sdk.library", Kind::Path, WECOM, "The vendor's library, `libWeWorkFinanceSdk_C.so`. When absent, the usual names are looked for where the loader looks.")
        .high(),
    Key::new("wecom.proxy", Kind::String, WECOM, "Proxy on the way to WeCom: `http://host:port`, `https://host:port` (TLS to the proxy too, with `sdk.egress=guarded` alone) or `socks5://host:port`. When absent, `https_proxy` and `no_proxy` of the environment count.")
        .low()
        .check(connector::check_proxy),
    Key::new("wecom.proxy.password", Kind::Password, WECOM, "Name and password for the proxy, as `user:password`.")
        .low(),
    Key::new("sdk.egress", Kind::Enum(EgressMode::NAMES), WECOM, "How the vendor's library reaches WeCom. The library takes a certificate of any issuer: `guarded` has the worker verify WeCom's and send on nothing but the three requests that the library makes; `direct` leaves the library alone, and whoever sits on the way can read the secret and every record.")
        .or("guarded"),
    Key::new("sdk.egress.ca.file", Kind::Path, WECOM, "Root certificates in PEM by which WeCom, and a proxy with `https://`, are recognised, in place of the system's: for a company proxy that ends TLS itself.")
        .low(),
    Key::new("sdk.egress.address.family", Kind::Enum(AddressFamily::NAMES), WECOM, "Which addresses of WeCom, or of the proxy, are used with `sdk.egress=guarded`: `any` tries all, IPv6 and IPv4 in turns, a quarter of a second apart; `v4` and `v6` use one family alone.")
        .or("any").low(),
    Key::new("sdk.egress.upstream", Kind::String, WECOM, "For tests and recorded mirrors: `host:port` to connect to in place of WeCom's. Its certificate has to be for WeCom's name all the same.")
        .low().check(connector::check_upstream),
    Key::new("wecom.timeout.ms", Kind::DurationMs { min: 1_000, max: 10 * MINUTE }, WECOM, "Time limit of one call to WeCom; the vendor's library counts in whole seconds. A page of large groups can take half a minute.")
        .or("30000"),
    Key::new("wecom.page.limit", Kind::Int { min: 1, max: 1_000 }, WECOM, "Most records in one page. A page is one Kafka transaction. It is halved by itself when WeCom finds a page too large.")
        .or("1000"),
    Key::new("wecom.rate.limit.per.minute", Kind::Int { min: 1, max: 600 }, WECOM, "Most pulls a minute. WeCom allows a corp 600, all its programs together.")
        .or("600"),
    Key::new("wecom.record.timestamp", Kind::Enum(RecordTimestamp::NAMES), WECOM, "Timestamp of the Kafka records: the time of the `message`, or of the `ingest`. A message's time that cannot be right (0, missing, ahead) becomes the newest one before it that can, and one that the topic does not take becomes the nearest that it takes; then the header `wecom.timestamp_from` says so. The message's own time always stands in the event.")
        .or("message").low(),
    Key::new("poll.interval.ms", Kind::DurationMs { min: 1, max: DAY }, WECOM, "Pause between pulls when the archive is drained.")
        .or("1000"),
    Key::new("wecom.undelivered.age.warning.ms", Kind::DurationMs { min: 1_000, max: 5 * DAY }, WECOM, "Age of the oldest record not yet delivered from which the connector's status and the log warn. WeCom deletes records after five days.")
        .or("21600000").low(),
    Key::new("topic", Kind::String, TOPICS, "Topic for the messages.")
        .required().check(topics::check_name),
    Key::new("topic.retention.check", Kind::Enum(RetentionCheck::NAMES), TOPICS, "What to do when the topic of messages, media references or dead letters deletes what is seven days old or younger (Kafka's default), or by size: `warn` in the log and the status, `refuse` to start, or `off`.")
        .or("warn"),
    Key::new("require.offset", Kind::Boolean, TOPICS, "Whether a connector without a stored source offset refuses to start. `false`: it begins with the oldest record that WeCom has, and marks what its topics hold already (`wecom.republished`). `true` guards a running archive against a lost offset topic or a changed `name`; set it after the first start.")
        .or("false"),
    Key::new("media.topic", Kind::String, TOPICS, "Topic for the media reference events: what was stored where, or why not.")
        .or_derived("topic", "-media").check(topics::check_name),
    Key::new("media.requests.topic", Kind::String, TOPICS, "Topic for the media that are to be brought; the media tasks share its partitions.")
        .or_derived("topic", "-media-requests").low().check(topics::check_name),
    Key::new("media.retries.topic", Kind::String, TOPICS, "Topic for the media that are to be tried again later.")
        .or_derived("topic", "-media-retries").low().check(topics::check_name),
    Key::new("errors.deadletterqueue.topic.name", Kind::String, ERRORS, "Topic for the records that could not be opened, each kept whole as WeCom gave it, with the reason in its headers.")
        .or_derived("topic", "-dead-letters").check(topics::check_name),
    Key::new("errors.tolerance", Kind::Enum(ErrorsTolerance::NAMES), ERRORS, "What a record that cannot be opened does: `all` sends it to the dead letters and goes on, `none` stops the task before it.")
        .or("all"),
    Key::new("errors.retry.delay.max.ms", Kind::DurationMs { min: 1, max: DAY }, ERRORS, "Longest pause between tries of a call that fails for a passing reason. Such calls are tried for ever.")
        .or("60000").low(),
    Key::new("transaction.timeout.ms", Kind::DurationMs { min: 1_000, max: 15 * MINUTE }, ERRORS, "How long a transaction may stay open before the broker aborts it. No more than the broker's `transaction.max.timeout.ms`; readers wait for it when a worker dies in the middle.")
        .or("30000").low(),
    Key::new("media.enable", Kind::Boolean, MEDIA, "Whether media are brought to storage. With `false` the requests are still published, and wait.")
        .or("true").high(),
    Key::new("media.concurrency", Kind::Int { min: 1, max: 256 }, MEDIA, "Files one media task brings at a time. Each takes up to 17 MiB of memory, whatever its size.")
        .or("4"),
    Key::new("media.retry.delay.ms", Kind::DurationMs { min: 1, max: DAY }, MEDIA, "Pause before a file that failed is tried again, up to five days after its message. It doubles with each try, at most six times and not beyond an hour.")
        .or("60000").low(),
    Key::new("media.deduplicate", Kind::Boolean, MEDIA, "Whether a file is not fetched again whose declared MD5 and size are those of one that is stored already: its reference event leads to that object. With `false` each file of each message has an object of its own.")
        .or("true"),
    Key::new("media.deduplicate.age.max.ms", Kind::DurationMs { min: MINUTE, max: 36_500 * DAY }, MEDIA, "Age of an object from which it is not referred to again: the file is stored anew. Where the bucket deletes by age, it has to keep objects that much longer than their newest message is to be kept.")
        .or("2592000000"),
    Key::new("storage.type", Kind::Enum(StorageType::NAMES), STORAGE, "Where media go: a local folder (`fs`), S3 and all that speak it (`s3`), Tencent COS, Aliyun OSS, Huawei OBS, Google Cloud Storage (`gcs`), Azure Blob (`azblob`).")
        .or("fs").high(),
    Key::new("storage.prefix", Kind::String, STORAGE, "First part of every object's key, with no `/` at its ends.")
        .check(connector::check_prefix),
    Key::new("storage.path", Kind::Path, STORAGE, "Folder for `storage.type=fs`. When absent, `wecom-media` in the working folder.")
        .high(),
    Key::new("storage.bucket", Kind::String, STORAGE, "Bucket, for every type but `fs`; the container for `azblob`.")
        .high(),
    Key::new("storage.endpoint", Kind::String, STORAGE, "Address of the service, as `https://host`. Needed for `cos`, `oss`, `obs`, `azblob` and for S3 that is not Amazon's.")
        .high().check(connector::check_endpoint),
    Key::new("storage.region", Kind::String, STORAGE, "Region, for `s3`. When absent and an endpoint is given, `us-east-1`."),
    Key::new("storage.access.key.id", Kind::String, STORAGE, "Id of the access key (the account's name for `azblob`). When absent, the service's usual sources are asked (environment, instance role).")
        .high().check(connector::check_access_key),
    Key::new("storage.secret.access.key", Kind::Password, STORAGE, "Secret of the access key; for `gcs`, the service account's JSON in base64.")
        .high().check(connector::check_access_key),
    Key::new("storage.ca.file", Kind::Path, STORAGE, "Certificates in PEM that are trusted beside the system's as the service is reached: for an endpoint whose certificate a private authority has signed."),
    Key::new("storage.checksum", Kind::Enum(Checksum::NAMES), STORAGE, "Checksum that goes with each object and part, for `s3`: `crc32c`, which buckets with Object Lock ask for, or `none`, for a service that refuses it.")
        .or("crc32c").low(),
    Key::new("storage.file.mode", Kind::Enum(FileMode::NAMES), STORAGE, "Mode of the files that are made, for `fs`, whatever the umask is: for their owner alone (`0600`), for the group too (`0640`), or for all (`0644`). Folders that are made get the same with the right to enter.")
        .or("0640"),
    Key::new("storage.option.*", Kind::String, STORAGE, "Any option of OpenDAL for the type, such as `storage.option.enable_virtual_host_style`. Secret ones are not shown.")
        .low(),
    Key::new("topic.creation.default.replication.factor", Kind::Int { min: -1, max: 32_767 }, TOPIC_CREATION, "Replicas of topics that are made; `-1` is the broker's default.")
        .or("-1").check(topics::check_not_zero),
    Key::new("topic.creation.default.partitions", Kind::Int { min: -1, max: 100_000 }, TOPIC_CREATION, "Partitions of topics that are made; `-1` is the broker's default. Partitions of the media requests bound the media tasks that can work at once.")
        .or("-1").check(topics::check_not_zero),
    Key::new("topic.creation.groups", Kind::List, TOPIC_CREATION, "Further groups of topics with settings of their own, the first that matches counts. Each needs `topic.creation.<group>.include`."),
    Key::new("topic.creation.*", Kind::String, TOPIC_CREATION, "`topic.creation.<group>.include` and `.exclude` are regular expressions on the whole topic name, separated by commas; `.replication.factor` and `.partitions` as above; any other name is a topic setting, such as `topic.creation.default.compression.type`.")
        .low(),
    Key::new("producer.override.*", Kind::String, OVERRIDES, "Any setting of librdkafka for this connector's producers, except those that exactly once rests on.")
        .low(),
    Key::new("consumer.override.*", Kind::String, OVERRIDES, "Any setting of librdkafka for this connector's consumers, except those that exactly once rests on.")
        .low(),
];

const fn family(name: &'static str, documentation: &'static str) -> Key {
    Key::new(name, Kind::String, CLIENTS, documentation).low()
}

/// The client that a worker's pass-through key is for, and the name librdkafka knows it by.
pub(super) fn client_setting(name: &str) -> (Client, &str) {
    for (prefix, client) in
        [("producer.", Client::Producer), ("consumer.", Client::Consumer), ("admin.", Client::Admin)]
    {
        if let Some(rest) = name.strip_prefix(prefix) {
            return (client, rest);
        }
    }
    (Client::Any, name)
}

/// Keys of Kafka Connect that have no use here, in either file, by name or prefix: what to say of them.
pub(super) fn of_connect(name: &str) -> Option<&'static str> {
    const ROWS: &[(&str, &str)] = &[
        ("key.converter", "is ignored: events are JSON bytes as schemas/ describes them, there are no converters"),
        ("value.converter", "is ignored: events are JSON bytes as schemas/ describes them, there are no converters"),
        ("header.converter", "is ignored: headers are text, there are no converters"),
        ("transforms", "is ignored: there are no transforms; use a stream processor behind the topic"),
        ("predicates", "is ignored: there are no transforms; use a stream processor behind the topic"),
        (
            "config.providers",
            "is ignored: ${env:…}, ${file:…} and ${dir:…} are always there, ${exec:…} by config.providers.exec.enable",
        ),
        ("plugin.", "is ignored: the connector is built in"),
        ("exactly.once.", "is ignored: exactly once is always on"),
        ("transaction.boundary", "is ignored: a page is always one transaction"),
        ("offset.flush.", "is ignored: the offset is committed with every page"),
        ("offset.storage.file.", "is ignored: offsets are always in offset.storage.topic"),
        ("offsets.storage.topic", "is ignored: all connectors of a worker share offset.storage.topic"),
        ("rest.", "is ignored; see listeners"),
        (
            "listeners.https.",
            "is ignored: certificate and key are PEM files; see listeners.https.ssl.certificate.location",
        ),
        ("tasks.max.enforce", "is ignored: tasks.max always holds"),
        ("errors.log.", "is ignored: errors are always logged, message text never is"),
        ("errors.retry.timeout", "is ignored: passing errors are tried again for ever"),
    ];
    ROWS.iter().find(|(start, _)| name.starts_with(start)).map(|&(_, message)| message)
}

/// Checks a pass-through setting of a worker.
pub(super) fn check_client_setting(name: &str, value: &str) -> Result<(), String> {
    let (client, setting) = client_setting(name);
    clients::check(client, setting, value, None)
}
