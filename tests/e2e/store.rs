//! One owner of a store, many commands on it.

use std::fs;
use std::time::Duration;

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Mount, Peersync, is_alive};
use crate::harness::tar::Tar;
use crate::harness::tree::Tree;
use crate::harness::{COMMAND_LIMIT, Running, lab_images, needs_mounts, scratch, wait_until};
use crate::trees::{root_time, unpack};

/// A layout with one small image under each tag.
fn images(tags: &[&str]) -> (tempfile::TempDir, Layout) {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    for tag in tags {
        let mut tar = Tar::new();
        tar.file(b"name", tag.as_bytes()).file(b"large", &tag.repeat(500_000).into_bytes());
        layout.image(tag, &[tar.finish()], Compression::Gzip);
    }
    (place, layout)
}

#[test]
fn two_mounts_and_a_pull_at_once() {
    needs_mounts!();
    let real = format!("oci:{}:v1", lab_images().join("oci").display());
    let (_place, layout) = images(&["one", "two"]);
    let peersync = Peersync::new();
    let (a, b) = (peersync.mount_point(), peersync.mount_point());
    let guards = [Mount::watch(&a), Mount::watch(&b)];
    let start = |arguments: &[&str]| Running::start(&mut peersync.command(arguments));
    let running = [
        start(&["mount", &real, &a.display().to_string()]),
        start(&["mount", &layout.reference("one"), &b.display().to_string()]),
        start(&["pull", &layout.reference("two")]),
        start(&["pull", &real]),
    ];
    for command in running {
        let output = command.finish(COMMAND_LIMIT);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
    }
    let wanted = unpack(&lab_images().join("oci"), "v1");
    wanted.assert_same(&Tree::read(&a), &root_time());
    assert_eq!(fs::read(b.join("name")).expect("name"), b"one");
    let listed = peersync.run(&["images"]);
    for tag in ["one", "two", "v1"] {
        assert!(listed.contains(tag), "{tag} in {listed}");
    }
    let [a, b] = guards;
    a.umount(&peersync);
    // The first mount's end is not the second's.
    assert_eq!(fs::read(b.join("name")).expect("name"), b"one");
    b.umount(&peersync);
}

#[test]
fn the_owner_ends_with_its_last_mount_and_the_store_stays() {
    needs_mounts!();
    let (_place, layout) = images(&["one"]);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("one"), &[]);
    let owner = peersync.owner().expect("an owner");
    mount.umount(&peersync);
    wait_until("the owner ends", Duration::from_secs(20), || !is_alive(owner));
    // The layout may go: what the store holds it serves.
    fs::remove_dir_all(layout.dir.join("blobs")).expect("remove the blobs");
    fs::create_dir_all(layout.dir.join("blobs/sha256")).expect("no blobs");
    let listed = peersync.run(&["layers"]);
    assert!(listed.contains("gzip"), "{listed}");
}

#[test]
fn a_store_whose_owner_was_killed_opens_again() {
    needs_mounts!();
    let (_place, layout) = images(&["one"]);
    let peersync = Peersync::new();
    let mount = peersync.mount(&layout.reference("one"), &[]);
    let before = fs::read(mount.join("large")).expect("large");
    peersync.crash();
    drop(mount);
    let mount = peersync.mount(&layout.reference("one"), &[]);
    assert_eq!(fs::read(mount.join("large")).expect("large"), before);
}

#[test]
fn an_image_that_is_mounted_twice_has_one_content() {
    needs_mounts!();
    let (_place, layout) = images(&["one"]);
    let peersync = Peersync::new();
    let first = peersync.mount(&layout.reference("one"), &[]);
    let bytes = peersync.registry_bytes();
    let second = peersync.mount(&layout.reference("one"), &[]);
    assert_eq!(fs::read(second.join("name")).expect("name"), b"one");
    assert_eq!(peersync.registry_bytes(), bytes, "nothing is fetched for a second mount");
    drop((first, second));
}

#[test]
fn umount_of_what_is_not_mounted_says_so() {
    needs_mounts!();
    let peersync = Peersync::new();
    let point = peersync.mount_point().display().to_string();
    let said = peersync.fails(&["umount", &point]);
    assert!(said.contains(&point), "{said}");
}

#[test]
fn a_rebuilt_image_shares_what_did_not_change() {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut state = blake3::Hasher::new().finalize_xof();
    let mut content = vec![0; 20 << 20];
    state.fill(&mut content);
    let build = |changed: &[u8]| {
        let mut tar = Tar::new();
        for (number, part) in content.chunks(1 << 20).enumerate() {
            tar.file(format!("large-{number}").as_bytes(), part);
        }
        tar.file(b"changed", changed);
        tar.finish()
    };
    layout.image("one", &[build(b"one")], Compression::Plain);
    layout.image("two", &[build(b"two")], Compression::Plain);
    let peersync = Peersync::new();
    let disk = || {
        let du = crate::harness::tool("du", &["-sk", &peersync.store().display().to_string()]);
        du.split_whitespace().next().and_then(|n| n.parse::<u64>().ok()).expect("du") * 1024
    };
    let first = peersync.mount(&layout.reference("one"), &[]);
    let once = disk();
    let second = peersync.mount(&layout.reference("two"), &[]);
    assert_eq!(fs::read(second.join("changed")).expect("changed"), b"two");
    assert!(disk() < once + (4 << 20), "{once} bytes, then {}", disk());
    drop((first, second));
}
