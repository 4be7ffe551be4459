//! Any single bit of a populated store is flipped: the checker or the read path
//! reports it, or it provably does not matter. Never a panic, and never a wrong
//! byte.
//!
//! 150 random bits by default; `PEERSYNC_FLIPS=n` for more.

use std::fs;
use std::path::{Path, PathBuf};

use peersync::store::Store;
use peersync_fsck::Options;

use crate::populated::Populated;
use crate::util::{Rng, copy_dir, open, options, scratch};

fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else {
                let len = fs::metadata(&path).unwrap().len();
                out.push((path, len));
            }
        }
    }
    out.sort();
    out
}

/// What reading everything shows: whether anything was missed.
fn read(dir: &Path, populated: &Populated) -> Result<(), String> {
    let store = Store::open(dir, options()).map_err(|e| format!("open: {e}"))?;
    let mut lacks = Vec::new();
    // Compares every byte that it gets.
    populated.read(&store, |id, index| lacks.push((*id, index)));
    let known = populated.is_known(&store);
    let closed = store.close();
    if let Some((id, index)) = lacks.first() {
        return Err(format!("{id} {index} and {} more are not there", lacks.len() - 1));
    }
    if !known {
        return Err("records are not there".into());
    }
    closed.map_err(|e| format!("close: {e}"))
}

#[test]
fn a_flipped_bit_is_found_or_does_not_matter() {
    let populated = Populated::new();
    let good = scratch();
    let store = open(good.path());
    populated.fill(&store);
    store.close().unwrap();
    let options = Options::default();
    let report = peersync_fsck::check(good.path(), &options, &peersync_fsck::Quiet).unwrap();
    assert!(report.is_clean() && report.notes.is_empty(), "{}", report.summary());
    let files = files(good.path());
    let rounds = std::env::var("PEERSYNC_FLIPS").map_or(150, |n| n.parse().unwrap());
    let seed = std::env::var("PEERSYNC_SEED").map_or(1, |n| n.parse().unwrap());
    let mut rng = Rng(seed);
    for round in 0..rounds {
        // Small files as often as large ones: what matters is densest there.
        let (path, len) = &files[rng.below(files.len() as u64) as usize];
        if *len == 0 {
            continue;
        }
        let bit = rng.below(len * 8);
        let name = path.strip_prefix(good.path()).unwrap();
        let what = format!("seed {seed}, round {round}: bit {bit} of {}", name.display());
        let dir = scratch();
        copy_dir(good.path(), dir.path());
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        fs::write(&path, bytes).unwrap();
        let options = Options { jobs: 1, ..Options::default() };
        let found = match peersync_fsck::check(dir.path(), &options, &peersync_fsck::Quiet) {
            Ok(report) => report.exit_code() != 0 || !report.notes.is_empty(),
            Err(_) => true,
        };
        let second = scratch();
        copy_dir(dir.path(), second.path());
        let seen = read(dir.path(), &populated);
        if !found {
            seen.unwrap_or_else(|e| panic!("{what}: the checker found nothing, but {e}"));
            continue;
        }
        // What was found can be put right, and then nothing wrong is left.
        let options = Options { repair: true, jobs: 1 };
        match peersync_fsck::check(second.path(), &options, &peersync_fsck::Quiet) {
            Ok(report) => {
                assert!(report.exit_code() <= 1, "{what}:\n{}", report.summary());
                let store = open(second.path());
                populated.read(&store, |_, _| {});
                assert_eq!(store.stats().bad_blocks, 0, "{what}");
            }
            // A format file that now names a newer version.
            Err(e) => assert!(name.ends_with("format"), "{what}: {e}"),
        }
    }
}
