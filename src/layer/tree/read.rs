//! Reading a tree in place.

use crate::types::{BlockHash, ObjectId};

use super::format::{
    FLAG_IMPLICIT, FLAG_OPAQUE, NONE, Section, Sections, hash_at, string_at, u16_at, u32_at,
    u64_at, unpack_device,
};
use super::validate::{kind_of, split_xattr, validate};
use super::{DirEntry, FileData, Node, NodeIx, NodeKind, TreeError};

/// A layer's tree over bytes that lie in memory or in a mapped file.
///
/// Every accessor takes constant or logarithmic time and allocates nothing
/// unless it says so. A [`NodeIx`] that is not in the tree, or not of the right
/// kind, is answered with `None` or nothing, never with a panic; so is damage
/// that befalls the bytes after they were opened.
pub struct Tree {
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    sections: Sections,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tree({} nodes)", self.len())
    }
}

impl Tree {
    /// Checks all of `bytes` and opens them. Takes time in proportion to the
    /// length and no memory.
    ///
    /// # Errors
    /// [`TreeError`] says what is wrong; the input may be hostile.
    pub fn open(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self, TreeError> {
        let sections = validate(bytes.as_ref())?;
        Ok(Self { bytes: Box::new(bytes), sections })
    }

    /// The bytes that were opened.
    pub fn bytes(&self) -> &[u8] {
        (*self.bytes).as_ref()
    }

    /// Number of nodes; node numbers are below it. At least 1, at most 2^26.
    #[expect(clippy::len_without_is_empty, reason = "a tree has a root")]
    pub fn len(&self) -> u32 {
        self.sections.count(Section::Nodes)
    }

    /// The attributes of a node.
    pub fn node(&self, ix: NodeIx) -> Option<Node> {
        let record = self.record(Section::Nodes, ix.0);
        if record.is_empty() {
            return None;
        }
        let mode = u16_at(record, 0);
        let flags = u16_at(record, 2);
        let payload = u32_at(record, 28);
        let kind = kind_of(mode)?;
        Some(Node {
            kind,
            mode: mode & 0o7777,
            uid: u32_at(record, 4),
            gid: u32_at(record, 8),
            mtime: (u64_at(record, 20).cast_signed(), u32_at(record, 16)),
            nlink: u32_at(record, 12),
            rdev: match kind {
                NodeKind::CharDevice | NodeKind::BlockDevice => unpack_device(payload),
                _ => (0, 0),
            },
            size: match kind {
                NodeKind::File => self.file_size(payload),
                NodeKind::Symlink => self.string(payload).len() as u64,
                _ => 0,
            },
            implicit: flags & FLAG_IMPLICIT != 0,
            opaque: flags & FLAG_OPAQUE != 0,
        })
    }

    /// The kind of a node.
    pub fn kind(&self, ix: NodeIx) -> Option<NodeKind> {
        match self.record(Section::Nodes, ix.0) {
            [] => None,
            record => kind_of(u16_at(record, 0)),
        }
    }

    /// What `name` is in `dir`. `.` and `..` are not entries.
    pub fn lookup(&self, dir: NodeIx, name: &[u8]) -> Option<NodeIx> {
        self.position(dir, name).ok().and_then(|i| self.entry(dir, i)).map(|entry| entry.ix)
    }

    /// Where `name` stands among the entries of `dir`, or where it would.
    ///
    /// # Errors
    /// The position at which it would have to be inserted.
    pub fn position(&self, dir: NodeIx, name: &[u8]) -> Result<u32, u32> {
        let (mut low, mut high) = (0, self.entry_count(dir));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry(dir, middle).map(|e| e.name.cmp(name)) {
                Some(std::cmp::Ordering::Less) => low = middle + 1,
                Some(std::cmp::Ordering::Equal) => return Ok(middle),
                _ => high = middle,
            }
        }
        Err(low)
    }

    /// Number of entries in a directory, whiteouts included; 0 for what is none.
    pub fn entry_count(&self, dir: NodeIx) -> u32 {
        let (first, end) = self.entry_range(dir);
        end.saturating_sub(first)
    }

    /// Entry number `i` of a directory in the order of the names' bytes.
    pub fn entry(&self, dir: NodeIx, i: u32) -> Option<DirEntry<'_>> {
        let (first, end) = self.entry_range(dir);
        let at = first.checked_add(i).filter(|at| *at < end)?;
        Some(self.entry_at(at))
    }

    /// All entries of a directory in the order of the names' bytes.
    pub fn entries(&self, dir: NodeIx) -> Entries<'_> {
        let (next, end) = self.entry_range(dir);
        Entries { tree: self, next, end }
    }

    /// The directory that `dir` stands in; the root's is the root. `None` for
    /// what is no directory.
    pub fn parent(&self, dir: NodeIx) -> Option<NodeIx> {
        match self.dir_record(dir) {
            [] => None,
            record => Some(NodeIx(u32_at(record, 8))),
        }
    }

    /// The name of a directory in its parent; empty for the root.
    pub fn name_of(&self, dir: NodeIx) -> &[u8] {
        match u32_at(self.dir_record(dir), 12) {
            NONE => b"",
            entry => self.entry_at(entry).name,
        }
    }

    /// All names of a node that has several, and nothing for others. Allocates
    /// in proportion to the result.
    pub fn links(&self, ix: NodeIx) -> Vec<(NodeIx, &[u8])> {
        let count = self.sections.count(Section::Links);
        let node_of = |i| u32_at(self.record(Section::Links, i), 0);
        let first = partition(count, |i| node_of(i) < ix.0);
        (first..count)
            .take_while(|i| node_of(*i) == ix.0)
            .map(|i| {
                let entry = u32_at(self.record(Section::Links, i), 4);
                (self.dir_of_entry(entry), self.entry_at(entry).name)
            })
            .collect()
    }

    /// Where a symbolic link points, or the path in lower layers that an
    /// [`NodeKind::ExternalLink`] means (clean, relative to the root). Empty for
    /// other nodes.
    pub fn symlink_target(&self, ix: NodeIx) -> &[u8] {
        match self.kind(ix) {
            Some(NodeKind::Symlink | NodeKind::ExternalLink) => {
                self.string(u32_at(self.record(Section::Nodes, ix.0), 28))
            }
            _ => b"",
        }
    }

    /// The extended attributes of a node, sorted by name.
    pub fn xattrs(&self, ix: NodeIx) -> Xattrs<'_> {
        let all = self.sections.section(self.bytes(), Section::Xattrs);
        let rest = match u32_at(self.record(Section::Nodes, ix.0), 32).checked_sub(1) {
            None => &[],
            Some(set) => {
                let start = u32_at(self.record(Section::Sets, set), 0) as usize;
                let end = match self.record(Section::Sets, set.saturating_add(1)) {
                    [] => all.len(),
                    next => u32_at(next, 0) as usize,
                };
                all.get(start..end).unwrap_or(&[])
            }
        };
        Xattrs { rest }
    }

    /// Where the content of a regular file lies.
    pub fn file(&self, ix: NodeIx) -> Option<FileData<'_>> {
        if self.kind(ix)? != NodeKind::File {
            return None;
        }
        let file = u32_at(self.record(Section::Nodes, ix.0), 28);
        let record = self.record(Section::Files, file);
        let object_index = u32_at(record, 0);
        let (object, object_length) = self.object(object_index)?;
        let length = u64_at(record, 16);
        let sparse = u32_at(record, 4).checked_sub(1);
        Some(FileData {
            object,
            object_index,
            object_length,
            offset: u64_at(record, 8),
            length,
            hash: BlockHash::from_bytes(hash_at(record, 24)),
            size: self.file_size(file),
            extents: Extents {
                tree: self,
                range: sparse.map(|s| self.extent_range(s)),
                dense_length: length,
            },
        })
    }

    /// All objects of the layer: the bundle (possibly of length 0), then the
    /// large files, with their lengths in bytes.
    pub fn objects(&self) -> impl ExactSizeIterator<Item = (ObjectId, u64)> + '_ {
        (0..self.sections.count(Section::Objects))
            .map(|i| self.object(i).unwrap_or((ObjectId::from_bytes([0; 32]), 0)))
    }

    /// Object number `index`.
    pub fn object(&self, index: u32) -> Option<(ObjectId, u64)> {
        match self.record(Section::Objects, index) {
            [] => None,
            record => Some((ObjectId::from_bytes(hash_at(record, 0)), u64_at(record, 32))),
        }
    }

    /// The node at a path from the root. Empty components and `.` are skipped;
    /// symbolic links are not followed and `..` is not understood.
    pub fn resolve(&self, path: &[u8]) -> Option<NodeIx> {
        path.split(|b| *b == b'/')
            .filter(|name| !matches!(*name, b"" | b"."))
            .try_fold(NodeIx::ROOT, |dir, name| self.lookup(dir, name))
    }

    fn record(&self, section: Section, i: u32) -> &[u8] {
        self.sections.record(self.bytes(), section, i)
    }

    fn string(&self, offset: u32) -> &[u8] {
        let strings = self.sections.section(self.bytes(), Section::Strings);
        string_at(strings, offset).unwrap_or(b"")
    }

    fn dir_record(&self, ix: NodeIx) -> &[u8] {
        let record = self.record(Section::Nodes, ix.0);
        if record.is_empty() || kind_of(u16_at(record, 0)) != Some(NodeKind::Directory) {
            return &[];
        }
        self.record(Section::Dirs, u32_at(record, 28))
    }

    fn entry_range(&self, dir: NodeIx) -> (u32, u32) {
        let record = self.dir_record(dir);
        if record.is_empty() {
            return (0, 0);
        }
        let number = u32_at(self.record(Section::Nodes, dir.0), 28);
        let end = match self.record(Section::Dirs, number.saturating_add(1)) {
            [] => self.sections.count(Section::Entries),
            next => u32_at(next, 4),
        };
        (u32_at(record, 4), end)
    }

    fn entry_at(&self, at: u32) -> DirEntry<'_> {
        let record = self.record(Section::Entries, at);
        DirEntry { name: self.string(u32_at(record, 0)), ix: NodeIx(u32_at(record, 4)) }
    }

    fn dir_of_entry(&self, entry: u32) -> NodeIx {
        let first_of = |i| u32_at(self.record(Section::Dirs, i), 4);
        let after = partition(self.sections.count(Section::Dirs), |i| first_of(i) <= entry);
        NodeIx(u32_at(self.record(Section::Dirs, after.saturating_sub(1)), 0))
    }

    fn file_size(&self, file: u32) -> u64 {
        let record = self.record(Section::Files, file);
        match u32_at(record, 4).checked_sub(1) {
            None => u64_at(record, 16),
            Some(sparse) => u64_at(self.record(Section::Sparse, sparse), 0),
        }
    }

    fn extent_range(&self, sparse: u32) -> (u32, u32) {
        let end = match self.record(Section::Sparse, sparse.saturating_add(1)) {
            [] => self.sections.count(Section::Extents),
            next => u32_at(next, 8),
        };
        (u32_at(self.record(Section::Sparse, sparse), 8), end)
    }
}

/// The first number below `count` for which `before` is false, or `count`.
fn partition(count: u32, before: impl Fn(u32) -> bool) -> u32 {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// Iterates over a directory. See [`Tree::entries`].
#[derive(Clone, Debug)]
pub struct Entries<'a> {
    tree: &'a Tree,
    next: u32,
    end: u32,
}

impl<'a> Iterator for Entries<'a> {
    type Item = DirEntry<'a>;

    fn next(&mut self) -> Option<DirEntry<'a>> {
        let at = self.next;
        (at < self.end).then(|| {
            self.next += 1;
            self.tree.entry_at(at)
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.end.saturating_sub(self.next) as usize;
        (left, Some(left))
    }
}

impl ExactSizeIterator for Entries<'_> {}

/// Iterates over extended attributes: (name, value). See [`Tree::xattrs`].
#[derive(Clone, Debug)]
pub struct Xattrs<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value, rest) = split_xattr(self.rest)?;
        self.rest = rest;
        Some((name, value))
    }
}

/// How the dense bytes of a file map to its logical bytes.
#[derive(Clone, Copy, Debug)]
pub struct Extents<'a> {
    tree: &'a Tree,
    /// The records of the map; `None` for a file without one.
    range: Option<(u32, u32)>,
    dense_length: u64,
}

/// A stretch of a file as a reader sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Range {
    /// `len` bytes from `offset` of the file, which stand from `dense` on in its
    /// dense bytes (add [`FileData::offset`] for the place in the object).
    Data {
        /// First logical byte.
        offset: u64,
        /// First dense byte.
        dense: u64,
        /// Bytes, above 0.
        len: u64,
    },
    /// `len` zeros from `offset` of the file.
    Hole {
        /// First logical byte.
        offset: u64,
        /// Bytes, above 0.
        len: u64,
    },
}

impl<'a> Extents<'a> {
    /// Whether the file has a map: without one its bytes are the dense bytes.
    pub fn is_sparse(&self) -> bool {
        self.range.is_some()
    }

    /// The stretches of data and holes that make up the logical bytes from
    /// `start` to `end`, in order and without gaps. The caller keeps `end` at or
    /// below the size of the file.
    pub fn ranges(&self, start: u64, end: u64) -> Ranges<'a> {
        let (first, last) = self.range.unwrap_or((0, 0));
        let skip = partition(last.saturating_sub(first), |i| {
            let (logical, _, len) = self.extent(first.saturating_add(i), last);
            logical.saturating_add(len) <= start
        });
        Ranges { extents: *self, next: first.saturating_add(skip), at: start, end }
    }

    /// (logical, dense, length) of extent record `i` of those before `last`.
    fn extent(&self, i: u32, last: u32) -> (u64, u64, u64) {
        let record = self.tree.record(Section::Extents, i);
        let dense = u64_at(record, 8);
        let dense_end = match i.saturating_add(1) < last {
            true => u64_at(self.tree.record(Section::Extents, i + 1), 8),
            false => self.dense_length,
        };
        (u64_at(record, 0), dense, dense_end.saturating_sub(dense))
    }
}

/// Iterates over data and holes. See [`Extents::ranges`].
#[derive(Clone, Debug)]
pub struct Ranges<'a> {
    extents: Extents<'a>,
    next: u32,
    at: u64,
    end: u64,
}

impl Iterator for Ranges<'_> {
    type Item = Range;

    fn next(&mut self) -> Option<Range> {
        let offset = self.at;
        if offset >= self.end {
            return None;
        }
        let left = self.end - offset;
        let Some((_, last)) = self.extents.range else {
            self.at = self.end;
            return Some(Range::Data { offset, dense: offset, len: left });
        };
        let range = if self.next >= last {
            Range::Hole { offset, len: left }
        } else {
            let (logical, dense, len) = self.extents.extent(self.next, last);
            if offset < logical {
                let len = left.min(logical - offset);
                Range::Hole { offset, len }
            } else {
                self.next += 1;
                let inside = offset - logical;
                let len = left.min(len.saturating_sub(inside));
                let dense = dense.saturating_add(inside);
                Range::Data { offset, dense, len }
            }
        };
        match range {
            // Only a map damaged after it was checked has empty stretches.
            Range::Data { len: 0, .. } | Range::Hole { len: 0, .. } => None,
            Range::Data { len, .. } | Range::Hole { len, .. } => {
                self.at += len;
                Some(range)
            }
        }
    }
}
