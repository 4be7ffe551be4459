//! Extended attributes.

use super::error::FsError;
use super::filesystem::{FileSystem, Resolved};
use super::inode::NodeId;
use crate::layer::tree::{NodeIx, Tree};

const OPAQUE_TRUSTED: &[u8] = b"trusted.overlay.opaque";
const OPAQUE_USER: &[u8] = b"user.overlay.opaque";
const OPAQUE_VALUE: &[u8] = b"y";

impl FileSystem {
    /// The value of an attribute.
    ///
    /// # Errors
    /// [`FsError::NoAttribute`], [`FsError::Stale`]
    pub fn xattr(&self, id: NodeId, name: &[u8]) -> Result<Vec<u8>, FsError> {
        let resolved = self.resolve(id)?;
        if self.opaque_names(&resolved).contains(&name) {
            return Ok(OPAQUE_VALUE.to_vec());
        }
        let (tree, ix) = xattr_source(&resolved).ok_or(FsError::NoAttribute)?;
        if is_overlays(name) {
            return Err(FsError::NoAttribute);
        }
        let value = tree.xattrs(ix).find(|(own, _)| *own == name);
        value.map(|(_, value)| value.to_vec()).ok_or(FsError::NoAttribute)
    }

    /// The names of all attributes that the caller may know of, each with a NUL
    /// behind it. As on other file systems, those in `trusted.` are for root
    /// only.
    ///
    /// # Errors
    /// [`FsError::Stale`]
    pub fn xattr_names(&self, id: NodeId, privileged: bool) -> Result<Vec<u8>, FsError> {
        let resolved = self.resolve(id)?;
        let own = xattr_source(&resolved)
            .into_iter()
            .flat_map(|(tree, ix)| tree.xattrs(ix).map(|(name, _)| name))
            .filter(|name| !is_overlays(name));
        let opaque = self.opaque_names(&resolved).iter().copied();
        let mut names = Vec::new();
        for name in opaque.chain(own) {
            if privileged || !name.starts_with(b"trusted.") {
                names.extend_from_slice(name);
                names.push(0);
            }
        }
        Ok(names)
    }

    /// How an opaque directory of a single layer says so to overlayfs. In a
    /// merged view that has had its effect already.
    fn opaque_names(&self, resolved: &Resolved) -> &'static [&'static [u8]] {
        match resolved {
            Resolved::Layer(layer, ix, _) if layer.tree.node(*ix).is_some_and(|n| n.opaque) => {
                match self.options.user_opaque {
                    true => &[OPAQUE_TRUSTED, OPAQUE_USER],
                    false => &[OPAQUE_TRUSTED],
                }
            }
            _ => &[],
        }
    }
}

/// Whether overlayfs takes the attribute for its own. One that stands in an image
/// would redirect or hide what an overlay on the mount shows. Our own builder
/// drops them; a tree that came from elsewhere may not have been made by it.
fn is_overlays(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

fn xattr_source(resolved: &Resolved) -> Option<(&Tree, NodeIx)> {
    match resolved {
        Resolved::Layer(layer, ix, _) => Some((&layer.tree, *ix)),
        Resolved::Merged(chain, directory) => {
            let source = directory.stack.attributes?;
            Some((chain.layers_tree(source.position)?, source.ix))
        }
        Resolved::Synthetic(_) => None,
    }
}
