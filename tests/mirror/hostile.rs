//! Registries that send the mirror elsewhere, and clients that want all of it.

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use crate::harness::host::{Host, Reply};
use crate::harness::{needs_mounts, wait_until};
use crate::http::{Connection, get};
use crate::node::{Node, SOON, World, blob};

#[test]
fn no_redirect_leads_to_this_node_or_to_a_metadata_service() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let place = Arc::new(Mutex::new(String::new()));
    let said = Arc::clone(&place);
    let host = Host::serve(&world.layout.dir, move |request, reply| {
        let place = said.lock().expect("place").clone();
        if place.is_empty() {
            return reply;
        }
        let location = if place.ends_with("/v2") {
            place + request.path.strip_prefix("/v2").expect("of the protocol")
        } else {
            place
        };
        Reply::status(307).with("Location", &location)
    });
    let node = Node::start(&host.address.to_string());
    let image = "/v2/test/image/manifests/v1";
    assert_eq!(get(node.mirror, image, &[]).status(), 200);
    let port = node.mirror.port();
    for elsewhere in [
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "http://[fe80::1]/".to_owned(),
        "http://[::ffff:169.254.169.254]/".to_owned(),
        // A circle: the mirror would wait for itself.
        format!("http://127.0.0.1:{port}/v2"),
        format!("http://localhost:{port}/v2"),
        "ftp://127.0.0.1/".to_owned(),
    ] {
        place.lock().expect("place").clone_from(&elsewhere);
        for target in [image, "/v2/test/image/tags/list", &blob(&world.layers[0])] {
            assert_eq!(get(node.mirror, target, &[]).status(), 502, "{target} to {elsewhere}");
        }
    }
    // All is well again when the registry is.
    place.lock().expect("place").clear();
    let layer = &world.layers[0];
    assert!(get(node.mirror, &blob(layer), &[]).body == world.blob(layer));
}

#[test]
fn clients_that_take_nothing_cost_little_and_hold_nobody_up() {
    needs_mounts!();
    let world = World::new(24 << 20);
    let node = Node::start(&world.upstream());
    let layer = &world.layers[1];
    get(node.mirror, "/v2/test/image/manifests/v1", &[]);
    // While it comes, and when it is here.
    for _ in 0..2 {
        let idle: Vec<Connection> = (0..100)
            .map(|_| {
                let mut client = Connection::open(node.mirror);
                assert_eq!(client.ask("GET", &blob(layer), &[]).status, 200);
                client
            })
            .collect();
        assert!(get(node.mirror, &blob(layer), &[]).body == world.blob(layer));
        drop(idle);
    }
    let peak = node.peak();
    assert!(peak < 150 << 10, "{peak} KiB at most");
}

#[test]
fn one_address_gets_half_of_the_connections_and_no_more() {
    needs_mounts!();
    let world = World::new(1 << 20);
    let node = Node::start(&world.upstream());
    let count = 600;
    let mut all: Vec<TcpStream> = (0..count)
        .map(|_| {
            let stream = TcpStream::connect(node.mirror).expect("connection");
            stream.set_nonblocking(true).expect("not blocking");
            stream
        })
        .collect();
    let mut ended = 0;
    wait_until("those above the limit are ended", SOON, || {
        all.retain_mut(|stream| match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => true,
            _ => {
                ended += 1;
                false
            }
        });
        ended >= count - 512
    });
    assert!(all.len() <= 512, "{} are served at a time", all.len());
    // There is room again as soon as they go.
    drop(all);
    wait_until("a client is served", SOON, || {
        let answer = Connection::open(node.mirror).try_ask("GET", "/v2/", &[]);
        answer.is_ok_and(|head| head.status == 200)
    });
}
