//! The seven invariants of the store, one by one.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use peersync::store::device::{CrashStyle, Fault, FaultyDevice};
use peersync::store::format::bits;
use peersync::store::format::layout::{bits_path, data_path};
use peersync::store::{OpenError, OpenOptions, PutError, Removal, Store, SyncError};
use peersync::types::VerifiedBlock;

use crate::util::{Content, open, open_faulty, options, read_all};

/// 1: at every moment of a flush, what the bitmap on the disk claims is in the
/// data file on the disk.
#[test]
fn a_presence_bit_is_durable_only_after_its_data() {
    let content = Content::random(1, 512, 512 * 100);
    let id = content.spec.id();
    let setup = || {
        let device = FaultyDevice::new();
        let store = open_faulty(&device).unwrap();
        store.add_object(&content.spec).unwrap();
        for index in 0..40 {
            store.put_block(&id, index, &content.block(index)).unwrap();
        }
        store.sync().unwrap();
        for index in 40..99 {
            store.put_block(&id, index, &content.block(index)).unwrap();
        }
        (device, store)
    };
    let (device, store) = setup();
    let start = device.operations();
    store.sync().unwrap();
    let end = device.operations();
    assert!(end > start);
    for at in start..end {
        for seed in 0..8 {
            let (device, store) = setup();
            device.plan(Some(Fault::Crash(at)));
            assert!(store.sync().is_err());
            drop(store);
            let disk = device.reboot(CrashStyle::Random(seed)).files();
            let file =
                |path: String| disk.iter().find(|(name, _)| *name == path).unwrap().1.clone();
            let (data, bitmap) = (file(data_path(&id)), file(bits_path(&id)));
            let words = bits::parse(&id, 100, &bitmap, |e| panic!("operation {at}: {e}"));
            let claimed = (0..100u32).filter(|i| words[*i as usize / 64] >> (i % 64) & 1 == 1);
            let mut count = 0;
            for index in claimed {
                let start = index as usize * 512;
                assert_eq!(data[start..start + 512], content.data[start..start + 512]);
                count += 1;
            }
            assert!(count >= 40, "what was durable stays so");
        }
    }
}

/// 1: no sync per block.
#[test]
fn storing_blocks_syncs_nothing() {
    let device = FaultyDevice::new();
    let store = open_faulty(&device).unwrap();
    let content = Content::random(1, 512, 512 * 100);
    let id = store.add_object(&content.spec).unwrap();
    store.put_block(&id, 0, &content.block(0)).unwrap();
    let before = device.operations();
    for index in 1..100 {
        store.put_block(&id, index, &content.block(index)).unwrap();
    }
    assert_eq!(device.operations() - before, 99, "one write for each");
}

/// 2: there is no way to put other bytes into an object.
#[test]
fn a_data_file_holds_only_verified_bytes() {
    let device = FaultyDevice::new();
    let store = open_faulty(&device).unwrap();
    let content = Content::random(1, 512, 1024);
    let id = store.add_object(&content.spec).unwrap();
    let other = VerifiedBlock::seal(vec![1; 512].into());
    for (index, block) in [(0, &other), (0, &content.block(1)), (2, &content.block(0))] {
        let refused = store.put_block(&id, index, block);
        assert!(matches!(refused, Err(PutError::NotInObject { .. })));
    }
    assert!(device.files().iter().all(|(name, _)| !name.starts_with("objects/")));
}

/// 3: what opening after a crash reads does not grow with the store.
#[test]
fn opening_after_a_crash_scans_nothing() {
    let read = |objects: u64| {
        let device = FaultyDevice::new();
        let store = open_faulty(&device).unwrap();
        for seed in 0..objects {
            // Half of them complete.
            let content = Content::random(seed, 16, 16 * 400);
            let id = store.add_object(&content.spec).unwrap();
            for index in 0..400 - u32::from(seed % 2 == 0) {
                store.put_block(&id, index, &content.block(index)).unwrap();
            }
        }
        store.sync().unwrap();
        let crashed = device.reboot(CrashStyle::KeepAll);
        drop(open_faulty(&crashed).unwrap());
        assert_eq!(crashed.bytes_read("objects/"), 0);
        let meta = crashed.files().iter().find(|(name, _)| name == "meta").unwrap().1.len();
        (crashed.bytes_read("meta"), meta as u64)
    };
    let (few, _) = read(2);
    let (many, size) = read(100);
    // With debug assertions redb itself walks its file when it opens it.
    if !cfg!(debug_assertions) {
        assert!(many < 3 * few && many < size / 4, "{few} of a small, {many} of {size}");
    }
}

/// 4: neither removal nor filling again changes what somebody has open.
#[test]
fn an_open_file_is_never_changed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = Content::random(1, 4096, 50_000);
    let id = content.spec.id();
    content.put_all(&store);
    store.sync().unwrap();
    let (file, map) = (store.backing_file(&id).unwrap(), store.map_object(&id).unwrap().unwrap());
    let same = || {
        let mut bytes = vec![0; content.data.len()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, content.data);
        assert_eq!(&map[..], &content.data[..]);
    };
    for how in [Removal::Data, Removal::Everything] {
        store.remove_objects(&[id], how).unwrap();
        same();
        content.put_all(&store);
        store.sync().unwrap();
        same();
    }
    // It can be written through to nobody.
    assert!(file.write_at(b"x", 0).is_err());
}

/// 4: only complete, verified, unchanged files are handed out.
#[test]
fn only_verified_files_are_passed_through() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let content = Content::random(1, 4096, 10_000);
    let id = store.add_object(&content.spec).unwrap();
    for index in 0..2 {
        store.put_block(&id, index, &content.block(index)).unwrap();
        store.sync().unwrap();
        assert!(store.backing_file(&id).is_none());
    }
    store.put_block(&id, 2, &content.block(2)).unwrap();
    store.sync().unwrap();
    assert!(store.backing_file(&id).is_some());
    let path = dir.path().join(data_path(&id));
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // A coarse clock may not have moved since the file was written.
    let unchanged = file.metadata().unwrap().modified().unwrap();
    while file.metadata().unwrap().modified().unwrap() == unchanged {
        file.write_all_at(&[!content.data[0]], 0).unwrap();
    }
    assert!(store.backing_file(&id).is_none(), "somebody changed it");
    assert_eq!(store.verify_object(&id).unwrap(), 1);
    assert_eq!(store.missing(&id, 0..3), [0]);
}

/// 6: reads go on, nothing that was durable is lost, and removal makes room.
#[test]
fn a_full_disk_is_an_ordinary_event() {
    let device = FaultyDevice::new();
    let store = open_faulty(&device).unwrap();
    let (kept, more) = (Content::random(1, 4096, 20_000), Content::random(2, 4096, 20_000));
    kept.put_all(&store);
    let id = store.add_object(&more.spec).unwrap();
    store.put_block(&id, 0, &more.block(0)).unwrap();
    store.sync().unwrap();
    device.plan(Some(Fault::Full(device.operations())));
    assert!(matches!(store.put_block(&id, 1, &more.block(1)), Err(PutError::Full)));
    assert!(matches!(
        store.name_slot("name").and_then(|_| store.sync().map_err(Into::into)),
        Err(peersync::store::MetaError::Full)
    ));
    assert_eq!(read_all(&store, &kept).unwrap(), kept.data);
    assert!(store.has_block(&id, 0) && !store.has_block(&id, 1));
    device.plan(None);
    device.heal();
    // What was only visible when the disk was full is made durable now.
    store.sync().unwrap();
    assert!(store.find_name("name").unwrap().is_some());
    store.put_block(&id, 1, &more.block(1)).unwrap();
    store.close().unwrap();
    let store = open_faulty(&device.reboot(CrashStyle::LoseAll)).unwrap();
    assert_eq!(read_all(&store, &kept).unwrap(), kept.data);
    assert_eq!(store.missing(&id, 0..5), [2, 3, 4]);
    assert!(store.find_name("name").unwrap().is_some());
}

/// 6: what a failed sync covered is not claimed.
#[test]
fn a_failed_sync_costs_blocks_and_claims_none() {
    let device = FaultyDevice::new();
    let store = open_faulty(&device).unwrap();
    let content = Content::random(1, 4096, 20_000);
    let id = store.add_object(&content.spec).unwrap();
    store.put_block(&id, 0, &content.block(0)).unwrap();
    store.sync().unwrap();
    store.put_block(&id, 1, &content.block(1)).unwrap();
    // The first thing that a batch does to the disk.
    device.plan(Some(Fault::Fail(device.operations())));
    assert!(matches!(store.sync(), Err(SyncError::Io(_))));
    assert_eq!(store.missing(&id, 0..2), [1]);
    store.put_block(&id, 1, &content.block(1)).unwrap();
    store.sync().unwrap();
    let store = open_faulty(&device.reboot(CrashStyle::LoseAll)).unwrap();
    assert!(store.read_block(&id, 0).unwrap().is_some());
    assert!(store.read_block(&id, 1).unwrap().is_some());
}

/// 7: one owner at a time, and the next one when it has gone.
#[test]
fn one_process_owns_a_store() {
    let device = FaultyDevice::new();
    let open = || Store::open_on(Arc::new(device.clone()), Path::new("store"), options());
    let store = open().unwrap();
    let Err(OpenError::Locked { path, pid }) = open() else { panic!("two owners") };
    assert_eq!((path.as_path(), pid), (Path::new("store"), std::process::id().to_string()));
    drop(store);
    let store = open().unwrap();
    let read_only = OpenOptions { read_only: true, ..options() };
    let reader = Store::open_on(Arc::new(device.clone()), Path::new("store"), read_only);
    assert!(matches!(reader, Err(OpenError::Locked { .. })));
    store.close().unwrap();
}
