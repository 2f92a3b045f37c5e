//! Whether this worker still has a connector's place.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::offsets::SourceOffset;

/// Why a task ends whose worker has lost the place.
pub const OVER: &str = "the source offset is written by another since";

/// A connector's place as one start of a worker has it.
///
/// Whoever takes the place writes the source offset again under a name of its own. The first time, this worker takes it from
/// whoever has it. A task that starts anew, after trouble of its own, asks here first: what another has written since then means
/// that the place is taken, and it is not taken back. Otherwise two workers could go on ending each other.
#[derive(Debug)]
pub struct Tenure {
    instance: String,
    /// Who may have written the offset without the place being lost: we, and until we surely have, whoever had it before. Nobody
    /// before the first start.
    known: Mutex<BTreeSet<Option<String>>>,
}

impl Tenure {
    /// `instance` is to be a new one at each start of a worker.
    pub fn new(instance: String) -> Self {
        Self { instance, known: Mutex::default() }
    }

    /// The name that this worker writes the offset under.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Whether this worker has set about taking the place.
    pub fn has_begun(&self) -> bool {
        !self.known().is_empty()
    }

    /// Whether another worker has the place now, by the offset as it stands. An offset that somebody has deleted is nobody's.
    pub fn is_over(&self, offset: Option<&SourceOffset>) -> bool {
        let known = self.known();
        offset.is_some_and(|offset| !known.is_empty() && !known.contains(&offset.instance))
    }

    /// The place is being taken from whoever wrote this offset.
    pub fn begin(&self, offset: Option<&SourceOffset>) {
        let before = offset.and_then(|offset| offset.instance.clone());
        self.known().extend([before, Some(self.instance.clone())]);
    }

    /// The offset was written under our name.
    pub fn confirm(&self) {
        self.known().retain(|name| name.as_ref() == Some(&self.instance));
    }

    fn known(&self) -> MutexGuard<'_, BTreeSet<Option<String>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
