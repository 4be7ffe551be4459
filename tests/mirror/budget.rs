//! A mirror whose store is too small for all that is asked of it.

use crate::harness::layout::digest;
use crate::harness::{needs_mounts, wait_until};
use crate::http::get;
use crate::node::{Node, SOON, World, noise};

const SIZE: usize = 4 << 20;

#[test]
fn what_clients_used_last_stays_and_what_went_comes_again() {
    needs_mounts!();
    let mut world = World::new(1);
    let contents = ["a", "b", "c"].map(|name| (name, noise(name, SIZE)));
    for (name, content) in &contents {
        world.layout.artifact(name, &[("model.bin", content)]);
        let registry = world.registry.as_ref().expect("there");
        registry.push(&world.layout.dir, name, &format!("test/model:{name}"));
    }
    let mut node = Node::start(&world.upstream());
    node.reconfigure("[store]\n", "[store]\nmax_size = '10MiB'\n");
    let fetch = |index: usize| {
        let (name, content) = &contents[index];
        let before = world.line.down();
        assert_eq!(
            get(node.mirror, &format!("/v2/test/model/manifests/{name}"), &[]).status(),
            200
        );
        let target = format!("/v2/test/model/blobs/{}", digest(content));
        assert!(get(node.mirror, &target, &[]).body == *content);
        world.line.down() - before
    };
    // Two are here, and a client has had the first of them.
    for name in ["a", "b"] {
        node.peersync.run(&["pull", &format!("{}/test/model:{name}", world.upstream())]);
    }
    assert!(fetch(0) < 100_000, "it is here");
    // For the third there is no room.
    assert!(fetch(2) >= SIZE as u64);
    wait_until("something goes", SOON, || node.counter("evicted_pressure") >= SIZE as u64);
    assert!(fetch(0) < 100_000, "what was used stays");
    assert!(fetch(1) >= SIZE as u64, "what nobody has asked for went, and comes again");
}
