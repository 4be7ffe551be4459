//! The swarm's keys.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::types::Hex;

/// Most keys that are valid at once.
pub const SWARM_KEYS_MAX: usize = 8;
/// What a key in a file begins with.
const PREFIX: &str = "peersync-swarm-1:";
/// Longest key file, in bytes.
const FILE_MAX: u64 = 16 << 10;

/// A secret that the nodes of a swarm share: 256 random bits.
#[derive(Clone, PartialEq, Eq)]
pub struct SwarmKey([u8; 32]);

/// Keys that are valid at the same time; the first is the newest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwarmKeys(Vec<SwarmKey>);

/// Why there are no keys.
#[derive(Debug, thiserror::Error)]
pub enum SwarmKeyError {
    /// The file can't be read.
    #[error("swarm key {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// Anybody can read the file.
    #[error("swarm key {0}: everybody can read it; chmod 600")]
    Exposed(PathBuf),
    /// A line that is not a key. It is not quoted: it may be a damaged secret.
    #[error("line {line} is not a swarm key: {PREFIX} and 64 lower-case hexadecimal digits")]
    Malformed {
        /// Its number, from 1.
        line: usize,
    },
    /// No key in it.
    #[error("there is no swarm key in it")]
    Empty,
    /// Too many.
    #[error("more than {SWARM_KEYS_MAX} swarm keys")]
    TooMany,
    /// The system has no random numbers.
    #[error("no random numbers: {0}")]
    Random(String),
}

impl SwarmKey {
    /// A new key.
    ///
    /// # Errors
    /// [`SwarmKeyError::Random`].
    pub fn generate() -> Result<Self, SwarmKeyError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|e| SwarmKeyError::Random(e.to_string()))?;
        Ok(Self(secret))
    }

    /// The key with these secret bytes.
    pub const fn from_secret(secret: [u8; 32]) -> Self {
        Self(secret)
    }

    /// The secret bytes.
    pub const fn secret(&self) -> &[u8; 32] {
        &self.0
    }

    /// Writes a key file that only its owner can read, where there is none yet.
    ///
    /// # Errors
    /// [`SwarmKeyError::Io`].
    pub fn write_new(&self, path: &Path) -> Result<(), SwarmKeyError> {
        let write = || {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
            writeln!(file, "{}", self.to_line())?;
            file.sync_all()
        };
        write().map_err(|error| SwarmKeyError::Io { path: path.to_owned(), error })
    }

    /// The key as a line of a key file: a secret.
    pub fn to_line(&self) -> String {
        format!("{PREFIX}{}", Hex(&self.0))
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(..)")
    }
}

impl SwarmKeys {
    /// These keys.
    ///
    /// # Errors
    /// [`SwarmKeyError::TooMany`].
    pub fn new(keys: impl IntoIterator<Item = SwarmKey>) -> Result<Self, SwarmKeyError> {
        let keys: Vec<_> = keys.into_iter().take(SWARM_KEYS_MAX + 1).collect();
        if keys.len() > SWARM_KEYS_MAX { Err(SwarmKeyError::TooMany) } else { Ok(Self(keys)) }
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`SwarmKeyError`].
    pub fn load(path: &Path) -> Result<Self, SwarmKeyError> {
        let failed = |error| SwarmKeyError::Io { path: path.to_owned(), error };
        let mut text = String::new();
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.mode() & 0o007 != 0 {
            return Err(SwarmKeyError::Exposed(path.to_owned()));
        }
        file.take(FILE_MAX).read_to_string(&mut text).map_err(failed)?;
        text.parse()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &SwarmKey> {
        self.0.iter()
    }
}

impl FromStr for SwarmKeys {
    type Err = SwarmKeyError;

    /// One key a line; blank lines and what follows a `#` are comments.
    fn from_str(text: &str) -> Result<Self, SwarmKeyError> {
        let mut keys = Vec::new();
        for (line, n) in text.lines().zip(1..) {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let hex = line.strip_prefix(PREFIX).filter(|hex| hex.len() == 64);
            let key = hex.and_then(parse).ok_or(SwarmKeyError::Malformed { line: n })?;
            keys.push(key);
        }
        if keys.is_empty() { Err(SwarmKeyError::Empty) } else { Self::new(keys) }
    }
}

fn parse(hex: &str) -> Option<SwarmKey> {
    // The words of `types` parse 64 digits alike.
    let name: crate::types::BlockHash = hex.parse().ok()?;
    Some(SwarmKey(*name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_keys_is_read_in_order() {
        let keys = [1u8, 2].map(|n| SwarmKey::from_secret([n; 32]));
        let text = format!("# new\n{} # home\n\n  {}\n", keys[0].to_line(), keys[1].to_line());
        let read: SwarmKeys = text.parse().expect("keys");
        assert!(read.iter().eq(&keys));
        assert!(!format!("{read:?}").contains("0101"));
    }

    #[test]
    fn a_key_file_is_its_owners_and_is_not_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("swarm.key");
        let key = SwarmKey::generate().expect("random");
        key.write_new(&path).expect("written");
        let mode = std::fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(SwarmKeys::load(&path).expect("keys").iter().eq([&key]));
        assert!(matches!(key.write_new(&path), Err(SwarmKeyError::Io { .. })));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).expect("changed");
        assert!(matches!(SwarmKeys::load(&path), Err(SwarmKeyError::Exposed(_))));
    }

    #[test]
    fn what_is_no_key_is_an_error_that_keeps_the_secret() {
        let key = SwarmKey::generate().expect("random");
        let line = key.to_line();
        let bad = ["", "# nothing\n", &line[1..], &line[..line.len() - 1], &line.to_uppercase()];
        for text in bad {
            let error = text.parse::<SwarmKeys>().expect_err(text).to_string();
            assert!(!error.contains(&line[30..40]), "{error}");
        }
        let many = format!("{line}\n").repeat(SWARM_KEYS_MAX + 1);
        assert!(matches!(many.parse::<SwarmKeys>(), Err(SwarmKeyError::TooMany)));
    }
}
