//! The comparison of trees is what the other tests rely on: it finds each kind
//! of difference, and none where there is none.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use crate::harness::tree::{Allow, Tree};
use crate::harness::{lab_images, needs_mounts, run, scratch, tool};

/// A small tree with one of each kind.
fn make(root: &Path) {
    fs::create_dir_all(root.join("directory/below")).expect("directories");
    fs::write(root.join("directory/file"), b"content").expect("file");
    fs::hard_link(root.join("directory/file"), root.join("linked")).expect("link");
    fs::write(root.join("alone"), b"content").expect("file");
    symlink("directory/file", root.join("symlink")).expect("symlink");
    tool("mkfifo", &[root.join("fifo")]);
    run(Command::new("mknod").arg(root.join("device")).args(["c", "1", "3"]));
    xattr::set(root.join("alone"), "user.colour", b"blue").expect("xattr");
    let at = SystemTime::UNIX_EPOCH + Duration::new(1_600_000_000, 123_456_789);
    for path in ["", "directory", "directory/below", "directory/file", "alone", "fifo", "device"] {
        let path = root.join(path).display().to_string();
        let stamp = format!(
            "@{}.123456789",
            at.duration_since(SystemTime::UNIX_EPOCH).expect("time").as_secs()
        );
        tool("touch", &["-h", "-d", &stamp, &path]);
    }
    tool("touch", &["-h", "-d", "@1600000000.5", &root.join("symlink").display().to_string()]);
}

/// Differences after one change to a copy.
fn after(change: impl FnOnce(&Path)) -> Vec<String> {
    let place = scratch();
    let (one, other) = (place.path().join("one"), place.path().join("other"));
    make(&one);
    make(&other);
    change(&other);
    // A change below a directory moves its time; that is not what is tested.
    for path in ["", "directory"] {
        tool(
            "touch",
            &["-r", &one.join(path).display().to_string(), &other.join(path).display().to_string()],
        );
    }
    Tree::read(&one).differences(&Tree::read(&other), &Allow::default())
}

fn touch(path: &Path, stamp: &str) {
    tool("touch", &["-h", "-d", stamp, &path.display().to_string()]);
}

#[test]
fn equal_trees_do_not_differ() {
    needs_mounts!();
    assert_eq!(after(|_| ()), [""; 0]);
}

#[test]
fn each_attribute_counts() {
    needs_mounts!();
    let one = |found: Vec<String>, word: &str| {
        assert!(found.len() == 1 && found[0].contains(word), "{word}: {found:?}");
    };
    one(after(|root| touch(&root.join("alone"), "@1600000000.123456788")), "time");
    one(after(|root| touch(&root.join("symlink"), "@1600000000.6")), "time");
    one(after(|root| chown(root.join("fifo"), Some(7), None).expect("chown")), "owner");
    one(
        after(|root| xattr::set(root.join("alone"), "user.colour", b"red").expect("xattr")),
        "xattrs",
    );
    one(after(|root| xattr::remove(root.join("alone"), "user.colour").expect("xattr")), "xattrs");
    let mode = fs::Permissions::from_mode(0o4755);
    one(after(|root| fs::set_permissions(root.join("alone"), mode).expect("mode")), "mode");
    one(
        after(|root| {
            fs::write(root.join("alone"), b"CONTENT").expect("write");
            touch(&root.join("alone"), "@1600000000.123456789");
        }),
        "is File",
    );
    one(
        after(|root| {
            fs::remove_file(root.join("device")).expect("remove");
            run(Command::new("mknod").arg(root.join("device")).args(["c", "1", "5"]));
            touch(&root.join("device"), "@1600000000.123456789");
        }),
        "CharDevice",
    );
    one(after(|root| fs::remove_file(root.join("fifo")).expect("remove")), "missing");
    one(after(|root| fs::write(root.join("extra"), b"").expect("write")), "should not be there");
}

#[test]
fn which_names_are_linked_counts() {
    needs_mounts!();
    // The same link counts, but other names: `alone` and `linked` change places.
    let found = after(|root| {
        fs::remove_file(root.join("linked")).expect("remove");
        fs::hard_link(root.join("alone"), root.join("linked")).expect("link");
    });
    assert!(found.iter().any(|line| line.contains("missing link group")), "{found:?}");
    assert!(found.iter().any(|line| line.contains("wrong link group")), "{found:?}");
}

#[test]
fn a_real_image_unpacked_twice_is_the_same() {
    needs_mounts!();
    let place = scratch();
    let image = format!("{}:v1", lab_images().join("oci").display());
    let trees = ["one", "other"].map(|name| {
        let bundle = place.path().join(name).display().to_string();
        tool("umoci", &["unpack", "--image", &image, &bundle]);
        Tree::read(&place.path().join(name).join("rootfs"))
    });
    trees[0].assert_same(&trees[1], &Allow::default());
    assert!(trees[0].entries.len() > 500, "{} names", trees[0].entries.len());
    assert!(!trees[0].linked.is_empty(), "the image has hard links");
}
