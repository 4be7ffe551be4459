//! Daemons that find each other, with nothing but a key or one address.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::harness::{needs_mounts, run, wait_until};
use crate::world::{Lab, Node, Plan};

/// What the issue grants the nodes of a LAN to find each other.
const SOON: Duration = Duration::from_secs(3);

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

fn start(nodes: &mut [Node], more: &str) {
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
    wait_until("each knows its LAN", SOON, || {
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
    wait_until("it is known again", SOON, || known(lab.node(1, 2)) == all(0, 1));
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
    wait_until("it knows both LANs", SOON, || known(lab.node(1, 1)) == others(0));
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
