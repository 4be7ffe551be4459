//! Layer indexes: that they parse, that their parts agree, that who signed them
//! did, and that a layer that is wholly here is what its diffID says.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use peersync::layer::blocks;
use peersync::layer::rebuild::{ReadObject, rebuilt_digest};
use peersync::layer::root::{LayerRoot, PartRef, RootError};
use peersync::layer::seek::SeekTable;
use peersync::layer::skeleton::Skeleton;
use peersync::layer::tree::Tree;
use peersync::store::format::keys;
use peersync::store::format::layout::data_path;
use peersync::store::format::records::{BlobRecord, LayerKey, LayerRecord};
use peersync::store::format::tables::Table;
use peersync::types::{BlockHash, Digest, ObjectId, ObjectSpec};

use crate::FsckError;
use crate::checker::{Checker, row};
use crate::data::claims;
use crate::database::Snapshot;
use crate::objects::{object_record, read_spec};
use crate::open::open_file;
use crate::report::Kind;

/// Longest index part that is read into memory, in bytes.
const PART_MAX: u64 = 1 << 30;

/// What a repair does about a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Remedy {
    /// Index the blob again; the layer keeps its slot.
    Blob,
    /// Forget the layer: its tree or contents are not what they say.
    Layer,
}

struct Fault {
    kind: Kind,
    message: String,
    remedy: Remedy,
}

fn fault(kind: Kind, message: impl Into<String>, remedy: Remedy) -> Fault {
    Fault { kind, message: message.into(), remedy }
}

/// A blob and what is on record about it.
struct Indexed<'a> {
    blob: Digest,
    record: &'a BlobRecord,
    layer: LayerRecord,
}

impl Checker<'_> {
    /// Looks into the index of each blob. Comes after the data was verified.
    pub(crate) fn check_indexes(&mut self) -> Result<(), FsckError> {
        let snapshot = self.snapshot()?;
        self.progress.stage("layer indexes", Some(snapshot.count(Table::Blobs)?));
        // Layers that were rebuilt: several blobs can hold one.
        let mut rebuilt = BTreeMap::new();
        snapshot.scan(Table::Blobs, &[], |key, payload| {
            self.progress.advance(1);
            let record = payload.ok().and_then(|p| BlobRecord::decode(p).ok());
            let (Some(blob), Some(record)) = (keys::parse_digest(key), record) else {
                return Ok(());
            };
            let layer = snapshot.get(Table::Layers, &keys::layer(&record.layer))?.good();
            let Some(layer) = layer.and_then(|p| LayerRecord::decode(&p).ok()) else {
                return Ok(());
            };
            let indexed = Indexed { blob, record: &record, layer };
            let known = rebuilt.get(&layer.slot).copied();
            let (known, found) = self.check_index(&snapshot, &indexed, known)?;
            rebuilt.extend(known.map(|right: bool| (layer.slot, right)));
            if let Some(found) = found {
                self.remedy(&indexed, key, found)?;
            }
            Ok::<_, FsckError>(())
        })
    }

    fn remedy(&mut self, indexed: &Indexed<'_>, key: &[u8], found: Fault) -> Result<(), FsckError> {
        let place = format!("layer {} ({})", indexed.record.layer.diff_id, row(Table::Blobs, key));
        self.found(found.kind, place, found.message);
        self.delete(Table::Blobs, key)?;
        if found.remedy == Remedy::Layer {
            self.delete(Table::Layers, &keys::layer(&indexed.record.layer))?;
            self.lose(indexed.layer.slot);
        }
        Ok(())
    }

    /// Whether the layer came out right, if that could be tried, and what is
    /// wrong.
    fn check_index(
        &mut self,
        snapshot: &Snapshot,
        indexed: &Indexed<'_>,
        known: Option<bool>,
    ) -> Result<(Option<bool>, Option<Fault>), FsckError> {
        let root = match LayerRoot::decode(&indexed.record.root) {
            Ok(root) => root,
            Err(RootError::Signature) => {
                let found =
                    fault(Kind::Signature, "the layer root's signature fails", Remedy::Blob);
                return Ok((None, Some(found)));
            }
            Err(e) => {
                return Ok((None, Some(fault(Kind::LayerIndex, e.to_string(), Remedy::Blob))));
            }
        };
        let body = root.body();
        let key = LayerKey { diff_id: body.diff_id, path: body.path.clone() };
        if body.blob != indexed.blob || key != indexed.record.layer {
            let found = fault(Kind::LayerIndex, "the layer root is another's", Remedy::Blob);
            return Ok((None, Some(found)));
        }
        let mut parts = Vec::new();
        for part in [&body.tree, &body.blocks, &body.seek, &body.skeleton] {
            match self.read_part(snapshot, part)? {
                Some(bytes) => parts.push(Bytes::from(bytes)),
                None => {
                    // What is wrong with its data was found before, or the disk
                    // filled up when it was written.
                    let message = format!("its index part {} is not wholly here", part.id);
                    return Ok((None, Some(fault(Kind::LayerIndex, message, Remedy::Blob))));
                }
            }
        }
        self.report.checked.layers += 1;
        let (skeleton, specs) = match parse(&root, &parts) {
            Ok(parsed) => parsed,
            Err(found) => return Ok((None, Some(found))),
        };
        let tree_differs =
            indexed.layer.tree != body.tree.id || indexed.layer.blocks != body.blocks.id;
        if tree_differs {
            let message = "the layer root names another tree than the layer";
            return Ok((None, Some(fault(Kind::LayerIndex, message, Remedy::Blob))));
        }
        if let Some(right) = known {
            let found = (!right).then(|| not_the_diff_id(body.diff_id, None));
            return Ok((known, found));
        }
        let Some(mut reader) = self.open_objects(snapshot, &specs)? else {
            return Ok((None, None));
        };
        let found = match rebuilt_digest(&skeleton, &mut reader) {
            Ok(digest) if digest == body.diff_id => None,
            // Out of bad blocks, which were found before, nothing right can come.
            _ if !self.are_right(&specs) => return Ok((None, None)),
            Ok(digest) => Some(not_the_diff_id(body.diff_id, Some(digest))),
            Err(e) => Some(fault(Kind::DiffId, format!("can't be rebuilt: {e}"), Remedy::Layer)),
        };
        self.report.checked.rebuilt += 1;
        Ok((Some(found.is_none()), found))
    }

    /// Whether all blocks of the objects are what their hashes say.
    fn are_right(&self, specs: &[ObjectSpec]) -> bool {
        let mut buffer = Vec::new();
        specs.iter().filter(|spec| spec.length() > 0).all(|spec| {
            let Ok(file) = open_file(&self.root.join(data_path(&spec.id()))) else {
                return false;
            };
            spec.blocks().all(|block| {
                buffer.resize(block.len as usize, 0);
                file.read_exact_at(&mut buffer, block.offset).is_ok()
                    && BlockHash::of(&buffer) == block.hash
            })
        })
    }

    /// A part's bytes, each block verified; `None` if one is missing or wrong.
    pub(crate) fn read_part(
        &self,
        snapshot: &Snapshot,
        part: &PartRef,
    ) -> Result<Option<Vec<u8>>, FsckError> {
        let Some(bytes) = self.read_object(snapshot, &part.id)? else {
            return Ok(None);
        };
        Ok((bytes.len() as u64 == part.length).then_some(bytes))
    }

    /// The bytes of a whole object, each block verified; `None` if one is
    /// missing or wrong, or the object is too large for a part.
    pub(crate) fn read_object(
        &self,
        snapshot: &Snapshot,
        id: &ObjectId,
    ) -> Result<Option<Vec<u8>>, FsckError> {
        let Some(record) = object_record(snapshot, id)?.filter(|r| r.length <= PART_MAX) else {
            return Ok(None);
        };
        let Some(spec) = read_spec(snapshot, id, &record)? else {
            return Ok(None);
        };
        if record.blocks == 0 {
            return Ok(Some(Vec::new()));
        }
        let claims = claims(&self.root, id, &record, |_| {});
        let whole = claims.is_ok_and(|c| (0..record.blocks).all(|index| c.has(index)));
        let (true, Ok(file)) = (whole, open_file(&self.root.join(data_path(id)))) else {
            return Ok(None);
        };
        let mut bytes = vec![0; record.length as usize];
        if file.read_exact_at(&mut bytes, 0).is_err() {
            return Ok(None);
        }
        let right = spec.blocks().all(|block| {
            let start = block.offset as usize;
            BlockHash::of(&bytes[start..start + block.len as usize]) == block.hash
        });
        Ok(right.then_some(bytes))
    }

    /// A reader of the layer's objects if all of them are wholly here.
    fn open_objects(
        &self,
        snapshot: &Snapshot,
        specs: &[ObjectSpec],
    ) -> Result<Option<Objects>, FsckError> {
        let mut ids = Vec::with_capacity(specs.len());
        for spec in specs {
            let id = spec.id();
            let whole = spec.length() == 0
                || object_record(snapshot, &id)?.is_some_and(|record| {
                    claims(&self.root, &id, &record, |_| {})
                        .is_ok_and(|c| (0..record.blocks).all(|index| c.has(index)))
                });
            if !whole {
                return Ok(None);
            }
            ids.push(id);
        }
        Ok(Some(Objects { root: self.root.clone(), ids, open: None }))
    }
}

fn not_the_diff_id(expected: Digest, found: Option<Digest>) -> Fault {
    let message = match found {
        Some(found) => format!("comes out as {found}, not {expected}"),
        None => format!("does not come out as {expected}"),
    };
    fault(Kind::DiffId, message, Remedy::Layer)
}

/// Parses the parts and compares them with one another and the root.
fn parse(root: &LayerRoot, parts: &[Bytes]) -> Result<(Skeleton, Vec<ObjectSpec>), Fault> {
    let body = root.body();
    let wrong = |message: String, remedy| fault(Kind::LayerIndex, message, remedy);
    let [tree, list, seek, skeleton] = parts else {
        return Err(wrong("the index has not four parts".into(), Remedy::Blob));
    };
    let tree = Tree::open(tree.clone()).map_err(|e| wrong(format!("tree: {e}"), Remedy::Layer))?;
    let specs = blocks::decode(list).map_err(|e| wrong(e.to_string(), Remedy::Layer))?;
    if !blocks::belong_to(&specs, &tree) {
        return Err(wrong("tree and block lists name different objects".into(), Remedy::Layer));
    }
    let seek = SeekTable::decode(seek).map_err(|e| wrong(e.to_string(), Remedy::Blob))?;
    let skeleton = Skeleton::decode(skeleton).map_err(|e| wrong(e.to_string(), Remedy::Blob))?;
    let lengths: Vec<u64> = specs.iter().map(ObjectSpec::length).collect();
    let layout = skeleton.layout();
    let agree = seek.blob_length() == body.blob_size
        && seek.stream_length() == body.stream_length
        && layout.stream_length() == body.stream_length
        && layout.covers(&lengths);
    if !agree {
        return Err(wrong("the parts are of different streams".into(), Remedy::Blob));
    }
    Ok((skeleton, specs))
}

/// Reads objects. One file is open at a time.
struct Objects {
    root: std::path::PathBuf,
    ids: Vec<ObjectId>,
    open: Option<(u32, File)>,
}

impl ReadObject for Objects {
    type Error = std::io::Error;

    fn read(&mut self, object: u32, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != object) {
            let id = self.ids.get(object as usize).ok_or(std::io::ErrorKind::NotFound)?;
            self.open = Some((object, open_file(&self.root.join(data_path(id)))?));
        }
        match &self.open {
            Some((_, file)) => file.read_exact_at(out, offset),
            None => Err(std::io::ErrorKind::NotFound.into()),
        }
    }
}
