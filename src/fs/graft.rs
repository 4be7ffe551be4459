//! Directories that show elsewhere than at their own path.
//!
//! A layer says `lib/x.so` without an entry for `lib`, and the layers below
//! have a symbolic link `lib -> usr/lib`. An unpacker writes through the link:
//! `lib` stays a link, and the file shows as `usr/lib/x.so`. (Where the layer
//! has an entry for the directory `lib`, that replaces the link.) Such a
//! directory is a *graft*: invisible at its own name, and one more layer of the
//! directory that the link leads to.
//!
//! They are rare, so they are looked for once for each chain.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::catalog::LayerView;
use super::inode::Position;
use super::merge::{Found, Layers, Place};
use crate::layer::tree::{NodeIx, NodeKind, Tree};

/// The grafts of a chain.
#[derive(Debug, Default)]
pub(super) struct Grafts {
    sources: HashSet<Place>,
    /// By the topmost place of the target as the layers below the graft have it.
    targets: HashMap<Place, Vec<Place>>,
}

impl Grafts {
    /// Looks for the grafts of a chain, layers bottom first. Time in proportion
    /// to the directories that a layer shares with those below it.
    pub(super) fn find(layers: &[Arc<LayerView>]) -> Self {
        let mut grafts = Self::default();
        for (index, layer) in layers.iter().enumerate().skip(1) {
            let Some(position) = Position::new(index) else {
                break;
            };
            if !has_implicit(&layer.tree) {
                continue;
            }
            let below = Layers::new(&layers[..index], &grafts);
            for (source, target) in search(&layer.tree, position, below) {
                grafts.sources.insert(source);
                grafts.targets.entry(target).or_default().push(source);
            }
        }
        grafts
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sources.is_empty()
    }

    /// Whether a directory shows elsewhere.
    pub(super) fn has_source(&self, place: Place) -> bool {
        !self.sources.is_empty() && self.sources.contains(&place)
    }

    /// What shows in a directory from elsewhere.
    pub(super) fn onto(&self, place: Place) -> &[Place] {
        self.targets.get(&place).map_or(&[], Vec::as_slice)
    }
}

fn has_implicit(tree: &Tree) -> bool {
    (1..tree.len()).any(|n| tree.node(NodeIx(n)).is_some_and(|node| node.implicit))
}

/// The grafts of one layer over those below it: (graft, target).
fn search(tree: &Tree, position: Position, below: Layers<'_>) -> Vec<(Place, Place)> {
    let mut grafts = Vec::new();
    // Only directories that exist below can lead to a link below.
    let mut todo = vec![(NodeIx::ROOT, below.root())];
    while let Some((directory, under)) = todo.pop() {
        for entry in tree.entries(directory) {
            if tree.kind(entry.ix) != Some(NodeKind::Directory) {
                continue;
            }
            match below.lookup(&under.places, entry.name) {
                Found::Directory(stack) => todo.push((entry.ix, stack)),
                Found::Leaf(leaf)
                    if below.kind(leaf) == Some(NodeKind::Symlink)
                        && tree.node(entry.ix).is_some_and(|node| node.implicit) =>
                {
                    let target = below.walk(&path_of(tree, entry.ix), true);
                    if let Found::Directory(stack) = target
                        && let Some(top) = stack.top()
                    {
                        let ix = entry.ix;
                        grafts.push((Place { position, ix }, top));
                        todo.push((ix, stack));
                    }
                }
                _ => (),
            }
        }
    }
    grafts
}

/// The path of a directory in its layer, from the root, without a slash in
/// front.
pub(super) fn path_of(tree: &Tree, directory: NodeIx) -> Vec<u8> {
    let mut names = Vec::new();
    let mut at = directory;
    // A tree has no cycles; the bound only spares us to rely on it.
    for _ in 0..tree.len() {
        match tree.parent(at) {
            Some(parent) if parent != at => {
                names.push(tree.name_of(at));
                at = parent;
            }
            _ => break,
        }
    }
    names.reverse();
    names.join(&b'/')
}
