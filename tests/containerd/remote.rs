//! Remote layers: what containerd's own clients ask for, and that it downloads
//! nothing then.

use std::sync::Arc;

use futures_util::future::join_all;
use peersync::snapshotter::RemoteError;
use serde_json::Value;

use crate::cri::Images;
use crate::harness::host::{Host, Reply};
use crate::harness::layout::read_manifest;
use crate::images::{add, base, changes, extra};
use crate::ordinary::{DATA_AND_DEEP, change_files};
use crate::plugin::InProcess;
use crate::unpacked::Unpacked;
use crate::world::{OURS, World, needs_containerd};

/// A world whose snapshotter has remote layers, and a registry that counts.
struct Lazy {
    world: World<InProcess>,
    remote: Arc<Unpacked>,
    host: Host,
}

impl Lazy {
    fn new(tags: &[(&str, &[&[u8]])]) -> Self {
        Self::serving(tags, |right| right)
    }

    fn serving(
        tags: &[(&str, &[&[u8]])],
        behaviour: impl Fn(Reply) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let mut remote = None;
        let mut world = World::with(|place| {
            let unpacked = Arc::new(Unpacked::new(place));
            remote = Some(Arc::clone(&unpacked));
            unpacked
        });
        for (tag, streams) in tags {
            add(&mut world.layout, tag, streams);
        }
        let host = Host::serve(&world.layout.dir, move |_, right| behaviour(right));
        Self { world, remote: remote.expect("made"), host }
    }

    fn layers(&self, tag: &str) -> Vec<String> {
        let manifest = read_manifest(&self.world.layout.dir, tag);
        let layers = manifest["layers"].as_array().expect("layers");
        let digest = |layer: &Value| layer["digest"].as_str().expect("digest").to_owned();
        layers.iter().map(digest).collect()
    }

    /// Layers that anybody has asked the registry for.
    fn downloaded(&self, tag: &str) -> Vec<String> {
        let layers = self.layers(tag);
        let asked = self.host.requests();
        let gets = asked.iter().filter(|request| request.method == "GET");
        let blobs = gets.filter_map(|request| request.path.split_once("/blobs/"));
        let mut found: Vec<String> =
            blobs.map(|(_, digest)| digest.to_owned()).filter(|d| layers.contains(d)).collect();
        found.sort();
        found.dedup();
        found
    }

    /// Pulls as the kubelet does.
    fn cri_pull(&self, tag: &str) -> Result<String, tonic::Status> {
        let reference = self.host.reference(tag);
        block_on(async { Images::connect(&self.world.socket()).await.pull(&reference).await })
    }

    fn cri_remove(&self, tag: &str) {
        let reference = self.host.reference(tag);
        block_on(async { Images::connect(&self.world.socket()).await.remove(&reference).await })
            .expect("remove");
    }

    fn snapshots(&self, namespace: &str) -> String {
        let list = ["snapshots", "--snapshotter", OURS, "ls"];
        crate::harness::run(&mut self.world.ctr_command(namespace, &list))
    }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn a_cri_pull_downloads_nothing_and_the_container_runs() {
    needs_containerd!();
    let changes = changes();
    let lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    lazy.cri_pull("v1").expect("pull");
    assert_eq!(lazy.downloaded("v1"), [] as [String; 0]);
    assert!(lazy.world.directories().is_empty(), "no ordinary snapshot was made");
    assert_eq!(lazy.remote.prepared().len(), 2);
    assert_eq!(lazy.remote.started()[0].len(), 2, "the first request starts all layers");

    let image = lazy.host.reference("v1");
    let said = lazy.world.sh_in("k8s.io", &image, "ls /data /data/deep");
    assert_eq!(said, DATA_AND_DEEP);
    let as_user = "setpriv --reuid 1000 --clear-groups";
    let script = format!("{as_user} /opt/suid-id -u; {as_user} /opt/cap-cat /opt/secret");
    let said = lazy.world.sh_in("k8s.io", &image, &script);
    assert_eq!(said, "0\nonly root may read this\n");
    assert_eq!(lazy.downloaded("v1"), [] as [String; 0]);

    lazy.cri_remove("v1");
    lazy.world.collect_garbage("k8s.io");
    assert_eq!(lazy.remote.removed().len(), 2, "the cache is told");
    lazy.world.wait_for_directories(0);
}

#[test]
fn ctr_remote_pulls_lazily_too() {
    needs_containerd!();
    if std::process::Command::new("ctr-remote").arg("--version").output().is_err() {
        eprintln!("skipped: no ctr-remote (package stargz-snapshotter)");
        return;
    }
    let changes = changes();
    let lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    let image = lazy.host.reference("v1");
    let mut rpull = std::process::Command::new("ctr-remote");
    rpull.arg("--address").arg(lazy.world.socket()).args(["--namespace", "test"]);
    rpull.args(["images", "rpull", "--plain-http", "--snapshotter", OURS, &image]);
    crate::harness::run(&mut rpull);
    assert_eq!(lazy.downloaded("v1"), [] as [String; 0]);
    change_files(&lazy.world, &image);
    lazy.world.ctr(&["images", "rm", "--sync", &image]);
    assert_eq!(lazy.remote.removed().len(), 2);
    lazy.world.wait_for_directories(0);
}

#[test]
fn images_and_namespaces_share_chains() {
    needs_containerd!();
    let (ours, theirs) = (extra("ours", b"ours\n"), extra("theirs", b"theirs\n"));
    let lazy = Lazy::new(&[("v1", &[base(), &ours] as &[&[u8]]), ("v2", &[base(), &theirs])]);
    lazy.cri_pull("v1").expect("pull");
    lazy.cri_pull("v2").expect("pull");
    assert_eq!(lazy.remote.prepared().len(), 3, "the shared layer was prepared once");
    lazy.cri_remove("v1");
    lazy.world.collect_garbage("k8s.io");
    assert_eq!(lazy.remote.removed().len(), 1);
    let image = lazy.host.reference("v2");
    assert_eq!(lazy.world.sh_in("k8s.io", &image, "cat /extra/theirs"), "theirs\n");
    assert_eq!(lazy.snapshots("k8s.io").matches("Committed").count(), 2);
}

#[test]
fn ten_pulls_at_once() {
    needs_containerd!();
    let extras: Vec<Vec<u8>> = (0..10).map(|i| extra(&format!("f{i}"), &[i])).collect();
    let tags: Vec<String> = (0..10).map(|i| format!("t{i}")).collect();
    let streams: Vec<[&[u8]; 2]> = extras.iter().map(|extra| [base(), extra]).collect();
    let images: Vec<(&str, &[&[u8]])> =
        tags.iter().zip(&streams).map(|(tag, streams)| (tag.as_str(), &streams[..])).collect();
    let lazy = Lazy::new(&images);
    block_on(async {
        let images = Images::connect(&lazy.world.socket()).await;
        let pulls = tags.iter().map(|tag| {
            let (mut images, reference) = (images.clone(), lazy.host.reference(tag));
            async move { images.pull(&reference).await.expect("pull") }
        });
        join_all(pulls).await;
    });
    for tag in &tags {
        assert_eq!(lazy.downloaded(tag), [] as [String; 0], "{tag}");
    }
    assert!(lazy.world.directories().is_empty());
    assert_eq!(lazy.snapshots("k8s.io").matches("Committed").count(), 11);
}

#[test]
fn a_layer_that_is_declined_is_unpacked_by_containerd_on_top_of_the_chain() {
    needs_containerd!();
    let changes = changes();
    let lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    let layers = lazy.layers("v1");
    lazy.remote.refuse(&layers[1], Some(RemoteError::Declined("for the test".into())));
    lazy.cri_pull("v1").expect("pull");
    assert_eq!(lazy.downloaded("v1"), [layers[1].clone()], "only that one");
    assert_eq!(lazy.world.directories().len(), 1);
    let image = lazy.host.reference("v1");
    assert_eq!(lazy.world.sh_in("k8s.io", &image, "ls /data /data/deep"), DATA_AND_DEEP);
}

#[test]
fn an_image_whose_first_layer_is_not_available_is_left_to_containerd() {
    needs_containerd!();
    let changes = changes();
    let lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    let layers = lazy.layers("v1");
    lazy.remote.refuse(&layers[0], Some(RemoteError::Unavailable("for the test".into())));
    lazy.cri_pull("v1").expect("pull");
    let mut all = layers;
    all.sort();
    assert_eq!(lazy.downloaded("v1"), all);
    assert!(lazy.remote.prepared().is_empty(), "no remote layer stands on an ordinary one");
    let image = lazy.host.reference("v1");
    assert_eq!(lazy.world.sh_in("k8s.io", &image, "ls /data /data/deep"), DATA_AND_DEEP);
}

#[test]
fn a_source_that_fails_half_way_fails_the_pull_and_no_other() {
    needs_containerd!();
    let (one, two) = (extra("one", b"1\n"), extra("two", b"2\n"));
    let lazy = Lazy::new(&[("v1", &[base(), &one] as &[&[u8]]), ("v2", &[base(), &two])]);
    let upper = lazy.layers("v1").remove(1);
    lazy.remote.refuse(&upper, Some(RemoteError::Unavailable("registry is down".into())));
    let error = lazy.cri_pull("v1").expect_err("the pull fails");
    assert!(error.message().contains("registry is down"), "{error:?}");
    lazy.cri_pull("v2").expect("another image");
    assert_eq!(lazy.downloaded("v1"), [] as [String; 0], "and nothing is downloaded instead");

    lazy.remote.refuse(&upper, None);
    lazy.cri_pull("v1").expect("the kubelet tries again");
    let image = lazy.host.reference("v1");
    assert_eq!(lazy.world.sh_in("k8s.io", &image, "cat /extra/one"), "1\n");
}

#[test]
fn lazy_images_survive_restarts() {
    needs_containerd!();
    let changes = changes();
    let mut lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    lazy.cri_pull("v1").expect("pull");
    let before = lazy.snapshots("k8s.io");
    lazy.world.restart_containerd();
    lazy.world.restart_plugin();
    assert_eq!(lazy.snapshots("k8s.io"), before);
    let image = lazy.host.reference("v1");
    assert_eq!(lazy.world.sh_in("k8s.io", &image, "ls /data /data/deep"), DATA_AND_DEEP);
    lazy.cri_pull("v1").expect("pull again");
    assert_eq!(lazy.remote.prepared().len(), 2, "nothing was prepared again");
    assert_eq!(lazy.downloaded("v1"), [] as [String; 0]);
}
