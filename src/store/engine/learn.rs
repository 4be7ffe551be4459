//! Layers become known: their index with all that it names, in batches.
//!
//! A layer that is known can be mounted, after a crash too, so the parts of its
//! index are durable before its record is. That waits for the disk. Whoever comes
//! meanwhile waits for the next turn, and all who wait share it: of many small
//! layers a batch costs little more than one does.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use super::catalog::{NewSlots, check_path, each, record};
use super::dedup::content_rows;
use super::error::{MetaError, PutError};
use super::meta::{Batch, View};
use super::objects::to_meta;
use super::{Inner, Store};
use crate::store::format::keys;
use crate::store::format::records::{BlobRecord, LayerKey, LayerRecord, ROOT_MAX, Role, SlotOwner};
use crate::store::format::tables::Table;
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec, VerifiedBlock};

/// A layer that becomes known.
#[derive(Debug, Clone)]
pub struct NewLayer<'a> {
    /// The object that is its tree.
    pub tree: ObjectId,
    /// The object that lists the blocks of its objects.
    pub blocks: ObjectId,
    /// All index parts of the layer, tree and blocks too.
    pub parts: &'a [ObjectId],
    /// The objects with its content, in the layer's order.
    pub contents: &'a [ObjectId],
}

/// A layer's index as it becomes known, with what is at hand of its content.
#[derive(Debug, Clone)]
pub struct NewIndex {
    /// The blob that holds the layer.
    pub blob: Digest,
    /// What is to be known of the blob; it names the layer.
    pub record: BlobRecord,
    /// The index parts: the tree, the list of blocks, and the others.
    pub parts: Vec<Vec<u8>>,
    /// The objects with the layer's content, in the layer's order.
    pub objects: Vec<ObjectSpec>,
    /// Blocks of them that are to be stored: the object's number, the block's
    /// number in it, and the block.
    pub blocks: Vec<(u32, u32, VerifiedBlock)>,
    /// Whole files in them, as [`Store::add_contents`] takes them.
    pub files: Vec<(BlockHash, ObjectId, u64, u64)>,
}

/// Indexes that wait for their turn.
#[derive(Debug, Default)]
pub(super) struct Learning {
    waiting: Mutex<Vec<Waiting>>,
    /// Whoever holds it does the work of all who wait.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Waiting {
    index: NewIndex,
    outcome: Arc<OnceLock<Outcome>>,
}

/// The layer's slot. An error may be that of many.
type Outcome = Result<u32, Arc<PutError>>;

impl Waiting {
    fn end(self, outcome: Outcome) {
        // Nobody else sets it.
        let _ = self.outcome.set(outcome);
    }
}

impl Learning {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    /// Takes a layer's index and makes the layer and its blob known; gives the
    /// layer's slot. The parts are durable then; blocks and records are with the
    /// next [`Store::sync`]. Who calls at the same time shares the work.
    ///
    /// # Errors
    /// [`PutError`]; the blob is not known then, or is as it was.
    pub fn add_index(&self, index: NewIndex) -> Result<u32, Arc<PutError>> {
        let learning = &self.inner.learning;
        let outcome = Arc::new(OnceLock::new());
        learning.waiting().push(Waiting { index, outcome: Arc::clone(&outcome) });
        let _turn = learning.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // It may have been among those of whoever had the turn before.
        if outcome.get().is_none() {
            let all = std::mem::take(&mut *learning.waiting());
            self.inner.learn(all);
        }
        let lost = || Arc::new(PutError::Io(std::io::Error::other("the batch was given up")));
        outcome.get().cloned().unwrap_or_else(|| Err(lost()))
    }

    /// Makes a layer known and gives its slot. Known already: its objects are
    /// added to those that it has, tree and blocks are replaced, the slot stays.
    ///
    /// A layer that is known can be mounted, after a crash too: its parts are
    /// made durable first.
    ///
    /// # Errors
    /// [`MetaError`]; nothing is changed then. All objects must be known, and
    /// the parts complete.
    pub fn add_layer(&self, key: &LayerKey, layer: &NewLayer<'_>) -> Result<u32, MetaError> {
        check_path(key)?;
        self.inner.settle(layer.parts)?;
        self.inner
            .meta
            .update(false, |view, batch| layer_rows(view, batch, &mut Slots::default(), key, layer))
    }

    /// Notes which layer a blob holds, and that the layer's objects can be had
    /// from it. The layer must be known.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn put_blob(&self, digest: &Digest, blob: &BlobRecord) -> Result<(), MetaError> {
        check_blob(blob)?;
        self.inner.meta.update(false, |view, batch| {
            let row = keys::layer(&blob.layer);
            let layer = record(view, Table::Layers, &row, LayerRecord::decode)?;
            blob_rows(view, batch, digest, blob, layer.map(|layer| layer.slot))
        })
    }
}

impl Inner {
    /// Makes all of them known, or says why not. What concerns one of them only
    /// keeps none of the others.
    fn learn(&self, all: Vec<Waiting>) {
        // All in one: what is stored waits for the records of its objects to be durable.
        let part = |part: &Vec<u8>| ObjectSpec::of(part);
        let specs = |index: &NewIndex| -> Vec<ObjectSpec> {
            index.objects.iter().cloned().chain(index.parts.iter().map(part)).collect()
        };
        let specs: Vec<Vec<ObjectSpec>> = all.iter().map(|one| specs(&one.index)).collect();
        if let Err(error) = self.add_objects(&specs.concat(), false) {
            let error = Arc::new(PutError::from(error));
            all.into_iter().for_each(|one| one.end(Err(Arc::clone(&error))));
            return;
        }
        let mut stored = Vec::with_capacity(all.len());
        for (one, specs) in all.into_iter().zip(specs) {
            match self.store_index(&one.index, &specs) {
                Ok(ids) => stored.push((one, ids)),
                Err(error) => one.end(Err(Arc::new(error))),
            }
        }
        let mut settled = Vec::with_capacity(stored.len());
        let parts: Vec<ObjectId> = stored.iter().flat_map(|(_, ids)| ids.parts.clone()).collect();
        let together = self.settle(&parts).is_ok();
        for (one, ids) in stored {
            let alone = if together { Ok(()) } else { self.settle(&ids.parts) };
            match alone {
                Ok(()) => settled.push((one, ids)),
                Err(error) => one.end(Err(Arc::new(error.into()))),
            }
        }
        let known = self.meta.update(false, |view, batch| {
            let mut slots = Slots::default();
            let rows = settled
                .iter()
                .map(|(one, ids)| index_rows(view, batch, &mut slots, &one.index, ids));
            Ok::<_, MetaError>(rows.collect::<Vec<_>>())
        });
        match known {
            Ok(known) => {
                for ((one, _), slot) in settled.into_iter().zip(known) {
                    one.end(slot.map_err(|error| Arc::new(error.into())));
                }
            }
            Err(error) => {
                let error = Arc::new(PutError::from(error));
                settled.into_iter().for_each(|(one, _)| one.end(Err(Arc::clone(&error))));
            }
        }
    }

    /// Stores the parts of an index and the blocks that come with it; their
    /// objects, given by `specs`, are known.
    fn store_index(&self, index: &NewIndex, specs: &[ObjectSpec]) -> Result<Ids, PutError> {
        check_blob(&index.record)?;
        let ids: Vec<ObjectId> = specs.iter().map(ObjectSpec::id).collect();
        let (contents, parts) = ids.split_at(index.objects.len());
        if parts.len() < 2 {
            return Err(MetaError::Unknown("the index's tree or list of blocks".into()).into());
        }
        for (number, block, data) in &index.blocks {
            let object = contents.get(*number as usize);
            let object = object.ok_or(MetaError::Unknown(format!("object {number}")))?;
            self.put_block(object, *block, data)?;
        }
        for ((data, spec), id) in index.parts.iter().zip(&specs[contents.len()..]).zip(parts) {
            let entry = self.entry(id)?;
            for (at, block) in spec.blocks().zip(0..) {
                if !entry.present.get(block) {
                    let bytes = &data[at.offset as usize..][..at.len as usize];
                    let sealed = VerifiedBlock::seal(Bytes::copy_from_slice(bytes));
                    self.put_block(id, block, &sealed)?;
                }
            }
        }
        Ok(Ids { contents: contents.to_vec(), parts: parts.to_vec() })
    }

    /// Makes objects durable that must be complete.
    fn settle(&self, ids: &[ObjectId]) -> Result<(), MetaError> {
        let mut entries = Vec::with_capacity(ids.len());
        for id in ids {
            let entry = self.entry(id).map_err(to_meta)?;
            if !entry.is_complete() {
                return Err(MetaError::Incomplete(*id));
            }
            entries.push(entry);
        }
        let durable = || entries.iter().all(|e| e.spec.length() == 0 || e.disk().complete);
        if durable() {
            return Ok(());
        }
        match self.sync() {
            // What failed may have been something else.
            Err(e) if !durable() => Err(e.into()),
            _ => Ok(()),
        }
    }
}

/// The objects of an index.
struct Ids {
    contents: Vec<ObjectId>,
    parts: Vec<ObjectId>,
}

/// Slots of layers that become known in one batch.
#[derive(Default)]
struct Slots {
    fresh: NewSlots,
    layers: HashMap<Vec<u8>, u32>,
}

fn check_blob(blob: &BlobRecord) -> Result<(), MetaError> {
    check_path(&blob.layer)?;
    if blob.root.len() > ROOT_MAX {
        return Err(MetaError::TooLarge("the layer root"));
    }
    Ok(())
}

/// The rows of an index whose objects are known; none if it is refused.
fn index_rows(
    view: &View,
    batch: &mut Batch,
    slots: &mut Slots,
    index: &NewIndex,
    ids: &Ids,
) -> Result<u32, MetaError> {
    let Ids { contents, parts } = ids;
    let layer = NewLayer { tree: parts[0], blocks: parts[1], parts, contents };
    let slot = layer_rows(view, batch, slots, &index.record.layer, &layer)?;
    blob_rows(view, batch, &index.blob, &index.record, Some(slot))?;
    for id in parts.iter().chain(contents) {
        batch.put(Table::Homes, &keys::home(id, &index.blob), Vec::new());
    }
    content_rows(view, batch, index.files.iter().copied())?;
    Ok(slot)
}

/// The rows of a layer, and its slot.
fn layer_rows(
    view: &View,
    batch: &mut Batch,
    slots: &mut Slots,
    key: &LayerKey,
    layer: &NewLayer<'_>,
) -> Result<u32, MetaError> {
    let parts = layer.parts.iter().map(|id| (id, Role::Part));
    let contents = layer.contents.iter().zip(0..);
    let contents = contents.map(|(id, n)| (id, Role::Content(n)));
    let objects: Vec<_> = parts.chain(contents).collect();
    for (id, _) in &objects {
        if !view.contains(Table::Objects, id.as_bytes())? {
            return Err(MetaError::UnknownObject(**id));
        }
    }
    let row = keys::layer(key);
    let known = match slots.layers.get(&row[..]) {
        Some(slot) => Some(*slot),
        None => record(view, Table::Layers, &row, LayerRecord::decode)?.map(|known| known.slot),
    };
    let slot = match known {
        Some(slot) => slot,
        None => slots.fresh.take(view, batch, &SlotOwner::Layer(key.clone()))?,
    };
    let value = LayerRecord { slot, tree: layer.tree, blocks: layer.blocks };
    batch.put(Table::Layers, &row, value.encode());
    slots.layers.insert(row, slot);
    for (id, role) in objects {
        batch.put(Table::LayerObjects, &keys::layer_object(slot, id), role.encode());
        batch.put(Table::References, &keys::reference(id, slot), Vec::new());
    }
    Ok(slot)
}

/// The rows of a blob that holds the layer in `slot`, if that is known.
fn blob_rows(
    view: &View,
    batch: &mut Batch,
    digest: &Digest,
    blob: &BlobRecord,
    slot: Option<u32>,
) -> Result<(), MetaError> {
    batch.put(Table::Blobs, digest.as_bytes(), blob.encode());
    if let Some(slot) = slot {
        each(view, Table::LayerObjects, &keys::number(slot), |row, _| {
            if let Some((_, id)) = keys::parse_layer_object(row) {
                batch.put(Table::Homes, &keys::home(&id, digest), Vec::new());
            }
        })?;
    }
    Ok(())
}
