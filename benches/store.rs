//! The store: opening, writing, and the checker.
//!
//! `cargo bench --bench store [-- open|write|fsck|memory]`; `PEERSYNC_BENCH_DIR` says
//! where (a real disk, with 8 GiB free). Each comparison runs both sides in the
//! same run, in turns, and gives the median. Ends with the targets and whether
//! they are met.

use std::fs::{self, File, OpenOptions as FileOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use nix::libc;
use peersync::store::{OpenOptions, Store};
use peersync::types::{BlockHash, ObjectSpec, VerifiedBlock};
use peersync_fsck::{Options, Quiet};

const MIB: u64 = 1 << 20;
/// Bytes written or checked in one round.
const VOLUME: u64 = 2 << 30;
const ROUNDS: usize = 5;
/// Bytes of one block.
const BLOCK: usize = 512 << 10;
/// Opening a store of a million blocks takes less.
const OPEN_MAX: Duration = Duration::from_millis(200);
/// Of plain writes, and of the slower of disk and BLAKE3.
const SHARE_MIN: f64 = 0.8;
/// The checker may take so much more memory for a store of ten times the blocks.
const MEMORY_MORE: u64 = 32 * MIB;
/// A store for a child process to check, whose memory is its own.
const CHECK: &str = "PEERSYNC_BENCH_CHECK";

/// A target: what, how much was wanted, what it came to, and whether that is met.
type Target = (&'static str, String, String, bool);

fn main() -> io::Result<()> {
    if let Some(store) = std::env::var_os(CHECK) {
        let report = peersync_fsck::check(Path::new(&store), &Options::default(), &Quiet);
        assert_eq!(report.expect("checked").exit_code(), 0);
        println!("{}", peak()?);
        return Ok(());
    }
    let which = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| which.as_deref().is_none_or(|which| which == name);
    let base =
        std::env::var_os("PEERSYNC_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("peersync-bench-").tempdir_in(base)?;
    let mut targets = Vec::new();
    if wanted("open") {
        targets.extend(open(dir.path())?);
    }
    if wanted("write") {
        targets.push(write(dir.path())?);
    }
    if wanted("fsck") {
        targets.extend(fsck(dir.path())?);
    }
    if wanted("memory") {
        targets.push(memory(dir.path())?);
    }
    println!("\n| target | wanted | measured | |\n|---|---|---|---|");
    for (what, wanted, measured, met) in targets {
        let met = if met { "met" } else { "**missed**" };
        println!("| {what} | {wanted} | {measured} | {met} |");
    }
    Ok(())
}

fn options() -> OpenOptions {
    OpenOptions::default()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn timed<T>(run: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = run();
    (start.elapsed(), result)
}

fn speed(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / MIB as f64 / time.as_secs_f64()
}

/// A store that knows a million blocks: after an orderly close and after a
/// crash, with nothing of it in the page cache.
fn open(dir: &Path) -> io::Result<Vec<Target>> {
    let path = dir.join("open");
    let (time, store) = timed(|| known(&path, 500));
    println!("adding {} blocks in 500 objects   {time:.2?}", 500 * BLOCKS);
    println!("the database takes {} MiB", fs::metadata(path.join("meta"))?.len() / MIB);
    // What a crash leaves: the files as they are now.
    let crashed = dir.join("crashed");
    fs::create_dir(&crashed)?;
    for name in ["format", "meta"] {
        fs::copy(path.join(name), crashed.join(name))?;
    }
    for name in ["objects", "staging", "quarantine"] {
        fs::create_dir(crashed.join(name))?;
    }
    File::open(crashed.join("meta"))?.sync_all()?;
    store.close().expect("closed");
    let mut targets = Vec::new();
    for (what, path) in [("closed in order", &path), ("after a crash", &crashed)] {
        let mut cold = Vec::new();
        for round in 0..ROUNDS {
            if what == "after a crash" && round > 0 {
                // Opening and closing would make it clean: let it crash again.
                let _copied: u64 = fs::copy(path.join("meta.crashed"), path.join("meta"))?;
                File::open(path.join("meta"))?.sync_all()?;
            } else if what == "after a crash" {
                fs::copy(path.join("meta"), path.join("meta.crashed"))?;
            }
            forget(&path.join("meta"))?;
            let (time, store) = timed(|| Store::open(path, options()).expect("opened"));
            cold.push(time);
            store.close().expect("closed");
        }
        let cold = median(cold);
        println!("opening, {what:<18} {cold:.1?} (cold cache)");
        let name = match what {
            "after a crash" => "opening 1 million blocks after a crash",
            _ => "opening 1 million blocks",
        };
        targets.push((name, "< 200 ms".into(), format!("{cold:.1?}"), cold < OPEN_MAX));
    }
    fs::remove_dir_all(&path)?;
    fs::remove_dir_all(&crashed)?;
    Ok(targets)
}

/// Blocks of one object in [`known`].
const BLOCKS: u32 = 2000;

/// A store that knows so many objects, and has nothing of them.
fn known(path: &Path, objects: u32) -> Store {
    let store = Store::open(path, options()).expect("a new store");
    let block = |object: u32, index: u32| {
        let name = (u64::from(object) << 32 | u64::from(index)).to_le_bytes();
        (BlockHash::of(&name), 1 << 20)
    };
    for object in 0..objects {
        let blocks = (0..BLOCKS).map(|index| block(object, index));
        let spec = ObjectSpec::new(1 << 20, blocks).expect("valid");
        store.add_object(&spec).expect("added");
    }
    store.sync().expect("synced");
    store
}

/// What the checker takes for 100 thousand blocks and for a million.
fn memory(dir: &Path) -> io::Result<Target> {
    let mut peaks = Vec::new();
    for objects in [50, 500] {
        let path = dir.join("known");
        known(&path, objects).close().expect("closed");
        let child = Command::new(std::env::current_exe()?).env(CHECK, &path).output()?;
        let said = String::from_utf8_lossy(&child.stdout);
        let peak: u64 = said.trim().parse().map_err(|_| {
            io::Error::other(format!("{said}{}", String::from_utf8_lossy(&child.stderr)))
        })?;
        println!("checking {:>7} blocks: {} MiB at its height", objects * BLOCKS, peak / MIB);
        peaks.push(peak);
        fs::remove_dir_all(&path)?;
    }
    let more = peaks[1].saturating_sub(peaks[0]);
    let measured = format!("{} MiB more", more / MIB);
    let what = "memory of fsck for ten times the blocks";
    Ok((what, "< 32 MiB more".into(), measured, more < MEMORY_MORE))
}

/// Blocks of 512 KiB, hashed beforehand: what the store adds to writing files.
fn write(dir: &Path) -> io::Result<Target> {
    let objects = objects();
    let (mut plain, mut stored) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let path = dir.join("plain");
        fs::create_dir(&path)?;
        plain.push(timed(|| plain_files(&path, &objects)).0);
        fs::remove_dir_all(&path)?;
        let path = dir.join("stored");
        stored.push(timed(|| store_blocks(&path, &objects)).0);
        fs::remove_dir_all(&path)?;
    }
    let (plain, stored) = (median(plain), median(stored));
    println!("plain files      {:8.0} MiB/s (synced at the end)", speed(VOLUME, plain));
    println!("blocks stored    {:8.0} MiB/s (closed in order)", speed(VOLUME, stored));
    let share = plain.as_secs_f64() / stored.as_secs_f64();
    println!("ratio            {share:8.2}");
    Ok((
        "storing blocks, of plain writes",
        ">= 0.8".into(),
        format!("{share:.2}"),
        share >= SHARE_MIN,
    ))
}

/// Eight objects of 256 MiB, whose blocks are all different.
fn objects() -> Vec<Vec<VerifiedBlock>> {
    const OBJECTS: u64 = 8;
    let count = VOLUME / OBJECTS / BLOCK as u64;
    let block = |n: u64| VerifiedBlock::seal(Bytes::from(noise(n, BLOCK)));
    (0..OBJECTS).map(|o| (0..count).map(|n| block(o * count + n)).collect()).collect()
}

fn plain_files(dir: &Path, objects: &[Vec<VerifiedBlock>]) {
    let mut files = Vec::new();
    for (object, n) in objects.iter().zip(0..) {
        let file = File::create(dir.join(format!("{n}"))).expect("made");
        let mut offset = 0;
        for block in object {
            file.write_all_at(block.data(), offset).expect("written");
            offset += block.data().len() as u64;
        }
        files.push(file);
    }
    for file in files {
        file.sync_data().expect("synced");
    }
}

fn store_blocks(dir: &Path, objects: &[Vec<VerifiedBlock>]) {
    let store = Store::open(dir, options()).expect("a new store");
    for object in objects {
        let list = object.iter().map(|b| (*b.hash(), b.data().len() as u32));
        let spec = ObjectSpec::new(BLOCK as u32, list).expect("valid");
        let id = store.add_object(&spec).expect("added");
        for (block, index) in object.iter().zip(0..) {
            store.put_block(&id, index, block).expect("stored");
        }
    }
    store.close().expect("closed");
}

/// The checker against the disk and against BLAKE3, each on all cores.
fn fsck(dir: &Path) -> io::Result<Vec<Target>> {
    let path = dir.join("fsck");
    store_blocks(&path, &objects());
    let files = data_files(&path)?;
    let jobs = Options::default().jobs;
    let mut targets = Vec::new();
    for cold in [true, false] {
        let (mut disk, mut check) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            clear(&files, cold)?;
            disk.push(timed(|| read_files(&files, jobs, false)).0);
            clear(&files, cold)?;
            let run = || peersync_fsck::check(&path, &Options::default(), &Quiet);
            let (time, report) = timed(run);
            let report = report.expect("checked");
            assert_eq!((report.exit_code(), report.checked.bytes), (0, VOLUME));
            check.push(time);
        }
        let hash =
            median((0..ROUNDS).map(|_| timed(|| read_files(&files, jobs, true)).0).collect());
        let (disk, check) = (median(disk), median(check));
        let name = if cold { "from the disk" } else { "from memory" };
        println!("{name}, {jobs} jobs");
        println!("  reading          {:8.0} MiB/s", speed(VOLUME, disk));
        println!("  BLAKE3 (cached)  {:8.0} MiB/s", speed(VOLUME, hash));
        println!("  peersync-fsck    {:8.0} MiB/s", speed(VOLUME, check));
        let best = if cold { disk.max(hash) } else { hash };
        let share = best.as_secs_f64() / check.as_secs_f64();
        println!("  ratio            {share:8.2}");
        let what = match cold {
            true => "fsck from the disk, of min(disk, BLAKE3)",
            false => "fsck from memory, of BLAKE3",
        };
        targets.push((what, ">= 0.8".into(), format!("{share:.2}"), share >= SHARE_MIN));
    }
    fs::remove_dir_all(&path)?;
    Ok(targets)
}

fn data_files(store: &Path) -> io::Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for dir in fs::read_dir(store.join("objects"))? {
        for file in fs::read_dir(dir?.path())? {
            out.push(file?.path());
        }
    }
    out.sort();
    Ok(out)
}

/// Reads all files on `jobs` threads, and hashes them block by block.
fn read_files(files: &[PathBuf], jobs: usize, hash: bool) {
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    // Stretches of 4 MiB, as the checker takes them.
    const STRETCH: u64 = 4 << 20;
    let all: Vec<(usize, u64)> = files
        .iter()
        .enumerate()
        .flat_map(|(n, path)| {
            let len = fs::metadata(path).expect("there").len();
            (0..len).step_by(STRETCH as usize).map(move |offset| (n, offset))
        })
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                let mut buffer = vec![0; 512 << 10];
                loop {
                    let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some((n, offset)) = all.get(at) else { break };
                    let file = File::open(&files[*n]).expect("opened");
                    for step in 0..STRETCH / buffer.len() as u64 {
                        let offset = offset + step * buffer.len() as u64;
                        let read = file.read_at(&mut buffer, offset).expect("read");
                        if hash {
                            std::hint::black_box(BlockHash::of(&buffer[..read]));
                        }
                    }
                }
            });
        }
    });
}

/// Takes the files out of the page cache, or reads them into it.
fn clear(files: &[PathBuf], cold: bool) -> io::Result<()> {
    if !cold {
        read_files(files, 2, false);
        return Ok(());
    }
    files.iter().try_for_each(|path| forget(path))
}

fn forget(path: &Path) -> io::Result<()> {
    let file = FileOptions::new().read(true).open(path)?;
    file.sync_all()?;
    // SAFETY: the descriptor is open; the call only gives advice.
    let result = unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// `VmHWM` of this process, in bytes.
fn peak() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024)
}

/// Bytes that don't compress.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    let mut out = vec![0; len];
    hasher.finalize_xof().fill(&mut out);
    out
}
