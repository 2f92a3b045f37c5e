//! What the egress guard costs and saves: the vendor's library against a stand-in for the vendor's API, direct and guarded in turn, in
//! one run.
//!
//! `tools/bench` runs it. The machine's own speed cancels out in the ratios; the rest is noise of the moment. The stand-in is a
//! process of its own: what it spends on handshakes is the vendor's to spend.

#[path = "../tests/common/harness.rs"]
mod harness;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use harness::{Fault, VendorApi, file_id, vendor_library};
use wecom_connector::clock::Clock;
use wecom_connector::egress::{Guard, Settings};
use wecom_connector::metrics::Metrics;
use wecom_connector::sdk::{Account, SdkClient};
use wecom_simulator::media::FileKey;
use wecom_simulator::server::http;

const SECRET: &str = "s3cret-OF-the-archive";
const ROUNDS: usize = 5;
const CALLS: u32 = 300;
const FILES: u32 = 100;
/// Parts of files that are asked for at a time, as media tasks do.
const AT_ONCE: usize = 4;
const PART_BYTES: u32 = 524_288;
const API: &str = "api";

fn main() {
    if std::env::args().any(|argument| argument == API) {
        return serve();
    }
    // Of a corp that has one token at a time, each way needs its own.
    let apis = [Api::start(), Api::start()];
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let ways = [Way::new(&apis[0], false).await, Way::new(&apis[1], true).await];
        let mut figures = [Figures::default(), Figures::default()];
        for _ in 0..ROUNDS {
            for ((way, api), figures) in ways.iter().zip(&apis).zip(&mut figures) {
                figures.calls.add(way.measure(api, CALLS, Way::pull).await);
                figures.parts.add(way.measure(api, FILES, Way::part).await);
            }
        }
        report(&figures);
    });
}

/// The stand-in, until its parent goes away.
fn serve() {
    let api = VendorApi::start(SECRET);
    // A part of a file that goes on, enciphered with the key of `file_id`.
    let key = FileKey::read("0123456789abcdef0123456789abcdef").expect("a key");
    let content = BASE64_STANDARD.encode(key.encipher(vec![0x5a; PART_BYTES as usize], false));
    let body = format!(r#"{{"errcode":0,"errmsg":"ok","content":"{content}"}}"#);
    let range = format!("CONTENT-RANGE: BYTES 0-{}/{}\r\n", PART_BYTES - 1, 2 * PART_BYTES);
    api.file("part", Fault::Answer(http(206, &range, body.as_bytes()).leak()));
    println!("{} {}", api.proxy(), api.ca_file().display());
    std::io::stdout().flush().expect("stdout");
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

struct Api {
    process: Child,
    proxy: String,
    ca_file: PathBuf,
}

impl Api {
    fn start() -> Api {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        let mut process =
            command.arg(API).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("this program again");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("its output")).read_line(&mut line).expect("a line");
        let (proxy, ca_file) = line.trim().split_once(' ').expect("a proxy and a file");
        Api { proxy: proxy.to_owned(), ca_file: ca_file.into(), process }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The library, direct or guarded, with its host warm.
struct Way(SdkClient);

impl Way {
    async fn new(api: &Api, is_guarded: bool) -> Way {
        let metrics = Metrics::new(Clock::system()).connector("bench", "ww");
        let settings = Settings {
            proxy: Some(api.proxy.clone()),
            ca_file: Some(api.ca_file.clone()),
            timeout_ms: 30_000,
            ..Settings::default()
        };
        let guard = is_guarded.then(|| Guard::new(&settings, metrics.clone()).expect("a guard"));
        let account = Account {
            corp_id: "ww5ec0000000000001".into(),
            secret: SECRET.into(),
            library: Some(vendor_library()),
            proxy: api.proxy.clone(),
            timeout_s: 30,
            ..Account::default()
        };
        let way = Way(SdkClient::new(harness::connector().to_owned(), account, guard, metrics));
        way.pull().await;
        way
    }

    async fn pull(&self) {
        let page = self.0.get_chat_data(0, 10).await.expect("a page");
        assert!(page.starts_with(br#"{"errcode":0"#), "{}", page.escape_ascii());
    }

    async fn part(&self) {
        let parts = (0..AT_ONCE).map(|_| async {
            let chunk = self.0.get_media_data(&file_id("part"), b"").await.expect("a part");
            assert!(chunk.data.len() == PART_BYTES as usize && !chunk.is_finish, "{} bytes", chunk.data.len());
        });
        futures::future::join_all(parts).await;
    }

    async fn measure<'a, F: Future<Output = ()> + 'a>(
        &'a self,
        api: &Api,
        count: u32,
        call: fn(&'a Self) -> F,
    ) -> Sample {
        let (before, start) = (Cpu::now(api), Instant::now());
        for _ in 0..count {
            call(self).await;
        }
        let (elapsed, after) = (start.elapsed(), Cpu::now(api));
        Sample {
            count,
            elapsed,
            worker: after.worker - before.worker,
            host: after.host - before.host,
            api: after.api - before.api,
        }
    }
}

#[derive(Default)]
struct Figures {
    calls: Sample,
    parts: Sample,
}

#[derive(Default)]
struct Sample {
    count: u32,
    elapsed: Duration,
    worker: Duration,
    host: Duration,
    api: Duration,
}

impl Sample {
    fn add(&mut self, more: Sample) {
        self.count += more.count;
        self.elapsed += more.elapsed;
        self.worker += more.worker;
        self.host += more.host;
        self.api += more.api;
    }

    fn per_second(&self) -> f64 {
        f64::from(self.count) / self.elapsed.as_secs_f64()
    }

    fn ms(&self, spent: Duration) -> f64 {
        spent.as_secs_f64() * 1000.0 / f64::from(self.count)
    }
}

/// Time that processes have had of the processor.
struct Cpu {
    worker: Duration,
    host: Duration,
    api: Duration,
}

impl Cpu {
    fn now(api: &Api) -> Cpu {
        let hosts = children().into_iter().filter(|id| is_host(*id));
        Cpu { worker: spent(std::process::id()), host: hosts.map(spent).sum(), api: spent(api.process.id()) }
    }
}

fn is_host(id: u32) -> bool {
    std::fs::read(format!("/proc/{id}/cmdline"))
        .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"sdk-host"))
}

/// Processes that this one has started.
fn children() -> Vec<u32> {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").expect("/proc");
    let ids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    ids.filter(|id| stat(*id).is_some_and(|fields| fields[1] == own)).collect()
}

/// Fields of `/proc/ID/stat` from the state on.
fn stat(id: u32) -> Option<Vec<String>> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').map(str::to_owned).collect())
}

fn spent(id: u32) -> Duration {
    let fields = stat(id).expect("a process that lives");
    let ticks = |field: usize| fields[field].parse::<u64>().expect("a number");
    // A tick is 10 ms on Linux, whatever the kernel's own clock.
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

fn report([direct, guarded]: &[Figures; 2]) {
    let row = |name: &str, value: fn(&Sample) -> f64, of: fn(&Figures) -> &Sample| {
        let (direct, guarded) = (value(of(direct)), value(of(guarded)));
        println!("{name:34} {direct:9.2} {guarded:9.2} {:9.2}", guarded / direct);
    };
    println!("{:34} {:>9} {:>9} {:>9}", "", "direct", "guarded", "ratio");
    let calls: fn(&Figures) -> &Sample = |figures| &figures.calls;
    row("empty pages a second", Sample::per_second, calls);
    row("  CPU a call, worker, ms", |sample| sample.ms(sample.worker), calls);
    row("  CPU a call, SDK host, ms", |sample| sample.ms(sample.host), calls);
    row("  CPU a call, the vendor's side, ms", |sample| sample.ms(sample.api), calls);
    let parts: fn(&Figures) -> &Sample = |figures| &figures.parts;
    let mib = |sample: &Sample| sample.per_second() * (AT_ONCE as f64) * f64::from(PART_BYTES) / f64::from(1 << 20);
    row("media, MiB a second (4 at once)", mib, parts);
    row("  CPU 2 MiB, worker, ms", |sample| sample.ms(sample.worker), parts);
    row("  CPU 2 MiB, SDK host, ms", |sample| sample.ms(sample.host), parts);
    row("  CPU 2 MiB, the vendor's side, ms", |sample| sample.ms(sample.api), parts);
}
