//! Cuts content into sealed blocks.

use bytes::{Bytes, BytesMut};

use crate::types::{BlockHash, ObjectSpec, SpecError, VerifiedBlock};

use super::layer::{BuildError, BuildObject, Sink};

/// Bytes of one object on their way into blocks. Full blocks that lie in one
/// piece of the input are not copied.
pub(super) struct Cutter {
    object: BuildObject,
    block_size: u32,
    /// First byte of the open block in the object.
    start: u64,
    open: BytesMut,
    blocks: Vec<(BlockHash, u32)>,
}

impl Cutter {
    pub(super) fn new(object: BuildObject, block_size: u32) -> Self {
        Self { object, block_size, start: 0, open: BytesMut::new(), blocks: Vec::new() }
    }

    /// Bytes taken so far.
    pub(super) fn length(&self) -> u64 {
        self.start + self.open.len() as u64
    }

    /// First byte of the block that is being filled.
    pub(super) fn block_start(&self) -> u64 {
        self.start
    }

    /// Adds bytes.
    pub(super) fn push(&mut self, mut bytes: Bytes, sink: &mut dyn Sink) -> Result<(), BuildError> {
        let size = self.block_size as usize;
        while !bytes.is_empty() {
            if self.open.is_empty() && bytes.len() >= size {
                self.seal(bytes.split_to(size), sink)?;
                continue;
            }
            if self.open.capacity() == 0 {
                self.open.reserve(size);
            }
            let piece = bytes.split_to(bytes.len().min(size - self.open.len()));
            self.open.extend_from_slice(&piece);
            if self.open.len() == size {
                self.cut(sink)?;
            }
        }
        Ok(())
    }

    /// Ends the open block, if there is one.
    pub(super) fn cut(&mut self, sink: &mut dyn Sink) -> Result<(), BuildError> {
        match self.open.is_empty() {
            true => Ok(()),
            false => {
                let block = std::mem::take(&mut self.open).freeze();
                self.seal(block, sink)
            }
        }
    }

    /// The bytes of the open block and where they begin.
    pub(super) fn open(&self) -> Option<(BuildObject, u64, Bytes)> {
        let bytes = || Bytes::copy_from_slice(&self.open);
        (!self.open.is_empty()).then(|| (self.object, self.start, bytes()))
    }

    /// The object, all of whose blocks are sealed.
    pub(super) fn finish(mut self, sink: &mut dyn Sink) -> Result<ObjectSpec, BuildError> {
        self.cut(sink)?;
        ObjectSpec::new(self.block_size, self.blocks).map_err(BuildError::Object)
    }

    fn seal(&mut self, bytes: Bytes, sink: &mut dyn Sink) -> Result<(), BuildError> {
        let block = VerifiedBlock::seal(bytes);
        let len = block.data().len() as u32;
        if self.blocks.len() >= BLOCKS_MAX {
            return Err(BuildError::Object(SpecError::TooLarge));
        }
        self.blocks.push((*block.hash(), len));
        let offset = self.start;
        self.start += u64::from(len);
        sink.block(self.object, offset, block).map_err(BuildError::Sink)
    }
}

/// More than an object can have: memory ends here, at 1.2 GB.
const BLOCKS_MAX: usize = 1 << 25;
