//! Content goes over, as it is.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use peersync::fetch::tunnel::{
    Assembly, Content, EventKind, Near, RequestError, Settings, Transport, UploadLimits, Want,
};
use peersync::types::{Digest, ObjectSpec};
use peersync::wire::{
    BlockSet, Class, Holding, Home, Item, Journal, LayerNews, Ledger, Mark, Message, Refusal, Stage,
};
use tokio::time::Instant;

use crate::content::{Object, Shelf, noise, root, text};
use crate::node::{BOTH, Node, all, bulk, over, pair, settings};

#[tokio::test]
async fn an_object_comes_whole_over_either_transport() {
    let object = Object::new(noise(1, 10_000_000));
    for transport in BOTH {
        let (mut a, b, tunnel) = pair(transport, Shelf::with(&[&object])).await;
        bulk(&tunnel, 1, all(&object));
        let answer = a.answer(1).await;
        assert!(answer.bytes() == object.bytes, "{transport:?}");
        assert!(answer.not_have.is_empty());
        assert_eq!(tunnel.traffic().received, object.bytes.len() as u64);
        assert_eq!(tunnel.info().transport, transport);
        assert_eq!(b.shelf.reads.load(Ordering::SeqCst), u64::from(object.count()));
    }
}

#[tokio::test]
async fn both_ends_ask_on_one_tunnel() {
    let (x, y) = (Object::new(noise(1, 3_000_000)), Object::new(noise(2, 3_000_000)));
    for transport in BOTH {
        let (mut a, mut b, there) = pair(transport, Shelf::with(&[&x])).await;
        a.shelf.put(&y);
        let back = b.up().await;
        assert_eq!((back.info().peer, back.info().opened), (a.id(), false));
        assert_eq!(there.info().listens, Some(b.endpoint.address()));
        bulk(&there, 1, all(&x));
        bulk(&back, 1, all(&y));
        let (to_a, to_b) = tokio::join!(a.answer(1), b.answer(1));
        assert!(to_a.bytes() == x.bytes && to_b.bytes() == y.bytes);
    }
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (here, away) = (Object::new(noise(1, 600_000)), Object::new(noise(2, 600_000)));
    let (mut a, b, tunnel) = pair(Transport::Tcp, Shelf::with(&[&here])).await;
    bulk(&tunnel, 1, all(&away));
    assert_eq!(a.answer(1).await.not_have, [0, 1, 2]);
    b.shelf.broken.store(true, Ordering::SeqCst);
    bulk(&tunnel, 2, all(&here));
    assert!(a.answer(2).await.failed);
    let beyond = Want::Blocks { object: here.id, spec: Arc::clone(&here.spec), blocks: 2..4 };
    assert_eq!(tunnel.request(3, Class::Bulk, beyond), Err(RequestError::Malformed));
}

#[tokio::test]
async fn parts_and_local_bytes_make_a_block() {
    let object = Object::new(noise(1, 700_000));
    for transport in BOTH {
        let (mut a, _b, tunnel) = pair(transport, Shelf::with(&[&object])).await;
        let entry = object.spec.block(1).expect("a block");
        let into = Arc::new(Assembly::new(&entry).expect("fits"));
        let block = object.block(1);
        into.fill(0, &block[..100_000]);
        into.fill(150_000, &block[150_000..200_000]);
        for (n, bytes) in into.missing().into_iter().enumerate() {
            let want = Want::Part { object: object.id, index: 1, bytes, into: Arc::clone(&into) };
            tunnel.request(n as u64, Class::Urgent, want).expect("room");
        }
        assert!(a.answer(0).await.blocks().is_empty());
        let answer = a.answer(1).await;
        assert_eq!(answer.wire, u64::from(entry.len) - 200_000);
        assert!(answer.blocks()[0].2.data() == &block);
    }
}

#[tokio::test]
async fn a_wrong_local_byte_is_found_and_not_laid_at_the_peers_door() {
    let object = Object::new(noise(1, 200_000));
    let (mut a, _b, tunnel) = pair(Transport::Tcp, Shelf::with(&[&object])).await;
    let into = Arc::new(Assembly::new(&object.spec.block(0).expect("a block")).expect("fits"));
    into.fill(0, &[0; 1000]);
    let want = Want::Part { object: object.id, index: 0, bytes: 1000..200_000, into };
    bulk(&tunnel, 1, want);
    let mixed = a
        .until(|event| match event.kind {
            EventKind::Wrong(wrong) => Some(wrong.mixed),
            _ => None,
        })
        .await;
    assert!(mixed);
}

#[tokio::test]
async fn roots_and_block_lists_come_checked() {
    let (object, blob) = (Object::new(noise(1, 3_000_000)), Digest::of(b"blob"));
    for transport in BOTH {
        let shelf = Shelf::with(&[&object]);
        let roots = [root(blob, 1), root(blob, 2)];
        roots.iter().for_each(|root| shelf.put_root(root.clone()));
        let (mut a, _b, tunnel) = pair(transport, shelf).await;
        bulk(&tunnel, 1, Want::Roots { blob });
        let got = a.answer(1).await.contents;
        let got = got.iter().map(|content| match content {
            Content::Root { root, .. } => (**root).clone(),
            other => panic!("{other:?}"),
        });
        assert!(got.eq(roots));
        bulk(&tunnel, 2, Want::Roots { blob: Digest::of(b"another") });
        assert!(a.answer(2).await.contents.is_empty());
        bulk(&tunnel, 3, Want::Spec { object: object.id });
        match &a.answer(3).await.contents[..] {
            [Content::Spec { spec, .. }] => assert_eq!(spec, &object.spec),
            other => panic!("{other:?}"),
        }
        let unknown = ObjectSpec::of(b"unknown").id();
        bulk(&tunnel, 4, Want::Spec { object: unknown });
        assert_eq!(a.answer(4).await.not_have, [0]);
    }
}

#[tokio::test]
async fn a_first_pass_is_handed_on_in_its_order() {
    let blob = Digest::of(b"blob");
    let (mut a, mut b, tunnel) = pair(Transport::Tcp, Arc::default()).await;
    let back = b.up().await;
    let items = [(Item::Literal, 512), (Item::Block, 300_000), (Item::Checkpoint, 40_000)];
    for (n, (item, len)) in items.into_iter().enumerate() {
        b.shelf.hand(blob, item, n as u64, noise(n as u64, len));
    }
    back.tell(Message::Passed { blob, stage: Stage::Leads, pieces: 4..7 }).expect("room");
    let available = a
        .until(|event| match event.kind {
            EventKind::News(Message::Passed { pieces, stage: Stage::Leads, .. }) => {
                Some(pieces.len() as u64)
            }
            _ => None,
        })
        .await;
    bulk(&tunnel, 1, Want::Items { blob, numbers: 0..available + 2 });
    let answer = a.answer(1).await;
    assert_eq!(answer.not_have, [3, 4]);
    for (n, content) in answer.contents.iter().enumerate() {
        let Content::Item { number, place, block, .. } = content else { panic!("{content:?}") };
        assert_eq!((*number, place.item, place.object), (n as u64, items[n].0, 3));
        assert!(block.data()[..] == noise(n as u64, items[n].1));
    }
}

#[tokio::test]
async fn lines_between_lans_carry_less_where_that_helps() {
    let (letters, bits) = (Object::new(text(3_000_000)), Object::new(noise(1, 3_000_000)));
    for (near, packed) in [(Near::Remote, true), (Near::Lan, false)] {
        let settings = || Settings { near: Arc::new(move |_| near), ..over(Transport::Tcp) };
        let mut a = Node::new(1, settings(), Arc::default());
        let b = Node::new(2, settings(), Shelf::with(&[&letters, &bits]));
        let tunnel = a.open(&b).await.expect("open");
        bulk(&tunnel, 1, all(&letters));
        let answer = a.answer(1).await;
        assert!(answer.bytes() == letters.bytes);
        assert_eq!(answer.wire < letters.bytes.len() as u64 / 2, packed);
        bulk(&tunnel, 2, all(&bits));
        let answer = a.answer(2).await;
        assert!(answer.bytes() == bits.bytes);
        assert_eq!(answer.wire, bits.bytes.len() as u64);
        // Parts, in which blocks are asked for on slow lines, too.
        let entry = letters.spec.block(0).expect("a block");
        let into = Arc::new(Assembly::new(&entry).expect("fits"));
        let want = Want::Part { object: letters.id, index: 0, bytes: 0..100_000, into };
        tunnel.request(3, Class::Bulk, want).expect("room");
        assert_eq!(a.answer(3).await.wire < 50_000, packed);
    }
}

#[tokio::test]
async fn urgent_content_overtakes_bulk() {
    let (large, small) = (Object::new(noise(1, 40 << 20)), Object::new(noise(2, 4096)));
    for transport in BOTH {
        let (mut a, _b, tunnel) = pair(transport, Shelf::with(&[&large, &small])).await;
        bulk(&tunnel, 1, all(&large));
        // Bulk is on its way.
        a.until(|event| matches!(event.kind, EventKind::Content { .. }).then_some(())).await;
        tunnel.request(2, Class::Urgent, all(&small)).expect("room");
        let mut between = 0u64;
        a.until(|event| match event.kind {
            EventKind::Content { request: 2, .. } => Some(()),
            EventKind::Content { wire, .. } => {
                between += u64::from(wire);
                None
            }
            _ => None,
        })
        .await;
        // What the connection held already: socket buffers and windows, not the rest.
        assert!(between < 20 << 20, "{transport:?}: {between} bytes came before");
        tunnel.cancel(1);
    }
}

#[tokio::test]
async fn what_is_cancelled_stops_and_says_no_more() {
    let (large, small) = (Object::new(noise(1, 40 << 20)), Object::new(noise(2, 4096)));
    for transport in BOTH {
        let (mut a, b, tunnel) = pair(transport, Shelf::with(&[&large, &small])).await;
        let shut = b.shelf.shut();
        bulk(&tunnel, 1, all(&large));
        tunnel.cancel(1);
        // The answer to the ping shows that the cancel has been heard before.
        tunnel.ping().expect("room");
        a.until(|event| matches!(event.kind, EventKind::Rtt(_)).then_some(())).await;
        drop(shut);
        bulk(&tunnel, 2, all(&small));
        let answer = loop {
            let event = a.next().await;
            match event.kind {
                EventKind::Content { request, .. } => assert_eq!(request, 2),
                EventKind::Done { request } => break request,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(answer, 2);
        assert!(b.shelf.reads.load(Ordering::SeqCst) <= 2);
    }
}

#[tokio::test]
async fn a_tunnel_takes_on_so_much_and_no_more() {
    let object = Object::new(noise(1, 100_000));
    let (mut a, b, tunnel) = pair(Transport::Tcp, Shelf::with(&[&object])).await;
    let shut = b.shelf.shut();
    let asked = (0..).find(|n| tunnel.request(*n, Class::Bulk, all(&object)).is_err());
    let asked = asked.expect("a bound");
    assert_eq!(asked, u64::from(settings().limits.requests));
    assert_eq!(tunnel.request(asked, Class::Bulk, all(&object)), Err(RequestError::Full));
    drop(shut);
    for n in 0..asked {
        assert!(!a.answer(n).await.busy);
    }
    bulk(&tunnel, asked, all(&object));
    assert!(a.answer(asked).await.bytes() == object.bytes);
}

#[tokio::test]
async fn the_upload_limit_holds() {
    let object = Object::new(noise(1, 1_000_000));
    let upload = UploadLimits { total: Some(2_000_000), background: None };
    for transport in BOTH {
        let mut a = Node::new(1, over(transport), Arc::default());
        let limited = Settings { upload, ..over(transport) };
        let b = Node::new(2, limited, Shelf::with(&[&object]));
        let tunnel = a.open(&b).await.expect("open");
        let began = Instant::now();
        bulk(&tunnel, 1, all(&object));
        assert!(a.answer(1).await.bytes() == object.bytes);
        // The last grant may overdraw by a block, and the first ones are saved up.
        let least = (1_000_000.0 - 100_000.0 - 262_144.0) / 2_000_000.0;
        assert!(began.elapsed().as_secs_f64() > least, "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn the_download_limit_holds() {
    let object = Object::new(noise(1, 1_000_000));
    let limited = Settings { download: Some(2_000_000), ..over(Transport::Tcp) };
    let mut a = Node::new(1, limited, Arc::default());
    let b = Node::new(2, over(Transport::Tcp), Shelf::with(&[&object]));
    let tunnel = a.open(&b).await.expect("open");
    let began = Instant::now();
    bulk(&tunnel, 1, all(&object));
    assert!(a.answer(1).await.bytes() == object.bytes);
    assert!(began.elapsed().as_secs_f64() > 0.3, "{:?}", began.elapsed());
}

#[tokio::test]
async fn holdings_are_told_as_differences() {
    let home = Home::Layer(Digest::of(b"layer"));
    let object = Object::new(noise(1, 10)).id;
    let (mut a, mut b, there) = pair(Transport::Quic, Arc::default()).await;
    let back = b.up().await;
    let (mut journal, mut ledger) = (Journal::new(1), Ledger::default());
    there.tell(ledger.subscribe(home).expect("room")).expect("room");
    let (home, since) = b
        .until(|event| match event.kind {
            EventKind::News(Message::Subscribe { home, since, on: true }) => Some((home, since)),
            _ => None,
        })
        .await;
    let since = since.map(|(epoch, number)| Mark { epoch, number });
    for have in journal.answer(home, since, false, Vec::new).expect("room") {
        back.tell(Message::Have(have)).expect("room");
    }
    let reached = journal.latest(&home).expect("open");
    let blocks: BlockSet = std::iter::once(3..9).collect();
    journal.record(&home, object, Holding::Add(blocks.clone()));
    for have in journal.news(home, reached, true).expect("known") {
        back.tell(Message::Have(have)).expect("room");
    }
    let layers = vec![LayerNews::nothing(Digest::of(b"layer"))];
    back.tell(Message::Layers { full: true, number: 0, layers }).expect("room");
    let mut told = Vec::new();
    loop {
        match a.next().await.kind {
            EventKind::News(Message::Have(have)) => {
                told.push(ledger.apply(have, |_| Some(10)).expect("in order"));
            }
            EventKind::News(Message::Layers { .. }) => break,
            _ => {}
        }
    }
    assert!(told[0].last && told[0].changes.is_empty() && !told[0].root);
    assert_eq!(told[1].changes, [(object, Holding::Add(blocks))]);
    assert!(told[1].root);
    assert!(back.tell(Message::Close(Refusal::Unneeded)).is_err());
}
