//! Upstreams that are gone, slow, or lie, and requests that no client sends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use crate::harness::host::{Host, Reply};
use crate::harness::{needs_mounts, wait_until};
use crate::http::{Connection, get};
use crate::node::{Node, SOON, World, blob};

#[test]
fn tags_are_asked_for_and_served_as_last_known_while_nobody_answers() {
    needs_mounts!();
    let mut world = World::new(2 << 20);
    let mut node = Node::start(&world.upstream());
    let image = "/v2/test/image/manifests/v1";
    let layer = world.layers[1].clone();
    assert_eq!(get(node.mirror, image, &[]).status(), 200);
    assert!(get(node.mirror, &blob(&layer), &[]).body == world.blob(&layer));

    // The tag moves: nobody is told of the old one any more.
    let registry = world.registry.take().expect("there");
    let moved = world.layout.image(
        "v2",
        &[crate::node::tar("new", 1 << 20)],
        crate::harness::layout::Compression::Gzip,
    );
    registry.push(&world.layout.dir, "v2", "test/image:v1");
    let now = get(node.mirror, image, &[]);
    assert_eq!(now.head.header("docker-content-digest"), moved);
    assert!(!now.head.headers.contains_key("warning"));

    // Gone: the last known, marked. Also after a restart.
    drop(registry);
    for _ in 0..2 {
        let known = get(node.mirror, image, &[]);
        assert_eq!((known.status(), known.head.header("docker-content-digest")), (200, &*moved));
        assert!(known.head.header("warning").starts_with("110 "));
        assert!(known.head.header("x-peersync-stale-since").ends_with("GMT"));
        assert!(get(node.mirror, &blob(&layer), &[]).body == world.blob(&layer));
        node.restart();
    }
    assert_eq!(get(node.mirror, "/v2/test/image/manifests/none", &[]).status(), 503);
    assert_eq!(get(node.mirror, "/v2/test/image/tags/list", &[]).status(), 200);
}

#[test]
fn a_blob_that_breaks_off_goes_on_and_one_that_is_lost_says_so() {
    needs_mounts!();
    let world = World::new(8 << 20);
    let node = Node::start(&world.upstream());
    get(node.mirror, "/v2/test/image/manifests/v1", &[]);
    let layer = &world.layers[1];
    let bytes = world.blob(layer);
    // The line is cut in the middle and mended: the client notices nothing.
    let begun = world.line.down();
    world.line.cut_at(begun + (3 << 20));
    let mut client = Connection::open(node.mirror);
    assert_eq!(client.ask("GET", &blob(layer), &[]).status, 200);
    assert!(client.read(1 << 20) == bytes[..1 << 20]);
    world.line.wait_for(begun + (3 << 20), SOON);
    world.line.mend();
    assert!(client.read(bytes.len() - (1 << 20)) == bytes[1 << 20..]);
    let crossed = world.line.down() - begun;
    assert!(crossed < bytes.len() as u64 + (1 << 20), "{crossed}");

    // Cut for good: the client is told by the end of the connection.
    let other = &world.layers[0];
    let bytes = world.blob(other);
    let begun = world.line.down();
    world.line.cut_at(begun + (1 << 20));
    let mut client = Connection::open(node.mirror);
    let head = client.ask("GET", &blob(other), &[]);
    let got = client.read(bytes.len());
    assert!(head.status == 200 && got.len() < bytes.len() && got == bytes[..got.len()]);
}

#[test]
fn what_is_not_what_its_digest_says_is_broken_off_and_not_kept() {
    needs_mounts!();
    let world = World::new(4 << 20);
    let layer = world.layers[1].clone();
    let (lie, right) = (world.layers[1].clone(), world.blob(&layer));
    let host = Host::serve(&world.layout.dir, move |request, mut reply: Reply| {
        if request.path.contains(&lie) {
            let last = reply.body.len() - 1;
            reply.body[last / 2] ^= 1;
        }
        reply
    });
    let node = Node::start(&host.address.to_string());
    get(node.mirror, "/v2/test/image/manifests/v1", &[]);
    for _ in 0..2 {
        let reply = get(node.mirror, &blob(&layer), &[]);
        assert_eq!(reply.head.length(), right.len());
        assert!(reply.body.len() < right.len(), "all of a lie was given");
    }
    assert!(node.stored() < 1 << 20, "{} bytes are kept", node.stored());

    // Another length than the manifest says is not even begun.
    let short = world.layers[0].clone();
    let host = Host::serve(&world.layout.dir, move |request, reply: Reply| {
        if request.path.contains(&short) {
            Reply::new(200, reply.body[..1000].to_vec())
        } else {
            reply
        }
    });
    let node = Node::start(&host.address.to_string());
    get(node.mirror, "/v2/test/image/manifests/v1", &[]);
    assert_eq!(get(node.mirror, &blob(&world.layers[0]), &[]).status(), 500);
}

#[test]
fn what_a_registry_refuses_is_passed_on() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let status = Arc::new(AtomicU16::new(0));
    let said = Arc::clone(&status);
    let host = Host::serve(&world.layout.dir, move |_, reply| match said.load(Ordering::Relaxed) {
        0 => reply,
        429 => Reply::status(429).with("Retry-After", "30"),
        401 => Reply::status(401).with("WWW-Authenticate", "Basic realm=\"r\""),
        status => Reply::status(status),
    });
    let node = Node::start(&host.address.to_string());
    for (upstream, expected) in [(401, 401), (403, 403), (404, 404), (429, 429), (500, 503)] {
        status.store(upstream, Ordering::Relaxed);
        for target in ["/v2/test/image/manifests/v1", &blob(&world.layers[0])] {
            let reply = get(node.mirror, target, &[]);
            assert_eq!(reply.status(), expected, "{upstream}: {target}");
            reply.error();
            assert_eq!(reply.head.headers.contains_key("www-authenticate"), upstream == 401);
        }
    }
    status.store(429, Ordering::Relaxed);
    let reply = get(node.mirror, "/v2/test/image/tags/list", &[]);
    assert_eq!(reply.head.header("retry-after"), "30");
}

#[test]
fn a_clients_own_access_is_passed_through_and_not_kept() {
    needs_mounts!();
    let world = World::new(2 << 20);
    let host = Host::serve(&world.layout.dir, |request, reply| {
        // user:pass
        match request.headers.get("authorization").map(String::as_str) {
            Some("Basic dXNlcjpwYXNz") => reply,
            _ => Reply::status(401).with("WWW-Authenticate", "Basic realm=\"r\""),
        }
    });
    let node = Node::start(&host.address.to_string());
    let login = [("Authorization", "Basic dXNlcjpwYXNz")];
    let layer = &world.layers[1];
    let image = "/v2/test/image/manifests/v1";
    let by_digest = format!("/v2/test/image/manifests/{}", world.manifest);
    for _ in 0..2 {
        assert_eq!(get(node.mirror, image, &login).status(), 200);
        assert_eq!(get(node.mirror, &by_digest, &login).status(), 200);
        assert!(get(node.mirror, &blob(layer), &login).body == world.blob(layer));
        let range = [login[0], ("Range", "bytes=10-19")];
        assert!(get(node.mirror, &blob(layer), &range).body == world.blob(layer)[10..20]);
        // The next client has no part in it.
        for target in [image, &by_digest, &blob(layer)] {
            assert_eq!(get(node.mirror, target, &[]).status(), 401, "{target}");
        }
    }
    assert!(node.stored() < 1 << 20, "{} bytes are kept", node.stored());

    // With the node's own logins, if that is what its operator wants.
    let mut node = Node::with(&host.address.to_string(), "logins = 'node'", "");
    let docker = node.peersync.path("docker");
    std::fs::create_dir_all(&docker).expect("directory");
    let auth = serde_json::json!({"auths": {host.address.to_string(): {"auth": "dXNlcjpwYXNz"}}});
    std::fs::write(docker.join("config.json"), auth.to_string()).expect("login");
    assert_eq!(get(node.mirror, image, &[]).status(), 200);
    assert!(get(node.mirror, &blob(layer), &[]).body == world.blob(layer));
    // If he does not want it any more, it is here and nobody's who can't have it.
    node.reconfigure("logins = 'node'", "logins = 'client'");
    for target in [image, &by_digest, &blob(layer)] {
        assert_eq!(get(node.mirror, target, &[]).status(), 401, "{target}");
    }
    assert!(get(node.mirror, &blob(layer), &login).body == world.blob(layer));
}

#[test]
fn a_mounted_private_image_is_not_given_away() {
    needs_mounts!();
    let mut world = World::new(1 << 20);
    let secret = crate::node::noise("secret", 2 << 20);
    world.layout.artifact("private", &[("model.safetensors", &secret[..])]);
    let digest = crate::harness::layout::digest(&secret);
    let theirs = digest.clone();
    let host = Host::serve(&world.layout.dir, move |request, reply| {
        let private = request.path.contains("private") || request.path.contains(&theirs);
        let known = request.headers.get("authorization").map(String::as_str);
        if !private || known == Some("Basic dXNlcjpwYXNz") {
            reply
        } else if request.path.contains("/private/") || request.path.ends_with("private") {
            Reply::status(401).with("WWW-Authenticate", "Basic realm=\"r\"")
        } else {
            Reply::status(404)
        }
    });
    let node = Node::start(&host.address.to_string());
    let docker = node.peersync.path("docker");
    std::fs::create_dir_all(&docker).expect("directory");
    let auth = serde_json::json!({"auths": {host.address.to_string(): {"auth": "dXNlcjpwYXNz"}}});
    std::fs::write(docker.join("config.json"), auth.to_string()).expect("login");
    node.peersync.run(&["pull", &format!("{}/test/private:private", host.address)]);
    assert_eq!(get(node.mirror, &format!("/v2/test/private/blobs/{digest}"), &[]).status(), 401);
    // Nor under the name of a repository that everybody may read.
    assert_eq!(get(node.mirror, "/v2/test/image/manifests/v1", &[]).status(), 200);
    assert_eq!(get(node.mirror, &blob(&digest), &[]).status(), 404);
}

#[test]
fn odd_requests_are_answered_or_ended() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    let say = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(node.mirror).expect("connection");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("limit");
        let _ = stream.write_all(bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    let huge = format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000));
    assert!(say(huge.as_bytes()).starts_with("HTTP/1.1 431"));
    let many = format!("GET /v2/ HTTP/1.1\r\n{}\r\n", "X: a\r\n".repeat(200));
    assert!(say(many.as_bytes()).starts_with("HTTP/1.1 431"));
    assert!(say(b"\0\x01\x02\r\n\r\n").starts_with("HTTP/1.1 400"));
    let connect = b"CONNECT evil.example:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = say(connect);
    assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
    // Half-open and silent connections hold nobody up.
    let silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(node.mirror).expect("connection")).collect();
    assert_eq!(get(node.mirror, "/v2/", &[]).status(), 200);
    drop(silent);
    // A connection is used again after an answer of any kind.
    let mut one = Connection::open(node.mirror);
    assert_eq!(one.get("/v2/test/image/manifests/none", &[]).status(), 404);
    assert_eq!(one.get("/v2/test/image/manifests/v1", &[]).status(), 200);
    wait_until("all is well", SOON, || node.counter("mirror_requests") >= 3);
}
