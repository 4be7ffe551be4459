//! Looking for content that is here already.

use std::ops::ControlFlow;

use super::error::{MetaError, PutError};
use super::meta::{Batch, View};
use super::{Counters, Store};
use crate::store::device::Mode;
use crate::store::format::keys;
use crate::store::format::layout::data_path;
use crate::store::format::records::{ContentRecord, decode_object};
use crate::store::format::tables::Table;
use crate::types::{BlockHash, ObjectId};

/// Places of one hash that are looked at: content that is in many objects is
/// soon found in one that is there.
const CANDIDATES_MAX: usize = 64;

impl Store {
    /// A place where the block is stored: object and block index. Reading it
    /// from there verifies it once more.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn find_block(&self, hash: &BlockHash) -> Result<Option<(ObjectId, u32)>, MetaError> {
        let prefix = &hash.as_bytes()[..keys::PREFIX_LEN];
        let rows = self.candidates(Table::BlockIndex, prefix, keys::parse_block_row)?;
        for (number, index) in rows {
            let Some(id) = self.object_of(number)? else {
                continue;
            };
            let Ok(entry) = self.inner.entry(&id) else {
                continue;
            };
            let same = entry.spec.block(index).is_some_and(|b| b.hash == *hash);
            if same && entry.present.get(index) {
                return Ok(Some((id, index)));
            }
        }
        Ok(None)
    }

    /// Copies a block that is stored to another place where it belongs.
    /// `false` if it is not there any more.
    ///
    /// # Errors
    /// [`PutError`]; also where the two blocks are not the same.
    pub fn copy_block(&self, from: (ObjectId, u32), to: (ObjectId, u32)) -> Result<bool, PutError> {
        let Some(block) = self.inner.read_block(&from.0, from.1)? else {
            return Ok(false);
        };
        if !self.share_block(from, to, &block)? {
            self.put_block(&to.0, to.1, &block)?;
        }
        Counters::add(&self.inner.counters.copied_bytes, block.data().len() as u64);
        Ok(true)
    }

    /// Notes where whole contents (files) stand in objects: content hash,
    /// object, offset, length in bytes. Objects that are not known are passed
    /// over.
    ///
    /// # Errors
    /// [`MetaError`]; none is noted then.
    pub fn add_contents(
        &self,
        contents: impl IntoIterator<Item = (BlockHash, ObjectId, u64, u64)>,
    ) -> Result<(), MetaError> {
        self.inner.meta.update(false, |view, batch| content_rows(view, batch, contents))
    }

    /// Where a whole content stands: object, offset, length in bytes; at most
    /// 64 places. What is there of it, the caller asks.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn find_content(&self, hash: &BlockHash) -> Result<Vec<(ObjectId, u64, u64)>, MetaError> {
        let prefix = &hash.as_bytes()[..keys::PREFIX_LEN];
        let rows = self.candidates(Table::ContentIndex, prefix, keys::parse_content_row)?;
        let mut found = Vec::new();
        for (number, offset) in rows {
            let record = self
                .inner
                .meta
                .read(|view| view.get(Table::Contents, &keys::content(number, offset)))?;
            let Some(Ok(record)) = record.map(|payload| ContentRecord::decode(&payload)) else {
                continue;
            };
            if record.hash == *hash
                && let Some(id) = self.object_of(number)?
            {
                found.push((id, offset, record.length));
            }
        }
        Ok(found)
    }

    fn candidates<T>(
        &self,
        table: Table,
        prefix: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, MetaError> {
        let mut rows = Vec::new();
        self.inner.meta.read(|view| {
            view.scan(table, prefix, |key, _| {
                rows.extend(parse(key));
                if rows.len() < CANDIDATES_MAX {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
        })?;
        Ok(rows)
    }

    fn object_of(&self, number: u32) -> Result<Option<ObjectId>, MetaError> {
        let payload =
            self.inner.meta.read(|view| view.get(Table::Numbers, &keys::number(number)))?;
        Ok(payload.and_then(|payload| decode_object(&payload).ok()))
    }

    /// Lets both objects share the block's space where the file system can
    /// (reflink); the bytes were verified a moment ago.
    fn share_block(
        &self,
        from: (ObjectId, u32),
        to: (ObjectId, u32),
        block: &crate::types::VerifiedBlock,
    ) -> Result<bool, PutError> {
        let source = self.inner.entry(&from.0)?;
        let Some(at) = source.spec.block(from.1) else {
            return Ok(false);
        };
        let Ok(file) = self.inner.device.open(&data_path(&from.0), Mode::Read) else {
            return Ok(false);
        };
        self.inner.put_with(&to.0, to.1, block, |target, offset| {
            target.clone_range(&*file, at.offset, offset, u64::from(at.len))
        })
    }
}

/// The rows of whole contents in objects that are known.
pub(super) fn content_rows(
    view: &View,
    batch: &mut Batch,
    contents: impl IntoIterator<Item = (BlockHash, ObjectId, u64, u64)>,
) -> Result<(), MetaError> {
    let mut last = None;
    for (hash, id, offset, length) in contents {
        let number = match last {
            Some((known, number)) if known == id => number,
            _ => match super::objects::object_record(view, &id)? {
                Some(record) => record.number,
                None => continue,
            },
        };
        last = Some((id, number));
        let record = ContentRecord { hash, length };
        batch.put(Table::Contents, &keys::content(number, offset), record.encode());
        let row = keys::content_row(&hash, number, offset);
        batch.put(Table::ContentIndex, &row, Vec::new());
    }
    Ok(())
}
