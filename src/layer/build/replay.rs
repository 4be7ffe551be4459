//! Brings a builder back to where it was before a restart.

use bytes::Bytes;

use super::layer::{BuildError, Expected, LayerBuilder, NullSink};

/// Feeds a fresh builder the part of the stream that it has seen before, out of
/// what the pass staged. It asks for literal bytes and for content of objects in
/// the order of the stream; nobody has to know where they lie in it.
pub struct Replay {
    builder: LayerBuilder,
    end: u64,
}

impl Replay {
    /// Replays the first `end` bytes of the stream into a builder that is as
    /// fresh as the first one was.
    pub fn new(builder: LayerBuilder, end: u64) -> Self {
        Self { builder, end }
    }

    /// What to [supply](Replay::supply) next, at most; `None` when all is done.
    pub fn wants(&self) -> Option<Expected> {
        let left = self.end.saturating_sub(self.builder.offset());
        if left == 0 {
            return None;
        }
        Some(match self.builder.expects() {
            Expected::Literal(len) => Expected::Literal(len.min(left)),
            Expected::Content { object, offset, len } => {
                let len = len.min(left);
                Expected::Content { object, offset, len }
            }
        })
    }

    /// Gives the next bytes, not more than were wanted.
    ///
    /// # Errors
    /// [`BuildError`] if they are not those of the first time: begin anew then.
    pub fn supply(&mut self, bytes: Bytes) -> Result<(), BuildError> {
        self.builder.feed(bytes, &mut NullSink)
    }

    /// The builder, to go on with.
    pub fn into_builder(self) -> LayerBuilder {
        self.builder
    }
}
