//! `[swarm]` and `[limits]`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;

use super::size::ByteSize;
use crate::types::PeerId;

/// Most peers that a configuration may name.
const PEERS_MAX: usize = 1024;
/// Longest name of a host (RFC 1035).
const HOST_MAX: usize = 253;

/// `[swarm]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SwarmConfig {
    /// Address and port, TCP and UDP, for tunnels of peers. Without it a node
    /// listens at [`SwarmConfig::LISTEN`] once there is anybody that it would let
    /// in: a key, configured peers, or an open swarm.
    pub listen: Option<SocketAddr>,
    /// Address and TCP port of the control plane, where the distributed table of
    /// who has what is asked. Without it: the address of `listen`, and
    /// [`SwarmConfig::CONTROL`].
    pub control: Option<SocketAddr>,
    /// Control addresses of any nodes of the swarm, to begin with where nobody is
    /// found by multicast.
    pub bootstrap: Vec<PeerAddress>,
    /// File with the swarm's keys, one a line; the first is the newest.
    pub key_file: Option<PathBuf>,
    /// File with the names of revoked nodes, one a line.
    pub revoked_file: Option<PathBuf>,
    /// Nodes that tunnels are kept to.
    pub peers: Vec<PeerAddress>,
    /// Lets anybody in. Only without a key.
    pub open: bool,
    /// Networks that count as this node's LAN besides those it has an address in.
    pub lan: Vec<Network>,
    /// Whether neighbours are looked for by multicast, in a swarm with a key.
    pub lan_multicast: bool,
}

impl Default for SwarmConfig {
    fn default() -> Self {
        Self {
            listen: None,
            key_file: None,
            revoked_file: None,
            peers: Vec::new(),
            open: false,
            lan: Vec::new(),
            lan_multicast: true,
            control: None,
            bootstrap: Vec::new(),
        }
    }
}

impl SwarmConfig {
    /// Where a node listens that has a swarm and no `listen`.
    pub const LISTEN: SocketAddr =
        SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 7400);

    /// Port of the control plane where `control` is not set.
    pub const CONTROL: u16 = 7401;

    /// Whether the node takes part in a swarm.
    pub fn is_on(&self) -> bool {
        let members = self.key_file.is_some() || self.open || !self.peers.is_empty();
        members || self.listen.is_some()
    }

    /// Where the table of who has what is answered: in swarms of which it is known
    /// who takes part.
    pub fn control(&self) -> Option<SocketAddr> {
        let listen = self.listen.unwrap_or(Self::LISTEN);
        let known = self.key_file.is_some() || self.open;
        known.then(|| self.control.unwrap_or(SocketAddr::new(listen.ip(), Self::CONTROL)))
    }

    pub(super) fn check(&self) -> Result<(), String> {
        if self.open && self.key_file.is_some() {
            return Err("swarm.open = true: a swarm with a key is closed; \
                        take swarm.key_file away or leave swarm.open out"
                .into());
        }
        if self.peers.len() > PEERS_MAX {
            return Err(format!("swarm.peers: more than {PEERS_MAX}"));
        }
        if self.bootstrap.len() > PEERS_MAX {
            return Err(format!("swarm.bootstrap: more than {PEERS_MAX}"));
        }
        if self.bootstrap.iter().any(|node| node.peer.is_some()) {
            return Err(
                "swarm.bootstrap: expected HOST:PORT; any node of the swarm may be there".into()
            );
        }
        Ok(())
    }
}

/// `[limits]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LimitsConfig {
    /// Content sent to peers.
    pub upload: ByteRate,
    /// Of that, what nobody waits for.
    pub background: ByteRate,
    /// Content received from peers; what a reader waits for is not held up.
    pub download: ByteRate,
}

/// Bytes per second: `50MB/s`, `512KiB/s`; `0` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRate(Option<u64>);

impl ByteRate {
    /// Bytes per second; `None`: no limit.
    pub fn per_second(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for ByteRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim();
        if number == "0" {
            return Ok(Self(None));
        }
        let size = number.strip_suffix("/s").and_then(|size| size.trim().parse::<ByteSize>().ok());
        match size {
            Some(ByteSize(0)) => Ok(Self(None)),
            Some(ByteSize(bytes)) => Ok(Self(Some(bytes))),
            None => Err(format!(
                "{text:?} is not a rate: expected bytes per second such as 50MB/s or 512KiB/s, \
                 or 0 for no limit"
            )),
        }
    }
}

/// Where a peer listens, and who must be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAddress {
    /// Who; `None`: whoever is there and of the swarm.
    pub peer: Option<PeerId>,
    /// An IP address or a name.
    pub host: String,
    /// The port, for TCP and UDP.
    pub port: u16,
}

impl FromStr for PeerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a peer: expected [NODE@]HOST:PORT");
        let (peer, address) = match text.split_once('@') {
            Some((peer, address)) => (Some(peer.parse().map_err(|_| wrong())?), address),
            None => (None, text),
        };
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().map_err(|_| wrong())?.to_string(),
            None => host.to_owned(),
        };
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let is_name = (1..=HOST_MAX).contains(&host.len()) && host.chars().all(letters);
        if !is_name && host.parse::<IpAddr>().is_err() {
            return Err(wrong());
        }
        Ok(Self { peer, host, port })
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, .. } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A network: an address and the number of bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// The network of an address by its first `bits` bits; all of them at most.
    pub fn new(address: IpAddr, bits: u8) -> Self {
        let address = address.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        Self { address, bits: bits.min(most) }
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let head = |address: IpAddr| match address {
            IpAddr::V4(v4) => u128::from(v4.to_bits()) << 96,
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let address = address.to_canonical();
        let differs = head(self.address) ^ head(address);
        self.address.is_ipv4() == address.is_ipv4()
            && differs.leading_zeros() >= u32::from(self.bits)
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not a network: expected ADDRESS/BITS");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let (address, bits): (IpAddr, u8) =
            (address.parse().map_err(|_| wrong())?, bits.parse().map_err(|_| wrong())?);
        let network = Self::new(address, bits);
        if network.bits == bits { Ok(network) } else { Err(wrong()) }
    }
}

macro_rules! from_text {
    ($($kind:ty),+) => {
        $(impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
            }
        })+
    };
}

from_text!(PeerAddress, Network);

impl<'de> Deserialize<'de> for ByteRate {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // A bare 0 is a number for TOML.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u64),
            Text(String),
        }
        let text = match Written::deserialize(from)? {
            Written::Number(number) => number.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit_and_zero_is_none() {
        let rate = |text: &str| text.parse::<ByteRate>().map(ByteRate::per_second);
        assert_eq!(rate("50MB/s"), Ok(Some(50_000_000)));
        assert_eq!(rate("512 KiB/s"), Ok(Some(512 << 10)));
        assert_eq!(rate("0"), Ok(None));
        assert_eq!(rate("0B/s"), Ok(None));
        for bad in ["50", "50MB", "fast", "", "-1/s"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn peers_are_hosts_with_ports() {
        let peer = |text: &str| text.parse::<PeerAddress>();
        assert_eq!(peer("10.1.0.2:7400").map(|p| p.to_string()), Ok("10.1.0.2:7400".into()));
        assert_eq!(peer("[fe80::1]:7400").map(|p| p.to_string()), Ok("[fe80::1]:7400".into()));
        assert_eq!(peer("edge-1.example:7400").map(|p| p.host), Ok("edge-1.example".into()));
        let id = PeerId([7; 32]);
        assert_eq!(peer(&format!("{id}@h:1")).map(|p| p.peer), Ok(Some(id)));
        for bad in
            ["", "10.1.0.2", ":7400", "a b:1", "h:0", "h:70000", "x@h:1", "[h]:1", "fe80::1:x"]
        {
            assert!(peer(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_hold_addresses_by_their_first_bits() {
        let holds = |net: &str, at: &str| {
            net.parse::<Network>().expect("network").contains(at.parse().expect("address"))
        };
        assert!(holds("10.1.0.0/24", "10.1.0.200") && !holds("10.1.0.0/24", "10.1.1.1"));
        assert!(holds("10.1.0.0/24", "::ffff:10.1.0.7") && holds("0.0.0.0/0", "8.8.8.8"));
        assert!(holds("fd00::/8", "fd12::1") && !holds("fd00::/8", "10.0.0.1"));
        assert!(holds("10.0.0.1/32", "10.0.0.1") && !holds("10.0.0.1/32", "10.0.0.2"));
        for bad in ["10.0.0.0", "10.0.0.0/33", "x/8", "::/129"] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
