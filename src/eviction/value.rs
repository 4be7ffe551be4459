//! What a copy is worth to the node and its LAN.

use super::plan::Item;

/// The knobs of [`value`]. The defaults are the ones of `docs/BENCHMARKS.md`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weights {
    /// Seconds without use that halve the value of what was just used.
    pub horizon: f32,
    /// What a miss costs where the LAN has another copy, against 1 for the only
    /// known one: 0 to 1.
    pub lan_cost: f32,
    /// Bytes that could be moved in the time that asking for an object takes.
    pub overhead: f32,
    /// Seconds without use after which a copy that the LAN has elsewhere goes even
    /// without pressure.
    pub spare_after: u32,
    /// Uses that a layer counts for which all images of the swarm contain; one in a
    /// share of them counts for that share.
    pub popularity: f32,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            horizon: 3600.0,
            lan_cost: 0.05,
            overhead: 64.0 * 1024.0,
            spare_after: 2 * 3600,
            popularity: 4.0,
        }
    }
}

/// The cost that keeping an object saves, for each byte of disk and second.
///
/// `rate * cost / bytes`, the knapsack's density: the budget is bytes, so what
/// saves least for its bytes goes first (greedy-dual-size, with a cost that knows
/// the replicas; paper, section III-C4).
///
/// - `rate = (1 + uses) / (idle + horizon)`: recency and popularity. The next use
///   of something is as far away as the last one is past; `uses` (decayed) raise
///   it. The horizon keeps what was used a moment ago from being priceless.
/// - `cost = (overhead + bytes) * miss`: bytes to move again, and the asking.
/// - `miss`: `lan_cost` where the LAN has other copies; `1 / (1 + remote)` for the
///   only local copy, inversely proportional to the remote replicas as the paper
///   has it, but never below `lan_cost`; 1 for the only known copy.
///
/// Finite and not negative for every item; an item of 0 bytes counts as one byte.
pub fn value(item: &Item, weights: &Weights) -> f32 {
    let rate = (1.0 + item.uses.max(0.0)) / (item.idle as f32 + weights.horizon.max(1.0));
    let bytes = item.bytes.max(1) as f32;
    let value = rate * miss_cost(item, weights) * (weights.overhead.max(0.0) + bytes) / bytes;
    if value.is_finite() { value } else { f32::MAX }
}

fn miss_cost(item: &Item, weights: &Weights) -> f32 {
    let near = weights.lan_cost.clamp(0.0, 1.0);
    if item.lan.is_empty() { (1.0 / (1.0 + item.remote as f32)).max(near) } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eviction::PeerSet;
    use crate::types::ObjectId;
    use proptest::prelude::*;

    fn item() -> Item {
        Item { bytes: 1 << 20, idle: 100, uses: 2.0, ..Item::new(ObjectId::from_bytes([1; 32])) }
    }

    proptest! {
        #[test]
        fn every_item_has_a_value(
            bytes: u64, idle: u32, uses in proptest::num::f32::ANY, remote: u32, lan: bool,
        ) {
            let lan = if lan { PeerSet::of(&[3]) } else { PeerSet::default() };
            let item = Item { bytes, idle, uses, remote, lan, ..item() };
            let value = value(&item, &Weights::default());
            prop_assert!(value.is_finite() && value >= 0.0);
        }
    }

    #[test]
    fn each_factor_counts_as_it_should() {
        let of = |item: Item| value(&item, &Weights::default());
        let base = of(item());
        assert!(of(Item { idle: 1000, ..item() }) < base, "older is worth less");
        assert!(of(Item { uses: 9.0, ..item() }) > base, "popular is worth more");
        assert!(of(Item { bytes: 1 << 30, ..item() }) < base, "large is worth less for a byte");
        let remote = of(Item { remote: 3, ..item() });
        let near = of(Item { lan: PeerSet::of(&[0]), ..item() });
        assert!(near < remote && remote < base, "the harder to get again, the dearer");
        assert!(of(Item { remote: 1, ..item() }) > remote);
    }
}
