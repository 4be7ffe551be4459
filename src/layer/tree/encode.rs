//! Writes a built tree in its canonical form. See [`super::format`].

use std::collections::HashMap;

use crate::types::ObjectId;

use super::build::{BuildNode, BuildTreeError, Directory, File, Kind, ROOT, TreeBuilder};
use super::format::{
    FLAG_IMPLICIT, FLAG_OPAQUE, HEADER, NODES_MAX, NONE, RECORD, SECTIONS, Section, header,
    push_string,
};

pub(super) fn encode(
    tree: &TreeBuilder,
    objects: &[(ObjectId, u64)],
) -> Result<Vec<u8>, BuildTreeError> {
    let mut encoder = Encoder {
        tree,
        out: Default::default(),
        numbers: vec![NONE; tree.nodes.len()],
        strings: HashMap::new(),
        xattr_sets: {
            let mut sets: Vec<_> = tree.xattrs.iter().map(|(set, n)| (*n, &**set)).collect();
            sets.sort_unstable_by_key(|(n, _)| *n);
            sets.into_iter().map(|(_, set)| (set, 0)).collect()
        },
        linked: Vec::new(),
        directories_numbered: 0,
    };
    for (id, length) in objects {
        encoder.push(Section::Objects, id.as_bytes());
        encoder.push(Section::Objects, &length.to_le_bytes());
    }
    encoder.directories();
    encoder.assemble()
}

struct Encoder<'a> {
    tree: &'a TreeBuilder,
    out: [Vec<u8>; SECTIONS],
    /// Number of each built node in the encoded tree, or [`NONE`].
    numbers: Vec<u32>,
    /// Strings written so far and their offsets.
    strings: HashMap<&'a [u8], u32>,
    /// Each attribute set, and its encoded number + 1 once it is used.
    xattr_sets: Vec<(&'a [u8], u32)>,
    /// (node, entry) of nodes with several names.
    linked: Vec<(u32, u32)>,
    directories_numbered: u32,
}

impl<'a> Encoder<'a> {
    /// All directories breadth-first, and with them all that they name.
    fn directories(&mut self) {
        // (built node, its parent's number, the entry that names it)
        let mut queue = std::collections::VecDeque::from([(ROOT, 0, NONE)]);
        let root = &self.tree.nodes[ROOT as usize];
        self.number(ROOT, false);
        self.node(root, false);
        while let Some((ix, parent, named_by)) = queue.pop_front() {
            let number = self.numbers[ix as usize];
            let Kind::Directory(directory) = &self.tree.nodes[ix as usize].kind else {
                unreachable!("only directories are queued")
            };
            let first = self.count(Section::Entries);
            for field in [number, first, parent, named_by] {
                self.push(Section::Dirs, &field.to_le_bytes());
            }
            for (name, child) in &directory.children {
                let entry = self.count(Section::Entries);
                let Some(node) = child.node.map(|ix| (ix, &self.tree.nodes[ix as usize])) else {
                    if child.cut {
                        let number = self.count(Section::Nodes);
                        self.whiteout();
                        self.entry(name, number);
                    }
                    continue;
                };
                let (ix, node) = node;
                if self.number(ix, node.names > 1) {
                    if matches!(node.kind, Kind::Directory(_)) {
                        queue.push_back((ix, number, entry));
                    }
                    // The name's string comes before the node's own, always.
                    self.entry(name, self.numbers[ix as usize]);
                    self.node(node, child.cut);
                } else {
                    self.entry(name, self.numbers[ix as usize]);
                }
                if node.names > 1 {
                    self.linked.push((self.numbers[ix as usize], entry));
                }
            }
        }
        self.linked.sort_unstable();
        for (node, entry) in std::mem::take(&mut self.linked) {
            self.push(Section::Links, &node.to_le_bytes());
            self.push(Section::Links, &entry.to_le_bytes());
        }
    }

    /// Gives a node the next number if it has none; whether it had none.
    fn number(&mut self, ix: u32, may_have: bool) -> bool {
        let next = self.count(Section::Nodes);
        let number = &mut self.numbers[ix as usize];
        if may_have && *number != NONE {
            return false;
        }
        *number = next;
        true
    }

    fn entry(&mut self, name: &'a [u8], node: u32) {
        let name = self.string(name);
        self.push(Section::Entries, &name.to_le_bytes());
        self.push(Section::Entries, &node.to_le_bytes());
    }

    fn node(&mut self, node: &'a BuildNode, cut: bool) {
        let (kind, payload, flags, nlink) = match &node.kind {
            Kind::Directory(directory) => {
                // Directories are written in the order in which they get numbers.
                // What replaces a lower directory takes no attributes from it.
                let flags = match directory.implicit && !cut {
                    true => FLAG_IMPLICIT,
                    false => 0,
                } | match directory.opaque || cut {
                    true => FLAG_OPAQUE,
                    false => 0,
                };
                let number = self.directories_numbered;
                self.directories_numbered += 1;
                (0, number, flags, 2 + self.subdirectories(directory))
            }
            Kind::File(file) => (1, self.file(file), 0, node.names),
            Kind::Symlink(target) => (2, self.string(target), 0, node.names),
            Kind::CharDevice(device) => (3, *device, 0, node.names),
            Kind::BlockDevice(device) => (4, *device, 0, node.names),
            Kind::Fifo => (5, 0, 0, node.names),
            Kind::External(target) => (8, self.string(target), 0, node.names),
            Kind::Free => unreachable!("no name leads to a free node"),
        };
        let xattrs = self.xattrs(node.xattrs);
        self.raw_node(
            kind << 12 | node.mode,
            flags,
            [node.uid, node.gid, nlink],
            node.mtime,
            [payload, xattrs],
        );
    }

    fn whiteout(&mut self) {
        self.raw_node(7 << 12, 0, [0, 0, 1], (0, 0), [0, 0]);
    }

    fn raw_node(&mut self, mode: u16, flags: u16, ids: [u32; 3], time: (i64, u32), ends: [u32; 2]) {
        let out = &mut self.out[Section::Nodes as usize];
        out.extend(mode.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(ids.iter().flat_map(|n| n.to_le_bytes()));
        out.extend(time.1.to_le_bytes());
        out.extend(time.0.to_le_bytes());
        out.extend(ends.iter().flat_map(|n| n.to_le_bytes()));
    }

    fn subdirectories(&self, directory: &Directory) -> u32 {
        let nodes = &self.tree.nodes;
        let is_directory = |ix: u32| matches!(nodes[ix as usize].kind, Kind::Directory(_));
        directory.children.values().filter(|child| child.node.is_some_and(is_directory)).count()
            as u32
    }

    fn file(&mut self, file: &'a File) -> u32 {
        let number = self.count(Section::Files);
        let sparse = match &file.extents {
            None => 0,
            Some(extents) => {
                let first = self.count(Section::Extents);
                self.push(Section::Sparse, &file.size.to_le_bytes());
                self.push(Section::Sparse, &first.to_le_bytes());
                let mut dense = 0u64;
                for extent in extents {
                    self.push(Section::Extents, &extent.logical.to_le_bytes());
                    self.push(Section::Extents, &dense.to_le_bytes());
                    dense += extent.len;
                }
                self.count(Section::Sparse)
            }
        };
        let content = &file.content;
        self.push(Section::Files, &content.object.to_le_bytes());
        self.push(Section::Files, &sparse.to_le_bytes());
        self.push(Section::Files, &content.offset.to_le_bytes());
        self.push(Section::Files, &content.length.to_le_bytes());
        self.push(Section::Files, content.hash.as_bytes());
        number
    }

    fn xattrs(&mut self, set: u32) -> u32 {
        let Some(built) = set.checked_sub(1) else {
            return 0;
        };
        let (bytes, number) = self.xattr_sets[built as usize];
        if number != 0 {
            return number;
        }
        let start = self.count(Section::Xattrs);
        self.push(Section::Sets, &start.to_le_bytes());
        self.push(Section::Xattrs, bytes);
        let number = self.count(Section::Sets);
        self.xattr_sets[built as usize].1 = number;
        number
    }

    fn string(&mut self, text: &'a [u8]) -> u32 {
        let out = &mut self.out[Section::Strings as usize];
        *self.strings.entry(text).or_insert_with(|| {
            let offset = out.len() as u32;
            push_string(out, text);
            offset
        })
    }

    fn push(&mut self, section: Section, bytes: &[u8]) {
        self.out[section as usize].extend_from_slice(bytes);
    }

    fn count(&self, section: Section) -> u32 {
        (self.out[section as usize].len() / RECORD[section as usize]) as u32
    }

    fn assemble(self) -> Result<Vec<u8>, BuildTreeError> {
        let mut counts = [0; SECTIONS];
        for ((count, out), record) in counts.iter_mut().zip(&self.out).zip(RECORD) {
            *count = u32::try_from(out.len() / record)
                .map_err(|_| BuildTreeError::TooMany("names or attributes"))?;
        }
        if counts[Section::Nodes as usize] > NODES_MAX {
            return Err(BuildTreeError::TooMany("files"));
        }
        let mut bytes = Vec::with_capacity(HEADER + self.out.iter().map(Vec::len).sum::<usize>());
        bytes.extend(header(&counts));
        for out in &self.out {
            bytes.extend_from_slice(out);
        }
        Ok(bytes)
    }
}
