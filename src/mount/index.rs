//! Indexes that registries hold beside their images.

use std::collections::HashMap;

use futures_util::StreamExt;
use tracing::{debug, warn};

use super::artifact::{ARTIFACT_MAX, ARTIFACT_TYPE, Artifact, LAYER_ANNOTATION, LAYER_TYPE, refs};
use crate::fetch::{IndexParts, check, install};
use crate::layer::root::LayerRoot;
use crate::oci::{Descriptor, ImageSource, LayerDescriptor, Manifest, SourceError};
use crate::store::{IndexOrigin, Store};
use crate::telemetry::Counters;
use crate::types::Digest;

/// Most referrers of one image that are looked at.
const REFERRERS_MAX: usize = 16;

/// The index blobs that a registry offers for an image, by layer blob.
#[derive(Debug, Default)]
pub(super) struct Offered(HashMap<Digest, Vec<Descriptor>>);

impl Offered {
    /// Asks a source which indexes it has for the manifest. A source that can't
    /// be asked offers none.
    pub(super) async fn of(source: &dyn ImageSource, manifest: &Digest) -> Self {
        let mut offered = Self::default();
        let found = match source.referrers(manifest, Some(ARTIFACT_TYPE)).await {
            Ok(found) => found,
            Err(error) => {
                debug!(%manifest, "no referrers: {error}");
                return offered;
            }
        };
        for referrer in found.iter().take(REFERRERS_MAX) {
            match source.manifest(&referrer.digest).await {
                Ok(document) => offered.add(&document.bytes),
                Err(error) => warn!(referrer = %referrer.digest, "index not used: {error}"),
            }
        }
        offered
    }

    /// Whether there is an index of the layer.
    pub(super) fn has(&self, layer: &Digest) -> bool {
        self.0.contains_key(layer)
    }

    fn add(&mut self, manifest: &[u8]) {
        let Ok(Manifest::Image(manifest)) = Manifest::parse(None, manifest) else { return };
        for blob in manifest.layers {
            let of = blob.annotations.get(LAYER_ANNOTATION).and_then(|d| d.parse().ok());
            if let (Some(layer), LAYER_TYPE) = (of, blob.media_type.as_str()) {
                self.0.entry(layer).or_default().push(blob);
            }
        }
    }

    /// Takes the first index of the layer that is sound into the store; `false`
    /// if there is none.
    pub(super) async fn import(
        &self,
        source: &dyn ImageSource,
        layer: &LayerDescriptor,
        store: &std::sync::Arc<Store>,
        counters: &Counters,
    ) -> bool {
        for blob in self.0.get(&layer.digest).into_iter().flatten() {
            match import(source, layer, blob, store, counters).await {
                Ok(()) => return true,
                Err(error) => warn!(layer = %layer.digest, "index not used: {error}"),
            }
        }
        false
    }
}

async fn import(
    source: &dyn ImageSource,
    layer: &LayerDescriptor,
    blob: &Descriptor,
    store: &std::sync::Arc<Store>,
    counters: &Counters,
) -> Result<(), String> {
    let bytes = whole(source, blob).await.map_err(|e| e.to_string())?;
    counters.bytes_index.add(bytes.len() as u64);
    let decode = move || Artifact::decode(&bytes).map_err(|e| e.to_string());
    let decoded = tokio::task::spawn_blocking(decode).await.map_err(|e| e.to_string())?;
    let Artifact { root, parts } = decoded?;
    take(layer, store, root, parts, IndexOrigin::Registry).await
}

/// Takes an index into the store, if it is of this layer and sound.
pub(super) async fn take(
    layer: &LayerDescriptor,
    store: &std::sync::Arc<Store>,
    root: LayerRoot,
    parts: IndexParts,
    origin: IndexOrigin,
) -> Result<(), String> {
    let (layer, store) = (layer.clone(), std::sync::Arc::clone(store));
    let work = move || {
        belongs(&root, &layer)?;
        if is_banned(&store, root.builder()) {
            return Err("its builder has signed an index that was a lie".into());
        }
        install(&store, &root, parts, origin, Vec::new()).map_err(|e| e.to_string())?;
        Ok(())
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| e.to_string())?
}

/// Whether an index by this builder was found to be a lie on this node.
fn is_banned(store: &Store, builder: &[u8; 32]) -> bool {
    let roots = store.quarantined_roots().unwrap_or_else(|error| {
        warn!("the quarantine can't be read: {error}");
        Vec::new()
    });
    roots.iter().filter_map(|root| LayerRoot::decode(root).ok()).any(|r| r.builder() == builder)
}

/// An index has to be of this very layer. What the image's configuration says
/// of the layer, which the image's digest covers, outweighs any index.
pub(super) fn belongs(root: &LayerRoot, layer: &LayerDescriptor) -> Result<(), String> {
    let root = root.body();
    if root.blob != layer.digest || root.blob_size != layer.size {
        return Err("it is the index of another blob".into());
    }
    if root.path.as_deref() != layer.path.as_ref().map(|p| p.as_bytes()) {
        return Err("it is the index of a file with another path".into());
    }
    match layer.diff_id {
        Some(diff_id) if diff_id != root.diff_id => {
            Err(format!("it says diffID {}, the image says {diff_id}", root.diff_id))
        }
        _ => Ok(()),
    }
}

/// A whole blob, verified, in memory that grows with what comes.
async fn whole(source: &dyn ImageSource, blob: &Descriptor) -> Result<Vec<u8>, SourceError> {
    let what = || format!("index blob {} of {}", blob.digest, source.name());
    if blob.size > ARTIFACT_MAX {
        let problem = crate::oci::DocumentError::TooLarge;
        return Err(SourceError::Document { what: what(), problem });
    }
    let mut stream = source.open_blob(&blob.digest, None).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() as u64 > blob.size {
            break;
        }
    }
    if bytes.len() as u64 != blob.size {
        let (expected, actual) = (blob.size, bytes.len() as u64);
        return Err(SourceError::SizeMismatch { what: what(), expected, actual });
    }
    let actual = Digest::of(&bytes);
    if actual != blob.digest {
        return Err(SourceError::DigestMismatch { what: what(), expected: blob.digest, actual });
    }
    Ok(bytes)
}

/// The index of a layer from the store, as a blob for a registry with its
/// descriptor. Blocks.
pub(super) fn export(store: &Store, blob: &Digest) -> Result<(Descriptor, Vec<u8>), String> {
    let record = store.blob(blob).map_err(|e| e.to_string())?;
    let record = record.ok_or_else(|| format!("layer {blob} has no index here"))?;
    let root = LayerRoot::decode(&record.root).map_err(|e| e.to_string())?;
    let mut parts = IndexParts::default();
    for (part, named) in parts.iter_mut().zip(refs(&root)) {
        let map = store.map_object(&named.id).map_err(|e| e.to_string())?;
        let map = map.ok_or_else(|| format!("layer {blob}: a part of its index is missing"))?;
        *part = map.as_ref().to_vec();
    }
    check(&root, &parts).map_err(|e| e.to_string())?;
    let bytes = Artifact { root, parts }.encode().map_err(|e| e.to_string())?;
    let mut descriptor = Descriptor::of(LAYER_TYPE, &bytes);
    descriptor.annotations.insert(LAYER_ANNOTATION.into(), blob.to_string());
    Ok((descriptor, bytes))
}
