//! What transfers shall look like when everybody is well behaved. Every test
//! says where the bytes may come from.

use std::time::Duration;

use peersync::fetch::schedule::{Class, Failure, Settings};

use crate::world::{Layer, MIB, MS, Manner, RegistryState, World};

pub const MINUTE: Duration = Duration::from_secs(60);

/// How long the line into a LAN takes for so many bytes.
fn line(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / 12.5e6)
}

fn assert_has_all(world: &World, node: usize) {
    assert_eq!(world.nodes[node].has.len() as u32, world.layer.count(), "node {node}");
}

#[test]
fn one_node_pulls_from_the_registry() {
    let mut world = World::new(&[1], Layer::of(32 * MIB), 1);
    world.start();
    world.pull(0, Class::Completion);
    world.run(MINUTE);
    assert_has_all(&world, 0);
    let size = world.layer.size();
    assert!(world.now < line(size).mul_f64(1.1), "{:?}", world.now);
    assert_eq!(world.registry_bytes, size);
}

#[test]
fn a_stream_without_entries_is_read_once_from_its_start() {
    let mut layer = Layer::of(16 * MIB);
    layer.whole = true;
    layer.span = layer.size();
    let mut world = World::new(&[2], layer, 1);
    world.start();
    world.pull(0, Class::Completion);
    world.read(1, [60, 3], 0, Duration::ZERO);
    world.run(MINUTE);
    assert_has_all(&world, 0);
    assert_eq!(world.registry_bytes, world.layer.size());
}

#[test]
fn a_neighbour_is_asked_and_nothing_crosses_the_boundary() {
    for registry in [RegistryState::Up, RegistryState::Down] {
        let mut world = World::new(&[2, 1], Layer::of(32 * MIB), 2);
        world.registry = registry;
        world.give_all(1);
        world.give_all(2);
        world.start();
        world.pull(0, Class::Completion);
        world.run(MINUTE);
        assert_has_all(&world, 0);
        assert_eq!(world.net.lan_in[0].bytes, 0);
        let size = world.layer.size() as f64;
        assert!(world.now.as_secs_f64() < 1.5 * size / 125e6, "{:?}", world.now);
    }
}

#[test]
fn a_peer_elsewhere_is_asked_before_the_registry() {
    for registry in [RegistryState::Up, RegistryState::Down] {
        let mut world = World::new(&[1, 1], Layer::of(16 * MIB), 2);
        world.registry = registry;
        world.give_all(1);
        world.start();
        world.pull(0, Class::Completion);
        world.run(MINUTE);
        assert_has_all(&world, 0);
        assert_eq!(world.registry_bytes, 0);
        let size = world.layer.size();
        assert!(world.now < line(size).mul_f64(1.25), "{:?}", world.now);
    }
}

#[test]
fn two_lans_of_three_pull_at_once_and_each_byte_enters_each_lan_once() {
    for seed in 0..3 {
        let mut world = World::new(&[3, 3], Layer::of(64 * MIB), seed);
        world.start();
        for node in 0..6 {
            world.pull(node, Class::Completion);
        }
        world.run(MINUTE);
        let size = world.layer.size();
        for lan in 0..2 {
            let share = world.net.lan_in[lan].bytes as f64 / size as f64;
            assert!(share <= 1.05, "seed {seed}, LAN {lan}: {share}");
        }
        assert!(world.now < line(size).mul_f64(1.2), "seed {seed}: {:?}", world.now);
    }
}

#[test]
fn six_readers_side_by_side_share_what_comes_in() {
    for seed in 0..3 {
        let mut world = World::new(&[3, 3], Layer::of(64 * MIB), seed);
        world.start();
        let all = world.layer.count();
        for node in 0..6 {
            world.read(node, 0..all, 32, Duration::ZERO);
        }
        world.run(MINUTE);
        let size = world.layer.size();
        for lan in 0..2 {
            let share = world.net.lan_in[lan].bytes as f64 / size as f64;
            assert!(share <= 1.12, "seed {seed}, LAN {lan}: {share}");
        }
        assert!(world.now < line(size).mul_f64(1.2), "seed {seed}: {:?}", world.now);
    }
}

#[test]
fn with_the_registry_gone_one_lan_feeds_the_other_and_each_byte_crosses_once() {
    let mut world = World::new(&[3, 3], Layer::of(64 * MIB), 5);
    world.registry = RegistryState::Down;
    for node in 0..3 {
        world.give_all(node);
    }
    world.start();
    for node in 3..6 {
        world.pull(node, Class::Completion);
    }
    world.run(MINUTE);
    let size = world.layer.size();
    let share = world.net.lan_in[1].bytes as f64 / size as f64;
    assert!(share <= 1.05, "{share}");
    assert!(world.now < line(size).mul_f64(1.2), "{:?}", world.now);
}

#[test]
fn one_after_another_only_the_first_crosses_the_boundary() {
    let mut world = World::new(&[3], Layer::of(16 * MIB), 6);
    world.start();
    for node in 0..3 {
        world.pull(node, Class::Completion);
        world.run(MINUTE);
        assert_has_all(&world, node);
    }
    assert_eq!(world.net.lan_in[0].bytes, world.layer.size());
}

#[test]
fn a_newcomer_joins_what_is_under_way() {
    let mut world = World::new(&[3], Layer::of(32 * MIB), 7);
    world.start();
    world.pull(0, Class::Completion);
    world.run_for(MS * 700);
    world.pull(1, Class::Completion);
    world.run_for(MS * 700);
    let all = world.layer.count();
    world.read(2, 0..all, 16, Duration::ZERO);
    world.run(MINUTE);
    let share = world.net.lan_in[0].bytes as f64 / world.layer.size() as f64;
    assert!(share <= 1.05, "{share}");
}

#[test]
fn wants_without_any_source_end_in_an_error() {
    let mut world = World::new(&[2], Layer::of(MIB * 16), 8);
    world.registry = RegistryState::NotFound;
    world.start();
    world.pull(0, Class::Completion);
    world.want(0, &[5], Class::Urgent);
    world.run(Duration::from_secs(5));
    assert_eq!(world.checks.failures.len() as u32, world.layer.count());
    assert!(world.checks.failures.iter().all(|(_, _, why)| *why == Failure::Refused));
}

#[test]
fn a_registry_that_stays_down_is_no_progress() {
    let settings = Settings { no_progress: Duration::from_secs(5), ..Settings::default() };
    let mut world = World::with(&[1], Layer::of(MIB * 16), 9, &settings);
    world.registry = RegistryState::Down;
    world.start();
    world.read(0, [7], 0, Duration::ZERO);
    world.run(Duration::from_secs(8));
    assert_eq!(world.checks.failures.len(), 1);
    assert!(matches!(world.checks.failures[0].2, Failure::NoProgress(_)));
}

#[test]
fn a_registry_that_comes_back_is_asked_again() {
    let mut world = World::new(&[1], Layer::of(MIB * 16), 10);
    world.registry = RegistryState::Down;
    world.start();
    world.registry_at(Duration::from_secs(20), RegistryState::Up);
    world.pull(0, Class::Completion);
    world.run(Duration::from_secs(40));
    assert_has_all(&world, 0);
}

#[test]
fn what_is_not_wanted_any_more_is_not_fetched() {
    let mut world = World::new(&[1, 1], Layer::of(64 * MIB), 11);
    world.give_all(1);
    world.start();
    let blocks: Vec<u32> = (0..world.layer.count()).collect();
    let interest = world.want(0, &blocks, Class::Sequential);
    world.run_for(MS * 500);
    world.withdraw(0, interest);
    let before = world.net.lan_in[0].bytes;
    world.run_for(MS * 2000);
    let after = world.net.lan_in[0].bytes - before;
    assert!(after < MIB, "{after} bytes after a seek");
    assert!(world.nodes[0].scheduler.is_empty());
    // The reader goes on elsewhere, at once.
    world.read(0, [200], 0, Duration::ZERO);
    world.run(Duration::from_secs(1));
}

#[test]
fn a_raised_block_overtakes_what_was_wanted_before() {
    let mut world = World::new(&[1, 1], Layer::of(64 * MIB), 12);
    world.give_all(1);
    world.start();
    world.pull(0, Class::Background);
    world.run_for(MS * 1000);
    world.read(0, [250], 0, Duration::ZERO);
    world.run_for(MS * 500);
    let times = &world.nodes[0].script.as_ref().expect("reader").times;
    assert_eq!(times.len(), 1, "read in less than half a second");
}

/// 4 KiB reads (one block each) while a bulk prefetch saturates the line.
#[test]
fn urgent_reads_are_not_slowed_down_much_by_bulk() {
    let read = |bulk: bool| {
        let mut world = World::new(&[1, 1], Layer::of(128 * MIB), 13);
        world.give_all(1);
        world.start();
        // Warm: the speed of the line is known.
        world.want(0, &(0..40).collect::<Vec<_>>(), Class::Completion);
        world.run(MINUTE);
        let end = world.layer.count();
        if bulk {
            world.pull(0, Class::Background);
            world.run_for(MS * 300);
        }
        let reads = (0..60u32).map(|n| end - 1 - n * 3);
        world.read(0, reads, 0, MS * 37);
        while world.nodes[0].script.as_ref().is_some_and(|s| s.times.len() < 60) {
            assert!(world.step());
        }
        let mut times = world.nodes[0].script.as_ref().expect("reader").times.clone();
        times.sort_unstable();
        times[times.len() * 99 / 100]
    };
    let (idle, loaded) = (read(false), read(true));
    assert!(loaded < idle * 3, "p99 {loaded:?} under load, {idle:?} idle");
}

#[test]
fn several_peers_are_used_together() {
    let mut world = World::new(&[4], Layer::of(64 * MIB), 14);
    world.registry = RegistryState::Down;
    for node in 1..4 {
        world.give_all(node);
        // Their lines up are slower than the reader's line down.
        world.net.up[node].rate = 30e6;
    }
    world.start();
    world.pull(0, Class::Completion);
    world.run(MINUTE);
    let ideal = world.layer.size() as f64 / 90e6;
    assert!(world.now.as_secs_f64() < 1.35 * ideal, "{:?} against {ideal} s", world.now);
    for node in 1..4 {
        assert!(world.net.up[node].bytes > world.layer.size() / 5);
    }
}

#[test]
fn a_busy_neighbour_is_waited_for() {
    let mut world = World::new(&[2], Layer::of(16 * MIB), 15);
    world.give_all(1);
    world.nodes[1].manner = Manner::Busy;
    world.start();
    world.pull(0, Class::Completion);
    world.run(MINUTE);
    assert_eq!(world.registry_bytes, 0);
}
