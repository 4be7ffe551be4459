//! The serving side: what others ask of this node.
//!
//! [`queue`] and [`governor`] decide, without I/O; [`worker`] reads and sends.

pub(super) mod compress;
pub(super) mod governor;
pub(super) mod queue;
pub(super) mod worker;

use std::sync::Arc;

use crate::layer::root::LayerRoot;
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use crate::wire::{Item, Place};

/// What a node has for others: the store and the first passes, seen from here.
///
/// Every method may block for a disk: they are called on threads for that. The
/// peer is given for the policy on private content; what it may not have is
/// [`Served::No`] to it.
pub trait BlockServer: Send + Sync + 'static {
    /// A block of an object.
    fn block(&self, peer: &PeerId, object: &ObjectId, index: u32) -> Served<VerifiedBlock>;

    /// The block list of an object.
    fn spec(&self, peer: &PeerId, object: &ObjectId) -> Served<Arc<ObjectSpec>>;

    /// The roots that are known of a blob's index.
    fn roots(&self, peer: &PeerId, blob: &Digest) -> Vec<LayerRoot>;

    /// What this node's first pass over the blob has come by, as far as it is
    /// handed on.
    fn item(&self, peer: &PeerId, blob: &Digest, number: u64) -> Served<Handed>;

    /// A manifest, index or configuration of an image.
    fn document(&self, _peer: &PeerId, _digest: &Digest) -> Served<Vec<u8>> {
        Served::No
    }

    /// What the name of an image last stood for: the digest of its manifest, and
    /// when it was looked up, in seconds since 1970. The name is given as its BLAKE3.
    fn image(&self, _peer: &PeerId, _name: &BlockHash) -> Served<(Digest, u64)> {
        Served::No
    }
}

/// An answer of a [`BlockServer`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Served<T> {
    /// Here it is.
    Yes(T),
    /// It is not here, or not for this peer.
    No,
    /// It is here and can't be read.
    Failed,
}

/// An item of a first pass, to be handed on.
#[derive(Clone, Debug)]
pub struct Handed {
    /// What it is.
    pub item: Item,
    /// Number of the object in the layer; 0 is the bundle.
    pub object: u32,
    /// First byte in it.
    pub offset: u64,
    /// Its bytes, with their hash.
    pub block: VerifiedBlock,
}

impl Handed {
    pub(super) fn place(&self) -> Place {
        let (object, offset) = (self.object, self.offset);
        Place { hash: *self.block.hash(), item: self.item, object, offset }
    }
}
