//! What is here already: mounts of known images, memory, and complete files
//! against the same files on the disk.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Mount, Peersync};
use crate::harness::tar::Tar;
use crate::harness::{scratch, tool};
use crate::report::{Table, at_least, at_most, memory, mib, percent, seconds};
use crate::wire::{drop_caches, timed};

const NAMES: usize = 50_000;
const LARGE: usize = 1 << 30;

/// An image of 50,000 small files in 500 directories.
fn many_files(place: &Path) -> String {
    let mut tar = Tar::new();
    for directory in 0..NAMES / 100 {
        tar.directory(format!("d{directory:03}").as_bytes());
        for file in 0..100 {
            let name = format!("d{directory:03}/file-{file:02}");
            tar.file(name.as_bytes(), name.repeat(20).as_bytes());
        }
    }
    let mut layout = Layout::create(place);
    layout.image("v1", &[tar.finish()], Compression::Gzip);
    layout.reference("v1")
}

/// Mounting what is known, and the memory of a mount that nobody uses.
pub(crate) fn idle() {
    let place = scratch();
    let image = many_files(place.path());
    let peersync = Peersync::new();
    let (first, mount) = timed(|| peersync.mount(&image, &[]));
    mount.umount(&peersync);
    // The owner ends with its last mount: each of these starts one and opens
    // the store. The median of five.
    let mut times = Vec::new();
    let mut last = None;
    for _ in 0..5 {
        if let Some(mount) = last.take() {
            Mount::umount(mount, &peersync);
        }
        let (time, mount) = timed(|| peersync.mount(&image, &[]));
        times.push(time);
        last = Some(mount);
    }
    times.sort();
    let owner = peersync.owner().expect("owner");
    let resident = || {
        let [all, own, mapped] =
            ["VmRSS", "RssAnon", "RssFile"].map(|field| mib(memory(owner, field)));
        format!("{all} ({own} its own, {mapped} mapped files)")
    };
    let (fresh, idle) = (resident(), memory(owner, "VmRSS"));
    let walked = last.as_ref().map_or(0, |mount| walk(&mount.path));
    assert!(walked >= NAMES);
    let mut table = Table::new(&["50,000 files", "measured"]);
    table.row(["mount, first sight".into(), seconds(first)]);
    table
        .row(["mount, known (median of 5, with the start of the owner)".into(), seconds(times[2])]);
    table.row(["resident memory, mounted and idle".into(), fresh]);
    table.row(["resident memory after a walk of all".into(), resident()]);
    table.row(["high-water mark".into(), mib(memory(owner, "VmHWM"))]);
    table.print();
    println!();
    at_most("mount of a known image", times[2].as_secs_f64() * 1e3, 100.0, "ms");
    at_most("resident memory, idle", idle as f64 / 1_048_576.0, 64.0, "MiB");
}

/// A complete file and a complete tree, in the mount and on the disk.
pub(crate) fn complete_files() {
    let place = scratch();
    let mut content = vec![0; LARGE];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    let on_disk = place.path().join("large");
    fs::write(&on_disk, &content).expect("large file");
    let mut tar = Tar::new();
    tar.file(b"large", &content);
    drop(content);
    let mut layout = Layout::create(&place.path().join("oci"));
    layout.image("v1", &[tar.finish()], Compression::Plain);
    let peersync = Peersync::new();
    peersync.run(&["pull", &layout.reference("v1")]);
    let mount = peersync.mount(&layout.reference("v1"), &[]);
    let mounted = mount.join("large");

    let mut table = Table::new(&["complete file of 1 GiB", "disk", "mount", "mount / disk"]);
    let mut compare = |what: &str, disk: f64, mount: f64, unit: &str| {
        let share = format!("{:.2}", mount / disk);
        table.row([what.into(), format!("{disk:.0} {unit}"), format!("{mount:.0} {unit}"), share]);
    };
    type Measure = fn(&Path) -> f64;
    let measures: [(&str, Measure, &str, f64); 4] = [
        ("sequential, cold", sequential, "MiB/s", 0.95),
        ("4 KiB random, cold", |path| random(path, true), "/s", 0.9),
        ("4 KiB random, warm", |path| random(path, false), "/s", 0.9),
        ("mmap, sequential, cold", mapped, "MiB/s", 0.95),
    ];
    let mut shares = Vec::new();
    for (what, measure, unit, target) in measures {
        let [disk, fuse] = medians([&on_disk, &mounted], measure);
        compare(what, disk, fuse, unit);
        shares.push((what, fuse / disk, target));
    }
    table.print();
    println!();
    for (what, share, target) in shares {
        at_least(what, share, target, "of the disk");
    }
    walks();
}

/// Walks of 50,000 files with their metadata.
fn walks() {
    let place = scratch();
    let image = many_files(&place.path().join("oci"));
    let bundle = place.path().join("bundle");
    let layout = image.trim_start_matches("oci:");
    tool("umoci", &["unpack", "--image", layout, &bundle.display().to_string()]);
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &[]);
    let on_disk = bundle.join("rootfs");
    let mut table = Table::new(&["walk of 50,000 files", "disk", "mount", "mount / disk"]);
    let mut shares = Vec::new();
    for (what, cold, target) in [("cold", true, 1.3), ("warm", false, 1.1)] {
        let [disk, fuse] = [&on_disk, &mount.path].map(|root| {
            let mut times: Vec<Duration> = (0..5)
                .map(|_| {
                    if cold {
                        drop_caches();
                    }
                    timed(|| walk(root)).0
                })
                .collect();
            times.sort();
            times[2]
        });
        let share = percent(fuse.as_micros() as u64, disk.as_micros() as u64);
        table.row([what.into(), seconds(disk), seconds(fuse), share]);
        shares.push((what, fuse.as_secs_f64() / disk.as_secs_f64(), target));
    }
    println!();
    table.print();
    println!();
    for (what, share, target) in shares {
        at_most(&format!("walk, {what}"), share, target, "of the disk");
    }
}

/// The medians of seven rounds in which both take turns, each first in every other.
fn medians(paths: [&PathBuf; 2], measure: fn(&Path) -> f64) -> [f64; 2] {
    let mut results = [Vec::new(), Vec::new()];
    for round in 0..7 {
        for turn in 0..2 {
            let which = (round + turn) % 2;
            results[which].push(measure(paths[which]));
        }
    }
    results.map(|mut speeds| {
        speeds.sort_by(f64::total_cmp);
        speeds[3]
    })
}

/// MiB in a second.
fn sequential(path: &Path) -> f64 {
    drop_caches();
    let file = File::open(path).expect("file");
    let mut buffer = vec![0; 1 << 20];
    let (time, ()) = timed(|| {
        for mib in 0..LARGE as u64 >> 20 {
            file.read_exact_at(&mut buffer, mib << 20).expect("read");
        }
    });
    LARGE as f64 / 1_048_576.0 / time.as_secs_f64()
}

/// Reads in a second, at places that a seeded generator chooses.
fn random(path: &Path, cold: bool) -> f64 {
    let reads = if cold { 8192 } else { 262_144 };
    drop_caches();
    if !cold {
        // By the same readahead for both: how large the pages are tells in the speed.
        fs::read(path).expect("warm the cache");
    }
    let file = File::open(path).expect("file");
    let mut buffer = [0; 4096];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let (time, ()) = timed(|| {
        for _ in 0..reads {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let block = state % (LARGE as u64 / 4096);
            file.read_exact_at(&mut buffer, block * 4096).expect("read");
        }
    });
    f64::from(reads) / time.as_secs_f64()
}

/// MiB in a second through a memory map.
fn mapped(path: &Path) -> f64 {
    drop_caches();
    let file = File::open(path).expect("file");
    // SAFETY: nobody writes to the file while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&file) }.expect("map");
    let (time, sum) = timed(|| map.chunks(4096).map(|page| u64::from(page[0])).sum::<u64>());
    black_box(sum);
    LARGE as f64 / 1_048_576.0 / time.as_secs_f64()
}

/// Every name below a directory with its metadata; gives their number.
fn walk(root: &Path) -> usize {
    let mut waiting = vec![root.to_owned()];
    let mut names = 0;
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).expect("directory") {
            let entry = entry.expect("entry");
            names += 1;
            if entry.metadata().expect("metadata").is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    names
}
