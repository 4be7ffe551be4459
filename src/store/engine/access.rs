//! When objects were last used, and what an eviction needs to know of each.
//!
//! A use costs a look at the clock and at one word of memory. What is new is
//! collected, and written in one go now and then: a crash forgets the last uses,
//! and nothing else.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, PoisonError};

use super::{Inner, MetaError, Store};
use crate::store::format::keys;
use crate::store::format::records::{ObjectRecord, Role, decode_time, encode_time};
use crate::store::format::tables::Table;
use crate::types::ObjectId;

/// Uses of an object within so many seconds count as one.
const GRAIN: u64 = 60;
/// Uses that wait to be written; more are not noted.
const WAITING_MAX: usize = 1 << 16;

/// Uses that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Accesses(Mutex<HashMap<ObjectId, u64>>);

/// An object as an eviction sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// Its name.
    pub id: ObjectId,
    /// Bytes of it that are there.
    pub bytes: u64,
    /// All of it is there.
    pub complete: bool,
    /// When it was last used, in seconds since 1970; 0 if never since that is noted.
    pub used: u64,
    /// The slots of the layers whose content it is.
    pub slots: Vec<u32>,
    /// It is a part of some layer's index.
    pub part: bool,
}

impl Store {
    /// Notes that somebody used the object, at `now` in seconds since 1970.
    pub fn note_used(&self, id: &ObjectId, now: u64) {
        if let Some(entry) = self.inner.cache.get(id) {
            // Also where the clock was set back.
            if entry.used.load(Ordering::Relaxed).abs_diff(now) < GRAIN {
                return;
            }
            entry.used.store(now, Ordering::Relaxed);
        }
        let mut waiting = self.inner.accesses.0.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() < WAITING_MAX || waiting.contains_key(id) {
            waiting.insert(*id, now);
        }
    }

    /// Writes down the uses that were noted; durable with the next durable change.
    ///
    /// # Errors
    /// [`MetaError`]; they are forgotten then.
    pub fn record_uses(&self) -> Result<(), MetaError> {
        if self.inner.is_read_only() {
            return Ok(());
        }
        self.inner.record_accesses()
    }

    /// The objects of which something is there, with what an eviction needs to
    /// know. Looks through all records.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn used_objects(&self) -> Result<Vec<Used>, MetaError> {
        let inner = &self.inner;
        let mut objects: Vec<Used> = Vec::new();
        inner.meta.read(|view| {
            view.scan(Table::Objects, &[], |key, payload| {
                if let (Some(id), Ok(record)) =
                    (keys::parse_object(key), ObjectRecord::decode(payload))
                    && record.blocks > 0
                {
                    let bytes = if record.complete { record.length } else { 0 };
                    objects.push(Used {
                        id,
                        bytes,
                        complete: record.complete,
                        used: 0,
                        slots: Vec::new(),
                        part: false,
                    });
                }
                ControlFlow::Continue(())
            })?;
            // Both are in the order of the names.
            let mut at = 0;
            view.scan(Table::Accesses, &[], |key, payload| {
                while objects.get(at).is_some_and(|object| object.id.as_bytes()[..] < *key) {
                    at += 1;
                }
                if let (Some(object), Ok(used)) = (objects.get_mut(at), decode_time(payload))
                    && object.id.as_bytes()[..] == *key
                {
                    object.used = used;
                }
                ControlFlow::Continue(())
            })?;
            view.scan(Table::LayerObjects, &[], |key, payload| {
                if let (Some((slot, id)), Ok(role)) =
                    (keys::parse_layer_object(key), Role::decode(payload))
                    && let Ok(at) = objects.binary_search_by_key(&id, |object| object.id)
                {
                    match role {
                        Role::Part => objects[at].part = true,
                        Role::Content(_) => objects[at].slots.push(slot),
                    }
                }
                ControlFlow::Continue(())
            })
        })?;
        // What is in memory is newer.
        let waiting = {
            let waiting = inner.accesses.0.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.clone()
        };
        for object in &mut objects {
            if let Some(used) = waiting.get(&object.id) {
                object.used = *used;
            }
            if let Some(entry) = inner.cache.get(&object.id) {
                (object.bytes, object.complete) = (entry.held(), entry.is_complete());
            } else if !object.complete
                && let Ok(entry) = inner.entry(&object.id)
            {
                (object.bytes, object.complete) = (entry.held(), entry.is_complete());
            }
        }
        objects.retain(|object| object.bytes > 0);
        Ok(objects)
    }
}

impl Inner {
    pub(super) fn record_accesses(&self) -> Result<(), MetaError> {
        let waiting = {
            let mut waiting = self.accesses.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::take(&mut *waiting)
        };
        if waiting.is_empty() {
            return Ok(());
        }
        self.meta.update(false, |view, batch| {
            for (id, used) in &waiting {
                if view.contains(Table::Objects, id.as_bytes())? {
                    batch.put(Table::Accesses, id.as_bytes(), encode_time(*used));
                }
            }
            Ok(())
        })
    }
}
