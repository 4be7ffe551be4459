//! Daemons that find each other, with nothing but a key or one address.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{lab_images, needs_mounts, run, wait_until};
use crate::world::{Lab, Node, Plan};

/// Whatever is waited for is there long before. How long it takes is said, and stands
/// in `docs/BENCHMARKS.md`: nodes of a LAN find each other within 3 s, and another
/// tracker is there within 5.
const LONG: Duration = Duration::from_secs(60);

/// A key for a swarm of this lab.
pub(crate) fn swarm_key(lab: &Lab, name: &str) -> PathBuf {
    let file = lab.directory().join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_peersync"));
    run(command.arg("swarm-key").arg("new").arg(&file));
    file
}

fn peers(node: &Node) -> Value {
    let text = node.run(&["--json", "peers"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

pub(crate) fn name(node: &Node) -> String {
    peers(node)["node"]["id"].as_str().expect("in a swarm").to_owned()
}

/// Whom a node has tunnels to.
pub(crate) fn known(node: &Node) -> BTreeSet<String> {
    let peers = peers(node);
    let list = peers["peers"].as_array().expect("a list");
    list.iter().map(|peer| peer["id"].as_str().expect("a name").to_owned()).collect()
}

pub(crate) fn start(nodes: &mut [Node], more: &str) {
    thread::scope(|scope| {
        for node in nodes {
            scope.spawn(|| node.start(more));
        }
    });
}

#[test]
fn daemons_with_one_key_find_their_lan_and_nobody_else() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 4));
    let (key, other) = (swarm_key(&lab, "key"), swarm_key(&lab, "other"));
    let config = |key: &PathBuf| format!("[swarm]\nkey_file = {key:?}\n");
    let stranger = config(&other);
    lab.node_mut(1, 4).start(&stranger);
    lab.node_mut(2, 4).start(&stranger);
    let began = Instant::now();
    start(&mut lab.nodes_mut()[..3], &config(&key));
    start(&mut lab.nodes_mut()[4..7], &config(&key));
    let started = began.elapsed();
    let names: Vec<String> = lab.nodes().iter().map(name).collect();
    let all = |lan: usize, but: usize| -> BTreeSet<String> {
        (4 * lan..4 * lan + 3).filter(|n| *n != but).map(|n| names[n].clone()).collect()
    };
    wait_until("each knows its LAN", LONG, || {
        [0, 1]
            .iter()
            .all(|lan| (4 * lan..4 * lan + 3).all(|n| known(&lab.nodes()[n]) == all(*lan, n)))
    });
    eprintln!("found in {:?}, daemons started in {started:?}", began.elapsed());
    let of_first = peers(lab.node(1, 1));
    let list = of_first["peers"].as_array().expect("a list");
    assert!(list.iter().all(|peer| peer["lan"] == true), "{of_first}");
    for lan in [1, 2] {
        assert_eq!(known(lab.node(lan, 4)), BTreeSet::new(), "strangers see nothing");
    }
    // A neighbour that comes back, at its old address and with its old name.
    lab.node_mut(1, 2).kill();
    lab.node_mut(1, 2).start(&config(&key));
    wait_until("it is known again", LONG, || known(lab.node(1, 2)) == all(0, 1));
    fs::remove_file(&key).expect("the key");
}

#[test]
fn a_node_in_two_lans_is_near_in_both_and_is_called_once() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 2));
    let key = swarm_key(&lab, "key");
    let config = format!("[swarm]\nkey_file = {key:?}\n");
    // Its second device, on the other LAN's bridge.
    let (node, switch) = (&lab.node(1, 1).space, &lab.network.lans[1].switch);
    switch.ip(&format!(
        "link add p9 type veth peer name eth1 netns {}\nlink set p9 master br0\nlink set p9 up",
        node.name
    ));
    node.ip("addr add 10.2.0.9/24 brd + dev eth1\nlink set eth1 up");
    start(lab.nodes_mut(), &config);
    let names: Vec<String> = lab.nodes().iter().map(name).collect();
    let others = |but: usize| -> BTreeSet<String> {
        names.iter().enumerate().filter(|(n, _)| *n != but).map(|(_, name)| name.clone()).collect()
    };
    wait_until("it knows both LANs", LONG, || known(lab.node(1, 1)) == others(0));
    let both = peers(lab.node(1, 1));
    for peer in both["peers"].as_array().expect("a list") {
        assert_eq!(peer["lan"], true, "{both}");
        let address = peer["address"].as_str().expect("an address");
        // Near means that the way does not lead over the router.
        let n = names.iter().position(|name| peer["id"] == *name).expect("a node");
        let node = &lab.nodes()[n];
        assert!(address.starts_with(&format!("{}:", node.address())), "{both}");
    }
    for (lan, n) in [(2, 2), (2, 3)] {
        let seen = peers(&lab.nodes()[n]);
        let list = seen["peers"].as_array().expect("a list");
        let of_both = list.iter().find(|peer| peer["id"] == *names[0]).expect("it is known");
        assert_eq!(of_both["lan"], true, "LAN {lan}: {seen}");
    }
    // Whoever is only in the other LAN is not known without it.
    assert!(!known(lab.node(1, 2)).contains(&names[2]));
}

/// Who is tracker in the eyes of a node.
pub(crate) fn tracker(node: &Node) -> Option<String> {
    peers(node)["node"]["tracker"]["id"].as_str().map(str::to_owned)
}

/// The one tracker that all these nodes follow and that is one of them.
pub(crate) fn one_tracker(nodes: &[&Node]) -> Option<usize> {
    let seen: BTreeSet<Option<String>> = nodes.iter().map(|node| tracker(node)).collect();
    let id = seen.first().cloned().flatten().filter(|_| seen.len() == 1)?;
    nodes.iter().position(|node| name(node) == id)
}

/// Two LANs with one key, and nothing else but one address, in the second LAN.
fn across(plan: &Plan) -> (Lab, String, String) {
    let lab = Lab::build(plan);
    let key = swarm_key(&lab, "key");
    let config = format!("[swarm]\nkey_file = {key:?}\n");
    let bridge = format!("{config}peers = [\"{}:7400\"]\n", lab.node(1, 1).address());
    (lab, config, bridge)
}

#[test]
fn two_lans_have_one_tracker_that_leads_to_holders_and_is_replaced_when_it_dies() {
    needs_mounts!();
    let (mut lab, config, bridge) = across(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    let image = lab.registry.push(&layout, "v1", "test/small:v1");
    start(&mut lab.nodes_mut()[..3], &config);
    start(&mut lab.nodes_mut()[3..4], &bridge);
    start(&mut lab.nodes_mut()[4..], &config);
    let nodes: Vec<&Node> = lab.nodes().iter().collect();
    wait_until("one tracker for both LANs", LONG, || one_tracker(&nodes).is_some());

    // A holder that the reader has no tunnel to; only the tracker knows both.
    lab.node(1, 2).run(&["pull", &image]);
    let place = one_tracker(&nodes).expect("as before");
    let announced = |node: &Node| peers(node)["node"]["announced_layers"].as_u64().unwrap_or(0);
    if place != 1 {
        wait_until("the tracker knows", LONG, || announced(nodes[place]) > 0);
    }
    let reader = lab.node(2, 3);
    let holder = name(lab.node(1, 2));
    reader.run(&["pull", &image]);
    assert!(known(reader).contains(&holder), "{}", peers(reader));
    assert!(reader.bytes("remote") > 0, "{}", reader.status());
    let node = &peers(reader)["node"];
    assert!(node["lookups_answered"].as_u64() > Some(0) || place == 5, "{node}");

    // The tracker dies; look-ups go on, and another one is elected.
    let place = one_tracker(&lab.nodes().iter().collect::<Vec<_>>()).expect("one");
    let dead = name(&lab.nodes()[place]);
    lab.nodes_mut()[place].kill();
    let began = Instant::now();
    let alive: Vec<&Node> = lab.nodes().iter().filter(|node| node.runs()).collect();
    let fresh = alive.iter().find(|node| node.bytes("lan") + node.bytes("registry") == 0);
    fresh.expect("a node without the image").run(&["pull", &image]);
    wait_until("another tracker", LONG, || {
        one_tracker(&alive).is_some_and(|place| name(alive[place]) != dead)
    });
    eprintln!("another tracker after {:?}", began.elapsed());
}

#[test]
fn a_cut_line_makes_two_trackers_and_a_mended_one_makes_them_one() {
    needs_mounts!();
    let (mut lab, config, bridge) = across(&Plan::of(2, 2));
    start(&mut lab.nodes_mut()[..2], &config);
    start(&mut lab.nodes_mut()[2..3], &bridge);
    start(&mut lab.nodes_mut()[3..], &config);
    let of = |lan: usize| lab.nodes()[2 * lan..2 * lan + 2].iter().collect::<Vec<_>>();
    let all: Vec<&Node> = lab.nodes().iter().collect();
    wait_until("one tracker", LONG, || one_tracker(&all).is_some());
    lab.network.set_line(2, false);
    wait_until("two trackers", LONG, || {
        matches!((one_tracker(&of(0)), one_tracker(&of(1))), (Some(_), Some(_)))
    });
    lab.network.set_line(2, true);
    // Tunnels through the cut end after 30 s of silence; then they are opened anew.
    wait_until("one tracker again", LONG * 2, || one_tracker(&all).is_some());
}

#[test]
fn with_everything_blocked_the_registry_serves() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(1, 2));
    let key = swarm_key(&lab, "key");
    // Tunnels, the control plane and beacons; each has the other's address.
    for node in lab.nodes() {
        node.space.iptables("-A INPUT -p udp --dport 7400:7402 -j DROP");
        node.space.iptables("-A INPUT -p tcp --dport 7400:7402 -j DROP");
    }
    let layout = lab_images().join("oci");
    let image = lab.registry.push(&layout, "v1", "test/small:v1");
    for (node, other) in [(1, 2), (2, 1)] {
        let other = lab.node(1, other).address();
        let config = format!(
            "[swarm]\nkey_file = {key:?}\npeers = ['{other}:7400']\nbootstrap = ['{other}:7401']\n"
        );
        lab.node_mut(1, node).start(&config);
    }
    for node in lab.nodes() {
        node.run(&["pull", &image]);
        assert!(node.bytes("registry") > 0 && node.bytes("lan") == 0, "{}", node.status());
        assert_eq!(known(node), BTreeSet::new());
    }
}

/// Tells every node the others' hardware addresses. The kernel finds out at most 1024 by
/// itself, for all namespaces of the machine together (`gc_thresh3` of arp(7)): enough for
/// 32 nodes.
fn know_hardware(nodes: &[Node]) {
    let all: Vec<(Ipv4Addr, String)> = (nodes.iter().enumerate())
        .map(|(n, node)| (node.address(), format!("02:00:00:00:{:02x}:{:02x}", n >> 8, n & 0xff)))
        .collect();
    for (node, (own, hardware)) in nodes.iter().zip(&all) {
        let mut batch = format!("link set eth0 address {hardware}\n");
        for (address, hardware) in all.iter().filter(|(address, _)| address != own) {
            batch += &format!("neigh replace {address} lladdr {hardware} dev eth0 nud permanent\n");
        }
        node.space.ip(batch.trim_end());
    }
}

/// What a node with many idle peers costs: `cargo test --release --test lab
/// what_an_idle_node_costs -- --ignored --nocapture`, with NODES for another number.
#[test]
#[ignore = "a measurement: fifty daemons and a minute"]
fn what_an_idle_node_costs() {
    needs_mounts!();
    const WATCHED: Duration = Duration::from_secs(30);
    let nodes = std::env::var("NODES").ok().and_then(|n| n.parse().ok()).unwrap_or(51);
    let mut lab = Lab::build(&Plan::of(1, nodes));
    know_hardware(lab.nodes());
    let key = swarm_key(&lab, "key");
    let config = format!("[swarm]\nkey_file = {key:?}\n");
    for few in lab.nodes_mut().chunks_mut(8) {
        start(few, &config);
    }
    let all = usize::from(nodes) - 1;
    wait_until("all know all", Duration::from_secs(120), || {
        [1, nodes / 2, nodes].iter().all(|n| known(lab.node(1, *n)).len() >= all)
    });
    wait_until("a tracker", LONG, || tracker(lab.node(1, 1)).is_some());
    thread::sleep(WATCHED);
    let tracker = one_tracker(&lab.nodes().iter().collect::<Vec<_>>()).expect("one tracker");
    let mut others = (0..lab.nodes().len()).filter(|n| *n != tracker);
    let watched = [("the tracker", tracker), ("another", others.next_back().expect("some"))];
    let cost = |n: usize| {
        let node = &lab.nodes()[n];
        let proc = PathBuf::from(format!("/proc/{}", node.process().id()));
        let stat = fs::read_to_string(proc.join("stat")).expect("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split(' ').collect();
        let ticks: u64 = [12, 13].iter().map(|n| fields[*n].parse::<u64>().expect("ticks")).sum();
        let status = fs::read_to_string(proc.join("status")).expect("status");
        let rss = status.lines().find(|line| line.starts_with("VmRSS")).expect("VmRSS");
        (ticks, node.space.carried("eth0"), rss.trim_start_matches("VmRSS:").trim().to_owned())
    };
    let before = watched.map(|(_, n)| cost(n));
    thread::sleep(WATCHED);
    let seconds = WATCHED.as_secs_f64();
    for ((name, n), (ticks, carried, _)) in watched.iter().zip(before) {
        let (after, now, rss) = cost(*n);
        let moved = now.since(carried);
        eprintln!(
            "with {all} peers, {name}: {:.2} % of a core, {:.2} kB/s in, {:.2} kB/s out, {rss}",
            (after - ticks) as f64 / seconds,
            moved.received as f64 / seconds / 1e3,
            moved.sent as f64 / seconds / 1e3,
        );
    }
}
