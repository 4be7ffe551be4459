//! What was asked on a tunnel, and what comes in answer. Pure.
//!
//! Invariants:
//! - nothing is taken that was not asked for, and nothing twice; memory for a
//!   block is taken only once its announced length is the length that it must have;
//! - at most [`OPEN_MAX`] blocks are half here at a time;
//! - what leaves is verified; a request ends once.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::assembly::{Assembly, Filled};
use crate::layer::root::{LayerRoot, ROOT_MAX};
use crate::types::{BLOCK_MAX, BlockEntry, BlockHash, Digest, ObjectId, ObjectSpec, VerifiedBlock};
use crate::wire::{
    BlockSet, Class, Encoding, Extent, HANDED_MAX, Head, IMAGE_LEN, Limits, PART_SPEC_MAX, Place,
    RUN_MAX, Request, RequestId, decode_image,
};

/// Blocks whose bytes may be interleaved on a tunnel: one for each class, and one
/// more for an answer that comes between.
pub(super) const OPEN_MAX: usize = 4;
/// Roots that one peer may have of one blob.
pub(super) const ROOTS_MAX: u32 = 8;
/// What an item of a first pass is taken to be long before it is here.
const ITEM_GUESS: u32 = 128 << 10;

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Want {
    /// Whole blocks.
    Blocks {
        /// The object.
        object: ObjectId,
        /// Its block list.
        spec: Arc<ObjectSpec>,
        /// Which, at most 1,024.
        blocks: Range<u32>,
    },
    /// Part of a block, into an assembly that others may fill as well.
    Part {
        /// The object.
        object: ObjectId,
        /// The block.
        index: u32,
        /// Which bytes of it.
        bytes: Range<u32>,
        /// Where they go.
        into: Arc<Assembly>,
    },
    /// What a first pass has handed on, at most 1,024 items.
    Items {
        /// The blob.
        blob: Digest,
        /// Which.
        numbers: Range<u64>,
    },
    /// The roots of a blob's index.
    Roots {
        /// The blob.
        blob: Digest,
    },
    /// The block list of an object, which nobody here has yet.
    Spec {
        /// The object.
        object: ObjectId,
    },
    /// A manifest, index or configuration of an image.
    Document {
        /// Its digest.
        digest: Digest,
    },
    /// What the name of an image last stood for.
    Image {
        /// BLAKE3 of the name.
        name: BlockHash,
    },
}

/// Why something can't be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// As much as the peer takes on has been asked already.
    #[error("the tunnel has enough to do")]
    Full,
    /// Nothing, too much at once, or beyond the object's end.
    #[error("the request is not one that can be asked")]
    Malformed,
    /// The name is in use on the tunnel.
    #[error("the request's name is in use")]
    Duplicate,
    /// The tunnel is closed.
    #[error("the tunnel is closed")]
    Closed,
}

/// Why an answer is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It answers what was not asked.
    #[error("an answer that was not asked for")]
    Unasked,
    /// A block came again.
    #[error("a block came twice")]
    Twice,
    /// It is not as long as it must be.
    #[error("a block of the wrong length")]
    Length,
    /// Bytes without a head, or more than it announced.
    #[error("data out of place")]
    Data,
    /// Too many blocks at once.
    #[error("too many blocks at once")]
    Open,
}

/// Content that came, verified.
#[derive(Clone, Debug)]
pub enum Content {
    /// A block.
    Block {
        /// Of which object.
        object: ObjectId,
        /// Its number.
        index: u32,
        /// Its bytes.
        block: VerifiedBlock,
    },
    /// A part was put in its place; more of the block is missing.
    Part {
        /// Of which object.
        object: ObjectId,
        /// Of which block.
        index: u32,
    },
    /// An item of a first pass. That its bytes match its hash says no more than
    /// that the line did not change them.
    Item {
        /// The blob.
        blob: Digest,
        /// Its number.
        number: u64,
        /// Where it belongs.
        place: Place,
        /// Its bytes.
        block: VerifiedBlock,
    },
    /// A root; its signature is its builder's, whom to believe is another question.
    Root {
        /// The blob.
        blob: Digest,
        /// The root.
        root: Box<LayerRoot>,
    },
    /// A block list; it is the object's.
    Spec {
        /// The object.
        object: ObjectId,
        /// Its list.
        spec: Arc<ObjectSpec>,
    },
    /// A document; its bytes have the digest.
    Document {
        /// Its digest.
        digest: Digest,
        /// Its bytes.
        bytes: Bytes,
    },
    /// What a name stood for at the peer. Nothing vouches for it but the peer.
    Image {
        /// BLAKE3 of the name.
        name: BlockHash,
        /// The digest of its manifest.
        manifest: Digest,
        /// When the peer looked it up, in seconds since 1970.
        resolved_at: u64,
    },
}

/// What came is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// In answer to which request.
    pub request: RequestId,
    /// Number of the block, item or root.
    pub index: u64,
    /// Whether bytes of others are in it, so that the peer may not be to blame.
    pub mixed: bool,
}

/// What was asked and not answered to its end.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    asked: HashMap<RequestId, Asked>,
    bytes: u64,
    open: usize,
}

#[derive(Debug)]
struct Asked {
    want: Want,
    class: Class,
    /// What it counts against the peer's limit.
    bytes: u64,
    /// Numbers, from the first of the request, that came or never will.
    settled: BlockSet,
    head: Option<(Head, Option<BytesMut>)>,
    cancelled: bool,
}

/// All bytes of an answer's piece, to be looked at outside of any lock.
pub(super) struct Arrived {
    pub(super) request: RequestId,
    pub(super) class: Class,
    head: Head,
    want: Want,
    bytes: BytesMut,
}

/// A request that is over.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// Whether it was cancelled by whoever asked.
    pub(super) cancelled: bool,
    /// What did not come, as runs of numbers.
    pub(super) missing: Vec<Range<u64>>,
}

impl Inbox {
    /// Notes a request and gives its message.
    ///
    /// # Errors
    /// [`RequestError`].
    pub(super) fn ask(
        &mut self,
        id: RequestId,
        class: Class,
        zstd: bool,
        want: Want,
        limits: &Limits,
    ) -> Result<Request, RequestError> {
        let extent = want.extent().ok_or(RequestError::Malformed)?;
        let bytes = want.bytes();
        let fits = self.bytes + bytes <= u64::from(limits.bytes) || self.asked.is_empty();
        if self.asked.len() >= usize::from(limits.requests) || !fits {
            return Err(RequestError::Full);
        }
        if self.asked.contains_key(&id) {
            return Err(RequestError::Duplicate);
        }
        let (settled, head) = (BlockSet::new(), None);
        self.asked.insert(id, Asked { want, class, bytes, settled, head, cancelled: false });
        self.bytes += bytes;
        Ok(Request { id, class, zstd, extent })
    }

    /// Nobody wants the answer any more; what still comes of it is dropped.
    /// Whether the peer is to be told.
    pub(super) fn cancel(&mut self, id: RequestId) -> bool {
        let Some(asked) = self.asked.get_mut(&id) else { return false };
        !std::mem::replace(&mut asked.cancelled, true)
    }

    /// Whether an answer is awaited.
    pub(super) fn is_idle(&self) -> bool {
        self.asked.is_empty()
    }

    /// A piece of an answer is announced. Gives its length on the wire, as far as
    /// it is to be kept.
    pub(super) fn head(&mut self, head: Head) -> Result<(), AnswerError> {
        let asked = self.asked.get_mut(&head.request).ok_or(AnswerError::Unasked)?;
        if asked.head.is_some() {
            return Err(AnswerError::Data);
        }
        let number = asked.want.check(&head)?;
        if asked.settled.contains(number) {
            return Err(AnswerError::Twice);
        }
        if self.open >= OPEN_MAX {
            return Err(AnswerError::Open);
        }
        self.open += 1;
        asked.settled.insert(number..number + 1);
        let buffer = BytesMut::with_capacity(head.wire_len() as usize);
        asked.head = Some((head, Some(buffer)));
        Ok(())
    }

    /// A data frame with `len` bytes begins. They go to the end of this buffer,
    /// which is to be given back with [`Inbox::filled`].
    pub(super) fn data(&mut self, id: RequestId, len: usize) -> Result<BytesMut, AnswerError> {
        let asked = self.asked.get_mut(&id).ok_or(AnswerError::Unasked)?;
        let (head, buffer) = asked.head.as_mut().ok_or(AnswerError::Data)?;
        let buffer = buffer.take().ok_or(AnswerError::Data)?;
        if len == 0 || buffer.len() + len > head.wire_len() as usize {
            return Err(AnswerError::Data);
        }
        Ok(buffer)
    }

    /// The buffer of [`Inbox::data`], with the frame's bytes. Gives the piece once
    /// it is whole; not that of a cancelled request.
    pub(super) fn filled(&mut self, id: RequestId, buffer: BytesMut) -> Option<Arrived> {
        let asked = self.asked.get_mut(&id)?;
        let (head, slot) = asked.head.as_mut()?;
        if buffer.len() < head.wire_len() as usize {
            *slot = Some(buffer);
            return None;
        }
        let (head, _) = asked.head.take()?;
        self.open -= 1;
        let (want, class) = (asked.want.clone(), asked.class);
        (!asked.cancelled).then_some(Arrived { request: id, class, head, want, bytes: buffer })
    }

    /// The peer does not have these numbers. Whether anybody still wants to know.
    pub(super) fn not_have(
        &mut self,
        id: RequestId,
        first: u64,
        count: u32,
    ) -> Result<bool, AnswerError> {
        let asked = self.asked.get_mut(&id).ok_or(AnswerError::Unasked)?;
        let start = asked.want.number(first).ok_or(AnswerError::Unasked)?;
        let end = start.checked_add(count).filter(|end| *end <= asked.want.count());
        asked.settled.insert(start..end.ok_or(AnswerError::Unasked)?);
        Ok(!asked.cancelled)
    }

    /// The request is over.
    pub(super) fn end(&mut self, id: RequestId) -> Result<Ended, AnswerError> {
        let asked = self.asked.remove(&id).ok_or(AnswerError::Unasked)?;
        self.bytes -= asked.bytes;
        if asked.head.is_some() {
            self.open -= 1;
            return Err(AnswerError::Data);
        }
        let mut missing: BlockSet = std::iter::once(0..asked.want.count()).collect();
        asked.settled.runs().iter().for_each(|run| missing.remove(run));
        let first = asked.want.first();
        let missing = missing.runs().iter();
        let missing = missing.map(|run| first + u64::from(run.start)..first + u64::from(run.end));
        // Of roots, there are as many as there are.
        let open_end = matches!(asked.want, Want::Roots { .. });
        let missing = if open_end { Vec::new() } else { missing.collect() };
        Ok(Ended { cancelled: asked.cancelled, missing })
    }

    /// All requests that are not over, in no order: the tunnel is gone.
    pub(super) fn drain(&mut self) -> Vec<RequestId> {
        (self.bytes, self.open) = (0, 0);
        self.asked.drain().filter(|(_, asked)| !asked.cancelled).map(|(id, _)| id).collect()
    }
}

impl Want {
    fn extent(&self) -> Option<Extent> {
        let count = |count: u64| u32::try_from(count).ok().filter(|n| (1..=RUN_MAX).contains(n));
        Some(match self {
            Self::Blocks { object, spec, blocks } => {
                let len = blocks.end.checked_sub(blocks.start)?;
                let inside = blocks.end <= spec.block_count();
                let count = count(u64::from(len)).filter(|_| inside)?;
                Extent::Blocks { object: *object, first: blocks.start, count }
            }
            Self::Part { object, index, bytes, into } => {
                let len = bytes.end.checked_sub(bytes.start).filter(|len| *len > 0)?;
                let inside = bytes.end <= into.block_len();
                let part =
                    Extent::Part { object: *object, index: *index, offset: bytes.start, len };
                inside.then_some(part)?
            }
            Self::Items { blob, numbers } => {
                let count = count(numbers.end.checked_sub(numbers.start)?)?;
                Extent::Items { blob: *blob, first: numbers.start, count }
            }
            Self::Roots { blob } => Extent::Roots { blob: *blob },
            Self::Spec { object } => Extent::Spec { object: *object },
            Self::Document { digest } => Extent::Document { digest: *digest },
            Self::Image { name } => Extent::Image { name: *name },
        })
    }

    /// What it counts against limits, in bytes.
    fn bytes(&self) -> u64 {
        match self {
            Self::Blocks { spec, blocks, .. } => {
                let lens = blocks.clone().filter_map(|n| spec.block(n)).map(|b| u64::from(b.len));
                lens.sum()
            }
            Self::Part { bytes, .. } => u64::from(bytes.end.saturating_sub(bytes.start)),
            Self::Items { numbers, .. } => {
                numbers.end.saturating_sub(numbers.start).saturating_mul(u64::from(ITEM_GUESS))
            }
            Self::Roots { .. } | Self::Spec { .. } | Self::Document { .. } => 16 << 10,
            Self::Image { .. } => u64::from(IMAGE_LEN),
        }
    }

    /// Number of the first piece that answers it.
    fn first(&self) -> u64 {
        match self {
            Self::Blocks { blocks, .. } => u64::from(blocks.start),
            Self::Part { index, .. } => u64::from(*index),
            Self::Items { numbers, .. } => numbers.start,
            Self::Roots { .. } | Self::Spec { .. } | Self::Document { .. } | Self::Image { .. } => {
                0
            }
        }
    }

    /// How many pieces answer it; of roots, at most so many.
    fn count(&self) -> u32 {
        match self {
            Self::Blocks { blocks, .. } => blocks.end.saturating_sub(blocks.start),
            Self::Items { numbers, .. } => numbers.end.saturating_sub(numbers.start) as u32,
            Self::Roots { .. } => ROOTS_MAX,
            Self::Part { .. } | Self::Spec { .. } | Self::Document { .. } | Self::Image { .. } => 1,
        }
    }

    /// A piece's number from the first of the request on.
    fn number(&self, index: u64) -> Option<u32> {
        let number = u32::try_from(index.checked_sub(self.first())?).ok()?;
        (number < self.count()).then_some(number)
    }

    fn entry(&self, index: u64) -> Option<BlockEntry> {
        match self {
            Self::Blocks { spec, .. } => spec.block(u32::try_from(index).ok()?),
            _ => None,
        }
    }

    /// Checks that a piece is one that was asked for, and as long as it must be.
    fn check(&self, head: &Head) -> Result<u32, AnswerError> {
        let number = self.number(head.index).ok_or(AnswerError::Unasked)?;
        let right = match self {
            Self::Blocks { .. } => self.entry(head.index).is_some_and(|e| e.len == head.len),
            Self::Part { bytes, .. } => bytes.end - bytes.start == head.len,
            Self::Items { .. } => head.len <= HANDED_MAX,
            Self::Roots { .. } => head.len as usize <= ROOT_MAX,
            Self::Spec { .. } => head.len <= PART_SPEC_MAX,
            Self::Document { .. } => head.len <= BLOCK_MAX,
            Self::Image { .. } => head.len == IMAGE_LEN,
        };
        let placed = matches!(self, Self::Items { .. }) == head.place.is_some();
        if right && placed { Ok(number) } else { Err(AnswerError::Length) }
    }
}

impl Arrived {
    /// Bytes that came over the wire for it.
    pub(super) fn wire_len(&self) -> u32 {
        self.head.wire_len()
    }

    /// Bytes of memory that the content takes.
    pub(super) fn len(&self) -> u32 {
        self.head.len
    }

    /// Decompresses and verifies. Takes up to a millisecond.
    pub(super) fn verify(self) -> Result<Content, Wrong> {
        let Self { request, head, want, bytes, .. } = self;
        let wrong = |mixed| Wrong { request, index: head.index, mixed };
        let bytes = content(&head, bytes).ok_or(wrong(false))?;
        match want {
            Want::Blocks { object, spec, .. } => {
                let index = head.index as u32;
                let entry = spec.block(index).ok_or(wrong(false))?;
                let block = VerifiedBlock::verify(bytes, &entry.hash).map_err(|_| wrong(false))?;
                Ok(Content::Block { object, index, block })
            }
            Want::Part { object, index, bytes: range, into } => {
                match into.fill(range.start, &bytes) {
                    Filled::Complete(block) => Ok(Content::Block { object, index, block }),
                    Filled::More | Filled::Surplus => Ok(Content::Part { object, index }),
                    Filled::Wrong => Err(wrong(bytes.len() < into.block_len() as usize)),
                }
            }
            Want::Items { blob, .. } => {
                let place = head.place.ok_or(wrong(false))?;
                let block = VerifiedBlock::verify(bytes, &place.hash).map_err(|_| wrong(false))?;
                Ok(Content::Item { blob, number: head.index, place, block })
            }
            Want::Roots { blob } => {
                let root = LayerRoot::decode(&bytes).ok();
                let root = root.filter(|root| root.body().blob == blob).ok_or(wrong(false))?;
                Ok(Content::Root { blob, root: Box::new(root) })
            }
            Want::Spec { object } => {
                let spec = ObjectSpec::decode(&bytes).ok();
                let spec = spec.filter(|spec| spec.id() == object).ok_or(wrong(false))?;
                Ok(Content::Spec { object, spec: Arc::new(spec) })
            }
            Want::Document { digest } if Digest::of(&bytes) == digest => {
                Ok(Content::Document { digest, bytes })
            }
            Want::Document { .. } => Err(wrong(false)),
            Want::Image { name } => {
                let (manifest, resolved_at) = decode_image(&bytes).ok_or(wrong(false))?;
                Ok(Content::Image { name, manifest, resolved_at })
            }
        }
    }
}

fn content(head: &Head, bytes: BytesMut) -> Option<Bytes> {
    match head.encoding {
        Encoding::Raw => Some(bytes.freeze()),
        Encoding::Zstd(_) => {
            let len = head.len as usize;
            let bytes = zstd::bulk::decompress(&bytes, len).ok()?;
            (bytes.len() == len).then(|| bytes.into())
        }
    }
}

const _: () = assert!(ROOT_MAX <= BLOCK_MAX as usize);
