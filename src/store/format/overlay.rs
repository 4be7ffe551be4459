//! Reading a database without writing to it.
//!
//! redb writes to a database when it opens it. A read-only store, and a checker
//! that must not touch what it checks, put this over the file: writes stay in
//! memory, in pages, up to a bound.

use std::collections::HashMap;
use std::io;
use std::sync::Mutex;

const PAGE: u64 = 4096;

/// What lies below an overlay: a file that can be read at any offset.
pub trait ReadAt: Send + Sync + std::fmt::Debug + 'static {
    /// Reads up to `buf.len()` bytes; 0 at the end of the file.
    ///
    /// # Errors
    /// Those of the device.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;

    /// The length in bytes.
    ///
    /// # Errors
    /// Those of the device.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file is empty.
    ///
    /// # Errors
    /// Those of the device.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl ReadAt for std::fs::File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.metadata().map(|m| m.len())
    }
}

/// A [`redb::StorageBackend`] whose writes never reach the file.
#[derive(Debug)]
pub struct Overlay<F> {
    below: F,
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// How much of the file below still shows.
    below: u64,
    pages: HashMap<u64, Box<[u8; PAGE as usize]>>,
}

impl<F: ReadAt> Overlay<F> {
    /// Lays an overlay of at most `limit` bytes over `below`.
    ///
    /// # Errors
    /// Where the length can't be read.
    pub fn new(below: F, limit: usize) -> io::Result<Self> {
        let len = below.len()?;
        Ok(Self {
            below,
            limit,
            state: Mutex::new(State { len, below: len, pages: HashMap::new() }),
        })
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Reads the first `below` bytes of the file; zeros after them.
    fn read_below(&self, below: u64, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let shown = below.saturating_sub(offset).min(out.len() as u64) as usize;
        let mut done = 0;
        while done < shown {
            match self.below.read_at(offset + done as u64, &mut out[done..shown])? {
                0 => break,
                n => done += n,
            }
        }
        out[done..].fill(0);
        Ok(())
    }
}

impl<F: ReadAt> redb::StorageBackend for Overlay<F> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state();
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > state.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        for (page, at, range) in pages(offset, out.len()) {
            let len = range.len();
            match state.pages.get(&page) {
                Some(bytes) => out[range].copy_from_slice(&bytes[at..at + len]),
                None => self.read_below(state.below, page * PAGE + at as u64, &mut out[range])?,
            }
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        if len < state.len {
            // What is cut off reads as zeros when the file grows again.
            state.below = state.below.min(len);
            state.pages.retain(|page, _| page * PAGE < len);
            if let Some(last) = state.pages.get_mut(&(len / PAGE)) {
                last[(len % PAGE) as usize..].fill(0);
            }
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        for (page, at, range) in pages(offset, data.len()) {
            if !state.pages.contains_key(&page) {
                if (state.pages.len() + 1) * PAGE as usize > self.limit {
                    return Err(io::ErrorKind::OutOfMemory.into());
                }
                let mut bytes = Box::new([0; PAGE as usize]);
                self.read_below(state.below, page * PAGE, &mut bytes[..])?;
                state.pages.insert(page, bytes);
            }
            let len = range.len();
            if let Some(bytes) = state.pages.get_mut(&page) {
                bytes[at..at + len].copy_from_slice(&data[range]);
            }
        }
        state.len = state.len.max(offset + data.len() as u64);
        Ok(())
    }
}

/// Cuts a span at page borders: page number, offset in the page, range in the span.
fn pages(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let position = offset + done as u64;
        let at = (position % PAGE) as usize;
        let n = (PAGE as usize - at).min(len - done);
        let range = done..done + n;
        done += n;
        Some((position / PAGE, at, range))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::StorageBackend;

    impl ReadAt for Vec<u8> {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            let tail = self.get(offset as usize..).unwrap_or_default();
            let n = tail.len().min(buf.len());
            buf[..n].copy_from_slice(&tail[..n]);
            Ok(n)
        }

        fn len(&self) -> io::Result<u64> {
            Ok(self.len() as u64)
        }
    }

    #[test]
    fn writes_are_seen_and_stay_above() {
        let overlay = Overlay::new(vec![1u8; 10_000], 1 << 20).expect("length");
        overlay.write(4090, &[2; 20]).expect("within the limit");
        let mut out = [0; 30];
        overlay.read(4085, &mut out).expect("inside");
        assert_eq!(&out[..5], [1; 5]);
        assert_eq!(&out[5..25], [2; 20]);
        assert_eq!(&out[25..], [1; 5]);
        overlay.set_len(20_000).expect("growth");
        overlay.read(12_000, &mut out).expect("zeros");
        assert_eq!(out, [0; 30]);
        assert!(overlay.read(19_990, &mut out).is_err());
        overlay.set_len(4100).expect("shrunk");
        overlay.set_len(20_000).expect("grown again");
        overlay.read(4085, &mut out).expect("inside");
        assert_eq!(&out[..5], [1; 5]);
        assert_eq!(&out[5..15], [2; 10]);
        assert_eq!(&out[15..], [0; 15]);
        let small = Overlay::new(vec![1u8; 10_000], 4096).expect("length");
        assert!(small.write(0, &[0; 5000]).is_err());
        assert!(overlay.below.iter().all(|b| *b == 1));
    }
}
