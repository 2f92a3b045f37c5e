//! What is wrong on the way to Kafka is said at once, and alike by every command and status.

use super::*;

#[test]
fn what_is_wrong_on_the_way_to_kafka_is_said_by_all() {
    let mut kafka = Kafka::start_authorized();
    let corp = Corp::new("messages = 5", "");
    std::fs::create_dir_all(corp.storage()).expect("a folder");
    let nobody = format!("127.0.0.1:{}", harness::free_port());
    let controller = kafka.brokers()[0].controller().to_owned();
    let folder = tempfile::tempdir().expect("a folder");
    let foreign = folder.path().join("foreign.pem");
    let certificate = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).expect("a certificate");
    let pem = BASE64_STANDARD.encode(certificate.cert.der());
    std::fs::write(&foreign, format!("-----BEGIN CERTIFICATE-----\n{pem}\n-----END CERTIFICATE-----\n"))
        .expect("a file");
    let foreign = text(&foreign);
    let secured = kafka.secured();
    let no_rights = login(secured, SASL_PASSWORD);
    let wrong_password = login(secured, "wrong");
    // How the worker's file goes on, how a command ends, and what it says as well as the status.
    type Row<'a> = (Vec<(&'a str, &'a str)>, i32, &'a [&'a str]);
    let rows: [Row<'_>; 6] = [
        (
            vec![("bootstrap.servers", &nobody)],
            UNAVAILABLE,
            &["Kafka cannot be reached at", &nobody, "Connection refused", "check bootstrap.servers"],
        ),
        (vec![("bootstrap.servers", &controller)], USAGE, &[&controller, "is the port of a KRaft controller"]),
        (wrong_password, USAGE, &["does not let this worker in", "Authentication failed", "check security.protocol"]),
        (
            vec![("bootstrap.servers", &secured.ssl), ("security.protocol", "SSL")],
            USAGE,
            &["does not let this worker in", "of no CA that this system knows; set ssl.ca.location"],
        ),
        (
            vec![("bootstrap.servers", &secured.ssl), ("security.protocol", "SSL"), ("ssl.ca.location", &foreign)],
            USAGE,
            &["does not let this worker in", "of no CA in ssl.ca.location", &foreign],
        ),
        (no_rights, USAGE, &["Kafka refuses access to topic ", "the principal needs Describe on it"]),
    ];
    for (settings, code, words) in &rows {
        let files = corp.connect(WorkerFiles::new(&kafka), "archive", &[("media.enable", "false")]);
        let files = settings.iter().fold(files, |files, (key, value)| files.set(key, value));
        // Made first: each writes the files anew.
        let made: Vec<_> =
            ASKING_KAFKA.iter().map(|(command, options)| files.command(command, "archive", options)).collect();
        let mut worker = files.start();
        let running = made.into_iter().map(|mut command| {
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the connector's binary")
        });
        let running: Vec<_> = running.collect();
        for (child, (command, _)) in running.into_iter().zip(&ASKING_KAFKA) {
            let output = child.wait_with_output().expect("its end");
            let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
            // `verify` has codes of its own.
            let code = if command[0] == "verify" { UNAVAILABLE } else { *code };
            assert_eq!(output.status.code(), Some(code), "{settings:?} {command:?}: {said}");
            assert_said(&said, words);
        }
        wait_told(&mut worker, "archive", TASK, "FAILED", words);
        worker.kill();
        let log = worker.log();
        assert!(log.lines().count() < 100, "{} lines of {settings:?}", log.lines().count());
        assert_harmless(&log);
    }

    // Rights that are missing one at a time. The commands find no fault before they come to the topic.
    let messages = unique("messages");
    let more = [("media.enable", "false"), ("topic", messages.as_str())];
    let files = corp.connect(WorkerFiles::new(&kafka), "archive", &more);
    let (group, offsets) = (files.get("group.id").to_owned(), files.get("offset.storage.topic").to_owned());
    let mut worker = files.start();
    worker.wait_metric("wecom_connector_last_committed_seq", &[], 5.0);
    assert_eq!(worker.terminate().code(), Some(0));
    let files = corp.connect(WorkerFiles::new(&kafka), "archive", &more);
    let files = login(secured, SASL_PASSWORD).iter().fold(files, |files, (key, value)| files.set(key, value));
    let files = files.set("group.id", &group).set("offset.storage.topic", &offsets);
    let others =
        ["-media-requests", "-media-retries", "-media", "-dead-letters"].map(|suffix| messages.clone() + suffix);
    let others: Vec<&str> = others.iter().map(String::as_str).chain([offsets.as_str()]).collect();
    kafka.allow(&["Read", "Write", "Describe", "DescribeConfigs"], &others);
    kafka.allow(&["Describe", "DescribeConfigs"], &[&messages]);
    let denied = format!("Kafka refuses access to topic {messages}");
    let rewind = files.command(&["offsets", "rewind"], "archive", &["--by", "1", "--dry-run"]);
    for (mut command, right) in [(rewind, "Read"), (files.command(&["validate"], "archive", &["--connect"]), "Write")] {
        says(&mut command, USAGE, &[&denied, &format!("the principal needs {right} on it")]);
    }
    kafka.allow(&["Write"], &[&messages]);
    let validate = || files.command(&["validate"], "archive", &["--connect"]);
    says(&mut validate(), 0, &["Kafka lets the connector in, and its topics are right"]);

    // It makes nothing.
    let new = unique("new");
    let files = corp.connect(WorkerFiles::new(&kafka), "archive", &[("topic", new.as_str())]);
    let mut validate = files.command(&["validate"], "archive", &["--connect"]);
    says(&mut validate, 0, &["a start would make the topics", &new, &format!("{new}-dead-letters")]);
    assert!(!kafka.topics().iter().any(|topic| topic.starts_with(&new)));
}

/// What lets the tests' user in.
fn login<'a>(secured: &'a Secured, password: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("bootstrap.servers", &secured.sasl_plaintext),
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "PLAIN"),
        ("sasl.username", SASL_USER),
        ("sasl.password", password),
    ]
}
