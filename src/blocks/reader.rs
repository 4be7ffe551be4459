//! The seam between the file system and the engine.
//!
//! The file system reads spans of objects and knows nothing of where bytes
//! come from. The trait carries plain values only, because the two sides will
//! live in different processes.

use std::fs::File;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;

use crate::types::ObjectId;

/// One open file as the reader's side sees it: the readahead of a stream grows
/// while it is read in sequence. Unique for the life of the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId(pub u64);

/// A stretch of one object, wanted by one stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    /// Who reads.
    pub stream: StreamId,
    /// What is read.
    pub object: ObjectId,
    /// First byte in the object.
    pub offset: u64,
    /// Number of bytes; the caller has cut it at the end of the object.
    pub len: u32,
}

/// Why a read gives no bytes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No source made any progress for the configured time.
    #[error("no progress from any source for {0:?}")]
    NoProgress(Duration),
    /// Every source refused for good.
    #[error("{0}")]
    Unavailable(String),
    /// The span is not in the object, or the object is not known.
    #[error("object {0} is not known, or is shorter than the span")]
    Unknown(ObjectId),
    /// The local store failed, and no source could take its place.
    #[error("local store: {0}")]
    Store(String),
    /// The reader is being shut down.
    #[error("the reader is shutting down")]
    Closed,
}

/// The future of a read that has to wait.
pub type ReadFuture = Pin<Box<dyn Future<Output = Result<Bytes, ReadError>> + Send + 'static>>;

/// Reads verified bytes of objects. Never zeros for bytes that are not there,
/// never unverified bytes.
pub trait BlockReader: Send + Sync + 'static {
    /// A stream over one object begins. `file` is the part of the object that
    /// the stream's file occupies: readahead stays inside it.
    fn open(&self, object: &ObjectId, file: std::ops::Range<u64>) -> StreamId;

    /// The stream ends; what was read ahead for it only is no longer wanted.
    fn close(&self, stream: StreamId);

    /// Appends the span to `buf` if all of it is at hand, without waiting for
    /// anything but the local disk. `false`: not at hand, `buf` is unchanged.
    ///
    /// # Errors
    /// [`ReadError::Unknown`] for a span outside the object.
    fn read_resident(&self, request: &ReadRequest, buf: &mut Vec<u8>) -> Result<bool, ReadError>;

    /// Fetches what is missing as urgent and gives the span. Dropping the
    /// future withdraws the want.
    fn read(&self, request: ReadRequest) -> ReadFuture;

    /// The object's data file if it is complete and verified, and may be read
    /// past the reader (FUSE passthrough). The file is not punched or truncated
    /// while it is open.
    fn backing_file(&self, object: &ObjectId) -> Option<File>;
}
