//! Objects whose records were lost, and whose data is still there.
//!
//! An object's name is the hash of its block list. So a data file proves its own
//! name if its bytes, cut into blocks as new objects are, give it; and the block
//! lists of layers name the objects that were cut otherwise (bundles). What
//! comes out right gets its records again, and nothing is fetched twice.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use peersync::layer::blocks;
use peersync::store::format::keys;
use peersync::store::format::layout::{OBJECTS_DIR, ObjectFile, data_path, parse_object_file};
use peersync::store::format::records::{
    LayerRecord, ObjectRecord, decode_number, encode_number, encode_object, encode_spec_chunk,
};
use peersync::store::format::tables::{INDEXED_BLOCKS_MAX, Table};
use peersync::types::{BLOCK_MAX, BlockHash, ObjectId, ObjectSpec, block_size_for};

use crate::FsckError;
use crate::checker::Checker;
use crate::data::Claims;
use crate::database::Snapshot;
use crate::files::each_entry;
use crate::open::open_file;
use crate::report::Kind;

impl Checker<'_> {
    /// Gives objects whose data is there their records again. Only in a repair.
    pub(crate) fn adopt_objects(&mut self) -> Result<(), FsckError> {
        if !self.repairs() {
            return Ok(());
        }
        self.progress.stage("files without record", None);
        let snapshot = self.snapshot()?;
        let objects = self.root.join(OBJECTS_DIR);
        if objects.is_dir() {
            each_entry(&objects, |dir| {
                let name = dir.file_name().to_string_lossy().into_owned();
                if !dir.file_type().is_ok_and(|kind| kind.is_dir()) {
                    return Ok(());
                }
                each_entry(&dir.path(), |file| {
                    let file = file.file_name().to_string_lossy().into_owned();
                    match parse_object_file(&name, &file) {
                        Some(ObjectFile::Data(id)) => self.adopt_by_name(&snapshot, &id),
                        _ => Ok(()),
                    }
                })
            })?;
        }
        self.adopt_from_layers()
    }

    /// Adopts a data file that no record knows, if its bytes prove its name.
    fn adopt_by_name(&mut self, snapshot: &Snapshot, id: &ObjectId) -> Result<(), FsckError> {
        if snapshot.contains(Table::Objects, id.as_bytes())?
            || snapshot.contains(Table::Removing, id.as_bytes())?
        {
            return Ok(());
        }
        self.progress.advance(1);
        let file = open_file(&self.root.join(data_path(id)));
        match file.and_then(|file| own_spec(&file)) {
            Ok(spec) if spec.id() == *id => self.adopt(&spec, &Claims::All),
            // A part of an object, or a bundle: its layer may know it.
            _ => Ok(()),
        }
    }

    /// Objects that a layer needs, that have no record, and whose block list
    /// the layer's index has.
    fn adopt_from_layers(&mut self) -> Result<(), FsckError> {
        let before = self.snapshot()?;
        before.scan(Table::Layers, &[], |_, payload| {
            let layer = payload.ok().and_then(|p| LayerRecord::decode(p).ok());
            let Some(layer) = layer else { return Ok(()) };
            let mut lacks = false;
            before.scan(Table::LayerObjects, &keys::number(layer.slot), |key, _| {
                if let Some((_, id)) = keys::parse_layer_object(key) {
                    lacks |= !before.contains(Table::Objects, id.as_bytes())?;
                }
                Ok::<_, FsckError>(())
            })?;
            if lacks { self.adopt_listed(&layer.blocks) } else { Ok(()) }
        })
    }

    /// Adopts the objects of a layer's list of blocks that have no record.
    fn adopt_listed(&mut self, list: &ObjectId) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        let Some(bytes) = self.read_object(&snapshot, list)? else {
            return Ok(());
        };
        // Two objects of a layer can be one.
        let mut seen = BTreeSet::new();
        for spec in blocks::decode(&bytes).unwrap_or_default() {
            let known = snapshot.contains(Table::Objects, spec.id().as_bytes())?;
            if seen.insert(spec.id()) && !known {
                let claims = self.look_for(&spec);
                self.adopt(&spec, &claims)?;
            }
        }
        Ok(())
    }

    /// Which blocks of the object its data file has.
    fn look_for(&self, spec: &ObjectSpec) -> Claims {
        let mut words = vec![0u64; spec.block_count().div_ceil(64) as usize];
        let Ok(file) = open_file(&self.root.join(data_path(&spec.id()))) else {
            return Claims::Some(words);
        };
        let mut buffer = vec![0; BLOCK_MAX as usize];
        for (block, index) in spec.blocks().zip(0u32..) {
            let buffer = &mut buffer[..block.len as usize];
            if file.read_exact_at(buffer, block.offset).is_ok()
                && BlockHash::of(buffer) == block.hash
            {
                words[index as usize / 64] |= 1 << (index % 64);
            }
        }
        Claims::Some(words)
    }

    /// Writes the records of an object, and what of it is there.
    fn adopt(&mut self, spec: &ObjectSpec, claims: &Claims) -> Result<(), FsckError> {
        let id = spec.id();
        let number = self.next_number()?;
        let present = (0..spec.block_count()).filter(|index| claims.has(*index)).count();
        let complete = present == spec.block_count() as usize;
        let record = ObjectRecord {
            number,
            block_size: spec.block_size(),
            length: spec.length(),
            blocks: spec.block_count(),
            complete,
        };
        for chunk in 0..spec.block_count().div_ceil(keys::SPEC_CHUNK) {
            let first = chunk * keys::SPEC_CHUNK;
            let range = first..(first + keys::SPEC_CHUNK).min(spec.block_count());
            let key = keys::spec_chunk(number, chunk);
            self.put(Table::Specs, &key, encode_spec_chunk(spec, range))?;
        }
        for (block, index) in spec.blocks().zip(0..INDEXED_BLOCKS_MAX) {
            let key = keys::block_row(&block.hash, number, index);
            self.put(Table::BlockIndex, &key, Vec::new())?;
        }
        self.put(Table::Numbers, &keys::number(number), encode_object(&id))?;
        self.put(Table::Objects, id.as_bytes(), record.encode())?;
        if !complete {
            self.rewrite_claims(&id, &record, claims)?;
        }
        let message = format!(
            "the records were lost; they were made again, with {present} of {} blocks",
            spec.block_count()
        );
        self.found(Kind::Orphan, format!("object {id}"), message);
        Ok(())
    }

    fn next_number(&mut self) -> Result<u32, FsckError> {
        let next = match self.next_object {
            Some(next) => next,
            None => {
                let snapshot = self.snapshot()?;
                let next = snapshot.get(Table::State, keys::STATE_NEXT_OBJECT)?.good();
                next.and_then(|payload| decode_number(&payload).ok()).unwrap_or(1)
            }
        };
        let after = next.saturating_add(1);
        self.next_object = Some(after);
        self.put(Table::State, keys::STATE_NEXT_OBJECT, encode_number(after))?;
        Ok(next)
    }
}

/// The block list of a file's bytes, cut as new objects are.
fn own_spec(file: &File) -> io::Result<ObjectSpec> {
    let length = file.metadata()?.len();
    let block_size = block_size_for(length);
    let mut buffer = vec![0; block_size as usize];
    let mut blocks = Vec::new();
    let mut offset = 0;
    while offset < length {
        let len = (length - offset).min(u64::from(block_size)) as u32;
        let buffer = &mut buffer[..len as usize];
        file.read_exact_at(buffer, offset)?;
        blocks.push((BlockHash::of(buffer), len));
        offset += u64::from(len);
    }
    ObjectSpec::new(block_size, blocks).map_err(io::Error::other)
}
