//! A mounted image is the very tree that unpacking makes, whatever its compression.

use std::path::Path;
use std::sync::OnceLock;

use crate::harness::layout::{Compression, Layout, layer_streams};
use crate::harness::peersync::Peersync;
use crate::harness::tree::{Allow, Tree};
use crate::harness::{lab_images, needs_mounts, scratch, tool};

/// The small real image as `umoci unpack` makes it (of the gzip layers: umoci
/// 0.4 knows no zstd).
fn reference() -> &'static Tree {
    static TREE: OnceLock<Tree> = OnceLock::new();
    TREE.get_or_init(|| unpack(&lab_images().join("oci"), "v1"))
}

/// What umoci makes of an image.
pub(crate) fn unpack(layout: &Path, tag: &str) -> Tree {
    let place = scratch();
    let bundle = place.path().join("bundle");
    let image = format!("{}:{tag}", layout.display());
    tool("umoci", &["unpack", "--image", &image, &bundle.display().to_string()]);
    Tree::read(&bundle.join("rootfs"))
}

/// The root directory stands in no layer of this image: it has no time.
pub(crate) fn root_time() -> Allow {
    Allow { times: [Vec::new()].into(), ..status_directory() }
}

/// Every mount has `.peersync/` besides the image.
pub(crate) fn status_directory() -> Allow {
    Allow { paths: [b".peersync".to_vec()].into(), ..Allow::default() }
}

#[track_caller]
fn assert_mounts_as_unpacked(image: &str) {
    let peersync = Peersync::new();
    let mount = peersync.mount(image, &[]);
    reference().assert_same(&Tree::read(&mount.path), &root_time());
    mount.umount(&peersync);
}

/// The image in a tool's own compression; it may be missing where the
/// distribution lacks the tool.
fn made_by_tool(variant: &str, tag: &str) {
    needs_mounts!();
    let layout = lab_images().join(variant);
    if layout.join("index.json").exists() {
        assert_mounts_as_unpacked(&format!("oci:{}:{tag}", layout.display()));
    } else {
        eprintln!("skipped: the tool that makes {variant} is not there");
    }
}

fn made_by_hand(how: Compression) {
    needs_mounts!();
    let place = scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    let streams = layer_streams(&lab_images().join("oci"), "v1");
    layout.image("v1", &streams, how);
    drop(streams);
    assert_mounts_as_unpacked(&layout.reference("v1"));
}

#[test]
fn gzip() {
    made_by_tool("oci", "v1");
}

#[test]
fn zstd_of_one_frame() {
    made_by_tool("zstd", "v1");
}

#[test]
fn zstd_chunked() {
    made_by_tool("chunked", "v1");
}

#[test]
fn estargz() {
    made_by_tool("estargz", "v1-esgz");
}

#[test]
fn plain_tar() {
    made_by_hand(Compression::Plain);
}

#[test]
fn gzip_of_independent_blocks() {
    made_by_hand(Compression::Pigz);
}

#[test]
fn gzip_of_several_members() {
    made_by_hand(Compression::GzipMembers(3_000_001));
}

#[test]
fn zstd_of_several_frames() {
    made_by_hand(Compression::ZstdFrames(1_000_003));
}
