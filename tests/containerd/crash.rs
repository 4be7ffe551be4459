//! The snapshotter is killed in the middle of its work, again and again: what it
//! has answered is there afterwards, and nothing else is left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use peersync::snapshotter::NoRemoteLayers;
use peersync::snapshotter::proto::snapshots::Kind;

use crate::api::Snapshots;
use crate::harness::{Running, scratch, wait_until};
use crate::plugin::{InProcess, Plugin};

const SERVE: &str = "PEERSYNC_TEST_SERVES";

/// Not a test of its own: what the child process of the test below runs.
#[test]
fn serves_another_test_until_it_is_killed() {
    let Some(place) = std::env::var_os(SERVE).map(PathBuf::from) else { return };
    let remote = Arc::new(NoRemoteLayers);
    let mut plugin = InProcess::new(&place.join("s.sock"), &place.join("state"), remote);
    plugin.start();
    loop {
        std::thread::park();
    }
}

struct Child {
    process: Running,
    place: PathBuf,
}

impl Child {
    fn start(place: &Path) -> Self {
        let me = std::env::current_exe().expect("this program");
        let serve = ["--exact", "crash::serves_another_test_until_it_is_killed", "--nocapture"];
        let process = Running::start(Command::new(me).args(serve).env(SERVE, place));
        let socket = place.join("s.sock");
        wait_until("the child answers", Duration::from_secs(60), || {
            UnixStream::connect(&socket).is_ok()
        });
        Self { process, place: place.to_owned() }
    }

    async fn connect(&self) -> Snapshots {
        Snapshots::connect(&self.place.join("s.sock"), "").await
    }

    /// SIGKILL, and its end.
    fn kill(mut self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("kill");
        assert!(self.process.wait(Duration::from_secs(60)).is_some());
    }
}

#[test]
fn what_was_answered_survives_and_nothing_leaks() {
    let sockets = tempfile::Builder::new().prefix("ps-").tempdir().expect("sockets");
    let disk = scratch();
    std::os::unix::fs::symlink(disk.path(), sockets.path().join("state")).expect("link");
    let place = sockets.path();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("runtime");
    // Names that must be there as this kind, and names that may or may not be.
    let mut sure: BTreeMap<String, Kind> = BTreeMap::new();
    for round in 0..12u32 {
        let child = Child::start(place);
        let unsure: BTreeSet<String> = runtime.block_on(async {
            let mut s = child.connect().await;
            let listed: BTreeMap<String, Kind> = s
                .list(&[])
                .await
                .expect("list")
                .into_iter()
                .map(|info| (info.name.clone(), info.kind()))
                .collect();
            for (name, kind) in &sure {
                assert_eq!(listed.get(name), Some(kind), "round {round}: {name} of {listed:?}");
            }
            sure = listed;
            s.cleanup().await.expect("cleanup");
            let directories = fs::read_dir(disk.path().join("snapshots")).expect("list").count();
            assert_eq!(directories, sure.len(), "round {round}: a directory for each snapshot");
            assert_eq!(fs::read_dir(disk.path().join("trash")).expect("list").count(), 0);

            let key = format!("r{round}-key");
            s.prepare(&key, "", BTreeMap::new()).await.expect("prepare");
            s.commit(&format!("r{round}-base"), &key, BTreeMap::new()).await.expect("commit");
            sure.insert(format!("r{round}-base"), Kind::Committed);
            for i in 0..4 {
                let key = format!("r{round}-a{i}");
                s.prepare(&key, &format!("r{round}-base"), BTreeMap::new()).await.expect("prepare");
                sure.insert(key, Kind::Active);
            }
            // Many at once, and the kill when `round` of them are answered.
            let (done, mut some_done) = tokio::sync::mpsc::unbounded_channel();
            let mut unsure = BTreeSet::new();
            let storm: Vec<_> = (0..24)
                .map(|i| {
                    let (mut s, done) = (s.clone(), done.clone());
                    let (old, new) = (format!("r{round}-a{}", i % 4), format!("r{round}-n{i}"));
                    unsure.extend([old.clone(), new.clone()]);
                    tokio::spawn(async move {
                        let _ = match i % 3 {
                            0 => s.prepare(&new, "", BTreeMap::new()).await.map(drop),
                            1 => s.commit(&new, &old, BTreeMap::new()).await,
                            _ => s.remove(&old).await,
                        };
                        let _ = done.send(());
                    })
                })
                .collect();
            for _ in 0..round {
                some_done.recv().await;
            }
            child.kill();
            join_all(storm).await;
            unsure
        });
        sure.retain(|name, _| !unsure.contains(name));
    }
}

#[test]
fn two_hundred_snapshots_take_little_memory() {
    let place = tempfile::Builder::new().prefix("ps-").tempdir().expect("place");
    let child = Child::start(place.path());
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", child.process.id()));
        let status = status.expect("status of the child");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).expect("number").parse::<u64>().expect("number")
    };
    let before = resident();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let mut s = child.connect().await;
        let labels: BTreeMap<String, String> =
            (0..4).map(|i| (format!("containerd.io/snapshot/l{i}"), "x".repeat(4000))).collect();
        for i in 0..200 {
            s.prepare(&format!("key{i}"), "", labels.clone()).await.expect("prepare");
        }
        assert_eq!(s.list(&[]).await.expect("list").len(), 200);
    });
    let grown = resident().saturating_sub(before);
    eprintln!("200 snapshots: {before} KiB before, {grown} KiB more");
    assert!(grown < 50 << 10, "{grown} KiB");
    child.kill();
}
