//! Any single bit of a populated store is flipped: the checker or the read path
//! reports it, or it provably does not matter. Never a panic, and never a wrong
//! byte; and a repair keeps what the bit did not touch.
//!
//! 150 random bits by default; `PEERSYNC_FLIPS=n` for more.

use std::fs;
use std::path::{Path, PathBuf};

use peersync::store::Store;
use peersync_fsck::Options;

use crate::populated::Populated;
use crate::util::{Rng, copy_dir, open, options, scratch};

pub fn files(dir: &Path) -> Vec<(PathBuf, u64)> {
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

/// A populated store, closed in order.
pub struct Good {
    populated: Populated,
    dir: tempfile::TempDir,
    pub files: Vec<(PathBuf, u64)>,
}

/// What became of a store with a flipped bit.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The checker said something.
    pub found: bool,
    /// Blocks that are not there after the repair, and were.
    pub lost: usize,
    /// Something that is known of layers and images is not, after the repair.
    pub forgot: bool,
}

impl Good {
    pub fn new(populated: Populated) -> Self {
        let dir = scratch();
        let store = open(dir.path());
        populated.fill(&store);
        store.close().unwrap();
        // Never read, and large.
        fs::remove_file(dir.path().join("reserve")).unwrap();
        // Nothing in the database but what is in use.
        let mut db = redb::Database::open(dir.path().join("meta")).unwrap();
        while db.compact().unwrap() {}
        drop(db);
        let report = check(dir.path(), false).unwrap();
        assert!(report.is_clean() && report.notes.is_empty(), "{}", report.summary());
        let files = files(dir.path());
        Self { populated, dir, files }
    }

    pub fn name<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(self.dir.path()).unwrap()
    }

    /// Flips one bit of a copy, and looks at it in every way.
    pub fn flip(&self, path: &Path, bit: u64, what: &str) -> Outcome {
        let name = self.name(path);
        let dir = scratch();
        copy_dir(self.dir.path(), dir.path());
        let path = dir.path().join(name);
        let mut bytes = fs::read(&path).unwrap();
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        fs::write(&path, bytes).unwrap();
        let found = match check(dir.path(), false) {
            Ok(report) => report.exit_code() != 0 || !report.notes.is_empty(),
            Err(_) => true,
        };
        let second = scratch();
        copy_dir(dir.path(), second.path());
        let seen = read(dir.path(), &self.populated);
        if !found {
            seen.unwrap_or_else(|e| panic!("{what}: the checker found nothing, but {e}"));
            return Outcome::default();
        }
        // What was found can be put right, and then nothing wrong is left.
        let mut outcome = Outcome { found, ..Outcome::default() };
        match check(second.path(), true) {
            Ok(report) => {
                assert!(report.exit_code() <= 1, "{what}:\n{}", report.summary());
                let report = check(second.path(), false).unwrap();
                assert_eq!(report.exit_code(), 0, "{what}, repaired:\n{}", report.summary());
                let store = open(second.path());
                self.populated.read(&store, |_, _| outcome.lost += 1);
                assert_eq!(store.stats().bad_blocks, 0, "{what}");
                outcome.forgot = !self.populated.is_known(&store);
            }
            // A format file that now names a newer version.
            Err(e) => assert!(name.ends_with("format"), "{what}: {e}"),
        }
        outcome
    }
}

fn check(dir: &Path, repair: bool) -> Result<peersync_fsck::Report, peersync_fsck::FsckError> {
    let options = Options { jobs: 1, repair };
    peersync_fsck::check(dir, &options, &peersync_fsck::Quiet)
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

/// `PEERSYNC_FLIPS`, if it is a number; `None` for `all`.
pub fn wanted() -> Option<u64> {
    match std::env::var("PEERSYNC_FLIPS") {
        Ok(all) if all == "all" => None,
        Ok(n) => Some(n.parse().unwrap()),
        Err(_) => Some(150),
    }
}

#[test]
fn a_flipped_bit_is_found_or_does_not_matter() {
    let rounds = wanted().unwrap_or(150);
    let good = Good::new(Populated::new());
    let seed = std::env::var("PEERSYNC_SEED").map_or(1, |n| n.parse().unwrap());
    eprintln!("PEERSYNC_SEED={seed}");
    let mut rng = Rng(seed);
    for round in 0..rounds {
        // Half of them in the database; of the rest, small files as often as large
        // ones. What matters is densest there.
        let any = rng.below(good.files.len() as u64) as usize;
        let meta = good.files.iter().position(|(path, _)| path.ends_with("meta")).unwrap();
        let (path, len) = &good.files[if rng.below(2) == 0 { meta } else { any }];
        if *len == 0 {
            continue;
        }
        let bit = rng.below(len * 8);
        let name = good.name(path).display();
        let what = format!("seed {seed}, round {round}: bit {bit} of {name}");
        let outcome = good.flip(path, bit, &what);
        if path.ends_with("meta") && (outcome.lost > 0 || outcome.forgot) {
            eprintln!("{what}: {outcome:?}");
        }
    }
}
