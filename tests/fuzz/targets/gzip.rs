//! gzip blobs: any pieces give the same stream, and every seek point leads to
//! its part of it.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| check(data, &[0x1f, 0x8b]));

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
        (pieces, whole) => assert!(pieces.is_err() && whole.is_err()),
    }
}
