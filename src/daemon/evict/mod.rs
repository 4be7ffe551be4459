//! Eviction: looks at how full the store is, has it decided what goes, and does it.
//!
//! A thread of its own, behind other work: no read waits for it. How full the store
//! is costs nothing to know; the objects are looked through only when something has
//! to go.

mod items;

pub(super) use items::slots_of;

use std::collections::{HashMap, VecDeque};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tracing::{debug, info, warn};

use super::Node;
use super::caretaker::step_back;
use crate::admin::{GcGroup, GcItem, GcReport};
use crate::config::{ByteSize, StoreConfig};
use crate::eviction::{
    Budget, Class, Disk, EvictionPlan, Item, Ledger, Member, Pressure, Verdict, View, Weights, plan,
};
use crate::store::{MetaError, Removal, Store};
use crate::telemetry::Counters;
use crate::types::{ObjectId, PeerId};

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);
/// How often uses are written down.
const RECORD: Duration = Duration::from_secs(60);
/// Objects that are removed at a time, so that nothing is locked for long.
const BATCH: usize = 64;
/// Objects that were evicted last, of which it is noted when they come back.
const REMEMBERED: usize = 4096;
/// Items that a report names one by one.
const NAMED: usize = 200;

/// What decides, and what it remembers.
pub(super) struct Evictor {
    store: Arc<Store>,
    counters: Arc<Counters>,
    limits: StoreConfig,
    weights: Weights,
    me: PeerId,
    state: Mutex<State>,
    /// One round at a time.
    rounds: Mutex<()>,
    started: Instant,
}

struct State {
    ledger: Ledger,
    /// Objects that no layer needed, and since when.
    orphans: HashMap<ObjectId, Duration>,
    /// What was evicted last.
    evicted: VecDeque<ObjectId>,
    /// The budget could not be met; it is said once.
    short: bool,
}

/// What there is.
struct Inventory {
    items: Vec<Item>,
    /// Objects that no layer needs, and their bytes.
    orphans: Vec<(ObjectId, u64)>,
    /// Bytes of index parts, which stay.
    parts: (u64, u64),
}

/// What a round looked at and found.
struct Round {
    disk: Disk,
    budget: Budget,
    inventory: Inventory,
    plan: EvictionPlan,
}

/// Objects and bytes by why they went.
type Done = HashMap<&'static str, (u64, u64)>;

impl Evictor {
    /// Nothing is evicted before [`Evictor::round`]. This node promises nothing yet,
    /// so there is nothing that a start has to wait out.
    pub(super) fn new(
        store: Arc<Store>,
        counters: Arc<Counters>,
        limits: StoreConfig,
        me: PeerId,
    ) -> Self {
        let state = State {
            ledger: Ledger::new(Duration::ZERO, true),
            orphans: HashMap::new(),
            evicted: VecDeque::new(),
            short: false,
        };
        let evictor = Self {
            store,
            counters,
            limits,
            weights: Weights::default(),
            me,
            state: Mutex::new(state),
            rounds: Mutex::default(),
            started: Instant::now(),
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

    fn disk(&self) -> Result<(Disk, Budget), EvictError> {
        let occupied = self.store.held()?.bytes;
        let space = self.store.space()?;
        let disk = Disk { size: space.total, free: space.free, occupied };
        let min_free = self.limits.min_free.of(space.total);
        Ok((disk, Budget::of(self.limits.max_size.map(|size| size.0), min_free, disk)))
    }

    /// Evicts what has to go, if anything has.
    fn round(&self, node: &Node) -> Result<(), EvictError> {
        let _one = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let (disk, budget) = self.disk()?;
        // Below the hard mark only copies go that others keep, and nobody promised.
        if budget.pressure(disk.occupied) != Pressure::Hard {
            self.state().short = false;
            return Ok(());
        }
        let round = self.look(node, disk, budget)?;
        self.act(&round);
        Ok(())
    }

    /// Decides, and changes nothing.
    fn look(&self, node: &Node, disk: Disk, budget: Budget) -> Result<Round, EvictError> {
        let inventory = self.inventory(node)?;
        let mut occupied = disk.occupied;
        if budget.pressure(occupied) != Pressure::None {
            occupied -= inventory.orphans.iter().map(|(_, bytes)| bytes).sum::<u64>().min(occupied);
        }
        let mut state = self.state();
        let now = self.started.elapsed();
        state.ledger.tick(now);
        let me = Member { id: self.me, capacity: budget.hard };
        let view = View { me, peers: &[], ledger: &state.ledger, weights: self.weights };
        let plan = plan(&inventory.items, occupied, &view, &budget, now);
        Ok(Round { disk, budget, inventory, plan })
    }

    /// Does what was decided.
    fn act(&self, round: &Round) -> Done {
        let mut done = Done::new();
        if round.budget.pressure(round.disk.occupied) != Pressure::None {
            let orphans: Vec<_> =
                round.inventory.orphans.iter().map(|(id, bytes)| (*id, *bytes, ORPHAN)).collect();
            self.remove(&orphans, Removal::Everything, &mut done);
        }
        let items = &round.inventory.items;
        let goes = round.plan.drop.iter().map(|drop| {
            let item = &items[drop.item];
            (item.id, item.bytes, goes_as(drop.class))
        });
        // Block lists stay, so that content comes back lazily.
        self.remove(&goes.collect::<Vec<_>>(), Removal::Data, &mut done);
        let (objects, bytes) = sum(&done);
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
        done
    }

    fn remove(&self, objects: &[(ObjectId, u64, &'static str)], how: Removal, done: &mut Done) {
        for batch in objects.chunks(BATCH) {
            let ids: Vec<ObjectId> = batch.iter().map(|(id, ..)| *id).collect();
            if let Err(error) = self.store.remove_objects(&ids, how) {
                warn!("eviction: {error}");
                return;
            }
            let mut state = self.state();
            for (id, bytes, why) in batch {
                self.counter(why).add(*bytes);
                let sum = done.entry(why).or_default();
                *sum = (sum.0 + 1, sum.1 + bytes);
                debug!(object = %id, bytes, "evicted: {why}");
                state.ledger.dropped(id);
                if state.evicted.len() >= REMEMBERED {
                    state.evicted.pop_front();
                }
                state.evicted.push_back(*id);
            }
        }
    }

    fn counter(&self, why: &str) -> &crate::telemetry::Counter {
        if why == ORPHAN { &self.counters.evicted_orphan } else { &self.counters.evicted_pressure }
    }

    /// Writes down what was used, and notes what came back after it was evicted.
    fn record(&self, node: &Node) -> Result<(), EvictError> {
        let now = unix_time();
        for object in node.mounts.open_objects() {
            self.store.note_used(&object, now);
        }
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

    /// For `peersync gc`: what goes and why, or what would.
    pub(super) fn gc(&self, node: &Node, dry_run: bool) -> Result<GcReport, EvictError> {
        let _one = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        let (disk, budget) = self.disk()?;
        let round = self.look(node, disk, budget)?;
        let mut report = Report::default();
        let Inventory { items, orphans, parts } = &round.inventory;
        let orphans_go = budget.pressure(disk.occupied) != Pressure::None;
        for (id, bytes) in orphans {
            report.add(id, *bytes, None, orphans_go, ORPHAN);
        }
        for (item, verdict) in items.iter().zip(&round.plan.verdicts) {
            let (goes, why) = words(*verdict);
            report.add(&item.id, item.bytes, Some(item.idle), goes, why);
        }
        if parts.0 > 0 {
            let why = "its layer could not be mounted without it".to_owned();
            report.groups.push(GcGroup { goes: false, why, objects: parts.0, bytes: parts.1 });
        }
        let freed = if dry_run {
            report.groups.iter().filter(|group| group.goes).map(|group| group.bytes).sum()
        } else {
            sum(&self.act(&round)).1
        };
        report.sort();
        Ok(GcReport {
            dry_run,
            used_bytes: disk.occupied,
            budget_bytes: budget.hard,
            freed_bytes: freed,
            short_bytes: round.plan.short,
            groups: report.groups,
            items: report.items,
        })
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

#[derive(Default)]
struct Report {
    groups: Vec<GcGroup>,
    items: Vec<GcItem>,
}

impl Report {
    fn add(&mut self, id: &ObjectId, bytes: u64, idle: Option<u32>, goes: bool, why: &str) {
        match self.groups.iter_mut().find(|group| group.goes == goes && group.why == why) {
            Some(group) => {
                group.objects += 1;
                group.bytes += bytes;
            }
            None => self.groups.push(GcGroup { goes, why: why.to_owned(), objects: 1, bytes }),
        }
        self.items.push(GcItem {
            object: id.to_string(),
            goes,
            why: why.to_owned(),
            bytes,
            unused_seconds: idle.filter(|idle| *idle < u32::MAX).map(u64::from),
        });
    }

    fn sort(&mut self) {
        self.groups.sort_by_key(|group| (!group.goes, std::cmp::Reverse(group.bytes)));
        self.items.sort_by_key(|item| (!item.goes, std::cmp::Reverse(item.bytes)));
        self.items.truncate(NAMED);
    }
}

const ORPHAN: &str = "no layer needs it";

fn sum(done: &Done) -> (u64, u64) {
    done.values().fold((0, 0), |sum, (objects, bytes)| (sum.0 + objects, sum.1 + bytes))
}

/// Why an object goes, for people.
fn goes_as(class: Class) -> &'static str {
    match class {
        Class::Spare | Class::Handed => "a neighbour promised to keep it",
        Class::LastLocal => "the budget wants it gone; nodes elsewhere have it",
        Class::LastKnown => "the budget wants it gone",
        Class::Pinned => "it is pinned, and the budget can be met in no other way",
        Class::InUse => "it is in use, and the budget can be met in no other way",
    }
}

/// What becomes of an object and why, for people.
fn words(verdict: Verdict) -> (bool, &'static str) {
    match verdict {
        Verdict::Goes(class) => (true, goes_as(class)),
        Verdict::Asks(_) | Verdict::Waits => (false, "a neighbour is asked whether it keeps it"),
        Verdict::Promised => (false, "a neighbour may rely on it"),
        Verdict::Keeper => (false, "this node keeps it for its neighbours"),
        Verdict::Stays(Class::Pinned) => (false, "it is pinned"),
        Verdict::Stays(Class::InUse) => (false, "a container or an open file uses it"),
        Verdict::Stays(_) => (false, "there is room for it"),
    }
}

pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The thread; ends with [`Thread::stop`].
pub(super) struct Thread {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Thread {
    /// Looks from now on, as long as there is a node.
    ///
    /// # Errors
    /// Where the system has no thread left.
    pub(super) fn start(node: &Arc<Node>) -> std::io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let node: Weak<Node> = Arc::downgrade(node);
        let thread = thread::Builder::new().name("evict".into()).spawn(move || {
            step_back();
            let mut recorded = Instant::now();
            while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                let Some(node) = node.upgrade() else { return };
                let mut done = node.evictor.round(&node);
                if recorded.elapsed() >= RECORD {
                    recorded = Instant::now();
                    done = done.and(node.evictor.record(&node));
                }
                if let Err(error) = done {
                    warn!("eviction: {error}");
                }
            }
        })?;
        Ok(Self { stop, thread })
    }

    /// Ends it. Blocks until the objects at hand are gone.
    pub(super) fn stop(self) {
        drop(self.stop);
        // A panic there was already reported.
        let _ = self.thread.join();
    }
}
