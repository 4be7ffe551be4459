//! A look at the machine: everything that can fail is a fact, nothing an error.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::statfs::{FsType, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::Pid;

use super::containerd::imports;
use super::{
    Access, ContainerdConfig, ContainerdError, Disk, Facts, Listener, ListenerState, Settings,
    SocketState, machine,
};

/// Largest configuration file that is read.
const CONFIG_MAX: u64 = 4 << 20;
/// Most files that a configuration is made of.
const IMPORTS_MAX: usize = 64;

/// Names of file systems by their magic number (statfs(2)).
const KINDS: &[(i64, &str)] = &[
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xf2f5_2010, "f2fs"),
    (0x794c_7630, "overlay"),
    (0x0102_1994, "tmpfs"),
    (0x6969, "nfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "cifs"),
    (0x6573_5546, "fuse"),
    (0x0102_1997, "9p"),
];

/// Gathers what [`super::check`] judges. Reads only, and binds each address for a
/// moment to see whether it is free. Takes milliseconds.
pub fn collect(settings: &Settings) -> Facts {
    let root = nix::unistd::geteuid().is_root();
    let daemon = daemon(&settings.socket);
    let containerd = containerd(&settings.containerd_config);
    Facts {
        root,
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().into(),
        fuse: fuse(),
        fuse_mount: root.then(machine::mount_fuse).map(|tried| tried.map_err(|e| e.to_string())),
        overlayfs: overlayfs(),
        disk: disk(&settings.store).map_err(|error| error.to_string()),
        socket: socket(&settings.socket),
        loaded: containerd.as_ref().and_then(|config| loaded(config.as_ref().ok()?)),
        containerd,
        listeners: settings.listeners.iter().map(|l| (l.clone(), listener(l, daemon))).collect(),
        now: SystemTime::now(),
        latest_change: latest_change(settings),
        clock_synchronised: machine::clock_synchronised(),
    }
}

fn fuse() -> Access {
    match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Ok(_) => Access::Open,
        Err(error) if error.kind() == ErrorKind::NotFound => Access::Missing,
        Err(error) => Access::Refused(error.to_string()),
    }
}

/// Modules are loaded when they are first mounted: one that is there counts.
fn overlayfs() -> Option<bool> {
    let known = fs::read_to_string("/proc/filesystems").ok()?;
    if known.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay") {
        return Some(true);
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let modules = Path::new("/lib/modules").join(release.trim()).join("kernel/fs/overlayfs");
    Some(modules.is_dir())
}

fn disk(store: &Path) -> io::Result<Disk> {
    let place = store
        .ancestors()
        .find(|place| place.is_dir())
        .ok_or_else(|| io::Error::from(ErrorKind::NotFound))?;
    let kind = kind_of(statfs(place)?.filesystem_type());
    let numbers = statvfs(place)?;
    let block = numbers.fragment_size();
    let inodes = numbers.files();
    Ok(Disk {
        kind,
        total: numbers.blocks().saturating_mul(block),
        free: numbers.blocks_available().saturating_mul(block),
        inodes_free: (inodes > 0).then(|| numbers.files_available()),
        read_only: numbers.flags().contains(FsFlags::ST_RDONLY),
    })
}

fn kind_of(FsType(magic): FsType) -> String {
    // Its width differs between C libraries.
    #[allow(clippy::cast_lossless, clippy::unnecessary_cast)]
    let magic = magic as i64;
    let known = KINDS.iter().find(|(number, _)| *number == magic & 0xffff_ffff);
    known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned())
}

fn socket(path: &Path) -> SocketState {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return SocketState::Missing,
        Err(error) => return SocketState::Refused(error.to_string()),
        Ok(found) if !found.file_type().is_socket() => return SocketState::NotASocket,
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => SocketState::Answers,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => SocketState::Stale,
        Err(error) => SocketState::Refused(error.to_string()),
    }
}

fn containerd(path: &Path) -> Option<Result<ContainerdConfig, ContainerdError>> {
    match read(path) {
        Err(ContainerdError::Read { .. }) if !path.exists() => None,
        Err(error) => Some(Err(error)),
        Ok(text) => {
            Some(with_imports(path, text).and_then(|files| ContainerdConfig::parse(&files)))
        }
    }
}

/// The main file and what it imports, breadth first, each once.
fn with_imports(path: &Path, text: String) -> Result<Vec<(PathBuf, String)>, ContainerdError> {
    let mut files = vec![(path.to_owned(), text)];
    let mut next = 0;
    while let Some((path, text)) = files.get(next) {
        next += 1;
        let directory = path.parent().unwrap_or(Path::new("/")).to_owned();
        for import in imports(path, text)? {
            for found in expand(&directory.join(import)) {
                if files.len() < IMPORTS_MAX && files.iter().all(|(known, _)| *known != found) {
                    let text = read(&found)?;
                    files.push((found, text));
                }
            }
        }
    }
    Ok(files)
}

/// The files that a path names whose last part may hold one `*`, in order.
fn expand(pattern: &Path) -> Vec<PathBuf> {
    let name = pattern.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let Some((start, end)) = name.split_once('*') else { return vec![pattern.to_owned()] };
    let Some(Ok(entries)) = pattern.parent().map(fs::read_dir) else { return Vec::new() };
    let matches = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
    };
    let mut found: Vec<PathBuf> =
        entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(matches).collect();
    found.sort();
    found
}

fn read(path: &Path) -> Result<String, ContainerdError> {
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(CONFIG_MAX).read_to_string(&mut text)).map_err(
        |error| ContainerdError::Read { path: path.to_owned(), reason: error.to_string() },
    )?;
    Ok(text)
}

/// Asks containerd what it has loaded, by its own client.
fn loaded(config: &ContainerdConfig) -> Option<Result<Vec<String>, String>> {
    let mut ctr = Command::new("ctr");
    ctr.args(["--connect-timeout", "2s", "--timeout", "5s", "--address", &config.address]);
    match ctr.args(["plugins", "ls"]).stdin(Stdio::null()).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => Some(Err(error.to_string())),
        Ok(output) if output.status.success() => {
            Some(Ok(super::containerd::loaded(&String::from_utf8_lossy(&output.stdout))))
        }
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or_default();
            Some(Err(last.chars().take(200).collect()))
        }
    }
}

/// Who answers on the snapshotter's socket.
fn daemon(socket: &Path) -> Option<Pid> {
    let stream = UnixStream::connect(socket).ok()?;
    getsockopt(&stream, PeerCredentials).ok().map(|peer| Pid::from_raw(peer.pid()))
}

fn listener(listener: &Listener, daemon: Option<Pid>) -> ListenerState {
    let tcp = TcpListener::bind(listener.address).map(drop);
    let bound = match listener.udp {
        true => tcp.and_then(|()| UdpSocket::bind(listener.address).map(drop)),
        false => tcp,
    };
    match bound {
        Ok(()) => ListenerState::Free,
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let has_it = |pid| machine::listens(pid, listener.address.port());
            match daemon {
                // Where that can't be told, it is most likely the one asked about.
                Some(pid) if has_it(pid).unwrap_or(true) => ListenerState::Ours,
                _ => ListenerState::InUse,
            }
        }
        Err(error) => ListenerState::Refused(error.to_string()),
    }
}

/// The latest modification of a few files that are written often.
fn latest_change(settings: &Settings) -> Option<SystemTime> {
    let places: [&Path; 4] =
        [&settings.store, &settings.containerd_config, Path::new("/etc"), Path::new("/var/log")];
    places.iter().filter_map(|place| fs::metadata(place).ok()?.modified().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collects_on_any_machine_without_changing_it() {
        let mounts = || fs::read_to_string("/proc/self/mountinfo").unwrap();
        let place = tempfile::tempdir().unwrap();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken =
            (Listener { key: "a", address: taken.local_addr().unwrap(), udp: false }, taken);
        let settings = Settings {
            store: place.path().join("not/yet/there"),
            min_free: 0,
            socket: place.path().join("s.sock"),
            stack_depth: 1,
            containerd_config: place.path().join("config.toml"),
            listeners: vec![taken.0.clone()],
        };
        let facts = collect(&settings);
        assert!(!mounts().contains("peersync-doctor"), "what was tried is gone");
        assert!(facts.disk.is_ok_and(|disk| disk.total > 0));
        assert_eq!(facts.socket, SocketState::Missing);
        assert_eq!(facts.containerd, None);
        assert_eq!(facts.listeners, [(taken.0.clone(), ListenerState::InUse)]);
        // As soon as this very process is the daemon, the port is its own.
        let _daemon = std::os::unix::net::UnixListener::bind(&settings.socket).unwrap();
        assert_eq!(collect(&settings).listeners, [(taken.0, ListenerState::Ours)]);
        fs::remove_file(&settings.socket).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn imports_are_followed_in_order_and_circles_end() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        let main = "imports = [\"conf.d/*.toml\", \"config.toml\"]";
        fs::write(at("config.toml"), main).unwrap();
        fs::create_dir(at("conf.d")).unwrap();
        let plugin = |address: &str| {
            format!("[proxy_plugins.p]\ntype = \"snapshot\"\naddress = \"{address}\"")
        };
        fs::write(at("conf.d/1.toml"), plugin("/one")).unwrap();
        fs::write(at("conf.d/2.toml"), plugin("/two")).unwrap();
        fs::write(at("conf.d/3.bak"), plugin("/three")).unwrap();
        let config = containerd(&at("config.toml")).unwrap().unwrap();
        assert_eq!(config.files.len(), 3);
        assert_eq!(config.snapshotter_at("/two"), Some("p"));
        fs::write(at("conf.d/2.toml"), "][").unwrap();
        assert!(matches!(containerd(&at("config.toml")), Some(Err(ContainerdError::Parse { .. }))));
    }

    #[test]
    fn sockets_are_told_apart() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("s.sock");
        let live = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(socket(&path), SocketState::Answers);
        drop(live);
        assert_eq!(socket(&path), SocketState::Stale);
        assert_eq!(socket(place.path()), SocketState::NotASocket);
    }
}
