//! The first stage of a pass: blob in, stream and seek points out.

use bytes::{Bytes, BytesMut};

use crate::layer::codec::{Boundary, Codec, CodecError, Compression};
use crate::layer::seek::{Entry, SeekPoint, pack_window, push_entry, read_entry, unpack_window};
use crate::layer::wire::{Reader, push_varint};
use crate::types::{Digest, DigestHasher};

/// Bytes of the stream handed out at once, at most.
const CHUNK: usize = 512 << 10;
/// Output between two points that cost a window.
const BLOCK_SPACING: u64 = 4 << 20;
/// Output between two points that cost nothing (member and frame starts):
/// nothing smaller than a block is ever fetched.
const START_SPACING: u64 = 256 << 10;

/// Bytes of the checksum behind a saved state: a hasher must not be restored
/// from what the disk made of it.
const SUM: usize = 8;

/// Bounds against blobs that decode to more than anybody wants.
///
/// Deflate can't expand more than 1,032 times, so a ratio above that refuses no
/// honest gzip layer and holds zstd, which can pack 30,000 times, to the same.
/// The absolute bound is what protects the disk.
#[derive(Clone, Copy, Debug)]
pub struct DecodeLimits {
    /// Bytes of the uncompressed stream.
    pub stream: u64,
    /// Uncompressed bytes for each byte of the blob, beyond `ratio_free`.
    pub ratio: u64,
    /// Uncompressed bytes that any blob may have.
    pub ratio_free: u64,
}

impl Default for DecodeLimits {
    /// 1 TiB; 1,100 to 1 beyond the first 256 MiB.
    fn default() -> Self {
        Self { stream: 1 << 40, ratio: 1100, ratio_free: 256 << 20 }
    }
}

/// Why a blob can't be decompressed. Offsets are bytes of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    /// A compression that OCI layers don't use.
    #[error("the layer is compressed with {0}, which is not supported")]
    Unsupported(&'static str),
    /// Not what its first bytes promised.
    #[error("the layer's blob is damaged near byte {offset}: {what}")]
    Malformed {
        /// How far it was good.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The blob ends inside a gzip member or zstd frame.
    #[error("the layer's blob ends early, at byte {offset}")]
    Truncated {
        /// Where it ends.
        offset: u64,
    },
    /// More output than [`DecodeLimits`] allow.
    #[error("the layer's blob decodes to more than {limit} bytes")]
    TooLarge {
        /// The bound that was met.
        limit: u64,
    },
    /// No memory for a decoder.
    #[error("out of memory for a decoder")]
    Memory,
}

/// What comes out of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// The next bytes of the stream.
    Stream(Bytes),
    /// Exactly here, between the bytes before and those after, decoding can
    /// begin. [`Decompressor::save`] works now.
    Point(SeekPoint),
}

/// All that is known at the end of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decompressed {
    /// How the blob was compressed.
    pub compression: Compression,
    /// Bytes of the blob.
    pub blob_length: u64,
    /// Bytes of the stream.
    pub stream_length: u64,
    /// SHA-256 of the blob. `None` for a plain one: it is that of the stream,
    /// which the next stage computes anyway.
    pub digest: Option<Digest>,
}

/// Turns a blob into its uncompressed stream. Memory does not depend on the
/// blob's length.
pub struct Decompressor {
    limits: DecodeLimits,
    /// The first bytes, while they are too few to tell the compression.
    head: BytesMut,
    compression: Option<(Compression, Codec)>,
    /// Stream bytes that are not handed out yet.
    out: Vec<u8>,
    blob: u64,
    stream: u64,
    hasher: DigestHasher,
    last_point: u64,
    /// A point that waits until the bytes before it are handed out.
    ready: Option<SeekPoint>,
    /// The point handed out last, if nothing came after it.
    here: Option<SeekPoint>,
}

impl Decompressor {
    /// For a blob whose compression its first bytes tell.
    pub fn new(limits: DecodeLimits) -> Self {
        Self {
            limits,
            head: BytesMut::new(),
            compression: None,
            out: Vec::new(),
            blob: 0,
            stream: 0,
            hasher: DigestHasher::default(),
            last_point: 0,
            ready: None,
            here: None,
        }
    }

    /// For a blob that is to be taken as it is, whatever it looks like.
    pub fn plain(limits: DecodeLimits) -> Self {
        Self { compression: Some((Compression::Plain, Codec::Plain)), ..Self::new(limits) }
    }

    /// The blob's compression, once enough bytes have been seen.
    pub fn compression(&self) -> Option<Compression> {
        self.compression.as_ref().map(|(compression, _)| *compression)
    }

    /// Bytes of the blob decoded so far.
    pub fn blob_offset(&self) -> u64 {
        self.blob
    }

    /// Bytes of the stream decoded so far, those not handed out yet included.
    pub fn stream_offset(&self) -> u64 {
        self.stream
    }

    /// Takes bytes of the blob off the front of `input` up to the next thing to
    /// hand out. `None` when `input` is used up.
    ///
    /// # Errors
    /// [`DecompressError`]; the decompressor is of no use after one.
    pub fn step(&mut self, input: &mut Bytes) -> Result<Option<Decoded>, DecompressError> {
        if let Some(point) = self.ready.take() {
            return Ok(Some(self.at_point(point)));
        }
        if self.compression.is_none() {
            if !self.head.is_empty() || input.len() < Compression::MAGIC {
                self.head.extend_from_slice(input);
                input.clear();
                if self.head.len() < Compression::MAGIC {
                    return Ok(None);
                }
                *input = self.head.split().freeze();
            }
            self.detect(input)?;
        }
        self.decode(input)
    }

    /// To be called when all of the blob was given, until it answers `None`.
    ///
    /// # Errors
    /// As [`Decompressor::step`], and [`DecompressError::Truncated`].
    pub fn end(&mut self) -> Result<Option<Decoded>, DecompressError> {
        if let Some(point) = self.ready.take() {
            return Ok(Some(self.at_point(point)));
        }
        let mut input = self.head.split().freeze();
        if self.compression.is_none() {
            self.detect(&input)?;
        }
        let decoded = self.decode(&mut input)?;
        // `decode` takes all there is in one go: it is less than a chunk.
        self.head = BytesMut::from(input);
        if decoded.is_some() {
            return Ok(decoded);
        }
        if !self.out.is_empty() {
            return Ok(Some(self.flush()));
        }
        match &self.compression {
            Some((_, codec)) if codec.may_end() => Ok(None),
            _ => Err(DecompressError::Truncated { offset: self.blob }),
        }
    }

    /// What the whole blob was. To be called after [`Decompressor::end`].
    pub fn finish(self) -> Decompressed {
        let compression = self.compression().unwrap_or(Compression::Plain);
        let is_plain = compression == Compression::Plain;
        Decompressed {
            compression,
            blob_length: self.blob,
            stream_length: self.stream,
            digest: (!is_plain).then(|| self.hasher.finish()),
        }
    }

    /// The state at a point, to continue from after a restart: the next byte to
    /// feed then is that at the point's blob offset. `None` unless a
    /// [`Decoded::Point`] came last (in a plain blob it always works). The bytes
    /// are meant for our own disk only.
    pub fn save(&self) -> Option<Vec<u8>> {
        let (compression, codec) = self.compression.as_ref()?;
        let mut out = Vec::new();
        let (entry, length) = match (compression, &self.here) {
            (Compression::Plain, _) => (&Entry::Start, None),
            (_, Some(point)) => {
                let length = match point.entry {
                    Entry::Start => None,
                    Entry::Block { .. } => codec.inside().and_then(|(_, length)| length),
                };
                (&point.entry, length)
            }
            (_, None) => return None,
        };
        out.push(match compression {
            Compression::Plain => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        });
        push_varint(&mut out, self.blob);
        push_varint(&mut out, self.stream);
        out.push(length.is_some().into());
        out.extend(length.unwrap_or_default().to_le_bytes());
        let hasher = self.hasher.save();
        push_varint(&mut out, hasher.len() as u64);
        out.extend(hasher);
        push_entry(&mut out, entry);
        let sum = blake3::hash(&out);
        out.extend(&sum.as_bytes()[..SUM]);
        Some(out)
    }

    /// Continues from [`Decompressor::save`]; `None` if the bytes are not such a
    /// state.
    pub fn restore(state: &Bytes, limits: DecodeLimits) -> Option<Self> {
        let (fields, sum) = state.split_at_checked(state.len().checked_sub(SUM)?)?;
        if blake3::hash(fields).as_bytes()[..SUM] != *sum {
            return None;
        }
        let mut reader = Reader(fields);
        let compression = match reader.u8()? {
            0 => Compression::Plain,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return None,
        };
        let (blob, stream) = (reader.varint()?, reader.varint()?);
        let has_length = reader.u8()? != 0;
        let output = reader.u32()?;
        let length = reader.varint()?;
        let hasher = DigestHasher::restore(reader.bytes(length)?)?;
        let codec = match read_entry(&mut reader, state)? {
            Entry::Start => Codec::new(compression),
            Entry::Block { bits, value, window } => {
                let output = has_length.then_some(output);
                Codec::resume(bits, value, &unpack_window(&window)?, output)
            }
        };
        Some(Self {
            compression: Some((compression, codec.ok()?)),
            blob,
            stream,
            hasher,
            last_point: stream,
            ..Self::new(limits)
        })
    }

    fn detect(&mut self, first: &[u8]) -> Result<(), DecompressError> {
        let compression = Compression::detect(first).map_err(DecompressError::Unsupported)?;
        let codec = Codec::new(compression).map_err(|e| self.error(e))?;
        self.compression = Some((compression, codec));
        Ok(())
    }

    fn decode(&mut self, input: &mut Bytes) -> Result<Option<Decoded>, DecompressError> {
        loop {
            let Some((compression, codec)) = &mut self.compression else {
                unreachable!("detected before")
            };
            if *compression == Compression::Plain {
                if input.is_empty() {
                    return Ok(None);
                }
                let bytes = input.split_to(input.len().min(CHUNK));
                self.blob += bytes.len() as u64;
                self.stream += bytes.len() as u64;
                self.check_limits()?;
                return Ok(Some(Decoded::Stream(bytes)));
            }
            if self.out.capacity() == 0 {
                self.out.reserve_exact(CHUNK);
            }
            let before = self.out.len();
            let at_blocks = self.stream - self.last_point >= BLOCK_SPACING;
            let result = codec.step(input, &mut self.out, at_blocks);
            let progress = result.map_err(|e| self.error(e))?;
            let taken = input.split_to(progress.consumed);
            self.hasher.update(&taken);
            self.blob += taken.len() as u64;
            let produced = self.out.len() - before;
            self.stream += produced as u64;
            self.check_limits()?;
            if produced > 0 || !taken.is_empty() {
                self.here = None;
            }
            if let Some(point) = progress.boundary.and_then(|b| self.point(b)) {
                self.last_point = self.stream;
                if self.out.is_empty() {
                    return Ok(Some(self.at_point(point)));
                }
                self.ready = Some(point);
                return Ok(Some(self.flush()));
            }
            if self.out.len() == self.out.capacity() {
                return Ok(Some(self.flush()));
            }
            if input.is_empty() && (produced == 0 || progress.boundary.is_none()) {
                return Ok(None);
            }
            if produced == 0 && taken.is_empty() && progress.boundary.is_none() {
                return Err(self.error(CodecError::Malformed("no progress")));
            }
        }
    }

    /// The point at a boundary, if it is far enough from the last.
    fn point(&self, boundary: Boundary) -> Option<SeekPoint> {
        let distance = self.stream - self.last_point;
        let entry = match boundary {
            Boundary::Start if distance >= START_SPACING => Entry::Start,
            Boundary::Block { bits, value } if distance >= BLOCK_SPACING => {
                let (_, codec) = self.compression.as_ref()?;
                let (window, _) = codec.inside()?;
                let window = pack_window(&window);
                Entry::Block { bits, value, window }
            }
            _ => return None,
        };
        Some(SeekPoint { stream: self.stream, blob: self.blob, entry })
    }

    fn at_point(&mut self, point: SeekPoint) -> Decoded {
        self.here = Some(point.clone());
        Decoded::Point(point)
    }

    fn flush(&mut self) -> Decoded {
        Decoded::Stream(std::mem::take(&mut self.out).into())
    }

    fn check_limits(&self) -> Result<(), DecompressError> {
        let limits = &self.limits;
        let by_ratio = self.blob.saturating_mul(limits.ratio).max(limits.ratio_free);
        let limit = limits.stream.min(by_ratio);
        match self.stream > limit {
            true => Err(DecompressError::TooLarge { limit }),
            false => Ok(()),
        }
    }

    fn error(&self, error: CodecError) -> DecompressError {
        match error {
            CodecError::Malformed(what) => DecompressError::Malformed { offset: self.blob, what },
            CodecError::Memory => DecompressError::Memory,
        }
    }
}
