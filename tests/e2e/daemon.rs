//! `peersync daemon`: the whole tree below one mount.

use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::layout::{Compression, Layout, layer_streams};
use crate::harness::peersync::{Daemon, Mount, Peersync, is_mounted};
use crate::harness::registry::Registry;
use crate::harness::tree::{Allow, Tree};
use crate::harness::{lab_images, needs_mounts, scratch, tool};
use crate::trees::unpack;

struct Node {
    // In this order: the mount goes, then the daemon, then the store.
    mount: Mount,
    daemon: Option<Daemon>,
    peersync: Peersync,
    registry: Registry,
}

impl Node {
    fn start() -> Self {
        let registry = Registry::start();
        let peersync = Peersync::new();
        let point = peersync.mount_point();
        let mount = Mount::watch(&point);
        let daemon = Daemon::start(&peersync, &config(&peersync, &point), &point);
        Self { mount, daemon: Some(daemon), peersync, registry }
    }

    /// Where an image of the test's registry shows.
    fn image(&self, name: &str) -> PathBuf {
        self.mount.join("images").join(self.registry.address.to_string()).join(name)
    }
}

fn config(peersync: &Peersync, point: &Path) -> String {
    format!("[store]\npath = {:?}\n[mount]\npath = {point:?}\n", peersync.store())
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap_or_else(|e| panic!("{directory:?}: {e}"));
    let mut names: Vec<String> =
        entries.map(|e| e.expect("entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn looking_an_image_up_resolves_it() {
    needs_mounts!();
    let node = Node::start();
    node.registry.push(&lab_images().join("oci"), "v1", "test/small:v1");
    let image = node.image("test/small:v1");
    // Not known, so not listed; named, so resolved.
    assert_eq!(names(&node.mount.join("images")), [""; 0]);
    let release = tool("cat", &[image.join("usr/lib/os-release")]);
    assert_eq!(release, fs::read_to_string("/usr/lib/os-release").expect("os-release"));
    assert_eq!(names(&node.mount.join("images")), [node.registry.address.to_string()]);
    let wanted = unpack(&lab_images().join("oci"), "v1");
    let allow = Allow { times: [Vec::new()].into(), ..Allow::default() };
    wanted.assert_same(&Tree::read(&image), &allow);
    // The layers show by diffID, and by blob digest as links to them.
    let listed = names(&node.mount.join("layers"));
    for stream in layer_streams(&lab_images().join("oci"), "v1") {
        let name = crate::harness::layout::digest(&stream).replace(':', "-");
        assert!(listed.contains(&name), "{name} in {listed:?}");
    }
    assert!(!names(&node.mount.join("chains")).is_empty());
    assert!(node.mount.join(".peersync/version").exists());
}

#[test]
fn a_file_has_one_inode_wherever_it_shows() {
    use std::os::unix::fs::MetadataExt;
    needs_mounts!();
    let node = Node::start();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut tar = crate::harness::tar::Tar::new();
    tar.directory(b"directory").file(b"directory/file", b"content");
    let stream = tar.finish();
    layout.image("v1", std::slice::from_ref(&stream), Compression::Gzip);
    node.registry.push(place.path(), "v1", "test/one:v1");
    let in_image = fs::metadata(node.image("test/one:v1").join("directory/file")).expect("file");
    let layer = crate::harness::layout::digest(&stream).replace(':', "-");
    let in_layer = node.mount.join("layers").join(layer).join("directory/file");
    let in_layer = fs::metadata(in_layer).expect("file in the layer");
    assert_eq!(in_image.ino(), in_layer.ino());
}

#[test]
fn a_layer_shows_its_whiteouts_as_overlayfs_wants_them() {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    needs_mounts!();
    let node = Node::start();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let mut below = crate::harness::tar::Tar::new();
    below.file(b"gone", b"x").directory(b"opaque").file(b"opaque/old", b"x").file(b"stays", b"x");
    let mut above = crate::harness::tar::Tar::new();
    above.file(b".wh.gone", b"").directory(b"opaque").file(b"opaque/.wh..wh..opq", b"");
    let above = above.finish();
    layout.image("v1", &[below.finish(), above.clone()], Compression::Gzip);
    node.registry.push(place.path(), "v1", "test/two:v1");
    assert_eq!(names(&node.image("test/two:v1")), ["opaque", "stays"]);
    let layer = crate::harness::layout::digest(&above).replace(':', "-");
    let layer = node.mount.join("layers").join(layer);
    let gone = fs::symlink_metadata(layer.join("gone")).expect("whiteout");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = xattr::get(layer.join("opaque"), "trusted.overlay.opaque").expect("xattr");
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
}

#[test]
fn a_tag_that_moves_is_followed() {
    needs_mounts!();
    let node = Node::start();
    let place = scratch();
    let mut layout = Layout::create(place.path());
    for tag in ["old", "new"] {
        let mut tar = crate::harness::tar::Tar::new();
        tar.file(b"which", tag.as_bytes());
        layout.image(tag, &[tar.finish()], Compression::Gzip);
    }
    node.registry.push(place.path(), "old", "test/moving:v1");
    let which = node.image("test/moving:v1").join("which");
    assert_eq!(fs::read(&which).expect("old"), b"old");
    let mut open = fs::File::open(&which).expect("open");
    node.registry.push(place.path(), "new", "test/moving:v1");
    node.peersync.run(&["pull", &format!("{}/test/moving:v1", node.registry.address)]);
    crate::harness::wait_until(
        "the name shows the new image",
        std::time::Duration::from_secs(20),
        || fs::read(&which).is_ok_and(|bytes| bytes == b"new"),
    );
    // What was open stays what it was.
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut bytes).expect("read on");
    assert_eq!(bytes, b"old");
}

#[test]
fn an_image_that_does_not_exist_is_not_there() {
    needs_mounts!();
    let node = Node::start();
    let error = fs::metadata(node.image("test/never:v1")).expect_err("no such image");
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
}

#[test]
fn a_restart_needs_no_registry_for_what_is_there() {
    needs_mounts!();
    let mut node = Node::start();
    node.registry.push(&lab_images().join("oci"), "v1", "test/small:v1");
    let image = node.image("test/small:v1");
    let before = Tree::read(&image);
    let code = node.daemon.take().expect("daemon").stop();
    assert_eq!(code, Some(0), "a daemon that is told to end ends well");
    assert!(!is_mounted(&node.mount.path));
    let Node { mount, peersync, registry, .. } = node;
    drop(registry);
    let config = config(&peersync, &mount.path);
    let daemon = Daemon::start(&peersync, &config, &mount.path);
    before.assert_same(&Tree::read(&image), &Allow::default());
    drop((daemon, mount, peersync));
}
