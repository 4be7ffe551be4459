//! What a pass over exact bytes hands on to neighbours: pieces of what it keeps
//! anyway, while it goes on and after its end.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

use super::arriving::Arriving;
use crate::fetch::relay::Pieces;
use crate::store::Store;
use crate::wire::{BlockSet, PASS_PIECE};

pub(super) struct Passing {
    pub(super) arriving: Arc<Arriving>,
    pub(super) store: Arc<Store>,
}

impl Pieces for Passing {
    fn pieces(&self) -> BlockSet {
        let mut pieces = BlockSet::new();
        pieces.insert(0..self.arriving.pieces());
        pieces
    }

    fn read(&self, piece: u32) -> io::Result<Option<Bytes>> {
        if piece >= self.arriving.pieces() {
            return Ok(None);
        }
        let start = u64::from(piece) * PASS_PIECE;
        let end = (start + PASS_PIECE).min(self.arriving.size());
        if let Some(bytes) = self.arriving.stretch(start..end).map_err(io::Error::other)? {
            return Ok(Some(bytes));
        }
        let Some(object) = self.arriving.object() else { return Ok(None) };
        let mut bytes = Vec::new();
        let read = self.store.read_at(&object, start, (end - start) as usize, &mut bytes);
        Ok(read.map_err(io::Error::other)?.then(|| bytes.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::OpenOptions;

    #[test]
    fn pieces_are_handed_on_while_the_pass_goes_on_and_out_of_the_object_after_it() {
        let dir = tempfile::tempdir().expect("directory");
        let store = Arc::new(Store::open(dir.path(), OpenOptions::default()).expect("store"));
        let (one, two) = (vec![1; PASS_PIECE as usize], vec![2; 5]);
        let arriving = Arc::new(Arriving::new(PASS_PIECE + 5));
        let passing = Passing { arriving: Arc::clone(&arriving), store: Arc::clone(&store) };
        arriving.push(one[..100].to_vec().into());
        assert_eq!((arriving.pieces(), passing.read(0).expect("read")), (0, None));
        arriving.push(one[100..].to_vec().into());
        assert_eq!(passing.read(0).expect("read"), Some(one.clone().into()));
        assert_eq!(passing.read(1).expect("read"), None);
        arriving.push(two.clone().into());
        assert_eq!(passing.read(1).expect("read"), Some(two.clone().into()));
        assert_eq!(passing.pieces().runs(), std::slice::from_ref(&(0..2)));

        // The pass ends: the blob is an object, or nothing.
        arriving.staged(PASS_PIECE + 5);
        assert_eq!(passing.read(0).expect("read"), None);
        arriving.became(store.put_object(&[one.clone(), two.clone()].concat()).expect("stored"));
        assert_eq!(passing.read(0).expect("read"), Some(one.into()));
        assert_eq!(passing.read(1).expect("read"), Some(two.into()));
        assert_eq!(passing.read(2).expect("read"), None);
    }
}
