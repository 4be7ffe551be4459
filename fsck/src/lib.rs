//! Checks and repairs a PeerSync block store.
//!
//! Shares only the on-disk format with the daemon, never the engine: what the
//! engine does wrong is found here, and not done wrong a second time.
//!
//! Memory grows neither with the store nor with what is wrong in it: records are
//! streamed from the database, block lists in stretches of 1024 blocks, data in
//! buffers of a mebibyte; of what is found the first thousand are listed and all
//! are counted, and put right as they are found.
//! `docs/OPERATIONS.md` says what to do about each finding.

mod adopt;
mod checker;
mod data;
mod database;
mod files;
mod layers;
mod live;
mod objects;
mod open;
mod records;
mod relations;
mod repair;
mod report;
mod salvage;
mod slots;
mod staging;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use database::panic_is_expected;
pub use report::{Checked, Count, Finding, Kind, Mode, Report};

/// What a check does.
#[derive(Debug, Clone)]
pub struct Options {
    /// Put right what is wrong; the store must be closed.
    pub repair: bool,
    /// Threads that read and hash blocks.
    pub jobs: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            repair: false,
            jobs: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        }
    }
}

/// Is told how far a check is.
pub trait Progress: Sync {
    /// A stage begins, of `total` units if that is known.
    fn stage(&self, name: &'static str, total: Option<u64>);
    /// `n` more units are done.
    fn advance(&self, n: u64);
}

/// Tells nobody.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn stage(&self, _name: &'static str, _total: Option<u64>) {}
    fn advance(&self, _n: u64) {}
}

/// Why a check could not be made, or not to its end (exit code 8).
#[derive(Debug, thiserror::Error)]
pub enum FsckError {
    /// There is nothing at the path.
    #[error("{}: there is nothing there", .0.display())]
    NotFound(PathBuf),
    /// The path is not a directory.
    #[error("{}: not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The directory is not a store.
    #[error("{}: not a PeerSync store", .0.display())]
    NotAStore(PathBuf),
    /// A newer program made the store.
    #[error("{}: format {found} is newer than this program, which knows {known}", path.display())]
    NewerFormat {
        /// The store's directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest that this build knows.
        known: u32,
    },
    /// The store is in use, and it was to be repaired.
    #[error("{}: in use by process {pid}; only a closed store can be repaired", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
        /// The owner's process number, as it wrote it.
        pid: String,
    },
    /// The store is in use and its owner gives no inventory.
    #[error("{}: in use by process {pid}, which gives no inventory: {reason}", path.display())]
    NoInventory {
        /// The store's directory.
        path: PathBuf,
        /// The owner's process number, as it wrote it.
        pid: String,
        /// Why.
        reason: String,
    },
    /// The operating system does not let this user.
    #[error("{place}: {source}; a store is checked by the user who owns it, or by root")]
    Denied {
        /// The file.
        place: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The disk failed, or refused.
    #[error("{place}: {source}")]
    Io {
        /// The file.
        place: String,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The database failed while it was read or repaired.
    #[error("database: {0}")]
    Database(#[from] database::DatabaseError),
}

/// How long an owner that gives no inventory is given to end.
const OWNER_ENDS: Duration = Duration::from_secs(5);
/// How often an owner that may be ending is looked at. The kernel tells nobody
/// when a lock is free, except who waits without bound.
const RETRY_EVERY: Duration = Duration::from_millis(50);

/// Checks the store in the directory `path`.
///
/// A store that is in use is checked by the inventory of its owner, as far as
/// that goes. An owner that gives none may be ending: its lock is tried again for
/// five seconds.
///
/// # Errors
/// [`FsckError`] where the check can't be made.
pub fn check(path: &Path, options: &Options, progress: &dyn Progress) -> Result<Report, FsckError> {
    let patience = Instant::now() + OWNER_ENDS;
    loop {
        let pid = match open::open(path, options.repair)? {
            open::Opened::Live { pid } => pid,
            open::Opened::Closed(lock) => {
                let report = checker::Checker::new(path, options, progress).run()?;
                drop(lock);
                return Ok(report);
            }
        };
        match live::check(path, &pid, options, progress) {
            // An owner that was killed holds the lock until its last thread has
            // ended, and answers nobody any more.
            Err(FsckError::NoInventory { .. }) if Instant::now() < patience => {
                std::thread::sleep(RETRY_EVERY);
            }
            done => return done,
        }
    }
}
