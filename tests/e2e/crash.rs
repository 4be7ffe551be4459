//! The owner of a store is killed, again and again, while its mount is read and
//! an index is built: whatever was claimed is there, and every byte read is right.
//!
//! Ten rounds; `CRASH_ROUNDS=300 cargo test --test e2e crash` is the long
//! run. `CRASH_SEED` repeats one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use peersync_fsck::{Options, Quiet, check};

use crate::harness::layout::{Compression, Layout};
use crate::harness::line::Line;
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::tar::Tar;
use crate::harness::{COMMAND_LIMIT, Running, needs_mounts, scratch};

const FILES: u64 = 40;
/// Large enough for an object of its own, and not a multiple of a block.
const FILE: usize = (1 << 20) + 4_321;
const READERS: u64 = 3;
/// Small files, which share blocks, for each large one.
const SMALL: u64 = 20;
/// After so many rounds everything is there: the next begin with an empty store.
const ROUNDS_OF_A_STORE: u64 = 10;

#[test]
fn an_owner_that_is_killed_loses_nothing_it_claimed() {
    needs_mounts!();
    let rounds = number("CRASH_ROUNDS").unwrap_or(10);
    let seed = number("CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("CRASH_SEED={seed}");
    let lab = Lab::new(seed);
    let mut chance = Chance(seed | 1);
    let mut node = Peersync::new();
    for round in 0..rounds {
        if round > 0 && round % ROUNDS_OF_A_STORE == 0 {
            lab.all_is_right(&node);
            node = Peersync::new();
        }
        lab.round(&node, round, &mut chance);
    }
    lab.all_is_right(&node);
}

/// What does not change from round to round: an image whose index is beside it.
struct Lab {
    seed: u64,
    line: Line,
    image: String,
    _registry: Registry,
}

impl Lab {
    fn new(seed: u64) -> Self {
        let registry = Registry::start();
        let place = scratch();
        let mut layout = Layout::create(place.path());
        let mut tar = Tar::new();
        for file in 0..FILES {
            tar.file(large(file).as_bytes(), &content(seed, &large(file), FILE));
            for n in 0..SMALL {
                let name = small(file, n);
                tar.file(name.as_bytes(), &content(seed, &name, small_size(n)));
            }
        }
        layout.image("v1", &[tar.finish()], Compression::Gzip);
        registry.push(place.path(), "v1", "test/crash:v1");
        let builder = Peersync::new();
        let image = format!("{}/test/crash:v1", registry.address);
        builder.run(&["index", "build", &image]);
        builder.run(&["index", "push", &image]);
        let line = Line::to(registry.address);
        let image = format!("{}/test/crash:v1", line.address);
        Self { seed, line, image, _registry: registry }
    }

    /// Mounts, reads and pulls until the owner is killed, and looks at the store.
    fn round(&self, node: &Peersync, round: u64, chance: &mut Chance) {
        let place = scratch();
        let mut other = Layout::create(place.path());
        let mut tar = Tar::new();
        tar.file(b"other", &content(self.seed ^ round, "other", 6 << 20));
        other.image("v1", &[tar.finish()], Compression::Gzip);

        let mount = node.mount(&self.image, &[]);
        let root = mount.path.clone();
        let pull = Running::start(&mut node.command(&["pull", &other.reference("v1")]));
        let killed = AtomicBool::new(false);
        let until = self.line.down() + chance.below(3 << 20);
        thread::scope(|scope| {
            for reader in 0..READERS {
                let mut chance = Chance(chance.next() ^ (reader + 1));
                let (killed, root) = (&killed, &root);
                scope.spawn(move || {
                    while !killed.load(Ordering::SeqCst) {
                        let name = self.any_file(&mut chance);
                        match self.read(root, &name, &mut chance) {
                            Ok(()) => {}
                            Err(_) if killed.load(Ordering::SeqCst) => {}
                            Err(error) => panic!("round {round}: {name}: {error}"),
                        }
                    }
                });
            }
            // Less comes where little is left to fetch.
            self.line.reaches(until, Duration::from_secs(2));
            killed.store(true, Ordering::SeqCst);
            node.crash();
            // Whoever still waits for an answer gets an error.
            drop(mount);
        });
        // It may have come to its end before.
        let _ = pull.finish(COMMAND_LIMIT);
        is_clean(node, &format!("after round {round}"));
    }

    fn any_file(&self, chance: &mut Chance) -> String {
        let file = chance.below(FILES);
        if chance.below(2) == 0 { large(file) } else { small(file, chance.below(SMALL)) }
    }

    /// Reads a stretch of a file and compares it.
    fn read(&self, root: &Path, name: &str, chance: &mut Chance) -> io::Result<()> {
        let wanted = content(self.seed, name, size_of(name));
        let from = chance.below(wanted.len() as u64) as usize;
        let len = (1 + chance.below(300_000) as usize).min(wanted.len() - from);
        let mut got = vec![0; len];
        let file = File::open(root.join(name))?;
        file.read_exact_at(&mut got, from as u64)?;
        assert!(got == wanted[from..from + len], "{name}: wrong bytes in {from}+{len}");
        Ok(())
    }

    fn all_is_right(&self, node: &Peersync) {
        let mount = node.mount(&self.image, &[]);
        for file in 0..FILES {
            for name in (0..SMALL).map(|n| small(file, n)).chain([large(file)]) {
                let got = std::fs::read(mount.join(&name)).expect("file");
                assert!(got == content(self.seed, &name, size_of(&name)), "{name} is wrong");
            }
        }
        // Nothing is claimed that is not so, also where nobody has read.
        node.run(&["pull", &self.image]);
        node.crash();
        drop(mount);
        is_clean(node, "in the end");
    }
}

fn is_clean(node: &Peersync, when: &str) {
    let report = check(&node.store(), &Options::default(), &Quiet).expect("fsck runs");
    assert_eq!(report.exit_code(), 0, "{when}: {}", report.summary());
}

fn large(file: u64) -> String {
    format!("large-{file}")
}

fn small(file: u64, n: u64) -> String {
    format!("small-{file}-{n}")
}

fn small_size(n: u64) -> usize {
    997 * (n as usize + 1)
}

fn size_of(name: &str) -> usize {
    match name.rsplit_once('-') {
        Some((prefix, n)) if prefix.starts_with("small-") => small_size(n.parse().expect("number")),
        _ => FILE,
    }
}

/// What a file holds; nothing in it repeats.
fn content(seed: u64, name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes()).update(name.as_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// xorshift64: the same rounds from the same seed.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|value| value.parse().expect("a number"))
}
