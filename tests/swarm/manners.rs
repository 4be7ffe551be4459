//! Members that do what no honest member does are shut out, and who reads meanwhile is
//! served by others.

use std::sync::Arc;

use peersync::fetch::tunnel::{
    BlockServer, Endpoint, EventKind, Events, Handed, OpenError, SendError, Served, Tunnel,
};
use peersync::layer::root::LayerRoot;
use peersync::types::{Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use peersync::wire::{BlockSet, Have, HaveBody, Holding, Home, Message, Refusal};
use tokio::time::timeout;

use crate::node::{Index, LONG, Make, Node, connect, endpoint, layer};
use crate::registry::Registry;

/// Has nothing.
struct Empty;

impl BlockServer for Empty {
    fn block(&self, _: &PeerId, _: &ObjectId, _: u32) -> Served<VerifiedBlock> {
        Served::No
    }

    fn spec(&self, _: &PeerId, _: &ObjectId) -> Served<Arc<ObjectSpec>> {
        Served::No
    }

    fn roots(&self, _: &PeerId, _: &Digest) -> Vec<LayerRoot> {
        Vec::new()
    }

    fn item(&self, _: &PeerId, _: &Digest, _: u64) -> Served<Handed> {
        Served::No
    }
}

/// A member that is played by hand.
struct Rude {
    endpoint: Endpoint,
    events: Events,
    tunnel: Arc<dyn Tunnel>,
}

impl Rude {
    async fn calls(node: &Node) -> Self {
        let (endpoint, events) = endpoint(66, 1, Arc::new(Empty));
        let tunnel = timeout(LONG, endpoint.open(node.target())).await.expect("an answer");
        Self { endpoint, events, tunnel: tunnel.expect("a member") }
    }

    /// The next event that gives something.
    async fn until<T>(&mut self, mut find: impl FnMut(EventKind) -> Option<T>) -> T {
        loop {
            let event = timeout(LONG, self.events.next()).await.expect("an event");
            if let Some(found) = find(event.expect("open").kind) {
                return found;
            }
        }
    }

    /// Its tunnel ends, and it is not let in again.
    async fn expect_shut_out(mut self, by: &Node) {
        self.until(|kind| matches!(kind, EventKind::Down { .. }).then_some(())).await;
        // The end of the tunnel may be heard before it is judged.
        let refused = async {
            loop {
                match self.endpoint.open(by.target()).await {
                    Err(OpenError::Refused(Refusal::Banned)) => return,
                    _ => tokio::task::yield_now().await,
                }
            }
        };
        timeout(LONG, refused).await.expect("it is refused");
    }
}

/// Two neighbours, the first with all of a layer; the second is to read it.
async fn two(stopped: bool) -> (Registry, Node, Node, Index) {
    let registry = Registry::start().await;
    let (blob, diff_id) = layer(8, 8);
    registry.put(blob.clone());
    let mut honest = Node::new(Make { n: 1, lan: 1, server: None }, &registry);
    let index = honest.build(&registry, &blob, diff_id).await;
    let mut reader = Node::neighbour(2, &registry);
    reader.know(&index).await;
    if stopped {
        registry.stop();
    }
    (registry, honest, reader, index)
}

async fn floods(stopped: bool) {
    let (_registry, honest, reader, index) = two(stopped).await;
    let rude = Rude::calls(&reader).await;
    let home = Home::Layer(index.blob);
    // Its own end takes no more than it can send; that is no reason to stop.
    let flood = async {
        while rude.tunnel.tell(Message::Wants { home, on: true }) != Err(SendError::Closed) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, flood).await.expect("an end");
    rude.expect_shut_out(&reader).await;
    connect(&[&honest, &reader]).await;
    let sources = reader.complete().await.expect("all of it");
    assert_eq!(sources.lan, reader.content(), "{sources:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_floods_expect_shut_out() {
    floods(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_floods_expect_shut_out_with_the_registry_stopped() {
    floods(true).await;
}

/// It says that it holds blocks that the object does not have.
async fn boasts(stopped: bool) {
    let (_registry, honest, reader, index) = two(stopped).await;
    let mut rude = Rude::calls(&reader).await;
    reader.sees(1).await;
    let boasting = async {
        let home = rude
            .until(|kind| match kind {
                EventKind::News(Message::Subscribe { home, on: true, .. }) => Some(home),
                _ => None,
            })
            .await;
        assert_eq!(home, Home::Layer(index.blob));
        let object = reader.index.as_ref().expect("an index").objects()[1];
        let all: BlockSet = std::iter::once(0..1 << 20).collect();
        let objects = vec![(object, Holding::Add(all))];
        let body = HaveBody { root: false, last: true, objects };
        let have = Have { home, epoch: 1, from: None, to: 1, body };
        rude.tunnel.tell(Message::Have(have)).expect("told");
        rude.expect_shut_out(&reader).await;
        reader.engine.dial(honest.target());
    };
    let (sources, ()) = tokio::join!(reader.complete(), boasting);
    let sources = sources.expect("all of it");
    assert_eq!(sources.remote, 0, "{sources:?}");
    assert_eq!(sources.lan + sources.registry, reader.content(), "{sources:?}");
    if stopped {
        assert_eq!(sources.lan, reader.content(), "{sources:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_holdings_do_not_fit_expect_shut_out() {
    boasts(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_holdings_do_not_fit_expect_shut_out_with_the_registry_stopped() {
    boasts(true).await;
}
