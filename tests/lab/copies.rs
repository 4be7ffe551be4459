//! A LAN whose nodes can't hold everything each: together they do, with one good
//! copy of everything, and nothing is lost.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use peersync::types::ObjectSpec;

use crate::harness::layout::{Compression, Layout};
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, wait_until};
use crate::world::{Lab, Line, Node, Plan};

const MIB: usize = 1 << 20;
/// What each node may hold, unless `LAB_BUDGET_MIB` says something else: 1024 is the
/// size that was asked for.
const BUDGET_MIB: usize = 40;
const NODES: u8 = 3;
/// So many images, 2.5 budgets together.
const IMAGES: usize = 50;
/// Objects of an image, each a file of its own.
const FILES: usize = 4;
const SOON: Duration = Duration::from_secs(120);

fn budget() -> usize {
    let said = std::env::var("LAB_BUDGET_MIB").ok();
    said.map_or(BUDGET_MIB, |said| said.parse().expect("LAB_BUDGET_MIB")) * MIB
}

fn content(image: usize, file: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&[image as u8, file as u8]);
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn tag(image: usize) -> String {
    format!("v{image}")
}

/// Images of which no two have anything in common.
fn push_images(lab: &Lab, len: usize) -> Vec<String> {
    let place = lab.directory().join("layout");
    fs::create_dir_all(&place).expect("a directory");
    let mut layout = Layout::create(&place);
    for image in 0..IMAGES {
        let mut tar = Tar::new();
        for file in 0..FILES {
            tar.file(format!("file{file}").as_bytes(), &content(image, file, len));
        }
        layout.image(&tag(image), &[tar.finish()], Compression::Plain);
    }
    let push = |image| lab.registry.push(&place, &tag(image), &format!("test/one:{}", tag(image)));
    let mut names = BTreeMap::new();
    for some in (0..IMAGES).collect::<Vec<_>>().chunks(4) {
        thread::scope(|scope| {
            let pushes: Vec<_> = some.iter().map(|n| (*n, scope.spawn(|| push(*n)))).collect();
            names.extend(pushes.into_iter().map(|(n, push)| (n, push.join().expect("pushed"))));
        });
    }
    fs::remove_dir_all(&place).expect("the registry has it");
    names.into_values().collect()
}

/// Reads a file through the daemon: what the kernel still has of it does not count.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[track_caller]
fn read_image(lab: &Lab, node: &Node, names: &[String], image: usize, len: usize) {
    for file in 0..FILES {
        let path = node.image(&names[image]).join(format!("file{file}"));
        match read(&path) {
            Ok(bytes) => assert!(bytes == content(image, file, len), "{} differs", path.display()),
            Err(error) => panic!("{}: {error}; {}", path.display(), who_has(lab, image, file, len)),
        }
    }
}

/// What the nodes have of a file, by its object in their stores.
fn who_has(lab: &Lab, image: usize, file: usize, len: usize) -> String {
    let id = ObjectSpec::of(&content(image, file, len)).id().to_string();
    let has = |node: &Node| {
        let path = node.path("store/objects").join(&id[..2]).join(&id);
        let bytes = fs::metadata(path).map_or(0, |meta| meta.blocks() * 512);
        format!("{} has {bytes} of {len} bytes of {id}, {}", node.space.name, counters(node))
    };
    lab.nodes().iter().map(has).collect::<Vec<_>>().join("; ")
}

/// What a node did about copies.
fn counters(node: &Node) -> String {
    let status = node.status();
    let names = [
        "evicted_spare",
        "evicted_pressure",
        "promises_asked",
        "promises_received",
        "promises_given",
        "promises_withdrawn",
        "promises_false",
    ];
    let count = |name: &&str| format!("{name} {}", status["counters"][name]);
    format!("held {}, {}", held(node), names.iter().map(count).collect::<Vec<_>>().join(", "))
}

fn held(node: &Node) -> u64 {
    node.status()["store"]["resident_bytes"].as_u64().expect("a number")
}

fn total(lab: &Lab) -> u64 {
    lab.nodes().iter().map(held).sum()
}

#[track_caller]
fn within_budget(lab: &Lab, when: &str) {
    for node in lab.nodes() {
        wait_until(&format!("{} is within its budget {when}", node.space.name), SOON, || {
            held(node) <= budget() as u64
        });
    }
}

/// By hand: `cargo test --test lab copies -- --ignored --nocapture`, at full size with
/// `LAB_BUDGET_MIB=1024`.
#[test]
#[ignore = "two minutes, and it has been run too seldom to trust"]
fn three_nodes_hold_together_what_none_of_them_can() {
    needs_mounts!();
    let mut lab = Lab::build(&Plan { line: Line::mbit(1000), ..Plan::of(1, NODES) });
    let len = budget() * 5 / 2 / IMAGES / FILES;
    let names = push_images(&lab, len);
    for node in lab.nodes_mut() {
        node.set("PEERSYNC_STORE_MAX_SIZE", &budget().to_string());
    }
    lab.join_all("");
    // Each image comes to all nodes, one after the other: none can keep them all.
    for image in 0..IMAGES {
        for node in lab.nodes() {
            read_image(&lab, node, &names, image, len);
        }
    }
    within_budget(&lab, "after all images came");
    let all = (len * FILES * IMAGES) as u64;
    assert!(total(&lab) >= all, "{} bytes are held of {all}: something is lost", total(&lab));
    let promised: u64 = lab.nodes().iter().map(|node| node.counter("evicted_spare")).sum();
    assert!(promised > 0, "copies went on promises");
    let from_registry: u64 = lab.nodes().iter().map(|node| node.bytes("registry")).sum();

    lab.registry.stop();
    // All read everything, each something else at a time: everywhere something has to
    // go at once.
    for image in 0..IMAGES {
        thread::scope(|scope| {
            for (n, node) in lab.nodes().iter().enumerate() {
                let (lab, names, image) = (&lab, &names, (image + n * IMAGES / 3) % IMAGES);
                scope.spawn(move || read_image(lab, node, names, image, len));
            }
        });
    }
    within_budget(&lab, "after all was read again");
    assert!(total(&lab) >= all, "{} bytes are held of {all}: something is lost", total(&lab));
    let after: u64 = lab.nodes().iter().map(|node| node.bytes("registry")).sum();
    assert_eq!(after, from_registry, "nothing came from a registry that is not there");
    for node in lab.nodes() {
        eprintln!("{}: {}", node.space.name, counters(node));
    }
}
