//! The file system: node numbers, merged views, names and content. It knows
//! neither FUSE nor networks: numbers and requests come in, outcomes go out.
//!
//! - [`inode`](self::inode): what a number stands for; there is no inode table.
//! - [`merge`](self::merge): layers stacked, lazily and without I/O.
//! - [`Catalog`]: which layers, chains and images there are.
//! - [`FileSystem`]: the operations.
//! - [`OpenModes`]: cached or passed through, one at a time.

mod attr;
mod cache;
mod catalog;
mod chain;
mod error;
mod files;
mod filesystem;
mod graft;
mod inode;
mod links;
mod merge;
mod mode;
mod names;
mod stat;
mod synthetic;
mod xattr;

pub use attr::{Attr, Entry, Kind, Timestamp, Validity};
pub use catalog::{
    Catalog, ChainView, LayerName, LayerView, NameLookup, NameTarget, ReadFailure, ResolveError,
    ResolveFuture, Usage,
};
pub use error::FsError;
pub use files::{OpenFile, Read, SeekTo};
pub use filesystem::{Caller, DirEntry, FileSystem, FsOptions, Lookup, LookupFuture, Root};
pub use inode::{Node, NodeId, Position, Slot};
pub use mode::{OpenMode, OpenModes};
