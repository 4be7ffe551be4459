//! Who holds, wants and gets what, said and heard.
//!
//! A node listens at all its peers to the layers that it wants, and tells what
//! comes to its store of layers to whoever listens to them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::debug;

use super::{Net, from_wire};
use crate::fetch::driver::State;
use crate::fetch::engine::{Engine, Inner};
use crate::fetch::index::LayerIndex;
use crate::fetch::schedule::{self, BlockKey, Class, Event, Scope, Wanted};
use crate::fetch::tunnel::{Near, SendError, TunnelId};
use crate::store::Store;
use crate::types::{ObjectId, PeerId};
use crate::wire::{Applied, BlockSet, Have, Holding, Home, LedgerError, Mark, Message};

/// What is new is told neighbours and others after this long, together.
const PAUSE_LAN: Duration = Duration::from_millis(20);
const PAUSE_FAR: Duration = Duration::from_millis(250);
/// Homes that are listened to at peers. Those wanted longest ago go first.
const HOMES_MAX: usize = 512;
/// Homes of which others may listen to this node's holdings, by tunnel.
const LISTENERS_MAX: usize = 16 << 10;

/// Somebody who listens to what this node holds of a home.
pub(super) struct Listener {
    near: Near,
    /// The state that it has been told of.
    number: u64,
    /// What it is still to be told.
    unsent: VecDeque<Have>,
    told: Instant,
}

/// Objects of homes that are listened to, and how many listen to each home.
#[derive(Default)]
pub(super) struct Heard {
    objects: HashMap<ObjectId, Vec<Home>>,
    homes: HashMap<Home, usize>,
    /// Of these, the layers whose index is known.
    indexed: HashSet<Home>,
}

/// A look-up that peers have not all answered yet.
pub(super) struct LookUp {
    lan: bool,
    waiting: HashSet<PeerId>,
}

impl Inner {
    pub(super) fn on_news(self: &Arc<Self>, peer: PeerId, tunnel: TunnelId, message: Message) {
        match message {
            Message::Subscribe { home, on: true, since } => self.on_subscribe(tunnel, home, since),
            Message::Subscribe { home, on: false, .. } => {
                if let Some(net) = self.state().net.as_mut() {
                    net.forget_listener(tunnel, home);
                }
            }
            Message::Have(have) => self.on_have(peer, have),
            Message::Wants { home, on } => {
                let home = from_wire(&home);
                self.tell(&mut self.state(), Event::Wants { peer, home, on });
            }
            Message::Getting { object, blocks, on } => self.on_getting(peer, object, &blocks, on),
            Message::Ask { object, index } => self.on_ask(peer, object, index),
            Message::Passed { blob, stage, pieces } => self.on_passed(peer, blob, stage, pieces),
            message @ (Message::Layers { .. } | Message::Control(_) | Message::Keep(_)) => {
                if let Some(net) = self.state().net.as_ref() {
                    net.findings.said(peer, message);
                }
            }
            _ => {}
        }
    }

    fn on_subscribe(self: &Arc<Self>, tunnel: TunnelId, home: Home, since: Option<(u64, u64)>) {
        // What comes while this looks is noted, and told besides.
        let index = match home {
            Home::Layer(blob) => self.locator.layer(&blob).ok().flatten(),
            Home::Object(_) => None,
        };
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        let Some(link) = net.tunnels.get(&tunnel) else { return };
        let near = link.info().near;
        if net.listeners.len() >= LISTENERS_MAX {
            debug!(tunnel, "too many listen already");
            return;
        }
        let since = since.map(|(epoch, number)| Mark { epoch, number });
        let root = index.is_some();
        let snapshot = || match (&index, home) {
            (Some(index), _) => holdings(&self.store, index),
            (None, Home::Object(object)) => holding(&self.store, &object).into_iter().collect(),
            (None, Home::Layer(_)) => Vec::new(),
        };
        let Some(answer) = net.journal.answer(home, since, root, snapshot) else { return };
        let number = net.journal.latest(&home).unwrap_or(0);
        let told = Instant::now();
        let listener = Listener { near, number, unsent: answer.into(), told };
        if net.listeners.insert((tunnel, home), listener).is_none() {
            net.heard.add(home, index.as_deref());
        }
        net.send_unsent(tunnel, home);
    }

    /// A block came to the store: whoever listens is to be told.
    pub(in crate::fetch) fn note_held(&self, state: &mut State, key: &BlockKey) {
        let Some(net) = state.net.as_mut() else { return };
        let Some(homes) = net.heard.objects.get(&key.object) else { return };
        let block: BlockSet = std::iter::once(key.index..key.index + 1).collect();
        for home in homes {
            net.journal.record(home, key.object, Holding::Add(block.clone()));
        }
        net.changed.notify_one();
    }

    /// These objects were removed: whoever listens is to be told, also of what has
    /// come again since.
    fn note_gone(&self, state: &mut State, objects: &[ObjectId]) {
        let Some(net) = state.net.as_mut() else { return };
        for object in objects {
            let homes = net.heard.objects.get(object).into_iter().flatten();
            let again = holding(&self.store, object);
            for home in homes {
                net.journal.record(home, *object, Holding::Nothing);
                if let Some((_, held)) = &again {
                    net.journal.record(home, *object, held.clone());
                }
            }
        }
        net.changed.notify_one();
    }

    /// A layer has an index now. Peers that listened before it had are told what is
    /// here of it.
    pub(in crate::fetch) fn note_indexed(&self, index: &LayerIndex) {
        let home = Home::Layer(*index.blob());
        let mut state = self.state();
        let Some(net) = state.net.as_mut() else { return };
        if !net.heard.learn(home, index) {
            return;
        }
        for (object, holding) in holdings(&self.store, index) {
            net.journal.record(&home, object, holding);
        }
        net.changed.notify_one();
    }

    fn on_have(self: &Arc<Self>, id: PeerId, have: Have) {
        let mut guard = self.state();
        let state = &mut *guard;
        let Some(net) = state.net.as_mut() else { return };
        let Some(peer) = net.peers.get_mut(&id) else { return };
        let home = have.home;
        let counts = |object: &ObjectId| {
            let located = self.locator.cached(object)?;
            located.index.specs().get(located.number as usize).map(|spec| spec.block_count())
        };
        let mut applied = Applied { root: false, last: true, changes: Vec::new() };
        match peer.ledger.apply(have, counts) {
            Ok(news) => applied = news,
            Err(LedgerError::Gap) => {
                peer.answered.remove(&home);
                net.subscribe(&id, home);
                return;
            }
            Err(error) if error.is_fault() => return net.misbehaved(id, &error),
            // It holds more than is remembered of one peer: of this no more is heard.
            Err(error @ LedgerError::TooMany) => {
                debug!(peer = ?id, ?home, "{error}");
                let message = peer.ledger.unsubscribe(home);
                let link = peer.news.and_then(|tunnel| net.tunnels.get(&tunnel));
                let _ = link.map(|link| link.tell(message));
            }
            Err(_) => return,
        }
        if !applied.changes.is_empty() {
            peer.holds.insert(home);
        }
        if applied.last {
            peer.answered.insert(home);
        }
        for (object, holding) in &applied.changes {
            net.served.heard(&id, object, holding);
        }
        let answered = if applied.last { net.answered(&id, home) } else { None };
        for (object, holding) in applied.changes {
            for holding in spread(holding) {
                self.tell(state, Event::Have { peer: id, object, holding });
            }
        }
        if let Some((lan, found)) = answered {
            let scope = if lan { Scope::Lan } else { Scope::Swarm };
            let home = from_wire(&home);
            self.tell(state, Event::LookedUp { home, scope, found });
        }
    }

    /// A neighbour gets blocks from outside, or gave it up. Which run they stand in
    /// says the index; of a layer without one nothing is wanted here.
    fn on_getting(self: &Arc<Self>, peer: PeerId, object: ObjectId, blocks: &BlockSet, on: bool) {
        let Some(located) = self.locator.cached(&object) else { return };
        let home = schedule::Home::Layer(*located.index.blob());
        let spec = &located.index.specs()[located.number as usize];
        let mut state = self.state();
        for blocks in blocks.runs() {
            let mut start = blocks.start;
            let end = blocks.end.min(spec.block_count());
            while start < end {
                let run = located.index.place(located.number, start).run;
                let same = |index: &u32| located.index.place(located.number, *index).run == run;
                let count = (start..end).take_while(same).count() as u32;
                let blocks = start..start + count;
                self.tell(&mut state, Event::Getting { peer, home, run, object, blocks, on });
                start += count;
            }
        }
    }

    /// A neighbour's reader waits for a block that this node should get.
    fn on_ask(self: &Arc<Self>, peer: PeerId, object: ObjectId, index: u32) {
        let Some(located) = self.locator.cached(&object) else { return };
        let key = BlockKey { object, index };
        let exists = located.index.specs()[located.number as usize].block(index).is_some();
        if !exists || self.store.has_block(&object, index) {
            return;
        }
        let mut state = self.state();
        if !state.scheduler.is_wanted(&key) {
            state.touch(&located.index);
            let (interest, class) = (self.interest(), Class::Sequential);
            let home = schedule::Home::Layer(*located.index.blob());
            let blocks: Vec<Wanted> = vec![located.index.wanted(located.number, index)];
            self.tell(&mut state, self.home(&located.index));
            let want = Event::Want { interest, home, class, deadline: None, blocks };
            self.tell(&mut state, want);
        }
        self.tell(&mut state, Event::Asked { peer, key });
    }

    /// Says on a peer's tunnel for news what it has to know; finds one if there is
    /// none.
    pub(super) fn greet(self: &Arc<Self>, state: &mut State, peer: &PeerId) {
        let Some(net) = state.net.as_mut() else { return };
        let Some(entry) = net.peers.get_mut(peer) else { return };
        if entry.news.is_some() {
            return;
        }
        entry.news = entry.tunnels.first().copied();
        if entry.news.is_none() {
            return;
        }
        entry.answered.clear();
        net.findings.nudge();
        let near = entry.near;
        for home in net.homes.clone() {
            net.subscribe(peer, home);
        }
        let link = net.peers.get(peer).and_then(|peer| net.tunnels.get(&peer.news?));
        if let Some(link) = link.filter(|_| near == Near::Lan) {
            for home in &net.announced {
                let _ = link.tell(Message::Wants { home: *home, on: true });
            }
            net.tell_passes(&self.spools, &**link);
        }
    }
}

impl Engine {
    /// Tells peers that nothing of these objects is here any more, as far as they
    /// listen to what is here of them.
    pub fn gone(&self, objects: &[ObjectId]) {
        self.inner.note_gone(&mut self.inner.state(), objects);
    }
}

impl LookUp {
    /// Another peer is to answer before it is over.
    pub(super) fn wait_for(&mut self, peer: PeerId) {
        self.waiting.insert(peer);
    }
}

impl Net {
    /// Asks a peer what it holds of a home, now and from now on.
    fn subscribe(&mut self, peer: &PeerId, home: Home) {
        let Some(entry) = self.peers.get_mut(peer) else { return };
        let Some(link) = entry.news.and_then(|tunnel| self.tunnels.get(&tunnel)) else { return };
        if let Some(message) = entry.ledger.subscribe(home)
            && link.tell(message).is_err()
        {
            // Its tunnel is closing, or so full that nothing is to be had there.
            entry.answered.insert(home);
        }
    }

    /// This node wants a home: it listens to it at all its peers.
    fn follow(&mut self, home: Home) {
        if let Some(at) = self.homes.iter().position(|other| *other == home) {
            let home = self.homes.remove(at);
            self.homes.push(home);
            return;
        }
        if self.homes.len() >= HOMES_MAX {
            let oldest = self.homes.remove(0);
            for peer in self.peers.values_mut() {
                let message = peer.ledger.unsubscribe(oldest);
                peer.answered.remove(&oldest);
                peer.holds.remove(&oldest);
                let link = peer.news.and_then(|tunnel| self.tunnels.get(&tunnel));
                if let Some(link) = link {
                    let _ = link.tell(message);
                }
            }
        }
        self.homes.push(home);
        let peers: Vec<PeerId> = self.peers.keys().copied().collect();
        for peer in peers {
            self.subscribe(&peer, home);
        }
    }

    /// Tells the neighbours that this node wants a home, or no more.
    pub(super) fn announce(&mut self, home: Home, on: bool) {
        if on {
            self.follow(home);
            self.announced.insert(home);
        } else {
            self.announced.remove(&home);
        }
        for tunnel in self.neighbours() {
            let _ = tunnel.tell(Message::Wants { home, on });
        }
    }

    /// Looks for peers that hold anything of a home: says at once what is known of
    /// all, or nothing while answers are awaited.
    ///
    /// Neighbours are asked anew even if they have answered before: what they get for
    /// the LAN they say first to one that wants it too.
    pub(super) fn look_up(&mut self, home: Home, lan: bool) -> Option<bool> {
        self.follow(home);
        let near = self.peers.iter_mut().filter(|(_, peer)| lan && peer.is_neighbour());
        let anew: Vec<PeerId> =
            near.filter_map(|(id, peer)| peer.answered.remove(&home).then_some(*id)).collect();
        for peer in anew {
            self.subscribe(&peer, home);
        }
        let asked = self.peers.iter().filter(|(_, peer)| (peer.near == Near::Lan) == lan);
        let asked = asked.filter(|(_, peer)| peer.news.is_some());
        let waiting: HashSet<PeerId> =
            asked.filter(|(_, peer)| !peer.answered.contains(&home)).map(|(id, _)| *id).collect();
        // While neighbours are asked the tracker is, too; who is beyond the LAN is
        // known the sooner then.
        if let Home::Layer(blob) = home {
            self.findings.look(blob);
        }
        self.lookups.insert(home, LookUp { lan, waiting });
        self.end_look_up(home).map(|(_, found)| found)
    }

    /// A peer has told all that it holds of a home. Gives where was looked, and
    /// whether anything was found, once it was the last.
    fn answered(&mut self, peer: &PeerId, home: Home) -> Option<(bool, bool)> {
        self.lookups.get_mut(&home)?.waiting.remove(peer);
        self.end_look_up(home)
    }

    /// Ends a look-up that waits for nobody any more: as [`Net::answered`].
    pub(super) fn end_look_up(&mut self, home: Home) -> Option<(bool, bool)> {
        let lookup = self.lookups.get(&home)?;
        let named = match home {
            Home::Layer(blob) if !lookup.lan => self.findings.is_over(&blob),
            _ => true,
        };
        if !lookup.waiting.is_empty() || !named {
            return None;
        }
        let lan = self.lookups.remove(&home)?.lan;
        Some((lan, self.found(home, lan)))
    }

    fn found(&self, home: Home, lan: bool) -> bool {
        let mut there = self.peers.values().filter(|peer| (peer.near == Near::Lan) == lan);
        there.any(|peer| peer.holds.contains(&home))
    }

    fn forget_listener(&mut self, tunnel: TunnelId, home: Home) {
        if self.listeners.remove(&(tunnel, home)).is_some() && self.heard.remove(&home) {
            self.journal.forget(&home);
        }
    }

    pub(super) fn forget_listeners(&mut self, tunnel: TunnelId) {
        let of_it: Vec<Home> =
            self.listeners.keys().filter(|(t, _)| *t == tunnel).map(|(_, home)| *home).collect();
        for home in of_it {
            self.forget_listener(tunnel, home);
        }
    }

    /// Sends what a listener is still to be told, as far as its tunnel takes it.
    fn send_unsent(&mut self, tunnel: TunnelId, home: Home) {
        let Some(listener) = self.listeners.get_mut(&(tunnel, home)) else { return };
        let Some(link) = self.tunnels.get(&tunnel) else { return };
        while let Some(have) = listener.unsent.front() {
            match link.tell(Message::Have(have.clone())) {
                Ok(()) => drop(listener.unsent.pop_front()),
                Err(SendError::Full) => return self.changed.notify_one(),
                Err(SendError::NotNews | SendError::Closed) => return listener.unsent.clear(),
            }
        }
    }

    /// Tells everybody what is new and due; gives how long until more is.
    fn tell_news(&mut self) -> Option<Duration> {
        let mut next: Option<Duration> = None;
        let behind: Vec<(TunnelId, Home)> = self
            .listeners
            .iter()
            .filter(|((_, home), listener)| {
                let latest = self.journal.latest(home);
                !listener.unsent.is_empty() || latest.is_some_and(|n| n > listener.number)
            })
            .map(|(key, _)| *key)
            .collect();
        for (tunnel, home) in behind {
            let Some(listener) = self.listeners.get_mut(&(tunnel, home)) else { continue };
            let pause = if listener.near == Near::Lan { PAUSE_LAN } else { PAUSE_FAR };
            let since = listener.told.elapsed();
            if since < pause {
                next = Some(next.map_or(pause - since, |other| other.min(pause - since)));
                continue;
            }
            listener.told = Instant::now();
            let root = self.heard.indexed.contains(&home);
            match self.journal.news(home, listener.number, root) {
                Some(news) => listener.unsent.extend(news),
                // Too much has changed: it subscribes again when it sees the gap.
                None => continue,
            }
            listener.number = self.journal.latest(&home).unwrap_or(listener.number);
            self.send_unsent(tunnel, home);
        }
        next
    }
}

impl Heard {
    fn add(&mut self, home: Home, index: Option<&LayerIndex>) {
        let count = self.homes.entry(home).or_default();
        *count += 1;
        if let Home::Object(object) = home {
            self.hear(home, object);
        }
        if let Some(index) = index {
            self.learn(home, index);
        }
    }

    /// The index of a home is known; `true` if that is news to who listens.
    fn learn(&mut self, home: Home, index: &LayerIndex) -> bool {
        if !self.homes.contains_key(&home) || !self.indexed.insert(home) {
            return false;
        }
        index.objects().iter().for_each(|object| self.hear(home, *object));
        true
    }

    fn hear(&mut self, home: Home, object: ObjectId) {
        let homes = self.objects.entry(object).or_default();
        if !homes.contains(&home) {
            homes.push(home);
        }
    }

    /// One listener less; whether it was the last one of the home.
    fn remove(&mut self, home: &Home) -> bool {
        let Some(count) = self.homes.get_mut(home) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.homes.remove(home);
        self.indexed.remove(home);
        self.objects.retain(|_, homes| {
            homes.retain(|other| other != home);
            !homes.is_empty()
        });
        true
    }
}

/// Tells news as long as there is an engine.
pub(super) async fn flush(inner: Weak<Inner>, changed: Arc<Notify>) {
    let mut wait = None;
    loop {
        match wait {
            None => {
                changed.notified().await;
                // What comes right after goes along.
                tokio::time::sleep(PAUSE_LAN).await;
            }
            Some(wait) => tokio::time::sleep(wait).await,
        }
        let Some(inner) = inner.upgrade() else { return };
        let mut state = inner.state();
        if state.closed {
            return;
        }
        wait = state.net.as_mut().and_then(Net::tell_news);
    }
}

/// All that the store holds of a layer's content.
fn holdings(store: &Store, index: &LayerIndex) -> Vec<(ObjectId, Holding)> {
    index.objects().iter().filter_map(|object| holding(store, object)).collect()
}

fn holding(store: &Store, object: &ObjectId) -> Option<(ObjectId, Holding)> {
    if store.is_complete(object) {
        return Some((*object, Holding::All));
    }
    let words = store.bitfield(object)?;
    let bits = |word: u64| (0..64).filter(move |bit| word >> bit & 1 == 1);
    let numbers = (0u32..).zip(words).flat_map(|(n, word)| bits(word).map(move |bit| n * 64 + bit));
    let set: BlockSet = numbers.map(|number| number..number + 1).collect();
    (!set.is_empty()).then_some((*object, Holding::Add(set)))
}

/// As the scheduler wants to hear it: a run of blocks at a time.
fn spread(holding: Holding) -> Vec<schedule::Holding> {
    match holding {
        Holding::All => vec![schedule::Holding::All],
        Holding::Nothing => vec![schedule::Holding::Nothing],
        Holding::Add(set) => set.runs().iter().cloned().map(schedule::Holding::Add).collect(),
        Holding::Remove(set) => set.runs().iter().cloned().map(schedule::Holding::Remove).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Digest;

    #[test]
    fn objects_are_heard_as_long_as_anybody_listens() {
        let mut heard = Heard::default();
        let object = ObjectId::from_bytes([1; 32]);
        let home = Home::Object(object);
        heard.add(home, None);
        heard.add(home, None);
        assert!(heard.objects.contains_key(&object));
        assert!(!heard.remove(&home));
        assert!(heard.remove(&home));
        assert!(heard.objects.is_empty() && heard.homes.is_empty());
        assert!(!heard.remove(&Home::Layer(Digest::of(b"another"))));
    }
}
