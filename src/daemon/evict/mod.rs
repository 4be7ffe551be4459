//! Eviction: looks at how full the store is, has it decided what goes, and does it.
//!
//! A thread of its own, behind other work: no read waits for it. How full the store
//! is costs nothing to know; the objects are looked through only when something has
//! to go, or when it is time to look for copies that the LAN has elsewhere.
//!
//! - `items`: what there is, and who needs it;
//! - `neighbours`: who is near and what they have (pure);
//! - `removal`: what goes, and how fast;
//! - `talk`: what neighbours ask and answer, on a thread of its own;
//! - `thread`: when things happen;
//! - `report`: `peersync gc`.
//!
//! Invariant: the lock on the state is held from the moment when the ledger says that
//! an object may go until it is marked as going, and what is going is not promised.

mod items;
mod neighbours;
mod removal;
mod report;
mod talk;
mod thread;

pub(super) use items::slots_of;
pub(super) use thread::Thread;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ed25519_dalek::SigningKey;
use nix::time::{ClockId, clock_gettime};
use tracing::{info, warn};

use self::neighbours::Neighbours;
use self::talk::Said;
use self::thread::Bell;
use super::Node;
use crate::config::{ByteSize, StoreConfig};
use crate::eviction::promise::PROMISE;
use crate::eviction::{
    Budget, Class, Disk, EvictionPlan, Item, Ledger, Member, Pace, Pressure, View, Weights, plan,
};
use crate::fetch::tunnel::Near;
use crate::store::{MetaError, Store};
use crate::telemetry::Counters;
use crate::types::{ObjectId, PeerId};
use crate::wire::{HELD_MAX, Keep, Message};

/// How often copies are looked for that the LAN has elsewhere and nobody uses.
const SWEEP: Duration = Duration::from_secs(300);
/// Where nothing was to be had above the soft mark, it is looked again after this.
const FRUITLESS: Duration = Duration::from_secs(20);
/// A disk with less free space is full, whatever has to stay free.
const FULL: u64 = 256 << 20;
/// What neighbours say waits to be heard; more is not, and they ask again.
const HEARD_MAX: usize = 256;

/// What decides, and what it remembers.
pub(super) struct Evictor {
    store: Arc<Store>,
    counters: Arc<Counters>,
    limits: StoreConfig,
    weights: Weights,
    me: PeerId,
    key: SigningKey,
    state: Mutex<State>,
    /// One round at a time.
    rounds: Mutex<()>,
    /// When this began, by [`clock`].
    started: Duration,
    bell: Arc<Bell>,
    says: SyncSender<Said>,
    heard: Mutex<Option<Receiver<Said>>>,
    /// Objects as they were last looked at, by how many copies of them the LAN is
    /// known to have: one, two, more.
    pub(super) copies: [AtomicU64; 3],
}

struct State {
    ledger: Ledger,
    neighbours: Neighbours,
    /// Objects that are being removed: they are not promised any more.
    going: HashSet<ObjectId>,
    /// Bytes of what is promised.
    promised: HashMap<ObjectId, u64>,
    /// What is wanted gone and was promised: not promised again until then.
    leaving: HashMap<ObjectId, Duration>,
    /// Whether the store says that there are promises, and when the last was given.
    noted: bool,
    last_given: Duration,
    /// Bytes that this node has to keep: those of the last plan, and what was promised
    /// since.
    kept: u64,
    /// The objects of the last plan, by the first bytes of their names.
    keeps: HashSet<[u8; 8]>,
    /// When it is looked again without need.
    next_sweep: Duration,
    fruitless_until: Duration,
    /// Objects that no layer needed, and since when.
    orphans: HashMap<ObjectId, Duration>,
    /// What was evicted last.
    evicted: VecDeque<ObjectId>,
    /// The budget could not be met; it is said once.
    short: bool,
    /// How fast objects go.
    pace: Pace,
}

/// What came of a round.
#[derive(Debug, Default)]
struct Looked {
    /// It is to be looked again soon.
    again: bool,
    /// How long it took to look and to decide.
    took: Duration,
}

/// An object that no layer needs.
#[derive(Debug, Clone, Copy)]
struct Orphan {
    id: ObjectId,
    bytes: u64,
    whole: bool,
}

/// What there is.
struct Inventory {
    items: Vec<Item>,
    orphans: Vec<Orphan>,
    /// Number and bytes of index parts, which stay.
    parts: (u64, u64),
}

/// What a round looked at and found.
struct Round {
    disk: Disk,
    budget: Budget,
    inventory: Inventory,
    plan: EvictionPlan,
}

/// One object that is to go.
#[derive(Debug, Clone, Copy)]
struct Goes {
    id: ObjectId,
    bytes: u64,
    whole: bool,
    /// `None`: no layer needs it.
    class: Option<Class>,
}

/// Objects and bytes by why they went.
type Done = HashMap<&'static str, (u64, u64)>;

impl Evictor {
    /// Nothing is evicted before [`Evictor::round`].
    pub(super) fn new(
        store: Arc<Store>,
        counters: Arc<Counters>,
        limits: StoreConfig,
        weights: Weights,
        key: &SigningKey,
    ) -> Self {
        // What can't be known is taken to be so: it costs a minute of keeping.
        let noted = store.is_promised().unwrap_or(true);
        let (says, heard) = sync_channel(HEARD_MAX);
        let state = State {
            ledger: Ledger::new(Duration::ZERO, !noted),
            neighbours: Neighbours::default(),
            going: HashSet::new(),
            promised: HashMap::new(),
            leaving: HashMap::new(),
            noted,
            last_given: Duration::ZERO,
            kept: 0,
            keeps: HashSet::new(),
            next_sweep: SWEEP,
            fruitless_until: Duration::ZERO,
            orphans: HashMap::new(),
            evicted: VecDeque::new(),
            short: false,
            pace: Pace::default(),
        };
        let evictor = Self {
            store,
            counters,
            limits,
            weights,
            me: PeerId(key.verifying_key().to_bytes()),
            key: key.clone(),
            state: Mutex::new(state),
            rounds: Mutex::default(),
            started: clock(),
            bell: Arc::default(),
            says,
            heard: Mutex::new(Some(heard)),
            copies: Default::default(),
        };
        evictor.warn_of_limits();
        evictor
    }

    fn warn_of_limits(&self) {
        let total = self.store.space().map_or(0, |space| space.total);
        match self.limits.max_size {
            Some(size) if size.0 == 0 => {
                warn!("store.max_size is 0: no content is kept for longer than it is read");
            }
            Some(size) if size.0 > total && total > 0 => warn!(
                "store.max_size ({size}) is more than the disk has ({}): store.min_free decides",
                ByteSize(total)
            ),
            _ => {}
        }
        if total > 0 && self.limits.min_free.of(total) >= total {
            warn!("store.min_free leaves nothing of the disk to the store");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn one_round(&self) -> MutexGuard<'_, ()> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since this began; also while the machine slept.
    fn now(&self) -> Duration {
        clock().saturating_sub(self.started)
    }

    fn disk(&self) -> Result<(Disk, Budget), EvictError> {
        let occupied = self.store.held()?.bytes;
        let space = self.store.space()?;
        let disk = Disk { size: space.total, free: space.free, occupied };
        let min_free = self.limits.min_free.of(space.total);
        Ok((disk, Budget::of(self.limits.max_size.map(|size| size.0), min_free, disk)))
    }

    /// Takes in who is near.
    fn meet(&self, node: &Node) {
        let links = node.engine.links();
        let near = links.iter().filter(|link| link.near == Near::Lan);
        let near: Vec<_> = near.map(|link| (link.peer, link.tunnel)).collect();
        self.state().neighbours.meet(&near);
    }

    /// Evicts what has to go, if anything has.
    fn round(&self, node: &Node) -> Result<Looked, EvictError> {
        let began = Instant::now();
        let _one = self.one_round();
        self.meet(node);
        self.forget_expired()?;
        let (disk, budget) = self.disk()?;
        let pressure = budget.pressure(disk.occupied);
        let now = self.now();
        {
            let mut state = self.state();
            if pressure != Pressure::Hard {
                state.short = false;
            }
            // Below the hard mark only copies go that others keep.
            let due = match pressure {
                Pressure::Hard => true,
                _ if state.neighbours.is_empty() => false,
                Pressure::Soft => now >= state.fruitless_until,
                Pressure::None => now >= state.next_sweep,
            };
            if !due {
                return Ok(Looked::default());
            }
            state.pace.looked(disk.occupied.saturating_sub(budget.low), self.is_full(&disk));
        }
        let round = self.look(node, disk, budget)?;
        let asked = self.survey(node, &round, pressure != Pressure::None);
        self.ask(node, &round);
        let took = began.elapsed();
        let pace = self.state().pace.clone();
        let done = self.act(node, &round, Some(&pace));
        let again = asked || !done.is_empty() || round.plan.waits_for > 0;
        if !again {
            let mut state = self.state();
            state.fruitless_until = now + FRUITLESS;
            if pressure == Pressure::None {
                state.next_sweep = now + SWEEP;
            }
        }
        Ok(Looked { again, took })
    }

    /// Other programs are about to find no space.
    fn is_full(&self, disk: &Disk) -> bool {
        disk.free < (self.limits.min_free.of(disk.size) / 2).max(FULL)
    }

    /// Decides, and changes nothing.
    fn look(&self, node: &Node, disk: Disk, budget: Budget) -> Result<Round, EvictError> {
        self.state().neighbours.tick(self.now());
        let inventory = self.inventory(node)?;
        let mut occupied = disk.occupied;
        if budget.pressure(occupied) != Pressure::None {
            let orphans = inventory.orphans.iter().map(|orphan| orphan.bytes).sum::<u64>();
            occupied -= orphans.min(occupied);
        }
        self.count_copies(&inventory.items);
        let mut state = self.state();
        let now = self.now();
        state.ledger.tick(now);
        let me = Member { id: self.me, capacity: budget.hard };
        let peers = state.neighbours.members();
        let view = View { me, peers: &peers, ledger: &state.ledger, weights: self.weights };
        let plan = plan(&inventory.items, occupied, &view, &budget, now);
        let keeps = || plan.keeps.iter().map(|n| &inventory.items[*n]);
        state.kept = keeps().map(|item| item.bytes).fold(inventory.parts.1, u64::saturating_add);
        state.keeps = keeps().map(|item| first(&item.id)).collect();
        Ok(Round { disk, budget, inventory, plan })
    }

    fn count_copies(&self, items: &[Item]) {
        let mut copies = [0u64; 3];
        for item in items.iter().filter(|item| item.whole) {
            copies[item.lan.len().min(2) as usize] += 1;
        }
        for (shown, copies) in self.copies.iter().zip(copies) {
            shown.store(copies, Ordering::Relaxed);
        }
    }

    fn say_what_went(&self, round: &Round, done: &Done) {
        let (objects, bytes) = sum(done);
        if objects > 0 {
            let why: Vec<String> = done
                .iter()
                .map(|(why, (_, bytes))| format!("{} {why}", ByteSize(*bytes)))
                .collect();
            info!(
                objects,
                "evicted {} of {}: {}",
                ByteSize(bytes),
                ByteSize(round.disk.occupied),
                why.join("; ")
            );
        }
        let was_short = std::mem::replace(&mut self.state().short, round.plan.short > 0);
        if round.plan.short > 0 && !was_short {
            warn!(
                "the store holds {} more than it may, and nothing can go now: `peersync gc \
                 --dry-run` says why; reads go on",
                ByteSize(round.plan.short)
            );
        }
    }

    /// Tells all neighbours.
    fn tell_all(&self, node: &Node, keep: &Keep) {
        let near: Vec<PeerId> = self.state().neighbours.ids().collect();
        for peer in near {
            // One that does not hear it finds out when it asks.
            let _ = node.engine.tell(&peer, Message::Keep(keep.clone()));
        }
    }

    /// Promises that are taken back, because what they are about is wanted gone.
    fn withdraw(&self, node: &Node, objects: &[ObjectId]) {
        let new: Vec<ObjectId> = {
            let mut state = self.state();
            let until = self.now() + PROMISE;
            let new = objects.iter().filter(|id| !state.leaving.contains_key(id)).copied();
            let new: Vec<ObjectId> = new.collect();
            state.leaving.extend(new.iter().map(|id| (*id, until)));
            new
        };
        for objects in new.chunks(HELD_MAX) {
            self.counters.promises_withdrawn.add(objects.len() as u64);
            self.tell_all(node, &Keep::Withdrawn { all: false, objects: objects.to_vec() });
        }
    }

    /// This node ends: nobody is to rely on it any more.
    pub(super) fn leave(&self, node: &Node) {
        self.tell_all(node, &Keep::Withdrawn { all: true, objects: Vec::new() });
    }

    /// Forgets what has expired; the store says so once nobody relies on anything.
    fn forget_expired(&self) -> Result<(), EvictError> {
        let now = self.now();
        let mut guard = self.state();
        let state = &mut *guard;
        state.ledger.tick(now);
        let given: HashSet<ObjectId> = state.ledger.given().copied().collect();
        state.promised.retain(|id, _| given.contains(id));
        state.leaving.retain(|_, until| now < *until);
        let quiet = now.saturating_sub(state.last_given) >= PROMISE * 2;
        if state.noted && given.is_empty() && quiet && !self.store.is_read_only() {
            self.store.set_promised(false)?;
            state.noted = false;
        }
        Ok(())
    }

    /// Writes down what was used, and notes what came back after it was evicted.
    fn record(&self, node: &Node) -> Result<(), EvictError> {
        let now = unix_time();
        for object in node.mounts.open_objects() {
            self.store.note_used(&object, now);
        }
        self.note_containers(node, now)?;
        self.store.record_uses()?;
        let evicted = std::mem::take(&mut self.state().evicted);
        let mut gone = VecDeque::with_capacity(evicted.len());
        for id in evicted {
            match self.store.progress(&id).resident {
                0 => gone.push_back(id),
                bytes => {
                    self.counters.eviction_misses.add(1);
                    self.counters.eviction_missed_bytes.add(bytes);
                }
            }
        }
        self.state().evicted.extend(gone);
        Ok(())
    }
}

/// Why there is no eviction.
#[derive(Debug, thiserror::Error)]
pub(super) enum EvictError {
    #[error(transparent)]
    Records(#[from] MetaError),
    #[error("how full the disk is: {0}")]
    Disk(#[from] std::io::Error),
}

const ORPHAN: &str = "no layer needs it";

fn sum(done: &Done) -> (u64, u64) {
    done.values().fold((0, 0), |sum, (objects, bytes)| (sum.0 + objects, sum.1 + bytes))
}

/// Why an object goes, for people.
fn goes_as(class: Class) -> &'static str {
    match class {
        Class::Spare | Class::Handed | Class::Refused => "a neighbour promised to keep it",
        Class::LastLocal => "the budget wants it gone; nodes elsewhere have it",
        Class::LastKnown => "the budget wants it gone",
        Class::Pinned => "it is pinned, and the budget can be met in no other way",
        Class::InUse => "it is in use, and the budget can be met in no other way",
    }
}

/// Enough of a name to tell this node's objects apart by.
fn first(id: &ObjectId) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&id.as_bytes()[..8]);
    first
}

pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The time since the machine was started, sleep included: a promise does not last
/// longer because the one who relies on it was asleep. Nobody can set it.
fn clock() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}
