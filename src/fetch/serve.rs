//! What a node serves to its peers: what its store holds.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::warn;

use super::relay::Spools;
use super::tunnel::{BlockServer, Handed, Served};
use crate::layer::root::LayerRoot;
use crate::store::{ImageRecord, Store};
use crate::telemetry::Counters;
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use crate::wire::{Item, PASS_PIECE};

/// Serves blocks, block lists and roots out of a store. Every block is hashed
/// when it is read: what went bad on the disk does not leave the node.
pub struct StoreServer {
    store: Arc<Store>,
    counters: Arc<Counters>,
    names: Arc<Names>,
    spools: Arc<Spools>,
}

/// Knows what names of images last stood for beside those of mounted images: by
/// their BLAKE3, the digest and the time in seconds since 1970.
pub type Names = OnceLock<Box<dyn Fn(&BlockHash) -> Option<(Digest, u64)> + Send + Sync>>;

impl StoreServer {
    /// Serves what `store` holds and first passes hand on, and counts it.
    pub fn new(store: Arc<Store>, counters: Arc<Counters>, spools: Arc<Spools>) -> Self {
        Self { store, counters, spools, names: Arc::default() }
    }

    /// Serves what `names` knows, too.
    #[must_use]
    pub fn with_names(self, names: Arc<Names>) -> Self {
        Self { names, ..self }
    }
}

impl BlockServer for StoreServer {
    fn block(&self, _: &PeerId, object: &ObjectId, index: u32) -> Served<VerifiedBlock> {
        if !self.store.has_block(object, index) {
            return Served::No;
        }
        let block = served(self.store.read_block(object, index), "block");
        if let Served::Yes(block) = &block {
            self.counters.content_served.add(block.data().len() as u64);
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            self.store.note_used(object, now.map_or(0, |since| since.as_secs()));
        }
        block
    }

    fn spec(&self, _: &PeerId, object: &ObjectId) -> Served<Arc<ObjectSpec>> {
        served(self.store.spec(object), "block list")
    }

    fn roots(&self, _: &PeerId, blob: &Digest) -> Vec<LayerRoot> {
        let record = match self.store.blob(blob) {
            Ok(record) => record,
            Err(error) => {
                warn!(%blob, "a root can't be read for a peer: {error}");
                return Vec::new();
            }
        };
        record.and_then(|record| LayerRoot::decode(&record.root).ok()).into_iter().collect()
    }

    fn document(&self, _: &PeerId, digest: &Digest) -> Served<Vec<u8>> {
        served(self.store.document(digest), "document")
    }

    fn image(&self, _: &PeerId, name: &BlockHash) -> Served<(Digest, u64)> {
        let named = |images: Vec<(String, ImageRecord)>| {
            let mut images = images.into_iter();
            let found = images.find(|(image, _)| BlockHash::of(image.as_bytes()) == *name);
            found.map(|(_, image)| (image.manifest, image.resolved_at.max(0) as u64))
        };
        let more = self.names.get().and_then(|known| known(name));
        served(self.store.images().map(|images| named(images).or(more)), "image")
    }

    fn item(&self, _: &PeerId, blob: &Digest, number: u64) -> Served<Handed> {
        let Some(spool) = self.spools.get(blob) else { return Served::No };
        let Ok(piece) = u32::try_from(number) else { return Served::No };
        let handed = |bytes: bytes::Bytes| Handed {
            item: Item::Literal,
            object: 0,
            offset: number * PASS_PIECE,
            block: VerifiedBlock::seal(bytes),
        };
        let read = served(spool.read(piece).map(|bytes| bytes.map(handed)), "piece of a blob");
        if let Served::Yes(item) = &read {
            self.counters.bytes_handed_on.add(item.block.data().len() as u64);
        }
        read
    }
}

fn served<T>(read: Result<Option<T>, impl std::fmt::Display>, what: &str) -> Served<T> {
    match read {
        Ok(Some(content)) => Served::Yes(content),
        Ok(None) => Served::No,
        Err(error) => {
            warn!("a {what} can't be read for a peer: {error}");
            Served::Failed
        }
    }
}
