//! The *blocks* part of a layer index: the block list of each object.
//!
//! ```text
//! "PSYNCblk"  u32 version  u32 count, then for each object: u32 length, ObjectSpec
//! ```
//! Integers are little-endian. Canonical: it depends on the layer's content only.

use crate::types::{ObjectSpec, SpecError};

const MAGIC: &[u8; 8] = b"PSYNCblk";
const VERSION: u32 = 1;

/// Why bytes are not a list of block lists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    /// Not our format, or cut off, or something follows.
    #[error("the block lists are malformed")]
    Malformed,
    /// Made by a newer PeerSync.
    #[error("the block lists have version {0}; this PeerSync knows version {VERSION}")]
    Version(u32),
    /// One of them can't be that of an object.
    #[error("block list of object {0}: {1}")]
    Spec(usize, SpecError),
}

/// The part of the objects, in order of their numbers.
pub fn encode<'a>(specs: impl ExactSizeIterator<Item = &'a ObjectSpec>) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(VERSION.to_le_bytes());
    out.extend((specs.len() as u32).to_le_bytes());
    for spec in specs {
        let spec = spec.encode();
        out.extend((spec.len() as u32).to_le_bytes());
        out.extend(spec);
    }
    out
}

/// Reads a part. The input may be hostile; memory stays in proportion to it.
///
/// # Errors
/// [`BlocksError`].
pub fn decode(bytes: &[u8]) -> Result<Vec<ObjectSpec>, BlocksError> {
    let malformed = || BlocksError::Malformed;
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(malformed)?;
    let (version, rest) = word(rest).ok_or_else(malformed)?;
    if version != VERSION {
        return Err(BlocksError::Version(version));
    }
    let (count, mut rest) = word(rest).ok_or_else(malformed)?;
    let mut specs = Vec::new();
    for n in 0..count as usize {
        let (length, list) = word(rest).ok_or_else(malformed)?;
        let (spec, after) = list.split_at_checked(length as usize).ok_or_else(malformed)?;
        specs.push(ObjectSpec::decode(spec).map_err(|e| BlocksError::Spec(n, e))?);
        rest = after;
    }
    if rest.is_empty() { Ok(specs) } else { Err(malformed()) }
}

fn word(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*head), rest))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let specs = [ObjectSpec::of(b""), ObjectSpec::of(b"abc"), ObjectSpec::of(&[1; 300_000])];
        let part = encode(specs.iter());
        assert_eq!(decode(&part).as_deref(), Ok(&specs[..]));
        for cut in 0..part.len() {
            assert!(decode(&part[..cut]).is_err());
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&bytes);
            bytes.splice(0..0, MAGIC.iter().copied().chain(VERSION.to_le_bytes()));
            let _ = decode(&bytes);
        }
    }
}
