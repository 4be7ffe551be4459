//! A beacon: one datagram by which a node tells its LAN that it is there.
//!
//! Layout, integers big-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 4 | `PSB1` |
//! | 1 | flags: 1 asks all who hear it for a beacon of their own |
//! | 32 | the node's ed25519 public key, its name |
//! | 8 | sequence: higher in each beacon of the node, over restarts too |
//! | 4 | the IPv4 address that it is sent from |
//! | 2 | port of its tunnels |
//! | 1 | n, number of swarm keys, 1 to 8 |
//! | 64 | signature by the node over all above and [`DOMAIN`] |
//! | 32 n | for each swarm key, keyed BLAKE3 over all above |
//!
//! The keyed hash keeps strangers out and is checked first, so that they can't
//! make anybody check signatures; the signature keeps members from speaking for
//! each other. A beacon names the address that it is sent from, so that one that
//! was recorded elsewhere points nowhere, and never at a third party.

use std::net::{Ipv4Addr, SocketAddrV4};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::types::PeerId;

/// What a signature is for, so that it is good for nothing else.
pub const DOMAIN: &[u8] = b"peersync 2026 LAN beacon v1";
/// Longest beacon, in bytes.
pub const BEACON_MAX: usize = SIGNED + 64 + KEYS_MAX * 32;

const MAGIC: &[u8; 4] = b"PSB1";
const KEYS_MAX: usize = 8;
/// Bytes before the signature.
const SIGNED: usize = 4 + 1 + 32 + 8 + 4 + 2 + 1;
const ASKS: u8 = 1;

/// What a beacon says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beacon {
    /// Who is there.
    pub peer: PeerId,
    /// Higher than in any beacon of the node before.
    pub sequence: u64,
    /// Where it listens for tunnels.
    pub address: SocketAddrV4,
    /// Whether all who hear it should answer with their own.
    pub asks: bool,
}

/// What a swarm's key signs beacons with: derived from it for this purpose alone.
#[derive(Clone)]
pub struct BeaconKey([u8; 32]);

/// Why a datagram is no beacon to heed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BeaconError {
    /// Another protocol, another version, or damaged.
    #[error("not a beacon")]
    Malformed,
    /// It has none of our keys.
    #[error("of another swarm")]
    Stranger,
    /// A member that speaks for another.
    #[error("the signature is wrong")]
    Forged,
    /// It names another address than it came from.
    #[error("sent from another address than it names")]
    Elsewhere,
}

impl BeaconKey {
    /// From the secret bytes of a swarm key.
    pub fn new(swarm_key: &[u8; 32]) -> Self {
        Self(blake3::derive_key("peersync 2026 LAN beacon membership v1", swarm_key))
    }

    fn of(&self, bytes: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&self.0, bytes)
    }
}

impl Beacon {
    /// The datagram. `node` is the key of [`Beacon::peer`]; of more than eight
    /// swarm keys the first eight count.
    pub fn seal(&self, node: &SigningKey, keys: &[BeaconKey]) -> Vec<u8> {
        let keys = &keys[..keys.len().min(KEYS_MAX)];
        let mut bytes = Vec::with_capacity(BEACON_MAX);
        bytes.extend_from_slice(MAGIC);
        bytes.push(if self.asks { ASKS } else { 0 });
        bytes.extend_from_slice(&self.peer.0);
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes.extend_from_slice(&self.address.ip().octets());
        bytes.extend_from_slice(&self.address.port().to_be_bytes());
        bytes.push(keys.len() as u8);
        let signature = node.sign(&[DOMAIN, &bytes].concat());
        bytes.extend_from_slice(&signature.to_bytes());
        let proofs: Vec<u8> = keys.iter().flat_map(|key| *key.of(&bytes).as_bytes()).collect();
        bytes.extend_from_slice(&proofs);
        bytes
    }

    /// Reads a datagram that came from `from`.
    ///
    /// # Errors
    /// [`BeaconError`].
    pub fn open(bytes: &[u8], from: Ipv4Addr, keys: &[BeaconKey]) -> Result<Self, BeaconError> {
        let (head, rest) = bytes.split_at_checked(SIGNED).ok_or(BeaconError::Malformed)?;
        let count = usize::from(head[SIGNED - 1]);
        let (signature, proofs) = rest.split_at_checked(64).ok_or(BeaconError::Malformed)?;
        let whole = (1..=KEYS_MAX).contains(&count) && proofs.len() == count * 32;
        if &head[..4] != MAGIC || !whole {
            return Err(BeaconError::Malformed);
        }
        let vouched = &bytes[..SIGNED + 64];
        // All pairs are compared, whichever is right, each in constant time.
        let is_member = keys.iter().take(KEYS_MAX).fold(false, |is, key| {
            let expected = key.of(vouched);
            let proved = |proof: &[u8]| {
                <[u8; 32]>::try_from(proof).is_ok_and(|proof| expected == blake3::Hash::from(proof))
            };
            proofs.chunks(32).fold(is, |is, proof| is | proved(proof))
        });
        if !is_member {
            return Err(BeaconError::Stranger);
        }
        let beacon = Self::parse(head).ok_or(BeaconError::Malformed)?;
        let name = VerifyingKey::from_bytes(&beacon.peer.0).map_err(|_| BeaconError::Forged)?;
        let signature = Signature::from_slice(signature).map_err(|_| BeaconError::Forged)?;
        name.verify_strict(&[DOMAIN, head].concat(), &signature)
            .map_err(|_| BeaconError::Forged)?;
        let here = *beacon.address.ip() == from && !from.is_loopback() && !from.is_multicast();
        if here && beacon.address.port() != 0 { Ok(beacon) } else { Err(BeaconError::Elsewhere) }
    }

    fn parse(head: &[u8]) -> Option<Self> {
        let address: [u8; 4] = head[45..49].try_into().ok()?;
        let port = u16::from_be_bytes(head[49..51].try_into().ok()?);
        Some(Self {
            peer: PeerId(head[5..37].try_into().ok()?),
            sequence: u64::from_be_bytes(head[37..45].try_into().ok()?),
            address: SocketAddrV4::new(address.into(), port),
            asks: head[4] & ASKS != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 2);

    fn node(n: u8) -> SigningKey {
        SigningKey::from_bytes(&[n; 32])
    }

    fn keys(of: &[u8]) -> Vec<BeaconKey> {
        of.iter().map(|n| BeaconKey::new(&[*n; 32])).collect()
    }

    fn beacon(node: &SigningKey) -> Beacon {
        let peer = PeerId(node.verifying_key().to_bytes());
        let address = SocketAddrV4::new(FROM, 7400);
        Beacon { peer, sequence: 77, address, asks: true }
    }

    #[test]
    fn members_read_what_members_send_while_keys_change() {
        let node = node(1);
        let sealed = beacon(&node).seal(&node, &keys(&[5, 6]));
        for valid in [&[5][..], &[6], &[9, 6]] {
            assert_eq!(Beacon::open(&sealed, FROM, &keys(valid)), Ok(beacon(&node)));
        }
        assert_eq!(Beacon::open(&sealed, FROM, &keys(&[7])), Err(BeaconError::Stranger));
        assert_eq!(Beacon::open(&sealed, FROM, &[]), Err(BeaconError::Stranger));
        let all = beacon(&node).seal(&node, &keys(&[1, 2, 3, 4, 5, 6, 7, 8, 9]));
        assert_eq!(all.len(), BEACON_MAX);
        assert!(Beacon::open(&all, FROM, &keys(&[8])).is_ok());
    }

    #[test]
    fn a_member_can_not_speak_for_another() {
        let forged = beacon(&node(1)).seal(&node(2), &keys(&[5]));
        assert_eq!(Beacon::open(&forged, FROM, &keys(&[5])), Err(BeaconError::Forged));
    }

    #[test]
    fn a_beacon_points_to_its_sender_and_nowhere_else() {
        let node = node(1);
        let open = |address: Ipv4Addr, port, from| {
            let address = SocketAddrV4::new(address, port);
            let sealed = Beacon { address, ..beacon(&node) }.seal(&node, &keys(&[5]));
            Beacon::open(&sealed, from, &keys(&[5]))
        };
        let local = Ipv4Addr::LOCALHOST;
        let other = Ipv4Addr::new(10, 1, 0, 3);
        for (address, port, from) in
            [(FROM, 1, other), (other, 1, FROM), (FROM, 0, FROM), (local, 1, local)]
        {
            assert_eq!(open(address, port, from), Err(BeaconError::Elsewhere), "{address}:{port}");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_was_changed_is_believed(at in 0usize..BEACON_MAX, flip in 1u8..) {
            let node = node(1);
            let mut sealed = beacon(&node).seal(&node, &keys(&[5]));
            let at = at % sealed.len();
            sealed[at] ^= flip;
            prop_assert!(Beacon::open(&sealed, FROM, &keys(&[5])).is_err());
            sealed.truncate(at);
            prop_assert!(Beacon::open(&sealed, FROM, &keys(&[5])).is_err());
        }

        #[test]
        fn noise_is_no_beacon(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            prop_assert!(Beacon::open(&bytes, FROM, &keys(&[5])).is_err());
        }
    }
}
