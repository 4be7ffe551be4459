//! What a reader notices of an eviction: reads of a pinned image through the mount
//! while thousands of objects go, against the same reads when nothing goes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc;
use nix::sys::statvfs::statvfs;

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Daemon, Mount, Peersync};
use crate::harness::tar::Tar;
use crate::harness::{can_mount, scratch};

/// Small files, which lie in one object and are read through the daemon.
const HOT: usize = 2000;
const HOT_LEN: usize = 16 << 10;
/// Objects that go: 1 GiB.
const COLD: usize = 4096;
const COLD_LEN: usize = 256 << 10;
/// Of which this much goes at least, and is watched.
const COLD_GOES: u64 = 200 << 20;
const ROUNDS: usize = 5;
/// Between rounds of reads when nothing goes.
const PAUSE: Duration = Duration::from_secs(3);

fn noise(name: &str, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn image(layout: &mut Layout, tag: &str, files: usize, len: usize) -> String {
    let mut tar = Tar::new();
    for file in 0..files {
        let name = format!("f{file}");
        tar.file(name.as_bytes(), &noise(&format!("{tag}{name}"), len));
    }
    layout.image(tag, &[tar.finish()], Compression::Plain);
    layout.reference(tag)
}

fn start(peersync: &Peersync, budget: &str) -> (Mount, Daemon) {
    let point = peersync.mount_point();
    let mount = Mount::watch(&point);
    let config = format!(
        "[store]\npath = {:?}\nmax_size = \"{budget}\"\n[mount]\npath = {point:?}\n\
         [snapshotter]\nsocket = \"\"\n",
        peersync.store()
    );
    let daemon = Daemon::start(peersync, &config, &point);
    (mount, daemon)
}

/// One read of 4 KiB through the daemon; the kernel's copy is dropped before.
fn read(file: &File, at: u64) -> Duration {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("fadvise");
    let mut page = [0; 4096];
    let began = Instant::now();
    file.read_exact_at(&mut page, at).expect("a page");
    began.elapsed()
}

/// Keeps the processors from sleeping, at a priority that gives way to all else: where
/// they are virtual, waking one up takes longer than what is measured.
fn awake(asleep: &AtomicBool) {
    let idle = libc::sched_param { sched_priority: 0 };
    // SAFETY: takes numbers and a structure that is only read, and acts on this thread.
    let set = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const idle) };
    assert_eq!(set, 0, "SCHED_IDLE");
    while !asleep.load(Ordering::Relaxed) {
        std::hint::spin_loop();
    }
}

/// Reads until it is over, or for so long.
fn reads(
    files: &[File],
    rng: &mut fastrand::Rng,
    mut goes_on: impl FnMut() -> bool,
) -> Vec<Duration> {
    let mut times = Vec::new();
    while goes_on() {
        for _ in 0..200 {
            let file = &files[rng.usize(..files.len())];
            times.push(read(file, rng.u64(..(HOT_LEN / 4096) as u64) * 4096));
        }
    }
    times
}

/// Bytes that are free where the store lies: what tells of an eviction and takes no
/// processor from the readers.
fn free(peersync: &Peersync) -> u64 {
    let disk = statvfs(&peersync.store()).expect("statvfs");
    disk.blocks_free() * disk.fragment_size()
}

/// Prints the table.
pub(crate) fn reads_while_evicting() {
    if !can_mount() {
        return;
    }
    let asleep = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| awake(&asleep));
        }
        measure();
        asleep.store(true, Ordering::Relaxed);
    });
}

fn measure() {
    let place = scratch();
    let mut layout = Layout::create(place.path());
    let hot = image(&mut layout, "hot", HOT, HOT_LEN);
    let cold = image(&mut layout, "cold", COLD, COLD_LEN);
    let peersync = Peersync::new();
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut busy, mut idle) = (Vec::new(), Vec::new());
    let mut lasted = Duration::ZERO;
    for _ in 0..ROUNDS {
        let (tree, daemon) = start(&peersync, "4GiB");
        peersync.run(&["pull", &hot]);
        peersync.run(&["pull", &cold]);
        peersync.run(&["pin", &hot]);
        assert_eq!(daemon.stop(), Some(0));
        drop(tree);
        let (_tree, daemon) = start(&peersync, "100MiB");
        let mount = peersync.mount(&hot, &[]);
        let files: Vec<File> =
            (0..HOT).map(|n| File::open(mount.join(&format!("f{n}"))).expect("open")).collect();
        // Each page once: first reads of a block are checked.
        for file in &files {
            read(file, 0);
        }
        // From the first object that goes to the last.
        let before = free(&peersync);
        while free(&peersync) < before + (4 << 20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let began = Instant::now();
        busy.extend(reads(&files, &mut rng, || free(&peersync) < before + COLD_GOES));
        lasted += began.elapsed();
        std::thread::sleep(PAUSE);
        let end = Instant::now() + PAUSE;
        idle.extend(reads(&files, &mut rng, || Instant::now() < end));
        drop(files);
        drop(mount);
        assert_eq!(daemon.stop(), Some(0));
    }
    busy.sort();
    idle.sort();
    let went = COLD_GOES * ROUNDS as u64;
    println!("{} MiB went in {ROUNDS} rounds, in {lasted:.1?}", went >> 20);
    println!("| reads of 4 KiB through the daemon | number | median | p90 | p99 | p99.9 |");
    println!("|---|---:|---:|---:|---:|---:|");
    let at = |times: &[Duration], share: usize| times[(times.len() - 1) * share / 1000];
    for (name, times) in [("nothing goes", &idle), ("while evicting", &busy)] {
        let [p50, p90, p99, p999] = [500, 900, 990, 999].map(|share| at(times, share));
        println!("| {name} | {} | {p50:.1?} | {p90:.1?} | {p99:.1?} | {p999:.1?} |", times.len());
    }
    let ratio = at(&busy, 990).as_secs_f64() / at(&idle, 990).as_secs_f64();
    println!("p99: {ratio:.2} of idle");
}
