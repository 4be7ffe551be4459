//! A real registry on loopback.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Running, run, scratch, wait_until};

/// `docker-registry` with its own storage; ended when dropped.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    // In this order: the process ends before its directory goes.
    _process: Running,
    _storage: tempfile::TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        // Between choosing a port and binding it somebody else may take it.
        for _ in 0..5 {
            if let Some(registry) = Self::start_at(free_address(), &[]) {
                return registry;
            }
        }
        panic!("docker-registry does not start");
    }

    /// At an address, unless that is taken; `before` is what runs it, in another
    /// network for instance.
    pub(crate) fn start_at(address: SocketAddr, before: &[String]) -> Option<Self> {
        let storage = scratch();
        let config = storage.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  delete: {{enabled: true}}\n  \
             filesystem: {{rootdirectory: {}}}\nhttp: {{addr: {address}}}\n",
            storage.path().join("data").display()
        );
        fs::write(&config, text).expect("registry configuration");
        let mut words = before.iter().map(String::as_str).chain(["docker-registry", "serve"]);
        let mut command = Command::new(words.next().expect("a program"));
        let mut process = Running::start(command.args(words).arg(&config));
        let mut ended = false;
        wait_until("the registry answers", Duration::from_secs(20), || {
            ended = process.wait(Duration::ZERO).is_some();
            ended || TcpStream::connect(address).is_ok()
        });
        (!ended).then_some(Self { address, _process: process, _storage: storage })
    }

    /// Copies an image of a layout into the registry, as it is.
    pub(crate) fn push(&self, layout: &Path, tag: &str, name: &str) {
        let from = format!("oci:{}:{tag}", layout.display());
        let to = format!("docker://{}/{name}", self.address);
        let options =
            ["--insecure-policy", "copy", "-q", "--dest-tls-verify=false", "--preserve-digests"];
        run(Command::new("skopeo").args(options).args([from, to]));
    }
}

/// An address on loopback that was free a moment ago.
pub(crate) fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("free port");
    listener.local_addr().expect("address")
}
