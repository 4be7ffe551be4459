//! Pulls without labels, and containers on what containerd has unpacked.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::harness::host::Host;
use crate::images::{add, base, changes, extra};
use crate::plugin::{InProcess, Plugin};
use crate::world::{OURS, World, needs_containerd};

/// A world with images in a registry, pulled.
fn pulled(tags: &[(&str, &[&[u8]])]) -> (World<InProcess>, Vec<String>) {
    let mut world = World::ordinary();
    for (tag, streams) in tags {
        add(&mut world.layout, tag, streams);
    }
    let host = Host::serve(&world.layout.dir, |_, right| right);
    let references: Vec<String> = tags.iter().map(|(tag, _)| host.reference(tag)).collect();
    for reference in &references {
        world.ctr(&["images", "pull", "--plain-http", "--snapshotter", OURS, reference]);
    }
    (world, references)
}

#[test]
fn an_image_is_pulled_run_and_its_space_comes_back() {
    needs_containerd!();
    let changes = changes();
    let (world, image) = pulled(&[("v1", &[base(), &changes])]);
    assert_eq!(world.directories().len(), 2, "one directory for each layer");
    assert_eq!(world.sh(&image[0], "cat /data/a"), "a in the image\n");
    world.ctr(&["images", "rm", "--sync", &image[0]]);
    world.wait_for_directories(0);
}

#[test]
fn whiteouts_opaque_directories_and_privileges_of_an_image_hold() {
    needs_containerd!();
    let changes = changes();
    let (world, image) = pulled(&[("v1", &[base(), &changes])]);
    let image = &image[0];
    assert_eq!(world.sh(image, "ls /data /data/deep"), DATA_AND_DEEP);
    assert_eq!(
        world.sh(image, "stat -c %a:%u:%g /opt/suid-id /opt/owned"),
        "4755:0:0\n644:1000:1000\n"
    );
    let as_user = "setpriv --reuid 1000 --clear-groups";
    assert_eq!(world.sh(image, &format!("{as_user} /bin/id -u")), "1000\n");
    assert_eq!(world.sh(image, &format!("{as_user} /opt/suid-id -u")), "0\n");
    let secret = world.sh(image, &format!("{as_user} /opt/cap-cat /opt/secret"));
    assert_eq!(secret, "only root may read this\n");
}

/// What `ls /data /data/deep` shows of the two layers.
pub(crate) const DATA_AND_DEEP: &str = "/data:\na\ndeep\nlink\nsymlink\n\n/data/deep:\nnew\n";

#[test]
fn containers_change_files_each_for_itself() {
    needs_containerd!();
    let changes = changes();
    let (world, image) = pulled(&[("v1", &[base(), &changes])]);
    change_files(&world, &image[0]);
}

/// Writes, deletes and renames in two containers of an image; neither sees the
/// other, and the image stays as it is.
pub(crate) fn change_files(world: &World<impl Plugin>, image: &str) {
    let (one, two) = (world.start_container(image, "one"), world.start_container(image, "two"));
    // Copy-up, also through a hard link, which stays one file within the layer.
    world.exec(&one, "echo changed > /data/a; chmod 600 /data/link");
    // Whiteout, and a directory that replaces what was there.
    world.exec(
        &one,
        "rm /data/symlink; rm -r /data/deep; mkdir /data/deep; echo own > /data/deep/own",
    );
    // A directory of the image that gets a new name, a file that replaces another.
    world.exec(&one, "mv /opt /moved; mv /data/link /etc/group");
    world.exec(&one, "ln /moved/owned /data/second; sync");

    assert_eq!(world.exec(&one, "cat /data/a"), "changed\n");
    assert_eq!(
        world.exec(&one, "ls /data /data/deep"),
        "/data:\na\ndeep\nsecond\n\n/data/deep:\nown\n"
    );
    assert_eq!(world.exec(&one, "stat -c %h:%u /data/second"), "2:1000\n");
    assert_eq!(world.exec(&one, "cat /etc/group"), "a in the image\n");
    assert_eq!(world.exec(&one, "stat -c %a /moved/suid-id; [ ! -e /opt ]"), "4755\n");
    assert_eq!(
        world.exec(&one, "setpriv --reuid 1000 --clear-groups /moved/suid-id -u"),
        "1000\n",
        "containers don't get new privileges unless they ask"
    );

    assert_eq!(world.exec(&two, "ls /data /data/deep"), DATA_AND_DEEP);
    assert_eq!(
        world.exec(&two, "cat /data/a; ls /opt"),
        "a in the image\ncap-cat\nowned\nsecret\nsuid-id\n"
    );
    world.remove_container(&one);
    assert_eq!(world.sh(image, "cat /data/a; ls /data/deep"), "a in the image\nnew\n");
    world.remove_container(&two);
}

#[test]
fn images_share_layers_and_lose_only_their_own() {
    needs_containerd!();
    let (ours, theirs) = (extra("ours", b"ours\n"), extra("theirs", b"theirs\n"));
    let (world, image) =
        pulled(&[("v1", &[base(), &ours] as &[&[u8]]), ("v2", &[base(), &theirs])]);
    assert_eq!(world.directories().len(), 3, "the first layer is shared");
    world.ctr(&["images", "rm", "--sync", &image[0]]);
    world.wait_for_directories(2);
    assert_eq!(world.sh(&image[1], "cat /extra/theirs; [ ! -e /extra/ours ]"), "theirs\n");
    world.ctr(&["images", "rm", "--sync", &image[1]]);
    world.wait_for_directories(0);
}

#[test]
fn everything_survives_a_restart_of_containerd_and_of_the_snapshotter() {
    needs_containerd!();
    let (mut world, image) = pulled(&[("v1", &[base()])]);
    let container = world.start_container(&image[0], "stays");
    world.exec(&container, "echo kept > /data/kept; sync");
    let listed = world.ctr(&["snapshots", "--snapshotter", OURS, "ls"]);

    world.restart_containerd();
    assert_eq!(world.ctr(&["snapshots", "--snapshotter", OURS, "ls"]), listed);
    assert_eq!(world.exec(&container, "cat /data/kept"), "kept\n");

    world.restart_plugin();
    assert_eq!(world.ctr(&["snapshots", "--snapshotter", OURS, "ls"]), listed);
    assert_eq!(world.exec(&container, "cat /data/kept"), "kept\n", "ordinary mounts need nobody");
    assert_eq!(world.sh(&image[0], "cat /data/a"), "a in the image\n");

    // The container's own layer outlives its process: started again it is as it was.
    world.ctr(&["task", "rm", "--force", &container]);
    world.restart_plugin();
    world.ctr(&["task", "start", "--detach", "--null-io", &container]);
    assert_eq!(world.exec(&container, "cat /data/kept"), "kept\n");
    world.remove_container(&container);
    world.ctr(&["images", "rm", "--sync", &image[0]]);
    world.wait_for_directories(0);
}

#[test]
fn a_container_is_committed_and_run_as_an_image_layer() {
    needs_containerd!();
    let (world, image) = pulled(&[("v1", &[base()])]);
    let container = world.start_container(&image[0], "built");
    world.exec(&container, "echo built > /data/built; sync");
    world.ctr(&["task", "rm", "--force", &container]);
    world.ctr(&["snapshots", "--snapshotter", OURS, "commit", "built", &container]);
    world.ctr(&["snapshots", "--snapshotter", OURS, "prepare", "next", "built"]);
    let mounts = world.ctr(&["snapshots", "--snapshotter", OURS, "mounts", "/mnt", "next"]);
    assert!(mounts.contains("-t overlay"), "{mounts}");
    let diff = world.ctr(&["snapshots", "--snapshotter", OURS, "diff", "built"]);
    assert!(!diff.is_empty());
}

#[test]
fn an_upper_directory_belongs_to_whom_the_one_below_belongs_to() {
    needs_containerd!();
    let (world, _) = pulled(&[("v1", &[base()])]);
    let bottom = world.directories().remove(0);
    let path = |id: &str| world.plugin.state().join("snapshots").join(id).join("fs");
    std::os::unix::fs::chown(path(&bottom), Some(12), Some(34)).expect("chown");
    let parent = world.ctr(&["snapshots", "--snapshotter", OURS, "ls"]);
    let parent =
        parent.lines().nth(1).expect("one snapshot").split_whitespace().next().expect("name");
    world.ctr(&["snapshots", "--snapshotter", OURS, "prepare", "above", parent]);
    let above = world.directories().pop().expect("directory");
    let found = fs::metadata(path(&above)).expect("upper directory");
    assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (12, 34, 0o755));
}
