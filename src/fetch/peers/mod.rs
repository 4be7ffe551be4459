//! Peers: what happens on tunnels becomes the scheduler's events, and what it
//! says becomes requests and news on tunnels.
//!
//! - `listen` takes in what comes, on a thread of its own, in order;
//! - `ask` sends what the scheduler wants asked;
//! - `question` asks what the scheduler has no part in, and `index` gets indexes
//!   and documents so;
//! - `relay` has one neighbour read what has no index, and hands it on;
//! - `news` says and hears who holds, wants and gets what;
//! - `control` is the seam to the node's part in the swarm: trackers, discovery;
//! - `penalty` shuts out who misbehaves;
//! - `find` has holders of a layer searched for whom there is no tunnel to;
//! - `dial` keeps connections to addresses that were given.
//!
//! Invariants: every table is bounded by the tunnels (512), by the requests in
//! flight on them, or by a limit that stands beside it. Nothing here waits while
//! the lock is held: a full tunnel is an answer.

mod ask;
mod control;
mod dial;
mod find;
mod index;
mod listen;
mod news;
mod penalty;
mod question;
mod relay;
mod served;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

pub use self::find::Finder;
pub use self::index::IndexOffers;

use self::ask::{Asked, Assemblies};
use self::control::Findings;
pub use self::control::{Control, Link};
use self::find::Searches;
use self::news::{Heard, Listener, LookUp};
use self::penalty::Penalties;
use self::question::Questions;
use self::served::Served;
use super::driver::State;
use super::engine::{Engine, Inner};
use super::relay::Party;
use super::schedule;
use super::tunnel::{Endpoint, Events, Near, Target, Traffic, Transport, Tunnel, TunnelId};
use crate::types::{Digest, PeerId};
use crate::wire::{Home, Journal, Ledger, Zone};

pub use relay::{Relay, Way};

/// Tunnels that carry content are pinged this often, so that their round trips are known.
/// Silent ones see to it themselves that they are still there.
const PING: Duration = Duration::from_secs(5);

/// The swarm, as one node sees it.
pub(super) struct Net {
    endpoint: Arc<Endpoint>,
    peers: HashMap<PeerId, Peer>,
    tunnels: BTreeMap<TunnelId, Arc<dyn Tunnel>>,
    asked: HashMap<schedule::RequestId, Asked>,
    questions: Questions,
    assemblies: Assemblies,
    /// What this node holds, for those who listen.
    journal: Journal,
    listeners: HashMap<(TunnelId, Home), Listener>,
    /// Objects of the homes that are listened to.
    heard: Heard,
    /// Homes that this node listens to at its peers, oldest first.
    homes: Vec<Home>,
    /// Homes that this node told its neighbours it wants.
    announced: HashSet<Home>,
    lookups: HashMap<Home, LookUp>,
    findings: Findings,
    penalties: Penalties,
    /// Layers whose holders are searched for.
    searches: Searches,
    /// Who beyond the LAN has shown that it has something of an object.
    served: Served,
    /// Told when holdings have changed that somebody listens to.
    changed: Arc<Notify>,
    /// Addresses that are called for the first time.
    calling: HashSet<SocketAddr>,
    /// Addresses that are called because somebody named them.
    meeting: HashSet<SocketAddr>,
    /// Peers that closed their last tunnel because they have better ones.
    dismissals: Vec<PeerId>,
    /// Until when discovery is expected to find the first peers.
    expected: Option<Instant>,
    /// Told when tunnels come and go, when a first call has failed, and when a
    /// search is over.
    links: Arc<Notify>,
    /// Blobs without an index, and who of the LAN needs them.
    parties: HashMap<Digest, Party>,
    /// Told when something changed about them.
    passes: Arc<Notify>,
}

/// A peer with at least one tunnel, or one that is being opened.
struct Peer {
    near: Near,
    /// Where it can be called.
    address: Option<SocketAddr>,
    tunnels: Vec<TunnelId>,
    /// The tunnel on which this node says and hears its news.
    news: Option<TunnelId>,
    ledger: Ledger,
    /// Homes that it has answered about.
    answered: HashSet<Home>,
    /// Homes of which it holds something.
    holds: HashSet<Home>,
    opening: usize,
    /// Blocks that were not what they should be.
    wrong: u32,
    since: Instant,
    received: u64,
}

/// What is known of a peer, for people to look at.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Which.
    pub id: PeerId,
    /// Where it is.
    pub near: Near,
    /// Where it says it is in the world.
    pub zone: Zone,
    /// Where it can be called, if anywhere.
    pub address: Option<SocketAddr>,
    /// Open tunnels, by transport.
    pub tunnels: Vec<Transport>,
    /// Bytes of blocks that came from it.
    pub received: u64,
    /// Bytes of content that went to it, as on the wire.
    pub sent: u64,
    /// Wrong blocks that it sent.
    pub wrong: u32,
    /// What the scheduler thinks of it.
    pub standing: Option<schedule::Standing>,
    /// How long it has been there.
    pub connected: Duration,
}

impl Engine {
    /// Takes part in the swarm from now on, through `endpoint` and what happens on
    /// it. To be called once.
    pub fn join(&self, endpoint: Arc<Endpoint>, events: Events) {
        let mut epoch = [0; 8];
        // No earlier life must have had it; where the system has no randomness, the
        // time is as good.
        if getrandom::fill(&mut epoch).is_err() {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            epoch = (now.unwrap_or_default().as_nanos() as u64).to_le_bytes();
        }
        let (changed, links) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let net = Net {
            endpoint,
            peers: HashMap::new(),
            tunnels: BTreeMap::new(),
            asked: HashMap::new(),
            questions: Questions::default(),
            assemblies: Assemblies::default(),
            journal: Journal::new(u64::from_le_bytes(epoch)),
            listeners: HashMap::new(),
            heard: Heard::default(),
            homes: Vec::new(),
            announced: HashSet::new(),
            lookups: HashMap::new(),
            findings: Findings::default(),
            penalties: Penalties::default(),
            searches: Searches::default(),
            served: Served::default(),
            calling: HashSet::new(),
            meeting: HashSet::new(),
            dismissals: Vec::new(),
            expected: None,
            changed: Arc::clone(&changed),
            links,
            parties: HashMap::new(),
            passes: Arc::default(),
        };
        self.inner.state().net = Some(net);
        listen::start(&self.inner, events);
        let flushing = news::flush(Arc::downgrade(&self.inner), changed);
        self.inner.handle.spawn(flushing);
        let pinging = ping(Arc::downgrade(&self.inner));
        self.inner.handle.spawn(pinging);
    }

    /// Keeps a tunnel open to a node, whenever it is there. This is how a list in
    /// the configuration and discovery feed peers.
    pub fn dial(&self, target: Target) {
        if let Some(net) = self.inner.state().net.as_mut() {
            net.calling.insert(target.address);
        }
        self.inner.handle.spawn(dial::keep(Arc::downgrade(&self.inner), target));
    }

    /// The peers that there are tunnels to.
    pub fn peers(&self) -> Vec<PeerStatus> {
        let state = self.inner.state();
        let Some(net) = &state.net else { return Vec::new() };
        let standings = state.scheduler.standings();
        let mut peers: Vec<PeerStatus> = net
            .peers
            .iter()
            .filter(|(_, peer)| !peer.tunnels.is_empty())
            .map(|(id, peer)| {
                let standing = standings.get(id).copied();
                PeerStatus { standing, ..net.status(*id, peer) }
            })
            .collect();
        peers.sort_by_key(|peer| (peer.near == Near::Remote, peer.id));
        peers
    }
}

impl Peer {
    /// Whether it is in the LAN and can be told things.
    fn is_neighbour(&self) -> bool {
        self.near == Near::Lan && self.news.is_some()
    }
}

impl Net {
    fn status(&self, id: PeerId, peer: &Peer) -> PeerStatus {
        let tunnels = || peer.tunnels.iter().filter_map(|tunnel| self.tunnels.get(tunnel));
        PeerStatus {
            id,
            near: peer.near,
            zone: tunnels().next().map(|tunnel| tunnel.info().zone.clone()).unwrap_or_default(),
            address: peer.address,
            tunnels: tunnels().map(|tunnel| tunnel.info().transport).collect(),
            received: peer.received,
            sent: tunnels().map(|tunnel| tunnel.traffic().sent).sum(),
            wrong: peer.wrong,
            standing: None,
            connected: peer.since.elapsed(),
        }
    }

    /// The tunnel for news of each peer in the LAN.
    fn neighbours(&self) -> impl Iterator<Item = &Arc<dyn Tunnel>> {
        let near = self.peers.values().filter(|peer| peer.near == Near::Lan);
        near.filter_map(|peer| self.tunnels.get(&peer.news?))
    }

    pub(super) fn close(&self) {
        self.endpoint.close();
    }
}

impl State {
    /// Counts what a peer gave.
    fn received(&mut self, peer: &PeerId, bytes: u64) {
        let peers = self.net.as_mut().map(|net| &mut net.peers);
        if let Some(peer) = peers.and_then(|peers| peers.get_mut(peer)) {
            peer.received += bytes;
        }
    }
}

/// Measures round trips, as long as there is an engine.
async fn ping(inner: std::sync::Weak<Inner>) {
    let mut carried: HashMap<TunnelId, Traffic> = HashMap::new();
    loop {
        tokio::time::sleep(PING).await;
        let Some(inner) = inner.upgrade() else { return };
        let state = inner.state();
        if state.closed {
            return;
        }
        let tunnels = || state.net.iter().flat_map(|net| &net.tunnels);
        let now: HashMap<_, _> = tunnels().map(|(id, tunnel)| (*id, tunnel.traffic())).collect();
        for (id, tunnel) in tunnels() {
            if carried.get(id) != now.get(id) {
                // One that can't take it is busy, or gone and about to say so.
                let _ = tunnel.ping();
            }
        }
        carried = now;
    }
}

fn near(near: Near) -> schedule::Near {
    match near {
        Near::Lan => schedule::Near::Lan,
        Near::Remote => schedule::Near::Remote,
    }
}

fn to_wire(home: &schedule::Home) -> Home {
    match home {
        schedule::Home::Layer(blob) => Home::Layer(*blob),
        schedule::Home::Object(object) => Home::Object(*object),
    }
}

fn from_wire(home: &Home) -> schedule::Home {
    match home {
        Home::Layer(blob) => schedule::Home::Layer(*blob),
        Home::Object(object) => schedule::Home::Object(*object),
    }
}
