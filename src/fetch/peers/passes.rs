//! First passes over exact blobs in a LAN: one of the nodes that want a blob reads
//! it from outside, and the others have it from that node.
//!
//! Who wants a blob says so and listens for a moment. Where a neighbour is at it
//! already, it is waited for; else the first in the LAN's order begins and says
//! that it has. A node that stands still, or goes, is waited for no longer.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::{Net, Peer};
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::exact::exact_name;
use crate::fetch::schedule::builders;
use crate::types::{Digest, PeerId};
use crate::wire::{Home, Message};

/// What neighbours want at the same time is heard within this.
const MOMENT: Duration = Duration::from_millis(40);
/// A neighbour whose turn it is and that does not begin is passed over after this.
const BEGIN: Duration = Duration::from_secs(3);
/// A pass that is not said to get further within this stands still.
const STILL: Duration = Duration::from_secs(20);
/// The table is looked at this often without news.
const LOOK: Duration = Duration::from_millis(500);
/// Blobs that one peer may want, and be at, at a time.
const OF_PEER_MAX: usize = 1024;

/// Whose turn it was to bring a blob into the LAN.
pub enum LanTurn {
    /// This node's, which its neighbours know as long as this is kept.
    Mine(LanPass),
    /// A neighbour's, and it has ended: it can be asked for the blob.
    Theirs,
}

/// This node's pass over a blob, for its LAN.
pub struct LanPass {
    inner: Weak<Inner>,
    name: Digest,
    _wants: Wants,
}

impl LanPass {
    /// Says that the pass has got further.
    pub fn progress(&self) {
        if let Some(inner) = self.inner.upgrade()
            && let Some(net) = inner.state().net.as_ref()
        {
            net.say_pass(&self.name, false);
        }
    }
}

impl Drop for LanPass {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else { return };
        if let Some(net) = inner.state().net.as_mut() {
            net.passing.remove(&self.name);
            net.say_pass(&self.name, true);
        }
    }
}

/// This node's wish for a blob, as its neighbours know it.
struct Wants {
    inner: Weak<Inner>,
    home: Home,
}

impl Drop for Wants {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade()
            && let Some(net) = inner.state().net.as_mut()
        {
            net.announce(self.home, false);
        }
    }
}

enum Now {
    Mine,
    Wait,
}

impl Engine {
    /// Waits until it is this node's turn to read a blob from outside the LAN, or a
    /// neighbour has.
    pub async fn lan_turn(&self, blob: &Digest) -> LanTurn {
        let (inner, name) = (&self.inner, exact_name(blob));
        let home = Home::Layer(name);
        let wants = Wants { inner: Arc::downgrade(inner), home };
        let alone = match inner.state().net.as_mut() {
            Some(net) => {
                net.announce(home, true);
                net.neighbours().next().is_none()
            }
            None => true,
        };
        if !alone {
            tokio::time::sleep(MOMENT).await;
        }
        let (begun, mut waited) = (Instant::now(), false);
        loop {
            let changed = inner.state().net.as_ref().map(|net| Arc::clone(&net.passes));
            let changed = changed.unwrap_or_default();
            let mut news = std::pin::pin!(changed.notified());
            news.as_mut().enable();
            match inner.whose_turn(&name, begun, &mut waited) {
                Some(Now::Mine) => {
                    let inner = Arc::downgrade(inner);
                    return LanTurn::Mine(LanPass { inner, name, _wants: wants });
                }
                Some(Now::Wait) => {}
                None => return LanTurn::Theirs,
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }
}

impl Inner {
    /// What is to be done now; `None` where a neighbour that was waited for has
    /// ended.
    fn whose_turn(&self, name: &Digest, begun: Instant, waited: &mut bool) -> Option<Now> {
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return Some(Now::Mine) };
        let near = || net.peers.iter().filter(|(_, peer)| peer.is_neighbour());
        let at_it = |peer: &Peer| peer.passes.get(name).is_some_and(|at| at.elapsed() < STILL);
        if near().any(|(_, peer)| at_it(peer)) {
            *waited = true;
            return Some(Now::Wait);
        }
        if *waited {
            return None;
        }
        let wanting = near().filter(|(_, peer)| peer.wants.contains(name));
        let mut order: Vec<PeerId> = wanting.map(|(id, _)| *id).collect();
        let me = net.endpoint.me();
        order.push(me);
        builders(name, &mut order);
        if order[0] != me && begun.elapsed() < BEGIN {
            return Some(Now::Wait);
        }
        net.passing.insert(*name);
        net.say_pass(name, false);
        Some(Now::Mine)
    }
}

impl Net {
    /// A neighbour wants a blob, or no more.
    pub(super) fn note_wish(&mut self, peer: &PeerId, home: &Home, on: bool) {
        let (Some(peer), Home::Layer(name)) = (self.peers.get_mut(peer), home) else { return };
        if !on {
            peer.wants.remove(name);
        } else if peer.wants.len() < OF_PEER_MAX {
            peer.wants.insert(*name);
        }
        self.passes.notify_waiters();
    }

    /// How far a peer's pass over a blob is.
    pub(super) fn note_pass(&mut self, peer: &PeerId, name: Digest, ended: bool) {
        let Some(peer) = self.peers.get_mut(peer) else { return };
        if ended {
            peer.passes.remove(&name);
        } else if peer.passes.len() < OF_PEER_MAX || peer.passes.contains_key(&name) {
            peer.passes.insert(name, Instant::now());
        }
        self.passes.notify_waiters();
    }

    fn say_pass(&self, name: &Digest, ended: bool) {
        for tunnel in self.neighbours() {
            // Whoever does not hear it reads the blob itself, and no worse.
            let _ = tunnel.tell(pass(name, ended));
        }
    }
}

/// That this node is at a blob's exact bytes.
pub(super) fn pass(name: &Digest, ended: bool) -> Message {
    Message::Bringing { name: *name, on: !ended }
}
