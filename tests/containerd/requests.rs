//! The plugin's own socket: wrong requests, many at once, and how fast it answers.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use peersync::snapshotter::NoRemoteLayers;
use peersync::snapshotter::proto::snapshots::Kind;
use tonic::Code;

use crate::api::Snapshots;
use crate::harness::scratch;
use crate::plugin::{InProcess, Plugin};

struct Alone {
    plugin: InProcess,
    runtime: tokio::runtime::Runtime,
    place: tempfile::TempDir,
    _sockets: tempfile::TempDir,
}

fn alone() -> Alone {
    let sockets = tempfile::Builder::new().prefix("ps-").tempdir().expect("sockets");
    let place = scratch();
    let socket = sockets.path().join("run/s.sock");
    let mut plugin = InProcess::new(&socket, &place.path().join("store"), Arc::new(NoRemoteLayers));
    plugin.start();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    Alone { plugin, runtime, place, _sockets: sockets }
}

fn entries(path: &Path) -> usize {
    fs::read_dir(path).expect("directory").count()
}

#[test]
fn wrong_requests_get_containerds_codes_and_leave_nothing() {
    let alone = alone();
    alone.runtime.block_on(async {
        let mut s = Snapshots::connect(alone.plugin.socket(), "").await;
        let none = BTreeMap::new;
        assert!(s.list(&[]).await.unwrap().is_empty(), "an empty list is no error");
        s.prepare("active", "", none()).await.unwrap();
        let code = |result: Result<Vec<String>, tonic::Status>| result.unwrap_err().code();
        assert_eq!(code(s.prepare("active", "", none()).await), Code::AlreadyExists);
        assert_eq!(code(s.prepare("", "", none()).await), Code::InvalidArgument);
        assert_eq!(code(s.prepare("x", "missing", none()).await), Code::NotFound);
        assert_eq!(code(s.view("x", "active", none()).await), Code::InvalidArgument);
        let long = "x".repeat(40_000);
        assert_eq!(code(s.prepare(&long, "", none()).await), Code::InvalidArgument);
        let fat = BTreeMap::from([("k".to_owned(), "v".repeat(4096))]);
        assert_eq!(code(s.prepare("x", "", fat).await), Code::InvalidArgument);
        assert_eq!(
            s.commit("active", "active", none()).await.unwrap_err().code(),
            Code::AlreadyExists
        );
        assert_eq!(s.remove("missing").await.unwrap_err().code(), Code::NotFound);
        for filter in ["name==", "==", "\"", "labels.\"x", &"a,".repeat(300_000)] {
            assert_eq!(s.list(&[filter]).await.unwrap_err().code(), Code::InvalidArgument);
        }
        s.cleanup().await.unwrap();
        assert_eq!(entries(&alone.place.path().join("store/snapshots")), 1);
    });
}

#[test]
fn requests_at_once_leave_one_winner_and_no_litter() {
    let alone = alone();
    alone.runtime.block_on(async {
        let s = Snapshots::connect(alone.plugin.socket(), "").await;
        let prepared = join_all((0..32).map(|i| {
            let mut s = s.clone();
            async move { s.prepare(&format!("key{}", i % 4), "", BTreeMap::new()).await }
        }))
        .await;
        assert_eq!(prepared.iter().filter(|result| result.is_ok()).count(), 4);
        let committed = join_all((0..32).map(|i| {
            let mut s = s.clone();
            async move { s.commit("name", &format!("key{}", i % 4), BTreeMap::new()).await }
        }))
        .await;
        let won = committed.iter().filter(|result| result.is_ok()).count();
        // The winner's own repetitions are a success too.
        assert!((1..=8).contains(&won), "{won}");
        let mixed = join_all((0..64).map(|i| {
            let mut s = s.clone();
            async move {
                let key = format!("child{}", i % 5);
                match i % 3 {
                    0 => s.prepare(&key, "name", BTreeMap::new()).await.map(drop),
                    1 => s.remove(&key).await,
                    _ => s.remove("name").await,
                }
            }
        }))
        .await;
        drop(mixed);
        let mut s = s;
        let listed = s.list(&[]).await.unwrap();
        for info in &listed {
            let there = |name: &str| listed.iter().any(|other| other.name == name);
            assert!(info.parent.is_empty() || there(&info.parent), "{info:?}");
        }
        s.cleanup().await.unwrap();
        let store = alone.place.path().join("store");
        assert_eq!(entries(&store.join("snapshots")), listed.len());
        assert_eq!(entries(&store.join("trash")), 0);
    });
}

#[test]
fn long_lists_come_in_pieces_and_in_order() {
    let alone = alone();
    alone.runtime.block_on(async {
        let mut s = Snapshots::connect(alone.plugin.socket(), "").await;
        for i in 0..230 {
            s.view(&format!("view-{i:03}"), "", BTreeMap::new()).await.unwrap();
        }
        let listed = s.list(&["kind==view"]).await.unwrap();
        assert_eq!(listed.len(), 230);
        assert!(listed.is_sorted_by(|a, b| a.name < b.name));
        assert!(listed.iter().all(|info| info.kind() == Kind::View));
    });
}

/// The issue asks for less than a millisecond; debug builds and a busy machine get
/// the median of many, and a bound that only a walk or a disk access would break.
#[test]
fn stat_and_usage_answer_at_once_with_200_snapshots() {
    let alone = alone();
    alone.runtime.block_on(async {
        let mut s = Snapshots::connect(alone.plugin.socket(), "").await;
        s.prepare("base-key", "", BTreeMap::new()).await.unwrap();
        let fs = alone.place.path().join("store/snapshots/1/fs");
        for i in 0..5000 {
            fs::write(fs.join(i.to_string()), b"").unwrap();
        }
        s.prepare("small", "", BTreeMap::new()).await.unwrap();
        s.prepare("other", "", BTreeMap::new()).await.unwrap();
        s.commit("committed", "other", BTreeMap::new()).await.unwrap();
        for i in 0..200 {
            s.view(&format!("view{i}"), "committed", BTreeMap::new()).await.unwrap();
        }
        for key in ["base-key", "small", "committed", "view7"] {
            let mut times = Vec::new();
            for _ in 0..101 {
                let begun = Instant::now();
                s.usage(key).await.unwrap();
                s.stat(key).await.unwrap();
                times.push(begun.elapsed() / 2);
            }
            times.sort();
            eprintln!("usage and stat of {key}: median {:?}", times[50]);
            assert!(times[50] < Duration::from_millis(3), "{key}: {times:?}");
        }
    });
}

#[test]
fn a_stopped_snapshotter_leaves_no_socket_and_starts_again() {
    let mut alone = alone();
    let socket = alone.plugin.socket().to_owned();
    let names = |alone: &Alone| {
        alone.runtime.block_on(async {
            let mut s = Snapshots::connect(alone.plugin.socket(), "").await;
            s.list(&[]).await.unwrap().into_iter().map(|info| info.name).collect::<Vec<_>>()
        })
    };
    alone.runtime.block_on(async {
        let mut s = Snapshots::connect(&socket, "").await;
        s.prepare("kept", "", BTreeMap::new()).await.unwrap();
    });
    alone.plugin.stop();
    assert!(!socket.exists());
    // As after a crash: a socket that nobody answers on.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    alone.plugin.start();
    assert_eq!(names(&alone), ["kept"]);
}
