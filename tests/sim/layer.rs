//! What is fetched.

use std::ops::Range;

use peersync::fetch::schedule::{BlockKey, Home, Place, Wanted};
use peersync::types::{Digest, ObjectId};

use crate::world::MIB;

/// The one layer that all is about: objects of equal length, one after another.
#[derive(Clone, Debug)]
pub struct Layer {
    pub objects: u32,
    pub blocks: u32,
    pub block: u32,
    /// The stream can be entered at multiples of this.
    pub span: u64,
    /// Spans of a run.
    pub run_spans: u64,
    pub whole: bool,
}

impl Layer {
    pub fn of(bytes: u64) -> Self {
        let block = 256 << 10;
        let (blocks, span) = (64, MIB);
        let objects = (bytes / u64::from(block) / 64).max(1) as u32;
        Self { objects, blocks, block, span, run_spans: 8, whole: false }
    }

    pub fn home(&self) -> Home {
        Home::Layer(Digest::of(b"the layer"))
    }

    pub fn size(&self) -> u64 {
        u64::from(self.objects) * u64::from(self.blocks) * u64::from(self.block)
    }

    pub fn count(&self) -> u32 {
        self.objects * self.blocks
    }

    /// Block number `n` of the layer.
    pub fn key(&self, n: u32) -> BlockKey {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&(n / self.blocks).to_le_bytes());
        BlockKey { object: ObjectId::from_bytes(id), index: n % self.blocks }
    }

    pub fn number(&self, key: &BlockKey) -> u32 {
        let mut id = [0; 4];
        id.copy_from_slice(&key.object.as_bytes()[..4]);
        u32::from_le_bytes(id) * self.blocks + key.index
    }

    pub fn stream(&self, n: u32) -> Range<u64> {
        let start = u64::from(n) * u64::from(self.block);
        start..start + u64::from(self.block)
    }

    pub fn wanted(&self, n: u32) -> Wanted {
        let stream = self.stream(n);
        let entry = stream.start / self.span * self.span;
        let next = stream.end.next_multiple_of(self.span).min(self.size());
        let run = (entry / (self.span * self.run_spans)) as u32;
        let place = Place { stream, entry, next, run };
        Wanted { key: self.key(n), len: self.block, place: Some(place) }
    }
}
