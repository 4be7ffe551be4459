//! Images behind a login: the daemon's own, and what becomes of images that only
//! containerd can open.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::cri::Images;
use crate::harness::host::{Host, Reply};
use crate::harness::layout::read_manifest;
use crate::harness::run;
use crate::images::{add, base, changes, extra};
use crate::node::Node;
use crate::ordinary::DATA_AND_DEEP;
use crate::remote::block_on;
use crate::world::{OURS, World, needs_containerd};

/// `user:geheimnis`, as it is stored and sent.
const STORED: &str = "dXNlcjpnZWhlaW1uaXM=";
const TOKEN: &str = "a-token-that-nobody-may-read";

/// Gives tokens to those who know the password, and content for tokens.
fn guarded(request: &crate::harness::host::Request, right: Reply) -> Reply {
    let sent = request.headers.get("authorization").map(String::as_str);
    if request.path.starts_with("/token") {
        return if sent == Some(&format!("Basic {STORED}")) {
            let token = json!({ "token": TOKEN, "access_token": TOKEN, "expires_in": 300 });
            Reply::new(200, token.to_string().into_bytes()).with("Content-Type", "application/json")
        } else {
            Reply::status(401)
        };
    }
    if sent == Some(&format!("Bearer {TOKEN}")) {
        return right;
    }
    let host = request.headers.get("host").map_or("", String::as_str);
    let challenge = format!(
        "Bearer realm=\"http://{host}/token\",service=\"test\",scope=\"repository:test/image:pull\""
    );
    Reply::status(401).with("WWW-Authenticate", &challenge)
}

#[test]
fn an_image_that_only_containerd_can_open_is_its_own_and_a_login_makes_the_next_lazy() {
    needs_containerd!();
    if Command::new("ctr-remote").arg("--version").output().is_err() {
        eprintln!("skipped: no ctr-remote (package stargz-snapshotter)");
        return;
    }
    let mut world = World::of(|_, socket| Node::new(socket, ""));
    let (below, above) = (extra("below", b"1\n"), extra("above", b"2\n"));
    add(&mut world.layout, "v1", &[base(), &above]);
    add(&mut world.layout, "v2", &[&below, base()]);
    let host = Host::serve(&world.layout.dir, guarded);
    let pull = |tag: &str| {
        let image = host.reference(tag);
        let mut rpull = Command::new("ctr-remote");
        rpull.arg("--address").arg(world.socket()).args(["--namespace", "test"]);
        rpull.args(["images", "rpull", "--plain-http", "--user", "user:geheimnis"]);
        run(rpull.args(["--snapshotter", OURS, &image]));
        image
    };

    // The daemon has no login: containerd gets the whole image, with its own.
    let image = pull("v1");
    assert_eq!(world.directories().len(), 2, "ordinary layers");
    assert_eq!(world.sh(&image, "cat /extra/above"), "2\n");
    world.collect_garbage("test");
    world.wait_for_directories(2);

    // A login that is stored while the daemon runs counts from the next request on.
    let docker = world.plugin.peersync.path("docker");
    fs::create_dir_all(&docker).expect("docker configuration");
    let logins = json!({ "auths": { host.address.to_string(): { "auth": STORED } } });
    fs::write(docker.join("config.json"), logins.to_string()).expect("config.json");
    let image = pull("v2");
    assert_eq!(world.directories().len(), 2, "nothing was unpacked");
    assert_eq!(world.sh(&image, "cat /extra/below"), "1\n");

    let (code, said) = world.plugin.end();
    assert_eq!(code, Some(0));
    assert!(said.contains("DEBUG"), "everything is logged");
    for secret in [STORED, "geheimnis", TOKEN] {
        assert!(!said.contains(secret), "{secret} is in the log");
    }
}

#[test]
fn a_layer_that_only_containerd_may_read_stands_on_the_lazy_ones() {
    needs_containerd!();
    let mut world = World::of(|_, socket| Node::new(socket, ""));
    let changes = changes();
    add(&mut world.layout, "v1", &[base(), &changes]);
    let manifest = read_manifest(&world.layout.dir, "v1");
    let upper = manifest["layers"][1]["digest"].as_str().expect("digest").to_owned();
    let host = Host::serve(&world.layout.dir, move |request, right| {
        let agent = request.headers.get("user-agent").map_or("", String::as_str);
        let is_ours = agent.starts_with("peersync/");
        if is_ours && request.path.ends_with(&upper) { Reply::status(403) } else { right }
    });
    let image = host.reference("v1");
    block_on(async {
        let mut images = Images::connect(&world.socket()).await;
        images.pull(&image).await.expect("pull");
    });
    assert_eq!(world.directories().len(), 1, "containerd has unpacked the upper one alone");
    assert_eq!(world.plugin.layers().len(), 1, "the lower one is lazy");
    assert_eq!(world.sh_in("k8s.io", &image, "ls /data /data/deep"), DATA_AND_DEEP);
    let as_user = "setpriv --reuid 1000 --clear-groups";
    let script = format!("{as_user} /opt/suid-id -u; {as_user} /opt/cap-cat /opt/secret");
    assert_eq!(world.sh_in("k8s.io", &image, &script), "0\nonly root may read this\n");
    block_on(async {
        let mut images = Images::connect(&world.socket()).await;
        images.remove(&image).await.expect("remove");
    });
    world.collect_garbage("k8s.io");
    world.wait_for_directories(0);
}
