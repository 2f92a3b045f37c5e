//! Files as WeCom serves them (measured): sealed, in ranges, each with a head that the library reads by its exact
//! bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use aws_lc_rs::cipher::{AES_128, PaddedBlockEncryptingKey, UnboundCipherKey};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::fake::{After, Asked, Fake, Flaw, Service};
use super::harness::{self, file_id};
use super::{CORP, GOOD_TOKEN, SHORT_TIMEOUT_MS, TIMEOUT_MS, account, client_of, proxy, settings, within};
use wecom_connector::clock::Clock;
use wecom_connector::config::{StorageConfig, StorageType};
use wecom_connector::egress::{Guard, Settings};
use wecom_connector::metrics::Metrics;
use wecom_connector::sdk::{Account, SdkClient};
use wecom_connector::storage::Store;
use wecom_connector::task::download::{Downloader, FileRequest};

const MIB: usize = 1 << 20;
/// What the library asks for at once.
const PART_BYTES: usize = 524_288;
/// The key in [`file_id`].
const KEY: [u8; 16] = [0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef];

/// What is wrong with a file's second part, or with its only one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    None,
    /// Once: the answer ends in its middle, without TLS that ends.
    Cut,
    /// Once: the connection is reset in the answer's middle.
    Reset,
    /// Once: the answer is shorter than it says, in order.
    Short,
    /// Once: the rest of the answer does not come in time.
    Late,
    /// Always: fewer bytes than were asked for, as the answer says.
    Smaller,
    /// Always: somebody on the way writes names of headers in lower case.
    LowerCase,
}

impl Trouble {
    fn is_once(self) -> bool {
        !matches!(self, Self::None | Self::Smaller | Self::LowerCase)
    }
}

/// The id, for the library, of a file of this size.
fn id(trouble: Trouble, bytes: usize) -> String {
    file_id(&format!("{trouble:?}-{bytes}"))
}

/// What is in a file. The last byte of each part can be taken for padding, as one byte in sixteen can.
fn content(bytes: usize) -> Vec<u8> {
    let mut part: Vec<u8> = (0..PART_BYTES).map(|at| (at * 31 + at / 251) as u8).collect();
    part[PART_BYTES - 1] = 5;
    let mut content = part.repeat(bytes.div_ceil(PART_BYTES));
    for (number, part) in content.chunks_mut(PART_BYTES).enumerate() {
        part[0] = number as u8;
    }
    content.truncate(bytes);
    content
}

/// All files there can be.
fn service() -> Service {
    let (files, troubled) = (Mutex::default(), Mutex::default());
    Arc::new(move |asked, to| serve(asked, to, &files, &troubled))
}

/// `files` are sealed ones by their size, `troubled` those whose trouble is over.
fn serve(
    asked: &Asked,
    to: &mut dyn Write,
    files: &Mutex<BTreeMap<usize, Arc<Vec<u8>>>>,
    troubled: &Mutex<BTreeSet<String>>,
) -> io::Result<After> {
    let body: Value = serde_json::from_slice(&asked.body).map_err(io::Error::other)?;
    let name = body["fileid"].as_str().expect("a file's id");
    let (trouble, bytes) = name.split_once('-').expect("one of ours");
    let bytes = bytes.parse().expect("a size");
    let sealed =
        files.lock().expect("the files").entry(bytes).or_insert_with(|| Arc::new(seal(content(bytes)))).clone();
    let range = asked.header("range").and_then(|range| range.strip_prefix("bytes=")).expect("a range");
    let (start, last) = range.split_once('-').expect("a range");
    let (start, last): (usize, usize) = (start.parse().expect("a number"), last.parse().expect("a number"));
    let trouble = [Trouble::Cut, Trouble::Reset, Trouble::Short, Trouble::Late, Trouble::Smaller, Trouble::LowerCase]
        .into_iter()
        .find(|other| format!("{other:?}") == trouble)
        .filter(|trouble| start > 0 || sealed.len() <= PART_BYTES || !trouble.is_once())
        .filter(|trouble| !trouble.is_once() || troubled.lock().expect("the files").insert(name.to_owned()))
        .unwrap_or(Trouble::None);
    let last = if trouble == Trouble::Smaller { start + 65_535 } else { last }.min(sealed.len() - 1);
    let part = BASE64_STANDARD.encode(&sealed[start..=last]);
    let answer = format!(r#"{{"errcode":0,"errmsg":"ok","content":"{part}"}}"#);
    let mut head = format!(
        "HTTP/1.1 206 Part of it\r\nSERVER:  nginx \r\nX-Two: 1\r\nCONTENT-RANGE: BYTES {start}-{last}/{}\r\nx-two: 2\r\n\
         Content-Type: application/json; charset=UTF-8\r\nConnection: keep-alive\r\nContent-Length: {}\r\n\r\n",
        sealed.len(),
        answer.len()
    );
    if trouble == Trouble::LowerCase {
        head = head.replace("CONTENT-RANGE: BYTES", "content-range: bytes");
    }
    to.write_all(head.as_bytes())?;
    if !trouble.is_once() {
        to.write_all(answer.as_bytes())?;
        return Ok(After::Keep);
    }
    to.write_all(&answer.as_bytes()[..answer.len() / 2])?;
    Ok(match trouble {
        Trouble::Cut => After::Cut,
        Trouble::Reset => After::Reset,
        Trouble::Short => After::Close,
        _ => {
            to.flush()?;
            std::thread::park();
            After::Cut
        }
    })
}

/// Everything of a file comes, or it is told that it did not: through the guard, and past it through a user's proxy.
#[tokio::test(flavor = "multi_thread")]
async fn files_come_whole_or_it_is_told() {
    // What is wrong, the size, and the words of an error: through the guard, past it.
    let rows: &[(Trouble, usize, [&str; 2])] = &[
        (Trouble::None, 0, ["", ""]),
        (Trouble::None, 1, ["", ""]),
        (Trouble::None, 524_271, ["", ""]),
        // The last part is as long as any: only the guard can tell that it is the last one.
        (Trouble::None, 524_272, ["", "end_unknown"]),
        (Trouble::None, 524_287, ["", "end_unknown"]),
        (Trouble::None, 524_288, ["", ""]),
        (Trouble::None, 524_289, ["", ""]),
        (Trouble::None, MIB, ["", ""]),
        (Trouble::None, 3 * MIB, ["", ""]),
        (Trouble::None, 20 * MIB, ["", ""]),
        (Trouble::Cut, MIB + 1, ["", ""]),
        (Trouble::Cut, 1_000, ["", ""]),
        (Trouble::Reset, MIB + 2, ["", ""]),
        (Trouble::Short, MIB + 3, ["", ""]),
        (Trouble::Late, MIB + 4, ["", ""]),
        (Trouble::Smaller, MIB + 5, ["", ""]),
        (Trouble::LowerCase, 1_001, ["", ""]),
        (Trouble::LowerCase, MIB + 6, ["short", "end_unknown"]),
    ];
    let exceptions = std::env::var_os("no_proxy").unwrap_or_default().to_string_lossy().into_owned();
    assert!(
        !exceptions.contains('*') && !exceptions.contains("qq.com"),
        "no_proxy={exceptions} leads past the test's proxy"
    );
    let (mut wrong, mut heads) = (Vec::new(), Vec::new());
    for (way, name) in ["guarded", "direct"].into_iter().enumerate() {
        let fake = Fake::serve(Flaw::None, GOOD_TOKEN, service());
        let (proxy, _) = proxy::start(proxy::Kind::Http, fake.address).await;
        for &(trouble, bytes, errors) in rows {
            let timeout_ms = if trouble == Trouble::Late { SHORT_TIMEOUT_MS } else { TIMEOUT_MS };
            let metrics = Metrics::new(Clock::system()).connector("files", CORP);
            let client = if name == "guarded" {
                client_of(&Settings { timeout_ms, ..settings(&fake) }).0
            } else {
                let account = Account {
                    proxy: format!("http://{proxy}"),
                    proxy_password: proxy::PASSWORD.into(),
                    ..account(timeout_ms)
                };
                SdkClient::new(harness::connector().to_owned(), account, None, metrics.clone())
            };
            let folder = tempfile::tempdir().expect("a folder");
            let options =
                [("root".to_owned(), folder.path().to_str().expect("UTF-8").to_owned())].into_iter().collect();
            let storage = StorageConfig { kind: StorageType::Fs, options, ..StorageConfig::default() };
            let downloader = Downloader::new(client, Store::open(&storage).expect("a folder"), CORP, None, metrics);
            let sdkfileid = id(trouble, bytes);
            let file = FileRequest {
                media_id: "m",
                sdkfileid: &sdkfileid,
                msgtype: "file",
                declared_md5: None,
                declared_size: None,
                declared_extension: None,
                dated_ms: 0,
                now_ms: 0,
            };
            let came = match downloader.download(&file, &CancellationToken::new()).await {
                Ok(stored) => {
                    let there = std::fs::read(folder.path().join(&stored.content.key)).expect("the object");
                    if there == content(bytes) { "" } else { "stored otherwise" }
                }
                Err(error) => error.reason(),
            };
            if came != errors[way] {
                wrong.push(format!("{name}: {trouble:?} of {bytes} bytes gave {came:?} and not {:?}", errors[way]));
            }
        }
        let seen = fake.seen.heads.lock().expect("the heads");
        heads.push(seen.iter().map(|head| head.replace(" HTTP/1.1\r\n", " HTTP/1.0\r\n")).collect::<BTreeSet<_>>());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What the library says reaches WeCom as it is, but for the version, and so does what comes back.
    assert_eq!(heads[0], heads[1]);
    let fake = Fake::serve(Flaw::None, GOOD_TOKEN, service());
    let metrics = Metrics::new(Clock::system()).connector("files", CORP);
    let guard = Guard::new(&settings(&fake), metrics).expect("a guard");
    let pass = guard.admit().await.expect("a pass");
    let body = r#"{"fileid":"None-1"}"#;
    let request = format!(
        "POST /cgi-bin/message/getchatmediadata?access_token=t HTTP/1.0\r\nHost: qyapi.weixin.qq.com\r\nRange:bytes=0-15\r\nX-ODD:  1 \r\n\
         content-LENGTH: {}\r\nx-odd: 2\r\n\r\n{body}",
        body.len()
    );
    let answer = within::ask(&pass, request.as_bytes()).await;
    let head = "HTTP/1.1 206 Part of it\r\nSERVER:  nginx \r\nX-Two: 1\r\nCONTENT-RANGE: BYTES 0-15/16\r\nx-two: 2\r\n\
        Content-Type: application/json; charset=UTF-8\r\nContent-Length: 64\r\nConnection: close\r\n\r\n{\"errcode\":0,";
    assert!(answer.starts_with(head), "{answer}");
    let seen = fake.seen.heads.lock().expect("the heads").concat();
    assert_eq!(seen, request.replace("HTTP/1.0", "HTTP/1.1").strip_suffix(body).expect("its body"));
}

fn seal(mut content: Vec<u8>) -> Vec<u8> {
    let key = UnboundCipherKey::new(&AES_128, &KEY).expect("a key");
    PaddedBlockEncryptingKey::ecb_pkcs7(key).expect("a key").encrypt(&mut content).expect("sealed");
    content
}
