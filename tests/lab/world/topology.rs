//! What the network looks like, and how it is made of bridges and pairs of
//! devices.
//!
//! ```text
//!  n1-1 ─┐                                        ┌─ n2-1
//!  n1-2 ─┤ bridge ── sw1 ── line ── rt ── line ── sw2 ── bridge ├─ n2-2
//!  n1-3 ─┘                          │             └─ n2-3
//!                                line to reg (the registry)
//! ```
//!
//! Node `i` of LAN `l` is 10.`l`.0.`i`; the bridge is also the LAN's router and
//! does not forward multicast.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::far;
use super::space::{Carried, Space};

/// Where the registry listens, in its own namespace.
pub(crate) const REGISTRY: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 200, 0, 1)), 5000);

/// One line between the router and something else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Line {
    /// Bits in a second, each way.
    pub(crate) rate: u64,
    /// Time one way.
    pub(crate) delay: Duration,
    /// Share of packets lost each way, 0 to 1.
    pub(crate) loss: f64,
}

/// What is to be built.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Number of LANs.
    pub(crate) lans: u8,
    /// Nodes in each.
    pub(crate) nodes: u8,
    /// Bits in a second between a node and its LAN, each way.
    pub(crate) lan_rate: u64,
    /// Between each LAN and the router.
    pub(crate) line: Line,
    /// Between the registry and the router.
    pub(crate) registry: Line,
}

impl Line {
    /// So many Mbit/s, with neither delay nor loss.
    pub(crate) const fn mbit(rate: u64) -> Self {
        Self { rate: rate * 1_000_000, delay: Duration::ZERO, loss: 0.0 }
    }
}

impl Plan {
    /// 1 Gbit/s inside LANs and at the registry, 100 Mbit/s into each LAN.
    pub(crate) const fn of(lans: u8, nodes: u8) -> Self {
        Self {
            lans,
            nodes,
            lan_rate: 1_000_000_000,
            line: Line::mbit(100),
            registry: Line::mbit(1000),
        }
    }
}

/// The namespaces of a plan.
pub(crate) struct Network {
    pub(crate) router: Space,
    pub(crate) registry: Space,
    pub(crate) lans: Vec<Lan>,
}

/// A bridge and its nodes.
pub(crate) struct Lan {
    pub(crate) switch: Space,
    pub(crate) nodes: Vec<Space>,
}

impl Network {
    /// Makes it, with names that begin with `prefix` and a hyphen.
    pub(super) fn build(plan: &Plan, prefix: &str) -> Self {
        let router = Space::create(format!("{prefix}-rt"));
        router.enter(forward);
        let registry = Space::create(format!("{prefix}-reg"));
        let network = Self {
            lans: (1..=plan.lans).map(|lan| Lan::build(plan, prefix, lan, &router)).collect(),
            router,
            registry,
        };
        lay(&network.router, "reg", &network.registry, plan.registry, 0);
        network.registry.ip(&format!(
            "addr add {}/32 dev lo\nroute add default via {} src {0}",
            REGISTRY.ip(),
            router_end(0)
        ));
        let to_registry = format!("route add {}/32 via {}", REGISTRY.ip(), far_end(0));
        network.router.ip(&to_registry);
        network
    }

    /// What the line of a LAN (1 and up) has carried, seen from the LAN: received
    /// is what came into it.
    pub(crate) fn line(&self, lan: u8) -> Carried {
        self.lans[usize::from(lan) - 1].switch.carried("line")
    }

    /// What the registry's line has carried, seen from the registry.
    pub(crate) fn registry_line(&self) -> Carried {
        self.registry.carried("line")
    }

    /// Cuts the line of a LAN, or mends it. Addresses and routes stay.
    pub(crate) fn set_line(&self, lan: u8, up: bool) {
        let rule = if up { "-D" } else { "-I" };
        self.router.iptables(&format!("{rule} FORWARD -i lan{lan} -j DROP"));
        self.router.iptables(&format!("{rule} FORWARD -o lan{lan} -j DROP"));
    }
}

impl Lan {
    fn build(plan: &Plan, prefix: &str, lan: u8, router: &Space) -> Self {
        let switch = Space::create(format!("{prefix}-sw{lan}"));
        switch.enter(forward);
        // Without snooping every port hears all multicast, as in a plain switch.
        switch.ip(&format!(
            "link add br0 type bridge mcast_snooping 0\nlink set br0 up\naddr add {}/24 dev br0",
            gateway(lan)
        ));
        lay(router, &format!("lan{lan}"), &switch, plan.line, lan);
        switch.ip(&format!("route add default via {}", router_end(lan)));
        router.ip(&format!("route add 10.{lan}.0.0/24 via {}", far_end(lan)));
        let node = |i| Self::attach(plan, &switch, format!("{prefix}-n{lan}-{i}"), lan, i);
        let nodes = (1..=plan.nodes).map(node).collect();
        Self { switch, nodes }
    }

    fn attach(plan: &Plan, switch: &Space, name: String, lan: u8, i: u8) -> Space {
        let node = Space::create(name);
        switch.ip(&format!(
            "link add p{i} type veth peer name eth0 netns {}\nlink set p{i} master br0\nlink set p{i} up",
            node.name
        ));
        node.ip(&format!(
            "addr add {}/24 brd + dev eth0\nlink set eth0 up\nroute add default via {}",
            address(lan, i),
            gateway(lan)
        ));
        shape(switch, &format!("p{i}"), plan.lan_rate);
        shape(&node, "eth0", plan.lan_rate);
        node
    }
}

/// The address of a node.
pub(crate) fn address(lan: u8, node: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, lan, 0, node)
}

fn gateway(lan: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, lan, 0, 254)
}

/// The router's address on a line.
fn router_end(line: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, line, 1)
}

fn far_end(line: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 16, line, 2)
}

/// A line from the router, where its device is called `device`, to `end`, where
/// it is called `line`.
fn lay(router: &Space, device: &str, end: &Space, line: Line, number: u8) {
    if line.delay.is_zero() {
        router.ip(&format!("link add {device} type veth peer name line netns {}", end.name));
        shape(router, device, line.rate);
        shape(end, "line", line.rate);
    } else {
        far::join([(router, device), (end, "line")], line.rate, line.delay);
    }
    for (space, device, address) in
        [(router, device, router_end(number)), (end, "line", far_end(number))]
    {
        space.ip(&format!("addr add {address}/30 dev {device}\nlink set {device} up"));
    }
    if line.loss > 0.0 {
        for way in ["-i", "-o"] {
            let chance = format!("-m statistic --mode random --probability {}", line.loss);
            router.iptables(&format!("-A FORWARD {way} {device} {chance} -j DROP"));
        }
    }
}

/// Limits what leaves by a device; what waits is bounded as in a small router.
fn shape(space: &Space, device: &str, rate: u64) {
    // A bucket of 2 ms, and not less than the largest packet of the kernel.
    let burst = (rate / 8 / 500).max(64 << 10);
    space.tc(&format!(
        "qdisc add dev {device} root handle 1: htb default 1\n\
         class add dev {device} parent 1: classid 1:1 htb rate {rate}bit burst {burst}\n\
         qdisc add dev {device} parent 1:1 bfifo limit 1mb"
    ));
}

/// In the namespace of the calling thread.
fn forward() {
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding");
}
