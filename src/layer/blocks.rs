//! The blocks part: what each object of a layer consists of.
//!
//! Layout: magic, number of objects u32, then their
//! [encoded](ObjectSpec::encode) specs, in the order of
//! [`Tree::objects`](super::tree::Tree::objects): the bundle first. Canonical,
//! like the tree.

use crate::types::{ObjectSpec, SpecError};

use super::tree::Tree;
use super::wire::Reader;

const MAGIC: [u8; 8] = *b"PSBLOCK\x01";

/// Why bytes are not the block lists of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BlocksError {
    /// Not this format, not this version of it, or not its full length.
    #[error("the list of block lists is malformed")]
    Malformed,
    /// One of the lists is no object.
    #[error("block list {index} is malformed")]
    Spec {
        /// Which.
        index: u32,
        /// Why.
        source: SpecError,
    },
}

/// The part's bytes.
pub fn encode(objects: &[ObjectSpec]) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend((objects.len() as u32).to_le_bytes());
    for spec in objects {
        out.extend(spec.encode());
    }
    out
}

/// Reads what [`encode`] wrote. The input may be hostile; memory is in
/// proportion to it.
///
/// # Errors
/// [`BlocksError`] where it is not exactly one well-formed list.
pub fn decode(bytes: &[u8]) -> Result<Vec<ObjectSpec>, BlocksError> {
    let mut reader = Reader(bytes);
    let (magic, count) = (reader.array(), reader.u32());
    let count = count.filter(|_| magic == Some(MAGIC));
    let mut objects = Vec::new();
    for index in 0..count.ok_or(BlocksError::Malformed)? {
        // A spec starts with its block size and its number of blocks.
        let mut ahead = reader;
        let length = ahead.u32().and(ahead.u32()).map(|blocks| 8 + 36 * u64::from(blocks));
        let spec = length.and_then(|length| reader.bytes(length));
        let spec = ObjectSpec::decode(spec.ok_or(BlocksError::Malformed)?);
        objects.push(spec.map_err(|source| BlocksError::Spec { index, source })?);
    }
    match reader.0 {
        [] => Ok(objects),
        _ => Err(BlocksError::Malformed),
    }
}

/// Whether these are the block lists of the objects that a tree names.
pub fn belong_to(objects: &[ObjectSpec], tree: &Tree) -> bool {
    let named = tree.objects();
    named.len() == objects.len()
        && named.zip(objects).all(|((id, length), spec)| length == spec.length() && id == spec.id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some() -> Vec<ObjectSpec> {
        vec![ObjectSpec::of(b""), ObjectSpec::of(b"x"), ObjectSpec::of(&vec![7; 600 << 10])]
    }

    #[test]
    fn lists_come_back() {
        assert_eq!(decode(&encode(&some())), Ok(some()));
        assert_eq!(decode(&encode(&[])), Ok(vec![]));
    }

    #[test]
    fn a_count_without_lists_takes_no_memory() {
        let mut bytes = encode(&[]);
        bytes[8..].fill(0xff);
        assert_eq!(decode(&bytes), Err(BlocksError::Malformed));
        bytes.extend([1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decode(&bytes), Err(BlocksError::Malformed));
    }

    proptest! {
        #[test]
        fn decode_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0usize..9) {
            let mut bytes = encode(&some());
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut);
            if let Ok(specs) = decode(&bytes) {
                prop_assert_eq!(encode(&specs), bytes);
            }
        }
    }
}
