//! The OCI digest of a blob, manifest or layer.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

use super::hex::{Hex, parse_32};

/// A SHA-256 digest as OCI writes it: `sha256:<64 hex>`.
///
/// Other algorithms are not accepted: registries in use serve SHA-256 only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Wraps the 32 raw bytes of a SHA-256 value.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The SHA-256 of `data`.
    pub fn of(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// The 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The 64 hexadecimal digits without the algorithm.
    pub fn hex(&self) -> String {
        Hex(&self.0).to_string()
    }

    /// `sha256-<hex>`: the form used as a file name, since a colon can't stand
    /// in overlayfs mount options.
    pub fn file_name(&self) -> String {
        format!("sha256-{}", Hex(&self.0))
    }

    /// Reads [`Digest::file_name`]'s form.
    pub fn from_file_name(name: &str) -> Option<Self> {
        name.strip_prefix("sha256-").and_then(parse_32).map(Self)
    }
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// An algorithm other than SHA-256.
    #[error("digest {0:?}: only sha256 is supported")]
    Algorithm(String),
    /// Not 64 lower-case hexadecimal digits.
    #[error("digest {0:?}: expected sha256: and 64 lower-case hexadecimal digits")]
    Malformed(String),
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        // A hostile text is quoted in the error: keep it short.
        let quoted = || text.chars().take(90).collect::<String>();
        match text.split_once(':') {
            Some(("sha256", hex)) => {
                parse_32(hex).map(Self).ok_or_else(|| DigestError::Malformed(quoted()))
            }
            Some(_) => Err(DigestError::Algorithm(quoted())),
            None => Err(DigestError::Malformed(quoted())),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", Hex(&self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a [`Digest`] over a stream.
#[derive(Clone, Default)]
pub struct DigestHasher(Sha256);

impl DigestHasher {
    /// Adds bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.0.update(data);
    }

    /// The digest of all bytes added.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }

    /// The state in the middle of a stream, to continue after a restart.
    /// The bytes are meant for our own disk only.
    pub fn save(&self) -> Vec<u8> {
        use sha2::digest::common::hazmat::SerializableState;
        self.0.serialize().to_vec()
    }

    /// Continues from [`DigestHasher::save`]; `None` if the bytes are not such a state.
    pub fn restore(state: &[u8]) -> Option<Self> {
        use sha2::digest::common::hazmat::{SerializableState, SerializedState};
        let state = SerializedState::<Sha256>::try_from(state).ok()?;
        Sha256::deserialize(&state).ok().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_it_prints_and_nothing_else() {
        let digest = Digest::of(b"peersync");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!(Digest::from_file_name(&digest.file_name()), Some(digest));
        for bad in ["", "sha256:", "sha256:AB", "sha512:00", "md5", &digest.hex()] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        let upper = format!("sha256:{}", digest.hex().to_uppercase());
        assert!(upper.parse::<Digest>().is_err());
    }

    #[test]
    fn a_saved_hasher_continues() {
        let mut hasher = DigestHasher::default();
        hasher.update(b"peer");
        let mut again = DigestHasher::restore(&hasher.save()).expect("own state");
        again.update(b"sync");
        assert_eq!(again.finish(), Digest::of(b"peersync"));
        assert!(DigestHasher::restore(b"short").is_none());
    }
}
