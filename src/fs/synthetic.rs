//! What belongs to no layer: the top of the tree, the names of layers, chains
//! and images, and the status files.
//!
//! Names here come and go, so absent ones are never cached, and listings go on
//! at a number that follows from the name and not from its place.

use std::sync::Arc;

use super::attr::{Attr, Kind, Timestamp, Validity};
use super::catalog::{LayerName, NameLookup, NameTarget};
use super::error::FsError;
use super::filesystem::{Caller, DirEntry, FileSystem, Lookup, Root};
use super::inode::{Node, NodeId, Slot};
use super::names::{self, Component};
use super::stat::directory_attr;
use crate::layer::tree::NodeIx;

/// The status directory's name.
pub(super) const STATUS_DIR: &[u8] = b".peersync";

const TOP: [(&[u8], Node); 4] = [
    (b"layers", Node::Layers),
    (b"chains", Node::Chains),
    (b"images", Node::Images),
    (STATUS_DIR, Node::StatusDir),
];

/// First number at which a listing can go on after a name.
const COOKIE_FIRST: u64 = 1 << 16;

impl FileSystem {
    pub(super) fn lookup_synthetic(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        parent: Node,
        name: &[u8],
    ) -> Result<Lookup, FsError> {
        // All names here are ours, and text.
        let Ok(text) = str::from_utf8(name) else {
            return Ok(Lookup::Absent(Validity::None));
        };
        let (node, valid) = match parent {
            Node::Root => {
                let top = TOP.iter().find(|(top, _)| *top == name);
                (top.map(|(_, node)| *node), Validity::Forever)
            }
            Node::Layers => {
                let named = self.catalog.layer_named(text);
                (named.map(layer_node), Validity::Forever)
            }
            Node::Chains => {
                let slot = self.catalog.chain_named(text);
                let root = slot.map(|slot| self.chain_root(slot)).transpose()?;
                (root, Validity::Forever)
            }
            Node::StatusDir => {
                let names = self.catalog.status_names();
                let index = names.iter().position(|status| *status == text);
                let index = index.and_then(|index| u16::try_from(index).ok());
                (index.map(Node::Status), Validity::Forever)
            }
            Node::Images | Node::Name(_) => {
                let path = self.path_of(parent)?;
                return self.lookup_name(caller, &path, text);
            }
            _ => return Err(FsError::NotDirectory),
        };
        match node {
            Some(node) => self.entry(node, valid).map(Lookup::Found),
            None => Ok(Lookup::Absent(Validity::None)),
        }
    }

    fn lookup_name(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        parent: &str,
        name: &str,
    ) -> Result<Lookup, FsError> {
        let may_resolve = || {
            caller.uid == 0
                || caller.uid == self.options.owner.0
                || self.options.resolve_group.is_some_and(caller.in_group)
        };
        let path = names::join(parent, name);
        let target = match names::classify(parent, name) {
            Component::Nothing => None,
            // What is known needs no right to be seen.
            Component::Directory => {
                let known = self.catalog.directory(&path, false);
                let slot = known.or_else(|| {
                    may_resolve().then(|| self.catalog.directory(&path, true)).flatten()
                });
                slot.map(NameTarget::Directory)
            }
            Component::Image => {
                let may_resolve = may_resolve();
                match self.catalog.image(&path, may_resolve) {
                    NameLookup::Found(target) => Some(target),
                    NameLookup::Absent => None,
                    NameLookup::Resolve(future) if may_resolve => {
                        let fs = Arc::clone(self);
                        return Ok(Lookup::Wait(Box::pin(async move {
                            let slot = future.await?;
                            fs.entry(fs.chain_root(slot)?, Validity::Short)
                        })));
                    }
                    NameLookup::Resolve(_) => None,
                }
            }
        };
        match target {
            Some(target) => {
                let node = self.name_node(target)?;
                self.entry(node, Validity::Short).map(Lookup::Found)
            }
            None => Ok(Lookup::Absent(Validity::None)),
        }
    }

    pub(super) fn synthetic_attr(&self, node: Node) -> Result<(Attr, Validity), FsError> {
        let id = node.id();
        let changed = || self.catalog.changed();
        let directory = |mtime| directory_attr(id, self.options.owner, mtime);
        let leaf = |kind, mode, size| Attr { kind, mode, size, blocks: 0, ..directory(changed()) };
        match node {
            // Every path from here down asks for these to check permissions. The
            // kernel keeps a listing until its time changes, and is told to look.
            Node::Root | Node::Layers | Node::Chains | Node::Images => {
                Ok((directory(changed()), Validity::Short))
            }
            Node::Name(_) => {
                self.path_of(node)?;
                Ok((directory(changed()), Validity::Short))
            }
            Node::StatusDir => Ok((directory(Timestamp::default()), Validity::Forever)),
            Node::Status(index) => {
                let content = self.catalog.status(index).ok_or(FsError::Stale)?;
                let attr = leaf(Kind::File, 0o444, content.len() as u64);
                Ok((attr, Validity::None))
            }
            Node::LayerLink(slot) => {
                let name = self.catalog.layer_name(slot).ok_or(FsError::Stale)?;
                let attr = leaf(Kind::Symlink, 0o777, name.len() as u64);
                Ok((attr, Validity::Forever))
            }
            Node::Layer(..) | Node::Merged(..) | Node::Counted(..) => Err(FsError::Stale),
        }
    }

    pub(super) fn list_synthetic(
        &self,
        directory: Node,
        from: u64,
        with_attributes: bool,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let mut names: Vec<(u64, Vec<u8>, Node, Validity)> = self
            .synthetic_names(directory)?
            .into_iter()
            .map(|(name, node, valid)| (cookie(&name), name, node, valid))
            .filter(|(cookie, ..)| *cookie > from)
            .collect();
        names.sort();
        for (next, name, node, name_valid) in names {
            // A layer or image that has just gone, or can't be shown, must not
            // take the rest of the listing with it.
            let Ok(entry) = self.entry(node, name_valid) else {
                continue;
            };
            let full = emit(DirEntry {
                name: &name,
                id: entry.attr.id,
                kind: entry.attr.kind,
                next,
                entry: with_attributes.then_some(entry),
            });
            if full {
                break;
            }
        }
        Ok(())
    }

    fn synthetic_names(&self, node: Node) -> Result<Vec<(Vec<u8>, Node, Validity)>, FsError> {
        let forever = |(name, node): (String, Node)| (name.into_bytes(), node, Validity::Forever);
        Ok(match node {
            Node::Root => {
                TOP.iter().map(|(name, node)| (name.to_vec(), *node, Validity::Forever)).collect()
            }
            Node::Layers => {
                let names = self.catalog.layer_names().into_iter();
                names.map(|(name, layer)| forever((name, layer_node(layer)))).collect()
            }
            Node::Chains => {
                let names = self.catalog.chain_names().into_iter();
                names
                    .filter_map(|(name, slot)| Some(forever((name, self.chain_root(slot).ok()?))))
                    .collect()
            }
            Node::StatusDir => (0..)
                .zip(self.catalog.status_names())
                .map(|(index, name)| forever(((*name).to_owned(), Node::Status(index))))
                .collect(),
            Node::Images | Node::Name(_) => {
                let names = self.catalog.names(&self.path_of(node)?).into_iter();
                names
                    .filter_map(|(name, target)| {
                        let node = self.name_node(target).ok()?;
                        Some((name.into_bytes(), node, Validity::Short))
                    })
                    .collect()
            }
            _ => return Err(FsError::NotDirectory),
        })
    }

    /// All directories whose listing [`super::Catalog::changed`] is about: the
    /// kernel has to look at their times again when that changes.
    pub fn listings(&self) -> Vec<NodeId> {
        if !matches!(self.root, Root::Whole) {
            return Vec::new();
        }
        let mut found = vec![Node::Root.id(), Node::Layers.id(), Node::Chains.id()];
        let mut todo = vec![Node::Images];
        while let Some(directory) = todo.pop() {
            found.push(directory.id());
            let Ok(path) = self.path_of(directory) else { continue };
            for (_, target) in self.catalog.names(&path) {
                if let NameTarget::Directory(slot) = target {
                    todo.push(Node::Name(slot));
                }
            }
        }
        found
    }

    /// The path below `images/` of a directory of names.
    fn path_of(&self, node: Node) -> Result<Arc<str>, FsError> {
        match node {
            Node::Name(slot) => self.catalog.directory_path(slot).ok_or(FsError::Stale),
            _ => Ok(Arc::from("")),
        }
    }

    fn name_node(&self, target: NameTarget) -> Result<Node, FsError> {
        match target {
            NameTarget::Directory(slot) => Ok(Node::Name(slot)),
            NameTarget::Image(slot) => self.chain_root(slot),
        }
    }

    /// The number for `..` in a directory of names.
    pub(super) fn parent_of_name(&self, slot: Slot) -> NodeId {
        let parent = || {
            let path = self.catalog.directory_path(slot)?;
            let (parent, _) = path.rsplit_once('/')?;
            self.catalog.directory(parent, false)
        };
        parent().map_or(Node::Images, Node::Name).id()
    }
}

fn layer_node(name: LayerName) -> Node {
    match name {
        LayerName::Layer(slot) => Node::Layer(slot, NodeIx::ROOT),
        LayerName::Link(slot) => Node::LayerLink(slot),
    }
}

/// Where a listing goes on after a name: the same in every process, whatever
/// else has come or gone. Two names of one directory share a number as likely as
/// two hashes of 62 bits.
fn cookie(name: &[u8]) -> u64 {
    let hash = blake3::hash(name);
    let mut first = [0; 8];
    first.copy_from_slice(&hash.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 2).max(COOKIE_FIRST)
}
