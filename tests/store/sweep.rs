//! A realistic workload with a fault at every operation that changes the disk.
//!
//! After each: the disk as it is found after the power went, in several ways;
//! the checker; the engine. Never a claimed block that is absent or wrong, and
//! nothing lost that was made durable.
//!
//! Every 7th operation by default; `PEERSYNC_SWEEP=full` for all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use peersync::store::device::{CrashStyle, Fault, FaultyDevice};
use peersync::store::{ImageRecord, LayerKey, Removal, Store, Stream};
use peersync::types::{Digest, ObjectId};
use peersync_fsck::Options;

use crate::layer::Layer;
use crate::util::{Content, open_faulty, scratch};

/// What must be there after a crash, as far as the workload was told.
#[derive(Default)]
struct Oracle {
    contents: BTreeMap<ObjectId, Content>,
    /// Blocks that were made durable and not removed since.
    durable: BTreeSet<(ObjectId, u32)>,
    /// Blocks that were stored and not made durable yet.
    stored: BTreeSet<(ObjectId, u32)>,
}

impl Oracle {
    fn put(&mut self, store: &Store, content: &Content, blocks: std::ops::Range<u32>) {
        let id = content.spec.id();
        self.contents.insert(id, content.clone());
        if store.add_object(&content.spec).is_err() {
            return;
        }
        for index in blocks {
            if store.put_block(&id, index, &content.block(index)).is_ok() {
                self.stored.insert((id, index));
            }
        }
    }

    fn sync(&mut self, store: &Store) {
        let stored = std::mem::take(&mut self.stored);
        if store.sync().is_ok() {
            self.durable.extend(stored);
        }
        // Else: some of it may be lost, and none of it is promised.
    }

    fn remove(&mut self, store: &Store, ids: &[ObjectId], how: Removal) {
        // Even a removal that fails may have removed something.
        self.durable.retain(|(id, _)| !ids.contains(id));
        self.stored.retain(|(id, _)| !ids.contains(id));
        let _ = store.remove_objects(ids, how);
    }
}

/// Made once: it is the same for every fault.
static CONTENTS: LazyLock<Vec<Content>> = LazyLock::new(contents);
static LAYER: LazyLock<Layer> = LazyLock::new(|| Layer::new(20));

fn contents() -> Vec<Content> {
    let a = Content::random(1, 4096, 30_000);
    let b = Content::random(2, 4096, 5 * 4096);
    // Shares blocks with `a`.
    let mut shared = a.data[..8192].to_vec();
    shared.extend(&b.data[..4096]);
    let c = Content::new(4096, shared);
    // Enough blocks for more than one line of bitmap.
    let d = Content::random(4, 16, 16 * 500);
    vec![a, b, c, d]
}

/// Everything that a node does with its store; errors are part of life.
fn workload(device: &FaultyDevice, oracle: &mut Oracle) {
    let Ok(store) = open_faulty(device) else {
        return;
    };
    let all = &CONTENTS;
    let [a, b, c, d] = &all[..] else { unreachable!() };
    let specs: Vec<_> = all.iter().map(|content| content.spec.clone()).collect();
    let _ = store.add_objects(&specs);
    oracle.put(&store, a, 0..a.spec.block_count());
    oracle.put(&store, b, 0..2);
    oracle.put(&store, d, 100..480);
    oracle.sync(&store);
    for (from, to) in [(0, 0), (1, 1)] {
        let copied = store.copy_block((a.spec.id(), from), (c.spec.id(), to));
        if copied.is_ok_and(|copied| copied) {
            oracle.contents.insert(c.spec.id(), c.clone());
            oracle.stored.insert((c.spec.id(), to));
        }
    }
    oracle.put(&store, b, 2..5);
    let key = layer(&store, oracle);
    oracle.sync(&store);
    first_pass(&store, oracle);
    oracle.remove(&store, &[a.spec.id()], Removal::Data);
    oracle.remove(&store, &[c.spec.id()], Removal::Everything);
    oracle.put(&store, a, 3..6);
    oracle.put(&store, d, 0..500);
    oracle.sync(&store);
    let _ = store.remove_image("docker.io/library/a:1");
    let _ = store.remove_chain(&Digest::of(b"chain"));
    let _ = store.remove_layer(&key);
    let mut unneeded = Layer::ids(&LAYER.parts);
    unneeded.push(b.spec.id());
    oracle.remove(&store, &unneeded, Removal::Everything);
    let _ = store.add_contents([(*a.block(0).hash(), a.spec.id(), 0, 10)]);
    let stored = std::mem::take(&mut oracle.stored);
    if store.close().is_ok() {
        oracle.durable.extend(stored);
    }
}

/// An index is taken in; then some of the layer's content comes.
fn layer(store: &Store, oracle: &mut Oracle) -> LayerKey {
    let layer = &*LAYER;
    for part in &layer.parts {
        oracle.put(store, part, 0..part.spec.block_count());
    }
    if let Ok(slot) = layer.add(store) {
        let _ = store.add_origin(&layer.blob(), "registry.example/a");
        let chain = Digest::of(b"chain");
        let _ = store.put_chain(&chain, &[slot]);
        let _ = store.put_document(&Digest::of(b"{}"), b"{}");
        let image = ImageRecord {
            manifest: Digest::of(b"{}"),
            chain,
            resolved_at: 0,
            platform: String::new(),
        };
        let _ = store.put_image("docker.io/library/a:1", &image);
    }
    for content in &layer.objects {
        oracle.put(store, content, 0..content.spec.block_count());
    }
    layer.key.clone()
}

fn first_pass(store: &Store, oracle: &mut Oracle) {
    let blob = Digest::of(b"first pass");
    let Ok(staging) = store.stage(&blob) else {
        return;
    };
    let (bundle, file) = (Content::random(10, 4096, 9000), Content::random(11, 4096, 3 * 4096));
    let put = |content: &Content, stream, range: std::ops::Range<u32>| {
        range.into_iter().all(|index| {
            let offset = content.spec.block(index).unwrap().offset;
            staging.put(stream, offset, &content.block(index)).is_ok()
        })
    };
    let fine = staging.append(Stream::Literals, b"header").is_ok()
        && put(&bundle, Stream::Bundle, 0..2)
        && put(&file, Stream::File(1), 0..1)
        && staging.checkpoint(b"one").is_ok()
        && put(&bundle, Stream::Bundle, 2..3)
        && put(&file, Stream::File(1), 1..3)
        && staging.checkpoint(b"two").is_ok();
    if !fine {
        return;
    }
    let streams = [(Stream::Bundle, bundle.spec.clone()), (Stream::File(1), file.spec.clone())];
    for content in [&bundle, &file] {
        oracle.contents.insert(content.spec.id(), content.clone());
    }
    if staging.promote(&streams).is_ok() {
        for content in [&bundle, &file] {
            let id = content.spec.id();
            oracle.durable.extend((0..content.spec.block_count()).map(|i| (id, i)));
        }
        let _ = staging.discard();
    }
}

/// What the checker says of the disk; `None` if there is no store yet.
fn fsck(device: &FaultyDevice) -> Option<peersync_fsck::Report> {
    let dir = scratch();
    device.export(dir.path()).unwrap();
    let options = Options { jobs: 1, ..Options::default() };
    match peersync_fsck::check(dir.path(), &options, &peersync_fsck::Quiet) {
        Ok(report) => Some(report),
        Err(peersync_fsck::FsckError::NotAStore(_)) => None,
        Err(e) => panic!("{e}"),
    }
}

fn assert_clean(device: &FaultyDevice, oracle: &Oracle, what: &str) {
    match fsck(device) {
        Some(report) => assert_eq!(report.exit_code(), 0, "{what}:\n{}", report.summary()),
        None => assert!(oracle.durable.is_empty(), "{what}: the store is gone"),
    }
}

/// The disk after the power went, looked at by the checker and the engine.
fn examine(device: &FaultyDevice, oracle: &Oracle, what: &str) {
    assert_clean(device, oracle, what);
    let store = open_faulty(device).unwrap_or_else(|e| panic!("{what}: {e}"));
    for (id, content) in &oracle.contents {
        for index in 0..content.spec.block_count() {
            if store.has_block(id, index) {
                let block = store.read_block(id, index).unwrap();
                assert!(block.is_some(), "{what}: {id} {index} is claimed and wrong");
            } else {
                let lost = oracle.durable.contains(&(*id, index));
                assert!(!lost, "{what}: {id} {index} was durable and is lost");
            }
        }
    }
    let stats = store.stats();
    assert_eq!((stats.bad_blocks, stats.unreadable_blocks), (0, 0), "{what}");
    if let Ok(staging) = store.stage(&Digest::of(b"first pass")) {
        match staging.resumed().map(|resumed| &resumed.state[..]) {
            None | Some(b"one" | b"two") => {}
            other => panic!("{what}: resumed from {other:?}"),
        }
    }
    store.close().unwrap_or_else(|e| panic!("{what}: {e}"));
    assert_clean(device, oracle, &format!("{what}, closed"));
}

fn run(fault: Option<Fault>, styles: &[CrashStyle]) -> u64 {
    let device = FaultyDevice::new();
    device.plan(fault);
    let mut oracle = Oracle::default();
    workload(&device, &mut oracle);
    device.plan(None);
    device.heal();
    for style in styles {
        let what = format!("{fault:?}, {style:?}");
        examine(&device.reboot(*style), &oracle, &what);
    }
    device.operations()
}

fn points(total: u64) -> impl Iterator<Item = u64> {
    let step = match std::env::var("PEERSYNC_SWEEP") {
        Ok(all) if all == "full" => 1,
        _ => 7,
    };
    (0..total).step_by(step)
}

fn styles(n: u64) -> [CrashStyle; 4] {
    [
        CrashStyle::LoseAll,
        CrashStyle::KeepAll,
        CrashStyle::Random(2 * n),
        CrashStyle::Random(2 * n + 1),
    ]
}

fn operations() -> u64 {
    let n = run(None, &styles(0));
    eprintln!("{n} operations");
    n
}

#[test]
fn power_loss_at_every_operation() {
    for n in points(operations()) {
        run(Some(Fault::Crash(n)), &styles(n));
    }
}

#[test]
fn a_failure_at_every_operation() {
    for n in points(operations()) {
        run(Some(Fault::Fail(n)), &styles(n));
    }
}

#[test]
fn a_full_disk_at_every_operation() {
    for n in points(operations()) {
        run(Some(Fault::Full(n)), &styles(n)[..3]);
    }
}

/// A removal that fails at its very last sync is found begun after a crash: it must
/// not take what was stored since.
#[test]
fn what_is_put_after_a_removal_that_failed_stays() {
    let content = Content::random(1, 4096, 30_000);
    let id = content.spec.id();
    for n in 0.. {
        let device = FaultyDevice::new();
        let store = open_faulty(&device).unwrap();
        content.put_all(&store);
        store.sync().unwrap();
        let fault = device.operations() + n;
        device.plan(Some(Fault::Fail(fault)));
        let removed = store.remove_objects(&[id], Removal::Data);
        device.plan(None);
        if device.operations() <= fault {
            assert!(removed.is_ok() && n > 4, "{n} operations: {removed:?}");
            break;
        }
        content.put_all(&store);
        store.sync().unwrap();
        let device = device.reboot(CrashStyle::LoseAll);
        let store = open_faulty(&device).unwrap();
        let there = (0..content.spec.block_count()).filter(|index| store.has_block(&id, *index));
        assert_eq!(there.count(), content.spec.block_count() as usize, "operation {n} failed");
    }
}
