//! From a tree's nodes to attributes.

use super::attr::{Attr, Kind, Timestamp};
use super::chain::Chain;
use super::inode::NodeId;
use super::merge::Directory;
use crate::layer::tree::{Node, NodeIx, NodeKind, Tree};

/// Length that directories show, that of one on ext4.
pub(super) const DIRECTORY_SIZE: u64 = 4096;
/// Mode of a directory that no entry describes.
const IMPLICIT_MODE: u16 = 0o755;

/// The attributes of a layer's node, with another number of names if the chain
/// has one for it.
pub(super) fn tree_attr(id: NodeId, tree: &Tree, ix: NodeIx, count: Option<u32>) -> Option<Attr> {
    let node = tree.node(ix)?;
    let mut attr = node_attr(id, node);
    match attr.kind {
        Kind::Directory => (attr.size, attr.blocks) = (DIRECTORY_SIZE, blocks_of(DIRECTORY_SIZE)),
        Kind::File if node.kind == NodeKind::File => {
            attr.blocks = blocks_of(tree.file(ix)?.length);
        }
        _ => (),
    }
    attr.nlink = count.unwrap_or(node.nlink);
    Some(attr)
}

/// The attributes of a merged directory.
pub(super) fn merged_attr(id: NodeId, chain: &Chain, directory: &Directory) -> Attr {
    let source = directory.stack.attributes;
    let node = source.and_then(|at| chain.layers().tree(at.position)?.node(at.ix));
    let attr = match node {
        Some(node) => node_attr(id, node),
        // The root of an image without layers.
        None => directory_attr(id, (0, 0), Timestamp::default()),
    };
    Attr {
        kind: Kind::Directory,
        nlink: directory.nlink,
        size: DIRECTORY_SIZE,
        blocks: blocks_of(DIRECTORY_SIZE),
        ..attr
    }
}

/// The attributes of a directory that belongs to no layer. One name stands for
/// "not counted", as on btrfs.
pub(super) fn directory_attr(id: NodeId, (uid, gid): (u32, u32), mtime: Timestamp) -> Attr {
    Attr {
        id,
        kind: Kind::Directory,
        mode: IMPLICIT_MODE,
        nlink: 1,
        uid,
        gid,
        rdev: (0, 0),
        size: DIRECTORY_SIZE,
        blocks: blocks_of(DIRECTORY_SIZE),
        mtime,
    }
}

/// The type that a node of a layer shows.
pub(super) fn kind_of(kind: NodeKind) -> Kind {
    match kind {
        NodeKind::Directory => Kind::Directory,
        // Seen in its layer alone such a link has no content, and opening it
        // says so.
        NodeKind::File | NodeKind::ExternalLink => Kind::File,
        NodeKind::Symlink => Kind::Symlink,
        NodeKind::CharDevice | NodeKind::Whiteout => Kind::CharDevice,
        NodeKind::BlockDevice => Kind::BlockDevice,
        NodeKind::Fifo => Kind::Fifo,
        NodeKind::Socket => Kind::Socket,
    }
}

/// Bytes in units of 512, rounded up to whole pages of 4 KiB.
pub(super) fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(4096).saturating_mul(8)
}

fn node_attr(id: NodeId, node: Node) -> Attr {
    Attr {
        id,
        kind: kind_of(node.kind),
        mode: node.mode,
        nlink: node.nlink,
        uid: node.uid,
        gid: node.gid,
        rdev: node.rdev,
        size: node.size,
        blocks: 0,
        mtime: Timestamp { seconds: node.mtime.0, nanos: node.mtime.1 },
    }
}
