//! The first message: who speaks, what it can, and that it is of the swarm.

use super::codec::{Reader, WireError, push_text};
use crate::types::PeerId;

/// The protocol's version. Nodes of one version understand each other; what is
/// new within it is announced as [`Features`].
pub const VERSION: u16 = 1;
/// Most proofs in a hello: one for each swarm key that the node has.
pub const PROOFS_MAX: usize = 8;
/// Longest text of a zone or agent, in bytes.
const TEXT_MAX: usize = 64;

/// What a node can do beyond the version's base, as bits. Unknown bits are kept
/// and mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// Serves items of first passes.
    pub const PASSES: Self = Self(1);
    /// Serves blocks compressed.
    pub const ZSTD: Self = Self(1 << 1);
    /// All that this version of the program knows.
    pub const ALL: Self = Self(0b11);

    /// Whether all of `other` are in it.
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both can.
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// Where a node stands, as far as somebody has told it; empty texts are unknown.
/// Each is at most 64 bytes on the wire.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Zone {
    /// ISO country code.
    pub country: String,
    /// Internet provider.
    pub isp: String,
    /// State or region.
    pub state: String,
    /// City.
    pub city: String,
}

/// What a node lets a tunnel ask of it before it answers busy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Requests that wait or are being answered.
    pub requests: u16,
    /// Bytes of content in them.
    pub bytes: u32,
}

/// A proof of membership: see [`Binding`].
pub type Proof = [u8; 32];

/// Which end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Opened it.
    Caller,
    /// Accepted it.
    Listener,
}

/// What a proof of membership is bound to: this very connection, both nodes and
/// who of them proves.
///
/// The exporter of TLS 1.3 covers the handshake up to the listener's end only,
/// so the caller's key has to be named besides; and were the prover's role not
/// in it, a proof could be sent back to whoever made it.
#[derive(Clone, Copy, Debug)]
pub struct Binding {
    /// 32 bytes of keying material exported from the connection.
    pub exporter: [u8; 32],
    /// Who opened the connection.
    pub caller: PeerId,
    /// Who accepted it.
    pub listener: PeerId,
    /// Who proves.
    pub prover: Role,
}

impl Binding {
    /// Label under which the exporter's bytes are drawn; the context is empty.
    pub const LABEL: &'static [u8] = b"EXPORTER-peersync-swarm-v1";

    /// The proof that the prover has the key: keyed BLAKE3 over exporter, caller,
    /// listener and role, under a key derived from the swarm key for this purpose.
    pub fn proof(&self, swarm_key: &[u8; 32]) -> Proof {
        let key = blake3::derive_key("peersync 2026 swarm membership v1", swarm_key);
        let mut mac = blake3::Hasher::new_keyed(&key);
        mac.update(&self.exporter).update(&self.caller.0).update(&self.listener.0);
        mac.update(&[self.prover as u8]);
        mac.finalize().into()
    }

    /// Whether one of the proofs is that of the key. Takes as long whichever
    /// bytes differ.
    pub fn is_proved(&self, swarm_key: &[u8; 32], proofs: &[Proof]) -> bool {
        let expected = blake3::Hash::from(self.proof(swarm_key));
        // No short cut, and the comparison of BLAKE3 values takes constant time.
        proofs.iter().fold(false, |found, proof| found | (expected == blake3::Hash::from(*proof)))
    }
}

/// The first message each way. The listener's comes only after the caller has
/// proved itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// What the node can.
    pub features: Features,
    /// One proof for each swarm key that it has; at most [`PROOFS_MAX`].
    pub proofs: Vec<Proof>,
    /// Where it is.
    pub zone: Zone,
    /// Port on which it listens for tunnels; 0: it doesn't.
    pub port: u16,
    /// What it takes on.
    pub limits: Limits,
    /// The program and its version, for logs; at most 64 bytes.
    pub agent: String,
}

/// Nodes that don't speak the same version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer speaks version {0} of the protocol, not {VERSION}")]
pub struct VersionError(pub u16);

impl Hello {
    /// The version that a hello begins with; it stands first in all versions.
    ///
    /// # Errors
    /// [`VersionError`] if it is another one, or there is none.
    pub fn check_version(body: &[u8]) -> Result<(), VersionError> {
        let version = Reader(body).u16().unwrap_or(0);
        if version == VERSION { Ok(()) } else { Err(VersionError(version)) }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(VERSION.to_le_bytes());
        out.extend(self.features.0.to_le_bytes());
        let proofs = &self.proofs[..self.proofs.len().min(PROOFS_MAX)];
        out.push(proofs.len() as u8);
        proofs.iter().for_each(|proof| out.extend(proof));
        let Zone { country, isp, state, city } = &self.zone;
        for text in [country, isp, state, city] {
            push_text(out, text, TEXT_MAX);
        }
        out.extend(self.port.to_le_bytes());
        out.extend(self.limits.requests.to_le_bytes());
        out.extend(self.limits.bytes.to_le_bytes());
        push_text(out, &self.agent, TEXT_MAX);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        if reader.u16()? != VERSION {
            return Err(WireError::Invalid("another version of the protocol"));
        }
        let features = Features(reader.u64()?);
        let count = usize::from(reader.u8()?);
        if count > PROOFS_MAX {
            return Err(WireError::TooMany("proofs"));
        }
        let proofs = (0..count).map(|_| reader.array()).collect::<Result<_, _>>()?;
        let zone = Zone {
            country: reader.text(TEXT_MAX)?,
            isp: reader.text(TEXT_MAX)?,
            state: reader.text(TEXT_MAX)?,
            city: reader.text(TEXT_MAX)?,
        };
        let port = reader.u16()?;
        let limits = Limits { requests: reader.u16()?, bytes: reader.u32()? };
        Ok(Self { features, proofs, zone, port, limits, agent: reader.text(TEXT_MAX)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding() -> Binding {
        Binding {
            exporter: [1; 32],
            caller: PeerId([2; 32]),
            listener: PeerId([3; 32]),
            prover: Role::Caller,
        }
    }

    #[test]
    fn a_proof_holds_for_one_connection_one_role_and_one_key() {
        let (key, here) = ([7; 32], binding());
        let proof = here.proof(&key);
        assert!(here.is_proved(&key, &[[0; 32], proof]));
        assert!(!here.is_proved(&key, &[]));
        assert!(!here.is_proved(&[8; 32], &[proof]));
        let others = [
            Binding { exporter: [9; 32], ..here },
            Binding { caller: PeerId([9; 32]), ..here },
            Binding { listener: PeerId([9; 32]), ..here },
            Binding { prover: Role::Listener, ..here },
        ];
        assert!(others.iter().all(|other| !other.is_proved(&key, &[proof])));
    }
}
