//! An object in memory: its blocks, which of them are there, its open file.
//!
//! There is at most one `Entry` of an object at a time, so its bits are the
//! truth; see [`super::cache`].

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::account::Account;
use super::bits::Bits;
use crate::store::device::{Device, DeviceFile, Mode, Stat, read_whole};
use crate::store::format::bits as bitmap;
use crate::store::format::layout::{bits_path, bits_temp_path, data_path, object_dir};
use crate::store::format::records::{ObjectRecord, VerifiedMark};
use crate::types::{ObjectId, ObjectSpec};

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: ObjectId,
    pub(super) spec: Arc<ObjectSpec>,
    /// Blocks whose bytes are in the file. Changed only through the methods of
    /// [`Entry`], which keep the account.
    pub(super) present: Bits,
    /// Blocks whose bytes were verified since the store was opened, or are
    /// vouched for by a mark.
    pub(super) verified: Bits,
    /// Held for reading while the file is read or written, for writing while
    /// it is made, replaced or removed.
    file: RwLock<FileSlot>,
    pub(super) disk: Mutex<DiskState>,
    /// Used since the clock's hand last passed.
    pub(super) touched: AtomicBool,
    /// When somebody used it last, as far as noted; in seconds since 1970.
    pub(super) used: AtomicU64,
    account: Arc<Account>,
}

#[derive(Debug, Default)]
pub(super) struct FileSlot {
    /// The data file, if it is open.
    pub(super) handle: Option<Arc<dyn DeviceFile>>,
    /// The object was removed from the store; look it up again.
    pub(super) gone: bool,
}

/// What the disk says of an object.
#[derive(Debug, Default)]
pub(super) struct DiskState {
    /// The record says complete.
    pub(super) complete: bool,
    /// Bits that the bitmap file has; meaningless if `complete`.
    pub(super) durable: Vec<u64>,
    /// The bitmap file is there and says what `durable` says.
    pub(super) bitmap_made: bool,
    /// The data file is there.
    pub(super) data_made: bool,
    /// The directory may not know the data file yet.
    pub(super) new_file: bool,
    /// Blocks that were dropped as bad while the disk claims them, until the
    /// next batch: if they are stored again and that batch's sync fails, the
    /// disk's claim says nothing about them.
    pub(super) dropped: Vec<u32>,
    /// The data file when the object's last change was over: while it is
    /// still the same, nobody else has changed it.
    pub(super) seal: Option<Stat>,
}

/// What [`Entry::load`] found that the flusher should put right on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loaded {
    /// Nothing.
    Sound,
    /// Claims were dropped: files missing, short or damaged.
    Dropped,
}

impl Entry {
    /// Reads the state of an object from its record and files. No data is read.
    pub(super) fn load(
        device: &dyn Device,
        id: ObjectId,
        record: &ObjectRecord,
        spec: Arc<ObjectSpec>,
        mark: Option<VerifiedMark>,
        account: &Arc<Account>,
    ) -> io::Result<(Self, Loaded)> {
        let count = spec.block_count();
        let entry = Self {
            id,
            present: Bits::new(count),
            verified: Bits::new(count),
            file: RwLock::default(),
            disk: Mutex::default(),
            touched: AtomicBool::new(true),
            used: AtomicU64::new(0),
            account: Arc::clone(account),
            spec,
        };
        let mut loaded = Loaded::Sound;
        if count > 0 {
            let stat = device.stat(&data_path(&id))?;
            let size = stat.map_or(0, |stat| stat.size);
            let mut disk = entry.disk();
            disk.complete = record.complete;
            disk.data_made = stat.is_some();
            if record.complete {
                entry.present.set_all();
                disk.seal = stat;
                if let (Some(mark), Some(stat)) = (mark, stat)
                    && mark_holds(&mark, &stat)
                    && stat.size == entry.spec.length()
                {
                    entry.verified.set_all();
                }
            } else if stat.is_some() {
                loaded = entry.load_bitmap(device, &mut disk)?;
            } else {
                disk.durable = vec![0; count.div_ceil(64) as usize];
            }
            drop(disk);
            if size < entry.spec.length() && entry.drop_after(size) {
                loaded = Loaded::Dropped;
            }
        }
        Ok((entry, loaded))
    }

    fn load_bitmap(&self, device: &dyn Device, disk: &mut DiskState) -> io::Result<Loaded> {
        let count = self.spec.block_count();
        disk.durable = vec![0; count.div_ceil(64) as usize];
        let file = match device.open(&bits_path(&self.id), Mode::Read) {
            Ok(file) => read_whole(&*file, bitmap::file_len(count))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Sound),
            Err(e) => return Err(e),
        };
        let mut loaded = Loaded::Sound;
        let words = bitmap::parse(&self.id, count, &file, |_| loaded = Loaded::Dropped);
        self.present.load(&words);
        // A damaged line does not say what it should: all is written again.
        disk.bitmap_made = loaded == Loaded::Sound;
        disk.durable = words;
        Ok(loaded)
    }

    /// Drops the claim of a block whose bytes are bad.
    pub(super) fn drop_block(&self, index: u32) {
        let mut disk = self.disk();
        self.verified.clear(index);
        if self.clear(index) {
            disk.dropped.push(index);
        }
    }

    /// Notes that a block's bytes are in the file.
    pub(super) fn set(&self, index: u32) {
        self.account.change(&self.id, || {
            let came = self.present.set(index);
            (if came { self.len_of(index) } else { 0 }, 0)
        });
    }

    /// Notes that all bytes are in the file.
    pub(super) fn set_all(&self) {
        self.account.change(&self.id, || {
            let before = self.held();
            self.present.set_all();
            (self.spec.length(), before)
        });
    }

    /// Drops a block's claim and tells whether there was one.
    pub(super) fn clear(&self, index: u32) -> bool {
        let mut went = false;
        self.account.change(&self.id, || {
            went = self.present.clear(index);
            (0, if went { self.len_of(index) } else { 0 })
        });
        went
    }

    /// Drops all claims.
    pub(super) fn clear_all(&self) {
        self.account.change(&self.id, || {
            let before = self.held();
            self.present.clear_all();
            (0, before)
        });
    }

    /// Drops the claims that are not in `words`.
    pub(super) fn retain(&self, words: &[u64]) {
        self.account.change(&self.id, || {
            let before = self.held();
            self.present.retain(words);
            (self.held(), before)
        });
    }

    /// Bytes of the blocks that are there.
    pub(super) fn held(&self) -> u64 {
        if self.present.all() {
            return self.spec.length();
        }
        let there = (0..self.spec.block_count()).filter(|index| self.present.get(*index));
        there.map(|index| self.len_of(index)).sum()
    }

    fn len_of(&self, index: u32) -> u64 {
        self.spec.block(index).map_or(0, |block| u64::from(block.len))
    }

    /// Drops the claims of blocks that don't end within `size` bytes.
    fn drop_after(&self, size: u64) -> bool {
        let first = self.spec.block_at(size).unwrap_or(self.spec.block_count());
        let mut dropped = false;
        for index in first..self.spec.block_count() {
            self.verified.clear(index);
            dropped |= self.present.clear(index);
        }
        dropped
    }

    /// What the entry costs in memory, in bytes, about.
    pub(super) fn cost(&self) -> usize {
        512 + self.spec.block_count() as usize * 41
    }

    pub(super) fn touch(&self) {
        self.touched.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.present.all()
    }

    pub(super) fn disk(&self) -> MutexGuard<'_, DiskState> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn file(&self) -> RwLockReadGuard<'_, FileSlot> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn file_mut(&self) -> RwLockWriteGuard<'_, FileSlot> {
        self.file.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the file if nobody uses it now.
    pub(super) fn close_idle(&self) -> bool {
        match self.file.try_write() {
            Ok(mut slot) => {
                slot.handle = None;
                true
            }
            Err(_) => false,
        }
    }

    /// Makes the data file, as a hole of the object's length. It claims
    /// nothing; a bitmap that stood beside a file that is gone claims too much.
    ///
    /// Opening for writing never truncates: what is claimed stays.
    pub(super) fn make_file(&self, device: &dyn Device) -> io::Result<Arc<dyn DeviceFile>> {
        let dir = object_dir(&self.id);
        // Its name is synced with the file's, before anything is claimed: a reader
        // waits for this.
        device.mkdir(&dir)?;
        let mut disk = self.disk();
        if !disk.data_made && device.stat(&bits_path(&self.id))?.is_some() {
            device.unlink(&bits_path(&self.id))?;
            device.sync_dir(&dir)?;
            disk.bitmap_made = false;
        }
        let file = device.open(&data_path(&self.id), Mode::Create)?;
        if file.stat()?.size != self.spec.length() {
            file.set_len(self.spec.length())?;
        }
        disk.data_made = true;
        disk.new_file = true;
        Ok(file)
    }

    /// Replaces the bitmap file by one with these bits, durably: there is the
    /// old one or the new one, and never a part.
    pub(super) fn replace_bitmap(&self, device: &dyn Device, words: &[u64]) -> io::Result<()> {
        let count = self.spec.block_count();
        let mut bytes = bitmap::header(&self.id, count).to_vec();
        for number in 0..bitmap::line_count(count) {
            let bits = bitmap::line_bits(words, number);
            bytes.extend(bitmap::line(&self.id, number, &bits));
        }
        let temp = bits_temp_path(&self.id);
        let file = device.open(&temp, Mode::Create)?;
        file.set_len(0)?;
        file.write_at(0, &bytes)?;
        file.sync_data()?;
        device.rename(&temp, &bits_path(&self.id))?;
        device.sync_dir(&object_dir(&self.id))
    }
}

/// Whether the file is still the one that was verified.
pub(super) fn mark_holds(mark: &VerifiedMark, stat: &Stat) -> bool {
    mark.size == stat.size && mark.inode == stat.inode && mark.ctime == stat.ctime
}

/// Whether two looks at a file show it unchanged.
pub(super) fn same_file(a: &Stat, b: &Stat) -> bool {
    a.size == b.size && a.inode == b.inode && a.ctime == b.ctime
}
