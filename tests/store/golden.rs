//! Stores as earlier versions wrote them: they must stay readable.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use peersync::store::Stream;
use peersync::store::format::tables::Table;
use peersync::types::Digest;
use peersync_fsck::Kind;

use crate::populated::Populated;
use crate::util::{open, scratch};

fn golden(version: u32) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/store/golden");
    dir.join(format!("v{version}.tar.zst"))
}

#[test]
fn a_store_of_version_1_is_read() {
    let dir = scratch();
    let packed = fs::read(golden(1)).unwrap();
    let tar = zstd::stream::decode_all(&packed[..]).unwrap();
    tar::Archive::new(&tar[..]).unpack(dir.path()).unwrap();
    let options = peersync_fsck::Options::default();
    let report = peersync_fsck::check(dir.path(), &options, &peersync_fsck::Quiet).unwrap();
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
    assert_eq!((report.checked.layers, report.checked.rebuilt), (2, 1));
    let populated = Populated::of_version_1();
    let store = open(dir.path());
    populated.read(&store, |id, index| panic!("{id} {index} is not there"));
    assert!(populated.is_known(&store));
    let staging = store.stage(&Digest::of(b"staged")).unwrap();
    assert_eq!(staging.resumed().unwrap().state, b"state");
    assert_eq!(staging.len(Stream::File(0)), 4096);
    drop(staging);
    // It has the tables that came later from now on, and misses them if they go.
    assert!(store.pins().unwrap().is_empty());
    store.close().unwrap();
    let report = peersync_fsck::check(dir.path(), &options, &peersync_fsck::Quiet).unwrap();
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
    let db = redb::Database::open(dir.path().join("meta")).unwrap();
    let txn = db.begin_write().unwrap();
    assert!(txn.delete_table(Table::Pins.definition()).unwrap());
    txn.commit().unwrap();
    drop(db);
    let report = peersync_fsck::check(dir.path(), &options, &peersync_fsck::Quiet).unwrap();
    assert!(report.counts.contains_key(&Kind::Database), "{}", report.summary());
}

/// Makes the golden store of the present version. Only ever run for a version
/// that has none: `cargo test --test store golden::generate -- --ignored`.
#[test]
#[ignore = "writes into the sources"]
fn generate() {
    let dir = scratch();
    let store = open(dir.path());
    Populated::new().fill(&store);
    store.close().unwrap();
    for needless in ["reserve", "lock"] {
        fs::remove_file(dir.path().join(needless)).unwrap();
    }
    let version = peersync::store::format::layout::FORMAT_VERSION;
    assert!(!golden(version).exists(), "there is one already");
    let tar = Command::new("tar")
        .args(["--sparse", "--sort=name", "--owner=0", "--group=0", "--mtime=@0", "-cf", "-", "."])
        .current_dir(dir.path())
        .output()
        .unwrap();
    assert!(tar.status.success());
    fs::create_dir_all(golden(version).parent().unwrap()).unwrap();
    fs::write(golden(version), zstd::bulk::compress(&tar.stdout, 19).unwrap()).unwrap();
}
