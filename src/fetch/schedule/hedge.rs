//! Asking twice: for readers that wait, and near the end.
//!
//! Bounds, from design section 7: of an urgent block there are at most
//! `elapsed / (mean + dev/2)` duplicates, the first one at the observed 90th
//! percentile; never two from one peer; inside the LAN while a holder there
//! lives; across its boundary at most 2 % of the bytes that cross it.

use std::time::Duration;

use super::model::{Class, Time, Why};
use super::peer_set::PeerSet;
use super::peers::REGISTRY;
use super::table::{Block, Lane, Ref, State};
use super::verdict::{Verdict, View};
use super::{Pieces, Scheduler};

/// Share of the bytes across the LAN's boundary that hedges may cost: 2 %.
const SHARE: u64 = 50;
/// Blocks duplicated in the endgame at a time.
const ENDGAME_MAX: usize = 64;
/// A hedge that found nobody to ask looks again after this.
const AGAIN: Duration = Duration::from_millis(20);

impl Scheduler {
    /// Sets the timer of an urgent block: when it is hedged next, or when the
    /// boundary of the LAN must be crossed for it.
    pub(super) fn arm_urgent(&mut self, r: Ref) {
        let Some(block) = self.blocks.get(r) else { return };
        let force = (!block.forced).then(|| self.force_at(block));
        let hedge = block.waited_from().map(|since| self.hedge_at(block, since));
        let at = [force, hedge].into_iter().flatten().min();
        // A block without source is placed again when sources change.
        let at = at.unwrap_or(self.now + AGAIN * 5).max(self.now + Duration::from_millis(1));
        self.arm_block(r, at);
    }

    /// When a block must be asked for beyond the LAN to be here in time. Half of
    /// the time until the deadline is the LAN's in any case.
    fn force_at(&self, block: &Block) -> Time {
        let deadline = block.deadline.unwrap_or(block.since + self.settings.urgent_deadline);
        let far = self.far_pieces.p90.value();
        let half = deadline.saturating_sub(block.since) / 2;
        deadline.saturating_sub(far).max(block.since + half)
    }

    fn hedge_at(&self, block: &Block, since: Time) -> Time {
        let pieces = self.pieces_of(block);
        let duplicates = block.flights.len() as u32;
        let at = since + pieces.time.patience() * duplicates;
        if duplicates == 1 { at.max(since + pieces.p90.value()) } else { at }
    }

    fn pieces_of(&self, block: &Block) -> &Pieces {
        if self.crosses(block) { &self.far_pieces } else { &self.lan_pieces }
    }

    pub(super) fn block_due(&mut self, r: Ref) {
        let Some(block) = self.blocks.get_mut(r) else { return };
        block.timer = None;
        if block.class != Class::Urgent {
            return;
        }
        let Some(block) = self.blocks.get(r) else { return };
        if !block.forced && self.force_at(block) <= self.now {
            let waits = block.state() != State::Flying;
            if let Some(block) = self.blocks.get_mut(r) {
                block.forced = true;
            }
            if waits {
                self.urgent.push(r);
                return;
            }
        }
        self.hedge(r);
        self.arm_urgent(r);
        // Nobody to ask just now: look again, but not at once.
        if let Some(at) = self.blocks.get(r).and_then(|b| b.timer)
            && at < self.now + AGAIN
        {
            self.arm_block(r, self.now + AGAIN);
        }
    }

    /// Asks one more source for an urgent block in flight, within the bounds.
    fn hedge(&mut self, r: Ref) {
        let Some(block) = self.blocks.get(r).filter(|b| b.state() == State::Flying) else { return };
        let Some(since) = block.waited_from() else { return };
        let pieces = self.pieces_of(block);
        let elapsed = self.now.saturating_sub(since);
        let duplicates = block.flights.len() - 1;
        if duplicates >= pieces.time.duplicates(elapsed)
            || (duplicates == 0 && elapsed < pieces.p90.value())
        {
            return;
        }
        let view = self.view();
        let asked = block.flying_peers();
        let len = u64::from(block.len);
        let near = self.neighbours_with(block, &view).without(asked);
        if let Some(id) = self.fastest(near.and(view.usable), len) {
            self.ask_whole(r, id, Why::Hedge);
            return;
        }
        let lan_lives = !self.neighbours_with(block, &view).and(view.alive).is_empty();
        let forced = block.forced;
        if lan_lives && !forced {
            return;
        }
        let why = if forced { Why::Deadline } else { Why::Hedge };
        self.hedge_across(r, why, asked, &view);
    }

    /// A duplicate from beyond the LAN, if the bounds allow one.
    fn hedge_across(&mut self, r: Ref, why: Why, asked: PeerSet, view: &View) {
        let Some(block) = self.blocks.get(r) else { return };
        let (len, home) = (u64::from(block.len), block.home);
        let reach = self.homes.get(home).map(|s| s.ladder.reach()).unwrap_or_default();
        let far = block.holders.without(self.peers.lan).without(block.refused).without(asked);
        let peer = self.fastest(far.and(view.usable), len).filter(|_| reach.swarm);
        let place = block.place.clone().filter(|_| {
            let ready = self.homes.get(home).is_some_and(|s| s.not_before.is_none() && !s.whole);
            reach.registry
                && ready
                && !asked.contains(REGISTRY)
                && !block.refused.contains(REGISTRY)
        });
        let cost = match (peer, &place) {
            (Some(_), _) => len,
            // What lies between the point of entry and the block comes along.
            (None, Some(place)) => place.stream.end - place.entry.min(place.stream.start),
            (None, None) => {
                self.planning.dirty = true;
                return;
            }
        };
        if why != Why::Deadline && !self.may_hedge(cost) {
            return;
        }
        if why != Why::Deadline {
            self.totals.hedged += cost;
        }
        match (peer, place) {
            (Some(id), _) => self.ask_whole(r, id, why),
            (None, Some(place)) => {
                self.begin_run(home, place.stream, Class::Urgent, vec![r], Some(why));
            }
            (None, None) => {}
        }
    }

    /// Whether a duplicate of `cost` bytes may cross the boundary.
    pub(super) fn may_hedge(&self, cost: u64) -> bool {
        let crossed = self.totals.remote + self.totals.registry;
        self.totals.hedged + cost <= crossed / SHARE + self.settings.hedge_credit
    }

    /// Nothing is left to ask for: idle tunnels duplicate what is outstanding
    /// where they would bring it much earlier. One duplicate of each block, and
    /// the same bounds.
    pub(super) fn endgame(&mut self, view: &View) {
        let counts = self.blocks.counts();
        if counts.flying == 0 || counts.queued + counts.planned + counts.reserved > 0 {
            return;
        }
        let idle: Vec<u64> = self
            .peers
            .tunnels
            .iter()
            .filter(|(_, t)| t.is_open(self.now) && t.flying_urgent + t.flying_bulk == 0)
            .map(|(id, _)| *id)
            .collect();
        if idle.is_empty() {
            return;
        }
        let alone: Vec<Ref> = self
            .blocks
            .iter()
            .filter(|(_, b)| b.flights.len() == 1 && b.class > Class::Urgent)
            .map(|(r, _)| r)
            .take(ENDGAME_MAX)
            .collect();
        for r in alone {
            self.duplicate(r, &idle, view);
        }
    }

    fn duplicate(&mut self, r: Ref, idle: &[u64], view: &View) {
        let Some(block) = self.blocks.get(r) else { return };
        let Some(flight) = block.flights.first() else { return };
        let elapsed = self.now.saturating_sub(flight.since);
        if self.pieces_of(block).time.duplicates(elapsed) == 0 {
            return;
        }
        let Lane::Tunnel(slow) = flight.lane else { return };
        let (asked, len) = (block.flying_peers(), u64::from(block.len));
        let near = self.neighbours_with(block, view);
        let candidates = if near.and(view.alive).is_empty() {
            match self.across(block, view) {
                Some(Verdict::Peers(far)) => far,
                _ => return,
            }
        } else {
            near
        };
        let set = candidates.without(asked).and(view.usable);
        let Some(id) = self.fastest(set, len).filter(|id| idle.contains(id)) else { return };
        let rest = self.peers.tunnels.get(&slow).map_or(f64::MAX, |t| t.lane().ready);
        let fresh = self.peers.tunnels.get(&id).map_or(f64::MAX, |t| t.urgent_arrival(len));
        if rest < 2.0 * fresh {
            return;
        }
        if !self.is_near(Lane::Tunnel(id)) {
            if !self.may_hedge(len) {
                return;
            }
            self.totals.hedged += len;
        }
        self.ask_whole(r, id, Why::Endgame);
    }
}
