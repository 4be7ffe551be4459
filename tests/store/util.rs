//! What the tests share.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use peersync::store::device::FaultyDevice;
use peersync::store::{OpenError, OpenOptions, Store};
use peersync::types::{BlockHash, ObjectSpec, VerifiedBlock};

/// splitmix64: the same bytes for the same seed.
#[derive(Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// Bytes that no two seeds share, and that compress well: the golden store
    /// is kept in the sources.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let first = self.next();
        let words = (0..len.div_ceil(8) as u64).map(|n| first.wrapping_add(n));
        let mut out: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        out.truncate(len);
        out
    }
}

/// An object with its bytes.
#[derive(Clone)]
pub struct Content {
    pub spec: ObjectSpec,
    pub data: Vec<u8>,
}

impl Content {
    /// `len` random bytes in blocks of `block_size`.
    pub fn random(seed: u64, block_size: u32, len: usize) -> Self {
        Self::new(block_size, Rng(seed).bytes(len))
    }

    pub fn new(block_size: u32, data: Vec<u8>) -> Self {
        let blocks = data
            .chunks(block_size as usize)
            .map(|c| (BlockHash::of(c), u32::try_from(c.len()).unwrap()));
        let spec = ObjectSpec::new(block_size, blocks).unwrap();
        Self { spec, data }
    }

    pub fn block(&self, index: u32) -> VerifiedBlock {
        let block = self.spec.block(index).unwrap();
        let start = usize::try_from(block.offset).unwrap();
        let bytes = self.data[start..start + block.len as usize].to_vec();
        VerifiedBlock::verify(Bytes::from(bytes), &block.hash).unwrap()
    }

    pub fn put_all(&self, store: &Store) {
        let id = store.add_object(&self.spec).unwrap();
        for index in 0..self.spec.block_count() {
            store.put_block(&id, index, &self.block(index)).unwrap();
        }
    }
}

/// Options without a background thread, so that tests decide when to flush.
pub fn options() -> OpenOptions {
    OpenOptions { background_flush: false, ..OpenOptions::default() }
}

pub fn open(path: &Path) -> Store {
    Store::open(path, options()).unwrap()
}

pub fn open_faulty(device: &FaultyDevice) -> Result<Store, OpenError> {
    Store::open_on(Arc::new(device.clone()), Path::new("faulty"), options())
}

pub fn read_all(store: &Store, content: &Content) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    store.read_at(&content.spec.id(), 0, content.data.len(), &mut out).unwrap().then_some(out)
}

/// A directory in memory where there is one: the sweeps write a lot that
/// nobody wants to keep.
pub fn scratch() -> tempfile::TempDir {
    let shm = Path::new("/dev/shm");
    let made = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

/// Copies a directory tree of files.
pub fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
