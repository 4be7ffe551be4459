//! What the end-to-end tests stand on: the built command, real registries,
//! a line that can be slow, cut or stalled, hostile hosts, images and trees.

pub(crate) mod host;
pub(crate) mod indexed;
pub(crate) mod layout;
pub(crate) mod line;
pub(crate) mod member;
pub(crate) mod peersync;
pub(crate) mod registry;
pub(crate) mod tar;
pub(crate) mod tree;

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// No single command of a test takes longer; one that does is killed.
pub(crate) const COMMAND_LIMIT: Duration = Duration::from_secs(240);

/// Ends the test early where the machine lacks what it needs. In CI that is a
/// failure if the device is there: a test that never runs proves nothing.
macro_rules! needs_mounts {
    () => {
        if !$crate::harness::can_mount() {
            return;
        }
    };
}
pub(crate) use needs_mounts;

/// Root and `/dev/fuse`: what mounts, device nodes and foreign owners need.
pub(crate) fn can_mount() -> bool {
    let device = Path::new("/dev/fuse").exists();
    let root = nix::unistd::geteuid().is_root();
    if device && !root {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI these tests run as root");
    }
    if !(device && root) {
        eprintln!("skipped: needs root and /dev/fuse (there: {root}, {device})");
    }
    device && root
}

/// A directory of one test, on the disk of the build and gone afterwards.
pub(crate) fn scratch() -> tempfile::TempDir {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    tempfile::Builder::new().prefix("e2e-").tempdir_in(parent).expect("scratch directory")
}

/// Runs a command to its end and gives what it said; it must succeed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = output(command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// As [`run`], for a program and its arguments.
pub(crate) fn tool<S: AsRef<OsStr>>(program: &str, arguments: &[S]) -> String {
    run(Command::new(program).args(arguments))
}

/// Runs a command to its end, at most [`COMMAND_LIMIT`] long.
pub(crate) fn output(command: &mut Command) -> Output {
    Running::start(command).finish(COMMAND_LIMIT)
}

/// A child whose output is collected; killed by its id if it is dropped alive.
pub(crate) struct Running {
    child: Child,
    what: String,
    stdout: Said,
    stderr: Said,
}

/// What has come through a pipe so far, and whether its end has come.
#[derive(Clone, Default)]
struct Said(Arc<Pipe>);

#[derive(Default)]
struct Pipe {
    /// The bytes, and whether they are all.
    said: Mutex<(Vec<u8>, bool)>,
    ended: Condvar,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let what = format!("{command:?}");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Started in the background of a shell, the tests ignore Ctrl-C, and so
        // would whatever they start.
        // SAFETY: sigaction is async-signal-safe and touches no memory of ours.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(command, || {
                use nix::sys::signal::{SigHandler, Signal, signal};
                signal(Signal::SIGINT, SigHandler::SigDfl).map(drop).map_err(std::io::Error::from)
            });
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"));
        let stdout = Said::collect(child.stdout.take().expect("piped"));
        let stderr = Said::collect(child.stderr.take().expect("piped"));
        Self { child, what, stdout, stderr }
    }

    pub(crate) fn id(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process id")
    }

    /// Waits for the end; past the limit the child is killed and the test fails.
    pub(crate) fn finish(mut self, limit: Duration) -> Output {
        let Some(status) = self.wait(limit) else {
            let _ = self.child.kill();
            panic!("{} still runs after {limit:?}", self.what);
        };
        let (stdout, stderr) = (self.stdout.get(), self.stderr.get());
        Output { status, stdout, stderr }
    }

    /// The exit status, if it comes within the limit.
    pub(crate) fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                return Some(status);
            }
            if Instant::now() > until {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

impl Said {
    /// Gathers what comes, in the background.
    fn collect(mut pipe: impl Read + Send + 'static) -> Self {
        let said = Self::default();
        let shared = said.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            while let Ok(read @ 1..) = pipe.read(&mut buffer) {
                shared.0.said.lock().expect("output").0.extend_from_slice(&buffer[..read]);
            }
            shared.0.said.lock().expect("output").1 = true;
            shared.0.ended.notify_all();
        });
        said
    }

    /// All that was said. A background process may have inherited the pipe: then
    /// what comes within a moment after the command's end is what it said.
    fn get(&self) -> Vec<u8> {
        let Pipe { said, ended } = &*self.0;
        let moment = Duration::from_millis(500);
        let said = said.lock().expect("output");
        ended.wait_timeout_while(said, moment, |said| !said.1).expect("output").0.0.clone()
    }
}

/// Waits for something that no descriptor announces. The one place that polls.
#[track_caller]
pub(crate) fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// The small real image, made once of the machine's own packages.
pub(crate) fn lab_images() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| made_images("small"))
}

/// Images of a kind that `tests/lab/images.sh` knows, made if they are not there.
pub(crate) fn made_images(kind: &str) -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab/images.sh");
    PathBuf::from(run(Command::new(script).arg(kind)).trim_end())
}
