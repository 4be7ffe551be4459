//! Six nodes in two LANs of three read the same image (the paper's Fig. 8): 1
//! Gbit/s inside, 100 Mbit/s between each LAN and the rest, where the registry is.
//!
//! `cargo bench --bench lan -- [small|numpy|full] [TIMES]`, as root; says of every
//! target whether it is met, and fails if one is not. Bytes are what the kernel
//! counts on the line into each LAN, headers and indexes included.

#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
#[path = "../../tests/lab/world/mod.rs"]
#[allow(dead_code, unused_imports)]
mod world;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use harness::layout::layer_bytes;
use world::{Lab, Plan};

/// The line into a LAN, in bytes per second.
const RATE: f64 = 100e6 / 8.0;
/// Of the image's bytes: what the line into a LAN may carry.
const BYTES: f64 = 1.05;
/// Of the image's bytes over the line's rate: until all six have all of it.
const TIME: f64 = 1.2;
/// Plain pulls take so much longer, at least.
const FASTER: f64 = 2.5;

/// What one way took.
struct Took {
    time: Duration,
    /// Into each LAN.
    lines: Vec<u64>,
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let kind = arguments.next().unwrap_or_else(|| "numpy".into());
    let times: usize = arguments.next().map_or(3, |n| n.parse().expect("a number"));
    assert!(harness::can_mount(), "needs root and /dev/fuse");
    let layout = harness::made_images(&kind).join("oci");
    let tag = if kind == "full" { "a" } else { "v1" };
    let image = layer_bytes(&layout, tag);
    let best = Duration::from_secs_f64(image as f64 / RATE);
    println!("{kind}: {image} bytes in {} s at the line's rate", seconds(best));
    let mut met = true;
    let mut check = |what: &str, is: f64, target: f64, most: bool| {
        let good = if most { is <= target } else { is >= target };
        met &= good;
        let sign = if most { "<=" } else { ">=" };
        println!(
            "  {what}: {is:.3}, target {sign} {target}: {}",
            if good { "met" } else { "MISSED" }
        );
    };
    for round in 1..=times {
        println!("round {round}");
        let plain = plain(&layout, tag);
        println!("  plain pulls: {} s", seconds(plain.time));
        for indexed in [true, false] {
            let took = at_once(&layout, tag, indexed);
            let what = if indexed { "indexed" } else { "first sight" };
            println!("  {what}, all at once: {} s", seconds(took.time));
            // What has no index is held to the bytes; its time is told.
            for (line, lan) in took.lines.iter().zip(1..) {
                let share = *line as f64 / image as f64;
                check(&format!("{what}, line into LAN {lan} over image"), share, BYTES, true);
            }
            let (over, times) = (
                took.time.as_secs_f64() / best.as_secs_f64(),
                plain.time.as_secs_f64() / took.time.as_secs_f64(),
            );
            check(&format!("{what}, time over size/rate"), over, TIME, true);
            check(&format!("{what}, plain pulls take times as long"), times, FASTER, false);
        }
        for (node, took) in one_by_one(&layout, tag) {
            let lines: Vec<String> =
                took.lines.iter().map(|l| format!("{:.3}", *l as f64 / image as f64)).collect();
            println!("  one after another, {node}: {} s, into LANs {lines:?}", seconds(took.time));
        }
    }
    assert!(met, "a target was missed");
}

fn lines(lab: &Lab) -> Vec<u64> {
    (1..=2).map(|lan| lab.network.line(lan).received).collect()
}

fn since(lab: &Lab, start: Instant, before: &[u64]) -> Took {
    let lines = lines(lab).iter().zip(before).map(|(now, before)| now - before).collect();
    Took { time: start.elapsed(), lines }
}

/// Six times the registry's layers into a directory, by skopeo.
fn plain(layout: &Path, tag: &str) -> Took {
    let lab = Lab::build(&Plan::of(2, 3));
    let image = lab.registry.push(layout, tag, "bench/image:v1");
    let (start, before) = (Instant::now(), lines(&lab));
    together(lab.nodes().iter().map(|node| {
        let mut command = node.space.command("skopeo");
        command.args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"]);
        command.arg(format!("docker://{image}"));
        command.arg(format!("dir:{}", node.path("plain").display()));
        command
    }));
    since(&lab, start, &before)
}

fn at_once(layout: &Path, tag: &str, indexed: bool) -> Took {
    let mut lab = Lab::build(&Plan::of(2, 3));
    let image = pushed(&lab, layout, tag, indexed);
    lab.join_all("");
    let (start, before) = (Instant::now(), lines(&lab));
    together(lab.nodes().iter().map(|node| node.command(&["pull", &image])));
    since(&lab, start, &before)
}

fn one_by_one(layout: &Path, tag: &str) -> Vec<(String, Took)> {
    let mut lab = Lab::build(&Plan::of(2, 3));
    let image = pushed(&lab, layout, tag, true);
    lab.join_all("");
    let took = lab.nodes().iter().map(|node| {
        let (start, before) = (Instant::now(), lines(&lab));
        node.run(&["pull", &image]);
        (format!("{}-{}", node.lan, node.number), since(&lab, start, &before))
    });
    took.collect()
}

fn pushed(lab: &Lab, layout: &Path, tag: &str, indexed: bool) -> String {
    if indexed {
        lab.registry.push_indexed(layout, tag, "bench/image:v1")
    } else {
        lab.registry.push(layout, tag, "bench/image:v1")
    }
}

fn together(commands: impl Iterator<Item = Command>) {
    let running: Vec<_> =
        commands.map(|mut command| thread::spawn(move || harness::run(&mut command))).collect();
    running.into_iter().for_each(|one| {
        one.join().expect("a node");
    });
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}
