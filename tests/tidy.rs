//! Rules of the layout that no compiler checks: which module may know which, and where `unsafe` and outside crates may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module, and those it may use. Arrows point one way: to the right and down.
const ARROWS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("archive", &[]),
    ("crash_point", &[]),
    ("system", &[]),
    ("config", &["archive"]),
    ("status", &["clock"]),
    ("metrics", &["clock", "status"]),
    ("egress", &["metrics"]),
    ("sdk", &["clock", "egress", "metrics", "system"]),
    ("storage", &["config"]),
    ("kafka", &["archive", "config", "crash_point", "metrics"]),
    (
        "task",
        &[
            "archive",
            "clock",
            "config",
            "crash_point",
            "egress",
            "kafka",
            "metrics",
            "sdk",
            "status",
            "storage",
            "system",
        ],
    ),
    ("verify", &["config", "kafka", "storage"]),
    ("worker", &["archive", "clock", "config", "kafka", "metrics", "sdk", "status", "storage", "system", "task"]),
    (
        "cli",
        &["archive", "clock", "config", "egress", "metrics", "sdk", "storage", "system", "task", "verify", "worker"],
    ),
    ("main", &["cli"]),
];

/// Crates that one part alone knows, so that it can be exchanged there.
const CRATES: &[(&str, &[&str])] = &[
    ("axum", &["worker"]),
    ("clap", &["cli"]),
    ("libloading", &["sdk"]),
    ("opendal", &["storage"]),
    ("opendal_http_transport_reqwest", &["storage"]),
    ("prometheus", &["metrics"]),
    // The configuration asks librdkafka whether it knows a setting.
    ("rdkafka", &["config", "kafka", "verify"]),
    ("rdkafka_sys", &["kafka"]),
    ("reqwest", &["kafka", "storage"]),
];

const UNSAFE: &[&str] = &[
    "src/sdk/ffi.rs",
    "src/kafka/oauth.rs",
    "src/kafka/rights.rs",
    "src/kafka/transaction.rs",
    "simulator/src/abi.rs",
];

#[test]
fn arrows_point_one_way() {
    let mut used: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let module = module(&file);
        if module == "lib" {
            continue;
        }
        let (_, allowed) =
            ARROWS.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} has no row in ARROWS"));
        for name in first_names(&text, if module == "main" { "wecom_connector::" } else { "crate::" }) {
            let is_module = ARROWS.iter().any(|(module, _)| *module == name);
            if is_module && name != module && !allowed.contains(&name.as_str()) {
                wrong.push(format!("{} uses {name}, which {module} must not know", file.display()));
            }
            used.entry(module.clone()).or_default().insert(name);
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(used["task"].contains("kafka"), "the rule sees nothing: {used:?}");
}

#[test]
fn outside_crates_and_unsafe_keep_their_places() {
    let mut wrong = Vec::new();
    for (file, text) in sources("src").into_iter().chain(sources("simulator/src")) {
        for (name, places) in CRATES.iter().filter(|_| file.starts_with("src")) {
            let here = text.contains(&format!("use {name}::")) || text.contains(&format!(" {name}::"));
            if here && !places.contains(&module(&file).as_str()) {
                wrong.push(format!("{} uses {name}", file.display()));
            }
        }
        let is_unsafe = ["unsafe {", "unsafe fn", "unsafe extern"].iter().any(|words| text.contains(words));
        if is_unsafe && !UNSAFE.iter().any(|place| file == Path::new(place)) {
            wrong.push(format!("{} has unsafe", file.display()));
        }
        if file.ends_with("mod.rs") {
            wrong.push(format!("{}: a module is foo.rs and foo/", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The top-level module that a file of `src/` belongs to.
fn module(file: &Path) -> String {
    let first = file.components().nth(1).expect("a file in src/");
    first.as_os_str().to_str().expect("a name in UTF-8").trim_end_matches(".rs").to_owned()
}

/// What follows the prefix, each name of a group `prefix{one::…, two}` for itself.
fn first_names(text: &str, prefix: &str) -> Vec<String> {
    let name =
        |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut names = Vec::new();
    for (_, rest) in text.match_indices(prefix).map(|(at, _)| text.split_at(at + prefix.len())) {
        let Some(group) = rest.strip_prefix('{') else {
            names.push(name(rest));
            continue;
        };
        let mut depth = 0;
        names.push(name(group));
        for (at, character) in group.char_indices() {
            match character {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => names.push(name(&group[at + 1..])),
                _ => (),
            }
        }
    }
    names
}

/// Every Rust file below a folder of the repository, by its path in the repository, without its unit tests.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder of the repository") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
                let text = std::fs::read_to_string(&path).expect("a source file");
                let text = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
                found.push((path.strip_prefix(root).expect("a path in the repository").to_owned(), text));
            }
        }
    }
    found
}
