//! The scheduler alone, told anything in any order: nonsense too.

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use peersync::fetch::schedule::{
    Action, BlockKey, Class, Event, Holding, Home, Near, Place, Refusal, Scheduler, Scope,
    Settings, Wanted,
};
use peersync::types::{Digest, ObjectId, PeerId};

const CLASSES: [Class; 5] =
    [Class::Urgent, Class::Sequential, Class::AccessPoint, Class::Completion, Class::Background];

fn home(n: u8) -> Home {
    match n % 4 {
        3 => Home::Object(ObjectId::from_bytes([n; 32])),
        n => Home::Layer(Digest::of(&[n])),
    }
}

fn peer(n: u8) -> PeerId {
    PeerId([n % 7; 32])
}

fn object(n: u8) -> ObjectId {
    ObjectId::from_bytes([n % 3; 32])
}

/// An event from random numbers: `requests` are those that are open.
fn event(rng: &mut fastrand::Rng, requests: &[u64]) -> Event {
    let some = |rng: &mut fastrand::Rng| match requests.len() {
        0 => rng.u64(0..5),
        n => requests[rng.usize(..n)],
    };
    let key =
        |rng: &mut fastrand::Rng| BlockKey { object: object(rng.u8(..)), index: rng.u32(..40) };
    // Now and then a range that ends before it starts, or is absurdly long.
    let range = |rng: &mut fastrand::Rng| match rng.u8(..12) {
        0 => 30..rng.u32(..),
        1 => rng.u32(..40)..u32::MAX,
        _ => {
            let start = rng.u32(..40);
            start..start + rng.u32(..20)
        }
    };
    match rng.u8(..40) {
        0 => Event::Home {
            home: home(rng.u8(..)),
            size: rng.u64(..),
            whole: rng.u8(..8) == 0,
            registry: rng.bool(),
        },
        1..8 => {
            let mut wanted = || {
                let key = key(rng);
                let start = u64::from(key.index) << 18;
                let odd = rng.u8(..16) == 0;
                let place = Place {
                    stream: start..if odd { u64::MAX } else { start + (1 << 18) },
                    entry: if odd { rng.u64(..) } else { start >> 20 << 20 },
                    next: if odd { rng.u64(..) } else { start + (1 << 20) },
                    run: key.index / 16,
                };
                let place = (rng.u8(..5) > 0).then_some(place);
                Wanted { key, len: if odd { rng.u32(..) } else { 1 << 18 }, place }
            };
            let blocks = (0..8).map(|_| wanted()).collect();
            Event::Want {
                interest: rng.u64(..20),
                class: CLASSES[rng.usize(..5)],
                deadline: (rng.u8(..4) == 0).then(|| Duration::from_millis(rng.u64(..100_000))),
                blocks,
                home: home(rng.u8(..)),
            }
        }
        8 if rng.u8(..4) == 0 => Event::Retry { home: home(rng.u8(..)) },
        8 => Event::Withdraw { interest: rng.u64(..20) },
        9 => Event::Found { key: key(rng) },
        10 => Event::PeerUp {
            peer: peer(rng.u8(..)),
            near: if rng.bool() { Near::Lan } else { Near::Remote },
        },
        11 if rng.bool() => Event::PeerGone { peer: peer(rng.u8(..)) },
        11..14 => Event::TunnelUp {
            peer: peer(rng.u8(..)),
            tunnel: rng.u64(..12),
            rtt: Duration::from_micros(rng.u64(..1_000_000)),
        },
        14 => Event::TunnelDown { tunnel: rng.u64(..12) },
        15 => Event::TunnelFailed { peer: peer(rng.u8(..)) },
        16 => Event::Rtt { tunnel: rng.u64(..12), rtt: Duration::from_micros(rng.u64(..)) },
        17..22 => Event::Have {
            peer: peer(rng.u8(..)),
            object: object(rng.u8(..)),
            holding: match rng.u8(..6) {
                0 => Holding::All,
                1 => Holding::Nothing,
                2 => Holding::Remove(range(rng)),
                _ => Holding::Add(range(rng)),
            },
        },
        22 | 23 => Event::Getting {
            peer: peer(rng.u8(..)),
            home: home(rng.u8(..)),
            run: rng.u32(..4),
            object: object(rng.u8(..)),
            blocks: range(rng),
            on: rng.bool(),
        },
        24 => Event::Wants { peer: peer(rng.u8(..)), home: home(rng.u8(..)), on: rng.bool() },
        25 => Event::Asked { peer: peer(rng.u8(..)), key: key(rng) },
        26 => Event::Scored { peer: peer(rng.u8(..)), pop: f64::NAN, custom: -1.0 },
        27 | 28 => Event::LookedUp {
            home: home(rng.u8(..)),
            scope: if rng.bool() { Scope::Lan } else { Scope::Swarm },
            found: rng.bool(),
        },
        29..32 => Event::Progress { request: some(rng), bytes: rng.u64(..1 << 19) },
        32..35 => Event::Block { request: some(rng), key: key(rng), len: 1 << 18 },
        35 => Event::Wrong { request: some(rng), key: key(rng) },
        36 => Event::Done { request: some(rng) },
        37 => Event::Refused {
            request: some(rng),
            why: match rng.u8(..4) {
                0 => Refusal::Busy(Duration::from_millis(rng.u64(..1 << 40))),
                1 => Refusal::NotHave,
                2 => Refusal::Broken,
                _ => Refusal::Never,
            },
        },
        _ => Event::Tick,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    /// The invariants hold after each event, whatever it is, and whichever way
    /// the clock jumps; told the same again, the scheduler does the same; left
    /// alone, it ends every want.
    #[test]
    fn anything_may_happen(seed in any::<u64>()) {
        let run = || {
            let mut rng = fastrand::Rng::with_seed(seed);
            let settings = Settings { wants_max: 64, ..Settings::default() };
            let mut node = Scheduler::new(PeerId([9; 32]), settings, seed);
            let mut open: BTreeSet<u64> = BTreeSet::new();
            let mut all = Vec::new();
            let mut now = Duration::ZERO;
            for _ in 0..400 {
                match rng.u8(..20) {
                    0 => now = now.saturating_sub(Duration::from_millis(rng.u64(..5_000))),
                    1 => now += Duration::from_millis(rng.u64(..5_000)),
                    _ => now += Duration::from_micros(rng.u64(..20_000)),
                }
                let requests: Vec<u64> = open.iter().copied().collect();
                let event = event(&mut rng, &requests);
                let actions = node.apply(now, event.clone());
                node.check().unwrap_or_else(|why| panic!("seed {seed}: {event:?}: {why}"));
                for action in &actions {
                    match action {
                        Action::Fetch { request, .. } | Action::Run { request, .. } => {
                            assert!(open.insert(*request), "a request's name is used once");
                        }
                        Action::Cancel { request } => {
                            open.remove(request);
                        }
                        _ => {}
                    }
                }
                assert!(node.len() <= 128, "bounded");
                all.push(actions);
            }
            let mut now = now + Duration::from_secs(6);
            for _ in 0..100_000 {
                let Some(wake) = node.next_wake().filter(|_| !node.is_empty()) else { break };
                now = now.max(wake);
                all.push(node.apply(now, Event::Tick));
            }
            assert!(node.is_empty(), "seed {seed}: {}", node.describe());
            all
        };
        prop_assert_eq!(run(), run());
    }
}
