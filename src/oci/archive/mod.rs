//! Images in a file as `docker save` and `skopeo copy ... docker-archive:` write
//! it: a tar of configurations, layers and a `manifest.json`.
//!
//! Layers lie in it as they are, so a range of a layer is a range of the file.
//! There are no OCI manifests; one is made up, always the same for the same
//! content. An uncompressed layer's digest is its diffID; what the
//! configuration says is checked when the layer is read, as for any source.

mod contents;

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::json;

use super::document::{DOCUMENT_MAX, Descriptor, Document, DocumentError, ImageConfig, LAYERS_MAX};
use super::error::{SourceError, Trouble};
use super::file;
use super::media;
use super::reference::Reference;
use super::referrer::Artifact;
use super::source::{BlobFacts, BlobStream, ImageSource, Target, check_range, manifest_document};
use crate::types::{Digest, DigestHasher};
use contents::{Contents, Place, ReadError};

/// Why an archive could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It can't be read.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The archive.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Not an archive of images.
    #[error("{} is not an archive as `docker save` makes it: {problem}", .path.display())]
    NotAnArchive {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No such image or blob.
    #[error("{} has no {target}; it has: {available}", .path.display())]
    Missing {
        /// The archive.
        path: PathBuf,
        /// What was asked for.
        target: String,
        /// The names that there are.
        available: String,
    },
    /// No name was given and several images are there.
    #[error("{} has several images: say which, as docker-archive:FILE:NAME with one of {available}", .path.display())]
    Ambiguous {
        /// The archive.
        path: PathBuf,
        /// The names that there are.
        available: String,
    },
    /// Something was to be written.
    #[error("{}: nothing can be added to an archive", .0.display())]
    ReadOnly(PathBuf),
}

impl ArchiveError {
    /// What kind of trouble this is.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::Missing { .. } => Trouble::NotFound,
            Self::Io { error, .. } => match error.kind() {
                io::ErrorKind::NotFound => Trouble::NotFound,
                io::ErrorKind::PermissionDenied => Trouble::Denied,
                _ => Trouble::Transient,
            },
            Self::NotAnArchive { .. } => Trouble::Corrupt,
            Self::Ambiguous { .. } | Self::ReadOnly(_) => Trouble::Permanent,
        }
    }
}

/// An archive of images. Its headers are read when it is first asked for
/// something, and again when the file is another one.
#[derive(Debug)]
pub struct DockerArchive {
    path: PathBuf,
    read: Mutex<Option<(Stamp, Arc<Images>)>>,
}

/// By what a file is known to be the same: device, inode, size, change time.
type Stamp = (u64, u64, u64, i64, i64);

/// What an archive holds.
#[derive(Debug)]
struct Images {
    file: Arc<File>,
    images: Vec<Named>,
    blobs: HashMap<Digest, Place>,
}

/// An image with the names that the archive gives it.
#[derive(Debug)]
struct Named {
    tags: Vec<String>,
    manifest: Document,
}

/// An entry of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

impl DockerArchive {
    /// An archive at a path; nothing is read yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), read: Mutex::new(None) }
    }

    async fn images(self: &Arc<Self>) -> Result<Arc<Images>, ArchiveError> {
        let this = Arc::clone(self);
        let io = |error| ArchiveError::Io { path: self.path.clone(), error };
        tokio::task::spawn_blocking(move || this.open())
            .await
            .map_err(|e| io(io::Error::other(e)))?
    }

    fn open(&self) -> Result<Arc<Images>, ArchiveError> {
        let io = |error| ArchiveError::Io { path: self.path.clone(), error };
        let file = file::open(&self.path).map_err(io)?;
        let data = file.metadata().map_err(io)?;
        // Held while it is read: whoever else asks wants the same.
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        match &*read {
            Some((stamp, images)) if *stamp == stamp_of(&data) => Ok(Arc::clone(images)),
            _ => {
                let images = Arc::new(self.read(file, &data)?);
                *read = Some((stamp_of(&data), Arc::clone(&images)));
                Ok(images)
            }
        }
    }

    fn read(&self, file: File, data: &Metadata) -> Result<Images, ArchiveError> {
        if !data.is_file() {
            return Err(self.bad("it is not a regular file"));
        }
        let contents = Contents::read(&file, data.len()).map_err(|error| match error {
            ReadError::Io(error) => self.io(error),
            ReadError::Bad(problem) => self.bad(problem),
        })?;
        let list = self.small(&file, &contents, "manifest.json")?.1;
        let list: Vec<RawImage> =
            serde_json::from_slice(&list).map_err(|e| self.bad(&format!("manifest.json: {e}")))?;
        let mut images = Images { file: Arc::new(file), images: Vec::new(), blobs: HashMap::new() };
        for raw in list {
            let named = self.image(raw, &contents, &mut images)?;
            images.images.push(named);
        }
        Ok(images)
    }

    /// Makes up an image's manifest.
    fn image(
        &self,
        raw: RawImage,
        contents: &Contents,
        images: &mut Images,
    ) -> Result<Named, ArchiveError> {
        let (place, config) = self.small(&images.file, contents, &raw.config)?;
        let parsed = ImageConfig::parse(&config).map_err(|e| self.bad(&e.to_string()))?;
        let config = Descriptor::of(media::OCI_CONFIG, &config);
        images.blobs.insert(config.digest, place);
        let names = raw.layers.unwrap_or_default();
        if names.len() > LAYERS_MAX || names.len() != parsed.diff_ids.len() {
            let (layers, ids) = (names.len(), parsed.diff_ids.len());
            return Err(self.bad(&format!(
                "an image lists {layers} layers where its configuration has {ids}"
            )));
        }
        let mut layers = Vec::with_capacity(names.len());
        for (name, diff_id) in names.iter().zip(parsed.diff_ids) {
            let place = self.place(contents, name)?;
            let (media_type, digest) = self.layer(&images.file, place, diff_id)?;
            images.blobs.insert(digest, place);
            layers.push(json!({
                "mediaType": media_type, "digest": digest.to_string(), "size": place.length,
            }));
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": {
                "mediaType": config.media_type, "digest": config.digest.to_string(),
                "size": config.size,
            },
            "layers": layers,
        });
        let what = || format!("an image in {}", self.path.display());
        let manifest = manifest_document(what, None, Bytes::from(manifest.to_string()))
            .map_err(|error| self.bad(&error.to_string()))?;
        Ok(Named { tags: raw.repo_tags.unwrap_or_default(), manifest })
    }

    /// Media type and digest of a layer. Only one that is compressed has to be
    /// read for its digest.
    fn layer(
        &self,
        file: &File,
        place: Place,
        diff_id: Digest,
    ) -> Result<(&'static str, Digest), ArchiveError> {
        let start =
            file::read_at(file, place.offset, place.length.min(4)).map_err(|e| self.io(e))?;
        let media_type = match &start[..] {
            [0x1f, 0x8b, ..] => "application/vnd.oci.image.layer.v1.tar+gzip",
            [0x28, 0xb5, 0x2f, 0xfd] => "application/vnd.oci.image.layer.v1.tar+zstd",
            _ => return Ok(("application/vnd.oci.image.layer.v1.tar", diff_id)),
        };
        let mut hasher = DigestHasher::default();
        let (mut at, end) = (place.offset, place.offset + place.length);
        while at < end {
            let chunk = file::read_at(file, at, (end - at).min(1 << 20)).map_err(|e| self.io(e))?;
            hasher.update(&chunk);
            at += chunk.len() as u64;
        }
        Ok((media_type, hasher.finish()))
    }

    fn place(&self, contents: &Contents, name: &str) -> Result<Place, ArchiveError> {
        let name: String = name.chars().filter(|c| !c.is_control()).take(300).collect();
        contents.get(&name).ok_or_else(|| self.bad(&format!("it has no {name}")))
    }

    /// A document in the archive.
    fn small(
        &self,
        file: &File,
        contents: &Contents,
        name: &str,
    ) -> Result<(Place, Vec<u8>), ArchiveError> {
        let place = self.place(contents, name)?;
        if place.length > DOCUMENT_MAX {
            return Err(self.bad(&format!("{name}: {}", DocumentError::TooLarge)));
        }
        let bytes = file::read_at(file, place.offset, place.length).map_err(|e| self.io(e))?;
        Ok((place, bytes))
    }

    fn find(&self, images: &Images, target: &Target) -> Result<Document, ArchiveError> {
        let available = || {
            let mut names = images.images.iter().flat_map(|image| &image.tags).take(20).peekable();
            match names.peek() {
                None => "no named image".to_owned(),
                Some(_) => names.cloned().collect::<Vec<_>>().join(", "),
            }
        };
        let found = match target {
            Target::Default if images.images.len() > 1 => {
                let (path, available) = (self.path.clone(), available());
                return Err(ArchiveError::Ambiguous { path, available });
            }
            Target::Default => images.images.first(),
            Target::Digest(digest) => {
                images.images.iter().find(|image| image.manifest.descriptor.digest == *digest)
            }
            Target::Tag(name) => {
                images.images.iter().find(|image| image.tags.iter().any(|tag| same(tag, name)))
            }
        };
        found.map(|image| image.manifest.clone()).ok_or_else(|| ArchiveError::Missing {
            path: self.path.clone(),
            target: format!("image {}", target.to_string().trim_start_matches([':', '@'])),
            available: available(),
        })
    }

    fn io(&self, error: io::Error) -> ArchiveError {
        ArchiveError::Io { path: self.path.clone(), error }
    }

    fn bad(&self, problem: &str) -> ArchiveError {
        ArchiveError::NotAnArchive { path: self.path.clone(), problem: problem.to_owned() }
    }

    fn read_only<T>(&self) -> Result<T, SourceError> {
        Err(ArchiveError::ReadOnly(self.path.clone()).into())
    }
}

/// Whether two names are of one image: `alpine:3` is `docker.io/library/alpine:3`.
fn same(one: &str, other: &str) -> bool {
    let full = |name: &str| name.parse().map(|name: Reference| name.with_default_tag().to_string());
    one == other || matches!((full(one), full(other)), (Ok(one), Ok(other)) if one == other)
}

fn stamp_of(data: &Metadata) -> Stamp {
    (data.dev(), data.ino(), data.len(), data.ctime(), data.ctime_nsec())
}

impl ImageSource for Arc<DockerArchive> {
    fn name(&self) -> String {
        format!("docker-archive:{}", self.path.display())
    }

    fn is_local(&self) -> bool {
        true
    }

    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        Box::pin(async move { Ok(self.find(&*self.images().await?, target)?) })
    }

    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        Box::pin(async move { Ok(self.find(&*self.images().await?, &Target::Digest(*digest))?) })
    }

    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        Box::pin(async move {
            check_range(|| format!("{digest} in {}", self.name()), range.as_ref())?;
            let images = self.images().await?;
            let place = images.blobs.get(digest).ok_or_else(|| ArchiveError::Missing {
                path: self.path.clone(),
                target: format!("blob {digest}"),
                available: format!("{} others", images.blobs.len()),
            })?;
            let range = range.unwrap_or(0..place.length);
            if range.start > place.length || (range.start == place.length && place.length > 0) {
                let problem = "a layer is shorter than the range that was asked for";
                return Err(self.bad(problem).into());
            }
            let range = range.start..range.end.min(place.length);
            let facts = BlobFacts {
                start: range.start,
                length: Some(range.end - range.start),
                total: Some(place.length),
                range_honoured: true,
            };
            let within = place.offset + range.start..place.offset + range.end;
            let path = self.path.clone();
            let failed = move |error| ArchiveError::Io { path: path.clone(), error }.into();
            let chunks = file::chunks(Arc::clone(&images.file), within, failed);
            Ok(BlobStream::new(facts, &self.name(), chunks))
        })
    }

    fn referrers<'a>(
        &'a self,
        _subject: &'a Digest,
        _artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn push_blob<'a>(
        &'a self,
        _digest: &'a Digest,
        _data: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async { self.read_only() })
    }

    fn push_manifest<'a>(
        &'a self,
        _tag: Option<&'a str>,
        _manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(async { self.read_only() })
    }

    fn push_referrer<'a>(
        &'a self,
        _artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(async { self.read_only() })
    }
}
