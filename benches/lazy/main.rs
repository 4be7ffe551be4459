//! What laziness buys: bytes and times against whole downloads, memory, and
//! complete files against the disk.
//!
//! `cargo bench --bench lazy -- [machine|line|import|first|pass|idle|local ...]`,
//! as root, with what `tests/run` installs. `LAB_IMAGES=DIR` uses the images of
//! `tests/lab/images.sh full DIR`; without it they are made (minutes, once).
//! Each part prints a table for `docs/BENCHMARKS.md`.

#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;

mod disk;
mod report;
mod thin;
mod wire;

/// A part's name and what runs it.
type Part = (&'static str, fn());

const PARTS: &[Part] = &[
    ("machine", report::machine),
    ("line", thin::itself),
    ("import", wire::import),
    ("first", wire::first_bytes),
    ("pass", wire::first_pass),
    ("idle", disk::idle),
    ("local", disk::complete_files),
];

fn main() {
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !harness::can_mount() {
        return;
    }
    let known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = asked.iter().find(|name| !known(name)) {
        eprintln!("{unknown}: no such part");
        std::process::exit(2);
    }
    for (name, part) in PARTS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("\n`cargo bench --bench lazy -- {name}`\n");
            part();
        }
    }
}
