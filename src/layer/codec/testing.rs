//! Compressors for tests.

use std::mem::size_of;

use libz_rs_sys::{
    Z_DEFAULT_STRATEGY, Z_DEFLATED, Z_FINISH, Z_STREAM_END, deflate, deflateEnd, deflateInit2_,
    z_stream, zlibVersion,
};

/// One gzip member.
pub(crate) fn gzip(data: &[u8], level: i32) -> Vec<u8> {
    let mut out = vec![0; data.len() + data.len() / 64 + 1024];
    let mut stream = Box::new(z_stream::default());
    stream.next_in = data.as_ptr().cast_mut();
    stream.avail_in = data.len() as u32;
    stream.next_out = out.as_mut_ptr();
    stream.avail_out = out.len() as u32;
    // SAFETY: a valid stream with default allocators, and buffers that are valid
    // for the lengths given; the stream is not used after its end.
    let result = unsafe {
        let stream = &raw mut *stream;
        let size = size_of::<z_stream>() as i32;
        // 16 + 15: a gzip member with the full window.
        deflateInit2_(stream, level, Z_DEFLATED, 31, 8, Z_DEFAULT_STRATEGY, zlibVersion(), size);
        let result = deflate(stream, Z_FINISH);
        deflateEnd(stream);
        result
    };
    assert_eq!(result, Z_STREAM_END);
    out.truncate(stream.total_out as usize);
    out
}

/// Several gzip members of `size` bytes of output each.
pub(crate) fn gzip_members(data: &[u8], size: usize) -> Vec<u8> {
    data.chunks(size).flat_map(|part| gzip(part, 6)).collect()
}

/// A skippable zstd frame.
pub(crate) fn skippable(data: &[u8]) -> Vec<u8> {
    [&[0x5a, 0x2a, 0x4d, 0x18][..], &(data.len() as u32).to_le_bytes(), data].concat()
}

/// One zstd frame.
pub(crate) fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(data, 1).expect("memory")
}

/// Zstd frames of `size` bytes of output each, a skippable one after each, as
/// the seekable format and zstd:chunked have at their ends.
pub(crate) fn zstd_frames(data: &[u8], size: usize) -> Vec<u8> {
    data.chunks(size).flat_map(|part| [zstd(part), skippable(b"table")].concat()).collect()
}
