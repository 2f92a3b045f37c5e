//! The lines that librdkafka logs. It can log without end and as fast as it can: the log writes one of a kind a minute.

use rdkafka::config::RDKafkaLogLevel;

/// Logs a line of librdkafka. `kind` is librdkafka's own name for it, such as `FAIL`.
pub(super) fn log(level: RDKafkaLogLevel, kind: &str, line: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
            tracing::error!(target: "librdkafka", kind, "{line}");
        }
        RDKafkaLogLevel::Warning => tracing::warn!(target: "librdkafka", kind, "{line}"),
        RDKafkaLogLevel::Debug => tracing::debug!(target: "librdkafka", kind, "{line}"),
        _ => tracing::info!(target: "librdkafka", kind, "{line}"),
    }
}
