//! Opening: sealed records become events. Keys are unwrapped on all cores, messages decrypted in the SDK host.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuildError, ThreadPoolBuilder};

use super::backoff::Backoff;
use super::{ConnectorContext, TaskError, prepare};
use crate::archive::keyring::UnwrapError;
use crate::archive::{DeadLetterReason, Element, EventContext, MessageEvent, event};
use crate::crash_point;
use crate::sdk::{DecryptError, SdkError, SealedMessage};
use crate::status::TaskHandle;

/// Hosts that cannot be started are waited for this often before the task is started anew.
const DECRYPT_ATTEMPTS_MAX: u32 = 10;

/// The event of a record, or why there is none.
pub type Outcome = Result<MessageEvent, DeadLetterReason>;

/// Opens records that were pulled at `now_ms`; one outcome for each element, in order. `status` is told what it waits
/// for.
pub async fn events(
    context: &Arc<ConnectorContext>,
    elements: &Arc<Vec<Element>>,
    now_ms: i64,
    status: &TaskHandle,
) -> Result<Vec<Outcome>, TaskError> {
    let plaintexts = plaintexts(context, elements, Some(status)).await?;
    let (context, elements) = (context.clone(), elements.clone());
    on_all_cores(move || {
        let context = prepare::event_context(&context, now_ms);
        elements.par_iter().zip(plaintexts).map(|(element, plaintext)| event_of(&context, element, plaintext)).collect()
    })
    .await
}

/// Unwraps and decrypts; one outcome for each element, in order.
pub async fn plaintexts(
    context: &Arc<ConnectorContext>,
    elements: &Arc<Vec<Element>>,
    status: Option<&TaskHandle>,
) -> Result<Vec<Result<Vec<u8>, DeadLetterReason>>, TaskError> {
    let metrics = &context.metrics;
    if elements.is_empty() {
        return Ok(Vec::new());
    }
    let started = Instant::now();
    let (shared_context, shared) = (context.clone(), elements.clone());
    let unwrap_all = move || shared.par_iter().map(|element| unwrap(&shared_context, element)).collect::<Vec<_>>();
    let keys = on_all_cores(unwrap_all).await?;
    metrics.unwrap_seconds.observe(started.elapsed().as_secs_f64());

    let started = Instant::now();
    let sealed: Vec<SealedMessage> = elements
        .iter()
        .zip(&keys)
        .filter_map(|(element, key)| match (element, key) {
            (Element::Record(record), Ok(key)) => {
                Some(SealedMessage { key: key.clone(), message: record.encrypt_chat_msg.clone() })
            }
            _ => None,
        })
        .collect();
    let mut plaintexts = decrypt(context, &sealed, status).await?.into_iter();
    crash_point::reach("hosts_answer");
    metrics.decrypt_seconds.observe(started.elapsed().as_secs_f64());
    let opened = keys.into_iter().map(|key| {
        key.and_then(|_| match plaintexts.next() {
            Some(Ok(plaintext)) => Ok(plaintext),
            Some(Err(DecryptError::Code(code))) => Err(DeadLetterReason::Decrypt { code }),
            Some(Err(DecryptError::Crash(_))) | None => Err(DeadLetterReason::SdkCrash),
        })
    });
    Ok(opened.collect())
}

/// The event of one element out of what was decrypted.
pub fn event_of(
    context: &EventContext<'_>,
    element: &Element,
    plaintext: Result<Vec<u8>, DeadLetterReason>,
) -> Outcome {
    match element {
        Element::Record(record) => event::build(context, record, &plaintext?).map_err(|_| DeadLetterReason::NotJson),
        Element::Malformed(malformed) => Err(DeadLetterReason::Malformed { field: malformed.field }),
    }
}

/// The host is waited for: a page whose decryption fails for want of a host says nothing of its records.
async fn decrypt(
    context: &ConnectorContext,
    sealed: &[SealedMessage],
    status: Option<&TaskHandle>,
) -> Result<Vec<Result<Vec<u8>, DecryptError>>, TaskError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    let mut attempts = 0;
    loop {
        match context.sdk.decrypt(sealed).await {
            Ok(plaintexts) => return Ok(plaintexts),
            Err(SdkError::Configuration(reason)) => return Err(TaskError::Configuration(reason)),
            Err(error) => {
                attempts += 1;
                tracing::warn!(connector = context.config.name, %error, attempts, "a page cannot be decrypted yet");
                if let Some(status) = status {
                    status.degraded(format!("a page cannot be decrypted yet: {error}"));
                }
                if attempts >= DECRYPT_ATTEMPTS_MAX {
                    return Err(TaskError::Transient(error.to_string()));
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
    }
}

fn unwrap(context: &ConnectorContext, element: &Element) -> Result<Vec<u8>, DeadLetterReason> {
    let record = match element {
        Element::Record(record) => record,
        Element::Malformed(malformed) => return Err(DeadLetterReason::Malformed { field: malformed.field }),
    };
    context.keyring.unwrap(record.publickey_ver, &record.encrypt_random_key).map_err(|error| match error {
        UnwrapError::UnknownVersion { version, .. } => DeadLetterReason::UnknownKeyVersion { version },
        UnwrapError::Base64 => DeadLetterReason::Base64,
        UnwrapError::Rsa { .. } => DeadLetterReason::Rsa,
    })
}

/// Runs work for the processor beside the runtime's own threads; `rayon` spreads what is parallel in it.
pub async fn on_all_cores<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, TaskError> {
    let pool =
        pool().map_err(|error| TaskError::Transient(format!("no thread can be started to open records: {error}")))?;
    let done = tokio::task::spawn_blocking(move || pool.install(work)).await;
    done.map_err(|_| TaskError::Transient("opening records panicked: please report this with the log".into()))
}

/// The threads that records are opened on. Not rayon's own pool: where its threads cannot be started, it is of no use
/// for ever.
fn pool() -> Result<Arc<ThreadPool>, ThreadPoolBuildError> {
    static POOL: Mutex<Option<Arc<ThreadPool>>> = Mutex::new(None);
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(pool) = &*pool {
        return Ok(pool.clone());
    }
    let name = |number| format!("open {number}");
    Ok(pool.insert(Arc::new(ThreadPoolBuilder::new().thread_name(name).build()?)).clone())
}
