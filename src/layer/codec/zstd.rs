//! Zstandard (RFC 8878) of any number of frames, skippable ones included.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::{Boundary, CodecError, Progress};

/// Largest window that a frame may ask for, as a power of two: 128 MiB, what the
/// reference decoder takes unasked and level 22 needs. It bounds memory.
const WINDOW_LOG_MAX: u32 = 27;

/// A decoder of a sequence of frames.
pub(crate) struct Zstd {
    context: DCtx<'static>,
    /// Before a frame, or behind the last one.
    between: bool,
    started: bool,
}

impl Zstd {
    /// At the start of a frame.
    pub(crate) fn new() -> Result<Self, CodecError> {
        let mut context = DCtx::try_create().ok_or(CodecError::Memory)?;
        context
            .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
            .map_err(|_| CodecError::Memory)?;
        Ok(Self { context, between: true, started: false })
    }

    /// Decodes into the spare capacity of `out`. Stops when `input` or `out` is
    /// used up, and before each frame but the first.
    pub(crate) fn step(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<Progress, CodecError> {
        let mut consumed = 0;
        // Output can be left inside the decoder when all input is taken.
        while out.len() < out.capacity() {
            if self.between {
                if consumed == input.len() {
                    break;
                }
                self.between = false;
                if std::mem::replace(&mut self.started, true) {
                    let boundary = Some(Boundary::Start);
                    return Ok(Progress { consumed, boundary });
                }
            }
            let before = (consumed, out.len());
            let mut source = InBuffer::around(&input[consumed..]);
            let position = out.len();
            let mut target = OutBuffer::around_pos(out, position);
            let left = self
                .context
                .decompress_stream(&mut target, &mut source)
                .map_err(|code| CodecError::Malformed(zstd::zstd_safe::get_error_name(code)))?;
            consumed += source.pos();
            self.between = left == 0;
            if (consumed, out.len()) == before {
                break;
            }
        }
        Ok(Progress { consumed, boundary: None })
    }

    /// Whether the input may end here.
    pub(crate) fn may_end(&self) -> bool {
        self.started && self.between
    }
}
