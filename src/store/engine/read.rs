//! Reading: only verified bytes leave the store.
//!
//! A block whose bytes are not what its hash says, or that the disk can't read,
//! is dropped: it counts as absent, is fetched again, and its claim on the disk
//! goes with the next batch.

use std::fs::File;
use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::entry::{Entry, mark_holds, same_file};
use super::error::{MetaError, PutError, ReadError};
use super::{Counters, Inner, Store, VerifyPolicy};
use crate::store::device::{DeviceFile, Mode, read_exact_at};
use crate::store::format::layout::data_path;
use crate::store::format::records::VerifiedMark;
use crate::store::format::tables::Table;
use crate::types::{BlockEntry, BlockHash, ObjectId, VerifiedBlock};

/// A complete, verified object in memory: mapped from its data file.
///
/// The data file of an object is not changed while the store knows it as
/// complete, and removal only unlinks it.
#[derive(Debug)]
pub struct ObjectMap(Mapped);

#[derive(Debug)]
enum Mapped {
    Map(memmap2::Mmap),
    /// Empty objects, and devices that can't map.
    Owned(Vec<u8>),
}

impl AsRef<[u8]> for ObjectMap {
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Mapped::Map(map) => map,
            Mapped::Owned(bytes) => bytes,
        }
    }
}

impl std::ops::Deref for ObjectMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_ref()
    }
}

impl Store {
    /// Appends `len` bytes of the object from `offset` to `buf`. `false`, and
    /// `buf` as it was, if any of the blocks is not there.
    ///
    /// # Errors
    /// [`ReadError`]; `buf` is as it was.
    pub fn read_at(
        &self,
        id: &ObjectId,
        offset: u64,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<bool, ReadError> {
        let start = buf.len();
        let done = self.inner.read_at(id, offset, len, buf);
        if !matches!(done, Ok(true)) {
            buf.truncate(start);
        }
        done
    }

    /// A block, verified now; `None` if it is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn read_block(
        &self,
        id: &ObjectId,
        index: u32,
    ) -> Result<Option<VerifiedBlock>, ReadError> {
        self.inner.read_block(id, index)
    }

    /// Verifies all blocks that are there and were not verified yet, and drops
    /// bad ones. Gives the number of those. For a task in the background: files
    /// can be passed through again after a crash once this is through.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn verify_object(&self, id: &ObjectId) -> Result<u32, ReadError> {
        self.inner.verify_object(id)
    }

    /// Whether the object is complete and all of it verified.
    pub fn is_verified(&self, id: &ObjectId) -> bool {
        self.inner.entry(id).is_ok_and(|entry| entry.present.all() && entry.verified.all())
    }

    /// The data file of a complete object that is wholly verified and has not
    /// been changed by anybody since, for reading past the store. It stays
    /// valid, and as it is, when the object is removed from the store.
    pub fn backing_file(&self, id: &ObjectId) -> Option<File> {
        let entry = self.inner.entry(id).ok()?;
        if !entry.present.all() || !entry.verified.all() {
            return None;
        }
        let file = self.inner.device.open(&data_path(id), Mode::Read).ok()?;
        let now = file.stat().ok()?;
        let seal = entry.disk().seal;
        if !seal.is_some_and(|seal| same_file(&seal, &now)) {
            // Changed behind our back, or just not flushed yet.
            if seal.is_some() {
                self.inner.distrust(&entry);
            }
            return None;
        }
        file.as_file()?.try_clone().ok()
    }

    /// The bytes of a complete object; verified now as far as it was not.
    /// `None` if a block is not there.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn map_object(&self, id: &ObjectId) -> Result<Option<ObjectMap>, ReadError> {
        let entry = self.inner.entry(id)?;
        if !entry.present.all() || self.verify_object(id)? > 0 || !entry.present.all() {
            return Ok(None);
        }
        if entry.spec.length() == 0 {
            return Ok(Some(ObjectMap(Mapped::Owned(Vec::new()))));
        }
        let file = self.inner.device.open(&data_path(id), Mode::Read)?;
        if file.stat()?.size < entry.spec.length() {
            return Ok(None);
        }
        let Some(real) = file.as_file() else {
            let mut bytes = Vec::new();
            let len = usize::try_from(entry.spec.length())
                .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
            return Ok(self
                .read_at(id, 0, len, &mut bytes)?
                .then_some(ObjectMap(Mapped::Owned(bytes))));
        };
        // SAFETY: the engine never writes to or truncates the file of a
        // complete object, and its directory is open to its owner only.
        let map = unsafe { memmap2::Mmap::map(real) }?;
        Ok(Some(ObjectMap(Mapped::Map(map))))
    }
}

impl Inner {
    fn read_at(
        &self,
        id: &ObjectId,
        offset: u64,
        len: usize,
        buf: &mut Vec<u8>,
    ) -> Result<bool, ReadError> {
        let entry = self.entry(id)?;
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > entry.spec.length()) {
            return Err(ReadError::OutOfRange { object: *id, offset, len: len as u64 });
        }
        let blocks = entry.spec.blocks_in(offset, len as u64);
        if !entry.present.all_in(blocks.clone()) {
            return Ok(false);
        }
        if blocks.is_empty() {
            return Ok(true);
        }
        let trusted = match self.verify {
            VerifyPolicy::Never => true,
            VerifyPolicy::FirstRead => entry.verified.all_in(blocks.clone()),
            VerifyPolicy::Always => false,
        };
        if trusted {
            let at = buf.len();
            buf.resize(at + len, 0);
            return self.with_file(&entry, |file| {
                match read_exact_at(file, offset, &mut buf[at..]) {
                    Ok(()) => Ok(true),
                    Err(e) => self.unreadable(&entry, blocks.clone(), e),
                }
            });
        }
        let end = offset + len as u64;
        for index in blocks {
            let Some(block) = entry.spec.block(index) else {
                return Ok(false);
            };
            let Some(bytes) = self.load_block(&entry, index, &block)? else {
                return Ok(false);
            };
            let from = offset.saturating_sub(block.offset) as usize;
            let to = (end - block.offset).min(u64::from(block.len)) as usize;
            buf.extend_from_slice(&bytes.data()[from..to]);
        }
        Ok(true)
    }

    pub(super) fn read_block(
        &self,
        id: &ObjectId,
        index: u32,
    ) -> Result<Option<VerifiedBlock>, ReadError> {
        let entry = self.entry(id)?;
        match entry.spec.block(index) {
            Some(block) if entry.present.get(index) => self.load_block(&entry, index, &block),
            _ => Ok(None),
        }
    }

    fn verify_object(&self, id: &ObjectId) -> Result<u32, ReadError> {
        let entry = self.entry(id)?;
        let mut bad = 0;
        for (block, index) in entry.spec.blocks().zip(0..) {
            let unsure = entry.present.get(index) && !entry.verified.get(index);
            if unsure && self.load_block(&entry, index, &block)?.is_none() {
                bad += 1;
            }
        }
        if bad == 0 {
            self.record_mark(&entry)?;
        }
        Ok(bad)
    }

    /// The mark of an object all of whose blocks are there and verified, with
    /// the file as it is now; `None` if they are not.
    pub(super) fn mark(&self, entry: &Entry) -> Option<VerifiedMark> {
        let before = self.device.stat(&data_path(&entry.id)).ok()??;
        let right = entry.present.all() && entry.verified.all();
        (right && before.size == entry.spec.length()).then_some(VerifiedMark {
            epoch: self.epoch,
            size: before.size,
            inode: before.inode,
            ctime: before.ctime,
        })
    }

    /// Records that an object is wholly verified, so that this need not be done
    /// again when it has left the memory, nor after an orderly close.
    fn record_mark(&self, entry: &Entry) -> Result<(), MetaError> {
        let seal = {
            let disk = entry.disk();
            disk.seal.filter(|_| disk.complete)
        };
        let mark = self.mark(entry).filter(|mark| seal.is_some_and(|seal| mark_holds(mark, &seal)));
        let (Some(mark), false) = (mark, self.is_read_only()) else {
            return Ok(());
        };
        let id = entry.id.as_bytes();
        self.meta.update(false, |view, batch| {
            // A mark that can't be read is replaced.
            if !matches!(view.get(Table::Marks, id), Ok(Some(known)) if known == mark.encode()) {
                batch.put(Table::Marks, id, mark.encode());
            }
            Ok(())
        })
    }

    /// Reads a block and verifies it; drops it and gives `None` where that fails.
    fn load_block(
        &self,
        entry: &Arc<Entry>,
        index: u32,
        block: &BlockEntry,
    ) -> Result<Option<VerifiedBlock>, ReadError> {
        let mut bytes = vec![0; block.len as usize];
        let read =
            self.with_file(entry, |file| match read_exact_at(file, block.offset, &mut bytes) {
                Ok(()) => Ok(true),
                Err(e) => self.unreadable(entry, index..index + 1, e),
            })?;
        if !read {
            return Ok(None);
        }
        match VerifiedBlock::verify(Bytes::from(bytes), &block.hash) {
            Ok(verified) => {
                entry.verified.set(index);
                Ok(Some(verified))
            }
            Err(_) => {
                self.drop_bad(entry, index, &block.hash);
                Ok(None)
            }
        }
    }

    fn drop_bad(&self, entry: &Arc<Entry>, index: u32, hash: &BlockHash) {
        tracing::warn!(object = %entry.id, block = index, %hash, "a stored block is damaged; it will be fetched again");
        Counters::add(&self.counters.bad_blocks, 1);
        entry.drop_block(index);
        self.dirty.add(entry, 0);
    }

    /// What the disk can't read is dropped like what is wrong. Errors that say
    /// nothing about the data are passed on.
    fn unreadable(
        &self,
        entry: &Arc<Entry>,
        blocks: std::ops::Range<u32>,
        error: io::Error,
    ) -> Result<bool, ReadError> {
        let media = error.raw_os_error() == Some(nix::libc::EIO);
        if !media && error.kind() != io::ErrorKind::UnexpectedEof {
            return Err(ReadError::Io(error));
        }
        tracing::warn!(object = %entry.id, ?blocks, %error, "stored blocks can't be read; they will be fetched again");
        Counters::add(&self.counters.unreadable_blocks, u64::from(blocks.end - blocks.start));
        for index in blocks {
            entry.drop_block(index);
        }
        self.dirty.add(entry, 0);
        Ok(false)
    }

    /// Reads from the entry's file, which is not removed meanwhile. `false` if
    /// there is none any more.
    fn with_file(
        &self,
        entry: &Arc<Entry>,
        read: impl FnOnce(&dyn DeviceFile) -> Result<bool, ReadError>,
    ) -> Result<bool, ReadError> {
        loop {
            let slot = entry.file();
            if slot.gone {
                return Ok(false);
            }
            if let Some(file) = &slot.handle {
                return read(&**file);
            }
            drop(slot);
            match self.open_file(entry, false) {
                Ok(()) => {}
                Err(PutError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
                    let all = 0..entry.spec.block_count();
                    return self.unreadable(entry, all, io::ErrorKind::UnexpectedEof.into());
                }
                Err(PutError::Io(e)) => return Err(ReadError::Io(e)),
                Err(e) => return Err(ReadError::Io(io::Error::other(e.to_string()))),
            }
        }
    }

    /// Somebody changed the file: nothing of it counts as verified.
    fn distrust(&self, entry: &Arc<Entry>) {
        tracing::warn!(object = %entry.id, "the data file was changed by somebody else; it will be verified again");
        entry.verified.clear_all();
        let mut disk = entry.disk();
        disk.seal = self.device.stat(&data_path(&entry.id)).unwrap_or_default();
    }
}
