//! The operations: each calls the file system and replies.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use fuser::{
    BackingId, BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use tracing::{info, warn};

use super::caller;
use super::convert::{GENERATION, file_attr, file_type};
use super::errno::errno;
use super::session::SessionStats;
use super::wait::{Waited, Waits};
use crate::fs::{
    Attr, Caller, DirEntry, Entry, FileSystem, FsError, Kind, Lookup, NodeId, OpenFile, OpenMode,
    OpenModes, Read, SeekTo, Timestamp, Validity,
};

/// Largest read that the kernel sends, in bytes.
const READ_MAX: u32 = 1 << 20;
/// Readahead requests in flight at once. While slow ones are out, those of other
/// files must not have to queue behind them.
const BACKGROUND_MAX: u16 = 128;
/// Block size that `statfs` counts in.
const STATFS_BLOCK: u32 = 4096;
/// Longest name.
const NAME_MAX: u32 = 255;

/// What the kernel is asked for, beyond what the library asks for by itself
/// (asynchronous reads, large requests). What it does not know is left out.
const CAPABILITIES: [InitFlags; 7] = [
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_NO_OPENDIR_SUPPORT,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_POSIX_ACL,
    // A changed modification time drops the kernel's copy of a listing.
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
];

thread_local! {
    /// Where a read's bytes are put on their way to the kernel; each thread of
    /// the session has one, of at most `READ_MAX`.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the session's threads and its handle share.
pub(super) struct Shared {
    fs: Arc<FileSystem>,
    waits: Waits,
    modes: OpenModes<BackingId>,
    stack_depth: u32,
    /// Set when the kernel has refused a backing file: it would refuse the next.
    no_passthrough: AtomicBool,
    cached_opens: AtomicU64,
    passthrough_opens: AtomicU64,
    waited: AtomicU64,
}

impl Shared {
    pub(super) fn fs(&self) -> &FileSystem {
        &self.fs
    }

    pub(super) fn new(fs: Arc<FileSystem>, runtime: Handle, stack_depth: u32) -> Self {
        Self {
            fs,
            waits: Waits::new(runtime),
            modes: OpenModes::default(),
            stack_depth,
            no_passthrough: AtomicBool::new(stack_depth == 0),
            cached_opens: AtomicU64::new(0),
            passthrough_opens: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }
    }

    pub(super) fn end(&self) {
        self.waits.end();
    }

    pub(super) fn stats(&self) -> SessionStats {
        SessionStats {
            cached_opens: self.cached_opens.load(Ordering::Relaxed),
            passthrough_opens: self.passthrough_opens.load(Ordering::Relaxed),
            open_inodes: self.modes.count(),
            waited: self.waited.load(Ordering::Relaxed),
            given_up: self.waits.given_up(),
        }
    }

    /// Waits for `future` off this thread and hands its outcome, or the errno,
    /// to `reply`.
    fn wait<T: Send + 'static, E: Into<FsError> + Send + 'static>(
        &self,
        request: &Request,
        future: impl Future<Output = Result<T, E>> + Send + 'static,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.waited.fetch_add(1, Ordering::Relaxed);
        self.waits.spawn(request.pid(), future, move |waited| {
            reply(match waited {
                Waited::Ready(Ok(value)) => Ok(value),
                Waited::Ready(Err(error)) => Err(errno(&error.into())),
                Waited::Dying => Err(Errno::EINTR),
                Waited::Ended => Err(Errno::EIO),
            });
        });
    }

    /// A backing for a file that is opened, if it may be passed through.
    fn backing(&self, file: &OpenFile, reply: &ReplyOpen) -> Option<BackingId> {
        if self.no_passthrough.load(Ordering::Relaxed) {
            return None;
        }
        let backing = file.backing_file()?;
        match reply.open_backing(&backing) {
            Ok(id) => Some(id),
            Err(error) => {
                // ELOOP: the store lies on a stacked file system. EPERM: no
                // privileges. Neither gets better with the next file.
                if !self.no_passthrough.swap(true, Ordering::Relaxed) {
                    warn!(%error, "files can't be passed through; all are read through the daemon");
                }
                None
            }
        }
    }
}

/// The library's view of a session.
pub(super) struct Adapter {
    shared: Arc<Shared>,
}

impl Adapter {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn fs(&self) -> &Arc<FileSystem> {
        &self.shared.fs
    }

    fn list(
        &self,
        directory: INodeNo,
        offset: u64,
        with_attributes: bool,
        mut emit: impl FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let id = node_id(directory);
        self.fs().read_dir(id, offset, with_attributes, &mut emit).map_err(|error| errno(&error))
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            // Each is an improvement, none a condition.
            let _ = config.add_capabilities(capability);
        }
        if self.shared.stack_depth > 0
            && (config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_err()
                || config.set_max_stack_depth(self.shared.stack_depth).is_err())
        {
            self.shared.no_passthrough.store(true, Ordering::Relaxed);
            info!("this kernel can't pass files through; all are read through the daemon");
        }
        // In range by construction.
        let _ = config.set_max_write(READ_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let in_group = |group| request.gid() == group || caller::has_group(request.pid(), group);
        let caller = Caller { uid: request.uid(), in_group: &in_group };
        match self.fs().lookup(&caller, node_id(parent), name.as_bytes()) {
            Ok(Lookup::Found(entry)) => reply_entry(reply, &entry),
            Ok(Lookup::Absent(Validity::None)) => reply.error(Errno::ENOENT),
            Ok(Lookup::Absent(valid)) => {
                // Node 0 is the kernel's word for "no such name, and remember it".
                let nobody = Attr { id: NodeId::from_raw(0), ..NOBODY };
                let valid = valid.duration();
                reply.entry_with_ttls(&valid, &valid, &file_attr(&nobody), GENERATION);
            }
            Ok(Lookup::Wait(future)) => {
                self.shared.wait(request, future, |outcome| match outcome {
                    Ok(entry) => reply_entry(reply, &entry),
                    Err(errno) => reply.error(errno),
                });
            }
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.fs().attributes(node_id(node)) {
            Ok((attr, valid)) => reply.attr(&valid.duration(), &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        match self.fs().read_link(node_id(node)) {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(errno(&FsError::ReadOnly));
        }
        let (handle, file) = match self.fs().open(node_id(node)) {
            Ok(open) => open,
            Err(error) => return reply.error(errno(&error)),
        };
        let handle = FileHandle(handle);
        if file.is_made() {
            return reply.opened(handle, FopenFlags::FOPEN_DIRECT_IO);
        }
        let shared = &self.shared;
        match shared.modes.open(file.id, || shared.backing(&file, &reply)) {
            OpenMode::Cached => {
                shared.cached_opens.fetch_add(1, Ordering::Relaxed);
                let flags = FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH;
                reply.opened(handle, flags);
            }
            OpenMode::Passthrough(backing) => {
                shared.passthrough_opens.fetch_add(1, Ordering::Relaxed);
                reply.opened_passthrough(handle, FopenFlags::FOPEN_NOFLUSH, &backing);
            }
        }
    }

    fn read(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let file = match self.fs().file(handle.0) {
            Ok(file) => file,
            Err(error) => return reply.error(errno(&error)),
        };
        BUFFER.with_borrow_mut(|buffer| {
            match self.fs().read(&file, offset, size, buffer) {
                Ok(Read::Done) => reply.data(buffer),
                Ok(Read::Wait(future)) => {
                    self.shared.wait(request, future, |outcome| match outcome {
                        Ok(bytes) => reply.data(&bytes),
                        Err(errno) => reply.error(errno),
                    });
                }
                Err(error) => reply.error(errno(&error)),
            }
            buffer.shrink_to(READ_MAX as usize);
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        if let Some(file) = self.fs().close(handle.0)
            && !file.is_made()
        {
            self.shared.modes.close(file.id);
        }
        reply.ok();
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        // The kernel does the other kinds by itself.
        let to = match whence {
            nix::libc::SEEK_DATA => SeekTo::Data,
            nix::libc::SEEK_HOLE => SeekTo::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = self.fs().file(handle.0).and_then(|file| {
            let offset = u64::try_from(offset).map_err(|_| FsError::NoData)?;
            let at = self.fs().seek(&file, offset, to)?;
            i64::try_from(at).map_err(|_| FsError::Invalid)
        });
        match found {
            Ok(at) => reply.offset(at),
            Err(error) => reply.error(errno(&error)),
        }
    }

    /// "Not implemented" tells the kernel to do without: directories are then
    /// opened by the kernel alone, and their listings kept.
    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _: &Request,
        directory: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.list(directory, offset, false, |entry| {
            let name = OsStr::from_bytes(entry.name);
            reply.add(INodeNo(entry.id.raw()), entry.next, file_type(entry.kind), name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        directory: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let listed = self.list(directory, offset, true, |entry| {
            // The kernel takes no attributes from `.` and `..`.
            let (attr, valid) = match entry.entry {
                Some(known) => (known.attr, known.name_valid.min(known.attr_valid)),
                None => (Attr { id: entry.id, kind: entry.kind, ..NOBODY }, Validity::None),
            };
            reply.add(
                INodeNo(entry.id.raw()),
                entry.next,
                OsStr::from_bytes(entry.name),
                &valid.duration(),
                &file_attr(&attr),
                GENERATION,
            )
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let usage = self.fs().usage();
        let blocks = |bytes: u64| bytes.div_ceil(u64::from(STATFS_BLOCK));
        let free = blocks(usage.free);
        reply.statfs(
            blocks(usage.bytes).max(1),
            free,
            free,
            usage.nodes.max(1),
            0,
            STATFS_BLOCK,
            NAME_MAX,
            STATFS_BLOCK,
        );
    }

    fn getxattr(&self, _: &Request, node: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.fs().xattr(node_id(node), name.as_bytes()) {
            Ok(value) => reply_sized(reply, &value, size),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, request: &Request, node: INodeNo, size: u32, reply: ReplyXattr) {
        match self.fs().xattr_names(node_id(node), request.uid() == 0) {
            Ok(names) => reply_sized(reply, &names, size),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    // The mount is read-only, so the kernel lets nothing of the rest through.
    // Should it ever, the answer is the same.

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }
}

/// Attributes that stand where nobody looks at them.
const NOBODY: Attr = Attr {
    id: NodeId::ROOT,
    kind: Kind::Directory,
    mode: 0,
    nlink: 0,
    uid: 0,
    gid: 0,
    rdev: (0, 0),
    size: 0,
    blocks: 0,
    mtime: Timestamp { seconds: 0, nanos: 0 },
};

fn node_id(node: INodeNo) -> NodeId {
    NodeId::from_raw(node.0)
}

fn reply_entry(reply: ReplyEntry, entry: &Entry) {
    reply.entry_with_ttls(
        &entry.attr_valid.duration(),
        &entry.name_valid.duration(),
        &file_attr(&entry.attr),
        GENERATION,
    );
}

/// Answers a question for a value whose size the caller may not know yet.
fn reply_sized(reply: ReplyXattr, value: &[u8], size: u32) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        _ => reply.error(Errno::ERANGE),
    }
}
