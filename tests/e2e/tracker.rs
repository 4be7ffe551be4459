//! Members of the swarm that lie: as a tracker, about trackers, about what they
//! hold and about other nodes. A real daemon on loopback, and a member that the
//! test speaks for.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use peersync::types::{Digest, PeerId};
use peersync::wire::{Control, Holder, LayerNews, Message};
use tokio::runtime::Runtime;

use crate::harness::layout::{Compression, Layout};
use crate::harness::member::Member;
use crate::harness::peersync::Peersync;
use crate::harness::registry::Registry;
use crate::harness::tar::Tar;
use crate::harness::{needs_mounts, scratch, wait_until};
use crate::peers::Node;

/// Whatever is waited for is there long before.
const LONG: Duration = Duration::from_secs(60);
/// A sequence that no clock of a node has reached.
const LATE: u64 = 1 << 60;

fn swarm_key(place: &Path) -> PathBuf {
    let key = place.join("swarm.key");
    Peersync::new().run(&["swarm-key".as_ref(), "new".as_ref(), key.as_os_str()]);
    key
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn tracker(node: &Node) -> Option<String> {
    node.peers()["node"]["tracker"]["id"].as_str().map(str::to_owned)
}

/// So many images of one small layer each.
fn images(place: &Path, registry: &Registry, count: usize) -> Vec<String> {
    fs::create_dir_all(place).expect("directory");
    let mut layout = Layout::create(place);
    let image = |n: usize| {
        let (tag, mut tar) = (format!("v{n}"), Tar::new());
        tar.file(b"file", format!("content {n}").as_bytes());
        layout.image(&tag, &[tar.finish()], Compression::Gzip);
        let name = format!("test/tiny:{tag}");
        registry.push(place, &tag, &name);
        format!("{}/{name}", registry.address)
    };
    (0..count).map(image).collect()
}

/// What a tracker says that is of no use to anybody.
fn nonsense(turn: u64, id: u64, layers: usize) -> Control {
    let holder = |n: u8, address: &str| Holder {
        peer: PeerId([n; 32]),
        address: address.parse().expect("address"),
        whole: true,
    };
    let groups = vec![holder(1, "239.255.74.1:7402"), holder(2, "255.255.255.255:9")];
    match turn % 3 {
        // More layers than were asked for.
        0 => Control::Holders { id, layers: vec![Vec::new(); layers + 3] },
        1 => Control::Holders { id, layers: vec![groups; layers] },
        _ => Control::Holders { id, layers: Vec::new() },
    }
}

/// Says every now and then that it is the tracker, and answers nonsense.
async fn lie(mut liar: Member, beats: Arc<AtomicU64>, asked: Arc<AtomicU64>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(300));
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let beat = beats.fetch_add(1, Ordering::SeqCst);
                liar.say(liar.beat(liar.id(), LATE + beat));
            }
            said = liar.hear() => match said {
                Some(Message::Control(Control::WhoHas { id, layers })) => {
                    let turn = asked.fetch_add(1, Ordering::SeqCst);
                    // An answer to a question that nobody has asked, too.
                    liar.say(nonsense(turn, id + 1000, layers.len()));
                    liar.say(nonsense(turn, id, layers.len()));
                }
                Some(_) => {}
                None => return,
            },
        }
    }
}

#[test]
fn a_tracker_that_answers_nonsense_is_done_without_and_nothing_stands_still() {
    needs_mounts!();
    let place = scratch();
    let key = swarm_key(place.path());
    let registry = Registry::start();
    let mut images = images(&place.path().join("oci"), &registry, 20);
    let node = Node::start(&key, &[], "");
    let runtime = Runtime::new().expect("runtime");
    let liar = runtime.block_on(Member::join(66, &key, loopback(), node.listen));
    let name = liar.id().to_string();
    let (beats, asked) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    runtime.spawn(lie(liar, Arc::clone(&beats), Arc::clone(&asked)));
    wait_until("the liar is believed", LONG, || tracker(&node).as_ref() == Some(&name));

    let last = images.pop().expect("an image");
    for image in &images {
        // Whatever it says, the registry has it.
        node.peersync.run(&["pull", image]);
        if tracker(&node).as_ref() != Some(&name) {
            break;
        }
    }
    wait_until("it is found out", LONG, || tracker(&node).is_some_and(|now| now != name));
    let seen = node.peers();
    assert!(asked.load(Ordering::SeqCst) >= 3, "{seen}");
    assert!(seen["node"]["lookups_failed"].as_u64() >= Some(3), "{seen}");
    // It goes on, and nobody listens.
    let so_far = beats.load(Ordering::SeqCst);
    wait_until("it has said so again", LONG, || beats.load(Ordering::SeqCst) > so_far + 5);
    assert!(tracker(&node).is_some_and(|now| now != name), "{}", node.peers());
    node.peersync.run(&["pull", &last]);
}

#[test]
fn what_is_forged_or_replayed_changes_nothing() {
    needs_mounts!();
    let place = scratch();
    let key = swarm_key(place.path());
    let node = Node::start(&key, &[], "");
    let count = |what: &str| node.peers()["node"][what].as_u64().expect("a number");
    wait_until("the node is its own tracker", LONG, || tracker(&node) == Some(node.name()));
    let runtime = Runtime::new().expect("runtime");
    runtime.block_on(async {
        let mut member = Member::join(1, &key, loopback(), node.listen).await;
        let layer = Digest::of(b"a layer");
        let news = |full, number, layers| Message::Layers { full, number, layers };
        let has = LayerNews { root: true, some: true, ..LayerNews::nothing(layer) };
        member.tell(news(true, 0, vec![has]));
        wait_until("it is announced", LONG, || count("announced_layers") == 1);
        // What was said before says nothing now: the answer shows that it has come.
        member.tell(news(false, 0, vec![LayerNews::nothing(layer)]));
        member.say(Control::WhoHas { id: 1, layers: vec![layer] });
        let answer = |said: &Message| matches!(said, Message::Control(Control::Holders { .. }));
        member.until(answer).await;
        assert_eq!(count("announced_layers"), 1);
        // After a gap nothing is believed until all has been said again.
        member.tell(news(false, 7, vec![has]));
        member.until(|said| *said == Message::Control(Control::Again)).await;
        wait_until("nothing is known of it", LONG, || count("announced_layers") == 0);
        member.tell(news(true, 0, vec![has]));
        wait_until("a new beginning counts", LONG, || count("announced_layers") == 1);

        // A claim in another's name: nobody passes one on without looking at it.
        let mut forger = Member::join(2, &key, loopback(), node.listen).await;
        forger.say(forger.beat(member.id(), LATE));
        while forger.hear().await.is_some() {}
        assert!(forger.again().await.is_err(), "it is banned");
        assert_eq!(tracker(&node), Some(node.name()));
        assert!(!node.knows(&forger.id().to_string()) && node.knows(&member.id().to_string()));
    });
}

#[test]
fn whom_a_member_names_is_called_a_few_times_at_most() {
    needs_mounts!();
    let place = scratch();
    let key = swarm_key(place.path());
    let node = Node::start(&key, &[], "");
    // A service of this machine that has nothing to do with the swarm.
    let bystander = TcpListener::bind(loopback()).expect("listener");
    let address = bystander.local_addr().expect("address");
    let calls = Arc::<AtomicU64>::default();
    let counted = Arc::clone(&calls);
    thread::spawn(move || {
        for _ in bystander.incoming() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let others = |first: u8| {
        let nodes = (0..16).map(|n| (PeerId([first + n; 32]), address)).collect();
        Control::Others { nodes }
    };
    let runtime = Runtime::new().expect("runtime");
    runtime.block_on(async {
        let mut liar = Member::join(3, &key, loopback(), node.listen).await;
        liar.until(|said| *said == Message::Control(Control::WhoElse)).await;
        for round in 0..12 {
            liar.say(others(10 + 16 * round));
        }
        // Named are 192 nodes at one address; a few of the first 16 are tried.
        wait_until("one is tried", LONG, || calls.load(Ordering::SeqCst) > 0);
        // Asked itself, the node names nobody whom it only knows from hearsay.
        liar.say(Control::WhoElse);
        loop {
            let told = liar.hear().await.expect("the tunnel is up");
            if let Message::Control(Control::Others { nodes }) = told {
                assert_eq!(nodes, []);
                break;
            }
        }
    });
    assert!(calls.load(Ordering::SeqCst) <= 8, "{calls:?} calls");
}
