//! The *seek* part of a layer index: points at which a compressed blob can be
//! entered.
//!
//! ```text
//! "PSYNCsek"  u32 version  u8 kind  u64 blob length  u64 stream length  u32 count
//! count x (u64 stream, u64 blob, u32 window: length of its zstd frame << 3 | bits)
//! the windows' zstd frames, one after the other
//! ```
//! Integers are little-endian. Only a node that goes to the registry needs it.

use std::fmt;

const MAGIC: &[u8; 8] = b"PSYNCsek";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 1 + 8 + 8 + 4;
const ENTRY: usize = 20;

use super::inflate::WINDOW;

/// About as many bytes of the stream lie between two points.
pub const SPAN: u64 = 4 << 20;

/// Longest blob or stream in bytes; keeps sums of offsets from overflowing.
const LENGTH_MAX: u64 = 1 << 60;
/// Compresses windows some 15 % smaller than the default level; 0.3 ms each.
const WINDOW_LEVEL: i32 = 6;

/// How a blob is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all: blob and stream are the same.
    Plain,
    /// gzip, of one or many members.
    Gzip,
    /// zstd, of one or many frames.
    Zstd,
}

/// A point at which the blob can be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeekPoint {
    /// Offset in the stream of the first byte that comes out.
    pub stream: u64,
    /// Offset in the blob of the first byte to read. Where `bits` is not 0 it
    /// is the byte of which only the high bits belong to what follows.
    pub blob: u64,
    /// High bits of the first byte that are to be used; 0: all of it, and for
    /// a point without window a gzip header or zstd frame begins there.
    pub bits: u8,
    /// Whether the point is in the middle of a deflate stream.
    pub has_window: bool,
}

/// Why bytes are not a seek table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SeekError {
    /// Not our format, or cut off, or points out of order or outside.
    #[error("the seek table is malformed")]
    Malformed,
    /// Made by a newer PeerSync.
    #[error("the seek table has version {0}; this PeerSync knows version {VERSION}")]
    Version(u32),
}

/// The points of a blob, readable in place.
pub struct SeekTable {
    bytes: Box<dyn AsRef<[u8]> + Send + Sync>,
    compression: Compression,
    blob_length: u64,
    stream_length: u64,
    points: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Entry {
    point: SeekPoint,
    /// Where its window's frame lies in the part.
    window: (u64, u32),
}

impl SeekTable {
    /// Reads a part, which may be hostile.
    ///
    /// # Errors
    /// [`SeekError`].
    pub fn open(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Result<Self, SeekError> {
        let bytes: Box<dyn AsRef<[u8]> + Send + Sync> = Box::new(bytes);
        let all = (*bytes).as_ref();
        let head = all.get(..HEADER).ok_or(SeekError::Malformed)?;
        if head[..8] != *MAGIC {
            return Err(SeekError::Malformed);
        }
        let version = u32_at(head, 8);
        if version != VERSION {
            return Err(SeekError::Version(version));
        }
        let compression = match head[12] {
            0 => Compression::Plain,
            1 => Compression::Gzip,
            2 => Compression::Zstd,
            _ => return Err(SeekError::Malformed),
        };
        let (blob_length, stream_length) = (u64_at(head, 13), u64_at(head, 21));
        let count = u32_at(head, 29) as usize;
        let table = count
            .checked_mul(ENTRY)
            .and_then(|len| all.get(HEADER..HEADER.checked_add(len)?))
            .ok_or(SeekError::Malformed)?;
        let mut window_at = (HEADER + table.len()) as u64;
        let mut points: Vec<Entry> = Vec::with_capacity(count);
        for raw in table.chunks_exact(ENTRY) {
            let word = u32_at(raw, 16);
            let length = word >> 3;
            let (stream, blob) = (u64_at(raw, 0), u64_at(raw, 8));
            let point =
                SeekPoint { stream, blob, bits: (word & 7) as u8, has_window: length > 0 };
            let ordered = points.last().map_or(stream == 0, |last| {
                stream > last.point.stream && blob > last.point.blob
            });
            let inside = stream <= stream_length && blob < blob_length.max(1);
            let sound = point.has_window || point.bits == 0;
            if !ordered || !inside || !sound {
                return Err(SeekError::Malformed);
            }
            points.push(Entry { point, window: (window_at, length) });
            window_at += u64::from(length);
        }
        let plain = compression == Compression::Plain;
        if window_at != all.len() as u64
            || blob_length > LENGTH_MAX
            || stream_length > LENGTH_MAX
            || (plain && (count > 0 || blob_length != stream_length))
            || (!plain && count == 0)
        {
            return Err(SeekError::Malformed);
        }
        Ok(Self { bytes, compression, blob_length, stream_length, points })
    }

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

    /// Number of points; 0 for a plain blob, which can be entered anywhere.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// Whether there are no points.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Whether the blob can be read in part. A zstd blob of one frame can't,
    /// unless the frame is no longer than a span.
    pub fn is_enterable(&self) -> bool {
        self.compression != Compression::Zstd
            || self.points.len() > 1
            || self.stream_length <= SPAN
    }

    /// The point at or before a stream offset. `None` for a plain blob.
    pub fn point_before(&self, stream: u64) -> Option<(usize, SeekPoint)> {
        let after = self.points.partition_point(|e| e.point.stream <= stream);
        let index = after.checked_sub(1)?;
        Some((index, self.points[index].point))
    }

    /// The point of that number.
    pub fn point(&self, index: usize) -> Option<SeekPoint> {
        self.points.get(index).map(|e| e.point)
    }

    /// The nearest stream offset at or before the given one at which the blob
    /// can be entered.
    pub fn entry(&self, stream: u64) -> u64 {
        match self.compression {
            Compression::Plain => stream,
            _ => self.point_before(stream).map_or(0, |(_, p)| p.stream),
        }
    }

    /// Where to stop reading the blob to get the stream up to `stream`, as an
    /// estimate: between two points it is interpolated, with some to spare, and
    /// never beyond the next point. Reading may have to go on.
    pub fn blob_end_estimate(&self, stream: u64) -> u64 {
        if self.compression == Compression::Plain {
            return stream.min(self.blob_length);
        }
        let stream = stream.min(self.stream_length);
        let upper = self.blob_end(stream);
        let Some((_, before)) = self.point_before(stream.saturating_sub(1)) else { return upper };
        let next = self.points.partition_point(|e| e.point.stream < stream);
        let next_stream = self.points.get(next).map_or(self.stream_length, |e| e.point.stream);
        let (span, part) = (next_stream - before.stream, stream - before.stream);
        if span == 0 {
            return upper;
        }
        let packed = u128::from(upper.saturating_sub(before.blob));
        let guess = (packed * u128::from(part.min(span)) / u128::from(span)) as u64;
        (before.blob + guess + guess / 16 + SPARE).min(upper)
    }

    /// Where reading the blob can stop in any case to get the stream up to `stream`.
    pub fn blob_end(&self, stream: u64) -> u64 {
        if self.compression == Compression::Plain {
            return stream.min(self.blob_length);
        }
        let next = self.points.partition_point(|e| e.point.stream < stream);
        // One byte more: the next point's first byte may be shared.
        self.points
            .get(next)
            .map_or(self.blob_length, |e| (e.point.blob + 1).min(self.blob_length))
    }

    /// What the stream gave before a point, at most 32 KiB. Empty where the
    /// point needs none. `None` for one whose window is damaged.
    pub fn window(&self, index: usize) -> Option<Vec<u8>> {
        let (at, length) = self.points.get(index)?.window;
        if length == 0 {
            return Some(Vec::new());
        }
        let start = usize::try_from(at).ok()?;
        let frame = (*self.bytes).as_ref().get(start..start + length as usize)?;
        zstd::bulk::decompress(frame, WINDOW).ok()
    }
}

/// What an estimated range reads beyond the estimate, in bytes.
const SPARE: u64 = 32 << 10;

impl fmt::Debug for SeekTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeekTable")
            .field("compression", &self.compression)
            .field("blob_length", &self.blob_length)
            .field("stream_length", &self.stream_length)
            .field("points", &self.points.len())
            .finish()
    }
}

/// Collects points during a first pass. [`SeekBuilder::encode`] can be called
/// at any time; [`SeekBuilder::restore`] continues from it.
#[derive(Clone, Debug)]
pub struct SeekBuilder {
    compression: Compression,
    entries: Vec<u8>,
    windows: Vec<u8>,
}

impl SeekBuilder {
    /// No points yet.
    pub fn new(compression: Compression) -> Self {
        Self { compression, entries: Vec::new(), windows: Vec::new() }
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY
    }

    /// Whether there are no points.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Adds a point; they come in order. A window that is not empty makes it
    /// one in the middle of a deflate stream (at most 32 KiB count, from the end).
    ///
    /// # Errors
    /// What zstd fails with: out of memory.
    pub fn push(&mut self, stream: u64, blob: u64, bits: u8, window: &[u8]) -> std::io::Result<()> {
        let window = &window[window.len().saturating_sub(WINDOW)..];
        let frame = match window {
            [] => Vec::new(),
            window => zstd::bulk::compress(window, WINDOW_LEVEL)?,
        };
        self.entries.extend(stream.to_le_bytes());
        self.entries.extend(blob.to_le_bytes());
        self.entries.extend(((frame.len() as u32) << 3 | u32::from(bits)).to_le_bytes());
        self.windows.extend(frame);
        Ok(())
    }

    /// The part.
    pub fn encode(&self, blob_length: u64, stream_length: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER + self.entries.len() + self.windows.len());
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.push(match self.compression {
            Compression::Plain => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 2,
        });
        out.extend(blob_length.to_le_bytes());
        out.extend(stream_length.to_le_bytes());
        out.extend((self.len() as u32).to_le_bytes());
        out.extend(&self.entries);
        out.extend(&self.windows);
        out
    }

    /// Continues from a part that [`SeekBuilder::encode`] gave.
    ///
    /// # Errors
    /// [`SeekError`].
    pub fn restore(part: &[u8]) -> Result<Self, SeekError> {
        let compression = SeekTable::open(part.to_vec())?.compression;
        let windows = HEADER + u32_at(part, 29) as usize * ENTRY;
        Ok(Self {
            compression,
            entries: part[HEADER..windows].to_vec(),
            windows: part[windows..].to_vec(),
        })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table() -> Vec<u8> {
        let mut builder = SeekBuilder::new(Compression::Gzip);
        builder.push(0, 0, 0, &[]).expect("memory");
        builder.push(4 << 20, 1 << 20, 3, &[7; WINDOW]).expect("memory");
        builder.push(8 << 20, 2 << 20, 0, b"window").expect("memory");
        builder.encode(3 << 20, 12 << 20)
    }

    #[test]
    fn points_are_found_and_windows_come_back() {
        let table = SeekTable::open(table()).expect("own encoding");
        assert_eq!(table.entry(0), 0);
        assert_eq!(table.entry((4 << 20) - 1), 0);
        assert_eq!(table.entry(4 << 20), 4 << 20);
        assert_eq!(table.entry(u64::MAX), 8 << 20);
        assert_eq!(table.window(0), Some(Vec::new()));
        assert_eq!(table.window(1), Some(vec![7; WINDOW]));
        assert_eq!(table.window(2), Some(b"window".to_vec()));
        assert_eq!(table.blob_end(1), (1 << 20) + 1);
        assert_eq!(table.blob_end(4 << 20), (1 << 20) + 1);
        assert_eq!(table.blob_end((4 << 20) + 1), (2 << 20) + 1);
        assert_eq!(table.blob_end(12 << 20), 3 << 20);
        let half = table.blob_end_estimate(2 << 20);
        assert!((512 << 10..700 << 10).contains(&half), "{half}");
    }

    #[test]
    fn a_builder_continues() {
        let mut builder = SeekBuilder::restore(&table()).expect("own encoding");
        builder.push(10 << 20, 5 << 19, 0, &[]).expect("memory");
        let table = SeekTable::open(builder.encode(3 << 20, 12 << 20)).expect("own encoding");
        assert_eq!(table.len(), 4);
        assert_eq!(table.window(2), Some(b"window".to_vec()));
    }

    #[test]
    fn tables_that_lead_astray_are_refused() {
        let good = table();
        for cut in 0..good.len() {
            assert!(SeekTable::open(good[..cut].to_vec()).is_err());
        }
        let broken = |points: &[(u64, u64, u8)]| {
            let mut builder = SeekBuilder::new(Compression::Zstd);
            for (stream, blob, bits) in points {
                builder.push(*stream, *blob, *bits, &[]).expect("memory");
            }
            SeekTable::open(builder.encode(100, 1000)).is_err()
        };
        assert!(broken(&[]), "no point");
        assert!(broken(&[(1, 0, 0)]), "not from the start");
        assert!(broken(&[(0, 0, 0), (5, 5, 0), (5, 6, 0)]), "out of order");
        assert!(broken(&[(0, 0, 0), (5, 5, 1)]), "bits without window");
        assert!(broken(&[(0, 100, 0)]), "beyond the blob");
        assert!(broken(&[(0, 0, 0), (1001, 5, 0)]), "beyond the stream");
        assert!(!broken(&[(0, 0, 0), (5, 5, 0)]));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(
            at in 0usize..200,
            bytes in prop::collection::vec(any::<u8>(), 0..60),
            stream in any::<u64>(),
        ) {
            let mut part = table();
            let at = at.min(part.len());
            let end = (at + bytes.len()).min(part.len());
            part.splice(at..end, bytes);
            if let Ok(table) = SeekTable::open(part) {
                for index in 0..table.len() {
                    let _ = table.window(index);
                }
                let _ = (table.entry(stream), table.blob_end(stream), table.blob_end_estimate(stream));
            }
        }
    }
}
