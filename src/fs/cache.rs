//! A bounded cache by weight.
//!
//! Two generations: what is used moves to the young one; when that is half of
//! the budget, it becomes the old one and the old one is dropped. That keeps
//! whatever was used in the last half budget's worth of distinct uses, costs
//! one map operation, and needs no list.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(super) struct WeightCache<K, V> {
    generations: Mutex<Generations<K, V>>,
    half: usize,
}

struct Generations<K, V> {
    young: HashMap<K, (V, usize)>,
    old: HashMap<K, (V, usize)>,
    young_weight: usize,
}

impl<K: Eq + Hash + Copy, V: Clone> WeightCache<K, V> {
    /// `budget`: the most weight held, in the unit of the weights. A single
    /// value may exceed it and is then alone in its generation.
    pub(super) fn new(budget: usize) -> Self {
        Self {
            generations: Mutex::new(Generations {
                young: HashMap::new(),
                old: HashMap::new(),
                young_weight: 0,
            }),
            half: budget / 2,
        }
    }

    pub(super) fn get(&self, key: &K) -> Option<V> {
        let mut all = self.lock();
        if let Some((value, _)) = all.young.get(key) {
            return Some(value.clone());
        }
        let (value, weight) = all.old.remove(key)?;
        self.put(&mut all, *key, value.clone(), weight);
        Some(value)
    }

    pub(super) fn insert(&self, key: K, value: V, weight: usize) {
        let mut all = self.lock();
        all.old.remove(&key);
        self.put(&mut all, key, value, weight);
    }

    fn put(&self, all: &mut Generations<K, V>, key: K, value: V, weight: usize) {
        if all.young_weight.saturating_add(weight) > self.half && !all.young.is_empty() {
            all.old = std::mem::take(&mut all.young);
            all.old.remove(&key);
            all.young_weight = 0;
        }
        let replaced = all.young.insert(key, (value, weight));
        all.young_weight -= replaced.map_or(0, |(_, weight)| weight);
        all.young_weight += weight;
    }

    fn lock(&self) -> MutexGuard<'_, Generations<K, V>> {
        // Nothing that can panic is done under the lock.
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn weight(&self) -> usize {
        let all = self.lock();
        let sum = |m: &HashMap<K, (V, usize)>| m.values().map(|(_, w)| w).sum::<usize>();
        sum(&all.young) + sum(&all.old)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_holds_and_what_is_used_stays() {
        let cache = WeightCache::new(100);
        cache.insert(0, "kept", 1);
        for n in 1..1000u32 {
            cache.insert(n, "passing", 10);
            assert!(cache.weight() <= 100, "at {n}");
            assert_eq!(cache.get(&0), Some("kept"), "at {n}");
        }
        assert_eq!(cache.get(&1), None);
        assert_eq!(cache.get(&999), Some("passing"));
    }

    #[test]
    fn a_value_that_grows_is_counted_once() {
        let cache = WeightCache::new(1000);
        cache.insert(1, (), 10);
        cache.insert(1, (), 300);
        assert_eq!(cache.weight(), 300);
        // Larger than the whole budget: held alone rather than refused.
        cache.insert(2, (), 5000);
        assert_eq!(cache.get(&2), Some(()));
        cache.insert(3, (), 10);
        cache.insert(4, (), 600);
        assert_eq!(cache.get(&4), Some(()));
    }
}
