//! A node: `peersync daemon` with its own store and mount, in its own namespace.

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use super::process::Process;
use super::space::Space;
use super::topology::{REGISTRY, address};
use crate::harness::peersync::{Mount, is_mounted};
use crate::harness::{run, wait_until};

const STARTS: Duration = Duration::from_secs(30);
/// A mount that lasts longer hangs, unless the test says otherwise.
const LASTS: Duration = Duration::from_secs(300);

/// A node; at first it does not run.
pub(crate) struct Node {
    pub(crate) lan: u8,
    pub(crate) number: u8,
    pub(crate) space: Space,
    directory: PathBuf,
    environment: Vec<(String, String)>,
    lasts: Duration,
    // In this order: what waits at the mount is let go, then the daemon ends.
    mount: Option<Mount>,
    process: Option<Process>,
}

impl Node {
    pub(super) fn new(lan: u8, number: u8, space: Space, directory: PathBuf) -> Self {
        for name in ["mnt", "hosts"] {
            fs::create_dir_all(directory.join(name)).expect("node directory");
        }
        let environment = Vec::new();
        Self {
            lan,
            number,
            space,
            directory,
            environment,
            lasts: LASTS,
            mount: None,
            process: None,
        }
    }

    /// A setting of its daemon and commands, from the next start on.
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// How long its mount may last, from the next start on.
    pub(crate) fn may_last(&mut self, limit: Duration) {
        self.lasts = limit;
    }

    pub(crate) fn address(&self) -> Ipv4Addr {
        address(self.lan, self.number)
    }

    /// A path for the node's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The node's whole configuration: what every node of the lab has, and
    /// sections that a test adds.
    fn configuration(&self, more: &str) -> String {
        format!(
            "[store]\npath = {:?}\n[mount]\npath = {:?}\n[snapshotter]\nsocket = \"\"\n\
             [registry]\nhosts_dir = {:?}\nplain_http = [\"{REGISTRY}\"]\n{more}",
            self.path("store"),
            self.path("mnt"),
            self.path("hosts"),
        )
    }

    /// Starts the daemon and waits for its mount. `more` is added to its
    /// configuration.
    pub(crate) fn start(&mut self, more: &str) {
        let file = self.path("config.toml");
        fs::write(&file, self.configuration(more)).expect("configuration");
        let mount = self.path("mnt");
        let guard = Mount::watch_for(&mount, self.lasts);
        let mut command = self.command(&["daemon"]);
        let mut process = Process::start(&mut command, &self.path("log"));
        wait_until("the daemon's mount answers", STARTS, || {
            assert!(process.ended().is_none(), "the daemon ended");
            is_mounted(&mount)
        });
        (self.mount, self.process) = (Some(guard), Some(process));
    }

    /// A `peersync` command of this node.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = self.space.command(env!("CARGO_BIN_EXE_peersync"));
        command.env("DOCKER_CONFIG", self.path("docker")).env("XDG_CONFIG_HOME", self.path("xdg"));
        // How full this machine's disk is is not part of a test.
        command.env("PEERSYNC_STORE_MIN_FREE", "0");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.arg("--config").arg(self.path("config.toml"));
        command.arg("--store").arg(self.path("store")).args(arguments);
        command
    }

    /// Runs a command that must succeed and gives its standard output.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        run(&mut self.command(arguments))
    }

    pub(crate) fn status(&self) -> Value {
        let text = self.run(&["--json", "status"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Bytes of content from a source, as the node counts them. A source that it
    /// has never heard of fails the test.
    #[track_caller]
    pub(crate) fn bytes(&self, source: &str) -> u64 {
        let status = self.status();
        status["bytes"][source].as_u64().unwrap_or_else(|| panic!("no {source} in {status}"))
    }

    /// Where an image shows.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        self.path("mnt/images").join(name)
    }

    pub(crate) fn process(&self) -> &Process {
        self.process.as_ref().expect("the daemon runs")
    }

    pub(crate) fn runs(&self) -> bool {
        self.process.is_some()
    }

    /// What it counts of a source, by the counters' own names.
    #[track_caller]
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let status = self.status();
        status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// The nodes that it has tunnels to.
    pub(crate) fn peers(&self) -> Vec<Value> {
        let text = self.run(&["--json", "peers"]);
        let said: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
        said["peers"].as_array().expect("a list").clone()
    }

    /// Ends the daemon as systemd does.
    #[track_caller]
    pub(crate) fn stop(&mut self) {
        let status = self.process.take().expect("the daemon runs").stop();
        self.mount = None;
        assert!(status.success(), "the daemon ended badly: {status}");
    }

    /// The machine loses power: the daemon is gone at once, its store stays.
    pub(crate) fn kill(&mut self) {
        self.process.take().expect("the daemon runs").kill();
        self.mount = None;
    }

    /// The daemon stops to answer, but its connections stay.
    pub(crate) fn freeze(&self) {
        self.process().signal(Signal::SIGSTOP);
    }

    /// After [`Node::freeze`].
    pub(crate) fn thaw(&self) {
        self.process().signal(Signal::SIGCONT);
    }
}
