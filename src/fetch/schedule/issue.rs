//! From queues to wire requests: enough in flight that no line idles, and so
//! little that what is urgent never stands behind more.

use std::time::Duration;

use super::model::{Action, BlockKey, Class, Extent, Place, RequestId, Time, TunnelId, Why};
use super::peer_set::{PeerSet, Slot};
use super::peers::REGISTRY;
use super::registry::{DUPLICATE_DISTANCE, HomeIs, RUN_BULK, RUN_READER};
use super::sizes::{WIRE_MAX, bulk_cap, line_holds, wire_request};
use super::table::{Flight, Lane, Ref, State};
use super::verdict::Verdict;
use super::{Scheduler, Timer};

/// Urgent bytes in flight on a tunnel before more urgent blocks wait in its
/// queue, where a better tunnel may still take them.
const URGENT_CAP: u64 = 4 << 20;
/// A request without a byte for less than this is not late.
const STALL_MIN: Duration = Duration::from_secs(1);
const STALL_MAX: Duration = Duration::from_secs(4);
/// A wire request takes no longer than this, however slowly its bytes come in:
/// a peer that sends one byte a second is as good as none.
const HARD_MIN: Duration = Duration::from_secs(10);
const HARD_MAX: Duration = Duration::from_secs(30);
/// The registry may keep silent this long.
const REGISTRY_STALL: Duration = Duration::from_secs(15);

/// Something asked of a source and not yet answered to its end.
pub(super) struct Request {
    pub(super) lane: Lane,
    pub(super) peer: Slot,
    /// What it is still to bring.
    pub(super) blocks: Vec<Ref>,
    /// What it brings besides, since nobody wanted it any more.
    pub(super) let_go: Vec<BlockKey>,
    /// Bytes still to come; of a run, of its stream.
    pub(super) left: u64,
    /// Bytes that came since they last counted as progress.
    pub(super) fresh: u64,
    pub(super) class: Class,
    pub(super) issued: Time,
    pub(super) last_progress: Time,
    /// Silence that counts as a timeout.
    pub(super) stall: Duration,
    /// When it must have ended.
    pub(super) hard: Option<Time>,
    /// Its entry among the timers.
    pub(super) timer: Time,
    /// Of a run: how far it has come in the stream.
    pub(super) position: u64,
    pub(super) home: u32,
    /// Blocks that it brought.
    pub(super) delivered: u32,
}

impl Scheduler {
    /// A block has just become urgent: asks for it at once, whatever is planned.
    pub(super) fn place_urgent(&mut self, r: Ref) {
        let Some(block) = self.blocks.get(r).filter(|b| b.class == Class::Urgent) else { return };
        let len = u64::from(block.len);
        self.arm_urgent(r);
        let Some(block) = self.blocks.get(r) else { return };
        if block.state() == State::Flying {
            return;
        }
        let view = self.view();
        let verdict = self.verdict(r, &view);
        if (verdict.crosses(&self.peers.lan) || self.passes(r)) && self.attach(r) {
            return;
        }
        match verdict {
            Verdict::Peers(set) => {
                let Some(id) = self.fastest(set, len) else { return };
                if self.blocks.get(r).is_some_and(|b| b.state() == State::Planned(Lane::Registry)) {
                    self.registry.remove(&self.blocks, r);
                }
                self.blocks.set_state(r, State::Queued);
                self.blocks.set_state(r, State::Planned(Lane::Tunnel(id)));
                self.enqueue_urgent(id, r);
            }
            Verdict::Reserve { .. } => self.settle_block(r, &verdict),
            // The plan knows what to do with the rest, and it is due at once.
            Verdict::Registry if self.blocks.get(r).is_some_and(|b| b.state() == State::Queued) => {
                self.blocks.set_state(r, State::Planned(Lane::Registry));
                self.registry.insert(&self.blocks, r);
            }
            _ => self.planning.dirty = true,
        }
    }

    /// Behind the urgent ones that are there, before all others.
    fn enqueue_urgent(&mut self, id: TunnelId, r: Ref) {
        let Some(tunnel) = self.peers.tunnels.get_mut(&id) else { return };
        let urgent = |r: &Ref| self.blocks.get(*r).is_none_or(|b| b.class == Class::Urgent);
        let at = tunnel.queue.iter().take_while(|r| urgent(r)).count();
        tunnel.queue.insert(at, r);
    }

    /// The tunnel of these peers on which an urgent block arrives first.
    pub(super) fn fastest(&self, set: PeerSet, len: u64) -> Option<TunnelId> {
        let mut best: Option<(f64, TunnelId)> = None;
        for slot in set.iter() {
            for id in self.peers.get(slot).into_iter().flat_map(|p| &p.tunnels) {
                let Some(tunnel) = self.peers.tunnels.get(id).filter(|t| t.is_open(self.now))
                else {
                    continue;
                };
                let arrival = tunnel.urgent_arrival(len);
                if best.is_none_or(|(other, _)| arrival < other) {
                    best = Some((arrival, *id));
                }
            }
        }
        best.map(|(_, id)| id)
    }

    /// Gives every source as much as it may have.
    pub(super) fn pump(&mut self) {
        let ids: Vec<TunnelId> = self
            .peers
            .tunnels
            .iter()
            .filter(|(_, t)| t.is_open(self.now) && !(t.queue.is_empty() && t.partial.is_none()))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            while self.pump_tunnel(id) {}
        }
        while self.pump_registry() {}
    }

    /// Asks for one thing more on a tunnel, if there is one and it may be asked.
    fn pump_tunnel(&mut self, id: TunnelId) -> bool {
        let Some(tunnel) = self.peers.tunnels.get_mut(&id) else { return false };
        // What was planned anew elsewhere has left its place here.
        let lane = Lane::Tunnel(id);
        while let Some(first) = tunnel.queue.front()
            && !self.blocks.get(*first).is_some_and(|b| b.state() == State::Planned(lane))
        {
            tunnel.queue.pop_front();
        }
        let first = tunnel.queue.front().copied();
        let class = first.and_then(|r| self.blocks.get(r)).map(|b| b.class);
        let (speed, rtt) = (tunnel.speed(), tunnel.rtt());
        if class == Some(Class::Urgent) {
            let cap = URGENT_CAP.max(2 * line_holds(speed, rtt));
            let Some(r) = first.filter(|_| tunnel.flying_urgent < cap) else { return false };
            tunnel.queue.pop_front();
            self.ask_whole(r, id, self.reason(r, lane));
            return true;
        }
        let wire = wire_request(speed, rtt);
        if let Some(r) = tunnel.partial
            && self.blocks.get(r).is_some_and(|b| b.class == Class::Urgent)
        {
            self.ask_part(r, id, wire);
            return true;
        }
        // While a reader waits on this line, bulk makes room.
        let cap = if tunnel.flying_urgent > 0 { wire } else { bulk_cap(speed, rtt) };
        let room = cap.saturating_sub(tunnel.flying_bulk);
        if tunnel.flying_bulk > 0 && room < wire {
            return false;
        }
        if let Some(r) = tunnel.partial {
            self.ask_part(r, id, wire);
            return true;
        }
        let Some(r) = first else {
            // Other tunnels may have more than they can bring in time.
            self.planning.dirty |= self.blocks.counts().planned > self.registry.len();
            return false;
        };
        if self.blocks.get(r).is_some_and(|b| u64::from(b.len) > wire) {
            tunnel.queue.pop_front();
            let why = self.reason(r, lane);
            self.begin_flight(r, lane, why);
            self.ask_part(r, id, wire);
        } else {
            self.ask_blocks(id, wire);
        }
        true
    }

    fn reason(&self, r: Ref, lane: Lane) -> Why {
        let forced = self.blocks.get(r).is_some_and(|b| b.forced);
        if forced && !self.is_near(lane) { Why::Deadline } else { Why::Plan }
    }

    /// Asks for all of a block, before anything that is not urgent. The block is
    /// planned for the tunnel, or in flight elsewhere.
    pub(super) fn ask_whole(&mut self, r: Ref, id: TunnelId, why: Why) {
        let Some(tunnel) = self.peers.tunnels.get(&id) else { return };
        let most = WIRE_MAX.max(line_holds(tunnel.speed(), tunnel.rtt()));
        self.begin_flight(r, Lane::Tunnel(id), why);
        let Some((key, len)) = self.blocks.get(r).map(|b| (b.key, b.len)) else { return };
        if u64::from(len) <= most {
            let extent = Extent::Blocks(key.index..key.index + 1);
            self.ask(id, vec![r], extent, u64::from(len), Class::Urgent, why);
            return;
        }
        let mut offset = 0;
        while offset < len {
            let part = u64::from(len - offset).min(most) as u32;
            let extent = Extent::Part { index: key.index, offset, len: part };
            self.ask(id, vec![r], extent, u64::from(part), Class::Urgent, why);
            offset += part;
        }
    }

    /// Asks for the next part of a block that is in flight on the tunnel.
    fn ask_part(&mut self, r: Ref, id: TunnelId, wire: u64) {
        let lane = Lane::Tunnel(id);
        let next = self.blocks.get(r).and_then(|b| {
            let flight = b.flights.iter().find(|f| f.lane == lane)?;
            let part = u64::from(b.len - flight.asked).min(wire) as u32;
            Some((b.key.index, flight.asked, part, b.len, b.class, flight.why))
        });
        let Some(tunnel) = self.peers.tunnels.get_mut(&id) else { return };
        let Some((index, offset, part, len, class, why)) = next else {
            tunnel.partial = None;
            return;
        };
        tunnel.partial = (offset + part < len).then_some(r);
        let extent = Extent::Part { index, offset, len: part };
        // A block that became urgent while its parts come is asked for as such.
        self.ask(id, vec![r], extent, u64::from(part), class, why);
    }

    /// Asks for a run of neighbouring blocks at the head of the queue.
    fn ask_blocks(&mut self, id: TunnelId, wire: u64) {
        let lane = Lane::Tunnel(id);
        let (mut blocks, mut bytes) = (Vec::new(), 0);
        let mut head: Option<(BlockKey, Class)> = None;
        let mut count = 0;
        while let Some(r) = self.peers.tunnels.get(&id).and_then(|t| t.queue.front().copied()) {
            let Some(block) = self.blocks.get(r).filter(|b| b.state() == State::Planned(lane))
            else {
                break;
            };
            let len = u64::from(block.len);
            let fits = head.is_none_or(|(key, class)| {
                block.key.object == key.object
                    && block.key.index == key.index + count
                    && block.class == class
                    && bytes + len <= wire
            });
            if !fits {
                break;
            }
            head.get_or_insert((block.key, block.class));
            bytes += len;
            count += 1;
            blocks.push(r);
            if let Some(tunnel) = self.peers.tunnels.get_mut(&id) {
                tunnel.queue.pop_front();
            }
        }
        let Some((key, class)) = head else { return };
        let why = self.reason(blocks[0], lane);
        for r in &blocks {
            self.begin_flight(*r, lane, why);
        }
        self.ask(id, blocks, Extent::Blocks(key.index..key.index + count), bytes, class, why);
    }

    fn ask(
        &mut self,
        id: TunnelId,
        blocks: Vec<Ref>,
        extent: Extent,
        bytes: u64,
        class: Class,
        why: Why,
    ) {
        let Some((object, home)) =
            blocks.first().and_then(|r| self.blocks.get(*r)).map(|b| (b.key.object, b.home))
        else {
            return;
        };
        let (now, request) = (self.now, self.next_request());
        let urgent = class == Class::Urgent;
        let Some(tunnel) = self.peers.tunnels.get_mut(&id) else { return };
        if tunnel.flying_bulk + tunnel.flying_urgent == 0 {
            // The line was idle until now: that is no time of transfer.
            tunnel.last_arrival = now;
        }
        if urgent {
            tunnel.flying_urgent += bytes;
        } else {
            tunnel.flying_bulk += bytes;
        }
        let ahead = (tunnel.flying_urgent + tunnel.flying_bulk) as f64 / tunnel.speed();
        let expected = tunnel.rtt() + Duration::from_secs_f64(ahead);
        let stall = (expected * 4).clamp(STALL_MIN, STALL_MAX);
        let hard = now + (expected * 10).clamp(HARD_MIN, HARD_MAX);
        let part = match extent {
            Extent::Blocks(_) => None,
            Extent::Part { len, .. } => Some(len),
        };
        let peer = tunnel.peer;
        for r in &blocks {
            let Some(block) = self.blocks.get_mut(*r) else { continue };
            let len = block.len;
            if let Some(flight) = block.flights.iter_mut().find(|f| f.lane == Lane::Tunnel(id)) {
                flight.asked += part.unwrap_or(len);
                flight.requests.push(request);
            }
        }
        self.open_request(
            request,
            Request {
                lane: Lane::Tunnel(id),
                peer,
                blocks,
                let_go: Vec::new(),
                left: bytes,
                fresh: 0,
                class,
                issued: now,
                last_progress: now,
                stall,
                hard: Some(hard),
                timer: (now + stall).min(hard),
                position: 0,
                home,
                delivered: 0,
            },
        );
        self.actions.push(Action::Fetch { request, tunnel: id, object, extent, urgent, why });
    }

    /// Starts one run more at the registry, if one may be started.
    fn pump_registry(&mut self) -> bool {
        if self.registry.is_settled() {
            return false;
        }
        let most = self.settings.registry_runs;
        let least = match self.runs.len() {
            n if n >= most => return false,
            n if n + 1 == most && most > 1 => Class::Sequential,
            _ => Class::Background,
        };
        let runs = self.runs.iter().filter_map(|id| self.requests.get(id));
        let flying: Vec<u32> = runs.map(|request| request.home).collect();
        let homes = &self.homes;
        let home_is = |n: u32| HomeIs {
            ready: homes.get(n).is_some_and(|s| s.not_before.is_none()),
            whole: homes.get(n).is_some_and(|s| s.whole),
            flying: flying.contains(&n),
        };
        let shared = !self.peers.lan.is_empty();
        let coming = |home: u32, place: &Place, class: Class| self.comes(home, place, class);
        let Some(stretch) = self.registry.next(&self.blocks, least, shared, home_is, coming) else {
            self.registry.settle();
            return false;
        };
        self.begin_run(stretch.home, stretch.stream, stretch.class, stretch.blocks, None);
        true
    }

    /// Asks the registry for a stretch. The blocks are planned for it, or in
    /// flight elsewhere if `why` says so.
    pub(super) fn begin_run(
        &mut self,
        home: u32,
        stream: std::ops::Range<u64>,
        class: Class,
        blocks: Vec<Ref>,
        why: Option<Why>,
    ) {
        let Some(name) = self.homes.get(home).map(|s| s.home) else { return };
        let (now, request) = (self.now, self.next_request());
        let reason = why.unwrap_or_else(|| {
            let first = blocks.first().map(|r| self.reason(*r, Lane::Registry));
            first.unwrap_or(Why::Plan)
        });
        for r in &blocks {
            self.begin_flight(*r, Lane::Registry, reason);
            let Some(block) = self.blocks.get_mut(*r) else { continue };
            let len = block.len;
            if let Some(flight) = block.flights.iter_mut().find(|f| f.lane == Lane::Registry) {
                flight.asked = len;
                flight.requests.push(request);
            }
        }
        self.open_request(
            request,
            Request {
                lane: Lane::Registry,
                peer: REGISTRY,
                blocks,
                let_go: Vec::new(),
                left: stream.end - stream.start,
                fresh: 0,
                class,
                issued: now,
                last_progress: now,
                stall: REGISTRY_STALL,
                hard: None,
                timer: now + REGISTRY_STALL,
                position: stream.start,
                home,
                delivered: 0,
            },
        );
        self.actions.push(Action::Run { request, home: name, stream, class, why: reason });
        // What else it passes is to be attached to it.
        self.planning.dirty = true;
    }

    /// What a request in flight brings anyway need not be asked for: a block that
    /// was let go of, or one that a registry's run will pass.
    pub(super) fn attach(&mut self, r: Ref) -> bool {
        let Some(block) = self.blocks.get(r).filter(|b| b.state() != State::Flying) else {
            return false;
        };
        let brought = self.passing.get(&block.key).copied();
        let brought = brought
            .filter(|id| self.requests.get(id).is_some_and(|q| !block.refused.contains(q.peer)));
        let Some(id) = brought.or_else(|| self.passing_run(r)) else { return false };
        let Some(lane) = self.requests.get(&id).map(|q| q.lane) else { return false };
        if block.state() != State::Planned(Lane::Registry) {
            self.blocks.set_state(r, State::Queued);
            self.blocks.set_state(r, State::Planned(lane));
            if lane == Lane::Registry {
                self.registry.insert(&self.blocks, r);
            }
        } else if lane != Lane::Registry {
            self.registry.remove(&self.blocks, r);
            self.blocks.set_state(r, State::Queued);
            self.blocks.set_state(r, State::Planned(lane));
        }
        self.begin_flight(r, lane, Why::Plan);
        let Some(block) = self.blocks.get_mut(r) else { return true };
        let (key, len) = (block.key, block.len);
        if let Some(flight) = block.flights.last_mut() {
            flight.asked = len;
            flight.requests.push(id);
        }
        if let Some(request) = self.requests.get_mut(&id) {
            request.blocks.push(r);
            request.let_go.retain(|other| *other != key);
        }
        self.passing.remove(&key);
        true
    }

    /// Whether a block that was let go of comes all the same.
    pub(super) fn passes(&self, r: Ref) -> bool {
        self.blocks.get(r).is_some_and(|b| self.passing.contains_key(&b.key))
    }

    /// The run in flight that will pass a block. An urgent one does not wait for
    /// bulk that has far to go.
    fn passing_run(&self, r: Ref) -> Option<RequestId> {
        let block = self.blocks.get(r).filter(|b| !b.refused.contains(REGISTRY))?;
        let stream = &block.place.as_ref()?.stream;
        let (home, urgent) = (block.home, block.class == Class::Urgent);
        let passes = |request: &Request| {
            let far = stream.end.saturating_sub(request.position) > DUPLICATE_DISTANCE;
            request.lane == Lane::Registry
                && request.home == home
                && request.position <= stream.start
                && stream.end <= request.position.saturating_add(request.left)
                && !(urgent && far && request.class > Class::Urgent)
        };
        let runs = || self.runs.iter().filter_map(|id| Some((*id, self.requests.get(id)?)));
        runs().find(|(_, request)| passes(request)).map(|(id, _)| id)
    }

    /// Whether a run in flight is about to pass a place, or will end in the same
    /// span before it, where its decoder can be gone on with: a run of its own
    /// would read the same bytes again.
    fn comes(&self, home: u32, place: &Place, class: Class) -> bool {
        let runs = self.runs.iter().filter_map(|id| self.requests.get(id));
        runs.filter(|run| run.home == home).any(|run| {
            let end = run.position.saturating_add(run.left);
            // A run reads somewhat beyond its end.
            let ahead = run.position <= place.stream.start || end <= place.stream.start;
            let until = place.stream.end.min(end).saturating_sub(run.position);
            let patience = match run.class {
                Class::Urgent | Class::Sequential => RUN_READER,
                bulk if bulk <= class => RUN_BULK,
                _ => DUPLICATE_DISTANCE,
            };
            ahead && place.entry < end && until <= patience
        })
    }

    fn next_request(&mut self) -> RequestId {
        self.next_request += 1;
        self.next_request
    }

    fn open_request(&mut self, id: RequestId, request: Request) {
        self.timers.insert((request.timer, Timer::Request(id)));
        if request.lane == Lane::Registry {
            self.runs.insert(id);
        }
        self.requests.insert(id, request);
    }

    /// A block is asked of a source. If that lies beyond the LAN, the neighbours
    /// are told, so that none of them asks for it too.
    fn begin_flight(&mut self, r: Ref, lane: Lane, why: Why) {
        let near = self.is_near(lane);
        let peer = match lane {
            Lane::Registry => REGISTRY,
            Lane::Tunnel(id) => match self.peers.tunnels.get(&id) {
                Some(tunnel) => tunnel.peer,
                None => return,
            },
        };
        let now = self.now;
        if let Some(block) = self.blocks.get(r)
            && block.state() == State::Planned(Lane::Registry)
        {
            self.registry.remove(&self.blocks, r);
        }
        let Some(block) = self.blocks.get_mut(r) else { return };
        if why == Why::Deadline {
            self.totals.forced += u64::from(block.len);
        }
        block.flights.push(Flight { lane, peer, since: now, why, asked: 0, requests: Vec::new() });
        self.blocks.set_state(r, State::Flying);
        if !near {
            self.claim(r);
        }
    }
}
