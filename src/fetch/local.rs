//! Blocks that need not be fetched, because their bytes are here under another name.

use bytes::{Bytes, BytesMut};

use super::index::Located;
use crate::store::Store;
use crate::types::VerifiedBlock;

/// The bundle is a layer's object number 0.
const BUNDLE: u32 = 0;

/// Finds a block's bytes in other objects: the same block, or for a bundle the
/// same files. Whatever is found is verified against the block's own hash.
pub(super) fn find(store: &Store, located: &Located, index: u32) -> Option<VerifiedBlock> {
    let spec = located.index.specs().get(located.number as usize)?;
    let entry = spec.block(index)?;
    let same = || {
        let (object, index) = store.find_block(&entry.hash).ok()??;
        let there = store.spec(&object).ok()??.block(index)?;
        read(store, object, there.offset, u64::from(there.len))
    };
    let files = || {
        (located.number == BUNDLE)
            .then(|| from_files(store, located, entry.offset, u64::from(entry.len)))
            .flatten()
    };
    let verify = |data: Bytes| VerifiedBlock::verify(data, &entry.hash).ok();
    same().and_then(verify).or_else(|| files().and_then(verify))
}

/// Puts a stretch of a bundle together from files that are here.
fn from_files(store: &Store, located: &Located, offset: u64, len: u64) -> Option<Bytes> {
    let mut out = BytesMut::with_capacity(len as usize);
    let end = offset + len;
    for file in located.index.bundle_files(offset, len) {
        let from = file.offset.max(offset);
        let to = (file.offset + file.length).min(end);
        if from != offset + out.len() as u64 {
            // A file that a later entry of the tar replaced lies between.
            return None;
        }
        let places = store.find_content(&file.hash).ok()?;
        let part = places.iter().find_map(|(object, offset, length)| {
            let at = offset + (from - file.offset);
            (*length == file.length).then(|| read(store, *object, at, to - from)).flatten()
        })?;
        out.extend_from_slice(&part);
    }
    (out.len() as u64 == len).then(|| out.freeze())
}

fn read(store: &Store, object: crate::types::ObjectId, offset: u64, len: u64) -> Option<Bytes> {
    let mut data = Vec::with_capacity(len as usize);
    let here = store.read_at(&object, offset, usize::try_from(len).ok()?, &mut data).ok()?;
    here.then(|| data.into())
}
