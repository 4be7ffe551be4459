//! Every message comes back, and no bytes do harm.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::types::{BLOCK_MAX, BlockHash, PeerId};
use crate::wire::control::{ASKED_MAX, HOLDERS_MAX, Holder, OTHERS_MAX, SignedClaim};
use crate::wire::keep::{Challenge, HELD_MAX, Keep, PROMISES_MAX, Reply};
use crate::wire::request::{Class, Encoding, Extent, Item, Place};
use crate::wire::{Features, Limits, PROOFS_MAX, RUN_MAX, Zone, fuzz_frames, fuzz_message};

fn digest() -> impl Strategy<Value = Digest> {
    any::<[u8; 32]>().prop_map(Digest::from_bytes)
}

fn object() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 32]>().prop_map(ObjectId::from_bytes)
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![Just(Stage::Out), Just(Stage::Waits), Just(Stage::Leads), Just(Stage::Done)]
}

fn home() -> impl Strategy<Value = Home> {
    prop_oneof![digest().prop_map(Home::Layer), object().prop_map(Home::Object)]
}

fn blocks() -> impl Strategy<Value = BlockSet> {
    vec((0u32..1 << 20, 1u32..1000), 0..40)
        .prop_map(|runs| runs.into_iter().map(|(start, len)| start..start + len).collect())
}

fn holding() -> impl Strategy<Value = Holding> {
    prop_oneof![
        Just(Holding::All),
        Just(Holding::Nothing),
        blocks().prop_map(Holding::Add),
        blocks().prop_map(Holding::Remove),
    ]
}

fn refusal() -> impl Strategy<Value = Refusal> {
    any::<u8>().prop_map(Refusal::from_code)
}

fn hello() -> impl Strategy<Value = Hello> {
    let zone = ["[a-zé]{0,20}", "[a-z ]{0,64}", ".{0,10}", ""];
    let limits =
        (any::<u16>(), any::<u32>()).prop_map(|(requests, bytes)| Limits { requests, bytes });
    let proofs = vec(any::<[u8; 32]>(), 0..=PROOFS_MAX);
    (any::<u64>(), proofs, zone, any::<u16>(), limits, "[ -~]{0,64}").prop_map(
        |(features, proofs, [country, isp, state, city], port, limits, agent)| Hello {
            features: Features(features),
            proofs,
            zone: Zone { country, isp, state, city },
            port,
            limits,
            agent,
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let extent =
        prop_oneof![
            (object(), 0u32..1 << 24, 1..=RUN_MAX)
                .prop_map(|(object, first, count)| Extent::Blocks { object, first, count }),
            (object(), 0u32..1 << 24, 0..BLOCK_MAX / 2, 1..=BLOCK_MAX / 2).prop_map(
                |(object, index, offset, len)| Extent::Part { object, index, offset, len }
            ),
            (digest(), 0..u64::MAX / 2, 1..=RUN_MAX)
                .prop_map(|(blob, first, count)| Extent::Items { blob, first, count }),
            digest().prop_map(|blob| Extent::Roots { blob }),
            object().prop_map(|object| Extent::Spec { object }),
            digest().prop_map(|digest| Extent::Document { digest }),
            any::<[u8; 32]>().prop_map(|name| Extent::Image { name: BlockHash::from_bytes(name) }),
        ];
    let class = prop_oneof![Just(Class::Urgent), Just(Class::Bulk), Just(Class::Background)];
    (any::<u64>(), class, any::<bool>(), extent).prop_map(|(id, class, zstd, extent)| Request {
        id,
        class,
        zstd,
        extent,
    })
}

fn head() -> impl Strategy<Value = Head> {
    let item = prop_oneof![Just(Item::Block), Just(Item::Literal), Just(Item::Checkpoint)];
    let place = (any::<[u8; 32]>(), item, any::<u32>(), any::<u64>()).prop_map(
        |(hash, item, object, offset)| Place {
            hash: BlockHash::from_bytes(hash),
            item,
            object,
            offset,
        },
    );
    (any::<u64>(), any::<u64>(), 2..=BLOCK_MAX, any::<bool>(), prop::option::of(place)).prop_map(
        |(request, index, len, zstd, place)| {
            let encoding = if zstd { Encoding::Zstd(len / 2) } else { Encoding::Raw };
            Head { request, index, len, encoding, place }
        },
    )
}

fn have() -> impl Strategy<Value = Have> {
    let objects = vec((object(), holding()), 0..20);
    let from = prop::option::of(0u64..1000);
    (home(), any::<u64>(), from, 0u64..1000, any::<[bool; 2]>(), objects).prop_map(
        |(home, epoch, from, more, [root, last], objects)| Have {
            home,
            epoch,
            from,
            to: from.unwrap_or(0) + more,
            body: HaveBody { root, last, objects },
        },
    )
}

fn layers() -> impl Strategy<Value = Message> {
    let layer = (digest(), any::<u8>()).prop_map(|(blob, bits)| LayerNews::from_bits(blob, bits));
    (any::<bool>(), any::<u64>(), vec(layer, 0..50))
        .prop_map(|(full, number, layers)| Message::Layers { full, number, layers })
}

fn address() -> impl Strategy<Value = std::net::SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(std::net::SocketAddr::from),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(std::net::SocketAddr::from),
    ]
}

fn peer() -> impl Strategy<Value = PeerId> {
    any::<[u8; 32]>().prop_map(PeerId)
}

fn control() -> impl Strategy<Value = Control> {
    let claim = (
        (peer(), any::<u16>(), any::<u64>(), any::<[bool; 2]>()),
        (any::<[[u8; 32]; 2]>(), any::<u32>(), prop::option::of(address())),
    )
        .prop_map(
            |((tracker, score, sequence, [settled, abroad]), ([a, b], age_ms, address))| {
                let mut signature = [0; 64];
                signature[..32].copy_from_slice(&a);
                signature[32..].copy_from_slice(&b);
                let claim = SignedClaim {
                    tracker,
                    score,
                    sequence,
                    settled,
                    signature,
                    age_ms,
                    abroad,
                    address,
                };
                Control::Claim(claim)
            },
        );
    let holder = (peer(), address(), any::<bool>()).prop_map(|(peer, address, whole)| Holder {
        peer,
        address,
        whole,
    });
    prop_oneof![
        claim,
        Just(Control::Prune),
        Just(Control::Again),
        Just(Control::WhoElse),
        vec((peer(), address()), 0..=OTHERS_MAX).prop_map(|nodes| Control::Others { nodes }),
        prop::option::of((peer(), any::<u64>())).prop_map(|known| Control::Graft { known }),
        (any::<u64>(), vec(digest(), 1..=ASKED_MAX))
            .prop_map(|(id, layers)| Control::WhoHas { id, layers }),
        (any::<u64>(), vec(vec(holder, 0..=HOLDERS_MAX), 0..=ASKED_MAX))
            .prop_map(|(id, layers)| Control::Holders { id, layers }),
        (
            any::<bool>(),
            any::<u64>(),
            vec((any::<u64>(), prop::option::of(vec(any::<u64>(), 0..40))), 0..40)
        )
            .prop_map(|(full, number, images)| Control::Images { full, number, images }),
    ]
}

fn keep() -> impl Strategy<Value = Keep> {
    let id = any::<u64>;
    let name = any::<[u8; 32]>;
    let ask = (object(), any::<u32>()).prop_map(|(object, block)| Challenge { object, block });
    let reply =
        prop_oneof![name().prop_map(Reply::Promised), Just(Reply::NotHere), Just(Reply::Unwilling)];
    let signature = (name(), name()).prop_map(|(a, b)| {
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&a);
        signature[32..].copy_from_slice(&b);
        signature
    });
    prop_oneof![
        (id(), vec(object(), 1..=40)).prop_map(|(id, objects)| Keep::WhoHolds { id, objects }),
        (id(), id(), vec(any::<bool>(), 0..=HELD_MAX))
            .prop_map(|(id, capacity, whole)| Keep::Holds { id, capacity, whole }),
        (name(), id(), vec(ask, 1..=PROMISES_MAX))
            .prop_map(|(nonce, capacity, asks)| Keep::AskPromises { nonce, capacity, asks }),
        (name(), any::<u16>(), vec(reply, 0..=PROMISES_MAX), signature).prop_map(
            |(nonce, seconds, answers, signature)| Keep::Promises {
                nonce,
                seconds,
                answers,
                signature
            }
        ),
        (any::<bool>(), vec(object(), 0..40))
            .prop_map(|(all, objects)| Keep::Withdrawn { all, objects }),
        vec(object(), 0..40).prop_map(|objects| Keep::Gone { objects }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    let id = any::<u64>;
    let end = prop_oneof![Just(End::Done), Just(End::Cancelled), Just(End::Failed)];
    let since = prop::option::of((id(), id()));
    prop_oneof![
        hello().prop_map(Message::Hello),
        refusal().prop_map(Message::Refuse),
        refusal().prop_map(Message::Close),
        id().prop_map(Message::Ping),
        id().prop_map(Message::Pong),
        (home(), any::<bool>(), since).prop_map(|(home, on, since)| Message::Subscribe {
            home,
            on,
            since
        }),
        have().prop_map(Message::Have),
        (home(), any::<bool>()).prop_map(|(home, on)| Message::Wants { home, on }),
        (object(), blocks(), any::<bool>()).prop_map(|(object, blocks, on)| Message::Getting {
            object,
            blocks,
            on
        }),
        (object(), any::<u32>()).prop_map(|(object, index)| Message::Ask { object, index }),
        layers(),
        (digest(), stage(), 0u32..1000, 0u32..1000).prop_map(|(blob, stage, start, more)| {
            Message::Passed { blob, stage, pieces: start..start + more }
        }),
        control().prop_map(Message::Control),
        keep().prop_map(Message::Keep),
        request().prop_map(Message::Request),
        id().prop_map(Message::Cancel),
        head().prop_map(Message::Head),
        (id(), id(), any::<u32>()).prop_map(|(request, first, count)| Message::NotHave {
            request,
            first,
            count
        }),
        (id(), any::<u32>()).prop_map(|(request, retry_ms)| Message::Busy { request, retry_ms }),
        (id(), end).prop_map(|(request, end)| Message::End { request, end }),
    ]
}

fn decode(frame: &[u8]) -> Result<Message, WireError> {
    let (head, body) = frame.split_first_chunk::<HEADER>().ok_or(WireError::Truncated)?;
    let header = Header::decode(head)?;
    let kind = header.kind.ok_or(WireError::Truncated)?;
    Message::decode(kind, body.get(..header.length as usize).ok_or(WireError::Truncated)?)
}

proptest! {
    #[test]
    fn every_message_comes_back(message in message()) {
        let frame = message.to_frame();
        prop_assert_eq!(decode(&frame), Ok(message));
        fuzz_frames(&frame);
    }

    #[test]
    fn a_message_cut_short_or_drawn_out_is_refused(message in message(), at in any::<prop::sample::Index>()) {
        let kind = message.kind();
        let mut body = message.to_frame().split_off(HEADER);
        let cut = at.index(body.len().max(1));
        prop_assert!(body.is_empty() || Message::decode(kind, &body[..cut]).is_err());
        body.push(0);
        prop_assert!(Message::decode(kind, &body).is_err());
    }

    #[test]
    fn damaged_messages_do_no_harm(message in message(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut frame = message.to_frame();
        let at = at.index(frame.len());
        frame[at] = byte;
        fuzz_frames(&frame);
    }

    #[test]
    fn no_bytes_do_harm(bytes in vec(any::<u8>(), 0..300)) {
        fuzz_frames(&bytes);
        fuzz_message(&bytes);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let id = [0; 8];
    let bad_class = [&id[..], &[3, 0, 3], &[0; 32]].concat();
    assert!(Message::decode(Kind::Request, &bad_class).is_err());
    let run = |first: u32, count: u32| {
        let tail = [first.to_le_bytes(), count.to_le_bytes()].concat();
        Message::decode(Kind::Request, &[&id[..], &[0, 0, 0], &[0; 32], &tail].concat())
    };
    assert!(run(0, RUN_MAX).is_ok());
    assert!(run(0, 0).is_err() && run(0, RUN_MAX + 1).is_err() && run(u32::MAX, 1).is_err());
    // A bomb: a compressed block that claims to be longer than a block may be.
    let head = |len: u32, wire: u32| {
        let bytes = [&[0; 16][..], &len.to_le_bytes(), &[1], &wire.to_le_bytes(), &[0]].concat();
        Message::decode(Kind::Head, &bytes)
    };
    assert!(head(BLOCK_MAX, 10).is_ok());
    assert!(head(BLOCK_MAX + 1, 10).is_err() && head(10, 10).is_err() && head(10, 0).is_err());
    assert!(Message::decode(Kind::Data, &[0; 64]).is_err());
    // Questions about nothing, and bits beyond the objects that were asked about.
    assert!(Message::decode(Kind::WhoHolds, &[0; 10]).is_err());
    assert!(Message::decode(Kind::AskPromises, &[0; 42]).is_err());
    let holds = |bits: u8| Message::decode(Kind::Holds, &[&[0; 16][..], &[3, 0, bits]].concat());
    assert!(holds(7).is_ok() && holds(8).is_err());
}

#[test]
fn the_longest_messages_about_copies_fit_their_frames() {
    let objects = vec![ObjectId::from_bytes([1; 32]); HELD_MAX];
    let asks = vec![Challenge { object: objects[0], block: 1 }; PROMISES_MAX];
    let answers = vec![Reply::Promised([1; 32]); PROMISES_MAX];
    for keep in [
        Keep::WhoHolds { id: 1, objects: objects.clone() },
        Keep::Holds { id: 1, capacity: 1, whole: vec![true; HELD_MAX] },
        Keep::AskPromises { nonce: [1; 32], capacity: 1, asks },
        Keep::Promises { nonce: [1; 32], seconds: 60, answers, signature: [1; 64] },
        Keep::Withdrawn { all: false, objects: objects.clone() },
        Keep::Gone { objects },
    ] {
        let message = Message::Keep(keep);
        assert_eq!(decode(&message.to_frame()), Ok(message));
    }
}
