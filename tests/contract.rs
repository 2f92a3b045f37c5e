//! What a caller has to know of the vendor's library, row by row, and the same rows on the simulator that stands in for it: so
//! that the simulator stays true, and a new version of the library shows what is different in it.
//!
//! Both are called as the connector calls them, in an SDK host. The simulator answers from its scenario first; then both go over
//! the network to one stand-in for the vendor's API on loopback, as they are and through the egress guard. A row tells all the
//! same. One that cannot be run on a side says why, here and in the table that this test prints.

#[path = "common/harness.rs"]
mod harness;
#[path = "contract/stage.rs"]
mod stage;

use std::collections::BTreeSet;
use std::io::Write;

use harness::Fault::{Body, Cut, DeadToken, Errcode, LowerCase, Silence, Status};
use stage::Step::*;
use stage::Tamper::{EndsAt, InnerKey, NoParameters, OuterKey, Told};
use stage::{FILE_BYTES, GARBAGE, HTML, Log, NUL, Not, PROXY_PASSWORD, Row, SECRET, Side, Simulator, Stage};

const WRONG_SECRET: &str = "s3cret-OF-another";

const NO_NETWORK: &str = "from its scenario the simulator answers without a network";
const GUARDED: &str = "the guard goes its own way";

const REFUSED: &str =
    "the vendor's library refuses the account: Init answered 10000; check wecom.corp.id and wecom.secret";

/// One that may be meant for 32 bytes, and ones that may not.
const KEY: &[u8] = b"a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=";
const BAD_KEYS: &[&[u8]] = &[b"", b"k", b"kkkkkkkkkkkkkkkkkkkkkkkkkkkkkkkk", b"a2tra2tra2tra2tra2traw==", b"\xff\xfe*"];

const ROW: Row =
    Row { name: "", account: |_| (), pages: &[], file: &[], steps: &[], file_bytes: FILE_BYTES, not_on: &[] };
const MEDIA_10002: Row = Row { steps: &[(Media(&[""]), "10002")], ..ROW };
const MEDIA_10003: Row = Row { steps: &[(Media(&[""]), "10003")], ..ROW };

const ROWS: &[Row] = &[
    Row {
        name: "its 17 functions are there, and no symbol of it meets one of the connector's",
        steps: &[(Open, "opened"), (Symbols, "17 functions, 0 clashes")],
        ..ROW
    },
    Row {
        name: "Init takes any corp and secret, and asks nobody",
        account: |account| (account.corp_id, account.secret) = ("nobody".into(), WRONG_SECRET.into()),
        steps: &[(Open, "opened"), (Tokens, "0"), (Pull(&[10]), "10001")],
        ..ROW
    },
    Row {
        name: "Init refuses an empty corp and secret",
        account: |account| (account.corp_id, account.secret) = (String::new(), String::new()),
        steps: &[(Open, REFUSED)],
        ..ROW
    },
    Row {
        name: "Init refuses an empty secret",
        account: |account| account.secret = String::new(),
        steps: &[(Open, REFUSED)],
        ..ROW
    },
    Row {
        name: "the token is got by an object's first call, and kept",
        steps: &[
            (Open, "opened"),
            (Tokens, "0"),
            (Pull(&[10]), "errcode 0"),
            (Pull(&[10]), "errcode 0"),
            (Tokens, "1"),
        ],
        ..ROW
    },
    Row {
        name: "limits are 1 to 1000; others are 10000, and nobody is asked",
        steps: &[(Pull(&[0, 1_001, u32::MAX]), "10000"), (Tokens, "0"), (Pull(&[1, 1_000]), "errcode 0")],
        ..ROW
    },
    Row {
        name: "an errcode comes with return code 0",
        pages: &[Errcode(-1), Errcode(45_009), Errcode(60_020), Errcode(301_042), Errcode(301_052), Errcode(42_001)],
        steps: &[(
            Pull(&[10; 6]),
            "errcode -1, errcode 45009, errcode 60020, errcode 301042, errcode 301052, errcode 42001",
        )],
        ..ROW
    },
    Row {
        name: "an object keeps a dead token; a new one has a new token",
        pages: &[DeadToken],
        steps: &[
            (Pull(&[10, 10, 10]), "errcode 40014"),
            (Media(&["", ""]), "10002"),
            (Pull(&[10]), "errcode 40014"),
            (Renew, "renewed"),
            (Pull(&[10]), "errcode 0"),
        ],
        ..ROW
    },
    Row {
        name: "a refused secret is 10001, and the reason is printed raw on stdout",
        account: |account| account.secret = WRONG_SECRET.into(),
        steps: &[
            (Pull(&[10, 10]), "10001"),
            (Media(&[""]), "10001"),
            (MediaOf(&["no file id"]), "10001"),
            (Noise, r#"WeWorkFinanceSdk:access:{"errcode":40001,"errmsg":"invalid secret [secret] ??"}??time:"#),
        ],
        ..ROW
    },
    Row {
        name: "a body that is no JSON, or empty, comes as it is with return code 0",
        pages: &[Body(HTML), Body(GARBAGE), Body(b"")],
        steps: &[(
            Pull(&[10, 10, 10]),
            r"<html><body><h1>502 Bad Gateway</h1></body></html>, \x1f\x8b\x08\x00\xff\xfe garbage \x80, nothing",
        )],
        ..ROW
    },
    Row {
        name: "a NUL byte does not end a body: its length counts",
        pages: &[Body(NUL)],
        steps: &[(Pull(&[10]), r#"{\"errcode\":0,\"errmsg\":\"ok\",\"chatdata\":[]}\x00"#)],
        ..ROW
    },
    Row {
        name: "a status that is none of success, or half an answer, is 10001",
        pages: &[Status(500), Status(404), Status(302), Cut],
        file: &[Status(500)],
        steps: &[(Pull(&[10; 4]), "10001"), (Media(&[""]), "10001"), (Pull(&[10]), "errcode 0")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row {
        name: "an answer that does not come in time is 10001",
        account: |account| account.timeout_s = 1,
        pages: &[Silence],
        steps: &[(Pull(&[10]), "10001")],
        ..ROW
    },
    Row {
        name: "a time-out of 0 is taken, and is none",
        account: |account| account.timeout_s = 0,
        steps: &[(Pull(&[10]), "errcode 0")],
        not_on: &[(Not::Guarded, GUARDED)],
        ..ROW
    },
    Row {
        name: "another status of success is one",
        pages: &[Status(206), Status(201)],
        steps: &[(Pull(&[10, 10]), "nothing")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row {
        name: "a call is a connection of its own, HTTP/1.0, and no certificate is verified",
        steps: &[(Pull(&[10, 10]), "errcode 0"), (HttpVersions, "HTTP/1.0")],
        not_on: &[(Not::Scenario, NO_NETWORK), (Not::Guarded, GUARDED)],
        ..ROW
    },
    Row {
        name: "a dead proxy is 10001",
        account: |account| account.proxy = "http://127.0.0.1:1".into(),
        steps: &[(Pull(&[10]), "10001"), (Media(&[""]), "10001")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row {
        name: "a proxy without a scheme is taken as http",
        account: |account| account.proxy = account.proxy.replace("http://", ""),
        steps: &[(Pull(&[10]), "errcode 0")],
        ..ROW
    },
    Row {
        name: "the scheme of a proxy is read without regard to case",
        account: |account| account.proxy = account.proxy.replace("http://", "HTTP://"),
        steps: &[(Pull(&[10]), "errcode 0")],
        ..ROW
    },
    Row {
        name: "a proxy of a scheme that is none of a proxy is 10001",
        account: |account| account.proxy = account.proxy.replace("http://", "ftp://"),
        steps: &[(Pull(&[10]), "10001"), (Media(&[""]), "10001"), (Tokens, "0")],
        not_on: &[(Not::Guarded, GUARDED)],
        ..ROW
    },
    Row {
        name: "user and password go to the proxy",
        account: |account| account.proxy_password = PROXY_PASSWORD.into(),
        steps: &[(Pull(&[10]), "errcode 0")],
        ..ROW
    },
    Row {
        name: "a proxy that refuses user and password is 10001",
        account: |account| account.proxy_password = "proxy-user:another".into(),
        steps: &[(Pull(&[10]), "10001"), (Tokens, "0")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row { name: "errcode 45009 in place of a file is 10002", file: &[Errcode(45_009)], ..MEDIA_10002 },
    Row { name: "errcode -1 in place of a file is 10002", file: &[Errcode(-1)], ..MEDIA_10002 },
    Row {
        name: "errcode 301042 in place of a file is 10009",
        file: &[Errcode(301_042)],
        steps: &[(Media(&[""]), "10009")],
        ..ROW
    },
    Row {
        name: "errcode 301048 in place of a file is 10010",
        file: &[Errcode(301_048)],
        steps: &[(Media(&["", "Range:bytes=524288-1048575"]), "10010")],
        ..ROW
    },
    Row { name: "a file that cannot be decoded is 10003", file: &[Body(GARBAGE)], ..MEDIA_10003 },
    Row { name: "an empty file is 10003", file: &[Body(b"")], ..MEDIA_10003 },
    Row {
        name: "JSON without an errcode in place of a file is 10003",
        file: &[Body(b"{}")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..MEDIA_10003
    },
    Row {
        name: "a malformed sdkfileid is 10005, after a token was got and before the file is asked for",
        pages: &[DeadToken],
        steps: &[(Pull(&[10]), "errcode 40014"), (MediaOf(&["no file id", "AAAA", "zz*zz", "CgF"]), "10005")],
        ..ROW
    },
    Row {
        name: "a malformed index, or no sdkfileid, is 10000, and nobody is asked",
        steps: &[
            (
                Media(&["x", "524288", "bytes=0-524287", "range:bytes=0-524287", "Range:bytes=0-", "Range:bytes=9-3"]),
                "10000",
            ),
            (MediaOf(&[""]), "10000"),
            (Tokens, "0"),
        ],
        ..ROW
    },
    Row {
        name: "an index asks for whole blocks of 16 bytes",
        file: &[Errcode(301_048)],
        steps: &[
            (Media(&["Range:bytes=0-14", "Range:bytes=0-524286", "Range:bytes=524288-600000"]), "10000"),
            (Media(&["Range:bytes=0-15", "Range:bytes=7-524294", "Range:bytes=8589934592-8590458879"]), "10010"),
        ],
        ..ROW
    },
    Row {
        name: "a call of GetMediaData is for 524288 bytes",
        steps: &[(Range(""), "bytes=0-524287"), (Range("Range:bytes=524288-1048575"), "bytes=524288-1048575")],
        ..ROW
    },
    Row {
        name: "a chunk's index leads to the next, to the end",
        steps: &[(WholeFile, "524288, 151424, 1200000 bytes")],
        ..ROW
    },
    Row {
        name: "the next chunk is found by CONTENT-RANGE in capitals; in small letters the file ends, and its padding is none",
        file: &[LowerCase],
        steps: &[(WholeFile, "10006")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row { name: "a file of 0 bytes", file_bytes: 0, steps: &[(WholeFile, "0, 0 bytes")], ..ROW },
    Row { name: "a file of 1 byte", file_bytes: 1, steps: &[(WholeFile, "1, 1 bytes")], ..ROW },
    Row {
        name: "a file that ends a byte before a chunk does",
        file_bytes: 524_287,
        steps: &[(WholeFile, "524287, 524287 bytes")],
        ..ROW
    },
    Row {
        name: "padding takes a byte at least: a file that fills a chunk has an empty one behind it",
        file_bytes: 524_288,
        steps: &[(WholeFile, "524288, 0, 524288 bytes")],
        ..ROW
    },
    Row {
        name: "a file of a chunk and a byte",
        file_bytes: 524_289,
        steps: &[(WholeFile, "524288, 1, 524289 bytes")],
        ..ROW
    },
    Row { name: "a file of 3 MiB", file_bytes: 3 << 20, steps: &[(WholeFile, "524288, 0, 3145728 bytes")], ..ROW },
    Row {
        name: "content that is no base64, or none, is 10003",
        file: &[Body(br#"{"errcode":0,"errmsg":"ok","content":"*"}"#)],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..MEDIA_10003
    },
    Row {
        name: "content that is not of whole blocks does not open",
        file: &[Body(br#"{"errcode":0,"errmsg":"ok","content":"QUJD"}"#)],
        steps: &[(Media(&[""]), "10006")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row {
        name: "a key that is none does not open a file",
        file_bytes: 100,
        steps: &[(MediaKey(""), "10006"), (MediaKey("00"), "10006"), (MediaKey("zz"), "10006")],
        not_on: &[(Not::Scenario, NO_NETWORK)],
        ..ROW
    },
    Row {
        name: "an encrypt_key that cannot be parsed is 10008",
        steps: &[(Decrypt(BAD_KEYS, 64..=64), "10008")],
        ..ROW
    },
    Row {
        name: "an encrypt_msg under 13 bytes aborts the process, whatever its key; the next call has a new host",
        steps: &[
            (Decrypt(&[KEY, b""], 0..=12), "died of signal 6"),
            (Decrypt(&[KEY], 13..=13), "10008"),
            (Pull(&[10]), "errcode 0"),
        ],
        ..ROW
    },
    Row {
        name: "an encrypt_msg of 13 bytes or more does not abort",
        steps: &[(Decrypt(&[KEY, b""], 13..=80), "10008"), (Decrypt(&[KEY], 1_000_000..=1_000_001), "10008")],
        ..ROW
    },
    Row {
        name: "a sealed message of any length opens, byte for byte",
        steps: &[(Sealed(&[0, 1, 15, 16, 17, 1_000, 1_000_000]), "as it was")],
        ..ROW
    },
    Row {
        name: "a message whose outer key is not the key's is 10008; whose inner key is another, 10006",
        steps: &[(SealedAs(&[OuterKey]), "10008"), (SealedAs(&[InnerKey]), "10006")],
        ..ROW
    },
    Row {
        name: "a key whose parameters cannot be read, or do not fit the message, is 10005",
        steps: &[(
            SealedAs(&[
                NoParameters,
                Told(5, 7, 0),
                Told(5, 7, 1_000),
                Told(1_000, 7, 3),
                Told(5, 1_000, 3),
                EndsAt(45),
            ]),
            "10005",
        )],
        ..ROW
    },
    Row {
        name: "a message that ends before what is inserted aborts the process, however long it is",
        steps: &[(SealedAs(&[EndsAt(50), EndsAt(52)]), "died of signal 6"), (SealedAs(&[EndsAt(53)]), "10005")],
        ..ROW
    },
    Row {
        name: "calls on one object go side by side",
        steps: &[(Pull(&[10]), "errcode 0"), (PullAtOnce(5), "errcode 0"), (PullAtOnce(5), "errcode 0"), (Tokens, "1")],
        ..ROW
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn both_libraries_keep_the_contract() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let rows = || ROWS.iter().enumerate();
    let simulator = Simulator::new(rows());
    let (mut broken, mut table) = (Vec::new(), String::new());
    let headings = ["scenario", "simulator", "vendor", "s. guarded", "v. guarded"];
    table += &format!("    {}\n", headings.map(|heading| format!("{heading:10}")).join(" "));
    for (number, row) in rows() {
        let (mut words, mut reasons) = (Vec::new(), BTreeSet::new());
        for side in Side::ALL {
            if let Some(reason) = reason_not_to_run(row, side) {
                words.push("not run");
                reasons.insert(reason);
                continue;
            }
            let wrong = Stage::new(row, number, side, &simulator, &log).play(row).await;
            words.push(if wrong.is_empty() { "as told" } else { "OTHERWISE" });
            broken.extend(wrong.into_iter().map(|wrong| format!("{}, {side:?}: {wrong}", row.name)));
        }
        let words: String = words.iter().map(|word| format!("{word:10} ")).collect();
        let reasons: String = reasons.iter().map(|reason| format!(" ({reason})")).collect();
        table += &format!("{:2}  {words} {}{reasons}\n", number + 1, row.name);
    }
    // Past the test runner, which keeps what a passing test prints: what was not run has to be seen.
    std::io::stderr().write_all(table.as_bytes()).expect("stderr");
    for secret in [SECRET, WRONG_SECRET, "proxy-password", "t0kenT0KEN"] {
        assert!(!log.text().contains(secret), "{secret} is in the log:\n{}", log.text());
    }
    assert!(broken.is_empty(), "{} answers are not as told:\n{}", broken.len(), broken.join("\n"));
}

fn reason_not_to_run(row: &Row, side: Side) -> Option<String> {
    if let Some((_, reason)) = row.not_on.iter().find(|(not, _)| not.covers(side)) {
        return Some((*reason).to_owned());
    }
    let is_there = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    (side.is_vendor() && !is_there).then(|| format!("the vendor has no library for {}", std::env::consts::ARCH))
}
