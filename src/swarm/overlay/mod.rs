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
//!   source alone has named and [`PER_ADDRESS_MAX`] at one IP address that are no
//!   neighbours, and never more than [`NEIGHBOURS_MAX`] neighbours and [`VISITORS_MAX`]
//!   that are there for a while;
//! - what others say of a node decides when it is probed, never how it ranks;
//! - a node that fails is left alone for a time that doubles, and forgotten at the
//!   [`FAILURES_MAX`]th failure in a row; one that only a neighbour has named and
//!   that never answered is forgotten at once, and whoever names such is asked less;
//! - a neighbour names nodes only when it was asked, and [`TOLD_MAX`] at most;
//! - every probe ends, by an answer or by its time.
//!
//! The book is kept here; `choose` says what is done next.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::types::PeerId;

mod choose;
#[cfg(test)]
mod tests;

/// Nodes that are known at a time.
pub const NODES_MAX: usize = 512;
/// Of these, candidates that one source has named.
pub const PER_SOURCE_MAX: usize = 64;
/// Candidates at one IP address: whoever names many ports of one machine would
/// have it called by the whole swarm.
pub const PER_ADDRESS_MAX: usize = 8;
/// Nodes that one answer of a neighbour names.
pub const TOLD_MAX: usize = 16;
/// What a neighbour has said is good for this long.
pub const HEARSAY: Duration = Duration::from_secs(10 * 60);
/// Neighbours that are looked for,
pub const NEIGHBOURS_WANTED: usize = 16;
/// and had at most: more come by themselves.
pub const NEIGHBOURS_MAX: usize = 24;
/// Tunnels beyond those that are there for a while, to fetch or to give something.
pub const VISITORS_MAX: usize = 40;
/// Whoever has just come is let be for so long.
pub const VISIT: Duration = Duration::from_secs(10);
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
/// A neighbour is asked for its own this often; of those in the LAN, one.
pub const ASK: Duration = Duration::from_secs(120);
/// Far ones are asked this often while there are fewer than are wanted.
pub const ASK_FEW: Duration = Duration::from_secs(40);
/// A neighbour that asks is answered no more often.
pub const TELL: Duration = Duration::from_secs(30);
/// Whom a node does not want, or who does not want it, is left alone this long.
pub const DISMISSED: Duration = Duration::from_secs(10 * 60);
/// A neighbour that brought or took something lately is not dropped.
const BUSY: Duration = Duration::from_secs(10);
/// One beyond those that are wanted is not dropped while it brings or takes something.
const CARRIES: Duration = Duration::from_secs(3);
/// The slowest makes room once it is this much slower than the better quarter.
const SLOW: f64 = 0.5;
/// Weight of a new measurement of speed.
const WEIGHT: f64 = 0.3;
/// After so many names in a row that led nowhere a neighbour's others are not
/// tried, and it is asked half as often; at twice as many, half as often again.
const VAIN_MAX: u32 = 4;

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
        /// Whether it is this node's tracker or this node is its: so are they.
        kept: bool,
    },
    /// Content has come from a neighbour or gone to it.
    Carried(PeerId),
    /// A probe had no answer, or not the right node's.
    Failed(PeerId),
    /// The last tunnel to a node has gone.
    Down(PeerId),
    /// It has closed its tunnels: it has better neighbours.
    Dismissed(PeerId),
    /// A neighbour's bytes per second, as measured here while it brought something.
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
    Candidate { named: Duration },
    Probed { until: Duration },
    Neighbour(Link),
    Resting { until: Duration },
}

/// A tunnel's state.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Link {
    since: Duration,
    near: bool,
    kept: bool,
    /// When it was asked for others last,
    asked: Option<Duration>,
    /// and how many it may still name.
    owed: usize,
    /// When it was told of others last.
    told: Option<Duration>,
    /// Nodes that it named and that did not answer, since one did.
    vain: u32,
}

#[derive(Clone, Debug)]
struct Node {
    address: Option<SocketAddr>,
    source: Source,
    state: State,
    failures: u32,
    /// It has been a neighbour.
    proved: bool,
    /// Bytes per second, once measured.
    speed: Option<f64>,
    /// When it last carried something.
    busy: Option<Duration>,
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
    /// Whether it is in this node's LAN.
    pub near: bool,
    /// Since when it is one.
    pub since: Duration,
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
                self.on_named(now, source, peer, address);
                return Vec::new();
            }
            Input::Up { peer, address, near, kept } => {
                let same = |link: &mut Link| (link.near, link.kept) == (near, kept);
                let there = self.nodes.get_mut(&peer).and_then(Node::link).is_some_and(same);
                self.on_up(now, peer, address, Link::new(now, near, kept));
                if there {
                    return Vec::new();
                }
            }
            Input::Carried(peer) => {
                self.nodes.get_mut(&peer).into_iter().for_each(|node| node.busy = Some(now));
                return Vec::new();
            }
            // It may have called meanwhile.
            Input::Failed(peer) if self.nodes.get(&peer).is_some_and(Node::is_neighbour) => {}
            Input::Failed(peer) | Input::Down(peer) => self.on_failed(now, &peer),
            Input::Dismissed(peer) => {
                if self.nodes.get(&peer).is_some_and(Node::is_neighbour) {
                    self.rest(&peer, now + DISMISSED);
                }
            }
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
        self.nodes.retain(|_, node| !node.is_old(now));
        for node in self.nodes.values_mut() {
            if matches!(node.state, State::Resting { until } if until <= now) {
                node.state = State::Candidate { named: now };
                // One that came by itself has nobody's turn yet.
                if !self.turns.contains(&node.source) {
                    self.turns.push_back(node.source);
                }
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
            .filter_map(|(peer, node)| {
                let State::Neighbour(Link { since, near, .. }) = node.state else { return None };
                let (peer, address, speed) = (*peer, node.address?, node.speed);
                Some(Neighbour { peer, address, speed, near, since })
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
        if self.nodes.len() > NODES_MAX || chosen > NEIGHBOURS_MAX + VISITORS_MAX {
            return Err(format!("{} nodes, {chosen} chosen neighbours", self.nodes.len()));
        }
        let mut named: BTreeMap<Source, usize> = BTreeMap::new();
        let mut at: BTreeMap<IpAddr, usize> = BTreeMap::new();
        for (peer, node) in &self.nodes {
            if *peer == self.me || self.banned.contains(peer) {
                return Err(format!("{peer} must not be known"));
            }
            if !node.is_neighbour() {
                *named.entry(node.source).or_default() += 1;
                if let Some(address) = node.address.filter(|_| !node.proved) {
                    *at.entry(address.ip()).or_default() += 1;
                }
            }
            match node.state {
                State::Probed { until } if until > now + PROBE => {
                    return Err(format!("the probe of {peer} does not end"));
                }
                State::Candidate { .. } if node.address.is_none() => {
                    return Err(format!("{peer} can't be called"));
                }
                State::Neighbour(link) if link.owed > TOLD_MAX => {
                    return Err(format!("{peer} may name {}", link.owed));
                }
                _ => {}
            }
            if node.failures >= FAILURES_MAX {
                return Err(format!("{peer} failed too often"));
            }
        }
        if let Some((ip, count)) = at.iter().find(|(_, count)| **count > PER_ADDRESS_MAX) {
            return Err(format!("{count} candidates at {ip}"));
        }
        match named.iter().find(|(_, count)| **count > PER_SOURCE_MAX) {
            Some((source, count)) => Err(format!("{count} candidates of {source:?}")),
            None => Ok(()),
        }
    }

    fn on_named(&mut self, now: Duration, source: Source, peer: PeerId, address: SocketAddr) {
        if let Source::Neighbour(by) = source {
            let link = self.nodes.get_mut(&by).and_then(Node::link);
            let Some(link) = link.filter(|link| link.owed > 0) else { return };
            link.owed -= 1;
        }
        if peer == self.me || self.banned.contains(&peer) {
            return;
        }
        if let Some(node) = self.nodes.get_mut(&peer) {
            if let State::Candidate { named } = &mut node.state {
                *named = now;
                // Where a node can be called that answered is known better here.
                if node.failures > 0 {
                    node.address = Some(address);
                }
            }
            return;
        }
        let idle = |node: &&Node| !node.is_neighbour() && !node.proved;
        let here = |node: &&Node| node.address.is_some_and(|at| at.ip() == address.ip());
        let at_address = self.nodes.values().filter(idle).filter(here).count();
        let of_source = self.named_by(source).count();
        let full = of_source >= PER_SOURCE_MAX || at_address >= PER_ADDRESS_MAX;
        if full || !self.make_room(source) {
            return;
        }
        if !self.turns.contains(&source) {
            self.turns.push_back(source);
        }
        let state = State::Candidate { named: now };
        self.nodes.insert(peer, Node::new(Some(address), source, state));
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
        let idle = |node: &Node| node.source == most && node.is_candidate();
        let victim = self.nodes.iter().find(|(_, node)| idle(node)).map(|(peer, _)| *peer);
        victim.is_some_and(|peer| self.nodes.remove(&peer).is_some())
    }

    /// Room for one that has a tunnel: whoever is to be left alone longest is forgotten,
    /// or else any candidate. `false`: all are neighbours.
    fn make_room_for_neighbour(&mut self) -> bool {
        if self.nodes.len() < NODES_MAX {
            return true;
        }
        let idle = self.nodes.iter().filter_map(|(peer, node)| match node.state {
            State::Resting { until } => Some((until, *peer)),
            State::Candidate { .. } => Some((Duration::ZERO, *peer)),
            State::Probed { .. } | State::Neighbour(_) => None,
        });
        let victim = idle.max().map(|(_, peer)| peer);
        victim.is_some_and(|peer| self.nodes.remove(&peer).is_some())
    }

    fn named_by(&self, source: Source) -> impl Iterator<Item = &PeerId> {
        let of = move |node: &Node| node.source == source && !node.is_neighbour();
        self.nodes.iter().filter(move |(_, node)| of(node)).map(|(peer, _)| peer)
    }

    fn on_up(&mut self, now: Duration, peer: PeerId, address: Option<SocketAddr>, new: Link) {
        if peer == self.me || self.banned.contains(&peer) {
            return;
        }
        if !self.nodes.contains_key(&peer) {
            // One that came by itself.
            if !self.make_room_for_neighbour() {
                return;
            }
            let (source, state) = (Source::Neighbour(peer), State::Candidate { named: now });
            self.nodes.insert(peer, Node::new(address, source, state));
        }
        let Some(node) = self.nodes.get_mut(&peer) else { return };
        (node.address, node.failures) = (address.or(node.address), 0);
        match node.link() {
            Some(link) => (link.near, link.kept) = (new.near, new.kept),
            None => node.state = State::Neighbour(new),
        }
        let first = !std::mem::replace(&mut node.proved, true);
        if let (Source::Neighbour(by), true) = (node.source, first)
            && let Some(link) = self.nodes.get_mut(&by).and_then(Node::link)
        {
            link.vain = 0;
        }
    }

    fn on_failed(&mut self, now: Duration, peer: &PeerId) {
        let Some(node) = self.nodes.get_mut(peer) else { return };
        if matches!(node.state, State::Resting { .. } | State::Candidate { .. }) {
            return;
        }
        node.failures += 1;
        match node.source {
            Source::Neighbour(by) if !node.proved => {
                self.forget(peer);
                self.led_nowhere(&by);
            }
            _ => {
                let until = now + REST_MIN * 2u32.pow(node.failures - 1);
                self.rest(peer, until);
            }
        }
    }

    /// What a neighbour has named is not there.
    fn led_nowhere(&mut self, by: &PeerId) {
        let Some(link) = self.nodes.get_mut(by).and_then(Node::link) else { return };
        link.vain = link.vain.saturating_add(1);
        if link.vain >= VAIN_MAX {
            let source = Source::Neighbour(*by);
            self.nodes.retain(|_, node| node.source != source || node.proved);
        }
    }

    /// A node is left alone until then, or forgotten.
    fn rest(&mut self, peer: &PeerId, until: Duration) {
        let Some(node) = self.nodes.get(peer) else { return };
        // Who was a neighbour counts as its source's candidate again.
        let crowded = node.is_neighbour() && self.named_by(node.source).count() >= PER_SOURCE_MAX;
        if node.failures >= FAILURES_MAX || node.address.is_none() || crowded {
            return self.forget(peer);
        }
        if let Some(node) = self.nodes.get_mut(peer) {
            node.state = State::Resting { until };
        }
    }

    fn forget(&mut self, peer: &PeerId) {
        self.nodes.remove(peer);
    }
}

impl Node {
    fn new(address: Option<SocketAddr>, source: Source, state: State) -> Self {
        Self { address, source, state, failures: 0, proved: false, speed: None, busy: None }
    }

    fn is_neighbour(&self) -> bool {
        matches!(self.state, State::Neighbour(_))
    }

    /// A neighbour that was chosen: those in the LAN come with the place, trackers with
    /// their office.
    fn is_chosen(&self) -> bool {
        matches!(self.state, State::Neighbour(Link { near: false, kept: false, .. }))
    }

    fn is_candidate(&self) -> bool {
        matches!(self.state, State::Candidate { .. })
    }

    /// Whether it is a candidate of which nothing was heard for long.
    fn is_old(&self, now: Duration) -> bool {
        let State::Candidate { named } = self.state else { return false };
        matches!(self.source, Source::Neighbour(_)) && now >= named + HEARSAY
    }

    fn link(&mut self) -> Option<&mut Link> {
        match &mut self.state {
            State::Neighbour(link) => Some(link),
            _ => None,
        }
    }
}

impl Link {
    fn new(since: Duration, near: bool, kept: bool) -> Self {
        Self { since, near, kept, asked: None, owed: 0, told: None, vain: 0 }
    }
}

/// xorshift64: which of equal candidates is next matters little.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
