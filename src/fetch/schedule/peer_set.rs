//! Sets of peers, by slot.

/// Peers that can be known at a time. The last slot stands for registries.
pub(super) const SLOTS: usize = 256;

/// A peer's slot.
pub(super) type Slot = u8;

/// A set of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct PeerSet([u64; SLOTS / 64]);

impl PeerSet {
    pub(super) fn insert(&mut self, slot: Slot) {
        self.0[usize::from(slot / 64)] |= 1 << (slot % 64);
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        self.0[usize::from(slot / 64)] &= !(1 << (slot % 64));
    }

    pub(super) fn contains(&self, slot: Slot) -> bool {
        self.0[usize::from(slot / 64)] & 1 << (slot % 64) != 0
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; SLOTS / 64]
    }

    pub(super) fn len(&self) -> usize {
        self.0.iter().map(|w| w.count_ones() as usize).sum()
    }

    pub(super) fn and(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a &= b);
        self
    }

    pub(super) fn without(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(a, b)| *a &= !b);
        self
    }

    /// The slots in ascending order.
    pub(super) fn iter(self) -> impl Iterator<Item = Slot> {
        (0u8..).zip(self.0).flat_map(|(word, mut bits)| {
            std::iter::from_fn(move || {
                let bit = bits.trailing_zeros() as u8;
                bits &= bits.wrapping_sub(1);
                (bit < 64).then(|| word * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn as_a_tree_set(ops in prop::collection::vec((any::<bool>(), any::<u8>()), 0..200),
                         others in prop::collection::btree_set(any::<u8>(), 0..50)) {
            let (mut set, mut model) = (PeerSet::default(), BTreeSet::new());
            for (insert, slot) in ops {
                if insert { set.insert(slot); model.insert(slot); }
                else { set.remove(slot); model.remove(&slot); }
                prop_assert_eq!(set.contains(slot), insert);
            }
            let mut other = PeerSet::default();
            others.iter().for_each(|s| other.insert(*s));
            prop_assert_eq!(set.iter().collect::<Vec<_>>(), model.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(set.len(), model.len());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert!(set.and(other).iter().eq(model.intersection(&others).copied()));
            prop_assert!(set.without(other).iter().eq(model.difference(&others).copied()));
        }
    }
}
