//! What schedulers want done: requests, runs, look-ups, news of the LAN; and what
//! nodes store.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use peersync::fetch::schedule::{
    Action, BlockKey, Class, Event as Told, Extent, Holding, Refusal, RequestId, Scope, TunnelId,
};
use peersync::swarm::overlay::Input;
use peersync::types::ObjectId;

use super::content::BLOCK;
use super::node::{Manner, name, number};
use super::talk::Said;
use super::world::{Event, Fault, Job, World};
use crate::world::MS;

/// A layer that a node wants.
pub struct Pull {
    pub node: usize,
    pub layer: usize,
    /// When it was asked for, and when something of it came last.
    pub since: Duration,
    pub last: Option<Duration>,
    /// It has failed, and will be asked for again.
    pub again: bool,
}

/// What comes in answer to a request.
pub enum Answer {
    Block(BlockKey, u64),
    End,
    Refused(Refusal),
}

impl World {
    /// A node wants an image.
    pub fn pull(&mut self, node: usize, image: usize) {
        for layer in self.content.images[image].clone() {
            let pulled = self.pulls.iter().any(|pull| (pull.node, pull.layer) == (node, layer));
            if !pulled && !self.nodes[node].whole.contains_key(&layer) {
                self.pulls.push(Pull { node, layer, since: self.now, last: None, again: false });
                let blocks = 0..self.content.layers[layer].blocks;
                let missing = blocks.filter(|n| !self.nodes[node].has(layer, *n)).collect();
                self.want(node, layer, missing, Class::Completion);
                if self.rng.bool() {
                    self.want(node, layer, vec![0], Class::Urgent);
                }
            }
        }
    }

    /// A reader whose read has failed reads again.
    pub fn pull_again(&mut self, node: usize, layer: usize) {
        let is_it = |pull: &&mut Pull| (pull.node, pull.layer) == (node, layer);
        if let Some(pull) = self.pulls.iter_mut().find(is_it) {
            pull.again = false;
            self.want(
                node,
                layer,
                (0..self.content.layers[layer].blocks).collect(),
                Class::Completion,
            );
        }
    }

    fn want(&mut self, node: usize, layer: usize, blocks: Vec<u32>, class: Class) {
        let of = &self.content.layers[layer];
        let (home, size, registry) = (of.home(), of.size(), of.public);
        let missing = blocks.into_iter().filter(|n| !self.nodes[node].has(layer, *n));
        let wanted: Vec<_> = missing.map(|n| of.wanted(n)).collect();
        self.interests += 1;
        let (interest, shows) = (self.interests, self.shows(node));
        for wanted in &wanted {
            self.checks.wanted(node, wanted.key, interest, class, shows);
        }
        let class = match (self.plan.fault, class) {
            (Some(Fault::SwapPriority), Class::Urgent) => Class::Background,
            (Some(Fault::SwapPriority), _) => Class::Urgent,
            (_, class) => class,
        };
        self.tell(node, Told::Home { home, size, whole: false, registry });
        self.tell(node, Told::Want { interest, home, class, deadline: None, blocks: wanted });
    }

    /// A neighbour's reader waits for what this node is to get.
    pub fn want_for_neighbour(&mut self, node: usize, key: &BlockKey) {
        let layer = self.content.of_key(key);
        let wanted = self.nodes[node].machines.scheduler.is_wanted(key);
        if !wanted && !self.nodes[node].has(layer, key.index) {
            self.want(node, layer, vec![key.index], Class::Sequential);
        }
    }

    /// Does what a scheduler says.
    pub fn carry_out(&mut self, node: usize, action: Action) {
        let (me, life) = (name(node), self.nodes[node].life);
        match action {
            Action::Fetch { request, tunnel, object, extent, .. } => {
                let Some(server) = self.nodes[node].tunnels.get(&tunnel).copied() else { return };
                self.nodes[node].requests.insert(request, Some(tunnel));
                let (blocks, delay) = (jobs(object, &extent), self.net.delay(Some(server), node));
                self.post(delay, Event::Serve { client: node, life, tunnel, request, blocks });
            }
            Action::Run { request, home, stream, .. } => {
                if let Some(layer) = self.content.of_home(&home) {
                    self.run(node, request, layer, &stream);
                }
            }
            Action::Cancel { request } => drop(self.nodes[node].requests.remove(&request)),
            Action::Tunnels { peer, count } => {
                let peer = number(&peer);
                self.nodes[node].wanted.insert(peer, count);
                let have = self.nodes[node].tunnels.values().filter(|p| **p == peer).count();
                let delay = self.net.delay(Some(peer), node) * 4;
                for _ in have..count {
                    self.post(delay, Event::Open { node, peer, life });
                }
            }
            Action::Close { peer, .. } => self.close(node, number(&peer)),
            Action::Ban { peer } => {
                self.nodes[node].banned.insert(number(&peer));
                self.close(node, number(&peer));
                self.unlink(node, number(&peer), Input::Banned(peer));
            }
            Action::LookUp { home, scope, .. } => {
                let Some(layer) = self.content.of_home(&home) else { return };
                match scope {
                    Scope::Lan => {
                        let delay = self.net.lan_delay * 3;
                        self.post(delay, Event::LanAnswer { node, life, layer });
                    }
                    Scope::Swarm => self.find(node, layer),
                }
            }
            Action::Announce { home, on } => {
                self.tell_lan(node, &Told::Wants { peer: me, home, on });
            }
            Action::Claim { home, run, object, blocks, on, to } => {
                let event = Told::Getting { peer: me, home, run, object, blocks, on };
                match to {
                    Some(to) => drop(self.say(node, number(&to), Said::News(event))),
                    None => self.tell_lan(node, &event),
                }
            }
            Action::Ask { peer, key } => {
                self.say(node, number(&peer), Said::News(Told::Asked { peer: me, key }));
            }
            Action::Failed { key, .. } => self.failed(node, &key),
        }
    }

    fn tell_lan(&mut self, node: usize, event: &Told) {
        for other in self.nodes[node].links.keys().copied().collect::<Vec<_>>() {
            if self.net.same_lan(node, other) {
                self.say(node, other, Said::News(event.clone()));
            }
        }
    }

    /// A node uses no tunnel to that peer any more for content.
    pub fn close(&mut self, node: usize, peer: usize) {
        let of = &mut self.nodes[node];
        of.tunnels.retain(|_, other| *other != peer);
        let tunnels = &of.tunnels;
        of.requests.retain(|_, on| on.is_none_or(|tunnel| tunnels.contains_key(&tunnel)));
    }

    /// The registry is asked for a stretch of a layer.
    fn run(&mut self, node: usize, request: RequestId, layer: usize, stream: &Range<u64>) {
        let (of, life) = (&self.content.layers[layer], self.nodes[node].life);
        let why = match (of.public, self.registry) {
            (false, _) => Some(Refusal::Never),
            (true, false) => Some(Refusal::Broken),
            (true, true) => None,
        };
        self.nodes[node].requests.insert(request, None);
        if let Some(why) = why {
            let answer = Answer::Refused(why);
            let event = Event::Answer { node, life, request, from: None, answer };
            return self.post(self.net.far_delay * 2, event);
        }
        let (block, end) = (u64::from(BLOCK), stream.end.min(of.size()));
        let blocks = (stream.start / block) as u32..end.div_ceil(block) as u32;
        let keys: Vec<Job> = blocks.map(|n| (of.key(n), block)).collect();
        self.send(node, request, None, self.net.far_delay * 2, keys);
    }

    /// What a node or the registry sends in answer, over its lines.
    fn send(
        &mut self,
        node: usize,
        request: RequestId,
        from: Option<usize>,
        after: Duration,
        blocks: Vec<Job>,
    ) {
        let (life, mut last) = (self.nodes[node].life, Duration::ZERO);
        for (key, bytes) in blocks {
            let at = self.net.send(self.now + after, from, node, bytes, &mut self.rng);
            last = last.max(at - self.now);
            let answer = Answer::Block(key, bytes);
            self.post(last, Event::Answer { node, life, request, from, answer });
        }
        self.post(last, Event::Answer { node, life, request, from, answer: Answer::End });
    }

    /// A request has come to whoever is at the other end of the tunnel.
    pub fn serve(&mut self, client: usize, tunnel: TunnelId, request: RequestId, blocks: Vec<Job>) {
        let Some(server) = self.nodes[client].tunnels.get(&tunnel).copied() else { return };
        if !self.reach(client, server) {
            return;
        }
        let has = |(key, _): &Job| self.nodes[server].has(self.content.of_key(key), key.index);
        if !blocks.iter().all(has) {
            let (life, delay) = (self.nodes[client].life, self.net.delay(Some(server), client));
            let (from, answer) = (Some(server), Answer::Refused(Refusal::NotHave));
            return self.post(delay, Event::Answer { node: client, life, request, from, answer });
        }
        if let Some(link) = self.nodes[server].links.get_mut(&client) {
            link.gave = true;
        }
        let crawls = self.nodes[server].manner == Manner::Crawls;
        let after = if crawls { MS * 1500 } else { Duration::ZERO };
        self.send(client, request, Some(server), after, blocks);
    }

    pub fn answer(
        &mut self,
        node: usize,
        request: RequestId,
        from: Option<usize>,
        answer: &Answer,
    ) {
        let there = from.is_none_or(|from| self.reach(node, from));
        if !there || !self.nodes[node].requests.contains_key(&request) {
            return;
        }
        match *answer {
            Answer::Block(key, bytes) => self.block(node, request, from, key, bytes),
            Answer::End => {
                self.nodes[node].requests.remove(&request);
                self.checks.ended(node, request, true);
                self.tell(node, Told::Done { request });
            }
            Answer::Refused(why) => {
                self.nodes[node].requests.remove(&request);
                self.checks.ended(node, request, false);
                self.tell(node, Told::Refused { request, why });
            }
        }
    }

    fn block(
        &mut self,
        node: usize,
        request: RequestId,
        from: Option<usize>,
        key: BlockKey,
        bytes: u64,
    ) {
        if let Some(link) = from.and_then(|from| self.nodes[node].links.get_mut(&from)) {
            link.came += bytes;
        }
        self.tell(node, Told::Progress { request, bytes });
        if bytes < u64::from(BLOCK) {
            let got = self.nodes[node].parts.entry(key).or_default();
            *got += bytes;
            if *got < u64::from(BLOCK) {
                return;
            }
            self.nodes[node].parts.remove(&key);
        }
        let wanted = self.nodes[node].machines.scheduler.is_wanted(&key);
        // A registry's stream carries what nobody asked for, too.
        if from.is_some() || wanted {
            self.outcome.brought(from.map(|from| self.net.same_lan(from, node)), bytes);
            self.checks.arrived(node, &key);
            self.tell(node, Told::Block { request, key, len: BLOCK });
        }
        self.keep(node, key);
    }

    /// A block is stored, and told of.
    fn keep(&mut self, node: usize, key: BlockKey) {
        let layer = self.content.of_key(&key);
        let blocks = self.nodes[node].store.entry(layer).or_default();
        let first = blocks.is_empty();
        if !blocks.insert(key.index) {
            return;
        }
        let whole = blocks.len() as u32 == self.content.layers[layer].blocks;
        if first {
            self.record(node, layer);
        }
        if whole {
            self.nodes[node].whole.insert(layer, self.now);
        }
        self.nodes[node].news |= first || whole;
        self.pulled(node, layer, whole);
        let life = self.nodes[node].life;
        for (far, wait) in [(false, MS * 2), (true, MS * 100)] {
            let fresh = &mut self.nodes[node].fresh[usize::from(far)];
            let first = fresh.is_empty();
            fresh.insert(key);
            if first {
                self.post(wait, Event::Flush { node, life, far });
            }
        }
    }

    /// What is new goes to those near, or to those far.
    pub fn flush(&mut self, node: usize, far: bool) {
        let fresh = std::mem::take(&mut self.nodes[node].fresh[usize::from(far)]);
        let layers: BTreeSet<usize> = fresh.iter().map(|key| self.content.of_key(key)).collect();
        for layer in layers {
            let object = self.content.layers[layer].key(0).object;
            let of = fresh.iter().filter(|key| key.object == object);
            let runs = self.runs(layer, &of.map(|key| key.index).collect());
            for other in self.nodes[node].links.keys().copied().collect::<Vec<_>>() {
                if self.net.same_lan(node, other) == far {
                    continue;
                }
                for (object, holding) in runs.clone() {
                    let peer = name(node);
                    self.say(node, other, Said::News(Told::Have { peer, object, holding }));
                }
            }
        }
    }

    /// Blocks of a layer, as they are told.
    pub fn runs(&self, layer: usize, blocks: &BTreeSet<u32>) -> Vec<(ObjectId, Holding)> {
        let object = self.content.layers[layer].key(0).object;
        let mut runs: Vec<Range<u32>> = Vec::new();
        for block in blocks {
            match runs.last_mut() {
                Some(run) if run.end == *block => run.end += 1,
                _ => runs.push(*block..block + 1),
            }
        }
        runs.into_iter().map(|run| (object, Holding::Add(run))).collect()
    }

    /// Neighbours have been asked who has something of a layer.
    pub fn lan_answers(&mut self, node: usize, layer: usize) {
        self.looked_up(node, layer, true);
    }

    pub fn looked_up(&mut self, node: usize, layer: usize, lan: bool) {
        let object = self.content.layers[layer].key(0).object;
        let of_layer = BlockKey { object, index: 0 }..=BlockKey { object, index: u32::MAX };
        let found = self.nodes[node].links.iter().any(|(other, link)| {
            self.net.same_lan(node, *other) == lan
                && link.known.range(of_layer.clone()).next().is_some()
        });
        let scope = if lan { Scope::Lan } else { Scope::Swarm };
        let home = self.content.layers[layer].home();
        self.tell(node, Told::LookedUp { home, scope, found });
    }
}

fn jobs(object: ObjectId, extent: &Extent) -> Vec<Job> {
    match extent {
        Extent::Blocks(range) => {
            range.clone().map(|index| (BlockKey { object, index }, u64::from(BLOCK))).collect()
        }
        Extent::Part { index, len, .. } => {
            vec![(BlockKey { object, index: *index }, u64::from(*len))]
        }
    }
}
