//! Real clients, with their stock configuration: what they pull through the mirror
//! is what is in the registry, and the second time nothing crosses the line but
//! the question what the tag stands for.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::peersync::Peersync;
use crate::harness::{Running, needs_mounts, output, run, tool, wait_until};
use crate::node::{Node, SOON, World};

/// Ends the test early where a tool is not installed. In CI that is a failure.
macro_rules! needs_tool {
    ($name:literal) => {
        if !has_tool($name) {
            return;
        }
    };
}

fn has_tool(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<_> = std::env::split_paths(&path).collect();
    places.push("/usr/sbin".into());
    let there = places.iter().any(|place| place.join(name).exists());
    assert!(there || std::env::var("CI").as_deref() != Ok("true"), "CI has {name}");
    if !there {
        eprintln!("skipped: needs {name}");
    }
    there
}

/// The snippet that users are given, with the test's addresses in place of theirs.
fn registries_conf(world: &World, node: &Node) -> std::path::PathBuf {
    let snippet = include_str!("../../packaging/mirror/registries.conf");
    // A name with a port can't be a part of another name: it is the default one.
    let snippet = snippet
        .replace("127.0.0.1:5005/docker.io", &node.mirror.to_string())
        .replace("docker.io", &world.upstream());
    // The registry itself speaks plain HTTP here.
    let text = snippet.replace("[[registry]]\n", "[[registry]]\ninsecure = true\n");
    let file = world.path("registries.conf");
    fs::write(&file, text).expect("configuration");
    file
}

/// Whether the layers of two layouts are the same bytes.
fn same_blobs(world: &World, copy: &Path) {
    for layer in &world.layers {
        let other = fs::read(crate::harness::layout::blob_path(copy, layer)).expect("copied");
        assert!(other == world.blob(layer), "{layer}");
    }
}

/// What came over the line while `work` went on.
fn crossed(world: &World, work: impl FnOnce()) -> u64 {
    let before = world.line.down();
    work();
    world.line.down() - before
}

fn bytes_of(world: &World) -> u64 {
    world.layers.iter().map(|layer| world.blob(layer).len() as u64).sum()
}

#[test]
fn skopeo() {
    needs_mounts!();
    let world = World::new(4 << 20);
    let node = Node::start(&world.upstream());
    let conf = registries_conf(&world, &node);
    let mut count = 0;
    let mut copy = |name: &str| {
        count += 1;
        let to = world.path(&format!("copy{count}"));
        let conf = format!("--registries-conf={}", conf.display());
        let from = format!("docker://{}/test/image{name}", world.upstream());
        let to_layout = format!("oci:{}:v1", to.display());
        tool("skopeo", &["--insecure-policy", &conf, "copy", "-q", &from, &to_layout]);
        same_blobs(&world, &to);
    };
    let whole = bytes_of(&world);
    let first = crossed(&world, || copy(":v1"));
    assert!((whole..whole + 64_000).contains(&first), "{first} for {whole} bytes");
    let again = crossed(&world, || copy(":v1"));
    assert!(again < 4_000, "the tag is asked for, and no more: {again}");
    let by_digest = format!("@{}", world.manifest);
    assert_eq!(crossed(&world, || copy(&by_digest)), 0);
}

#[test]
fn podman() {
    needs_mounts!();
    needs_tool!("podman");
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    let conf = registries_conf(&world, &node);
    let storage = world.path("podman");
    let podman = |arguments: &[&str]| {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_REGISTRIES_CONF", &conf);
        let root = ["--root", "--runroot", "--tmpdir"];
        for (n, option) in root.into_iter().enumerate() {
            command.arg(option).arg(storage.join(n.to_string()));
        }
        command.args(["--storage-driver", "vfs"]).args(arguments);
        run(&mut command)
    };
    let pulls = |name: &str| {
        let image = format!("{}/test/image{name}", world.upstream());
        let id = podman(&["pull", "-q", &image]);
        podman(&["rmi", "--force", id.trim()]);
    };
    let first = crossed(&world, || pulls(":v1"));
    assert!(first >= bytes_of(&world), "{first}");
    assert!(crossed(&world, || pulls(":v1")) < 4_000);
    assert_eq!(crossed(&world, || pulls(&format!("@{}", world.manifest))), 0);
}

#[test]
fn buildah() {
    needs_mounts!();
    needs_tool!("buildah");
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    let conf = registries_conf(&world, &node);
    let storage = world.path("buildah");
    let pulls = |name: &str| {
        let image = format!("{}/test/image{name}", world.upstream());
        let mut command = Command::new("buildah");
        command.env("CONTAINERS_REGISTRIES_CONF", &conf);
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs", "pull", "--policy", "always", "-q", &image]);
        run(&mut command);
    };
    let first = crossed(&world, || pulls(":v1"));
    assert!(first >= bytes_of(&world), "{first}");
    assert!(crossed(&world, || pulls(":v1")) < 4_000);
    assert_eq!(crossed(&world, || pulls(&format!("@{}", world.manifest))), 0);
}

#[test]
fn containerd() {
    needs_mounts!();
    needs_tool!("containerd");
    let world = World::new(4 << 20);
    let node = Node::start(&world.upstream());
    // The snippet that users are given.
    let snippet = include_str!("../../packaging/mirror/hosts.toml");
    let hosts = world.path("hosts").join(world.upstream());
    fs::create_dir_all(&hosts).expect("directory");
    let text = snippet
        .replace("127.0.0.1:5005", &node.mirror.to_string())
        .replace("https://registry-1.docker.io", &format!("http://{}", world.upstream()));
    fs::write(hosts.join("hosts.toml"), text).expect("hosts.toml");
    // A socket's path is short, a build directory's may not be.
    let sockets = tempfile::Builder::new().prefix("ps-").tempdir().expect("sockets");
    let socket = sockets.path().join("c.sock");
    let config = world.path("containerd.toml");
    let disabled = r#"["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.zfs",
        "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper"]"#;
    let text = format!(
        "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = {disabled}\n\
         [grpc]\naddress = {socket:?}\n",
        world.path("root"),
        sockets.path().join("state"),
    );
    fs::write(&config, text).expect("configuration");
    let _containerd = Running::start(Command::new("containerd").arg("-c").arg(&config));
    let ctr = |arguments: &[&str]| {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(&socket).args(arguments);
        command
    };
    wait_until("containerd answers", SOON, || output(&mut ctr(&["version"])).status.success());
    let hosts = world.path("hosts").display().to_string();
    let pulls = |name: &str| {
        let image = format!("{}/test/image{name}", world.upstream());
        run(&mut ctr(&["images", "pull", "--hosts-dir", &hosts, &image]));
        run(&mut ctr(&["images", "check"]));
        run(&mut ctr(&["images", "rm", "--sync", &image]));
    };
    let first = crossed(&world, || pulls(":v1"));
    let whole = bytes_of(&world);
    assert!((whole..whole + 64_000).contains(&first), "{first} for {whole} bytes");
    assert!(crossed(&world, || pulls(":v1")) < 4_000);
    assert_eq!(crossed(&world, || pulls(&format!("@{}", world.manifest))), 0);
}

#[test]
fn oras() {
    needs_mounts!();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab/venv/bin/python3");
    let has = python.exists()
        && output(Command::new(&python).args(["-c", "import oras.client"])).status.success();
    assert!(has || std::env::var("CI").as_deref() != Ok("true"), "CI has oras");
    if !has {
        eprintln!("skipped: needs oras from PyPI in target/lab/venv");
        return;
    }
    let mut world = World::new(1 << 20);
    let weights = crate::node::noise("weights", 3 << 20);
    let files = [("model.safetensors", &weights[..]), ("README.md", &b"# A model\n"[..])];
    let manifest = world.layout.artifact("model", &files);
    let registry = world.registry.as_ref().expect("there");
    registry.push(&world.layout.dir, "model", "test/model:v1");
    let node = Node::start(&world.upstream());
    let script = "import sys, oras.client\n\
                  client = oras.client.OrasClient(insecure=True, tls_verify=False)\n\
                  client.pull(target=sys.argv[1], outdir=sys.argv[2])\n";
    let mut count = 0;
    let mut pulls = |name: &str| {
        count += 1;
        let to = world.path(&format!("model{count}"));
        fs::create_dir_all(&to).expect("directory");
        let image = format!("{}/test/model{name}", node.mirror);
        run(Command::new(&python).args(["-c", script, &image]).arg(&to));
        assert!(fs::read(to.join("model.safetensors")).expect("pulled") == weights);
    };
    let first = crossed(&world, || pulls(":v1"));
    assert!(first >= weights.len() as u64, "{first}");
    assert!(crossed(&world, || pulls(":v1")) < 4_000);
    assert_eq!(crossed(&world, || pulls(&format!("@{manifest}"))), 0);
}

#[test]
fn a_mount_and_the_mirror_share_the_bytes_of_a_model() {
    needs_mounts!();
    let mut world = World::new(1 << 20);
    let weights = crate::node::noise("weights", 5 << 20);
    world.layout.artifact("model", &[("model.safetensors", &weights[..])]);
    let registry = world.registry.as_ref().expect("there");
    registry.push(&world.layout.dir, "model", "test/model:v1");
    let node = Node::start(&world.upstream());
    let image = format!("{}/test/model:v1", world.upstream());
    let peersync: &Peersync = &node.peersync;
    peersync.run(&["pull", &image]);
    let stored = node.stored();
    let digest = crate::harness::layout::digest(&weights);
    let target = format!("/v2/test/model/blobs/{digest}");
    let mut reply = None;
    let crossed = crossed(&world, || {
        assert_eq!(crate::http::get(node.mirror, "/v2/test/model/manifests/v1", &[]).status(), 200);
        reply = Some(crate::http::get(node.mirror, &target, &[]));
    });
    assert!(reply.expect("an answer").body == weights);
    assert!(crossed < 8_000, "{crossed} bytes came again");
    assert_eq!(node.stored(), stored, "nothing is stored twice");
}

#[test]
fn of_a_layer_that_is_mounted_clients_get_the_compressed_bytes() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    node.peersync.run(&["pull", &format!("{}/test/image:v1", world.upstream())]);
    assert_eq!(crate::http::get(node.mirror, "/v2/test/image/manifests/v1", &[]).status(), 200);
    // Its content is here, and its bytes are not: they come, and stay.
    for layer in &world.layers {
        let size = world.blob(layer).len() as u64;
        for expected in [size, 0] {
            let mut reply = None;
            let came = crossed(&world, || {
                reply = Some(crate::http::get(node.mirror, &crate::node::blob(layer), &[]));
            });
            assert!(reply.expect("an answer").body == world.blob(layer));
            assert!((expected..=expected + 4_000).contains(&came), "{came} for {expected}");
        }
    }
}
