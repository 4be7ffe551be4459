//! The layers that containerd is told are there: images by the node's own means,
//! shown in the daemon's mount.

use std::path::PathBuf;
use std::sync::Weak;

use futures_util::future::BoxFuture;
use tracing::{debug, warn};

use super::Node;
use crate::mount::{ImageError, IndexMode};
use crate::snapshotter::meta::Usage;
use crate::snapshotter::{
    KnownChain, RemoteChain, RemoteError, RemoteImage, RemoteLayer, RemoteLayers,
};
use crate::types::Digest;

/// Remote layers of a node. Holds no node alive.
pub(super) struct NodeLayers(pub(super) Weak<Node>);

impl RemoteLayers for NodeLayers {
    fn start_all(&self, image: &RemoteImage) {
        let Some(node) = self.0.upgrade() else { return };
        // The first request for the image prepares all of its layers anyway; this
        // only begins earlier.
        let name = name(image);
        if !node.starting.insert(name.clone()) {
            return;
        }
        let runtime = node.runtime.clone();
        runtime.spawn(async move {
            let resolved = node.images.resolve(&name, false, IndexMode::Auto, &note).await;
            node.starting.remove(&name);
            if let Err(error) = resolved {
                debug!(image = name, "{error}");
            }
        });
    }

    fn prepare(&self, layer: RemoteLayer) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            let node = self.0.upgrade().ok_or_else(closing)?;
            if let Ok(chain) = node.chain(&layer.chain_id) {
                return Ok(chain);
            }
            let name = name(&layer.image);
            node.images
                .resolve(&name, false, IndexMode::Auto, &note)
                .await
                .map_err(|error| remote_error(&error))?;
            node.chain(&layer.chain_id).map_err(|_| {
                let message = format!(
                    "layer {} of {name} does not come to the chain {} that was asked for",
                    layer.digest, layer.chain_id
                );
                RemoteError::Declined(message)
            })
        })
    }

    fn revalidate(&self, chain: KnownChain) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            let node = self.0.upgrade().ok_or_else(closing)?;
            match (node.chain(&chain.chain_id), chain.layers.into_iter().next_back()) {
                (Err(_), Some(top)) => self.prepare(top).await,
                (known, _) => known,
            }
        })
    }

    fn usage(&self, chain_id: &Digest) -> Usage {
        self.0.upgrade().and_then(|node| node.chain_usage(chain_id)).unwrap_or_default()
    }

    fn removed(&self, chain_id: &Digest) {
        debug!(%chain_id, "no snapshot names it any more: its content is ordinary cache");
    }
}

impl Node {
    /// Where a chain is, if all of its layers have an index here.
    fn chain(&self, chain_id: &Digest) -> Result<RemoteChain, RemoteError> {
        let known =
            self.store.chain(chain_id).map_err(|e| RemoteError::Unavailable(e.to_string()))?;
        match known {
            Some(_) => {
                let path: PathBuf =
                    self.config.mount.path.join("chains").join(chain_id.file_name());
                Ok(RemoteChain { path })
            }
            None => Err(RemoteError::Unavailable(format!("chain {chain_id} is not known here"))),
        }
    }

    fn chain_usage(&self, chain_id: &Digest) -> Option<Usage> {
        let chain = self.store.chain(chain_id).ok()??;
        let owner = self.store.slot(*chain.layers.last()?).ok()??;
        let crate::store::SlotOwner::Layer(key) = owner else { return None };
        let bytes = self.store.layer_progress(&key).ok()?.resident;
        let slot = crate::fs::Slot::new(*chain.layers.last()?)?;
        let layer = crate::fs::Catalog::layer(&*self.catalog, slot)?;
        Some(Usage { bytes, inodes: u64::from(layer.tree.len()) })
    }
}

/// The manifest that the puller means, where it says which: a tag can move
/// between its look-up and ours.
fn name(image: &RemoteImage) -> String {
    let reference = image.reference.parse::<crate::oci::Reference>();
    match (image.manifest, reference) {
        (Some(manifest), Ok(reference)) => format!("{}@{manifest}", reference.repository()),
        _ => image.reference.clone(),
    }
}

/// What a person should know goes to the log.
#[expect(clippy::needless_pass_by_value, reason = "the signature of `mount::Told`")]
fn note(message: String) {
    tracing::info!("{message}");
}

fn closing() -> RemoteError {
    RemoteError::Unavailable("the daemon is shutting down".into())
}

fn remote_error(error: &ImageError) -> RemoteError {
    warn!("{error}");
    match error {
        ImageError::Denied(_) | ImageError::Name(_) | ImageError::NotFound(_) => {
            RemoteError::Declined(error.to_string())
        }
        error => RemoteError::Unavailable(error.to_string()),
    }
}
