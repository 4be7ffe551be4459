//! Tunnels break, close and come back.

use std::sync::Arc;

use peersync::fetch::tunnel::{Ended, EventKind, RequestError, SendError, Transport};
use peersync::wire::{Class, Home, Message, Refusal};

use crate::content::{Object, Shelf, noise};
use crate::node::{BOTH, Node, all, bulk, over, pair};

#[tokio::test]
async fn when_a_node_goes_its_peers_get_their_requests_back_and_come_again() {
    let object = Object::new(noise(1, 20 << 20));
    for transport in BOTH {
        let mut a = Node::new(1, over(transport), Arc::default());
        let b = Node::new(2, over(transport), Shelf::with(&[&object]));
        let tunnel = a.open(&b).await.expect("open");
        let address = b.endpoint.address();
        bulk(&tunnel, 1, all(&object));
        a.until(|event| matches!(event.kind, EventKind::Content { .. }).then_some(())).await;
        let (mut events, endpoint) = (b.events, b.endpoint);
        endpoint.close();
        let answer = a.answer(1).await;
        assert_eq!(answer.down, Some(Ended::ByPeer(Refusal::Shutdown)), "{transport:?}");
        assert_eq!(tunnel.request(2, Class::Bulk, all(&object)), Err(RequestError::Closed));
        let home = Home::Object(object.id);
        assert_eq!(tunnel.tell(Message::Wants { home, on: true }), Err(SendError::Closed));
        drop(endpoint);
        while events.next().await.is_some() {}

        let b = Node::again(2, over(transport), address, Shelf::with(&[&object])).await;
        let tunnel = a.open(&b).await.expect("open");
        bulk(&tunnel, 3, all(&object));
        assert!(a.answer(3).await.bytes() == object.bytes);
    }
}

#[tokio::test]
async fn a_closed_tunnel_says_why() {
    for transport in BOTH {
        let (mut a, mut b, tunnel) = pair(transport, Arc::default()).await;
        tunnel.close(Refusal::Unneeded);
        assert_eq!(a.down().await, Ended::Closed(Refusal::Unneeded));
        assert_eq!(b.down().await, Ended::ByPeer(Refusal::Unneeded), "{transport:?}");
        assert!(a.endpoint.tunnels(&b.id()).is_empty());
        assert!(b.endpoint.tunnels(&a.id()).is_empty());
    }
}

#[tokio::test]
async fn one_of_several_tunnels_can_go() {
    let object = Object::new(noise(1, 1 << 20));
    let (mut a, b, first) = pair(Transport::Tcp, Shelf::with(&[&object])).await;
    let second = a.open(&b).await.expect("open");
    assert_ne!(first.info().id, second.info().id);
    first.close(Refusal::Unneeded);
    a.down().await;
    bulk(&second, 1, all(&object));
    assert!(a.answer(1).await.bytes() == object.bytes);
    let left: Vec<_> = a.endpoint.tunnels(&b.id()).iter().map(|t| t.info().id).collect();
    assert_eq!(left, [second.info().id]);
}

#[tokio::test]
async fn a_round_trip_is_measured() {
    for transport in BOTH {
        let (mut a, _b, tunnel) = pair(transport, Arc::default()).await;
        tunnel.ping().expect("room");
        let rtt = a
            .until(|event| match event.kind {
                EventKind::Rtt(rtt) => Some(rtt),
                _ => None,
            })
            .await;
        assert!(!rtt.is_zero());
    }
}
