//! A world of overlays: who can reach whom, what they tell each other, and what
//! checkers see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use peersync::swarm::overlay::{Action, Input, Overlay, PROBE, Source};
use peersync::types::PeerId;

use crate::clock::Clock;

/// Nodes that the table gives a newcomer, and seconds until it gives one more.
const FROM_TABLE: usize = 4;
const TABLE_PAUSE: u64 = 30;
const STEP: Duration = Duration::from_secs(1);

/// Something that is wrong with the shell around the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Failures of probes are not told, and the machine's clock does not go on.
    ProbesNeverEnd,
    /// Tunnels of neighbours that are dropped stay.
    DropsAreIgnored,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) nodes: usize,
    /// Share of the nodes that goes, and as many come, each minute.
    pub(crate) churn: f64,
    /// Share that names nodes which are not there.
    pub(crate) liars: f64,
    /// Share whose lines are slow.
    pub(crate) slow: f64,
    /// Whether clocks run at different speeds, start apart, and jump.
    pub(crate) skewed: bool,
    pub(crate) fault: Option<Fault>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { nodes: 10, churn: 0.0, liars: 0.0, slow: 0.0, skewed: false, fault: None }
    }
}

struct Member {
    machine: Overlay,
    clock: Clock,
    links: BTreeSet<u32>,
    probing: BTreeMap<u32, Duration>,
    lies: bool,
    slow: bool,
    since: Duration,
}

pub(crate) struct World {
    plan: Plan,
    now: Duration,
    random: u64,
    members: BTreeMap<u32, Member>,
    next: u32,
    dying: f64,
    pub(crate) probes: u64,
    pub(crate) fake_probes: u64,
    pub(crate) questions: u64,
}

/// Numbers from here on are nobody's.
const FAKES: u32 = 1 << 24;

fn name(n: u32) -> PeerId {
    let mut name = [0; 32];
    name[28..].copy_from_slice(&n.to_be_bytes());
    PeerId(name)
}

fn number(peer: &PeerId) -> u32 {
    u32::from_be_bytes(peer.0[28..].try_into().expect("4 bytes"))
}

fn address(n: u32) -> SocketAddr {
    (Ipv4Addr::from(0x0a00_0000 + (n & 0x00ff_ffff)), 7400).into()
}

impl World {
    pub(crate) fn new(plan: Plan, seed: u64) -> Self {
        let mut world = Self {
            plan,
            now: Duration::ZERO,
            random: seed | 1,
            members: BTreeMap::new(),
            next: 1,
            dying: 0.0,
            probes: 0,
            fake_probes: 0,
            questions: 0,
        };
        (0..plan.nodes).for_each(|_| world.join());
        world
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn chance(&mut self, share: f64) -> bool {
        (self.random() >> 11) as f64 / (1u64 << 53) as f64 >= 1.0 - share
    }

    /// A node comes, and the table gives it some that are there.
    fn join(&mut self) {
        let n = self.next;
        self.next += 1;
        let random = self.random() as usize;
        let known: Vec<u32> = (0..FROM_TABLE)
            .filter_map(|place| {
                let place = (random >> (8 * place)) % self.members.len().max(1);
                self.members.keys().copied().nth(place)
            })
            .collect();
        let (lies, slow) = (self.chance(self.plan.liars), self.chance(self.plan.slow));
        let clock = if self.plan.skewed {
            Clock::skewed(self.now, &mut fastrand::Rng::with_seed(self.random()))
        } else {
            Clock::exact()
        };
        let shows = clock.monotonic(self.now);
        let mut machine = Overlay::new(name(n), self.random());
        for known in known {
            let (source, peer, address) = (Source::Table, name(known), address(known));
            machine.apply(shows, Input::Named { source, peer, address });
        }
        let actions = machine.tick(shows);
        let member = Member {
            machine,
            clock,
            links: BTreeSet::new(),
            probing: BTreeMap::new(),
            lies,
            slow,
            since: self.now,
        };
        self.members.insert(n, member);
        self.act(n, actions);
    }

    fn leave(&mut self, n: u32) {
        let Some(gone) = self.members.remove(&n) else { return };
        for other in gone.links {
            self.unlink(other, n, Input::Down(name(n)));
        }
    }

    /// The tunnel of `n` to `other` is gone, and `n` hears why.
    fn unlink(&mut self, n: u32, other: u32, why: Input) {
        let Some(member) = self.members.get_mut(&n) else { return };
        if member.links.remove(&other) {
            self.apply(n, why);
        }
    }

    /// A node's machine hears something at the time that its clock shows.
    fn apply(&mut self, n: u32, input: Input) {
        let Some(member) = self.members.get_mut(&n) else { return };
        let actions = member.machine.apply(member.clock.monotonic(self.now), input);
        self.act(n, actions);
    }

    fn act(&mut self, n: u32, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Probe(peer, at) => self.on_probe(n, number(&peer), at),
                Action::Ask(peer) => self.on_ask(n, number(&peer)),
                Action::Drop(peer) => {
                    if self.plan.fault != Some(Fault::DropsAreIgnored) {
                        let other = number(&peer);
                        // It knows already.
                        if let Some(member) = self.members.get_mut(&n) {
                            member.links.remove(&other);
                        }
                        self.unlink(other, n, Input::Dismissed(name(n)));
                    }
                }
            }
        }
    }

    fn on_probe(&mut self, n: u32, other: u32, at: SocketAddr) {
        self.probes += 1;
        if !self.members.contains_key(&other) || at != address(other) {
            self.fake_probes += 1;
            if let Some(member) = self.members.get_mut(&n) {
                // What is not there answers late.
                member.probing.insert(other, self.now + PROBE / 2);
            }
            return;
        }
        self.link(n, other);
        self.link(other, n);
    }

    fn link(&mut self, n: u32, other: u32) {
        let Some(member) = self.members.get_mut(&n) else { return };
        member.links.insert(other);
        self.apply(
            n,
            Input::Up {
                peer: name(other),
                address: Some(address(other)),
                near: false,
                kept: false,
            },
        );
    }

    fn on_ask(&mut self, n: u32, other: u32) {
        self.questions += 1;
        let Some(lies) = self.members.get(&other).map(|asked| asked.lies) else { return };
        let told: Vec<(u32, SocketAddr)> = if lies {
            (0..64)
                .map(|_| FAKES + (self.random() % (1 << 20)) as u32)
                .map(|f| (f, address(f)))
                .collect()
        } else {
            let asked = self.members.get_mut(&other).expect("it is there");
            let told =
                asked.machine.tell(asked.clock.monotonic(self.now), &name(n)).unwrap_or_default();
            told.into_iter().map(|(peer, address)| (number(&peer), address)).collect()
        };
        for (peer, address) in told {
            let source = Source::Neighbour(name(other));
            self.apply(n, Input::Named { source, peer: name(peer), address });
        }
    }

    /// So much time passes; checkers look at every node after each second.
    pub(crate) fn run(&mut self, time: Duration) -> Result<(), String> {
        let end = self.now + time;
        while self.now < end {
            self.now += STEP;
            self.dying += self.plan.churn * self.plan.nodes as f64 / 60.0;
            while self.dying >= 1.0 {
                self.dying -= 1.0;
                let random = self.random() as usize % self.members.len();
                let victim = self.members.keys().copied().nth(random);
                victim.into_iter().for_each(|n| self.leave(n));
                self.join();
            }
            if self.plan.skewed {
                self.sleep();
            }
            let everybody: Vec<u32> = self.members.keys().copied().collect();
            for n in everybody {
                self.step(n);
                self.check(n).map_err(|error| format!("node {n} at {:?}: {error}", self.now))?;
            }
        }
        Ok(())
    }

    /// Somebody's clock jumps ahead by up to a minute.
    fn sleep(&mut self) {
        let (random, by) = (self.random() as usize % self.members.len(), self.random() % 60);
        let (now, by) = (self.now, Duration::from_secs(by));
        if let Some(member) = self.members.values_mut().nth(random) {
            member.clock.jump(now, by);
        }
    }

    fn step(&mut self, n: u32) {
        let now = self.now;
        let frozen = self.plan.fault == Some(Fault::ProbesNeverEnd);
        let Some(member) = self.members.get_mut(&n) else { return };
        let failed: Vec<u32> =
            member.probing.iter().filter(|(_, at)| **at <= now).map(|(n, _)| *n).collect();
        for other in failed.into_iter().filter(|_| !frozen) {
            let Some(member) = self.members.get_mut(&n) else { return };
            member.probing.remove(&other);
            self.apply(n, Input::Failed(name(other)));
        }
        // A few of the tunnels are used now and then.
        if now.as_secs() % 5 == u64::from(n) % 5 {
            let links: Vec<u32> = self.members[&n].links.iter().copied().collect();
            for other in links {
                if !self.random().is_multiple_of(4) {
                    continue;
                }
                let slow = self.members.get(&other).is_none_or(|member| member.slow);
                let speed = if slow { 1e6 } else { 1e7 };
                self.apply(n, Input::Carried(name(other)));
                self.apply(n, Input::Measured(name(other), speed));
            }
        }
        if now.as_secs() % TABLE_PAUSE == u64::from(n) % TABLE_PAUSE {
            let random = self.random() as usize % self.members.len();
            let other = *self.members.keys().nth(random).expect("somebody");
            let (source, peer, address) = (Source::Table, name(other), address(other));
            self.apply(n, Input::Named { source, peer, address });
        }
        // One that found no room in the book when it came is told of again.
        let Some(member) = self.members.get(&n) else { return };
        let unknown = |other: &&u32| !member.machine.knows(&name(**other));
        let unknown: Vec<u32> = member.links.iter().filter(unknown).copied().collect();
        unknown.into_iter().for_each(|other| self.link(n, other));
        let Some(member) = self.members.get_mut(&n) else { return };
        let actions = member.machine.tick(member.clock.monotonic(now));
        self.act(n, actions);
    }

    /// What must be so of each node at any time, besides the machine's own rules.
    fn check(&self, n: u32) -> Result<(), String> {
        let Some(member) = self.members.get(&n) else { return Ok(()) };
        member.machine.check(member.clock.monotonic(self.now))?;
        if let Some((other, _)) = member.probing.iter().find(|(_, at)| **at + PROBE < self.now) {
            return Err(format!("the end of the probe of {other} is never told"));
        }
        let book: BTreeSet<u32> =
            member.machine.neighbours().iter().map(|known| number(&known.peer)).collect();
        if let Some(other) = book.difference(&member.links).next() {
            return Err(format!("{other} is in the book, and there is no tunnel"));
        }
        // Of links alone the machine may know nothing only where it is full.
        let extra = member.links.difference(&book).count();
        if extra > 0 && member.machine.len() < peersync::swarm::overlay::NODES_MAX {
            return Err(format!("{extra} are still linked, and not in the book"));
        }
        Ok(())
    }

    pub(crate) fn alive(&self) -> usize {
        self.members.len()
    }

    /// Of nodes that had a minute.
    pub(crate) fn fewest_neighbours(&self) -> usize {
        let settled = |member: &&Member| self.now >= member.since + Duration::from_secs(60);
        self.members.values().filter(settled).map(|m| m.links.len()).min().unwrap_or(0)
    }

    pub(crate) fn links(&self) -> usize {
        self.members.values().map(|member| member.links.len()).sum()
    }

    pub(crate) fn dead_neighbours(&self) -> usize {
        let links = self.members.values().flat_map(|member| &member.links);
        links.filter(|other| !self.members.contains_key(other)).count()
    }

    /// Most nodes that are not there and are known to one node.
    pub(crate) fn most_fakes(&self) -> usize {
        // Whatever it knows besides real nodes.
        let real =
            |machine: &Overlay| self.members.keys().filter(|n| machine.knows(&name(**n))).count();
        let fakes = |member: &Member| member.machine.len().saturating_sub(real(&member.machine));
        self.members.values().map(fakes).max().unwrap_or(0)
    }

    pub(crate) fn slow_share(&self) -> f64 {
        let fast = self.members.values().filter(|member| !member.slow);
        let links: Vec<&u32> = fast.flat_map(|member| &member.links).collect();
        let slow = links.iter().filter(|n| self.members.get(n).is_some_and(|m| m.slow)).count();
        slow as f64 / links.len().max(1) as f64
    }

    pub(crate) fn largest_component(&self) -> usize {
        let mut left: BTreeSet<u32> = self.members.keys().copied().collect();
        let mut largest = 0;
        while let Some(first) = left.pop_first() {
            let (mut todo, mut size) = (vec![first], 1);
            while let Some(n) = todo.pop() {
                for other in &self.members[&n].links {
                    if left.remove(other) {
                        size += 1;
                        todo.push(*other);
                    }
                }
            }
            largest = largest.max(size);
        }
        largest
    }
}
