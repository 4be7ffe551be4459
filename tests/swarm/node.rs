//! Nodes, and the layer that they fetch.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use peersync::fetch::tunnel::{BlockServer, Endpoint, Events, Near, Settings, Target, Transport};
use peersync::fetch::{
    Board, Engine, FirstPass, IndexParts, LayerIndex, Origins, Registries, RegistrySource, Sources,
    StoreServer, WorkKind, install,
};
use peersync::identity::{Door, Membership, NodeKey, Revoked, SwarmKey, SwarmKeys};
use peersync::layer::root::LayerRoot;
use peersync::oci::{ImageSource, LayerDescriptor};
use peersync::store::{IndexOrigin, OpenOptions, Store};
use peersync::telemetry::Counters;
use peersync::types::{Digest, PeerId};
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::registry::Registry;

/// Nothing in these tests takes this long.
pub const LONG: Duration = Duration::from_secs(60);
/// A read that gets nothing ends after this.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// `len` bytes that follow from the seed and don't compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// A layer of some large and many small files, as `tar` and `gzip` make it.
pub fn layer(megabytes: usize, seed: u64) -> (Bytes, Digest) {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, data: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, data).expect("in memory");
    };
    for n in 0..megabytes {
        let mut data = noise(seed * 1000 + n as u64, (1 << 20) - (64 << 10));
        // Something in it that compresses.
        data.extend(std::iter::repeat_n(n as u8, 64 << 10));
        if n % 4 == 0 {
            for (small, data) in data.chunks(5000).enumerate() {
                add(&format!("small/{n}-{small}"), data);
            }
        } else {
            add(&format!("large/{n}"), &data);
        }
    }
    let tar = tar.into_inner().expect("in memory");
    let diff_id = Digest::of(&tar);
    let mut gzip = Command::new("gzip")
        .args(["-n", "-1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("gzip");
    let mut stdin = gzip.stdin.take().expect("piped");
    let feeding = std::thread::spawn(move || stdin.write_all(&tar).expect("written"));
    let output = gzip.wait_with_output().expect("gzip");
    feeding.join().expect("fed");
    (output.stdout.into(), diff_id)
}

/// One blob at one registry.
struct Origin(Arc<dyn ImageSource>);

impl Origins for Origin {
    fn sources(&self, _: &Digest) -> Vec<Arc<dyn ImageSource>> {
        vec![Arc::clone(&self.0)]
    }
}

/// An index, made once.
#[derive(Clone)]
pub struct Index {
    pub blob: Digest,
    pub blob_size: u64,
    pub root: LayerRoot,
    pub parts: IndexParts,
}

pub struct Node {
    pub store: Arc<Store>,
    pub engine: Arc<Engine>,
    pub counters: Arc<Counters>,
    pub id: PeerId,
    pub address: SocketAddr,
    pub index: Option<Arc<LayerIndex>>,
    _dir: TempDir,
}

/// What a node is made of, besides the registry.
pub struct Make {
    /// Its number, unique in the test.
    pub n: u8,
    /// Its LAN: nodes of one are neighbours.
    pub lan: u8,
    /// Serves something else than the store.
    pub server: Option<Arc<dyn BlockServer>>,
}

impl Node {
    pub fn neighbour(n: u8, registry: &Registry) -> Self {
        Self::new(Make { n, lan: 1, server: None }, registry)
    }

    pub fn new(make: Make, registry: &Registry) -> Self {
        let mut node = Self::apart(make.n, registry);
        let server = make.server.unwrap_or_else(|| {
            let (store, counters) = (Arc::clone(&node.store), Arc::clone(&node.counters));
            Arc::new(StoreServer::new(store, counters, node.engine.spools()))
        });
        let (endpoint, events) = endpoint(make.n, make.lan, server);
        node.address = endpoint.address();
        node.engine.join(Arc::new(endpoint), events);
        node
    }

    /// A node that is in no swarm.
    pub fn apart(n: u8, registry: &Registry) -> Self {
        let dir = tempfile::tempdir().expect("directory");
        let store = Arc::new(Store::open(dir.path(), OpenOptions::default()).expect("store"));
        let id = NodeKey::from_secret(&[n; 32]).peer_id();
        let counters = Arc::new(Counters::default());
        let origin = Arc::new(Origin(registry.client()));
        let source = RegistrySource::new(origin, Arc::clone(&counters));
        let engine = Arc::new(Engine::new(
            id,
            Arc::clone(&store),
            Arc::new(Registries(source)),
            Arc::clone(&counters),
            6,
            Handle::current(),
        ));
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        Self { store, engine, counters, id, address, index: None, _dir: dir }
    }

    /// Makes the index by a first pass, with all content.
    pub async fn build(&mut self, registry: &Registry, blob: &Bytes, diff_id: Digest) -> Index {
        let layer = LayerDescriptor {
            digest: Digest::of(blob),
            size: blob.len() as u64,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            diff_id: Some(diff_id),
            path: None,
            annotations: BTreeMap::new(),
        };
        let key = NodeKey::from_secret(&[99; 32]);
        let pass = FirstPass::new(
            Arc::clone(&self.store),
            Arc::clone(&self.counters),
            key.signing_key().clone(),
        );
        let board = Board::default();
        let ticket = board.begin(layer.digest, WorkKind::FirstPass, layer.size);
        pass.run(&layer, &registry.client(), ticket.work()).await.expect("a first pass");
        let record = self.store.blob(&layer.digest).expect("store").expect("indexed");
        let root = LayerRoot::decode(&record.root).expect("a root");
        let part = |id| self.store.map_object(&id).expect("store").expect("here").as_ref().to_vec();
        let body = root.body();
        let parts = [&body.tree, &body.blocks, &body.seek, &body.skeleton]
            .map(|part_ref| part(part_ref.id));
        let index = Index { blob: layer.digest, blob_size: layer.size, root, parts };
        self.open(&index).await;
        index
    }

    /// Takes the index, and none of the content.
    pub async fn know(&mut self, index: &Index) {
        let known = install(
            &self.store,
            &index.root,
            index.parts.clone(),
            IndexOrigin::Registry,
            Vec::new(),
        );
        known.expect("an index");
        self.open(index).await;
    }

    async fn open(&mut self, index: &Index) {
        self.index = self.engine.layer(index.blob).await.expect("the index");
        assert!(self.index.is_some());
    }

    pub fn target(&self) -> Target {
        Target { peer: Some(self.id), address: self.address }
    }

    /// Fetches all of the layer.
    pub async fn complete(&self) -> Result<Sources, String> {
        let index = Arc::clone(self.index.as_ref().expect("an index"));
        let last = std::sync::Mutex::new(Sources::default());
        let told = |_, sources| *last.lock().expect("lock") = sources;
        let done = tokio::time::timeout(LONG, self.engine.complete(&index, PATIENCE, &told)).await;
        done.map_err(|_| "it takes too long".to_owned())?.map_err(|error| error.to_string())?;
        assert!(self.is_complete(), "told to be complete");
        Ok(*last.lock().expect("lock"))
    }

    pub fn is_complete(&self) -> bool {
        let index = self.index.as_ref().expect("an index");
        index.objects().iter().all(|object| self.store.is_complete(object))
    }

    pub fn content(&self) -> u64 {
        self.index.as_ref().expect("an index").content_bytes()
    }

    /// Waits until it sees so many peers.
    pub async fn sees(&self, peers: usize) {
        let end = Instant::now() + LONG;
        while self.engine.peers().len() < peers {
            assert!(Instant::now() < end, "no peers: {:?}", self.engine.peers());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A node's tunnels, and what happens on them.
pub fn endpoint(n: u8, lan: u8, server: Arc<dyn BlockServer>) -> (Endpoint, Events) {
    let keys = SwarmKeys::new([SwarmKey::from_secret([7; 32])]).expect("a key");
    let membership = Membership::new(Door::Closed(keys), Revoked::default());
    let settings = Settings {
        listen: SocketAddr::from((Ipv4Addr::new(127, 0, lan, n), 0)),
        // Of QUIC alone the other end sees the address that the node listens at.
        transports: vec![Transport::Quic],
        near: Arc::new(move |address| match address {
            IpAddr::V4(address) if address.octets()[2] == lan => Near::Lan,
            _ => Near::Remote,
        }),
        ..Settings::default()
    };
    let key = NodeKey::from_secret(&[n; 32]);
    Endpoint::bind(settings, &key, membership, server).expect("loopback")
}

/// All nodes call each other, and wait until all are there.
pub async fn connect(nodes: &[&Node]) {
    for (n, node) in nodes.iter().enumerate() {
        nodes[n + 1..].iter().for_each(|other| node.engine.dial(other.target()));
    }
    for node in nodes {
        node.sees(nodes.len() - 1).await;
    }
}
