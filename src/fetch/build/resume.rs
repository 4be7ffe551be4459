//! Going on with an interrupted first pass.
//!
//! The part of the stream that passed is put together again from what was
//! staged and fed to a fresh builder, which parses and hashes it at the speed
//! of the disk. So no state of a parser is ever written down.

use bytes::Bytes;

use super::sink::stream_of;
use crate::layer::build::{
    BuildObject, DecodeLimits, Decompressor, Expected, LayerBuilder, Replay, Tails,
};
use crate::layer::seek::{Compression, SeekTable, SeekTableBuilder};
use crate::store::{Staging, Stream};

/// Bytes read back at a time.
const CHUNK: u64 = 512 << 10;

/// What a checkpoint says besides the staged streams.
pub(super) struct State {
    decompressor: Vec<u8>,
    seek: Vec<u8>,
}

impl State {
    /// The state at a seek point; `None` where the decompressor is not at one.
    pub(super) fn of(decompressor: &Decompressor, seek: &SeekTableBuilder) -> Option<Self> {
        let table = seek.clone().finish(
            decompressor.compression().unwrap_or(Compression::Plain),
            decompressor.blob_offset() + 1,
            decompressor.stream_offset() + 1,
        );
        Some(Self { decompressor: decompressor.save()?, seek: table.encode() })
    }

    /// Four stretches, each with its length (u64) before it: decompressor, seek
    /// table, the builder's tails as kind (u32: 0 bundle, 1 + n file n), offset
    /// (u64), length (u64) and bytes, and the digest of the stream so far (32): what
    /// was staged is not covered by the blob's digest, whose state is saved.
    pub(super) fn encode(&self, builder: &LayerBuilder) -> Vec<u8> {
        let mut packed = Vec::new();
        for (object, offset, bytes) in &builder.tails() {
            let kind = match object {
                BuildObject::Bundle => 0,
                BuildObject::File(n) => n + 1,
            };
            packed.extend(u32::to_le_bytes(kind));
            packed.extend(offset.to_le_bytes());
            packed.extend((bytes.len() as u64).to_le_bytes());
            packed.extend(&bytes[..]);
        }
        let mut out = Vec::new();
        let digest = builder.stream_digest();
        for part in [&self.decompressor[..], &self.seek, &packed, digest.as_bytes()] {
            out.extend((part.len() as u64).to_le_bytes());
            out.extend(part);
        }
        out
    }
}

/// Decompressor, seek points and builder as they were at the last checkpoint;
/// `None` if there is none.
///
/// # Errors
/// A sentence, where what was staged can't be used.
pub(super) fn resume(
    staging: &Staging,
    builder: impl FnOnce() -> LayerBuilder,
) -> Result<Option<(Decompressor, SeekTableBuilder, LayerBuilder)>, String> {
    let Some(resumed) = staging.resumed() else { return Ok(None) };
    let mut input = Input(Bytes::copy_from_slice(&resumed.state));
    let (state, seek, tails) = (input.part()?, input.part()?, input.part()?);
    let digest = input.part()?;
    let decompressor = Decompressor::restore(&state, DecodeLimits::default())
        .ok_or("the checkpoint's decompressor is malformed")?;
    let table = SeekTable::decode(&seek).map_err(|e| e.to_string())?;
    let mut points = SeekTableBuilder::new();
    table.points().iter().for_each(|point| points.push(point.clone()));
    let tails = read_tails(tails)?;
    let mut replay = Replay::new(builder(), decompressor.stream_offset());
    let mut literals = 0;
    while let Some(wanted) = replay.wants() {
        let bytes = match wanted {
            Expected::Literal(len) => {
                let bytes = read(staging, Stream::Literals, literals, len)?;
                literals += bytes.len() as u64;
                bytes
            }
            Expected::Content { object, offset, len } => {
                content(staging, &tails, object, offset, len)?
            }
        };
        if bytes.is_empty() {
            return Err("what was staged ends before the checkpoint".into());
        }
        replay.supply(bytes).map_err(|e| e.to_string())?;
    }
    let builder = replay.into_builder();
    if builder.stream_digest().as_bytes()[..] != digest[..] {
        return Err("what was staged has changed on the disk".into());
    }
    Ok(Some((decompressor, points, builder)))
}

fn content(
    staging: &Staging,
    tails: &Tails,
    object: BuildObject,
    offset: u64,
    len: u64,
) -> Result<Bytes, String> {
    let staged = staging.len(stream_of(object));
    if offset < staged {
        return read(staging, stream_of(object), offset, len.min(staged - offset));
    }
    let tail = tails
        .iter()
        .find(|(of, at, bytes)| *of == object && (*at..*at + bytes.len() as u64).contains(&offset));
    let Some((_, at, bytes)) = tail else { return Ok(Bytes::new()) };
    let rest = bytes.slice((offset - at) as usize..);
    Ok(rest.slice(..rest.len().min(usize::try_from(len).unwrap_or(usize::MAX))))
}

fn read(staging: &Staging, stream: Stream, offset: u64, len: u64) -> Result<Bytes, String> {
    let mut buffer = vec![0; len.min(CHUNK) as usize];
    let read = staging.read(stream, offset, &mut buffer).map_err(|e| e.to_string())?;
    buffer.truncate(read);
    Ok(buffer.into())
}

fn read_tails(bytes: Bytes) -> Result<Tails, String> {
    let mut input = Input(bytes);
    let mut tails = Tails::new();
    while !input.0.is_empty() {
        let object = match input.u32()? {
            0 => BuildObject::Bundle,
            n => BuildObject::File(n - 1),
        };
        let offset = input.u64()?;
        tails.push((object, offset, input.part()?));
    }
    Ok(tails)
}

/// A checkpoint is our own and carries a checksum; a bound that is passed all
/// the same is an error like any other.
struct Input(Bytes);

impl Input {
    fn take(&mut self, len: u64) -> Result<Bytes, String> {
        match usize::try_from(len) {
            Ok(len) if len <= self.0.len() => Ok(self.0.split_to(len)),
            _ => Err("the checkpoint is malformed".into()),
        }
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b)))
    }

    fn u64(&mut self) -> Result<u64, String> {
        let bytes = self.take(8)?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    fn part(&mut self) -> Result<Bytes, String> {
        let len = self.u64()?;
        self.take(len)
    }
}
