//! The seam to whoever knows which layers, chains and images there are.
//!
//! The file system asks; it never looks into a store or a registry. All calls
//! but a [`NameLookup::Resolve`] future answer from memory or the local store
//! and must not wait for a network.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use super::attr::Timestamp;
use super::inode::Slot;
use crate::layer::tree::Tree;

/// A layer that can be shown.
pub struct LayerView {
    /// Its slot.
    pub slot: Slot,
    /// Its name below `layers/`, for logs and links.
    pub name: String,
    /// Its tree.
    pub tree: Tree,
}

/// Layers stacked on one another: a chain, or the view of an image.
pub struct ChainView {
    /// The slot, by which its directories are numbered.
    pub slot: Slot,
    /// The slot by which those files are numbered that have their own number
    /// in this chain: `slot` itself for an entry of `chains/`, and the chain's
    /// slot for the views of images that consist of it.
    pub content: Slot,
    /// What it is called, for logs.
    pub name: String,
    /// Bottom first; at most [`Position::LIMIT`](super::Position::LIMIT).
    pub layers: Vec<Arc<LayerView>>,
}

/// What a name in `layers/` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerName {
    /// The layer of this diffID.
    Layer(Slot),
    /// A blob's digest: a symlink to the layer in this slot.
    Link(Slot),
}

/// What a name below `images/` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameTarget {
    /// A directory of names.
    Directory(Slot),
    /// An image: the slot of its view. Two names should not share one, nor two
    /// resolutions of one name that gave different images: the kernel knows one
    /// place for a directory.
    Image(Slot),
}

/// What comes of looking up a name below `images/`.
pub enum NameLookup {
    /// It is known.
    Found(NameTarget),
    /// There is no such name, or it is not known and may not be resolved.
    Absent,
    /// It has to be resolved first.
    Resolve(ResolveFuture),
}

/// The slot of an image's view, once it is resolved and can be shown.
pub type ResolveFuture = Pin<Box<dyn Future<Output = Result<Slot, ResolveError>> + Send>>;

/// Why a name was not resolved.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ResolveError {
    /// The registry does not have it.
    #[error("no such image")]
    NotFound,
    /// The registry refuses.
    #[error("the registry denies access")]
    Denied,
    /// No registry could be reached.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// It is there and can't be shown.
    #[error("unusable: {0}")]
    Unusable(String),
}

/// What `statfs` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content that can be seen, or that the store may hold.
    pub bytes: u64,
    /// Bytes that the store can still take.
    pub free: u64,
    /// Number of nodes that can be seen.
    pub nodes: u64,
}

/// A read that failed, for the log and `.peersync/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadFailure {
    /// The layer's name.
    pub layer: String,
    /// The file's path in the layer.
    pub path: String,
    /// First byte and number of bytes that were asked for.
    pub span: (u64, u32),
    /// Why.
    pub reason: String,
}

/// Which layers, chains and images there are.
pub trait Catalog: Send + Sync + 'static {
    /// The layer in a slot.
    fn layer(&self, slot: Slot) -> Option<Arc<LayerView>>;

    /// The chain or image view in a slot.
    fn chain(&self, slot: Slot) -> Option<Arc<ChainView>>;

    /// What a name in `layers/` leads to.
    fn layer_named(&self, name: &str) -> Option<LayerName>;

    /// The name in `layers/` of the layer in a slot.
    fn layer_name(&self, slot: Slot) -> Option<String>;

    /// All names in `layers/`, in any order.
    fn layer_names(&self) -> Vec<(String, LayerName)>;

    /// What a name in `chains/` leads to.
    fn chain_named(&self, name: &str) -> Option<Slot>;

    /// All names in `chains/`, in any order.
    fn chain_names(&self) -> Vec<(String, Slot)>;

    /// The path below `images/` of a directory of names, without slashes at
    /// its ends.
    fn directory_path(&self, slot: Slot) -> Option<Arc<str>>;

    /// The slot of the directory of names at a path below `images/`. Where it
    /// is the beginning of no known image, one is made only if `create` is set.
    /// The path has been checked for form.
    fn directory(&self, path: &str, create: bool) -> Option<Slot>;

    /// Looks up an image by its path below `images/`
    /// (`registry/repository:tag`). Only with `may_resolve` may the answer be
    /// [`NameLookup::Resolve`], or be sought anywhere but in the local store.
    fn image(&self, path: &str, may_resolve: bool) -> NameLookup;

    /// The known names in a directory below `images/` (the empty path:
    /// `images/` itself), in any order.
    fn names(&self, path: &str) -> Vec<(String, NameTarget)>;

    /// When any of the lists above last changed: the modification time of
    /// `layers/`, `chains/` and all directories of names. It must grow with
    /// every change, or the kernel goes on showing the old list.
    fn changed(&self) -> Timestamp;

    /// The names of the files in `.peersync/`. Their order is their number and
    /// must not change while a mount lives.
    fn status_names(&self) -> &[&'static str];

    /// The content of one of them, made now.
    fn status(&self, index: u16) -> Option<Vec<u8>>;

    /// What `statfs` shows.
    fn usage(&self) -> Usage;

    /// A read failed: to be logged, and shown in `.peersync/`.
    fn read_failed(&self, failure: ReadFailure) {
        let _ = failure;
    }
}
