//! Keeps tunnels to good nodes beyond the LAN: carries what is known of nodes to
//! the overlay's machine, does what it says, and remembers who was good.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use super::memory::Memory;
use super::place;
use super::view::View;
use crate::fetch::tunnel::{Endpoint, Near, Target};
use crate::fetch::{Engine, PeerStatus};
use crate::swarm::address::is_believable;
use crate::swarm::dht::Dht;
use crate::swarm::history::Remembered;
use crate::swarm::overlay::{Action, Input, Overlay, PER_SOURCE_MAX, Source};
use crate::types::PeerId;
use crate::wire::{Control, Message, Refusal};

/// How often is looked at who is there,
const TICK: Duration = Duration::from_secs(1);
/// and at which network this is, and who is to be remembered.
const LOOK: Duration = Duration::from_secs(5);
/// A neighbour is remembered after this long.
const GOOD: Duration = Duration::from_secs(10);
/// What changed of remembered nodes is written this often; new ones at once.
const SAVE: Duration = Duration::from_secs(300);
/// A peer that brought this much has been measured.
const MEASURED: u64 = 1 << 20;
/// What neighbours said and was not looked at yet.
const HEARD_MAX: usize = 64;
/// Remembered nodes by which the table is entered.
const ENTRIES_MAX: usize = 8;

/// What a neighbour says about others.
pub(super) enum Heard {
    /// It asks for some.
    WhoElse(PeerId),
    /// It names some.
    Others {
        /// Who,
        by: PeerId,
        /// from where.
        at: IpAddr,
        /// Whom, and where.
        nodes: Vec<(PeerId, SocketAddr)>,
    },
}

/// The overlay of one node, until this is dropped.
pub(super) struct Neighbourhood {
    task: JoinHandle<()>,
    heard: mpsc::Sender<Heard>,
}

impl Neighbourhood {
    /// Runs as long as there is an engine.
    pub(super) fn start(
        endpoint: &Arc<Endpoint>,
        engine: &Arc<Engine>,
        dht: Dht,
        memory: &Arc<Memory>,
        view: &Arc<View>,
    ) -> Self {
        let me = endpoint.me();
        let mut seed = [0; 8];
        seed.copy_from_slice(&me.0[..8]);
        let (failed, failures) = mpsc::channel(64);
        let (heard, hearing) = mpsc::channel(HEARD_MAX);
        let now = Instant::now();
        let driver = Driver {
            machine: Overlay::new(me, u64::from_le_bytes(seed)),
            engine: Arc::downgrade(engine),
            endpoint: Arc::downgrade(endpoint),
            dht,
            memory: Arc::clone(memory),
            view: Arc::clone(view),
            network: String::new(),
            there: HashMap::new(),
            failed,
            started: now,
            looked: None,
            saved: now,
        };
        Self { task: tokio::spawn(driver.run(failures, hearing)), heard }
    }

    /// Where what neighbours say is to be told.
    pub(super) fn ears(&self) -> mpsc::Sender<Heard> {
        self.heard.clone()
    }
}

impl Drop for Neighbourhood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver {
    machine: Overlay,
    engine: Weak<Engine>,
    endpoint: Weak<Endpoint>,
    dht: Dht,
    memory: Arc<Memory>,
    view: Arc<View>,
    /// Where this node is.
    network: String,
    /// Who had a tunnel when it was looked last, and bytes that had come from it and
    /// gone to it.
    there: HashMap<PeerId, [u64; 2]>,
    failed: mpsc::Sender<PeerId>,
    started: Instant,
    looked: Option<Instant>,
    saved: Instant,
}

impl Driver {
    async fn run(
        mut self,
        mut failures: mpsc::Receiver<PeerId>,
        mut hearing: mpsc::Receiver<Heard>,
    ) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let Some(engine) = self.engine.upgrade() else { return };
                    self.look(&engine);
                    if self.looked.is_none_or(|at| at.elapsed() >= LOOK) {
                        self.looked = Some(Instant::now());
                        self.look_around(&engine).await;
                    }
                }
                Some(peer) = failures.recv() => {
                    self.memory.failed(&self.network, &peer);
                    self.tell(Input::Failed(peer));
                }
                Some(heard) = hearing.recv() => {
                    let Some(engine) = self.engine.upgrade() else { return };
                    self.hear(heard, &engine);
                }
            }
        }
    }

    fn look(&mut self, engine: &Arc<Engine>) {
        for peer in engine.dismissals() {
            self.tell(Input::Dismissed(peer));
            self.there.remove(&peer);
        }
        let peers = engine.peers();
        let there: HashMap<PeerId, [u64; 2]> =
            peers.iter().map(|peer| (peer.id, [peer.received, peer.sent])).collect();
        let tied = self.view.tied().clone();
        let gone = self.there.keys().filter(|peer| !there.contains_key(peer));
        let gone: Vec<PeerId> = gone.copied().collect();
        gone.into_iter().for_each(|peer| self.tell(Input::Down(peer)));
        for peer in &peers {
            let near = peer.near == Near::Lan;
            let kept = tied.contains(&peer.id);
            self.tell(Input::Up { peer: peer.id, address: peer.address, near, kept });
            let [received, sent] = self.there.get(&peer.id).copied().unwrap_or_default();
            if peer.received > received || peer.sent > sent {
                self.tell(Input::Carried(peer.id));
            }
            if let Some(speed) = measured(peer).filter(|_| peer.received > received) {
                self.tell(Input::Measured(peer.id, speed));
            }
        }
        self.there = there;
        // The latest that were met, as many as the machine takes of one source.
        for known in self.dht.known().into_iter().take(PER_SOURCE_MAX) {
            if let Some(address) = known.tunnels {
                let source = Source::Table;
                self.tell(Input::Named { source, peer: known.peer, address });
            }
        }
        let now = self.started.elapsed();
        let actions = self.machine.tick(now);
        self.act(actions);
    }

    /// Looks where this node is, whom it met here before, and who is good now.
    async fn look_around(&mut self, engine: &Engine) {
        let network = place::network();
        if network != self.network {
            self.network = network;
            self.recall(engine).await;
        }
        let control: HashMap<PeerId, SocketAddr> =
            self.dht.known().iter().filter_map(|one| Some((one.peer, one.control?))).collect();
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = self.started.elapsed();
        let mut new = false;
        for neighbour in self.machine.neighbours() {
            if now < neighbour.since + GOOD {
                continue;
            }
            new |= self.memory.good(
                &self.network,
                Remembered {
                    peer: neighbour.peer,
                    tunnels: neighbour.address,
                    control: control.get(&neighbour.peer).copied(),
                    speed: neighbour.speed.map(|speed| speed as u64),
                    seen: clock.as_secs(),
                    failures: 0,
                },
            );
        }
        if new || self.saved.elapsed() >= SAVE {
            self.saved = Instant::now();
            let memory = Arc::clone(&self.memory);
            tokio::task::spawn_blocking(move || memory.save());
        }
    }

    /// The nodes that were good here are candidates, and ways into the table.
    async fn recall(&mut self, engine: &Engine) {
        let known = self.memory.of(&self.network);
        info!(network = %self.network, remembered = known.len(), "where this node is");
        let mut entries = Vec::new();
        for node in known {
            if engine.is_revoked(&node.peer) {
                self.memory.forget(&node.peer);
                continue;
            }
            entries.extend(node.control);
            let (source, peer, address) = (Source::Memory, node.peer, node.tunnels);
            self.tell(Input::Named { source, peer, address });
        }
        entries.truncate(ENTRIES_MAX);
        if !entries.is_empty() {
            self.dht.join(entries).await;
        }
    }

    fn hear(&mut self, heard: Heard, engine: &Arc<Engine>) {
        match heard {
            Heard::WhoElse(peer) => {
                // It may have come a moment ago.
                if !self.machine.knows(&peer) {
                    self.look(engine);
                }
                let now = self.started.elapsed();
                if let Some(nodes) = self.machine.tell(now, &peer) {
                    let _ = engine.tell(&peer, Message::Control(Control::Others { nodes }));
                }
            }
            Heard::Others { by, at, nodes } => {
                let source = Source::Neighbour(by);
                for (peer, address) in nodes {
                    if is_believable(address, at) && !engine.is_revoked(&peer) {
                        self.tell(Input::Named { source, peer, address });
                    }
                }
            }
        }
    }

    fn tell(&mut self, input: Input) {
        let now = self.started.elapsed();
        let actions = self.machine.apply(now, input);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        let Some(engine) = self.engine.upgrade() else { return };
        for action in actions {
            match action {
                Action::Probe(peer, address) => {
                    let (engine, failed) = (Arc::clone(&engine), self.failed.clone());
                    tokio::spawn(async move {
                        // That it is there is seen at the next look.
                        if !engine.reach(Target { peer: Some(peer), address }).await {
                            let _ = failed.send(peer).await;
                        }
                    });
                }
                Action::Drop(peer) => {
                    debug!(%peer, "there are faster neighbours");
                    if let Some(endpoint) = self.endpoint.upgrade() {
                        endpoint.close_peer(&peer, Refusal::Unneeded);
                    }
                }
                Action::Ask(peer) => {
                    // One that is too busy to hear it is asked again after a while.
                    let _ = engine.tell(&peer, Message::Control(Control::WhoElse));
                }
            }
        }
    }
}

/// A peer's speed, where it has shown one.
fn measured(peer: &PeerStatus) -> Option<f64> {
    (peer.received >= MEASURED).then_some(peer.standing?.speed)
}
