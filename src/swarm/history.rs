//! Nodes that were good before, for each network that this node has been in.
//!
//! A node that comes back to a network calls those first, and finds its swarm with
//! no multicast and with nobody's address in its configuration. Source: PPIO
//! (`003`), III: history nodes, kept by location.
//!
//! Invariants: at most [`NETWORKS_MAX`] networks, the one that was left longest ago
//! goes first; at most [`NODES_MAX`] nodes of each, the one that failed most, then
//! the slowest, then the one that was seen longest ago goes first. What a file says
//! is held to the same bounds. Besides, it is remembered which numbers this node's
//! claims had: none is given twice, whatever the clock says.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::PeerId;

/// Networks that are remembered,
pub const NETWORKS_MAX: usize = 16;
/// and nodes of each.
pub const NODES_MAX: usize = 64;
/// After so many calls in vain, with none that was answered in between, a node is
/// forgotten.
pub const FAILURES_MAX: u32 = 8;
/// Longest name of a network, in bytes.
const NAME_MAX: usize = 200;
/// Longest file that is read, in bytes: twice what the longest that is written has.
pub const FILE_MAX: u64 = 1 << 20;
/// Numbers that one life of a node may need: a beat a second, for 136 years.
const SEQUENCES: u64 = 1 << 32;
/// The version of the file.
const VERSION: u32 = 1;

/// A node that was a good neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Who.
    pub peer: PeerId,
    /// Where its tunnels are.
    pub tunnels: SocketAddr,
    /// Where it answers control connections, if that is known.
    pub control: Option<SocketAddr>,
    /// Bytes per second at its best, once measured.
    pub speed: Option<u64>,
    /// When it was there last, in seconds since 1970.
    pub seen: u64,
    /// Calls in vain since then.
    pub failures: u32,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    networks: BTreeMap<String, Network>,
    /// Below this, claims of earlier lives may be numbered.
    sequences: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Network {
    used: u64,
    nodes: BTreeMap<PeerId, Remembered>,
}

/// What a file has that can't be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Not what is written here.
    #[error("not a list of remembered nodes: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Of a program that is newer.
    #[error("version {0} of the list of remembered nodes is newer than this program")]
    Version(u32),
}

#[derive(Serialize, Deserialize)]
struct File {
    version: u32,
    networks: Vec<FileNetwork>,
    #[serde(default)]
    sequences: u64,
}

#[derive(Serialize, Deserialize)]
struct FileNetwork {
    name: String,
    used: u64,
    nodes: Vec<FileNode>,
}

#[derive(Serialize, Deserialize)]
struct FileNode {
    id: String,
    tunnels: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    control: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    speed: Option<u64>,
    seen: u64,
    #[serde(default)]
    failures: u32,
}

impl History {
    /// Reads what [`History::to_text`] has written, or somebody else.
    ///
    /// # Errors
    /// [`HistoryError`].
    pub fn from_text(text: &str) -> Result<Self, HistoryError> {
        let file: File = serde_json::from_str(text)?;
        if file.version > VERSION {
            return Err(HistoryError::Version(file.version));
        }
        let mut history = Self { sequences: file.sequences, ..Self::default() };
        for network in file.networks {
            for node in network.nodes {
                let Ok(peer) = node.id.parse() else { continue };
                let FileNode { tunnels, control, speed, seen, failures, .. } = node;
                let node = Remembered { peer, tunnels, control, speed, seen, failures };
                history.keep(&network.name, node, network.used);
            }
        }
        Ok(history)
    }

    /// As it is kept in a file.
    pub fn to_text(&self) -> String {
        let node = |node: &Remembered| FileNode {
            id: node.peer.to_string(),
            tunnels: node.tunnels,
            control: node.control,
            speed: node.speed,
            seen: node.seen,
            failures: node.failures,
        };
        let networks = self.networks.iter().map(|(name, network)| FileNetwork {
            name: name.clone(),
            used: network.used,
            nodes: network.nodes.values().map(node).collect(),
        });
        let (networks, sequences) = (networks.collect(), self.sequences);
        let file = File { version: VERSION, networks, sequences };
        // Numbers and texts have no way to fail.
        serde_json::to_string(&file).unwrap_or_default() + "\n"
    }

    /// The first number for the claims of a life that begins now: that of the clock,
    /// time since 1970, where it has not been set back since earlier lives.
    pub fn begin_life(&mut self, clock: Duration) -> u64 {
        let first = self.sequences.max(clock.as_micros() as u64).max(1);
        self.sequences = first.saturating_add(SEQUENCES);
        first
    }

    /// A node is there and has been for a while. Whether that is new: it was not
    /// known in this network, or elsewhere in it.
    pub fn good(&mut self, network: &str, node: Remembered) -> bool {
        let known = self.networks.get(network).and_then(|network| network.nodes.get(&node.peer));
        let same = known.is_some_and(|known| {
            known.tunnels == node.tunnels
                && (node.control.is_none() || known.control == node.control)
        });
        let node = Remembered {
            speed: node.speed.or(known.and_then(|known| known.speed)),
            control: node.control.or(known.and_then(|known| known.control)),
            failures: 0,
            ..node
        };
        self.keep(network, node, node.seen);
        !same
    }

    /// A node did not answer. Whether it was remembered.
    pub fn failed(&mut self, network: &str, peer: &PeerId) -> bool {
        let Some(network) = self.networks.get_mut(network) else { return false };
        let Some(node) = network.nodes.get_mut(peer) else { return false };
        node.failures += 1;
        if node.failures >= FAILURES_MAX {
            network.nodes.remove(peer);
        }
        true
    }

    /// A node was banned or revoked.
    pub fn forget(&mut self, peer: &PeerId) {
        for network in self.networks.values_mut() {
            network.nodes.remove(peer);
        }
    }

    /// Forgets a network, or all of them. Gives how many networks and nodes it were.
    pub fn reset(&mut self, network: Option<&str>) -> (usize, usize) {
        let gone = match network {
            Some(name) => self.networks.remove(name).into_iter().collect(),
            None => std::mem::take(&mut self.networks).into_values().collect::<Vec<_>>(),
        };
        (gone.len(), gone.iter().map(|network| network.nodes.len()).sum())
    }

    /// The nodes of a network, the best first.
    pub fn of(&self, network: &str) -> Vec<Remembered> {
        let nodes = self.networks.get(network).map(|network| network.nodes.values());
        let mut nodes: Vec<Remembered> = nodes.into_iter().flatten().copied().collect();
        nodes.sort_by_key(|node| Reverse(worth(node)));
        nodes
    }

    /// The networks, the one that was used last first.
    pub fn networks(&self) -> Vec<&str> {
        let mut networks: Vec<_> = self.networks.iter().collect();
        networks.sort_by_key(|(name, network)| (Reverse(network.used), *name));
        networks.into_iter().map(|(name, _)| name.as_str()).collect()
    }

    fn keep(&mut self, name: &str, node: Remembered, used: u64) {
        if name.len() > NAME_MAX || node.failures >= FAILURES_MAX || node.tunnels.port() == 0 {
            return;
        }
        let network = self.networks.entry(name.to_owned()).or_default();
        network.used = network.used.max(used);
        network.nodes.insert(node.peer, node);
        if network.nodes.len() > NODES_MAX {
            let worst = network.nodes.values().min_by_key(|node| worth(node));
            if let Some(worst) = worst.map(|node| node.peer) {
                network.nodes.remove(&worst);
            }
        }
        if self.networks.len() > NETWORKS_MAX {
            let others = self.networks.iter().filter(|(other, _)| *other != name);
            let oldest = others.min_by_key(|(_, network)| network.used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.networks.remove(&oldest);
            }
        }
    }
}

/// What is called first, and kept longest.
fn worth(node: &Remembered) -> (Reverse<u32>, u64, u64, PeerId) {
    (Reverse(node.failures), node.speed.unwrap_or(0), node.seen, node.peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(n: u8, speed: u64, seen: u64) -> Remembered {
        Remembered {
            peer: PeerId([n; 32]),
            tunnels: SocketAddr::from(([10, 1, 0, n], 7400)),
            control: Some(SocketAddr::from(([10, 1, 0, n], 7401))),
            speed: (speed > 0).then_some(speed),
            seen,
            failures: 0,
        }
    }

    #[test]
    fn each_network_has_its_own_nodes_and_the_best_come_first() {
        let mut history = History::default();
        assert!(history.good("home", node(1, 5, 10)));
        assert!(history.good("home", node(2, 9, 11)));
        assert!(history.good("home", node(3, 0, 12)));
        assert!(history.good("work", node(4, 1, 13)));
        let of = |history: &History, name: &str| -> Vec<u8> {
            history.of(name).iter().map(|node| node.peer.0[0]).collect()
        };
        assert_eq!(of(&history, "home"), [2, 1, 3]);
        assert_eq!(of(&history, "work"), [4]);
        assert_eq!(of(&history, "elsewhere"), [] as [u8; 0]);
        assert_eq!(history.networks(), ["work", "home"]);
        history.failed("home", &PeerId([2; 32]));
        assert_eq!(of(&history, "home"), [1, 3, 2]);
        // It is there again, and how fast it was is not lost.
        assert!(!history.good("home", node(2, 0, 20)));
        assert_eq!(of(&history, "home"), [2, 1, 3]);
        assert_eq!(history.of("home")[0].speed, Some(9));
        assert_eq!(history.reset(Some("home")), (1, 3));
        assert_eq!(history.reset(None), (1, 1));
        assert_eq!(history, History::default());
    }

    #[test]
    fn what_fails_time_after_time_is_forgotten() {
        let mut history = History::default();
        history.good("home", node(1, 5, 10));
        let peer = PeerId([1; 32]);
        for _ in 0..FAILURES_MAX {
            assert_eq!(history.of("home").len(), 1);
            assert!(history.failed("home", &peer));
        }
        assert!(history.of("home").is_empty() && !history.failed("home", &peer));
    }

    #[test]
    fn networks_and_nodes_are_bounded() {
        let mut history = History::default();
        for n in 0..=u8::MAX {
            history.good("home", node(n, 1 + u64::from(n), 10));
        }
        let kept = history.of("home");
        assert_eq!((kept.len(), kept[0].peer.0[0]), (NODES_MAX, u8::MAX));
        for n in 0..100 {
            history.good(&format!("network {n}"), node(1, 1, 100 + n));
        }
        assert_eq!(history.networks().len(), NETWORKS_MAX);
        assert!(!history.networks().contains(&"home"), "it was used longest ago");
        let long = "x".repeat(NAME_MAX + 1);
        history.good(&long, node(1, 1, 1000));
        assert!(history.of(&long).is_empty());
    }

    #[test]
    fn a_file_comes_back_and_is_held_to_the_bounds() {
        let mut history = History::default();
        history.good("home", node(1, 5, 10));
        history.good("work", node(2, 0, 20));
        history.failed("work", &PeerId([2; 32]));
        assert_eq!(History::from_text(&history.to_text()).expect("read"), history);
        for bad in ["", "{}", "[1]", "{\"version\":1,\"networks\":[{}]}"] {
            assert!(matches!(History::from_text(bad), Err(HistoryError::Malformed(_))), "{bad}");
        }
        let newer = "{\"version\":2,\"networks\":[]}";
        assert!(matches!(History::from_text(newer), Err(HistoryError::Version(2))));
        let nodes: Vec<String> = (0..500)
            .map(|n| format!("{{\"id\":\"{n:064x}\",\"tunnels\":\"10.0.0.1:1\",\"seen\":1}}"))
            .collect();
        let one = format!("{{\"name\":\"n\",\"used\":1,\"nodes\":[{}]}}", nodes.join(","));
        let text = format!("{{\"version\":1,\"networks\":[{one}]}}");
        assert_eq!(History::from_text(&text).expect("read").of("n").len(), NODES_MAX);
    }

    #[test]
    fn no_life_has_numbers_of_an_earlier_one() {
        let mut history = History::default();
        let now = Duration::from_secs(1_800_000_000);
        let first = history.begin_life(now);
        assert_eq!(first, now.as_micros() as u64);
        let mut history = History::from_text(&history.to_text()).expect("read");
        history.reset(None);
        assert_eq!(history.begin_life(Duration::ZERO), first + SEQUENCES);
        let later = now * 2;
        assert_eq!(history.begin_life(later), later.as_micros() as u64);
        let old = "{\"version\":1,\"networks\":[]}";
        assert_eq!(History::from_text(old).expect("read").begin_life(Duration::ZERO), 1);
    }

    #[test]
    fn the_longest_file_is_read() {
        let mut history = History::default();
        for network in 0..NETWORKS_MAX {
            let name = format!("{network:0>NAME_MAX$}");
            for n in 0..NODES_MAX {
                let at =
                    "[1111:2222:3333:4444:5555:6666:7777:8888]:65535".parse().expect("address");
                let of = node(n as u8, u64::MAX, u64::MAX);
                history.good(&name, Remembered { tunnels: at, control: Some(at), ..of });
            }
        }
        let text = history.to_text();
        assert!(text.len() as u64 <= FILE_MAX / 2, "{}", text.len());
        assert_eq!(History::from_text(&text).expect("read"), history);
    }
}
