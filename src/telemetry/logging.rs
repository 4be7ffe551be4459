//! Logs go to standard error; `PEERSYNC_LOG` filters them.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// Starts logging to standard error: warnings for `verbosity` 0, then info,
/// debug and trace. A filter in `PEERSYNC_LOG` (as in `peersync=debug`) wins.
pub fn init_logging(verbosity: u8) {
    let level = match verbosity {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = std::env::var("PEERSYNC_LOG")
        .ok()
        .and_then(|filter| EnvFilter::try_new(filter).ok())
        // fuser speaks of every process that was killed while it waited.
        .unwrap_or_else(|| EnvFilter::new(format!("warn,fuser=off,peersync={level}")));
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // A log on a full disk must not take the node with it: what the library says of
        // that goes to `eprintln!`, which panics.
        .log_internal_errors(false)
        .with_target(false);
    // The journal stamps its lines itself.
    let _ = if journal { log.without_time().try_init() } else { log.try_init() };
}
