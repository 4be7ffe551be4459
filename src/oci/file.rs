//! Parts of local files as streams of chunks.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};

use super::error::SourceError;

/// Bytes read at once.
const CHUNK: u64 = 512 << 10;

/// Opens a file to read. Does not wait: what stands there might be a FIFO.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)
}

/// All of `len` bytes at an offset.
pub(super) fn read_at(file: &File, offset: u64, len: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The bytes of `range`, read on tokio's blocking threads. `failed` makes the
/// error that ends the stream.
pub(super) fn chunks(
    file: Arc<File>,
    range: Range<u64>,
    failed: impl Fn(io::Error) -> SourceError + Clone + Send + 'static,
) -> impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static {
    stream::try_unfold(range, move |range| {
        let (file, failed) = (Arc::clone(&file), failed.clone());
        async move {
            if range.start >= range.end {
                return Ok(None);
            }
            let len = CHUNK.min(range.end - range.start);
            let read = tokio::task::spawn_blocking(move || read_at(&file, range.start, len)).await;
            let chunk = read.map_err(io::Error::other).flatten().map_err(failed)?;
            Ok(Some((Bytes::from(chunk), range.start + len..range.end)))
        }
    })
}
