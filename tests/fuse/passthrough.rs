//! Complete files are read past the daemon, and nobody notices.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use peersync::types::{ObjectId, ObjectSpec};

use crate::memory::{Item, State};
use crate::support::{Mounted, can_mount, sh};

fn content() -> Vec<u8> {
    (0..700_000u32).map(|n| (n % 251) as u8).collect()
}

fn object() -> ObjectId {
    ObjectSpec::of(&content()).id()
}

/// Two names of one large file, and one that is small.
fn mounted() -> Mounted {
    Mounted::new(&[&[
        Item::file("large", content()),
        Item::link("again", "large"),
        Item::file("small", "small"),
    ]])
}

fn is_content(file: &File) -> bool {
    let mut buf = vec![0; 800_000];
    let read = file.read_at(&mut buf, 0).expect("bytes");
    buf[..read] == content()
}

#[test]
fn a_complete_file_is_passed_through() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    mounted.reader.complete(&object(), mounted.dir.path().join("object"));
    let file = File::open(mounted.chain("large")).expect("a file");
    let second = File::open(mounted.chain("again")).expect("the same file");
    let stats = mounted.handle.stats();
    assert_eq!((stats.passthrough_opens, stats.cached_opens), (2, 0));
    assert_eq!(stats.open_inodes, (0, 1));
    // Not even a reader that gives nothing can stop it.
    mounted.reader.set(None, &State::Held);
    assert!(is_content(&file) && is_content(&second));
    let shared = sh(
        "cmp \"$1\" \"$2\" && tail -c 100 \"$1\" | wc -c",
        &[&mounted.chain("large"), &mounted.dir.path().join("object")],
    );
    assert_eq!(shared.trim(), "100");
    // An object that is evicted is unlinked; whoever has it open keeps it.
    fs::remove_file(mounted.dir.path().join("object")).expect("evicted");
    assert!(is_content(&file));
    assert_eq!(mounted.reader.open_streams(), 0);
}

#[test]
fn a_file_that_is_open_when_it_becomes_complete_stays_in_its_mode() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let first = File::open(mounted.chain("large")).expect("a file");
    mounted.reader.complete(&object(), mounted.dir.path().join("object"));
    let second = File::open(mounted.chain("large")).expect("no EIO");
    assert!(is_content(&first) && is_content(&second));
    assert_eq!(mounted.handle.stats().open_inodes, (1, 0));
    drop((first, second));
    until_idle(&mounted);

    let first = File::open(mounted.chain("large")).expect("a file");
    assert_eq!(mounted.handle.stats().open_inodes, (0, 1));
    // No longer complete for the reader, but open.
    fs::remove_file(mounted.dir.path().join("object")).expect("evicted");
    let second = File::open(mounted.chain("large")).expect("no EIO");
    assert!(is_content(&first) && is_content(&second));
    assert_eq!(mounted.handle.stats().open_inodes, (0, 1));
    drop((first, second));
    until_idle(&mounted);

    let third = File::open(mounted.chain("large")).expect("a file");
    assert!(is_content(&third));
    assert_eq!(mounted.handle.stats().open_inodes, (1, 0));
}

/// A close is told to the file system after the program has gone on.
fn until_idle(mounted: &Mounted) {
    while mounted.handle.stats().open_inodes != (0, 0) {
        std::thread::yield_now();
    }
}

#[test]
fn opens_and_closes_in_any_order_never_fail() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let (path, object_path) = (mounted.chain("large"), mounted.dir.path().join("object"));
    let expected = &content()[100_000..105_000];
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..200 {
                    let file = File::open(&path).unwrap_or_else(|e| panic!("{round}: {e}"));
                    let mut buf = [0; 5000];
                    file.read_exact_at(&mut buf, 100_000).expect("bytes");
                    assert_eq!(buf, expected);
                }
            });
        }
        for _ in 0..100 {
            mounted.reader.complete(&object(), object_path.clone());
            std::thread::yield_now();
            mounted.reader.forget(&object());
        }
    });
    until_idle(&mounted);
}

#[test]
fn a_store_on_an_overlay_falls_back_to_ordinary_reads() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let base = mounted.dir.path();
    sh(
        "cd \"$1\"; mkdir l u w o; mount -t overlay -o lowerdir=l,upperdir=u,workdir=w overlay o",
        &[base],
    );
    mounted.reader.complete(&object(), base.join("o/object"));
    let file = File::open(mounted.chain("large")).expect("no EIO");
    assert!(is_content(&file));
    assert_eq!(mounted.handle.stats().open_inodes, (1, 0));
    drop(file);
    sh("umount \"$1/o\"", &[base]);
}

#[test]
fn small_and_incomplete_files_are_read_through_the_daemon() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    assert_eq!(fs::read(mounted.chain("small")).expect("a file"), b"small");
    assert!(is_content(&File::open(mounted.chain("large")).expect("a file")));
    assert_eq!(mounted.handle.stats().passthrough_opens, 0);
    until_idle(&mounted);
    while mounted.reader.open_streams() != 0 {
        std::thread::yield_now();
    }
}

#[test]
fn without_stacking_nothing_is_passed_through() {
    if !can_mount() {
        return;
    }
    let layer = [Item::file("large", content())];
    let root = peersync::fs::Root::Whole;
    let mounted = Mounted::with(&[&layer], root, Default::default(), |o| o.stack_depth = 0);
    mounted.reader.complete(&object(), mounted.dir.path().join("object"));
    assert!(is_content(&File::open(mounted.chain("large")).expect("a file")));
    assert_eq!(mounted.handle.stats().passthrough_opens, 0);
    // Which leaves room for an overlay on an overlay.
    let over = |lower: &Path, name: &str| {
        let dir = mounted.dir.path().join(name);
        sh(
            "mkdir \"$2\" \"$2-u\" \"$2-w\"
            mount -t overlay -o \"lowerdir=$1,upperdir=$2-u,workdir=$2-w\" overlay \"$2\"",
            &[lower, &dir],
        );
        dir
    };
    let first = over(&mounted.chain(""), "first");
    let second = over(&first, "second");
    assert!(is_content(&File::open(second.join("large")).expect("a file")));
    sh("umount \"$2\" \"$1\"", &[&first, &second]);
}
