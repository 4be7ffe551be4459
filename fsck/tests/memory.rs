//! What the checker remembers is bounded, however much is wrong.

#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::process::Command;

use peersync::store::format::layout::{bits_path, data_path};
use peersync::store::format::records::ObjectRecord;
use peersync::store::format::tables::Table;
use peersync::store::format::{seal, unseal};
use peersync::store::{OpenOptions, Store};
use peersync::types::{BlockHash, ObjectId, ObjectSpec};
use peersync_fsck::{Options, Quiet};
use redb::ReadableTable as _;
use serde_json::Value;

/// Names the store, and what is done, to a process of its own, whose memory is that
/// of the check and no other.
const STORE: &str = "PEERSYNC_TEST_CHECK";
const REPAIR: &str = "PEERSYNC_TEST_REPAIR";
/// Begins the lines by which that process answers.
const REPORT: &str = "report: ";
const PEAK: &str = "peak: ";

/// Objects, and blocks of each, of [`large`].
const OBJECTS: u32 = 64;
const BLOCKS: u32 = 3072;
const BLOCK: usize = 64;

/// A store of many small blocks, all of which are there.
fn large(path: &Path) -> Vec<ObjectId> {
    let store = Store::open(path, OpenOptions::default()).unwrap();
    let mut ids = Vec::new();
    for object in 0..OBJECTS {
        let block = |n: u32| {
            let mut bytes = [1; BLOCK];
            bytes[..4].copy_from_slice(&(object * BLOCKS + n).to_le_bytes());
            bytes
        };
        let data: Vec<u8> = (0..BLOCKS).flat_map(block).collect();
        let blocks = data.chunks(BLOCK).map(|b| (BlockHash::of(b), b.len() as u32));
        let spec = ObjectSpec::new(BLOCK as u32, blocks).unwrap();
        let id = store.add_object(&spec).unwrap();
        let file = path.join(data_path(&id));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, data).unwrap();
        ids.push(id);
    }
    store.close().unwrap();
    // As if they had been put one by one.
    let db = redb::Database::open(path.join("meta")).unwrap();
    let mut txn = db.begin_write().unwrap();
    txn.set_quick_repair(true);
    let mut table = txn.open_table(Table::Objects.definition()).unwrap();
    for id in &ids {
        let key = &id.as_bytes()[..];
        let sealed = table.get(key).unwrap().unwrap().value().to_vec();
        let payload = unseal(Table::Objects.name(), key, &sealed).unwrap();
        let record = ObjectRecord { complete: true, ..ObjectRecord::decode(payload).unwrap() };
        let sealed = seal(Table::Objects.name(), key, record.encode());
        table.insert(key, &sealed[..]).unwrap();
    }
    drop(table);
    txn.commit().unwrap();
    ids
}

/// The report of a check in a process of its own, and its memory at its height, in
/// bytes.
fn measured(store: &Path, repair: bool) -> (Value, u64) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "check", "--nocapture"]).env(STORE, store);
    if repair {
        command.env(REPAIR, "1");
    }
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = |start: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(start));
        found.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    (serde_json::from_str(&line(REPORT)).unwrap(), line(PEAK).parse().unwrap())
}

/// What [`measured`] runs; by itself it does nothing.
#[test]
fn check() {
    let Some(store) = std::env::var_os(STORE) else { return };
    let options = Options { repair: std::env::var_os(REPAIR).is_some(), jobs: 1 };
    let report = peersync_fsck::check(Path::new(&store), &options, &Quiet).unwrap();
    // On one line, after the name of the test.
    println!("\n{REPORT}{}", serde_json::from_str::<Value>(&report.json()).unwrap());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    println!("{PEAK}{}", peak * 1024);
}

#[test]
fn memory_does_not_grow_with_what_is_wrong() {
    /// What the checker may take more for a store of which nothing is right.
    const MORE: u64 = 8 << 20;
    let dir = tempfile::tempdir().unwrap();
    let ids = large(dir.path());
    let (report, clean) = measured(dir.path(), false);
    assert_eq!(report["exit_code"], 0, "{report}");
    for id in &ids {
        fs::write(dir.path().join(data_path(id)), vec![7; BLOCKS as usize * BLOCK]).unwrap();
    }
    let all = u64::from(OBJECTS * BLOCKS);
    let (report, damaged) = measured(dir.path(), false);
    assert_eq!(report["exit_code"], 4);
    assert_eq!(report["counts"]["bad-block"]["found"], all);
    assert_eq!(report["findings"].as_array().unwrap().len(), 1000);
    assert!(damaged < clean + MORE, "{damaged} bytes, {clean} for the same store in order");
    let (report, repaired) = measured(dir.path(), true);
    assert_eq!(report["exit_code"], 1);
    assert_eq!(report["counts"]["bad-block"]["repaired"], all);
    eprintln!("memory: {clean} clean, {damaged} damaged, {repaired} repaired");
    let (report, _) = measured(dir.path(), false);
    assert_eq!((&report["exit_code"], &report["checked"]["blocks"]), (&0.into(), &0.into()));
    for id in &ids {
        assert!(!dir.path().join(data_path(id)).exists());
        assert!(!dir.path().join(bits_path(id)).exists());
    }
}
