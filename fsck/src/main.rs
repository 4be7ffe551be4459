//! The `peersync-fsck` command.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use peersync_fsck::{FsckError, Options, Progress, Quiet, check, panic_is_expected};

/// Checks a PeerSync block store, and repairs it.
///
/// Every block that the store claims to have is read and compared with its
/// hash; every record of the database is compared with its checksum and with
/// the other records; index parts are parsed, their signatures checked, and
/// layers that are wholly there are rebuilt and compared with their diffID.
///
/// A repair drops what is wrong, and never what is right: what is dropped will
/// be fetched again when it is needed. Files that nothing vouches for are moved
/// to quarantine/, not deleted.
///
/// A store that is in use is checked by its owner's inventory: the data is
/// verified, records and files are not, and nothing is repaired. Stop the
/// daemon or unmount to check everything.
#[derive(Debug, Parser)]
#[command(name = "peersync-fsck", version, about, after_long_help = AFTER)]
struct Args {
    /// Put right what is wrong. The store must be closed.
    #[arg(long)]
    repair: bool,

    /// Print the report as JSON on standard output.
    #[arg(long)]
    json: bool,

    /// Threads that read and hash. Default: the number of processors.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: Option<u16>,

    /// The store's directory, for instance /var/lib/peersync.
    store: PathBuf,
}

const AFTER: &str = "\
Exit codes, as those of fsck(8):
  0  nothing is wrong
  1  what was wrong has been repaired
  4  errors are left
  8  the check could not be made: no store, no permission, in use, disk failure

Files:
  meta              the database
  objects/          data files, and a bitmap beside each incomplete one
  quarantine/       what a repair moved away; delete it when nobody misses it
  control.sock      where the owner of a store in use gives its inventory

Examples:
  peersync-fsck /var/lib/peersync
  peersync-fsck --json /var/lib/peersync | jq .counts
  systemctl stop peersync && peersync-fsck --repair /var/lib/peersync";

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(e) => {
            // Help and version are no errors; the rest is code 8, not clap's 2.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 8 } else { 0 });
        }
    };
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !panic_is_expected() {
            usual(info);
        }
    }));
    let mut options = Options { repair: args.repair, ..Options::default() };
    if let Some(jobs) = args.jobs {
        options.jobs = usize::from(jobs);
    }
    let bar = (std::io::stderr().is_terminal() && !args.json).then(Bar::default);
    let progress: &dyn Progress = bar.as_ref().map_or(&Quiet, |bar| bar);
    let done = check(&args.store, &options, progress);
    if let Some(bar) = &bar {
        bar.clear();
    }
    match done {
        Ok(report) => {
            let text = if args.json { report.json() + "\n" } else { report.summary() };
            // A closed pipe is the reader's decision.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::from(report.exit_code())
        }
        Err(e) => fail(&e, args.json),
    }
}

fn fail(error: &FsckError, json: bool) -> ExitCode {
    if json {
        let text = serde_json::json!({ "error": error.to_string(), "exit_code": 8 });
        println!("{text}");
    }
    eprintln!("peersync-fsck: {error}");
    ExitCode::from(8)
}

/// The progress bar.
#[derive(Default)]
struct Bar(Mutex<Option<ProgressBar>>);

impl Bar {
    fn with(&self, act: impl FnOnce(&mut Option<ProgressBar>)) {
        act(&mut self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    }

    fn clear(&self) {
        self.with(|bar| {
            if let Some(bar) = bar.take() {
                bar.finish_and_clear();
            }
        });
    }
}

impl Progress for Bar {
    fn stage(&self, name: &'static str, total: Option<u64>) {
        let new = match total {
            Some(total) => ProgressBar::new(total),
            None => ProgressBar::new_spinner(),
        };
        let template = match (total, name) {
            (Some(_), "data") => "{msg:16} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            (None, "data") => "{msg:16} {spinner} {bytes} {bytes_per_sec}",
            (Some(_), _) => "{msg:16} [{bar:30}] {pos}/{len}",
            (None, _) => "{msg:16} {spinner} {pos}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            new.set_style(style.progress_chars("=> "));
        }
        new.set_message(name);
        new.enable_steady_tick(Duration::from_millis(200));
        self.with(|bar| {
            if let Some(old) = bar.replace(new) {
                old.finish_and_clear();
            }
        });
    }

    fn advance(&self, n: u64) {
        self.with(|bar| {
            if let Some(bar) = bar {
                bar.inc(n);
            }
        });
    }
}
