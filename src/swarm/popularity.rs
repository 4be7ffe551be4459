//! Popularity of layers, and of the peers that hold them.
//!
//! Source: PeerSync paper (`004`), eq. (4) and (5). Peers that hold rare layers
//! score low, so that their line stays free for what only they have.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use super::differences::{Heard, HeardError};
use crate::types::{Digest, PeerId};

/// `lambda` of eq. (5). The paper leaves it open; at 4 a layer that half of all
/// images contain counts 0.86, one in ten 0.33.
pub const LAMBDA: f64 = 4.0;
/// Peers whose layer sets are kept.
pub const PEERS_MAX: usize = 1024;
/// Images of one peer that count.
const IMAGES_MAX: usize = 512;
/// Layers of one image that count.
const LAYERS_MAX: usize = 128;

/// The layers of one image.
pub type ImageLayers<L> = Vec<L>;

/// The layer sets that peers have told us: `P` names a peer, `L` a layer.
#[derive(Clone, Debug)]
pub struct LayerSets<P, L> {
    peers: BTreeMap<P, Vec<ImageLayers<L>>>,
    containing: HashMap<L, u64>,
    images: u64,
}

impl<P, L> Default for LayerSets<P, L> {
    fn default() -> Self {
        Self { peers: BTreeMap::new(), containing: HashMap::new(), images: 0 }
    }
}

impl<P: Ord, L: Copy + Eq + Ord + Hash> LayerSets<P, L> {
    /// Replaces what a peer holds. Beyond 512 images, 128 layers of an image and
    /// [`PEERS_MAX`] peers the rest is left out; `false` if the peer was.
    pub fn set(&mut self, peer: P, mut images: Vec<ImageLayers<L>>) -> bool {
        self.remove(&peer);
        if self.peers.len() >= PEERS_MAX {
            return false;
        }
        images.truncate(IMAGES_MAX);
        for image in &mut images {
            image.truncate(LAYERS_MAX);
            image.sort_unstable();
            image.dedup();
            for layer in image.iter() {
                *self.containing.entry(*layer).or_default() += 1;
            }
        }
        self.images += images.len() as u64;
        self.peers.insert(peer, images);
        true
    }

    /// Forgets a peer.
    pub fn remove(&mut self, peer: &P) {
        let images = self.peers.remove(peer).unwrap_or_default();
        self.images -= images.len() as u64;
        for layer in images.iter().flatten() {
            if let Some(count) = self.containing.get_mut(layer) {
                *count -= 1;
                if *count == 0 {
                    self.containing.remove(layer);
                }
            }
        }
    }

    /// `rho_l`, eq. (4): the share of all known image instances that contain the
    /// layer, in 0..=1.
    pub fn rho(&self, layer: &L) -> f64 {
        match self.images {
            0 => 0.0,
            all => self.containing.get(layer).map_or(0.0, |n| *n as f64 / all as f64),
        }
    }

    /// `pop_p^t`, eq. (5), in 0..=100; 100 for a peer of which nothing is known:
    /// it has nothing rare to save its line for.
    pub fn pop(&self, peer: &P) -> f64 {
        let (mut sum, mut count) = (0.0, 0u64);
        for layer in self.peers.get(peer).into_iter().flatten().flatten() {
            sum += (-LAMBDA * self.rho(layer)).exp();
            count += 1;
        }
        if count == 0 { 100.0 } else { (100.0 * (1.0 - sum / count as f64)).clamp(0.0, 100.0) }
    }
}

/// Names an image or a layer in what peers tell: the first 8 bytes of its digest.
pub type Short = u64;

/// What peers have told of their images, as differences, and what follows of it.
#[derive(Debug, Default)]
pub struct PeerSets {
    told: BTreeMap<PeerId, Told>,
    sets: LayerSets<PeerId, Short>,
    refused: u64,
}

#[derive(Debug, Default)]
struct Told {
    heard: Heard,
    images: BTreeMap<Short, Vec<Short>>,
}

impl PeerSets {
    /// The short name of a digest.
    pub fn short(digest: &Digest) -> Short {
        let mut first = [0; 8];
        first.copy_from_slice(&digest.as_bytes()[..8]);
        Short::from_le_bytes(first)
    }

    /// A peer tells what has changed.
    ///
    /// # Errors
    /// [`HeardError`]; nothing is known of the peer then but after an old one.
    pub fn tell(
        &mut self,
        peer: PeerId,
        (full, number): (bool, u64),
        changes: Vec<(Short, Option<Vec<Short>>)>,
    ) -> Result<(), HeardError> {
        if !self.told.contains_key(&peer) && self.told.len() >= PEERS_MAX {
            self.refused += 1;
            return Err(HeardError::TooMuch);
        }
        let told = self.told.entry(peer).or_default();
        if let Err(error) = told.heard.take(full, number) {
            self.refused += 1;
            if error == HeardError::Gap {
                self.forget(&peer);
            }
            return Err(error);
        }
        if full {
            told.images.clear();
        }
        for (image, layers) in changes {
            match layers {
                Some(_) if told.images.len() >= IMAGES_MAX && !told.images.contains_key(&image) => {
                    self.refused += 1;
                    self.forget(&peer);
                    return Err(HeardError::TooMuch);
                }
                Some(layers) => drop(told.images.insert(image, layers)),
                None => drop(told.images.remove(&image)),
            }
        }
        let images = told.images.values().cloned().collect();
        self.sets.set(peer, images);
        Ok(())
    }

    /// What this node holds itself counts as well.
    pub fn own(&mut self, me: PeerId, images: &BTreeMap<Short, Arc<[Short]>>) {
        self.sets.set(me, images.values().map(|layers| layers.to_vec()).collect());
    }

    /// The peer is gone.
    pub fn forget(&mut self, peer: &PeerId) {
        self.told.remove(peer);
        self.sets.remove(peer);
    }

    /// `pop` of a peer, 0 to 100: eq. (5).
    pub fn pop(&self, peer: &PeerId) -> f64 {
        self.sets.pop(peer)
    }

    /// `rho` of a layer, 0 to 1: eq. (4).
    pub fn rho(&self, layer: &Digest) -> f64 {
        self.sets.rho(&Self::short(layer))
    }

    /// What was told and not taken in.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_holder_of_rare_layers_scores_lower() {
        let mut sets = LayerSets::default();
        sets.set(1, vec![vec![10, 11], vec![10, 12]]);
        sets.set(2, vec![vec![10, 11]]);
        sets.set(3, vec![vec![99]]);
        assert!((sets.rho(&10) - 0.75).abs() < 1e-9);
        assert!((sets.rho(&99) - 0.25).abs() < 1e-9);
        assert!((sets.rho(&77)).abs() < 1e-9);
        let e = |rho: f64| (-LAMBDA * rho).exp();
        let expected = 100.0 * (1.0 - (e(0.75) + e(0.5)) / 2.0);
        assert!((sets.pop(&2) - expected).abs() < 1e-9);
        assert!(sets.pop(&3) < sets.pop(&1) && sets.pop(&1) < sets.pop(&2));
        assert!((sets.pop(&4) - 100.0).abs() < 1e-9);
    }

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    #[test]
    fn peers_tell_differences_and_popularity_follows() {
        let mut sets = PeerSets::default();
        let common = Digest::of(b"common");
        let (base, rare) = (PeerSets::short(&common), 99);
        sets.own(peer(0), &BTreeMap::from([(1, Arc::from([base]))]));
        sets.tell(peer(1), (true, 0), vec![(1, Some(vec![base])), (2, Some(vec![base]))])
            .expect("all");
        sets.tell(peer(2), (true, 0), vec![(7, Some(vec![rare]))]).expect("all");
        assert!((sets.rho(&common) - 0.75).abs() < 1e-9);
        assert!(sets.pop(&peer(2)) < sets.pop(&peer(1)));
        let replayed = sets.tell(peer(1), (false, 0), vec![(2, None)]);
        assert_eq!(replayed, Err(HeardError::Old));
        assert!((sets.rho(&common) - 0.75).abs() < 1e-9);
        sets.tell(peer(1), (false, 1), vec![(2, None)]).expect("one less");
        assert!((sets.rho(&common) - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(sets.tell(peer(1), (false, 5), vec![]), Err(HeardError::Gap));
        sets.forget(&peer(2));
        assert!((sets.rho(&common) - 1.0).abs() < 1e-9, "of what is left");
    }

    #[test]
    fn floods_of_peers_and_images_are_bounded() {
        let mut sets = PeerSets::default();
        let many = |n: usize| (0..n as u64).map(|n| (n, Some(vec![n]))).collect();
        assert_eq!(sets.tell(peer(1), (true, 0), many(IMAGES_MAX + 1)), Err(HeardError::TooMuch));
        assert_eq!(sets.sets.images, 0);
        for n in 0..2 * PEERS_MAX as u32 {
            let mut name = [0; 32];
            name[..4].copy_from_slice(&n.to_le_bytes());
            let _ = sets.tell(PeerId(name), (true, 0), many(1));
        }
        assert_eq!((sets.told.len(), sets.sets.images), (PEERS_MAX, PEERS_MAX as u64));
    }

    proptest! {
        #[test]
        fn forgetting_undoes_telling(told in prop::collection::vec(
            (0u8..5, prop::collection::vec(prop::collection::vec(0u8..9, 0..6), 0..4)), 0..20)) {
            let mut sets = LayerSets::default();
            for (peer, images) in told {
                sets.set(peer, images);
                for peer in 0..5 {
                    prop_assert!((0.0..=100.0).contains(&sets.pop(&peer)));
                }
            }
            for peer in 0..5 {
                sets.remove(&peer);
            }
            prop_assert!(sets.images == 0 && sets.containing.is_empty());
        }
    }
}
