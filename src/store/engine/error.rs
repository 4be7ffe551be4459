//! What can go wrong, one enum for each kind of operation.
//!
//! A full disk is an ordinary event (invariant 6): every operation that writes
//! has a `Full` of its own, and leaves the store as it was.

use std::io;
use std::path::PathBuf;

use crate::store::device::is_full;
use crate::store::format::RecordError;
use crate::types::{Digest, ObjectId};

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process owns it.
    #[error("store {} is in use by process {pid}", path.display())]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// The owner's process number, as it wrote it; `?` if unreadable.
        pid: String,
    },
    /// There is no such directory, and none was to be made.
    #[error("there is no store at {}", .0.display())]
    NotFound(PathBuf),
    /// The path is not a directory.
    #[error("{} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// The directory holds something else.
    #[error("{} is not a store: it holds {found:?} and no format file", path.display())]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One of the names that a store does not have.
        found: String,
    },
    /// The format file is not one.
    #[error("{}: the format file is damaged; run peersync-fsck", .0.display())]
    FormatDamaged(PathBuf),
    /// A newer program made it.
    #[error("store {} has format {found}; this program knows formats up to {known}", path.display())]
    NewerFormat {
        /// The store's directory.
        path: PathBuf,
        /// Its format version.
        found: u32,
        /// The newest version that this build knows.
        known: u32,
    },
    /// The operating system refuses.
    #[error("store {}: {source}", path.display())]
    Denied {
        /// The store's directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The disk is full. The store can be opened read-only.
    #[error("store {}: the disk is full", .0.display())]
    Full(PathBuf),
    /// There are objects but no database.
    #[error("store {}: the database is missing; run peersync-fsck --repair", .0.display())]
    DatabaseMissing(PathBuf),
    /// The database can't be read.
    #[error("store {}: the database is damaged ({reason}); run peersync-fsck --repair", path.display())]
    DatabaseDamaged {
        /// The store's directory.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The disk failed.
    #[error("store {}: {source}", path.display())]
    Io {
        /// The store's directory.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// Why metadata can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The disk is full; nothing was changed.
    #[error("the disk is full")]
    Full,
    /// The store was opened read-only.
    #[error("the store is read-only")]
    ReadOnly,
    /// A record is not as it was written. It counts as absent until repaired.
    #[error("table {table}: {reason}; run peersync-fsck")]
    Damaged {
        /// The table.
        table: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A value is larger than the format allows.
    #[error("{0} is too large for the store")]
    TooLarge(&'static str),
    /// Something else still needs what was to be removed.
    #[error("{0} is still in use")]
    InUse(String),
    /// The object is not known.
    #[error("object {0} is not known")]
    UnknownObject(ObjectId),
    /// The object must be complete, and is not.
    #[error("object {0} is not complete")]
    Incomplete(ObjectId),
    /// What a record is to refer to is not known.
    #[error("{0} is not known")]
    Unknown(String),
    /// The bytes are not those of the digest.
    #[error("the bytes do not have the digest {0}")]
    Mismatch(Digest),
    /// All numbers of a kind are used up.
    #[error("no {0} numbers are left")]
    Exhausted(&'static str),
    /// The disk failed.
    #[error("database: {0}")]
    Io(#[from] io::Error),
}

/// Why a block can't be stored.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// The disk is full; the block is not stored.
    #[error("the disk is full")]
    Full,
    /// The store was opened read-only.
    #[error("the store is read-only")]
    ReadOnly,
    /// The object is not known.
    #[error("object {0} is not known")]
    Unknown(ObjectId),
    /// The object has no such block, or its block is another one.
    #[error("block {index} of object {object} is another block")]
    NotInObject {
        /// The object.
        object: ObjectId,
        /// The block's number.
        index: u32,
    },
    /// Metadata can't be read or written.
    #[error(transparent)]
    Meta(MetaError),
    /// The disk failed.
    #[error("writing a block: {0}")]
    Io(io::Error),
}

/// Why an object can't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The object is not known.
    #[error("object {0} is not known")]
    Unknown(ObjectId),
    /// The span is not in the object.
    #[error("{offset}+{len} is not in the object {object}")]
    OutOfRange {
        /// The object.
        object: ObjectId,
        /// First byte of the span.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// Metadata can't be read.
    #[error(transparent)]
    Meta(MetaError),
    /// The disk failed.
    #[error("reading a block: {0}")]
    Io(#[from] io::Error),
}

/// Why a first pass can't go on in the staging area.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// The disk is full; the stream is as long as it was.
    #[error("the disk is full")]
    Full,
    /// The store was opened read-only.
    #[error("the store is read-only")]
    ReadOnly,
    /// Somebody in this process works on the blob's first pass.
    #[error("the first pass over {0} is under way")]
    Busy(Digest),
    /// Bytes that don't follow on the stream's end.
    #[error("{stream}: offset {offset} is not the stream's end {end}")]
    Order {
        /// The stream's name.
        stream: String,
        /// Where the bytes were to go.
        offset: u64,
        /// Where the stream ends.
        end: u64,
    },
    /// The stream can't become this object: other length or other blocks.
    #[error("{stream} is not the object {object}")]
    NotTheObject {
        /// The stream's name.
        stream: String,
        /// The object.
        object: ObjectId,
    },
    /// A stream has been promoted and can't be written any more.
    #[error("{0} has become an object")]
    Promoted(String),
    /// The state of a checkpoint, or the number of streams, is beyond its bound.
    #[error("{0} is too large for a checkpoint")]
    TooLarge(&'static str),
    /// Metadata can't be read or written.
    #[error(transparent)]
    Meta(MetaError),
    /// An object can't be read.
    #[error(transparent)]
    Read(ReadError),
    /// The disk failed.
    #[error("staging: {0}")]
    Io(io::Error),
}

/// Why what was stored is not durable yet. What it covered is either still in
/// memory and tried again, or forgotten and fetched again; never claimed.
#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    /// The disk is full.
    #[error("the disk is full")]
    Full,
    /// Metadata can't be written.
    #[error(transparent)]
    Meta(MetaError),
    /// The disk failed.
    #[error("syncing: {0}")]
    Io(io::Error),
}

impl MetaError {
    pub(super) fn record(table: &'static str, error: RecordError) -> Self {
        Self::Damaged { table, reason: error.to_string() }
    }
}

/// Makes `From` of I/O and metadata errors keep "full" and "read-only" apart.
macro_rules! from_io_and_meta {
    ($($error:ident),*) => {$(
        impl From<io::Error> for $error {
            fn from(error: io::Error) -> Self {
                if is_full(&error) { Self::Full } else { Self::Io(error) }
            }
        }

        impl From<MetaError> for $error {
            fn from(error: MetaError) -> Self {
                match error {
                    MetaError::Full => Self::Full,
                    other => Self::Meta(other),
                }
            }
        }
    )*};
}
from_io_and_meta!(PutError, StageError, SyncError);

impl From<MetaError> for ReadError {
    fn from(error: MetaError) -> Self {
        match error {
            MetaError::UnknownObject(id) => Self::Unknown(id),
            other => Self::Meta(other),
        }
    }
}

impl From<SyncError> for PutError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Full => Self::Full,
            SyncError::Meta(e) => e.into(),
            SyncError::Io(e) => Self::Io(e),
        }
    }
}

impl From<SyncError> for StageError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Full => Self::Full,
            SyncError::Meta(e) => e.into(),
            SyncError::Io(e) => Self::Io(e),
        }
    }
}

impl From<SyncError> for MetaError {
    fn from(error: SyncError) -> Self {
        match error {
            SyncError::Full => Self::Full,
            SyncError::Meta(e) => e,
            SyncError::Io(e) => Self::Io(e),
        }
    }
}

impl From<ReadError> for PutError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Unknown(id) => Self::Unknown(id),
            ReadError::OutOfRange { object, .. } => Self::NotInObject { object, index: 0 },
            ReadError::Meta(e) => e.into(),
            ReadError::Io(e) => e.into(),
        }
    }
}
