//! Removing what a plan lets go of, no faster than it has to be while somebody reads.

use std::time::{Duration, Instant};

use tracing::{debug, warn};

use super::{Done, Evictor, Goes, Node, ORPHAN, Orphan, Round, goes_as};
use crate::eviction::{Class, Item, Pace, Pressure};
use crate::store::{Removal, SyncError};
use crate::types::ObjectId;
use crate::wire::Keep;

/// Objects that are removed at a time, so that nothing is locked for long,
const BATCH: usize = 64;
/// and their bytes, unless one has more.
const BATCH_BYTES: u64 = 256 << 20;
/// Objects that were evicted last, of which it is noted when they come back.
const REMEMBERED: usize = 4096;
/// A plan is carried out for so long; then it is time for another one.
const LASTS: Duration = Duration::from_secs(10);

impl Evictor {
    /// Does what was decided; at a pace, the first of it.
    pub(super) fn act(&self, node: &Node, round: &Round, pace: Option<&Pace>) -> Done {
        let mut done = Done::new();
        let pace = pace.map(|pace| (pace, Instant::now() + LASTS));
        if round.budget.pressure(round.disk.occupied) != Pressure::None {
            let orphans = round.inventory.orphans.iter().map(|orphan| {
                let Orphan { id, bytes, whole } = *orphan;
                Goes { id, bytes, whole, class: None }
            });
            self.remove(node, &orphans.collect::<Vec<_>>(), Removal::Everything, pace, &mut done);
        }
        let items = &round.inventory.items;
        let goes = round.plan.drop.iter().map(|drop| {
            let Item { id, bytes, whole, .. } = items[drop.item];
            Goes { id, bytes, whole, class: Some(drop.class) }
        });
        // Block lists stay, so that content comes back lazily.
        self.remove(node, &goes.collect::<Vec<_>>(), Removal::Data, pace, &mut done);
        self.say_what_went(round, &done);
        done
    }

    /// Removes what may go still, a few at a time.
    fn remove(
        &self,
        node: &Node,
        objects: &[Goes],
        how: Removal,
        pace: Option<(&Pace, Instant)>,
        done: &mut Done,
    ) {
        let mut read = self.counters.bytes_read.get();
        for batch in batches(objects) {
            let began = Instant::now();
            let going = self.begin_removal(batch);
            if going.is_empty() {
                continue;
            }
            let ids: Vec<ObjectId> = going.iter().map(|goes| goes.id).collect();
            let removed = self.store.remove_objects(&ids, how);
            if !self.removed(&going, removed, done) {
                return;
            }
            // So that nobody counts on them.
            node.engine.gone(&ids);
            self.tell_all(node, &Keep::Gone { objects: ids });
            let worked = began.elapsed();
            let before = std::mem::replace(&mut read, self.counters.bytes_read.get());
            if let Some((pace, until)) = pace
                && (!self.bell.rest(pace.rest(worked, read != before)) || Instant::now() >= until)
            {
                return;
            }
        }
    }

    /// Counts what went; `false` if it could not be removed.
    fn removed(&self, going: &[Goes], removed: Result<u64, SyncError>, done: &mut Done) -> bool {
        let mut state = self.state();
        going.iter().for_each(|goes| {
            state.going.remove(&goes.id);
        });
        if let Err(error) = removed {
            warn!("eviction: {error}");
            return false;
        }
        for goes in going {
            let why = goes.class.map_or(ORPHAN, goes_as);
            self.counter(goes.class).add(goes.bytes);
            let sum = done.entry(why).or_default();
            *sum = (sum.0 + 1, sum.1 + goes.bytes);
            debug!(object = %goes.id, bytes = goes.bytes, "evicted: {why}");
            state.ledger.dropped(&goes.id);
            state.leaving.remove(&goes.id);
            if state.evicted.len() >= REMEMBERED {
                state.evicted.pop_front();
            }
            state.evicted.push_back(goes.id);
        }
        true
    }

    /// Those that may go still, however old the plan is; they are not promised from
    /// now on.
    fn begin_removal(&self, batch: &[Goes]) -> Vec<Goes> {
        let mut state = self.state();
        let now = self.now();
        let may = |goes: &&Goes| match goes.class {
            Some(Class::Spare | Class::Handed | Class::Refused) => {
                state.ledger.may_drop(&goes.id, goes.whole, now)
            }
            _ => !state.ledger.binds(&goes.id, goes.whole, now),
        };
        let going: Vec<Goes> = batch.iter().filter(may).copied().collect();
        state.going.extend(going.iter().map(|goes| goes.id));
        going
    }

    fn counter(&self, class: Option<Class>) -> &crate::telemetry::Counter {
        match class {
            None => &self.counters.evicted_orphan,
            Some(Class::Spare | Class::Handed | Class::Refused) => &self.counters.evicted_spare,
            Some(_) => &self.counters.evicted_pressure,
        }
    }
}

/// What is removed at a time, in order.
fn batches(objects: &[Goes]) -> impl Iterator<Item = &[Goes]> {
    let mut left = objects;
    std::iter::from_fn(move || {
        let mut bytes = 0u64;
        let fits = |goes: &&Goes| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(goes.bytes.max(1));
            first || bytes <= BATCH_BYTES
        };
        let count = left.iter().take(BATCH).take_while(fits).count();
        let batch;
        (batch, left) = left.split_at(count);
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_has_so_many_objects_or_so_many_bytes_and_one_at_least() {
        let goes =
            |bytes| Goes { id: ObjectId::from_bytes([0; 32]), bytes, whole: true, class: None };
        let sizes = |all: &[u64]| -> Vec<usize> {
            let all: Vec<Goes> = all.iter().map(|bytes| goes(*bytes)).collect();
            batches(&all).map(<[Goes]>::len).collect()
        };
        assert!(sizes(&[]).is_empty());
        assert_eq!(sizes(&[1; 130]), [64, 64, 2]);
        assert_eq!(
            sizes(&[BATCH_BYTES * 2, 0, 1, BATCH_BYTES, u64::MAX, u64::MAX]),
            [1, 2, 1, 1, 1]
        );
        assert_eq!(sizes(&[BATCH_BYTES / 2, BATCH_BYTES / 2, 1]), [2, 1]);
    }
}
