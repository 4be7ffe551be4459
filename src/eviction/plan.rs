//! The decision: inventory and view of the swarm in, [`EvictionPlan`] out.

use std::fmt;
use std::time::Duration;

use super::budget::{Budget, Pressure};
use super::keeper::{Member, PeerSet, keeper, outranks};
use super::promise::{Ledger, PATIENCE, Standing};
use super::value::{Weights, value};
use crate::types::{ObjectId, PeerId};

/// Most questions in one plan. The next plan asks on; what can be asked still is
/// not made up for with last copies.
pub const ASKS_MAX: usize = 1024;

/// An object that the store has, whole or in part.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Item {
    /// Which.
    pub id: ObjectId,
    /// Bytes of disk that it occupies.
    pub bytes: u64,
    /// Whether all blocks are here.
    pub whole: bool,
    /// Seconds since it was last used, by anybody.
    pub idle: u32,
    /// How often it was used, older uses counting less.
    pub uses: f32,
    /// An operator wants it kept.
    pub pinned: bool,
    /// A running container or an open file uses it.
    pub in_use: bool,
    /// Neighbours that live and are known to have all of it: proved by blocks that
    /// they served, or said in a signed announcement.
    pub lan: PeerSet,
    /// Holders elsewhere, known in the same way.
    pub remote: u32,
    /// Neighbours are still being asked whether they have it: until they have
    /// answered it is not taken for a last copy.
    pub unsure: bool,
}

impl Item {
    /// A whole object of no size that nobody else has and nobody used.
    pub fn new(id: ObjectId) -> Self {
        Self {
            id,
            bytes: 0,
            whole: true,
            idle: 0,
            uses: 0.0,
            pinned: false,
            in_use: false,
            lan: PeerSet::default(),
            remote: 0,
            unsure: false,
        }
    }
}

/// What the node knows of the others, and what it wants.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// This node.
    pub me: Member,
    /// The live neighbours, which [`Item::lan`] counts off.
    pub peers: &'a [Member],
    /// What is promised.
    pub ledger: &'a Ledger,
    /// The knobs.
    pub weights: Weights,
}

/// How far things must have come for a copy to go, the least extreme first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The LAN's keeper has promised to keep its own.
    Spare,
    /// I am the keeper, and the next holder has promised to take over.
    Handed,
    /// Others in the LAN have it, and none of them promises to keep it: not yet.
    Refused,
    /// The last copy in the LAN; there are others in the swarm.
    LastLocal,
    /// The last one that is known of anywhere.
    LastKnown,
    /// Pinned.
    Pinned,
    /// A container or an open file uses it.
    InUse,
}

/// What becomes of an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes.
    Goes(Class),
    /// It could go with the promise of this one (a position in [`View::peers`]),
    /// who is asked.
    Asks(u8),
    /// It could go with a promise, which is under way.
    Waits,
    /// It could go with a promise, if a neighbour has it; they are asked that first.
    Unsure,
    /// It could go with a promise, which nobody gives now; they are asked again.
    Refused,
    /// It stays, as I have promised it.
    Promised,
    /// It stays: others have it, and I am the keeper.
    Keeper,
    /// It stays: things have not come as far as this class.
    Stays(Class),
}

/// One copy that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drop {
    /// Position in the inventory.
    pub item: usize,
    /// Why it may go.
    pub class: Class,
}

/// One promise to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Position in the inventory.
    pub item: usize,
    /// Who is to keep the object.
    pub of: PeerId,
}

/// What is to be done, and why, for each item.
#[derive(Debug, Clone, PartialEq)]
pub struct EvictionPlan {
    /// Where the store stands.
    pub pressure: Pressure,
    /// What goes, in this order.
    pub drop: Vec<Drop>,
    /// Which promises are to be asked for.
    pub ask: Vec<Ask>,
    /// What would go but for promises that this node has given (positions in the
    /// inventory): they are to be taken back, and not to be given again.
    pub withdraw: Vec<usize>,
    /// What this node has to keep (positions in the inventory): last copies, and what
    /// is promised, pinned or in use.
    pub keeps: Vec<usize>,
    /// Bytes that the dropped copies occupy.
    pub frees: u64,
    /// Bytes that may become free with promises that are under way.
    pub waits_for: u64,
    /// Bytes over the hard mark that nothing can free now.
    pub short: u64,
    /// For each item, in the inventory's order.
    pub verdicts: Vec<Verdict>,
}

/// Decides what goes of `inventory`, in a store that occupies `occupied` bytes.
///
/// Up to each mark (see [`Budget`]) by the least extreme class that gets there,
/// within a class by the least [`value`]:
///
/// | over | goes | until |
/// |---|---|---|
/// | (nothing) | spare copies that nobody used for `spare_after` | none is left |
/// | `soft` | spare copies | `low` |
/// | `hard` | also copies handed over | `soft` |
/// | `hard`, still | also last local copies, then last known copies | `soft` |
/// | `hard`, still | also what is pinned, then what is in use | `hard` |
///
/// What could go with a promise that is not there yet counts as gone for the
/// classes behind it: rather than drop a last copy, the node asks and waits, and
/// reads go on meanwhile. Holders that refused or did not answer are asked again for
/// [`PATIENCE`], then they count as none. An object of which only a part is here never
/// counts as a copy, and goes as if it were the only one unless a holder of all of it
/// promises to stay.
///
/// Linear in the items, with a sort of those that may go.
pub fn plan(
    inventory: &[Item],
    occupied: u64,
    view: &View<'_>,
    budget: &Budget,
    now: Duration,
) -> EvictionPlan {
    let pressure = budget.pressure(occupied);
    let cases: Vec<Case> = inventory.iter().map(|item| case(item, view, now)).collect();
    let verdicts = cases.iter().map(|case| case.unless_needed()).collect();
    let mut planner = Planner {
        inventory,
        view,
        cases: &cases,
        left: occupied,
        plan: EvictionPlan {
            pressure,
            drop: Vec::new(),
            ask: Vec::new(),
            withdraw: Vec::new(),
            keeps: Vec::new(),
            frees: 0,
            waits_for: 0,
            short: 0,
            verdicts,
        },
    };
    let spare = if pressure == Pressure::None { u64::MAX } else { budget.low };
    planner.free(Class::Spare, spare);
    if pressure == Pressure::Hard {
        for class in [Class::Handed, Class::Refused] {
            planner.free(class, budget.soft);
        }
        // What is left is under the hard mark: no last copy needs to go.
        if planner.left > budget.hard {
            planner.take_promises_back(budget.soft);
            planner.free(Class::LastLocal, budget.soft);
            planner.free(Class::LastKnown, budget.soft);
        }
        for class in [Class::Pinned, Class::InUse] {
            planner.free(class, budget.hard);
        }
    }
    planner.plan.keeps = planner.keeps();
    let left = occupied.saturating_sub(planner.plan.frees);
    planner.plan.short = left.saturating_sub(budget.hard).saturating_sub(planner.plan.waits_for);
    planner.plan
}

/// How an item stands before anything is needed.
#[derive(Debug, Clone, Copy)]
struct Case {
    class: Class,
    way: Way,
    /// Nobody in the LAN who could be asked has it.
    alone: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// May go now.
    Free,
    /// May go once this one has promised.
    Ask(u8),
    /// May go once the answer is there.
    Open,
    /// May go with a promise, if anybody could give it.
    Unsure,
    /// May go with a promise, if anybody changes their mind.
    Refused,
    /// May not go now, whatever happens.
    Bound,
}

impl Case {
    fn unless_needed(self) -> Verdict {
        match (self.way, self.class) {
            (Way::Bound, _) => Verdict::Promised,
            (_, Class::Handed) => Verdict::Keeper,
            (_, class) => Verdict::Stays(class),
        }
    }
}

fn case(item: &Item, view: &View<'_>, now: Duration) -> Case {
    let keeper = willing_keeper(item, view, now);
    let class = match keeper {
        _ if item.in_use => Class::InUse,
        _ if item.pinned => Class::Pinned,
        Some(other) if item.whole && outranks(&view.me, &view.peers[other], &item.id) => {
            Class::Handed
        }
        Some(_) => Class::Spare,
        None if item.unsure => Class::Spare,
        None if may_be_promised_yet(item, view, now) => Class::Refused,
        None if item.remote > 0 => Class::LastLocal,
        None => Class::LastKnown,
    };
    let way = match (class, keeper) {
        _ if view.ledger.binds(&item.id, item.whole, now) => Way::Bound,
        (Class::Spare | Class::Handed, Some(other)) => {
            match view.ledger.standing(&item.id, now) {
                Standing::Promised(_) => Way::Free,
                Standing::Open => Way::Open,
                // Below `LAN_MAX`.
                Standing::Unasked => Way::Ask(other as u8),
            }
        }
        (Class::Spare, None) => Way::Unsure,
        (Class::Refused, _) => Way::Refused,
        _ => Way::Free,
    };
    Case { class, way, alone: keeper.is_none() }
}

/// Whether those who have it, and refused, are worth waiting for. The one among them
/// that hashing prefers waits twice as long: when the others have dropped theirs, it
/// knows that it has the last one.
fn may_be_promised_yet(item: &Item, view: &View<'_>, now: Duration) -> bool {
    let Some(other) = keeper(view.peers, item.lan, &item.id) else { return false };
    let first = item.whole && outranks(&view.me, &view.peers[other], &item.id);
    let patience = if first { PATIENCE * 2 } else { PATIENCE };
    let since = view.ledger.in_vain(&item.id);
    since.is_some_and(|since| now.saturating_sub(since) < patience)
}

/// The best of the holders in the LAN that has not refused.
fn willing_keeper(item: &Item, view: &View<'_>, now: Duration) -> Option<usize> {
    let mut willing = item.lan;
    if willing.is_empty() {
        return None;
    }
    let refusers = view.ledger.refusers(&item.id, now);
    if !refusers.is_empty() {
        willing.retain(|peer| view.peers.get(peer).is_some_and(|p| !refusers.contains(&p.id)));
    }
    keeper(view.peers, willing, &item.id)
}

struct Planner<'a> {
    inventory: &'a [Item],
    view: &'a View<'a>,
    cases: &'a [Case],
    /// Bytes that stay occupied, what waits for a promise counted as gone.
    left: u64,
    plan: EvictionPlan,
}

impl Planner<'_> {
    /// Has items of `class` go, the least valuable first, until `goal` is reached.
    /// Spare ones that nobody uses go in any case.
    fn free(&mut self, class: Class, goal: u64) {
        let surplus =
            |item: &Item| class == Class::Spare && item.idle >= self.view.weights.spare_after;
        if self.left <= goal && class != Class::Spare {
            return;
        }
        let needed = self.left > goal;
        let mut order: Vec<(u32, u32)> = self
            .cases
            .iter()
            .zip(self.inventory)
            .enumerate()
            .filter(|(_, (case, item))| case.class == class && (needed || surplus(item)))
            // Not negative: as bits they sort as they do as numbers.
            .map(|(n, (case, item))| (self.value(case, item).to_bits(), n as u32))
            .collect();
        order.sort_unstable();
        for (_, n) in order {
            let n = n as usize;
            if self.left > goal || surplus(&self.inventory[n]) {
                self.take(n, class);
            } else if class != Class::Spare {
                return;
            }
        }
    }

    /// A holder who refused, or lied about having it, makes no copy cheaper.
    fn value(&self, case: &Case, item: &Item) -> f32 {
        if case.alone && !item.lan.is_empty() {
            return value(&Item { lan: PeerSet::default(), ..*item }, &self.view.weights);
        }
        value(item, &self.view.weights)
    }

    /// Takes promises back, so that they end, the least valuable first: only where all
    /// else that others have is not enough. Who promised and took it back at once would
    /// leave the other without a keeper, and be bound all the same.
    ///
    /// Whoever was promised it has dropped its own, or asks others now. If it has not,
    /// they can be asked from here after that.
    fn take_promises_back(&mut self, goal: u64) {
        let mut given: Vec<(u32, usize)> = (self.cases.iter().zip(self.inventory).enumerate())
            .filter(|(_, (case, _))| case.way == Way::Bound && case.class <= Class::Refused)
            .map(|(n, (case, item))| (self.value(case, item).to_bits(), n))
            .collect();
        given.sort_unstable();
        for (_, n) in given {
            if self.left <= goal {
                return;
            }
            self.plan.withdraw.push(n);
            self.waits_for(n, Verdict::Promised);
        }
    }

    fn keeps(&self) -> Vec<usize> {
        let stays = self.cases.iter().zip(&self.plan.verdicts).enumerate();
        stays
            .filter(|(_, (case, verdict))| {
                (case.class > Class::Refused || case.way == Way::Bound)
                    && !matches!(verdict, Verdict::Goes(_))
            })
            .map(|(n, _)| n)
            .collect()
    }

    fn take(&mut self, item: usize, class: Class) {
        let bytes = self.inventory[item].bytes;
        let verdict = match self.cases[item].way {
            Way::Free => {
                self.plan.drop.push(Drop { item, class });
                self.plan.frees = self.plan.frees.saturating_add(bytes);
                self.left = self.left.saturating_sub(bytes);
                self.plan.verdicts[item] = Verdict::Goes(class);
                return;
            }
            Way::Ask(peer) => {
                if self.plan.ask.len() < ASKS_MAX {
                    let of = self.view.peers[usize::from(peer)].id;
                    self.plan.ask.push(Ask { item, of });
                }
                Verdict::Asks(peer)
            }
            Way::Open => Verdict::Waits,
            Way::Unsure => Verdict::Unsure,
            Way::Refused => Verdict::Refused,
            Way::Bound => return,
        };
        self.waits_for(item, verdict);
    }

    /// An item that may be gone a moment from now.
    fn waits_for(&mut self, item: usize, verdict: Verdict) {
        let bytes = self.inventory[item].bytes;
        self.plan.waits_for = self.plan.waits_for.saturating_add(bytes);
        self.left = self.left.saturating_sub(bytes);
        self.plan.verdicts[item] = verdict;
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spare => "the LAN's keeper has promised to keep its copy",
            Self::Handed => "another holder in the LAN has promised to keep its copy",
            Self::Refused => "others in the LAN have it, and none promises to keep it",
            Self::LastLocal => "the last copy in the LAN; others have it elsewhere",
            Self::LastKnown => "the last copy that is known of",
            Self::Pinned => "pinned",
            Self::InUse => "a container or an open file uses it",
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Goes(class) => write!(f, "goes: {class}"),
            Self::Asks(_) => f.write_str("stays for now: the keeper is asked for its promise"),
            Self::Waits => f.write_str("stays for now: the keeper's promise is waited for"),
            Self::Unsure => f.write_str("stays for now: neighbours are asked whether they have it"),
            Self::Refused => {
                f.write_str("stays for now: others have it, and none promises yet to keep it")
            }
            Self::Promised => f.write_str("stays: this node has promised to keep it"),
            Self::Keeper => f.write_str("stays: this node is the keeper of the LAN's copies"),
            Self::Stays(Class::Spare) => f.write_str("stays: there is room for it"),
            Self::Stays(class) => write!(f, "stays: {class}"),
        }
    }
}
