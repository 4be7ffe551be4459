//! Random requests to containerd's own overlayfs snapshotter and to this one, both
//! through containerd: every answer is the same, up to paths and times.

use std::collections::BTreeMap;
use std::path::Path;

use peersync::snapshotter::proto::snapshots::Info;
use tonic::Status;

use crate::api::Snapshots;
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
}

type Labels = BTreeMap<String, String>;

const NAMES: &[&str] = &["a", "b", "c", "d/e", "line\nbreak", "sp ace", "sha256:0"];

fn call(random: &mut Random) -> Call {
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
    match random.next() % 20 {
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
        _ => Call::Usage(name(random)),
    }
}

/// What a snapshotter answers, in a form that can be compared.
async fn answer(snapshots: &mut Snapshots, call: Call, state: &Path) -> String {
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
    let world = World::ordinary();
    let theirs_root = world.place().join("containerd/io.containerd.snapshotter.v1.overlayfs");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut ours = Snapshots::connect(&world.socket(), OURS).await;
        let mut theirs = Snapshots::connect(&world.socket(), THEIRS).await;
        let seed = 0x5eed;
        let mut random = Random(seed);
        let mut fine = 0;
        for step in 0..600 {
            let call = call(&mut random);
            let expected = answer(&mut theirs, call.clone(), &theirs_root).await;
            let found = answer(&mut ours, call.clone(), world.plugin.state()).await;
            let found = found.replace(OURS, THEIRS);
            assert_eq!(found, expected, "seed {seed:#x}, step {step}: {call:?}");
            fine += usize::from(!expected.starts_with(ERROR));
        }
        assert!(fine > 150, "{fine} requests that were right show little");
    });
}
