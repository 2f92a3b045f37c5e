//! The whole way from a map of strings to typed structs, by rows and for every key of the table.

use secrecy::ExposeSecret;

use super::file::Map;
use super::key::{Default, Key, Kind};
use super::keys::{CONNECTOR, WORKER};
use super::*;
use crate::archive::RecordTimestamp;

fn map(rows: &[(&str, &str)]) -> Map {
    rows.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn connector_with(rows: &[(&str, &str)]) -> Result<(ConnectorConfig, Vec<Warning>), ConfigErrors> {
    let mut all = map(&[
        ("name", "archive"),
        ("topic", "chat"),
        ("wecom.corp.id", "wwcorp"),
        ("wecom.secret", "Sesame"),
        ("wecom.private.keys", "1:/keys/1.pem"),
    ]);
    all.extend(map(rows));
    ConnectorConfig::from_map(&all, Providers::default())
}

/// The problems of one row, for both files: whichever table knows the key.
fn problems_of(key: &Key, value: &str) -> Vec<Problem> {
    let name = key.name.replace('*', "x");
    let result = if WORKER.iter().any(|it| it.name == key.name) {
        WorkerConfig::from_map(&map(&[("bootstrap.servers", "a:1"), (&name, value)])).map(|_| ())
    } else {
        connector_with(&[(&name, value)]).map(|_| ())
    };
    result.err().map(|errors| errors.problems).unwrap_or_default()
}

#[test]
fn a_minimal_connector_has_the_documented_defaults() {
    let (config, warnings) = connector_with(&[]).unwrap();
    // Kafka's default retention is a week.
    assert_eq!(warnings.iter().map(|it| it.key.as_str()).collect::<Vec<_>>(), ["topic.creation.default.retention.ms"]);
    assert_eq!(config.secret.expose_secret(), "Sesame");
    assert_eq!(config.private_keys, [(1, "/keys/1.pem".into())]);
    let topics = config.topics().map(|(_, topic)| topic);
    assert_eq!(topics, ["chat", "chat-media", "chat-media-requests", "chat-media-retries", "chat-dead-letters"]);
    assert_eq!((config.tasks_max, config.media_enable, config.media_concurrency), (2, true, 4));
    assert_eq!((config.page_limit, config.rate_limit_per_minute, config.sdk_timeout_ms), (1000, 600, 30_000));
    assert_eq!((config.poll_interval_ms, config.transaction_timeout_ms), (1000, 30_000));
    assert_eq!((config.errors_retry_delay_max_ms, config.media_retry_delay_ms), (60_000, 60_000));
    assert_eq!(config.errors_tolerance, ErrorsTolerance::All);
    assert_eq!(config.record_timestamp, RecordTimestamp::Message);
    assert_eq!(config.storage.kind, StorageType::Fs);
    assert_eq!(config.storage.options["root"], "wecom-media");
    assert_eq!(config.topic_creation.settings_for("chat").partitions, -1);
}

#[test]
fn every_key_is_bounded_checked_and_documented() {
    let families: Vec<_> = WORKER.iter().chain(CONNECTOR).filter_map(Key::prefix).collect();
    assert!(families.contains(&"producer.override."));
    let page = markdown();
    for key in WORKER.iter().chain(CONNECTOR) {
        let name = key.name;
        assert!(page.contains(&format!("| `{name}` |")), "{name} is not in the reference");
        assert!(key.documentation.ends_with('.') && key.documentation.len() > 20, "{name} is not documented");

        // A bell is in no good value, so every key has a way to be wrong; the error names it and is one line.
        let problems = problems_of(key, "a\u{7}b");
        assert!(
            problems.iter().any(|it| it.key.as_deref() == Some(&name.replace('*', "x"))),
            "{name} takes anything: {problems:?}"
        );
        assert!(
            problems.iter().all(|it| !it.to_string().contains('\n') && !it.to_string().contains('\u{7}')),
            "{name}"
        );

        if let Default::Value(value) = key.default {
            assert_eq!(problems_of(key, value), [], "{name}: its own default");
        }
        if let Kind::Int { min, max } | Kind::DurationMs { min, max } = key.kind {
            for wrong in [min - 1, max + 1] {
                assert!(!problems_of(key, &wrong.to_string()).is_empty(), "{name} = {wrong}");
            }
            assert_eq!(problems_of(key, &max.to_string()), [], "{name} = {max}");
            if min < 0 {
                assert!(!problems_of(key, "0").is_empty(), "{name} = 0");
            }
            assert!(!problems_of(key, "2x").is_empty() && !problems_of(key, "99999999999999999999").is_empty());
        }
    }
}

#[test]
fn connector_rows() {
    // What is put on top of the minimal connector; the key that is then at fault, and a part of what is said.
    type Row<'a> = (&'a [(&'a str, &'a str)], Option<(&'a str, &'a str)>);
    let rows: &[Row<'_>] = &[
        (&[("connector.class", "WeComArchiveSource")], None),
        (&[("connector.class", "com.example.WeComArchiveSourceConnector")], None),
        (&[("connector.class", "FileStreamSource")], Some(("connector.class", "WeComArchiveSource"))),
        (&[("name", " ")], Some(("name", "is required"))),
        (&[("wecom.corp.id", "ww/../x")], Some(("wecom.corp.id", "no corp id"))),
        (&[("wecom.secret", "")], Some(("wecom.secret", "is required"))),
        (&[("wecom.secret", " Sesame_-\n")], None),
        (&[("wecom.secret", "'Sesame'")], Some(("wecom.secret", "quotes"))),
        (&[("wecom.secret", "\"Sesame\"")], Some(("wecom.secret", "quotes"))),
        (&[("wecom.secret", "Sesame\u{200b}")], Some(("wecom.secret", "U+200B) as character 7"))),
        (&[("wecom.secret", "\u{feff}Sesame")], Some(("wecom.secret", "U+FEFF) as character 1"))),
        (&[("wecom.secret", "Ses ame")], Some(("wecom.secret", "as character 4"))),
        (&[("wecom.secret", "abc#def")], Some(("wecom.secret", "as character 4"))),
        (&[("wecom.secret", "ＳＥＳ")], Some(("wecom.secret", "as character 1"))),
        (&[("wecom.secret", "$WECOM_SECRET")], Some(("wecom.secret", "write ${env:NAME}"))),
        (&[("wecom.secret", "${WECOM_SECRET}")], Some(("wecom.secret", "write ${env:NAME}"))),
        (&[("wecom.corp.id", "ww1\u{ad}")], Some(("wecom.corp.id", "soft hyphen"))),
        (&[("wecom.corp.id", "\"ww1\"")], Some(("wecom.corp.id", "quotes"))),
        (&[("topic", "'chat'")], Some(("topic", "quotes"))),
        (&[("topic", "chat\u{202e}")], Some(("topic", "direction of writing"))),
        (&[("wecom.private.keys.dir", "/keys\u{200d}")], Some(("wecom.private.keys.dir", "zero width joiner"))),
        (&[("storage.path", "~/media")], Some(("storage.path", "write the whole path"))),
        (&[("storage.path", "$HOME/media")], Some(("storage.path", "write the whole path"))),
        (&[("poll.interval.ms", "1000\u{a0}1")], Some(("poll.interval.ms", "U+00A0) as character 5"))),
        (&[("tasks.max", "\"2\"")], Some(("tasks.max", "quotes"))),
        (
            &[
                ("storage.type", "s3"),
                ("storage.bucket", "b"),
                ("storage.region", "r"),
                ("storage.access.key.id", "a\u{200b}"),
                ("storage.secret.access.key", "x"),
            ],
            Some(("storage.access.key.id", "as character 2")),
        ),
        (
            &[
                ("storage.type", "s3"),
                ("storage.bucket", "b"),
                ("storage.region", "r"),
                ("storage.access.key.id", "a"),
                ("storage.secret.access.key", "x é"),
            ],
            Some(("storage.secret.access.key", "as character 2")),
        ),
        (
            &[("producer.override.sasl.password", "x\u{feff}")],
            Some(("producer.override.sasl.password", "byte order mark")),
        ),
        (&[("producer.override.ssl.ca.location", "~/ca.pem")], None),
        (&[("tasks.max", "1")], Some(("tasks.max", "media.enable=false"))),
        (&[("tasks.max", "1"), ("media.enable", "false")], None),
        (&[("tasks.max", "1"), ("media.enable", "TRUE")], Some(("tasks.max", "at least 2"))),
        (&[("media.enable", "yes")], Some(("media.enable", "true or false"))),
        (&[("wecom.private.keys", "")], Some(("wecom.private.keys.dir", "keys generate"))),
        (&[("wecom.private.keys", ""), ("wecom.private.keys.dir", "/keys")], None),
        (&[("wecom.private.keys", "1:/a, 2:/b")], None),
        (&[("wecom.private.keys", "1:/a,/b")], Some(("wecom.private.keys", "correct item 2"))),
        (&[("wecom.private.keys", "0:/a")], Some(("wecom.private.keys", "versions from 1"))),
        (&[("wecom.private.keys", "1:/a,1:/b")], Some(("wecom.private.keys", "twice"))),
        (&[("topic", "a b")], Some(("topic", "no legal topic name"))),
        (&[("topic", "..")], Some(("topic", "no legal topic name"))),
        (&[("media.topic", "chat")], Some(("media.topic", "is the topic of topic too"))),
        (&[("media.retries.topic", "chat-media")], Some(("media.retries.topic", "is the topic of media.topic too"))),
        (&[("errors.tolerance", "some")], Some(("errors.tolerance", "all, none"))),
        (&[("producer.override.acks", "1")], Some(("producer.override.acks", "may not be set"))),
        (&[("producer.override.linger.ms", "5")], None),
        (
            &[("transaction.timeout.ms", "10000"), ("producer.override.message.timeout.ms", "10000")],
            Some(("producer.override.message.timeout.ms", "less than transaction.timeout.ms")),
        ),
        (&[("consumer.override.group.id", "x")], Some(("consumer.override.group.id", "may not be set"))),
        (&[("wecom.proxy", "10.0.0.1:8081")], None),
        (&[("wecom.proxy", "socks5://10.0.0.1:8081")], None),
        (&[("wecom.proxy", "https://10.0.0.1:8081")], None),
        (&[("wecom.proxy", "https://10.0.0.1:8081"), ("sdk.egress", "direct")], Some(("wecom.proxy", "guarded"))),
        (&[("wecom.proxy", "ftp://10.0.0.1:8081")], Some(("wecom.proxy", "socks5://host:port"))),
        (&[("sdk.egress", "none")], Some(("sdk.egress", "guarded, direct"))),
        (&[("sdk.egress.upstream", "127.0.0.1:443"), ("sdk.egress.ca.file", "/ca.pem")], None),
        (&[("sdk.egress.upstream", "https://127.0.0.1")], Some(("sdk.egress.upstream", "host:port"))),
        (&[("sdk.egress", "direct"), ("sdk.egress.ca.file", "/ca.pem")], Some(("sdk.egress.ca.file", "guarded"))),
        (&[("sdk.egress.address.family", "v4")], None),
        (
            &[("sdk.egress", "direct"), ("sdk.egress.address.family", "v4")],
            Some(("sdk.egress.address.family", "guarded")),
        ),
        (&[("wecom.proxy", "http://proxy")], Some(("wecom.proxy", "http://host:port"))),
        (&[("storage.type", "floppy")], Some(("storage.type", "fs, s3, cos"))),
        (&[("storage.type", "s3")], Some(("storage.bucket", "is required"))),
        (&[("storage.type", "s3"), ("storage.bucket", "b")], Some(("storage.region", "is required"))),
        (&[("storage.type", "s3"), ("storage.bucket", "b"), ("storage.endpoint", "http://127.0.0.1:9000")], None),
        (&[("storage.type", "cos"), ("storage.bucket", "b")], Some(("storage.endpoint", "is required"))),
        (
            &[("storage.type", "s3"), ("storage.bucket", "b"), ("storage.region", "r"), ("storage.access.key.id", "x")],
            Some(("storage.secret.access.key", "both halves")),
        ),
        (
            &[("storage.type", "s3"), ("storage.bucket", "b"), ("storage.option.bucket", "c"), ("storage.region", "r")],
            Some(("storage.bucket", "storage.option.bucket")),
        ),
        (&[("storage.bucket", "b")], Some(("storage.bucket", "has no use with storage.type=fs"))),
        (&[("storage.endpoint", "s3.example")], Some(("storage.endpoint", "must start with https://"))),
        (&[("storage.prefix", "a/../b")], Some(("storage.prefix", "single '/'"))),
        (&[("storage.prefix", "a/b")], None),
        (&[("topic.creation.default.partitions", "0")], Some(("topic.creation.default.partitions", "at least 1"))),
        (&[("topic.creation.groups", "m")], Some(("topic.creation.m.include", "group m is for"))),
        (
            &[("topic.creation.groups", "m"), ("topic.creation.m.include", "(")],
            Some(("topic.creation.m.include", "regular expression")),
        ),
        (&[("topic.creation.m.partitions", "3")], Some(("topic.creation.m.partitions", "belongs to no group"))),
        (
            &[("topic.creation.groups", "m"), ("topic.creation.m.include", "x"), ("topic.creation.m.partitions", "0")],
            Some(("topic.creation.m.partitions", "from 1, or -1")),
        ),
        (&[("topic", "${vault:a}")], Some(("topic", "env, file, dir, exec"))),
    ];
    for (row, expected) in rows {
        let result = connector_with(row);
        match expected {
            None => assert!(result.is_ok(), "{row:?}: {result:?}"),
            Some((key, part)) => {
                let problems = result.unwrap_err().problems;
                let hit = problems.iter().find(|it| it.key.as_deref() == Some(key));
                assert!(hit.is_some_and(|it| it.message.contains(part)), "{row:?}: {problems:?}");
            }
        }
    }
}

#[test]
fn all_problems_come_at_once_one_a_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.properties");
    std::fs::write(&path, "topic=a b\nwecom.corpid=ww\nwecom.page.limit=5000\ntasks.max=1\nstorage.type=s3\n").unwrap();
    let text = load_connector(&path, Providers::default()).unwrap_err().to_string();
    let keys: Vec<_> = text.lines().map(|line| line.strip_prefix(&format!("{}: ", path.display())).unwrap()).collect();
    for start in [
        "topic = \"a b\": is no legal topic name",
        "wecom.page.limit = \"5000\": must be a whole number from 1 to 1000",
        "name: is required; Name of the connector",
        "wecom.corp.id: is required",
        "wecom.secret: is required",
        "tasks.max = \"1\": task 0",
        "wecom.private.keys.dir: messages cannot be opened",
        "storage.bucket: is required",
        "storage.region: is required",
        "wecom.corpid: is not known and is ignored; did you mean wecom.corp.id?",
    ] {
        assert!(keys.iter().any(|line| line.starts_with(start)), "{start} in {text}");
    }
    assert_eq!(keys.len(), 10, "{text}");
}

#[test]
fn unknown_keys_and_those_of_connect_are_warned_of() {
    let (_, warnings) = connector_with(&[
        ("topic.creation.default.retention.ms", "-1"),
        ("poll.intervall.ms", "1"),
        ("key.converter", "org.apache.kafka.connect.storage.StringConverter"),
    ])
    .unwrap();
    let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    assert_eq!(texts.len(), 2);
    assert!(
        texts.iter().any(|it| it == "poll.intervall.ms: is not known and is ignored; did you mean poll.interval.ms?")
    );
    assert!(texts.iter().any(|it| it.starts_with("key.converter: is ignored: events are JSON")));
}

#[test]
fn topics_that_would_be_made_to_forget_are_warned_of() {
    for (settings, is_told) in [
        (&[][..], true),
        (&[("topic.creation.default.retention.ms", "3600000")], true),
        (&[("topic.creation.default.retention.ms", "604800000")], true),
        (&[("topic.creation.default.retention.ms", "604800001")], false),
        (&[("topic.creation.default.retention.ms", "-1")], false),
        (&[("topic.retention.check", "off")], false),
    ] {
        let (_, warnings) = connector_with(settings).unwrap();
        assert_eq!(warnings.iter().any(|it| it.to_string().contains("chat and chat-media")), is_told, "{settings:?}");
    }
}

#[test]
fn what_a_password_can_be_by_chance_is_warned_of() {
    // Without a warning of topics that forget.
    let kept = ("topic.retention.check", "off");
    for (value, words) in [("\"Sesame\"", "quotes"), ("$Sesame", "variable"), ("%SESAME%", "variable")] {
        for key in ["wecom.proxy.password", "consumer.override.sasl.password"] {
            let (_, warnings) = connector_with(&[(key, value), kept]).unwrap();
            let texts: Vec<_> = warnings.iter().map(ToString::to_string).collect();
            assert!(texts.len() == 1 && texts[0].starts_with(key) && texts[0].contains(words), "{value}: {texts:?}");
            assert!(!texts[0].to_lowercase().contains("sesame"), "{texts:?}");
        }
    }
    let (_, warnings) = connector_with(&[("wecom.proxy.password", "u:pa$$\"wo#rd 密码"), kept]).unwrap();
    assert_eq!(warnings, []);
    let (_, warnings) = connector_with(&[("wecom.se\u{200b}cret", "x"), kept]).unwrap();
    assert!(warnings[0].to_string().starts_with("wecom.se\\u{200b}cret: is not known"), "{}", warnings[0]);
}

#[test]
fn a_command_asks_for_what_it_uses_alone() {
    // What a running connector alone uses, wrong or not to be had; and what storage alone uses.
    let of_running = [
        ("wecom.secret", "${env:NO_SUCH_VARIABLE}"),
        ("wecom.private.keys", "wrong"),
        ("wecom.private.keys.dir", "${env:NO_SUCH_VARIABLE}"),
        ("wecom.sdk.library", "a\u{7}"),
        ("wecom.proxy", "ftp://x"),
        ("wecom.proxy.password", "${file:/none:x}"),
        ("sdk.egress.ca.file", "a\u{7}"),
    ];
    let of_storage = [("storage.type", "s3"), ("storage.secret.access.key", "${env:NO_SUCH_VARIABLE}")];
    let read = |rows: &[(&str, &str)], purpose| {
        let mut all = map(&[("name", "archive"), ("topic", "chat"), ("wecom.corp.id", "wwcorp")]);
        all.extend(map(rows));
        ConnectorConfig::from_map_for(&all, Providers::default(), purpose).map(|(config, _)| config)
    };
    let both = [&of_running[..], &of_storage].concat();
    assert_eq!(read(&both, Purpose::Run).unwrap_err().problems.len(), 10);
    let config = read(&both, Purpose::Kafka).unwrap();
    assert_eq!((config.topic.as_str(), config.secret.expose_secret(), config.private_keys_dir), ("chat", "", None));
    assert!(read(&of_running, Purpose::KafkaAndStorage).is_ok() && read(&both, Purpose::KafkaAndStorage).is_err());
    assert!(read(&[("topic", "a b")], Purpose::Kafka).is_err());
    assert!(read(&[("wecom.private.keys", "3:/k")], Purpose::KafkaAndKeys).unwrap().private_keys == [(3, "/k".into())]);
    assert!(read(&[], Purpose::KafkaAndKeys).is_err(), "no keys to look at");

    let worker = map(&[
        ("bootstrap.servers", "a:1"),
        ("listeners", "http://:8083"),
        ("rest.basic.credentials", "${env:NO_SUCH_VARIABLE}"),
    ]);
    assert!(WorkerConfig::from_map(&worker).is_err() && WorkerConfig::from_map_for(&worker, Purpose::Kafka).is_ok());
}

#[test]
fn a_secret_is_in_no_error_and_no_debug() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("s"), "Open Sesame\u{7}").unwrap();
    let reference = format!("${{dir:{}:s}}", folder.path().display());
    // Every key of both tables gets the secret by reference, the secret ones also in the open; all of that is wrong.
    for key in WORKER.iter().chain(CONNECTOR) {
        for problem in problems_of(key, &reference) {
            assert!(!problem.to_string().contains("Sesame"), "{problem}");
        }
        if key.kind == Kind::Password {
            for problem in problems_of(key, "Sesame\u{7}") {
                assert!(!problem.to_string().contains("Sesame"), "{problem}");
            }
        }
    }
    for (name, value) in [
        ("producer.override.sasl.password.x", "Sesame"),
        ("producer.override.ssl.key.pem", "Sesame\u{7}"),
        ("producer.override.linger.ms", "${env:CARGO_PKG_NAME}"),
        ("storage.option.secret_access_key", "Sesame\u{7}"),
        ("wecom.proxy", "socks5://user:Sesame@host:1"),
        ("storage.endpoint", "https://user:Sesame@host"),
    ] {
        let text = connector_with(&[(name, value)]).unwrap_err().to_string();
        assert!(text.contains(name) && !text.contains("Sesame") && !text.contains(env!("CARGO_PKG_NAME")), "{text}");
    }
    let worker = map(&[("bootstrap.servers", "a:1"), ("sasl.jaas.config", "password=Sesame")]);
    assert!(!WorkerConfig::from_map(&worker).unwrap_err().to_string().contains("Sesame"));
    let (config, _) = connector_with(&[
        ("wecom.proxy.password", "Sesame"),
        ("storage.type", "s3"),
        ("storage.bucket", "b"),
        ("storage.region", "r"),
        ("storage.access.key.id", "id"),
        ("storage.secret.access.key", "Sesame"),
        ("consumer.override.sasl.password", "Sesame"),
        ("consumer.override.ssl.ca.pem", "-----BEGIN CERTIFICATE-----\nSesame\n-----END CERTIFICATE-----"),
    ])
    .unwrap();
    assert_eq!(config.storage.options["secret_access_key"], "Sesame");
    assert!(!format!("{config:?}").contains("Sesame"));
    // Nor in what the log tells of the configuration that counts.
    let shown = config.effective.to_string();
    assert!(!shown.contains("Sesame"), "{shown}");
    for part in
        ["wecom.secret=[hidden]", "storage.secret.access.key=[hidden]", "topic=\"chat\"", "poll.interval.ms=\"1000\""]
    {
        assert!(shown.contains(part), "{part} in {shown}");
    }
}

#[test]
fn topic_creation_groups_match_as_in_connect() {
    let (config, _) = connector_with(&[
        ("topic.creation.default.replication.factor", "3"),
        ("topic.creation.default.partitions", "6"),
        ("topic.creation.default.compression.type", "zstd"),
        ("topic.creation.groups", "media, rest"),
        ("topic.creation.media.include", "chat-media, chat-media-.*"),
        ("topic.creation.media.exclude", ".*-retries"),
        ("topic.creation.media.partitions", "12"),
        ("topic.creation.rest.include", ".*-retries"),
        ("topic.creation.rest.retention.ms", "1000"),
    ])
    .unwrap();
    let settings = |topic| {
        let it = config.topic_creation.settings_for(topic);
        (it.partitions, it.replication_factor, it.configs.keys().map(String::as_str).collect::<Vec<_>>())
    };
    assert_eq!(settings("chat"), (6, 3, vec!["compression.type"]));
    assert_eq!(settings("chat-media"), (12, 3, vec![]));
    assert_eq!(settings("chat-media-requests"), (12, 3, vec![]));
    assert_eq!(settings("chat-media-retries"), (6, 3, vec!["retention.ms"]));
    assert_eq!(settings("x-chat-media"), (6, 3, vec!["compression.type"]));
}

#[test]
fn storage_options_have_opendals_names() {
    let rows = [
        ("s3", ["bucket", "access_key_id", "secret_access_key"]),
        ("cos", ["bucket", "secret_id", "secret_key"]),
        ("oss", ["bucket", "access_key_id", "access_key_secret"]),
        ("obs", ["bucket", "access_key_id", "secret_access_key"]),
    ];
    for (kind, names) in rows {
        let (config, _) = connector_with(&[
            ("storage.type", kind),
            ("storage.bucket", "1"),
            ("storage.endpoint", "https://e"),
            ("storage.access.key.id", "2"),
            ("storage.secret.access.key", "3"),
            ("storage.option.root", "/r"),
        ])
        .unwrap();
        let options = &config.storage.options;
        assert_eq!(names.map(|name| options[name].as_str()), ["1", "2", "3"], "{kind}");
        assert_eq!((options["endpoint"].as_str(), options["root"].as_str()), ("https://e", "/r"));
    }
}

#[test]
fn connectors_of_one_worker_keep_apart() {
    let (worker, _) = WorkerConfig::from_map(&map(&[("bootstrap.servers", "a:1")])).unwrap();
    let connector = |rows: &[(&str, &str)]| connector_with(rows).unwrap().0;
    let first = connector(&[]);
    let rows = [
        (connector(&[("name", "b"), ("topic", "other")]), None),
        (connector(&[("name", "b"), ("wecom.corp.id", "ww2")]), None),
        (connector(&[("topic", "other")]), Some("name")),
        (connector(&[("name", "b")]), Some("wecom.corp.id")),
        (connector(&[("name", "b"), ("topic", "wecom-connect-offsets")]), Some("topic")),
    ];
    for (second, expected) in rows {
        let result = check_together(&worker, &[first.clone(), second]);
        let keys =
            result.map_or_else(|errors| errors.problems.into_iter().filter_map(|it| it.key).collect(), |()| vec![]);
        assert_eq!(keys, expected.map(str::to_owned).into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn the_rest_answer_has_connects_shape_and_no_password() {
    let mut rows =
        map(&[("name", "n"), ("wecom.secret", "Sesame"), ("wecom.page.limit", "5000"), ("storage.type", "fs")]);
    rows.insert("producer.override.acks".to_owned(), "1".to_owned());
    let answer = validation(&rows);
    let configs = answer["configs"].as_array().unwrap();
    let value = |name: &str| configs.iter().map(|it| &it["value"]).find(|it| it["name"] == name).unwrap();
    assert_eq!(value("wecom.page.limit")["value"], "5000");
    assert_eq!(value("wecom.page.limit")["errors"][0], "must be a whole number from 1 to 1000");
    assert_eq!(value("errors.tolerance")["recommended_values"][0], "all");
    assert_eq!(value("producer.override.acks")["errors"].as_array().unwrap().len(), 1);
    let errors: usize = configs.iter().map(|it| it["value"]["errors"].as_array().unwrap().len()).sum();
    assert_eq!(answer["error_count"], errors);
    assert!(!answer.to_string().contains("Sesame"));

    // Field names as a Connect 4.3.1 worker answers them.
    let definition = definitions(false)[0].clone();
    let mut fields: Vec<_> = definition.as_object().unwrap().keys().cloned().collect();
    fields.sort();
    assert_eq!(
        fields,
        [
            "default_value",
            "dependents",
            "display_name",
            "documentation",
            "group",
            "importance",
            "name",
            "order_in_group",
            "required",
            "type",
            "width"
        ]
    );
}
