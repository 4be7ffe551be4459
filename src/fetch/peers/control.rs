//! The seam between the engine and the node's part in the swarm: what peers say
//! that is not about content, and who holds a layer that no peer at hand has.
//!
//! The engine carries; whoever took [`Engine::control`] decides. Without anybody
//! there, look-ups are over when the peers at hand have answered.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::{Net, from_wire};
use crate::fetch::driver::State;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::schedule::{Event, Scope};
use crate::fetch::tunnel::{Near, SendError, Target, TunnelId};
use crate::types::{Digest, PeerId};
use crate::wire::{Home, Message};

/// What waits to be heard. Beats and announcements that find no room are said
/// again sooner or later.
const CONTROL_MAX: usize = 1024;
/// Layers that somebody looks for.
const FINDINGS_MAX: usize = 256;
/// An answer is good for so long.
const FRESH: Duration = Duration::from_secs(2);
/// Whoever needs a holder before anything else waits so long for one.
const FIND: Duration = Duration::from_secs(1);
/// Dismissals that nobody has asked for yet.
const DISMISSALS_MAX: usize = 256;
/// A member that did what no honest one does stays out for so long.
const EXPELLED: Duration = Duration::from_secs(24 * 3600);

/// What the swarm's part of the node is told.
#[derive(Clone, Debug)]
pub enum Control {
    /// Links have come or gone: see [`Engine::links`].
    Links,
    /// A peer said something that is not about content.
    Said {
        /// Who.
        peer: PeerId,
        /// What.
        message: Message,
    },
    /// A layer is looked for: answer with [`Engine::named`].
    LookUp {
        /// Its blob.
        blob: Digest,
    },
}

/// A peer that news are exchanged with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Who.
    pub peer: PeerId,
    /// Where it is.
    pub near: Near,
    /// The tunnel for news; another one when the link was made anew.
    pub tunnel: TunnelId,
    /// The other end of that.
    pub address: SocketAddr,
    /// Where it can be called, if anywhere.
    pub listens: Option<SocketAddr>,
}

/// A layer that is looked for beyond the peers at hand.
pub(super) struct Finding {
    since: Instant,
    answered: bool,
    /// Nodes that were named and are being called.
    meeting: HashSet<PeerId>,
}

/// Layers that are looked for, and who is asked about them.
#[derive(Default)]
pub(super) struct Findings {
    control: Option<mpsc::Sender<Control>>,
    of: HashMap<Digest, Finding>,
}

impl Findings {
    fn tell(&self, control: Control) -> bool {
        self.control.as_ref().is_some_and(|sender| sender.try_send(control).is_ok())
    }

    /// Links have come or gone.
    pub(super) fn nudge(&self) {
        self.tell(Control::Links);
    }

    pub(super) fn said(&self, peer: PeerId, message: Message) {
        self.tell(Control::Said { peer, message });
    }

    /// Has a layer looked for, unless it was a moment ago.
    pub(super) fn look(&mut self, blob: Digest) {
        let now = Instant::now();
        let fresh = |finding: &Finding| now.duration_since(finding.since) < FRESH;
        if self.of.get(&blob).is_some_and(fresh) {
            return;
        }
        if self.of.len() >= FINDINGS_MAX {
            self.of.retain(|_, finding| fresh(finding));
        }
        if self.of.len() < FINDINGS_MAX && self.tell(Control::LookUp { blob }) {
            let finding = Finding { since: now, answered: false, meeting: HashSet::new() };
            self.of.insert(blob, finding);
        }
    }

    /// Whether nobody is awaited any more who could know the layer.
    pub(super) fn is_over(&self, blob: &Digest) -> bool {
        self.of.get(blob).is_none_or(|finding| finding.answered && finding.meeting.is_empty())
    }

    /// A node is there, or can't be had: gives the layers that it was named for.
    pub(super) fn met(&mut self, peer: &PeerId) -> Vec<Digest> {
        let of = self.of.iter_mut().filter(|(_, finding)| finding.meeting.contains(peer));
        of.map(|(blob, finding)| {
            finding.meeting.remove(peer);
            *blob
        })
        .collect()
    }
}

impl Engine {
    /// What peers say that is not about content, and what is looked for, from now
    /// on. The last one who asked gets it.
    pub fn control(&self) -> mpsc::Receiver<Control> {
        let (sender, receiver) = mpsc::channel(CONTROL_MAX);
        if let Some(net) = self.inner.state().net.as_mut() {
            net.findings.control = Some(sender);
        }
        receiver
    }

    /// The peers that news are exchanged with.
    pub fn links(&self) -> Vec<Link> {
        let state = self.inner.state();
        let peers = state.net.iter().flat_map(|net| net.peers.iter().map(move |one| (net, one)));
        peers
            .filter_map(|(net, (id, peer))| {
                let tunnel = peer.news?;
                let address = net.tunnels.get(&tunnel)?.info().address;
                Some(Link { peer: *id, near: peer.near, tunnel, address, listens: peer.address })
            })
            .collect()
    }

    /// Tells a peer something.
    ///
    /// # Errors
    /// [`SendError`]; a peer without a tunnel is closed.
    pub fn tell(&self, peer: &PeerId, message: Message) -> Result<(), SendError> {
        let state = self.inner.state();
        let net = state.net.as_ref().ok_or(SendError::Closed)?;
        let tunnel = net.peers.get(peer).and_then(|peer| net.tunnels.get(&peer.news?));
        tunnel.ok_or(SendError::Closed)?.tell(message)
    }

    /// Closes all tunnels to a peer that did what no honest one does, and lets none
    /// be opened for a day.
    pub fn expel(&self, peer: PeerId) {
        if let Some(net) = self.inner.state().net.as_ref() {
            net.endpoint.ban(peer, EXPELLED);
        }
    }

    /// Whether a node was excluded from the swarm.
    pub fn is_revoked(&self, peer: &PeerId) -> bool {
        self.inner.state().net.as_ref().is_some_and(|net| net.endpoint.is_revoked(peer))
    }

    /// Peers that have closed their last tunnel to this node since this was asked
    /// last, because they have better ones.
    pub fn dismissals(&self) -> Vec<PeerId> {
        let mut state = self.inner.state();
        state.net.as_mut().map(|net| std::mem::take(&mut net.dismissals)).unwrap_or_default()
    }

    /// The popularity score of a peer, 0 to 100.
    pub fn score(&self, peer: PeerId, pop: f64) {
        let event = Event::Scored { peer, pop, custom: 0.0 };
        self.inner.tell(&mut self.inner.state(), event);
    }

    /// Answers [`Control::LookUp`]: these nodes are said to hold something of the
    /// layer. Those that there is no tunnel to are called.
    pub fn named(&self, blob: Digest, holders: &[Target]) {
        let mut state = self.inner.state();
        let Some(net) = state.net.as_mut() else { return };
        let Some(finding) = net.findings.of.get_mut(&blob) else { return };
        finding.answered = true;
        let there = |id: &PeerId| net.peers.get(id).is_some_and(|peer| !peer.tunnels.is_empty());
        let missing: Vec<Target> = holders
            .iter()
            .filter(|target| !target.peer.as_ref().is_some_and(there))
            .copied()
            .collect();
        finding.meeting.extend(missing.iter().filter_map(|target| target.peer));
        let home = Home::Layer(blob);
        net.links.notify_waiters();
        self.inner.end_look_up(&mut state, home);
        drop(state);
        for target in missing {
            if !self.meet(target)
                && let Some(peer) = target.peer
            {
                self.inner.not_met(&peer);
            }
        }
    }
}

impl Inner {
    /// A look-up that waits for nobody any more is over.
    fn end_look_up(self: &Arc<Self>, state: &mut State, home: Home) {
        let ended = state.net.as_mut().and_then(|net| net.end_look_up(home));
        if let Some((lan, found)) = ended {
            let scope = if lan { Scope::Lan } else { Scope::Swarm };
            self.tell(state, Event::LookedUp { home: from_wire(&home), scope, found });
        }
    }

    /// A node that was named can't be had.
    pub(super) fn not_met(self: &Arc<Self>, peer: &PeerId) {
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        let blobs = net.findings.met(peer);
        net.links.notify_waiters();
        for blob in blobs {
            self.end_look_up(&mut state, Home::Layer(blob));
        }
    }

    /// Has holders of a layer called, and waits a while until they are there.
    pub(super) async fn find(&self, blob: &Digest) {
        let Some(links) = self.state().net.as_mut().map(|net| {
            net.findings.look(*blob);
            Arc::clone(&net.links)
        }) else {
            return;
        };
        let over = async {
            loop {
                let mut told = std::pin::pin!(links.notified());
                told.as_mut().enable();
                if self.state().net.as_ref().is_none_or(|net| net.findings.is_over(blob)) {
                    return;
                }
                told.await;
            }
        };
        let _ = tokio::time::timeout(FIND, over).await;
    }
}

impl Net {
    /// A peer does not need this node.
    pub(super) fn dismissed(&mut self, peer: PeerId) {
        if self.dismissals.len() < DISMISSALS_MAX {
            self.dismissals.push(peer);
        }
    }

    /// A node that was named is there: whoever looks for what it was named for
    /// waits for what it says.
    pub(super) fn met(&mut self, peer: &PeerId) {
        for blob in self.findings.met(peer) {
            if let Some(look_up) = self.lookups.get_mut(&Home::Layer(blob)) {
                look_up.wait_for(*peer);
            }
        }
    }
}
