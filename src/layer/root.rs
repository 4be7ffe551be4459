//! `LayerRoot`: what a layer blob is, and the names of its index parts, signed.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::types::{Digest, ObjectId};

const MAGIC: &[u8; 8] = b"PSYNCrot";
const VERSION: u32 = 1;
/// Longest media type, in bytes.
const MEDIA_TYPE_MAX: usize = 255;
/// Longest path of a raw layer's file, in bytes.
const PATH_MAX: usize = 4096;
/// Keeps a signature from meaning anything else.
const DOMAIN: &[u8] = b"peersync layer root v1\0";

/// One part of an index, itself an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PartRef {
    /// Its object.
    pub id: ObjectId,
    /// Its length in bytes.
    pub length: u64,
}

/// The four parts of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Parts {
    /// Names and attributes. Canonical.
    pub tree: PartRef,
    /// Block lists. Canonical.
    pub blocks: PartRef,
    /// Points at which the blob can be entered.
    pub seek: PartRef,
    /// All bytes of the stream that are not file content, and the layout.
    pub skeleton: PartRef,
}

/// What a layer blob is and what its index consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRoot {
    /// The blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub blob_size: u64,
    /// Its media type, at most 255 bytes.
    pub media_type: String,
    /// Digest of the uncompressed stream; of the blob itself for a raw one.
    pub diff_id: Digest,
    /// Length of the uncompressed stream in bytes.
    pub stream_length: u64,
    /// For a raw blob: the path of the one file that it is, at most 4096 bytes.
    pub path: Option<Vec<u8>>,
    /// The index.
    pub parts: Parts,
    /// Who built the index: an ed25519 public key.
    pub builder: [u8; 32],
    /// The builder's signature over all of the above.
    pub signature: [u8; 64],
}

/// Why bytes are not a root that can be believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Not our format, or cut off, or something follows.
    #[error("the layer root is malformed")]
    Malformed,
    /// Made by a newer PeerSync.
    #[error("the layer root has version {0}; this PeerSync knows version {VERSION}")]
    Version(u32),
    /// The signature is not the builder's.
    #[error("the layer root's signature is not that of its builder")]
    Signature,
}

impl LayerRoot {
    /// Signs the root with the builder's key, whose public half it takes over.
    pub fn sign(mut self, key: &SigningKey) -> Self {
        self.builder = key.verifying_key().to_bytes();
        self.signature = key.sign(&self.signed()).to_bytes();
        self
    }

    /// Checks that the builder signed exactly this.
    ///
    /// # Errors
    /// [`RootError::Signature`].
    pub fn verify(&self) -> Result<(), RootError> {
        let key = VerifyingKey::from_bytes(&self.builder).map_err(|_| RootError::Signature)?;
        key.verify_strict(&self.signed(), &Signature::from_bytes(&self.signature))
            .map_err(|_| RootError::Signature)
    }

    /// The root as bytes: magic, version (u32), blob (32), blob size (u64), diffID
    /// (32), stream length (u64), media type (u32 length, bytes), path (u8 flag,
    /// u32 length, bytes), four parts (id 32, length u64), builder (32),
    /// signature (64). Integers are little-endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.body();
        out.extend(self.signature);
        out
    }

    /// Reads a root. The input may be hostile. The signature is not checked.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RootError> {
        let mut input = Input(bytes);
        if input.array::<8>()? != *MAGIC {
            return Err(RootError::Malformed);
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(RootError::Version(version));
        }
        let root = Self {
            blob: Digest::from_bytes(input.array()?),
            blob_size: input.u64()?,
            diff_id: Digest::from_bytes(input.array()?),
            stream_length: input.u64()?,
            media_type: String::from_utf8(input.bytes(MEDIA_TYPE_MAX)?.to_vec())
                .map_err(|_| RootError::Malformed)?,
            path: match input.array::<1>()? {
                [0] => None,
                [1] => Some(input.bytes(PATH_MAX)?.to_vec()),
                _ => return Err(RootError::Malformed),
            },
            parts: Parts {
                tree: input.part()?,
                blocks: input.part()?,
                seek: input.part()?,
                skeleton: input.part()?,
            },
            builder: input.array()?,
            signature: input.array()?,
        };
        if input.0.is_empty() { Ok(root) } else { Err(RootError::Malformed) }
    }

    fn signed(&self) -> Vec<u8> {
        [DOMAIN, &self.body()].concat()
    }

    fn body(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend(self.blob.as_bytes());
        out.extend(self.blob_size.to_le_bytes());
        out.extend(self.diff_id.as_bytes());
        out.extend(self.stream_length.to_le_bytes());
        out.extend((self.media_type.len() as u32).to_le_bytes());
        out.extend(self.media_type.as_bytes());
        out.push(u8::from(self.path.is_some()));
        if let Some(path) = &self.path {
            out.extend((path.len() as u32).to_le_bytes());
            out.extend(path);
        }
        let Parts { tree, blocks, seek, skeleton } = &self.parts;
        for part in [tree, blocks, seek, skeleton] {
            out.extend(part.id.as_bytes());
            out.extend(part.length.to_le_bytes());
        }
        out.extend(self.builder);
        out
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RootError> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(RootError::Malformed)?;
        self.0 = rest;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, RootError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RootError> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self, max: usize) -> Result<&'a [u8], RootError> {
        let length = self.u32()? as usize;
        if length > max {
            return Err(RootError::Malformed);
        }
        let (head, rest) = self.0.split_at_checked(length).ok_or(RootError::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn part(&mut self) -> Result<PartRef, RootError> {
        Ok(PartRef { id: ObjectId::from_bytes(self.array()?), length: self.u64()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn root(path: Option<Vec<u8>>) -> LayerRoot {
        let part = |n: u8| PartRef { id: ObjectId::from_bytes([n; 32]), length: n.into() };
        LayerRoot {
            blob: Digest::of(b"blob"),
            blob_size: 4,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            diff_id: Digest::of(b"stream"),
            stream_length: 6,
            path,
            parts: Parts { tree: part(1), blocks: part(2), seek: part(3), skeleton: part(4) },
            builder: [0; 32],
            signature: [0; 64],
        }
        .sign(&SigningKey::from_bytes(&[7; 32]))
    }

    #[test]
    fn a_signed_root_survives_and_any_flipped_bit_is_noticed() {
        for root in [root(None), root(Some(b"dir/model.safetensors".to_vec()))] {
            let mut bytes = root.encode();
            let read = LayerRoot::decode(&bytes).expect("own encoding");
            assert_eq!(read, root);
            assert_eq!(read.verify(), Ok(()));
            for bit in 0..bytes.len() * 8 {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(LayerRoot::decode(&bytes).is_err_and(|_| true)
                    || LayerRoot::decode(&bytes).is_ok_and(|r| r.verify().is_err()));
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = LayerRoot::decode(&bytes);
            let mut long = root(None).encode();
            long.splice(12.., bytes);
            let _ = LayerRoot::decode(&long);
        }
    }
}
