//! The lab to walk around in.

use std::time::Duration;

use crate::harness::{lab_images, needs_mounts};
use crate::world::{Lab, Line, Plan, REGISTRY};

/// Builds the lab, starts every node, tells how to enter it, and waits for
/// Ctrl-C. In the environment: `LAB_LANS`, `LAB_NODES` (in each LAN), `LAB_MBIT`,
/// `LAB_DELAY_MS` and `LAB_LOSS` (in percent) of the line into each LAN,
/// `LAB_IMAGES` (an OCI layout with tags a and b), `LAB_CONFIG` (more sections
/// for every node's configuration).
#[test]
#[ignore = "stays until Ctrl-C"]
fn by_hand() {
    needs_mounts!();
    let number = |name: &str, default: f64| {
        let said = std::env::var(name).ok();
        said.map_or(default, |said| said.parse().unwrap_or_else(|e| panic!("{name}={said}: {e}")))
    };
    let mut plan = Plan::of(number("LAB_LANS", 2.0) as u8, number("LAB_NODES", 3.0) as u8);
    plan.line = Line {
        delay: Duration::from_secs_f64(number("LAB_DELAY_MS", 0.0) / 1000.0),
        loss: number("LAB_LOSS", 0.0) / 100.0,
        ..Line::mbit(number("LAB_MBIT", 100.0) as u64)
    };
    let mut lab = Lab::build(&plan);
    let config = std::env::var("LAB_CONFIG").unwrap_or_default();
    for node in lab.nodes_mut() {
        node.start(&config);
    }
    let images = match std::env::var_os("LAB_IMAGES") {
        Some(place) => ["a", "b"].map(|tag| lab.registry.push(place.as_ref(), tag, tag)).to_vec(),
        None => vec![lab.registry.push(&lab_images().join("oci"), "v1", "small:v1")],
    };
    explain(&lab, &images);
    // Ctrl-C ends this process, and then the lab's guard cleans up.
    loop {
        std::thread::park();
    }
}

fn explain(lab: &Lab, images: &[String]) {
    println!("\nregistry {REGISTRY}: {}", images.join(" "));
    println!("router   nsenter --net={} bash", lab.network.router.path().display());
    for node in lab.nodes() {
        let (name, net) = (&node.space.name, node.space.path());
        println!("\n{name} at {}, daemon {}", node.address(), node.process().id());
        println!("  enter  nsenter --net={} bash", net.display());
        println!("  look   ls {}", node.image(&images[0]).display());
        println!("  ask    {}", shown(&node.command(&["status"])));
        println!("  log    tail -f {}", node.path("log").display());
    }
    println!("\nCtrl-C ends everything.");
}

/// A command as a shell reads it.
fn shown(command: &std::process::Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
