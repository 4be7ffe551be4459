//! Carries out what the machines of `swarm` decide: says and hears claims, tells
//! the tracker what this node holds, answers as one, asks one, and tells peers what
//! the images here are made of.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::overlay::Heard;
use super::own::{Own, Stamp};
use super::view::{InOffice, View};
use crate::daemon::Node;
use crate::fetch::tunnel::{self, Target};
use crate::fetch::{Control, Engine, Link};
use crate::identity::NodeKey;
use crate::swarm::address::is_believable;
use crate::swarm::claim;
use crate::swarm::differences::{Difference, HeardError, Teller};
use crate::swarm::elect::{Action, Claim, Elector, Message, Near, Score};
use crate::swarm::lookups::{Lookups, Named, NotAsked};
use crate::swarm::popularity::Short;
use crate::swarm::tracker::{Has, Tracker};
use crate::types::{Digest, PeerId};
use crate::wire;

/// Links, holdings and questions are looked at this often.
const TICK: Duration = Duration::from_secs(1);
/// Stability and popularity are reckoned anew this often.
const SLOW_TICK: Duration = Duration::from_secs(10);
/// A tracker that there is no tunnel to is called this often,
const CALL: Duration = Duration::from_secs(5);
/// and whoever did not understand is told all no more often.
const AGAIN: Duration = Duration::from_secs(5);
/// Questions of one peer that are answered in a second.
const QUESTIONS_MAX: u32 = 64;

/// What this node does for its swarm as long as there is one. `first`: the number of
/// its first claim.
pub(super) async fn run(
    node: Weak<Node>,
    key: NodeKey,
    first: u64,
    view: Arc<View>,
    ears: Option<mpsc::Sender<Heard>>,
) {
    let Some((mut events, mut part)) = node.upgrade().map(|node| {
        let mut part = Part::new(&key, first, Arc::clone(&view), node.started);
        part.ears = ears;
        part.reckon(&node.engine);
        (node.engine.control(), part)
    }) else {
        return;
    };
    loop {
        let due = part.due();
        let event = tokio::select! {
            event = events.recv() => match event {
                Some(event) => Some(event),
                None => return,
            },
            own = finished(&mut part.looking) => {
                part.own_is(own);
                None
            }
            () = tokio::time::sleep_until(due.into()) => None,
        };
        let Some(node) = node.upgrade() else { return };
        match event {
            Some(Control::Said { peer, message: wire::Message::Keep(keep) }) => {
                node.evictor.hear(peer, keep);
                continue;
            }
            Some(event) => part.on(event, &node.engine),
            None => {}
        }
        part.tick(&node);
        part.carry_out(&node.engine);
    }
}

/// Waits for a look at the store, if there is one under way.
async fn finished(looking: &mut Option<JoinHandle<Option<Own>>>) -> Option<Own> {
    match looking {
        Some(handle) => {
            let own = handle.await.ok().flatten();
            *looking = None;
            own
        }
        None => std::future::pending().await,
    }
}

/// The machines, and what stands between them and the tunnels.
struct Part {
    me: PeerId,
    key: NodeKey,
    /// Who hears what peers say of others.
    ears: Option<mpsc::Sender<Heard>>,
    start: Instant,
    node_started: Instant,
    view: Arc<View>,
    elector: Elector,
    /// The claim that is followed, as its tracker signed it.
    signed: Option<Signed>,
    links: HashMap<PeerId, Linked>,
    table: Tracker,
    lookups: Lookups,
    /// To the tracker.
    layers: Teller<Digest, Has>,
    own: Own,
    looking: Option<JoinHandle<Option<Own>>>,
    stamp: Option<Stamp>,
    next_tick: Instant,
    next_slow: Instant,
    called: Option<Instant>,
    /// Whether there may be something to tell.
    news: bool,
    best_upload: f64,
    uploaded: Option<(Instant, u64)>,
}

struct Linked {
    link: Link,
    /// Whether the elector has room for it.
    elects: bool,
    images: Teller<Short, Arc<[Short]>>,
    /// When it was last told all because it asked for that.
    again: Option<Instant>,
    /// Since when its questions are counted, and how many there were.
    questions: (Instant, u32),
}

struct Signed {
    claim: Claim,
    signature: [u8; 64],
    address: Option<SocketAddr>,
}

impl Part {
    fn new(key: &NodeKey, first: u64, view: Arc<View>, node_started: Instant) -> Self {
        let me = key.peer_id();
        let mut seed = [0; 8];
        seed.copy_from_slice(&me.0[..8]);
        let seed = u64::from_le_bytes(seed);
        let now = Instant::now();
        Self {
            me,
            key: key.clone(),
            ears: None,
            start: now,
            node_started,
            view,
            elector: Elector::new(me, Score::default(), first, seed ^ first, Duration::ZERO),
            signed: None,
            links: HashMap::new(),
            table: Tracker::default(),
            lookups: Lookups::default(),
            layers: Teller::default(),
            own: Own::default(),
            looking: None,
            stamp: None,
            next_tick: now,
            next_slow: now + SLOW_TICK,
            called: None,
            news: true,
            best_upload: 0.0,
            uploaded: None,
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn due(&self) -> Instant {
        self.elector.wake().map_or(self.next_tick, |wake| self.next_tick.min(self.start + wake))
    }

    fn on(&mut self, event: Control, engine: &Engine) {
        match event {
            Control::Links => self.look_at_links(engine),
            Control::LookUp { blob } => self.look_up(blob, engine),
            Control::Said { peer, message } => {
                if !self.links.contains_key(&peer) {
                    self.look_at_links(engine);
                }
                if self.links.contains_key(&peer) {
                    self.said(peer, message, engine);
                }
            }
        }
    }

    fn said(&mut self, peer: PeerId, message: wire::Message, engine: &Engine) {
        let now = self.now();
        match message {
            wire::Message::Layers { full, number, layers } => {
                self.announced(peer, (full, number), layers, engine);
            }
            wire::Message::Control(wire::Control::Claim(claim)) => {
                self.claimed(peer, &claim, engine);
            }
            wire::Message::Control(wire::Control::Prune) => {
                self.elector.hear(peer, Message::Prune, now);
            }
            wire::Message::Control(wire::Control::Graft { known }) => {
                self.elector.hear(peer, Message::Graft { known }, now);
            }
            wire::Message::Control(wire::Control::WhoHas { id, layers }) => {
                self.asked(peer, id, &layers, engine);
            }
            wire::Message::Control(wire::Control::Holders { id, layers }) => {
                self.answered(&peer, id, &layers, engine);
            }
            wire::Message::Control(wire::Control::Images { full, number, images }) => {
                let told = self.view.sets().tell(peer, (full, number), images);
                match told {
                    Ok(()) => engine.score(peer, self.view.sets().pop(&peer)),
                    Err(error) => self.not_understood(peer, error, engine),
                }
            }
            wire::Message::Control(wire::Control::Again) => self.again(&peer),
            wire::Message::Control(wire::Control::WhoElse) => self.heard(Heard::WhoElse(peer)),
            wire::Message::Control(wire::Control::Others { nodes }) => {
                if let Some(at) = self.links.get(&peer).map(|linked| linked.link.address.ip()) {
                    self.heard(Heard::Others { by: peer, at, nodes });
                }
            }
            _ => {}
        }
    }

    /// What finds no room is asked and said again.
    fn heard(&self, heard: Heard) {
        if let Some(ears) = &self.ears {
            let _ = ears.try_send(heard);
        }
    }

    /// A claim came: it is checked, weighed, and kept if this node follows it.
    fn claimed(&mut self, peer: PeerId, said: &wire::SignedClaim, engine: &Engine) {
        let score = Score::told(said.score);
        let claim =
            Claim { tracker: said.tracker, score, sequence: said.sequence, settled: said.settled };
        let known = |signed: &Signed| signed.claim == claim && signed.signature == said.signature;
        let known = self.signed.as_ref().is_some_and(known);
        if engine.is_revoked(&claim.tracker) {
            return;
        }
        if score.points() != said.score || !(known || claim::is_authentic(&claim, &said.signature))
        {
            // Whoever passes a claim on has checked it: this one made it up.
            warn!(?peer, tracker = ?said.tracker, "a forged claim to be tracker");
            engine.expel(peer);
            return;
        }
        let link = self.links.get(&peer).map(|linked| linked.link);
        let address = match link {
            Some(link) if peer == claim.tracker => link.listens,
            Some(link) => said.address.filter(|at| is_believable(*at, link.address.ip())),
            None => None,
        };
        let age = Duration::from_millis(said.age_ms.into());
        let now = self.now();
        self.elector.hear(peer, Message::Claim { claim, age, abroad: said.abroad }, now);
        if !known && self.elector.claim() == Some(claim) {
            self.signed = Some(Signed { claim, signature: said.signature, address });
        }
    }

    /// A node tells this one, as its tracker, what it holds.
    fn announced(
        &mut self,
        peer: PeerId,
        place: (bool, u64),
        layers: Vec<wire::LayerNews>,
        engine: &Engine,
    ) {
        if self.elector.tracker() != Some(self.me) {
            return;
        }
        let Some(link) = self.links.get(&peer).map(|linked| linked.link) else { return };
        let changes = layers.into_iter().map(|news| {
            let has = match (news.whole, news.some || news.root) {
                (true, _) => Some(Has::Whole),
                (false, true) => Some(Has::Some),
                (false, false) => None,
            };
            (news.blob, has)
        });
        if let Err(error) = self.table.announce(peer, link.listens, place, changes) {
            self.not_understood(peer, error, engine);
        }
    }

    fn not_understood(&mut self, peer: PeerId, error: HeardError, engine: &Engine) {
        debug!(?peer, "news: {error}");
        if error == HeardError::Gap {
            let _ = engine.tell(&peer, wire::Message::Control(wire::Control::Again));
        }
    }

    fn again(&mut self, peer: &PeerId) {
        let Some(linked) = self.links.get_mut(peer) else { return };
        if linked.again.is_some_and(|at| at.elapsed() < AGAIN) {
            return;
        }
        linked.again = Some(Instant::now());
        linked.images.again();
        if self.elector.tracker() == Some(*peer) {
            self.layers.again();
        }
        self.news = true;
    }

    /// A node asks who holds layers. Only a tracker knows; whoever is none says so by
    /// naming nobody.
    fn asked(&mut self, peer: PeerId, id: u64, layers: &[Digest], engine: &Engine) {
        let Some(linked) = self.links.get_mut(&peer) else { return };
        if linked.questions.0.elapsed() >= Duration::from_secs(1) {
            linked.questions = (Instant::now(), 0);
        }
        linked.questions.1 += 1;
        if linked.questions.1 > QUESTIONS_MAX {
            return;
        }
        let from = Some(linked.link.address.ip());
        let holders = |layer: &Digest| {
            let found = self.table.who_has(layer, &peer, from, wire::HOLDERS_MAX);
            let holder = |one: crate::swarm::tracker::Holder| wire::Holder {
                peer: one.peer,
                address: one.address,
                whole: one.has == Has::Whole,
            };
            found.into_iter().map(holder).collect()
        };
        let layers = layers.iter().map(holders).collect();
        let answer = wire::Control::Holders { id, layers };
        let _ = engine.tell(&peer, wire::Message::Control(answer));
    }

    fn look_up(&mut self, blob: Digest, engine: &Engine) {
        let now = self.now();
        match self.elector.tracker() {
            Some(tracker) if tracker == self.me => {
                let found = self.table.who_has(&blob, &self.me, None, wire::HOLDERS_MAX);
                let targets: Vec<Target> = found
                    .iter()
                    .map(|one| Target { peer: Some(one.peer), address: one.address })
                    .collect();
                engine.named(blob, &targets);
            }
            Some(tracker) if self.links.contains_key(&tracker) => {
                match self.lookups.ask(tracker, blob, now) {
                    Ok(id) => {
                        let question = wire::Control::WhoHas { id, layers: vec![blob] };
                        let told = engine.tell(&tracker, wire::Message::Control(question));
                        if told.is_err() {
                            self.lookups.take_back(id);
                            engine.named(blob, &[]);
                        }
                    }
                    Err(NotAsked::Open) => {}
                    Err(NotAsked::Full) => engine.named(blob, &[]),
                }
            }
            _ => engine.named(blob, &[]),
        }
    }

    fn answered(&mut self, from: &PeerId, id: u64, layers: &[Vec<wire::Holder>], engine: &Engine) {
        let named = |holder: &wire::Holder| Named { peer: holder.peer, address: holder.address };
        let layers: Vec<Vec<Named>> =
            layers.iter().map(|holders| holders.iter().map(named).collect()).collect();
        let Some(at) = self.links.get(from).map(|linked| linked.link.address.ip()) else { return };
        let (from, now) = ((from, at), self.now());
        if let Some((blob, named)) = self.lookups.answer(from, id, &layers, &self.me, now) {
            let target = |named: &Named| Target { peer: Some(named.peer), address: named.address };
            let targets: Vec<Target> = named.iter().map(target).collect();
            engine.named(blob, &targets);
        }
    }

    /// Compares the links with those that are known.
    fn look_at_links(&mut self, engine: &Engine) {
        let now = self.now();
        let links: HashMap<PeerId, Link> =
            engine.links().into_iter().map(|link| (link.peer, link)).collect();
        let same = |known: &Linked| {
            links.get(&known.link.peer).is_some_and(|link| link.tunnel == known.link.tunnel)
        };
        let gone: Vec<PeerId> =
            self.links.iter().filter(|(_, known)| !same(known)).map(|(peer, _)| *peer).collect();
        for peer in gone {
            self.links.remove(&peer);
            self.elector.link_down(&peer, now);
            self.table.lost(&peer, now);
            self.view.sets().forget(&peer);
        }
        for (peer, link) in links {
            let linked = self.links.entry(peer).or_insert_with(|| {
                self.news = true;
                Linked {
                    link,
                    elects: false,
                    images: Teller::default(),
                    again: None,
                    questions: (Instant::now(), 0),
                }
            });
            linked.link = link;
            if !linked.elects {
                let near = match link.near {
                    tunnel::Near::Lan => Near::Lan,
                    tunnel::Near::Remote => Near::Remote,
                };
                linked.elects = self.elector.link_up(peer, near, now);
            }
        }
    }

    fn tick(&mut self, node: &Arc<Node>) {
        let engine = &node.engine;
        let now = self.now();
        if self.elector.wake().is_some_and(|wake| wake <= now) {
            self.elector.tick(now);
        }
        let instant = Instant::now();
        if instant < self.next_tick {
            return;
        }
        self.next_tick = instant + TICK;
        self.look_at_links(engine);
        self.reckon_stability();
        self.table.tick(now);
        *self.view.tied() = match self.elector.tracker() {
            Some(tracker) if tracker != self.me => HashSet::from([tracker]),
            _ => self.table.connected().copied().collect(),
        };
        let links = &self.links;
        for blob in self.lookups.tick(now, |peer| links.contains_key(peer)) {
            engine.named(blob, &[]);
        }
        if let Some(tracker) = self.elector.tracker().filter(|_| self.lookups.is_found_out()) {
            warn!(?tracker, "this tracker's answers are of no use: it is done without");
            self.elector.distrust(tracker, now);
        }
        self.call_tracker(engine);
        if self.looking.is_none() {
            let stamp = Stamp::of(node);
            if self.stamp.as_ref().is_none_or(|old| old.is_behind(&stamp)) {
                self.stamp = Some(stamp);
                let node = Arc::clone(node);
                self.looking = Some(tokio::task::spawn_blocking(move || Own::of(&node)));
            }
        }
        if instant >= self.next_slow {
            self.next_slow = instant + SLOW_TICK;
            self.reckon(engine);
        }
        // What found its tunnel full is told now.
        self.news = true;
    }

    /// Whoever knows of a tracker opens a tunnel to it.
    fn call_tracker(&mut self, engine: &Engine) {
        let Some(signed) = &self.signed else { return };
        let tracker = signed.claim.tracker;
        let followed = self.elector.tracker() == Some(tracker);
        let Some(address) = signed.address.filter(|_| followed && tracker != self.me) else {
            return;
        };
        let lately = self.called.is_some_and(|at| at.elapsed() < CALL);
        if !lately && !self.links.contains_key(&tracker) {
            self.called = Some(Instant::now());
            engine.meet(Target { peer: Some(tracker), address });
        }
    }

    /// How well this node would do as a tracker, were it to stand now.
    fn reckon_stability(&mut self) {
        let uptime = self.node_started.elapsed();
        let stability = super::own::stability(uptime, self.links.len(), self.best_upload);
        self.elector.set_score(stability.score());
        self.view.see(|seen| seen.score = stability.score().points());
    }

    /// What this node sends at its best, and popularity of its peers.
    fn reckon(&mut self, engine: &Engine) {
        let sent: u64 = engine.peers().iter().map(|peer| peer.sent).sum();
        if let Some((at, before)) = self.uploaded {
            let rate = sent.saturating_sub(before) as f64 / at.elapsed().as_secs_f64().max(1.0);
            self.best_upload = self.best_upload.max(rate);
        }
        self.uploaded = Some((Instant::now(), sent));
        for peer in self.links.keys() {
            let pop = self.view.sets().pop(peer);
            engine.score(*peer, pop);
        }
    }

    fn own_is(&mut self, own: Option<Own>) {
        let Some(own) = own.filter(|own| *own != self.own) else { return };
        self.view.sets().own(self.me, &own.images);
        self.own = own;
        self.news = true;
    }

    /// Does what the elector says, and tells what is new.
    fn carry_out(&mut self, engine: &Engine) {
        while let Some(action) = self.elector.poll() {
            match action {
                Action::Send { to, message } => self.send(&to, message, engine),
                Action::Tracker(tracker) => self.tracker_is(tracker, engine),
            }
        }
        if std::mem::take(&mut self.news) {
            self.tell_news(engine);
        }
        let (nodes, layers, counts) =
            (self.table.nodes(), self.table.layers(), self.lookups.counts());
        self.view.see(|seen| (seen.nodes, seen.layers, seen.lookups) = (nodes, layers, counts));
    }

    fn send(&mut self, to: &PeerId, message: Message, engine: &Engine) {
        let message = match message {
            Message::Prune => wire::Control::Prune,
            Message::Graft { known } => wire::Control::Graft { known },
            Message::Claim { claim, age, abroad } => {
                let is_it = |signed: &&Signed| signed.claim == claim;
                if claim.tracker == self.me && self.signed.as_ref().filter(is_it).is_none() {
                    let signature = claim::sign(&claim, self.key.signing_key());
                    self.signed = Some(Signed { claim, signature, address: None });
                }
                let Some(signed) = self.signed.as_ref().filter(is_it) else { return };
                wire::Control::Claim(wire::SignedClaim {
                    tracker: claim.tracker,
                    score: claim.score.points(),
                    sequence: claim.sequence,
                    settled: claim.settled,
                    signature: signed.signature,
                    age_ms: u32::try_from(age.as_millis()).unwrap_or(u32::MAX),
                    abroad,
                    address: signed.address,
                })
            }
        };
        // A beat that a full tunnel does not take is followed by another one.
        let _ = engine.tell(to, wire::Message::Control(message));
    }

    fn tracker_is(&mut self, tracker: Option<PeerId>, engine: &Engine) {
        let score = self.elector.claim().map_or(0, |claim| claim.score.points());
        match tracker {
            Some(id) if id == self.me => info!(score, "this node is the tracker"),
            Some(id) => info!(tracker = %id, score, "another node is the tracker"),
            None => info!("no tracker: look-ups go to all peers at hand"),
        }
        if tracker != Some(self.me) {
            self.table.clear();
        }
        for blob in self.lookups.tracker_changed() {
            engine.named(blob, &[]);
        }
        self.layers.again();
        self.called = None;
        self.news = true;
        let me = self.me;
        self.view.see(|seen| {
            seen.tracker =
                tracker.map(|id| InOffice { id, is_me: id == me, score, since: Instant::now() });
        });
        self.call_tracker(engine);
    }

    /// Tells the tracker what is held here, and peers what images are made of.
    fn tell_news(&mut self, engine: &Engine) {
        if let Some(tracker) = self.elector.tracker().filter(|tracker| *tracker != self.me)
            && let Some(linked) = self.links.get(&tracker)
        {
            let said =
                self.layers.say(linked.link.tunnel, &self.own.layers, wire::LAYERS_MAX, |_| 1);
            let all_told =
                said.into_iter().all(|part| engine.tell(&tracker, announcement(part)).is_ok());
            if !all_told {
                self.layers.again();
            }
        }
        for (peer, linked) in &mut self.links {
            let weigh = |layers: &Option<Arc<[Short]>>| {
                // As many layers and as many images as a message holds at most.
                1 + wire::IMAGES_LAYERS_MAX / wire::IMAGES_MAX
                    + layers.as_ref().map_or(0, |layers| layers.len())
            };
            let all = &self.own.images;
            let said = linked.images.say(linked.link.tunnel, all, wire::IMAGES_LAYERS_MAX, weigh);
            let all_told = said.into_iter().all(|Difference { full, number, changes }| {
                let images = changes
                    .into_iter()
                    .map(|(image, layers)| (image, layers.map(|layers| layers.to_vec())))
                    .collect();
                let images = wire::Control::Images { full, number, images };
                engine.tell(peer, wire::Message::Control(images)).is_ok()
            });
            if !all_told {
                linked.images.again();
            }
        }
    }
}

fn announcement(part: Difference<Digest, Has>) -> wire::Message {
    let news = |(blob, has): (Digest, Option<Has>)| wire::LayerNews {
        root: has.is_some(),
        parts: [has.is_some(); 4],
        some: has.is_some(),
        whole: has == Some(Has::Whole),
        ..wire::LayerNews::nothing(blob)
    };
    let layers = part.changes.into_iter().map(news).collect();
    wire::Message::Layers { full: part.full, number: part.number, layers }
}
