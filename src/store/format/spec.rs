//! Naming an object from its block list piece by piece: a checker need not hold
//! the list of an object of 16 TiB in memory.

use crate::types::ObjectId;

/// The context under which an object's encoded block list is hashed; see
/// [`ObjectSpec::id`](crate::types::ObjectSpec::id).
const CONTEXT: &str = "peersync 2026 object v1";

/// Computes an [`ObjectId`] from the rows of the `specs` table, which hold the
/// encoded list without its head.
#[derive(Debug)]
pub struct SpecHasher(blake3::Hasher);

impl SpecHasher {
    /// Begins the list of an object of `blocks` blocks.
    pub fn new(block_size: u32, blocks: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&block_size.to_le_bytes());
        hasher.update(&blocks.to_le_bytes());
        Self(hasher)
    }

    /// Adds the next entries: length (u32) and hash (32 bytes) each.
    pub fn update(&mut self, entries: &[u8]) {
        self.0.update(entries);
    }

    /// The object's name.
    pub fn finish(&self) -> ObjectId {
        ObjectId::from_bytes(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::format::records::encode_spec_chunk;
    use crate::types::{BlockHash, ObjectSpec};

    #[test]
    fn pieces_give_the_same_name() {
        let blocks = (0..3000u32).map(|i| (BlockHash::of(&i.to_le_bytes()), 1 + i % 64));
        let spec = ObjectSpec::new(64, blocks).expect("valid");
        let mut hasher = SpecHasher::new(64, 3000);
        for start in [0, 1024, 2048] {
            hasher.update(&encode_spec_chunk(&spec, start..(start + 1024).min(3000)));
        }
        assert_eq!(hasher.finish(), spec.id());
    }
}
