//! What two hundred snapshots cost the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::api::Snapshots;
use crate::harness::registry::Registry;
use crate::harness::run;
use crate::import::full_images;
use crate::node::Node;
use crate::plugin::Plugin;
use crate::report::{Table, memory, mib};
use crate::world::{OURS, World};

const SNAPSHOTS: usize = 200;
const CALLS: usize = 2000;
const MEMORY_MAX: u64 = 50 << 20;
const TIME_MAX: Duration = Duration::from_millis(1);

pub(crate) fn hold() {
    let registry = Registry::start();
    registry.push(&full_images(), "a", "bench/a:v1");
    let world = World::of(|_, socket| Node::new(socket, ""));
    let image = format!("{}/bench/a:v1", registry.address);
    let mut rpull = Command::new("ctr-remote");
    rpull.arg("--address").arg(world.socket()).args(["--namespace", "test", "images", "rpull"]);
    run(rpull.args(["--plain-http", "--snapshotter", OURS, &image]));

    let node = &world.plugin;
    let before = memory(node.pid(), "VmRSS");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (stat, usage) = runtime.expect("runtime").block_on(measure(node));
    let grown = memory(node.pid(), "VmRSS").saturating_sub(before);

    let table_of = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let tree = node.tree().display().to_string();
    let point = |line: &&str| line.split(' ').nth(4).is_some_and(|point| point == tree);
    let mounts = table_of.lines().filter(point).count();

    let met = |is: bool| if is { "met".to_owned() } else { "**missed**".to_owned() };
    let mut table = Table::new(&["200 snapshots on a lazy image", "wanted", "measured", ""]);
    for (what, times) in [("Stat", stat), ("Usage", usage)] {
        let (median, high) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        let shown = format!("{median:.0?}, 99 of 100 in {high:.0?}");
        table.row([what.into(), "< 1 ms".into(), shown, met(high < TIME_MAX)]);
    }
    table.row(["memory".into(), "< 50 MiB".into(), mib(grown), met(grown < MEMORY_MAX)]);
    table.row(["FUSE mounts".into(), "1".into(), mounts.to_string(), met(mounts == 1)]);
    table.print();
}

/// Makes the snapshots; sorted times of `Stat` and of `Usage`, over committed
/// layers and containers in turn.
async fn measure(node: &Node) -> (Vec<Duration>, Vec<Duration>) {
    let mut s = Snapshots::connect(node.socket(), "").await;
    let layers = s.list(&["kind==committed"]).await.expect("list");
    let is_parent = |name: &str| layers.iter().any(|layer| layer.parent == name);
    let top = layers.iter().find(|layer| !is_parent(&layer.name)).expect("a chain");
    let mut names: Vec<String> = layers.iter().map(|layer| layer.name.clone()).collect();
    let labels: BTreeMap<String, String> =
        BTreeMap::from([("containerd.io/gc.root".into(), "now".into())]);
    for i in 0..SNAPSHOTS {
        let name = format!("container{i}");
        s.prepare(&name, &top.name, labels.clone()).await.expect("prepare");
        names.push(name);
    }
    let (mut stat, mut usage) = (Vec::new(), Vec::new());
    for name in names.iter().cycle().take(CALLS) {
        let begun = Instant::now();
        s.stat(name).await.expect("stat");
        stat.push(begun.elapsed());
        let begun = Instant::now();
        s.usage(name).await.expect("usage");
        usage.push(begun.elapsed());
    }
    stat.sort();
    usage.sort();
    (stat, usage)
}
