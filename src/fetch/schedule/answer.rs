//! What becomes of requests: bytes, blocks, ends, refusals, silence.

use std::time::Duration;

use super::model::{Action, BlockKey, Class, Fault, Holding, Refusal, RequestId};
use super::peers::REGISTRY;
use super::table::{Lane, Ref, State};
use super::{Scheduler, Timer};
use crate::fetch::ladder::LadderEvent;

/// Wrong blocks from one peer until it is banned.
const STRIKES_MAX: u32 = 2;
/// No source is left alone for longer because it says that it is busy.
const BUSY_MAX: Duration = Duration::from_secs(10);
/// A tunnel on which an answer broke off is not asked for this long.
const BROKEN: Duration = Duration::from_millis(200);

/// Fewer bytes are no progress: a source that sends one a second would keep its
/// readers waiting for ever.
const PROGRESS_MIN: u64 = 16 << 10;
/// Ended requests that are remembered.
const ENDED_MAX: usize = 1024;

impl Scheduler {
    pub(super) fn on_progress(&mut self, id: RequestId, bytes: u64) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        let bytes = bytes.min(request.left);
        request.left -= bytes;
        request.fresh += bytes;
        // A registry's bytes are told as they are decoded, and those before its
        // first wanted block count for nothing but as a sign of life.
        let registry = request.lane == Lane::Registry;
        let counts = registry || request.fresh >= PROGRESS_MIN || request.left == 0;
        if counts {
            (request.fresh, request.last_progress) = (0, now);
        }
        request.position += bytes;
        let (lane, issued, class, home) =
            (request.lane, request.issued, request.class, request.home);
        if counts {
            self.progressed(home);
        }
        match lane {
            Lane::Registry => {
                if let Some(state) = self.homes.get_mut(home) {
                    state.registry_works();
                }
            }
            Lane::Tunnel(tunnel) => {
                let Some(tunnel) = self.peers.tunnels.get_mut(&tunnel) else { return };
                let flying = if class == Class::Urgent {
                    &mut tunnel.flying_urgent
                } else {
                    &mut tunnel.flying_bulk
                };
                *flying = flying.saturating_sub(bytes);
                // The line was at work since the last bytes, or since the
                // request has reached the other side and come back.
                let busy_since = (issued + tunnel.rtt()).max(tunnel.last_arrival);
                tunnel.meter.record(now, bytes, now.saturating_sub(busy_since));
                tunnel.last_arrival = now;
                if counts {
                    tunnel.last_progress = now;
                }
                let slot = tunnel.peer;
                if let Some(peer) = self.peers.get_mut(slot) {
                    peer.round_bytes += bytes;
                }
            }
        }
    }

    pub(super) fn on_block(&mut self, id: RequestId, key: &BlockKey, len: u32) {
        let ended =
            || self.ended.iter().rev().find(|(other, _)| *other == id).map(|(_, slot)| *slot);
        let peer = self.requests.get(&id).map(|request| request.peer).or_else(ended);
        if let Some(request) = self.requests.get_mut(&id) {
            request.delivered += 1;
        }
        if self.passing.get(key) == Some(&id) {
            self.passing.remove(key);
        }
        let Some(r) = self.blocks.find(key) else {
            // A run gives what it passes and what is not here yet.
            let passed = peer == Some(REGISTRY);
            let total = if passed { &mut self.totals.registry } else { &mut self.totals.duplicate };
            *total += u64::from(len);
            return;
        };
        let now = self.now;
        let Some(block) = self.take_out(r, Some(id)) else { return };
        let len = u64::from(block.len);
        let peer = peer.or(block.flights.first().map(|f| f.peer));
        match peer {
            Some(REGISTRY) => self.totals.registry += len,
            Some(slot) if self.peers.lan.contains(slot) => self.totals.lan += len,
            _ => self.totals.remote += len,
        }
        let flight = block.flights.iter().find(|f| Some(f.peer) == peer);
        if let Some(flight) = flight.filter(|_| block.class == Class::Urgent) {
            let took = now.saturating_sub(flight.since.max(block.since));
            if self.peers.lan.contains(flight.peer) {
                self.lan_pieces.record(took);
            } else {
                self.far_pieces.record(took);
            }
        }
        self.progressed(block.home);
    }

    /// A wrong block: the sender is penalised at once, banned at the second; the
    /// block is asked for elsewhere.
    pub(super) fn on_wrong(&mut self, id: RequestId, key: &BlockKey) {
        let Some(request) = self.requests.get(&id) else { return };
        let (lane, slot, home) = (request.lane, request.peer, request.home);
        if lane == Lane::Registry {
            // Its line or its cache is broken; it cannot be banned.
            self.actions.push(Action::Cancel { request: id });
            for r in self.end_request(id) {
                self.return_flight(r, lane);
            }
            self.registry_failed(home, Duration::ZERO);
            return;
        }
        if let Some(block) = self.blocks.find(key).and_then(|r| self.blocks.get_mut(r)) {
            block.refused.insert(slot);
        }
        let strikes = self.peers.get_mut(slot).map_or(0, |peer| {
            peer.strikes += 1;
            peer.strikes
        });
        if strikes >= STRIKES_MAX {
            self.ban_peer(slot);
        } else {
            self.close_peer(slot, Fault::WrongBlock);
        }
    }

    pub(super) fn on_done(&mut self, id: RequestId) {
        let left = self.requests.get(&id).map(|r| r.left);
        let Some(left) = left else { return };
        if left > 0 && matches!(self.requests.get(&id).map(|r| r.lane), Some(Lane::Tunnel(_))) {
            self.on_progress(id, left);
        }
        let Some((lane, home, useless)) = self
            .requests
            .get(&id)
            .map(|r| (r.lane, r.home, r.delivered == 0 && !r.blocks.is_empty()))
        else {
            return;
        };
        let refs = self.end_request(id);
        for r in refs {
            let unfinished = self.blocks.get(r).is_some_and(|b| {
                b.flights
                    .iter()
                    .any(|f| f.lane == lane && (f.asked < b.len || !f.requests.is_empty()))
            });
            if !unfinished {
                self.refuse(r, lane);
            }
        }
        if lane == Lane::Registry && useless {
            self.registry_failed(home, Duration::ZERO);
        }
    }

    /// A source answered to the end without the block: it is not asked again.
    fn refuse(&mut self, r: Ref, lane: Lane) {
        let Some(block) = self.blocks.get_mut(r) else { return };
        if let Some(flight) = block.flights.iter().find(|f| f.lane == lane)
            && flight.peer != REGISTRY
        {
            block.refused.insert(flight.peer);
        }
        self.return_flight(r, lane);
    }

    pub(super) fn on_refused(&mut self, id: RequestId, why: Refusal) {
        let Some(request) = self.requests.get(&id) else { return };
        let (lane, slot, home) = (request.lane, request.peer, request.home);
        let refs = self.end_request(id);
        let now = self.now;
        if let Lane::Tunnel(tunnel) = lane {
            for r in refs {
                if matches!(why, Refusal::NotHave | Refusal::Never) {
                    self.does_not_have(r, slot);
                }
                self.return_flight(r, lane);
            }
            let pause = match why {
                Refusal::Busy(wait) => wait.min(BUSY_MAX),
                Refusal::Broken => BROKEN,
                Refusal::NotHave | Refusal::Never => return,
            };
            if let Some(tunnel) = self.peers.tunnels.get_mut(&tunnel) {
                tunnel.paused = Some(now + pause);
                self.plan_again_at(now + pause);
            }
            return;
        }
        for r in refs {
            self.return_flight(r, lane);
        }
        match why {
            Refusal::Busy(wait) => self.registry_failed(home, wait),
            Refusal::Broken => self.registry_failed(home, Duration::ZERO),
            Refusal::NotHave | Refusal::Never => {
                if let Some(state) = self.homes.get_mut(home) {
                    state.refused = true;
                }
                self.planning.dirty = true;
                self.climb(home, LadderEvent::RegistryFailed);
            }
        }
    }

    fn does_not_have(&mut self, r: Ref, slot: u8) {
        let Some(block) = self.blocks.get_mut(r) else { return };
        block.holders.remove(slot);
        block.refused.insert(slot);
        let key = block.key;
        let gone = Holding::Remove(key.index..key.index + 1);
        self.holdings.change(slot, key.object, &gone);
    }

    /// The registry did not give what it should; it is left alone for a while.
    pub(super) fn registry_failed(&mut self, home: u32, wait: Duration) {
        let now = self.now;
        let Some((until, gone)) =
            self.homes.get_mut(home).map(|state| state.registry_failed(now, wait))
        else {
            return;
        };
        self.planning.dirty = true;
        self.registry.unsettle();
        self.arm_home(home, until);
        if gone {
            self.climb(home, LadderEvent::RegistryFailed);
        }
    }

    pub(super) fn request_due(&mut self, id: RequestId) {
        let now = self.now;
        let Some(request) = self.requests.get_mut(&id) else { return };
        let mut quiet_since = request.last_progress;
        if let Lane::Tunnel(tunnel) = request.lane
            && let Some(tunnel) = self.peers.tunnels.get(&tunnel)
        {
            // Others before it on the same tunnel may be what it waits for.
            quiet_since = quiet_since.max(tunnel.last_progress);
        }
        let due =
            (quiet_since + request.stall).min(request.hard.unwrap_or(quiet_since + request.stall));
        if due > now {
            request.timer = due;
            self.timers.insert((due, Timer::Request(id)));
            return;
        }
        let (lane, slot, home, elapsed) =
            (request.lane, request.peer, request.home, now.saturating_sub(quiet_since));
        match lane {
            Lane::Registry => {
                self.actions.push(Action::Cancel { request: id });
                let refs = self.end_request(id);
                for r in refs {
                    self.return_flight(r, lane);
                }
                self.registry_failed(home, Duration::ZERO);
            }
            Lane::Tunnel(tunnel) => {
                if let Some(tunnel) = self.peers.tunnels.get_mut(&tunnel) {
                    tunnel.meter.record(now, 0, elapsed);
                }
                self.close_peer(slot, Fault::Timeout);
            }
        }
    }

    /// Takes a request out; gives the blocks that it did not bring. They still
    /// have their flight.
    pub(super) fn end_request(&mut self, id: RequestId) -> Vec<Ref> {
        let Some(request) = self.requests.remove(&id) else { return Vec::new() };
        if self.runs.remove(&id) {
            self.registry.unsettle();
        }
        if self.ended.len() >= ENDED_MAX {
            self.ended.pop_front();
        }
        self.ended.push_back((id, request.peer));
        self.timers.remove(&(request.timer, Timer::Request(id)));
        if let Lane::Tunnel(tunnel) = request.lane
            && let Some(tunnel) = self.peers.tunnels.get_mut(&tunnel)
        {
            let flying = if request.class == Class::Urgent {
                &mut tunnel.flying_urgent
            } else {
                &mut tunnel.flying_bulk
            };
            *flying = flying.saturating_sub(request.left);
        }
        for key in &request.let_go {
            if self.passing.get(key) == Some(&id) {
                self.passing.remove(key);
            }
        }
        for r in &request.blocks {
            if let Some(block) = self.blocks.get_mut(*r) {
                for flight in &mut block.flights {
                    flight.requests.retain(|other| *other != id);
                }
            }
        }
        request.blocks
    }

    /// A request is not to bring the block any more. If that was the last, it is
    /// cancelled where `cancel` says so.
    pub(super) fn forget_block(&mut self, id: RequestId, r: Ref, key: BlockKey, cancel: bool) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.blocks.retain(|other| *other != r);
        if !request.blocks.is_empty() && cancel && request.lane != Lane::Registry {
            // It was one of several, and comes all the same.
            request.let_go.push(key);
            self.passing.insert(key, id);
        }
        if request.blocks.is_empty() && cancel {
            // A stream that can only be read from its start is read to its end.
            let whole = request.lane == Lane::Registry
                && self.homes.get(request.home).is_some_and(|s| s.whole);
            if !whole {
                self.end_request(id);
                self.actions.push(Action::Cancel { request: id });
            }
        }
    }

    /// A source does not bring the block any more. What else it was asked of it
    /// is cancelled; a block that nobody brings is queued again.
    pub(super) fn return_flight(&mut self, r: Ref, lane: Lane) {
        let Some(block) = self.blocks.get_mut(r) else { return };
        let Some(n) = block.flights.iter().position(|f| f.lane == lane) else { return };
        let flight = block.flights.swap_remove(n);
        let (key, last, claimed) = (block.key, block.flights.is_empty(), block.claimed);
        let (home, run) = (block.home, block.run);
        for id in flight.requests {
            self.forget_block(id, r, key, true);
        }
        if let Lane::Tunnel(id) = lane
            && let Some(tunnel) = self.peers.tunnels.get_mut(&id)
            && tunnel.partial == Some(r)
        {
            tunnel.partial = None;
        }
        if last {
            if claimed {
                if let Some(block) = self.blocks.get_mut(r) {
                    block.claimed = false;
                }
                self.say_claim(home, run, key, false, None);
            }
            self.blocks.set_state(r, State::Queued);
            self.hurry(r);
            self.planning.dirty = true;
        }
    }
}
