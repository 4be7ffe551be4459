//! Containers stand on an overlay over the mount, and lose nothing by that.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;

use crate::memory::Item;
use crate::support::{Mounted, can_mount, sh};
use peersync::types::ObjectSpec;

const NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups --";

struct Overlay {
    dir: PathBuf,
    base: PathBuf,
}

impl Overlay {
    fn over(mounted: &Mounted) -> Self {
        let base = mounted.dir.path().join("overlay");
        let dir = base.join("merged");
        sh(
            "mkdir -p \"$2/merged\" \"$2/upper\" \"$2/work\"
            mount -t overlay -o \"lowerdir=$1,upperdir=$2/upper,workdir=$2/work\" overlay \"$2/merged\"",
            &[&mounted.chain(""), &base],
        );
        Self { dir, base }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        sh("umount \"$1\"", &[&self.dir]);
    }
}

/// A program that says as whom it runs, with its set-user bit, once as a small
/// file and once large enough to be passed through.
fn mounted() -> Mounted {
    let id = fs::read("/usr/bin/id").expect("a program");
    let mut large = id.clone();
    large.resize(400 << 10, 0);
    let lower = [
        Item::dir("bin"),
        Item::file("bin/id", id).mode(0o4755),
        Item::file("bin/large-id", large.clone()).mode(0o4755),
        Item::dir("etc"),
        Item::file("etc/hosts", "127.0.0.1 localhost\n"),
        Item::file("etc/motd", "welcome\n"),
        Item::dir("etc/conf.d"),
        Item::file("etc/conf.d/a", "a"),
    ];
    let upper = [Item::whiteout("etc", "motd"), Item::file("etc/issue", "issue\n")];
    let mounted = Mounted::new(&[&lower, &upper]);
    let object = ObjectSpec::of(&large).id();
    mounted.reader.complete(&object, mounted.dir.path().join("object"));
    mounted
}

#[test]
fn set_user_bits_count_on_the_overlay_and_not_on_the_mount() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let overlay = Overlay::over(&mounted);
    for name in ["bin/id", "bin/large-id"] {
        let as_nobody = |dir: PathBuf| sh(&format!("{NOBODY} \"$1\" -u"), &[&dir.join(name)]);
        assert_eq!(as_nobody(mounted.chain("")).trim(), "65534", "{name}");
        assert_eq!(as_nobody(overlay.dir.clone()).trim(), "0", "{name}");
    }
    assert!(mounted.handle.stats().passthrough_opens > 0);
}

#[test]
fn an_overlay_can_be_worked_in() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let overlay = Overlay::over(&mounted);
    let at = |path: &str| overlay.dir.join(path);
    let script = "cd \"$1\"
        ls etc
        echo 127.0.0.2 other >> etc/hosts
        cat etc/hosts
        rm etc/issue
        rm -r etc/conf.d
        mkdir etc/conf.d
        chmod 600 bin/id
        mv bin/large-id bin/moved-id
        ls etc etc/conf.d bin";
    let output = sh(script, &[&overlay.dir]);
    assert_eq!(
        output,
        "conf.d\nhosts\nissue\n127.0.0.1 localhost\n127.0.0.2 other\n\
        bin:\nid\nmoved-id\n\netc:\nconf.d\nhosts\n\netc/conf.d:\n"
    );
    assert_eq!(fs::metadata(at("bin/id")).expect("copied up").mode() & 0o7777, 0o600);
    let whiteout = fs::symlink_metadata(overlay.base.join("upper/etc/issue")).expect("a whiteout");
    assert!(whiteout.file_type().is_char_device());
    // Below, all is as it was.
    assert_eq!(
        fs::read_to_string(mounted.chain("etc/hosts")).expect("text"),
        "127.0.0.1 localhost\n"
    );
    let lower = fs::metadata(mounted.chain("bin/id")).expect("a file");
    assert_eq!(lower.mode() & 0o7777, 0o4755);
    assert_eq!(fs::read(mounted.chain("etc/conf.d/a")).expect("a file"), b"a");
}

#[test]
fn programs_run_from_the_overlay_while_layers_come_from_elsewhere() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let overlay = Overlay::over(&mounted);
    // Runs mapped from the overlay, whose lower file is passed through.
    let output = sh("\"$1/bin/large-id\" -u; \"$1/bin/id\" -u", &[&overlay.dir]);
    assert_eq!(output, "0\n0\n");
    // Others looking at the same chain change nothing for the overlay.
    let listing = "find \"$1\" | sort | sed \"s,^$1,,\"";
    let before = sh(listing, &[&overlay.dir]);
    sh("ls -lR \"$1\" > /dev/null", &[mounted.point()]);
    assert_eq!(sh(listing, &[&overlay.dir]), before);
}
