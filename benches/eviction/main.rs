//! What a plan costs, what a reader notices, and what it is good for: `cargo bench
//! --bench eviction -- [plan|reads|site ...]`.
//!
//! The last part is deterministic: the same figures on every machine, however busy.
//! The second needs root and `/dev/fuse`.

#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
mod reads;
mod site;

use std::hint::black_box;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use peersync::eviction::{Budget, Item, Ledger, Member, PeerSet, View, Weights, plan};
use peersync::types::{ObjectId, PeerId};
use site::{Outcome, Policy, Setting, catalogue, disk, run};

const OBJECTS: usize = 1_000_000;
const ROUNDS: usize = 11;

fn main() {
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let wanted = |part: &str| asked.is_empty() || asked.iter().any(|asked| asked == part);
    if wanted("plan") {
        planning();
    }
    if wanted("reads") {
        reads::reads_while_evicting();
    }
    if wanted("site") {
        experiments();
    }
}

fn experiments() {
    // The first is the one of docs/BENCHMARKS.md in full; the others say how far
    // it carries.
    let base = Setting {
        nodes: 10,
        images: 200,
        zipf: 0.9,
        ratio: 4.0,
        every: 1800.0,
        days: 28.0,
        seed: 4,
    };
    experiment(base, &(1..=10).collect::<Vec<_>>());
    for other in [
        Setting { ratio: 2.0, ..base },
        Setting { ratio: 8.0, ..base },
        Setting { zipf: 0.6, ..base },
        Setting { zipf: 1.2, ..base },
        Setting { every: 300.0, ..base },
        Setting { seed: 5, ..base },
    ] {
        experiment(other, &[10]);
    }
}

fn planning() {
    println!(
        "A plan for {OBJECTS} objects, half with copies in the LAN, median of {ROUNDS}, processor time:"
    );
    let name = |n: u64| *blake3::hash(&n.to_le_bytes()).as_bytes();
    let member = |n| Member { id: PeerId(name(n)), capacity: 1 << 40 };
    let peers: Vec<Member> = (1..=10).map(member).collect();
    let mut rng = fastrand::Rng::with_seed(1);
    let items: Vec<Item> = (0..OBJECTS as u64)
        .map(|n| {
            let holders = if rng.bool() { rng.usize(..5) } else { 0 };
            let holders: Vec<_> = (0..holders).map(|_| rng.usize(..10)).collect();
            Item {
                bytes: rng.u64(4096..1 << 22),
                whole: rng.u8(..4) > 0,
                idle: rng.u32(..100_000),
                uses: rng.f32() * 20.0,
                pinned: rng.u8(..50) == 0,
                in_use: rng.u8(..50) == 0,
                lan: PeerSet::of(&holders),
                ..Item::new(ObjectId::from_bytes(name(n)))
            }
        })
        .collect();
    let occupied: u64 = items.iter().map(|item| item.bytes).sum();
    let mut ledger = Ledger::new(Duration::ZERO, true);
    for item in items.iter().filter(|item| !item.lan.is_empty()).take(20_000) {
        ledger.ask(item.id, peers[0].id, Duration::ZERO);
    }
    let view = View { me: member(0), peers: &peers, ledger: &ledger, weights: Weights::default() };
    for (case, share) in [("nothing to do", 120), ("a tenth over", 90), ("half of it goes", 50)] {
        let budget = Budget::with_hard(occupied / 100 * share);
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                let start = cpu();
                let now = Duration::from_secs(1);
                black_box(plan(black_box(&items), occupied, &view, &budget, now));
                cpu() - start
            })
            .collect();
        times.sort();
        let (median, best) = (times[ROUNDS / 2], times[0]);
        println!("  {case:<16} {median:>8.1?}  (best {best:.1?})");
    }
}

/// What this thread has had of a processor: others that run don't count.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).expect("this thread's usage");
    let micros = usage.user_time() + usage.system_time();
    Duration::from_micros(micros.num_microseconds().try_into().expect("not negative"))
}

fn experiment(setting: Setting, nodes: &[usize]) {
    let gib = |bytes: f64| bytes / (1u64 << 30) as f64;
    println!(
        "\n{} images of {:.1} GiB together, disks of {:.1} GiB, Zipf {}, a request of each node \
         every {} s in the mean, {} days, seed {}",
        setting.images,
        gib(catalogue(&setting).iter().sum::<u64>() as f64),
        gib(disk(&setting) as f64),
        setting.zipf,
        setting.every,
        setting.days,
        setting.seed,
    );
    println!(
        "| nodes | space, GiB | LRU's | ratio | seconds | LRU's | from outside, GiB | LRU's | ratio |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    for &nodes in nodes {
        let setting = Setting { nodes, ..setting };
        let [ours, lru]: [Outcome; 2] = [Policy::Ours, Policy::Lru].map(|p| run(&setting, p));
        println!(
            "| {nodes} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} | {:.2} |",
            gib(ours.space),
            gib(lru.space),
            ours.space / lru.space,
            ours.seconds,
            lru.seconds,
            gib(ours.outside as f64),
            gib(lru.outside as f64),
            ours.outside as f64 / lru.outside as f64,
        );
    }
}
