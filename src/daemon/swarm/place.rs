//! Which network this machine is in: a name that is the same when it comes back.
//!
//! It is the network of the default route and its gateway: `10.1.0.0/24 via
//! 10.1.0.254`. Bridges of containers come and go and are not looked at. Two sites
//! with the same addresses have the same name, and then one memory: candidates of
//! the other site don't answer, and are forgotten.

use std::net::{IpAddr, Ipv4Addr};

use super::lan::networks_of;

/// The kernel's IPv4 routes of this network namespace.
const ROUTES: &str = "/proc/self/net/route";
/// Nowhere that anybody could be met.
const NOWHERE: &str = "no network";

/// The name of the network.
pub(in crate::daemon) fn network() -> String {
    let routes = std::fs::read_to_string(ROUTES).unwrap_or_default();
    let default = default_route(&routes);
    let device = default.as_ref().map(|(device, _)| device.as_str());
    let mut networks: Vec<String> = networks_of(device)
        .into_iter()
        .filter(|(address, _)| !address.is_loopback() && !is_of_the_link(*address))
        // A route by IPv4 leads to an IPv4 network.
        .filter(|(address, _)| device.is_none() || address.is_ipv4())
        .map(|(address, bits)| format!("{}/{bits}", head(address, bits)))
        .collect();
    networks.sort_unstable();
    match (networks.into_iter().next(), default) {
        (Some(network), Some((_, gateway))) => format!("{network} via {gateway}"),
        (Some(network), None) => network,
        (None, Some((_, gateway))) => format!("via {gateway}"),
        (None, None) => NOWHERE.to_owned(),
    }
}

/// Device and gateway of the default route with the least metric.
fn default_route(routes: &str) -> Option<(String, Ipv4Addr)> {
    const GATEWAY: u32 = 2;
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, gateway, flags, _, _, metric, mask, ..] = fields[..] else {
            return None;
        };
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let is_default = number(destination)? == 0 && number(mask)? == 0;
        let usable = number(flags)? & GATEWAY != 0;
        // Addresses stand there as the machine has them in memory.
        let gateway = Ipv4Addr::from(number(gateway)?.to_ne_bytes());
        (is_default && usable).then_some((metric.parse::<u32>().ok()?, device.to_owned(), gateway))
    };
    let best = routes.lines().filter_map(parse).min()?;
    Some((best.1, best.2))
}

/// The first bits of an address.
fn head(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits.min(32))).unwrap_or(0);
            Ipv4Addr::from(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits.min(128))).unwrap_or(0);
            std::net::Ipv6Addr::from(v6.to_bits() & mask).into()
        }
    }
}

fn is_of_the_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_default_routes_the_one_with_the_least_metric_counts() {
        let address = |text: &str| {
            let address: Ipv4Addr = text.parse().expect("address");
            format!("{:08X}", u32::from_ne_bytes(address.octets()))
        };
        let line = |device: &str, gateway: &str, flags: &str, metric: u32, mask: &str| {
            let to = if mask == "0.0.0.0" { "0.0.0.0" } else { "10.1.0.0" };
            let [to, gateway, mask] = [to, gateway, mask].map(address);
            format!("{device}\t{to}\t{gateway}\t{flags}\t0\t0\t{metric}\t{mask}\t0\t0\t0\n")
        };
        let heads = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\t...\n";
        let routes = [
            heads.to_owned(),
            line("wlan0", "192.168.1.1", "0003", 600, "0.0.0.0"),
            line("eth0", "10.1.0.254", "0003", 100, "0.0.0.0"),
            line("eth0", "0.0.0.0", "0001", 0, "255.255.255.0"),
            line("tun0", "0.0.0.0", "0001", 50, "0.0.0.0"),
        ];
        let gateway: Ipv4Addr = "10.1.0.254".parse().expect("address");
        assert_eq!(default_route(&routes.concat()), Some(("eth0".to_owned(), gateway)));
        for bad in ["", heads, "eth0\t1\n", "eth0 zz 0 3 0 0 0 0\n"] {
            assert_eq!(default_route(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_network_is_the_first_bits_of_its_addresses() {
        let of = |address: &str, bits| head(address.parse().expect("address"), bits).to_string();
        assert_eq!(of("10.1.7.9", 24), "10.1.7.0");
        assert_eq!(of("10.1.7.9", 32), "10.1.7.9");
        assert_eq!(of("10.1.7.9", 0), "0.0.0.0");
        assert_eq!(of("2001:db8:1:2:3::9", 64), "2001:db8:1:2::");
    }

    #[test]
    fn there_is_always_a_name() {
        assert!(!network().is_empty());
    }
}
