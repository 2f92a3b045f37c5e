//! What a file is read for. A command asks for nothing that it does not use: an auditor has no secret of WeCom's and
//! no keys.

/// What a connector's file and its worker's are read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The connector runs: all is needed.
    Run,
    /// Topics and the offset are looked at or moved.
    Kafka,
    /// Topics and objects are looked at.
    KafkaAndStorage,
    /// Private keys are looked at, and topics.
    KafkaAndKeys,
}

/// What only a running connector uses, by the beginnings of keys.
const OF_RUNNING: [&str; 6] = ["wecom.secret", "wecom.sdk.library", "wecom.proxy", "sdk.egress", "listeners", "rest."];
const OF_KEYS: &str = "wecom.private.keys";
const OF_STORAGE: &str = "storage.";

impl Purpose {
    /// Whether this key is used. The value of one that is not is never looked at, and counts as absent.
    pub(super) fn needs(self, key: &str) -> bool {
        self == Self::Run
            || !OF_RUNNING.iter().any(|start| key.starts_with(start))
                && (self == Self::KafkaAndKeys || !key.starts_with(OF_KEYS))
                && (self == Self::KafkaAndStorage || !key.starts_with(OF_STORAGE))
    }
}
