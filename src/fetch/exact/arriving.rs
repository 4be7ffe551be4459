//! A blob on its way, for readers who don't want to wait for its end.
//!
//! Invariant: every byte below [`Arriving::received`] is in the staging area, in
//! the tail, or both; a block leaves the tail after it was staged. The tail is
//! what the queue of the pass holds and one unfinished block: a few MiB, however
//! many read and however slowly.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use bytes::Bytes;
use tokio::sync::watch;

use crate::store::{Staging, Stream};
use crate::types::ObjectId;
use crate::wire::PASS_PIECE;

/// The one stream of a blob that is one file.
pub(super) const STREAM: Stream = Stream::File(0);

/// The bytes of a blob while its pass goes on. They are not verified before the
/// pass has come to its end.
pub struct Arriving {
    size: u64,
    staging: RwLock<Option<Staging>>,
    tail: Mutex<VecDeque<(u64, Bytes)>>,
    received: watch::Sender<u64>,
    object: OnceLock<ObjectId>,
}

impl Arriving {
    /// Nothing has come yet of a blob that has `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            staging: RwLock::default(),
            tail: Mutex::default(),
            received: watch::Sender::new(0),
            object: OnceLock::new(),
        }
    }

    /// Length of the blob in bytes, as its source says.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes from the start that can be read; changes as more come.
    pub fn received(&self) -> watch::Receiver<u64> {
        self.received.subscribe()
    }

    /// Pieces from the start that have come whole.
    pub fn pieces(&self) -> u32 {
        let received = *self.received.borrow();
        let pieces = if received == self.size {
            received.div_ceil(PASS_PIECE)
        } else {
            received / PASS_PIECE
        };
        u32::try_from(pieces).unwrap_or(u32::MAX)
    }

    /// Bytes at `position` that are in memory still: those that came last.
    pub fn latest(&self, position: u64) -> Option<Bytes> {
        let tail = self.tail();
        let after = tail.partition_point(|(start, _)| *start <= position);
        let (start, bytes) = tail.get(after.checked_sub(1)?)?;
        let from = usize::try_from(position - start).ok()?;
        (from < bytes.len()).then(|| bytes.slice(from..))
    }

    /// Reads up to `len` bytes at `position` from the disk. May block. `None` once
    /// the pass has ended: the blob is an object then, or nothing.
    ///
    /// # Errors
    /// What the store says.
    pub fn read(&self, position: u64, len: usize) -> Result<Option<Bytes>, String> {
        let staging = self.staging.read().unwrap_or_else(PoisonError::into_inner);
        let Some(staging) = &*staging else { return Ok(None) };
        let mut bytes = vec![0; len];
        let read = staging.read(STREAM, position, &mut bytes).map_err(|e| e.to_string())?;
        bytes.truncate(read);
        Ok(Some(bytes.into()))
    }

    /// A stretch that has come, from memory or disk. May block. `None` once the pass
    /// has ended.
    pub(super) fn stretch(&self, range: Range<u64>) -> Result<Option<Bytes>, String> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut position = range.start;
        while position < range.end {
            let rest = (range.end - position) as usize;
            let part = match self.latest(position) {
                Some(part) => Some(part),
                None => self.read(position, rest)?.filter(|part| !part.is_empty()),
            };
            let Some(part) = part else { return Ok(None) };
            let part = &part[..part.len().min(rest)];
            bytes.extend_from_slice(part);
            position += part.len() as u64;
        }
        Ok(Some(bytes.into()))
    }

    /// The object that the blob has become.
    pub(super) fn object(&self) -> Option<ObjectId> {
        self.object.get().copied()
    }

    /// The blob is an object now.
    pub(super) fn became(&self, object: ObjectId) {
        let _ = self.object.set(object);
    }

    /// The pass begins, or goes on after the first `staged` bytes.
    pub(super) fn begin(&self, staging: Staging, staged: u64) {
        *self.staging.write().unwrap_or_else(PoisonError::into_inner) = Some(staging);
        self.received.send_replace(staged);
    }

    /// More came, in order.
    pub(super) fn push(&self, bytes: Bytes) {
        let start = *self.received.borrow();
        let end = start + bytes.len() as u64;
        self.tail().push_back((start, bytes));
        self.received.send_replace(end);
    }

    /// All below `end` is in the staging area.
    pub(super) fn staged(&self, end: u64) {
        let mut tail = self.tail();
        while tail.front().is_some_and(|(start, bytes)| start + bytes.len() as u64 <= end) {
            tail.pop_front();
        }
    }

    /// Works on the staging area, which readers use at the same time.
    pub(super) fn with<T>(&self, work: impl FnOnce(&Staging) -> T) -> Option<T> {
        self.staging.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(work)
    }

    /// Ends the pass: `work` takes the staging area, and readers wait until it has.
    pub(super) fn end<T>(&self, work: impl FnOnce(Staging) -> T) -> Option<T> {
        let mut staging = self.staging.write().unwrap_or_else(PoisonError::into_inner);
        let done = staging.take().map(work);
        self.tail().clear();
        done
    }

    fn tail(&self) -> MutexGuard<'_, VecDeque<(u64, Bytes)>> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_last_is_read_from_memory_until_it_is_staged() {
        let arriving = Arriving::new(100);
        arriving.push(Bytes::from_static(b"0123"));
        arriving.push(Bytes::from_static(b"456789"));
        assert_eq!(*arriving.received().borrow(), 10);
        assert_eq!(arriving.latest(2).as_deref(), Some(&b"23"[..]));
        assert_eq!(arriving.latest(4).as_deref(), Some(&b"456789"[..]));
        assert_eq!(arriving.latest(10), None);
        arriving.staged(7);
        assert_eq!(arriving.latest(2), None);
        assert_eq!(arriving.latest(8).as_deref(), Some(&b"89"[..]));
        arriving.staged(10);
        assert_eq!(arriving.latest(8), None);
        assert_eq!(arriving.read(0, 4), Ok(None));
    }
}
