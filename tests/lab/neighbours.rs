//! Nodes that are learned from neighbours, and remembered: with no multicast, and
//! with no table.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use crate::harness::{needs_mounts, wait_until};
use crate::together::{known, name, swarm_key};
use crate::world::{Lab, Node, Plan, address};

/// Whatever is waited for is there long before.
const LONG: Duration = Duration::from_secs(60);

/// Whom a node remembers, of the network that it is in.
fn remembered(node: &Node) -> BTreeSet<String> {
    let text = node.run(&["--json", "swarm", "remembered"]);
    let said: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let nodes = said["nodes"].as_array().expect("a list").iter();
    let here = nodes.filter(|node| node["network"] == said["here"]);
    here.map(|node| node["id"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn nodes_are_learned_from_a_neighbour_and_remembered_until_they_are_forgotten() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(3, 1));
    // Only tunnels are left: no table, and multicast does not leave a LAN anyway.
    for node in lab.nodes() {
        node.space.iptables("-A INPUT -p tcp --dport 7401 -j DROP");
    }
    let key = swarm_key(&lab, "key");
    let alone = format!("[swarm]\nkey_file = {key:?}\n");
    let with_first = format!("{alone}peers = ['{}:7400']\n", address(1, 1));
    lab.node_mut(1, 1).start(&alone);
    lab.node_mut(3, 1).start(&with_first);
    let [first, third] = [(1, 1), (3, 1)].map(|(lan, n)| name(lab.node(lan, n)));
    wait_until("the third knows the first", LONG, || known(lab.node(3, 1)).contains(&first));
    // The second has the first's address, and hears of the third from it.
    lab.node_mut(2, 1).start(&with_first);
    wait_until("the second knows the third", LONG, || known(lab.node(2, 1)).contains(&third));
    let both = BTreeSet::from([first, third.clone()]);
    wait_until("it remembers both", LONG, || remembered(lab.node(2, 1)) == both);

    // It comes back with nobody's address, when the first is gone.
    lab.node_mut(2, 1).stop();
    lab.node_mut(1, 1).stop();
    lab.node_mut(2, 1).start(&alone);
    wait_until("the second finds the third again", LONG, || {
        known(lab.node(2, 1)) == BTreeSet::from([third.clone()])
    });
    // What is forgotten stays so.
    lab.node_mut(3, 1).stop();
    wait_until("nobody is there", LONG, || known(lab.node(2, 1)).is_empty());
    let second = lab.node(2, 1);
    let forgotten = second.run(&["swarm", "reset", "--here"]);
    assert!(forgotten.contains("2 nodes of 1 networks"), "{forgotten}");
    assert_eq!(remembered(second), BTreeSet::new());
    lab.node_mut(2, 1).stop();
    lab.node_mut(2, 1).start(&alone);
    assert_eq!(remembered(lab.node(2, 1)), BTreeSet::new());
}
