//! The node among its peers: where it listens, whom it calls, how it finds them.
//!
//! - `members`: who is let in, by the configuration's files and addresses;
//! - `lan`: which addresses are near;
//! - `beacons`: neighbours that are found by multicast;
//! - `control`: elections, trackers and popularity, with `own`, what this node holds,
//!   and `view`, what reports and other parts of the node see of it;
//! - `table`: holders of layers, wherever they are, that are found by the DHT;
//! - `overlay`: good nodes beyond the LAN that tunnels are kept to;
//! - `memory`: those that were good before, by the network that `place` says this is.

mod beacons;
mod control;
mod lan;
mod members;
mod memory;
mod overlay;
mod own;
pub(super) mod place;
mod table;
mod view;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tracing::{info, warn};

use self::beacons::Beacons;
use self::lan::Lan;
pub(super) use self::members::SwarmError;
use self::members::{Files, membership, resolve, say_who_is_trusted};
pub(super) use self::memory::Memory;
use self::overlay::Neighbourhood;
use self::table::Table;
use self::view::View;
use super::{Node, Role};
use crate::config::{Config, PeerAddress, SwarmConfig};
use crate::fetch::tunnel::{BindError, Endpoint, Events, Settings, Target, UploadLimits};
use crate::fetch::{Engine, StoreServer};
use crate::identity::{Membership, NodeKey};
use crate::types::PeerId;

/// Key files, the lists of revoked nodes and the addresses of this machine are
/// looked at again after this long.
const LOOK: Duration = Duration::from_secs(5);
/// Neighbours have answered the first beacon, and tunnels are open, after this long.
const FIRST_ANSWERS: Duration = Duration::from_millis(400);
/// Names of peers are looked up again after so many looks.
const LOOKS_TO_RESOLVE: u32 = 12;

/// A node's part in the swarm.
pub(super) struct Swarm {
    endpoint: Arc<Endpoint>,
    config: SwarmConfig,
    lan: Arc<Lan>,
    /// Addresses that are called.
    called: HashSet<SocketAddr>,
    seen: Files,
    key: NodeKey,
    /// Neighbours that call into the LAN, in a swarm with a key.
    beacons: Option<Beacons>,
    table: Option<Table>,
    neighbourhood: Option<Neighbourhood>,
    view: Arc<View>,
}

/// A node's part in the swarm, as the rest of the node sees it.
pub(super) struct Joined {
    /// The node's name.
    pub(super) id: PeerId,
    /// Where it listens.
    pub(super) listen: SocketAddr,
    /// Trackers and popularity.
    pub(super) view: Arc<View>,
}

impl Swarm {
    /// Listens, and gives the engine its tunnels. `None`: the node is alone.
    ///
    /// # Errors
    /// [`SwarmError`].
    pub(super) async fn join(
        config: &Config,
        role: Role,
        key: &NodeKey,
        server: StoreServer,
        engine: &Arc<Engine>,
        memory: &Arc<Memory>,
    ) -> Result<Option<Self>, SwarmError> {
        let swarm = &config.swarm;
        if !swarm.is_on() {
            if role == Role::Daemon {
                info!(
                    "no swarm: neither swarm.key_file nor swarm.peers is set, so content comes \
                     from registries only; `peersync swarm-key new FILE` makes a key"
                );
            }
            return Ok(None);
        }
        let seen = Files::of(swarm);
        let addresses = resolve(&swarm.peers).await;
        let membership = membership(swarm, &addresses)?;
        let trusted = membership.clone();
        say_who_is_trusted(swarm, &membership);
        let lan = Arc::new(Lan::new(&swarm.lan));
        let (endpoint, events) = bind(config, role, key, membership, Arc::new(server), &lan)?;
        info!(node = %key.peer_id(), listen = %endpoint.address(), "in the swarm");
        let endpoint = Arc::new(endpoint);
        engine.join(Arc::clone(&endpoint), events);
        let mut joined = Self {
            endpoint,
            config: swarm.clone(),
            lan,
            called: HashSet::new(),
            seen,
            key: key.clone(),
            beacons: None,
            table: None,
            neighbourhood: None,
            view: Arc::default(),
        };
        joined.call(engine, &addresses);
        joined.beacon(engine, &trusted);
        if joined.beacons.is_some() {
            engine.expect_peers(FIRST_ANSWERS);
        }
        joined.table = Table::join(swarm, role, &trusted, &joined.endpoint, engine).await?;
        joined.neighbourhood = joined.table.as_ref().map(|table| {
            let view = &joined.view;
            Neighbourhood::start(&joined.endpoint, engine, table.dht().clone(), memory, view)
        });
        Ok(Some(joined))
    }

    /// What others may see of it.
    pub(super) fn joined(&self) -> Joined {
        let (id, listen) = (self.endpoint.me(), self.endpoint.address());
        Joined { id, listen, view: Arc::clone(&self.view) }
    }

    /// Takes part from now on, as long as there is a node.
    pub(super) fn take_part(self, node: &Arc<Node>) {
        let ears = self.neighbourhood.as_ref().map(Neighbourhood::ears);
        let view = Arc::clone(&self.view);
        let first = node.memory.begin_life();
        let part = control::run(Arc::downgrade(node), self.key.clone(), first, view, ears);
        node.runtime.spawn(part);
        node.runtime.spawn(look_after(Arc::downgrade(node), self));
    }

    fn call(&mut self, engine: &Engine, addresses: &[(SocketAddr, PeerAddress)]) {
        for (address, named) in addresses {
            if self.called.insert(*address) {
                engine.dial(Target { peer: named.peer, address: *address });
            }
        }
    }

    /// Calls into the LAN, and calls who is heard there, by the keys as they are now.
    fn beacon(&mut self, engine: &Arc<Engine>, membership: &Membership) {
        // What called by the old keys ends first: it has the port.
        self.beacons = None;
        let keys = membership.keys().filter(|_| self.config.lan_multicast);
        let at = self.endpoint.address();
        self.beacons = keys.and_then(|keys| Beacons::start(&self.key, keys, at, engine));
    }

    /// Looks at the files and at this machine's addresses again.
    async fn look(&mut self, engine: &Arc<Engine>, names: bool) {
        self.lan.look();
        let seen = Files::of(&self.config);
        if seen == self.seen && !names {
            return;
        }
        let addresses = resolve(&self.config.peers).await;
        match membership(&self.config, &addresses) {
            Ok(membership) => {
                if seen != self.seen {
                    info!("the swarm's keys or the revoked nodes have changed");
                    self.beacon(engine, &membership);
                }
                self.endpoint.set_membership(membership.clone());
                if let Some(table) = self.table.as_ref().filter(|_| seen != self.seen) {
                    table.renew(&membership).await;
                }
            }
            // Those of before stay valid: a file may be half written.
            Err(error) if seen != self.seen => warn!("not changed: {error}"),
            Err(_) => {}
        }
        self.seen = seen;
        self.call(engine, &addresses);
    }
}

/// Looks after files, addresses, beacons and the table as long as there is a node.
async fn look_after(node: Weak<Node>, mut swarm: Swarm) {
    let named =
        |peers: &[PeerAddress]| peers.iter().any(|peer| peer.host.parse::<IpAddr>().is_err());
    let (peers, bootstrap) = (named(&swarm.config.peers), named(&swarm.config.bootstrap));
    for look in 1u32.. {
        let Some(node) = node.upgrade() else { return };
        let again = look.is_multiple_of(LOOKS_TO_RESOLVE);
        swarm.look(&node.engine, peers && again).await;
        if let Some(table) = &mut swarm.table {
            table.tell(&node.store).await;
            if bootstrap && again {
                table.resolve().await;
            }
        }
        drop(node);
        tokio::time::sleep(LOOK).await;
    }
}

/// Binds the port of the configuration; where it is taken, a free one, so that
/// this node can at least call others.
fn bind(
    config: &Config,
    role: Role,
    key: &NodeKey,
    membership: Membership,
    server: Arc<StoreServer>,
    lan: &Arc<Lan>,
) -> Result<(Endpoint, Events), SwarmError> {
    let limits = &config.limits;
    let lan = Arc::clone(lan);
    let mut settings = Settings {
        listen: config.swarm.listen.unwrap_or(SwarmConfig::LISTEN),
        near: Arc::new(move |address| lan.near(address)),
        upload: UploadLimits {
            total: limits.upload.per_second(),
            background: limits.background.per_second(),
        },
        download: limits.download.per_second(),
        ..Settings::default()
    };
    match Endpoint::bind(settings.clone(), key, membership.clone(), Arc::clone(&server) as _) {
        Err(error @ BindError::Listen { .. }) if role == Role::Started => {
            info!("{error}; peers can be called, and can't call");
            settings.listen.set_port(0);
            Ok(Endpoint::bind(settings, key, membership, server)?)
        }
        bound => Ok(bound?),
    }
}
