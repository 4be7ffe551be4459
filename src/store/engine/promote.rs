//! Staged files become objects.
//!
//! The order: the staged data is durable; the database durably says which file
//! is to become which object; the files are renamed and the directories synced;
//! the database says that the objects are complete and that this is done. A
//! crash in between is finished at the next opening: a file that is not under
//! its old name any more then has its new one.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::Inner;
use super::entry::{DiskState, Entry};
use super::error::{MetaError, ReadError, StageError};
use super::meta::Batch;
use super::objects::object_record;
use super::open::collect;
use crate::store::device::{Kind, Stat, Syncing};
use crate::store::format::keys;
use crate::store::format::layout::{
    OBJECTS_DIR, Stream, bits_path, data_path, object_dir, staging_dir, staging_path,
};
use crate::store::format::records::PromotionRecord;
use crate::store::format::tables::Table;
use crate::types::{Digest, ObjectId};

/// A staged file that is to become an object.
#[derive(Debug, Clone, Copy)]
pub(super) struct Promotion {
    pub(super) blob: Digest,
    pub(super) stream: Stream,
    pub(super) object: ObjectId,
}

impl Promotion {
    pub(super) fn key(&self) -> Vec<u8> {
        keys::promotion(&self.blob, self.stream)
    }

    pub(super) fn record(&self, batch: &mut Batch, done: bool) {
        let record = PromotionRecord { object: self.object, done };
        batch.put(Table::Promotions, &self.key(), record.encode());
    }
}

impl Inner {
    /// Promotions of the blobs whose digest begins with `prefix`, and whether
    /// they are done.
    pub(super) fn promotions(&self, prefix: &[u8]) -> Result<Vec<(Promotion, bool)>, MetaError> {
        collect(&self.meta, Table::Promotions, prefix, |key, payload| {
            let (blob, stream) = keys::parse_promotion(key)?;
            let record = PromotionRecord::decode(payload).ok()?;
            let promotion = Promotion { blob, stream, object: record.object };
            Some((promotion, record.done))
        })
    }

    /// Finishes promotions that a crash interrupted.
    pub(super) fn finish_promotions(&self) -> Result<(), MetaError> {
        let planned: Vec<Promotion> = self
            .promotions(&[])?
            .into_iter()
            .filter(|(_, done)| !done)
            .map(|(promotion, _)| promotion)
            .collect();
        if planned.is_empty() {
            return Ok(());
        }
        self.promote(&planned).map(drop).map_err(|e| match e {
            StageError::Full => MetaError::Full,
            StageError::Meta(e) => e,
            StageError::Io(e) => MetaError::Io(e),
            other => MetaError::Io(io::Error::other(other.to_string())),
        })
    }

    /// Renames staged files, whose data is durable, to the objects they become,
    /// and gives those. That they are to is on record, and not done yet.
    pub(super) fn promote(&self, planned: &[Promotion]) -> Result<Vec<Arc<Entry>>, StageError> {
        // No batch may write a bitmap for what is being replaced.
        let _one = self.dirty.flushing();
        // What is renamed is nowhere if its new directory is not there after a crash.
        for promotion in planned {
            self.device.mkdir(&object_dir(&promotion.object))?;
        }
        self.device.sync_dir(OBJECTS_DIR)?;
        let mut dirs = BTreeSet::new();
        let mut moved = Vec::new();
        for promotion in planned {
            if let Some(entry) = self.promote_one(promotion)? {
                dirs.insert(object_dir(&promotion.object));
                dirs.insert(staging_dir(&promotion.blob));
                moved.push(entry);
            }
        }
        let wanted: Vec<_> = dirs.iter().map(|dir| Syncing::Dir(dir)).collect();
        for outcome in self.device.sync_all(&wanted) {
            match outcome {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        self.meta.update(true, |view, batch| {
            for promotion in planned {
                promotion.record(batch, true);
            }
            for entry in &moved {
                if let Some(mut record) = object_record(view, &entry.id)? {
                    record.complete = true;
                    batch.put(Table::Objects, entry.id.as_bytes(), record.encode());
                }
            }
            Ok::<_, MetaError>(())
        })?;
        for entry in &moved {
            // Not read any more.
            let _ = self.device.unlink(&bits_path(&entry.id));
            let stat = self.device.stat(&data_path(&entry.id));
            let mut disk = entry.disk();
            *disk = DiskState {
                complete: true,
                data_made: true,
                seal: stat.unwrap_or_default(),
                ..DiskState::default()
            };
        }
        Ok(moved)
    }

    /// Renames one file; `None` if the object needs nothing from it.
    fn promote_one(&self, promotion: &Promotion) -> Result<Option<Arc<Entry>>, StageError> {
        let id = &promotion.object;
        if self.is_removing(id) {
            self.end_removal(id)?;
        }
        let from = staging_path(&promotion.blob, promotion.stream);
        let entry = match self.entry(id) {
            Ok(entry) => entry,
            // Removed since.
            Err(ReadError::Unknown(_)) => return Ok(None),
            Err(e) => return Err(StageError::Read(e)),
        };
        let mut slot = entry.file_mut();
        let there = entry.disk().complete && entry.present.all();
        if there || entry.spec.length() == 0 {
            self.device.unlink(&from)?;
            return Ok(None);
        }
        let length = entry.spec.length();
        let right = |stat: &Stat| stat.kind == Kind::File && stat.size == length;
        match self.device.stat(&from)? {
            Some(stat) if right(&stat) => {
                self.device.rename(&from, &data_path(id))?;
            }
            Some(_) => return Ok(None),
            // It was renamed before the crash.
            None => match self.device.stat(&data_path(id))? {
                Some(stat) if right(&stat) => {}
                _ => return Ok(None),
            },
        }
        slot.handle = None;
        entry.verified.clear_all();
        entry.set_all();
        drop(slot);
        Ok(Some(entry))
    }
}
