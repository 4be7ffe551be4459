//! Many clients at once, clients that go away, and clients that are slow.

use std::thread;
use std::time::{Duration, Instant};

use crate::harness::layout::{Compression, digest, read_manifest};
use crate::harness::line::{Conditions, Line};
use crate::harness::{needs_mounts, wait_until};
use crate::http::{Connection, get};
use crate::node::{Node, SOON, World, blob, tar};

#[test]
fn many_clients_share_one_fetch_and_memory_stays_small() {
    needs_mounts!();
    let mut world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    for (round, clients) in [1, 20, 100].into_iter().enumerate() {
        let tag = format!("t{round}");
        let large = tar(&tag, 24 << 20);
        let registry = world.registry.as_ref().expect("there");
        world.layout.image(&tag, &[large], Compression::Plain);
        registry.push(&world.layout.dir, &tag, &format!("test/image:{tag}"));
        let layer = read_manifest(&world.layout.dir, &tag)["layers"][0]["digest"].clone();
        let layer = layer.as_str().expect("digest").to_owned();
        let size = world.blob(&layer).len() as u64;
        get(node.mirror, &format!("/v2/test/image/manifests/{tag}"), &[]);
        let before = world.line.down();
        let (mirror, target) = (node.mirror, blob(&layer));
        thread::scope(|scope| {
            for _ in 0..clients {
                let target = &target;
                let expected = &layer;
                scope.spawn(move || {
                    let reply = get(mirror, target, &[]);
                    assert_eq!(reply.status(), 200);
                    assert_eq!(&digest(&reply.body), expected);
                });
            }
        });
        let crossed = world.line.down() - before;
        assert!(crossed < size + size / 50, "{clients} clients: {crossed} for {size} bytes");
    }
    // Of the process, its largest so far: the shared pages of files left out.
    let peak = node.peak();
    assert!(peak < 150 << 10, "{peak} KiB at most");
}

#[test]
fn who_goes_away_cancels_and_who_comes_again_goes_on() {
    needs_mounts!();
    let world = World::new(16 << 20);
    let registry = world.registry.as_ref().expect("there");
    let slow = Conditions { rate: Some(8 << 20), ..Conditions::default() };
    let line = Line::shaped(registry.address, slow);
    let node = Node::start(&line.address.to_string());
    let layer = &world.layers[1];
    let bytes = world.blob(layer);
    get(node.mirror, "/v2/test/image/manifests/v1", &[]);
    let before = line.down();
    // Two want it; one goes away, and the other still gets it; both go.
    let mut first = Connection::open(node.mirror);
    let mut second = Connection::open(node.mirror);
    assert_eq!(first.ask("GET", &blob(layer), &[]).status, 200);
    assert_eq!(second.ask("GET", &blob(layer), &[]).status, 200);
    assert!(first.read(1 << 20) == bytes[..1 << 20]);
    drop(first);
    assert!(second.read(4 << 20) == bytes[..4 << 20]);
    drop(second);
    // The line falls silent long before the end.
    let mut last = line.down();
    wait_until("nothing comes any more", SOON, || {
        thread::sleep(Duration::from_millis(300));
        let now = line.down();
        std::mem::replace(&mut last, now) == now
    });
    let crossed = last - before;
    assert!(crossed < bytes.len() as u64 * 3 / 4, "{crossed} of {}", bytes.len());
    // Who comes again gets the rest, and no more crosses the line than that.
    assert!(get(node.mirror, &blob(layer), &[]).body == bytes);
    let all = line.down() - before;
    assert!(all < bytes.len() as u64 + (2 << 20), "{all} of {}", bytes.len());
}

#[test]
fn a_first_byte_does_not_wait_for_the_last_and_the_slow_hold_nobody_up() {
    needs_mounts!();
    let world = World::new(16 << 20);
    let registry = world.registry.as_ref().expect("there");
    let slow = Conditions { rate: Some(4 << 20), ..Conditions::default() };
    let line = Line::shaped(registry.address, slow);
    let node = Node::start(&line.address.to_string());
    let layer = &world.layers[1];
    get(node.mirror, "/v2/test/image/manifests/v1", &[]);
    let begun = Instant::now();
    let mut idle = Connection::open(node.mirror);
    idle.ask("GET", &blob(layer), &[]);
    assert_eq!(idle.read(1).len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    // This one reads no further, and others get all of it.
    assert!(get(node.mirror, &blob(layer), &[]).body == world.blob(layer));
    // When it reads on, the rest is there for it.
    let rest = &world.blob(layer)[1..];
    assert!(idle.read(rest.len()) == rest);
}
