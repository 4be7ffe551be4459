//! Random requests to containerd's own overlayfs snapshotter and to this one, both
//! through containerd: every answer is the same, up to paths and times.

use std::collections::BTreeMap;
use std::path::Path;

use futures_util::future::join_all;
use peersync::snapshotter::proto::snapshots::Info;
use tonic::Status;

use crate::api::Snapshots;
use crate::node::Node;
use crate::plugin::Plugin;
use crate::world::{OURS, THEIRS, World, needs_containerd};

/// A small generator of its own: the seed of a failure is enough to repeat it.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.next() % from.len() as u64).expect("index")]
    }
}

#[derive(Clone, Debug)]
enum Call {
    Prepare(String, String, Labels),
    View(String, String, Labels),
    Mounts(String),
    Commit(String, String, Labels),
    Remove(String),
    Stat(String),
    Update(String, Labels, Vec<&'static str>),
    List(Vec<String>),
    Usage(String),
    Cleanup,
    /// The same at once from several sides; answers in no order.
    AtOnce(Box<Call>),
}

type Labels = BTreeMap<String, String>;

const NAMES: &[&str] = &["a", "b", "c", "d/e", "line\nbreak", "sp ace", "sha256:0"];

fn call(random: &mut Random, at_once: bool) -> Call {
    let name = |random: &mut Random| (*random.pick(NAMES)).to_owned();
    let parent = |random: &mut Random| match random.next() % 3 {
        0 => String::new(),
        _ => (*random.pick(NAMES)).to_owned(),
    };
    // Without a root label containerd would collect what we make.
    let labels = |random: &mut Random| {
        let mut labels = Labels::from([("containerd.io/gc.root".into(), "test".into())]);
        for key in ["x", "containerd.io/snapshot/inherited", "empty"] {
            if random.next().is_multiple_of(2) {
                let value = if key == "empty" { "" } else { *random.pick(&["1", "2"]) };
                labels.insert(key.into(), value.into());
            }
        }
        labels
    };
    match random.next() % if at_once { 24 } else { 21 } {
        0..=4 => Call::Prepare(name(random), parent(random), labels(random)),
        5..=6 => Call::View(name(random), parent(random), labels(random)),
        7..=9 => Call::Commit(name(random), name(random), labels(random)),
        10..=11 => Call::Remove(name(random)),
        12..=13 => Call::Mounts(name(random)),
        14 => Call::Stat(name(random)),
        15..=16 => {
            let paths = [&[][..], &["labels"], &["labels.x"], &["parent"], &["labels.x", "kind"]];
            let mut labels = labels(random);
            let paths = random.pick(&paths).to_vec();
            labels.insert("containerd.io/gc.root".into(), "test".into());
            Call::Update(name(random), labels, paths)
        }
        17..=18 => {
            let filters: &[&[&str]] = &[
                &[],
                &["kind==committed"],
                &["labels.x==1", "kind==view"],
                &["parent!=\"\""],
                &["name~=/[ab]/,labels.\"containerd.io/snapshot/inherited\""],
                &["name=="],
                &["parent==\"d/e\""],
                &["labels.empty"],
            ];
            Call::List(random.pick(filters).iter().map(|filter| (*filter).to_owned()).collect())
        }
        19 => Call::Usage(name(random)),
        20 => Call::Cleanup,
        _ => {
            let call = match random.next() % 4 {
                0 => Call::Prepare(name(random), parent(random), labels(random)),
                1 => Call::View(name(random), parent(random), labels(random)),
                2 => Call::Commit(name(random), name(random), labels(random)),
                _ => Call::Remove(name(random)),
            };
            Call::AtOnce(Box::new(call))
        }
    }
}

/// What a snapshotter answers, in a form that can be compared.
async fn answer(snapshots: &Snapshots, call: Call, state: &Path) -> String {
    let Call::AtOnce(call) = call else { return answer_one(snapshots, call, state).await };
    let all = (0..4).map(|_| answer_one(snapshots, (*call).clone(), state));
    let mut answers = join_all(all).await;
    answers.sort();
    answers.join("\n")
}

/// Without the numbers of directories: requests at once take as many as it comes.
fn numberless(answer: &str) -> String {
    let mut parts = answer.split("/snapshots/");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| {
        all + "/snapshots/N" + part.trim_start_matches(|digit: char| digit.is_ascii_digit())
    })
}

async fn answer_one(snapshots: &Snapshots, call: Call, state: &Path) -> String {
    let mut snapshots = snapshots.clone();
    let root = state.display().to_string();
    let mounts = |result: Result<Vec<String>, Status>| {
        shown(result.map(|mounts| mounts.join("\n").replace(&root, "ROOT")))
    };
    match call {
        Call::Prepare(key, parent, labels) => {
            mounts(snapshots.prepare(&key, &parent, labels).await)
        }
        Call::View(key, parent, labels) => mounts(snapshots.view(&key, &parent, labels).await),
        Call::Mounts(key) => mounts(snapshots.mounts(&key).await),
        Call::Commit(name, key, labels) => {
            shown(snapshots.commit(&name, &key, labels).await.map(|()| String::new()))
        }
        Call::Remove(key) => shown(snapshots.remove(&key).await.map(|()| String::new())),
        Call::Stat(key) => {
            shown(snapshots.stat(&key).await.as_ref().map(info).map_err(Clone::clone))
        }
        Call::Update(name, labels, paths) => shown(
            snapshots.update(&name, labels, &paths).await.as_ref().map(info).map_err(Clone::clone),
        ),
        Call::List(filters) => {
            let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
            let listed = snapshots.list(&filters).await;
            shown(listed.map(|all| all.iter().map(info).collect::<Vec<_>>().join("\n")))
        }
        Call::Usage(key) => shown(snapshots.usage(&key).await.map(|usage| format!("{usage:?}"))),
        Call::Cleanup => shown(snapshots.cleanup().await.map(|()| String::new())),
        Call::AtOnce(_) => unreachable!("of single calls only"),
    }
}

fn info(info: &Info) -> String {
    let changed = info.created_at != info.updated_at;
    format!("{:?} {:?} {} {:?} {changed}", info.name, info.parent, info.kind, info.labels)
}

const ERROR: &str = "error: ";

fn shown(result: Result<String, Status>) -> String {
    match result {
        Ok(answer) => answer,
        Err(status) => format!("{ERROR}{:?} {}", status.code(), status.message()),
    }
}

#[test]
fn every_answer_is_the_one_that_overlayfs_gives() {
    needs_containerd!();
    compare(&World::ordinary(), 0x5eed, 600, false);
}

#[test]
fn every_answer_of_the_daemon_to_many_at_once_is_the_one_that_overlayfs_gives() {
    needs_containerd!();
    compare(&World::of(|_, socket| Node::new(socket, "")), 0xda3, 300, true);
}

fn compare(world: &World<impl Plugin>, seed: u64, steps: usize, at_once: bool) {
    let theirs_root = world.place().join("containerd/io.containerd.snapshotter.v1.overlayfs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ours = Snapshots::connect(&world.socket(), OURS).await;
        let theirs = Snapshots::connect(&world.socket(), THEIRS).await;
        let mut random = Random(seed);
        let mut fine = 0;
        for step in 0..steps {
            let call = call(&mut random, at_once);
            let mut expected = answer(&theirs, call.clone(), &theirs_root).await;
            let found = answer(&ours, call.clone(), world.plugin.state()).await;
            let mut found = found.replace(OURS, THEIRS);
            if at_once {
                (expected, found) = (numberless(&expected), numberless(&found));
            }
            assert_eq!(found, expected, "seed {seed:#x}, step {step}: {call:?}");
            fine += usize::from(!expected.starts_with(ERROR));
        }
        assert!(fine > steps / 6, "{fine} requests that were right show little");
    });
}
