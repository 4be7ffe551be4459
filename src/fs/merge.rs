//! The merged view: layers stacked as if each had been unpacked over the ones
//! below it.
//!
//! Nothing is merged ahead of time. A merged directory is the short list of
//! layer directories that make it up, topmost first; a lookup asks them in
//! turn, and only a directory that several layers share has its listing laid
//! out. All functions here are pure: layers in, answers out.
//!
//! The rules, those of applying OCI layers one after the other:
//! - A whiteout hides the name in all layers below, and is not shown.
//! - An opaque directory hides what the layers below have *in* it, not the
//!   directory itself: where no entry describes it, its attributes are still
//!   those of the one below.
//! - Anything but a directory hides a directory below it, and the reverse.
//! - A directory that is named by no entry takes its attributes from below.
//!   Where the layers below have a symbolic link in its place, an unpacker goes
//!   through the link: the name shows the link, and the directory's content is
//!   found where it points (see [`Grafts`]).
//! - A hard link to a file that its layer does not have is that file of the
//!   layers below.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use super::catalog::LayerView;
use super::graft::Grafts;
use super::inode::Position;
use crate::layer::tree::{NodeIx, NodeKind, Tree};

/// A node of a chain: the layer's position and the node in its tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) ix: NodeIx,
}

/// What a name in a merged directory leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Absent,
    Directory(Stack),
    /// Anything else, at the place where it has its content and attributes.
    Leaf(Place),
}

/// The layer directories that make up a merged directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stack {
    /// Topmost first. Empty only for the root of a chain without layers.
    pub(super) places: Box<[Place]>,
    /// Whose attributes it has; `None` only if `places` is empty.
    pub(super) attributes: Option<Place>,
}

impl Stack {
    /// The place that names the directory.
    pub(super) fn top(&self) -> Option<Place> {
        self.places.first().copied()
    }
}

/// A merged directory, ready to be listed.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) stack: Stack,
    /// 2 and the number of subdirectories.
    pub(super) nlink: u32,
    listing: Listing,
}

#[derive(Debug)]
enum Listing {
    /// One layer, and all its entries show: the tree's own order serves.
    Plain,
    /// The entries that show, sorted by name.
    Merged(Box<[Item]>),
}

/// An entry of one of the stack's directories.
#[derive(Clone, Copy, Debug)]
struct Item {
    level: u16,
    entry: u32,
}

/// An entry of a merged directory's listing.
pub(super) struct Listed<'a> {
    pub(super) name: &'a [u8],
    pub(super) kind: NodeKind,
    pub(super) target: Target,
}

/// What a listing says of an entry: enough for its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The directory's topmost place.
    Directory(Place),
    Leaf(Place),
}

impl Directory {
    /// Bytes that the directory takes in memory.
    pub(super) fn weight(&self) -> usize {
        let listing = match &self.listing {
            Listing::Plain => 0,
            Listing::Merged(items) => size_of_val::<[Item]>(items),
        };
        size_of::<Self>() + size_of_val::<[Place]>(&self.stack.places) + listing + 64
    }

    /// Number of entries.
    pub(super) fn len(&self, layers: Layers<'_>) -> u64 {
        match (&self.listing, self.stack.top()) {
            (Listing::Merged(items), _) => items.len() as u64,
            (Listing::Plain, Some(top)) => {
                layers.tree(top.position).map_or(0, |t| u64::from(t.entry_count(top.ix)))
            }
            (Listing::Plain, None) => 0,
        }
    }

    /// Entry number `i` in the order of the names.
    pub(super) fn entry<'a>(&self, layers: Layers<'a>, i: u64) -> Option<Listed<'a>> {
        let item = match &self.listing {
            Listing::Plain => Item { level: 0, entry: u32::try_from(i).ok()? },
            Listing::Merged(items) => *items.get(usize::try_from(i).ok()?)?,
        };
        let level = usize::from(item.level);
        let place = *self.stack.places.get(level)?;
        let entry = layers.tree(place.position)?.entry(place.ix, item.entry)?;
        let here = Place { position: place.position, ix: entry.ix };
        let kind = layers.kind(here)?;
        let (kind, target) = if kind == NodeKind::Directory && layers.grafts.is_empty() {
            (kind, Target::Directory(here))
        } else {
            match layers.settle(&self.stack.places, level, entry.name, here) {
                Found::Absent => return None,
                Found::Leaf(leaf) => (layers.kind(leaf)?, Target::Leaf(leaf)),
                Found::Directory(stack) => (kind, Target::Directory(stack.top()?)),
            }
        };
        Some(Listed { name: entry.name, kind, target })
    }
}

/// The layers of a chain, bottom first, as far up as is looked at.
#[derive(Clone, Copy)]
pub(super) struct Layers<'a> {
    layers: &'a [Arc<LayerView>],
    grafts: &'a Grafts,
    /// Whether links out of a layer are looked up, or taken for absent.
    externals: bool,
}

/// Symbolic links followed in one walk, and links out of layers in one look-up.
const LINKS_MAX: usize = 40;
/// Components of a path that is walked.
const COMPONENTS_MAX: usize = 4096;

impl<'a> Layers<'a> {
    pub(super) fn new(layers: &'a [Arc<LayerView>], grafts: &'a Grafts) -> Self {
        Self { layers, grafts, externals: true }
    }

    pub(super) fn tree(self, position: Position) -> Option<&'a Tree> {
        self.layers.get(position.index()).map(|layer| &layer.tree)
    }

    pub(super) fn kind(self, place: Place) -> Option<NodeKind> {
        self.tree(place.position)?.kind(place.ix)
    }

    /// The layers below a position.
    pub(super) fn below(self, position: Position) -> Self {
        Self { layers: &self.layers[..position.index().min(self.layers.len())], ..self }
    }

    /// The root of the merged view.
    pub(super) fn root(self) -> Stack {
        let positions = (0..self.layers.len()).rev().filter_map(Position::new);
        self.pile(positions.map(|position| Place { position, ix: NodeIx::ROOT }))
    }

    /// What `name` is in the directory made up of `places`.
    pub(super) fn lookup(self, places: &[Place], name: &[u8]) -> Found {
        let first = |(level, place): (usize, &Place)| Some((level, self.entry(*place, name)?));
        match places.iter().enumerate().find_map(first) {
            Some((level, here)) => self.settle(places, level, name, here),
            None => Found::Absent,
        }
    }

    /// A directory with its listing.
    pub(super) fn directory(self, stack: Stack) -> Directory {
        let (subdirectories, listing) = match &*stack.places {
            [] => (0, Listing::Plain),
            [only] if self.grafts.is_empty() => self.list_one(*only, &stack),
            _ => self.list_all(&stack),
        };
        Directory { stack, nlink: subdirectories + 2, listing }
    }

    /// Walks a path from the root. Symbolic links on the way, and at its end if
    /// `follow` is set, are followed inside the root. Bounded in links and
    /// components.
    pub(super) fn walk(self, path: &[u8], follow: bool) -> Found {
        let mut todo: Vec<&[u8]> = components(path).rev().collect();
        let mut trail = vec![self.root()];
        let mut links = 0;
        for _ in 0..COMPONENTS_MAX {
            let Some(here) = trail.last() else { break };
            let Some(name) = todo.pop() else {
                return trail.pop().map_or(Found::Absent, Found::Directory);
            };
            if name == b".." {
                trail.truncate((trail.len() - 1).max(1));
                continue;
            }
            let leaf = match self.lookup(&here.places, name) {
                Found::Absent => return Found::Absent,
                Found::Directory(stack) => {
                    trail.push(stack);
                    continue;
                }
                Found::Leaf(leaf) => leaf,
            };
            match self.symlink(leaf) {
                Some(target) if follow || !todo.is_empty() => {
                    links += 1;
                    if links > LINKS_MAX || todo.len() > COMPONENTS_MAX {
                        break;
                    }
                    if target.first() == Some(&b'/') {
                        trail.truncate(1);
                    }
                    todo.extend(components(target).rev());
                }
                _ if todo.is_empty() => return Found::Leaf(leaf),
                _ => break,
            }
        }
        Found::Absent
    }

    /// The target of a symbolic link.
    fn symlink(self, place: Place) -> Option<&'a [u8]> {
        let tree = self.tree(place.position)?;
        (tree.kind(place.ix)? == NodeKind::Symlink).then(|| tree.symlink_target(place.ix))
    }

    /// The entry of a layer's directory. A directory that is grafted elsewhere
    /// is not at its own name.
    fn entry(self, directory: Place, name: &[u8]) -> Option<Place> {
        let place = Place {
            position: directory.position,
            ix: self.tree(directory.position)?.lookup(directory.ix, name)?,
        };
        (!self.grafts.has_source(place)).then_some(place)
    }

    /// What a name amounts to whose topmost entry is `here`, at `level` of the
    /// directory made up of `places`.
    fn settle(self, places: &[Place], level: usize, name: &[u8], here: Place) -> Found {
        match self.kind(here) {
            None | Some(NodeKind::Whiteout) => Found::Absent,
            Some(NodeKind::Directory) => Found::Directory(self.descend(places, level, name, here)),
            Some(NodeKind::ExternalLink) => self.external(here).map_or(Found::Absent, Found::Leaf),
            Some(_) => Found::Leaf(here),
        }
    }

    fn descend(self, parent: &[Place], level: usize, name: &[u8], here: Place) -> Stack {
        // Most directories stand in one layer only.
        if level + 1 == parent.len() && self.grafts.is_empty() {
            return Stack { places: Box::new([here]), attributes: Some(here) };
        }
        let entries = parent[level..].iter().filter_map(|place| self.entry(*place, name));
        self.pile(entries.take_while(|place| self.kind(*place) == Some(NodeKind::Directory)))
    }

    /// Puts directories of one path together, topmost first: those below an
    /// opaque one lend it nothing but attributes.
    fn pile(self, directories: impl Iterator<Item = Place>) -> Stack {
        if self.grafts.is_empty() {
            self.pile_sorted(directories)
        } else {
            let mut all: Vec<Place> = directories.collect();
            let mut next = 0;
            // Onto a graft there may be another one.
            while let Some(place) = all.get(next) {
                let grafts = self.grafts.onto(*place).iter();
                all.extend(grafts.filter(|g| g.position.index() < self.layers.len()));
                next += 1;
            }
            all.sort_by_key(|place| std::cmp::Reverse(place.position));
            self.pile_sorted(all.into_iter())
        }
    }

    fn pile_sorted(self, directories: impl Iterator<Item = Place>) -> Stack {
        let mut places = Vec::with_capacity(1);
        let (mut attributes, mut open) = (None, true);
        for here in directories {
            let Some(node) = self.tree(here.position).and_then(|t| t.node(here.ix)) else {
                continue;
            };
            if open {
                places.push(here);
            }
            if attributes.is_none() && !node.implicit {
                attributes = Some(here);
            }
            open &= !node.opaque;
            if !open && attributes.is_some() {
                break;
            }
        }
        Stack {
            attributes: attributes.or(places.first().copied()),
            places: places.into_boxed_slice(),
        }
    }

    /// The file that a hard link out of its layer means: the one at its target's
    /// path in the layers below, which may be such a link in turn.
    pub(super) fn external(self, mut link: Place) -> Option<Place> {
        if !self.externals {
            return None;
        }
        for _ in 0..LINKS_MAX {
            let path = self.tree(link.position)?.symlink_target(link.ix);
            let slash = path.iter().rposition(|b| *b == b'/');
            let (parent, name) =
                slash.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
            // The way there must not lead over such links again: that would be
            // recursion as deep as the image's author likes.
            let below = Self { externals: false, ..self.below(link.position) };
            let Found::Directory(parent) = below.walk(parent, true) else {
                return None;
            };
            let next = parent.places.iter().find_map(|p| below.entry(*p, name))?;
            match below.kind(next)? {
                NodeKind::ExternalLink => link = next,
                NodeKind::Directory | NodeKind::Whiteout => return None,
                _ => return Some(next),
            }
        }
        None
    }

    /// The entries of a directory that one layer alone makes up: the layer's
    /// own, if all of them show.
    fn list_one(self, only: Place, stack: &Stack) -> (u32, Listing) {
        let Some(tree) = self.tree(only.position) else {
            return (0, Listing::Merged(Box::new([])));
        };
        let mut subdirectories = 0;
        for entry in tree.entries(only.ix) {
            match tree.kind(entry.ix) {
                Some(NodeKind::Directory) => subdirectories += 1,
                None | Some(NodeKind::Whiteout | NodeKind::ExternalLink) => {
                    return self.list_all(stack);
                }
                Some(_) => (),
            }
        }
        (subdirectories, Listing::Plain)
    }

    /// The number of subdirectories, and all entries that show, by name.
    fn list_all(self, stack: &Stack) -> (u32, Listing) {
        let places = &stack.places;
        let entry = |level: u16, index| {
            let place = places[usize::from(level)];
            let entry = self.tree(place.position)?.entry(place.ix, index)?;
            let here = Place { position: place.position, ix: entry.ix };
            Some((entry.name, here))
        };
        let key = |level, index| entry(level, index).map(|e| Reverse((e.0, level, index)));
        // A chain has at most 2^10 layers, and few grafts.
        let levels = 0..u16::try_from(places.len()).unwrap_or(u16::MAX);
        let mut heap: BinaryHeap<_> = levels.filter_map(|level| key(level, 0)).collect();
        let (mut items, mut subdirectories) = (Vec::new(), 0);
        let mut decided: Option<&[u8]> = None;
        while let Some(Reverse((name, level, index))) = heap.pop() {
            heap.extend(key(level, index + 1));
            // Of one name the topmost comes first and decides.
            let Some((_, here)) = entry(level, index) else {
                continue;
            };
            if decided == Some(name) || self.grafts.has_source(here) {
                continue;
            }
            decided = Some(name);
            match self.settle(places, usize::from(level), name, here) {
                Found::Absent => continue,
                Found::Directory(_) => subdirectories += 1,
                Found::Leaf(_) => (),
            }
            items.push(Item { level, entry: index });
        }
        (subdirectories, Listing::Merged(items.into_boxed_slice()))
    }
}

/// The components of a path that mean something.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|b| *b == b'/').filter(|name| !matches!(*name, [] | b"."))
}
