//! What monitoring asks of a daemon: `/metrics` and `/healthz`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use crate::harness::peersync::{Daemon, Mount, Peersync, failure, is_mounted};
use crate::harness::registry::Registry;
use crate::harness::{Running, lab_images, needs_mounts, output, wait_until};

/// Status and body of an answer.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")
        .expect("request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("status");
    if path == "/metrics" {
        let named = head.to_lowercase().contains("content-type: application/openmetrics-text");
        assert!(named, "{head}");
    }
    (status, body.to_owned())
}

/// Samples by name and labels. Each must have been announced by type and meaning.
fn scrape(address: &str) -> BTreeMap<String, u64> {
    let (status, page) = get(address, "/metrics");
    assert_eq!(status, 200, "{page}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    let announced = |what: &str| -> BTreeSet<&str> {
        let lines = page.lines().filter_map(|line| line.strip_prefix(what));
        lines.filter_map(|line| line.split(' ').next()).collect()
    };
    let (types, help) = (announced("# TYPE "), announced("# HELP "));
    assert_eq!(types, help);
    let samples = page.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            let family = name.split('{').next().expect("a name");
            let family = family.trim_end_matches("_total").trim_end_matches("_info");
            assert!(types.contains(family), "{line}");
            (name.to_owned(), value.parse().unwrap_or_else(|e| panic!("{line}: {e}")))
        })
        .collect()
}

#[test]
fn a_daemon_tells_its_figures_and_how_it_is() {
    needs_mounts!();
    let registry = Registry::start();
    registry.push(&lab_images().join("oci"), "v1", "test/small:v1");
    let peersync = Peersync::new();
    let mount = Mount::watch(&peersync.mount_point());
    let config =
        format!("[store]\npath = {:?}\n[mount]\npath = {:?}\n", peersync.store(), mount.path);
    let daemon = Daemon::start(&peersync, &config, &mount.path);
    let metrics = peersync.status()["metrics"].as_str().expect("it is served").to_owned();
    let address =
        metrics.strip_prefix("http://").and_then(|m| m.strip_suffix("/metrics")).expect("URL");

    let before = scrape(address);
    assert_eq!(before["peersync_mounts"], 1);
    assert_eq!(before["peersync_first_passes_total"], 0);
    assert_eq!(before["peersync_content_bytes_total{source=\"registry\"}"], 0);
    let image = mount.join("images").join(registry.address.to_string()).join("test/small:v1");
    let release = fs::read(image.join("usr/lib/os-release")).expect("readable");
    let after = scrape(address);
    let grown = |name: &str| after[name] - before[name];
    assert!(grown("peersync_read_bytes_total") >= release.len() as u64);
    assert!(grown("peersync_first_passes_total") >= 1);
    assert!(grown("peersync_registry_received_bytes_total") > 0);
    assert!(after["peersync_store_resident_bytes"] >= release.len() as u64);
    assert!(after["peersync_store_free_bytes"] > 0);
    for (name, value) in &before {
        let counter = name.split('{').next().is_some_and(|name| name.ends_with("_total"));
        assert!(!counter || after[name] >= *value, "{name} fell");
    }

    assert_eq!(get(address, "/healthz"), (200, "ok\n".into()));
    assert_eq!(get(address, "/elsewhere").0, 404);
    // Somebody takes the mount away behind the daemon's back.
    peersync.run(&["umount".as_ref(), mount.path.as_os_str()]);
    wait_until("the daemon has noticed", Duration::from_secs(20), || {
        get(address, "/healthz").0 == 503
    });
    assert!(get(address, "/healthz").1.contains("nothing is mounted"));
    assert_eq!(daemon.stop(), Some(0));
}

/// What the daemon says to systemd: ready when all answers, and when it ends.
#[test]
fn systemd_is_told_when_the_daemon_is_ready_and_when_it_ends() {
    needs_mounts!();
    let peersync = Peersync::new();
    let mount = Mount::watch(&peersync.mount_point());
    let place = tempfile::tempdir().expect("directory");
    let (notify, plugin) = (place.path().join("notify"), place.path().join("run/plugin.sock"));
    let socket = UnixDatagram::bind(&notify).expect("socket");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
    let said = || {
        let mut buffer = [0; 4096];
        let len = socket.recv(&mut buffer).expect("a word");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut command = peersync.command(&["daemon"]);
    command.env("NOTIFY_SOCKET", &notify).env("PEERSYNC_MOUNT_PATH", &mount.path);
    command.env("PEERSYNC_SNAPSHOTTER_SOCKET", &plugin);
    let mut daemon = Running::start(&mut command);
    assert!(said().contains("READY=1"));
    // What containers need is there at that moment, not soon after.
    assert!(is_mounted(&mount.path));
    let root = nix::unistd::geteuid().is_root();
    assert!(!root || UnixStream::connect(&plugin).is_ok(), "containerd can connect");
    let pid = nix::unistd::Pid::from_raw(daemon.id());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
    assert!(said().contains("STOPPING=1"));
    let status = daemon.wait(Duration::from_secs(60)).expect("it ends");
    assert!(status.success() && !is_mounted(&mount.path));
}

#[test]
fn an_address_that_was_chosen_and_is_taken_is_an_error() {
    needs_mounts!();
    let taken = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let address = taken.local_addr().expect("address").to_string();
    let peersync = Peersync::new();
    let mount = Mount::watch(&peersync.mount_point());
    let mut command = peersync.command(&["daemon"]);
    command.env("PEERSYNC_MOUNT_PATH", &mount.path).env("PEERSYNC_SNAPSHOTTER_SOCKET", "");
    command.env("PEERSYNC_ADMIN_LISTEN", &address);
    let said = failure(&output(&mut command));
    assert!(said.contains(&address) && said.contains("admin.listen"), "{said}");
    assert!(!is_mounted(&mount.path));
    // And `doctor` would have said so.
    let mut command = peersync.command(&["doctor"]);
    command.env("PEERSYNC_ADMIN_LISTEN", &address).env("PEERSYNC_SNAPSHOTTER_SOCKET", "");
    let output = output(&mut command);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains(&format!("admin.listen = {address} is in use")), "{said}");
}
