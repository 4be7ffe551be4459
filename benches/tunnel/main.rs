//! Node to node on loopback, against a plain HTTPS download.
//!
//! `cargo bench --bench tunnel -- [MIB] [TIMES]`. Each way reads a file that is in
//! the page cache and ends with a file on the disk. The download hashes what comes
//! with BLAKE3 as a whole; the nodes are stores, and verify every block as it is
//! read, as it comes and against the list. All ways use the same TLS library and
//! cipher, in one process, so the processor time is that of both ends.

#![allow(missing_docs, unreachable_pub)]

#[path = "../../tests/tunnel/tls.rs"]
mod tls;
mod urgent;

use std::convert::Infallible;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Frame;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::sys::resource::{UsageWho, getrusage};
use peersync::fetch::tunnel::{
    BlockServer, Content, Endpoint, EventKind, Events, Handed, Near, Served, Settings, Target,
    Transport, Tunnel, Want,
};
use peersync::identity::{Door, Membership, NodeKey, Revoked};
use peersync::layer::root::LayerRoot;
use peersync::store::{OpenOptions, Store};
use peersync::types::{BlockHash, Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use peersync::wire::Class;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// Blocks of one request, and requests in flight on a tunnel: twice what the
/// buffers of a loopback connection hold.
const RUN: u32 = 4;
const IN_FLIGHT: u32 = 6;
/// Node to node on loopback against the download.
const TARGET: &str = "0.85";
/// An object of 256 KiB blocks.
const URGENT_MIB: usize = 48;
/// What the server of the download reads at a time, in bytes.
const CHUNK: usize = 256 << 10;

/// Brings the content to a path.
type Way<'a> = &'a dyn Fn(&Path);

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| !a.starts_with("--"));
    let mut number = |default| arguments.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (mib, times) = (number(1024), number(5));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("directory");
    let source = dir.path().join("source");
    let spec = Arc::new(fill(&source, mib));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    let holder = store(&dir.path().join("holder"), &spec, Some(&source));

    let ways: [(&str, Way<'_>); 4] = [
        ("https", &|path| runtime.block_on(download(&source, path, mib << 20))),
        ("tcp, 1 tunnel", &|path| runtime.block_on(pull(&holder, path, &spec, Transport::Tcp, 1))),
        ("tcp, 2 tunnels", &|path| runtime.block_on(pull(&holder, path, &spec, Transport::Tcp, 2))),
        ("quic, 1 tunnel", &|path| {
            runtime.block_on(pull(&holder, path, &spec, Transport::Quic, 1));
        }),
    ];
    let mut results: Vec<Vec<(f64, f64)>> = vec![Vec::new(); ways.len()];
    for _ in 0..times {
        for ((_, way), results) in ways.iter().zip(&mut results) {
            let target = dir.path().join("target");
            let (wall, cpu) = (Instant::now(), cpu());
            way(&target);
            results.push((wall.elapsed().as_secs_f64(), self::cpu() - cpu));
            let _ = std::fs::remove_dir_all(&target);
            let _ = std::fs::remove_file(&target);
        }
    }
    let gib = mib as f64 / 1024.0;
    let median = |results: &[(f64, f64)], of: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = results.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let reference = median(&results[0], |r| r.0);
    println!("{mib} MiB, median of {times}");
    println!("{:<16} {:>8} {:>8} {:>8} {:>14}", "way", "GiB/s", "ratio", "target", "CPU s per GiB");
    for ((name, _), results) in ways.iter().zip(&results) {
        let (wall, cpu) = (median(results, |r| r.0), median(results, |r| r.1));
        let target = if *name == "tcp, 1 tunnel" { TARGET } else { "" };
        println!(
            "{name:<16} {:>8.2} {:>8.2} {target:>8} {:>14.2}",
            gib / wall,
            reference / wall,
            cpu / gib
        );
    }
    let small = dir.path().join("small");
    let spec = Arc::new(fill(&small, URGENT_MIB));
    let holder = store(&dir.path().join("urgent-holder"), &spec, Some(&small));
    let empty = store(&dir.path().join("urgent-reader"), &spec, None);
    urgent::run(&holder, &empty, &spec);
}

fn cpu() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).expect("usage");
    let seconds = |t: nix::sys::time::TimeVal| t.tv_sec() as f64 + t.tv_usec() as f64 / 1e6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// A file of bytes that don't compress; its block list.
fn fill(path: &Path, mib: usize) -> ObjectSpec {
    let mut file = File::create(path).expect("file");
    let mut noise = blake3::Hasher::new().finalize_xof();
    let size = peersync::types::block_size_for((mib as u64) << 20);
    let mut block = vec![0; size as usize];
    let blocks = (0..(mib << 20) / block.len()).map(|_| {
        noise.fill(&mut block);
        file.write_all(&block).expect("written");
        (BlockHash::of(&block), size)
    });
    ObjectSpec::new(size, blocks).expect("a list")
}

fn store(path: &Path, spec: &ObjectSpec, from: Option<&Path>) -> Arc<Store> {
    let store = Store::open(path, OpenOptions::default()).expect("store");
    let id = store.add_object(spec).expect("known");
    if let Some(from) = from {
        let file = File::open(from).expect("source");
        for (block, index) in spec.blocks().zip(0..) {
            let mut bytes = vec![0; block.len as usize];
            file.read_exact_at(&mut bytes, block.offset).expect("read");
            let block = VerifiedBlock::verify(bytes.into(), &block.hash).expect("right");
            store.put_block(&id, index, &block).expect("stored");
        }
        store.sync().expect("synced");
    }
    Arc::new(store)
}

struct Shelf(Arc<Store>);

impl BlockServer for Shelf {
    fn block(&self, _: &PeerId, object: &ObjectId, index: u32) -> Served<VerifiedBlock> {
        match self.0.read_block(object, index) {
            Ok(Some(block)) => Served::Yes(block),
            Ok(None) => Served::No,
            Err(_) => Served::Failed,
        }
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

fn endpoint(n: u8, transport: Transport, store: &Arc<Store>) -> (Endpoint, Events) {
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let near: Arc<dyn Fn(std::net::IpAddr) -> Near + Send + Sync> = Arc::new(|_| Near::Lan);
    let settings = Settings { listen, transports: vec![transport], near, ..Settings::default() };
    let membership = Membership::new(Door::Configured(Default::default()), Revoked::default());
    let shelf = Arc::new(Shelf(Arc::clone(store)));
    Endpoint::bind(settings, &NodeKey::from_secret(&[n; 32]), membership, shelf).expect("bound")
}

/// One node gets the object from the other, into its store.
async fn pull(
    holder: &Arc<Store>,
    path: &Path,
    spec: &Arc<ObjectSpec>,
    transport: Transport,
    tunnels: usize,
) {
    let target = store(path, spec, None);
    let (there, _their_events) = endpoint(1, transport, holder);
    let (here, mut events) = endpoint(2, transport, &target);
    let at = Target { peer: Some(there.me()), address: there.address() };
    let mut open: Vec<Arc<dyn Tunnel>> = Vec::new();
    for _ in 0..tunnels {
        open.push(here.open(at).await.expect("open"));
    }
    let (id, count) = (spec.id(), spec.block_count());
    let (mut next, mut missing, mut name) = (0, count, 0);
    let ask = |tunnel: &Arc<dyn Tunnel>, next: &mut u32, name: &mut u64| {
        if *next < count {
            let blocks = *next..(*next + RUN).min(count);
            *next = blocks.end;
            *name += 1;
            let want = Want::Blocks { object: id, spec: Arc::clone(spec), blocks };
            tunnel.request(*name, Class::Bulk, want).expect("room");
        }
    };
    for _ in 0..IN_FLIGHT {
        open.iter().for_each(|tunnel| ask(tunnel, &mut next, &mut name));
    }
    while missing > 0 {
        let event = events.next().await.expect("open");
        match event.kind {
            EventKind::Content { content: Content::Block { object, index, block }, .. } => {
                target.put_block(&object, index, &block).expect("stored");
                missing -= 1;
            }
            EventKind::Done { .. } => {
                let tunnel = open.iter().find(|t| t.info().id == event.tunnel).expect("open");
                ask(tunnel, &mut next, &mut name);
            }
            EventKind::Up(_) | EventKind::Progress { .. } | EventKind::Rtt(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// A file is downloaded, hashed and written.
async fn download(source: &Path, target: &Path, length: usize) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    let (one, other) = (NodeKey::from_secret(&[1; 32]), NodeKey::from_secret(&[2; 32]));
    let server = tokio::spawn(serve(listener, source.to_owned(), length, one));

    let stream = TcpStream::connect(address).await.expect("connected");
    stream.set_nodelay(true).expect("set");
    let name = "peersync.invalid".try_into().expect("name");
    let connector = TlsConnector::from(Arc::new(tls::client(&other)));
    let stream = connector.connect(name, stream).await.expect("TLS");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    let connection = tokio::spawn(connection);
    let request = Request::get("/").header("host", "x").body(Empty::<Bytes>::new());
    let response = sender.send_request(request.expect("a request")).await.expect("an answer");
    let mut body = response.into_body();
    let (mut file, mut hasher, mut got) =
        (File::create(target).expect("file"), blake3::Hasher::new(), 0);
    while let Some(frame) = body.frame().await {
        let data = frame.expect("a frame").into_data().expect("data");
        hasher.update(&data);
        file.write_all(&data).expect("written");
        got += data.len();
    }
    assert_eq!(got, length);
    std::hint::black_box(hasher.finalize());
    drop(sender);
    let _ = tokio::time::timeout(Duration::from_secs(5), connection).await;
    server.abort();
}

async fn serve(listener: TcpListener, source: std::path::PathBuf, length: usize, key: NodeKey) {
    let (stream, _) = listener.accept().await.expect("a call");
    stream.set_nodelay(true).expect("set");
    let acceptor = TlsAcceptor::from(Arc::new(tls::server(&key)));
    let stream = acceptor.accept(stream).await.expect("TLS");
    let file = Arc::new(File::open(source).expect("source"));
    let service = service_fn(move |_| {
        let file = Arc::clone(&file);
        let body = stream::unfold(0usize, move |at| {
            let file = Arc::clone(&file);
            async move {
                let len = CHUNK.min(length - at);
                if len == 0 {
                    return None;
                }
                let read = tokio::task::spawn_blocking(move || {
                    let mut bytes = vec![0; len];
                    file.read_exact_at(&mut bytes, at as u64).expect("read");
                    bytes
                });
                let bytes = Bytes::from(read.await.expect("read"));
                Some((Ok::<_, Infallible>(Frame::data(bytes)), at + len))
            }
        });
        async move { Ok::<_, Infallible>(Response::new(StreamBody::new(body))) }
    });
    let io = TokioIo::new(stream);
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
}
