//! What can go wrong in a request, and the code that containerd sees for it.

use super::filter::FilterError;
use super::meta::{MetaError, WriteError};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rules of snapshots forbid it.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A filter is not in the language.
    #[error("{0}: invalid argument")]
    Filter(#[from] FilterError),
    /// A layer can't be made available now; asking again may help.
    #[error("{0}: unavailable")]
    Unavailable(String),
    /// The disk is full.
    #[error("{0}: no space left: resource exhausted")]
    NoSpace(&'static str),
    /// Files of a snapshot could not be handled.
    #[error("{what}: {source}")]
    Files {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database, or a thread that served the request, failed.
    #[error("{0}")]
    Internal(String),
}

impl Error {
    pub(super) fn files(what: &'static str, source: impl Into<std::io::Error>) -> Self {
        match source.into() {
            source if source.kind() == std::io::ErrorKind::StorageFull => Self::NoSpace(what),
            source => Self::Files { what, source },
        }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Meta(error) => Self::Meta(error),
            WriteError::Closed => Self::Unavailable(error.to_string()),
            WriteError::Database(_) => Self::Internal(error.to_string()),
        }
    }
}

/// containerd's `errdefs` map to these codes and back.
impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Meta(MetaError::NotFound(_)) => Self::not_found(message),
            Error::Meta(MetaError::AlreadyExists(_)) => Self::already_exists(message),
            Error::Meta(MetaError::InvalidArgument(_)) | Error::Filter(_) => {
                Self::invalid_argument(message)
            }
            Error::Meta(MetaError::FailedPrecondition(_)) => Self::failed_precondition(message),
            Error::Meta(MetaError::Exhausted(_)) | Error::NoSpace(_) => {
                Self::resource_exhausted(message)
            }
            Error::Unavailable(_) => Self::unavailable(message),
            Error::Files { .. } | Error::Internal(_) => Self::internal(message),
        }
    }
}
