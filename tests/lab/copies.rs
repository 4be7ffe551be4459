//! A LAN whose nodes can't hold everything each: together they do, with one good
//! copy of everything, and nothing is lost.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use peersync::types::ObjectSpec;

use crate::harness::layout::{Compression, Layout};
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, wait_until};
use crate::world::{Lab, Line, Node, Plan};

const NODES: u8 = 3;
/// Images that fill a budget, and objects of an image, each a file of its own.
const IMAGES_IN_ONE: usize = 4;
const FILES: usize = 20;
/// Promises that are of no use end after a minute, and refusals are waited out; that
/// may happen a few times before all have found their place.
const SETTLED: Duration = Duration::from_secs(300);

/// So many images, two and a half budgets; three nodes hold 2.7 before they are pressed.
const IMAGES: usize = IMAGES_IN_ONE * 5 / 2;

/// Bytes that each node may hold.
fn budget() -> usize {
    let said = std::env::var("LAB_BUDGET_MIB");
    said.map_or(40, |said| said.parse().expect("LAB_BUDGET_MIB")) << 20
}

/// What is read, and where it shows.
struct Images {
    names: Vec<String>,
    /// Bytes of a file, each an object of its own.
    len: usize,
}

impl Images {
    /// Images of which no two have anything in common.
    fn push(lab: &Lab, len: usize) -> Self {
        let place = lab.directory().join("layout");
        fs::create_dir_all(&place).expect("a directory");
        let mut layout = Layout::create(&place);
        let tag = |image| format!("v{image}");
        for image in 0..IMAGES {
            let mut tar = Tar::new();
            for file in 0..FILES {
                tar.file(format!("file{file}").as_bytes(), &content(image, file, len));
            }
            layout.image(&tag(image), &[tar.finish()], Compression::Plain);
        }
        let push = |n| lab.registry.push(&place, &tag(n), &format!("test/one:{}", tag(n)));
        let names = (0..IMAGES).map(push).collect();
        fs::remove_dir_all(&place).expect("the registry has it");
        Self { names, len }
    }

    fn bytes(&self) -> u64 {
        (IMAGES * FILES * self.len) as u64
    }

    fn files(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..IMAGES).flat_map(|image| (0..FILES).map(move |file| (image, file)))
    }

    #[track_caller]
    fn read(&self, lab: &Lab, node: &Node, image: usize) {
        for file in 0..FILES {
            let path = node.image(&self.names[image]).join(format!("file{file}"));
            let expected = content(image, file, self.len);
            match read(&path) {
                Ok(bytes) => assert!(bytes == expected, "{} differs", path.display()),
                Err(error) => {
                    let has = who_has(lab, &expected);
                    panic!("{}: {error}; {has:?} have it; {}", path.display(), counters(lab));
                }
            }
        }
    }

    /// All nodes read an image at a time, each the one that `which` says.
    fn read_all(&self, lab: &Lab, which: impl Fn(usize, usize) -> usize) {
        for turn in 0..IMAGES {
            thread::scope(|scope| {
                for (n, node) in lab.nodes().iter().enumerate() {
                    let image = which(turn, n);
                    scope.spawn(move || self.read(lab, node, image));
                }
            });
        }
    }

    /// Waits until all hold no more than they may; then each object is somewhere.
    #[track_caller]
    fn settle(&self, lab: &Lab, budget: usize) {
        for node in lab.nodes() {
            let what = format!("{} is within its budget", node.space.name);
            wait_until(&what, SETTLED, || held(node) <= budget as u64);
        }
        for (image, file) in self.files() {
            let has = who_has(lab, &content(image, file, self.len));
            assert!(!has.is_empty(), "v{image}/file{file} is lost; {}", counters(lab));
        }
    }
}

fn content(image: usize, file: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[image as u8, file as u8]);
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Reads a file through the daemon: what the kernel still has of it does not count.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The nodes in whose stores all bytes of an object are.
fn who_has(lab: &Lab, content: &[u8]) -> Vec<String> {
    let id = ObjectSpec::of(content).id().to_string();
    let has = |node: &&Node| {
        let path = node.path("store/objects").join(&id[..2]).join(&id);
        fs::metadata(path).is_ok_and(|meta| meta.blocks() * 512 >= content.len() as u64)
    };
    lab.nodes().iter().filter(has).map(|node| node.space.name.clone()).collect()
}

/// What the nodes did about copies.
fn counters(lab: &Lab) -> String {
    let names = [
        "evicted_spare",
        "evicted_pressure",
        "promises_asked",
        "promises_received",
        "promises_given",
        "promises_withdrawn",
        "promises_false",
    ];
    let of = |node: &Node| {
        let status = node.status();
        let count = |name: &&str| format!("{name} {}", status["counters"][name]);
        let counts = names.iter().map(count).collect::<Vec<_>>().join(", ");
        format!("{}: held {}, {counts}", node.space.name, held(node))
    };
    lab.nodes().iter().map(of).collect::<Vec<_>>().join("\n")
}

fn held(node: &Node) -> u64 {
    node.status()["store"]["resident_bytes"].as_u64().expect("a number")
}

fn sum(lab: &Lab, of: impl Fn(&Node) -> u64) -> u64 {
    lab.nodes().iter().map(of).sum()
}

/// At full size: `LAB_BUDGET_MIB=1024 cargo test --test lab copies -- --nocapture`.
#[test]
fn three_nodes_hold_together_what_none_of_them_can() {
    needs_mounts!();
    let budget = budget();
    let mut lab = Lab::build(&Plan { line: Line::mbit(1000), ..Plan::of(1, NODES) });
    let images = Images::push(&lab, budget / IMAGES_IN_ONE / FILES);
    for node in lab.nodes_mut() {
        node.set("PEERSYNC_STORE_MAX_SIZE", &budget.to_string());
        node.may_last(SETTLED * 4);
    }
    lab.join_all("");
    let began = Instant::now();
    let say = |what: &str, lab: &Lab| {
        eprintln!("{what} after {:.0?}:\n{}", began.elapsed(), counters(lab));
    };
    // All nodes want each image at the same time, and none can keep them all.
    images.read_all(&lab, |turn, _| turn);
    say("all came", &lab);
    images.settle(&lab, budget);
    say("settled", &lab);
    assert!(sum(&lab, |node| node.counter("evicted_spare")) > 0, "copies went on promises");

    let from_registry = sum(&lab, |node| node.bytes("registry"));
    lab.registry.stop();
    // All read everything, each something else at a time: everywhere something has to
    // go at once.
    images.read_all(&lab, |turn, n| (turn + n * IMAGES / usize::from(NODES)) % IMAGES);
    say("all was read without the registry", &lab);
    images.settle(&lab, budget);
    say("settled", &lab);
    assert!(sum(&lab, held) >= images.bytes());
    let after = sum(&lab, |node| node.bytes("registry"));
    assert_eq!(after, from_registry, "nothing came from a registry that is not there");
}
