//! Peers that die, stall, lie and deny; lines that lose; everything at once.

use std::time::Duration;

use peersync::fetch::schedule::{Class, Settings};

use crate::basics::MINUTE;
use crate::world::{Layer, MIB, MS, Manner, RegistryState, World};

#[test]
fn when_a_neighbour_dies_another_takes_over_its_share() {
    for silent in [false, true] {
        let mut world = World::new(&[3], Layer::of(64 * MIB), 21);
        world.start();
        for node in 0..3 {
            world.pull(node, Class::Completion);
        }
        world.die_at(MS * 1500, 1, silent);
        world.run(MINUTE);
        for node in [0, 2] {
            assert_eq!(world.nodes[node].has.len() as u32, world.layer.count());
        }
    }
}

#[test]
fn any_node_may_die_at_any_time_and_the_others_complete() {
    for seed in 0..12 {
        let mut world = World::new(&[3, 3], Layer::of(16 * MIB), seed);
        world.start();
        for node in 0..6 {
            world.pull(node, Class::Completion);
        }
        let (victim, at) = (world.rng.usize(..6), MS * world.rng.u32(..1800));
        let silent = world.rng.bool();
        world.die_at(at, victim, silent);
        world.run(MINUTE * 2);
    }
}

#[test]
fn with_the_registry_gone_what_is_left_in_the_swarm_is_enough() {
    let mut world = World::new(&[3, 3], Layer::of(16 * MIB), 22);
    world.give_all(0);
    world.give_all(4);
    world.registry = RegistryState::Down;
    world.start();
    for node in 0..6 {
        world.pull(node, Class::Completion);
    }
    world.die_at(MS * 100, 0, true);
    world.run(MINUTE);
    for node in 1..6 {
        assert_eq!(world.nodes[node].has.len() as u32, world.layer.count());
    }
}

#[test]
fn a_liar_is_penalised_at_once_and_banned_at_the_second_wrong_block() {
    let mut world = World::new(&[2], Layer::of(64 * MIB), 23);
    world.give_all(1);
    world.nodes[1].manner = Manner::Lies;
    world.start();
    world.pull(0, Class::Completion);
    world.run(MINUTE);
    assert_eq!(world.nodes[0].has.len() as u32, world.layer.count());
    assert_eq!(world.nodes[0].scheduler.totals().lan, 0);
    assert_eq!(world.wrong, 2);
    assert_eq!(world.bans, 1);
}

/// A reader gets its blocks in spite of a neighbour that accepts and never sends,
/// or sends one byte a second.
#[test]
fn a_neighbour_that_stalls_costs_a_reader_little() {
    for manner in [Manner::Stalls, Manner::Drips] {
        let mut world = World::new(&[3], Layer::of(16 * MIB), 24);
        world.give_all(1);
        world.give_all(2);
        world.nodes[1].manner = manner;
        world.registry = RegistryState::Down;
        world.start();
        let all = world.layer.count();
        world.read(0, 0..all, 8, Duration::ZERO);
        world.run(MINUTE);
        let times = &world.nodes[0].script.as_ref().expect("reader").times;
        let worst = times.iter().max().expect("reads");
        assert!(*worst < MS * 1500, "{manner:?}: {worst:?}");
        assert!(world.now < Duration::from_secs(12), "{manner:?}: {:?}", world.now);
    }
}

#[test]
fn a_stalling_peer_is_closed_and_its_pieces_come_from_elsewhere() {
    for manner in [Manner::Stalls, Manner::Drips, Manner::Denies] {
        let mut world = World::new(&[1, 1], Layer::of(16 * MIB), 25);
        world.give_all(1);
        world.nodes[1].manner = manner;
        world.start();
        world.pull(0, Class::Completion);
        world.run(MINUTE);
        assert_eq!(world.nodes[0].has.len() as u32, world.layer.count(), "{manner:?}");
    }
}

#[test]
fn a_reader_crosses_the_boundary_in_time_when_its_neighbour_hangs() {
    // The only neighbour that has it hangs; the deadline is two seconds.
    let mut world = World::new(&[2, 1], Layer::of(16 * MIB), 26);
    world.give_all(1);
    world.give_all(2);
    world.nodes[1].manner = Manner::Stalls;
    world.start();
    world.read(0, [9], 0, Duration::ZERO);
    world.run(MINUTE);
    let times = &world.nodes[0].script.as_ref().expect("reader").times;
    assert!(times[0] < MS * 2000, "{times:?}");
}

#[test]
fn hedges_across_the_boundary_stay_within_two_percent() {
    let settings = Settings::default();
    let credit = settings.hedge_credit;
    let mut world = World::with(&[1, 4], Layer::of(64 * MIB), 27, &settings);
    world.registry = RegistryState::Down;
    for node in 1..5 {
        world.give_all(node);
    }
    world.net.loss = 0.05;
    world.start();
    let all = world.layer.count();
    world.read(0, 0..all, 4, Duration::ZERO);
    world.run(MINUTE);
    let totals = world.nodes[0].scheduler.totals();
    assert!(totals.hedged > 0, "there was reason to hedge");
    assert!(totals.hedged <= totals.remote / 50 + credit, "{totals:?}");
}

/// Everything at once, from a seed: sizes, readers, pulls, seeks, manners,
/// deaths, loss, clocks, a registry that comes and goes. Every want ends; where an
/// honest source is left, in data.
#[test]
fn chaos() {
    let seeds: Vec<u64> = match std::env::var("SIM_SEED").ok().and_then(|s| s.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1000..1060).collect(),
    };
    for seed in seeds {
        one_chaos(seed);
    }
}

pub fn one_chaos(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let lans: Vec<usize> = (0..rng.usize(1..4)).map(|_| rng.usize(1..4)).collect();
    let mut layer = Layer::of(16 * MIB);
    layer.run_spans = rng.u64(1..8);
    layer.whole = rng.u8(..10) == 0;
    let settings = Settings { no_progress: Duration::from_secs(15), ..Settings::default() };
    let mut world = World::with(&lans, layer, seed, &settings);
    let nodes = world.nodes.len();
    if rng.bool() {
        world.net.loss = rng.f64() * 0.1;
    }
    let mut honest = false;
    for node in 1..nodes {
        if rng.u8(..3) == 0 {
            world.give_all(node);
        }
        world.nodes[node].manner = match rng.u8(..10) {
            0 => Manner::Stalls,
            1 => Manner::Drips,
            2 => Manner::Lies,
            3 => Manner::Denies,
            4 => Manner::Busy,
            _ => Manner::Honest,
        };
        let dies = rng.u8(..4) == 0;
        if dies {
            world.die_at(MS * rng.u32(..4000), node, rng.bool());
        }
        let has = !world.nodes[node].has.is_empty();
        honest |= has && !dies && world.nodes[node].manner == Manner::Honest;
    }
    let registry = rng.u8(..4);
    if registry == 0 {
        world.registry = RegistryState::NotFound;
    } else if registry == 1 {
        world.registry = RegistryState::Down;
    } else if rng.bool() {
        world.registry_at(MS * rng.u32(..1000), RegistryState::Down);
        world.registry_at(MS * rng.u32(1000..6000), RegistryState::Up);
    }
    if seed.is_multiple_of(2) {
        // No two clocks are alike, and some jump.
        world.skew();
        for node in 0..nodes {
            let (at, by) = (MS * rng.u32(..4000), MS * rng.u32(..5000));
            world.jump_at(at, node, by);
        }
    }
    world.start();
    let all = world.layer.count();
    for node in 0..nodes {
        match rng.u8(..4) {
            0 => {
                world.pull(node, Class::Completion);
            }
            1 => world.read(node, 0..all, rng.usize(..40), MS * rng.u32(..3)),
            2 => {
                let reads: Vec<u32> = (0..20).map(|_| rng.u32(..all)).collect();
                world.pull(node, Class::Background);
                world.read(node, reads, 0, MS * rng.u32(..50));
            }
            _ => {
                let blocks: Vec<u32> = (0..all).filter(|_| rng.bool()).collect();
                let interest = world.want(node, &blocks, Class::Sequential);
                world.run_for(MS * rng.u32(..400));
                world.withdraw(node, interest);
                world.read(node, [rng.u32(..all)], 3, Duration::ZERO);
            }
        }
    }
    world.run(MINUTE * 5);
    if honest || registry >= 2 {
        assert!(world.checks.failures.is_empty(), "seed {seed}: {:?}", world.checks.failures);
    }
}
