//! Reaching the process that owns a store, and starting one where there is none.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tokio::net::UnixStream;

use super::Exit;
use super::args::Args;
use crate::admin::{Client, Event, FailureKind, Request, connect};
use crate::config::Config;
use crate::store::format::layout::OWNER_LOG as LOG;

/// The line by which a started owner says that it listens.
pub(super) const READY: &str = "ready";
/// A log longer than this is begun anew when an owner starts.
const LOG_MAX: u64 = 1 << 20;
/// Starts of an owner before giving up: another command's owner can end
/// between the look and the connection.
const STARTS_MAX: u32 = 5;

/// The store that a command is about, and how to reach it.
pub(super) struct Owner {
    pub(super) store: PathBuf,
    pub(super) config: Config,
    pub(super) config_path: Option<PathBuf>,
    pub(super) verbose: u8,
    pub(super) json: bool,
}

impl Owner {
    /// Reads the configuration and finds the store.
    pub(super) fn from_args(args: &Args) -> Result<Self, Exit> {
        let usage = |error: &dyn std::fmt::Display| Exit::new(FailureKind::Usage, error);
        let config =
            Config::load(args.config.as_deref(), std::env::vars()).map_err(|e| usage(&e))?;
        let store = match &args.store {
            Some(dir) => std::path::absolute(dir).map_err(|e| usage(&e))?,
            None if nix::unistd::geteuid().is_root() => config.store.path.clone(),
            None => user_store().ok_or_else(|| {
                usage(&"neither XDG_DATA_HOME nor HOME is set: name a store with --store DIR")
            })?,
        };
        Ok(Self {
            store,
            config,
            config_path: args.config.clone(),
            verbose: args.verbose,
            json: args.json,
        })
    }

    /// Sends a request to the store's owner, and gives every event to `seen`
    /// until the last one, which is the result.
    pub(super) fn ask(
        &self,
        request: &Request,
        mut seen: impl FnMut(&Event),
    ) -> Result<Event, Exit> {
        runtime()?.block_on(async {
            let mut client = Client::request(self.reach().await?, request).await?;
            loop {
                let event = client.event().await?;
                match event {
                    Event::Failed(failure) => return Err(failure.into()),
                    event if event.is_last() => return Ok(event),
                    event => seen(&event),
                }
            }
        })
    }

    async fn reach(&self) -> Result<UnixStream, Exit> {
        for _ in 0..STARTS_MAX {
            match connect(&self.store).await {
                Ok(stream) => return Ok(stream),
                Err(error) if is_absent(&error) => self.start()?,
                Err(error) => {
                    let message =
                        format!("store {}: control socket: {error}", self.store.display());
                    return Err(Exit::new(FailureKind::Failed, message));
                }
            }
        }
        let message = format!(
            "store {}: its owner ends as soon as it is started; see {}",
            self.store.display(),
            self.store.join(LOG).display()
        );
        Err(Exit::new(FailureKind::Failed, message))
    }

    /// Starts an owner and waits until it listens, or says why it can't.
    fn start(&self) -> Result<(), Exit> {
        let failed = |what: &str, error: io::Error| {
            Exit::new(
                FailureKind::Failed,
                format!("store {}: {what}: {error}", self.store.display()),
            )
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.store).map_err(|e| failed("can't be made", e))?;
        let program = std::env::current_exe().map_err(|e| failed("starting its owner", e))?;
        let mut command = Command::new(program);
        command.arg("--store").arg(&self.store).arg("serve");
        if let Some(config) = &self.config_path {
            command.arg("--config").arg(config);
        }
        command.args(std::iter::repeat_n("-v", self.verbose.max(1).into()));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command.stderr(self.log().map_err(|e| failed(LOG, e))?);
        // A session of its own: Ctrl-C at the terminal is not meant for the owner.
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
        }
        let mut child = command.spawn().map_err(|e| failed("starting its owner", e))?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said).map_err(|e| failed("its owner", e))?;
        }
        match said.trim() {
            READY => Ok(()),
            "" => Err(Exit::new(
                FailureKind::Failed,
                format!("store {0}: its owner did not start; see {0}/{LOG}", self.store.display()),
            )),
            message => match serde_json::from_str::<crate::admin::Failure>(message) {
                // Another command's owner was faster.
                Ok(failure) if failure.kind == FailureKind::Usage && connectable(&self.store) => {
                    Ok(())
                }
                Ok(failure) => Err(failure.into()),
                Err(_) => Err(Exit::new(FailureKind::Failed, message)),
            },
        }
    }

    fn log(&self) -> io::Result<std::fs::File> {
        let path = self.store.join(LOG);
        let long = std::fs::metadata(&path).is_ok_and(|m| m.len() > LOG_MAX);
        OpenOptions::new().create(true).append(!long).write(true).truncate(long).open(path)
    }
}

/// A runtime for one request: a single thread is enough.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Exit::new(FailureKind::Failed, format!("starting the runtime: {error}")))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn connectable(store: &Path) -> bool {
    std::os::unix::net::UnixStream::connect(store.join(crate::admin::SOCKET)).is_ok()
}

fn user_store() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("peersync"))
}
