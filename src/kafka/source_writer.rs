//! The one writer of a source partition: it takes the place of a predecessor, and commits records together with the offset that
//! covers them.
//!
//! An error other than an abort ends it. The next one fences it, reads the offset and goes on from there, so that nobody has to
//! guess what became of the last transaction.

use std::sync::Arc;
use std::time::Duration;

use super::committer::{Batch, OutgoingRecord};
use super::offsets::{OffsetError, OffsetPlace, SourceOffset};
use super::protocol::CommitError;
use super::tenure::{self, Tenure};

/// What a successor takes at the most between fencing us and writing the offset in its own name.
const TAKE_OVER_TIME: Duration = Duration::from_secs(5);

/// How often the offset is asked for where it cannot be read.
const LOOKS_MAX: u32 = 5;

/// What a writer stands on: Kafka and time, the real ones or the simulation's.
pub trait Surroundings {
    type Producer;

    /// Starts a producer: from here on a predecessor can commit nothing, and its last transaction is settled.
    fn fence(&self) -> impl Future<Output = Result<Self::Producer, CommitError>> + Send;

    /// The committed offset. Final, if there is no producer but our own.
    fn read_offset(
        &self,
        place: &OffsetPlace,
    ) -> impl Future<Output = Result<Option<SourceOffset>, OffsetError>> + Send;

    /// One transaction.
    fn commit(
        &self,
        producer: &mut Self::Producer,
        batch: Batch,
    ) -> impl Future<Output = Result<(), CommitError>> + Send;

    fn pause(&self, duration: Duration) -> impl Future<Output = ()> + Send;

    /// Milliseconds since the epoch, UTC.
    fn now_ms(&self) -> i64;
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Any but a fencing.
    #[error(transparent)]
    Commit(CommitError),
    #[error(transparent)]
    Offset(#[from] OffsetError),
    /// Another writer has taken over. Not to be started again: it would fence that one.
    #[error("fenced: {0}")]
    Fenced(String),
    /// Fenced, but nobody has taken over: the coordinator has timed out our transaction, or the start of a writer that has ended
    /// since came late.
    #[error("fenced though no other writer has taken over; was the transaction timed out by the coordinator? {0}")]
    Alone(String),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct SourceWriter<S: Surroundings> {
    surroundings: S,
    producer: S::Producer,
    place: OffsetPlace,
    /// Its name is written into each offset record: tells whether somebody else has taken over.
    tenure: Arc<Tenure>,
    /// The last record of the offset that this writer knows of: as it was found, or as written here.
    offset: Option<SourceOffset>,
}

impl<S: Surroundings> SourceWriter<S> {
    /// Takes the place of a predecessor; where this worker has had it before, only if no other has taken it since.
    ///
    /// The offset is written again in this worker's name, so that a predecessor that wakes up finds out that it is one.
    /// The first start of a worker is counted in it.
    pub async fn start(surroundings: S, place: OffsetPlace, tenure: Arc<Tenure>) -> Result<Self, WriteError> {
        let is_first = !tenure.has_begun();
        if !is_first {
            // So that a successor is left alone.
            look(&surroundings, &place, &tenure).await?;
        }
        // Fenced first, read second: the other way round, a predecessor could still commit behind our back.
        let producer = surroundings.fence().await.map_err(WriteError::Commit)?;
        // A successor that came in between has been fenced, finds that nobody has taken its place, and starts anew.
        let offset = look(&surroundings, &place, &tenure).await?;
        tenure.begin(offset.as_ref());
        let mut writer = Self { surroundings, producer, place, tenure, offset };
        let offset = writer.offset();
        let vain_starts = offset.vain_starts.saturating_add(u64::from(is_first));
        writer.commit(Vec::new(), SourceOffset { vain_starts, ..offset }).await?;
        writer.tenure.confirm();
        Ok(writer)
    }

    /// As committed last: what to go on from.
    pub fn offset(&self) -> SourceOffset {
        self.offset.clone().unwrap_or_default()
    }

    /// One transaction: the records and the offset that covers them. By whom and when is filled in here.
    ///
    /// After [`CommitError::Aborted`] the same may be committed again. After any other error this writer is of no more use.
    pub async fn commit(&mut self, mut records: Vec<OutgoingRecord>, offset: SourceOffset) -> Result<(), WriteError> {
        let now_ms = self.surroundings.now_ms();
        let offset =
            SourceOffset { committed_at_ms: Some(now_ms), instance: Some(self.tenure.instance().to_owned()), ..offset };
        records.push(self.place.key.record(&self.place.topic, &offset, now_ms).map_err(|error| {
            let reason = format!("it cannot be written as JSON: {error}");
            OffsetError::Unavailable { topic: self.place.topic.to_string(), reason }
        })?);
        match self.surroundings.commit(&mut self.producer, Batch { records, group_offsets: None }).await {
            Ok(()) => {
                self.offset = Some(offset);
                Ok(())
            }
            Err(CommitError::Fenced(reason)) => Err(self.fenced(reason, offset).await),
            Err(error) => Err(WriteError::Commit(error)),
        }
    }

    /// Tells a real fencing from others, which librdkafka cannot: a successor writes the offset in its own name.
    async fn fenced(&self, reason: String, attempted: SourceOffset) -> WriteError {
        // The second look is for a successor that is at its start right now.
        for pause in [Duration::ZERO, TAKE_OVER_TIME] {
            self.surroundings.pause(pause).await;
            match self.look_again().await {
                // What was attempted can have come through all the same.
                Ok(found) if found == self.offset || found.as_ref() == Some(&attempted) => {}
                Ok(_) => return WriteError::Fenced(reason),
                Err(error) => return error.into(),
            }
        }
        WriteError::Alone(reason)
    }

    /// The offset, asked for more than once: one that cannot be read says nothing, and whoever starts anew on that would fence a
    /// successor.
    async fn look_again(&self) -> Result<Option<SourceOffset>, OffsetError> {
        for _ in 1..LOOKS_MAX {
            if let Ok(found) = self.surroundings.read_offset(&self.place).await {
                return Ok(found);
            }
            self.surroundings.pause(TAKE_OVER_TIME).await;
        }
        self.surroundings.read_offset(&self.place).await
    }
}

/// The offset, unless another worker has the place.
async fn look<S: Surroundings>(
    surroundings: &S,
    place: &OffsetPlace,
    tenure: &Tenure,
) -> Result<Option<SourceOffset>, WriteError> {
    let offset = surroundings.read_offset(place).await?;
    if tenure.is_over(offset.as_ref()) {
        return Err(WriteError::Fenced(tenure::OVER.into()));
    }
    Ok(offset)
}
