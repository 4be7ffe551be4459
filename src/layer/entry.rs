//! What one entry of a tar stream says, whatever dialect it was written in.

/// One member of the archive, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name as it stands in the archive: any bytes but NUL, not cleaned.
    pub path: Vec<u8>,
    /// What kind of thing it is.
    pub kind: EntryKind,
    /// The low twelve mode bits: permissions, setuid, setgid, sticky.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 (may be negative) and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, sorted by name, each name once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Kinds of archive members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file of `size` bytes. `extents` tells where its data lie when
    /// it is sparse.
    File {
        /// Logical length in bytes.
        size: u64,
        /// `None`: every byte stands in the archive. Else the stretches that do,
        /// in ascending order, not overlapping; the rest are holes.
        extents: Option<Vec<Extent>>,
    },
    /// Another name for the member at `target`.
    HardLink {
        /// A path as in the archive.
        target: Vec<u8>,
    },
    /// A symbolic link.
    Symlink {
        /// Any bytes but NUL.
        target: Vec<u8>,
    },
    /// A directory.
    Directory,
    /// A character device.
    CharDevice {
        /// Driver.
        major: u32,
        /// Unit.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Driver.
        major: u32,
        /// Unit.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// A stretch of data in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file as a reader sees it.
    pub logical: u64,
    /// Length in bytes, above 0.
    pub len: u64,
}
