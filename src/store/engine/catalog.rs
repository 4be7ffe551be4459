//! What is known of layers, blobs, chains, images and names.
//!
//! Changes are visible at once and durable with the next [`Store::sync`] or
//! durable batch.

use std::collections::HashSet;
use std::ops::ControlFlow;

use super::error::MetaError;
use super::meta::{Batch, View};
use super::objects::{Progress, counter};
use super::open::collect;
use super::{Inner, Store};
use crate::store::format::RecordError;
use crate::store::format::keys;
use crate::store::format::records::{
    BlobRecord, CHAIN_MAX, ChainRecord, DOCUMENT_MAX, ImageRecord, LayerKey, LayerRecord,
    ORIGINS_MAX, PATH_MAX, Role, SlotOwner, TEXT_MAX, decode_number, encode_number,
};
use crate::store::format::tables::Table;
use crate::types::{Digest, ObjectId};

impl Store {
    /// A layer's record.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn layer(&self, key: &LayerKey) -> Result<Option<LayerRecord>, MetaError> {
        self.inner.record(Table::Layers, &keys::layer(key), LayerRecord::decode)
    }

    /// All layers.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn layers(&self) -> Result<Vec<(LayerKey, LayerRecord)>, MetaError> {
        collect(&self.inner.meta, Table::Layers, &[], |key, payload| {
            let key = keys::parse_layer(key).ok()?;
            Some((key, LayerRecord::decode(payload).ok()?))
        })
    }

    /// The layers with this diffID: one of a tar, or one for each name of a raw
    /// layer's file.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn layers_of(&self, diff_id: &Digest) -> Result<Vec<(LayerKey, LayerRecord)>, MetaError> {
        let prefix = diff_id.as_bytes();
        collect(&self.inner.meta, Table::Layers, prefix, |key, payload| {
            let key = keys::parse_layer(key).ok()?;
            Some((key, LayerRecord::decode(payload).ok()?))
        })
    }

    /// The objects of a layer: index parts first, then content in the layer's
    /// order. Empty if the layer is not known.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn layer_objects(&self, key: &LayerKey) -> Result<Vec<(ObjectId, Role)>, MetaError> {
        let Some(layer) = self.layer(key)? else {
            return Ok(Vec::new());
        };
        let prefix = keys::number(layer.slot);
        let mut objects =
            collect(&self.inner.meta, Table::LayerObjects, &prefix, |key, payload| {
                let (_, id) = keys::parse_layer_object(key)?;
                Some((id, Role::decode(payload).ok()?))
            })?;
        objects.sort_by_key(|(_, role)| match role {
            Role::Part => None,
            Role::Content(n) => Some(*n),
        });
        Ok(objects)
    }

    /// How much of a layer's content is there.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn layer_progress(&self, key: &LayerKey) -> Result<Progress, MetaError> {
        let mut sum = Progress::default();
        for (id, role) in self.layer_objects(key)? {
            if role != Role::Part {
                let one = self.progress(&id);
                sum.resident += one.resident;
                sum.total += one.total;
            }
        }
        Ok(sum)
    }

    /// Forgets a layer, the blobs that hold it and what refers from it to
    /// objects; the objects themselves stay until they are removed. Its slot is
    /// never given to another.
    ///
    /// # Errors
    /// [`MetaError::InUse`] while a chain contains it.
    pub fn remove_layer(&self, key: &LayerKey) -> Result<(), MetaError> {
        self.inner.meta.update(false, |view, batch| {
            let row = keys::layer(key);
            let Some(layer) = record(view, Table::Layers, &row, LayerRecord::decode)? else {
                return Ok(());
            };
            let mut user = None;
            each(view, Table::Chains, &[], |digest, payload| {
                let chain = ChainRecord::decode(payload).ok();
                if chain.is_some_and(|chain| chain.layers.contains(&layer.slot)) {
                    user = keys::parse_digest(digest);
                }
            })?;
            if let Some(chain) = user {
                return Err(MetaError::InUse(format!("layer {} (chain {chain})", key.diff_id)));
            }
            let mut blobs = Vec::new();
            each(view, Table::Blobs, &[], |digest, payload| {
                let blob = BlobRecord::decode(payload).ok();
                if blob.is_some_and(|blob| blob.layer == *key) {
                    blobs.extend(keys::parse_digest(digest));
                }
            })?;
            each(view, Table::LayerObjects, &keys::number(layer.slot), |row, _| {
                batch.delete(Table::LayerObjects, row);
                if let Some((_, id)) = keys::parse_layer_object(row) {
                    let reference = keys::reference(&id, layer.slot);
                    batch.delete(Table::References, &reference);
                    for blob in &blobs {
                        batch.delete(Table::Homes, &keys::home(&id, blob));
                    }
                }
            })?;
            for blob in &blobs {
                batch.delete(Table::Blobs, blob.as_bytes());
                each(view, Table::Origins, blob.as_bytes(), |row, _| {
                    batch.delete(Table::Origins, row);
                })?;
            }
            batch.delete(Table::Slots, &keys::number(layer.slot));
            batch.delete(Table::Layers, &row);
            Ok(())
        })
    }

    /// Whether some layer needs the object.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn is_referenced(&self, id: &ObjectId) -> Result<bool, MetaError> {
        Ok(!self.referring_slots(id)?.is_empty())
    }

    /// The slots of the layers that need the object.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn referring_slots(&self, id: &ObjectId) -> Result<Vec<u32>, MetaError> {
        collect(&self.inner.meta, Table::References, id.as_bytes(), |key, _| {
            keys::parse_reference(key).map(|(_, slot)| slot)
        })
    }

    /// What is known of a blob.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn blob(&self, digest: &Digest) -> Result<Option<BlobRecord>, MetaError> {
        self.inner.record(Table::Blobs, digest.as_bytes(), BlobRecord::decode)
    }

    /// All blobs.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn blobs(&self) -> Result<Vec<(Digest, BlobRecord)>, MetaError> {
        collect(&self.inner.meta, Table::Blobs, &[], |key, payload| {
            Some((keys::parse_digest(key)?, BlobRecord::decode(payload).ok()?))
        })
    }

    /// Forgets what is known of a blob; its layer stays.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), MetaError> {
        self.inner.meta.update(false, |view, batch| {
            let blob = record(view, Table::Blobs, digest.as_bytes(), BlobRecord::decode)?;
            let Some(blob) = blob else { return Ok(()) };
            let row = keys::layer(&blob.layer);
            if let Some(layer) = record(view, Table::Layers, &row, LayerRecord::decode)? {
                each(view, Table::LayerObjects, &keys::number(layer.slot), |row, _| {
                    if let Some((_, id)) = keys::parse_layer_object(row) {
                        batch.delete(Table::Homes, &keys::home(&id, digest));
                    }
                })?;
            }
            each(view, Table::Origins, digest.as_bytes(), |row, _| {
                batch.delete(Table::Origins, row);
            })?;
            batch.delete(Table::Blobs, digest.as_bytes());
            Ok(())
        })
    }

    /// The blobs from which the object can be had.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn homes(&self, object: &ObjectId) -> Result<Vec<Digest>, MetaError> {
        collect(&self.inner.meta, Table::Homes, object.as_bytes(), |key, _| {
            keys::parse_home(key).map(|(_, blob)| blob)
        })
    }

    /// Notes that a repository (`host/name`) has the blob. At most 16 are kept
    /// for a blob; of more, the first in alphabetical order goes.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn add_origin(&self, blob: &Digest, repository: &str) -> Result<(), MetaError> {
        if repository.len() > TEXT_MAX {
            return Err(MetaError::TooLarge("the repository's name"));
        }
        self.inner.meta.update(false, |view, batch| {
            let row = keys::origin(blob, repository);
            if view.contains(Table::Origins, &row)? {
                return Ok(());
            }
            let mut known = Vec::new();
            each(view, Table::Origins, blob.as_bytes(), |row, _| {
                known.push(row.to_vec());
            })?;
            if known.len() >= ORIGINS_MAX {
                batch.delete(Table::Origins, &known[0]);
            }
            batch.put(Table::Origins, &row, Vec::new());
            Ok(())
        })
    }

    /// The repositories that have the blob.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn origins(&self, blob: &Digest) -> Result<Vec<String>, MetaError> {
        collect(&self.inner.meta, Table::Origins, blob.as_bytes(), |key, _| {
            keys::parse_origin(key).map(|(_, repository)| repository.to_owned())
        })
    }

    /// What a slot belongs to.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn slot(&self, slot: u32) -> Result<Option<SlotOwner>, MetaError> {
        self.inner.record(Table::Slots, &keys::number(slot), SlotOwner::decode)
    }

    /// Makes a chain of layers, given by their slots with the lowest first,
    /// known and gives its slot. Known already: the slot stays.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn put_chain(&self, digest: &Digest, layers: &[u32]) -> Result<u32, MetaError> {
        self.put_chains(&[(*digest, layers)]).map(|slots| slots[0])
    }

    /// The same for several chains, each another one, at once.
    ///
    /// # Errors
    /// [`MetaError`]; none is made known then.
    pub fn put_chains(&self, chains: &[(Digest, &[u32])]) -> Result<Vec<u32>, MetaError> {
        if chains.iter().any(|(_, layers)| layers.len() > CHAIN_MAX) {
            return Err(MetaError::TooLarge("the chain"));
        }
        self.inner.meta.update(false, |view, batch| {
            let mut fresh = NewSlots::default();
            let mut checked = HashSet::new();
            let mut slots = Vec::with_capacity(chains.len());
            for (digest, layers) in chains {
                let key = digest.as_bytes();
                let known = record(view, Table::Chains, key, ChainRecord::decode)?;
                let slot = match known {
                    Some(known) if known.layers == *layers => {
                        slots.push(known.slot);
                        continue;
                    }
                    Some(known) => known.slot,
                    None => fresh.take(view, batch, &SlotOwner::Chain(*digest))?,
                };
                for layer in layers.iter().filter(|layer| checked.insert(**layer)) {
                    let row = keys::number(*layer);
                    let owner = record(view, Table::Slots, &row, SlotOwner::decode)?;
                    if !matches!(owner, Some(SlotOwner::Layer(_))) {
                        return Err(MetaError::Unknown(format!("layer slot {layer}")));
                    }
                }
                batch.put(
                    Table::Chains,
                    key,
                    ChainRecord { slot, layers: layers.to_vec() }.encode(),
                );
                slots.push(slot);
            }
            Ok(slots)
        })
    }

    /// A chain.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn chain(&self, digest: &Digest) -> Result<Option<ChainRecord>, MetaError> {
        self.inner.record(Table::Chains, digest.as_bytes(), ChainRecord::decode)
    }

    /// All chains.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn chains(&self) -> Result<Vec<(Digest, ChainRecord)>, MetaError> {
        collect(&self.inner.meta, Table::Chains, &[], |key, payload| {
            Some((keys::parse_digest(key)?, ChainRecord::decode(payload).ok()?))
        })
    }

    /// Forgets a chain.
    ///
    /// # Errors
    /// [`MetaError::InUse`] while an image is made of it.
    pub fn remove_chain(&self, digest: &Digest) -> Result<(), MetaError> {
        self.inner.meta.update(false, |view, batch| {
            let key = digest.as_bytes();
            let Some(chain) = record(view, Table::Chains, key, ChainRecord::decode)? else {
                return Ok(());
            };
            let mut user = None;
            each(view, Table::Images, &[], |reference, payload| {
                if ImageRecord::decode(payload).is_ok_and(|image| image.chain == *digest) {
                    user = Some(String::from_utf8_lossy(reference).into_owned());
                }
            })?;
            if let Some(image) = user {
                return Err(MetaError::InUse(format!("chain {digest} (image {image})")));
            }
            batch.delete(Table::Slots, &keys::number(chain.slot));
            batch.delete(Table::Chains, key);
            Ok(())
        })
    }

    /// The slot of a path of the mount; a new one if it has none.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn name_slot(&self, path: &str) -> Result<u32, MetaError> {
        if path.len() > PATH_MAX {
            return Err(MetaError::TooLarge("the path"));
        }
        if let Some(slot) = self.find_name(path)? {
            return Ok(slot);
        }
        self.inner.meta.update(false, |view, batch| {
            let key = path.as_bytes();
            if let Some(slot) = record(view, Table::Names, key, decode_number)? {
                return Ok(slot);
            }
            let slot = NewSlots::default().take(view, batch, &SlotOwner::Name(path.to_owned()))?;
            batch.put(Table::Names, key, encode_number(slot));
            Ok(slot)
        })
    }

    /// The slot of a path of the mount, if it has one.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn find_name(&self, path: &str) -> Result<Option<u32>, MetaError> {
        self.inner.record(Table::Names, path.as_bytes(), decode_number)
    }

    /// Notes what a reference was resolved to. Its chain must be known.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn put_image(&self, reference: &str, image: &ImageRecord) -> Result<(), MetaError> {
        if reference.len() > TEXT_MAX || image.platform.len() > TEXT_MAX {
            return Err(MetaError::TooLarge("the reference"));
        }
        self.inner.meta.update(false, |view, batch| {
            if !view.contains(Table::Chains, image.chain.as_bytes())? {
                return Err(MetaError::Unknown(format!("chain {}", image.chain)));
            }
            batch.put(Table::Images, reference.as_bytes(), image.encode());
            Ok(())
        })
    }

    /// What a reference was resolved to.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn image(&self, reference: &str) -> Result<Option<ImageRecord>, MetaError> {
        self.inner.record(Table::Images, reference.as_bytes(), ImageRecord::decode)
    }

    /// All images by reference.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn images(&self) -> Result<Vec<(String, ImageRecord)>, MetaError> {
        collect(&self.inner.meta, Table::Images, &[], |key, payload| {
            let reference = std::str::from_utf8(key).ok()?.to_owned();
            Some((reference, ImageRecord::decode(payload).ok()?))
        })
    }

    /// Forgets an image; its chain and layers stay.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn remove_image(&self, reference: &str) -> Result<(), MetaError> {
        self.inner.meta.update(false, |_, batch| {
            batch.delete(Table::Images, reference.as_bytes());
            Ok(())
        })
    }

    /// Keeps a document (manifest, config, index) under its digest.
    ///
    /// # Errors
    /// [`MetaError::Mismatch`] where the bytes don't have the digest.
    pub fn put_document(&self, digest: &Digest, bytes: &[u8]) -> Result<(), MetaError> {
        if bytes.len() > DOCUMENT_MAX {
            return Err(MetaError::TooLarge("the document"));
        }
        if Digest::of(bytes) != *digest {
            return Err(MetaError::Mismatch(*digest));
        }
        self.inner.meta.update(false, |view, batch| {
            if !view.contains(Table::Documents, digest.as_bytes())? {
                batch.put(Table::Documents, digest.as_bytes(), bytes.to_vec());
            }
            Ok(())
        })
    }

    /// A document; `None` also where its bytes are damaged.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, MetaError> {
        let found = self.inner.meta.read(|view| view.get(Table::Documents, digest.as_bytes()))?;
        Ok(found.filter(|bytes| Digest::of(bytes) == *digest))
    }

    /// Forgets a document.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn remove_document(&self, digest: &Digest) -> Result<(), MetaError> {
        self.inner.meta.update(false, |_, batch| {
            batch.delete(Table::Documents, digest.as_bytes());
            Ok(())
        })
    }
}

impl Inner {
    fn record<T>(
        &self,
        table: Table,
        key: &[u8],
        decode: impl FnOnce(&[u8]) -> Result<T, RecordError>,
    ) -> Result<Option<T>, MetaError> {
        self.meta.read(|view| record(view, table, key, decode))
    }
}

pub(super) fn record<T>(
    view: &View,
    table: Table,
    key: &[u8],
    decode: impl FnOnce(&[u8]) -> Result<T, RecordError>,
) -> Result<Option<T>, MetaError> {
    view.get(table, key)?
        .map(|payload| decode(&payload))
        .transpose()
        .map_err(|e| MetaError::record(table.name(), e))
}

pub(super) fn each(
    view: &View,
    table: Table,
    prefix: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]),
) -> Result<(), MetaError> {
    view.scan(table, prefix, |key, payload| {
        visit(key, payload);
        ControlFlow::Continue(())
    })
}

/// Slots that are given in one batch. They are never reused: nodeids that contain
/// them would come to mean something else.
#[derive(Debug, Default)]
pub(super) struct NewSlots {
    next: Option<u32>,
}

impl NewSlots {
    /// Takes the next slot for `owner`.
    pub(super) fn take(
        &mut self,
        view: &View,
        batch: &mut Batch,
        owner: &SlotOwner,
    ) -> Result<u32, MetaError> {
        let slot = match self.next {
            Some(next) => next,
            None => counter(view, keys::STATE_NEXT_SLOT)?,
        };
        let next = slot.checked_add(1).ok_or(MetaError::Exhausted("slot"))?;
        self.next = Some(next);
        batch.put(Table::State, keys::STATE_NEXT_SLOT, encode_number(next));
        batch.put(Table::Slots, &keys::number(slot), owner.encode());
        Ok(slot)
    }
}

pub(super) fn check_path(key: &LayerKey) -> Result<(), MetaError> {
    if key.path.as_ref().is_some_and(|path| path.len() > PATH_MAX) {
        return Err(MetaError::TooLarge("the layer's path"));
    }
    Ok(())
}
