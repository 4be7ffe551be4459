//! The skeleton: how a layer's exact tar stream is made of its objects.
//!
//! The part's bytes: magic, varints: number of contents, then for each content
//! the literal bytes before it, its object and its length, then the literal
//! bytes at the end; what follows is one zstd frame of all literal bytes.
//!
//! Where a content lies in its object needs no saying: contents of the bundle
//! (object 0) follow each other, and any other object is a whole content. Object
//! numbers count up as objects first appear.

use std::ops::Range;

use bytes::Bytes;
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer};

use super::wire::{Reader, push_varint};

const MAGIC: [u8; 8] = *b"PSSKEL\x00\x01";
/// Longest stream, in bytes: offsets stay far from overflow.
const STREAM_MAX: u64 = 1 << 50;
/// zstd level of the literals: headers are long and alike.
const LEVEL: i32 = 12;

/// Why bytes are not a skeleton.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the layer's skeleton is malformed")]
pub struct SkeletonError;

/// Which bytes of a tar stream are which content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Contents in the bundle, in the order of the stream and of the bundle.
    bundle: Vec<Small>,
    bundle_length: u64,
    /// Contents that are whole objects, in the order of the stream.
    files: Vec<Large>,
    /// For object n + 1, its first place in `files`.
    first: Vec<u32>,
    stream_length: u64,
    literal_length: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Small {
    stream: u64,
    offset: u64,
    len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Large {
    stream: u64,
    len: u64,
    object: u32,
}

/// Bytes of an object and where the stream has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamRange {
    /// First byte in the stream.
    pub stream_offset: u64,
    /// First byte in the object.
    pub object_offset: u64,
    /// Bytes, above 0.
    pub len: u64,
}

/// A stretch of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it lies; never empty.
    pub stream: Range<u64>,
    /// What it is.
    pub kind: SegmentKind,
}

/// What a stretch of the stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// Headers, padding and the like.
    Literal,
    /// Content.
    Content {
        /// Number of the object.
        object: u32,
        /// First byte in the object.
        offset: u64,
    },
}

impl Layout {
    /// Appends bytes that are no content.
    pub(super) fn push_literal(&mut self, len: u64) {
        self.literal_length += len;
        self.stream_length += len;
    }

    /// Appends content: all of object `object`, or of the bundle what comes next.
    /// `false` if it is no such thing.
    pub(super) fn push_content(&mut self, object: u32, len: u64) -> bool {
        let stream = self.stream_length;
        match object.checked_sub(1) {
            _ if len == 0 => return false,
            None => {
                let offset = self.bundle_length;
                self.bundle.push(Small { stream, offset, len });
                self.bundle_length += len;
            }
            Some(n) => {
                match self.first.get(n as usize) {
                    Some(first) if self.files[*first as usize].len != len => return false,
                    Some(_) => {}
                    None if n as usize == self.first.len() => {
                        self.first.push(self.files.len() as u32);
                    }
                    None => return false,
                }
                self.files.push(Large { stream, len, object });
            }
        }
        self.stream_length += len;
        true
    }

    /// Length of the tar stream in bytes.
    pub fn stream_length(&self) -> u64 {
        self.stream_length
    }

    /// How many of these bytes are no content.
    pub fn literal_length(&self) -> u64 {
        self.literal_length
    }

    /// Whether these are the lengths of the layer's objects, bundle first: then
    /// every byte of every object is in the stream.
    pub fn covers(&self, lengths: &[u64]) -> bool {
        let Some((bundle, files)) = lengths.split_first() else { return false };
        // An empty object has no place in the stream.
        let files: Vec<u64> = files.iter().copied().filter(|len| *len > 0).collect();
        let own = self.first.iter().map(|at| self.files[*at as usize].len);
        *bundle == self.bundle_length && own.eq(files)
    }

    /// Where the stream has the bytes `range` of an object, in order. What the
    /// object doesn't have is left out. Content that stands in the stream more
    /// than once is found at its first place.
    pub fn stream_ranges(&self, object: u32, range: Range<u64>) -> Vec<StreamRange> {
        let Some(n) = object.checked_sub(1) else {
            let first = self.bundle.partition_point(|c| c.offset + c.len <= range.start);
            let inside = self.bundle[first..].iter();
            return inside
                .take_while(|c| c.offset < range.end)
                .filter_map(|c| clip(c.stream, c.offset, c.len, &range))
                .collect();
        };
        let file = self.first.get(n as usize).and_then(|at| self.files.get(*at as usize));
        file.and_then(|f| clip(f.stream, 0, f.len, &range)).into_iter().collect()
    }

    /// What the bytes `range` of the stream are, in order and without gaps, cut
    /// at the end of the stream.
    pub fn segments_in(&self, range: Range<u64>) -> Segments<'_> {
        let end = range.end.min(self.stream_length);
        Segments {
            bundle: self.bundle.partition_point(|c| c.stream + c.len <= range.start),
            files: self.files.partition_point(|c| c.stream + c.len <= range.start),
            layout: self,
            at: range.start,
            end,
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        push_varint(out, (self.bundle.len() + self.files.len()) as u64);
        let mut literal = 0;
        for segment in self.segments_in(0..self.stream_length) {
            let len = segment.stream.end - segment.stream.start;
            match segment.kind {
                SegmentKind::Literal => literal = len,
                SegmentKind::Content { object, .. } => {
                    push_varint(out, std::mem::take(&mut literal));
                    push_varint(out, object.into());
                    push_varint(out, len);
                }
            }
        }
        push_varint(out, literal);
    }

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mut layout = Self::default();
        for _ in 0..reader.varint()? {
            layout.read_literal(reader)?;
            let object = u32::try_from(reader.varint()?).ok()?;
            let len = reader.varint().filter(|len| *len <= STREAM_MAX)?;
            if !layout.push_content(object, len) || layout.stream_length > STREAM_MAX {
                return None;
            }
        }
        layout.read_literal(reader)?;
        Some(layout)
    }

    fn read_literal(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let len = reader.varint().filter(|len| *len <= STREAM_MAX)?;
        self.push_literal(len);
        (self.stream_length <= STREAM_MAX).then_some(())
    }
}

/// The part of a content that is inside `range` of its object.
fn clip(stream: u64, offset: u64, len: u64, range: &Range<u64>) -> Option<StreamRange> {
    let start = offset.max(range.start);
    let end = (offset + len).min(range.end);
    (start < end).then(|| StreamRange {
        stream_offset: stream + (start - offset),
        object_offset: start,
        len: end - start,
    })
}

/// Iterates over stretches of the stream. See [`Layout::segments_in`].
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    layout: &'a Layout,
    bundle: usize,
    files: usize,
    at: u64,
    end: u64,
}

impl Iterator for Segments<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        let start = self.at;
        if start >= self.end {
            return None;
        }
        let small = self.layout.bundle.get(self.bundle);
        let large = self.layout.files.get(self.files);
        let small_first = match (small, large) {
            (Some(small), Some(large)) => small.stream < large.stream,
            (small, _) => small.is_some(),
        };
        let (object, stream, offset, len) = match (small.filter(|_| small_first), large) {
            (Some(small), _) => (0, small.stream, small.offset, small.len),
            (None, Some(large)) => (large.object, large.stream, 0, large.len),
            (None, None) => (0, self.end, 0, 0),
        };
        let (end, kind) = if start < stream {
            (stream, SegmentKind::Literal)
        } else {
            match small_first {
                true => self.bundle += 1,
                false => self.files += 1,
            }
            let offset = offset + (start - stream);
            (stream + len, SegmentKind::Content { object, offset })
        };
        self.at = end.min(self.end);
        Some(Segment { stream: start..self.at, kind })
    }
}

/// Writes a skeleton: give it the literal bytes of the layout in order.
pub struct SkeletonWriter {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    left: u64,
}

impl SkeletonWriter {
    /// For a layout whose literals come next.
    ///
    /// # Errors
    /// [`SkeletonError`] if there is no memory for a compressor.
    pub fn new(layout: &Layout) -> Result<Self, SkeletonError> {
        let mut out = MAGIC.to_vec();
        layout.encode(&mut out);
        let left = layout.literal_length;
        let encoder = zstd::stream::write::Encoder::new(out, LEVEL);
        let mut encoder = encoder.map_err(|_| SkeletonError)?;
        // One that does not know how few they are clears 40 MB of tables first.
        encoder.set_pledged_src_size(Some(left)).map_err(|_| SkeletonError)?;
        Ok(Self { encoder, left })
    }

    /// Adds literal bytes.
    ///
    /// # Errors
    /// [`SkeletonError`] if there are more than the layout has.
    pub fn literal(&mut self, bytes: &[u8]) -> Result<(), SkeletonError> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(SkeletonError)?;
        std::io::Write::write_all(&mut self.encoder, bytes).map_err(|_| SkeletonError)
    }

    /// The part's bytes.
    ///
    /// # Errors
    /// [`SkeletonError`] if there were fewer literal bytes than the layout has.
    pub fn finish(self) -> Result<Vec<u8>, SkeletonError> {
        match self.left {
            0 => self.encoder.finish().map_err(|_| SkeletonError),
            _ => Err(SkeletonError),
        }
    }
}

/// A layer's skeleton: the layout in memory, the literals compressed.
#[derive(Clone, Debug)]
pub struct Skeleton {
    layout: Layout,
    literals: Bytes,
}

impl Skeleton {
    /// Reads what [`SkeletonWriter`] wrote; the literals share the memory of
    /// `bytes` and are not looked at yet. The input may be hostile; memory is in
    /// proportion to it.
    ///
    /// # Errors
    /// [`SkeletonError`] where the layout is malformed.
    pub fn decode(bytes: &Bytes) -> Result<Self, SkeletonError> {
        let mut reader = Reader(bytes);
        let magic = reader.array().filter(|magic| *magic == MAGIC);
        let layout = magic.and_then(|_| Layout::read(&mut reader));
        Ok(Self { layout: layout.ok_or(SkeletonError)?, literals: bytes.slice_ref(reader.0) })
    }

    /// Which bytes of the stream are which content.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Reads the literal bytes from the start.
    ///
    /// # Errors
    /// [`SkeletonError`] if there is no memory for a decompressor.
    pub fn literals(&self) -> Result<Literals, SkeletonError> {
        Ok(Literals {
            context: DCtx::try_create().ok_or(SkeletonError)?,
            input: self.literals.clone(),
            at: 0,
        })
    }
}

/// The literal bytes of a skeleton in order. See [`Skeleton::literals`].
pub struct Literals {
    context: DCtx<'static>,
    input: Bytes,
    at: usize,
}

impl Literals {
    /// Fills `out` with the next bytes.
    ///
    /// # Errors
    /// [`SkeletonError`] if there are fewer, or they are damaged.
    pub fn fill(&mut self, out: &mut [u8]) -> Result<(), SkeletonError> {
        let mut filled = 0;
        while filled < out.len() {
            let mut source = InBuffer::around(&self.input);
            source.set_pos(self.at);
            let mut target = OutBuffer::around_pos(out, filled);
            let left = self.context.decompress_stream(&mut target, &mut source);
            let progress = (target.pos(), source.pos()) != (filled, self.at);
            filled = target.pos();
            self.at = source.pos();
            if left.is_err() || !progress || (left == Ok(0) && filled < out.len()) {
                return Err(SkeletonError);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Contents as (literal before, object, length).
    fn layout(contents: &[(u64, u32, u64)], end: u64) -> Layout {
        let mut layout = Layout::default();
        for (literal, object, len) in contents {
            layout.push_literal(*literal);
            assert!(layout.push_content(*object, *len));
        }
        layout.push_literal(end);
        layout
    }

    fn some() -> Layout {
        layout(&[(512, 0, 10), (1014, 1, 1000), (24, 0, 5), (0, 0, 6), (500, 1, 1000)], 1024)
    }

    fn encode(layout: &Layout) -> Bytes {
        let mut writer = SkeletonWriter::new(layout).expect("memory");
        for n in 0..layout.literal_length() {
            writer.literal(&[n as u8]).expect("not too many");
        }
        writer.finish().expect("enough").into()
    }

    #[test]
    fn ranges_of_objects_are_found_in_the_stream() {
        let layout = some();
        let range =
            |stream_offset, object_offset, len| StreamRange { stream_offset, object_offset, len };
        assert_eq!(
            layout.stream_ranges(0, 8..17),
            [range(520, 8, 2), range(2560, 10, 5), range(2565, 15, 2)]
        );
        assert_eq!(layout.stream_ranges(1, 100..5000), [range(1636, 100, 900)]);
        assert_eq!(layout.stream_ranges(2, 0..10), []);
        assert_eq!(layout.stream_ranges(0, 21..22), []);
    }

    #[test]
    fn the_stream_is_covered_without_gaps() {
        let layout = some();
        let content = |object, offset| SegmentKind::Content { object, offset };
        let segments: Vec<_> = layout.segments_in(515..2567).map(|s| (s.stream, s.kind)).collect();
        let expected = [
            (515..522, content(0, 3)),
            (522..1536, SegmentKind::Literal),
            (1536..2536, content(1, 0)),
            (2536..2560, SegmentKind::Literal),
            (2560..2565, content(0, 10)),
            (2565..2567, content(0, 15)),
        ];
        assert_eq!(segments, expected);
        let end: Vec<_> = layout.segments_in(4000..9999).collect();
        assert_eq!(end.last().map(|s| s.stream.end), Some(layout.stream_length()));
    }

    #[test]
    fn skeletons_come_back() {
        let layout = some();
        let skeleton = Skeleton::decode(&encode(&layout)).expect("own bytes");
        assert_eq!(skeleton.layout(), &layout);
        let mut literals = skeleton.literals().expect("memory");
        let mut out = vec![0; layout.literal_length() as usize];
        let (first, rest) = out.split_at_mut(100);
        literals.fill(first).expect("there");
        literals.fill(rest).expect("there");
        assert!(out.iter().zip(0..).all(|(byte, n)| *byte == n as u8));
        assert_eq!(literals.fill(&mut [0]), Err(SkeletonError));
    }

    #[test]
    fn objects_count_up_and_keep_their_length() {
        assert!(!Layout::default().push_content(2, 1));
        assert!(!Layout::default().push_content(0, 0));
        let mut layout = some();
        assert!(!layout.push_content(1, 999));
    }

    proptest! {
        #[test]
        fn decode_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in 0usize..40) {
            let mut bytes = encode(&some()).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = value;
            bytes.truncate(bytes.len() - cut);
            if let Ok(skeleton) = Skeleton::decode(&bytes.into()) {
                skeleton.layout().segments_in(0..u64::MAX).count();
                let mut literals = skeleton.literals().expect("memory");
                let _ = literals.fill(&mut [0; 5000]);
            }
        }
    }
}
