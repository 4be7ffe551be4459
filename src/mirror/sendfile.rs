//! Blobs that are whole and verified on this node's disk go to clients without
//! passing through this process: `sendfile(2)`.
//!
//! HTTP code sends memory, so the body is a mapping of the file, and a connection
//! that is given a part of the mapping to write has the kernel send that part of the
//! file instead. Nothing depends on it: whoever reads the mapping gets the same
//! bytes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use memmap2::Mmap;
use nix::libc;
use nix::sys::sendfile::sendfile;

/// Bytes that are given to a connection at a time.
const STEP: usize = 4 << 20;
/// Bytes read at a time from a disk.
const READ: usize = 256 << 10;
const PAGE: usize = 4096;

/// A whole file, mapped.
pub(super) struct Mapped {
    map: Mmap,
    file: File,
}

/// A part of it as the memory that HTTP code sends.
struct Part {
    mapped: Arc<Mapped>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &self.mapped.map[self.range.clone()]
    }
}

impl Mapped {
    /// Maps the data file of an object that the store gives out to be read past it.
    ///
    /// # Errors
    /// Where it can't be mapped, or has another length.
    pub(super) fn of(file: File, length: u64) -> io::Result<Arc<Self>> {
        // SAFETY: the store neither writes to nor truncates the file of a complete
        // object while somebody has it open, and nobody else can open it.
        let map = unsafe { Mmap::map(&file) }?;
        if map.len() as u64 != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Arc::new(Self { map, file }))
    }

    /// Some of its bytes, as the body of an answer.
    pub(super) fn body(self: &Arc<Self>, range: Range<u64>) -> Body {
        let (from, to) = (range.start as usize, range.end as usize);
        let start = (Arc::clone(self), from..to.min(self.map.len()));
        Body::from_stream(stream::try_unfold(start, |(mapped, mut left)| async move {
            if left.is_empty() {
                return Ok::<_, io::Error>(None);
            }
            let range = left.start..left.end.min((left.start / STEP + 1) * STEP);
            mapped.have_in_memory(range.clone()).await?;
            left.start = range.end;
            let part = Bytes::from_owner(Part { mapped: Arc::clone(&mapped), range });
            Ok(Some((part, (mapped, left))))
        }))
    }

    /// Where in the file these bytes are, if they are the mapping's own.
    pub(super) fn place(&self, bytes: &[u8]) -> Option<usize> {
        let at = (bytes.as_ptr() as usize).checked_sub(self.map.as_ptr() as usize)?;
        (at + bytes.len() <= self.map.len()).then_some(at)
    }

    /// Has the kernel send so much of the file as the socket takes now.
    ///
    /// # Errors
    /// Those of the socket and the file.
    pub(super) fn send(&self, socket: impl AsFd, at: usize, len: usize) -> io::Result<usize> {
        let mut offset = at as libc::off_t;
        let sent = sendfile(socket, &self.file, Some(&mut offset), len)?;
        if sent == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(sent) }
    }

    /// Waits for the disk where it has to be waited for: not where clients are served.
    async fn have_in_memory(self: &Arc<Self>, range: Range<usize>) -> io::Result<()> {
        if self.is_in_memory(&range) {
            return Ok(());
        }
        let mapped = Arc::clone(self);
        let read = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; READ];
            for at in range.clone().step_by(READ) {
                let len = READ.min(range.end - at);
                mapped.file.read_exact_at(&mut buffer[..len], at as u64)?;
            }
            Ok::<_, io::Error>(())
        });
        read.await.map_err(io::Error::other)?
    }

    fn is_in_memory(&self, range: &Range<usize>) -> bool {
        let start = range.start / PAGE * PAGE;
        let len = range.end - start;
        let mut pages = [0; STEP / PAGE + 1];
        // SAFETY: the pages from `start` on lie in the mapping, which begins at a
        // page, and `pages` has a byte for each: the range is one step at most.
        let told = unsafe {
            libc::mincore(self.map.as_ptr().add(start).cast_mut().cast(), len, pages.as_mut_ptr())
        };
        told == 0 && pages[..len.div_ceil(PAGE)].iter().all(|page| page & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use http_body_util::BodyExt;

    use super::*;

    fn mapped(bytes: &[u8]) -> Arc<Mapped> {
        let mut file = tempfile::tempfile().expect("file");
        file.write_all(bytes).expect("written");
        Mapped::of(file, bytes.len() as u64).expect("mapped")
    }

    #[tokio::test]
    async fn a_body_is_what_the_file_has() {
        let bytes: Vec<u8> = (0..STEP + 5000).map(|n| (n / 7) as u8).collect();
        let mapped = mapped(&bytes);
        for range in [0..bytes.len(), 5..6, PAGE - 1..STEP + 1, STEP + 4999..bytes.len()] {
            let body = mapped.body(range.start as u64..range.end as u64);
            let given = body.collect().await.expect("body").to_bytes();
            assert!(given == bytes[range]);
        }
    }

    #[test]
    fn the_kernel_sends_what_lies_in_the_mapping_and_nothing_else() {
        let mapped = mapped(b"0123456789");
        assert_eq!(mapped.place(&mapped.map[3..7]), Some(3));
        assert_eq!(mapped.place(b"elsewhere"), None);
        let (one, mut other) = UnixStream::pair().expect("sockets");
        assert_eq!(mapped.send(&one, 3, 4).expect("sent"), 4);
        assert!(mapped.send(&one, 10, 4).is_err());
        drop(one);
        let mut given = String::new();
        other.read_to_string(&mut given).expect("read");
        assert_eq!(given, "3456");
        assert!(Mapped::of(tempfile::tempfile().expect("file"), 1).is_err());
    }
}
