//! A lab of network namespaces on one machine: LANs with a router between them,
//! a registry behind its own line, and one daemon for each node.
//!
//! Everything has names of its own, so several labs can stand at a time, and
//! everything goes with the [`Lab`], also on a panic, Ctrl-C or a kill.

mod far;
mod guard;
mod node;
mod process;
mod registry;
mod space;
mod swarm;
mod topology;

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use guard::Guard;

pub(crate) use node::Node;
pub(crate) use registry::Registry;
pub(crate) use space::{Carried, Space};
pub(crate) use topology::{Line, Network, Plan, REGISTRY, address};

use crate::harness::scratch;

/// Labs of one process stand one at a time: two at once would share the
/// processors, and then no time that is measured means anything.
static TURN: Mutex<()> = Mutex::new(());

/// A lab; what was started in it ends with it.
pub(crate) struct Lab {
    // In this order: programs, then what cleans up, then the directory.
    nodes: Vec<Node>,
    pub(crate) registry: Registry,
    pub(crate) network: Network,
    per_lan: usize,
    _guard: Guard,
    directory: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// Builds the network and starts the registry. Nodes don't run yet.
    pub(crate) fn build(plan: &Plan) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("pslab{}x{count}", std::process::id());
        let directory = scratch();
        let guard = Guard::over(&prefix, directory.path());
        let network = Network::build(plan, &prefix);
        let mut registry =
            Registry::new(network.registry.clone(), directory.path().join("registry"));
        registry.start();
        let mut nodes = Vec::new();
        for (lan, spaces) in (1..).zip(&network.lans) {
            for (number, space) in (1..).zip(&spaces.nodes) {
                let place = directory.path().join(format!("n{lan}-{number}"));
                nodes.push(Node::new(lan, number, space.clone(), place));
            }
        }
        let per_lan = usize::from(plan.nodes);
        Self { nodes, registry, network, per_lan, _guard: guard, directory, _turn: turn }
    }

    /// A node, counted from 1 in its LAN, which is counted from 1 too.
    pub(crate) fn node(&self, lan: u8, number: u8) -> &Node {
        &self.nodes[self.place(lan, number)]
    }

    pub(crate) fn node_mut(&mut self, lan: u8, number: u8) -> &mut Node {
        let place = self.place(lan, number);
        &mut self.nodes[place]
    }

    fn place(&self, lan: u8, number: u8) -> usize {
        (usize::from(lan) - 1) * self.per_lan + usize::from(number) - 1
    }

    /// All nodes, LAN by LAN.
    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub(crate) fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// Where the lab keeps its files.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }
}
