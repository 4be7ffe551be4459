//! What `stat` shows, and how long it stays true.

use std::time::Duration;

use super::inode::NodeId;

/// A moment as tar and `stat` write it: seconds from 1970, which may be
/// negative, and nanoseconds after them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// The type of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
    /// A character device; 0:0 is a whiteout.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A node's attributes. Access and change time are the modification time: a
/// tar has no other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// The node's number, which is `st_ino` too.
    pub id: NodeId,
    /// The type.
    pub kind: Kind,
    /// The low 12 bits: set-id bits, sticky bit, permissions.
    pub mode: u16,
    /// Number of names; of a directory 2 and its subdirectories.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of a device node: major and minor.
    pub rdev: (u32, u32),
    /// Length in bytes.
    pub size: u64,
    /// Allocation in units of 512 bytes: what the content would take on a disk
    /// with pages of 4 KiB, holes not counted, fetched or not.
    pub blocks: u64,
    /// Last modification.
    pub mtime: Timestamp,
}

/// How long the kernel may answer by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Validity {
    /// It must ask each time.
    None,
    /// The names below `images/`, and all that follows from them: seconds.
    Short,
    /// Layers don't change.
    Forever,
}

impl Validity {
    /// The time as a number. "Forever" is a hundred years: it must not overflow
    /// when the kernel adds it to its clock.
    pub const fn duration(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Short => Duration::from_secs(1),
            Self::Forever => Duration::from_secs(100 * 365 * 86_400),
        }
    }
}

/// A name that was found: the node, and how long that and its attributes hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The node's attributes.
    pub attr: Attr,
    /// How long the name leads to this node.
    pub name_valid: Validity,
    /// How long the attributes hold.
    pub attr_valid: Validity,
}
