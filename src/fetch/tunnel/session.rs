//! A tunnel over lanes of bytes: its state, and the tasks around it.

use std::fmt;
use std::future::poll_fn;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::inbox::{Ended as RequestEnd, Inbox};
use super::link::{BoxWrite, Lanes, Link};
use super::serve::queue::{Lane, ServeQueue};
use super::serve::worker;
use super::turns::{Throttle, Turns};
use super::watch::{Patience, Verdict, Watch};
use super::writer::{self, Out, WriteEnd};
use super::{
    AnswerError, BlockServer, Ended, Event, EventKind, Fault, Hold, Near, RequestError, SendError,
    Traffic, Tunnel, TunnelInfo, Want, reader,
};
use crate::wire::{Class, End, Features, Limits, Message, Refusal, RequestId};

/// Frames that may wait on the first lane: requests, news, and short answers.
const CONTROL_MAX: usize = 1024;
/// Pieces that may wait on a content lane while another is written: one is read
/// from the disk meanwhile.
const URGENT_MAX: usize = 4;
const BULK_MAX: usize = 1;
/// Content that has come on one tunnel and that nobody has put away yet, in bytes.
const HELD_MAX: usize = 16 << 20;
/// Progress of one piece is told no more often.
const PROGRESS: Duration = Duration::from_millis(50);
/// How long a closing tunnel may take to say so.
const GOODBYE: Duration = Duration::from_secs(2);

/// What all tunnels of an endpoint share.
pub(super) struct Shared {
    pub(super) events: Sender<Event>,
    pub(super) server: Arc<dyn BlockServer>,
    pub(super) turns: Arc<Turns>,
    pub(super) download: Throttle,
    pub(super) patience: Patience,
    /// What this node takes on for each tunnel.
    pub(super) limits: Limits,
}

/// One tunnel.
pub(super) struct Session {
    info: TunnelInfo,
    shared: Arc<Shared>,
    started: Instant,
    inbox: Mutex<Inbox>,
    serve: Mutex<ServeQueue>,
    serve_changed: [Notify; 2],
    watch: Mutex<Watch>,
    watch_changed: Notify,
    control: Sender<Out>,
    held: Arc<Semaphore>,
    progress: Mutex<Progress>,
    received: AtomicU64,
    sent: AtomicU64,
    closed: CancellationToken,
    why: Mutex<Option<Ended>>,
}

/// Bytes of a piece that were not told yet.
struct Progress {
    at: Instant,
    request: RequestId,
    bytes: u32,
}

impl Session {
    /// Starts a tunnel. `down` is called once it has ended.
    pub(super) async fn start(
        info: TunnelInfo,
        link: Link,
        lanes: Lanes,
        shared: Arc<Shared>,
        down: impl FnOnce() + Send + 'static,
    ) -> Arc<Self> {
        let (control, queue) = mpsc::channel(CONTROL_MAX);
        let started = Instant::now();
        let progress = Progress { at: started, request: 0, bytes: 0 };
        let session = Arc::new(Self {
            inbox: Mutex::default(),
            serve: Mutex::new(ServeQueue::new(shared.limits.requests)),
            serve_changed: Default::default(),
            watch: Mutex::new(Watch::new(Duration::ZERO, shared.patience)),
            watch_changed: Notify::new(),
            control,
            held: Arc::new(Semaphore::new(HELD_MAX)),
            progress: Mutex::new(progress),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            closed: CancellationToken::new(),
            why: Mutex::new(None),
            info,
            shared,
            started,
        });
        session.emit(EventKind::Up(Arc::clone(&session) as Arc<dyn Tunnel>)).await;
        tokio::spawn(Arc::clone(&session).run(link, lanes, queue, down));
        session
    }

    /// Runs the tunnel's tasks until one of them ends, and then ends the others.
    async fn run(
        self: Arc<Self>,
        link: Link,
        lanes: Lanes,
        control: Receiver<Out>,
        down: impl FnOnce(),
    ) {
        let Link { read, write, carrier, .. } = link;
        let mut tasks = JoinSet::new();
        for read in std::iter::once(read).chain(lanes.reads) {
            let session = Arc::clone(&self);
            tasks.spawn(async move { session.end(reader::run(Arc::clone(&session), read).await) });
        }
        let (urgent, urgent_queue) = mpsc::channel(URGENT_MAX);
        let (bulk, bulk_queue) = mpsc::channel(BULK_MAX);
        let mut writers = JoinSet::new();
        match lanes.writes {
            Some([urgent_write, bulk_write]) => {
                self.spawn_writer(&mut writers, write, vec![control]);
                self.spawn_writer(&mut writers, urgent_write, vec![urgent_queue]);
                self.spawn_writer(&mut writers, bulk_write, vec![bulk_queue]);
            }
            None => {
                let queues = vec![control, urgent_queue, bulk_queue];
                self.spawn_writer(&mut writers, write, queues);
            }
        }
        for (lane, sender) in [(Lane::Urgent, urgent), (Lane::Bulk, bulk)] {
            tasks.spawn(worker::run(Arc::clone(&self), lane, sender));
        }
        tasks.spawn(Arc::clone(&self).watch_over());
        self.closed.cancelled().await;
        // The goodbye goes out before the connection is torn down.
        tasks.shutdown().await;
        let _ = timeout(GOODBYE, async { while writers.join_next().await.is_some() {} }).await;
        writers.shutdown().await;
        let why = self.why.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let why = why.unwrap_or(Ended::Closed(Refusal::Unneeded));
        carrier.close(why.goodbye().unwrap_or(Refusal::Unneeded));
        drop(carrier);
        let requests = self.inbox().drain();
        down();
        let _ = self.shared.events.send(self.event(EventKind::Down { why, requests })).await;
    }

    fn spawn_writer(
        self: &Arc<Self>,
        writers: &mut JoinSet<()>,
        write: BoxWrite,
        queues: Vec<Receiver<Out>>,
    ) {
        let session = Arc::clone(self);
        writers.spawn(async move {
            match writer::run(write, queues, session.shared.patience.write).await {
                WriteEnd::Told => {}
                WriteEnd::Io(error) => session.end(Ended::Broken(error.to_string())),
                WriteEnd::Stalled => session.end(Ended::stalled("it takes nothing in")),
            }
        });
    }

    /// Looks at the clock for as long as the tunnel is open.
    async fn watch_over(self: Arc<Self>) {
        loop {
            let now = self.now();
            let (verdict, next) = {
                let mut watch = self.watch();
                watch.owes(now, !self.inbox().is_idle());
                (watch.tick(now), watch.next(now))
            };
            match verdict {
                Verdict::Fine => {}
                Verdict::Ping(number) => {
                    let _ = self.send(&Message::Ping(number));
                }
                Verdict::GiveUp => {
                    return self.end(Ended::stalled("it owes an answer or a sign of life"));
                }
            }
            tokio::select! {
                () = tokio::time::sleep_until(self.started + next) => {}
                () = self.watch_changed.notified() => {}
            }
        }
    }

    /// Ends the tunnel; the first reason counts.
    pub(super) fn end(&self, why: Ended) {
        {
            let mut first = self.why.lock().unwrap_or_else(PoisonError::into_inner);
            if first.is_some() {
                return;
            }
            if let Some(goodbye) = why.goodbye() {
                let _ = self.send(&Message::Close(goodbye));
            }
            let _ = self.control.try_send(Out::End);
            *first = Some(why);
        }
        self.closed.cancel();
    }

    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn features(&self) -> Features {
        self.info.features
    }

    pub(super) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn serve(&self) -> MutexGuard<'_, ServeQueue> {
        self.serve.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Watch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something about requests of the peer has changed.
    pub(super) fn serve_changed(&self) {
        self.serve_changed.iter().for_each(Notify::notify_one);
    }

    pub(super) async fn serve_change(&self, lane: Lane) {
        self.serve_changed[lane as usize].notified().await;
    }

    pub(super) fn note_received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        let now = self.now();
        let mut watch = self.watch();
        watch.heard(now);
        watch.answered(bytes);
    }

    pub(super) fn note_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Waits until there is room for content of this length.
    pub(super) async fn hold(&self, bytes: u32) -> Hold {
        let held = Arc::clone(&self.held);
        Hold(self.unblamed(held.acquire_many_owned(bytes)).await.ok())
    }

    /// Counts what came, and waits where there is a limit to it.
    pub(super) async fn throttle(&self, bytes: u64) {
        self.unblamed(self.shared.download.take(bytes)).await;
    }

    /// Waits for something of this node's own: the peer has no part in it.
    async fn unblamed<T>(&self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        let first = poll_fn(|context| match wait.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending => Poll::Ready(None),
        });
        if let Some(done) = first.await {
            return done;
        }
        self.watch().hold();
        let done = wait.await;
        self.watch().go_on(self.now());
        done
    }

    pub(super) async fn emit(&self, kind: EventKind) {
        let _ = self.unblamed(self.shared.events.send(self.event(kind))).await;
    }

    fn event(&self, kind: EventKind) -> Event {
        Event { tunnel: self.info.id, peer: self.info.peer, kind }
    }

    /// Tells that bytes came of a piece that is not whole yet; not every time.
    pub(super) fn emit_progress(&self, request: RequestId, bytes: u32) {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        if progress.request != request {
            (progress.request, progress.bytes) = (request, 0);
        }
        progress.bytes = progress.bytes.saturating_add(bytes);
        if progress.at.elapsed() >= PROGRESS {
            let kind = EventKind::Progress { request, bytes: progress.bytes };
            if self.shared.events.try_send(self.event(kind)).is_ok() {
                (progress.at, progress.bytes) = (Instant::now(), 0);
            }
        }
    }

    pub(super) fn end_request(&self, request: RequestId) -> Result<RequestEnd, AnswerError> {
        let (ended, idle) = {
            let mut inbox = self.inbox();
            (inbox.end(request)?, inbox.is_idle())
        };
        let now = self.now();
        let mut watch = self.watch();
        watch.settled(now);
        watch.owes(now, !idle);
        Ok(ended)
    }

    pub(super) async fn emit_end(&self, request: RequestId, end: End, missing: Vec<Range<u64>>) {
        if end != End::Done {
            return self.emit(EventKind::Failed { request }).await;
        }
        // What was neither sent nor said to be missing is missing all the same.
        for numbers in missing {
            self.emit(EventKind::NotHave { request, numbers }).await;
        }
        self.emit(EventKind::Done { request }).await;
    }

    /// Puts off a request of the peer.
    pub(super) fn busy(&self, request: RequestId) -> Result<(), Ended> {
        self.reply(&worker::busy(request))
    }

    /// Answers the peer without waiting for it.
    pub(super) fn reply(&self, message: &Message) -> Result<(), Ended> {
        match self.send(message) {
            Ok(()) | Err(SendError::Closed) => Ok(()),
            Err(_) => Err(Ended::Fault {
                fault: Fault::Flood,
                detail: "it asks more than it takes in".into(),
            }),
        }
    }

    fn send(&self, message: &Message) -> Result<(), SendError> {
        let sent = self.control.try_send(Out::Frames(message.to_frame()));
        sent.map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SendError::Full,
            mpsc::error::TrySendError::Closed(_) => SendError::Closed,
        })
    }
}

impl Ended {
    fn stalled(detail: &str) -> Self {
        Self::Fault { fault: Fault::Stalled, detail: detail.into() }
    }

    /// What the peer is told.
    fn goodbye(&self) -> Option<Refusal> {
        match self {
            Self::Closed(why) => Some(*why),
            Self::Fault { fault: Fault::Protocol, .. } => Some(Refusal::Protocol),
            Self::Fault { fault: Fault::Flood, .. } => Some(Refusal::Flood),
            Self::Fault { fault: Fault::Stalled, .. } => Some(Refusal::Stalled),
            Self::ByPeer(_) | Self::Broken(_) => None,
        }
    }
}

impl Tunnel for Session {
    fn info(&self) -> &TunnelInfo {
        &self.info
    }

    fn request(&self, request: RequestId, class: Class, want: Want) -> Result<(), RequestError> {
        if self.closed.is_cancelled() {
            return Err(RequestError::Closed);
        }
        // Inside a LAN, processor time is worth more than bytes.
        let zstd = self.info.near == Near::Remote && self.info.features.has(Features::ZSTD);
        let (message, was_idle) = {
            let mut inbox = self.inbox();
            let idle = inbox.is_idle();
            (inbox.ask(request, class, zstd, want, &self.info.limits)?, idle)
        };
        if let Err(error) = self.send(&Message::Request(message)) {
            let _ = self.inbox().end(request);
            return Err(match error {
                SendError::Closed => RequestError::Closed,
                _ => RequestError::Full,
            });
        }
        if was_idle {
            self.watch().owes(self.now(), true);
            self.watch_changed.notify_one();
        }
        Ok(())
    }

    fn cancel(&self, request: RequestId) {
        if self.inbox().cancel(request) {
            // Should it not fit, the answer comes and is dropped.
            let _ = self.send(&Message::Cancel(request));
        }
    }

    fn tell(&self, news: Message) -> Result<(), SendError> {
        match news {
            Message::Subscribe { .. }
            | Message::Have(_)
            | Message::Wants { .. }
            | Message::Getting { .. }
            | Message::Ask { .. }
            | Message::Layers { .. }
            | Message::Passed { .. }
            | Message::Control(_)
            | Message::Keep(_) => self.send(&news),
            _ => Err(SendError::NotNews),
        }
    }

    fn ping(&self) -> Result<(), SendError> {
        let number = self.watch().ping(self.now());
        self.send(&Message::Ping(number))
    }

    fn close(&self, why: Refusal) {
        self.end(Ended::Closed(why));
    }

    fn traffic(&self) -> Traffic {
        Traffic {
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TunnelInfo { id, peer, address, transport, .. } = &self.info;
        write!(f, "tunnel {id} to {peer:?} at {address} over {transport:?}")
    }
}
