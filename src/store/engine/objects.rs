//! Objects: adding them, storing their blocks, what is there of them.
//!
//! Invariant 2: a data file holds only verified bytes. Blocks come as
//! [`VerifiedBlock`], and [`Store::put_block`] compares their hash with the
//! object's list before it writes.
//!
//! A file in `objects/` always has a durable record: the record is made durable
//! before the file is made. So a crash leaves no orphans.

use std::ops::Range;
use std::sync::Arc;

use super::entry::{Entry, FileSlot, Loaded};
use super::error::{MetaError, PutError, ReadError};
use super::meta::{Batch, View};
use super::{Counters, Inner, Store};
use crate::store::device::{DeviceFile, Mode};
use crate::store::format::keys;
use crate::store::format::layout::data_path;
use crate::store::format::records::{
    ObjectRecord, VerifiedMark, decode_number, decode_spec_chunk, encode_number, encode_object,
    encode_spec_chunk,
};
use crate::store::format::tables::{INDEXED_BLOCKS_MAX, Table};
use crate::types::{ObjectId, ObjectSpec, VerifiedBlock};

/// No object has more blocks.
const BLOCKS_MAX: usize = 1 << 25;

/// What is known of an object without its block list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Length in bytes.
    pub length: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// All blocks are there.
    pub complete: bool,
}

/// How much of something is there, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Bytes that are there.
    pub resident: u64,
    /// Bytes in all.
    pub total: u64,
}

impl Store {
    /// Makes an object known, so that its blocks can be stored. Known already:
    /// nothing changes.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn add_object(&self, spec: &ObjectSpec) -> Result<ObjectId, MetaError> {
        let ids = self.add_objects(std::slice::from_ref(spec))?;
        Ok(ids[0])
    }

    /// Makes several objects known at once.
    ///
    /// # Errors
    /// [`MetaError`]; none is added then.
    pub fn add_objects(&self, specs: &[ObjectSpec]) -> Result<Vec<ObjectId>, MetaError> {
        self.inner.add_objects(specs, false)
    }

    /// The object's block list; `None` if it is not known.
    ///
    /// # Errors
    /// [`MetaError`] where the list can't be read.
    pub fn spec(&self, id: &ObjectId) -> Result<Option<Arc<ObjectSpec>>, MetaError> {
        match self.inner.entry(id) {
            Ok(entry) => Ok(Some(Arc::clone(&entry.spec))),
            Err(ReadError::Unknown(_)) => Ok(None),
            Err(e) => Err(to_meta(e)),
        }
    }

    /// What is known of the object; `None` if it is not.
    ///
    /// # Errors
    /// [`MetaError`] where its record can't be read.
    pub fn object_info(&self, id: &ObjectId) -> Result<Option<ObjectInfo>, MetaError> {
        if let Some(entry) = self.inner.cache.get(id) {
            return Ok(Some(ObjectInfo {
                length: entry.spec.length(),
                blocks: entry.spec.block_count(),
                complete: entry.is_complete(),
            }));
        }
        let record = self.inner.meta.read(|view| object_record(view, id))?;
        Ok(record.map(|record| ObjectInfo {
            length: record.length,
            blocks: record.blocks,
            complete: record.complete,
        }))
    }

    /// Stores a block. It can be read at once, and is durable after the next
    /// [`Store::sync`]. There already: nothing changes.
    ///
    /// # Errors
    /// [`PutError`]; the block then counts as absent.
    pub fn put_block(
        &self,
        id: &ObjectId,
        index: u32,
        block: &VerifiedBlock,
    ) -> Result<(), PutError> {
        self.inner.put_block(id, index, block)
    }

    /// Stores a whole object: an index part, or other content that is at hand.
    ///
    /// # Errors
    /// [`PutError`]; some of its blocks may be stored.
    pub fn put_object(&self, data: &[u8]) -> Result<ObjectId, PutError> {
        let spec = ObjectSpec::of(data);
        let id = self.add_object(&spec)?;
        for (entry, index) in spec.blocks().zip(0..) {
            if !self.has_block(&id, index) {
                let start = entry.offset as usize;
                let bytes = bytes::Bytes::copy_from_slice(&data[start..start + entry.len as usize]);
                self.put_block(&id, index, &VerifiedBlock::seal(bytes))?;
            }
        }
        Ok(id)
    }

    /// Those of the blocks `range` that are not there, cut at the object's end.
    /// All of them if the object is not known.
    pub fn missing(&self, id: &ObjectId, range: Range<u32>) -> Vec<u32> {
        match self.inner.entry(id) {
            Ok(entry) => {
                let end = range.end.min(entry.spec.block_count());
                (range.start..end).filter(|i| !entry.present.get(*i)).collect()
            }
            Err(_) => range.take(BLOCKS_MAX).collect(),
        }
    }

    /// Whether the block is there.
    pub fn has_block(&self, id: &ObjectId, index: u32) -> bool {
        self.inner.entry(id).is_ok_and(|entry| entry.present.get(index))
    }

    /// Whether all blocks are there.
    pub fn is_complete(&self, id: &ObjectId) -> bool {
        self.inner.entry(id).is_ok_and(|entry| entry.is_complete())
    }

    /// Which blocks are there: bit `i % 64` of word `i / 64`.
    pub fn bitfield(&self, id: &ObjectId) -> Option<Vec<u64>> {
        Some(self.inner.entry(id).ok()?.present.snapshot())
    }

    /// Bytes of the stretch that are there.
    pub fn resident_bytes(&self, id: &ObjectId, range: Range<u64>) -> u64 {
        let Ok(entry) = self.inner.entry(id) else {
            return 0;
        };
        let end = range.end.min(entry.spec.length());
        if entry.is_complete() {
            return end.saturating_sub(range.start);
        }
        let len = end.saturating_sub(range.start);
        let present = entry.spec.blocks_in(range.start, len).filter(|i| entry.present.get(*i));
        present
            .filter_map(|i| entry.spec.block(i))
            .map(|b| {
                let block_end = (b.offset + u64::from(b.len)).min(end);
                block_end.saturating_sub(b.offset.max(range.start))
            })
            .sum()
    }

    /// How much of the object is there; zeros if it is not known.
    pub fn progress(&self, id: &ObjectId) -> Progress {
        match self.object_info(id) {
            Ok(Some(info)) => Progress {
                resident: if info.complete {
                    info.length
                } else {
                    self.resident_bytes(id, 0..info.length)
                },
                total: info.length,
            },
            _ => Progress::default(),
        }
    }
}

impl Inner {
    /// The object in memory, loaded if need be.
    pub(super) fn entry(&self, id: &ObjectId) -> Result<Arc<Entry>, ReadError> {
        if let Some(entry) = self.cache.get(id) {
            return Ok(entry);
        }
        let mut dropped = false;
        let entry = self.cache.get_or_load(id, || {
            let (record, spec, mark) = self
                .meta
                .read(|view| {
                    let Some(record) = object_record(view, id)? else {
                        return Ok(None);
                    };
                    let spec = read_spec(view, id, &record)?;
                    // Without its mark an object is only verified once more.
                    let mark = view.get(Table::Marks, id.as_bytes()).unwrap_or(None);
                    Ok::<_, MetaError>(Some((record, spec, mark)))
                })?
                .ok_or(ReadError::Unknown(*id))?;
            let mark = mark
                .and_then(|payload| VerifiedMark::decode(&payload).ok())
                .filter(|mark| mark.epoch == self.epoch);
            let (entry, loaded) =
                Entry::load(&*self.device, *id, &record, Arc::new(spec), mark, &self.account)?;
            dropped = loaded == Loaded::Dropped;
            Ok::<_, ReadError>(entry)
        })?;
        if dropped {
            tracing::warn!(object = %id, "files of the object are missing or damaged; what is lost will be fetched again");
            self.dirty.add(&entry, 0);
            // What was claimed before was counted.
            self.account.doubt();
        }
        Ok(entry)
    }

    pub(super) fn add_objects(
        &self,
        specs: &[ObjectSpec],
        durable: bool,
    ) -> Result<Vec<ObjectId>, MetaError> {
        let ids: Vec<ObjectId> = specs.iter().map(ObjectSpec::id).collect();
        let known = ids.iter().all(|id| self.cache.get(id).is_some());
        if known && !durable {
            return Ok(ids);
        }
        self.meta.update(durable, |view, batch| {
            let specs: Vec<&ObjectSpec> = specs.iter().collect();
            add_to_batch(view, batch, &ids, &specs)?;
            Ok(ids)
        })
    }

    pub(super) fn put_block(
        &self,
        id: &ObjectId,
        index: u32,
        block: &VerifiedBlock,
    ) -> Result<(), PutError> {
        self.put_with(id, index, block, |file, offset| {
            file.write_at(offset, block.data())?;
            Ok(true)
        })
        .map(|_| ())
    }

    /// Stores a block by `write`, which gets the data file and the block's
    /// offset, and tells whether it could.
    pub(super) fn put_with(
        &self,
        id: &ObjectId,
        index: u32,
        block: &VerifiedBlock,
        write: impl Fn(&dyn DeviceFile, u64) -> std::io::Result<bool>,
    ) -> Result<bool, PutError> {
        if self.is_read_only() {
            return Err(PutError::ReadOnly);
        }
        loop {
            let entry = self.entry(id)?;
            let wanted = entry.spec.block(index);
            let wanted = wanted.filter(|b| b.hash == *block.hash());
            let Some(wanted) = wanted.filter(|b| b.len as usize == block.data().len()) else {
                return Err(PutError::NotInObject { object: *id, index });
            };
            if self.is_removing(id) {
                // What is left of a removal that failed: the next opening may end it.
                self.open_file(&entry, true)?;
                continue;
            }
            if entry.present.get(index) {
                return Ok(true);
            }
            let slot = entry.file();
            let (false, Some(file)) = (slot.gone, slot.handle.clone()) else {
                drop(slot);
                self.open_file(&entry, true)?;
                continue;
            };
            if !write(&*file, wanted.offset)? {
                return Ok(false);
            }
            entry.verified.set(index);
            entry.set(index);
            self.dirty.add(&entry, u64::from(wanted.len));
            drop(slot);
            Counters::add(&self.counters.stored_blocks, 1);
            Counters::add(&self.counters.stored_bytes, u64::from(wanted.len));
            return Ok(true);
        }
    }

    /// Opens the entry's data file; makes it if `make`. Does nothing if it is
    /// open or the object is gone.
    ///
    /// `NotFound` if there is no file and none was to be made.
    pub(super) fn open_file(&self, entry: &Arc<Entry>, make: bool) -> Result<(), PutError> {
        if make && self.is_removing(&entry.id) {
            let _one = self.dirty.flushing();
            // Somebody else may have brought it to its end meanwhile. The caller
            // finds this entry gone and looks the object up again.
            if self.is_removing(&entry.id) {
                self.end_removal(&entry.id)?;
            }
            return Ok(());
        }
        let path = data_path(&entry.id);
        let mode = if self.is_read_only() { Mode::Read } else { Mode::Write };
        let open = |slot: &mut FileSlot| -> Result<(), PutError> {
            if slot.gone || slot.handle.is_some() {
                return Ok(());
            }
            let opened = if make && !entry.disk().data_made {
                Err(std::io::ErrorKind::NotFound.into())
            } else {
                self.device.open(&path, mode)
            };
            let file: Arc<dyn DeviceFile> = match opened {
                Ok(file) => file,
                Err(e) if make && e.kind() == std::io::ErrorKind::NotFound => {
                    self.meta.sync_objects()?;
                    entry.make_file(&*self.device)?
                }
                Err(e) => return Err(e.into()),
            };
            slot.handle = Some(file);
            Ok(())
        };
        open(&mut entry.file_mut())?;
        self.cache.opened(entry);
        Ok(())
    }
}

/// Puts the records of those objects that are not known into the batch.
pub(super) fn add_to_batch(
    view: &View,
    batch: &mut Batch,
    ids: &[ObjectId],
    specs: &[&ObjectSpec],
) -> Result<(), MetaError> {
    let mut next = counter(view, keys::STATE_NEXT_OBJECT)?;
    let first = next;
    let mut added = std::collections::HashSet::new();
    for (id, spec) in ids.iter().zip(specs) {
        if view.contains(Table::Objects, id.as_bytes())? || !added.insert(*id) {
            continue;
        }
        let number = next;
        next = next.checked_add(1).ok_or(MetaError::Exhausted("object"))?;
        let record = ObjectRecord {
            number,
            block_size: spec.block_size(),
            length: spec.length(),
            blocks: spec.block_count(),
            complete: spec.block_count() == 0,
        };
        batch.put(Table::Objects, id.as_bytes(), record.encode());
        batch.put(Table::Numbers, &keys::number(number), encode_object(id));
        for chunk in 0..spec.block_count().div_ceil(keys::SPEC_CHUNK) {
            let range = spec_range(chunk, spec.block_count());
            let key = keys::spec_chunk(number, chunk);
            batch.put(Table::Specs, &key, encode_spec_chunk(spec, range));
        }
        for (block, index) in spec.blocks().zip(0..INDEXED_BLOCKS_MAX) {
            let key = keys::block_row(&block.hash, number, index);
            batch.put(Table::BlockIndex, &key, Vec::new());
        }
    }
    if next != first {
        batch.put(Table::State, keys::STATE_NEXT_OBJECT, encode_number(next));
    }
    Ok(())
}

/// The blocks of a row of `specs`.
pub(super) fn spec_range(chunk: u32, blocks: u32) -> Range<u32> {
    let start = chunk * keys::SPEC_CHUNK;
    start..start.saturating_add(keys::SPEC_CHUNK).min(blocks)
}

/// The next number of a kind: 1 in a new store, so that 0 means nothing.
pub(super) fn counter(view: &View, key: &[u8]) -> Result<u32, MetaError> {
    match view.get(Table::State, key)? {
        None => Ok(1),
        Some(payload) => {
            decode_number(&payload).map_err(|e| MetaError::record(Table::State.name(), e))
        }
    }
}

pub(super) fn object_record(view: &View, id: &ObjectId) -> Result<Option<ObjectRecord>, MetaError> {
    view.get(Table::Objects, id.as_bytes())?
        .map(|payload| ObjectRecord::decode(&payload))
        .transpose()
        .map_err(|e| MetaError::record(Table::Objects.name(), e))
}

/// Reads the block list and checks it against the object's name.
pub(super) fn read_spec(
    view: &View,
    id: &ObjectId,
    record: &ObjectRecord,
) -> Result<ObjectSpec, MetaError> {
    let damaged = |reason: &str| MetaError::Damaged {
        table: Table::Specs.name(),
        reason: format!("block list of {id}: {reason}"),
    };
    let mut blocks = Vec::new();
    for chunk in 0..record.blocks.div_ceil(keys::SPEC_CHUNK) {
        let key = keys::spec_chunk(record.number, chunk);
        let payload = view.get(Table::Specs, &key)?.ok_or_else(|| damaged("incomplete"))?;
        decode_spec_chunk(&payload, &mut blocks).map_err(|e| damaged(&e.to_string()))?;
    }
    let spec = ObjectSpec::new(record.block_size, blocks).map_err(|e| damaged(&e.to_string()))?;
    if spec.id() == *id {
        Ok(spec)
    } else {
        Err(damaged("not the one that the object is named after"))
    }
}

pub(super) fn to_meta(error: ReadError) -> MetaError {
    match error {
        ReadError::Meta(e) => e,
        ReadError::Io(e) => MetaError::Io(e),
        ReadError::Unknown(id) | ReadError::OutOfRange { object: id, .. } => {
            MetaError::UnknownObject(id)
        }
    }
}
