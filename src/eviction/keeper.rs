//! Who keeps an object: rendezvous hashing over those that have it.
//!
//! Every holder draws a number from its own name and the object's; the highest
//! one keeps. Nobody has to be asked, and a holder that comes or goes changes only
//! the objects that it has. Nothing is lost where two nodes see different holders:
//! the keeper is only whom a promise is asked of (`promise`).

use crate::types::{ObjectId, PeerId};

/// Most neighbours that are taken into account. More than these are not seen:
/// copies of theirs don't count, and what they alone have is kept here.
pub const LAN_MAX: usize = 64;

/// A node of the LAN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub id: PeerId,
    /// Bytes that its store may occupy: twice the capacity keeps twice as much.
    pub capacity: u64,
}

/// A set of neighbours, by their position in [`super::View::peers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PeerSet(u64);

impl PeerSet {
    /// The set of these positions. Those from [`LAN_MAX`] on are left out.
    pub fn of(positions: &[usize]) -> Self {
        let mut set = Self::default();
        positions.iter().for_each(|position| set.insert(*position));
        set
    }

    /// The set of the positions whose bits are set.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Puts `position` in; one from [`LAN_MAX`] on is left out.
    pub fn insert(&mut self, position: usize) {
        if position < LAN_MAX {
            self.0 |= 1 << position;
        }
    }

    /// Takes those out that `keep` is false for.
    pub fn retain(&mut self, keep: impl Fn(usize) -> bool) {
        let kept = self.iter().filter(|position| keep(*position)).collect::<Vec<_>>();
        *self = Self::of(&kept);
    }

    /// Whether nobody is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many are in it.
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }

    /// Whether `position` is in it.
    pub fn contains(self, position: usize) -> bool {
        position < LAN_MAX && self.0 >> position & 1 == 1
    }

    /// The positions, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        std::iter::from_fn(move || {
            let position = left.trailing_zeros() as usize;
            left &= left.checked_sub(1)?;
            Some(position)
        })
    }
}

/// The number that a holder draws for an object: higher keeps.
///
/// Weighted rendezvous hashing, `-capacity / ln(u)` with `u` uniform in (0, 1)
/// from both names (Schindelhauer and Schomaker, "Weighted Distributed Hash
/// Tables", 2005): the share of objects that a holder wins is its share of the
/// capacity. A node that says nothing of its capacity counts as one byte.
pub fn score(member: &Member, object: &ObjectId) -> f64 {
    let mixed = mix(word(&member.id.0) ^ mix(word(object.as_bytes())));
    // 53 bits, and never 0 or 1.
    let u = ((mixed >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -(member.capacity.max(1) as f64) / u.ln()
}

/// Whether `a` keeps `object` rather than `b`: a strict order for different nodes.
pub fn outranks(a: &Member, b: &Member, object: &ObjectId) -> bool {
    score(a, object).total_cmp(&score(b, object)).then_with(|| a.id.cmp(&b.id)).is_gt()
}

/// The holder among `holders` that keeps `object`, by its position in `peers`.
pub fn keeper(peers: &[Member], holders: PeerSet, object: &ObjectId) -> Option<usize> {
    holders
        .iter()
        .filter(|position| *position < peers.len())
        .reduce(|best, next| if outranks(&peers[next], &peers[best], object) { next } else { best })
}

/// Names are hashes and keys: any eight bytes of them are as good as random.
fn word(bytes: &[u8; 32]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[8..16]);
    u64::from_le_bytes(word)
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn member(n: u8, capacity: u64) -> Member {
        Member { id: PeerId(*blake3::hash(&[n]).as_bytes()), capacity }
    }

    fn object(n: u32) -> ObjectId {
        ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    proptest! {
        #[test]
        fn one_keeper_whoever_looks(n: u32, count in 1usize..20, gone in 0usize..20) {
            let peers: Vec<_> = (0..count as u8).map(|n| member(n, 1 << 30)).collect();
            let all = PeerSet::of(&(0..count).collect::<Vec<_>>());
            let id = object(n);
            let first = keeper(&peers, all, &id).expect("somebody");
            let mut turned = peers.clone();
            turned.reverse();
            let other = keeper(&turned, all, &id).expect("somebody");
            prop_assert_eq!(peers[first].id, turned[other].id);
            // Somebody else goes: nothing changes.
            if gone < count && gone != first {
                let left: Vec<_> = (0..count).filter(|n| *n != gone).collect();
                prop_assert_eq!(keeper(&peers, PeerSet::of(&left), &id), Some(first));
            }
        }
    }

    #[test]
    fn twice_the_capacity_keeps_twice_as_much() {
        let peers = [member(1, 100), member(2, 200), member(3, 100)];
        let mut wins = [0u32; 3];
        for n in 0..40_000 {
            wins[keeper(&peers, PeerSet::of(&[0, 1, 2]), &object(n)).expect("somebody")] += 1;
        }
        assert!((19_500..20_500).contains(&wins[1]), "{wins:?}");
        assert!((9_500..10_500).contains(&wins[0]), "{wins:?}");
    }

    #[test]
    fn positions_that_are_not_there_are_nobody() {
        assert_eq!(keeper(&[], PeerSet::of(&[1, 5]), &object(1)), None);
        assert_eq!(PeerSet::of(&[63, 64, 1000]).iter().collect::<Vec<_>>(), [63]);
    }
}
