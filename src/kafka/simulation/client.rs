//! A model of librdkafka as a transactional client: what it sends, what it tries again by itself, and what it says of failures.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode as Code;

use super::broker::{self, Reply, Request, TRANSACTION_TIMEOUT_MS};
use super::network::{Handle, Line};
use crate::kafka::OutgoingRecord;
use crate::kafka::protocol::{Call, TransactionError, TransactionalClient};

#[derive(Debug)]
pub struct ModelClient {
    handle: Handle,
    epoch: u32,
    sequence: u64,
    /// Records that no leader has acknowledged.
    queue: VecDeque<OutgoingRecord>,
    begun_at: u64,
    /// Partitions that the coordinator may know to be of the open transaction.
    asked: HashSet<String>,
    /// Those that it has acknowledged.
    registered: HashSet<String>,
    /// A record was sent, and what became of it is not known.
    is_in_flight: bool,
    /// `init_transactions` goes on where it was when it is called again; so does a commit.
    init_line: Line,
    commit_line: Option<Line>,
    /// Why the open transaction has to be aborted.
    failed: Option<TransactionError>,
    fatal: Option<TransactionError>,
}

impl ModelClient {
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            epoch: 0,
            sequence: 0,
            queue: VecDeque::new(),
            begun_at: 0,
            asked: HashSet::new(),
            registered: HashSet::new(),
            is_in_flight: false,
            init_line: Line::default(),
            commit_line: None,
            failed: None,
            fatal: None,
        }
    }

    async fn make(&mut self, call: Call<'_>) -> Result<(), TransactionError> {
        match call {
            Call::InitTransactions => self.init(None, 10_000).await,
            Call::Begin => {
                self.begun_at = self.handle.now();
                self.finished();
                Ok(())
            }
            Call::Send(_) if self.handle.fault(3) => Err(retriable(Code::QueueFull)),
            Call::Send(_) if self.failed.is_some() => Err(error(Code::State)),
            Call::Send(record) => {
                self.queue.push_back(record.clone());
                if self.handle.below(2) == 0 {
                    // Its failure shows with a later call.
                    let _ = self.flush().await;
                }
                Ok(())
            }
            Call::Flush => match &self.failed {
                Some(failed) => Err(failed.clone()),
                None => self.flush().await,
            },
            Call::SendOffsets(_) => unreachable!("source writers have no group"),
            Call::Commit => self.commit().await,
            Call::Abort => self.abort().await,
        }
    }

    async fn init(&mut self, from: Option<u32>, timeout: u64) -> Result<(), TransactionError> {
        let mut line = std::mem::take(&mut self.init_line);
        let answer = self.ask(Request::Init(from), &mut line, timeout).await;
        self.init_line = line;
        match answer? {
            Some(Reply::Epoch(epoch)) => {
                (self.epoch, self.sequence, self.is_in_flight) = (epoch, 0, false);
                Ok(())
            }
            _ => Err(retriable(Code::OperationTimedOut)),
        }
    }

    async fn flush(&mut self) -> Result<(), TransactionError> {
        let mut line = Line::default();
        let deadline = self.begun_at + TRANSACTION_TIMEOUT_MS;
        while let Some(record) = self.queue.front().cloned() {
            let partition = broker::partition(&record);
            if !self.registered.contains(&partition) {
                self.asked.insert(partition.clone());
                let left = deadline.saturating_sub(self.handle.now());
                let request = Request::AddPartition { epoch: self.epoch, partition: partition.clone() };
                if self.ask(request, &mut line, left).await?.is_none() {
                    return Err(self.fail(Code::MessageTimedOut));
                }
                self.registered.insert(partition);
            }
            self.is_in_flight = true;
            let left = deadline.saturating_sub(self.handle.now());
            let request = Request::Produce { epoch: self.epoch, sequence: self.sequence, record };
            if self.ask(request, &mut line, left).await?.is_none() {
                return Err(self.fail(Code::MessageTimedOut));
            }
            self.is_in_flight = false;
            self.sequence += 1;
            self.queue.pop_front();
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), TransactionError> {
        if let Some(failed) = &self.failed {
            return Err(failed.clone());
        }
        let mut line = match self.commit_line.take() {
            Some(line) => line,
            None => {
                self.flush().await?;
                Line::default()
            }
        };
        if !self.asked.is_empty() {
            let request = Request::EndTransaction { epoch: self.epoch, commit: true };
            // Also long before the transaction is too old: after an answer that the client does not know.
            let timeout = if self.handle.fault(30) { 1_000 } else { TRANSACTION_TIMEOUT_MS };
            let answer = self.ask(request, &mut line, timeout).await?;
            self.commit_line = Some(line);
            if answer.is_none() {
                // All of these were seen of librdkafka (see its issue 4558 for the last).
                return Err(match self.handle.below(3) {
                    0 => retriable(Code::OperationTimedOut),
                    1 => self.fail(Code::OperationTimedOut),
                    _ => error(Code::OperationTimedOut),
                });
            }
        }
        self.finished();
        Ok(())
    }

    async fn abort(&mut self) -> Result<(), TransactionError> {
        self.queue.clear();
        if !self.asked.is_empty() {
            let request = Request::EndTransaction { epoch: self.epoch, commit: false };
            if self.ask(request, &mut Line::default(), 30_000).await?.is_none() {
                return Err(retriable(Code::OperationTimedOut));
            }
            if self.is_in_flight {
                self.init(Some(self.epoch), 30_000).await?;
            }
        }
        self.finished();
        Ok(())
    }

    fn finished(&mut self) {
        self.asked.clear();
        self.registered.clear();
        (self.commit_line, self.failed) = (None, None);
    }

    /// `None` if no answer came in time.
    async fn ask(
        &mut self,
        request: Request,
        line: &mut Line,
        timeout: u64,
    ) -> Result<Option<Reply>, TransactionError> {
        let until = self.handle.now() + timeout;
        match self.handle.ask(line, &request, until).await {
            Some(Reply::Fenced) => Err(self.die(Code::Fenced)),
            Some(Reply::InvalidState) if matches!(request, Request::Produce { .. }) => {
                Err(self.fail(Code::InvalidTransactionalState))
            }
            Some(Reply::InvalidState) => Err(self.die(Code::InvalidTransactionalState)),
            answer => Ok(answer),
        }
    }

    fn fail(&mut self, code: Code) -> TransactionError {
        let failed = TransactionError { requires_abort: true, ..error(code) };
        self.failed.insert(failed).clone()
    }

    fn die(&mut self, code: Code) -> TransactionError {
        let fatal = TransactionError { fatal: true, ..error(code) };
        self.fatal.insert(fatal).clone()
    }
}

impl TransactionalClient for ModelClient {
    async fn call(&mut self, call: Call<'_>) -> Result<(), TransactionError> {
        let answer = match &self.fatal {
            Some(_) => Err(error(Code::Fatal)),
            None => self.make(call).await,
        };
        let answer = answer.map_err(|error| self.fatal.clone().unwrap_or(error));
        self.handle.world().note(|| format!("worker {}: {} → {answer:?}", self.handle.process, name(call)));
        answer
    }

    async fn pause(&self, duration: Duration) {
        self.handle.sleep(duration.as_millis() as u64).await;
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.handle.now())
    }
}

fn error(code: Code) -> TransactionError {
    TransactionError { code, message: code.to_string(), retriable: false, requires_abort: false, fatal: false }
}

fn retriable(code: Code) -> TransactionError {
    TransactionError { retriable: true, ..error(code) }
}

fn name(call: Call<'_>) -> &'static str {
    match call {
        Call::InitTransactions => "init_transactions",
        Call::Begin => "begin",
        Call::Send(_) => "send",
        Call::Flush => "flush",
        Call::SendOffsets(_) => "send_offsets",
        Call::Commit => "commit",
        Call::Abort => "abort",
    }
}
