//! `config` and `validate`: the reference of all keys, and a check of files without a start.

use std::io::Write;
use std::path::PathBuf;

use crate::archive::keyring::KeyRing;
use crate::cli::connect::{self, Refusal};
use crate::config::{self, ConfigErrors, Problem, Providers};
use crate::sdk;
use crate::worker::exit::Exit;
use crate::worker::http;

/// Print the reference of all configuration keys.
///
/// It comes from the table the program itself reads by: name, type and bounds, default, importance, meaning.
#[derive(Debug, clap::Args)]
pub struct ReferenceArgs {
    /// JSON in the shape of Kafka Connect's REST API instead of Markdown
    #[arg(long)]
    pub json: bool,
}

/// Check configuration files and say everything that is wrong, without starting anything.
///
/// Values are read as at a start, references to secrets too, and the private keys are opened. Nothing connects to Kafka, WeCom
/// or storage; with --connect, WeCom is asked for one record of each archive, and what it says is told.
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {
    /// Worker file
    #[arg(value_name = "WORKER")]
    pub worker: PathBuf,

    /// Connector files, properties or JSON
    #[arg(value_name = "CONNECTOR", required = true)]
    pub connectors: Vec<PathBuf>,

    /// Ask WeCom too, where the files are valid: account, allow list, proxy and certificates
    #[arg(long)]
    pub connect: bool,
}

/// Writes the reference of all keys.
///
/// # Errors
/// When `out` cannot be written.
pub fn print_reference(args: &ReferenceArgs, out: &mut impl Write) -> anyhow::Result<()> {
    if args.json {
        let keys = serde_json::json!({ "worker": config::definitions(true), "connector": config::definitions(false) });
        writeln!(out, "{keys:#}")?;
    } else {
        write!(out, "{}", config::markdown())?;
    }
    Ok(())
}

/// Checks the files and writes what is wrong, one line a problem.
///
/// # Errors
/// When `out` cannot be written.
pub fn validate(args: &ValidateArgs, out: &mut impl Write) -> anyhow::Result<Exit> {
    let mut errors: Vec<ConfigErrors> = Vec::new();
    let worker = match config::load_worker(&args.worker) {
        Ok((worker, warnings)) => {
            for warning in warnings {
                writeln!(out, "warning: {}: {warning}", args.worker.display())?;
            }
            errors.extend(check_listener(&worker)?.map(|it| ConfigErrors { file: Some(args.worker.clone()), ..it }));
            Some(worker)
        }
        Err(error) => {
            errors.push(error);
            None
        }
    };
    let providers = Providers::of_worker(&args.worker);
    let mut connectors = Vec::new();
    for file in &args.connectors {
        match config::load_connector(file, providers) {
            Ok((connector, warnings)) => {
                for warning in warnings {
                    writeln!(out, "warning: {}: {warning}", file.display())?;
                }
                errors.extend(check_files(&connector).map(|it| ConfigErrors { file: Some(file.clone()), ..it }));
                connectors.push(connector);
            }
            Err(error) => errors.push(error),
        }
    }
    if let Some(worker) = worker
        && let Err(error) = config::check_together(&worker, &connectors)
    {
        errors.push(error);
    }
    for error in &errors {
        let of_file = error.file.as_ref().map(|file| format!("{}: ", file.display())).unwrap_or_default();
        for warning in &error.warnings {
            writeln!(out, "warning: {of_file}{warning}")?;
        }
        for problem in &error.problems {
            writeln!(out, "error: {of_file}{problem}")?;
        }
    }
    if !errors.is_empty() {
        return Ok(Exit::Usage);
    }
    writeln!(out, "{} files are valid", 1 + args.connectors.len())?;
    if args.connect { connect_all(&args.connectors, &connectors, out) } else { Ok(Exit::Success) }
}

/// Asks WeCom for each connector. Where one is not let in: whether something has to be changed for any of them.
fn connect_all(
    files: &[PathBuf],
    connectors: &[config::ConnectorConfig],
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut end = Exit::Success;
    for (file, connector) in files.iter().zip(connectors) {
        let file = file.display();
        match runtime.block_on(connect::connect(connector)) {
            Ok(()) => writeln!(out, "{file}: WeCom lets {} read the archive", connector.corp_id)?,
            Err(Refusal { reason, may_pass }) => {
                writeln!(out, "error: {file}: {reason}")?;
                end = match (may_pass, end) {
                    (true, Exit::Success | Exit::Unavailable) => Exit::Unavailable,
                    _ => Exit::Usage,
                };
            }
        }
    }
    Ok(end)
}

/// The files that the worker's listener names.
fn check_listener(worker: &config::WorkerConfig) -> anyhow::Result<Option<ConfigErrors>> {
    let Some(listener) = &worker.listener else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let checked = runtime.block_on(http::check_files(listener));
    Ok(checked.err().map(|message| ConfigErrors::new(vec![Problem::of_file(message)])))
}

/// The files a connector names: are they there, and of use?
fn check_files(connector: &config::ConnectorConfig) -> Option<ConfigErrors> {
    let mut problems = Vec::new();
    if let Some(library) = &connector.sdk_library {
        let reason = if library.is_file() { sdk::misfit(library) } else { Some("there is no such file".into()) };
        let problem = |reason| format!("{reason}; give the path of the vendor's library for this machine");
        let shown = library.to_string_lossy();
        problems.extend(reason.map(|reason| Problem::shown("wecom.sdk.library", shown, problem(reason))));
    }
    if let Err(faults) = KeyRing::load(&connector.private_keys, connector.private_keys_dir.as_deref()) {
        let key = if connector.private_keys.is_empty() { "wecom.private.keys.dir" } else { "wecom.private.keys" };
        problems.extend(faults.0.iter().map(|fault| Problem::hidden(key, fault.to_string())));
    }
    (!problems.is_empty()).then(|| ConfigErrors::new(problems))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::keys::{self, GenerateArgs};

    #[test]
    fn validate_says_everything_of_all_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let keys = path("keys");
        keys::generate(&GenerateArgs { out: keys.clone(), key_version: None }, &mut Vec::new()).unwrap();
        let connector =
            |keys: &str| format!("name=n\ntopic=t\nwecom.corp.id=ww\nwecom.secret=s\nwecom.private.keys.dir={keys}\n");
        std::fs::write(path("worker"), "bootstrap.servers=a:1\nlistener=\n").unwrap();
        std::fs::write(path("good"), connector(&keys.display().to_string())).unwrap();
        std::fs::write(path("bad"), connector("/nonexistent") + "wecom.sdk.library=/nonexistent.so\nname.x=1\n")
            .unwrap();
        let run = |connectors: &[&str]| {
            let connectors = connectors.iter().map(|name| path(name)).collect();
            let mut text = Vec::new();
            let valid =
                validate(&ValidateArgs { worker: path("worker"), connectors, connect: false }, &mut text).unwrap();
            (valid == Exit::Success, String::from_utf8(text).unwrap())
        };

        let (valid, text) = run(&["good"]);
        assert!(valid, "{text}");
        assert!(text.contains("warning: ") && text.contains("did you mean listeners?"), "{text}");
        assert!(text.ends_with("2 files are valid\n"), "{text}");

        let (valid, text) = run(&["good", "bad", "none"]);
        assert!(!valid);
        for part in [
            "bad: wecom.sdk.library = \"/nonexistent.so\": there is no such file",
            "bad: wecom.private.keys.dir: /nonexistent: cannot be read",
            "none: there is no such file",
            "error: name: two connectors of this worker have the name n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
