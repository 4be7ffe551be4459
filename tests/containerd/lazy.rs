//! The built daemon under containerd, with a real registry: pulls that download
//! nothing, containers that run before their image is complete, restarts and
//! failures in between.

use std::fs;
use std::path::Path;
use std::process::Command;

use futures_util::future::join_all;

use crate::cri::Images;
use crate::harness::layout::layer_bytes;
use crate::harness::line::Line;
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::{made_images, run};
use crate::images::{add, base, changes, extra};
use crate::node::Node;
use crate::ordinary::{DATA_AND_DEEP, change_files};
use crate::plugin::Plugin;
use crate::remote::block_on;
use crate::world::{OURS, World, needs_containerd};

const AS_USER: &str = "setpriv --reuid 1000 --clear-groups";

/// containerd with the daemon as its plugin, and a registry behind a line that
/// counts what both of them fetch.
pub(crate) struct Lazy {
    pub(crate) world: World<Node>,
    pub(crate) line: Line,
    pub(crate) registry: Registry,
}

impl Lazy {
    pub(crate) fn new(tags: &[(&str, &[&[u8]])]) -> Self {
        Self::configured("", tags)
    }

    fn configured(more: &str, tags: &[(&str, &[&[u8]])]) -> Self {
        Self::with(|socket| Node::new(socket, more), tags)
    }

    pub(crate) fn with(node: impl FnOnce(&Path) -> Node, tags: &[(&str, &[&[u8]])]) -> Self {
        let registry = Registry::start();
        let line = Line::to(registry.address);
        let mut world = World::of(|_, socket| node(socket));
        for (tag, streams) in tags {
            add(&mut world.layout, tag, streams);
            registry.push(&world.layout.dir, tag, &format!("test/image:{tag}"));
        }
        Self { world, line, registry }
    }

    /// The image's name at the near end of the line.
    pub(crate) fn image(&self, tag: &str) -> String {
        format!("{}/test/image:{tag}", self.line.address)
    }

    pub(crate) fn cri_pull(&self, tag: &str) -> Result<String, tonic::Status> {
        let reference = self.image(tag);
        block_on(async { Images::connect(&self.world.socket()).await.pull(&reference).await })
    }

    pub(crate) fn cri_remove(&self, tag: &str) {
        let reference = self.image(tag);
        block_on(async { Images::connect(&self.world.socket()).await.remove(&reference).await })
            .expect("remove");
        self.world.collect_garbage("k8s.io");
    }

    /// Runs a script in a new container of a CRI image.
    pub(crate) fn sh(&self, tag: &str, script: &str) -> String {
        self.world.sh_in("k8s.io", &self.image(tag), script)
    }

    /// What containers have written is off the disk, and nothing was unpacked.
    pub(crate) fn gone(&self, namespace: &str) {
        self.world.collect_garbage(namespace);
        self.world.wait_for_directories(0);
    }

    /// Committed snapshots, as containerd lists them.
    pub(crate) fn committed(&self, namespace: &str) -> usize {
        let list = ["snapshots", "--snapshotter", OURS, "ls"];
        let listed = run(&mut self.world.ctr_command(namespace, &list));
        listed.matches("Committed").count()
    }

    /// Bytes of a kind of blob in containerd's own content store.
    pub(crate) fn blobs_of_layers(&self, tag: &str) -> u64 {
        let blobs = self.world.place().join("containerd/io.containerd.content.v1.content/blobs");
        let manifest = crate::harness::layout::read_manifest(&self.world.layout.dir, tag);
        let layers = manifest["layers"].as_array().expect("layers").iter();
        let path = |digest: &str| blobs.join(digest.replace(':', "/"));
        let sizes = layers.map(|layer| fs::metadata(path(layer["digest"].as_str().expect("text"))));
        sizes.filter_map(Result::ok).map(|file| file.len()).sum()
    }
}

/// A node of its own builds the index and pushes it beside the image.
pub(crate) fn push_index(registry: &Registry, name: &str) {
    let builder = Peersync::new();
    let image = format!("{}/{name}", registry.address);
    builder.run(&["index", "build", &image]);
    builder.run(&["index", "push", &image]);
}

#[test]
fn numpy_is_imported_before_the_image_is_complete() {
    needs_containerd!();
    let lazy = Lazy::configured("no_progress_timeout = 2\n", &[]);
    let layout = made_images("numpy").join("oci");
    let name = "test/image:numpy";
    lazy.registry.push(&layout, "v1", name);
    push_index(&lazy.registry, name);
    let whole = layer_bytes(&layout, "v1");

    lazy.cri_pull("numpy").expect("pull");
    let pulled = lazy.line.down();
    assert!(pulled * 10 < whole, "a pull fetches indexes: {pulled} of {whole} bytes");

    let import = "python3 -c 'import numpy; print(numpy.arange(10).sum())'";
    assert_eq!(lazy.sh("numpy", import), "45\n");
    let fetched = lazy.line.down();
    eprintln!("pull {pulled}, import {fetched} of {whole} bytes");
    assert!(fetched * 10 < whole * 9, "{fetched} of {whole} bytes for one import");
    let partial = |layer: &serde_json::Value| {
        layer["resident_bytes"].as_u64().expect("bytes") < layer["content_bytes"].as_u64().unwrap()
    };
    assert!(lazy.world.plugin.layers().iter().any(partial), "the image is not complete");

    // What was read once is not fetched again, and needs nobody.
    lazy.line.cut_at(0);
    assert_eq!(lazy.sh("numpy", import), "45\n");
    assert_eq!(lazy.line.down(), fetched);

    // What is not here is an error within the patience, and there when the registry is.
    let read = "cat /models/model.safetensors | wc -c";
    let failing = "cat /models/model.safetensors >/mnt/model && echo read || echo failed";
    assert_eq!(lazy.sh("numpy", failing), "failed\n");
    assert_eq!(lazy.sh("numpy", import), "45\n");
    lazy.line.mend();
    let bytes: u64 = lazy.sh("numpy", read).trim().parse().expect("a number");
    assert!(bytes > 20 << 20, "{bytes}");
    lazy.gone("k8s.io");
}

#[test]
fn a_cri_pull_of_an_image_that_nobody_has_indexed_is_lazy_too() {
    needs_containerd!();
    let changes = changes();
    let lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    lazy.cri_pull("v1").expect("pull");
    assert_eq!(lazy.blobs_of_layers("v1"), 0, "containerd has downloaded nothing");
    assert!(lazy.world.directories().is_empty(), "and unpacked nothing");
    assert_eq!(lazy.committed("k8s.io"), 2);

    assert_eq!(lazy.sh("v1", "ls /data /data/deep"), DATA_AND_DEEP);
    let stat = lazy.sh("v1", "stat -c %a:%u:%g:%h /opt/suid-id /opt/owned /data/a");
    assert_eq!(stat, "4755:0:0:1\n644:1000:1000:1\n644:0:0:2\n");
    assert_eq!(lazy.sh("v1", &format!("{AS_USER} /opt/suid-id -u")), "0\n", "setuid holds");
    let secret = lazy.sh("v1", &format!("{AS_USER} /opt/cap-cat /opt/secret"));
    assert_eq!(secret, "only root may read this\n", "capabilities hold");
    // Copied up, they are still what they were.
    let copied = format!(
        "touch -d @1 /opt/suid-id /opt/cap-cat; stat -c %Y:%a /opt/suid-id; \
         {AS_USER} /opt/suid-id -u; {AS_USER} /opt/cap-cat /opt/secret"
    );
    assert_eq!(lazy.sh("v1", &copied), "1:4755\n0\nonly root may read this\n");

    // Nobody writes below: what a container changes is gone with it.
    let written = "echo x > /data/a; rm -r /opt; mkdir /opt; ls -A /opt; cat /data/a /data/link";
    assert_eq!(lazy.sh("v1", written), "x\na in the image\n");
    assert_eq!(
        lazy.sh("v1", "ls /opt; cat /data/a"),
        "cap-cat\nowned\nsecret\nsuid-id\na in the image\n"
    );
    lazy.gone("k8s.io");
}

#[test]
fn ctr_remote_pulls_and_containers_change_files() {
    needs_containerd!();
    if Command::new("ctr-remote").arg("--version").output().is_err() {
        eprintln!("skipped: no ctr-remote (package stargz-snapshotter)");
        return;
    }
    let changes = changes();
    let lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    let image = lazy.image("v1");
    let mut rpull = Command::new("ctr-remote");
    rpull.arg("--address").arg(lazy.world.socket()).args(["--namespace", "test"]);
    rpull.args(["images", "rpull", "--plain-http", "--snapshotter", OURS, &image]);
    run(&mut rpull);
    assert_eq!(lazy.blobs_of_layers("v1"), 0, "containerd has downloaded nothing");
    change_files(&lazy.world, &image);

    // A container that is committed stands on the lazy layers, and is an image like any.
    let container = lazy.world.start_container(&image, "built");
    lazy.world.exec(&container, "echo built > /data/built; rm /data/a; sync");
    lazy.world.ctr(&["task", "rm", "--force", &container]);
    lazy.world.ctr(&["snapshots", "--snapshotter", OURS, "commit", "built", &container]);
    lazy.world.ctr(&["snapshots", "--snapshotter", OURS, "view", "seen", "built"]);
    let target = lazy.world.place().join("target");
    fs::create_dir(&target).expect("mount point");
    let shown = target.display().to_string();
    let mount = lazy.world.ctr(&["snapshots", "--snapshotter", OURS, "mounts", &shown, "seen"]);
    run(Command::new("sh").arg("-c").arg(mount));
    let built = fs::read_to_string(target.join("data/built"));
    let hidden = target.join("data/a").exists();
    let lower = fs::read_to_string(target.join("data/deep/new"));
    nix::mount::umount(&target).expect("unmount");
    assert_eq!(built.expect("the container's own file"), "built\n");
    assert_eq!(lower.expect("a file of the image"), "new in the second layer\n");
    assert!(!hidden, "what the container removed");
}

#[test]
fn images_share_layers_and_give_back_what_was_theirs() {
    needs_containerd!();
    let (ours, theirs) = (extra("ours", b"ours\n"), extra("theirs", b"theirs\n"));
    let lazy = Lazy::new(&[("v1", &[base(), &ours] as &[&[u8]]), ("v2", &[base(), &theirs])]);
    lazy.cri_pull("v1").expect("pull");
    let first = lazy.line.down();
    lazy.cri_pull("v2").expect("pull");
    let second = lazy.line.down() - first;
    assert!(second * 10 < first, "the shared layer came once: {first} and {second} bytes");
    assert_eq!(lazy.world.plugin.layers().len(), 3);
    assert_eq!(lazy.committed("k8s.io"), 3);

    // A container's own files take space, which comes back with the container.
    let said = lazy.sh("v1", "dd if=/dev/zero of=/big bs=1M count=20 status=none; cat /extra/ours");
    assert_eq!(said, "ours\n");
    lazy.gone("k8s.io");
    lazy.cri_remove("v1");
    assert_eq!(lazy.committed("k8s.io"), 2);
    assert_eq!(lazy.sh("v2", "cat /extra/theirs; [ ! -e /extra/ours ]"), "theirs\n");
    lazy.cri_remove("v2");
    assert_eq!(lazy.committed("k8s.io"), 0);
    lazy.world.wait_for_directories(0);
}

#[test]
fn pulls_and_containers_survive_restarts_of_both() {
    needs_containerd!();
    let changes = changes();
    let mut lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    lazy.cri_pull("v1").expect("pull");
    lazy.world.restart_containerd();
    assert_eq!(lazy.sh("v1", "cat /data/a"), "a in the image\n");
    let list = ["snapshots", "--snapshotter", OURS, "ls"];
    let before = run(&mut lazy.world.ctr_command("k8s.io", &list));

    // From here on there is no registry: what was pulled is all here.
    lazy.line.cut_at(0);
    lazy.world.restart_plugin();
    assert_eq!(run(&mut lazy.world.ctr_command("k8s.io", &list)), before);
    assert_eq!(lazy.sh("v1", "ls /data /data/deep"), DATA_AND_DEEP);

    // A crash leaves a dead mount and an old socket.
    lazy.world.plugin.crash();
    assert!(lazy.world.plugin.socket().exists());
    lazy.world.plugin.start();
    lazy.world.restart_containerd();
    assert_eq!(run(&mut lazy.world.ctr_command("k8s.io", &list)), before);
    assert_eq!(lazy.sh("v1", "ls /data /data/deep"), DATA_AND_DEEP);
}

#[test]
fn a_container_that_is_stopped_starts_again_after_a_restart_of_the_daemon() {
    needs_containerd!();
    let mut lazy = Lazy::new(&[("v1", &[base()])]);
    lazy.cri_pull("v1").expect("pull");
    let image = lazy.image("v1");
    let container = lazy.world.unique("stays");
    let ctr = |lazy: &Lazy, arguments: &[&str]| {
        run(&mut lazy.world.ctr_command("k8s.io", arguments));
    };
    let options = ["run", "--detach", "--null-io", "--snapshotter", OURS];
    ctr(&lazy, &[&options[..], &[&image, &container, "/bin/sleep", "3600"]].concat());
    ctr(&lazy, &["task", "exec", "--exec-id", "e", &container, "/bin/sh", "-c", "echo own > /own"]);

    // While it runs, a daemon that is stopped names it.
    let (code, said) = lazy.world.plugin.end();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("containers run on this node's lazy images"), "{said}");
    assert!(said.contains(&container), "{said}");
    lazy.world.plugin.start();

    ctr(&lazy, &["task", "rm", "--force", &container]);
    lazy.world.restart_plugin();
    ctr(&lazy, &["task", "start", "--detach", "--null-io", &container]);
    ctr(&lazy, &["task", "exec", "--exec-id", "f", &container, "/bin/cat", "/own", "/data/a"]);
    ctr(&lazy, &["task", "rm", "--force", &container]);
    // Nothing runs: nothing is said.
    let (code, said) = lazy.world.plugin.end();
    assert_eq!((code, said.contains("containers run")), (Some(0), false), "{said}");
    lazy.world.plugin.start();
    lazy.world.restart_containerd();
    ctr(&lazy, &["container", "rm", &container]);
    lazy.gone("k8s.io");
}

/// So many bytes that no compression makes fewer.
pub(crate) fn incompressible(bytes: usize) -> Vec<u8> {
    let mut seed = [0; 32];
    let blocks = bytes.div_ceil(seed.len());
    let chain = std::iter::repeat_with(|| {
        seed = *blake3::hash(&seed).as_bytes();
        seed
    });
    chain.take(blocks).flatten().take(bytes).collect()
}

#[test]
fn a_registry_that_stops_half_way_fails_the_pull_and_nothing_else() {
    needs_containerd!();
    let (large, small) = (extra("large", &incompressible(8 << 20)), extra("small", b"small\n"));
    let lazy = Lazy::configured(
        "no_progress_timeout = 2\n",
        &[("v1", &[base(), &small] as &[&[u8]]), ("v2", &[base(), &large])],
    );
    lazy.cri_pull("v1").expect("pull");
    lazy.line.cut_at(lazy.line.down() + (1 << 20));
    let error = lazy.cri_pull("v2").expect_err("the pull fails");
    assert!(lazy.world.directories().is_empty(), "nothing is unpacked instead: {error}");
    assert_eq!(lazy.blobs_of_layers("v2"), 0, "{error}");
    assert_eq!(lazy.sh("v1", "cat /extra/small"), "small\n", "the other image does not mind");

    lazy.line.mend();
    lazy.cri_pull("v2").expect("the kubelet tries again");
    assert_eq!(lazy.sh("v2", "wc -c < /extra/large").trim(), (8 << 20).to_string());
    lazy.gone("k8s.io");
}

#[test]
fn ten_pulls_at_once_of_the_daemon() {
    needs_containerd!();
    let extras: Vec<Vec<u8>> = (0..10).map(|i| extra(&format!("f{i}"), &[i])).collect();
    let tags: Vec<String> = (0..10).map(|i| format!("t{i}")).collect();
    let streams: Vec<[&[u8]; 2]> = extras.iter().map(|extra| [base(), extra]).collect();
    let images: Vec<(&str, &[&[u8]])> =
        tags.iter().zip(&streams).map(|(tag, streams)| (tag.as_str(), &streams[..])).collect();
    let lazy = Lazy::new(&images);
    let whole: u64 = layer_bytes(&lazy.world.layout.dir, "t0");
    block_on(async {
        let images = Images::connect(&lazy.world.socket()).await;
        let pulls = tags.iter().map(|tag| {
            let (mut images, reference) = (images.clone(), lazy.image(tag));
            async move { images.pull(&reference).await.expect("pull") }
        });
        join_all(pulls).await;
    });
    assert!(lazy.line.down() < 2 * whole, "the shared layer came once");
    assert!(lazy.world.directories().is_empty());
    assert_eq!(lazy.committed("k8s.io"), 11);
    for tag in &tags {
        assert_eq!(lazy.blobs_of_layers(tag), 0);
    }
    assert_eq!(lazy.sh("t7", "ls /extra"), "f7\n");
    two_hundred_snapshots(&lazy);
}

/// Two hundred containers' worth of snapshots on one lazy image: one FUSE mount,
/// and little memory.
fn two_hundred_snapshots(lazy: &Lazy) {
    let plugin = &lazy.world.plugin;
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", plugin.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("number").parse::<u64>().expect("number")
    };
    let before = resident();
    block_on(async {
        let mut s = crate::api::Snapshots::connect(plugin.socket(), "").await;
        let infos = s.list(&["kind==committed"]).await.expect("list");
        let top = infos.iter().find(|info| !info.parent.is_empty()).expect("a chain of two");
        for i in 0..200 {
            let mounts = s.prepare(&format!("many{i}"), &top.name, Default::default()).await;
            assert_eq!(mounts.expect("prepare").len(), 1);
        }
        for i in 0..200 {
            s.usage(&format!("many{i}")).await.expect("usage");
            s.remove(&format!("many{i}")).await.expect("remove");
        }
    });
    let grown = resident().saturating_sub(before);
    eprintln!("200 snapshots: {before} KiB before, {grown} KiB more");
    assert!(grown < 50 << 10, "{grown} KiB");
    assert_eq!(fuse_mounts_below(plugin.tree()), 1);
}

pub(crate) fn fuse_mounts_below(directory: &Path) -> usize {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let point = directory.display().to_string();
    table
        .lines()
        .filter(|line| line.split(' ').nth(4).is_some_and(|p| p.starts_with(&point)))
        .count()
}

#[test]
fn what_containerd_imports_is_unpacked_as_ever() {
    needs_containerd!();
    let lazy = Lazy::new(&[("v1", &[base()])]);
    let archive = lazy.world.place().join("image.tar").display().to_string();
    run(Command::new("tar").arg("-C").arg(&lazy.world.layout.dir).args(["-cf", &archive, "."]));
    let import = ["images", "import", "--snapshotter", OURS, "--base-name"];
    lazy.world.ctr(&[&import[..], &["registry.invalid/test/image", &archive]].concat());
    let image = "registry.invalid/test/image:v1";
    assert_eq!(lazy.world.sh(image, "cat /data/a"), "a in the image\n");
    lazy.world.collect_garbage("test");
    lazy.world.wait_for_directories(1);
    lazy.world.ctr(&["images", "rm", "--sync", image]);
    lazy.world.wait_for_directories(0);
}
