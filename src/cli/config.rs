//! `config` and `validate`: the reference of all keys, and a check of files without a start.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;

use crate::archive::keyring::KeyRing;
use crate::cli::connect::{self, Trouble};
use crate::config::{self, ConfigErrors, Problem, Providers};
use crate::storage::Store;
use crate::task;
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
/// or storage. With --connect, Kafka is asked for the topics, and WeCom for one record of each archive, and what they say is told;
/// nothing is made there. A small object is written to each storage, read and, as far as the storage lets, deleted again. Exit
/// code 69: only what passes by itself stands in the way.
#[derive(Debug, clap::Args)]
pub struct ValidateArgs {
    /// Worker file
    #[arg(value_name = "WORKER")]
    pub worker: PathBuf,

    /// Connector files, properties or JSON
    #[arg(value_name = "CONNECTOR", required = true)]
    pub connectors: Vec<PathBuf>,

    /// Ask Kafka, WeCom and storage too, where the files are valid. Kafka: address, login, topics and the rights on them. WeCom:
    /// account, allow list, proxy and certificates. Storage: bucket, keys and rights
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
                errors.push(ConfigErrors { file: Some(file.clone()), ..check_files(&connector) });
                connectors.push(connector);
            }
            Err(error) => errors.push(error),
        }
    }
    if let Some(worker) = &worker {
        errors.extend(config::check_together(worker, &connectors).err());
        // Whatever is wrong of the worker's own settings is wrong for each connector, and is said once.
        let refusals = connectors.iter().filter_map(|connector| task::check_clients(worker, connector).err());
        let refusals: BTreeSet<String> = refusals.map(|error| error.to_string()).collect();
        errors.extend(refusals.into_iter().map(|refusal| ConfigErrors::new(vec![Problem::of_file(refusal)])));
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
    let worker = worker.filter(|_| errors.iter().all(|error| error.problems.is_empty()));
    let Some(worker) = worker else { return Ok(Exit::Usage) };
    writeln!(out, "{} files are valid", 1 + args.connectors.len())?;
    if args.connect { connect_all(&worker, &args.connectors, &connectors, out) } else { Ok(Exit::Success) }
}

/// Asks everybody for each connector, and says what they answer.
fn connect_all(
    worker: &config::WorkerConfig,
    files: &[PathBuf],
    connectors: &[config::ConnectorConfig],
    out: &mut impl Write,
) -> anyhow::Result<Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut exit = Exit::Success;
    for (file, connector) in files.iter().zip(connectors) {
        let file = file.display();
        for answer in runtime.block_on(connect::all(worker, connector)) {
            match answer {
                Ok(said) => writeln!(out, "{file}: {said}")?,
                Err(Trouble::Passing(reason)) => {
                    writeln!(out, "error: {file}: {reason}")?;
                    exit = if exit == Exit::Usage { exit } else { Exit::Unavailable };
                }
                Err(Trouble::Lasting(reason)) => {
                    writeln!(out, "error: {file}: {reason}")?;
                    exit = Exit::Usage;
                }
            }
        }
    }
    // A call of Kafka's client that is not answered must not hold up the end.
    runtime.shutdown_background();
    Ok(exit)
}

/// The files that the worker's listener names.
fn check_listener(worker: &config::WorkerConfig) -> anyhow::Result<Option<ConfigErrors>> {
    let Some(listener) = &worker.listener else { return Ok(None) };
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let checked = runtime.block_on(http::check_files(listener));
    Ok(checked.err().map(|message| ConfigErrors::new(vec![Problem::of_file(message)])))
}

/// The files a connector names: are they there, and of use?
fn check_files(connector: &config::ConnectorConfig) -> ConfigErrors {
    let mut problems = Vec::new();
    if let Some((library, reason)) = task::unusable_library(connector) {
        let problem = format!("{reason}; give the path of the vendor's library for this machine");
        problems.push(Problem::shown("wecom.sdk.library", library.to_string_lossy(), problem));
    }
    let key = if connector.private_keys.is_empty() { "wecom.private.keys.dir" } else { "wecom.private.keys" };
    let mut warnings = Vec::new();
    match KeyRing::load(&connector.private_keys, connector.private_keys_dir.as_deref()) {
        Ok(keyring) => warnings.extend(
            keyring.warnings().iter().map(|it| config::Warning { key: key.to_owned(), message: it.to_string() }),
        ),
        Err(faults) => problems.extend(faults.0.iter().map(|fault| Problem::hidden(key, fault.to_string()))),
    }
    if let Err(error) = Store::examine(&connector.storage) {
        problems.push(Problem::hidden("storage.type", error.to_string()));
    }
    ConfigErrors { warnings, ..ConfigErrors::new(problems) }
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
        std::fs::write(
            path("bad"),
            connector("/nonexistent")
                + "wecom.sdk.library=/nonexistent.so\nname.x=1\nstorage.type=s3\n\
            storage.bucket=b\nstorage.region=r\nstorage.ca.file=/nonexistent.pem\n",
        )
        .unwrap();
        let run = |connectors: &[&str]| {
            let connectors = connectors.iter().map(|name| path(name)).collect();
            let mut text = Vec::new();
            let exit =
                validate(&ValidateArgs { worker: path("worker"), connectors, connect: false }, &mut text).unwrap();
            (exit, String::from_utf8(text).unwrap())
        };

        let (exit, text) = run(&["good"]);
        assert_eq!(exit, Exit::Success, "{text}");
        assert!(text.contains("warning: ") && text.contains("did you mean listeners?"), "{text}");
        assert!(text.ends_with("2 files are valid\n"), "{text}");

        let (exit, text) = run(&["good", "bad", "none"]);
        assert_eq!(exit, Exit::Usage);
        for part in [
            "bad: wecom.sdk.library = \"/nonexistent.so\": there is no such file",
            "bad: wecom.private.keys.dir: /nonexistent: cannot be read",
            "bad: storage.type: storage ca: /nonexistent.pem: No such file",
            "none: there is no such file",
            "error: name: two connectors of this worker have the name n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
