//! What there is to evict: the store's objects, and who needs them.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use super::{Evictor, Inventory, Node, Orphan, unix_time};
use crate::eviction::Item;
use crate::store::{LayerKey, MetaError, SlotOwner, Store};
use crate::types::{Digest, ObjectId};

/// An object that no layer needs is left alone for so long: a first pass may be
/// about to say whose it is.
const ORPHANED: Duration = Duration::from_secs(600);

impl Evictor {
    /// All objects of which something is here.
    pub(super) fn inventory(&self, node: &Node) -> Result<Inventory, MetaError> {
        let objects = self.store.used_objects()?;
        let pinned = pinned(&self.store)?;
        let in_use = in_use(node)?;
        let open: HashSet<ObjectId> = node.mounts.open_objects().into_iter().collect();
        let popular = self.popularity(node)?;
        let remote = node.engine.remote_holders();
        let (now, time) = (self.now(), unix_time());
        let mut since = HashMap::new();
        let mut inventory = Inventory {
            items: Vec::with_capacity(objects.len()),
            orphans: Vec::new(),
            parts: (0, 0),
        };
        let mut state = self.state();
        for object in objects {
            if object.part {
                inventory.parts.0 += 1;
                inventory.parts.1 += object.bytes;
                continue;
            }
            if object.slots.is_empty() {
                let first = state.orphans.get(&object.id).copied().unwrap_or(now);
                since.insert(object.id, first);
                if now.saturating_sub(first) >= ORPHANED {
                    let (id, bytes, whole) = (object.id, object.bytes, object.complete);
                    inventory.orphans.push(Orphan { id, bytes, whole });
                }
                continue;
            }
            let any = |slots: &HashSet<u32>| object.slots.iter().any(|slot| slots.contains(slot));
            let idle = idle(object.used, time);
            let rho = object.slots.iter().filter_map(|slot| popular.get(slot));
            let (lan, unsure) = state.neighbours.of(&object.id, now);
            inventory.items.push(Item {
                bytes: object.bytes,
                whole: object.complete,
                idle,
                uses: rho.copied().fold(0.0, f32::max),
                lan,
                unsure,
                remote: remote.get(&object.id).copied().unwrap_or(0),
                pinned: any(&pinned),
                in_use: any(&in_use) || open.contains(&object.id),
                ..Item::new(object.id)
            });
        }
        state.orphans = since;
        Ok(inventory)
    }
}

impl Evictor {
    /// Uses that layers count for as images of the swarm contain them, by slot.
    fn popularity(&self, node: &Node) -> Result<HashMap<u32, f32>, MetaError> {
        let Some(swarm) = &node.swarm else { return Ok(HashMap::new()) };
        let layers = self.store.layers()?;
        let slots: HashMap<LayerKey, u32> =
            layers.into_iter().map(|(key, record)| (key, record.slot)).collect();
        let mut popular = HashMap::new();
        for (blob, record) in self.store.blobs()? {
            let Some(slot) = slots.get(&record.layer) else { continue };
            let uses = swarm.view.popularity(&blob) as f32 * self.weights.popularity;
            let known = popular.entry(*slot).or_insert(0.0f32);
            *known = known.max(uses);
        }
        Ok(popular)
    }

    /// Notes that what running containers are made of is in use.
    pub(super) fn note_containers(&self, node: &Node, time: u64) -> Result<(), MetaError> {
        let running = in_use(node)?;
        if running.is_empty() {
            return Ok(());
        }
        for object in self.store.used_objects()? {
            if object.slots.iter().any(|slot| running.contains(slot)) {
                self.store.note_used(&object.id, time);
            }
        }
        Ok(())
    }
}

/// Slots of the layers that pins stand for.
fn pinned(store: &Store) -> Result<HashSet<u32>, MetaError> {
    let mut slots = HashSet::new();
    for (name, _) in store.pins()? {
        slots.extend(slots_of(store, &name)?);
    }
    Ok(slots)
}

/// Slots of the layers that a name stands for: of an image, or of a layer by its
/// diffID or its blob.
pub(in crate::daemon) fn slots_of(store: &Store, name: &str) -> Result<Vec<u32>, MetaError> {
    if let Ok(digest) = name.parse::<Digest>() {
        let mut slots: Vec<u32> =
            store.layers_of(&digest)?.iter().map(|(_, layer)| layer.slot).collect();
        if let Some(blob) = store.blob(&digest)? {
            slots.extend(store.layer(&blob.layer)?.map(|layer| layer.slot));
        }
        return Ok(slots);
    }
    match store.image(name)? {
        Some(image) => Ok(layers_of_chain(store, &image.chain)?),
        None => Ok(Vec::new()),
    }
}

fn layers_of_chain(store: &Store, chain: &Digest) -> Result<Vec<u32>, MetaError> {
    let layers = store.chain(chain)?.map(|chain| chain.layers).unwrap_or_default();
    let mut slots = Vec::with_capacity(layers.len());
    for slot in layers {
        if matches!(store.slot(slot)?, Some(SlotOwner::Layer(_))) {
            slots.push(slot);
        }
    }
    Ok(slots)
}

/// Slots of the layers that running containers are made of.
fn in_use(node: &Node) -> Result<HashSet<u32>, MetaError> {
    let snapshotter = {
        let served = node.snapshots.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        served.as_ref().map(|served| std::sync::Arc::clone(&served.snapshotter))
    };
    let Some(snapshotter) = snapshotter else { return Ok(HashSet::new()) };
    let Ok(mounted) = std::fs::read("/proc/self/mountinfo") else {
        // Whoever may run counts as running.
        return chains(node, snapshotter.chains());
    };
    let running = snapshotter.mounted_on_chains(&mounted);
    chains(node, running.into_iter().map(|(_, chain)| chain).collect())
}

fn chains(node: &Node, chains: Vec<Digest>) -> Result<HashSet<u32>, MetaError> {
    let mut slots = HashSet::new();
    for chain in chains {
        slots.extend(layers_of_chain(&node.store, &chain)?);
    }
    Ok(slots)
}

/// Seconds since something was used, by a clock that may have been set. One that was
/// set back makes things look as if just used: they stay. What was never used is older
/// than all that was.
fn idle(used: u64, time: u64) -> u32 {
    match used {
        0 => u32::MAX,
        used => u32::try_from(time.saturating_sub(used)).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_makes_nothing_older_than_it_can_be() {
        assert_eq!((idle(1000, 1060), idle(1000, 400), idle(1, u64::MAX)), (60, 0, u32::MAX));
        assert_eq!(idle(0, 5), u32::MAX, "never used");
        // A jump ahead makes all older alike: what was used last is still the youngest.
        let ahead = 1_000_000_000;
        assert!(idle(1060, ahead) < idle(1000, ahead));
    }
}
