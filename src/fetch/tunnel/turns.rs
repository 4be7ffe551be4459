//! The governor's shell: waits for turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use super::serve::governor::{Bucket, Governor, Rate, Ticket, UploadLimits};
use crate::types::PeerId;
use crate::wire::Class;

/// Turns to send, for all tunnels of a node.
pub(super) struct Turns {
    started: Instant,
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    governor: Governor,
    next: Ticket,
    waiting: HashMap<Ticket, oneshot::Sender<()>>,
    /// When the governor wants to be looked at.
    wake: Option<Duration>,
}

/// A turn, from waiting for it to having sent.
pub(super) struct Turn {
    turns: Arc<Turns>,
    ticket: Ticket,
    peer: PeerId,
    class: Class,
    /// What it was asked for.
    bytes: u64,
}

impl Turns {
    pub(super) fn new(limits: UploadLimits) -> Arc<Self> {
        let state =
            State { governor: Governor::new(limits), next: 0, waiting: HashMap::new(), wake: None };
        let (state, changed) = (Mutex::new(state), Notify::new());
        Arc::new(Self { started: Instant::now(), state, changed })
    }

    /// Waits for a turn to send so many bytes. It ends when what is given is dropped.
    pub(super) async fn wait(self: &Arc<Self>, peer: PeerId, class: Class, bytes: u64) -> Turn {
        let (granted, turn) = {
            let mut state = self.lock();
            state.next += 1;
            let ticket = state.next;
            let (sender, granted) = oneshot::channel();
            state.waiting.insert(ticket, sender);
            state.governor.wait(ticket, peer, class, bytes);
            let turns = Arc::clone(self);
            (granted, Turn { turns, ticket, peer, class, bytes })
        };
        self.grant();
        // The sender is dropped only with the turn.
        let _ = granted.await;
        turn
    }

    /// Wakes whoever's turn comes as limits allow. Runs until dropped.
    pub(super) async fn run(self: Arc<Self>) {
        loop {
            let wake = self.lock().wake;
            match wake {
                Some(at) => tokio::select! {
                    () = tokio::time::sleep_until(self.started + at) => self.grant(),
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    fn grant(&self) {
        let mut state = self.lock();
        let now = self.started.elapsed();
        let (granted, wait) = state.governor.grant(now);
        for ticket in granted {
            if let Some(sender) = state.waiting.remove(&ticket) {
                let _ = sender.send(());
            }
        }
        let wake = wait.map(|wait| now + wait);
        if wake != state.wake {
            state.wake = wake;
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// Tells what was really sent.
    pub(super) fn spent(&self, bytes: u64) {
        let mut state = self.turns.lock();
        state.governor.correct(self.class, self.bytes, bytes);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.turns.lock();
            state.waiting.remove(&self.ticket);
            state.governor.leave(self.ticket, &self.peer, self.class);
        }
        self.turns.grant();
    }
}

/// Holds back what is received, so that senders slow down.
pub(super) struct Throttle {
    started: Instant,
    bucket: Option<Mutex<Bucket>>,
}

impl Throttle {
    pub(super) fn new(rate: Rate) -> Self {
        let bucket = rate.map(|rate| Mutex::new(Bucket::new(Some(rate))));
        Self { started: Instant::now(), bucket }
    }

    /// Counts bytes, and waits until the rate allows more.
    pub(super) async fn take(&self, bytes: u64) {
        let Some(bucket) = &self.bucket else { return };
        let wait = {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.take(bytes);
            bucket.wait(self.started.elapsed())
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}
