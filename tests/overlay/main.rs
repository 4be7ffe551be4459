//! The neighbour overlay's machine, as it is shipped, among hundreds and thousands
//! of nodes on a virtual clock: churn, nodes that lie about others, nodes that are
//! slow. The machine's own invariants are looked at after every step, and a planted
//! fault must be found by the checkers. `PEERSYNC_SEED` repeats a run.

#[path = "../virtual/clock.rs"]
mod clock;
mod world;

use std::time::Duration;

use peersync::swarm::overlay::{NEIGHBOURS_MAX, NEIGHBOURS_WANTED, TOLD_MAX};
use world::{Fault, Plan, World};

fn seed() -> u64 {
    let seed = std::env::var("PEERSYNC_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or(7);
    println!("PEERSYNC_SEED={seed}");
    seed
}

const fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

#[test]
fn everybody_finds_neighbours_from_one_address() {
    for (nodes, time) in [(10, 2), (60, 2)] {
        let mut world = World::new(Plan { nodes, ..Plan::default() }, seed());
        world.run(minutes(time)).expect("the invariants hold");
        let (few, reached) = (world.fewest_neighbours(), world.largest_component());
        assert!(few >= NEIGHBOURS_WANTED.min(nodes - 1) / 2, "{few} of {nodes}");
        assert_eq!(reached, nodes, "one swarm of {nodes}");
        println!(
            "{nodes} nodes: at least {few} neighbours, {:.1} probes and {:.1} questions a node",
            world.probes as f64 / nodes as f64,
            world.questions as f64 / nodes as f64
        );
    }
}

#[test]
fn ten_in_a_hundred_may_go_each_minute() {
    let plan = Plan { nodes: 60, churn: 0.1, ..Plan::default() };
    let mut world = World::new(plan, seed());
    world.run(minutes(3)).expect("the invariants hold");
    let (alive, reached) = (world.alive(), world.largest_component());
    // Those that have just come know nobody yet.
    assert!(reached * 100 >= alive * 98, "{reached} of {alive} hang together");
    let dead = world.dead_neighbours();
    assert!(dead * 100 <= alive * NEIGHBOURS_WANTED, "{dead} tunnels to nobody");
}

#[test]
fn liars_take_no_more_than_their_share() {
    // Each liar names 64 nodes that are not there, whenever it is asked; and a few
    // that the table gives are liars, too.
    let plan = Plan { nodes: 100, liars: 0.3, ..Plan::default() };
    let mut world = World::new(plan, seed());
    world.run(minutes(6)).expect("the invariants hold");
    let few = world.fewest_neighbours();
    assert!(few >= NEIGHBOURS_WANTED / 2, "{few} neighbours among liars");
    assert!(world.most_fakes() <= TOLD_MAX * NEIGHBOURS_MAX);
    let (fake, all) = (world.fake_probes, world.probes);
    assert_eq!(world.largest_component(), 100);
    println!("{fake} of {all} probes went to nobody");
    // Those that were told once, a few of each liar, and a few at each later asking.
    assert!(fake < all, "{fake} of {all}");
}

#[test]
fn slow_neighbours_make_room_for_faster_ones() {
    let plan = Plan { nodes: 60, slow: 0.5, ..Plan::default() };
    let mut world = World::new(plan, seed());
    world.run(minutes(2)).expect("the invariants hold");
    let before = world.slow_share();
    world.run(minutes(10)).expect("the invariants hold");
    let after = world.slow_share();
    println!("{before:.2} of a fast node's neighbours were slow, {after:.2} are");
    assert!(after < before * 0.75, "{before:.2} of the neighbours were slow, {after:.2} are");
}

#[test]
fn clocks_need_not_agree() {
    let plan = Plan { nodes: 60, churn: 0.1, liars: 0.2, slow: 0.3, skewed: true, fault: None };
    let mut world = World::new(plan, seed());
    world.run(minutes(5)).expect("the invariants hold");
    let (alive, reached) = (world.alive(), world.largest_component());
    assert!(reached * 100 >= alive * 98, "{reached} of {alive} hang together");
}

/// `tests/long overlay`, with MINUTES for another time.
#[test]
#[ignore = "more than an hour of computing: thousands of nodes for an hour"]
fn thousands_for_an_hour() {
    let time = std::env::var("MINUTES").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let plan = Plan { nodes: 3000, churn: 0.1, liars: 0.2, slow: 0.3, skewed: true, fault: None };
    let mut world = World::new(plan, seed());
    println!("| minute | nodes | hang together | fewest neighbours | probes | to nobody |");
    for minute in 1..=time {
        world.run(minutes(1)).expect("the invariants hold");
        let (alive, reached, few) =
            (world.alive(), world.largest_component(), world.fewest_neighbours());
        let (all, fake) = (world.probes, world.fake_probes);
        println!("| {minute} | {alive} | {reached} | {few} | {all} | {fake} |");
        assert!(reached * 100 >= alive * 98, "{reached} of {alive} hang together");
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    let run = || {
        let plan = Plan { nodes: 60, churn: 0.2, liars: 0.2, ..Plan::default() };
        let mut world = World::new(plan, 42);
        world.run(minutes(3)).expect("the invariants hold");
        (world.probes, world.questions, world.fake_probes, world.links())
    };
    assert_eq!(run(), run());
}

#[test]
fn planted_faults_are_found() {
    for (fault, says) in [
        // An answer to a probe is lost on its way, and nobody looks at the time.
        (Fault::ProbesNeverEnd, "is never told"),
        // A node that is dropped is kept in the book.
        (Fault::DropsAreIgnored, "still linked"),
    ] {
        for skewed in [false, true] {
            let fault = Some(fault);
            let plan = Plan { nodes: 60, slow: 0.5, churn: 0.2, skewed, fault, ..Plan::default() };
            let mut world = World::new(plan, seed());
            let error = world.run(minutes(40)).expect_err("a checker speaks");
            assert!(error.contains(says), "{fault:?}: {error}");
        }
    }
}
