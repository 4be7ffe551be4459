//! Reading through: what the file system reads by, and what makes misses hits.

mod access_points;
mod readahead;
mod reader;
mod through;

pub use reader::{BlockReader, ReadError, ReadFuture, ReadRequest, StreamId};
pub use through::{ReadThrough, Settings};
