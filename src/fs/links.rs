//! Hard links across layers: which files have another number of names in a
//! merged view than in their layer.
//!
//! A layer above may hide one of a file's names, or add one (a hard link out of
//! the layer). The number of names is an attribute of the inode, so such a file
//! is an inode of the chain.

use std::collections::{HashMap, HashSet};

use super::inode::Position;
use super::merge::{Layers, Place, Target};
use crate::layer::tree::{Node, NodeIx, NodeKind, Tree};

/// The number of names in the chain of those files that have another number in
/// their layer.
pub(super) type LinkCounts = HashMap<Place, u32>;

/// Counts the names in a chain of `count` layers. Walks the whole view once if
/// any file below the top layer has several names, or a name from above; else
/// only looks through the trees' nodes.
pub(super) fn count_links(layers: Layers<'_>, count: usize) -> LinkCounts {
    let mut counts = HashMap::new();
    let trees = || {
        (0..count).filter_map(|index| {
            let position = Position::new(index)?;
            Some((position, layers.tree(position)?))
        })
    };
    let mut outside = HashSet::new();
    for (position, tree) in trees().skip(1) {
        for ix in nodes(tree).filter(|ix| tree.kind(*ix) == Some(NodeKind::ExternalLink)) {
            outside.extend(layers.external(Place { position, ix }));
        }
    }
    let shared = |tree: &Tree| nodes(tree).any(|ix| tree.node(ix).is_some_and(several_names));
    if outside.is_empty() && !trees().take(count.saturating_sub(1)).any(|(_, t)| shared(t)) {
        return counts;
    }

    let mut todo = vec![layers.root()];
    while let Some(stack) = todo.pop() {
        let directory = layers.directory(stack);
        for i in 0..directory.len(layers) {
            let Some(entry) = directory.entry(layers, i) else {
                continue;
            };
            match entry.target {
                Target::Directory(_) => {
                    if let super::merge::Found::Directory(stack) =
                        layers.lookup(&directory.stack.places, entry.name)
                    {
                        todo.push(stack);
                    }
                }
                Target::Leaf(place) => {
                    let node = layers.tree(place.position).and_then(|t| t.node(place.ix));
                    if node.is_some_and(several_names) || outside.contains(&place) {
                        *counts.entry(place).or_insert(0) += 1;
                    }
                }
            }
        }
    }
    counts.retain(|place, count| {
        let own = layers.tree(place.position).and_then(|t| t.node(place.ix));
        own.is_none_or(|node| node.nlink != *count)
    });
    counts
}

fn nodes(tree: &Tree) -> impl Iterator<Item = NodeIx> + '_ {
    (0..tree.len()).map(NodeIx)
}

fn several_names(node: Node) -> bool {
    node.kind != NodeKind::Directory && node.nlink > 1
}
