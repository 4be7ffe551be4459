//! The store's budget: what goes, what stays, and that all stays readable.

use std::fs;
use std::process::Command;
use std::time::Duration;

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Daemon, Mount, Peersync};
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, run, scratch, wait_until};

const MIB: usize = 1 << 20;
const FILES: usize = 4;
const EVICTED: Duration = Duration::from_secs(60);

fn content(tag: &str, file: usize) -> Vec<u8> {
    let mut bytes = vec![0; MIB];
    let mut hasher = blake3::Hasher::new();
    hasher.update(tag.as_bytes()).update(&[file as u8]);
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn images(tags: &[&str]) -> (tempfile::TempDir, Layout) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    for tag in tags {
        let mut tar = Tar::new();
        for file in 0..FILES {
            tar.file(format!("file{file}").as_bytes(), &content(tag, file));
        }
        layout.image(tag, &[tar.finish()], Compression::Plain);
    }
    (place, layout)
}

fn read_all(mount: &Mount, tag: &str) {
    for file in 0..FILES {
        let read = fs::read(mount.join(&format!("file{file}"))).expect("readable");
        assert!(read == content(tag, file), "file{file} of {tag} differs");
    }
}

fn resident(peersync: &Peersync) -> u64 {
    peersync.status()["store"]["resident_bytes"].as_u64().expect("a number")
}

fn resident_of(peersync: &Peersync, tag: &str) -> u64 {
    let json: serde_json::Value =
        serde_json::from_str(&peersync.run(&["--json", "images"])).expect("JSON");
    let images = json["images"].as_array().expect("images");
    let image = images.iter().find(|image| {
        image["image"].as_str().is_some_and(|name| name.ends_with(&format!(":{tag}")))
    });
    image.expect("known")["resident_bytes"].as_u64().expect("a number")
}

fn start(peersync: &Peersync, store: &str) -> (Mount, Daemon) {
    start_with(peersync, store, &[])
}

fn start_with(peersync: &Peersync, store: &str, environment: &[(&str, &str)]) -> (Mount, Daemon) {
    let point = peersync.mount_point();
    let mount = Mount::watch(&point);
    let config =
        format!("[store]\npath = {:?}\n{store}\n[mount]\npath = {point:?}\n", peersync.store());
    let daemon = Daemon::start_with(peersync, &config, &point, environment);
    (mount, daemon)
}

#[test]
fn a_store_over_its_budget_evicts_and_everything_stays_readable() {
    needs_mounts!();
    let (_place, layout) = images(&["a", "b", "c"]);
    let peersync = Peersync::new();
    let (tree, daemon) = start(&peersync, "max_size = \"7MiB\"\nmin_free = \"0\"");
    let mut mounts = Vec::new();
    for tag in ["a", "b", "c"] {
        let mount = peersync.mount(&layout.reference(tag), &[]);
        if tag == "a" {
            peersync.run(&["pin", &layout.reference(tag)]);
        }
        read_all(&mount, tag);
        mounts.push((mount, tag));
    }
    wait_until("within the budget", EVICTED, || resident(&peersync) <= 7 * MIB as u64);
    assert_eq!(resident_of(&peersync, "a"), (FILES * MIB) as u64, "it is pinned");
    let evicted = peersync.status()["counters"]["evicted_pressure"].as_u64().expect("counted");
    assert!(evicted >= 5 * MIB as u64, "{evicted}");
    // Content comes back, and goes again.
    for (mount, tag) in &mounts {
        read_all(mount, tag);
    }
    wait_until("within the budget", EVICTED, || resident(&peersync) <= 7 * MIB as u64);
    // Without the pin it is as good as the others.
    peersync.run(&["unpin", &layout.reference("a")]);
    assert_eq!(peersync.run(&["pin"]), "");
    drop(mounts);
    drop(tree);
    daemon.stop();
    let report = peersync_fsck::check(
        &peersync.store(),
        &peersync_fsck::Options::default(),
        &peersync_fsck::Quiet,
    );
    let report = report.expect("checked");
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
}

#[test]
fn gc_says_why_each_thing_goes_or_stays() {
    needs_mounts!();
    let (_place, layout) = images(&["a", "b"]);
    let peersync = Peersync::new();
    let (_tree, _daemon) = start(&peersync, "max_size = \"1GiB\"\nmin_free = \"0\"");
    let a = peersync.mount(&layout.reference("a"), &[]);
    let _b = peersync.mount(&layout.reference("b"), &[]);
    let open = fs::File::open(a.join("file0")).expect("open");
    let said = peersync.run(&["gc", "--dry-run"]);
    for why in ["there is room", "could not be mounted without", "an open file uses it"] {
        assert!(said.contains(why), "{why} in\n{said}");
    }
    let held = resident(&peersync);
    let report: serde_json::Value =
        serde_json::from_str(&peersync.run(&["--json", "gc"])).expect("JSON");
    assert_eq!(report["freed_bytes"], 0, "{report}");
    assert_eq!(report["used_bytes"], held, "{report}");
    assert_eq!(resident(&peersync), held);
    drop(open);
    let said = peersync.fails(&["pin", "example.com/no/such:image"]);
    assert!(said.contains("not known here"), "{said}");
}

#[test]
fn a_budget_of_nothing_keeps_nothing_and_all_is_readable() {
    needs_mounts!();
    let (_place, layout) = images(&["a"]);
    let peersync = Peersync::new();
    let (_tree, _daemon) = start(&peersync, "max_size = 0\nmin_free = \"0\"");
    let mount = peersync.mount(&layout.reference("a"), &[]);
    read_all(&mount, "a");
    wait_until("evicted", EVICTED, || resident_of(&peersync, "a") == 0);
    read_all(&mount, "a");
}

#[test]
fn a_budget_smaller_than_one_object_keeps_what_fits_and_all_is_readable() {
    needs_mounts!();
    let (_place, layout) = images(&["a"]);
    let peersync = Peersync::new();
    let (_tree, _daemon) = start(&peersync, "max_size = \"300KiB\"\nmin_free = \"0\"");
    let mount = peersync.mount(&layout.reference("a"), &[]);
    for _ in 0..2 {
        read_all(&mount, "a");
        wait_until("within the budget", EVICTED, || resident(&peersync) <= 300 << 10);
    }
}

#[test]
fn a_budget_larger_than_the_disk_is_the_disk() {
    needs_mounts!();
    let (_place, layout) = images(&["a"]);
    let peersync = Peersync::new();
    let (_tree, _daemon) = start(&peersync, "max_size = \"1024TiB\"\nmin_free = \"0\"");
    let mount = peersync.mount(&layout.reference("a"), &[]);
    read_all(&mount, "a");
    let report: serde_json::Value =
        serde_json::from_str(&peersync.run(&["--json", "gc"])).expect("JSON");
    let budget = report["budget_bytes"].as_u64().expect("a number");
    let disk = nix::sys::statvfs::statvfs(&peersync.store()).expect("the disk");
    assert!(budget <= disk.blocks() * disk.fragment_size(), "{report}");
    assert_eq!(report["freed_bytes"], 0, "{report}");
    assert!(resident_of(&peersync, "a") == (FILES * MIB) as u64);
}

#[test]
fn a_disk_that_others_fill_gets_back_what_it_is_to_keep_free() {
    needs_mounts!();
    const FREE: u64 = 24 << 20;
    let (_place, layout) = images(&["a", "b", "c"]);
    let peersync = Peersync::new();
    fs::create_dir(peersync.store()).expect("directory");
    let options = "size=64m,mode=700";
    run(Command::new("mount").args(["-t", "tmpfs", "-o", options, "small"]).arg(peersync.store()));
    let (_tree, _daemon) =
        start_with(&peersync, "", &[("PEERSYNC_STORE_MIN_FREE", &FREE.to_string())]);
    let mounts = ["a", "b", "c"].map(|tag| (peersync.mount(&layout.reference(tag), &[]), tag));
    mounts.iter().for_each(|(mount, tag)| read_all(mount, tag));
    let held = resident(&peersync);
    assert!(held >= (3 * FILES * MIB) as u64, "there is room for all");
    let free = || {
        let disk = nix::sys::statvfs::statvfs(&peersync.store()).expect("the disk");
        disk.blocks_available() * disk.fragment_size()
    };
    // Another program takes what is free, and a quarter of what has to be.
    let room = (free() - FREE / 4 * 3) as usize;
    fs::write(peersync.store().join("room"), vec![1; room]).expect("there is room");
    wait_until("room was made", EVICTED, || free() >= FREE);
    assert!(resident(&peersync) < held);
    mounts.iter().for_each(|(mount, tag)| read_all(mount, tag));
    wait_until("room was made again", EVICTED, || free() >= FREE);
}
