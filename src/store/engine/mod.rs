//! The engine: keeps the store's invariants.

mod access;
mod account;
mod bits;
mod cache;
mod catalog;
mod dedup;
mod entry;
mod error;
mod flush;
mod inventory;
mod learn;
mod meta;
mod objects;
mod open;
mod pins;
mod promote;
mod quarantine;
mod read;
mod remove;
mod staging;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub use access::Used;
pub use account::Held;
pub use error::{MetaError, OpenError, PutError, ReadError, StageError, SyncError};
pub use flush::FlushPolicy;
pub use inventory::Inventory;
pub use learn::{NewIndex, NewLayer};
pub use objects::{ObjectInfo, Progress};
pub use open::OpenOptions;
pub use read::ObjectMap;
pub use remove::Removal;
pub use staging::{Resumed, Staging};

pub use super::format::layout::Stream;
pub use super::format::records::{
    BlobRecord, ChainRecord, ImageRecord, IndexOrigin, LayerKey, LayerRecord, Role, SlotOwner,
};

use super::device::{Device, LockGuard};
use cache::Cache;
use flush::Dirty;
use meta::Meta;

/// When the bytes of a block are checked against its hash as they are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyPolicy {
    /// On every read.
    Always,
    /// On the first read after the store was opened, unless it was closed in
    /// order and the file has not changed since it was verified.
    #[default]
    FirstRead,
    /// Never: the disk is trusted.
    Never,
}

/// What happened since the store was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StoreStats {
    /// Blocks that were found wrong when read, and dropped.
    pub bad_blocks: u64,
    /// Blocks that the disk could not read, and that were dropped.
    pub unreadable_blocks: u64,
    /// Blocks that were stored.
    pub stored_blocks: u64,
    /// Bytes that were stored.
    pub stored_bytes: u64,
    /// Bytes that were taken from another local object instead of a source.
    pub copied_bytes: u64,
    /// Batches that were made durable.
    pub flushes: u64,
    /// Bytes that are stored and not durable yet.
    pub dirty_bytes: u64,
}

/// An open store. All operations block on the disk and can be called from many
/// threads.
///
/// Dropping it closes it in order, as [`Store::shutdown`] does.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
    flusher: Mutex<Option<JoinHandle<()>>>,
}

/// What the store shares with its flusher and with stagings.
struct Inner {
    path: PathBuf,
    device: Arc<dyn Device>,
    meta: Meta,
    cache: Cache,
    dirty: Dirty,
    account: Arc<account::Account>,
    accesses: access::Accesses,
    verify: VerifyPolicy,
    /// Opened read-only, or closed.
    read_only: AtomicBool,
    /// Epoch of the verified marks.
    epoch: u64,
    counters: Counters,
    stagings: staging::Active,
    learning: learn::Learning,
    /// Removals that have not come to their end.
    removing: Mutex<std::collections::HashSet<crate::types::ObjectId>>,
    lock: Mutex<Option<LockGuard>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("path", &self.path).finish()
    }
}

#[derive(Debug, Default)]
struct Counters {
    bad_blocks: AtomicU64,
    unreadable_blocks: AtomicU64,
    stored_blocks: AtomicU64,
    stored_bytes: AtomicU64,
    copied_bytes: AtomicU64,
    flushes: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}

impl Inner {
    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::Acquire)
    }
}

impl Store {
    /// What happened since the store was opened.
    pub fn stats(&self) -> StoreStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.inner.counters;
        StoreStats {
            bad_blocks: get(&counters.bad_blocks),
            unreadable_blocks: get(&counters.unreadable_blocks),
            stored_blocks: get(&counters.stored_blocks),
            stored_bytes: get(&counters.stored_bytes),
            copied_bytes: get(&counters.copied_bytes),
            flushes: get(&counters.flushes),
            dirty_bytes: self.inner.dirty.bytes(),
        }
    }

    /// The store's directory.
    pub fn path(&self) -> &std::path::Path {
        &self.inner.path
    }

    /// Whether the store was opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    /// Space on the store's file system: total and free bytes.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn space(&self) -> std::io::Result<super::device::Space> {
        self.inner.device.space()
    }
}
