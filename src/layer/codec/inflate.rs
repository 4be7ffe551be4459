//! Raw deflate over the C interface of `libz-rs-sys`, which unlike the safe one
//! can stop at block boundaries and start in the middle of a stream. All unsafe
//! code of the layer module is here.

use std::ffi::c_int;
use std::mem::size_of;

use libz_rs_sys::{
    Z_BLOCK, Z_BUF_ERROR, Z_NO_FLUSH, Z_OK, Z_STREAM_END, inflate, inflateEnd,
    inflateGetDictionary, inflateInit2_, inflatePrime, inflateSetDictionary, z_stream, zlibVersion,
};

/// How far back deflate can refer, in bytes.
pub(crate) const WINDOW: usize = 32 << 10;

/// The stream is not deflate, or there is no memory for the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InflateError;

/// What a step did.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inflated {
    /// Input bytes taken.
    pub(super) consumed: usize,
    /// The stream's last block is complete.
    pub(super) end: bool,
    /// Between two blocks: the number of bits of the last byte taken that belong
    /// to the next block.
    pub(super) boundary: Option<u8>,
}

/// A decoder of one raw deflate stream.
pub(super) struct Inflate {
    /// Boxed: the decoder's state points back at it.
    stream: Box<z_stream>,
}

// SAFETY: the stream and all that it points to are owned by this value alone,
// are not bound to a thread, and `&Inflate` only reads.
unsafe impl Send for Inflate {}
// SAFETY: as above.
unsafe impl Sync for Inflate {}

impl Inflate {
    /// At the start of a stream.
    pub(super) fn new() -> Result<Self, InflateError> {
        let mut stream = Box::new(z_stream::default());
        // SAFETY: `stream` is a valid z_stream with the default allocators, and
        // the version and size are those of the very library called.
        let result = unsafe {
            inflateInit2_(&raw mut *stream, -15, zlibVersion(), size_of::<z_stream>() as c_int)
        };
        match result {
            Z_OK => Ok(Self { stream }),
            _ => Err(InflateError),
        }
    }

    /// In the middle of a stream: `window` is the output before, at most
    /// [`WINDOW`] bytes; `bits` (0 to 7) and `value` are those bits of the byte
    /// before the next that were not used.
    pub(super) fn resume(bits: u8, value: u8, window: &[u8]) -> Result<Self, InflateError> {
        let mut this = Self::new()?;
        if bits > 7 || window.len() > WINDOW {
            return Err(InflateError);
        }
        let stream = &raw mut *this.stream;
        let value = c_int::from(value & ((1 << bits) - 1));
        // SAFETY: `stream` was initialised by `new` and nothing was decoded yet;
        // the window is valid for its length, which fits u32.
        let results = unsafe {
            [
                inflatePrime(stream, c_int::from(bits), value),
                match window.len() {
                    0 => Z_OK,
                    len => inflateSetDictionary(stream, window.as_ptr(), len as u32),
                },
            ]
        };
        match results {
            [Z_OK, Z_OK] => Ok(this),
            _ => Err(InflateError),
        }
    }

    /// Decodes from `input` into the spare capacity of `out` until one of them is
    /// used up, the stream ends, or, with `stop_at_blocks`, a block ends.
    pub(super) fn step(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        stop_at_blocks: bool,
    ) -> Result<Inflated, InflateError> {
        let limit = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        let spare = out.spare_capacity_mut();
        let (available_in, available_out) = (limit(input.len()), limit(spare.len()));
        self.stream.next_in = input.as_ptr().cast_mut();
        self.stream.avail_in = available_in;
        self.stream.next_out = spare.as_mut_ptr().cast();
        self.stream.avail_out = available_out;
        let flush = match stop_at_blocks {
            true => Z_BLOCK,
            false => Z_NO_FLUSH,
        };
        // SAFETY: the stream is initialised; `next_in` and `next_out` point to at
        // least `avail_in` readable and `avail_out` writable bytes, which nothing
        // else touches during the call.
        let result = unsafe { inflate(&raw mut *self.stream, flush) };
        let consumed = (available_in - self.stream.avail_in) as usize;
        let produced = (available_out - self.stream.avail_out) as usize;
        // The buffers are not ours after this call.
        self.stream.next_in = std::ptr::null_mut();
        self.stream.next_out = std::ptr::null_mut();
        // SAFETY: inflate initialised the first `produced` spare bytes.
        unsafe { out.set_len(out.len() + produced) };
        // Bits: how many are unused; 64: in the last block; 128: at a boundary.
        let state = self.stream.data_type;
        let bits = u8::try_from(state & 63).ok().filter(|bits| *bits < 8);
        match result {
            Z_OK | Z_BUF_ERROR | Z_STREAM_END => Ok(Inflated {
                consumed,
                end: result == Z_STREAM_END,
                boundary: bits.filter(|_| state & (64 | 128) == 128),
            }),
            _ => Err(InflateError),
        }
    }

    /// The last bytes of output, at most [`WINDOW`] of them: all that later
    /// blocks can refer to.
    pub(super) fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut len = 0;
        // SAFETY: the stream is initialised, and the buffer has the 32 KiB that
        // are always enough.
        let result = unsafe {
            inflateGetDictionary(&raw const *self.stream, window.as_mut_ptr(), &raw mut len)
        };
        window.truncate(match result {
            Z_OK => len as usize,
            _ => 0,
        });
        window
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was initialised and is ended only here.
        unsafe { inflateEnd(&raw mut *self.stream) };
    }
}
