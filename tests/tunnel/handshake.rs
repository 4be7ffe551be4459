//! Who is let in, and who is not.

use std::sync::Arc;
use std::time::Duration;

use peersync::fetch::tunnel::{Endpoint, OpenError, Settings, Target, Transport};
use peersync::identity::{Door, Membership, Revoked};
use peersync::types::PeerId;
use peersync::wire::Refusal;

use crate::node::{BOTH, Node, key, over, refused, settings, swarm};

fn node(n: u8, transport: Transport, door: Door) -> Node {
    let membership = Membership::new(door, Revoked::default());
    Node::member(n, over(transport), Arc::default(), membership)
}

#[tokio::test]
async fn another_swarm_is_another_world() {
    for transport in BOTH {
        let (a, mut b) = (node(1, transport, swarm(&[1])), node(2, transport, swarm(&[2])));
        assert_eq!(refused(a.open(&b).await), Refusal::NotMember);
        // Nor does a member listen to a stranger that would let anybody in.
        let open = node(3, transport, Door::Open);
        assert!(matches!(a.open(&open).await, Err(OpenError::Denied(_))));
        assert_eq!(refused(open.open(&b).await), Refusal::NotMember);
        assert!(b.endpoint.tunnels(&a.id()).is_empty());
        // The first thing that happens at b is a member's call.
        let member = node(4, transport, swarm(&[2]));
        member.open(&b).await.expect("open");
        assert_eq!(b.up().await.info().peer, member.id());
    }
}

#[tokio::test]
async fn keys_are_changed_without_a_day_apart() {
    for transport in BOTH {
        let nodes = [swarm(&[1]), swarm(&[1, 2]), swarm(&[2, 1]), swarm(&[2])];
        let nodes: Vec<_> = (1..).zip(nodes).map(|(n, door)| node(n, transport, door)).collect();
        for (a, b) in [(0, 1), (1, 2), (2, 3), (3, 1), (2, 0)] {
            nodes[a].open(&nodes[b]).await.expect("a key in common");
        }
        assert_eq!(refused(nodes[0].open(&nodes[3]).await), Refusal::NotMember);
    }
}

#[tokio::test]
async fn without_a_key_only_neighbours_by_address_count() {
    for transport in BOTH {
        // Loopback is trusted.
        let a = node(1, transport, Door::Configured(Default::default()));
        let b = node(2, transport, Door::Configured(Default::default()));
        a.open(&b).await.expect("loopback");
    }
}

#[tokio::test]
async fn a_revoked_node_is_out_at_once() {
    for transport in BOTH {
        let (a, mut b) = (node(1, transport, swarm(&[1])), node(2, transport, swarm(&[1])));
        a.open(&b).await.expect("open");
        b.up().await;
        let revoked = || [a.id()].into_iter().collect();
        b.endpoint.set_membership(Membership::new(swarm(&[1]), revoked()));
        b.down().await;
        assert_eq!(refused(a.open(&b).await), Refusal::Revoked);
        assert!(matches!(b.open(&a).await, Err(OpenError::Denied(_))));
    }
}

#[tokio::test]
async fn a_banned_node_is_out_for_a_time() {
    for transport in BOTH {
        let (mut a, mut b) = (node(1, transport, swarm(&[1])), node(2, transport, swarm(&[1])));
        a.open(&b).await.expect("open");
        b.up().await;
        b.endpoint.ban(a.id(), Duration::from_secs(600));
        let why = a.down().await;
        assert_eq!(why, peersync::fetch::tunnel::Ended::ByPeer(Refusal::Banned));
        assert_eq!(refused(a.open(&b).await), Refusal::Banned);
        assert!(matches!(b.open(&a).await, Err(OpenError::Banned)));
        b.endpoint.ban(a.id(), Duration::ZERO);
        a.open(&b).await.expect("the time is over");
    }
}

#[tokio::test]
async fn it_matters_who_is_there() {
    for transport in BOTH {
        let (a, b) = (node(1, transport, swarm(&[1])), node(2, transport, swarm(&[1])));
        let expected = key(9).peer_id();
        let target = Target { peer: Some(expected), address: b.endpoint.address() };
        match a.endpoint.open(target).await {
            Err(OpenError::WrongPeer(found)) => assert_eq!(found, b.id()),
            other => panic!("{other:?}"),
        }
        let anybody = Target { peer: None, address: b.endpoint.address() };
        assert_eq!(a.endpoint.open(anybody).await.expect("open").info().peer, b.id());
        let myself = Target { peer: None, address: a.endpoint.address() };
        assert!(matches!(a.endpoint.open(myself).await, Err(OpenError::Myself)));
        let myself = Target { peer: Some(a.id()), ..myself };
        assert!(matches!(a.endpoint.open(myself).await, Err(OpenError::Myself)));
    }
}

#[tokio::test]
async fn tunnels_to_one_peer_are_few() {
    let a = node(1, Transport::Tcp, swarm(&[1]));
    let few = Settings { tunnels_per_peer: 2, ..over(Transport::Tcp) };
    let b = Node::new(2, few, Arc::default());
    for _ in 0..2 {
        a.open(&b).await.expect("open");
    }
    assert_eq!(a.endpoint.tunnels(&b.id()).len(), 2);
    assert_eq!(refused(a.open(&b).await), Refusal::TooMany);
}

#[tokio::test]
async fn the_other_transport_takes_over_where_one_fails() {
    for (only, of_b) in [(Transport::Tcp, BOTH), (Transport::Quic, BOTH)] {
        let a = Node::new(1, settings(), Arc::default());
        // Nobody answers on the other one; for UDP, in silence.
        let deaf = std::net::UdpSocket::bind("127.0.0.1:0").expect("port");
        let mut listen = over(only);
        if only == Transport::Tcp {
            listen.listen = deaf.local_addr().expect("address");
        }
        let b = Node::new(2, listen, Arc::default());
        let tunnel = a.open(&b).await.expect("open");
        assert_eq!(tunnel.info().transport, only, "{of_b:?}");
    }
}

#[tokio::test]
async fn the_usual_transport_goes_first() {
    use peersync::fetch::tunnel::Near;
    for (near, first) in [(Near::Lan, Transport::Tcp), (Near::Remote, Transport::Quic)] {
        let near = Settings { near: Arc::new(move |_| near), ..settings() };
        let (a, b) = (Node::new(1, near, Arc::default()), Node::new(2, settings(), Arc::default()));
        assert_eq!(a.open(&b).await.expect("open").info().transport, first);
    }
}

#[tokio::test]
async fn nobody_there_is_an_error_in_time() {
    let a = Node::new(
        1,
        Settings { handshake: Duration::from_millis(300), ..settings() },
        Arc::default(),
    );
    let deaf = std::net::TcpListener::bind("127.0.0.1:0").expect("port");
    let address = deaf.local_addr().expect("address");
    let target = Target { peer: Some(PeerId([7; 32])), address };
    let error = a.endpoint.open(target).await.expect_err("nobody there");
    assert!(matches!(error, OpenError::Timeout(_) | OpenError::Io(_)), "{error}");
}

#[tokio::test]
async fn a_port_is_for_one_endpoint() {
    let a = Node::new(1, settings(), Arc::default());
    let taken = Settings { listen: a.endpoint.address(), ..settings() };
    let membership = Membership::new(Door::Open, Revoked::default());
    let server: Arc<crate::content::Shelf> = Arc::default();
    assert!(Endpoint::bind(taken, &key(2), membership, server).is_err());
}
