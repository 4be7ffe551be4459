//! Images in files, as `docker save` and skopeo write them.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use crate::harness::layout::{Compression, layer_streams};
use crate::harness::peersync::Peersync;
use crate::harness::tree::Tree;
use crate::harness::{lab_images, needs_mounts, run, scratch, tool};
use crate::trees::{root_time, unpack};

/// Has skopeo write the small real image to a file.
fn archive(file: &Path) {
    let from = format!("oci:{}:v1", lab_images().join("oci").display());
    let to = format!("docker-archive:{}:test/small:v1", file.display());
    tool("skopeo", &["copy", "-q", &from, &to]);
}

#[test]
fn an_archive_is_the_tree_that_its_image_is() {
    needs_mounts!();
    let place = scratch();
    let file = place.path().join("image.tar");
    archive(&file);
    let peersync = Peersync::new();
    let image = format!("docker-archive:{}", file.display());
    let tree = unpack(&lab_images().join("oci"), "v1");
    let mount = peersync.mount(&image, &[]);
    tree.assert_same(&Tree::read(&mount.path), &root_time());
    mount.umount(&peersync);
    // By its name too, and without a second pass.
    let mount = peersync.mount(&format!("{image}:test/small:v1"), &["--index", "require"]);
    tree.assert_same(&Tree::read(&mount.path), &root_time());
    mount.umount(&peersync);
    let said = peersync.fails(&["pull", &format!("{image}:other:v1")]);
    assert!(said.contains("test/small:v1"), "{said}");
    assert!(peersync.fails(&["index", "push", &image]).contains("archive"));
}

/// Layers that are compressed, and one that stands there twice, the second time
/// as a link: old versions of `docker save` did that.
#[test]
fn layers_may_be_compressed_and_linked() {
    needs_mounts!();
    let place = scratch();
    let dir = place.path().join("content");
    fs::create_dir_all(dir.join("a")).expect("directory");
    fs::create_dir_all(dir.join("b")).expect("directory");
    let streams = layer_streams(&lab_images().join("oci"), "v1");
    let stream = streams.first().expect("a layer");
    fs::write(dir.join("a/layer.tar"), Compression::Gzip.compress(stream)).expect("layer");
    std::os::unix::fs::symlink("../a/layer.tar", dir.join("b/layer.tar")).expect("link");
    let diff_id = crate::harness::layout::digest(stream);
    let config = serde_json::json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]}});
    fs::write(dir.join("config.json"), config.to_string()).expect("config");
    let layers = ["a/layer.tar", "b/layer.tar"];
    let list = serde_json::json!([{"Config": "config.json", "RepoTags": null, "Layers": layers}]);
    fs::write(dir.join("manifest.json"), list.to_string()).expect("manifest");
    let file = place.path().join("image.tar");
    run(Command::new("tar").arg("-cf").arg(&file).arg("-C").arg(&dir).arg("."));
    let peersync = Peersync::new();
    let image = format!("docker-archive:{}", file.display());
    let mount = peersync.mount(&image, &[]);
    assert!(Tree::read(&mount.path).entries.len() > 10);
    mount.umount(&peersync);
    // A file that is no archive is an error, and so is one that is cut off.
    let compressed = Compression::Gzip.compress(b"anything");
    fs::write(place.path().join("a.tar.gz"), compressed.repeat(100)).expect("file");
    let other = format!("docker-archive:{}/a.tar.gz", place.path().display());
    assert!(peersync.fails(&["pull", &other]).contains("gunzip"));
    File::options().write(true).open(&file).and_then(|f| f.set_len(4096)).expect("cut");
    assert!(peersync.fails(&["pull", &image]).contains("is not an archive"));
}
