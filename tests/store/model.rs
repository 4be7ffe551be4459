//! Random operations and faults, against a model that is obviously right.

use std::collections::BTreeMap;

use peersync::store::device::{CrashStyle, Fault, FaultyDevice};
use peersync::store::{Removal, Store};
use peersync::types::{Digest, ObjectId};
use peersync_fsck::Options;
use proptest::prelude::*;

use crate::util::{Content, open_faulty, scratch};

#[derive(Clone, Debug)]
enum Op {
    Add(usize),
    Put(usize, u32),
    PutAll(usize),
    Copy(usize, u32, usize, u32),
    Read(usize, u64, usize),
    Remove(usize, bool),
    Sync,
    Document(u8),
    Name(u8),
    Close,
    Crash(u64),
    KillProcess,
    /// The operation so many from now fails.
    FailSoon(u64),
    /// The disk is full from then on, until the next one heals it.
    FullSoon(u64),
    Heal,
}

fn op() -> impl Strategy<Value = Op> {
    let object = 0usize..4;
    let block = 0u32..6;
    prop_oneof![
        2 => object.clone().prop_map(Op::Add),
        6 => (object.clone(), block.clone()).prop_map(|(o, b)| Op::Put(o, b)),
        3 => object.clone().prop_map(Op::PutAll),
        2 => (object.clone(), block.clone(), object.clone(), block)
            .prop_map(|(o, b, p, c)| Op::Copy(o, b, p, c)),
        4 => (object.clone(), 0u64..9000, 0usize..9000).prop_map(|(o, a, l)| Op::Read(o, a, l)),
        2 => (object, any::<bool>()).prop_map(|(o, all)| Op::Remove(o, all)),
        4 => Just(Op::Sync),
        1 => any::<u8>().prop_map(Op::Document),
        1 => any::<u8>().prop_map(Op::Name),
        1 => Just(Op::Close),
        2 => any::<u64>().prop_map(Op::Crash),
        1 => Just(Op::KillProcess),
        2 => (0u64..30).prop_map(Op::FailSoon),
        1 => (0u64..30).prop_map(Op::FullSoon),
        1 => Just(Op::Heal),
    ]
}

/// What a block may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Block {
    Absent,
    /// There now; a crash may lose it.
    Stored,
    /// There, and after a crash too.
    Durable,
    /// A failure may have dropped it, or not.
    Unsure,
}

struct Model {
    contents: Vec<Content>,
    blocks: BTreeMap<(usize, u32), Block>,
    /// Documents and names that were made durable.
    durable: Vec<Op>,
    pending: Vec<Op>,
    slots: BTreeMap<u8, u32>,
}

impl Model {
    fn new() -> Self {
        let a = Content::random(1, 1024, 5500);
        let b = Content::random(2, 2048, 8192);
        // Shares a block with `a`.
        let mut mixed = a.data[1024..2048].to_vec();
        mixed.extend(&b.data[..1000]);
        let c = Content::new(1024, mixed);
        let d = Content::random(3, 1024, 100);
        Self {
            contents: vec![a, b, c, d],
            blocks: BTreeMap::new(),
            durable: Vec::new(),
            pending: Vec::new(),
            slots: BTreeMap::new(),
        }
    }

    fn get(&self, object: usize, block: u32) -> Block {
        self.blocks.get(&(object, block)).copied().unwrap_or(Block::Absent)
    }

    fn all(&self) -> impl Iterator<Item = (usize, ObjectId, u32)> + '_ {
        self.contents.iter().enumerate().flat_map(|(o, content)| {
            (0..content.spec.block_count()).map(move |b| (o, content.spec.id(), b))
        })
    }

    /// What the store says it has is what it may have, byte by byte.
    fn check(&self, store: &Store) -> Result<(), TestCaseError> {
        let ids: std::collections::BTreeSet<_> = self.all().map(|(_, id, _)| id).collect();
        let there: u64 = ids.iter().map(|id| store.progress(id).resident).sum();
        // A full disk may keep the database from being opened again.
        if let Ok(held) = store.held() {
            prop_assert_eq!(held.bytes, there, "the account is wrong");
        }
        for (object, id, block) in self.all() {
            let expected = self.get(object, block);
            let has = store.has_block(&id, block);
            match expected {
                Block::Absent => prop_assert!(!has, "{object}/{block} from nowhere"),
                Block::Stored | Block::Durable => prop_assert!(has, "{object}/{block} lost"),
                Block::Unsure => {}
            }
            if has {
                let read = store.read_block(&id, block);
                prop_assert!(matches!(read, Ok(Some(_))), "{object}/{block}: {read:?}");
            }
        }
        prop_assert_eq!(store.stats().bad_blocks, 0);
        Ok(())
    }

    /// After a crash: the durable is there, the rest as it may be.
    fn crashed(&mut self, store: &Store) -> Result<(), TestCaseError> {
        for (object, id, block) in self.all().collect::<Vec<_>>() {
            let has = store.has_block(&id, block);
            match self.get(object, block) {
                Block::Durable => prop_assert!(has, "{object}/{block} was durable"),
                Block::Absent => prop_assert!(!has, "{object}/{block} from nowhere"),
                _ => {}
            }
            let now = if has { Block::Durable } else { Block::Absent };
            self.blocks.insert((object, block), now);
        }
        self.pending.clear();
        for op in &self.durable {
            match op {
                Op::Document(n) => {
                    let document = store.document(&Digest::of(&[*n])).unwrap();
                    prop_assert_eq!(document, Some(vec![*n]));
                }
                Op::Name(n) => {
                    let slot = store.find_name(&n.to_string()).unwrap();
                    prop_assert_eq!(slot, self.slots.get(n).copied());
                }
                _ => {}
            }
        }
        let durable: Vec<u8> = self
            .durable
            .iter()
            .filter_map(|op| if let Op::Name(n) = op { Some(*n) } else { None })
            .collect();
        self.slots.retain(|n, _| durable.contains(n));
        self.check(store)
    }

    fn synced(&mut self, done: bool) {
        for state in self.blocks.values_mut() {
            match (*state, done) {
                (Block::Stored, true) => *state = Block::Durable,
                // May be dropped, since the disk may have lost it.
                (Block::Stored, false) => *state = Block::Unsure,
                _ => {}
            }
        }
        if done {
            self.durable.append(&mut self.pending);
        }
    }

    /// The blocks of which nobody knows whether they are on the disk.
    fn unsure(&self) -> BTreeMap<(usize, u32), Block> {
        let all = self.blocks.iter().filter(|(_, state)| **state == Block::Unsure);
        all.map(|(block, state)| (*block, *state)).collect()
    }

    fn put(&mut self, store: &Store, object: usize, block: u32) {
        let content = &self.contents[object];
        if block >= content.spec.block_count() {
            return;
        }
        let id = content.spec.id();
        let put = store.put_block(&id, block, &content.block(block)).is_ok();
        let has = store.has_block(&id, block);
        assert!(has || !put, "stored, and not there");
        let state = match (self.get(object, block), has) {
            (Block::Durable, true) => Block::Durable,
            // Durable from before, but nobody was told: it may still go.
            (Block::Unsure, true) => Block::Unsure,
            (_, true) => Block::Stored,
            (_, false) => Block::Absent,
        };
        self.blocks.insert((object, block), state);
    }

    /// Removes, or tries to: what is left is the store's to say.
    fn remove(&mut self, store: &Store, object: usize, how: Removal) {
        let id = self.contents[object].spec.id();
        let done = store.remove_objects(&[id], how).is_ok();
        for block in 0..self.contents[object].spec.block_count() {
            let state = match (done, self.get(object, block)) {
                (true, _) | (_, Block::Absent) => Block::Absent,
                _ => Block::Unsure,
            };
            self.blocks.insert((object, block), state);
        }
    }
}

struct World {
    device: FaultyDevice,
    store: Option<Store>,
    model: Model,
}

impl World {
    fn new() -> Self {
        let device = FaultyDevice::new();
        let store = open_faulty(&device).unwrap();
        Self { device, store: Some(store), model: Model::new() }
    }

    fn fault_free(&self) {
        self.device.plan(None);
        self.device.heal();
    }

    fn reboot(&mut self, style: CrashStyle) -> Result<(), TestCaseError> {
        self.device.cut();
        self.store = None;
        self.device = self.device.reboot(style);
        let dir = scratch();
        self.device.export(dir.path()).unwrap();
        let options = Options { jobs: 1, ..Options::default() };
        let report = peersync_fsck::check(dir.path(), &options, &peersync_fsck::Quiet).unwrap();
        prop_assert_eq!(report.exit_code(), 0, "{}", report.summary());
        let store = open_faulty(&self.device).unwrap();
        self.model.crashed(&store)?;
        self.store = Some(store);
        Ok(())
    }

    fn step(&mut self, op: &Op) -> Result<(), TestCaseError> {
        match op {
            Op::Crash(seed) => return self.reboot(CrashStyle::Random(*seed)),
            Op::KillProcess => return self.reboot(CrashStyle::KeepAll),
            Op::Heal => self.fault_free(),
            Op::FailSoon(n) => {
                self.device.plan(Some(Fault::Fail(self.device.operations() + n)));
            }
            Op::FullSoon(n) => {
                self.device.plan(Some(Fault::Full(self.device.operations() + n)));
            }
            Op::Close => {
                let closed = self.store.take().unwrap().close().is_ok();
                self.model.synced(closed);
                let unsure = self.model.unsure();
                self.fault_free();
                let store = open_faulty(&self.device).unwrap();
                self.model.crashed(&store)?;
                // What is seen after a close that failed may be in memory only (a
                // bitmap's name whose directory could not be synced): it may still go.
                self.model.blocks.extend(unsure);
                self.store = Some(store);
            }
            other => self.on_store(other)?,
        }
        Ok(())
    }

    fn on_store(&mut self, op: &Op) -> Result<(), TestCaseError> {
        let store = self.store.as_ref().unwrap();
        let model = &mut self.model;
        match op {
            Op::Add(object) => {
                let _ = store.add_object(&model.contents[*object].spec);
            }
            Op::Put(object, block) => {
                let _ = store.add_object(&model.contents[*object].spec);
                model.put(store, *object, *block);
            }
            Op::PutAll(object) => {
                let _ = store.add_object(&model.contents[*object].spec);
                for block in 0..model.contents[*object].spec.block_count() {
                    model.put(store, *object, block);
                }
            }
            Op::Copy(from, block, to, at) => {
                let ids = (model.contents[*from].spec.id(), model.contents[*to].spec.id());
                let had = store.has_block(&ids.1, *at);
                if store.copy_block((ids.0, *block), (ids.1, *at)).is_ok_and(|done| done) && !had {
                    model.blocks.insert((*to, *at), Block::Stored);
                }
            }
            Op::Read(object, offset, len) => {
                let content = &model.contents[*object];
                let mut out = vec![7];
                let read = store.read_at(&content.spec.id(), *offset, *len, &mut out);
                if matches!(read, Ok(true)) {
                    let start = *offset as usize;
                    prop_assert_eq!(&out[1..], &content.data[start..start + len]);
                } else {
                    prop_assert_eq!(out, [7]);
                }
            }
            Op::Remove(object, all) => {
                let how = if *all { Removal::Everything } else { Removal::Data };
                model.remove(store, *object, how);
            }
            Op::Sync => {
                let done = store.sync().is_ok();
                model.synced(done);
            }
            Op::Document(n) if store.put_document(&Digest::of(&[*n]), &[*n]).is_ok() => {
                model.pending.push(op.clone());
            }
            Op::Name(n) => {
                if let Ok(slot) = store.name_slot(&n.to_string()) {
                    let known = model.slots.insert(*n, slot);
                    prop_assert!(known.is_none_or(|known| known == slot), "a slot changed");
                    model.pending.push(op.clone());
                }
            }
            _ => {}
        }
        model.check(store)
    }
}

/// 48 runs, or as many as `PROPTEST_CASES` says. The seed is printed on failure.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { 48 };
    ProptestConfig { cases, max_shrink_iters: 2000, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_store_does_what_the_model_does(ops in prop::collection::vec(op(), 1..60)) {
        let mut world = World::new();
        for op in &ops {
            world.step(op)?;
        }
        world.fault_free();
        world.reboot(CrashStyle::LoseAll)?;
    }
}

/// A removal fails and is on record all the same, what was stored before is made durable,
/// and the next opening ends the removal: then nothing may be claimed.
#[test]
fn a_batch_after_a_removal_that_failed_claims_nothing_in_the_end() {
    for fails in 0..40 {
        let mut world = World::new();
        let ops = [Op::PutAll(2), Op::FailSoon(fails), Op::Remove(2, false)];
        let rest = [Op::Sync, Op::Close, Op::PutAll(0), Op::Crash(0)];
        for op in ops.iter().chain(&rest) {
            world.step(op).unwrap_or_else(|why| panic!("operation {fails} failed: {op:?}: {why}"));
        }
    }
}

/// The same object again, block by block: the first of them ends the removal, and no
/// later one takes it away.
#[test]
fn what_is_put_after_a_removal_that_failed_is_not_taken_away_by_the_next() {
    for full in 0..40 {
        let mut world = World::new();
        let ops = [Op::Put(2, 1), Op::FailSoon(0), Op::Remove(2, false)];
        for op in ops.iter().chain(&[Op::FullSoon(full), Op::PutAll(2)]) {
            world.step(op).unwrap_or_else(|why| panic!("full after {full}: {op:?}: {why}"));
        }
    }
}

/// A put fails where the directory of its object has been made and is not synced yet:
/// what is stored there afterwards and made durable stays.
#[test]
fn what_is_stored_after_a_put_that_failed_outlives_a_loss_of_power() {
    for fails in 0..60 {
        let mut world = World::new();
        let before = [Op::PutAll(0), Op::Close, Op::Put(1, 0), Op::Remove(0, true)];
        for op in before.iter().chain(&[Op::FailSoon(fails), Op::PutAll(2), Op::Sync]) {
            world.step(op).unwrap_or_else(|why| panic!("operation {fails} failed: {op:?}: {why}"));
        }
        let lost = world.reboot(CrashStyle::LoseAll);
        lost.unwrap_or_else(|why| panic!("operation {fails} failed, then power: {why}"));
    }
}
