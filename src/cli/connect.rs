//! `validate --connect`: whether WeCom lets the connector in.

use crate::archive::page::{self, PageError};
use crate::clock::Clock;
use crate::config::ConnectorConfig;
use crate::egress::source_address;
use crate::metrics::Metrics;
use crate::task;
use crate::task::disposition::{self, Disposition};

/// Asks WeCom for one record, as the message task does: with the account, the way out and the library of the configuration.
///
/// # Errors
/// What WeCom, the library or the guard says, in the words of a task's status.
pub async fn connect(connector: &ConnectorConfig) -> Result<(), String> {
    let metrics = Metrics::new(Clock::system()).connector(&connector.name, &connector.corp_id);
    let client = task::sdk_client(connector, &metrics).map_err(|error| error.to_string())?;
    let corp_id = &connector.corp_id;
    let disposition = match client.get_chat_data(0, 1).await {
        Err(error) => disposition::of_sdk_error(&error, corp_id),
        Ok(bytes) => match page::parse(&bytes, 0) {
            Ok(_) => return Ok(()),
            Err(PageError::Errcode { errcode, errmsg }) => {
                disposition::of_errcode(i64::from(errcode), corp_id, source_address(&errmsg))
            }
            Err(error) => return Err(error.to_string()),
        },
    };
    match disposition {
        // One record is never too large: it is let in.
        Disposition::ShrinkPage => Ok(()),
        Disposition::Retry(reason)
        | Disposition::Wait(reason)
        | Disposition::Renew(reason)
        | Disposition::Reconfigure(reason) => Err(reason),
    }
}
