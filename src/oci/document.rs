//! Manifests, indexes and configurations: parsed from hostile bytes.
//!
//! Nothing here does I/O. Every parser is bounded by [`DOCUMENT_MAX`] and the
//! counts below, and gives an error for whatever it does not understand.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;

use super::media;
use super::platform::Platform;
use crate::types::{Digest, DigestError};

/// Largest manifest, index or configuration in bytes: 4 MiB, what registries
/// accept (OCI distribution specification, "Pushing Manifests").
pub const DOCUMENT_MAX: u64 = 4 << 20;
/// Most layers in one image; overlayfs and containerd stop far below.
pub const LAYERS_MAX: usize = 1000;
/// Most entries in one index.
pub const INDEX_MAX: usize = 4096;
/// Largest blob that a manifest may name, in bytes (16 TiB).
pub const BLOB_MAX: u64 = 16 << 40;

/// A reference to content: what it is, its name and its size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes, at most [`BLOB_MAX`].
    pub size: u64,
    /// What an artifact's manifest is about.
    pub artifact_type: Option<String>,
    /// The platform that an index gives for it.
    pub platform: Option<Platform>,
    /// Free-form texts.
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor of `bytes` without annotations.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A document together with what it is: its digest is that of the bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Media type, digest and size of `bytes`.
    pub descriptor: Descriptor,
    /// The document itself, verified against the digest.
    pub bytes: Bytes,
}

/// Why bytes are not a document that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// More than [`DOCUMENT_MAX`] bytes.
    #[error("it is larger than the {} MiB that a manifest or configuration may have", DOCUMENT_MAX >> 20)]
    TooLarge,
    /// Nobody who was asked has it.
    #[error("nobody who was asked has it")]
    Missing,
    /// Not JSON, or not of the expected form.
    #[error("it is malformed: {0}")]
    Malformed(String),
    /// Both an index and an image manifest at once (CVE-2021-41190).
    #[error("it claims to be an index and an image manifest at once")]
    Ambiguous,
    /// The media type it was served as is not the one it states.
    #[error("it was served as {served} and says that it is {stated}")]
    Contradiction {
        /// What the registry or index said.
        served: String,
        /// What the document says.
        stated: String,
    },
    /// Docker's first manifest format.
    #[error(
        "it is a Docker schema 1 manifest, which is no longer supported: push the image again with a current tool"
    )]
    Schema1,
    /// A media type that is no manifest's.
    #[error("{0:?} is not a manifest or index")]
    Unsupported(String),
    /// More layers than [`LAYERS_MAX`].
    #[error("it has {0} layers: at most {LAYERS_MAX} are supported")]
    TooManyLayers(usize),
    /// More entries than [`INDEX_MAX`].
    #[error("it has {0} entries: at most {INDEX_MAX} are supported")]
    TooManyEntries(usize),
    /// A digest that can't be checked.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// A size that no blob has.
    #[error("it names a blob of {0} bytes: at most {BLOB_MAX} are supported")]
    BlobSize(u64),
    /// A media type of impossible length or with impossible characters.
    #[error("it has an impossible media type")]
    MediaType,
    /// The configuration lists another number of layers than the manifest.
    #[error("the manifest has {layers} layers and its configuration lists {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration's `rootfs.diff_ids`.
        diff_ids: usize,
    },
    /// No image for the wanted platform.
    #[error("there is no image for the platform {wanted}; there are: {offered}")]
    NoPlatform {
        /// The platform that was asked for.
        wanted: String,
        /// All platforms of the index.
        offered: String,
    },
    /// Indexes that name indexes that name indexes.
    #[error("its indexes are nested too deeply")]
    TooDeep,
    /// A layer whose name would leave the directory.
    #[error("layer {layer} wants to be called {path:?}, which is not a safe relative path")]
    LayerPath {
        /// Number of the layer, from 0.
        layer: usize,
        /// What it wants to be called, cut to a printable length.
        path: String,
    },
    /// A layer that is encrypted.
    #[error("layer {0} is encrypted: that is not supported")]
    Encrypted(usize),
}

/// A parsed manifest or index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image or artifact.
    Image(Box<ImageManifest>),
    /// A choice of images.
    Index(Index),
}

/// One image or artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageManifest {
    /// Its media type: OCI or Docker.
    pub media_type: String,
    /// What an artifact is about; `None` for container images.
    pub artifact_type: Option<String>,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first; at most [`LAYERS_MAX`].
    pub layers: Vec<Descriptor>,
    /// The manifest that this one refers to.
    pub subject: Option<Descriptor>,
    /// Free-form texts.
    pub annotations: BTreeMap<String, String>,
}

/// A choice of images, or a list of referrers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// Its media type: OCI or Docker.
    pub media_type: String,
    /// Its entries, at most [`INDEX_MAX`]. Those with a digest other than
    /// SHA-256 are left out: they can't be fetched.
    pub manifests: Vec<Descriptor>,
    /// Free-form texts.
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Parses a manifest or index that was served as `media_type`, where that
    /// is known.
    ///
    /// # Errors
    /// [`DocumentError`] for anything but one well-formed manifest or index
    /// within the bounds of this module.
    pub fn parse(media_type: Option<&str>, bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawManifest = from_json(bytes)?;
        let served = media_type.filter(|m| is_known(m));
        let stated = raw.media_type.as_deref().filter(|m| !m.is_empty());
        if let (Some(served), Some(stated)) = (served, stated)
            && served != stated
        {
            return Err(DocumentError::Contradiction {
                served: served.to_owned(),
                stated: quoted(stated),
            });
        }
        let stated = stated.or(served);
        if raw.fs_layers.is_some() || stated.is_some_and(media::is_schema1) {
            return Err(DocumentError::Schema1);
        }
        // Read only one way, whoever reads it.
        let has_index = raw.manifests.is_some();
        let has_image = raw.layers.is_some() || raw.config.is_some();
        if has_index && has_image {
            return Err(DocumentError::Ambiguous);
        }
        let media_type = match stated {
            Some(known) if media::is_index(known) == has_index && is_known(known) => {
                known.to_owned()
            }
            Some(known) if is_known(known) => return Err(DocumentError::Ambiguous),
            Some(other) => return Err(DocumentError::Unsupported(quoted(other))),
            None if has_index => media::OCI_INDEX.to_owned(),
            None => media::OCI_MANIFEST.to_owned(),
        };
        if has_index {
            raw.into_index(media_type).map(Self::Index)
        } else {
            raw.into_image(media_type).map(|image| Self::Image(Box::new(image)))
        }
    }

    /// The media type, stated or inferred from the form.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Image(image) => &image.media_type,
            Self::Index(index) => &index.media_type,
        }
    }
}

impl Index {
    /// The entry for `platform`: the best match, first of equals; else the
    /// first that states no platform at all.
    ///
    /// # Errors
    /// [`DocumentError::NoPlatform`] with the list of what there is.
    pub fn choose(&self, platform: &Platform) -> Result<&Descriptor, DocumentError> {
        let usable = |d: &&Descriptor| {
            (media::is_index(&d.media_type) || media::is_manifest(&d.media_type))
                // Attestations of a build stand beside its images.
                && !d.annotations.contains_key("vnd.docker.reference.type")
        };
        let ranked = |d: &Descriptor| platform.rank(d.platform.as_ref()?);
        self.manifests
            .iter()
            .filter(usable)
            .filter_map(|d| Some((ranked(d)?, d)))
            .min_by_key(|(rank, _)| *rank)
            .map(|(_, d)| d)
            .or_else(|| self.manifests.iter().filter(usable).find(|d| d.platform.is_none()))
            .ok_or_else(|| {
                let offered = self.manifests.iter().filter(usable).take(40);
                let offered: Vec<_> = offered
                    .filter_map(|d| Some(quoted(&d.platform.as_ref()?.to_string())))
                    .collect();
                DocumentError::NoPlatform {
                    wanted: platform.to_string(),
                    offered: if offered.is_empty() {
                        "none".to_owned()
                    } else {
                        offered.join(", ")
                    },
                }
            })
    }
}

/// What of an image's configuration matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageConfig {
    /// The platform the image was built for, where stated.
    pub platform: Option<Platform>,
    /// The digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Parses the configuration of a container image.
    ///
    /// # Errors
    /// [`DocumentError`] where it isn't one, or is out of bounds.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawConfig = from_json(bytes)?;
        let platform = match (raw.os.as_deref(), raw.architecture.as_deref()) {
            (Some(os), Some(arch)) if !os.is_empty() && !arch.is_empty() => {
                Some(Platform::new(os, arch, raw.variant.as_deref()))
            }
            _ => None,
        };
        Ok(Self { platform, diff_ids: diff_ids(raw.rootfs.unwrap_or_default().diff_ids)? })
    }
}

/// The diffIDs that a ModelPack configuration lists; empty where it has none.
///
/// # Errors
/// [`DocumentError`] where it is not JSON of that form.
pub(super) fn model_diff_ids(bytes: &[u8]) -> Result<Vec<Digest>, DocumentError> {
    let raw: RawModelConfig = from_json(bytes)?;
    diff_ids(raw.modelfs.unwrap_or_default().diff_ids)
}

fn diff_ids(texts: Option<Vec<String>>) -> Result<Vec<Digest>, DocumentError> {
    let texts = texts.unwrap_or_default();
    if texts.len() > LAYERS_MAX {
        return Err(DocumentError::TooManyLayers(texts.len()));
    }
    texts.iter().map(|text| Ok(text.parse()?)).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    media_type: Option<String>,
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    subject: Option<RawDescriptor>,
    annotations: Option<BTreeMap<String, String>>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDescriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    artifact_type: Option<String>,
    platform: Option<RawPlatform>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct RawPlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

#[derive(Deserialize)]
struct RawConfig {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
    rootfs: Option<RawRootFs>,
}

#[derive(Deserialize)]
struct RawModelConfig {
    modelfs: Option<RawRootFs>,
}

#[derive(Deserialize, Default)]
struct RawRootFs {
    #[serde(alias = "diffIds")]
    diff_ids: Option<Vec<String>>,
}

impl RawManifest {
    fn into_image(self, media_type: String) -> Result<ImageManifest, DocumentError> {
        let config =
            self.config.ok_or_else(|| DocumentError::Malformed("there is no config".to_owned()))?;
        let layers = self.layers.unwrap_or_default();
        if layers.len() > LAYERS_MAX {
            return Err(DocumentError::TooManyLayers(layers.len()));
        }
        Ok(ImageManifest {
            media_type,
            artifact_type: checked_type(self.artifact_type)?,
            config: config.check()?,
            layers: layers.into_iter().map(RawDescriptor::check).collect::<Result<_, _>>()?,
            subject: self.subject.map(RawDescriptor::check).transpose()?,
            annotations: self.annotations.unwrap_or_default(),
        })
    }

    fn into_index(self, media_type: String) -> Result<Index, DocumentError> {
        let entries = self.manifests.unwrap_or_default();
        if entries.len() > INDEX_MAX {
            return Err(DocumentError::TooManyEntries(entries.len()));
        }
        let manifests = entries
            .into_iter()
            .map(RawDescriptor::check)
            .filter(|entry| !matches!(entry, Err(DocumentError::Digest(DigestError::Algorithm(_)))))
            .collect::<Result<_, _>>()?;
        Ok(Index { media_type, manifests, annotations: self.annotations.unwrap_or_default() })
    }
}

impl RawDescriptor {
    fn check(self) -> Result<Descriptor, DocumentError> {
        if self.size > BLOB_MAX {
            return Err(DocumentError::BlobSize(self.size));
        }
        Ok(Descriptor {
            media_type: checked_type(Some(self.media_type))?.unwrap_or_default(),
            digest: self.digest.parse()?,
            size: self.size,
            artifact_type: checked_type(self.artifact_type)?,
            platform: self
                .platform
                .map(|p| Platform::new(&p.os, &p.architecture, p.variant.as_deref())),
            annotations: self.annotations.unwrap_or_default(),
        })
    }
}

/// Bounds a media type, since it goes into records and log lines.
fn checked_type(media_type: Option<String>) -> Result<Option<String>, DocumentError> {
    match media_type {
        Some(text)
            if text.len() > media::MEDIA_TYPE_MAX
                || text.bytes().any(|b| !(b' '..=b'~').contains(&b)) =>
        {
            Err(DocumentError::MediaType)
        }
        other => Ok(other.filter(|text| !text.is_empty())),
    }
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, DocumentError> {
    if bytes.len() as u64 > DOCUMENT_MAX {
        return Err(DocumentError::TooLarge);
    }
    // serde_json bounds the depth at 128.
    serde_json::from_slice(bytes)
        .map_err(|error| DocumentError::Malformed(quoted(&error.to_string())))
}

fn is_known(media_type: &str) -> bool {
    media::is_index(media_type) || media::is_manifest(media_type) || media::is_schema1(media_type)
}

/// A hostile text, cut to a length fit for an error message.
fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(160).collect()
}

#[cfg(test)]
mod tests;
