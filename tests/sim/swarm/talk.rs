//! What nodes say to each other, and what their machines make of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use peersync::fetch::schedule::{BlockKey, Event as Told, Holding};
use peersync::swarm::differences::{Difference, HeardError};
use peersync::swarm::elect::{self, Action as Elected};
use peersync::swarm::lookups::{Named, NotAsked};
use peersync::swarm::overlay::{Action, Input, Source};
use peersync::swarm::popularity::Short;
use peersync::swarm::tracker::Has;
use peersync::types::{Digest, PeerId};

use super::node::{Finding, Manner, address, name, number};
use super::world::{Event, Fault, World};

/// A tracker that there is no tunnel to is called this often.
const CALL: std::time::Duration = std::time::Duration::from_secs(5);
/// Nodes that a tracker names.
const NAMED: usize = 32;
/// Nodes from this number on are not there.
const FAKES: usize = 1 << 32;

pub enum Said {
    Elect(elect::Message),
    Layers(Difference<Digest, Has>),
    Images(Difference<Short, Arc<[Short]>>),
    /// That was not understood.
    Again,
    WhoHas(u64, Digest),
    Holders(u64, Vec<Named>),
    WhoElse,
    Others(Vec<(PeerId, SocketAddr)>),
    /// There are better neighbours.
    Unneeded,
    /// What the other's scheduler should know.
    News(Told),
    /// All that the speaker holds has been told.
    ToldAll,
}

impl World {
    /// Whether there is a tunnel to say it on, with room.
    pub fn say(&mut self, from: usize, to: usize, said: Said) -> bool {
        let Some(link) = self.nodes[from].links.get(&to).map(|link| link.number) else {
            return false;
        };
        let matters = matches!(said, Said::News(_) | Said::ToldAll | Said::Unneeded);
        if !matters && self.rng.f64() < self.plan.loss {
            return false;
        }
        let delay = self.net.delay(Some(from), to);
        self.post(delay, Event::Said { from, to, link, said });
        true
    }

    pub fn hear(&mut self, from: usize, to: usize, said: Said) {
        let shows = self.shows(to);
        let machines = &mut self.nodes[to].machines;
        match said {
            Said::Elect(message) => {
                machines.elector.hear(name(from), message, shows);
                self.elected(to);
                self.schedule(to);
            }
            Said::Layers(part) => {
                if machines.elector.tracker() == Some(name(to)) {
                    let (at, place) = (Some(address(from)), (part.full, part.number));
                    let told = machines.table.announce(name(from), at, place, part.changes);
                    self.understood(to, from, told);
                }
            }
            Said::Images(part) => {
                let changes = part.changes.into_iter();
                let changes = changes.map(|(image, layers)| (image, layers.map(|l| l.to_vec())));
                let place = (part.full, part.number);
                let told = machines.sets.tell(name(from), place, changes.collect());
                let pop = machines.sets.pop(&name(from));
                self.tell(to, Told::Scored { peer: name(from), pop, custom: 0.0 });
                self.understood(to, from, told);
            }
            Said::Again => {
                if machines.elector.tracker() == Some(name(from)) {
                    machines.layers.again();
                }
                self.nodes[to].links.get_mut(&from).into_iter().for_each(|l| l.images.again());
                self.nodes[to].news = true;
            }
            Said::WhoHas(id, layer) => {
                let holders = self.who_has(to, from, &layer);
                self.say(to, from, Said::Holders(id, holders));
            }
            Said::Holders(id, holders) => {
                let (by, me) = (name(from), name(to));
                let lookups = &mut machines.lookups;
                let answer = lookups.answer((&by, address(from).ip()), id, &[holders], &me, shows);
                if let Some((layer, named)) = answer {
                    let named: Vec<usize> = named.iter().map(|one| number(&one.peer)).collect();
                    self.named_by_tracker(to, &layer, &named);
                }
            }
            Said::WhoElse => {
                if let Some(others) = machines.overlay.tell(shows, &name(from)) {
                    self.say(to, from, Said::Others(others));
                }
            }
            Said::Others(others) => {
                for (peer, address) in others {
                    let source = Source::Neighbour(name(from));
                    self.overlay(to, Input::Named { source, peer, address });
                }
            }
            Said::Unneeded => self.unlink(to, from, Input::Dismissed(name(from))),
            Said::News(event) => self.hear_news(to, from, event),
            Said::ToldAll => self.met(to, from),
        }
    }

    fn hear_news(&mut self, node: usize, from: usize, event: Told) {
        match &event {
            Told::Have { object, holding: Holding::Add(range), .. } => {
                let keys = range.clone().map(|index| BlockKey { object: *object, index });
                if let Some(link) = self.nodes[node].links.get_mut(&from) {
                    link.known.extend(keys);
                }
            }
            Told::Asked { key, .. } => self.want_for_neighbour(node, key),
            _ => {}
        }
        self.tell(node, event);
    }

    fn understood(&mut self, node: usize, from: usize, told: Result<(), HeardError>) {
        if told == Err(HeardError::Gap) {
            self.say(node, from, Said::Again);
        }
    }

    /// Does what a node's elector says.
    pub fn elected(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].machines.elector.poll() {
            match action {
                Elected::Tracker(tracker) => self.tracker_is(node, tracker),
                Elected::Send { to, mut message } => {
                    if let elect::Message::Claim { claim, age, .. } = &mut message {
                        let said = &mut self.nodes[number(&claim.tracker)].said;
                        if claim.tracker == name(node) {
                            *said = claim.sequence.max(*said);
                        } else if self.plan.fault == Some(Fault::RenewBeats) && node % 7 == 3 {
                            (claim.sequence, *age) = (claim.sequence + 1, Default::default());
                        }
                    }
                    self.say(node, number(&to), Said::Elect(message));
                }
            }
        }
        self.check_claim(node);
    }

    fn tracker_is(&mut self, node: usize, tracker: Option<PeerId>) {
        let of = &mut self.nodes[node];
        (of.follows, of.since) = (tracker.as_ref().map(number), self.now);
        of.called = Default::default();
        of.news = true;
        if tracker != Some(of.id) {
            of.machines.table.clear();
        }
        of.machines.layers.again();
        for layer in of.machines.lookups.tracker_changed() {
            self.named_by_tracker(node, &layer, &[]);
        }
        self.call_tracker(node);
    }

    fn call_tracker(&mut self, node: usize) {
        let of = &mut self.nodes[node];
        let lately = self.now < of.called + CALL && !of.called.is_zero();
        if let Some(tracker) = of.follows.filter(|_| !lately) {
            of.called = self.now;
            self.call(node, tracker);
        }
    }

    /// What a node does each second for and as a tracker.
    pub fn tick_tracker(&mut self, node: usize) {
        let shows = self.shows(node);
        let of = &mut self.nodes[node];
        of.machines.table.tick(shows);
        let links = &of.links;
        let late = of.machines.lookups.tick(shows, |peer| links.contains_key(&number(peer)));
        if of.machines.lookups.is_found_out()
            && let Some(tracker) = of.follows
        {
            of.machines.elector.distrust(name(tracker), shows);
            self.elected(node);
        }
        for layer in late {
            self.named_by_tracker(node, &layer, &[]);
        }
        self.call_tracker(node);
    }

    /// Tells the tracker which layers a node holds, and peers what its images are
    /// made of.
    pub fn tell_news(&mut self, node: usize) {
        let heeds = self.plan.fault != Some(Fault::DropAck);
        if !std::mem::take(&mut self.nodes[node].news) {
            return;
        }
        let images = self.images_of(node);
        let (layers, id) = (self.layers_of(node), name(node));
        self.nodes[node].machines.sets.own(id, &images);
        let of = &mut self.nodes[node];
        if let Some(tracker) = of.follows.filter(|tracker| of.links.contains_key(tracker)) {
            let link = of.links[&tracker].number;
            let said = of.machines.layers.say(link, &layers, 8, |_| 1);
            let told: Vec<bool> =
                said.into_iter().map(|part| self.say(node, tracker, Said::Layers(part))).collect();
            if heeds && told.contains(&false) {
                self.nodes[node].machines.layers.again();
                self.nodes[node].news = true;
            }
        } else {
            of.news = of.follows.is_some_and(|tracker| tracker != node);
        }
        for other in self.nodes[node].links.keys().copied().collect::<Vec<_>>() {
            let Some(link) = self.nodes[node].links.get_mut(&other) else { continue };
            let said = link.images.say(link.number, &images, 8, |_| 1);
            let told: Vec<bool> =
                said.into_iter().map(|part| self.say(node, other, Said::Images(part))).collect();
            if heeds && told.contains(&false) {
                self.nodes[node].links.get_mut(&other).into_iter().for_each(|l| l.images.again());
                self.nodes[node].news = true;
            }
        }
    }

    /// Which layers a node says that it holds.
    fn layers_of(&self, node: usize) -> BTreeMap<Digest, Has> {
        let of = &self.nodes[node];
        let has = |layer: &usize| if of.whole.contains_key(layer) { Has::Whole } else { Has::Some };
        let held = of.store.keys().map(|layer| (self.content.layers[*layer].digest, has(layer)));
        let lies = self.lies_of(node).map(|layer| (self.content.layers[layer].digest, Has::Whole));
        held.chain(lies).collect()
    }

    /// Layers that a node only says it holds.
    fn lies_of(&self, node: usize) -> impl Iterator<Item = usize> {
        let count = if self.nodes[node].manner == Manner::Denies { 12 } else { 0 };
        let layers = self.content.layers.len();
        (0..count).map(move |n| (node * 31 + n * 17) % layers)
    }

    /// The images that a node has whole.
    pub fn images_of(&self, node: usize) -> BTreeMap<Short, Arc<[Short]>> {
        let whole = &self.nodes[node].whole;
        let has = |image: &usize| {
            self.content.images[*image].iter().all(|layer| whole.contains_key(layer))
        };
        let images = (0..self.content.images.len()).filter(has);
        images.map(|image| self.content.short(image)).collect()
    }

    /// All that a node says it holds goes to one that has just come.
    pub fn tell_all(&mut self, node: usize, other: usize) {
        let of = &self.nodes[node];
        let mut runs: Vec<_> =
            of.store.iter().flat_map(|(layer, blocks)| self.runs(*layer, blocks)).collect();
        for layer in self.lies_of(node).collect::<Vec<_>>() {
            let object = self.content.layers[layer].key(0).object;
            runs.push((object, Holding::Add(0..self.content.layers[layer].blocks)));
        }
        for (object, holding) in runs {
            let peer = name(node);
            self.say(node, other, Said::News(Told::Have { peer, object, holding }));
        }
        self.say(node, other, Said::ToldAll);
        self.nodes[node].news = true;
    }

    fn who_has(&mut self, tracker: usize, asker: usize, layer: &Digest) -> Vec<Named> {
        let of = &self.nodes[tracker];
        if of.manner == Manner::Usurps {
            let fakes = (0..8).map(|_| FAKES + self.rng.usize(0..1 << 20));
            return fakes.map(|n| Named { peer: name(n), address: address(n) }).collect();
        }
        if of.machines.elector.tracker() != Some(of.id) {
            return Vec::new();
        }
        let from = Some(address(asker).ip());
        let found = of.machines.table.who_has(layer, &name(asker), from, NAMED);
        found.iter().map(|one| Named { peer: one.peer, address: one.address }).collect()
    }

    /// A layer is looked for beyond the peers at hand.
    pub fn find(&mut self, node: usize, layer: usize) {
        if self.nodes[node].findings.contains_key(&layer) {
            return;
        }
        let finding = Finding { awaited: 2, meeting: BTreeSet::new() };
        self.nodes[node].findings.insert(layer, finding);
        let (delay, life) = (self.net.far_delay * 6, self.nodes[node].life);
        self.post(delay, Event::TableAnswer { node, life, layer });
        let (digest, shows) = (self.content.layers[layer].digest, self.shows(node));
        let of = &mut self.nodes[node];
        match of.follows {
            Some(tracker) if tracker == node => {
                let found = self.who_has(node, node, &digest);
                let found: Vec<usize> = found.iter().map(|one| number(&one.peer)).collect();
                self.named(node, layer, &found);
            }
            Some(tracker) if of.links.contains_key(&tracker) => {
                match of.machines.lookups.ask(name(tracker), digest, shows) {
                    Ok(id) => {
                        if !self.say(node, tracker, Said::WhoHas(id, digest)) {
                            self.nodes[node].machines.lookups.take_back(id);
                            self.named(node, layer, &[]);
                        }
                    }
                    Err(NotAsked::Open) => {}
                    Err(NotAsked::Full) => self.named(node, layer, &[]),
                }
            }
            _ => self.named(node, layer, &[]),
        }
    }

    fn named_by_tracker(&mut self, node: usize, layer: &Digest, named: &[usize]) {
        if let Some(layer) = self.content.layers.iter().position(|one| one.digest == *layer) {
            self.named(node, layer, named);
        }
    }

    /// These are said to hold something of a layer: those that there is no tunnel to
    /// are called.
    pub fn named(&mut self, node: usize, layer: usize, named: &[usize]) {
        let Some(finding) = self.nodes[node].findings.get_mut(&layer) else { return };
        finding.awaited = finding.awaited.saturating_sub(1);
        for other in named {
            if self.call(node, *other) {
                let finding = self.nodes[node].findings.get_mut(&layer).expect("it is there");
                finding.meeting.insert(*other);
            }
        }
        self.end_find(node, layer);
    }

    /// A node that may have been named is there, or can't be had.
    pub fn met(&mut self, node: usize, other: usize) {
        let findings = self.nodes[node].findings.iter_mut();
        let met: Vec<usize> = findings
            .filter_map(|(layer, finding)| finding.meeting.remove(&other).then_some(*layer))
            .collect();
        met.into_iter().for_each(|layer| self.end_find(node, layer));
    }

    fn end_find(&mut self, node: usize, layer: usize) {
        let Some(finding) = self.nodes[node].findings.get(&layer) else { return };
        if finding.awaited == 0 && finding.meeting.is_empty() {
            self.nodes[node].findings.remove(&layer);
            self.looked_up(node, layer, false);
        }
    }

    /// Tells a node's overlay what has happened, and does what it says.
    pub fn overlay(&mut self, node: usize, input: Input) {
        let shows = self.shows(node);
        let actions = self.nodes[node].machines.overlay.apply(shows, input);
        self.do_overlay(node, actions);
    }

    /// A node's overlay hears each second who has a tunnel, and how fast it was.
    pub fn tick_overlay(&mut self, node: usize) {
        let shows = self.shows(node);
        for other in self.nodes[node].links.keys().copied().collect::<Vec<_>>() {
            // One before it may have made it leave.
            if self.nodes[node].links.contains_key(&other) {
                let (near, address) = (self.net.same_lan(node, other), Some(address(other)));
                let kept = self.is_tied(node, other);
                self.overlay(node, Input::Up { peer: name(other), address, near, kept });
            }
        }
        let of = &mut self.nodes[node];
        let mut busy = Vec::new();
        for (other, link) in &mut of.links {
            let came = std::mem::take(&mut link.came) > 0;
            if std::mem::take(&mut link.gave) || came {
                busy.push((*other, came));
            }
        }
        if !busy.is_empty() {
            let standings = of.machines.scheduler.standings();
            for (other, came) in busy {
                self.overlay(node, Input::Carried(name(other)));
                if came && let Some(standing) = standings.get(&name(other)) {
                    self.overlay(node, Input::Measured(name(other), standing.speed));
                }
            }
        }
        let actions = self.nodes[node].machines.overlay.tick(shows);
        self.do_overlay(node, actions);
    }

    /// Whether one of two is the other's tracker.
    fn is_tied(&self, node: usize, other: usize) -> bool {
        match self.nodes[node].follows {
            Some(tracker) if tracker != node => tracker == other,
            _ => self.nodes[node].machines.table.connected().any(|peer| *peer == name(other)),
        }
    }

    fn do_overlay(&mut self, node: usize, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Probe(peer, _) => {
                    self.call(node, number(&peer));
                }
                Action::Ask(peer) => {
                    self.say(node, number(&peer), Said::WhoElse);
                }
                Action::Drop(_) if self.plan.fault == Some(Fault::KeepDropped) => {}
                Action::Drop(peer) => {
                    let other = number(&peer);
                    self.say(node, other, Said::Unneeded);
                    self.unlink(node, other, Input::Down(peer));
                }
            }
        }
    }
}
