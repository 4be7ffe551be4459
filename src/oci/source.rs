//! The seam between images and where they come from.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, Stream};

use super::archive::DockerArchive;
use super::document::{BLOB_MAX, DOCUMENT_MAX, Descriptor, Document, DocumentError, Manifest};
use super::error::SourceError;
use super::layout::Layout;
use super::reference::{Reference, ReferenceError, is_tag};
use super::referrer::Artifact;
use super::registry::Registry;
use crate::types::Digest;

/// A place that has images: a repository of a registry, or a directory.
///
/// Everything that comes from one is hostile until it has been verified:
/// documents are, before they are returned; the bytes of blobs are the
/// caller's to check, since a range can't be checked against a digest.
pub trait ImageSource: Send + Sync + fmt::Debug {
    /// What this is, for messages and records: `docker.io/library/alpine`, `oci:/dir`.
    fn name(&self) -> String;

    /// Finds the manifest or index that `target` means now.
    ///
    /// # Errors
    /// [`SourceError`] where there is none, it can't be reached, or what came
    /// is not a manifest within [`DOCUMENT_MAX`].
    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>>;

    /// The manifest or index of that digest, verified.
    ///
    /// # Errors
    /// As [`ImageSource::resolve`].
    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>>;

    /// Opens a blob, or a part of it: `range` in bytes, not empty.
    ///
    /// See [`BlobFacts`] for what the answer covers: a source may ignore the range.
    ///
    /// # Errors
    /// [`SourceError`] where it can't be opened. What comes later is in the stream.
    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>>;

    /// The manifests that refer to `subject`, with the given artifact type if
    /// one is given. Empty where there are none.
    ///
    /// # Errors
    /// [`SourceError`] where the source can't be asked or its answer is malformed.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>>;

    /// Gives the source a blob; nothing happens if it is there already.
    ///
    /// # Errors
    /// [`SourceError`] where the source does not take it.
    fn push_blob<'a>(
        &'a self,
        digest: &'a Digest,
        data: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>>;

    /// Gives the source a manifest or index, under a tag if one is given.
    ///
    /// # Errors
    /// [`SourceError`] where it is not a manifest, or the source does not take it.
    fn push_manifest<'a>(
        &'a self,
        tag: Option<&'a str>,
        manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>>;

    /// Gives the source an artifact that refers to another manifest, and sees
    /// to it that [`ImageSource::referrers`] finds it. Its blobs must be there.
    ///
    /// # Errors
    /// As [`ImageSource::push_manifest`].
    fn push_referrer<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>>;

    /// What `target` means now, as cheaply as the source can say it. Its size
    /// may be unknown (0) and nothing is verified.
    ///
    /// # Errors
    /// As [`ImageSource::resolve`].
    fn current<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(async move { Ok(self.resolve(target).await?.descriptor) })
    }

    /// Whether the source itself counts the bytes of its blobs as they come.
    fn counts(&self) -> bool {
        false
    }

    /// Whether its bytes come from this machine, so that several requests at
    /// once bring nothing.
    fn is_local(&self) -> bool {
        false
    }

    /// Tells the source that what [`BlobStream::from`] gave was wrong, so that
    /// another place is asked first for a while, where there is one.
    fn distrust(&self, from: &str) {
        tracing::debug!(source = %self.name(), from, "no other place to ask");
    }

    /// A whole small blob, as a configuration: verified, at most [`DOCUMENT_MAX`].
    ///
    /// # Errors
    /// [`SourceError`] where it can't be had, is too large or is not what
    /// `descriptor` says.
    fn document<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        Box::pin(async move {
            let what = || format!("document {} of {}", descriptor.digest, self.name());
            let bytes = self.small_blob(&descriptor.digest, descriptor.size, DOCUMENT_MAX).await?;
            verify(what, &descriptor.digest, &bytes)?;
            Ok(bytes)
        })
    }

    /// The bytes of a whole blob of at most `limit` bytes, not verified.
    #[doc(hidden)]
    fn small_blob<'a>(
        &'a self,
        digest: &'a Digest,
        size: u64,
        limit: u64,
    ) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        Box::pin(async move {
            use futures_util::StreamExt;
            let what = || format!("blob {digest} of {}", self.name());
            if size > limit {
                return Err(SourceError::Document {
                    what: what(),
                    problem: DocumentError::TooLarge,
                });
            }
            let mut stream = self.open_blob(digest, None).await?;
            if let Some(total) = stream.facts().total
                && total != size
            {
                let (expected, actual) = (size, total);
                return Err(SourceError::SizeMismatch { what: what(), expected, actual });
            }
            let mut bytes = Vec::with_capacity(size as usize);
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk?);
                if bytes.len() as u64 > size {
                    break;
                }
            }
            if bytes.len() as u64 != size {
                let (expected, actual) = (size, bytes.len() as u64);
                return Err(SourceError::SizeMismatch { what: what(), expected, actual });
            }
            Ok(bytes.into())
        })
    }
}

/// Which of a source's images is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The one that the source has, or `latest`.
    Default,
    /// The one with this tag.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => Ok(()),
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// What a blob's stream is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobFacts {
    /// Offset in the blob of the stream's first byte.
    pub start: u64,
    /// Bytes that the stream will bring, where known. A stream that ends
    /// before that ends with an error.
    pub length: Option<u64>,
    /// Length of the whole blob, where the source says.
    pub total: Option<u64>,
    /// False where a range was asked for and the source sends the whole blob
    /// from its first byte (`start` is 0 then). True where none was asked for.
    pub range_honoured: bool,
}

/// The bytes of a blob as they come, not verified. Ends at the first error.
pub struct BlobStream {
    facts: BlobFacts,
    from: String,
    chunks: BoxStream<'static, Result<Bytes, SourceError>>,
}

impl BlobStream {
    /// A stream of `chunks`, which keep what `facts` promise. `from` is where
    /// they come from, for [`ImageSource::distrust`].
    pub fn new(
        facts: BlobFacts,
        from: &str,
        chunks: impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static,
    ) -> Self {
        Self { facts, from: from.to_owned(), chunks: Box::pin(chunks) }
    }

    /// Who gives the bytes, where a source has several places: a mirror's origin.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// What the source says about it.
    pub fn facts(&self) -> &BlobFacts {
        &self.facts
    }
}

impl Stream for BlobStream {
    type Item = Result<Bytes, SourceError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.chunks.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.facts.fmt(f)
    }
}

/// How the names of archives begin.
const ARCHIVE: &str = "docker-archive:";

/// Where an image is to come from, as people write it: an image reference, or
/// `oci:DIR[:TAG]` or `oci:DIR@DIGEST` for a directory in the OCI layout, or
/// `docker-archive:FILE[:NAME]` for a file as `docker save` writes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// A registry.
    Registry(Reference),
    /// A directory.
    Layout {
        /// The directory that holds `oci-layout`.
        dir: PathBuf,
        /// Which of its images.
        target: Target,
    },
    /// A file.
    Archive {
        /// The archive.
        file: PathBuf,
        /// Which of its images.
        target: Target,
    },
}

/// Why a text names no source of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceNameError {
    /// Not an image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// `oci:` without a directory.
    #[error("oci: needs a directory: oci:DIR[:TAG]")]
    NoDirectory,
    /// `docker-archive:` without a file.
    #[error("docker-archive: needs a file: docker-archive:FILE[:NAME]")]
    NoFile,
    /// A place that images are not read from.
    #[error("{0}: images are read from registries, oci:DIR and docker-archive:FILE only")]
    Transport(String),
    /// A name in the layout that nothing can have.
    #[error("{0:?} can't be the name of an image in a layout or archive")]
    Tag(String),
}

impl FromStr for Source {
    type Err = SourceNameError;

    fn from_str(text: &str) -> Result<Self, SourceNameError> {
        let (rest, is_layout) = match (text.strip_prefix("oci:"), text.strip_prefix(ARCHIVE)) {
            (Some(rest), _) => (rest, true),
            (_, Some(rest)) => (rest, false),
            _ => {
                // Other tools' words, which would otherwise be names of images.
                let others = ["oci-archive", "docker-daemon", "containers-storage"];
                if let Some((other, _)) = text.split_once(':')
                    && others.contains(&other)
                {
                    return Err(SourceNameError::Transport(other.to_owned()));
                }
                let reference = text.strip_prefix("docker://").unwrap_or(text);
                return Ok(Self::Registry(reference.parse()?));
            }
        };
        let at = |path: &str, target| Self::at(is_layout, path, target);
        if let Some((path, digest)) = rest.rsplit_once('@')
            && let Ok(digest) = digest.parse()
        {
            // `oci:DIR:TAG@DIGEST`: the digest decides.
            return at(path.split_once(':').map_or(path, |(path, _)| path), Target::Digest(digest));
        }
        // The path ends at the first colon, as for skopeo and umoci; the name
        // after it may have colons of its own.
        match rest.split_once(':') {
            None => at(rest, Target::Default),
            Some((path, tag)) if is_layout_name(tag) => at(path, Target::Tag(tag.to_owned())),
            Some((_, tag)) => Err(SourceNameError::Tag(tag.chars().take(100).collect())),
        }
    }
}

impl Source {
    fn at(is_layout: bool, path: &str, target: Target) -> Result<Self, SourceNameError> {
        match (is_layout, path) {
            (true, "") => Err(SourceNameError::NoDirectory),
            (false, "") => Err(SourceNameError::NoFile),
            (true, dir) => Ok(Self::Layout { dir: dir.into(), target }),
            (false, file) => Ok(Self::Archive { file: file.into(), target }),
        }
    }

    /// Opens the source. Reads small files: the layout's marker, or the
    /// configuration of the registry's hosts. An archive is not read yet.
    ///
    /// # Errors
    /// [`SourceError`] where the directory is no layout, or the registry's
    /// configuration can't be used. A registry is not contacted.
    pub fn open(&self, registry: &Registry) -> Result<(Arc<dyn ImageSource>, Target), SourceError> {
        Ok(match self {
            Self::Registry(reference) => {
                let client = registry.repository(reference)?;
                (Arc::new(client), Target::from(reference))
            }
            Self::Layout { dir, target } => (Arc::new(Layout::open(dir)?), target.clone()),
            Self::Archive { file, target } => {
                (Arc::new(Arc::new(DockerArchive::new(file))), target.clone())
            }
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => reference.fmt(f),
            Self::Layout { dir, target } => write!(f, "oci:{}{target}", dir.display()),
            Self::Archive { file, target } => write!(f, "{ARCHIVE}{}{target}", file.display()),
        }
    }
}

impl From<&Reference> for Target {
    fn from(reference: &Reference) -> Self {
        match (reference.digest(), reference.tag()) {
            (Some(digest), _) => Self::Digest(*digest),
            (None, Some(tag)) => Self::Tag(tag.to_owned()),
            (None, None) => Self::Default,
        }
    }
}

/// The grammar of `org.opencontainers.image.ref.name`: a tag, or a whole
/// reference, as containerd and skopeo write there.
fn is_layout_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"-._:@/+".contains(&b);
    is_tag(name) || ((1..=512).contains(&name.len()) && name.bytes().all(inner))
}

/// Makes sure that a document is the one asked for.
pub(super) fn verify(
    what: impl Fn() -> String,
    expected: &Digest,
    bytes: &[u8],
) -> Result<(), SourceError> {
    let (expected, actual) = (*expected, Digest::of(bytes));
    if expected == actual {
        Ok(())
    } else {
        Err(SourceError::DigestMismatch { what: what(), expected, actual })
    }
}

/// Turns a verified manifest's bytes into a document, parsed once to see that it can be.
pub(super) fn manifest_document(
    what: impl Fn() -> String,
    media_type: Option<&str>,
    bytes: Bytes,
) -> Result<Document, SourceError> {
    let manifest = Manifest::parse(media_type, &bytes)
        .map_err(|problem| SourceError::Document { what: what(), problem })?;
    let descriptor = Descriptor::of(manifest.media_type(), &bytes);
    Ok(Document { descriptor, bytes })
}

/// Refuses ranges that can't be of a blob.
pub(super) fn check_range(
    what: impl Fn() -> String,
    range: Option<&Range<u64>>,
) -> Result<(), SourceError> {
    match range {
        Some(range) if range.start >= range.end || range.end > BLOB_MAX => {
            let (start, end) = (range.start, range.end);
            Err(SourceError::Range { what: what(), start, end })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_and_archives_are_named_as_for_skopeo() {
        let digest = Digest::of(b"x");
        let layout = |dir: &str, target| Ok(Source::Layout { dir: dir.into(), target });
        let archive = |file: &str, target| Ok(Source::Archive { file: file.into(), target });
        let tag = |tag: &str| Target::Tag(tag.to_owned());
        for (text, expected) in [
            ("oci:/a/b", layout("/a/b", Target::Default)),
            ("oci:dir:latest", layout("dir", tag("latest"))),
            ("oci:dir:docker.io/library/x:1", layout("dir", tag("docker.io/library/x:1"))),
            (&format!("oci:dir@{digest}"), layout("dir", Target::Digest(digest))),
            (&format!("oci:dir:t@{digest}"), layout("dir", Target::Digest(digest))),
            ("oci:a@b", layout("a@b", Target::Default)),
            ("oci:", Err(SourceNameError::NoDirectory)),
            ("oci::tag", Err(SourceNameError::NoDirectory)),
            ("oci:dir:", Err(SourceNameError::Tag(String::new()))),
            ("oci:dir:a b", Err(SourceNameError::Tag("a b".to_owned()))),
            ("alpine", Ok(Source::Registry("alpine".parse().expect("valid")))),
            ("docker://alpine", Ok(Source::Registry("alpine".parse().expect("valid")))),
            ("docker-archive:/a/b.tar", archive("/a/b.tar", Target::Default)),
            ("docker-archive:b.tar:x:1", archive("b.tar", tag("x:1"))),
            ("docker-archive:", Err(SourceNameError::NoFile)),
            ("oci-archive:x.tar", Err(SourceNameError::Transport("oci-archive".to_owned()))),
            ("", Err(SourceNameError::Reference(ReferenceError::Empty))),
        ] {
            assert_eq!(text.parse(), expected, "{text}");
        }
    }
}
