//! The official conformance suite of the OCI distribution specification, as far as
//! it is about reading.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::harness::{needs_mounts, output};
use crate::node::{Node, World};

/// Runs the suite with more settings than these, and gives its report; `None` where
/// it is not there.
fn suite(world: &World, registry: SocketAddr, settings: &[(&str, &str)]) -> Option<String> {
    let suite = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab/bin/conformance");
    if !suite.exists() {
        eprintln!("skipped: tests/run builds the suite where there is Go");
        return None;
    }
    let mut command = Command::new(suite);
    command.current_dir(world.place.path()).env("OCI_RESULTS_DIR", world.path("results"));
    command.env("OCI_REGISTRY", registry.to_string()).env("OCI_TLS", "disabled");
    let common = [
        ("VERSION", "1.1"),
        ("REPO1", "test/image"),
        ("REPO2", "test/other"),
        ("API_BLOBS_DELETE", "false"),
        ("API_MANIFESTS_DELETE", "false"),
        ("API_TAGS_DELETE", "false"),
        // A digest that can't be checked is not served.
        ("DATA_SHA512", "false"),
    ];
    for (name, value) in common.iter().chain(settings) {
        command.env(format!("OCI_{name}"), value);
    }
    // How it exits says nothing: it may fail to write its results as a file.
    Some(String::from_utf8_lossy(&output(&mut command).stdout).into_owned())
}

#[test]
fn the_official_suite_passes_for_what_is_only_read() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let registry = world.registry.as_ref().expect("there");
    for tag in ["v2", "v3"] {
        registry.push(&world.layout.dir, "v1", &format!("test/image:{tag}"));
    }
    let node = Node::start(&world.upstream());
    // Something that refers to the image.
    let image = format!("{}/test/image:v1", world.upstream());
    for what in ["build", "push"] {
        node.peersync.run(&["index", what, &image]);
    }
    let layers = world.layers.join(" ");
    let settings = [
        ("API_PUSH", "false"),
        // Of manifests it does not look at the header where it has not pushed them
        // itself.
        ("API_BLOBS_DIGEST_HEADER", "true"),
        ("RO_DATA_TAGS", "v1 v2 v3"),
        ("RO_DATA_MANIFESTS", &world.manifest),
        ("RO_DATA_BLOBS", &layers),
        ("RO_DATA_REFERRERS", &world.manifest),
    ];
    let Some(report) = suite(&world, node.mirror, &settings) else { return };
    assert!(report.contains("OCI Conformance Result: Pass\n"), "{report}");
}

#[test]
fn what_the_official_suite_pushes_it_reads_through_the_mirror_as_it_expects() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    let registry = world.registry.as_ref().expect("there").address;
    let both = between(node.mirror, registry);
    // The registry behind it knows nothing of referrers, and does not take the others.
    let settings = [
        ("API_REFERRER", "false"),
        ("DATA_NONDISTRIBUTABLE", "false"),
        ("API_BLOBS_DIGEST_HEADER", "true"),
        ("API_MANIFESTS_DIGEST_HEADER", "true"),
    ];
    let Some(report) = suite(&world, both, &settings) else { return };
    for reading in [
        "Ping",
        "Tag listing",
        "Blob get",
        "Blob get range",
        "Blob head",
        "Manifest get by digest",
        "Manifest get by tag",
        "Manifest head by digest",
        "Manifest head by tag",
    ] {
        let is_it = |line: &&str| line.trim().split("..").next() == Some(reading);
        let line = report.lines().find(is_it).unwrap_or_else(|| panic!("no {reading}: {report}"));
        assert!(line.ends_with(" Pass"), "{line}\n{report}");
    }
}

/// Sends what is read to one and what is written to the other, a connection for each
/// request.
fn between(reads: SocketAddr, writes: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
    let address = listener.local_addr().expect("address");
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || forward(client, reads, writes));
        }
    });
    address
}

fn forward(mut client: TcpStream, reads: SocketAddr, writes: SocketAddr) -> io::Result<()> {
    let mut head = Vec::new();
    let end = loop {
        let mut buffer = [0; 4096];
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..count]);
        if let Some(end) = head.windows(2).position(|bytes| bytes == b"\r\n")
            && head.windows(4).any(|bytes| bytes == b"\r\n\r\n")
        {
            break end + 2;
        }
    };
    let line = String::from_utf8_lossy(&head[..end]).into_owned();
    let is_read = line.starts_with("GET ") || line.starts_with("HEAD ");
    let to = if is_read && !line.contains("/blobs/uploads/") { reads } else { writes };
    let mut server = TcpStream::connect(to)?;
    server.write_all(&[&head[..end], b"Connection: close\r\n", &head[end..]].concat())?;
    let (mut from, mut rest) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || io::copy(&mut from, &mut rest));
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Both)
}
