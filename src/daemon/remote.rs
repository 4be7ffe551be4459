//! The layers that containerd is told are there: images by the node's own means,
//! shown in the daemon's mount.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use futures_util::future::BoxFuture;
use tokio::sync::watch;
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

/// News of an image whose layers are being made available, lowest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    /// Chains that have become available.
    chains: usize,
    /// How it ended, once it has.
    ended: Option<Result<(), RemoteError>>,
}

/// Images on their way, by name: bounded by what containerd pulls at a time.
pub(super) type Coming = DashMap<String, watch::Receiver<Progress>>;

impl RemoteLayers for NodeLayers {
    fn start_all(&self, image: &RemoteImage) {
        let Some(node) = self.0.upgrade() else { return };
        let name = name(image);
        if !node.images.is_known(&name, &image.layers) {
            node.come(&name);
        }
    }

    fn prepare(&self, layer: RemoteLayer) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            let node = self.0.upgrade().ok_or_else(closing)?;
            if let Ok(chain) = node.chain(&layer.chain_id) {
                return Ok(chain);
            }
            let name = name(&layer.image);
            loop {
                let (mut news, own) = node.come(&name);
                let ended = loop {
                    let ended = news.borrow_and_update().ended.clone();
                    if let Ok(chain) = node.chain(&layer.chain_id) {
                        return Ok(chain);
                    }
                    match ended {
                        Some(ended) => break ended,
                        // Without a last word: the daemon is ending.
                        None => news.changed().await.map_err(|_| closing())?,
                    }
                };
                ended?;
                // What was under way already may have had another manifest under
                // this tag; what began with this request has not.
                if own {
                    let message = format!(
                        "layer {} of {name} does not come to the chain {} that was asked for",
                        layer.digest, layer.chain_id
                    );
                    return Err(RemoteError::Declined(message));
                }
            }
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
    /// Sees to it that the image's layers are on their way. The work goes on
    /// whether or not somebody waits for it: the next request finds more of it done.
    /// Gives what there is to hear, and whether this call began it.
    fn come(self: &Arc<Self>, name: &str) -> (watch::Receiver<Progress>, bool) {
        let (tell, news) = match self.coming.entry(name.to_owned()) {
            Entry::Occupied(known) => return (known.get().clone(), false),
            Entry::Vacant(free) => {
                let (tell, news) = watch::channel(Progress::default());
                free.insert(news.clone());
                (tell, news)
            }
        };
        let (node, name) = (Arc::clone(self), name.to_owned());
        self.runtime.spawn(async move {
            let ready = |_| tell.send_modify(|progress| progress.chains += 1);
            let resolved =
                node.images.resolve_upwards(&name, false, IndexMode::Auto, &note, &ready).await;
            // First out of the table: who asks from now on begins anew.
            node.coming.remove(&name);
            let ended = resolved.map(drop).map_err(|error| remote_error(&error));
            tell.send_modify(|progress| progress.ended = Some(ended));
        });
        (news, true)
    }

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
        // containerd has other credentials and settings, checks what it downloads by
        // itself, and may know media types that we don't.
        ImageError::Denied(_)
        | ImageError::Name(_)
        | ImageError::NotFound(_)
        | ImageError::Refused(_)
        | ImageError::Corrupt(_) => RemoteError::Declined(error.to_string()),
        error => RemoteError::Unavailable(error.to_string()),
    }
}
