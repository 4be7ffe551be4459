//! Nodes.

use std::fmt;
use std::str::FromStr;

use super::block::Mismatch;
use super::hex::{Hex, parse_32};

/// A node's name: its ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer:{}", Hex(&self.0[..4]))
    }
}

impl FromStr for PeerId {
    type Err = Mismatch;

    fn from_str(text: &str) -> Result<Self, Mismatch> {
        parse_32(text).map(Self).ok_or(Mismatch)
    }
}
