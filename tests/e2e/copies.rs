//! Neighbours that promise to keep copies, and such that lie about it: a real daemon,
//! and a peer that this test makes.

use std::collections::HashMap;
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use peersync::eviction::Parties;
use peersync::fetch::tunnel::{
    BlockServer, Endpoint, EventKind, Handed, Served, Settings, Target, Tunnel,
};
use peersync::identity::{Door, Membership, NodeKey, Revoked};
use peersync::layer::root::LayerRoot;
use peersync::types::{Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use peersync::wire::{Challenge, Keep, Message, Reply};

use crate::harness::layout::{Compression, Layout};
use crate::harness::peersync::{Daemon, Mount, Peersync};
use crate::harness::registry::free_address;
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, scratch, wait_until};

const FILES: usize = 8;
const LEN: usize = 512 << 10;
/// All files are above nine tenths of it, and below it: copies go that others keep,
/// and no last ones.
const SNUG: u64 = 4_500_000;
const SOON: Duration = Duration::from_secs(60);

fn content(file: usize) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    blake3::Hasher::new().update(&[file as u8]).finalize_xof().fill(&mut bytes);
    bytes
}

/// All files' objects.
fn objects() -> HashMap<ObjectId, Vec<u8>> {
    (0..FILES).map(|file| (ObjectSpec::of(&content(file)).id(), content(file))).collect()
}

/// A daemon that has read all of an image.
struct Node {
    _mounts: [Mount; 2],
    daemon: Daemon,
    peersync: Peersync,
    config: String,
    listen: SocketAddr,
    _place: tempfile::TempDir,
}

impl Node {
    fn start(max_size: u64) -> Self {
        let place = scratch();
        let mut layout = Layout::create(place.path());
        let mut tar = Tar::new();
        for file in 0..FILES {
            tar.file(format!("file{file}").as_bytes(), &content(file));
        }
        layout.image("v1", &[tar.finish()], Compression::Plain);
        let (peersync, listen) = (Peersync::new(), free_address());
        let point = peersync.mount_point();
        let tree = Mount::watch(&point);
        let config = format!(
            "[store]\npath = {:?}\nmax_size = {max_size}\n[mount]\npath = {point:?}\n\
             [snapshotter]\nsocket = ''\n[swarm]\nlisten = '{listen}'\nopen = true\n\
             lan_multicast = false\n",
            peersync.store()
        );
        let daemon = Daemon::start(&peersync, &config, &point);
        let mount = peersync.mount(&layout.reference("v1"), &[]);
        for file in 0..FILES {
            assert!(fs::read(mount.join(&format!("file{file}"))).expect("read") == content(file));
        }
        Self { _mounts: [tree, mount], daemon, peersync, config, listen, _place: place }
    }

    fn counter(&self, name: &str) -> u64 {
        let status = self.peersync.status();
        status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    fn name(&self) -> PeerId {
        let text = self.peersync.run(&["--json", "peers"]);
        let peers: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        peers["node"]["id"].as_str().expect("a name").parse().expect("a name")
    }

    fn held(&self) -> u64 {
        self.peersync.status()["store"]["resident_bytes"].as_u64().expect("a number")
    }
}

/// What the peer of this test does with questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It keeps what it says.
    Honest,
    /// It says that it has everything and promises it, and has nothing.
    Boaster,
    /// Its signature is over something else.
    Forger,
    /// Its promises have expired before they may be relied on.
    Brief,
    /// It asks itself, and answers nothing.
    Asker,
}

/// Serves nothing.
struct Nothing;

impl BlockServer for Nothing {
    fn block(&self, _: &PeerId, _: &ObjectId, _: u32) -> Served<VerifiedBlock> {
        Served::No
    }

    fn spec(&self, _: &PeerId, _: &ObjectId) -> Served<Arc<ObjectSpec>> {
        Served::No
    }

    fn roots(&self, _: &PeerId, _: &Digest) -> Vec<LayerRoot> {
        Vec::new()
    }

    fn item(&self, _: &PeerId, _: &Digest, _: u64) -> Served<Handed> {
        Served::No
    }
}

/// The peer; gone when dropped.
struct Peer {
    _runtime: tokio::runtime::Runtime,
    tunnel: Arc<dyn Tunnel>,
    heard: mpsc::Receiver<Keep>,
    /// Ends when the daemon closes the tunnel.
    closed: mpsc::Receiver<()>,
    me: PeerId,
}

impl Peer {
    fn near(node: &Node, manner: Manner) -> Self {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let place = tempfile::tempdir().expect("a directory");
        let key = NodeKey::load_or_make(place.path()).expect("a key");
        let settings =
            Settings { listen: "127.0.0.1:0".parse().expect("an address"), ..Settings::default() };
        let (says, heard) = mpsc::channel();
        let (open, closed) = mpsc::channel();
        let (daemon, me) = (node.name(), key.peer_id());
        let target = Target { peer: Some(daemon), address: node.listen };
        let tunnel = runtime.block_on(async {
            let membership = Membership::new(Door::Open, Revoked::default());
            let (endpoint, mut events) =
                Endpoint::bind(settings, &key, membership, Arc::new(Nothing)).expect("loopback");
            let tunnel = endpoint.open(target).await.expect("a tunnel");
            let answers = Answers { key, me, daemon, manner, objects: objects() };
            let to = Arc::clone(&tunnel);
            tokio::spawn(async move {
                let _endpoint = endpoint;
                while let Some(event) = events.next().await {
                    match event.kind {
                        EventKind::News(Message::Keep(keep)) => {
                            if let Some(answer) = answers.to(&keep) {
                                to.tell(Message::Keep(answer)).expect("an open tunnel");
                            }
                            let _ = says.send(keep);
                        }
                        EventKind::Down { .. } => drop(open.send(())),
                        _ => {}
                    }
                }
            });
            tunnel
        });
        Self { _runtime: runtime, tunnel, heard, closed, me }
    }

    fn say(&self, keep: Keep) {
        self.tunnel.tell(Message::Keep(keep)).expect("an open tunnel");
    }

    /// The next answer that is looked for.
    fn hears<T>(&self, mut find: impl FnMut(Keep) -> Option<T>) -> T {
        loop {
            let keep = self.heard.recv_timeout(SOON).expect("an answer");
            if let Some(found) = find(keep) {
                return found;
            }
        }
    }
}

struct Answers {
    key: NodeKey,
    me: PeerId,
    daemon: PeerId,
    manner: Manner,
    objects: HashMap<ObjectId, Vec<u8>>,
}

impl Answers {
    fn to(&self, keep: &Keep) -> Option<Keep> {
        if self.manner == Manner::Asker {
            return None;
        }
        match keep {
            Keep::WhoHolds { id, objects } => {
                let whole = objects.iter().map(|id| self.objects.contains_key(id)).collect();
                Some(Keep::Holds { id: *id, capacity: 1 << 50, whole })
            }
            Keep::AskPromises { nonce, asks, .. } => {
                let parties = Parties { promiser: &self.me, asker: &self.daemon, nonce };
                let answers: Vec<Reply> =
                    asks.iter().map(|ask| Reply::Promised(self.proof(&parties, ask))).collect();
                let seconds = if self.manner == Manner::Brief { 20 } else { 60 };
                let signed = match self.manner {
                    Manner::Forger => b"something else".to_vec(),
                    _ => statement(asks, &answers),
                };
                let signature = parties.sign(seconds, &signed, self.key.signing_key());
                Some(Keep::Promises { nonce: *nonce, seconds, answers, signature })
            }
            _ => None,
        }
    }

    fn proof(&self, parties: &Parties<'_>, ask: &Challenge) -> [u8; 32] {
        match self.manner {
            Manner::Boaster => parties.proof(&ask.object, ask.block, b"what it has not"),
            _ => {
                parties.proof(&ask.object, ask.block, block(&self.objects[&ask.object], ask.block))
            }
        }
    }
}

fn block(content: &[u8], index: u32) -> &[u8] {
    let block = ObjectSpec::of(content).block(index).expect("a block");
    &content[block.offset as usize..][..block.len as usize]
}

/// What is signed, as `docs/PROTOCOL.md` has it.
fn statement(asks: &[Challenge], answers: &[Reply]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (ask, answer) in asks.iter().zip(answers) {
        bytes.extend(ask.object.as_bytes());
        bytes.extend(ask.block.to_le_bytes());
        match answer {
            Reply::Promised(proof) => bytes.extend([&[0][..], proof].concat()),
            Reply::NotHere => bytes.push(1),
            Reply::Unwilling => bytes.push(2),
        }
    }
    bytes
}

#[test]
fn copies_go_on_a_promise_that_is_proved() {
    needs_mounts!();
    let node = Node::start(SNUG);
    let peer = Peer::near(&node, Manner::Honest);
    wait_until("copies went on promises", SOON, || node.counter("evicted_spare") > 0);
    assert_eq!(node.counter("evicted_pressure"), 0, "{}", node.peersync.status());
    assert!(node.counter("promises_received") > 0);
    // The others are told, so that nobody counts on these.
    let gone = peer.hears(|keep| match keep {
        Keep::Gone { objects } => Some(objects),
        _ => None,
    });
    assert!(gone.iter().all(|id| objects().contains_key(id)), "{gone:?}");
    wait_until("no more than needed", SOON, || node.held() <= SNUG / 10 * 9);
    assert!(node.held() >= SNUG / 10 * 8 - 2 * LEN as u64, "{}", node.held());
}

#[test]
fn whoever_says_what_it_can_not_prove_makes_nothing_go() {
    needs_mounts!();
    for manner in [Manner::Boaster, Manner::Brief] {
        let node = Node::start(SNUG);
        let _peer = Peer::near(&node, manner);
        wait_until("found out", SOON, || node.counter("promises_false") >= 3);
        let said = node.peersync.run(&["gc"]);
        assert_eq!(node.counter("promises_received"), 0, "{manner:?}");
        assert_eq!(node.counter("evicted_spare") + node.counter("evicted_pressure"), 0, "{said}");
        assert!(node.held() >= (FILES * LEN) as u64, "{manner:?}: {}", node.held());
    }
}

#[test]
fn a_forger_is_thrown_out() {
    needs_mounts!();
    let node = Node::start(SNUG);
    let peer = Peer::near(&node, Manner::Forger);
    peer.closed.recv_timeout(SOON).expect("its tunnel is closed");
    assert_eq!(node.counter("promises_false"), 1);
    assert_eq!(node.counter("evicted_spare"), 0);
    assert!(node.held() >= (FILES * LEN) as u64);
}

#[test]
fn a_promise_holds_over_a_restart_and_under_pressure() {
    needs_mounts!();
    let node = Node::start(64 << 20);
    let peer = Peer::near(&node, Manner::Asker);
    let mut ids: Vec<ObjectId> = objects().into_keys().collect();
    let stranger = ObjectId::from_bytes([7; 32]);
    ids.push(stranger);
    peer.say(Keep::WhoHolds { id: 5, objects: ids.clone() });
    let whole = peer.hears(|keep| match keep {
        Keep::Holds { id: 5, whole, .. } => Some(whole),
        _ => None,
    });
    assert_eq!(whole, [vec![true; FILES], vec![false]].concat());
    let asks: Vec<Challenge> = ids.iter().map(|id| Challenge { object: *id, block: 1 }).collect();
    let nonce = [9; 32];
    peer.say(Keep::AskPromises { nonce, capacity: 1, asks: asks.clone() });
    let (seconds, answers, signature) = peer.hears(|keep| match keep {
        Keep::Promises { nonce: of, seconds, answers, signature } if of == nonce => {
            Some((seconds, answers, signature))
        }
        _ => None,
    });
    let daemon = node.name();
    let parties = Parties { promiser: &daemon, asker: &peer.me, nonce: &nonce };
    assert!(parties.is_signed(seconds, &statement(&asks, &answers), &signature));
    assert_eq!((seconds, answers.last()), (60, Some(&Reply::NotHere)));
    for (ask, answer) in asks.iter().zip(&answers[..FILES]) {
        let content = &objects()[&ask.object];
        let proof = parties.proof(&ask.object, ask.block, block(content, ask.block));
        assert_eq!(*answer, Reply::Promised(proof));
    }
    // The peer may have dropped its own by now. The node is stopped, and started anew
    // with no room for anything.
    let Node { _mounts, daemon, peersync, config, _place, .. } = node;
    drop(_mounts);
    daemon.stop();
    let point = peersync.mount_point();
    let _tree = Mount::watch(&point);
    let config = config.replace(&format!("max_size = {}", 64 << 20), "max_size = 0");
    let (before, after) = config.split_once("[mount]\npath = ").expect("a mount");
    let (_, rest) = after.split_once('\n').expect("more");
    let config = format!("{before}[mount]\npath = {point:?}\n{rest}");
    let _daemon = Daemon::start(&peersync, &config, &point);
    let text = peersync.run(&["--json", "gc"]);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(report["freed_bytes"], 0, "{report}");
    assert!(text.contains("a neighbour may rely on it"), "{report}");
}
