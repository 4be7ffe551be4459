//! Looks for holders of a layer among nodes that there is no tunnel to.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use super::Net;
use crate::fetch::driver::State;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::schedule::{Event, Home, Scope};
use crate::fetch::tunnel::Target;
use crate::types::Digest;
use crate::wire;

/// A layer is searched for again after this long at the earliest.
const AGAIN: Duration = Duration::from_secs(10);
/// Searches that are remembered, those under way among them.
const SEARCHES_MAX: usize = 256;
/// Longest search.
const SEARCH: Duration = Duration::from_secs(10);
/// How long who needs an index waits for holders that are not met yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// Finds nodes with something of a layer, by one means or another, and opens
/// tunnels to them ([`Engine::reach`]): what they hold they say themselves.
pub trait Finder: Send + Sync {
    /// Searches. Ends with `true` once there is a tunnel to one of them, and with
    /// `false` when nobody more is to be expected.
    fn find(&self, layer: Digest) -> Pin<Box<dyn Future<Output = bool> + Send>>;
}

/// Layers that were searched for lately.
#[derive(Default)]
pub(super) struct Searches {
    finders: Vec<Arc<dyn Finder>>,
    layers: HashMap<Digest, Search>,
}

struct Search {
    began: Instant,
    over: bool,
}

impl Engine {
    /// Has holders searched for by this too, from now on; who finds one first ends
    /// a search. Only in a swarm.
    pub fn find_by(&self, finder: Arc<dyn Finder>) {
        if let Some(net) = self.inner.state().net.as_mut() {
            net.searches.finders.push(finder);
        }
    }

    /// Opens a tunnel to a node that discovery has found, as [`Engine::meet`], and
    /// waits for it: whether there is one.
    pub async fn reach(&self, target: Target) -> bool {
        self.meet(target);
        let Some(peer) = target.peer else { return false };
        let Some(links) = self.inner.state().net.as_ref().map(|net| Arc::clone(&net.links)) else {
            return false;
        };
        loop {
            let mut told = std::pin::pin!(links.notified());
            told.as_mut().enable();
            {
                let state = self.inner.state();
                let Some(net) = state.net.as_ref().filter(|_| !state.closed) else { return false };
                if net.peers.get(&peer).is_some_and(|peer| !peer.tunnels.is_empty()) {
                    return true;
                }
                // One that is open is an event away from being heard of.
                let coming = net.meeting.contains(&target.address)
                    || !net.endpoint.tunnels(&peer).is_empty();
                if !coming {
                    return false;
                }
            }
            told.await;
        }
    }
}

impl Inner {
    /// Searches for holders of a layer, unless that was done just now. Whether a
    /// search is under way.
    pub(super) fn search(self: &Arc<Self>, net: &mut Net, layer: Digest) -> bool {
        if net.searches.finders.is_empty() {
            return false;
        }
        let layers = &mut net.searches.layers;
        let now = Instant::now();
        match layers.get(&layer) {
            Some(search) if !search.over => return true,
            Some(search) if now - search.began < AGAIN => return false,
            _ => {}
        }
        if layers.len() >= SEARCHES_MAX {
            layers.retain(|_, search| !search.over || now - search.began < AGAIN);
        }
        if layers.len() >= SEARCHES_MAX {
            return false;
        }
        layers.insert(layer, Search { began: now, over: false });
        let mut finding: FuturesUnordered<_> =
            net.searches.finders.iter().map(|finder| finder.find(layer)).collect();
        let inner = Arc::downgrade(self);
        self.handle.spawn(async move {
            let first = async { while finding.next().await == Some(false) {} };
            let _ = tokio::time::timeout(SEARCH, first).await;
            let Some(inner) = inner.upgrade() else { return };
            inner.searched(&mut inner.state(), layer);
        });
        true
    }

    /// A search is over: who was found says now what it holds.
    fn searched(self: &Arc<Self>, state: &mut State, layer: Digest) {
        let Some(net) = state.net.as_mut() else { return };
        if let Some(search) = net.searches.layers.get_mut(&layer) {
            search.over = true;
        }
        net.links.notify_waiters();
        let Some(found) = net.look_up(wire::Home::Layer(layer), false) else { return };
        let event = Event::LookedUp { home: Home::Layer(layer), scope: Scope::Swarm, found };
        self.tell(state, event);
    }

    /// Searches for holders of a layer, and waits a while for those that are found.
    pub(super) async fn expect_holders(self: &Arc<Self>, layer: Digest) {
        let links = match self.state().net.as_mut() {
            Some(net) => {
                self.search(net, layer);
                Arc::clone(&net.links)
            }
            None => return,
        };
        let over = async {
            loop {
                let mut told = std::pin::pin!(links.notified());
                told.as_mut().enable();
                let search =
                    |net: &Net| net.searches.layers.get(&layer).is_none_or(|search| search.over);
                if self.state().net.as_ref().is_none_or(search) {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, over).await;
    }
}
