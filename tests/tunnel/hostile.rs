//! Peers that do what they should not. Whatever they do costs a bounded amount, is
//! named in the end of their tunnel, and nobody else notices.

use std::sync::Arc;
use std::time::Duration;

use peersync::fetch::tunnel::{
    Ended, EventKind, Fault, Patience, Settings, Transport, Tunnel, Want,
};
use peersync::types::{BLOCK_MAX, Digest};
use peersync::wire::{
    Class, Encoding, End, Extent, Head, Home, Kind, Message, Refusal, Request, RequestId,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{interval, timeout};

use crate::content::{Object, Shelf, noise, text};
use crate::node::{LONG, Node, all, bulk, over, settings};
use crate::raw::Raw;

const SHORT: Duration = Duration::from_millis(400);

fn impatient() -> Settings {
    let patience = Patience { window: SHORT, write: SHORT, ..Patience::default() };
    Settings { patience, ..over(Transport::Tcp) }
}

/// A node with a tunnel to a peer that is played by hand.
async fn hosted(settings: Settings) -> (Node, Raw, Arc<dyn Tunnel>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let node = Node::new(1, settings, Arc::default());
    let address = listener.local_addr().expect("address");
    let target = peersync::fetch::tunnel::Target { peer: None, address };
    let (raw, tunnel) = tokio::join!(Raw::host(9, &listener), node.endpoint.open(target));
    (node, raw, tunnel.expect("open"))
}

/// What the next tunnel to end by a fault of its peer ended by.
async fn fault(node: &mut Node) -> Fault {
    node.until(|event| match event.kind {
        EventKind::Down { why: Ended::Fault { fault, .. }, .. } => Some(fault),
        _ => None,
    })
    .await
}

/// A member is let in and served.
async fn all_is_well(node: &Node, object: &Object) {
    let mut other = Node::new(7, settings(), Arc::default());
    let tunnel = other.open(node).await.expect("open");
    bulk(&tunnel, 1, all(object));
    assert!(other.answer(1).await.bytes() == object.bytes);
}

#[tokio::test]
async fn callers_that_say_nothing_are_few_and_do_not_stay() {
    let object = Object::new(noise(1, 1000));
    let settings = Settings { handshake: SHORT, callers_per_source: 4, ..settings() };
    let node = Node::new(2, settings, Shelf::with(&[&object]));
    let mut silent = Vec::new();
    for _ in 0..4 {
        silent.push(TcpStream::connect(node.endpoint.address()).await.expect("connect"));
    }
    // One too many is shut out at once, the others after their time.
    let mut fifth = TcpStream::connect(node.endpoint.address()).await.expect("connect");
    let ended = async |stream: &mut TcpStream| {
        matches!(timeout(LONG, stream.read(&mut [0; 16])).await, Ok(Ok(0) | Err(_)))
    };
    assert!(ended(&mut fifth).await);
    for stream in &mut silent {
        assert!(ended(stream).await);
    }
    all_is_well(&node, &object).await;
}

#[tokio::test]
async fn what_is_not_tls_is_not_answered() {
    let object = Object::new(noise(1, 1000));
    let node = Node::new(2, settings(), Shelf::with(&[&object]));
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff], &noise(1, 100_000)] {
        let mut stream = TcpStream::connect(node.endpoint.address()).await.expect("connect");
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("an end");
        assert!(rest.len() < 100, "an alert at most");
    }
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("port");
    for n in 0..100u64 {
        let _ = udp.send_to(&noise(n, 1200), node.endpoint.address());
    }
    all_is_well(&node, &object).await;
}

#[tokio::test]
async fn strangers_get_a_word_of_refusal_and_nothing_else() {
    let node = Node::new(2, over(Transport::Tcp), Arc::default());
    let at = node.endpoint.address();
    let refusal = async |mut raw: Raw, hello: Message| {
        raw.send(&hello).await;
        let Message::Refuse(why) = raw.recv().await else { panic!("not refused") };
        drop(raw);
        why
    };
    let raw = Raw::call(5, at).await;
    let mut hello = raw.hello(&[1; 32]);
    hello.proofs.clear();
    assert_eq!(refusal(raw, Message::Hello(hello)).await, Refusal::NotMember);

    let raw = Raw::call(5, at).await;
    let hello = raw.hello(&[2; 32]);
    assert_eq!(refusal(raw, Message::Hello(hello)).await, Refusal::NotMember);

    // A proof that was heard on another connection, or from another node.
    let heard = Raw::call(5, at).await.hello(&[1; 32]);
    let raw = Raw::call(5, at).await;
    assert_eq!(refusal(raw, Message::Hello(heard.clone())).await, Refusal::NotMember);
    let raw = Raw::call(6, at).await;
    assert_eq!(refusal(raw, Message::Hello(heard)).await, Refusal::NotMember);

    // A proof of the other end's role.
    let raw = Raw::call(5, at).await;
    let mut other = raw.binding;
    other.prover = peersync::wire::Role::Listener;
    let mut hello = raw.hello(&[1; 32]);
    hello.proofs = vec![other.proof(&[1; 32])];
    assert_eq!(refusal(raw, Message::Hello(hello)).await, Refusal::NotMember);

    let raw = Raw::call(5, at).await;
    assert_eq!(refusal(raw, Message::Ping(1)).await, Refusal::Protocol);

    let mut raw = Raw::call(5, at).await;
    let mut body = Message::Hello(raw.hello(&[1; 32])).to_frame().split_off(8);
    body[0] = 2;
    raw.frame(Kind::Hello, 0, &body).await;
    assert_eq!(raw.recv().await, Message::Refuse(Refusal::Version));
}

#[tokio::test]
async fn bytes_that_are_not_the_protocol_end_the_tunnel() {
    let object = Object::new(noise(1, 1000));
    let mut node = Node::new(2, settings(), Shelf::with(&[&object]));
    let head = Head { request: 1, index: 0, len: 10, encoding: Encoding::Raw, place: None };
    let long = (1u32 << 30).to_le_bytes();
    let bad: Vec<(&str, Vec<u8>)> = vec![
        ("too long", [&long[..], &[0x33, 0, 0, 0]].concat()),
        ("unknown kind", vec![0, 0, 0, 0, 0x7f, 0, 0, 0]),
        ("unknown flags", vec![8, 0, 0, 0, 0x10, 2, 0, 0]),
        ("truncated", vec![4, 0, 0, 0, 0x10, 0, 0, 0, 1, 2, 3, 4]),
        ("second hello", Message::Refuse(Refusal::TooMany).to_frame()),
        ("unasked head", Message::Head(head).to_frame()),
        ("unasked end", Message::End { request: 9, end: End::Done }.to_frame()),
        ("unasked data", vec![9, 0, 0, 0, 0x33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5]),
        ("data without a name", vec![1, 0, 0, 0, 0x33, 0, 0, 0, 1]),
    ];
    for (what, bytes) in bad {
        let mut raw = Raw::member(5, node.endpoint.address()).await;
        raw.bytes(&bytes).await;
        if what == "data without a name" {
            raw.bytes(&[0; 16]).await;
        }
        assert_eq!(fault(&mut node).await, Fault::Protocol, "{what}");
        raw.rest().await;
    }
    all_is_well(&node, &object).await;
}

#[tokio::test]
async fn what_is_new_and_optional_is_skipped() {
    let object = Object::new(noise(1, 1000));
    let mut node = Node::new(2, settings(), Shelf::with(&[&object]));
    let mut raw = Raw::member(5, node.endpoint.address()).await;
    let mut frame = vec![0, 1, 0, 0, 0x7f, 1, 0, 0];
    frame.extend([7; 256]);
    raw.bytes(&frame).await;
    let home = Home::Layer(Digest::of(b"layer"));
    raw.send(&Message::Wants { home, on: true }).await;
    let wants = node
        .until(|event| match event.kind {
            EventKind::News(news) => Some(news),
            _ => None,
        })
        .await;
    assert_eq!(wants, Message::Wants { home, on: true });
}

/// Sends a block in answer to a request, whatever its bytes are.
async fn answer(raw: &mut Raw, request: RequestId, index: u64, bytes: &[u8]) {
    let len = bytes.len() as u32;
    raw.send(&Message::Head(Head { request, index, len, encoding: Encoding::Raw, place: None }))
        .await;
    for data in bytes.chunks(60_000) {
        raw.data(request, data).await;
    }
}

#[tokio::test]
async fn a_wrong_block_is_an_event_and_no_content() {
    let object = Object::new(noise(1, 600_000));
    let (mut node, mut raw, tunnel) = hosted(impatient()).await;
    bulk(&tunnel, 1, all(&object));
    let request = raw.request().await.id;
    for index in 0..3 {
        let mut bytes = object.block(index).to_vec();
        if index == 1 {
            *bytes.last_mut().expect("a byte") ^= 1;
        }
        answer(&mut raw, request, index.into(), &bytes).await;
    }
    raw.send(&Message::End { request, end: End::Done }).await;
    let answer = node.answer(1).await;
    assert_eq!(answer.wrong, 1);
    let right: Vec<u32> = answer.blocks().iter().map(|(_, index, _)| *index).collect();
    assert_eq!(right, [0, 2]);
}

#[tokio::test]
async fn blocks_that_were_not_asked_or_do_not_fit_end_the_tunnel() {
    let object = Object::new(noise(1, 600_000));
    let whole = object.block(0);
    let cases: [(&str, u64, usize, usize); 4] = [
        ("another number", 7, whole.len(), 1),
        ("another length", 0, whole.len() - 1, 1),
        ("too long", 0, BLOCK_MAX as usize, 1),
        ("twice", 0, whole.len(), 2),
    ];
    for (what, index, len, times) in cases {
        let (mut node, mut raw, tunnel) = hosted(impatient()).await;
        bulk(&tunnel, 1, all(&object));
        let request = raw.request().await.id;
        let bytes: Vec<u8> = whole.iter().copied().cycle().take(len).collect();
        for _ in 0..times {
            answer(&mut raw, request, index, &bytes).await;
        }
        assert_eq!(fault(&mut node).await, Fault::Protocol, "{what}");
    }
}

#[tokio::test]
async fn a_bomb_does_not_go_off() {
    let object = Object::new(noise(1, 200_000));
    let (mut node, mut raw, tunnel) = hosted(impatient()).await;
    bulk(&tunnel, 1, all(&object));
    let request = raw.request().await.id;
    let bomb = zstd::bulk::compress(&vec![0; 256 << 20], 1).expect("compressed");
    let encoding = Encoding::Zstd(bomb.len() as u32);
    raw.send(&Message::Head(Head { request, index: 0, len: 200_000, encoding, place: None })).await;
    for data in bomb.chunks(60_000) {
        raw.data(request, data).await;
    }
    raw.send(&Message::End { request, end: End::Done }).await;
    let answer = node.answer(1).await;
    assert_eq!((answer.wrong, answer.contents.len()), (1, 0));
}

#[tokio::test]
async fn a_list_that_is_not_the_objects_is_found() {
    let (object, other) = (Object::new(noise(1, 600_000)), Object::new(noise(2, 600_000)));
    let (mut node, mut raw, tunnel) = hosted(impatient()).await;
    bulk(&tunnel, 1, Want::Spec { object: object.id });
    let request = raw.request().await.id;
    answer(&mut raw, request, 0, &other.spec.encode()).await;
    raw.send(&Message::End { request, end: End::Done }).await;
    assert_eq!(node.answer(1).await.wrong, 1);
    bulk(&tunnel, 2, Want::Roots { blob: Digest::of(b"blob") });
    let request = raw.request().await.id;
    answer(&mut raw, request, 0, &text(300)).await;
    raw.send(&Message::End { request, end: End::Done }).await;
    assert_eq!(node.answer(2).await.wrong, 1);
}

#[tokio::test]
async fn one_that_accepts_and_never_sends_is_given_up() {
    let object = Object::new(noise(1, 600_000));
    let (mut node, mut raw, tunnel) = hosted(impatient()).await;
    bulk(&tunnel, 1, all(&object));
    raw.request().await;
    let answer = node.answer(1).await;
    assert!(matches!(answer.down, Some(Ended::Fault { fault: Fault::Stalled, .. })));
    assert_eq!(raw.recv().await, Message::Close(Refusal::Stalled));
}

#[tokio::test]
async fn one_that_drips_is_given_up() {
    let object = Object::new(noise(1, 600_000));
    for framed in [true, false] {
        let (mut node, mut raw, tunnel) = hosted(impatient()).await;
        bulk(&tunnel, 1, all(&object));
        let request = raw.request().await.id;
        let len = object.block(0).len() as u32;
        let head = Head { request, index: 0, len, encoding: Encoding::Raw, place: None };
        raw.send(&Message::Head(head)).await;
        if !framed {
            // One frame, byte by byte.
            raw.bytes(&[8, 0xf0, 0, 0, 0x33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).await;
        }
        let drip = async {
            let mut tick = interval(Duration::from_millis(20));
            loop {
                tick.tick().await;
                if framed { raw.data(request, &[1]).await } else { raw.bytes(&[1]).await }
            }
        };
        let answer = tokio::select! {
            answer = node.answer(1) => answer,
            () = drip => unreachable!(),
        };
        assert!(matches!(answer.down, Some(Ended::Fault { fault: Fault::Stalled, .. })));
    }
}

#[tokio::test]
async fn a_flood_of_requests_is_put_off_and_then_cut_off() {
    let object = Object::new(noise(1, 1000));
    let mut node = Node::new(2, settings(), Shelf::with(&[&object]));
    let mut raw = Raw::member(5, node.endpoint.address()).await;
    let shelf = Arc::clone(&node.shelf);
    let shut = shelf.shut();
    let extent = Extent::Blocks { object: object.id, first: 0, count: 1 };
    let mut frames = Vec::new();
    for id in 0..2000 {
        Message::Request(Request { id, class: Class::Bulk, zstd: false, extent })
            .encode(&mut frames);
    }
    raw.bytes(&frames).await;
    assert_eq!(fault(&mut node).await, Fault::Flood);
    drop(shut);
    let mut busy = 0;
    while let Some((kind, _)) = raw.next().await {
        busy += u32::from(kind == Kind::Busy as u8);
    }
    assert!(busy > 100, "{busy} were put off first");
    all_is_well(&node, &object).await;
}

#[tokio::test]
async fn a_flood_of_news_is_cut_off() {
    let object = Object::new(noise(1, 1000));
    let mut node = Node::new(2, settings(), Shelf::with(&[&object]));
    let mut raw = Raw::member(5, node.endpoint.address()).await;
    let home = Home::Object(object.id);
    let frames = Message::Wants { home, on: true }.to_frame().repeat(20_000);
    let flood = async {
        raw.bytes(&frames).await;
        raw.rest().await;
    };
    let (fault, ()) = tokio::join!(fault(&mut node), flood);
    assert_eq!(fault, Fault::Flood);
    all_is_well(&node, &object).await;
}

#[tokio::test]
async fn one_that_asks_and_does_not_read_stops_nobody() {
    let object = Object::new(noise(1, 60 << 20));
    let small = Object::new(noise(2, 1000));
    let mut node = Node::new(2, impatient(), Shelf::with(&[&object, &small]));
    let mut raw = Raw::member(5, node.endpoint.address()).await;
    let extent = Extent::Blocks { object: object.id, first: 0, count: object.count() };
    for id in 0..8 {
        raw.send(&Message::Request(Request { id, class: Class::Bulk, zstd: false, extent })).await;
    }
    all_is_well(&node, &small).await;
    assert_eq!(fault(&mut node).await, Fault::Stalled);
    all_is_well(&node, &small).await;
}

#[tokio::test]
async fn an_owner_that_does_not_listen_holds_up_its_own_tunnels_only() {
    let object = Object::new(noise(1, 60 << 20));
    let (a, b) = (Node::new(1, impatient(), Arc::default()), Shelf::with(&[&object]));
    let b = Node::new(2, over(Transport::Tcp), b);
    let tunnel = a.open(&b).await.expect("open");
    bulk(&tunnel, 1, all(&object));
    all_is_well(&b, &object).await;
    // Nobody took a's events: its memory is bounded by what a tunnel may hold.
    let received = tunnel.traffic().received;
    assert!(received < 40 << 20, "{received} bytes were taken in");
}
