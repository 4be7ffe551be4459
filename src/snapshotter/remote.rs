//! The seam to the layers that fill as they are read.
//!
//! The snapshotter decides what containerd is told; whoever implements
//! [`RemoteLayers`] (the daemon's composition root, a test) makes the bytes
//! appear. Nothing here knows registries, stores or mounts.

use std::path::PathBuf;

use futures_util::future::BoxFuture;

use super::meta::Usage;
use crate::types::Digest;

/// The image that a layer is prepared for, as containerd's labels tell.
///
/// Labels are a hint from the puller and can lie; an implementation checks them
/// against the manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteImage {
    /// The reference as it was pulled: not empty, at most 4096 bytes, no white space.
    pub reference: String,
    /// The manifest's digest, where the puller tells it.
    pub manifest: Option<Digest>,
    /// This layer's blob and those above it, bottom up; long lists are cut at the
    /// top, since a label holds 4096 bytes.
    pub layers: Vec<Digest>,
}

/// One layer that containerd asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteLayer {
    /// The image.
    pub image: RemoteImage,
    /// The layer's blob.
    pub digest: Digest,
    /// Its uncompressed digest, where it follows from the labels or the chain.
    pub diff_id: Option<Digest>,
    /// Name of this layer with all below it.
    pub chain_id: Digest,
    /// The chain below; none for an image's first layer.
    pub parent: Option<Digest>,
}

/// A chain that was made available before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownChain {
    /// The chain.
    pub chain_id: Digest,
    /// Its layers as they were asked for, bottom up: what is needed to prepare them
    /// once more, should the cache have lost one. Layers whose labels somebody has
    /// removed are missing.
    pub layers: Vec<RemoteLayer>,
}

/// A chain that can be a lower directory of an overlay mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteChain {
    /// The merged tree: absolute, without `,` `:` and `\`, which can't stand in
    /// mount options (`<mount>/chains/sha256-<chain ID>`).
    pub path: PathBuf,
}

/// Why a layer is not available as a remote one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RemoteError {
    /// This layer is better left to containerd: no credentials for the registry,
    /// an unknown media type, labels that don't fit the manifest. containerd
    /// gets ordinary mounts and downloads this layer and those above it.
    #[error("left to containerd: {0}")]
    Declined(String),
    /// It should work and doesn't right now: no source answers, the disk is full.
    /// At the bottom of an image containerd gets ordinary mounts for the whole of
    /// it; further up the request fails and is tried again, because ordinary
    /// mounts for one layer make containerd download all layers above it too.
    #[error("not available: {0}")]
    Unavailable(String),
}

/// Makes chains of layers available, one by one, filled as they are read.
///
/// Methods without a future are called on threads that must not block.
pub trait RemoteLayers: Send + Sync + 'static {
    /// Begins to make all layers of `image` available, without waiting.
    ///
    /// containerd prepares the layers of an image one after the other; this is
    /// called with the list before each of them, so that serial requests don't
    /// make a serial pull; also before one that is there, since the image may be
    /// in another place than the one it was fetched from. Must be idempotent and cheap.
    fn start_all(&self, image: &RemoteImage);

    /// Makes one layer available on top of its parent chain: returns when its
    /// index is there and verified, which for a layer without an index means the
    /// whole first pass. Asking again for what is there is cheap and needs no
    /// registry. The future may be dropped at any time and the request repeated.
    ///
    /// The implementation answers for `chain_id` being what `digest` on top of
    /// `parent` comes to.
    fn prepare(&self, layer: RemoteLayer) -> BoxFuture<'_, Result<RemoteChain, RemoteError>>;

    /// Where a chain that was prepared once is now, perhaps after a reboot: mounts
    /// what has to be mounted. Needs no registry for what is cached.
    fn revalidate(&self, chain: KnownChain) -> BoxFuture<'_, Result<RemoteChain, RemoteError>>;

    /// Bytes of the chain's top layer that are cached now, and its inodes; in
    /// constant time, from counters. Zero for a chain that is not known.
    fn usage(&self, chain_id: &Digest) -> Usage;

    /// No snapshot names the chain any longer: its content is ordinary cache.
    fn removed(&self, chain_id: &Digest);
}

/// No remote layers: every snapshot is an ordinary one.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoRemoteLayers;

impl RemoteLayers for NoRemoteLayers {
    fn start_all(&self, _: &RemoteImage) {}

    fn prepare(&self, _: RemoteLayer) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async { Err(RemoteError::Declined("remote layers are switched off".into())) })
    }

    fn revalidate(&self, _: KnownChain) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async { Err(RemoteError::Unavailable("remote layers are switched off".into())) })
    }

    fn usage(&self, _: &Digest) -> Usage {
        Usage::default()
    }

    fn removed(&self, _: &Digest) {}
}
