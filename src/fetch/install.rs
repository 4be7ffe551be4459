//! Taking a layer index into the store, from wherever it came.

use bytes::Bytes;

use crate::layer::blocks;
use crate::layer::root::LayerRoot;
use crate::layer::seek::SeekTable;
use crate::layer::skeleton::Skeleton;
use crate::layer::tree::{NodeIx, NodeKind, Tree};
use crate::store::{BlobRecord, IndexOrigin, LayerKey, NewIndex, Store};
use crate::types::{BlockHash, ObjectId, ObjectSpec, VerifiedBlock};

/// The parts of an index: tree, blocks, seek table and skeleton.
pub type IndexParts = [Vec<u8>; 4];

/// Why an index is not taken.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// A part does not parse, or the parts contradict one another.
    #[error("index of layer {layer}: {reason}")]
    Invalid {
        /// The blob.
        layer: crate::types::Digest,
        /// What is wrong.
        reason: String,
    },
    /// The store does not take it.
    #[error("store: {0}")]
    Store(String),
}

/// Checks that the parts parse, are those that the root names and agree with
/// one another.
///
/// # Errors
/// [`InstallError::Invalid`].
pub fn check(
    root: &LayerRoot,
    parts: &IndexParts,
) -> Result<(Tree, Vec<ObjectSpec>), InstallError> {
    let invalid = |reason: String| InstallError::Invalid { layer: root.body().blob, reason };
    let [tree, list, seek, skeleton] = parts;
    let tree = Tree::open(tree.clone()).map_err(|e| invalid(format!("tree: {e}")))?;
    let specs = blocks::decode(list).map_err(|e| invalid(e.to_string()))?;
    let seek = Bytes::copy_from_slice(seek);
    let seek = SeekTable::decode(&seek).map_err(|e| invalid(e.to_string()))?;
    let skeleton = Bytes::copy_from_slice(skeleton);
    let skeleton = Skeleton::decode(&skeleton).map_err(|e| invalid(e.to_string()))?;
    let (layout, body) = (skeleton.layout(), root.body());
    let same_objects = tree.objects().len() == specs.len()
        && tree
            .objects()
            .zip(&specs)
            .all(|((id, length), spec)| id == spec.id() && length == spec.length());
    if !same_objects {
        return Err(invalid("tree and blocks list different objects".into()));
    }
    if seek.blob_length() != body.blob_size {
        return Err(invalid("the seek table is of a blob of another length".into()));
    }
    if seek.stream_length() != body.stream_length || layout.stream_length() != body.stream_length {
        return Err(invalid("the parts are of streams of different lengths".into()));
    }
    let held = |(number, spec): (u32, &ObjectSpec)| {
        let ranges = layout.stream_ranges(number, 0..spec.length());
        ranges.iter().map(|r| r.len).sum::<u64>() == spec.length()
    };
    if !(0..).zip(&specs).all(held) {
        return Err(invalid("the skeleton does not hold the objects' content".into()));
    }
    Ok((tree, specs))
}

/// Takes an index into the store and gives the layer's slot; `blocks` are those of
/// its content that are at hand, with the numbers of their object and of the block.
/// The layer is not durable before the store's next sync; an index that is lost is
/// built or fetched again.
///
/// # Errors
/// [`InstallError`]; the layer is not known then.
pub fn install(
    store: &Store,
    root: &LayerRoot,
    parts: IndexParts,
    origin: IndexOrigin,
    blocks: Vec<(u32, u32, VerifiedBlock)>,
) -> Result<(LayerKey, u32), InstallError> {
    let (tree, objects) = check(root, &parts)?;
    let body = root.body();
    let key = LayerKey { diff_id: body.diff_id, path: body.path.clone() };
    let record = BlobRecord { root: root.encode(), layer: key.clone(), origin };
    let files = files(&tree).collect();
    let index = NewIndex { blob: body.blob, record, parts: parts.into(), objects, blocks, files };
    let slot = store.add_index(index).map_err(|e| InstallError::Store(e.to_string()))?;
    Ok((key, slot))
}

/// Whole contents by which other layers' bundles can be put together.
fn files(tree: &Tree) -> impl Iterator<Item = (BlockHash, ObjectId, u64, u64)> + '_ {
    (0..tree.len())
        .map(NodeIx)
        .filter(|ix| tree.kind(*ix) == Some(NodeKind::File))
        .filter_map(|ix| tree.file(ix))
        .filter(|file| file.length > 0)
        .map(|file| (file.hash, file.object, file.offset, file.length))
}
