//! What the Kafka clients of a connector complain of: the reason that stands behind every call that is not answered.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The last complaint, of all clients of a connector. librdkafka repeats one that lasts every half minute.
#[derive(Debug, Default)]
pub struct Complaints(Mutex<Option<Complaint>>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    at: Instant,
    /// A broker was reached and does not let us in, or is not the one it should be: waiting alone does not help.
    pub is_refusal: bool,
    /// librdkafka's own words, with the broker's address.
    pub reason: String,
}

impl Complaints {
    /// Takes note of an error that librdkafka tells of. `passes`: what it calls a refusal is none.
    pub(super) fn hear(&self, error: &KafkaError, reason: &str, passes: bool) {
        let code = error.rdkafka_error_code();
        tracing::debug!(%error, reason, "the Kafka client complains");
        let is_refusal = match code {
            Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL) => !passes,
            // That of each broker says more.
            Some(RDKafkaErrorCode::AllBrokersDown) | None => return,
            Some(_) => false,
        };
        *self.lock() = Some(Complaint { at: Instant::now(), is_refusal, reason: reason.to_owned() });
    }

    /// The last complaint, if it is not older than that.
    pub fn since(&self, since: Instant) -> Option<Complaint> {
        self.lock().clone().filter(|complaint| complaint.at >= since)
    }

    /// A broker has answered: what was complained of is over.
    pub(super) fn settle(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Complaint>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
