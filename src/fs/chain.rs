//! A chain that is in use: its layers and what has been found out about them.

use std::sync::{Arc, OnceLock};

use super::catalog::{ChainView, LayerView};
use super::graft::{Grafts, path_of};
use super::inode::{Node, NodeId, Position, Slot};
use super::links::{LinkCounts, count_links};
use super::merge::{Directory, Found, Layers, Place};
use crate::layer::tree::{NodeIx, NodeKind, Tree};

pub(super) struct Chain {
    view: Arc<ChainView>,
    grafts: Grafts,
    counts: OnceLock<LinkCounts>,
    root: OnceLock<Arc<Directory>>,
}

impl Chain {
    /// `None` if it has more layers than numbers can tell apart.
    pub(super) fn new(view: Arc<ChainView>) -> Option<Self> {
        (view.layers.len() <= Position::LIMIT).then(|| Self {
            grafts: Grafts::find(&view.layers),
            view,
            counts: OnceLock::new(),
            root: OnceLock::new(),
        })
    }

    pub(super) fn slot(&self) -> Slot {
        self.view.slot
    }

    pub(super) fn layers(&self) -> Layers<'_> {
        Layers::new(&self.view.layers, &self.grafts)
    }

    pub(super) fn layers_tree(&self, position: Position) -> Option<&Tree> {
        self.layers().tree(position)
    }

    /// About how many bytes it takes in memory, its trees apart. What is found
    /// out later is allowed for.
    pub(super) fn weight(&self) -> usize {
        const LATER: usize = 16 << 10;
        LATER + size_of::<Self>() + 16 * self.view.layers.len()
    }

    pub(super) fn root(&self) -> &Arc<Directory> {
        self.root.get_or_init(|| {
            let layers = self.layers();
            Arc::new(layers.directory(layers.root()))
        })
    }

    /// The place by which a directory is numbered. An image without layers has
    /// a root nevertheless.
    pub(super) fn place_of(directory: &Directory) -> Place {
        directory.stack.top().unwrap_or(Place { position: Position::BOTTOM, ix: NodeIx::ROOT })
    }

    /// The directory at a place, found by its path: what a number says after
    /// everything else was forgotten.
    pub(super) fn find(&self, place: Place) -> Option<Directory> {
        let layers = self.layers();
        let path = path_of(layers.tree(place.position)?, place.ix);
        match layers.walk(&path, true) {
            Found::Directory(stack) if stack.top() == Some(place) => Some(layers.directory(stack)),
            _ => None,
        }
    }

    /// The number of the directory that a directory stands in; of the root, `None`.
    pub(super) fn parent(&self, directory: &Directory) -> Option<Place> {
        let layers = self.layers();
        let top = directory.stack.top()?;
        let mut path = path_of(layers.tree(top.position)?, top.ix);
        if path.is_empty() {
            return None;
        }
        path.truncate(path.iter().rposition(|b| *b == b'/').unwrap_or(0));
        match layers.walk(&path, true) {
            Found::Directory(stack) => stack.top(),
            _ => None,
        }
    }

    /// The number of names of a leaf if it is not that of its layer.
    pub(super) fn count(&self, place: Place) -> Option<u32> {
        let counts = self.counts.get_or_init(|| count_links(self.layers(), self.view.layers.len()));
        counts.get(&place).copied()
    }

    /// The node of a leaf, and its number of names if that is not its layer's.
    pub(super) fn leaf(&self, place: Place) -> Option<(Node, Option<u32>)> {
        let layer = self.view.layers.get(place.position.index())?;
        Some(match self.count(place) {
            None => (Node::Layer(layer.slot, place.ix), None),
            count => {
                let node = Node::Counted(self.view.content, place.position, place.ix);
                (node, count)
            }
        })
    }

    /// The layer of a place that may have come from outside, and is a leaf.
    pub(super) fn leaf_layer(&self, place: Place) -> Option<&Arc<LayerView>> {
        let layer = self.view.layers.get(place.position.index())?;
        let kind = layer.tree.kind(place.ix)?;
        (kind != NodeKind::Directory).then_some(layer)
    }

    /// The number of a directory of this chain.
    pub(super) fn id(&self, place: Place) -> NodeId {
        Node::Merged(self.slot(), place.position, place.ix).id()
    }
}
