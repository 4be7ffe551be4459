//! Who is let in, by the files and addresses of the configuration.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use tracing::{info, warn};

use crate::config::{PeerAddress, SwarmConfig};
use crate::fetch::tunnel::BindError;
use crate::identity::{Door, Membership, Revoked, RevokedError, SwarmKeyError, SwarmKeys};

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
    /// The port of the control plane can't be had.
    #[error("swarm.control: listening at {0}: {1}")]
    Control(SocketAddr, std::io::Error),
}

/// When the files were last changed.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Files([Option<SystemTime>; 2]);

impl Files {
    pub(super) fn of(config: &SwarmConfig) -> Self {
        let changed = |path: &Option<PathBuf>| {
            std::fs::metadata(path.as_ref()?).and_then(|meta| meta.modified()).ok()
        };
        Self([changed(&config.key_file), changed(&config.revoked_file)])
    }
}

pub(super) fn membership(
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

pub(super) fn keys(file: &Path) -> Result<SwarmKeys, SwarmError> {
    SwarmKeys::load(file).map_err(|error| SwarmError::Keys { file: file.to_owned(), error })
}

pub(super) fn say_who_is_trusted(config: &SwarmConfig, membership: &Membership) {
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
pub(super) async fn resolve(peers: &[PeerAddress]) -> Vec<(SocketAddr, PeerAddress)> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn config(text: &str) -> SwarmConfig {
        Config::parse(text, "test", []).expect("valid").swarm
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
