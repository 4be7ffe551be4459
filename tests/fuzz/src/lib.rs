//! What the fuzz targets share: a whole pass over hostile bytes.

use std::collections::HashMap;

use bytes::{Bytes, BytesMut};
use peersync::layer::blocks;
use peersync::layer::build::{
    BuildObject, BuiltLayer, DecodeLimits, Decoded, DecompressError, Decompressed, Decompressor,
    LayerBuilder, Sink, SinkError,
};
use peersync::layer::rebuild::{ReadObject, rebuilt_digest};
use peersync::layer::seek::{SeekTable, SeekTableBuilder};
use peersync::layer::skeleton::{Skeleton, SkeletonWriter};
use peersync::layer::span::SpanDecoder;
use peersync::layer::tree::{NodeIx, Tree, TreeLimits};
use peersync::types::{BlockHash, ObjectSpec, VerifiedBlock};

/// Small bounds: a fuzzer is to find what is wrong, not what is large.
pub fn limits() -> DecodeLimits {
    DecodeLimits { stream: 4 << 20, ratio: 1100, ratio_free: 1 << 20 }
}

/// Keeps what a pass makes.
#[derive(Default)]
pub struct Keep {
    objects: HashMap<BuildObject, BytesMut>,
    literals: BytesMut,
}

impl Sink for Keep {
    fn block(
        &mut self,
        object: BuildObject,
        offset: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError> {
        let bytes = self.objects.entry(object).or_default();
        assert_eq!(bytes.len() as u64, offset);
        bytes.extend_from_slice(block.data());
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

/// Decompresses a blob, given in pieces of `read` bytes.
pub fn decompress(
    blob: &Bytes,
    read: usize,
) -> Result<(Bytes, SeekTable, Decompressed), DecompressError> {
    let mut decompressor = Decompressor::new(limits());
    let (mut out, mut table) = (BytesMut::new(), SeekTableBuilder::new());
    let mut take = |decoded| match decoded {
        Decoded::Stream(bytes) => out.extend_from_slice(&bytes),
        Decoded::Point(point) => table.push(point),
    };
    for at in (0..blob.len()).step_by(read) {
        let mut input = blob.slice(at..blob.len().min(at + read));
        while let Some(decoded) = decompressor.step(&mut input)? {
            take(decoded);
        }
    }
    while let Some(decoded) = decompressor.end()? {
        take(decoded);
    }
    let end = decompressor.finish();
    let table = table.finish(end.compression, end.blob_length, end.stream_length);
    Ok((out.freeze(), table, end))
}

/// Every span of a table must decode to its part of the stream.
pub fn check_spans(blob: &Bytes, stream: &[u8], table: &SeekTable) {
    for span in (0..table.points().len()).filter_map(|n| table.span(n)) {
        let mut decoder = SpanDecoder::new(table, &span).expect("own span");
        let mut input = blob.slice(span.blob.start as usize..span.blob.end as usize);
        let mut at = span.stream.start as usize;
        while let Some(bytes) = decoder.feed(&mut input).expect("decoded before") {
            assert_eq!(bytes, stream[at..at + bytes.len()]);
            at += bytes.len();
        }
        assert_eq!(decoder.remaining(), 0);
    }
}

/// Builds a layer of a stream, given in pieces of `read` bytes. What comes out
/// must be whole: a valid tree, objects that fit it, and (where `deep` asks for
/// that: it takes most of the time) the same stream again.
pub fn build(stream: &Bytes, read: usize, deep: bool) -> Option<BuiltLayer> {
    let limits = TreeLimits { nodes: 1 << 16, ..TreeLimits::default() };
    let mut builder = LayerBuilder::tar(limits);
    let mut keep = Keep::default();
    for at in (0..stream.len()).step_by(read) {
        let bytes = stream.slice(at..stream.len().min(at + read));
        builder.feed(bytes, &mut keep).ok()?;
    }
    let built = builder.finish(&mut keep).ok()?;
    let tree = Tree::open(built.tree.clone()).expect("a built tree is valid");
    let specs = blocks::decode(&built.blocks).expect("own bytes");
    assert!(blocks::belong_to(&specs, &tree));
    let lengths: Vec<u64> = specs.iter().map(ObjectSpec::length).collect();
    assert!(built.layout.covers(&lengths));
    walk(&tree);
    if !deep {
        return Some(built);
    }
    let mut writer = SkeletonWriter::new(&built.layout).expect("memory");
    writer.literal(&keep.literals).expect("its literals");
    let skeleton = Bytes::from(writer.finish().expect("all literals"));
    let skeleton = Skeleton::decode(&skeleton).expect("own bytes");
    let mut objects = Objects { built: &built, keep: &keep };
    let digest = rebuilt_digest(&skeleton, &mut objects).expect("complete");
    assert_eq!(digest, built.diff_id);
    Some(built)
}

struct Objects<'a> {
    built: &'a BuiltLayer,
    keep: &'a Keep,
}

impl ReadObject for Objects<'_> {
    type Error = ();

    fn read(&mut self, object: u32, offset: u64, out: &mut [u8]) -> Result<(), ()> {
        let place = match object {
            0 => BuildObject::Bundle,
            n => BuildObject::File(self.built.files.iter().position(|f| *f == n).ok_or(())? as u32),
        };
        let bytes = self.keep.objects.get(&place).ok_or(())?;
        out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
        Ok(())
    }
}

/// Touches everything in a tree.
pub fn walk(tree: &Tree) {
    for ix in (0..tree.len().min(1 << 12)).map(NodeIx) {
        let node = tree.node(ix).expect("below the length");
        for entry in tree.entries(ix).take(1 << 12) {
            assert_eq!(tree.lookup(ix, entry.name), Some(entry.ix));
        }
        for (dir, name) in tree.links(ix) {
            assert_eq!(tree.lookup(dir, name), Some(ix));
        }
        tree.xattrs(ix).count();
        tree.symlink_target(ix);
        tree.parent(ix);
        tree.name_of(ix);
        if let Some(file) = tree.file(ix) {
            assert_eq!(file.size, node.size);
            file.extents.ranges(0, file.size).take(1 << 12).count();
            file.extents.ranges(file.size / 2, file.size).take(1 << 12).count();
        }
    }
}

/// Gives whatever looks like a tar header a right checksum: a fuzzer would
/// spend its life on that.
pub fn fix_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}
