//! Nodes that elect trackers, on a virtual clock: LANs, lines between them,
//! loss, cuts, deaths; the checkers look at every step.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use peersync::swarm::elect::{Action, Claim, Elector, LIFE, Message, Near, Score, Time};
use peersync::swarm::history::History;
use peersync::types::PeerId;

use crate::clock::{Clock, SKEW};
use crate::queue::Queue;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);
const LAN_SIZE: usize = 10;
const LAN_DELAY: Duration = Duration::from_micros(300);
const FAR_DELAY: Duration = Duration::from_millis(20);
/// A claim can be under way for so long after its tracker's end.
const UNDER_WAY: Duration = Duration::from_millis(400);

/// A fault in the wiring, for tests of the checkers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// Low scores look high.
    SwapScores,
    /// Nobody hears that its beats are superfluous.
    DropPrunes,
    /// Nodes that start anew number their claims by their clocks alone.
    NoMemory,
    /// A node on the way makes beats younger and newer.
    RenewBeats,
    /// Losers' claims go out of their LAN at once, over links that are called near.
    AllNear,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    pub(crate) now: Time,
    pub(crate) nodes: Vec<Node>,
    /// Shares of messages that are lost between LANs, and inside.
    pub(crate) loss: f64,
    pub(crate) mutation: Mutation,
    /// All messages so far.
    pub(crate) messages: u64,
    /// Of those, claims of candidates that crossed a boundary of LANs.
    pub(crate) crossed: u64,
    /// Changes of a node's tracker.
    pub(crate) changes: u64,
    queue: Queue<Event>,
    /// Whether clocks run at different speeds, start apart, and jump.
    skewed: bool,
    cut: Option<BTreeSet<usize>>,
    rng: fastrand::Rng,
    names: HashMap<PeerId, usize>,
    /// The last beat that each node has said itself.
    said: Vec<u64>,
    /// When a node died, if it is dead.
    died: Vec<Option<Time>>,
}

pub(crate) struct Node {
    pub(crate) elector: Elector,
    clock: Clock,
    /// What it knows of its earlier lives.
    memory: History,
    pub(crate) lan: usize,
    pub(crate) score: u16,
    pub(crate) neighbours: BTreeSet<usize>,
    /// The newest beat taken of each tracker.
    taken: BTreeMap<PeerId, u64>,
    lives: u64,
    /// The next wake-up that is queued.
    wakes: Option<Time>,
}

enum Event {
    Message { from: usize, to: usize, message: Message, life: u64 },
    Wake { node: usize, life: u64 },
    LinkDown { node: usize, gone: usize },
}

pub(crate) fn name(node: usize) -> PeerId {
    let mut name = [0; 32];
    // Names say nothing about scores.
    name[..8].copy_from_slice(&(node as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    name[8..16].copy_from_slice(&(node as u64).to_be_bytes());
    PeerId(name)
}

impl World {
    /// `count` nodes in LANs of ten, each with a few neighbours inside; two nodes
    /// of each LAN know some elsewhere. All start within 50 ms.
    pub(crate) fn new(count: usize, seed: u64) -> Self {
        Self::with(count, seed, false)
    }

    /// The same, and no two clocks are alike.
    pub(crate) fn skewed(count: usize, seed: u64) -> Self {
        Self::with(count, seed, true)
    }

    fn with(count: usize, seed: u64, skewed: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut world = Self {
            seed,
            now: Duration::ZERO,
            nodes: Vec::new(),
            loss: 0.0,
            mutation: Mutation::None,
            messages: 0,
            crossed: 0,
            changes: 0,
            queue: Queue::new(),
            skewed,
            cut: None,
            names: (0..count).map(|node| (name(node), node)).collect(),
            said: vec![0; count],
            died: vec![None; count],
            rng: fastrand::Rng::with_seed(seed ^ 1),
        };
        for node in 0..count {
            let score = rng.u16(100..=950);
            let starts = (MS * 50).mul_f64(rng.f64());
            let clock = world.new_clock();
            let mut memory = History::default();
            let first = memory.begin_life(clock.wall(starts));
            let elector = Elector::new(name(node), Score::told(score), first, rng.u64(..), starts);
            let (neighbours, taken) = (BTreeSet::new(), BTreeMap::new());
            let lan = node / LAN_SIZE;
            world.nodes.push(Node {
                elector,
                clock,
                memory,
                lan,
                score,
                neighbours,
                taken,
                lives: 0,
                wakes: None,
            });
        }
        for (a, b) in links(count, &mut rng) {
            world.nodes[a].neighbours.insert(b);
            world.nodes[b].neighbours.insert(a);
        }
        for node in 0..count {
            for other in world.nodes[node].neighbours.clone() {
                world.connect(node, other);
            }
            world.schedule(node);
        }
        world
    }

    pub(crate) fn links(&self) -> usize {
        self.nodes.iter().map(|node| node.neighbours.len()).sum::<usize>() / 2
    }

    pub(crate) fn far_links(&self) -> usize {
        let far = |(node, of): (usize, &Node)| {
            of.neighbours.iter().filter(|n| self.near(node, **n) == Near::Remote).count()
        };
        self.nodes.iter().enumerate().map(far).sum::<usize>() / 2
    }

    fn new_clock(&mut self) -> Clock {
        if self.skewed { Clock::skewed(self.now, &mut self.rng) } else { Clock::exact() }
    }

    /// What a node's clock shows.
    fn shows(&self, node: usize) -> Time {
        self.nodes[node].clock.monotonic(self.now)
    }

    /// The number of a node's first claim in a life that begins at this time of day.
    fn first_of_life(&mut self, node: usize, clock: Duration) -> u64 {
        if self.mutation == Mutation::NoMemory {
            self.nodes[node].memory = History::default();
        }
        self.nodes[node].memory.begin_life(clock)
    }

    /// A node has slept for a while.
    pub(crate) fn jump(&mut self, node: usize, by: Duration) {
        self.nodes[node].clock.jump(self.now, by);
        self.nodes[node].wakes = None;
        self.schedule(node);
    }

    fn near(&self, a: usize, b: usize) -> Near {
        if self.nodes[a].lan == self.nodes[b].lan { Near::Lan } else { Near::Remote }
    }

    fn connect(&mut self, node: usize, other: usize) {
        let near = match self.mutation {
            Mutation::AllNear => Near::Lan,
            _ => self.near(node, other),
        };
        let now = self.shows(node);
        self.nodes[node].elector.link_up(name(other), near, now);
        self.act(node);
    }

    /// All links know each other as near from now on.
    pub(crate) fn mutate(&mut self, mutation: Mutation) {
        self.mutation = mutation;
        if mutation == Mutation::AllNear {
            for node in 0..self.nodes.len() {
                for other in self.nodes[node].neighbours.clone() {
                    self.connect(node, other);
                }
            }
        }
    }

    pub(crate) fn is_alive(&self, node: usize) -> bool {
        self.died[node].is_none()
    }

    /// Its power is cut: neighbours hear of it only where `noticed`.
    pub(crate) fn kill(&mut self, node: usize, noticed: bool) {
        self.died[node] = Some(self.now);
        if noticed {
            for other in self.nodes[node].neighbours.clone() {
                self.queue.push(self.now + FAR_DELAY, Event::LinkDown { node: other, gone: node });
            }
        }
    }

    /// The node starts anew.
    pub(crate) fn revive(&mut self, node: usize) {
        let (clock, seed) = (self.new_clock(), self.rng.u64(..));
        self.died[node] = None;
        let first = self.first_of_life(node, clock.wall(self.now));
        let now = clock.monotonic(self.now);
        let fresh = &mut self.nodes[node];
        fresh.lives += 1;
        (fresh.wakes, fresh.clock) = (None, clock);
        fresh.taken.clear();
        fresh.elector = Elector::new(name(node), Score::told(fresh.score), first, seed, now);
        for other in self.nodes[node].neighbours.clone() {
            if self.is_alive(other) {
                self.connect(node, other);
                self.connect(other, node);
                self.schedule(other);
            }
        }
        self.schedule(node);
    }

    /// No message goes between these nodes and the others, until [`World::heal`].
    pub(crate) fn split(&mut self, part: BTreeSet<usize>) {
        self.cut = Some(part);
    }

    pub(crate) fn heal(&mut self) {
        self.cut = None;
    }

    /// Every node does without that tracker.
    pub(crate) fn distrust_by_all(&mut self, tracker: usize) {
        for node in 0..self.nodes.len() {
            let now = self.shows(node);
            self.nodes[node].elector.distrust(name(tracker), now);
            self.act(node);
            self.schedule(node);
        }
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let until = self.now + time;
        while self.queue.due().is_some_and(|at| at <= until) {
            self.step();
        }
        self.now = until;
    }

    /// Runs until each partition agrees on a tracker in it; gives how long it took.
    pub(crate) fn run_until_agreed(&mut self, limit: Duration) -> Duration {
        let start = self.now;
        while let Some(why) = self.disagreement() {
            let past = self.now - start;
            assert!(past <= limit, "seed {}: no agreement after {past:?}: {why}", self.seed);
            self.run_for(MS * 20);
        }
        self.now - start
    }

    /// Why there is not one tracker for each partition.
    pub(crate) fn disagreement(&self) -> Option<String> {
        for part in self.partitions() {
            let trackers: BTreeSet<Option<usize>> =
                part.iter().map(|node| self.tracker(*node)).collect();
            let one = trackers.first().copied().flatten();
            if trackers.len() != 1 || one.is_none_or(|one| !part.contains(&one)) {
                return Some(format!("{} nodes follow {trackers:?}", part.len()));
            }
        }
        None
    }

    /// Whom a node holds for the tracker.
    pub(crate) fn tracker(&self, node: usize) -> Option<usize> {
        self.nodes[node].elector.tracker().map(|tracker| self.names[&tracker])
    }

    /// Live nodes that can reach each other.
    pub(crate) fn partitions(&self) -> Vec<BTreeSet<usize>> {
        let mut left: BTreeSet<usize> =
            (0..self.nodes.len()).filter(|node| self.is_alive(*node)).collect();
        let mut parts = Vec::new();
        while let Some(first) = left.pop_first() {
            let (mut part, mut waiting) = (BTreeSet::from([first]), vec![first]);
            while let Some(node) = waiting.pop() {
                for other in &self.nodes[node].neighbours {
                    if !self.is_cut(node, *other) && left.remove(other) {
                        part.insert(*other);
                        waiting.push(*other);
                    }
                }
            }
            parts.push(part);
        }
        parts
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.as_ref().is_some_and(|part| part.contains(&a) != part.contains(&b))
    }

    fn step(&mut self) {
        let Some((at, event)) = self.queue.pop() else { return };
        self.now = at;
        let node = match event {
            Event::Wake { node, life } => {
                let of = &mut self.nodes[node];
                if self.died[node].is_some() || of.lives != life || of.wakes != Some(at) {
                    return;
                }
                of.wakes = None;
                of.elector.tick(of.clock.monotonic(at));
                node
            }
            Event::Message { from, to, message, life } => {
                let lost = self.is_cut(from, to) || !self.is_alive(to);
                if lost || self.nodes[to].lives != life {
                    return;
                }
                let shows = self.shows(to);
                self.nodes[to].elector.hear(name(from), message, shows);
                to
            }
            Event::LinkDown { node, gone } => {
                if !self.is_alive(node) || self.is_alive(gone) {
                    return;
                }
                let shows = self.shows(node);
                self.nodes[node].elector.link_down(&name(gone), shows);
                node
            }
        };
        self.act(node);
        self.schedule(node);
        self.check(node);
    }

    fn act(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].elector.poll() {
            match action {
                Action::Send { to, message } => self.send(node, self.names[&to], message),
                Action::Tracker(_) => self.changes += 1,
            }
        }
    }

    fn send(&mut self, from: usize, to: usize, mut message: Message) {
        self.messages += 1;
        let far = self.near(from, to) == Near::Remote;
        if let Message::Claim { claim, age, .. } = &mut message {
            if self.names[&claim.tracker] == from {
                self.said[from] = self.said[from].max(claim.sequence);
            }
            self.crossed += u64::from(far && !claim.settled);
            match self.mutation {
                Mutation::SwapScores => claim.score = Score::told(1000 - claim.score.points()),
                Mutation::RenewBeats if from % 7 == 3 => {
                    (claim.sequence, *age) = (claim.sequence + 1, Duration::ZERO);
                }
                _ => {}
            }
        }
        let dropped = self.mutation == Mutation::DropPrunes && message == Message::Prune;
        if dropped || self.rng.f64() < self.loss {
            return;
        }
        let delay = if far { FAR_DELAY } else { LAN_DELAY };
        let life = self.nodes[to].lives;
        self.queue.push(self.now + delay, Event::Message { from, to, message, life });
    }

    fn schedule(&mut self, node: usize) {
        let life = self.nodes[node].lives;
        let wake = self.nodes[node].elector.wake();
        let at = wake.map(|at| self.nodes[node].clock.when(at, self.now));
        if at.is_some_and(|at| self.nodes[node].wakes.is_none_or(|queued| at < queued)) {
            self.nodes[node].wakes = at;
            self.queue.push(at.unwrap_or_default(), Event::Wake { node, life });
        }
    }

    /// What must hold at each step, of the node that has just done something.
    fn check(&mut self, node: usize) {
        let (seed, now) = (self.seed, self.now);
        let Some(Claim { tracker, sequence, .. }) = self.nodes[node].elector.claim() else {
            return;
        };
        let source = self.names[&tracker];
        if source != node {
            let said = self.said[source];
            assert!(sequence <= said, "seed {seed}: beat {sequence} of {source} was never said");
            if let Some(died) = self.died[source] {
                let late = now.saturating_sub(died);
                // By the slowest clock.
                let longest = if self.skewed { LIFE.div_f64(1.0 - SKEW) } else { LIFE };
                assert!(
                    late <= longest + UNDER_WAY,
                    "seed {seed}: {node} follows a dead node {late:?}"
                );
            }
        }
        let taken = self.nodes[node].taken.entry(tracker).or_default();
        assert!(sequence >= *taken, "seed {seed}: {node} went back to an old beat of {source}");
        *taken = sequence;
    }
}

/// Pairs of neighbours: rings and chords, inside LANs and between them.
fn links(count: usize, rng: &mut fastrand::Rng) -> BTreeSet<(usize, usize)> {
    let mut links = BTreeSet::new();
    let mut link = |a: usize, b: usize| {
        if a != b {
            links.insert((a.min(b), a.max(b)));
        }
    };
    let lans = count.div_ceil(LAN_SIZE);
    let of = |lan: usize| (lan * LAN_SIZE)..((lan + 1) * LAN_SIZE).min(count);
    for lan in 0..lans {
        let nodes = of(lan);
        for node in nodes.clone() {
            link(node, if node + 1 < nodes.end { node + 1 } else { nodes.start });
            for _ in 0..2 {
                link(node, rng.usize(nodes.clone()));
            }
        }
        for first in nodes.clone().take(2) {
            link(first, rng.usize(of((lan + 1) % lans)));
            link(first, rng.usize(0..count));
        }
    }
    links
}
