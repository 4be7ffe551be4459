//! Where a first pass leaves what it makes: the store's staging area.

use bytes::Bytes;

use crate::layer::build::{BuildObject, Sink, SinkError};
use crate::store::{Staging, Stream};
use crate::types::{BlockHash, ObjectSpec, VerifiedBlock};

/// Writes blocks and literals to staged streams.
pub(super) struct StagingSink<'a>(pub(super) &'a Staging);

/// The staged stream of an object that is being built.
pub(super) fn stream_of(object: BuildObject) -> Stream {
    match object {
        BuildObject::Bundle => Stream::Bundle,
        BuildObject::File(number) => Stream::File(number),
    }
}

impl Sink for StagingSink<'_> {
    fn block(
        &mut self,
        object: BuildObject,
        offset: u64,
        block: VerifiedBlock,
    ) -> Result<(), SinkError> {
        Ok(self.0.put(stream_of(object), offset, &block)?)
    }

    fn literal(&mut self, bytes: &Bytes) -> Result<(), SinkError> {
        self.0.append(Stream::Literals, bytes)?;
        Ok(())
    }

    fn file_done(&mut self, _: u32, _: &ObjectSpec, _: &BlockHash) -> Result<(), SinkError> {
        Ok(())
    }
}
