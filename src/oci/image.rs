//! An image or artifact: what a name stands for on this machine.

use super::document::{Descriptor, Document, DocumentError, Manifest};
use super::error::SourceError;
use super::layers::{LayerDescriptor, chain_ids, layers};
use super::media;
use super::platform::Platform;
use super::source::{ImageSource, Target};
use crate::types::Digest;

/// Most indexes that are followed one after the other.
const INDEX_DEPTH_MAX: usize = 4;

/// An image or artifact for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// What the name stands for: the index, where there is one.
    pub resolved: Descriptor,
    /// The manifest for the platform.
    pub manifest: Descriptor,
    /// The configuration.
    pub config: Descriptor,
    /// The platform that the configuration states.
    pub platform: Option<Platform>,
    /// What an artifact is about; `None` for container images.
    pub artifact_type: Option<String>,
    /// The layers, lowest first.
    pub layers: Vec<LayerDescriptor>,
    /// The documents that were read on the way, verified: indexes, manifest,
    /// and the configuration where it was read.
    pub documents: Vec<Document>,
}

impl Image {
    /// Finds an image and reads its manifest and configuration. An index is
    /// followed to the image for `platform` ([`Platform::host`] by default).
    ///
    /// # Errors
    /// [`SourceError`] where something can't be had or is malformed, and
    /// [`DocumentError::NoPlatform`] where no image fits.
    pub async fn load(
        source: &dyn ImageSource,
        target: &Target,
        platform: Option<&Platform>,
    ) -> Result<Self, SourceError> {
        let host = Platform::host();
        let wanted = platform.unwrap_or(&host);
        let failed =
            |problem| SourceError::Document { what: format!("{}{target}", source.name()), problem };
        let mut document = source.resolve(target).await?;
        let resolved = document.descriptor.clone();
        let mut documents = Vec::new();
        let manifest = loop {
            let parsed = Manifest::parse(Some(&document.descriptor.media_type), &document.bytes)
                .map_err(failed)?;
            documents.push(document);
            match parsed {
                Manifest::Image(manifest) => break *manifest,
                Manifest::Index(_) if documents.len() > INDEX_DEPTH_MAX => {
                    return Err(failed(DocumentError::TooDeep));
                }
                Manifest::Index(index) => {
                    let chosen = index.choose(wanted).map_err(failed)?;
                    document = source.manifest(&chosen.digest).await?;
                }
            }
        };
        let descriptor = documents
            .last()
            .map_or_else(|| resolved.clone(), |document| document.descriptor.clone());
        let config = match &manifest.config {
            config if is_read(&config.media_type) => Some(source.document(config).await?),
            _ => None,
        };
        if let Some(bytes) = &config {
            documents.push(Document { descriptor: manifest.config.clone(), bytes: bytes.clone() });
        }
        let (platform, layers) = layers(&manifest, config.as_ref()).map_err(failed)?;
        Ok(Self {
            resolved,
            manifest: descriptor,
            platform,
            layers,
            documents,
            artifact_type: manifest.artifact_type,
            config: manifest.config,
        })
    }

    /// The chainID of each layer, lowest first; `None` while a diffID is unknown.
    pub fn chain_ids(&self) -> Option<Vec<Digest>> {
        let parts: Option<Vec<_>> = self.layers.iter().map(LayerDescriptor::chain_part).collect();
        parts.map(|parts| chain_ids(&parts))
    }
}

/// True for configurations that tell something about the layers.
fn is_read(media_type: &str) -> bool {
    media::is_image_config(media_type) || media::is_model_config(media_type)
}
