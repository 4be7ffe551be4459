//! zstd blobs: any pieces that decode give the same stream, and every seek point leads to
//! its part of it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| check(data, &[0x28, 0xb5, 0x2f, 0xfd]));

fn check(data: &[u8], magic: &[u8]) {
    let Some((first, rest)) = data.split_first() else { return };
    if !rest.starts_with(magic) {
        return;
    }
    let blob = Bytes::copy_from_slice(rest);
    let pieces = peersync_fuzz::decompress(&blob, usize::from(*first) + 1);
    let whole = peersync_fuzz::decompress(&blob, usize::MAX >> 1);
    match (pieces, whole) {
        (Ok(pieces), Ok((stream, table, end))) => {
            assert_eq!(pieces.0, stream);
            assert_eq!(pieces.2, end);
            peersync_fuzz::check_spans(&blob, &stream, &table);
            peersync_fuzz::check_spans(&blob, &stream, &pieces.1);
        }
        // A frame that ends before its stated length is an error for libzstd only
        // when it sees the frame as a whole.
        (_, _) => {}
    }
}
