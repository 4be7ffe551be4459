//! The built daemon as containerd's plugin: its own store, FUSE mount and socket.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::harness::peersync::{Mount, Peersync, is_mounted};
use crate::harness::{Running, wait_until};
use crate::plugin::Plugin;

/// How long a daemon may take to answer, and to end.
const LIMIT: Duration = Duration::from_secs(60);

/// `peersync daemon`, which can be stopped, killed and started again.
pub(crate) struct Node {
    // In this order: the mount goes, then the daemon, then the store.
    mount: Mount,
    process: Option<Running>,
    pub(crate) peersync: Peersync,
    socket: PathBuf,
    state: PathBuf,
    more: String,
    budget: Option<u64>,
}

impl Node {
    /// Not started yet; `more` goes on with `[mount]` of its configuration.
    pub(crate) fn new(socket: &Path, more: &str) -> Self {
        let peersync = Peersync::new();
        let mount = Mount::watch(&peersync.mount_point());
        let state = peersync.store().join("snapshotter");
        Self {
            mount,
            process: None,
            socket: socket.to_owned(),
            state,
            more: more.into(),
            budget: None,
            peersync,
        }
    }

    /// With a store that holds at most so many bytes.
    pub(crate) fn holding(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }

    /// Where its tree is mounted.
    pub(crate) fn tree(&self) -> &Path {
        &self.mount.path
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.process.as_ref().expect("the daemon runs").id())
    }

    /// Starts it without waiting: it may end with an error.
    pub(crate) fn launch(&self) -> Running {
        let file = self.peersync.path("config.toml");
        let config = format!(
            "[store]\npath = {:?}\n[snapshotter]\nsocket = {:?}\n[mount]\npath = {:?}\n{}",
            self.peersync.store(),
            self.socket,
            self.mount.path,
            self.more
        );
        fs::write(&file, config).expect("configuration");
        // All that it has to say: nothing of it may be a secret.
        let config =
            [OsStr::new("-vv"), OsStr::new("--config"), file.as_os_str(), OsStr::new("daemon")];
        let mut command = self.peersync.command(&config);
        command.envs(self.budget.map(|bytes| ("PEERSYNC_STORE_MAX_SIZE", bytes.to_string())));
        Running::start(&mut command)
    }

    /// Ends it as systemd does; gives its status and what it said.
    pub(crate) fn end(&mut self) -> (Option<i32>, String) {
        let Some(process) = self.process.take() else { return (None, String::new()) };
        kill(Pid::from_raw(process.id()), Signal::SIGTERM).expect("signal");
        let output = process.finish(LIMIT);
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Kills it as a crash would.
    pub(crate) fn crash(&mut self) {
        kill(self.pid(), Signal::SIGKILL).expect("kill");
        self.crashed();
    }

    /// It was killed: waits for its end.
    pub(crate) fn crashed(&mut self) {
        let mut process = self.process.take().expect("the daemon ran");
        assert!(process.wait(LIMIT).is_some());
    }

    /// What a reboot leaves after a crash: neither mount nor socket.
    pub(crate) fn crash_with_the_machine(&mut self) {
        self.crash();
        umount2(&self.mount.path, MntFlags::MNT_DETACH).expect("the dead mount");
        fs::remove_file(&self.socket).expect("the old socket");
    }

    /// What `peersync layers` tells.
    pub(crate) fn layers(&self) -> Vec<Value> {
        let text = self.peersync.run(&["--json", "layers"]);
        let layers: Value = serde_json::from_str(&text).expect("JSON");
        let list = if layers.is_array() { &layers } else { &layers["layers"] };
        list.as_array().unwrap_or_else(|| panic!("{text}")).clone()
    }
}

impl Plugin for Node {
    fn socket(&self) -> &Path {
        &self.socket
    }

    fn state(&self) -> &Path {
        &self.state
    }

    fn start(&mut self) {
        let mut process = self.launch();
        wait_until("the daemon answers", LIMIT, || {
            if process.wait(Duration::ZERO).is_some() {
                return true;
            }
            is_mounted(&self.mount.path) && UnixStream::connect(&self.socket).is_ok()
        });
        if process.wait(Duration::ZERO).is_some() {
            let output = process.finish(LIMIT);
            panic!("the daemon ended: {}", String::from_utf8_lossy(&output.stderr));
        }
        self.process = Some(process);
    }

    fn stop(&mut self) {
        let (code, said) = self.end();
        assert_eq!(code, Some(0), "{said}");
        assert!(!is_mounted(&self.mount.path), "{said}");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            let (_, said) = self.end();
            if std::thread::panicking() {
                let from = said.len().saturating_sub(8000);
                eprintln!("--- the daemon\n{}", said.get(from..).unwrap_or(&said));
            }
        }
    }
}
