//! Who is let in.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::swarm::SwarmKeys;
use crate::types::PeerId;

/// Longest list of revoked nodes, in bytes.
const FILE_MAX: u64 = 8 << 20;

/// Whom a node takes for a member of its swarm.
#[derive(Clone, Debug)]
pub enum Door {
    /// Whoever proves one of the keys.
    Closed(SwarmKeys),
    /// Without a key: these addresses, as they are configured, and loopback.
    Configured(HashSet<IpAddr>),
    /// Anybody. Only where the operator asked for it.
    Open,
}

/// The rule of a node about others.
#[derive(Clone, Debug)]
pub struct Membership {
    door: Door,
    revoked: Revoked,
}

/// Why a peer is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// It has none of the swarm's keys, or is not at a configured address.
    #[error("not a member of the swarm")]
    NotMember,
    /// It was excluded.
    #[error("the node's membership was revoked")]
    Revoked,
}

impl Membership {
    /// Members are those at the door, without the revoked.
    pub fn new(door: Door, revoked: Revoked) -> Self {
        Self { door, revoked }
    }

    /// The keys to prove membership with.
    pub fn keys(&self) -> Option<&SwarmKeys> {
        match &self.door {
            Door::Closed(keys) => Some(keys),
            _ => None,
        }
    }

    /// Whether a node may be spoken to at all: before it has said anything.
    ///
    /// # Errors
    /// [`Denied::Revoked`].
    pub fn check_revoked(&self, peer: &PeerId) -> Result<(), Denied> {
        if self.revoked.contains(peer) { Err(Denied::Revoked) } else { Ok(()) }
    }

    /// Whether a node is of the swarm. `proves` tells whether it has proved that
    /// it has a key.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn admit(
        &self,
        peer: &PeerId,
        address: IpAddr,
        proves: impl Fn(&[u8; 32]) -> bool,
    ) -> Result<(), Denied> {
        self.check_revoked(peer)?;
        let address = address.to_canonical();
        let member = match &self.door {
            // All keys are tried whichever it is.
            Door::Closed(keys) => keys.iter().fold(false, |is, key| is | proves(key.secret())),
            Door::Configured(known) => address.is_loopback() || known.contains(&address),
            Door::Open => true,
        };
        if member { Ok(()) } else { Err(Denied::NotMember) }
    }
}

/// Nodes that were excluded from the swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked(HashSet<PeerId>);

/// Why a list of revoked nodes can't be read. A node that can't read its list
/// should not start: whoever is on it would be let in.
#[derive(Debug, thiserror::Error)]
pub enum RevokedError {
    /// The file can't be read.
    #[error("revoked nodes {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A line that is not a node's name.
    #[error("line {line} is not a node: 64 lower-case hexadecimal digits")]
    Malformed {
        /// Its number, from 1.
        line: usize,
    },
    /// Longer than such a file may be.
    #[error("the list of revoked nodes is longer than {FILE_MAX} bytes")]
    TooLong,
}

impl Revoked {
    /// Reads a list: one node a line, `#` begins a comment.
    ///
    /// # Errors
    /// [`RevokedError`].
    pub fn load(path: &Path) -> Result<Self, RevokedError> {
        let failed = |error| RevokedError::Io { path: path.to_owned(), error };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        let read = file.take(FILE_MAX + 1).read_to_string(&mut text).map_err(failed)?;
        if read as u64 > FILE_MAX { Err(RevokedError::TooLong) } else { text.parse() }
    }

    /// Whether the node is on it.
    pub fn contains(&self, peer: &PeerId) -> bool {
        self.0.contains(peer)
    }
}

impl FromIterator<PeerId> for Revoked {
    fn from_iter<I: IntoIterator<Item = PeerId>>(peers: I) -> Self {
        Self(peers.into_iter().collect())
    }
}

impl FromStr for Revoked {
    type Err = RevokedError;

    fn from_str(text: &str) -> Result<Self, RevokedError> {
        let lines = text.lines().zip(1usize..);
        let lines = lines.map(|(line, n)| (line.split('#').next().unwrap_or_default().trim(), n));
        let peers = lines.filter(|(line, _)| !line.is_empty()).map(|(line, n)| {
            line.parse::<PeerId>().map_err(|_| RevokedError::Malformed { line: n })
        });
        peers.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::SwarmKey;

    const PEER: PeerId = PeerId([1; 32]);
    const FAR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 2));

    #[test]
    fn a_closed_swarm_lets_in_who_has_any_of_its_keys() {
        let keys = [1, 2].map(|n| SwarmKey::from_secret([n; 32]));
        let rule = |revoked| {
            Membership::new(Door::Closed(SwarmKeys::new(keys.clone()).expect("two")), revoked)
        };
        let open = rule(Revoked::default());
        assert_eq!(open.admit(&PEER, FAR, |key| key[0] == 2), Ok(()));
        assert_eq!(open.admit(&PEER, FAR, |_| false), Err(Denied::NotMember));
        let loopback = "127.0.0.1".parse().expect("address");
        assert_eq!(open.admit(&PEER, loopback, |_| false), Err(Denied::NotMember));
        let strict = rule([PEER].into_iter().collect());
        assert_eq!(strict.admit(&PEER, FAR, |_| true), Err(Denied::Revoked));
    }

    #[test]
    fn without_a_key_only_loopback_and_configured_addresses_count() {
        let rule = Membership::new(Door::Configured([FAR].into()), Revoked::default());
        let admits =
            |address: &str| rule.admit(&PEER, address.parse().expect("address"), |_| true).is_ok();
        assert!(admits("127.0.0.1") && admits("::1") && admits("10.1.0.2"));
        assert!(admits("::ffff:10.1.0.2"));
        assert!(!admits("10.1.0.3"));
        let open = Membership::new(Door::Open, Revoked::default());
        assert_eq!(open.admit(&PEER, FAR, |_| false), Ok(()));
    }

    #[test]
    fn lists_of_revoked_nodes_are_read_whole_or_not() {
        let text = format!("# lost laptop\n{PEER} # 2026-03\n\n");
        let list: Revoked = text.parse().expect("list");
        assert!(list.contains(&PEER) && !list.contains(&PeerId([2; 32])));
        assert!(matches!("abc".parse::<Revoked>(), Err(RevokedError::Malformed { line: 1 })));
    }
}
