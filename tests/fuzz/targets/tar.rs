//! Tar streams, from headers to the rebuilt stream. The first byte chooses the
//! size of the pieces; whatever that is, the layer is the same.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((first, rest)) = data.split_first() else { return };
    let mut bytes = rest.to_vec();
    peersync_fuzz::fix_checksums(&mut bytes);
    let bytes = Bytes::from(bytes);
    let pieces = peersync_fuzz::build(&bytes, usize::from(*first) * 7 + 1, first % 8 == 0);
    let whole = peersync_fuzz::build(&bytes, usize::MAX >> 1, false);
    assert_eq!(pieces.is_some(), whole.is_some());
    if let Some((pieces, whole)) = pieces.zip(whole) {
        assert_eq!(pieces.tree, whole.tree);
        assert_eq!(pieces.blocks, whole.blocks);
    }
});
