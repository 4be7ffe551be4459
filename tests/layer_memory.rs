//! What a first pass and a tree cost in memory, seen as the process's peak.
//! One test: a peak belongs to the whole process.

use bytes::Bytes;
use peersync::layer::build::{DecodeLimits, Decoded, Decompressor, LayerBuilder, NullSink};
use peersync::layer::tree::{NodeIx, Tree, TreeLimits};

const MIB: u64 = 1 << 20;

#[test]
fn memory_follows_the_tree_and_not_the_content() {
    // One frame or member again and again: the blob is made as it is read.
    let part = noise(MIB as usize);
    let part = Bytes::from(zstd::bulk::compress(&part, 1).expect("memory"));
    first_pass(&part, 32);
    let after_small = peak();
    first_pass(&part, 512);
    let grown = peak() - after_small;
    assert!(grown < 8 * MIB, "sixteen times the content: {grown} bytes more");

    let before = peak();
    let tree = many_files(200_000);
    let built = peak() - before;
    assert!(built < 128 * MIB, "200,000 files while they are built: {built} bytes");
    assert!(tree.bytes().len() < 32 << 20, "and then: {}", tree.bytes().len());

    let before = peak();
    let tree = tree_of(sparse(1 << 40));
    let node = tree.resolve(b"sparse").and_then(|ix| tree.node(ix)).expect("in the tree");
    assert_eq!(node.size, 1 << 40);
    assert!(peak() - before < MIB);
}

/// A pass over one large file of `mib` MiB, in frames of one MiB.
fn first_pass(part: &Bytes, mib: u64) {
    let mut header = tar::Header::new_gnu();
    header.set_path("large").expect("short");
    header.set_size(mib * MIB);
    header.set_mode(0o644);
    header.set_cksum();
    let header = zstd::bulk::compress(header.as_bytes(), 1).expect("memory");
    let mut decompressor = Decompressor::new(DecodeLimits::default());
    let mut builder = LayerBuilder::tar(TreeLimits::default());
    let blob = std::iter::once(Bytes::from(header)).chain((0..mib).map(|_| part.clone()));
    for mut input in blob {
        while let Some(decoded) = decompressor.step(&mut input).expect("a good blob") {
            if let Decoded::Stream(bytes) = decoded {
                builder.feed(bytes, &mut NullSink).expect("a good layer");
            }
        }
    }
    while let Some(decoded) = decompressor.end().expect("a good blob") {
        if let Decoded::Stream(bytes) = decoded {
            builder.feed(bytes, &mut NullSink).expect("a good layer");
        }
    }
    let built = builder.finish(&mut NullSink).expect("a good layer");
    assert_eq!(built.objects[1].length(), mib * MIB);
}

/// A tree of empty files, half of them in one directory.
fn many_files(count: u32) -> Tree {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    tree_of((0..count).map(|n| {
        let path = match n % 2 {
            0 => format!("usr/share/one/file-number-{n}"),
            _ => format!("usr/lib/{}/{}/file-number-{n}", n % 100, n % 1000),
        };
        header.set_path(path).expect("short");
        header.set_cksum();
        Bytes::copy_from_slice(header.as_bytes())
    }))
}

fn sparse(size: u64) -> impl Iterator<Item = Bytes> {
    let mut header = tar::Header::new_gnu();
    header.set_path("sparse").expect("short");
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_size(0);
    header.set_mode(0o644);
    // The logical size in base 256.
    header.as_mut_bytes()[483] = 0x80;
    header.as_mut_bytes()[487..495].copy_from_slice(&size.to_be_bytes());
    header.set_cksum();
    std::iter::once(Bytes::copy_from_slice(header.as_bytes()))
}

fn tree_of(stream: impl IntoIterator<Item = Bytes>) -> Tree {
    let mut builder = LayerBuilder::tar(TreeLimits::default());
    for bytes in stream {
        builder.feed(bytes, &mut NullSink).expect("a good layer");
    }
    let built = builder.finish(&mut NullSink).expect("a good layer");
    let tree = Tree::open(built.tree).expect("valid");
    assert!(tree.node(NodeIx::ROOT).is_some());
    tree
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(word).flatten().take(len).collect()
}

/// Peak of the resident set in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    let kib = line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    kib.expect("a number") * 1024
}
