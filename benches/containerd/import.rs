//! From the pull to the first output of `import numpy` in a container.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::layout::layer_bytes;
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::{Running, run, tool, wait_until};
use crate::link::{Link, RATE};
use crate::node::Node;
use crate::report::{Table, mib, seconds};
use crate::world::{OURS, THEIRS, World};

/// The image alone, and with its index beside it.
const PLAIN: &str = "bench/plain:v1";
const INDEXED: &str = "bench/indexed:v1";

const SCRIPT: &str = "import numpy; print(numpy.arange(10).sum())";
const LIMIT: Duration = Duration::from_secs(240);

/// Who makes the container's files appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Overlayfs,
    FirstSight,
    Indexed,
}

/// One run.
#[derive(Clone, Copy)]
struct Run {
    pull: Duration,
    total: Duration,
    bytes: Option<u64>,
}

pub(crate) fn import() {
    let layout = full_images();
    let registry = Registry::start();
    fill(&registry, &layout);
    let link = Link::new();
    let far = Registry::start_at(link.address(), &link.far()).expect("a registry at the far end");
    fill(&far, &layout);
    link.shape();

    println!(
        "Debian, Python and numpy, {} in {} runs each; time from the start of the pull to the \
         first output.\n",
        mib(layer_bytes(&layout, "a")),
        runs()
    );
    let mut table = Table::new(&["link", "who", "pull", "to the output", "came over", "times"]);
    let loopback = place(&mut table, "loopback", registry.address, None);
    let thin = place(&mut table, RATE, far.address, Some(&link));
    table.print();

    println!("\n| target | wanted | measured | |\n|---|---|---|---|");
    let met = |is: bool| if is { "met" } else { "**missed**" };
    println!(
        "| {RATE}, with an index | >= 4 times | {:.1} times | {} |",
        thin.1,
        met(thin.1 >= 4.0)
    );
    println!(
        "| loopback, first sight | not slower | {:.2} times | {} |",
        loopback.0,
        met(loopback.0 >= 1.0)
    );
}

/// The image as it is, and once more with an index beside it.
fn fill(registry: &Registry, layout: &Path) {
    for name in [PLAIN, INDEXED] {
        registry.push(layout, "a", name);
    }
    let builder = Peersync::new();
    let image = format!("{}/{INDEXED}", registry.address);
    builder.run(&["index", "build", "--plain-http", &image]);
    builder.run(&["index", "push", "--plain-http", &image]);
}

/// All ways over one link; how many times faster than overlayfs the first sight
/// and the indexed image are.
fn place(table: &mut Table, name: &str, at: SocketAddr, link: Option<&Link>) -> (f64, f64) {
    let median = |way| {
        let mut done: Vec<Run> = (0..runs()).map(|_| one(way, at, link)).collect();
        done.sort_by_key(|run| run.total);
        done[done.len() / 2]
    };
    let theirs = median(Way::Overlayfs);
    let mut times = [0.0; 2];
    for (at, way) in [Way::Overlayfs, Way::FirstSight, Way::Indexed].into_iter().enumerate() {
        let run = if way == Way::Overlayfs { theirs } else { median(way) };
        let faster = theirs.total.as_secs_f64() / run.total.as_secs_f64();
        if at > 0 {
            times[at - 1] = faster;
        }
        let who = match way {
            Way::Overlayfs => "containerd, overlayfs",
            Way::FirstSight => "peersync, first sight",
            Way::Indexed => "peersync, indexed",
        };
        let bytes = run.bytes.map_or_else(|| "-".into(), mib);
        let cells = [name.into(), who.into(), seconds(run.pull), seconds(run.total), bytes];
        let [a, b, c, d, e] = cells;
        table.row([a, b, c, d, e, format!("{faster:.2}")]);
    }
    (times[0], times[1])
}

/// In a new containerd with a new store and cold caches.
fn one(way: Way, at: SocketAddr, link: Option<&Link>) -> Run {
    let config = format!("[registry]\nplain_http = [\"{at}\"]\n");
    let world = World::of(|_, socket| Node::new(socket, &config));
    let image = format!("{at}/{}", if way == Way::Indexed { INDEXED } else { PLAIN });
    let snapshotter = if way == Way::Overlayfs { THEIRS } else { OURS };
    let said = world.place().join("said");
    fs::create_dir(&said).expect("directory");
    tool("mkfifo", &[said.join("out")]);
    drop_caches();

    let before = link.map(Link::received);
    let begun = Instant::now();
    let pull = ["--plain-http", "--snapshotter", snapshotter, &image];
    if way == Way::Overlayfs {
        world.ctr(&[&["images", "pull"][..], &pull].concat());
    } else {
        let mut rpull = Command::new("ctr-remote");
        rpull.arg("--address").arg(world.socket()).args(["--namespace", "test", "images", "rpull"]);
        run(rpull.args(pull));
    }
    let pulled = begun.elapsed();
    let mut container = Running::start(&mut container(&world, snapshotter, &image, &said));
    let first = first_line(&said.join("out"), &mut container);
    let total = begun.elapsed();
    assert_eq!(first, "45\n", "{way:?}");
    let bytes = link.zip(before).map(|(link, before)| link.received() - before);
    let ended = container.finish(LIMIT);
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    eprintln!("{way:?} at {at}: pull {pulled:?}, output {total:?}, {bytes:?} bytes");
    Run { pull: pulled, total, bytes }
}

fn container(world: &World<Node>, snapshotter: &str, image: &str, said: &Path) -> Command {
    let name = world.unique("numpy");
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", said.display());
    let script = format!("exec python3 -c '{SCRIPT}' >/mnt/out");
    let options = ["run", "--rm", "--snapshotter", snapshotter, "--mount", &mount];
    world.ctr_command("test", &[&options[..], &[image, &name, "/bin/sh", "-c", &script]].concat())
}

/// The line as soon as it is there. A container that ends without a word is no
/// reader's end: opening a pipe waits for whoever writes.
fn first_line(pipe: &Path, container: &mut Running) -> String {
    use std::os::unix::fs::OpenOptionsExt;
    let nonblocking = nix::libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(nonblocking).open(pipe).expect("pipe");
    let mut reader = BufReader::new(file);
    let mut line = String::new();
    wait_until("the container says something", LIMIT, || {
        // Nobody has opened it, or nothing is there yet.
        let _ = reader.read_line(&mut line);
        line.ends_with('\n') || container.wait(Duration::ZERO).is_some()
    });
    let _ = reader.read_line(&mut line);
    line
}

fn runs() -> usize {
    std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(3).max(1)
}

fn drop_caches() {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop caches");
}

/// The real images: a layout with the tag a.
pub(crate) fn full_images() -> PathBuf {
    if let Some(place) = std::env::var_os("LAB_IMAGES") {
        return PathBuf::from(place).join("oci");
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/images.sh");
    // Minutes the first time: not under the limit of an ordinary command.
    let output = Command::new(script).arg("full").output().expect("images.sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()).join("oci")
}
