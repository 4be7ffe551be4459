//! `ctr snapshots` against overlayfs and against this snapshotter: the same
//! commands say the same, up to paths and times, with files in the snapshots.

use std::path::Path;
use std::process::Command;

use crate::harness::run;
use crate::plugin::{InProcess, Plugin};
use crate::world::{OURS, THEIRS, World, needs_containerd};

/// Runs `ctr snapshots` and gives what it said and how it ended, without what
/// differs by nature.
fn said(world: &World<InProcess>, snapshotter: &str, arguments: &[&str]) -> String {
    let output = world.try_ctr(&[&["snapshots", "--snapshotter", snapshotter], arguments].concat());
    let text = format!(
        "{}{}{}",
        output.status.code().unwrap_or(-1),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let theirs = world.place().join("containerd/io.containerd.snapshotter.v1.overlayfs");
    let text = text
        .replace(&world.plugin.state().display().to_string(), "ROOT")
        .replace(&theirs.display().to_string(), "ROOT");
    text.lines()
        .filter(|line| {
            ![r#""Created""#, r#""Updated""#, "gc.root"].iter().any(|part| line.contains(part))
        })
        .fold(String::new(), |all, line| all + line + "\n")
}

/// The same on both; gives what they said.
fn same(world: &World<InProcess>, arguments: &[&str]) -> String {
    let expected = said(world, THEIRS, arguments);
    assert_eq!(said(world, OURS, arguments), expected, "ctr snapshots {arguments:?}");
    expected
}

/// Changes the files of a snapshot of each, by the mounts that it gives.
fn change(world: &World<InProcess>, key: &str, script: &str) {
    for snapshotter in [THEIRS, OURS] {
        let target = world.place().join("target");
        std::fs::create_dir_all(&target).expect("mount point");
        let arguments = ["snapshots", "--snapshotter", snapshotter, "mounts"];
        let shown = target.display().to_string();
        let mount = world.ctr(&[&arguments[..], &[&shown, key]].concat());
        run(Command::new("sh").arg("-c").arg(mount));
        run(Command::new("sh").args(["-euc", script]).current_dir(&target));
        unmount(&target);
    }
}

fn unmount(target: &Path) {
    nix::mount::umount(target).expect("unmount");
}

#[test]
fn ctr_says_the_same_of_both() {
    needs_containerd!();
    let world = World::ordinary();
    let same = |arguments: &[&str]| same(&world, arguments);
    same(&["ls"]);
    same(&["prepare", "base-key"]);
    same(&["mounts", "/mnt", "base-key"]);
    change(&world, "base-key", FILL);
    same(&["usage", "base-key"]);
    same(&["commit", "base", "base-key"]);
    same(&["info", "base"]);
    same(&["usage", "base"]);
    same(&["usage", "-b", "base"]);

    same(&["prepare", "second-key", "base"]);
    same(&["prepare", "--target", "/mnt", "--mounts", "third-key", "base"]);
    same(&["mounts", "/mnt", "second-key"]);
    change(&world, "second-key", CHANGE);
    same(&["usage", "second-key"]);
    same(&["commit", "second", "second-key"]);
    same(&["view", "--target", "/mnt", "--mounts", "view-one", "base"]);
    same(&["view", "--target", "/mnt", "--mounts", "view-two", "second"]);
    same(&["view", "--target", "/mnt", "--mounts", "view-none"]);
    for snapshotter in [THEIRS, OURS] {
        // What it says has no order.
        said(&world, snapshotter, &["label", "second", "colour=red", "empty="]);
        said(&world, snapshotter, &["label", "second", "other=blue", "colour="]);
    }
    same(&["info", "second"]);
    same(&["tree"]);
    same(&["ls"]);
    same(&["usage"]);

    for wrong in [
        &["prepare", "second-key2", "missing"][..],
        &["prepare", "third-key", "base"],
        &["prepare", "key", "third-key"],
        &["view", "third-key", "base"],
        &["mounts", "/mnt", "second"],
        &["mounts", "/mnt", "missing"],
        &["commit", "second", "third-key"],
        &["commit", "new", "missing"],
        &["commit", "new", "view-one"],
        &["rm", "base"],
        &["rm", "missing"],
        &["info", "missing"],
        &["usage", "missing"],
        &["label", "missing", "a=b"],
        &["unpack", "sha256:0"],
    ] {
        assert!(!same(wrong).starts_with('0'), "{wrong:?} did not fail");
    }
    // What a failed commit left of the key, and removal from the leaves down.
    same(&["ls"]);
    for name in ["view-one", "view-two", "view-none", "third-key", "second", "base"] {
        same(&["rm", name]);
    }
    same(&["ls"]);
    same(&["tree"]);
}

const FILL: &str = "mkdir -p dir/deep; echo one > dir/file; ln dir/file dir/linked; \
    dd if=/dev/zero of=big bs=1000 count=200 status=none; truncate -s 1G sparse; \
    ln -s file dir/sym; mknod null c 1 3; chmod 4755 dir/file; sync";
const CHANGE: &str = "rm big; echo two >> dir/file; mv dir/deep elsewhere; rm -r dir; mkdir dir; \
    echo three > dir/new; sync";

#[test]
fn what_is_mounted_is_the_same() {
    needs_containerd!();
    let world = World::ordinary();
    let listings: Vec<String> = [THEIRS, OURS]
        .into_iter()
        .map(|snapshotter| {
            let ctr = |arguments: &[&str]| {
                world.ctr(&[&["snapshots", "--snapshotter", snapshotter], arguments].concat())
            };
            let target = world.place().join(snapshotter);
            std::fs::create_dir(&target).expect("mount point");
            let shown = target.display().to_string();
            let mut parent = String::new();
            let mut listing = String::new();
            for (layer, script) in [FILL, CHANGE, "rm -r dir; echo last > last"].iter().enumerate()
            {
                let key = format!("key-{layer}");
                ctr(&["prepare", &key, &parent][..if parent.is_empty() { 2 } else { 3 }]);
                run(Command::new("sh").arg("-c").arg(ctr(&["mounts", &shown, &key])));
                run(Command::new("sh").args(["-euc", script]).current_dir(&target));
                listing += &list(&target);
                unmount(&target);
                parent = format!("layer-{layer}");
                ctr(&["commit", &parent, &key]);
            }
            ctr(&["view", "view", &parent]);
            run(Command::new("sh").arg("-c").arg(ctr(&["mounts", &shown, "view"])));
            listing += &list(&target);
            let refused = std::fs::write(target.join("new"), b"").expect_err("a view is read-only");
            listing += &format!("{refused}\n");
            unmount(&target);
            listing
        })
        .collect();
    assert_eq!(listings[1], listings[0]);
    assert!(listings[0].contains("./last"), "{}", listings[0]);
}

fn list(target: &Path) -> String {
    run(Command::new("find")
        .args([".", "-printf", "%p %y %m %U:%G %n %s %l\n"])
        .current_dir(target))
    .lines()
    .collect::<std::collections::BTreeSet<_>>()
    .into_iter()
    .fold(String::new(), |all, line| all + line + "\n")
}
