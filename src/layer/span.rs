//! Decoding a blob from a point in its middle.

use std::ops::ControlFlow;

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::inflate::{Inflate, InflateError, Stop};
use super::seek::{Compression, SeekTable};

/// Decoded bytes are given on in pieces of at most this.
const PIECE: usize = 128 << 10;
/// Largest zstd window, as a power of two: 128 MiB, what the zstd command
/// accepts by default. Bounds the memory that a hostile frame can ask for.
pub const ZSTD_WINDOW_LOG_MAX: u32 = 27;
/// Length of a gzip trailer in bytes.
const TRAILER: usize = 8;

/// Why a blob can't be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// Not gzip, or not where the seek table says.
    #[error("gzip at byte {blob} of the blob: {error}")]
    Gzip {
        /// Where.
        blob: u64,
        /// What is wrong.
        error: InflateError,
    },
    /// Not zstd, or not where the seek table says.
    #[error("zstd at byte {blob} of the blob: {error}")]
    Zstd {
        /// Where.
        blob: u64,
        /// What is wrong.
        error: &'static str,
    },
    /// The seek table's window can't be read.
    #[error("the seek table's window at stream offset {0} is damaged")]
    Window(u64),
    /// There is more than the index says.
    #[error("the stream is longer than the {0} bytes that its index says")]
    TooLong(u64),
}

/// Decodes a stretch of a blob, fed in order from [`SpanDecoder::blob_position`].
pub struct SpanDecoder {
    state: State,
    blob: u64,
    stream: u64,
    limit: u64,
    piece: Vec<u8>,
}

enum State {
    Plain,
    Gzip(Inflate, Gzip),
    Zstd(DCtx<'static>),
}

/// Where in a gzip blob the decoder is.
enum Gzip {
    /// The next byte is shared with what came before the point: so many of its
    /// high bits count, and this is the window.
    Shared(u8, Vec<u8>),
    /// In a deflate stream entered in its middle, whose header is not known.
    Raw,
    /// So many bytes of the trailer of such a stream are still to come.
    Trailer(usize),
    /// At the header of a member, or in the padding after the last one.
    Between,
    /// In a member entered at its header.
    Member,
}

impl SpanDecoder {
    /// Enters the blob at the nearest point at or before `stream`.
    ///
    /// # Errors
    /// [`SpanError::Window`], or out of memory.
    pub fn new(seek: &SeekTable, stream: u64) -> Result<Self, SpanError> {
        let point = seek.point_before(stream);
        let (blob, start) = match seek.compression() {
            Compression::Plain => (stream, stream),
            _ => point.map_or((0, 0), |(_, p)| (p.blob, p.stream)),
        };
        let gzip = |error| SpanError::Gzip { blob, error };
        let state = match (seek.compression(), point) {
            (Compression::Plain, _) => State::Plain,
            (Compression::Gzip, Some((index, p))) if p.has_window => {
                let window = seek.window(index).ok_or(SpanError::Window(p.stream))?;
                if p.bits > 0 {
                    let shared = Gzip::Shared(p.bits, window);
                    State::Gzip(Inflate::resume(0, 0, &[]).map_err(gzip)?, shared)
                } else {
                    State::Gzip(Inflate::resume(0, 0, &window).map_err(gzip)?, Gzip::Raw)
                }
            }
            (Compression::Gzip, _) => State::Gzip(Inflate::gzip().map_err(gzip)?, Gzip::Between),
            (Compression::Zstd, _) => State::Zstd(zstd_context(blob)?),
        };
        let limit = seek.stream_length();
        Ok(Self { state, blob, stream: start, limit, piece: vec![0; PIECE] })
    }

    /// Offset in the blob of the next byte to feed.
    pub fn blob_position(&self) -> u64 {
        self.blob
    }

    /// Offset in the stream of the next byte to come out.
    pub fn stream_position(&self) -> u64 {
        self.stream
    }

    /// Decodes the next bytes of the blob; what comes out goes to `out`, which
    /// can break off: the rest of the input is dropped then.
    ///
    /// # Errors
    /// [`SpanError`]; the decoder can't be used any more.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        out: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SpanError> {
        if matches!(self.state, State::Plain) {
            self.blob += input.len() as u64;
            return self.give(input.len(), |_| input, out);
        }
        let mut full = false;
        while !input.is_empty() || full {
            let (consumed, produced) = match &mut self.state {
                State::Plain => (input.len(), 0),
                State::Gzip(inflate, at) => {
                    let blob = self.blob;
                    gzip_step(inflate, at, input, &mut self.piece)
                        .map_err(|error| SpanError::Gzip { blob, error })?
                }
                State::Zstd(context) => zstd_step(context, input, &mut self.piece, self.blob)?,
            };
            input = &input[consumed..];
            self.blob += consumed as u64;
            // A full piece may mean that the decoder holds more.
            full = produced == PIECE;
            if produced > 0 {
                let piece = std::mem::take(&mut self.piece);
                let flow = self.give(produced, |n| &piece[..n], out);
                self.piece = piece;
                if flow?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn give<'a>(
        &mut self,
        length: usize,
        bytes: impl FnOnce(usize) -> &'a [u8],
        out: &mut impl FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, SpanError> {
        self.stream += length as u64;
        if self.stream > self.limit {
            return Err(SpanError::TooLong(self.limit));
        }
        Ok(out(bytes(length)))
    }
}

/// One step through gzip: bytes consumed and produced.
fn gzip_step(
    inflate: &mut Inflate,
    at: &mut Gzip,
    input: &[u8],
    piece: &mut [u8],
) -> Result<(usize, usize), InflateError> {
    match at {
        Gzip::Shared(bits, window) => {
            let Some(byte) = input.first() else { return Ok((0, 0)) };
            *inflate = Inflate::resume(*bits, *byte, window)?;
            *at = Gzip::Raw;
            Ok((1, 0))
        }
        Gzip::Trailer(left) => {
            let skipped = input.len().min(*left);
            *left -= skipped;
            if *left == 0 {
                inflate.next_member()?;
                *at = Gzip::Between;
            }
            Ok((skipped, 0))
        }
        Gzip::Between => {
            let padding = input.iter().take_while(|b| **b == 0).count();
            if padding < input.len() {
                *at = Gzip::Member;
            }
            Ok((padding, 0))
        }
        Gzip::Raw | Gzip::Member => {
            let step = inflate.step(input, piece, false)?;
            if step.stop == Stop::End {
                if matches!(at, Gzip::Raw) {
                    *at = Gzip::Trailer(TRAILER);
                } else {
                    inflate.next_member()?;
                    *at = Gzip::Between;
                }
            }
            Ok((step.consumed, step.produced))
        }
    }
}

fn zstd_step(
    context: &mut DCtx<'static>,
    input: &[u8],
    piece: &mut [u8],
    blob: u64,
) -> Result<(usize, usize), SpanError> {
    let mut from = InBuffer::around(input);
    let mut to = OutBuffer::around(piece);
    context.decompress_stream(&mut to, &mut from).map_err(|code| zstd_error(blob, code))?;
    Ok((from.pos(), to.pos()))
}

/// A decoder with a bounded window.
fn zstd_context(blob: u64) -> Result<DCtx<'static>, SpanError> {
    let mut context =
        DCtx::try_create().ok_or(SpanError::Zstd { blob, error: "not enough memory" })?;
    context
        .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX))
        .map_err(|code| zstd_error(blob, code))?;
    Ok(context)
}

fn zstd_error(blob: u64, code: usize) -> SpanError {
    SpanError::Zstd { blob, error: zstd::zstd_safe::get_error_name(code) }
}
