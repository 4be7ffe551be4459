//! The file system: names, attributes and listings of everything that a mount
//! shows. Content is in [`files`](super::files).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::attr::{Attr, Entry, Kind, Validity};
use super::cache::WeightCache;
use super::catalog::{Catalog, LayerView, Usage};
use super::chain::Chain;
use super::error::FsError;
use super::files::Files;
use super::inode::{Node, NodeId, Slot};
use super::merge::{Directory, Found, Place, Stack, Target};
use super::stat::{kind_of, merged_attr, tree_attr};
use super::synthetic::STATUS_DIR;
use crate::blocks::BlockReader;
use crate::layer::tree::{NodeIx, NodeKind};

/// What the root of a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// `layers/`, `chains/`, `images/` and `.peersync/`.
    Whole,
    /// The view of one image, in this slot. `.peersync` can be looked up in it
    /// and is not listed.
    Image(Slot),
}

/// How a file system behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FsOptions {
    /// Besides root, members of this group may have images resolved.
    pub resolve_group: Option<u32>,
    /// Opaque directories in `layers/` also say so in the `user.` namespace: an
    /// overlay that an ordinary user mounts looks there.
    pub user_opaque: bool,
    /// Owner and group of what belongs to no layer.
    pub owner: (u32, u32),
}

/// Who asks.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    /// The user.
    pub uid: u32,
    /// Whether the caller is in a group, as its own or a supplementary one. Is
    /// asked only where it matters.
    pub in_group: &'a dyn Fn(u32) -> bool,
}

/// What comes of looking up a name.
pub enum Lookup {
    /// It is there.
    Found(Entry),
    /// It is not, for as long as this.
    Absent(Validity),
    /// An image has to be resolved first.
    Wait(LookupFuture),
}

/// A lookup that waits for an image.
pub type LookupFuture = Pin<Box<dyn Future<Output = Result<Entry, FsError>> + Send>>;

/// An entry of a listing.
pub struct DirEntry<'a> {
    /// The name.
    pub name: &'a [u8],
    /// The node's number.
    pub id: NodeId,
    /// The node's type.
    pub kind: Kind,
    /// Where a listing goes on after this entry.
    pub next: u64,
    /// All there is to know, if it was asked for; never for `.` and `..`.
    pub entry: Option<Entry>,
}

/// Chains kept ready at once, in bytes without their trees.
const CHAINS_WEIGHT: usize = 4 << 20;
/// Merged directories kept ready, in bytes. The 10,000 directories of a large
/// image take 2 MiB.
const DIRECTORIES_WEIGHT: usize = 12 << 20;

/// Longest name of a directory entry, in bytes, as `statfs` says.
const NAME_MAX: usize = 255;

/// Entries of a listing before its own: `.` and `..`.
const DOTS: u64 = 2;

/// A file system over a catalog and a reader. Stateless but for caches and open
/// files: any number that it once gave out can be asked for again.
pub struct FileSystem {
    pub(super) catalog: Arc<dyn Catalog>,
    pub(super) reader: Arc<dyn BlockReader>,
    pub(super) options: FsOptions,
    pub(super) files: Files,
    pub(super) root: Root,
    chains: WeightCache<Slot, Arc<Chain>>,
    directories: WeightCache<(Slot, Place), Arc<Directory>>,
}

/// A node that has been looked up in the layers.
pub(super) enum Resolved {
    /// In a layer; with the number of names if that is not the layer's.
    Layer(Arc<LayerView>, NodeIx, Option<u32>),
    Merged(Arc<Chain>, Arc<Directory>),
    /// Belongs to no layer.
    Synthetic(Node),
}

impl FileSystem {
    /// A file system with the given root.
    pub fn new(
        root: Root,
        catalog: Arc<dyn Catalog>,
        reader: Arc<dyn BlockReader>,
        options: FsOptions,
    ) -> Arc<Self> {
        Arc::new(Self {
            catalog,
            reader,
            options,
            files: Files::default(),
            root,
            chains: WeightCache::new(CHAINS_WEIGHT),
            directories: WeightCache::new(DIRECTORIES_WEIGHT),
        })
    }

    /// Looks up a name in a directory.
    ///
    /// # Errors
    /// [`FsError::NotDirectory`], [`FsError::Stale`], [`FsError::NameTooLong`]. An
    /// absent name is no error.
    pub fn lookup(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Lookup, FsError> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let found = match self.resolve(parent)? {
            Resolved::Layer(layer, ix, _) => {
                if layer.tree.kind(ix) != Some(NodeKind::Directory) {
                    return Err(FsError::NotDirectory);
                }
                match layer.tree.lookup(ix, name) {
                    Some(ix) => Node::Layer(layer.slot, ix),
                    None => return Ok(Lookup::Absent(Validity::Forever)),
                }
            }
            Resolved::Merged(chain, directory) => {
                return self.lookup_merged(&chain, &directory, parent, name);
            }
            Resolved::Synthetic(node) => return self.lookup_synthetic(caller, node, name),
        };
        self.entry(found, Validity::Forever).map(Lookup::Found)
    }

    /// The attributes of a node, and how long they hold.
    ///
    /// # Errors
    /// [`FsError::Stale`]
    pub fn attributes(&self, id: NodeId) -> Result<(Attr, Validity), FsError> {
        match self.resolve(id)? {
            Resolved::Layer(layer, ix, count) => {
                let attr = tree_attr(id, &layer.tree, ix, count).ok_or(FsError::Stale)?;
                Ok((attr, Validity::Forever))
            }
            Resolved::Merged(chain, directory) => {
                Ok((merged_attr(id, &chain, &directory), Validity::Forever))
            }
            Resolved::Synthetic(node) => self.synthetic_attr(node),
        }
    }

    /// Where a symbolic link points.
    ///
    /// # Errors
    /// [`FsError::NotSymlink`], [`FsError::Stale`]
    pub fn read_link(&self, id: NodeId) -> Result<Vec<u8>, FsError> {
        match self.resolve(id)? {
            Resolved::Layer(layer, ix, _) if layer.tree.kind(ix) == Some(NodeKind::Symlink) => {
                Ok(layer.tree.symlink_target(ix).to_vec())
            }
            Resolved::Synthetic(Node::LayerLink(slot)) => {
                let name = self.catalog.layer_name(slot).ok_or(FsError::Stale)?;
                Ok(name.into_bytes())
            }
            _ => Err(FsError::NotSymlink),
        }
    }

    /// Lists a directory from `offset` on (0: the beginning, else a
    /// [`DirEntry::next`]), until `emit` says that it is full by returning
    /// `true`. The order is stable, also across processes.
    ///
    /// # Errors
    /// [`FsError::NotDirectory`], [`FsError::Stale`]
    pub fn read_dir(
        &self,
        id: NodeId,
        offset: u64,
        with_attributes: bool,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let resolved = self.resolve(id)?;
        if let Resolved::Layer(layer, ix, _) = &resolved
            && layer.tree.kind(*ix) != Some(NodeKind::Directory)
        {
            return Err(FsError::NotDirectory);
        }
        for next in offset + 1..=DOTS {
            let (name, id): (&[u8], _) = match next {
                1 => (b".", id),
                _ => (b"..", self.parent_id(&resolved)),
            };
            let kind = Kind::Directory;
            let entry = None;
            if emit(DirEntry { name, id, kind, next, entry }) {
                return Ok(());
            }
        }
        let from = offset.max(DOTS);
        match resolved {
            Resolved::Layer(layer, ix, _) => {
                self.list_layer(&layer, ix, from, with_attributes, emit)
            }
            Resolved::Merged(chain, directory) => {
                self.list_merged(&chain, &directory, from, with_attributes, emit)
            }
            Resolved::Synthetic(node) => self.list_synthetic(node, from, with_attributes, emit),
        }
    }

    /// What `statfs` shows.
    pub fn usage(&self) -> Usage {
        self.catalog.usage()
    }

    pub(super) fn resolve(&self, id: NodeId) -> Result<Resolved, FsError> {
        let node = match (Node::decode(id), self.root) {
            (Some(Node::Root), Root::Image(slot)) => {
                let chain = self.chain(slot)?;
                let root = Arc::clone(chain.root());
                return Ok(Resolved::Merged(chain, root));
            }
            (node, _) => node.ok_or(FsError::Stale)?,
        };
        match node {
            Node::Layer(slot, ix) => {
                let layer = self.catalog.layer(slot).ok_or(FsError::Stale)?;
                match layer.tree.kind(ix) {
                    Some(_) => Ok(Resolved::Layer(layer, ix, None)),
                    None => Err(FsError::Stale),
                }
            }
            Node::Merged(slot, position, ix) => {
                let chain = self.chain(slot)?;
                let place = Place { position, ix };
                let directory = self.directory_at(&chain, place)?;
                Ok(Resolved::Merged(chain, directory))
            }
            Node::Counted(slot, position, ix) => {
                let chain = self.chain(slot)?;
                let place = Place { position, ix };
                let layer = chain.leaf_layer(place).ok_or(FsError::Stale)?;
                Ok(Resolved::Layer(Arc::clone(layer), ix, chain.count(place)))
            }
            node => Ok(Resolved::Synthetic(node)),
        }
    }

    pub(super) fn entry(&self, node: Node, name_valid: Validity) -> Result<Entry, FsError> {
        let (attr, attr_valid) = self.attributes(node.id())?;
        Ok(Entry { attr, name_valid, attr_valid })
    }

    pub(super) fn chain(&self, slot: Slot) -> Result<Arc<Chain>, FsError> {
        if let Some(chain) = self.chains.get(&slot) {
            return Ok(chain);
        }
        let view = self.catalog.chain(slot).ok_or(FsError::Stale)?;
        let chain = Arc::new(Chain::new(view).ok_or(FsError::Corrupt("too many layers"))?);
        let weight = chain.weight();
        self.chains.insert(slot, Arc::clone(&chain), weight);
        Ok(chain)
    }

    /// The root of an image's view or a chain.
    pub(super) fn chain_root(&self, slot: Slot) -> Result<Node, FsError> {
        let chain = self.chain(slot)?;
        let place = Chain::place_of(chain.root());
        Ok(Node::Merged(slot, place.position, place.ix))
    }

    fn directory_at(&self, chain: &Chain, place: Place) -> Result<Arc<Directory>, FsError> {
        if place == Chain::place_of(chain.root()) {
            return Ok(Arc::clone(chain.root()));
        }
        match self.directories.get(&(chain.slot(), place)) {
            Some(directory) => Ok(directory),
            None => Ok(self.keep(chain, chain.find(place).ok_or(FsError::Stale)?)),
        }
    }

    /// The directory made up of a stack, from the cache if it is there.
    fn directory_of(&self, chain: &Chain, stack: Stack) -> Arc<Directory> {
        let known = stack.top().and_then(|top| self.directories.get(&(chain.slot(), top)));
        match known {
            Some(directory) => directory,
            None => self.keep(chain, chain.layers().directory(stack)),
        }
    }

    fn keep(&self, chain: &Chain, directory: Directory) -> Arc<Directory> {
        let (key, weight) = ((chain.slot(), Chain::place_of(&directory)), directory.weight());
        let directory = Arc::new(directory);
        self.directories.insert(key, Arc::clone(&directory), weight);
        directory
    }

    fn lookup_merged(
        self: &Arc<Self>,
        chain: &Chain,
        directory: &Directory,
        parent: NodeId,
        name: &[u8],
    ) -> Result<Lookup, FsError> {
        match chain.layers().lookup(&directory.stack.places, name) {
            Found::Absent if parent == NodeId::ROOT && name == STATUS_DIR => {
                self.entry(Node::StatusDir, Validity::Forever).map(Lookup::Found)
            }
            Found::Absent => Ok(Lookup::Absent(Validity::Forever)),
            found => self.merged_entry(chain, found).map(Lookup::Found),
        }
    }

    fn merged_entry(&self, chain: &Chain, found: Found) -> Result<Entry, FsError> {
        let attr = match found {
            Found::Absent => return Err(FsError::NotFound),
            Found::Directory(stack) => {
                let directory = self.directory_of(chain, stack);
                let id = chain.id(Chain::place_of(&directory));
                merged_attr(id, chain, &directory)
            }
            Found::Leaf(place) => {
                let (node, count) = chain.leaf(place).ok_or(FsError::Stale)?;
                let layer = chain.leaf_layer(place).ok_or(FsError::Stale)?;
                tree_attr(node.id(), &layer.tree, place.ix, count).ok_or(FsError::Stale)?
            }
        };
        Ok(Entry { attr, name_valid: Validity::Forever, attr_valid: Validity::Forever })
    }

    fn list_layer(
        &self,
        layer: &LayerView,
        directory: NodeIx,
        from: u64,
        with_attributes: bool,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let tree = &layer.tree;
        for i in from - DOTS..u64::from(tree.entry_count(directory)) {
            let Some(entry) = u32::try_from(i).ok().and_then(|i| tree.entry(directory, i)) else {
                break;
            };
            let id = Node::Layer(layer.slot, entry.ix).id();
            let attr = tree_attr(id, tree, entry.ix, None).ok_or(FsError::Stale)?;
            let full = emit(DirEntry {
                name: entry.name,
                id,
                kind: attr.kind,
                next: i + DOTS + 1,
                entry: with_attributes.then_some(Entry {
                    attr,
                    name_valid: Validity::Forever,
                    attr_valid: Validity::Forever,
                }),
            });
            if full {
                break;
            }
        }
        Ok(())
    }

    fn list_merged(
        &self,
        chain: &Chain,
        directory: &Directory,
        from: u64,
        with_attributes: bool,
        emit: &mut dyn FnMut(DirEntry<'_>) -> bool,
    ) -> Result<(), FsError> {
        let layers = chain.layers();
        for i in from - DOTS..directory.len(layers) {
            let Some(listed) = directory.entry(layers, i) else {
                return Err(FsError::Stale);
            };
            let entry = match (with_attributes, listed.target) {
                (false, _) => None,
                (true, Target::Leaf(place)) => Some(self.merged_entry(chain, Found::Leaf(place))?),
                (true, Target::Directory(_)) => {
                    let found = layers.lookup(&directory.stack.places, listed.name);
                    Some(self.merged_entry(chain, found)?)
                }
            };
            let id = match listed.target {
                Target::Directory(place) => chain.id(place),
                Target::Leaf(place) => chain.leaf(place).ok_or(FsError::Stale)?.0.id(),
            };
            let full = emit(DirEntry {
                name: listed.name,
                id,
                kind: kind_of(listed.kind),
                next: i + DOTS + 1,
                entry,
            });
            if full {
                break;
            }
        }
        Ok(())
    }

    /// The number for `..` in a listing.
    fn parent_id(&self, resolved: &Resolved) -> NodeId {
        match resolved {
            Resolved::Layer(_, NodeIx::ROOT, _) => Node::Layers.id(),
            Resolved::Layer(layer, ix, _) => {
                let parent = layer.tree.parent(*ix).unwrap_or(NodeIx::ROOT);
                Node::Layer(layer.slot, parent).id()
            }
            Resolved::Merged(chain, directory) => match (chain.parent(directory), self.root) {
                (Some(place), Root::Image(slot))
                    if slot == chain.slot() && place == Chain::place_of(chain.root()) =>
                {
                    NodeId::ROOT
                }
                (Some(place), _) => chain.id(place),
                (None, Root::Image(_)) => NodeId::ROOT,
                (None, Root::Whole) => Node::Chains.id(),
            },
            Resolved::Synthetic(Node::Name(slot)) => self.parent_of_name(*slot),
            Resolved::Synthetic(_) => NodeId::ROOT,
        }
    }
}
