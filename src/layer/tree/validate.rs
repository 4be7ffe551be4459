//! Checks a tree once, so that readers can trust it afterwards.
//!
//! One pass over the nodes and one over the directories, no recursion and no
//! memory but a few counters: directories are numbered breadth-first, so a tree
//! in which every directory has one parent and no cycle is exactly one whose
//! entries meet new nodes and new directories in counting order.

use super::NodeKind;
use super::format::{
    FLAG_IMPLICIT, FLAG_OPAQUE, NAME_MAX, NODES_MAX, NONE, PATH_MAX, Section, Sections,
    XATTR_LIST_MAX, XATTR_NAME_MAX, XATTR_VALUE_MAX, string_at, u16_at, u32_at, u64_at,
};

/// Why bytes are not a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Not this format, or not this version of it.
    #[error("not a layer tree, or one of another version")]
    Magic,
    /// The sections don't fill the bytes exactly.
    #[error("the tree's sections do not fit its length")]
    Length,
    /// No root directory, or more nodes than a tree may have.
    #[error("the tree has no root or too many nodes")]
    NodeCount,
    /// A node with impossible fields.
    #[error("node {0} of the tree is malformed")]
    Node(u32),
    /// A directory that is not where the order of the tree has it.
    #[error("directory {0} of the tree is malformed")]
    Directory(u32),
    /// A name that can't stand in a directory, is out of order, or leads to a
    /// node that it can't name.
    #[error("entry {0} of the tree is malformed")]
    Entry(u32),
    /// The list of names of hard-linked files is wrong.
    #[error("hard link {0} of the tree is malformed")]
    Link(u32),
    /// A file's data lie outside their object.
    #[error("file {0} of the tree is malformed")]
    File(u32),
    /// A sparse map that is out of order or exceeds the file.
    #[error("sparse map {0} of the tree is malformed")]
    Sparse(u32),
    /// A set of extended attributes that is malformed or too large.
    #[error("attribute set {0} of the tree is malformed")]
    Xattrs(u32),
}

/// Decodes the kind of a node's mode word.
pub(super) fn kind_of(mode: u16) -> Option<NodeKind> {
    Some(match mode >> 12 {
        0 => NodeKind::Directory,
        1 => NodeKind::File,
        2 => NodeKind::Symlink,
        3 => NodeKind::CharDevice,
        4 => NodeKind::BlockDevice,
        5 => NodeKind::Fifo,
        6 => NodeKind::Socket,
        7 => NodeKind::Whiteout,
        8 => NodeKind::ExternalLink,
        _ => return None,
    })
}

pub(super) fn validate(bytes: &[u8]) -> Result<Sections, TreeError> {
    let checker = Checker { bytes, sections: Sections::read(bytes)? };
    checker.nodes()?;
    checker.directories()?;
    checker.links()?;
    checker.sparse()?;
    checker.files()?;
    checker.xattrs()?;
    Ok(checker.sections)
}

struct Checker<'a> {
    bytes: &'a [u8],
    sections: Sections,
}

impl<'a> Checker<'a> {
    fn count(&self, section: Section) -> u32 {
        self.sections.count(section)
    }

    fn record(&self, section: Section, i: u32) -> &'a [u8] {
        self.sections.record(self.bytes, section, i)
    }

    fn string(&self, offset: u32) -> Option<&'a [u8]> {
        string_at(self.sections.section(self.bytes, Section::Strings), offset)
    }

    fn node_kind(&self, ix: u32) -> Option<NodeKind> {
        kind_of(u16_at(self.record(Section::Nodes, ix), 0))
    }

    /// Each node by itself; files and directories have records of their own, in
    /// the order of the nodes.
    fn nodes(&self) -> Result<(), TreeError> {
        let nodes = self.count(Section::Nodes);
        if nodes == 0 || nodes > NODES_MAX || self.node_kind(0) != Some(NodeKind::Directory) {
            return Err(TreeError::NodeCount);
        }
        let (mut dirs, mut files) = (0, 0);
        for ix in 0..nodes {
            let record = self.record(Section::Nodes, ix);
            let bad = TreeError::Node(ix);
            let kind = kind_of(u16_at(record, 0)).ok_or(bad)?;
            let flags = u16_at(record, 2);
            let nlink = u32_at(record, 12);
            let payload = u32_at(record, 28);
            let allowed = match kind {
                NodeKind::Directory => FLAG_IMPLICIT | FLAG_OPAQUE,
                _ => 0,
            };
            let payload_fits = match kind {
                NodeKind::Directory => {
                    dirs += 1;
                    payload == dirs - 1
                }
                NodeKind::File => {
                    files += 1;
                    payload == files - 1
                }
                NodeKind::Symlink | NodeKind::ExternalLink => self
                    .string(payload)
                    .is_some_and(|t| (1..=PATH_MAX).contains(&t.len()) && !t.contains(&0)),
                NodeKind::CharDevice | NodeKind::BlockDevice => true,
                NodeKind::Fifo | NodeKind::Socket | NodeKind::Whiteout => payload == 0,
            };
            if flags & !allowed != 0
                || !payload_fits
                || nlink == 0
                || (kind == NodeKind::Whiteout && nlink != 1)
                || u32_at(record, 16) >= 1_000_000_000
                || u32_at(record, 32) > self.count(Section::Sets)
            {
                return Err(bad);
            }
        }
        if dirs != self.count(Section::Dirs) || files != self.count(Section::Files) {
            return Err(TreeError::Length);
        }
        Ok(())
    }

    fn directories(&self) -> Result<(), TreeError> {
        let entries = self.count(Section::Entries);
        let (mut next_node, mut next_dir, mut linked) = (1, 1, 0u32);
        let mut first = 0;
        for dir in 0..self.count(Section::Dirs) {
            let record = self.record(Section::Dirs, dir);
            let bad = TreeError::Directory(dir);
            let node = u32_at(record, 0);
            let end = match dir + 1 < self.count(Section::Dirs) {
                true => u32_at(self.record(Section::Dirs, dir + 1), 4),
                false => entries,
            };
            let root_fits =
                dir > 0 || (node == 0 && u32_at(record, 8) == 0 && u32_at(record, 12) == NONE);
            if dir >= next_dir
                || !root_fits
                || u32_at(record, 4) != first
                || end < first
                || end > entries
            {
                return Err(bad);
            }
            let (mut before, mut subdirs): (&[u8], u32) = (b"", 0);
            for i in first..end {
                let entry = self.record(Section::Entries, i);
                let bad = TreeError::Entry(i);
                let name = self.string(u32_at(entry, 0)).ok_or(bad)?;
                if !is_name(name) || name <= before {
                    return Err(bad);
                }
                before = name;
                let ix = u32_at(entry, 4);
                let kind = self.node_kind(ix).ok_or(bad)?;
                if kind == NodeKind::Directory {
                    let child = self.record(Section::Dirs, next_dir);
                    if ix != next_node || [0, 8, 12].map(|at| u32_at(child, at)) != [ix, node, i] {
                        return Err(bad);
                    }
                    next_dir += 1;
                    subdirs += 1;
                } else if u32_at(self.record(Section::Nodes, ix), 12) > 1 {
                    linked += 1;
                } else if ix != next_node {
                    return Err(bad);
                }
                if ix > next_node {
                    return Err(bad);
                }
                next_node += u32::from(ix == next_node);
            }
            if u32_at(self.record(Section::Nodes, node), 12) != 2 + subdirs {
                return Err(bad);
            }
            first = end;
        }
        if next_node != self.count(Section::Nodes) || next_dir != self.count(Section::Dirs) {
            return Err(TreeError::NodeCount);
        }
        if first != entries || linked != self.count(Section::Links) {
            return Err(TreeError::Length);
        }
        Ok(())
    }

    /// The links are all entries of nodes with several names, by node: there are
    /// as many as `directories` met, they are different, and each is one.
    fn links(&self) -> Result<(), TreeError> {
        let (mut before, mut left) = ((0, 0), 0);
        for i in 0..self.count(Section::Links) {
            let record = self.record(Section::Links, i);
            let (node, entry) = (u32_at(record, 0), u32_at(record, 4));
            if left == 0 {
                left = u32_at(self.record(Section::Nodes, node), 12);
                if left < 2 || node <= before.0 {
                    return Err(TreeError::Link(i));
                }
            } else if node != before.0 || entry <= before.1 {
                return Err(TreeError::Link(i));
            }
            let named = self.record(Section::Entries, entry);
            if named.is_empty()
                || u32_at(named, 4) != node
                || self.node_kind(node) == Some(NodeKind::Directory)
            {
                return Err(TreeError::Link(i));
            }
            left -= 1;
            before = (node, entry);
        }
        if left != 0 {
            return Err(TreeError::Link(self.count(Section::Links)));
        }
        Ok(())
    }

    /// The maps by themselves; `files` compares them with the dense length.
    fn sparse(&self) -> Result<(), TreeError> {
        let extents = self.count(Section::Extents);
        let mut first = 0;
        for i in 0..self.count(Section::Sparse) {
            if u32_at(self.record(Section::Sparse, i), 8) != first {
                return Err(TreeError::Sparse(i));
            }
            first = match i + 1 < self.count(Section::Sparse) {
                true => u32_at(self.record(Section::Sparse, i + 1), 8),
                false => extents,
            };
            if first > extents {
                return Err(TreeError::Sparse(i));
            }
        }
        if first != extents {
            return Err(TreeError::Length);
        }
        Ok(())
    }

    fn files(&self) -> Result<(), TreeError> {
        let mut sparse = 0;
        for i in 0..self.count(Section::Files) {
            let record = self.record(Section::Files, i);
            let bad = TreeError::File(i);
            let (offset, length) = (u64_at(record, 8), u64_at(record, 16));
            let object = self.record(Section::Objects, u32_at(record, 0));
            if object.is_empty()
                || offset
                    .checked_add(length)
                    .is_none_or(|end| end > u64_at(object, 32) || end > i64::MAX as u64)
            {
                return Err(bad);
            }
            match u32_at(record, 4) {
                0 => {}
                n if n == sparse + 1 => {
                    self.extents(sparse, length)?;
                    sparse += 1;
                }
                _ => return Err(bad),
            }
        }
        if sparse != self.count(Section::Sparse) {
            return Err(TreeError::Length);
        }
        Ok(())
    }

    fn extents(&self, sparse: u32, dense_length: u64) -> Result<(), TreeError> {
        let bad = TreeError::Sparse(sparse);
        let record = self.record(Section::Sparse, sparse);
        let size = u64_at(record, 0);
        let first = u32_at(record, 8);
        let end = match sparse + 1 < self.count(Section::Sparse) {
            true => u32_at(self.record(Section::Sparse, sparse + 1), 8),
            false => self.count(Section::Extents),
        };
        let (mut logical_end, mut dense) = (0u64, 0u64);
        for i in first..end {
            let extent = self.record(Section::Extents, i);
            let next_dense = match i + 1 < end {
                true => u64_at(self.record(Section::Extents, i + 1), 8),
                false => dense_length,
            };
            let logical = u64_at(extent, 0);
            if u64_at(extent, 8) != dense || next_dense <= dense || logical < logical_end {
                return Err(bad);
            }
            logical_end = logical.checked_add(next_dense - dense).ok_or(bad)?;
            dense = next_dense;
        }
        // Sizes are off_t: a reader must not see a negative one.
        if dense != dense_length || logical_end > size || size > i64::MAX as u64 {
            return Err(bad);
        }
        Ok(())
    }

    fn xattrs(&self) -> Result<(), TreeError> {
        let all = self.sections.section(self.bytes, Section::Xattrs);
        let sets = self.count(Section::Sets);
        let mut start = 0;
        for set in 0..sets {
            let bad = TreeError::Xattrs(set);
            let end = match set + 1 < sets {
                true => u32_at(self.record(Section::Sets, set + 1), 0),
                false => all.len() as u32,
            };
            if u32_at(self.record(Section::Sets, set), 0) != start {
                return Err(bad);
            }
            let mut rest = all.get(start as usize..end as usize).ok_or(bad)?;
            let (mut before, mut list): (&[u8], usize) = (b"", 0);
            if rest.is_empty() {
                return Err(bad);
            }
            while !rest.is_empty() {
                let (name, value, after) = split_xattr(rest).ok_or(bad)?;
                if !is_xattr(name, value) || name <= before {
                    return Err(bad);
                }
                list += name.len() + 1;
                before = name;
                rest = after;
            }
            if list > XATTR_LIST_MAX {
                return Err(bad);
            }
            start = end;
        }
        if start as usize != all.len() {
            return Err(TreeError::Length);
        }
        Ok(())
    }
}

/// One attribute off the front of a set: name, value, the rest.
pub(super) fn split_xattr(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (head, rest) = bytes.split_at_checked(5)?;
    let (name, rest) = rest.split_at_checked(usize::from(head[0]))?;
    let (value, rest) = rest.split_at_checked(u32_at(head, 1) as usize)?;
    Some((name, value, rest))
}

/// Whether bytes can be a name in a directory.
pub(super) fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

/// Whether the kernel would take the attribute.
pub(super) fn is_xattr(name: &[u8], value: &[u8]) -> bool {
    (1..=XATTR_NAME_MAX).contains(&name.len())
        && !name.contains(&0)
        && value.len() <= XATTR_VALUE_MAX
}
