//! Reading through: what the file system reads by, and what makes misses hits.

mod reader;

pub use reader::{BlockReader, ReadError, ReadFuture, ReadRequest, StreamId};
