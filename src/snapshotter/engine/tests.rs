use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;

use futures_util::future::{BoxFuture, join_all};

use super::*;
use crate::snapshotter::labels::chain_id;
use crate::snapshotter::remote::RemoteImage;

/// Remote layers that are plain directories.
#[derive(Default)]
struct Fake {
    root: Mutex<PathBuf>,
    failure: Mutex<Option<RemoteError>>,
    log: Mutex<Vec<String>>,
    hold: Mutex<Option<tokio::sync::watch::Receiver<bool>>>,
}

impl Fake {
    fn path(&self, chain: Digest) -> PathBuf {
        self.root.lock().unwrap().join("chains").join(chain.file_name())
    }

    fn log(&self, line: String) {
        self.log.lock().unwrap().push(line);
    }

    fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl RemoteLayers for Fake {
    fn start_all(&self, image: &RemoteImage) {
        self.log(format!("start {} {}", image.reference, image.layers.len()));
    }

    fn prepare(&self, layer: RemoteLayer) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            self.log(format!("prepare {}", layer.chain_id));
            let hold = self.hold.lock().unwrap().clone();
            if let Some(mut hold) = hold {
                hold.wait_for(|go| *go).await.unwrap();
            }
            if let Some(error) = self.failure.lock().unwrap().clone() {
                return Err(error);
            }
            let path = self.path(layer.chain_id);
            fs::create_dir_all(&path).unwrap();
            Ok(RemoteChain { path })
        })
    }

    fn revalidate(&self, chain: KnownChain) -> BoxFuture<'_, Result<RemoteChain, RemoteError>> {
        Box::pin(async move {
            let names: Vec<String> =
                chain.layers.iter().map(|layer| layer.chain_id.to_string()).collect();
            assert_eq!(names.last(), Some(&chain.chain_id.to_string()), "{names:?}");
            let path = self.path(chain.chain_id);
            match path.exists() {
                true => Ok(RemoteChain { path }),
                false => Err(RemoteError::Unavailable("not mounted".into())),
            }
        })
    }

    fn usage(&self, _: &Digest) -> Usage {
        Usage { bytes: 777, inodes: 7 }
    }

    fn removed(&self, chain: &Digest) {
        self.log(format!("removed {chain}"));
    }
}

struct Bench {
    directory: tempfile::TempDir,
    remote: Arc<Fake>,
    snapshotter: Snapshotter,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let remote = Arc::new(Fake::default());
        *remote.root.lock().unwrap() = directory.path().to_owned();
        let snapshotter = open(directory.path(), &remote);
        Self { directory, remote, snapshotter }
    }

    fn reopen(self) -> Self {
        let Self { directory, remote, snapshotter } = self;
        drop(snapshotter);
        let snapshotter = open(directory.path(), &remote);
        Self { directory, remote, snapshotter }
    }

    fn snapshots(&self) -> Vec<String> {
        names(&self.directory.path().join("snapshots"))
    }

    async fn committed(&self, name: &str, parent: &str) {
        let key = format!("{name}-key");
        self.snapshotter.prepare(&key, parent, &Labels::new()).await.unwrap();
        self.snapshotter.commit(name, &key, &Labels::new()).await.unwrap();
    }

    /// Prepares a remote layer; the name of the chain if it became one.
    async fn remote(&self, key: &str, parent: &str, diff: u8) -> Result<String, Error> {
        let labels = remote_labels(parent, diff);
        let target = labels[SNAPSHOT_REF].clone();
        match self.snapshotter.prepare(key, parent, &labels).await {
            Err(Error::Meta(MetaError::AlreadyExists(_))) => Ok(target),
            Err(error) => Err(error),
            Ok(mounts) => panic!("ordinary mounts: {mounts:?}"),
        }
    }
}

fn open(directory: &Path, remote: &Arc<Fake>) -> Snapshotter {
    Snapshotter::open(directory, Arc::<Fake>::clone(remote)).unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn remote_labels(parent: &str, diff: u8) -> Labels {
    let below: Option<Digest> = parent.parse().ok();
    BTreeMap::from([
        (SNAPSHOT_REF.into(), chain_id(below.as_ref(), &Digest::of(&[diff])).to_string()),
        ("containerd.io/snapshot/cri.image-ref".into(), "host/image:tag".into()),
        ("containerd.io/snapshot/cri.layer-digest".into(), Digest::of(&[diff, 0]).to_string()),
    ])
}

fn code<T: std::fmt::Debug>(result: Result<T, Error>) -> tonic::Code {
    tonic::Status::from(result.unwrap_err()).code()
}

#[tokio::test]
async fn a_remote_layer_is_committed_under_its_chain_and_found_by_containerds_filter() {
    let bench = Bench::new();
    let base = bench.remote("ns/1/extract-1", "", 1).await.unwrap();
    let top = bench.remote("ns/2/extract-2", &base, 2).await.unwrap();
    assert!(bench.snapshots().is_empty(), "remote snapshots have no files here");

    let filter = format!(r#"labels."containerd.io/snapshot.ref"=={top},parent=="{base}""#);
    let found = bench.snapshotter.list(&[filter]).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].0.as_str(), found[0].1.kind), (top.as_str(), Kind::Committed));
    assert_eq!(bench.snapshotter.usage(&top).await.unwrap(), Usage { bytes: 777, inodes: 7 });
    assert!(matches!(
        code(bench.snapshotter.stat("ns/2/extract-2").map(drop)),
        tonic::Code::NotFound
    ));

    let log = bench.remote.take_log();
    assert_eq!(log[0], "start host/image:tag 1", "all layers are started first");
    let again = bench.remote("other/1/extract-9", &base, 2).await.unwrap();
    assert_eq!(again, top);
    let log = bench.remote.take_log();
    assert_eq!(log, ["start host/image:tag 1"], "what is there is not prepared again");
}

#[tokio::test]
async fn the_chain_is_the_one_lower_directory() {
    let bench = Bench::new();
    let base = bench.remote("k1", "", 1).await.unwrap();
    let top = bench.remote("k2", &base, 2).await.unwrap();
    let path = bench.remote.path(top.parse().unwrap()).display().to_string();

    let mounts = bench.snapshotter.prepare("container", &top, &Labels::new()).await.unwrap();
    assert_eq!(mounts[0].kind, "overlay");
    assert_eq!(mounts[0].options.last().unwrap(), &format!("lowerdir={path}"));
    assert_eq!(bench.snapshotter.mounts("container").await.unwrap(), mounts);
    assert!(bench.snapshotter.mounted_on_chains(b"").is_empty(), "it does not run");
    let upper = mounts[0].options.iter().find(|option| option.starts_with("upperdir=")).unwrap();
    let table = format!("9 1 0:9 / /run/rootfs rw - overlay overlay rw,lowerdir={path},{upper}\n");
    let running = bench.snapshotter.mounted_on_chains(table.as_bytes());
    assert_eq!(running, [("container".to_owned(), top.parse().unwrap())]);

    let view = bench.snapshotter.view("view", &top, &Labels::new()).await.unwrap();
    assert_eq!((view[0].kind, view[0].source.as_str()), ("bind", path.as_str()));
    assert_eq!(view[0].options, ["ro", "rbind"]);

    bench.snapshotter.commit("built", "container", &Labels::new()).await.unwrap();
    let mounts = bench.snapshotter.prepare("next", "built", &Labels::new()).await.unwrap();
    let lower = mounts[0].options.last().unwrap();
    assert!(lower.ends_with(&format!("/fs:{path}")), "{lower}");
}

#[tokio::test]
async fn a_remote_layer_on_an_ordinary_one_is_left_to_containerd() {
    let bench = Bench::new();
    bench.committed("ns/7/sha256:x", "").await;
    let labels = remote_labels("", 1);
    let mounts = bench.snapshotter.prepare("k", "ns/7/sha256:x", &labels).await.unwrap();
    assert_eq!(mounts[0].kind, "overlay");
    assert!(bench.remote.take_log().is_empty());
}

#[tokio::test]
async fn an_image_is_left_to_containerd_as_a_whole_or_not_at_all() {
    let bench = Bench::new();
    let fail = |error| *bench.remote.failure.lock().unwrap() = error;
    fail(Some(RemoteError::Unavailable("registry is down".into())));
    let mounts = bench.snapshotter.prepare("k1", "", &remote_labels("", 1)).await.unwrap();
    assert_eq!(mounts[0].options, ["rw", "rbind"], "the first layer falls back, writable");

    fail(None);
    let base = bench.remote("k2", "", 2).await.unwrap();
    fail(Some(RemoteError::Unavailable("registry is down".into())));
    let labels = remote_labels(&base, 3);
    let result = bench.snapshotter.prepare("k3", &base, &labels).await;
    assert_eq!(code(result), tonic::Code::Unavailable);
    assert_eq!(code(bench.snapshotter.stat("k3")), tonic::Code::NotFound, "nothing is left");

    fail(Some(RemoteError::Declined("encrypted".into())));
    let mounts = bench.snapshotter.prepare("k3", &base, &labels).await.unwrap();
    assert_eq!(mounts[0].kind, "overlay", "an ordinary layer on a remote one");
}

#[tokio::test]
async fn labels_that_lie_make_an_ordinary_snapshot() {
    let bench = Bench::new();
    let base = bench.remote("k1", "", 1).await.unwrap();
    bench.remote.take_log();
    let mut lying = remote_labels(&base, 2);
    lying.insert("containerd.io/snapshot/diff-id".into(), Digest::of(b"other").to_string());
    bench.snapshotter.prepare("k2", &base, &lying).await.unwrap();
    let mut garbled = remote_labels("", 3);
    garbled.insert(SNAPSHOT_REF.into(), "../../etc".into());
    bench.snapshotter.prepare("k3", "", &garbled).await.unwrap();
    // The name of a chain that is there, with another parent.
    let mut moved = remote_labels("", 1);
    moved.insert(SNAPSHOT_REF.into(), base.clone());
    bench.snapshotter.prepare("k4", &base, &moved).await.unwrap();
    assert_eq!(bench.remote.take_log().len(), 2, "only the last one was tried");
    assert_eq!(bench.snapshotter.stat(&base).unwrap().parent, "");
}

#[tokio::test]
async fn errors_are_containerds() {
    use tonic::Code::*;
    let bench = Bench::new();
    let s = &bench.snapshotter;
    let none = Labels::new();
    bench.committed("base", "").await;
    s.prepare("active", "base", &none).await.unwrap();
    s.view("view", "base", &none).await.unwrap();

    assert_eq!(code(s.prepare("active", "base", &none).await), AlreadyExists);
    assert_eq!(code(s.view("active", "base", &none).await), AlreadyExists);
    assert_eq!(code(s.prepare("new", "missing", &none).await), NotFound);
    assert_eq!(code(s.prepare("new", "active", &none).await), InvalidArgument);
    assert_eq!(code(s.prepare("", "", &none).await), InvalidArgument);
    assert_eq!(code(s.mounts("base").await), FailedPrecondition);
    assert_eq!(code(s.mounts("missing").await), NotFound);
    assert_eq!(code(s.commit("name", "missing", &none).await), NotFound);
    assert_eq!(code(s.commit("name", "view", &none).await), FailedPrecondition);
    assert_eq!(code(s.commit("base", "active", &none).await), AlreadyExists);
    assert_eq!(code(s.remove("base").await), FailedPrecondition);
    assert_eq!(code(s.remove("missing").await), NotFound);
    assert_eq!(code(s.stat("missing")), NotFound);
    assert_eq!(code(s.usage("missing").await), NotFound);
    assert_eq!(code(s.update("missing", &none, &[]).await), NotFound);
    assert_eq!(code(s.update("base", &none, &["parent".into()]).await), InvalidArgument);
    assert_eq!(code(s.list(&["name==".into()])), InvalidArgument);
    assert_eq!(bench.snapshots(), ["1", "2", "3"], "nothing was left by what failed");
}

#[tokio::test]
async fn names_are_opaque() {
    let bench = Bench::new();
    for key in ["../../escape", "line\nbreak", "/", "k8s.io/1/a b", "ünï", "..", "\u{0}"] {
        bench.snapshotter.prepare(key, "", &Labels::new()).await.unwrap();
        assert_eq!(bench.snapshotter.list(&[]).unwrap().len(), 1);
        bench.snapshotter.remove(key).await.unwrap();
    }
    bench.snapshotter.cleanup().await.unwrap();
    assert!(bench.snapshots().is_empty());
    assert!(names(&bench.directory.path().join("trash")).is_empty());
}

#[tokio::test]
async fn of_two_prepares_of_one_key_one_wins_and_nothing_leaks() {
    let bench = Bench::new();
    let none = Labels::new();
    let results = join_all((0..20).map(|_| bench.snapshotter.prepare("key", "", &none))).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for result in results.into_iter().filter(Result::is_err) {
        assert_eq!(code(result), tonic::Code::AlreadyExists);
    }
    assert_eq!(bench.snapshots().len(), 1);

    let layers = join_all((0..20).map(|_| bench.remote("extract", "", 1))).await;
    assert!(layers.iter().all(Result::is_ok));
    assert_eq!(bench.snapshotter.list(&["kind==committed".into()]).unwrap().len(), 1);
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_nothing() {
    let bench = Bench::new();
    let (go, hold) = tokio::sync::watch::channel(false);
    *bench.remote.hold.lock().unwrap() = Some(hold);
    let labels = remote_labels("", 1);
    {
        let request = bench.snapshotter.prepare("k", "", &labels);
        tokio::pin!(request);
        assert!(futures_util::poll!(&mut request).is_pending());
    }
    assert!(bench.snapshotter.list(&[]).unwrap().is_empty());
    go.send(true).unwrap();
    bench.remote("k", "", 1).await.unwrap();
}

#[tokio::test]
async fn a_view_or_container_survives_a_restart_and_a_mount_that_moved() {
    let mut bench = Bench::new();
    let base = bench.remote("k", "", 1).await.unwrap();
    bench.snapshotter.prepare("container", &base, &Labels::new()).await.unwrap();
    let before = bench.snapshotter.list(&[]).unwrap();
    bench = bench.reopen();
    assert_eq!(bench.snapshotter.list(&[]).unwrap(), before);

    let elsewhere = bench.directory.path().join("elsewhere");
    *bench.remote.root.lock().unwrap() = elsewhere.clone();
    let mounts = bench.snapshotter.mounts("container").await;
    assert_eq!(code(mounts), tonic::Code::Unavailable, "not mounted yet");
    fs::create_dir_all(bench.remote.path(base.parse().unwrap())).unwrap();
    let mounts = bench.snapshotter.mounts("container").await.unwrap();
    assert!(mounts[0].options.last().unwrap().contains("elsewhere"));
}

#[tokio::test]
async fn a_chain_that_the_cache_has_lost_is_prepared_again_by_the_next_pull() {
    let bench = Bench::new();
    let base = bench.remote("k1", "", 1).await.unwrap();
    let top = bench.remote("k2", &base, 2).await.unwrap();
    fs::remove_dir_all(bench.remote.path(top.parse().unwrap())).unwrap();
    let none = Labels::new();
    let result = bench.snapshotter.prepare("container", &top, &none).await;
    assert_eq!(code(result), tonic::Code::Unavailable);
    bench.remote.take_log();
    assert_eq!(bench.remote("k3", &base, 2).await.unwrap(), top);
    assert_eq!(bench.remote.take_log()[1], format!("prepare {top}"));
    bench.snapshotter.prepare("container", &top, &none).await.unwrap();
}

#[tokio::test]
async fn what_a_crash_left_is_set_right() {
    let mut bench = Bench::new();
    bench.committed("base", "").await;
    bench.snapshotter.prepare("active", "base", &Labels::new()).await.unwrap();
    let root = bench.directory.path().to_owned();
    fs::create_dir_all(root.join("snapshots/new-9/fs")).unwrap();
    fs::create_dir_all(root.join("snapshots/9/fs/deep")).unwrap();
    fs::create_dir_all(root.join("trash/old/x")).unwrap();
    fs::remove_dir_all(root.join("snapshots/2")).unwrap();
    bench = bench.reopen();
    assert_eq!(bench.snapshots(), ["1", "2"]);
    assert!(root.join("snapshots/2/work").exists(), "an active one works again");
    bench.snapshotter.cleanup().await.unwrap();
    assert!(names(&root.join("trash")).is_empty());
    bench.snapshotter.prepare("again", "base", &Labels::new()).await.unwrap();
    assert_eq!(bench.snapshots(), ["1", "2", "3"]);
}

#[tokio::test]
async fn a_committed_snapshot_without_files_is_reported_and_hides_nothing() {
    let mut bench = Bench::new();
    bench.committed("base", "").await;
    bench.committed("other", "").await;
    fs::remove_dir_all(bench.directory.path().join("snapshots/1")).unwrap();
    bench = bench.reopen();
    let none = Labels::new();
    assert_eq!(code(bench.snapshotter.prepare("a", "base", &none).await), tonic::Code::Internal);
    bench.snapshotter.prepare("b", "other", &none).await.unwrap();
    bench.snapshotter.remove("base").await.unwrap();
}

#[tokio::test]
async fn removing_the_last_snapshot_of_a_chain_tells_the_cache() {
    let bench = Bench::new();
    let base = bench.remote("k", "", 1).await.unwrap();
    let top = bench.remote("k", &base, 2).await.unwrap();
    bench.remote.take_log();
    assert_eq!(code(bench.snapshotter.remove(&base).await), tonic::Code::FailedPrecondition);
    bench.snapshotter.remove(&top).await.unwrap();
    bench.snapshotter.remove(&base).await.unwrap();
    assert_eq!(bench.remote.take_log(), [format!("removed {top}"), format!("removed {base}")]);
    assert!(bench.snapshotter.chains().is_empty());
}

#[tokio::test]
async fn usage_counts_at_commit_and_for_active_ones_as_it_is() {
    let bench = Bench::new();
    let s = &bench.snapshotter;
    let mounts = s.prepare("a", "", &Labels::new()).await.unwrap();
    fs::write(Path::new(&mounts[0].source).join("file"), vec![1; 10_000]).unwrap();
    let active = s.usage("a").await.unwrap();
    assert_eq!(active.inodes, 2);
    s.commit("c", "a", &Labels::new()).await.unwrap();
    assert_eq!(s.usage("c").await.unwrap(), active);
    s.view("v", "c", &Labels::new()).await.unwrap();
    assert_eq!(s.usage("v").await.unwrap(), Usage::default());
}

#[tokio::test]
async fn a_store_whose_path_can_not_be_mounted_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a:b");
    let result = Snapshotter::open(&path, Arc::new(Fake::default()));
    assert!(matches!(result, Err(StartError::Path(_))));
    assert!(!path.exists());
}
