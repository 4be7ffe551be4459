//! Neighbours that are found by multicast.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::warn;

use crate::fetch::Engine;
use crate::fetch::tunnel::Target;
use crate::identity::{NodeKey, SwarmKeys};
use crate::swarm::beacon::BeaconKey;
use crate::swarm::multicast::{self, Caller, Found};

/// UDP port of the beacons.
const PORT: u16 = 7402;
/// Nodes that were heard and are not called yet.
const FOUND_MAX: usize = 256;

/// Beacons of one node, until this is dropped.
pub(super) struct Beacons(JoinHandle<()>);

impl Beacons {
    /// Calls into the LAN for a node that listens at `listen`, and gives the engine
    /// whom it hears. `None` where nobody in a LAN could call back.
    pub(super) fn start(
        node: &NodeKey,
        keys: &SwarmKeys,
        listen: SocketAddr,
        engine: &Arc<Engine>,
    ) -> Option<Self> {
        let from = from(listen.ip())?;
        let keys = keys.iter().map(|key| BeaconKey::new(key.secret())).collect();
        let caller = Caller {
            node: node.signing_key().clone(),
            keys,
            tunnels: listen.port(),
            port: PORT,
            from,
        };
        let (sender, mut found) = mpsc::channel(FOUND_MAX);
        let engine: Weak<Engine> = Arc::downgrade(engine);
        let calling = async move {
            let meet = async {
                while let Some(Found { peer, address }) = found.recv().await {
                    let Some(engine) = engine.upgrade() else { return };
                    engine.meet(Target { peer: Some(peer), address: address.into() });
                }
            };
            let running = multicast::run(caller, sender);
            tokio::select! {
                ended = running => if let Err(error) = ended {
                    warn!("neighbours are not looked for by multicast, UDP port {PORT}: {error}");
                },
                () = meet => {}
            }
        };
        Some(Self(tokio::spawn(calling)))
    }
}

impl Drop for Beacons {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The address that beacons may come from: a node that listens at one address can
/// be called there only. `None`: at none that another machine could call.
fn from(listen: IpAddr) -> Option<Option<Ipv4Addr>> {
    match listen {
        ip if ip.is_loopback() => None,
        ip if ip.is_unspecified() => Some(None),
        IpAddr::V4(ip) => Some(Some(ip)),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beacons_come_from_where_the_node_can_be_called() {
        let of = |text: &str| from(text.parse().expect("address"));
        assert_eq!(of("0.0.0.0"), Some(None));
        assert_eq!(of("::"), Some(None));
        assert_eq!(of("10.1.0.2"), Some(Some(Ipv4Addr::new(10, 1, 0, 2))));
        assert_eq!(of("127.0.0.1"), None);
        assert_eq!(of("fd00::1"), None);
    }
}
