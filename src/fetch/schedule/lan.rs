//! Who of a LAN gets what from outside, so that each byte enters it once.
//!
//! Rendezvous hashing: every node computes the same order of the nodes that want
//! a layer, for each run of its spans, without a word exchanged. The first in
//! order gets the run; when it dies or stands still, the next one takes over, and
//! only its runs move. For a layer without an index the unit is the whole blob,
//! and the first in order is the LAN's builder.

use super::model::Home;
use crate::types::{Digest, PeerId};

/// Sorts the nodes that want a layer by who shall get run number `run` of it:
/// first in order first.
pub fn order(home: &Home, run: u32, wanters: &mut [PeerId]) {
    wanters.sort_by_cached_key(|peer| std::cmp::Reverse((weight(home, run, peer), *peer)));
}

/// Sorts the nodes that want an unindexed layer by who shall build its index for
/// the LAN: first in order first. The others take over in turn.
pub fn builders(blob: &Digest, wanters: &mut [PeerId]) {
    order(&Home::Layer(*blob), u32::MAX, wanters);
}

/// A node's weight for a run. BLAKE3, so that nobody can choose a key that wins
/// all runs of a layer by trying few.
fn weight(home: &Home, run: u32, peer: &PeerId) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"peersync 2026 lan split v1");
    match home {
        Home::Layer(digest) => hasher.update(b"L").update(digest.as_bytes()),
        Home::Object(object) => hasher.update(b"O").update(object.as_bytes()),
    };
    hasher.update(&run.to_le_bytes()).update(&peer.0);
    let mut weight = [0; 8];
    hasher.finalize_xof().fill(&mut weight);
    u64::from_le_bytes(weight)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn home() -> Home {
        Home::Layer(Digest::of(b"layer"))
    }

    fn peers(n: u8) -> Vec<PeerId> {
        (0..n).map(|n| PeerId([n; 32])).collect()
    }

    #[test]
    fn runs_are_spread_evenly() {
        let mut counts = [0u32; 3];
        for run in 0..3000 {
            let mut wanters = peers(3);
            order(&home(), run, &mut wanters);
            counts[usize::from(wanters[0].0[0])] += 1;
        }
        assert!(counts.iter().all(|c| (850..1150).contains(c)), "{counts:?}");
    }

    proptest! {
        /// All nodes agree whatever order they know each other in, and when one
        /// goes, only its own runs move.
        #[test]
        fn all_agree_and_little_moves(n in 1u8..20, gone in 0u8..20, run in any::<u32>(), seed in any::<u64>()) {
            let mut a = peers(n);
            let mut b = a.clone();
            fastrand::Rng::with_seed(seed).shuffle(&mut b);
            order(&home(), run, &mut a);
            order(&home(), run, &mut b);
            prop_assert_eq!(&a, &b);
            let mut left = peers(n);
            left.retain(|p| p.0[0] != gone);
            order(&home(), run, &mut left);
            a.retain(|p| p.0[0] != gone);
            prop_assert_eq!(a, left);
        }
    }
}
