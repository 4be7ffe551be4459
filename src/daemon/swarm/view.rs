//! What the node's part in the swarm looks like from outside.

use std::collections::HashSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::swarm::popularity::PeerSets;
use crate::types::{Digest, PeerId};

/// Read by reports, and by whoever weighs layers.
#[derive(Debug, Default)]
pub(in crate::daemon) struct View {
    seen: Mutex<Seen>,
    sets: Mutex<PeerSets>,
    /// This node's tracker, or the nodes whose tracker it is.
    tied: Mutex<HashSet<PeerId>>,
}

/// Who is tracker, and how this node fares with it.
#[derive(Clone, Debug, Default)]
pub(in crate::daemon) struct Seen {
    /// The tracker in office.
    pub(in crate::daemon) tracker: Option<InOffice>,
    /// This node's own stability, in points.
    pub(in crate::daemon) score: u16,
    /// Where this node is tracker: nodes that announce to it,
    pub(in crate::daemon) nodes: usize,
    /// and layers that they hold.
    pub(in crate::daemon) layers: usize,
    /// Questions to trackers: answered, and in vain.
    pub(in crate::daemon) lookups: (u64, u64),
}

/// A tracker.
#[derive(Clone, Copy, Debug)]
pub(in crate::daemon) struct InOffice {
    pub(in crate::daemon) id: PeerId,
    pub(in crate::daemon) is_me: bool,
    /// The stability by which it was elected, in points.
    pub(in crate::daemon) score: u16,
    /// Since when this node follows it.
    pub(in crate::daemon) since: Instant,
}

impl View {
    pub(in crate::daemon) fn seen(&self) -> Seen {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// This node's tracker, or the nodes whose tracker it is.
    pub(super) fn tied(&self) -> MutexGuard<'_, HashSet<PeerId>> {
        self.tied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layer sets of peers.
    pub(super) fn sets(&self) -> MutexGuard<'_, PeerSets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `rho` of a layer among this node and its peers, 0 to 1: the share of images
    /// that contain it.
    pub(in crate::daemon) fn popularity(&self, blob: &Digest) -> f64 {
        self.sets().rho(blob)
    }
}
