//! The neighbour overlay: with whom of a large swarm this node keeps tunnels.
//!
//! Candidates come from the memory of this network, from the distributed table and
//! from neighbours, who name their own. They are probed in turn, source by source;
//! those that answer become neighbours, are ranked by the speed that was measured
//! here, and the slowest make room when better ones may be had. Source: PPIO
//! (`003`), III; design section 8.
//!
//! A pure machine: time comes as an argument, counted from any one point, and so
//! does randomness, as a seed.
//!
//! Invariants, which `check` looks at:
//! - never more than [`NODES_MAX`] nodes, of those [`PER_SOURCE_MAX`] that one
//!   source alone has named, and never more than [`NEIGHBOURS_MAX`] neighbours;
//! - what others say of a node decides when it is probed, never how it ranks;
//! - a node that fails is left alone for a time that doubles, and forgotten at the
//!   [`FAILURES_MAX`]th failure in a row;
//! - every probe ends, by an answer or by its time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use crate::types::PeerId;

/// Nodes that are known at a time.
pub const NODES_MAX: usize = 512;
/// Of these, candidates that one source has named.
pub const PER_SOURCE_MAX: usize = 64;
/// Neighbours that are looked for,
pub const NEIGHBOURS_WANTED: usize = 16;
/// and had at most: more come by themselves.
pub const NEIGHBOURS_MAX: usize = 24;
/// Probes at a time.
pub const PROBES_MAX: usize = 2;
/// A probe that has no answer after this long has failed.
pub const PROBE: Duration = Duration::from_secs(10);
/// A node that failed is left alone this long; doubles with each failure.
pub const REST_MIN: Duration = Duration::from_secs(10);
/// Failures in a row after which a node is forgotten.
pub const FAILURES_MAX: u32 = 4;
/// With all neighbours that are wanted, another candidate is tried this often.
pub const EXPLORE: Duration = Duration::from_secs(60);
/// A neighbour is not dropped for being slow before it was one for this long.
pub const GRACE: Duration = Duration::from_secs(30);
/// A neighbour is asked for its own this often.
pub const ASK: Duration = Duration::from_secs(120);
/// The slowest makes room once it is this much slower than the middle one.
const SLOW: f64 = 0.5;
/// Weight of a new measurement of speed.
const WEIGHT: f64 = 0.3;

/// Who named a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// It was good in this network before.
    Memory,
    /// The distributed table.
    Table,
    /// A neighbour.
    Neighbour(PeerId),
}

/// What has happened.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// Somebody names a node.
    Named {
        /// Who.
        source: Source,
        /// The node.
        peer: PeerId,
        /// Where its tunnels are said to be.
        address: SocketAddr,
    },
    /// There is a tunnel to a node, whoever called.
    Up {
        /// The node.
        peer: PeerId,
        /// Where it can be called.
        address: Option<SocketAddr>,
        /// Whether it is in this node's LAN: such nodes are nobody's to choose.
        near: bool,
    },
    /// A probe had no answer, or not the right node's.
    Failed(PeerId),
    /// The last tunnel to a node has gone.
    Down(PeerId),
    /// A neighbour's bytes per second, as measured here.
    Measured(PeerId, f64),
    /// It lied, or was revoked: never again.
    Banned(PeerId),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a tunnel; say [`Input::Up`] or [`Input::Failed`].
    Probe(PeerId, SocketAddr),
    /// Close the tunnels: others are better.
    Drop(PeerId),
    /// Ask for its neighbours; say [`Input::Named`] for each.
    Ask(PeerId),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Candidate,
    Probed { until: Duration },
    Neighbour { since: Duration, asked: Option<Duration>, near: bool },
    Resting { until: Duration },
}

#[derive(Clone, Debug)]
struct Node {
    address: Option<SocketAddr>,
    source: Source,
    state: State,
    failures: u32,
    /// Bytes per second, once measured.
    speed: Option<f64>,
}

/// A neighbour, for others to be told of and for people to look at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Who.
    pub peer: PeerId,
    /// Where it can be called.
    pub address: SocketAddr,
    /// Its speed in bytes per second, once measured.
    pub speed: Option<f64>,
}

/// The machine.
#[derive(Debug)]
pub struct Overlay {
    me: PeerId,
    nodes: BTreeMap<PeerId, Node>,
    /// Whose turn it is to have a candidate probed.
    turns: VecDeque<Source>,
    banned: BTreeSet<PeerId>,
    explored: Option<Duration>,
    random: u64,
}

/// Banned nodes that are remembered.
const BANNED_MAX: usize = 1024;

impl Overlay {
    /// Knows nobody.
    pub fn new(me: PeerId, seed: u64) -> Self {
        Self {
            me,
            nodes: BTreeMap::new(),
            turns: VecDeque::new(),
            banned: BTreeSet::new(),
            explored: None,
            random: seed | 1,
        }
    }

    /// Something has happened. What is only known better now is acted on at the next
    /// [`Overlay::tick`].
    pub fn apply(&mut self, now: Duration, input: Input) -> Vec<Action> {
        match input {
            Input::Named { source, peer, address } => {
                self.on_named(source, peer, address);
                return Vec::new();
            }
            Input::Up { peer, address, near } => {
                let there = self.nodes.get(&peer).is_some_and(Node::is_neighbour);
                self.on_up(now, peer, address, near);
                if there {
                    return Vec::new();
                }
            }
            Input::Failed(peer) | Input::Down(peer) => self.on_failed(now, &peer),
            Input::Measured(peer, speed) if speed.is_finite() && speed >= 0.0 => {
                if let Some(node) = self.nodes.get_mut(&peer) {
                    let old = node.speed.unwrap_or(speed);
                    node.speed = Some(old + WEIGHT * (speed - old));
                }
                return Vec::new();
            }
            Input::Measured(..) => return Vec::new(),
            Input::Banned(peer) => {
                self.forget(&peer);
                if self.banned.len() < BANNED_MAX {
                    self.banned.insert(peer);
                }
            }
        }
        self.tick(now)
    }

    /// Time has passed; to be called every second or so.
    pub fn tick(&mut self, now: Duration) -> Vec<Action> {
        let late = |node: &Node| matches!(node.state, State::Probed { until } if until <= now);
        let late: Vec<PeerId> =
            self.nodes.iter().filter(|(_, node)| late(node)).map(|(peer, _)| *peer).collect();
        late.iter().for_each(|peer| self.on_failed(now, peer));
        for node in self.nodes.values_mut() {
            if matches!(node.state, State::Resting { until } if until <= now) {
                node.state = State::Candidate;
            }
        }
        let mut actions = self.drop_slow(now);
        self.probe(now, &mut actions);
        self.ask(now, &mut actions);
        actions
    }

    /// Neighbours that can be called, the fastest first, then those not measured.
    pub fn neighbours(&self) -> Vec<Neighbour> {
        let mut list: Vec<Neighbour> = self
            .nodes
            .iter()
            .filter(|(_, node)| node.is_neighbour())
            .filter_map(|(peer, node)| {
                Some(Neighbour { peer: *peer, address: node.address?, speed: node.speed })
            })
            .collect();
        list.sort_by(|a, b| {
            let speed = |n: &Neighbour| n.speed.unwrap_or(-1.0);
            speed(b).total_cmp(&speed(a)).then(a.peer.cmp(&b.peer))
        });
        list
    }

    /// Whether a node is known at all.
    pub fn knows(&self, peer: &PeerId) -> bool {
        self.nodes.contains_key(peer)
    }

    /// Nodes that are known.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nobody is known.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// What is not as the invariants say.
    ///
    /// # Errors
    /// Which one is broken.
    pub fn check(&self, now: Duration) -> Result<(), String> {
        let chosen = self.nodes.values().filter(|node| node.is_chosen()).count();
        if self.nodes.len() > NODES_MAX || chosen > NEIGHBOURS_MAX {
            return Err(format!("{} nodes, {chosen} chosen neighbours", self.nodes.len()));
        }
        let mut named: BTreeMap<Source, usize> = BTreeMap::new();
        for (peer, node) in &self.nodes {
            if *peer == self.me || self.banned.contains(peer) {
                return Err(format!("{peer} must not be known"));
            }
            if !node.is_neighbour() {
                *named.entry(node.source).or_default() += 1;
            }
            match node.state {
                State::Probed { until } if until > now + PROBE => {
                    return Err(format!("the probe of {peer} does not end"));
                }
                State::Candidate if node.address.is_none() => {
                    return Err(format!("{peer} can't be called"));
                }
                _ => {}
            }
            if node.failures >= FAILURES_MAX {
                return Err(format!("{peer} failed too often"));
            }
        }
        match named.iter().find(|(_, count)| **count > PER_SOURCE_MAX) {
            Some((source, count)) => Err(format!("{count} candidates of {source:?}")),
            None => Ok(()),
        }
    }

    fn on_named(&mut self, source: Source, peer: PeerId, address: SocketAddr) {
        if peer == self.me || self.banned.contains(&peer) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&peer) {
            // Where a node can be called that answered is known better here.
            if node.state == State::Candidate && node.failures > 0 {
                node.address = Some(address);
            }
            return;
        }
        let of_source = self.named_by(source).count();
        if of_source >= PER_SOURCE_MAX || !self.make_room(source) {
            return;
        }
        if !self.turns.contains(&source) {
            self.turns.push_back(source);
        }
        let state = State::Candidate;
        let node = Node { address: Some(address), source, state, failures: 0, speed: None };
        self.nodes.insert(peer, node);
    }

    /// Room for one more. Where there is none, the source with most candidates
    /// loses one, unless that is the one who names another.
    fn make_room(&mut self, source: Source) -> bool {
        if self.nodes.len() < NODES_MAX {
            return true;
        }
        let mut counts: BTreeMap<Source, usize> = BTreeMap::new();
        for node in self.nodes.values().filter(|node| !node.is_neighbour()) {
            *counts.entry(node.source).or_default() += 1;
        }
        let own = counts.get(&source).copied().unwrap_or(0);
        let Some((most, count)) = counts.into_iter().max_by_key(|(_, count)| *count) else {
            return false;
        };
        if count <= own + 1 {
            return false;
        }
        let idle = |node: &Node| node.source == most && node.state == State::Candidate;
        let victim = self.nodes.iter().find(|(_, node)| idle(node)).map(|(peer, _)| *peer);
        victim.is_some_and(|peer| self.nodes.remove(&peer).is_some())
    }

    fn named_by(&self, source: Source) -> impl Iterator<Item = &PeerId> {
        let of = move |node: &Node| node.source == source && !node.is_neighbour();
        self.nodes.iter().filter(move |(_, node)| of(node)).map(|(peer, _)| peer)
    }

    fn on_up(&mut self, now: Duration, peer: PeerId, address: Option<SocketAddr>, near: bool) {
        if peer == self.me || self.banned.contains(&peer) {
            return;
        }
        if !self.nodes.contains_key(&peer) {
            // One that came by itself. Without room it is there and not counted.
            if !self.make_room(Source::Neighbour(peer)) {
                return;
            }
            let (source, state) = (Source::Neighbour(peer), State::Candidate);
            self.nodes.insert(peer, Node { address, source, state, failures: 0, speed: None });
        }
        let Some(node) = self.nodes.get_mut(&peer) else { return };
        (node.address, node.failures) = (address.or(node.address), 0);
        if !node.is_neighbour() {
            node.state = State::Neighbour { since: now, asked: None, near };
        }
    }

    fn on_failed(&mut self, now: Duration, peer: &PeerId) {
        let Some(node) = self.nodes.get_mut(peer) else { return };
        if matches!(node.state, State::Resting { .. } | State::Candidate) {
            return;
        }
        node.failures += 1;
        let named = self.nodes.values().filter(|other| !other.is_neighbour());
        let full = |source| named.filter(|other| other.source == source).count() >= PER_SOURCE_MAX;
        let node = &self.nodes[peer];
        // Who was a neighbour counts as its source's candidate again.
        let crowded = node.is_neighbour() && full(node.source);
        if node.failures >= FAILURES_MAX || node.address.is_none() || crowded {
            return self.forget(peer);
        }
        let until = now + REST_MIN * 2u32.pow(node.failures - 1);
        if let Some(node) = self.nodes.get_mut(peer) {
            node.state = State::Resting { until };
        }
    }

    fn forget(&mut self, peer: &PeerId) {
        self.nodes.remove(peer);
    }

    /// The slowest neighbours make room: one at a time for those that may be
    /// better, and as many as are too many.
    fn drop_slow(&mut self, now: Duration) -> Vec<Action> {
        let mut chosen: Vec<(PeerId, Duration, Option<f64>)> = Vec::new();
        for (peer, node) in &self.nodes {
            if let State::Neighbour { since, near: false, .. } = node.state {
                chosen.push((*peer, since, node.speed));
            }
        }
        let mut speeds: Vec<f64> = chosen.iter().filter_map(|(.., speed)| *speed).collect();
        speeds.sort_by(f64::total_cmp);
        let middle = speeds.get(speeds.len() / 2).copied();
        // Those that were not measured count as middling; of equals the youngest go.
        let rank = |speed: Option<f64>| speed.or(middle).unwrap_or(0.0);
        chosen.sort_by(|a, b| rank(a.2).total_cmp(&rank(b.2)).then(b.1.cmp(&a.1)));
        let surplus = chosen.len().saturating_sub(NEIGHBOURS_MAX);
        let waiting = self.nodes.values().any(|node| node.state == State::Candidate);
        let slow = |(_, since, speed): &(PeerId, Duration, Option<f64>)| {
            let (Some(speed), Some(middle)) = (*speed, middle) else { return false };
            now >= *since + GRACE && speed < SLOW * middle
        };
        let one_slow =
            waiting && chosen.len() >= NEIGHBOURS_WANTED && chosen.first().is_some_and(slow);
        let count = surplus.max(usize::from(one_slow));
        let gone: Vec<PeerId> = chosen.into_iter().take(count).map(|(peer, ..)| peer).collect();
        for peer in &gone {
            // It may come back, after all others had their turn.
            if let Some(node) = self.nodes.get_mut(peer) {
                node.failures = node.failures.min(FAILURES_MAX - 2);
            }
            self.on_failed(now, peer);
        }
        gone.into_iter().map(Action::Drop).collect()
    }

    /// Probes candidates, each source in its turn.
    fn probe(&mut self, now: Duration, actions: &mut Vec<Action>) {
        let probes = |node: &&Node| matches!(node.state, State::Probed { .. });
        let mut probed = self.nodes.values().filter(probes).count();
        let neighbours = self.nodes.values().filter(|node| node.is_chosen()).count();
        while probed < PROBES_MAX {
            let few = neighbours + probed < NEIGHBOURS_WANTED;
            let explore = self.explored.is_none_or(|then| now >= then + EXPLORE)
                && neighbours + probed < NEIGHBOURS_MAX;
            if !few && !explore {
                return;
            }
            let Some((peer, address)) = self.next_candidate() else { return };
            if let Some(node) = self.nodes.get_mut(&peer) {
                node.state = State::Probed { until: now + PROBE };
            }
            if !few {
                self.explored = Some(now);
            }
            probed += 1;
            actions.push(Action::Probe(peer, address));
        }
    }

    /// A candidate of the source whose turn it is: the one that failed least, and
    /// any of those.
    fn next_candidate(&mut self) -> Option<(PeerId, SocketAddr)> {
        for _ in 0..self.turns.len() {
            let source = self.turns.pop_front()?;
            let of_source = self.nodes.iter().filter(|(_, node)| node.source == source);
            let ready: Vec<_> =
                of_source.filter(|(_, node)| node.state == State::Candidate).collect();
            let Some(least) = ready.iter().map(|(_, node)| node.failures).min() else {
                // It has a turn again when it names somebody, or one has rested.
                if self.named_by(source).next().is_some() {
                    self.turns.push_back(source);
                }
                continue;
            };
            self.turns.push_back(source);
            let best: Vec<_> =
                ready.into_iter().filter(|(_, node)| node.failures == least).collect();
            let random = (next(&mut self.random) % best.len() as u64) as usize;
            let (peer, node) = best[random];
            return Some((*peer, node.address?));
        }
        None
    }

    /// Asks neighbours for theirs: who was not asked for longest.
    fn ask(&mut self, now: Duration, actions: &mut Vec<Action>) {
        for (peer, node) in &mut self.nodes {
            let State::Neighbour { asked, .. } = &mut node.state else { continue };
            if asked.is_none_or(|then| now >= then + ASK) {
                *asked = Some(now);
                actions.push(Action::Ask(*peer));
            }
        }
    }
}

impl Node {
    fn is_neighbour(&self) -> bool {
        matches!(self.state, State::Neighbour { .. })
    }

    /// A neighbour that was chosen: those in the LAN come with the place.
    fn is_chosen(&self) -> bool {
        matches!(self.state, State::Neighbour { near: false, .. })
    }
}

/// xorshift64: which of equal candidates is next matters little.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
