//! Nodes that give each other what they have: real daemons on loopback.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::harness::peersync::{Daemon, Mount, Peersync};
use crate::harness::registry::{Registry, free_address};
use crate::harness::tree::{Allow, Tree};
use crate::harness::{lab_images, needs_mounts, scratch, wait_until};
use crate::trees::unpack;

/// A peer is found, or a file is seen to have changed, in this time.
const SOON: Duration = Duration::from_secs(20);

/// A daemon in a swarm.
pub(crate) struct Node {
    // In this order: the mount goes, then the daemon, then the store.
    _mount: Mount,
    _daemon: Daemon,
    pub(crate) peersync: Peersync,
    pub(crate) listen: SocketAddr,
}

impl Node {
    pub(crate) fn start(key: &Path, peers: &[SocketAddr], more: &str) -> Self {
        let (peersync, listen) = (Peersync::new(), free_address());
        let point = peersync.mount_point();
        let mount = Mount::watch(&point);
        let peers: Vec<String> = peers.iter().map(SocketAddr::to_string).collect();
        let config = format!(
            "[store]\npath = {:?}\n[mount]\npath = {point:?}\n[snapshotter]\nsocket = ''\n\
             [swarm]\nlisten = '{listen}'\nkey_file = {key:?}\npeers = {peers:?}\n{more}",
            peersync.store()
        );
        let daemon = Daemon::start(&peersync, &config, &point);
        Self { _mount: mount, _daemon: daemon, peersync, listen }
    }

    pub(crate) fn peers(&self) -> Value {
        let text = self.peersync.run(&["--json", "peers"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    pub(crate) fn name(&self) -> String {
        self.peers()["node"]["id"].as_str().expect("in a swarm").to_owned()
    }

    /// Whether there is a tunnel to the other.
    pub(crate) fn knows(&self, other: &str) -> bool {
        let peers = self.peers();
        peers["peers"].as_array().expect("a list").iter().any(|peer| peer["id"] == other)
    }

    fn counter(&self, name: &str) -> u64 {
        let status = self.peersync.status();
        status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
    }
}

#[test]
fn a_fresh_node_mounts_an_image_from_its_peer_with_the_registry_gone() {
    needs_mounts!();
    let place = scratch();
    let key = place.path().join("swarm.key");
    let first_words = Peersync::new();
    first_words.run(&["swarm-key".as_ref(), "new".as_ref(), key.as_os_str()]);
    let registry = Registry::start();
    let image = format!("{}/test/small:v1", registry.address);
    registry.push(&lab_images().join("oci"), "v1", "test/small:v1");
    let holder = Node::start(&key, &[], "");
    holder.peersync.run(&["pull", &image]);
    drop(registry);

    let fresh = Node::start(&key, &[holder.listen], "");
    let mount = fresh.peersync.mount(&image, &[]);
    let wanted = unpack(&lab_images().join("oci"), "v1");
    let allow = Allow { times: [Vec::new()].into(), ..Allow::default() };
    wanted.assert_same(&Tree::read(&mount.path), &allow);

    // By source: nothing came from a registry, everything from the neighbour.
    assert_eq!(fresh.counter("bytes_registry") + fresh.counter("bytes_index"), 0);
    assert_eq!(fresh.counter("content_registry") + fresh.counter("content_remote"), 0);
    assert_eq!(fresh.counter("first_passes"), 0);
    assert!(fresh.counter("content_lan") > 0 && fresh.counter("bytes_index_peers") > 0);
    let peers = fresh.peers();
    let peer = &peers["peers"][0];
    assert_eq!((&peer["id"], &peer["lan"]), (&holder.name().into(), &true.into()), "{peers}");
    assert!(peer["received_bytes"].as_u64() >= Some(fresh.counter("content_lan")), "{peers}");
    let layers = fresh.peersync.run(&["--json", "layers"]);
    assert!(layers.contains(r#""index":"swarm""#), "{layers}");
}

#[test]
fn a_revoked_node_and_one_with_another_key_see_nothing() {
    needs_mounts!();
    let place = scratch();
    let (key, other) = (place.path().join("swarm.key"), place.path().join("other.key"));
    let revoked = place.path().join("revoked");
    let first_words = Peersync::new();
    for file in [&key, &other] {
        first_words.run(&["swarm-key".as_ref(), "new".as_ref(), file.as_os_str()]);
    }
    fs::write(&revoked, "").expect("list");
    let strict = Node::start(&key, &[], &format!("revoked_file = {revoked:?}"));
    let member = Node::start(&key, &[strict.listen], "");
    let stranger = Node::start(&other, &[strict.listen, member.listen], "");
    let (me, it) = (strict.name(), member.name());
    wait_until("the member is there", SOON, || strict.knows(&it) && member.knows(&me));
    assert_eq!(stranger.peers()["peers"], serde_json::json!([]));

    fs::write(&revoked, format!("{it} # lost\n")).expect("list");
    wait_until("the revoked node is out", SOON, || !strict.knows(&it));
    // The member calls again and again, and is refused.
    wait_until("it knows", SOON, || !member.knows(&me));
    fs::write(&revoked, "# nobody\n").expect("list");
    wait_until("it is let in again", Duration::from_secs(60), || strict.knows(&it));
    assert_eq!(strict.peers()["peers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_daemon_does_not_start_without_the_keys_that_it_was_given() {
    let peersync = Peersync::new();
    let missing = peersync.path("none.key");
    let config = peersync.path("config.toml");
    fs::write(&config, format!("[swarm]\nkey_file = {missing:?}\n")).expect("configuration");
    let said = peersync.fails(&["--config".as_ref(), config.as_os_str(), "daemon".as_ref()]);
    assert!(said.contains("none.key") && said.contains("swarm"), "{said}");
}
