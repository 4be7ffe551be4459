//! Looks for holders of a layer among nodes that there is no tunnel to.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Net;
use crate::fetch::driver::State;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::schedule::{Event, Home, Scope};
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

/// Finds nodes with something of a layer, by whatever means there are, and opens
/// tunnels to them ([`Engine::meet`]): what they hold they say themselves. The
/// future ends when nobody more is to be expected.
pub trait Finder: Send + Sync {
    /// Searches.
    fn find(&self, layer: Digest) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Layers that were searched for lately.
#[derive(Default)]
pub(super) struct Searches {
    finder: Option<Arc<dyn Finder>>,
    layers: HashMap<Digest, Search>,
}

struct Search {
    began: Instant,
    over: bool,
}

impl Engine {
    /// Has holders searched for by this, from now on. Only in a swarm.
    pub fn find_by(&self, finder: Arc<dyn Finder>) {
        if let Some(net) = self.inner.state().net.as_mut() {
            net.searches.finder = Some(finder);
        }
    }
}

impl Inner {
    /// Searches for holders of a layer, unless that was done just now. Whether a
    /// search is under way.
    pub(super) fn search(self: &Arc<Self>, net: &mut Net, layer: Digest) -> bool {
        let Some(finder) = net.searches.finder.clone() else { return false };
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
        let inner = Arc::downgrade(self);
        self.handle.spawn(async move {
            let _ = tokio::time::timeout(SEARCH, finder.find(layer)).await;
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
                let search = |net: &Net| {
                    net.searches.layers.get(&layer).is_none_or(|search| search.over)
                };
                if self.state().net.as_ref().is_none_or(search) {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(PATIENCE, over).await;
    }
}
