//! Images in registries, OCI layouts and archives.
//!
//! A [`Source`] is what people write; it opens to an [`ImageSource`], of which
//! there are three: a repository of a registry ([`RegistryClient`]), a
//! directory ([`Layout`]) and a file ([`DockerArchive`]). [`Image::load`] turns
//! a name into a list of layers.
//!
//! What comes from a source is hostile: documents are bounded, verified and
//! parsed by pure functions ([`Manifest::parse`], [`ImageConfig::parse`]);
//! blobs are handed on as they come, for the caller to verify. Nothing here
//! knows what is inside a layer, or where anything is kept.

mod archive;
mod credentials;
mod document;
mod error;
mod file;
mod image;
mod layers;
mod layout;
pub mod media;
mod parallel;
mod platform;
mod reference;
mod referrer;
pub mod registry;
mod resume;
mod retry;
mod secret;
mod source;
#[cfg(test)]
mod testing;

pub use archive::{ArchiveError, DockerArchive};
pub use credentials::{AuthFile, CredentialError, Credentials, Login};
pub use document::{
    BLOB_MAX, DOCUMENT_MAX, Descriptor, Document, DocumentError, INDEX_MAX, ImageConfig,
    ImageManifest, Index, LAYERS_MAX, Manifest,
};
pub use error::{RegistryError, SourceError, Trouble};
pub use image::Image;
pub use layers::{LayerDescriptor, TITLE, chain_ids, layers};
pub use layout::{Layout, LayoutError, REF_NAME};
pub use parallel::{Ahead, ParallelBlob, SEGMENT};
pub use platform::{Platform, PlatformError};
pub use reference::{DEFAULT_DOMAIN, DEFAULT_TAG, Reference, ReferenceError};
pub use referrer::{Artifact, EMPTY_CONFIG};
pub use registry::{Registry, RegistryClient};
pub use resume::ResumingBlob;
pub use retry::{RetryPolicy, parse_retry_after};
pub use secret::Secret;
pub use source::{BlobFacts, BlobStream, ImageSource, Source, SourceNameError, Target};
