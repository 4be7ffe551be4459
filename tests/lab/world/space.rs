//! A network namespace: its devices, its counters, and what runs inside.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};
use serde_json::Value;

use crate::harness::tool;

/// A namespace by its name; the lab's guard removes it.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    pub(crate) name: String,
}

/// Bytes over a device since it was made, with headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// Came in by the device.
    pub(crate) received: u64,
    /// Left by the device.
    pub(crate) sent: u64,
}

impl Space {
    pub(super) fn create(name: String) -> Self {
        tool("ip", &["netns", "add", &name]);
        let space = Self { name };
        space.ip("link set lo up");
        space
    }

    /// The file that stands for it.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Commands of `ip`, one a line, in this namespace.
    #[track_caller]
    pub(crate) fn ip(&self, commands: &str) {
        self.batch("ip", commands);
    }

    /// Commands of `tc`, one a line, in this namespace.
    #[track_caller]
    pub(super) fn tc(&self, commands: &str) {
        self.batch("tc", commands);
    }

    #[track_caller]
    fn batch(&self, program: &str, commands: &str) {
        let mut command = Command::new(program);
        command.args(["-n", &self.name, "-batch", "-"]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        let mut input = child.stdin.take().expect("piped");
        input.write_all(commands.as_bytes()).expect("feed a batch");
        drop(input);
        let output = child.wait_with_output().expect("batch");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} in {}: {said}\n{commands}", self.name);
    }

    /// A rule of iptables in this namespace.
    #[track_caller]
    pub(crate) fn iptables(&self, rule: &str) {
        crate::harness::run(self.command("iptables").arg("-w").args(rule.split(' ')));
    }

    /// A program that will run here. Only the network is another one: mounts that
    /// it makes are seen everywhere.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program);
        command
    }

    /// Runs something on a thread of its own in here: sockets and devices that it
    /// opens belong here.
    pub(crate) fn enter<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let space = File::open(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
                setns(space, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
                run()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What a device has carried.
    pub(crate) fn carried(&self, device: &str) -> Carried {
        let said = tool("ip", &["-n", &self.name, "-j", "-s", "link", "show", "dev", device]);
        let said: Value = serde_json::from_str(&said).expect("JSON of ip");
        let bytes = |way: &str| said[0]["stats64"][way]["bytes"].as_u64().expect("a counter");
        Carried { received: bytes("rx"), sent: bytes("tx") }
    }
}

impl Carried {
    /// What was carried since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { received: self.received - before.received, sent: self.sent - before.sent }
    }
}
