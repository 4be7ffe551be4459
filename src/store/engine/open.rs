//! Opening and closing.
//!
//! Invariant 3: opening after a crash scans neither the data nor the database.
//! The database repairs itself from the state that each commit saves; bitmaps
//! are read object by object when they are needed; what a crash interrupted is
//! listed in two small tables, and finished here.
//!
//! Invariant 7: one process owns a store. The lock is taken before anything is
//! looked at and held until the store is closed.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::Cache;
use super::error::{MetaError, OpenError, SyncError};
use super::flush::{Dirty, FlushPolicy};
use super::meta::Meta;
use super::{Counters, Inner, Store, VerifyPolicy, learn, staging};
use crate::store::device::{Device, Kind, LockGuard, Mode, RealDevice, is_full, read_whole};
use crate::store::format::keys;
use crate::store::format::layout::{
    CONTROL_SOCKET, FORMAT_FILE, FORMAT_TEMP, FORMAT_VERSION, LOCK_FILE, META_FILE, OBJECTS_DIR,
    OWNER_LOG, QUARANTINE_DIR, RESERVE_FILE, STAGING_DIR, format_text, parse_format,
};
use crate::store::format::records::{Session, VerifiedMark};
use crate::store::format::tables::Table;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Make the store if the directory does not exist or is empty. Default true.
    pub create: bool,
    /// Change nothing; for a store on a read-only file system. Default false.
    pub read_only: bool,
    /// When blocks are verified as they are read.
    pub verify: VerifyPolicy,
    /// Memory for objects' block lists and bitmaps, in bytes. Default 16 MiB.
    pub object_cache: usize,
    /// Memory for the database's pages, in bytes. Default 16 MiB.
    pub meta_cache: usize,
    /// Open data files. Default 512.
    pub open_files: usize,
    /// When stored blocks become durable.
    pub flush: FlushPolicy,
    /// Run a thread that makes stored blocks durable by `flush`. Without it the
    /// caller calls [`Store::sync`]. Default true.
    pub background_flush: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            create: true,
            read_only: false,
            verify: VerifyPolicy::default(),
            object_cache: 16 << 20,
            meta_cache: 16 << 20,
            open_files: 512,
            flush: FlushPolicy::default(),
            background_flush: true,
        }
    }
}

impl Store {
    /// Opens the store in the directory `path`.
    ///
    /// # Errors
    /// [`OpenError`]; the store is as it was.
    pub fn open(path: impl AsRef<Path>, options: OpenOptions) -> Result<Self, OpenError> {
        let path = path.as_ref();
        if options.create && !options.read_only {
            make_dir(path).map_err(|e| classify(path, e))?;
        }
        let device = RealDevice::new(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => OpenError::NotFound(path.to_owned()),
            _ => classify(path, e),
        })?;
        Self::open_on(Arc::new(device), path, options)
    }

    /// Opens a store on any device; `path` is its name in messages.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_on(
        device: Arc<dyn Device>,
        path: &Path,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let opening = Opening { device, path, options };
        let inner = Arc::new(opening.run()?);
        let flusher = (opening.options.background_flush && !opening.options.read_only)
            .then(|| super::flush::spawn(&inner))
            .transpose()
            .map_err(|e| classify(path, e))?;
        Ok(Self { inner, flusher: Mutex::new(flusher) })
    }

    /// Makes everything durable, records what was verified and gives the store
    /// back. The next opening trusts the verified marks.
    ///
    /// # Errors
    /// [`SyncError`]; the store is then as after a crash.
    pub fn close(self) -> Result<(), SyncError> {
        self.shutdown()
    }

    /// As [`Store::close`], for a store that others still hold. They can't write
    /// to it any more, nor read what is not at hand; files that they have open
    /// stay valid. Closed already: nothing happens.
    ///
    /// # Errors
    /// As [`Store::close`].
    pub fn shutdown(&self) -> Result<(), SyncError> {
        self.inner.dirty.stop();
        if let Some(flusher) = locked(&self.flusher).take() {
            // A panic there was already reported.
            let _ = flusher.join();
        }
        let Some(lock) = locked(&self.inner.lock).take() else {
            return Ok(());
        };
        // What is being written comes to its end or fails; nothing new begins.
        let writable = !self.inner.read_only.swap(true, Ordering::AcqRel);
        let done = if writable { self.inner.finish() } else { Ok(()) };
        // The next owner may open the database as soon as the lock is free.
        self.inner.meta.close();
        drop(lock);
        done
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Err(e) = self.shutdown() {
            tracing::warn!(store = %self.inner.path.display(), error = %e, "the store was not closed in order");
        }
    }
}

impl Inner {
    /// The end of a session.
    fn finish(&self) -> Result<(), SyncError> {
        self.flush()?;
        self.record_accesses()?;
        let mut marks = Vec::new();
        for entry in self.cache.entries() {
            let disk = entry.disk();
            if disk.complete
                && entry.present.all()
                && entry.verified.all()
                && let Some(seal) = disk.seal
            {
                marks.push((entry.id, seal));
            }
        }
        self.meta.update(true, |_, batch| {
            for (id, seal) in &marks {
                let mark = VerifiedMark {
                    epoch: self.epoch,
                    size: seal.size,
                    inode: seal.inode,
                    ctime: seal.ctime,
                };
                batch.put(Table::Marks, id.as_bytes(), mark.encode());
            }
            let session = Session { clean: true, epoch: self.epoch };
            batch.put(Table::State, keys::STATE_SESSION, session.encode());
            Ok::<_, SyncError>(())
        })
    }
}

struct Opening<'a> {
    device: Arc<dyn Device>,
    path: &'a Path,
    options: OpenOptions,
}

impl Opening<'_> {
    fn run(&self) -> Result<Inner, OpenError> {
        let read_only = self.options.read_only;
        // What is no store is not touched, not even by a lock file.
        let found = self.look()?;
        if !found && read_only {
            return Err(OpenError::NotFound(self.path.to_owned()));
        }
        if !found && !self.options.create {
            return Err(OpenError::NotFound(self.path.to_owned()));
        }
        let lock = self.lock()?;
        if !found {
            self.initialise().map_err(|e| self.error(e))?;
        }
        let has_meta = self.stat(META_FILE)?.is_some();
        if !has_meta && (read_only || self.has_objects()?) {
            return Err(OpenError::DatabaseMissing(self.path.to_owned()));
        }
        if !has_meta {
            Meta::create(&self.device).map_err(|e| self.meta_error(e))?;
        }
        let meta = Meta::open(Arc::clone(&self.device), self.options.meta_cache, read_only)
            .map_err(|e| self.meta_error(e))?;
        let session = self.begin_session(&meta).map_err(|e| self.meta_error(e))?;
        let inner = Inner {
            path: self.path.to_owned(),
            device: Arc::clone(&self.device),
            cache: Cache::new(self.options.object_cache, self.options.open_files),
            dirty: Dirty::new(self.options.flush),
            account: Arc::default(),
            accesses: Default::default(),
            verify: self.options.verify,
            read_only: read_only.into(),
            epoch: session.epoch,
            counters: Counters::default(),
            stagings: staging::Active::default(),
            learning: learn::Learning::default(),
            removing: Mutex::default(),
            lock: Mutex::new(lock),
            meta,
        };
        if !read_only {
            inner.finish_removals().map_err(|e| self.meta_error(e))?;
            inner.finish_promotions().map_err(|e| self.meta_error(e))?;
        }
        Ok(inner)
    }

    /// Whether the directory is a store; `false` if it could become one.
    fn look(&self) -> Result<bool, OpenError> {
        let text = match self.device.open(FORMAT_FILE, Mode::Read) {
            Ok(file) => read_whole(&*file, 64).map_err(|e| match e.kind() {
                io::ErrorKind::FileTooLarge => OpenError::FormatDamaged(self.path.to_owned()),
                _ => self.error(e),
            })?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return self.look_empty(),
            Err(e) => return Err(self.error(e)),
        };
        match parse_format(&text) {
            Some(FORMAT_VERSION) => Ok(true),
            Some(found) if found > FORMAT_VERSION => Err(OpenError::NewerFormat {
                path: self.path.to_owned(),
                found,
                known: FORMAT_VERSION,
            }),
            _ => Err(OpenError::FormatDamaged(self.path.to_owned())),
        }
    }

    /// A directory without a format file may become a store if it holds at
    /// most what an interrupted [`Self::initialise`] leaves.
    fn look_empty(&self) -> Result<bool, OpenError> {
        const OURS: [&str; 8] = [
            LOCK_FILE,
            FORMAT_TEMP,
            OBJECTS_DIR,
            STAGING_DIR,
            QUARANTINE_DIR,
            CONTROL_SOCKET,
            OWNER_LOG,
            "lost+found",
        ];
        let names = self.device.read_dir(".").map_err(|e| self.error(e))?;
        match names.iter().find(|(name, _)| !OURS.contains(&&name[..])) {
            Some((name, _)) if [META_FILE, RESERVE_FILE].contains(&&name[..]) => {
                Err(OpenError::FormatDamaged(self.path.to_owned()))
            }
            Some((name, _)) => {
                Err(OpenError::NotAStore { path: self.path.to_owned(), found: name.clone() })
            }
            None if self.has_objects()? => Err(OpenError::FormatDamaged(self.path.to_owned())),
            None => Ok(false),
        }
    }

    fn has_objects(&self) -> Result<bool, OpenError> {
        match self.device.read_dir(OBJECTS_DIR) {
            Ok(names) => Ok(names.iter().any(|(_, kind)| *kind == Kind::Dir)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.error(e)),
        }
    }

    fn lock(&self) -> Result<Option<LockGuard>, OpenError> {
        let pid = format!("{}\n", std::process::id());
        let taken = self.device.lock(LOCK_FILE, &pid, self.options.read_only);
        match taken {
            Ok(Some(guard)) => Ok(Some(guard)),
            Ok(None) => Err(OpenError::Locked { path: self.path.to_owned(), pid: self.owner() }),
            // A store without a lock file (a copy) that can only be read.
            Err(e) if self.options.read_only && e.kind() == io::ErrorKind::NotFound => {
                Ok(Some(Box::new(())))
            }
            Err(e) => Err(self.error(e)),
        }
    }

    fn owner(&self) -> String {
        self.device
            .open(LOCK_FILE, Mode::Read)
            .and_then(|file| read_whole(&*file, 32))
            .ok()
            .and_then(|text| String::from_utf8(text).ok())
            .map(|text| text.trim().to_owned())
            .filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
            .unwrap_or_else(|| "?".into())
    }

    /// Makes an empty store. The format file comes last: without it there is
    /// no store yet.
    fn initialise(&self) -> io::Result<()> {
        for dir in [OBJECTS_DIR, STAGING_DIR, QUARANTINE_DIR] {
            self.device.mkdir(dir)?;
        }
        let file = self.device.open(FORMAT_TEMP, Mode::Create)?;
        file.set_len(0)?;
        file.write_at(0, format_text(FORMAT_VERSION).as_bytes())?;
        file.sync_data()?;
        self.device.sync_dir(".")?;
        self.device.rename(FORMAT_TEMP, FORMAT_FILE)?;
        self.device.sync_dir(".")
    }

    /// Notes that the store is in use: until it is closed in order, the next
    /// opening is one after a crash.
    fn begin_session(&self, meta: &Meta) -> Result<Session, MetaError> {
        let last = meta.read(|view| {
            let Some(payload) = view.get(Table::State, keys::STATE_SESSION)? else {
                return Ok(None);
            };
            Session::decode(&payload)
                .map(Some)
                .map_err(|e| MetaError::record(Table::State.name(), e))
        })?;
        let session = Session {
            clean: false,
            epoch: match last {
                Some(last) if last.clean => last.epoch,
                Some(last) => last.epoch.wrapping_add(1),
                None => 1,
            },
        };
        if !self.options.read_only {
            meta.update(true, |_, batch| {
                batch.put(Table::State, keys::STATE_SESSION, session.encode());
                Ok::<_, MetaError>(())
            })?;
        }
        Ok(session)
    }

    fn stat(&self, path: &str) -> Result<Option<crate::store::device::Stat>, OpenError> {
        self.device.stat(path).map_err(|e| self.error(e))
    }

    fn error(&self, error: io::Error) -> OpenError {
        classify(self.path, error)
    }

    fn meta_error(&self, error: MetaError) -> OpenError {
        match error {
            MetaError::Io(e) => self.error(e),
            MetaError::Full => OpenError::Full(self.path.to_owned()),
            other => {
                OpenError::DatabaseDamaged { path: self.path.to_owned(), reason: other.to_string() }
            }
        }
    }
}

fn classify(path: &Path, source: io::Error) -> OpenError {
    let path: PathBuf = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            OpenError::NotADirectory(path)
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            OpenError::Denied { path, source }
        }
        _ if is_full(&source) => OpenError::Full(path),
        _ => OpenError::Io { path, source },
    }
}

/// Makes the directory and those above it, for this user only.
fn make_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Collects what a table holds under a prefix: for tables that are small by
/// nature.
pub(super) fn collect<T>(
    meta: &Meta,
    table: Table,
    prefix: &[u8],
    mut parse: impl FnMut(&[u8], &[u8]) -> Option<T>,
) -> Result<Vec<T>, MetaError> {
    let mut out = Vec::new();
    meta.read(|view| {
        view.scan(table, prefix, |key, payload| {
            out.extend(parse(key, payload));
            ControlFlow::Continue(())
        })
    })?;
    Ok(out)
}
