//! The compressions of layer blobs as push decoders.

mod gzip;
mod inflate;
#[cfg(test)]
pub(crate) mod testing;
mod zstd;

use gzip::Gzip;
use zstd::Zstd;

pub(crate) use inflate::WINDOW;

/// How a blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all: the stream is the blob.
    Plain,
    /// gzip, of one or several members.
    Gzip,
    /// Zstandard, of one or several frames.
    Zstd,
}

impl Compression {
    /// Bytes from which [`Compression::detect`] can tell.
    pub const MAGIC: usize = 6;

    /// Tells the compression of a blob by its first bytes (all of them, when it
    /// has fewer than [`Compression::MAGIC`]). Media types are not to be
    /// trusted: containerd goes by the magic too.
    ///
    /// # Errors
    /// The name of a compression that OCI layers don't use.
    pub fn detect(first: &[u8]) -> Result<Self, &'static str> {
        match first {
            [0x1f, 0x8b, ..] => Ok(Self::Gzip),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Self::Zstd),
            // A skippable frame.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Self::Zstd),
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, ..] => Err("bzip2"),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err("xz"),
            _ => Ok(Self::Plain),
        }
    }
}

/// Why bytes can't be decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodecError {
    /// What is wrong, in words.
    Malformed(&'static str),
    /// No memory for a decoder.
    Memory,
}

/// A place where decoding can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Boundary {
    /// A gzip member or zstd frame begins with the next byte.
    Start,
    /// A deflate block begins in the last `bits` bits of the byte before the next.
    Block {
        /// 0 to 7.
        bits: u8,
        /// These bits.
        value: u8,
    },
}

/// What a step took, and where it stopped before it had to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) consumed: usize,
    pub(crate) boundary: Option<Boundary>,
}

/// A decoder of any compression.
pub(crate) enum Codec {
    Plain,
    Gzip(Gzip),
    Zstd(Zstd),
}

impl Codec {
    /// At the start of a blob, gzip member or zstd frame.
    pub(crate) fn new(compression: Compression) -> Result<Self, CodecError> {
        Ok(match compression {
            Compression::Plain => Self::Plain,
            Compression::Gzip => Self::Gzip(Gzip::new()),
            Compression::Zstd => Self::Zstd(Zstd::new()?),
        })
    }

    /// Inside a gzip member, `length` bytes (modulo 2^32) into its output if
    /// that is known.
    pub(crate) fn resume(
        bits: u8,
        value: u8,
        window: &[u8],
        length: Option<u32>,
    ) -> Result<Self, CodecError> {
        Gzip::resume(bits, value, window, length).map(Self::Gzip)
    }

    /// Decodes into the spare capacity of `out` until it or `input` is used up,
    /// or a boundary is reached; block boundaries are of interest only with
    /// `at_blocks`. Always call it again with an empty input before giving more,
    /// until `out` is no longer filled: decoders hold output back.
    pub(crate) fn step(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
        at_blocks: bool,
    ) -> Result<Progress, CodecError> {
        match self {
            Self::Plain => {
                let consumed = input.len().min(out.capacity() - out.len());
                out.extend_from_slice(&input[..consumed]);
                Ok(Progress { consumed, boundary: None })
            }
            Self::Gzip(gzip) => gzip.step(input, out, at_blocks),
            Self::Zstd(zstd) => zstd.step(input, out),
        }
    }

    /// At a block boundary inside a gzip member: the window, and the member's
    /// output so far.
    pub(crate) fn inside(&self) -> Option<(Vec<u8>, Option<u32>)> {
        match self {
            Self::Gzip(gzip) => gzip.inside(),
            Self::Plain | Self::Zstd(_) => None,
        }
    }

    /// Whether the input may end here.
    pub(crate) fn may_end(&self) -> bool {
        match self {
            Self::Plain => true,
            Self::Gzip(gzip) => gzip.may_end(),
            Self::Zstd(zstd) => zstd.may_end(),
        }
    }
}
