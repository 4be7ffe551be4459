//! Peers and their tunnels: who is there, how fast, how well behaved.
//!
//! Invariant: both tables are bounded. A ban lasts as long as the process; what
//! a peer did wrong otherwise is forgiven with time.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use super::model::{Near, Settings, Time, TunnelId};
use super::peer_set::{PeerSet, Slot};
use super::swarm::ScoreParts;
use super::table::Ref;
use super::{plan, sizes};
use crate::fetch::estimate::{
    DEFAULT_SPEED, PeerSpeed, RttWindow, SpeedMeter, SpeedWindow, TEMPERATURE, choose, net_scores,
    tunnels_for, utility,
};
use crate::types::PeerId;

/// The slot that stands for registries.
pub(super) const REGISTRY: Slot = u8::MAX;
/// Tunnels in all.
pub(super) const TUNNELS_MAX: usize = 1024;
/// Banned peers that are remembered.
const BANNED_MAX: usize = 4096;
/// A peer is left alone this long after its first fault, then twice as long.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A fault is forgiven after this long.
const FORGIVEN: Duration = Duration::from_secs(120);
/// Faults not yet forgiven that make a peer one to be asked last.
const SHAKY: u32 = 2;
/// Slower than this, in bytes per second, a peer elsewhere is worth less than
/// the registry: a 256 KiB block takes it two seconds.
const SLOW: f64 = 128.0 * 1024.0;
/// A tunnel to a peer is waited for this long before others are asked.
const OPENING: Duration = Duration::from_millis(500);
/// No round trip is believed to be longer.
const RTT_MAX: Duration = Duration::from_secs(10);
/// A tunnel's round trip where none was measured.
const RTT_DEFAULT: Duration = Duration::from_millis(20);

/// A peer.
pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) near: Near,
    pub(super) tunnels: Vec<TunnelId>,
    /// Tunnels that were asked for.
    pub(super) wanted: usize,
    /// Expected speed of one more tunnel.
    pub(super) speed: f64,
    /// Timeouts not yet forgiven.
    pub(super) timeouts: u32,
    pub(super) faulted: Time,
    /// Wrong blocks, ever.
    pub(super) strikes: u32,
    /// When tunnels were asked for.
    pub(super) opened: Time,
    /// No tunnel is opened before.
    pub(super) backoff: Option<Time>,
    /// Last time that it told of something new it has or gets.
    pub(super) news: Time,
    /// Bytes that it sent in this round.
    pub(super) round_bytes: u64,
    window: SpeedWindow,
    pub(super) pop: f64,
    pub(super) custom: f64,
}

/// A tunnel.
pub(super) struct Tunnel {
    pub(super) peer: Slot,
    pub(super) meter: SpeedMeter,
    rtts: RttWindow,
    rtt: Duration,
    pub(super) last_arrival: Time,
    /// Last time that enough came to count as progress.
    pub(super) last_progress: Time,
    /// Planned for it, in order of service.
    pub(super) queue: VecDeque<Ref>,
    /// A block of which part has been asked for, and the rest is to be.
    pub(super) partial: Option<Ref>,
    pub(super) flying_urgent: u64,
    pub(super) flying_bulk: u64,
    /// It said that it is busy, until then.
    pub(super) paused: Option<Time>,
}

impl Tunnel {
    /// Round trip of the line without queues.
    pub(super) fn rtt(&self) -> Duration {
        self.rtt
    }

    pub(super) fn measured(&mut self, now: Time, rtt: Duration) {
        let rtt = rtt.min(RTT_MAX);
        self.rtts.record(now, rtt);
        self.rtt = self.rtts.min(now).unwrap_or(rtt);
    }

    pub(super) fn speed(&self) -> f64 {
        self.meter.speed()
    }

    /// When it is through with what is in flight, in seconds from now.
    pub(super) fn lane(&self) -> plan::Lane {
        let flying = (self.flying_urgent + self.flying_bulk) as f64;
        let speed = self.speed();
        plan::Lane { ready: (flying / speed).max(self.rtt.as_secs_f64()), speed }
    }

    /// When an urgent block of `len` bytes would arrive, in seconds from now: it
    /// waits for other urgent ones, and for one wire request of bulk at most.
    pub(super) fn urgent_arrival(&self, len: u64) -> f64 {
        let bulk = self.flying_bulk.min(sizes::wire_request(self.speed(), self.rtt));
        self.rtt.as_secs_f64() + (self.flying_urgent + bulk + len) as f64 / self.speed()
    }

    pub(super) fn is_open(&self, now: Time) -> bool {
        self.paused.is_none_or(|until| until <= now)
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Peers {
    slots: Vec<Option<Peer>>,
    by_id: HashMap<PeerId, Slot>,
    pub(super) tunnels: BTreeMap<TunnelId, Tunnel>,
    banned: BTreeSet<PeerId>,
    pub(super) lan: PeerSet,
    /// Remote peers that are candidates in this round.
    pub(super) chosen: PeerSet,
    /// Peers elsewhere that are slower than is of use.
    pub(super) slow: PeerSet,
}

impl Peers {
    /// Takes a peer in; `None` if it is banned or there is no room.
    pub(super) fn add(&mut self, id: PeerId, near: Near, now: Time) -> Option<Slot> {
        if self.banned.contains(&id) {
            return None;
        }
        let slot = match self.by_id.get(&id) {
            Some(slot) => *slot,
            None => {
                let free = self.slots.iter().position(Option::is_none).unwrap_or(self.slots.len());
                let slot = Slot::try_from(free).ok().filter(|slot| *slot != REGISTRY)?;
                if free == self.slots.len() {
                    self.slots.push(None);
                }
                self.slots[free] = Some(Peer::new(id, near, now));
                self.by_id.insert(id, slot);
                slot
            }
        };
        self.chosen.insert(slot);
        match near {
            Near::Lan => self.lan.insert(slot),
            Near::Remote => self.lan.remove(slot),
        }
        if let Some(peer) = self.get_mut(slot) {
            peer.near = near;
        }
        Some(slot)
    }

    /// Forgets a peer. Its tunnels must be gone.
    pub(super) fn remove(&mut self, slot: Slot) {
        if let Some(peer) = self.slots.get_mut(usize::from(slot)).and_then(Option::take) {
            debug_assert!(peer.tunnels.is_empty());
            self.by_id.remove(&peer.id);
            self.lan.remove(slot);
            self.chosen.remove(slot);
            self.slow.remove(slot);
        }
    }

    pub(super) fn ban(&mut self, slot: Slot) {
        if let Some(id) = self.get(slot).map(|p| p.id) {
            if self.banned.len() >= BANNED_MAX {
                self.banned.pop_first();
            }
            self.banned.insert(id);
        }
    }

    pub(super) fn slot(&self, id: &PeerId) -> Option<Slot> {
        self.by_id.get(id).copied()
    }

    pub(super) fn get(&self, slot: Slot) -> Option<&Peer> {
        self.slots.get(usize::from(slot))?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: Slot) -> Option<&mut Peer> {
        self.slots.get_mut(usize::from(slot))?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Peer)> {
        (0u8..).zip(&self.slots).filter_map(|(slot, peer)| Some((slot, peer.as_ref()?)))
    }

    pub(super) fn add_tunnel(
        &mut self,
        slot: Slot,
        id: TunnelId,
        rtt: Duration,
        now: Time,
    ) -> bool {
        if self.tunnels.len() >= TUNNELS_MAX || self.tunnels.contains_key(&id) {
            return false;
        }
        let Some(peer) = self.get_mut(slot) else { return false };
        peer.tunnels.push(id);
        let mut tunnel = Tunnel {
            peer: slot,
            meter: SpeedMeter::new(now, peer.speed),
            rtts: RttWindow::default(),
            rtt: RTT_DEFAULT,
            last_arrival: now,
            last_progress: now,
            queue: VecDeque::new(),
            partial: None,
            flying_urgent: 0,
            flying_bulk: 0,
            paused: None,
        };
        tunnel.measured(now, rtt);
        self.tunnels.insert(id, tunnel);
        true
    }

    pub(super) fn remove_tunnel(&mut self, id: TunnelId) -> Option<Tunnel> {
        let tunnel = self.tunnels.remove(&id)?;
        if let Some(peer) = self.get_mut(tunnel.peer) {
            peer.tunnels.retain(|t| *t != id);
            // What it showed is where the next one starts.
            peer.speed = tunnel.speed();
        }
        Some(tunnel)
    }

    /// Peers that can be asked: with a tunnel that is open and not busy.
    pub(super) fn usable(&self, now: Time) -> PeerSet {
        let mut set = PeerSet::default();
        for tunnel in self.tunnels.values().filter(|t| t.is_open(now)) {
            set.insert(tunnel.peer);
        }
        set
    }

    /// Peers whose first tunnel will be there in a moment.
    pub(super) fn opening(&self, now: Time) -> PeerSet {
        let mut set = PeerSet::default();
        for (slot, peer) in self.iter() {
            if peer.backoff.is_none() && peer.tunnels.is_empty() && peer.opened + OPENING > now {
                set.insert(slot);
            }
        }
        set
    }

    /// Peers that did not answer in time more than once lately. They are asked
    /// when nobody else is there, and nobody waits for them.
    pub(super) fn shaky(&self) -> PeerSet {
        let mut set = PeerSet::default();
        for (slot, _) in self.iter().filter(|(_, p)| p.timeouts >= SHAKY) {
            set.insert(slot);
        }
        set
    }

    /// Peers that are there and not in disgrace, with a tunnel or not yet.
    pub(super) fn alive(&self) -> PeerSet {
        let mut set = PeerSet::default();
        for (slot, _) in self.iter().filter(|(_, p)| p.backoff.is_none()) {
            set.insert(slot);
        }
        set
    }

    /// A round ends: speeds are noted, and the score chooses the candidates
    /// among the peers elsewhere (eq. 2-6). Gives the peers whose number of
    /// tunnels should change, with that number.
    pub(super) fn round(
        &mut self,
        now: Time,
        length: Duration,
        settings: &Settings,
        rng: &mut fastrand::Rng,
    ) -> Vec<(PeerId, usize)> {
        let mut changes = Vec::new();
        self.slow = PeerSet::default();
        for n in 0..self.slots.len() as u8 {
            let speeds = |tunnels: &BTreeMap<TunnelId, Tunnel>, peer: &Peer| {
                let own = peer.tunnels.iter().filter_map(|t| tunnels.get(t)).map(Tunnel::speed);
                own.fold(0.0, f64::max)
            };
            let Some(peer) = self.slots[usize::from(n)].as_mut() else { continue };
            let speed = speeds(&self.tunnels, peer);
            if peer.round_bytes > 0 {
                let bytes = std::mem::take(&mut peer.round_bytes);
                peer.window.record(now, bytes as f64 / length.as_secs_f64().max(1e-3));
            }
            if peer.timeouts > 0 && peer.faulted + FORGIVEN <= now {
                peer.timeouts -= 1;
                peer.faulted = now;
            }
            if peer.tunnels.is_empty() {
                continue;
            }
            if peer.near == Near::Remote && speed < SLOW {
                self.slow.insert(n);
            }
            let count = tunnels_for(speed, peer.timeouts, settings.tunnels_max);
            if count != peer.wanted {
                peer.wanted = count;
                changes.push((peer.id, count));
            }
        }
        self.choose_candidates(now, settings, rng);
        changes
    }

    /// The score of every peer, as [`Self::choose_candidates`] reckons it.
    pub(super) fn scores(&self, now: Time, settings: &Settings) -> Vec<(Slot, ScoreParts)> {
        let peers: Vec<(Slot, &Peer)> = self.iter().collect();
        let speeds: Vec<PeerSpeed<'_>> = peers
            .iter()
            .map(|(slot, peer)| PeerSpeed { lan: self.lan.contains(*slot), window: &peer.window })
            .collect();
        let weights = settings.weights.normalised();
        let score = |(net, (slot, peer)): (f64, (Slot, &Peer))| {
            let (pop, custom) = (peer.pop, peer.custom);
            let utility = utility(weights, net, pop, custom);
            (slot, ScoreParts { utility, net, pop, custom })
        };
        net_scores(now, &speeds).into_iter().zip(peers).map(score).collect()
    }

    fn choose_candidates(&mut self, now: Time, settings: &Settings, rng: &mut fastrand::Rng) {
        let candidates: Vec<Slot> = self
            .iter()
            .filter(|(_, p)| p.near == Near::Remote && !p.tunnels.is_empty())
            .map(|(slot, _)| slot)
            .collect();
        self.chosen = PeerSet::default();
        if candidates.len() <= settings.candidates {
            candidates.into_iter().for_each(|slot| self.chosen.insert(slot));
            return;
        }
        let peers: Vec<&Peer> = candidates.iter().filter_map(|slot| self.get(*slot)).collect();
        let speeds: Vec<PeerSpeed<'_>> =
            peers.iter().map(|p| PeerSpeed { lan: false, window: &p.window }).collect();
        let weights = settings.weights.normalised();
        let utilities: Vec<f64> = net_scores(now, &speeds)
            .into_iter()
            .zip(&peers)
            .map(|(net, peer)| utility(weights, net, peer.pop, peer.custom))
            .collect();
        for n in choose(&utilities, TEMPERATURE, settings.candidates, rng) {
            self.chosen.insert(candidates[n]);
        }
    }
}

impl Peer {
    fn new(id: PeerId, near: Near, now: Time) -> Self {
        Self {
            id,
            near,
            tunnels: Vec::new(),
            wanted: 0,
            speed: DEFAULT_SPEED,
            timeouts: 0,
            faulted: now,
            strikes: 0,
            opened: now,
            backoff: None,
            news: now,
            round_bytes: 0,
            window: SpeedWindow::default(),
            pop: 100.0,
            custom: 0.0,
        }
    }

    /// It did not answer, or wrongly: it is left alone for a while, and has
    /// fewer tunnels after that. Gives the end of that while.
    pub(super) fn fault(&mut self, now: Time) -> Time {
        let pause = BACKOFF_MIN.saturating_mul(1 << self.timeouts.min(8)).min(BACKOFF_MAX);
        self.timeouts = self.timeouts.saturating_add(1);
        self.faulted = now;
        self.wanted = 0;
        let until = now + pause;
        self.backoff = Some(until);
        until
    }

    /// How many tunnels it shall have when it is spoken to again.
    pub(super) fn tunnels_wanted(&self, settings: &Settings) -> usize {
        tunnels_for(self.speed, self.timeouts, settings.tunnels_max)
    }
}
