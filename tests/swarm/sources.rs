//! Whom a block comes from: peers first, neighbours before others, the registry
//! last.

use std::time::{Duration, Instant};

use peersync::fetch::estimate::TAU_DEFAULT;
use peersync::types::Digest;

use crate::node::{Index, LONG, Make, Node, PATIENCE, connect, layer};
use crate::registry::Registry;

/// One node has everything, a neighbour fetches it.
async fn from_a_neighbour(stopped: bool) {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(12, 1);
    registry.put(blob.clone());
    let mut first = Node::neighbour(1, &registry);
    let index = first.build(&registry, &blob, diff_id).await;
    let mut second = Node::neighbour(2, &registry);
    second.know(&index).await;
    connect(&[&first, &second]).await;
    if stopped {
        registry.stop();
    }
    let before = registry.sent();
    let sources = second.complete().await.expect("all of it");
    assert_eq!(registry.sent(), before, "the registry was not needed");
    assert_eq!(sources.lan, second.content(), "{sources:?}");
    assert_eq!((sources.registry, sources.remote), (0, 0), "{sources:?}");
    assert_eq!(second.counters.content_lan.get(), second.content());
    let peers = second.engine.peers();
    assert_eq!(peers.iter().map(|peer| peer.received).sum::<u64>(), second.content());
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_from_the_neighbour_that_has_it() {
    from_a_neighbour(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_from_the_neighbour_with_the_registry_stopped() {
    from_a_neighbour(true).await;
}

/// A node that knows nothing gets the index, and then the content, from a peer.
#[tokio::test(flavor = "multi_thread")]
async fn index_and_content_come_from_a_neighbour_with_the_registry_stopped() {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(12, 7);
    registry.put(blob.clone());
    let mut first = Node::neighbour(1, &registry);
    let made = first.build(&registry, &blob, diff_id).await;
    let mut fresh = Node::neighbour(2, &registry);
    assert!(
        fresh.engine.index_from_peers(&made.blob, &|_| Ok(())).await.is_none(),
        "nobody is there"
    );
    connect(&[&first, &fresh]).await;
    registry.stop();
    let (root, parts) =
        fresh.engine.index_from_peers(&made.blob, &|_| Ok(())).await.expect("an index");
    assert_eq!(root, made.root);
    fresh.know(&Index { root, parts, ..made }).await;
    let sources = fresh.complete().await.expect("all of it");
    assert_eq!(sources.lan, fresh.content(), "{sources:?}");
    let other = Digest::of(b"a layer that nobody has");
    assert!(fresh.engine.index_from_peers(&other, &|_| Ok(())).await.is_none());
}

/// Two LANs: what one has the other takes from there once, not from the registry.
async fn across(stopped: bool) {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(12, 2);
    registry.put(blob.clone());
    let mut far = Node::new(Make { n: 1, lan: 1, server: None }, &registry);
    let index = far.build(&registry, &blob, diff_id).await;
    let mut near = Node::new(Make { n: 2, lan: 2, server: None }, &registry);
    near.know(&index).await;
    let mut nearest = Node::new(Make { n: 3, lan: 2, server: None }, &registry);
    nearest.know(&index).await;
    connect(&[&far, &near, &nearest]).await;
    if stopped {
        registry.stop();
    }
    let before = registry.sent();
    let sources = near.complete().await.expect("all of it");
    assert_eq!(sources.remote, near.content(), "{sources:?}");
    let sources = nearest.complete().await.expect("all of it");
    assert_eq!(sources.lan, near.content(), "no byte crosses twice: {sources:?}");
    assert_eq!(registry.sent(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_lan_is_asked_before_the_registry_and_each_byte_crosses_once() {
    across(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_lan_is_asked_and_each_byte_crosses_once_with_the_registry_stopped() {
    across(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_peers_the_registry_gives_everything() {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(12, 3);
    registry.put(blob.clone());
    let mut builder = Node::neighbour(1, &registry);
    let index = builder.build(&registry, &blob, diff_id).await;
    let mut alone = Node::neighbour(2, &registry);
    alone.know(&index).await;
    let before = registry.sent();
    let sources = alone.complete().await.expect("all of it");
    assert_eq!(sources.registry, alone.content(), "{sources:?}");
    let sent = registry.sent() - before;
    assert!(sent <= index.blob_size * 21 / 20, "{sent} of {}", index.blob_size);
}

/// How long the first read of a layer takes: the quickest of six, each with a node of
/// its own that `make` makes.
async fn first_read(make: fn(u8, &Registry) -> Node) -> Duration {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(2, 8);
    registry.put(blob.clone());
    let index = Node::apart(1, &registry).build(&registry, &blob, diff_id).await;
    let mut quickest = LONG;
    for n in 2..8 {
        let mut node = make(n, &registry);
        node.know(&index).await;
        let object = node.index.as_ref().and_then(|index| index.object(0)).expect("an object");
        let start = Instant::now();
        let read = node.engine.fetch(object, vec![0], PATIENCE).await.expect("a block");
        assert_eq!(read.len(), 1);
        quickest = quickest.min(start.elapsed());
    }
    quickest
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_can_answer_nobody_is_awaited() {
    for make in [Node::apart as fn(u8, &Registry) -> Node, Node::neighbour] {
        let took = first_read(make).await;
        assert!(took < TAU_DEFAULT, "{took:?}");
    }
}
