//! The first pass over a layer that has no index: every byte of the blob is
//! read once, in a stream, and becomes stored content and an index.
//!
//! Three stages run side by side, joined by short queues: the network, the
//! decompressor on a thread, and the builder with the staging area on another.
//! At seek points the pass writes a checkpoint: the staged content is made
//! durable together with the decompressor's state, and an interrupted pass goes
//! on from there ([`resume`]).

mod resume;
mod sink;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::install::{IndexParts, InstallError, install};
use super::work::Work;
use crate::layer::build::{
    BuildError, BuildObject, BuiltLayer, DecodeLimits, Decoded, DecompressError, Decompressed,
    Decompressor, LayerBuilder,
};
use crate::layer::root::{LayerRoot, PartRef, RootBody};
use crate::layer::seek::SeekTableBuilder;
use crate::layer::skeleton::SkeletonWriter;
use crate::layer::tree::TreeLimits;
use crate::oci::{Ahead, ImageSource, LayerDescriptor, ParallelBlob, RetryPolicy, SourceError};
use crate::store::{IndexOrigin, LayerKey, StageError, Staging, Store, Stream};
use crate::telemetry::Counters;
use crate::types::{Digest, ObjectSpec, VerifiedBlock};
use resume::{State, resume};
use sink::{Held, StagingSink, stream_of};

/// Chunks on their way from one stage to the next: some MiB.
const QUEUE: usize = 8;
/// Time between two checkpoints, at least: what a crash can cost.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(1);
/// A checkpoint may take this share of the time: it waits for the disk.
const CHECKPOINT_SHARE: u32 = 20;

/// Segments of blobs that are read ahead of their turn by all first passes
/// together: 16 MiB.
const AHEAD: usize = 8;

/// Why a first pass failed. What was staged stays, unless it is wrong.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// The blob can't be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The blob is not what it is said to be, or not a layer.
    #[error("layer {layer}: {reason}")]
    Corrupt {
        /// The blob.
        layer: Digest,
        /// What is wrong.
        reason: String,
    },
    /// The store does not take it.
    #[error("store: {0}")]
    Store(String),
    /// The node is shutting down.
    #[error("the node is shutting down")]
    Closed,
}

/// Makes first passes.
pub struct FirstPass {
    store: Arc<Store>,
    counters: Arc<Counters>,
    key: SigningKey,
    ahead: Ahead,
}

/// When the next checkpoint is due.
struct Due {
    at: Instant,
    /// Set by the builder's thread: how long the last one took, in microseconds.
    took: Arc<AtomicU64>,
}

impl Due {
    fn new(took: &Arc<AtomicU64>) -> Self {
        Self { at: Instant::now() + CHECKPOINT_EVERY, took: Arc::clone(took) }
    }

    /// Whether one is due; the next is then some time off.
    fn now(&mut self) -> bool {
        let now = Instant::now();
        let due = now >= self.at;
        if due {
            let took = Duration::from_micros(self.took.load(Ordering::Relaxed));
            self.at = now + CHECKPOINT_EVERY.max(took * CHECKPOINT_SHARE);
        }
        due
    }
}

/// What goes from the decompressor to the builder.
enum Message {
    Stream(Bytes),
    /// All that came before may be made durable with this state.
    Checkpoint(Box<State>),
}

/// What the decompressor's thread ends with.
struct Decoded1 {
    end: Decompressed,
    seek: SeekTableBuilder,
}

/// What the builder's thread ends with.
struct Built {
    layer: BuiltLayer,
    skeleton: Vec<u8>,
    /// The content of a small layer, which is not staged.
    held: Option<Held>,
}

impl FirstPass {
    /// First passes into `store`; indexes are signed with `key`.
    pub fn new(store: Arc<Store>, counters: Arc<Counters>, key: SigningKey) -> Self {
        Self { store, counters, key, ahead: Ahead::new(AHEAD) }
    }

    /// Reads a layer once and gives its key. Dropping the future stops the pass;
    /// another one goes on from the last checkpoint.
    ///
    /// # Errors
    /// [`PassError`].
    pub async fn run(
        &self,
        layer: &LayerDescriptor,
        source: &Arc<dyn ImageSource>,
        work: &Arc<Work>,
    ) -> Result<LayerKey, PassError> {
        let (store, wanted) = (Arc::clone(&self.store), layer.clone());
        let begun = blocking(move || begin(&store, &wanted)).await?;
        let staging = Arc::new(begun.staging);
        let from = begun.decompressor.blob_offset();
        if from > 0 {
            info!(layer = %layer.digest, from, "the first pass goes on");
        }
        let (blob_sender, blob) = mpsc::channel(QUEUE);
        let (stream_sender, stream) = mpsc::channel(QUEUE);
        let (decompressor, seek) = (begun.decompressor, begun.seek);
        let took = Arc::default();
        let due = Due::new(&took);
        let decoding = spawn(move || decode(decompressor, seek, blob, &stream_sender, due));
        let (builder, staged) = (begun.builder, Arc::clone(&staging));
        let building = spawn(move || build(builder, &staged, stream, &took));
        let received = self.receive(layer, source, from, blob_sender, work).await;
        // The threads end by themselves once their queues do. Of several
        // failures the one nearest to the source is the reason.
        let (decoded, built) = (join(decoding).await, join(building).await);
        let finished = match (received, decoded, built) {
            (Err(error), ..) => Err(error),
            (_, Err(StageFailure::Stream(reason)), _) | (.., Err(StageFailure::Stream(reason))) => {
                Err(PassError::Corrupt { layer: layer.digest, reason })
            }
            // A decoder that nobody takes from any more is no reason.
            (_, Err(StageFailure::Other(PassError::Closed)), Err(StageFailure::Other(error)))
            | (_, Err(StageFailure::Other(error)), _)
            | (.., Err(StageFailure::Other(error))) => Err(error),
            (Ok(()), Ok(decoded), Ok(built)) => Ok((decoded, built)),
        };
        let staging = Arc::try_unwrap(staging).map_err(|_| PassError::Closed)?;
        match finished {
            Ok((decoded, built)) => self.finish(layer, staging, decoded, built).await,
            Err(error) => {
                if matches!(error, PassError::Corrupt { .. }) {
                    blocking(move || staging.discard().map_err(store_error)).await?;
                }
                Err(error)
            }
        }
    }

    /// Brings the blob's bytes.
    async fn receive(
        &self,
        layer: &LayerDescriptor,
        source: &Arc<dyn ImageSource>,
        from: u64,
        chunks: mpsc::Sender<Bytes>,
        work: &Work,
    ) -> Result<(), PassError> {
        work.set_done(from);
        let mut requests = 0;
        let seed = u64::from_le_bytes(layer.digest.as_bytes()[..8].try_into().unwrap_or_default());
        let policy = RetryPolicy::default();
        let range = from..layer.size;
        let mut blob = ParallelBlob::new(
            Arc::clone(source),
            layer.digest,
            layer.size,
            range,
            policy,
            seed,
            &self.ahead,
        );
        while let Some(chunk) = blob.next().await? {
            let asked = blob.requests();
            self.counters.registry_requests.add(asked - std::mem::replace(&mut requests, asked));
            if !source.counts() {
                self.counters.bytes_registry.add(chunk.len() as u64);
            }
            work.add(chunk.len() as u64);
            if chunks.send(chunk).await.is_err() {
                // The decoder has found something wrong and says so itself.
                return Ok(());
            }
        }
        Ok(())
    }

    /// Checks what came against what was promised, and takes it into the store.
    async fn finish(
        &self,
        layer: &LayerDescriptor,
        staging: Staging,
        decoded: Decoded1,
        built: Built,
    ) -> Result<LayerKey, PassError> {
        let digest = decoded.end.digest.unwrap_or(built.layer.diff_id);
        if digest != layer.digest {
            warn!(layer = %layer.digest, "the blob has the digest {digest}; nothing of it is kept");
            let reason =
                format!("the blob that came has the digest {digest}; nothing of it was kept");
            blocking(move || staging.discard().map_err(store_error)).await?;
            return Err(PassError::Corrupt { layer: layer.digest, reason });
        }
        let (store, key, layer) = (Arc::clone(&self.store), self.key.clone(), layer.clone());
        let counters = Arc::clone(&self.counters);
        blocking(move || {
            let key = keep(&store, &key, &layer, staging, decoded, built)?;
            counters.first_passes.add(1);
            Ok(key)
        })
        .await
    }
}

struct Begun {
    staging: Staging,
    decompressor: Decompressor,
    seek: SeekTableBuilder,
    builder: LayerBuilder,
}

/// Goes on from what an earlier pass left, or begins.
fn begin(store: &Store, layer: &LayerDescriptor) -> Result<Begun, PassError> {
    let mut staging = store.stage(&layer.digest).map_err(store_error)?;
    match resume(&staging, || new_builder(layer)) {
        Ok(Some((decompressor, seek, builder))) => {
            return Ok(Begun { staging, decompressor, seek, builder });
        }
        Ok(None) => {}
        Err(reason) => {
            warn!(layer = %layer.digest, "the first pass begins anew: {reason}");
            staging.discard().map_err(store_error)?;
            staging = store.stage(&layer.digest).map_err(store_error)?;
        }
    }
    let limits = DecodeLimits::default();
    let decompressor =
        if layer.is_file() { Decompressor::plain(limits) } else { Decompressor::new(limits) };
    Ok(Begun { staging, decompressor, seek: SeekTableBuilder::new(), builder: new_builder(layer) })
}

fn new_builder(layer: &LayerDescriptor) -> LayerBuilder {
    match &layer.path {
        Some(path) => LayerBuilder::raw(path.as_bytes(), layer.size),
        None => LayerBuilder::tar(TreeLimits::default()),
    }
}

/// The decompressor's thread.
fn decode(
    mut decompressor: Decompressor,
    mut seek: SeekTableBuilder,
    mut blob: mpsc::Receiver<Bytes>,
    out: &mpsc::Sender<Message>,
    mut due: Due,
) -> Result<Decoded1, StageFailure> {
    loop {
        let mut chunk = blob.blocking_recv();
        loop {
            let decoded = match &mut chunk {
                Some(chunk) => decompressor.step(chunk)?,
                None => decompressor.end()?,
            };
            let message = match decoded {
                None => break,
                Some(Decoded::Stream(bytes)) => Message::Stream(bytes),
                Some(Decoded::Point(point)) => {
                    seek.push(point);
                    if !due.now() {
                        continue;
                    }
                    let Some(state) = State::of(&decompressor, &seek) else { continue };
                    Message::Checkpoint(Box::new(state))
                }
            };
            // A builder that is gone says why itself.
            if out.blocking_send(message).is_err() {
                return Err(StageFailure::Other(PassError::Closed));
            }
            if decompressor.compression() == Some(crate::layer::seek::Compression::Plain)
                && due.now()
                && let Some(state) = State::of(&decompressor, &seek)
            {
                let _ = out.blocking_send(Message::Checkpoint(Box::new(state)));
            }
        }
        if chunk.is_none() {
            return Ok(Decoded1 { end: decompressor.finish(), seek });
        }
    }
}

/// The builder's thread.
fn build(
    mut builder: LayerBuilder,
    staging: &Staging,
    mut stream: mpsc::Receiver<Message>,
    took: &AtomicU64,
) -> Result<Built, StageFailure> {
    let mut sink = StagingSink::new(staging);
    while let Some(message) = stream.blocking_recv() {
        match message {
            Message::Stream(bytes) => builder.feed(bytes, &mut sink)?,
            Message::Checkpoint(state) => {
                let state = state.encode(&builder);
                let begun = Instant::now();
                match sink.spill().and_then(|()| staging.checkpoint(&state)) {
                    Ok(()) => debug!(layer = %staging.blob(), at = builder.offset(), "checkpoint"),
                    // The pass goes on; only an interruption would cost more.
                    Err(error) => warn!(layer = %staging.blob(), "no checkpoint: {error}"),
                }
                let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                took.store(micros, Ordering::Relaxed);
            }
        }
    }
    let layer = builder.finish(&mut sink)?;
    let held = sink.into_held();
    let skeleton = skeleton(staging, held.as_ref(), &layer)?;
    Ok(Built { layer, skeleton, held })
}

/// The literal bytes are read back from where they were staged.
fn skeleton(
    staging: &Staging,
    held: Option<&Held>,
    layer: &BuiltLayer,
) -> Result<Vec<u8>, StageFailure> {
    let failed = |error: &dyn std::fmt::Display| {
        StageFailure::Other(PassError::Store(format!("skeleton: {error}")))
    };
    let mut writer = SkeletonWriter::new(&layer.layout).map_err(|e| failed(&e))?;
    if let Some(held) = held {
        for literal in &held.literals {
            writer.literal(literal).map_err(|e| failed(&e))?;
        }
        return writer.finish().map_err(|e| failed(&e));
    }
    let (mut offset, mut buffer) = (0, vec![0; 256 << 10]);
    loop {
        let read = staging.read(Stream::Literals, offset, &mut buffer).map_err(|e| failed(&e))?;
        if read == 0 {
            return writer.finish().map_err(|e| failed(&e));
        }
        writer.literal(&buffer[..read]).map_err(|e| failed(&e))?;
        offset += read as u64;
    }
}

/// Signs the root, turns what was staged into objects and makes the layer known.
fn keep(
    store: &Store,
    key: &SigningKey,
    layer: &LayerDescriptor,
    staging: Staging,
    decoded: Decoded1,
    built: Built,
) -> Result<LayerKey, PassError> {
    let Built { layer: made, skeleton, held } = built;
    let Decompressed { compression, blob_length, stream_length, .. } = decoded.end;
    let seek = decoded.seek.finish(compression, blob_length, stream_length).encode();
    let parts: IndexParts = [made.tree, made.blocks, seek, skeleton];
    let [tree, blocks, seek, skeleton] = [0, 1, 2, 3].map(|n: usize| PartRef::of(&parts[n]));
    let body = RootBody {
        blob: layer.digest,
        blob_size: layer.size,
        stream_length,
        diff_id: made.diff_id,
        media_type: layer.media_type.clone(),
        path: layer.path.as_ref().map(|path| path.as_bytes().to_vec()),
        tree,
        blocks,
        seek,
        skeleton,
    };
    let corrupt = |reason: String| PassError::Corrupt { layer: layer.digest, reason };
    let root = LayerRoot::sign(body, key).map_err(|e| corrupt(e.to_string()))?;
    if let Some(held) = held {
        let blocks = numbered(held, &made.objects, &made.files);
        let (key, _) = install(store, &root, parts, IndexOrigin::Own, blocks)?;
        staging.discard().map_err(store_error)?;
        return Ok(key);
    }
    let mut streams = vec![(Stream::Bundle, made.objects[0].clone())];
    for (file, object) in (0..).zip(&made.files) {
        streams.push((stream_of(BuildObject::File(file)), made.objects[*object as usize].clone()));
    }
    streams.retain(|(_, spec)| spec.length() > 0);
    staging.promote(&streams).map_err(store_error)?;
    let (key, _) = install(store, &root, parts, IndexOrigin::Own, Vec::new())?;
    store.sync().map_err(store_error)?;
    staging.discard().map_err(store_error)?;
    Ok(key)
}

/// The blocks with the numbers of their objects and of themselves.
fn numbered(held: Held, objects: &[ObjectSpec], files: &[u32]) -> Vec<(u32, u32, VerifiedBlock)> {
    let blocks = held.blocks.into_iter().filter_map(|(object, offset, block)| {
        let number = match object {
            BuildObject::Bundle => 0,
            BuildObject::File(file) => *files.get(file as usize)?,
        };
        let index = objects.get(number as usize)?.block_at(offset)?;
        Some((number, index, block))
    });
    blocks.collect()
}

/// How a stage's thread fails.
enum StageFailure {
    /// What came is not a layer.
    Stream(String),
    /// Anything else.
    Other(PassError),
}

impl From<DecompressError> for StageFailure {
    fn from(error: DecompressError) -> Self {
        Self::Stream(error.to_string())
    }
}

impl From<BuildError> for StageFailure {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Sink(error) => Self::Other(PassError::Store(error.to_string())),
            error => Self::Stream(error.to_string()),
        }
    }
}

impl From<InstallError> for PassError {
    fn from(error: InstallError) -> Self {
        match error {
            InstallError::Invalid { layer, reason } => Self::Corrupt { layer, reason },
            InstallError::Store(message) => Self::Store(message),
        }
    }
}

fn spawn<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StageFailure> + Send + 'static,
) -> JoinHandle<Result<T, StageFailure>> {
    tokio::task::spawn_blocking(work)
}

async fn join<T>(handle: JoinHandle<Result<T, StageFailure>>) -> Result<T, StageFailure> {
    match handle.await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(StageFailure::Other(PassError::Closed)),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PassError> + Send + 'static,
) -> Result<T, PassError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(PassError::Closed),
    }
}

fn store_error(error: impl Into<StoreFailure>) -> PassError {
    PassError::Store(error.into().0)
}

/// The words of any of the store's errors.
struct StoreFailure(String);

impl From<StageError> for StoreFailure {
    fn from(error: StageError) -> Self {
        Self(error.to_string())
    }
}

impl From<crate::store::SyncError> for StoreFailure {
    fn from(error: crate::store::SyncError) -> Self {
        Self(error.to_string())
    }
}
