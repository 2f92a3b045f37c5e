//! What a library that somebody has taken over can reach from the SDK host. The simulator tries it; the vendor's own library shows
//! that nothing it needs is taken from it.

#[path = "common/harness.rs"]
mod harness;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::json;
use wecom_connector::sdk::Account;
use wecom_connector::sdk::frame::{Request, Response};
use wecom_connector::sdk::process::Process;

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
        let account = Account {
            corp_id: corp.id.clone(),
            secret: harness::SECRET.into(),
            library: Some(harness::simulator_library()),
            guard_port,
            timeout_s: 30,
            ..Account::default()
        };
        Process::start(&self.program(&corp.scenario()), &account, None).await.expect("a host")
    }

    /// The connector, in an environment that names the scenario. This process cannot change its own.
    fn program(&self, scenario: &Path) -> PathBuf {
        let program = self.folder.path().join("connector");
        let script = format!(
            "#!/bin/sh\nexec 7<'{}' 8</etc\nWECOM_SIMULATOR_SCENARIO='{}' exec '{}' \"$@\"\n",
            self.folder.path().join("7.pem").display(),
            scenario.display(),
            harness::connector().display()
        );
        std::fs::write(&program, script).expect("a script");
        std::fs::set_permissions(&program, Permissions::from_mode(0o700)).expect("a script that can be run");
        program
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
