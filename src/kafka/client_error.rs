//! Why a Kafka client gets no answer, in the words of a status: the same in the worker and in every command.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    #[error("Kafka cannot be reached at {bootstrap_servers}: {reason}; check bootstrap.servers and the network")]
    Unreachable { bootstrap_servers: String, reason: String },
    /// A broker was reached. The reason says what to change.
    #[error("Kafka at {bootstrap_servers} does not let this worker in: {reason}")]
    Refused { bootstrap_servers: String, reason: String },
    #[error(
        "{bootstrap_servers} is the port of a KRaft controller, which serves no clients: set bootstrap.servers to a listener of the \
         brokers (most often port 9092)"
    )]
    Controller { bootstrap_servers: String },
    #[error("the settings of the Kafka clients are refused: {0}")]
    Settings(String),
    #[error("Kafka refuses access to topic {topic}: {reason} (the principal needs {right} on it)")]
    Denied { topic: String, reason: String, right: &'static str },
}

impl ClientError {
    /// Whether waiting alone can help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// librdkafka has refused to make a client.
    pub(super) fn of_settings(error: &KafkaError) -> Self {
        Self::Settings(match error {
            KafkaError::ClientCreation(reason) => reason.clone(),
            // Its own words quote the value.
            KafkaError::ClientConfig(_, _, key, _) => format!("{key} has a value that librdkafka does not take"),
            other => other.to_string(),
        })
    }

    /// A right on a topic that is missing, where the error says so. A reader is told of its group's as well: it needs none, for it
    /// joins none.
    pub fn of_denial(error: &KafkaError, topic: &str, right: &'static str) -> Option<Self> {
        let code = error.rdkafka_error_code().filter(|code| *code == RDKafkaErrorCode::TopicAuthorizationFailed)?;
        Some(Self::Denied { topic: topic.into(), reason: code.to_string(), right })
    }
}
