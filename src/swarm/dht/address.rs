//! How libp2p writes addresses.

use std::net::{IpAddr, SocketAddr};

use libp2p_core::Multiaddr;
use libp2p_core::multiaddr::Protocol;

/// As libp2p writes it.
pub(super) fn multiaddr(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty()
        .with(match address.ip().to_canonical() {
            IpAddr::V4(v4) => Protocol::Ip4(v4),
            IpAddr::V6(v6) => Protocol::Ip6(v6),
        })
        .with(Protocol::Tcp(address.port()))
}

/// An IP address and a TCP port, and who must be there at most. `None`: anything
/// else, names and relays among them.
pub(super) fn socket_address(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip = match parts.next()? {
        Protocol::Ip4(v4) => IpAddr::V4(v4),
        Protocol::Ip6(v6) => IpAddr::V6(v6).to_canonical(),
        _ => return None,
    };
    let Protocol::Tcp(port) = parts.next()? else { return None };
    match (parts.next(), parts.next()) {
        (None | Some(Protocol::P2p(_)), None) if port > 0 => Some(SocketAddr::new(ip, port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ip_address_and_a_port_are_understood() {
        for text in ["10.1.0.2:7401", "[2001:470::1]:1"] {
            let address: SocketAddr = text.parse().expect("address");
            assert_eq!(socket_address(&multiaddr(address)), Some(address));
        }
        let mapped = "[::ffff:10.1.0.2]:7401".parse().expect("address");
        assert_eq!(socket_address(&multiaddr(mapped)), "10.1.0.2:7401".parse().ok());
        for text in [
            "/ip4/10.1.0.2",
            "/ip4/10.1.0.2/udp/7401",
            "/ip4/10.1.0.2/tcp/0",
            "/dns4/registry.example/tcp/7401",
            "/tcp/7401/ip4/10.1.0.2",
            "/ip4/10.1.0.2/tcp/7401/p2p-circuit",
            "/ip4/10.1.0.2/tcp/7401/tcp/7402",
            "",
        ] {
            let address: Multiaddr = text.parse().expect(text);
            assert_eq!(socket_address(&address), None, "{text}");
        }
    }
}
