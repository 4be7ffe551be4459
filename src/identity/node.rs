//! The node's key: its identity among peers, and what signs the indexes that are
//! built here.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

use crate::types::PeerId;

/// The file's name in the store's directory: 32 secret bytes.
const FILE: &str = "node.key";

/// The key of a node.
#[derive(Clone)]
pub struct NodeKey(SigningKey);

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("node key {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file is not a key.
    #[error("node key {0}: not 32 bytes long; remove it, and a new one is made")]
    Malformed(PathBuf),
    /// Others than its owner can read it.
    #[error("node key {0}: others can read it; chmod 600, or remove it for a new one")]
    Exposed(PathBuf),
}

impl NodeKey {
    /// Reads the key in the directory of the store, which the caller owns, or
    /// makes one on first start.
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn load_or_make(store: &Path) -> Result<Self, KeyError> {
        let path = store.join(FILE);
        let failed = |error| KeyError::Io { path: path.clone(), error };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Self::make(&path).map_err(failed);
            }
            Err(error) => return Err(failed(error)),
        };
        if file.metadata().map_err(failed)?.mode() & 0o077 != 0 {
            return Err(KeyError::Exposed(path));
        }
        let mut bytes = Vec::new();
        file.take(33).read_to_end(&mut bytes).map_err(failed)?;
        let secret: [u8; 32] = bytes.try_into().map_err(|_| KeyError::Malformed(path.clone()))?;
        Ok(Self::from_secret(&secret))
    }

    /// The key with these secret bytes.
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(secret))
    }

    /// The node's name.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.0.verifying_key().to_bytes())
    }

    /// The key itself, to sign with.
    pub fn signing_key(&self) -> &SigningKey {
        &self.0
    }

    fn make(path: &Path) -> io::Result<Self> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        match write(path, &secret) {
            Ok(()) => {}
            // A store that can't be written to is served all the same; the node
            // is another one after the next start.
            Err(error) if is_read_only(&error) => {}
            Err(error) => return Err(error),
        }
        Ok(Self::from_secret(&secret))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.peer_id())
    }
}

/// Under another name first: a key is there whole or not at all.
fn write(path: &Path, secret: &[u8; 32]) -> io::Result<()> {
    let new = path.with_extension("key.new");
    let _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(secret)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(parent) => File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn is_read_only(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::StorageFull
            | io::ErrorKind::PermissionDenied
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, metadata, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_is_secret() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join(FILE);
        let key = NodeKey::load_or_make(dir.path()).expect("made");
        let again = NodeKey::load_or_make(dir.path()).expect("read");
        assert_eq!(again.peer_id(), key.peer_id());
        assert_eq!(metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert!(!format!("{key:?}").contains(&format!("{:?}", key.0.to_bytes())));

        write(&path, b"short").expect("written");
        assert!(matches!(NodeKey::load_or_make(dir.path()), Err(KeyError::Malformed(_))));
        set_permissions(&path, Permissions::from_mode(0o640)).expect("changed");
        assert!(matches!(NodeKey::load_or_make(dir.path()), Err(KeyError::Exposed(_))));
    }

    #[test]
    fn a_name_that_was_left_by_a_crash_is_no_hindrance() {
        let dir = tempfile::tempdir().expect("directory");
        write(dir.path().join("node.key.new"), b"half").expect("written");
        let key = NodeKey::load_or_make(dir.path()).expect("made");
        let again = NodeKey::load_or_make(dir.path()).expect("read");
        assert_eq!(again.peer_id(), key.peer_id());
    }
}
