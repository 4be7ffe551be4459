//! What is being done to which layer, for people to look at.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::account::Sources;
use crate::types::Digest;

/// What is done to a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkKind {
    /// Every byte of the blob is read once, to index and keep it.
    FirstPass,
    /// Its missing content is fetched.
    Fetch,
    /// Its index is written to a registry.
    Push,
}

/// All work that goes on. Bounded by the layers that are worked on.
#[derive(Default)]
pub struct Board {
    items: Mutex<BTreeMap<Digest, Arc<Work>>>,
}

/// Work on one layer. Ends when the last [`Ticket`] of it is dropped.
pub struct Work {
    /// What is done.
    pub kind: WorkKind,
    /// The layer's blob.
    pub blob: Digest,
    /// Bytes in all.
    pub total: u64,
    done: AtomicU64,
    sources: Mutex<Sources>,
}

/// The right to say how far work is.
pub struct Ticket<'a> {
    board: &'a Board,
    work: Arc<Work>,
}

impl Board {
    /// Work on a layer begins.
    pub fn begin(&self, blob: Digest, kind: WorkKind, total: u64) -> Ticket<'_> {
        let work = Arc::new(Work {
            kind,
            blob,
            total,
            done: AtomicU64::new(0),
            sources: Mutex::default(),
        });
        self.items().insert(blob, Arc::clone(&work));
        Ticket { board: self, work }
    }

    /// The work on a layer, if there is any.
    pub fn of(&self, blob: &Digest) -> Option<Arc<Work>> {
        self.items().get(blob).cloned()
    }

    /// All work, by digest.
    pub fn all(&self) -> Vec<Arc<Work>> {
        self.items().values().cloned().collect()
    }

    fn items(&self) -> MutexGuard<'_, BTreeMap<Digest, Arc<Work>>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    /// Bytes done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Says how many bytes are done.
    pub fn set_done(&self, bytes: u64) {
        self.done.store(bytes, Ordering::Relaxed);
    }

    /// Says where the bytes came from that were not here before.
    pub fn set_sources(&self, sources: Sources) {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner) = sources;
    }

    /// Where the bytes came from that were not here before.
    pub fn sources(&self) -> Sources {
        *self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// More bytes are done.
    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Ticket<'_> {
    /// The work, to be handed to whoever does it.
    pub fn work(&self) -> &Arc<Work> {
        &self.work
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let mut items = self.board.items();
        if items.get(&self.work.blob).is_some_and(|work| Arc::ptr_eq(work, &self.work)) {
            items.remove(&self.work.blob);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_seen_while_it_goes_on() {
        let board = Board::default();
        let blob = Digest::of(b"layer");
        let ticket = board.begin(blob, WorkKind::Fetch, 10);
        ticket.work().add(4);
        assert_eq!(board.of(&blob).map(|w| (w.done(), w.total)), Some((4, 10)));
        let newer = board.begin(blob, WorkKind::FirstPass, 20);
        drop(ticket);
        assert_eq!(board.of(&blob).map(|w| w.kind), Some(WorkKind::FirstPass));
        drop(newer);
        assert!(board.all().is_empty());
    }
}
