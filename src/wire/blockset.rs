//! Sets of block numbers of one object, as runs.

use std::ops::Range;

use super::codec::{Reader, WireError, push_varint};

/// No object has more blocks.
pub const BLOCKS_MAX: u32 = 1 << 25;
/// Most runs in one set on the wire; a holder with more says the rest in further
/// entries.
pub const RUNS_MAX: usize = 4096;

/// Block numbers of an object, as runs in ascending order that neither overlap
/// nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockSet(Vec<Range<u32>>);

impl BlockSet {
    /// The empty set.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The runs in ascending order.
    pub fn runs(&self) -> &[Range<u32>] {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Number of blocks.
    pub fn len(&self) -> u32 {
        self.0.iter().map(|run| run.end - run.start).sum()
    }

    /// One more than the highest number; 0 for the empty set.
    pub fn end(&self) -> u32 {
        self.0.last().map_or(0, |run| run.end)
    }

    /// Whether the block is in it.
    pub fn contains(&self, index: u32) -> bool {
        let at = self.0.partition_point(|run| run.end <= index);
        self.0.get(at).is_some_and(|run| run.start <= index)
    }

    /// Adds a run; numbers at or above [`BLOCKS_MAX`] are left out.
    pub fn insert(&mut self, run: Range<u32>) {
        let (mut start, mut end) = (run.start, run.end.min(BLOCKS_MAX));
        if start >= end {
            return;
        }
        // All runs that overlap or touch become one.
        let first = self.0.partition_point(|run| run.end < start);
        let last = first + self.0[first..].partition_point(|run| run.start <= end);
        if let (Some(a), Some(b)) = (self.0.get(first), last.checked_sub(1))
            && first < last
        {
            start = start.min(a.start);
            end = end.max(self.0[b].end);
        }
        self.0.splice(first..last, std::iter::once(start..end));
    }

    /// Takes a run out.
    pub fn remove(&mut self, run: &Range<u32>) {
        if run.is_empty() {
            return;
        }
        let first = self.0.partition_point(|r| r.end <= run.start);
        let last = first + self.0[first..].partition_point(|r| r.start < run.end);
        if first == last {
            return;
        }
        let (head, tail) = (self.0[first].start..run.start, run.end..self.0[last - 1].end);
        self.0.splice(first..last, [head, tail].into_iter().filter(|r| !r.is_empty()));
    }

    /// Cuts it into sets of at most [`RUNS_MAX`] runs.
    pub fn pieces(&self) -> impl Iterator<Item = Self> + '_ {
        self.0.chunks(RUNS_MAX).map(|runs| Self(runs.to_vec()))
    }

    /// Runs (u16), then for each the gap before it and its length less one, as
    /// varints. Sets of more than [`RUNS_MAX`] runs are cut.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let runs = &self.0[..self.0.len().min(RUNS_MAX)];
        out.extend((runs.len() as u16).to_le_bytes());
        let mut at = 0;
        for run in runs {
            push_varint(out, u64::from(run.start - at));
            push_varint(out, u64::from(run.end - run.start - 1));
            at = run.end;
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        const BAD: WireError = WireError::Invalid("runs of blocks out of order or range");
        let count = reader.count(RUNS_MAX, "runs of blocks")?;
        let mut runs = Vec::with_capacity(count);
        let mut at = 0u64;
        for n in 0..count {
            let (gap, more) = (reader.varint()?, reader.varint()?);
            let start = at.checked_add(gap).ok_or(BAD)?;
            let end = start.checked_add(more).and_then(|end| end.checked_add(1)).ok_or(BAD)?;
            // Runs that touch are one run.
            if end > u64::from(BLOCKS_MAX) || (n > 0 && gap == 0) {
                return Err(BAD);
            }
            runs.push(start as u32..end as u32);
            at = end;
        }
        Ok(Self(runs))
    }

    /// Bytes that [`Self::encode`] needs at most.
    pub(super) fn encoded_max(&self) -> usize {
        2 + 8 * self.0.len().min(RUNS_MAX)
    }
}

impl FromIterator<Range<u32>> for BlockSet {
    fn from_iter<I: IntoIterator<Item = Range<u32>>>(runs: I) -> Self {
        let mut set = Self::new();
        runs.into_iter().for_each(|run| set.insert(run));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0u32..200, 0u32..60), 0..60)) {
            let (mut set, mut model) = (BlockSet::new(), BTreeSet::new());
            for (add, start, len) in steps {
                let run = start..start + len;
                if add {
                    set.insert(run.clone());
                    model.extend(run);
                } else {
                    set.remove(&run);
                    model.retain(|n| !run.contains(n));
                }
                prop_assert!(set.runs().windows(2).all(|w| w[0].end < w[1].start));
                prop_assert!((0..300).all(|n| set.contains(n) == model.contains(&n)));
                prop_assert_eq!(set.len() as usize, model.len());
                prop_assert_eq!(set.end(), model.last().map_or(0, |n| n + 1));
            }
            let mut bytes = Vec::new();
            set.encode(&mut bytes);
            prop_assert!(bytes.len() <= set.encoded_max());
            let mut reader = Reader(&bytes);
            prop_assert_eq!(BlockSet::decode(&mut reader), Ok(set));
            prop_assert!(reader.0.is_empty());
        }

        #[test]
        fn hostile_runs_are_in_order_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(set) = BlockSet::decode(&mut Reader(&bytes)) {
                prop_assert!(set.runs().windows(2).all(|w| w[0].end < w[1].start));
                prop_assert!(set.end() <= BLOCKS_MAX);
            }
        }
    }
}
