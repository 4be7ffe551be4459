//! The distributed table over real control connections: members find holders, and
//! nobody else finds anything.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use peersync::fetch::StoreServer;
use peersync::fetch::tunnel::{Endpoint, Events, Settings, Transport};
use peersync::identity::{Door, Membership, NodeKey, Revoked, SwarmKey, SwarmKeys};
use peersync::store::{OpenOptions, Store};
use peersync::swarm::dht::{self, Dht, Holder, Names};
use peersync::types::{Digest, PeerId};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::node::LONG;

struct Member {
    endpoint: Endpoint,
    dht: Dht,
    _events: Events,
    _dir: TempDir,
}

fn keys(of: &[u8]) -> SwarmKeys {
    SwarmKeys::new(of.iter().map(|n| SwarmKey::from_secret([*n; 32]))).expect("few keys")
}

fn names(of: &[u8]) -> Names {
    Names::new(keys(of).iter().map(SwarmKey::secret))
}

fn name(n: u8) -> PeerId {
    NodeKey::from_secret(&[n; 32]).peer_id()
}

fn membership(of: &[u8], revoked: &[u8]) -> Membership {
    let revoked: Revoked = revoked.iter().map(|n| name(*n)).collect();
    Membership::new(Door::Closed(keys(of)), revoked)
}

impl Member {
    /// Node `n` with some keys of the swarm.
    async fn start(n: u8, of: &[u8], bootstrap: &[&Member]) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = Arc::new(Store::open(dir.path(), OpenOptions::default()).expect("store"));
        // One address for all: where a node calls from is where others call it.
        let ip = Ipv4Addr::LOCALHOST;
        let settings = Settings {
            listen: (ip, 0).into(),
            transports: vec![Transport::Tcp],
            callers_per_source: 64,
            ..Settings::default()
        };
        let key = NodeKey::from_secret(&[n; 32]);
        let server = Arc::new(StoreServer::new(store, Arc::default()));
        let (endpoint, events) =
            Endpoint::bind(settings, &key, membership(of, &[]), server).expect("loopback");
        let listener = TcpListener::bind((ip, 0)).await.expect("loopback");
        let bootstrap = bootstrap.iter().map(|member| member.control()).collect();
        let dht = Dht::start(dht::Settings {
            me: key.peer_id(),
            listener: Some(listener),
            names: names(of),
            greeter: Arc::new(endpoint.controls()),
            dialable: Arc::new(|ip| ip.is_loopback()),
            bootstrap,
        });
        Self { endpoint, dht: dht.expect("a table"), _events: events, _dir: dir }
    }

    fn control(&self) -> SocketAddr {
        self.dht.listens().expect("it listens")
    }

    /// Everybody whom a look-up finds.
    async fn find(&self, layer: Digest) -> BTreeSet<PeerId> {
        let mut holders = self.dht.find(layer).await;
        let mut found = BTreeSet::new();
        let all = async {
            while let Some(Holder { peer, .. }) = holders.recv().await {
                found.insert(peer);
            }
        };
        tokio::time::timeout(LONG, all).await.expect("it ends");
        found
    }

    /// Looks until it finds these.
    async fn finds(&self, layer: Digest, wanted: &[u8]) {
        let wanted: BTreeSet<_> = wanted.iter().map(|n| name(*n)).collect();
        let end = Instant::now() + LONG;
        loop {
            let found = self.find(layer).await;
            if found == wanted {
                return;
            }
            assert!(Instant::now() < end, "found {found:?}, wanted {wanted:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn sees(&self, n: u8) -> bool {
        self.dht.known().iter().any(|known| known.peer == name(n) && known.connected)
    }

    async fn renew(&self, of: &[u8], revoked: &[u8]) {
        self.endpoint.set_membership(membership(of, revoked));
        self.dht.renew(names(of)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn holders_are_found_through_one_address_and_say_themselves_where_they_are() {
    let first = Member::start(1, &[1], &[]).await;
    let mut members = Vec::new();
    for n in 2..=24 {
        members.push(Member::start(n, &[1], &[&first]).await);
    }
    let layer = Digest::of(b"a layer");
    members[3].dht.provide(vec![layer, Digest::of(b"another")]).await;
    members[9].dht.provide(vec![layer]).await;
    members[20].finds(layer, &[5, 11]).await;
    // Where the tunnels are is what the holder said of itself.
    let mut holders = members[17].dht.find(layer).await;
    while let Some(Holder { peer, tunnels }) = holders.recv().await {
        let at = members.iter().find(|member| member.endpoint.me() == peer).expect("a member");
        assert_eq!(tunnels, at.endpoint.address());
    }
    assert_eq!(members[5].find(Digest::of(b"nobody's")).await, BTreeSet::new());
    // The first node may go: nobody needs it.
    drop(first);
    members[9].dht.stop_providing(vec![layer]).await;
    members[1].finds(Digest::of(b"another"), &[5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_learns_nothing_and_nobody_learns_of_it() {
    let member = Member::start(1, &[1], &[]).await;
    let other = Member::start(2, &[1], &[&member]).await;
    let stranger = Member::start(3, &[2], &[&member]).await;
    let layer = Digest::of(b"a layer");
    other.dht.provide(vec![layer]).await;
    stranger.dht.provide(vec![layer]).await;
    member.finds(layer, &[2]).await;
    assert_eq!(stranger.find(layer).await, BTreeSet::new());
    assert_eq!(stranger.dht.known(), []);
    assert!(!member.sees(3) && !other.sees(3));
    // Nor does one that knows no key and no protocol: it hears at most who is there.
    let mut socket = TcpStream::connect(member.control()).await.expect("a connection");
    socket.write_all(b"\x13/multistream/1.0.0\n\x07/noise\n").await.expect("sent");
    let mut heard = Vec::new();
    let reading = tokio::time::timeout(LONG, socket.read_to_end(&mut heard)).await;
    assert!(reading.is_ok() && heard.len() < 64, "{heard:?}");
    member.finds(layer, &[2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_changed_without_a_day_on_which_nobody_is_found() {
    let a = Member::start(1, &[1], &[]).await;
    let b = Member::start(2, &[1], &[&a]).await;
    let layer = Digest::of(b"a layer");
    b.dht.provide(vec![layer]).await;
    a.finds(layer, &[2]).await;
    // The new key second, first, alone; one node after the other.
    for step in [&[1, 2][..], &[2, 1], &[2]] {
        for member in [&a, &b] {
            member.renew(step, &[]).await;
            a.finds(layer, &[2]).await;
        }
    }
    // Who still has the old one only is out.
    let late = Member::start(3, &[1], &[&a]).await;
    assert_eq!(late.find(layer).await, BTreeSet::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_node_is_out_at_once_with_what_it_said() {
    let a = Member::start(1, &[1], &[]).await;
    let b = Member::start(2, &[1], &[&a]).await;
    let c = Member::start(3, &[1], &[&a]).await;
    let layer = Digest::of(b"a layer");
    b.dht.provide(vec![layer]).await;
    c.dht.provide(vec![layer]).await;
    a.finds(layer, &[2, 3]).await;
    // Both may have been found at themselves: a holder need not have told `a` yet.
    let end = Instant::now() + LONG;
    while a.dht.records().await < 2 {
        assert!(Instant::now() < end, "{} records", a.dht.records().await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    a.renew(&[1], &[2]).await;
    a.finds(layer, &[3]).await;
    // Connections say goodbye before they are gone.
    let end = Instant::now() + LONG;
    while a.sees(2) {
        assert!(Instant::now() < end, "the revoked node is still connected");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(a.dht.records().await, 1);
    // It calls again, and is refused.
    b.dht.join(vec![a.control()]).await;
    c.renew(&[1], &[2]).await;
    a.finds(layer, &[3]).await;
    assert!(!a.sees(2));
    assert_eq!(b.find(Digest::of(b"nobody's")).await, BTreeSet::new());
}
