//! The registry mirror against what it stands in front of, and against nginx.
//!
//! `cargo bench --bench mirror -- [cached|first|clients ...]`, as root, with what
//! `tests/run` installs; `cached` needs nginx, too (Debian: nginx-light). Each part
//! prints a table for `docs/BENCHMARKS.md`.

#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
#[path = "../../tests/mirror/http.rs"]
#[allow(dead_code)]
mod http;
#[path = "../../tests/mirror/node.rs"]
#[allow(dead_code)]
mod node;

mod nginx;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use harness::layout::{digest, read_manifest};
use harness::line::{Conditions, Line};
use harness::registry::Registry;
use node::{Node, World, noise};

/// A part's name and what runs it.
type Part = (&'static str, fn());

const PARTS: &[Part] = &[("cached", cached), ("first", first), ("clients", clients)];
const MIB: usize = 1 << 20;
/// Measurements of which the median is given.
const ROUNDS: usize = 15;

fn main() {
    // cargo adds `--bench`.
    let asked: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !harness::can_mount() {
        return;
    }
    let known = |name: &String| PARTS.iter().any(|(part, _)| part == name);
    if let Some(unknown) = asked.iter().find(|name| !known(name)) {
        eprintln!("{unknown}: no such part");
        std::process::exit(2);
    }
    for (name, part) in PARTS {
        if asked.is_empty() || asked.iter().any(|asked| asked == name) {
            println!("\n`cargo bench --bench mirror -- {name}`\n");
            part();
        }
    }
}

/// A blob that is here, over loopback, in turn with nginx that serves the same file.
fn cached() {
    const SIZE: usize = 512 * MIB;
    let (world, blobs) = world_of(1, SIZE);
    let file = world.layout.blob_path(&blobs[0]);
    let Some(nginx) = nginx::Nginx::serve(file.parent().expect("a directory")) else {
        println!("skipped: needs nginx (apt-get install nginx-light)");
        return;
    };
    let node = Node::start(&world.upstream());
    let ours = target(&blobs[0]);
    let theirs = format!("/{}", file.file_name().expect("a name").display());
    // Fetched, and read once by both.
    fetch(&node, &ours, SIZE);
    time(nginx.address, &theirs, SIZE);
    println!("| clients | nginx, GiB/s | mirror, GiB/s | ratio | target |");
    println!("|---:|---:|---:|---:|---:|");
    for clients in [1, 4] {
        let together = |address: SocketAddr, target: &str| {
            let begun = Instant::now();
            thread::scope(|scope| {
                for _ in 0..clients {
                    scope.spawn(|| time(address, target, SIZE));
                }
            });
            (clients * SIZE) as f64 / begun.elapsed().as_secs_f64() / (1u64 << 30) as f64
        };
        let (mut nginxs, mut mirrors) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            nginxs.push(together(nginx.address, &theirs));
            mirrors.push(together(node.mirror, &ours));
        }
        let (nginx, mirror) = (median(nginxs), median(mirrors));
        println!("| {clients} | {nginx:.2} | {mirror:.2} | {:.2} | 0.90 |", mirror / nginx);
    }
}

/// The first byte of a blob that is not here, in turn with the registry's own.
fn first() {
    const SIZE: usize = 32 * MIB;
    println!("| line | registry | mirror | ratio | target |");
    println!("|---|---:|---:|---:|---:|");
    let far = Conditions { rate: Some(100_000_000 / 8), delay: Duration::from_millis(20) };
    for (name, conditions) in
        [("loopback", Conditions::default()), ("100 Mbit/s, 40 ms round trip", far)]
    {
        let (world, blobs) = world_of(ROUNDS, SIZE);
        let registry = world.registry.as_ref().expect("there");
        let line = Line::shaped(registry.address, conditions);
        let node = Node::start(&line.address.to_string());
        assert_eq!(http::get(node.mirror, "/v2/test/model/manifests/v1", &[]).status(), 200);
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for blob in &blobs {
            theirs.push(first_byte(line.address, &target(blob)));
            ours.push(first_byte(node.mirror, &target(blob)));
            // Nothing of it is to be on the way when the next one is measured.
            thread::sleep(Duration::from_millis(600));
        }
        let (theirs, ours) = (median(theirs), median(ours));
        println!(
            "| {name} | {:.2} ms | {:.2} ms | {:.2} | 1.20 |",
            theirs * 1e3,
            ours * 1e3,
            ours / theirs
        );
    }
}

/// What a hundred clients cost the process, of one blob and of many, while they
/// come and when they are here.
fn clients() {
    const SIZE: usize = 64 * MIB;
    const CLIENTS: usize = 100;
    println!("| 100 clients | memory of the process at most, MiB | target |");
    println!("|---|---:|---:|");
    for count in [1, 20] {
        let (world, blobs) = world_of(count, SIZE);
        let node = Node::start(&world.upstream());
        assert_eq!(http::get(node.mirror, "/v2/test/model/manifests/v1", &[]).status(), 200);
        for state in ["not here yet", "here"] {
            thread::scope(|scope| {
                for n in 0..CLIENTS {
                    let (address, target) = (node.mirror, target(&blobs[n % blobs.len()]));
                    scope.spawn(move || time(address, &target, SIZE));
                }
            });
            println!("| {count} blobs of 64 MiB, {state} | {} | 150 |", node.peak() >> 10);
        }
    }
}

/// `test/model:v1`: so many blobs of so many bytes.
fn world_of(count: usize, size: usize) -> (World, Vec<String>) {
    let mut world = World::new(1);
    let contents: Vec<Vec<u8>> = (0..count).map(|n| noise(&n.to_string(), size)).collect();
    let names: Vec<String> = (0..count).map(|n| format!("{n}.bin")).collect();
    let files: Vec<(&str, &[u8])> =
        names.iter().map(String::as_str).zip(contents.iter().map(Vec::as_slice)).collect();
    world.layout.artifact("model", &files);
    let registry: &Registry = world.registry.as_ref().expect("there");
    registry.push(&world.layout.dir, "model", "test/model:v1");
    let layers = read_manifest(&world.layout.dir, "model");
    let layers = layers["layers"].as_array().expect("layers").iter();
    let blobs = layers.map(|l| l["digest"].as_str().expect("digest").to_owned()).collect();
    (world, blobs)
}

fn target(blob: &str) -> String {
    format!("/v2/test/model/blobs/{blob}")
}

/// Fetches a blob, and sees that it is the right one.
fn fetch(node: &Node, target: &str, size: usize) {
    assert_eq!(http::get(node.mirror, "/v2/test/model/manifests/v1", &[]).status(), 200);
    let reply = http::get(node.mirror, target, &[]);
    assert_eq!((reply.status(), reply.body.len()), (200, size));
    assert!(target.ends_with(&digest(&reply.body)));
}

/// Reads an answer to its end and throws it away; gives the seconds.
fn time(address: SocketAddr, target: &str, size: usize) -> f64 {
    let begun = Instant::now();
    let mut stream = ask(address, target);
    let (mut buffer, mut read) = (vec![0; 256 << 10], 0);
    while read < size {
        let count = stream.read(&mut buffer).expect("bytes");
        assert!(count > 0, "{read} of {size} bytes");
        read += count;
    }
    begun.elapsed().as_secs_f64()
}

/// Seconds until the first byte of the body.
fn first_byte(address: SocketAddr, target: &str) -> f64 {
    let begun = Instant::now();
    let mut stream = ask(address, target);
    let (mut buffer, mut head) = ([0; 4096], Vec::new());
    loop {
        let count = stream.read(&mut buffer).expect("bytes");
        assert!(count > 0, "the answer ends");
        head.extend_from_slice(&buffer[..count]);
        let end = head.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        if end.is_some_and(|end| head.len() > end + 4) {
            assert!(head.starts_with(b"HTTP/1.1 200"));
            return begun.elapsed().as_secs_f64();
        }
    }
}

fn ask(address: SocketAddr, target: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).expect("connection");
    stream.set_nodelay(true).expect("no delay");
    let request = format!("GET {target} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("request");
    stream
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
