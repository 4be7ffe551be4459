//! A long-lived program of the lab: its log in a file, ended by its id.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::unistd::Pid;

/// A daemon that is told to end has this long.
const ENDS: Duration = Duration::from_secs(20);
/// What is shown of a log when a test fails.
const LOG_TAIL: usize = 6000;

pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it; what it says is appended to the log.
    pub(super) fn start(command: &mut Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("log");
        let again = file.try_clone().expect("log");
        command.stdin(Stdio::null()).stdout(again).stderr(file);
        // Away from the terminal: Ctrl-C is the guard's business, in its order. A
        // shell that started the tests in the background has them ignore it.
        // SAFETY: setsid and sigaction are async-signal-safe and touch no memory of ours.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                signal(Signal::SIGINT, SigHandler::SigDfl)?;
                Ok(())
            });
        }
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.to_owned() }
    }

    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("process id"))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.id(), signal)
            .unwrap_or_else(|error| panic!("{signal} to {}: {error}", self.id()));
    }

    /// The end, if it has come.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Kills it as a crash or a power cut would.
    pub(super) fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Ends it as systemd does; gives how it ended.
    pub(super) fn stop(mut self) -> ExitStatus {
        self.end()
    }

    fn end(&mut self) -> ExitStatus {
        // One that a test has frozen can't end.
        let _ = kill(self.id(), Signal::SIGCONT);
        let _ = kill(self.id(), Signal::SIGTERM);
        let until = Instant::now() + ENDS;
        while Instant::now() < until {
            if let Some(status) = self.ended() {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        eprintln!("{} does not end: killed", self.id());
        let _ = self.child.kill();
        self.child.wait().expect("wait for a child")
    }

    /// The end of what it said.
    pub(crate) fn log(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(LOG_TAIL)..]).into_owned()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            self.end();
        }
        if thread::panicking() {
            eprintln!("--- {}\n{}", self.log.display(), self.log());
        }
    }
}
