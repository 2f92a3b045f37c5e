//! Everything that comes from outside, attacked: the targets of `fuzz/`, on the toolchain of everything else and for seconds.
//!
//! Each target runs on its corpus, on inputs that are large or deep on purpose, and on mutations of the corpus. These are the same
//! in every run; `FUZZ_CASES=N` makes N of each target, `FUZZ_SEED=S` makes others. An input that fails is written to a file, whose
//! place from then on is the corpus.
//!
//! Alone in its binary, because the allocator that counts is the process's: no input may cost memory beyond its own size.

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use peak_alloc::PeakAlloc;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

type Target = (&'static str, fn(&[u8]));

const TARGETS: [Target; 6] = [
    ("page", targets::page),
    ("message", targets::message),
    ("frame", targets::frame),
    ("configuration", targets::configuration),
    ("media_request", targets::media_request),
    ("scenario", targets::scenario),
];

/// What breaks parsers, and what they look for.
const TOKENS: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"=",
    b"\n",
    b"\\\n",
    b"#",
    b" ",
    b"\0",
    b"\x11",
    b"\x1b",
    b"\x7f",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"\xc2\x85",
    b"\\ud83d",
    b"\\u0000",
    b"\\\"",
    b"null",
    b"true",
    b"-1",
    b"0",
    b"1e999",
    b"0.0",
    b"nan",
    b"inf",
    b"65536",
    b"4294967296",
    b"9223372036854775807",
    b"-9223372036854775808",
    b"18446744073709551615",
    b"18446744073709551616",
    b"sdkfileid",
    b"{\"sdkfileid\":\"x\"}",
    b"\"{\\\"sdkfileid\\\":\\\"x\\\"}\"",
    b"msgid",
    b"\"seq\":8",
    b"config",
    b"name",
    b"[[corp]]\n",
    b"\x80\x80\x80\x80\x0f",
    b"\xff\xff\xff\xff",
];

/// One change of an input. Positions are shares of its length, so that they fit any.
#[derive(Debug, Clone)]
enum Edit {
    Replace(f64, u8),
    Insert(f64, usize),
    Delete(f64, usize),
    Double(f64, usize),
    /// The next number becomes a token.
    Number(f64, usize),
    /// From here on, what another input has from there on.
    Splice(f64, usize, f64),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let (place, token, length) = (0.0..1.0, 0..TOKENS.len(), 1..40_usize);
    prop::collection::vec(
        prop_oneof![
            (place.clone(), any::<u8>()).prop_map(|(at, byte)| Edit::Replace(at, byte)),
            (place.clone(), token.clone()).prop_map(|(at, token)| Edit::Insert(at, token)),
            (place.clone(), length.clone()).prop_map(|(at, length)| Edit::Delete(at, length)),
            (place.clone(), length).prop_map(|(at, length)| Edit::Double(at, length)),
            (place.clone(), token).prop_map(|(at, token)| Edit::Number(at, token)),
            (place.clone(), any::<usize>(), place).prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
        ],
        0..8,
    )
}

fn mutated(corpus: &[Vec<u8>], first: usize, edits: &[Edit]) -> Vec<u8> {
    let place = |share: f64, bytes: &[u8]| (share * (bytes.len() + 1) as f64) as usize;
    let mut bytes = corpus[first % corpus.len()].clone();
    for edit in edits {
        match *edit {
            Edit::Replace(at, byte) => {
                let at = place(at, &bytes);
                bytes.splice(at..(at + 1).min(bytes.len()).max(at), [byte]);
            }
            Edit::Insert(at, token) => {
                let at = place(at, &bytes);
                bytes.splice(at..at, TOKENS[token].iter().copied());
            }
            Edit::Delete(at, length) => {
                let at = place(at, &bytes);
                bytes.drain(at..(at + length).min(bytes.len()));
            }
            Edit::Double(at, length) => {
                let at = place(at, &bytes);
                let copy = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.splice(at..at, copy);
            }
            Edit::Number(at, token) => {
                let at = place(at, &bytes);
                let digits = |from: usize, is: bool| {
                    bytes[from..].iter().position(|byte| byte.is_ascii_digit() == is).map_or(bytes.len(), |n| from + n)
                };
                let start = digits(at, true);
                let end = digits(start, false);
                bytes.splice(start..end, TOKENS[token].iter().copied());
            }
            Edit::Splice(at, other, from) => {
                let other = &corpus[other % corpus.len()];
                bytes.truncate(place(at, &bytes));
                bytes.extend_from_slice(&other[place(from, other).min(other.len())..]);
            }
        }
    }
    bytes
}

/// Runs a target on one input, and holds the memory that it takes against the input's size.
fn run((_, target): Target, input: &[u8]) {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    target(input);
    let taken = HEAP.peak_usage().saturating_sub(before);
    assert!(taken <= (8 << 20) + 200 * input.len(), "{taken} bytes of memory for {} bytes", input.len());
}

#[test]
fn nothing_from_outside_breaks_an_invariant() {
    let number = |name: &str| {
        std::env::var_os(name).map(|text| text.to_str().and_then(|text| text.parse::<u32>().ok()).expect("a number"))
    };
    let cases = number("FUZZ_CASES").unwrap_or(1_500);
    let seed = number("FUZZ_SEED").unwrap_or(0);
    for target in TARGETS {
        let corpus: Vec<(PathBuf, Vec<u8>)> = corpus(target.0);
        for (path, input) in &corpus {
            let result = panic::catch_unwind(AssertUnwindSafe(|| run(target, input)));
            assert!(result.is_ok(), "{} fails on {}, see above", target.0, path.display());
        }
        for (number, input) in bombs(target.0).iter().enumerate() {
            let result = panic::catch_unwind(AssertUnwindSafe(|| run(target, input)));
            assert!(result.is_ok(), "{} fails on bomb {number}, see above", target.0);
        }
        let corpus: Vec<Vec<u8>> = corpus.into_iter().map(|(_, input)| input).collect();

        let mut seed_bytes = [0; 32];
        seed_bytes[..4].copy_from_slice(&seed.to_be_bytes());
        let config = Config { cases, failure_persistence: None, ..Config::default() };
        let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes));
        let result = runner.run(&(any::<usize>(), edits()), |(first, edits)| {
            run(target, &mutated(&corpus, first, &edits));
            Ok(())
        });
        if let Err(TestError::Fail(reason, (first, edits))) = result {
            let input = mutated(&corpus, first, &edits);
            let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.0));
            std::fs::write(&path, &input).expect("a file for the input");
            panic!("{}: {reason}\nthe input, {}: {}", target.0, path.display(), input.escape_ascii());
        }
    }
}

/// The inputs of a target that stand in the repository.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(&folder)
        .expect("a folder of inputs")
        .map(|file| file.expect("a file").path())
        .map(|path| (path.clone(), std::fs::read(path).expect("an input")))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

/// Inputs that would cost far more than their size if somebody recursed, guessed or multiplied.
fn bombs(target: &str) -> Vec<Vec<u8>> {
    const DEEP: usize = 200_000;
    let nested = |open: &str, inside: &str, close: &str| [&open.repeat(DEEP), inside, &close.repeat(DEEP)].concat();
    let file = r#"{"sdkfileid":"x"}"#;
    let files = format!("[{}]", vec![file; 3_000].join(","));
    let long = "x".repeat(1 << 20);
    let texts = match target {
        "page" => vec![
            format!(r#"{{"errcode":0,"chatdata":{}}}"#, nested("[", "", "]")),
            format!(r#"{{"errcode":0,"chatdata":[{}]}}"#, nested(r#"{"seq":"#, "8", "}")),
            format!(r#"{{"errcode":0,"chatdata":[{}{{"seq":8}}]}}"#, "null,".repeat(DEEP)),
            format!(r#"{{"errcode":0,"chatdata":[{}{{"seq":8}}]}}"#, r#"{"seq":8},"#.repeat(DEEP)),
            format!(r#"{{"errcode":1,"errmsg":"{}"}}"#, "\u{1}".repeat(DEEP)),
        ],
        "message" => {
            // A string in a string in a string: each level doubles the backslashes.
            let mut strings = file.to_owned();
            while strings.len() < 1 << 20 {
                strings = serde_json::json!([strings]).to_string();
            }
            vec![
                nested(r#"{"a":"#, file, "}"),
                format!(r#"{{"a":{}}}"#, nested("[", file, "]")),
                format!(r#"{{"a":{strings}}}"#),
                format!(r#"{{"a":{}}}"#, serde_json::json!(nested("[", "sdkfileid", ""))),
                format!(r#"{{"from":"{long}","tolist":["b"],"a":{files}}}"#),
                format!(r#"{{"roomid":"{long}","a":{files}}}"#),
                format!(r#"{{"msgid":"{long}","msgtype":"{long}","a":{files}}}"#),
                format!(r#"{{"tolist":[{}"x"],"a":{files}}}"#, r#""x","#.repeat(DEEP)),
                format!(r#"{{"{long}":{files},"a":{{"sdkfileid":"{long}"}}}}"#),
                format!(r#"{{"a":{{"filename":"{long}","sdkfileid":"x"}},"b":"{}"}}"#, "\u{1}".repeat(1 << 20)),
                format!(r#"{{"a":[{}1]}}"#, r#"{"sdkfileid":"x","sdkfileid":"y"},"#.repeat(3_000)),
            ]
        }
        "configuration" => vec![
            format!("{long}=1"),
            format!("name={}", &long[..1 << 19]),
            (0..2_000).map(|number| format!("wecom.secret.{number}=1\n")).collect(),
            nested(r#"{"a":"#, "1", "}"),
            format!("{{\"a\":{}}}", nested("[", "", "]")),
        ],
        "media_request" => vec![nested("[", "", "]"), nested(r#"{"a":"#, "1", "}")],
        "scenario" => vec![
            format!("a = {}", nested("[", "", "]")),
            format!("{} = 1", vec!["a"; DEEP].join(".")),
            format!("a = {}", nested("{ b = ", "1", " }")),
        ],
        _ => vec![],
    };
    texts.into_iter().map(String::into_bytes).collect()
}
