//! The seek table: where a compressed blob can be entered.
//!
//! Layout: magic, compression u8, then varints: blob length, stream length,
//! number of points; each point: stream and blob offset as distance from the
//! point before, a tag (0: a gzip member or zstd frame starts here; 1 + n: a
//! deflate block starts in the last n bits of the byte before) and for tags
//! above 0 these bits u8, the window's length as varint, and the window (the
//! 32 KiB of output before, zstd-compressed).
//!
//! The table depends on the compressor, so it is no part of a layer's identity.
//! A wrong table can't do harm: what it leads to is verified block by block.

use std::ops::Range;

use bytes::Bytes;

pub use super::codec::Compression;
use super::codec::WINDOW;
use super::wire::{Reader, push_varint};

const MAGIC: [u8; 8] = *b"PSSEEK\x00\x01";
/// A window that doesn't shrink, and what zstd adds to it.
const WINDOW_PACKED_MAX: u64 = (WINDOW + 1024) as u64;
/// zstd level of windows. On the Debian layer level 19 is 9 % smaller, and slower
/// than inflate.
const WINDOW_LEVEL: i32 = 3;
/// Bytes of windows that one table holds: 32 MiB, which is 4 MiB spacing over
/// 4 GiB of incompressible data. Beyond it, points are further apart.
const WINDOWS_MAX: u64 = 32 << 20;
/// Points that one table holds.
const POINTS_MAX: usize = 1 << 20;

/// A place where decoding can begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekPoint {
    /// Offset in the uncompressed stream of the first byte that comes out.
    pub stream: u64,
    /// Offset in the blob of the first byte to feed.
    pub blob: u64,
    /// What is needed besides.
    pub entry: Entry,
}

/// What the decoder must know at a [`SeekPoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing: a gzip member or a zstd frame starts here.
    Start,
    /// A deflate block starts here, inside a member.
    Block {
        /// How many bits of the byte before belong to the block: 0 to 7.
        bits: u8,
        /// These bits.
        value: u8,
        /// The output before, zstd-compressed; see [`unpack_window`].
        window: Bytes,
    },
}

/// Compresses a window for [`Entry::Block`].
pub(crate) fn pack_window(window: &[u8]) -> Bytes {
    // Compressing to memory can't fail but for want of it; an empty window makes
    // a point that doesn't verify and is not used.
    zstd::bulk::compress(window, WINDOW_LEVEL).unwrap_or_default().into()
}

/// The window of an [`Entry::Block`], at most 32 KiB. `None` if it is damaged.
pub fn unpack_window(window: &[u8]) -> Option<Vec<u8>> {
    zstd::bulk::decompress(window, WINDOW).ok()
}

/// Why bytes are not a seek table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the seek table is malformed")]
pub struct SeekError;

/// Where a blob can be entered, and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeekTable {
    compression: Compression,
    blob_length: u64,
    stream_length: u64,
    points: Vec<SeekPoint>,
}

/// A stretch of the stream and the part of the blob from which it is decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// The point at which decoding begins; nothing for a plain blob.
    pub point: Option<usize>,
    /// Bytes of the uncompressed stream.
    pub stream: Range<u64>,
    /// Bytes of the blob to feed, all of them and no others.
    pub blob: Range<u64>,
}

impl SeekTable {
    /// How the blob is compressed.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Length of the blob in bytes.
    pub fn blob_length(&self) -> u64 {
        self.blob_length
    }

    /// Length of the uncompressed stream in bytes.
    pub fn stream_length(&self) -> u64 {
        self.stream_length
    }

    /// All points, by offset. The first is at 0; a plain blob has none.
    pub fn points(&self) -> &[SeekPoint] {
        &self.points
    }

    /// Whether the blob can be entered anywhere but at its start. One that is a
    /// single zstd frame can't.
    pub fn can_enter(&self) -> bool {
        self.compression == Compression::Plain || self.points.len() > 1
    }

    /// The shortest span that contains `range` of the stream: exactly `range` in
    /// a plain blob, else from a point to a point. `None` if the range is empty
    /// or exceeds the stream.
    pub fn cover(&self, range: Range<u64>) -> Option<Span> {
        if range.is_empty() || range.end > self.stream_length {
            return None;
        }
        if self.compression == Compression::Plain {
            return Some(Span { point: None, stream: range.clone(), blob: range });
        }
        let first = self.point_at(range.start)?;
        let last = self.point_at(range.end - 1)?;
        let (first_span, last_span) = (self.span(first)?, self.span(last)?);
        Some(Span {
            stream: first_span.stream.start..last_span.stream.end,
            blob: first_span.blob.start..last_span.blob.end,
            ..first_span
        })
    }

    /// The last point at or before a byte of the stream. `None` in a plain blob.
    pub fn point_at(&self, stream: u64) -> Option<usize> {
        self.points.partition_point(|point| point.stream <= stream).checked_sub(1)
    }

    /// The stretch between point number `point` and the next.
    pub fn span(&self, point: usize) -> Option<Span> {
        let start = self.points.get(point)?;
        let (stream_end, blob_end) = match self.points.get(point + 1) {
            Some(next) => (next.stream, next.blob),
            None => (self.stream_length, self.blob_length),
        };
        Some(Span {
            point: Some(point),
            stream: start.stream..stream_end,
            blob: start.blob..blob_end,
        })
    }

    /// The part's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.push(match self.compression {
            Compression::Plain => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        });
        push_varint(&mut out, self.blob_length);
        push_varint(&mut out, self.stream_length);
        push_varint(&mut out, self.points.len() as u64);
        let (mut stream, mut blob) = (0, 0);
        for point in &self.points {
            push_varint(&mut out, point.stream - stream);
            push_varint(&mut out, point.blob - blob);
            (stream, blob) = (point.stream, point.blob);
            push_entry(&mut out, &point.entry);
        }
        out
    }

    /// Reads what [`SeekTable::encode`] wrote; the windows share the memory of
    /// `bytes`. The input may be hostile.
    ///
    /// # Errors
    /// [`SeekError`] where it is not exactly one well-formed table.
    pub fn decode(bytes: &Bytes) -> Result<Self, SeekError> {
        let mut reader = Reader(bytes);
        let table = Self::read(&mut reader, bytes).filter(|_| reader.0.is_empty());
        table.ok_or(SeekError)
    }

    fn read(reader: &mut Reader<'_>, whole: &Bytes) -> Option<Self> {
        if reader.array()? != MAGIC {
            return None;
        }
        let compression = match reader.u8()? {
            0 => Compression::Plain,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return None,
        };
        let (blob_length, stream_length) = (reader.varint()?, reader.varint()?);
        let count = usize::try_from(reader.varint()?).ok()?;
        // A point takes three bytes at least.
        if count > POINTS_MAX || count > reader.0.len() / 3 {
            return None;
        }
        let mut points = Vec::with_capacity(count);
        let (mut stream, mut blob) = (0u64, 0u64);
        for n in 0..count {
            let distance = (reader.varint()?, reader.varint()?);
            stream = stream.checked_add(distance.0)?;
            blob = blob.checked_add(distance.1)?;
            let entry = read_entry(reader, whole)?;
            let fits = match n {
                0 => distance == (0, 0) && entry == Entry::Start,
                _ => {
                    distance.0 > 0 && distance.1 > 0 && stream < stream_length && blob < blob_length
                }
            };
            let is_block = matches!(entry, Entry::Block { .. });
            if !fits || (is_block && compression != Compression::Gzip) {
                return None;
            }
            points.push(SeekPoint { stream, blob, entry });
        }
        let is_plain = compression == Compression::Plain;
        if is_plain != points.is_empty() || (is_plain && blob_length != stream_length) {
            return None;
        }
        Some(Self { compression, blob_length, stream_length, points })
    }
}

pub(super) fn push_entry(out: &mut Vec<u8>, entry: &Entry) {
    match entry {
        Entry::Start => out.push(0),
        Entry::Block { bits, value, window } => {
            out.push(1 + bits);
            out.push(*value);
            push_varint(out, window.len() as u64);
            out.extend_from_slice(window);
        }
    }
}

/// Reads an entry of `whole`, which `reader` is in.
pub(super) fn read_entry(reader: &mut Reader<'_>, whole: &Bytes) -> Option<Entry> {
    let bits = match reader.u8()? {
        0 => return Some(Entry::Start),
        tag @ 1..=8 => tag - 1,
        _ => return None,
    };
    let value = reader.u8()?;
    let length = reader.varint()?;
    if u16::from(value) >> bits != 0 || length > WINDOW_PACKED_MAX {
        return None;
    }
    Some(Entry::Block { bits, value, window: whole.slice_ref(reader.bytes(length)?) })
}

/// Collects the points of a blob as they are found. Memory is bounded: where
/// there would be too many points, every second one goes.
#[derive(Clone, Debug)]
pub struct SeekTableBuilder {
    points: Vec<SeekPoint>,
    windows: u64,
    spacing: u64,
}

impl Default for SeekTableBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl SeekTableBuilder {
    /// For a blob of which nothing is known but its start.
    pub fn new() -> Self {
        Self {
            points: vec![SeekPoint { stream: 0, blob: 0, entry: Entry::Start }],
            windows: 0,
            spacing: 1,
        }
    }

    /// Adds the next point. One that is not behind the last is left out.
    pub fn push(&mut self, point: SeekPoint) {
        let fits = self.points.last().is_some_and(|last| {
            point.blob > last.blob && point.stream >= last.stream.saturating_add(self.spacing)
        });
        if !fits {
            return;
        }
        self.windows += window_length(&point);
        self.points.push(point);
        while self.points.len() > 2
            && (self.windows > WINDOWS_MAX || self.points.len() > POINTS_MAX)
        {
            self.thin();
        }
    }

    /// The table of a blob of these lengths in bytes.
    pub fn finish(
        self,
        compression: Compression,
        blob_length: u64,
        stream_length: u64,
    ) -> SeekTable {
        let mut points = self.points;
        match compression {
            Compression::Plain => points.clear(),
            _ => {
                points
                    .retain(|p| p.blob == 0 || (p.stream < stream_length && p.blob < blob_length));
            }
        }
        SeekTable { compression, blob_length, stream_length, points }
    }

    fn thin(&mut self) {
        let mut number = 0;
        self.points.retain(|_| {
            number += 1;
            number % 2 == 1
        });
        self.windows = self.points.iter().map(window_length).sum();
        let reach = self.points.last().map_or(0, |last| last.stream);
        self.spacing = (reach / self.points.len() as u64).max(1);
    }
}

fn window_length(point: &SeekPoint) -> u64 {
    match &point.entry {
        Entry::Start => 0,
        Entry::Block { window, .. } => window.len() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn point(stream: u64, blob: u64, window: &'static [u8]) -> SeekPoint {
        let window = Bytes::from_static(window);
        let entry = Entry::Block { bits: 3, value: 5, window };
        SeekPoint { stream, blob, entry }
    }

    fn table() -> SeekTable {
        let mut builder = SeekTableBuilder::new();
        builder.push(point(100, 10, b"window"));
        builder.push(point(90, 20, b"goes back"));
        builder.push(SeekPoint { stream: 200, blob: 30, entry: Entry::Start });
        builder.push(point(300, 40, b"at the end"));
        builder.finish(Compression::Gzip, 40, 300)
    }

    #[test]
    fn spans_lie_between_points() {
        let table = table();
        assert_eq!(table.points().len(), 3);
        assert_eq!(SeekTable::decode(&table.encode().into()), Ok(table.clone()));
        let span = |point, stream, blob| Some(Span { point: Some(point), stream, blob });
        assert_eq!(table.cover(0..1), span(0, 0..100, 0..10));
        assert_eq!(table.cover(100..101), span(1, 100..200, 10..30));
        assert_eq!(table.cover(99..201), span(0, 0..300, 0..40));
        assert_eq!(table.cover(299..300), span(2, 200..300, 30..40));
        assert_eq!(table.cover(5..5), None);
        assert_eq!(table.cover(299..301), None);
    }

    #[test]
    fn a_plain_blob_is_entered_anywhere() {
        let table = SeekTableBuilder::new().finish(Compression::Plain, 50, 50);
        assert!(table.can_enter());
        let span = Span { point: None, stream: 7..9, blob: 7..9 };
        assert_eq!(table.cover(7..9), Some(span));
        assert_eq!(SeekTable::decode(&table.encode().into()), Ok(table));
    }

    #[test]
    fn a_single_frame_is_not_entered() {
        let table = SeekTableBuilder::new().finish(Compression::Zstd, 50, 500);
        assert!(!table.can_enter());
        assert_eq!(SeekTable::decode(&table.encode().into()), Ok(table));
    }

    #[test]
    fn too_many_points_are_thinned() {
        let mut builder = SeekTableBuilder::new();
        for n in 1..10_000 {
            let mut point = point(n << 22, n << 21, b"");
            let window = Bytes::from_static(&[0; 32 << 10]);
            point.entry = Entry::Block { bits: 0, value: 0, window };
            builder.push(point);
        }
        let end = 10_000 << 22;
        let table = builder.finish(Compression::Gzip, end, end);
        let bytes: u64 = table.points().iter().map(window_length).sum();
        assert!((WINDOWS_MAX / 2 - 65536..=WINDOWS_MAX).contains(&bytes), "{bytes}");
        let gaps = table.points().windows(2).map(|p| p[1].stream - p[0].stream);
        assert!(gaps.max() <= Some(64 << 22));
    }

    proptest! {
        #[test]
        fn decode_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = table().encode();
            let at = at.index(bytes.len());
            bytes[at] = value;
            if let Ok(table) = SeekTable::decode(&bytes.clone().into()) {
                prop_assert_eq!(table.encode(), bytes);
            }
        }
    }
}
