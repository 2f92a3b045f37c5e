//! librdkafka as a client of the protocol, with the one call that is made directly.
//!
//! `Producer::commit_transaction` of rdkafka 0.38 and 0.39 flushes in slices of 100 ms before it commits, so that no commit
//! is faster than that (measured: p50 102.8 ms against 2.8 ms for this call on stock Kafka 4.3.1).

#![allow(unsafe_code)]

use std::error::Error;
use std::ffi::CStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka_sys as ffi;

use super::client::Callbacks;
use super::committer::{GroupOffsets, OutgoingRecord};
use super::protocol::{Call, TransactionError, TransactionalClient};
use crate::crash_point;

/// How long `init_transactions` blocks before it says that it may be called again.
const INIT_TIMEOUT: Duration = Duration::from_secs(10);

/// The same for a flush. Records are given up after their own time limit, so that it comes to an end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// The same for an abort, and for the sending of group offsets.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The real client. Its calls block: it belongs to an OS thread of its own.
pub struct RdkafkaClient {
    producer: ThreadedProducer<Reports>,
    started: Instant,
}

impl RdkafkaClient {
    pub fn new(config: &ClientConfig, callbacks: Callbacks) -> Result<Self, KafkaError> {
        let producer = config.create_with_context(Reports { callbacks, first_failure: Mutex::default() })?;
        Ok(Self { producer, started: Instant::now() })
    }

    fn send(&self, record: &OutgoingRecord) -> Result<(), TransactionError> {
        let headers = record
            .headers
            .iter()
            .fold(OwnedHeaders::new_with_capacity(record.headers.len()), |headers, (key, value)| {
                headers.insert(Header { key, value: Some(value) })
            });
        let outgoing = BaseRecord::to(&record.topic)
            .key(&record.key)
            .payload(&record.value)
            .headers(headers)
            .timestamp(record.timestamp_ms);
        self.producer.send(outgoing).map_err(|(error, _)| verdict(&error))
    }

    fn send_offsets(&self, offsets: &GroupOffsets) -> Result<(), TransactionError> {
        let GroupOffsets { positions, group } = offsets;
        let sent = self.producer.send_offsets_to_transaction(positions, group, CALL_TIMEOUT);
        sent.map_err(|error| verdict(&error))
    }

    /// Waits until every record has arrived, or was refused; the producer's own thread polls meanwhile.
    fn flush(&self) -> Result<(), TransactionError> {
        // SAFETY: the producer is alive through the call. `Producer::flush` of rdkafka waits in slices of 100 ms, this
        // does not.
        let code = unsafe {
            ffi::rd_kafka_flush(self.producer.client().native_ptr(), FLUSH_TIMEOUT.as_millis() as std::os::raw::c_int)
        };
        if code != ffi::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            let code = RDKafkaErrorCode::from(code);
            return Err(TransactionError {
                code,
                message: format!("the records have not arrived: {code}"),
                retriable: code == RDKafkaErrorCode::OperationTimedOut,
                requires_abort: true,
                fatal: false,
            });
        }
        if !self.producer.context().has_failed() {
            return Ok(());
        }
        // What puts an end to a transaction stands in the client, and is told by whatever call does not fit. This one
        // changes nothing.
        match self.producer.begin_transaction().map_err(|error| verdict(&error)) {
            Err(error) if error.requires_abort || error.fatal => Err(error),
            _ => Err(TransactionError {
                code: RDKafkaErrorCode::Fail,
                message: "records were refused".into(),
                retriable: false,
                requires_abort: true,
                fatal: false,
            }),
        }
    }

    /// Blocks for as long as the transaction may last.
    fn commit(&self) -> Result<(), TransactionError> {
        // SAFETY: the producer is alive through the call. −1: until the transaction's own time limit, as librdkafka advises.
        let error = unsafe { ffi::rd_kafka_commit_transaction(self.producer.client().native_ptr(), -1) };
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: a returned error is ours to read and to destroy, once; its text is a C string that lives as long as it.
        unsafe {
            let result = TransactionError {
                code: ffi::rd_kafka_error_code(error).into(),
                message: CStr::from_ptr(ffi::rd_kafka_error_string(error)).to_string_lossy().into_owned(),
                retriable: ffi::rd_kafka_error_is_retriable(error) != 0,
                requires_abort: ffi::rd_kafka_error_txn_requires_abort(error) != 0,
                fatal: ffi::rd_kafka_error_is_fatal(error) != 0,
            };
            ffi::rd_kafka_error_destroy(error);
            Err(result)
        }
    }

    /// The error of a call with all that the client knows of it: what has put an end to the producer, why records failed, and what it
    /// has complained of meanwhile.
    fn explain(&self, error: TransactionError, since: Instant) -> TransactionError {
        if let Some((code, message)) = self.producer.client().fatal_error() {
            return TransactionError { code, message, retriable: false, requires_abort: false, fatal: true };
        }
        if error.retriable {
            return error;
        }
        let failure = self.producer.context().take().filter(|first| !first.is_empty());
        let complaint = || Some(self.producer.context().callbacks.complaints.since(since)?.reason);
        match failure.or_else(complaint) {
            Some(first) => TransactionError { message: format!("{} ({first})", error.message), ..error },
            None => error,
        }
    }
}

impl TransactionalClient for RdkafkaClient {
    async fn call(&mut self, call: Call<'_>) -> Result<(), TransactionError> {
        let (before, after) = names(call);
        crash_point::reach(before);
        let since = Instant::now();
        let answer = match call {
            Call::InitTransactions => self.producer.init_transactions(INIT_TIMEOUT).map_err(|error| verdict(&error)),
            Call::Begin => {
                self.producer.context().take();
                self.producer.begin_transaction().map_err(|error| verdict(&error))
            }
            Call::Send(record) => self.send(record),
            // With it, a refusal shows before the commit, and that mistake could not be made.
            Call::Flush if crash_point::is_broken("abort_as_commit") => Ok(()),
            Call::Flush => self.flush(),
            Call::SendOffsets(offsets) => self.send_offsets(offsets),
            Call::Commit => match self.commit() {
                Err(error) if error.requires_abort && crash_point::is_broken("abort_as_commit") => {
                    self.producer.abort_transaction(CALL_TIMEOUT).map_err(|error| verdict(&error))
                }
                answer => answer,
            },
            Call::Abort => self.producer.abort_transaction(CALL_TIMEOUT).map_err(|error| verdict(&error)),
        };
        crash_point::reach(after);
        answer.map_err(|error| self.explain(error, since))
    }

    async fn pause(&self, duration: Duration) {
        std::thread::sleep(duration);
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The crash points before and after a call.
fn names(call: Call<'_>) -> (&'static str, &'static str) {
    match call {
        Call::InitTransactions => ("init_called", "init_answered"),
        Call::Begin => ("begin_called", "begin_answered"),
        Call::Send(_) => ("send_called", "send_answered"),
        Call::Flush => ("flush_called", "flush_answered"),
        Call::SendOffsets(_) => ("offsets_called", "offsets_answered"),
        Call::Commit => ("commit_called", "commit_answered"),
        Call::Abort => ("abort_called", "abort_answered"),
    }
}

fn verdict(error: &KafkaError) -> TransactionError {
    match error {
        KafkaError::Transaction(error) => TransactionError {
            code: error.code(),
            message: error.string(),
            retriable: error.is_retriable(),
            requires_abort: error.txn_requires_abort(),
            fatal: error.is_fatal(),
        },
        other => {
            let code = other.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown);
            // The queue empties as records arrive, or are given up.
            let retriable = code == RDKafkaErrorCode::QueueFull;
            TransactionError { code, message: other.to_string(), retriable, requires_abort: false, fatal: false }
        }
    }
}

/// What to change where a topic refuses a record.
fn advice(error: &KafkaError) -> &'static str {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::InvalidTimestamp) => {
            "; the topic refuses its timestamp: raise the topic's message.timestamp.before.max.ms and message.timestamp.after.max.ms, or \
             set wecom.record.timestamp=ingest; is this machine's clock right?"
        }
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => "; raise the topic's max.message.bytes",
        Some(RDKafkaErrorCode::TopicAuthorizationFailed) => "; the principal needs Write on it",
        _ => "",
    }
}

/// Remembers why records of the open transaction failed: the commit itself only says that some did.
struct Reports {
    callbacks: Callbacks,
    first_failure: Mutex<Option<String>>,
}

impl Reports {
    fn has_failed(&self) -> bool {
        self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn take(&self) -> Option<String> {
        self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl ClientContext for Reports {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = Callbacks::ENABLE_REFRESH_OAUTH_TOKEN;

    fn generate_oauth_token(&self, config: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.callbacks.generate_oauth_token(config)
    }

    fn log(&self, level: RDKafkaLogLevel, kind: &str, line: &str) {
        self.callbacks.log(level, kind, line);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.callbacks.error(error, reason);
    }
}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            let mut first = self.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
            // Whatever fails a transaction throws away what was not sent yet: that says nothing.
            let is_thrown_away = matches!(
                error.rdkafka_error_code(),
                Some(RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight)
            );
            let reason = format!("a record for topic {} failed: {error}{}", message.topic(), advice(error));
            first.get_or_insert(if is_thrown_away { String::new() } else { reason });
        }
    }
}
