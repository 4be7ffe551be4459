//! What is held and fetched: layers, and images that are made of them.

use std::sync::Arc;

use peersync::fetch::schedule::{BlockKey, Home, Place, Wanted};
use peersync::swarm::popularity::{PeerSets, Short};
use peersync::types::{Digest, ObjectId};

pub const BLOCK: u32 = 256 << 10;
/// A layer's stream can be entered at multiples of this.
const SPAN: u64 = 1 << 20;
/// Block numbers of different layers are so far apart.
const APART: u32 = 1 << 16;

/// A layer of one object.
#[derive(Clone, Debug)]
pub struct Layer {
    pub number: usize,
    pub digest: Digest,
    pub blocks: u32,
    /// Whether a registry has it, too.
    pub public: bool,
}

pub struct Content {
    pub layers: Vec<Layer>,
    /// By the numbers of their layers.
    pub images: Vec<Vec<usize>>,
}

impl Content {
    /// Images of two to four layers, one of which many share; of each the last is
    /// `private` with this probability.
    pub fn new(images: usize, private: f64, rng: &mut fastrand::Rng) -> Self {
        let mut content = Self { layers: Vec::new(), images: Vec::new() };
        let bases = (images / 8).max(1);
        for _ in 0..bases {
            content.layer(true, rng);
        }
        for _ in 0..images {
            let mut image = vec![rng.usize(0..bases)];
            for _ in 0..rng.usize(1..=2) {
                image.push(content.layer(true, rng));
            }
            let public = rng.f64() >= private;
            image.push(content.layer(public, rng));
            content.images.push(image);
        }
        content
    }

    fn layer(&mut self, public: bool, rng: &mut fastrand::Rng) -> usize {
        let number = self.layers.len();
        // On both sides of theta.
        let blocks = rng.u32(2..=10);
        let digest = Digest::of(&(number as u64).to_be_bytes());
        self.layers.push(Layer { number, digest, blocks, public });
        number
    }

    pub fn of_key(&self, key: &BlockKey) -> usize {
        u64::from_le_bytes(key.object.as_bytes()[..8].try_into().expect("8 bytes")) as usize
    }

    pub fn of_home(&self, home: &Home) -> Option<usize> {
        let Home::Layer(digest) = home else { return None };
        self.layers.iter().position(|layer| layer.digest == *digest)
    }

    /// An image's short name, and those of its layers.
    pub fn short(&self, image: usize) -> (Short, Arc<[Short]>) {
        let layers = self.images[image].iter();
        let layers = layers.map(|layer| PeerSets::short(&self.layers[*layer].digest));
        let name = PeerSets::short(&Digest::of(format!("image {image}").as_bytes()));
        (name, layers.collect())
    }
}

impl Layer {
    pub fn home(&self) -> Home {
        Home::Layer(self.digest)
    }

    pub fn size(&self) -> u64 {
        u64::from(self.blocks) * u64::from(BLOCK)
    }

    pub fn key(&self, index: u32) -> BlockKey {
        let mut id = [7; 32];
        id[..8].copy_from_slice(&(self.number as u64).to_le_bytes());
        BlockKey { object: ObjectId::from_bytes(id), index }
    }

    /// A block's number among those of all layers.
    pub fn place(&self, index: u32) -> u32 {
        self.number as u32 * APART + index
    }

    pub fn wanted(&self, index: u32) -> Wanted {
        let start = u64::from(index) * u64::from(BLOCK);
        let stream = start..start + u64::from(BLOCK);
        let entry = start / SPAN * SPAN;
        let next = stream.end.next_multiple_of(SPAN).min(self.size());
        let place = Place { stream, entry, next, run: 0 };
        Wanted { key: self.key(index), len: BLOCK, place: Some(place) }
    }
}
