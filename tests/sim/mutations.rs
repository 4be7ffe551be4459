//! The checkers find faults: each of these puts one into the wiring.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use peersync::fetch::schedule::Class;

use crate::world::{Layer, MIB, MS, Mutation, RegistryState, World};

fn caught(world: &mut World, limit: Duration) -> String {
    let result = catch_unwind(AssertUnwindSafe(|| world.run(limit)));
    let panic = result.expect_err("a checker should have objected");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn swapped_priorities_are_found() {
    let mut world = World::new(&[1, 1], Layer::of(32 * MIB), 31);
    world.mutation = Mutation::SwapPriority;
    world.give_all(1);
    world.start();
    world.pull(0, Class::Background);
    world.run_for(MS * 300);
    world.read(0, [120], 0, Duration::ZERO);
    let why = caught(&mut world, Duration::from_secs(30));
    assert!(why.contains("waits behind") && why.contains("seed 31"), "{why}");
}

#[test]
fn asking_one_peer_twice_is_found() {
    let mut world = World::new(&[2], Layer::of(16 * MIB), 32);
    world.mutation = Mutation::AskTwice;
    world.give_all(1);
    world.start();
    let started = catch_unwind(AssertUnwindSafe(|| world.pull(0, Class::Completion)));
    let why = match started {
        Ok(()) => caught(&mut world, Duration::from_secs(30)),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    };
    assert!(why.contains("asked twice"), "{why}");
}

#[test]
fn a_want_that_never_ends_is_found() {
    let mut world = World::new(&[2], Layer::of(16 * MIB), 33);
    world.mutation = Mutation::DropFailures;
    world.registry = RegistryState::NotFound;
    world.start();
    world.pull(0, Class::Completion);
    let why = caught(&mut world, Duration::from_secs(20));
    assert!(why.contains("not done") || why.contains("nothing left"), "{why}");
}

#[test]
fn a_lan_that_is_not_heeded_is_found() {
    let mut world = World::new(&[2, 1], Layer::of(64 * MIB), 34);
    world.net.up[1].rate = 5e6;
    world.mutation = Mutation::NoLan;
    world.give_all(1);
    world.give_all(2);
    world.start();
    let started = catch_unwind(AssertUnwindSafe(|| world.pull(0, Class::Completion)));
    let why = match started {
        Ok(()) => caught(&mut world, Duration::from_secs(30)),
        Err(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
    };
    assert!(why.contains("across the boundary"), "{why}");
}

#[test]
fn neighbours_that_do_not_hear_each_other_fetch_twice() {
    let mut world = World::new(&[3], Layer::of(32 * MIB), 35);
    world.mutation = Mutation::DeafNeighbours;
    world.start();
    for node in 0..3 {
        world.pull(node, Class::Completion);
    }
    world.run(Duration::from_secs(60));
    let share = world.net.lan_in[0].bytes as f64 / world.layer.size() as f64;
    assert!(share > 1.05, "{share}: nothing to coordinate, so the other test proves nothing");
}
