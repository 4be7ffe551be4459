//! What a tracker knows: which node holds which layers, as the nodes announce.
//!
//! Invariants:
//! - every table is bounded: [`NODES_MAX`] nodes, [`LAYERS_MAX`] layers of one,
//!   [`ENTRIES_MAX`] in all;
//! - a node speaks for itself only, and its address is the one that its connection
//!   shows: who announces can't point at third parties;
//! - what a node announces counts in its order; a gap empties its entry until it
//!   says all again.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::differences::{Heard, HeardError};
use crate::types::{Digest, PeerId};

/// Nodes that are known at a time.
pub const NODES_MAX: usize = 1024;
/// Layers that one node may hold.
pub const LAYERS_MAX: usize = 4096;
/// Pairs of node and layer in all; each takes about 150 bytes.
pub const ENTRIES_MAX: usize = 1 << 17;
/// A node whose connection has gone is named for so long still: it may be on its
/// way back.
pub const GRACE: Duration = Duration::from_secs(10);

/// What a node holds of a layer's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Has {
    /// The index, or some of the content.
    Some,
    /// All of it.
    Whole,
}

/// A node that holds something of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Who.
    pub peer: PeerId,
    /// Where it can be called.
    pub address: SocketAddr,
    /// How much it has.
    pub has: Has,
}

/// Who holds what.
#[derive(Debug, Default)]
pub struct Tracker {
    nodes: HashMap<PeerId, Node>,
    holders: HashMap<Digest, BTreeSet<PeerId>>,
    entries: usize,
    refused: u64,
}

#[derive(Debug)]
struct Node {
    address: Option<SocketAddr>,
    heard: Heard,
    layers: HashMap<Digest, Has>,
    /// When its connection went.
    lost: Option<Duration>,
}

impl Tracker {
    /// A node that is connected from `address`, where it listens if anywhere, tells
    /// what it holds.
    ///
    /// # Errors
    /// [`HeardError`]. After a gap and after too much nothing is known of the node
    /// until it says all again.
    pub fn announce(
        &mut self,
        peer: PeerId,
        address: Option<SocketAddr>,
        (full, number): (bool, u64),
        changes: impl IntoIterator<Item = (Digest, Option<Has>)>,
    ) -> Result<(), HeardError> {
        if !self.nodes.contains_key(&peer) && self.nodes.len() >= NODES_MAX {
            self.refused += 1;
            return Err(HeardError::TooMuch);
        }
        let node = self.nodes.entry(peer).or_insert_with(|| Node {
            address,
            heard: Heard::default(),
            layers: HashMap::new(),
            lost: None,
        });
        (node.address, node.lost) = (address.or(node.address), None);
        if let Err(error) = node.heard.take(full, number) {
            self.refused += 1;
            if error == HeardError::Gap {
                self.empty(&peer);
            }
            return Err(error);
        }
        if full {
            self.empty(&peer);
        }
        for (layer, has) in changes {
            let Some(node) = self.nodes.get_mut(&peer) else { break };
            match has {
                Some(has) if node.layers.contains_key(&layer) => {
                    node.layers.insert(layer, has);
                }
                Some(_) if node.layers.len() >= LAYERS_MAX || self.entries >= ENTRIES_MAX => {
                    self.refused += 1;
                    return Err(HeardError::TooMuch);
                }
                Some(has) => {
                    node.layers.insert(layer, has);
                    self.holders.entry(layer).or_default().insert(peer);
                    self.entries += 1;
                }
                None if node.layers.remove(&layer).is_some() => self.unlink(&layer, &peer),
                None => {}
            }
        }
        Ok(())
    }

    /// The node's connection has gone.
    pub fn lost(&mut self, peer: &PeerId, now: Duration) {
        if let Some(node) = self.nodes.get_mut(peer) {
            node.lost.get_or_insert(now);
        }
    }

    /// Forgets nodes that have been gone for [`GRACE`].
    pub fn tick(&mut self, now: Duration) {
        let gone = |node: &Node| node.lost.is_some_and(|at| now.saturating_sub(at) >= GRACE);
        let gone: Vec<PeerId> =
            self.nodes.iter().filter(|(_, node)| gone(node)).map(|(peer, _)| *peer).collect();
        gone.iter().for_each(|peer| self.forget(peer));
    }

    /// Forgets a node.
    pub fn forget(&mut self, peer: &PeerId) {
        self.empty(peer);
        self.nodes.remove(peer);
    }

    /// Forgets everything: this node is no tracker any more.
    pub fn clear(&mut self) {
        *self = Self { refused: self.refused, ..Self::default() };
    }

    /// At most `most` nodes that hold something of the layer and can be called,
    /// `asker` apart. Those near `from` by the first bits of their address come
    /// first, whole holders before others, and else in an order of the asker's own,
    /// so that not everybody is sent to the same.
    pub fn who_has(
        &self,
        layer: &Digest,
        asker: &PeerId,
        from: Option<IpAddr>,
        most: usize,
    ) -> Vec<Holder> {
        let known = self.holders.get(layer).into_iter().flatten().filter(|peer| *peer != asker);
        let mut found: Vec<Holder> = known
            .filter_map(|peer| {
                let node = self.nodes.get(peer)?;
                let has = *node.layers.get(layer)?;
                Some(Holder { peer: *peer, address: node.address?, has })
            })
            .collect();
        found.sort_by_cached_key(|holder| {
            let apart = from.map_or(0, |from| distance(from, holder.address.ip()));
            let mut order = blake3::Hasher::new();
            order.update(&asker.0).update(&holder.peer.0);
            (apart, std::cmp::Reverse(holder.has), *order.finalize().as_bytes())
        });
        found.truncate(most);
        found
    }

    /// Nodes that are connected and say what they hold.
    pub fn connected(&self) -> impl Iterator<Item = &PeerId> {
        self.nodes.iter().filter(|(_, node)| node.lost.is_none()).map(|(peer, _)| peer)
    }

    /// Nodes that are known.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Layers that somebody holds.
    pub fn layers(&self) -> usize {
        self.holders.len()
    }

    /// Announcements that were not taken in.
    pub fn refused(&self) -> u64 {
        self.refused
    }

    fn empty(&mut self, peer: &PeerId) {
        let Some(node) = self.nodes.get_mut(peer) else { return };
        for layer in std::mem::take(&mut node.layers).into_keys() {
            self.unlink(&layer, peer);
        }
    }

    fn unlink(&mut self, layer: &Digest, peer: &PeerId) {
        let Some(holders) = self.holders.get_mut(layer) else { return };
        if holders.remove(peer) {
            self.entries -= 1;
        }
        if holders.is_empty() {
            self.holders.remove(layer);
        }
    }
}

/// How far two addresses are apart, in classes: one /24 (or /64), one /16 (/48), or
/// neither.
fn distance(a: IpAddr, b: IpAddr) -> u8 {
    let (a, b) = (a.to_canonical(), b.to_canonical());
    let (same, near, far) = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => ((a.to_bits() ^ b.to_bits()).leading_zeros(), 24, 16),
        (IpAddr::V6(a), IpAddr::V6(b)) => ((a.to_bits() ^ b.to_bits()).leading_zeros(), 64, 48),
        _ => return 2,
    };
    if same >= near {
        0
    } else if same >= far {
        1
    } else {
        2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u32) -> PeerId {
        let mut name = [0; 32];
        name[..4].copy_from_slice(&n.to_be_bytes());
        PeerId(name)
    }

    fn layer(n: u32) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    fn at(n: u32) -> Option<SocketAddr> {
        Some(SocketAddr::from((std::net::Ipv4Addr::from(0x0a01_0000 + n), 7400)))
    }

    fn names(tracker: &Tracker, of: u32) -> Vec<PeerId> {
        let found = tracker.who_has(&layer(of), &peer(99), None, 99);
        let mut names: Vec<PeerId> = found.iter().map(|holder| holder.peer).collect();
        names.sort();
        names
    }

    #[test]
    fn holders_are_named_as_they_announce() {
        let mut tracker = Tracker::default();
        let some = Some(Has::Some);
        tracker
            .announce(peer(1), at(1), (true, 0), [(layer(1), some), (layer(2), some)])
            .expect("1");
        tracker.announce(peer(2), at(2), (true, 0), [(layer(1), Some(Has::Whole))]).expect("2");
        assert_eq!(names(&tracker, 1), [peer(1), peer(2)]);
        assert_eq!(names(&tracker, 2), [peer(1)]);
        let found = tracker.who_has(&layer(1), &peer(1), None, 99);
        assert_eq!(found.len(), 1, "whoever asks is not named");
        assert_eq!(tracker.who_has(&layer(1), &peer(9), None, 1)[0].has, Has::Whole);
        tracker.announce(peer(1), at(1), (false, 1), [(layer(1), None)]).expect("less");
        assert_eq!(names(&tracker, 1), [peer(2)]);
        tracker.announce(peer(2), at(2), (true, 0), []).expect("anew");
        assert_eq!((names(&tracker, 1).len(), tracker.layers()), (0, 1));
    }

    #[test]
    fn what_is_near_the_asker_comes_first() {
        let mut tracker = Tracker::default();
        for n in [5, 0x0001_0000, 0x0100_0000] {
            let holds = [(layer(1), Some(Has::Whole))];
            tracker.announce(peer(n), at(n), (true, 0), holds).expect("room");
        }
        let from = |text: &str| {
            let asker = Some(text.parse().expect("address"));
            tracker.who_has(&layer(1), &peer(9), asker, 1)[0].peer
        };
        assert_eq!(from("10.1.0.77"), peer(5));
        assert_eq!(from("10.2.0.77"), peer(0x0001_0000));
        assert_eq!(from("11.1.0.77"), peer(0x0100_0000));
    }

    #[test]
    fn replayed_and_missing_announcements_change_nothing_for_others() {
        let mut tracker = Tracker::default();
        let holds = |n| [(layer(n), Some(Has::Whole))];
        tracker.announce(peer(1), at(1), (true, 0), holds(1)).expect("all");
        tracker.announce(peer(1), at(1), (false, 1), holds(2)).expect("more");
        let gone = [(layer(1), None)];
        assert_eq!(tracker.announce(peer(1), at(1), (false, 1), gone), Err(HeardError::Old));
        assert_eq!(names(&tracker, 1), [peer(1)]);
        let later = tracker.announce(peer(1), at(1), (false, 7), holds(3));
        assert_eq!(later, Err(HeardError::Gap));
        assert_eq!((tracker.layers(), tracker.refused()), (0, 2), "until it says all again");
        tracker.announce(peer(1), at(1), (true, 0), holds(1)).expect("all");
        assert_eq!(names(&tracker, 1), [peer(1)]);
    }

    #[test]
    fn the_lost_are_named_a_while_and_the_unreachable_never() {
        let mut tracker = Tracker::default();
        let holds = || [(layer(1), Some(Has::Whole))];
        tracker.announce(peer(1), at(1), (true, 0), holds()).expect("room");
        tracker.announce(peer(2), None, (true, 0), holds()).expect("room");
        assert_eq!(names(&tracker, 1), [peer(1)]);
        tracker.lost(&peer(1), GRACE);
        tracker.tick(GRACE * 2 - Duration::from_millis(1));
        assert_eq!(names(&tracker, 1), [peer(1)]);
        tracker.tick(GRACE * 2);
        assert_eq!((names(&tracker, 1).len(), tracker.nodes()), (0, 1));
    }

    #[test]
    fn floods_of_nodes_and_of_layers_are_bounded() {
        let mut tracker = Tracker::default();
        let many = (0..).map(|n| (layer(n), Some(Has::Some)));
        let flood = tracker.announce(peer(0), at(0), (true, 0), many.take(LAYERS_MAX + 9));
        assert_eq!(flood, Err(HeardError::TooMuch));
        assert_eq!(tracker.layers(), LAYERS_MAX);
        for n in 1..2 * NODES_MAX as u32 {
            let _ = tracker.announce(peer(n), at(n), (true, 0), [(layer(n), Some(Has::Some))]);
        }
        assert_eq!(tracker.nodes(), NODES_MAX);
        // Who was there goes on.
        assert_eq!(tracker.announce(peer(5), at(5), (false, 1), [(layer(5), None)]), Ok(()));
        let mut full = Tracker::default();
        for n in 0..=(ENTRIES_MAX / LAYERS_MAX) as u32 {
            let layers = (0..LAYERS_MAX as u32).map(|n| (layer(n), Some(Has::Some)));
            let _ = full.announce(peer(n), at(n), (true, 0), layers);
        }
        assert_eq!(full.entries, ENTRIES_MAX);
    }

    proptest! {
        #[test]
        fn the_two_tables_agree(told in prop::collection::vec(
            (0u32..4, any::<bool>(), 0u64..3, prop::collection::vec((0u32..6, any::<bool>()), 0..6)),
            0..40)) {
            let mut tracker = Tracker::default();
            for (from, full, number, changes) in told {
                let changes = changes.into_iter().map(|(n, on)| (layer(n), on.then_some(Has::Some)));
                let _ = tracker.announce(peer(from), at(from), (full, number), changes);
                let by_node: usize = tracker.nodes.values().map(|node| node.layers.len()).sum();
                let by_layer: usize = tracker.holders.values().map(BTreeSet::len).sum();
                prop_assert_eq!((by_node, by_layer), (tracker.entries, tracker.entries));
            }
        }
    }
}
