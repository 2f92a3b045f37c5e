//! What the rows of the contract are played on: a library in an SDK host, with somebody behind it who answers as the row says.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::Permissions;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::future::join_all;
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;
use wecom_connector::clock::Clock;
use wecom_connector::egress::{Guard, Settings};
use wecom_connector::metrics::Metrics;
use wecom_connector::sdk::ffi::FUNCTION_NAMES;
use wecom_connector::sdk::{Account, DecryptError, MediaChunk, SdkClient, SdkError, SealedMessage};

use wecom_simulator::archive::Archive;
use wecom_simulator::media::Parcel;
use wecom_simulator::random::Random;
use wecom_simulator::scenario::Scenario;
use wecom_simulator::sealing::Seal;

use crate::harness::{self, FILES, Fault, PAGES, PATIENCE, TOKENS, VendorApi, wait_until};

pub const SECRET: &str = "s3cret-OF-the-archive";
/// What the proxy takes, where it asks for something.
pub const PROXY_PASSWORD: &str = "proxy-user:proxy-password";
/// Of a row's file, if it does not say otherwise: two chunks and a bit.
pub const FILE_BYTES: usize = 1_200_000;

// Bodies as a scenario can have them too.
pub const HTML: &[u8] = b"<html><body><h1>502 Bad Gateway</h1></body></html>";
pub const GARBAGE: &[u8] = b"\x1f\x8b\x08\x00\xff\xfe garbage \x80";
pub const NUL: &[u8] = b"{\"errcode\":0,\"errmsg\":\"ok\",\"chatdata\":[]}\0";

/// A library, and what it has behind it. What goes over the network goes to one API, which a scenario answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The simulator, which answers from the scenario itself.
    Scenario,
    /// The simulator on the network.
    Simulator,
    /// The vendor's, as it is on the network.
    Vendor,
    /// The simulator, through the egress guard.
    GuardedSimulator,
    /// The vendor's, through the egress guard.
    GuardedVendor,
}

impl Side {
    pub const ALL: [Side; 5] =
        [Side::Scenario, Side::Simulator, Side::Vendor, Side::GuardedSimulator, Side::GuardedVendor];

    pub fn is_vendor(self) -> bool {
        matches!(self, Side::Vendor | Side::GuardedVendor)
    }

    pub fn is_guarded(self) -> bool {
        matches!(self, Side::GuardedSimulator | Side::GuardedVendor)
    }
}

/// Sides on which a row is not played.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Not {
    Scenario,
    Guarded,
}

impl Not {
    pub fn covers(self, side: Side) -> bool {
        match self {
            Not::Scenario => side == Side::Scenario,
            Not::Guarded => side.is_guarded(),
        }
    }
}

/// One thing that a caller has to know.
pub struct Row {
    pub name: &'static str,
    /// What is different in the account that the library is given. It starts as one that is right, behind a proxy that works.
    pub account: fn(&mut Account),
    /// How the first pulls fare. The others find a drained archive.
    pub pages: &'static [Fault],
    /// How requests for the row's file fare, if not well.
    pub file: &'static [Fault],
    /// What is done, and what has to come of it.
    pub steps: &'static [(Step, &'static str)],
    /// The size of the row's file.
    pub file_bytes: usize,
    /// Where it cannot be run, and why.
    pub not_on: &'static [(Not, &'static str)],
}

/// What is done. Of several calls the answers are put together, each that differs from the one before.
#[derive(Debug)]
pub enum Step {
    Open,
    /// What a loader sees. The library looks its own functions up in the program first, however it is bound itself.
    Symbols,
    /// With these limits.
    Pull(&'static [u32]),
    /// So many at once. The API answers none before all of them are there.
    PullAtOnce(usize),
    /// A new sdk object.
    Renew,
    /// The row's file, from these indices on.
    Media(&'static [&'static str]),
    /// Files with these ids.
    MediaOf(&'static [&'static str]),
    /// The bytes of the row's file that are asked for, or come, with this index.
    Range(&'static str),
    /// The row's file to its end, by the indices that come.
    WholeFile,
    /// With each of these keys, messages of these lengths.
    Decrypt(&'static [&'static [u8]], RangeInclusive<usize>),
    /// Messages of these lengths, each sealed as the vendor's are.
    Sealed(&'static [usize]),
    /// A message that is sealed in another way. What the library gets of it is changed like this.
    SealedAs(&'static [Tamper]),
    /// The row's file, by an id whose key is this text.
    MediaKey(&'static str),
    /// How many tokens were given out by now.
    Tokens,
    HttpVersions,
    /// What the library has printed, as it is logged.
    Noise,
}

/// What is done to a sealed message: to its seal before it is made, or to what came of it.
#[derive(Debug, Clone, Copy)]
pub enum Tamper {
    /// The key opens with another outer key than stands in the message.
    OuterKey,
    /// The key tells another inner key than the message has.
    InnerKey,
    /// So many characters are told to stand before, behind and in the message, whatever stands there.
    Told(usize, usize, usize),
    /// The message ends after so many characters.
    EndsAt(usize),
    /// What the key opens to is no protocol buffer.
    NoParameters,
}

/// A library that is ready for a row's steps.
pub struct Stage<'a> {
    client: SdkClient,
    library: PathBuf,
    corp_id: String,
    sdkfileid: String,
    behind: Behind<'a>,
    log: &'a Log,
    /// Where the row's own part of the log begins.
    logged: usize,
}

/// What the library has behind it.
enum Behind<'a> {
    Scenario(&'a Simulator),
    Api(VendorApi),
}

impl<'a> Stage<'a> {
    pub fn new(row: &Row, number: usize, side: Side, simulator: &'a Simulator, log: &'a Log) -> Stage<'a> {
        let corp_id = corp_id(number);
        let library = if side.is_vendor() { harness::vendor_library() } else { harness::simulator_library() };
        let (behind, program, proxy) = match side {
            Side::Scenario => (Behind::Scenario(simulator), simulator.program.clone(), "http://127.0.0.1:1".to_owned()),
            _ => {
                let scenario = Scenario::load(&simulator.online).expect("the scenario");
                let api = VendorApi::serve(Archive::open(scenario).expect("the state folder"));
                let proxy = api.proxy();
                (Behind::Api(api), simulator.online_program.clone(), proxy)
            }
        };
        let sdkfileid = simulator.files[&corp_id].clone();
        let mut account = Account {
            corp_id: corp_id.clone(),
            secret: SECRET.into(),
            library: Some(library.clone()),
            proxy,
            proxy_password: String::new(),
            guard_port: None,
            timeout_s: 30,
        };
        (row.account)(&mut account);
        assert!(account.proxy.contains("127.0.0.1:"), "{}: the vendor's library must not leave this machine", row.name);
        let metrics = Metrics::new(Clock::system()).connector("contract", &corp_id);
        let mut guard = None;
        if let Behind::Api(api) = &behind {
            let file = Parcel::decode(sdkfileid.as_bytes()).expect("an sdkfileid").file;
            api.fault(row.pages.iter().cloned());
            row.file.iter().for_each(|fault| api.file(&file, fault.clone()));
            if !account.proxy_password.is_empty() {
                api.ask_proxy_password(&BASE64_STANDARD.encode(PROXY_PASSWORD));
            }
            if side.is_guarded() {
                let password = Some(account.proxy_password.clone()).filter(|password| !password.is_empty());
                let settings = Settings {
                    proxy: Some(account.proxy.clone()),
                    proxy_password: password.map(SecretString::from),
                    ca_file: Some(api.ca_file().to_owned()),
                    timeout_ms: u64::from(account.timeout_s.unsigned_abs()) * 1_000,
                    ..Settings::default()
                };
                guard = Some(Guard::new(&settings, metrics.clone()).expect("settings of the guard"));
            }
        }
        let client = SdkClient::new(program, account, guard, metrics);
        Stage { client, library, corp_id, sdkfileid, behind, log, logged: log.text().len() }
    }

    /// Goes through the steps, and says what came otherwise than told.
    pub async fn play(&self, row: &Row) -> Vec<String> {
        let mut wrong = Vec::new();
        for (step, told) in row.steps {
            let came = self.take(step).await;
            if came != *told {
                wrong.push(format!("{step:?} gave {came:?} and not {told:?}"));
            }
        }
        if let Behind::Api(api) = &self.behind {
            api.assert_no_strays();
        }
        wrong
    }

    async fn take(&self, step: &Step) -> String {
        let mut answers = Vec::new();
        match step {
            Step::Open => {
                answers.push(self.client.open().await.map_or_else(|error| error.to_string(), |_| "opened".into()))
            }
            Step::Symbols => {
                let (library, program) = (symbols(&self.library), symbols(harness::connector()));
                let functions = FUNCTION_NAMES.iter().filter(|name| library.contains(**name)).count();
                answers.push(format!("{functions} functions, {} clashes", library.intersection(&program).count()));
            }
            Step::Pull(limits) => {
                for limit in *limits {
                    // Behind the only message.
                    answers.push(page(self.client.get_chat_data(1, *limit).await));
                }
            }
            Step::PullAtOnce(count) => {
                if let Behind::Api(api) = &self.behind {
                    api.fault(Fault::together(*count));
                }
                let pulls = (0..*count).map(|_| self.client.get_chat_data(1, 10));
                answers.extend(join_all(pulls).await.into_iter().map(page));
            }
            Step::Renew => answers.push(self.client.renew().await.map_or_else(code, |()| "renewed".into())),
            Step::Media(indices) => {
                for index in *indices {
                    answers.push(chunk(self.client.get_media_data(&self.sdkfileid, index.as_bytes()).await));
                }
            }
            Step::MediaOf(ids) => {
                for id in *ids {
                    answers.push(chunk(self.client.get_media_data(id, b"").await));
                }
            }
            Step::Range(index) => {
                let chunk = self.client.get_media_data(&self.sdkfileid, index.as_bytes()).await;
                answers.push(match &self.behind {
                    Behind::Api(api) => {
                        api.requests(FILES).pop().and_then(|request| request.range.clone()).unwrap_or_default()
                    }
                    Behind::Scenario(_) => {
                        let start = index.split(['=', '-']).nth(1).map_or(0, |start| start.parse().expect("a number"));
                        chunk.map_or_else(code, |chunk| format!("bytes={start}-{}", start + chunk.data.len() - 1))
                    }
                });
            }
            Step::WholeFile => {
                let (mut index, mut bytes, mut is_finish) = (Vec::new(), 0, false);
                while !is_finish {
                    match self.client.get_media_data(&self.sdkfileid, &index).await {
                        Ok(MediaChunk { data, next_index, is_finish: last, .. }) => {
                            bytes += data.len();
                            answers.push(data.len().to_string());
                            (index, is_finish) = (next_index, last);
                        }
                        Err(error) => return code(error),
                    }
                }
                answers.push(format!("{bytes} bytes"));
            }
            Step::Decrypt(keys, lengths) => {
                let sealed = |length| {
                    keys.iter().map(move |key| SealedMessage { key: key.to_vec(), message: "a".repeat(length) })
                };
                let sealed: Vec<SealedMessage> = lengths.clone().flat_map(sealed).collect();
                match self.client.decrypt(&sealed).await {
                    Ok(results) => answers.extend(results.into_iter().map(|result| match result {
                        Ok(plaintext) => format!("{} bytes", plaintext.len()),
                        Err(DecryptError::Code(code)) => code.to_string(),
                        Err(DecryptError::Crash(reason)) => reason,
                    })),
                    Err(error) => answers.push(code(error)),
                }
            }
            Step::Sealed(lengths) => {
                let mut random = Random::new(1, "contract", 0);
                for length in *lengths {
                    let mut plaintext = vec![0; *length];
                    random.fill(&mut plaintext);
                    let seal = Seal::draw(&mut random, 0);
                    let (key, message) = (seal.key(&mut random), seal.message(&plaintext, &mut random));
                    answers.push(match self.decrypt(key, message).await {
                        Ok(opened) if opened == plaintext => "as it was".to_owned(),
                        Ok(opened) => format!("{} bytes of {length}", opened.len()),
                        Err(what) => what,
                    });
                }
            }
            Step::SealedAs(tampers) => {
                for tamper in *tampers {
                    let (key, message) = tamper.seal();
                    answers.push(self.decrypt(key, message).await.map_or_else(|what| what, |_| "opened".to_owned()));
                }
            }
            Step::MediaKey(key) => {
                let parcel = Parcel::decode(self.sdkfileid.as_bytes()).expect("an sdkfileid");
                let id = Parcel { key: (*key).to_owned(), ..parcel }.encode();
                answers.push(chunk(self.client.get_media_data(&id, b"").await));
            }
            Step::Tokens => answers.push(match &self.behind {
                Behind::Scenario(simulator) => simulator.tokens(&self.corp_id),
                Behind::Api(api) => api.tokens().len().to_string(),
            }),
            Step::HttpVersions => {
                if let Behind::Api(api) = &self.behind {
                    let requests = [TOKENS, PAGES].map(|path| api.requests(path)).concat();
                    answers.extend(requests.into_iter().map(|request| request.version.clone()));
                }
            }
            Step::Noise => {
                let logged = || self.log.text().split_off(self.logged);
                wait_until("the library's words in the log", PATIENCE, || logged().contains("sdk::output"));
                let log = logged();
                let words = log
                    .find("WeWorkFinanceSdk:")
                    .zip(log.find("time:"))
                    .map(|(start, end)| &log[start..end + "time:".len()]);
                answers.push(words.unwrap_or(&log).to_owned());
            }
        }
        answers.dedup();
        answers.join(", ")
    }
}

impl Stage<'_> {
    /// What comes out of one sealed message, or what is in its place.
    async fn decrypt(&self, key: String, message: String) -> Result<Vec<u8>, String> {
        let sealed = SealedMessage { key: key.into_bytes(), message };
        let mut results = self.client.decrypt(&[sealed]).await.map_err(code)?;
        results.remove(0).map_err(|error| match error {
            DecryptError::Code(code) => code.to_string(),
            DecryptError::Crash(reason) => reason,
        })
    }
}

impl Tamper {
    /// Key and message.
    fn seal(self) -> (String, String) {
        let mut random = Random::new(2, "contract", 0);
        let seal = Seal { before: 5, after: 7, inserted: 3, ..Seal::draw(&mut random, 0) };
        let mut message = seal.message(br#"{"msgid":"m"}"#, &mut random);
        let told = match self {
            Tamper::OuterKey => Seal { outer_key: seal.outer_key.chars().rev().collect(), ..seal },
            Tamper::InnerKey => Seal { inner_key: seal.inner_key.iter().rev().copied().collect(), ..seal },
            Tamper::NoParameters => return (seal.close(b"no protocol buffer", &mut random), message),
            Tamper::Told(before, after, inserted) => Seal { before, after, inserted, ..seal },
            Tamper::EndsAt(length) => {
                message.truncate(length);
                seal
            }
        };
        (told.key(&mut random), message)
    }
}

fn page(answer: Result<Vec<u8>, SdkError>) -> String {
    match answer {
        Ok(body) if body.is_empty() => "nothing".to_owned(),
        Ok(body) => match serde_json::from_slice::<Value>(&body) {
            Ok(json) => format!("errcode {}", json["errcode"]),
            Err(_) => body.escape_ascii().to_string(),
        },
        Err(error) => code(error),
    }
}

fn chunk(answer: Result<MediaChunk, SdkError>) -> String {
    answer.map_or_else(code, |chunk| format!("{} bytes", chunk.data.len()))
}

fn code(error: SdkError) -> String {
    match error {
        SdkError::Code { code, .. } => code.to_string(),
        error => error.to_string(),
    }
}

/// What a loader finds in the file.
fn symbols(file: &Path) -> BTreeSet<String> {
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(file).output().expect("nm, of binutils");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = String::from_utf8(output.stdout).expect("names in UTF-8");
    let name = |line: &str| Some(line.rsplit(' ').next()?.split('@').next()?.to_owned());
    lines.lines().filter_map(name).collect()
}

fn corp_id(number: usize) -> String {
    format!("wwrow{}", number + 1)
}

/// One scenario for all rows, with a corp for each; and the same without faults, for an API.
pub struct Simulator {
    folder: TempDir,
    /// The connector, in an environment that names the scenario. This process cannot change its own.
    program: PathBuf,
    online: PathBuf,
    online_program: PathBuf,
    /// The `sdkfileid` of each corp's only message.
    files: BTreeMap<String, String>,
}

impl Simulator {
    /// For rows, each with its number.
    pub fn new<'a>(rows: impl Iterator<Item = (usize, &'a Row)> + Clone) -> Simulator {
        let folder = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let corps = |with_faults| -> String {
            rows.clone().map(|(number, row)| Self::corp(&corp_id(number), row, with_faults)).collect()
        };
        let offline = format!("state_dir = 'state'\n{}", corps(true));
        let online = format!("state_dir = 'state'\nnetwork = {{ api = 'qyapi.weixin.qq.com:443' }}\n{}", corps(false));
        let (scenario, program) = (path("scenario.toml"), Self::program(&path("connector"), &path("scenario.toml")));
        let online_program = Self::program(&path("connector-online"), &path("online.toml"));
        std::fs::write(&scenario, offline).expect("the scenario");
        std::fs::write(path("online.toml"), online).expect("the scenario");

        let messages = Command::new(harness::simulator()).args(["page", "--scenario"]).arg(&scenario).output();
        let messages = messages.expect("the simulator's program: cargo build --workspace");
        assert!(messages.status.success(), "{}", String::from_utf8_lossy(&messages.stderr));
        let files = String::from_utf8(messages.stdout).expect("UTF-8").lines().map(Self::file).collect();
        Simulator { online: path("online.toml"), program, online_program, files, folder }
    }

    /// A script at `path` that is the connector on this scenario.
    fn program(path: &Path, scenario: &Path) -> PathBuf {
        let connector = harness::connector();
        let script = format!(
            "#!/bin/sh\nWECOM_SIMULATOR_SCENARIO='{}' exec '{}' \"$@\"\n",
            scenario.display(),
            connector.display()
        );
        std::fs::write(path, script).expect("a script");
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).expect("a script that can be run");
        path.to_owned()
    }

    /// A corp with a message that has a file, and the row's faults where they are for this side.
    fn corp(id: &str, row: &Row, with_faults: bool) -> String {
        let pulls = row.pages.iter().zip(1..).map(|(fault, call)| ("GetChatData", fault, format!("call = {call}")));
        let files = row.file.iter().map(|fault| ("GetMediaData", fault, "times = 'always'".to_owned()));
        let faults: String = pulls
            .chain(files)
            .filter(|_| with_faults && !row.not_on.iter().any(|(not, _)| not.covers(Side::Scenario)))
            .map(|(function, fault, when)| {
                format!("[[fault]]\ncorp = '{id}'\nfunction = '{function}'\n{when}\n{}\n", effect(fault))
            })
            .collect();
        format!(
            "[[corp]]\nid = '{id}'\nsecret = '{SECRET}'\nmessages = 1\nodd = []\n\
             pinned = [{{ seq = 1, msgtype = 'video', size_bytes = {} }}]\n{faults}",
            row.file_bytes
        )
    }

    /// Corp and file of a line "corp seq bad message".
    fn file(line: &str) -> (String, String) {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        let message: Value = serde_json::from_str(words[3]).expect("a message");
        (words[0].to_owned(), message["video"]["sdkfileid"].as_str().expect("a file").to_owned())
    }

    /// The number of the corp's newest token, as its state folder has it.
    fn tokens(&self, corp_id: &str) -> String {
        let path = self.folder.path().join("state/tokens").join(corp_id);
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().next().unwrap_or("0").to_owned()
    }
}

/// What the scenario says for what the API is told.
fn effect(fault: &Fault) -> String {
    match fault {
        Fault::Errcode(code) => format!("errcode = {code}"),
        Fault::DeadToken => "errcode = 40014".into(),
        Fault::Body(b"") => "body = 'empty'".into(),
        Fault::Body(HTML) => "body = 'html'".into(),
        Fault::Body(GARBAGE) => "body = 'garbage'".into(),
        Fault::Body(NUL) => "body = 'nul'".into(),
        Fault::Silence => "slow_ms = 60000".into(),
        _ => panic!("no scenario can say {fault:?}: its row is not for the simulator"),
    }
}

/// What the connector logs.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("the log")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("the log").write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
