//! The command: what it prints, and its exit codes.

#![allow(missing_docs)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use peersync::store::format::layout::data_path;
use peersync::store::{OpenOptions, Store};
use peersync::types::ObjectId;

fn fsck(args: &[&str], store: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_peersync-fsck")).args(args).arg(store).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// A store with one object of some blocks.
fn store(path: &Path) -> ObjectId {
    let store = Store::open(path, OpenOptions::default()).unwrap();
    let id = store.put_object(&[7; 600 << 10]).unwrap();
    store.close().unwrap();
    id
}

#[test]
fn exit_codes_are_those_of_fsck() {
    let dir = tempfile::tempdir().unwrap();
    let id = store(dir.path());
    let clean = fsck(&[], dir.path());
    assert_eq!(clean.status.code(), Some(0), "{}", text(&clean));
    assert!(text(&clean).contains("clean"));
    let path = dir.path().join(data_path(&id));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[300 << 10] = 8;
    std::fs::write(&path, bytes).unwrap();
    let found = fsck(&["--jobs", "1"], dir.path());
    assert_eq!(found.status.code(), Some(4));
    assert!(text(&found).contains(&format!("object {id} block 1: ")), "{}", text(&found));
    let repaired = fsck(&["--repair"], dir.path());
    assert_eq!(repaired.status.code(), Some(1), "{}", text(&repaired));
    assert_eq!(fsck(&[], dir.path()).status.code(), Some(0));
    for bad in ["/nonexistent/store", "/etc/passwd", "/etc"] {
        let output = fsck(&[], Path::new(bad));
        assert_eq!(output.status.code(), Some(8), "{bad}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(bad));
    }
    assert_eq!(fsck(&["--unknown"], dir.path()).status.code(), Some(8));
    assert_eq!(fsck(&["--jobs", "0"], dir.path()).status.code(), Some(8));
}

#[test]
fn a_program_reads_the_json() {
    let dir = tempfile::tempdir().unwrap();
    let id = store(dir.path());
    let read =
        |output: &Output| -> serde_json::Value { serde_json::from_str(&text(output)).unwrap() };
    let clean = read(&fsck(&["--json"], dir.path()));
    assert_eq!(clean["exit_code"], 0);
    assert_eq!(clean["mode"], "check");
    assert_eq!(clean["checked"]["bytes"], 600 << 10);
    std::fs::remove_file(dir.path().join(data_path(&id))).unwrap();
    let found = read(&fsck(&["--json"], dir.path()));
    assert_eq!(found["exit_code"], 4);
    assert_eq!(found["findings"][0]["kind"], "missing-data");
    assert_eq!(found["counts"]["missing-data"]["found"], 1);
    let none = read(&fsck(&["--json"], Path::new("/etc")));
    assert_eq!(none["exit_code"], 8);
}

#[test]
fn a_store_in_use_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let _store = Store::open(dir.path(), OpenOptions::default()).unwrap();
    let output = fsck(&["--repair"], dir.path());
    assert_eq!(output.status.code(), Some(8));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains(&format!("process {}", std::process::id())), "{message}");
}

#[test]
fn the_help_explains() {
    let output = Command::new(env!("CARGO_BIN_EXE_peersync-fsck")).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    for word in ["--repair", "--json", "--jobs", "Exit codes", "quarantine/", "Examples"] {
        assert!(text(&output).contains(word), "{word}");
    }
}

#[test]
fn what_is_no_store_is_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("meta"), b"of another program").unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    for args in [&[][..], &["--repair"]] {
        let output = fsck(args, dir.path());
        assert_eq!(output.status.code(), Some(8));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("not a PeerSync store"), "{said}");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert_eq!(fs::read(dir.path().join("meta")).unwrap(), b"of another program");
}

/// The command as a user without rights; `None` where this one can't become it.
struct Nobody(PathBuf);

impl Nobody {
    /// `place` can be walked to by everybody.
    fn new(place: &Path) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not tested: only root can become somebody else");
            return None;
        }
        let program = place.join("peersync-fsck");
        fs::copy(env!("CARGO_BIN_EXE_peersync-fsck"), &program).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
        Some(Self(program))
    }

    fn fsck(&self, args: &[&str], store: &Path) -> Output {
        Command::new("setpriv")
            .args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"])
            .arg(&self.0)
            .args(args)
            .arg(store)
            .output()
            .unwrap()
    }
}

#[test]
fn who_has_no_permission_is_told_so_and_finds_no_damage() {
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    let Some(nobody) = Nobody::new(place.path()) else { return };
    let path = place.path().join("store");
    let id = store(&path);
    let allow =
        |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    let denied = |output: Output, place: &Path| {
        assert_eq!(output.status.code(), Some(8), "{}", text(&output));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("Permission denied"), "{said}");
        assert!(said.contains(&place.display().to_string()), "{said}");
        assert!(said.contains("by the user who owns it, or by root"), "{said}");
    };
    // The whole store is root's.
    allow(&path, 0o700);
    denied(nobody.fsck(&[], &path), &path);
    denied(nobody.fsck(&["--repair"], &path), &path);
    let json = nobody.fsck(&["--json"], &path);
    let said: serde_json::Value = serde_json::from_str(&text(&json)).unwrap();
    assert_eq!(said["exit_code"], 8);
    denied(json, &path);
    // It may be read: that is enough to check it, and not to repair it.
    let status = Command::new("chmod").args(["-R", "a+rX"]).arg(&path).status().unwrap();
    assert!(status.success());
    let output = nobody.fsck(&[], &path);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    denied(nobody.fsck(&["--repair"], &path), &path.join("lock"));
    // But for one file: that says nothing about it.
    let data = path.join(data_path(&id));
    allow(&data, 0o600);
    denied(nobody.fsck(&[], &path), &data);
    allow(&path.join("meta"), 0o600);
    denied(nobody.fsck(&[], &path), &path.join("meta"));
    assert_eq!(fsck(&[], &path).status.code(), Some(0));
}
