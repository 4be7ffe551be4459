//! Who waits for bytes that don't come can be interrupted and killed, and gets
//! an error in the end; never zeros, never a process that nobody can end.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::indexed::lazy_image;
use crate::harness::peersync::{Mount, Peersync, is_mounted};
use crate::harness::{Running, lab_images, needs_mounts, wait_until};

/// A signal has taken effect within this time.
const PROMPTLY: Duration = Duration::from_secs(10);

fn ends_by(signal: Signal) {
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let mount = peersync.mount(&image, &["--index", "require"]);
    line.stall();
    let before = line.up();
    let file = mount.join("models/model.safetensors");
    let mut reader = Running::start(Command::new("cat").arg(&file));
    // The request has gone out, so the reader waits now.
    wait_until("a request goes out", Duration::from_secs(20), || line.up() > before);
    assert!(reader.wait(Duration::from_millis(200)).is_none(), "nothing came, yet it ended");
    kill(Pid::from_raw(reader.id()), signal).expect("signal");
    let start = Instant::now();
    let ended = reader.wait(PROMPTLY);
    line.resume();
    let ended = ended.unwrap_or_else(|| panic!("{signal} does not end a waiting reader"));
    eprintln!("{signal}: {:?} after {:?}", ended, start.elapsed());
    assert!(!ended.success());
    // The mount has come to no harm: the same file reads when the line is well.
    let whole = crate::harness::output(Command::new("cat").arg(&file));
    assert_eq!(whole.stdout.len(), std::fs::metadata(&file).expect("metadata").len() as usize);
}

#[test]
fn ctrl_c_ends_a_waiting_reader() {
    needs_mounts!();
    ends_by(Signal::SIGINT);
}

#[test]
fn kill_ends_a_waiting_reader() {
    needs_mounts!();
    ends_by(Signal::SIGKILL);
}

#[test]
fn ctrl_c_ends_a_mount_that_waits_for_its_first_pass() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    line.cut_at(u64::MAX);
    let arguments = ["mount", "--index", "never", &image, &point.display().to_string()];
    let mut mounting = Running::start(&mut peersync.command(&arguments));
    line.wait_for(1 << 20, Duration::from_secs(30));
    line.stall();
    kill(Pid::from_raw(mounting.id()), Signal::SIGINT).expect("signal");
    let ended = mounting.wait(PROMPTLY).expect("Ctrl-C ends the command");
    assert!(!ended.success());
    assert!(!is_mounted(&point));
}

#[test]
fn ctrl_c_ends_a_mount_in_the_foreground() {
    needs_mounts!();
    let peersync = Peersync::new();
    let point = peersync.mount_point();
    let _guard = Mount::watch(&point);
    let image = format!("oci:{}:v1", lab_images().join("oci").display());
    let arguments = ["mount", "--foreground", &image, &point.display().to_string()];
    let mut staying = Running::start(&mut peersync.command(&arguments));
    wait_until("the mount answers", Duration::from_secs(60), || is_mounted(&point));
    assert!(point.join("usr").exists());
    assert!(staying.wait(Duration::from_millis(200)).is_none(), "it should stay");
    kill(Pid::from_raw(staying.id()), Signal::SIGINT).expect("signal");
    let ended = staying.wait(PROMPTLY).expect("Ctrl-C ends the command");
    assert!(ended.success(), "{ended}");
    assert!(!is_mounted(&point));
}

#[test]
fn a_registry_that_is_gone_is_an_error_in_the_end() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let config = peersync.path("config.toml");
    std::fs::write(&config, "[mount]\nno_progress_timeout = 3\n").expect("configuration");
    let config = config.display().to_string();
    let mount = peersync.mount(&image, &["--config", &config, "--index", "require"]);
    line.cut_at(0);
    let file = mount.join("models/model.safetensors");
    let reader = Running::start(Command::new("cat").arg(&file));
    // The kernel may ask a second time, page by page, after its readahead failed.
    let output = reader.finish(Duration::from_secs(20));
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("Input/output error"), "{said}");
    assert!(output.stdout.is_empty(), "{} bytes from nowhere", output.stdout.len());
    // Mended, the same mount goes on.
    line.mend();
    let whole = crate::harness::output(Command::new("cat").arg(&file));
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));
}

#[test]
fn a_line_that_stalls_is_an_error_in_the_end_and_says_so_in_the_status() {
    needs_mounts!();
    let indexed = lazy_image();
    let (line, image) = indexed.line();
    let peersync = Peersync::new();
    let config = peersync.path("config.toml");
    std::fs::write(&config, "[mount]\nno_progress_timeout = 3\n").expect("configuration");
    let config = config.display().to_string();
    let mount = peersync.mount(&image, &["--config", &config, "--index", "require"]);
    line.stall();
    let reader = Running::start(Command::new("cat").arg(mount.join("models/model.safetensors")));
    let output = reader.finish(Duration::from_secs(20));
    assert!(!output.status.success() && output.stdout.is_empty());
    let failed = peersync.status()["counters"]["reads_failed"].as_u64();
    assert!(failed.is_some_and(|failed| failed > 0), "{failed:?}");
}
