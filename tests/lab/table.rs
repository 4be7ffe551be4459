//! Nodes beyond the LAN, found by the table, without multicast and without the
//! registry.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::harness::{lab_images, needs_mounts, wait_until};
use crate::together::{known, name, swarm_key};
use crate::world::{Lab, Line, Node, Plan, address};

/// A peer is found, or a file is seen to have changed, in this time.
const SOON: Duration = Duration::from_secs(30);

/// Only these lines make a swarm across LANs.
fn config(key: &Path, more: &str) -> String {
    let revoked = key.with_extension("revoked");
    format!(
        "[swarm]\nkey_file = {key:?}\nrevoked_file = {revoked:?}\nbootstrap = ['{}:7401']\n{more}",
        address(1, 1)
    )
}

/// Each node has its own key file, so that they change one after the other.
fn own_key(node: &Node, keys: &[&PathBuf]) -> PathBuf {
    let file = node.path("swarm.key");
    let lines: String = keys.iter().map(|key| fs::read_to_string(key).expect("key")).collect();
    let new = node.path("swarm.key.new");
    fs::write(&new, lines).expect("keys");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(&new, mode).expect("mode");
    fs::rename(&new, &file).expect("keys");
    let revoked = file.with_extension("revoked");
    if !revoked.exists() {
        fs::write(revoked, "").expect("list");
    }
    file
}

/// Multicast leaves no node.
fn block_multicast(lab: &Lab) {
    for node in lab.nodes() {
        node.space.iptables("-A OUTPUT -d 224.0.0.0/4 -j DROP");
    }
}

fn image(lab: &Lab) -> String {
    lab.registry.push(&lab_images().join("oci"), "v1", "test/small:v1")
}

#[test]
fn one_address_is_enough_across_lans_with_multicast_and_registry_gone() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    block_multicast(&lab);
    let (key, other) = (swarm_key(&lab, "key"), swarm_key(&lab, "other"));
    let image = image(&lab);
    thread::scope(|scope| {
        for node in lab.nodes_mut() {
            let stranger = (node.lan, node.number) == (2, 3);
            let key = own_key(node, &[if stranger { &other } else { &key }]);
            scope.spawn(move || node.start(&config(&key, "")));
        }
    });
    lab.node(1, 2).run(&["pull", &image]);
    let names: Vec<String> = lab.nodes().iter().map(name).collect();
    let members: BTreeSet<String> = names[..5].iter().cloned().collect();
    wait_until("everybody knows somebody", SOON, || {
        lab.nodes()[..5].iter().all(|node| !known(node).is_empty())
    });
    lab.registry.stop();
    // Of the other LAN, and of its own, and with nobody's address but the first's.
    for (lan, number) in [(2, 2), (1, 3)] {
        let node = lab.node(lan, number);
        node.run(&["pull", &image]);
        assert_eq!(node.bytes("registry"), 0);
        let (near, far) = (node.bytes("lan"), node.bytes("remote"));
        assert!(if lan == 1 { near } else { far } > 0, "{near} near, {far} far");
        assert!(known(node).is_subset(&members));
    }
    let stranger = lab.node(2, 3);
    assert_eq!(known(stranger), BTreeSet::new());
    assert!(!stranger.command(&["pull", &image]).status().expect("runs").success());
    assert!(lab.nodes()[..5].iter().all(|node| !known(node).contains(&names[5])));
}

#[test]
fn keys_change_under_load_and_a_revoked_node_is_out() {
    needs_mounts!();
    let mut plan = Plan::of(2, 2);
    plan.line = Line::mbit(30);
    let mut lab = Lab::build(&plan);
    block_multicast(&lab);
    let keys = [swarm_key(&lab, "old"), swarm_key(&lab, "new")];
    let [old, new] = [&keys[0], &keys[1]];
    let image = image(&lab);
    for node in lab.nodes_mut() {
        let key = own_key(node, &[old]);
        node.start(&config(&key, ""));
    }
    let holder = lab.node(1, 2);
    holder.run(&["pull", &image]);
    let reader = lab.node(2, 1);
    wait_until("they know each other", SOON, || !known(reader).is_empty());
    let changes = |node: &Node| {
        let log = fs::read_to_string(node.path("log")).expect("log");
        log.matches("revoked nodes have changed").count()
    };
    thread::scope(|scope| {
        let pull = scope.spawn(|| reader.run(&["pull", &image]));
        // The late node does not hear of the new key.
        for (step, keys) in [&[old, new][..], &[new, old], &[new]].into_iter().enumerate() {
            for node in [lab.node(1, 1), holder, reader] {
                own_key(node, keys);
            }
            wait_until("they have seen it", SOON, || {
                [lab.node(1, 1), holder, reader].iter().all(|node| changes(node) > step)
            });
        }
        pull.join().expect("the pull ends well");
    });
    // With the new key alone everything goes on: who starts now is found.
    let names: Vec<String> = lab.nodes().iter().map(name).collect();
    lab.node_mut(2, 2).stop();
    let config = config(&lab.node(2, 2).path("swarm.key"), "");
    lab.node_mut(2, 2).start(&config);
    let late = lab.node(2, 2);
    assert_eq!(known(late), BTreeSet::new(), "only the old key");
    own_key(late, &[new]);
    wait_until("it is in again", SOON, || !known(late).is_empty());

    let list = |text: &str| {
        for node in &lab.nodes()[..3] {
            let file = node.path("swarm.revoked");
            fs::write(file, text).expect("list");
        }
    };
    list(&format!("{} # lost\n", names[3]));
    wait_until("the revoked node is out", SOON, || {
        known(late).is_empty()
            && lab.nodes()[..3].iter().all(|node| !known(node).contains(&names[3]))
    });
}
