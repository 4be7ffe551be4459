//! When this node tells which layer it has, and again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::types::Digest;

/// A layer is told of again after this long: twice may be lost within a record's
/// lifetime.
pub const REPUBLISH: Duration = Duration::from_secs(10 * 60);
/// Layers that are told of. Telling one costs some 20 messages.
pub const PROVIDED_MAX: usize = 8192;

/// The layers, by when they are due. Times count from any one point.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    due: BTreeSet<(Duration, Digest)>,
    when: HashMap<Digest, Duration>,
}

impl Schedule {
    /// Tells of a layer as soon as may be. `false` if there are too many.
    pub(super) fn add(&mut self, layer: Digest, now: Duration) -> bool {
        if self.when.contains_key(&layer) {
            return true;
        }
        if self.when.len() >= PROVIDED_MAX {
            return false;
        }
        self.set(layer, now);
        true
    }

    /// Tells of it no more; whether it was told of.
    pub(super) fn remove(&mut self, layer: &Digest) -> bool {
        let Some(when) = self.when.remove(layer) else { return false };
        self.due.remove(&(when, *layer))
    }

    /// The next layer that is due. It is due again in a while, sooner or later by
    /// its name, so that not all come together for ever.
    pub(super) fn next(&mut self, now: Duration) -> Option<Digest> {
        let (when, layer) = *self.due.first()?;
        if when > now {
            return None;
        }
        self.due.pop_first();
        let early = REPUBLISH / 4 * u32::from(layer.as_bytes()[0]) / 256;
        self.set(layer, now + REPUBLISH - early);
        Some(layer)
    }

    /// Everything is due: there is somebody to tell it to, or it has new names.
    pub(super) fn all(&mut self, now: Duration) {
        let layers: Vec<Digest> = self.when.keys().copied().collect();
        self.due.clear();
        for layer in layers {
            self.set(layer, now);
        }
    }

    /// All layers.
    pub(super) fn layers(&self) -> impl Iterator<Item = &Digest> {
        self.when.keys()
    }

    fn set(&mut self, layer: Digest, when: Duration) {
        self.due.insert((when, layer));
        self.when.insert(layer, when);
    }
}

#[cfg(test)]
mod tests {
    use super::super::LIFETIME;
    use super::*;

    fn layer(n: u32) -> Digest {
        Digest::of(&n.to_le_bytes())
    }

    #[test]
    fn each_layer_is_told_of_at_once_and_at_least_twice_in_a_lifetime() {
        let mut schedule = Schedule::default();
        (0..100).for_each(|n| assert!(schedule.add(layer(n), Duration::ZERO)));
        let mut told = HashMap::<Digest, u32>::new();
        for second in 0..LIFETIME.as_secs() {
            while let Some(layer) = schedule.next(Duration::from_secs(second)) {
                *told.entry(layer).or_default() += 1;
            }
        }
        assert_eq!(told.len(), 100);
        assert!(told.values().all(|count| (3..=4).contains(count)), "{told:?}");
    }

    #[test]
    fn the_number_is_bounded_and_what_is_removed_is_not_told() {
        let mut schedule = Schedule::default();
        let added =
            (0..PROVIDED_MAX as u32 + 9).filter(|n| schedule.add(layer(*n), Duration::ZERO));
        assert_eq!(added.count(), PROVIDED_MAX);
        (1..PROVIDED_MAX as u32).for_each(|n| assert!(schedule.remove(&layer(n))));
        assert!(!schedule.remove(&layer(1)));
        assert_eq!(schedule.next(Duration::ZERO), Some(layer(0)));
        assert_eq!(schedule.next(Duration::from_secs(1)), None);
        schedule.all(Duration::from_secs(2));
        assert_eq!(schedule.next(Duration::from_secs(2)), Some(layer(0)));
    }
}
