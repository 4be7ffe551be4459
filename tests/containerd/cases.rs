//! The file cases of containerd's `snapshots/testsuite`: layers are made by scripts
//! in mounted snapshots and, the same scripts, in a plain directory; after every
//! layer both hold the same.
//!
//! `suite/run` runs containerd's own suite, which needs Go. Its cases are here and
//! elsewhere: Basic, StatActive, StatCommitted, Update, Remove, Walk, StatInWalk
//! and the failing Prepares and Views in `parity`, `differential` and `requests`,
//! which compare with overlayfs call by call; the rest below, by their names there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use peersync::snapshotter::NoRemoteLayers;
use tonic::Code;

use crate::api::Snapshots;
use crate::harness::{needs_mounts, run, scratch};
use crate::plugin::{InProcess, Plugin};
use crate::remote::block_on;

struct Case {
    plugin: InProcess,
    place: tempfile::TempDir,
    _sockets: tempfile::TempDir,
}

/// A mounted snapshot.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        nix::mount::umount(&self.0).expect("unmount");
    }
}

impl Case {
    fn new() -> Self {
        let sockets = tempfile::Builder::new().prefix("ps-").tempdir().expect("sockets");
        let place = scratch();
        let state = place.path().join("state");
        let mut plugin =
            InProcess::new(&sockets.path().join("s.sock"), &state, Arc::new(NoRemoteLayers));
        plugin.start();
        for directory in ["mnt", "model"] {
            fs::create_dir(place.path().join(directory)).expect("directory");
        }
        Self { plugin, place, _sockets: sockets }
    }

    async fn connect(&self) -> Snapshots {
        Snapshots::connect(self.plugin.socket(), "").await
    }

    fn model(&self) -> PathBuf {
        self.place.path().join("model")
    }

    /// Mounts what the service says. Options name directories by their whole path
    /// and have to fit a page: as containerd does, they are given from a directory
    /// above.
    fn mount(&self, mounts: &[String]) -> Mounted {
        let [mount] = mounts else { panic!("one mount: {mounts:?}") };
        let mut words = mount.splitn(4, ' ');
        let mut next = || words.next().expect("type, source, target and options").to_owned();
        let (kind, source, _, options) = (next(), next(), next(), next());
        let above = self.plugin.state().join("snapshots");
        let options = options.replace(&format!("{}/", above.display()), "");
        let target = self.place.path().join("mnt");
        let kind: &[&str] = if kind == "bind" { &[] } else { &["-t", &kind] };
        let mut command = Command::new("mount");
        run(command.args(kind).args(["-o", &options, &source]).arg(&target).current_dir(above));
        Mounted(target)
    }

    /// Makes a layer of each script on the one before, and compares.
    async fn layers(&self, scripts: &[&str]) -> Snapshots {
        let mut s = self.connect().await;
        let none = BTreeMap::new;
        let mut parent = String::new();
        for (number, script) in scripts.iter().enumerate() {
            let (key, name) = (format!("key{number}"), format!("layer{number}"));
            let mounts = s.prepare(&key, &parent, none()).await.expect("prepare");
            let mounted = self.mount(&mounts);
            for directory in [&mounted.0, &self.model()] {
                run(Command::new("sh").args(["-euc", script]).current_dir(directory));
            }
            assert_eq!(listing(&mounted.0), listing(&self.model()), "active {number}: {script}");
            drop(mounted);
            s.commit(&name, &key, none()).await.expect("commit");
            let view = s.view("view", &name, none()).await.expect("view");
            let mounted = self.mount(&view);
            assert_eq!(listing(&mounted.0), listing(&self.model()), "layer {number}: {script}");
            drop(mounted);
            s.remove("view").await.expect("remove the view");
            parent = name;
        }
        s
    }
}

/// Every entry with its attributes, and what files hold.
fn listing(directory: &Path) -> String {
    let script = "find . -printf '%P %y %m %U:%G %s %l\\n' | sed '/ d /s/ [0-9]* *$//' | sort; \
                  find . -type f -print0 | sort -z | xargs -0r sha256sum";
    run(Command::new("sh").args(["-euc", script]).current_dir(directory))
}

fn same(scripts: &[&str]) {
    needs_mounts!();
    let case = Case::new();
    block_on(case.layers(scripts));
}

#[test]
fn layer_file_update() {
    same(&[
        "echo hello > f1; mkdir -p d1/d2; echo one > d1/d2/f2; head -c 3000000 /dev/zero > big",
        "echo again >> f1; printf x | dd of=big bs=1 seek=1000000 conv=notrunc status=none",
        "echo last > d1/d2/f2; truncate -s 100 big",
    ]);
}

#[test]
fn remove_directory_in_lower_layer() {
    same(&[
        "mkdir dir1; echo 1 > dir1/f1; echo 2 > dir1/f2; echo 2 > f2",
        "rm -r dir1; mkdir dir1; echo other > dir1/f2",
        "rm -r dir1; echo a file now > dir1",
    ]);
}

#[test]
fn chown() {
    same(&[
        "mkdir -p opt/a a/b/c; echo hi > opt/a/b.txt",
        "chown -R 1:1 opt; chown -h 2:3 opt/a/b.txt; chown 4 a/b/c",
        "chown 0:0 opt/a; chmod 4755 opt/a/b.txt",
    ]);
}

#[test]
fn directory_permission_on_commit() {
    same(&[
        "for i in 1 2 3 4 5 6; do mkdir dir$i; done; touch dir1/f1 dir2/f2",
        "chmod 755 dir1 dir2; chmod 711 dir3; chown 1:1 dir4 dir5; rm -r dir6",
        "chown 2:2 dir1; rm -r dir2; chmod 700 dir3; chmod 1777 dir4",
    ]);
}

#[test]
fn deleted_files_in_child_snapshot() {
    same(&["echo a > foo; echo b > bar", "rm bar", "ls | xargs rm", "echo c > bar"]);
}

#[test]
fn move_file_from_lower_layer() {
    same(&[
        "mkdir -p dir1; echo x > dir1/f1; echo y > dir1/f2; ln dir1/f1 dir1/linked",
        "mkdir dir2; mv dir1/f1 dir2/f1; echo z > dir1/f1",
    ]);
}

/// A directory of a lower layer is renamed by copying, as in any overlay without
/// `redirect_dir`; programs do that when the kernel says EXDEV.
#[test]
fn rename() {
    same(&[
        "mkdir -p dir1/deep somefiles; touch dir1/deep/f; echo was here > somefiles/f1; \
         echo nothing > somefiles/f2",
        "mv dir1 dir2; echo new > somefiles/over; mv somefiles/over somefiles/f1; \
         mv somefiles/f2 somefiles/f3",
        "mkdir own; mv own own2; mv dir2 dir1",
    ]);
}

#[test]
fn files_of_all_kinds() {
    same(&[
        "mkfifo pipe; mknod null c 1 3; mknod disk b 7 9; ln -s nowhere link",
        "rm null; mv pipe pipe2; ln -sfn elsewhere link; mknod whiteout c 0 1",
    ]);
}

#[test]
fn transitivity() {
    needs_mounts!();
    let case = Case::new();
    block_on(async {
        let mut s = case.layers(&["echo 1 > one", "echo 2 > two", "echo 3 > three"]).await;
        // Two children of one parent, and a view, know nothing of one another.
        let (one, two) = ("one", "two");
        for (key, name) in [("left", one), ("right", two)] {
            let mounts = s.prepare(key, "layer1", BTreeMap::new()).await.expect("prepare");
            let mounted = case.mount(&mounts);
            assert!(!mounted.0.join("three").exists());
            fs::remove_file(mounted.0.join(name)).expect("remove");
        }
        let mounts = s.view("seen", "layer1", BTreeMap::new()).await.expect("view");
        let mounted = case.mount(&mounts);
        assert!(mounted.0.join(one).exists() && mounted.0.join(two).exists());
    });
}

#[test]
fn view_readonly_and_root_permission() {
    needs_mounts!();
    let case = Case::new();
    block_on(async {
        let mut s = case.layers(&["touch foo", "touch bar"]).await;
        for parent in ["layer0", "layer1"] {
            let mounts = s.view("seen", parent, BTreeMap::new()).await.expect("view");
            let mounted = case.mount(&mounts);
            let refused = fs::write(mounted.0.join("new"), b"").expect_err("read-only");
            assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{parent}");
            drop(mounted);
            s.remove("seen").await.expect("remove");
        }
        let mounts = s.prepare("fresh", "", BTreeMap::new()).await.expect("prepare");
        let root = fs::metadata(&case.mount(&mounts).0).expect("root");
        assert_eq!((root.permissions().mode() & 0o7777, root.uid()), (0o755, 0));
    });
}

#[test]
fn remove_intermediate_snapshot() {
    needs_mounts!();
    let case = Case::new();
    block_on(async {
        let mut s = case.layers(&["touch a", "touch b"]).await;
        s.prepare("top", "layer1", BTreeMap::new()).await.expect("prepare");
        for held in ["layer0", "layer1"] {
            let refused = s.remove(held).await.expect_err("it has children");
            assert_eq!(refused.code(), Code::FailedPrecondition, "{held}");
        }
        for name in ["top", "layer1", "layer0"] {
            s.remove(name).await.expect("from the top");
        }
        assert_eq!(s.remove("top").await.expect_err("gone").code(), Code::NotFound);
        assert!(s.list(&[]).await.expect("list").is_empty());
    });
}

#[test]
fn the_mount_of_128_layers() {
    needs_mounts!();
    let case = Case::new();
    block_on(async {
        let mut s = case.connect().await;
        let mut parent = String::new();
        for number in 0..128 {
            let (key, name) = (format!("key{number}"), format!("layer{number}"));
            s.prepare(&key, &parent, BTreeMap::new()).await.expect("prepare");
            // Written where the mount would put it: 128 mounts say nothing more.
            let fs_of = case.plugin.state().join(format!("snapshots/{}/fs", number + 1));
            fs::write(fs_of.join("flat"), number.to_string()).expect("file");
            fs::write(fs_of.join(format!("file{number}")), b"").expect("file");
            s.commit(&name, &key, BTreeMap::new()).await.expect("commit");
            parent = name;
        }
        let mounts = s.prepare("top", "layer126", BTreeMap::new()).await.expect("prepare");
        let mounted = case.mount(&mounts);
        assert_eq!(fs::read_to_string(mounted.0.join("flat")).expect("flat"), "126");
        assert_eq!(fs::read_dir(&mounted.0).expect("list").count(), 128);
        fs::write(mounted.0.join("flat"), b"changed").expect("copy-up");
    });
}
