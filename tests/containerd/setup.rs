//! `packaging/containerd/setup`: what it writes, as containerd itself reads it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{output, run, scratch};
use crate::world::needs_containerd;

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
