//! Media tasks on a real broker: every request ends in one reference event, whatever happens to tasks and files.

#[path = "common/harness.rs"]
mod harness;

#[path = "media_task/world.rs"]
mod world;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use harness::{Kafka, PATIENCE, Rights, S3, S3Gate, unique};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, ResourceSpecifier};
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use wecom_connector::archive::WINDOW_MS;
use wecom_connector::clock::Clock;
use wecom_connector::kafka::group::{Change, GroupConsumer};
use wecom_connector::kafka::{Batch, BatchBytes, CommitError, Committer, OutgoingRecord};
use wecom_connector::status::Health;
use wecom_connector::task::alteration::{StoredOffset, Target};
use wecom_connector::task::{TaskError, media_task};
use world::{Committed, EARLY_MS, Files, Gate, World, leave};

#[tokio::test(flavor = "multi_thread")]
async fn every_request_ends_in_one_reference_event() {
    let world = Arc::new(World::new(Kafka::shared(), 4));
    let kinds = ["ok", "plain", "same", "flaky", "dead", "wrong", "expired", "late", "refused"];
    let mut ids: Vec<String> = (0..180).map(|number| format!("{}:{number}", kinds[number % kinds.len()])).collect();
    ids.push("gone:180".into());
    let files = Files::default();
    let mut tasks = vec![world.start(1, files.clone())];
    // The first task makes the topics.
    let first = world.clone();
    let topics_are_there = move || {
        harness::wait_until("the task to run", PATIENCE, || {
            first.board.connectors().iter().any(|it| it.tasks.values().any(|task| task.has_started))
        });
    };
    tokio::task::spawn_blocking(topics_are_there).await.expect("in time");

    let mut values: Vec<Vec<u8>> = ids.iter().map(|id| world.request(id)).collect();
    let foreign = String::from_utf8(world.request("ok:999")).expect("text").replace("\"ww1\"", "\"ww2\"");
    let bad = [b"no request".to_vec(), Vec::new(), foreign.into_bytes()];
    values.extend(bad.clone());
    world.publish(values).await;

    // Members come, one is thrown away in the middle of its work, comes back under its name, and one leaves.
    tasks.extend([2, 3].map(|task| world.start(task, files.clone())));
    let half = world.clone();
    tokio::task::spawn_blocking(move || harness::wait_until("some events", PATIENCE, || half.references().len() > 20))
        .await
        .expect("in time");
    let (thrown_away, _) = tasks.remove(1);
    thrown_away.abort();
    let _ = thrown_away.await;
    tasks.push(world.start(2, files.clone()));
    leave(vec![tasks.remove(0)]).await;

    world.wait_for_references(ids.len()).await;
    leave(tasks).await;
    world.check(&ids);
    world.check_offsets();

    let dead_letters = world.read(&world.context.config.dead_letter_topic);
    for Committed { headers, .. } in &dead_letters {
        assert_eq!(headers["wecom.reason"], "media_request");
        assert_eq!((&*headers["ce_specversion"], &*headers["ce_source"]), ("1.0", "/wecom/ww1"));
        assert_eq!(headers["__connect.errors.topic"], world.context.config.media_requests_topic);
    }
    let mut kept: Vec<Vec<u8>> = dead_letters.into_iter().map(|it| it.value).collect();
    let mut bad = bad.to_vec();
    kept.sort();
    bad.sort();
    assert_eq!(kept, bad, "what is no request is kept whole");
    // The same content was fetched about once, not twenty times: at most once by each that was at it at the same time.
    let begun = files.begun.lock().expect("a lock");
    let fetched = begun.iter().filter(|(id, _)| id.starts_with("same:")).count();
    assert!((1..=9).contains(&fetched), "{fetched} times");
}

/// Requests that are done must not outlive the offsets that say so: brokers forget these a week after the group's last member. A
/// dead letter is replayed when its key is found, be it in months.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_kept_for_a_week_and_dead_letters_for_good() {
    let world = World::new(Kafka::shared(), 1);
    wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    let config = &world.context.config;
    let of_requests =
        [("retention.ms", "604800000"), ("segment.ms", "86400000"), ("message.timestamp.type", "LogAppendTime")];
    let rows = [
        (&config.media_requests_topic, &of_requests[..]),
        (&config.media_retries_topic, &of_requests),
        (&config.dead_letter_topic, &[("retention.ms", "-1"), ("message.timestamp.type", "CreateTime")]),
    ];
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", &world.bootstrap).create().expect("an admin client");
    for (topic, expected) in rows {
        let settings = admin.describe_configs([&ResourceSpecifier::Topic(topic)], &AdminOptions::new()).await;
        let settings = settings.expect("an answer").remove(0).expect("the topic's settings");
        for (name, value) in expected {
            let found = settings.get(name).and_then(|entry| entry.value.as_deref());
            assert_eq!(found, Some(*value), "{name} of {topic}");
        }
    }
}

/// A file that is to be tried again much later is put back when it stands before one that has come: the reference event of this
/// one does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_not_due_makes_way() {
    let world = Arc::new(World::with_retry_delay(Kafka::shared(), 1, EARLY_MS.unsigned_abs()));
    wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    let retries = world.context.config.media_retries_topic.clone();
    let (early, ids) = (world.request("early:1"), ["due:2".to_owned(), "due:3".to_owned()]);
    world.publish_to(&retries, vec![early.clone(), world.request(&ids[0]), world.request(&ids[1])]).await;
    let task = world.start(1, Files::default());
    world.wait_for_references(2).await;
    leave(vec![task]).await;
    world.check(&ids);
    let requests = world.read(&retries);
    let parsed = |value: &[u8]| serde_json::from_slice::<Value>(value).expect("a request");
    assert!(requests.len() >= 4 && requests.iter().skip(3).all(|it| parsed(&it.value) == parsed(&early)), "as it was");
}

/// A task that hangs is left by its group, its files are brought by another, and what it has in hand when it wakes up is not
/// committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_hangs_is_replaced_and_announces_nothing() {
    let world = Arc::new(World::new(Kafka::shared(), 1));
    let gate = Arc::new(Gate::default());
    let stuck_files = Files { gate: Some(gate.clone()), ..Files::default() };
    // On a thread of its own, which is blocked as a whole.
    let stuck = {
        let (world, stop) = (world.clone(), CancellationToken::new());
        let shutdown = stop.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let status = world.board.connector("archive").task(1);
            let result = runtime.block_on(media_task::run_with(stuck_files, &world.context, 1, &status, shutdown));
            status.stopped();
            result
        });
        (thread, stop)
    };
    let first = world.clone();
    let has_started = move || {
        harness::wait_until("the task to run", PATIENCE, || {
            first.board.connectors().iter().any(|it| it.tasks.values().any(|task| task.has_started))
        });
    };
    tokio::task::spawn_blocking(has_started).await.expect("in time");
    let ids: Vec<String> = (0..10).map(|number| format!("held:{number}")).collect();
    world.publish(ids.iter().map(|id| world.request(id)).collect()).await;
    let reached = gate.clone();
    tokio::task::spawn_blocking(move || {
        harness::wait_until("the gate", PATIENCE, || *reached.is_reached.lock().expect("a lock"));
    })
    .await
    .expect("in time");

    let other = world.start(2, Files::default());
    world.wait_for_references(ids.len()).await;
    gate.open();
    // It is alive again, joins again and takes part: the next requests end once, too.
    let more: Vec<String> = (10..30).map(|number| format!("held:{number}")).collect();
    world.publish(more.iter().map(|id| world.request(id)).collect()).await;
    let ids = [ids, more].concat();
    world.wait_for_references(ids.len()).await;
    leave(vec![other]).await;
    stuck.1.cancel();
    let result = tokio::task::spawn_blocking(move || stuck.0.join().expect("no panic")).await.expect("joined");
    assert_eq!(result, Ok(()));
    world.check(&ids);
    world.check_offsets();
}

/// The broker itself refuses offsets of a member that the group has replaced, at whatever moment they come.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_member_commits_nothing() {
    let world = Arc::new(World::new(Kafka::shared(), 1));
    let clients = &world.context.clients;
    let topics = wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    let topic = world.context.config.media_requests_topic.as_str();
    world.publish(vec![b"one".to_vec()]).await;
    let group = unique("group");
    let committer = |name: &'static str| async {
        Committer::start(clients, &unique(name), 30_000, topics.batch_bytes()).await.expect("a producer")
    };
    let batch = |consumer: &GroupConsumer, partition, offset: i64| Batch {
        records: vec![OutgoingRecord {
            topic: world.context.config.media_topic.as_str().into(),
            key: Vec::new(),
            value: b"{}".to_vec(),
            headers: Vec::new(),
            timestamp_ms: world.context.now_ms(),
        }],
        group_offsets: consumer.offsets([(&partition, offset)]),
    };

    let old = GroupConsumer::join(clients, &group, "old", &[topic]).expect("a consumer");
    let old_committer = committer("old").await;
    let received = next(&old).await;
    assert_eq!(received.value, b"one");
    // It is not asked for more, so that the group takes it for hung and gives its partition away.
    let new = GroupConsumer::join(clients, &group, "new", &[topic]).expect("a consumer");
    let again = next(&new).await;
    assert_eq!(again, received, "nothing was committed, so it comes again");
    assert_eq!(new.changes().pop(), Some(Change::Gained(vec![received.partition.clone()])));

    let late = old_committer.commit(batch(&old, received.partition.clone(), received.offset + 1)).await;
    assert!(matches!(late, Err(CommitError::Aborted(_))), "{late:?}");
    assert_eq!(world.references().len(), 0);
    // Nor does one that is not in the group: its offsets are made before it can have joined.
    let outside_committer = committer("outside").await;
    let outside = GroupConsumer::join(clients, &group, "outside", &[topic]).expect("a consumer");
    let uninvited = batch(&outside, received.partition.clone(), received.offset + 1);
    assert!(outside.close().await, "it ends by itself");
    let uninvited = outside_committer.commit(uninvited).await;
    assert!(matches!(uninvited, Err(CommitError::Aborted(_))), "{uninvited:?}");
    assert_eq!(world.references().len(), 0);

    let new_committer = committer("new").await;
    new_committer.commit(batch(&new, again.partition, again.offset + 1)).await.expect("the owner commits");
    let late = old_committer.commit(batch(&old, received.partition, received.offset + 1)).await;
    assert!(late.is_err(), "{late:?}");
    assert_eq!(world.references().len(), 1);
    assert!(old.close().await, "it ends by itself");
    assert!(new.close().await, "it ends by itself");
}

/// An alert sees files that are about to be lost also where the store is down and the task cannot even start.
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_the_store_goes_on_to_age() {
    let world = Arc::new(World::new(Kafka::shared(), 2));
    wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    // A file stands where the store's folder should be.
    let store = world.folder.path().join("store");
    let _ = std::fs::remove_dir_all(&store);
    std::fs::write(&store, "").expect("written");
    let ids: Vec<String> =
        (0..6).map(|number| format!("{}:{number}", if number == 0 { "old" } else { "ok" })).collect();
    world.publish(ids.iter().map(|id| world.request(id)).collect()).await;
    assert_eq!(world.oldest_pending_ms(), 0);
    let (run, _) = world.start(1, Files::default());
    assert!(run.await.expect("no panic").is_err());
    assert!(world.oldest_pending_ms() >= WINDOW_MS / 4 * 3, "{}", world.oldest_pending_ms());

    std::fs::remove_file(&store).expect("removed");
    let task = world.start(1, Files::default());
    world.wait_for_references(ids.len()).await;
    leave(vec![task]).await;
    assert_eq!(world.oldest_pending_ms(), 0);
    world.check(&ids);
}

/// What can be done without a right that the store's account lacks is done. What cannot is on the status, with its age,
/// while other files come, until it can; so is a store that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn no_file_is_lost_in_silence_for_want_of_a_right() {
    let mut server = S3::start("archive");
    let rights = Rights { list: false, delete: false, multipart: false, lock: true, ..Rights::ALL };
    let gate = S3Gate::start(&server, rights);
    let storage = format!(
        "storage.type=s3\nstorage.bucket=archive\nstorage.endpoint={}\nstorage.access.key.id={}\nstorage.secret.access.key={}\n",
        gate.endpoint(),
        S3::ACCESS_KEY,
        S3::SECRET_KEY
    );
    let world = Arc::new(World::with_storage(Kafka::shared(), 1, 200, |_| storage));
    wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    world.board.all_connectors_known();
    let publish = async |ids: &[&str]| world.publish(ids.iter().map(|id| world.request(id)).collect()).await;
    let task = world.start(1, Files::default());
    publish(&["large:1", "ok:2", "ok:3"]).await;
    world.wait_for_references(2).await;
    world.wait_for_health("the refusal to be told", |health| {
        matches!(health, Health::Unhealthy(told) if told.contains("the store does not take a file") && told.contains("access is denied"))
    })
    .await;
    // Others come, and it stays told, for longer and longer.
    publish(&["ok:4"]).await;
    world.wait_for_references(3).await;
    world.wait_for_health("the refusal to be told again", |health| {
        matches!(health, Health::Unhealthy(told) if told.contains("does not take a file") && told.contains("since "))
    })
    .await;
    gate.set(Rights { multipart: true, ..rights });
    world.wait_for_references(4).await;
    world.wait_for_health("all to be well", |health| *health == Health::Healthy).await;

    server.kill();
    publish(&["ok:5"]).await;
    let endpoint = gate.endpoint();
    world.wait_for_health("the wait to be told", move |health| {
        matches!(health, Health::Unhealthy(told) if told.contains("media wait") && told.contains(&endpoint) && told.contains("since"))
    })
    .await;
    server.start_again();
    world.wait_for_references(5).await;
    world.wait_for_health("all to be well again", |health| *health == Health::Healthy).await;
    leave(vec![task]).await;
    for event in world.references() {
        assert_eq!((&event["status"], &event["md5_matches"]), (&"stored".into(), &true.into()), "{event}");
    }
}

/// A task whose place another worker has taken says so, and does not take it back when it is started again.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_taken_is_not_taken_back() {
    let world = Arc::new(World::new(Kafka::shared(), 1));
    let context = &world.context;
    wecom_connector::task::topics::Topics::prepare(context).await.expect("topics");
    context.tenure.begin(None);
    let task = world.start(1, Files::default());
    world.publish(vec![world.request("ok:1")]).await;
    world.wait_for_references(1).await;

    // The other one writes the offset in its own name, and joins the group in the task's.
    let offset = StoredOffset::of(&context.worker, &context.config, Clock::system());
    let plan = tokio::task::block_in_place(|| offset.plan(Target::After(1))).expect("a plan");
    offset.apply(Target::After(1), plan, true).await.expect("written");
    let group = format!("{}-archive-media", context.worker.group_id);
    let topics = [&*context.config.media_requests_topic, &*context.config.media_retries_topic];
    let other = GroupConsumer::join(&context.clients, &group, &context.transactional_id(1), &topics);
    let other = other.expect("a consumer");
    let ended = async |task: world::Task| {
        tokio::select! {
            ended = task.0 => ended.expect("no panic"),
            received = next(&other) => panic!("{received:?}"),
        }
    };
    let told = ended(task).await;
    assert!(matches!(&told, Err(TaskError::Fenced(_))), "{told:?}");
    let again = ended(world.start(1, Files::default())).await;
    assert!(matches!(&again, Err(TaskError::Fenced(_))), "{again:?}");

    world.publish(vec![b"two".to_vec()]).await;
    assert_eq!(next(&other).await.value, b"two", "the other one is left alone");
    assert!(other.close().await, "it ends by itself");
}

/// A member that starts anew while its partitions move to another: each partition still has an owner.
#[tokio::test(flavor = "multi_thread")]
async fn no_partition_is_nobodys_after_a_restart_in_a_rebalance() {
    const PARTITIONS: u32 = 8;
    let world = Arc::new(World::new(Kafka::shared(), PARTITIONS));
    wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    let topic = &world.context.config.media_requests_topic;
    let group = unique("group");
    let join = |member| GroupConsumer::join(&world.context.clients, &group, member, &[topic]).expect("a consumer");
    let first = join("first");
    assert!(
        is_told(&first, PATIENCE, |change| matches!(change, Change::Gained(all) if all.len() == PARTITIONS as usize))
            .await
    );
    let second = join("second");
    // Nobody polls the first one. Were the assignment cooperative, the group would go on with partitions that are nobody's yet.
    is_told(&second, Duration::from_secs(6), |change| matches!(change, Change::Gained(_))).await;
    drop(first);
    let first = join("first");
    let values: Vec<Vec<u8>> = (0..200).map(|number| format!("{number}").into_bytes()).collect();
    world.publish(values).await;
    let mut owned = BTreeSet::new();
    let all_owned = async {
        while owned.len() < PARTITIONS as usize {
            let received = tokio::select! {
                received = first.receive() => received,
                received = second.receive() => received,
            };
            owned.extend(received.ok().map(|received| received.partition.number));
        }
    };
    assert!(tokio::time::timeout(PATIENCE, all_owned).await.is_ok(), "only these partitions are read: {owned:?}");
    assert!(first.close().await, "it ends by itself");
    assert!(second.close().await, "it ends by itself");
}

/// Polls until the consumer is told of such a change; whether it was, within this time.
async fn is_told(consumer: &GroupConsumer, within: Duration, is_it: impl Fn(&Change) -> bool) -> bool {
    let told = async {
        while !consumer.changes().iter().any(&is_it) {
            let _ = tokio::time::timeout(Duration::from_millis(20), consumer.receive()).await;
        }
    };
    tokio::time::timeout(within, told).await.is_ok()
}

/// A producer of the same name that was fenced by mistake (the start of a worker that has ended since, a coordinator's time-out)
/// is no successor: the task starts anew, and with it the connector goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_fencing_without_a_successor_is_passed() {
    let world = Arc::new(World::new(Kafka::shared(), 1));
    wecom_connector::task::topics::Topics::prepare(&world.context).await.expect("topics");
    world.context.tenure.begin(None);
    let first = world.start(1, Files::default());
    world.publish(vec![world.request("ok:1")]).await;
    world.wait_for_references(1).await;
    let bytes = BatchBytes { single_max: 1_000_000, several_max: 1_000_000 };
    let id = world.context.transactional_id(1);
    Committer::start(&world.context.clients, &id, 30_000, bytes).await.expect("a producer");
    world.publish(vec![world.request("ok:2")]).await;
    let ended = tokio::time::timeout(PATIENCE, first.0).await.expect("in time").expect("no panic");
    assert!(matches!(&ended, Err(TaskError::Transient(_))), "{ended:?}");
    let again = world.start(1, Files::default());
    world.wait_for_references(2).await;
    leave(vec![again]).await;
}

async fn next(consumer: &GroupConsumer) -> wecom_connector::kafka::group::Received {
    let receive = async {
        loop {
            match consumer.receive().await {
                Ok(received) => return received,
                Err(error) => println!("{error}"),
            }
        }
    };
    tokio::time::timeout(PATIENCE, receive).await.expect("a record in time")
}
