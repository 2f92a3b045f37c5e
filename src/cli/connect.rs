//! `validate --connect`: whether WeCom lets the connector in.

use crate::archive::page::{self, PageError};
use crate::clock::Clock;
use crate::config::ConnectorConfig;
use crate::egress::source_address;
use crate::metrics::Metrics;
use crate::task;
use crate::task::disposition::{self, Disposition};

/// Why WeCom does not let the connector in.
#[derive(Debug)]
pub struct Refusal {
    /// In the words of a task's status.
    pub reason: String,
    /// Whether it may pass by itself: nothing of the files has to be changed for it.
    pub may_pass: bool,
}

/// Asks WeCom for one record, as the message task does: with the account, the way out and the library of the configuration.
///
/// # Errors
/// What WeCom, the library or the guard says.
pub async fn connect(connector: &ConnectorConfig) -> Result<(), Refusal> {
    let may_pass = |reason: String| Refusal { reason, may_pass: true };
    let to_change = |reason: String| Refusal { reason, may_pass: false };
    let metrics = Metrics::new(Clock::system()).connector(&connector.name, &connector.corp_id);
    let client = task::sdk_client(connector, &metrics).map_err(|error| to_change(error.to_string()))?;
    let corp_id = &connector.corp_id;
    let disposition = match client.get_chat_data(0, 1).await {
        Err(error) => disposition::of_sdk_error(&error, corp_id),
        Ok(bytes) => match page::parse(&bytes, 0) {
            Ok(_) => return Ok(()),
            Err(PageError::Errcode { errcode, errmsg }) => {
                disposition::of_errcode(i64::from(errcode), corp_id, source_address(&errmsg))
            }
            Err(error) => return Err(may_pass(error.to_string())),
        },
    };
    match disposition {
        // One record is never too large: it is let in.
        Disposition::ShrinkPage => Ok(()),
        Disposition::Retry(reason) | Disposition::Wait(reason) | Disposition::Renew(reason) => Err(may_pass(reason)),
        Disposition::Reconfigure(reason) => Err(to_change(reason)),
    }
}
