//! Images and indexes from peers, where the swarm is believed.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::timeout;
use tracing::warn;

use super::index::{belongs, take};
use crate::fetch::{Engine, IndexOffers};
use crate::layer::root::LayerRoot;
use crate::oci::{
    Artifact, BlobStream, Descriptor, Document, DocumentError, Image, ImageSource, LayerDescriptor,
    Manifest, Platform, SourceError, Target,
};
use crate::store::{IndexOrigin, Store};
use crate::types::Digest;

/// A neighbour that gets an index from beyond the LAN is waited for so long.
const NEIGHBOUR: Duration = Duration::from_secs(3);

/// What a name last stood for at a peer, as an image. `None` if no peer knows it
/// or has all of its documents, or if it is for another kind of machine.
pub(super) async fn image(engine: &Arc<Engine>, name: &str) -> Option<Image> {
    let manifest = engine.image_from_peers(name).await?;
    let source = Peers { engine: Arc::clone(engine), name: name.to_owned() };
    match Image::load(&source, &Target::Digest(manifest), None).await {
        // A peer gives the manifest for its own platform.
        Ok(image) if image.platform.as_ref().is_none_or(|p| Platform::host().rank(p).is_some()) => {
            Some(image)
        }
        Ok(image) => {
            warn!(name, platform = ?image.platform, "peers have it for other machines only");
            None
        }
        Err(error) => {
            warn!(name, "not had from peers: {error}");
            None
        }
    }
}

/// Takes the layer's index from a peer into the store; `false` if there is none.
/// What only peers beyond the LAN have one node of the LAN gets from them, and the
/// others from it.
pub(super) async fn index(engine: &Engine, store: &Arc<Store>, layer: &LayerDescriptor) -> bool {
    let fits = |root: &LayerRoot| belongs(root, layer);
    let Some(offered) = engine.index_offers(&layer.digest, &fits).await else { return false };
    if offered.are_near() {
        return index_of(engine, store, layer, &offered).await;
    }
    let relay = engine.relay(&layer.digest, layer.size);
    let waits = match &relay {
        // One that gets it brings it soon; one on a first pass of its own may not.
        Some(relay) => timeout(NEIGHBOUR, relay.leads()).await == Ok(false),
        None => false,
    };
    let taken = match waits {
        true => neighbours_index(engine, store, layer).await,
        false => index_of(engine, store, layer, &offered).await,
    };
    if let Some(relay) = relay.filter(|_| taken) {
        relay.done();
    }
    taken
}

/// As [`index`], from those who offer it, whether this node's turn has come or not.
async fn index_of(
    engine: &Engine,
    store: &Arc<Store>,
    layer: &LayerDescriptor,
    offered: &IndexOffers,
) -> bool {
    let Some((root, parts)) = engine.offered_index(offered).await else { return false };
    let taken = take(layer, store, root, parts, IndexOrigin::Swarm).await;
    if let Err(error) = &taken {
        warn!(layer = %layer.digest, "a peer's index is not used: {error}");
    }
    taken.is_ok()
}

/// As [`index`], where a neighbour has just said that it has it.
pub(super) async fn neighbours_index(
    engine: &Engine,
    store: &Arc<Store>,
    layer: &LayerDescriptor,
) -> bool {
    let fits = |root: &LayerRoot| belongs(root, layer);
    match engine.index_offers(&layer.digest, &fits).await {
        Some(offered) => index_of(engine, store, layer, &offered).await,
        None => false,
    }
}

/// The documents that peers have. Blobs come by other ways.
#[derive(Clone)]
struct Peers {
    engine: Arc<Engine>,
    name: String,
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Peers {
    fn none(&self, digest: &Digest) -> SourceError {
        let what = format!("{digest} of {}", self.name());
        SourceError::Document { what, problem: DocumentError::Missing }
    }

    async fn bytes(&self, digest: &Digest) -> Result<Bytes, SourceError> {
        self.engine.document_from_peers(digest).await.ok_or_else(|| self.none(digest))
    }
}

impl ImageSource for Peers {
    fn name(&self) -> String {
        format!("{} at peers", self.name)
    }

    fn resolve<'a>(&'a self, target: &'a Target) -> BoxFuture<'a, Result<Document, SourceError>> {
        Box::pin(async move {
            match target {
                Target::Digest(digest) => self.manifest(digest).await,
                Target::Default | Target::Tag(_) => Err(self.none(&Digest::of(b""))),
            }
        })
    }

    fn manifest<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<Document, SourceError>> {
        Box::pin(async move {
            let bytes = self.bytes(digest).await?;
            let manifest = Manifest::parse(None, &bytes).map_err(|problem| {
                SourceError::Document { what: format!("{digest} of {}", self.name()), problem }
            })?;
            let descriptor = Descriptor::of(manifest.media_type(), &bytes);
            Ok(Document { descriptor, bytes })
        })
    }

    fn document<'a>(
        &'a self,
        descriptor: &'a Descriptor,
    ) -> BoxFuture<'a, Result<Bytes, SourceError>> {
        Box::pin(self.bytes(&descriptor.digest))
    }

    fn open_blob<'a>(
        &'a self,
        digest: &'a Digest,
        _: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<BlobStream, SourceError>> {
        Box::pin(async move { Err(self.none(digest)) })
    }

    fn referrers<'a>(
        &'a self,
        _: &'a Digest,
        _: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>, SourceError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn push_blob<'a>(
        &'a self,
        digest: &'a Digest,
        _: Bytes,
    ) -> BoxFuture<'a, Result<(), SourceError>> {
        Box::pin(async move { Err(self.none(digest)) })
    }

    fn push_manifest<'a>(
        &'a self,
        _: Option<&'a str>,
        manifest: Bytes,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(async move { Err(self.none(&Digest::of(&manifest))) })
    }

    fn push_referrer<'a>(
        &'a self,
        artifact: &'a Artifact,
    ) -> BoxFuture<'a, Result<Descriptor, SourceError>> {
        Box::pin(async move { Err(self.none(&artifact.subject.digest)) })
    }
}
