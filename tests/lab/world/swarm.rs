//! The nodes of a lab as one swarm.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use super::{Lab, address};
use crate::harness::peersync::Peersync;
use crate::harness::wait_until;

const PORT: u16 = 7400;
/// Nodes that were all started have tunnels to each other after this long.
const MEET: Duration = Duration::from_secs(30);

impl Lab {
    /// The `[swarm]` section of a node: the lab's key, and all other nodes as
    /// configured peers.
    pub(crate) fn swarm_section(&self, lan: u8, number: u8) -> String {
        let others = self.nodes().iter().filter(|n| (n.lan, n.number) != (lan, number));
        let peers: Vec<String> =
            others.map(|n| format!("{}:{PORT}", address(n.lan, n.number))).collect();
        format!("[swarm]\nkey_file = {:?}\npeers = {peers:?}\n", self.swarm_key())
    }

    /// The file with the lab's swarm key, made at the first call.
    pub(crate) fn swarm_key(&self) -> PathBuf {
        let file = self.directory().join("swarm.key");
        if !file.exists() {
            Peersync::new().run(&["swarm-key".as_ref(), "new".as_ref(), file.as_os_str()]);
        }
        file
    }

    /// Starts a node as one of the swarm.
    pub(crate) fn join(&mut self, lan: u8, number: u8, more: &str) {
        let config = self.swarm_section(lan, number) + more;
        self.node_mut(lan, number).start(&config);
    }

    /// Starts all nodes as one swarm and waits until each has a tunnel to each.
    pub(crate) fn join_all(&mut self, more: &str) {
        let places: Vec<(u8, u8)> = self.nodes().iter().map(|n| (n.lan, n.number)).collect();
        let configs: Vec<String> =
            places.iter().map(|(lan, n)| self.swarm_section(*lan, *n) + more).collect();
        thread::scope(|scope| {
            for (node, config) in self.nodes_mut().iter_mut().zip(&configs) {
                scope.spawn(|| node.start(config));
            }
        });
        self.meet();
    }

    /// Waits until every node that runs has a tunnel to every other.
    #[track_caller]
    pub(crate) fn meet(&self) {
        let running = || self.nodes().iter().filter(|node| node.runs());
        let others = running().count() - 1;
        wait_until("the nodes know each other", MEET, || {
            running().all(|node| node.peers().len() == others)
        });
    }
}
