//! The Docker daemon, which can be given mirrors of Docker Hub and of nothing else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Running, needs_mounts, output, run, wait_until};
use crate::node::{Node, SOON, World};

/// A daemon with a place of its own, ended when dropped.
struct Docker {
    process: Running,
    client: PathBuf,
    socket: PathBuf,
    place: tempfile::TempDir,
}

/// Where `tests/run` unpacks it, or the system has it.
fn program(name: &str) -> Option<PathBuf> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/lab/docker/usr");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = [unpacked.join("sbin"), unpacked.join("bin")];
    let mut places = places.into_iter().chain(std::env::split_paths(&path));
    places.find_map(|place| Some(place.join(name)).filter(|program| program.exists()))
}

impl Docker {
    /// With the snippet that users are given.
    fn start(node: &Node) -> Option<Self> {
        let (daemon, client) = program("dockerd").zip(program("docker"))?;
        // A socket's path is short, a build directory's may not be.
        let place = tempfile::Builder::new().prefix("psd-").tempdir().expect("directory");
        let snippet = include_str!("../../packaging/mirror/daemon.json");
        let config = place.path().join("daemon.json");
        let text = snippet.replace("127.0.0.1:5005", &node.mirror.to_string());
        fs::write(&config, text).expect("configuration");
        let socket = place.path().join("sock");
        let mut command = Command::new(daemon);
        command.arg("--config-file").arg(&config);
        for (option, name) in [("data-root", "data"), ("exec-root", "exec"), ("pidfile", "pid")] {
            command.arg(format!("--{option}")).arg(place.path().join(name));
        }
        command.arg("--host").arg(format!("unix://{}", socket.display()));
        // Nothing of the machine's network is touched.
        command.args(["--iptables=false", "--ip6tables=false", "--bridge=none"]);
        command.arg("--storage-driver=vfs");
        let process = Running::start(&mut command);
        let docker = Self { process, client, socket, place };
        wait_until("docker answers", Duration::from_secs(60), || {
            output(&mut docker.command(&["version"])).status.success()
        });
        Some(docker)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.client);
        command.env("DOCKER_CONFIG", self.place.path().join("config")).arg("--host");
        command.arg(format!("unix://{}", self.socket.display())).args(arguments);
        command
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // What it has started ends with it only where it is asked to end.
        let _ = kill(Pid::from_raw(self.process.id()), Signal::SIGTERM);
        self.process.wait(SOON);
    }
}

#[test]
fn docker() {
    needs_mounts!();
    let world = World::new(4 << 20);
    let node = Node::start("docker.io");
    // Docker Hub, as far as this node knows.
    let hosts = node.peersync.path("hosts/docker.io");
    fs::create_dir_all(&hosts).expect("directory");
    let hub = format!("server = \"http://{}\"\n", world.upstream());
    fs::write(hosts.join("hosts.toml"), hub).expect("hosts.toml");
    let Some(docker) = Docker::start(&node) else {
        eprintln!("skipped: needs dockerd");
        return;
    };
    let pulls = |name: &str| {
        let image = format!("test/image{name}");
        let before = world.line.down();
        run(&mut docker.command(&["pull", "-q", &image]));
        let crossed = world.line.down() - before;
        let id = run(&mut docker.command(&["images", "-q", "test/image"]));
        run(&mut docker.command(&["rmi", "--force", id.trim()]));
        crossed
    };
    let whole: u64 = world.layers.iter().map(|layer| world.blob(layer).len() as u64).sum();
    let first = pulls(":v1");
    assert!((whole..whole + 64_000).contains(&first), "{first} for {whole} bytes");
    let again = pulls(":v1");
    assert!(again < 4_000, "the tag is asked for, and no more: {again}");
    assert_eq!(pulls(&format!("@{}", world.manifest)), 0);
}
