//! Images in a directory in the OCI image layout (`oci-layout`, `index.json`, `blobs/`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};

use super::document::{DOCUMENT_MAX, Descriptor, Document, DocumentError, Index, Manifest};
use super::error::{SourceError, Trouble};
use super::file;
use super::media;
use super::referrer::{self, Artifact};
use super::source::{
    BlobFacts, BlobStream, ImageSource, Target, check_range, manifest_document, verify,
};
use crate::types::Digest;

/// The annotation that names an image within a layout.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same for containerd and `docker save`: a whole reference.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A directory in the OCI image layout.
///
/// File work runs on tokio's blocking threads.
#[derive(Debug, Clone)]
pub struct Layout {
    dir: Arc<Path>,
}

/// Why a layout directory could not be used.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// Not a layout at all.
    #[error("{} is not an OCI layout directory: it has no usable oci-layout file ({problem})", .dir.display())]
    NotALayout {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that can't be read or written.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// No such image.
    #[error("{} has no image {target:?}; it has: {available}", .dir.display())]
    NoImage {
        /// The directory.
        dir: PathBuf,
        /// Name or digest that was asked for.
        target: String,
        /// The names that there are.
        available: String,
    },
    /// No name was given and several images are there.
    #[error("{} has several images: say which, as oci:DIR:NAME with one of {available}", .dir.display())]
    Ambiguous {
        /// The directory.
        dir: PathBuf,
        /// The names that there are.
        available: String,
    },
    /// No such blob.
    #[error("{} has no blob {digest}", .dir.display())]
    NoBlob {
        /// The directory.
        dir: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// A blob's file is something else than a file, or shorter than asked.
    #[error("{}: {problem}", .path.display())]
    BadBlob {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// `index.json` is malformed.
    #[error("{}: {problem}", .path.display())]
    Index {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: DocumentError,
    },
}

impl LayoutError {
    /// What kind of trouble this is.
    pub fn trouble(&self) -> Trouble {
        match self {
            Self::NoImage { .. } | Self::NoBlob { .. } => Trouble::NotFound,
            Self::Io { error, .. } if error.kind() == io::ErrorKind::PermissionDenied => {
                Trouble::Denied
            }
            Self::Io { .. } => Trouble::Transient,
            Self::BadBlob { .. } | Self::Index { .. } => Trouble::Corrupt,
            Self::NotALayout { .. } | Self::Ambiguous { .. } => Trouble::Permanent,
        }
    }
}

impl Layout {
    /// Opens an existing layout.
    ///
    /// # Errors
    /// [`LayoutError::NotALayout`] where its marker file is missing or of
    /// another version than 1.
    pub fn open(dir: &Path) -> Result<Self, LayoutError> {
        let bad = |problem: String| LayoutError::NotALayout { dir: dir.to_owned(), problem };
        let marker = read_bounded(&dir.join("oci-layout"), 4096).map_err(|e| bad(e.to_string()))?;
        let marker: Value = serde_json::from_slice(&marker).map_err(|e| bad(e.to_string()))?;
        match marker.get("imageLayoutVersion").and_then(Value::as_str) {
            Some(version) if version.starts_with("1.") => Ok(Self { dir: dir.into() }),
            Some(_) => Err(bad("its version is not 1".to_owned())),
            None => Err(bad("it states no version".to_owned())),
        }
    }

    /// Makes a new, empty layout, or opens the one that is there.
    ///
    /// # Errors
    /// [`LayoutError`] where the directory can't be made or is something else.
    pub fn create(dir: &Path) -> Result<Self, LayoutError> {
        if !dir.join("oci-layout").exists() {
            let blobs = dir.join("blobs/sha256");
            fs::create_dir_all(&blobs).map_err(|error| LayoutError::Io { path: blobs, error })?;
            let empty = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": []});
            replace_file(&dir.join("index.json"), empty.to_string().as_bytes())?;
            replace_file(&dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        }
        Self::open(dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    fn index_path(&self) -> PathBuf {
        self.dir.join("index.json")
    }

    fn index(&self) -> Result<Index, LayoutError> {
        let path = self.index_path();
        let bytes = read_bounded(&path, DOCUMENT_MAX)?;
        match Manifest::parse(None, &bytes) {
            Ok(Manifest::Index(index)) => Ok(index),
            Ok(Manifest::Image(_)) => {
                let problem = DocumentError::Malformed("it is not an index".to_owned());
                Err(LayoutError::Index { path, problem })
            }
            Err(problem) => Err(LayoutError::Index { path, problem }),
        }
    }

    /// Finds the entry of `index.json` that `target` means.
    fn find(&self, index: &Index, target: &Target) -> Result<Descriptor, LayoutError> {
        let name = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
        let named = |d: &Descriptor, wanted: &String| {
            [REF_NAME, CONTAINERD_NAME].iter().any(|key| d.annotations.get(*key) == Some(wanted))
        };
        let images = || index.manifests.iter().filter(|d| is_image_entry(d));
        let available = || {
            let names: Vec<_> = images().filter_map(name).take(20).collect();
            if names.is_empty() { "no named image".to_owned() } else { names.join(", ") }
        };
        let missing = |target: String| LayoutError::NoImage {
            dir: self.dir.to_path_buf(),
            target,
            available: available(),
        };
        match target {
            Target::Tag(tag) => images()
                // The last of equal names is the newest, as umoci and skopeo append.
                .rfind(|d| named(d, tag))
                .cloned()
                .ok_or_else(|| missing(tag.clone())),
            Target::Digest(digest) => index
                .manifests
                .iter()
                .find(|d| d.digest == *digest)
                .cloned()
                .ok_or_else(|| missing(digest.to_string())),
            Target::Default => {
                let mut all = images();
                match (all.next(), all.next()) {
                    (Some(only), None) => Ok(only.clone()),
                    (None, _) => Err(missing("latest".to_owned())),
                    _ => images()
                        .rfind(|d| name(d).as_deref() == Some("latest"))
                        .cloned()
                        .ok_or_else(|| LayoutError::Ambiguous {
                            dir: self.dir.to_path_buf(),
                            available: available(),
                        }),
                }
            }
        }
    }

    fn what(&self, digest: &Digest) -> String {
        format!("{digest} in {}", self.name())
    }

    fn read_manifest(
        &self,
        digest: &Digest,
        media_type: Option<&str>,
    ) -> Result<Document, SourceError> {
        let (file, length) = self.open_file(digest)?;
        if length > DOCUMENT_MAX {
            let problem = DocumentError::TooLarge;
            return Err(SourceError::Document { what: self.what(digest), problem });
        }
        let path = self.blob_path(digest);
        let bytes: Bytes = file::read_at(&file, 0, length)
            .map_err(|error| LayoutError::Io { path, error })?
            .into();
        verify(|| self.what(digest), digest, &bytes)?;
        manifest_document(|| self.what(digest), media_type, bytes)
    }

    fn open_file(&self, digest: &Digest) -> Result<(File, u64), LayoutError> {
        let path = self.blob_path(digest);
        let file = file::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                LayoutError::NoBlob { dir: self.dir.to_path_buf(), digest: *digest }
            }
            _ => LayoutError::Io { path: path.clone(), error },
        })?;
        match file.metadata() {
            Ok(data) if data.is_file() => Ok((file, data.len())),
            Ok(_) => Err(LayoutError::BadBlob { path, problem: "it is not a regular file" }),
            Err(error) => Err(LayoutError::Io { path, error }),
        }
    }

    fn write_blob(&self, digest: &Digest, data: &[u8]) -> Result<(), SourceError> {
        verify(|| self.what(digest), digest, data)?;
        let path = self.blob_path(digest);
        if path.exists() {
            return Ok(());
        }
        if let Some(dir) = path.parent() {
            let io = |error| LayoutError::Io { path: dir.to_owned(), error };
            fs::create_dir_all(dir).map_err(io)?;
        }
        Ok(replace_file(&path, data)?)
    }

    /// Writes a manifest's blob and then its entry, which alone makes it visible.
    fn write_manifest(&self, entry: &Descriptor, data: &[u8]) -> Result<(), SourceError> {
        self.write_blob(&entry.digest, data)?;
        let path = self.index_path();
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| LayoutError::Io { path, error }
        };
        // Whoever updates the index holds the lock on the directory.
        let lock = File::open(&*self.dir).map_err(io(&self.dir))?;
        lock.lock().map_err(io(&self.dir))?;
        let bytes = read_bounded(&path, DOCUMENT_MAX)?;
        let malformed = |problem| LayoutError::Index { path: path.clone(), problem };
        let updated = referrer::add_entry(&bytes, entry).map_err(malformed)?;
        replace_file(&path, &updated)?;
        Ok(())
    }

    fn find_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, SourceError> {
        let mut found = Vec::new();
        for entry in self.index()?.manifests {
            if !media::is_manifest(&entry.media_type) {
                continue;
            }
            // One damaged manifest doesn't hide the others.
            let document = match self.read_manifest(&entry.digest, Some(&entry.media_type)) {
                Ok(document) => document,
                Err(error) => {
                    tracing::debug!(%error, "skipped while looking for referrers");
                    continue;
                }
            };
            if let Ok(Manifest::Image(manifest)) = Manifest::parse(None, &document.bytes)
                && manifest.subject.as_ref().is_some_and(|s| s.digest == *subject)
            {
                found.push(referrer::entry_for(document.descriptor, &manifest));
            }
        }
        Ok(found)
    }

    /// Runs blocking file work away from the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || work(&this)).await {
            Ok(result) => result,
            Err(error) => Err(LayoutError::Io {
                path: self.dir.to_path_buf(),
                error: io::Error::other(error.to_string()),
            }
            .into()),
        }
    }
}

impl ImageSource for Layout {
    fn name(&self) -> String {
        format!("oci:{}", self.dir.display())
    }

    fn is_local(&self) -> bool {
        true
    }

    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        let target = target.clone();
        Box::pin(self.blocking(move |this| {
            let entry = match (this.find(&this.index()?, &target), &target) {
                (Ok(entry), _) => entry,
                // A manifest that only an index in here names.
                (Err(_), Target::Digest(digest)) => return this.read_manifest(digest, None),
                (Err(error), _) => return Err(error.into()),
            };
            this.read_manifest(&entry.digest, Some(&entry.media_type))
        }))
    }

    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        let digest = *digest;
        Box::pin(self.blocking(move |this| this.read_manifest(&digest, None)))
    }

    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        let digest = *digest;
        Box::pin(async move {
            check_range(|| self.what(&digest), range.as_ref())?;
            let (file, total) = self.blocking(move |this| Ok(this.open_file(&digest)?)).await?;
            let range = range.unwrap_or(0..total);
            if range.start > total || (range.start == total && total > 0) {
                let path = self.blob_path(&digest);
                let problem = "it is shorter than the range that was asked for";
                return Err(LayoutError::BadBlob { path, problem }.into());
            }
            let range = range.start..range.end.min(total);
            let facts = BlobFacts {
                start: range.start,
                length: Some(range.end - range.start),
                total: Some(total),
                range_honoured: true,
            };
            let path = self.blob_path(&digest);
            let failed = move |error| LayoutError::Io { path: path.clone(), error }.into();
            let chunks = file::chunks(Arc::new(file), range, failed);
            Ok(BlobStream::new(facts, &self.name(), chunks))
        })
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        let subject = *subject;
        Box::pin(async move {
            let mut found = self.blocking(move |this| this.find_referrers(&subject)).await?;
            referrer::keep_type(&mut found, artifact_type);
            Ok(found)
        })
    }

    fn push_blob<'a>(
        &'a self,
        digest: &'a Digest,
        data: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        let digest = *digest;
        Box::pin(self.blocking(move |this| this.write_blob(&digest, &data)))
    }

    fn push_manifest<'a>(
        &'a self,
        tag: Option<&'a str>,
        manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        let tag = tag.map(str::to_owned);
        Box::pin(self.blocking(move |this| {
            let what = || format!("manifest for {}", this.name());
            let mut entry = manifest_document(what, None, manifest.clone())?.descriptor;
            entry.annotations.extend(tag.map(|tag| (REF_NAME.to_owned(), tag)));
            this.write_manifest(&entry, &manifest)?;
            Ok(entry)
        }))
    }

    fn push_referrer<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        let (entry, manifest) = artifact.encode();
        Box::pin(self.blocking(move |this| {
            this.write_blob(&Digest::of(referrer::EMPTY_CONFIG), referrer::EMPTY_CONFIG)?;
            this.write_manifest(&entry, &manifest)?;
            Ok(entry)
        }))
    }
}

/// An entry of `index.json` that stands for an image: not a referrer that was
/// added beside them.
fn is_image_entry(entry: &Descriptor) -> bool {
    let named = entry.annotations.contains_key(REF_NAME);
    let known = media::is_index(&entry.media_type) || media::is_manifest(&entry.media_type);
    known && (named || entry.artifact_type.is_none())
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let io = |error| LayoutError::Io { path: path.to_owned(), error };
    let file = file::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        let problem = "it is not a regular file";
        return Err(LayoutError::BadBlob { path: path.to_owned(), problem });
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        let problem = DocumentError::TooLarge;
        return Err(LayoutError::Index { path: path.to_owned(), problem });
    }
    Ok(bytes)
}

/// Puts a file in place as a whole: a crash leaves the old one or the new one.
fn replace_file(path: &Path, data: &[u8]) -> Result<(), LayoutError> {
    let (dir, name) = (path.parent().unwrap_or(path), path.file_name().unwrap_or_default());
    let temporary = dir.join(format!(".{}.{:x}.tmp", name.to_string_lossy(), unique()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).open(&temporary)?;
        file.write_all(data)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_file(&temporary);
        LayoutError::Io { path: path.to_owned(), error }
    })
}

fn unique() -> u64 {
    getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id()))
}

#[cfg(test)]
mod tests;
