//! The tree of a layer: everything but the content, readable in place.
//!
//! [`TreeBuilder`] takes the entries of a tar stream in order and applies the
//! rules of layer extraction; its result is canonical: the same layer gives the
//! same bytes. [`Tree`] reads these bytes where they lie, after checking once
//! that nothing in them can lead astray.

mod build;
mod encode;
mod format;
mod paths;
mod read;
mod validate;

#[cfg(test)]
mod tests;

use crate::types::{BlockHash, ObjectId};

pub use build::{BuildTreeError, FileContent, TreeBuilder, TreeLimits};
pub use read::{Entries, Extents, Range, Ranges, Tree, Xattrs};
pub use validate::TreeError;

/// A node of one layer's tree. The root is [`NodeIx::ROOT`]; below 2^26.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeIx(pub u32);

impl NodeIx {
    /// The layer's top directory.
    pub const ROOT: Self = Self(0);
}

/// Kinds of nodes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum NodeKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// Hides the same name in lower layers; overlayfs sees a character device 0:0.
    Whiteout,
    /// A hard link to a path that this layer doesn't have: the node is found in
    /// the layers below, at [`Tree::symlink_target`].
    ExternalLink,
}

/// The attributes of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// Permissions, setuid, setgid and sticky: the low twelve bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds below 10^9.
    pub mtime: (i64, u32),
    /// Names of a file; 2 and the number of subdirectories for a directory.
    pub nlink: u32,
    /// Major and minor number of a device, else 0.
    pub rdev: (u32, u32),
    /// Logical bytes of a file, length of a link's target, else 0.
    pub size: u64,
    /// A directory that no entry describes, made because something lies below it.
    pub implicit: bool,
    /// A directory that hides what lower layers have in it.
    pub opaque: bool,
}

/// One name in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DirEntry<'a> {
    /// 1 to 255 bytes, without `/` and NUL, not `.` or `..`.
    pub name: &'a [u8],
    /// What it names.
    pub ix: NodeIx,
}

/// Where a file's content lies.
#[derive(Clone, Copy, Debug)]
pub struct FileData<'a> {
    /// The object that holds it.
    pub object: ObjectId,
    /// Number of that object in [`Tree::objects`]; 0 is the bundle.
    pub object_index: u32,
    /// Length of that object in bytes.
    pub object_length: u64,
    /// First byte in the object.
    pub offset: u64,
    /// Bytes in the object: those of a sparse file's data, without holes.
    pub length: u64,
    /// BLAKE3 of these bytes.
    pub hash: BlockHash,
    /// Logical length of the file.
    pub size: u64,
    /// How the bytes map to the file.
    pub extents: Extents<'a>,
}
