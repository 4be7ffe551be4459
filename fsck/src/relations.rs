//! Layers and their objects, blobs and where content can be had.

use peersync::store::format::keys;
use peersync::store::format::records::{
    BlobRecord, ChainRecord, ImageRecord, LayerRecord, Role, SlotOwner,
};
use peersync::store::format::tables::Table;

use crate::FsckError;
use crate::checker::{Checker, row};
use crate::database::Snapshot;
use crate::report::Kind;

impl Checker<'_> {
    /// Each layer has its slot and all of its objects; each reference is
    /// written down on both sides. A layer that lacks an object is forgotten:
    /// it is indexed again when it is needed.
    pub(crate) fn check_layers(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        self.progress.stage("layers", Some(snapshot.count(Table::Layers)?));
        snapshot.scan(Table::Layers, &[], |key, payload| {
            self.progress.advance(1);
            let Some(layer) = payload.ok().and_then(|p| LayerRecord::decode(p).ok()) else {
                return Ok(());
            };
            if let Some(reason) = layer_fault(&snapshot, key, &layer)? {
                self.found(Kind::References, row(Table::Layers, key), reason);
                self.delete(Table::Layers, key)?;
                self.lose(layer.slot);
            }
            Ok::<_, FsckError>(())
        })
    }

    /// References, and blobs with their homes. Comes after all that may forget
    /// a layer.
    pub(crate) fn check_references(&mut self) -> Result<(), FsckError> {
        self.check_layer_objects()?;
        self.check_blobs()
    }

    fn check_layer_objects(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let mut rows = 0;
        snapshot.scan(Table::LayerObjects, &[], |key, payload| {
            let Some((slot, id)) = keys::parse_layer_object(key) else {
                return Ok(());
            };
            if payload.is_err() {
                return Ok(());
            }
            let reference = keys::reference(&id, slot);
            if self.lost.contains(&slot) || layer_of(&snapshot, slot)?.is_none() {
                if !self.lost.contains(&slot) {
                    self.found(
                        Kind::References,
                        row(Table::LayerObjects, key),
                        "there is no such layer",
                    );
                }
                self.delete(Table::References, &reference)?;
                return self.delete(Table::LayerObjects, key);
            }
            if snapshot.contains(Table::References, &reference)? {
                rows += 1;
            } else {
                self.found(
                    Kind::References,
                    row(Table::LayerObjects, key),
                    "the object does not know that the layer needs it",
                );
                self.put(Table::References, &reference, Vec::new())?;
            }
            Ok::<_, FsckError>(())
        })?;
        let snapshot = self.snapshot()?;
        if snapshot.count(Table::References)? == rows {
            return Ok(());
        }
        snapshot.scan(Table::References, &[], |key, _| {
            let other = keys::parse_reference(key);
            let right = match other {
                Some((id, slot)) => {
                    snapshot.contains(Table::LayerObjects, &keys::layer_object(slot, &id))?
                }
                None => false,
            };
            if !right {
                self.found(
                    Kind::References,
                    row(Table::References, key),
                    "no layer needs the object",
                );
                self.delete(Table::References, key)?;
            }
            Ok::<_, FsckError>(())
        })
    }

    /// Blobs hold layers that are known; homes name objects and blobs that are.
    fn check_blobs(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        snapshot.scan(Table::Blobs, &[], |key, payload| {
            let Some(blob) = payload.ok().and_then(|p| BlobRecord::decode(p).ok()) else {
                return Ok(());
            };
            if !snapshot.contains(Table::Layers, &keys::layer(&blob.layer))? {
                self.found(Kind::Relation, row(Table::Blobs, key), "its layer is not on record");
                self.delete(Table::Blobs, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        let snapshot = self.snapshot()?;
        snapshot.scan(Table::Homes, &[], |key, _| {
            let right = match keys::parse_home(key) {
                Some((id, blob)) => {
                    snapshot.contains(Table::Objects, id.as_bytes())?
                        && snapshot.contains(Table::Blobs, blob.as_bytes())?
                }
                None => false,
            };
            if !right {
                self.found(
                    Kind::Relation,
                    row(Table::Homes, key),
                    "object or blob is not on record",
                );
                self.delete(Table::Homes, key)?;
            }
            Ok::<_, FsckError>(())
        })
    }

    /// Chains are made of layers that are known, images of chains that are.
    pub(crate) fn check_slots(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        self.progress.stage("slots", Some(snapshot.count(Table::Slots)?));
        snapshot.scan(Table::Chains, &[], |key, payload| {
            let Some(chain) = payload.ok().and_then(|p| ChainRecord::decode(p).ok()) else {
                return Ok(());
            };
            let digest = keys::parse_digest(key);
            let owner = digest.map(SlotOwner::Chain);
            let mut fault = (slot_owner(&snapshot, chain.slot)? != owner)
                .then(|| format!("slot {} is not the chain's", chain.slot));
            for slot in &chain.layers {
                if layer_of(&snapshot, *slot)?.is_none() {
                    fault = Some(format!("its layer in slot {slot} is not on record"));
                }
            }
            if let Some(message) = fault {
                self.found(Kind::Relation, row(Table::Chains, key), message);
                self.delete(Table::Chains, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        let snapshot = self.snapshot()?;
        snapshot.scan(Table::Images, &[], |key, payload| {
            let image = payload.ok().and_then(|p| ImageRecord::decode(p).ok());
            let Some(image) = image else { return Ok(()) };
            if !snapshot.contains(Table::Chains, image.chain.as_bytes())? {
                self.found(Kind::Relation, row(Table::Images, key), "its chain is not on record");
                self.delete(Table::Images, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        self.check_slot_owners()
    }
}

/// What is wrong with a layer's record.
fn layer_fault(
    snapshot: &Snapshot,
    key: &[u8],
    layer: &LayerRecord,
) -> Result<Option<String>, FsckError> {
    let owner = keys::parse_layer(key).ok().map(SlotOwner::Layer);
    if slot_owner(snapshot, layer.slot)? != owner {
        return Ok(Some(format!("slot {} is not the layer's", layer.slot)));
    }
    for (id, part) in [(&layer.tree, "tree"), (&layer.blocks, "block list")] {
        if !snapshot.contains(Table::LayerObjects, &keys::layer_object(layer.slot, id))? {
            return Ok(Some(format!("its {part} {id} is not among its objects")));
        }
    }
    let mut fault = None;
    snapshot.scan(Table::LayerObjects, &keys::number(layer.slot), |key, payload| {
        if let Some((_, id)) = keys::parse_layer_object(key)
            && payload.is_ok_and(|p| Role::decode(p).is_ok())
            && !snapshot.contains(Table::Objects, id.as_bytes())?
        {
            fault = Some(format!("its object {id} is not on record"));
        }
        Ok::<_, FsckError>(())
    })?;
    Ok(fault)
}

/// The key of the layer that has a slot.
pub(crate) fn layer_of(snapshot: &Snapshot, slot: u32) -> Result<Option<Vec<u8>>, FsckError> {
    let Some(SlotOwner::Layer(layer)) = slot_owner(snapshot, slot)? else {
        return Ok(None);
    };
    let key = keys::layer(&layer);
    let payload = snapshot.get(Table::Layers, &key)?.good();
    let record = payload.and_then(|payload| LayerRecord::decode(&payload).ok());
    Ok(record.filter(|record| record.slot == slot).map(|_| key))
}

/// Who has a slot.
pub(crate) fn slot_owner(snapshot: &Snapshot, slot: u32) -> Result<Option<SlotOwner>, FsckError> {
    let payload = snapshot.get(Table::Slots, &keys::number(slot))?.good();
    Ok(payload.and_then(|payload| SlotOwner::decode(&payload).ok()))
}
