//! Requests for content and the pieces of their answers.

use super::codec::{Reader, WireError};
use crate::types::{BLOCK_MAX, BlockHash, Digest, ObjectId};

/// Bytes of content in one data frame. A frame is what urgent data may have to
/// wait for on a tunnel that carries bulk; with the frame's header and the
/// request's name it fills four TLS records.
pub const DATA_MAX: usize = (64 << 10) - 16;
/// Most blocks or items of one request.
pub const RUN_MAX: u32 = 1024;
/// Longest block list that is sent whole, in bytes: that of an index part of
/// 7 GiB. Those of content stand in the index.
pub const PART_SPEC_MAX: u32 = BLOCK_MAX;
/// Longest item of a first pass that is handed on, in bytes.
pub const HANDED_MAX: u32 = BLOCK_MAX;

/// Names a request on a tunnel. Made by whoever asks, never used twice there.
pub type RequestId = u64;

/// What holdings and wants are about: objects are found by the layer that they
/// stand in, parts of an index by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Home {
    /// A layer, by the digest of its blob.
    Layer(Digest),
    /// An object on its own.
    Object(ObjectId),
}

impl Home {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Layer(digest) => {
                out.push(0);
                out.extend(digest.as_bytes());
            }
            Self::Object(object) => {
                out.push(1);
                out.extend(object.as_bytes());
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        match reader.u8()? {
            0 => Ok(Self::Layer(reader.digest()?)),
            1 => Ok(Self::Object(reader.object()?)),
            _ => Err(WireError::Invalid("neither a layer nor an object")),
        }
    }
}

/// How urgent an answer is; the order is the order of service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A reader waits. Goes before everything else on the tunnel.
    Urgent,
    /// Readahead and completion.
    Bulk,
    /// Nobody waits; under a limit of its own.
    Background,
}

impl Class {
    fn decode(number: u8) -> Result<Self, WireError> {
        match number {
            0 => Ok(Self::Urgent),
            1 => Ok(Self::Bulk),
            2 => Ok(Self::Background),
            _ => Err(WireError::Invalid("no such class")),
        }
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extent {
    /// Whole blocks of an object.
    Blocks {
        /// The object.
        object: ObjectId,
        /// Number of the first block.
        first: u32,
        /// How many, 1 to [`RUN_MAX`].
        count: u32,
    },
    /// Part of one block: what local files don't have of a bundle's block, or a
    /// large block over a slow line.
    Part {
        /// The object.
        object: ObjectId,
        /// Number of the block.
        index: u32,
        /// First byte in the block.
        offset: u32,
        /// How many bytes, at least 1.
        len: u32,
    },
    /// What a first pass has handed on so far, in its order.
    Items {
        /// The blob that the pass reads.
        blob: Digest,
        /// Number of the first item.
        first: u64,
        /// How many, 1 to [`RUN_MAX`].
        count: u32,
    },
    /// The roots that the other has of a blob's index.
    Roots {
        /// The blob.
        blob: Digest,
    },
    /// The block list of an object.
    Spec {
        /// The object.
        object: ObjectId,
    },
    /// A manifest, index or configuration.
    Document {
        /// SHA-256 of its bytes.
        digest: Digest,
    },
    /// What the name of an image last stood for.
    Image {
        /// BLAKE3 of the name.
        name: BlockHash,
    },
}

/// A request for content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Its name.
    pub id: RequestId,
    /// How urgent.
    pub class: Class,
    /// Whether blocks may come compressed.
    pub zstd: bool,
    /// What.
    pub extent: Extent,
}

impl Request {
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.id.to_le_bytes());
        out.push(self.class as u8);
        out.push(u8::from(self.zstd));
        match self.extent {
            Extent::Blocks { object, first, count } => {
                out.push(0);
                out.extend(object.as_bytes());
                out.extend(first.to_le_bytes());
                out.extend(count.to_le_bytes());
            }
            Extent::Part { object, index, offset, len } => {
                out.push(1);
                out.extend(object.as_bytes());
                out.extend(index.to_le_bytes());
                out.extend(offset.to_le_bytes());
                out.extend(len.to_le_bytes());
            }
            Extent::Items { blob, first, count } => {
                out.push(2);
                out.extend(blob.as_bytes());
                out.extend(first.to_le_bytes());
                out.extend(count.to_le_bytes());
            }
            Extent::Roots { blob } => {
                out.push(3);
                out.extend(blob.as_bytes());
            }
            Extent::Spec { object } => {
                out.push(4);
                out.extend(object.as_bytes());
            }
            Extent::Document { digest } => {
                out.push(5);
                out.extend(digest.as_bytes());
            }
            Extent::Image { name } => {
                out.push(6);
                out.extend(name.as_bytes());
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let id = reader.u64()?;
        let class = Class::decode(reader.u8()?)?;
        let zstd = reader.flag()?;
        let extent = match reader.u8()? {
            0 => {
                let object = reader.object()?;
                let (first, count) = (reader.u32()?, reader.u32()?);
                if first.checked_add(count).is_none_or(|end| end > super::BLOCKS_MAX) {
                    return Err(WireError::Invalid("a run beyond what an object can have"));
                }
                Extent::Blocks { object, first, count: run(count)? }
            }
            1 => {
                let object = reader.object()?;
                let (index, offset, len) = (reader.u32()?, reader.u32()?, reader.u32()?);
                let fits = offset.checked_add(len).is_some_and(|end| end <= BLOCK_MAX);
                if len == 0 || !fits || index >= super::BLOCKS_MAX {
                    return Err(WireError::Invalid("a part that no block can have"));
                }
                Extent::Part { object, index, offset, len }
            }
            2 => {
                let blob = reader.digest()?;
                let (first, count) = (reader.u64()?, reader.u32()?);
                if first.checked_add(u64::from(count)).is_none() {
                    return Err(WireError::Invalid("a run beyond what a pass can have"));
                }
                Extent::Items { blob, first, count: run(count)? }
            }
            3 => Extent::Roots { blob: reader.digest()? },
            4 => Extent::Spec { object: reader.object()? },
            5 => Extent::Document { digest: reader.digest()? },
            6 => Extent::Image { name: BlockHash::from_bytes(reader.array()?) },
            _ => return Err(WireError::Invalid("no such kind of request")),
        };
        Ok(Self { id, class, zstd, extent })
    }
}

fn run(count: u32) -> Result<u32, WireError> {
    if (1..=RUN_MAX).contains(&count) { Ok(count) } else { Err(WireError::TooMany("blocks")) }
}

/// Bytes of the answer to [`Extent::Image`].
pub const IMAGE_LEN: u32 = 40;

/// What the name of an image last stood for: the digest of its manifest, and when
/// that was looked up, in seconds since 1970.
pub fn encode_image(manifest: &Digest, resolved_at: u64) -> Vec<u8> {
    let mut out = manifest.as_bytes().to_vec();
    out.extend(resolved_at.to_le_bytes());
    out
}

/// Reads what [`encode_image`] wrote; `None` if it is not that long.
pub fn decode_image(bytes: &[u8]) -> Option<(Digest, u64)> {
    let (manifest, at) = bytes.split_first_chunk::<32>()?;
    Some((Digest::from_bytes(*manifest), u64::from_le_bytes(at.try_into().ok()?)))
}

/// How a block's bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// As they are.
    Raw,
    /// As one zstd frame of `u32` bytes.
    Zstd(u32),
}

/// What an item of a first pass is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A block of content.
    Block,
    /// Bytes of the tar stream that are not content.
    Literal,
    /// A state from which whoever has all items before can go on with the pass.
    Checkpoint,
}

/// Where an item of a first pass belongs, and what it must hash to: there is no
/// block list yet that says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// BLAKE3 of the bytes.
    pub hash: BlockHash,
    /// What it is.
    pub item: Item,
    /// Number of the object in the layer; 0 is the bundle.
    pub object: u32,
    /// First byte in it.
    pub offset: u64,
}

/// Announces one block, part, item, root or list of a request's answer; its
/// bytes follow in data frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// Of which request.
    pub request: RequestId,
    /// Number of the block or item; roots are counted from 0.
    pub index: u64,
    /// Bytes of content, 1 to [`BLOCK_MAX`].
    pub len: u32,
    /// How they travel.
    pub encoding: Encoding,
    /// For items of a first pass only.
    pub place: Option<Place>,
}

impl Head {
    /// Bytes that follow in data frames.
    pub fn wire_len(&self) -> u32 {
        match self.encoding {
            Encoding::Raw => self.len,
            Encoding::Zstd(len) => len,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.request.to_le_bytes());
        out.extend(self.index.to_le_bytes());
        out.extend(self.len.to_le_bytes());
        match self.encoding {
            Encoding::Raw => out.push(0),
            Encoding::Zstd(len) => {
                out.push(1);
                out.extend(len.to_le_bytes());
            }
        }
        match self.place {
            None => out.push(0),
            Some(Place { hash, item, object, offset }) => {
                out.push(1 + item as u8);
                out.extend(hash.as_bytes());
                out.extend(object.to_le_bytes());
                out.extend(offset.to_le_bytes());
            }
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let (request, index, len) = (reader.u64()?, reader.u64()?, reader.u32()?);
        if !(1..=BLOCK_MAX).contains(&len) {
            return Err(WireError::Invalid("a block of impossible length"));
        }
        let encoding = match reader.u8()? {
            0 => Encoding::Raw,
            1 => match reader.u32()? {
                // What does not get shorter travels as it is.
                wire if (1..len).contains(&wire) => Encoding::Zstd(wire),
                _ => return Err(WireError::Invalid("a compressed block of impossible length")),
            },
            _ => return Err(WireError::Invalid("no such encoding")),
        };
        let item = match reader.u8()? {
            0 => None,
            1 => Some(Item::Block),
            2 => Some(Item::Literal),
            3 => Some(Item::Checkpoint),
            _ => return Err(WireError::Invalid("no such item")),
        };
        let place = match item {
            None => None,
            Some(item) => {
                let hash = BlockHash::from_bytes(reader.array()?);
                Some(Place { hash, item, object: reader.u32()?, offset: reader.u64()? })
            }
        };
        Ok(Self { request, index, len, encoding, place })
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// With all that the sender has of it.
    Done,
    /// It was cancelled.
    Cancelled,
    /// The sender could not read what it has.
    Failed,
}

impl End {
    pub(super) fn decode(number: u8) -> Result<Self, WireError> {
        match number {
            0 => Ok(Self::Done),
            1 => Ok(Self::Cancelled),
            2 => Ok(Self::Failed),
            _ => Err(WireError::Invalid("no such end")),
        }
    }
}
