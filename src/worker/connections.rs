//! The listener's open connections. There is always room for one more: the one that has been idle for longest makes
//! way, so that probes are answered however many others hold connections open.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio_util::sync::CancellationToken;

/// The connections that are open. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Connections {
    most: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Grows with each use of any connection.
    uses: u64,
    /// By last use.
    closers: BTreeMap<u64, CancellationToken>,
}

/// One connection's place among the others, until it is dropped.
#[derive(Debug)]
pub struct Place {
    connections: Connections,
    last_use: Mutex<u64>,
    /// Cancelled when it has to make way.
    pub closed: CancellationToken,
}

impl Connections {
    /// At most `most` (at least 1) at a time.
    pub fn new(most: usize) -> Self {
        Self { most, open: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new one in.
    pub fn enter(&self) -> Place {
        let closed = CancellationToken::new();
        let mut open = self.lock();
        while open.closers.len() >= self.most {
            open.close_idlest();
        }
        let last_use = open.insert(closed.clone());
        Place { connections: self.clone(), last_use: Mutex::new(last_use), closed }
    }

    /// Closes the one that has been idle for longest.
    pub fn close_idlest(&self) {
        self.lock().close_idlest();
    }
}

impl Open {
    fn insert(&mut self, closer: CancellationToken) -> u64 {
        self.uses += 1;
        self.closers.insert(self.uses, closer);
        self.uses
    }

    fn close_idlest(&mut self) {
        if let Some((_, closer)) = self.closers.pop_first() {
            closer.cancel();
        }
    }
}

impl Place {
    /// A request has come.
    pub fn is_used(&self) {
        let mut last_use = self.last_use.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = self.connections.lock();
        if let Some(closer) = open.closers.remove(&last_use) {
            *last_use = open.insert(closer);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let last_use = *self.last_use.lock().unwrap_or_else(PoisonError::into_inner);
        self.connections.lock().closers.remove(&last_use);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_that_is_idle_for_longest_makes_way() {
        let connections = Connections::new(3);
        let mut places: Vec<Place> = (0..3).map(|_| connections.enter()).collect();
        places[0].is_used();
        // One that has left makes room, and nobody has to go.
        drop(places.remove(2));
        places.push(connections.enter());
        let are_closed = |places: &[Place]| places.iter().map(|place| place.closed.is_cancelled()).collect::<Vec<_>>();
        assert_eq!(are_closed(&places), [false, false, false]);
        places.push(connections.enter());
        assert_eq!(are_closed(&places), [false, true, false, false]);
        places[1].is_used();
        connections.close_idlest();
        assert_eq!(are_closed(&places), [true, true, false, false]);
    }
}
