//! A blob's bytes in order, over several connections.
//!
//! One connection often gets a part of the line only: registries limit each,
//! and each begins slowly and stalls with every lost packet. So a large blob is
//! read in segments, a few at a time, each with its own [`ResumingBlob`], and
//! given on in order. What waits for its turn is bounded by the segments under
//! way. A source that ignores ranges is read over one connection, as it would
//! send the whole blob each time.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use super::error::SourceError;
use super::resume::ResumingBlob;
use super::retry::RetryPolicy;
use super::source::ImageSource;
use crate::types::Digest;

/// Bytes of one request. At 100 Mbit/s and 40 ms round trip the pause between two
/// of a connection is then a twentieth, and the other connections fill it.
pub const SEGMENT: u64 = 2 << 20;
/// Segments of one blob that are under way, with the one that is given out.
const CONNECTIONS: usize = 4;

/// What is read ahead of its turn, of all blobs together: a permit is a segment.
#[derive(Clone, Debug)]
pub struct Ahead(Arc<Semaphore>);

impl Ahead {
    /// At most `segments` of [`SEGMENT`] bytes each.
    pub fn new(segments: usize) -> Self {
        Self(Arc::new(Semaphore::new(segments)))
    }
}

/// Reads a range of a blob as [`ResumingBlob`] does, over several connections
/// where that can help. The bytes are not verified.
pub struct ParallelBlob {
    of: Of,
    /// The segment that is given out by this task itself: the first one, or
    /// all of the range.
    first: Option<ResumingBlob>,
    /// The segments after that, in order.
    segments: VecDeque<Segment>,
    /// What no segment covers yet.
    rest: Range<u64>,
    requests: u64,
}

/// What a segment is of.
struct Of {
    source: Arc<dyn ImageSource>,
    digest: Digest,
    size: u64,
    policy: RetryPolicy,
    seed: u64,
    ahead: Ahead,
}

/// A segment that is read by a task of its own.
struct Segment {
    /// Not bounded by itself: the segment is.
    chunks: mpsc::UnboundedReceiver<Result<Bytes, SourceError>>,
    _task: AbortOnDropHandle<()>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl ParallelBlob {
    /// Prepares to read `range` of a blob that is `size` bytes long; nothing is
    /// asked for yet. `policy` and `seed` as for [`ResumingBlob`].
    pub fn new(
        source: Arc<dyn ImageSource>,
        digest: Digest,
        size: u64,
        range: Range<u64>,
        policy: RetryPolicy,
        seed: u64,
        ahead: &Ahead,
    ) -> Self {
        let (ahead, range) = (ahead.clone(), range.start..range.end.min(size));
        let of = Of { source, digest, size, policy, seed, ahead };
        // Two segments or less are not worth another connection.
        let alone = of.source.is_local() || range.end.saturating_sub(range.start) <= 2 * SEGMENT;
        let end = if alone { range.end } else { range.start + SEGMENT };
        let mut first = of.read(range.start..end);
        first.or_up_to(range.end);
        Self {
            of,
            first: Some(first),
            segments: VecDeque::new(),
            rest: end..range.end,
            requests: 1,
        }
    }

    /// How many ranges were asked for so far.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// The next bytes; `None` once all of the range came.
    ///
    /// # Errors
    /// As [`ResumingBlob::next`].
    pub async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            if let Some(first) = &mut self.first {
                let chunk = first.next().await?;
                if first.ignores_ranges() && self.requests == 1 {
                    // It brings the rest too.
                    self.rest = 0..0;
                }
                if chunk.is_some() {
                    self.fill();
                    return Ok(chunk);
                }
                self.first = None;
            }
            self.fill();
            let Some(segment) = self.segments.front_mut() else { return Ok(None) };
            match segment.chunks.recv().await {
                Some(chunk) => return chunk.map(Some),
                None => drop(self.segments.pop_front()),
            }
        }
    }

    /// Starts segments, as many as may be under way. One always may.
    fn fill(&mut self) {
        let under_way = |this: &Self| this.segments.len() + usize::from(this.first.is_some());
        while !self.rest.is_empty() && under_way(self) < CONNECTIONS {
            let permit = Arc::clone(&self.of.ahead.0).try_acquire_owned().ok();
            if permit.is_none() && under_way(self) > 0 {
                return;
            }
            let end = self.rest.end.min(self.rest.start + SEGMENT);
            if let Some(first) = &mut self.first {
                first.not_further();
            }
            let mut blob = self.of.read(self.rest.start..end);
            self.rest.start = end;
            self.requests += 1;
            let (sender, chunks) = mpsc::unbounded_channel();
            let task = tokio::spawn(async move {
                while let Some(chunk) = blob.next().await.transpose() {
                    let failed = chunk.is_err();
                    if sender.send(chunk).is_err() || failed {
                        return;
                    }
                }
            });
            let _task = AbortOnDropHandle::new(task);
            self.segments.push_back(Segment { chunks, _task, _permit: permit });
        }
    }
}

impl Of {
    fn read(&self, range: Range<u64>) -> ResumingBlob {
        let source = Arc::clone(&self.source);
        let seed = self.seed.wrapping_add(range.start);
        ResumingBlob::new(source, self.digest, self.size, range, self.policy, seed)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::oci::testing::{Memory, Turn};

    fn content(len: usize) -> Bytes {
        let mut content = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut content);
        content.into()
    }

    async fn read(
        source: Arc<Memory>,
        range: Range<u64>,
        size: u64,
        ahead: &Ahead,
    ) -> (Vec<u8>, u64) {
        let digest = Digest::of(b"");
        let policy = RetryPolicy { base: Duration::ZERO, ..RetryPolicy::default() };
        let mut blob = ParallelBlob::new(source, digest, size, range, policy, 1, ahead);
        let mut read = Vec::new();
        while let Some(chunk) = blob.next().await.expect("read") {
            read.extend_from_slice(&chunk);
        }
        assert_eq!(blob.next().await.expect("still at its end"), None);
        (read, blob.requests())
    }

    #[tokio::test]
    async fn what_comes_is_the_range_in_order() {
        let content = content(9_000_001);
        let size = content.len() as u64;
        // Every `breaks`-th stream breaks off in its middle.
        for (ranges, breaks, ahead) in
            [(true, 1000, 9), (true, 3, 9), (true, 1000, 0), (false, 1000, 9), (false, 2, 9)]
        {
            let ahead = Ahead::new(ahead);
            for range in [0..size, 5..size, 1_000_000..size + 5, 0..3_000_000, 7..7, size..size] {
                let source = Arc::new(Memory::new(content.clone(), move |number, len| Turn {
                    ignores_range: !ranges,
                    bytes: if number.is_multiple_of(breaks) { len / 2 } else { usize::MAX },
                    ..Turn::PERFECT
                }));
                let (read, requests) = read(source, range.clone(), size, &ahead).await;
                let expected = &content[range.start as usize..range.end.min(size) as usize];
                assert!(read == expected, "{range:?} {ranges} {breaks} {ahead:?}");
                let several = ranges && expected.len() as u64 > 2 * SEGMENT;
                assert_eq!(requests > 1, several, "{range:?}");
            }
        }
    }

    #[tokio::test]
    async fn several_segments_are_under_way_and_no_more_than_that() {
        let content = content(40_000_000);
        let (digest, size) = (Digest::of(b""), content.len() as u64);
        let source = Arc::new(Memory::new(content, |_, _| Turn::PERFECT));
        let ahead = Ahead::new(2);
        let policy = RetryPolicy::default();
        let of: Arc<dyn ImageSource> = Arc::clone(&source) as _;
        let mut blob = ParallelBlob::new(of, digest, size, 0..size, policy, 1, &ahead);
        blob.next().await.expect("read");
        while ahead.0.available_permits() > 0 || source.asked().len() < 3 {
            tokio::task::yield_now().await;
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let asked: Vec<u64> = source.asked().iter().flatten().map(|r| r.start).collect();
        assert_eq!(asked, [0, SEGMENT, 2 * SEGMENT]);
        // What is given up is given back.
        drop(blob);
        assert_eq!(ahead.0.available_permits(), 2);
    }
}
