//! What one transfer shall look like.

use std::time::Duration;

use peersync::fetch::schedule::Class;

use crate::world::{Layer, MIB, World};

const MINUTE: Duration = Duration::from_secs(60);

fn line(bytes: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / 12.5e6)
}

#[test]
fn one_node_pulls_from_the_registry() {
    let mut world = World::new(&[1], Layer::of(32 * MIB), 1);
    world.start();
    world.pull(0, Class::Completion);
    world.run(MINUTE);
    let size = world.layer.size();
    assert!(world.now < line(size).mul_f64(1.1), "{:?}", world.now);
    assert!(world.registry_bytes <= size + size / 50, "{}", world.registry_bytes);
}

#[test]
fn a_neighbour_is_asked_and_nothing_crosses_the_boundary() {
    let mut world = World::new(&[2, 1], Layer::of(32 * MIB), 2);
    world.give_all(1);
    world.give_all(2);
    world.start();
    world.pull(0, Class::Completion);
    world.run(MINUTE);
    assert_eq!(world.net.lan_in[0].bytes, 0);
    let size = world.layer.size() as f64;
    assert!(world.now.as_secs_f64() < 1.5 * size / 125e6, "{:?}", world.now);
}

#[test]
fn two_lans_of_three_pull_at_once_and_each_byte_enters_each_lan_once() {
    let mut world = World::new(&[3, 3], Layer::of(64 * MIB), 3);
    world.start();
    for node in 0..6 {
        world.pull(node, Class::Completion);
    }
    world.run(MINUTE);
    let size = world.layer.size();
    for lan in 0..2 {
        let share = world.net.lan_in[lan].bytes as f64 / size as f64;
        assert!(share <= 1.05, "LAN {lan}: {share}");
    }
    assert!(world.now < line(size).mul_f64(1.2), "{:?} against {:?}", world.now, line(size));
}
