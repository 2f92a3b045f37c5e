//! Pulling: one page after the other, in `seq` order, through every error that passes by itself.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::backoff::Backoff;
use super::disposition::{self, Disposition, RATE_PAUSE};
use super::{ConnectorContext, TaskError};
use crate::archive::page::{self, Page, PageError};
use crate::crash_point;
use crate::egress::source_address;
use crate::sdk::{GET_CHAT_DATA, SdkError};
use crate::status::TaskHandle;

/// Calls in a row that may run into their time limit before fewer records are asked for.
const TIME_OUTS_MAX: u32 = 1;

/// A page as pulled.
#[derive(Debug)]
pub struct PulledPage {
    pub page: Page,
    /// When the answer came, milliseconds since the epoch.
    pub pulled_at_ms: i64,
    /// When the call was made, if its answer was the end of the archive and nothing of it was held back.
    pub drained_at_ms: Option<i64>,
    /// Whether asking again at once would bring nothing new.
    is_end: bool,
}

/// Pulls a corp's archive.
#[derive(Debug)]
pub struct Puller<'a> {
    context: &'a ConnectorContext,
    status: &'a TaskHandle,
    backoff: Backoff,
    /// Calls in a row that ran into their time limit; more than may be where their hosts were lost.
    time_outs: u32,
    trouble_since: Option<Instant>,
}

impl<'a> Puller<'a> {
    pub fn new(context: &'a ConnectorContext, status: &'a TaskHandle) -> Self {
        let max = Duration::from_millis(context.config.errors_retry_delay_max_ms);
        context.metrics.page_limit.set(i64::from(context.page_limit.get()));
        Self {
            backoff: Backoff::new(Duration::from_millis(200).min(max), max),
            time_outs: 0,
            trouble_since: None,
            context,
            status,
        }
    }

    /// Sends every page after `seq` into `pages`, until `shutdown` or until nobody takes them any more.
    pub async fn run(
        mut self,
        mut seq: u64,
        pages: mpsc::Sender<PulledPage>,
        shutdown: CancellationToken,
    ) -> Result<(), TaskError> {
        loop {
            let pulled = tokio::select! {
                pulled = self.next_page(seq) => pulled?,
                () = shutdown.cancelled() => return Ok(()),
                () = pages.closed() => return Ok(()),
            };
            let is_end = pulled.is_end;
            if let Some(last_seq) = pulled.page.last_seq {
                seq = last_seq;
                self.context.metrics.lag.pulled(seq);
                crash_point::reach("page_pulled");
            }
            // Empty pages go on too: they are the sign of life of a drained archive.
            if pages.send(pulled).await.is_err() {
                return Ok(());
            }
            if is_end {
                tokio::select! {
                    () = tokio::time::sleep(Duration::from_millis(self.context.config.poll_interval_ms)) => {}
                    () = shutdown.cancelled() => return Ok(()),
                    () = pages.closed() => return Ok(()),
                }
            }
        }
    }

    /// The page after `seq`, however often that has to be tried.
    async fn next_page(&mut self, seq: u64) -> Result<PulledPage, TaskError> {
        let corp_id = &self.context.config.corp_id;
        loop {
            self.keep_rate_limit().await;
            let (started, started_ms, asked) = (Instant::now(), self.context.now_ms(), self.context.page_limit.get());
            let answer = self.context.sdk.get_chat_data(seq, asked).await;
            if let Ok(_) | Err(SdkError::Code { .. }) = answer {
                self.context.metrics.pull_seconds.observe(started.elapsed().as_secs_f64());
            }
            let time_limit = Duration::from_millis(self.context.config.sdk_timeout_ms);
            self.time_outs = match &answer {
                Err(SdkError::Code { .. }) if started.elapsed() >= time_limit * 9 / 10 => self.time_outs + 1,
                // Several hosts were lost already.
                Err(SdkError::Crash { .. }) => TIME_OUTS_MAX + 1,
                _ => 0,
            };
            let disposition = match answer {
                Err(error) => disposition::of_sdk_error(&error, corp_id),
                Ok(bytes) => match page::parse(&bytes, seq) {
                    Ok(page) => {
                        self.context.metrics.sdk_call(GET_CHAT_DATA, 0);
                        self.context.page_limit.arrived(asked, page.records_received, bytes.len());
                        self.recovered(&page);
                        // "Fewer than asked for" is the only sign of the end that the vendor gives (doc 91774). Records that
                        // are held back bring nothing new if they are asked for again at once.
                        let is_end = page.records_received < asked as usize || page.last_seq.is_none();
                        let drained_at_ms = (is_end && page.held == 0).then_some(started_ms);
                        return Ok(PulledPage { page, pulled_at_ms: self.context.now_ms(), drained_at_ms, is_end });
                    }
                    Err(PageError::Errcode { errcode, errmsg }) => {
                        self.context.metrics.sdk_call(GET_CHAT_DATA, errcode);
                        disposition::of_errcode(i64::from(errcode), corp_id, source_address(&errmsg))
                    }
                    Err(error) => {
                        self.context.metrics.sdk_call(GET_CHAT_DATA, 0);
                        Disposition::Retry(error.to_string())
                    }
                },
            };
            self.obey(disposition).await?;
        }
    }

    async fn keep_rate_limit(&mut self) {
        while let Some(wait) = self.context.limiter.acquire(Instant::now()) {
            self.context.metrics.rate_limit_waited(wait);
            tokio::time::sleep(wait).await;
        }
    }

    async fn obey(&mut self, disposition: Disposition) -> Result<(), TaskError> {
        let (reason, pause) = match disposition {
            Disposition::Reconfigure(reason) => return Err(TaskError::Configuration(reason)),
            Disposition::ShrinkPage if self.shrink("the page is too large for WeCom") => return Ok(()),
            Disposition::ShrinkPage => (
                "WeCom answered errcode 301058 (page too large) to a page of one record".into(),
                self.backoff.next_delay(),
            ),
            Disposition::Renew(reason) => {
                // The first time at once; a token that stays dead is trouble like any other.
                let pause = if self.trouble_since.is_none() { Duration::ZERO } else { self.backoff.next_delay() };
                if let Err(error) = self.context.sdk.renew().await {
                    tracing::warn!(%error, "no new sdk object");
                }
                (reason, pause)
            }
            Disposition::Wait(reason) => {
                let pause = RATE_PAUSE.max(self.backoff.next_delay());
                self.context.metrics.rate_limit_waited(pause);
                (reason, pause)
            }
            Disposition::Retry(reason)
                if self.time_outs > TIME_OUTS_MAX && self.shrink("the page does not get through") =>
            {
                self.time_outs = 0;
                let (limit, max) = (self.context.page_limit.get(), self.context.page_limit.max());
                let limits = format!(
                    "{limit} records are asked for now, in place of the {max} of wecom.page.limit. If a page needs more time than \
                     wecom.timeout.ms, raise that"
                );
                (format!("{reason}; {limits}"), self.backoff.next_delay())
            }
            Disposition::Retry(reason) => (reason, self.backoff.next_delay()),
        };
        self.trouble_since.get_or_insert_with(Instant::now);
        tracing::warn!(reason, pause_ms = pause.as_millis() as u64, "pulling failed and is tried again");
        self.status.degraded(format!("pulling fails: {reason}"));
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// Asks for fewer records from now on; `false` where that cannot be.
    fn shrink(&self, why: &str) -> bool {
        let page_limit = &self.context.page_limit;
        let is_smaller = page_limit.shrink();
        if is_smaller {
            self.context.metrics.page_limit.set(i64::from(page_limit.get()));
            tracing::info!(limit = page_limit.get(), "{why}; asking for fewer records");
        }
        is_smaller
    }

    fn recovered(&mut self, page: &Page) {
        let metrics = &self.context.metrics;
        metrics.records_pulled.inc_by(page.records_received as u64);
        metrics.repeats_dropped.inc_by(page.repeats as u64);
        metrics.records_held.set(page.held as i64);
        self.backoff.reset();
        if let Some(since) = self.trouble_since.take() {
            tracing::info!(seconds = since.elapsed().as_secs(), "pulling works again");
        }
        metrics.page_limit.set(i64::from(self.context.page_limit.get()));
    }
}
