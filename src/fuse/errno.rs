//! Which errno a program sees: decided here and nowhere else.

use fuser::Errno;

use crate::blocks::ReadError;
use crate::fs::{FsError, ResolveError};

/// The errno of an outcome.
pub(super) fn errno(error: &FsError) -> Errno {
    match error {
        FsError::NotFound | FsError::Resolve(ResolveError::NotFound) => Errno::ENOENT,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Stale => Errno::ESTALE,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        FsError::NotSymlink | FsError::NotFile | FsError::Invalid => Errno::EINVAL,
        FsError::ReadOnly => Errno::EROFS,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::NoData => Errno::ENXIO,
        FsError::LinkElsewhere => Errno::ENOLINK,
        FsError::Resolve(ResolveError::Denied) => Errno::EACCES,
        FsError::Resolve(ResolveError::Unreachable(_)) => Errno::EHOSTUNREACH,
        FsError::Resolve(ResolveError::Unusable(_)) | FsError::Corrupt(_) => Errno::EIO,
        FsError::Read(
            ReadError::NoProgress(_)
            | ReadError::Unavailable(_)
            | ReadError::Unknown(_)
            | ReadError::Store(_)
            | ReadError::Closed,
        ) => Errno::EIO,
    }
}
