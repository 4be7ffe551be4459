//! Mounts that come and go.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;

use peersync::fs::{FileSystem, FsOptions, Root};
use peersync::fuse::{MountError, MountOptions, UnmountError};

use crate::memory::{Item, MemoryCatalog, MemoryReader, State};
use crate::support::{Mounted, PATIENCE, as_child, can_mount, errno, sh};

fn mounted() -> Mounted {
    Mounted::new(&[&[Item::file("file", "content"), Item::file("large", vec![1; 1 << 20])]])
}

#[test]
fn a_mount_has_the_safe_options() {
    if !can_mount() {
        return;
    }
    let line = |mounted: &Mounted| {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("a table");
        let point = mounted.point().to_str().expect("text");
        table.lines().find(|line| line.contains(point)).expect("our mount").to_owned()
    };
    let first = mounted();
    for word in
        ["ro,nosuid,nodev", "fuse.peersync", "default_permissions", "allow_other", "a\\040test"]
    {
        assert!(line(&first).contains(word), "{word}: {}", line(&first));
    }
    let (major, minor) = first.handle.device().expect("a device number");
    assert!(line(&first).contains(&format!(" {major}:{minor} ")));
    let root = Root::Image(crate::support::VIEW());
    let second = Mounted::with(&[&[]], root, FsOptions::default(), |options| {
        (options.suid, options.dev) = (true, true);
        options.read_ahead_kib = Some(512);
    });
    assert!(!line(&second).contains("nosuid") && !line(&second).contains("nodev"));
    let (major, minor) = second.handle.device().expect("a device number");
    let read_ahead = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    assert_eq!(fs::read_to_string(read_ahead).expect("a number").trim(), "512");
}

#[test]
fn an_unmount_from_outside_is_noticed() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    fs::read(mounted.chain("file")).expect("a file");
    assert!(!mounted.handle.is_ended());
    sh("umount \"$1\"", &[mounted.point()]);
    mounted.ended.recv_timeout(PATIENCE).expect("it was noticed");
    mounted.handle.wait();
    assert!(mounted.handle.is_ended());
    mounted.handle.unmount(false).expect("it is what was wanted");
}

#[test]
fn a_busy_mount_says_so_and_a_lazy_unmount_waits_for_its_users() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let mut file = File::open(mounted.chain("large")).expect("a file");
    assert!(matches!(mounted.handle.unmount(false), Err(UnmountError::Busy(_))));
    let point = mounted.point().to_owned();
    mounted.handle.unmount(true).expect("lazily");
    assert_eq!(fs::read_dir(&point).expect("the bare directory").count(), 0);
    assert!(!mounted.handle.is_ended());
    let mut data = Vec::new();
    file.read_to_end(&mut data).expect("it is still there");
    assert_eq!(data.len(), 1 << 20);
    // A second time does no harm, also if something else has come there.
    mounted.handle.unmount(true).expect("nothing to do");
    sh("mount -t tmpfs none \"$1\"", &[&point]);
    assert!(matches!(mounted.handle.unmount(true), Err(UnmountError::Covered(_))));
    sh("umount \"$1\"", &[&point]);
    drop(file);
    mounted.ended.recv_timeout(PATIENCE).expect("the last user has let go");
}

#[test]
fn what_waits_when_a_mount_ends_is_let_go() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    mounted.reader.set(None, &State::Held);
    let path = mounted.chain("large");
    let reader = std::thread::spawn(move || fs::read(path));
    while mounted.reader.misses.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    // As an administrator does with a mount that hangs.
    let (_, minor) = mounted.handle.device().expect("a device number");
    if !Path::new("/sys/fs/fuse/connections").join(minor.to_string()).exists() {
        sh("mount -t fusectl none /sys/fs/fuse/connections", &[]);
    }
    fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1").expect("as root");
    assert_ne!(errno(reader.join().expect("no panic")), 0);
    mounted.ended.recv_timeout(PATIENCE).expect("it has ended");
    mounted.reader.until_waiting(0);
    sh("umount \"$1\"", &[mounted.point()]);
}

#[test]
fn a_mount_point_that_can_not_be_used_is_an_error() {
    if !can_mount() {
        return;
    }
    let (reader, catalog) = (MemoryReader::new(), MemoryCatalog::new());
    let fs = FileSystem::new(Root::Whole, catalog, reader, FsOptions::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let options = MountOptions::new("x");
    for point in ["/nonexistent", "/etc/passwd"] {
        let handle = runtime.handle().clone();
        let result = peersync::fuse::mount(fs.clone(), Path::new(point), &options, handle, || ());
        match result {
            Err(MountError::MountPoint { dir, .. }) => assert_eq!(dir, Path::new(point)),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{point} can't be mounted on"),
        }
    }
}

#[test]
fn mounting_again_and_again_leaves_nothing_behind() {
    if !can_mount() {
        return;
    }
    // Apart, since other tests open and close things too.
    let output = as_child("cycles", Path::new("/")).output().expect("ourselves");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("nothing is left"), "{text}");
}

/// Runs alone in a process.
pub fn cycles() {
    let count = |what: &str| fs::read_dir(format!("/proc/self/{what}")).expect("proc").count();
    let cycle = || {
        let mounted = mounted();
        fs::read(mounted.chain("file")).expect("a file");
        let _open = File::open(mounted.chain("large")).expect("a file");
    };
    cycle();
    let before = (count("fd"), count("task"));
    for _ in 0..20 {
        cycle();
    }
    // Threads end a moment after they have said so, before as well as now.
    let is_back = || {
        let now = (count("fd"), count("task"));
        now.0 <= before.0 && now.1 <= before.1
    };
    let end = std::time::Instant::now() + PATIENCE;
    while !is_back() && std::time::Instant::now() < end {
        std::thread::yield_now();
    }
    assert!(is_back(), "{before:?}, and now {:?}", (count("fd"), count("task")));
    println!("nothing is left");
}

#[test]
fn a_mount_whose_daemon_died_is_replaced() {
    if !can_mount() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mut child = as_child("die", dir.path());
    let status = child.status().expect("ourselves");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    let point = fs::read_to_string(dir.path().join("point")).expect("where it was");
    assert_eq!(errno(fs::metadata(&point)), nix::libc::ENOTCONN);

    let (reader, catalog) = (MemoryReader::new(), MemoryCatalog::new());
    let fs = FileSystem::new(Root::Whole, catalog, reader, FsOptions::default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_time().build();
    let runtime = runtime.expect("a runtime");
    let (handle, options) = (runtime.handle().clone(), MountOptions::new("x"));
    let mounted = peersync::fuse::mount(fs, Path::new(&point), &options, handle, || ());
    let mounted = mounted.unwrap_or_else(|error| panic!("{error}"));
    assert!(Path::new(&point).join("layers").is_dir());
    // One that is alive is not replaced.
    let (reader, catalog) = (MemoryReader::new(), MemoryCatalog::new());
    let fs = FileSystem::new(Root::Whole, catalog, reader, FsOptions::default());
    let again =
        peersync::fuse::mount(fs, Path::new(&point), &options, runtime.handle().clone(), || ());
    assert!(matches!(again, Err(MountError::AlreadyMounted(_))));
    mounted.unmount(false).expect("nobody uses it");
    mounted.wait();
    fs::remove_dir_all(Path::new(&point).parent().expect("its directory")).expect("no mount left");
}

/// Mounts, and is killed.
pub fn die(dir: &Path) {
    let mounted = std::mem::ManuallyDrop::new(mounted());
    let point = mounted.point().to_str().expect("text");
    fs::write(dir.join("point"), point).expect("own directory");
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGKILL).expect("ourselves");
}
