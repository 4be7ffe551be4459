//! What programs see through the kernel.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};
use peersync::fs::{FsOptions, Root};
use peersync::layer::entry::EntryKind;

use crate::memory::{Item, layer, slot};
use crate::support::{self, Mounted, can_mount, errno, sh, xattr};

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}

fn set<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.into_iter().map(str::to_owned).collect()
}

/// Two layers with some of everything.
fn layers() -> [Vec<Item>; 2] {
    let device = |major, minor| EntryKind::CharDevice { major, minor };
    [
        vec![
            Item::dir("").mode(0o755).mtime(1_600_000_000, 1),
            Item::dir("bin"),
            Item::file("bin/tool", "#!/bin/sh\n").mode(0o4755).mtime(-5, 500_000_000),
            Item::dir("dev"),
            Item::new("dev/null", device(1, 3)).mode(0o666),
            Item::new("dev/loop", EntryKind::BlockDevice { major: 259, minor: 70000 }),
            Item::new("dev/fifo", EntryKind::Fifo).mode(0o600),
            Item::dir("etc").mode(0o1777).owner(100, 200),
            Item::file("etc/one", "one"),
            Item::link("etc/two", "etc/one"),
            Item::symlink("etc/link", "../bin/tool"),
            Item::file("etc/gone", "gone"),
            Item::dir("var/cache"),
            Item::file("var/cache/old", "old"),
            Item::file("big-owner", "").owner(4_000_000_000, 4_100_000_000),
            Item::file("caps", "x")
                .xattr(
                    "security.capability",
                    &[1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                )
                .xattr("user.note", b"hello"),
        ],
        vec![
            // Directories that overlayfs merges have the upper one's attributes;
            // only ours look further down where no entry describes them.
            Item::dir("").mode(0o755).mtime(1_600_000_000, 1),
            Item::dir("etc").mode(0o1777).owner(100, 200),
            Item::whiteout("etc", "gone"),
            Item::dir("var/cache").mode(0o700),
            Item::opaque("var/cache"),
            Item::file("var/cache/new", "new"),
            Item::dir("etc/sub"),
        ],
    ]
}

fn mounted() -> Mounted {
    let layers = layers();
    Mounted::new(&[&layers[0], &layers[1]])
}

#[test]
fn everything_is_as_the_tar_has_it() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let at = |path: &str| fs::symlink_metadata(mounted.chain(path)).expect("it is there");
    assert_eq!(names(&mounted.chain("")), set(["bin", "dev", "etc", "var", "big-owner", "caps"]));
    assert_eq!(names(&mounted.chain("etc")), set(["one", "two", "link", "sub"]));
    assert_eq!(names(&mounted.chain("var/cache")), set(["new"]));

    let tool = at("bin/tool");
    assert_eq!((tool.mode(), tool.size(), tool.blocks()), (0o104_755, 10, 8));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (-5, 500_000_000));
    assert_eq!((tool.ctime(), tool.ctime_nsec()), (-5, 500_000_000));
    let null = at("dev/null");
    assert!(null.file_type().is_char_device());
    assert_eq!(null.rdev(), nix::sys::stat::makedev(1, 3));
    let block = at("dev/loop");
    assert!(block.file_type().is_block_device());
    assert_eq!(block.rdev(), nix::sys::stat::makedev(259, 70000));
    assert!(at("dev/fifo").file_type().is_fifo());
    let etc = at("etc");
    assert_eq!((etc.mode(), etc.uid(), etc.gid(), etc.nlink()), (0o41777, 100, 200, 3));
    let (one, two) = (at("etc/one"), at("etc/two"));
    assert_eq!((one.ino(), one.nlink()), (two.ino(), 2));
    assert_eq!(fs::read_link(mounted.chain("etc/link")).expect("a link"), Path::new("../bin/tool"));
    assert_eq!(at("etc/link").size(), 11);
    assert_eq!(at("var/cache").mode(), 0o40700);
    let big = at("big-owner");
    assert_eq!((big.uid(), big.gid(), big.blocks()), (4_000_000_000, 4_100_000_000, 0));
    assert_eq!(at("").nlink(), 6);
    assert_eq!(at("").mtime(), 1_600_000_000);

    let caps = mounted.chain("caps");
    assert_eq!(xattr(&caps, "user.note"), Ok(b"hello".to_vec()));
    assert_eq!(xattr(&caps, "security.capability").map(|v| v.len()), Ok(20));
    assert_eq!(xattr(&caps, "user.other"), Err(nix::libc::ENODATA));
    assert_eq!(
        xattr(&mounted.chain("var/cache"), "trusted.overlay.opaque"),
        Err(nix::libc::ENODATA)
    );

    let dots = sh("ls -fa \"$1\" | head -n 2; cd \"$1\"; pwd -P", &[&mounted.chain("etc")]);
    assert!(dots.starts_with(".\n..\n"), "{dots}");
    assert!(dots.trim_end().ends_with("/etc"), "{dots}");
    let stat = statvfs(mounted.point()).expect("statvfs");
    assert!(stat.blocks() > 0 && stat.files() > 0 && stat.block_size() > 0);
    assert_eq!(stat.name_max(), 255);
}

#[test]
fn a_layer_alone_is_what_overlayfs_wants() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    mounted.catalog.add_link("sha256-b10b", slot(2));
    let gone = fs::symlink_metadata(mounted.layer(2, "etc/gone")).expect("a whiteout");
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
    let opaque = mounted.layer(2, "var/cache");
    assert_eq!(xattr(&opaque, "trusted.overlay.opaque"), Ok(b"y".to_vec()));
    assert_eq!(xattr(&opaque, "user.overlay.opaque"), Err(nix::libc::ENODATA));
    assert_eq!(xattr(&mounted.layer(2, "etc"), "trusted.overlay.opaque"), Err(nix::libc::ENODATA));
    let link = mounted.point().join("layers/sha256-b10b");
    assert_eq!(
        link.canonicalize().expect("a link"),
        mounted.layer(2, "").canonicalize().expect("a layer")
    );
    assert_eq!(names(&mounted.point().join("layers")).len(), 3);

    // Overlayfs makes of the layers what the merged view shows.
    let over = mounted.dir.path().join("over");
    fs::create_dir(&over).expect("a directory");
    sh(
        "mount -t overlay -o ro,lowerdir=\"$2:$1\" overlay \"$3\"",
        &[&mounted.layer(1, ""), &mounted.layer(2, ""), &over],
    );
    let listing = "cd \"$1\" && find . -printf '%p %y %m %U %G %s %n %T@ %l\\n' | sort";
    // Overlayfs shows one name for each merged directory.
    let without_links = |text: String| {
        let words = text.lines().map(|line| {
            let mut words: Vec<_> = line.split(' ').collect();
            if words[1] == "d" {
                words[6] = "-";
            }
            words.join(" ")
        });
        words.collect::<Vec<_>>().join("\n")
    };
    let by_overlayfs = without_links(sh(listing, &[&over]));
    let by_us = without_links(sh(listing, &[&mounted.chain("")]));
    sh("umount \"$1\"", &[&over]);
    assert_eq!(by_overlayfs, by_us);
}

#[test]
fn nothing_can_be_written() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let at = |path: &str| mounted.chain(path);
    let rofs = nix::libc::EROFS;
    assert_eq!(errno(fs::write(at("new"), "x")), rofs);
    assert_eq!(errno(fs::write(at("etc/one"), "x")), rofs);
    assert_eq!(errno(File::options().append(true).open(at("etc/one"))), rofs);
    assert_eq!(errno(fs::create_dir(at("new"))), rofs);
    assert_eq!(errno(fs::remove_file(at("etc/one"))), rofs);
    assert_eq!(errno(fs::remove_dir(at("etc/sub"))), rofs);
    assert_eq!(errno(fs::rename(at("etc/one"), at("etc/three"))), rofs);
    assert_eq!(errno(fs::hard_link(at("etc/one"), at("etc/three"))), rofs);
    assert_eq!(errno(symlink("x", at("etc/three"))), rofs);
    let mode = fs::Permissions::from_mode(0o777);
    assert_eq!(errno(fs::set_permissions(at("etc/one"), mode)), rofs);
    assert_eq!(errno(std::os::unix::fs::chown(at("etc/one"), Some(1), None)), rofs);
    assert_eq!(errno(fs::write(mounted.point().join("images/x"), "x")), rofs);
}

#[test]
fn a_sparse_file_has_its_holes() {
    if !can_mount() {
        return;
    }
    const TIB: u64 = 1 << 40;
    let end = vec![9; 5000];
    let mounted = Mounted::new(&[&[
        Item::sparse("sparse", TIB, &[(0, b"begin"), (1 << 30, b"middle"), (TIB - 5000, &end)]),
        Item::sparse("hole", 1 << 20, &[]),
        Item::file("dense", "dense"),
    ]]);
    let file = File::open(mounted.chain("sparse")).expect("a file");
    let meta = file.metadata().expect("its attributes");
    assert_eq!((meta.size(), meta.blocks()), (TIB, 16));
    let read = |offset: u64, len: usize| {
        let mut buf = vec![1; len];
        let read = file.read_at(&mut buf, offset).expect("bytes");
        buf.truncate(read);
        buf
    };
    assert_eq!(read(0, 8), b"begin\0\0\0");
    assert_eq!(read((1 << 30) - 2, 10), b"\0\0middle\0\0");
    assert_eq!(read(500 << 30, 70_000), vec![0; 70_000]);
    assert_eq!(read(TIB - 5002, 6000), [&[0, 0][..], &end].concat());
    assert_eq!(read(TIB, 10), b"");

    let seek = |file: &File, offset, whence| {
        lseek(file.as_fd(), offset, whence).map_err(|errno| errno as i32)
    };
    let (data, hole) = (Whence::SeekData, Whence::SeekHole);
    assert_eq!(seek(&file, 2, data), Ok(2));
    assert_eq!(seek(&file, 2, hole), Ok(5));
    assert_eq!(seek(&file, 5, data), Ok(1 << 30));
    assert_eq!(seek(&file, (1 << 30) + 1, hole), Ok((1 << 30) + 6));
    assert_eq!(seek(&file, TIB as i64 - 4999, hole), Ok(TIB as i64));
    assert_eq!(seek(&file, TIB as i64, data), Err(nix::libc::ENXIO));
    let empty = File::open(mounted.chain("hole")).expect("a file");
    assert_eq!(seek(&empty, 0, data), Err(nix::libc::ENXIO));
    assert_eq!(seek(&empty, 7, hole), Ok(7));
    assert_eq!(fs::read(mounted.chain("hole")).expect("zeros"), vec![0; 1 << 20]);
    let dense = File::open(mounted.chain("dense")).expect("a file");
    assert_eq!(seek(&dense, 3, hole), Ok(5));
}

#[test]
fn a_hundred_thousand_entries_are_listed_once_each() {
    if !can_mount() {
        return;
    }
    const COUNT: usize = 100_000;
    let mut bottom: Vec<Item> =
        (0..COUNT).map(|n| Item::file(&format!("many/file-{n:06}"), "")).collect();
    bottom.extend((0..1000).map(|n| Item::dir(&format!("dirs/{n}"))));
    let top = [Item::file("many/file-000007", "top"), Item::whiteout("many", "file-000008")];
    let mounted = Mounted::new(&[&bottom, &top]);
    for (dir, expected) in [
        (mounted.chain("many"), COUNT - 1),
        (mounted.layer(1, "many"), COUNT),
        (mounted.chain("dirs"), 1000),
    ] {
        let mut all: Vec<_> = fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(all.len(), expected);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), expected);
    }
    assert_eq!(fs::metadata(mounted.chain("dirs")).expect("a directory").nlink(), 1002);
    assert_eq!(fs::read(mounted.chain("many/file-000007")).expect("a file"), b"top");
    assert!(!mounted.chain("many/file-000008").exists());
    assert!(!mounted.chain("many/file-100000").exists());
    // Where a listing was left, it goes on.
    let (here, rest) = {
        let mut dir = nix::dir::Dir::open(
            &mounted.chain("many"),
            nix::fcntl::OFlag::O_RDONLY | nix::fcntl::OFlag::O_DIRECTORY,
            nix::sys::stat::Mode::empty(),
        )
        .expect("a directory");
        let some: BTreeSet<_> =
            dir.iter().take(50_000).map(|e| e.expect("an entry").file_name().to_owned()).collect();
        let all = dir.iter().map(|e| e.expect("an entry").file_name().to_owned());
        (some, all.collect::<BTreeSet<_>>())
    };
    assert_eq!(here.len(), 50_000);
    assert!(rest.len() >= COUNT - 1 - 50_000);
}

#[test]
fn a_file_is_the_same_inode_in_every_view() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    mounted.catalog.add_image("docker.io/library/x:1", support::VIEW());
    let image = mounted.point().join("images/docker.io/library/x:1");
    for path in ["bin/tool", "etc/one", "etc/link", "dev/null", "caps"] {
        let views = [mounted.layer(1, path), mounted.chain(path), image.join(path)];
        let all = views.map(|path| fs::symlink_metadata(path).expect("it is there"));
        for other in &all[1..] {
            assert_eq!(all[0].ino(), other.ino(), "{path}");
            assert_eq!(all[0].mode(), other.mode(), "{path}");
            assert_eq!(all[0].nlink(), other.nlink(), "{path}");
            assert_eq!(all[0].modified().ok(), other.modified().ok(), "{path}");
        }
    }
    // One page cache: what one view has read, the others have.
    fs::read(mounted.chain("etc/one")).expect("a file");
    mounted.reader.set(None, &crate::memory::State::Held);
    assert_eq!(fs::read(image.join("etc/one")).expect("cached"), b"one");
    assert_eq!(fs::read(mounted.layer(1, "etc/two")).expect("cached"), b"one");
    mounted.reader.set(None, &crate::memory::State::Resident);
    // A process stays where it is whatever others look at.
    let dir = sh(
        "cd \"$1\"; ls \"$2\" \"$3\" > /dev/null; pwd -P; cat one",
        &[&mounted.chain("etc"), &image.join("etc"), &mounted.layer(1, "etc")],
    );
    assert!(dir.contains("/chains/") && dir.ends_with("/etc\none"), "{dir}");
}

#[test]
fn numbers_hold_across_mounts() {
    if !can_mount() {
        return;
    }
    let first = mounted();
    let list = "cd \"$1\" && find . -printf '%p %i\\n' | sort";
    let before = sh(list, &[first.point()]);
    let (catalog, reader) = (first.catalog.clone(), first.reader.clone());
    drop(first);
    let second = Mounted::over(catalog, reader, Root::Whole, FsOptions::default(), |_| ());
    assert_eq!(sh(list, &[second.point()]), before);
}

#[test]
fn names_of_images_come_and_change() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let images = mounted.point().join("images");
    assert_eq!(names(&images), set([]));
    // For those who may have it resolved, the way there is there.
    assert!(images.join("docker.io/library").is_dir());
    assert!(!images.join("nothing").exists());
    assert_eq!(names(&images), set([]));

    mounted.catalog.add_image("docker.io/library/x:1", support::VIEW());
    let image = images.join("docker.io/library/x:1");
    assert_eq!(fs::read(image.join("etc/one")).expect("a file"), b"one");
    // The listing was cached, and a second later it is not.
    until(|| names(&images) == set(["docker.io"]));
    assert_eq!(names(&images.join("docker.io/library")), set(["x:1"]));

    // Another resolution: another view, and other nodes.
    let before = fs::metadata(&image).expect("the image").ino();
    let new = layer(slot(7), &[Item::file("etc/one", "another")], &mounted.reader);
    mounted.catalog.add_layer(&new);
    mounted.catalog.add_view(slot(102), slot(102), "image", &[new]);
    let old = File::open(image.join("etc/one")).expect("a file");
    mounted.catalog.add_image("docker.io/library/x:1", slot(102));
    until(|| fs::read(image.join("etc/one")).expect("a file") == b"another");
    assert_ne!(fs::metadata(&image).expect("the image").ino(), before);
    let mut buf = [0; 3];
    old.read_exact_at(&mut buf, 0).expect("still open");
    assert_eq!(&buf, b"one");
}

/// Waits for something that the kernel's own clock brings about.
fn until(condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + support::PATIENCE;
    while !condition() {
        assert!(std::time::Instant::now() < end, "it never came about");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn a_new_layer_shows_in_the_listing() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let layers = mounted.point().join("layers");
    assert_eq!(names(&layers).len(), 2);
    let new = layer(slot(8), &[Item::file("new", "new")], &mounted.reader);
    assert!(!layers.join(&new.name).exists());
    mounted.catalog.add_layer(&new);
    assert_eq!(fs::read(layers.join(&new.name).join("new")).expect("at once"), b"new");
    until(|| names(&layers).len() == 3);
    // And goes: what is still known of it is an error, not another layer.
    mounted.catalog.remove_layer(slot(8));
    until(|| names(&layers).len() == 2);
    assert_eq!(errno(fs::read(layers.join(&new.name).join("other"))), nix::libc::ENOENT);
}

#[test]
fn status_files_are_current() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let status = mounted.point().join(".peersync");
    assert_eq!(names(&status), set(["version", "stats"]));
    assert_eq!(fs::read_to_string(status.join("version")).expect("text"), "peersync test\n");
    let before = fs::read_to_string(status.join("stats")).expect("text");
    mounted.catalog.add_link("sha256-x", slot(1));
    let after = fs::read_to_string(status.join("stats")).expect("text");
    assert_ne!(before, after);
    assert_eq!(names(mounted.point()), set(["layers", "chains", "images", ".peersync"]));
}

#[test]
fn an_image_alone_is_the_root() {
    if !can_mount() {
        return;
    }
    let layers = layers();
    let root = Root::Image(support::VIEW());
    let mounted = Mounted::with(&[&layers[0], &layers[1]], root, FsOptions::default(), |_| ());
    let top = mounted.point();
    assert_eq!(names(top), set(["bin", "dev", "etc", "var", "big-owner", "caps"]));
    let meta = fs::metadata(top).expect("the root");
    assert_eq!((meta.ino(), meta.nlink(), meta.mtime()), (1, 6, 1_600_000_000));
    assert_eq!(fs::read(top.join("etc/one")).expect("a file"), b"one");
    assert_eq!(fs::read_to_string(top.join(".peersync/version")).expect("text"), "peersync test\n");
    assert!(!top.join("layers").exists());
    assert_eq!(sh("cd \"$1/etc/sub/../..\"; pwd -P", &[top]).trim(), top.to_str().expect("text"));
    sh("find \"$1\" > /dev/null", &[top]);
}

#[test]
fn the_rights_in_an_acl_count() {
    if !can_mount() {
        return;
    }
    const NOBODY: u32 = 65534;
    let entry = |tag: u16, perm: u16, id: u32| {
        let mut bytes = tag.to_le_bytes().to_vec();
        bytes.extend(perm.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes
    };
    let none = u32::MAX;
    let mut acl = 2u32.to_le_bytes().to_vec();
    for bytes in [
        entry(1, 6, none),
        entry(2, 4, NOBODY),
        entry(4, 0, none),
        entry(0x10, 4, none),
        entry(0x20, 0, none),
    ] {
        acl.extend(bytes);
    }
    let mounted = Mounted::new(&[&[
        Item::file("open", "for nobody").mode(0o640).xattr("system.posix_acl_access", &acl),
        Item::file("closed", "for root").mode(0o640),
    ]]);
    let script = "cat \"$1\"; ! cat \"$2\" 2> /dev/null";
    let mut su = std::process::Command::new("setpriv");
    su.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-ec", script, "sh"])
        .args([mounted.chain("open"), mounted.chain("closed")]);
    let output = su.output().expect("setpriv");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.stdout, b"for nobody");
    assert_eq!(xattr(&mounted.chain("open"), "system.posix_acl_access"), Ok(acl));
}
