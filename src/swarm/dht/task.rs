//! The one owner of the table's state.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use libp2p_core::{Multiaddr, PeerId as Libp2pId, Transport};
use libp2p_kad::{
    self as kad, BucketInserts, GetProvidersOk, InboundRequest, Mode, QueryId, QueryResult,
    RecordKey, StoreInserts,
};
use libp2p_swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p_swarm::{StreamProtocol, Swarm, SwarmEvent};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info, trace};

use super::address::multiaddr;
use super::records::{self, Records};
use super::schedule::Schedule;
use super::transport::{Links, Members, libp2p_id, node_of};
use super::{Command, Greeter, HOLDERS_MAX, Holder, LIFETIME, Names, Settings};
use crate::types::{Digest, PeerId};

/// The protocol's name on a stream.
const PROTOCOL: StreamProtocol = StreamProtocol::new("/peersync/kad/1");
/// Nodes that keep a record.
const REPLICAS: usize = 8;
/// A look-up ends after this long, whoever has answered.
const QUERY: Duration = Duration::from_secs(10);
/// Longest message: 20 nodes with some addresses each.
const MESSAGE_MAX: usize = 16 << 10;
/// Connections that nobody uses are closed: a new one costs two round trips.
const IDLE: Duration = Duration::from_secs(60);
/// Look-ups for others at a time, by name.
const FINDS_MAX: usize = 64;
/// Layers that are told of at a time.
const TELLS_MAX: usize = 4;
/// Nodes that are called for all look-ups together.
const CALLS_MAX: usize = 64;
/// The table is filled anew from its neighbours this often.
const REFRESH: Duration = Duration::from_secs(15 * 60);
/// How often is looked at what is due.
const TICK: Duration = Duration::from_secs(1);
/// Addresses to begin with are called this often while nobody is known,
const BEGIN: Duration = Duration::from_secs(2);
/// and this often while they themselves are not.
const REBEGIN: Duration = Duration::from_secs(30);
/// Records that have expired are dropped this often.
const SWEEP: Duration = Duration::from_secs(60);

pub(super) struct Task {
    swarm: Swarm<kad::Behaviour<Records>>,
    commands: mpsc::Receiver<Command>,
    greeter: Arc<dyn Greeter>,
    links: Arc<Links>,
    names: Names,
    bootstrap: Arc<Mutex<HashSet<SocketAddr>>>,
    schedule: Schedule,
    finds: HashMap<QueryId, Find>,
    tells: HashSet<QueryId>,
    /// Who waits for a node that is being called.
    awaited: HashMap<Libp2pId, Vec<mpsc::Sender<Holder>>>,
    started: Instant,
    began: Option<Instant>,
    swept: Instant,
}

struct Find {
    found: mpsc::Sender<Holder>,
    called: usize,
}

impl Task {
    pub(super) fn new(
        settings: Settings,
        commands: mpsc::Receiver<Command>,
        links: Arc<Links>,
    ) -> io::Result<Self> {
        let Settings { me, listener, names, greeter, dialable, bootstrap } = settings;
        let id = libp2p_id(&me);
        let listens = listener.as_ref().map(|listener| listener.local_addr()).transpose()?;
        let bootstrap = Arc::new(Mutex::new(bootstrap.into_iter().collect()));
        let members = Members::new(
            listener,
            Arc::clone(&greeter),
            Arc::clone(&links),
            dialable,
            Arc::clone(&bootstrap),
        )?;
        let config = libp2p_swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(IDLE)
            .with_max_negotiating_inbound_streams(32);
        let kademlia = kademlia(id, listens.is_some());
        let mut swarm = Swarm::new(members.boxed(), kademlia, id, config);
        if let Some(listens) = listens {
            swarm.listen_on(multiaddr(listens)).map_err(io::Error::other)?;
        }
        let now = Instant::now();
        Ok(Self {
            swarm,
            commands,
            greeter,
            links,
            names,
            bootstrap,
            schedule: Schedule::default(),
            finds: HashMap::new(),
            tells: HashSet::new(),
            awaited: HashMap::new(),
            started: now,
            began: None,
            swept: now,
        })
    }

    /// Runs until nobody can command any more.
    pub(super) async fn run(mut self) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.on_event(event),
                command = self.commands.recv() => match command {
                    Some(command) => self.on_command(command),
                    None => return,
                },
                _ = ticks.tick() => self.on_tick(),
            }
            self.tell();
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Provide { layers, on: true } => {
                let now = self.now();
                let added = layers.iter().filter(|layer| self.schedule.add(**layer, now)).count();
                if added < layers.len() {
                    debug!(left_out = layers.len() - added, "too many layers to tell of");
                }
            }
            Command::Provide { layers, on: false } => {
                for layer in &layers {
                    if self.schedule.remove(layer) {
                        self.untell(layer);
                    }
                }
            }
            Command::Find { layer, found } => self.find(&layer, &found),
            Command::Join { addresses } => addresses.into_iter().for_each(|at| self.call(at)),
            Command::Bootstrap { addresses } => {
                *self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner) =
                    addresses.into_iter().collect();
                self.began = None;
            }
            Command::Renew { names } => self.renew(names),
            Command::Records { answer } => {
                let _ = answer.send(self.swarm.behaviour_mut().store_mut().len());
            }
        }
    }

    fn on_tick(&mut self) {
        if self.swept.elapsed() >= SWEEP {
            self.swept = Instant::now();
            self.swarm.behaviour_mut().store_mut().sweep(self.swept);
        }
        let pause = if self.knows_anybody() { REBEGIN } else { BEGIN };
        if self.began.is_none_or(|began| began.elapsed() >= pause) {
            self.began = Some(Instant::now());
            self.begin();
        }
    }

    fn knows_anybody(&mut self) -> bool {
        self.swarm.behaviour_mut().kbuckets().any(|bucket| bucket.num_entries() > 0)
    }

    /// Calls the addresses to begin with that are nobody's in the table.
    fn begin(&mut self) {
        let mut addresses: HashSet<SocketAddr> =
            self.bootstrap.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if addresses.is_empty() {
            return;
        }
        for bucket in self.swarm.behaviour_mut().kbuckets() {
            for entry in bucket.iter() {
                let node = node_of(entry.node.key.preimage());
                let control = node.and_then(|node| self.links.get(&node)?.control);
                if let Some(control) = control {
                    addresses.remove(&control);
                }
            }
        }
        addresses.into_iter().for_each(|address| self.call(address));
    }

    fn call(&mut self, address: SocketAddr) {
        let options = DialOpts::unknown_peer_id().address(multiaddr(address)).build();
        if let Err(error) = self.swarm.dial(options) {
            trace!(%address, "not called: {error}");
        }
    }

    /// Tells of what is due, a few at a time, when there is anybody to tell.
    fn tell(&mut self) {
        while self.tells.len() < TELLS_MAX && self.knows_anybody() {
            let now = self.now();
            let Some(layer) = self.schedule.next(now) else { return };
            for name in self.names.of(&layer) {
                let kademlia = self.swarm.behaviour_mut();
                match kademlia.start_providing(RecordKey::from(name.to_vec())) {
                    Ok(query) => {
                        self.tells.insert(query);
                    }
                    Err(error) => debug!(%layer, "not told: {error}"),
                }
            }
        }
    }

    fn untell(&mut self, layer: &Digest) {
        for name in self.names.of(layer) {
            self.swarm.behaviour_mut().stop_providing(&RecordKey::from(name.to_vec()));
        }
    }

    fn find(&mut self, layer: &Digest, found: &mpsc::Sender<Holder>) {
        for name in self.names.of(layer) {
            if self.finds.len() >= FINDS_MAX {
                debug!(%layer, "too many look-ups");
                return;
            }
            let query = self.swarm.behaviour_mut().get_providers(RecordKey::from(name.to_vec()));
            self.finds.insert(query, Find { found: found.clone(), called: 0 });
        }
    }

    /// All connections are made anew, by those who still may.
    fn renew(&mut self, names: Names) {
        if names != self.names {
            let layers: Vec<Digest> = self.schedule.layers().copied().collect();
            layers.iter().for_each(|layer| self.untell(layer));
            self.names = names;
            let now = self.now();
            self.schedule.all(now);
        }
        let connected: Vec<Libp2pId> = self.swarm.connected_peers().copied().collect();
        for peer in connected {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let greeter = Arc::clone(&self.greeter);
        let admits = |peer: &PeerId| greeter.admits(peer);
        self.swarm.behaviour_mut().store_mut().retain_nodes(admits);
        self.links.forget(|peer| !admits(peer));
        let mut out = Vec::new();
        for bucket in self.swarm.behaviour_mut().kbuckets() {
            let ids = bucket.iter().map(|entry| *entry.node.key.preimage()).collect::<Vec<_>>();
            out.extend(ids.into_iter().filter(|id| !node_of(id).is_some_and(|node| admits(&node))));
        }
        for peer in out {
            self.swarm.behaviour_mut().remove_peer(&peer);
        }
        self.began = None;
    }

    fn on_event(&mut self, event: SwarmEvent<kad::Event>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_kademlia(event),
            SwarmEvent::ConnectionEstablished { peer_id, .. } => self.on_connected(peer_id),
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                debug!(peer = ?peer_id, "not reached: {error}");
                let Some(peer) = peer_id else { return };
                self.awaited.remove(&peer);
                if !self.swarm.is_connected(&peer) {
                    // It makes itself known again when it is back.
                    self.swarm.behaviour_mut().remove_peer(&peer);
                }
            }
            SwarmEvent::IncomingConnectionError { send_back_addr, error, .. } => {
                debug!(from = %send_back_addr, "not let in: {error}");
            }
            SwarmEvent::ListenerClosed { reason, .. } => {
                info!(?reason, "the DHT answers no more calls");
            }
            _ => {}
        }
    }

    fn on_connected(&mut self, id: Libp2pId) {
        let known = node_of(&id).and_then(|node| self.links.get(&node));
        let waiting = self.awaited.remove(&id).unwrap_or_default();
        let Some(known) = known else { return };
        if !self.greeter.admits(&known.peer) {
            // It was greeted just before the rules have changed.
            let _ = self.swarm.disconnect_peer_id(id);
            return;
        }
        if let Some(tunnels) = known.tunnels {
            for found in waiting {
                let _ = found.try_send(Holder { peer: known.peer, tunnels });
            }
        }
        if let Some(control) = known.control {
            let first = !self.knows_anybody();
            self.swarm.behaviour_mut().add_address(&id, multiaddr(control));
            if first {
                info!(peer = %known.peer, address = %control, "in the DHT");
                let now = self.now();
                self.schedule.all(now);
            }
        }
    }

    fn on_kademlia(&mut self, event: kad::Event) {
        match event {
            kad::Event::InboundRequest {
                request: InboundRequest::AddProvider { record: Some(record) },
            } => self.on_told(&record),
            kad::Event::OutboundQueryProgressed { id, result, step, .. } => {
                if let QueryResult::GetProviders(Ok(GetProvidersOk::FoundProviders {
                    providers,
                    ..
                })) = result
                {
                    self.on_found(id, providers);
                }
                if step.last {
                    self.finds.remove(&id);
                    self.tells.remove(&id);
                }
            }
            _ => {}
        }
    }

    /// A node told that it has a layer: kept with the address at which it was met
    /// itself, whatever it says.
    fn on_told(&mut self, record: &kad::ProviderRecord) {
        let Some(name) = records::key(&record.key) else { return };
        let known = node_of(&record.provider).and_then(|node| self.links.get(&node));
        let Some((known, control)) = known.and_then(|known| Some((known, known.control?))) else {
            return;
        };
        let address = multiaddr(control);
        let kept =
            self.swarm.behaviour_mut().store_mut().keep(name, known.peer, address, Instant::now());
        if !kept {
            debug!(peer = %known.peer, "its record is one too many");
        }
    }

    /// Nodes are said to have a layer. Each is reached before it counts.
    fn on_found(&mut self, query: QueryId, providers: HashSet<Libp2pId>) {
        let me = *self.swarm.local_peer_id();
        for provider in providers.into_iter().filter(|provider| *provider != me) {
            let Some(node) = node_of(&provider).filter(|node| self.greeter.admits(node)) else {
                continue;
            };
            let Some(find) = self.finds.get_mut(&query) else { return };
            if find.called >= HOLDERS_MAX {
                return;
            }
            find.called += 1;
            let known = self.links.get(&node).filter(|known| known.connected);
            if let Some(known) = known {
                if let Some(tunnels) = known.tunnels {
                    let _ = find.found.try_send(Holder { peer: node, tunnels });
                }
                continue;
            }
            if self.awaited.len() >= CALLS_MAX && !self.awaited.contains_key(&provider) {
                debug!(peer = %node, "too many nodes to call");
                continue;
            }
            let waiting = self.awaited.entry(provider).or_default();
            waiting.push(find.found.clone());
            if waiting.len() > 1 {
                continue;
            }
            // Where it is, the query knows as long as it runs.
            let addresses: Vec<Multiaddr> = self
                .links
                .get(&node)
                .and_then(|known| known.control)
                .map(multiaddr)
                .into_iter()
                .collect();
            let options = DialOpts::peer_id(provider)
                .condition(PeerCondition::Disconnected)
                .addresses(addresses)
                .extend_addresses_through_behaviour()
                .build();
            if let Err(error) = self.swarm.dial(options) {
                debug!(peer = %node, "not called: {error}");
                self.awaited.remove(&provider);
            }
        }
    }
}

fn kademlia(id: Libp2pId, serves: bool) -> kad::Behaviour<Records> {
    let mut config = kad::Config::new(PROTOCOL);
    config
        .disjoint_query_paths(true)
        .set_query_timeout(QUERY)
        .set_replication_factor(NonZeroUsize::new(REPLICAS).expect("not 0"))
        .set_max_packet_size(MESSAGE_MAX)
        .set_record_filtering(StoreInserts::FilterBoth)
        .set_kbucket_inserts(BucketInserts::Manual)
        .set_caching(kad::Caching::Disabled)
        // What is told again, and when, says `schedule`.
        .set_provider_publication_interval(None)
        .set_publication_interval(None)
        .set_replication_interval(None)
        .set_provider_record_ttl(Some(LIFETIME))
        .set_periodic_bootstrap_interval(Some(REFRESH));
    let mut kademlia = kad::Behaviour::with_config(id, Records::new(id), config);
    kademlia.set_mode(Some(if serves { Mode::Server } else { Mode::Client }));
    kademlia
}
