//! Cached or passed through: how each inode is open.
//!
//! Invariant: an inode is open in one mode at a time, and passed through to one
//! backing at a time. The kernel refuses anything else, and the program sees
//! EIO. A mode begins with the first open and ends with the last close; closes
//! arrive after the kernel is done with the file, so that what stands here is
//! never less than what the kernel believes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::inode::NodeId;

/// The modes of all inodes that are open. `B` is whatever stands for a backing.
pub struct OpenModes<B> {
    open: Mutex<HashMap<NodeId, State<B>>>,
}

enum State<B> {
    Cached { opens: u64 },
    Passthrough { opens: u64, backing: Arc<B> },
}

/// How an open has to be answered.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenMode<B> {
    /// Reads come here, and the kernel keeps what they give.
    Cached,
    /// Reads go to the backing.
    Passthrough(Arc<B>),
}

impl<B> Default for OpenModes<B> {
    fn default() -> Self {
        Self { open: Mutex::default() }
    }
}

impl<B> OpenModes<B> {
    /// Counts an open and says how to answer it. `backing` is asked only if the
    /// inode is not open yet, and may decline.
    pub fn open(&self, id: NodeId, backing: impl FnOnce() -> Option<B>) -> OpenMode<B> {
        let mut open = self.lock();
        let state = open.entry(id).or_insert_with(|| match backing() {
            Some(backing) => State::Passthrough { opens: 0, backing: Arc::new(backing) },
            None => State::Cached { opens: 0 },
        });
        match state {
            State::Cached { opens } => {
                *opens += 1;
                OpenMode::Cached
            }
            State::Passthrough { opens, backing } => {
                *opens += 1;
                OpenMode::Passthrough(Arc::clone(backing))
            }
        }
    }

    /// Counts a close; the last one ends the mode and drops the backing.
    pub fn close(&self, id: NodeId) {
        let mut open = self.lock();
        let Some(State::Cached { opens } | State::Passthrough { opens, .. }) = open.get_mut(&id)
        else {
            return;
        };
        *opens -= 1;
        if *opens == 0 {
            open.remove(&id);
        }
    }

    /// Number of inodes that are open: (cached, passed through).
    pub fn count(&self) -> (usize, usize) {
        let open = self.lock();
        let cached = |s: &&State<B>| matches!(s, State::Cached { .. });
        let cached = open.values().filter(cached).count();
        (cached, open.len() - cached)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, State<B>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId::from_raw(77);
    const B: NodeId = NodeId::from_raw(78);

    #[test]
    fn the_first_open_decides_until_the_last_close() {
        let modes = OpenModes::default();
        assert_eq!(modes.open(A, || None::<u32>), OpenMode::Cached);
        // Complete by now, but still open in cached mode.
        assert_eq!(modes.open(A, || Some(1)), OpenMode::Cached);
        modes.close(A);
        assert_eq!(modes.open(A, || Some(1)), OpenMode::Cached);
        modes.close(A);
        modes.close(A);
        assert_eq!(modes.count(), (0, 0));

        let OpenMode::Passthrough(first) = modes.open(A, || Some(2)) else {
            panic!("idle and complete");
        };
        let OpenMode::Passthrough(second) = modes.open(A, || unreachable!("one backing")) else {
            panic!("still open");
        };
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(modes.open(B, || None), OpenMode::Cached);
        assert_eq!(modes.count(), (1, 1));
        modes.close(A);
        modes.close(A);
        assert_eq!(modes.open(A, || None), OpenMode::Cached);
    }

    #[test]
    fn a_close_too_many_does_no_harm() {
        let modes = OpenModes::<u32>::default();
        modes.close(A);
        assert_eq!(modes.count(), (0, 0));
    }
}
