//! The snapshotter against containerd's own: from the pull to the first output,
//! and what it costs to hold snapshots.
//!
//! `cargo bench --bench containerd -- [machine|import|snapshots ...]`, as root, with
//! what `tests/run` installs. `LAB_IMAGES=DIR` uses the images of
//! `tests/lab/images.sh full DIR`; without it they are made (minutes, once).
//! `RUNS=N` repeats each measurement (3); the median counts. Each part prints a
//! table with its targets and whether they are met.

#[path = "../../tests/containerd/api.rs"]
#[allow(dead_code)]
mod api;
#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
#[path = "../../tests/containerd/node.rs"]
#[allow(dead_code)]
mod node;
#[path = "../../tests/containerd/plugin.rs"]
#[allow(dead_code)]
mod plugin;
#[path = "../lazy/report.rs"]
#[allow(dead_code)]
mod report;
#[path = "../../tests/containerd/world.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod world;

mod import;
mod link;
mod snapshots;

/// A part's name and what runs it.
type Part = (&'static str, fn());

const PARTS: &[Part] =
    &[("machine", report::machine), ("import", import::import), ("snapshots", snapshots::hold)];

fn main() {
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !world::can_run_containers() {
        return;
    }
    let known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = asked.iter().find(|name| !known(name)) {
        eprintln!("{unknown}: no such part");
        std::process::exit(2);
    }
    for (name, part) in PARTS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("\n`cargo bench --bench containerd -- {name}`\n");
            part();
        }
    }
}
