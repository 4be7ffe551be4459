//! What can go wrong with a source of images: what happened, to what, and
//! what to do about it.

use std::time::Duration;

use super::archive::ArchiveError;
use super::credentials::CredentialError;
use super::document::{BLOB_MAX, DocumentError};
use super::layout::LayoutError;
use super::registry::HostsError;
use crate::types::Digest;

/// Why something could not be had from, or given to, a source of images.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The registry, or the way to it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The OCI layout directory.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A manifest, index or configuration that can't be used.
    #[error("{what}: {problem}")]
    Document {
        /// The document.
        what: String,
        /// What is wrong with it.
        problem: DocumentError,
    },
    /// Bytes that are not the ones that were asked for.
    #[error("{what}: the content has the digest {actual}, not {expected}; it was not used")]
    DigestMismatch {
        /// What was asked for, and of whom.
        what: String,
        /// The digest asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// Content of another length than its descriptor says.
    #[error("{what}: {actual} bytes came where {expected} were announced")]
    SizeMismatch {
        /// What was asked for, and of whom.
        what: String,
        /// Bytes announced.
        expected: u64,
        /// Bytes that came, or that the source says it has.
        actual: u64,
    },
    /// A range that is empty, reversed or beyond what a blob can have.
    #[error("{what}: bytes {start}..{end} are not a range of a blob (at most {BLOB_MAX} bytes)")]
    Range {
        /// The blob.
        what: String,
        /// First byte.
        start: u64,
        /// First byte after the range.
        end: u64,
    },
}

/// What kind of trouble an error is, for those who have to decide what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It isn't there.
    NotFound,
    /// It is there, or may be, and we may not have it.
    Denied,
    /// The other end is there and asks us to come later.
    Busy,
    /// It may well work next time: network trouble, a failing server.
    Transient,
    /// It came, and it is wrong. Another source may have it right.
    Corrupt,
    /// It won't work like this: configuration, or something unsupported.
    Permanent,
}

impl SourceError {
    /// What kind of trouble this is.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Registry(error) => error.trouble(),
            Self::Layout(error) => error.trouble(),
            Self::Archive(error) => error.trouble(),
            Self::Document {
                problem: DocumentError::NoPlatform { .. } | DocumentError::Missing,
                ..
            } => Trouble::NotFound,
            Self::Document { .. } | Self::DigestMismatch { .. } | Self::SizeMismatch { .. } => {
                Trouble::Corrupt
            }
            Self::Range { .. } => Trouble::Permanent,
        }
    }

    /// True where it simply isn't there.
    pub fn is_not_found(&self) -> bool {
        self.trouble() == Trouble::NotFound
    }
}

/// Why a registry did not do what it was asked to.
///
/// `what` is the operation and its object: `GET manifest docker.io/library/x:1`.
/// Texts that came from the other end are cut and stripped of control
/// characters. No credential, query string or header is ever part of it.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// 401, or no way to log in as asked.
    #[error("{what}: the registry {host} wants a login{}: {hint}", of(message))]
    Unauthorized {
        /// The operation.
        what: String,
        /// The registry's host.
        host: String,
        /// What the registry said.
        message: String,
        /// What to do.
        hint: String,
    },
    /// 403.
    #[error("{what}: access denied{}: check that the account may use this repository", of(message))]
    Forbidden {
        /// The operation.
        what: String,
        /// What the registry said.
        message: String,
    },
    /// 404.
    #[error("{what}: not found{}: check the name and the tag", of(message))]
    NotFound {
        /// The operation.
        what: String,
        /// What the registry said.
        message: String,
    },
    /// 429, after retries or with a longer wait than we are ready for.
    #[error("{what}: the registry limits the rate of requests{}{}", of(message), wait(retry_after))]
    Throttled {
        /// The operation.
        what: String,
        /// What the registry said.
        message: String,
        /// How long the registry asks us to wait.
        retry_after: Option<Duration>,
    },
    /// 5xx or 408, after retries.
    #[error("{what}: the server failed with status {status}{}: try again later", of(message))]
    Server {
        /// The operation.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// Another status than the protocol has.
    #[error("{what}: unexpected status {status}{}", of(message))]
    Status {
        /// The operation.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// The host's name has no address.
    #[error("{what}: the name {host} can't be resolved: check it, and this machine's DNS")]
    Dns {
        /// The operation.
        what: String,
        /// The host.
        host: String,
    },
    /// No connection.
    #[error("{what}: can't connect to {host}: {problem}")]
    Connect {
        /// The operation.
        what: String,
        /// The host.
        host: String,
        /// What the system said.
        problem: String,
    },
    /// A connection whose other end can't prove who it is, or speaks no TLS.
    #[error(
        "{what}: no secure connection to {host}: {problem}: give its certificate as `ca` in \
         hosts.toml, or list the host under plain_http if it speaks HTTP only"
    )]
    Tls {
        /// The operation.
        what: String,
        /// The host.
        host: String,
        /// What the TLS library said.
        problem: String,
    },
    /// Nothing came for too long.
    #[error("{what}: no answer from {host} within {after:?}")]
    Timeout {
        /// The operation.
        what: String,
        /// The host.
        host: String,
        /// How long we waited.
        after: Duration,
    },
    /// The connection broke in the middle of an answer.
    #[error("{what}: the connection to {host} broke after {received} bytes: {problem}")]
    Broken {
        /// The operation.
        what: String,
        /// The host.
        host: String,
        /// Bytes of the answer that came.
        received: u64,
        /// What the system said.
        problem: String,
    },
    /// An answer that contradicts itself or the question.
    #[error("{what}: {host} answered wrongly: {problem}")]
    Protocol {
        /// The operation.
        what: String,
        /// The host.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// An answer of more bytes than its kind may have.
    #[error("{what}: the answer is larger than the {limit} bytes it may have")]
    TooLarge {
        /// The operation.
        what: String,
        /// The bound in bytes.
        limit: u64,
    },
    /// A redirect that isn't followed.
    #[error("{what}: {host} redirects {problem}")]
    Redirect {
        /// The operation.
        what: String,
        /// The host that redirects.
        host: String,
        /// Why that isn't followed.
        problem: String,
    },
    /// Credentials would have gone over an unprotected line to another host.
    #[error(
        "{what}: {host} sends logins to {realm} over plain HTTP; no credentials were sent there"
    )]
    InsecureRealm {
        /// The operation.
        what: String,
        /// The registry's host.
        host: String,
        /// Origin of the token server.
        realm: String,
    },
    /// The stored credentials can't be read.
    #[error("{what}: {problem}")]
    Credentials {
        /// The operation.
        what: String,
        /// What is wrong with them.
        problem: CredentialError,
    },
    /// The configuration of the host can't be used.
    #[error("the configuration of registry {host}: {problem}")]
    Hosts {
        /// The registry's name.
        host: String,
        /// What is wrong with it.
        problem: HostsError,
    },
    /// No configured endpoint may do this.
    #[error("{what}: no endpoint of {host} is configured with the capability to {capability}")]
    NoEndpoint {
        /// The operation.
        what: String,
        /// The registry's name.
        host: String,
        /// `pull`, `resolve` or `push`.
        capability: &'static str,
    },
    /// A registry's name that can't be part of a URL.
    #[error("{0:?} can't be the name of a registry")]
    Name(String),
    /// The TLS library can't be set up.
    #[error("can't set up the HTTP client: {0}")]
    Setup(String),
}

impl RegistryError {
    /// What kind of trouble this is.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NotFound { .. } => Trouble::NotFound,
            Self::Unauthorized { .. }
            | Self::Forbidden { .. }
            | Self::InsecureRealm { .. }
            | Self::Credentials { .. } => Trouble::Denied,
            Self::Throttled { .. } => Trouble::Busy,
            Self::Server { .. }
            | Self::Dns { .. }
            | Self::Connect { .. }
            | Self::Timeout { .. }
            | Self::Broken { .. } => Trouble::Transient,
            Self::Protocol { .. } | Self::TooLarge { .. } => Trouble::Corrupt,
            Self::Status { .. }
            | Self::Tls { .. }
            | Self::Redirect { .. }
            | Self::Hosts { .. }
            | Self::NoEndpoint { .. }
            | Self::Name(_)
            | Self::Setup(_) => Trouble::Permanent,
        }
    }
}

/// `: text`, or nothing where there is no text.
fn of(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}

fn wait(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(
        || ": try again later, or log in for a higher limit".to_owned(),
        |wait| format!(": it asks to wait for {} s", wait.as_secs()),
    )
}
