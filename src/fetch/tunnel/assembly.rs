//! A block put together from pieces: of several requests, or of local files and
//! what a peer sends of the rest.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use crate::types::{BLOCK_MAX, BlockEntry, BlockHash, VerifiedBlock};
use crate::wire::BlockSet;

/// A block of which pieces come from here and there. What leaves it is verified.
#[derive(Debug)]
pub struct Assembly {
    hash: BlockHash,
    len: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    bytes: Vec<u8>,
    /// Byte numbers that are filled.
    filled: BlockSet,
    done: bool,
}

/// What a piece did.
#[derive(Debug)]
pub enum Filled {
    /// More is missing.
    More,
    /// It was the last one.
    Complete(VerifiedBlock),
    /// It was the last one, and the whole is not the block. Who sent a wrong piece
    /// can't be told where there are several; the assembly is empty again.
    Wrong,
    /// It does not lie in the block, or the block has been complete before.
    Surplus,
}

impl Assembly {
    /// An empty assembly of this block. `None` if no block can be that long.
    pub fn new(block: &BlockEntry) -> Option<Self> {
        let fits = (1..=BLOCK_MAX).contains(&block.len);
        fits.then(|| Self { hash: block.hash, len: block.len, inner: Mutex::default() })
    }

    /// Length of the block in bytes.
    pub fn block_len(&self) -> u32 {
        self.len
    }

    /// Puts a piece in its place. Bytes that are there already stay as they are.
    pub fn fill(&self, offset: u32, piece: &[u8]) -> Filled {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let end = u32::try_from(piece.len()).ok().and_then(|len| offset.checked_add(len));
        let Some(end) = end.filter(|end| *end <= self.len && !inner.done) else {
            return Filled::Surplus;
        };
        inner.bytes.resize(self.len as usize, 0);
        let Inner { bytes, filled, .. } = &mut *inner;
        for gap in gaps(filled, offset..end) {
            let from = (gap.start - offset) as usize..(gap.end - offset) as usize;
            bytes[gap.start as usize..gap.end as usize].copy_from_slice(&piece[from]);
        }
        filled.insert(offset..end);
        if filled.len() < self.len {
            return Filled::More;
        }
        let whole = std::mem::take(&mut *inner);
        match VerifiedBlock::verify(Bytes::from(whole.bytes), &self.hash) {
            Ok(block) => {
                inner.done = true;
                Filled::Complete(block)
            }
            Err(_) => Filled::Wrong,
        }
    }

    /// What is missing, in order.
    pub fn missing(&self) -> Vec<Range<u32>> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.done { Vec::new() } else { gaps(&inner.filled, 0..self.len).collect() }
    }
}

/// The stretches of `within` that are not in the set.
fn gaps(set: &BlockSet, within: Range<u32>) -> impl Iterator<Item = Range<u32>> {
    let first = set.runs().partition_point(|run| run.end <= within.start);
    let last = set.runs().partition_point(|run| run.start < within.end).max(first);
    let taken: Vec<_> = set.runs()[first..last].to_vec();
    let starts = std::iter::once(within.start).chain(taken.clone().into_iter().map(|run| run.end));
    let ends = taken.into_iter().map(|run| run.start).chain([within.end]);
    starts.zip(ends).map(|(start, end)| start..end).filter(|gap| gap.start < gap.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(data: &[u8]) -> BlockEntry {
        BlockEntry { hash: BlockHash::of(data), offset: 0, len: data.len() as u32 }
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_make_the_block(
            data in prop::collection::vec(any::<u8>(), 1..200),
            pieces in prop::collection::vec((any::<prop::sample::Index>(), 1usize..50), 0..20),
        ) {
            let assembly = Assembly::new(&entry(&data)).expect("fits");
            let mut complete = None;
            for (at, len) in pieces {
                let start = at.index(data.len());
                let end = (start + len).min(data.len());
                match assembly.fill(start as u32, &data[start..end]) {
                    Filled::Complete(block) => complete = Some(block),
                    Filled::More => prop_assert!(!assembly.missing().is_empty()),
                    Filled::Surplus => prop_assert!(complete.is_some()),
                    Filled::Wrong => prop_assert!(false),
                }
            }
            for gap in assembly.missing() {
                if let Filled::Complete(block) = assembly.fill(gap.start, &data[gap.start as usize..gap.end as usize]) {
                    complete = Some(block);
                }
            }
            let complete = complete.expect("complete");
            prop_assert_eq!(&complete.data()[..], &data[..]);
            prop_assert!(assembly.missing().is_empty());
        }
    }

    #[test]
    fn a_wrong_piece_spoils_the_whole_and_it_starts_anew() {
        let data = [7u8; 100];
        let assembly = Assembly::new(&entry(&data)).expect("fits");
        assert!(matches!(assembly.fill(0, &data[..60]), Filled::More));
        assert!(matches!(assembly.fill(60, &[8; 40]), Filled::Wrong));
        assert!(assembly.missing().into_iter().eq(std::iter::once(0..100)));
        assert!(matches!(assembly.fill(90, &data[..20]), Filled::Surplus));
        assert!(matches!(assembly.fill(0, &data), Filled::Complete(_)));
    }
}
