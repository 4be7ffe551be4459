//! The node's key: it signs the indexes that are built here.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;

/// The file's name in the store's directory: 32 secret bytes.
const FILE: &str = "node.key";

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
}

/// Reads the key of the store's owner, or makes one on first start.
///
/// # Errors
/// [`KeyError`].
pub(super) fn load_or_make(store: &Path) -> Result<SigningKey, KeyError> {
    let path = store.join(FILE);
    let failed = |error| KeyError::Io { path: path.clone(), error };
    match OpenOptions::new().read(true).open(&path) {
        Ok(file) => {
            let mut bytes = Vec::new();
            file.take(33).read_to_end(&mut bytes).map_err(failed)?;
            let secret: [u8; 32] =
                bytes.try_into().map_err(|_| KeyError::Malformed(path.clone()))?;
            Ok(SigningKey::from_bytes(&secret))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let mut secret = [0; 32];
            getrandom::fill(&mut secret).map_err(|error| failed(io::Error::other(error)))?;
            match write(&path, &secret) {
                Ok(()) => {}
                // A store that can't be written to is served all the same.
                Err(error) if is_read_only(&error) => {}
                Err(error) => return Err(failed(error)),
            }
            Ok(SigningKey::from_bytes(&secret))
        }
        Err(error) => Err(failed(error)),
    }
}

/// Under another name first: a key is there whole or not at all.
fn write(path: &Path, secret: &[u8; 32]) -> io::Result<()> {
    let new = path.with_extension("key.new");
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(secret)?;
    file.sync_all()?;
    std::fs::rename(&new, path)
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
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_is_made_once_and_is_secret() {
        let dir = tempfile::tempdir().expect("directory");
        let key = load_or_make(dir.path()).expect("made");
        assert_eq!(load_or_make(dir.path()).expect("read").to_bytes(), key.to_bytes());
        let mode = std::fs::metadata(dir.path().join(FILE)).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(dir.path().join(FILE), b"short").expect("written");
        assert!(matches!(load_or_make(dir.path()), Err(KeyError::Malformed(_))));
    }
}
