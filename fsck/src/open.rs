//! Looking at the directory and taking the lock.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::OFlag;
use nix::libc;
use peersync::store::format::layout::{
    FORMAT_FILE, FORMAT_VERSION, LOCK_FILE, META_FILE, OBJECTS_DIR, parse_format,
};

use crate::FsckError;

/// How the store was found.
pub(crate) enum Opened {
    /// Nobody has it open; nobody can, as long as the file lives.
    Closed(Option<File>),
    /// Somebody owns it.
    Live { pid: String },
}

/// Looks whether `path` is a store and takes its lock.
pub(crate) fn open(path: &Path, repair: bool) -> Result<Opened, FsckError> {
    let found = std::fs::metadata(path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => FsckError::NotFound(path.to_owned()),
        _ => at(path, e),
    })?;
    if !found.is_dir() {
        return Err(FsckError::NotADirectory(path.to_owned()));
    }
    if let Some(found) = version(path)?
        && found > FORMAT_VERSION
    {
        let path = path.to_owned();
        return Err(FsckError::NewerFormat { path, found, known: FORMAT_VERSION });
    }
    lock(path, repair)
}

/// The store's format version; `None` if the format file is missing or damaged
/// in what is a store all the same.
pub(crate) fn version(path: &Path) -> Result<Option<u32>, FsckError> {
    let file = path.join(FORMAT_FILE);
    let looks_like_one = || path.join(META_FILE).exists() && path.join(OBJECTS_DIR).is_dir();
    match read_small(&file, 64) {
        Ok(text) => match parse_format(&text) {
            Some(version) => Ok(Some(version)),
            None if looks_like_one() => Ok(None),
            None => Err(FsckError::NotAStore(path.to_owned())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound && looks_like_one() => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(FsckError::NotAStore(path.to_owned())),
        Err(e) => Err(at(&file, e)),
    }
}

/// Those that only look share the lock: nothing that they do is seen on the disk. Who
/// repairs, or owns the store, has it alone.
fn lock(path: &Path, repair: bool) -> Result<Opened, FsckError> {
    let name = path.join(LOCK_FILE);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits());
    let writable = options.clone().write(true).create(repair).open(&name);
    let (mut file, writable) = match writable {
        Ok(file) => (file, true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Opened::Closed(None)),
        Err(e) if repair => return Err(at(&name, e)),
        // A read-only file system, or only the right to read.
        Err(_) => (options.open(&name).map_err(|e| at(&name, e))?, false),
    };
    let locked = if repair { file.try_lock() } else { file.try_lock_shared() };
    match locked {
        Ok(()) => {
            if writable {
                // Whoever can't have the lock is told by whom; of several that look, the
                // last. Best effort.
                let _ = file.set_len(0);
                let _ = writeln!(file, "{}", std::process::id());
            }
            Ok(Opened::Closed(Some(file)))
        }
        Err(TryLockError::WouldBlock) => {
            let pid = owner(&name);
            if repair {
                return Err(FsckError::InUse { path: path.to_owned(), pid });
            }
            Ok(Opened::Live { pid })
        }
        Err(TryLockError::Error(e)) => Err(at(&name, e)),
    }
}

fn owner(lock: &Path) -> String {
    read_small(lock, 32)
        .ok()
        .and_then(|text| String::from_utf8(text).ok())
        .map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
        .unwrap_or_else(|| "?".into())
}

/// Opens a regular file for reading, links not followed.
pub(crate) fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK).bits())
        .open(path)
        .map_err(|e| match e.raw_os_error() {
            Some(libc::ELOOP) => io::Error::new(io::ErrorKind::InvalidInput, "a symbolic link"),
            _ => e,
        })?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(file)
}

/// Reads a file of at most `max` bytes; of a larger one, one byte more.
pub(crate) fn read_small(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let mut out = Vec::new();
    open_file(path)?.take(max + 1).read_to_end(&mut out)?;
    Ok(out)
}

/// Whether an error says that a file is not what it should be, or that the disk
/// can't read it. Any other (no permission, no memory, too many open files) says
/// nothing of the store.
pub(crate) fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::UnexpectedEof
    ) || matches!(error.raw_os_error(), Some(libc::EIO | libc::ENXIO | libc::ENODATA))
}

/// An error with the file it came from.
pub(crate) fn at(path: &Path, source: io::Error) -> FsckError {
    let place = path.display().to_string();
    match source.kind() {
        io::ErrorKind::PermissionDenied => FsckError::Denied { place, source },
        _ => FsckError::Io { place, source },
    }
}
