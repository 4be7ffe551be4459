//! Mirrors that give each other what they have.

use std::path::PathBuf;

use crate::harness::peersync::Peersync;
use crate::harness::{needs_mounts, wait_until};
use crate::http::get;
use crate::node::{Node, SOON, World, blob};

/// A key for a swarm.
fn key(world: &World) -> PathBuf {
    let key = world.path("swarm.key");
    Peersync::new().run(&["swarm-key".as_ref(), "new".as_ref(), key.as_os_str()]);
    key
}

fn member(world: &World, key: &std::path::Path, peers: &[&Node]) -> Node {
    let peers: Vec<String> = peers.iter().map(|node| node.listen.to_string()).collect();
    let swarm = format!("[swarm]\nlisten = 'LISTEN'\nkey_file = {key:?}\npeers = {peers:?}\n");
    Node::with(&world.upstream(), "", &swarm)
}

#[test]
fn a_fresh_mirror_serves_from_its_peer_with_the_registry_gone() {
    needs_mounts!();
    let mut world = World::new(5 << 20);
    let key = key(&world);
    let holder = member(&world, &key, &[]);
    let image = "/v2/test/image/manifests/v1";
    assert_eq!(get(holder.mirror, image, &[]).status(), 200);
    let text = crate::harness::layout::read_manifest(&world.layout.dir, "v1");
    let config = text["config"]["digest"].as_str().expect("digest").to_owned();
    let mut blobs = world.layers.clone();
    blobs.push(config);
    for digest in &blobs {
        assert_eq!(get(holder.mirror, &blob(digest), &[]).status(), 200);
    }
    world.registry = None;

    let fresh = member(&world, &key, &[&holder]);
    let tagged = get(fresh.mirror, image, &[]);
    assert_eq!(tagged.status(), 200, "{tagged:?}");
    assert!(tagged.head.header("warning").starts_with("110 "));
    assert_eq!(tagged.head.header("docker-content-digest"), world.manifest);
    for digest in &blobs {
        let reply = get(fresh.mirror, &blob(digest), &[]);
        assert!(reply.status() == 200 && reply.body == world.blob(digest), "{digest}");
    }
    assert_eq!(fresh.counter("bytes_registry"), 0);
    assert!(fresh.counter("content_lan") >= 5 << 20);
    // Parts of it, too, and what nobody has is missed and no more.
    let part = get(fresh.mirror, &blob(&blobs[1]), &[("Range", "bytes=1000000-1000999")]);
    assert_eq!((part.status(), part.body.len()), (206, 1000));
    let none = crate::harness::layout::digest(b"nobody has this");
    assert_eq!(get(fresh.mirror, &blob(&none), &[]).status(), 503);
}

#[test]
fn what_a_neighbour_has_does_not_cross_the_line() {
    needs_mounts!();
    let world = World::new(5 << 20);
    let key = key(&world);
    let holder = member(&world, &key, &[]);
    let image = "/v2/test/image/manifests/v1";
    get(holder.mirror, image, &[]);
    let layer = &world.layers[1];
    assert!(get(holder.mirror, &blob(layer), &[]).body == world.blob(layer));
    let fresh = member(&world, &key, &[&holder]);
    wait_until("the nodes know each other", SOON, || {
        let text = fresh.peersync.run(&["--json", "peers"]);
        let peers: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        peers["peers"].as_array().is_some_and(|peers| !peers.is_empty())
    });
    let before = world.line.down();
    assert_eq!(get(fresh.mirror, image, &[]).status(), 200);
    assert!(get(fresh.mirror, &blob(layer), &[]).body == world.blob(layer));
    let crossed = world.line.down() - before;
    assert!(crossed < 4_000, "the tag is asked for, and no more: {crossed}");
    assert_eq!(fresh.counter("bytes_registry"), 0);
}
