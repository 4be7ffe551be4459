//! Where a layer's stream is cut into the runs that the nodes of a LAN share out.
//! Pure.
//!
//! A run begins at a point where the stream can be entered. A block that begins
//! before that point and ends behind it belongs to the run before, whose node reads on
//! to the block's end: what lies between the two is read by both nodes. A block of
//! the bundle can reach over many large files that lie between small ones, so that
//! may be several megabytes. So the cuts are made where little is read twice, and
//! there are few of them: the line into a LAN is one for all its nodes, and it does
//! not matter which of them fills it.
//!
//! All nodes must cut alike: the cuts follow from the layer's index alone.

use std::ops::Range;

use crate::layer::seek::SeekTable;

/// A run has no more than this part of the blob,
const RUNS: u64 = 4;
/// or this many bytes of it where that is more: what is read twice is to be a small
/// part, and small layers are shared out whole.
const RUN_SHORT: u64 = 16 << 20;
/// Nor has it more than this, so that large layers are shared out well.
const RUN_LONG: u64 = 32 << 20;
/// It has no less than this part of what it may have: the best cut is looked for in
/// what lies between. (Of a Debian layer, 4 MiB between two points, the worst cut
/// costs 3.6 MiB of the stream and the best of three less than 0.3.)
const SHORTEST: u64 = 4;

/// Where runs begin in the stream, in order; the first at 0. `blocks` is how far
/// each block of the layer reaches in the stream, in any order.
pub(super) fn cuts(seek: &SeekTable, blocks: impl Iterator<Item = Range<u64>>) -> Vec<u64> {
    let points = seek.points();
    let twice = read_twice(seek, blocks);
    let longest = (seek.blob_length() / RUNS).clamp(RUN_SHORT, RUN_LONG);
    let (mut cuts, mut place) = (vec![0], 0);
    while let Some(start) = points.get(place).map(|point| point.blob)
        && seek.blob_length() - start > longest
    {
        // Where points are far apart there is no choice.
        let to = points.partition_point(|point| point.blob <= start + longest).max(place + 2);
        let from = points.partition_point(|point| point.blob < start + longest / SHORTEST);
        let choice = from.clamp(place + 1, to - 1)..to.min(points.len());
        let Some(best) = choice.rev().min_by_key(|n| twice[*n]) else { break };
        cuts.push(points[best].stream);
        place = best;
    }
    cuts
}

/// For each point, how many bytes of the blob behind it are read twice if a run
/// begins there.
fn read_twice(seek: &SeekTable, blocks: impl Iterator<Item = Range<u64>>) -> Vec<u64> {
    let points = seek.points();
    let mut reach: Vec<u64> = points.iter().map(|point| point.stream).collect();
    for block in blocks {
        let first = points.partition_point(|point| point.stream <= block.start);
        let over = reach[first..].iter_mut().zip(&points[first..]);
        over.take_while(|(_, point)| point.stream < block.end)
            .for_each(|(reach, _)| *reach = block.end.max(*reach));
    }
    let blob = |stream: u64| {
        let last = seek.point_at(stream.saturating_sub(1)).and_then(|n| seek.span(n));
        last.map_or(0, |span| {
            let part = u128::from(stream.saturating_sub(span.stream.start));
            let whole = u128::from((span.stream.end - span.stream.start).max(1));
            span.blob.start + (u128::from(span.blob.end - span.blob.start) * part / whole) as u64
        })
    };
    let cost = |(point, reach): (&crate::layer::seek::SeekPoint, &u64)| match *reach {
        reach if reach == point.stream => 0,
        reach => blob(reach).saturating_sub(point.blob),
    };
    points.iter().zip(&reach).map(cost).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::seek::{Compression, Entry, SeekPoint, SeekTableBuilder};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    /// A blob of half its stream's length, with points at these places of the stream.
    fn table(points: impl IntoIterator<Item = u64>, length: u64) -> SeekTable {
        let mut builder = SeekTableBuilder::new();
        for stream in points {
            builder.push(SeekPoint { stream, blob: stream / 2, entry: Entry::Start });
        }
        builder.finish(Compression::Gzip, length / 2, length)
    }

    #[test]
    fn cuts_are_where_little_is_read_twice() {
        let seek = table((1..32).map(|n| n * 4 * MIB), 128 * MIB);
        // All others are reached over by a block of the bundle.
        let good = [12, 20, 36, 56, 100].map(|n| n * MIB);
        let bad = (1..32).map(|n| n * 4 * MIB).filter(|p| !good.contains(p));
        let over = bad.map(|p| p - MIB..p + MIB);
        let fine = good.iter().map(|p| p - 2 * MIB..*p);
        // Of those that are as good as another the last; and where there is no good
        // one in reach, another.
        assert_eq!(cuts(&seek, over.chain(fine)), [0, 20, 36, 56, 88, 100].map(|n| n * MIB));
    }

    #[test]
    fn of_two_runs_both_read_what_a_block_reaches_over() {
        let seek = table([10, 20, 30], 40);
        assert_eq!(read_twice(&seek, [2..8, 8..26].into_iter()), [0, 8, 3, 0]);
        assert_eq!(read_twice(&seek, std::iter::once(0..40)), [0, 15, 10, 5]);
    }

    #[test]
    fn small_layers_are_one_run() {
        let seek = table((1..8).map(|n| n * 4 * MIB), 32 * MIB);
        assert_eq!(cuts(&seek, std::iter::empty()), [0]);
        let plain = SeekTableBuilder::new().finish(Compression::Plain, 50 * MIB, 50 * MIB);
        assert_eq!(cuts(&plain, std::iter::empty()), [0]);
    }

    proptest! {
        /// Whatever the points, every cut is one of them, and only points far apart
        /// make long runs.
        #[test]
        fn runs_are_no_longer_than_they_must_be(
            gaps in prop::collection::vec(1u64..30, 0..200), tail in 1u64..30,
        ) {
            let points: Vec<u64> = gaps
                .iter()
                .scan(0, |at, gap| { *at += gap * MIB; Some(*at) })
                .collect();
            let length = points.last().copied().unwrap_or(0) + tail * MIB;
            let seek = table(points, length);
            let cuts = cuts(&seek, std::iter::empty());
            let place = |cut: &u64| seek.points().iter().position(|p| p.stream == *cut);
            let places: Option<Vec<usize>> = cuts.iter().map(place).collect();
            let places = places.expect("points");
            prop_assert!(places[0] == 0 && places.is_sorted_by(|a, b| a < b));
            let longest = (length / 2 / RUNS).clamp(RUN_SHORT, RUN_LONG);
            for (n, place) in places.iter().enumerate() {
                let start = seek.points()[*place].blob;
                let end = places.get(n + 1).map_or(length / 2, |p| seek.points()[*p].blob);
                let next = seek.points().get(place + 1).map_or(length / 2, |p| p.blob);
                prop_assert!(end - start <= longest || end == next, "{start}..{end}");
            }
        }
    }
}
