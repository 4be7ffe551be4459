//! Hostile seek tables and blobs: whatever comes out stays within the span.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use peersync::layer::build::Decompressor;
use peersync::layer::seek::SeekTable;
use peersync::layer::span::SpanDecoder;

fuzz_target!(|data: &[u8]| {
    // Two bytes: the length of the table; then the table and the blob.
    let Some((length, rest)) = data.split_first_chunk::<2>() else { return };
    let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
    let data = Bytes::copy_from_slice(rest);
    let (table, blob) = (data.slice(..length), data.slice(length..));
    if let Some(mut decompressor) = Decompressor::restore(&table, peersync_fuzz::limits()) {
        let mut input = blob.clone();
        while let Ok(Some(_)) = decompressor.step(&mut input) {}
    }
    let Ok(table) = SeekTable::decode(&table) else { return };
    assert_eq!(SeekTable::decode(&table.encode().into()).as_ref(), Ok(&table));
    for span in (0..table.points().len().min(64)).filter_map(|n| table.span(n)) {
        let Ok(mut decoder) = SpanDecoder::new(&table, &span) else { continue };
        let mut input = blob.clone();
        let mut out = 0u64;
        while let Ok(Some(bytes)) = decoder.feed(&mut input) {
            assert!(!bytes.is_empty());
            out += bytes.len() as u64;
            assert!(out <= span.stream.end - span.stream.start);
            if out > 1 << 20 {
                break;
            }
        }
    }
});
