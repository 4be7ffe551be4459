//! Popularity while images, nodes and messages come and go: the shipped layer sets
//! and differences, against a count of who really holds what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use peersync::swarm::differences::{HeardError, Teller};
use peersync::swarm::popularity::{PeerSets, Short};
use peersync::types::Digest;

use crate::world::name;

/// Layers that there are, and neighbours of a node.
const LAYERS: u64 = 40;
const NEIGHBOURS: usize = 6;
/// A message holds so many entries.
const MOST: usize = 4;

/// A fault in the wiring, for tests of the checker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nobody is asked again after a gap.
    NoAgain,
}

#[derive(Default)]
struct Node {
    images: BTreeMap<Short, Arc<[Short]>>,
    sets: PeerSets,
    /// What each neighbour has been told.
    tellers: BTreeMap<usize, Teller<Short, Arc<[Short]>>>,
    neighbours: BTreeSet<usize>,
    alive: bool,
    life: u64,
}

pub(crate) struct Gossip {
    nodes: Vec<Node>,
    rng: fastrand::Rng,
    fault: Fault,
    seed: u64,
}

fn layer(n: u64) -> Digest {
    Digest::of(&n.to_be_bytes())
}

impl Gossip {
    pub(crate) fn new(count: usize, seed: u64, fault: Fault) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut nodes: Vec<Node> = (0..count).map(|_| Node::default()).collect();
        for node in 0..count {
            nodes[node].alive = true;
            for _ in 0..NEIGHBOURS / 2 {
                let other = rng.usize(0..count);
                if other != node {
                    nodes[node].neighbours.insert(other);
                    nodes[other].neighbours.insert(node);
                }
            }
        }
        Self { nodes, rng, fault, seed }
    }

    /// Lets things change for so many rounds, loses a share of the messages, and
    /// then some rounds without either: after these all must know what is.
    pub(crate) fn run(&mut self, rounds: usize, loss: f64) {
        for _ in 0..rounds {
            self.change();
            self.tell(loss);
        }
        // What was lost last shows when there is something to say again.
        (0..self.nodes.len()).for_each(|node| self.new_image(node));
        (0..3).for_each(|_| self.tell(0.0));
        self.check();
    }

    fn change(&mut self) {
        let node = self.rng.usize(0..self.nodes.len());
        match self.rng.u8(0..4) {
            0 if self.nodes[node].images.len() > 1 => {
                let first = *self.nodes[node].images.keys().next().expect("one");
                self.nodes[node].images.remove(&first);
            }
            1 => self.toggle(node),
            _ => self.new_image(node),
        }
    }

    fn new_image(&mut self, node: usize) {
        let layers: Arc<[Short]> = (0..self.rng.usize(1..5))
            .map(|_| PeerSets::short(&layer(self.rng.u64(0..LAYERS))))
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        self.nodes[node].images.insert(self.rng.u64(..), layers);
    }

    /// A node goes, or comes back with what it had.
    fn toggle(&mut self, node: usize) {
        let alive = !self.nodes[node].alive;
        let of = &mut self.nodes[node];
        (of.alive, of.life) = (alive, of.life + 1);
        (of.sets, of.tellers) = Default::default();
        for other in of.neighbours.clone() {
            self.nodes[other].sets.forget(&name(node));
        }
    }

    fn tell(&mut self, loss: f64) {
        for node in 0..self.nodes.len() {
            let images = self.nodes[node].images.clone();
            self.nodes[node].sets.own(name(node), &images);
            for other in self.nodes[node].neighbours.clone() {
                if self.nodes[node].alive && self.nodes[other].alive {
                    self.tell_one(node, other, &images, loss);
                }
            }
        }
    }

    fn tell_one(
        &mut self,
        node: usize,
        other: usize,
        images: &BTreeMap<Short, Arc<[Short]>>,
        loss: f64,
    ) {
        // A connection is of one life of each end.
        let link = self.nodes[node].life << 32 | self.nodes[other].life;
        let said =
            self.nodes[node].tellers.entry(other).or_default().say(link, images, MOST, |_| 1);
        let mut again = false;
        for part in said {
            if self.rng.f64() < loss {
                continue;
            }
            let changes = part.changes.into_iter();
            let changes = changes.map(|(image, layers)| (image, layers.map(|all| all.to_vec())));
            let place = (part.full, part.number);
            let told = self.nodes[other].sets.tell(name(node), place, changes.collect());
            again |= told == Err(HeardError::Gap);
        }
        if again && self.fault != Fault::NoAgain {
            self.nodes[node].tellers.entry(other).or_default().again();
        }
    }

    /// `rho` of each layer is, at each node, the share of the images of it and of its
    /// neighbours that have the layer; and `pop` has its bounds.
    fn check(&self) {
        for (at, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.alive) {
            let seen = node.neighbours.iter().copied().chain([at]);
            let seen: Vec<&Node> = seen.map(|n| &self.nodes[n]).filter(|node| node.alive).collect();
            let images: Vec<&Arc<[Short]>> =
                seen.iter().flat_map(|node| node.images.values()).collect();
            for n in 0..LAYERS {
                let short = PeerSets::short(&layer(n));
                let with = images.iter().filter(|image| image.contains(&short)).count();
                let right = with as f64 / images.len().max(1) as f64;
                let rho = node.sets.rho(&layer(n));
                assert!(
                    (rho - right).abs() < 1e-9,
                    "seed {}: node {at} takes layer {n} to be in {rho} of all, and it is {right}",
                    self.seed
                );
            }
            for other in &node.neighbours {
                let pop = node.sets.pop(&name(*other));
                assert!((0.0..=100.0).contains(&pop), "seed {}: pop is {pop}", self.seed);
            }
        }
    }
}
