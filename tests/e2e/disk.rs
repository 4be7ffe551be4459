//! Disks that rot, fill up or can't be written to, under a real owner and a real
//! mount: every byte that is read is right, and the checker names what is wrong.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use peersync_fsck::{Kind, Mode, Options, Quiet, Report, check};

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Daemon, Mount, Peersync, is_alive};
use crate::harness::registry::Registry;
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, run, scratch, wait_until};

const FILES: usize = 20;
/// Each an object of its own.
const FILE: usize = 1 << 20;
const ENDS: Duration = Duration::from_secs(30);

/// An image of files that no compression makes smaller, with its index beside it.
struct Lab {
    registry: Registry,
}

impl Lab {
    fn new() -> Self {
        let registry = Registry::start();
        let place = scratch();
        let mut layout = Layout::create(place.path());
        let mut tar = Tar::new();
        for file in 0..FILES {
            tar.file(name(file).as_bytes(), &content(file));
        }
        layout.image("v1", &[tar.finish()], Compression::Gzip);
        registry.push(place.path(), "v1", "test/disk:v1");
        let lab = Self { registry };
        let builder = Peersync::new();
        for what in ["build", "push"] {
            builder.run(&["index", what, &lab.image()]);
        }
        lab
    }

    fn image(&self) -> String {
        format!("{}/test/disk:v1", self.registry.address)
    }
}

fn name(file: usize) -> String {
    format!("file-{file}")
}

fn content(file: usize) -> Vec<u8> {
    let mut bytes = vec![0; FILE];
    blake3::Hasher::new().update(&file.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

#[track_caller]
fn all_is_right(root: &Path) {
    for file in 0..FILES {
        let got = fs::read(root.join(name(file))).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(got == content(file), "{file} is wrong");
    }
}

fn fsck(peersync: &Peersync) -> Report {
    check(&peersync.store(), &Options::default(), &Quiet).expect("fsck runs")
}

fn wait_for_end(peersync: &Peersync) {
    if let Some(owner) = peersync.owner() {
        wait_until("the owner ends", ENDS, || !is_alive(owner));
    }
}

/// Mounts a small file system where the store is to be.
fn small_disk(peersync: &Peersync, size: &str) {
    fs::create_dir(peersync.store()).expect("directory");
    let options = format!("size={size},mode=700");
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &options, "small"]).arg(peersync.store()));
}

/// The data file that has these bytes.
fn data_file(store: &Path, bytes: &[u8]) -> PathBuf {
    let directories = fs::read_dir(store.join("objects")).expect("objects");
    let files = directories.flat_map(|dir| fs::read_dir(dir.expect("entry").path()).expect("dir"));
    let mut paths = files.map(|file| file.expect("entry").path());
    paths.find(|path| fs::read(path).is_ok_and(|found| found == bytes)).expect("the file's object")
}

#[test]
fn a_block_that_rots_is_named_fetched_again_and_counted() {
    needs_mounts!();
    let lab = Lab::new();
    let peersync = Peersync::new();
    let mount = peersync.mount(&lab.image(), &[]);
    all_is_right(&mount.path);
    // What was stored a moment ago a crash may lose: a store in order is none of that.
    mount.umount(&peersync);
    wait_for_end(&peersync);
    let mount = peersync.mount(&lab.image(), &[]);
    let rotten = data_file(&peersync.store(), &content(3));
    let file = File::options().read(true).write(true).open(&rotten).expect("data file");
    file.write_all_at(&[!content(3)[300_000]], 300_000).expect("rot");

    // While somebody uses the store its owner gives the inventory.
    let report = fsck(&peersync);
    assert_eq!((report.mode, report.exit_code()), (Mode::Live, 4), "{}", report.summary());
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Kind::BadBlock]);
    assert_eq!(report.counts[&Kind::BadBlock].found, 1);
    assert!(!report.unchecked.is_empty(), "it says what it could not look at");
    let repair = Options { repair: true, ..Options::default() };
    assert!(check(&peersync.store(), &repair, &Quiet).is_err(), "nothing is repaired meanwhile");

    // The first read after a start finds it too, or the care for the store before:
    // nobody sees it.
    peersync.crash();
    drop(mount);
    let mount = peersync.mount(&lab.image(), &[]);
    all_is_right(&mount.path);
    let status = peersync.status();
    assert_eq!(status["counters"]["blocks_bad_in_store"], 1, "{status}");
    assert!(status["bytes"]["registry"].as_u64() > Some(0), "it was fetched again: {status}");
    let report = fsck(&peersync);
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
    assert!(report.checked.bytes >= (FILES * FILE) as u64);
    mount.umount(&peersync);
    wait_for_end(&peersync);
    let report = fsck(&peersync);
    assert_eq!((report.mode, report.exit_code()), (Mode::Check, 0), "{}", report.summary());
}

#[test]
fn reads_go_on_where_the_disk_is_full() {
    needs_mounts!();
    let lab = Lab::new();
    let peersync = Peersync::new();
    small_disk(&peersync, "12m");
    let mount = peersync.mount(&lab.image(), &["--index", "require"]);
    // More than there is room for, twice.
    all_is_right(&mount.path);
    all_is_right(&mount.path);
    mount.umount(&peersync);
    wait_for_end(&peersync);
    let report = fsck(&peersync);
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
    // Also by one that finds it full.
    let room = fs::write(peersync.store().join("room"), vec![1; 16 << 20]);
    assert!(room.is_err(), "the disk is full");
    let mount = peersync.mount(&lab.image(), &[]);
    all_is_right(&mount.path);
}

#[test]
fn a_store_that_cannot_be_written_is_served() {
    needs_mounts!();
    let lab = Lab::new();
    let peersync = Peersync::new();
    small_disk(&peersync, "64m");
    let mount = Mount::watch(&peersync.mount_point());
    let config = format!(
        "[store]\npath = {:?}\n[mount]\npath = {:?}\n[snapshotter]\nsocket = {:?}\n",
        peersync.store(),
        mount.path,
        peersync.path("containerd.sock"),
    );
    let image = mount.join("images").join(lab.image());
    let daemon = Daemon::start(&peersync, &config, &mount.path);
    all_is_right(&image);
    assert_eq!(daemon.stop(), Some(0));
    drop(lab);
    run(Command::new("mount").args(["-o", "remount,ro"]).arg(peersync.store()));
    let daemon = Daemon::start(&peersync, &config, &mount.path);
    all_is_right(&image);
    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(fsck(&peersync).exit_code(), 0);
}
