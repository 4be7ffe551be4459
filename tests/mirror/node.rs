//! A daemon with a mirror in front of an upstream.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::harness::layout::{Compression, Layout};
use crate::harness::line::Line;
use crate::harness::peersync::{Daemon, Mount, Peersync};
use crate::harness::registry::{Registry, free_address};
use crate::harness::{scratch, wait_until};

/// What happens at once does within this.
pub(crate) const SOON: Duration = Duration::from_secs(30);

pub(crate) struct Node {
    // In this order: the mount goes, then the daemon, then the store.
    mount: Mount,
    daemon: Option<Daemon>,
    pub(crate) peersync: Peersync,
    config: String,
    pub(crate) mirror: SocketAddr,
    pub(crate) listen: SocketAddr,
}

impl Node {
    /// With `upstream` as the default registry.
    pub(crate) fn start(upstream: &str) -> Self {
        Self::with(upstream, "", "")
    }

    /// With more in `[mirror]`, and sections besides; `LISTEN` stands for the
    /// address of its swarm tunnels.
    pub(crate) fn with(upstream: &str, mirror_keys: &str, more: &str) -> Self {
        let (peersync, mirror, listen) = (Peersync::new(), free_address(), free_address());
        let point = peersync.mount_point();
        let mount = Mount::watch(&point);
        let more = more.replace("LISTEN", &listen.to_string());
        let config = format!(
            "[store]\npath = {:?}\n[mount]\npath = {point:?}\n[snapshotter]\nsocket = ''\n\
             [mirror]\nlisten = '{mirror}'\nupstream = '{upstream}'\n{mirror_keys}\n\
             [registry]\nhosts_dir = {:?}\n{more}",
            peersync.store(),
            // It is not there unless a test makes it.
            peersync.path("hosts"),
        );
        let mut node = Self { mount, daemon: None, peersync, config, mirror, listen };
        node.restart();
        node
    }

    /// Has it begin anew with one thing in its configuration in another's place.
    pub(crate) fn reconfigure(&mut self, from: &str, to: &str) {
        assert!(self.config.contains(from));
        self.config = self.config.replace(from, to);
        self.restart();
    }

    /// Ends the daemon as systemd does, and starts it again.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let daemon = Daemon::start(&self.peersync, &self.config, &self.mount.path);
        self.daemon = Some(daemon);
        let mirror = self.mirror;
        wait_until("the mirror answers", SOON, || std::net::TcpStream::connect(mirror).is_ok());
    }

    pub(crate) fn stop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            assert_eq!(daemon.stop(), Some(0), "the daemon ends well");
        }
    }

    /// Largest resident memory of the process so far, in KiB.
    pub(crate) fn peak(&self) -> u64 {
        let owner = self.peersync.owner().expect("the daemon");
        let status = std::fs::read_to_string(format!("/proc/{owner}/status")).expect("status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse().expect("kB")
    }

    pub(crate) fn counter(&self, name: &str) -> u64 {
        let status = self.peersync.status();
        status["counters"][name].as_u64().unwrap_or_else(|| panic!("no {name} in {status}"))
    }

    /// Bytes that the files of the store take on the disk.
    pub(crate) fn stored(&self) -> u64 {
        fn below(dir: &Path) -> u64 {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            let sizes = entries.map(|entry| match entry.metadata() {
                Ok(meta) if meta.is_dir() => below(&entry.path()),
                Ok(meta) => meta.len(),
                Err(_) => 0,
            });
            sizes.sum()
        }
        ["objects", "staging"].iter().map(|dir| below(&self.peersync.store().join(dir))).sum()
    }
}

/// A registry behind a line that counts, with an image of a few layers in it.
pub(crate) struct World {
    pub(crate) line: Line,
    pub(crate) registry: Option<Registry>,
    pub(crate) layout: Layout,
    /// The manifest's digest.
    pub(crate) manifest: String,
    pub(crate) layers: Vec<String>,
    pub(crate) place: tempfile::TempDir,
}

impl World {
    /// `test/image:v1`: two layers that do not compress, of 3 MiB and of `large` bytes.
    pub(crate) fn new(large: usize) -> Self {
        let (place, registry) = (scratch(), Registry::start());
        let mut layout = Layout::create(&place.path().join("oci"));
        let streams = [tar("small", 3 << 20), tar("large", large)];
        let manifest = layout.image("v1", &streams, Compression::Gzip);
        registry.push(&layout.dir, "v1", "test/image:v1");
        let text = crate::harness::layout::read_manifest(&layout.dir, "v1");
        let layers = text["layers"].as_array().expect("layers").iter();
        let layers = layers.map(|l| l["digest"].as_str().expect("digest").to_owned()).collect();
        let line = Line::to(registry.address);
        Self { line, registry: Some(registry), layout, manifest, layers, place }
    }

    pub(crate) fn upstream(&self) -> String {
        self.line.address.to_string()
    }

    /// The bytes of a blob.
    pub(crate) fn blob(&self, digest: &str) -> Vec<u8> {
        std::fs::read(self.layout.blob_path(digest)).expect("blob")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }
}

/// A tar of one file of bytes that look random, and differ by name.
pub(crate) fn tar(name: &str, length: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(length as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let bytes = noise(name, length);
    builder.append_data(&mut header, format!("data/{name}"), &bytes[..]).expect("entry");
    builder.into_inner().expect("tar")
}

/// Bytes that no compressor makes smaller.
pub(crate) fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// `/v2/test/image/blobs/DIGEST`.
pub(crate) fn blob(digest: &str) -> String {
    format!("/v2/test/image/blobs/{digest}")
}
