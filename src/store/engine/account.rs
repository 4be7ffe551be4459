//! How much the store holds, exact and at hand.
//!
//! Nothing of this is on the disk: an opening scans nothing. Whoever asks first
//! has the objects counted, once; from then on every bit that is set or cleared is
//! added or taken off as it changes. Objects are counted in 256 stretches by the
//! first byte of their names, and a change counts if its stretch has been counted:
//! so the count is exact though the store is in use meanwhile.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::entry::Entry;
use super::{Inner, MetaError, Store};
use crate::store::format::keys;
use crate::store::format::records::ObjectRecord;
use crate::store::format::tables::Table;
use crate::types::ObjectId;

/// What a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Objects that are known.
    pub objects: u64,
    /// Bytes of their blocks that are there.
    pub bytes: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Account {
    counted: Mutex<Counted>,
    /// One counts at a time.
    counting: Mutex<()>,
}

#[derive(Debug, Default)]
struct Counted {
    /// Objects whose name begins with a byte below this are counted.
    upto: u16,
    bytes: u64,
}

/// No stretch is left.
const ALL: u16 = 256;

impl Account {
    /// Does a change to the object's bits, which gives the bytes that came and
    /// those that went.
    pub(super) fn change(&self, id: &ObjectId, change: impl FnOnce() -> (u64, u64)) {
        let mut counted = self.counted();
        let (came, went) = change();
        if u16::from(id.as_bytes()[0]) < counted.upto {
            counted.bytes = counted.bytes.saturating_add(came).saturating_sub(went);
        }
    }

    /// What was counted may be wrong: it is counted anew.
    pub(super) fn doubt(&self) {
        *self.counted() = Counted::default();
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// How much the store holds. The first call after an opening counts, and takes
    /// about a second for a million objects; later ones take no time.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn held(&self) -> Result<Held, MetaError> {
        let inner = &self.inner;
        let objects = inner.meta.read(|view| view.count(Table::Objects))?;
        Ok(Held { objects, bytes: inner.held_bytes()? })
    }
}

impl Inner {
    fn held_bytes(&self) -> Result<u64, MetaError> {
        loop {
            let stretch = {
                let counted = self.account.counted();
                if counted.upto == ALL {
                    return Ok(counted.bytes);
                }
                counted.upto
            };
            let _one = self.account.counting.lock().unwrap_or_else(PoisonError::into_inner);
            self.count(stretch)?;
        }
    }

    /// Counts one stretch, unless somebody else has meanwhile.
    fn count(&self, stretch: u16) -> Result<(), MetaError> {
        // Those in memory have the truth; the others' records, where they say that
        // all is there. The rest is loaded, and stays loaded until it is counted.
        let mut loaded: Vec<Arc<Entry>> = Vec::new();
        let mut unreadable: Vec<ObjectId> = Vec::new();
        loop {
            let unknown = self.cache.steady(|cached| {
                let mut counted = self.account.counted();
                if counted.upto != stretch {
                    return Ok(Vec::new());
                }
                let (mut bytes, mut unknown) = (0, Vec::new());
                self.objects_of(stretch, |id, record| match cached(&id) {
                    Some(entry) => bytes += entry.held(),
                    None if record.complete => bytes += record.length,
                    None if unreadable.contains(&id) => {}
                    None => unknown.push(id),
                })?;
                if unknown.is_empty() {
                    counted.bytes += bytes;
                    counted.upto += 1;
                }
                Ok::<_, MetaError>(unknown)
            })?;
            if unknown.is_empty() {
                return Ok(());
            }
            for id in unknown {
                match self.entry(&id) {
                    Ok(entry) => loaded.push(entry),
                    Err(_) => unreadable.push(id),
                }
            }
        }
    }

    fn objects_of(
        &self,
        stretch: u16,
        mut visit: impl FnMut(ObjectId, ObjectRecord),
    ) -> Result<(), MetaError> {
        self.meta.read(|view| {
            view.scan(Table::Objects, &[stretch as u8], |key, payload| {
                if let (Some(id), Ok(record)) =
                    (keys::parse_object(key), ObjectRecord::decode(payload))
                {
                    visit(id, record);
                }
                ControlFlow::Continue(())
            })
        })
    }
}
