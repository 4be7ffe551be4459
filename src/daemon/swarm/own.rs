//! What this node holds and how it is: looked at when something may have changed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::warn;

use crate::daemon::Node;
use crate::store::LayerKey;
use crate::swarm::elect::Stability;
use crate::swarm::popularity::{PeerSets, Short};
use crate::swarm::tracker::{Has, LAYERS_MAX};
use crate::types::Digest;

/// Even if nothing is known to have changed, it is looked at this often.
const LOOK: Duration = Duration::from_secs(60);
/// While content comes, no more often than this.
const PAUSE: Duration = Duration::from_secs(2);
/// Images that peers are told of, and layers of one.
const IMAGES_MAX: usize = 512;
const IMAGE_LAYERS_MAX: usize = 128;

/// Layers by their blobs, and images by the layers that they are made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) layers: BTreeMap<Digest, Has>,
    pub(super) images: BTreeMap<Short, Arc<[Short]>>,
}

/// What changes when holdings may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    at: Instant,
    images: SystemTime,
    came: u64,
}

impl Stamp {
    pub(super) fn of(node: &Node) -> Self {
        let counters = &node.counters;
        let came = [
            &counters.bytes_dedup,
            &counters.content_lan,
            &counters.content_remote,
            &counters.content_registry,
            &counters.first_passes,
            &counters.evicted_spare,
            &counters.evicted_pressure,
        ];
        let came = came.iter().map(|counter| counter.get()).fold(0, u64::wrapping_add);
        Self { at: Instant::now(), images: node.images.changed(), came }
    }

    /// Whether it is time to look again.
    pub(super) fn is_behind(&self, now: &Self) -> bool {
        let since = now.at.duration_since(self.at);
        let changed = self.images != now.images || self.came != now.came;
        since >= LOOK || (changed && since >= PAUSE)
    }
}

impl Own {
    /// Looks into the store. `None` where it can't be read. Blocks for the disk.
    pub(super) fn of(node: &Node) -> Option<Self> {
        let found = Self::look(node);
        found.map_err(|error| warn!("what is held here is not known: {error}")).ok()
    }

    fn look(node: &Node) -> Result<Self, crate::store::MetaError> {
        let store = &node.store;
        let mut has: HashMap<LayerKey, Has> = HashMap::new();
        let mut layers = BTreeMap::new();
        let mut blobs: HashMap<u32, Digest> = HashMap::new();
        let slots: HashMap<LayerKey, u32> =
            store.layers()?.into_iter().map(|(key, record)| (key, record.slot)).collect();
        for (blob, record) in store.blobs()? {
            let key = record.layer;
            if let Some(slot) = slots.get(&key) {
                blobs.insert(*slot, blob);
            }
            if layers.len() >= LAYERS_MAX {
                continue;
            }
            let known = has.get(&key).copied();
            let one = match known {
                Some(one) => one,
                None => {
                    let progress = store.layer_progress(&key)?;
                    let whole = progress.resident == progress.total;
                    if whole { Has::Whole } else { Has::Some }
                }
            };
            has.insert(key, one);
            layers.insert(blob, one);
        }
        let mut images = BTreeMap::new();
        for (_, record) in store.images()?.into_iter().take(IMAGES_MAX) {
            let chain = store.chain(&record.chain)?;
            let slots = chain.map(|chain| chain.layers).unwrap_or_default();
            let of = slots.iter().filter_map(|slot| blobs.get(slot)).map(PeerSets::short);
            let layers: Arc<[Short]> = of.take(IMAGE_LAYERS_MAX).collect();
            images.insert(PeerSets::short(&record.manifest), layers);
        }
        Ok(Self { layers, images })
    }
}

/// How well this node would do as a tracker.
pub(super) fn stability(uptime: Duration, neighbours: usize, bandwidth: f64) -> Stability {
    Stability { uptime, neighbours, bandwidth, load: load() }
}

/// The share of this machine that is in use, by its load average of a minute.
fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = text.split(' ').next().and_then(|first| first.parse::<f64>().ok());
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    load.unwrap_or(0.5) / processors as f64
}
