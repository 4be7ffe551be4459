//! Elections of trackers in a simulated swarm, with the shipped state machine.
//!
//! `cargo test --test election -- --nocapture` prints what elections cost; the
//! table stands in `docs/BENCHMARKS.md`. With `PEERSYNC_PLOT` set to a file, what
//! they cost is drawn there.

#[path = "../virtual/clock.rs"]
mod clock;
mod holders;
mod plot;
mod popular;
#[path = "../virtual/queue.rs"]
mod queue;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use holders::{Fault, Swarm};
use popular::Gossip;
use world::{MS, Mutation, S, World};

/// A new tracker is there so soon after the old one is gone.
const SOON: Duration = Duration::from_secs(5);

fn agreed(count: usize, seed: u64) -> World {
    let mut world = World::new(count, seed);
    world.run_until_agreed(S * 8);
    world
}

/// The live node with the highest score.
fn best(world: &World) -> usize {
    let alive = (0..world.nodes.len()).filter(|node| world.is_alive(*node));
    alive.max_by_key(|node| world.nodes[*node].score).expect("a node")
}

fn score_of_tracker(world: &World) -> u16 {
    let alive = (0..world.nodes.len()).find(|node| world.is_alive(*node)).expect("a node");
    world.nodes[world.tracker(alive).expect("a tracker")].score
}

#[test]
fn the_most_stable_node_becomes_tracker_and_stays() {
    for seed in 0..20 {
        for count in [1, 2, 10, 60] {
            let mut world = agreed(count, seed);
            let top = world.nodes[best(&world)].score;
            assert_eq!(score_of_tracker(&world), top, "seed {seed}, {count} nodes");
            let changes = world.changes;
            world.run_for(S * 30);
            assert_eq!(world.changes, changes, "seed {seed}: a quiet swarm stays as it is");
        }
    }
}

#[test]
fn a_dead_tracker_is_replaced_by_the_next_best() {
    for seed in 0..20 {
        for noticed in [true, false] {
            let mut world = agreed(80, seed);
            for _ in 0..3 {
                let tracker = world.tracker(best(&world)).expect("a tracker");
                world.kill(tracker, noticed);
                let took = world.run_until_agreed(SOON);
                assert!(took > S, "seed {seed}: {took:?} is too soon to have noticed");
                // Where its death has split the swarm, each part has its own best.
                for part in world.partitions() {
                    let tracker = world.tracker(*part.first().expect("a node")).expect("a tracker");
                    let top = part.iter().map(|node| world.nodes[*node].score).max();
                    assert_eq!(Some(world.nodes[tracker].score), top, "seed {seed}");
                }
            }
        }
    }
}

#[test]
fn partitions_have_a_tracker_each_and_merge_into_one() {
    for seed in 0..20 {
        let mut world = agreed(60, seed);
        let old = world.tracker(0).expect("a tracker");
        let part: BTreeSet<usize> = (0..30).collect();
        world.split(part.clone());
        world.run_for(S);
        world.run_until_agreed(SOON);
        let [one, other] = [0, 30].map(|node| world.tracker(node).expect("a tracker"));
        assert!(one != other && (one == old || other == old), "seed {seed}");
        world.heal();
        world.run_for(MS);
        let took = world.run_until_agreed(SOON);
        assert!(took <= S * 2, "seed {seed}: {took:?} to merge");
        let last = world.tracker(0).expect("a tracker");
        assert!(last == one || last == other);
        let loser = if last == one { other } else { one };
        assert_eq!(world.tracker(loser), Some(last), "seed {seed}: the lesser steps down");
    }
}

/// Nodes, links, messages of an election, seconds, messages of a beat.
fn cost(count: usize, seed: u64) -> (usize, u64, Duration, f64) {
    let mut world = agreed(count, seed);
    world.run_for(S * 10);
    let before = world.messages;
    world.run_for(S * 10);
    let beat = (world.messages - before) as f64 / 10.0 / count as f64;
    world.kill(best(&world), false);
    let before = world.messages;
    let took = world.run_until_agreed(SOON);
    (world.links(), world.messages - before, took, beat)
}

#[test]
fn messages_grow_with_nodes_and_not_with_their_square() {
    println!("| nodes | links | messages per node, election | time | per node and beat |");
    println!("|---|---|---|---|---|");
    let mut first = None;
    let mut points = Vec::new();
    for count in [10, 30, 100, 300, 1000] {
        let (links, messages, took, beat) = cost(count, 3);
        points.push((count, messages));
        let per_node = messages as f64 / count as f64;
        println!("| {count} | {links} | {per_node:.1} | {:.1} s | {beat:.2} |", took.as_secs_f64());
        // A hundred times the nodes cost each of them no more than three times as much.
        assert!(per_node < 3.0 * *first.get_or_insert(per_node), "{per_node} of {count} nodes");
        assert!(beat < 1.02, "{beat} messages a node and beat: no tree");
    }
    if let Some(file) = std::env::var_os("PEERSYNC_PLOT") {
        plot::write(file.as_ref(), &points);
    }
}

/// Clocks that show nothing when their node starts, run five in a hundred fast or
/// slow, and jump ahead; wall clocks that are a year apart, also from one life of a
/// node to the next.
#[test]
fn clocks_need_not_agree() {
    for seed in 0..20 {
        let mut world = World::skewed(80, seed);
        world.run_until_agreed(S * 8);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..6 {
            let tracker = world.tracker(best(&world)).expect("a tracker");
            world.kill(tracker, rng.bool());
            for _ in 0..4 {
                let node = rng.usize(0..80);
                world.jump(node, MS * rng.u32(100..20_000));
                world.run_for(MS * rng.u32(0..1000));
            }
            world.revive(tracker);
            world.run_for(S * 3);
            world.run_until_agreed(SOON);
            let (changes, now) = (world.changes, world.tracker(0));
            world.run_for(S * 10);
            assert_eq!((world.changes, world.tracker(0)), (changes, now), "seed {seed}: quiet");
        }
    }
}

/// The best node comes back after another one was elected, with a clock that may show
/// an earlier time than before, and is needed again.
fn comes_back(seed: u64, mutation: Mutation) {
    let mut world = World::skewed(60, seed);
    world.run_until_agreed(S * 8);
    world.mutate(mutation);
    let first = best(&world);
    world.kill(first, true);
    world.run_for(S);
    world.run_until_agreed(SOON);
    let second = world.tracker(best(&world)).expect("a tracker");
    world.revive(first);
    world.run_for(S * 3);
    world.kill(second, true);
    world.run_for(S);
    world.run_until_agreed(SOON);
    for part in world.partitions().into_iter().filter(|part| part.contains(&first)) {
        let tracker = world.tracker(*part.first().expect("a node"));
        assert_eq!(tracker, Some(first), "seed {seed}: no agreement on the best");
    }
}

#[test]
fn a_tracker_whose_clock_was_set_back_is_followed_again() {
    (0..20).for_each(|seed| comes_back(seed, Mutation::None));
    let why = caught(|| (0..20).for_each(|seed| comes_back(seed, Mutation::NoMemory)));
    assert!(why.contains("no agreement"), "{why}");
}

/// What a node is told in its first second is as old as it is.
#[test]
fn a_node_that_has_just_started_does_not_follow_the_dead_for_longer() {
    for seed in 0..20 {
        let mut world = World::skewed(60, seed);
        world.run_until_agreed(S * 8);
        let tracker = world.tracker(0).expect("a tracker");
        let other = (0..60).find(|node| *node != tracker).expect("another");
        world.kill(other, true);
        world.run_for(S);
        world.kill(tracker, false);
        world.run_for(MS * 1500);
        world.revive(other);
        world.run_for(S * 8);
    }
}

/// Claims of candidates over each line between LANs, in one election.
fn crossed(seed: u64, mutation: Mutation) -> f64 {
    let mut world = agreed(200, seed);
    world.mutate(mutation);
    world.run_for(S * 5);
    world.kill(world.tracker(0).expect("a tracker"), false);
    let before = world.crossed;
    world.run_until_agreed(SOON);
    (world.crossed - before) as f64 / world.far_links() as f64
}

#[test]
fn losers_do_not_flood_other_lans() {
    let mean = |mutation| (0..10).map(|seed| crossed(seed, mutation)).sum::<f64>() / 10.0;
    let [with, without] = [Mutation::None, Mutation::AllNear].map(mean);
    println!("claims over each line: {with:.1}; without a pause at the boundary: {without:.1}");
    assert!(with < 5.0 && with < 0.8 * without, "{with} against {without}");
}

#[test]
fn lost_messages_do_not_unseat_a_tracker() {
    for seed in 0..10 {
        let mut world = agreed(100, seed);
        world.loss = 0.02;
        let tracker = world.tracker(0);
        world.run_for(S * 60);
        world.loss = 0.0;
        world.run_until_agreed(SOON);
        assert_eq!(world.tracker(0), tracker, "seed {seed}");
    }
}

#[test]
fn look_ups_find_a_tracker_while_nodes_come_and_go() {
    let (mut asked, mut answered) = (0, 0);
    for seed in 0..2 {
        let mut world = agreed(200, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut gone = Vec::new();
        // Ten in a hundred leave each minute, and as many come back.
        for second in 0..180 {
            if second % 3 == 0 {
                // Now and then the tracker is among them.
                let one =
                    (0..200).find(|node| world.is_alive(*node)).and_then(|n| world.tracker(n));
                let node = one.filter(|_| second % 60 == 0).unwrap_or(rng.usize(0..200));
                if world.is_alive(node) {
                    world.kill(node, rng.bool());
                    gone.push(node);
                }
                if gone.len() > 10 {
                    world.revive(gone.remove(0));
                }
            }
            world.run_for(S);
            for node in (0..200).filter(|node| world.is_alive(*node)) {
                asked += 1;
                let tracker = world.tracker(node);
                answered += usize::from(tracker.is_some_and(|tracker| {
                    world.is_alive(tracker) && world.tracker(tracker) == Some(tracker)
                }));
            }
        }
        for node in gone {
            world.revive(node);
        }
        world.run_for(S * 2);
        world.run_until_agreed(SOON);
    }
    let share = f64::from(answered as u32) / f64::from(asked as u32);
    println!("{:.2} % of {asked} look-ups found a tracker in one round trip", 100.0 * share);
    // Without a tracker for the five seconds of an election, at worst.
    assert!(share > 1.0 - SOON.as_secs_f64() / 60.0, "{share}");
}

#[test]
fn a_liar_that_is_found_out_is_done_without() {
    for seed in 0..10 {
        let mut world = World::new(60, seed);
        let liar = 17;
        let told = peersync::swarm::elect::Score::told(u16::MAX);
        world.nodes[liar].elector.set_score(told);
        world.nodes[liar].score = 0;
        world.run_until_agreed(S * 8);
        assert_eq!(world.tracker(0), Some(liar), "it is believed as long as it does its work");
        world.distrust_by_all(liar);
        world.run_for(S * 6);
        let honest: BTreeSet<_> =
            (0..60).filter(|n| *n != liar).map(|n| world.tracker(n)).collect();
        // Without the liar as a bridge the others still reach each other.
        assert_eq!(honest.len(), 1, "seed {seed}: {honest:?}");
        assert!(!honest.contains(&Some(liar)) && !honest.contains(&None), "seed {seed}");
    }
}

/// Who was cut off may have been taken for a liar: it is not left out for ever.
#[test]
fn a_tracker_that_was_not_believed_is_in_time() {
    let mut world = World::new(20, 3);
    let wronged = 7;
    let best = peersync::swarm::elect::Score::told(u16::MAX);
    world.nodes[wronged].elector.set_score(best);
    world.nodes[wronged].score = u16::MAX;
    world.run_until_agreed(S * 8);
    world.distrust_by_all(wronged);
    world.run_for(S * 6);
    let others = |world: &World| -> BTreeSet<_> {
        (0..20).filter(|n| *n != wronged).map(|n| world.tracker(n)).collect()
    };
    assert!(!others(&world).contains(&Some(wronged)));
    world.run_for(peersync::swarm::elect::DISTRUST);
    assert_eq!(others(&world), BTreeSet::from([Some(wronged)]));
}

fn caught(what: impl FnOnce()) -> String {
    let panic = catch_unwind(AssertUnwindSafe(what)).expect_err("a checker should have objected");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn the_checkers_find_faults() {
    the_checkers_find_faults_with(World::new);
}

#[test]
fn the_checkers_find_faults_by_clocks_that_differ() {
    the_checkers_find_faults_with(World::skewed);
}

fn the_checkers_find_faults_with(world: fn(usize, u64) -> World) {
    let agreed = || {
        let mut world = world(60, 5);
        world.run_until_agreed(S * 8);
        world
    };
    let why = caught(|| {
        let mut world = world(60, 5);
        world.mutate(Mutation::SwapScores);
        world.run_until_agreed(S * 8);
        assert_eq!(score_of_tracker(&world), world.nodes[best(&world)].score, "not the best");
    });
    assert!(why.contains("not the best") || why.contains("no agreement"), "{why}");
    let why = caught(|| {
        let mut world = agreed();
        world.mutate(Mutation::RenewBeats);
        world.run_for(S * 10);
    });
    assert!(why.contains("was never said") || why.contains("an old beat"), "{why}");
}

#[test]
fn without_pruning_beats_cost_more() {
    let mut world = agreed(60, 5);
    world.mutate(Mutation::DropPrunes);
    world.kill(best(&world), false);
    world.run_for(S * 10);
    let before = world.messages;
    world.run_for(S * 10);
    let beat = (world.messages - before) as f64 / 10.0 / 60.0;
    assert!(beat > 1.02, "{beat}: pruning changes nothing, so the other test proves nothing");
}

/// Look-ups in a swarm of which a tenth is replaced each minute.
fn look_ups(count: usize, minutes: u32, seed: u64) {
    let mut swarm = Swarm::new(count, seed, Fault::None);
    swarm.run_for(S * 60 * minutes, 0.1);
    let outcome = &swarm.outcome;
    println!(
        "| {count} | {} | {:.1} % | {:?} | {:?} |",
        outcome.asked,
        100.0 * outcome.success(),
        outcome.percentile(50),
        outcome.percentile(95),
    );
    // The others ask their peers at hand: without a tracker there are those.
    assert!(outcome.success() > 0.85, "seed {seed}: {outcome:?}", outcome = outcome.success());
    assert!(outcome.percentile(50) <= MS * 40, "one round trip");
}

#[test]
fn what_a_live_node_holds_is_found_while_nodes_come_and_go() {
    println!("| nodes | look-ups | found | half within | 95 % within |");
    println!("|---|---|---|---|---|");
    look_ups(60, 4, 1);
    look_ups(200, 2, 2);
}

/// `tests/long swarm`
#[test]
#[ignore = "a thousand nodes and two minutes of their time"]
fn what_a_live_node_holds_is_found_among_many() {
    look_ups(1000, 2, 3);
}

#[test]
fn the_checkers_find_holdings_that_are_not_told() {
    let why = caught(|| {
        let mut swarm = Swarm::new(60, 4, Fault::NotAnew);
        for _ in 0..4 {
            let tracker = swarm.world.tracker(best(&swarm.world)).expect("a tracker");
            swarm.world.kill(tracker, true);
            swarm.run_for(S * 15, 0.3);
        }
    });
    assert!(why.contains("does not know"), "{why}");
}

#[test]
fn popularity_is_what_neighbours_hold_whatever_was_lost() {
    for seed in 0..10 {
        let mut gossip = Gossip::new(50, seed, popular::Fault::None);
        for loss in [0.0, 0.1, 0.5] {
            gossip.run(200, loss);
        }
    }
    let why = caught(|| Gossip::new(50, 1, popular::Fault::NoAgain).run(200, 0.3));
    assert!(why.contains("takes layer"), "{why}");
}
