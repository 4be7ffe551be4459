//! The objects that are in memory, and the files that are open: both bounded.
//!
//! Two clocks (second chance). An entry that anybody holds, the list of dirty
//! objects included, is never dropped, so there is never a second entry of an
//! object whose first one still has something to say.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use super::entry::Entry;
use crate::types::ObjectId;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Cache {
    map: RwLock<HashMap<ObjectId, Arc<Entry>>>,
    /// Held while an entry is loaded, so that it is loaded once.
    ring: Mutex<Ring>,
    open: Mutex<VecDeque<Weak<Entry>>>,
    max_cost: usize,
    max_open: usize,
}

/// Gives the entry of an object that is in memory.
pub(super) type Look<'a> = dyn Fn(&ObjectId) -> Option<Arc<Entry>> + 'a;

#[derive(Debug, Default)]
struct Ring {
    ids: VecDeque<ObjectId>,
    cost: usize,
}

impl Cache {
    /// A cache of entries of `max_cost` bytes and `max_open` open files, about.
    pub(super) fn new(max_cost: usize, max_open: usize) -> Self {
        Self {
            map: RwLock::default(),
            ring: Mutex::default(),
            open: Mutex::default(),
            max_cost,
            max_open: max_open.max(1),
        }
    }

    /// The entry if it is in memory.
    pub(super) fn get(&self, id: &ObjectId) -> Option<Arc<Entry>> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        let entry = map.get(id)?;
        entry.touch();
        Some(Arc::clone(entry))
    }

    /// The entry, made by `load` if it is not in memory.
    pub(super) fn get_or_load<E>(
        &self,
        id: &ObjectId,
        load: impl FnOnce() -> Result<Entry, E>,
    ) -> Result<Arc<Entry>, E> {
        if let Some(entry) = self.get(id) {
            return Ok(entry);
        }
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = self.get(id) {
            return Ok(entry);
        }
        let entry = Arc::new(load()?);
        ring.cost += entry.cost();
        ring.ids.push_back(*id);
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(*id, Arc::clone(&entry));
        // Twice round at most: the first clears the marks.
        let mut turns = 2 * ring.ids.len();
        while ring.cost > self.max_cost && turns > 0 {
            turns -= 1;
            let Some(oldest) = ring.ids.pop_front() else {
                break;
            };
            let Some(candidate) = map.get(&oldest) else {
                continue;
            };
            // Under the map's write lock nobody can take another reference.
            if candidate.touched.swap(false, Ordering::Relaxed) || Arc::strong_count(candidate) > 1
            {
                ring.ids.push_back(oldest);
            } else if let Some(dropped) = map.remove(&oldest) {
                ring.cost = ring.cost.saturating_sub(dropped.cost());
            }
        }
        Ok(entry)
    }

    /// Looks at what is in memory while nothing is loaded.
    pub(super) fn steady<T>(&self, look: impl FnOnce(&Look<'_>) -> T) -> T {
        let _ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        look(&|id| {
            let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
            map.get(id).cloned()
        })
    }

    /// Forgets an object that was removed from the store.
    pub(super) fn remove(&self, id: &ObjectId) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let mut map = self.map.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = map.remove(id) {
            ring.cost = ring.cost.saturating_sub(entry.cost());
            ring.ids.retain(|other| other != id);
        }
    }

    /// Notes that the entry's file was opened, and closes others beyond the bound.
    pub(super) fn opened(&self, entry: &Arc<Entry>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push_back(Arc::downgrade(entry));
        let mut turns = 2 * open.len();
        while open.len() > self.max_open && turns > 0 {
            turns -= 1;
            let Some(oldest) = open.pop_front() else {
                break;
            };
            let Some(candidate) = oldest.upgrade() else {
                continue;
            };
            let keep = Arc::ptr_eq(&candidate, entry)
                || candidate.touched.swap(false, Ordering::Relaxed)
                || !candidate.close_idle();
            if keep {
                open.push_back(oldest);
            }
        }
    }

    /// All entries in memory.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        let map = self.map.read().unwrap_or_else(PoisonError::into_inner);
        map.values().cloned().collect()
    }
}
