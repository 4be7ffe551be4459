//! A checker written from `docs/FORMAT.md` alone: names, offsets and values as they
//! stand there, none of the code's. What it reads of a real store must be what was
//! put into it, so the page and the code can't drift apart.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use peersync::store::Store;
use peersync::store::format::tables::Table;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition, TableHandle as _};
use sha2::Digest as _;

use crate::populated::Populated;
use crate::util::{open, options, scratch};

/// Table and whether it is an index: its rows have empty values and no seal.
const TABLES: [(&str, bool); 23] = [
    ("state", false),
    ("objects", false),
    ("numbers", false),
    ("specs", false),
    ("block_index", true),
    ("marks", false),
    ("removing", false),
    ("promotions", false),
    ("contents", false),
    ("content_index", true),
    ("layers", false),
    ("layer_objects", false),
    ("references", true),
    ("blobs", false),
    ("homes", true),
    ("origins", false),
    ("slots", false),
    ("chains", false),
    ("names", false),
    ("images", false),
    ("documents", false),
    ("accesses", false),
    ("pins", false),
];

type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// A store as the page describes it.
struct Written {
    dir: PathBuf,
    tables: BTreeMap<&'static str, Rows>,
}

/// Fields one after the other, little-endian.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    fn u8(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    /// *bytes(x)*.
    fn bytes(&mut self) -> &'a [u8] {
        let len = self.u32();
        self.take(len as usize)
    }

    fn end(self) {
        assert!(self.0.is_empty(), "{} bytes too many", self.0.len());
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A number in a key: big-endian.
fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes.try_into().unwrap())
}

fn b3(parts: &[&[u8]], n: usize) -> Vec<u8> {
    blake3::hash(&parts.concat()).as_bytes()[..n].to_vec()
}

/// Block size, length and hash of each block, and whether all are there.
type Listed = (u32, Vec<(u32, Vec<u8>)>, bool);

impl Written {
    fn read(dir: &Path) -> Self {
        assert_eq!(fs::read(dir.join("format")).unwrap(), b"peersync-store 1\n");
        let db = redb::Database::open(dir.join("meta")).unwrap();
        let txn = db.begin_read().unwrap();
        let listed: BTreeSet<String> =
            txn.list_tables().unwrap().map(|table| table.name().to_owned()).collect();
        let named: BTreeSet<String> = TABLES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(listed, named);
        let mut tables = BTreeMap::new();
        for (name, index) in TABLES {
            let table = TableDefinition::<&[u8], &[u8]>::new(name);
            let mut rows = Rows::new();
            for row in txn.open_table(table).unwrap().iter().unwrap() {
                let (key, value) = row.unwrap();
                let payload = payload(name, index, key.value(), value.value());
                rows.insert(key.value().to_vec(), payload);
            }
            tables.insert(name, rows);
        }
        Self { dir: dir.to_owned(), tables }
    }

    fn rows(&self, table: &str) -> &Rows {
        &self.tables[table]
    }

    /// Block size, and length and hash of each block, of every object by name.
    fn objects(&self) -> BTreeMap<Vec<u8>, Listed> {
        let mut out = BTreeMap::new();
        for (name, payload) in self.rows("objects") {
            let mut f = Fields(payload);
            let (number, block_size, length, count) = (f.u32(), f.u32(), f.u64(), f.u32());
            let complete = f.u8();
            f.end();
            assert!(complete <= 1 && (1..=1_048_576).contains(&block_size));
            assert_eq!(&self.rows("numbers")[&number.to_be_bytes()[..]], name);
            let mut list = Vec::new();
            for chunk in 0..count.div_ceil(1024) {
                let key = [number.to_be_bytes(), chunk.to_be_bytes()].concat();
                list.extend(&self.rows("specs")[&key]);
            }
            let head = [block_size.to_le_bytes(), count.to_le_bytes()].concat();
            let mut hasher = blake3::Hasher::new_derive_key("peersync 2026 object v1");
            hasher.update(&head).update(&list);
            assert_eq!(hasher.finalize().as_bytes()[..], name[..]);
            let blocks: Vec<(u32, Vec<u8>)> = list
                .chunks(36)
                .map(|entry| {
                    let mut f = Fields(entry);
                    (f.u32(), f.take(32).to_vec())
                })
                .collect();
            assert_eq!(blocks.len(), count as usize);
            assert_eq!(blocks.iter().map(|(len, _)| u64::from(*len)).sum::<u64>(), length);
            for (index, (_, hash)) in (0u32..).zip(&blocks) {
                let key =
                    [&hash[..16], &number.to_be_bytes()[..], &index.to_be_bytes()[..]].concat();
                assert!(self.rows("block_index").contains_key(&key));
            }
            out.insert(name.clone(), (block_size, blocks, complete == 1));
        }
        assert_eq!(out.len(), self.rows("numbers").len());
        out
    }

    /// Which blocks the object claims.
    fn claims(&self, name: &[u8], count: u32, complete: bool) -> Vec<bool> {
        if self.rows("removing").contains_key(name) {
            return vec![false; count as usize];
        }
        if complete {
            return vec![true; count as usize];
        }
        let path = self.dir.join(format!("objects/{}/{}.bits", &hex(name)[..2], hex(name)));
        let Ok(file) = fs::read(path) else { return vec![false; count as usize] };
        let (header, lines) = file.split_at(64);
        assert_eq!(&header[..8], b"PSYNCbit");
        assert_eq!(header[8..12], 1u32.to_le_bytes());
        assert_eq!(header[12..16], count.to_le_bytes());
        assert_eq!(&header[16..48], name);
        assert_eq!(header[48..56], [0; 8]);
        assert_eq!(header[56..], b3(&[name, &[0xff; 4], &header[..56]], 8));
        assert_eq!(lines.len(), 64 * count.div_ceil(448) as usize);
        let mut claims = Vec::new();
        for (n, line) in (0u32..).zip(lines.chunks(64)) {
            let sum = b3(&[name, &n.to_le_bytes(), &line[..56]], 8);
            assert!(line[56..] == sum || line.iter().all(|b| *b == 0));
            let left = (count - 448 * n).min(448);
            claims.extend((0..left).map(|i| line[i as usize / 8] >> (i % 8) & 1 == 1));
        }
        claims
    }
}

/// A value without its seal.
fn payload(table: &str, index: bool, key: &[u8], value: &[u8]) -> Vec<u8> {
    if index {
        assert!(value.is_empty());
        return Vec::new();
    }
    let (payload, seal) = value.split_at(value.len() - 8);
    let lengths = [table.len() as u32, key.len() as u32].map(u32::to_le_bytes);
    let sealed = b3(&[&lengths[0], table.as_bytes(), &lengths[1], key, payload], 8);
    assert_eq!(seal, sealed, "{table}/{}", hex(key));
    payload.to_vec()
}

fn populated(dir: &Path) -> Populated {
    let populated = Populated::new();
    let store = open(dir);
    populated.fill(&store);
    store.note_used(&populated.whole[0].spec.id(), 1_800_000_000);
    store.pin("docker.io/library/image:1", 1_800_000_001).unwrap();
    store.close().unwrap();
    populated
}

#[test]
fn tables_are_those_of_the_page() {
    let names: Vec<&str> = Table::ALL.iter().map(|table| table.name()).collect();
    assert_eq!(names, TABLES.map(|(name, _)| name));
}

#[test]
fn objects_and_data_are_where_the_page_says() {
    let dir = scratch();
    let populated = populated(dir.path());
    let written = Written::read(dir.path());
    let objects = written.objects();
    let expected: BTreeSet<Vec<u8>> = populated
        .contents()
        .map(|content| content.spec.id().as_bytes().to_vec())
        .chain(populated.layers[1].objects.iter().map(|o| o.spec.id().as_bytes().to_vec()))
        .collect();
    assert_eq!(objects.keys().cloned().collect::<BTreeSet<_>>(), expected);
    let mut claimed = 0;
    for (name, (_, blocks, complete)) in &objects {
        let claims = written.claims(name, blocks.len() as u32, *complete);
        let path = dir.path().join(format!("objects/{}/{}", &hex(name)[..2], hex(name)));
        let data = fs::read(path).unwrap_or_default();
        let mut offset = 0;
        for ((len, hash), claimed_here) in blocks.iter().zip(claims) {
            let end = offset + *len as usize;
            if claimed_here {
                assert_eq!(blake3::hash(&data[offset..end]).as_bytes()[..], hash[..]);
                claimed += 1;
            }
            offset = end;
        }
    }
    let mut there = BTreeSet::new();
    for content in populated.contents() {
        let id = content.spec.id();
        there.extend((0..content.spec.block_count()).map(|i| (id, i)));
    }
    there.retain(|(id, index)| populated.had(id, *index));
    assert_eq!(claimed, there.len());
    // A mark says what the file was when it was verified.
    let mut session = Fields(&written.rows("state")[&b"session"[..]]);
    let (clean, epoch) = (session.u8(), session.u64());
    session.end();
    assert_eq!(clean, 1);
    assert!(!written.rows("marks").is_empty());
    for (name, payload) in written.rows("marks") {
        use std::os::unix::fs::MetadataExt;
        let path = dir.path().join(format!("objects/{}/{}", &hex(name)[..2], hex(name)));
        let found = fs::metadata(path).unwrap();
        let mut f = Fields(payload);
        assert_eq!((f.u64(), f.u64(), f.u64()), (epoch, found.size(), found.ino()));
        assert_eq!(f.u64() as i64, found.ctime());
        assert_eq!(i64::from(f.u32()), found.ctime_nsec());
        f.end();
    }
    let next = |key: &str| {
        let mut f = Fields(&written.rows("state")[key.as_bytes()]);
        let next = f.u32();
        f.end();
        next
    };
    assert!(written.rows("numbers").keys().all(|key| be32(key) < next("next_object")));
    assert!(written.rows("slots").keys().all(|key| be32(key) < next("next_slot")));
    assert_eq!(next("tables"), 23);
    let used = &written.rows("accesses")[&populated.whole[0].spec.id().as_bytes()[..]];
    assert_eq!(used[..], 1_800_000_000u64.to_le_bytes());
    let pinned = &written.rows("pins")[&b"docker.io/library/image:1"[..]];
    assert_eq!(pinned[..], 1_800_000_001u64.to_le_bytes());
}

#[test]
fn layers_images_and_contents_are_where_the_page_says() {
    let dir = scratch();
    let populated = populated(dir.path());
    let written = Written::read(dir.path());
    let objects = written.objects();
    let mut slots = Vec::new();
    for layer in &populated.layers {
        let key = layer.key.diff_id.as_bytes().to_vec();
        let mut f = Fields(&written.rows("layers")[&key]);
        let (slot, tree, list) = (f.u32(), f.take(32).to_vec(), f.take(32).to_vec());
        f.end();
        assert_eq!(tree, layer.parts[0].spec.id().as_bytes());
        assert_eq!(list, layer.parts[1].spec.id().as_bytes());
        let mut places = Vec::new();
        let mut parts = 0;
        for (row, payload) in written.rows("layer_objects") {
            let (of, name) = row.split_at(4);
            if be32(of) == slot {
                assert!(objects.contains_key(name));
                let reference = [name, of].concat();
                assert!(written.rows("references").contains_key(&reference));
                let mut f = Fields(payload);
                match (f.u8(), f.u32()) {
                    (0, 0) => parts += 1,
                    (1, place) => places.push((place, name.to_vec())),
                    other => panic!("{other:?}"),
                }
                f.end();
            }
        }
        assert_eq!(parts, 4);
        places.sort();
        let wanted: Vec<_> =
            (0u32..).zip(layer.objects.iter().map(|o| o.spec.id().as_bytes().to_vec())).collect();
        assert_eq!(places, wanted);
        let blob = layer.blob().as_bytes().to_vec();
        let mut f = Fields(&written.rows("blobs")[&blob]);
        assert_eq!(f.u8(), 0, "built here");
        assert_eq!(f.bytes(), key);
        assert_eq!(f.bytes(), layer.root.encode());
        f.end();
        for object in &layer.objects {
            let home = [&object.spec.id().as_bytes()[..], &blob[..]].concat();
            assert!(written.rows("homes").contains_key(&home));
        }
        let origin = [&blob[..], b"registry.example/library/image"].concat();
        assert!(written.rows("origins")[&origin].is_empty());
        let mut f = Fields(&written.rows("slots")[&slot.to_be_bytes()[..]]);
        assert_eq!((f.u8(), f.bytes()), (0, &key[..]));
        f.end();
        slots.push(slot);
    }
    assert_eq!(written.rows("references").len(), written.rows("layer_objects").len());
    let (chain, payload) = written.rows("chains").first_key_value().unwrap();
    let mut f = Fields(payload);
    let (slot, count) = (f.u32(), f.u32());
    assert_eq!((0..count).map(|_| f.u32()).collect::<Vec<_>>(), slots);
    f.end();
    let mut f = Fields(&written.rows("slots")[&slot.to_be_bytes()[..]]);
    assert_eq!((f.u8(), f.bytes()), (1, &chain[..]));
    f.end();
    let (name, payload) = written.rows("names").first_key_value().unwrap();
    assert_eq!(name, b"images/docker.io");
    let owned = u32::from_le_bytes(payload[..].try_into().unwrap()).to_be_bytes();
    let mut f = Fields(&written.rows("slots")[&owned[..]]);
    assert_eq!((f.u8(), f.bytes()), (2, &name[..]));
    f.end();
    let (document, bytes) = written.rows("documents").first_key_value().unwrap();
    assert_eq!(sha2::Sha256::digest(bytes)[..], document[..]);
    let mut f = Fields(&written.rows("images")[&b"docker.io/library/image:1"[..]]);
    assert_eq!((f.take(32), f.take(32)), (&document[..], &chain[..]));
    assert_eq!((f.u64() as i64, f.bytes()), (1_700_000_000, &b"linux/amd64"[..]));
    f.end();
    let first = &populated.whole[0];
    let (key, payload) = written.rows("contents").first_key_value().unwrap();
    let (number, offset) = key.split_at(4);
    assert_eq!(written.rows("numbers")[number][..], first.spec.id().as_bytes()[..]);
    assert_eq!(offset, 100u64.to_be_bytes());
    let mut f = Fields(payload);
    let hash = f.take(32);
    assert_eq!(hash, blake3::hash(&first.data[100..200]).as_bytes());
    assert_eq!(f.u64(), 100);
    f.end();
    assert!(written.rows("content_index").contains_key(&[&hash[..16], key].concat()));
}

#[test]
fn a_first_pass_is_staged_as_the_page_says() {
    let dir = scratch();
    let populated = populated(dir.path());
    let staged = dir.path().join("staging").join(hex(&sha2::Sha256::digest(b"staged")));
    assert_eq!(fs::read(staged.join("literals")).unwrap(), b"header");
    let file = fs::read(staged.join("file-0")).unwrap();
    assert_eq!(file[..], populated.whole[0].data[..4096]);
    // Sequence numbers begin with 1.
    let bytes = fs::read(staged.join("checkpoint-1")).unwrap();
    let (covered, sum) = bytes.split_at(bytes.len() - 32);
    assert_eq!(sum, blake3::hash(covered).as_bytes());
    let mut f = Fields(covered);
    assert_eq!((f.take(8), f.u32(), f.u64()), (&b"PSYNCckp"[..], 1, 1));
    let streams: Vec<(&[u8], u64)> = (0..f.u32()).map(|_| (f.bytes(), f.u64())).collect();
    assert_eq!(streams, [(&b"literals"[..], 6), (&b"file-0"[..], 4096)]);
    assert_eq!(f.bytes(), b"state");
    f.end();
}

#[test]
fn the_inventory_is_what_the_page_says() {
    let dir = scratch();
    let populated = populated(dir.path());
    let store = Store::open(dir.path(), options()).unwrap();
    let lines: Vec<serde_json::Value> =
        store.inventory().map(|line| serde_json::to_value(&line).unwrap()).collect();
    let id = hex(populated.half.spec.id().as_bytes());
    let at = lines.iter().position(|line| line["object"] == id).unwrap();
    let object = serde_json::json!({
        "type": "object", "object": id, "block_size": 512, "length": 256_000,
        "blocks": 500, "complete": false,
    });
    assert_eq!(lines[at], object);
    let list: String = populated
        .half
        .spec
        .blocks()
        .map(|block| hex(&[&block.len.to_le_bytes()[..], block.hash.as_bytes()].concat()))
        .collect();
    // Every other block: bits 0, 2, 4 and 6 of each byte.
    let blocks = serde_json::json!({
        "type": "blocks", "first": 0, "present": "55".repeat(62) + "05", "list": list,
    });
    assert_eq!(lines[at + 1], blocks);
    let objects = lines.iter().filter(|line| line["type"] == "object").count();
    let end = serde_json::json!({"type": "end", "objects": objects});
    assert_eq!(*lines.last().unwrap(), end);
}
