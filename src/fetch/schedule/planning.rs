//! When to plan, and how a plan is made of the tables and put back into them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::time::Duration;

use super::model::{Action, Class, Time};
use super::peer_set::PeerSet;
use super::peers::REGISTRY;
use super::plan::{Groups, Lane as PlanLane, Piece, pre_schedule};
use super::sizes::assignment;
use super::table::{Block, Lane, Ref, State};
use super::verdict::{Theft, Verdict, View};
use super::{Scheduler, Timer};
use crate::fetch::ladder::LadderEvent;

/// While anything is wanted, it is planned again this often.
const PERIOD: Duration = Duration::from_millis(250);
/// Plans are at least this far apart, and farther by [`PAUSE_PER_BLOCK`] for
/// each block, so that planning takes no more than a few percent of a core.
const PAUSE: Duration = Duration::from_millis(2);
const PAUSE_PER_BLOCK: Duration = Duration::from_micros(2);

/// What a neighbour is about to pass is left to it for so long.
const COMING: Duration = Duration::from_secs(2);

/// Blocks placed by one plan, the most urgent ones: 4 GiB and more. The next plan
/// is made long before they have come.
const HORIZON: usize = 1 << 14;
/// No piece is larger, in bytes: a plan is made again before it has come.
const PIECE_MAX: u64 = 64 << 20;

/// When to plan.
#[derive(Default)]
pub(super) struct Planning {
    /// Something changed that a plan depends on.
    pub(super) dirty: bool,
    /// A reserved block is to be looked at again then.
    pub(super) again: Option<Time>,
    pub(super) timer: Option<Time>,
    last: Option<Time>,
    /// Spans that only a registry has all of, by layer and entry: how far a run must
    /// read into them, as a place in the stream.
    pub(super) read_anyway: HashMap<(u32, u64), u64>,
    /// Since when nothing was got from beyond the LAN, though there is something.
    idle_since: Option<Time>,
}

struct Item {
    order: u128,
    r: Ref,
    bytes: u32,
    group: u32,
    class: Class,
    key: super::model::BlockKey,
    home: u32,
}

/// Tunnels by number, and groups of them that can bring the same blocks.
#[derive(Default)]
struct Lanes {
    ids: Vec<u64>,
    lanes: Vec<PlanLane>,
    /// The lanes of each peer, and each peer's number here.
    peers: Vec<Range<u32>>,
    by_slot: BTreeMap<u8, u16>,
    groups: Groups,
    by_set: HashMap<PeerSet, u32>,
}

impl Scheduler {
    pub(super) fn plan_is_due(&self) -> bool {
        let planning = &self.planning;
        if self.blocks.len() == 0 {
            return false;
        }
        let pause = PAUSE + PAUSE_PER_BLOCK * self.blocks.len() as u32;
        let Some(last) = planning.last else { return true };
        let early = last + pause > self.now;
        let again = planning.again.is_some_and(|at| at <= self.now);
        !early && (planning.dirty || again || last + PERIOD <= self.now)
    }

    pub(super) fn arm_plan(&mut self) {
        let planning = &self.planning;
        let at = (self.blocks.len() > 0).then(|| {
            let last = planning.last.unwrap_or(self.now);
            let pause = PAUSE + PAUSE_PER_BLOCK * self.blocks.len() as u32;
            let soon = (last + pause).max(self.now);
            let again = planning.again.map(|at| at.max(soon));
            let period = (last + PERIOD).max(soon);
            let next = again.map_or(period, |at| at.min(period));
            if planning.dirty { soon } else { next }
        });
        if at == self.planning.timer {
            return;
        }
        if let Some(old) = std::mem::replace(&mut self.planning.timer, at) {
            self.timers.remove(&(old, Timer::Plan));
        }
        if let Some(at) = at {
            self.timers.insert((at, Timer::Plan));
        }
    }

    /// Plans everything that is not in flight anew.
    pub(super) fn plan(&mut self) {
        self.planning.dirty = false;
        self.registry.unsettle();
        self.planning.again = None;
        self.planning.last = Some(self.now);
        let view = self.view();
        self.note_read_anyway(&view);
        self.clear_queues();
        let mut lanes = self.lanes(&view);
        let mut items: Vec<Item> = Vec::new();
        let mut lacking: BTreeSet<u32> = BTreeSet::new();
        let mut thefts: BTreeSet<Theft> = BTreeSet::new();
        let mut coming: BTreeSet<(u32, u32)> = BTreeSet::new();
        let mut crossing = false;
        let refs: Vec<Ref> = self.blocks.iter().map(|(r, _)| r).collect();
        for r in refs {
            let Some(block) = self.blocks.get(r) else { continue };
            if block.state() == State::Flying {
                crossing |= self.crosses(block);
                continue;
            }
            let home = block.home;
            if !block.getting.and(self.peers.lan).is_empty() {
                coming.insert((home, block.run));
            }
            let verdict = self.verdict(r, &view);
            if self.lacks_source(&verdict, &view) {
                lacking.insert(home);
            }
            let crosses = verdict.crosses(&self.peers.lan);
            if (crosses || self.passes(r)) && self.attach(r) {
                crossing |= crosses;
                continue;
            }
            self.settle_block(r, &verdict);
            match verdict {
                Verdict::Peers(set) => {
                    crossing |= set.and(self.peers.lan).is_empty();
                    items.extend(self.blocks.get(r).map(|b| item(r, b, lanes.group(set))));
                }
                Verdict::Registry => crossing = true,
                Verdict::Reserve { theft: Some(theft), .. } => {
                    thefts.insert(theft);
                }
                Verdict::Reserve { .. } | Verdict::Stuck => {}
            }
        }
        self.place(items, &mut lanes);
        for home in lacking {
            self.climb(home, LadderEvent::PeersFailed);
        }
        let is_coming = |theft: &Theft| coming.contains(&(theft.home, theft.run.0));
        let free = thefts.iter().find(|theft| !is_coming(theft)).map(|theft| (*theft, false));
        let theft = free.or_else(|| thefts.first().map(|theft| (*theft, true)));
        self.steal(theft.filter(|_| !crossing));
        self.endgame(&view);
    }

    /// What a run at the registry must decode on its way is not asked of peers beyond
    /// the LAN, though they have it: it would come over the line twice.
    fn note_read_anyway(&mut self, view: &View) {
        self.planning.read_anyway.clear();
        let sound = view.alive.without(view.shaky).without(self.peers.slow);
        if sound.without(self.peers.lan).is_empty() {
            return;
        }
        for (_, block) in self.blocks.iter() {
            let Some(place) = &block.place else { continue };
            let flying_to = block.flying_peers();
            let elsewhere = !flying_to.is_empty() && !flying_to.contains(REGISTRY);
            let has = !block.holders.without(block.refused).and(sound).is_empty();
            if elsewhere || has || !block.getting.and(self.peers.lan).is_empty() {
                continue;
            }
            let end = self.planning.read_anyway.entry((block.home, place.entry)).or_default();
            *end = place.stream.start.max(*end);
        }
    }

    /// Puts a block that is not in flight into the state that its verdict says,
    /// save the tunnel, which only the plan as a whole can say.
    pub(super) fn settle_block(&mut self, r: Ref, verdict: &Verdict) {
        let Some(state) = self.blocks.get(r).map(Block::state) else { return };
        let next = match verdict {
            Verdict::Registry => State::Planned(Lane::Registry),
            Verdict::Reserve { .. } => State::Reserved,
            Verdict::Peers(_) | Verdict::Stuck => State::Queued,
        };
        if state == next {
            self.note_reserve(r, verdict);
            return;
        }
        if state == State::Planned(Lane::Registry) {
            self.registry.remove(&self.blocks, r);
        }
        self.blocks.set_state(r, State::Queued);
        self.blocks.set_state(r, next);
        if next == State::Planned(Lane::Registry) {
            self.registry.insert(&self.blocks, r);
        }
        self.note_reserve(r, verdict);
    }

    fn note_reserve(&mut self, r: Ref, verdict: &Verdict) {
        let Verdict::Reserve { until, ask, .. } = *verdict else {
            self.claim_for_reader(r, verdict);
            return;
        };
        if let Some(until) = until {
            self.plan_again_at(until);
        }
        self.claim_for_reader(r, verdict);
        let Some(block) = self.blocks.get_mut(r) else { return };
        if block.class.is_reader() && ask.is_some() && block.asked_of != ask {
            block.asked_of = ask;
            let key = block.key;
            if let Some(peer) = ask.and_then(|slot| self.peers.get(slot)) {
                let peer = peer.id;
                self.actions.push(Action::Ask { peer, key });
            }
        }
    }

    fn clear_queues(&mut self) {
        for (id, tunnel) in &mut self.peers.tunnels {
            for r in std::mem::take(&mut tunnel.queue) {
                if self
                    .blocks
                    .get(r)
                    .is_some_and(|b| b.state() == State::Planned(Lane::Tunnel(*id)))
                {
                    self.blocks.set_state(r, State::Queued);
                }
            }
        }
    }

    fn lanes(&self, view: &View) -> Lanes {
        let mut lanes = Lanes::default();
        for slot in view.usable.iter() {
            let start = lanes.ids.len() as u32;
            for id in self.peers.get(slot).into_iter().flat_map(|p| &p.tunnels) {
                if let Some(tunnel) = self.peers.tunnels.get(id).filter(|t| t.is_open(self.now)) {
                    lanes.ids.push(*id);
                    lanes.lanes.push(tunnel.lane());
                }
            }
            lanes.by_slot.insert(slot, lanes.peers.len() as u16);
            lanes.peers.push(start..lanes.ids.len() as u32);
        }
        lanes
    }

    /// Joins neighbouring bulk blocks to pieces, and places the pieces.
    fn place(&mut self, mut items: Vec<Item>, lanes: &mut Lanes) {
        if items.len() > HORIZON {
            items.select_nth_unstable_by_key(HORIZON, |item| item.order);
            items.truncate(HORIZON);
        }
        items.sort_unstable_by_key(|item| item.order);
        let bytes: u64 = items.iter().map(|item| u64::from(item.bytes)).sum();
        // However large the layer, every lane shall have several pieces.
        let share = bytes / (4 * lanes.ids.len().max(1) as u64);
        let mut pieces: Vec<Piece> = Vec::with_capacity(items.len());
        let mut most = (u32::MAX, 0);
        for (n, item) in items.iter().enumerate() {
            if most.0 != item.home {
                let size = self.homes.get(item.home).map_or(0, |state| state.size);
                most = (item.home, assignment(size).min(share).min(PIECE_MAX));
            }
            if n > 0
                && let Some(piece) = pieces.last_mut()
                && follows(&items[n - 1], item)
                && u64::from(piece.bytes) + u64::from(item.bytes) <= most.1
            {
                piece.bytes += item.bytes;
                continue;
            }
            pieces.push(Piece {
                order: item.order,
                bytes: item.bytes,
                group: item.group,
                name: n as u32,
            });
        }
        for placed in pre_schedule(&mut lanes.lanes, &lanes.peers, &lanes.groups, &mut pieces) {
            let first = placed.name as usize;
            let id = lanes.ids[placed.lane as usize];
            let Some(tunnel) = self.peers.tunnels.get_mut(&id) else { continue };
            // A piece goes as far as the next one begins.
            let next = pieces.partition_point(|p| p.order <= items[first].order);
            let end = pieces.get(next).map_or(items.len(), |p| p.name as usize);
            for item in &items[first..end] {
                self.blocks.set_state(item.r, State::Planned(Lane::Tunnel(id)));
                tunnel.queue.push_back(item.r);
            }
        }
    }

    /// A node that has nothing else to get from beyond the LAN helps out with
    /// what is a neighbour's; where a neighbour is at that very run, after a while
    /// only: it will come by most of what it has not claimed, too.
    fn steal(&mut self, theft: Option<(Theft, bool)>) {
        let Some((theft, is_coming)) = theft else {
            self.planning.idle_since = None;
            return;
        };
        let since = *self.planning.idle_since.get_or_insert(self.now);
        let patience = if is_coming { COMING } else { self.settings.lan_grace * 2 };
        let due = since + patience * theft.rank;
        if due > self.now {
            self.plan_again_at(due);
            return;
        }
        if let Some(state) = self.homes.get_mut(theft.home) {
            state.stolen.insert(theft.run.0);
            self.planning.dirty = true;
            self.planning.idle_since = None;
        }
    }
}

impl Lanes {
    /// The number of the group of a set of peers.
    fn group(&mut self, set: PeerSet) -> u32 {
        if let Some(group) = self.by_set.get(&set) {
            return *group;
        }
        let peers = set.iter().filter_map(|slot| self.by_slot.get(&slot)).copied();
        let group = self.groups.push(peers);
        self.by_set.insert(set, group);
        group
    }
}

fn follows(before: &Item, item: &Item) -> bool {
    before.group == item.group
        && before.class == item.class
        && item.class > Class::Urgent
        && before.key.object == item.key.object
        && before.key.index + 1 == item.key.index
}

/// Class, then deadline, then rarity, then place: all in one number.
fn item(r: Ref, block: &Block, group: u32) -> Item {
    let class = block.class;
    let deadline = block.deadline.map_or(MASK_40, |d| (d.as_millis() as u64).min(MASK_40));
    let rarity = if class == Class::Completion { block.holders.len() as u64 } else { 0 };
    let place = if class.is_reader() {
        block.seq
    } else {
        let start =
            block.place.as_ref().map_or(u64::from(block.key.index), |p| p.stream.start >> 12);
        u64::from(block.home) << 34 | start & MASK_34
    };
    let order = u128::from(class as u8) << 124
        | u128::from(deadline) << 84
        | u128::from(rarity) << 74
        | u128::from(place & MASK_48) << 26
        | u128::from(r.slot) & MASK_26;
    let (bytes, key, home) = (block.len, block.key, block.home);
    Item { order, r, bytes, group, class, key, home }
}

const MASK_26: u128 = (1 << 26) - 1;
const MASK_34: u64 = (1 << 34) - 1;
const MASK_40: u64 = (1 << 40) - 1;
const MASK_48: u64 = (1 << 48) - 1;
