//! A node: the shipped machines, and what its shell knows.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use peersync::fetch::schedule::{BlockKey, RequestId, Scheduler, Settings, TunnelId};
use peersync::swarm::differences::Teller;
use peersync::swarm::elect::{Elector, Score};
use peersync::swarm::history::History;
use peersync::swarm::lookups::Lookups;
use peersync::swarm::overlay::Overlay;
use peersync::swarm::popularity::{PeerSets, Short};
use peersync::swarm::tracker::{Has, Tracker};
use peersync::types::{Digest, PeerId};

use super::talk::Said;
use crate::clock::Clock;

/// Nodes of a LAN.
pub const LAN: usize = 10;

/// What a node says and does, true or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Says that it holds what it does not.
    Denies,
    /// Has the highest score, and as tracker names nodes that are not there.
    Usurps,
    /// Says that it holds what it does, and sends it at a crawl.
    Crawls,
}

/// A tunnel between two nodes, as one of them sees it.
pub struct Link {
    /// Both ends have the same; another when it was made anew.
    pub number: u64,
    pub images: Teller<Short, Arc<[Short]>>,
    /// What the other end says that it has.
    pub known: BTreeSet<BlockKey>,
    /// Bytes that came over it since it was looked at,
    pub came: u64,
    /// and whether some went.
    pub gave: bool,
    pub since: Duration,
    /// What was said while the line was cut.
    pub held: Vec<Said>,
}

/// A layer that is looked for beyond the peers at hand.
#[derive(Default)]
pub struct Finding {
    /// Answers that are awaited: the tracker's and the table's.
    pub awaited: u8,
    /// Nodes that were named and are being called.
    pub meeting: BTreeSet<usize>,
}

pub struct Node {
    pub id: PeerId,
    pub lan: usize,
    pub manner: Manner,
    pub score: Score,
    pub clock: Clock,
    /// It survives the process, and so does what is stored.
    pub memory: History,
    pub store: BTreeMap<usize, BTreeSet<u32>>,
    /// Since when it has all of a layer.
    pub whole: BTreeMap<usize, Duration>,
    /// Counts its lives.
    pub life: u64,
    pub born: Duration,
    pub died: Option<Duration>,
    pub machines: Machines,
    pub links: BTreeMap<usize, Link>,
    pub calling: BTreeSet<usize>,
    /// Nodes to which there is to be no tunnel in this life.
    pub banned: BTreeSet<usize>,
    pub tunnels: BTreeMap<TunnelId, usize>,
    /// Requests of the scheduler that have not ended, and on which tunnels.
    pub requests: BTreeMap<RequestId, Option<TunnelId>>,
    /// Tunnels that it wants to have, by peer.
    pub wanted: BTreeMap<usize, usize>,
    /// Bytes of blocks that come in parts.
    pub parts: BTreeMap<BlockKey, u64>,
    pub findings: BTreeMap<usize, Finding>,
    /// Blocks that neighbours, and others, have not been told of.
    pub fresh: [BTreeSet<BlockKey>; 2],
    /// The tracker that it follows, since when, and when it called it.
    pub follows: Option<usize>,
    pub since: Duration,
    pub called: Duration,
    pub wakes: Option<Duration>,
    /// There is something to tell the tracker or peers.
    pub news: bool,
    /// Number of its last beat.
    pub said: u64,
}

/// The shipped machines of one life.
pub struct Machines {
    pub elector: Elector,
    pub table: Tracker,
    pub lookups: Lookups,
    pub layers: Teller<Digest, Has>,
    pub sets: PeerSets,
    pub overlay: Overlay,
    pub scheduler: Scheduler,
}

impl Machines {
    /// Of a node that starts now; its first claim has this number.
    pub fn new(id: PeerId, score: Score, first: u64, seed: u64) -> Self {
        Self {
            elector: Elector::new(id, score, first, seed, Duration::ZERO),
            table: Tracker::default(),
            lookups: Lookups::default(),
            layers: Teller::default(),
            sets: PeerSets::default(),
            overlay: Overlay::new(id, seed),
            scheduler: Scheduler::new(id, Settings::default(), seed),
        }
    }
}

impl Node {
    pub fn new(n: usize, manner: Manner, clock: Clock, rng: &mut fastrand::Rng) -> Self {
        let id = name(n);
        let told = if manner == Manner::Usurps { u16::MAX } else { rng.u16(100..=950) };
        let (score, mut memory) = (Score::told(told), History::default());
        let first = memory.begin_life(clock.wall(Duration::ZERO));
        Self {
            id,
            lan: n / LAN,
            manner,
            score,
            clock,
            memory,
            store: BTreeMap::new(),
            whole: BTreeMap::new(),
            life: 0,
            born: Duration::ZERO,
            died: None,
            machines: Machines::new(id, score, first, rng.u64(..)),
            links: BTreeMap::new(),
            calling: BTreeSet::new(),
            banned: BTreeSet::new(),
            tunnels: BTreeMap::new(),
            requests: BTreeMap::new(),
            wanted: BTreeMap::new(),
            parts: BTreeMap::new(),
            findings: BTreeMap::new(),
            fresh: Default::default(),
            follows: None,
            since: Duration::ZERO,
            called: Duration::ZERO,
            wakes: None,
            news: true,
            said: 0,
        }
    }

    /// It starts anew: what it has stored is there, nothing else.
    pub fn revive(&mut self, now: Duration, clock: Clock, seed: u64) {
        let first = self.memory.begin_life(clock.wall(now));
        self.machines = Machines::new(self.id, self.score, first, seed);
        (self.clock, self.life, self.born, self.died) = (clock, self.life + 1, now, None);
        self.links.clear();
        self.calling.clear();
        self.banned.clear();
        self.tunnels.clear();
        self.requests.clear();
        self.wanted.clear();
        self.parts.clear();
        self.findings.clear();
        self.fresh = Default::default();
        (self.follows, self.wakes, self.news) = (None, None, true);
        (self.since, self.called) = (now, Duration::ZERO);
    }

    pub fn is_alive(&self) -> bool {
        self.died.is_none()
    }

    pub fn has(&self, layer: usize, block: u32) -> bool {
        self.store.get(&layer).is_some_and(|blocks| blocks.contains(&block))
    }
}

pub fn name(n: usize) -> PeerId {
    let mut name = [0; 32];
    // Names say nothing about places.
    name[..8].copy_from_slice(&(n as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    name[8..16].copy_from_slice(&(n as u64).to_be_bytes());
    PeerId(name)
}

pub fn number(peer: &PeerId) -> usize {
    u64::from_be_bytes(peer.0[8..16].try_into().expect("8 bytes")) as usize
}

pub fn address(n: usize) -> SocketAddr {
    let (lan, number) = (n / LAN, n % LAN);
    SocketAddr::from(([10, (lan / 256) as u8, (lan % 256) as u8, number as u8 + 1], 7400))
}
