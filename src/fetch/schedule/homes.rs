//! Layers whose blocks are wanted, here or by a neighbour.
//!
//! Invariant: bounded. Layers that nobody wants go first when there are too many.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::lan;
use super::model::{Home, Time};
use super::peer_set::{PeerSet, Slot};
use super::peers::Peers;
use crate::fetch::ladder::{Ladder, Rung};
use crate::types::PeerId;

/// Layers that are remembered.
const HOMES_MAX: usize = 4096;
/// First pause after a registry failed; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Failures in a row after which the registry counts as gone, and whoever else
/// has the layer is looked for again.
const FAILURES_MAX: u32 = 3;

/// A layer.
pub(super) struct HomeState {
    pub(super) home: Home,
    /// In bytes; of the blob.
    pub(super) size: u64,
    /// Can only be read from its start.
    pub(super) whole: bool,
    pub(super) ladder: Ladder,
    /// A look-up beyond the LAN has not ended, even if its time is over.
    pub(super) looking: bool,
    /// Neighbours that want it.
    pub(super) wanters: PeerSet,
    /// Wanted blocks.
    pub(super) blocks: usize,
    /// A reader wants something of it.
    pub(super) hurried: bool,
    /// Neighbours were told that it is wanted.
    pub(super) announced: bool,
    pub(super) last_progress: Time,
    /// The registry is not asked before.
    pub(super) not_before: Option<Time>,
    failures: u32,
    /// The registry will never serve it.
    pub(super) refused: bool,
    /// Runs of neighbours that this node gets after all.
    pub(super) stolen: BTreeSet<u32>,
    /// By run: who began to get it for the LAN; `None` is this node.
    holders: BTreeMap<u32, Option<Slot>>,
    /// When the search for sources last came further.
    pub(super) climbed: Time,
    /// By run: who shall get it; `None` is this node.
    orders: BTreeMap<u32, Vec<Option<Slot>>>,
    /// Its entry among the timers.
    pub(super) timer: Option<Time>,
}

impl HomeState {
    fn new(home: Home, size: u64, theta: u64, registry: bool, now: Time) -> Self {
        Self {
            home,
            size,
            whole: false,
            ladder: Ladder::new(size, theta, registry),
            looking: false,
            wanters: PeerSet::default(),
            blocks: 0,
            hurried: false,
            announced: false,
            last_progress: now,
            not_before: None,
            failures: 0,
            refused: !registry,
            stolen: BTreeSet::new(),
            holders: BTreeMap::new(),
            climbed: now,
            orders: BTreeMap::new(),
            timer: None,
        }
    }

    /// A neighbour begins or ends to want it; `false` if that was known.
    pub(super) fn set_wanter(&mut self, slot: Slot, on: bool) -> bool {
        let news = on != self.wanters.contains(slot);
        if news {
            if on {
                self.wanters.insert(slot);
            } else {
                self.wanters.remove(slot);
            }
            self.orders.clear();
        }
        news
    }

    /// Who shall get run `run` for the LAN, first in order first.
    pub(super) fn order(&mut self, run: u32, me: &PeerId, peers: &Peers) -> &[Option<Slot>] {
        let (home, wanters) = (&self.home, self.wanters);
        self.orders.entry(run).or_insert_with(|| {
            let ids = wanters.iter().filter_map(|slot| peers.get(slot)).map(|p| p.id);
            let mut order: Vec<PeerId> = ids.chain([*me]).collect();
            lan::order(home, run, &mut order);
            order.iter().map(|id| peers.slot(id)).collect()
        })
    }

    /// Somebody begins to get blocks of a run: it is that node's from now on,
    /// unless another one has it that is `live`; of two that began at the same
    /// time the first in order has it.
    pub(super) fn claim(
        &mut self,
        run: u32,
        by: Option<Slot>,
        live: impl Fn(Slot) -> bool,
        me: &PeerId,
        peers: &Peers,
    ) {
        let holds = match self.holders.get(&run).copied() {
            None => None,
            Some(Some(slot)) if !live(slot) => None,
            Some(holder) => Some(holder),
        };
        let winner = match holds {
            None => by,
            Some(holder) if holder == by => by,
            // Two neighbours settle it between them; what counts here is that
            // it is not this node's.
            Some(Some(holder)) => Some(holder),
            Some(None) => {
                let order = self.order(run, me, peers);
                order.iter().find(|slot| slot.is_none() || **slot == by).copied().unwrap_or(by)
            }
        };
        self.holders.insert(run, winner);
    }

    /// This node wants nothing of it any more.
    pub(super) fn forget_own(&mut self) {
        self.holders.retain(|_, holder| holder.is_some());
    }

    /// Who began to get a run, if anybody did; `Some(None)` is this node.
    pub(super) fn holder(&self, run: u32) -> Option<Option<Slot>> {
        self.holders.get(&run).copied()
    }

    /// The registry failed for now. Gives the end of the pause, and whether it
    /// counts as gone.
    pub(super) fn registry_failed(&mut self, now: Time, at_least: Duration) -> (Time, bool) {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.failures.min(8)).min(BACKOFF_MAX);
        self.failures = self.failures.saturating_add(1);
        let until = now + pause.max(at_least.min(BACKOFF_MAX * 12));
        self.not_before = Some(until);
        (until, self.failures >= FAILURES_MAX)
    }

    pub(super) fn registry_works(&mut self) {
        self.failures = 0;
    }

    fn is_idle(&self) -> bool {
        self.blocks == 0 && self.wanters.is_empty()
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Homes {
    slots: Vec<Option<HomeState>>,
    by_name: HashMap<Home, u32>,
}

impl Homes {
    /// The layer's number; makes room for it if it is new. `None` if there is none.
    pub(super) fn open(&mut self, home: Home, theta: u64, now: Time) -> Option<u32> {
        if let Some(n) = self.by_name.get(&home) {
            return Some(*n);
        }
        if self.by_name.len() >= HOMES_MAX {
            self.forget_idle();
        }
        let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
        if free >= HOMES_MAX {
            return None;
        }
        if free == self.slots.len() {
            self.slots.push(None);
        }
        self.slots[free] = Some(HomeState::new(home, u64::MAX, theta, false, now));
        self.by_name.insert(home, free as u32);
        Some(free as u32)
    }

    /// Says what is known of a layer; its ladder starts anew unless it is climbed,
    /// or if there is a registry to ask where there was none or one that refused.
    /// Gives whether it did.
    pub(super) fn describe(
        &mut self,
        n: u32,
        size: u64,
        whole: bool,
        registry: bool,
        theta: u64,
    ) -> bool {
        let Some(state) = self.get_mut(n) else { return false };
        (state.size, state.whole) = (size, whole);
        let anew = state.ladder.rung() == Rung::Local || (state.refused && registry);
        if anew {
            state.ladder = Ladder::new(size, theta, registry);
        }
        state.refused = !registry;
        anew
    }

    pub(super) fn get(&self, n: u32) -> Option<&HomeState> {
        self.slots.get(n as usize)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, n: u32) -> Option<&mut HomeState> {
        self.slots.get_mut(n as usize)?.as_mut()
    }

    pub(super) fn find(&self, home: &Home) -> Option<u32> {
        self.by_name.get(home).copied()
    }

    /// A peer is gone: it wants nothing, and its slot may get another owner.
    pub(super) fn forget_peer(&mut self, slot: Slot) {
        for state in self.slots.iter_mut().flatten() {
            state.set_wanter(slot, false);
            state.holders.retain(|_, holder| *holder != Some(slot));
        }
    }

    fn forget_idle(&mut self) {
        for entry in &mut self.slots {
            if let Some(state) = entry.take_if(|state| state.is_idle() && state.timer.is_none()) {
                self.by_name.remove(&state.home);
            }
        }
    }
}
