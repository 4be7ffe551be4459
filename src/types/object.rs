//! Objects: sequences of blocks kept in one local file.

use std::fmt;
use std::str::FromStr;

use super::block::{BlockHash, Mismatch};
use super::hex::{Hex, parse_32};

/// No block is larger than this, in bytes of uncompressed content.
pub const BLOCK_MAX: u32 = 1 << 20;
/// Block size of objects under [`LARGE_OBJECT`], of bundles and of index parts.
pub const BLOCK_SIZE_SMALL: u32 = 256 << 10;
/// Block size of objects of [`LARGE_OBJECT`] and more.
///
/// Half of [`BLOCK_MAX`]: a 4 KiB read in a cold large file then costs a thin
/// line at most two blocks, 1 MiB, where it straddles a boundary.
pub const BLOCK_SIZE_LARGE: u32 = 512 << 10;
/// Objects from this length on use [`BLOCK_SIZE_LARGE`].
pub const LARGE_OBJECT: u64 = 64 << 20;
/// Regular files from this length on are objects of their own (the passthrough
/// class); smaller ones go into the layer's bundle.
pub const PASSTHROUGH_MIN: u64 = 256 << 10;

/// Longest object, in bytes (16 TiB), and with it the most blocks.
const OBJECT_MAX: u64 = 16 << 40;
const BLOCKS_MAX: usize = 1 << 25;

/// The block size of a new object of `length` bytes. The policy can change:
/// the size that was used is recorded in the object.
pub fn block_size_for(length: u64) -> u32 {
    if length < LARGE_OBJECT { BLOCK_SIZE_SMALL } else { BLOCK_SIZE_LARGE }
}

/// An object's name: BLAKE3 over block size, length and block list.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId([u8; 32]);

impl ObjectId {
    /// Wraps 32 raw bytes that were read from a record.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "obj:{}", Hex(&self.0[..8]))
    }
}

impl FromStr for ObjectId {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        parse_32(text).map(Self).ok_or(Mismatch)
    }
}

/// One block of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// The block's name.
    pub hash: BlockHash,
    /// First byte of the block in the object.
    pub offset: u64,
    /// Length in bytes: 1 to the object's block size.
    pub len: u32,
}

/// What an object consists of: block size and block list. Its hash is the
/// object's name, so whoever knows the name can check the list.
///
/// Blocks are `block_size` long, save the last one and, in a bundle, those that
/// end early at a gap of the tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectSpec {
    block_size: u32,
    length: u64,
    hashes: Vec<BlockHash>,
    /// End offset of each block; empty where all but the last are full.
    ends: Vec<u64>,
}

/// Why a block list is not that of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// Block size 0 or above [`BLOCK_MAX`].
    #[error("block size {0} is not in 1..={BLOCK_MAX}")]
    BlockSize(u32),
    /// A block of length 0, or longer than the block size.
    #[error("block {0} has an impossible length")]
    BlockLength(usize),
    /// More bytes or blocks than an object may have.
    #[error("the object is larger than an object may be")]
    TooLarge,
    /// The bytes end inside the list, or go on after it.
    #[error("the encoded block list is malformed")]
    Malformed,
}

impl ObjectSpec {
    /// Makes an object of blocks with the given hashes and lengths.
    ///
    /// # Errors
    /// [`SpecError`] where a length, the count or the sum is out of bounds.
    pub fn new(
        block_size: u32,
        blocks: impl IntoIterator<Item = (BlockHash, u32)>,
    ) -> Result<Self, SpecError> {
        if block_size == 0 || block_size > BLOCK_MAX {
            return Err(SpecError::BlockSize(block_size));
        }
        let (mut hashes, mut ends, mut length) = (Vec::new(), Vec::new(), 0u64);
        for (hash, len) in blocks {
            if len == 0 || len > block_size {
                return Err(SpecError::BlockLength(hashes.len()));
            }
            length += u64::from(len);
            if length > OBJECT_MAX || hashes.len() == BLOCKS_MAX {
                return Err(SpecError::TooLarge);
            }
            hashes.push(hash);
            ends.push(length);
        }
        let uniform = ends.split_last().is_none_or(|(_, full)| {
            full.iter().zip(1u64..).all(|(end, n)| *end == n * u64::from(block_size))
        });
        if uniform {
            ends = Vec::new();
        }
        hashes.shrink_to_fit();
        ends.shrink_to_fit();
        Ok(Self { block_size, length, hashes, ends })
    }

    /// The object of the bytes `data`, in blocks of [`block_size_for`] its length.
    pub fn of(data: &[u8]) -> Self {
        let block_size = block_size_for(data.len() as u64);
        let blocks = data
            .chunks(block_size as usize)
            .map(|c| (BlockHash::of(c), u32::try_from(c.len()).unwrap_or(block_size)));
        Self::new(block_size, blocks).unwrap_or_else(|_| unreachable!("chunks fit the block size"))
    }

    /// The object's name: BLAKE3 of the [encoded](Self::encode) spec under a
    /// key of its own.
    pub fn id(&self) -> ObjectId {
        let mut hasher = blake3::Hasher::new_derive_key("peersync 2026 object v1");
        hasher.update(&self.encode());
        ObjectId(hasher.finalize().into())
    }

    /// Size of a full block in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// Length of the object in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Number of blocks.
    pub fn block_count(&self) -> u32 {
        // BLOCKS_MAX bounds it.
        self.hashes.len() as u32
    }

    /// Block number `index`.
    pub fn block(&self, index: u32) -> Option<BlockEntry> {
        let i = index as usize;
        let hash = *self.hashes.get(i)?;
        let (offset, end) = if self.ends.is_empty() {
            let offset = u64::from(index) * u64::from(self.block_size);
            (offset, (offset + u64::from(self.block_size)).min(self.length))
        } else {
            (i.checked_sub(1).map_or(0, |p| self.ends[p]), self.ends[i])
        };
        Some(BlockEntry { hash, offset, len: (end - offset) as u32 })
    }

    /// All blocks in order.
    pub fn blocks(&self) -> impl ExactSizeIterator<Item = BlockEntry> + '_ {
        (0..self.hashes.len())
            .map(|i| self.block(i as u32).unwrap_or_else(|| unreachable!("index below the count")))
    }

    /// Number of the block that holds byte `offset`; `None` at or after the end.
    pub fn block_at(&self, offset: u64) -> Option<u32> {
        if offset >= self.length {
            None
        } else if self.ends.is_empty() {
            Some((offset / u64::from(self.block_size)) as u32)
        } else {
            Some(self.ends.partition_point(|end| *end <= offset) as u32)
        }
    }

    /// Numbers of the blocks that hold any of the `len` bytes from `offset`,
    /// cut at the end of the object.
    pub fn blocks_in(&self, offset: u64, len: u64) -> std::ops::Range<u32> {
        let end = offset.saturating_add(len).min(self.length);
        match (self.block_at(offset), end.checked_sub(1)) {
            (Some(first), Some(last)) if end > offset => {
                first..self.block_at(last).map_or(first, |last| last + 1)
            }
            _ => 0..0,
        }
    }

    /// The spec as bytes: block size (u32), count (u32), then for each block its
    /// length (u32) and hash (32 bytes); integers little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + 36 * self.hashes.len());
        out.extend(self.block_size.to_le_bytes());
        out.extend(self.block_count().to_le_bytes());
        for block in self.blocks() {
            out.extend(block.len.to_le_bytes());
            out.extend(block.hash.as_bytes());
        }
        out
    }

    /// Reads what [`Self::encode`] wrote. The input may be hostile.
    ///
    /// # Errors
    /// [`SpecError`] where it is not exactly one well-formed spec.
    pub fn decode(bytes: &[u8]) -> Result<Self, SpecError> {
        let (head, list) = bytes.split_at_checked(8).ok_or(SpecError::Malformed)?;
        let word = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let count = word(&head[4..]) as usize;
        if count.checked_mul(36) != Some(list.len()) {
            return Err(SpecError::Malformed);
        }
        let blocks = list.chunks_exact(36).map(|entry| {
            let mut hash = [0; 32];
            hash.copy_from_slice(&entry[4..]);
            (BlockHash::from_bytes(hash), word(entry))
        });
        Self::new(word(head), blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn spec(block_size: u32, lens: &[u32]) -> ObjectSpec {
        let blocks = lens.iter().map(|len| (BlockHash::of(&len.to_le_bytes()), *len));
        ObjectSpec::new(block_size, blocks).expect("valid lengths")
    }

    proptest! {
        #[test]
        fn offsets_and_blocks_agree(lens in prop::collection::vec(1u32..=64, 0..50)) {
            let spec = spec(64, &lens);
            prop_assert_eq!(spec.length(), lens.iter().map(|l| u64::from(*l)).sum::<u64>());
            let mut next = 0;
            for (n, block) in spec.blocks().enumerate() {
                prop_assert_eq!(block.offset, next);
                next += u64::from(block.len);
                prop_assert_eq!(spec.block_at(block.offset), Some(n as u32));
                prop_assert_eq!(spec.block_at(next - 1), Some(n as u32));
            }
            prop_assert_eq!(spec.block_at(next), None);
            prop_assert_eq!(spec.blocks_in(0, u64::MAX), 0..spec.block_count());
            prop_assert_eq!(ObjectSpec::decode(&spec.encode()), Ok(spec));
        }

        #[test]
        fn decode_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = ObjectSpec::decode(&bytes);
        }
    }

    #[test]
    fn the_name_covers_block_size_lengths_and_hashes() {
        let id = spec(64, &[64, 10]).id();
        assert_ne!(id, spec(65, &[64, 10]).id());
        assert_ne!(id, spec(64, &[64, 11]).id());
        assert_ne!(id, spec(64, &[10, 64]).id());
        assert_eq!(id, spec(64, &[64, 10]).id());
    }

    #[test]
    fn impossible_lists_are_refused() {
        let hash = BlockHash::of(b"x");
        assert_eq!(ObjectSpec::new(0, []), Err(SpecError::BlockSize(0)));
        assert_eq!(ObjectSpec::new(8, [(hash, 0)]), Err(SpecError::BlockLength(0)));
        assert_eq!(ObjectSpec::new(8, [(hash, 9)]), Err(SpecError::BlockLength(0)));
    }
}
