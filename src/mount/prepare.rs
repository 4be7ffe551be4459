//! How a layer gets its index: it is here, or comes from a neighbour, from the
//! image's registry, or from a first pass over the blob.

use std::sync::Arc;

use tracing::warn;

use super::images::{ImageError, Images, IndexMode, Told};
use super::index::Offered;
use super::peers;
use crate::fetch::{PassError, Relay, WorkKind};
use crate::oci::{ImageSource, LayerDescriptor};
use crate::store::LayerKey;

impl Images {
    /// Sees to it that a layer has an index.
    pub(super) async fn prepare(
        &self,
        layer: &LayerDescriptor,
        source: &Arc<dyn ImageSource>,
        offered: Option<&Offered>,
        index: IndexMode,
        told: &Told<'_>,
    ) -> Result<LayerKey, ImageError> {
        let lock = self.lock_of(&layer.digest);
        let guard = lock.lock().await;
        let prepared = self.prepare_alone(layer, source, offered, index, told).await;
        drop(guard);
        self.forget_lock(&layer.digest, lock);
        let key = prepared?;
        self.repositories.add(&layer.digest, &**source);
        Ok(key)
    }

    async fn prepare_alone(
        &self,
        layer: &LayerDescriptor,
        source: &Arc<dyn ImageSource>,
        offered: Option<&Offered>,
        index: IndexMode,
        told: &Told<'_>,
    ) -> Result<LayerKey, ImageError> {
        if let Some(key) = self.indexed(layer)? {
            return Ok(key);
        }
        // What lies in a directory is here anyway.
        let is_far = !source.name().starts_with("oci:");
        let relay = is_far.then(|| self.engine.relay(&layer.digest, layer.size)).flatten();
        let key = self.index_of(layer, source, offered, index, relay.clone()).await?;
        if let Some(relay) = relay {
            relay.done();
        }
        self.tell_if_sequential(layer, told).await?;
        Ok(key)
    }

    async fn index_of(
        &self,
        layer: &LayerDescriptor,
        source: &Arc<dyn ImageSource>,
        offered: Option<&Offered>,
        index: IndexMode,
        relay: Option<Arc<Relay>>,
    ) -> Result<LayerKey, ImageError> {
        let is_offered = offered.is_some_and(|offered| offered.has(&layer.digest));
        // One of a LAN gets the index from the registry, the others from it.
        if let Some(relay) = relay.as_ref().filter(|_| is_offered && self.settings.trust.swarm)
            && !relay.leads().await
            && peers::neighbours_index(&self.engine, &self.store, layer).await
            && let Some(key) = self.indexed(layer)?
        {
            return Ok(key);
        }
        if let Some(offered) = offered
            && offered.import(&**source, layer, &self.store, &self.counters).await
            && let Some(key) = self.indexed(layer)?
        {
            return Ok(key);
        }
        if index == IndexMode::Require {
            return Err(ImageError::NoIndex(layer.digest));
        }
        let ticket = self.board.begin(layer.digest, WorkKind::FirstPass, layer.size);
        let from = relay.as_ref().map_or_else(|| Arc::clone(source), |relay| relay.source(source));
        let passed = self.pass.run(layer, &from, ticket.work()).await;
        let key = match passed {
            Err(error @ PassError::Corrupt { .. })
                if relay.as_ref().is_some_and(|relay| relay.relayed() > 0) =>
            {
                warn!("{error}; some of it came from neighbours: it is read again without them");
                self.engine.spools().remove(&layer.digest);
                self.pass.run(layer, source, ticket.work()).await?
            }
            passed => passed?,
        };
        drop(ticket);
        if layer.diff_id.is_some_and(|diff_id| diff_id != key.diff_id) {
            let message = format!(
                "layer {}: its content has the diffID {}, which is not what the image's \
                 configuration says",
                layer.digest, key.diff_id
            );
            return Err(ImageError::Corrupt(message));
        }
        Ok(key)
    }

    pub(super) async fn tell_if_sequential(
        &self,
        layer: &LayerDescriptor,
        told: &Told<'_>,
    ) -> Result<(), ImageError> {
        if let Some(index) = self.engine.layer(layer.digest).await?
            && index.is_sequential()
        {
            told(format!(
                "layer {} is one single zstd frame: a registry can only be read through it from \
                 its start, so the first read of what is not here yet may take as long as a pull",
                layer.digest
            ));
        }
        Ok(())
    }
}
