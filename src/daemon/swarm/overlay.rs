//! Keeps tunnels to good nodes beyond the LAN: carries what is known of nodes to
//! the overlay's machine, and does what it says.

use std::collections::HashSet;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::debug;

use crate::fetch::tunnel::{Endpoint, Near, Target};
use crate::fetch::{Engine, PeerStatus};
use crate::swarm::dht::Dht;
use crate::swarm::overlay::{Action, Input, Overlay, Source};
use crate::types::PeerId;
use crate::wire::Refusal;

/// How often is looked at who is there.
const TICK: Duration = Duration::from_secs(1);
/// A peer that brought this much since it was looked at last has been measured.
const MEASURED: u64 = 1 << 20;

/// The overlay of one node, until this is dropped.
pub(super) struct Neighbourhood(JoinHandle<()>);

impl Neighbourhood {
    /// Runs as long as there is an engine.
    pub(super) fn start(endpoint: &Arc<Endpoint>, engine: &Arc<Engine>, dht: Dht) -> Self {
        let me = endpoint.me();
        let mut seed = [0; 8];
        seed.copy_from_slice(&me.0[..8]);
        let (failed, failures) = mpsc::channel(64);
        let driver = Driver {
            machine: Overlay::new(me, u64::from_le_bytes(seed)),
            engine: Arc::downgrade(engine),
            endpoint: Arc::downgrade(endpoint),
            dht,
            there: HashSet::new(),
            failed,
            started: Instant::now(),
        };
        Self(tokio::spawn(driver.run(failures)))
    }
}

impl Drop for Neighbourhood {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Driver {
    machine: Overlay,
    engine: Weak<Engine>,
    endpoint: Weak<Endpoint>,
    dht: Dht,
    /// Who had a tunnel when it was looked last.
    there: HashSet<PeerId>,
    failed: mpsc::Sender<PeerId>,
    started: Instant,
}

impl Driver {
    async fn run(mut self, mut failures: mpsc::Receiver<PeerId>) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    let Some(engine) = self.engine.upgrade() else { return };
                    self.look(&engine);
                }
                Some(peer) = failures.recv() => self.tell(Input::Failed(peer)),
            }
        }
    }

    fn look(&mut self, engine: &Arc<Engine>) {
        let peers = engine.peers();
        let there: HashSet<PeerId> = peers.iter().map(|peer| peer.id).collect();
        let gone: Vec<PeerId> = self.there.difference(&there).copied().collect();
        gone.into_iter().for_each(|peer| self.tell(Input::Down(peer)));
        for peer in &peers {
            let near = peer.near == Near::Lan;
            self.tell(Input::Up { peer: peer.id, address: peer.address, near });
            if let Some(speed) = measured(peer) {
                self.tell(Input::Measured(peer.id, speed));
            }
        }
        self.there = there;
        for known in self.dht.known() {
            if let Some(address) = known.tunnels {
                let source = Source::Table;
                self.tell(Input::Named { source, peer: known.peer, address });
            }
        }
        let now = self.started.elapsed();
        let actions = self.machine.tick(now);
        self.act(actions);
    }

    fn tell(&mut self, input: Input) {
        let now = self.started.elapsed();
        let actions = self.machine.apply(now, input);
        self.act(actions);
    }

    fn act(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Probe(peer, address) => {
                    let Some(engine) = self.engine.upgrade() else { return };
                    let failed = self.failed.clone();
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
                // The table knows neighbours' neighbours.
                Action::Ask(_) => {}
            }
        }
    }
}

/// A peer's speed, where it has shown one.
fn measured(peer: &PeerStatus) -> Option<f64> {
    (peer.received >= MEASURED).then_some(peer.standing?.speed)
}
