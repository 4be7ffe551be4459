//! What belongs to which repository.
//!
//! Content is held once, whichever repository it came from; a client gets it as
//! part of a repository that it may read. That a blob belongs to a repository is
//! known from the repository's manifests, or from its registry, and is remembered
//! in the store, besides the places that have it: what was learnt with the node's
//! own logins does not count where clients are to have what anybody may have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::warn;

use super::request::Repository;
use crate::fetch::exact_name;
use crate::oci::{Descriptor, Manifest};
use crate::store::Store;
use crate::types::Digest;

/// Blobs whose sizes are remembered from manifests.
const SIZES_MAX: usize = 64 << 10;

/// What manifests say.
pub(super) struct Rights {
    store: Arc<Store>,
    /// Whether registries are asked with the node's logins.
    as_node: bool,
    sizes: Mutex<HashMap<Digest, u64>>,
}

impl Rights {
    pub(super) fn new(store: Arc<Store>, as_node: bool) -> Arc<Self> {
        Arc::new(Self { store, as_node, sizes: Mutex::default() })
    }

    /// Whether the repository is known to have this.
    pub(super) async fn has(self: &Arc<Self>, repository: &Repository, digest: &Digest) -> bool {
        let (rights, name, digest) = (Arc::clone(self), repository.name(), *digest);
        let known = tokio::task::spawn_blocking(move || rights.is_origin(&name, &digest));
        known.await.unwrap_or(false)
    }

    /// The repository has this.
    pub(super) async fn add(self: &Arc<Self>, repository: &Repository, digest: &Digest) {
        let (rights, name, digest) = (Arc::clone(self), repository.name(), *digest);
        let _ = tokio::task::spawn_blocking(move || rights.note(&name, &digest)).await;
    }

    /// The repository has this manifest, and with it all that it names.
    pub(super) async fn add_manifest(
        self: &Arc<Self>,
        repository: &Repository,
        digest: Digest,
        manifest: Manifest,
    ) {
        let (rights, name) = (Arc::clone(self), repository.name());
        let work = move || {
            let named: Vec<Descriptor> = match manifest {
                Manifest::Image(image) => image.layers.into_iter().chain([image.config]).collect(),
                Manifest::Index(index) => index.manifests,
            };
            let known = rights.is_origin(&name, &digest);
            for descriptor in named {
                rights.set_size(descriptor.digest, descriptor.size);
                if !known {
                    rights.note(&name, &descriptor.digest);
                }
            }
            // Last: what it names is known then.
            rights.note(&name, &digest);
        };
        let _ = tokio::task::spawn_blocking(work).await;
    }

    /// A blob's length, where a manifest has said it.
    pub(super) fn size(&self, blob: &Digest) -> Option<u64> {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).get(blob).copied()
    }

    pub(super) fn set_size(&self, blob: Digest, size: u64) {
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if sizes.len() >= SIZES_MAX {
            sizes.clear();
        }
        sizes.insert(blob, size);
    }

    fn is_origin(&self, name: &str, digest: &Digest) -> bool {
        match self.store.origins(&self.key(digest)) {
            Ok(origins) => origins.iter().any(|origin| origin == name),
            Err(error) => {
                warn!(%digest, "where it came from can't be read: {error}");
                false
            }
        }
    }

    fn note(&self, name: &str, digest: &Digest) {
        if self.is_origin(name, digest) {
            return;
        }
        for key in [exact_name(digest), self.key(digest)] {
            if let Err(error) = self.store.add_origin(&key, name) {
                warn!(%digest, "where it came from is not kept: {error}");
            }
        }
    }

    /// Under which the repositories are kept.
    fn key(&self, digest: &Digest) -> Digest {
        let whom = if self.as_node { "node" } else { "anybody" };
        Digest::of(format!("peersync mirror, seen as {whom}\n{digest}").as_bytes())
    }
}
