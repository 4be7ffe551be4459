//! What can come of a request, in words. The errno is chosen above.

use super::catalog::ResolveError;
use crate::blocks::ReadError;

/// Why a request gives nothing. Each variant says what is the case; which
/// errno a program sees is decided in one place, by whoever talks to the
/// kernel.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// There is no such name.
    #[error("no such name")]
    NotFound,
    /// No name is that long.
    #[error("the name is longer than 255 bytes")]
    NameTooLong,
    /// The number stands for nothing that this node knows (any more).
    #[error("the node is not known here")]
    Stale,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// Something other than a directory was needed.
    #[error("is a directory")]
    IsDirectory,
    /// A symbolic link was needed.
    #[error("not a symbolic link")]
    NotSymlink,
    /// Not a regular file, so it has no content here.
    #[error("not a regular file")]
    NotFile,
    /// The file system can't be written to.
    #[error("the file system is read-only")]
    ReadOnly,
    /// There is no such extended attribute.
    #[error("no such extended attribute")]
    NoAttribute,
    /// The seek starts at or after the end of the file, or there is no data
    /// after it.
    #[error("no data at or after the offset")]
    NoData,
    /// The request makes no sense: an unknown file handle, a negative offset.
    #[error("invalid request")]
    Invalid,
    /// A hard link out of a layer to a file of a lower one, looked at in the
    /// layer alone: its content is not there.
    #[error("the link's target is in a layer below this one")]
    LinkElsewhere,
    /// The image could not be resolved.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The content could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A tree or catalog contradicts itself.
    #[error("inconsistent metadata: {0}")]
    Corrupt(&'static str),
}
