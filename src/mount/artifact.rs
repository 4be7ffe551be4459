//! A layer's index as one blob beside the image in a registry. Pure.
//!
//! ```text
//! "PSYNCidx"  u32 version  u32 length, LayerRoot
//! 4 x (u64 length, u64 compressed length, zstd frame)   tree blocks seek skeleton
//! ```
//! Integers are little-endian. The registry's digest covers the blob, the root's
//! signature covers the root, and the root names each part by its object id.

use std::io::Read;

use crate::layer::root::{LayerRoot, PartRef};

/// Artifact type of the referrer that holds the indexes of an image.
pub const ARTIFACT_TYPE: &str = "application/vnd.peersync.index.v1";
/// Media type of the index of one layer.
pub const LAYER_TYPE: &str = "application/vnd.peersync.index.layer.v1";
/// Annotation of an index blob: the digest of the layer blob that it indexes.
pub const LAYER_ANNOTATION: &str = "io.peersync.layer.digest";
/// Largest index blob, in bytes; a layer of 10 million files has about as much.
pub const ARTIFACT_MAX: u64 = 1 << 30;

const MAGIC: &[u8; 8] = b"PSYNCidx";
const VERSION: u32 = 1;
/// Largest encoded root, in bytes.
const ROOT_MAX: usize = 64 << 10;
/// Largest part once decompressed, in bytes.
const PART_MAX: u64 = 4 << 30;
/// Compresses the parts about as well as higher levels, at 100 MB/s.
const LEVEL: i32 = 9;

/// The index of a layer: its root and its four parts, in the root's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// The root.
    pub root: LayerRoot,
    /// Tree, blocks, seek table and skeleton.
    pub parts: [Vec<u8>; 4],
}

/// Why bytes are not the index of a layer.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Not our format, or cut off.
    #[error("the index blob is malformed")]
    Malformed,
    /// Made by a newer PeerSync.
    #[error("the index blob has version {0}; this PeerSync knows version {VERSION}")]
    Version(u32),
    /// The root does not parse, or its signature is wrong.
    #[error("the index's root: {0}")]
    Root(String),
    /// A part is not what the root says.
    #[error("index part {0} is not what its root says")]
    Part(usize),
}

impl Artifact {
    /// The blob.
    ///
    /// # Errors
    /// What zstd fails with: out of memory.
    pub fn encode(&self) -> std::io::Result<Vec<u8>> {
        let root = self.root.encode();
        let mut out = Vec::new();
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend((root.len() as u32).to_le_bytes());
        out.extend(root);
        for part in &self.parts {
            let packed = zstd::bulk::compress(part, LEVEL)?;
            out.extend((part.len() as u64).to_le_bytes());
            out.extend((packed.len() as u64).to_le_bytes());
            out.extend(packed);
        }
        Ok(out)
    }

    /// Reads a blob and checks that the root is signed and the parts are those
    /// that it names. What the parts say is not looked at.
    ///
    /// # Errors
    /// [`ArtifactError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ArtifactError> {
        let mut input = Input(bytes);
        if input.take(8)? != MAGIC {
            return Err(ArtifactError::Malformed);
        }
        let version = input.u32()?;
        if version != VERSION {
            return Err(ArtifactError::Version(version));
        }
        let length = input.u32()? as usize;
        if length > ROOT_MAX {
            return Err(ArtifactError::Malformed);
        }
        let root = input.take(length)?;
        let root = LayerRoot::decode(root).map_err(|e| ArtifactError::Root(e.to_string()))?;
        let mut parts: [Vec<u8>; 4] = Default::default();
        for (n, (part, named)) in parts.iter_mut().zip(refs(&root)).enumerate() {
            let (length, packed) = (input.u64()?, input.u64()?);
            let packed = usize::try_from(packed).map_err(|_| ArtifactError::Malformed)?;
            let packed = input.take(packed)?;
            if length != named.length || length > PART_MAX {
                return Err(ArtifactError::Part(n));
            }
            *part = unpack(packed, length).ok_or(ArtifactError::Part(n))?;
            if PartRef::of(part) != named {
                return Err(ArtifactError::Part(n));
            }
        }
        if input.0.is_empty() { Ok(Self { root, parts }) } else { Err(ArtifactError::Malformed) }
    }
}

/// The root's parts in the order of the blob.
pub fn refs(root: &LayerRoot) -> [PartRef; 4] {
    let body = root.body();
    [body.tree, body.blocks, body.seek, body.skeleton]
}

/// Memory grows with what really comes out, not with what is promised.
fn unpack(packed: &[u8], length: u64) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    zstd::stream::read::Decoder::new(packed).ok()?.take(length + 1).read_to_end(&mut out).ok()?;
    (out.len() as u64 == length).then_some(out)
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], ArtifactError> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(ArtifactError::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn u32(&mut self) -> Result<u32, ArtifactError> {
        let bytes = self.take(4)?.try_into().map_err(|_| ArtifactError::Malformed)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> Result<u64, ArtifactError> {
        let bytes = self.take(8)?.try_into().map_err(|_| ArtifactError::Malformed)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
