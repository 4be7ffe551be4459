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

/// A layer is cut into about this many runs,
const RUNS: u64 = 6;
/// none much shorter than this, in bytes of the blob, so that what is read twice
/// stays a small part,
const RUN_SHORT: u64 = 4 << 20;
/// and none longer than this, so that large layers are shared out well.
const RUN_LONG: u64 = 32 << 20;

/// Where runs begin in the stream, in order; the first at 0. `blocks` is how far
/// each block of the layer reaches in the stream, in any order.
pub(super) fn cuts(seek: &SeekTable, blocks: impl Iterator<Item = Range<u64>>) -> Vec<u64> {
    let points = seek.points();
    let twice = read_twice(seek, blocks);
    let longest = (seek.blob_length() / RUNS).clamp(RUN_SHORT, RUN_LONG);
    let mut cuts = vec![0];
    let mut start = 0;
    while seek.blob_length() - start > longest {
        let from = points.partition_point(|point| point.blob < start + longest / 2);
        let to = points.partition_point(|point| point.blob <= start + longest);
        // Points far apart leave no choice.
        let to = to.max(from + 1).min(points.len());
        let Some(best) = (from..to).rev().min_by_key(|n| twice[*n]) else { break };
        cuts.push(points[best].stream);
        start = points[best].blob;
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
