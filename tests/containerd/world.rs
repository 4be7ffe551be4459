//! A containerd of its own, with the snapshotter as its plugin.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peersync::snapshotter::{NoRemoteLayers, RemoteLayers};

use crate::api::Snapshots;
use crate::harness::layout::Layout;
use crate::harness::{Running, output, run, scratch, wait_until};
use crate::plugin::{InProcess, Plugin};

/// The snapshotter under test and the one that it is compared with.
pub(crate) const OURS: &str = "peersync";
pub(crate) const THEIRS: &str = "overlayfs";

/// Garbage is collected when a test says so.
const NO_SWEEPS: &str = r#"
[plugins."io.containerd.gc.v1.scheduler"]
  startup_delay = "1h"
  deletion_threshold = 0
  mutation_threshold = 1000000
"#;

/// How long containerd may take to answer.
const START: Duration = Duration::from_secs(60);

/// Ends the test early where the machine can't run containers. In CI that is a failure.
macro_rules! needs_containerd {
    () => {
        if !$crate::world::can_run_containers() {
            return;
        }
    };
}
pub(crate) use needs_containerd;

pub(crate) fn can_run_containers() -> bool {
    let there = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
        places.push("/usr/sbin".into());
        places.iter().any(|place| place.join(name).exists())
    };
    let root = nix::unistd::geteuid().is_root();
    let able = root && ["containerd", "ctr", "runc"].into_iter().all(there);
    assert!(able || std::env::var("CI").as_deref() != Ok("true"), "CI has root and containerd");
    if !able {
        eprintln!("skipped: needs root, containerd, ctr and runc");
    }
    able
}

/// Everything that one test needs; ended and removed when dropped.
pub(crate) struct World<P: Plugin> {
    // In this order: processes end before their directories go.
    containerd: Option<Running>,
    pub(crate) plugin: P,
    pub(crate) layout: Layout,
    prefix: String,
    sockets: tempfile::TempDir,
    place: tempfile::TempDir,
}

impl World<InProcess> {
    /// Ordinary snapshots only.
    pub(crate) fn ordinary() -> Self {
        Self::with(|_| Arc::new(NoRemoteLayers))
    }

    /// With remote layers, which find their images in the layout.
    pub(crate) fn with(remote: impl FnOnce(&Path) -> Arc<dyn RemoteLayers>) -> Self {
        Self::of(|place, socket| {
            InProcess::new(socket, &place.join("store/snapshotter"), remote(place))
        })
    }
}

impl<P: Plugin> World<P> {
    /// With a plugin of its own, made for a directory and a socket.
    pub(crate) fn of(plugin: impl FnOnce(&Path, &Path) -> P) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A socket's path is short, a build directory's may not be.
        let sockets = tempfile::Builder::new().prefix("ps-").tempdir().expect("sockets");
        let place = scratch();
        let mut plugin = plugin(place.path(), &sockets.path().join("run/snapshotter.sock"));
        plugin.start();
        let mut world = Self {
            containerd: None,
            plugin,
            layout: Layout::create(&place.path().join("oci")),
            prefix: format!("ps{}-{number}", std::process::id()),
            sockets,
            place,
        };
        world.configure();
        world.start_containerd();
        world
    }

    pub(crate) fn place(&self) -> &Path {
        self.place.path()
    }

    /// A name that no other test uses: runc's state is shared by the machine.
    pub(crate) fn unique(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.sockets.path().join("containerd.sock")
    }

    /// `ctr` in a namespace, to be run.
    pub(crate) fn ctr_command<S: AsRef<OsStr>>(&self, namespace: &str, arguments: &[S]) -> Command {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.socket()).args(["--namespace", namespace]);
        command.args(arguments);
        command
    }

    /// What `ctr` says in namespace `test`; it must succeed.
    pub(crate) fn ctr<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        run(&mut self.ctr_command("test", arguments))
    }

    /// As [`World::ctr`], and it may fail.
    pub(crate) fn try_ctr<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        output(&mut self.ctr_command("test", arguments))
    }

    /// Runs a shell script in a new container of an image; gives its output.
    pub(crate) fn sh(&self, image: &str, script: &str) -> String {
        self.sh_in("test", image, script)
    }

    /// As [`World::sh`], in a namespace.
    pub(crate) fn sh_in(&self, namespace: &str, image: &str, script: &str) -> String {
        let output = self.output_file();
        let name = self.unique(&format!("c{}", next()));
        let run_it = ["run", "--rm", "--allow-new-privs", "--snapshotter", OURS, "--mount"];
        let (mount, script) = (self.output_mount(), saying_to(&output, script));
        let what = [&mount, image, &name, "/bin/sh", "-euc", &script];
        run(&mut self.ctr_command(namespace, &[&run_it[..], &what].concat()));
        self.read_output(&output)
    }

    /// Starts a container that stays, with a process that sleeps.
    pub(crate) fn start_container(&self, image: &str, name: &str) -> String {
        let name = self.unique(name);
        let mount = self.output_mount();
        let run = ["run", "--detach", "--null-io", "--snapshotter", OURS, "--mount", &mount];
        self.ctr(&[&run[..], &[image, &name, "/bin/sleep", "3600"]].concat());
        name
    }

    /// Runs a shell script in a container that stays.
    pub(crate) fn exec(&self, container: &str, script: &str) -> String {
        let output = self.output_file();
        let script = saying_to(&output, script);
        let exec = ["task", "exec", "--exec-id", &output, container, "/bin/sh", "-euc", &script];
        self.ctr(&exec);
        self.read_output(&output)
    }

    /// Output goes through a file: `ctr` ends with the process and now and then
    /// before the last of its output.
    fn output_mount(&self) -> String {
        let place = self.place().join("said");
        fs::create_dir_all(&place).expect("directory for output");
        format!("type=bind,src={},dst=/mnt,options=rbind:rw", place.display())
    }

    fn output_file(&self) -> String {
        format!("out{}", next())
    }

    fn read_output(&self, name: &str) -> String {
        fs::read_to_string(self.place().join("said").join(name)).expect("output")
    }

    /// Ends and removes a container and its snapshot.
    pub(crate) fn remove_container(&self, container: &str) {
        self.ctr(&["task", "rm", "--force", container]);
        self.ctr(&["container", "rm", container]);
    }

    /// Names of snapshots in the snapshotter itself, all namespaces.
    pub(crate) fn directories(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.plugin.state().join("snapshots"))
            .expect("snapshots")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_by_key(|name| name.parse::<u64>().unwrap_or(u64::MAX));
        names
    }

    /// Whether all that was removed is gone from the disk.
    pub(crate) fn wait_for_directories(&self, count: usize) {
        wait_until("removed snapshots leave the disk", START, || {
            let trash = fs::read_dir(self.plugin.state().join("trash")).expect("trash").count();
            self.directories().len() == count && trash == 0
        });
    }

    pub(crate) fn restart_containerd(&mut self) {
        self.stop_containerd();
        self.start_containerd();
    }

    /// Stops and starts the snapshotter; containerd connects again by itself.
    pub(crate) fn restart_plugin(&mut self) {
        self.plugin.stop();
        self.plugin.start();
        self.wait_for_plugin();
    }

    /// Waits until containerd reaches a snapshotter that was started again.
    pub(crate) fn wait_for_plugin(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("runtime");
        let mut snapshots = runtime.block_on(Snapshots::connect(&self.socket(), OURS));
        wait_until("containerd reaches the snapshotter again", START, || {
            runtime.block_on(snapshots.view("probe", "", BTreeMap::new())).is_ok()
        });
        runtime.block_on(snapshots.remove("probe")).expect("remove");
        self.collect_garbage("test");
    }

    /// Lets containerd remove what nothing names, and waits for it.
    pub(crate) fn collect_garbage(&self, namespace: &str) {
        let lease = self.unique("sweep");
        run(&mut self.ctr_command(namespace, &["leases", "create", "--id", &lease]));
        run(&mut self.ctr_command(namespace, &["leases", "rm", "--sync", &lease]));
    }

    /// The power goes while these containers of a namespace run: they, their shims and
    /// containerd end at once, and what `/run` holds is gone with all mounts.
    pub(crate) fn lose_power(&mut self, namespace: &str, containers: &[&str]) {
        // First: it would clean up after the others.
        let mut containerd = self.containerd.take().expect("containerd runs");
        kill(Pid::from_raw(containerd.id()), Signal::SIGKILL).expect("kill");
        assert!(containerd.wait(START).is_some());
        let socket = self.socket().display().to_string();
        let shims: Vec<i32> = processes()
            .filter(|(_, command, _)| command.contains("shim") && command.contains(&socket))
            .map(|(id, ..)| id)
            .collect();
        assert_eq!(shims.len(), containers.len(), "a shim for each container");
        let theirs: Vec<i32> =
            processes().filter(|(.., parent)| shims.contains(parent)).map(|(id, ..)| id).collect();
        for id in shims.iter().chain(&theirs) {
            // A child may have gone with its shim.
            let _ = kill(Pid::from_raw(*id), Signal::SIGKILL);
        }
        let are_gone = || processes().all(|(id, ..)| !shims.contains(&id) && !theirs.contains(&id));
        wait_until("shims and containers are gone", START, are_gone);

        let state = self.sockets.path().join("state");
        let table = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        for point in points.filter(|point| point.starts_with(&state)) {
            umount2(point, MntFlags::MNT_DETACH).expect("unmount");
        }
        fs::remove_dir_all(&state).expect("containerd's state");
        for container in containers {
            let runc = Path::new("/run/containerd/runc").join(namespace).join(container);
            fs::remove_dir_all(runc).expect("runc's state");
        }
    }

    fn configure(&self) {
        let at = |name: &str| self.place().join(name).display().to_string();
        let text = format!(
            r#"
root = "{root}"
state = "{state}"
disabled_plugins = [
    "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{socket}"
"#,
            root = at("containerd"),
            state = self.sockets.path().join("state").display(),
            socket = self.socket().display(),
        );
        // The snippet that users are given, as it is but for the socket.
        let snippet = include_str!("../../packaging/containerd/config-v2.toml");
        let socket = self.plugin.socket().display().to_string();
        let snippet = snippet.replace("/run/peersync/snapshotter.sock", &socket);
        let (version, tables) = snippet.split_once("version = 2").expect("version");
        let text = format!("{version}version = 2\n{text}{tables}{NO_SWEEPS}");
        fs::write(self.place().join("containerd.toml"), text).expect("configuration");
    }

    pub(crate) fn start_containerd(&mut self) {
        let config = self.place().join("containerd.toml");
        self.containerd = Some(Running::start(Command::new("containerd").arg("-c").arg(config)));
        wait_until("containerd answers", START, || {
            output(&mut self.ctr_command("test", &["version"])).status.success()
        });
    }

    fn stop_containerd(&mut self) {
        if let Some(mut containerd) = self.containerd.take() {
            kill(Pid::from_raw(containerd.id()), Signal::SIGTERM).expect("signal");
            assert!(containerd.wait(START).is_some(), "containerd does not end");
        }
    }
}

impl<P: Plugin> Drop for World<P> {
    fn drop(&mut self) {
        // Containers that a failing test has left; their shims outlive containerd.
        for namespace in ["test", "k8s.io", "other"] {
            if self.containerd.is_none() {
                break;
            }
            let listed = output(&mut self.ctr_command(namespace, &["containers", "ls", "-q"]));
            for name in String::from_utf8_lossy(&listed.stdout).lines() {
                output(&mut self.ctr_command(namespace, &["task", "rm", "--force", name]));
            }
        }
        if !std::thread::panicking() {
            self.stop_containerd();
        }
    }
}

/// All processes: identifier, command line and parent.
fn processes() -> impl Iterator<Item = (i32, String, i32)> {
    let entries = fs::read_dir("/proc").expect("processes");
    entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let id = entry.file_name().to_str()?.parse().ok()?;
        let command = fs::read(entry.path().join("cmdline")).ok()?;
        // After the name, which is in parentheses and can be anything: state, parent.
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
        let is_dead = fields.next()? == "Z";
        let parent = fields.next()?.parse().ok()?;
        (!is_dead).then(|| (id, String::from_utf8_lossy(&command).into_owned(), parent))
    })
}

fn saying_to(output: &str, script: &str) -> String {
    format!("exec >/mnt/{output}; {script}")
}

fn next() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
