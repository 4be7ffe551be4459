//! Peers come and go, and tell what they have, get and want.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use super::model::{Action, BlockKey, Class, Fault, Holding, Home, Near, Time, TunnelId};
use super::peer_set::{PeerSet, Slot};
use super::table::{Lane, Ref, State};
use super::{Scheduler, Timer};
use crate::fetch::ladder::LadderEvent;
use crate::types::{ObjectId, PeerId};

/// A tunnel that was asked for and is not there after this long will not come.
const OPENING: Duration = Duration::from_secs(5);

/// What the scheduler thinks of a peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Standing {
    /// `V_conn`, what one more tunnel is expected to bring, in bytes per second.
    pub speed: f64,
    /// Tunnels that it should have.
    pub tunnels: usize,
    /// Timeouts that are not forgiven yet.
    pub timeouts: u32,
    /// Wrong blocks that it sent.
    pub strikes: u32,
    /// Whom to ask, eq. (6), 0 to 100.
    pub score: ScoreParts,
}

/// A peer's score and what it is made of, each 0 to 100.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ScoreParts {
    /// The whole: `U` of eq. (6).
    pub utility: f64,
    /// By observed speed: `net`, eq. (2) and (3).
    pub net: f64,
    /// By what it holds: `pop`, eq. (5).
    pub pop: f64,
    /// By the site's policy.
    pub custom: f64,
}

impl Scheduler {
    /// What is thought of the peers that are there.
    pub fn standings(&self) -> BTreeMap<PeerId, Standing> {
        let scores = self.peers.scores(self.now, &self.settings);
        let of = |(slot, score): (Slot, ScoreParts)| {
            let peer = self.peers.get(slot)?;
            let standing = Standing {
                speed: peer.speed,
                tunnels: peer.wanted,
                timeouts: peer.timeouts,
                strikes: peer.strikes,
                score,
            };
            Some((peer.id, standing))
        };
        scores.into_iter().filter_map(of).collect()
    }

    pub(super) fn on_peer_up(&mut self, id: PeerId, near: Near) {
        if id == self.me {
            return;
        }
        let Some(slot) = self.peers.add(id, near, self.now) else { return };
        let idle = self.peers.get(slot).is_some_and(|p| p.wanted == 0 && p.backoff.is_none());
        if idle {
            self.open_tunnels(slot);
        }
        // Its place decides where its blocks may be taken from.
        self.planning.dirty = true;
    }

    pub(super) fn on_peer_gone(&mut self, id: &PeerId) {
        if let Some(slot) = self.peers.slot(id) {
            self.drop_peer(slot);
        }
    }

    pub(super) fn on_tunnel_up(&mut self, id: &PeerId, tunnel: TunnelId, rtt: Duration) {
        let Some(slot) = self.peers.slot(id) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.backoff = None;
        peer.wanted = peer.wanted.max(1);
        if self.peers.add_tunnel(slot, tunnel, rtt, self.now) {
            self.note_rtt(slot, rtt);
            self.planning.dirty = true;
            self.replace_urgent();
        }
    }

    pub(super) fn on_tunnel_down(&mut self, tunnel: TunnelId) {
        let Some(slot) = self.peers.tunnels.get(&tunnel).map(|t| t.peer) else { return };
        self.drop_tunnel(tunnel);
        if self.peers.get(slot).is_some_and(|p| p.tunnels.is_empty()) {
            self.leave_alone(slot);
        }
    }

    pub(super) fn on_tunnel_failed(&mut self, id: &PeerId) {
        let Some(slot) = self.peers.slot(id) else { return };
        if self.peers.get(slot).is_some_and(|p| p.tunnels.is_empty()) {
            self.leave_alone(slot);
        }
    }

    pub(super) fn on_rtt(&mut self, tunnel: TunnelId, rtt: Duration) {
        let now = self.now;
        let Some(entry) = self.peers.tunnels.get_mut(&tunnel) else { return };
        entry.measured(now, rtt);
        let slot = entry.peer;
        self.note_rtt(slot, rtt);
    }

    fn note_rtt(&mut self, slot: Slot, rtt: Duration) {
        let near = self.peers.lan.contains(slot);
        let window = if near { &mut self.lan_rtts } else { &mut self.far_rtts };
        window.record(self.now, rtt);
    }

    pub(super) fn on_scored(&mut self, id: &PeerId, pop: f64, custom: f64) {
        let slot = self.peers.slot(id);
        if let Some(peer) = slot.and_then(|slot| self.peers.get_mut(slot)) {
            (peer.pop, peer.custom) = (pop, custom);
        }
    }

    pub(super) fn on_have(&mut self, id: &PeerId, object: ObjectId, holding: &Holding) {
        let Some(slot) = self.peers.slot(id) else { return };
        if !self.holdings.change(slot, object, holding) {
            return;
        }
        let (range, on) = match holding {
            Holding::All => (0..u32::MAX, true),
            Holding::Add(range) => (range.clone(), true),
            Holding::Remove(range) => (range.clone(), false),
            Holding::Nothing => (0..u32::MAX, false),
        };
        if on {
            // What it has it is not getting any more.
            self.gettings.change(slot, object, &Holding::Remove(range.clone()));
            self.note_news(slot);
        }
        let mut homes: Vec<u32> = Vec::new();
        for r in self.blocks.of_object(&object, range) {
            let Some(block) = self.blocks.get_mut(r) else { continue };
            let known = on == block.holders.contains(slot);
            if known && !(on && block.refused.contains(slot)) {
                continue;
            }
            if on {
                block.holders.insert(slot);
                block.getting.remove(slot);
                // It says anew that it has it, so it may be asked anew.
                block.refused.remove(slot);
                if homes.last() != Some(&block.home) {
                    homes.push(block.home);
                }
                if block.class == Class::Urgent && block.state() != State::Flying {
                    self.urgent.push(r);
                }
            } else {
                block.holders.remove(slot);
            }
            self.planning.dirty = true;
        }
        for home in homes {
            self.climb(home, LadderEvent::PeersBack);
        }
    }

    pub(super) fn on_getting(
        &mut self,
        id: &PeerId,
        (home, run): (Home, u32),
        object: ObjectId,
        range: Range<u32>,
        on: bool,
    ) {
        let Some(slot) = self.peers.slot(id).filter(|slot| self.peers.lan.contains(*slot)) else {
            return;
        };
        let change = if on { Holding::Add(range.clone()) } else { Holding::Remove(range.clone()) };
        if !self.gettings.change(slot, object, &change) {
            return;
        }
        if on {
            self.note_news(slot);
            let live = self.live_neighbours();
            let n = self.homes.open(home, self.settings.theta, self.now);
            if let Some(state) = n.and_then(|n| self.homes.get_mut(n)) {
                // It wants the layer, or it would not get it.
                state.set_wanter(slot, true);
                state.claim(run, Some(slot), |s| live.contains(s), &self.me, &self.peers);
            }
        }
        for r in self.blocks.of_object(&object, range) {
            let Some(block) = self.blocks.get_mut(r) else { continue };
            if on {
                block.getting.insert(slot);
                self.yield_to(r, slot);
            } else {
                block.getting.remove(slot);
            }
            self.planning.dirty = true;
        }
    }

    /// Two nodes of a LAN began to get the same block at the same time: the one
    /// that is first in order goes on, the other lets it.
    fn yield_to(&mut self, r: Ref, other: Slot) {
        let Some(block) = self.blocks.get(r) else { return };
        if block.forced || !self.crosses(block) || !self.peers.lan.contains(other) {
            return;
        }
        let (home, run) = (block.home, block.run);
        let mut set = PeerSet::default();
        set.insert(other);
        if self.before_me(home, run, set).is_empty() {
            return;
        }
        let Some(block) = self.blocks.get(r) else { return };
        let lanes: Vec<Lane> = block.flights.iter().map(|f| f.lane).collect();
        for lane in lanes {
            if lane == Lane::Registry || !self.is_near(lane) {
                self.return_flight(r, lane);
            }
        }
    }

    pub(super) fn is_near(&self, lane: Lane) -> bool {
        match lane {
            Lane::Registry => false,
            Lane::Tunnel(id) => {
                self.peers.tunnels.get(&id).is_some_and(|t| self.peers.lan.contains(t.peer))
            }
        }
    }

    pub(super) fn on_wants(&mut self, id: &PeerId, home: Home, on: bool) {
        let Some(slot) = self.peers.slot(id).filter(|slot| self.peers.lan.contains(*slot)) else {
            return;
        };
        let known = self.homes.find(&home);
        let n = if on { self.homes.open(home, self.settings.theta, self.now) } else { known };
        let Some(n) = n else { return };
        let Some(state) = self.homes.get_mut(n) else { return };
        let news = state.set_wanter(slot, on);
        self.note_news(slot);
        self.planning.dirty = true;
        if news && on {
            self.repeat_claims(n, *id);
        }
    }

    /// A neighbour's reader waits for a block. It goes before our bulk, and
    /// after our own readers; what we don't want ourselves we don't get for it.
    pub(super) fn on_asked(&mut self, id: &PeerId, key: &BlockKey) {
        let near = self.peers.slot(id).is_some_and(|slot| self.peers.lan.contains(slot));
        let Some(r) = self.blocks.find(key).filter(|_| near) else { return };
        if let Some(block) = self.blocks.get_mut(r) {
            block.neighbour_waits = true;
        }
        self.reclass(r);
    }

    /// Neighbours that bring something, as far as is known.
    pub(super) fn live_neighbours(&self) -> PeerSet {
        let mut set = self.peers.lan.and(self.peers.alive());
        for (slot, peer) in self.peers.iter() {
            if peer.news + self.settings.lan_patience <= self.now {
                set.remove(slot);
            }
        }
        set
    }

    fn note_news(&mut self, slot: Slot) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.news = now;
        }
    }

    fn open_tunnels(&mut self, slot: Slot) {
        let settings = &self.settings;
        let Some(peer) = self.peers.get_mut(slot) else { return };
        (peer.backoff, peer.opened) = (None, self.now);
        peer.wanted = peer.tunnels_wanted(settings);
        self.actions.push(Action::Tunnels { peer: peer.id, count: peer.wanted });
        let at = self.now + OPENING;
        self.timers.insert((at, Timer::Peer(slot)));
    }

    pub(super) fn peer_due(&mut self, slot: Slot) {
        let now = self.now;
        let Some(peer) = self.peers.get(slot) else { return };
        match peer.backoff {
            Some(until) if until <= now => self.open_tunnels(slot),
            Some(until) => {
                self.timers.insert((until, Timer::Peer(slot)));
            }
            None if peer.tunnels.is_empty() => self.leave_alone(slot),
            None => {}
        }
    }

    /// The peer is not asked for a while.
    fn leave_alone(&mut self, slot: Slot) {
        let now = self.now;
        if let Some(until) = self.peers.get_mut(slot).map(|peer| peer.fault(now)) {
            self.timers.insert((until, Timer::Peer(slot)));
        }
        self.planning.dirty = true;
    }

    /// A peer did not do what it should: its tunnels are closed, its pieces come
    /// back, it is left alone for a while and has fewer tunnels after that.
    pub(super) fn close_peer(&mut self, slot: Slot, why: Fault) {
        if let Some(id) = self.peers.get(slot).map(|p| p.id) {
            self.drop_tunnels(slot);
            self.actions.push(Action::Close { peer: id, why });
            self.leave_alone(slot);
        }
    }

    pub(super) fn ban_peer(&mut self, slot: Slot) {
        if let Some(id) = self.peers.get(slot).map(|p| p.id) {
            self.actions.push(Action::Ban { peer: id });
            self.peers.ban(slot);
            self.drop_peer(slot);
        }
    }

    fn drop_peer(&mut self, slot: Slot) {
        self.drop_tunnels(slot);
        let refs: Vec<Ref> = self.blocks.iter().map(|(r, _)| r).collect();
        for r in refs {
            if let Some(block) = self.blocks.get_mut(r) {
                block.holders.remove(slot);
                block.getting.remove(slot);
                block.refused.remove(slot);
                if block.asked_of == Some(slot) {
                    block.asked_of = None;
                }
            }
        }
        self.holdings.forget(slot);
        self.gettings.forget(slot);
        self.homes.forget_peer(slot);
        self.peers.remove(slot);
        self.planning.dirty = true;
        self.replace_urgent();
    }

    fn drop_tunnels(&mut self, slot: Slot) {
        let tunnels = self.peers.get(slot).map(|p| p.tunnels.clone()).unwrap_or_default();
        for tunnel in tunnels {
            self.drop_tunnel(tunnel);
        }
    }

    /// A tunnel is gone: what it had to bring comes back.
    fn drop_tunnel(&mut self, id: TunnelId) {
        let lane = Lane::Tunnel(id);
        let requests: Vec<_> =
            self.requests.iter().filter(|(_, r)| r.lane == lane).map(|(id, _)| *id).collect();
        for request in requests {
            self.end_request(request);
        }
        let Some(tunnel) = self.peers.remove_tunnel(id) else { return };
        for r in tunnel.queue {
            if self.blocks.get(r).is_some_and(|b| b.state() == State::Planned(lane)) {
                self.blocks.set_state(r, State::Queued);
                self.hurry(r);
            }
        }
        let flying: Vec<Ref> = self
            .blocks
            .iter()
            .filter(|(_, b)| b.flights.iter().any(|f| f.lane == lane))
            .map(|(r, _)| r)
            .collect();
        for r in flying {
            self.return_flight(r, lane);
        }
        self.planning.dirty = true;
    }

    /// An urgent block that has no source is placed again at once.
    pub(super) fn hurry(&mut self, r: Ref) {
        if self.blocks.get(r).is_some_and(|b| b.class == Class::Urgent) {
            self.urgent.push(r);
        }
    }

    /// Sources have changed: urgent blocks that nobody brings are placed again.
    pub(super) fn replace_urgent(&mut self) {
        let waits = |s: State| matches!(s, State::Queued | State::Reserved);
        let refs: Vec<Ref> = self
            .blocks
            .iter()
            .filter(|(_, b)| b.class == Class::Urgent && waits(b.state()))
            .map(|(r, _)| r)
            .collect();
        self.urgent.extend(refs);
    }

    pub(super) fn plan_again_at(&mut self, at: Time) {
        self.planning.again = Some(self.planning.again.map_or(at, |old| old.min(at)));
    }
}
