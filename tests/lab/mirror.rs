//! Clients that pull whole images through the mirrors of two LANs.

use std::path::Path;
use std::thread;

use crate::harness::layout::layer_bytes;
use crate::harness::{lab_images, needs_mounts, run};
use crate::world::{Lab, Node, Plan, REGISTRY};

/// As Docker and Podman do: the whole image, through the mirror on loopback.
fn pull(node: &Node, name: &str, to: &Path) {
    let mut command = node.space.command("skopeo");
    command.args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"]);
    let to = format!("oci:{}:v1", to.display());
    run(command.args([format!("docker://127.0.0.1:5005/{name}"), to]));
}

/// What came into each LAN while `work` went on, in images.
fn shares(lab: &Lab, size: u64, work: impl FnOnce()) -> [f64; 2] {
    let before = [1, 2].map(|lan| lab.network.line(lan));
    work();
    [1, 2].map(|lan| {
        let came = lab.network.line(lan).since(before[usize::from(lan) - 1]).received;
        println!("LAN {lan}: {came} bytes came in, the image has {size}");
        came as f64 / size as f64
    })
}

/// The nodes pull at once.
fn pull_at_once(nodes: &[&Node], layout: &Path, to: &str) {
    thread::scope(|scope| {
        for node in nodes {
            scope.spawn(|| pull(node, "test/small:v1", &node.path(to)));
        }
    });
    for node in nodes {
        assert_eq!(layer_bytes(&node.path(to), "v1"), layer_bytes(layout, "v1"));
    }
}

#[test]
fn an_image_that_all_pull_at_once_comes_into_each_lan_once() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan::of(2, 3));
    let layout = lab_images().join("oci");
    lab.registry.push(&layout, "v1", "test/small:v1");
    lab.join_all(&format!("[mirror]\nupstream = \"{REGISTRY}\"\n"));
    let size = layer_bytes(&layout, "v1");
    // All but one of the second LAN, at once. Headers, manifests and what nodes tell
    // each other are in the count; twice is what two clients of their own would be.
    let first: Vec<&Node> = lab.nodes().iter().take(5).collect();
    for share in shares(&lab, size, || pull_at_once(&first, &layout, "first")) {
        assert!((1.0..1.25).contains(&share), "{share:.3} images came in");
    }
    // One that comes late has it of its neighbours, also where the registry is gone;
    // and so is whoever asks again.
    lab.registry.stop();
    let all: Vec<&Node> = lab.nodes().iter().collect();
    for (to, nodes) in [("late", &all[5..]), ("again", &all[..])] {
        for share in shares(&lab, size, || pull_at_once(nodes, &layout, to)) {
            assert!(share < 0.1, "{share:.3} images came in");
        }
    }
}
