//! The table of wanted blocks. Each is in exactly one state:
//!
//! ```text
//!  Queued ──► Planned ──► Flying ──► (delivered or failed: out of the table)
//!    │ ▲         │          │
//!    ▼ └─────────┴──────────┘ returned
//!  Reserved: a neighbour brings it into the LAN
//! ```
//!
//! [`Table::set_state`] is the only way from one to another, and panics in debug
//! builds where the way does not exist. `Flying` and having flights are the same.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::model::{BlockKey, Class, InterestId, Place, RequestId, Time, TunnelId, Wanted, Why};
use super::peer_set::{PeerSet, Slot};
use crate::types::ObjectId;

/// Names a block while it is in the table. A slot is used again with another age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Ref {
    pub(super) slot: u32,
    age: u32,
}

impl Ref {
    /// Sorts before all others.
    pub(super) const MIN: Self = Self { slot: 0, age: 0 };
}

/// Where bytes can come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    Tunnel(TunnelId),
    Registry,
}

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Wanted, and no source chosen.
    Queued,
    /// A neighbour is to bring it into the LAN.
    Reserved,
    /// In the queue of a tunnel, or of the registry.
    Planned(Lane),
    /// Asked of one source or more.
    Flying,
}

impl State {
    fn may_become(self, next: Self) -> bool {
        use State::{Flying, Planned, Queued, Reserved};
        matches!(
            (self, next),
            (Queued, Reserved | Planned(_))
                | (Planned(_), Queued | Flying)
                | (Reserved | Flying, Queued)
        )
    }
}

/// A block asked of one source.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) lane: Lane,
    pub(super) peer: Slot,
    pub(super) since: Time,
    pub(super) why: Why,
    /// Bytes asked for so far: less than the block's length while parts are left.
    pub(super) asked: u32,
    pub(super) requests: Vec<RequestId>,
}

/// Somebody's interest in a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interest {
    pub(super) id: InterestId,
    pub(super) class: Class,
    pub(super) deadline: Option<Time>,
}

/// A wanted block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) key: BlockKey,
    pub(super) len: u32,
    pub(super) place: Option<Place>,
    pub(super) home: u32,
    /// The run that it stands in.
    pub(super) run: u32,
    /// Of its most urgent interest.
    pub(super) class: Class,
    /// Of its most hurried interest.
    pub(super) deadline: Option<Time>,
    pub(super) interests: Vec<Interest>,
    /// A neighbour's reader waits for it.
    pub(super) neighbour_waits: bool,
    /// Peers that hold it.
    pub(super) holders: PeerSet,
    /// Neighbours that said they are getting it.
    pub(super) getting: PeerSet,
    /// Sources that failed to give it.
    pub(super) refused: PeerSet,
    /// The boundary may be crossed for it, so that its reader is in time.
    pub(super) forced: bool,
    /// Neighbours were told that this node gets it.
    pub(super) claimed: bool,
    /// The neighbour that was asked to hurry.
    pub(super) asked_of: Option<Slot>,
    /// Since when it waits for its turn to be got by this node.
    pub(super) waits_since: Option<Time>,
    /// When its class became what it is.
    pub(super) since: Time,
    /// Order of wanting.
    pub(super) seq: u64,
    state: State,
    pub(super) flights: Vec<Flight>,
    /// The time of its entry among the timers.
    pub(super) timer: Option<Time>,
}

impl Block {
    pub(super) fn state(&self) -> State {
        self.state
    }

    /// Who brings it.
    pub(super) fn flying_peers(&self) -> PeerSet {
        let mut set = PeerSet::default();
        self.flights.iter().for_each(|f| set.insert(f.peer));
        set
    }

    /// Since when it is in flight in its class.
    pub(super) fn waited_from(&self) -> Option<Time> {
        self.flights.iter().map(|f| f.since).min().map(|since| since.max(self.since))
    }
}

/// The table.
#[derive(Default)]
pub(super) struct Table {
    slots: Vec<(u32, Option<Block>)>,
    free: Vec<u32>,
    by_object: HashMap<ObjectId, BTreeMap<u32, Ref>>,
    counts: Counts,
    next_seq: u64,
}

/// Blocks by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) queued: usize,
    pub(super) reserved: usize,
    pub(super) planned: usize,
    pub(super) flying: usize,
}

impl Counts {
    fn of(&mut self, state: State) -> &mut usize {
        match state {
            State::Queued => &mut self.queued,
            State::Reserved => &mut self.reserved,
            State::Planned(_) => &mut self.planned,
            State::Flying => &mut self.flying,
        }
    }

    pub(super) fn total(&self) -> usize {
        self.queued + self.reserved + self.planned + self.flying
    }
}

impl Table {
    /// Adds a block that is not in the table, as queued.
    pub(super) fn add(
        &mut self,
        wanted: Wanted,
        home: u32,
        run: u32,
        class: Class,
        now: Time,
    ) -> Ref {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let entry = &mut self.slots[slot as usize];
        let r = Ref { slot, age: entry.0 };
        self.next_seq += 1;
        self.by_object.entry(wanted.key.object).or_default().insert(wanted.key.index, r);
        entry.1 = Some(Block {
            key: wanted.key,
            len: wanted.len.max(1),
            place: wanted.place,
            home,
            run,
            class,
            deadline: None,
            interests: Vec::new(),
            neighbour_waits: false,
            holders: PeerSet::default(),
            getting: PeerSet::default(),
            refused: PeerSet::default(),
            forced: false,
            claimed: false,
            asked_of: None,
            waits_since: None,
            since: now,
            seq: self.next_seq,
            state: State::Queued,
            flights: Vec::new(),
            timer: None,
        });
        self.counts.queued += 1;
        r
    }

    pub(super) fn find(&self, key: &BlockKey) -> Option<Ref> {
        self.by_object.get(&key.object)?.get(&key.index).copied()
    }

    /// The wanted blocks of an object among those numbered `range`.
    pub(super) fn of_object(&self, object: &ObjectId, range: Range<u32>) -> Vec<Ref> {
        let blocks = self.by_object.get(object);
        // A range that ends before it starts is a peer's nonsense, not a panic.
        let range = range.start..range.end.max(range.start);
        blocks.into_iter().flat_map(|blocks| blocks.range(range.clone()).map(|(_, r)| *r)).collect()
    }

    pub(super) fn get(&self, r: Ref) -> Option<&Block> {
        let (age, block) = self.slots.get(r.slot as usize)?;
        block.as_ref().filter(|_| *age == r.age)
    }

    pub(super) fn get_mut(&mut self, r: Ref) -> Option<&mut Block> {
        let (age, block) = self.slots.get_mut(r.slot as usize)?;
        block.as_mut().filter(|_| *age == r.age)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Ref, &Block)> {
        (0u32..).zip(&self.slots).filter_map(|(slot, (age, block))| {
            block.as_ref().map(|block| (Ref { slot, age: *age }, block))
        })
    }

    /// Takes a block to another state; does nothing if it is there already.
    pub(super) fn set_state(&mut self, r: Ref, next: State) {
        let Some(block) = self.get_mut(r) else { return };
        let before = block.state;
        if before == next {
            return;
        }
        debug_assert!(before.may_become(next), "{:?}: {before:?} -> {next:?}", block.key);
        debug_assert_eq!(next == State::Flying, !block.flights.is_empty());
        block.state = next;
        *self.counts.of(before) -= 1;
        *self.counts.of(next) += 1;
    }

    /// Takes a block out.
    pub(super) fn remove(&mut self, r: Ref) -> Option<Block> {
        let (age, entry) = self.slots.get_mut(r.slot as usize)?;
        if *age != r.age {
            return None;
        }
        let block = entry.take()?;
        *age = age.wrapping_add(1);
        self.free.push(r.slot);
        *self.counts.of(block.state) -= 1;
        if let Some(blocks) = self.by_object.get_mut(&block.key.object) {
            blocks.remove(&block.key.index);
            if blocks.is_empty() {
                self.by_object.remove(&block.key.object);
            }
        }
        Some(block)
    }

    pub(super) fn counts(&self) -> Counts {
        self.counts
    }

    pub(super) fn len(&self) -> usize {
        self.counts.total()
    }
}
