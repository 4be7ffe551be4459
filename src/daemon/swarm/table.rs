//! The distributed table of who has which layer: what this node tells it, and who
//! is met because of it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tracing::{info, warn};

use super::super::Role;
use super::members::{SwarmError, resolve};
use crate::config::{PeerAddress, SwarmConfig};
use crate::fetch::tunnel::{Endpoint, Target};
use crate::fetch::{Engine, Finder};
use crate::identity::{Membership, SwarmKey};
use crate::store::Store;
use crate::swarm::address::is_dialable;
use crate::swarm::dht::{self, Dht, Holder, Names};
use crate::types::Digest;

/// A node's part in the table.
pub(super) struct Table {
    dht: Dht,
    bootstrap: Vec<PeerAddress>,
    told: HashSet<Digest>,
}

impl Table {
    /// Takes part, in a swarm with a key or in an open one, and has the engine's
    /// searches go there. `None`: in others it is not known who would be asked.
    ///
    /// # Errors
    /// [`SwarmError::Control`] where the port is named in the configuration and
    /// can't be had. The default port may be another's; the node then only asks.
    pub(super) async fn join(
        config: &SwarmConfig,
        role: Role,
        membership: &Membership,
        endpoint: &Endpoint,
        engine: &Arc<Engine>,
    ) -> Result<Option<Self>, SwarmError> {
        let Some(at) = config.control() else { return Ok(None) };
        let listener = match tokio::net::TcpListener::bind(at).await {
            Ok(listener) => Some(listener),
            Err(error) if config.control.is_none() || role == Role::Started => {
                info!(
                    "swarm.control: {at}: {error}; this node asks the DHT, and answers nothing there"
                );
                None
            }
            Err(error) => return Err(SwarmError::Control(at, error)),
        };
        let addresses = addresses(&config.bootstrap).await;
        let here = at.ip().is_loopback();
        let settings = dht::Settings {
            me: endpoint.me(),
            listener,
            names: names(membership),
            greeter: Arc::new(endpoint.controls()),
            // A node that is itself at loopback has its peers there.
            dialable: Arc::new(move |ip| is_dialable(ip) || here && ip.is_loopback()),
            bootstrap: addresses,
        };
        let dht = match Dht::start(settings) {
            Ok(dht) => dht,
            Err(error) => return Err(SwarmError::Control(at, error)),
        };
        if let Some(at) = dht.listens() {
            info!(control = %at, bootstrap = config.bootstrap.len(), "the DHT is joined");
        }
        let searcher = Searcher { dht: dht.clone(), engine: Arc::downgrade(engine) };
        engine.find_by(Arc::new(searcher));
        Ok(Some(Self { dht, bootstrap: config.bootstrap.clone(), told: HashSet::new() }))
    }

    /// The table itself.
    pub(super) fn dht(&self) -> &Dht {
        &self.dht
    }

    /// The keys, or the revoked nodes, have changed. The endpoint knows already.
    pub(super) async fn renew(&self, membership: &Membership) {
        self.dht.renew(names(membership)).await;
    }

    /// Names of nodes to begin with may stand for other addresses by now.
    pub(super) async fn resolve(&self) {
        self.dht.set_bootstrap(addresses(&self.bootstrap).await).await;
    }

    /// Tells of layers that are new in the store, and no more of those that went.
    pub(super) async fn tell(&mut self, store: &Arc<Store>) {
        let store = Arc::clone(store);
        let read = tokio::task::spawn_blocking(move || store.blobs()).await;
        let Ok(Ok(blobs)) = read else { return };
        let here: HashSet<Digest> = blobs.into_iter().map(|(blob, _)| blob).collect();
        let new: Vec<Digest> = here.difference(&self.told).copied().collect();
        let gone: Vec<Digest> = self.told.difference(&here).copied().collect();
        if !new.is_empty() {
            self.dht.provide(new).await;
        }
        if !gone.is_empty() {
            self.dht.stop_providing(gone).await;
        }
        self.told = here;
    }
}

fn names(membership: &Membership) -> Names {
    Names::new(membership.keys().into_iter().flat_map(|keys| keys.iter()).map(SwarmKey::secret))
}

async fn addresses(of: &[PeerAddress]) -> Vec<SocketAddr> {
    if of.is_empty() {
        return Vec::new();
    }
    let addresses: Vec<_> = resolve(of).await.into_iter().map(|(address, _)| address).collect();
    if addresses.is_empty() {
        warn!("none of swarm.bootstrap is found");
    }
    addresses
}

/// Finds holders in the table and opens tunnels to them.
struct Searcher {
    dht: Dht,
    engine: Weak<Engine>,
}

impl Finder for Searcher {
    fn find(&self, layer: Digest) -> Pin<Box<dyn Future<Output = bool> + Send>> {
        let (dht, engine) = (self.dht.clone(), Weak::clone(&self.engine));
        Box::pin(async move {
            let mut holders = dht.find(layer).await;
            let mut meetings = FuturesUnordered::new();
            let mut looking = true;
            loop {
                tokio::select! {
                    holder = holders.recv(), if looking => match holder {
                        Some(Holder { peer, tunnels }) => {
                            let Some(engine) = engine.upgrade() else { return false };
                            let target = Target { peer: Some(peer), address: tunnels };
                            // It goes on when this search has ended.
                            meetings.push(tokio::spawn(async move { engine.reach(target).await }));
                        }
                        None => looking = false,
                    },
                    Some(met) = meetings.next() => if met.unwrap_or(false) {
                        return true;
                    },
                    else => return false,
                }
            }
        })
    }
}
