//! The codecs of the index parts and the root. The first byte chooses.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use peersync::layer::blocks;
use peersync::layer::root::LayerRoot;
use peersync::layer::seek::SeekTable;
use peersync::layer::skeleton::Skeleton;
use peersync::layer::tree::Tree;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let bytes = Bytes::copy_from_slice(rest);
    match first % 5 {
        0 => {
            if let Ok(tree) = Tree::open(bytes) {
                peersync_fuzz::walk(&tree);
            }
        }
        1 => {
            if let Ok(specs) = blocks::decode(&bytes) {
                assert_eq!(blocks::encode(&specs), bytes);
            }
        }
        2 => {
            if let Ok(table) = SeekTable::decode(&bytes) {
                assert_eq!(table.encode(), bytes);
                let end = table.stream_length();
                for range in [0..1, 0..end, end / 2..end] {
                    if let Some(span) = table.cover(range.clone()) {
                        assert!(span.stream.start <= range.start && span.stream.end >= range.end);
                    }
                }
            }
        }
        3 => {
            if let Ok(skeleton) = Skeleton::decode(&bytes) {
                let layout = skeleton.layout();
                let mut at = 0;
                for segment in layout.segments_in(0..u64::MAX) {
                    assert_eq!(segment.stream.start, at);
                    assert!(segment.stream.end > at);
                    at = segment.stream.end;
                }
                assert_eq!(at, layout.stream_length());
                for object in 0..4 {
                    layout.stream_ranges(object, 1..u64::MAX);
                }
                let mut out = vec![0; layout.literal_length().min(1 << 16) as usize];
                if let Ok(mut literals) = skeleton.literals() {
                    let _ = literals.fill(&mut out);
                }
            }
        }
        _ => {
            if let Ok(root) = LayerRoot::decode(&bytes) {
                assert_eq!(root.encode(), bytes);
            }
        }
    }
});
