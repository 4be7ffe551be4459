//! What comes on tunnels, in order, on a thread that may wait for the disk.

use std::sync::{Arc, Weak};

use tracing::{debug, info, warn};

use super::{Peer, near};
use crate::fetch::account::Source;
use crate::fetch::driver::State;
use crate::fetch::engine::Inner;
use crate::fetch::schedule::{BlockKey, Event, Refusal, RequestId};
use crate::fetch::tunnel::{
    self, Content, Ended, EventKind, Events, Fault, Near, Tunnel, TunnelId, Wrong,
};
use crate::types::PeerId;
use crate::wire::{self, Ledger};

/// Listens as long as there are an engine and an endpoint. On a thread of its own:
/// blocks are written to the store in the order in which they come, and before it
/// is told that their request is over.
pub(super) fn start(inner: &Arc<Inner>, mut events: Events) {
    let (weak, handle) = (Arc::downgrade(inner), inner.handle.clone());
    let listening = move || {
        while let Some(event) = handle.block_on(events.next()) {
            let Some(inner) = Weak::upgrade(&weak) else { return };
            inner.on_tunnel(event);
        }
    };
    let spawned = std::thread::Builder::new().name("peersync-swarm".into()).spawn(listening);
    if let Err(error) = spawned {
        warn!("no thread for the swarm: {error}");
    }
}

impl Inner {
    fn on_tunnel(self: &Arc<Self>, event: tunnel::Event) {
        let (peer, id) = (event.peer, event.tunnel);
        let Some(kind) = self.on_answer(peer, event.kind) else { return };
        match kind {
            EventKind::Up(tunnel) => self.on_up(tunnel),
            EventKind::Down { why, .. } => self.on_down(peer, id, &why),
            EventKind::Content { request, content, .. } => self.on_content(peer, request, content),
            EventKind::Progress { request, bytes } => {
                let mut state = self.state();
                if let Some(asked) = state.net.as_mut().and_then(|n| n.asked.get_mut(&request)) {
                    asked.told = asked.told.saturating_add(bytes);
                    self.tell(&mut state, Event::Progress { request, bytes: bytes.into() });
                }
            }
            EventKind::Wrong(wrong) => self.on_wrong(peer, id, wrong),
            // What a request ends without is missing: its end says so.
            EventKind::NotHave { .. } => {}
            EventKind::Busy { request, retry } => {
                self.on_end(request, Event::Refused { request, why: Refusal::Busy(retry) });
            }
            EventKind::Done { request } => self.on_end(request, Event::Done { request }),
            EventKind::Failed { request } => {
                self.on_end(request, Event::Refused { request, why: Refusal::NotHave });
            }
            EventKind::Rtt(rtt) => self.tell(&mut self.state(), Event::Rtt { tunnel: id, rtt }),
            EventKind::News(message) => self.on_news(peer, id, message),
        }
    }

    fn on_up(self: &Arc<Self>, tunnel: Arc<dyn Tunnel>) {
        let info = tunnel.info().clone();
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        let entry = net.peers.entry(info.peer).or_insert_with(|| {
            info!(peer = ?info.peer, address = %info.address, near = ?info.near, "peer");
            Peer::new(info.near)
        });
        entry.address = info.listens.or(entry.address).or(info.opened.then_some(info.address));
        entry.tunnels.push(info.id);
        net.tunnels.insert(info.id, tunnel);
        net.called(&info.address);
        net.links.notify_waiters();
        let peer = info.peer;
        self.tell(&mut state, Event::PeerUp { peer, near: near(info.near) });
        self.tell(&mut state, Event::TunnelUp { peer, tunnel: info.id, rtt: info.rtt });
        self.greet(&mut state, &peer);
        if let Some(net) = state.net.as_mut() {
            net.met(&peer);
        }
    }

    fn on_down(self: &Arc<Self>, peer: PeerId, id: TunnelId, why: &Ended) {
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        match why {
            // That it stalled may be its line's fault: the scheduler leaves it alone.
            Ended::Fault { fault: Fault::Stalled, .. } => info!(?peer, "tunnel closed: {why}"),
            Ended::Fault { .. } => net.misbehaved(peer, why),
            _ => debug!(?peer, %why, "tunnel closed"),
        }
        net.tunnels.remove(&id);
        net.asked.retain(|_, asked| asked.tunnel != id);
        net.assemblies.forget_tunnel(id);
        net.questions.forget_tunnel(id);
        net.forget_listeners(id);
        net.links.notify_waiters();
        let Some(entry) = net.peers.get_mut(&peer) else { return };
        entry.tunnels.retain(|tunnel| *tunnel != id);
        let gone = entry.tunnels.is_empty();

        if entry.news == Some(id) {
            entry.news = None;
            net.findings.nudge();
        }
        if gone {
            net.left_passes(&self.spools, &peer);
            if matches!(why, Ended::ByPeer(wire::Refusal::Unneeded)) {
                net.dismissed(peer);
            }
        }
        self.tell(&mut state, Event::TunnelDown { tunnel: id });
        if gone && matches!(why, Ended::ByPeer(_)) {
            // It said so itself: there is no use in waiting for it.
            state.forget_peer(&peer);
            self.tell(&mut state, Event::PeerGone { peer });
        } else {
            self.greet(&mut state, &peer);
        }
    }

    fn on_content(self: &Arc<Self>, peer: PeerId, request: RequestId, content: Content) {
        match content {
            Content::Block { object, index, block } => {
                let len = block.data().len() as u32;
                let near = self.progress(request, len, &peer);
                {
                    let mut state = self.state();
                    state.received(&peer, len.into());
                    if let Some(net) = state.net.as_mut().filter(|_| near == Near::Remote) {
                        net.served.note(peer, object);
                    }
                }
                let key = BlockKey { object, index };
                let source = if near == Near::Lan { Source::Lan } else { Source::Remote };
                let blob = self.locator.cached(&object).map(|located| *located.index.blob());
                let event = Event::Block { request, key, len };
                self.arrived(blob.as_ref(), key, &block, source, event);
                let mut state = self.state();
                if let Some(net) = state.net.as_mut() {
                    net.assemblies.forget_block(&key);
                }
            }
            Content::Part { .. } => {
                // A part's length is what was asked: its end makes up for it.
            }
            Content::Item { .. }
            | Content::Root { .. }
            | Content::Spec { .. }
            | Content::Document { .. }
            | Content::Image { .. } => {}
        }
    }

    /// The scheduler is told of bytes that it was not told of while they came.
    fn progress(self: &Arc<Self>, request: RequestId, len: u32, peer: &PeerId) -> Near {
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return Near::Remote };
        let near = net.peers.get(peer).map_or(Near::Remote, |peer| peer.near);
        if let Some(asked) = net.asked.get_mut(&request) {
            let bytes = len.saturating_sub(std::mem::take(&mut asked.told)).into();
            self.tell(&mut state, Event::Progress { request, bytes });
        }
        near
    }

    fn on_wrong(self: &Arc<Self>, peer: PeerId, tunnel: TunnelId, wrong: Wrong) {
        let Wrong { request, index, .. } = wrong;
        warn!(?peer, tunnel, index, "a block that is not what it should be");
        self.counters.blocks_corrupt.add(1);
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        if let Some(peer) = net.peers.get_mut(&peer) {
            peer.wrong += 1;
        }
        let Some(object) = net.asked.get(&request).map(|asked| asked.object) else { return };
        let key = BlockKey { object, index: u32::try_from(index).unwrap_or(u32::MAX) };
        net.assemblies.forget_block(&key);
        self.tell(&mut state, Event::Wrong { request, key });
    }

    fn on_end(self: &Arc<Self>, request: RequestId, event: Event) {
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        net.asked.remove(&request);
        self.tell(&mut state, event);
    }
}

impl Peer {
    fn new(near: Near) -> Self {
        Self {
            near,
            address: None,
            tunnels: Vec::new(),
            news: None,
            ledger: Ledger::default(),
            answered: std::collections::HashSet::new(),
            holds: std::collections::HashSet::new(),
            opening: 0,
            wrong: 0,
            since: std::time::Instant::now(),
            received: 0,
        }
    }
}

impl State {
    /// A peer is gone: nothing is known of it any more.
    pub(super) fn forget_peer(&mut self, peer: &PeerId) {
        if let Some(net) = self.net.as_mut() {
            info!(?peer, "peer gone");
            net.peers.remove(peer);
            net.served.forget(peer);
            net.passes.notify_waiters();
        }
    }
}
