//! `validate --connect`: whether the connector is let in where it has to go. One function a place; what one of them makes does not
//! stay.

use crate::archive::page::{self, PageError};
use crate::clock::Clock;
use crate::config::{ConnectorConfig, WorkerConfig};
use crate::egress::source_address;
use crate::metrics::Metrics;
use crate::storage::Store;
use crate::task::disposition::{self, Disposition};
use crate::task::topics::Checked;
use crate::task::{self, TaskError};

/// Why a check failed: a sentence, in the words of a task's status.
#[derive(Debug)]
pub enum Trouble {
    /// Waiting can help.
    Passing(String),
    /// Somebody has to change something.
    Lasting(String),
}

/// Asks everybody. Each answer says what is well, or what is not.
pub async fn all(worker: &WorkerConfig, connector: &ConnectorConfig) -> Vec<Result<String, Trouble>> {
    vec![kafka(worker, connector).await, storage(connector).await, wecom(connector).await]
}

/// Looks for the topics, their settings, and the rights to read and to write them.
async fn kafka(worker: &WorkerConfig, connector: &ConnectorConfig) -> Result<String, Trouble> {
    match task::topics::check(worker, connector).await {
        Ok(Checked { missing, warnings }) => {
            let found = match missing.as_slice() {
                [] => "Kafka lets the connector in, and its topics are right".to_owned(),
                missing => format!("Kafka lets the connector in; a start would make the topics {}", missing.join(", ")),
            };
            let warnings: String = warnings.iter().map(|warning| format!(". Warning: {warning}")).collect();
            Ok(found + &warnings)
        }
        Err(TaskError::Transient(reason)) => Err(Trouble::Passing(reason)),
        Err(error) => Err(Trouble::Lasting(error.to_string())),
    }
}

/// Writes a small object, reads it, and takes it away again as far as the store lets.
async fn storage(connector: &ConnectorConfig) -> Result<String, Trouble> {
    match Store::try_out(&connector.storage).await {
        Ok(()) => Ok("what is stored can be read again".into()),
        Err(error) if error.is_transient() => Err(Trouble::Passing(error.to_string())),
        Err(error) => Err(Trouble::Lasting(error.to_string())),
    }
}

/// Asks WeCom for one record, as the message task does: with the account, the way out and the library of the configuration.
async fn wecom(connector: &ConnectorConfig) -> Result<String, Trouble> {
    let is_let_in = Ok(format!("WeCom lets {} read the archive", connector.corp_id));
    let metrics = Metrics::new(Clock::system()).connector(&connector.name, &connector.corp_id);
    let client = task::sdk_client(connector, &metrics).map_err(|error| Trouble::Lasting(error.to_string()))?;
    let corp_id = &connector.corp_id;
    let disposition = match client.get_chat_data(0, 1).await {
        Err(error) => disposition::of_sdk_error(&error, corp_id),
        Ok(bytes) => match page::parse(&bytes, 0) {
            Ok(_) => return is_let_in,
            Err(PageError::Errcode { errcode, errmsg }) => {
                disposition::of_errcode(i64::from(errcode), corp_id, source_address(&errmsg))
            }
            Err(error) => return Err(Trouble::Passing(error.to_string())),
        },
    };
    match disposition {
        // One record is never too large: it is let in.
        Disposition::ShrinkPage => is_let_in,
        Disposition::Retry(reason) | Disposition::Wait(reason) | Disposition::Renew(reason) => {
            Err(Trouble::Passing(reason))
        }
        Disposition::Reconfigure(reason) => Err(Trouble::Lasting(reason)),
    }
}
