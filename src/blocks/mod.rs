//! Reading through: what the file system reads by, and what makes misses hits.

mod readahead;
mod reader;

pub use readahead::Readahead;
pub use reader::{BlockReader, ReadError, ReadFuture, ReadRequest, StreamId};
