//! Addresses of others: which are called, and how libp2p writes them.

use std::net::{IpAddr, SocketAddr};

use libp2p_core::Multiaddr;
use libp2p_core::multiaddr::Protocol;

/// Whether an address that a stranger named may be called: not this machine
/// itself, nobody in particular, a group, or one that means something else on
/// every link.
pub fn is_dialable(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let first = v4.octets()[0];
            !(v4.is_loopback()
                || v4.is_unspecified()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_link_local()
                || v4.is_documentation()
                // "This network" and what is reserved.
                || first == 0
                || first >= 240)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local())
        }
    }
}

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
    fn no_address_leads_back_here_or_to_a_group() {
        let dialable = |text: &str| is_dialable(text.parse().expect("address"));
        for good in
            ["10.1.0.2", "192.168.0.9", "203.0.114.1", "100.64.0.1", "2001:470::1", "fd00::1"]
        {
            assert!(dialable(good), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.251",
            "169.254.169.254",
            "192.0.2.1",
            "240.0.0.1",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "fe80::1",
            "ff02::1",
        ] {
            assert!(!dialable(bad), "{bad}");
        }
    }

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
