//! Builds a tree from the entries of a tar stream, by the rules of extraction.
//!
//! - A later entry of the same name replaces the earlier one. A directory over a
//!   directory replaces its attributes only; anything else over a directory
//!   removes what was below it.
//! - Hard links share a node; the attributes in the link's own entry don't count.
//!   A target that this layer doesn't have (yet) makes an external link, a
//!   directory as target is an error.
//! - Directories that are missing on the way are made: mode 0755, owner 0, time 0,
//!   marked implicit, so that a merge keeps the attributes of lower layers.
//! - A whiteout `.wh.x` hides `x` of lower layers only. If this layer has `x`
//!   too, before or after, `x` shows; if that is a directory it becomes opaque.
//!   The same goes for a directory in whose place this layer had something else:
//!   an extractor would have removed the lower directory then.
//!   `.wh..wh..opq` makes its directory opaque; other `.wh..wh.*` are ignored.
//! - An entry below something that is no directory is an error, as it is for
//!   umoci and containerd. See [`super::paths`] for names and links.
//! - Overlayfs' own attributes are dropped, and eStargz' landmark files hidden.

use std::collections::{BTreeMap, HashMap};

use crate::layer::entry::{Entry, EntryKind, Extent};
use crate::types::{BlockHash, ObjectId};

use super::encode;
use super::format::{NODES_MAX, PATH_MAX, XATTR_LIST_MAX, pack_device};
use super::paths::{Component, PathError, Step, clean, walk};
use super::validate::is_xattr;

/// Bounds of what one layer may put into memory.
#[derive(Clone, Copy, Debug)]
pub struct TreeLimits {
    /// Nodes, implicit directories and whiteouts included; at most 2^26 count.
    pub nodes: u32,
    /// Bytes of names and link targets.
    pub strings: u64,
    /// Bytes of different sets of extended attributes.
    pub xattrs: u64,
    /// Stretches of data in sparse files.
    pub extents: u64,
}

impl Default for TreeLimits {
    /// 4 Mi nodes (the largest layers seen have a tenth of it, and a hostile
    /// one can't take more than about 1 GB of memory), 256 MiB of strings,
    /// 64 MiB of attributes, 4 Mi extents.
    fn default() -> Self {
        Self { nodes: 4 << 20, strings: 256 << 20, xattrs: 64 << 20, extents: 4 << 20 }
    }
}

/// Where the content of a regular file went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileContent {
    /// Number of the object in the list given to [`TreeBuilder::finish`].
    pub object: u32,
    /// First byte in the object.
    pub offset: u64,
    /// Dense bytes.
    pub length: u64,
    /// BLAKE3 of the dense bytes.
    pub hash: BlockHash,
}

/// Why an entry can't be part of a tree. Paths are quoted with escapes and cut.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildTreeError {
    /// A path above 4,096 bytes or a component above 255.
    #[error("the name {0} is too long")]
    NameTooLong(String),
    /// More than 40 symbolic links on the way to a name.
    #[error("too many symbolic links on the way to {0}")]
    LinkLoop(String),
    /// An entry below something that is not a directory.
    #[error("{0} lies below something that is not a directory")]
    NotADirectory(String),
    /// The top of the layer as something else than a directory.
    #[error("the layer's top is not a directory")]
    Root,
    /// A hard link to a directory, or to nothing at all.
    #[error("{0} is a hard link to a directory")]
    LinkToDirectory(String),
    /// A symbolic link to nothing, or to more than 4,096 bytes.
    #[error("{0} has an impossible link target")]
    Target(String),
    /// An attribute that no kernel would store.
    #[error("{0} has an impossible extended attribute")]
    Xattr(String),
    /// A sparse file whose data don't fit it.
    #[error("{0} has an impossible sparse map")]
    Sparse(String),
    /// A regular file that was added without its content.
    #[error("{0} was added without content")]
    NoContent(String),
    /// One of [`TreeLimits`], or what the format can hold.
    #[error("the layer has too many {0}")]
    TooMany(&'static str),
}

pub(super) const ROOT: u32 = 0;
/// Components that may come out of symbolic links while a whole layer is built:
/// far above need, and about a second of work.
const WALKED_MAX: u64 = 16 << 20;

pub(super) struct BuildNode {
    pub(super) kind: Kind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: (i64, u32),
    /// Names in directories; 1 for a directory, 0 for a free slot.
    pub(super) names: u32,
    /// Number of the attribute set + 1, or 0.
    pub(super) xattrs: u32,
}

pub(super) enum Kind {
    Directory(Box<Directory>),
    File(Box<File>),
    Symlink(Box<[u8]>),
    External(Box<[u8]>),
    CharDevice(u32),
    BlockDevice(u32),
    Fifo,
    Free,
}

#[derive(Default)]
pub(super) struct Directory {
    pub(super) children: BTreeMap<Box<[u8]>, Child>,
    pub(super) implicit: bool,
    pub(super) opaque: bool,
}

#[derive(Default)]
pub(super) struct Child {
    pub(super) node: Option<u32>,
    /// What lower layers have under this name is gone.
    pub(super) cut: bool,
}

pub(super) struct File {
    pub(super) content: FileContent,
    pub(super) size: u64,
    pub(super) extents: Option<Box<[Extent]>>,
}

/// Takes the entries of a tar stream in order and applies the rules of layer
/// extraction; what comes out is canonical.
pub struct TreeBuilder {
    limits: TreeLimits,
    pub(super) nodes: Vec<BuildNode>,
    free: Vec<u32>,
    live: u32,
    /// All that came by, those that no longer show too.
    whiteouts: u32,
    strings: u64,
    extents: u64,
    xattr_bytes: u64,
    /// Attribute sets in the tree's form, and their numbers.
    pub(super) xattrs: HashMap<Box<[u8]>, u32>,
    walked: u64,
}

impl Default for TreeBuilder {
    fn default() -> Self {
        Self::new(TreeLimits::default())
    }
}

impl TreeBuilder {
    /// An empty tree: a root directory that no entry describes.
    pub fn new(limits: TreeLimits) -> Self {
        Self {
            limits: TreeLimits { nodes: limits.nodes.min(NODES_MAX), ..limits },
            nodes: vec![implicit_directory()],
            free: Vec::new(),
            live: 1,
            whiteouts: 0,
            strings: 0,
            extents: 0,
            xattr_bytes: 0,
            xattrs: HashMap::new(),
            walked: 0,
        }
    }

    /// Adds the next entry; a regular file comes with its content.
    ///
    /// # Errors
    /// [`BuildTreeError`]; the builder is of no use after one.
    pub fn add(
        &mut self,
        entry: &Entry,
        content: Option<FileContent>,
    ) -> Result<(), BuildTreeError> {
        let quoted = || quote(&entry.path);
        let path = clean(&entry.path).map_err(|e| path_error(e, &entry.path))?;
        let Some((name, parents)) = path.split_last() else {
            return self.add_root(entry);
        };
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            return self.add_whiteout(entry, parents, hidden);
        }
        let landmark = matches!(
            *name,
            b".no.prefetch.landmark" | b".prefetch.landmark" | b"stargz.index.json"
        );
        if landmark && parents.is_empty() && matches!(entry.kind, EntryKind::File { .. }) {
            return Ok(());
        }
        let dir = self.make_directories(parents, &entry.path)?;
        let kind = match &entry.kind {
            EntryKind::Directory => return self.add_directory(dir, name, entry),
            EntryKind::HardLink { target } => {
                match self.find_target(target, &entry.path)? {
                    Target::Node(node) => return self.add_name(dir, name, node),
                    // What the entry says of owner and mode doesn't count.
                    Target::Outside(path) => {
                        let node = BuildNode {
                            kind: Kind::External(self.string(&path)?),
                            mode: 0,
                            names: 1,
                            ..blank()
                        };
                        return self.put(dir, name, node);
                    }
                }
            }
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.len() >= PATH_MAX || target.contains(&0) {
                    return Err(BuildTreeError::Target(quoted()));
                }
                Kind::Symlink(self.string(target)?)
            }
            EntryKind::File { size, extents } => {
                let content = content.ok_or_else(|| BuildTreeError::NoContent(quoted()))?;
                let file = self.file(content, *size, extents.as_deref());
                Kind::File(Box::new(file?.ok_or_else(|| BuildTreeError::Sparse(quoted()))?))
            }
            EntryKind::CharDevice { major, minor } => Kind::CharDevice(pack_device(*major, *minor)),
            EntryKind::BlockDevice { major, minor } => {
                Kind::BlockDevice(pack_device(*major, *minor))
            }
            EntryKind::Fifo => Kind::Fifo,
        };
        let mode = match kind {
            Kind::Symlink(_) => 0o777,
            _ => entry.mode & 0o7777,
        };
        let node = BuildNode {
            kind,
            mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            names: 1,
            xattrs: self.xattr_set(entry)?,
        };
        self.put(dir, name, node)
    }

    /// The bytes of the tree. `objects` are the layer's objects (id and length)
    /// by the numbers that [`FileContent`] used.
    ///
    /// # Errors
    /// [`BuildTreeError::TooMany`] where the format's own bounds are exceeded.
    pub fn finish(self, objects: &[(ObjectId, u64)]) -> Result<Vec<u8>, BuildTreeError> {
        encode::encode(&self, objects)
    }

    fn add_root(&mut self, entry: &Entry) -> Result<(), BuildTreeError> {
        if entry.kind != EntryKind::Directory {
            return Err(BuildTreeError::Root);
        }
        self.describe(ROOT, entry)
    }

    fn add_directory(
        &mut self,
        dir: u32,
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), BuildTreeError> {
        let node = match self.child(dir, name) {
            Some(node) if self.is_directory(node) => node,
            _ => {
                self.put(dir, name, implicit_directory())?;
                self.child(dir, name).unwrap_or_else(|| unreachable!("was just put there"))
            }
        };
        self.describe(node, entry)
    }

    /// Gives a directory the attributes of its entry.
    fn describe(&mut self, node: u32, entry: &Entry) -> Result<(), BuildTreeError> {
        let xattrs = self.xattr_set(entry)?;
        let node = &mut self.nodes[node as usize];
        if let Kind::Directory(directory) = &mut node.kind {
            directory.implicit = false;
        }
        node.mode = entry.mode & 0o7777;
        node.uid = entry.uid;
        node.gid = entry.gid;
        node.mtime = entry.mtime;
        node.xattrs = xattrs;
        Ok(())
    }

    fn add_whiteout(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        hidden: &[u8],
    ) -> Result<(), BuildTreeError> {
        let is_opaque = hidden == b".wh..opq";
        if !is_opaque && (hidden.starts_with(b".wh.") || matches!(hidden, b"" | b"." | b"..")) {
            return Ok(());
        }
        let dir = self.make_directories(parents, &entry.path)?;
        if !is_opaque {
            self.whiteouts += 1;
            if self.live.saturating_add(self.whiteouts) > self.limits.nodes {
                return Err(BuildTreeError::TooMany("files"));
            }
            self.slot(dir, hidden)?.cut = true;
        } else if let Kind::Directory(directory) = &mut self.nodes[dir as usize].kind {
            directory.opaque = true;
        }
        Ok(())
    }

    /// One more name for a node that is no directory.
    fn add_name(&mut self, dir: u32, name: &[u8], node: u32) -> Result<(), BuildTreeError> {
        if self.child(dir, name) == Some(node) {
            return Ok(());
        }
        // Counted first: the name may replace the directory that the target is in.
        self.nodes[node as usize].names += 1;
        let slot = self.slot(dir, name)?;
        slot.cut = true;
        let before = slot.node.replace(node);
        self.remove(before);
        Ok(())
    }

    /// Puts a new node under a name, in place of what is there.
    fn put(&mut self, dir: u32, name: &[u8], node: BuildNode) -> Result<(), BuildTreeError> {
        let is_directory = matches!(node.kind, Kind::Directory(_));
        let new = self.allocate(node)?;
        let slot = self.slot(dir, name)?;
        slot.cut |= !is_directory || slot.node.is_some();
        let before = slot.node.replace(new);
        self.remove(before);
        Ok(())
    }

    fn allocate(&mut self, node: BuildNode) -> Result<u32, BuildTreeError> {
        if self.live.saturating_add(self.whiteouts) >= self.limits.nodes {
            return Err(BuildTreeError::TooMany("files"));
        }
        self.live += 1;
        match self.free.pop() {
            Some(ix) => {
                self.nodes[ix as usize] = node;
                Ok(ix)
            }
            None => {
                self.nodes.push(node);
                Ok((self.nodes.len() - 1) as u32)
            }
        }
    }

    /// Takes one name from a node, and with the last one the node and all below.
    fn remove(&mut self, node: Option<u32>) {
        let mut todo = Vec::from_iter(node);
        while let Some(ix) = todo.pop() {
            let node = &mut self.nodes[ix as usize];
            node.names -= 1;
            if node.names > 0 {
                continue;
            }
            self.live -= 1;
            self.free.push(ix);
            match std::mem::replace(&mut node.kind, Kind::Free) {
                Kind::Directory(directory) => {
                    for (name, child) in directory.children {
                        self.strings -= name.len() as u64;
                        todo.extend(child.node);
                    }
                }
                Kind::Symlink(text) | Kind::External(text) => self.strings -= text.len() as u64,
                Kind::File(file) => {
                    self.extents -= file.extents.map_or(0, |e| e.len() as u64);
                }
                _ => {}
            }
        }
    }

    /// The place of a name in a directory, made when it is new.
    fn slot(&mut self, dir: u32, name: &[u8]) -> Result<&mut Child, BuildTreeError> {
        let exists = self.directory(dir).is_some_and(|d| d.children.contains_key(name));
        let new = match exists {
            true => None,
            false => Some(self.string(name)?),
        };
        let Kind::Directory(directory) = &mut self.nodes[dir as usize].kind else {
            unreachable!("names are put into directories")
        };
        if let Some(new) = new {
            directory.children.insert(new, Child::default());
        }
        Ok(directory.children.get_mut(name).unwrap_or_else(|| unreachable!("was just put there")))
    }

    fn make_directories(&mut self, parents: &[&[u8]], path: &[u8]) -> Result<u32, BuildTreeError> {
        let mut dir = ROOT;
        for (name, node) in self.walk(parents, path)? {
            dir = match node {
                Some(node) if self.is_directory(node) => node,
                Some(_) => return Err(BuildTreeError::NotADirectory(quote(path))),
                None => {
                    self.put(dir, &name, implicit_directory())?;
                    self.child(dir, &name).unwrap_or_else(|| unreachable!("was just put there"))
                }
            };
        }
        Ok(dir)
    }

    fn walk(&mut self, parents: &[&[u8]], path: &[u8]) -> Result<Vec<Component>, BuildTreeError> {
        let mut walked = self.walked;
        let done = walk(parents, ROOT, &mut walked, |dir, name| {
            let node = self.child(dir, name);
            match node.map(|ix| &self.nodes[ix as usize].kind) {
                Some(Kind::Symlink(target)) => Step::Link(target),
                _ => Step::Plain(node),
            }
        })
        .map_err(|e| path_error(e, path));
        self.walked = walked;
        if walked > WALKED_MAX {
            return Err(BuildTreeError::TooMany("paths through symbolic links"));
        }
        done
    }

    fn find_target(&mut self, target: &[u8], path: &[u8]) -> Result<Target, BuildTreeError> {
        let to_directory = || BuildTreeError::LinkToDirectory(quote(path));
        let components = clean(target).map_err(|e| path_error(e, target))?;
        let (name, parents) = components.split_last().ok_or_else(to_directory)?;
        let parents = self.walk(parents, target)?;
        let dir = parents.last().map_or(Some(ROOT), |(_, node)| *node);
        match dir.and_then(|dir| self.child(dir, name)) {
            Some(node) if self.is_directory(node) => Err(to_directory()),
            Some(node) => Ok(Target::Node(node)),
            None => {
                let mut outside = Vec::new();
                for (component, _) in &parents {
                    outside.extend_from_slice(component);
                    outside.push(b'/');
                }
                outside.extend_from_slice(name);
                if outside.len() > PATH_MAX {
                    return Err(BuildTreeError::NameTooLong(quote(target)));
                }
                Ok(Target::Outside(outside))
            }
        }
    }

    /// A file's record; `None` when its map and its content don't fit together.
    fn file(
        &mut self,
        content: FileContent,
        size: u64,
        extents: Option<&[Extent]>,
    ) -> Result<Option<File>, BuildTreeError> {
        let content = match content.length {
            0 => FileContent { object: 0, offset: 0, ..content },
            _ => content,
        };
        let Some(extents) = extents else {
            let file = File { content, size, extents: None };
            return Ok((size == content.length).then_some(file));
        };
        let mut merged: Vec<Extent> = Vec::new();
        let (mut end, mut dense) = (0u64, 0u64);
        for extent in extents.iter().filter(|e| e.len > 0) {
            let next = extent.logical.checked_add(extent.len);
            let Some(next) = next.filter(|n| extent.logical >= end && *n <= size) else {
                return Ok(None);
            };
            match merged.last_mut() {
                Some(last) if extent.logical == end => last.len += extent.len,
                _ => merged.push(*extent),
            }
            end = next;
            dense += extent.len;
        }
        if dense != content.length || size > i64::MAX as u64 {
            return Ok(None);
        }
        self.extents += merged.len() as u64;
        if self.extents > self.limits.extents {
            return Err(BuildTreeError::TooMany("stretches in sparse files"));
        }
        // A map without a hole says nothing.
        let extents = (dense != size).then(|| merged.into_boxed_slice());
        if extents.is_none() {
            self.extents -= u64::from(dense > 0);
        }
        Ok(Some(File { content, size, extents }))
    }

    fn xattr_set(&mut self, entry: &Entry) -> Result<u32, BuildTreeError> {
        let (mut set, mut list) = (Vec::new(), 0);
        for (name, value) in &entry.xattrs {
            if name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.") {
                continue;
            }
            list += name.len() + 1;
            if !is_xattr(name, value) || list > XATTR_LIST_MAX {
                return Err(BuildTreeError::Xattr(quote(&entry.path)));
            }
            set.push(name.len() as u8);
            set.extend((value.len() as u32).to_le_bytes());
            set.extend_from_slice(name);
            set.extend_from_slice(value);
        }
        if set.is_empty() {
            return Ok(0);
        }
        if let Some(number) = self.xattrs.get(&*set) {
            return Ok(number + 1);
        }
        self.xattr_bytes += set.len() as u64;
        if self.xattr_bytes > self.limits.xattrs {
            return Err(BuildTreeError::TooMany("extended attributes"));
        }
        let number = self.xattrs.len() as u32;
        self.xattrs.insert(set.into(), number);
        Ok(number + 1)
    }

    fn string(&mut self, text: &[u8]) -> Result<Box<[u8]>, BuildTreeError> {
        self.strings += text.len() as u64;
        if self.strings > self.limits.strings {
            return Err(BuildTreeError::TooMany("names"));
        }
        Ok(text.into())
    }

    fn directory(&self, node: u32) -> Option<&Directory> {
        match &self.nodes[node as usize].kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn is_directory(&self, node: u32) -> bool {
        self.directory(node).is_some()
    }

    fn child(&self, dir: u32, name: &[u8]) -> Option<u32> {
        self.directory(dir)?.children.get(name)?.node
    }
}

enum Target {
    Node(u32),
    /// Not in this layer: the clean path.
    Outside(Vec<u8>),
}

fn blank() -> BuildNode {
    BuildNode { kind: Kind::Free, mode: 0, uid: 0, gid: 0, mtime: (0, 0), names: 1, xattrs: 0 }
}

fn implicit_directory() -> BuildNode {
    BuildNode {
        kind: Kind::Directory(Box::new(Directory { implicit: true, ..Directory::default() })),
        mode: 0o755,
        ..blank()
    }
}

fn path_error(error: PathError, path: &[u8]) -> BuildTreeError {
    match error {
        PathError::TooLong => BuildTreeError::NameTooLong(quote(path)),
        PathError::Loop => BuildTreeError::LinkLoop(quote(path)),
    }
}

/// A hostile name in a message: escaped, and not all of it.
fn quote(path: &[u8]) -> String {
    let shown = &path[..path.len().min(120)];
    let dots = if shown.len() < path.len() { "..." } else { "" };
    format!("\"{}{dots}\"", shown.escape_ascii())
}
