//! What planning costs: `cargo bench --bench schedule`.
//!
//! `PreSchedule` sorts and places pieces over 256 tunnels; the target is 100,000
//! pieces in under 10 ms, and a cost that is near-linear in pieces. Below it the
//! whole scheduler with its tables full: one plan, and one urgent want.

use std::ops::Range;
use std::time::{Duration, Instant};

use peersync::fetch::schedule::{
    BlockKey, Class, Event, Holding, Home, Near, PlanGroups, PlanLane, PlanPiece, Scheduler, Scope,
    Settings, Wanted, pre_schedule,
};
use peersync::types::{Digest, ObjectId, PeerId};

const TUNNELS: u32 = 256;
const ROUNDS: usize = 21;

fn main() {
    println!("PreSchedule, {TUNNELS} tunnels, median of {ROUNDS}:");
    type Make = fn(u32) -> Case;
    let cases: [(&str, Make); 3] = [
        ("every peer has everything", everybody),
        ("64 groups of holders", groups),
        ("4 random holders each", scattered),
    ];
    for (name, make) in cases {
        let mut last = None;
        for pieces in [1_000, 10_000, 100_000] {
            let time = median(|| plan(make(pieces)));
            let growth = last.map_or(String::new(), |before: Duration| {
                format!(", {:.1} times that for ten times the pieces", ratio(time, before))
            });
            println!("  {name}, {pieces:>6} pieces: {time:>9.2?}{growth}");
            last = Some(time);
        }
    }
    println!("Scheduler, 65,536 wanted blocks, 64 peers with 4 tunnels each:");
    let (plan, urgent) = full_tables();
    println!("  one plan of everything:        {plan:.2?}");
    println!("  one urgent want, until asked:  {urgent:.2?}");
}

const PEERS: u16 = (TUNNELS / 4) as u16;

type Case = (Vec<PlanLane>, Vec<Range<u32>>, PlanGroups, Vec<PlanPiece>);

/// Peers with four tunnels each.
fn peers() -> Vec<Range<u32>> {
    (0..TUNNELS / 4).map(|n| n * 4..n * 4 + 4).collect()
}

fn lanes(rng: &mut fastrand::Rng) -> Vec<PlanLane> {
    let lane = |_| PlanLane { ready: rng.f64(), speed: 1e6 + rng.f64() * 1e8 };
    (0..TUNNELS).map(lane).collect()
}

fn pieces(count: u32, rng: &mut fastrand::Rng, group: impl Fn(u32) -> u32) -> Vec<PlanPiece> {
    let piece = |name| PlanPiece {
        order: u128::from(rng.u64(..)) << 32 | u128::from(name),
        // Mostly full blocks, now and then the tail of an object.
        bytes: if rng.u8(..16) == 0 { rng.u32(1..256 << 10) } else { 256 << 10 },
        group: group(name),
        name,
    };
    (0..count).map(piece).collect()
}

fn everybody(count: u32) -> Case {
    let mut rng = fastrand::Rng::with_seed(1);
    let lanes = lanes(&mut rng);
    let mut all = PlanGroups::default();
    all.push(0..PEERS);
    (lanes, peers(), all, pieces(count, &mut rng, |_| 0))
}

fn groups(count: u32) -> Case {
    let mut rng = fastrand::Rng::with_seed(2);
    let lanes = lanes(&mut rng);
    let mut groups = PlanGroups::default();
    for _ in 0..64 {
        groups.push((0..PEERS).filter(|_| rng.bool()));
    }
    (lanes, peers(), groups, pieces(count, &mut rng, |name| name % 64))
}

fn scattered(count: u32) -> Case {
    let mut rng = fastrand::Rng::with_seed(3);
    let lanes = lanes(&mut rng);
    let mut groups = PlanGroups::default();
    for _ in 0..count {
        groups.push((0..4).map(|_| rng.u16(..PEERS)));
    }
    (lanes, peers(), groups, pieces(count, &mut rng, |name| name))
}

fn plan((mut lanes, peers, groups, mut pieces): Case) -> Duration {
    let start = Instant::now();
    let placed = pre_schedule(&mut lanes, &peers, &groups, &mut pieces);
    let time = start.elapsed();
    assert_eq!(placed.len(), pieces.len());
    time
}

/// One plan, and one urgent want, with full tables.
fn full_tables() -> (Duration, Duration) {
    let home = Home::Layer(Digest::of(b"layer"));
    let object = |n: u32| ObjectId::from_bytes([n as u8; 32]);
    let mut node = Scheduler::new(PeerId([255; 32]), Settings::default(), 1);
    let mut now = Duration::ZERO;
    node.apply(now, Event::Home { home, size: 16 << 30, whole: false, registry: false });
    for n in 0..64u8 {
        let peer = PeerId([n; 32]);
        node.apply(now, Event::PeerUp { peer, near: Near::Remote });
        for tunnel in 0..4 {
            let rtt = Duration::from_millis(10);
            node.apply(now, Event::TunnelUp { peer, tunnel: u64::from(n) * 4 + tunnel, rtt });
        }
        // Half of them have everything, half every second object.
        for o in (0..64).filter(|o| n % 2 == 0 || o % 2 == 0) {
            node.apply(now, Event::Have { peer, object: object(o), holding: Holding::All });
        }
    }
    let wanted = |o: u32, index| {
        let key = BlockKey { object: object(o), index };
        Wanted { key, len: 256 << 10, place: None }
    };
    let blocks: Vec<Wanted> = (0..64).flat_map(|o| (0..1024).map(move |i| wanted(o, i))).collect();
    let class = Class::Completion;
    node.apply(now, Event::Want { interest: 1, home, class, deadline: None, blocks });
    for (scope, found) in [(Scope::Lan, false), (Scope::Swarm, true)] {
        node.apply(now, Event::LookedUp { home, scope, found });
    }
    let (mut plans, mut urgents) = (Vec::new(), Vec::new());
    // Within the time after which silent peers are given up.
    for round in 0..6 {
        now += Duration::from_millis(140);
        let start = Instant::now();
        node.apply(now, Event::Tick);
        plans.push(start.elapsed());
        let blocks = vec![wanted(round as u32, 1023 - round as u32)];
        let start = Instant::now();
        let class = Class::Urgent;
        node.apply(now, Event::Want { interest: 2 + round, home, class, deadline: None, blocks });
        urgents.push(start.elapsed());
    }
    plans.sort_unstable();
    urgents.sort_unstable();
    (plans[3], urgents[3])
}

fn median(mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| run()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

fn ratio(a: Duration, b: Duration) -> f64 {
    a.as_secs_f64() / b.as_secs_f64()
}
