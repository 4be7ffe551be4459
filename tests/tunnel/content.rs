//! What the nodes of these tests hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use peersync::fetch::tunnel::{BlockServer, Handed, Served};
use peersync::layer::root::{LayerRoot, PartRef, RootBody};
use peersync::types::{Digest, ObjectId, ObjectSpec, PeerId, VerifiedBlock};
use peersync::wire::Item;

/// `len` bytes that follow from the seed and don't compress.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

/// `len` bytes of text.
pub fn text(len: usize) -> Vec<u8> {
    (0..).flat_map(|n: u32| format!("line {n}\n").into_bytes()).take(len).collect()
}

/// An object with its bytes.
#[derive(Clone)]
pub struct Object {
    pub id: ObjectId,
    pub spec: Arc<ObjectSpec>,
    pub bytes: Bytes,
}

impl Object {
    pub fn new(bytes: Vec<u8>) -> Self {
        let spec = Arc::new(ObjectSpec::of(&bytes));
        Self { id: spec.id(), spec, bytes: bytes.into() }
    }

    pub fn block(&self, index: u32) -> Bytes {
        let entry = self.spec.block(index).expect("a block of it");
        let start = entry.offset as usize;
        self.bytes.slice(start..start + entry.len as usize)
    }

    pub fn count(&self) -> u32 {
        self.spec.block_count()
    }
}

/// A node's holdings, in memory.
#[derive(Default)]
pub struct Shelf {
    objects: Mutex<HashMap<ObjectId, Object>>,
    roots: Mutex<Vec<LayerRoot>>,
    items: Mutex<HashMap<Digest, Vec<Handed>>>,
    /// Blocks that were read.
    pub reads: AtomicU64,
    /// Whether what is held can't be read.
    pub broken: AtomicBool,
    gate: Mutex<()>,
}

impl Shelf {
    pub fn with(objects: &[&Object]) -> Arc<Self> {
        let shelf = Self::default();
        objects.iter().for_each(|object| shelf.put(object));
        Arc::new(shelf)
    }

    pub fn put(&self, object: &Object) {
        self.objects.lock().expect("shelf").insert(object.id, object.clone());
    }

    pub fn put_root(&self, root: LayerRoot) {
        self.roots.lock().expect("shelf").push(root);
    }

    pub fn hand(&self, blob: Digest, item: Item, offset: u64, bytes: Vec<u8>) {
        let block = VerifiedBlock::seal(bytes.into());
        let handed = Handed { item, object: 3, offset, block };
        self.items.lock().expect("shelf").entry(blob).or_default().push(handed);
    }

    /// Nothing can be read while what is given is kept.
    pub fn shut(&self) -> impl Drop + '_ {
        self.gate.lock().expect("gate")
    }
}

impl BlockServer for Shelf {
    fn block(&self, _: &PeerId, object: &ObjectId, index: u32) -> Served<VerifiedBlock> {
        drop(self.gate.lock());
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Served::Failed;
        }
        let objects = self.objects.lock().expect("shelf");
        match objects.get(object).filter(|object| index < object.count()) {
            Some(object) => Served::Yes(VerifiedBlock::seal(object.block(index))),
            None => Served::No,
        }
    }

    fn spec(&self, _: &PeerId, object: &ObjectId) -> Served<Arc<ObjectSpec>> {
        let objects = self.objects.lock().expect("shelf");
        objects.get(object).map_or(Served::No, |object| Served::Yes(Arc::clone(&object.spec)))
    }

    fn roots(&self, _: &PeerId, blob: &Digest) -> Vec<LayerRoot> {
        let roots = self.roots.lock().expect("shelf");
        roots.iter().filter(|root| root.body().blob == *blob).cloned().collect()
    }

    fn item(&self, _: &PeerId, blob: &Digest, number: u64) -> Served<Handed> {
        let items = self.items.lock().expect("shelf");
        let item = items.get(blob).and_then(|items| items.get(number as usize));
        item.map_or(Served::No, |item| Served::Yes(item.clone()))
    }
}

/// A root, signed by somebody.
pub fn root(blob: Digest, signer: u8) -> LayerRoot {
    let part = PartRef::of(b"part");
    let body = RootBody {
        blob,
        blob_size: 10,
        stream_length: 20,
        diff_id: Digest::of(b"stream"),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        path: None,
        tree: part,
        blocks: part,
        seek: part,
        skeleton: part,
    };
    LayerRoot::sign(body, &SigningKey::from_bytes(&[signer; 32])).expect("fits")
}
