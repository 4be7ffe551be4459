//! What is done to the store when there is nothing else to do: content that a
//! crash left unverified is verified, so that it can be passed through again, and
//! layers that came by somebody else's index are proved.
//!
//! A layer is proved when it is all here: its tar stream is rebuilt and compared
//! with its diffID. One that does not come out is quarantined: it is forgotten
//! with all images on it, its builder is not believed any more, and the next
//! mount builds an index of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::{error, info, warn};

use super::NodeCatalog;
use crate::fetch::Engine;
use crate::layer::blocks;
use crate::layer::rebuild::{ReadObject, RebuildError, rebuilt_digest};
use crate::layer::root::LayerRoot;
use crate::layer::skeleton::Skeleton;
use crate::store::{BlobRecord, IndexOrigin, MetaError, Store};
use crate::telemetry::Counters;
use crate::types::{Digest, ObjectId};

/// Looks after a store. All methods block, on the disk and for long.
pub struct Care {
    store: Arc<Store>,
    engine: Arc<Engine>,
    catalog: Arc<NodeCatalog>,
    counters: Arc<Counters>,
    stop: AtomicBool,
}

/// Why a layer is not proved now.
#[derive(Debug, thiserror::Error)]
enum Unproved {
    #[error("it is not all here")]
    Missing,
    #[error("told to stop")]
    Stopped,
    #[error("{0}")]
    Failed(String),
}

impl Care {
    /// Nothing is done before [`Care::round`].
    pub fn new(
        store: Arc<Store>,
        engine: Arc<Engine>,
        catalog: Arc<NodeCatalog>,
        counters: Arc<Counters>,
    ) -> Self {
        Self { store, engine, catalog, counters, stop: AtomicBool::new(false) }
    }

    /// Has a round end soon, and later ones at once.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Verifies and proves whatever is there and was not yet.
    pub fn round(&self) {
        let done = self.verify().and_then(|()| self.prove_all());
        if let Err(error) = done
            && !self.is_stopped()
        {
            warn!("looking after the store: {error}");
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Verifies the complete objects of all layers.
    fn verify(&self) -> Result<(), MetaError> {
        for (key, _) in self.store.layers()? {
            for (id, _) in self.store.layer_objects(&key)? {
                if self.is_stopped() {
                    return Ok(());
                }
                if !self.store.is_complete(&id) || self.store.is_verified(&id) {
                    continue;
                }
                match self.store.verify_object(&id) {
                    Ok(0) => self.counters.objects_verified.add(1),
                    Ok(bad) => {
                        warn!(object = %id, bad, "blocks were damaged on the disk; they will be fetched again");
                    }
                    Err(error) => warn!(object = %id, "could not be verified: {error}"),
                }
            }
        }
        Ok(())
    }

    /// Proves the complete layers whose index is not this node's own.
    fn prove_all(&self) -> Result<(), MetaError> {
        for (blob, record) in self.store.blobs()? {
            let progress = self.store.layer_progress(&record.layer)?;
            if self.is_stopped() {
                return Ok(());
            }
            if record.origin == IndexOrigin::Own || progress.resident < progress.total {
                continue;
            }
            match self.prove(&record) {
                Ok(digest) if digest == record.layer.diff_id => {
                    // As good as built here.
                    let proved = BlobRecord { origin: IndexOrigin::Own, ..record };
                    self.store.put_blob(&blob, &proved)?;
                    self.counters.layers_proved.add(1);
                    info!(layer = %blob, "its content is what its digest says");
                }
                Ok(digest) => self.quarantine(&blob, &record, &digest)?,
                Err(Unproved::Missing | Unproved::Stopped) => {}
                Err(why) => warn!(layer = %blob, "can't be proved: {why}"),
            }
        }
        Ok(())
    }

    /// The SHA-256 of the stream that a layer's parts and content make.
    fn prove(&self, record: &BlobRecord) -> Result<Digest, Unproved> {
        let failed = |error: &dyn std::fmt::Display| Unproved::Failed(error.to_string());
        let root = LayerRoot::decode(&record.root).map_err(|e| failed(&e))?;
        let part = |id: &ObjectId| {
            let map = self.store.map_object(id).map_err(|e| failed(&e))?;
            map.ok_or(Unproved::Missing)
        };
        let list = part(&root.body().blocks.id)?;
        let specs = blocks::decode(list.as_ref()).map_err(|e| failed(&e))?;
        let skeleton = bytes::Bytes::copy_from_slice(part(&root.body().skeleton.id)?.as_ref());
        let skeleton = Skeleton::decode(&skeleton).map_err(|e| failed(&e))?;
        let objects = specs.iter().map(|spec| spec.id()).collect();
        let mut content = Content { care: self, objects, buffer: Vec::new() };
        rebuilt_digest(&skeleton, &mut content).map_err(|error| match error {
            RebuildError::Read(why) => why,
            other => failed(&other),
        })
    }

    fn quarantine(
        &self,
        blob: &Digest,
        record: &BlobRecord,
        found: &Digest,
    ) -> Result<(), MetaError> {
        let key = &record.layer;
        error!(
            layer = %blob, said = %key.diff_id, %found, origin = ?record.origin,
            "the index of this layer is a lie: the layer is quarantined, and its builder is not \
             believed any more; mount the image anew"
        );
        self.counters.layers_quarantined.add(1);
        if let Err(error) = self.store.quarantine_root(blob, &record.root) {
            warn!(layer = %blob, "the evidence could not be kept: {error}");
        }
        let slot = self.store.layer(key)?.map(|layer| layer.slot);
        let holds = |layers: &[u32]| slot.is_some_and(|slot| layers.contains(&slot));
        let chains: Vec<_> =
            self.store.chains()?.into_iter().filter(|(_, chain)| holds(&chain.layers)).collect();
        for (name, image) in self.store.images()? {
            if chains.iter().any(|(digest, _)| *digest == image.chain) {
                self.store.remove_image(&name)?;
            }
        }
        for (digest, _) in &chains {
            self.store.remove_chain(digest)?;
        }
        self.store.remove_layer(key)?;
        self.engine.forget_layer(blob);
        self.catalog.forget(slot.into_iter().chain(chains.iter().map(|(_, chain)| chain.slot)));
        Ok(())
    }
}

/// The layer's objects, as the store has them.
struct Content<'a> {
    care: &'a Care,
    objects: Vec<ObjectId>,
    buffer: Vec<u8>,
}

impl ReadObject for Content<'_> {
    type Error = Unproved;

    fn read(&mut self, object: u32, offset: u64, out: &mut [u8]) -> Result<(), Unproved> {
        if self.care.is_stopped() {
            return Err(Unproved::Stopped);
        }
        let id = self.objects.get(object as usize);
        let id = id.ok_or_else(|| Unproved::Failed(format!("there is no object {object}")))?;
        self.buffer.clear();
        let read = self.care.store.read_at(id, offset, out.len(), &mut self.buffer);
        match read.map_err(|e| Unproved::Failed(e.to_string()))? {
            true if self.buffer.len() == out.len() => out.copy_from_slice(&self.buffer),
            _ => return Err(Unproved::Missing),
        }
        Ok(())
    }
}
