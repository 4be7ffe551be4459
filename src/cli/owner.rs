//! Reaching the process that owns a store, and starting one where there is none.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::UnixStream;

use super::Exit;
use super::args::Args;
use crate::admin::{Client, ClientError, Event, Failure, FailureKind, Request, connect};
use crate::config::Config;
use crate::store::format::layout::OWNER_LOG as LOG;

/// The line by which a started owner says that it listens.
pub(super) const READY: &str = "ready";
/// A log longer than this is begun anew when an owner starts.
const LOG_MAX: u64 = 1 << 20;
/// A request is made to so many owners: one can end, or be killed, between the
/// look and its first word.
const OWNERS_MAX: u32 = 5;

/// An owner that starts or ends is through with it after this time.
const CHANGE_OF_OWNER: Duration = Duration::from_secs(10);

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
            for _ in 1..OWNERS_MAX {
                let mut heard = false;
                let mut listen = |event: &Event| {
                    heard = true;
                    seen(event);
                };
                match self.ask_once(request, &mut listen).await {
                    Err(Unheard::Gone(_)) if !heard => {}
                    result => return result.map_err(Exit::from),
                }
            }
            self.ask_once(request, &mut seen).await.map_err(Exit::from)
        })
    }

    async fn ask_once(
        &self,
        request: &Request,
        seen: &mut impl FnMut(&Event),
    ) -> Result<Event, Unheard> {
        let stream = self.reach().await.map_err(Unheard::Failed)?;
        let mut client = Client::request(stream, request).await?;
        loop {
            match client.event().await? {
                Event::Failed(failure) => return Err(Unheard::Failed(failure.into())),
                event if event.is_last() => return Ok(event),
                event => seen(&event),
            }
        }
    }

    /// Connects to the owner, and starts one where there is none. While another
    /// process holds the store's lock and does not listen, it is about to: it has
    /// just started, or ends and lets go of the store.
    async fn reach(&self) -> Result<UnixStream, Exit> {
        let deadline = Instant::now() + CHANGE_OF_OWNER;
        let mut pause = Duration::from_millis(5);
        loop {
            match connect(&self.store).await {
                Ok(stream) => return Ok(stream),
                Err(error) if !is_absent(&error) => {
                    let message =
                        format!("store {}: control socket: {error}", self.store.display());
                    return Err(Exit::new(FailureKind::Failed, message));
                }
                Err(_) => {}
            }
            match self.start() {
                Ok(()) => {}
                // Nothing tells when a process lets go of a lock: look again.
                Err(failure) if failure.kind == FailureKind::InUse && Instant::now() < deadline => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(200));
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Starts an owner and waits until it listens, or says why it can't.
    fn start(&self) -> Result<(), Failure> {
        let failed = |what: &str, error: io::Error| {
            let message = format!("store {}: {what}: {error}", self.store.display());
            Failure::new(FailureKind::Failed, message)
        };
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(&self.store).map_err(|e| failed("can't be made", e))?;
        let mut command = self.serve().map_err(|e| failed("starting its owner", e))?;
        let mut child = command.spawn().map_err(|e| failed("starting its owner", e))?;
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut said).map_err(|e| failed("its owner", e))?;
        }
        match said.trim() {
            READY => Ok(()),
            said => Err(serde_json::from_str(said).unwrap_or_else(|_| {
                let message = format!(
                    "store {0}: its owner did not start; see {0}/{LOG}",
                    self.store.display()
                );
                Failure::new(FailureKind::Failed, message)
            })),
        }
    }

    /// The command that becomes the owner.
    fn serve(&self) -> io::Result<Command> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--store").arg(&self.store).arg("serve");
        if let Some(config) = &self.config_path {
            command.arg("--config").arg(config);
        }
        command.args(std::iter::repeat_n("-v", self.verbose.max(1).into()));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(self.log()?);
        // A session of its own: Ctrl-C at the terminal is not meant for the owner.
        // SAFETY: setsid is async-signal-safe and touches no memory of ours.
        unsafe {
            command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
        }
        Ok(command)
    }

    fn log(&self) -> io::Result<std::fs::File> {
        let path = self.store.join(LOG);
        let long = std::fs::metadata(&path).is_ok_and(|m| m.len() > LOG_MAX);
        OpenOptions::new().create(true).append(!long).write(true).truncate(long).open(path)
    }
}

/// Why a request has no answer.
enum Unheard {
    /// The owner went away.
    Gone(ClientError),
    /// It said no, or can't be reached.
    Failed(Exit),
}

impl From<ClientError> for Unheard {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Version(_) => Self::Failed(error.into()),
            error => Self::Gone(error),
        }
    }
}

impl From<Unheard> for Exit {
    fn from(unheard: Unheard) -> Self {
        match unheard {
            Unheard::Gone(error) => error.into(),
            Unheard::Failed(exit) => exit,
        }
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

fn user_store() -> Option<PathBuf> {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("peersync"))
}
