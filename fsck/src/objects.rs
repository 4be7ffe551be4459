//! Objects and their block lists.

use peersync::store::format::keys;
use peersync::store::format::records::{ObjectRecord, decode_object, decode_spec_chunk};
use peersync::store::format::spec::SpecHasher;
use peersync::store::format::tables::{INDEXED_BLOCKS_MAX, Table};
use peersync::types::{BlockHash, ObjectId, ObjectSpec};

use crate::FsckError;
use crate::checker::{Checker, row};
use crate::database::{Lookup, Snapshot};
use crate::report::Kind;

/// One stretch of a block list.
pub(crate) struct Stretch {
    /// Number of the first block.
    pub(crate) first: u32,
    /// Hash and length of each.
    pub(crate) blocks: Vec<(BlockHash, u32)>,
}

impl Checker<'_> {
    /// Each object has its number, a block list that its name vouches for, and
    /// its rows in the index of blocks. An object without a list is forgotten.
    pub(crate) fn check_objects(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        self.progress.stage("objects", Some(snapshot.count(Table::Objects)?));
        let (mut rows, mut highest) = (0u64, 0u32);
        snapshot.scan(Table::Objects, &[], |key, payload| {
            self.progress.advance(1);
            let Some((id, record)) = parse(key, payload.ok()) else {
                return Ok(());
            };
            highest = highest.max(record.number);
            self.report.checked.objects += 1;
            self.check_object(&snapshot, &id, &record, &mut rows)
        })?;
        self.check_numbers(&snapshot)?;
        if snapshot.count(Table::BlockIndex)? != rows {
            self.check_block_index()?;
        }
        self.check_counter(keys::STATE_NEXT_OBJECT, highest)
    }

    fn check_object(
        &mut self,
        snapshot: &Snapshot,
        id: &ObjectId,
        record: &ObjectRecord,
        rows: &mut u64,
    ) -> Result<(), FsckError> {
        let number = keys::number(record.number);
        match snapshot.get(Table::Numbers, &number)?.good().and_then(|p| decode_object(&p).ok()) {
            Some(owner) if owner == *id => {}
            Some(owner) => {
                let message = format!("number {} belongs to {owner}", record.number);
                self.found(Kind::Relation, format!("object {id}"), message);
                return self.forget_object(snapshot, id, record, false);
            }
            None => {
                let message = format!("number {} is not on record", record.number);
                self.found(Kind::Relation, format!("object {id}"), message);
                self.put(Table::Numbers, &number, id.as_bytes().to_vec())?;
            }
        }
        let mut missing = Vec::new();
        let listed = each_stretch(snapshot, id, record, |stretch| {
            for ((hash, _), index) in stretch.blocks.iter().zip(stretch.first..) {
                if index < INDEXED_BLOCKS_MAX {
                    let key = keys::block_row(hash, record.number, index);
                    if snapshot.contains(Table::BlockIndex, &key)? {
                        *rows += 1;
                    } else {
                        missing.push(key);
                    }
                }
            }
            Ok(())
        })?;
        if let Err(message) = listed {
            self.found(Kind::BlockList, format!("object {id}"), message);
            return self.forget_object(snapshot, id, record, true);
        }
        if !missing.is_empty() {
            let message = format!("{} blocks are not in the index of blocks", missing.len());
            self.found(Kind::Relation, format!("object {id}"), message);
        }
        for key in missing {
            self.put(Table::BlockIndex, &key, Vec::new())?;
        }
        Ok(())
    }

    /// Deletes an object's records; `own` if its number is its own. Its rows in
    /// the indexes are found when these are compared.
    fn forget_object(
        &mut self,
        snapshot: &Snapshot,
        id: &ObjectId,
        record: &ObjectRecord,
        own: bool,
    ) -> Result<(), FsckError> {
        self.delete(Table::Objects, id.as_bytes())?;
        self.delete(Table::Marks, id.as_bytes())?;
        self.delete(Table::Removing, id.as_bytes())?;
        self.delete(Table::Accesses, id.as_bytes())?;
        if own {
            let number = keys::number(record.number);
            self.delete(Table::Numbers, &number)?;
            for table in [Table::Specs, Table::Contents] {
                snapshot.scan(table, &number, |key, _| self.delete(table, key))?;
            }
        }
        Ok(())
    }

    /// Numbers, stretches of block lists and marks without their object.
    fn check_numbers(&mut self, before: &Snapshot) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let record = |id: &ObjectId| object_record(&snapshot, id);
        snapshot.scan(Table::Numbers, &[], |key, payload| {
            let id = payload.ok().and_then(|p| decode_object(p).ok());
            let owner = id.map(|id| record(&id)).transpose()?.flatten();
            if owner.is_none_or(|o| keys::number(o.number)[..] != *key) {
                self.found(Kind::Relation, row(Table::Numbers, key), "no object has this number");
                self.delete(Table::Numbers, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        snapshot.scan(Table::Specs, &[], |key, _| {
            let owner = match keys::parse_spec_chunk(key) {
                Some((number, chunk)) => owner_of(&snapshot, number)?
                    .filter(|(_, r)| chunk < r.blocks.div_ceil(keys::SPEC_CHUNK)),
                None => None,
            };
            if owner.is_none() {
                self.found(Kind::Relation, row(Table::Specs, key), "no object has this block list");
                self.delete(Table::Specs, key)?;
            }
            Ok::<_, FsckError>(())
        })?;
        for table in [Table::Marks, Table::Removing, Table::Accesses] {
            before.scan(table, &[], |key, _| {
                if !snapshot.contains(Table::Objects, key)? && snapshot.contains(table, key)? {
                    self.found(Kind::Relation, row(table, key), "the object is not on record");
                    self.delete(table, key)?;
                }
                Ok::<_, FsckError>(())
            })?;
        }
        Ok(())
    }

    /// Deletes rows of the index of blocks that no block list has. Only done
    /// when the number of rows is wrong: it looks into a block list for each.
    fn check_block_index(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        self.progress.stage("index of blocks", Some(snapshot.count(Table::BlockIndex)?));
        snapshot.scan(Table::BlockIndex, &[], |key, _| {
            self.progress.advance(1);
            if !block_row_is_right(&snapshot, key)? {
                self.found(Kind::Relation, row(Table::BlockIndex, key), "no object has this block");
                self.delete(Table::BlockIndex, key)?;
            }
            Ok::<_, FsckError>(())
        })
    }

    /// A counter is above every number that was given.
    pub(crate) fn check_counter(&mut self, key: &[u8], highest: u32) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let next = match snapshot.get(Table::State, key)? {
            Lookup::Good(payload) => {
                peersync::store::format::records::decode_number(&payload).unwrap_or(0)
            }
            _ if highest == 0 => return Ok(()),
            _ => 0,
        };
        if next <= highest {
            let message = format!("the counter stands at {next}, but {highest} was given");
            self.found(Kind::Relation, row(Table::State, key), message);
            let next = highest.saturating_add(1);
            self.put(Table::State, key, peersync::store::format::records::encode_number(next))?;
        }
        Ok(())
    }

    /// Contents stand inside objects that exist, and are in their index.
    pub(crate) fn check_contents(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        self.progress.stage("contents", Some(snapshot.count(Table::Contents)?));
        let mut rows = 0;
        snapshot.scan(Table::Contents, &[], |key, payload| {
            self.progress.advance(1);
            let content = payload
                .ok()
                .and_then(|p| peersync::store::format::records::ContentRecord::decode(p).ok());
            let (Some((number, offset)), Some(content)) = (keys::parse_content(key), content)
            else {
                return Ok(());
            };
            let fits = owner_of(&snapshot, number)?.is_some_and(|(_, r)| {
                offset.checked_add(content.length).is_some_and(|end| end <= r.length)
            });
            if !fits {
                self.found(Kind::Relation, row(Table::Contents, key), "stands in no object");
                return self.delete(Table::Contents, key);
            }
            let index = keys::content_row(&content.hash, number, offset);
            if snapshot.contains(Table::ContentIndex, &index)? {
                rows += 1;
            } else {
                self.found(Kind::Relation, row(Table::Contents, key), "is not in its index");
                self.put(Table::ContentIndex, &index, Vec::new())?;
            }
            Ok::<_, FsckError>(())
        })?;
        // Without those that were deleted just now.
        let snapshot = self.snapshot()?;
        if snapshot.count(Table::ContentIndex)? == rows {
            return Ok(());
        }
        snapshot.scan(Table::ContentIndex, &[], |key, _| {
            let right = match keys::parse_content_row(key) {
                Some((number, offset)) => {
                    let payload =
                        snapshot.get(Table::Contents, &keys::content(number, offset))?.good();
                    payload
                        .and_then(|p| {
                            peersync::store::format::records::ContentRecord::decode(&p).ok()
                        })
                        .is_some_and(|c| keys::content_row(&c.hash, number, offset)[..] == *key)
                }
                None => false,
            };
            if !right {
                self.found(Kind::Relation, row(Table::ContentIndex, key), "no content is there");
                self.delete(Table::ContentIndex, key)?;
            }
            Ok::<_, FsckError>(())
        })
    }
}

fn parse(key: &[u8], payload: Option<&[u8]>) -> Option<(ObjectId, ObjectRecord)> {
    Some((keys::parse_object(key)?, ObjectRecord::decode(payload?).ok()?))
}

/// An object's record, if it can be believed.
pub(crate) fn object_record(
    snapshot: &Snapshot,
    id: &ObjectId,
) -> Result<Option<ObjectRecord>, FsckError> {
    let payload = snapshot.get(Table::Objects, id.as_bytes())?.good();
    Ok(payload.and_then(|payload| ObjectRecord::decode(&payload).ok()))
}

/// The object that has a number.
pub(crate) fn owner_of(
    snapshot: &Snapshot,
    number: u32,
) -> Result<Option<(ObjectId, ObjectRecord)>, FsckError> {
    let payload = snapshot.get(Table::Numbers, &keys::number(number))?.good();
    let Some(id) = payload.and_then(|payload| decode_object(&payload).ok()) else {
        return Ok(None);
    };
    let record = object_record(snapshot, &id)?.filter(|record| record.number == number);
    Ok(record.map(|record| (id, record)))
}

fn block_row_is_right(snapshot: &Snapshot, key: &[u8]) -> Result<bool, FsckError> {
    let Some((number, index)) = keys::parse_block_row(key) else {
        return Ok(false);
    };
    if index >= INDEXED_BLOCKS_MAX || owner_of(snapshot, number)?.is_none() {
        return Ok(false);
    }
    let chunk = keys::spec_chunk(number, index / keys::SPEC_CHUNK);
    let Some(payload) = snapshot.get(Table::Specs, &chunk)?.good() else {
        return Ok(false);
    };
    let at = (index % keys::SPEC_CHUNK) as usize * 36 + 4;
    Ok(payload.get(at..at + keys::PREFIX_LEN) == Some(&key[..keys::PREFIX_LEN]))
}

/// Gives an object's block list in stretches, and compares it with the object's
/// name at the end. `Err` in the inner result: what is wrong with the list.
pub(crate) fn each_stretch(
    snapshot: &Snapshot,
    id: &ObjectId,
    record: &ObjectRecord,
    mut visit: impl FnMut(Stretch) -> Result<(), FsckError>,
) -> Result<Result<(), String>, FsckError> {
    let mut hasher = SpecHasher::new(record.block_size, record.blocks);
    let mut length = 0u64;
    for chunk in 0..record.blocks.div_ceil(keys::SPEC_CHUNK) {
        let key = keys::spec_chunk(record.number, chunk);
        let Some(payload) = snapshot.get(Table::Specs, &key)?.good() else {
            return Ok(Err(format!("stretch {chunk} of the block list is missing")));
        };
        let first = chunk * keys::SPEC_CHUNK;
        let expected = (record.blocks - first).min(keys::SPEC_CHUNK) as usize;
        let mut blocks = Vec::with_capacity(expected);
        if decode_spec_chunk(&payload, &mut blocks).is_err() || blocks.len() != expected {
            return Ok(Err(format!("stretch {chunk} of the block list is malformed")));
        }
        if blocks.iter().any(|(_, len)| *len == 0 || *len > record.block_size) {
            return Ok(Err("a block has an impossible length".into()));
        }
        hasher.update(&payload);
        length += blocks.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
        visit(Stretch { first, blocks })?;
    }
    if hasher.finish() != *id {
        return Ok(Err("the block list is not that of the object's name".into()));
    }
    if length != record.length {
        return Ok(Err(format!("the blocks make {length} bytes, not {}", record.length)));
    }
    Ok(Ok(()))
}

/// A whole block list; `None` if it can't be believed.
pub(crate) fn read_spec(
    snapshot: &Snapshot,
    id: &ObjectId,
    record: &ObjectRecord,
) -> Result<Option<ObjectSpec>, FsckError> {
    let mut blocks = Vec::new();
    let read = each_stretch(snapshot, id, record, |stretch| {
        blocks.extend(stretch.blocks);
        Ok(())
    })?;
    Ok(read.ok().and_then(|()| ObjectSpec::new(record.block_size, blocks).ok()))
}
