//! Who holds what, told to trackers and asked of them while nodes come and go: the
//! shipped election, announcements, table and questions on one virtual clock.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use peersync::swarm::differences::{HeardError, Teller};
use peersync::swarm::elect::Time;
use peersync::swarm::lookups::{Lookups, Named, PATIENCE};
use peersync::swarm::tracker::{GRACE, Has, Tracker};
use peersync::types::Digest;

use crate::world::{MS, S, World, name};

/// Layers that there are in all, and that a node holds at most.
const LAYERS: u32 = 300;
const HELD_MAX: usize = 20;
const STEP: Duration = Duration::from_millis(250);

/// A fault in the wiring, for tests of the checkers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Who has a new tracker goes on with differences.
    NotAnew,
}

/// What look-ups came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) asked: u32,
    pub(crate) found: u32,
    /// Round trips of those that were answered, and the patience of the others.
    pub(crate) took: Vec<Duration>,
}

impl Outcome {
    pub(crate) fn success(&self) -> f64 {
        f64::from(self.found) / f64::from(self.asked.max(1))
    }

    /// So many in a hundred took no longer than this.
    pub(crate) fn percentile(&self, of: usize) -> Duration {
        let mut took = self.took.clone();
        took.sort_unstable();
        took[(took.len() * of / 100).min(took.len() - 1)]
    }
}

#[derive(Default)]
struct Node {
    held: BTreeMap<Digest, Has>,
    teller: Teller<Digest, Has>,
    table: Tracker,
    lookups: Lookups,
    follows: Option<usize>,
    since: Time,
    /// Counts its lives: each has connections of its own.
    life: u64,
}

pub(crate) struct Swarm {
    pub(crate) world: World,
    nodes: Vec<Node>,
    rng: fastrand::Rng,
    fault: Fault,
    gone: BTreeMap<usize, Time>,
    pub(crate) outcome: Outcome,
}

fn layer(n: u32) -> Digest {
    Digest::of(&n.to_be_bytes())
}

fn address(node: usize) -> SocketAddr {
    let (lan, number) = (node / 10, node % 10);
    SocketAddr::from(([10, (lan / 256) as u8, (lan % 256) as u8, number as u8 + 1], 7400))
}

impl Swarm {
    pub(crate) fn new(count: usize, seed: u64, fault: Fault) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 7);
        let world = World::new(count, seed);
        let node = |_| {
            let held = (0..rng.usize(1..=HELD_MAX))
                .map(|_| (layer(rng.u32(0..LAYERS)), Has::Whole))
                .collect();
            Node { held, ..Node::default() }
        };
        let nodes = (0..count).map(node).collect();
        let outcome = Outcome::default();
        let mut swarm = Self { world, nodes, rng, fault, gone: BTreeMap::new(), outcome };
        swarm.world.run_until_agreed(S * 8);
        swarm.run_for(S * 3, 0.0);
        swarm.outcome = Outcome::default();
        swarm
    }

    /// Lets time pass. In each minute the share `churn` of all nodes leaves, and as
    /// many come back.
    pub(crate) fn run_for(&mut self, time: Duration, churn: f64) {
        let until = self.world.now + time;
        while self.world.now < until {
            self.world.run_for(STEP);
            let leave = churn * self.nodes.len() as f64 * STEP.as_secs_f64() / 60.0;
            if self.rng.f64() < leave.fract() {
                self.churn();
            }
            (0..leave as usize).for_each(|_| self.churn());
            self.tell();
            self.check();
            (0..8).for_each(|_| self.look_up());
        }
    }

    fn churn(&mut self) {
        let node = self.rng.usize(0..self.nodes.len());
        let now = self.world.now;
        if self.world.is_alive(node) {
            self.world.kill(node, self.rng.bool());
            self.gone.insert(node, now);
            let fresh = Node { life: self.nodes[node].life + 1, ..Node::default() };
            let old = std::mem::replace(&mut self.nodes[node], fresh);
            // What is stored outlives the process.
            self.nodes[node].held = old.held;
            for other in &mut self.nodes {
                other.table.lost(&name(node), now);
            }
        }
        if self.gone.len() > self.nodes.len() / 20 {
            let back = *self.gone.keys().next().expect("one is gone");
            self.gone.remove(&back);
            self.world.revive(back);
        }
    }

    /// Everybody tells its tracker what is new.
    fn tell(&mut self) {
        let now = self.world.now;
        for node in 0..self.nodes.len() {
            self.nodes[node].table.tick(now);
            if !self.world.is_alive(node) {
                continue;
            }
            // Content comes now and then.
            if self.rng.u32(0..400) == 0 {
                let new = layer(self.rng.u32(0..LAYERS));
                self.nodes[node].held.insert(new, Has::Whole);
            }
            let tracker = self.world.tracker(node);
            let of = &mut self.nodes[node];
            if of.follows != tracker {
                (of.follows, of.since) = (tracker, now);
                if self.fault != Fault::NotAnew {
                    of.teller.again();
                }
                if tracker != Some(node) {
                    of.table.clear();
                }
                of.lookups.tracker_changed();
            }
            let Some(tracker) = tracker.filter(|tracker| self.serves(*tracker, node)) else {
                continue;
            };
            // A connection is of one life of each end.
            let link =
                (tracker as u64) << 32 | self.nodes[tracker].life << 16 | self.nodes[node].life;
            let link = if self.fault == Fault::NotAnew { 1 } else { link };
            let of = &mut self.nodes[node];
            for part in of.teller.say(link, &of.held.clone(), 8, |_| 1) {
                let place = (part.full, part.number);
                let at = Some(address(node));
                let told = self.nodes[tracker].table.announce(name(node), at, place, part.changes);
                if told == Err(HeardError::Gap) && self.fault == Fault::None {
                    self.nodes[node].teller.again();
                }
            }
        }
    }

    /// Whether the tracker is there, knows that it is one, and is another node.
    fn serves(&self, tracker: usize, node: usize) -> bool {
        tracker != node
            && self.world.is_alive(tracker)
            && self.world.tracker(tracker) == Some(tracker)
    }

    /// Of some nodes: what they hold is known where it has been told long enough,
    /// and who is long gone is named by nobody.
    fn check(&mut self) {
        let (seed, now) = (self.world.seed, self.world.now);
        for _ in 0..10 {
            let node = self.rng.usize(0..self.nodes.len());
            let of = &self.nodes[node];
            let Some(tracker) = of.follows.filter(|_| now - of.since >= S * 2) else { continue };
            if !self.world.is_alive(node) || !self.serves(tracker, node) {
                continue;
            }
            if now - self.nodes[tracker].since < S * 2 {
                continue;
            }
            let held = self.rng.usize(0..of.held.len());
            let layer = of.held.keys().nth(held).expect("held");
            let asker = peersync::types::PeerId([0xff; 32]);
            let named = self.nodes[tracker].table.who_has(layer, &asker, None, usize::MAX);
            let named: BTreeSet<_> = named.iter().map(|holder| holder.peer).collect();
            assert!(
                named.contains(&name(node)),
                "seed {seed}, {now:?}: {node} holds {layer}, and its tracker {tracker} does not know"
            );
            for (gone, at) in &self.gone {
                let long = now - *at >= GRACE + S;
                assert!(
                    !(long && named.contains(&name(*gone))),
                    "seed {seed}, {now:?}: {gone} is gone since {at:?} and still named"
                );
            }
        }
    }

    /// Somebody looks for a layer that a live node holds.
    fn look_up(&mut self) {
        let asker = self.rng.usize(0..self.nodes.len());
        let wanted = layer(self.rng.u32(0..LAYERS));
        let has = |node: usize| {
            node != asker
                && self.world.is_alive(node)
                && self.nodes[node].held.contains_key(&wanted)
        };
        if !self.world.is_alive(asker) || !(0..self.nodes.len()).any(has) {
            return;
        }
        let now = self.world.now;
        self.outcome.asked += 1;
        let tracker = self.nodes[asker].follows;
        let Some(tracker) =
            tracker.filter(|tracker| *tracker == asker || self.serves(*tracker, asker))
        else {
            self.outcome.took.push(PATIENCE);
            return;
        };
        let near = tracker / 10 == asker / 10;
        let round_trip = if tracker == asker {
            Duration::ZERO
        } else if near {
            MS
        } else {
            MS * 40
        };
        let from = Some(address(asker).ip());
        let found = self.nodes[tracker].table.who_has(&wanted, &name(asker), from, 32);
        let holders: Vec<Named> =
            found.iter().map(|one| Named { peer: one.peer, address: one.address }).collect();
        let lookups = &mut self.nodes[asker].lookups;
        let Ok(id) = lookups.ask(name(tracker), wanted, now) else { return };
        let from = (&name(tracker), address(tracker).ip());
        let answer = lookups.answer(from, id, &[holders], &name(asker), now + round_trip);
        let named = answer.map(|(_, named)| named).unwrap_or_default();
        let good = named.iter().any(|named| {
            (0..self.nodes.len()).any(|node| {
                name(node) == named.peer
                    && self.world.is_alive(node)
                    && self.nodes[node].held.contains_key(&wanted)
            })
        });
        self.outcome.found +=
            u32::from(good || (tracker == asker && self.nodes[asker].held.contains_key(&wanted)));
        self.outcome.took.push(round_trip);
    }
}
