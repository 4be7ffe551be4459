//! The engine: fetches blocks that are not here. What it is asked, and how who
//! asks waits; the rest is in `driver`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, oneshot};

use super::account::{Source, Sources};
use super::driver::{Arrived, State, Waiter, keep_time};
use super::index::{LayerIndex, Located, Locator};
use super::local;
use super::relay::Spools;
use super::schedule::{
    BlockKey, Class, Event, Home, InterestId, RUN_BULK, Scheduler, Settings, Wanted,
};
use super::source::{BlockSource, SourceError};
use crate::store::Store;
use crate::telemetry::Counters;
use crate::types::{Digest, ObjectId, PeerId};

/// Groups of blocks of one layer that are wanted at a time: 2 GiB of its stream,
/// so that the nodes of a LAN have much to share out among them.
const GROUPS: usize = 64;
/// Searches of the local store at a time for what is wanted in bulk.
const SEARCHES: usize = 4;
/// Readers say how long they wait; whatever is wanted besides ends after this
/// long without progress.
const NO_PROGRESS: Duration = Duration::from_secs(600);

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
    pub(super) inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) store: Arc<Store>,
    pub(super) locator: Locator,
    pub(super) source: Arc<dyn BlockSource>,
    pub(super) counters: Arc<Counters>,
    pub(super) handle: Handle,
    pub(super) state: Mutex<State>,
    pub(super) started: Instant,
    /// Told when the time at which the scheduler has to be looked at comes nearer.
    pub(super) wake: Arc<Notify>,
    pub(super) spools: Arc<Spools>,
    searches: Semaphore,
    next_interest: AtomicU64,
    /// The last block that came found no room.
    pub(super) full: AtomicBool,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

impl Engine {
    /// An engine of node `me` that stores into `store`, and asks `source` for what
    /// no peer has. At most `connections` runs are in flight there, one of them
    /// kept for readers.
    pub fn new(
        me: PeerId,
        store: Arc<Store>,
        source: Arc<dyn BlockSource>,
        counters: Arc<Counters>,
        connections: usize,
        handle: Handle,
    ) -> Self {
        let settings = Settings {
            registry_runs: connections.max(1),
            no_progress: NO_PROGRESS,
            ..Settings::default()
        };
        let mut seed = [0; 8];
        // It only has to differ between nodes.
        seed.copy_from_slice(&me.0[..8]);
        let scheduler = Scheduler::new(me, settings, u64::from_le_bytes(seed));
        let inner = Inner {
            locator: Locator::new(Arc::clone(&store)),
            spools: Arc::new(Spools::new(store.path())),
            store,
            source,
            counters,
            handle,
            state: Mutex::new(State::new(scheduler)),
            started: Instant::now(),
            wake: Arc::default(),
            searches: Semaphore::new(SEARCHES),
            next_interest: AtomicU64::new(1),
            full: AtomicBool::new(false),
        };
        let inner = Arc::new(inner);
        inner.handle.spawn(keep_time(Arc::downgrade(&inner), Arc::clone(&inner.wake)));
        Self { inner }
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
        let take = |_: u32, index: u32, (data, _): Arrived| {
            here.lock().unwrap_or_else(PoisonError::into_inner).insert(index, data);
        };
        let whom = Asked { class: Class::Urgent, no_progress, data: true };
        self.inner.bring(&located.index, &wanted, whom, &take).await?;
        Ok(here.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches everything that is missing of a layer's content, in the order of
    /// its stream. `told` hears how many bytes are here, and where those came from
    /// that were not.
    ///
    /// # Errors
    /// As [`Engine::fetch`].
    pub async fn complete(
        &self,
        index: &Arc<LayerIndex>,
        no_progress: Duration,
        told: &(dyn Fn(u64, Sources) + Send + Sync),
    ) -> Result<(), FetchError> {
        let inner = &self.inner;
        let (store, layer) = (Arc::clone(&inner.store), Arc::clone(index));
        let missing = blocking(move || Ok(missing(&store, &layer))).await?;
        let lacking: u64 = missing.iter().map(|m| m.len).sum();
        let here = index.content_bytes().saturating_sub(lacking);
        let so_far = Mutex::new((here, Sources::default()));
        told(here, Sources::default());
        let arrived = |number: u32, block: u32, (_, source): Arrived| {
            let len = index.specs()[number as usize].block(block).map_or(0, |b| b.len).into();
            let (here, sources) = {
                let mut so_far = so_far.lock().unwrap_or_else(PoisonError::into_inner);
                so_far.0 += len;
                so_far.1.add(source, len);
                *so_far
            };
            told(here, sources);
        };
        let groups = stream::iter(groups(&missing)).map(Ok::<_, FetchError>);
        let whom = Asked { class: Class::Completion, no_progress, data: false };
        groups
            .try_for_each_concurrent(GROUPS, |group| {
                let (arrived, whom) = (&arrived, whom);
                async move {
                    let left = inner.dedup(index, group, arrived).await?;
                    inner.bring(index, &left, whom, arrived).await
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
            let wanted: Vec<Wanted> =
                missing.iter().map(|block| located.index.wanted(located.number, *block)).collect();
            let mut state = inner.state();
            if !state.streams.contains(&stream) {
                return;
            }
            state.touch(&located.index);
            let wanted = wanted.into_iter();
            let blocks = wanted.filter(|w| !inner.store.has_block(&object, w.key.index)).collect();
            let home = Home::Layer(*located.index.blob());
            let interest = stream_interest(stream);
            inner.tell(&mut state, inner.home(&located.index));
            let want = Event::Want { interest, home, class, deadline: None, blocks };
            inner.tell(&mut state, want);
        };
        self.inner.handle.spawn(work);
    }

    /// Withdraws what was asked for ahead of a stream.
    pub fn close_stream(&self, stream: u64) {
        let mut state = self.inner.state();
        if state.streams.remove(&stream) {
            let interest = stream_interest(stream);
            self.inner.tell(&mut state, Event::Withdraw { interest });
        }
    }

    /// The index of a layer blob, if the store has it.
    ///
    /// # Errors
    /// [`FetchError::Store`] where a part is damaged or the store fails.
    pub async fn layer(&self, blob: Digest) -> Result<Option<Arc<LayerIndex>>, FetchError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let index = inner.locator.layer(&blob)?;
            if let Some(index) = &index {
                inner.note_indexed(index);
            }
            Ok(index)
        })
        .await
    }

    /// As [`Engine::layer`], where waiting for the disk is allowed.
    ///
    /// # Errors
    /// As [`Engine::layer`].
    pub fn layer_now(&self, blob: &Digest) -> Result<Option<Arc<LayerIndex>>, FetchError> {
        self.inner.locator.layer(blob)
    }

    /// What first passes of this node hand on.
    pub fn spools(&self) -> Arc<Spools> {
        Arc::clone(&self.inner.spools)
    }

    /// Forgets the index of a layer that the store has no more.
    pub fn forget_layer(&self, blob: &Digest) {
        self.inner.locator.forget(blob);
    }

    /// Where the content of a layer came from since the node started.
    pub fn sources(&self, blob: &Digest) -> Sources {
        self.inner.state().blobs.get(blob).map(|blob| blob.sources).unwrap_or_default()
    }

    /// Takes no more wants, and fails those that wait.
    pub fn close(&self) {
        self.inner.state().close();
        self.inner.wake.notify_one();
    }
}

/// Streams and requests share the space of interests; streams take the odd ones.
fn stream_interest(stream: u64) -> InterestId {
    stream << 1 | 1
}

/// Somebody waits; the want ends with this.
struct Interest<'a> {
    inner: &'a Arc<Inner>,
    id: InterestId,
    keys: Vec<BlockKey>,
}

impl Drop for Interest<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.state();
        state.forget_waiters(self.id, &self.keys);
        self.inner.tell(&mut state, Event::Withdraw { interest: self.id });
    }
}

impl Inner {
    pub(super) fn interest(&self) -> InterestId {
        self.next_interest.fetch_add(1, Ordering::Relaxed) << 1
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
                        let key = BlockKey { object: located.object, index };
                        let blob = located.index.blob();
                        let event = Event::Found { key };
                        inner.arrived(Some(blob), key, &block, Source::Local, event);
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
        arrived: &(dyn Fn(u32, u32, Arrived) + Send + Sync),
    ) -> Result<Vec<(u32, u32)>, FetchError> {
        let _turn = self.searches.acquire().await.map_err(|_| FetchError::Closed)?;
        let mut left = Vec::new();
        for run in blocks.chunk_by(|a, b| a.0 == b.0) {
            let number = run[0].0;
            let Some(object) = index.object(number) else { continue };
            let located = Located { object, number, index: Arc::clone(index) };
            let blocks = run.iter().map(|(_, block)| *block).collect();
            let (here, missing) = self.look_locally(&located, blocks).await?;
            let here = here.into_iter();
            here.for_each(|(block, data)| arrived(number, block, (data, Source::Local)));
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
        arrived: &(dyn Fn(u32, u32, Arrived) + Send + Sync),
    ) -> Result<(), FetchError> {
        let id = self.interest();
        let wanted = blocks.iter().map(|(number, block)| index.wanted(*number, *block));
        let wanted: Vec<Wanted> = wanted.collect();
        let keys = wanted.iter().map(|w| w.key).collect();
        let (mut waiting, mut here) = (Vec::with_capacity(blocks.len()), Vec::new());
        let _guard = Interest { inner: self, id, keys };
        {
            let mut state = self.state();
            if state.closed {
                return Err(FetchError::Closed);
            }
            let home = Home::Layer(*index.blob());
            let stalled = state.touch(index).stalled.is_some();
            self.tell(&mut state, self.home(index));
            if stalled {
                // A new reader is a reason to try at once what failed before.
                self.tell(&mut state, Event::Retry { home });
            }
            let mut missing = Vec::with_capacity(wanted.len());
            for (wanted, place) in wanted.into_iter().zip(blocks) {
                let key = wanted.key;
                // What is not there now will be told: see `driver`.
                if self.store.has_block(&key.object, key.index) {
                    here.push(*place);
                    continue;
                }
                let (sender, receiver) = oneshot::channel();
                let waiter = Waiter { interest: id, data: asked.data, sender };
                state.waiters.entry(key).or_default().push(waiter);
                waiting.push((*place, receiver));
                missing.push(wanted);
            }
            if !missing.is_empty() {
                let (class, blocks) = (asked.class, missing);
                let want = Event::Want { interest: id, home, class, deadline: None, blocks };
                self.tell(&mut state, want);
            }
        }
        if !asked.data {
            let none = || (Bytes::new(), Source::Local);
            here.into_iter().for_each(|(number, block)| arrived(number, block, none()));
        }
        for ((number, block), receiver) in waiting {
            let data = self.wait(receiver, *index.blob(), asked.no_progress).await?;
            arrived(number, block, data);
        }
        Ok(())
    }

    async fn wait(
        self: &Arc<Self>,
        mut receiver: oneshot::Receiver<Result<Arrived, FetchError>>,
        blob: Digest,
        no_progress: Duration,
    ) -> Result<Arrived, FetchError> {
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
                            self.give_up(&blob);
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
