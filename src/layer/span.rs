//! Decodes a stretch of a blob from a point in its middle.

use bytes::Bytes;

use super::codec::{Codec, CodecError, Compression};
use super::seek::{Entry, SeekTable, Span, unpack_window};

/// Bytes of the stream handed out at once, at most.
const CHUNK: usize = 256 << 10;

/// Why a span can't be decoded. The seek table may be wrong as well as the
/// blob's bytes; either way, what came out before is checked block by block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// The table has no such span.
    #[error("the seek table has no such span")]
    NoSuchSpan,
    /// The window of the point is damaged.
    #[error("the seek table's window is damaged")]
    Window,
    /// The blob's bytes don't decode from this point.
    #[error("the blob does not decode near byte {stream} of its stream: {what}")]
    Malformed {
        /// Offset in the stream.
        stream: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// No memory for a decoder.
    #[error("out of memory for a decoder")]
    Memory,
}

/// Decodes one [`Span`]. Feed it the bytes of [`Span::blob`] in order; it hands
/// out those of [`Span::stream`] and never more.
pub struct SpanDecoder {
    codec: Codec,
    at: u64,
    end: u64,
}

impl SpanDecoder {
    /// A decoder at the start of a span of this table.
    ///
    /// # Errors
    /// [`SpanError`] if the span is not one of the table's, or its point is damaged.
    pub fn new(table: &SeekTable, span: &Span) -> Result<Self, SpanError> {
        let entry = match (table.compression(), span.point) {
            (Compression::Plain, None) => &Entry::Start,
            (Compression::Gzip | Compression::Zstd, Some(point)) => {
                let point = table.points().get(point).ok_or(SpanError::NoSuchSpan)?;
                if (point.stream, point.blob) != (span.stream.start, span.blob.start) {
                    return Err(SpanError::NoSuchSpan);
                }
                &point.entry
            }
            _ => return Err(SpanError::NoSuchSpan),
        };
        let codec = match entry {
            Entry::Start => Codec::new(table.compression()),
            Entry::Block { bits, value, window } => {
                let window = unpack_window(window).ok_or(SpanError::Window)?;
                Codec::resume(*bits, *value, &window, None)
            }
        };
        let mut this = Self { codec: Codec::Plain, at: span.stream.start, end: span.stream.end };
        this.codec = codec.map_err(|e| this.error(e))?;
        Ok(this)
    }

    /// Offset in the stream of the byte that comes out next.
    pub fn stream_offset(&self) -> u64 {
        self.at
    }

    /// Goes on to byte `end` of the stream, where it would have ended before.
    pub fn extend(&mut self, end: u64) {
        self.end = self.end.max(end);
    }

    /// Bytes that are still to come out. If some are when all of the span's bytes
    /// were fed, the blob or the table is wrong.
    pub fn remaining(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Takes bytes off the front of `input` and hands out what they decode to.
    /// `None` when `input` is used up and nothing is held back, or the span is
    /// complete.
    ///
    /// # Errors
    /// [`SpanError`]; the decoder is of no use after one.
    pub fn feed(&mut self, input: &mut Bytes) -> Result<Option<Bytes>, SpanError> {
        let room = usize::try_from(self.remaining()).map_or(CHUNK, |left| left.min(CHUNK));
        if room == 0 {
            return Ok(None);
        }
        if let Codec::Plain = self.codec {
            let bytes = input.split_to(room.min(input.len()));
            self.at += bytes.len() as u64;
            return Ok((!bytes.is_empty()).then_some(bytes));
        }
        let mut out = Vec::with_capacity(room);
        loop {
            let result = self.codec.step(input, &mut out, false);
            let progress = result.map_err(|e| self.error(e))?;
            let stuck = progress.consumed == 0 && progress.boundary.is_none();
            drop(input.split_to(progress.consumed));
            if !out.is_empty() {
                out.truncate(room);
                self.at += out.len() as u64;
                return Ok(Some(out.into()));
            }
            if stuck {
                return Ok(None);
            }
        }
    }

    fn error(&self, error: CodecError) -> SpanError {
        match error {
            CodecError::Malformed(what) => SpanError::Malformed { stream: self.at, what },
            CodecError::Memory => SpanError::Memory,
        }
    }
}
