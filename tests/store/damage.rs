//! Every finding of the checker: made, named, repaired, and nothing else lost.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use peersync::layer::root::LayerRoot;
use peersync::store::format::layout::{bits_path, data_path};
use peersync::store::format::records::{BlobRecord, LayerRecord, ObjectRecord, SlotOwner};
use peersync::store::format::tables::Table;
use peersync::store::format::{bits, keys, seal, unseal};
use peersync::store::{IndexOrigin, LayerKey};
use peersync::types::{Digest, ObjectId};
use peersync_fsck::{Kind, Options, Report};
use redb::ReadableTable as _;

use crate::populated::Populated;
use crate::util::{copy_dir, open, scratch};

fn fsck(path: &Path, repair: bool) -> Report {
    let options = Options { repair, jobs: 2 };
    peersync_fsck::check(path, &options, &peersync_fsck::Quiet).unwrap()
}

/// Changes the database behind everybody's back.
fn edit(store: &Path, change: impl FnOnce(&mut dyn FnMut(Table, &[u8], Option<&[u8]>))) {
    let db = redb::Database::open(store.join("meta")).unwrap();
    let mut txn = db.begin_write().unwrap();
    txn.set_quick_repair(true);
    change(&mut |table, key, value| {
        let mut open = txn.open_table(table.definition()).unwrap();
        match value {
            Some(value) => drop(open.insert(key, value).unwrap()),
            None => drop(open.remove(key).unwrap()),
        }
    });
    txn.commit().unwrap();
}

fn value(store: &Path, table: Table, key: &[u8]) -> Vec<u8> {
    let db = redb::Database::open(store.join("meta")).unwrap();
    let txn = db.begin_write().unwrap();
    let open = txn.open_table(table.definition()).unwrap();
    let sealed = open.get(key).unwrap().unwrap().value().to_vec();
    unseal(table.name(), key, &sealed).unwrap().to_vec()
}

fn first_key(store: &Path, table: Table) -> Vec<u8> {
    let db = redb::Database::open(store.join("meta")).unwrap();
    let txn = db.begin_write().unwrap();
    let open = txn.open_table(table.definition()).unwrap();
    open.iter().unwrap().next().unwrap().unwrap().0.value().to_vec()
}

fn put(store: &Path, table: Table, key: &[u8], payload: Vec<u8>) {
    let sealed = seal(table.name(), key, payload);
    edit(store, |write| write(table, key, Some(&sealed)));
}

fn flip(path: PathBuf, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

struct Case {
    name: &'static str,
    kind: Kind,
    damage: fn(&Path, &Populated),
    /// Blocks that may be gone afterwards.
    loses: fn(&Populated) -> Vec<(ObjectId, u32)>,
    /// Whether all that is known of layers and images survives.
    keeps_records: bool,
}

fn nothing(_: &Populated) -> Vec<(ObjectId, u32)> {
    Vec::new()
}

fn all_of_first(p: &Populated) -> Vec<(ObjectId, u32)> {
    let spec = &p.whole[0].spec;
    (0..spec.block_count()).map(|i| (spec.id(), i)).collect()
}

fn all_of_half(p: &Populated) -> Vec<(ObjectId, u32)> {
    let spec = &p.half.spec;
    (0..spec.block_count()).map(|i| (spec.id(), i)).collect()
}

const CASES: &[Case] = &[
    Case {
        name: "a flipped byte in a complete object",
        kind: Kind::BadBlock,
        damage: |store, p| flip(store.join(data_path(&p.whole[0].spec.id())), 5000),
        loses: |p| vec![(p.whole[0].spec.id(), 1)],
        keeps_records: true,
    },
    Case {
        name: "a flipped byte in a partial object",
        kind: Kind::BadBlock,
        damage: |store, p| flip(store.join(data_path(&p.half.spec.id())), 1024),
        loses: |p| vec![(p.half.spec.id(), 2)],
        keeps_records: true,
    },
    Case {
        name: "a truncated data file",
        kind: Kind::MissingData,
        damage: |store, p| {
            let path = store.join(data_path(&p.whole[0].spec.id()));
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(9000).unwrap();
        },
        loses: |p| (2..8).map(|i| (p.whole[0].spec.id(), i)).collect(),
        keeps_records: true,
    },
    Case {
        name: "a missing data file",
        kind: Kind::MissingData,
        damage: |store, p| fs::remove_file(store.join(data_path(&p.whole[0].spec.id()))).unwrap(),
        loses: all_of_first,
        keeps_records: true,
    },
    Case {
        name: "a data file that is a link",
        kind: Kind::Stranger,
        damage: |store, p| {
            let path = store.join(data_path(&p.whole[0].spec.id()));
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
        },
        loses: all_of_first,
        keeps_records: true,
    },
    Case {
        name: "a data file that is too long",
        kind: Kind::Length,
        damage: |store, p| {
            let path = store.join(data_path(&p.whole[0].spec.id()));
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(99_000).unwrap();
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a flipped byte in a bitmap",
        kind: Kind::Bitmap,
        damage: |store, p| flip(store.join(bits_path(&p.half.spec.id())), 64 + 3),
        loses: |p| (0..448).map(|i| (p.half.spec.id(), i)).collect(),
        keeps_records: true,
    },
    Case {
        name: "a damaged header of a bitmap",
        kind: Kind::Bitmap,
        damage: |store, p| flip(store.join(bits_path(&p.half.spec.id())), 3),
        loses: all_of_half,
        keeps_records: true,
    },
    Case {
        name: "a truncated bitmap",
        kind: Kind::Bitmap,
        damage: |store, p| {
            let path = store.join(bits_path(&p.half.spec.id()));
            fs::OpenOptions::new().write(true).open(path).unwrap().set_len(128).unwrap();
        },
        loses: |p| (448..500).map(|i| (p.half.spec.id(), i)).collect(),
        keeps_records: true,
    },
    Case {
        name: "a claim without data",
        kind: Kind::MissingData,
        damage: |store, p| {
            let id = p.half.spec.id();
            let line = bits::line(
                &id,
                1,
                &[0x0f; 1].iter().chain(&[0; 55]).copied().collect::<Vec<_>>().try_into().unwrap(),
            );
            let file = fs::OpenOptions::new().write(true).open(store.join(bits_path(&id))).unwrap();
            file.write_all_at(&line, bits::line_offset(1)).unwrap();
        },
        loses: |p| (448..500).map(|i| (p.half.spec.id(), i)).collect(),
        keeps_records: true,
    },
    Case {
        name: "a data file without a record",
        kind: Kind::Orphan,
        damage: |store, _| {
            let id = ObjectId::from_bytes([0xab; 32]);
            fs::create_dir_all(store.join("objects/ab")).unwrap();
            fs::write(store.join(data_path(&id)), b"whose?").unwrap();
            fs::write(store.join(bits_path(&id)), b"whose?").unwrap();
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "strange files, directories and links in objects/",
        kind: Kind::Stranger,
        damage: |store, _| {
            fs::write(store.join("objects/notes.txt"), b"mine").unwrap();
            fs::create_dir(store.join("objects/ABC")).unwrap();
            std::os::unix::fs::symlink("/etc", store.join("objects/zz")).unwrap();
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a directory where a data file was",
        kind: Kind::MissingData,
        damage: |store, p| {
            let path = store.join(data_path(&p.whole[0].spec.id()));
            fs::remove_file(&path).unwrap();
            fs::create_dir(path).unwrap();
        },
        loses: all_of_first,
        keeps_records: true,
    },
    Case {
        name: "a pipe where a bitmap was",
        kind: Kind::Bitmap,
        damage: |store, p| {
            let path = store.join(bits_path(&p.half.spec.id()));
            fs::remove_file(&path).unwrap();
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        },
        loses: all_of_half,
        keeps_records: true,
    },
    Case {
        name: "a strange file in staging/",
        kind: Kind::Stranger,
        damage: |store, _| fs::write(store.join("staging/x"), b"mine").unwrap(),
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a damaged format file",
        kind: Kind::Format,
        damage: |store, _| fs::write(store.join("format"), b"peersync-stor").unwrap(),
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a missing format file",
        kind: Kind::Format,
        damage: |store, _| fs::remove_file(store.join("format")).unwrap(),
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a missing database",
        kind: Kind::Database,
        damage: |store, _| fs::remove_file(store.join("meta")).unwrap(),
        // Objects in blocks of another size can't be named without it.
        loses: |p| {
            let unusual = p.whole.iter().chain([&p.half]).chain([&p.layers[0].objects[0]]);
            unusual.flat_map(|c| (0..c.spec.block_count()).map(|i| (c.spec.id(), i))).collect()
        },
        keeps_records: false,
    },
    Case {
        name: "a database that is none",
        kind: Kind::Database,
        damage: |store, _| fs::write(store.join("meta"), [7; 9000]).unwrap(),
        loses: |p| {
            let unusual = p.whole.iter().chain([&p.half]).chain([&p.layers[0].objects[0]]);
            unusual.flat_map(|c| (0..c.spec.block_count()).map(|i| (c.spec.id(), i))).collect()
        },
        keeps_records: false,
    },
    Case {
        name: "an empty database",
        kind: Kind::Database,
        damage: |store, _| fs::write(store.join("meta"), b"").unwrap(),
        loses: |p| {
            let unusual = p.whole.iter().chain([&p.half]).chain([&p.layers[0].objects[0]]);
            unusual.flat_map(|c| (0..c.spec.block_count()).map(|i| (c.spec.id(), i))).collect()
        },
        keeps_records: false,
    },
    Case {
        name: "a database whose page size is damaged",
        kind: Kind::Database,
        damage: |store, _| flip(store.join("meta"), 13),
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a database of a newer version of redb",
        kind: Kind::Database,
        damage: |store, _| {
            for slot in [64, 192] {
                flip(store.join("meta"), slot);
            }
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a database whose last commit is damaged",
        kind: Kind::Database,
        damage: |store, _| {
            // Flags, of which the first says which of the two slots counts.
            let flags = fs::read(store.join("meta")).unwrap()[9];
            flip(store.join("meta"), 64 + 128 * u64::from(flags & 1) + 40);
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a record with a wrong checksum",
        kind: Kind::Record,
        damage: |store, _| {
            let key = first_key(store, Table::Origins);
            edit(store, |write| write(Table::Origins, &key, Some(&[1; 8])));
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "an object's record with a wrong checksum",
        kind: Kind::Record,
        damage: |store, p| {
            // Of a layer: its list of blocks names it.
            let id = p.layers[0].objects[1].spec.id();
            edit(store, |write| write(Table::Objects, id.as_bytes(), Some(&[1; 30])));
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "the record of a bundle with a wrong checksum",
        kind: Kind::Record,
        damage: |store, p| {
            let id = p.layers[0].objects[0].spec.id();
            edit(store, |write| write(Table::Objects, id.as_bytes(), Some(&[1; 30])));
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "a missing row of the index of blocks",
        kind: Kind::Relation,
        damage: |store, _| {
            let key = first_key(store, Table::BlockIndex);
            edit(store, |write| write(Table::BlockIndex, &key, None));
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a row too many in the index of blocks",
        kind: Kind::Relation,
        damage: |store, _| edit(store, |write| write(Table::BlockIndex, &[9; 24], Some(&[]))),
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a block list that is another's",
        kind: Kind::BlockList,
        damage: |store, p| {
            let id = p.whole[1].spec.id();
            let record = value(store, Table::Objects, id.as_bytes());
            let number = ObjectRecord::decode(&record).unwrap().number;
            put(store, Table::Specs, &keys::spec_chunk(number, 0), vec![16; 36]);
        },
        loses: |p| vec![(p.whole[1].spec.id(), 0)],
        keeps_records: true,
    },
    Case {
        name: "a reference that one side does not know",
        kind: Kind::References,
        damage: |store, _| {
            let key = first_key(store, Table::References);
            edit(store, |write| write(Table::References, &key, None));
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a reference too many",
        kind: Kind::References,
        damage: |store, p| {
            let key = keys::reference(&p.whole[0].spec.id(), 77);
            edit(store, |write| write(Table::References, &key, Some(&[])));
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a layer without its slot",
        kind: Kind::References,
        damage: |store, p| {
            let layer = value(store, Table::Layers, &keys::layer(&p.layers[0].key));
            let slot = LayerRecord::decode(&layer).unwrap().slot;
            edit(store, |write| write(Table::Slots, &keys::number(slot), None));
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "a slot without its owner",
        kind: Kind::Relation,
        damage: |store, _| {
            let owner = SlotOwner::Chain(Digest::of(b"nobody"));
            put(store, Table::Slots, &keys::number(50), owner.encode());
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "a counter that fell back",
        kind: Kind::Relation,
        damage: |store, _| {
            put(store, Table::State, keys::STATE_NEXT_SLOT, 1u32.to_le_bytes().to_vec());
        },
        loses: nothing,
        keeps_records: true,
    },
    Case {
        name: "an index whose signature fails",
        kind: Kind::Signature,
        damage: |store, p| {
            let mut root = p.layers[0].root.encode();
            let last = root.len() - 1;
            root[last] ^= 1;
            put_root(store, &p.layers[0].blob(), root, p.layers[0].key.clone());
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "an index that does not parse",
        kind: Kind::LayerIndex,
        damage: |store, p| {
            put_root(store, &p.layers[0].blob(), b"root".to_vec(), p.layers[0].key.clone());
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "an index of another layer",
        kind: Kind::LayerIndex,
        damage: |store, p| {
            let root = p.layers[1].root.encode();
            put_root(store, &p.layers[0].blob(), root, p.layers[0].key.clone());
        },
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "a layer that is not what its diffID says",
        kind: Kind::DiffId,
        damage: lie_about_the_layer,
        loses: nothing,
        keeps_records: false,
    },
    Case {
        name: "a document that is another",
        kind: Kind::Document,
        damage: |store, _| {
            put(store, Table::Documents, Digest::of(b"{}").as_bytes(), b"[]".to_vec());
        },
        loses: nothing,
        keeps_records: false,
    },
];

fn put_root(store: &Path, blob: &Digest, root: Vec<u8>, layer: LayerKey) {
    let record = BlobRecord { root, layer, origin: IndexOrigin::Swarm };
    put(store, Table::Blobs, blob.as_bytes(), record.encode());
}

/// A builder signed that the first layer's parts are those of another diffID.
fn lie_about_the_layer(store: &Path, p: &Populated) {
    let layer = &p.layers[0];
    let mut body = layer.root.body().clone();
    body.diff_id = Digest::of(b"a lie");
    let key = LayerKey { diff_id: body.diff_id, path: None };
    let signer = ed25519_dalek::SigningKey::from_bytes(&[8; 32]);
    let root = LayerRoot::sign(body, &signer).unwrap();
    let old = keys::layer(&layer.key);
    let record = value(store, Table::Layers, &old);
    let slot = LayerRecord::decode(&record).unwrap().slot;
    edit(store, |write| write(Table::Layers, &old, None));
    put(store, Table::Layers, &keys::layer(&key), record);
    put(store, Table::Slots, &keys::number(slot), SlotOwner::Layer(key.clone()).encode());
    put_root(store, &layer.blob(), root.encode(), key);
}

#[test]
fn every_damage_is_named_and_repaired() {
    let populated = Populated::new();
    let good = scratch();
    let store = open(good.path());
    populated.fill(&store);
    store.close().unwrap();
    let report = fsck(good.path(), false);
    assert_eq!(report.exit_code(), 0, "{}", report.summary());
    assert_eq!((report.checked.layers, report.checked.rebuilt), (2, 1));
    for case in CASES {
        let dir = scratch();
        copy_dir(good.path(), dir.path());
        (case.damage)(dir.path(), &populated);
        examine(case, dir.path(), &populated);
    }
}

fn examine(case: &Case, dir: &Path, populated: &Populated) {
    let name = case.name;
    let before = snapshot(dir);
    let report = fsck(dir, false);
    assert_eq!(report.exit_code(), 4, "{name}:\n{}", report.summary());
    assert!(report.counts.contains_key(&case.kind), "{name}:\n{}", report.summary());
    assert_eq!(before, snapshot(dir), "{name}: a check changes nothing");
    let report = fsck(dir, true);
    assert_eq!(report.exit_code(), 1, "{name}:\n{}", report.summary());
    let report = fsck(dir, false);
    assert_eq!(report.exit_code(), 0, "{name}, repaired:\n{}", report.summary());
    let store = open(dir);
    let may_lack = (case.loses)(populated);
    populated.read(&store, |id, index| {
        assert!(may_lack.contains(&(*id, index)), "{name}: {id} {index} was lost");
    });
    assert_eq!(store.stats().bad_blocks, 0, "{name}");
    if case.keeps_records {
        assert!(populated.is_known(&store), "{name}: records were lost");
    }
    // What was dropped can be put again.
    populated.fill(&store);
    populated.read(&store, |id, index| panic!("{name}: {id} {index} is not there"));
    assert!(populated.is_known(&store), "{name}");
    store.close().unwrap();
    let report = fsck(dir, false);
    assert_eq!(report.exit_code(), 0, "{name}, filled:\n{}", report.summary());
}

/// All files but the lock, which says who looked last.
fn snapshot(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_symlink() || !(path.is_dir() || path.is_file()) {
                out.push((path, Vec::new()));
            } else if path.is_dir() {
                todo.push(path);
            } else if !path.ends_with("lock") {
                let bytes = fs::read(&path).unwrap();
                out.push((path, bytes));
            }
        }
    }
    out.sort();
    out
}
