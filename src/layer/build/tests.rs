use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;

use super::*;
use crate::layer::blocks;
use crate::layer::codec::testing::{gzip, gzip_members, skippable, zstd, zstd_frames};
use crate::layer::rebuild::{ReadObject, rebuild, rebuilt_digest};
use crate::layer::seek::{Compression, SeekPoint, SeekTable, SeekTableBuilder};
use crate::layer::skeleton::{Skeleton, SkeletonWriter};
use crate::layer::span::SpanDecoder;
use crate::layer::tree::{NodeIx, NodeKind, Range, Tree, TreeLimits};
use crate::types::{BlockHash, Digest, ObjectSpec, PASSTHROUGH_MIN, VerifiedBlock};

/// Keeps all that a pass makes.
#[derive(Clone, Debug, Default, PartialEq)]
struct Keep {
    objects: BTreeMap<BuildObject, BytesMut>,
    literals: BytesMut,
    done: Vec<(u32, BlockHash)>,
}

impl Sink for Keep {
    fn block(
        &mut self,
        object: BuildObject,
        offset: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError> {
        let bytes = self.objects.entry(object).or_default();
        assert_eq!(bytes.len() as u64, offset, "in order and without gaps");
        bytes.extend_from_slice(block.data());
        Ok(())
    }

    fn literal(&mut self, bytes: &Bytes) -> Result<(), SinkError> {
        self.literals.extend_from_slice(bytes);
        Ok(())
    }

    fn file_done(
        &mut self,
        file: u32,
        spec: &ObjectSpec,
        content: &BlockHash,
    ) -> Result<(), SinkError> {
        let bytes = self.objects.get(&BuildObject::File(file)).map_or(&[][..], |b| b);
        assert_eq!(spec.length(), bytes.len() as u64);
        assert_eq!(BlockHash::of(bytes), *content);
        self.done.push((file, *content));
        Ok(())
    }
}

struct Pass {
    built: BuiltLayer,
    end: Decompressed,
    table: SeekTable,
    keep: Keep,
}

fn pass(blob: &[u8], read: usize) -> Result<Pass, Box<dyn std::error::Error>> {
    let decompressor = Decompressor::new(DecodeLimits::default());
    let builder = LayerBuilder::tar(TreeLimits::default());
    go_on(
        blob,
        read,
        decompressor,
        builder,
        Keep::default(),
        SeekTableBuilder::new(),
        |_, _, _, _| {},
    )
}

/// Runs a pass from wherever the machines are; `at_point` sees them at each point.
fn go_on(
    blob: &[u8],
    read: usize,
    mut decompressor: Decompressor,
    mut builder: LayerBuilder,
    mut keep: Keep,
    mut points: SeekTableBuilder,
    mut at_point: impl FnMut(&Decompressor, &LayerBuilder, &Keep, &SeekPoint),
) -> Result<Pass, Box<dyn std::error::Error>> {
    let start = decompressor.blob_offset() as usize;
    let mut chunks: Vec<Bytes> =
        blob[start..].chunks(read).map(Bytes::copy_from_slice).rev().collect();
    let mut input = Bytes::new();
    loop {
        let decoded = match decompressor.step(&mut input)? {
            Some(decoded) => decoded,
            None => match chunks.pop() {
                Some(chunk) => {
                    input = chunk;
                    continue;
                }
                None => match decompressor.end()? {
                    Some(decoded) => decoded,
                    None => break,
                },
            },
        };
        match decoded {
            Decoded::Stream(bytes) => builder.feed(bytes, &mut keep)?,
            Decoded::Point(point) => {
                at_point(&decompressor, &builder, &keep, &point);
                points.push(point);
            }
        }
    }
    let built = builder.finish(&mut keep)?;
    let end = decompressor.finish();
    let table = points.finish(end.compression, end.blob_length, end.stream_length);
    Ok(Pass { built, end, table, keep })
}

/// Bytes that compress by about half, never the same twice.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend((state & 0x0f0f_0f0f_0f0f_0f0f).to_le_bytes());
    }
    out.truncate(len);
    out
}

fn append(builder: &mut tar::Builder<Vec<u8>>, path: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, data).expect("in memory");
}

/// A layer of some MiB with all that matters to objects: small and large files,
/// equal ones, replaced ones, empty ones, hard links, wide gaps in the bundle.
fn layer() -> Vec<u8> {
    static LAYER: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(make_layer);
    LAYER.clone()
}

fn make_layer() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for n in 0..200 {
        append(&mut builder, &format!("etc/{n}"), &noise(n * 37, n as u64));
    }
    let large = noise(9 << 19, 1000);
    append(&mut builder, "lib/large", &large);
    append(&mut builder, "etc/0", b"replaced");
    append(&mut builder, "lib/just", &noise(PASSTHROUGH_MIN as usize, 7));
    append(&mut builder, "lib/below", &noise(PASSTHROUGH_MIN as usize - 1, 8));
    append(&mut builder, "lib/again", &large);
    append(&mut builder, "lib/large", b"replaced too");
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Link);
    link.set_size(0);
    builder.append_link(&mut link, "lib/link", "lib/again").expect("in memory");
    for n in 0..100 {
        append(&mut builder, &format!("usr/{n}"), &noise(n * 300, n as u64 + 500));
    }
    let mut bytes = builder.into_inner().expect("in memory");
    bytes.extend(b"not zero behind the end");
    bytes
}

/// Reads objects out of what a pass kept.
struct Objects<'a>(&'a Pass);

impl ReadObject for Objects<'_> {
    type Error = ();

    fn read(&mut self, object: u32, offset: u64, out: &mut [u8]) -> Result<(), ()> {
        let bytes = self.0.object(object).ok_or(())?;
        let offset = offset as usize;
        out.copy_from_slice(bytes.get(offset..offset + out.len()).ok_or(())?);
        Ok(())
    }
}

impl Pass {
    fn object(&self, object: u32) -> Option<&[u8]> {
        let place = match object {
            0 => BuildObject::Bundle,
            n => BuildObject::File(self.built.files.iter().position(|f| *f == n)? as u32),
        };
        Some(self.keep.objects.get(&place).map_or(&[], |bytes| bytes))
    }

    fn skeleton(&self) -> Skeleton {
        let mut writer = SkeletonWriter::new(&self.built.layout).expect("memory");
        writer.literal(&self.keep.literals).expect("its literals");
        let bytes = Bytes::from(writer.finish().expect("all literals"));
        Skeleton::decode(&bytes).expect("own bytes")
    }

    fn tree(&self) -> Tree {
        Tree::open(self.built.tree.clone()).expect("a valid tree")
    }

    fn content(&self, tree: &Tree, path: &str) -> Vec<u8> {
        let ix = tree.resolve(path.as_bytes()).expect(path);
        let data = tree.file(ix).expect("a file");
        let mut out = Vec::new();
        let object = self.object(data.object_index).expect("an object");
        for range in data.extents.ranges(0, data.size) {
            match range {
                Range::Hole { len, .. } => out.resize(out.len() + len as usize, 0),
                Range::Data { dense, len, .. } => {
                    let start = (data.offset + dense) as usize;
                    out.extend_from_slice(&object[start..start + len as usize]);
                }
            }
        }
        out
    }

    /// All that must be true of a pass over `stream`, however it is compressed.
    fn check(&self, stream: &[u8], blob: &[u8]) {
        assert_eq!(self.built.diff_id, Digest::of(stream));
        assert_eq!(self.built.stream_length, stream.len() as u64);
        assert_eq!(self.end.digest.unwrap_or(self.built.diff_id), Digest::of(blob));
        assert_eq!(self.end.blob_length, blob.len() as u64);
        let tree = self.tree();
        let specs = blocks::decode(&self.built.blocks).expect("own bytes");
        assert_eq!(specs, self.built.objects);
        assert!(blocks::belong_to(&specs, &tree));
        let lengths: Vec<u64> = specs.iter().map(ObjectSpec::length).collect();
        assert!(self.built.layout.covers(&lengths));
        for (number, spec) in specs.iter().enumerate() {
            let bytes = self.object(number as u32).expect("kept");
            for block in spec.blocks() {
                let start = block.offset as usize;
                assert_eq!(BlockHash::of(&bytes[start..start + block.len as usize]), block.hash);
            }
        }
        let skeleton = self.skeleton();
        assert_eq!(skeleton.layout(), &self.built.layout);
        assert_eq!(
            rebuilt_digest(&skeleton, &mut Objects(self)).expect("complete"),
            self.built.diff_id
        );
        let mut again = Vec::new();
        rebuild(&skeleton, &mut Objects(self), |bytes| {
            again.extend_from_slice(bytes);
            Ok::<(), ()>(())
        })
        .expect("complete");
        assert!(again == stream);
    }
}

#[test]
fn every_compression_makes_the_same_layer() {
    let stream = layer();
    let plain = pass(&stream, 100_000).expect("good");
    plain.check(&stream, &stream);
    assert_eq!(plain.end.compression, Compression::Plain);
    // Twice the same large file is one object: bundle, large, just.
    assert_eq!(plain.built.files, [1, 2, 1]);
    let tree = plain.tree();
    assert_eq!(plain.content(&tree, "etc/0"), b"replaced");
    assert_eq!(plain.content(&tree, "lib/large"), b"replaced too");
    assert_eq!(plain.content(&tree, "lib/again"), noise(9 << 19, 1000));
    assert_eq!(tree.resolve(b"lib/link"), tree.resolve(b"lib/again"));
    let blobs = [
        (Compression::Gzip, gzip(&stream, 6)),
        (Compression::Gzip, gzip(&stream, 1)),
        (Compression::Gzip, gzip(&stream, 0)),
        (Compression::Gzip, gzip_members(&stream, 300_000)),
        (Compression::Gzip, [gzip(&stream, 9), vec![0; 1000]].concat()),
        (Compression::Zstd, zstd(&stream)),
        (Compression::Zstd, zstd_frames(&stream, 700_000)),
        (Compression::Zstd, [skippable(b"before"), zstd_frames(&stream, 70_000)].concat()),
    ];
    for (compression, blob) in blobs {
        let pass = pass(&blob, 9999).expect("good");
        assert_eq!(pass.end.compression, compression);
        pass.check(&stream, &blob);
        assert!(pass.built.tree == plain.built.tree);
        assert!(pass.built.blocks == plain.built.blocks);
        assert!(pass.keep == plain.keep);
    }
}

#[test]
fn every_point_is_a_way_in() {
    let stream = layer();
    let blobs = [
        (2, gzip(&stream, 6)),
        (15, gzip_members(&stream, 300_000)),
        (10, zstd_frames(&stream, 700_000)),
        (1, zstd(&stream)),
        (0, stream.clone()),
    ];
    for (least, blob) in blobs {
        let table = pass(&blob, 1 << 16).expect("good").table;
        assert!(table.points().len() >= least, "{} of {least}", table.points().len());
        assert_eq!(table.can_enter(), least != 1);
        assert_eq!(SeekTable::decode(&table.encode().into()).as_ref(), Ok(&table));
        let length = stream.len() as u64;
        let mut ranges: Vec<_> = (0..table.points().len())
            .filter_map(|n| table.span(n))
            .map(|span| span.stream)
            .collect();
        ranges.extend([0..length, 0..1, 5_000_000..5_000_001, length - 1..length, 1..length - 1]);
        for range in ranges {
            let span = table.cover(range.clone()).expect("inside");
            assert!(span.stream.start <= range.start && range.end <= span.stream.end);
            let mut decoder = SpanDecoder::new(&table, &span).expect("own span");
            let blob =
                Bytes::copy_from_slice(&blob[span.blob.start as usize..span.blob.end as usize]);
            let mut out = Vec::new();
            for chunk in blob.chunks(10_000) {
                let mut input = blob.slice_ref(chunk);
                while let Some(bytes) = decoder.feed(&mut input).expect("a good blob") {
                    out.extend_from_slice(&bytes);
                }
            }
            assert_eq!(decoder.remaining(), 0);
            let expected = &stream[span.stream.start as usize..span.stream.end as usize];
            assert!(out == expected, "{range:?}");
        }
    }
}

/// What a driver keeps at a point to resume from.
struct Saved {
    state: Bytes,
    tails: Vec<(BuildObject, u64, Bytes)>,
    keep: Keep,
    stream: u64,
}

#[test]
fn a_pass_resumes_at_every_point() {
    let stream = layer();
    for blob in [gzip(&stream, 6), gzip_members(&stream, 3 << 20), zstd_frames(&stream, 3 << 20)] {
        let whole = pass(&blob, 1 << 16).expect("good");
        let mut saves = Vec::new();
        go_on(
            &blob,
            1 << 16,
            Decompressor::new(DecodeLimits::default()),
            LayerBuilder::tar(TreeLimits::default()),
            Keep::default(),
            SeekTableBuilder::new(),
            |decompressor, builder, keep, point| {
                assert_eq!(builder.offset(), point.stream);
                saves.push(Saved {
                    state: decompressor.save().expect("at a point").into(),
                    tails: builder.tails(),
                    keep: keep.clone(),
                    stream: point.stream,
                });
            },
        )
        .expect("good");
        assert!(saves.len() >= 2);
        // Of the many free points some will do.
        let step = saves.len() / 3 + 1;
        for saved in saves.into_iter().step_by(step) {
            // As after a restart: content is in what the sink kept and in the tails.
            let mut staged = saved.keep.objects.clone();
            for (object, offset, bytes) in &saved.tails {
                let object = staged.entry(*object).or_default();
                assert_eq!(object.len() as u64, *offset);
                object.extend_from_slice(bytes);
            }
            let mut replay = Replay::new(LayerBuilder::tar(TreeLimits::default()), saved.stream);
            let mut literals = Bytes::copy_from_slice(&saved.keep.literals);
            while let Some(wanted) = replay.wants() {
                let bytes = match wanted {
                    Expected::Literal(len) => literals.split_to((len as usize).min(literals.len())),
                    Expected::Content { object, offset, len } => {
                        let end = offset + len.min(99_999);
                        Bytes::copy_from_slice(&staged[&object][offset as usize..end as usize])
                    }
                };
                assert!(!bytes.is_empty());
                replay.supply(bytes).expect("the same as before");
            }
            assert!(literals.is_empty());
            let builder = replay.into_builder();
            assert_eq!(builder.tails(), saved.tails);
            let decompressor =
                Decompressor::restore(&saved.state, DecodeLimits::default()).expect("own state");
            let mut points = SeekTableBuilder::new();
            whole
                .table
                .points()
                .iter()
                .filter(|p| p.stream <= saved.stream)
                .for_each(|p| points.push(p.clone()));
            let again =
                go_on(&blob, 1 << 16, decompressor, builder, saved.keep, points, |_, _, _, _| {})
                    .expect("good");
            again.check(&stream, &blob);
            assert!(again.built.tree == whole.built.tree);
            assert!(again.keep == whole.keep);
            assert!(again.table == whole.table);
        }
    }
}

#[test]
fn a_bundle_block_spans_little_of_the_stream() {
    let mut builder = tar::Builder::new(Vec::new());
    let large = noise(300 << 10, 3);
    for n in 0..60 {
        append(&mut builder, &format!("small{n}"), &noise(100, n));
        append(&mut builder, &format!("large{n}"), &large);
    }
    let stream = builder.into_inner().expect("in memory");
    let pass = pass(&stream, 1 << 16).expect("good");
    pass.check(&stream, &stream);
    let bundle = &pass.built.objects[0];
    assert!(bundle.block_count() >= 4, "{}", bundle.block_count());
    for block in bundle.blocks() {
        let range = block.offset..block.offset + u64::from(block.len);
        let places = pass.built.layout.stream_ranges(0, range);
        let (first, last) = (places[0], places[places.len() - 1]);
        let extent = last.stream_offset + last.len - first.stream_offset;
        assert!(extent <= (4 << 20) + (256 << 10), "{extent}");
    }
}

#[test]
fn raw_blobs_are_one_file() {
    for len in [0, 1, 1000, 3_000_000] {
        let blob = [&[0x1f, 0x8b, 8][..], &noise(len, 5)].concat();
        let blob = &blob[..len];
        let length = len as u64;
        let pass = go_on(
            blob,
            1 << 16,
            Decompressor::plain(DecodeLimits::default()),
            LayerBuilder::raw(b"models/m.safetensors", length),
            Keep::default(),
            SeekTableBuilder::new(),
            |_, _, _, _| {},
        )
        .expect("good");
        pass.check(blob, blob);
        assert_eq!(pass.built.objects.len(), 2);
        let tree = pass.tree();
        assert_eq!(pass.content(&tree, "models/m.safetensors"), blob);
        for wrong in [length + 1, length.wrapping_sub(1)] {
            let mut builder = LayerBuilder::raw(b"x", wrong);
            let fed = builder.feed(Bytes::copy_from_slice(blob), &mut NullSink);
            let ended = fed.and_then(|()| builder.finish(&mut NullSink));
            assert!(matches!(ended, Err(BuildError::Length { .. })));
        }
    }
}

#[test]
fn bad_blobs_are_errors() {
    let stream = layer();
    let errors = |blob: &[u8]| {
        let error = pass(blob, 1 << 16).err().expect("bad").downcast::<DecompressError>();
        *error.expect("found while decompressing")
    };
    let gz = gzip(&stream, 6);
    for cut in [3, 11, 5000, gz.len() - 1] {
        assert!(matches!(errors(&gz[..cut]), DecompressError::Truncated { .. }));
    }
    let frames = zstd_frames(&stream, 1 << 20);
    assert!(matches!(errors(&frames[..5000]), DecompressError::Truncated { .. }));
    let trailing = [&gz[..], b"garbage"].concat();
    assert!(matches!(errors(&trailing), DecompressError::Malformed { .. }));
    let padded = [&gz[..], &[0; 10], b"garbage"].concat();
    assert!(matches!(errors(&padded), DecompressError::Malformed { .. }));
    let trailing = [&frames[..], b"garbage"].concat();
    assert!(matches!(errors(&trailing), DecompressError::Malformed { .. }));
    let mut long = gz;
    let end = long.len() - 1;
    long[end] ^= 1;
    assert!(matches!(errors(&long), DecompressError::Malformed { .. }));
    assert_eq!(errors(b"BZh91AY&SY"), DecompressError::Unsupported("bzip2"));
    assert_eq!(errors(b"\xfd7zXZ\0rest"), DecompressError::Unsupported("xz"));
    // Not tar at all.
    let error = pass(&[b'x'; 1000], 10).err().expect("bad");
    assert!(matches!(*error.downcast().expect("found while building"), BuildError::Tar(_)));
    // Nothing at all is an empty layer, for Go's reader too.
    assert_eq!(pass(b"", 10).expect("good").tree().len(), 1);
}

#[test]
fn bombs_are_defused() {
    let limits = DecodeLimits { stream: 10 << 20, ratio: 50, ratio_free: 1 << 20 };
    let zeros = vec![0; 4 << 20];
    for blob in [gzip(&zeros, 9), zstd(&zeros)] {
        let run = |limits| {
            let mut decompressor = Decompressor::new(limits);
            let mut input = Bytes::copy_from_slice(&blob);
            let mut seen = 0;
            loop {
                match decompressor.step(&mut input)? {
                    Some(Decoded::Stream(bytes)) => seen += bytes.len(),
                    Some(Decoded::Point(_)) => {}
                    None => return Ok(seen),
                }
            }
        };
        assert!(matches!(run(limits), Err(DecompressError::TooLarge { .. })));
        assert!(run(DecodeLimits::default()).is_ok());
        let short = DecodeLimits { stream: 1 << 20, ..DecodeLimits::default() };
        assert_eq!(run(short), Err(DecompressError::TooLarge { limit: 1 << 20 }));
    }
}

#[test]
fn a_sink_that_fails_ends_the_pass() {
    struct Full;
    impl Sink for Full {
        fn block(&mut self, _: BuildObject, _: u64, _: VerifiedBlock) -> Result<(), SinkError> {
            Err("disk full".into())
        }
        fn literal(&mut self, _: &Bytes) -> Result<(), SinkError> {
            Ok(())
        }
        fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
            Ok(())
        }
    }
    let mut builder = LayerBuilder::tar(TreeLimits::default());
    let fed = builder.feed(layer().into(), &mut Full);
    assert!(matches!(fed, Err(BuildError::Sink(e)) if e.to_string() == "disk full"));
}

/// The obviously correct model: a map of paths, of which files and directories
/// replace each other.
fn model(files: &[(String, Option<Vec<u8>>)]) -> BTreeMap<String, Option<Vec<u8>>> {
    let mut map: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
    for (path, content) in files {
        for (at, _) in path.match_indices('/') {
            map.entry(path[..at].to_owned()).or_insert(None);
        }
        if content.is_some() {
            let below = format!("{path}/");
            map.retain(|name, _| !name.starts_with(&below));
        }
        map.insert(path.clone(), content.clone());
    }
    map
}

fn paths(tree: &Tree) -> BTreeMap<String, NodeIx> {
    let mut found = BTreeMap::new();
    let mut todo = vec![(NodeIx::ROOT, String::new())];
    while let Some((dir, path)) = todo.pop() {
        for entry in tree.entries(dir) {
            let name = format!("{path}{}", entry.name.escape_ascii());
            if tree.kind(entry.ix) == Some(NodeKind::Directory) {
                todo.push((entry.ix, format!("{name}/")));
            }
            found.insert(name, entry.ix);
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn layers_hold_what_the_archive_holds(
        files in prop::collection::vec(
            ("[ab](/[ab]){0,3}", prop::option::of(prop_oneof![
                4 => prop::collection::vec(any::<u8>(), 0..3000),
                1 => (200usize << 10..700 << 10, any::<u64>()).prop_map(|(n, s)| noise(n, s)),
            ])),
            0..12,
        ),
        kind in 0..4,
        read in 1usize..50_000,
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        let mut good: Vec<(String, Option<Vec<u8>>)> = Vec::new();
        for (path, content) in files {
            // Below a file there is nothing: no extractor would do that.
            let map = model(&good);
            if path.match_indices('/').any(|(at, _)| matches!(map.get(&path[..at]), Some(Some(_)))) {
                continue;
            }
            match &content {
                Some(data) => append(&mut builder, &path, data),
                None => {
                    let mut header = tar::Header::new_ustar();
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_size(0);
                    builder.append_data(&mut header, &path, &[][..]).expect("in memory");
                }
            }
            good.push((path, content));
        }
        let stream = builder.into_inner().expect("in memory");
        let blob = match kind {
            0 => stream.clone(),
            1 => gzip(&stream, 6),
            2 => gzip_members(&stream, 100_000),
            _ => zstd_frames(&stream, 100_000),
        };
        let pass = pass(&blob, read).expect("good");
        pass.check(&stream, &blob);
        let tree = pass.tree();
        let found = paths(&tree);
        let expected = model(&good);
        prop_assert!(found.keys().eq(expected.keys()));
        for (path, content) in &expected {
            let kind = tree.kind(found[path]).expect("named");
            match content {
                None => prop_assert_eq!(kind, NodeKind::Directory),
                Some(data) => {
                    prop_assert_eq!(kind, NodeKind::File);
                    prop_assert!(pass.content(&tree, path) == *data);
                }
            }
        }
    }

    #[test]
    fn damaged_blobs_never_pass_for_good_ones(
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        kind in 0..4,
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for n in 0..20 {
            append(&mut builder, &format!("f{n}"), &noise(n as usize * 300, n));
        }
        let stream = builder.into_inner().expect("in memory");
        let mut blob = match kind {
            0 => gzip(&stream, 6),
            1 => gzip_members(&stream, 9000),
            2 => zstd(&stream),
            _ => zstd_frames(&stream, 9000),
        };
        let good = Digest::of(&blob);
        let at = at.index(blob.len());
        blob[at] ^= 1 << bit;
        if let Ok(pass) = pass(&blob, 1000) {
            prop_assert_ne!(pass.end.digest, Some(good));
        }
    }

    #[test]
    fn saved_states_are_checked(at in any::<prop::sample::Index>(), value in any::<u8>()) {
        let blob = gzip_members(&noise(600_000, 3), 300_000);
        let mut decompressor = Decompressor::new(DecodeLimits::default());
        let mut input = Bytes::from(blob);
        while !matches!(decompressor.step(&mut input), Ok(Some(Decoded::Point(_)))) {}
        let mut state = decompressor.save().expect("at a point");
        let at = at.index(state.len());
        state[at] = value;
        let _ = Decompressor::restore(&state.into(), DecodeLimits::default());
    }
}
