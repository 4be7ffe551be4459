//! The mount against ext4: metadata, reads, mount time and memory.
//!
//! `cargo bench --bench fs` as root; it drops the page cache, so run it on a
//! quiet machine. Each figure is the median of interleaved rounds. The server
//! runs in a process of its own, so that its memory is its own.

#[allow(dead_code, unreachable_pub, reason = "shared with the tests")]
#[path = "../tests/fuse/memory.rs"]
mod memory;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memory::{Item, MemoryCatalog, MemoryReader, layer, slot};
use nix::libc;
use peersync::fs::{FileSystem, FsOptions, LayerView, Root};
use peersync::fuse::{MountOptions, mount};
use peersync::layer::entry::{Entry, EntryKind};
use peersync::layer::tree::{FileContent, Tree, TreeBuilder};
use peersync::types::{BlockHash, ObjectId};

const FILES: usize = 50_000;
const FILES_IN_DIRECTORY: usize = 25;
const BIG: u64 = 512 << 20;
const RANDOM_READS: u64 = 4_000;
const RANDOM_READS_WARM: u64 = 200_000;
const ROUNDS: usize = 7;
const SERVE: &str = "PEERSYNC_BENCH_SERVE";

fn main() -> io::Result<()> {
    if let Some(dir) = std::env::var_os(SERVE) {
        return serve(Path::new(&dir));
    }
    if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        eprintln!("left out: needs root and /dev/fuse");
        return Ok(());
    }
    let base =
        std::env::var_os("PEERSYNC_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("peersync-bench-").tempdir_in(base)?;
    prepare(dir.path())?;
    let mut table = Table::default();
    metadata(dir.path(), &mut table)?;
    content(dir.path(), &mut table)?;
    table.print();
    Ok(())
}

// ------------------------------------------------------------ preparation

/// Names of the files, spread over directories as in `usr/share`.
fn names() -> impl Iterator<Item = String> {
    (0..FILES).map(|n| {
        let directory = n / FILES_IN_DIRECTORY;
        format!("share/{:02}/package-{directory:04}/file-{n:05}.dat", directory % 40)
    })
}

/// A tree on ext4, and the same as three layers; and a large file.
fn prepare(dir: &Path) -> io::Result<()> {
    let native = dir.join("native");
    let mut layers: [Vec<Item>; 3] = Default::default();
    let mut known = std::collections::HashSet::new();
    for (n, name) in names().enumerate() {
        let path = native.join(&name);
        let parent = path.parent().expect("a parent");
        // The upper layers touch every tenth directory of those below.
        let index = match n % 250 {
            0..=1 => 2,
            2..=9 => 1,
            _ => 0,
        };
        let parents: Vec<_> = Path::new(&name).ancestors().skip(1).collect();
        for ancestor in parents.iter().rev().filter(|a| !a.as_os_str().is_empty()) {
            if known.insert((index, ancestor.to_path_buf())) {
                layers[index].push(Item::dir(ancestor.to_str().expect("text")));
            }
        }
        fs::create_dir_all(parent)?;
        fs::write(&path, n.to_le_bytes())?;
        layers[index].push(Item::file(&name, n.to_le_bytes()));
    }
    for (number, items) in (1..).zip(&layers) {
        let view = layer(slot(number), items, &MemoryReader::new());
        fs::write(dir.join(format!("tree-{number}")), view.tree.bytes())?;
    }

    let mut big = File::create(dir.join("big"))?;
    let mut chunk = vec![0u8; 1 << 20];
    let mut state = 88_172_645_463_325_252u64;
    for _ in 0..BIG >> 20 {
        for word in chunk.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        big.write_all(&chunk)?;
    }
    big.sync_all()?;
    let mut builder = TreeBuilder::default();
    let entry = Entry {
        path: b"big".into(),
        kind: EntryKind::File { size: BIG, extents: None },
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Vec::new(),
    };
    let hash = BlockHash::of(b"not needed here");
    let content = FileContent { object: 1, offset: 0, length: BIG, hash };
    builder.add(&entry, Some(content)).map_err(io::Error::other)?;
    let objects = [(big_object(0), 0), (big_object(1), BIG)];
    fs::write(dir.join("tree-9"), builder.finish(&objects).map_err(io::Error::other)?)
}

fn big_object(n: u8) -> ObjectId {
    ObjectId::from_bytes([n; 32])
}

// ----------------------------------------------------------------- server

/// Mounts on `dir/mnt` until standard input ends. Says how long it took from
/// the files to an answer.
fn serve(dir: &Path) -> io::Result<()> {
    let passthrough = std::env::var_os("PEERSYNC_BENCH_CACHED").is_none();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build()?;
    let reader = MemoryReader::new();
    reader.add_file(big_object(1), dir.join("big"));
    let begin = Instant::now();
    let catalog = MemoryCatalog::new();
    let open = |number: u32| -> io::Result<Arc<LayerView>> {
        let file = File::open(dir.join(format!("tree-{number}")))?;
        // SAFETY: nobody changes the file while this process lives.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        let view = LayerView {
            slot: slot(number),
            name: format!("layer-{number}"),
            tree: Tree::open(map).map_err(io::Error::other)?,
        };
        let view = Arc::new(view);
        catalog.add_layer(&view);
        Ok(view)
    };
    let layers = [open(1)?, open(2)?, open(3)?];
    catalog.add_view(slot(100), slot(100), "image", &layers);
    let big = open(9)?;
    catalog.add_view(slot(101), slot(101), "big", &[big]);
    catalog.add_image("docker.io/library/many:1", slot(100));
    catalog.add_image("docker.io/library/big:1", slot(101));
    let fs = FileSystem::new(Root::Whole, catalog, reader, FsOptions::default());
    let mut options = MountOptions::new("bench");
    options.stack_depth = u32::from(passthrough);
    if let Some(kib) = std::env::var("PEERSYNC_BENCH_READ_AHEAD").ok().and_then(|v| v.parse().ok())
    {
        options.read_ahead_kib = Some(kib);
    }
    let handle = mount(fs, &dir.join("mnt"), &options, runtime.handle().clone(), || ())
        .map_err(io::Error::other)?;
    fs::metadata(dir.join("mnt/images/docker.io/library/many:1/share"))?;
    println!("{}", begin.elapsed().as_micros());
    io::stdin().read_to_end(&mut Vec::new())?;
    handle.unmount(true).map_err(io::Error::other)?;
    handle.wait();
    Ok(())
}

struct Server {
    child: Child,
    mounted: Duration,
    image: PathBuf,
    big: PathBuf,
}

impl Server {
    fn start(dir: &Path, environment: &[(&str, &str)]) -> io::Result<Self> {
        let point = dir.join("mnt");
        fs::create_dir_all(&point)?;
        let mut child = Command::new(std::env::current_exe()?)
            .env(SERVE, dir)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line)?;
        let micros = line.trim().parse().map_err(io::Error::other)?;
        let images = point.join("images/docker.io/library");
        Ok(Self {
            child,
            mounted: Duration::from_micros(micros),
            image: images.join("many:1"),
            big: images.join("big:1/big"),
        })
    }

    /// Resident memory in KiB: (of its own, all with mapped files).
    fn memory(&self) -> io::Result<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name| {
            let line = status.lines().find_map(|line: &str| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_ascii_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        Ok((field("RssAnon:"), field("VmRSS:")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

// --------------------------------------------------------------- measures

fn metadata(dir: &Path, table: &mut Table) -> io::Result<()> {
    let server = Server::start(dir, &[])?;
    let idle = server.memory()?;
    let native = dir.join("native");
    let (mut cold, mut warm) = (Pair::default(), Pair::default());
    for _ in 0..ROUNDS {
        for (own, path) in [(false, &native), (true, &server.image)] {
            drop_caches()?;
            cold.add(own, timed(|| walk(path))?);
            warm.add(own, timed(|| walk(path))?);
        }
    }
    let after = server.memory()?;
    table.compare("walk of 50,000 files, cold", "ms", &cold.millis(), Limit::AtMost(1.3));
    table.compare("walk of 50,000 files, warm", "ms", &warm.millis(), Limit::AtMost(1.1));
    table.single("mount of the 50,000 files", "ms", server.mounted.as_secs_f64() * 1e3, 100.0);
    table.single("resident memory, idle", "MiB", idle.1 as f64 / 1024.0, 64.0);
    table.single("resident memory, after the walks", "MiB", after.1 as f64 / 1024.0, 64.0);
    Ok(())
}

fn content(dir: &Path, table: &mut Table) -> io::Result<()> {
    let native = dir.join("big");
    let server = Server::start(dir, &[])?;
    type Measure = fn(&Path) -> io::Result<()>;
    let measures: [(&str, bool, f64, f64, Measure); 6] = [
        ("sequential read, cold, MiB/s", true, (BIG >> 20) as f64, 0.95, sequential),
        ("sequential read, warm, MiB/s", false, (BIG >> 20) as f64, 0.95, sequential),
        ("random 4 KiB reads, cold, /s", true, RANDOM_READS as f64, 0.9, |path| {
            random(path, RANDOM_READS)
        }),
        ("random 4 KiB reads, warm, /s", false, RANDOM_READS_WARM as f64, 0.9, |path| {
            random(path, RANDOM_READS_WARM)
        }),
        ("mmap, cold, MiB/s", true, (BIG >> 20) as f64, 0.9, mapped),
        ("mmap, warm, MiB/s", false, (BIG >> 20) as f64, 0.9, mapped),
    ];
    for (name, cold, amount, limit, measure) in measures {
        let mut pair = Pair::default();
        for round in 0..ROUNDS {
            let mut sides = [(false, &native), (true, &server.big)];
            // Neither side is always the one that comes second.
            sides.rotate_left(round % 2);
            for (own, path) in sides {
                if cold {
                    drop_caches()?;
                } else {
                    measure(path)?;
                }
                pair.add(own, timed(|| measure(path))?);
            }
        }
        table.compare(name, "", &pair.rate(amount), Limit::AtLeast(limit));
    }
    drop(server);
    for kib in ["128", "256", "1024"] {
        let environment = [("PEERSYNC_BENCH_CACHED", "1"), ("PEERSYNC_BENCH_READ_AHEAD", kib)];
        let server = Server::start(dir, &environment)?;
        let mut pair = Pair::default();
        for _ in 0..ROUNDS {
            sequential(&native)?;
            pair.add(false, timed(|| sequential(&native))?);
            // The store's pages stay, those of the mount go.
            forget_pages(&server.big)?;
            pair.add(true, timed(|| sequential(&server.big))?);
        }
        let name = format!("not passed through, store warm, readahead {kib} KiB, MiB/s");
        table.compare(&name, "", &pair.rate((BIG >> 20) as f64), Limit::None);
    }
    Ok(())
}

/// Visits every entry and asks for its attributes.
fn walk(top: &Path) -> io::Result<()> {
    let mut todo = vec![top.to_path_buf()];
    let mut files = 0;
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            if meta.is_dir() {
                todo.push(entry.path());
            } else {
                files += usize::from(meta.size() > 0);
            }
        }
    }
    assert_eq!(files, FILES);
    Ok(())
}

fn sequential(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buf = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        match file.read(&mut buf)? {
            0 => break,
            n => total += n as u64,
        }
    }
    assert_eq!(total, BIG);
    Ok(())
}

fn random(path: &Path, count: u64) -> io::Result<()> {
    let file = File::open(path)?;
    let mut buf = [0; 4096];
    let mut state = 1u64;
    for _ in 0..count {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let page = (state >> 33) % (BIG / 4096);
        file.read_exact_at(&mut buf, page * 4096)?;
    }
    Ok(())
}

/// Touches every page of a mapping in order.
fn mapped(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: nobody changes the file while it is mapped.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    let sum: u64 = map.chunks(4096).map(|page| u64::from(page[0])).sum();
    assert!(sum > 0);
    Ok(())
}

fn drop_caches() -> io::Result<()> {
    // SAFETY: has no arguments and touches no memory of ours.
    unsafe { libc::sync() };
    let mut file = File::options().write(true).open("/proc/sys/vm/drop_caches")?;
    file.write_all(b"3")
}

fn forget_pages(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a plain call on a descriptor that is open.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

fn timed(task: impl FnOnce() -> io::Result<()>) -> io::Result<Duration> {
    let begin = Instant::now();
    task()?;
    Ok(begin.elapsed())
}

// ----------------------------------------------------------------- report

#[derive(Default)]
struct Pair {
    ext4: Vec<f64>,
    own: Vec<f64>,
}

impl Pair {
    fn add(&mut self, own: bool, time: Duration) {
        let side = if own { &mut self.own } else { &mut self.ext4 };
        side.push(time.as_secs_f64());
    }

    fn medians(&self) -> (f64, f64) {
        let median = |values: &[f64]| {
            let mut values = values.to_vec();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        (median(&self.ext4), median(&self.own))
    }

    fn millis(&self) -> (f64, f64) {
        let (ext4, own) = self.medians();
        (ext4 * 1e3, own * 1e3)
    }

    fn rate(&self, amount: f64) -> (f64, f64) {
        let (ext4, own) = self.medians();
        (amount / ext4, amount / own)
    }
}

#[derive(Clone, Copy)]
enum Limit {
    AtMost(f64),
    AtLeast(f64),
    None,
}

#[derive(Default)]
struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    fn compare(&mut self, name: &str, unit: &str, (ext4, own): &(f64, f64), limit: Limit) {
        let ratio = own / ext4;
        let verdict = match limit {
            Limit::AtMost(most) if ratio <= most => format!("<= {most}: yes"),
            Limit::AtMost(most) => format!("<= {most}: NO"),
            Limit::AtLeast(least) if ratio >= least => format!(">= {least}: yes"),
            Limit::AtLeast(least) => format!(">= {least}: NO"),
            Limit::None => String::new(),
        };
        let figure = |value: &f64| format!("{value:.1} {unit}").trim_end().to_owned();
        let row = [name.to_owned(), figure(ext4), figure(own), format!("{ratio:.3}"), verdict];
        eprintln!("{}", row.join(" | "));
        self.rows.push(row);
    }

    fn single(&mut self, name: &str, unit: &str, value: f64, most: f64) {
        let verdict = if value <= most { "yes" } else { "NO" };
        let figure = format!("{value:.1} {unit}");
        let verdict = format!("<= {most}: {verdict}");
        let row = [name.to_owned(), String::new(), figure, String::new(), verdict];
        eprintln!("{}", row.join(" | "));
        self.rows.push(row);
    }

    fn print(&self) {
        println!("| measure | ext4 | peersync | ratio | target |\n|---|---|---|---|---|");
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}
