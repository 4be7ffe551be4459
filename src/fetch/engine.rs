//! The driver: owns the want queue, starts runs, hands blocks to who waits.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tracing::{debug, warn};

use super::index::{LayerIndex, Located, Locator};
use super::local;
use super::queue::{Added, BlockKey, Class, InterestId, Limits, RUN_BULK, Run, RunId, WantQueue};
use super::source::{BlockSink, BlockSource, SourceError};
use crate::store::Store;
use crate::telemetry::Counters;
use crate::types::{Digest, ObjectId, VerifiedBlock};

/// First pause after a blob's sources failed; doubles up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(200);
/// Longest such pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Why blocks were not fetched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FetchError {
    /// Nothing came for this long.
    #[error("no progress from any source for {0:?}")]
    NoProgress(Duration),
    /// Nobody is known to have the object.
    #[error("object {0} is in no layer that this node knows")]
    Homeless(ObjectId),
    /// The local store failed.
    #[error("local store: {0}")]
    Store(String),
    /// Every source refused, or gave wrong bytes.
    #[error("{0}")]
    Source(SourceError),
    /// The engine is closed.
    #[error("the engine is closed")]
    Closed,
}

/// How blocks are asked for.
#[derive(Clone, Copy)]
struct Asked {
    class: Class,
    no_progress: Duration,
    /// Whether the bytes are wanted too, or only to be in the store.
    data: bool,
}

struct Waiter {
    data: bool,
    sender: oneshot::Sender<Result<Bytes, FetchError>>,
}

/// A block that is not here, and where its bytes begin in the layer's stream.
struct Missing {
    number: u32,
    index: u32,
    len: u64,
    stream: u64,
}

/// All blocks of a layer that are not here, in the order of its stream.
fn missing(store: &Store, layer: &LayerIndex) -> Vec<Missing> {
    let mut missing = Vec::new();
    for ((object, spec), number) in layer.objects().iter().zip(layer.specs()).zip(0..) {
        for index in store.missing(object, 0..spec.block_count()) {
            let len = spec.block(index).map_or(0, |b| b.len).into();
            let stream = layer.place(number, index).stream.start;
            missing.push(Missing { number, index, len, stream });
        }
    }
    missing.sort_unstable_by_key(|m| m.stream);
    missing
}

/// Cuts blocks in stream order into groups that one run can bring.
fn groups(missing: &[Missing]) -> Vec<Vec<(u32, u32)>> {
    let mut groups: Vec<Vec<(u32, u32)>> = Vec::new();
    let mut start = 0;
    for block in missing {
        match groups.last_mut() {
            Some(group) if block.stream - start < RUN_BULK / 2 => {
                group.push((block.number, block.index));
            }
            _ => {
                start = block.stream;
                groups.push(vec![(block.number, block.index)]);
            }
        }
    }
    groups
}

/// Fetches blocks that are not here.
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<Store>,
    locator: Locator,
    source: Arc<dyn BlockSource>,
    counters: Arc<Counters>,
    limits: Limits,
    handle: Handle,
    state: Mutex<State>,
    next_interest: AtomicU64,
}

#[derive(Default)]
struct State {
    queue: WantQueue<Waiter>,
    /// Of the blobs that are or were asked for; bounded by the layers in use.
    blobs: HashMap<Digest, BlobState>,
    /// Streams with readahead.
    streams: HashSet<u64>,
    closed: bool,
}

struct BlobState {
    index: Arc<LayerIndex>,
    failures: u32,
    not_before: Option<Instant>,
    last_progress: Instant,
    /// When a read last gave up, if nothing has come since.
    stalled: Option<Instant>,
    /// Told when a read gives up: what is in flight is stuck.
    stuck: Arc<Notify>,
}

impl Engine {
    /// An engine that stores into `store` and asks `source`. At most
    /// `connections` runs are in flight, one of them kept for urgent ones.
    pub fn new(
        store: Arc<Store>,
        source: Arc<dyn BlockSource>,
        counters: Arc<Counters>,
        connections: usize,
        handle: Handle,
    ) -> Self {
        let inner = Inner {
            locator: Locator::new(Arc::clone(&store)),
            store,
            source,
            counters,
            limits: Limits { runs: connections, bulk: connections.saturating_sub(1).max(1) },
            handle,
            state: Mutex::default(),
            next_interest: AtomicU64::new(1),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Fetches blocks of an object as urgent and gives their bytes by number.
    /// Dropping the future withdraws the want.
    ///
    /// # Errors
    /// [`FetchError::NoProgress`] after `no_progress` without a byte for the
    /// object's layer; others as soon as they are certain.
    pub async fn fetch(
        &self,
        object: ObjectId,
        blocks: Vec<u32>,
        no_progress: Duration,
    ) -> Result<HashMap<u32, Bytes>, FetchError> {
        if blocks.is_empty() {
            return Ok(HashMap::new());
        }
        let located = self.inner.locate(object).await?;
        let (here, missing) = self.inner.look_locally(&located, blocks).await?;
        let here = Mutex::new(here);
        let wanted: Vec<_> = missing.into_iter().map(|index| (located.number, index)).collect();
        let take = |_: u32, index: u32, data: Bytes| {
            here.lock().unwrap_or_else(PoisonError::into_inner).insert(index, data);
        };
        let whom = Asked { class: Class::Urgent, no_progress, data: true };
        self.inner.bring(&located.index, &wanted, whom, &take).await?;
        Ok(here.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches everything that is missing of a layer's content, in the order of
    /// its stream. `told` hears how many bytes are here.
    ///
    /// # Errors
    /// As [`Engine::fetch`].
    pub async fn complete(
        &self,
        index: &Arc<LayerIndex>,
        no_progress: Duration,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), FetchError> {
        let inner = &self.inner;
        let (store, layer) = (Arc::clone(&inner.store), Arc::clone(index));
        let missing = blocking(move || Ok(missing(&store, &layer))).await?;
        let lacking: u64 = missing.iter().map(|m| m.len).sum();
        let here = AtomicU64::new(index.content_bytes().saturating_sub(lacking));
        told(here.load(Ordering::Relaxed));
        let groups = stream::iter(groups(&missing)).map(Ok::<_, FetchError>);
        let whom = Asked { class: Class::Background, no_progress, data: false };
        groups
            .try_for_each_concurrent(inner.limits.bulk, |group| {
                let (here, whom) = (&here, whom);
                async move {
                    let arrived = |number: u32, block: u32, _: Bytes| {
                        let len = index.specs()[number as usize].block(block).map_or(0, |b| b.len);
                        told(here.fetch_add(len.into(), Ordering::Relaxed) + u64::from(len));
                    };
                    let left = inner.dedup(index, group, &arrived).await?;
                    inner.bring(index, &left, whom, &arrived).await
                }
            })
            .await
    }

    /// Asks for blocks ahead of a stream, until [`Engine::close_stream`].
    /// Nothing is asked for where the queue is full.
    pub fn prefetch(&self, stream: u64, object: ObjectId, blocks: Vec<u32>, class: Class) {
        let inner = Arc::clone(&self.inner);
        inner.state().streams.insert(stream);
        let work = async move {
            let Ok(located) = inner.locate(object).await else { return };
            let Ok((_, missing)) = inner.look_locally(&located, blocks).await else { return };
            {
                let mut state = inner.state();
                if state.closed || !state.streams.contains(&stream) {
                    return;
                }
                state.touch(&located.index);
                for index in missing {
                    if inner.store.has_block(&object, index) {
                        continue;
                    }
                    let place = located.index.place(located.number, index);
                    let key = BlockKey { object, index };
                    if state.queue.add(key, place, class, stream_interest(stream), None)
                        == Added::Full
                    {
                        break;
                    }
                }
            }
            inner.pump();
        };
        self.inner.handle.spawn(work);
    }

    /// Withdraws what was asked for ahead of a stream.
    pub fn close_stream(&self, stream: u64) {
        let mut state = self.inner.state();
        if state.streams.remove(&stream) {
            state.queue.withdraw(stream_interest(stream));
        }
    }

    /// The index of a layer blob, if the store has it.
    ///
    /// # Errors
    /// [`FetchError::Store`] where a part is damaged or the store fails.
    pub async fn layer(&self, blob: Digest) -> Result<Option<Arc<LayerIndex>>, FetchError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.locator.layer(&blob)).await
    }

    /// As [`Engine::layer`], where waiting for the disk is allowed.
    ///
    /// # Errors
    /// As [`Engine::layer`].
    pub fn layer_now(&self, blob: &Digest) -> Result<Option<Arc<LayerIndex>>, FetchError> {
        self.inner.locator.layer(blob)
    }

    /// Takes no more wants, and fails those that wait.
    pub fn close(&self) {
        let mut state = self.inner.state();
        state.closed = true;
        // Dropping the senders tells the waiters.
        state.queue = WantQueue::default();
    }
}

/// Streams and requests share the space of interests; streams take the odd ones.
fn stream_interest(stream: u64) -> InterestId {
    stream << 1 | 1
}

struct Interest<'a> {
    inner: &'a Inner,
    id: InterestId,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        self.inner.state().queue.withdraw(self.id);
    }
}

impl Inner {
    fn interest(&self) -> InterestId {
        self.next_interest.fetch_add(1, Ordering::Relaxed) << 1
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the queue is half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn locate(self: &Arc<Self>, object: ObjectId) -> Result<Located, FetchError> {
        if let Some(located) = self.locator.cached(&object) {
            return Ok(located);
        }
        let inner = Arc::clone(self);
        blocking(move || inner.locator.locate(&object)).await?.ok_or(FetchError::Homeless(object))
    }

    /// Takes what other objects of the store have already.
    async fn look_locally(
        self: &Arc<Self>,
        located: &Located,
        blocks: Vec<u32>,
    ) -> Result<(HashMap<u32, Bytes>, Vec<u32>), FetchError> {
        let inner = Arc::clone(self);
        let located = located.clone();
        blocking(move || {
            let (mut here, mut missing) = (HashMap::new(), Vec::new());
            for index in blocks {
                match local::find(&inner.store, &located, index) {
                    Some(block) => {
                        inner.counters.bytes_dedup.add(block.data().len() as u64);
                        inner.keep(located.object, index, &block);
                        inner.deliver(BlockKey { object: located.object, index }, block.data());
                        here.insert(index, block.data().clone());
                    }
                    None => missing.push(index),
                }
            }
            Ok((here, missing))
        })
        .await
    }

    /// As [`Inner::look_locally`], over blocks of several objects; gives what
    /// is still missing.
    async fn dedup(
        self: &Arc<Self>,
        index: &Arc<LayerIndex>,
        blocks: Vec<(u32, u32)>,
        arrived: &(dyn Fn(u32, u32, Bytes) + Send + Sync),
    ) -> Result<Vec<(u32, u32)>, FetchError> {
        let mut left = Vec::new();
        for run in blocks.chunk_by(|a, b| a.0 == b.0) {
            let number = run[0].0;
            let Some(object) = index.object(number) else { continue };
            let located = Located { object, number, index: Arc::clone(index) };
            let blocks = run.iter().map(|(_, block)| *block).collect();
            let (here, missing) = self.look_locally(&located, blocks).await?;
            here.into_iter().for_each(|(block, data)| arrived(number, block, data));
            left.extend(missing.into_iter().map(|block| (number, block)));
        }
        Ok(left)
    }

    /// Wants blocks (object number, block number) of a layer and waits until
    /// each has come. What has come to the store meanwhile is not among what
    /// arrives with its bytes.
    async fn bring(
        self: &Arc<Self>,
        index: &Arc<LayerIndex>,
        blocks: &[(u32, u32)],
        asked: Asked,
        arrived: &(dyn Fn(u32, u32, Bytes) + Send + Sync),
    ) -> Result<(), FetchError> {
        let interest = self.interest();
        let _guard = Interest { inner: self, id: interest };
        let (mut waiting, mut here) = (Vec::with_capacity(blocks.len()), Vec::new());
        {
            let mut state = self.state();
            if state.closed {
                return Err(FetchError::Closed);
            }
            state.touch(index);
            // A new reader is a reason to try at once what failed before.
            if let Some(blob) = state.blobs.get_mut(index.blob())
                && blob.stalled.is_some()
            {
                blob.not_before = None;
            }
            for (number, block) in blocks {
                let Some(object) = index.object(*number) else { continue };
                // A block is stored before it is delivered, and delivered under this
                // lock: what is not there now will be told.
                if self.store.has_block(&object, *block) {
                    here.push((*number, *block));
                    continue;
                }
                let (sender, receiver) = oneshot::channel();
                let key = BlockKey { object, index: *block };
                let place = index.place(*number, *block);
                let waiter = Waiter { data: asked.data, sender };
                match state.queue.add(key, place, asked.class, interest, Some(waiter)) {
                    Added::Full => {
                        return Err(FetchError::Store("too much is wanted at once".into()));
                    }
                    Added::New | Added::Joined => waiting.push((*number, *block, receiver)),
                }
            }
        }
        self.pump();
        if !asked.data {
            here.into_iter().for_each(|(number, block)| arrived(number, block, Bytes::new()));
        }
        for (number, block, receiver) in waiting {
            let data = self.wait(receiver, *index.blob(), asked.no_progress).await?;
            arrived(number, block, data);
        }
        Ok(())
    }

    /// Stores a block. A full disk is no reason to fail the reader.
    fn keep(&self, object: ObjectId, index: u32, block: &VerifiedBlock) {
        if let Err(error) = self.store.put_block(&object, index, block) {
            warn!(%object, index, "block not kept: {error}");
        }
    }

    fn deliver(&self, key: BlockKey, data: &Bytes) {
        let waiters = self.state().queue.delivered(&key);
        for waiter in waiters {
            let data = if waiter.data { data.clone() } else { Bytes::new() };
            let _ = waiter.sender.send(Ok(data));
        }
    }

    async fn wait(
        &self,
        mut receiver: oneshot::Receiver<Result<Bytes, FetchError>>,
        blob: Digest,
        no_progress: Duration,
    ) -> Result<Bytes, FetchError> {
        let no_progress = self.patience(&blob, no_progress);
        let mut deadline = tokio::time::Instant::now() + no_progress;
        loop {
            tokio::select! {
                answer = &mut receiver => return answer.unwrap_or(Err(FetchError::Closed)),
                () = tokio::time::sleep_until(deadline) => {
                    let last = self.state().blobs.get(&blob).map(|b| b.last_progress);
                    match last.map(|last| tokio::time::Instant::from_std(last + no_progress)) {
                        Some(later) if later > tokio::time::Instant::now() => deadline = later,
                        _ => {
                            if let Some(blob) = self.state().blobs.get_mut(&blob) {
                                blob.stalled = Some(Instant::now());
                                blob.stuck.notify_waiters();
                            }
                            return Err(FetchError::NoProgress(no_progress));
                        }
                    }
                }
            }
        }
    }

    /// How long a read waits without progress: less, if another one has just
    /// waited in vain. The kernel tries a failed read again at once.
    fn patience(&self, blob: &Digest, no_progress: Duration) -> Duration {
        let stalled = self.state().blobs.get(blob).and_then(|blob| blob.stalled);
        match stalled {
            Some(at) if at.elapsed() < no_progress => no_progress / 2,
            _ => no_progress,
        }
    }

    /// Starts as many runs as the limits allow.
    fn pump(self: &Arc<Self>) {
        loop {
            let (run, index, stuck) = {
                let mut guard = self.state();
                let state = &mut *guard;
                let (now, blobs) = (Instant::now(), &state.blobs);
                let ready = |blob: &Digest| {
                    blobs.get(blob).is_some_and(|b| b.not_before.is_none_or(|at| at <= now))
                };
                let whole = |blob: &Digest| {
                    blobs.get(blob).is_some_and(|b| self.source.is_sequential(&b.index))
                };
                let Some(run) = state.queue.next(self.limits, ready, whole) else { return };
                let Some(blob) = state.blobs.get(&run.blob) else { return };
                (run, Arc::clone(&blob.index), Arc::clone(&blob.stuck))
            };
            self.handle.spawn(Arc::clone(self).run(run, index, stuck));
        }
    }

    async fn run(self: Arc<Self>, run: Run, index: Arc<LayerIndex>, stuck: Arc<Notify>) {
        debug!(blob = %run.blob, stream = ?run.stream, class = ?run.class, "run");
        let whole = self.source.is_sequential(&index);
        let sink = Arc::new(RunSink {
            inner: Arc::clone(&self),
            index: Arc::clone(&index),
            run: run.id,
            whole,
        });
        let result = tokio::select! {
            result = self.source.fetch(index, run.stream, sink) => result,
            () = stuck.notified() => Err(SourceError::Transient("nothing comes any more".into())),
        };
        let mut failed = Vec::new();
        let mut retry = None;
        {
            let mut state = self.state();
            let transient = result.as_ref().is_err_and(SourceError::is_transient);
            failed.extend(state.queue.finished(run.id, result.is_err() && !transient));
            if let Some(blob) = state.blobs.get_mut(&run.blob) {
                blob.failures = if transient { blob.failures + 1 } else { 0 };
                let pause = BACKOFF_MIN.saturating_mul(1 << blob.failures.min(10)).min(BACKOFF_MAX);
                blob.not_before = transient.then(|| Instant::now() + pause);
                retry = blob.not_before.map(|_| pause);
            }
        }
        if let Err(error) = &result {
            self.counters.registry_failures.add(1);
            warn!(blob = %run.blob, "fetch: {error}");
            for waiter in failed {
                let _ = waiter.sender.send(Err(FetchError::Source(error.clone())));
            }
        }
        if let Some(pause) = retry {
            let inner = Arc::clone(&self);
            self.handle.spawn(async move {
                tokio::time::sleep(pause).await;
                inner.pump();
            });
        }
        self.pump();
    }
}

impl State {
    fn touch(&mut self, index: &Arc<LayerIndex>) {
        self.blobs.entry(*index.blob()).or_insert_with(|| BlobState {
            index: Arc::clone(index),
            failures: 0,
            not_before: None,
            last_progress: Instant::now(),
            stalled: None,
            stuck: Arc::default(),
        });
    }
}

struct RunSink {
    inner: Arc<Inner>,
    index: Arc<LayerIndex>,
    run: RunId,
    whole: bool,
}

impl BlockSink for RunSink {
    fn needs(&self, object: u32, index: u32) -> bool {
        let Some(object) = self.index.object(object) else { return false };
        !self.inner.store.has_block(&object, index)
            || self.inner.state().queue.is_awaited(&BlockKey { object, index })
    }

    fn block(&self, object: u32, index: u32, block: VerifiedBlock) {
        let Some(object) = self.index.object(object) else { return };
        self.inner.keep(object, index, &block);
        self.inner.deliver(BlockKey { object, index }, block.data());
    }

    fn progress(&self, position: u64) -> ControlFlow<()> {
        let mut state = self.inner.state();
        state.queue.progress(self.run, position);
        if let Some(blob) = state.blobs.get_mut(self.index.blob()) {
            blob.last_progress = Instant::now();
            blob.stalled = None;
        }
        // What can only be read from its start is read to its end once begun.
        if state.closed || (!self.whole && !state.queue.is_wanted(self.run)) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Runs what may wait for the disk where it may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FetchError> + Send + 'static,
) -> Result<T, FetchError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(FetchError::Closed),
    }
}
