//! Processes that wait for content or for an image.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peersync::blocks::ReadError;
use peersync::fs::ResolveError;

use crate::memory::{Item, Resolution, State};
use crate::support::{self, Mounted, PATIENCE, as_child, can_mount, ends, errno};

fn mounted() -> Mounted {
    Mounted::new(&[&[
        Item::file("small", "a few bytes"),
        Item::file("large", vec![7; 3 << 20]),
        Item::file("other", vec![8; 300 << 10]),
    ]])
}

fn send(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id()).expect("a process number");
    kill(Pid::from_raw(pid), signal).expect("our child");
}

/// A signal ends the child although its bytes never come.
fn dies_of(child: &mut Child, signal: Signal) {
    let begun = Instant::now();
    send(child, signal);
    let status = ends(child, PATIENCE).expect("a killed process ends");
    eprintln!("{signal} ended it after {:.0?}", begun.elapsed());
    let by = std::os::unix::process::ExitStatusExt::signal(&status);
    assert_eq!(by, Some(signal as i32));
}

fn quiet(mut command: Command) -> Child {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a program")
}

#[test]
fn a_process_that_waits_for_pages_can_be_killed() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mounted = mounted();
        mounted.reader.set(None, &State::Held);
        let path = mounted.chain("large");
        let mut child = support::start("cat", &[path.as_os_str()]);
        // The readahead of one reader may take several requests.
        while mounted.reader.misses.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        dies_of(&mut child, signal);
    }
}

#[test]
fn a_process_that_waits_for_a_direct_read_can_be_killed() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mounted = mounted();
        mounted.reader.set(None, &State::Held);
        let mut child = quiet(as_child("direct", &mounted.chain("large")));
        mounted.reader.until_waiting(1);
        dies_of(&mut child, signal);
        // Nobody wants the bytes any more.
        mounted.reader.until_waiting(0);
        assert_eq!(mounted.handle.stats().given_up, 1);
    }
}

#[test]
fn a_process_that_waits_for_one_mapped_page_can_be_killed() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    mounted.reader.set(None, &State::Held);
    let mut child = quiet(as_child("fault", &mounted.chain("large")));
    mounted.reader.until_waiting(1);
    dies_of(&mut child, Signal::SIGKILL);
    mounted.reader.until_waiting(0);
}

#[test]
fn a_process_that_waits_for_an_image_can_be_killed() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let mounted = mounted();
        mounted.catalog.set_registry("docker.io/library/slow:1", Resolution::Hangs);
        let path = mounted.point().join("images/docker.io/library/slow:1");
        let mut child = support::start("stat", &[path.as_os_str()]);
        mounted.catalog.until_waiting(1);
        dies_of(&mut child, signal);
        mounted.catalog.until_waiting(0);
    }
}

#[test]
fn a_signal_that_is_handled_does_not_end_a_read() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    mounted.reader.set(None, &State::Held);
    let path = mounted.chain("large");
    let mut dd = Command::new("dd");
    // dd handles SIGUSR1: it reports its progress.
    dd.arg(format!("if={}", path.display())).args(["of=/dev/null", "bs=4096", "iflag=direct"]);
    let mut child = quiet(dd);
    mounted.reader.until_waiting(1);
    send(&child, Signal::SIGUSR1);
    assert!(ends(&mut child, Duration::from_millis(700)).is_none(), "it waits on");
    mounted.reader.set(None, &State::Resident);
    assert!(ends(&mut child, PATIENCE).expect("it ends").success());
}

#[test]
fn a_read_that_waits_holds_up_nobody_else_and_ends_with_the_bytes() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let held = mounted.reader.add(&vec![8; 300 << 10]).0;
    mounted.reader.set(Some(&held), &State::Held);
    let other = mounted.chain("other");
    let reader = std::thread::spawn(move || std::fs::read(other));
    while mounted.reader.misses.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    assert_eq!(std::fs::read(mounted.chain("large")).expect("resident").len(), 3 << 20);
    assert_eq!(std::fs::read(mounted.chain("small")).expect("resident"), b"a few bytes");
    mounted.reader.set(Some(&held), &State::Resident);
    let data = reader.join().expect("no panic").expect("the bytes");
    assert!(data.len() == 300 << 10 && data.iter().all(|b| *b == 8));
}

#[test]
fn a_read_without_progress_fails_and_says_where() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let error = ReadError::NoProgress(Duration::from_secs(60));
    mounted.reader.set(None, &State::Failing(error));
    let mut file = File::open(mounted.chain("other")).expect("opening needs no content");
    let mut buf = [0; 100];
    assert_eq!(errno(file.read(&mut buf)), nix::libc::EIO);
    assert_eq!(buf, [0; 100]);
    let failures = mounted.catalog.failures();
    let failure = failures.first().expect("it was reported");
    assert_eq!(failure.path, "other");
    assert!(failure.reason.contains("no progress"), "{}", failure.reason);
    // It is not remembered: once there are sources again, the bytes come.
    mounted.reader.set(None, &State::Resident);
    assert_eq!(std::fs::read(mounted.chain("other")).expect("now").len(), 300 << 10);
}

#[test]
fn what_a_registry_says_becomes_an_errno() {
    if !can_mount() {
        return;
    }
    let mounted = mounted();
    let images = mounted.point().join("images/registry.example:5000/team");
    let set = |name: &str, resolution| {
        let path = format!("registry.example:5000/team/{name}");
        mounted.catalog.set_registry(&path, resolution);
    };
    set("secret:1", Resolution::Fails(ResolveError::Denied));
    set("far:1", Resolution::Fails(ResolveError::Unreachable("no route".into())));
    set("odd:1", Resolution::Fails(ResolveError::Unusable("schema 1".into())));
    set("app:1", Resolution::Image(support::VIEW()));
    let look = |name: &str| errno(std::fs::symlink_metadata(images.join(name)));
    assert_eq!(look("secret:1"), nix::libc::EACCES);
    assert_eq!(look("far:1"), nix::libc::EHOSTUNREACH);
    assert_eq!(look("odd:1"), nix::libc::EIO);
    assert_eq!(look("none:1"), nix::libc::ENOENT);
    assert_eq!(std::fs::read(images.join("app:1/small")).expect("resolved"), b"a few bytes");
    // What can't be a name never gets that far.
    let asked = mounted.catalog.resolved();
    for name in [".git", ".Trash-0", "autorun.inf:", "App:1", "app:1:2"] {
        assert_eq!(look(name), nix::libc::ENOENT, "{name}");
    }
    assert_eq!(errno(std::fs::metadata(Path::new(&mounted.point().join("images/.git")))), 2);
    assert_eq!(mounted.catalog.resolved(), asked);
}

#[test]
fn a_read_over_data_and_holes_that_waits_gives_all_of_it() {
    if !can_mount() {
        return;
    }
    let large = vec![9; 300 << 10];
    let parts: [(u64, &[u8]); 3] = [(10, b"one"), (5_000, b"two"), (100_000, &large)];
    let mounted = Mounted::new(&[&[Item::sparse("sparse", 500_000, &parts)]]);
    mounted.reader.set(None, &State::Held);
    let path = mounted.chain("sparse");
    let reader = std::thread::spawn(move || std::fs::read(path));
    while mounted.reader.misses.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    mounted.reader.set(None, &State::Resident);
    let data = reader.join().expect("no panic").expect("the bytes");
    let mut expected = vec![0; 500_000];
    for (offset, bytes) in parts {
        let at = offset as usize;
        expected[at..at + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(data.len(), expected.len());
    assert!(data == expected);
}
