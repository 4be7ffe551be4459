//! The first pass over a blob whose exact bytes are wanted: hashed, cut into
//! blocks and staged as it comes, and readable at the same time.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::arriving::{Arriving, STREAM};
use super::pieces::Passing;
use super::{PATH, exact_name};
use crate::fetch::build::PassError;
use crate::fetch::install::{IndexParts, InstallError, install};
use crate::fetch::relay::Pieces;
use crate::layer::build::{
    BuildError, BuildObject, BuiltLayer, Expected, LayerBuilder, Replay, Sink, SinkError,
};
use crate::layer::root::{LayerRoot, PartRef, RootBody};
use crate::layer::seek::{Compression, SeekTableBuilder};
use crate::layer::skeleton::SkeletonWriter;
use crate::oci::{ImageSource, ResumingBlob, RetryPolicy};
use crate::store::{IndexOrigin, StageError, Staging, Store};
use crate::telemetry::Counters;
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec, VerifiedBlock};

/// Chunks on their way from the network to the disk.
const QUEUE: usize = 8;
/// Time between two checkpoints: what a crash can cost.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(5);
/// What a checkpoint says: only that the staged bytes are those of such a pass.
const CHECKPOINT: &[u8] = b"exact 1";
/// Bytes read back at a time.
const CHUNK: u64 = 1 << 20;
/// A pass that was given up may take a moment to let go of its files.
const BUSY_TRIES: u32 = 200;
const BUSY_PAUSE: Duration = Duration::from_millis(25);

/// Brings exact blobs into the store.
pub struct ExactPass {
    store: Arc<Store>,
    counters: Arc<Counters>,
    key: SigningKey,
}

impl ExactPass {
    /// Passes into `store`; indexes are signed with `key`.
    pub fn new(store: Arc<Store>, counters: Arc<Counters>, key: SigningKey) -> Self {
        Self { store, counters, key }
    }

    /// What a pass that `arriving` shows can hand on.
    pub fn pieces(&self, arriving: &Arc<Arriving>) -> Arc<dyn Pieces> {
        Arc::new(Passing { arriving: Arc::clone(arriving), store: Arc::clone(&self.store) })
    }

    /// Reads the blob once from `source`; `arriving` shows what has come. When this
    /// is over the blob is an object of the store, verified, or nothing of it is
    /// kept. Dropping the future stops the pass; another one goes on from there.
    ///
    /// # Errors
    /// [`PassError`].
    pub async fn run(
        &self,
        blob: &Digest,
        source: &Arc<dyn ImageSource>,
        arriving: &Arc<Arriving>,
    ) -> Result<(), PassError> {
        let size = arriving.size();
        let (builder, from) = self.begin(blob, arriving).await?;
        if from > 0 {
            info!(%blob, from, "the pass over a blob goes on");
        }
        let (sender, chunks) = mpsc::channel(QUEUE);
        let shown = Arc::clone(arriving);
        let building = tokio::task::spawn_blocking(move || build(builder, &shown, chunks));
        let received = self.receive(blob, source, from..size, arriving, sender).await;
        let built = match building.await {
            Ok(built) => built,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => return Err(PassError::Closed),
        };
        // A source that breaks off leaves what came for the next attempt.
        received?;
        let built = built.map_err(|error| match error {
            BuildError::Sink(error) => PassError::Store(error.to_string()),
            error => PassError::Corrupt { layer: *blob, reason: error.to_string() },
        })?;
        let (store, key, blob) = (Arc::clone(&self.store), self.key.clone(), *blob);
        let shown = Arc::clone(arriving);
        let end = move || {
            let ended = shown.end(|staging| {
                let object = keep(&store, &key, &blob, staging, built)?;
                if let Some(object) = object {
                    shown.became(object);
                }
                Ok::<_, PassError>(())
            });
            ended.unwrap_or(Err(PassError::Closed))
        };
        tokio::task::spawn_blocking(end).await.map_err(|_| PassError::Closed)?
    }

    /// Opens the staging area, and reads back what an earlier pass left there.
    async fn begin(
        &self,
        blob: &Digest,
        arriving: &Arc<Arriving>,
    ) -> Result<(LayerBuilder, u64), PassError> {
        for _ in 0..BUSY_TRIES {
            let (store, blob, arriving) = (Arc::clone(&self.store), *blob, Arc::clone(arriving));
            let begun = tokio::task::spawn_blocking(move || begin(&store, &blob, &arriving));
            match begun.await.map_err(|_| PassError::Closed)? {
                Err(StageError::Busy(_)) => tokio::time::sleep(BUSY_PAUSE).await,
                begun => return begun.map_err(|e| PassError::Store(e.to_string())),
            }
        }
        Err(PassError::Store("an earlier pass over the blob does not end".into()))
    }

    async fn receive(
        &self,
        blob: &Digest,
        source: &Arc<dyn ImageSource>,
        range: std::ops::Range<u64>,
        arriving: &Arriving,
        chunks: mpsc::Sender<Bytes>,
    ) -> Result<(), PassError> {
        self.counters.registry_requests.add(1);
        let seed = u64::from_le_bytes(blob.as_bytes()[..8].try_into().unwrap_or_default());
        let (policy, size) = (RetryPolicy::default(), arriving.size());
        let mut bytes = ResumingBlob::new(Arc::clone(source), *blob, size, range, policy, seed);
        while let Some(chunk) = bytes.next().await? {
            if !source.counts() {
                self.counters.bytes_registry.add(chunk.len() as u64);
            }
            // In the queue first: the tail is bounded by what the queue takes.
            let Ok(place) = chunks.reserve().await else { return Ok(()) };
            arriving.push(chunk.clone());
            place.send(chunk);
        }
        Ok(())
    }
}

/// A builder that has seen what is staged, and how much that is.
fn begin(
    store: &Store,
    blob: &Digest,
    arriving: &Arriving,
) -> Result<(LayerBuilder, u64), StageError> {
    let (name, size) = (exact_name(blob), arriving.size());
    let fresh = || LayerBuilder::raw(PATH.as_bytes(), size);
    let staging = store.stage(&name)?;
    let staged = staging.len(STREAM);
    if staged == 0 && staging.resumed().is_none() {
        // Somebody waits for the first byte.
        arriving.begin(staging, 0);
        return Ok((fresh(), 0));
    }
    let resumes = staging.resumed().is_some_and(|resumed| resumed.state == CHECKPOINT);
    if resumes && staged > 0 && staged <= size {
        match replay(&staging, fresh(), staged) {
            Ok(builder) => {
                arriving.begin(staging, staged);
                return Ok((builder, staged));
            }
            Err(reason) => warn!(%blob, "the pass begins anew: {reason}"),
        }
    }
    staging.discard()?;
    arriving.begin(store.stage(&name)?, 0);
    Ok((fresh(), 0))
}

fn replay(staging: &Staging, builder: LayerBuilder, staged: u64) -> Result<LayerBuilder, String> {
    let mut replay = Replay::new(builder, staged);
    while let Some(Expected::Content { offset, len, .. }) = replay.wants() {
        let mut bytes = vec![0; len.min(CHUNK) as usize];
        let read = staging.read(STREAM, offset, &mut bytes).map_err(|e| e.to_string())?;
        if read == 0 {
            return Err("what was staged is shorter than was said".into());
        }
        bytes.truncate(read);
        replay.supply(bytes.into()).map_err(|e| e.to_string())?;
    }
    Ok(replay.into_builder())
}

/// The builder's thread.
fn build(
    mut builder: LayerBuilder,
    arriving: &Arriving,
    mut chunks: mpsc::Receiver<Bytes>,
) -> Result<BuiltLayer, BuildError> {
    let mut sink = StagedBlocks(arriving);
    let mut due = Instant::now() + CHECKPOINT_EVERY;
    while let Some(chunk) = chunks.blocking_recv() {
        builder.feed(chunk, &mut sink)?;
        if Instant::now() >= due {
            checkpoint(arriving);
            due = Instant::now() + CHECKPOINT_EVERY;
        }
    }
    if builder.offset() < arriving.size() {
        // Whoever comes next goes on from here.
        checkpoint(arriving);
    }
    builder.finish(&mut sink)
}

fn checkpoint(arriving: &Arriving) {
    match arriving.with(|staging| staging.checkpoint(CHECKPOINT)) {
        Some(Err(error)) => warn!("no checkpoint of a blob's pass: {error}"),
        Some(Ok(())) => debug!(size = arriving.size(), "checkpoint of a blob's pass"),
        None => {}
    }
}

struct StagedBlocks<'a>(&'a Arriving);

impl Sink for StagedBlocks<'_> {
    fn block(
        &mut self,
        object: BuildObject,
        offset: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError> {
        if object != BuildObject::File(0) {
            return Ok(());
        }
        let put = self.0.with(|staging| staging.put(STREAM, offset, &block));
        put.unwrap_or(Ok(()))?;
        self.0.staged(offset + block.data().len() as u64);
        Ok(())
    }

    fn literal(&mut self, _: &Bytes) -> Result<(), SinkError> {
        Ok(())
    }

    fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Turns what was staged into an object and its index into a layer's, if it is
/// what its digest says; else nothing of it is kept.
fn keep(
    store: &Store,
    key: &SigningKey,
    blob: &Digest,
    staging: Staging,
    made: BuiltLayer,
) -> Result<Option<ObjectId>, PassError> {
    let failed = |error: &dyn std::fmt::Display| PassError::Store(error.to_string());
    let corrupt = |reason: String| PassError::Corrupt { layer: *blob, reason };
    if made.diff_id != *blob {
        let reason =
            format!("the blob that came has the digest {}; nothing of it was kept", made.diff_id);
        staging.discard().map_err(|e| failed(&e))?;
        return Err(corrupt(reason));
    }
    let length = made.stream_length;
    let seek = SeekTableBuilder::new().finish(Compression::Plain, length, length).encode();
    let skeleton = SkeletonWriter::new(&made.layout).and_then(SkeletonWriter::finish);
    let skeleton = skeleton.map_err(|e| failed(&e))?;
    let parts: IndexParts = [made.tree, made.blocks, seek, skeleton];
    let [tree, blocks, seek, skeleton] = [0, 1, 2, 3].map(|n: usize| PartRef::of(&parts[n]));
    let body = RootBody {
        blob: exact_name(blob),
        blob_size: length,
        stream_length: length,
        diff_id: *blob,
        media_type: "application/octet-stream".to_owned(),
        path: Some(PATH.as_bytes().to_vec()),
        tree,
        blocks,
        seek,
        skeleton,
    };
    let root = LayerRoot::sign(body, key).map_err(|e| corrupt(e.to_string()))?;
    let content = made.files.first().and_then(|n| made.objects.get(*n as usize));
    let mut object = None;
    if let Some(spec) = content.filter(|spec| spec.length() > 0) {
        let promoted = staging.promote(&[(STREAM, spec.clone())]).map_err(|e| failed(&e))?;
        object = promoted.first().copied();
        store.note_used(&spec.id(), unix_time());
    }
    install(store, &root, parts, IndexOrigin::Own, Vec::new()).map_err(|error| match error {
        InstallError::Invalid { reason, .. } => corrupt(reason),
        InstallError::Store(message) => PassError::Store(message),
    })?;
    store.sync().map_err(|e| failed(&e))?;
    staging.discard().map_err(|e| failed(&e))?;
    Ok(object)
}

fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
