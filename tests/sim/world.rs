//! Nodes with a scheduler each, a registry, and what goes on between them.
//!
//! Everything follows from the seed. [`World::step`] takes the next event off
//! the queue; the checkers look after every step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

use peersync::fetch::schedule::{
    Action, BlockKey, Class, Event, Failure, Holding, Near, RequestId, Scheduler, Scope, Settings,
    TunnelId,
};
use peersync::types::{ObjectId, PeerId};

use crate::check::Checks;
use crate::clock::Clock;
pub use crate::layer::Layer;
use crate::net::Net;
use crate::queue::Queue;
use crate::serve::{Chunk, Job, Tunnel};

pub const MIB: u64 = 1 << 20;
pub const MS: Duration = Duration::from_millis(1);

/// How a node treats those who ask it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    Honest,
    /// Accepts, and never sends.
    Stalls,
    /// Sends one byte a second.
    Drips,
    /// Sends other bytes than it should.
    Lies,
    /// Has nothing of what it says it has.
    Denies,
    /// Says that it is busy, every other time.
    Busy,
}

/// What the registry does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistryState {
    Up,
    /// Connections are refused.
    Down,
    /// It does not know the layer.
    NotFound,
}

/// Faults put into the wiring on purpose, to see that a checker finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    None,
    /// The scheduler is told background where a reader waits, and the reverse.
    SwapPriority,
    /// Every request is sent twice.
    AskTwice,
    /// Neighbours hear nothing of what a node wants and gets.
    DeafNeighbours,
    /// Neighbours count as far away.
    NoLan,
    /// That a want has failed is not passed on.
    DropFailures,
}

#[derive(Clone, Debug)]
pub enum Msg {
    Tell(usize, Event),
    Tick(usize),
    Serve {
        tunnel: TunnelId,
        job: Job,
    },
    Pump(TunnelId),
    Chunk(Chunk),
    FlushHaves {
        node: usize,
        far: bool,
    },
    OpenTunnel {
        node: usize,
        peer: usize,
    },
    Die {
        node: usize,
        silent: bool,
    },
    /// A node's clock jumps ahead.
    Jump {
        node: usize,
        by: Duration,
    },
    Registry(RegistryState),
    Step(usize),
}

/// A node.
pub struct Node {
    pub scheduler: Scheduler,
    clock: Clock,
    pub alive: bool,
    pub manner: Manner,
    pub has: BTreeSet<BlockKey>,
    pub id: PeerId,
    ticking: Option<Duration>,
    pub tunnels: BTreeMap<usize, Vec<TunnelId>>,
    opening: BTreeMap<usize, usize>,
    banned: BTreeSet<usize>,
    pub news: [BTreeSet<BlockKey>; 2],
    /// What it was told that others have.
    pub known: BTreeMap<usize, BTreeSet<BlockKey>>,
    /// Requests for registry runs, by their tunnel.
    pub runs: BTreeMap<RequestId, TunnelId>,
    pub script: Option<Script>,
}

/// A reader.
#[derive(Clone, Debug)]
pub struct Script {
    /// Blocks still to be read, in order.
    pub reads: VecDeque<u32>,
    /// Blocks asked for ahead.
    pub ahead: usize,
    /// Pause between reads.
    pub pause: Duration,
    pub waiting: Option<(u32, Duration)>,
    /// How long each read took.
    pub times: Vec<Duration>,
}

/// All of it.
pub struct World {
    pub now: Duration,
    pub seed: u64,
    pub rng: fastrand::Rng,
    pub net: Net,
    pub layer: Layer,
    pub nodes: Vec<Node>,
    pub registry: RegistryState,
    pub registry_bytes: u64,
    /// Wrong blocks that were noticed, and peers banned.
    pub wrong: u32,
    pub bans: u32,
    pub tunnels: BTreeMap<TunnelId, Tunnel>,
    pub mutation: Mutation,
    pub checks: Checks,
    queue: Queue<Msg>,
    pub next: u64,
    interests: u64,
}

impl World {
    /// LANs of the given sizes, 1 Gbit/s inside, 100 Mbit/s between.
    pub fn new(lans: &[usize], layer: Layer, seed: u64) -> Self {
        Self::with(lans, layer, seed, &Settings::default())
    }

    pub fn with(lans: &[usize], layer: Layer, seed: u64, settings: &Settings) -> Self {
        let net = Net::new(lans, 125e6, 12.5e6);
        let nodes = (0..net.lan_of.len()).map(|n| {
            let id = PeerId([n as u8 + 1; 32]);
            Node {
                scheduler: Scheduler::new(id, settings.clone(), seed ^ n as u64),
                clock: Clock::exact(),
                alive: true,
                manner: Manner::Honest,
                has: BTreeSet::new(),
                id,
                ticking: None,
                tunnels: BTreeMap::new(),
                opening: BTreeMap::new(),
                banned: BTreeSet::new(),
                news: Default::default(),
                known: BTreeMap::new(),
                runs: BTreeMap::new(),
                script: None,
            }
        });
        let nodes = nodes.collect();
        Self {
            now: Duration::ZERO,
            seed,
            rng: fastrand::Rng::with_seed(seed),
            net,
            layer,
            nodes,
            registry: RegistryState::Up,
            registry_bytes: 0,
            wrong: 0,
            bans: 0,
            tunnels: BTreeMap::new(),
            mutation: Mutation::None,
            checks: Checks::default(),
            queue: Queue::new(),
            next: 0,
            interests: 0,
        }
    }

    /// From now on no two clocks are alike.
    pub fn skew(&mut self) {
        for node in 0..self.nodes.len() {
            self.nodes[node].clock = Clock::skewed(self.now, &mut self.rng);
        }
    }

    /// What a node's clock shows.
    pub fn shows(&self, node: usize) -> Duration {
        self.nodes[node].clock.monotonic(self.now)
    }

    /// All nodes hear of each other and of the layer.
    pub fn start(&mut self) {
        let (home, size, whole) = (self.layer.home(), self.layer.size(), self.layer.whole);
        for node in 0..self.nodes.len() {
            let registry = self.registry != RegistryState::NotFound;
            self.tell(node, Event::Home { home, size, whole, registry });
            for peer in (0..self.nodes.len()).filter(|p| *p != node) {
                self.meet(node, peer);
            }
        }
    }

    fn meet(&mut self, node: usize, peer: usize) {
        let lan = self.net.same_lan(node, peer) && self.mutation != Mutation::NoLan;
        let near = if lan { Near::Lan } else { Near::Remote };
        let id = self.nodes[peer].id;
        self.tell(node, Event::PeerUp { peer: id, near });
        let has = self.nodes[peer].has.clone();
        self.send_haves(peer, node, &has);
    }

    /// A node has the whole layer from the start.
    pub fn give_all(&mut self, node: usize) {
        self.nodes[node].has = (0..self.layer.count()).map(|n| self.layer.key(n)).collect();
    }

    /// A node pulls all that it does not have.
    pub fn pull(&mut self, node: usize, class: Class) {
        let blocks: Vec<u32> = (0..self.layer.count()).collect();
        self.want(node, &blocks, class);
    }

    /// A node wants blocks; gives the interest.
    pub fn want(&mut self, node: usize, blocks: &[u32], class: Class) -> u64 {
        self.interests += 1;
        let interest = self.interests;
        let missing: Vec<u32> = blocks
            .iter()
            .copied()
            .filter(|n| !self.nodes[node].has.contains(&self.layer.key(*n)))
            .collect();
        if missing.is_empty() {
            return interest;
        }
        let shows = self.shows(node);
        for n in &missing {
            self.checks.wanted(node, self.layer.key(*n), interest, class, shows);
        }
        let class = match (self.mutation, class) {
            (Mutation::SwapPriority, Class::Urgent) => Class::Background,
            (Mutation::SwapPriority, _) => Class::Urgent,
            (_, class) => class,
        };
        let blocks = missing.iter().map(|n| self.layer.wanted(*n)).collect();
        let home = self.layer.home();
        self.tell(node, Event::Want { interest, home, class, deadline: None, blocks });
        interest
    }

    pub fn withdraw(&mut self, node: usize, interest: u64) {
        self.checks.withdrawn(node, interest);
        self.tell(node, Event::Withdraw { interest });
    }

    /// A reader goes through blocks one after another, each as soon as the one
    /// before is there.
    pub fn read(
        &mut self,
        node: usize,
        reads: impl IntoIterator<Item = u32>,
        ahead: usize,
        pause: Duration,
    ) {
        let reads = reads.into_iter().collect();
        self.nodes[node].script =
            Some(Script { reads, ahead, pause, waiting: None, times: Vec::new() });
        self.post(Duration::ZERO, Msg::Step(node));
    }

    pub fn die_at(&mut self, at: Duration, node: usize, silent: bool) {
        self.post(at.saturating_sub(self.now), Msg::Die { node, silent });
    }

    pub fn jump_at(&mut self, at: Duration, node: usize, by: Duration) {
        self.post(at.saturating_sub(self.now), Msg::Jump { node, by });
    }

    pub fn registry_at(&mut self, at: Duration, state: RegistryState) {
        self.post(at.saturating_sub(self.now), Msg::Registry(state));
    }

    /// Goes on until all wants have ended and all readers have read.
    ///
    /// # Panics
    /// If that takes longer than `limit`, or a checker objects.
    pub fn run(&mut self, limit: Duration) {
        let end = self.now + limit;
        while !self.is_done() {
            assert!(
                self.now <= end,
                "seed {}: not done after {limit:?}: {}",
                self.seed,
                self.summary()
            );
            assert!(self.step(), "seed {}: nothing left to happen: {}", self.seed, self.summary());
        }
    }

    /// Goes on for a time.
    pub fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.queue.due().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = end;
    }

    fn is_done(&self) -> bool {
        let reading = |n: &Node| {
            n.alive && n.script.as_ref().is_some_and(|s| s.waiting.is_some() || !s.reads.is_empty())
        };
        let wanting = |n: usize| self.nodes[n].alive && self.checks.open_wants(n) > 0;
        !(0..self.nodes.len()).any(wanting) && !self.nodes.iter().any(reading)
    }

    fn summary(&self) -> String {
        let mut text = format!("at {:?}", self.now);
        for (n, node) in self.nodes.iter().enumerate().filter(|(_, n)| n.alive) {
            let mut states: BTreeMap<&str, u32> = BTreeMap::new();
            for block in 0..self.layer.count() {
                if let Some(state) = node.scheduler.state_of(&self.layer.key(block)) {
                    *states.entry(state).or_default() += 1;
                }
            }
            text += &format!(
                "\n  node {n}: has {}, {states:?}, {:?}",
                node.has.len(),
                node.scheduler.totals()
            );
        }
        text
    }

    /// The next event; `false` if there is none.
    pub fn step(&mut self) -> bool {
        let Some((at, message)) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        match message {
            Msg::Tell(node, event) => self.tell(node, event),
            Msg::Tick(node) => {
                if self.nodes[node].ticking.is_some_and(|at| at <= self.now) {
                    self.nodes[node].ticking = None;
                    self.tell(node, Event::Tick);
                }
            }
            Msg::Serve { tunnel, job } => self.serve(tunnel, job),
            Msg::Pump(tunnel) => self.pump(tunnel),
            Msg::Chunk(chunk) => self.arrive(&chunk),
            Msg::FlushHaves { node, far } => self.flush_haves(node, far),
            Msg::OpenTunnel { node, peer } => self.open(node, peer),
            Msg::Die { node, silent } => self.die(node, silent),
            Msg::Jump { node, by } => {
                self.nodes[node].clock.jump(self.now, by);
                self.tell(node, Event::Tick);
            }
            Msg::Registry(state) => self.registry = state,
            Msg::Step(node) => self.step_reader(node),
        }
        true
    }

    pub fn post(&mut self, after: Duration, message: Msg) {
        self.queue.push(self.now + after, message);
    }

    /// Gives a node's scheduler an event and does what it says.
    pub fn tell(&mut self, node: usize, event: Event) {
        if !self.nodes[node].alive {
            return;
        }
        if let Event::Have { peer, object, holding } = &event {
            self.learn(node, peer, *object, holding);
        }
        if let Event::Asked { key, .. } = &event
            && !self.nodes[node].scheduler.is_wanted(key)
            && !self.nodes[node].has.contains(key)
        {
            let number = self.layer.number(key);
            self.want(node, &[number], Class::Sequential);
        }
        self.note_event(node, &event);
        let shows = self.shows(node);
        let mut actions = self.nodes[node].scheduler.apply(shows, event);
        if let Err(why) = self.nodes[node].scheduler.check() {
            panic!("seed {}: node {node} at {:?}: {why}", self.seed, self.now);
        }
        if self.mutation == Mutation::AskTwice {
            let again = actions.iter().find(|a| matches!(a, Action::Fetch { .. })).cloned();
            actions.extend(again);
        }
        for action in actions {
            if let Err(why) = self.check_action(node, &action) {
                panic!("seed {}: node {node} at {:?}: {why}\n  {action:?}", self.seed, self.now);
            }
            if std::env::var_os("SIM_TRACE").is_some() {
                self.trace(node, &action);
            }
            self.act(node, action);
        }
        let of = &self.nodes[node];
        let wake = of.scheduler.next_wake().map(|at| of.clock.when(at, self.now));
        if let Some(at) = wake.filter(|at| self.nodes[node].ticking.is_none_or(|old| *at < old)) {
            self.nodes[node].ticking = Some(at);
            self.post(at.saturating_sub(self.now), Msg::Tick(node));
        }
    }

    fn learn(&mut self, node: usize, peer: &PeerId, object: ObjectId, holding: &Holding) {
        let peer = self.node_of(peer);
        let known = self.nodes[node].known.entry(peer).or_default();
        match holding {
            Holding::Add(range) => {
                known.extend(range.clone().map(|index| BlockKey { object, index }));
            }
            Holding::Remove(range) => {
                known.retain(|k| k.object != object || !range.contains(&k.index));
            }
            Holding::All | Holding::Nothing => {}
        }
    }

    pub fn node_of(&self, peer: &PeerId) -> usize {
        usize::from(peer.0[0]) - 1
    }

    fn act(&mut self, node: usize, action: Action) {
        match action {
            Action::Fetch { request, tunnel, object, extent, urgent, .. } => {
                let items = self.items(object, &extent);
                let job = Job { request, urgent, items };
                let Some(server) = self.tunnels.get(&tunnel).and_then(|t| t.server) else { return };
                let delay = self.net.delay(Some(server), node);
                self.post(delay, Msg::Serve { tunnel, job });
            }
            Action::Run { request, stream, .. } => self.begin_run(node, request, stream),
            Action::Cancel { request } => self.cancel(node, request),
            Action::Tunnels { peer, count } => {
                let peer = self.node_of(&peer);
                let have = self.nodes[node].tunnels.get(&peer).map_or(0, Vec::len);
                let opening = self.nodes[node].opening.entry(peer).or_default();
                let more = count.saturating_sub(have + *opening);
                *opening += more;
                let delay = self.net.delay(Some(peer), node) * 4;
                for _ in 0..more {
                    self.post(delay, Msg::OpenTunnel { node, peer });
                }
            }
            Action::Close { peer, .. } => {
                let peer = self.node_of(&peer);
                self.hang_up(node, peer);
            }
            Action::Ban { peer } => {
                let peer = self.node_of(&peer);
                self.bans += 1;
                self.nodes[node].banned.insert(peer);
                self.hang_up(node, peer);
            }
            Action::LookUp { home, scope, .. } => {
                let lan = scope == Scope::Lan;
                let found = self.nodes[node].known.iter().any(|(peer, has)| {
                    self.nodes[*peer].alive
                        && self.net.same_lan(node, *peer) == lan
                        && !has.is_empty()
                });
                let delay = if lan { self.net.lan_delay * 3 } else { self.net.far_delay * 6 };
                self.post(delay, Msg::Tell(node, Event::LookedUp { home, scope, found }));
            }
            Action::Announce { home, on } => {
                let id = self.nodes[node].id;
                self.tell_neighbours(node, &Event::Wants { peer: id, home, on });
            }
            Action::Claim { home, run, object, blocks, on, to } => {
                let peer = self.nodes[node].id;
                let event = Event::Getting { peer, home, run, object, blocks, on };
                match to.map(|to| self.node_of(&to)) {
                    None => self.tell_neighbours(node, &event),
                    Some(_) if self.mutation == Mutation::DeafNeighbours => {}
                    Some(to) => self.post(self.net.lan_delay, Msg::Tell(to, event)),
                }
            }
            Action::Ask { peer, key } => {
                let (id, peer) = (self.nodes[node].id, self.node_of(&peer));
                self.post(self.net.lan_delay, Msg::Tell(peer, Event::Asked { peer: id, key }));
            }
            Action::Failed { .. } if self.mutation == Mutation::DropFailures => {}
            Action::Failed { key, why } => self.failed(node, &key, why),
        }
    }

    fn failed(&mut self, node: usize, key: &BlockKey, why: Failure) {
        self.checks.failed(node, key, why);
        let number = self.layer.number(key);
        if let Some(script) = &mut self.nodes[node].script
            && script.waiting.is_some_and(|(n, _)| n == number)
        {
            // It got EIO, and gives up.
            script.waiting = None;
            script.reads.clear();
        }
    }

    fn tell_neighbours(&mut self, node: usize, event: &Event) {
        if self.mutation == Mutation::DeafNeighbours {
            return;
        }
        for peer in (0..self.nodes.len()).filter(|p| *p != node) {
            if self.net.same_lan(node, peer) {
                self.post(self.net.lan_delay, Msg::Tell(peer, event.clone()));
            }
        }
    }

    fn open(&mut self, node: usize, peer: usize) {
        if let Some(opening) = self.nodes[node].opening.get_mut(&peer) {
            *opening = opening.saturating_sub(1);
        }
        if !self.nodes[node].alive || self.nodes[node].banned.contains(&peer) {
            return;
        }
        let id = self.nodes[peer].id;
        if !self.nodes[peer].alive {
            self.tell(node, Event::TunnelFailed { peer: id });
            return;
        }
        self.next += 1;
        let tunnel = self.next;
        self.tunnels.insert(tunnel, Tunnel::new(Some(peer), node));
        self.nodes[node].tunnels.entry(peer).or_default().push(tunnel);
        let rtt = self.net.delay(Some(peer), node) * 2;
        self.tell(node, Event::TunnelUp { peer: id, tunnel, rtt });
    }

    fn hang_up(&mut self, node: usize, peer: usize) {
        for tunnel in self.nodes[node].tunnels.remove(&peer).unwrap_or_default() {
            self.tunnels.remove(&tunnel);
        }
    }

    fn flush_haves(&mut self, node: usize, far: bool) {
        let news = std::mem::take(&mut self.nodes[node].news[usize::from(far)]);
        if !self.nodes[node].alive {
            return;
        }
        for peer in (0..self.nodes.len()).filter(|p| *p != node) {
            if self.net.same_lan(node, peer) != far {
                self.send_haves(node, peer, &news);
            }
        }
    }

    fn send_haves(&mut self, from: usize, to: usize, blocks: &BTreeSet<BlockKey>) {
        let (peer, delay) = (self.nodes[from].id, self.net.delay(Some(from), to));
        let mut run: Option<(ObjectId, Range<u32>)> = None;
        let mut runs = Vec::new();
        for key in blocks {
            match &mut run {
                Some((object, range)) if *object == key.object && range.end == key.index => {
                    range.end += 1;
                }
                _ => runs.extend(run.replace((key.object, key.index..key.index + 1))),
            }
        }
        runs.extend(run);
        for (object, range) in runs {
            let holding = Holding::Add(range);
            self.post(delay, Msg::Tell(to, Event::Have { peer, object, holding }));
        }
    }

    fn die(&mut self, node: usize, silent: bool) {
        self.nodes[node].alive = false;
        let id = self.nodes[node].id;
        for peer in (0..self.nodes.len()).filter(|p| *p != node) {
            if !silent {
                let tunnels = self.nodes[peer].tunnels.get(&node).cloned().unwrap_or_default();
                for tunnel in tunnels {
                    self.post(MS, Msg::Tell(peer, Event::TunnelDown { tunnel }));
                }
            }
            let wait = if silent { Duration::from_secs(10) } else { Duration::from_secs(2) };
            self.post(wait, Msg::Tell(peer, Event::PeerGone { peer: id }));
        }
    }

    pub fn step_reader(&mut self, node: usize) {
        let Some(mut script) = self.nodes[node].script.take().filter(|_| self.nodes[node].alive)
        else {
            return;
        };
        while let Some(n) = script.reads.pop_front() {
            if self.nodes[node].has.contains(&self.layer.key(n)) {
                continue;
            }
            script.waiting = Some((n, self.now));
            let ahead: Vec<u32> = script.reads.iter().copied().take(script.ahead).collect();
            self.nodes[node].script = Some(script);
            self.want(node, &[n], Class::Urgent);
            if !ahead.is_empty() {
                self.want(node, &ahead, Class::Sequential);
            }
            return;
        }
        self.nodes[node].script = Some(script);
    }
}
