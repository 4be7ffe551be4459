//! Layer indexes in memory: where each block lies in a blob's stream.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;

use super::assemble::Stretch;
use super::cuts::cuts;
use super::engine::FetchError;
use super::schedule::{BlockKey, Place, Wanted};
use crate::layer::root::LayerRoot;
use crate::layer::seek::{Compression, SeekTable, Span};
use crate::layer::skeleton::{Layout, SegmentKind, Skeleton};
use crate::layer::tree::{NodeIx, NodeKind, Tree};
use crate::store::Store;
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec};

/// Most indexes kept in memory; of a 1 GiB layer one takes some MiB.
const CACHED_MAX: usize = 128;
/// A stretch of a stream that is read through without regret: what lies between
/// two points of a gzip layer.
const SPAN: u64 = 4 << 20;
/// Bytes of a run of a plain blob, which can be entered anywhere.
const PLAIN_RUN: u64 = 8 << 20;
/// What an estimated range reads beyond the estimate, in bytes.
const SPARE: u64 = 32 << 10;

/// What is needed to fetch blocks of one layer blob. Immutable.
pub struct LayerIndex {
    root: LayerRoot,
    objects: Vec<ObjectId>,
    specs: Vec<Arc<ObjectSpec>>,
    seek: SeekTable,
    layout: Layout,
    tree: Tree,
    bundle: OnceLock<Vec<BundleFile>>,
    cuts: OnceLock<Vec<u64>>,
}

/// A file in a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleFile {
    /// First byte in the bundle.
    pub offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// BLAKE3 of the content.
    pub hash: BlockHash,
}

/// An object as one layer has it.
#[derive(Clone)]
pub(super) struct Located {
    /// The object.
    pub object: ObjectId,
    /// Its number in the layer.
    pub number: u32,
    /// The layer.
    pub index: Arc<LayerIndex>,
}

impl LayerIndex {
    /// The blob.
    pub fn blob(&self) -> &Digest {
        &self.root.body().blob
    }

    /// The digest by which a registry knows the blob: for one that is its own
    /// content it is that of the content, whatever the index is kept under.
    pub fn source_blob(&self) -> &Digest {
        let body = self.root.body();
        if body.path.is_some() { &body.diff_id } else { &body.blob }
    }

    /// The signed root.
    pub fn root(&self) -> &LayerRoot {
        &self.root
    }

    /// Points at which the blob can be entered.
    pub fn seek(&self) -> &SeekTable {
        &self.seek
    }

    /// Length of the uncompressed stream in bytes.
    pub fn stream_length(&self) -> u64 {
        self.seek.stream_length()
    }

    /// Whether a registry can only be read through the layer from its start: one
    /// zstd frame that is longer than a span.
    pub fn is_sequential(&self) -> bool {
        self.seek.compression() == Compression::Zstd
            && self.seek.points().len() < 2
            && self.stream_length() > SPAN
    }

    /// Bytes of all objects.
    pub fn content_bytes(&self) -> u64 {
        self.specs.iter().map(|spec| spec.length()).sum()
    }

    /// The object of that number.
    pub fn object(&self, number: u32) -> Option<ObjectId> {
        self.objects.get(number as usize).copied()
    }

    /// The objects in order of their numbers.
    pub fn objects(&self) -> &[ObjectId] {
        &self.objects
    }

    /// Their block lists.
    pub fn specs(&self) -> &[Arc<ObjectSpec>] {
        &self.specs
    }

    /// The tree.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Block `index` of object `number`, as the scheduler wants to know it. One
    /// that does not exist is nowhere.
    pub(super) fn wanted(&self, number: u32, index: u32) -> Wanted {
        let block = self.specs.get(number as usize).and_then(|spec| spec.block(index));
        let object = self.object(number).unwrap_or(ObjectId::from_bytes([0; 32]));
        let len = block.as_ref().map_or(1, |block| block.len);
        Wanted { key: BlockKey { object, index }, len, place: Some(self.place(number, index)) }
    }

    /// Where block `index` of object `number` lies in the stream. For a block
    /// that does not exist: nowhere, an empty stretch.
    pub(super) fn place(&self, number: u32, index: u32) -> Place {
        let stream = self.stretch(number, index);
        let Range { start, end } = stream;
        let points = self.seek.points();
        if self.seek.compression() == Compression::Plain {
            return Place { stream, entry: start, next: end, run: (start / PLAIN_RUN) as u32 };
        }
        let first = self.seek.point_at(start).unwrap_or(0);
        let entry = points.get(first).map_or(0, |point| point.stream);
        let next = self.seek.point_at(end.saturating_sub(1)).and_then(|n| points.get(n + 1));
        let next = next.map_or(self.stream_length(), |point| point.stream);
        let run = self.cuts().partition_point(|cut| *cut <= entry).saturating_sub(1);
        Place { stream, entry, next: next.max(end), run: run as u32 }
    }

    /// How far a block reaches in the stream, what lies between its files included.
    fn stretch(&self, number: u32, index: u32) -> Range<u64> {
        let block = self.specs.get(number as usize).and_then(|spec| spec.block(index));
        let ranges = block.map_or_else(Vec::new, |b| {
            self.layout.stream_ranges(number, b.offset..b.offset + u64::from(b.len))
        });
        let start = ranges.first().map_or(0, |r| r.stream_offset);
        let end = ranges.last().map_or(0, |r| r.stream_offset + r.len);
        start..end
    }

    /// Where the runs begin that the nodes of a LAN share out.
    fn cuts(&self) -> &[u64] {
        self.cuts.get_or_init(|| {
            let blocks = (0u32..).zip(&self.specs).flat_map(|(number, spec)| {
                (0..spec.block_count()).map(move |index| self.stretch(number, index))
            });
            cuts(&self.seek, blocks)
        })
    }

    /// The content in the stream from `position` on, in order.
    pub fn stretches(&self, position: u64) -> impl Iterator<Item = Stretch> + '_ {
        self.layout.segments_in(position..self.stream_length()).filter_map(|s| match s.kind {
            SegmentKind::Literal => None,
            SegmentKind::Content { object, offset } => Some(Stretch {
                stream: s.stream.start,
                object,
                offset,
                len: s.stream.end - s.stream.start,
            }),
        })
    }

    /// The span to decode for a stretch of the stream (not empty, inside the
    /// stream), ending with the stretch, and how much of its blob bytes are
    /// likely to be enough: between two points that is interpolated, with some
    /// to spare.
    pub fn span(&self, stream: Range<u64>) -> Option<(Span, u64)> {
        let mut span = self.seek.cover(stream.clone())?;
        let mut likely = span.blob.end;
        let last = self.seek.point_at(stream.end - 1).and_then(|n| self.seek.span(n));
        if let Some(last) = last {
            let packed = u128::from(last.blob.end - last.blob.start);
            let (part, whole) =
                (stream.end - last.stream.start, last.stream.end - last.stream.start);
            let guess = (packed * u128::from(part) / u128::from(whole.max(1))) as u64;
            likely = (last.blob.start + guess + guess / 16 + SPARE).min(span.blob.end);
        }
        span.stream.end = stream.end;
        Some((span, likely))
    }

    /// How many bytes of the blob more a decoder may need to get from one place of
    /// the stream to another in the same span, when what was likely enough was not:
    /// twice what is usual there, so that asking again seldom takes long.
    pub fn more(&self, stream: Range<u64>) -> u64 {
        let last = self.seek.point_at(stream.end.saturating_sub(1));
        let Some(span) = last.and_then(|n| self.seek.span(n)) else { return SPARE };
        let packed = u128::from(span.blob.end - span.blob.start);
        let whole = u128::from((span.stream.end - span.stream.start).max(1));
        let left = u128::from(stream.end.saturating_sub(stream.start));
        (2 * packed * left / whole) as u64 + SPARE
    }

    /// The files of the bundle that overlap a stretch of it.
    pub fn bundle_files(&self, offset: u64, len: u64) -> &[BundleFile] {
        let files = self.bundle.get_or_init(|| bundle_files(&self.tree));
        let first = files.partition_point(|f| f.offset + f.length <= offset);
        let count = files[first..].partition_point(|f| f.offset < offset.saturating_add(len));
        &files[first..first + count]
    }
}

/// Files of the tree that lie in the bundle, in order. Files that were replaced
/// by a later entry of the tar are not among them.
fn bundle_files(tree: &Tree) -> Vec<BundleFile> {
    let mut files: Vec<BundleFile> = (0..tree.len())
        .map(NodeIx)
        .filter(|ix| tree.node(*ix).is_some_and(|n| n.kind == NodeKind::File))
        .filter_map(|ix| tree.file(ix))
        .filter(|f| f.object_index == 0 && f.length > 0)
        .map(|f| BundleFile { offset: f.offset, length: f.length, hash: f.hash })
        .collect();
    files.sort_unstable_by_key(|f| f.offset);
    files.dedup_by_key(|f| f.offset);
    files
}

/// Finds the layer of an object, and loads indexes from the store.
pub(super) struct Locator {
    store: Arc<Store>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    layers: HashMap<Digest, Arc<LayerIndex>>,
    objects: HashMap<ObjectId, (Digest, u32)>,
    /// Blobs in the order in which they were loaded.
    order: std::collections::VecDeque<Digest>,
}

impl Locator {
    /// A locator over the layers of a store.
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, cache: Mutex::default() }
    }

    /// The object's layer if its index is in memory.
    pub(super) fn cached(&self, object: &ObjectId) -> Option<Located> {
        let cache = self.cache();
        let (blob, number) = cache.objects.get(object)?;
        let index = Arc::clone(cache.layers.get(blob)?);
        Some(Located { object: *object, number: *number, index })
    }

    /// A layer that has the object. May read the disk.
    ///
    /// # Errors
    /// [`FetchError::Store`] where all indexes that have it are damaged.
    pub(super) fn locate(&self, object: &ObjectId) -> Result<Option<Located>, FetchError> {
        let mut failed = None;
        for blob in self.store.homes(object).map_err(store_error)? {
            match self.layer(&blob) {
                Ok(Some(_)) => {
                    if let Some(located) = self.cached(object) {
                        return Ok(Some(located));
                    }
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// The index of a blob. May read the disk.
    ///
    /// # Errors
    /// [`FetchError::Store`] where a part of it is missing or damaged.
    pub(super) fn layer(&self, blob: &Digest) -> Result<Option<Arc<LayerIndex>>, FetchError> {
        if let Some(index) = self.cache().layers.get(blob) {
            return Ok(Some(Arc::clone(index)));
        }
        let Some(record) = self.store.blob(blob).map_err(store_error)? else { return Ok(None) };
        let index = Arc::new(load(&self.store, &record.root)?);
        self.cache().insert(*blob, &index);
        Ok(Some(index))
    }

    /// Forgets the index of a blob.
    pub(super) fn forget(&self, blob: &Digest) {
        let mut cache = self.cache();
        cache.layers.remove(blob);
        cache.order.retain(|known| known != blob);
        cache.objects.retain(|_, (of, _)| of != blob);
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    fn insert(&mut self, blob: Digest, index: &Arc<LayerIndex>) {
        if self.layers.insert(blob, Arc::clone(index)).is_none() {
            self.order.push_back(blob);
        }
        for (number, object) in index.objects.iter().enumerate() {
            self.objects.insert(*object, (blob, number as u32));
        }
        while self.order.len() > CACHED_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.layers.remove(&oldest);
                self.objects.retain(|_, (blob, _)| *blob != oldest);
            }
        }
    }
}

fn load(store: &Store, root: &[u8]) -> Result<LayerIndex, FetchError> {
    let damaged = |what: &str, error: &dyn std::fmt::Display| {
        FetchError::Store(format!("index part {what}: {error}"))
    };
    let root = LayerRoot::decode(root).map_err(|e| damaged("root", &e))?;
    let map = |part: &crate::layer::root::PartRef, what: &str| {
        let map = store.map_object(&part.id).map_err(|e| damaged(what, &e))?;
        map.ok_or_else(|| damaged(what, &"it is not here as a whole"))
    };
    let body = root.body();
    let blocks = map(&body.blocks, "blocks")?;
    let specs = crate::layer::blocks::decode(blocks.as_ref()).map_err(|e| damaged("blocks", &e))?;
    let seek = Bytes::from_owner(map(&body.seek, "seek")?);
    let seek = SeekTable::decode(&seek).map_err(|e| damaged("seek", &e))?;
    let skeleton = Bytes::from_owner(map(&body.skeleton, "skeleton")?);
    let skeleton = Skeleton::decode(&skeleton).map_err(|e| damaged("skeleton", &e))?;
    let layout = skeleton.layout().clone();
    let tree = Tree::open(map(&body.tree, "tree")?).map_err(|e| damaged("tree", &e))?;
    let specs: Vec<Arc<ObjectSpec>> = specs.into_iter().map(Arc::new).collect();
    let objects = specs.iter().map(|spec| spec.id()).collect();
    Ok(LayerIndex {
        root,
        objects,
        specs,
        seek,
        layout,
        tree,
        bundle: OnceLock::new(),
        cuts: OnceLock::new(),
    })
}

fn store_error(error: impl std::fmt::Display) -> FetchError {
    FetchError::Store(error.to_string())
}
