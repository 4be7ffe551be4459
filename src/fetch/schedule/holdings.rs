//! Which peer has which blocks, of objects wanted and not.
//!
//! Invariant: memory is bounded for each peer, whatever it tells.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use super::model::{BlockKey, Holding};
use super::peer_set::{PeerSet, SLOTS, Slot};
use crate::types::ObjectId;

/// Objects of one peer that are remembered.
const OBJECTS_MAX: usize = 1 << 14;
/// 64-bit words of bitmaps of one peer: 4 MiB, or 32 million blocks.
const WORDS_MAX: usize = 1 << 19;
/// No object has more blocks.
const BLOCKS_MAX: u32 = 1 << 25;

/// What peers hold.
#[derive(Default)]
pub(super) struct Holdings {
    objects: HashMap<ObjectId, BTreeMap<Slot, Bits>>,
    cost: BTreeMap<Slot, Cost>,
}

#[derive(Default)]
struct Cost {
    objects: usize,
    words: usize,
}

/// The blocks of one object: those set, or with `but` all but those set.
#[derive(Default)]
struct Bits {
    but: bool,
    words: Vec<u64>,
}

impl Holdings {
    /// Notes a change; `false` if it was beyond the bounds and left out.
    pub(super) fn change(&mut self, slot: Slot, object: ObjectId, holding: &Holding) -> bool {
        debug_assert!(usize::from(slot) < SLOTS);
        if let Holding::Nothing = holding {
            self.forget_object(slot, &object);
            return true;
        }
        if let Holding::Add(range) | Holding::Remove(range) = holding
            && (range.end > BLOCKS_MAX || range.is_empty())
        {
            return false;
        }
        let cost = self.cost.entry(slot).or_default();
        let peers = self.objects.entry(object).or_default();
        if !peers.contains_key(&slot) {
            if matches!(holding, Holding::Remove(_)) || cost.objects >= OBJECTS_MAX {
                if peers.is_empty() {
                    self.objects.remove(&object);
                }
                return matches!(holding, Holding::Remove(_));
            }
            cost.objects += 1;
        }
        let bits = peers.entry(slot).or_default();
        cost.words -= bits.words.len();
        match holding {
            Holding::All => *bits = Bits { but: true, words: Vec::new() },
            Holding::Add(range) => bits.set(range, !bits.but, WORDS_MAX - cost.words),
            Holding::Remove(range) => bits.set(range, bits.but, WORDS_MAX - cost.words),
            Holding::Nothing => {}
        }
        cost.words += bits.words.len();
        true
    }

    /// Everybody who has the block.
    pub(super) fn holders(&self, key: &BlockKey) -> PeerSet {
        let mut set = PeerSet::default();
        for (slot, bits) in self.objects.get(&key.object).into_iter().flatten() {
            if bits.contains(key.index) {
                set.insert(*slot);
            }
        }
        set
    }

    /// Forgets a peer.
    pub(super) fn forget(&mut self, slot: Slot) {
        self.cost.remove(&slot);
        self.objects.retain(|_, peers| {
            peers.remove(&slot);
            !peers.is_empty()
        });
    }

    fn forget_object(&mut self, slot: Slot, object: &ObjectId) {
        let Some(peers) = self.objects.get_mut(object) else { return };
        if let (Some(bits), Some(cost)) = (peers.remove(&slot), self.cost.get_mut(&slot)) {
            cost.objects -= 1;
            cost.words -= bits.words.len();
        }
        if peers.is_empty() {
            self.objects.remove(object);
        }
    }
}

impl Bits {
    fn contains(&self, index: u32) -> bool {
        let word = self.words.get(index as usize / 64).copied().unwrap_or(0);
        (word >> (index % 64) & 1 == 1) != self.but
    }

    /// Sets or clears bits. Where the bitmap would grow beyond `words_max`, bits
    /// beyond stay clear: less is known of the peer than it told.
    fn set(&mut self, range: &Range<u32>, on: bool, words_max: usize) {
        if on {
            let words = (range.end as usize).div_ceil(64).min(words_max);
            self.words.resize(self.words.len().max(words), 0);
        }
        let end = range.end.min((self.words.len() * 64) as u32);
        let mut index = range.start;
        while index < end {
            let low = index % 64;
            let count = (64 - low).min(end - index);
            let mask = u64::MAX >> (64 - count) << low;
            let word = &mut self.words[index as usize / 64];
            *word = if on { *word | mask } else { *word & !mask };
            index += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const OBJECT: ObjectId = ObjectId::from_bytes([3; 32]);

    fn holding() -> impl Strategy<Value = Holding> {
        let range = (0u32..300, 1u32..200).prop_map(|(start, len)| start..start + len);
        prop_oneof![
            1 => Just(Holding::All),
            1 => Just(Holding::Nothing),
            4 => range.clone().prop_map(Holding::Add),
            4 => range.prop_map(Holding::Remove),
        ]
    }

    proptest! {
        #[test]
        fn as_sets_of_numbers(changes in prop::collection::vec((0u8..3, holding()), 0..40)) {
            let mut holdings = Holdings::default();
            let mut model = vec![BTreeSet::new(); 3];
            for (slot, holding) in changes {
                prop_assert!(holdings.change(slot, OBJECT, &holding));
                let set = &mut model[usize::from(slot)];
                match holding {
                    Holding::All => set.extend(0..600),
                    Holding::Nothing => set.clear(),
                    Holding::Add(range) => set.extend(range),
                    Holding::Remove(range) => set.retain(|n| !range.contains(n)),
                }
                for index in 0..600 {
                    let holders = holdings.holders(&BlockKey { object: OBJECT, index });
                    for slot in 0..3u8 {
                        prop_assert_eq!(holders.contains(slot), model[usize::from(slot)].contains(&index));
                    }
                }
            }
            (0..3).for_each(|slot| holdings.forget(slot));
            prop_assert!(holdings.objects.is_empty() && holdings.cost.is_empty());
        }
    }

    #[test]
    fn a_talkative_peer_costs_bounded_memory() {
        let mut holdings = Holdings::default();
        for n in 0..50u8 {
            let object = ObjectId::from_bytes([n; 32]);
            holdings.change(1, object, &Holding::Add(BLOCKS_MAX - 1..BLOCKS_MAX));
        }
        assert!(holdings.cost[&1].words <= WORDS_MAX);
        assert!(!holdings.change(1, OBJECT, &Holding::Add(0..BLOCKS_MAX + 1)));
        for n in 0..OBJECTS_MAX as u32 * 2 {
            let mut id = [9; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            holdings.change(2, ObjectId::from_bytes(id), &Holding::All);
        }
        assert_eq!(holdings.cost[&2].objects, OBJECTS_MAX);
    }
}
