//! What is left when something ends without warning, the daemon or the machine, and
//! when the disk is full of what nobody names any more.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use peersync::snapshotter::proto::snapshots::{Info, Kind};
use peersync::types::Digest;
use tonic::Code;

use crate::api::Snapshots;
use crate::harness::registry::Registry;
use crate::harness::{needs_mounts, run, wait_until};
use crate::images::{add, base, changes, extra};
use crate::lazy::{Lazy, fuse_mounts_below, incompressible, push_index};
use crate::node::Node;
use crate::ordinary::DATA_AND_DEEP;
use crate::plugin::Plugin;
use crate::start::{Asked, block_on, three};
use crate::world::{OURS, needs_containerd};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn after_a_reboot_containers_start_again_without_a_registry() {
    needs_containerd!();
    let changes = changes();
    let mut lazy = Lazy::new(&[("v1", &[base(), &changes])]);
    lazy.cri_pull("v1").expect("pull");
    let image = lazy.image("v1");
    let container = lazy.world.unique("reboot");
    let ctr =
        |lazy: &Lazy, arguments: &[&str]| run(&mut lazy.world.ctr_command("k8s.io", arguments));
    let options = ["run", "--detach", "--null-io", "--snapshotter", OURS];
    ctr(&lazy, &[&options[..], &[&image, &container, "/bin/sleep", "3600"]].concat());
    let write = "echo own > /own; rm /data/a; sync";
    ctr(&lazy, &["task", "exec", "--exec-id", "e", &container, "/bin/sh", "-c", write]);
    let list = ["snapshots", "--snapshotter", OURS, "ls"];
    let before = ctr(&lazy, &list);

    lazy.world.lose_power("k8s.io", &[&container]);
    lazy.world.plugin.crash_with_the_machine();
    lazy.line.cut_at(0);
    // In the order that is worse: containerd is up before its plugin.
    lazy.world.start_containerd();
    lazy.world.plugin.start();
    lazy.world.wait_for_plugin();

    assert_eq!(ctr(&lazy, &list), before);
    assert_eq!(fuse_mounts_below(lazy.world.plugin.tree()), 1);
    ctr(&lazy, &["task", "start", "--detach", "--null-io", &container]);
    let look = "[ \"$(cat /own)\" = own ] && [ ! -e /data/a ] && cat /opt/owned";
    ctr(&lazy, &["task", "exec", "--exec-id", "f", &container, "/bin/sh", "-c", look]);
    assert_eq!(lazy.sh("v1", "ls /data /data/deep"), DATA_AND_DEEP, "a new container");
    ctr(&lazy, &["task", "rm", "--force", &container]);
    ctr(&lazy, &["container", "rm", &container]);
    lazy.gone("k8s.io");
}

#[test]
fn a_pull_goes_on_after_the_daemon_was_killed_in_it() {
    needs_containerd!();
    let large = extra("large", &incompressible(8 << 20));
    let mut lazy = Lazy::new(&[("v1", &[base(), &large])]);
    // The daemon waits for the rest when it is killed.
    let half = lazy.line.down() + (2 << 20);
    lazy.line.cut_at(half);
    thread::scope(|scope| {
        let pull = scope.spawn(|| lazy.cri_pull("v1"));
        lazy.line.wait_for(half, LIMIT);
        assert!(!pull.is_finished(), "half of the image is no image");
        nix::sys::signal::kill(lazy.world.plugin.pid(), nix::sys::signal::SIGKILL).expect("kill");
        let error = pull.join().expect("thread").expect_err("the pull fails with the daemon");
        assert_ne!(error.code(), Code::Ok);
    });
    lazy.world.plugin.crashed();
    lazy.line.mend();
    lazy.world.plugin.start();
    lazy.world.wait_for_plugin();
    assert!(lazy.world.directories().is_empty(), "nothing was unpacked instead");
    lazy.cri_pull("v1").expect("the kubelet tries again");
    assert_eq!(lazy.blobs_of_layers("v1"), 0);
    assert_eq!(lazy.committed("k8s.io"), 2);
    assert_eq!(fuse_mounts_below(lazy.world.plugin.tree()), 1);
    assert_eq!(lazy.sh("v1", "wc -c < /extra/large").trim(), (8 << 20).to_string());
    lazy.gone("k8s.io");
}

/// Every snapshot, and the mounts of those that have some.
async fn seen(s: &mut Snapshots) -> Vec<(Info, Vec<String>)> {
    let mut seen = Vec::new();
    for info in s.list(&[]).await.expect("list") {
        let mounts = match info.kind() {
            Kind::Committed => Vec::new(),
            _ => s.mounts(&info.name).await.expect("mounts"),
        };
        seen.push((info, mounts));
    }
    seen
}

/// One request of each kind, in an order that makes sense; false after the last.
async fn step(s: &mut Snapshots, number: usize, asked: &Asked) -> bool {
    let none = BTreeMap::new;
    let chains: Vec<String> = asked.chains().iter().map(Digest::to_string).collect();
    let colour = BTreeMap::from([("colour".to_owned(), "red".to_owned())]);
    match number {
        0..3 => {
            let below = number.checked_sub(1).map_or("", |below| &chains[below]);
            let prepared = s.prepare("remote", below, asked.labels(number)).await;
            assert_eq!(prepared.expect_err("remote").code(), Code::AlreadyExists);
        }
        3 => drop(s.prepare("container", &chains[2], none()).await.expect("prepare")),
        4 => drop(s.view("view", &chains[1], none()).await.expect("view")),
        5 => drop(s.update("container", colour, &["labels.colour"]).await.expect("update")),
        6 => s.commit("built", "container", none()).await.expect("commit"),
        7 => drop(s.prepare("on top", "built", none()).await.expect("prepare")),
        8 => drop(s.prepare("plain key", "", none()).await.expect("prepare")),
        9 => s.commit("plain", "plain key", none()).await.expect("commit"),
        10 => drop(s.view("plain\nview", "plain", none()).await.expect("view")),
        11 => s.remove("view").await.expect("remove"),
        12 => s.remove("on top").await.expect("remove"),
        13 => s.remove("built").await.expect("remove"),
        14 => s.remove(&chains[2]).await.expect("remove"),
        15 => s.cleanup().await.expect("cleanup"),
        _ => return false,
    }
    true
}

#[test]
fn what_was_answered_is_there_after_a_kill_between_any_two_calls() {
    needs_mounts!();
    let [one, two, three] = three();
    let mut asked = Asked::new(&[&one, &two, &three], "");
    block_on(async {
        for number in 0.. {
            let mut s = asked.connect().await;
            if !step(&mut s, number, &asked).await {
                assert!(number > 10);
                break;
            }
            let before = seen(&mut s).await;
            drop(s);
            asked.node.crash();
            asked.node.start();
            let mut s = asked.connect().await;
            assert_eq!(seen(&mut s).await, before, "after call {number}");
            s.cleanup().await.expect("cleanup");
            let ordinary = before.iter().filter(|(info, _)| info.name.parse::<Digest>().is_err());
            let entries = |name| fs::read_dir(asked.node.state().join(name)).expect(name).count();
            assert_eq!(entries("snapshots"), ordinary.count(), "directories after call {number}");
            assert_eq!(entries("trash"), 0, "after call {number}");
            assert_eq!(fuse_mounts_below(asked.node.tree()), 1, "after call {number}");
            let lowest = asked.chains()[0].file_name();
            let file = asked.node.tree().join("chains").join(lowest).join("extra/one");
            assert_eq!(fs::read(file).expect("a file of the image"), b"1");
        }
    });
    asked.node.stop();
}

#[test]
fn the_space_of_a_removed_image_is_taken_for_what_runs() {
    needs_containerd!();
    const LARGE: usize = 8 << 20;
    let noise = incompressible(2 * LARGE);
    let (first, second) = (extra("first", &noise[..LARGE]), extra("second", &noise[LARGE..]));
    // Room for the base and one of the two, not for both: beyond nine tenths of the
    // budget the store evicts, down to eight.
    let one_of_them = (base().len() + LARGE) as u64;
    assert!(LARGE * 4 > base().len(), "the base is small");
    let lazy = Lazy::with(
        |socket| Node::new(socket, "").holding(one_of_them * 4 / 3),
        &[("v1", &[base(), &first] as &[&[u8]]), ("v2", &[base(), &second])],
    );
    push_index(&lazy.registry, "test/image:v2");
    let resident = |lazy: &Lazy| -> BTreeMap<u64, u64> {
        let layers = lazy.world.plugin.layers();
        let large = layers.iter().filter(|layer| layer["nodes"].as_u64() < Some(10));
        let number = |layer: &serde_json::Value, key: &str| layer[key].as_u64().expect("number");
        large
            .map(|layer| (number(layer, "resident_bytes"), number(layer, "content_bytes")))
            .collect()
    };
    lazy.cri_pull("v1").expect("pull");
    assert_eq!(lazy.sh("v1", "wc -c < /extra/first").trim(), LARGE.to_string());
    lazy.cri_remove("v1");
    assert_eq!(lazy.committed("k8s.io"), 0);
    assert!(resident(&lazy).contains_key(&(LARGE as u64)), "cached as long as there is room");

    lazy.cri_pull("v2").expect("pull");
    let image = lazy.image("v2");
    let container = lazy.world.unique("runs");
    let ctr = |arguments: &[&str]| run(&mut lazy.world.ctr_command("k8s.io", arguments));
    let options = ["run", "--detach", "--null-io", "--snapshotter", OURS];
    ctr(&[&options[..], &[&image, &container, "/bin/sleep", "3600"]].concat());
    let read = ["/bin/sh", "-c", "[ $(cat /extra/second | wc -c) = 8388608 ]"];
    ctr(&[&["task", "exec", "--exec-id", "e", &container][..], &read].concat());
    wait_until("the removed image's content makes room", LIMIT, || {
        resident(&lazy).contains_key(&0)
    });
    // Now there is room for all of what runs, and it stays.
    ctr(&[&["task", "exec", "--exec-id", "f", &container][..], &read].concat());
    lazy.line.cut_at(0);
    fs::write("/proc/sys/vm/drop_caches", "1").expect("drop caches");
    ctr(&[&["task", "exec", "--exec-id", "g", &container][..], &read].concat());
    lazy.line.mend();
    // And what went comes back with the image.
    lazy.cri_pull("v1").expect("pull");
    assert_eq!(lazy.sh("v1", "wc -c < /extra/first").trim(), LARGE.to_string());
    ctr(&["task", "rm", "--force", &container]);
    ctr(&["container", "rm", &container]);
    lazy.cri_remove("v1");
    lazy.cri_remove("v2");
    lazy.world.wait_for_directories(0);
}

#[test]
fn what_is_known_is_read_from_where_it_was_pulled_last() {
    needs_containerd!();
    if Command::new("ctr-remote").arg("--version").output().is_err() {
        eprintln!("skipped: no ctr-remote (package stargz-snapshotter)");
        return;
    }
    let large = extra("large", &incompressible(4 << 20));
    let mut lazy = Lazy::new(&[]);
    add(&mut lazy.world.layout, "v1", &[base(), &large]);
    let other = Registry::start();
    for registry in [&lazy.registry, &other] {
        registry.push(&lazy.world.layout.dir, "v1", "test/image:v1");
        push_index(registry, "test/image:v1");
    }
    lazy.cri_pull("v1").expect("pull");
    // The same layers for another namespace, from elsewhere: all of them are known, and
    // nothing has to be fetched for this pull.
    let image = format!("{}/test/image:v1", other.address);
    let mut rpull = Command::new("ctr-remote");
    rpull.arg("--address").arg(lazy.world.socket()).args(["--namespace", "other"]);
    run(rpull.args(["images", "rpull", "--plain-http", "--snapshotter", OURS, &image]));
    lazy.line.cut_at(0);
    let said = lazy.world.sh_in("other", &image, "wc -c < /extra/large");
    assert_eq!(said.trim(), (4 << 20).to_string());
    lazy.gone("other");
}
