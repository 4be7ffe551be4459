//! The plan's properties, on random inventories.

use std::time::Duration;

use proptest::prelude::*;

use super::plan::{Item, Verdict, View, plan};
use super::promise::PATIENCE;
use super::*;
use crate::types::{ObjectId, PeerId};

const NOW: Duration = Duration::from_secs(1000);
const PEERS: usize = 5;

fn member(n: u8) -> Member {
    Member { id: PeerId(*blake3::hash(&[n]).as_bytes()), capacity: 1 << 30 }
}

fn id(n: u32) -> ObjectId {
    ObjectId::from_bytes(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

/// An item and how the promises for it stand: 0 nothing, 1 asked, 2 promised to
/// me, 3 promised by me, 4 refused.
fn items() -> impl Strategy<Value = Vec<(Item, u8)>> {
    let item = (1u64..1000, any::<bool>(), 0u32..200_000, 0f32..50.0, 0u8..12, 0usize..32, 0u32..6);
    let of =
        |(bytes, whole, idle, uses, kept, lan, remote): (u64, bool, u32, f32, u8, usize, u32)| {
            let lan: Vec<usize> = (0..PEERS).filter(|n| lan >> n & 1 == 1).collect();
            let lan = PeerSet::of(&lan);
            let (pinned, in_use) = (kept == 0, kept == 1);
            let (remote, unsure) = (remote / 2, remote % 2 == 1);
            let item = Item { bytes, whole, idle, uses, lan, remote, unsure, ..Item::new(id(0)) };
            Item { pinned, in_use, ..item }
        };
    prop::collection::vec((item.prop_map(of), 0u8..5), 0..60).prop_map(|mut items| {
        items.iter_mut().zip(0..).for_each(|((item, _), n)| item.id = id(n));
        items
    })
}

fn ledger(items: &[(Item, u8)], me: &Member, peers: &[Member]) -> Ledger {
    let mut ledger = Ledger::new(Duration::ZERO, true);
    for (item, state) in items {
        let Some(of) = keeper(peers, item.lan, &item.id).map(|n| peers[n]) else { continue };
        if *state == 3 {
            ledger.give(&item.id, me, &of, item.whole, NOW);
        } else if *state > 0 {
            let number = ledger.ask(item.id, of.id, NOW).expect("asked once");
            if *state != 1 {
                ledger.answered(&item.id, &of.id, number, *state == 2, NOW);
            }
        }
    }
    ledger
}

proptest! {
    #[test]
    fn a_plan_keeps_the_rules(items in items(), hard in 0u64..30_000) {
        let me = member(200);
        let peers: Vec<_> = (0..PEERS as u8).map(member).collect();
        let ledger = ledger(&items, &me, &peers);
        let inventory: Vec<Item> = items.iter().map(|(item, _)| *item).collect();
        let occupied: u64 = inventory.iter().map(|item| item.bytes).sum();
        let budget = Budget::with_hard(hard);
        let view = View { me, peers: &peers, ledger: &ledger, weights: Weights::default() };
        let plan = plan(&inventory, occupied, &view, &budget, NOW);

        prop_assert_eq!(plan.verdicts.len(), inventory.len());
        let freed: u64 = plan.drop.iter().map(|drop| inventory[drop.item].bytes).sum();
        prop_assert_eq!(freed, plan.frees);
        let worst = plan.drop.iter().map(|drop| drop.class).max();
        for drop in &plan.drop {
            let item = &inventory[drop.item];
            prop_assert_eq!(plan.verdicts[drop.item], Verdict::Goes(drop.class));
            prop_assert!(!ledger.binds(&item.id, item.whole, NOW), "a promise is kept");
            if drop.class <= Class::Handed {
                prop_assert!(ledger.may_drop(&item.id, item.whole, NOW), "only on a promise");
                prop_assert!(!item.pinned && !item.in_use);
            }
        }
        // Nothing is taken for a last copy before all neighbours have said so.
        for drop in plan.drop.iter().filter(|drop| drop.class == Class::LastKnown) {
            prop_assert!(!inventory[drop.item].unsure);
        }
        for item in &plan.withdraw {
            prop_assert!(ledger.binds(&inventory[*item].id, inventory[*item].whole, NOW));
        }
        let kept: u64 = plan.keeps.iter().map(|item| inventory[*item].bytes).sum();
        prop_assert!(kept + plan.frees <= occupied);
        // What is left behind for no reason, as a less extreme class would have done.
        for (verdict, item) in plan.verdicts.iter().zip(&inventory) {
            if let (Verdict::Stays(class), Some(worst)) = (verdict, worst) {
                prop_assert!(*class >= worst, "{class:?} stays and {worst:?} goes: {item:?}");
            }
        }
        // No more than needed: without the last of the worst class it was too much.
        if let Some(last) = plan.drop.iter().rev().find(|drop| drop.class >= Class::LastLocal) {
            let mark = if last.class >= Class::Pinned { budget.hard } else { budget.soft };
            let left = occupied - plan.frees - plan.waits_for.min(occupied - plan.frees);
            prop_assert!(left + inventory[last.item].bytes > mark);
            prop_assert_eq!(plan.pressure, Pressure::Hard);
        }
        prop_assert!(plan.pressure == Pressure::Hard || worst.is_none_or(|c| c == Class::Spare));
        // Either the hard mark is met, or what is left may not go now.
        let left = occupied - plan.frees;
        prop_assert!(left <= budget.hard + plan.waits_for + plan.short);
        if plan.short > 0 {
            let stays = |v: &Verdict| !matches!(v, Verdict::Stays(_) | Verdict::Keeper);
            prop_assert!(plan.verdicts.iter().all(stays), "{:?}", plan.verdicts);
        }
    }
}

/// Asks `of` for the object as long as it takes, and is refused each time; the ledger,
/// and the time of the last refusal.
fn refused_for(id: ObjectId, of: PeerId, long: Duration) -> (Ledger, Duration) {
    let mut ledger = Ledger::new(Duration::ZERO, true);
    let mut now = NOW;
    loop {
        let number = ledger.ask(id, of, now).expect("nothing is open");
        ledger.answered(&id, &of, number, false, now);
        if now - NOW >= long {
            return (ledger, now);
        }
        // A look every two seconds finds that it can be asked again.
        now += promise::REFUSED + Duration::from_secs(2);
        ledger.tick(now);
    }
}

#[test]
fn what_others_have_and_refuse_to_keep_is_waited_for_and_the_keeper_waits_longest() {
    let (me, peers) = (member(200), [member(0)]);
    let budget = Budget { low: 0, soft: 0, hard: 100 };
    for first in [false, true] {
        let n = (0..).find(|n| outranks(&me, &peers[0], &id(*n)) == first).expect("some");
        let item = Item { bytes: 100, lan: PeerSet::of(&[0]), ..Item::new(id(n)) };
        let last = Item { bytes: 100, idle: 90_000, ..Item::new(id(1_000_000)) };
        let verdicts = |long| {
            let (ledger, now) = refused_for(item.id, peers[0].id, long);
            let view = View { me, peers: &peers, ledger: &ledger, weights: Weights::default() };
            let soft = plan(&[item], 100, &view, &Budget { hard: 1000, ..budget }, now);
            assert!(soft.drop.is_empty() && soft.keeps.len() <= usize::from(long >= PATIENCE));
            let roomy = Budget { soft: 100, ..budget };
            plan(&[item, last], 200, &view, &roomy, now).verdicts
        };
        let waits = [Verdict::Refused, Verdict::Stays(Class::LastKnown)];
        assert_eq!(verdicts(Duration::ZERO), waits);
        assert_eq!(verdicts(PATIENCE / 2), waits, "asked again and again");
        let over = [Verdict::Stays(Class::LastKnown), Verdict::Goes(Class::LastKnown)];
        assert_eq!(verdicts(PATIENCE), if first { waits } else { over });
        assert_eq!(verdicts(PATIENCE * 2), over, "no cheaper than any last copy");
    }
}

#[test]
fn promises_are_taken_back_only_where_nothing_else_is_enough() {
    let (me, peers) = (member(200), [member(0)]);
    let item = |n| Item { bytes: 100, lan: PeerSet::of(&[0]), ..Item::new(id(n)) };
    let items = [item(1), item(2)];
    let ledger = ledger(&[(items[0], 3)], &me, &peers);
    let view = View { me, peers: &peers, ledger: &ledger, weights: Weights::default() };
    let of = |soft, hard| plan(&items, 200, &view, &Budget { low: 0, soft, hard }, NOW);
    for enough in [of(100, 100), of(50, 100)] {
        assert!(enough.withdraw.is_empty() && enough.ask.len() == 1, "{enough:?}");
        assert_eq!(enough.keeps, [0]);
    }
    let more = of(50, 60);
    assert_eq!((more.withdraw, more.waits_for), (vec![0], 200));
}

#[test]
fn last_copies_may_fill_the_store_up_to_the_hard_mark() {
    let (me, peers) = (member(200), [member(0)]);
    let ledger = Ledger::new(Duration::ZERO, true);
    let view = View { me, peers: &peers, ledger: &ledger, weights: Weights::default() };
    let spare = Item { bytes: 20, lan: PeerSet::of(&[0]), ..Item::new(id(1)) };
    let last = |n| Item { bytes: 95, ..Item::new(id(n)) };
    let budget = Budget::with_hard(100);
    let fits = plan(&[spare, last(2)], 115, &view, &budget, NOW);
    assert!(fits.drop.is_empty() && fits.ask.len() == 1, "{fits:?}");
    let over = plan(&[spare, last(2), last(3)], 210, &view, &budget, NOW);
    assert_eq!(over.drop.iter().map(|drop| drop.class).collect::<Vec<_>>(), [Class::LastKnown; 2]);
}

#[test]
fn a_promise_ends_what_was_asked_in_vain() {
    let (object, of) = (id(1), member(0).id);
    let (mut ledger, mut now) = refused_for(object, of, PATIENCE);
    assert_eq!(ledger.in_vain(&object), Some(NOW));
    now += promise::REFUSED;
    let number = ledger.ask(object, of, now).expect("asked again");
    ledger.answered(&object, &of, number, true, now);
    assert_eq!(ledger.in_vain(&object), None);
    ledger.withdrawn(&object, &of, now);
    assert_eq!(ledger.in_vain(&object), Some(now));
    ledger.tick(now + promise::REFUSED * 2 + promise::USABLE);
    assert_eq!(ledger.in_vain(&object), None, "nobody asks any more");
}

#[test]
fn last_copies_wait_until_the_neighbours_have_answered() {
    let me = member(200);
    let ledger = Ledger::new(Duration::ZERO, true);
    let view = View { me, peers: &[], ledger: &ledger, weights: Weights::default() };
    let old = Item { bytes: 100, idle: 9000, ..Item::new(id(1)) };
    let new = Item { bytes: 100, unsure: true, ..Item::new(id(2)) };
    let budget = Budget { low: 50, soft: 100, hard: 100 };
    let waits = plan(&[old, new], 200, &view, &budget, NOW);
    assert!(waits.drop.is_empty() && waits.short == 0, "{waits:?}");
    assert_eq!(waits.verdicts[1], Verdict::Unsure);
    assert_eq!(waits.keeps, [0]);
    let sure = plan(&[old, Item { unsure: false, ..new }], 200, &view, &budget, NOW);
    assert_eq!(sure.verdicts, [Verdict::Goes(Class::LastKnown), Verdict::Stays(Class::LastKnown)]);
}

#[test]
fn a_spare_copy_that_nobody_uses_goes_without_pressure() {
    let (me, peers) = (member(200), [member(0)]);
    let n = (0..).find(|n| outranks(&peers[0], &me, &id(*n))).expect("some");
    let of = |idle| Item { bytes: 100, idle, lan: PeerSet::of(&[0]), ..Item::new(id(n)) };
    let weights = Weights { spare_after: 1000, ..Weights::default() };
    let item = of(1000);
    let ledger = ledger(&[(item, 2)], &me, &peers);
    let view = View { me, peers: &peers, ledger: &ledger, weights };
    let roomy = Budget::with_hard(1 << 30);
    assert_eq!(plan(&[item], 100, &view, &roomy, NOW).verdicts, [Verdict::Goes(Class::Spare)]);
    assert!(plan(&[of(999)], 100, &view, &roomy, NOW).drop.is_empty());
}

#[test]
fn the_least_valuable_goes_first_and_a_lone_node_keeps_what_it_uses() {
    let me = member(200);
    let ledger = Ledger::new(Duration::ZERO, true);
    let view = View { me, peers: &[], ledger: &ledger, weights: Weights::default() };
    let items: Vec<_> =
        (0..10).map(|n| Item { bytes: 100, idle: n * 500, ..Item::new(id(n)) }).collect();
    let plan = plan(&items, 1000, &view, &Budget::with_hard(900), NOW);
    let gone: Vec<_> = plan.drop.iter().map(|drop| drop.item).collect();
    assert_eq!(gone, [9, 8], "from 1000 over the hard mark to the soft one, 810");
    assert_eq!(plan.verdicts[0].to_string(), "stays: the last copy that is known of");
}
