//! Where a first pass leaves what it makes.

use bytes::Bytes;

use crate::layer::build::{BuildObject, Sink, SinkError};
use crate::store::{StageError, Staging, Stream};
use crate::types::{BlockHash, ObjectSpec, VerifiedBlock};

/// A layer with so little in it is kept in memory until it is whole, and becomes
/// durable with others: reading it again costs less than files of its own would.
const SMALL: u64 = 1 << 20;

/// What a small layer holds.
#[derive(Default)]
pub(super) struct Held {
    /// Of which object, from which byte of it on.
    pub(super) blocks: Vec<(BuildObject, u64, VerifiedBlock)>,
    pub(super) literals: Vec<Bytes>,
    bytes: u64,
}

/// Keeps a small layer, and writes a larger one to staged streams.
pub(super) struct StagingSink<'a> {
    staging: &'a Staging,
    held: Option<Held>,
}

/// The staged stream of an object that is being built.
pub(super) fn stream_of(object: BuildObject) -> Stream {
    match object {
        BuildObject::Bundle => Stream::Bundle,
        BuildObject::File(number) => Stream::File(number),
    }
}

impl<'a> StagingSink<'a> {
    /// What comes goes on where the staged streams end.
    pub(super) fn new(staging: &'a Staging) -> Self {
        let held = staging.resumed().is_none().then(Held::default);
        Self { staging, held }
    }

    /// Writes what is held to the staged streams, and from now on all that comes.
    pub(super) fn spill(&mut self) -> Result<(), StageError> {
        let Some(held) = self.held.take() else { return Ok(()) };
        for (object, offset, block) in &held.blocks {
            self.staging.put(stream_of(*object), *offset, block)?;
        }
        for bytes in &held.literals {
            self.staging.append(Stream::Literals, bytes)?;
        }
        Ok(())
    }

    /// What is held; `None` where it was staged.
    pub(super) fn into_held(self) -> Option<Held> {
        self.held
    }

    /// Where `len` more bytes go, if they are to be held.
    fn holds(&mut self, len: usize) -> Result<Option<&mut Held>, StageError> {
        let bytes = self.held.as_ref().map_or(0, |held| held.bytes) + len as u64;
        if bytes > SMALL {
            self.spill()?;
        }
        let mut held = self.held.as_mut();
        if let Some(held) = &mut held {
            held.bytes = bytes;
        }
        Ok(held)
    }
}

impl Sink for StagingSink<'_> {
    fn block(
        &mut self,
        object: BuildObject,
        offset: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError> {
        match self.holds(block.data().len())? {
            Some(held) => held.blocks.push((object, offset, block)),
            None => self.staging.put(stream_of(object), offset, &block)?,
        }
        Ok(())
    }

    fn literal(&mut self, bytes: &Bytes) -> Result<(), SinkError> {
        match self.holds(bytes.len())? {
            Some(held) => held.literals.push(bytes.clone()),
            None => drop(self.staging.append(Stream::Literals, bytes)?),
        }
        Ok(())
    }

    fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
        Ok(())
    }
}
