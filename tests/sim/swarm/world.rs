//! One world of whole nodes: LANs of ten, lines between them, a registry, a table.
//!
//! Links, elections, announcements, popularity, neighbours, schedulers and ladders
//! are the shipped machines; this carries what they say, and makes things happen to
//! them. The distributed table is none of them: here it names who put a record into
//! it in the last half hour, whether that node is there or not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use peersync::fetch::schedule::{BlockKey, Event as Told, Near, RequestId, TunnelId};
use peersync::swarm::elect;
use peersync::swarm::overlay::{Input, Source};

use super::content::Content;
use super::fetch::{Answer, Pull};
use super::judge::Outcome;
use super::node::{LAN, Link, Manner, Node, address, name};
use super::talk::Said;
use crate::check::Checks;
use crate::clock::Clock;
use crate::net::Net;
use crate::queue::Queue;
use crate::world::MS;

pub const S: Duration = Duration::from_secs(1);
/// A tunnel that is silent for so long is given up.
pub const SILENCE: Duration = Duration::from_secs(30);
/// A call to what is not there fails after this long.
const NO_ANSWER: Duration = Duration::from_secs(5);
/// Nodes that one node has tunnels to at most.
const LINKS_MAX: usize = 254;
/// How long a record in the table lasts, and nodes that it names at a time.
const RECORD: Duration = Duration::from_secs(30 * 60);
const RECORDS: usize = 8;

/// Something that is wrong with the shell around a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The scheduler hears that background is urgent, and the reverse.
    SwapPriority,
    /// That a tunnel did not take what was told is not heeded.
    DropAck,
    /// Nodes on the way make beats newer.
    RenewBeats,
    /// Nodes of the LAN count as far away.
    NoLan,
    /// Tunnels to neighbours that are dropped stay.
    KeepDropped,
}

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub nodes: usize,
    /// Share of the nodes that goes, and as many come back, each minute.
    pub churn: f64,
    /// Share of what is said that is lost where it may be.
    pub loss: f64,
    /// Share of the nodes that lie, in any way.
    pub liars: f64,
    /// Share of the images whose last layer is in no registry.
    pub private: f64,
    /// Images that are pulled in a minute, for each node.
    pub pulls: f64,
    pub fault: Option<Fault>,
}

/// What happens. Events of a node are for one life of it.
pub enum Event {
    Said { from: usize, to: usize, link: u64, said: Said },
    Wake { node: usize, life: u64 },
    Tick { node: usize, life: u64 },
    Called { by: usize, to: usize, life: u64 },
    NotMet { by: usize, to: usize, life: u64 },
    Gone { node: usize, other: usize, link: u64 },
    Open { node: usize, peer: usize, life: u64 },
    Serve { client: usize, life: u64, tunnel: TunnelId, request: RequestId, blocks: Vec<Job> },
    Answer { node: usize, life: u64, request: RequestId, from: Option<usize>, answer: Answer },
    LanAnswer { node: usize, life: u64, layer: usize },
    TableAnswer { node: usize, life: u64, layer: usize },
    Flush { node: usize, life: u64, far: bool },
    Again { node: usize, life: u64, layer: usize },
}

/// A block, or so many bytes of one.
pub type Job = (BlockKey, u64);

pub struct World {
    pub plan: Plan,
    pub seed: u64,
    pub now: Duration,
    pub rng: fastrand::Rng,
    pub net: Net,
    pub content: Content,
    pub nodes: Vec<Node>,
    pub registry: bool,
    pub checks: Checks,
    pub pulls: Vec<Pull>,
    pub outcome: Outcome,
    /// LANs that are cut off from the others, and when that was begun or ended.
    pub cut: BTreeSet<usize>,
    pub cut_at: Duration,
    pub next: u64,
    pub interests: u64,
    queue: Queue<Event>,
    /// Who has put a record about a layer into the table.
    records: BTreeMap<usize, BTreeMap<usize, Duration>>,
    leaving: f64,
    pulling: f64,
}

impl World {
    pub fn new(plan: Plan, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let lans: Vec<usize> =
            (0..plan.nodes).step_by(LAN).map(|first| LAN.min(plan.nodes - first)).collect();
        let mut net = Net::new(&lans, 125e6, 12.5e6);
        net.registry.rate = 125e6 * lans.len() as f64;
        net.loss = plan.loss;
        let content = Content::new(plan.nodes / 2, plan.private, &mut rng);
        let nodes = (0..plan.nodes).map(|n| {
            let manners = [Manner::Denies, Manner::Usurps, Manner::Crawls];
            let lies = rng.f64() < plan.liars;
            let manner = if lies { manners[rng.usize(0..3)] } else { Manner::Honest };
            let clock = Clock::skewed(Duration::ZERO, &mut rng);
            Node::new(n, manner, clock, &mut rng)
        });
        let nodes = nodes.collect();
        let mut world = Self {
            plan,
            seed,
            now: Duration::ZERO,
            rng,
            net,
            content,
            nodes,
            registry: true,
            checks: Checks::default(),
            pulls: Vec::new(),
            outcome: Outcome::default(),
            cut: BTreeSet::new(),
            cut_at: Duration::ZERO,
            next: 0,
            interests: 0,
            queue: Queue::new(),
            records: BTreeMap::new(),
            leaving: 0.0,
            pulling: 0.0,
        };
        world.hand_out();
        (0..plan.nodes).for_each(|node| world.begin(node));
        world
    }

    /// Each image is at three nodes from the start.
    fn hand_out(&mut self) {
        for image in 0..self.content.images.len() {
            for _ in 0..3 {
                let node = self.rng.usize(0..self.nodes.len());
                for layer in self.content.images[image].clone() {
                    let blocks = (0..self.content.layers[layer].blocks).collect();
                    self.nodes[node].store.insert(layer, blocks);
                    self.nodes[node].whole.insert(layer, Duration::ZERO);
                    self.record(node, layer);
                }
            }
        }
    }

    /// A node starts: it calls its LAN, and the table gives it a few others.
    fn begin(&mut self, node: usize) {
        self.call_lan(node);
        for _ in 0..4 {
            self.table_names(node);
        }
        for layer in self.nodes[node].whole.keys().copied().collect::<Vec<_>>() {
            self.record(node, layer);
        }
        let (life, at) = (self.nodes[node].life, self.now + MS * self.rng.u32(0..1000));
        self.queue.push(at, Event::Tick { node, life });
        self.schedule(node);
    }

    pub fn call_lan(&mut self, node: usize) {
        let first = node / LAN * LAN;
        for other in first..(first + LAN).min(self.nodes.len()) {
            if self.nodes[other].is_alive() {
                self.call(node, other);
            }
        }
    }

    fn table_names(&mut self, node: usize) {
        let other = self.rng.usize(0..self.nodes.len());
        let (source, peer, address) = (Source::Table, name(other), address(other));
        self.overlay(node, Input::Named { source, peer, address });
    }

    /// A node says in the table that it holds something of a layer.
    pub fn record(&mut self, node: usize, layer: usize) {
        self.records.entry(layer).or_default().insert(node, self.now);
    }

    /// What the table says of a layer: some of those that have a record.
    pub fn recorded(&mut self, layer: usize, asker: usize) -> Vec<usize> {
        let now = self.now;
        let Some(records) = self.records.get_mut(&layer) else { return Vec::new() };
        records.retain(|_, at| now - *at < RECORD);
        let mut named: Vec<usize> = records.keys().copied().filter(|n| *n != asker).collect();
        self.rng.shuffle(&mut named);
        named.truncate(RECORDS);
        named
    }

    /// Time by a node's clock.
    pub fn shows(&self, node: usize) -> Duration {
        self.nodes[node].clock.monotonic(self.now)
    }

    pub fn post(&mut self, after: Duration, event: Event) {
        self.queue.push(self.now + after, event);
    }

    /// Whether anything goes from one to the other.
    pub fn reach(&self, a: usize, b: usize) -> bool {
        let [a, b] = [a, b].map(|node| &self.nodes[node]);
        a.is_alive() && b.is_alive() && self.cut.contains(&a.lan) == self.cut.contains(&b.lan)
    }

    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            let second = self.now + S;
            while self.queue.due().is_some_and(|at| at <= second) {
                self.step();
            }
            self.now = second;
            self.weather();
            self.check();
        }
    }

    /// What befalls nodes in a second.
    fn weather(&mut self) {
        let nodes = self.nodes.len() as f64;
        self.leaving += self.plan.churn * nodes / 60.0;
        while self.leaving >= 1.0 {
            self.leaving -= 1.0;
            let node = self.rng.usize(0..self.nodes.len());
            if self.nodes[node].is_alive() {
                let noticed = self.rng.bool();
                self.kill(node, noticed);
            }
            let gone = (0..self.nodes.len()).filter(|n| !self.nodes[*n].is_alive());
            let gone: Vec<usize> = gone.collect();
            if gone.len() > self.nodes.len() / 10 {
                let back = gone.iter().copied().min_by_key(|n| self.nodes[*n].died);
                back.into_iter().for_each(|node| self.revive(node));
            }
        }
        self.pulling += self.plan.pulls * nodes / 60.0;
        while self.pulling >= 1.0 {
            self.pulling -= 1.0;
            let node = self.rng.usize(0..self.nodes.len());
            // Some images are asked for much more than others.
            let image = (0..3).map(|_| self.rng.usize(0..self.content.images.len())).min();
            if self.nodes[node].is_alive() {
                self.pull(node, image.unwrap_or_default());
            }
        }
        if self.rng.u8(0..4) == 0 {
            let (node, by) = (self.rng.usize(0..self.nodes.len()), self.rng.u32(0..5000));
            self.nodes[node].clock.jump(self.now, MS * by);
            self.nodes[node].wakes = None;
            self.schedule(node);
        }
    }

    pub fn kill(&mut self, node: usize, noticed: bool) {
        self.nodes[node].died = Some(self.now);
        self.checks.forget(node);
        self.pulls.retain(|pull| pull.node != node);
        let links = std::mem::take(&mut self.nodes[node].links);
        for (other, link) in links {
            let after = if noticed { self.net.far_delay } else { SILENCE };
            self.post(after, Event::Gone { node: other, other: node, link: link.number });
        }
    }

    fn revive(&mut self, node: usize) {
        let clock = Clock::skewed(self.now, &mut self.rng);
        self.nodes[node].revive(self.now, clock, self.rng.u64(..));
        self.begin(node);
    }

    /// Nothing goes between these LANs and the others, until this is called again.
    pub fn cut(&mut self, lans: impl IntoIterator<Item = usize>) {
        (self.cut, self.cut_at) = (lans.into_iter().collect(), self.now);
        for node in 0..self.nodes.len() {
            let links = self.nodes[node].links.iter_mut();
            let links: Vec<_> = links
                .map(|(other, link)| (*other, link.number, std::mem::take(&mut link.held)))
                .collect();
            for (other, link, held) in links {
                let reached = self.reach(node, other);
                for said in held.into_iter().filter(|_| reached) {
                    self.hear(other, node, said);
                }
                if self.cut.contains(&(node / LAN)) != self.cut.contains(&(other / LAN)) {
                    self.post(SILENCE, Event::Gone { node, other, link });
                }
            }
        }
    }

    fn is_life(&self, node: usize, life: u64) -> bool {
        self.nodes[node].is_alive() && self.nodes[node].life == life
    }

    fn step(&mut self) {
        let Some((at, event)) = self.queue.pop() else { return };
        self.now = at;
        match event {
            Event::Said { from, to, link, said } => {
                let reached = self.reach(from, to);
                let heard = |link_: &&mut Link| link_.number == link;
                match self.nodes[to].links.get_mut(&from).filter(heard) {
                    Some(_) if reached => self.hear(from, to, said),
                    Some(link) => link.held.push(said),
                    None => {}
                }
            }
            Event::Wake { node, life }
                if self.is_life(node, life) && self.nodes[node].wakes == Some(at) =>
            {
                self.nodes[node].wakes = None;
                self.wake(node);
            }
            Event::Tick { node, life } if self.is_life(node, life) => self.tick(node),
            Event::Called { by, to, life } if self.is_life(by, life) => self.called(by, to),
            Event::NotMet { by, to, life } if self.is_life(by, life) => self.not_met(by, to),
            Event::Gone { node, other, link } => {
                let same = |link_: &Link| link_.number == link;
                if self.nodes[node].links.get(&other).is_some_and(same) && !self.reach(node, other)
                {
                    self.unlink(node, other, Input::Down(name(other)));
                }
            }
            Event::Open { node, peer, life } if self.is_life(node, life) => self.open(node, peer),
            Event::Serve { client, life, tunnel, request, blocks }
                if self.is_life(client, life) =>
            {
                self.serve(client, tunnel, request, blocks);
            }
            Event::Answer { node, life, request, from, answer } if self.is_life(node, life) => {
                self.answer(node, request, from, &answer);
            }
            Event::LanAnswer { node, life, layer } if self.is_life(node, life) => {
                self.lan_answers(node, layer);
            }
            Event::TableAnswer { node, life, layer } if self.is_life(node, life) => {
                let named = self.recorded(layer, node);
                self.named(node, layer, &named);
            }
            Event::Again { node, life, layer } if self.is_life(node, life) => {
                self.pull_again(node, layer);
            }
            Event::Flush { node, life, far } if self.is_life(node, life) => self.flush(node, far),
            _ => {}
        }
    }

    /// A node's clock shows a time that one of its machines waits for.
    fn wake(&mut self, node: usize) {
        let shows = self.shows(node);
        let machines = &mut self.nodes[node].machines;
        if machines.elector.wake().is_some_and(|at| at <= shows) {
            machines.elector.tick(shows);
            self.elected(node);
        }
        if self.nodes[node].machines.scheduler.next_wake().is_some_and(|at| at <= shows) {
            self.tell(node, Told::Tick);
        }
        self.schedule(node);
    }

    pub fn schedule(&mut self, node: usize) {
        let of = &mut self.nodes[node];
        let wakes = [of.machines.elector.wake(), of.machines.scheduler.next_wake()];
        let Some(at) = wakes.into_iter().flatten().min() else { return };
        let at = of.clock.when(at, self.now);
        if of.wakes.is_none_or(|queued| at < queued) {
            of.wakes = Some(at);
            let life = of.life;
            self.queue.push(at, Event::Wake { node, life });
        }
    }

    /// What a node does each second.
    fn tick(&mut self, node: usize) {
        let life = self.nodes[node].life;
        let next = self.nodes[node].clock.when(self.shows(node) + S, self.now);
        self.queue.push(next, Event::Tick { node, life });
        let second = next.as_secs() + node as u64;
        if second.is_multiple_of(5) {
            self.call_lan(node);
        }
        if second.is_multiple_of(30) {
            self.table_names(node);
        }
        self.tick_tracker(node);
        self.tick_overlay(node);
        self.tell_news(node);
        self.schedule(node);
    }

    /// A node calls another one, unless it has a tunnel to it.
    pub fn call(&mut self, by: usize, to: usize) -> bool {
        if by == to || self.nodes[by].links.contains_key(&to) {
            return false;
        }
        if self.nodes[by].calling.insert(to) {
            let life = self.nodes[by].life;
            if to < self.nodes.len() && self.reach(by, to) {
                let delay = self.net.delay(Some(to), by) * 4;
                self.post(delay, Event::Called { by, to, life });
            } else {
                self.post(NO_ANSWER, Event::NotMet { by, to, life });
            }
        }
        true
    }

    fn called(&mut self, by: usize, to: usize) {
        let full = |node: usize| self.nodes[node].links.len() >= LINKS_MAX;
        let banned = |a: usize, b: usize| self.nodes[a].banned.contains(&b);
        if !self.reach(by, to) || full(by) || full(to) || banned(by, to) || banned(to, by) {
            return self.not_met(by, to);
        }
        self.nodes[by].calling.remove(&to);
        if !self.nodes[by].links.contains_key(&to) {
            // What the other end has from before is a tunnel to an earlier life.
            self.unlink(to, by, Input::Down(name(by)));
            self.next += 1;
            let number = self.next;
            self.link(by, to, number);
            self.link(to, by, number);
        }
    }

    fn not_met(&mut self, by: usize, to: usize) {
        self.nodes[by].calling.remove(&to);
        self.overlay(by, Input::Failed(name(to)));
        self.met(by, to);
    }

    fn link(&mut self, node: usize, other: usize, number: u64) {
        let near = self.net.same_lan(node, other);
        let link = Link {
            number,
            images: Default::default(),
            known: BTreeSet::new(),
            came: 0,
            gave: false,
            since: self.now,
            held: Vec::new(),
        };
        self.nodes[node].links.insert(other, link);
        let far = !near || self.plan.fault == Some(Fault::NoLan);
        let shows = self.shows(node);
        let where_ = if near { elect::Near::Lan } else { elect::Near::Remote };
        self.nodes[node].machines.elector.link_up(name(other), where_, shows);
        self.elected(node);
        let near = if far { Near::Remote } else { Near::Lan };
        self.tell(node, Told::PeerUp { peer: name(other), near });
        self.tell_all(node, other);
        self.schedule(node);
    }

    /// The tunnel to a node is gone; the overlay hears why.
    pub fn unlink(&mut self, node: usize, other: usize, why: Input) {
        let of = &mut self.nodes[node];
        if of.links.remove(&other).is_none() || !of.is_alive() {
            return;
        }
        of.wanted.remove(&other);
        self.close(node, other);
        let shows = self.shows(node);
        let machines = &mut self.nodes[node].machines;
        machines.elector.link_down(&name(other), shows);
        machines.table.lost(&name(other), shows);
        machines.sets.forget(&name(other));
        self.elected(node);
        self.checks.source_gone(node, other);
        self.tell(node, Told::PeerGone { peer: name(other) });
        self.overlay(node, why);
        self.met(node, other);
        self.schedule(node);
    }

    fn open(&mut self, node: usize, peer: usize) {
        let id = name(peer);
        let of = &self.nodes[node];
        if !of.links.contains_key(&peer) {
            return self.tell(node, Told::TunnelFailed { peer: id });
        }
        let have = of.tunnels.values().filter(|other| **other == peer).count();
        if of.wanted.get(&peer).is_none_or(|wanted| have >= *wanted) {
            return;
        }
        self.next += 1;
        let tunnel = self.next;
        self.nodes[node].tunnels.insert(tunnel, peer);
        let rtt = self.net.delay(Some(peer), node) * 2;
        self.tell(node, Told::TunnelUp { peer: id, tunnel, rtt });
    }

    /// Gives a node's scheduler an event, and does what it says.
    pub fn tell(&mut self, node: usize, event: Told) {
        let shows = self.shows(node);
        let actions = self.nodes[node].machines.scheduler.apply(shows, event);
        if let Err(why) = self.nodes[node].machines.scheduler.check() {
            panic!("seed {}: node {node} at {:?}: {why}", self.seed, self.now);
        }
        for action in actions {
            if let Err(why) = self.check_action(node, &action) {
                panic!("seed {}: node {node} at {:?}: {why}\n  {action:?}", self.seed, self.now);
            }
            self.carry_out(node, action);
        }
        self.schedule(node);
    }
}
