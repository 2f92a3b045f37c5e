//! The documentation says what the program does. Pages that the program can write itself are compared with what it writes:
//! `UPDATE_DOCS=1 cargo test --test docs` writes them anew.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use serde_json::value::RawValue;
use wecom_connector::archive::{ChatRecord, EventContext, event};
use wecom_connector::metrics;

const READMES: [&str; 2] = ["README.md", "README.zh-CN.md"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Holds a page against what the program writes; with UPDATE_DOCS it is replaced.
fn check_page(name: &str, expected: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(root().join(name), expected).unwrap();
    }
    assert!(read(name) == expected, "{name} is out of step: run UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn the_configuration_page_is_what_the_command_prints() {
    let output = Command::new(env!("CARGO_BIN_EXE_wecom-connector")).arg("config").output().unwrap();
    assert!(output.status.success());
    check_page("docs/configuration.md", &String::from_utf8(output.stdout).unwrap());
}

#[test]
fn the_metrics_page_has_every_metric() {
    let introduction = "# Metrics\n\nWhat `GET /metrics` answers, beside the usual `process_…` metrics. Ages, lags and states are \
                        computed at each scrape, so that they also stay true while the connector is idle or stuck.\n\n";
    check_page("docs/metrics.md", &format!("{introduction}{}", metrics::reference()));
}

/// The lines of a page that stand outside of code blocks.
fn prose(page: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    page.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

#[test]
fn both_languages_have_the_same_headings() {
    let levels = |name: &str| -> Vec<usize> {
        prose(&read(name))
            .filter(|line| line.starts_with('#'))
            .map(|line| line.bytes().take_while(|&byte| byte == b'#').count())
            .collect()
    };
    assert_eq!(levels(READMES[0]), levels(READMES[1]));
}

/// The code blocks of a language, `json` for example.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let start = format!("```{language}\n");
    page.split(&start).skip(1).filter_map(|rest| rest.split_once("\n```").map(|(block, _)| block)).collect()
}

#[test]
fn both_languages_show_the_same_examples() {
    let [english, chinese] = READMES.map(read);
    for language in ["json", "properties"] {
        assert!(!blocks(&english, language).is_empty());
        assert_eq!(blocks(&english, language), blocks(&chinese, language), "{language}");
    }
}

#[test]
fn the_example_event_is_what_the_program_makes_of_its_message() {
    let page = read("README.md");
    let shown = blocks(&page, "json").into_iter().next().expect("an example");
    let shown: Value = serde_json::from_str(shown).unwrap();
    let sealed = ChatRecord {
        seq: shown["seq"].as_u64().unwrap(),
        msgid: shown["msgid"].as_str().unwrap().to_owned(),
        publickey_ver: u32::try_from(shown["publickey_ver"].as_u64().unwrap()).unwrap(),
        encrypt_random_key: String::new(),
        encrypt_chat_msg: String::new(),
        raw: RawValue::NULL.to_owned(),
    };
    let context = EventContext {
        connector: "archive",
        task: 0,
        topic: "wecom-messages",
        corp_id: shown["corp_id"].as_str().unwrap(),
        now_ms: shown["msgtime_ms"].as_i64().unwrap() + 1,
    };
    let event = event::build(&context, &sealed, shown["message"].to_string().as_bytes()).unwrap();
    let made: Value = serde_json::from_slice(&event.record.value).unwrap();
    assert_eq!(made, shown, "{made:#}");
    assert_eq!(event.record.key, shown["conversation"]["id"].as_str().unwrap().as_bytes());
}

#[test]
fn links_lead_somewhere() {
    for name in READMES.into_iter().chain(["ARCHITECTURE.md", "CHANGELOG.md", "SECURITY.md"]) {
        let page = read(name);
        let targets: BTreeSet<&str> = page
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
            .filter(|target| !target.starts_with("https://") && !target.starts_with('#'))
            .collect();
        for target in targets {
            assert!(root().join(Path::new(target)).exists(), "{name} links to {target}, which is not there");
        }
    }
}
