//! A LAN under pressure: the real plan and the real ledger, a virtual clock, and
//! everything around them as bad as it may be. Messages are slow or lost, nodes
//! see each other late, crash between promise and drop, and act on old plans.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use peersync::eviction::promise::{ANSWER, PROMISE, REFUSED};
use peersync::eviction::{
    Budget, Class, Item, Ledger, Member, PeerSet, View, Weights, keeper, plan,
};
use peersync::types::{ObjectId, PeerId};

use crate::clock::{Clock, SKEW};

pub(crate) const NODES: usize = 5;
pub(crate) const OBJECTS: usize = 40;
const SIZE: u64 = 100;

/// What is wrong with the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    None,
    /// Who gave a promise does not wait until it has expired.
    PromiseNotWaitedOut,
    /// Who starts anew does not wait for what it promised before.
    NoQuiet,
    /// An object goes as soon as its keeper is asked.
    DropWhenAsked,
}

#[derive(Debug, Clone, Copy)]
struct Copy_ {
    whole: bool,
    used: u64,
    pinned: bool,
}

struct Node {
    me: Member,
    clock: Clock,
    disk: BTreeMap<usize, Copy_>,
    ledger: Ledger,
    hard: u64,
    up: bool,
    /// What it believes the others have: as it last heard.
    heard: Vec<BTreeSet<usize>>,
    /// Drops of an earlier plan that are still to be made.
    due: Vec<(usize, Class)>,
    /// When each holder refused each object, or had not answered.
    refused: BTreeMap<(usize, usize), u64>,
    /// What it wants gone and has promised: it takes that back, and promises it no
    /// more for a while.
    leaving: BTreeMap<usize, u64>,
}

enum Message {
    Ask { number: u64 },
    Answer { number: u64, promised: bool },
    Withdrawn,
}

struct Flight {
    at: u64,
    from: usize,
    to: usize,
    object: usize,
    message: Message,
}

/// What a run did, so that a test sees that it was about something.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) spare: u32,
    pub(crate) handed: u32,
    pub(crate) last: u32,
    pub(crate) lost: u32,
    pub(crate) withdrawn: u32,
    pub(crate) crashes: u32,
}

pub(crate) struct World {
    seed: u64,
    rng: Rng,
    now: u64,
    nodes: Vec<Node>,
    ids: Vec<ObjectId>,
    flights: Vec<Flight>,
    parted: Option<usize>,
    mutation: Mutation,
    pub(crate) tally: Tally,
}

impl World {
    pub(crate) fn new(seed: u64, mutation: Mutation) -> Self {
        let mut rng = Rng::with_seed(seed);
        let name = |n: usize| *blake3::hash(format!("{seed} {n}").as_bytes()).as_bytes();
        let ids = (0..OBJECTS).map(|n| ObjectId::from_bytes(name(100 + n))).collect();
        let nodes = (0..NODES)
            .map(|n| Node {
                me: Member { id: PeerId(name(n)), capacity: 1000 * (1 + n as u64 % 3) },
                // No two run at the same speed.
                clock: Clock::skewed(Duration::ZERO, &mut Rng::with_seed(seed ^ n as u64)),
                disk: (0..OBJECTS)
                    .filter_map(|object| {
                        let copy =
                            Copy_ { whole: rng.u8(..6) > 0, used: 0, pinned: rng.u8(..20) == 0 };
                        (rng.u8(..3) > 0).then_some((object, copy))
                    })
                    .collect(),
                ledger: Ledger::new(Duration::ZERO, true),
                hard: OBJECTS as u64 * SIZE,
                up: true,
                heard: vec![BTreeSet::new(); NODES],
                due: Vec::new(),
                refused: BTreeMap::new(),
                leaving: BTreeMap::new(),
            })
            .collect();
        let (flights, tally) = (Vec::new(), Tally::default());
        Self { seed, rng, now: 1000, nodes, ids, flights, parted: None, mutation, tally }
    }

    pub(crate) fn run(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += 1;
            self.weather();
            self.deliver();
            for n in 0..NODES {
                if self.nodes[n].up {
                    self.act(n);
                }
            }
        }
    }

    /// What a node's clock shows.
    fn shows(&self, n: usize) -> Duration {
        self.nodes[n].clock.monotonic(Duration::from_secs(self.now))
    }

    /// What happens to the nodes.
    fn weather(&mut self) {
        if self.rng.u8(..60) == 0 {
            self.parted = self.rng.bool().then(|| self.rng.usize(..NODES));
        }
        if self.rng.u8(..60) == 0 {
            // On all at once.
            let share = self.rng.u64(5..60);
            for node in &mut self.nodes {
                node.hard = OBJECTS as u64 * SIZE * share / 100;
            }
        }
        for n in 0..NODES {
            // Down for a moment mostly: its neighbours still act on what it promised.
            let odds = if self.nodes[n].up { 100 } else { 8 };
            if self.rng.u8(..odds) == 0 {
                self.tally.crashes += 1;
                let fresh = self.mutation == Mutation::NoQuiet;
                let now = self.shows(n);
                let node = &mut self.nodes[n];
                (node.up, node.ledger) = (!node.up, Ledger::new(now, fresh));
                node.due.clear();
                node.refused.clear();
                node.leaving.clear();
            }
            if !self.nodes[n].up {
                continue;
            }
            let object = self.rng.usize(..OBJECTS);
            let exists = self.nodes.iter().any(|node| whole(node, object));
            let room = self.nodes[n].disk.len() as u64 * SIZE + SIZE <= self.nodes[n].hard;
            if exists && room && self.rng.u8(..4) == 0 {
                let copy = Copy_ { whole: self.rng.u8(..4) > 0, used: self.now, pinned: false };
                self.nodes[n].disk.entry(object).or_insert(copy).used = self.now;
            }
            let other = self.rng.usize(..NODES);
            if other != n && self.reach(n, other) && self.rng.u8(..5) == 0 {
                let has = self.nodes[other].disk.iter();
                let has = has.filter(|(_, copy)| copy.whole).map(|(object, _)| *object).collect();
                self.nodes[n].heard[other] = has;
            }
        }
    }

    fn reach(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.nodes[b].up && self.parted != Some(a) && self.parted != Some(b)
    }

    fn send(&mut self, from: usize, to: usize, object: usize, message: Message) {
        if self.rng.u8(..10) == 0 {
            return;
        }
        // Now and then so late that it meets the next question.
        let slow = if self.rng.u8(..15) == 0 { 90 } else { 6 };
        let at = self.now + self.rng.u64(0..slow);
        self.flights.push(Flight { at, from, to, object, message });
    }

    fn deliver(&mut self) {
        let (mut due, later): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.flights).into_iter().partition(|f| f.at <= self.now);
        self.flights = later;
        self.rng.shuffle(&mut due);
        for Flight { from, to, object, message, .. } in due {
            if !self.reach(from, to) {
                continue;
            }
            let (now, id, asking) = (self.shows(to), self.ids[object], self.nodes[from].me);
            match message {
                Message::Ask { number } => {
                    let node = &mut self.nodes[to];
                    let before = node.ledger.clone();
                    let leaving = node.leaving.get(&object).is_some_and(|until| self.now < *until);
                    let has = whole(node, object) && !leaving;
                    let promised = node.ledger.give(&id, &node.me, &asking, has, now);
                    if self.mutation == Mutation::PromiseNotWaitedOut {
                        node.ledger = before;
                    }
                    self.send(to, from, object, Message::Answer { number, promised });
                }
                Message::Withdrawn => {
                    let node = &mut self.nodes[to];
                    node.ledger.withdrawn(&id, &asking.id, now);
                    node.refused.insert((object, from), self.now);
                }
                Message::Answer { number, promised } => {
                    let node = &mut self.nodes[to];
                    node.ledger.answered(&id, &asking.id, number, promised, now);
                }
            }
        }
    }

    fn items(&self, n: usize) -> (Vec<usize>, Vec<Item>) {
        let node = &self.nodes[n];
        let item = |(object, copy): (&usize, &Copy_)| {
            let lan: Vec<_> =
                (0..NODES).filter(|other| *other != n && self.knows(n, *other, *object)).collect();
            Item {
                bytes: SIZE,
                whole: copy.whole,
                idle: (self.now - copy.used.min(self.now)) as u32,
                pinned: copy.pinned,
                lan: PeerSet::of(&lan),
                ..Item::new(self.ids[*object])
            }
        };
        (node.disk.keys().copied().collect(), node.disk.iter().map(item).collect())
    }

    fn knows(&self, n: usize, other: usize, object: usize) -> bool {
        self.reach(n, other) && self.nodes[n].heard[other].contains(&object)
    }

    fn act(&mut self, n: usize) {
        let now = self.shows(n);
        self.nodes[n].ledger.tick(now);
        for (object, class) in std::mem::take(&mut self.nodes[n].due) {
            self.drop(n, object, class);
        }
        if self.rng.u8(..3) > 0 {
            return;
        }
        let (objects, items) = self.items(n);
        let peers: Vec<Member> = self.nodes.iter().map(|node| node.me).collect();
        let node = &self.nodes[n];
        let occupied = items.len() as u64 * SIZE;
        let view =
            View { me: node.me, peers: &peers, ledger: &node.ledger, weights: Weights::default() };
        let made = plan(&items, occupied, &view, &Budget::with_hard(node.hard), now);
        for ask in made.ask {
            let object = objects[ask.item];
            let to = peers.iter().position(|peer| peer.id == ask.of).expect("a peer");
            if let Some(number) = self.nodes[n].ledger.ask(self.ids[object], ask.of, now) {
                // Not answered is as good as refused, later.
                self.nodes[n].refused.insert((object, to), self.now);
                self.send(n, to, object, Message::Ask { number });
                if self.mutation == Mutation::DropWhenAsked {
                    self.nodes[n].due.push((object, Class::Spare));
                }
            }
        }
        for item in made.withdraw {
            let (object, until) = (objects[item], self.now + PROMISE.as_secs());
            if self.nodes[n].leaving.get(&object).is_none_or(|until| *until <= self.now) {
                self.tally.withdrawn += 1;
                self.nodes[n].leaving.insert(object, until);
                for to in (0..NODES).filter(|to| *to != n) {
                    self.send(n, to, object, Message::Withdrawn);
                }
            }
        }
        for dropped in made.drop {
            let object = objects[dropped.item];
            // Last copies at once; on a promise also later, if it still holds.
            if dropped.class >= Class::LastLocal {
                self.drop(n, object, dropped.class);
            } else {
                self.nodes[n].due.push((object, dropped.class));
            }
        }
    }

    fn drop(&mut self, n: usize, object: usize, class: Class) {
        let (now, id) = (self.shows(n), self.ids[object]);
        let Some(copy) = self.nodes[n].disk.get(&object).copied() else { return };
        let ledger = &self.nodes[n].ledger;
        let may = match class {
            _ if self.mutation == Mutation::DropWhenAsked => true,
            Class::Spare | Class::Handed => ledger.may_drop(&id, copy.whole, now),
            _ => !ledger.binds(&id, copy.whole, now),
        };
        if !may {
            return;
        }
        let others = (0..NODES).any(|other| other != n && whole(&self.nodes[other], object));
        if class <= Class::Handed {
            assert!(others, "seed {}: {n} drops the last copy of {object} on a promise", self.seed);
        } else if !others && class < Class::Pinned {
            self.check_choices(n, object);
        }
        self.nodes[n].disk.remove(&object);
        self.nodes[n].ledger.dropped(&id);
        match class {
            Class::Spare => self.tally.spare += 1,
            Class::Handed => self.tally.handed += 1,
            _ => self.tally.last += 1,
        }
        self.tally.lost += u32::from(!others && copy.whole);
    }

    /// The last copy goes: what else could have gone must not have been enough.
    fn check_choices(&self, n: usize, last: usize) {
        let (node, now) = (&self.nodes[n], self.shows(n));
        let other_choice = |object: &usize, copy: &Copy_| {
            let id = &self.ids[*object];
            *object != last
                && !copy.pinned
                && !node.ledger.binds(id, copy.whole, now)
                && (0..NODES).any(|other| {
                    let asked = node.refused.get(&(*object, other));
                    // A refusal counts from when it came, or was given up on, by a
                    // clock that may be slow.
                    let lasts = (REFUSED + ANSWER).div_f64(1.0 - SKEW).as_secs() + 1;
                    let refused = asked.is_some_and(|at| self.now - at < lasts);
                    let still = node.ledger.may_drop(id, copy.whole, now);
                    other != n
                        && self.knows(n, other, *object)
                        && whole(&self.nodes[other], *object)
                        && (still || !refused)
                })
        };
        let choices = node.disk.iter().filter(|(o, copy)| other_choice(o, copy)).count() as u64;
        let left = (node.disk.len() as u64 - choices) * SIZE;
        let soft = Budget::with_hard(node.hard).soft;
        assert!(
            left > soft,
            "seed {}: {n} drops the last copy of {last} while another choice meets the budget",
            self.seed
        );
    }

    /// The keeper that everybody agrees on once views agree.
    pub(crate) fn keepers_agree(&self) -> bool {
        let peers: Vec<Member> = self.nodes.iter().map(|node| node.me).collect();
        (0..OBJECTS).all(|object| {
            let holders: Vec<_> = (0..NODES).filter(|n| whole(&self.nodes[*n], object)).collect();
            let found = keeper(&peers, PeerSet::of(&holders), &self.ids[object]);
            found.is_some() != holders.is_empty()
        })
    }
}

fn whole(node: &Node, object: usize) -> bool {
    node.disk.get(&object).is_some_and(|copy| copy.whole)
}
