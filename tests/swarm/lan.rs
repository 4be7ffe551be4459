//! Nodes of a LAN that want the same at once split it among them.

use crate::node::{Index, Node, connect, layer};
use crate::registry::Registry;

/// So slow that splitting counts: 24 MiB take six seconds.
const SLOW: u64 = 4 << 20;

async fn three(registry: &Registry, seed: u64) -> (Vec<Node>, Index) {
    let (blob, diff_id) = layer(24, seed);
    registry.put(blob.clone());
    let mut builder = Node::neighbour(9, registry);
    let index = builder.build(registry, &blob, diff_id).await;
    let mut nodes = Vec::new();
    for n in 1..=3 {
        let mut node = Node::neighbour(n, registry);
        node.know(&index).await;
        nodes.push(node);
    }
    connect(&nodes.iter().collect::<Vec<_>>()).await;
    (nodes, index)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_that_pull_at_once_take_each_byte_from_the_registry_once() {
    let registry = Registry::start().await;
    let (nodes, index) = three(&registry, 4).await;
    registry.limit(SLOW);
    let before = registry.sent();
    let (a, b, c) = tokio::join!(nodes[0].complete(), nodes[1].complete(), nodes[2].complete());
    let all = [a.expect("all of it"), b.expect("all of it"), c.expect("all of it")];
    let sent = registry.sent() - before;
    println!("{} of the blob: {all:?}", sent as f64 / index.blob_size as f64);
    assert!(sent <= index.blob_size * 11 / 10, "{sent} of {}: {all:?}", index.blob_size);
    let content = nodes[0].content();
    for sources in all {
        assert_eq!(sources.lan + sources.registry, content, "{sources:?}");
    }
    let registries: u64 = all.iter().map(|sources| sources.registry).sum();
    assert!(registries <= content * 11 / 10, "{all:?}");
    // One that comes later takes nothing from outside, registry or no registry.
    registry.stop();
    let mut late = Node::neighbour(4, &registry);
    late.know(&index).await;
    let everybody: Vec<&Node> = nodes.iter().collect();
    for other in &everybody {
        late.engine.dial(other.target());
    }
    late.sees(3).await;
    let sources = late.complete().await.expect("all of it");
    assert_eq!(sources.lan, content, "{sources:?}");
}
