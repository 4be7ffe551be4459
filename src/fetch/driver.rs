//! The shell around the scheduler: gives it events and the time, does what it
//! says, and hands blocks to who waits.
//!
//! There is one scheduler, behind one lock. Nothing that waits happens under it:
//! actions start tasks or fill queues. A block is stored before it is delivered,
//! and delivered under the lock: who looked into the store under the lock and did
//! not find it will be told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::account::{Source, Sources};
use super::engine::{FetchError, Inner};
use super::index::LayerIndex;
use super::peers::Net;
use super::schedule::{
    Action, BlockKey, Event, Failure, Home, InterestId, Refusal, RequestId, Scheduler, Time,
};
use super::source::{BlockSink, SourceError};
use crate::store::PutError;
use crate::types::{Digest, VerifiedBlock};

/// A run that nobody wants any more and that brings bytes stops by itself, so
/// that its decoder can be kept; one that brings none is dropped after this long.
const GRACE: Duration = Duration::from_secs(1);

/// Bytes, and where they came from.
pub(super) type Arrived = (Bytes, Source);

/// Somebody who waits for a block.
pub(super) struct Waiter {
    pub(super) interest: InterestId,
    /// Whether the bytes are wanted too, or only to be in the store.
    pub(super) data: bool,
    pub(super) sender: oneshot::Sender<Result<Arrived, FetchError>>,
}

/// What the lock is around.
pub(super) struct State {
    pub(super) scheduler: Scheduler,
    pub(super) waiters: HashMap<BlockKey, Vec<Waiter>>,
    /// Of the blobs that are or were asked for; bounded by the layers in use.
    pub(super) blobs: HashMap<Digest, BlobState>,
    /// Streams with readahead.
    pub(super) streams: HashSet<u64>,
    runs: HashMap<RequestId, RunState>,
    /// The swarm, if the node takes part in one.
    pub(super) net: Option<Net>,
    /// When the timer's task will come by.
    armed: Option<Time>,
    pub(super) closed: bool,
}

/// A layer that is or was asked for.
pub(super) struct BlobState {
    pub(super) index: Arc<LayerIndex>,
    pub(super) last_progress: Instant,
    /// When a read last gave up, if nothing has come since.
    pub(super) stalled: Option<Instant>,
    /// Why the registry gave nothing, the last time.
    last_error: Option<SourceError>,
    pub(super) sources: Sources,
}

/// A run at the registry.
struct RunState {
    blob: Digest,
    stop: CancellationToken,
}

impl State {
    pub(super) fn new(scheduler: Scheduler) -> Self {
        Self {
            scheduler,
            waiters: HashMap::new(),
            blobs: HashMap::new(),
            streams: HashSet::new(),
            runs: HashMap::new(),
            net: None,
            armed: None,
            closed: false,
        }
    }

    /// Takes out all who wait for a block on behalf of `interest`.
    pub(super) fn forget_waiters(&mut self, interest: InterestId, keys: &[BlockKey]) {
        for key in keys {
            if let Some(waiters) = self.waiters.get_mut(key) {
                waiters.retain(|waiter| waiter.interest != interest);
                if waiters.is_empty() {
                    self.waiters.remove(key);
                }
            }
        }
    }

    /// Ends everything: who waits is told by the senders' end.
    pub(super) fn close(&mut self) {
        self.closed = true;
        self.waiters.clear();
        self.runs.values().for_each(|run| run.stop.cancel());
        if let Some(net) = &self.net {
            net.close();
        }
    }
}

impl Inner {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs while the tables are half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn now(&self) -> Time {
        self.started.elapsed()
    }

    /// Tells the scheduler what happened, and does what it says.
    pub(super) fn tell(self: &Arc<Self>, state: &mut State, event: Event) {
        if state.closed {
            return;
        }
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in state.scheduler.apply(self.now(), event) {
                events.extend(self.act(state, action));
            }
        }
        let next = state.scheduler.next_wake();
        if next.is_some_and(|next| state.armed.is_none_or(|armed| next < armed)) {
            state.armed = next;
            self.wake.notify_one();
        }
    }

    /// Does one thing; gives what has happened at once, if anything has.
    fn act(self: &Arc<Self>, state: &mut State, action: Action) -> Option<Event> {
        match action {
            Action::Run { request, home: Home::Layer(blob), stream, class, .. } => {
                let Some(entry) = state.blobs.get(&blob) else {
                    return Some(Event::Refused { request, why: Refusal::Never });
                };
                debug!(%blob, ?stream, ?class, "run");
                let stop = CancellationToken::new();
                state.runs.insert(request, RunState { blob, stop: stop.clone() });
                let index = Arc::clone(&entry.index);
                self.handle.spawn(Arc::clone(self).run(request, index, stream, stop));
                None
            }
            Action::Run { request, .. } => Some(Event::Refused { request, why: Refusal::Never }),
            Action::Cancel { request } if state.runs.contains_key(&request) => {
                state.runs.remove(&request)?.stop.cancel();
                None
            }
            Action::Failed { key, why } => {
                state.fail(&key, why);
                None
            }
            action => self.act_on_peers(state, action),
        }
    }

    /// A block is here, verified: it is stored, and told to the scheduler and to
    /// all who wait for it.
    pub(super) fn arrived(
        self: &Arc<Self>,
        blob: Option<&Digest>,
        key: BlockKey,
        block: &VerifiedBlock,
        source: Source,
        event: Event,
    ) {
        let len = block.data().len() as u64;
        let fresh = !self.store.has_block(&key.object, key.index);
        if fresh {
            self.keep(key, block);
        }
        let waiters = {
            let mut state = self.state();
            let waiters = state.waiters.remove(&key);
            self.tell(&mut state, event);
            if fresh {
                self.note_held(&mut state, &key);
            }
            if let Some(blob) = blob.and_then(|blob| state.blobs.get_mut(blob)) {
                blob.last_progress = Instant::now();
                blob.stalled = None;
                if fresh || waiters.is_some() {
                    blob.sources.add(source, len);
                } else {
                    blob.sources.wasted += len;
                }
            }
            waiters
        };
        self.count(source, len, fresh || waiters.is_some());
        for waiter in waiters.into_iter().flatten() {
            let data = if waiter.data { block.data().clone() } else { Bytes::new() };
            let _ = waiter.sender.send(Ok((data, source)));
        }
    }

    fn count(&self, source: Source, len: u64, wanted: bool) {
        let counters = &self.counters;
        let counter = match source {
            _ if !wanted => &counters.content_wasted,
            Source::Local => &counters.bytes_dedup,
            Source::Lan => &counters.content_lan,
            Source::Remote => &counters.content_remote,
            Source::Registry => &counters.content_registry,
        };
        counter.add(len);
    }

    /// Stores a block. A full disk is no reason to fail the reader.
    fn keep(&self, key: BlockKey, block: &VerifiedBlock) {
        let BlockKey { object, index } = key;
        match self.store.put_block(&object, index, block) {
            Ok(_) => {
                if self.full.swap(false, Ordering::Relaxed) {
                    info!("there is room in the store again");
                }
            }
            // Said once: every block that comes finds it so.
            Err(PutError::Full) => {
                if !self.full.swap(true, Ordering::Relaxed) {
                    warn!("the disk is full: what comes is given to its readers and not kept");
                }
            }
            Err(error) => warn!(%object, index, "block not kept: {error}"),
        }
    }

    /// A read of the layer gave up: what is in flight for it is stuck.
    pub(super) fn give_up(self: &Arc<Self>, blob: &Digest) {
        let mut guard = self.state();
        let state = &mut *guard;
        if let Some(blob) = state.blobs.get_mut(blob) {
            blob.stalled = Some(Instant::now());
        }
        let runs = state.runs.iter().filter(|(_, run)| run.blob == *blob);
        let stuck: Vec<RequestId> = runs.map(|(request, _)| *request).collect();
        for request in stuck {
            if let Some(run) = state.runs.remove(&request) {
                run.stop.cancel();
            }
            self.counters.registry_failures.add(1);
            warn!(%blob, "fetch: nothing comes any more");
            self.tell(state, Event::Refused { request, why: Refusal::Broken });
        }
    }

    async fn run(
        self: Arc<Self>,
        request: RequestId,
        index: Arc<LayerIndex>,
        stream: Range<u64>,
        stop: CancellationToken,
    ) {
        let sink = Arc::new(RunSink {
            inner: Arc::clone(&self),
            index: Arc::clone(&index),
            request,
            position: AtomicU64::new(stream.start),
            whole: self.source.is_sequential(&index),
            stop: stop.clone(),
        });
        let abandoned = async {
            stop.cancelled().await;
            tokio::time::sleep(GRACE).await;
        };
        let result = tokio::select! {
            result = self.source.fetch(Arc::clone(&index), stream, sink) => result,
            () = abandoned => return,
        };
        let mut state = self.state();
        if state.runs.remove(&request).is_none() {
            return;
        }
        // That a registry ignores ranges shows only when it is asked.
        let home = self.home(&index);
        self.tell(&mut state, home);
        let Err(error) = result else {
            return self.tell(&mut state, Event::Done { request });
        };
        self.counters.registry_failures.add(1);
        warn!(blob = %index.blob(), "fetch: {error}");
        let why = if error.is_transient() { Refusal::Broken } else { Refusal::Never };
        if let Some(blob) = state.blobs.get_mut(index.blob()) {
            blob.last_error = Some(error);
        }
        self.tell(&mut state, Event::Refused { request, why });
    }

    /// What the scheduler has to know of a layer.
    pub(super) fn home(&self, index: &LayerIndex) -> Event {
        Event::Home {
            home: Home::Layer(*index.blob()),
            size: index.seek().blob_length(),
            whole: self.source.is_sequential(index),
            registry: true,
        }
    }
}

impl State {
    /// Notes that a layer is asked for.
    pub(super) fn touch(&mut self, index: &Arc<LayerIndex>) -> &mut BlobState {
        self.blobs.entry(*index.blob()).or_insert_with(|| BlobState {
            index: Arc::clone(index),
            last_progress: Instant::now(),
            stalled: None,
            last_error: None,
            sources: Sources::default(),
        })
    }

    /// A want ends without data.
    fn fail(&mut self, key: &BlockKey, why: Failure) {
        let Some(waiters) = self.waiters.remove(key) else { return };
        let home = self.blobs.values().find(|b| b.index.objects().contains(&key.object));
        let last = home.and_then(|blob| blob.last_error.clone());
        let error = match why {
            Failure::NoProgress(time) => FetchError::NoProgress(time),
            Failure::Full => FetchError::Store("too much is wanted at once".into()),
            Failure::Refused => FetchError::Source(last.unwrap_or_else(|| {
                SourceError::Permanent(format!("nobody has block {} of {}", key.index, key.object))
            })),
        };
        for waiter in waiters {
            let _ = waiter.sender.send(Err(error.clone()));
        }
    }
}

/// Comes by when the scheduler wants to look at the time again.
pub(super) async fn keep_time(inner: Weak<Inner>, wake: Arc<Notify>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let next = {
            let mut state = strong.state();
            if state.closed {
                return;
            }
            let now = strong.now();
            if state.scheduler.next_wake().is_some_and(|at| at <= now) {
                strong.tell(&mut state, Event::Tick);
            }
            state.armed = state.scheduler.next_wake();
            state.armed.map(|at| strong.started + at)
        };
        drop(strong);
        match next {
            None => wake.notified().await,
            Some(at) => tokio::select! {
                () = wake.notified() => {}
                () = tokio::time::sleep_until(at.into()) => {}
            },
        }
    }
}

/// Takes in what a run at the registry brings.
struct RunSink {
    inner: Arc<Inner>,
    index: Arc<LayerIndex>,
    request: RequestId,
    /// How far the run has been decoded.
    position: AtomicU64,
    whole: bool,
    stop: CancellationToken,
}

impl BlockSink for RunSink {
    fn needs(&self, object: u32, index: u32) -> bool {
        let Some(object) = self.index.object(object) else { return false };
        !self.inner.store.has_block(&object, index)
            || self.inner.state().scheduler.is_wanted(&BlockKey { object, index })
    }

    fn block(&self, object: u32, index: u32, block: VerifiedBlock) {
        let Some(object) = self.index.object(object) else { return };
        let key = BlockKey { object, index };
        let len = block.data().len() as u32;
        let event = Event::Block { request: self.request, key, len };
        self.inner.arrived(Some(self.index.blob()), key, &block, Source::Registry, event);
    }

    fn progress(&self, position: u64) -> ControlFlow<()> {
        let before = self.position.fetch_max(position, Ordering::Relaxed);
        let bytes = position.saturating_sub(before);
        let mut state = self.inner.state();
        if let Some(blob) = state.blobs.get_mut(self.index.blob()) {
            blob.last_progress = Instant::now();
            blob.stalled = None;
        }
        self.inner.tell(&mut state, Event::Progress { request: self.request, bytes });
        // What can only be read from its start is read to its end once begun.
        if state.closed || (!self.whole && self.stop.is_cancelled()) {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}
