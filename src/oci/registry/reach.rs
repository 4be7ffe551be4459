//! Where a registry may send us: not to this machine, nor to what only this
//! machine can reach, unless it is there itself.
//!
//! A name is looked up here and once more for the connection; one that stands for
//! something else the second time is a matter of the name server that is trusted.

use std::net::IpAddr;

use reqwest::Url;

/// What an address is to this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Link-local, as the metadata services of clouds are, or no address at all.
    Link,
    /// This machine.
    Own,
    Elsewhere,
}

fn place(address: IpAddr, own: &[IpAddr]) -> Place {
    let address = address.to_canonical();
    let link = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link || address.is_multicast() {
        Place::Link
    } else if address.is_loopback() || address.is_unspecified() || own.contains(&address) {
        Place::Own
    } else {
        Place::Elsewhere
    }
}

/// Whether a registry at `from` may send us to `to`.
///
/// # Errors
/// Why not.
pub(super) async fn check(from: &str, to: &Url) -> Result<(), String> {
    let own = own_addresses();
    let there = addresses(to.host_str().unwrap_or_default()).await;
    let mut places = there.iter().map(|address| place(*address, &own));
    match places.find(|place| *place != Place::Elsewhere) {
        None => Ok(()),
        Some(Place::Link) => Err("to an address that only this machine can reach".to_owned()),
        Some(_) => {
            let host = Url::parse(&format!("http://{from}/")).ok();
            let host = host.as_ref().and_then(Url::host_str).unwrap_or_default();
            let origin = addresses(host).await;
            let is_own = |address: &IpAddr| place(*address, &own) == Place::Own;
            if !origin.is_empty() && origin.iter().all(is_own) {
                Ok(())
            } else {
                Err("to this machine".to_owned())
            }
        }
    }
}

/// The addresses that a host's name stands for; none where it is not known.
async fn addresses(host: &str) -> Vec<IpAddr> {
    let literal = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = literal.parse() {
        return vec![address];
    }
    match tokio::net::lookup_host((host, 0)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(_) => Vec::new(),
    }
}

/// The addresses of this machine's interfaces; none where they can't be read.
pub fn own_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let address = |interface: nix::ifaddrs::InterfaceAddress| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    };
    interfaces.filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn registries_elsewhere_lead_neither_here_nor_to_metadata_services() {
        let leads =
            async |from: &str, to: &str| check(from, &Url::parse(to).expect("a URL")).await.is_ok();
        for registry in ["203.0.113.9", "203.0.113.9:5000", "[2001:db8::1]:5000"] {
            assert!(leads(registry, "https://203.0.113.10/x").await);
            for to in [
                "http://169.254.169.254/latest/meta-data",
                "http://[fe80::1]/",
                "http://[::ffff:169.254.169.254]/",
                "http://127.0.0.1:5005/",
                "http://localhost/",
                "http://[::1]/",
                "http://0.0.0.0/",
                "http://2130706433/",
                "http://0x7f.1/",
            ] {
                assert!(!leads(registry, to).await, "{registry} to {to}");
            }
        }
        for registry in ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"] {
            assert!(leads(registry, "http://127.0.0.1:9000/x").await);
            assert!(!leads(registry, "http://169.254.169.254/").await);
        }
    }
}
