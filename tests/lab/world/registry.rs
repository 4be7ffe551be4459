//! The lab's registry: a real one, in a namespace of its own.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::Process;
use super::space::Space;
use super::topology::REGISTRY;
use crate::harness::{run, wait_until};

/// `docker-registry`; it can be stopped and started again with what it holds.
pub(crate) struct Registry {
    space: Space,
    directory: PathBuf,
    process: Option<Process>,
}

impl Registry {
    pub(super) fn new(space: Space, directory: PathBuf) -> Self {
        fs::create_dir_all(&directory).expect("registry directory");
        Self { space, directory, process: None }
    }

    /// Starts it and waits until it answers.
    pub(crate) fn start(&mut self) {
        let config = self.directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
             http: {{addr: {REGISTRY}}}\n",
            self.directory.join("data").display()
        );
        fs::write(&config, text).expect("registry configuration");
        let mut command = self.space.command("docker-registry");
        let mut process =
            Process::start(command.arg("serve").arg(&config), &self.directory.join("log"));
        wait_until("the registry answers", Duration::from_secs(20), || {
            assert!(process.ended().is_none(), "the registry ended");
            self.space.enter(|| TcpStream::connect(REGISTRY).is_ok())
        });
        self.process = Some(process);
    }

    /// From now on connections are refused.
    pub(crate) fn stop(&mut self) {
        self.process.take().expect("the registry runs").kill();
    }

    /// Copies an image of a layout into it, as it is; gives its whole name. This
    /// does not use the line.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let from = format!("oci:{}:{tag}", layout.display());
        let whole = format!("{REGISTRY}/{name}");
        let mut command = self.space.command("skopeo");
        command.args(["--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]);
        run(command.args(["--preserve-digests", &from, &format!("docker://{whole}")]));
        whole
    }

    /// As [`Registry::push`], with the image's index beside it. Nor does this use
    /// the line.
    pub(crate) fn push_indexed(&self, layout: &Path, tag: &str, name: &str) -> String {
        let whole = self.push(layout, tag, name);
        let store = tempfile::tempdir_in(&self.directory).expect("store");
        for what in ["build", "push"] {
            let mut command = self.space.command(env!("CARGO_BIN_EXE_peersync"));
            command.env("PEERSYNC_REGISTRY_PLAIN_HTTP", format!("[\"{REGISTRY}\"]"));
            command.arg("--store").arg(store.path()).args(["index", what, &whole]);
            run(&mut command);
        }
        whole
    }
}
