//! From an image's name to a chain of indexed layers.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc};
use tracing::info;

use super::catalog::view_name;
use super::index::{Offered, export};
use super::origins::Repositories;
use super::peers;
use crate::fetch::{Board, Engine, FetchError, FirstPass, PassError, WorkKind};
use crate::oci::{
    Artifact, Image, ImageSource, LAYERS_MAX, LayerDescriptor, Reference, Source, SourceError,
    Trouble, chain_ids,
};
use crate::store::{ImageRecord, LayerKey, Store};
use crate::telemetry::Counters;
use crate::types::Digest;

/// Hears what a person should know.
pub(super) type Told<'a> = dyn Fn(String) + Send + Sync + 'a;

/// Layers of one image that are prepared at the same time,
const LAYERS_AT_ONCE: usize = 4;
/// and of those whose blob is small: what each costs is waiting, for the registry
/// and for the disk, and those that wait for the disk together wait once.
const SMALL_AT_ONCE: usize = 64;
/// Bytes of a small blob.
const SMALL: u64 = 64 << 10;

/// Whether a mount may wait for a first pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum IndexMode {
    /// Use an index where there is one, else build it in one pass.
    #[default]
    Auto,
    /// Build every index on this node.
    Never,
    /// Fail where there is no index, rather than read the whole image.
    Require,
}

/// Whom indexes are believed from, besides this node.
#[derive(Clone, Copy, Debug)]
pub struct Trust {
    /// The image's own registry.
    pub registry: bool,
    /// Members of the swarm; also for what an image's name stands for where its
    /// registry can't be reached.
    pub swarm: bool,
}

/// What [`Images`] needs to know.
pub struct Settings {
    /// Signs the indexes that are built here.
    pub key: SigningKey,
    /// Whom indexes are believed from.
    pub trust: Trust,
    /// How long content may make no progress.
    pub no_progress: Duration,
}

/// An image whose layers all have an index.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// Its full name.
    pub reference: String,
    /// Its manifest.
    pub manifest: Digest,
    /// Its layers' blobs, lowest first.
    pub blobs: Vec<Digest>,
    /// The slot of its view.
    pub view: u32,
}

/// Why an image can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is not one.
    #[error("{0}")]
    Name(String),
    /// There is no such image.
    #[error("{0}")]
    NotFound(String),
    /// The registry refuses.
    #[error("{0}")]
    Denied(String),
    /// The registry's answer, or what this node is configured to do, rules it out:
    /// asking again does not help.
    #[error("{0}")]
    Refused(String),
    /// The registry can't be reached.
    #[error("{0}")]
    Unreachable(String),
    /// What came is not what was promised.
    #[error("{0}")]
    Corrupt(String),
    /// No index, and none was to be built.
    #[error(
        "layer {0} has no index, and `--index require` forbids the first pass that would make one"
    )]
    NoIndex(Digest),
    /// The local store failed.
    #[error("store: {0}")]
    Store(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// Makes images usable.
pub struct Images {
    pub(super) store: Arc<Store>,
    pub(super) engine: Arc<Engine>,
    pub(super) repositories: Arc<Repositories>,
    pub(super) counters: Arc<Counters>,
    pub(super) board: Arc<Board>,
    pub(super) pass: FirstPass,
    pub(super) settings: Settings,
    /// One at a time works on a layer; bounded by the work in progress.
    busy: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    changed: Mutex<SystemTime>,
    on_change: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Images {
    /// Over a store, with content fetched by `engine`.
    pub fn new(
        store: Arc<Store>,
        engine: Arc<Engine>,
        repositories: Arc<Repositories>,
        counters: Arc<Counters>,
        board: Arc<Board>,
        settings: Settings,
    ) -> Self {
        let pass = FirstPass::new(Arc::clone(&store), Arc::clone(&counters), settings.key.clone());
        Self {
            store,
            engine,
            repositories,
            counters,
            board,
            pass,
            settings,
            busy: Mutex::default(),
            changed: Mutex::new(UNIX_EPOCH),
            on_change: OnceLock::new(),
        }
    }

    /// The work that goes on.
    pub fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// When images, chains or layers last became known.
    pub fn changed(&self) -> SystemTime {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has `told` called after every change of [`Self::changed`]. The first call
    /// of this counts.
    pub fn on_change(&self, told: impl Fn() + Send + Sync + 'static) {
        let _ = self.on_change.set(Box::new(told));
    }

    pub(super) fn has_changed(&self) {
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = SystemTime::now();
        if let Some(told) = self.on_change.get() {
            told();
        }
    }

    /// Makes an image usable: every layer gets an index, from the store, the
    /// image's registry, or a first pass. `told` hears what a person should know.
    ///
    /// # Errors
    /// [`ImageError`]. What was done stays: the next try goes on from there.
    pub async fn resolve(
        &self,
        image: &str,
        plain_http: bool,
        index: IndexMode,
        told: &Told<'_>,
    ) -> Result<Resolved, ImageError> {
        self.resolve_upwards(image, plain_http, index, told, &|_| {}).await
    }

    /// As [`Images::resolve`]; `ready` hears of each chain as soon as it can be
    /// mounted, durably, lowest first. Who needs the lower layers does not wait
    /// for those above, and has them even if one of those can't be had.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn resolve_upwards(
        &self,
        image: &str,
        plain_http: bool,
        index: IndexMode,
        told: &Told<'_>,
        ready: &(dyn Fn(Digest) + Send + Sync),
    ) -> Result<Resolved, ImageError> {
        let source: Source =
            image.parse().map_err(|e| ImageError::Name(format!("{image}: {e}")))?;
        let reference = full_name(&source);
        let is_named = matches!(source, Source::Registry(_));
        let (source, target) = self.repositories.open(&source, plain_http)?;
        let image = match Image::load(&*source, &target, None).await {
            Ok(image) => image,
            Err(error) => match self.known(&reference)? {
                Some(known) if is_passing(&error) => {
                    told(format!("{error}; using {reference} as it was last known"));
                    return Ok(known);
                }
                None if is_passing(&error) && is_named && self.settings.trust.swarm => {
                    let image = peers::image(&self.engine, &reference).await;
                    let image = image.ok_or(error)?;
                    told(format!("{}: as a peer last knew {reference}", source.name()));
                    image
                }
                _ => return Err(error.into()),
            },
        };
        if index != IndexMode::Never && self.settings.trust.swarm {
            self.ask_peers(&image, told).await?;
        }
        let offered = self.offered(&image, &*source, index).await?;
        let offered = offered.as_ref();
        let large = Semaphore::new(LAYERS_AT_ONCE);
        let mut prepared = pin!(
            stream::iter(image.layers.clone())
                .map(|layer| {
                    let (source, large) = (Arc::clone(&source), &large);
                    async move {
                        let _turn = match layer.size {
                            ..=SMALL => None,
                            _ => Some(large.acquire().await),
                        };
                        let key = self.prepare(&layer, &source, offered, index, told).await?;
                        Ok::<_, ImageError>((layer, key))
                    }
                })
                .buffered(SMALL_AT_ONCE)
        );
        // Both go on at once: layers above don't wait while a chain is written.
        let (done, mut finished) = mpsc::unbounded_channel();
        let preparing = async move {
            while let Some(layer) = prepared.try_next().await? {
                let _ = done.send(layer);
            }
            Ok::<_, ImageError>(())
        };
        let publishing = async {
            let (mut slots, mut parts) = (Vec::new(), Vec::new());
            let mut batch = Vec::new();
            // What finished while a batch was made durable is the next one.
            while finished.recv_many(&mut batch, LAYERS_MAX).await > 0 {
                let mut layers = Vec::with_capacity(batch.len());
                for (layer, key) in batch.drain(..) {
                    parts.push(layer.chain_part().unwrap_or(key.diff_id));
                    layers.push(key);
                }
                let (all, chains) = self.publish(slots, layers, &parts).await?;
                slots = all;
                chains.into_iter().for_each(ready);
            }
            Ok::<_, ImageError>((slots, parts))
        };
        let (all_prepared, published) = tokio::join!(preparing, publishing);
        all_prepared?;
        let (slots, parts) = published?;
        self.record(&reference, &image, slots, &parts).await
    }

    /// Resolves the image at a path below `images/` and gives its view's slot.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn resolve_path(&self, path: &str) -> Result<u32, ImageError> {
        let resolved = self.resolve(path, false, IndexMode::Auto, &|note| info!("{note}")).await?;
        Ok(resolved.view)
    }

    /// Fetches what is missing of a layer's content.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn complete(&self, blob: &Digest) -> Result<(), ImageError> {
        let index = self.engine.layer(*blob).await?;
        let index = index.ok_or_else(|| ImageError::Store(format!("layer {blob} has no index")))?;
        let ticket = self.board.begin(*blob, WorkKind::Fetch, index.content_bytes());
        let work = Arc::clone(ticket.work());
        let no_progress = self.settings.no_progress;
        Ok(self
            .engine
            .complete(&index, no_progress, &move |bytes, sources| {
                work.set_done(bytes);
                work.set_sources(sources);
            })
            .await?)
    }

    /// Writes the indexes of an image's layers beside it, and gives the digest
    /// of the referrer and the bytes of its blobs.
    ///
    /// # Errors
    /// [`ImageError`].
    pub async fn push_index(
        &self,
        image: &str,
        plain_http: bool,
    ) -> Result<(Digest, u64), ImageError> {
        let name: Source = image.parse().map_err(|e| ImageError::Name(format!("{image}: {e}")))?;
        let (source, target) = self.repositories.open(&name, plain_http)?;
        let image = Image::load(&*source, &target, None).await?;
        let (mut layers, mut bytes) = (Vec::new(), 0);
        for layer in &image.layers {
            let (store, digest) = (Arc::clone(&self.store), layer.digest);
            let exported = tokio::task::spawn_blocking(move || export(&store, &digest)).await;
            let (descriptor, blob) = exported.map_err(failed)?.map_err(ImageError::Failed)?;
            let ticket = self.board.begin(layer.digest, WorkKind::Push, descriptor.size);
            source.push_blob(&descriptor.digest, blob.into()).await?;
            ticket.work().set_done(descriptor.size);
            bytes += descriptor.size;
            layers.push(descriptor);
        }
        let artifact = Artifact {
            artifact_type: super::artifact::ARTIFACT_TYPE.to_owned(),
            subject: image.manifest.clone(),
            layers,
            annotations: Default::default(),
        };
        let descriptor = source.push_referrer(&artifact).await?;
        Ok((descriptor.digest, bytes))
    }

    /// Whether resolving the image would tell nothing new of these layers: it was
    /// resolved before, they all have an index, and may be fetched from where the
    /// image is.
    pub fn is_known(&self, image: &str, layers: &[Digest]) -> bool {
        let Ok(source) = image.parse::<Source>() else { return false };
        let is_recorded = self.store.image(&full_name(&source));
        let Ok((source, _)) = self.repositories.open(&source, false) else { return false };
        let place = source.name();
        let has_layer = |layer: &Digest| {
            self.store.blob(layer).is_ok_and(|blob| blob.is_some())
                && self.store.origins(layer).is_ok_and(|origins| origins.contains(&place))
        };
        is_recorded.is_ok_and(|record| record.is_some()) && layers.iter().all(has_layer)
    }

    /// The image as the store knows it.
    fn known(&self, reference: &str) -> Result<Option<Resolved>, ImageError> {
        let Some(record) = self.store.image(reference).map_err(store)? else { return Ok(None) };
        let view = self.store.name_slot(&view_name(reference, &record.chain)).map_err(store)?;
        let chain = self.store.chain(&record.chain).map_err(store)?;
        let slots = chain.map(|chain| chain.layers).unwrap_or_default();
        let blobs = self.store.blobs().map_err(store)?;
        let layers = self.store.layers().map_err(store)?;
        let blob_of = |slot: &u32| {
            let (key, _) = layers.iter().find(|(_, layer)| layer.slot == *slot)?;
            blobs.iter().find(|(_, blob)| blob.layer == *key).map(|(digest, _)| *digest)
        };
        let blobs = slots.iter().filter_map(blob_of).collect();
        let reference = reference.to_owned();
        Ok(Some(Resolved { reference, manifest: record.manifest, blobs, view }))
    }

    /// Takes from peers the indexes that they have and that are not here.
    async fn ask_peers(&self, image: &Image, told: &Told<'_>) -> Result<(), ImageError> {
        let layers = stream::iter(image.layers.iter().map(Ok));
        layers
            .try_for_each_concurrent(LAYERS_AT_ONCE, |layer| async move {
                let lock = self.lock_of(&layer.digest);
                let guard = lock.lock().await;
                let taken = match self.indexed(layer) {
                    Ok(None) => Ok(peers::index(&self.engine, &self.store, layer).await),
                    known => known.map(|_| false),
                };
                drop(guard);
                self.forget_lock(&layer.digest, lock);
                if taken? { self.tell_if_sequential(layer, told).await } else { Ok(()) }
            })
            .await
    }

    /// What the registry offers for layers whose index is not here.
    async fn offered(
        &self,
        image: &Image,
        source: &dyn ImageSource,
        index: IndexMode,
    ) -> Result<Option<Offered>, ImageError> {
        if index == IndexMode::Never || !self.settings.trust.registry {
            return Ok(None);
        }
        for layer in &image.layers {
            if self.indexed(layer)?.is_none() {
                return Ok(Some(Offered::of(source, &image.manifest.digest).await));
            }
        }
        Ok(None)
    }

    /// The layer's key if its blob has an index here.
    pub(super) fn indexed(&self, layer: &LayerDescriptor) -> Result<Option<LayerKey>, ImageError> {
        let path = layer.path.as_ref().map(|p| p.as_bytes());
        let record = self.store.blob(&layer.digest).map_err(store)?;
        let key = record.map(|record| record.layer).filter(|key| key.path.as_deref() == path);
        Ok(key.filter(|key| layer.diff_id.is_none_or(|diff_id| diff_id == key.diff_id)))
    }

    /// Makes the chains that end with these layers, which stand on those in `slots`,
    /// known and durable; gives the slots of all, and the chains' names. `parts` is
    /// what each of all layers adds to those.
    async fn publish(
        &self,
        mut slots: Vec<u32>,
        layers: Vec<LayerKey>,
        parts: &[Digest],
    ) -> Result<(Vec<u32>, Vec<Digest>), ImageError> {
        let store_of = Arc::clone(&self.store);
        let chains = chain_ids(parts).split_off(slots.len());
        let work = move || {
            let known = slots.len();
            slots.extend(slots_of(&store_of, &layers)?);
            let named = (known + 1..).zip(&chains).map(|(below, chain)| (*chain, &slots[..below]));
            store_of.put_chains(&named.collect::<Vec<_>>()).map_err(store)?;
            store_of.sync().map_err(store)?;
            Ok::<_, ImageError>((slots, chains))
        };
        let published = tokio::task::spawn_blocking(work).await.map_err(failed)??;
        self.has_changed();
        Ok(published)
    }

    /// Notes what the image is, and makes that durable.
    async fn record(
        &self,
        reference: &str,
        image: &Image,
        slots: Vec<u32>,
        parts: &[Digest],
    ) -> Result<Resolved, ImageError> {
        let store = Arc::clone(&self.store);
        let (name, image) = (reference.to_owned(), image.clone());
        let blobs = image.layers.iter().map(|layer| layer.digest).collect();
        let manifest = image.manifest.digest;
        let chain = chain_ids(parts).pop().unwrap_or_else(|| Digest::of(b""));
        let work = move || write(&store, &name, &image, &slots, chain);
        let view = tokio::task::spawn_blocking(work).await.map_err(failed)??;
        self.has_changed();
        Ok(Resolved { reference: reference.to_owned(), manifest, blobs, view })
    }

    pub(super) fn lock_of(&self, blob: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(busy.entry(*blob).or_default())
    }

    pub(super) fn forget_lock(&self, blob: &Digest, lock: Arc<tokio::sync::Mutex<()>>) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        drop(lock);
        if busy.get(blob).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            busy.remove(blob);
        }
    }
}

/// The slots of layers.
fn slots_of(store_of: &Store, layers: &[LayerKey]) -> Result<Vec<u32>, ImageError> {
    let mut slots = Vec::with_capacity(layers.len());
    for key in layers {
        let layer = store_of.layer(key).map_err(store)?;
        let layer =
            layer.ok_or_else(|| ImageError::Store(format!("layer {} is gone", key.diff_id)))?;
        slots.push(layer.slot);
    }
    Ok(slots)
}

/// Writes documents and the image's record; gives its view's slot. The chains
/// below its own were published before.
fn write(
    store_of: &Store,
    reference: &str,
    image: &Image,
    slots: &[u32],
    chain: Digest,
) -> Result<u32, ImageError> {
    store_of.put_chain(&chain, slots).map_err(store)?;
    for document in &image.documents {
        store_of.put_document(&document.descriptor.digest, &document.bytes).map_err(store)?;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let record = ImageRecord {
        manifest: image.manifest.digest,
        chain,
        resolved_at: i64::try_from(now).unwrap_or(i64::MAX),
        platform: image.platform.as_ref().map(ToString::to_string).unwrap_or_default(),
    };
    store_of.put_image(reference, &record).map_err(store)?;
    let view = store_of.name_slot(&view_name(reference, &chain)).map_err(store)?;
    store_of.sync().map_err(store)?;
    Ok(view)
}

/// The one name under which an image is kept.
fn full_name(source: &Source) -> String {
    match source {
        Source::Registry(reference) => canonical(reference),
        layout => layout.to_string(),
    }
}

fn canonical(reference: &Reference) -> String {
    match reference.digest() {
        Some(digest) => format!("{}@{digest}", reference.repository()),
        None => reference.clone().with_default_tag().to_string(),
    }
}

/// Whether what is known may stand in for what can't be asked for now.
fn is_passing(error: &SourceError) -> bool {
    matches!(error.trouble(), Trouble::Transient | Trouble::Busy)
}

fn store(error: impl std::fmt::Display) -> ImageError {
    ImageError::Store(error.to_string())
}

fn failed(error: impl std::fmt::Display) -> ImageError {
    ImageError::Failed(error.to_string())
}

impl From<SourceError> for ImageError {
    fn from(error: SourceError) -> Self {
        let message = error.to_string();
        match error.trouble() {
            Trouble::NotFound => Self::NotFound(message),
            Trouble::Denied => Self::Denied(message),
            Trouble::Busy | Trouble::Transient => Self::Unreachable(message),
            Trouble::Corrupt => Self::Corrupt(message),
            Trouble::Permanent => Self::Refused(message),
        }
    }
}

impl From<FetchError> for ImageError {
    fn from(error: FetchError) -> Self {
        match error {
            FetchError::Store(message) => Self::Store(message),
            error => Self::Failed(error.to_string()),
        }
    }
}

impl From<PassError> for ImageError {
    fn from(error: PassError) -> Self {
        match error {
            PassError::Source(error) => error.into(),
            PassError::Corrupt { .. } => Self::Corrupt(error.to_string()),
            PassError::Store(message) => Self::Store(message),
            error => Self::Failed(error.to_string()),
        }
    }
}
