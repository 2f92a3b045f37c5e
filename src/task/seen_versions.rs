//! Which versions of the public key the records in the topics were sealed with: keys that do not fit the archive show
//! there.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::archive::WINDOW_MS;
use crate::config::{ConnectorConfig, WorkerConfig};
use crate::kafka::Clients;
use crate::kafka::scan::{self, Begin, ScanError};

/// How far back the topics are read: a record that WeCom still has was pulled within the last half of it.
const SEEN_MS: i64 = 2 * WINDOW_MS;

/// What became of the records of one version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    pub messages: u64,
    /// By reason.
    pub dead_letters: BTreeMap<String, u64>,
}

/// The records of this connector's corp in the last ten days, by the version that they were sealed with. Blocks.
///
/// # Errors
/// A topic cannot be read. One that is missing has none.
pub fn seen_versions(
    worker: &WorkerConfig,
    connector: &ConnectorConfig,
    now_ms: i64,
) -> Result<BTreeMap<u32, Seen>, ScanError> {
    #[derive(Deserialize)]
    struct Message {
        publickey_ver: u32,
    }
    let (clients, begin) = (Clients::of(worker, connector), Begin::Time(now_ms.saturating_sub(SEEN_MS)));
    let source = format!("/wecom/{}", connector.corp_id);
    let mut seen: BTreeMap<u32, Seen> = BTreeMap::new();
    let messages = scan::scan(&clients, &connector.topic, begin, |record| {
        let is_ours =
            record.header("ce_source") == Some(&source) && record.header("ce_type") == Some("wecom.archive.message");
        let message =
            record.value().filter(|_| is_ours).and_then(|value| serde_json::from_slice::<Message>(value).ok());
        if let Some(Message { publickey_ver }) = message {
            seen.entry(publickey_ver).or_default().messages += 1;
        }
    });
    let dead_letters = scan::scan(&clients, &connector.dead_letter_topic, begin, |record| {
        let version = record.header("wecom.publickey_ver").and_then(|version| version.parse().ok());
        let reason = record.header("wecom.reason").filter(|_| record.header("ce_source") == Some(&source));
        if let Some((version, reason)) = version.zip(reason) {
            *seen.entry(version).or_default().dead_letters.entry(reason.to_owned()).or_default() += 1;
        }
    });
    for read in [messages, dead_letters] {
        match read {
            Ok(()) | Err(ScanError::Missing { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(seen)
}
