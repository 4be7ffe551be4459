//! The command: what it prints, and its exit codes.

#![allow(missing_docs)]

use std::path::Path;
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
