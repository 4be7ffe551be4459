//! What the snapshotter knows about its snapshots.
//!
//! [`State`] decides: a pure map of names to [`Record`]s with the rules of
//! containerd's own snapshot storage (`core/snapshots/storage`). It turns a
//! request into a [`Change`] without touching anything. [`MetaStore`] makes the
//! change durable and only then visible, so what a caller was told survives a
//! crash, and what a crash cuts off never happened.
//!
//! Names arrive from containerd's metadata plugin already made unique as
//! `namespace/number/name`; they are opaque here. Remote snapshots are the
//! exception: their name is the chain ID, shared by all namespaces.

mod db;
mod record;
mod state;

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Digest;

pub use db::{MetaStore, OpenError, WriteError};
pub use record::{RecordError, decode_record, encode_record};
pub use state::{Adoption, Change, State};

/// Labels of a snapshot, in key order.
pub type Labels = BTreeMap<String, String>;

/// Longest name or key, in bytes (the limit of containerd's own database).
pub const NAME_MAX: usize = 32_768;

/// Most bytes that one label's key and value take together; containerd refuses more.
pub const LABEL_MAX: usize = 4096;

/// Most bytes that all labels of one snapshot take together. containerd sets a
/// handful of labels of at most 4 KiB each; the bound keeps a hostile caller
/// from filling the memory.
pub const LABELS_MAX: usize = 1 << 20;

/// Most snapshots that one snapshotter keeps.
pub const SNAPSHOTS_MAX: usize = 1 << 20;

/// What a snapshot is, as containerd's API names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read only, not to be committed.
    View,
    /// Writable, on its way to being committed or a container's own layer.
    Active,
    /// Unchanging; may be a parent.
    Committed,
}

impl Kind {
    /// The word that filters and `ctr` use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// Where a snapshot's own files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// In the snapshotter's directory of this snapshot.
    Directory,
    /// In the merged tree of a chain, filled as it is read.
    Chain(Digest),
}

/// A moment: seconds since 1970 (UTC) and nanoseconds below 10^9.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Whole seconds since 1970-01-01 00:00:00 UTC, rounded down.
    pub seconds: i64,
    /// Nanoseconds of the second begun.
    pub nanos: u32,
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let (seconds, nanos) = match time.duration_since(UNIX_EPOCH) {
            Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
            Err(error) => {
                let before = error.duration();
                let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, i64::wrapping_neg);
                match before.subsec_nanos() {
                    0 => (seconds, 0),
                    nanos => (seconds.saturating_sub(1), 1_000_000_000 - nanos),
                }
            }
        };
        Self { seconds, nanos }
    }
}

/// Disk space and inodes of one snapshot, without its parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk (allocated blocks, not lengths).
    pub bytes: u64,
    /// Files, directories and so on; a file with several names counts once.
    pub inodes: u64,
}

/// Everything that is kept about one snapshot, its name apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Names the snapshot's directory; never used again.
    pub id: u64,
    /// The name of the committed snapshot below, or empty.
    pub parent: String,
    /// What it is.
    pub kind: Kind,
    /// Where its files are.
    pub content: Content,
    /// Labels; none of them has an empty value.
    pub labels: Labels,
    /// When it was created (or committed).
    pub created: Timestamp,
    /// When its labels last changed.
    pub updated: Timestamp,
    /// Its size when it was committed; zero otherwise.
    pub usage: Usage,
    /// The key of the active snapshot that it was committed from, or empty.
    pub committed_from: String,
}

/// A snapshot and what lies below it: all that mounts follow from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Names its directory.
    pub id: u64,
    /// What it is.
    pub kind: Kind,
    /// Where its own files are.
    pub content: Content,
    /// The snapshots below, nearest first.
    pub parents: Vec<Layer>,
}

impl Snapshot {
    /// The nearest chain at or below the parent, which stands for all that is
    /// below it too.
    pub fn chain_below(&self) -> Option<Digest> {
        self.parents.iter().find_map(|layer| match layer.content {
            Content::Chain(chain) => Some(chain),
            Content::Directory => None,
        })
    }
}

/// One snapshot below another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Names its directory, if it has one.
    pub id: u64,
    /// Where its files are.
    pub content: Content,
}

/// Why a request can't be done. The variants are the classes of containerd's
/// `errdefs`; the texts end as theirs do, because containerd's client strips
/// that ending when it maps the code back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MetaError {
    /// The snapshot is not there.
    #[error("{0}: not found")]
    NotFound(String),
    /// The name or key is taken.
    #[error("{0}: already exists")]
    AlreadyExists(String),
    /// The request can't be right.
    #[error("{0}: invalid argument")]
    InvalidArgument(String),
    /// The snapshot is not in a state that allows this.
    #[error("{0}: failed precondition")]
    FailedPrecondition(String),
    /// A bound was reached.
    #[error("{0}: resource exhausted")]
    Exhausted(String),
}
