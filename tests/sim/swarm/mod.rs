//! Everything together: in one world whole nodes elect trackers, tell them and each
//! other what they hold, look for neighbours, and fetch from their LAN, from others and
//! from a registry, while nodes come and go, lie, and have clocks that differ.

mod content;
mod fetch;
mod judge;
mod node;
mod talk;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Fault, Plan, S, SILENCE, World};

fn plan(nodes: usize) -> Plan {
    Plan { nodes, churn: 0.1, loss: 0.01, liars: 0.1, private: 0.3, pulls: 2.0, fault: None }
}

fn show(world: &World) {
    let outcome = &world.outcome;
    let of = |n: usize| outcome.bytes[n] as f64 / outcome.bytes.iter().sum::<u64>().max(1) as f64;
    println!(
        "| {} | {} | {} | {:.0?} | {:.0?} | {:.0} % | {:.0} % | {:.0} % | {} |",
        world.nodes.len(),
        outcome.fetched,
        outcome.failed,
        outcome.percentile(50),
        outcome.percentile(95),
        100.0 * of(0),
        100.0 * of(1),
        100.0 * of(2),
        outcome.looks
    );
}

/// What only nodes hold is found, mostly at once: nothing is given up that a live
/// node holds, or a checker speaks.
#[test]
fn what_a_live_node_holds_is_fetched_while_nodes_come_and_go() {
    for seed in 1..=2 {
        let mut world = World::new(plan(60), seed);
        world.run_for(S * 100);
        show(&world);
        assert!(world.outcome.fetched > 100, "seed {seed}: it was about something");
        let (fetched, failed) = (world.outcome.fetched, world.outcome.failed);
        assert!(failed * 20 < fetched, "seed {seed}: {failed} readings failed");
        assert!(world.outcome.percentile(50) < S, "seed {seed}: mostly one round trip or two");
    }
}

#[test]
fn with_no_registry_what_nodes_hold_is_enough() {
    // A peer that crawls would be waited for: there is nothing better to turn to.
    let mut world = World::new(Plan { churn: 0.0, liars: 0.0, ..plan(60) }, 3);
    world.registry = false;
    world.run_for(S * 90);
    show(&world);
    assert!(world.outcome.fetched > 100);
    assert_eq!(world.outcome.bytes[2], 0);
}

#[test]
fn parts_that_are_cut_off_go_on_and_grow_together_again() {
    // Whoever is named holders beyond the cut takes the tracker for a liar: nobody asks
    // until tunnels have ended.
    let mut world = World::new(Plan { churn: 0.0, liars: 0.0, pulls: 0.0, ..plan(60) }, 4);
    world.run_for(S * 20);
    let part: BTreeSet<usize> = [0, 1, 2].into();
    world.cut(part.clone());
    world.run_for(SILENCE + S * 5);
    world.plan.pulls = 2.0;
    until(&mut world, |world| world.agree(&part, true) && world.agree(&part, false));
    let fetched = world.outcome.fetched;
    world.run_for(S * 30);
    assert!(world.outcome.fetched > fetched, "both go on");
    world.cut([]);
    // They find each other by the table, of which each asks twice a minute.
    until(&mut world, |world| world.agree(&BTreeSet::new(), false));
}

/// Runs until it is so, which must be within a minute.
fn until(world: &mut World, is_so: impl Fn(&World) -> bool) {
    let since = world.now;
    while !is_so(world) {
        let follows: BTreeSet<_> =
            world.nodes.iter().map(|node| (node.lan, node.follows)).collect();
        assert!(world.now - since < S * 60, "not within a minute: {follows:?}");
        world.run_for(S);
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let mut world = World::new(plan(40), 5);
        world.run_for(S * 30);
        (world.outcome.fetched, world.outcome.bytes, world.outcome.took.clone())
    };
    assert_eq!(run(), run());
}

/// `tests/long world`: NODES nodes for SECONDS of their time, from SEED.
#[test]
#[ignore = "minutes, of an optimised build"]
fn thousands_of_whole_nodes() {
    let of = |name: &str, usual| {
        std::env::var(name).ok().map_or(usual, |text| text.parse::<u32>().expect("a number"))
    };
    let (nodes, seconds) = (of("NODES", 1000), of("SECONDS", 120));
    let mut world = World::new(plan(nodes as usize), of("SEED", 1).into());
    for ten in 1..=seconds / 10 {
        let began = std::time::Instant::now();
        world.run_for(S * 10);
        println!("{} s, the last ten in {:.1?}:", ten * 10, began.elapsed());
        show(&world);
    }
    let (fetched, failed) = (world.outcome.fetched, world.outcome.failed);
    assert!(failed * 20 < fetched, "{failed} readings failed");
    assert!(world.outcome.percentile(50) < S, "mostly one round trip or two");
}

fn found(fault: Fault, says: &[&str]) {
    let complaint = (1..=10).find_map(|seed| {
        let plan = Plan { fault: Some(fault), loss: 0.03, pulls: 6.0, ..plan(40) };
        let run = || World::new(plan, seed).run_for(S * 90);
        let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
        panic.downcast_ref::<String>().cloned()
    });
    let complaint = complaint.unwrap_or_default();
    assert!(says.iter().any(|says| complaint.contains(says)), "{fault:?}: {complaint:?}");
}

#[test]
fn a_swapped_priority_is_found() {
    found(Fault::SwapPriority, &["waits behind"]);
}

#[test]
fn an_acknowledgement_that_is_not_heeded_is_found() {
    found(Fault::DropAck, &["does not know", "takes a layer to be in"]);
}

#[test]
fn beats_that_are_renewed_on_the_way_are_found() {
    found(Fault::RenewBeats, &["was never said"]);
}

#[test]
fn a_lan_that_is_not_heeded_is_found() {
    found(Fault::NoLan, &["across the boundary"]);
}

#[test]
fn tunnels_that_should_be_closed_are_found() {
    found(Fault::KeepDropped, &["not in the book"]);
}
