//! Blocks: the unit of content addressing, verification and caching.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use super::hex::{Hex, parse_32};

/// The BLAKE3 name of a block, or of a whole content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockHash([u8; 32]);

impl BlockHash {
    /// Wraps the 32 raw bytes of a BLAKE3 value.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The BLAKE3 of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(blake3::hash(data).into())
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for BlockHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", Hex(&self.0[..8]))
    }
}

impl FromStr for BlockHash {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        parse_32(text).map(Self).ok_or(Mismatch)
    }
}

/// Bytes that are not the block they were said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes do not have the block's hash")]
pub struct Mismatch;

/// Bytes together with the hash that they really have.
///
/// The invariant of the whole system: only a `VerifiedBlock` can reach the
/// store, a reader or a tunnel, and there is no way to make one but to hash
/// the bytes.
#[derive(Clone)]
pub struct VerifiedBlock {
    hash: BlockHash,
    data: Bytes,
}

impl VerifiedBlock {
    /// Hashes bytes whose name is not known yet (a first pass over a layer).
    pub fn seal(data: Bytes) -> Self {
        Self { hash: BlockHash::of(&data), data }
    }

    /// Hashes bytes that somebody claims to be the block `expected`.
    ///
    /// # Errors
    /// [`Mismatch`] if they are not; the bytes are dropped.
    pub fn verify(data: Bytes, expected: &BlockHash) -> Result<Self, Mismatch> {
        let block = Self::seal(data);
        if block.hash == *expected { Ok(block) } else { Err(Mismatch) }
    }

    /// The block's name.
    pub fn hash(&self) -> &BlockHash {
        &self.hash
    }

    /// The block's bytes.
    pub fn data(&self) -> &Bytes {
        &self.data
    }
}

impl fmt::Debug for VerifiedBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}[{}]", self.hash, self.data.len())
    }
}
