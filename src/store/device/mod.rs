//! The seam to the disk: everything that the engine does to files goes through
//! these two traits, the database's storage included.
//!
//! [`RealDevice`] is the disk. [`FaultyDevice`] is a disk in memory that fails
//! on demand and loses at a crash what was not synced; the tests run the whole
//! engine on it.
//!
//! Paths are relative to the store's directory, with `/` between components,
//! without `.`, `..` and links. No component is ever followed through a
//! symbolic link.

mod backend;
mod faulty;
mod real;

use std::fs::File;
use std::io;
use std::sync::Arc;

pub use backend::DeviceBackend;
pub use faulty::{CrashStyle, Fault, FaultyDevice};
pub use real::RealDevice;

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// For reading and writing; made if it does not exist.
    Create,
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: a symbolic link, a socket, a device.
    Other,
}

/// What is known of a file without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// What it is.
    pub kind: Kind,
    /// Length in bytes.
    pub size: u64,
    /// Bytes that it occupies on the disk.
    pub allocated: u64,
    /// Inode number.
    pub inode: u64,
    /// Time of the last change: seconds and nanoseconds.
    pub ctime: (i64, u32),
}

/// Space on the file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// What this process may still use.
    pub free: u64,
}

/// Something that is to become durable.
#[derive(Debug, Clone, Copy)]
pub enum Syncing<'a> {
    /// A file's data and length.
    Data(&'a dyn DeviceFile),
    /// A directory's entries.
    Dir(&'a str),
}

fn sync_one<D: Device + ?Sized>(device: &D, what: &Syncing<'_>) -> io::Result<()> {
    match what {
        Syncing::Data(file) => file.sync_data(),
        Syncing::Dir(path) => device.sync_dir(path),
    }
}

/// The lock of a store, held until it is dropped.
pub type LockGuard = Box<dyn Send + Sync>;

/// A store's directory.
pub trait Device: Send + Sync + std::fmt::Debug + 'static {
    /// Opens a regular file.
    ///
    /// # Errors
    /// Those of the device; `NotFound` also where the file must exist.
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DeviceFile>>;

    /// What stands at `path`, links not followed; `None` if nothing does.
    ///
    /// # Errors
    /// Those of the device.
    fn stat(&self, path: &str) -> io::Result<Option<Stat>>;

    /// Renames a file, replacing what stood at `to`.
    ///
    /// # Errors
    /// Those of the device.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file; success if there was none.
    ///
    /// # Errors
    /// Those of the device.
    fn unlink(&self, path: &str) -> io::Result<()>;

    /// Makes a directory; success if there is one. `true` if it was made.
    ///
    /// # Errors
    /// Those of the device.
    fn mkdir(&self, path: &str) -> io::Result<bool>;

    /// Removes an empty directory; success if there was none.
    ///
    /// # Errors
    /// Those of the device.
    fn rmdir(&self, path: &str) -> io::Result<()>;

    /// Makes the entries of a directory durable.
    ///
    /// # Errors
    /// Those of the device.
    fn sync_dir(&self, path: &str) -> io::Result<()>;

    /// Makes several things durable, at the same time where that is faster, and
    /// gives what came of each.
    fn sync_all(&self, wanted: &[Syncing<'_>]) -> Vec<io::Result<()>> {
        wanted.iter().map(|one| sync_one(self, one)).collect()
    }

    /// The names in a directory, in no order, without `.` and `..`.
    ///
    /// # Errors
    /// Those of the device. A name that is not UTF-8 is given with the
    /// replacement character: it can't be one of ours.
    fn read_dir(&self, path: &str) -> io::Result<Vec<(String, Kind)>>;

    /// Space on the file system.
    ///
    /// # Errors
    /// Those of the device.
    fn space(&self) -> io::Result<Space>;

    /// Locks the file at `path`, which is made unless `shared`, and writes
    /// `content` into it unless `shared`. `None` if somebody else holds it.
    ///
    /// # Errors
    /// Those of the device.
    fn lock(&self, path: &str, content: &str, shared: bool) -> io::Result<Option<LockGuard>>;
}

/// An open file. Offsets and lengths in bytes.
pub trait DeviceFile: Send + Sync + std::fmt::Debug + 'static {
    /// Reads up to `buf.len()` bytes; 0 at the end of the file.
    ///
    /// # Errors
    /// Those of the device.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data`, growing the file where needed.
    ///
    /// # Errors
    /// Those of the device; a part may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// What is known of the file.
    ///
    /// # Errors
    /// Those of the device.
    fn stat(&self) -> io::Result<Stat>;

    /// Cuts the file or lets it grow by zeros.
    ///
    /// # Errors
    /// Those of the device.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Grows the file to `len` with space that is really there, so that writing
    /// there can't fail for want of it. Where the file system can't do that,
    /// as [`Self::set_len`].
    ///
    /// # Errors
    /// Those of the device.
    fn reserve(&self, len: u64) -> io::Result<()>;

    /// Gives the space of a span back; it then reads as zeros.
    ///
    /// # Errors
    /// Those of the device; `Unsupported` where it can't.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Starts writing to the disk what was written so far, and does not wait.
    fn start_sync(&self) {}

    /// Makes data and length durable.
    ///
    /// # Errors
    /// Those of the device. What was written since the last sync may be lost
    /// then, even if a later sync succeeds.
    fn sync_data(&self) -> io::Result<()>;

    /// Shares `len` bytes of `from` with this file, where the file system can
    /// (reflink). `false` if it can't, and nothing was done.
    ///
    /// # Errors
    /// Those of the device.
    fn clone_range(
        &self,
        _from: &dyn DeviceFile,
        _from_offset: u64,
        _offset: u64,
        _len: u64,
    ) -> io::Result<bool> {
        Ok(false)
    }

    /// The file of the operating system, if this is one.
    fn as_file(&self) -> Option<&File> {
        None
    }
}

/// Reads exactly `buf.len()` bytes.
///
/// # Errors
/// `UnexpectedEof` where the file ends before, and those of the device.
pub fn read_exact_at(file: &dyn DeviceFile, offset: u64, buf: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < buf.len() {
        match file.read_at(offset + done as u64, &mut buf[done..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// `FileTooLarge` beyond, and those of the device.
pub fn read_whole(file: &dyn DeviceFile, max: u64) -> io::Result<Vec<u8>> {
    let size = file.stat()?.size;
    if size > max {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut out = vec![0; size as usize];
    read_exact_at(file, 0, &mut out)?;
    Ok(out)
}

/// Whether an error says that the disk, or the user's share of it, is full.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
