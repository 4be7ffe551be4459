//! Any source may fail at any time, and the next one takes over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use peersync::fetch::StoreServer;
use peersync::fetch::tunnel::{BlockServer, Handed, Served};
use peersync::layer::root::LayerRoot;
use peersync::types::{BlockHash, Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use tokio::sync::Notify;

use crate::node::{LONG, Make, Node, connect, layer, noise};
use crate::registry::Registry;

/// Serves a store's blocks with a fault.
struct Faulty {
    store: StoreServer,
    fault: Fault,
    /// Blocks asked for.
    asked: AtomicU64,
    reached: Notify,
}

enum Fault {
    /// Sends other bytes.
    Lies,
    /// Tells when so many have been asked for.
    Tells(u64),
}

impl Faulty {
    fn new(store: &Arc<peersync::store::Store>, fault: Fault) -> Arc<Self> {
        let store = {
            let spools = Arc::new(peersync::fetch::Spools::new(store.path()));
            StoreServer::new(Arc::clone(store), Arc::default(), spools)
        };
        Arc::new(Self { store, fault, asked: AtomicU64::new(0), reached: Notify::new() })
    }
}

impl BlockServer for Faulty {
    fn block(&self, peer: &PeerId, object: &ObjectId, index: u32) -> Served<VerifiedBlock> {
        let asked = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let block = self.store.block(peer, object, index);
        match (&self.fault, block) {
            (Fault::Lies, Served::Yes(block)) => {
                let wrong = Bytes::from(noise(u64::from(index), block.data().len()));
                let hash = BlockHash::of(&wrong);
                Served::Yes(VerifiedBlock::verify(wrong, &hash).expect("its own hash"))
            }
            (Fault::Tells(at), block) => {
                if asked == *at {
                    self.reached.notify_one();
                }
                // So that the other end can be taken away while it goes on.
                std::thread::sleep(Duration::from_millis(10));
                block
            }
            (_, block) => block,
        }
    }

    fn spec(&self, peer: &PeerId, object: &ObjectId) -> Served<Arc<ObjectSpec>> {
        self.store.spec(peer, object)
    }

    fn roots(&self, peer: &PeerId, blob: &Digest) -> Vec<LayerRoot> {
        self.store.roots(peer, blob)
    }

    fn item(&self, peer: &PeerId, blob: &Digest, number: u64) -> Served<Handed> {
        self.store.item(peer, blob, number)
    }
}

/// Nobody may be asked before all is set up: the store of the faulty node is made
/// by another one.
async fn liar(stopped: bool) {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(8, 5);
    registry.put(blob.clone());
    let mut honest = Node::neighbour(1, &registry);
    let index = honest.build(&registry, &blob, diff_id).await;
    let lies = Faulty::new(&honest.store, Fault::Lies);
    let liar = Node::new(Make { n: 2, lan: 1, server: Some(lies) }, &registry);
    // It says that it has everything.
    let mut liar = liar;
    liar.know(&index).await;
    copy(&honest, &liar);
    let mut reader = Node::neighbour(3, &registry);
    reader.know(&index).await;
    if stopped {
        connect(&[&honest, &liar, &reader]).await;
        registry.stop();
    } else {
        connect(&[&liar, &reader]).await;
    }
    let sources = reader.complete().await.expect("all of it");
    assert!(reader.counters.blocks_corrupt.get() >= 1, "the liar was asked");
    if stopped {
        assert_eq!(sources.lan, reader.content(), "{sources:?}");
    } else {
        assert_eq!(sources.registry, reader.content(), "{sources:?}");
    }
    let lying = reader.engine.peers().into_iter().find(|peer| peer.id == liar.id);
    assert!(lying.is_none_or(|peer| peer.received == 0));
}

/// All blocks of one store into another.
fn copy(from: &Node, to: &Node) {
    let index = from.index.as_ref().expect("an index");
    for (object, spec) in index.objects().iter().zip(index.specs()) {
        for block in 0..spec.block_count() {
            let data = from.store.read_block(object, block).expect("store").expect("here");
            to.store.put_block(object, block, &data).expect("stored");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_is_left_and_the_registry_takes_over() {
    liar(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_is_left_and_another_takes_over_with_the_registry_stopped() {
    liar(true).await;
}

/// The peer that serves goes away in the middle.
async fn dies(stopped: bool) {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(12, 6);
    registry.put(blob.clone());
    let mut other = Node::neighbour(1, &registry);
    let index = other.build(&registry, &blob, diff_id).await;
    let tells = Faulty::new(&other.store, Fault::Tells(5));
    let server = Some(Arc::clone(&tells) as Arc<dyn BlockServer>);
    let mut first = Node::new(Make { n: 2, lan: 1, server }, &registry);
    first.know(&index).await;
    copy(&other, &first);
    let mut reader = Node::neighbour(3, &registry);
    reader.know(&index).await;
    connect(&[&first, &reader]).await;
    if stopped {
        registry.stop();
    }
    let killing = async {
        tokio::time::timeout(LONG, tells.reached.notified()).await.expect("it is asked");
        let came = || reader.engine.peers().iter().any(|peer| peer.received > 0);
        while !came() && !reader.is_complete() {
            tokio::task::yield_now().await;
        }
        first.engine.close();
        if stopped {
            // Who takes over turns up only now.
            reader.engine.dial(other.target());
        }
    };
    let (sources, ()) = tokio::join!(reader.complete(), killing);
    let sources = sources.expect("all of it");
    assert!(sources.lan > 0, "{sources:?}");
    if stopped {
        assert_eq!(sources.lan, reader.content(), "{sources:?}");
    } else {
        assert!(sources.registry > 0, "{sources:?}");
        assert_eq!(sources.lan + sources.registry, reader.content(), "{sources:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_peer_dies_the_registry_takes_over() {
    dies(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_peer_dies_another_takes_over_with_the_registry_stopped() {
    dies(true).await;
}
