//! The disk.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, FallocateFlags, OFlag, fallocate, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode as Bits, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::{Device, DeviceFile, Kind, LockGuard, Mode, Space, Stat, Syncing, sync_one};

/// Syncs that wait at the same time: a journaling file system makes those durable
/// together that it is asked for together.
const SYNCS_AT_ONCE: usize = 16;

const DIR_FLAGS: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// A directory on a real file system.
#[derive(Debug)]
pub struct RealDevice {
    root: OwnedFd,
}

impl RealDevice {
    /// Opens the directory `path`. Links in `path` itself are followed: the
    /// operator chose it.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn new(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY;
        Ok(Self { root: open(path, flags, Bits::empty())? })
    }

    /// Opens the directory that holds `path`, component by component, and
    /// gives the last component with it.
    fn parent<'a>(&self, path: &'a str) -> io::Result<(Dir<'_>, &'a str)> {
        match path.rsplit_once('/') {
            None => Ok((Dir::Root(self.root.as_fd()), path)),
            Some((dir, name)) => Ok((self.dir(dir)?, name)),
        }
    }

    fn dir(&self, path: &str) -> io::Result<Dir<'_>> {
        let mut at = Dir::Root(self.root.as_fd());
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let next =
                openat(at.as_fd(), OsStr::new(name), DIR_FLAGS | OFlag::O_PATH, Bits::empty())?;
            at = Dir::Sub(next);
        }
        Ok(at)
    }
}

enum Dir<'a> {
    Root(BorrowedFd<'a>),
    Sub(OwnedFd),
}

impl AsFd for Dir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Sub(fd) => fd.as_fd(),
        }
    }
}

impl Device for RealDevice {
    fn open(&self, path: &str, mode: Mode) -> io::Result<Arc<dyn DeviceFile>> {
        let (dir, name) = self.parent(path)?;
        let flags = match mode {
            Mode::Read => OFlag::O_RDONLY,
            Mode::Write => OFlag::O_RDWR,
            Mode::Create => OFlag::O_RDWR | OFlag::O_CREAT,
        };
        // O_NONBLOCK: a FIFO in the place of a file must not hold us.
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = openat(dir, OsStr::new(name), flags, Bits::from_bits_truncate(0o600))?;
        let file = File::from(fd);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(RealFile { file }))
    }

    fn stat(&self, path: &str) -> io::Result<Option<Stat>> {
        let (dir, name) = match self.parent(path) {
            Ok(found) => found,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        match fstatat(dir, OsStr::new(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(from_stat(&stat))),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        Ok(renameat(from_dir, OsStr::new(from_name), to_dir, OsStr::new(to_name))?)
    }

    fn unlink(&self, path: &str) -> io::Result<()> {
        self.remove(path, UnlinkatFlags::NoRemoveDir)
    }

    fn mkdir(&self, path: &str) -> io::Result<bool> {
        let (dir, name) = self.parent(path)?;
        match mkdirat(dir, OsStr::new(name), Bits::from_bits_truncate(0o700)) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => match self.stat(path)? {
                Some(stat) if stat.kind == Kind::Dir => Ok(false),
                _ => Err(io::ErrorKind::NotADirectory.into()),
            },
            Err(e) => Err(e.into()),
        }
    }

    fn rmdir(&self, path: &str) -> io::Result<()> {
        self.remove(path, UnlinkatFlags::RemoveDir)
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let dir = self.dir(path)?;
        let fd = openat(dir, ".", DIR_FLAGS | OFlag::O_RDONLY, Bits::empty())?;
        File::from(fd).sync_all()
    }

    fn sync_all(&self, wanted: &[Syncing<'_>]) -> Vec<io::Result<()>> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::with_capacity(wanted.len()));
        let work = || {
            while let Some((number, one)) = take_next(&next, wanted) {
                let outcome = sync_one(self, one);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((number, outcome));
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..(wanted.len() / 2).min(SYNCS_AT_ONCE) {
                // This thread does what no other can be had for.
                let _ = std::thread::Builder::new().spawn_scoped(scope, work);
            }
            work();
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_unstable_by_key(|(number, _)| *number);
        done.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn read_dir(&self, path: &str) -> io::Result<Vec<(String, Kind)>> {
        let dir = self.dir(path)?;
        let fd = openat(dir, ".", DIR_FLAGS | OFlag::O_RDONLY, Bits::empty())?;
        let mut dir = nix::dir::Dir::from_fd(fd)?;
        let mut out = Vec::new();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if name == "." || name == ".." {
                continue;
            }
            let kind = match entry.file_type() {
                Some(nix::dir::Type::File) => Kind::File,
                Some(nix::dir::Type::Directory) => Kind::Dir,
                Some(_) => Kind::Other,
                // Some file systems don't tell.
                None => match self.stat(&format!("{path}/{name}"))? {
                    Some(stat) => stat.kind,
                    None => continue,
                },
            };
            out.push((name, kind));
        }
        Ok(out)
    }

    fn space(&self) -> io::Result<Space> {
        let vfs = nix::sys::statvfs::fstatvfs(&self.root)?;
        Ok(Space {
            total: vfs.blocks() * vfs.fragment_size(),
            free: vfs.blocks_available() * vfs.fragment_size(),
        })
    }

    fn lock(&self, path: &str, content: &str, shared: bool) -> io::Result<Option<LockGuard>> {
        let (dir, name) = self.parent(path)?;
        let flags = if shared { OFlag::O_RDONLY } else { OFlag::O_RDWR | OFlag::O_CREAT };
        let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = openat(dir, OsStr::new(name), flags, Bits::from_bits_truncate(0o600))?;
        let mut file = File::from(fd);
        let locked = if shared { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Ok(None),
            Err(std::fs::TryLockError::Error(e)) => return Err(e),
        }
        if !shared {
            file.set_len(0)?;
            file.write_all(content.as_bytes())?;
        }
        Ok(Some(Box::new(file)))
    }
}

fn take_next<'a, T>(next: &AtomicUsize, all: &'a [T]) -> Option<(usize, &'a T)> {
    let number = next.fetch_add(1, Ordering::Relaxed);
    all.get(number).map(|one| (number, one))
}

impl RealDevice {
    fn remove(&self, path: &str, flags: UnlinkatFlags) -> io::Result<()> {
        let (dir, name) = match self.parent(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        match unlinkat(dir, OsStr::new(name), flags) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
}

impl DeviceFile for RealFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match FileExt::read_at(&self.file, buf, offset) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    fn stat(&self) -> io::Result<Stat> {
        let meta = self.file.metadata()?;
        Ok(Stat {
            kind: Kind::File,
            size: meta.len(),
            allocated: meta.blocks() * 512,
            inode: meta.ino(),
            ctime: (meta.ctime(), u32::try_from(meta.ctime_nsec()).unwrap_or_default()),
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn reserve(&self, len: u64) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        if len <= size {
            return self.set_len(len);
        }
        let (from, more) = (to_off(size)?, to_off(len - size)?);
        match fallocate(&self.file, FallocateFlags::empty(), from, more) {
            Ok(()) => Ok(()),
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => self.set_len(len),
            Err(e) => {
                // Part of the space may have been taken, and the length grown.
                self.file.set_len(size)?;
                Err(e.into())
            }
        }
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        Ok(fallocate(&self.file, flags, to_off(offset)?, to_off(len)?)?)
    }

    fn start_sync(&self) {
        use std::os::fd::AsRawFd;
        // SAFETY: the descriptor is open as long as `self.file` lives, and the
        // call touches no memory of ours. Its failure is found by the sync.
        unsafe {
            nix::libc::sync_file_range(
                self.file.as_raw_fd(),
                0,
                0,
                nix::libc::SYNC_FILE_RANGE_WRITE,
            );
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn clone_range(
        &self,
        from: &dyn DeviceFile,
        from_offset: u64,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        static UNSUPPORTED: AtomicBool = AtomicBool::new(false);
        let Some(from) = from.as_file() else {
            return Ok(false);
        };
        if UNSUPPORTED.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match reflink(&self.file, from, from_offset, offset, len) {
            Ok(()) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENOTTY | Errno::EXDEV | Errno::ENOSYS) => {
                UNSUPPORTED.store(true, Ordering::Relaxed);
                Ok(false)
            }
            // A span that is not aligned to the file system's blocks.
            Err(Errno::EINVAL) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn as_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
#[derive(Debug)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

mod ioctl {
    #![allow(missing_docs)]
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, super::CloneRange);
}

fn reflink(to: &File, from: &File, from_offset: u64, offset: u64, len: u64) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let range = CloneRange {
        src_fd: i64::from(from.as_raw_fd()),
        src_offset: from_offset,
        src_length: len,
        dest_offset: offset,
    };
    // SAFETY: both descriptors are open for the call and `range` is the
    // structure that the request reads.
    unsafe { ioctl::ficlonerange(to.as_raw_fd(), &raw const range) }.map(|_| ())
}

fn to_off(n: u64) -> io::Result<i64> {
    i64::try_from(n).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

fn from_stat(stat: &FileStat) -> Stat {
    let format = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    let kind = if format == SFlag::S_IFREG {
        Kind::File
    } else if format == SFlag::S_IFDIR {
        Kind::Dir
    } else {
        Kind::Other
    };
    Stat {
        kind,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
        allocated: u64::try_from(stat.st_blocks).unwrap_or_default() * 512,
        inode: stat.st_ino,
        ctime: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or_default()),
    }
}
