//! A worker of the simulation: the shipped writer on the model, started again by a supervisor like the shipped one. And the same
//! with one mistake each, which the simulation has to find.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::broker::{MESSAGES, OFFSETS, Reply, Request, TRANSACTION_TIMEOUT_MS};
use super::client::ModelClient;
use super::network::{Handle, Line};
use crate::kafka::offsets::{OffsetError, OffsetKey, OffsetPlace, SourceOffset};
use crate::kafka::protocol::TransactionalProducer;
use crate::kafka::source_writer::{SourceWriter, Surroundings, WriteError};
use crate::kafka::{Batch, CommitError, OutgoingRecord, Tenure};

/// What could be done wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mistake {
    OffsetAfterTransaction,
    OffsetBeforeTransaction,
    ReadBeforeFencing,
    AbortTakenForCommit,
    UnknownTakenForAbort,
    UnknownTakenForCommit,
    FencingTakenForAbort,
    EveryFencingTakenForReal,
    FencingJudgedByTime,
    FencingAtStartTakenForReal,
    LateAbortTrusted,
    PlaceTakenBack,
}

impl Mistake {
    pub const ALL: [Self; 12] = [
        Self::OffsetAfterTransaction,
        Self::OffsetBeforeTransaction,
        Self::ReadBeforeFencing,
        Self::AbortTakenForCommit,
        Self::UnknownTakenForAbort,
        Self::UnknownTakenForCommit,
        Self::FencingTakenForAbort,
        Self::EveryFencingTakenForReal,
        Self::FencingJudgedByTime,
        Self::FencingAtStartTakenForReal,
        Self::LateAbortTrusted,
        Self::PlaceTakenBack,
    ];
}

/// One process, from its start on.
pub async fn work(handle: Handle, mistake: Option<Mistake>) {
    let instance = format!("{}-{}", handle.process, handle.world().unique());
    let mut tenure = Arc::new(Tenure::new(instance.clone()));
    loop {
        if mistake == Some(Mistake::PlaceTakenBack) {
            tenure = Arc::new(Tenure::new(instance.clone()));
        }
        match run(&handle, mistake, tenure.clone()).await {
            Ok(()) => return,
            Err(WriteError::Fenced(reason)) => {
                let mut world = handle.world();
                world.count("workers that stop as fenced");
                world.note(|| format!("worker {} stops: {reason}", handle.process));
                world.broker.judge.said_fenced(&instance);
                return;
            }
            Err(error) => {
                let mut world = handle.world();
                if matches!(error, WriteError::Alone(_)) {
                    world.count("fenced though alone");
                }
                world.note(|| format!("worker {} starts anew: {error}", handle.process));
            }
        }
        handle.sleep(500 + handle.below(3_000)).await;
    }
}

async fn run(handle: &Handle, mistake: Option<Mistake>, tenure: Arc<Tenure>) -> Result<(), WriteError> {
    let place =
        OffsetPlace { topic: OFFSETS.into(), key: OffsetKey { connector: "archive".into(), corp_id: "ww1".into() } };
    let model = Model {
        handle: handle.clone(),
        mistake,
        read_early: Mutex::default(),
        is_taken_for_real: AtomicBool::new(false),
    };
    let mut writer = SourceWriter::start(model, place, tenure).await?;
    loop {
        let offset = writer.offset();
        let (page, is_calm) = {
            let mut world = handle.world();
            let limit = 1 + world.random.below(4) as usize;
            (world.broker.judge.page_after(offset.seq, limit, world.now), world.is_calm())
        };
        let Some(&seq) = page.last() else {
            if is_calm {
                return Ok(());
            }
            handle.sleep(1_000).await;
            continue;
        };
        handle.sleep(handle.below(2_000)).await;
        let records: Vec<_> = page.iter().map(|seq| record(*seq)).collect();
        let offset = SourceOffset { seq, ..offset };
        let mut result = writer.commit(records.clone(), offset.clone()).await;
        // As media tasks do: what was aborted is committed again.
        for _ in 0..3 {
            if !matches!(result, Err(WriteError::Commit(CommitError::Aborted(_)))) {
                break;
            }
            handle.sleep(50).await;
            result = writer.commit(records.clone(), offset.clone()).await;
        }
        result?;
    }
}

fn record(seq: u64) -> OutgoingRecord {
    let value = seq.to_string().into_bytes();
    OutgoingRecord { topic: MESSAGES.into(), key: Vec::new(), value, headers: Vec::new(), timestamp_ms: 0 }
}

/// What the writer stands on here.
struct Model {
    handle: Handle,
    mistake: Option<Mistake>,
    read_early: Mutex<Option<Option<SourceOffset>>>,
    is_taken_for_real: AtomicBool,
}

type Producer = TransactionalProducer<ModelClient>;

impl Surroundings for Model {
    type Producer = Producer;

    async fn fence(&self) -> Result<Producer, CommitError> {
        if self.mistake == Some(Mistake::ReadBeforeFencing) {
            let offset = self.read().await.map_err(|error| CommitError::Unknown(error.to_string()))?;
            *self.read_early.lock().expect("one thread") = Some(offset);
        }
        TransactionalProducer::start(ModelClient::new(self.handle.clone())).await
    }

    async fn read_offset(&self, _: &OffsetPlace) -> Result<Option<SourceOffset>, OffsetError> {
        if let Some(early) = self.read_early.lock().expect("one thread").take() {
            return Ok(early);
        }
        if self.is_taken_for_real.load(Ordering::Relaxed) {
            return Ok(Some(SourceOffset { instance: Some("somebody".into()), ..SourceOffset::default() }));
        }
        self.read().await
    }

    async fn commit(&self, producer: &mut Producer, batch: Batch) -> Result<(), CommitError> {
        match self.mistake {
            Some(Mistake::OffsetAfterTransaction | Mistake::OffsetBeforeTransaction) => {
                let (offsets, records) = batch.records.into_iter().partition(|record| &*record.topic == OFFSETS);
                let mut parts = [records, offsets].map(|records| Batch { records, group_offsets: None });
                if self.mistake == Some(Mistake::OffsetBeforeTransaction) {
                    parts.reverse();
                }
                for part in parts {
                    self.commit_rightly(producer, &part).await?;
                }
                Ok(())
            }
            _ => match (self.commit_rightly(producer, &batch).await, self.mistake) {
                (Err(CommitError::Aborted(_)), Some(Mistake::AbortTakenForCommit)) => Ok(()),
                (Err(CommitError::Unknown(_)), Some(Mistake::UnknownTakenForCommit)) => {
                    *producer = self.fence().await?;
                    Ok(())
                }
                (Err(CommitError::Unknown(_)), Some(Mistake::UnknownTakenForAbort))
                | (Err(CommitError::Fenced(_)), Some(Mistake::FencingTakenForAbort)) => {
                    *producer = self.fence().await?;
                    self.commit_rightly(producer, &batch).await
                }
                (Err(CommitError::Unknown(reason)), Some(Mistake::LateAbortTrusted)) if producer.abort_late().await => {
                    Err(CommitError::Aborted(reason))
                }
                (result, _) => result,
            },
        }
    }

    async fn pause(&self, duration: Duration) {
        self.handle.sleep(duration.as_millis() as u64).await;
    }

    fn now_ms(&self) -> i64 {
        self.handle.now() as i64
    }
}

impl Model {
    async fn commit_rightly(&self, producer: &mut Producer, batch: &Batch) -> Result<(), CommitError> {
        let begun = self.handle.now();
        let result = producer.commit(batch).await;
        let is_quick = self.handle.now() - begun < TRANSACTION_TIMEOUT_MS;
        let mut world = self.handle.world();
        world.note(|| format!("worker {}: commit answers {result:?}", self.handle.process));
        world.count(match &result {
            Ok(()) => "committed",
            Err(CommitError::Aborted(_)) => "aborted",
            Err(CommitError::Fenced(_)) => "fenced",
            Err(_) => "unknown",
        });
        match &result {
            Ok(()) => world.broker.judge.said(&batch.records, true),
            Err(CommitError::Aborted(_)) => world.broker.judge.said(&batch.records, false),
            Err(CommitError::Fenced(_)) => self.is_taken_for_real.store(
                match self.mistake {
                    Some(Mistake::EveryFencingTakenForReal) => true,
                    Some(Mistake::FencingJudgedByTime) => is_quick,
                    // The first transaction of a start holds the offset alone.
                    Some(Mistake::FencingAtStartTakenForReal) => batch.records.len() == 1,
                    _ => false,
                },
                Ordering::Relaxed,
            ),
            Err(_) => {}
        }
        result
    }

    async fn read(&self) -> Result<Option<SourceOffset>, OffsetError> {
        let until = self.handle.now() + 120_000;
        match self.handle.ask(&mut Line::default(), &Request::ReadOffset, until).await {
            Some(Reply::Offset(offset)) => Ok(offset),
            _ => Err(OffsetError::Unavailable { topic: OFFSETS.into(), reason: "late".into() }),
        }
    }
}
