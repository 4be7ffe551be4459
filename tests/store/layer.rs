//! A real layer with its index, made of a small tar.

use std::collections::BTreeMap;
use std::io::Write;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use peersync::layer::build::{BuildObject, LayerBuilder, Sink, SinkError};
use peersync::layer::root::{LayerRoot, PartRef, RootBody};
use peersync::layer::seek::{Compression, SeekTableBuilder};
use peersync::layer::skeleton::{Layout, SkeletonWriter};
use peersync::layer::tree::TreeLimits;
use peersync::store::{BlobRecord, IndexOrigin, LayerKey, MetaError, NewLayer, Store};
use peersync::types::{BlockHash, Digest, ObjectId, ObjectSpec, VerifiedBlock};

use crate::util::{Content, Rng};

/// A layer, its index and its content.
pub struct Layer {
    pub key: LayerKey,
    pub root: LayerRoot,
    /// Tree, blocks, seek table, skeleton.
    pub parts: Vec<Content>,
    /// The layer's objects in order.
    pub objects: Vec<Content>,
}

#[derive(Default)]
struct Keep {
    data: BTreeMap<BuildObject, Vec<u8>>,
    literals: Vec<u8>,
}

impl Sink for Keep {
    fn block(
        &mut self,
        object: BuildObject,
        _: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError> {
        self.data.entry(object).or_default().extend_from_slice(block.data());
        Ok(())
    }

    fn literal(&mut self, bytes: &Bytes) -> Result<(), SinkError> {
        self.literals.extend_from_slice(bytes);
        Ok(())
    }

    fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
        Ok(())
    }
}

fn skeleton(layout: &Layout, literals: &[u8]) -> Vec<u8> {
    let mut writer = SkeletonWriter::new(layout).unwrap();
    writer.literal(literals).unwrap();
    writer.finish().unwrap()
}

/// The compressor was not told the length then.
fn skeleton_of_version_1(layout: &Layout, literals: &[u8]) -> Vec<u8> {
    let mut out = skeleton(layout, literals);
    let frame = out.windows(4).position(|bytes| bytes == [0x28, 0xb5, 0x2f, 0xfd]);
    out.truncate(frame.expect("a zstd frame"));
    let mut encoder = zstd::stream::write::Encoder::new(out, 12).unwrap();
    encoder.write_all(literals).unwrap();
    encoder.finish().unwrap()
}

impl Layer {
    /// A layer of a few small files and one of 300 KiB.
    pub fn new(seed: u64) -> Self {
        Self::of(Self::tar(seed, 300 << 10), skeleton)
    }

    /// The same without the large file.
    pub fn small(seed: u64) -> Self {
        Self::of(Self::tar(seed, 0), skeleton)
    }

    /// The same with the index that builders made at version 1 of the store's format.
    pub fn of_version_1(seed: u64) -> Self {
        Self::of(Self::tar(seed, 300 << 10), skeleton_of_version_1)
    }

    fn tar(seed: u64, large: usize) -> Vec<u8> {
        let mut rng = Rng(seed);
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |name: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, data).unwrap();
        };
        add("etc/one", &rng.bytes(700));
        if large > 0 {
            add("etc/two", &rng.bytes(3000));
            add("lib/large", &rng.bytes(large));
        }
        add("usr/three", &rng.bytes(50));
        tar.into_inner().unwrap()
    }

    fn of(stream: Vec<u8>, skeleton: fn(&Layout, &[u8]) -> Vec<u8>) -> Self {
        let mut keep = Keep::default();
        let mut builder = LayerBuilder::tar(TreeLimits::default());
        let (blob, length) = (Digest::of(&stream), stream.len() as u64);
        builder.feed(Bytes::from(stream), &mut keep).unwrap();
        let built = builder.finish(&mut keep).unwrap();
        let skeleton = skeleton(&built.layout, &keep.literals);
        let seek = SeekTableBuilder::new().finish(Compression::Plain, length, length).encode();
        let mut data = vec![Vec::new(); built.objects.len()];
        for (object, bytes) in keep.data {
            let number = match object {
                BuildObject::Bundle => 0,
                BuildObject::File(n) => built.files[n as usize] as usize,
            };
            data[number] = bytes;
        }
        let objects: Vec<Content> = built
            .objects
            .iter()
            .zip(data)
            .map(|(spec, data)| Content { spec: spec.clone(), data })
            .collect();
        let parts: Vec<Content> = [built.tree, built.blocks, seek, skeleton]
            .into_iter()
            .map(|data| Content { spec: ObjectSpec::of(&data), data })
            .collect();
        let body = RootBody {
            blob,
            blob_size: length,
            stream_length: length,
            diff_id: built.diff_id,
            media_type: "application/vnd.oci.image.layer.v1.tar".into(),
            path: None,
            tree: PartRef::of(&parts[0].data),
            blocks: PartRef::of(&parts[1].data),
            seek: PartRef::of(&parts[2].data),
            skeleton: PartRef::of(&parts[3].data),
        };
        let root = LayerRoot::sign(body, &SigningKey::from_bytes(&[7; 32])).unwrap();
        let key = LayerKey { diff_id: built.diff_id, path: None };
        Self { key, root, parts, objects }
    }

    pub fn blob(&self) -> Digest {
        self.root.body().blob
    }

    pub fn ids(contents: &[Content]) -> Vec<ObjectId> {
        contents.iter().map(|content| content.spec.id()).collect()
    }

    /// Makes the layer and its blob known; the parts must be.
    pub fn add(&self, store: &Store) -> Result<u32, MetaError> {
        let specs: Vec<ObjectSpec> = self.objects.iter().map(|c| c.spec.clone()).collect();
        let contents = store.add_objects(&specs)?;
        let parts = Self::ids(&self.parts);
        let (tree, blocks) = (parts[0], parts[1]);
        let new = NewLayer { tree, blocks, parts: &parts, contents: &contents };
        let slot = store.add_layer(&self.key, &new)?;
        let blob = BlobRecord {
            root: self.root.encode(),
            layer: self.key.clone(),
            origin: IndexOrigin::Own,
        };
        store.put_blob(&self.blob(), &blob)?;
        Ok(slot)
    }

    /// Stores the whole layer.
    pub fn store(&self, store: &Store) -> u32 {
        for content in self.parts.iter().chain(&self.objects) {
            content.put_all(store);
        }
        self.add(store).unwrap()
    }
}
