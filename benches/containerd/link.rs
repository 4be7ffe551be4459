//! A link with a rate: a veth pair, its far end in a network namespace with a
//! token bucket at each end.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use crate::harness::{output, tool};

/// Bits in a second, as `tc` takes them.
pub(crate) const RATE: &str = "100mbit";

const NAMESPACE: &str = "peersync-link";
const NEAR: &str = "psl-near";
const FAR: &str = "psl-far";
const NEAR_ADDRESS: &str = "10.119.78.1/30";
const FAR_ADDRESS: &str = "10.119.78.2/30";
const FAR_SERVICE: &str = "10.119.78.2:5000";

/// The link; its devices and its namespace go when it is dropped.
pub(crate) struct Link;

impl Link {
    /// As fast as it goes, for now.
    pub(crate) fn new() -> Self {
        let this = Self;
        remove();
        tool("ip", &["netns", "add", NAMESPACE]);
        tool("ip", &["link", "add", NEAR, "type", "veth", "peer", "name", FAR]);
        tool("ip", &["link", "set", FAR, "netns", NAMESPACE]);
        tool("ip", &["addr", "add", NEAR_ADDRESS, "dev", NEAR]);
        tool("ip", &["link", "set", NEAR, "up"]);
        for arguments in [
            &["addr", "add", FAR_ADDRESS, "dev", FAR][..],
            &["link", "set", FAR, "up"],
            &["link", "set", "lo", "up"],
        ] {
            tool("ip", &[&["-n", NAMESPACE], arguments].concat());
        }
        this
    }

    /// From now on the link has its rate.
    pub(crate) fn shape(&self) {
        let shape = ["root", "tbf", "rate", RATE, "burst", "64kb", "latency", "100ms"];
        tool("tc", &[&["qdisc", "add", "dev", NEAR], &shape[..]].concat());
        tool("tc", &[&["-n", NAMESPACE, "qdisc", "add", "dev", FAR], &shape[..]].concat());
    }

    /// Where a service at the far end listens.
    pub(crate) fn address(&self) -> SocketAddr {
        FAR_SERVICE.parse().expect("address")
    }

    /// What runs a program at the far end.
    pub(crate) fn far(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--net=/run/netns/{NAMESPACE}")]
    }

    /// Bytes that have come over the link to the near end, headers and all.
    pub(crate) fn received(&self) -> u64 {
        let file = format!("/sys/class/net/{NEAR}/statistics/rx_bytes");
        fs::read_to_string(file).expect("counter").trim().parse().expect("number")
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        remove();
    }
}

fn remove() {
    // The device goes with either end.
    for arguments in [&["link", "del", NEAR][..], &["netns", "del", NAMESPACE]] {
        let _ = output(Command::new("ip").args(arguments));
    }
}
