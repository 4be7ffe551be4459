//! The records of the metadata database, as payloads of sealed values.

use super::codec::{Reader, RecordError, Writer};
use crate::types::{BlockHash, Digest, ObjectId, ObjectSpec};

/// Longest path or name in a record, in bytes.
pub const PATH_MAX: usize = 4096;
/// Most layers in a chain.
pub const CHAIN_MAX: usize = 1024;
/// Longest encoded `LayerRoot`, in bytes.
pub const ROOT_MAX: usize = 64 << 10;
/// Largest document, in bytes.
pub const DOCUMENT_MAX: usize = 8 << 20;
/// Most repositories kept for one blob.
pub const ORIGINS_MAX: usize = 16;
/// Longest reference, repository or platform, in bytes.
pub const TEXT_MAX: usize = 1024;

/// Whether the store was closed in order, and which verified marks count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// The last owner closed the store.
    pub clean: bool,
    /// Marks of this epoch count; a crash begins a new one.
    pub epoch: u64,
}

impl Session {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().u8(u8::from(self.clean)).u64(self.epoch).done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let clean = flag(r.u8()?)?;
        let epoch = r.u64()?;
        r.end()?;
        Ok(Self { clean, epoch })
    }
}

/// A counter or number as a payload.
pub fn encode_number(n: u32) -> Vec<u8> {
    Writer::default().u32(n).done()
}

/// Reads [`encode_number`].
///
/// # Errors
/// [`RecordError::Malformed`].
pub fn decode_number(payload: &[u8]) -> Result<u32, RecordError> {
    let mut r = Reader::new(payload);
    let n = r.u32()?;
    r.end()?;
    Ok(n)
}

/// A time in seconds since 1970 as a payload.
pub fn encode_time(seconds: u64) -> Vec<u8> {
    Writer::default().u64(seconds).done()
}

/// Reads [`encode_time`].
///
/// # Errors
/// [`RecordError::Malformed`].
pub fn decode_time(payload: &[u8]) -> Result<u64, RecordError> {
    let mut r = Reader::new(payload);
    let seconds = r.u64()?;
    r.end()?;
    Ok(seconds)
}

/// An object id as a payload.
pub fn encode_object(id: &ObjectId) -> Vec<u8> {
    id.as_bytes().to_vec()
}

/// Reads [`encode_object`].
///
/// # Errors
/// [`RecordError::Malformed`].
pub fn decode_object(payload: &[u8]) -> Result<ObjectId, RecordError> {
    let mut r = Reader::new(payload);
    let id = ObjectId::from_bytes(r.array()?);
    r.end()?;
    Ok(id)
}

/// What the store knows of an object besides its block list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectRecord {
    /// The object's number in this store; never reused.
    pub number: u32,
    /// Block size in bytes.
    pub block_size: u32,
    /// Length in bytes.
    pub length: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// All blocks are there and durable; there is no bitmap.
    pub complete: bool,
}

impl ObjectRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default()
            .u32(self.number)
            .u32(self.block_size)
            .u64(self.length)
            .u32(self.blocks)
            .u8(u8::from(self.complete))
            .done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let record = Self {
            number: r.u32()?,
            block_size: r.u32()?,
            length: r.u64()?,
            blocks: r.u32()?,
            complete: flag(r.u8()?)?,
        };
        r.end()?;
        Ok(record)
    }
}

/// Entries of a stretch of a block list: length (u32) and hash (32) each.
pub fn encode_spec_chunk(spec: &ObjectSpec, range: std::ops::Range<u32>) -> Vec<u8> {
    let mut w = Writer::default();
    for block in range.filter_map(|i| spec.block(i)) {
        w = w.u32(block.len).raw(block.hash.as_bytes());
    }
    w.done()
}

/// Reads [`encode_spec_chunk`] into `out`.
///
/// # Errors
/// [`RecordError::Malformed`].
pub fn decode_spec_chunk(
    payload: &[u8],
    out: &mut Vec<(BlockHash, u32)>,
) -> Result<(), RecordError> {
    if !payload.len().is_multiple_of(36) {
        return Err(RecordError::Malformed);
    }
    let mut r = Reader::new(payload);
    for _ in 0..payload.len() / 36 {
        let len = r.u32()?;
        out.push((BlockHash::from_bytes(r.array()?), len));
    }
    r.end()
}

/// All blocks of a complete object were verified, and the file is as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedMark {
    /// The session's epoch.
    pub epoch: u64,
    /// Size of the data file in bytes.
    pub size: u64,
    /// Inode number of the data file.
    pub inode: u64,
    /// Time of the last change of inode or data: seconds and nanoseconds.
    pub ctime: (i64, u32),
}

impl VerifiedMark {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default()
            .u64(self.epoch)
            .u64(self.size)
            .u64(self.inode)
            .i64(self.ctime.0)
            .u32(self.ctime.1)
            .done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let mark =
            Self { epoch: r.u64()?, size: r.u64()?, inode: r.u64()?, ctime: (r.i64()?, r.u32()?) };
        r.end()?;
        Ok(mark)
    }
}

/// What a staged file is to become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromotionRecord {
    /// The object.
    pub object: ObjectId,
    /// It has become that; else it may be named either way.
    pub done: bool,
}

impl PromotionRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().raw(self.object.as_bytes()).u8(u8::from(self.done)).done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let record = Self { object: ObjectId::from_bytes(r.array()?), done: flag(r.u8()?)? };
        r.end()?;
        Ok(record)
    }
}

/// Where a content stands: a whole file's bytes inside an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentRecord {
    /// BLAKE3 of the whole content.
    pub hash: BlockHash,
    /// Its length in bytes.
    pub length: u64,
}

impl ContentRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default().raw(self.hash.as_bytes()).u64(self.length).done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let hash = BlockHash::from_bytes(r.array()?);
        let length = r.u64()?;
        r.end()?;
        Ok(Self { hash, length })
    }
}

/// What a layer is known by: its diffID, and for a raw layer (one file) the
/// file's name as well, because the same bytes can have several names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerKey {
    /// Digest of the uncompressed tar stream, or of the raw blob.
    pub diff_id: Digest,
    /// Path of the one file of a raw layer; at most [`PATH_MAX`] bytes.
    pub path: Option<Vec<u8>>,
}

/// A layer that can be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerRecord {
    /// The layer's slot: part of its files' nodeids.
    pub slot: u32,
    /// The object that is its tree.
    pub tree: ObjectId,
    /// The object that lists the blocks of its objects.
    pub blocks: ObjectId,
}

impl LayerRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default()
            .u32(self.slot)
            .raw(self.tree.as_bytes())
            .raw(self.blocks.as_bytes())
            .done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let record = Self {
            slot: r.u32()?,
            tree: ObjectId::from_bytes(r.array()?),
            blocks: ObjectId::from_bytes(r.array()?),
        };
        r.end()?;
        Ok(record)
    }
}

/// What an object is to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Part of the layer index: tree, blocks, seek table or skeleton.
    Part,
    /// Content of the layer's files; the number is its place in the layer's
    /// list of objects.
    Content(u32),
}

impl Role {
    /// The payload.
    pub fn encode(self) -> Vec<u8> {
        match self {
            Self::Part => Writer::default().u8(0).u32(0).done(),
            Self::Content(n) => Writer::default().u8(1).u32(n).done(),
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError::Malformed`].
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let (kind, n) = (r.u8()?, r.u32()?);
        r.end()?;
        match (kind, n) {
            (0, 0) => Ok(Self::Part),
            (1, n) => Ok(Self::Content(n)),
            _ => Err(RecordError::Malformed),
        }
    }
}

/// Where the index of a blob came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IndexOrigin {
    /// Built here from the verified blob, or proved here by rebuilding its stream.
    Own,
    /// From the image's registry.
    Registry,
    /// From a member of the swarm.
    Swarm,
}

/// A blob whose layer is indexed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobRecord {
    /// The encoded `LayerRoot`; at most [`ROOT_MAX`] bytes, opaque here.
    pub root: Vec<u8>,
    /// The layer that the blob holds.
    pub layer: LayerKey,
    /// Where the index came from.
    pub origin: IndexOrigin,
}

impl BlobRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let origin = match self.origin {
            IndexOrigin::Own => 0,
            IndexOrigin::Registry => 1,
            IndexOrigin::Swarm => 2,
        };
        Writer::default()
            .u8(origin)
            .bytes(&super::keys::layer(&self.layer))
            .bytes(&self.root)
            .done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError`] where a field is malformed or too large.
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let origin = match r.u8()? {
            0 => IndexOrigin::Own,
            1 => IndexOrigin::Registry,
            2 => IndexOrigin::Swarm,
            _ => return Err(RecordError::Malformed),
        };
        let layer = super::keys::parse_layer(r.bytes(PATH_MAX + 36)?)?;
        let root = r.bytes(ROOT_MAX)?.to_vec();
        r.end()?;
        Ok(Self { root, layer, origin })
    }
}

/// What a slot belongs to. Slots are never reused: a nodeid that contains one
/// means the same for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SlotOwner {
    /// One layer.
    Layer(LayerKey),
    /// A layer and all below it, merged.
    Chain(Digest),
    /// A path of the mount that is no layer's (a directory under `images/`).
    Name(String),
}

impl SlotOwner {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Layer(key) => Writer::default().u8(0).bytes(&super::keys::layer(key)).done(),
            Self::Chain(digest) => Writer::default().u8(1).bytes(digest.as_bytes()).done(),
            Self::Name(name) => Writer::default().u8(2).bytes(name.as_bytes()).done(),
        }
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError`] where a field is malformed or too large.
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let kind = r.u8()?;
        let bytes = r.bytes(PATH_MAX + 36)?;
        r.end()?;
        match kind {
            0 => Ok(Self::Layer(super::keys::parse_layer(bytes)?)),
            1 => super::keys::parse_digest(bytes).map(Self::Chain).ok_or(RecordError::Malformed),
            2 => text(bytes).map(Self::Name),
            _ => Err(RecordError::Malformed),
        }
    }
}

/// A merged view of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainRecord {
    /// The chain's slot.
    pub slot: u32,
    /// Slots of its layers, lowest first; at most [`CHAIN_MAX`].
    pub layers: Vec<u32>,
}

impl ChainRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let w = Writer::default().u32(self.slot).u32(self.layers.len() as u32);
        self.layers.iter().fold(w, |w, slot| w.u32(*slot)).done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError`] where a field is malformed or too large.
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let (slot, count) = (r.u32()?, r.u32()? as usize);
        if count > CHAIN_MAX {
            return Err(RecordError::TooLarge);
        }
        let layers = (0..count).map(|_| r.u32()).collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Self { slot, layers })
    }
}

/// What a reference was resolved to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The chain of all its layers.
    pub chain: Digest,
    /// When it was resolved: seconds since 1970-01-01 UTC.
    pub resolved_at: i64,
    /// `os/architecture[/variant]`, or empty; at most [`TEXT_MAX`] bytes.
    pub platform: String,
}

impl ImageRecord {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        Writer::default()
            .raw(self.manifest.as_bytes())
            .raw(self.chain.as_bytes())
            .i64(self.resolved_at)
            .bytes(self.platform.as_bytes())
            .done()
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// [`RecordError`] where a field is malformed or too large.
    pub fn decode(payload: &[u8]) -> Result<Self, RecordError> {
        let mut r = Reader::new(payload);
        let record = Self {
            manifest: Digest::from_bytes(r.array()?),
            chain: Digest::from_bytes(r.array()?),
            resolved_at: r.i64()?,
            platform: text(r.bytes(TEXT_MAX)?)?,
        };
        r.end()?;
        Ok(record)
    }
}

fn flag(byte: u8) -> Result<bool, RecordError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RecordError::Malformed),
    }
}

fn text(bytes: &[u8]) -> Result<String, RecordError> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| RecordError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn records_survive_encoding() {
        let digest = Digest::from_bytes([7; 32]);
        let id = ObjectId::from_bytes([9; 32]);
        let raw = LayerKey { diff_id: digest, path: Some(b"model.onnx".to_vec()) };
        let tar = LayerKey { diff_id: digest, path: None };
        for key in [&raw, &tar] {
            let encoded = super::super::keys::layer(key);
            assert_eq!(super::super::keys::parse_layer(&encoded).as_ref(), Ok(key));
        }
        let session = Session { clean: true, epoch: 3 };
        assert_eq!(Session::decode(&session.encode()), Ok(session));
        let object =
            ObjectRecord { number: 1, block_size: 2, length: 3, blocks: 4, complete: true };
        assert_eq!(ObjectRecord::decode(&object.encode()), Ok(object));
        let mark = VerifiedMark { epoch: 1, size: 2, inode: 3, ctime: (-4, 5) };
        assert_eq!(VerifiedMark::decode(&mark.encode()), Ok(mark));
        let layer = LayerRecord { slot: 1, tree: id, blocks: id };
        assert_eq!(LayerRecord::decode(&layer.encode()), Ok(layer));
        for role in [Role::Part, Role::Content(5)] {
            assert_eq!(Role::decode(&role.encode()), Ok(role));
        }
        let blob = BlobRecord { root: vec![1, 2], layer: raw.clone(), origin: IndexOrigin::Swarm };
        assert_eq!(BlobRecord::decode(&blob.encode()), Ok(blob));
        for owner in [
            SlotOwner::Layer(tar),
            SlotOwner::Layer(raw),
            SlotOwner::Chain(digest),
            SlotOwner::Name("images/docker.io".into()),
        ] {
            assert_eq!(SlotOwner::decode(&owner.encode()), Ok(owner));
        }
        let chain = ChainRecord { slot: 1, layers: vec![2, 3] };
        assert_eq!(ChainRecord::decode(&chain.encode()), Ok(chain));
        let image = ImageRecord {
            manifest: digest,
            chain: digest,
            resolved_at: 1,
            platform: "linux/amd64".into(),
        };
        assert_eq!(ImageRecord::decode(&image.encode()), Ok(image));
    }

    proptest! {
        #[test]
        fn decoders_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Session::decode(&bytes);
            let _ = ObjectRecord::decode(&bytes);
            let _ = VerifiedMark::decode(&bytes);
            let _ = ContentRecord::decode(&bytes);
            let _ = LayerRecord::decode(&bytes);
            let _ = Role::decode(&bytes);
            let _ = BlobRecord::decode(&bytes);
            let _ = SlotOwner::decode(&bytes);
            let _ = ChainRecord::decode(&bytes);
            let _ = ImageRecord::decode(&bytes);
            let _ = super::super::keys::parse_layer(&bytes);
            let _ = decode_spec_chunk(&bytes, &mut Vec::new());
        }
    }
}
