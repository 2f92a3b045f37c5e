//! What a library that somebody has taken over can reach from the SDK host. The simulator tries it; the vendor's own library shows
//! that nothing it needs is taken from it. And what befalls a host from outside, which must not be laid to a message.

#[path = "common/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use wecom_connector::archive::keyring::KeyRing;
use wecom_connector::archive::page::{self, Element};
use wecom_connector::clock::Clock;
use wecom_connector::metrics::Metrics;
use wecom_connector::sdk::frame::{Request, Response};
use wecom_connector::sdk::process::Process;
use wecom_connector::sdk::{Account, DecryptError, SdkClient, SdkError, SealedMessage};

use harness::{Corp, Fault, PAGES, VendorApi};

const DONE: &str = "done";
const REFUSED: &str = "permission denied";

#[tokio::test]
async fn what_a_host_can_reach() {
    let place = Place::new();
    let [guard, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    let address = |listener: &TcpListener| listener.local_addr().expect("an address");
    let anywhere: SocketAddr = ([127, 0, 0, 1], 0).into();
    let key = place.folder.path().join("7.pem");
    // What is tried; what comes of it behind a guard; what without one.
    let rows = [
        (json!({ "read": key }), REFUSED, DONE),
        (json!({ "read": "/proc/1/environ" }), REFUSED, ""),
        (json!({ "read": "/etc/passwd" }), REFUSED, DONE),
        (json!({ "read": "/dev/urandom/" }), "not a directory", "not a directory"),
        (json!({ "write": place.folder.path().join("new") }), REFUSED, REFUSED),
        (json!({ "write": key }), REFUSED, REFUSED),
        (json!({ "write": "/dev/null" }), DONE, DONE),
        (json!({ "connect": address(&guard) }), DONE, DONE),
        (json!({ "connect": address(&other) }), REFUSED, DONE),
        (json!({ "listen": anywhere }), REFUSED, REFUSED),
        (json!({ "run": "/bin/true" }), REFUSED, REFUSED),
    ];
    let attempts: Vec<String> = rows.iter().map(|(attempt, ..)| attempt.to_string()).collect();
    for guard_port in [Some(address(&guard).port()), None] {
        let corp = Corp::new("messages = 3", &probe(&attempts));
        let process = place.start(&corp, guard_port).await;
        if !process.unconfined.is_empty() {
            eprintln!("this kernel cannot keep the host in, which is not tested then: {:?}", process.unconfined);
            return;
        }
        let came: BTreeMap<String, String> = serde_json::from_slice(&pull(&process).await).expect("answers");
        for (attempt, guarded, direct) in &rows {
            let expected = if guard_port.is_some() { guarded } else { direct };
            let found = &came[&attempt.to_string()];
            assert!(expected.is_empty() || found == expected, "{attempt} behind {guard_port:?}: {found}");
        }
        // The library works all the same: a page, and the state that the simulator keeps in files.
        let page = pull(&process).await;
        assert!(page.starts_with(br#"{"errcode":0"#), "{}", String::from_utf8_lossy(&page));
    }
    assert_eq!(std::fs::read(&key).expect("the key"), KEY, "the key is as it was");
}

#[tokio::test]
async fn what_a_host_inherits() {
    let place = Place::new();
    let corp = Corp::new("messages = 3", &probe(&[json!({ "read": "/proc/self/fd" }).to_string()]));
    let process = place.start(&corp, None).await;
    let came: BTreeMap<String, String> = serde_json::from_slice(&pull(&process).await).expect("answers");
    let descriptors: Vec<&str> = came.values().flat_map(|came| came.split(' ')).collect();
    // Socket, standard output and error, and what the host has opened since. The script has left it a key and a folder, too.
    let strange = descriptors.iter().filter(|name| name.starts_with('/') && !name.starts_with("/proc/"));
    assert!(strange.clone().all(|name| *name == "/dev/null" || name.contains("/scenario.state/")), "{descriptors:?}");
    assert!(descriptors.len() < 10 && descriptors.iter().any(|name| name.starts_with("socket:")), "{descriptors:?}");

    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id)).expect("a status");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id)).expect("limits");
    let limit = |name: &str| limits.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    assert_eq!(limit("Max core file size"), Some("0"));
    assert!(limit("Max open files").and_then(|most| most.parse().ok()).is_some_and(|most: u64| most <= 4096));
}

/// Whatever it does to speak to the API, it can do behind a guard.
#[tokio::test]
async fn the_vendors_library_works_where_it_is_kept() {
    let api = VendorApi::start(harness::SECRET);
    api.file("one", Fault::Body(b"sixteen bytes..."));
    let account = Account {
        corp_id: "ww5ec0000000000001".into(),
        secret: harness::SECRET.into(),
        library: Some(harness::vendor_library()),
        proxy: api.proxy(),
        guard_port: api.proxy().rsplit(':').next().and_then(|port| port.parse().ok()),
        timeout_s: 30,
        ..Account::default()
    };
    assert!(account.guard_port.is_some());
    let process = Process::start(&harness::connector().to_owned(), &account, None).await.expect("a host");
    assert_eq!(pull(&process).await, br#"{"errcode":0,"errmsg":"ok","chatdata":[]}"#);
    let mut media =
        process.call(Request::GetMediaData { sdkfileid: &harness::file_id("one"), index: b"" }).await.expect("a call");
    // Nobody can make a file for it: it was got, and could not be read.
    assert_eq!(media.answer().await.expect("an answer"), Response::Failed { code: 10003 });
    assert_eq!(api.requests(PAGES).len(), 1);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id)).expect("limits");
    assert!(limits.lines().any(|line| line.starts_with("Max file size             0 ")), "{limits}");
    api.assert_no_strays();
}

/// Of deaths of the host, those that the library brings on itself are proof against a message, and no other.
#[tokio::test]
async fn only_the_librarys_own_deaths_are_proof_against_a_message() {
    let place = Place::new();
    let limit = harness::thread_limit(place.folder.path(), 1, harness::EAGAIN);
    let third = "[[fault]]\nfunction = \"DecryptData\"\nseq = [3]\n";
    let faults = |effects: &[&str]| effects.iter().map(|effect| format!("{third}{effect}\n")).collect::<String>();
    let [always, often, twice] = ["times = \"always\"", "times = 50", "times = 2"];
    let [rust, cpp] = ["memory allocation of 65536 bytes failed", "an instance of 'std::bad_alloc'"];
    // What befalls the hosts at the third message; whether each may start one thread alone; what becomes of the
    // messages.
    let rows = [
        (faults(&[&format!("abort = true\n{always}")]), false, Came::SetAside("died of signal 6")),
        (faults(&[&format!("hang = true\n{always}")]), false, Came::SetAside("did not answer within 10 s")),
        (
            faults(&[&format!("kill = true\n{often}")]),
            false,
            Came::GivenBack("was killed by signal 9. The kernel does that"),
        ),
        (faults(&[&format!("abort = true\nstderr = \"{rust}\"\n{twice}")]), false, Came::Opened),
        (faults(&[&format!("abort = true\nstderr = \"{cpp}\"\n{often}")]), false, Came::GivenBack("it got no memory")),
        // One that is stopped, then an abort: there is one proof, and two are needed.
        (faults(&["stop = true", "abort = true\ncall = 2"]), false, Came::Opened),
        (String::new(), true, Came::GivenBack("no thread can be started for a call: Resource temporarily unavailable")),
    ];
    let tried = rows.into_iter().map(|(faults, is_limited, expected)| {
        let (place, limit) = (&place, if is_limited { &limit[..] } else { &[] });
        async move {
            let corp = Corp::new("messages = 5\nmix = { text = 1 }", &faults);
            let messages = place.messages(&corp).await;
            let opened = place.client(&corp, limit).decrypt(&messages).await;
            let what = format!("{faults}: {opened:?}");
            match (expected, opened) {
                (Came::GivenBack(words), Err(SdkError::Unavailable(said))) => assert!(said.contains(words), "{said}"),
                (Came::Opened, Ok(opened)) => assert!(opened.len() == 5 && opened.iter().all(Result::is_ok), "{what}"),
                (Came::SetAside(words), Ok(opened)) => {
                    let crashed: Vec<usize> = (0..opened.len()).filter(|&index| opened[index].is_err()).collect();
                    assert_eq!((opened.len(), &crashed[..]), (5, &[2][..]), "{what}");
                    assert!(matches!(&opened[2], Err(DecryptError::Crash(said)) if said.contains(words)), "{what}");
                }
                _ => panic!("{what}"),
            }
        }
    });
    futures::future::join_all(tried).await;
}

/// What becomes of messages that are decrypted.
enum Came {
    Opened,
    /// All but the third, which is a dead letter: the host did this.
    SetAside(&'static str),
    /// They may all be good, and are tried again: the error says this.
    GivenBack(&'static str),
}

const KEY: &[u8] = b"-----BEGIN PRIVATE KEY-----";

/// A folder with a key that no host is to read, and a program that leaves its hosts an open key.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("7.pem"), KEY).expect("a key");
        Place { folder }
    }

    async fn start(&self, corp: &Corp, guard_port: Option<u16>) -> Process {
        let account = Account { guard_port, ..account(corp) };
        Process::start(&self.program(&corp.scenario(), &[]), &account, None).await.expect("a host")
    }

    /// A client whose hosts have these variables, too.
    fn client(&self, corp: &Corp, environment: &[(&str, String)]) -> SdkClient {
        let metrics = Metrics::new(Clock::system()).connector("archive", &corp.id);
        SdkClient::new(self.program(&corp.scenario(), environment), account(corp), None, metrics)
    }

    /// The corp's first messages, with their keys unwrapped.
    async fn messages(&self, corp: &Corp) -> Vec<SealedMessage> {
        let keys = KeyRing::load(&[], Some(&corp.keys())).expect("keys");
        let page = self.client(corp, &[]).get_chat_data(0, 10).await.expect("a page");
        let records = page::parse(&page, 0).expect("a page").elements.into_iter().map(|element| match element {
            Element::Record(record) => record,
            Element::Malformed(malformed) => panic!("{malformed:?}"),
        });
        records
            .map(|record| SealedMessage {
                key: keys.unwrap(record.publickey_ver, &record.encrypt_random_key).expect("a key"),
                message: record.encrypt_chat_msg,
            })
            .collect()
    }

    /// The connector, in an environment that names the scenario. This process cannot change its own.
    fn program(&self, scenario: &Path, environment: &[(&str, String)]) -> PathBuf {
        let program = self.folder.path().join(harness::unique("connector"));
        let environment = environment.iter().map(|(name, value)| format!("{name}='{value}' ")).collect::<String>();
        let script = format!(
            "#!/bin/sh\nexec 7<'{}' 8</etc\nWECOM_SIMULATOR_SCENARIO='{}' {environment}exec '{}' \"$@\"\n",
            self.folder.path().join("7.pem").display(),
            scenario.display(),
            harness::connector().display()
        );
        std::fs::write(&program, script).expect("a script");
        std::fs::set_permissions(&program, Permissions::from_mode(0o700)).expect("a script that can be run");
        program
    }
}

fn account(corp: &Corp) -> Account {
    Account {
        corp_id: corp.id.clone(),
        secret: harness::SECRET.into(),
        library: Some(harness::simulator_library()),
        timeout_s: 30,
        ..Account::default()
    }
}

/// A fault that answers the first pull with what came of the attempts, which are JSON of one member each.
fn probe(attempts: &[String]) -> String {
    let tables: Vec<String> = attempts.iter().map(|attempt| attempt.replacen(':', " = ", 1)).collect();
    let tables: Vec<String> = tables.iter().map(|table| table.replacen('"', "", 2)).collect();
    format!("[[fault]]\nfunction = \"GetChatData\"\nprobe = [{}]\n", tables.join(", "))
}

async fn pull(process: &Process) -> Vec<u8> {
    let mut call = process.call(Request::GetChatData { seq: 0, limit: 10 }).await.expect("a call");
    match call.answer().await.expect("an answer") {
        Response::ChatData(page) => page,
        other => panic!("{other:?}"),
    }
}
