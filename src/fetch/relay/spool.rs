//! Pieces of blobs that are handed on while first passes over them are under way.
//!
//! A spool is an unlinked file: nothing of it outlives the process. A pass that
//! keeps the blob itself needs none, and its pieces are read where they are. The
//! bytes are what came from a registry or a neighbour, before anything could verify
//! them; whoever gets them verifies the whole blob, as this node does.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::types::Digest;
use crate::wire::{BlockSet, PASS_PIECE};

/// Pieces of a blob that this node can hand on.
pub trait Pieces: Send + Sync {
    /// Which are here.
    fn pieces(&self) -> BlockSet;

    /// One of them. Blocks for the disk.
    ///
    /// # Errors
    /// Where it can't be read.
    fn read(&self, piece: u32) -> io::Result<Option<Bytes>>;
}

/// What is handed on by this process, by the name under which it is.
pub struct Spools {
    directory: PathBuf,
    open: Mutex<HashMap<Digest, Kept>>,
}

/// Where pieces are kept.
enum Kept {
    Spool(Arc<Spool>),
    Elsewhere(Arc<dyn Pieces>),
}

/// What is here of one blob.
#[derive(Debug)]
pub struct Spool {
    file: File,
    size: u64,
    pieces: Mutex<BlockSet>,
}

impl Spools {
    /// Spools with their files in a directory, from which they are unlinked at once.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: Mutex::default() }
    }

    /// The spool of a blob of `size` bytes, made if there is none.
    ///
    /// # Errors
    /// Where the file can't be made.
    pub fn make(&self, blob: &Digest, size: u64) -> io::Result<Arc<Spool>> {
        let mut open = self.open();
        if let Some(Kept::Spool(spool)) = open.get(blob) {
            return Ok(Arc::clone(spool));
        }
        let name = self.directory.join(format!(".spool-{}-{}", std::process::id(), blob.hex()));
        let _ = std::fs::remove_file(&name);
        let file = File::options().read(true).write(true).create_new(true).open(&name)?;
        std::fs::remove_file(&name)?;
        let spool = Arc::new(Spool { file, size, pieces: Mutex::default() });
        open.insert(*blob, Kept::Spool(Arc::clone(&spool)));
        Ok(spool)
    }

    /// Pieces that are kept elsewhere are handed on from now on.
    pub fn hand_on(&self, blob: &Digest, pieces: Arc<dyn Pieces>) {
        self.open().insert(*blob, Kept::Elsewhere(pieces));
    }

    /// What is handed on of a blob.
    pub fn get(&self, blob: &Digest) -> Option<Arc<dyn Pieces>> {
        Some(match self.open().get(blob)? {
            Kept::Spool(spool) => Arc::clone(spool) as Arc<dyn Pieces>,
            Kept::Elsewhere(pieces) => Arc::clone(pieces),
        })
    }

    /// Its pieces are not handed on any more.
    pub fn remove(&self, blob: &Digest) {
        self.open().remove(blob);
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Digest, Kept>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Spool {
    /// Number of pieces of the whole blob.
    pub fn count(&self) -> u32 {
        u32::try_from(self.size.div_ceil(PASS_PIECE)).unwrap_or(u32::MAX)
    }

    /// Length of a piece.
    pub fn piece_len(&self, piece: u32) -> u64 {
        PASS_PIECE.min(self.size.saturating_sub(u64::from(piece) * PASS_PIECE))
    }

    /// Keeps a piece. Blocks for the disk.
    ///
    /// # Errors
    /// Where it can't be written: it is not handed on, and no more.
    pub fn put(&self, piece: u32, bytes: &[u8]) -> io::Result<()> {
        if piece >= self.count() || bytes.len() as u64 != self.piece_len(piece) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.file.write_all_at(bytes, u64::from(piece) * PASS_PIECE)?;
        self.held().insert(piece..piece + 1);
        Ok(())
    }

    fn held(&self) -> MutexGuard<'_, BlockSet> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pieces for Spool {
    fn pieces(&self) -> BlockSet {
        self.held().clone()
    }

    fn read(&self, piece: u32) -> io::Result<Option<Bytes>> {
        if !self.held().contains(piece) {
            return Ok(None);
        }
        let mut bytes = vec![0; self.piece_len(piece) as usize];
        self.file.read_exact_at(&mut bytes, u64::from(piece) * PASS_PIECE)?;
        Ok(Some(bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_come_back_as_they_were_put_and_nothing_is_left_on_disk() {
        let dir = tempfile::tempdir().expect("directory");
        let (spools, blob) = (Spools::new(dir.path()), Digest::of(b"blob"));
        let spool = spools.make(&blob, PASS_PIECE + 5).expect("spool");
        assert_eq!((spool.count(), spool.piece_len(1)), (2, 5));
        spool.put(1, b"12345").expect("kept");
        assert_eq!(spool.read(1).expect("read"), Some(Bytes::from_static(b"12345")));
        assert_eq!(spool.read(0).expect("read"), None);
        assert!(spool.put(1, b"123456").is_err() && spool.put(2, b"").is_err());
        assert_eq!(spool.pieces().runs(), std::slice::from_ref(&(1..2)));
        assert_eq!(std::fs::read_dir(dir.path()).expect("listed").count(), 0);
        spools.remove(&blob);
        assert!(spools.get(&blob).is_none());
    }
}
