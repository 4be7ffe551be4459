//! The signed root of a layer's index.
//!
//! Layout: magic, blob digest 32, blob size u64, stream length u64, diffID 32,
//! media type (length u8, bytes), path (length u16, bytes; 0: none), four parts
//! (id 32, length u64), the builder's ed25519 key 32, signature 64. The
//! signature is over a name of this purpose and all bytes before it.

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::types::{Digest, ObjectId, ObjectSpec};

use super::wire::Reader;

const MAGIC: [u8; 8] = *b"PSROOT\x00\x01";
/// What signatures of this key are about, so that none can be used elsewhere.
const DOMAIN: &[u8] = b"peersync layer root v1\0";
const MEDIA_TYPE_MAX: usize = 255;
const PATH_MAX: usize = 4096;
/// Longest root, in bytes.
pub const ROOT_MAX: usize = 8 + 32 + 8 + 8 + 32 + 1 + MEDIA_TYPE_MAX + 2 + PATH_MAX + 4 * 40 + 96;

/// One part of an index: an object like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartRef {
    /// The part's name.
    pub id: ObjectId,
    /// Its length in bytes.
    pub length: u64,
}

impl PartRef {
    /// The part that consists of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { id: ObjectSpec::of(bytes).id(), length: bytes.len() as u64 }
    }
}

/// What a builder says about a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RootBody {
    /// The blob as the registry has it.
    pub blob: Digest,
    /// Bytes of the blob.
    pub blob_size: u64,
    /// Bytes of the uncompressed stream.
    pub stream_length: u64,
    /// SHA-256 of the stream; of a raw blob, its own digest.
    pub diff_id: Digest,
    /// As the manifest has it; at most 255 bytes.
    pub media_type: String,
    /// For a raw blob: the name of its one file, at most 4,096 bytes.
    pub path: Option<Vec<u8>>,
    /// The tree.
    pub tree: PartRef,
    /// The block lists.
    pub blocks: PartRef,
    /// The seek table.
    pub seek: PartRef,
    /// The skeleton.
    pub skeleton: PartRef,
}

/// A [`RootBody`] that carries its builder's signature. There is no way to have
/// one whose signature is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerRoot {
    body: RootBody,
    builder: [u8; 32],
    signature: [u8; 64],
}

/// Why something is not a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// Not this format, not this version of it, or not its full length.
    #[error("the layer root is malformed")]
    Malformed,
    /// A media type or path that is empty or too long.
    #[error("the layer root's media type or path is too long")]
    TooLong,
    /// The signature is not the builder's.
    #[error("the layer root's signature is wrong")]
    Signature,
}

impl LayerRoot {
    /// Signs a body.
    ///
    /// # Errors
    /// [`RootError::TooLong`].
    pub fn sign(body: RootBody, key: &SigningKey) -> Result<Self, RootError> {
        let path_fits = body.path.as_ref().is_none_or(|p| (1..=PATH_MAX).contains(&p.len()));
        if body.media_type.len() > MEDIA_TYPE_MAX || !path_fits {
            return Err(RootError::TooLong);
        }
        let builder = key.verifying_key().to_bytes();
        let signature = key.sign(&signed_bytes(&body, &builder)).to_bytes();
        Ok(Self { body, builder, signature })
    }

    /// What the builder says.
    pub fn body(&self) -> &RootBody {
        &self.body
    }

    /// The builder's public key.
    pub fn builder(&self) -> &[u8; 32] {
        &self.builder
    }

    /// Whether two roots for one blob say different things about what is in it.
    /// Seek table and skeleton may differ: they depend on the compressor.
    pub fn contradicts(&self, other: &Self) -> bool {
        let content = |root: &Self| {
            let body = &root.body;
            let sizes = (body.blob_size, body.stream_length);
            (sizes, body.diff_id, body.path.clone(), body.tree, body.blocks)
        };
        self.body.blob == other.body.blob && content(self) != content(other)
    }

    /// The root's bytes; at most [`ROOT_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = signed_bytes(&self.body, &self.builder).split_off(DOMAIN.len());
        out.extend(self.signature);
        out
    }

    /// Reads what [`LayerRoot::encode`] wrote and checks the signature. The
    /// input may be hostile. Whether to believe the builder is another question.
    ///
    /// # Errors
    /// [`RootError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RootError> {
        let (body, builder, signature) = read(bytes).ok_or(RootError::Malformed)?;
        let key = VerifyingKey::from_bytes(&builder).map_err(|_| RootError::Signature)?;
        key.verify_strict(&signed_bytes(&body, &builder), &Signature::from_bytes(&signature))
            .map_err(|_| RootError::Signature)?;
        Ok(Self { body, builder, signature })
    }
}

fn signed_bytes(body: &RootBody, builder: &[u8; 32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend(DOMAIN);
    out.extend(MAGIC);
    out.extend(body.blob.as_bytes());
    out.extend(body.blob_size.to_le_bytes());
    out.extend(body.stream_length.to_le_bytes());
    out.extend(body.diff_id.as_bytes());
    out.push(body.media_type.len() as u8);
    out.extend(body.media_type.as_bytes());
    let path = body.path.as_deref().unwrap_or(b"");
    out.extend((path.len() as u16).to_le_bytes());
    out.extend(path);
    for part in [body.tree, body.blocks, body.seek, body.skeleton] {
        out.extend(part.id.as_bytes());
        out.extend(part.length.to_le_bytes());
    }
    out.extend(builder);
    out
}

fn read(bytes: &[u8]) -> Option<(RootBody, [u8; 32], [u8; 64])> {
    let mut reader = Reader(bytes);
    if reader.array()? != MAGIC {
        return None;
    }
    let blob = Digest::from_bytes(reader.array()?);
    let (blob_size, stream_length) = (reader.u64()?, reader.u64()?);
    let diff_id = Digest::from_bytes(reader.array()?);
    let length = reader.u8()?;
    let media_type = std::str::from_utf8(reader.bytes(length.into())?).ok()?;
    let length = reader.array().map(u16::from_le_bytes)?;
    let path = reader.bytes(length.into()).filter(|p| p.len() <= PATH_MAX)?;
    let mut part =
        || Some(PartRef { id: ObjectId::from_bytes(reader.array()?), length: reader.u64()? });
    let body = RootBody {
        blob,
        blob_size,
        stream_length,
        diff_id,
        media_type: media_type.to_owned(),
        path: (!path.is_empty()).then(|| path.to_vec()),
        tree: part()?,
        blocks: part()?,
        seek: part()?,
        skeleton: part()?,
    };
    let (builder, signature) = (reader.array()?, reader.array()?);
    reader.0.is_empty().then_some((body, builder, signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn some(path: Option<&[u8]>) -> LayerRoot {
        let body = RootBody {
            blob: Digest::of(b"blob"),
            blob_size: 4,
            stream_length: 6,
            diff_id: Digest::of(b"stream"),
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            path: path.map(<[u8]>::to_vec),
            tree: PartRef::of(b"tree"),
            blocks: PartRef::of(b"blocks"),
            seek: PartRef::of(b"seek"),
            skeleton: PartRef::of(b"skeleton"),
        };
        LayerRoot::sign(body, &SigningKey::from_bytes(&[9; 32])).expect("fits")
    }

    #[test]
    fn roots_come_back() {
        for root in [some(None), some(Some(b"model.safetensors"))] {
            assert_eq!(LayerRoot::decode(&root.encode()), Ok(root.clone()));
        }
        let mut body = some(None).body;
        body.path = Some(vec![b'x'; 4097]);
        let key = SigningKey::from_bytes(&[9; 32]);
        assert_eq!(LayerRoot::sign(body, &key), Err(RootError::TooLong));
    }

    #[test]
    fn only_the_content_can_contradict() {
        let root = some(None);
        let mut other = root.clone();
        other.body.seek = PartRef::of(b"another");
        assert!(!root.contradicts(&other));
        other.body.tree = PartRef::of(b"another");
        assert!(root.contradicts(&other));
        other.body.blob = Digest::of(b"another");
        assert!(!root.contradicts(&other));
    }

    proptest! {
        #[test]
        fn no_bit_can_be_changed(at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = some(Some(b"x")).encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(LayerRoot::decode(&bytes).is_err());
        }

        #[test]
        fn decode_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..500)) {
            prop_assert!(LayerRoot::decode(&bytes).is_err());
        }
    }
}
