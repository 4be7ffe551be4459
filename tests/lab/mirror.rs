//! Clients that pull whole images through the mirrors of two LANs.

use std::path::Path;
use std::thread;
use std::time::Duration;

use crate::harness::layout::layer_bytes;
use crate::harness::peersync::Peersync;
use crate::harness::{lab_images, needs_mounts, run, wait_until};
use crate::world::{Lab, Node, Plan, REGISTRY};

/// Starts all nodes as one swarm, with their mirrors in front of the registry.
fn start(lab: &mut Lab) {
    let key = lab.directory().join("swarm.key");
    Peersync::new().run(&["swarm-key".as_ref(), "new".as_ref(), key.as_os_str()]);
    let peers: Vec<String> =
        lab.nodes().iter().map(|node| format!("{}:7400", node.address())).collect();
    for node in lab.nodes_mut() {
        let more = format!(
            "[mirror]\nupstream = \"{REGISTRY}\"\n[swarm]\nkey_file = {key:?}\npeers = {peers:?}\n\
             lan = [\"10.{}.0.0/24\"]\n",
            node.lan
        );
        node.start(&more);
    }
    let others = lab.nodes().len() - 1;
    for node in lab.nodes() {
        wait_until("the nodes know each other", Duration::from_secs(60), || {
            let text = node.run(&["--json", "peers"]);
            let peers: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            peers["peers"].as_array().is_some_and(|peers| peers.len() >= others)
        });
    }
}

/// As Docker and Podman do: the whole image, through the mirror on loopback.
fn pull(node: &Node, name: &str, to: &Path) {
    let mut command = node.space.command("skopeo");
    command.args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"]);
    let to = format!("oci:{}:v1", to.display());
    run(command.args([format!("docker://127.0.0.1:5005/{name}"), to]));
}

/// By hand: `cargo test --test lab mirror -- --ignored`.
#[test]
#[ignore = "not measured yet"]
fn an_image_that_all_pull_at_once_comes_into_each_lan_once() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    lab.registry.push(&layout, "v1", "test/small:v1");
    start(&mut lab);
    let size = layer_bytes(&layout, "v1");
    let before = [1, 2].map(|lan| lab.network.line(lan));
    thread::scope(|scope| {
        for node in lab.nodes() {
            scope.spawn(move || pull(node, "test/small:v1", &node.path("pulled")));
        }
    });
    for (lan, before) in (1..).zip(before) {
        let came = lab.network.line(lan).since(before).received;
        let share = came as f64 / size as f64;
        assert!(share < 1.25, "LAN {lan}: {came} bytes came in for {size}: {share:.2}");
    }
    for node in lab.nodes() {
        assert_eq!(layer_bytes(&node.path("pulled"), "v1"), size);
    }
}
