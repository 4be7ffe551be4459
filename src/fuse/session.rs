//! A mount from its beginning to its end.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use fuser::{Config, INodeNo, Notifier, Session, SessionACL};
use tokio::runtime::Handle;
use tracing::{debug, trace, warn};

use super::kernel_mount::{
    MountError, MountOptions, UnmountError, can_open_device, canonical, mount_at, unmount_at,
};
use super::mountinfo;
use super::ops::{Adapter, Shared};
use crate::fs::FileSystem;

/// Mounts `fs` on `dir` and returns when it answers. What has to wait runs on
/// `runtime`, which needs its timer. `on_end` is called, on a thread of its own,
/// when the mount has ended, whoever ended it: [`MountHandle::unmount`],
/// `umount` from outside, or the last user of a lazily unmounted one.
///
/// # Errors
/// [`MountError`]; nothing is mounted then.
pub fn mount(
    fs: Arc<FileSystem>,
    dir: &Path,
    options: &MountOptions,
    runtime: Handle,
    on_end: impl FnOnce() + Send + 'static,
) -> Result<MountHandle, MountError> {
    let dir = canonical(dir)?;
    let connection = mount_at(&dir, options)?;
    let started = start(fs, &dir, connection, options, runtime, on_end);
    if started.is_err()
        && let Err(error) = unmount_at(&dir, true)
    {
        warn!(%error, "a mount that did not start is left behind");
    }
    started
}

/// A mount that is alive, or was. Dropping the handle leaves it mounted.
pub struct MountHandle {
    dir: PathBuf,
    device: Option<(u32, u32)>,
    shared: Arc<Shared>,
    notifier: Notifier,
    end: Arc<End>,
}

/// What a mount has done since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Opens whose reads come here.
    pub cached_opens: u64,
    /// Opens that were passed through to the store's files.
    pub passthrough_opens: u64,
    /// Inodes that are open now: cached, and passed through.
    pub open_inodes: (usize, usize),
    /// Requests that had to wait.
    pub waited: u64,
    /// Of these, those whose process was killed meanwhile.
    pub given_up: u64,
}

#[derive(Default)]
struct End {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl MountHandle {
    /// The mount point, canonical.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The device number (`st_dev`) of the mount: major and minor.
    pub fn device(&self) -> Option<(u32, u32)> {
        self.device
    }

    /// Figures of this mount.
    pub fn stats(&self) -> SessionStats {
        self.shared.stats()
    }

    /// Whether it has ended.
    pub fn is_ended(&self) -> bool {
        *self.end.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it has ended.
    pub fn wait(&self) {
        let ended = self.end.ended.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            self.end
                .changed
                .wait_while(ended, |ended| !*ended)
                .unwrap_or_else(PoisonError::into_inner),
        );
    }

    /// Tells the kernel that listings of layers, chains and images may have
    /// changed. When this returns it answers from no old one.
    pub fn listings_changed(&self) {
        for id in self.shared.fs().listings() {
            // Most of them the kernel has never heard of; a mount that has ended
            // has nothing to forget.
            if let Err(error) = self.notifier.inval_inode(INodeNo(id.raw()), 0, 0) {
                trace!(%error, "a listing is not forgotten");
            }
        }
    }

    /// Unmounts. Lazily: it disappears at once, and ends when the last program
    /// that uses it lets go; [`Self::wait`] waits for that. Succeeds if it has
    /// ended already.
    ///
    /// # Errors
    /// [`UnmountError`]; it is still mounted then.
    pub fn unmount(&self, lazily: bool) -> Result<(), UnmountError> {
        if self.is_ended() {
            return Ok(());
        }
        let on_top = mountinfo::device_at(&self.dir)
            .map_err(|error| UnmountError::Failed { dir: self.dir.clone(), error })?;
        match on_top {
            // Unmounted lazily before, and in use.
            None => Ok(()),
            device if device == self.device => unmount_at(&self.dir, lazily),
            Some(_) => Err(UnmountError::Covered(self.dir.clone())),
        }
    }
}

fn start(
    fs: Arc<FileSystem>,
    dir: &Path,
    connection: OwnedFd,
    options: &MountOptions,
    runtime: Handle,
    on_end: impl FnOnce() + Send + 'static,
) -> Result<MountHandle, MountError> {
    let device = mountinfo::device_at(dir).map_err(MountError::Session)?;
    let shared = Arc::new(Shared::new(fs, runtime, options.stack_depth));
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = can_open_device();
    // Who may use the mount is for the kernel to check.
    config.acl = SessionACL::All;
    let adapter = Adapter::new(Arc::clone(&shared));
    let session = Session::from_fd(adapter, connection, SessionACL::All, config)
        .map_err(MountError::Session)?;

    let end = Arc::new(End::default());
    let handle = MountHandle {
        dir: dir.to_owned(),
        device,
        shared: Arc::clone(&shared),
        notifier: session.notifier(),
        end: Arc::clone(&end),
    };
    let name = dir.display().to_string();
    thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || {
            if let Err(error) = session.run() {
                warn!(mount = %name, %error, "the FUSE session ended with an error");
            }
            shared.end();
            *end.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
            end.changed.notify_all();
            debug!(mount = %name, "unmounted");
            on_end();
        })
        .map_err(MountError::Session)?;
    // After the first reply, which would set it back.
    if let (Some(kib), Some(device)) = (options.read_ahead_kib, device) {
        set_read_ahead(device, kib);
    }
    Ok(handle)
}

fn set_read_ahead((major, minor): (u32, u32), kib: u32) {
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, kib.to_string()) {
        debug!(%path, %error, "readahead stays as it is");
    }
}
