//! Exact blobs: a registry's blob byte for byte, whatever is inside it. It is an
//! object of the store like any other content, and its index is that of a raw
//! layer: one file, whose bytes are the blob.
//!
//! A compressed layer that is mounted has an index under the blob's own digest,
//! which says where its files lie. The same blob as exact bytes is another thing:
//! it is known under [`exact_name`], here and at every peer alike, so that neither
//! is in the way of the other, and everything that works for layers (peers, the
//! LAN's share-out, ranges at the registry, proof of a foreign index, eviction)
//! works for it too. A raw layer of a mounted image (model weights) is the same
//! object, and serves as the exact blob.

mod arriving;
mod pass;
mod pieces;

use std::sync::Arc;

use tracing::warn;

pub use arriving::Arriving;
pub use pass::ExactPass;

use super::engine::{Engine, FetchError};
use super::index::LayerIndex;
use super::install::install;
use crate::layer::root::{LayerRoot, RootBody};
use crate::store::{IndexOrigin, Store};
use crate::types::{Digest, ObjectId};

/// What the one file in an exact blob's tree is called.
const PATH: &str = "blob";

/// The name under which a blob's exact bytes are a layer.
pub fn exact_name(blob: &Digest) -> Digest {
    Digest::of(format!("peersync exact blob\n{blob}").as_bytes())
}

/// A blob that is an object of the store; some of its blocks may be elsewhere.
#[derive(Clone)]
pub struct ExactBlob {
    index: Arc<LayerIndex>,
    /// `None` for a blob without bytes.
    object: Option<ObjectId>,
    proved: bool,
}

impl ExactBlob {
    fn new(store: &Store, name: &Digest, index: Arc<LayerIndex>) -> Option<Self> {
        let length = index.stream_length();
        let object = index.specs().iter().position(|spec| spec.length() == length);
        let object = object.filter(|_| length > 0).and_then(|n| index.object(n as u32));
        if length > 0 && object.is_none() {
            return None;
        }
        let proved = match store.blob(name) {
            Ok(record) => record.is_some_and(|record| record.origin == IndexOrigin::Own),
            Err(_) => false,
        };
        Some(Self { index, object, proved })
    }

    /// Length in bytes.
    pub fn length(&self) -> u64 {
        self.index.stream_length()
    }

    /// The object that it is; `None` for a blob without bytes.
    pub fn object(&self) -> Option<&ObjectId> {
        self.object.as_ref()
    }

    /// Whether this node has itself seen that the blocks make the digest.
    pub fn is_proved(&self) -> bool {
        self.proved
    }
}

impl Engine {
    /// A blob whose exact bytes this store has an index of.
    ///
    /// # Errors
    /// [`FetchError::Store`].
    pub async fn exact(&self, blob: Digest) -> Result<Option<ExactBlob>, FetchError> {
        let name = exact_name(&blob);
        let store = &self.inner.store;
        if let Some(index) = self.layer(name).await? {
            return Ok(ExactBlob::new(store, &name, index));
        }
        let raw = self.layer(blob).await?.filter(|index| is_raw(index.root().body()));
        Ok(raw.and_then(|index| ExactBlob::new(store, &blob, index)))
    }

    /// Takes the index of a blob's exact bytes from a peer that has it; the bytes
    /// come when they are read. `false` if there is none.
    pub async fn exact_from_peers(&self, blob: &Digest) -> bool {
        let (name, wanted) = (exact_name(blob), *blob);
        let fits = move |root: &LayerRoot| fits(root, &wanted);
        let Some((root, parts)) = self.index_from_peers(&name, &fits).await else { return false };
        let store = Arc::clone(&self.inner.store);
        let taken = tokio::task::spawn_blocking(move || {
            let lies = store.quarantined_roots().unwrap_or_default();
            let mut liars = lies.iter().filter_map(|root| LayerRoot::decode(root).ok());
            if liars.any(|lie| lie.builder() == root.builder()) {
                return Err("its builder has signed an index that was a lie".to_owned());
            }
            install(&store, &root, parts, IndexOrigin::Swarm, Vec::new()).map_err(|e| e.to_string())
        });
        match taken.await {
            Ok(Ok(_)) => true,
            Ok(Err(why)) => {
                warn!(%blob, "a peer's index is not used: {why}");
                false
            }
            Err(_) => false,
        }
    }
}

/// Whether a layer's content is the blob itself.
fn is_raw(root: &RootBody) -> bool {
    root.path.is_some() && root.diff_id == root.blob
}

fn fits(root: &LayerRoot, blob: &Digest) -> Result<(), String> {
    let body = root.body();
    let right = body.diff_id == *blob
        && body.path.as_deref() == Some(PATH.as_bytes())
        && body.blob_size == body.stream_length;
    if right { Ok(()) } else { Err("it is not that of the blob's exact bytes".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exact_bytes_have_a_name_of_their_own() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(exact_name(&a), exact_name(&a));
        assert_ne!(exact_name(&a), exact_name(&b));
        assert_ne!(exact_name(&a), a);
    }
}
