//! `packaging/containerd/setup`: what it writes, as containerd itself reads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::layout::Layout;
use crate::harness::registry::Registry;
use crate::harness::{output, run, scratch};
use crate::images::{add, base};
use crate::node::Node;
use crate::plugin::Plugin;
use crate::world::{World, needs_containerd};

/// What the Debian package ships, with settings that must not get lost.
const DEBIAN: &str = r#"version = 2

[plugins]
  [plugins."io.containerd.grpc.v1.cri"]
    [plugins."io.containerd.grpc.v1.cri".cni]
      bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.internal.v1.opt"]
    path = "/var/lib/containerd/opt"
"#;

fn set_up(config: &Path) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/containerd/setup");
    run(Command::new(script).arg(config))
}

/// The value of a key in the configuration that containerd makes of the file.
fn effective(config: &Path, key: &str) -> Vec<String> {
    let dump = run(Command::new("containerd").arg("-c").arg(config).args(["config", "dump"]));
    let lines = dump.lines().filter_map(|line| line.trim().split_once(" = "));
    lines.filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).collect()
}

fn is_set_up(config: &Path) {
    assert_eq!(effective(config, "snapshotter"), ["\"peersync\""]);
    assert_eq!(effective(config, "disable_snapshot_annotations"), ["false"]);
    let address = effective(config, "address");
    assert!(address.contains(&"\"/run/peersync/snapshotter.sock\"".to_owned()), "{address:?}");
}

#[test]
fn a_distributions_configuration_keeps_what_it_says() {
    needs_containerd!();
    let place = scratch();
    let config = place.path().join("config.toml");
    fs::write(&config, DEBIAN).expect("configuration");
    set_up(&config);
    is_set_up(&config);
    assert_eq!(effective(&config, "bin_dir"), ["\"/usr/lib/cni\""]);
    let kept = fs::read_to_string(place.path().join("config.toml.before-peersync"));
    assert_eq!(kept.expect("the file as it was"), DEBIAN);

    let once = fs::read_to_string(&config).expect("configuration");
    set_up(&config);
    assert_eq!(
        fs::read_to_string(&config).expect("configuration"),
        once,
        "a second time changes nothing"
    );
}

#[test]
fn a_configuration_with_all_defaults_written_out_is_changed_in_place() {
    needs_containerd!();
    let place = scratch();
    let config = place.path().join("config.toml");
    let all = run(Command::new("containerd").args(["config", "default"]));
    fs::write(&config, all.replace("SystemdCgroup = false", "SystemdCgroup = true"))
        .expect("write");
    set_up(&config);
    is_set_up(&config);
    assert_eq!(effective(&config, "SystemdCgroup"), ["true"]);
}

#[test]
fn without_a_configuration_the_snippet_is_one() {
    needs_containerd!();
    let place = scratch();
    let config = place.path().join("new/config.toml");
    set_up(&config);
    is_set_up(&config);
}

#[test]
fn what_containerd_does_not_read_stays_as_it_is() {
    needs_containerd!();
    let place = scratch();
    let config = place.path().join("config.toml");
    fs::write(&config, "version = 2\n[plugins\n").expect("configuration");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/containerd/setup");
    assert!(!output(Command::new(script).arg(&config)).status.success());
    assert_eq!(fs::read_to_string(&config).expect("configuration"), "version = 2\n[plugins\n");
    let left: Vec<PathBuf> = fs::read_dir(place.path())
        .expect("list")
        .map(|entry| entry.expect("entry").path())
        .collect();
    assert_eq!(left, [config], "nothing is left behind");
}

/// The page for those who want to try it: its commands as they stand there, but for
/// where the image comes from and what is said in it.
#[test]
fn the_commands_of_the_page_lead_to_a_running_container() {
    needs_containerd!();
    if Command::new("ctr-remote").arg("--version").output().is_err() {
        eprintln!("skipped: no ctr-remote (package stargz-snapshotter)");
        return;
    }
    let page = include_str!("../../docs/CONTAINERD.md");
    let (_, section) = page.split_once("### Without systemd").expect("section");
    let (_, block) = section.split_once("```sh\n").expect("commands");
    let (block, _) = block.split_once("```").expect("their end");

    let place = scratch();
    let mut layout = Layout::create(&place.path().join("oci"));
    add(&mut layout, "v1", &[base()]);
    let registry = Registry::start();
    registry.push(&layout.dir, "v1", "library/python:3.12");
    // A socket's path is short.
    let short = tempfile::Builder::new().prefix("ps-").tempdir().expect("directory");
    let directory = short.path().join("try").display().to_string();
    let name = format!("hello{}", std::process::id());
    let script = block
        .replace("/var/tmp/peersync-try", &directory)
        .replace("images rpull", "images rpull --plain-http")
        .replace("docker.io", &registry.address.to_string())
        .replace(" hello python3 -c 'print(\"hello\")'", &format!(" {name} /bin/sh -c 'exit 42'"));
    assert!(script.contains("exit 42") && script.contains("--plain-http"), "{script}");
    // The container's status, and whether all is gone afterwards.
    let ran = script.replace("exit 42'\n", "exit 42' || ran=$?\n");
    let end = "trap '[ -z \"$containerd$daemon\" ] || kill $containerd $daemon' EXIT";
    let script = format!(
        "set -eu; containerd= daemon= ran=; {end}\n{ran}\ncontainerd= daemon=\n[ $ran = 42 ]"
    );

    let program = Path::new(env!("CARGO_BIN_EXE_peersync")).parent().expect("directory");
    let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("PATH"));
    let mut shell = Command::new("timeout");
    shell.args(["--kill-after=10", "300", "bash", "-c", &script]);
    // How full the disk is, or whether a time service runs, is the machine's affair.
    shell.env("PATH", path).env("PEERSYNC_STORE_MIN_FREE", "0");
    let said = run(shell.current_dir(env!("CARGO_MANIFEST_DIR")));
    assert!(said.contains("containerd-running"), "{said}");
    assert!(!Path::new(&directory).exists());
}

/// The doctor's findings on a world, by check: status and message.
fn doctor(world: &World<Node>) -> impl Fn(&str) -> (String, String) + use<> {
    let peersync = &world.plugin.peersync;
    let (config, containerd) =
        (peersync.path("config.toml"), world.place().join("containerd.toml"));
    let config = config.to_str().expect("text");
    let mut doctor = peersync.command(&["--config", config, "--json", "doctor"]);
    // Which is the machine's own daemon's, or another test's.
    doctor.env("PEERSYNC_MIRROR_LISTEN", "");
    let said = output(doctor.arg("--containerd-config").arg(containerd)).stdout;
    let report: Value = serde_json::from_slice(&said).expect("JSON");
    move |check| {
        let checks = report["checks"].as_array().expect("checks");
        let found = checks.iter().find(|found| found["check"] == check).expect(check);
        let text = |key: &str| found[key].as_str().expect("text").to_owned();
        (text("status"), text("message"))
    }
}

#[test]
fn the_doctor_says_of_a_running_containerd_what_is_so() {
    needs_containerd!();
    let mut world = World::of(|_, socket| Node::new(socket, ""));
    let said = doctor(&world);
    for check in [
        "fuse",
        "overlayfs",
        "stack-depth",
        "containerd-plugin",
        "containerd-running",
        "containerd-cri",
        "snapshot-annotations",
        "socket",
        "ports",
    ] {
        let (status, message) = said(check);
        assert_eq!(status, "ok", "{check}: {message}");
    }
    world.plugin.stop();
    assert_eq!(doctor(&world)("socket").0, "warning");
    assert_eq!(doctor(&world)("containerd-running").0, "ok", "it is still loaded");

    // Written into the configuration of a containerd that is not started again.
    let file = world.place().join("containerd.toml");
    let text = fs::read_to_string(&file).expect("configuration");
    fs::write(&file, text.replace("proxy_plugins.peersync", "proxy_plugins.other")).expect("write");
    let (status, message) = doctor(&world)("containerd-running");
    assert_eq!(status, "failed", "{message}");
    fs::write(&file, text.replace("disable_snapshot_annotations = false", "")).expect("write");
    assert_eq!(doctor(&world)("snapshot-annotations").0, "failed");
    fs::write(&file, &text).expect("write");

    world.lose_power("test", &[]);
    let (status, message) = doctor(&world)("containerd-running");
    assert_eq!(status, "warning", "{message}");
}
