//! Configuration: one table of keys, properties and JSON files, secrets by reference.
//!
//! A file becomes a map of strings ([`file`]), references to secrets are resolved ([`reference`]), and the table of keys
//! ([`keys`]) checks every value and fills the typed structs. All problems of a file come at once.

mod clients;
mod command;
mod connector;
mod documentation;
mod file;
mod key;
mod keys;
mod listener;
mod problem;
mod purpose;
mod reference;
mod storage;
mod text;
mod topics;
mod values;
mod worker;

use std::collections::BTreeMap;
use std::path::Path;

pub use clients::{ClientSettings, Settings};
pub use connector::{AddressFamily, ConnectorConfig, EgressMode, ErrorsTolerance, RetentionCheck};
pub use documentation::{definitions, markdown, validation};
pub use listener::Listener;
pub use problem::{ConfigErrors, Problem, Warning};
pub use purpose::Purpose;
pub use reference::Providers;
pub use storage::{FileMode, StorageConfig, StorageType};
pub use topics::{TopicCreation, TopicSettings};
pub use values::Effective;
pub use worker::{LogFormat, WorkerConfig};

/// Reads a worker file.
///
/// # Errors
/// Every problem of the file at once, each with its key and what to do.
pub fn load_worker(path: &Path) -> Result<(WorkerConfig, Vec<Warning>), ConfigErrors> {
    worker_for(path, Purpose::Run)
}

fn worker_for(path: &Path, purpose: Purpose) -> Result<(WorkerConfig, Vec<Warning>), ConfigErrors> {
    let (map, warnings) = file::read(path).map_err(|problems| ConfigErrors::of_file(path, problems))?;
    finish(path, warnings, WorkerConfig::from_map_for(&map, purpose))
}

/// Reads a connector file: properties, `{"name": …, "config": {…}}`, or a flat JSON object.
///
/// # Errors
/// Every problem of the file at once, each with its key and what to do.
pub fn load_connector(path: &Path, providers: Providers) -> Result<(ConnectorConfig, Vec<Warning>), ConfigErrors> {
    connector_for(path, providers, Purpose::Run)
}

/// As [`load_connector`], for a command that does not use all of it.
///
/// # Errors
/// Every problem of what is used.
pub fn connector_for(
    path: &Path,
    providers: Providers,
    purpose: Purpose,
) -> Result<(ConnectorConfig, Vec<Warning>), ConfigErrors> {
    let (map, warnings) = file::read(path).map_err(|problems| ConfigErrors::of_file(path, problems))?;
    finish(path, warnings, ConnectorConfig::from_map_for(&map, providers, purpose))
}

/// Reads a worker file and the file of one of its connectors, for commands that look at one connector. What the
/// purpose does not need may be wrong or absent. Warnings are left to `validate`.
///
/// # Errors
/// The problems of the first file that has any, or of both together.
pub fn load_pair(
    worker: &Path,
    connector: &Path,
    purpose: Purpose,
) -> Result<(WorkerConfig, ConnectorConfig), ConfigErrors> {
    let providers = Providers::of_worker(worker);
    let (worker, _) = worker_for(worker, purpose)?;
    let (connector, _) = connector_for(connector, providers, purpose)?;
    check_together(&worker, std::slice::from_ref(&connector))?;
    Ok((worker, connector))
}

/// Puts the file's name to the errors, and the warnings of its form before those of its values.
fn finish<T>(
    path: &Path,
    mut warnings: Vec<Warning>,
    result: Result<(T, Vec<Warning>), ConfigErrors>,
) -> Result<(T, Vec<Warning>), ConfigErrors> {
    match result {
        Ok((config, more)) => {
            warnings.extend(more);
            Ok((config, warnings))
        }
        Err(errors) => {
            warnings.extend(errors.warnings);
            Err(ConfigErrors { warnings, ..ConfigErrors::new(errors.problems) }.in_file(path))
        }
    }
}

/// Checks what one file cannot show: that the connectors of one worker do not step on each other.
///
/// # Errors
/// Two connectors of the same name, two that write one corp into one topic, or a connector that writes to the offset topic.
pub fn check_together(worker: &WorkerConfig, connectors: &[ConnectorConfig]) -> Result<(), ConfigErrors> {
    let mut problems = Vec::new();
    let mut names = BTreeMap::new();
    let mut sources = BTreeMap::new();
    for connector in connectors {
        let name = connector.name.as_str();
        if names.insert(name, ()).is_some() {
            problems.push(Problem::hidden(
                "name",
                format!(
                    "two connectors of this worker have the name {name}, and would fence each other; give each its own"
                ),
            ));
        }
        if let Some(other) = sources.insert((&connector.corp_id, &connector.topic), name)
            && other != name
        {
            problems.push(Problem::hidden(
                "wecom.corp.id",
                format!(
                    "connectors {other} and {name} both write the same corp to the same topic, every message would come \
                     twice; remove one, or give it another topic"
                ),
            ));
        }
        for (key, topic) in connector.topics() {
            if topic == worker.offset_storage_topic {
                problems.push(Problem::hidden(
                    key,
                    format!("connector {name} would write into the worker's offset.storage.topic; take another topic"),
                ));
            }
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(ConfigErrors::new(problems)) }
}

#[cfg(test)]
mod tests;
