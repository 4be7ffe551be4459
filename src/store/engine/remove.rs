//! Removing objects.
//!
//! Invariant 4: a file that somebody has open, for passthrough or mapped, is
//! never punched or truncated: removal unlinks, and open handles stay valid.
//!
//! The order: the database durably says that the objects are being removed and
//! claims nothing of them any more; the files are unlinked; the rest of the
//! records goes. What a crash interrupts, the next opening finishes.

use std::collections::{BTreeSet, HashSet};
use std::ops::ControlFlow;
use std::sync::{MutexGuard, PoisonError};

use super::error::{MetaError, ReadError, SyncError};
use super::meta::{Batch, View};
use super::objects::object_record;
use super::{Inner, Store, open};
use crate::store::format::keys;
use crate::store::format::layout::{bits_path, bits_temp_path, data_path, object_dir};
use crate::store::format::records::ContentRecord;
use crate::store::format::tables::{INDEXED_BLOCKS_MAX, Table};
use crate::types::ObjectId;

/// How much of an object goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Its data. The object stays known, so that it can be fetched again.
    Data,
    /// All of it, if no layer needs it; otherwise as [`Removal::Data`].
    Everything,
}

impl Removal {
    fn encode(self) -> Vec<u8> {
        vec![u8::from(self == Self::Everything)]
    }

    fn decode(payload: &[u8]) -> Self {
        if payload == [1] { Self::Everything } else { Self::Data }
    }
}

impl Store {
    /// Removes objects and gives the bytes that this frees. Files that are open
    /// stay readable for those who have them open, and their space is free when
    /// they are closed. Objects that are not known are passed over.
    ///
    /// # Errors
    /// [`SyncError`]; some may be removed.
    pub fn remove_objects(&self, ids: &[ObjectId], how: Removal) -> Result<u64, SyncError> {
        if self.inner.is_read_only() {
            return Err(MetaError::ReadOnly.into());
        }
        match self.inner.remove_objects(ids, how) {
            Err(SyncError::Full) => {
                // Eviction must work on a full disk above all.
                self.inner.meta.release_reserve();
                let done = self.inner.remove_objects(ids, how);
                self.inner.meta.restore_reserve();
                done
            }
            done => {
                self.inner.meta.restore_reserve();
                done
            }
        }
    }

    /// Bytes that the object's files occupy on the disk.
    pub fn allocated_bytes(&self, id: &ObjectId) -> u64 {
        self.inner.allocated(id)
    }
}

impl Inner {
    fn allocated(&self, id: &ObjectId) -> u64 {
        [data_path(id), bits_path(id)]
            .iter()
            .filter_map(|path| self.device.stat(path).ok()?)
            .map(|stat| stat.allocated)
            .sum()
    }

    fn remove_objects(&self, ids: &[ObjectId], how: Removal) -> Result<u64, SyncError> {
        // No batch may write the bits of what is being removed.
        let _one = self.dirty.flushing();
        // Before it is on record: a change that fails may be found made.
        self.removing().extend(ids);
        let ids: BTreeSet<&ObjectId> = ids.iter().collect();
        // In memory until they are gone: what goes is taken off the account.
        let entries: Vec<_> = ids.iter().map(|id| self.entry(id)).collect();
        let done = self.remove_loaded(&ids, how);
        let lost = |entry: &Result<_, ReadError>| {
            entry.as_ref().is_err_and(|error| !matches!(error, ReadError::Unknown(_)))
        };
        if done.is_err() || entries.iter().any(lost) {
            self.account.doubt();
        }
        done
    }

    fn remove_loaded(&self, ids: &BTreeSet<&ObjectId>, how: Removal) -> Result<u64, SyncError> {
        let planned = self.meta.update(true, |view, batch| {
            let mut planned = Vec::new();
            for id in ids {
                let id = *id;
                if !claim_nothing(view, batch, id)? {
                    continue;
                }
                let how = match how {
                    Removal::Everything if is_referenced(view, id)? => Removal::Data,
                    how => how,
                };
                batch.put(Table::Removing, id.as_bytes(), how.encode());
                planned.push((*id, how));
            }
            Ok::<_, SyncError>(planned)
        })?;
        let freed = planned.iter().map(|(id, _)| self.allocated(id)).sum();
        self.unlink_and_forget(&planned)?;
        self.removing().retain(|id| !ids.contains(id));
        Ok(freed)
    }

    /// Objects whose removal was begun and has not come to its end.
    fn removing(&self) -> MutexGuard<'_, HashSet<ObjectId>> {
        self.removing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_removing(&self, id: &ObjectId) -> bool {
        self.removing().contains(id)
    }

    /// Brings a removal that failed in the middle to its end. Before anything
    /// new is stored in the object: or a crash would let the next opening
    /// remove that as well. From the beginning, since nobody knows what of it is
    /// on record: a complete object must not be claimed to be one any more.
    ///
    /// No batch may run meanwhile.
    pub(super) fn end_removal(&self, id: &ObjectId) -> Result<(), SyncError> {
        self.remove_loaded(&BTreeSet::from([id]), Removal::Data).map(drop)
    }

    /// Finishes removals that a crash interrupted.
    pub(super) fn finish_removals(&self) -> Result<(), MetaError> {
        let planned = open::collect(&self.meta, Table::Removing, &[], |key, how| {
            Some((keys::parse_object(key)?, Removal::decode(how)))
        })?;
        if planned.is_empty() {
            return Ok(());
        }
        // Again: where a removal failed and was on record all the same, a batch that
        // was made durable after it may have claimed blocks that were stored before.
        self.meta.update(true, |view, batch| {
            for (id, _) in &planned {
                claim_nothing(view, batch, id)?;
            }
            Ok::<_, MetaError>(())
        })?;
        self.unlink_and_forget(&planned).map_err(MetaError::from)
    }

    fn unlink_and_forget(&self, planned: &[(ObjectId, Removal)]) -> Result<(), SyncError> {
        let mut dirs = BTreeSet::new();
        for (id, _) in planned {
            // In memory, so that nobody loads it while its files are going. An
            // object that can't be loaded, nobody else can load either.
            let entry = self.entry(id).ok();
            let mut slot = entry.as_ref().map(|entry| entry.file_mut());
            if let (Some(entry), Some(slot)) = (&entry, &mut slot) {
                // Whoever holds the entry looks it up again.
                slot.gone = true;
                slot.handle = None;
                entry.clear_all();
                entry.verified.clear_all();
            }
            self.device.unlink(&bits_path(id))?;
            self.device.unlink(&bits_temp_path(id))?;
            self.device.unlink(&data_path(id))?;
            self.dirty.forget(id);
            self.cache.remove(id);
            dirs.insert(object_dir(id));
        }
        for dir in dirs {
            match self.device.sync_dir(&dir) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        // Not durable at once: if this is lost, it is done again.
        self.meta.update(false, |view, batch| {
            for (id, how) in planned {
                batch.delete(Table::Removing, id.as_bytes());
                if *how == Removal::Everything && !is_referenced(view, id)? {
                    forget(view, batch, id)?;
                }
            }
            Ok::<_, MetaError>(())
        })?;
        Ok(())
    }
}

/// The records say from now on that nothing of the object is here; `false` if it is
/// not known.
fn claim_nothing(view: &View, batch: &mut Batch, id: &ObjectId) -> Result<bool, MetaError> {
    let Some(mut record) = object_record(view, id)? else { return Ok(false) };
    if record.complete && record.blocks > 0 {
        record.complete = false;
        batch.put(Table::Objects, id.as_bytes(), record.encode());
    }
    batch.delete(Table::Marks, id.as_bytes());
    Ok(true)
}

fn is_referenced(view: &View, id: &ObjectId) -> Result<bool, MetaError> {
    let mut found = false;
    view.scan(Table::References, id.as_bytes(), |_, _| {
        found = true;
        ControlFlow::Break(())
    })?;
    Ok(found)
}

/// Deletes all rows of an object.
fn forget(view: &View, batch: &mut Batch, id: &ObjectId) -> Result<(), MetaError> {
    let Some(record) = object_record(view, id)? else {
        return Ok(());
    };
    // A block list that can't be read leaves rows in the index that lead
    // nowhere; the checker finds them.
    if let Ok(spec) = super::objects::read_spec(view, id, &record) {
        for (block, index) in spec.blocks().zip(0..INDEXED_BLOCKS_MAX) {
            let key = keys::block_row(&block.hash, record.number, index);
            batch.delete(Table::BlockIndex, &key);
        }
    }
    let number = keys::number(record.number);
    for table in [Table::Specs, Table::Contents] {
        view.scan(table, &number, |key, payload| {
            batch.delete(table, key);
            if table == Table::Contents
                && let (Some((object, offset)), Ok(content)) =
                    (keys::parse_content(key), ContentRecord::decode(payload))
            {
                let row = keys::content_row(&content.hash, object, offset);
                batch.delete(Table::ContentIndex, &row);
            }
            ControlFlow::Continue(())
        })?;
    }
    view.scan(Table::Homes, id.as_bytes(), |key, _| {
        batch.delete(Table::Homes, key);
        ControlFlow::Continue(())
    })?;
    batch.delete(Table::Numbers, &number);
    batch.delete(Table::Marks, id.as_bytes());
    batch.delete(Table::Accesses, id.as_bytes());
    batch.delete(Table::Objects, id.as_bytes());
    Ok(())
}
