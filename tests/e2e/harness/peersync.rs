//! The built command with a store of its own, and guards that leave nothing behind.

use std::ffi::{CString, OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::Value;

use super::{Running, output, run, scratch, wait_until};

/// A mount that a test may touch at most this long: then the connection to the
/// kernel is cut and whoever waits gets an error, so that a hang is a failure.
const MOUNT_LIMIT: Duration = Duration::from_secs(300);
const OWNER_ENDS: Duration = Duration::from_secs(20);

/// One store and the command that works on it.
pub(crate) struct Peersync {
    directory: tempfile::TempDir,
}

/// A mounted image; unmounted when dropped.
pub(crate) struct Mount {
    pub(crate) path: PathBuf,
    /// Dropped before the watchdog fires.
    _watched: mpsc::Sender<()>,
}

impl Peersync {
    pub(crate) fn new() -> Self {
        Self::below(scratch())
    }

    /// With its store and mounts in a given directory.
    pub(crate) fn below(directory: tempfile::TempDir) -> Self {
        Self { directory }
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// A path for a test's own files, gone with the store.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_peersync"));
        // What the user who runs the tests has configured is not part of them.
        command.env("DOCKER_CONFIG", self.path("docker"));
        command.env("XDG_CONFIG_HOME", self.path("config"));
        // Daemons of tests run beside one another, and beside the machine's own.
        command.env("PEERSYNC_ADMIN_LISTEN", "127.0.0.1:0");
        // Nor is how full this machine's disk is.
        command.env("PEERSYNC_STORE_MIN_FREE", "0");
        command.arg("--store").arg(self.store()).args(arguments);
        command
    }

    /// Runs a command that must succeed and gives its standard output.
    #[track_caller]
    pub(crate) fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        run(&mut self.command(arguments))
    }

    /// Runs a command that must fail with a message, not by a signal or a panic.
    #[track_caller]
    pub(crate) fn fails<S: AsRef<OsStr>>(&self, arguments: &[S]) -> String {
        let output = output(&mut self.command(arguments));
        failure(&output)
    }

    /// Mounts an image on a new directory.
    #[track_caller]
    pub(crate) fn mount(&self, image: &str, options: &[&str]) -> Mount {
        let path = self.mount_point();
        let mut arguments: Vec<OsString> = vec!["mount".into()];
        arguments.extend(options.iter().map(OsString::from));
        arguments.extend([image.into(), path.clone().into()]);
        let guard = Mount::watch(&path);
        self.run(&arguments);
        assert!(is_mounted(&path), "the command returned, but nothing is mounted");
        guard
    }

    /// A new empty directory below the scratch directory.
    pub(crate) fn mount_point(&self) -> PathBuf {
        let parent = self.directory.path();
        tempfile::Builder::new().prefix("mnt-").tempdir_in(parent).expect("mount point").keep()
    }

    pub(crate) fn status(&self) -> Value {
        let text = self.run(&["--json", "status"]);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Bytes that came from the image's registry or layout since the owner
    /// started, as it counts them: content and indexes.
    pub(crate) fn registry_bytes(&self) -> u64 {
        let status = self.status();
        let count = |source: &str| status["bytes"][source].as_u64();
        let (content, index) = (count("registry"), count("index"));
        content.zip(index).map(|(c, i)| c + i).unwrap_or_else(|| panic!("no bytes in {status}"))
    }

    /// The process that owns the store: whoever listens on its control socket.
    pub(crate) fn owner(&self) -> Option<Pid> {
        let socket = UnixStream::connect(self.store().join("control.sock")).ok()?;
        let credentials = getsockopt(&socket, sockopt::PeerCredentials).ok()?;
        Some(Pid::from_raw(credentials.pid()))
    }

    /// Kills the owner as a crash would and waits until it is gone.
    pub(crate) fn crash(&self) {
        let owner = self.owner().expect("the store has an owner");
        kill(owner, Signal::SIGKILL).expect("kill the owner");
        wait_until("the owner is gone", OWNER_ENDS, || !is_alive(owner));
    }
}

impl Drop for Peersync {
    fn drop(&mut self) {
        for path in mounts_below(self.directory.path()) {
            detach(&path);
        }
        // An owner ends with its last mount; one that does not is in the way of
        // removing the store.
        if let Some(owner) = self.owner() {
            let _ = kill(owner, Signal::SIGTERM);
            for _ in 0..500 {
                if !is_alive(owner) {
                    return;
                }
                thread::sleep(Duration::from_millis(10));
            }
            eprintln!("owner {owner} of {:?} had to be killed", self.store());
            let _ = kill(owner, Signal::SIGKILL);
        }
        if thread::panicking() {
            self.show_logs();
        }
    }
}

impl Peersync {
    /// What the background owner said, for a test that failed.
    fn show_logs(&self) {
        let entries = fs::read_dir(self.store()).into_iter().flatten().flatten();
        let logs = entries.map(|entry| entry.path());
        for log in logs.filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let text = fs::read_to_string(&log).unwrap_or_default();
            let from = text.len().saturating_sub(8000);
            eprintln!("--- {}\n{}", log.display(), text.get(from..).unwrap_or(&text));
        }
    }
}

impl Mount {
    /// Guards a place that something is about to be mounted on.
    pub(crate) fn watch(path: &Path) -> Self {
        Self::watch_for(path, MOUNT_LIMIT)
    }

    /// As [`Mount::watch`], with a limit of its own.
    pub(crate) fn watch_for(path: &Path, limit: Duration) -> Self {
        let (sender, receiver) = mpsc::channel();
        let watched = path.to_owned();
        thread::spawn(move || {
            if receiver.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{watched:?} is mounted for {limit:?}: aborting its connection");
                abort(&watched);
            }
        });
        Self { path: path.to_owned(), _watched: sender }
    }

    pub(crate) fn join(&self, path: &str) -> PathBuf {
        self.path.join(path)
    }

    /// Unmounts through the command.
    #[track_caller]
    pub(crate) fn umount(self, peersync: &Peersync) {
        peersync.run(&[OsStr::new("umount"), self.path.as_os_str()]);
        assert!(!is_mounted(&self.path), "{:?} is still mounted", self.path);
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if thread::panicking() {
            abort(&self.path);
        }
        detach(&self.path);
    }
}

/// A failed command's message; a crash is no message.
#[track_caller]
pub(crate) fn failure(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code();
    assert!(code.is_some_and(|code| code != 0), "should fail: {}\n{said}", output.status);
    assert!(code != Some(101) && !said.contains("panicked"), "a panic is no message:\n{said}");
    assert!(!said.trim().is_empty(), "failed without a word");
    said
}

/// `peersync daemon` in the foreground, until it is dropped.
pub(crate) struct Daemon {
    process: Running,
}

impl Daemon {
    /// Starts it with a configuration and waits for its mount.
    pub(crate) fn start(peersync: &Peersync, config: &str, mount: &Path) -> Self {
        Self::start_with(peersync, config, mount, &[])
    }

    /// As [`Daemon::start`], with these in its environment.
    pub(crate) fn start_with(
        peersync: &Peersync,
        config: &str,
        mount: &Path,
        environment: &[(&str, &str)],
    ) -> Self {
        let file = peersync.path("config.toml");
        fs::write(&file, config).expect("configuration");
        let config = [OsStr::new("--config"), file.as_os_str(), OsStr::new("daemon")];
        let mut command = peersync.command(&config);
        command.envs(environment.iter().copied());
        let mut process = Running::start(&mut command);
        wait_until("the daemon's mount answers", Duration::from_secs(30), || {
            assert!(process.wait(Duration::ZERO).is_none(), "the daemon ended");
            is_mounted(mount)
        });
        Self { process }
    }

    /// Ends it as systemd does and waits.
    pub(crate) fn stop(mut self) -> Option<i32> {
        let _ = kill(Pid::from_raw(self.process.id()), Signal::SIGTERM);
        self.process.wait(OWNER_ENDS)?.code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.process.id()), Signal::SIGTERM);
        let _ = self.process.wait(OWNER_ENDS);
    }
}

pub(crate) fn is_alive(process: Pid) -> bool {
    // A zombie that nobody has waited for is not alive, once its last thread has
    // ended: until then it holds its files and their locks.
    let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = state.rsplit(") ").next().unwrap_or_default().chars().next();
    let threads = || fs::read_dir(format!("/proc/{process}/task")).map_or(0, Iterator::count);
    state.is_some_and(|state| (state != 'Z' && state != 'X') || threads() > 1)
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    mount_devices(path).next().is_some()
}

/// `MAJOR:MINOR` of what is mounted exactly there, without touching the mount.
fn mount_devices(path: &Path) -> impl Iterator<Item = String> {
    let table = fs::read("/proc/self/mountinfo").expect("mountinfo");
    let path = path.as_os_str().as_bytes().to_vec();
    let lines: Vec<Vec<u8>> = table.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    lines.into_iter().filter_map(move |line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
        (fields.nth(1)? == path).then_some(device)
    })
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    let mut found: Vec<PathBuf> =
        points.map(PathBuf::from).filter(|point| point.starts_with(directory)).collect();
    found.reverse();
    found
}

/// Cuts the kernel's connection to the file system: all who wait get ENOTCONN.
fn abort(path: &Path) {
    for device in mount_devices(path) {
        if let Some((_, minor)) = device.split_once(':') {
            let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
        }
    }
}

fn detach(path: &Path) {
    let Ok(path) = CString::new(path.as_os_str().as_bytes()) else {
        return;
    };
    if umount2(path.as_c_str(), MntFlags::MNT_DETACH).is_err() {
        let path = OsStr::from_bytes(path.as_bytes());
        if is_mounted(Path::new(path)) {
            let _ = output(Command::new("fusermount3").args([OsStr::new("-uz"), path]));
        }
    }
}
