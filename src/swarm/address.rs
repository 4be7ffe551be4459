//! Which addresses are called because somebody else named them.
//!
//! A node that believed every address would call whomever a member likes: this
//! machine's own services, the metadata service of a cloud, a router of the site, a
//! stranger that is to be flooded. What is called is bounded besides by whoever
//! calls; here it is only said where nobody of the swarm can be.

use std::net::{IpAddr, SocketAddr};

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

/// Whether a node can be at an address that another one, which is at `from`, has
/// named. An address of a private network is believed only of a node that is in one
/// itself, and loopback only of one at loopback.
pub fn is_believable(address: SocketAddr, from: IpAddr) -> bool {
    let (ip, from) = (address.ip().to_canonical(), from.to_canonical());
    let there = if ip.is_loopback() {
        from.is_loopback()
    } else {
        is_dialable(ip) && (!is_private(ip) || is_private(from) || from.is_loopback())
    };
    there && address.port() != 0
}

/// RFC 1918, the carriers' 100.64.0.0/10, and unique local addresses.
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || first == 100 && second & 0xc0 == 64
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
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
    fn what_is_named_from_afar_is_not_in_a_private_network_or_here() {
        let believed = |address: &str, from: &str| {
            is_believable(address.parse().expect("address"), from.parse().expect("address"))
        };
        for (address, from) in [
            ("10.1.0.2:7400", "10.9.0.1"),
            ("10.1.0.2:7400", "192.168.1.1"),
            ("198.41.0.4:7400", "10.9.0.1"),
            ("198.41.0.4:7400", "199.7.91.13"),
            ("[2001:470::1]:7400", "199.7.91.13"),
            ("[fd00::1]:7400", "fd00::2"),
            ("127.0.0.1:7400", "127.0.0.1"),
            ("10.1.0.2:7400", "::ffff:10.9.0.1"),
            ("10.1.0.2:7400", "127.0.0.1"),
        ] {
            assert!(believed(address, from), "{address} of {from}");
        }
        for (address, from) in [
            ("10.1.0.2:7400", "199.7.91.13"),
            ("192.168.1.1:80", "199.7.91.13"),
            ("100.64.0.1:7400", "199.7.91.13"),
            ("[fd00::1]:7400", "2001:470::1"),
            ("[::ffff:10.1.0.2]:7400", "199.7.91.13"),
            ("127.0.0.1:22", "10.9.0.1"),
            ("[::1]:22", "10.9.0.1"),
            ("169.254.169.254:80", "10.9.0.1"),
            ("239.255.74.1:7402", "10.9.0.1"),
            ("10.1.0.2:0", "10.9.0.1"),
        ] {
            assert!(!believed(address, from), "{address} of {from}");
        }
    }
}
