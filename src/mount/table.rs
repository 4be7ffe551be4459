//! The mounts that a node serves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::fs::FileSystem;
use crate::fuse::{self, MountError, MountHandle, MountOptions};
use crate::types::ObjectId;

/// A mount that a node serves.
#[derive(Clone)]
pub struct Mounted {
    /// The image as it was asked for; none for the whole tree.
    pub image: Option<String>,
    /// The mount.
    pub handle: Arc<MountHandle>,
    fs: Arc<FileSystem>,
}

/// All mounts of a node. Bounded by what people mount.
#[derive(Default)]
pub struct Mounts {
    table: Arc<Mutex<BTreeMap<PathBuf, Mounted>>>,
    changed: Arc<Notify>,
}

impl Mounts {
    /// Mounts a file system and returns when it answers. Blocks.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn mount(
        &self,
        fs: Arc<FileSystem>,
        image: Option<String>,
        dir: &Path,
        options: &MountOptions,
        runtime: Handle,
    ) -> Result<Mounted, MountError> {
        // The table is locked until the mount is in it: its end may come first.
        let mut guard = self.table();
        let (table, changed, at) =
            (Arc::clone(&self.table), Arc::clone(&self.changed), dir.to_owned());
        let on_end = move || {
            lock(&table).remove(&at);
            info!(dir = %at.display(), "unmounted");
            changed.notify_waiters();
        };
        let handle = Arc::new(fuse::mount(Arc::clone(&fs), dir, options, runtime, on_end)?);
        let mounted = Mounted { image, handle, fs };
        info!(dir = %dir.display(), image = mounted.image.as_deref(), "mounted");
        guard.insert(dir.to_owned(), mounted.clone());
        Ok(mounted)
    }

    /// What is mounted.
    pub fn list(&self) -> Vec<Mounted> {
        self.table().values().cloned().collect()
    }

    /// The objects of which programs have files open, in any mount.
    pub fn open_objects(&self) -> Vec<ObjectId> {
        self.list().iter().flat_map(|mounted| mounted.fs.open_objects()).collect()
    }

    /// Whether nothing is mounted.
    pub fn is_empty(&self) -> bool {
        self.table().is_empty()
    }

    /// Notified whenever a mount ends.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Takes all mounts away; those in use are detached, so that they end with
    /// their last user. Gives those that were in use.
    pub fn unmount_all(&self) -> Vec<PathBuf> {
        let mut in_use = Vec::new();
        // Not under the lock: the end of a mount takes it.
        for mounted in self.list() {
            if mounted.handle.unmount(false).is_err() {
                in_use.push(mounted.handle.dir().to_owned());
                if let Err(error) = mounted.handle.unmount(true) {
                    warn!("{error}");
                }
            }
        }
        in_use
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Mounted>> {
        lock(&self.table)
    }
}

fn lock(table: &Mutex<BTreeMap<PathBuf, Mounted>>) -> MutexGuard<'_, BTreeMap<PathBuf, Mounted>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
