//! The node among its peers: who is let in, where it listens, whom it calls.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, Weak};
use std::time::{Duration, SystemTime};

use tracing::{info, warn};

use super::{Node, Role};
use crate::config::{Config, Network, PeerAddress, SwarmConfig};
use crate::fetch::tunnel::{BindError, Endpoint, Events, Near, Settings, Target, UploadLimits};
use crate::fetch::{Engine, StoreServer};
use crate::identity::{Door, Membership, NodeKey, Revoked, RevokedError, SwarmKeyError, SwarmKeys};

/// Key files, the lists of revoked nodes and the addresses of this machine are
/// looked at again after this long.
const LOOK: Duration = Duration::from_secs(5);
/// Names of peers are looked up again after so many looks.
const LOOKS_TO_RESOLVE: u32 = 12;
/// Addresses that one name may stand for.
const ADDRESSES_MAX: usize = 8;

/// Why a node does not take part in its swarm.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    /// The keys can't be used.
    #[error("{file}: {error}", file = .file.display())]
    Keys {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        error: SwarmKeyError,
    },
    /// The list of revoked nodes can't be used: whoever is on it would be let in.
    #[error("{file}: {error}", file = .file.display())]
    Revoked {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        error: RevokedError,
    },
    /// The port can't be had.
    #[error("swarm.listen: {0}")]
    Bind(#[from] BindError),
}

/// A node's part in the swarm.
pub(super) struct Swarm {
    endpoint: Arc<Endpoint>,
    config: SwarmConfig,
    lan: Arc<Lan>,
    /// Addresses that are called.
    called: HashSet<SocketAddr>,
    seen: Files,
}

/// When the files were last changed.
#[derive(Clone, Default, PartialEq, Eq)]
struct Files([Option<SystemTime>; 2]);

impl Files {
    fn of(config: &SwarmConfig) -> Self {
        let changed = |path: &Option<PathBuf>| {
            std::fs::metadata(path.as_ref()?).and_then(|meta| meta.modified()).ok()
        };
        Self([changed(&config.key_file), changed(&config.revoked_file)])
    }
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
        engine: &Engine,
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
        say_who_is_trusted(swarm, &membership);
        let lan = Arc::new(Lan::new(&swarm.lan));
        let (endpoint, events) = bind(config, role, key, membership, Arc::new(server), &lan)?;
        info!(node = %key.peer_id(), listen = %endpoint.address(), "in the swarm");
        let endpoint = Arc::new(endpoint);
        engine.join(Arc::clone(&endpoint), events);
        let mut joined =
            Self { endpoint, config: swarm.clone(), lan, called: HashSet::new(), seen };
        joined.call(engine, &addresses);
        Ok(Some(joined))
    }

    /// This node's name in the swarm, and where it listens.
    pub(super) fn me(&self) -> (crate::types::PeerId, SocketAddr) {
        (self.endpoint.me(), self.endpoint.address())
    }

    fn call(&mut self, engine: &Engine, addresses: &[(SocketAddr, PeerAddress)]) {
        for (address, named) in addresses {
            if self.called.insert(*address) {
                engine.dial(Target { peer: named.peer, address: *address });
            }
        }
    }

    /// Looks at the files and at this machine's addresses again.
    async fn look(&mut self, engine: &Engine, names: bool) {
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
                }
                self.endpoint.set_membership(membership);
            }
            // Those of before stay valid: a file may be half written.
            Err(error) if seen != self.seen => warn!("not changed: {error}"),
            Err(_) => {}
        }
        self.seen = seen;
        self.call(engine, &addresses);
    }
}

/// Looks after the swarm as long as there is a node.
pub(super) async fn look_after(node: Weak<Node>, mut swarm: Swarm) {
    let by_name = swarm.config.peers.iter().any(|peer| peer.host.parse::<IpAddr>().is_err());
    for look in 1u32.. {
        tokio::time::sleep(LOOK).await;
        let Some(node) = node.upgrade() else { return };
        swarm.look(&node.engine, by_name && look % LOOKS_TO_RESOLVE == 0).await;
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
    // What first passes hand on is not served yet.
    settings.features = crate::wire::Features::ZSTD;
    match Endpoint::bind(settings.clone(), key, membership.clone(), Arc::clone(&server) as _) {
        Err(error @ BindError::Listen { .. }) if role == Role::Started => {
            info!("{error}; peers can be called, and can't call");
            settings.listen.set_port(0);
            Ok(Endpoint::bind(settings, key, membership, server)?)
        }
        bound => Ok(bound?),
    }
}

fn membership(
    config: &SwarmConfig,
    peers: &[(SocketAddr, PeerAddress)],
) -> Result<Membership, SwarmError> {
    let revoked = match &config.revoked_file {
        Some(file) => Revoked::load(file)
            .map_err(|error| SwarmError::Revoked { file: file.clone(), error })?,
        None => Revoked::default(),
    };
    let door = match &config.key_file {
        Some(file) => Door::Closed(keys(file)?),
        None if config.open => Door::Open,
        None => {
            Door::Configured(peers.iter().map(|(address, _)| address.ip().to_canonical()).collect())
        }
    };
    Ok(Membership::new(door, revoked))
}

fn keys(file: &Path) -> Result<SwarmKeys, SwarmError> {
    SwarmKeys::load(file).map_err(|error| SwarmError::Keys { file: file.to_owned(), error })
}

fn say_who_is_trusted(config: &SwarmConfig, membership: &Membership) {
    match membership.keys() {
        Some(keys) => info!(keys = keys.iter().len(), "the swarm is closed"),
        None if config.open => {
            warn!("the swarm is open: whoever reaches the port takes part in it");
        }
        None => warn!(
            "no swarm key: only loopback and the addresses in swarm.peers are trusted; \
             `peersync swarm-key new FILE` makes a key"
        ),
    }
}

/// The addresses of configured peers. Names that can't be looked up are left out.
async fn resolve(peers: &[PeerAddress]) -> Vec<(SocketAddr, PeerAddress)> {
    let mut found = Vec::new();
    for peer in peers {
        match tokio::net::lookup_host((peer.host.as_str(), peer.port)).await {
            Ok(addresses) => {
                found.extend(addresses.take(ADDRESSES_MAX).map(|at| (at, peer.clone())));
            }
            Err(error) => warn!(%peer, "not found: {error}"),
        }
    }
    found
}

/// Which addresses are in this node's LAN: loopback, the networks of its own
/// addresses, and those that are configured.
struct Lan {
    configured: Vec<Network>,
    own: RwLock<Vec<Network>>,
}

impl Lan {
    fn new(configured: &[Network]) -> Self {
        let lan = Self { configured: configured.to_vec(), own: RwLock::default() };
        lan.look();
        lan
    }

    fn near(&self, address: IpAddr) -> Near {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let mut networks = self.configured.iter().chain(own.iter());
        if address.to_canonical().is_loopback() || networks.any(|net| net.contains(address)) {
            Near::Lan
        } else {
            Near::Remote
        }
    }

    /// A node can come to another network while it runs.
    fn look(&self) {
        match own_networks() {
            Ok(networks) => {
                *self.own.write().unwrap_or_else(PoisonError::into_inner) = networks;
            }
            Err(error) => warn!("this machine's networks are not known: {error}"),
        }
    }
}

fn own_networks() -> nix::Result<Vec<Network>> {
    let networks = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = ip(&interface.address?)?;
        let bits = match ip(&interface.netmask?)? {
            IpAddr::V4(mask) => mask.to_bits().leading_ones(),
            IpAddr::V6(mask) => mask.to_bits().leading_ones(),
        };
        // A mask of nothing would make the whole world a LAN.
        let bits = u8::try_from(bits).ok().filter(|bits| *bits > 0)?;
        Some(Network::new(address, bits))
    });
    Ok(networks.collect())
}

fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> SwarmConfig {
        Config::parse(text, "test", []).expect("valid").swarm
    }

    #[test]
    fn loopback_own_and_configured_networks_are_near() {
        let lan = Lan::new(&["10.250.0.0/16".parse().expect("network")]);
        let near = |text: &str| lan.near(text.parse().expect("address"));
        assert_eq!(near("127.0.0.1"), Near::Lan);
        assert_eq!(near("10.250.3.4"), Near::Lan);
        assert_eq!(near("203.0.113.9"), Near::Remote);
        assert!(
            own_networks()
                .expect("interfaces")
                .iter()
                .any(|net| { net.contains("127.0.0.1".parse().expect("address")) })
        );
    }

    #[test]
    fn a_file_that_cant_be_used_keeps_the_node_out() {
        let dir = tempfile::tempdir().expect("directory");
        let file = dir.path().join("file");
        let keyed = config(&format!("[swarm]\nkey_file = {file:?}"));
        assert!(matches!(membership(&keyed, &[]), Err(SwarmError::Keys { .. })));
        let listed = config(&format!("[swarm]\nopen = true\nrevoked_file = {file:?}"));
        assert!(matches!(membership(&listed, &[]), Err(SwarmError::Revoked { .. })));
        std::fs::write(&file, "not a name\n").expect("written");
        assert!(matches!(membership(&listed, &[]), Err(SwarmError::Revoked { .. })));
    }

    #[tokio::test]
    async fn without_a_key_the_configured_addresses_are_members() {
        let config = config("[swarm]\npeers = ['192.0.2.7:7400', '[2001:db8::1]:7400']");
        let addresses = resolve(&config.peers).await;
        let membership = membership(&config, &addresses).expect("valid");
        let peer = crate::types::PeerId([1; 32]);
        let admits =
            |text: &str| membership.admit(&peer, text.parse().expect("address"), |_| false).is_ok();
        assert!(admits("192.0.2.7") && admits("2001:db8::1") && admits("127.0.0.1"));
        assert!(!admits("192.0.2.8"));
    }
}
