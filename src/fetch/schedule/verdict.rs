//! Whom a block may be asked of. Here stands the rule of locality: a block that
//! a neighbour holds or is about to hold is not fetched across the boundary of
//! the LAN, unless a reader would otherwise miss its deadline.

use super::Scheduler;
use super::model::{Class, Place, Time};
use super::peer_set::{PeerSet, Slot};
use super::peers::REGISTRY;
use super::table::{Block, Ref};

/// Whom a block may be asked of now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// These peers, which are all neighbours or all elsewhere.
    Peers(PeerSet),
    /// The registry.
    Registry,
    /// Nobody: a neighbour brings it. To be looked at again at `until`, and if a
    /// reader waits, `ask` is to be told.
    Reserve { until: Option<Time>, ask: Option<Slot>, theft: Option<Theft> },
    /// Nobody, until the ladder is climbed.
    Stuck,
}

impl Verdict {
    /// Whether it says to ask beyond the LAN.
    pub(super) fn crosses(&self, lan: &PeerSet) -> bool {
        match self {
            Self::Peers(set) => set.and(*lan).is_empty(),
            Self::Registry => true,
            Self::Reserve { .. } | Self::Stuck => false,
        }
    }
}

/// A run that a neighbour should get, and that this node may get instead when it
/// has nothing else to do. The order is that of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Theft {
    /// This node's rank for the run, from 1: others go first.
    pub(super) rank: u32,
    /// From the end: the neighbour begins at the start.
    pub(super) run: std::cmp::Reverse<u32>,
    pub(super) home: u32,
}

/// The peers as they are during one event.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) usable: PeerSet,
    pub(super) alive: PeerSet,
    pub(super) opening: PeerSet,
    pub(super) shaky: PeerSet,
}

impl Scheduler {
    pub(super) fn view(&self) -> View {
        let now = self.now;
        View {
            usable: self.peers.usable(now),
            alive: self.peers.alive(),
            opening: self.peers.opening(now),
            shaky: self.peers.shaky(),
        }
    }

    pub(super) fn verdict(&mut self, r: Ref, view: &View) -> Verdict {
        let verdict = self.sound_verdict(r, view);
        if verdict != Verdict::Stuck {
            return verdict;
        }
        // Better one that answers late than none.
        let Some(block) = self.blocks.get(r) else { return Verdict::Stuck };
        let shaky = block.holders.without(block.refused).and(view.shaky).and(view.usable);
        let near = shaky.and(self.peers.lan);
        let reach = self.homes.get(block.home).map(|s| s.ladder.reach()).unwrap_or_default();
        match (near.is_empty(), shaky.is_empty() || !reach.swarm) {
            (false, _) => Verdict::Peers(near),
            (true, false) => Verdict::Peers(shaky),
            (true, true) => Verdict::Stuck,
        }
    }

    fn sound_verdict(&mut self, r: Ref, view: &View) -> Verdict {
        let Some(block) = self.blocks.get(r) else { return Verdict::Stuck };
        let near = self.neighbours_with(block, view);
        let ready = near.and(view.usable);
        if !ready.is_empty() {
            return Verdict::Peers(ready);
        }
        if block.forced && !self.streams_in(block) {
            return self.across(block, view).unwrap_or(Verdict::Stuck);
        }
        if !near.and(view.alive).is_empty() {
            // Its tunnel is being opened, or it is busy for a moment.
            return Verdict::Reserve { until: None, ask: None, theft: None };
        }
        let getting = block.getting.and(self.peers.lan).and(view.alive).without(view.shaky);
        let (home, run, claimed) = (block.home, block.run, block.claimed);
        let getting = if claimed { self.before_me(home, run, getting) } else { getting };
        if let Some((slot, until)) = self.getter(getting) {
            return Verdict::Reserve { until: Some(until), ask: Some(slot), theft: None };
        }
        if let Some(reserve) = self.turn(r, view) {
            return reserve;
        }
        match self.blocks.get(r) {
            Some(block) => self.across(block, view).unwrap_or(Verdict::Stuck),
            None => Verdict::Stuck,
        }
    }

    /// A neighbour reads the layer's only stream from its start to its end, and
    /// everything in it: a second stream would cost the whole layer.
    fn streams_in(&self, block: &Block) -> bool {
        let state = self.homes.get(block.home).filter(|s| s.whole);
        let holder = state.and_then(|s| s.holder(block.run)).flatten();
        holder.is_some_and(|slot| self.live_neighbours().contains(slot))
    }

    /// Neighbours that hold the block and did not fail to give it.
    pub(super) fn neighbours_with(&self, block: &Block, view: &View) -> PeerSet {
        block.holders.and(self.peers.lan).without(block.refused).without(view.shaky)
    }

    /// Those of some neighbours that go before this node where they began to get
    /// a block at the same time. All nodes agree on that.
    pub(super) fn before_me(&mut self, home: u32, run: u32, mut of: PeerSet) -> PeerSet {
        if of.is_empty() {
            return of;
        }
        if let Some(state) = self.homes.get_mut(home) {
            let order = state.order(run, &self.me, &self.peers);
            // Whoever does not want the layer stands in no order, and goes first.
            order.iter().skip_while(|s| s.is_some()).flatten().for_each(|slot| of.remove(*slot));
        }
        of
    }

    /// The neighbour that is getting a block, and how long that is believed.
    fn getter(&self, getting: PeerSet) -> Option<(Slot, Time)> {
        let patience = self.settings.lan_patience;
        getting
            .iter()
            .filter_map(|slot| Some((slot, self.peers.get(slot)?.news + patience)))
            .find(|(_, until)| *until > self.now)
    }

    /// Whether it is a neighbour's turn to get the block for the LAN.
    fn turn(&mut self, r: Ref, view: &View) -> Option<Verdict> {
        let block = self.blocks.get(r)?;
        let (home, run, since, class) = (block.home, block.run, block.since, block.class);
        let state = self.homes.get_mut(home)?;
        let wanters = state.wanters.and(view.alive).and(self.peers.lan).without(view.shaky);
        if wanters.is_empty() || state.stolen.contains(&run) {
            return None;
        }
        // Who began with a run goes on with it; before anybody did, hashing says
        // who shall. One that brings nothing, though it should, has lost its turn.
        let patience = self.settings.lan_patience;
        let serves = |slot: Slot| {
            let news = self.peers.get(slot).map(|p| p.news.max(since) + patience);
            wanters.contains(slot) && news.is_some_and(|until| until > self.now)
        };
        let holder = state.holder(run).filter(|h| h.is_none_or(serves));
        let (mut rank, mut first) = (0, None);
        match holder {
            Some(None) => return None,
            Some(Some(slot)) => (rank, first) = (1, Some(slot)),
            None => {}
        }
        for slot in state.order(run, &self.me, &self.peers) {
            let Some(slot) = *slot else { break };
            if serves(slot) && first != Some(slot) {
                rank += 1;
                first.get_or_insert(slot);
            }
        }
        if rank == 0 {
            return None;
        }
        if state.whole && matches!(holder, Some(Some(_))) {
            return Some(Verdict::Reserve { until: None, ask: first, theft: None });
        }
        if !class.is_reader() {
            let theft = Theft { rank, run: std::cmp::Reverse(run), home };
            return Some(Verdict::Reserve { until: None, ask: None, theft: Some(theft) });
        }
        // The wait begins when there is somebody to ask elsewhere.
        self.across(self.blocks.get(r)?, view)?;
        let now = self.now;
        let since = *self.blocks.get_mut(r)?.waits_since.get_or_insert(now);
        let until = since + self.settings.lan_grace * rank;
        (until > now).then_some(Verdict::Reserve { until: Some(until), ask: first, theft: None })
    }

    /// Whom to ask beyond the LAN: peers first, the registry last.
    pub(super) fn across(&self, block: &Block, view: &View) -> Option<Verdict> {
        let state = self.homes.get(block.home)?;
        let reach = state.ladder.reach();
        let holders = block.holders.without(self.peers.lan).without(block.refused);
        let holders = holders.without(view.shaky);
        let far = holders.and(view.usable);
        if reach.swarm && far.is_empty() && !holders.and(view.opening).is_empty() && !block.forced {
            return Some(Verdict::Reserve { until: None, ask: None, theft: None });
        }
        let chosen = far.and(self.peers.chosen);
        let far = if chosen.is_empty() { far } else { chosen };
        let fast = far.without(self.peers.slow);
        let registry = reach.registry
            && block.place.is_some()
            && !block.refused.contains(REGISTRY)
            && !state.refused;
        let passed = registry && state.not_before.is_none() && self.is_read_anyway(block);
        if reach.swarm && !fast.is_empty() && !passed {
            return Some(Verdict::Peers(fast));
        }
        if registry {
            return Some(Verdict::Registry);
        }
        (reach.swarm && !far.is_empty()).then_some(Verdict::Peers(far))
    }

    /// Whether the registry's run that brings another block passes this one.
    fn is_read_anyway(&self, block: &Block) -> bool {
        let reaches = |place: &Place| {
            let end = self.planning.read_anyway.get(&(block.home, place.entry));
            end.is_some_and(|end| place.stream.start < *end)
        };
        block.class > Class::Urgent && block.place.as_ref().is_some_and(reaches)
    }

    /// Whether the ladder should be climbed for a block: nobody has it that is
    /// worth asking.
    pub(super) fn lacks_source(&self, verdict: &Verdict, view: &View) -> bool {
        match verdict {
            Verdict::Stuck => true,
            Verdict::Peers(set) => {
                let sound = set.without(view.shaky);
                sound.and(self.peers.lan).is_empty() && sound.without(self.peers.slow).is_empty()
            }
            _ => false,
        }
    }
}
