//! What the file system shows: the store's layers, chains and images.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{info, warn};

use super::images::{ImageError, Images};
use crate::fs::{
    Catalog, ChainView, LayerName, LayerView, NameLookup, NameTarget, ReadFailure, ResolveError,
    Slot, Timestamp, Usage,
};
use crate::layer::tree::Tree;
use crate::store::{LayerKey, SlotOwner, Store};
use crate::types::Digest;

/// A known tag that was looked up longer ago than this is looked up again, in
/// seconds.
const TAG_FRESH: i64 = 60;
/// Most failures of reads that are kept for `.peersync/failures`.
const FAILURES_MAX: usize = 100;

/// Makes the status files of a mount.
pub trait StatusFiles: Send + Sync + 'static {
    /// Their names; the order must not change.
    fn names(&self) -> &[&'static str];

    /// The content of one of them, made now. `failures` are the last reads that
    /// failed, oldest first.
    fn content(&self, name: &str, failures: &[ReadFailure]) -> Vec<u8>;
}

/// The catalog of a node.
pub struct NodeCatalog {
    store: Arc<Store>,
    images: Arc<Images>,
    status: OnceLock<Arc<dyn StatusFiles>>,
    /// Bounded by what the store knows; a view is a memory map and some words.
    layers: Mutex<HashMap<u32, Arc<LayerView>>>,
    chains: Mutex<HashMap<u32, Arc<ChainView>>>,
    failures: Mutex<std::collections::VecDeque<ReadFailure>>,
    started: SystemTime,
}

impl NodeCatalog {
    /// A catalog over a store; unknown images are resolved by `images`.
    pub fn new(store: Arc<Store>, images: Arc<Images>) -> Arc<Self> {
        Arc::new(Self {
            store,
            images,
            status: OnceLock::new(),
            layers: Mutex::default(),
            chains: Mutex::default(),
            failures: Mutex::default(),
            started: SystemTime::now(),
        })
    }

    /// Says who makes the status files; once.
    pub fn set_status(&self, status: Arc<dyn StatusFiles>) {
        let _ = self.status.set(status);
    }

    /// Shows these slots no more: files in them can't be opened.
    pub(super) fn forget(&self, slots: impl Iterator<Item = u32>) {
        let slots: Vec<u32> = slots.collect();
        lock(&self.layers).retain(|slot, _| !slots.contains(slot));
        lock(&self.chains)
            .retain(|slot, view| !slots.contains(slot) && !slots.contains(&view.content.get()));
        self.images.has_changed();
    }

    fn load_layer(&self, slot: Slot) -> Option<Arc<LayerView>> {
        let key = self.layer_key(slot.get())?;
        let record = known(self.store.layer(&key))??;
        let map = known(self.store.map_object(&record.tree))??;
        match Tree::open(map) {
            Ok(tree) => Some(Arc::new(LayerView { slot, name: key.diff_id.file_name(), tree })),
            Err(error) => {
                warn!(layer = %key.diff_id, "tree: {error}");
                None
            }
        }
    }

    fn load_chain(&self, slot: Slot) -> Option<Arc<ChainView>> {
        let (name, chain) = match known(self.store.slot(slot.get()))?? {
            SlotOwner::Chain(digest) => (digest.file_name(), digest),
            SlotOwner::Name(name) => {
                let chain = chain_of_view(&name)?;
                (name, chain)
            }
            SlotOwner::Layer(_) => return None,
        };
        let record = known(self.store.chain(&chain))??;
        let layer = |slot: &u32| self.layer(Slot::new(*slot)?);
        let layers: Option<Vec<_>> = record.layers.iter().map(layer).collect();
        let content = Slot::new(record.slot)?;
        Some(Arc::new(ChainView { slot, content, name, layers: layers? }))
    }

    fn layer_key(&self, slot: u32) -> Option<LayerKey> {
        match known(self.store.slot(slot))?? {
            SlotOwner::Layer(key) => Some(key),
            _ => None,
        }
    }

    fn known_image(&self, path: &str) -> Option<(Slot, bool)> {
        let record = known(self.store.image(path))??;
        let slot = known(self.store.name_slot(&view_name(path, &record.chain)))?;
        let age = unix_now() - record.resolved_at;
        let fresh = path.contains("@sha256:") || (0..TAG_FRESH).contains(&age);
        Some((Slot::new(slot)?, fresh))
    }
}

impl Catalog for NodeCatalog {
    fn layer(&self, slot: Slot) -> Option<Arc<LayerView>> {
        if let Some(view) = lock(&self.layers).get(&slot.get()) {
            return Some(Arc::clone(view));
        }
        let view = self.load_layer(slot)?;
        lock(&self.layers).insert(slot.get(), Arc::clone(&view));
        Some(view)
    }

    fn chain(&self, slot: Slot) -> Option<Arc<ChainView>> {
        if let Some(view) = lock(&self.chains).get(&slot.get()) {
            return Some(Arc::clone(view));
        }
        let view = self.load_chain(slot)?;
        lock(&self.chains).insert(slot.get(), Arc::clone(&view));
        Some(view)
    }

    fn layer_named(&self, name: &str) -> Option<LayerName> {
        let digest = Digest::from_file_name(name)?;
        if let Some((_, record)) = known(self.store.layers_of(&digest))?.first() {
            return Slot::new(record.slot).map(LayerName::Layer);
        }
        let blob = known(self.store.blob(&digest))??;
        let record = known(self.store.layer(&blob.layer))??;
        Slot::new(record.slot).map(LayerName::Link)
    }

    fn layer_name(&self, slot: Slot) -> Option<String> {
        Some(self.layer_key(slot.get())?.diff_id.file_name())
    }

    fn layer_names(&self) -> Vec<(String, LayerName)> {
        let mut names = BTreeMap::new();
        let layers = known(self.store.layers()).unwrap_or_default();
        let slots: HashMap<&LayerKey, u32> = layers.iter().map(|(k, r)| (k, r.slot)).collect();
        for (digest, blob) in known(self.store.blobs()).unwrap_or_default() {
            if let Some(slot) = slots.get(&blob.layer).and_then(|slot| Slot::new(*slot)) {
                names.insert(digest.file_name(), LayerName::Link(slot));
            }
        }
        for (key, record) in &layers {
            if let Some(slot) = Slot::new(record.slot) {
                names.insert(key.diff_id.file_name(), LayerName::Layer(slot));
            }
        }
        names.into_iter().collect()
    }

    fn chain_named(&self, name: &str) -> Option<Slot> {
        let record = known(self.store.chain(&Digest::from_file_name(name)?))??;
        Slot::new(record.slot)
    }

    fn chain_names(&self) -> Vec<(String, Slot)> {
        let chains = known(self.store.chains()).unwrap_or_default();
        let named = |(digest, record): (Digest, crate::store::ChainRecord)| {
            Some((digest.file_name(), Slot::new(record.slot)?))
        };
        chains.into_iter().filter_map(named).collect()
    }

    fn directory_path(&self, slot: Slot) -> Option<Arc<str>> {
        match known(self.store.slot(slot.get()))?? {
            SlotOwner::Name(name) if chain_of_view(&name).is_none() => Some(name.into()),
            _ => None,
        }
    }

    fn directory(&self, path: &str, create: bool) -> Option<Slot> {
        let known_prefix = || {
            let prefix = format!("{path}/");
            let images = known(self.store.images()).unwrap_or_default();
            images.iter().any(|(reference, _)| reference.starts_with(&prefix))
        };
        if !create && !known_prefix() {
            return None;
        }
        Slot::new(known(self.store.name_slot(path))?)
    }

    fn image(&self, path: &str, may_resolve: bool) -> NameLookup {
        let known_image = self.known_image(path);
        match known_image {
            Some((slot, fresh)) if fresh || !may_resolve => {
                return NameLookup::Found(NameTarget::Image(slot));
            }
            None if !may_resolve => return NameLookup::Absent,
            _ => {}
        }
        let (images, path) = (Arc::clone(&self.images), path.to_owned());
        NameLookup::Resolve(Box::pin(async move {
            match images.resolve_path(&path).await {
                Ok(slot) => Slot::new(slot).ok_or_else(|| ResolveError::Unusable("no slot".into())),
                // What is known serves while its registry can't be asked.
                Err(error) => match (known_image, &error) {
                    (Some((slot, _)), ImageError::Unreachable(_)) => {
                        info!(image = path, "not looked up again: {error}");
                        Ok(slot)
                    }
                    _ => {
                        warn!(image = path, "{error}");
                        Err(resolve_error(&error))
                    }
                },
            }
        }))
    }

    fn names(&self, path: &str) -> Vec<(String, NameTarget)> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}/") };
        let mut names = BTreeMap::new();
        for (reference, _) in known(self.store.images()).unwrap_or_default() {
            let Some(rest) = reference.strip_prefix(&prefix) else { continue };
            if reference.starts_with("oci:") {
                continue;
            }
            let target = match rest.split_once('/') {
                Some((first, _)) => {
                    let slot = self.directory(&format!("{prefix}{first}"), true);
                    slot.map(|slot| (first, NameTarget::Directory(slot)))
                }
                None => {
                    let slot = self.known_image(&reference).map(|(slot, _)| slot);
                    slot.map(|slot| (rest, NameTarget::Image(slot)))
                }
            };
            if let Some((name, target)) = target {
                names.insert(name.to_owned(), target);
            }
        }
        names.into_iter().collect()
    }

    fn changed(&self) -> Timestamp {
        let last = self.images.changed().max(self.started);
        let since = last.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() }
    }

    fn status_names(&self) -> &[&'static str] {
        self.status.get().map_or(&[], |status| status.names())
    }

    fn status(&self, index: u16) -> Option<Vec<u8>> {
        let status = self.status.get()?;
        let name = status.names().get(usize::from(index))?;
        let failures: Vec<_> = lock(&self.failures).iter().cloned().collect();
        Some(status.content(name, &failures))
    }

    fn usage(&self) -> Usage {
        let space = self.store.space();
        let (total, free) = space.map_or((0, 0), |space| (space.total, space.free));
        let nodes = lock(&self.layers).values().map(|l| u64::from(l.tree.len())).sum();
        // Never zero: programs take a file system without blocks for a special one.
        Usage { bytes: total.max(1), free, nodes }
    }

    fn read_failed(&self, failure: ReadFailure) {
        warn!(layer = failure.layer, path = failure.path, "read failed: {}", failure.reason);
        let mut failures = lock(&self.failures);
        if failures.len() == FAILURES_MAX {
            failures.pop_front();
        }
        failures.push_back(failure);
    }
}

/// The name under which the view of an image has its slot: a moved tag is
/// another view, and two tags of one image are two.
pub fn view_name(reference: &str, chain: &Digest) -> String {
    format!("{reference}#{chain}")
}

fn chain_of_view(name: &str) -> Option<Digest> {
    name.rsplit_once('#')?.1.parse().ok()
}

fn resolve_error(error: &ImageError) -> ResolveError {
    match error {
        ImageError::NotFound(_) | ImageError::Name(_) => ResolveError::NotFound,
        ImageError::Denied(_) => ResolveError::Denied,
        ImageError::Unreachable(message) => ResolveError::Unreachable(message.clone()),
        error => ResolveError::Unusable(error.to_string()),
    }
}

/// What the store says, or nothing where it fails, with a word in the log.
fn known<T>(result: Result<T, impl std::fmt::Display>) -> Option<T> {
    result.inspect_err(|error| warn!("store: {error}")).ok()
}

fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
