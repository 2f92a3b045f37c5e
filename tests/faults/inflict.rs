//! What is done to the stage for each fault.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::super::fault::{Fault, LibraryFault, Role};
use super::super::harness::{Broker, repository, wait_for, wait_until};
use super::super::proxy::{Mode, Proxy};
use super::{CONNECTOR, CORP, PUBLISHED, RECOVERY, Stage};

/// How long a stranger in the media tasks' group waits for a record.
const LOOK: Duration = Duration::from_millis(20);

/// A slow storage stands still for so long, and works for so long.
const STILL: Duration = Duration::from_millis(400);
const AT_WORK: Duration = Duration::from_millis(20);

/// In the log once a worker has the connector's place.
const HAS_PLACE: &str = "the message task runs";

/// From Debian's package libfaketime.
const FAKETIME: &str = "/usr/$LIB/faketime/libfaketimeMT.so.1";

/// One of these is in the worker's log when the storage takes no file.
const UPLOAD_FAILED: [&str; 2] = ["media wait until this has passed", "a file did not come"];

impl Stage {
    /// Gives when the fault was over, and what the worker that is to recover had published by then.
    pub(super) fn inflict(&mut self, fault: &Fault) -> (Instant, f64) {
        match fault {
            Fault::KillAtPoint { point } => {
                self.kill_worker();
                self.worker().start_with(&[("WECOM_CONNECTOR_CRASH_POINT", point)]);
                self.wait_killed();
                self.start_worker()
            }
            Fault::KillWorker { after } => {
                std::thread::sleep(*after);
                self.kill_worker();
                self.start_worker()
            }
            Fault::KillHost { after, times } => {
                for _ in 0..*times {
                    std::thread::sleep(*after);
                    self.kill_host();
                }
                self.over()
            }
            Fault::KillBroker { role, down } => {
                let broker = self.broker(*role);
                broker.kill();
                std::thread::sleep(*down);
                broker.start_again();
                self.figures.kill("broker");
                self.over()
            }
            Fault::StopBroker { role } => {
                let broker = self.broker(*role);
                broker.stop();
                broker.start_again();
                self.over()
            }
            Fault::FreezeBroker { role, duration } => {
                let broker = self.broker(*role);
                broker.freeze();
                std::thread::sleep(*duration);
                broker.thaw();
                self.over()
            }
            Fault::Network { mode, duration } => {
                self.proxies.iter().for_each(|proxy| proxy.set(*mode));
                if *mode == Mode::Refuse {
                    self.proxies.iter().for_each(Proxy::cut);
                }
                std::thread::sleep(*duration);
                if *mode == Mode::HoldAnswers {
                    self.proxies.iter().for_each(Proxy::cut);
                }
                self.proxies.iter().for_each(|proxy| proxy.set(Mode::Pass));
                self.over()
            }
            Fault::Zombie { point } => self.zombie(point),
            Fault::SlowTakeOver { duration } => self.slow_take_over(*duration),
            Fault::Library(fault) => self.library(fault),
            Fault::KillStorage { down } => {
                self.s3.kill();
                self.figures.kill("S3 server");
                std::thread::sleep(*down);
                self.s3.start_again();
                self.over()
            }
            Fault::KillStorageInUpload => {
                // A file of several parts comes about every half minute.
                let before = self.s3.parts();
                wait_until("a part of a file to be stored", RECOVERY, || !self.s3.parts().is_subset(&before));
                self.s3.kill();
                self.figures.kill("S3 server");
                self.s3.start_again();
                self.over()
            }
            Fault::SlowStorage { duration } => {
                let until = Instant::now() + *duration;
                while Instant::now() < until {
                    self.s3.freeze();
                    std::thread::sleep(STILL);
                    self.s3.thaw();
                    std::thread::sleep(AT_WORK);
                }
                self.over()
            }
            Fault::FreezeStorage { duration } => {
                self.s3.freeze();
                std::thread::sleep(*duration);
                self.s3.thaw();
                self.over()
            }
            Fault::FillStorage { duration } => {
                self.s3.fill();
                let log = self.worker().log().len();
                wait_until("an upload to fail", RECOVERY, || {
                    let log = self.worker().log().split_off(log);
                    UPLOAD_FAILED.iter().any(|words| log.contains(words))
                });
                std::thread::sleep(*duration);
                self.s3.make_room();
                self.over()
            }
            Fault::FillLog => {
                self.kill_worker();
                self.worker().start_unheard();
                self.wait_published(0.0);
                self.kill_worker();
                self.start_worker()
            }
            Fault::Rebalance { duration, kills } => self.rebalance(*duration, *kills),
            Fault::StepClock { seconds, duration } => self.step_clock(*seconds, *duration),
        }
    }

    fn broker(&mut self, role: Role) -> &mut Broker {
        let files = self.workers[self.active].files();
        let index = match role {
            Role::Leader => self.kafka.leader(&self.corp.topic(), 0),
            Role::Offsets => self.kafka.leader(files.get("offset.storage.topic"), 0),
            Role::Coordinator => self.kafka.coordinator(&format!("{}-{CONNECTOR}-0", files.get("group.id"))),
        };
        &mut self.kafka.brokers()[index]
    }

    fn over(&mut self) -> (Instant, f64) {
        let now = Instant::now();
        (now, self.published())
    }

    fn start_worker(&mut self) -> (Instant, f64) {
        self.worker().start_again();
        (Instant::now(), 0.0)
    }

    /// Waits until the worker has killed itself.
    fn wait_killed(&mut self) {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.worker().process().wait(RECOVERY);
        assert_eq!(status.signal(), Some(9), "the worker was to kill itself, and ended otherwise: {status}");
        self.figures.kill("worker");
    }

    fn zombie(&mut self, point: &str) -> (Instant, f64) {
        self.kill_worker();
        let log = self.worker().log().len();
        self.worker().start_with(&[("WECOM_CONNECTOR_CRASH_POINT", point)]);
        let stopped = self.worker().process().id();
        wait_until("the worker to stop itself", RECOVERY, || is_stopped(stopped));
        let had_place = self.worker().log().split_off(log).contains(HAS_PLACE);
        let zombie = self.active;
        self.active = 1 - zombie;
        let started = self.start_worker();
        self.wait_published(0.0);
        if had_place {
            self.end_as_fenced(zombie);
        } else {
            // A media task has stopped it before its message task was there: that takes the place when it wakes up.
            self.end_one_of_two(zombie);
        }
        started
    }

    fn end_one_of_two(&mut self, sleeping: usize) {
        self.workers[sleeping].process().signal(rustix::process::Signal::CONT);
        let ended = wait_for("one of two workers to end", RECOVERY, || {
            self.workers.iter_mut().position(|worker| worker.process().exited().is_some())
        });
        self.active = 1 - ended;
        self.end_as_fenced(ended);
    }

    fn slow_take_over(&mut self, duration: Duration) -> (Instant, f64) {
        self.wait_media();
        let first = self.active;
        let second = 1 - first;
        self.workers[second].start_with(&[("WECOM_CONNECTOR_CRASH_POINT", "take_over:1 stop")]);
        let stopped = self.workers[second].process().id();
        wait_until("the second worker to stop itself", RECOVERY, || is_stopped(stopped));
        let before = self.published();
        // Its media task may have lost its place already, to that of the second one; that ends the worker.
        let worker = self.worker();
        wait_until("the first worker to go on, or to be fenced", RECOVERY, || {
            worker.process().exited().is_some() || worker.metric(PUBLISHED, &[]).is_some_and(|now| now > before)
        });
        std::thread::sleep(duration);
        self.active = second;
        self.worker().process().signal(rustix::process::Signal::CONT);
        let started = (Instant::now(), 0.0);
        self.wait_published(0.0);
        self.end_as_fenced(first);
        started
    }

    /// The worker whose place was taken wakes up, if it slept, and says so.
    fn end_as_fenced(&mut self, worker: usize) {
        let worker = &mut self.workers[worker];
        worker.process().signal(rustix::process::Signal::CONT);
        let status = worker.process().wait(RECOVERY);
        assert_eq!(
            status.code(),
            Some(77),
            "a worker whose place was taken ended as {status}:\n{}",
            tail(&worker.log())
        );
    }

    /// A stranger reads what the media tasks are to read, and commits nothing.
    fn rebalance(&mut self, duration: Duration, kills: bool) -> (Instant, f64) {
        let group_id = format!("{}-{CONNECTOR}-media", self.workers[self.active].files().get("group.id"));
        let topics = ["-media-requests", "-media-retries"].map(|suffix| self.corp.topic() + suffix);
        let stranger: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", self.kafka.bootstrap())
            .set("group.id", group_id)
            .set("partition.assignment.strategy", "roundrobin")
            .set("enable.auto.commit", "false")
            .create()
            .expect("a consumer");
        stranger.subscribe(&topics.each_ref().map(String::as_str)).expect("a subscription");
        let read = || drop(stranger.poll(LOOK));
        wait_until("the stranger to have its share", RECOVERY, || {
            read();
            stranger.assignment().is_ok_and(|share| share.count() > 0)
        });
        let until = Instant::now() + duration;
        while Instant::now() < until {
            read();
        }
        if kills {
            self.kill_worker();
            self.worker().start_again();
        }
        drop(stranger);
        if kills { (Instant::now(), 0.0) } else { self.over() }
    }

    /// The worker sees the machine's clock through libfaketime, which reads the step from a file.
    fn step_clock(&mut self, seconds: i64, duration: Duration) -> (Instant, f64) {
        self.kill_worker();
        self.clock_behind_s = self.clock_behind_s.max(-seconds);
        self.clock_ahead_s = self.clock_ahead_s.max(seconds);
        let step = self.worker().files().folder().join("clock-step");
        // At once: half a file is no step, and whoever reads that in the middle of a wait, waits for as long as the step was.
        let set = |seconds: i64| {
            let new = step.with_extension("new");
            std::fs::write(&new, format!("{seconds:+}\n")).expect("the clock's step");
            std::fs::rename(&new, &step).expect("the clock's step");
        };
        set(0);
        let path = step.to_str().expect("a path in UTF-8");
        let preload = format!("{}:{FAKETIME}", timed_wait(self.worker().files().folder()).display());
        self.worker().start_with(&[
            ("LD_PRELOAD", &preload),
            ("FAKETIME_TIMESTAMP_FILE", path),
            ("FAKETIME_NO_CACHE", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]);
        self.wait_published(0.0);
        let before = self.published();
        set(seconds);
        // The loss of a host is logged, with the time as the worker sees it.
        self.kill_host();
        wait_until("the step to show in the log", RECOVERY, || {
            let log = self.worker().log();
            let logged = log.lines().last().and_then(|line| line.split(' ').next()?.parse().ok());
            let passed = |time: jiff::Timestamp| time.duration_since(jiff::Timestamp::now()).as_secs();
            logged.map(passed).is_some_and(|passed| (passed - seconds).abs() <= 1)
        });
        self.wait_published(before);
        std::thread::sleep(duration);
        set(0);
        self.over()
    }

    fn library(&mut self, fault: &LibraryFault) -> (Instant, f64) {
        self.faults += 1;
        let round = self.faults;
        let name = |table: usize| format!("fault-{round}-{table}");
        let tables = fault.tables.iter().enumerate().map(|(number, (table, times))| {
            format!("[[fault]]\nname = \"{}\"\ntimes = {times}\n{table}\n", name(number))
        });
        self.corp.change(CORP, &tables.collect::<String>());
        self.kill_host();
        wait_until(&format!("the library to have done all of it: {}", fault.name), RECOVERY, || {
            fault.tables.iter().enumerate().all(|(number, (_, times))| self.corp.strikes(&name(number)) >= *times)
        });
        self.over()
    }
}

/// What libfaketime lacks, as a shared object in this folder: `tests/data/cnd_timedwait.c`.
fn timed_wait(folder: &Path) -> PathBuf {
    let object = folder.join("cnd_timedwait.so");
    let source = repository().join("tests/data/cnd_timedwait.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&object).arg(source).status().expect("cc");
    assert!(compiled.success());
    object
}

/// Whether a signal has stopped it.
fn is_stopped(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
