//! The built daemon and its socket, and what it answers where no containerd is
//! needed to ask.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use peersync::snapshotter::labels::chain_id;
use peersync::types::Digest;
use serde_json::Value;
use tonic::Code;

use crate::api::Snapshots;
use crate::harness::host::{Host, Reply};
use crate::harness::layout::{Compression, Layout, blob_path, read_manifest};
use crate::harness::peersync::{failure, is_mounted};
use crate::harness::{needs_mounts, scratch, wait_until};
use crate::images::{add, extra};
use crate::node::Node;
use crate::plugin::Plugin;

const LIMIT: Duration = Duration::from_secs(60);

fn sockets() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("ps-").tempdir().expect("sockets")
}

/// Runs a test's requests; those that it starts go on while it waits.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(1).enable_all().build().expect("runtime").block_on(future)
}

/// The daemon ends with an error that names the socket, and leaves nothing mounted.
fn refuses(node: &Node, code: i32) -> String {
    let output = node.launch().finish(LIMIT);
    let said = failure(&output);
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(!is_mounted(node.tree()), "{said}");
    said
}

#[test]
fn the_sockets_directory_is_made() {
    needs_mounts!();
    let place = sockets();
    let socket = place.path().join("run/peersync/snapshotter.sock");
    let mut node = Node::new(&socket, "");
    node.start();
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o7777;
    assert_eq!(mode(socket.parent().expect("parent")), 0o755);
    assert_eq!(mode(&socket), 0o600);
    node.stop();
    assert!(!socket.exists());
}

#[test]
fn a_daemon_that_containerd_could_not_reach_does_not_start() {
    needs_mounts!();
    let place = sockets();
    fs::write(place.path().join("file"), b"").expect("file");
    let said = refuses(&Node::new(&place.path().join("file/s.sock"), ""), 1);
    assert!(said.contains("directory of the socket"), "{said}");
    assert!(said.contains("[snapshotter] socket"), "it says what to do: {said}");

    fs::write(place.path().join("taken"), b"precious").expect("file");
    let said = refuses(&Node::new(&place.path().join("taken"), ""), 1);
    assert!(said.contains("is not a socket"), "{said}");
    assert_eq!(fs::read(place.path().join("taken")).expect("file"), b"precious");

    let sealed = place.path().join("sealed");
    fs::create_dir(&sealed).expect("directory");
    mount(Some("tmpfs"), &sealed, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>).expect("mount");
    let said = refuses(&Node::new(&sealed.join("s.sock"), ""), 1);
    umount(&sealed).expect("unmount");
    assert!(said.contains("Read-only file system"), "{said}");
}

#[test]
fn an_old_socket_is_replaced_and_one_that_answers_is_not() {
    needs_mounts!();
    let place = sockets();
    let socket = place.path().join("s.sock");
    // Somebody else, who does not know our lock.
    let other = UnixListener::bind(&socket).expect("socket");
    let mut node = Node::new(&socket, "");
    let said = refuses(&node, 1);
    assert!(said.contains("another process listens"), "{said}");
    UnixStream::connect(&socket).expect("the other one is undisturbed");
    drop(other);
    assert!(socket.exists());
    node.start();
    UnixStream::connect(&socket).expect("ours");
    // Another daemon with another store does not take it.
    let said = refuses(&Node::new(&socket, ""), 1);
    assert!(said.contains("another process listens"), "{said}");
    node.crash();
    assert!(socket.exists());
    node.start();
    node.stop();
}

/// A node, and a registry that holds an image and whatever the test holds back.
pub(crate) struct Asked {
    pub(crate) node: Node,
    host: Host,
    layout: Layout,
    held: Arc<Held>,
    _sockets: tempfile::TempDir,
    _place: tempfile::TempDir,
}

/// Blobs that are not given out for now.
#[derive(Default)]
struct Held {
    blobs: Mutex<Vec<String>>,
    changed: Condvar,
}

impl Held {
    fn hold(&self, blob: &str) {
        self.blobs.lock().expect("held").push(blob.to_owned());
    }

    fn release(&self) {
        self.blobs.lock().expect("held").clear();
        self.changed.notify_all();
    }

    fn wait(&self, path: &str) {
        let held = self.blobs.lock().expect("held");
        let is_held =
            |held: &mut Vec<String>| held.iter().any(|blob| path.ends_with(blob.as_str()));
        let (_held, waited) = self.changed.wait_timeout_while(held, LIMIT, is_held).expect("held");
        assert!(!waited.timed_out(), "{path} was held too long");
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.held.release();
    }
}

impl Asked {
    pub(crate) fn new(streams: &[&[u8]], more: &str) -> Self {
        let (sockets, place) = (sockets(), scratch());
        let mut layout = Layout::create(&place.path().join("oci"));
        add(&mut layout, "v1", streams);
        let held = Arc::new(Held::default());
        let holding = Arc::clone(&held);
        let host = Host::serve(&layout.dir, move |request, right: Reply| {
            holding.wait(&request.path);
            right
        });
        let mut node = Node::new(&sockets.path().join("s.sock"), more);
        node.start();
        Self { node, host, layout, held, _sockets: sockets, _place: place }
    }

    fn layers(&self) -> Vec<String> {
        let manifest = read_manifest(&self.layout.dir, "v1");
        let layers = manifest["layers"].as_array().expect("layers").iter();
        layers.map(|layer| layer["digest"].as_str().expect("digest").to_owned()).collect()
    }

    /// Names of the chains, lowest first.
    pub(crate) fn chains(&self) -> Vec<Digest> {
        let manifest = read_manifest(&self.layout.dir, "v1");
        let config = manifest["config"]["digest"].as_str().expect("config");
        let config = fs::read(blob_path(&self.layout.dir, config)).expect("config");
        let config: Value = serde_json::from_slice(&config).expect("config");
        let mut below = None;
        let diff_ids = config["rootfs"]["diff_ids"].as_array().expect("diff ids").iter();
        diff_ids
            .map(|id| {
                let id = id.as_str().expect("text").parse().expect("digest");
                *below.insert(chain_id(below.as_ref(), &id))
            })
            .collect()
    }

    /// The labels that containerd's CRI plugin sends for a layer.
    pub(crate) fn labels(&self, layer: usize) -> BTreeMap<String, String> {
        let layers = self.layers();
        let cri = |name: &str| format!("containerd.io/snapshot/cri.{name}");
        BTreeMap::from([
            ("containerd.io/snapshot.ref".into(), self.chains()[layer].to_string()),
            (cri("image-ref"), self.host.reference("v1")),
            (cri("layer-digest"), layers[layer].clone()),
            (cri("image-layers"), layers[layer..].join(",")),
        ])
    }

    fn asked_for(&self, blob: &str) -> bool {
        self.host.requests().iter().any(|request| request.path.ends_with(blob))
    }

    pub(crate) async fn connect(&self) -> Snapshots {
        Snapshots::connect(self.node.socket(), "").await
    }
}

pub(crate) fn three() -> [Vec<u8>; 3] {
    [extra("one", b"1"), extra("two", b"2"), extra("three", b"3")]
}

#[test]
fn a_prepare_waits_for_its_own_layer_and_starts_all() {
    needs_mounts!();
    let [one, two, three] = three();
    let asked = Asked::new(&[&one, &two, &three], "");
    let (layers, chains) = (asked.layers(), asked.chains());
    asked.held.hold(&layers[1]);
    block_on(async {
        let mut s = asked.connect().await;
        let prepared = s.prepare("k0", "", asked.labels(0)).await;
        assert_eq!(prepared.expect_err("remote").code(), Code::AlreadyExists);
        s.stat(&chains[0].to_string()).await.expect("committed under its chain");
        for layer in &layers {
            wait_until("all layers are asked for", LIMIT, || asked.asked_for(layer));
        }
        assert!(!asked.node.tree().join("chains").join(chains[1].file_name()).exists());

        let (mut waiting, labels) = (s.clone(), asked.labels(1));
        let below = chains[0].to_string();
        let second = tokio::spawn(async move { waiting.prepare("k1", &below, labels).await });
        // Others are served meanwhile, this very layer asked for twice included.
        s.prepare("ordinary", "", BTreeMap::new()).await.expect("an ordinary one");
        assert!(!second.is_finished());
        asked.held.release();
        let second = second.await.expect("task").expect_err("remote");
        assert_eq!(second.code(), Code::AlreadyExists);
        let third = s.prepare("k2", &chains[1].to_string(), asked.labels(2)).await;
        assert_eq!(third.expect_err("remote").code(), Code::AlreadyExists);
    });
    let tree = asked.node.tree().join("chains").join(chains[2].file_name()).join("extra");
    assert_eq!(fs::read_dir(tree).expect("merged").count(), 3);
}

#[test]
fn a_lost_layer_fails_its_own_prepare_only() {
    needs_mounts!();
    let [one, two, three] = three();
    let asked = Asked::new(&[&one, &two, &three], "no_progress_timeout = 1\n");
    let (layers, chains) = (asked.layers(), asked.chains());
    let blob = asked.layout.blob_path(&layers[1]);
    let kept = fs::read(&blob).expect("blob");
    fs::remove_file(&blob).expect("remove");
    block_on(async {
        let mut s = asked.connect().await;
        let first = s.prepare("k0", "", asked.labels(0)).await;
        assert_eq!(first.expect_err("remote").code(), Code::AlreadyExists);
        let below = chains[0].to_string();
        // A layer that the registry has not got is left to containerd, which may
        // know better; one that lies is no layer at all.
        let second = s.prepare("k1", &below, asked.labels(1)).await;
        match second {
            Ok(mounts) => assert!(mounts[0].starts_with("overlay"), "{mounts:?}"),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        let _ = s.remove("k1").await;
        fs::write(&blob, kept).expect("the blob again");
        let second = s.prepare("k1", &below, asked.labels(1)).await;
        assert_eq!(second.expect_err("remote").code(), Code::AlreadyExists);
    });
}

#[test]
fn a_layer_that_is_not_for_us_is_left_to_containerd_on_top_of_what_is() {
    needs_mounts!();
    let [one, two, _] = three();
    let mut asked = Asked::new(&[&one], "");
    let (layers, chains) = (asked.layers(), asked.chains());
    let mut locked = asked.layout.layer(&two, Compression::Gzip);
    locked.descriptor["mediaType"] = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted".into();
    let open = asked.layout.layer(&one, Compression::Gzip);
    assert_eq!(open.digest(), layers[0], "the same blob");
    asked.layout.image_of("v2", &[open, locked.clone()]);
    block_on(async {
        let mut s = asked.connect().await;
        let first = s.prepare("k0", "", asked.labels(0)).await;
        assert_eq!(first.expect_err("remote").code(), Code::AlreadyExists);
        let mut labels = asked.labels(0);
        for (name, value) in [
            ("snapshot.ref", Digest::of(b"locked").to_string()),
            ("snapshot/cri.image-ref", asked.host.reference("v2")),
            ("snapshot/cri.layer-digest", locked.digest().to_owned()),
            ("snapshot/cri.image-layers", locked.digest().to_owned()),
        ] {
            labels.insert(format!("containerd.io/{name}"), value);
        }
        let below = chains[0].to_string();
        let mounts = s.prepare("k1", &below, labels).await.expect("an ordinary snapshot");
        assert!(mounts[0].starts_with("overlay"), "{mounts:?}");
        assert!(mounts[0].contains(&chains[0].file_name()), "on the lazy layer: {mounts:?}");
    });
}

#[test]
fn labels_that_lie_make_ordinary_snapshots() {
    needs_mounts!();
    let [one, two, three] = three();
    let asked = Asked::new(&[&one, &two, &three], "no_progress_timeout = 1\n");
    let chains = asked.chains();
    let other = Digest::of(b"another").to_string();
    let cri = |name: &str| format!("containerd.io/snapshot/cri.{name}");
    let lies: Vec<(String, String)> = vec![
        ("containerd.io/snapshot.ref".into(), other.clone()),
        (cri("image-ref"), format!("{}/test/none:v1", asked.host.address)),
        (cri("image-ref"), "no reference\n".into()),
        (cri("image-ref"), "../../etc/passwd".into()),
        (cri("layer-digest"), other.clone()),
        (cri("layer-digest"), "sha256:short".into()),
        (cri("manifest-digest"), other.clone()),
        (cri("image-layers"), "a,b,c".into()),
        ("containerd.io/snapshot/diff-id".into(), other.clone()),
        ("containerd.io/snapshot/parent-chain-id".into(), other),
    ];
    block_on(async {
        let mut s = asked.connect().await;
        for (number, (label, value)) in lies.iter().enumerate() {
            let mut labels = asked.labels(0);
            labels.insert(label.clone(), value.clone());
            let key = format!("lie{number}");
            match s.prepare(&key, "", labels).await {
                Ok(mounts) => assert!(mounts[0].starts_with("bind"), "{label}={value}: {mounts:?}"),
                // Where the bytes come from is no lie once they are what the chain's
                // name says: the host has the image under every name.
                Err(status) => {
                    assert_eq!(status.code(), Code::AlreadyExists, "{label}={value}: {status}");
                    let only_where =
                        label.ends_with("image-ref") || label.ends_with("manifest-digest");
                    assert!(only_where, "{label}={value} was believed");
                    let chain = asked.node.tree().join("chains").join(chains[0].file_name());
                    assert_eq!(fs::read(chain.join("extra/one")).expect("content"), b"1");
                    s.remove(&chains[0].to_string()).await.expect("remove");
                    continue;
                }
            }
            assert!(s.stat(&chains[0].to_string()).await.is_err(), "{label}={value}");
            s.remove(&key).await.expect("remove");
        }
        assert!(s.list(&[]).await.expect("list").is_empty());
        s.cleanup().await.expect("cleanup");
    });
    let left = fs::read_dir(asked.node.state().join("snapshots")).expect("snapshots").count();
    assert_eq!(left, 0, "no lie leaves a directory");
}

#[test]
fn two_prepares_of_one_key_at_once_and_a_caller_that_goes_away() {
    needs_mounts!();
    let [one, two, three] = three();
    let asked = Asked::new(&[&one, &two, &three], "");
    let (layers, chains) = (asked.layers(), asked.chains());
    asked.held.hold(&layers[0]);
    block_on(async {
        let mut s = asked.connect().await;
        let prepare = |key: &'static str| {
            let (mut s, labels) = (s.clone(), asked.labels(0));
            tokio::spawn(async move { s.prepare(key, "", labels).await })
        };
        let (gone, one, two) = (prepare("k"), prepare("k"), prepare("k"));
        wait_until("the layer is asked for", LIMIT, || asked.asked_for(&layers[0]));
        gone.abort();
        asked.held.release();
        for answer in [one, two] {
            let answer = answer.await.expect("task").expect_err("remote");
            assert_eq!(answer.code(), Code::AlreadyExists);
        }
        let names: Vec<String> =
            s.list(&[]).await.expect("list").into_iter().map(|info| info.name).collect();
        assert_eq!(names, [chains[0].to_string()]);
    });
    let passes = asked.host.requests().iter().filter(|r| r.path.ends_with(&layers[0])).count();
    assert_eq!(passes, 1, "one pass for all");
}
