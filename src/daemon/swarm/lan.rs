//! Which addresses are near.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use tracing::warn;

use crate::config::Network;
use crate::fetch::tunnel::Near;

/// Which addresses are in this node's LAN: loopback, the networks of its own
/// addresses, and those that are configured.
pub(super) struct Lan {
    configured: Vec<Network>,
    own: RwLock<Vec<Network>>,
}

impl Lan {
    pub(super) fn new(configured: &[Network]) -> Self {
        let lan = Self { configured: configured.to_vec(), own: RwLock::default() };
        lan.look();
        lan
    }

    pub(super) fn near(&self, address: IpAddr) -> Near {
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        let mut networks = self.configured.iter().chain(own.iter());
        if address.to_canonical().is_loopback() || networks.any(|net| net.contains(address)) {
            Near::Lan
        } else {
            Near::Remote
        }
    }

    /// A node can come to another network while it runs.
    pub(super) fn look(&self) {
        match own_networks() {
            Ok(networks) => {
                *self.own.write().unwrap_or_else(PoisonError::into_inner) = networks;
            }
            Err(error) => warn!("this machine's networks are not known: {error}"),
        }
    }
}

fn own_networks() -> nix::Result<Vec<Network>> {
    Ok(addresses(None)?.into_iter().map(|(address, bits)| Network::new(address, bits)).collect())
}

/// The addresses of this machine, or of one device of it, and the bits that they
/// have in common with their network.
pub(super) fn networks_of(device: Option<&str>) -> Vec<(IpAddr, u8)> {
    addresses(device).unwrap_or_default()
}

fn addresses(device: Option<&str>) -> nix::Result<Vec<(IpAddr, u8)>> {
    let of = |name: &str| device.is_none_or(|device| device == name);
    let interfaces = nix::ifaddrs::getifaddrs()?.filter(|one| of(&one.interface_name));
    let addresses = interfaces.filter_map(|interface| {
        let address = ip(&interface.address?)?;
        let bits = match ip(&interface.netmask?)? {
            IpAddr::V4(mask) => mask.to_bits().leading_ones(),
            IpAddr::V6(mask) => mask.to_bits().leading_ones(),
        };
        // A mask of nothing would make the whole world a LAN.
        let bits = u8::try_from(bits).ok().filter(|bits| *bits > 0)?;
        Some((address.to_canonical(), bits))
    });
    Ok(addresses.collect())
}

fn ip(address: &nix::sys::socket::SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
