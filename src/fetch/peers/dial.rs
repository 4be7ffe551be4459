//! Keeps tunnels to addresses that were given.

use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tracing::{debug, info};

use super::Net;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::tunnel::{OpenError, Target};

/// First pause after a call failed; doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// A node that has just started waits no longer for its first calls.
const SETTLE: Duration = Duration::from_secs(1);

/// Nodes that are being called because somebody named them, at a time.
const MEETINGS_MAX: usize = 32;
/// Nodes with tunnels beyond which nobody else is called: the scheduler knows 254,
/// and some are to come by themselves.
const MET_MAX: usize = 200;

impl Engine {
    /// Opens a tunnel to a node that discovery has found, unless there is one, or
    /// it is being called. One try: whoever finds it again calls again.
    /// `false`: nobody is being called, because there is a tunnel or no room.
    pub fn meet(&self, target: Target) -> bool {
        let mut state = self.inner.state();
        let Some(net) = state.net.as_mut() else { return false };
        // Several layers can be looked for at a time, and one node hold them all.
        if net.meeting.contains(&target.address) {
            return true;
        }
        let connected = |id| net.peers.get(&id).is_some_and(|peer| !peer.tunnels.is_empty());
        let busy = net.meeting.len() >= MEETINGS_MAX || net.peers.len() >= MET_MAX;
        let me = target.peer == Some(net.endpoint.me());
        if me || busy || target.peer.is_some_and(connected) || !net.meeting.insert(target.address) {
            return false;
        }
        let (endpoint, inner) = (Arc::clone(&net.endpoint), Arc::downgrade(&self.inner));
        self.inner.handle.spawn(async move {
            let opened = endpoint.open(target).await;
            let Some(inner) = inner.upgrade() else { return };
            if let Some(net) = inner.state().net.as_mut() {
                net.meeting.remove(&target.address);
                net.links.notify_waiters();
            }
            // That it is open is told as an event of its own.
            let Err(error) = opened else { return };
            debug!(address = %target.address, "a node that was found: {error}");
            if let Some(peer) = target.peer {
                inner.not_met(&peer);
            }
        });
        true
    }

    /// Whoever needs peers right after the start waits so long for those that
    /// discovery finds.
    pub fn expect_peers(&self, time: Duration) {
        if let Some(net) = self.inner.state().net.as_mut() {
            net.expected = Some(Instant::now() + time);
        }
    }
}

/// Calls a node until it answers, and again when its last tunnel has gone, as
/// long as there is an engine.
pub(super) async fn keep(inner: Weak<Inner>, target: Target) {
    let mut pause = PAUSE_MIN;
    let mut known = target.peer;
    loop {
        let (endpoint, links, there) = {
            let Some(inner) = inner.upgrade() else { return };
            let state = inner.state();
            let Some(net) = state.net.as_ref().filter(|_| !state.closed) else { return };
            let there = known
                .is_some_and(|id| net.peers.get(&id).is_some_and(|peer| !peer.tunnels.is_empty()));
            (Arc::clone(&net.endpoint), Arc::clone(&net.links), there)
        };
        if there {
            // Looked at once more after a while, should the news have come between.
            tokio::select! {
                () = links.notified() => {}
                () = tokio::time::sleep(PAUSE_MAX) => {}
            }
            continue;
        }
        match endpoint.open(target).await {
            Ok(tunnel) => {
                known = Some(tunnel.info().peer);
                pause = PAUSE_MIN;
                // Its first event comes at once; until then it is not there.
                tokio::time::sleep(PAUSE_MIN).await;
            }
            Err(OpenError::Closed | OpenError::Myself) => return called(&inner, &target),
            Err(error) => {
                called(&inner, &target);
                if pause == PAUSE_MIN {
                    info!(address = %target.address, "peer: {error}");
                } else {
                    debug!(address = %target.address, "peer: {error}");
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// The first call of an address is over, and nobody answered.
fn called(inner: &Weak<Inner>, target: &Target) {
    let Some(inner) = inner.upgrade() else { return };
    if let Some(net) = inner.state().net.as_mut() {
        net.called(&target.address);
    }
}

impl Net {
    /// An address has been called once.
    pub(super) fn called(&mut self, address: &SocketAddr) {
        if self.calling.remove(address) {
            self.links.notify_waiters();
        }
    }
}

impl Inner {
    /// Waits until all addresses have been called once, for a node that has just
    /// started: its peers are there in a moment.
    pub(super) async fn settle(&self) {
        let (links, expected) = match self.state().net.as_ref() {
            Some(net) => (Arc::clone(&net.links), net.expected),
            None => return,
        };
        if let Some(until) = expected.filter(|until| *until > Instant::now()) {
            tokio::time::sleep_until(until.into()).await;
        }
        let all_called = async {
            loop {
                let mut told = std::pin::pin!(links.notified());
                told.as_mut().enable();
                if self.state().net.as_ref().is_none_or(|net| net.calling.is_empty()) {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(SETTLE, all_called).await;
    }
}
