//! What the scheduler wants asked of peers, and said to them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::{Net, to_wire};
use crate::fetch::driver::State;
use crate::fetch::engine::Inner;
use crate::fetch::schedule::{
    Action, BlockKey, Event, Extent, Fault, Home, Refusal, RequestId, Scope, TunnelId,
};
use crate::fetch::tunnel::{Assembly, RequestError, Target, Tunnel, Want};
use crate::types::{ObjectId, ObjectSpec, PeerId};
use crate::wire::{self, BlockSet, Class, Message};

/// A tunnel that takes no more is asked again after this.
const FULL: Duration = Duration::from_millis(20);
/// A ban lasts as long as the process, or this long.
const BAN: Duration = Duration::from_secs(30 * 24 * 3600);
/// Blocks that come in parts, at a time: at most 64 MiB.
const ASSEMBLIES_MAX: usize = 64;

/// A request of the scheduler on a tunnel.
pub(super) struct Asked {
    pub(super) tunnel: TunnelId,
    pub(super) object: ObjectId,
    /// Bytes of its current piece that the scheduler was told of already.
    pub(super) told: u32,
}

/// Blocks of which parts are asked for, by tunnel; oldest first.
#[derive(Default)]
pub(super) struct Assemblies(VecDeque<(TunnelId, BlockKey, Arc<Assembly>)>);

impl Assemblies {
    /// The block's assembly on a tunnel; a new one if there is none.
    fn get(&mut self, tunnel: TunnelId, key: BlockKey, spec: &ObjectSpec) -> Option<Arc<Assembly>> {
        let found = self.0.iter().find(|(t, k, _)| (*t, *k) == (tunnel, key));
        if let Some((.., assembly)) = found {
            return Some(Arc::clone(assembly));
        }
        let assembly = Arc::new(Assembly::new(&spec.block(key.index)?)?);
        if self.0.len() >= ASSEMBLIES_MAX {
            self.0.pop_front();
        }
        self.0.push_back((tunnel, key, Arc::clone(&assembly)));
        Some(assembly)
    }

    /// The block is here, or was wrong: parts of it are of no use.
    pub(super) fn forget_block(&mut self, key: &BlockKey) {
        self.0.retain(|(_, k, _)| k != key);
    }

    pub(super) fn forget_tunnel(&mut self, tunnel: TunnelId) {
        self.0.retain(|(t, ..)| *t != tunnel);
    }
}

impl Inner {
    /// Does one thing that concerns peers; gives what has happened at once.
    pub(in crate::fetch) fn act_on_peers(
        self: &Arc<Self>,
        state: &mut State,
        action: Action,
    ) -> Option<Event> {
        match action {
            Action::Fetch { request, tunnel, object, extent, urgent, .. } => {
                let class = if urgent { Class::Urgent } else { Class::Bulk };
                let why = self.request(state, (request, tunnel), object, &extent, class).err()?;
                Some(Event::Refused { request, why })
            }
            Action::Cancel { request } => {
                let net = state.net.as_mut()?;
                let asked = net.asked.remove(&request)?;
                net.tunnels.get(&asked.tunnel)?.cancel(request);
                None
            }
            Action::Tunnels { peer, count } => self.open_tunnels(state, peer, count),
            Action::Close { peer, why } => {
                let why = match why {
                    Fault::Timeout => wire::Refusal::Stalled,
                    Fault::WrongBlock => wire::Refusal::Protocol,
                    Fault::Surplus => wire::Refusal::Unneeded,
                };
                info!(?peer, %why, "peer left alone for a while");
                state.net.as_ref()?.endpoint.close_peer(&peer, why);
                None
            }
            Action::Ban { peer } => {
                warn!(?peer, "peer banned: it sent wrong blocks");
                state.net.as_ref()?.endpoint.ban(peer, BAN);
                None
            }
            Action::LookUp { home, scope, .. } => {
                let near = scope == Scope::Lan;
                let Some(net) = state.net.as_mut() else {
                    // Without peers nobody is worth waiting for.
                    return Some(Event::LookedUp { home, scope, found: false });
                };
                let searching = match &home {
                    Home::Layer(blob) => self.search(net, *blob),
                    Home::Object(_) => false,
                };
                let mut answered = net.look_up(to_wire(&home), near);
                if searching && !near && answered == Some(false) {
                    // The end of the search answers, or the look-up's time does.
                    answered = None;
                }
                answered.map(|found| Event::LookedUp { home, scope, found })
            }
            Action::Announce { home, on } => {
                let home = to_wire(&home);
                state.net.as_mut()?.announce(home, on);
                None
            }
            Action::Claim { object, blocks, on, to, .. } => {
                state.net.as_ref()?.claim(object, blocks, on, to);
                None
            }
            Action::Ask { peer, key } => {
                let net = state.net.as_ref()?;
                let tunnel = net.tunnels.get(&net.peers.get(&peer)?.news?)?;
                // A lost one costs time, and no more.
                let _ = tunnel.tell(Message::Ask { object: key.object, index: key.index });
                None
            }
            Action::Run { .. } | Action::Failed { .. } => None,
        }
    }

    fn request(
        &self,
        state: &mut State,
        (request, tunnel): (RequestId, TunnelId),
        object: ObjectId,
        extent: &Extent,
        class: Class,
    ) -> Result<(), Refusal> {
        let net = state.net.as_mut().ok_or(Refusal::Broken)?;
        let spec = self.spec(&object).ok_or(Refusal::Never)?;
        let want = match extent {
            Extent::Blocks(blocks) => Want::Blocks { object, spec, blocks: blocks.clone() },
            Extent::Part { index, offset, len } => {
                let key = BlockKey { object, index: *index };
                let into = net.assemblies.get(tunnel, key, &spec).ok_or(Refusal::Never)?;
                Want::Part { object, index: *index, bytes: *offset..offset + len, into }
            }
        };
        let link = net.tunnels.get(&tunnel).ok_or(Refusal::Broken)?;
        link.request(request, class, want).map_err(|error| match error {
            RequestError::Full => Refusal::Busy(FULL),
            RequestError::Closed => Refusal::Broken,
            RequestError::Malformed | RequestError::Duplicate => Refusal::Never,
        })?;
        net.asked.insert(request, Asked { tunnel, object, told: 0 });
        Ok(())
    }

    /// The block list of an object that is wanted.
    fn spec(&self, object: &ObjectId) -> Option<Arc<ObjectSpec>> {
        if let Some(located) = self.locator.cached(object) {
            return located.index.specs().get(located.number as usize).cloned();
        }
        self.store.spec(object).ok().flatten()
    }

    /// Opens what is missing to `count` tunnels.
    fn open_tunnels(
        self: &Arc<Self>,
        state: &mut State,
        peer: PeerId,
        count: usize,
    ) -> Option<Event> {
        let failed = Some(Event::TunnelFailed { peer });
        let Some(net) = state.net.as_mut() else { return failed };
        let Some(entry) = net.peers.get_mut(&peer) else { return failed };
        let more = count.saturating_sub(entry.tunnels.len() + entry.opening);
        if more == 0 {
            return None;
        }
        let Some(address) = entry.address else {
            return if entry.tunnels.is_empty() { Some(Event::PeerGone { peer }) } else { None };
        };
        entry.opening += more;
        for _ in 0..more {
            let endpoint = Arc::clone(&net.endpoint);
            let inner = Arc::downgrade(self);
            self.handle.spawn(async move {
                let opened = endpoint.open(Target { peer: Some(peer), address }).await;
                let Some(inner) = inner.upgrade() else { return };
                let mut state = inner.state();
                let entry = state.net.as_mut().and_then(|net| net.peers.get_mut(&peer));
                let Some(entry) = entry else { return };
                entry.opening = entry.opening.saturating_sub(1);
                // That it is open is told as an event of its own.
                let Err(error) = opened else { return };
                let alone = entry.tunnels.is_empty() && entry.opening == 0;
                info!(?peer, %address, "tunnel: {error}");
                let event = if alone {
                    // Whoever keeps dialling it brings it back.
                    state.forget_peer(&peer);
                    Event::PeerGone { peer }
                } else {
                    Event::TunnelFailed { peer }
                };
                inner.tell(&mut state, event);
            });
        }
        None
    }
}

impl Net {
    /// Tells the neighbours, or one of them, what this node gets for the LAN.
    fn claim(&self, object: ObjectId, blocks: Range<u32>, on: bool, to: Option<PeerId>) {
        let blocks: BlockSet = std::iter::once(blocks).collect();
        let named = |tunnel: &&Arc<dyn Tunnel>| to.is_none_or(|to| tunnel.info().peer == to);
        for tunnel in self.neighbours().filter(named) {
            let claim = Message::Getting { object, blocks: blocks.clone(), on };
            // A neighbour that does not hear it fetches twice, and no worse.
            let _ = tunnel.tell(claim);
        }
    }
}
