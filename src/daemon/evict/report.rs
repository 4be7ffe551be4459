//! For `peersync gc`: what goes and why, or what would.

use std::thread;
use std::time::Duration;

use super::{Done, EvictError, Evictor, Node, ORPHAN, Round, goes_as, sum};
use crate::admin::{GcGroup, GcItem, GcReport};
use crate::eviction::{Class, Pressure, Verdict};
use crate::types::ObjectId;

/// Items that a report names one by one.
const NAMED: usize = 200;
/// `peersync gc` waits so often, and so long, for what neighbours answer.
const WAITS: u32 = 100;
const WAIT: Duration = Duration::from_millis(100);

impl Evictor {
    /// For `peersync gc`: what goes and why, or what would.
    pub(in crate::daemon) fn gc(&self, node: &Node, dry_run: bool) -> Result<GcReport, EvictError> {
        let mut done = Done::new();
        let mut waits = 0;
        let mut used = None;
        let mut report = Report::default();
        let round = loop {
            let (round, open) = self.step(node, dry_run, &mut done)?;
            used.get_or_insert(round.disk.occupied);
            let last = !open || waits == WAITS;
            if last || !dry_run {
                report.take(&round, true);
            }
            if last {
                break round;
            }
            waits += 1;
            thread::sleep(WAIT);
        };
        report.take(&round, false);
        let parts = round.inventory.parts;
        if parts.0 > 0 {
            let why = "its layer could not be mounted without it".to_owned();
            report.groups.push(GcGroup { goes: false, why, objects: parts.0, bytes: parts.1 });
        }
        let goes = report.groups.iter().filter(|group| group.goes).map(|group| group.bytes);
        let freed = if dry_run { goes.sum() } else { sum(&done).1 };
        report.sort();
        Ok(GcReport {
            dry_run,
            used_bytes: used.unwrap_or(round.disk.occupied),
            budget_bytes: round.budget.hard,
            freed_bytes: freed,
            short_bytes: round.plan.short,
            groups: report.groups,
            items: report.items,
        })
    }

    /// Looks, and does what is to be done; whether neighbours have still to answer.
    fn step(
        &self,
        node: &Node,
        dry_run: bool,
        done: &mut Done,
    ) -> Result<(Round, bool), EvictError> {
        // Somebody waits for this, and no longer than for what is at hand.
        self.bell.interrupt();
        let _one = self.one_round();
        let (disk, budget) = self.disk()?;
        self.meet(node);
        let round = self.look(node, disk, budget)?;
        // They are asked what they have even if nothing is to go: that changes
        // nothing, and what is said is true.
        self.survey(node, &round, true);
        let asked = self.state().neighbours.is_asking();
        if dry_run {
            return Ok((round, asked));
        }
        for (why, (objects, bytes)) in self.act(node, &round, None) {
            let sum = done.entry(why).or_default();
            *sum = (sum.0 + objects, sum.1 + bytes);
        }
        self.ask(node, &round);
        let open = |verdict: &Verdict| matches!(verdict, Verdict::Asks(_) | Verdict::Waits);
        let open = asked || round.plan.verdicts.iter().any(open);
        Ok((round, open))
    }
}

#[derive(Default)]
struct Report {
    groups: Vec<GcGroup>,
    items: Vec<GcItem>,
}

impl Report {
    /// What goes of a round, or what stays.
    fn take(&mut self, round: &Round, goes: bool) {
        let orphans_go = round.budget.pressure(round.disk.occupied) != Pressure::None;
        for orphan in round.inventory.orphans.iter().filter(|_| orphans_go == goes) {
            self.add(&orphan.id, orphan.bytes, None, goes, ORPHAN);
        }
        for (item, verdict) in round.inventory.items.iter().zip(&round.plan.verdicts) {
            let (said, why) = words(*verdict);
            if said == goes {
                self.add(&item.id, item.bytes, Some(item.idle), goes, why);
            }
        }
    }

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

/// What becomes of an object and why, for people.
fn words(verdict: Verdict) -> (bool, &'static str) {
    match verdict {
        Verdict::Goes(class) => (true, goes_as(class)),
        Verdict::Asks(_) | Verdict::Waits => (false, "a neighbour is asked whether it keeps it"),
        Verdict::Unsure => (false, "neighbours are asked whether they have it"),
        Verdict::Refused => (false, "neighbours have it, and none promises yet to keep it"),
        Verdict::Promised => (false, "a neighbour may rely on it"),
        Verdict::Keeper => (false, "this node keeps it for its neighbours"),
        Verdict::Stays(Class::Pinned) => (false, "it is pinned"),
        Verdict::Stays(Class::InUse) => (false, "a container or an open file uses it"),
        Verdict::Stays(_) => (false, "there is room for it"),
    }
}
