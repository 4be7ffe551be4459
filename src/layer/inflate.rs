//! Inflate that can stop at block boundaries and start in the middle: the only
//! place that speaks to zlib's C interface.

use std::ptr;

use libz_rs_sys as zlib;

/// Deflate looks back at most this far, in bytes.
pub const WINDOW: usize = 32 << 10;

/// `windowBits` for a gzip member with header and trailer.
const GZIP: i32 = 15 + 16;
/// `windowBits` for a bare deflate stream.
const RAW: i32 = -15;

/// A decompressor of one deflate stream.
pub struct Inflate {
    /// Boxed: zlib's state points back at it.
    stream: Box<zlib::z_stream>,
}

// SAFETY: the stream owns its allocations, which have no tie to a thread.
unsafe impl Send for Inflate {}

/// What one call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes taken from the input.
    pub consumed: usize,
    /// Bytes written to the output.
    pub produced: usize,
    /// Why it stopped.
    pub stop: Stop,
}

/// Why a call stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Input or output is used up.
    Starved,
    /// At the boundary of a block, of which `bits` (0 to 7) of the last byte
    /// consumed belong to what follows. `last`: no further block follows.
    Block {
        /// Bits of the last consumed byte that were not used.
        bits: u8,
        /// The block was the stream's last one.
        last: bool,
    },
    /// After the end of the stream; for gzip after the trailer, which was checked.
    End,
}

/// Why a stream can't be inflated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// Not deflate, or not gzip where that is expected, or a wrong checksum.
    #[error("the compressed data is damaged")]
    Data,
    /// A seek point that can't be one.
    #[error("the seek point is malformed")]
    Point,
    /// Out of memory.
    #[error("not enough memory to decompress")]
    Memory,
}

impl Inflate {
    /// At the header of a gzip member.
    ///
    /// # Errors
    /// [`InflateError::Memory`].
    pub fn gzip() -> Result<Self, InflateError> {
        Self::new(GZIP)
    }

    /// In the middle of a deflate stream, at a block boundary: `bits` (0 to 7)
    /// high bits of `byte` come first, and `window` is what the stream gave
    /// before, at most [`WINDOW`] bytes.
    ///
    /// # Errors
    /// [`InflateError`].
    pub fn resume(bits: u8, byte: u8, window: &[u8]) -> Result<Self, InflateError> {
        if bits > 7 || window.len() > WINDOW {
            return Err(InflateError::Point);
        }
        let mut inflate = Self::new(RAW)?;
        let stream: *mut zlib::z_stream = &mut *inflate.stream;
        if bits > 0 {
            let value = i32::from(byte) >> (8 - bits);
            // SAFETY: the stream is initialised and not shared.
            check(unsafe { zlib::inflatePrime(stream, bits.into(), value) })?;
        }
        if !window.is_empty() {
            // SAFETY: as above; pointer and length are those of a slice, at most 32 KiB.
            check(unsafe {
                zlib::inflateSetDictionary(stream, window.as_ptr(), window.len() as u32)
            })?;
        }
        Ok(inflate)
    }

    /// Starts over at the header of the next gzip member.
    ///
    /// # Errors
    /// [`InflateError::Memory`].
    pub fn next_member(&mut self) -> Result<(), InflateError> {
        // SAFETY: the stream is initialised and not shared.
        check(unsafe { zlib::inflateReset2(&mut *self.stream, GZIP) })
    }

    /// Decompresses from `input` to `output`. With `blocks` it also stops at
    /// the boundaries of blocks, else only where input or output or stream end.
    ///
    /// # Errors
    /// [`InflateError::Data`]; the stream can't be used any more.
    pub fn step(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        blocks: bool,
    ) -> Result<Step, InflateError> {
        let length = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (avail_in, avail_out) = (length(input.len()), length(output.len()));
        let stream = &mut *self.stream;
        stream.next_in = input.as_ptr().cast_mut();
        stream.avail_in = avail_in;
        stream.next_out = output.as_mut_ptr();
        stream.avail_out = avail_out;
        let flush = if blocks { zlib::Z_BLOCK } else { zlib::Z_NO_FLUSH };
        // SAFETY: the stream is initialised; its pointers and lengths are those
        // of two live slices, of which the input is only read.
        let code = unsafe { zlib::inflate(stream, flush) };
        let consumed = (avail_in - stream.avail_in) as usize;
        let produced = (avail_out - stream.avail_out) as usize;
        let kind = stream.data_type;
        stream.next_in = ptr::null_mut();
        stream.next_out = ptr::null_mut();
        stream.avail_in = 0;
        stream.avail_out = 0;
        let stop = match code {
            zlib::Z_STREAM_END => Stop::End,
            // No progress was possible: not an error, there is nothing to work with.
            zlib::Z_OK | zlib::Z_BUF_ERROR if blocks && kind & 128 != 0 => {
                Stop::Block { bits: (kind & 7) as u8, last: kind & 64 != 0 }
            }
            zlib::Z_OK | zlib::Z_BUF_ERROR => Stop::Starved,
            zlib::Z_MEM_ERROR => return Err(InflateError::Memory),
            _ => return Err(InflateError::Data),
        };
        Ok(Step { consumed, produced, stop })
    }

    /// What the stream gave last, at most [`WINDOW`] bytes.
    pub fn window(&self) -> Vec<u8> {
        let mut window = vec![0; WINDOW];
        let mut length = 0;
        // SAFETY: the stream is initialised, and 32 KiB are enough for any window.
        unsafe {
            zlib::inflateGetDictionary(&*self.stream, window.as_mut_ptr(), &mut length);
        }
        window.truncate(length as usize);
        window
    }

    fn new(window_bits: i32) -> Result<Self, InflateError> {
        let mut stream = Box::new(zlib::z_stream::default());
        let size = size_of::<zlib::z_stream>() as i32;
        // SAFETY: a default stream asks for zlib's own allocator; version and
        // size are those of the library that is linked.
        check(unsafe {
            zlib::inflateInit2_(&mut *stream, window_bits, zlib::zlibVersion(), size)
        })?;
        Ok(Self { stream })
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, ended only here.
        unsafe { zlib::inflateEnd(&mut *self.stream) };
    }
}

fn check(code: i32) -> Result<(), InflateError> {
    match code {
        zlib::Z_OK => Ok(()),
        zlib::Z_MEM_ERROR => Err(InflateError::Memory),
        _ => Err(InflateError::Point),
    }
}
