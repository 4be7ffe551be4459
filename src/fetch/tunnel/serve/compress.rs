//! Whether blocks travel compressed. Pure.

use std::collections::HashMap;

use crate::types::ObjectId;

/// The line is thin: at this level blocks of 256 KiB and 512 KiB take what the layer
/// takes as gzip. Level 1 takes a tenth more for two thirds of the time.
const LEVEL: i32 = 3;
/// A block is sent compressed if that takes no more than this share of its bytes.
const WORTH: (usize, usize) = (15, 16);
/// After so many blocks of an object in a row that were not worth it, most are
/// not tried any more.
const GIVE_UP: u8 = 3;
/// One block in so many is tried all the same.
const TRY_AGAIN: u32 = 16;
/// Objects that are remembered.
const OBJECTS_MAX: usize = 1024;

/// Remembers which objects compression is wasted on: images are full of what is
/// compressed already.
#[derive(Debug, Default)]
pub(super) struct Worth {
    objects: HashMap<ObjectId, u8>,
}

impl Worth {
    /// Whether to try a block.
    pub(super) fn try_it(&self, object: &ObjectId, index: u32) -> bool {
        let failed = self.objects.get(object).is_some_and(|failures| *failures >= GIVE_UP);
        !failed || index.is_multiple_of(TRY_AGAIN)
    }

    /// What came of it.
    pub(super) fn note(&mut self, object: &ObjectId, worth: bool) {
        if worth {
            self.objects.remove(object);
        } else {
            if self.objects.len() >= OBJECTS_MAX {
                self.objects.clear();
            }
            let failures = self.objects.entry(*object).or_default();
            *failures = failures.saturating_add(1);
        }
    }
}

/// The block's bytes as one zstd frame, if that is worth it.
pub(super) fn compress(block: &[u8]) -> Option<Vec<u8>> {
    // Very small ones fit a packet either way.
    if block.len() < 1024 {
        return None;
    }
    let packed = zstd::bulk::compress(block, LEVEL).ok()?;
    (packed.len() * WORTH.1 <= block.len() * WORTH.0).then_some(packed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_shrink_is_left_alone_after_a_few_tries() {
        let (text, object) = (b"peersync ".repeat(1000), ObjectId::from_bytes([1; 32]));
        assert!(compress(&text).is_some_and(|packed| packed.len() < text.len() / 10));
        let noise: Vec<u8> =
            (0..400u32).flat_map(|n| *blake3::hash(&n.to_le_bytes()).as_bytes()).collect();
        assert_eq!(compress(&noise), None);
        let mut worth = Worth::default();
        for _ in 0..GIVE_UP {
            assert!(worth.try_it(&object, 1));
            worth.note(&object, false);
        }
        assert!(!worth.try_it(&object, 1) && worth.try_it(&object, TRY_AGAIN));
        worth.note(&object, true);
        assert!(worth.try_it(&object, 1));
    }
}
